package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
)

const (
	// sweepKeep is how long the cluster holds the view that a sweep pages through,
	// from page to page.
	sweepKeep = "5m"
	// sweepPage is how many documents a page has at most: a search gives no more.
	sweepPage = 10_000
)

// Sweep removes the documents of a table that are not newer than v. It looks at the
// index as it is when it begins: what is written later is newer.
func (s *Sink) Sweep(ctx context.Context, name cdc.TableName, v cdc.Version) (removed int, err error) {
	t := s.table(name)
	switch {
	case t == nil:
		return 0, nil
	case t.wrong != nil:
		return 0, t.wrong
	}
	index, err := s.look(ctx, t)
	if err != nil || index == nil {
		return 0, err // no index, no rows
	}
	// Not the alias, which may have a filter.
	err = s.pages(ctx, index.name, map[string]any{"bool": map[string]any{"must_not": []any{
		map[string]any{"range": map[string]any{guardField + ".v": map[string]any{"gt": v}}}, hidden,
	}}}, false, func(page []gjson.Result) error {
		n, err := s.remove(ctx, t, page, t.tombstones, func(gjson.Result) cdc.Version { return v })
		removed += n
		return err
	})
	return removed, err
}

// pages hands over the documents of an index that match a query, as the index is
// when this begins, page by page. source says which fields come with them.
func (s *Sink) pages(ctx context.Context, index string, query, source any, each func(page []gjson.Result) error) error {
	return s.shardPages(ctx, index, "", query, source, each)
}

// shardPages is pages of the shards that a preference names; of all when it is empty.
func (s *Sink) shardPages(ctx context.Context, index, preference string, query, source any, each func(page []gjson.Result) error) error {
	// A document can be seen only after the next refresh.
	res, err := s.do(ctx, esapi.IndicesRefreshRequest{Index: []string{index}})
	if err = s.good(res, err, "refresh "+index); err != nil {
		return err
	}
	res, err = s.do(ctx, esapi.OpenPointInTimeRequest{Index: []string{index}, KeepAlive: sweepKeep, Preference: preference})
	if err = s.good(res, err, "open a view of "+index); err != nil {
		return err
	}
	view := gjson.GetBytes(res.body, "id").Str
	defer func() { s.closeView(context.WithoutCancel(ctx), view) }()
	search := map[string]any{
		"size":                s.page(),
		"query":               query,
		"sort":                []any{map[string]any{"_shard_doc": "asc"}},
		"version":             true,
		"seq_no_primary_term": true,
		"_source":             source,
		"track_total_hits":    false,
	}
	for {
		search["pit"] = map[string]any{"id": view, "keep_alive": sweepKeep}
		res, err := s.search(ctx, "", search)
		if err != nil {
			return fmt.Errorf("search %s: %w", index, err)
		}
		if id := res.Get("pit_id").Str; id != "" {
			view = id
		}
		page := res.Get("hits.hits").Array()
		if len(page) > 0 {
			search["search_after"] = json.RawMessage(page[len(page)-1].Get("sort").Raw)
			if err := each(page); err != nil {
				return err
			}
		}
		if len(page) < s.page() {
			return nil
		}
	}
}

// search asks all shards of an index, or of the view that the body names.
func (s *Sink) search(ctx context.Context, index string, body map[string]any) (gjson.Result, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return gjson.Result{}, err
	}
	whole := false
	req := esapi.SearchRequest{Body: bytes.NewReader(text), AllowPartialSearchResults: &whole}
	if index != "" {
		req.Index = []string{index}
	}
	res, err := s.do(ctx, req)
	return gjson.ParseBytes(res.body), s.good(res, err, "search")
}

func (s *Sink) page() int { return min(s.config.BulkDocs, sweepPage) }

// remove deletes the documents of a page, or makes tombstones of them, each at a
// version. One that has become newer meanwhile stays. One that is above that version
// already has its number from somebody else, and goes unless it is touched again.
func (s *Sink) remove(ctx context.Context, t *table, page []gjson.Result, tombstones bool, at func(hit gjson.Result) cdc.Version) (removed int, err error) {
	if len(page) == 0 {
		return 0, nil
	}
	var body []byte
	for _, hit := range page {
		// What has this version goes, too.
		a := action{index: t.alias, id: hit.Get("_id").Str, routing: hit.Get("_routing").Str, version: at(hit), again: true}
		if versionOf(hit) > a.version {
			a.over = &stored{seq: hit.Get("_seq_no").Int(), term: hit.Get("_primary_term").Int()}
		}
		if tombstones {
			body = append(appendTombstone(a.append(body, verbIndex), a.version, time.Now()), '\n')
		} else {
			body = a.append(body, verbDelete)
		}
	}
	alias := true
	res, err := s.do(ctx, esapi.BulkRequest{Body: bytes.NewReader(body), RequireAlias: &alias, FilterPath: []string{"items.*.status", "items.*.error"}})
	s.metrics.count(res.status, len(body))
	if err := s.good(res, err, "delete from "+t.alias); err != nil {
		return 0, err
	}
	answers := readBulk(res.body)
	if len(answers) != len(page) {
		return 0, fmt.Errorf("delete from %s: %d answers to %d documents", t.alias, len(answers), len(page))
	}
	var first error
	for _, a := range answers {
		switch {
		case a.status == http.StatusOK:
			removed++
		case a.status == http.StatusNotFound && a.kind == "", a.status == http.StatusConflict:
		case first == nil:
			first = fmt.Errorf("delete from %s: %s", t.alias, a)
		}
	}
	return removed, first
}

func (s *Sink) closeView(ctx context.Context, view string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	body, _ := json.Marshal(map[string]string{"id": view})
	_, _ = s.do(ctx, esapi.ClosePointInTimeRequest{Body: bytes.NewReader(body)}) // else it ends by itself
}

// good turns an answer that is not a success into an error.
func (s *Sink) good(res response, err error, doing string) error {
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", doing, err)
	case res.status != http.StatusOK:
		return fmt.Errorf("%s: %w", doing, res.answer)
	}
	return nil
}
