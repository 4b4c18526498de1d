package sinks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/kafka"
)

// plain is a sink made of one function.
type plain func(ctx context.Context, changes []cdc.Change) []Outcome

func (p plain) Apply(ctx context.Context, changes []cdc.Change) []Outcome { return p(ctx, changes) }

func (p plain) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) { return 0, nil }

// worker makes one, whose books must balance when the test is over.
func (p plain) worker(t *testing.T, bury func(context.Context, Refusal) error) (*Worker, *prometheus.Registry) {
	reg := prometheus.NewRegistry()
	t.Cleanup(func() {
		if wrong := unbalanced(t, reg, true); wrong != "" {
			t.Error(wrong)
		}
	})
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

func (l *list) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
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
		}).worker(t, nil)
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
		}).worker(t, nil)
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
		w, _ := plain(func(_ context.Context, c []cdc.Change) []Outcome { return all(Applied, len(c)) }).worker(t, nil)
		gone := errors.New("offset 7 is gone")
		p := &list{records: rows(2), err: gone}
		if err := w.RunPartition(t.Context(), p); !errors.Is(err, gone) || p.committed != 2 {
			t.Fatalf("error %v, committed %d; want %v and 2", err, p.committed, gone)
		}
	})
}

func TestASinkThatLeavesAChangeOutStopsThePartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := plain(func(_ context.Context, c []cdc.Change) []Outcome { return nil }).worker(t, nil)
		p := &list{records: rows(2)}
		if err := w.RunPartition(t.Context(), p); err == nil || p.committed != 0 {
			t.Fatalf("error %v, committed %d; want an error and nothing", err, p.committed)
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
		}).worker(t, nil)
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
		w, reg := plain(func(_ context.Context, c []cdc.Change) []Outcome { return all(Applied, len(c)) }).worker(t, nil)
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
			h := f.GetMetric()[0].GetHistogram()
			switch f.GetName() {
			case "lockstep_sink_latency_seconds":
				if h.GetSampleCount() != 1 || h.GetSampleSum() != .25 {
					t.Errorf("%d latencies that sum to %v s; want one of 0.25 s", h.GetSampleCount(), h.GetSampleSum())
				}
			case "lockstep_sink_fetched_age_seconds":
				if h.GetSampleCount() != 2 || h.GetSampleSum() < .25 || h.GetSampleSum() > 1 {
					t.Errorf("%d ages when fetched that sum to %v s; want one of 0.25 s or little more and one of 0", h.GetSampleCount(), h.GetSampleSum())
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

func TestACallThatTheBreakerStopsAtTheLastMomentIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := plain(func(_ context.Context, c []cdc.Change) []Outcome { return all(Applied, len(c)) }).worker(t, nil)
		w.start()
		d := w.newDriver(&list{})
		items, bytes := decode(rows(3))
		d.share.add(bytes)
		now := time.Now()
		d.lane.take(now, items)
		ticket := d.pool.ask(d.seat, false, 1)
		c := d.lane.call(now, 1)
		for range w.Config.BreakerFailures {
			w.breaker.try(func() (error, string) { return errUnavailable, "gone" })
		}
		d.call(t.Context(), ticket, c)
		a := <-d.answers
		if a.made {
			t.Fatal("an open breaker let a call through")
		}
		if err := d.answer(a); err != nil {
			t.Fatal(err)
		}
		if _, used, _, _ := d.pool.state(); used != 0 || d.lane.calls != 0 || d.lane.ready.count != 3 {
			t.Errorf("%d places of the pool and %d calls are in use, %d changes ready; want 0, 0 and 3", used, d.lane.calls, d.lane.ready.count)
		}
		if s := w.Status(); s.Breaker.State != "open" || s.Breaker.Reason != "gone" || s.Breaker.Since == nil || s.Breaker.NextProbe == nil || s.Breaker.NextProbe.Sub(now) != w.Config.BreakerOpen {
			t.Errorf("the status of the breaker is %+v", s.Breaker)
		}
		d.leave()
	})
}

// topicList is a partition of some topic.
type topicList struct {
	list
	topic string
}

func (l *topicList) Name() (string, int) { return l.topic, 0 }

func tableRows(table string, n int) []kafka.Record {
	out := make([]kafka.Record, n)
	for i := range out {
		out[i] = record(cdc.TableName{DB: "shop", Table: table}, fmt.Sprint("row", i), uint64(i+1))
		out[i].Topic, out[i].Offset = "p.shop."+table, int64(i)
	}
	return out
}

func TestAPartitionWhoseCallsHangHoldsUpNoOther(t *testing.T) {
	for verdict, what := range map[Verdict]string{Applied: "are slow", Unavailable: "find the store unavailable"} {
		t.Run("calls that "+what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _ := plain(func(_ context.Context, changes []cdc.Change) []Outcome {
					if changes[0].Table.Table == "fast" {
						time.Sleep(5 * time.Millisecond)
						return all(Applied, len(changes))
					}
					time.Sleep(30 * time.Second)
					return all(verdict, len(changes))
				}).worker(t, nil)
				w.Config.BatchChanges = 10
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				run := func(p *topicList) {
					running.Go(func() {
						if err := w.RunPartition(ctx, p); err != nil {
							t.Error(err)
						}
					})
				}
				run(&topicList{list{records: tableRows("slow", 5000)}, "p.shop.slow"})
				time.Sleep(95 * time.Second) // it has as many calls as it can get
				fast := &topicList{list{records: tableRows("fast", 300)}, "p.shop.fast"}
				run(fast)
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if fast.committed < 290 {
					t.Errorf("%d of 300 rows of the other partition are committed after 5 s", fast.committed)
				}
				cancel()
				running.Wait()
			})
		})
	}
}
