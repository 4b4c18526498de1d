package dlq

import (
	"container/heap"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
)

// index is what a post keeps in memory of each open letter of its partition: where the
// letter stands and what decides about it. The letters themselves stay in Kafka.
type index struct {
	letters map[identity]card
	topics  []origin // that the letters' records came from
	byName  map[origin]uint16
	counts  map[count]int
	oldest  uint32 // first failure of the oldest letter
	unsure  bool   // whether it is still that
}

// card is an open letter in the index: 24 bytes, and 16 of its identity.
type card struct {
	version cdc.Version
	offset  int64
	failed  uint32 // first, in seconds since 1970
	origin  uint16 // of index.topics
	class   uint8  // of sinks.Classes
	state   uint8  // of States
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
	}
	e := card{version: l.Version, offset: l.place.Offset, failed: uint32(max(l.FirstFailed.Unix(), 0)), origin: at}
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
	if e.failed < x.oldest || x.oldest == 0 {
		x.oldest = e.failed
	}
}

func (x *index) remove(id identity) {
	e, ok := x.letters[id]
	if !ok {
		return
	}
	delete(x.letters, id)
	x.counts[count{e.origin, e.class, e.state}]--
	x.unsure = x.unsure || e.failed == x.oldest
}

// since is the first failure of the oldest letter, or 0.
func (x *index) since() uint32 {
	if x.unsure {
		x.oldest, x.unsure = 0, false
		for _, e := range x.letters {
			if e.failed < x.oldest || x.oldest == 0 {
				x.oldest = e.failed
			}
		}
	}
	return x.oldest
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
