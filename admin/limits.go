package admin

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Each holder of a token may ask this often, and so often at once; and so may each address
// from which somebody asks without a right one.
const (
	ratePerSecond = 20
	rateBurst     = 40
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
	all   map[string]*rate.Limiter
	swept time.Time
}

// take counts a request, or says how long to wait.
func (l *limits) take(name string, now time.Time) time.Duration {
	r := l.of(name, now).ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

func (l *limits) of(name string, now time.Time) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[string]*rate.Limiter{}
	}
	if l.all[name] == nil && len(l.all) >= mostLimits {
		if now.Sub(l.swept) > time.Second {
			l.swept = now
			for other, limit := range l.all { // who has not asked for a while is as one that is new
				if limit.TokensAt(now) >= rateBurst {
					delete(l.all, other)
				}
			}
		}
		if len(l.all) >= mostLimits {
			name = "" // so many at once share one allowance
		}
	}
	limit := l.all[name]
	if limit == nil {
		limit = rate.NewLimiter(ratePerSecond, rateBurst)
		l.all[name] = limit
	}
	return limit
}
