package oracle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// errUnavailable is wrapped by the errors of a store that does not answer now: it
// is down, or the index was made a moment ago and has no shard yet.
var errUnavailable = errors.New("the store is unavailable")

// call sends a request with a JSON body and decodes the answer. It returns the
// status; one of 400 or more, save 404, is an error.
func call(ctx context.Context, client *http.Client, base, method, path string, body, into any) (int, error) {
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		payload = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(base, "/")+path, payload)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode >= 500 {
		return response.StatusCode, fmt.Errorf("%w: %s %s: %s: %s", errUnavailable, method, path, response.Status, shorten(string(answer)))
	}
	if response.StatusCode >= 400 && response.StatusCode != http.StatusNotFound {
		return response.StatusCode, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, shorten(string(answer)))
	}
	if into == nil || response.StatusCode == http.StatusNotFound {
		return response.StatusCode, nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return response.StatusCode, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return response.StatusCode, nil
}

func (c *comparison) refresh(ctx context.Context, index string) error {
	_, err := call(ctx, c.http, c.spec.ElasticURL, "POST", "/"+url.PathEscape(index)+"/_refresh", nil, nil)
	return err
}

// gotten is a document as _mget returns it.
type gotten struct {
	ID      string          `json:"_id"`
	Found   bool            `json:"found"`
	Version json.Number     `json:"_version"`
	Source  json.RawMessage `json:"_source"`
	Error   json.RawMessage `json:"error"`
}

// mget returns one document per id, in their order. In an index that does not
// exist none is found.
func mget(ctx context.Context, client *http.Client, base, index, parameters string, ids []string) ([]gotten, error) {
	var answer struct {
		Docs []gotten `json:"docs"`
	}
	path := "/" + url.PathEscape(index) + "/_mget?" + parameters
	if _, err := call(ctx, client, base, "POST", path, map[string]any{"ids": ids}, &answer); err != nil {
		return nil, err
	}
	if answer.Docs == nil {
		return make([]gotten, len(ids)), nil
	}
	if len(answer.Docs) != len(ids) {
		return nil, fmt.Errorf("_mget of %d ids in %s: %d answers", len(ids), index, len(answer.Docs))
	}
	return answer.Docs, nil
}

func (c *comparison) elasticRows(ctx context.Context, t TableSpec, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.id
	}
	docs, err := mget(ctx, c.http, c.spec.ElasticURL, t.Index, "realtime=false", ids)
	if err != nil {
		return err
	}
	fields := 0
	for i, r := range rows {
		d := Difference{Table: t.Table, Key: r.id, Sink: Elastic}
		if !docs[i].Found {
			d.Want, d.Got = "a document", "none"
			if docs[i].Error != nil {
				d.Got = string(docs[i].Error)
			}
			c.differs(d)
			continue
		}
		fields += len(r.fields)
		if version := c.document(t, r, Elastic, docs[i].Source); version != docs[i].Version.String() {
			d.Field, d.Want, d.Got = "_version", "_lockstep.v, which is "+version, docs[i].Version.String()
			c.differs(d)
		}
	}
	c.compared(Elastic, len(rows), fields)
	return nil
}

// elasticOrphans walks the whole index by a point in time and reports every id
// that is not among ids.
func (c *comparison) elasticOrphans(ctx context.Context, t TableSpec, ids map[string]bool) error {
	var pit struct {
		ID string `json:"id"`
	}
	base := c.spec.ElasticURL
	status, err := call(ctx, c.http, base, "POST", "/"+url.PathEscape(t.Index)+"/_pit?keep_alive=2m", nil, &pit)
	if err != nil || status == http.StatusNotFound {
		return err
	}
	defer func() {
		_, _ = call(context.WithoutCancel(ctx), c.http, base, "DELETE", "/_pit", map[string]string{"id": pit.ID}, nil)
	}()
	const page = 5000
	var after []json.RawMessage
	for {
		search := map[string]any{
			"size": page, "_source": false, "track_total_hits": false, "sort": []string{"_shard_doc"},
			"pit": map[string]string{"id": pit.ID, "keep_alive": "2m"},
		}
		if after != nil {
			search["search_after"] = after
		}
		var answer struct {
			PIT    string `json:"pit_id"`
			Shards struct {
				Failed int `json:"failed"`
			} `json:"_shards"`
			TimedOut bool `json:"timed_out"`
			Hits     struct {
				Hits []struct {
					ID   string            `json:"_id"`
					Sort []json.RawMessage `json:"sort"`
				} `json:"hits"`
			} `json:"hits"`
		}
		if _, err := call(ctx, c.http, base, "POST", "/_search", search, &answer); err != nil {
			return err
		}
		if answer.Shards.Failed > 0 || answer.TimedOut {
			return fmt.Errorf("search in %s: %d shards did not answer", t.Index, answer.Shards.Failed)
		}
		hits := answer.Hits.Hits
		for _, hit := range hits {
			if !ids[hit.ID] && !t.SkipElastic[hit.ID] {
				c.differs(Difference{Table: t.Table, Key: hit.ID, Sink: Elastic, Want: "none", Got: "a document without a row"})
			}
		}
		c.mu.Lock()
		c.report.Documents[t.Table] += len(hits)
		c.mu.Unlock()
		if len(hits) < page {
			return nil
		}
		after = hits[len(hits)-1].Sort
		if answer.PIT != "" {
			pit.ID = answer.PIT
		}
	}
}
