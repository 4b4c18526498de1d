package kafka

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lockstep/cdc"
)

func change(i int) *cdc.Change {
	v, _ := cdc.NewVersion(1, uint64(i+1))
	key := fmt.Appendf(nil, `{"id":%d}`, i%50)
	return &cdc.Change{
		Table: cdc.TableName{DB: "bank", Table: []string{"q", "tag", "test"}[i%3]}, Op: cdc.OpUpdate, Version: v, GTID: "g:1",
		CommitMicros: 1700000000000000 + int64(i), Key: key, Before: key, After: fmt.Appendf(nil, `{"id":%d,"n":%d}`, i%50, i),
	}
}

func changeLog(t testing.TB, c *Client, cfg Config, prefix string) (*ChangeLog, func() error) {
	m := metrics()
	p := NewPublisher(c, cfg, m, quiet)
	l := NewChangeLog(c, p, prefix, cfg, m, quiet)
	stopPublisher := running(t, p.Run)
	stopLog := running(t, l.Run)
	return l, func() error {
		if err := stopLog(); err != nil {
			return err
		}
		return stopPublisher()
	}
}

func TestTheSavedPositionIsNeverAheadOfKafka(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(3))
	c := open(t, cfg)
	ctx := deadline(t, 90*time.Second)
	l, stop := changeLog(t, c, cfg, "p")
	calm := troubles(ctx, cluster, .03)

	// Whoever reads a position must find every change before it. The checker asks
	// for the position first and counts what Kafka has afterwards, so being late
	// cannot hide a position that was early: the count would have to catch up in
	// between, and a position is checked many times while records are held back.
	checked, stopChecking := 0, make(chan struct{})
	result := make(chan error, 1)
	go func() {
		reader, err := Open(cfg, "reader", quiet)
		if err != nil {
			result <- err
			return
		}
		defer reader.Close()
		for {
			pos, found, err := LoadCheckpoint(ctx, reader, "p")
			if err != nil {
				result <- err
				return
			}
			if found {
				checked++
				var there int64
				for _, topic := range []string{"p.bank.q", "p.bank.tag", "p.bank.test"} {
					for part := range cfg.Partitions {
						there += cluster.PartitionInfo(topic, int32(part)).HighWatermark
					}
				}
				if there < int64(pos.Seq) {
					result <- fmt.Errorf("position %d is saved and Kafka has %d changes", pos.Seq, there)
					return
				}
			}
			select {
			case <-stopChecking:
				result <- nil
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()

	const n = 5000
	for i := range n {
		must(t, l.Publish(ctx, change(i)))
		if i%10 == 9 {
			must(t, l.Checkpoint(ctx, cdc.Position{Epoch: 1, Seq: uint64(i + 1), GTIDSet: "g:1-" + string(text(i))}))
			time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
		}
	}
	must(t, l.Flush(ctx))
	calm()
	close(stopChecking)
	must(t, <-result)
	if checked < 10 {
		t.Fatalf("only %d positions were checked", checked)
	}
	pos, found, err := LoadCheckpoint(ctx, c, "p")
	must(t, err)
	if !found || pos.Seq != n {
		t.Fatalf("after Flush the position is %d, want %d", pos.Seq, n)
	}
	must(t, stop())

	// Every change is there, of each key in order.
	last, count := map[string]cdc.Version{}, 0
	for _, topic := range []string{"p.bank.q", "p.bank.tag", "p.bank.test"} {
		must(t, c.ReadAll(ctx, topic, func(r Record) error {
			got, err := cdc.Decode(r.Key, r.Value, r.Headers)
			if err != nil {
				return err
			}
			row := topic + string(r.Key)
			if got.Version <= last[row] {
				return fmt.Errorf("%s: version %d after %d", row, got.Version, last[row])
			}
			last[row] = got.Version
			count++
			return nil
		}))
	}
	if count != n {
		t.Fatalf("%d changes, want %d", count, n)
	}
}

// Whoever meets a barrier in partition 0 can rely on its standing in all others,
// behind everything that was published before it.
func TestABarrierIsInEveryPartitionBeforeItIsInTheFirst(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(3))
	cfg.Partitions = 4
	c := open(t, cfg)
	ctx := deadline(t, 60*time.Second)
	l, stop := changeLog(t, c, cfg, "p")
	barrier := change(3000)
	barrier.Op, barrier.Key, barrier.Before, barrier.After = cdc.OpBarrier, nil, nil, nil
	barrier.Table = change(0).Table
	const topic = "p.bank.q"
	rows := func(from int) {
		for i := from; i < from+300; i += 3 {
			must(t, l.Publish(ctx, change(i)))
		}
	}
	rows(0)
	must(t, l.Publish(ctx, barrier))
	must(t, l.Flush(ctx))
	rows(3003)

	// From here on no partition but the first takes anything.
	var closed atomic.Bool
	closed.Store(true)
	cluster.ControlKey(0, func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		for _, t := range req.(*kmsg.ProduceRequest).Topics {
			for _, p := range t.Partitions {
				if closed.Load() && t.Topic == topic && p.Partition > 0 {
					return nil, errors.New("not now"), true
				}
			}
		}
		return nil, nil, false
	})
	waiting, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	next := *barrier
	next.Version++
	if err := l.Publish(waiting, &next); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a barrier that the other partitions did not take was published: %v", err)
	}
	met := map[int]int{}
	must(t, c.ReadAll(ctx, topic, func(r Record) error {
		got, err := cdc.Decode(r.Key, r.Value, r.Headers)
		if err == nil && got.Op == cdc.OpBarrier {
			if got.Version != barrier.Version || r.Key != nil {
				return fmt.Errorf("barrier of version %d with key %q", got.Version, r.Key)
			}
			met[r.Partition]++
		}
		return err
	}))
	if len(met) != 4 || met[0] != 1 || met[1] != 1 || met[2] != 1 || met[3] != 1 {
		t.Errorf("barriers by partition: %v; want one in each of 4", met)
	}
	closed.Store(false)
	must(t, stop())
}

