package dlq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// RunnerLog is the part of Kafka that a runner needs of the letters' topics.
type RunnerLog interface {
	PartitionLog
	ReadFrom(ctx context.Context, topic string, partition int, from int64, fn func(kafka.Record) error) (int64, error)
	Used(ctx context.Context, topic string) (bool, error)
	// EndOffsets gives for each partition the offset behind its last record.
	EndOffsets(ctx context.Context, topic string) (map[int]int64, error)
}

// Reading is how far the capture is with the rows that it was asked to read again.
type Reading struct {
	// State is empty until the capture has taken the request up.
	State   cdc.SnapshotState
	Problem string // why it has failed
	Rows    uint64 // read so far
}

// Runner carries out the replays of a pipeline. Of several runners one at a time should
// run, for two do the same work twice; that does no harm, because the guard of the store
// decides about every change, and because a letter says by itself whether it is open.
//
// What a job is about is fixed when it begins: the letters that it chooses and whose
// newest record stands before the ends of the topics at that moment. Of these, those
// before the cursor are done. So a runner that takes a job over knows from the saved
// progress and the letters' topic what is left; what the one before had under way is
// replayed once more.
type Runner struct {
	Jobs    *Jobs
	Letters func(sink string) *Letters
	Log     RunnerLog
	Sinks   func() []string // names
	// Store is what takes recorded changes for a sink, and how they are replayed there now.
	Store func(ctx context.Context, sink string) (sinks.Sink, ReplayOptions, error)
	// Refuses says why rows of a table cannot be read again for a sink; empty when they can.
	Refuses func(sink, table string) string
	// Unreadable says of keys of a table why no row can be asked for by them, by index.
	Unreadable func(ctx context.Context, table string, keys [][]byte) (map[int]string, error)
	// Read asks the capture to read the rows of these keys again. Stop takes that back.
	Read func(ctx context.Context, id, table, reason string, keys [][]byte) error
	Stop func(ctx context.Context, id, table string) error
	// Readings says how far the capture is with what it was asked for by these IDs.
	Readings func(ctx context.Context, ids []string) (map[string]Reading, error)
	// Progress gives for the topic of a table the ends of its partitions, and to where a
	// sink has committed.
	Progress func(ctx context.Context, sink, table string) (ends, committed map[int]int64, err error)
	// Held says why changes of a table do not get on in a sink, as far as this process
	// knows, and whether none should be sent until they do. It is empty when they get on.
	Held func(sink, table string) (why string, wait bool)
	// Over writes into the audit log how a job ended. It may be called again for one, and
	// writes that once.
	Over    func(ctx context.Context, s JobStatus) error
	Metrics *JobMetrics
	Notes   *slog.Logger
}

const (
	// jobsAtOnce bounds the jobs under way; those that wait hold up no others until then.
	jobsAtOnce = 4
	// runnerTick is how often a runner looks for new jobs and for cancelled ones.
	runnerTick = 500 * time.Millisecond
	// lapTick is how often a job looks for news of its letters.
	lapTick = 100 * time.Millisecond
	// askEvery is how often it asks how far the capture and the sink are.
	askEvery = time.Second
	// saysAfter is how long a batch may be under way before the job says what it waits for.
	saysAfter = 2 * time.Second
)

// running is a job under way in this process.
type running struct {
	cancel func(by string)
	leave  func() // ends it here, whatever becomes of the job
	done   chan struct{}
}

