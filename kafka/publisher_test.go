package kafka

import (
	"bytes"
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/cdc"
)

// troubles makes the fake answer produce requests with errors, some of which come
// after the batch was appended, drops connections, and moves leaders.
func troubles(ctx context.Context, cluster *kfake.Cluster, share float64) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var on atomic.Bool
	on.Store(true)
	some := func(kmsg.Request) bool { return on.Load() && rand.Float64() < share }
	for _, err := range []*kerr.Error{
		kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend, // these two are answered after the append
		kerr.NotLeaderForPartition, kerr.LeaderNotAvailable, kerr.UnknownServerError, kerr.KafkaStorageError, kerr.CorruptMessage,
	} {
		cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: err, Count: -1, When: some})
	}
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if some(r) {
			return nil, errors.New("connection dropped"), true
		}
		return nil, nil, false
	})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			cluster.ShufflePartitionLeaders()
			select {
			case <-ctx.Done():
			case <-time.After(700 * time.Millisecond):
			}
		}
	}()
	return func() { on.Store(false); cancel(); <-done }
}

func TestRecordsStandInOrderAndOnceWhateverGoesWrong(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(3))
	c := open(t, cfg)
	ctx := deadline(t, 60*time.Second)
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "t", Partitions: 4}))
	p, stop := publisher(t, c, cfg)
	calm := troubles(ctx, cluster, .03)

	const n = 20000
	want := map[int][]string{}
	for i := range n {
		part := rand.IntN(4)
		want[part] = append(want[part], string(text(i)))
		must(t, p.Publish(ctx, Record{Topic: "t", Partition: part, Value: text(i)}))
		if i%200 == 0 { // small batches, many requests
			time.Sleep(2 * time.Millisecond)
		}
	}
	must(t, p.Flush(ctx))
	calm()
	must(t, stop())
	if diff := cmp.Diff(want, values(t, c, "t")); diff != "" {
		t.Fatalf("the log is not what was published (-want +got):\n%.2000s", diff)
	}
}

func TestAfterAckedIsNeverEarlyAndInOrder(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(3))
	c := open(t, cfg)
	ctx := deadline(t, 60*time.Second)
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "t", Partitions: 4}))
	p, _ := publisher(t, c, cfg)
	calm := troubles(ctx, cluster, .03)

	var calls []int
	early := 0
	var published [4]int64
	for i := range 4000 {
		part := rand.IntN(4)
		must(t, p.Publish(ctx, Record{Topic: "t", Partition: part, Value: text(i)}))
		published[part]++
		if i%20 != 0 {
			continue
		}
		before := published
		p.AfterAcked(func() {
			calls = append(calls, i)
			for part, n := range before {
				if cluster.PartitionInfo("t", int32(part)).HighWatermark < n {
					early++
				}
			}
		})
	}
	must(t, p.Flush(ctx)) // behind every call above
	calm()
	if early > 0 || len(calls) != 200 || !slices.IsSorted(calls) {
		t.Fatalf("%d of %d calls were early, want 0 of 200; in order: %v", early, len(calls), slices.IsSorted(calls))
	}
}

func TestPublishWaitsWhileTheBudgetIsUsedUp(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(1))
	cfg.PublishBufferBytes = 1 << 20
	cfg.Compression = "none"
	c := open(t, cfg)
	must(t, c.EnsureTopic(deadline(t, 10*time.Second), TopicSpec{Name: "t", Partitions: 1}))
	p, _ := publisher(t, c, cfg)
	away := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})

	value := make([]byte, 100<<10)
	published := 0
	for ; published < 100; published++ {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		err := p.Publish(ctx, Record{Topic: "t", Value: value})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		must(t, err)
	}
	if published != 10 {
		t.Fatalf("%d records of 100 KiB went into a budget of 1 MiB, want 10", published)
	}
	away.Remove()
	must(t, p.Publish(deadline(t, 10*time.Second), Record{Topic: "t", Value: value}))
	must(t, p.Flush(deadline(t, 10*time.Second)))
	if got := len(values(t, c, "t")[0]); got != 11 {
		t.Fatalf("%d records, want 11", got)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = cryptorand.Read(b)
	return b
}

