package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func fixed(topics ...string) func(context.Context) ([]string, error) {
	return func(context.Context) ([]string, error) { return topics, nil }
}

// collector is a Handle that keeps what it gets and commits it.
type collector struct {
	mu   sync.Mutex
	got  map[string]int
	each func(p *Partition, rr []Record)
}

func (s *collector) handle(ctx context.Context, p *Partition) error {
	for {
		rr, err := p.Fetch(ctx)
		if err != nil {
			return err
		}
		if len(rr) == 0 {
			continue
		}
		if s.each != nil {
			s.each(p, rr)
		}
		s.mu.Lock()
		if s.got == nil {
			s.got = map[string]int{}
		}
		for _, r := range rr {
			s.got[string(r.Value)]++
		}
		s.mu.Unlock()
		if err := p.Commit(ctx, rr[len(rr)-1].Offset+1); err != nil {
			return err
		}
	}
}

func (s *collector) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got)
}

func (s *collector) redelivered() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, times := range s.got {
		n += times - 1
	}
	return n
}

func (s *collector) missing(want []string) (missing []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range want {
		if s.got[v] == 0 {
			missing = append(missing, v)
		}
	}
	return missing
}

func fill(t testing.TB, c *Client, cfg Config, topic string, partitions, n int) {
	t.Helper()
	ctx := deadline(t, 60*time.Second)
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: topic, Partitions: partitions}))
	p, stop := publisher(t, c, cfg)
	for i := range n {
		must(t, p.Publish(ctx, Record{Topic: topic, Partition: i % partitions, Value: text(i)}))
		if i%240 == 239 { // many small batches, so that reading takes many fetches
			must(t, p.Flush(ctx))
		}
	}
	must(t, p.Flush(ctx))
	must(t, stop())
}

// Members that join make the group hand partitions over again and again. What was
// fetched is applied slowly, so there is always work in flight when it happens.
func joinThree(t *testing.T, cfg Config, topic, group string) {
	const n = 30000
	cfg.FetchMaxBytes = 1024
	cfg.Compression = "none"
	cfg.SessionTimeout = patience // nobody is put out because it was slow
	fill(t, open(t, cfg), cfg, topic, 12, n)
	seen := &collector{each: func(*Partition, []Record) { time.Sleep(120 * time.Millisecond) }}
	var stops []func() error
	owned := make([]atomic.Int32, 3)
	for member := range 3 {
		c := open(t, cfg)
		stops = append(stops, running(t, func(ctx context.Context) error {
			return c.Consume(ctx, ConsumeConfig{Group: group, Topics: fixed(topic), Log: quiet, Handle: func(ctx context.Context, p *Partition) error {
				owned[member].Add(1)
				return seen.handle(ctx, p)
			}})
		}))
		until(t, "the member to own a partition", func() bool { return owned[member].Load() > 0 })
	}
	if seen.count() == n {
		t.Fatal("everything was read before the last member had joined; the test shows nothing")
	}
	ctx := deadline(t, 60*time.Second)
	for seen.count() < n && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	for _, stop := range stops {
		must(t, stop())
	}
	if seen.count() != n || seen.redelivered() != 0 {
		t.Fatalf("%d of %d records, %d redelivered, want all and none", seen.count(), n, seen.redelivered())
	}
}

func TestMembersThatJoinCauseNoRedelivery(t *testing.T) {
	t.Parallel()
	t.Run("fake", func(t *testing.T) {
		_, cfg := fake(t, kfake.NumBrokers(3))
		joinThree(t, cfg, "t", "g")
	})
	t.Run("real", func(t *testing.T) {
		cfg, prefix := real(t)
		joinThree(t, cfg, prefix+".a.b", prefix+".search")
	})
}

func TestRecordsRemovedBelowTheCommittedOffsetAreRaised(t *testing.T) {
	t.Parallel()
	cfg, prefix := real(t)
	c := open(t, cfg)
	topic := prefix + ".a.b"
	fill(t, c, cfg, topic, 1, 100)
	cc := ConsumeConfig{Group: prefix + ".search", Topics: fixed(topic), Log: quiet, Handle: func(ctx context.Context, p *Partition) error {
		if _, err := p.Fetch(ctx); err != nil {
			return err
		}
		if err := p.Commit(ctx, 10); err != nil {
			return err
		}
		return errors.New("enough")
	}}
	if err := c.Consume(deadline(t, 20*time.Second), cc); err == nil {
		t.Fatal("the error of Handle did not end Consume")
	}
	truncate(t, topic, 0, 60)
	cc.Handle = (&collector{}).handle
	err := c.Consume(deadline(t, 20*time.Second), cc)
	if !errors.Is(err, ErrDataLost) {
		t.Fatalf("50 records were removed unread and Consume returned %v", err)
	}
	cc.Group = prefix + ".new"
	if err := c.Consume(deadline(t, 20*time.Second), cc); !errors.Is(err, ErrDataLost) {
		t.Fatalf("a group without an offset began in the middle and Consume returned %v", err)
	}
}

