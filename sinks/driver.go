package sinks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
)

// driver does for one partition what its lane decides. All of it but fetch belongs to
// one goroutine; what it starts reports back through the channels.
type driver struct {
	*Worker
	part  Partition
	lane  *lane
	table *tableBreaker
	share *share
	log   *slog.Logger

	fetchAge prometheus.Observer

	seat    *seat   // in the pool
	ticket  *ticket // for a call, while one is wanted
	answers chan answer
	letters chan letter
	commits chan commit
	swept   chan bool

	burying     int
	buriers     chan struct{}
	failing     int    // letters that Kafka has not taken at the first attempt
	failure     string // of the last of them
	committing  bool
	commitAfter time.Time
	commitFails int // in a row
	held        bool
	caughtUp    bool      // Kafka had no more
	heard       time.Time // from Kafka
	reached     bound     // as it was told last

	growth atomic.Pointer[cdc.Growth] // that the reading waits at; the barriers of the lane are before it

	// They are closed when a breaker has changed since it was asked.
	breakerRang, tableRang <-chan struct{}
}

// answer is how a call ended.
type answer struct {
	*call
	ticket   *ticket
	outcomes []Outcome
	made     bool // false when the breaker did not let it through
}

// commit is what became of the attempt to commit an offset.
type commit struct {
	to  int64
	err error
}

func (w *Worker) newDriver(p Partition) *driver {
	topic, id := p.Name()
	d := &driver{
		Worker:  w,
		part:    p,
		lane:    newLane(w.Config, topic, id, &books{metrics: w.Metrics, sink: w.Name, byTable: make(map[cdc.TableName]*account)}),
		seat:    w.pool.seat(topic),
		share:   w.Memory.share(w.Metrics.memory.WithLabelValues(w.Name).Add),
		log:     w.Log.With("sink", w.Name, "topic", topic, "partition", id),
		answers: make(chan answer),
		letters: make(chan letter),
		commits: make(chan commit),
		swept:   make(chan bool, 1),
		buriers: make(chan struct{}, buriers),
	}
	d.lane.filter, d.lane.moves, d.lane.applied = w.Filter, w.Moves, d.observe
	if w.Traced != nil {
		d.lane.traced = func(it *item, outcome string) { w.Traced(&it.change, it.came, time.Now(), outcome) }
	}
	d.lane.met = func(it *item, v Verdict) {
		if w.Settled != nil {
			w.Settled(id, &it.change, v)
		}
	}
	w.mu.Lock()
	if d.table = w.tables[topic]; d.table == nil {
		d.table = newTableBreaker(w.Name, tableLabel(topic), w.Config, w.Metrics, w.Log)
		w.tables[topic] = d.table
	}
	w.mu.Unlock()
	d.fetchAge = w.Metrics.fetched.WithLabelValues(w.Name, d.table.table)
	d.table.enter(1)
	d.reached.behind, d.reached.to = true, -1
	d.reach.set(d, d.reached)
	return d
}

// fetch decodes the next records while the current ones are applied. It hands over none
// when Kafka has no more for now.
func (d *driver) fetch(ctx context.Context, out chan<- []*item) error {
	for {
		most, ok := d.share.wait(ctx)
		if !ok {
			return nil
		}
		records, err := d.part.Fetch(ctx, most)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("sink %s: fetch %s/%d: %w", d.Name, d.lane.topic, d.lane.id, err)
		}
		var items []*item
		if len(records) > 0 {
			var bytes int
			items, bytes = decode(records)
			for _, it := range items { // who is older than its records is not to judge them
				if errors.Is(it.broken, cdc.ErrNewer) {
					return fmt.Errorf("sink %s: record at %s/%d offset %d: %w", d.Name, d.lane.topic, d.lane.id, it.record.Offset, it.broken)
				}
			}
			d.came(items)
			d.share.fetched(bytes, most)
		}
		if !d.hand(ctx, out, items) {
			return nil
		}
	}
}

