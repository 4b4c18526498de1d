package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"
)

// partitionReader reads a partition from an offset on.
func (b *bench) partitionReader(topic string, partition int, offset int64) (*kafkago.Reader, error) {
	r := kafkago.NewReader(kafkago.ReaderConfig{Brokers: []string{b.servers.kafka.Addr}, Topic: topic, Partition: partition,
		MinBytes: 1, MaxBytes: 16 << 20, MaxWait: 500 * time.Millisecond, ReadBatchTimeout: 30 * time.Second})
	return r, r.SetOffset(offset)
}

// tally reads a topic from its beginning to its present end.
func (b *bench) tally(ctx context.Context, topic string) (*tally, error) {
	bounds, err := b.bounds(ctx, topic)
	if err != nil {
		return nil, err
	}
	t := newTally()
	for _, p := range bounds {
		if p.FirstOffset == p.LastOffset {
			continue
		}
		r, err := b.partitionReader(topic, p.Partition, p.FirstOffset)
		if err != nil {
			return nil, err
		}
		for at := int64(-1); at < p.LastOffset-1; {
			m, err := r.ReadMessage(ctx)
			if err != nil {
				r.Close()
				return nil, fmt.Errorf("read %s/%d: %w", topic, p.Partition, err)
			}
			at = m.Offset
			e, err := readEnvelope(m.Value)
			if err != nil {
				r.Close()
				return nil, fmt.Errorf("read %s/%d at %d: %w", topic, p.Partition, at, err)
			}
			t.add(e.id, e.views)
		}
		r.Close()
	}
	return t, nil
}

// tail reads what comes to a topic from now on, and when it came.
type tail struct {
	cancel  context.CancelFunc
	reading *errgroup.Group
	mu      sync.Mutex
	came    []arrival
}

type arrival struct {
	updated string
	at      time.Time
}

func (b *bench) tail(ctx context.Context, topic string) (*tail, error) {
	bounds, err := b.bounds(ctx, topic)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	t := &tail{cancel: cancel}
	t.reading, ctx = errgroup.WithContext(ctx)
	for _, p := range bounds {
		r, err := b.partitionReader(topic, p.Partition, p.LastOffset)
		if err != nil {
			cancel()
			return nil, err
		}
		t.reading.Go(func() error {
			defer r.Close()
			for {
				m, err := r.ReadMessage(ctx)
				if err != nil {
					return err
				}
				at := time.Now()
				e, err := readEnvelope(m.Value)
				if err != nil {
					return err
				}
				t.mu.Lock()
				t.came = append(t.came, arrival{e.updated, at})
				t.mu.Unlock()
			}
		})
	}
	return t, nil
}

func (t *tail) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.came)
}

func (t *tail) stop() {
	t.cancel()
	_ = t.reading.Wait()
}

// latencies lists, sorted, how old the changes written after since were when they
// came.
func (t *tail) latencies(since time.Time) ([]time.Duration, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var took []time.Duration
	for _, a := range t.came {
		written, err := writtenAt(a.updated)
		if err != nil {
			return nil, err
		}
		if written.After(since) {
			took = append(took, a.at.Sub(written))
		}
	}
	slices.Sort(took)
	return took, nil
}

// writtenAt reads a datetime(6) in UTC: as text, or in microseconds.
func writtenAt(text string) (time.Time, error) {
	if micros, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.UnixMicro(micros), nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02T15:04:05", time.RFC3339} {
		if at, err := time.Parse(layout, text); err == nil { // takes a fraction, too
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time", text)
}
