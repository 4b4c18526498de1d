package sinks

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Status is a sink in one process as an operator sees it. Its JSON is what
// lockstep status prints: fields are added to it, none is renamed.
type Status struct {
	// Breaker is of the whole sink.
	Breaker BreakerStatus `json:"breaker"`
	// Partitions that this process has, and of those the ones that wait.
	Partitions     int `json:"partitions"`
	HeldPartitions int `json:"held_partitions"`
	// HeldSince is since when some partition waits without a break.
	HeldSince *time.Time `json:"held_since,omitempty"`
	// Retrying is how many dead letters are tried again by themselves. A Worker does not
	// know.
	Retrying int64      `json:"retrying"`
	Pool     PoolStatus `json:"pool"`
	// AppliedUpTo is the time up to which everything that was committed in the source and is
	// in Kafka is applied in all partitions of this process, or settled otherwise: the oldest
	// over the partitions that wait or have more to read, and the newest commit time of any
	// when there are none, since one without changes has nothing to be behind with. It is
	// absent while none is known: since the start until a change has come from Kafka, also when
	// nothing is behind, and while a partition is behind that has had none, or rows of a copy
	// alone.
	AppliedUpTo *time.Time `json:"applied_up_to,omitempty"`
	// DeliveredUpTo is the time up to which everything is in the store: AppliedUpTo, or when
	// the oldest change was committed that the store lacks for an open dead letter, if that is
	// earlier. It is absent while that is absent or the letters are not all known, and while
	// one is open of which nobody knows since when. A Worker does not know.
	DeliveredUpTo *time.Time `json:"delivered_up_to,omitempty"`
	// Sweeps are under way or wait.
	Sweeps []SweepStatus `json:"sweeps"`
	// Tables are those of which this process has partitions, by name.
	Tables []TableStatus `json:"tables"`
}

// PoolStatus is the pool of calls that a sink's partitions share.
type PoolStatus struct {
	// Size is how many calls may be under way, InUse how many are, and Waiting how many
	// partitions wait for their turn.
	Size    int `json:"size"`
	InUse   int `json:"in_use"`
	Waiting int `json:"waiting"`
	// ClosedUntil is when the store wants to be called again.
	ClosedUntil *time.Time `json:"closed_until,omitempty"`
}

// BreakerStatus is a breaker as an operator sees it.
type BreakerStatus struct {
	// State is closed, half-open or open.
	State string `json:"state"`
	// Class and Fingerprint are of the refusals that a table is held for.
	Class       Class  `json:"class,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	// Reason is what the store said last.
	Reason string `json:"reason,omitempty"`
	// Since is when it opened.
	Since *time.Time `json:"since,omitempty"`
	// NextProbe is when it lets one call through.
	NextProbe *time.Time `json:"next_probe,omitempty"`
}

// TableStatus is one table in one sink. What was received is equal to the sum of
// outcomes and what is in flight, save for what happens while it is asked.
type TableStatus struct {
	Table   string        `json:"table"`
	Breaker BreakerStatus `json:"breaker"`
	// Held is why changes of the table wait; absent while none does.
	Held     *HeldStatus `json:"held,omitempty"`
	Received int64       `json:"received"`
	InFlight int64       `json:"in_flight"`
	// Outcomes are counted since the process was started.
	Outcomes map[string]int64 `json:"outcomes"`
	// AppliedUpTo is that of the sink, of the partitions of this table.
	AppliedUpTo *time.Time `json:"applied_up_to,omitempty"`
	// Letters are open dead letters, and OldestLetter is when the oldest change was
	// committed that the store lacks for one. A Worker does not know.
	Letters      int64      `json:"letters"`
	OldestLetter *time.Time `json:"oldest_letter,omitempty"`
}

// HeldStatus is why changes of a table wait, or would if there were any.
type HeldStatus struct {
	// By is what they wait for: table, store, flood or kafka.
	By string `json:"by"`
	// Reason is one sentence, and Mend what is to be done; absent when it goes on by itself.
	Reason string `json:"reason"`
	Mend   string `json:"mend,omitempty"`
	// Since is when the first change had to wait.
	Since time.Time `json:"since"`
	// NextTry is when the store is asked again.
	NextTry *time.Time `json:"next_try,omitempty"`
	// Partitions are how many of the table wait in this process; none when there is no
	// change that would.
	Partitions int `json:"partitions"`
}

// SweepStatus is a sweep that is under way or waits.
type SweepStatus struct {
	Table   string    `json:"table"`
	Version string    `json:"version"`
	Since   time.Time `json:"since"`
	// WaitsFor are the partitions that have not come to the barrier; none when the
	// store is being swept.
	WaitsFor []int `json:"waits_for,omitempty"`
}

// Status says how the sink is now. It may be asked at any time.
func (w *Worker) Status() Status {
	w.start()
	s := Status{Breaker: w.breaker.status(), Sweeps: []SweepStatus{}, Tables: []TableStatus{}}
	var closed time.Time
	s.Pool.Size, s.Pool.InUse, s.Pool.Waiting, closed = w.pool.state()
	if time.Now().Before(closed) {
		s.Pool.ClosedUntil = &closed
	}
	w.holding.mu.Lock()
	if s.HeldPartitions = w.holding.count; s.HeldPartitions > 0 {
		s.HeldSince = notZero(w.holding.since)
	}
	w.holding.mu.Unlock()
	s.AppliedUpTo = micros(w.reach.upTo(time.Now(), ""))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, sweep := range w.sweeps {
		s.Sweeps = append(s.Sweeps, *sweep)
	}
	for topic, t := range w.tables {
		b, lanes := t.status()
		if s.Partitions += lanes; lanes == 0 {
			continue
		}
		book := w.Metrics.account(w.Name, t.table)
		row := TableStatus{
			Table: t.table, Breaker: b, Held: t.waits.status(), Outcomes: make(map[string]int64, len(outcomes)),
			Received: value(book.received), InFlight: value(book.inFlight),
			AppliedUpTo: micros(w.reach.upTo(time.Now(), topic)),
		}
		for o, c := range book.settled {
			row.Outcomes[o] = value(c)
		}
		s.Tables = append(s.Tables, row)
	}
	slices.SortFunc(s.Tables, func(a, b TableStatus) int { return cmp.Compare(a.Table, b.Table) })
	slices.SortFunc(s.Sweeps, func(a, b SweepStatus) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Version, b.Version))
	})
	return s
}

// micros is a time, or nil for 0.
func micros(at int64) *time.Time {
	if at == 0 {
		return nil
	}
	t := time.UnixMicro(at)
	return &t
}

// Latencies counts the changes of each table that were applied, by how long they were on
// their way since their commit: by LatencyBounds, one more for what was longer, since the
// process was started.
func (w *Worker) Latencies() map[string][]uint64 {
	w.start()
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(map[string][]uint64, len(w.tables))
	for _, t := range w.tables {
		var now dto.Metric
		if h, ok := w.Metrics.account(w.Name, t.table).latency.(prometheus.Metric); !ok || h.Write(&now) != nil {
			continue
		}
		all[t.table] = Counts(now.GetHistogram())
	}
	return all
}

// value reads a counter or a gauge.
func value(m prometheus.Metric) int64 {
	var now dto.Metric
	if m.Write(&now) != nil {
		return 0 // a counter and a gauge have no way to fail
	}
	return int64(now.GetCounter().GetValue() + now.GetGauge().GetValue())
}