// Run carries out jobs until ctx ends. What goes wrong with one is tried again and stands
// in its progress.
func (r *Runner) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer r.Metrics.show(nil)
	under := map[string]*running{}
	var cleaned time.Time
	for ctx.Err() == nil {
		for id, job := range under {
			select {
			case <-job.done:
				delete(under, id)
			default:
			}
		}
		jobs, err := r.Jobs.snapshot(ctx)
		if err != nil { // of a job that is half read nobody knows how far it is
			if ctx.Err() == nil {
				r.Notes.Warn("replay jobs cannot be read", "error", err)
			}
			sleep(ctx, runnerTick)
			continue
		}
		r.Metrics.show(jobs)
		for _, record := range jobs {
			id := record.job.ID
			switch job := under[id]; {
			case record.over():
				if job != nil { // another runner was faster
					job.leave()
				}
			case job != nil:
				if record.cancel != nil {
					job.cancel(record.cancel.Actor)
				}
			case len(under) < jobsAtOnce:
				under[id] = r.begin(ctx, &all, record)
			}
		}
		if time.Since(cleaned) > time.Minute {
			cleaned = time.Now()
			if err := r.Jobs.forget(ctx, outdated(jobs, cleaned)); err != nil && ctx.Err() == nil {
				r.Notes.Warn("old replay jobs are still there", "error", err)
			}
		}
		if !sleep(ctx, runnerTick) {
			break
		}
	}
	return nil
}

// snapshot are the jobs as they are now, oldest first; what they hold may only be read.
func (j *Jobs) snapshot(ctx context.Context) ([]*jobRecord, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.look(ctx)
	all := j.ordered()
	for i, r := range all {
		one := *r
		all[i] = &one
	}
	return all, err
}

// begin takes a job up.
func (r *Runner) begin(ctx context.Context, all *sync.WaitGroup, record *jobRecord) *running {
	e := newErrand(r, record)
	ctx, leave := context.WithCancel(ctx)
	job := &running{leave: leave, done: make(chan struct{})}
	asked := make(chan string, 1)
	e.cancelled = asked
	job.cancel = func(by string) {
		select {
		case asked <- by:
		default:
		}
	}
	if record.cancel != nil {
		job.cancel(record.cancel.Actor)
	}
	all.Go(func() {
		defer close(job.done)
		defer leave()
		e.run(ctx)
	})
	return job
}

// errand is a job under way.
type errand struct {
	*Runner
	job       *Job
	progress  Progress
	course    course
	query     Query
	ids       map[string]bool
	cancelled <-chan string // by whom
	by        string        // who has cancelled it
	log       *slog.Logger

	ready   bool     // it is taken up, and its scope is known
	places  []Cursor // the partitions that are not begun, in order
	sector  *sector  // the one that is
	held    *flight  // read, and not begun
	flights []*flight
	next    map[Cursor]int64 // where letters of flights are looked for
	mark    string           // of this run, so that no other asks under the same IDs
	asks    int              // readings asked for in this run
	asked   time.Time        // when it was last asked how far they are
	said    string           // what the flights waited for then
	waits   string           // what the job waits for
	saved   string           // what was saved of that
	savedAt time.Time
}

func newErrand(r *Runner, record *jobRecord) *errand {
	e := &errand{Runner: r, job: record.job, course: newCourse(record.job), next: map[Cursor]int64{}, mark: uuid.NewString()[:8], log: r.Notes.With("job", record.job.ID)}
	if record.progress != nil {
		e.progress = record.progress.clone()
	} else {
		e.progress = Progress{Letters: map[Fate]int{}}.clone()
	}
	if len(record.job.IDs) > 0 {
		e.ids = map[string]bool{}
		for _, id := range record.job.IDs {
			e.ids[id] = true
		}
	}
	return e
}

// run carries the job out until it has ended or ctx does.
func (e *errand) run(ctx context.Context) {
	e.log.Info("replay begins", "mode", e.job.Mode, "actor", e.job.Actor, "run", e.progress.Run+1)
	wait := lapTick
	for ctx.Err() == nil {
		over, err := e.lap(ctx)
		if over {
			e.log.Info("replay ended", "state", e.progress.State, "letters", e.progress.Letters, "problem", e.progress.Problem)
			return
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if e.waits != err.Error() {
				e.log.Warn("a replay waits", "error", err)
			}
			e.waits = err.Error()
			wait = min(2*wait, 10*time.Second)
		default:
			wait = lapTick
		}
		if e.waits != e.saved && e.ready && time.Since(e.savedAt) > askEvery {
			e.sayWaits(ctx)
		}
		e.pause(ctx, wait)
	}
}

