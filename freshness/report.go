package freshness

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lockstep/sinks"
)

const (
	// soon is how often a process says how far a sink is while something changes.
	soon = 250 * time.Millisecond
	// manyTables of a process are told of once a second only.
	manyTables = 200
	// mostTargets is how many answers of the capture a report looks after at once.
	mostTargets = 4096
)

// Owned is a partition in the hands of this process.
type Owned interface {
	// Done gives the offset before which all is done with, as the group was told, the end of
	// the log when this process began to read it, and the generation of the group by which
	// it is owned; not ok when that is not certain now.
	Done() (before, end int64, generation int32, ok bool)
}

// Report is the part of one sink in one process: it says how far its partitions are.
type Report struct {
	Hub     *Hub
	Sink    string
	Process string
	// Shown is that of the sink's Worker, Letters the open letters of a partition, -1
	// while they are not known. Letters is asked after Shown.
	Shown   func(topic string, id int) (s sinks.Shown, ok bool)
	Letters func(topic string, id int) int
	// State is the sink as an operator sees it, and Latencies those of its Worker.
	State     func() sinks.Status
	Latencies func() map[string][]uint64
	// TableOf names the table of a topic.
	TableOf func(topic string) (table string, ok bool)

	mu      sync.Mutex
	owned   map[string]*ownedTopic // by table
	targets []*target
	refills map[string]int64 // by table
	waiting atomic.Int32     // targets there are
	changed atomic.Bool      // since the last report
	wake    chan struct{}
	past    []counted // what was counted within Window
	latest  map[string]Latency
	counted time.Time // when that was
}

type ownedTopic struct {
	topic      string
	partitions map[int]Owned
}

// target is where somebody waits for the sink to be.
type target struct {
	ends  map[string][]int64 // by table
	table string
	until time.Time
}

type counted struct {
	at     time.Time
	counts map[string][]uint64
}

// Own notes that a partition is ours until the end of what it returns.
func (r *Report) Own(topic string, id int, part Owned) (leave func()) {
	table, ok := r.TableOf(topic)
	if !ok {
		return func() {}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.owned == nil {
		r.owned = make(map[string]*ownedTopic)
	}
	at := r.owned[table]
	if at == nil {
		at = &ownedTopic{topic, make(map[int]Owned)}
		r.owned[table] = at
	}
	at.partitions[id] = part
	r.changed.Store(true)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if at.partitions[id] == part {
			delete(at.partitions, id)
		}
	}
}

// Refilled notes that the store has lost rows of a table, and that the copy which brings
// them back was asked for before an offset of the topic of requests.
func (r *Report) Refilled(table string, before int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refills == nil {
		r.refills = make(map[string]int64)
	}
	r.refills[table] = max(r.refills[table], before)
}

