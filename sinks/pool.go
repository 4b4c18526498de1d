package sinks

import (
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// longestWait bounds what a store may ask for with Outcome.RetryAfter.
	longestWait = time.Minute
	// leastPatience and mostPatience bound how long a few changes wait for a call
	// that is under way.
	leastPatience = time.Millisecond
	mostPatience  = 50 * time.Millisecond
)

// pool shares the calls of a store among the partitions of its sink: so many may be
// under way at a time, and whoever waits longest goes first. A partition waits at one
// place of the queue at most, and gets another call only while it has fewer than are
// free: one whose calls hang holds up no other.
//
// A partition that found the store unavailable asks again in a queue of its own kind,
// which has as many calls: where only some of the partitions find it so, as when a
// shard is away, their attempts hold up only each other.
type pool struct {
	mu    sync.Mutex
	pace  pace
	lines [2]struct {
		used  int
		queue []*ticket
	}
	closed  time.Time // no call before then
	size    prometheus.Gauge
	calls   prometheus.Gauge
	waiting prometheus.Gauge
}

// seat is what one partition has of a pool.
type seat struct{ calls int }

// ticket is a place in a queue; granted is closed when it is its turn.
type ticket struct {
	seat    *seat
	kind    int // 1 of a partition that found the store unavailable, else 0
	granted chan struct{}
}

func kind(held bool) int {
	if held {
		return 1
	}
	return 0
}

func newPool(name string, cfg Config, m *Metrics) *pool {
	p := &pool{
		pace:    pace{min: cfg.CallsMin, max: cfg.CallsMax, size: cfg.CallsMin},
		size:    m.poolSize.WithLabelValues(name),
		calls:   m.calls.WithLabelValues(name),
		waiting: m.waiting.WithLabelValues(name),
	}
	p.size.Set(float64(p.pace.size))
	return p
}

// ask takes a place in the queue. It must end in give or drop.
func (p *pool) ask(s *seat, held bool) *ticket {
	t := &ticket{seat: s, kind: kind(held), granted: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	line := &p.lines[t.kind]
	line.queue = append(line.queue, t)
	p.grant()
	return t
}

// drop gives up a ticket, whether it was granted or not.
func (p *pool) drop(t *ticket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := &p.lines[t.kind]
	if i := slices.Index(line.queue, t); i >= 0 {
		line.queue = slices.Delete(line.queue, i, i+1)
	} else {
		line.used--
		t.seat.calls--
	}
	p.grant()
}

// give ends the call of a ticket, which took so long for so many bytes. Down means that
// the store was unavailable; it is not asked again before the time that it has asked
// for.
func (p *pool) give(t *ticket, took time.Duration, bytes int, down bool, retryAfter time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines[t.kind].used--
	t.seat.calls--
	p.pace.note(took, bytes, down, len(p.lines[0].queue) > 0)
	p.size.Set(float64(p.pace.size))
	if retryAfter = min(retryAfter, longestWait); retryAfter > 0 {
		if until := time.Now().Add(retryAfter); until.After(p.closed) {
			p.closed = until
			time.AfterFunc(retryAfter, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.grant()
			})
		}
	}
	p.grant()
}

func (p *pool) grant() {
	used, waiting := 0, 0
	closed := time.Now().Before(p.closed)
	for i := range p.lines {
		line := &p.lines[i]
		line.queue = slices.DeleteFunc(line.queue, func(t *ticket) bool {
			if line.used+t.seat.calls >= p.pace.size || closed {
				return false
			}
			line.used++
			t.seat.calls++
			close(t.granted)
			return true
		})
		used += line.used
		waiting += len(line.queue)
	}
	p.calls.Set(float64(used))
	p.waiting.Set(float64(waiting))
}

// patience is how long a few changes wait for a call that is under way: half as long
// as calls take.
func (p *pool) patience() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(max(time.Duration(p.pace.typical)/2, leastPatience), mostPatience)
}

// state is the size of the pool and its use.
func (p *pool) state() (size, used, waiting int, closed time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		used += line.used
		waiting += len(line.queue)
	}
	return p.pace.size, used, waiting, p.closed
}

// pace finds how many calls a store does well with. It grows by one while partitions
// wait and calls take no longer than they did, shrinks by one when they take much
// longer, and to the half when the store says that it cannot. It looks after each
// round: as many calls as the pool has.
type pace struct {
	min, max, size int
	typical        float64 // nanoseconds that calls take, smoothed
	strain         float64 // how many times as long as the shortest of their kind, smoothed
	// The shortest that calls of so many bytes have taken, by the length of that
	// number: a large call takes longer and is not to blame for it. It is forgotten
	// bit by bit, because a store may have become another one.
	floors [64]float64
	seen   int // calls in this round
}

const (
	strained = 2.5 // shrink above
	relaxed  = 1.5 // grow below
	// Differences between calls that are shorter than this are noise.
	shortest = float64(time.Millisecond)
)

func (p *pace) note(took time.Duration, bytes int, down, backlog bool) {
	if down {
		p.size, p.seen = max(p.size/2, p.min), 0
		return
	}
	ns := max(float64(took), shortest)
	floor := &p.floors[bits.Len(uint(bytes))%len(p.floors)]
	if *floor == 0 || ns < *floor {
		*floor = ns
	} else {
		*floor += (ns - *floor) / 2048
	}
	smooth := func(at *float64, to float64) {
		if *at == 0 {
			*at = to
		}
		*at += (to - *at) / 8
	}
	smooth(&p.typical, float64(took))
	smooth(&p.strain, ns / *floor)
	if p.seen++; p.seen < p.size {
		return
	}
	p.seen = 0
	switch {
	case p.strain > strained:
		p.size = max(p.size-1, p.min)
	case backlog && p.strain < relaxed:
		p.size = min(p.size+1, p.max)
	}
}