// truncate removes the records below offset, as retention would.
func truncate(t *testing.T, topic string, partition int, offset int64) {
	t.Helper()
	admin, err := kgo.NewClient(kgo.SeedBrokers(broker.Plain))
	must(t, err)
	defer admin.Close()
	req := kmsg.NewDeleteRecordsRequest()
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: int32(partition), Offset: offset}}}}
	res, err := req.RequestWith(deadline(t, 10*time.Second), admin)
	must(t, err)
	must(t, kerr.ErrorForCode(res.Topics[0].Partitions[0].ErrorCode))
}

func TestAnOffsetBehindTheEndIsRaised(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	fill(t, c, cfg, "t", 1, 100)
	beyond := func(ctx context.Context, p *Partition) error {
		if err := p.Commit(ctx, 500); err != nil {
			return err
		}
		return errors.New("enough")
	}
	cc := ConsumeConfig{Group: "g", Topics: fixed("t"), Log: quiet, Handle: beyond}
	if err := c.Consume(deadline(t, 20*time.Second), cc); err == nil {
		t.Fatal("the error of Handle did not end Consume")
	}
	cc.Handle = (&collector{}).handle
	if err := c.Consume(deadline(t, 30*time.Second), cc); !errors.Is(err, ErrDataLost) {
		t.Fatalf("offset 500 of 100 is committed and Consume returned %v", err)
	}
}

func TestANewTopicIsPickedUp(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	fill(t, c, cfg, "a", 2, 10)
	seen := &collector{}
	stop := running(t, func(ctx context.Context) error {
		return c.Consume(ctx, ConsumeConfig{Group: "g", Topics: c.Topics, TopicsInterval: 50 * time.Millisecond, Handle: seen.handle, Log: quiet})
	})
	until(t, "the first topic", func() bool { return seen.count() == 10 })
	fill(t, c, cfg, "b", 2, 20)
	until(t, "the second topic", func() bool { return seen.count() == 20 })
	must(t, stop())
	if n := seen.redelivered(); n != 10 { // "b" holds the same ten values and ten more
		t.Fatalf("%d deliveries of values seen before, want the 10 of the other topic", n)
	}
}

func TestTheErrorOfOneHandleDrainsTheOthersAndEndsConsume(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	fill(t, c, cfg, "t", 4, 400)
	broken := errors.New("broken")
	var drained atomic.Int32
	var started sync.WaitGroup
	started.Add(4)
	err := c.Consume(deadline(t, 20*time.Second), ConsumeConfig{Group: "g", Topics: fixed("t"), Log: quiet,
		Handle: func(ctx context.Context, p *Partition) error {
			started.Done()
			if p.ID == 2 {
				started.Wait()
				return broken
			}
			<-ctx.Done()
			if err := p.Commit(ctx, 7); err != nil {
				return fmt.Errorf("commit in the drain: %w", err)
			}
			drained.Add(1)
			return nil
		}})
	if !errors.Is(err, broken) || drained.Load() != 3 {
		t.Fatalf("Consume returned %v after %d drains, want the error after 3", err, drained.Load())
	}
	// What was committed in the drain counts.
	offsets := map[int]int64{}
	var mu sync.Mutex
	ctx, cancel := context.WithCancel(deadline(t, 20*time.Second))
	err = c.Consume(ctx, ConsumeConfig{Group: "g", Topics: fixed("t"), Log: quiet,
		Handle: func(ctx context.Context, p *Partition) error {
			rr, err := p.Fetch(ctx)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if offsets[p.ID] = rr[0].Offset; len(offsets) == 4 {
				cancel()
			}
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			return nil
		}})
	must(t, err)
	for id, want := range []int64{7, 7, 0, 7} {
		if offsets[id] != want {
			t.Errorf("partition %d goes on at %d, want %d", id, offsets[id], want)
		}
	}
}

