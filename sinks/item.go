package sinks

import (
	"context"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
)

// rowKey names a row of the source.
type rowKey struct {
	table cdc.TableName
	key   string
}

// item is one record on its way through a worker.
type item struct {
	record  kafka.Record
	change  cdc.Change
	broken  error // why the record could not be decoded; nil if it could
	row     rowKey
	book    *account
	earlier int64 // the highest commit time in the partition before this one, or its own
	counted int   // bytes that it holds

	place      place
	prev, next *item     // among what the offset waits for
	standsFor  *item     // the oldest change of its row, settled, that the offset waits for until this one is
	shows      *mark     // the oldest record whose row is as new as that only once this one is settled
	since      time.Time // when it became ready
	at         int       // its place in what is ready
	probes     int       // how often it was sent to try whether a breaker may close

	came      time.Time // when it was fetched
	failed    time.Time // when the store refused it
	transient bool      // for a reason that may pass
	class     Class
	reason    string
	unburied  bool // its letter was refused at the first attempt
}

// mark stands for a record in what the store does not show yet. A record is settled when
// a newer one of its row has come; the store shows it, or something newer, when that one is
// settled.
type mark struct {
	offset     int64
	prev, next *mark
}

// place is where a change stands.
type place uint8

const (
	fresh    place = iota // not taken in yet
	ready                 // it may go into the next call
	behind                // an older change of its row is in a call
	calling               // it is in a call
	dead                  // a dead letter of it is being written
	sweeping              // it is a barrier, and the store is to be swept
	settled
)

// itemBytes is what an item weighs besides the text of its record: it and the structs of
// its headers. Of small rows that is the most.
const itemBytes = 1 << 10

// decode reads the records of a fetch.
func decode(records []kafka.Record) (items []*item, bytes int) {
	items = make([]*item, len(records))
	for i, r := range records {
		it := &item{record: r} // one by one: one that waits must not keep the others in memory
		if it.change, it.broken = cdc.Decode(r.Key, r.Value, r.Headers); it.broken == nil {
			it.row = rowKey{it.change.Table, cdc.View(it.change.Key)}
		}
		it.counted = r.Size() + itemBytes
		bytes += it.counted
		items[i] = it
	}
	return items, bytes
}

// load is about what the item adds to a call of the store.
func (it *item) load() int {
	n := len(it.change.Key) + len(it.change.After)
	for _, image := range it.change.Left {
		n += len(image)
	}
	return n
}

// refuse notes that the store, or the decoder, has refused it.
func (it *item) refuse(now time.Time, out Outcome) {
	it.failed, it.transient = now, out.Verdict == Transient
	it.class, it.reason = known(out.Class), out.Reason
}

func (it *item) refusal() Refusal {
	r := Refusal{
		Record:    it.record,
		Class:     it.class,
		Reason:    it.reason,
		Transient: it.transient,
		Failed:    it.failed,
	}
	if it.broken == nil {
		r.Change = &it.change
	}
	return r
}

// line is what is ready, in the order in which it goes to the store; a change may
// take another one's place in it.
type line struct {
	items []*item // nil where one was taken out
	base  int     // the place of the first
	count int
	bytes int // of load
}

func (q *line) push(it *item) {
	it.at = q.base + len(q.items)
	q.items = append(q.items, it)
	q.count++
	q.bytes += it.load()
}

func (q *line) unshift(items []*item) {
	if len(items) == 0 {
		return
	}
	q.base -= len(items)
	q.items = append(items, q.items...)
	for i, it := range items {
		it.at = q.base + i
		q.bytes += it.load()
	}
	q.count += len(items)
}

// replace puts it in the place of one that had such a load.
func (q *line) replace(old *item, load int, it *item) {
	it.at = old.at
	q.items[it.at-q.base] = it
	q.bytes += it.load() - load
}

func (q *line) remove(it *item) {
	q.items[it.at-q.base] = nil
	q.count--
	q.bytes -= it.load()
}

// oldest is the first one, or nil.
func (q *line) oldest() *item {
	for len(q.items) > 0 && q.items[0] == nil {
		q.items = q.items[1:]
		q.base++
	}
	if len(q.items) == 0 {
		return nil
	}
	return q.items[0]
}

// least is the first one that is less than no other.
func (q *line) least(less func(a, b *item) bool) *item {
	var least *item
	for _, it := range q.items {
		if it != nil && (least == nil || less(it, least)) {
			least = it
		}
	}
	return least
}

// pause is a wait that doubles.
type pause struct {
	min, max time.Duration
	next     time.Duration
}

func (p *pause) reset() { p.next = 0 }

// more is the next wait.
func (p *pause) more() time.Duration {
	p.next = min(max(2*p.next, p.min), p.max)
	return p.next
}

// sleep waits, and reports false when ctx ended first.
func (p *pause) sleep(ctx context.Context) bool {
	timer := time.NewTimer(p.more())
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
