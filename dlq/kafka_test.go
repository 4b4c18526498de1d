package dlq

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/kafka"
	"lockstep/sinks"
)

// realLog is a Log on a real Kafka.
type realLog struct {
	*kafka.Client
	publisher *kafka.Publisher
}

func (l realLog) Produce(ctx context.Context, r kafka.Record) error { return l.ProduceAll(ctx, r) }

func (l realLog) ProduceAll(ctx context.Context, records ...kafka.Record) error {
	for _, r := range records {
		if err := l.publisher.Publish(ctx, r); err != nil {
			return err
		}
	}
	return l.publisher.Flush(ctx)
}

// realLetters are those of a topic of a real Kafka, which ends with the test.
func realLetters(t *testing.T, maxRecordBytes int, configs map[string]string) *Letters {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{testenv.Kafka(t).Addr}
	cfg.Compression = "none"
	cfg.MaxRecordBytes = maxRecordBytes
	client, err := kafka.Open(cfg, "dlqtest", quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	t.Cleanup(cancel)
	spec := Topic("dlqtest-"+uuid.NewString()[:8], "es", 4, cfg.MaxRecordBytes)
	maps.Copy(spec.Configs, configs)
	if err := client.EnsureTopic(ctx, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.DeleteTopics(ctx, spec.Name); err != nil {
			t.Error(err)
		}
	})
	wider := cfg
	wider.MaxRecordBytes += HeaderBytes
	publisher := kafka.NewPublisher(client, wider, kafka.NewMetrics(prometheus.NewRegistry()), quiet)
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- publisher.Run(running) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &Letters{Sink: "es", Topic: spec.Name, Log: realLog{client, publisher}}
}

