package sinks

import (
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
	bell    bell // rings when the state changes

	mu      sync.Mutex
	state   gobreaker.State
	since   time.Time // when it left the closed state; zero while it is closed
	next    time.Time // when it lets one through; zero unless it is open
	probing bool      // that one is under way
	reason  string    // what the store said last when it was unavailable
}

func newBreaker(name string, cfg Config, log *slog.Logger, m *Metrics) *breaker {
	b := &breaker{}
	state, since, next := m.breaker.WithLabelValues(name), m.breakerSince.WithLabelValues(name), m.breakerNext.WithLabelValues(name)
	b.circuit = gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name:    name,
		Timeout: cfg.BreakerOpen,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return int(c.ConsecutiveFailures) >= cfg.BreakerFailures
		},
		// Being told to stop says nothing about the store.
		IsExcluded: func(err error) bool { return errors.Is(err, errStopping) },
		OnStateChange: func(name string, from, to gobreaker.State) {
			b.mu.Lock()
			b.state, b.next = to, time.Time{}
			switch to {
			case gobreaker.StateClosed:
				b.since, b.reason = time.Time{}, ""
			case gobreaker.StateOpen:
				b.next = time.Now().Add(cfg.BreakerOpen)
				if b.since.IsZero() {
					b.since = time.Now()
				}
			}
			reason := b.reason
			setTime(since, b.since)
			setTime(next, b.next)
			b.mu.Unlock()
			state.Set(float64(to)) // gobreaker numbers them 0 closed, 1 half-open, 2 open
			log.Info("breaker changed", "sink", name, "from", from.String(), "to", to.String(), "reason", reason)
			b.bell.ring()
		},
	})
	return b
}

// admits reports whether try would call now, and if not, when it may; zero when that
// depends on a call that is under way.
func (b *breaker) admits() (ok bool, at time.Time) {
	state := b.circuit.State() // it notices that the time of an open one is over
	b.mu.Lock()
	defer b.mu.Unlock()
	switch state {
	case gobreaker.StateOpen:
		// The open period is over only after its last moment, not at it.
		return false, b.next.Add(time.Millisecond)
	case gobreaker.StateHalfOpen:
		return !b.probing, time.Time{}
	}
	return true, time.Time{}
}

// try calls f unless the breaker is open, and reports whether it did. f returns
// what the call says about the store, and the store's words.
func (b *breaker) try(f func() (err error, reason string)) bool {
	probe := b.circuit.State() == gobreaker.StateHalfOpen
	if probe {
		b.mu.Lock()
		probe = !b.probing
		b.probing = true
		b.mu.Unlock()
	}
	_, err := b.circuit.Execute(func() (struct{}, error) {
		err, reason := f()
		if errors.Is(err, errUnavailable) {
			b.mu.Lock()
			b.reason = reason
			b.mu.Unlock()
		}
		return struct{}{}, err
	})
	if probe {
		b.mu.Lock()
		b.probing = false
		b.mu.Unlock()
		b.bell.ring()
	}
	return !errors.Is(err, gobreaker.ErrOpenState) && !errors.Is(err, gobreaker.ErrTooManyRequests)
}

// status is the breaker as an operator sees it.
func (b *breaker) status() BreakerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := BreakerStatus{State: b.state.String()}
	if b.state != gobreaker.StateClosed {
		s.Reason, s.Since, s.NextProbe = b.reason, notZero(b.since), notZero(b.next)
	}
	return s
}

// bell tells any number of listeners that something has changed.
type bell struct {
	mu   sync.Mutex
	rung chan struct{}
}

// next is closed when the bell rings the next time.
func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rung == nil {
		b.rung = make(chan struct{})
	}
	return b.rung
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rung != nil {
		close(b.rung)
		b.rung = nil
	}
}

// setTime sets a gauge to a time, or to 0 for none.
func setTime(g prometheus.Gauge, t time.Time) {
	if t.IsZero() {
		g.Set(0)
		return
	}
	g.Set(float64(t.UnixMilli()) / 1000)
}

func notZero(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
