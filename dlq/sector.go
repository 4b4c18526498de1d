package dlq

import (
	"bytes"
	"cmp"
	"slices"

	"lockstep/cdc"
)

// sector is what a job has of the letters of one partition: those of its scope, in the
// order in which they stood when it began, and what has become of each since. It costs
// 44 bytes for each, and while it is made some 60 for each open letter there.
type sector struct {
	sink      string
	partition int
	end       int64 // of the scope
	next      int64 // where the topic is read on

	takes func(*Letter) bool
	open  map[identity]found // until it is sealed: the letters before the end
	slots []slot             // then
	byID  []int32            // slots in the order of their identities
	known map[int32]decided  // of those that are not begun
	begun int                // of slots: those handed out, or counted before
}

// slot is a letter of a job.
type slot struct {
	id      identity
	version cdc.Version
	order   int64 // where it stood when the job began
	offset  int64 // where it stands now
}

// decided is what became of a letter; the zero value is that nobody knows yet.
type decided struct {
	fate   Fate
	reason string // why it stays
}

// found is an open letter while a sector is made.
type found struct {
	version cdc.Version
	offset  int64
	wanted  bool
}

// item is a letter of a job that is under way.
type item struct {
	slot
	decided
}

func newSector(sink string, partition int, end int64, takes func(*Letter) bool) *sector {
	return &sector{sink: sink, partition: partition, end: end, takes: takes, open: map[identity]found{}}
}

// read takes the next record of the topic in.
func (s *sector) read(l *Letter) {
	s.next = l.place.Offset + 1
	if l.place.Offset >= s.end {
		s.seal()
		if i, ok := s.find(l.identity()); ok && int(i) >= s.begun {
			it := item{s.slots[i], s.known[i]}
			it.news(l)
			s.slots[i] = it.slot
			if it.fate != "" {
				s.known[i] = it.decided
			}
		}
		return
	}
	id := l.identity()
	switch f, known := s.open[id]; {
	case known && f.version > l.Version: // what an older writer had to say
	case !l.State.Open():
		delete(s.open, id)
	default:
		s.open[id] = found{l.Version, l.place.Offset, s.takes(l)}
	}
}

// seal ends the scope: what is read from now on is news of its letters.
func (s *sector) seal() {
	if s.open == nil {
		return
	}
	for id, f := range s.open {
		if f.wanted {
			s.slots = append(s.slots, slot{id, f.version, f.offset, f.offset})
		}
	}
	s.open, s.known = nil, map[int32]decided{}
	slices.SortFunc(s.slots, func(a, b slot) int { return cmp.Compare(a.order, b.order) })
	s.byID = make([]int32, len(s.slots))
	for i := range s.byID {
		s.byID[i] = int32(i)
	}
	slices.SortFunc(s.byID, func(a, b int32) int { return compareIDs(s.slots[a].id, s.slots[b].id) })
}

func compareIDs(a, b identity) int { return bytes.Compare(a[:], b[:]) }

func (s *sector) find(id identity) (slot int32, ok bool) {
	n, ok := slices.BinarySearchFunc(s.byID, id, func(i int32, id identity) int { return compareIDs(s.slots[i].id, id) })
	if ok {
		slot = s.byID[n]
	}
	return slot, ok
}

// news takes in what the topic says of the letter after the job has begun: that it has
// ended, or that a newer change of its row was refused; then it is none of the job's any
// more. The same change that was refused again is still the letter.
func (it *item) news(l *Letter) {
	switch {
	case it.fate != "" || l.Version < it.version:
	case l.State == Moved: // it is open still, where its row changes now
		it.fate, it.reason = FateStays, "it was moved to another partition while it was to be replayed; replay it once more"
	case !l.State.Open():
		it.fate = FateClosed
	case l.Version > it.version:
		it.fate, it.reason = FateStays, l.Reason
	default:
		it.offset = l.place.Offset
	}
}

// skip leaves out what stands before an offset: it is counted already.
func (s *sector) skip(before int64) {
	for s.begun < len(s.slots) && s.slots[s.begun].order < before {
		s.begun++
	}
}

// take hands out the next letters.
func (s *sector) take(most int) (items []item) {
	for ; s.begun < len(s.slots) && len(items) < most; s.begun++ {
		items = append(items, item{s.slots[s.begun], s.known[int32(s.begun)]})
		delete(s.known, int32(s.begun))
	}
	return items
}

func (s *sector) left() int { return len(s.slots) - s.begun }
