package route

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/freshness"
	"lockstep/sinks"
)

// wire is a feed, with a capture and a sink whose clocks differ from ours.
type wire struct {
	*Feed
	now     time.Time
	breaker string
}

const (
	captureAhead = 40 * time.Second // of our clock
	sourceAhead  = -3 * time.Minute // of the capture's
)

func newWire(t *testing.T) *wire {
	cfg := DefaultConfig()
	cfg.Shares = nil
	board := NewBoard(func(string) Config { return cfg }, NewMetrics(prometheus.NewRegistry()))
	return &wire{&Feed{Board: board, Sinks: func(table string) []string {
		if table == "other.table" {
			return nil
		}
		return []string{"search"}
	}}, time.Unix(1_000_000, 0), "closed"}
}

// source is a time of ours by the source's clock.
func source(at time.Time) int64 { return at.Add(captureAhead + sourceAhead).UnixMicro() }

// beat says that everything committed so long ago is in Kafka, before these ends.
func (w *wire) beat(ago time.Duration, ends ...int64) {
	w.Hear(w.now, freshness.Record{Capture: &freshness.Capture{
		UpToMicros: source(w.now.Add(-ago)), SkewMicros: sourceAhead.Microseconds(), AtMicros: w.now.Add(captureAhead).UnixMicro(),
		Ends: map[string][]int64{"shop.orders": ends, "other.table": {1}},
	}})
}

// sink says that a process has settled so much of each partition.
func (w *wire) sink(process string, generation int32, table freshness.Table) {
	w.Hear(w.now, freshness.Record{Sink: &freshness.Sink{
		Sink: "search", Process: process, Generation: generation, Whole: true, Tables: map[string]freshness.Table{"shop.orders": table, "other.table": {}},
		Breaker: sinks.BreakerStatus{State: w.breaker},
	}})
}

// with has the breaker of the sink in a state for a time.
func (w *wire) with(breaker string, do func()) {
	w.breaker = breaker
	do()
	w.breaker = "closed"
}

func places(settled ...int64) freshness.Table {
	t := freshness.Table{Partitions: map[int]freshness.Place{}, Breaker: sinks.BreakerStatus{State: "closed"}}
	for id, to := range settled {
		t.Partitions[id] = freshness.Place{Settled: to}
	}
	return t
}

func (w *wire) pass(d time.Duration) Decision {
	w.now = w.now.Add(d)
	w.Board.Lap(w.now)
	return w.Board.Decision(Place{"search", "shop.orders"})
}

// late is how late the sink counts as.
func (w *wire) late() time.Duration {
	m := w.Board.machines[Place{"search", "shop.orders"}]
	var most time.Duration
	for _, r := range m.reports {
		most = max(most, r.behind(w.now))
	}
	return most
}

func TestHowLateASinkIsComesFromWhatTheCaptureHasSaid(t *testing.T) {
	w := newWire(t)
	w.beat(50*time.Millisecond, 10, 5)
	w.sink("p1", 1, places(10, 5))
	want := func(what string, want time.Duration) {
		t.Helper()
		if got := w.late(); got != want {
			t.Errorf("%s: it is %s late; want %s", what, got, want)
		}
	}
	want("all is settled", 50*time.Millisecond)
	w.pass(time.Second)
	want("all is settled, and nothing came since", 50*time.Millisecond)
	w.beat(100*time.Millisecond, 10, 5)
	want("the table is idle", 100*time.Millisecond)
	w.pass(time.Second)
	w.beat(100*time.Millisecond, 12, 5)
	want("something is lacking since the last beat", 1100*time.Millisecond)
	w.pass(500 * time.Millisecond)
	want("it gets older", 1600*time.Millisecond)
	behind := places(11, 5)
	behind.AppliedUpToMicros = source(w.now.Add(-700 * time.Millisecond))
	w.sink("p1", 1, behind)
	want("the sink says up to when it has all", 700*time.Millisecond)
	w.pass(500 * time.Millisecond)
	w.beat(30*time.Second, 12, 5) // the capture is far behind
	w.sink("p1", 1, places(12, 5))
	want("all that is in Kafka is settled", 30*time.Second)
}