func TestOnARealKafkaTheLargestRowIsBuriedListedAndReplayed(t *testing.T) {
	const most = 1 << 20
	l := realLetters(t, most, nil)
	largest := refusal(1, base+1, strings.Repeat("much ", 400))
	room := most - largest.Record.Size() - 1024
	largest.Change.After = fmt.Appendf(nil, `{"id":1,"x":"%s"}`, bytes.Repeat([]byte("x"), room))
	largest.Record.Value = largest.Change.AppendValue(nil, "shop")
	largest.Record.Headers = append(largest.Record.Headers, cdc.Header{Key: "pad", Value: bytes.Repeat([]byte("x"), most-largest.Record.Size())})
	bury(t, l, largest, refusal(2, base+2, "a"), undecodable(5, nil), refusal(3, base+3, "a"))

	letters := list(t, l, Filter{Class: "mapping"})
	expect(t, "open", rows(letters), "1@1 2@2 3@3")
	err := l.Records(t.Context(), letters[:1], func(_ Letter, r kafka.Record) error {
		r.Time = time.Time{}
		expect(t, "record", r, largest.Record)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &store{rows: map[string]cdc.Version{`{"id":2}`: base + 9}}
	said, err := replayed(t, l, s, ReplayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "said", said, map[string]string{"1": "resolved", "2": "superseded", "3": "resolved", "": "parked"})
	open := list(t, l, Filter{})
	expect(t, "open", len(open), 1)
	expect(t, "a record without a key keeps having none", open[0].recordKey == nil, true)
}

// Kafka keeps the newest record of each key: every open letter whole, and the end of
// every other, which tells all but the row.
func TestOnARealKafkaCompactionKeepsTheOpenLettersAndTheHistory(t *testing.T) {
	l := realLetters(t, 1<<20, map[string]string{
		"min.compaction.lag.ms": "0", "segment.ms": "50", "min.cleanable.dirty.ratio": "0.001", // at once, and always
	})
	const letters = 20
	for id := range letters {
		bury(t, l, refusal(id, base+1, "a"), refusal(id, base+2, "a"))
	}
	other := refusal(1, base+1, "of another table with the same key")
	other.Change.Table.Table = "tags"
	bury(t, l, other, undecodable(1, []byte("k")), undecodable(2, nil))
	for _, letter := range list(t, l, Filter{Table: "bank.questions"}) {
		if letter.Key < "15" {
			if err := l.Skip(t.Context(), letter, "known"); err != nil {
				t.Fatal(err)
			}
		}
	}
	open := list(t, l, Filter{})
	ends := letters + 3 - len(open)
	if len(open) < 8 || ends < 5 {
		t.Fatalf("%d open and %d ended: that shows nothing", len(open), ends)
	}
	var kept map[string][]Letter
	for deadline := time.Now().Add(time.Minute); ; {
		if time.Now().After(deadline) {
			t.Fatalf("not compacted: %v", kept)
		}
		for id := range 4 { // only what is behind the newest records is compacted
			again := undecodable(0, nil)
			again.Record.Partition = id
			bury(t, l, again)
		}
		kept = map[string][]Letter{}
		old := false
		if err := l.Log.ReadAll(t.Context(), l.Topic, func(r kafka.Record) error {
			letter, err := l.read(r)
			if letter.Source.Offset == 0 && letter.Table == "" {
				return err
			}
			kept[letter.key] = append(kept[letter.key], letter)
			old = old || len(kept[letter.key]) > 1
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if !old {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	expect(t, "letters and ends", len(kept), letters+3)
	for _, k := range kept {
		if !k[0].State.Open() {
			ends--
			expect(t, "an end", []any{k[0].State, k[0].Closed, k[0].Reason, k[0].Version}, []any{Skipped, "known", "a", base + 2})
		}
	}
	expect(t, "ends that are missing", ends, 0)
	var left []Letter
	for _, letter := range list(t, l, Filter{}) {
		if letter.Source.Offset != 0 {
			left = append(left, letter)
		}
	}
	expect(t, "open", rows(left), rows(open))
	if err := l.Records(t.Context(), left, func(letter Letter, r kafka.Record) error {
		if letter.Table == "bank.questions" && !bytes.Contains(r.Value, fmt.Appendf(nil, `"title":"t%d"`, base+2)) {
			t.Errorf("letter %s holds %s", letter.Key, r.Value)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A letter of another format stops whoever meets it, with its place and the way out, and
// nothing is written; a record that is none, or is damaged, is one that nobody can read and
// stops nobody. The posts of other partitions go on.
func TestOnARealKafkaALetterNobodyKnowsStopsItsPartitionAndADamagedOneIsSeen(t *testing.T) {
	l := realLetters(t, 1<<20, nil)
	log := l.Log.(realLog)
	posts := func() *Posts {
		return &Posts{Letters: l, Log: log, Loading: make(chan struct{}, 1), Metrics: NewMetrics(prometheus.NewRegistry())}
	}
	visit := func(partition int) error {
		return posts().RunPartition(t.Context(), quiet(partition), func(ctx context.Context, part sinks.Partition) error {
			return part.Commit(ctx, 1) // it waits until all letters are known
		})
	}
	r := refusal(1, base+1, "a")
	letter := l.open(r.Record, l.refused(r))
	damaged := letter
	damaged.Key, damaged.Headers = []byte("damaged"), slices.Clone(letter.Headers)
	for i, h := range damaged.Headers {
		if h.Key == HeaderOffset {
			damaged.Headers[i].Value = []byte("many")
		}
	}
	stranger := kafka.Record{Topic: l.Topic, Partition: 2, Key: []byte("?"), Value: []byte("?")}
	must(t, log.ProduceAll(t.Context(), letter, damaged, stranger))
	letters := list(t, l, Filter{Class: sinks.ClassUndecodable})
	expect(t, "letters that nobody can read", len(letters), 2)
	for _, bad := range letters {
		if !strings.HasPrefix(bad.Reason, "not a letter: header lockstep.letter.") || bad.Source.Topic != l.Topic {
			t.Errorf("of %s it is said: %s", bad.Source, bad.Reason)
		}
	}
	must(t, visit(3))
	must(t, visit(2))

	later := letter
	later.Partition, later.Headers = 2, slices.Clone(letter.Headers)
	for i, h := range later.Headers {
		if h.Key == HeaderFormat {
			later.Headers[i].Value = []byte("3")
		}
	}
	must(t, log.Produce(t.Context(), later))
	before, err := log.EndOffsets(t.Context(), l.Topic)
	must(t, err)
	want := fmt.Sprintf(`%s/2/1 has format "3" and this lockstep knows 2; settle it with the lockstep that wrote it`, l.Topic)
	_, listed := l.List(t.Context(), Filter{})
	for who, err := range map[string]error{"the list": listed, "the post": visit(2)} {
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s says %v; want %s", who, err, want)
		}
	}
	must(t, visit(3))
	after, err := log.EndOffsets(t.Context(), l.Topic)
	must(t, err)
	expect(t, "records", after, before)
}