func TestEveryRecordComesBackAsItWas(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(1700000000123)
	records := []Record{
		{Key: []byte("k"), Value: []byte("v"), Time: at, Headers: []cdc.Header{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte{}}, {Key: "", Value: nil}}},
		{Key: nil, Value: nil, Time: at.Add(-time.Hour)},
		{Key: []byte{}, Value: []byte{}, Time: at.Add(time.Hour)},
		{Key: bytes.Repeat([]byte("k"), 200), Value: bytes.Repeat([]byte("value "), 50_000), Time: at},
		{Key: []byte("noise"), Value: noise(2 << 20), Time: at}, // compression does not make it smaller
		{Key: []byte("huge"), Value: bytes.Repeat([]byte("value "), 1<<20), Time: at},
		{Key: []byte("huge noise"), Value: noise(6 << 20), Time: at},
		{Key: []byte("huge and then noise"), Value: append(bytes.Repeat([]byte("value "), 1<<18), noise(6<<20)...), Time: at},
	}
	for name := range compressions {
		t.Run(name, func(t *testing.T) {
			_, cfg := fake(t, kfake.NumBrokers(1))
			cfg.Compression, cfg.PublishBufferBytes = name, 64<<20
			c := open(t, cfg)
			ctx := deadline(t, 20*time.Second)
			must(t, c.EnsureTopic(ctx, TopicSpec{Name: "t", Partitions: 1, Configs: map[string]string{"message.timestamp.type": "CreateTime"}}))
			p := NewPublisher(c, cfg, metrics(), quiet)
			for _, r := range records { // before Run: the small ones make one batch
				r.Topic = "t"
				must(t, p.Publish(ctx, r))
			}
			running(t, p.Run)
			must(t, p.Flush(ctx))
			var got []Record
			must(t, c.ReadAll(ctx, "t", func(r Record) error { got = append(got, r); return nil }))
			want := slices.Clone(records)
			for i := range want {
				want[i].Topic, want[i].Offset = "t", int64(i)
			}
			if !reflect.DeepEqual(want, got) {
				t.Fatalf("-want +got:\n%.2000s", cmp.Diff(want, got))
			}
		})
	}
}

func TestARecordTooLargeIsRefusedAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	cfg.MaxRecordBytes = 1 << 20
	c := open(t, cfg)
	ctx := deadline(t, 20*time.Second)
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "t", Partitions: 1}))
	p, stop := publisher(t, c, cfg)
	must(t, p.Publish(ctx, Record{Topic: "t", Value: []byte("before")}))
	if err := p.Publish(ctx, Record{Topic: "t", Value: make([]byte, 2<<20)}); !errors.Is(err, cdc.ErrTooLarge) {
		t.Fatalf("got %v, want cdc.ErrTooLarge", err)
	}
	must(t, p.Publish(ctx, Record{Topic: "t", Value: []byte("after")}))
	must(t, p.Flush(ctx))
	must(t, stop())
	if got := values(t, c, "t")[0]; !slices.Equal(got, []string{"before", "after"}) {
		t.Fatalf("got %q", got)
	}
}

func TestABrokenSequenceStopsThePublisher(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	ctx := deadline(t, 20*time.Second)
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "t", Partitions: 1}))
	m := metrics()
	p := NewPublisher(c, cfg, m, quiet)
	result := make(chan error, 1)
	go func() { result <- p.Run(ctx) }()
	must(t, p.Publish(ctx, Record{Topic: "t", Value: []byte("1")}))
	must(t, p.Flush(ctx))
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.OutOfOrderSequenceNumber})
	must(t, p.Publish(ctx, Record{Topic: "t", Value: []byte("2")}))
	acked := false
	p.AfterAcked(func() { acked = true })
	err := <-result
	if !errors.Is(err, kafkago.OutOfOrderSequenceNumber) || !strings.Contains(err.Error(), "publish to t/0") {
		t.Fatalf("Run returned %v", err)
	}
	if got := p.Publish(ctx, Record{Topic: "t"}); got != err {
		t.Fatalf("Publish returned %v, want what stopped Run", got)
	}
	if got := p.Flush(ctx); got != err {
		t.Fatalf("Flush returned %v, want what stopped Run", got)
	}
	if acked {
		t.Fatal("AfterAcked was called for a record that was never acknowledged")
	}
	if bytes := testutil.ToFloat64(m.unacked); bytes != 0 {
		t.Errorf("%v bytes wait for an acknowledgement that nobody waits for", bytes)
	}
}

