package sinks

import (
	"context"
	"time"
)

// buriers is how many dead letters of a partition are under way at a time.
const buriers = 16

// letter is what became of the attempt to bury a change.
type letter struct {
	it    *item
	err   error // the first attempt has failed; others follow
	taken bool
}

// bury begins a letter for everything that is dead. What nobody can read did not come
// to the breaker of the table with a call; while that is open it waits.
func (d *driver) bury(ctx, work context.Context, now time.Time) {
	dead := d.lane.dead
	d.lane.dead = nil
	for _, it := range dead {
		if it.broken != nil && d.table.note(now, nil, []sign{d.unreadable(it)}) {
			d.lane.dead = append(d.lane.dead, it)
			continue
		}
		d.burying++
		go d.write(ctx, work, it)
	}
}

func (d *driver) unreadable(it *item) sign { return d.table.sign(it.class, it.reason, false) }

// awaitReadable tells why a partition waits of which nothing is left but records that
// nobody can read, while its table is held. The try of the table, when it is held for
// such records, fails: it returns when it may be repeated.
func (d *driver) awaitReadable(now time.Time) (why hold, at time.Time) {
	s := d.unreadable(d.lane.dead[0])
	same := d.table.tries(now, s)
	ok, next, why := d.table.admits()
	switch {
	case ok:
		return hold{}, time.Time{}
	case !same:
		return why, time.Time{}
	}
	return why, next
}

// write hands a change to Bury, and tries again until it is taken or ctx ends.
func (d *driver) write(ctx, work context.Context, it *item) {
	d.buriers <- struct{}{}
	defer func() { <-d.buriers }()
	wait := pause{min: d.Config.HoldMin, max: d.Config.HoldMax}
	for first := true; ; first = false {
		err := d.Bury(work, it.refusal())
		if err == nil {
			d.letters <- letter{it: it, taken: true}
			return
		}
		if first {
			d.letters <- letter{it: it, err: err}
		}
		if !wait.sleep(ctx) {
			d.letters <- letter{it: it}
			return
		}
	}
}

// letter takes in what became of a letter. While Kafka refuses one, the partition
// waits: more of them would only pile up.
func (d *driver) letter(l letter) {
	if l.err != nil {
		d.failing++
		d.failure = l.err.Error()
		l.it.unburied = true
		return
	}
	d.burying--
	if l.it.unburied {
		d.failing--
		l.it.unburied = false
	}
	if l.taken {
		d.lane.buried(l.it)
		d.announce(l.it)
	}
}

// announce puts the first dead letter of a table and class into the log; the
// counter tells of the others.
func (d *driver) announce(it *item) {
	table := d.lane.topic
	if it.broken == nil {
		table = it.change.Table.String()
	}
	if _, said := d.announced.LoadOrStore(table+"\x00"+string(it.class), true); !said {
		d.log.Warn("dead letter; more of this table and class are only counted", "table", table, "class", string(it.class), "offset", it.record.Offset, "see", "lockstep dlq list")
	}
}
