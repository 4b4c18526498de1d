package elastic

import (
	"context"
	"slices"
	"sync"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
)

// A document can be read by its _id at once, and is found by a search after the next
// refresh of its index (refresh_interval, or the search itself where the index is idle).
// What readers see of that is measured: now and then a document that was applied is
// searched for until it is found.
const (
	// searchEvery is how often that is done with a table, and searchStep how often the
	// index is asked until then.
	searchEvery, searchStep = 5 * time.Second, 50 * time.Millisecond
	// searchUpTo is how long a document is searched for.
	searchUpTo = time.Minute
	// searchSome is how many are searched for at once.
	searchSome = 16
)

// sought is a document that is searched for.
type sought struct {
	*document
	id    string
	since time.Time
}

// seeking are the documents that are searched for.
type seeking struct {
	mu   sync.Mutex
	next map[*table]time.Time // when the table has its turn again
	all  []sought
	wake chan struct{}
}

// seek has one of docs searched for when it is the table's turn.
func (s *Sink) seek(docs []*document, outcomes []sinks.Outcome) {
	now := time.Now()
	k := &s.seeking
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range slices.Backward(docs) {
		c := d.change
		if d.left || outcomes[d.at].Verdict != sinks.Applied || c.Op == cdc.OpDelete || c.Op == cdc.OpRead || c.CommitMicros <= 0 {
			continue
		}
		if now.Before(k.next[d.table]) || len(k.all) == searchSome {
			continue
		}
		k.next[d.table] = now.Add(searchEvery)
		id, _ := cdc.KeyText(c.Key)
		k.all = append(k.all, sought{id: id, since: now, document: &document{table: d.table, routing: d.routing, change: &cdc.Change{
			Table: c.Table, Version: c.Version, Key: slices.Clone(c.Key), CommitMicros: c.CommitMicros,
		}}})
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// findSought searches until ctx ends.
func (s *Sink) findSought(ctx context.Context) {
	tick := time.NewTicker(searchStep)
	defer tick.Stop()
	k := &s.seeking
	for ctx.Err() == nil {
		k.mu.Lock()
		some := slices.Clone(k.all)
		k.mu.Unlock()
		var wait <-chan time.Time
		if len(some) > 0 {
			wait = tick.C
		}
		over := map[*document]bool{}
		for _, one := range some {
			over[one.document] = s.found(ctx, one)
		}
		k.mu.Lock()
		k.all = slices.DeleteFunc(k.all, func(one sought) bool { return over[one.document] })
		k.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-wait:
		case <-k.wake:
		}
	}
}

// found reports whether a document need not be searched for any more, and notes how old it
// was when it was found. One that is never found counts as long as it was searched for, but
// not when it has been deleted since.
func (s *Sink) found(ctx context.Context, one sought) bool {
	c := one.change
	res, err := s.search(ctx, one.table.alias, map[string]any{
		"size": 0, "terminate_after": 1, "track_total_hits": 1,
		"query": map[string]any{"bool": map[string]any{"filter": []any{
			map[string]any{"ids": map[string]any{"values": []string{one.id}}},
			map[string]any{"range": map[string]any{guardField + ".v": map[string]any{"gte": c.Version}}},
		}}},
	})
	there := err == nil && res.Get("hits.total.value").Int() > 0
	if !there && time.Since(one.since) < searchUpTo {
		return false
	}
	if !there {
		if has := s.ask(ctx, []*document{one.document}); has == nil || !has[0].found || has[0].version < c.Version {
			return true
		}
	}
	age := s.clock(time.Now()).Sub(time.UnixMicro(c.CommitMicros))
	s.metrics.searchable.WithLabelValues(s.name, c.Table.String()).Observe(max(0, age.Seconds()))
	return true
}

// clock is the source's at a time of this machine.
func (s *Sink) clock(t time.Time) time.Time {
	if s.Clock == nil {
		return t
	}
	return s.Clock(t)
}
