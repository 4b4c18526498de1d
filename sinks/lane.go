package sinks

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"lockstep/cdc"
)

// lane decides what becomes of the changes of one partition: what goes into the next
// call of the store, what is settled, and up to where the offset may be committed. It
// asks nobody, starts nothing and reads no clock: a driver tells it what has happened
// and does what it says.
//
// What was taken in stands in one place until it is settled; the places have names. Of a
// row at most one change is in a call, and one more, the newest that is known, waits
// for one. So a row that changes often costs one call at a time, however many are
// under way for other rows.
type lane struct {
	cfg     Config
	topic   string
	id      int // of the partition
	filter  func(cdc.TableName) bool
	moves   func(cdc.TableName) bool
	books   *books
	applied func(it *item, now time.Time)  // told of what the store has now
	traced  func(it *item, outcome string) // told of changes that are traced; nil if nobody wants to know
	met     func(it *item, v Verdict)      // told of what the store has, or a newer one of its row, and of barriers

	first, last *item // of all that is not settled, in the order of the offsets
	bytes       int   // of all that is not settled

	firstMark, lastMark *mark       // of all that the store does not show, in the order of the offsets
	void                cdc.Version // of the newest barrier that was met

	ready   line
	rows    map[rowKey]*item // ready, or behind a call
	calling map[rowKey]*item
	calls   int
	dead    []*item // refused, and no letter is begun
	dying   map[rowKey]*dying

	limit  int       // changes in the next call: shrinks under pressure, grows back
	held   bool      // the store was unavailable when it was asked last
	heldAt time.Time // since when
	until  time.Time // no call before then
	why    hold      // what the store said
	pause  pause

	barriers map[cdc.TableName]cdc.Version // the newest that was met
	sweeps   []*item                       // barriers for which the store is not swept yet
	sweeping *item                         // the one of sweeps that is being swept for

	latest    int64 // commit time, the highest that was taken in
	next      int64 // offset behind the last record taken in; -1 before the first
	committed int64
}

// call is what one call of the store was given.
type call struct {
	items []*item
	began time.Time
	probe bool // of a table whose breaker is open: one change
}

func newLane(cfg Config, topic string, id int, books *books) *lane {
	return &lane{
		cfg:       cfg,
		topic:     topic,
		id:        id,
		books:     books,
		rows:      make(map[rowKey]*item),
		calling:   make(map[rowKey]*item),
		dying:     make(map[rowKey]*dying),
		limit:     cfg.BatchChanges,
		pause:     pause{min: cfg.HoldMin, max: cfg.HoldMax},
		barriers:  make(map[cdc.TableName]cdc.Version),
		next:      -1,
		committed: -1,
	}
}

// take takes records in. Of each row the newest change that is known stays; what a
// barrier has made void is settled; what nobody can read is dead.
func (l *lane) take(now time.Time, items []*item) {
	for _, it := range items {
		l.enter(it)
		switch {
		case it.broken != nil:
			it.refuse(now, Outcome{Verdict: Poison, Class: ClassUndecodable, Reason: it.broken.Error()})
			l.bury(it)
		case l.filter != nil && !l.filter(it.change.Table):
			l.settle(it, outcomeFiltered)
		case it.change.Op == cdc.OpBarrier:
			l.barrier(it)
		case it.change.Op == cdc.OpGrowth:
			l.met(it, Applied)
			l.settle(it, outcomeApplied)
		case l.behindBarrier(it):
			l.settle(it, outcomeSuperseded)
		default:
			l.admit(now, it)
		}
	}
}

// enter writes a record into the books and at the end of what is not settled.
func (l *lane) enter(it *item) {
	it.book = l.books.of(l.topic, it)
	it.book.received.Inc()
	it.book.inFlight.Inc()
	if l.next < 0 {
		l.committed = it.record.Offset
	}
	l.next = it.record.Offset + 1
	it.earlier = cmp.Or(l.latest, it.change.CommitMicros)
	l.latest = max(l.latest, it.change.CommitMicros)
	if it.prev = l.last; it.prev == nil {
		l.first = it
	} else {
		it.prev.next = it
	}
	l.last = it
	l.bytes += it.counted
	it.shows = &mark{offset: it.record.Offset, prev: l.lastMark}
	if l.lastMark == nil {
		l.firstMark = it.shows
	} else {
		l.lastMark.next = it.shows
	}
	l.lastMark = it.shows
}

// show notes that the store shows what a change stands for.
func (l *lane) show(it *item) {
	l.unmark(it.shows)
	it.shows = nil
}

func (l *lane) unmark(m *mark) {
	switch {
	case m == nil:
		return
	case m.prev == nil:
		l.firstMark = m.next
	default:
		m.prev.next = m.next
	}
	if m.next == nil {
		l.lastMark = m.prev
	} else {
		m.next.prev = m.prev
	}
}

