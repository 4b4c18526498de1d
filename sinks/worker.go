package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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
	// returns none when nothing came for a while. It bounds the bytes of its
	// answer, and tries again by itself what may pass: an error of Fetch ends the
	// partition's run.
	Fetch(ctx context.Context) ([]kafka.Record, error)
	// Commit stores next as the offset to begin with after a restart.
	Commit(ctx context.Context, next int64) error
}

// Worker feeds one sink. All its fields but Filter must be set; they are not to
// be changed once a partition runs.
type Worker struct {
	Name string // of the sink
	Sink Sink
	// Bury stores a dead letter. When it returns nil the letter is safe; until
	// then the partition waits. It is called from several goroutines.
	Bury func(ctx context.Context, r Refusal) error
	// Progress gives for each partition of a topic the offset after its last record
	// and the one that the sink's group has committed. A barrier is swept for when
	// all partitions have passed it.
	Progress func(ctx context.Context, topic string) (ends, committed map[int]int64, err error)
	// Filter reports whether the sink takes a table; nil takes every table.
	Filter  func(cdc.TableName) bool
	Log     *slog.Logger
	Metrics *Metrics
	Config  Config

	once      sync.Once
	breaker   *breaker
	newest    highest
	holding   holding
	announced sync.Map // table and class of the dead letters that the log has told of
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

// buriers is how many dead letters of a partition are under way at a time.
const buriers = 16

// RunPartition applies the records of p until ctx ends, and then returns nil. It
// returns an error when the partition cannot go on.
//
// The committed offset is never ahead of what is settled: applied, stale,
// duplicate, filtered, superseded by a newer change of the row or by a barrier of
// its table, or buried; a barrier of partition 0 is settled when the store is swept. When
// ctx ends a call that is under way may finish within Config.StopWithin and its
// changes are committed; changes that wait for a retry, or for a store that is
// unavailable, are given back: whoever owns the partition next reads them again.
func (w *Worker) RunPartition(ctx context.Context, p Partition) error {
	w.once.Do(func() {
		w.Metrics.Declare(w.Name, nil)
		w.breaker = newBreaker(w.Name, w.Config, w.Log, w.Metrics.breaker.WithLabelValues(w.Name))
	})
	l := newLane(w, p)

	ctx, stop := context.WithCancel(ctx) // ends with the run too, and a sweep with it
	defer stop()
	work, release := linger(ctx, w.Config.StopWithin)
	defer release()
	fetched := make(chan []*item)
	var fetchErr error
	var fetcher sync.WaitGroup
	fetcher.Go(func() {
		defer close(fetched)
		fetchErr = l.fetch(ctx, fetched)
	})

	err := l.run(ctx, work, fetched)
	stop()
	fetcher.Wait()
	l.leave(work)
	return errors.Join(err, fetchErr)
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

// lane is a worker's view of one partition. All of it but fetch belongs to one
// goroutine.
type lane struct {
	*Worker
	part  Partition
	topic string
	id    int
	log   *slog.Logger

	queue retryQueue
	books map[cdc.TableName]*account
	limit int // changes in the next call: shrinks under pressure, grows back
	pause pause
	held  bool // the partition waits

	barriers map[cdc.TableName]cdc.Version // the newest that was met
	sweeps   []*item                       // barriers for which the store is not swept yet
	sweeping *item                         // the one of sweeps that is being swept for
	swept    chan bool                     // how that ended

	next        int64   // offset behind the last record taken in; -1 before the first
	left        []*item // taken in but not settled when told to stop
	counted     int     // retries of this lane inside the gauge of all lanes
	committed   int64
	commitAfter time.Time
	commitFails int // in a row
}

func newLane(w *Worker, p Partition) *lane {
	topic, id := p.Name()
	return &lane{
		Worker:    w,
		part:      p,
		topic:     topic,
		id:        id,
		log:       w.Log.With("sink", w.Name, "topic", topic, "partition", id),
		queue:     retryQueue{byRow: make(map[rowKey]*item)},
		books:     make(map[cdc.TableName]*account),
		limit:     w.Config.BatchChanges,
		pause:     pause{min: w.Config.HoldMin, max: w.Config.HoldMax},
		barriers:  make(map[cdc.TableName]cdc.Version),
		swept:     make(chan bool, 1),
		next:      -1,
		committed: -1,
	}
}

// fetch decodes the next records while the current ones are applied. The channel
// has no buffer, so at most one answer of the broker waits in it.
func (l *lane) fetch(ctx context.Context, out chan<- []*item) error {
	for {
		records, err := l.part.Fetch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("sink %s: fetch %s/%d: %w", l.Name, l.topic, l.id, err)
		}
		if len(records) == 0 {
			continue
		}
		select {
		case out <- decode(records):
		case <-ctx.Done():
			return nil
		}
	}
}

func decode(records []kafka.Record) []*item {
	items := make([]item, len(records))
	pointers := make([]*item, len(records))
	for i, r := range records {
		it := &items[i]
		pointers[i] = it
		it.record = r
		if it.change, it.broken = cdc.Decode(r.Key, r.Value, r.Headers); it.broken == nil {
			it.row = rowKey{it.change.Table, string(it.change.Key)}
		}
	}
	return pointers
}

// run makes one lap for each fetch, and one whenever a retry or a commit is due.
func (l *lane) run(ctx, work context.Context, fetched <-chan []*item) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		in := fetched
		if l.queue.bytes >= l.Config.RetryBytes {
			in = nil // read on when the retries have drained
		}
		var wake <-chan time.Time
		if at := l.wakeAt(); !at.IsZero() {
			timer.Reset(time.Until(at))
			wake = timer.C
		}
		var fresh []*item
		select {
		case <-ctx.Done():
			return nil
		case items, ok := <-in:
			if !ok {
				return nil // fetch ended and says why
			}
			fresh = items
		case <-wake:
		case done := <-l.swept:
			l.endSweep(done)
		}
		if err := l.lap(ctx, work, fresh); err != nil {
			return err
		}
	}
	return nil
}