// hand gives items to run; a growth, and what stands behind it, when its time has come.
func (d *driver) hand(ctx context.Context, out chan<- []*item, items []*item) bool {
	for {
		n := len(items)
		for i, it := range items {
			if it.broken != nil || it.change.Op != cdc.OpGrowth {
				continue
			}
			if i > 0 {
				n = i
				break
			}
			if !d.awaitGrowth(ctx, it.change.Growth) {
				return false
			}
		}
		select {
		case out <- items[:n]:
		case <-ctx.Done():
			return false
		}
		if items = items[n:]; len(items) == 0 {
			return true
		}
	}
}

// run tells the lane what happens and does what it asks for, until ctx ends.
func (d *driver) run(ctx, work context.Context, fetched <-chan []*item) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var wake <-chan time.Time
		if at := d.act(ctx, work); !at.IsZero() {
			timer.Reset(time.Until(at))
			wake = timer.C
		}
		in := fetched
		if d.lane.full() {
			in = nil
		}
		var granted <-chan struct{}
		if d.ticket != nil {
			granted = d.ticket.granted
		}
		before := d.lane.bytes
		select {
		case <-ctx.Done():
			return nil
		case items, ok := <-in:
			if !ok {
				return nil // fetch ended and says why
			}
			for _, it := range items {
				before += it.counted // the share has them already
			}
			d.lane.take(time.Now(), items)
			d.caughtUp, d.heard = len(items) == 0, time.Now()
		case a := <-d.answers:
			if err := d.answer(a); err != nil {
				return err
			}
		case l := <-d.letters:
			d.letter(l)
		case c := <-d.commits:
			d.committed(c)
		case done := <-d.swept:
			d.lane.swept(done)
		case <-wake:
		case <-granted:
		case <-d.breakerRang:
		case <-d.tableRang:
		}
		d.share.add(d.lane.bytes - before)
		d.tellReach()
	}
}

// tellReach brings up to date how far the partition is.
func (d *driver) tellReach() {
	now := bound{micros: d.lane.upTo(), behind: d.lane.first != nil || !d.caughtUp, heard: d.heard, to: d.lane.shownTo(), void: d.lane.void}
	if now == d.reached {
		return
	}
	further := now.to != d.reached.to || now.void != d.reached.void
	d.reached = now
	d.reach.set(d, now)
	if further && d.Moved != nil {
		d.Moved()
	}
}

// drain waits for what is under way when the run is over.
func (d *driver) drain(ctx, work context.Context) error {
	if d.ticket != nil {
		d.pool.drop(d.ticket)
		d.ticket = nil
	}
	var errs []error
	for {
		d.bury(ctx, work, time.Now())
		if d.lane.calls == 0 && d.burying == 0 && !d.committing {
			break
		}
		select {
		case a := <-d.answers:
			errs = append(errs, d.answer(a))
		case l := <-d.letters:
			d.letter(l)
		case c := <-d.commits:
			d.committed(c)
		}
	}
	if d.lane.sweeping != nil {
		d.lane.swept(<-d.swept)
	}
	return errors.Join(errs...)
}

// act starts whatever is to be done now, and returns when there will be more even if
// nothing happens until then; zero for never.
func (d *driver) act(ctx, work context.Context) time.Time {
	now := time.Now()
	d.bury(ctx, work, now)
	why, at := d.send(work, now)
	d.hold(why, at)
	d.startSweep(ctx)
	if next := d.startCommit(work, now); !next.IsZero() && (at.IsZero() || next.Before(at)) {
		at = next
	}
	return at
}

