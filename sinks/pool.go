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
	// between is how far apart the calls of a crew begin at least, unless they are
	// full.
	between = 2 * time.Millisecond
)

// pool shares the calls of a store among the partitions of its sink: so many may be
// under way at a time, and whoever waits longest goes first. A partition waits at one
// place of the queue at most.
//
// The partitions of a topic are a crew: those that wait when it is their turn share one
// call, for a call costs the store much and a change in it little. A crew whose calls
// are under way gives company time to come, and gets another call only while it has
// fewer than are free: a table whose calls hang holds up no other.
//
// A partition that found the store unavailable asks again alone, in a queue of its own
// kind, which has as many calls: where only some of the partitions find it so, as when
// a shard is away, their attempts hold up only each other.
type pool struct {
	batch   int          // changes of a call at most
	call    func(*joint) // makes one
	mu      sync.Mutex
	pace    pace
	crews   map[string]*crew // by topic
	lines   [2]rank
	closed  time.Time   // no call before then
	bell    *time.Timer // rings when a crew has had time enough
	size    prometheus.Gauge
	calls   prometheus.Gauge
	waiting prometheus.Gauge
}

type rank struct {
	used  int
	queue []*crew // that have tickets
}

// crew is who may share a call.
type crew struct {
	calls   int       // under way
	began   time.Time // the last of them
	tickets []*ticket
	count   int // changes that are ready behind tickets
}

// seat is the place of one partition in a pool.
type seat struct {
	crew  *crew
	alone crew // for when it found the store unavailable
}

// ticket is a place in a queue; granted is closed when it is its turn.
type ticket struct {
	crew    *crew
	kind    int // 1 of a partition that found the store unavailable, else 0
	count   int // changes that are ready
	granted chan struct{}
	joint   *joint // set when it is granted
	among   int    // how many share that call
}

func kind(held bool) int {
	if held {
		return 1
	}
	return 0
}

func newPool(name string, cfg Config, m *Metrics, call func(*joint)) *pool {
	p := &pool{
		batch:   cfg.BatchChanges,
		call:    call,
		pace:    pace{min: cfg.CallsMin, max: cfg.CallsMax, size: cfg.CallsMin},
		crews:   make(map[string]*crew),
		size:    m.poolSize.WithLabelValues(name),
		calls:   m.calls.WithLabelValues(name),
		waiting: m.waiting.WithLabelValues(name),
	}
	p.bell = time.AfterFunc(time.Hour, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.grant()
	})
	p.bell.Stop()
	p.size.Set(float64(p.pace.size))
	return p
}

// seat makes the place of a partition of a topic.
func (p *pool) seat(topic string) *seat {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.crews[topic]
	if c == nil {
		c = &crew{}
		p.crews[topic] = c
	}
	return &seat{crew: c}
}

// ask takes a place in the queue for so many changes. It must end in give or drop.
func (p *pool) ask(s *seat, held bool, count int) *ticket {
	t := &ticket{crew: s.crew, kind: kind(held), count: count, granted: make(chan struct{})}
	if held {
		t.crew = &s.alone
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(t.crew.tickets) == 0 {
		line := &p.lines[t.kind]
		line.queue = append(line.queue, t.crew)
	}
	t.crew.tickets = append(t.crew.tickets, t)
	t.crew.count += count
	p.grant()
	return t
}

// more says that more changes have become ready behind a ticket.
func (p *pool) more(t *ticket, count int) {
	if count == t.count { // nobody else changes it
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.joint == nil {
		t.crew.count += count - t.count
		t.count = count
		p.grant()
	}
}

// drop gives up a ticket, whether it was granted or not, behind which no changes go
// into a call.
func (p *pool) drop(t *ticket) {
	p.mu.Lock()
	if t.joint != nil {
		p.mu.Unlock()
		t.joint.leave()
		p.give(t)
		return
	}
	defer p.mu.Unlock()
	c := t.crew
	c.tickets = slices.DeleteFunc(c.tickets, func(other *ticket) bool { return other == t })
	c.count -= t.count
	if len(c.tickets) == 0 {
		line := &p.lines[t.kind]
		line.queue = slices.DeleteFunc(line.queue, func(other *crew) bool { return other == c })
	}
	p.grant()
}

// give ends the call of a ticket. It is free for another one when all that share it
// have done so.
func (p *pool) give(t *ticket) {
	went := t.joint.result()
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.joint.holders--; t.joint.holders > 0 {
		return
	}
	p.lines[t.kind].used--
	t.crew.calls--
	if went.asked {
		p.note(went)
	}
	p.grant()
}

// note learns from how a call went.
func (p *pool) note(w went) {
	p.pace.note(w.took, w.bytes, w.down, len(p.lines[0].queue) > 0)
	p.size.Set(float64(p.pace.size))
	if wait := min(w.retryAfter, longestWait); wait > 0 {
		if until := time.Now().Add(wait); until.After(p.closed) {
			p.closed = until
		}
	}
}

// grant gives calls to whoever may have one now, and sees to it that it is called
// again when others may.
func (p *pool) grant() {
	now := time.Now()
	var next time.Time
	used, waiting := 0, 0
	for kind := range p.lines {
		line := &p.lines[kind]
		var rest []*crew
		line.queue = slices.DeleteFunc(line.queue, func(c *crew) bool {
			if line.used+c.calls >= p.pace.size {
				return false
			}
			if due := p.due(c); now.Before(due) {
				if next.IsZero() || due.Before(next) {
					next = due
				}
				return false
			}
			p.begin(c, now)
			line.used++
			if len(c.tickets) > 0 {
				rest = append(rest, c)
			}
			return true
		})
		line.queue = append(line.queue, rest...)
		used += line.used
		for _, c := range line.queue {
			waiting += len(c.tickets)
		}
	}
	if !next.IsZero() {
		p.bell.Reset(next.Sub(now))
	}
	p.calls.Set(float64(used))
	p.waiting.Set(float64(waiting))
}

// due is when a crew may have its next call: at once when there is enough for a full
// one, else when others have had time to join in.
func (p *pool) due(c *crew) time.Time {
	due := c.began.Add(between)
	switch {
	case c.count >= p.batch:
		due = time.Time{}
	case c.calls > 0:
		due = c.began.Add(max(between, p.patient()))
	}
	if due.Before(p.closed) {
		return p.closed
	}
	return due
}

// begin starts a call for those of a crew that wait, as many as it has room for.
func (p *pool) begin(c *crew, now time.Time) {
	count, n := 0, 0
	for _, t := range c.tickets {
		if count += t.count; n > 0 && count > p.batch {
			break
		}
		n++
	}
	j := newJoint(n, p.call)
	for _, t := range c.tickets[:n] {
		c.count -= t.count
		t.joint, t.among = j, n
		close(t.granted)
	}
	c.tickets = slices.Delete(c.tickets, 0, n)
	c.calls++
	c.began = now
}

// patience is how long a few changes wait for a call that is under way: half as long
// as calls take.
func (p *pool) patience() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.patient()
}

func (p *pool) patient() time.Duration {
	return min(max(time.Duration(p.pace.typical)/2, leastPatience), mostPatience)
}

// state is the size of the pool and its use.
func (p *pool) state() (size, used, waiting int, closed time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		used += line.used
		for _, c := range line.queue {
			waiting += len(c.tickets)
		}
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