// wakeAt is when something is to be done even if no record comes; zero for never.
func (l *lane) wakeAt() time.Time {
	var at time.Time
	if len(l.queue.heap) > 0 {
		at = l.queue.heap[0].due
	}
	if l.settledTo() > l.committed && (at.IsZero() || l.commitAfter.Before(at)) {
		at = l.commitAfter
	}
	return at
}

// lap brings fresh records, and the retries that are due, to an end each: settled,
// queued for a retry, or in l.left when ctx ended before.
func (l *lane) lap(ctx, work context.Context, fresh []*item) error {
	pending := l.queue.takeDue(time.Now())
	pending, dead := l.sift(pending, fresh)
	l.bury(ctx, work, dead)
	err := l.drain(ctx, work, pending)
	l.countRetrying()
	l.startSweep(ctx)
	if !time.Now().Before(l.commitAfter) {
		l.commit(work)
	}
	return err
}

// sift takes fresh records in and leaves, of each row, the newest change that is
// known: of the fresh ones, those due for a retry, and those still waiting for
// it. What a barrier has made void is left out. The other result is what nobody can
// read.
func (l *lane) sift(due, fresh []*item) (pending, dead []*item) {
	pending = due
	newest := make(map[rowKey]int, len(due)+len(fresh))
	for i, it := range due {
		newest[it.row] = i
	}
	for _, it := range fresh {
		it.book = l.book(it)
		it.book.received.Inc()
		if l.next < 0 {
			l.committed = it.record.Offset
		}
		l.next = it.record.Offset + 1
		switch {
		case it.broken != nil:
			it.refuse(Outcome{Verdict: Poison, Class: ClassUndecodable, Reason: it.broken.Error()})
			dead = append(dead, it)
			continue
		case l.Filter != nil && !l.Filter(it.change.Table):
			it.settle(outcomeFiltered)
			continue
		case it.change.Op == cdc.OpBarrier:
			l.barrier(it)
			continue
		}
		if waiting, ok := l.queue.byRow[it.row]; ok {
			if !it.outranks(waiting) {
				continue
			}
			l.queue.remove(waiting)
		}
		if i, ok := newest[it.row]; ok {
			if it.outranks(pending[i]) {
				pending[i] = it
			}
			continue
		}
		newest[it.row] = len(pending)
		pending = append(pending, it)
	}
	return l.withoutGone(pending), dead
}

// outranks reports whether it is newer than other, and settles the loser. Of two
// equal versions the one that came first stays.
func (it *item) outranks(other *item) bool {
	switch {
	case it.change.Version > other.change.Version:
		other.settle(outcomeSuperseded)
		return true
	case it.change.Version == other.change.Version:
		it.settle(outcomeDuplicate)
	default:
		it.settle(outcomeSuperseded)
	}
	return false
}