// pause waits, but not when the job is cancelled.
func (e *errand) pause(ctx context.Context, d time.Duration) {
	if e.by != "" {
		sleep(ctx, d)
		return
	}
	select {
	case <-ctx.Done():
	case e.by = <-e.cancelled:
	case <-time.After(d):
	}
}

// sayWaits saves what the job waits for. When that fails the operator sees less, and
// nothing else.
func (e *errand) sayWaits(ctx context.Context) {
	e.progress.Waits = sinks.Clip(e.waits, textBytes)
	if e.Jobs.save(ctx, e.job.ID, e.progress) == nil {
		e.saved, e.savedAt = e.waits, time.Now()
	}
}

// lap makes one pass: it takes in news, counts what has ended, and begins what may begin.
// It reports whether the job has ended. An error is for another try.
func (e *errand) lap(ctx context.Context) (over bool, err error) {
	if over, err := e.cancelNow(ctx); over || err != nil {
		return over, err
	}
	if !e.ready {
		if problem, err := e.prepare(ctx); err != nil || problem != "" {
			if problem != "" {
				return e.end(ctx, JobFailed, problem)
			}
			return false, err
		}
		e.ready = true
	}
	for ctx.Err() == nil {
		if over, err := e.cancelNow(ctx); over || err != nil {
			return over, err
		}
		if err := e.news(ctx); err != nil {
			return e.failed(ctx, err)
		}
		if err := e.settle(ctx); err != nil {
			return false, err
		}
		if why := e.course.stop(&e.progress); why != "" && len(e.flights) == 0 {
			return e.end(ctx, JobStopped, why)
		}
		moved, err := e.advance(ctx)
		if err != nil {
			return e.failed(ctx, err)
		}
		if len(e.flights) == 0 && e.held == nil && e.sector == nil && len(e.places) == 0 {
			return e.end(ctx, JobDone, "")
		}
		if !moved {
			return false, nil
		}
	}
	return false, nil
}

// cancelNow ends the job if somebody has cancelled it.
func (e *errand) cancelNow(ctx context.Context) (over bool, err error) {
	if e.by == "" {
		select {
		case e.by = <-e.cancelled:
		default:
			return false, nil
		}
	}
	flights := e.flights
	if e.held != nil {
		flights = append(slices.Clip(flights), e.held)
	}
	for _, f := range flights {
		if err := e.takeBack(ctx, f); err != nil {
			return false, err
		}
	}
	return e.end(ctx, JobCancelled, "cancelled by "+e.by)
}

// failed ends the job when an error says that trying again does not help.
func (e *errand) failed(ctx context.Context, err error) (over bool, _ error) {
	if errors.Is(err, ErrFormat) {
		return e.end(ctx, JobFailed, err.Error())
	}
	return false, err
}

// end ends the job. Before that is saved it stands in the audit log.
func (e *errand) end(ctx context.Context, state JobState, problem string) (over bool, err error) {
	p := e.progress.clone()
	p.State, p.Problem, p.Waits, p.Ended = state, sinks.Clip(problem, textBytes), "", time.Now().UTC()
	if p.Began.IsZero() {
		p.Began = p.Ended
	}
	if err := e.Over(ctx, status(e.job, &p, e.by)); err != nil {
		return false, err
	}
	if err := e.Jobs.save(ctx, e.job.ID, p); err != nil {
		return false, err
	}
	e.progress = p
	return true, nil
}

// prepare takes the job up: it fixes what it is about, or finds that saved. A problem is
// what nobody can mend but who asks for another job.
func (e *errand) prepare(ctx context.Context) (problem string, err error) {
	query, err := ParseQuery(e.job.Filter, e.Sinks(), time.Now())
	if err != nil {
		return "filter: " + err.Error(), nil
	}
	e.query = query
	p := e.progress.clone()
	p.Run, p.State = p.Run+1, JobRunning
	if p.Scope == nil {
		p.Began = time.Now().UTC()
		if p.Scope, p.Total, err = e.scope(ctx); errors.Is(err, ErrFormat) {
			return err.Error(), nil
		} else if err != nil {
			return "", err
		}
	}
	e.places = places(p.Scope, p.Cursor)
	if err := e.Jobs.save(ctx, e.job.ID, p); err != nil {
		return "", err
	}
	e.progress = p
	return "", nil
}

