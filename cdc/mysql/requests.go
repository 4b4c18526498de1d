package mysql

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
)

// Requests tells of the snapshots that operators ask for.
type Requests interface {
	// Poll returns the requests that are new since the call before, at the first call
	// the newest of every ID. One that is deleted wants nothing.
	Poll(ctx context.Context) ([]cdc.SnapshotRequest, error)
	// Delete deletes a request whose snapshot has ended.
	Delete(ctx context.Context, id string) error
}

// takeRequests does what operators ask for, until ctx ends.
func (s *Source) takeRequests(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := s.answer(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// answer makes one pass: what is asked for is scheduled, paused, resumed or
// cancelled, and the requests of what has ended are deleted, behind the position
// that says so.
func (s *Source) answer(ctx context.Context) error {
	changed, err := s.Requests.Poll(ctx)
	if err != nil {
		return err
	}
	ended, err := s.reconcile(ctx, changed)
	if err != nil || len(ended) == 0 {
		return err
	}
	if err := s.Out.Flush(ctx); err != nil {
		return err
	}
	for _, id := range ended {
		if err := s.Requests.Delete(ctx, id); err != nil {
			return err
		}
	}
	s.snaps.mu.Lock()
	defer s.snaps.mu.Unlock()
	for _, id := range ended {
		delete(s.snaps.requests, id)
	}
	s.trimSnapshots()
	return nil
}

// reconcile holds the requests against the position. It returns the IDs of those
// that have ended.
func (s *Source) reconcile(ctx context.Context, changed []cdc.SnapshotRequest) (ended []string, err error) {
	s.snaps.mu.Lock()
	defer s.snaps.mu.Unlock()
	if s.snaps.requests == nil {
		s.snaps.requests = map[string]cdc.SnapshotRequest{}
	}
	for _, r := range changed {
		if r.Want == "" {
			delete(s.snaps.requests, r.ID)
		} else {
			s.snaps.requests[r.ID] = r
		}
	}
	moved := false
	order := slices.SortedFunc(maps.Values(s.snaps.requests), func(a, b cdc.SnapshotRequest) int {
		return cmp.Or(cmp.Compare(a.AtMicros, b.AtMicros), cmp.Compare(a.ID, b.ID))
	})
	for _, r := range order {
		sn := s.snapshot(r.ID)
		if sn == nil {
			s.accept(r)
			sn, moved = s.snapshot(r.ID), true
		} else if sn.State != r.Want && underway(sn.State) {
			s.follow(r)
			sn, moved = s.snapshot(r.ID), true
		}
		if !underway(sn.State) {
			ended = append(ended, r.ID)
		}
	}
	if !s.snaps.polled {
		s.snaps.polled = true
		s.snaps.moved.ring()
		for _, sn := range s.pos.Snapshots { // whose list of keys is gone
			if _, known := s.snaps.requests[sn.ID]; !known && sn.Keys > 0 && underway(sn.State) {
				s.endSnapshot(sn.ID, cdc.SnapshotFailed, "its request, which has its keys, is not there any more")
				moved = true
			}
		}
	}
	if moved {
		s.snaps.changed.ring()
		return ended, s.checkpoint(ctx)
	}
	return ended, nil
}

// accept schedules what a new request asks for. The caller holds the lock.
func (s *Source) accept(r cdc.SnapshotRequest) {
	sn := cdc.Snapshot{ID: r.ID, Table: r.Table, Reason: r.Reason, Where: r.Where, Keys: len(r.Keys), State: r.Want, Estimate: uint64(len(r.Keys)), BeganMicros: time.Now().UnixMicro()}
	if t := tableNamed(r.Table); !s.Match(t) || !s.copied(t) {
		sn.State, sn.Problem = cdc.SnapshotFailed, "the table "+r.Table+" is not captured"
	}
	if sn.State != cdc.SnapshotFailed && s.turn(sn.ID, sn.Table) >= cdc.Turns {
		sn.State, sn.Problem = cdc.SnapshotFailed, fmt.Sprintf("the source has logged no row since %d copies of %s began, and another could not be told from them; ask again when any table has changed", cdc.Turns, r.Table)
	}
	if underway(sn.State) {
		if at, err := s.pos.Version(); r.Sweep && err == nil {
			sn.Sweep = below(at + cdc.Version(s.turn(sn.ID, sn.Table)))
		}
		s.schedule(sn)
		return
	}
	sn.EndedMicros = sn.BeganMicros
	s.pos.Snapshots = append(slices.Clip(s.pos.Snapshots), sn)
}

// follow pauses, resumes or cancels a snapshot. The caller holds the lock.
func (s *Source) follow(r cdc.SnapshotRequest) {
	if r.Want == cdc.SnapshotCancelled {
		s.endSnapshot(r.ID, cdc.SnapshotCancelled, "")
		return
	}
	s.changeSnapshot(r.ID).State = r.Want
	s.Log.Info("snapshot "+string(r.Want), "snapshot", r.ID, "table", r.Table)
}

// watchLoad holds the copying while the source is busy or the capture is behind, and
// says how far it is.
func (s *Source) watchLoad(ctx context.Context) error {
	var conn *client.Conn
	done := func() {}
	defer func() { done() }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		running := s.report()
		hold := ""
		if running {
			var err error
			if conn == nil {
				if conn, err = connect(ctx, s.Config); err == nil {
					done = until(ctx, conn)
				}
			}
			if err == nil {
				hold, err = s.busy(conn)
			}
			if err != nil && conn != nil { // whether it is busy is not known: go on
				done()
				conn, done = nil, func() {}
			}
		}
		s.setHold(hold)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// busy says why nothing should be copied now.
func (s *Source) busy(conn *client.Conn) (string, error) {
	if limit := s.Config.Snapshot.MaxLag; limit > 0 {
		s.snaps.mu.Lock()
		var lag time.Duration
		if !s.snaps.endAt.IsZero() {
			lag = s.Clock.At(s.snaps.endAt).Sub(time.UnixMicro(s.pos.CommitMicros))
		}
		s.snaps.mu.Unlock()
		if lag > limit {
			return fmt.Sprintf("the capture is %s behind", lag.Round(time.Second)), nil
		}
	}
	return threadsRunning(conn, s.Config.Snapshot.MaxThreadsRunning)
}

// threadsRunning says that the server has more than so many threads running; 0 is no limit.
func threadsRunning(conn *client.Conn, limit int) (string, error) {
	if limit <= 0 {
		return "", nil
	}
	rows, err := queryRows(conn, "SHOW GLOBAL STATUS LIKE 'Threads_running'")
	if err != nil || len(rows) != 1 {
		return "", err
	}
	n, err := strconv.Atoi(rows[0][1])
	if err != nil || n > limit {
		return fmt.Sprintf("the source has %s threads running", rows[0][1]), err
	}
	return "", nil
}

func (s *Source) setHold(hold string) {
	s.snaps.mu.Lock()
	defer s.snaps.mu.Unlock()
	was := s.snaps.hold
	s.snaps.hold = hold
	switch {
	case was == "" && hold != "":
		s.Metrics.held.Set(1)
		s.Log.Info("snapshots wait", "because", hold)
	case was != "" && hold == "":
		s.Metrics.held.Set(0)
		s.Log.Info("snapshots go on")
		s.snaps.changed.ring()
	}
}

// progressEvery is how often a copy says how far it is.
const progressEvery = 10 * time.Second

// report brings the metrics up to date and now and then says how far each copy is.
// It tells whether any is running.
func (s *Source) report() (running bool) {
	s.snaps.mu.Lock()
	defer s.snaps.mu.Unlock()
	// Of a table the one under way counts, of several the newest. Single rows that a replay or a
	// repair reads again say nothing of a copy that has failed.
	order := slices.Clone(s.pos.Snapshots)
	rank := func(sn cdc.Snapshot) int {
		switch {
		case ofReplay(sn.ID):
			return 0
		case underway(sn.State):
			return 2
		}
		return 1
	}
	slices.SortStableFunc(order, func(a, b cdc.Snapshot) int { return cmp.Compare(rank(a), rank(b)) })
	for i := range order {
		sn := &order[i]
		s.Metrics.copied.WithLabelValues(sn.Table).Set(float64(sn.Rows))
		s.Metrics.estimated.WithLabelValues(sn.Table).Set(float64(sn.Estimate))
		for _, state := range []cdc.SnapshotState{cdc.SnapshotRunning, cdc.SnapshotPaused, cdc.SnapshotDone, cdc.SnapshotCancelled, cdc.SnapshotFailed} {
			is := 0.0
			if state == sn.State {
				is = 1
			}
			s.Metrics.copyState.WithLabelValues(sn.Table, string(state)).Set(is)
		}
		if sn.State != cdc.SnapshotRunning {
			continue
		}
		running = true
		if j := s.snaps.jobs[sn.ID]; j != nil && time.Since(j.said) >= progressEvery {
			s.sayProgress(sn, j)
		}
	}
	s.Metrics.copying.Set(0)
	if running {
		s.Metrics.copying.Set(1)
	}
	return running
}

func (s *Source) sayProgress(sn *cdc.Snapshot, j *job) {
	rate := float64(j.read-j.told) / time.Since(j.said).Seconds()
	j.said, j.told = time.Now(), j.read
	args := []any{"snapshot", sn.ID, "table", sn.Table, "rows", sn.Rows, "rows_per_second", int(rate)}
	if sn.Estimate > 0 {
		args = append(args, "estimate", sn.Estimate, "percent", 100*sn.Rows/sn.Estimate)
	}
	if sn.Estimate > 0 && rate > 0 {
		left := time.Duration(float64(sn.Estimate-sn.Rows) / rate * float64(time.Second))
		args = append(args, "time_left", left.Round(time.Second))
	}
	s.Log.Info("copying table", args...)
}

// SnapshotPlan is what a snapshot would read.
type SnapshotPlan struct {
	Keys     [][]byte // as rows have them
	Estimate uint64   // about how many rows; 0 when nobody knows
}

// PlanSnapshot asks the server whether a snapshot of a table by this condition or
// these keys can be made. A BadKey in the error says which key cannot.
func PlanSnapshot(ctx context.Context, cfg Config, t cdc.TableName, where string, keys [][]byte) (SnapshotPlan, error) {
	plan := SnapshotPlan{Estimate: uint64(len(keys))}
	conn, err := connect(ctx, cfg)
	if err != nil {
		return plan, err
	}
	defer until(ctx, conn)()
	l, err := tableLayout(conn, t, cfg.policy())
	if err != nil {
		return plan, err
	}
	if err := checkWhere(conn, t, where); err != nil {
		return plan, err
	}
	in := newTableIn(l, "")
	for n, key := range keys {
		if _, err := in.values(key); err != nil {
			return plan, BadKey{n, err}
		}
		plan.Keys = append(plan.Keys, in.ordered(key))
	}
	if where == "" && len(keys) == 0 {
		plan.Estimate, err = estimateRows(conn, t)
	}
	return plan, err
}

// Rows reads the rows of a table with these keys as they are now, through the encoders of
// the log, masks included. It calls fn with each key as it was given, and its row, which is
// nil where the server has none: for every key when the table is gone or has another
// primary key. layout is that of a Change. The row is good until fn returns.
func Rows(ctx context.Context, cfg Config, t cdc.TableName, keys [][]byte, fn func(key, row []byte, layout uint32) error) error {
	conn, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	r, err := newRowReader(ctx, conn, cfg, t, "")
	if err != nil {
		return err
	}
	defer r.Close()
	return r.eachListed(keys, func(key, row []byte) error { return fn(key, row, r.layout) })
}

// Gone tells which rows of a table the server does not have now, of those with these
// keys. When the table is gone or has another primary key, all are.
func Gone(ctx context.Context, cfg Config, t cdc.TableName, keys [][]byte) (map[string]bool, error) {
	gone := map[string]bool{}
	err := Rows(ctx, cfg, t, keys, func(key, row []byte, _ uint32) error {
		if row == nil {
			gone[string(key)] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return gone, nil
}

// Unreadable says of keys of a table why no row can be asked for by them, by index; of all
// of them when the server has no such table.
func Unreadable(ctx context.Context, cfg Config, t cdc.TableName, keys [][]byte) (map[int]string, error) {
	conn, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer until(ctx, conn)()
	bad := map[int]string{}
	l, err := tableLayout(conn, t, cfg.policy())
	if err != nil && !errors.Is(err, cdc.ErrNoTable) {
		return nil, err
	}
	for n, key := range keys {
		if l == nil {
			bad[n] = fmt.Sprintf("there is no table %s", t)
		} else if _, err := newTableIn(l, "").values(key); err != nil {
			bad[n] = fmt.Sprintf("its key %s is none of %s any more: %v", key, t, err)
		}
	}
	return bad, nil
}

// BadKey says which of the keys is none of the table's.
type BadKey struct {
	Index int
	error
}

func (e BadKey) Unwrap() error { return e.error }

// BadWhere says that a condition cannot be used for a table.
type BadWhere struct{ *Stop }

func (e BadWhere) Unwrap() error { return e.Stop }

// ordered writes a key as rows have it: columns in the key's order, no white space.
func (t *tableIn) ordered(key []byte) []byte {
	fields := map[string]gjson.Result{}
	gjson.ParseBytes(key).ForEach(func(name, v gjson.Result) bool {
		fields[name.Str] = v
		return true
	})
	out := []byte{'{'}
	for n, i := range t.key {
		if n > 0 {
			out = append(out, ',')
		}
		out = append(out, t.columns[i].field...)
		switch v := fields[t.columns[i].name]; v.Type {
		case gjson.String:
			out = cdc.AppendString(out, v.Str)
		case gjson.JSON:
			out = appendJSON(out, []byte(v.Raw))
		default:
			out = append(out, v.Raw...)
		}
	}
	return append(out, '}')
}