// showLater has a newer change of a row stand for an older one in what the store shows.
func (l *lane) showLater(older, it *item) {
	if older.shows != nil && (it.shows == nil || older.shows.offset < it.shows.offset) {
		older.shows, it.shows = it.shows, older.shows
	}
	l.show(older)
}

// shownTo is the offset before which the store shows every record, or a newer one of its row,
// or its letter is written: -1 before the first. What a barrier has taken away counts as
// shown: it is when the store is swept for void.
func (l *lane) shownTo() int64 {
	if l.firstMark != nil {
		return l.firstMark.offset
	}
	return l.next
}

// settle ends a change: it is what the offset waits for no more.
func (l *lane) settle(it *item, outcome string) {
	l.book(it, outcome)
	l.show(it)
	l.unlink(it)
	if it.standsFor != nil {
		l.unlink(it.standsFor)
		it.standsFor = nil
	}
}

// book writes what became of a change into the books.
func (l *lane) book(it *item, outcome string) {
	it.book.settled[outcome].Inc()
	if l.traced != nil && it.change.Trace.Traced() {
		l.traced(it, outcome)
	}
	it.book.inFlight.Dec()
	l.bytes -= it.counted
	it.place = settled
}

// unlink takes an item out of what the offset waits for.
func (l *lane) unlink(it *item) {
	if it.prev == nil {
		l.first = it.next
	} else {
		it.prev.next = it.next
	}
	if it.next == nil {
		l.last = it.prev
	} else {
		it.next.prev = it.prev
	}
	it.prev, it.next = nil, nil
}

// supersede settles a change that has not come to the store, in favour of a newer one
// of its row. Where the store needs what the row was before, to find its former places,
// the newer one carries the images of the older one and stands for it: the offset waits
// until the newer one is settled, because whoever reads that alone again does not know
// them.
func (l *lane) supersede(older, it *item) {
	l.showLater(older, it)
	if l.moves == nil || !l.moves(it.change.Table) {
		l.settle(older, outcomeSuperseded)
		return
	}
	l.carry(older, it)
	l.book(older, outcomeSuperseded)
	// The oldest that it stands for holds the offset for all of them.
	oldest := older
	for _, other := range []*item{older.standsFor, it.standsFor} {
		switch {
		case other == nil:
		case other.record.Offset < oldest.record.Offset:
			l.unlink(oldest)
			oldest = other
		default:
			l.unlink(other)
		}
	}
	it.standsFor, older.standsFor = oldest, nil
	older.record.Key, older.record.Value, older.record.Headers, older.change = nil, nil, nil, cdc.Change{}
}

// carry gives a change the images of an older one, each once.
func (l *lane) carry(older, it *item) {
	had := it.load()
	with := func(images [][]byte, image []byte) [][]byte {
		same := func(other []byte) bool { return bytes.Equal(image, other) }
		if image == nil || same(it.change.Before) || slices.ContainsFunc(images, same) {
			return images
		}
		return append(images, bytes.Clone(image)) // the record that it is a part of goes
	}
	if it.change.Left == nil { // the usual case; of a row that changes often there are many
		it.change.Left = slices.DeleteFunc(slices.Clone(older.change.Left), func(image []byte) bool { return bytes.Equal(image, it.change.Before) })
	} else {
		for _, image := range older.change.Left {
			it.change.Left = with(it.change.Left, image)
		}
	}
	it.change.Left = with(it.change.Left, older.change.Before)
	more := it.load() - had
	it.counted += more
	l.bytes += more
	if it.place == ready {
		l.ready.bytes += more
	}
}

// admit finds the place of a change among the others of its row.
func (l *lane) admit(now time.Time, it *item) {
	if waiting := l.rows[it.row]; waiting != nil {
		if l.outranks(it, waiting) {
			l.replace(waiting, it)
		}
		return
	}
	if under := l.calling[it.row]; under != nil {
		switch {
		case it.change.Version > under.change.Version:
			it.place = behind
			l.rows[it.row] = it
		case it.change.Version == under.change.Version:
			l.settle(it, outcomeDuplicate)
		default:
			l.settle(it, outcomeSuperseded)
		}
		return
	}
	l.makeReady(now, it)
}

// makeReady puts a change at the end of what goes into the next call.
func (l *lane) makeReady(now time.Time, it *item) {
	it.place, it.since = ready, now
	l.rows[it.row] = it
	l.ready.push(it)
}

// replace puts a newer change where its row waits, in favour of the older one.
func (l *lane) replace(old, it *item) {
	place, load := old.place, old.load()
	l.supersede(old, it)
	l.rows[it.row] = it
	switch place {
	case ready:
		it.place, it.since = ready, old.since
		l.ready.replace(old, load, it)
	case behind:
		it.place = behind
	}
}

