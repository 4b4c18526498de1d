package sinks

import (
	"context"
	"sync"
)

// Memory bounds the bytes of the changes that the workers of a process hold: fetched,
// in a call, or waiting for a retry.
//
// A partition may read on while it holds no more than what is free. So one that is
// alone gets half of the limit, n busy ones the n-th part of it, about, and there is
// always something left for one that has had nothing to do. One that holds nothing may
// always read: what others hold never stops it. A fetch is as large as it is, so the
// limit can be passed by one fetch for each partition.
type Memory struct {
	mu    sync.Mutex
	limit int
	used  int
	freed chan struct{} // closed when something was given back; nil when nobody waits
}

// NewMemory makes one of so many bytes.
func NewMemory(limit int) *Memory { return &Memory{limit: limit} }

// share is what one partition holds of a Memory.
type share struct {
	*Memory
	held  int
	gauge func(delta float64)
}

// wait returns when the partition may read on, or with false when ctx ends.
func (s *share) wait(ctx context.Context) bool {
	for {
		s.mu.Lock()
		if s.held == 0 || s.held <= s.limit-s.used {
			s.mu.Unlock()
			return ctx.Err() == nil
		}
		if s.freed == nil {
			s.freed = make(chan struct{})
		}
		freed := s.freed
		s.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return false
		}
	}
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
func (s *share) close() { s.add(-s.held) }
