package admin

import (
	"sync"
	"time"
)

// Each holder of a token may ask this often, and so often at once.
const (
	ratePerSecond = 20
	rateBurst     = 40
)

// limited is a problem that passes by itself.
type limited struct {
	*Problem
	wait time.Duration
}

func (l *limited) Unwrap() error { return l.Problem }

// limits counts requests by name.
type limits struct {
	mu  sync.Mutex
	all map[string]*allowance
}

// allowance is what somebody has left.
type allowance struct {
	left float64
	at   time.Time
}

// take counts a request, or says how long to wait.
func (l *limits) take(name string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[string]*allowance{}
	}
	a := l.all[name]
	if a == nil {
		a = &allowance{rateBurst, now}
		l.all[name] = a
	}
	a.left = min(rateBurst, a.left+ratePerSecond*now.Sub(a.at).Seconds())
	a.at = now
	if a.left < 1 {
		return time.Duration((1-a.left)/ratePerSecond*float64(time.Second)).Round(time.Millisecond) + time.Millisecond
	}
	a.left--
	return 0
}