func TestAPartitionThatRestedTakesANewProducer(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	ctx := deadline(t, 20*time.Second)
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "t", Partitions: 1}))
	ids := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, TopLevel: true, Observe: true, Count: -1})
	p := NewPublisher(c, cfg, metrics(), quiet)
	stop := running(t, p.Run)
	for i := range 3 {
		must(t, p.Publish(ctx, Record{Topic: "t", Value: text(i)}))
		must(t, p.Flush(ctx))
	}
	must(t, stop())
	part := p.parts[topicPartition{"t", 0}]
	if part.sequence != 3 || ids.Hits() != 1 {
		t.Fatalf("sequence %d after %d producer ids, want 3 after 1", part.sequence, ids.Hits())
	}
	part.lastAck = time.Now().Add(-producerIdle - time.Second)
	b := newBatch(nil)
	b.add(&Record{Value: []byte("3"), Time: time.Now()})
	if _, err := p.deliver(ctx, ctx, part, b); err != nil {
		t.Fatal(err)
	}
	if part.sequence != 1 || ids.Hits() != 2 {
		t.Fatalf("sequence %d after %d producer ids, want 1 after 2", part.sequence, ids.Hits())
	}
	if got := values(t, c, "t")[0]; !slices.Equal(got, []string{"0", "1", "2", "3"}) {
		t.Fatalf("got %q", got)
	}
}

func TestSequencesWrapToZero(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		from  int32
		count int
		want  int32
	}{{0, 5, 5}, {math.MaxInt32, 1, 0}, {math.MaxInt32 - 1, 3, 1}} {
		if got := nextSequence(tc.from, tc.count); got != tc.want {
			t.Errorf("%d records after sequence %d: %d, want %d", tc.count, tc.from, got, tc.want)
		}
	}
}

// addrs reserves ports that a restarted fake can come back on.
func addrs(t *testing.T, n int) []int {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		l.Close()
	}
	return ports
}

func TestPublisherAndConsumerOutliveABrokerThatIsStoppedAndStarted(t *testing.T) {
	t.Parallel()
	dir, ports := t.TempDir(), addrs(t, 1)
	start := func() *kfake.Cluster {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(ports...), kfake.DataDir(dir), kfake.SyncWrites())
		must(t, err)
		return cluster
	}
	cluster := start()
	cfg := DefaultConfig()
	cfg.Brokers = []string{fmt.Sprintf("127.0.0.1:%d", ports[0])}
	cfg.SessionTimeout = 6 * time.Second // so long the group waits for the member that could not leave
	c := open(t, cfg)
	ctx := deadline(t, 60*time.Second)
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "t", Partitions: 1}))
	p, stopPublisher := publisher(t, c, cfg)
	seen := &collector{}
	stopConsumer := running(t, func(ctx context.Context) error {
		return c.Consume(ctx, ConsumeConfig{Group: "g", Topics: fixed("t"), Handle: seen.handle, Log: quiet})
	})
	var want []string
	put := func(n int) {
		for range n {
			v := text(len(want))
			want = append(want, string(v))
			must(t, p.Publish(ctx, Record{Topic: "t", Value: v}))
		}
	}
	put(1000)
	until(t, "the first records", func() bool { return seen.count() >= 500 })
	cluster.Close()
	put(1000)
	select {
	case <-p.failed.Done():
		t.Fatal(context.Cause(p.failed))
	case <-time.After(3 * time.Second):
	}
	cluster = start()
	defer cluster.Close()
	put(1000)
	must(t, p.Flush(ctx))
	until(t, "all records", func() bool { return seen.count() >= len(want) })
	must(t, stopConsumer())
	must(t, stopPublisher())
	if diff := cmp.Diff(want, values(t, c, "t")[0]); diff != "" {
		t.Fatalf("the log is not what was published (-want +got):\n%.2000s", diff)
	}
	if missing := seen.missing(want); len(missing) > 0 {
		t.Fatalf("%d records were not delivered, the first is %s", len(missing), missing[0])
	}
}
