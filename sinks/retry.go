package sinks

import (
	"bytes"
	"container/heap"
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
	record kafka.Record
	change cdc.Change
	broken error // why the record could not be decoded; nil if it could
	row    rowKey
	book   *account

	refusals    int // by the store, so far
	firstFailed time.Time
	lastFailed  time.Time
	class       Class
	reason      string

	due     time.Time // of the next retry
	index   int       // in the heap
	counted int       // of its bytes, in the queue
}

// size is what the item counts against a byte budget: the record and the images
// decoded from it.
func (it *item) size() int {
	return it.record.Size() + len(it.change.Before) + len(it.change.After) + it.left()
}

// load is about what the item adds to a call of the store.
func (it *item) load() int {
	return len(it.change.Key) + len(it.change.After) + it.left()
}

func (it *item) left() int {
	n := 0
	for _, image := range it.change.Left {
		n += len(image)
	}
	return n
}

// detached is a copy that does not keep the fetch alive which it came with.
func (it *item) detached() *item {
	c := *it
	c.record.Key = bytes.Clone(it.record.Key)
	c.record.Value = bytes.Clone(it.record.Value)
	c.record.Headers = make([]cdc.Header, len(it.record.Headers))
	for i, h := range it.record.Headers {
		c.record.Headers[i] = cdc.Header{Key: h.Key, Value: bytes.Clone(h.Value)}
	}
	c.change.Key = c.record.Key
	c.change.Before = bytes.Clone(it.change.Before)
	c.change.After = bytes.Clone(it.change.After)
	c.change.Left = nil
	for _, image := range it.change.Left {
		c.change.Left = append(c.change.Left, bytes.Clone(image))
	}
	return &c
}

// retryQueue holds the changes of a partition that wait for another attempt: at
// most one per row, its newest.
type retryQueue struct {
	byRow map[rowKey]*item
	heap  dueHeap
	bytes int
}

func (q *retryQueue) add(it *item) {
	it = it.detached()
	q.byRow[it.row] = it
	it.counted = it.size()
	q.bytes += it.counted
	heap.Push(&q.heap, it)
}

func (q *retryQueue) remove(it *item) {
	delete(q.byRow, it.row)
	q.bytes -= it.counted
	heap.Remove(&q.heap, it.index)
}

// takeDue removes and returns what is due, the earliest first.
func (q *retryQueue) takeDue(now time.Time) []*item {
	var due []*item
	for len(q.heap) > 0 && !q.heap[0].due.After(now) {
		it := q.heap[0]
		q.remove(it)
		due = append(due, it)
	}
	return due
}

type dueHeap []*item

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	it := x.(*item)
	it.index = len(*h)
	*h = append(*h, it)
}

func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return it
}

// pause is a wait that doubles.
type pause struct {
	min, max time.Duration
	next     time.Duration
}

func (p *pause) reset() { p.next = 0 }

// sleep waits, and reports false when ctx ended first.
func (p *pause) sleep(ctx context.Context) bool {
	p.next = min(max(2*p.next, p.min), p.max)
	timer := time.NewTimer(p.next)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