// places are the partitions of a scope that are not before a cursor, in order.
func places(scope map[string][]int64, from Cursor) (all []Cursor) {
	for sink, ends := range scope {
		for partition := range ends {
			if at := (Cursor{Sink: sink, Partition: partition}); from.Sink == "" || at.compare(Cursor{Sink: from.Sink, Partition: from.Partition}) >= 0 {
				all = append(all, at)
			}
		}
	}
	slices.SortFunc(all, Cursor.compare)
	return all
}

// scope finds the ends of the letters that the job is about, and counts them.
func (e *errand) scope(ctx context.Context) (scope map[string][]int64, total int, err error) {
	scope = map[string][]int64{}
	for _, sink := range e.Sinks() {
		topic := e.Letters(sink).Topic
		if e.query.Sink != "" && e.query.Sink != sink {
			continue
		}
		there, err := e.Runner.Log.Used(ctx, topic)
		if err != nil {
			return nil, 0, err
		}
		if !there { // a sink that never ran
			continue
		}
		ends, err := e.Runner.Log.EndOffsets(ctx, topic)
		if err != nil {
			return nil, 0, err
		}
		scope[sink] = make([]int64, len(ends))
		for partition, end := range ends {
			scope[sink][partition] = end
		}
	}
	for sink, ends := range scope {
		for partition, end := range ends {
			s, err := e.survey(ctx, sink, partition, end)
			if err != nil {
				return nil, 0, err
			}
			total += len(s.slots)
		}
	}
	return scope, total, nil
}

