package sinks

import (
	"sync"
	"time"

	"lockstep/cdc"
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
	byName map[partitionName]*driver
	newest int64 // settled by any partition
}

// partitionName names a partition.
type partitionName struct {
	topic string
	id    int
}

// bound is how far one partition is.
type bound struct {
	micros int64 // all that was committed before is settled; 0 for unknown
	behind bool  // there is more, or may be
	heard  time.Time
	to     int64 // lane.shownTo
	void   cdc.Version
}

// silence is how long after the last answer of Kafka a partition counts as one that may
// have more. While Kafka answers it does so several times a second.
const silence = 30 * time.Second

func (r *reach) set(d *driver, b bound) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of, r.byName = make(map[*driver]bound), make(map[partitionName]*driver)
	}
	r.of[d], r.byName[d.name()] = b, d
	r.newest = max(r.newest, b.micros)
}

func (r *reach) drop(d *driver) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.of, d)
	if at := d.name(); r.byName[at] == d {
		delete(r.byName, at)
	}
}

func (d *driver) name() partitionName { return partitionName{d.lane.topic, d.lane.id} }

// Shown is what the store of a sink shows of one partition.
type Shown struct {
	// Before is the offset before which the store has every record, or a newer one of its
	// row, or it is a dead letter or not for the store. It is negative while no record was
	// read: nothing is known then of records that an earlier owner has read.
	Before int64
	// Void is the version of the newest barrier that was met; 0 for none. Of a row that it has
	// taken away the store may show an older state until it is swept.
	Void cdc.Version
}

// Shown tells what the store shows of a partition. It is not ok when this process does not
// run it.
func (w *Worker) Shown(topic string, id int) (s Shown, ok bool) {
	w.reach.mu.Lock()
	defer w.reach.mu.Unlock()
	d := w.reach.byName[partitionName{topic, id}]
	b := w.reach.of[d]
	return Shown{b.to, b.void}, d != nil
}

// upTo is in microseconds since 1970; 0 when it is not known. With a topic it is of its
// partitions alone.
func (r *reach) upTo(now time.Time, topic string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	oldest := r.newest
	for d, b := range r.of {
		if topic != "" && d.lane.topic != topic {
			continue
		}
		if b.behind || now.Sub(b.heard) > silence {
			oldest = min(oldest, b.micros)
		}
	}
	return oldest
}