func TestLagIsShownAndForgotten(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	fill(t, c, cfg, "t", 1, 100)
	m := metrics()
	lag := make(chan float64, 2)
	ctx, cancel := context.WithCancel(deadline(t, 20*time.Second))
	must(t, c.Consume(ctx, ConsumeConfig{Group: "g", Topics: fixed("t"), Log: quiet, Metrics: m,
		Handle: func(ctx context.Context, p *Partition) error {
			defer cancel()
			for n := 0; n < 100; {
				rr, err := p.Fetch(ctx)
				if err != nil {
					return err
				}
				n += len(rr)
			}
			lag <- testutil.ToFloat64(m.lag.WithLabelValues("g", "t", "0"))
			if err := p.Commit(ctx, 90); err != nil {
				return err
			}
			lag <- testutil.ToFloat64(m.lag.WithLabelValues("g", "t", "0"))
			return nil
		}}))
	if got := []float64{<-lag, <-lag}; !slices.Equal(got, []float64{100, 10}) {
		t.Errorf("lag %v, want 100 before the commit of 90 and 10 after", got)
	}
	if n := testutil.CollectAndCount(m.lag); n != 0 {
		t.Errorf("%d partitions show a lag after they were given back", n)
	}
}

// A store that is away keeps its partitions from fetching, and that is when
// somebody looks at the lag.
func TestLagGrowsWhileNobodyFetches(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	fill(t, c, cfg, "t", 1, 100)
	m := metrics()
	held := make(chan struct{})
	stop := running(t, func(ctx context.Context) error {
		return c.Consume(ctx, ConsumeConfig{Group: "g", Topics: fixed("t"), Log: quiet, Metrics: m, Handle: func(ctx context.Context, p *Partition) error {
			if _, err := p.Fetch(ctx); err != nil {
				return err
			}
			close(held)
			<-ctx.Done()
			return nil
		}})
	})
	<-held
	fill(t, c, cfg, "t", 1, 50)
	for waiting := deadline(t, 20*time.Second); testutil.ToFloat64(m.lag) != 150; {
		select {
		case <-waiting.Done():
			t.Fatalf("100 records were held and 50 came; the lag is %v", testutil.ToFloat64(m.lag))
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// A member that got no partition, because the other one has them all, is a member.
func TestAMemberWithoutAPartitionIsAMember(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	fill(t, open(t, cfg), cfg, "t", 1, 1)
	var in, owned [2]atomic.Int32
	var stops []func() error
	for i := range 2 {
		c := open(t, cfg)
		stops = append(stops, running(t, func(ctx context.Context) error {
			return c.Consume(ctx, ConsumeConfig{Group: "g", Topics: fixed("t"), Log: quiet,
				Member: func(is bool) {
					if is {
						in[i].Add(1)
					} else {
						in[i].Add(-1)
					}
				},
				Handle: func(ctx context.Context, _ *Partition) error {
					owned[i].Add(1)
					defer owned[i].Add(-1)
					<-ctx.Done()
					return nil
				}})
		}))
	}
	until(t, "both to be members and one to have the partition", func() bool {
		return in[0].Load() == 1 && in[1].Load() == 1 && owned[0].Load()+owned[1].Load() == 1
	})
	for i, stop := range stops {
		must(t, stop())
		if in[i].Load() != 0 {
			t.Errorf("member %d has left and is still one", i)
		}
	}
}

func TestAFetchKeepsToTheBytesItIsAskedFor(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	fill(t, c, cfg, "t", 1, 2400)
	counts := make(chan [2]int, 1)
	ctx, cancel := context.WithCancel(deadline(t, 20*time.Second))
	must(t, c.Consume(ctx, ConsumeConfig{Group: "g", Topics: fixed("t"), Log: quiet,
		Handle: func(ctx context.Context, p *Partition) error {
			defer cancel()
			few, err := p.FetchAtMost(ctx, 1)
			if err != nil {
				return err
			}
			rest, err := p.Fetch(ctx)
			counts <- [2]int{len(few), len(rest)}
			return err
		}}))
	if got := <-counts; got[0] == 0 || got[0] > 240 || got[0]+got[1] != 2400 {
		t.Errorf("a fetch of one byte brought %d records and the next %d; want one batch, and the rest of 2400", got[0], got[1])
	}
}
