package sinks

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
)

// flowing is a partition whose records a test gives, and which answers as Kafka does: with
// none after a while.
type flowing struct {
	topic   string
	records chan []kafka.Record
	offset  int64
	silent  atomic.Bool
}

func (f *flowing) Name() (string, int) { return f.topic, 0 }

func (f *flowing) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
	for {
		select {
		case r := <-f.records:
			return r, nil
		case <-time.After(500 * time.Millisecond):
			if !f.silent.Load() {
				return nil, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *flowing) Commit(context.Context, int64) error { return nil }

// gets puts changes that were committed at these seconds into Kafka; 0 is a row of a copy.
func (f *flowing) gets(table string, seconds ...int64) {
	var out []kafka.Record
	for _, s := range seconds {
		f.offset++
		v, _ := cdc.NewVersion(1, uint64(f.offset))
		c := cdc.Change{Table: cdc.TableName{DB: "shop", Table: table}, Op: cdc.OpUpdate, Version: v, CommitMicros: s * 1e6, Key: fmt.Appendf(nil, `{"id":%d}`, f.offset), After: []byte(`{}`)}
		if s == 0 {
			c.Op = cdc.OpRead
		}
		out = append(out, kafka.Record{Topic: f.topic, Offset: f.offset, Key: c.Key, Value: c.AppendValue(nil, "p"), Headers: c.Headers()})
	}
	f.records <- out
}

// What is applied for certain everywhere is the oldest over the partitions that have more
// to do; one that is idle does not hold it for ever.
func TestAppliedUpToIsWhatIsAppliedEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		away := map[string]bool{}
		w, _ := plain(func(_ context.Context, changes []cdc.Change) []Outcome {
			mu.Lock()
			defer mu.Unlock()
			if away[changes[0].Table.Table] {
				return []Outcome{{Unasked: true}, {Unasked: true}, {Unasked: true}}[:len(changes)]
			}
			return all(Applied, len(changes))
		}).worker(t, nil)
		hold := func(table string, is bool) {
			mu.Lock()
			defer mu.Unlock()
			away[table] = is
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		begin := func(table string) *flowing {
			f := &flowing{topic: "p.shop." + table, records: make(chan []kafka.Record)}
			running.Go(func() {
				if err := w.RunPartition(ctx, f); err != nil {
					t.Error(err)
				}
			})
			return f
		}
		expect := func(claim string, want int64) {
			t.Helper()
			synctest.Wait()
			got := int64(0)
			if at := w.Status().AppliedUpTo; at != nil {
				got = at.Unix()
			}
			if got != want {
				t.Errorf("%s: applied up to %d; want %d", claim, got, want)
			}
		}
		a, b := begin("a"), begin("b")
		expect("nothing is known", 0)
		a.gets("a", 100, 200)
		expect("the other one has not been read yet", 0)
		time.Sleep(time.Second)
		expect("the other one is idle", 200)

		hold("b", true)
		b.gets("b", 300, 310)
		a.gets("a", 400)
		time.Sleep(time.Second)
		expect("a table waits from its first change on", 300)
		a.gets("a", 500)
		time.Sleep(time.Hour)
		expect("and holds it while it waits", 300)
		hold("b", false)
		time.Sleep(w.Config.HoldMax)
		expect("it goes on", 500)

		hold("b", true)
		b.gets("b", 510, 520, 530)
		a.gets("a", 600)
		time.Sleep(time.Second)
		expect("what is before the oldest that waits is applied", 310)
		hold("b", false)
		time.Sleep(w.Config.HoldMax + time.Second)
		expect("all is applied", 600)

		b.gets("b", 540)
		expect("there may be more of one that is read", 540)
		time.Sleep(time.Second)
		expect("there is not", 600)

		b.silent.Store(true)
		a.gets("a", 700)
		time.Sleep(time.Second)
		expect("Kafka is silent for a moment", 700)
		time.Sleep(time.Minute)
		expect("what came meanwhile nobody knows", 540)
		b.silent.Store(false)
		time.Sleep(time.Second)
		expect("Kafka answers again", 700)

		hold("c", true)
		c := begin("c")
		c.gets("c", 0, 800)
		time.Sleep(time.Second)
		expect("of a row of a copy nobody knows from when it is", 0)
		hold("c", false)
		time.Sleep(w.Config.HoldMax + time.Second)
		expect("all is applied again", 800)
		cancel()
		running.Wait()
	})
}
