package sinks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/kafka"
)

// world is a partition, a store with a version guard, and the letters, with any
// mishap drawn at any moment. It checks every commit against what is really
// stored.
type world struct {
	mu      sync.Mutex
	draw    func(int) int // a number below
	calm    bool          // no mishap any more
	log     []kafka.Record
	sent    int // of log, in this run
	start   int // the committed offset
	stored  map[string]cdc.Version
	letters map[string]cdc.Version
	broken  map[int64]bool // offsets of buried records that nobody can read
	refused map[string]int // transient answers, by row and version
	poison  map[string]bool
	fault   string
}

func (w *world) Name() (string, int) { return "p.shop.q", 0 }

func (w *world) Fetch(ctx context.Context) ([]kafka.Record, error) {
	w.mu.Lock()
	n := 0
	if w.sent < len(w.log) {
		n = 1 + w.draw(min(6, len(w.log)-w.sent))
	}
	out := w.log[w.sent : w.sent+n]
	w.sent += n
	pause := time.Duration(w.draw(4)) * 300 * time.Millisecond
	w.mu.Unlock()
	if n == 0 {
		pause = time.Minute
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(pause):
		return out, nil
	}
}

func (w *world) Apply(_ context.Context, changes []cdc.Change) []Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]Outcome, len(changes))
	seen := make(map[string]bool)
	for i, c := range changes {
		key := string(c.Key)
		if seen[key] {
			w.fault = "one call has two changes of " + key
		}
		seen[key] = true
		this := key + c.Version.String()
		mishap := w.draw(8)
		switch {
		case w.calm || mishap > 2:
			if at := w.stored[key]; at > c.Version {
				out[i] = Outcome{Verdict: Stale}
			} else if at == c.Version {
				out[i] = Outcome{Verdict: Duplicate}
			} else {
				w.stored[key] = c.Version
				out[i] = Outcome{Verdict: Applied}
			}
		case mishap == 0:
			out[i] = Outcome{Verdict: Unavailable}
		case mishap == 1:
			w.refused[this]++
			out[i] = Outcome{Verdict: Transient, Class: ClassRefused}
		case mishap == 2:
			w.poison[this] = true
			out[i] = Outcome{Verdict: Poison, Class: ClassMapping}
		}
	}
	return out
}

func (w *world) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) { return 0, nil }

func (w *world) bury(_ context.Context, r Refusal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.calm && w.draw(3) == 0 {
		return errors.New("away")
	}
	if r.Change == nil {
		w.broken[r.Record.Offset] = true
		return nil
	}
	key := string(r.Change.Key)
	this := key + r.Change.Version.String()
	if !w.poison[this] && w.refused[this] < 6 {
		w.fault = fmt.Sprintf("%s was buried after %d transient answers and no poison", this, w.refused[this])
	}
	w.letters[key] = max(w.letters[key], r.Change.Version)
	return nil
}

// Commit checks the promise: of everything below next the state is stored or in
// a letter, or a newer change of the row is still to come.
func (w *world) Commit(_ context.Context, next int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.calm && w.draw(4) == 0 {
		return errors.New("away")
	}
	w.start = int(next)
	for _, r := range w.log[:next] {
		if !w.kept(r, next) {
			w.fault = fmt.Sprintf("offset %d is committed, but %s at %d is nowhere", next, r.Value, r.Offset)
		}
	}
	return nil
}

func (w *world) kept(r kafka.Record, next int64) bool {
	c, err := cdc.Decode(r.Key, r.Value, r.Headers)
	if err != nil {
		return w.broken[r.Offset]
	}
	key := string(c.Key)
	if w.stored[key] >= c.Version || w.letters[key] >= c.Version {
		return true
	}
	for _, later := range w.log[next:] {
		if l, err := cdc.Decode(later.Key, later.Value, later.Headers); err == nil && string(l.Key) == key && l.Version > c.Version {
			return true
		}
	}
	return false
}

func TestWhateverHappensNothingIsLostAndTheBooksBalance(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		records := rapid.IntRange(1, 40).Draw(rt, "records")
		restarts := rapid.IntRange(0, 4).Draw(rt, "restarts")
		var fault string
		synctest.Test(t, func(t *testing.T) { fault = live(t, seed, records, restarts) })
		if fault != "" {
			rt.Fatal(fault)
		}
	})
}

