package sinks

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
)

// Partition is a partition of a topic that this worker owns for the time of one
// RunPartition.
type Partition interface {
	// Name gives the topic and the number of the partition.
	Name() (topic string, id int)
	// Fetch waits for the next records, in the order of their offsets, and
	// returns none when nothing came for a while. Its answer has at most so many
	// bytes, as stored in Kafka, or is one batch. It tries again by itself what may
	// pass: an error of Fetch ends the partition's run.
	Fetch(ctx context.Context, most int) ([]kafka.Record, error)
	// Commit stores next as the offset to begin with after a restart.
	Commit(ctx context.Context, next int64) error
}

// Worker feeds one sink. All its fields but Settled, Moved, Filter, Moves and Memory must be set;
// they are not to be changed once a partition runs.
type Worker struct {
	Name string // of the sink
	Sink Sink
	// Bury stores a dead letter. When it returns nil the letter is safe; until
	// then the partition waits. It is called from several goroutines.
	Bury func(ctx context.Context, r Refusal) error
	// Settled, if set, is told of every change that the store has, or of whose row it has
	// a newer one, of every barrier when it is met, and of a growth when all before it is
	// committed. It is told before the offset may be committed, by the goroutines of the
	// partitions, and must not wait; and once more when an older change of the row has been
	// buried since.
	Settled func(partition int, c *cdc.Change, v Verdict)
	// Traced, if set, is told what became of every traced change, as lockstep_sink_changes_total calls
	// it, and when it was fetched. It must not wait, nor keep the change.
	Traced func(c *cdc.Change, fetched, settled time.Time, outcome string)
	// Progress gives for each partition of a topic the offset after its last record
	// and the one that the sink's group has committed. A barrier is swept for when
	// all partitions have passed it.
	Progress func(ctx context.Context, topic string) (ends, committed map[int]int64, err error)
	// Moved, if set, is told when Shown has changed for a partition, and when one has to wait
	// or goes on, by their goroutines. It must not wait.
	Moved func()
	// Filter reports whether the sink takes a table; nil takes every table.
	Filter func(cdc.TableName) bool
	// Moves reports whether the place of a table's rows in the store depends on more
	// than their key. Its changes then carry in Left what the changes had before them
	// that they stand for; nil is for a store where no table's does.
	Moves func(cdc.TableName) bool
	// Memory bounds the bytes that all workers of a process hold; nil is for a worker
	// that shares Config.MemoryBytes with no other.
	Memory *Memory
	// Clock says what the source's clock shows at a time of this machine's, by which ages
	// since a commit are measured; nil is for clocks that show the same.
	Clock   func(time.Time) time.Time
	Log     *slog.Logger
	Metrics *Metrics
	Config  Config

	once      sync.Once
	breaker   *breaker
	pool      *pool
	newest    highest
	reach     reach
	holding   holding
	announced sync.Map // table and class of the dead letters that the log has told of

	mu     sync.Mutex
	tables map[string]*tableBreaker // by topic
	sweeps map[*item]*SweepStatus
}

// holding counts the partitions that wait, so that the log says once that a sink
// is held and once that it goes on.
type holding struct {
	mu    sync.Mutex
	count int
	since time.Time
}

// add notes that n more partitions wait, and reports whether they are the first to
// wait or the last to go on, and since when the first one waited.
func (h *holding) add(n int) (edge bool, since time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.count
	h.count += n
	if before == 0 {
		h.since = time.Now()
	}
	return before == 0 || h.count == 0, h.since
}

// RunPartition applies the records of p until ctx ends, and then returns nil. It
// returns an error when the partition cannot go on.
//
// Several calls of the store may be under way, and they may end in any order: the
// store's guard keeps what is newer. The committed offset is never ahead of what is
// settled: applied, stale, duplicate, filtered, superseded by a newer change of the
// row or by a barrier of its table, or buried; a barrier of partition 0 is settled
// when the store is swept. When ctx ends calls that are under way may finish within
// Config.StopWithin and their changes are committed; changes that wait for a store that
// is unavailable are given back: whoever owns the partition next reads them again.
func (w *Worker) RunPartition(ctx context.Context, p Partition) error {
	w.start()
	d := w.newDriver(p)
	defer d.leave()

	ctx, stop := context.WithCancel(ctx) // ends with the run too, and a sweep with it
	defer stop()
	work, release := linger(ctx, w.Config.StopWithin)
	defer release()
	fetched := make(chan []*item) // no buffer: one answer of Kafka waits at most
	var fetchErr error
	var fetcher sync.WaitGroup
	fetcher.Go(func() {
		defer close(fetched)
		fetchErr = d.fetch(ctx, fetched)
	})

	err := d.run(ctx, work, fetched)
	stop()
	fetcher.Wait()
	err = errors.Join(err, d.drain(ctx, work))
	d.lastCommit(work)
	return errors.Join(err, fetchErr)
}

// start makes what the partitions share.
func (w *Worker) start() {
	w.once.Do(func() {
		w.Metrics.Declare(w.Name, nil)
		w.breaker = newBreaker(w.Name, w.Config, w.Log, w.Metrics)
		w.pool = newPool(w.Name, w.Config, w.Metrics, w.call)
		w.tables = make(map[string]*tableBreaker)
		w.sweeps = make(map[*item]*SweepStatus)
		if w.Clock == nil {
			w.Clock = func(t time.Time) time.Time { return t }
		}
		if w.Memory == nil {
			w.Memory = NewMemory(w.Config.MemoryBytes)
		}
	})
}

// linger returns a context that outlives ctx by d.
func linger(ctx context.Context, d time.Duration) (context.Context, func()) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-work.Done():
		}
	})
	return work, func() {
		stop()
		cancel()
	}
}
