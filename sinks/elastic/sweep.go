package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
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
	// A document can be seen only after the next refresh.
	res, err := s.do(ctx, esapi.IndicesRefreshRequest{Index: []string{t.alias}})
	if err == nil && res.status == http.StatusNotFound {
		return 0, nil // no index, no rows
	}
	if err = s.good(res, err, "refresh "+t.alias); err != nil {
		return 0, err
	}
	res, err = s.do(ctx, esapi.OpenPointInTimeRequest{Index: []string{t.alias}, KeepAlive: sweepKeep})
	if err = s.good(res, err, "open a view of "+t.alias); err != nil {
		return 0, err
	}
	view := gjson.GetBytes(res.body, "id").Str
	defer func() { s.closeView(context.WithoutCancel(ctx), view) }()
	var after json.RawMessage
	for {
		page, err := s.oldest(ctx, &view, after, v)
		if err != nil {
			return removed, fmt.Errorf("search %s for what is left: %w", t.alias, err)
		}
		n, err := s.remove(ctx, t, page, v)
		removed += n
		if err != nil {
			return removed, err
		}
		if len(page) < s.page() {
			return removed, nil
		}
		after = json.RawMessage(page[len(page)-1].Get("sort").Raw)
	}
}

func (s *Sink) page() int { return min(s.config.BulkDocs, sweepPage) }

// oldest is the next page of the documents that are not known to be newer than v.
func (s *Sink) oldest(ctx context.Context, view *string, after json.RawMessage, v cdc.Version) ([]gjson.Result, error) {
	query := map[string]any{
		"size":             s.page(),
		"query":            map[string]any{"bool": map[string]any{"must_not": map[string]any{"range": map[string]any{guardField + ".v": map[string]any{"gt": v}}}}},
		"pit":              map[string]any{"id": *view, "keep_alive": sweepKeep},
		"sort":             []any{map[string]any{"_shard_doc": "asc"}},
		"version":          true,
		"_source":          false,
		"track_total_hits": false,
	}
	if after != nil {
		query["search_after"] = after
	}
	body, err := json.Marshal(query)
	if err != nil {
		return nil, err
	}
	whole := false
	res, err := s.do(ctx, esapi.SearchRequest{Body: bytes.NewReader(body), AllowPartialSearchResults: &whole})
	if err := s.good(res, err, "search"); err != nil {
		return nil, err
	}
	if id := gjson.GetBytes(res.body, "pit_id").Str; id != "" {
		*view = id
	}
	return gjson.GetBytes(res.body, "hits.hits").Array(), nil
}

// remove deletes the documents of a page at version v. One that has become newer
// meanwhile stays.
func (s *Sink) remove(ctx context.Context, t *table, page []gjson.Result, v cdc.Version) (removed int, err error) {
	var body []byte
	asked := 0
	for _, hit := range page {
		if cdc.Version(hit.Get("_version").Uint()) > v {
			continue
		}
		body = append(body, `{"delete":{"_index":`...)
		body = cdc.AppendString(body, t.alias)
		body = append(body, `,"_id":`...)
		body = cdc.AppendString(body, hit.Get("_id").Str)
		body = append(body, `,"version":`...)
		body = strconv.AppendUint(body, uint64(v), 10)
		body = append(body, `,"version_type":"external_gte"}}`...) // a row of v itself goes, too
		body = append(body, '\n')
		asked++
	}
	if asked == 0 {
		return 0, nil
	}
	res, err := s.do(ctx, esapi.BulkRequest{Body: bytes.NewReader(body), FilterPath: []string{"items.*.status", "items.*.error"}})
	s.metrics.count(res.status, len(body))
	if err := s.good(res, err, "delete from "+t.alias); err != nil {
		return 0, err
	}
	answers := readBulk(res.body)
	if len(answers) != asked {
		return 0, fmt.Errorf("delete from %s: %d answers to %d documents", t.alias, len(answers), asked)
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
		return fmt.Errorf("%s: %s", doing, res.answer)
	}
	return nil
}
