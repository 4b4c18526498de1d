package kafka

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// What an earlier change log has published is in the ends of the next one, and what that
// publishes is in them as soon as it is acknowledged, whatever goes wrong on the way.
func TestTheEndsAreBehindEverythingThatIsAcknowledged(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(3))
	c := open(t, cfg)
	ctx := deadline(t, 90*time.Second)
	topics := func(ctx context.Context) ([]string, error) {
		all, err := c.Topics(ctx)
		return slices.DeleteFunc(all, func(name string) bool { _, ok := TableOf("p", name); return !ok }), err
	}
	there := func(table string) (ends []int64) {
		for part := range cfg.Partitions {
			ends = append(ends, cluster.PartitionInfo("p."+table, int32(part)).HighWatermark)
		}
		return ends
	}
	first, stop := changeLog(t, c, cfg, "p")
	for i := range 300 {
		must(t, first.Publish(ctx, change(i)))
	}
	must(t, first.Flush(ctx))
	must(t, stop())

	l, stop := changeLog(t, c, cfg, "p")
	ends := NewEnds(l, topics)
	calm := troubles(ctx, cluster, .03)
	for round := range 20 {
		if round == 14 {
			calm()
		}
		for i := range 20 {
			if n := 20*round + i; n%3 > 0 { // of table q nothing is published any more
				must(t, l.Publish(ctx, change(n)))
			}
		}
		must(t, l.publisher.Flush(ctx))
		got, err := ends.Now(ctx, 1+uint16(round/15))
		must(t, err)
		for _, table := range []string{"bank.q", "bank.tag", "bank.test"} {
			if want := there(table); !slices.Equal(got[table], want) {
				t.Fatalf("round %d: the ends of %s are %v and Kafka has %v", round, table, got[table], want)
			}
		}
		if len(got) != 3 {
			t.Fatalf("ends of %d tables", len(got))
		}
	}
	must(t, stop())
}

// Where the broker has not said where a batch stands, because it had it from a try of which
// the answer was lost, it is asked.
func TestAnEndThatTheBrokerDidNotTellIsAskedFor(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t)
	c := open(t, cfg)
	ctx := deadline(t, time.Minute)
	l, stop := changeLog(t, c, cfg, "p")
	for i := range 30 {
		must(t, l.Publish(ctx, change(i)))
	}
	must(t, l.Flush(ctx))
	ends := NewEnds(l, c.Topics)
	want, err := ends.Now(ctx, 1)
	must(t, err)
	want = map[string][]int64{"bank.tag": slices.Clone(want["bank.tag"])}
	for part := range cfg.Partitions {
		l.publisher.partition("p.bank.tag", part).end.Store(endUnknown)
	}
	ends.before = map[string][]int64{"p.bank.tag": {0, 0, 0, 0}}
	if got, err := ends.Now(ctx, 1); err != nil || !slices.Equal(got["bank.tag"], want["bank.tag"]) || slices.Max(want["bank.tag"]) == 0 {
		t.Errorf("got %v, %v; want %v", got["bank.tag"], err, want["bank.tag"])
	}
	must(t, stop())
}

func TestTailGivesWhatIsWrittenBehindIt(t *testing.T) {
	t.Parallel()
	cfg, prefix := real(t)
	c := open(t, cfg)
	ctx := deadline(t, time.Minute)
	topic := prefix + ".marks"
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: topic, Partitions: 1}))
	p, stop := publisher(t, c, cfg)
	put := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			must(t, p.Publish(ctx, Record{Topic: topic, Value: text(i)}))
		}
		must(t, p.Flush(ctx))
	}
	put(0, 5)
	over := errors.New("seen enough")
	var got []int
	placed := 0
	slowest := time.Duration(0)
	var wrote time.Time
	err := c.Tail(ctx, topic, 0, 1<<20, func(records []Record) error {
		if len(records) == 0 {
			placed++
			wrote = time.Now()
			put(5, 8)
			return nil
		}
		slowest = max(slowest, time.Since(wrote))
		got = append(got, numbers(t, records...)...)
		if n := got[len(got)-1]; n < 20 {
			wrote = time.Now()
			put(n+1, n+2)
			return nil
		}
		return over
	})
	if !errors.Is(err, over) || placed != 1 || len(got) != 16 || got[0] != 5 || got[15] != 20 {
		t.Errorf("%v: placed %d times, got %v", err, placed, got)
	}
	if slowest > followWait/2 {
		t.Errorf("a record came %s after it was written", slowest)
	}
	ended, cancel := context.WithCancel(ctx)
	if err := c.Tail(ended, topic, 0, 1<<20, func([]Record) error { cancel(); return nil }); err != nil {
		t.Errorf("when it is to end: %v", err)
	}
	must(t, stop())
	must(t, past(t).DeleteTopics(ctx, topic))
	if err := c.Tail(ctx, topic, 0, 1<<20, func([]Record) error { return nil }); !missing(err) {
		t.Errorf("when the topic is gone: %v", err)
	}
}
