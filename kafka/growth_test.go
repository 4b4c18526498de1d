package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/cdc"
)

func TestATopicGetsThePartitionsItLacksAndKeepsThoseItHas(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(3))
	c := open(t, cfg)
	ctx := deadline(t, 20*time.Second)
	spec := TopicSpec{Name: "p.a.b", Partitions: 2, Grows: true}
	must(t, c.EnsureTopic(ctx, spec))
	spec.Partitions = 5
	if found, err := c.Inspect(ctx, []TopicSpec{spec}); err != nil || !strings.HasPrefix(found[1].Detail, "2 partitions, and gets 5 at the next start") {
		t.Errorf("an inspection finds %+v, %v", found, err)
	}
	must(t, c.EnsureTopic(ctx, spec))
	must(t, open(t, cfg).EnsureTopic(ctx, spec))
	if ends, err := c.EndOffsets(ctx, "p.a.b"); err != nil || len(ends) != 5 {
		t.Fatalf("%d partitions, want 5: %v", len(ends), err)
	}
	spec.Partitions = 2
	err := c.EnsureTopic(ctx, spec)
	if !errors.Is(err, ErrPartitionCount) || !strings.Contains(err.Error(), "p.a.b has 5 and the configuration says 2; set kafka.partitions to 5 or more, because Kafka takes no partition away") {
		t.Fatalf("got %v", err)
	}
}

// Whenever a capture is killed while a topic grows: before the first change that the new
// number has put where it is, every partition has a growth that is behind everything that the
// old number has put, and one that is behind those.
func TestATopicThatHasGrownSaysSoWheneverTheCaptureIsKilled(t *testing.T) {
	t.Parallel()
	const few, many, topic = 2, 5, "p.bank.q"
	for kill := range 9 {
		t.Run(fmt.Sprint(kill), func(t *testing.T) {
			cluster, cfg := fake(t, kfake.NumBrokers(1))
			c := open(t, cfg)
			ctx := deadline(t, 60*time.Second)
			rows := func(cfg Config, from int) {
				l, stop := changeLog(t, c, cfg, "p")
				for i := from; i < from+300; i += 3 {
					must(t, l.Publish(ctx, change(i)))
				}
				must(t, l.Flush(ctx))
				must(t, stop())
			}
			cfg.Partitions = few
			rows(cfg, 0)

			cfg.Partitions = many
			running, die := context.WithCancel(ctx)
			defer die()
			var asked atomic.Int32
			var dead atomic.Bool
			cluster.ControlKey(0, func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				if int(asked.Add(1)) > kill || dead.Load() {
					dead.Store(true)
					die()
					return nil, errors.New("killed"), true
				}
				return nil, nil, false
			})
			killed := open(t, cfg)
			l, stop := changeLog(t, killed, cfg, "p")
			if err := l.Grow(running, []string{topic}, func(context.Context) error { return nil }); err == nil && kill < 2 {
				t.Fatal("it ended before it was killed, which shows nothing")
			}
			die()
			asked.Store(-1 << 20) // what is in flight gets through, and nobody hears of it
			dead.Store(false)
			must(t, stop())
			rows(cfg, 3000)

			barrier := change(6000)
			barrier.Op, barrier.Key, barrier.Before, barrier.After, barrier.Table = cdc.OpBarrier, nil, nil, nil, change(0).Table
			l, stop = changeLog(t, c, cfg, "p")
			must(t, l.Publish(ctx, barrier))
			must(t, stop())

			var oldEnds [many]int64 // behind what the old number has put
			var firsts [many]int64  // offsets of growths that are behind that everywhere
			var growths [many][]Record
			barriers := 0
			must(t, c.ReadAll(ctx, topic, func(r Record) error {
				got, err := cdc.Decode(r.Key, r.Value, r.Headers)
				switch {
				case err != nil:
					return err
				case got.Op == cdc.OpGrowth:
					growths[r.Partition] = append(growths[r.Partition], r)
				case got.Op == cdc.OpBarrier:
					barriers++
				case len(growths[r.Partition]) == 0:
					if want := PartitionFor(r.Key, few); r.Partition != want {
						return fmt.Errorf("%s is in partition %d before it has grown, want %d", r.Key, r.Partition, want)
					}
					oldEnds[r.Partition] = r.Offset + 1
				case r.Partition != PartitionFor(r.Key, many):
					return fmt.Errorf("%s is in partition %d behind a growth", r.Key, r.Partition)
				}
				return nil
			}))
			if barriers != many {
				t.Errorf("a barrier is in %d of %d partitions", barriers, many)
			}
			for id, records := range growths {
				firsts[id] = -1
				for _, r := range records {
					g, err := cdc.Decode(r.Key, r.Value, r.Headers)
					must(t, err)
					if g.Version < change(297).Version {
						t.Errorf("a growth has version %s, less than the newest change", g.Version)
					}
					all := true
					for other, end := range oldEnds {
						all = all && g.Growth.Behind[other] >= end
					}
					if all && firsts[id] < 0 {
						firsts[id] = r.Offset
					}
				}
			}
			for id, records := range growths {
				if len(records) == 0 {
					t.Fatalf("partition %d has no growth", id)
				}
				last := records[len(records)-1]
				g, _ := cdc.Decode(last.Key, last.Value, last.Headers)
				for other := range few {
					if g.Growth.Behind[other] <= firsts[other] || firsts[other] < 0 {
						t.Errorf("the last growth of partition %d waits for partition %d up to %d, and the first growth there is at %d", id, other, g.Growth.Behind[other], firsts[other])
					}
				}
			}
		})
	}
}

func TestAMemberGetsThePartitionsOfATopicThatHasGrown(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	fill(t, c, cfg, "a", 2, 10)
	seen := &collector{}
	stop := running(t, func(ctx context.Context) error {
		return c.Consume(ctx, ConsumeConfig{Group: "g", Topics: c.Topics, TopicsInterval: 50 * time.Millisecond, Handle: seen.handle, Log: quiet})
	})
	until(t, "the first partitions", func() bool { return seen.count() == 10 })
	must(t, c.EnsureTopic(deadline(t, 20*time.Second), TopicSpec{Name: "a", Partitions: 5, Grows: true}))
	p, end := publisher(t, c, cfg)
	must(t, p.Publish(t.Context(), Record{Topic: "a", Partition: 4, Value: text(10)}))
	until(t, "the new partition", func() bool { return seen.count() == 11 })
	must(t, end())
	must(t, stop())
}