// outranks reports whether it is newer than other, which has not come to the store
// yet, and settles it if it is not. Of two equal versions the one that came first
// stays.
func (l *lane) outranks(it, other *item) bool {
	switch {
	case it.change.Version > other.change.Version:
		return true
	case it.change.Version == other.change.Version:
		l.settle(it, outcomeDuplicate)
	default:
		l.supersede(it, other)
	}
	return false
}

// full reports whether more records would only lie about: reading waits.
func (l *lane) full() bool {
	return l.ready.count >= aheadCalls*l.cfg.BatchChanges || l.ready.bytes >= aheadCalls*l.cfg.BatchBytes
}

// aheadCalls is how many calls' worth of changes lie ready at most.
const aheadCalls = 3

// wants reports whether a call is to be made now; if not, it gives the time at which
// one is even if nothing happens until then, or zero. A few changes go at once when no
// call is under way. While one is, they wait for company: until there are enough for
// a full call, or for as long as patience says, so that a call that hangs holds up no
// other row.
func (l *lane) wants(now time.Time, patience time.Duration) (bool, time.Time) {
	oldest := l.ready.oldest()
	switch {
	case oldest == nil:
		return false, time.Time{}
	case l.held && l.calls > 0:
		return false, time.Time{} // its answer will tell
	case now.Before(l.until):
		return false, l.until
	case l.calls == 0, l.ready.count >= l.limit, l.ready.bytes >= l.cfg.BatchBytes:
		return true, time.Time{}
	}
	tired := oldest.since.Add(patience)
	return !now.Before(tired), tired
}

// call gives the changes of the next call, the oldest first, when so many partitions
// share it.
func (l *lane) call(now time.Time, among int) *call {
	var items []*item
	load := 0
	most, bytes := max(l.limit/among, 1), l.cfg.BatchBytes/among
	for it := l.ready.oldest(); it != nil && len(items) < most; it = l.ready.oldest() {
		if load += it.load(); load > bytes && len(items) > 0 {
			break
		}
		items = append(items, l.begin(it))
	}
	l.calls++
	return &call{items: items, began: now}
}

// probe gives a call with one change: of those that were probed least often the
// oldest.
func (l *lane) probe(now time.Time) *call {
	it := l.ready.least(func(a, b *item) bool { return a.probes < b.probes })
	it.probes++
	l.calls++
	return &call{items: []*item{l.begin(it)}, began: now, probe: true}
}

func (l *lane) begin(it *item) *item {
	l.ready.remove(it)
	delete(l.rows, it.row)
	l.calling[it.row] = it
	it.place = calling
	return it
}

// back undoes a call that was not made.
func (l *lane) back(now time.Time, c *call) {
	l.calls--
	for _, it := range c.items {
		delete(l.calling, it.row)
	}
	l.again(now, c.items)
}

// again puts changes back in front of what is ready, save those that something newer
// has made void meanwhile.
func (l *lane) again(now time.Time, items []*item) {
	var stay []*item
	for _, it := range items {
		if !l.overtaken(now, it) {
			it.place, it.since = ready, now
			l.rows[it.row] = it
			stay = append(stay, it)
		}
	}
	l.ready.unshift(stay)
}

// overtaken settles a change that the store has not taken, if a newer one of its row
// has come meanwhile, or a barrier, and reports whether it did.
func (l *lane) overtaken(now time.Time, it *item) bool {
	newer := l.rows[it.row]
	switch {
	case newer != nil:
		row := it.row
		l.supersede(it, newer)
		l.release(now, row)
		return true
	case l.behindBarrier(it):
		l.settle(it, outcomeSuperseded)
		return true
	}
	return false
}

// release makes ready what stood behind a call of its row.
func (l *lane) release(now time.Time, row rowKey) {
	if it := l.rows[row]; it != nil && it.place == behind {
		l.makeReady(now, it)
	}
}

