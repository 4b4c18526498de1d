package dlq

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/kafka"
)

// realLog is a Log on a real Kafka.
type realLog struct {
	*kafka.Client
	publisher *kafka.Publisher
}

func (l realLog) Produce(ctx context.Context, r kafka.Record) error {
	if err := l.publisher.Publish(ctx, r); err != nil {
		return err
	}
	return l.publisher.Flush(ctx)
}

func TestOnARealKafkaTheLargestRowIsBuriedListedAndReplayed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{testenv.Kafka(t).Addr}
	cfg.Compression = "none"
	cfg.MaxRecordBytes = 1 << 20
	client, err := kafka.Open(cfg, "dlqtest", quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	spec := Topic("dlqtest-"+uuid.NewString()[:8], "es", 4, cfg.MaxRecordBytes)
	if err := client.EnsureTopic(ctx, spec); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.DeleteTopics(ctx, spec.Name); err != nil {
			t.Error(err)
		}
	}()
	wider := cfg
	wider.MaxRecordBytes += HeaderBytes
	publisher := kafka.NewPublisher(client, wider, kafka.NewMetrics(prometheus.NewRegistry()), quiet)
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- publisher.Run(running) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	l := &Letters{Sink: "es", Topic: spec.Name, Log: realLog{client, publisher}}

	largest := refusal(1, base+1, strings.Repeat("much ", 400))
	room := cfg.MaxRecordBytes - largest.Record.Size() - 1024
	largest.Change.After = fmt.Appendf(nil, `{"id":1,"x":"%s"}`, bytes.Repeat([]byte("x"), room))
	largest.Record.Value = largest.Change.AppendValue(nil, "shop")
	largest.Record.Headers = append(largest.Record.Headers, cdc.Header{Key: "pad", Value: bytes.Repeat([]byte("x"), cfg.MaxRecordBytes-largest.Record.Size())})
	bury(t, l, largest, refusal(2, base+2, "a"), undecodable(5, nil), refusal(3, base+3, "a"))

	letters := list(t, l, Filter{Class: "mapping"})
	expect(t, "open", rows(letters), "1@1 2@2 3@3")
	err = l.Records(ctx, letters[:1], func(_ Letter, r kafka.Record) error {
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
	expect(t, "a record without a key keeps having none", open[0].noKey, true)
}