// drain applies pending piece by piece and waits as long as the store is
// unavailable. What is not settled when ctx ends is added to l.left.
func (l *lane) drain(ctx, work context.Context, pending []*item) error {
	defer l.resume()
	for len(pending) > 0 && ctx.Err() == nil {
		n := l.cut(pending)
		var outcomes []Outcome
		if !l.breaker.try(func() error {
			outcomes = l.apply(work, pending[:n])
			return verdict(work, outcomes)
		}) {
			l.hold("breaker is open")
			l.breaker.wait(ctx)
			continue
		}
		if len(outcomes) != n {
			l.left = append(l.left, pending...)
			return fmt.Errorf("sink %s answered %d changes with %d outcomes", l.Name, n, len(outcomes))
		}
		held, dead, reason := l.settle(pending[:n], outcomes)
		l.bury(ctx, work, dead)
		switch len(held) {
		case 0:
			l.resume()
			l.limit = min(2*l.limit, l.Config.BatchChanges)
			pending = pending[n:]
			continue
		case n: // the whole call: it may have been too much for the store
			l.limit = max(n/2, 1)
		default:
			l.pause.reset()
		}
		pending = append(held, pending[n:]...)
		l.hold(reason)
		l.pause.sleep(ctx)
	}
	l.left = append(l.left, pending...)
	return nil
}

// cut is how many of pending go into the next call.
func (l *lane) cut(pending []*item) int {
	bytes := 0
	for i, it := range pending {
		bytes += len(it.change.Key) + len(it.change.After)
		if i == l.limit || i > 0 && bytes > l.Config.BatchBytes {
			return i
		}
	}
	return len(pending)
}

func (l *lane) apply(work context.Context, items []*item) []Outcome {
	changes := make([]cdc.Change, len(items))
	for i, it := range items {
		changes[i] = it.change
	}
	began := time.Now()
	outcomes := l.Sink.Apply(work, changes)
	l.Metrics.apply.WithLabelValues(l.Name).Observe(time.Since(began).Seconds())
	return outcomes
}

// verdict tells the breaker what a call says about the store: it is unavailable
// when not one change got an answer.
func verdict(work context.Context, outcomes []Outcome) error {
	for _, out := range outcomes {
		if out.Verdict != Unavailable {
			return nil
		}
	}
	if work.Err() != nil {
		return errStopping
	}
	return errUnavailable
}

// settle does what each outcome asks for, save burying, and returns what is still
// to be applied and what is to be buried.
func (l *lane) settle(items []*item, outcomes []Outcome) (held, dead []*item, reason string) {
	now := time.Now()
	for i, it := range items {
		switch out := outcomes[i]; out.Verdict {
		case Applied:
			it.settle(outcomeApplied)
			l.observe(it, now)
		case Duplicate:
			it.settle(outcomeDuplicate)
		case Stale:
			it.settle(outcomeStale)
		case Filtered:
			it.settle(outcomeFiltered)
		case Poison:
			it.refuse(out)
			dead = append(dead, it)
		case Transient:
			it.refuse(out)
			if it.refusals > len(l.Config.Retries) {
				dead = append(dead, it)
				continue
			}
			it.due = now.Add(l.Config.Retries[it.refusals-1])
			l.queue.add(it)
		default:
			held = append(held, it)
			reason = out.Reason
		}
	}
	return held, dead, reason
}

func (it *item) settle(outcome string) { it.book.settled[outcome].Inc() }

func (it *item) refuse(out Outcome) {
	it.refusals++
	it.lastFailed = time.Now()
	if it.refusals == 1 {
		it.firstFailed = it.lastFailed
	}
	it.class, it.reason = out.Class, out.Reason
	if it.book.dead[it.class] == nil { // a class a sink made up would make a label up
		it.class = ClassRefused
	}
}

// observe notes how long an applied change was on its way.
func (l *lane) observe(it *item, now time.Time) {
	committed := it.change.CommitMicros
	if it.change.Op == cdc.OpRead || committed <= 0 {
		return
	}
	l.newest.set(committed, l.Metrics.newest.WithLabelValues(l.Name))
	if late := now.UnixMicro() - committed; late >= 0 {
		it.book.latency.Observe(float64(late) / 1e6)
	} else {
		l.Metrics.future.WithLabelValues(l.Name).Inc()
	}
}

