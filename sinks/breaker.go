package sinks

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
)

var (
	errUnavailable = errors.New("store unavailable")
	errStopping    = errors.New("told to stop")
)

// breaker keeps the partitions of a sink from knocking on a closed door all at
// once: after some calls in a row that found the store unavailable it lets none
// through for a while, then one, and all again when that one succeeds.
type breaker struct {
	circuit *gobreaker.CircuitBreaker[struct{}]
	open    time.Duration

	mu      sync.Mutex
	changed chan struct{} // closed when the state changes
}

func newBreaker(name string, cfg Config, log *slog.Logger, state prometheus.Gauge) *breaker {
	b := &breaker{open: cfg.BreakerOpen, changed: make(chan struct{})}
	b.circuit = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name:    name,
		Timeout: cfg.BreakerOpen,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return int(c.ConsecutiveFailures) >= cfg.BreakerFailures
		},
		// Being told to stop says nothing about the store.
		IsExcluded: func(err error) bool { return errors.Is(err, errStopping) },
		OnStateChange: func(name string, from, to gobreaker.State) {
			state.Set(float64(to)) // gobreaker numbers them 0 closed, 1 half-open, 2 open
			log.Info("breaker changed", "sink", name, "from", from.String(), "to", to.String())
			b.mu.Lock()
			defer b.mu.Unlock()
			close(b.changed)
			b.changed = make(chan struct{})
		},
	})
	return b
}

// try calls f unless the breaker is open, and reports whether it did.
func (b *breaker) try(f func() error) bool {
	_, err := b.circuit.Execute(func() (struct{}, error) { return struct{}{}, f() })
	return !errors.Is(err, gobreaker.ErrOpenState) && !errors.Is(err, gobreaker.ErrTooManyRequests)
}

// wait returns when the breaker's state may have changed, or with false when ctx
// ends.
func (b *breaker) wait(ctx context.Context) bool {
	b.mu.Lock()
	changed := b.changed
	b.mu.Unlock()
	// The open period is over only after its last moment, not at it.
	timer := time.NewTimer(b.open + time.Millisecond)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
