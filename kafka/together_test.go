package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestWhatComesAloneGoesAtOnceAndWhatFollowsGoesTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sent := make(chan []int, 10)
		to := together[int]{send: func(some []int) { sent <- some }}
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			got := "nothing"
			select {
			case some := <-sent:
				got = fmt.Sprint(some)
			default:
			}
			if got != want {
				t.Errorf("sent is %s, want %s", got, want)
			}
		}
		to.add(false, 1)
		expect("[1]")
		to.add(false, 2)
		to.add(false, 3)
		expect("nothing")
		if !to.drop(func(n int) bool { return n == 2 }) || to.drop(func(n int) bool { return n == 1 }) {
			t.Error("what waits cannot be taken out, or what is sent can")
		}
		time.Sleep(between)
		expect("[3]")
		to.add(false, 4)
		to.add(true, 5) // is in a hurry
		expect("[4 5]")
	})
}

// watch counts the requests of a kind and the partitions in the largest, and fails
// when a partition stands in one twice.
type watch struct {
	mu             sync.Mutex
	requests, most int
	twice          bool
}

func (w *watch) see(partitions []topicPartition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests++
	w.most = max(w.most, len(partitions))
	seen := map[topicPartition]bool{}
	for _, p := range partitions {
		w.twice = w.twice || seen[p]
		seen[p] = true
	}
}

func watchRequests(cluster *kfake.Cluster) (produced, fetched *watch) {
	produced, fetched = &watch{}, &watch{}
	cluster.Control(func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		var partitions []topicPartition
		switch r := req.(type) {
		case *kmsg.ProduceRequest:
			for _, t := range r.Topics {
				for _, p := range t.Partitions {
					partitions = append(partitions, topicPartition{t.Topic, int(p.Partition)})
				}
			}
			produced.see(partitions)
		case *kmsg.FetchRequest:
			for _, t := range r.Topics {
				for _, p := range t.Partitions {
					partitions = append(partitions, topicPartition{t.Topic, int(p.Partition)})
				}
			}
			fetched.see(partitions)
		}
		return nil, nil, false
	})
	return produced, fetched
}

func TestPartitionsOfOneBrokerShareRequests(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	ctx := deadline(t, 60*time.Second)
	const partitions = 12
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "a", Partitions: partitions}))
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "b", Partitions: partitions}))
	produced, fetched := watchRequests(cluster)
	p, _ := publisher(t, c, cfg)
	seen := &collector{}
	running(t, func(ctx context.Context) error {
		return c.Consume(ctx, ConsumeConfig{Group: "g", Topics: fixed("a", "b"), Handle: seen.handle, Log: quiet})
	})
	const rounds = 50
	for i := range rounds {
		for part := range partitions {
			must(t, p.Publish(ctx, Record{Topic: "a", Partition: part, Value: text(i*2*partitions + part)}))
			must(t, p.Publish(ctx, Record{Topic: "b", Partition: part, Value: text(i*2*partitions + partitions + part)}))
		}
		must(t, p.Flush(ctx))
	}
	const all = rounds * 2 * partitions
	for seen.count() < all && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	if seen.count() != all || seen.redelivered() != 0 {
		t.Errorf("%d of %d records came, %d of them again", seen.count(), all, seen.redelivered())
	}
	for what, w := range map[string]*watch{"produce requests": produced, "fetches": fetched} {
		w.mu.Lock()
		if w.twice {
			t.Errorf("a partition stands twice in one of the %s", what)
		}
		if w.most < partitions/2 || w.most > mostTogether {
			t.Errorf("the largest of the %s has %d partitions of %d; want at least %d and at most %d", what, w.most, 2*partitions, partitions/2, mostTogether)
		}
		w.mu.Unlock()
	}
	if n := produced.requests; n > all/3 {
		t.Errorf("%d records of different partitions took %d produce requests", all, n)
	}
}

// A topic that is gone is that partition's own trouble.
func TestAPartitionThatIsRefusedHoldsUpNoOtherInItsCompany(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	ctx := deadline(t, 60*time.Second)
	fill(t, c, cfg, "here", 3, 30)
	poll := newPoller(ctx, c)
	type result struct {
		records int
		err     error
	}
	results := make(chan result, 4)
	for _, at := range []topicPartition{{"here", 0}, {"gone", 0}, {"here", 1}, {"here", 2}} {
		go func() {
			f, err := poll.fetch(ctx, at.topic, at.id, 0, 1<<20)
			results <- result{len(f.records), err}
		}()
	}
	read, refused := 0, 0
	for range 4 {
		r := <-results
		read += r.records
		if r.err != nil {
			refused++
			if !missing(r.err) {
				t.Errorf("a topic that is gone is refused with %v", r.err)
			}
		}
	}
	if read != 30 || refused != 1 {
		t.Errorf("%d of 30 records were read, %d of 4 fetches were refused; want one", read, refused)
	}
}

// Who stopped waiting is not asked for beside the next owner of the partition.
func TestAFetchThatNobodyWaitsForIsNotRepeated(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	ctx := deadline(t, 60*time.Second)
	fill(t, c, cfg, "t", 1, 5)
	_, fetched := watchRequests(cluster)
	poll := newPoller(ctx, c)
	over, cancel := context.WithCancel(ctx)
	cancel()
	waiting := func(ctx context.Context) *ask {
		return &ask{topicPartition: topicPartition{"t", 0}, ctx: ctx, most: 1 << 20, until: time.Now().Add(fetchWait), done: make(chan struct{})}
	}
	former, now := waiting(over), waiting(ctx)
	poll.send([]*ask{former, now})
	<-now.done
	f, err := now.fetched()
	must(t, errors.Join(now.err, err))
	if fetched.mu.Lock(); fetched.twice || fetched.requests != 1 || len(f.records) != 5 {
		t.Errorf("%d of 5 records after %d fetches, twice in one: %v", len(f.records), fetched.requests, fetched.twice)
	}
	fetched.mu.Unlock()
}

// A broker gives a batch that is larger than was asked for only to the first partition
// of a request that has news.
func TestALargeBatchGetsThroughBesidePartitionsThatAlwaysHaveNews(t *testing.T) {
	t.Parallel()
	cfg, prefix := real(t)
	cfg.Compression = "none"
	c := open(t, cfg)
	ctx := deadline(t, 60*time.Second)
	topic := prefix + ".a.b"
	fill(t, c, cfg, topic, 2, 2)
	p, _ := publisher(t, c, cfg)
	must(t, p.Publish(ctx, Record{Topic: topic, Partition: 1, Value: make([]byte, 1<<20)}))
	must(t, p.Flush(ctx))
	poll := newPoller(ctx, c)
	poll.asks.send = func(asks []*ask) {
		busy := &ask{topicPartition: topicPartition{topic, 0}, ctx: ctx, most: 1 << 10, done: make(chan struct{})}
		poll.send(append(asks, busy))
	}
	f, err := poll.fetch(ctx, topic, 1, 1, 1<<10)
	if err != nil || len(f.records) != 1 {
		t.Errorf("%d records, %v; want the large one", len(f.records), err)
	}
}
