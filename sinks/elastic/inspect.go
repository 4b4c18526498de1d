package elastic

import (
	"context"
	"fmt"
	"strings"

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
