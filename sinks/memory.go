package sinks

import (
	"context"
	"sync"
)

const (
	// leastFetch is how much a partition may fetch however many there are.
	leastFetch = 64 << 10
	// enough is what a fetch should become at most: some calls' worth. More would only
	// lie about.
	enough = 4 << 20
	// swelling is how many times as large as in Kafka records are thought to be before
	// any were seen: they are compressed there, and each has structs of its own here.
	swelling = 16
)

// Memory bounds the bytes of the changes that the workers of a process hold: fetched,
// or in a call.
//
// A partition may read on while it holds no more than what is free. So one that is
// alone gets half of the limit, n busy ones the n-th part of it, about, and there is
// always something left for one that has had nothing to do. One that holds nothing may
// always read: what others hold never stops it. A fetch is as large as it turns out to
// be, so each asks for its part of half the limit, or for what is enough: if all do so in the same moment,
// the limit is passed by that half.
type Memory struct {
	mu     sync.Mutex
	limit  int
	used   int
	shares int
	freed  chan struct{} // closed when something was given back; nil when nobody waits
}

// NewMemory makes one of so many bytes.
func NewMemory(limit int) *Memory { return &Memory{limit: limit} }

// share opens the share of a partition; it must be closed.
func (m *Memory) share(gauge func(delta float64)) *share {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shares++
	return &share{Memory: m, gauge: gauge, swelling: swelling}
}

// share is what one partition holds of a Memory.
type share struct {
	*Memory
	held     int
	gauge    func(delta float64)
	swelling float64 // how many bytes one byte that was asked for has become at most, lately
}

// wait returns when the partition may read on, and how many bytes of Kafka's it should
// ask for, or false when ctx ends.
func (s *share) wait(ctx context.Context) (most int, ok bool) {
	for {
		s.mu.Lock()
		if s.held == 0 || s.held <= s.limit-s.used {
			most = max(int(float64(min(s.limit/(2*s.shares), enough))/s.swelling), leastFetch)
			s.mu.Unlock()
			return most, ctx.Err() == nil
		}
		if s.freed == nil {
			s.freed = make(chan struct{})
		}
		freed := s.freed
		s.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return 0, false
		}
	}
}

// fetched notes that a fetch of at most so many bytes has become n.
func (s *share) fetched(n, most int) {
	s.mu.Lock()
	s.swelling = max(s.swelling*.99, float64(n)/float64(most), 1)
	s.mu.Unlock()
	s.add(n)
}

// add notes that the partition holds n bytes more, or less.
func (s *share) add(n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held += n
	s.used += n
	s.gauge(float64(n))
	if n < 0 && s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
}

// close gives back everything.
func (s *share) close() {
	s.add(-s.held)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shares--
}
