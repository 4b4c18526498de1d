package sinks

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
)

// partitionsHeld reads how many partitions of a table wait for something.
func partitionsHeld(t *testing.T, reg *prometheus.Registry, table, by string) (n float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if f.GetName() == "lockstep_sink_table_held_partitions" && labels["table"] == table && labels["by"] == by {
				n += m.GetGauge().GetValue()
			}
		}
	}
	return n
}

// Two partitions of a table wait for a reason of its own. The status says for what, since
// when, what mends it and when the next try is; the breaker stays closed and another table
// goes on.
func TestATableThatWaitsSaysWhyAndHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var held, waited atomic.Bool
		held.Store(true)
		w, reg := plain(func(_ context.Context, changes []cdc.Change) []Outcome {
			out := all(Applied, len(changes))
			for i, c := range changes {
				if c.Table.Table == "bad" && held.Load() {
					out[i] = Outcome{Verdict: Unavailable, Unasked: true, Reason: "the index does not fit", Mend: "run: lockstep rebuild"}
				}
			}
			return out
		}).worker(t, nil)
		w.Config.BatchChanges = 1
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		run := func(p Partition) {
			running.Go(func() {
				if err := w.RunPartition(ctx, p); err != nil {
					t.Error(err)
				}
			})
		}
		began := time.Now()
		run(&topicList{list{records: tableRows("bad", 5)}, "p.shop.bad"})
		synctest.Wait()
		time.Sleep(time.Second)
		run(&topicList{list{records: tableRows("bad", 5)}, "p.shop.bad"})
		for range 100 { // far more calls in vain than would open the breaker
			time.Sleep(w.Config.HoldMax)
			synctest.Wait()
			s := w.Status()
			if s.Breaker.State != "closed" || s.HeldPartitions != 2 || len(s.Tables) != 1 {
				t.Fatalf("%+v; want two partitions held and the breaker closed", s)
			}
			h := s.Tables[0].Held
			if h == nil || h.NextTry == nil {
				if waited.Load() {
					continue // a call is under way
				}
				t.Fatalf("%+v; want it held until the next try", h)
			}
			waited.Store(true)
			if d := h.NextTry.Sub(time.Now()); d < 0 || d > w.Config.HoldMax {
				t.Errorf("the next try is in %s", d)
			}
			h.NextTry = nil
			if diff := cmp.Diff(&HeldStatus{By: ByTable, Reason: "the index does not fit", Mend: "run: lockstep rebuild", Since: began, Partitions: 2}, h); diff != "" {
				t.Fatal(diff)
			}
		}
		if w.pool.pace != (pace{min: w.Config.CallsMin, max: w.Config.CallsMax, size: w.Config.CallsMin}) {
			t.Error("the pool has learnt how long calls take from those that the store did not get")
		}
		good := &topicList{list{records: tableRows("good", 500)}, "p.shop.good"}
		run(good)
		time.Sleep(time.Second)
		synctest.Wait()
		if good.committed != 500 {
			t.Errorf("%d of 500 rows of the other table are committed after a second", good.committed)
		}
		for by, want := range map[string]float64{ByTable: 2, ByStore: 0, ByFlood: 0, ByKafka: 0} {
			if n := partitionsHeld(t, reg, "shop.bad", by); n != want {
				t.Errorf("%v partitions wait for %s; want %v", n, by, want)
			}
		}
		held.Store(false)
		time.Sleep(w.Config.HoldMax)
		synctest.Wait()
		if s := w.Status(); s.HeldPartitions != 0 || s.Tables[0].Held != nil || partitionsHeld(t, reg, "shop.bad", ByTable) != 0 {
			t.Errorf("it is mended, and the status is %+v", s)
		}
		held.Store(true)
		run(&topicList{list{records: tableRows("bad", 1)}, "p.shop.bad"})
		time.Sleep(time.Second)
		synctest.Wait()
		if n := partitionsHeld(t, reg, "shop.bad", ByTable); n != 1 {
			t.Errorf("%v partitions wait again; want 1", n)
		}
		cancel()
		running.Wait()
		if n := partitionsHeld(t, reg, "shop.bad", ByTable); n != 0 {
			t.Errorf("%v partitions wait that are gone", n)
		}
	})
}

var errKafkaAway = errors.New("Kafka is away")

// What a table waits for is told apart.
func TestATableWaitsForTheStoreAFloodOrKafka(t *testing.T) {
	for _, c := range []struct {
		by, reason string
		out        Outcome
		bury       func(context.Context, Refusal) error
	}{
		{ByStore, "503", Outcome{Verdict: Unavailable, Reason: "503"}, nil},
		{ByFlood, "no field", Outcome{Verdict: Poison, Class: ClassMapping, Reason: "no field"}, nil},
		{ByKafka, "a dead letter cannot be written: Kafka is away", Outcome{Verdict: Poison, Class: ClassMapping, Reason: "no field"},
			func(context.Context, Refusal) error { return errKafkaAway }},
	} {
		t.Run(c.by, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, reg := plain(func(_ context.Context, changes []cdc.Change) []Outcome {
					out := make([]Outcome, len(changes))
					for i := range out {
						out[i] = c.out
					}
					return out
				}).worker(t, c.bury)
				if w.Config.FloodWindow = 4; c.by == ByKafka {
					w.Config.FloodShare = 1
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- w.RunPartition(ctx, &topicList{list{records: tableRows("q", 3)}, "p.shop.q"}) }()
				time.Sleep(7 * time.Second)
				synctest.Wait()
				h := w.Status().Tables[0].Held
				if h == nil || h.By != c.by || h.Reason != c.reason || (h.Mend != "") != (c.by == ByFlood) || partitionsHeld(t, reg, "shop.q", c.by) != 1 {
					t.Errorf("held: %+v", h)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
