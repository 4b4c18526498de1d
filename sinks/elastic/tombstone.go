package elastic

import (
	"context"
	"strconv"
	"time"

	"github.com/tidwall/gjson"

	"lockstep/cdc"
)

// appendTombstone appends the document that a deleted row leaves behind. at is the
// time of the writing and not of the delete: what counts is for how long the store
// has kept late changes out. The same delete that comes once more is a duplicate and
// leaves it as it was.
func appendTombstone(dst []byte, v cdc.Version, at time.Time) []byte {
	dst = append(dst, `{"`+guardField+`":{"v":`...)
	dst = strconv.AppendUint(dst, uint64(v), 10)
	dst = append(dst, `,"deleted":true,"at":`...)
	dst = strconv.AppendInt(dst, at.UnixMilli(), 10)
	return append(dst, "}}"...)
}

// expire removes the tombstones that were written before a time. Each is deleted at
// its own version: a row that was made again meanwhile is newer and stays.
func (s *Sink) expire(ctx context.Context, t *table, index *index, before time.Time) (removed int, err error) {
	if !index.knowsTombstones() {
		return 0, nil
	}
	query := map[string]any{"bool": map[string]any{"filter": []any{hidden,
		map[string]any{"range": map[string]any{guardField + ".at": map[string]any{"lt": before.UnixMilli()}}}}}}
	err = s.pages(ctx, index.name, query, false, func(page []gjson.Result) error {
		n, err := s.remove(ctx, t, page, false, versionOf)
		removed += n
		s.metrics.outlived.Add(float64(n))
		return err
	})
	if removed > 0 {
		s.log.Info("old tombstones removed", "table", t.name.String(), "index", index.name, "tombstones", removed)
	}
	return removed, err
}

// versionOf is the version of a document that a search has found.
func versionOf(hit gjson.Result) cdc.Version { return cdc.Version(hit.Get("_version").Uint()) }