// send makes the calls that may be made now. It returns why changes wait, if they
// are held, and when to look again.
func (d *driver) send(work context.Context, now time.Time) (why hold, at time.Time) {
	for {
		next, why, at := d.may(now)
		if d.ticket != nil && (next == nil || d.ticket.kind != kind(d.lane.held)) {
			d.pool.drop(d.ticket)
			d.ticket = nil
		}
		if next == nil {
			return why, at
		}
		if d.ticket == nil {
			d.ticket = d.pool.ask(d.seat, d.lane.held, d.lane.ready.count)
		} else {
			d.pool.more(d.ticket, d.lane.ready.count)
		}
		select {
		case <-d.ticket.granted:
		default:
			return why, at
		}
		t := d.ticket
		d.ticket = nil
		if c := next(now, t.among); c == nil {
			d.pool.drop(t)
		} else {
			d.call(work, t, c)
		}
	}
}

// may returns what gives the next call, or nil when none is to be made now.
func (d *driver) may(now time.Time) (next func(time.Time, int) *call, why hold, at time.Time) {
	l := d.lane
	d.breakerRang, d.tableRang = d.breaker.bell.next(), d.table.bell.next()
	if l.held && (l.calls > 0 || l.ready.oldest() != nil) {
		why = l.why
	}
	if d.failing > 0 {
		return nil, hold{by: ByKafka, reason: "a dead letter cannot be written: " + d.failure}, time.Time{}
	}
	if l.ready.oldest() == nil {
		if len(l.dead) > 0 {
			why, at = d.awaitReadable(now)
		}
		return nil, why, at
	}
	if ok, at := d.breaker.admits(); !ok {
		return nil, cmp.Or(why, hold{by: ByStore, reason: "the breaker of the sink is open"}), at
	}
	if ok, at, why := d.table.admits(); !ok {
		switch {
		case at.IsZero() || now.Before(at):
			return nil, why, at
		case now.Before(l.until):
			return nil, why, l.until
		}
		return d.probe, why, time.Time{}
	}
	if ok, at := l.wants(now, d.pool.patience()); !ok {
		return nil, why, at
	}
	return l.call, why, time.Time{}
}

// probe gives the one change that a table is tried with, or nil when another
// partition was faster.
func (d *driver) probe(now time.Time, _ int) *call {
	if !d.table.claim(now) {
		return nil
	}
	return d.lane.probe(now)
}

// call asks the store, beside everything else.
func (d *driver) call(work context.Context, t *ticket, c *call) {
	changes := make([]cdc.Change, len(c.items))
	bytes := 0
	for i, it := range c.items {
		changes[i] = it.change
		changes[i].Left = slices.Clip(it.change.Left) // a sink that appends to it must get one of its own
		bytes += it.load()
	}
	go func() {
		outcomes, made := t.joint.apply(work, changes, bytes)
		d.answers <- answer{c, t, outcomes, made}
	}()
}

// verdict tells the breaker what a call says about the store: it is unavailable
// when not one change got an answer for which it was asked.
func verdict(work context.Context, outcomes []Outcome) (err error, reason string) {
	asked := false
	for _, out := range outcomes {
		switch {
		case out.Unasked:
			continue
		case out.Verdict != Unavailable:
			return nil, ""
		}
		asked, reason = true, out.Reason
	}
	if !asked || work.Err() != nil { // it says nothing
		return errStopping, ""
	}
	return errUnavailable, reason
}

// answer hands the outcomes of a call to the breaker of the table and to the lane, and
// then its place to the next one.
func (d *driver) answer(a answer) error {
	now := time.Now()
	if !a.made {
		defer d.pool.give(a.ticket)
		if a.probe {
			d.table.unclaim(now)
		}
		d.lane.back(now, a.call)
		return nil
	}
	defer d.pool.give(a.ticket)
	open := d.table.note(now, a.call, d.signs(a))
	if err := d.lane.answer(now, a.call, a.outcomes, open); err != nil {
		return fmt.Errorf("sink %s %w", d.Name, err)
	}
	return nil
}

