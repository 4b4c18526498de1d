package sinks

import (
	"sync"
	"time"
)

// reach is up to when all that was committed in the source is applied, or settled
// otherwise, as far as this process can tell.
//
// A partition with changes that are not settled, or that may have more in Kafka than was
// read, holds it at the commit time before the oldest of them. One that has come to its end
// in Kafka does not: when the others are idle too, the newest commit time of any counts.
// What the capture has not published yet nobody knows here.
type reach struct {
	mu     sync.Mutex
	of     map[*driver]bound
	newest int64 // settled by any partition
}

// bound is how far one partition is.
type bound struct {
	micros int64 // all that was committed before is settled; 0 for unknown
	behind bool  // there is more, or may be
	heard  time.Time
}

// silence is how long after the last answer of Kafka a partition counts as one that may
// have more. While Kafka answers it does so several times a second.
const silence = 30 * time.Second

func (r *reach) set(d *driver, b bound) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = make(map[*driver]bound)
	}
	r.of[d] = b
	r.newest = max(r.newest, b.micros)
}

func (r *reach) drop(d *driver) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.of, d)
}

// upTo is in microseconds since 1970; 0 when it is not known.
func (r *reach) upTo(now time.Time) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest := r.newest
	for _, b := range r.of {
		if b.behind || now.Sub(b.heard) > silence {
			oldest = min(oldest, b.micros)
		}
	}
	return oldest
}