// bury hands every item to Bury, and tries again until it is taken. What is left
// when ctx ends is added to l.left.
func (l *lane) bury(ctx, work context.Context, items []*item) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, buriers)
	taken := make([]bool, len(items))
	var once sync.Once
	for i, it := range items {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			wait := pause{min: l.Config.HoldMin, max: l.Config.HoldMax}
			for {
				err := l.Bury(work, it.refusal())
				if err == nil {
					taken[i] = true
					return
				}
				once.Do(func() { l.hold("dead letter: " + err.Error()) })
				if !wait.sleep(ctx) {
					return
				}
			}
		})
	}
	wg.Wait()
	for i, it := range items {
		if !taken[i] {
			l.left = append(l.left, it)
			continue
		}
		it.settle(outcomeDead)
		it.book.dead[it.class].Inc()
		l.announce(it)
	}
}

// announce puts the first dead letter of a table and class into the log; the
// counter tells of the others.
func (l *lane) announce(it *item) {
	table := l.topic
	if it.broken == nil {
		table = it.change.Table.String()
	}
	if _, said := l.announced.LoadOrStore(table+"\x00"+string(it.class), true); !said {
		l.log.Warn("dead letter; more of this table and class are only counted", "table", table, "class", string(it.class), "offset", it.record.Offset, "see", "lockstep dlq list")
	}
}

func (it *item) refusal() Refusal {
	r := Refusal{
		Record:      it.record,
		Class:       it.class,
		Reason:      it.reason,
		Retries:     it.refusals - 1,
		FirstFailed: it.firstFailed,
		LastFailed:  it.lastFailed,
	}
	if it.broken == nil {
		r.Change = &it.change
	}
	return r
}

// hold notes that the partition waits; resume that it goes on.
func (l *lane) hold(reason string) {
	if l.held {
		return
	}
	l.held = true
	l.Metrics.held.WithLabelValues(l.Name).Inc()
	if first, _ := l.holding.add(1); first {
		l.log.Warn("sink held: changes wait, none is lost", "offset", l.next, "reason", reason)
	}
}

func (l *lane) resume() {
	l.pause.reset()
	if !l.held {
		return
	}
	l.held = false
	l.Metrics.held.WithLabelValues(l.Name).Dec()
	if last, since := l.holding.add(-1); last {
		l.log.Info("sink goes on", "held", time.Since(since).Round(time.Millisecond).String())
	}
}

// settledTo is the offset of the oldest change that is not settled, or behind the
// last record when all are.
func (l *lane) settledTo() int64 {
	to := l.next
	for _, it := range l.queue.heap {
		to = min(to, it.record.Offset)
	}
	for _, it := range l.left {
		to = min(to, it.record.Offset)
	}
	for _, it := range l.sweeps {
		to = min(to, it.record.Offset)
	}
	return to
}

// commit never stops the work: what is not committed is read again, and the
// store's guard makes that harmless.
func (l *lane) commit(work context.Context) {
	to := l.settledTo()
	if to <= l.committed {
		return
	}
	l.commitAfter = time.Now().Add(l.Config.CommitEvery)
	if err := l.part.Commit(work, to); err != nil {
		// Once is what happens when the partition is taken away; more is a fault.
		if l.commitFails++; l.commitFails == 2 {
			l.log.Warn("offset not committed, trying again", "offset", to, "error", err)
		}
		return
	}
	if l.commitFails > 1 {
		l.log.Info("offset committed again", "offset", to)
	}
	l.commitFails = 0
	l.committed = to
}

// leave commits what is settled and gives the rest back.
func (l *lane) leave(work context.Context) {
	if l.sweeping != nil {
		l.endSweep(<-l.swept)
	}
	l.commit(work)
	for _, it := range l.queue.heap {
		it.settle(outcomeReleased)
	}
	for _, it := range l.left {
		it.settle(outcomeReleased)
	}
	for _, it := range l.sweeps {
		it.settle(outcomeReleased)
	}
	l.queue = retryQueue{}
	l.countRetrying()
}

// countRetrying brings the gauge, which all partitions share, up to date.
func (l *lane) countRetrying() {
	now := len(l.queue.heap)
	l.Metrics.retrying.WithLabelValues(l.Name).Add(float64(now - l.counted))
	l.counted = now
}

// book finds the account of an item's table. What cannot be decoded is booked
// under the end of its topic's name, never under what it says of itself.
func (l *lane) book(it *item) *account {
	name := it.change.Table
	if it.broken != nil {
		name = cdc.TableName{}
	}
	a := l.books[name]
	if a == nil {
		label := name.String()
		if it.broken != nil {
			label = "unknown"
			if parts := strings.Split(l.topic, "."); len(parts) > 2 {
				label = strings.Join(parts[len(parts)-2:], ".")
			}
		}
		a = l.Metrics.account(l.Name, label)
		l.books[name] = a
	}
	return a
}
