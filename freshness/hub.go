package freshness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lockstep/cdc"
	"lockstep/kafka"
)

const (
	// tailBytes is how much is read of the topic at once.
	tailBytes = 4 << 20
	// again is the wait before the topic is opened anew that was lost.
	again = time.Second
)

// Hub is the place of a process in the topic of watermarks: what any process writes there
// comes by, its own writes too, in the order of the topic.
//
// What goes wrong with it holds up barriers and nothing else: it says so and tries again.
type Hub struct {
	Prefix string
	Kafka  *kafka.Client
	// Publisher makes what the records are written with.
	Publisher func() *kafka.Publisher
	Log       *slog.Logger

	mu        sync.Mutex
	listeners map[*listener]bool
	publisher *kafka.Publisher
	placed    bool // whoever writes now will read it
	news      chan struct{}
	heard     heard
	running   bool
	refused   bool // it was said that a record cannot be read
}

type listener struct{ hear func(Record) }

// Listen calls hear with every record that comes from now on, one at a time. It must not
// wait.
func (h *Hub) Listen(hear func(Record)) (stop func()) {
	l := &listener{hear}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listeners == nil {
		h.listeners = make(map[*listener]bool)
	}
	h.listeners[l] = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.listeners, l)
	}
}

// Write writes a record, once the hub reads what comes behind it; it does not wait for the
// record to be there. Its error is the end of ctx, or a record that is too large.
func (h *Hub) Write(ctx context.Context, r Record) error {
	record, err := r.encode(h.Prefix)
	if err != nil {
		return err
	}
	for {
		publisher, err := h.open(ctx)
		if err != nil {
			return err
		}
		err = publisher.Publish(ctx, record)
		if err == nil || ctx.Err() != nil || errors.Is(err, cdc.ErrTooLarge) {
			return err
		}
		select { // it has failed, and another one takes its place in a moment
		case <-time.After(again / 10):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// open waits until the hub is in its place.
func (h *Hub) open(ctx context.Context) (*kafka.Publisher, error) {
	for {
		h.mu.Lock()
		if h.placed {
			defer h.mu.Unlock()
			return h.publisher, nil
		}
		if h.news == nil {
			h.news = make(chan struct{})
		}
		news := h.news
		h.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// place says whether records are read.
func (h *Hub) place(publisher *kafka.Publisher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.publisher, h.placed = publisher, publisher != nil
	if h.news != nil {
		close(h.news)
		h.news = nil
	}
}

// Run reads and writes until ctx ends, and then returns nil.
func (h *Hub) Run(ctx context.Context) error {
	h.mu.Lock()
	h.running = true
	h.mu.Unlock()
	said := false
	for {
		err := h.run(ctx)
		h.place(nil)
		if ctx.Err() != nil {
			return nil
		}
		if !said {
			said = true
			h.Log.Warn("the topic of watermarks cannot be used, trying again; barriers wait, and nothing else", "topic", Topic(h.Prefix), "error", err)
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return nil
		}
	}
}

func (h *Hub) run(ctx context.Context) error {
	if err := h.Kafka.EnsureTopic(ctx, Spec(h.Prefix)); err != nil {
		return err
	}
	publisher := h.Publisher()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := publisher.Run(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		return kafka.ErrStopped
	})
	g.Go(func() error {
		err := h.Kafka.Tail(ctx, Topic(h.Prefix), 0, tailBytes, func(records []kafka.Record) error {
			for _, r := range records {
				h.hear(r)
			}
			if len(records) == 0 {
				h.place(publisher)
			}
			return nil
		})
		if err == nil && ctx.Err() == nil {
			err = fmt.Errorf("the tail of %s has ended", Topic(h.Prefix))
		}
		return err
	})
	return g.Wait()
}

// hear hands a record to those who listen. One that cannot be read is reported once, and
// answers nobody.
func (h *Hub) hear(record kafka.Record) {
	r, err := Decode(record)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		if !h.refused {
			h.refused = true
			h.Log.Error("a watermark is refused, and whoever waits for what it says goes on waiting", "error", err)
		}
		return
	}
	h.heard.take(r, time.Now())
	for l := range h.listeners {
		l.hear(r)
	}
}