// Moved hears that a partition has settled more. It is a Worker's Moved.
func (r *Report) Moved() {
	r.changed.Store(true)
	if r.waiting.Load() > 0 {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// Open makes the report ready; it is called before anything else.
func (r *Report) Open() { r.wake = make(chan struct{}, 1) }

// Run reports until ctx ends, and then returns nil.
func (r *Report) Run(ctx context.Context) error {
	wants := map[string]Want{} // those that the capture has not answered, by ID
	defer r.Hub.Listen(func(record Record) {
		switch {
		case record.Want != nil && slices.Contains(record.Want.Sinks, r.Sink) && len(wants) < mostTargets:
			wants[record.Want.ID] = *record.Want
		case record.Capture != nil:
			r.aim(record.Capture, wants)
		}
	})()
	tick := time.NewTicker(soon)
	defer tick.Stop()
	var last time.Time
	tables, failing := 0, false
	for {
		var record *Sink
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
			record = r.answer(time.Now())
		case now := <-tick.C:
			if now.Sub(last) >= beat-soon/2 || tables < manyTables && r.changed.Swap(false) {
				record, last = r.whole(now), now
				tables = len(record.Tables)
			}
		}
		if record == nil {
			continue
		}
		switch err := r.Hub.Write(ctx, Record{Sink: record}); {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			failing = true
			r.Hub.Log.Warn("how far a sink is cannot be said, so barriers wait for it", "sink", r.Sink, "error", err)
		case err == nil:
			failing = false
		}
	}
}

// aim takes an answer of the capture in: what is wanted of this sink is to be told when it
// is there.
func (r *Report) aim(c *Capture, wants map[string]Want) {
	now := time.Now()
	r.mu.Lock()
	for _, id := range c.Wants {
		w, ok := wants[id]
		if !ok || len(r.targets) >= mostTargets {
			continue
		}
		delete(wants, id)
		r.targets = append(r.targets, &target{ends: c.Ends, table: w.Table, until: now.Add(min(time.Duration(w.Millis)*time.Millisecond, mostWait))})
	}
	r.waiting.Store(int32(len(r.targets)))
	r.mu.Unlock()
	if len(wants) >= mostTargets { // nobody answers them
		clear(wants)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// answer tells of the tables of those targets that are reached, of all of them at once; nil
// when there is none.
func (r *Report) answer(now time.Time) *Sink {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Sink{Sink: r.Sink, Process: r.Process, AtMicros: now.UnixMicro(), Tables: make(map[string]Table)}
	looked := map[string]Table{}
	r.targets = slices.DeleteFunc(r.targets, func(t *target) bool {
		var tables []string
		for table, ends := range t.ends {
			if t.table != "" && t.table != table {
				continue
			}
			now, known := looked[table]
			if !known {
				now = Table{Partitions: r.places(table, s), Refill: r.refills[table]}
				looked[table] = now
			}
			if !r.reached(table, ends, now) {
				return false
			}
			tables = append(tables, table)
		}
		for _, table := range tables {
			if len(looked[table].Partitions) > 0 {
				s.Tables[table] = looked[table]
			}
		}
		return true
	})
	r.targets = slices.DeleteFunc(r.targets, func(t *target) bool { return now.After(t.until) })
	r.waiting.Store(int32(len(r.targets)))
	if len(s.Tables) == 0 {
		return nil
	}
	return s
}

// reached reports whether all partitions of a table that are ours are settled up to ends.
func (r *Report) reached(table string, ends []int64, now Table) bool {
	at := r.owned[table]
	if at == nil {
		return true
	}
	for id := range at.partitions {
		if place, known := now.Partitions[id]; !known || id < len(ends) && place.Settled < ends[id] {
			return false
		}
	}
	return true
}

// places says how far the partitions of a table are that are ours. Those are left out of
// which that is not certain now.
func (r *Report) places(table string, s *Sink) map[int]Place {
	at := r.owned[table]
	if at == nil {
		return nil
	}
	places := make(map[int]Place, len(at.partitions))
	for id, part := range at.partitions {
		shown, running := r.Shown(at.topic, id)
		done, end, generation, ok := part.Done()
		if shown.Before < 0 { // nothing was read
			shown.Before = done
		}
		// An owner before us may have read further than it has committed, and have passed
		// over records for newer ones that it has not brought into the store.
		if !running || !ok || shown.Before < end {
			continue
		}
		s.Generation = max(s.Generation, generation)
		// The letters are counted behind it: one that is written later counts, too.
		places[id] = Place{Settled: shown.Before, Void: shown.Void, Letters: r.Letters(at.topic, id)}
	}
	return places
}

// whole is the state of the sink in this process.
func (r *Report) whole(now time.Time) *Sink {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Sink{Sink: r.Sink, Process: r.Process, Whole: true, AtMicros: now.UnixMicro(), Tables: make(map[string]Table)}
	for table, at := range r.owned {
		if len(at.partitions) == 0 {
			delete(r.owned, table)
			continue
		}
		s.Tables[table] = Table{Partitions: r.places(table, s), Refill: r.refills[table]}
	}
	state, latencies := r.State(), r.window(now)
	s.Breaker, s.AppliedUpToMicros, s.DeliveredUpToMicros = state.Breaker, micros(state.AppliedUpTo), micros(state.DeliveredUpTo)
	for _, row := range state.Tables {
		t, ours := s.Tables[row.Table]
		if !ours {
			continue
		}
		t.Breaker, t.Held, t.Latency = row.Breaker, row.Held, latencies[row.Table]
		t.AppliedUpToMicros, t.Letters, t.OldestLetterMicros = micros(row.AppliedUpTo), row.Letters, micros(row.OldestLetter)
		s.Tables[row.Table] = t
	}
	return s
}

// window counts what was applied within the last Window.
func (r *Report) window(now time.Time) map[string]Latency {
	if now.Sub(r.counted) < beat-soon/2 {
		return r.latest
	}
	latest := counted{now, r.Latencies()}
	for len(r.past) > 1 && now.Sub(r.past[1].at) >= Window {
		r.past = r.past[1:]
	}
	all := make(map[string]Latency, len(latest.counts))
	for table, counts := range latest.counts {
		l := Latency{slices.Clone(counts)}
		if len(r.past) > 0 {
			for i, before := range r.past[0].counts[table] {
				l.Counts[i] -= before
			}
		}
		all[table] = l
	}
	r.past = append(r.past, latest)
	r.latest, r.counted = all, now
	return all
}

// micros is a time as records have it; 0 for none.
func micros(t *time.Time) int64 {
	if t == nil {
		return 0
	}
	return t.UnixMicro()
}
