package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
)

// sample is how many documents Inspect compares.
const sample = 1000

// Inspect looks at the index of a table and changes nothing. The notes are what an
// operator should know; an error says what is to be mended, in one sentence.
func (s *Sink) Inspect(ctx context.Context, shape cdc.Table) (notes []string, err error) {
	t := s.table(shape.Name)
	if t == nil {
		return nil, nil
	}
	if t.wrong != nil {
		return nil, t.wrong
	}
	index, err := s.look(ctx, t)
	if err != nil || index == nil {
		return nil, err
	}
	if err := s.examine(ctx, t, index); err != nil {
		return nil, err
	}
	if err := s.fits(t, index, shape); err != nil {
		return nil, err
	}
	if err := s.foreign(ctx, t, index); err != nil {
		return nil, err
	}
	notes = append(notes, fmt.Sprintf("can be stored in %s", index.name))
	if p := index.pipelines(); len(p) > 0 {
		notes = append(notes, fmt.Sprintf("warning: the ingest pipeline %s may change or drop what is written, and then the index is not what the table says", strings.Join(p, " and ")))
	}
	return notes, nil
}

// What an account must be allowed to do, as docs/elasticsearch.md and docs/privileges.md have it.
var (
	onCluster = []string{"monitor", "read_pipeline"}
	toRead    = []string{"read", "view_index_metadata", "maintenance"}
	toWrite   = []string{"read", "write", "manage"}
)

// Lacks names the privileges that the account does not have of those that reading, or writing, the
// tables behind these aliases needs. It is empty where the cluster does not tell.
func (s *Sink) Lacks(ctx context.Context, aliases []string, write bool) (lack []string, err error) {
	privileges := toRead
	if write {
		privileges = toWrite
	}
	var names []string
	for _, alias := range aliases {
		names = append(names, alias, alias+"-000001")
	}
	body := map[string]any{"cluster": onCluster}
	if len(names) > 0 {
		body["index"] = []map[string]any{{"names": names, "privileges": privileges}}
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	res, err := s.do(ctx, esapi.SecurityHasPrivilegesRequest{Body: bytes.NewReader(text)})
	if err != nil || res.status != http.StatusOK {
		return nil, err
	}
	for _, privilege := range onCluster {
		if !gjson.GetBytes(res.body, "cluster."+privilege).Bool() {
			lack = append(lack, privilege+" on the cluster")
		}
	}
	has := gjson.GetBytes(res.body, "index").Map()
	for _, privilege := range privileges {
		var on []string
		for _, name := range names {
			if !has[name].Get(privilege).Bool() {
				on = append(on, name)
			}
		}
		if len(on) > 0 {
			lack = append(lack, privilege+" on "+strings.Join(on, ", "))
		}
	}
	return lack, nil
}

// foreign looks for documents that somebody else has written, in a sample.
func (s *Sink) foreign(ctx context.Context, t *table, index *index) error {
	n, err := s.count(ctx, index.name, map[string]any{"bool": map[string]any{"must_not": map[string]any{"exists": map[string]any{"field": guardField + ".v"}}}})
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%d documents of %s have no %s.v, so Lockstep did not write them; find out who does, end that, and copy the table anew: lockstep snapshot start --table %s", n, index.name, guardField, t.name)
	}
	res, err := s.search(ctx, index.name, map[string]any{"size": sample, "version": true, "_source": []string{guardField + ".v"}})
	if err != nil {
		return err
	}
	hits := res.Get("hits.hits").Array()
	touched, first := 0, ""
	for _, hit := range hits {
		if has := cdc.Version(hit.Get("_source." + guardField + ".v").Uint()); has != versionOf(hit) {
			if touched++; touched == 1 {
				first = hit.Get("_id").Str
			}
		}
	}
	if touched > 0 {
		return fmt.Errorf("%d of %d documents of %s that were looked at were written by somebody else, the first of them %s: its _version is not its %s.v; find out who does and end that: the next change of the row mends it", touched, len(hits), index.name, first, guardField)
	}
	return nil
}
