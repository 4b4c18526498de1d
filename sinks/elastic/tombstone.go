package elastic

import (
	"context"
	"errors"
	"fmt"
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

// Run looks at the index of every table when it begins, so that the log tells early
// what is wrong and one that is gone is made again, and removes the tombstones that have been kept long enough, again
// and again until ctx ends. tables lists what the sink takes.
func (s *Sink) Run(ctx context.Context, tables func(context.Context) ([]cdc.TableName, error)) error {
	every := time.NewTicker(min(time.Hour, s.config.TombstoneKeep/10))
	defer every.Stop()
	for {
		if err := s.lap(ctx, tables); err != nil && ctx.Err() == nil {
			s.log.Warn("not every index could be looked at, trying again later", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}

func (s *Sink) lap(ctx context.Context, tables func(context.Context) ([]cdc.TableName, error)) error {
	names, err := tables(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		t := s.table(name)
		if t == nil {
			continue
		}
		index, err := s.survey(ctx, t)
		s.say(t, err)
		if err != nil {
			continue
		}
		if index == nil {
			if err := s.restore(ctx, t); err != nil {
				errs = append(errs, err)
			}
			continue
		}
		if _, err := s.expire(ctx, t, index, time.Now().Add(-s.config.TombstoneKeep)); err != nil {
			errs = append(errs, fmt.Errorf("remove old tombstones of %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// restore makes the index of a table again that had one before.
func (s *Sink) restore(ctx context.Context, t *table) error {
	if _, err := s.describe(ctx, t.name); err != nil {
		if errors.Is(err, cdc.ErrNoTable) {
			return nil // whoever took the index away may have known
		}
		return err
	}
	t.work.Lock()
	lost, err := s.refill(ctx, t)
	t.work.Unlock()
	if lost {
		s.ready(ctx, t) // says what keeps it from being made
	}
	return err
}

// refill tells Refill, once, that the index of a table is gone. One that is there without
// its alias is not. The caller holds t.work.
func (s *Sink) refill(ctx context.Context, t *table) (lost bool, err error) {
	if s.Refill == nil || t.refilled {
		return t.refilled, nil
	}
	if gone, err := s.Empty(ctx, t.alias+"-000001"); err != nil || !gone {
		return false, err
	}
	t.refilled, err = s.Refill(ctx, t.name)
	return t.refilled, err
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
