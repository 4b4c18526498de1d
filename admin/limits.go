package admin

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Each holder of a token may ask this often, and so often at once; and so may each address
// from which somebody asks without a right one. Of what is asked so few are looked after at
// once, for each of them may need all letters; the others wait for their turn.
const (
	ratePerSecond = 20
	rateBurst     = 40
	workAtOnce    = 8
	turnWithin    = 5 * time.Second
	// mostLimits bounds for how many that is remembered.
	mostLimits = 4096
)

// Load is what a process is asked for at the moment, and who has asked how often. The Servers of a
// process, which follow each other with its configuration, share one, so that what is bounded
// stays so; nothing is asked at its zero.
type Load struct {
	limits         limits
	bulk, watchers atomic.Int32
}

// limited is a problem that passes by itself.
type limited struct {
	*Problem
	wait time.Duration
}

func (l *limited) Unwrap() error { return l.Problem }

// limits counts requests by who sends them.
type limits struct {
	mu    sync.Mutex
	all   map[string]*limit
	swept time.Time
}

// limit is what one of them may do.
type limit struct {
	rate *rate.Limiter
	work chan struct{} // those that are looked after
}

// take counts a request, or says how long to wait.
func (l *limits) take(name string, now time.Time) time.Duration {
	r := l.of(name, now).rate.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// turn waits until a request may be looked after.
func (l *limits) turn(ctx context.Context, name string) (done func(), err error) {
	work := l.of(name, time.Now()).work
	late := time.NewTimer(turnWithin)
	defer late.Stop()
	select {
	case work <- struct{}{}:
		return func() { <-work }, nil
	case <-late.C:
	case <-ctx.Done():
	}
	return nil, &limited{problem(http.StatusTooManyRequests, "too_many", "%d requests are under way already, or their answers are not taken; try again when one is over", workAtOnce), time.Second}
}

func (l *limits) of(name string, now time.Time) *limit {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[string]*limit{}
	}
	if l.all[name] == nil && len(l.all) >= mostLimits {
		if now.Sub(l.swept) > time.Second {
			l.swept = now
			for other, one := range l.all { // who has not asked for a while is as one that is new
				if one.rate.TokensAt(now) >= rateBurst && len(one.work) == 0 {
					delete(l.all, other)
				}
			}
		}
		if len(l.all) >= mostLimits {
			name = "" // so many at once share one allowance
		}
	}
	one := l.all[name]
	if one == nil {
		one = &limit{rate.NewLimiter(ratePerSecond, rateBurst), make(chan struct{}, workAtOnce)}
		l.all[name] = one
	}
	return one
}
