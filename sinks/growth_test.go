package sinks

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/kafka"
)

// forgetful is a store without any guard: what comes last stays. The partitions of its one
// topic are read at different speeds.
type forgetful struct {
	mu        sync.Mutex
	draw      func(int) int
	log       [5][]kafka.Record
	sent      [5]int
	committed [5]int64
	rows      map[string]cdc.Version
}

type forgetfulPartition struct {
	*forgetful
	id int
}

func (p forgetfulPartition) Name() (string, int) { return "p.shop.q", p.id }

func (p forgetfulPartition) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
	p.mu.Lock()
	at := p.sent[p.id]
	n := min(1+p.draw(4), len(p.log[p.id])-at)
	p.sent[p.id] += n
	pause := time.Duration(p.draw(500*(1+p.id%3))) * time.Millisecond
	p.mu.Unlock()
	if n == 0 {
		pause = time.Minute
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(pause):
		return p.log[p.id][at : at+n], nil
	}
}

func (p forgetfulPartition) Commit(_ context.Context, next int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.committed[p.id] = next
	return nil
}

func (s *forgetful) Apply(_ context.Context, changes []cdc.Change) []Outcome {
	s.mu.Lock()
	pause := time.Duration(s.draw(100)) * time.Millisecond
	s.mu.Unlock()
	time.Sleep(pause)
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Outcome, len(changes))
	for i, c := range changes {
		out[i].Verdict = Applied
		if c.Op == cdc.OpDelete {
			delete(s.rows, string(c.Key))
		} else {
			s.rows[string(c.Key)] = c.Version
		}
	}
	return out
}

func (s *forgetful) Sweep(_ context.Context, _ cdc.TableName, v cdc.Version) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, version := range s.rows {
		if version <= v {
			delete(s.rows, key)
			n++
		}
	}
	return n, nil
}

func (s *forgetful) put(id int, c *cdc.Change) {
	s.log[id] = append(s.log[id], kafka.Record{Topic: "p.shop.q", Partition: id, Offset: int64(len(s.log[id])), Key: c.Key, Value: c.AppendValue(nil, "p"), Headers: c.Headers()})
}

// A store forgets in time that it has deleted a row. So of the changes of a row the older one
// comes to it first, also where a topic has got more partitions between the two; and barriers
// are swept for then, too.
func TestTheChangesOfARowStayInOrderWhenATopicGetsMorePartitions(t *testing.T) {
	table := cdc.TableName{DB: "shop", Table: "q"}
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		changes := rapid.IntRange(1, 60).Draw(rt, "changes")
		grows := rapid.SliceOfN(rapid.IntRange(0, 60), 0, 2).Draw(rt, "grows")
		s := &forgetful{draw: rand.New(rand.NewPCG(seed, seed)).IntN, rows: map[string]cdc.Version{}}
		want := map[string]cdc.Version{}
		partitions := 2
		for i := range changes {
			c := &cdc.Change{Table: table, Op: cdc.OpUpdate}
			c.Version, _ = cdc.NewVersion(1, uint64(i+1))
			for _, at := range grows {
				if at != i || partitions == 5 {
					continue
				}
				partitions = min(partitions+2, 5)
				for range 2 {
					g := &cdc.Change{Table: table, Op: cdc.OpGrowth, Version: c.Version, Growth: &cdc.Growth{Partitions: partitions}}
					for id := range partitions {
						g.Growth.Behind = append(g.Growth.Behind, int64(len(s.log[id])))
					}
					for id := range partitions {
						s.put(id, g)
					}
				}
			}
			if s.draw(12) == 0 {
				c.Op = cdc.OpBarrier
				clear(want)
				for id := partitions - 1; id >= 0; id-- {
					s.put(id, c)
				}
				continue
			}
			c.Key, c.After = fmt.Appendf(nil, `{"id":%d}`, s.draw(6)), []byte(`{}`)
			want[string(c.Key)] = c.Version
			if s.draw(3) == 0 {
				c.Op, c.After = cdc.OpDelete, nil
				delete(want, string(c.Key))
			}
			s.put(kafka.PartitionFor(c.Key, partitions), c)
		}
		synctest.Test(t, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.BatchChanges = 3
			w := &Worker{
				Name: "es", Sink: s, Bury: func(context.Context, Refusal) error { return nil },
				Progress: func(context.Context, string) (ends, committed map[int]int64, err error) {
					s.mu.Lock()
					defer s.mu.Unlock()
					ends, committed = map[int]int64{}, map[int]int64{}
					for id := range partitions {
						ends[id], committed[id] = int64(len(s.log[id])), s.committed[id]
					}
					return ends, committed, nil
				},
				Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()), Config: cfg,
			}
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			for id := range partitions {
				running.Go(func() {
					if err := w.RunPartition(ctx, forgetfulPartition{s, id}); err != nil {
						t.Error(err)
					}
				})
			}
			time.Sleep(time.Hour)
			stop()
			running.Wait()
		})
		for id := range partitions {
			if int(s.committed[id]) != len(s.log[id]) {
				rt.Fatalf("committed %d of %d of partition %d", s.committed[id], len(s.log[id]), id)
			}
		}
		if fmt.Sprint(s.rows) != fmt.Sprint(want) {
			rt.Fatalf("the store has %v, want %v", s.rows, want)
		}
	})
}
