package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"lockstep/cdc"
)

// documents are the rows that the sinks are about to write, for the bare loops.
// They stand in few large slices, which the garbage collector passes over.
type documents struct {
	text []byte
	at   []document
}

type document struct {
	version  uint64
	id       int
	from, to int // in text
}

func (d *documents) row(i int) []byte { return d.text[d.at[i].from:d.at[i].to] }

// readDocuments reads what lockstep published, without the row of the first start.
func (b *bench) readDocuments(ctx context.Context, topic string) error {
	bounds, err := b.bounds(ctx, topic)
	if err != nil {
		return err
	}
	all := &documents{text: make([]byte, 0, b.rows*500), at: make([]document, 0, b.rows)}
	var mu sync.Mutex
	readers, ctx := errgroup.WithContext(ctx)
	for _, p := range bounds {
		readers.Go(func() error {
			r := kafkago.NewReader(kafkago.ReaderConfig{Brokers: []string{b.servers.kafka.Addr}, Topic: topic, Partition: p.Partition, MinBytes: 1, MaxBytes: 4 << 20, MaxWait: 100 * time.Millisecond})
			defer r.Close()
			for offset := p.FirstOffset; offset < p.LastOffset; offset++ {
				m, err := r.ReadMessage(ctx)
				if err != nil {
					return fmt.Errorf("read %s/%d: %w", topic, p.Partition, err)
				}
				headers := make([]cdc.Header, len(m.Headers))
				for i, h := range m.Headers {
					headers[i] = cdc.Header{Key: h.Key, Value: h.Value}
				}
				change, err := cdc.Decode(m.Key, m.Value, headers)
				if err != nil {
					return fmt.Errorf("record %s/%d/%d: %w", topic, p.Partition, m.Offset, err)
				}
				if change.Op == cdc.OpRead {
					continue
				}
				var id int
				if _, err := fmt.Sscanf(string(change.Key), `{"id":%d}`, &id); err != nil {
					return fmt.Errorf("key %s: %w", change.Key, err)
				}
				mu.Lock()
				from := len(all.text)
				all.text = append(all.text, change.After...)
				all.at = append(all.at, document{uint64(change.Version), id, from, len(all.text)})
				mu.Unlock()
			}
			return nil
		})
	}
	if err := readers.Wait(); err != nil {
		return err
	}
	if len(all.at) != b.rows {
		return fmt.Errorf("topic %s has %d changes of rows, want %d", topic, len(all.at), b.rows)
	}
	b.docs = all
	return nil
}