func TestTheHighestEpochAndClockIsThePosition(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	ctx := deadline(t, 20*time.Second)
	if _, found, err := LoadCheckpoint(ctx, c, "p"); err != nil || found {
		t.Fatalf("found %v, %v in an empty log", found, err)
	}
	p, _ := publisher(t, c, cfg)
	for _, pos := range []cdc.Position{
		{Epoch: 1, Seq: 10}, {Epoch: 2, Seq: 5}, {Epoch: 2, Seq: 7, GTIDSet: "first"}, {Epoch: 2, Seq: 7, GTIDSet: "second"},
		{Epoch: 2, Seq: 6}, {Epoch: 1, Seq: 99}, // a reader that should be dead
	} {
		r, err := checkpointRecord("p", "w", pos)
		must(t, err)
		must(t, p.Publish(ctx, r))
	}
	must(t, p.Flush(ctx))
	pos, found, err := LoadCheckpoint(ctx, c, "p")
	must(t, err)
	if !found || pos.Epoch != 2 || pos.Seq != 7 || pos.GTIDSet != "second" {
		t.Fatalf("got %+v", pos)
	}
	for _, pos := range []cdc.Position{{Epoch: 3, Run: "first"}, {Epoch: 3, Run: "second"}, {Epoch: 3, Run: "first", Seq: 2}, {Epoch: 3, Run: "second", Seq: 50}} {
		r, err := checkpointRecord("p", "w", pos)
		must(t, err)
		must(t, p.Publish(ctx, r))
	}
	must(t, p.Flush(ctx))
	if pos, _, err = LoadCheckpoint(ctx, c, "p"); err != nil || pos.Run != "first" || pos.Seq != 2 {
		t.Fatalf("two runs began epoch 3 and the position is %+v, %v; want the newest of the first", pos, err)
	}
	for _, pos := range []cdc.Position{{Epoch: 3, Run: "first", Seq: 1, Term: 1}, {Epoch: 3, Run: "first", Seq: 9}} {
		r, err := checkpointRecord("p", "w", pos)
		must(t, err)
		must(t, p.Publish(ctx, r))
	}
	must(t, p.Flush(ctx))
	if pos, _, err = LoadCheckpoint(ctx, c, "p"); err != nil || pos.Term != 1 || pos.Seq != 1 {
		t.Fatalf("a capture that was taken over from has saved last and the position is %+v, %v; want that of the next term", pos, err)
	}
	future, _ := json.Marshal(cdc.Position{Format: 9, Epoch: 3})
	must(t, p.Publish(ctx, Record{Topic: CheckpointTopic("p"), Key: []byte("epoch-3"), Value: future}))
	must(t, p.Flush(ctx))
	if _, _, err := LoadCheckpoint(ctx, c, "p"); err == nil || !strings.Contains(err.Error(), "format 9") {
		t.Fatalf("a position of an unknown format gave %v", err)
	}
}

