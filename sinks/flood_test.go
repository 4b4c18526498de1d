package sinks

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
)

func TestTheWaitsOfAFloodGrowUntilAWindowHasPassedInPeace(t *testing.T) {
	cfg := DefaultConfig()
	cfg.FloodWindow, cfg.FloodWait, cfg.FloodWaitMax = 20, time.Second, 5*time.Second
	f := newFlood(cfg)
	now := time.Unix(0, 0)
	bad := sign{print: "p", class: ClassMapping, reason: "no"}
	pour := func(s sign, n int) (held bool) {
		for range n {
			held = f.note(now, []sign{s})
		}
		return held
	}
	trip := func(want time.Duration) {
		t.Helper()
		if !pour(bad, 20) {
			t.Fatal("20 refusals of 20 do not hold the table")
		}
		if got := f.next.Sub(now); got != want {
			t.Errorf("the next try is in %s; want %s", got, want)
		}
	}
	try := func(s sign) bool {
		t.Helper()
		now = f.next
		if !f.probe(now) || f.probe(now) {
			t.Fatal("not one try is let through when it is due")
		}
		return f.probed(now, s)
	}
	if pour(bad, 4) {
		t.Error("four refusals are a flood; want a quarter of the window")
	}
	if pour(sign{taken: true}, 15); pour(bad, 6) {
		t.Error("10 of 25, the last 20 of which hold 6, are a flood")
	}
	trip(time.Second)
	for _, want := range []time.Duration{2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
		if !try(bad) || f.next.Sub(now) != want {
			t.Errorf("after a try in vain the next is in %s; want %s", f.next.Sub(now), want)
		}
	}
	if try(sign{taken: true}) {
		t.Error("a try that was taken does not let the table go on")
	}
	trip(5 * time.Second) // again at once: it is the same flood
	try(sign{print: "other"})
	pour(sign{taken: true}, 20)
	trip(time.Second)
}

func TestAFloodHoldsItsTableOnlyAndARestartBuriesNoMoreThanAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		letters := 0
		var refusals []Refusal
		bury := func(_ context.Context, r Refusal) error {
			mu.Lock()
			defer mu.Unlock()
			letters++
			refusals = append(refusals, r)
			return nil
		}
		sink := plain(func(_ context.Context, changes []cdc.Change) []Outcome {
			out := all(Applied, len(changes))
			for i, c := range changes {
				if c.Table.Table == "bad" {
					out[i] = Outcome{Verdict: Poison, Class: ClassMapping, Reason: fmt.Sprintf("no field for '%s'", c.Key)}
				}
			}
			return out
		})
		begin := func(w *Worker, p *topicList) func() {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- w.RunPartition(ctx, p) }()
			return func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
		from := int64(0)
		for start := range 3 { // processes
			w, reg := sink.worker(t, bury)
			w.Config.BatchChanges = 7
			w.Config.FloodWindow = 40
			good := &topicList{list{records: tableRows("good", 500)}, "p.shop.good"}
			stopGood := begin(w, good)
			for range 2 { // and generations of the group within each
				mu.Lock()
				before := letters
				mu.Unlock()
				bad := &topicList{list{records: tableRows("bad", 500)[from:], committed: from}, "p.shop.bad"}
				stop := begin(w, bad)
				time.Sleep(time.Minute)
				s := w.Status()
				row := s.Tables[slices.IndexFunc(s.Tables, func(t TableStatus) bool { return t.Table == "shop.bad" })]
				mu.Lock()
				for _, r := range refusals {
					if print := Fingerprint(w.Name, r.Change.Table.String(), r.Class, r.Reason); print != row.Breaker.Fingerprint || !strings.HasSuffix(row.Held.Mend, ": lockstep dlq replay --sink "+w.Name+" --table shop.bad --fingerprint "+print) {
						t.Errorf("the letter has %s and the breaker %+v, %+v", print, row.Breaker, row.Held)
					}
					if r.Reason != "no field for '?'" || row.Breaker.Reason != r.Reason || row.Held.Reason != r.Reason {
						t.Errorf("a value of the row: %q, %+v, %+v", r.Reason, row.Breaker, row.Held)
					}
				}
				mu.Unlock()
				if got := gaugeOf(t, reg, "lockstep_sink_table_breaker_state", "shop.bad"); got != 2 {
					t.Errorf("the breaker's state is %v; want 2, open: %+v", got, s)
				}
				stop()
				from = bad.committed
				mu.Lock()
				if n := letters - before; n > w.Config.FloodWindow/2+w.Config.BatchChanges {
					t.Errorf("start %d: %d letters; want no more than half a window", start, n)
				}
				mu.Unlock()
				if got := gaugeOf(t, reg, "lockstep_sink_table_breaker_state", "shop.bad"); got != 0 {
					t.Errorf("the breaker of a table that went elsewhere shows as %v", got)
				}
			}
			stopGood()
			if good.committed != 500 {
				t.Errorf("%d of 500 rows of the other table are committed", good.committed)
			}
		}
		if letters == 0 || from > 3*27 {
			t.Errorf("%d letters, and %d rows are done with", letters, from)
		}
	})
}

// A refusal that may pass counts as one of a flood when nobody knows what would mend it: a
// store that refuses every row of a table so holds the table. Where the mend is known to stand
// behind the row, as with one from before a column was dropped, it does not count: the letters
// try themselves again. A table that is held is not let go on by either.
func TestAFloodOfRefusalsThatMayPassHoldsTheTableWhereNobodyKnowsWhatMendsThem(t *testing.T) {
	for _, c := range []struct {
		class Class
		held  bool
	}{{ClassRefused, true}, {"a class that this store has made up", true}, {ClassMapping, false}, {ClassNoTable, false}} {
		t.Run(string(c.class), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var letters atomic.Int32
				sink := plain(func(_ context.Context, changes []cdc.Change) []Outcome {
					out := make([]Outcome, len(changes))
					for i, change := range changes {
						out[i] = Outcome{Verdict: Transient, Class: c.class, Reason: fmt.Sprintf("not '%s'", change.Key)}
					}
					return out
				})
				w, reg := sink.worker(t, func(context.Context, Refusal) error { letters.Add(1); return nil })
				w.Config.BatchChanges, w.Config.FloodWindow = 7, 40
				p := &topicList{list{records: tableRows("q", 200)}, "p.shop.q"}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- w.RunPartition(ctx, p) }()
				time.Sleep(10 * time.Minute) // of which some tries of a table that is held
				breaker := gaugeOf(t, reg, "lockstep_sink_table_breaker_state", "shop.q")
				if n := letters.Load(); c.held && (breaker != 2 || n > 27) || !c.held && (breaker != 0 || n != 200) {
					t.Errorf("the breaker's state is %v and there are %d letters; held should be %t", breaker, n, c.held)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// gaugeOf reads a gauge of a table.
func gaugeOf(t testing.TB, reg *prometheus.Registry, metric, table string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != metric {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "table" && l.GetValue() == table {
					return m.GetGauge().GetValue()
				}
			}
		}
	}
	t.Fatalf("there is no %s of %s", metric, table)
	return 0
}