// signs says what each outcome means for the table. A refusal that may pass counts, too,
// but not where its mend is known to stand behind it: a row from before a column or a
// table was dropped.
func (d *driver) signs(a answer) []sign {
	signs := make([]sign, len(a.items))
	if len(a.outcomes) != len(a.items) {
		return signs
	}
	for i := range a.items {
		switch out := a.outcomes[i]; out.Verdict {
		case Applied, Duplicate, Stale:
			signs[i].taken = true
		case Transient, Poison:
			if out.Verdict == Poison || a.probe || known(out.Class) == ClassRefused {
				signs[i] = d.table.sign(out.Class, out.Reason, true)
			}
		}
	}
	return signs
}

// observe notes how long an applied change was on its way.
func (d *driver) observe(it *item, now time.Time) {
	committed := it.change.CommitMicros
	if it.change.Op == cdc.OpRead || committed <= 0 {
		return
	}
	d.newest.set(committed, d.Metrics.newest.WithLabelValues(d.Name))
	if late := d.Clock(now).UnixMicro() - committed; late >= 0 {
		it.book.latency.Observe(float64(late) / 1e6)
	} else {
		d.Metrics.future.WithLabelValues(d.Name).Inc()
	}
}

// came notes how old the changes of a fetch were when they came.
func (d *driver) came(items []*item) {
	came := time.Now()
	now := d.Clock(came).UnixMicro()
	for _, it := range items {
		it.came = came
		if c := &it.change; it.broken == nil && c.Op != cdc.OpRead && c.CommitMicros > 0 {
			d.fetchAge.Observe(max(0, float64(now-c.CommitMicros)/1e6))
		}
	}
}

// hold notes that the partition waits, and when it tries again, or that it goes on when
// there is no reason.
func (d *driver) hold(why hold, next time.Time) {
	waits := why.by != ""
	if waits || d.held {
		d.table.waits.set(d, why, next)
	}
	if waits == d.held {
		return
	}
	d.held = !d.held
	if d.Moved != nil {
		d.Moved()
	}
	if d.held {
		d.Metrics.held.WithLabelValues(d.Name).Inc()
		if first, _ := d.holding.add(1); first {
			d.log.Warn("sink held: changes wait, none is lost", "table", d.table.table, "offset", d.lane.next, "reason", why.sentence())
		}
		return
	}
	d.Metrics.held.WithLabelValues(d.Name).Dec()
	if last, since := d.holding.add(-1); last {
		d.log.Info("sink goes on", "held", time.Since(since).Round(time.Millisecond).String())
	}
}

// startCommit commits what is settled, beside everything else, and returns when the
// next commit may be made if there is one to make. It never stops the work: what is
// not committed is read again, and the store's guard makes that harmless.
func (d *driver) startCommit(work context.Context, now time.Time) time.Time {
	to := d.lane.settledTo()
	switch {
	case to <= d.lane.committed || d.committing:
		return time.Time{}
	case now.Before(d.commitAfter):
		return d.commitAfter
	}
	d.committing = true
	d.commitAfter = now.Add(d.Config.CommitEvery)
	go func() { d.commits <- commit{to, d.part.Commit(work, to)} }()
	return time.Time{}
}

func (d *driver) committed(c commit) {
	d.committing = false
	if c.err != nil {
		// Once is what happens when the partition is taken away; more is a fault.
		if d.commitFails++; d.commitFails == 2 {
			d.log.Warn("offset not committed, trying again", "offset", c.to, "error", c.err)
		}
		return
	}
	if d.commitFails > 1 {
		d.log.Info("offset committed again", "offset", c.to)
	}
	d.commitFails = 0
	d.lane.committed = c.to
}

// lastCommit commits what is settled when nothing is under way any more.
func (d *driver) lastCommit(work context.Context) {
	if to := d.lane.settledTo(); to > d.lane.committed {
		d.committed(commit{to, d.part.Commit(work, to)})
	}
}

// leave gives the rest back.
func (d *driver) leave() {
	d.lane.leave()
	d.hold(hold{}, time.Time{})
	d.share.close()
	d.table.enter(-1)
	d.reach.drop(d)
}