// A sink that reads a first copy has never been there: however short the copy takes, nobody
// is sent to it before it has everything.
func TestASinkThatWasNeverThereIsNotKnownToBeLate(t *testing.T) {
	w := newWire(t)
	for range 100 {
		w.beat(0, 10, 5)
		w.sink("p1", 1, places(7, 5))
		if d := w.pass(250 * time.Millisecond); d.State != Degraded || d.Cause != Unheard || !strings.Contains(d.Reason, "is not known") && w.now.Unix() > 1_000_001 {
			t.Fatalf("%+v", d)
		}
	}
	for range 60 {
		w.beat(0, 10, 5)
		w.sink("p1", 1, places(10, 5))
		w.pass(250 * time.Millisecond)
	}
	if d := w.Board.Decision(Place{"search", "shop.orders"}); d.State != OK {
		t.Errorf("when it has everything: %+v", d)
	}
}

func TestWhatASinkSaysBecomesTheReasonOfItsState(t *testing.T) {
	for _, tc := range []struct {
		name   string
		say    func(*freshness.Sink, *freshness.Table)
		cause  Cause
		reason string
	}{
		{"the breaker of the sink", func(s *freshness.Sink, _ *freshness.Table) {
			s.Breaker = sinks.BreakerStatus{State: "half-open", Reason: "connection refused"}
		}, Unavailable, "the breaker of sink search is half-open: connection refused"},
		{"the breaker of the table", func(_ *freshness.Sink, t *freshness.Table) {
			t.Breaker = sinks.BreakerStatus{State: "open", Reason: "no field n"}
		}, Unavailable, "the breaker of the table is open: no field n"},
		{"a table that is held", func(_ *freshness.Sink, t *freshness.Table) {
			t.Held = &sinks.HeldStatus{By: sinks.ByStore, Reason: "connection refused"}
		}, Unavailable, "its changes wait: connection refused"},
		{"lost rows", func(_ *freshness.Sink, t *freshness.Table) { t.Refill = 7 }, Unavailable, "the store has lost rows"},
		{"letters", func(_ *freshness.Sink, t *freshness.Table) { t.Letters = 6 }, Undelivered, "6 rows"},
		{"latency", func(_ *freshness.Sink, t *freshness.Table) {
			t.Latency.Counts = make([]uint64, len(sinks.LatencyBounds)+1)
			t.Latency.Counts[0], t.Latency.Counts[12] = 980, 20 // up to 5 s
		}, Slow, "99 of 100 of the last 1000 changes took up to 5s"},
		{"letters of which it is not known whether they are all", func(_ *freshness.Sink, t *freshness.Table) {
			t.Partitions[1] = freshness.Place{Settled: 5, Letters: -1}
		}, Unheard, "how far the process p1 is, which has partition 0 of the table, is not known"},
		{"a partition that nobody has", func(_ *freshness.Sink, t *freshness.Table) { delete(t.Partitions, 1) }, Unheard, "no process of the sink has partition 1 of the table"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWire(t)
			run := func(d time.Duration, say func(*freshness.Sink, *freshness.Table)) (last Decision) {
				for range d / (250 * time.Millisecond) {
					w.beat(0, 10, 5)
					table := places(10, 5)
					s := &freshness.Sink{Sink: "search", Process: "p1", Generation: 1, Whole: true, Breaker: sinks.BreakerStatus{State: "closed"}}
					if say != nil {
						say(s, &table)
					}
					s.Tables = map[string]freshness.Table{"shop.orders": table}
					w.Hear(w.now, freshness.Record{Sink: s})
					last = w.pass(250 * time.Millisecond)
				}
				return last
			}
			if d := run(12*time.Second, nil); d.State != OK {
				t.Fatalf("%+v", d)
			}
			if d := run(6*time.Second, tc.say); d.State != Degraded || d.Cause != tc.cause || !strings.Contains(d.Reason, tc.reason) {
				t.Errorf("%s %s: %s; want %s: %s", d.State, d.Cause, d.Reason, tc.cause, tc.reason)
			}
		})
	}
}

