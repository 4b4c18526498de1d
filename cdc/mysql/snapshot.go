package mysql

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"lockstep/cdc"
)

// snapshots copies rows beside the log. The reader holds mu while it handles an
// event, so whoever else holds it sees the position between two events and may
// publish.
//
// A chunk of rows is read inside a window. The window opens between two
// transactions, at a GTID set (its low mark) and a version; the SELECT shows at
// least that set. The window may be passed once the log has been read up to a set
// that holds all the SELECT can have seen (its high mark). A row whose key the log
// named in between is left out, because the log has brought it, or something newer;
// every other row is published with the version of the low mark. So no row steps
// back, and no lock is held on the server.
type snapshots struct {
	mu      sync.Mutex
	placed  bool // the end of a transaction was read on this connection
	half    bool // rows are published of a transaction whose end was not read yet
	windows []*window
	jobs    map[string]*job // what is under way in this session, by snapshot ID
	changed bell            // rings when there may be something to do
	moved   bell            // rings when the position has moved, a copy has ended, or the reading begins or ends

	requests map[string]cdc.SnapshotRequest // those whose snapshot is not known to have ended
	polled   bool                           // requests is complete

	hold   string    // why no chunk is begun now
	paceAt time.Time // when the next chunk may be read
	endAt  time.Time // when the end of the last transaction was read
}

// window is open while one chunk is read and published.
type window struct {
	table   cdc.TableName
	open    bool
	low     mark
	version cdc.Version
	touched map[string]struct{} // keys that the log has named since
	void    bool                // what was read in it must not be published
	grant   func()              // opens it
	due     func() bool         // whether it may be passed; nil while it is read
	passed  bool
	changed bell
}

// maxTouched bounds the memory of a window. One that stays open for longer is read
// again.
const maxTouched = 100_000

// bell wakes whoever waits for a change. It is guarded by snapshots.mu.
type bell struct{ ch chan struct{} }