// survey reads the letters of a partition.
func (e *errand) survey(ctx context.Context, sink string, partition int, end int64) (*sector, error) {
	box := e.Letters(sink)
	s := newSector(sink, partition, end, func(l *Letter) bool {
		return e.query.takes(l) && (e.ids == nil || e.ids[l.ID])
	})
	next, err := e.Runner.Log.ReadFrom(ctx, box.Topic, partition, 0, func(r kafka.Record) error {
		l, err := box.read(r)
		if err == nil {
			s.read(&l)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read letters of sink %s: %w", sink, err)
	}
	s.seal()
	s.next = max(s.next, next)
	return s, nil
}

// news reads on in the partitions whose letters are under way.
func (e *errand) news(ctx context.Context) error {
	if s := e.sector; s != nil {
		e.next[Cursor{Sink: s.sink, Partition: s.partition}] = s.next
	}
	for at, from := range e.next {
		s := e.sector
		if s != nil && (s.sink != at.Sink || s.partition != at.Partition) {
			s = nil
		}
		flights := slices.DeleteFunc(slices.Clone(e.flights), func(f *flight) bool { return f.sink != at.Sink || f.partition != at.Partition })
		if e.held != nil && e.held.sink == at.Sink && e.held.partition == at.Partition {
			flights = append(flights, e.held)
		}
		if s == nil && len(flights) == 0 {
			delete(e.next, at)
			continue
		}
		box := e.Letters(at.Sink)
		next, err := e.Runner.Log.ReadFrom(ctx, box.Topic, at.Partition, from, func(r kafka.Record) error {
			l, err := box.read(r)
			if err != nil {
				return err
			}
			if s != nil {
				s.read(&l)
			}
			for _, f := range flights {
				f.news(&l)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read letters of sink %s: %w", at.Sink, err)
		}
		e.next[at] = next
		if s != nil {
			s.next = next
		}
	}
	return nil
}

// settle counts the flights that have ended, in order, and saves that.
func (e *errand) settle(ctx context.Context) error {
	n := 0
	p := e.progress.clone()
	for _, f := range e.flights {
		if !f.over() {
			break
		}
		for i := range f.items {
			it := &f.items[i]
			p.count(it.fate, it.reason, letterID(f.sink, it.id))
			p.Cursor = Cursor{f.sink, f.partition, it.order + 1}
		}
		n++
		if e.course.canary > 0 && p.done() == e.course.canary {
			break // what comes behind it has not begun
		}
	}
	if n == 0 {
		return nil
	}
	p.Waits, p.Moved = "", time.Now().UTC()
	if err := e.Jobs.save(ctx, e.job.ID, p); err != nil {
		return err
	}
	e.saved, e.said, e.savedAt = "", "", time.Now()
	for _, f := range e.flights[:n] {
		for i := range f.items {
			e.Metrics.letters.WithLabelValues(f.sink, string(e.job.Mode), string(f.items[i].fate)).Inc()
		}
	}
	e.progress, e.flights = p, e.flights[n:]
	return nil
}

// advance begins what may begin and looks after what is under way. It reports whether
// there may be more to do at once.
func (e *errand) advance(ctx context.Context) (moved bool, err error) {
	e.waits = ""
	if len(e.flights) > 0 {
		if e.job.Mode == Payload {
			return e.send(ctx, e.flights[0])
		}
		if err := e.follow(ctx); err != nil {
			return false, err
		}
		e.waits = e.said
	}
	if e.held == nil {
		if moved, err := e.load(ctx); err != nil || e.held == nil {
			return moved, err
		}
	}
	f := e.held
	if !f.loaded {
		if err := f.load(ctx, e); err != nil {
			return false, err
		}
	}
	if why := e.mustWait(f); why != "" {
		e.waits = why
		return false, nil
	}
	if e.job.Mode == Resync {
		if err := e.ask(ctx, f); err != nil {
			return false, err
		}
	}
	e.course.began(time.Now(), len(f.items))
	f.since = time.Now()
	e.held, e.flights = nil, append(e.flights, f)
	return true, nil
}

// load takes the next batch, if one may begin.
func (e *errand) load(ctx context.Context) (moved bool, err error) {
	underWay := 0
	for _, f := range e.flights {
		underWay += len(f.items)
	}
	n, at := e.course.room(time.Now(), e.progress.done(), underWay)
	if n == 0 || len(e.flights) >= flightBatches {
		if !at.IsZero() && len(e.flights) == 0 {
			e.pause(ctx, min(time.Until(at), lapTick)) // to keep the rate
			return true, nil
		}
		return false, nil
	}
	if e.sector == nil {
		if len(e.places) == 0 {
			return false, nil
		}
		at := e.places[0]
		if e.sector, err = e.survey(ctx, at.Sink, at.Partition, e.progress.Scope[at.Sink][at.Partition]); err != nil {
			e.sector = nil
			return false, err
		}
		if c := e.progress.Cursor; c.Sink == at.Sink && c.Partition == at.Partition {
			e.sector.skip(c.Next)
		}
		e.places = e.places[1:]
	}
	s := e.sector
	if s.left() > 0 {
		e.held = newFlight(s, n)
	}
	if s.left() == 0 {
		e.next[Cursor{Sink: s.sink, Partition: s.partition}] = s.next
		e.sector = nil
	}
	return true, nil
}

// mustWait says why a batch must not begin now.
func (e *errand) mustWait(f *flight) string {
	tables, _ := f.open()
	for _, table := range tables {
		if why, wait := e.Held(f.sink, table); wait {
			return fmt.Sprintf("sink %s: %s", f.sink, why)
		}
	}
	return ""
}

// send gives a batch to the store.
func (e *errand) send(ctx context.Context, f *flight) (moved bool, err error) {
	if f.over() {
		return true, nil
	}
	if why := e.mustWait(f); why != "" {
		e.waits = why
		return false, nil
	}
	store, opt, err := e.Store(ctx, f.sink)
	if err != nil {
		return false, fmt.Errorf("sink %s: %w", f.sink, err)
	}
	if err := e.replay(ctx, f, store, opt, func(int) bool { return true }); err != nil {
		return false, err
	}
	return true, nil
}

func fateOf(s State) Fate {
	switch s {
	case Resolved:
		return FateResolved
	case Superseded:
		return FateSuperseded
	case Skipped:
		return FateSkipped
	}
	return FateStays
}