// What the reconciler tells is taken for what it is about, by our clock, and says what must
// not be done to those who ask beside.
func TestWhatTheReconcilerFindsIsJudged(t *testing.T) {
	w := newWire(t)
	place := Place{"search", "shop.orders"}
	compared := func(ago time.Duration, table string, keys int64, stale int64) {
		at := w.now.Add(captureAhead)
		w.Hear(w.now, freshness.Record{Compared: &freshness.Compared{
			Sink: "search", Table: table, BeganMicros: at.Add(-ago).UnixMicro(), AtMicros: at.UnixMicro(), Keys: keys, Confirmed: map[string]int64{"stale": stale},
		}})
	}
	run := func(d time.Duration) (last Decision) {
		for range d / (250 * time.Millisecond) {
			w.beat(0, 10, 5)
			w.sink("p1", 1, places(10, 5))
			last = w.pass(250 * time.Millisecond)
		}
		return last
	}
	compared(0, "other.table", 1000, 500)
	if d := run(12 * time.Second); d.State != OK {
		t.Fatalf("%+v", d)
	}
	compared(time.Second, "shop.orders", 1000, 31)
	if d := run(time.Second); d.State != Degraded || d.Cause != Mismatch {
		t.Errorf("%+v", d)
	}
	stops, why, err := Forbidden(w.now, w.Board.Save(w.now), place)
	if err != nil || !stops.Repairs || !strings.Contains(why, "31 stale") {
		t.Errorf("forbidden: %+v %q, %v", stops, why, err)
	}
	if stops, _, err := Forbidden(w.now.Add(time.Minute), w.Board.Save(w.now), place); err != nil || stops != (Stops{}) {
		t.Errorf("forbidden a minute ago: %+v, %v", stops, err)
	}
	run(10 * time.Second)
	w.with("open", func() { run(2 * time.Second) })
	compared(8*time.Second, "shop.orders", 1000, 0) // it began before the store broke
	if d := run(12 * time.Second); d.State != Degraded || !strings.Contains(d.Waits, "the reconciler has compared 0 keys") {
		t.Errorf("verified by what was compared before: %+v", d)
	}
	compared(8*time.Second, "shop.orders", 1000, 0)
	if d := run(time.Second); d.State != OK {
		t.Errorf("%+v", d)
	}
}

// Partitions that go from one process to another are never unknown on the way, and what the
// old one still says of them counts no more.
func TestAPartitionBelongsToTheHigherGeneration(t *testing.T) {
	w := newWire(t)
	for range 48 {
		w.beat(0, 10, 5)
		w.sink("p1", 1, places(10, 5))
		w.pass(250 * time.Millisecond)
	}
	w.sink("p2", 2, places(10, 5))
	old := places(10, 5)
	old.Breaker = sinks.BreakerStatus{State: "open"}
	for range 40 {
		w.beat(0, 10, 5)
		w.sink("p2", 2, places(10, 5))
		w.sink("p1", 1, old)
		if d := w.pass(250 * time.Millisecond); d.State != OK {
			t.Fatalf("%+v", d)
		}
	}
	w.sink("p2", 2, freshness.Table{})
	if d := w.pass(3 * time.Second); d.State != OK {
		t.Errorf("given up a moment ago: %+v", d)
	}
	w.beat(0, 10, 5)
	if d := w.pass(3 * time.Second); d.State != Degraded || d.Cause != Unheard {
		t.Errorf("given up long ago: %+v", d)
	}
}

func TestATableThatNoProcessHasIsKnownAndNotTrusted(t *testing.T) {
	w := newWire(t)
	for range 60 {
		w.beat(0, 10, 5)
		w.pass(250 * time.Millisecond)
	}
	if all := w.Board.Tables(); len(all) != 1 || all[0] != "shop.orders" {
		t.Errorf("known are %v", all)
	}
	if d := w.Board.Decision(Place{"search", "shop.orders"}); d.State != Degraded || !strings.Contains(d.Reason, "no process of the sink has the table") {
		t.Errorf("%+v", d)
	}
}

func TestABoardGoesOnWhereAnotherOneWas(t *testing.T) {
	w := newWire(t)
	for range 48 {
		w.beat(0, 10)
		w.sink("p1", 1, places(10))
		w.pass(250 * time.Millisecond)
	}
	text := w.Board.Save(w.now)
	next := newWire(t)
	next.now = w.now.Add(10 * time.Second)
	if err := next.Board.Restore(next.now, text); err != nil {
		t.Fatal(err)
	}
	if d := next.pass(time.Second); d.State != OK {
		t.Errorf("after ten seconds: %+v", d)
	}
	if d := next.pass(5 * time.Second); d.State != Degraded || d.Cause != Unheard {
		t.Errorf("when nothing was heard since: %+v", d)
	}
	late := newWire(t)
	late.now = w.now.Add(time.Minute)
	if err := late.Board.Restore(late.now, text); err != nil {
		t.Fatal(err)
	}
	if d := late.pass(time.Second); d.State != Degraded {
		t.Errorf("after a minute in which nobody judged: %+v", d)
	}
	for _, bad := range []string{`{"format": 2}`, `{`, `{"format":1,"places":[{"state":"fine"}]}`} {
		if err := late.Board.Restore(late.now, []byte(bad)); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