func (b *bell) ring() {
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

func (b *bell) heard() <-chan struct{} {
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// touched hears of every change of a captured table before it is published.
func (s *snapshots) touched(t cdc.TableName, key []byte) {
	s.half = true
	for _, w := range s.windows {
		if w.open && w.table == t && !w.void {
			w.touched[string(key)] = struct{}{}
			if len(w.touched) > maxTouched {
				w.spoil()
			}
		}
	}
}

// boundary hears that the position has moved behind a transaction.
func (s *snapshots) boundary() {
	s.half, s.placed = false, true
	s.moved.ring()
	if len(s.jobs) > 0 {
		s.endAt = time.Now()
	}
	for _, w := range s.windows {
		switch {
		case !w.open:
			w.grant()
		case w.due != nil && !w.passed && w.due():
			w.passed = true
			w.changed.ring()
		}
	}
}

// idle hears that the end of the log is reached. A transaction of which rows were
// read before the connection was lost, and which is not in the log now, never ends.
func (s *snapshots) idle() {
	if s.half {
		placed := s.placed
		s.boundary()
		s.placed = placed
	}
	s.endAt = time.Time{}
}

// disturbed hears of a statement that changes a table as a whole: chunks of it that
// are under way are read again.
func (s *snapshots) disturbed(t cdc.TableName) {
	for _, w := range s.windows {
		if w.open && w.table == t {
			w.spoil()
		}
	}
	for _, j := range s.jobs {
		if j.table == t {
			j.layout = nil
			j.shape++
		}
	}
}

func (w *window) spoil() {
	w.void, w.touched = true, nil
	w.changed.ring()
}

// await returns when ok says so, which is asked under the lock and again whenever b
// rings. Its error is the end of ctx.
func (s *snapshots) await(ctx context.Context, b *bell, ok func() bool) error {
	for {
		s.mu.Lock()
		if ok() {
			s.mu.Unlock()
			return nil
		}
		heard := b.heard()
		s.mu.Unlock()
		select {
		case <-heard:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// openWindow opens a window at the next end of a transaction: at once when nothing
// is being read. What is read in it has the turn of its copy. Whoever has it closes it.
func (s *Source) openWindow(ctx context.Context, t cdc.TableName, turn uint8) (*window, error) {
	w := &window{table: t}
	var err error
	w.grant = func() {
		if len(s.published) > 0 {
			return // what the log brings now is not published: it would be left out of both
		}
		w.open, w.touched = true, map[string]struct{}{}
		w.low = s.place()
		w.version, err = cdc.NewVersion(s.pos.Epoch, s.pos.Seq+uint64(turn))
		w.changed.ring()
	}
	s.snaps.mu.Lock()
	s.snaps.windows = append(s.snaps.windows, w)
	if !s.snaps.half && len(s.published) == 0 {
		w.grant()
	}
	s.snaps.mu.Unlock()
	if ended := s.snaps.await(ctx, &w.changed, func() bool { return w.open }); ended != nil {
		err = ended
	}
	if err != nil {
		s.closeWindow(w)
	}
	return w, err
}

func (s *Source) closeWindow(w *window) {
	s.snaps.mu.Lock()
	defer s.snaps.mu.Unlock()
	s.snaps.windows = slices.DeleteFunc(s.snaps.windows, func(o *window) bool { return o == w })
}

// pass waits until the log is read up to high, or the window has become void.
func (s *Source) pass(ctx context.Context, w *window, high gtidSet) error {
	s.snaps.mu.Lock()
	w.due = func() bool { return s.gtids.contains(high) }
	w.passed = w.due()
	s.snaps.mu.Unlock()
	return s.snaps.await(ctx, &w.changed, func() bool { return w.passed || w.void })
}

// schedule begins a snapshot: from now on every change of its table is published,
// and its rows are copied beside them. One that is known already is left as it is.
// The caller holds the lock and saves the position.
func (s *Source) schedule(sn cdc.Snapshot) {
	if s.snapshot(sn.ID) != nil {
		return
	}
	if sn.State == "" {
		sn.State = cdc.SnapshotRunning
	}
	if sn.BeganMicros == 0 {
		sn.BeganMicros = time.Now().UnixMicro()
	}
	sn.Turn = min(s.turn(sn.ID, sn.Table), cdc.Turns-1)
	s.pos.Snapshots = append(slices.Clip(s.pos.Snapshots), sn)
	s.addCopied(tableNamed(sn.Table))
	s.Log.Info("snapshot scheduled", "snapshot", sn.ID, "table", sn.Table, "reason", sn.Reason)
	s.snaps.changed.ring()
}

// turn is what sets the rows of the next copy of a table above those of every copy that
// may have read at the clock as it is now. It is cdc.Turns when there were so many that
// none is left until the clock moves. Requests of one replay share a turn: they have no row
// in common. The caller holds the lock.
func (s *Source) turn(id, table string) (next uint8) {
	for _, sn := range s.pos.Snapshots {
		switch {
		case sn.Table != table || !underway(sn.State) && !s.here(sn):
		case sameReplay(sn.ID, id):
			next = max(next, sn.Turn)
		default:
			next = max(next, sn.Turn+1)
		}
	}
	return next
}

// sameReplay reports whether two requests are of one replay of dead letters.
func sameReplay(a, b string) bool {
	return ofReplay(a) && a[:max(strings.LastIndexByte(a, '.'), 0)] == b[:max(strings.LastIndexByte(b, '.'), 0)]
}

// here reports whether the clock has not moved since a snapshot ended.
func (s *Source) here(sn cdc.Snapshot) bool {
	now, err := s.pos.Version()
	return err == nil && sn.Ended >= now
}

// cancelSnapshots ends the snapshots of a table that are under way. The caller
// holds the lock and saves the position.
func (s *Source) cancelSnapshots(t cdc.TableName, why string) {
	for _, sn := range s.pos.Snapshots {
		if sn.Table == t.String() && underway(sn.State) {
			s.endSnapshot(sn.ID, cdc.SnapshotCancelled, why)
		}
	}
}

func underway(state cdc.SnapshotState) bool {
	return state == cdc.SnapshotRunning || state == cdc.SnapshotPaused
}

// keptSnapshots is how many snapshots that have ended a position keeps, and as many of
// replays of dead letters, which are many.
const keptSnapshots = 20

func ofReplay(id string) bool { return strings.HasPrefix(id, cdc.ReplayPrefix) }

// endSnapshot ends a snapshot that is under way. The caller holds the lock.
func (s *Source) endSnapshot(id string, state cdc.SnapshotState, problem string) {
	sn := s.changeSnapshot(id)
	if sn == nil || !underway(sn.State) {
		return
	}
	sn.State, sn.Problem, sn.EndedMicros = state, problem, time.Now().UnixMicro()
	sn.Ended, _ = s.pos.Version() // a position that has none is followed by no version at all
	if j := s.snaps.jobs[id]; j != nil {
		j.ended = true
		delete(s.snaps.jobs, id)
	}
	s.Log.Info("snapshot ended", "snapshot", id, "table", sn.Table, "state", state, "rows", sn.Rows, "problem", problem,
		"took", time.Duration(sn.EndedMicros-sn.BeganMicros)*time.Microsecond)
	s.trimSnapshots()
	s.snaps.changed.ring()
	s.snaps.moved.ring()
}

// trimSnapshots forgets the oldest snapshots that have ended, save those whose
// request still stands, because it would be taken for a new one, and of each table the
// one whose turn counts.
func (s *Source) trimSnapshots() {
	ended := map[bool]int{}             // of replays, and others
	counts := map[string]cdc.Snapshot{} // by table: the last one with the highest turn
	for _, sn := range s.pos.Snapshots {
		if underway(sn.State) {
			continue
		}
		ended[ofReplay(sn.ID)]++
		if high, known := counts[sn.Table]; s.here(sn) && (!known || sn.Turn >= high.Turn) {
			counts[sn.Table] = sn
		}
	}
	s.pos.Snapshots = slices.DeleteFunc(slices.Clone(s.pos.Snapshots), func(sn cdc.Snapshot) bool {
		_, asked := s.snaps.requests[sn.ID]
		old := ended[ofReplay(sn.ID)] > keptSnapshots && !underway(sn.State) && !asked && counts[sn.Table].ID != sn.ID
		if old {
			ended[ofReplay(sn.ID)]--
		}
		return old
	})
}

// snapshot finds a snapshot by its ID, to be read only; nil when there is none.
func (s *Source) snapshot(id string) *cdc.Snapshot {
	for i := range s.pos.Snapshots {
		if s.pos.Snapshots[i].ID == id {
			return &s.pos.Snapshots[i]
		}
	}
	return nil
}

// changeSnapshot finds a snapshot to change it. Checkpoints hold the old slice, so
// it is replaced.
func (s *Source) changeSnapshot(id string) *cdc.Snapshot {
	s.pos.Snapshots = slices.Clone(s.pos.Snapshots)
	return s.snapshot(id)
}

// forgetSnapshots takes the snapshots of a table out of the position.
func (s *Source) forgetSnapshots(table string) {
	s.pos.Snapshots = slices.DeleteFunc(slices.Clone(s.pos.Snapshots), func(sn cdc.Snapshot) bool { return sn.Table == table })
}

// unfollow forgets a table that is gone: one that is made in its place has nothing of
// it, and may have another key. The caller holds the lock.
func (s *Source) unfollow(t cdc.TableName) {
	s.pos.Copied = slices.DeleteFunc(slices.Clone(s.pos.Copied), func(name string) bool { return name == t.String() })
	s.pos.Keys = maps.Clone(s.pos.Keys)
	delete(s.pos.Keys, t.String())
}

// firstPrefix begins the IDs of first copies.
const firstPrefix = "first-"

// repairPrefix begins the IDs of the snapshots that a capture asks for itself, to take
// back what another server has not kept.
const repairPrefix = "repair-"

// anewPrefix begins the IDs of the copies behind a gap in the log.
const anewPrefix = "epoch-"

// ownCopy reports whether no operator has asked for a snapshot, but the capture, the
// log or a gap in it: rows would be missing that nobody knows of if it did not end.
func ownCopy(sn *cdc.Snapshot) bool {
	return sn.GTID != "" || strings.HasPrefix(sn.ID, firstPrefix) || strings.HasPrefix(sn.ID, repairPrefix) || strings.HasPrefix(sn.ID, anewPrefix)
}

// firstCopy is the snapshot that brings the rows which a table has already when it
// comes to the pipeline. The caller holds the lock.
func (s *Source) firstCopy(t cdc.TableName) cdc.Snapshot {
	return cdc.Snapshot{ID: fmt.Sprintf(firstPrefix+"%s-%d-%d", t, s.pos.Epoch, s.pos.Seq), Table: t.String(), Reason: "first copy"}
}

func tableNamed(name string) cdc.TableName {
	db, table, _ := strings.Cut(name, ".")
	return cdc.TableName{DB: db, Table: table}
}