func TestLargeAndManyOnTheRealKafka(t *testing.T) {
	t.Parallel()
	cfg, prefix := real(t)
	c := open(t, cfg)
	ctx := deadline(t, 60*time.Second)
	l, stop := changeLog(t, c, cfg, prefix)
	for i := range 3000 {
		must(t, l.Publish(ctx, change(i)))
	}
	large := change(3000)
	noise := make([]byte, 8<<20) // does not compress well
	for i := range noise {
		noise[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[rand.IntN(64)]
	}
	large.Before, large.After = nil, fmt.Appendf(nil, `{"id":%d,"text":"%s"}`, 3000%50, noise)
	must(t, l.Publish(ctx, large))
	must(t, l.Checkpoint(ctx, cdc.Position{Epoch: 1, Seq: 3001}))
	must(t, l.Flush(ctx))
	must(t, stop())
	count, whole := 0, false
	for _, table := range []string{"q", "tag", "test"} {
		must(t, c.ReadAll(ctx, prefix+".bank."+table, func(r Record) error {
			got, err := cdc.Decode(r.Key, r.Value, r.Headers)
			count++
			whole = whole || bytes.Equal(got.After, large.After)
			return err
		}))
	}
	if count != 3001 || !whole {
		t.Fatalf("%d changes, want 3001; the large one came back whole: %v", count, whole)
	}
	newest, err := c.Newest(ctx, prefix+".bank.q")
	must(t, err)
	var highest cdc.Version
	for _, r := range newest {
		got, err := cdc.Decode(r.Key, r.Value, r.Headers)
		must(t, err)
		highest = max(highest, got.Version)
	}
	if len(newest) == 0 || highest != large.Version {
		t.Fatalf("the newest records of %d partitions go up to version %d, want %d", len(newest), highest, large.Version)
	}
	pos, found, err := LoadCheckpoint(ctx, open(t, cfg), prefix)
	must(t, err)
	if !found || pos.Seq != 3001 {
		t.Fatalf("position %+v", pos)
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, compression := range []string{"none", "lz4", "snappy", "zstd"} {
		b.Run(compression, func(b *testing.B) {
			cfg, prefix := real(b)
			cfg.Compression = compression
			c := open(b, cfg)
			l, stop := changeLog(b, c, cfg, prefix)
			row := bytes.Repeat([]byte(`"column_name":"some text that a row may hold 0123456789",`), 9)
			base := change(0)
			ctx := context.Background()
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				ch := *base
				ch.Key = fmt.Appendf(ch.Key[:0:0], `{"id":%d}`, i)
				ch.Before = fmt.Appendf(nil, `{%s"id":%d}`, row, i)
				ch.After = ch.Before
				ch.Version, _ = cdc.NewVersion(1, uint64(i))
				must(b, l.Publish(ctx, &ch))
			}
			must(b, l.Flush(ctx))
			b.StopTimer()
			must(b, stop())
		})
	}
}

// Whoever follows positions sees those of a topic that was made anew.
func TestPositionsOfATopicThatIsMadeAnewAreSeen(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	ctx := deadline(t, 20*time.Second)
	save := func(seqs ...uint64) {
		t.Helper()
		must(t, EnsureCheckpoint(ctx, c, "p"))
		p, _ := publisher(t, c, cfg)
		for _, seq := range seqs {
			r, err := checkpointRecord("p", "w", cdc.Position{Epoch: 1, Seq: seq})
			must(t, err)
			must(t, p.Publish(ctx, r))
		}
		must(t, p.Flush(ctx))
	}
	save(1, 2, 3)
	positions := NewPositions(c, "p")
	if pos, _, err := positions.Load(ctx); err != nil || pos.Seq != 3 {
		t.Fatalf("%+v, %v", pos, err)
	}
	must(t, c.DeleteTopics(ctx, CheckpointTopic("p")))
	save(4)
	if _, _, err := positions.Load(ctx); !errors.Is(err, ErrDataLost) {
		t.Errorf("what was lost is not told: %v", err)
	}
	if pos, _, err := positions.Load(ctx); err != nil || pos.Seq != 4 {
		t.Errorf("%+v, %v", pos, err)
	}
}

// A capture that was taken over from saves under a key of its own, so whatever it
// writes last, the position of the new one stays; and what earlier captures saved
// is deleted.
func TestACaptureThatWasTakenOverFromCannotPushOutTheNewPosition(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	c := open(t, cfg)
	ctx := deadline(t, 20*time.Second)
	p, _ := publisher(t, c, cfg)
	save := func(pos cdc.Position) func(cdc.Position) {
		l := NewChangeLog(c, p, "p", cfg, metrics(), quiet)
		running(t, l.Run)
		again := func(pos cdc.Position) {
			must(t, l.Checkpoint(ctx, pos))
			must(t, l.Flush(ctx))
		}
		again(pos)
		return again
	}
	// newest is what compaction leaves.
	newest := func() map[string]uint64 {
		must(t, p.Flush(ctx))
		left := map[string]*cdc.Position{}
		must(t, c.ReadAll(ctx, CheckpointTopic("p"), func(r Record) error {
			left[string(r.Key)] = nil
			if r.Value != nil {
				left[string(r.Key)] = new(cdc.Position)
				return json.Unmarshal(r.Value, left[string(r.Key)])
			}
			return nil
		}))
		terms := map[string]uint64{}
		for key, pos := range left {
			if pos != nil {
				terms[key] = pos.Term
			}
		}
		return terms
	}
	save(cdc.Position{Epoch: 1, Run: "of another time", Seq: 70})
	old := save(cdc.Position{Epoch: 2, Run: "a", Seq: 1})
	save(cdc.Position{Epoch: 2, Run: "a", Seq: 5, Term: 1})
	until(t, "the older positions to be deleted", func() bool { return len(newest()) == 1 })
	old(cdc.Position{Epoch: 2, Run: "a", Seq: 3})
	if left := newest(); len(left) != 2 {
		t.Errorf("compaction would leave %v; want the position of each of the two", left)
	}
	if pos, _, err := LoadCheckpoint(ctx, c, "p"); err != nil || pos.Term != 1 || pos.Seq != 5 {
		t.Errorf("the position is %+v, %v; want that of the capture that took over", pos, err)
	}
}

// Two large rows of one change that do not fit a record travel without the large values of
// the one before;
// a row that does not fit alone is refused with its name, and the others go on.
func TestALargeRowTravelsWithoutTheLargeValuesBefore(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1))
	cfg.MaxRecordBytes, cfg.Partitions = 1<<20, 1
	c := open(t, cfg)
	ctx := deadline(t, 20*time.Second)
	log, stop := changeLog(t, c, cfg, "p")
	publish := func(op cdc.Op, before, after int) error {
		image := func(n int) []byte {
			if n == 0 {
				return nil
			}
			return fmt.Appendf(nil, `{"id":7,"v":%q}`, strings.Repeat("x", n))
		}
		one := change(1)
		one.Op, one.Key, one.Before, one.After = op, []byte(`{"id":7}`), image(before), image(after)
		return log.Publish(ctx, one)
	}
	must(t, publish(cdc.OpUpdate, 1000, 1000))
	must(t, publish(cdc.OpUpdate, 600_000, 600_000))
	must(t, publish(cdc.OpDelete, 2<<20, 0))
	err := publish(cdc.OpUpdate, 10, 2<<20)
	if !errors.Is(err, cdc.ErrTooLarge) || !strings.Contains(err.Error(), `row {"id":7} of `+change(1).Table.String()) {
		t.Errorf("a row too large ended with %v", err)
	}
	must(t, publish(cdc.OpUpdate, 10, 1000)) // and not without its row before
	must(t, log.Flush(ctx))
	must(t, stop())
	topic, err := ChangeTopic("p", change(1).Table)
	must(t, err)
	var got []string
	for _, value := range values(t, c, topic)[0] {
		before := gjson.Get(value, "before").Raw
		if len(before) > 100 {
			before = "whole"
		}
		got = append(got, fmt.Sprintf("%s %t", before, gjson.Get(value, "after").IsObject()))
	}
	if want := []string{"whole true", `{"id":7} true`, `{"id":7} false`, `{"id":7,"v":"xxxxxxxxxx"} true`}; !slices.Equal(got, want) {
		t.Errorf("records with a row before and after: %q, want %q", got, want)
	}
}