// live plays the records with mishaps, restarts, and a calm end, and returns
// what was not as promised.
func live(t *testing.T, seed uint64, records, restarts int) string {
	w := &world{
		stored: make(map[string]cdc.Version), letters: make(map[string]cdc.Version), broken: make(map[int64]bool),
		refused: make(map[string]int), poison: make(map[string]bool),
	}
	random := rand.New(rand.NewPCG(seed, seed))
	w.draw = random.IntN
	table := cdc.TableName{DB: "shop", Table: "q"}
	for i := range records {
		r := kafka.Record{Value: []byte("?")}
		if w.draw(10) > 0 {
			r = record(table, string(rune('a'+w.draw(5))), uint64(1+w.draw(30)))
		}
		r.Topic, r.Offset = "p.shop.q", int64(i)
		w.log = append(w.log, r)
	}
	reg := prometheus.NewRegistry()
	cfg := DefaultConfig()
	cfg.BatchChanges = 4
	worker := &Worker{Name: "es", Memory: NewMemory(900), Sink: w, Bury: w.bury, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(reg), Config: cfg}
	run := func(d time.Duration) {
		w.sent = w.start
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		if err := worker.RunPartition(ctx, w); err != nil {
			w.fault = err.Error()
		}
	}
	for range restarts {
		run(time.Duration(1+w.draw(30_000)) * time.Millisecond)
	}
	w.calm = true
	run(5 * time.Minute)
	if w.fault != "" {
		return w.fault
	}
	if w.start != len(w.log) {
		return fmt.Sprintf("committed %d of %d records after five calm minutes", w.start, len(w.log))
	}
	for _, r := range w.log {
		if !w.kept(r, int64(len(w.log))) {
			return fmt.Sprintf("%s is neither stored nor in a letter", r.Value)
		}
	}
	received := counted(t, reg, "lockstep_sink_received_total", "sink")["es"]
	settled := 0
	for _, n := range counted(t, reg, "lockstep_sink_changes_total", "outcome") {
		settled += n
	}
	if received != settled || received < len(w.log) {
		return fmt.Sprintf("of %d records %d were received, %d settled: %s", len(w.log), received, settled, sum(t, reg))
	}
	return ""
}

// plain is a sink made of one function.
type plain func(ctx context.Context, changes []cdc.Change) []Outcome

func (p plain) Apply(ctx context.Context, changes []cdc.Change) []Outcome { return p(ctx, changes) }

func (p plain) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) { return 0, nil }

func (p plain) worker(bury func(context.Context, Refusal) error) (*Worker, *prometheus.Registry) {
	reg := prometheus.NewRegistry()
	return &Worker{
		Name: "es", Sink: p, Bury: bury, Config: DefaultConfig(), Metrics: NewMetrics(reg),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}, reg
}

// list is a partition that has some records and then none.
type list struct {
	records   []kafka.Record
	err       error // after the records
	committed int64
	fetches   atomic.Int32
}

func (l *list) Name() (string, int) { return "p.shop.q", 0 }

func (l *list) Fetch(ctx context.Context) ([]kafka.Record, error) {
	l.fetches.Add(1)
	if len(l.records) > 0 {
		out := l.records[:1]
		l.records = l.records[1:]
		return out, nil
	}
	if l.err != nil {
		time.Sleep(time.Second)
		return nil, l.err
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (l *list) Commit(_ context.Context, next int64) error {
	l.committed = next
	return nil
}

func rows(n int) []kafka.Record {
	out := make([]kafka.Record, n)
	for i := range out {
		out[i] = record(cdc.TableName{DB: "shop", Table: "q"}, fmt.Sprint("row", i), uint64(i+1))
		out[i].Topic, out[i].Offset = "p.shop.q", int64(i)
	}
	return out
}

func all(v Verdict, n int) []Outcome {
	out := make([]Outcome, n)
	for i := range out {
		out[i].Verdict = v
	}
	return out
}

func TestACallUnderWayMayFinishWhenThePartitionIsTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := plain(func(ctx context.Context, changes []cdc.Change) []Outcome {
			select {
			case <-time.After(3 * time.Second):
				return all(Applied, len(changes))
			case <-ctx.Done():
				return make([]Outcome, len(changes))
			}
		}).worker(nil)
		p := &list{records: rows(1)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.RunPartition(ctx, p); err != nil || p.committed != 1 {
			t.Fatalf("error %v, committed %d; want the call's change committed", err, p.committed)
		}
	})
}

func TestACallThatDoesNotFinishInTimeIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, reg := plain(func(ctx context.Context, changes []cdc.Change) []Outcome {
			<-ctx.Done()
			return make([]Outcome, len(changes))
		}).worker(nil)
		p := &list{records: rows(1)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		err := w.RunPartition(ctx, p)
		if took := time.Since(began); err != nil || p.committed != 0 || took != 6*time.Second {
			t.Fatalf("error %v, committed %d after %s; want nothing committed after 1s + stop_within 5s", err, p.committed, took)
		}
		if got := counted(t, reg, "lockstep_sink_changes_total", "outcome")[outcomeReleased]; got != 1 {
			t.Fatalf("released %d; want 1", got)
		}
	})
}

func TestAnErrorOfFetchEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := plain(func(_ context.Context, c []cdc.Change) []Outcome { return all(Applied, len(c)) }).worker(nil)
		gone := errors.New("offset 7 is gone")
		p := &list{records: rows(2), err: gone}
		if err := w.RunPartition(t.Context(), p); !errors.Is(err, gone) || p.committed != 2 {
			t.Fatalf("error %v, committed %d; want %v and 2", err, p.committed, gone)
		}
	})
}

func TestASinkThatLeavesAChangeOutStopsThePartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := plain(func(_ context.Context, c []cdc.Change) []Outcome { return nil }).worker(nil)
		p := &list{records: rows(2)}
		if err := w.RunPartition(t.Context(), p); err == nil || p.committed != 0 {
			t.Fatalf("error %v, committed %d; want an error and nothing", err, p.committed)
		}
	})
}

func TestAPartitionStopsReadingWhenItsRetriesFillTheirBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := plain(func(_ context.Context, c []cdc.Change) []Outcome { return all(Transient, len(c)) }).
			worker(func(context.Context, Refusal) error { return nil })
		w.Memory = NewMemory(10 << 10)
		p := &list{records: rows(1000)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.RunPartition(ctx, p) }()
		synctest.Wait()
		if p.fetches.Load() > 20 {
			t.Errorf("%d records were read; want a few, of 5 KiB", p.fetches.Load())
		}
		few := p.fetches.Load()
		time.Sleep(32 * time.Second) // the retries are used up
		synctest.Wait()
		if p.fetches.Load() <= few {
			t.Errorf("still %d records read; want more after the first ones were buried", p.fetches.Load())
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestPartitionsShareTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		calls, up := 0, false
		w, reg := plain(func(_ context.Context, c []cdc.Change) []Outcome {
			mu.Lock()
			defer mu.Unlock()
			calls++
			if up {
				return all(Applied, len(c))
			}
			return make([]Outcome, len(c))
		}).worker(nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		partitions := make([]*list, 20)
		for i := range partitions {
			partitions[i] = &list{records: rows(1)}
			wg.Go(func() {
				if err := w.RunPartition(ctx, partitions[i]); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(10 * time.Second) // all have seen that the store is away
		synctest.Wait()
		mu.Lock()
		before := calls
		mu.Unlock()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		mu.Lock()
		during := calls - before
		up = true
		mu.Unlock()
		if during < 1 || during > 10 {
			t.Errorf("20 partitions asked an unavailable store %d times in 30 s; want one probe for each 3 s", during)
		}
		time.Sleep(w.Config.HoldMax + w.Config.BreakerOpen)
		synctest.Wait()
		if got := counted(t, reg, "lockstep_sink_changes_total", "outcome")[outcomeApplied]; got != 20 {
			t.Errorf("%d of 20 partitions went on after the store was back", got)
		}
		cancel()
		wg.Wait()
	})
}

func TestLatencyCountsAppliedChangesOfTheStreamOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, reg := plain(func(_ context.Context, c []cdc.Change) []Outcome { return all(Applied, len(c)) }).worker(nil)
		now := time.Now().UnixMicro()
		var records []kafka.Record
		for i, c := range []cdc.Change{
			{Op: cdc.OpUpdate, CommitMicros: now - 250_000},
			{Op: cdc.OpRead, CommitMicros: now - 250_000},
			{Op: cdc.OpUpdate},
			{Op: cdc.OpUpdate, CommitMicros: now + 1_000_000},
		} {
			c.Table = cdc.TableName{DB: "shop", Table: "q"}
			c.Version, _ = cdc.NewVersion(1, uint64(i))
			c.Key = fmt.Appendf(nil, `{"id":%d}`, i)
			c.After = c.Key
			records = append(records, kafka.Record{Offset: int64(i), Key: c.Key, Value: c.AppendValue(nil, "p"), Headers: c.Headers()})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.RunPartition(ctx, &list{records: records}); err != nil {
			t.Fatal(err)
		}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "lockstep_sink_latency_seconds" {
				h := f.GetMetric()[0].GetHistogram()
				if h.GetSampleCount() != 1 || h.GetSampleSum() != .25 {
					t.Errorf("%d latencies that sum to %v s; want one of 0.25 s", h.GetSampleCount(), h.GetSampleSum())
				}
			}
		}
		if got := counted(t, reg, "lockstep_sink_commits_from_the_future_total", "sink")["es"]; got != 1 {
			t.Errorf("%d commits from the future; want 1", got)
		}
	})
}

func TestDefaultsPassTheCheckAndEveryFieldIsNamedWhenItIsWrong(t *testing.T) {
	if err := DefaultConfig().Check(); err != nil {
		t.Fatal(err)
	}
	if err := (Config{}).Check(); err == nil {
		t.Fatal("an empty configuration passed")
	}
}