// answer does what each outcome of a call asks for. What is refused is dead afterwards;
// but when the breaker of the table is open nothing is held against a
// change, and it is ready again.
func (l *lane) answer(now time.Time, c *call, outcomes []Outcome, tableOpen bool) error {
	l.calls--
	for _, it := range c.items {
		delete(l.calling, it.row)
	}
	if len(outcomes) != len(c.items) {
		l.again(now, c.items)
		return fmt.Errorf("answered %d changes with %d outcomes", len(c.items), len(outcomes))
	}
	var again []*item
	unavailable, last := 0, Outcome{}
	for i, it := range c.items {
		switch out := outcomes[i]; out.Verdict {
		case Applied:
			l.applied(it, now)
			l.tell(it, Applied)
			l.settle(it, outcomeApplied)
			l.release(now, it.row)
		case Duplicate:
			l.tell(it, Duplicate)
			l.settle(it, outcomeDuplicate)
			l.release(now, it.row)
		case Stale:
			l.tell(it, Stale)
			l.settle(it, outcomeStale)
			l.release(now, it.row)
		case Filtered:
			l.settle(it, outcomeFiltered)
			l.release(now, it.row)
		case Poison, Transient:
			switch {
			case tableOpen:
				again = append(again, it)
			case !l.overtaken(now, it):
				it.refuse(now, out)
				l.bury(it)
			}
		default:
			if unavailable++; unavailable == 1 || !out.Unasked { // of both kinds the store's own counts
				last = out
			}
			again = append(again, it)
		}
	}
	l.again(now, again)
	l.adapt(now, c, unavailable, last)
	return nil
}

// bury gives a change up: it waits for its dead letter, which is tried again by others
// if that may help.
func (l *lane) bury(it *item) {
	it.place = dead
	l.dead = append(l.dead, it)
	if it.broken != nil {
		return
	}
	if l.dying[it.row] == nil {
		l.dying[it.row] = &dying{}
	}
	l.dying[it.row].letters++
}

// dying is a row of which letters are being written, and the newest change that the store
// has since.
type dying struct {
	letters int
	newer   *item
	verdict Verdict
}

// tell says what the store has. Whoever keeps the letters may not have those of the row
// yet that are being written: it is told again when it has.
func (l *lane) tell(it *item, v Verdict) {
	l.met(it, v)
	if d := l.dying[it.row]; d != nil && (d.newer == nil || d.newer.change.Version <= it.change.Version) {
		d.newer, d.verdict = it, v
	}
}

// buried ends a change whose letter is safe.
func (l *lane) buried(it *item) {
	if d := l.dying[it.row]; d != nil && it.broken == nil {
		if d.newer != nil {
			l.met(d.newer, d.verdict)
		}
		if d.letters--; d.letters == 0 {
			delete(l.dying, it.row)
		}
	}
	it.book.dead[it.class].Inc()
	l.settle(it, outcomeDead)
}

// adapt sets the size of the next call and the time before it by what the store had
// to say. Of several calls that found it unavailable at once, the first tells
// everything.
func (l *lane) adapt(now time.Time, c *call, unavailable int, last Outcome) {
	news := !l.held || c.began.After(l.heldAt)
	switch {
	case unavailable == 0 && news:
		l.held = false
		l.pause.reset()
		l.limit = min(2*l.limit, l.cfg.BatchChanges)
		return
	case unavailable == 0 || !news:
		return
	case unavailable == len(c.items): // it may have been too much for the store
		l.limit = max(len(c.items)/2, 1)
	default:
		l.pause.reset()
	}
	l.why = hold{by: ByStore, reason: cmp.Or(last.Reason, "the store is unavailable"), mend: last.Mend}
	if last.Unasked {
		l.why.by = ByTable
	}
	l.held, l.heldAt = true, now
	l.until = now.Add(l.pause.more())
}

// settledTo is the offset of the oldest change that is not settled, or behind the
// last record when all are.
func (l *lane) settledTo() int64 {
	if l.first != nil {
		return l.first.record.Offset
	}
	return l.next
}

// upTo is the commit time before which all that was taken in is settled; 0 when there was
// none yet, as of rows of a copy.
func (l *lane) upTo() int64 {
	if l.first != nil {
		return l.first.earlier
	}
	return l.latest
}

// leave gives back what is not settled: whoever owns the partition next receives it
// again.
func (l *lane) leave() {
	for it := l.first; it != nil; it = it.next {
		if it.place != settled {
			l.book(it, outcomeReleased)
		}
	}
	l.first, l.last = nil, nil
}

// books finds the account of a table.
type books struct {
	metrics *Metrics
	sink    string
	byTable map[cdc.TableName]*account
}

// of gives the account of an item's table. What cannot be decoded is booked under the
// end of its topic's name, never under what it says of itself.
func (b *books) of(topic string, it *item) *account {
	name := it.change.Table
	if it.broken != nil {
		name = cdc.TableName{}
	}
	a := b.byTable[name]
	if a == nil {
		label := name.String()
		if it.broken != nil {
			label = tableLabel(topic)
		}
		a = b.metrics.account(b.sink, label)
		b.byTable[name] = a
	}
	return a
}

// tableLabel is the table that a topic is named for.
func tableLabel(topic string) string {
	if parts := strings.Split(topic, "."); len(parts) > 2 {
		return strings.Join(parts[len(parts)-2:], ".")
	}
	return "unknown"
}
