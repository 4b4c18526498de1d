package dlq

import (
	"container/heap"
	"strings"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// index is what a post keeps in memory of each open letter of its partition: where the
// letter stands and what decides about it. The letters themselves stay in Kafka.
type index struct {
	letters map[identity]card
	topics  []origin // that the letters' records came from
	byName  map[origin]uint16
	counts  map[count]int
	extents []extent // by origin
	unsure  bool     // whether they are still the oldest
}

// extent says how old the letters of an origin are, in seconds since 1970.
type extent struct {
	letters     int
	failed      uint32 // first failure of the letter for which that is longest ago
	undelivered uint32 // commit time of the oldest change that the store lacks
	blind       int    // letters of which nobody knows that
}

func (x *extent) add(e card) {
	if x.letters++; x.letters == 1 || e.failed < x.failed {
		x.failed = e.failed
	}
	switch {
	case e.undelivered == 0:
		x.blind++
	case x.letters-x.blind == 1 || e.undelivered < x.undelivered:
		x.undelivered = e.undelivered
	}
}

// card is an open letter in the index: 32 bytes, and 16 of its identity.
type card struct {
	version     cdc.Version
	offset      int64
	failed      uint32        // first, in seconds since 1970
	undelivered uint32        // commit time of the oldest change of the row that the store lacks, likewise; 0 when nobody knows
	key         kafka.KeyHash // of the refused record
	origin      uint16        // of index.topics
	class       uint8         // of sinks.Classes
	state       uint8         // of States
}

// origin is the topic and the table of a refused record.
type origin struct{ topic, table string }

// count names letters that are counted together.
type count struct {
	origin       uint16
	class, state uint8
}

func newIndex() *index {
	return &index{letters: make(map[identity]card), byName: make(map[origin]uint16), counts: make(map[count]int)}
}

func (x *index) put(id identity, l *Letter) {
	x.remove(id)
	from := origin{l.Source.Topic, l.Table}
	at, known := x.byName[from]
	if !known {
		if len(x.topics) > 1<<16-2 { // more tables than a pipeline has: the rest share one place
			from = origin{}
		}
		at = uint16(len(x.topics))
		x.topics, x.byName[from] = append(x.topics, from), at
		x.extents = append(x.extents, extent{})
	}
	e := card{
		version: l.Version, offset: l.place.Offset, origin: at, key: kafka.HashKey(l.recordKey),
		failed: uint32(max(l.FirstFailed.Unix(), 0)), undelivered: uint32(max(l.Undelivered.Unix(), 0)),
	}
	for i, c := range sinks.Classes {
		if c == l.Class {
			e.class = uint8(i)
		}
	}
	for i, s := range States {
		if s == l.State {
			e.state = uint8(i)
		}
	}
	x.letters[id] = e
	x.counts[count{e.origin, e.class, e.state}]++
	x.extents[at].add(e)
}

func (x *index) remove(id identity) {
	e, ok := x.letters[id]
	if !ok {
		return
	}
	delete(x.letters, id)
	x.counts[count{e.origin, e.class, e.state}]--
	of := &x.extents[e.origin]
	if of.letters--; e.undelivered == 0 {
		of.blind--
	}
	x.unsure = x.unsure || e.failed == of.failed || e.undelivered == of.undelivered
}

// ages gives the extents, by origin.
func (x *index) ages() []extent {
	if x.unsure {
		clear(x.extents)
		for _, e := range x.letters {
			x.extents[e.origin].add(e)
		}
		x.unsure = false
	}
	return x.extents
}

// label is the table of the letters of an origin; of records that nobody can read the end of
// their topic's name.
func (o origin) label() string {
	if parts := strings.Split(o.topic, "."); o.table == "" && len(parts) > 2 {
		return strings.Join(parts[len(parts)-2:], ".")
	}
	return o.table
}

func (e card) is(s State) bool { return States[e.state] == s }

// attempt is a letter that is to be tried again.
type attempt struct {
	at     time.Time
	id     identity
	offset int64 // of the letter; it is another one when it was written anew
}

// attempts are in the order of their times.
type attempts []attempt

func (a attempts) Len() int           { return len(a) }
func (a attempts) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a attempts) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *attempts) Push(x any)        { *a = append(*a, x.(attempt)) }
func (a *attempts) Pop() any {
	last := len(*a) - 1
	x := (*a)[last]
	*a = (*a)[:last]
	return x
}

func (a *attempts) add(x attempt) { heap.Push(a, x) }
func (a *attempts) next() attempt { return heap.Pop(a).(attempt) }
