package mysql

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"

	"lockstep/cdc"
)

// roomy is an Output that says when it has room for rows that can wait.
type roomy interface {
	// Room returns when little of what was published is unacknowledged.
	Room(ctx context.Context) error
}

const (
	// sliceBytes is what a copy publishes before it lets the log go first.
	sliceBytes = 32 << 10
	// firstChunk and keyChunk are rows: of the first chunk of a table, and of one by keys.
	firstChunk, keyChunk = 1000, 200
)

// job is a snapshot that this session works at. Its fields are guarded by
// snapshots.mu; planning keeps the plan to one reader.
type job struct {
	id    string
	table cdc.TableName
	where string
	turn  uint8
	ended bool // cancelled, or whatever else: what is still read of it is not published

	layout *tableIn // nil: to be read
	shape  int      // counts the statements that changed the table as a whole

	begun    bool     // until, or keys, are known
	until    []byte   // the last key when the job began; rows behind it are in the log
	planned  []byte   // chunks are handed out up to this key
	keys     [][]byte // of a copy by keys: those not handed out
	all      bool     // everything is handed out
	planning bool
	chunks   []*chunk // handed out, in order; those before are finished
	active   int      // readers at work
	size     int      // rows of the next chunk
	width    float64  // bytes of a row, as last seen
	notUntil time.Time

	since time.Time // of this session
	read  uint64    // rows since then
	said  time.Time
	told  uint64 // rows when it was said
}

// chunk is a range of rows, or a list of keys, that one reader copies.
type chunk struct {
	after, upTo []byte   // the rows behind after up to upTo are left
	keys        [][]byte // of a copy by keys: those left
	rows        uint64   // copied and not counted in the position
	done        bool
}

// alongside runs the snapshots beside stream, until that ends or one of them cannot
// go on.
func (s *Source) alongside(ctx context.Context, stream func(context.Context) error) error {
	s.snaps.mu.Lock()
	s.snaps.jobs, s.snaps.windows, s.snaps.hold, s.snaps.placed = map[string]*job{}, nil, "", false
	s.snaps.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	var all sync.WaitGroup
	begin := func(run func(context.Context) error) {
		all.Go(func() {
			if s.awaitReading(ctx) != nil {
				return
			}
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	for range s.Config.Snapshot.Readers {
		begin(func(ctx context.Context) error { return (&copier{Source: s}).run(ctx) })
	}
	begin(s.watchLoad)
	if s.Requests != nil {
		begin(s.takeRequests)
	}
	err := stream(ctx)
	ended := context.Cause(ctx)
	cancel(nil)
	all.Wait()
	if ended != nil && ended != context.Canceled {
		return ended
	}
	return err
}

// awaitReading returns when the log is being read: until then the position belongs to
// whoever opens the connection.
func (s *Source) awaitReading(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !s.reading.Load() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// copier is one reader of snapshots, on a connection of its own.
type copier struct {
	*Source
	conn  *client.Conn
	close func()
	buf   buffer
	shape *tableIn // what was read with last

	key, after []byte // reused from row to row
	values     []any
}

func (c *copier) run(ctx context.Context) error {
	defer c.disconnect()
	for ctx.Err() == nil {
		j, err := c.take(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		if err := c.work(ctx, j); err != nil {
			return err
		}
	}
	return nil
}

// take waits for a job that has something to hand out, and becomes its planner. Of
// several it is the one with the fewest readers: tables first, then parts of one.
func (c *copier) take(ctx context.Context) (*job, error) {
	var took *job
	s := &c.snaps
	for {
		var wait time.Duration
		s.mu.Lock()
		took, wait = c.choose()
		if took != nil {
			took.planning = true
			took.active++
			s.mu.Unlock()
			return took, nil
		}
		heard := s.changed.heard()
		s.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-heard:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
		timer.Stop()
	}
}

// choose finds the job to work at, or says when to look again. The caller holds
// the lock.
func (s *Source) choose() (best *job, wait time.Duration) {
	now, wait := time.Now(), time.Hour
	if s.snaps.hold != "" {
		return nil, wait
	}
	if pause := s.snaps.paceAt.Sub(now); pause > 0 {
		return nil, pause
	}
	for i := range s.pos.Snapshots {
		sn := &s.pos.Snapshots[i]
		if sn.State != cdc.SnapshotRunning {
			continue
		}
		j := s.job(sn)
		switch {
		case j == nil || j.planning || j.all || len(j.chunks) >= s.Config.Snapshot.Readers:
		case j.notUntil.After(now):
			wait = min(wait, j.notUntil.Sub(now))
		case best == nil || j.active < best.active:
			best = j
		}
	}
	return best, wait
}

// job is what this session has of a running snapshot. It is nil while its keys are
// not known.
func (s *Source) job(sn *cdc.Snapshot) *job {
	if j := s.snaps.jobs[sn.ID]; j != nil {
		return j
	}
	j := &job{id: sn.ID, table: tableNamed(sn.Table), where: sn.Where, turn: sn.Turn, planned: sn.After, size: min(firstChunk, s.Config.Snapshot.ChunkRows), since: time.Now(), said: time.Now()}
	if sn.Keys > 0 {
		r, known := s.snaps.requests[sn.ID]
		if !known {
			return nil // takeRequests ends it when there is none
		}
		for _, k := range r.Keys {
			j.keys = append(j.keys, k)
		}
		if i := slices.IndexFunc(j.keys, func(k []byte) bool { return string(k) == string(sn.After) }); i >= 0 {
			j.keys = j.keys[i+1:]
		}
	}
	s.snaps.jobs[sn.ID] = j
	return j
}

// work plans the next chunk of a job and copies it.
func (c *copier) work(ctx context.Context, j *job) error {
	var ch *chunk
	err := c.persist(ctx, j, "plan", func() (err error) {
		ch, err = c.plan(ctx, j)
		return err
	})
	c.snaps.mu.Lock()
	j.planning = false
	if ch != nil {
		j.chunks = append(j.chunks, ch)
	}
	c.snaps.changed.ring()
	c.snaps.mu.Unlock()
	if err == nil && ch != nil {
		err = c.persist(ctx, j, "copy", func() error { return c.copy(ctx, j, ch) })
	}
	c.snaps.mu.Lock()
	defer c.snaps.mu.Unlock()
	j.active--
	c.snaps.changed.ring()
	if err == nil && ctx.Err() == nil {
		err = c.advance(ctx, j)
	}
	return err
}

// errOver says that a job has ended.
var errOver = errors.New("the snapshot is over")

// outputError marks an error of the Output, which ends the session.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

// persist repeats do for as long as its error is one that passes. A snapshot that
// cannot go on fails, or stops the capture when no operator has asked for it: then
// rows would be missing that nobody knows of. The error is for the session.
func (c *copier) persist(ctx context.Context, j *job, what string, do func() error) error {
	wait := &backoff.ExponentialBackOff{InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: 5 * time.Second, RandomizationFactor: 0.3}
	for {
		err := do()
		if err == nil || errors.Is(err, errOver) || ctx.Err() != nil {
			return nil
		}
		if out, ok := errors.AsType[outputError](err); ok {
			return out.error
		}
		c.disconnect()
		problem := c.judge(ctx, j, err)
		if out, ok := errors.AsType[outputError](problem); ok {
			return out.error
		}
		if problem != nil {
			return c.give(ctx, j, problem)
		}
		c.snaps.mu.Lock()
		over := j.ended
		j.layout, j.shape = nil, j.shape+1
		c.snaps.mu.Unlock()
		if over || ctx.Err() != nil {
			return nil
		}
		pause := wait.NextBackOff()
		c.Log.Warn("a snapshot's chunk failed and is tried again", "snapshot", j.id, "table", j.table, "doing", what, "error", err, "wait", pause.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// judge returns what reading again will not mend, nil for everything else. What was
// met is held against the log first, which may be far behind it.
func (c *copier) judge(ctx context.Context, j *job, err error) error {
	if stop, ok := errors.AsType[*Stop](lost(err)); ok {
		if c.reshaped(ctx, j) { // what was read does not fit the columns it was asked by
			return nil
		}
		return c.unexplained(ctx, j, err, func() error { return stop })
	}
	if my, ok := errors.AsType[*gomysql.MyError](err); ok && j.where != "" {
		switch my.Code {
		case gomysql.ER_QUERY_INTERRUPTED, gomysql.ER_LOCK_WAIT_TIMEOUT, gomysql.ER_LOCK_DEADLOCK, gomysql.ER_SERVER_SHUTDOWN, gomysql.ER_NO_SUCH_TABLE:
		default:
			return stopf("", "the rows of %s where %s cannot be read: %v", j.table, j.where, err)
		}
	}
	if missing(err) {
		return c.unexplained(ctx, j, err, func() error { return c.gone(ctx, j) })
	}
	return nil
}

// reshaped reports whether the table has another shape by now than the one that was
// read with, so that what did not fit may fit.
func (c *copier) reshaped(ctx context.Context, j *job) bool {
	was := c.shape // of the job it may be another reader's, and newer
	if was == nil || was.table != j.table || c.connect(ctx) != nil {
		return false
	}
	now, err := tableLayout(c.conn, j.table, c.Config.policy())
	return err == nil && (now.keyNames() != was.keyNames() || !slices.EqualFunc(now.columns, was.columns, func(a, b column) bool {
		return a.name == b.name && a.sqlType == b.sqlType
	}))
}

func missing(err error) bool {
	if my, ok := errors.AsType[*gomysql.MyError](err); ok {
		return my.Code == gomysql.ER_NO_SUCH_TABLE || my.Code == gomysql.ER_BAD_TABLE_ERROR
	}
	return errors.Is(err, cdc.ErrNoTable)
}

// unexplained runs then, under the lock, once the log is read up to a moment at which
// what was met still held, and does not explain it. It leaves it when the job has
// ended by then, or the log has named the table as a whole meanwhile.
func (c *copier) unexplained(ctx context.Context, j *job, met error, then func() error) error {
	err := c.settle(ctx, j, met, then)
	if stop, ok := errors.AsType[*Stop](lost(err)); ok {
		return stop
	}
	if out, ok := errors.AsType[outputError](err); ok {
		return out
	}
	return nil // what is not known is asked when it is met again
}

func (c *copier) settle(ctx context.Context, j *job, met error, then func() error) error {
	if err := c.connect(ctx); err != nil {
		return err
	}
	w, err := c.openWindow(ctx, j.table, j.turn)
	if err != nil {
		return err
	}
	defer c.closeWindow(w)
	// It waits for statements on the table, and a table that may not be seen looks like
	// none until it is asked for by name.
	if _, err := queryRows(c.conn, "SELECT 1 FROM "+quoteTable(j.table)+" LIMIT 0"); missing(err) != missing(met) {
		return nil
	}
	high, err := executed(c.conn)
	if err != nil {
		return err
	}
	if err := c.pass(ctx, w, high); err != nil {
		return err
	}
	c.snaps.mu.Lock()
	defer c.snaps.mu.Unlock()
	if j.ended || w.void {
		return nil
	}
	return then()
}

// gone ends a job whose table is not there any more, and of whose end the log says
// nothing. What it was to sweep is swept. The caller holds the lock.
func (c *copier) gone(ctx context.Context, j *job) error {
	sn := c.snapshot(j.id)
	if sn == nil {
		return nil
	}
	if err := c.sweep(ctx, *sn); err != nil {
		return outputError{err}
	}
	c.unfollow(j.table)
	c.endSnapshot(j.id, cdc.SnapshotCancelled, "the table is gone")
	if err := c.checkpoint(ctx); err != nil {
		return outputError{err}
	}
	return nil
}

// give ends a snapshot that cannot go on.
func (c *copier) give(ctx context.Context, j *job, problem error) error {
	c.snaps.mu.Lock()
	defer c.snaps.mu.Unlock()
	if j.ended {
		return nil
	}
	if sn := c.snapshot(j.id); sn == nil || ownCopy(sn) {
		return problem
	}
	c.Log.Error("a snapshot has failed", "snapshot", j.id, "table", j.table, "problem", problem)
	c.endSnapshot(j.id, cdc.SnapshotFailed, problem.Error())
	return c.checkpoint(ctx)
}

// plan takes the next part of a job; nil when nothing is left. Only one reader
// plans a job at a time.
func (c *copier) plan(ctx context.Context, j *job) (*chunk, error) {
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	t, err := c.shapeOf(j)
	if err != nil {
		return nil, err
	}
	if !j.begun {
		if err := c.begin(ctx, j, t); err != nil {
			return nil, err
		}
	}
	c.snaps.mu.Lock()
	defer c.snaps.mu.Unlock()
	if j.ended {
		return nil, errOver
	}
	if j.keys != nil || j.until == nil {
		n := min(keyChunk, len(j.keys))
		ch := &chunk{keys: j.keys[:n]}
		j.keys = j.keys[n:]
		j.all = len(j.keys) == 0
		if n == 0 {
			return nil, nil
		}
		return ch, nil
	}
	after, size := j.planned, j.size
	c.snaps.mu.Unlock()
	query, err := t.selectNth(after, j.until, size)
	var upTo []byte
	if err != nil {
		err = stopf("", "copy: %v", err)
	} else {
		upTo, err = c.oneKey(t, query)
	}
	c.snaps.mu.Lock()
	switch {
	case err != nil:
		return nil, err
	case upTo == nil:
		upTo, j.all = j.until, true
	case string(upTo) == string(after):
		return nil, stopf("", "copy %s: the server puts the key %s behind itself, so the rows cannot be read in parts", j.table, upTo)
	}
	j.planned = upTo
	return &chunk{after: after, upTo: upTo}, nil
}

// begin finds out what a job is about: its last key and about how many rows.
func (c *copier) begin(ctx context.Context, j *job, t *tableIn) error {
	c.snaps.mu.Lock()
	sn := c.snapshot(j.id)
	if sn == nil || j.ended {
		c.snaps.mu.Unlock()
		return errOver
	}
	low, keys := c.place(), sn.Keys
	c.snaps.mu.Unlock()
	estimate := uint64(keys)
	if keys == 0 {
		if err := checkWhere(c.conn, j.table, j.where); err != nil {
			return err
		}
		var until []byte
		// Rows of a transaction that stands before here in the log may not be visible
		// yet; those of later ones come through the log.
		_, err := c.between(ctx, low, func() (err error) {
			until, err = c.oneKey(t, t.selectLast())
			return err
		})
		if err != nil {
			return err
		}
		if j.where == "" { // of a condition nobody knows
			if estimate, err = estimateRows(c.conn, j.table); err != nil {
				return err
			}
		}
		j.until = until
	}
	c.snaps.mu.Lock()
	defer c.snaps.mu.Unlock()
	j.begun = true
	if sn := c.changeSnapshot(j.id); sn != nil {
		sn.Estimate = max(estimate, sn.Rows)
		c.Log.Info("copying table", "snapshot", j.id, "table", j.table, "rows", sn.Rows, "estimate", estimate)
	}
	return nil
}

// oneKey runs a query that gives one key or none.
func (c *copier) oneKey(t *tableIn, query string) ([]byte, error) {
	res, err := c.conn.Execute(query)
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", t.table, err)
	}
	defer res.Close()
	if len(res.Values) == 0 {
		return nil, nil
	}
	key, err := t.keyJSON(res.Values[0])
	if err != nil {
		return nil, stopf("", "copy: %v", err)
	}
	return key, nil
}

// shapeOf is the present layout of a job's table.
func (c *copier) shapeOf(j *job) (*tableIn, error) {
	for {
		c.snaps.mu.Lock()
		t, shape, ended := j.layout, j.shape, j.ended
		c.snaps.mu.Unlock()
		if ended {
			return nil, errOver
		}
		if t != nil {
			c.shape = t
			return t, nil
		}
		l, err := tableLayout(c.conn, j.table, c.Config.policy())
		if err == nil {
			err = mayReadAll(c.conn, j.table, c.Config.User)
		}
		if err == nil { // it may have come by a RENAME
			err = c.checkCascades(c.conn, []cdc.TableName{j.table})
		}
		if err != nil {
			return nil, err
		}
		c.snaps.mu.Lock()
		if err = c.sameKey(l); err == nil && j.shape == shape { // else it has changed meanwhile
			j.layout = newTableIn(l, j.where)
		}
		c.snaps.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// copy brings a chunk into Kafka, in as many windows as it takes.
func (c *copier) copy(ctx context.Context, j *job, ch *chunk) error {
	for !ch.done {
		if err := c.window(ctx, j, ch); err != nil {
			return err
		}
		c.snaps.mu.Lock()
		err := c.advance(ctx, j)
		c.snaps.mu.Unlock()
		if err != nil {
			return outputError{err}
		}
	}
	return nil
}

// window copies what one window holds of a chunk. Nothing of it counts when the
// window has become void.
func (c *copier) window(ctx context.Context, j *job, ch *chunk) error {
	if err := c.connect(ctx); err != nil {
		return err
	}
	w, err := c.openWindow(ctx, j.table, j.turn)
	if err != nil {
		return err
	}
	defer c.closeWindow(w)
	t, err := c.shapeOf(j) // behind the opening: a change of shape makes the window void
	if err != nil {
		return err
	}
	whole := true
	var took time.Duration
	high, err := c.between(ctx, w.low, func() (err error) {
		began := time.Now()
		if ch.keys != nil {
			err = c.readListed(t, ch.keys)
		} else {
			whole, err = c.readRange(j, t, ch)
		}
		took = time.Since(began)
		return err
	})
	if err != nil {
		return err
	}
	if err := c.pass(ctx, w, high); err != nil {
		return err
	}
	if ok, err := c.publish(ctx, j, w); err != nil || !ok {
		return err
	}
	c.snaps.mu.Lock()
	defer c.snaps.mu.Unlock()
	n := len(c.buf.rows)
	ch.rows += uint64(n)
	j.read += uint64(n)
	c.adapt(j, n, took)
	switch {
	case ch.keys != nil:
		ch.after, ch.keys, ch.done = ch.keys[len(ch.keys)-1], nil, true
	case whole:
		ch.after, ch.done = ch.upTo, true
	default:
		ch.after = slices.Clone(c.buf.rows[n-1].key)
	}
	return nil
}

// adapt chooses the size of the job's next chunk by what this one has cost.
func (s *Source) adapt(j *job, rows int, took time.Duration) {
	cfg := s.Config.Snapshot
	if cfg.RowsPerSecond > 0 {
		s.snaps.paceAt = later(s.snaps.paceAt, time.Now()).Add(time.Duration(float64(rows) / float64(cfg.RowsPerSecond) * float64(time.Second)))
	}
	j.size = cfg.nextSize(j.size, rows, took)
}

// nextSize is how many rows a chunk should have after one of that size that had so many
// rows and took so long.
func (cfg Snapshot) nextSize(size, rows int, took time.Duration) int {
	if took < cfg.ChunkTime/2 && 2*rows < size {
		return size // a small rest says nothing
	}
	factor := float64(cfg.ChunkTime) / float64(max(took, time.Millisecond))
	size = int(float64(size) * min(2, max(0.5, factor)))
	if cfg.RowsPerSecond > 0 {
		size = min(size, cfg.RowsPerSecond)
	}
	return max(1, min(size, cfg.ChunkRows))
}

// errFull ends a SELECT whose rows are more than a chunk may hold.
var errFull = errors.New("the chunk is full")

// readRange reads the rows of a chunk into the buffer, in order. whole is false
// when there were more than may be held.
func (c *copier) readRange(j *job, t *tableIn, ch *chunk) (whole bool, err error) {
	c.snaps.mu.Lock()
	limit := 2*j.size + 1 // rows may have come between the plan and now
	if j.width > 0 {
		limit = max(1, min(limit, int(float64(c.Config.Snapshot.ChunkBytes)/j.width)+1))
	}
	c.snaps.mu.Unlock()
	query, err := t.selectRows(ch.after, ch.upTo, limit)
	if err != nil {
		return false, stopf("", "copy: %v", err)
	}
	err = c.read(t, query, nil)
	if errors.Is(err, errFull) {
		c.disconnect() // the server is still sending
		err = nil
		whole = false
	} else {
		whole = len(c.buf.rows) < limit
	}
	if n := len(c.buf.rows); n > 0 && err == nil {
		c.snaps.mu.Lock()
		j.width = float64(c.buf.bytes) / float64(n)
		c.snaps.mu.Unlock()
	}
	return whole, err
}

// readListed reads the rows of the listed keys into the buffer, and behind them the
// keys that have no row.
func (c *copier) readListed(t *tableIn, keys [][]byte) error {
	query, err := t.selectListed(keys)
	if err != nil {
		return stopf("", "copy: %v", err)
	}
	found := map[string]bool{}
	if err := c.read(t, query, found); err != nil {
		return err
	}
	for _, key := range keys {
		key = t.ordered(key) // as rows have it: JSON can be written in other ways
		if !found[string(key)] {
			c.buf.add(key, nil)
		}
	}
	return nil
}

// read runs a SELECT of all columns into the buffer. A list of keys is held whole.
func (c *copier) read(t *tableIn, query string, found map[string]bool) error {
	c.buf.reset()
	c.buf.layout = t.print
	c.values = slices.Grow(c.values[:0], len(t.columns))[:len(t.columns)]
	var failed error // of ours, to tell it from the connection's
	var result gomysql.Result
	err := c.conn.ExecuteSelectStreaming(query, &result, func(fields []gomysql.FieldValue) error {
		var err error
		if c.key, c.after, err = t.rowJSON(c.key[:0], c.after[:0], c.values, fields); err != nil {
			failed = stopf("", "copy: %v", err)
			return failed
		}
		c.buf.add(c.key, c.after)
		if cap(c.after) > slabBytes { // one huge row must not stay in memory
			c.after = nil
		}
		if found != nil {
			found[string(c.key)] = true
		} else if c.buf.bytes >= c.Config.Snapshot.ChunkBytes {
			failed = errFull
		}
		return failed
	}, nil)
	if failed != nil {
		return failed
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", t.table, err)
	}
	return nil
}

// publish hands the rows of the buffer to the output, slice by slice, so that the
// log never waits for more than one. It is false when the window is void.
func (c *copier) publish(ctx context.Context, j *job, w *window) (bool, error) {
	counters := c.Metrics.table(j.table)
	change := cdc.Change{Table: j.table, Version: w.version, Layout: c.buf.layout}
	room, _ := c.Out.(roomy)
	for rows := c.buf.rows; ; {
		if room != nil && len(rows) > 0 {
			if err := room.Room(ctx); err != nil {
				return false, outputError{err}
			}
		}
		n, err := c.slice(ctx, j, w, rows, &change, counters)
		if err != nil {
			return false, err
		}
		if n < 0 {
			return false, nil
		}
		if rows = rows[n:]; len(rows) == 0 {
			return true, nil
		}
	}
}

// slice publishes the first of rows and says how many; -1 when the window is void.
func (c *copier) slice(ctx context.Context, j *job, w *window, rows []row, change *cdc.Change, counters *tableCounters) (int, error) {
	c.snaps.mu.Lock()
	defer c.snaps.mu.Unlock()
	if j.ended {
		return 0, errOver
	}
	if w.void {
		return -1, nil
	}
	bytes := 0
	for i, r := range rows {
		if bytes > sliceBytes {
			return i, nil
		}
		bytes += len(r.key) + len(r.after)
		if _, changed := w.touched[string(r.key)]; changed {
			c.Metrics.leftOut.Inc()
			continue
		}
		change.Op, change.Key, change.After = cdc.OpRead, r.key, r.after
		if r.after == nil {
			change.Op = cdc.OpDelete
		}
		if err := c.Out.Publish(ctx, change); err != nil {
			return 0, outputError{err}
		}
		counters.inc(change.Op)
	}
	return len(rows), nil
}

// advance counts what is finished from the front, and ends the job behind its last
// chunk. The caller holds the lock.
func (s *Source) advance(ctx context.Context, j *job) error {
	sn := s.changeSnapshot(j.id)
	if sn == nil || j.ended {
		return nil
	}
	for len(j.chunks) > 0 {
		front := j.chunks[0]
		sn.Rows += front.rows
		front.rows = 0
		if front.after != nil {
			sn.After = front.after
		}
		if !front.done {
			break
		}
		j.chunks = j.chunks[1:]
		s.snaps.changed.ring()
	}
	if sn.Estimate > 0 {
		sn.Estimate = max(sn.Estimate, sn.Rows)
	}
	if j.all && len(j.chunks) == 0 && !j.planning {
		if err := s.finish(ctx, j, *sn); err != nil {
			return err
		}
	}
	return s.checkpoint(ctx)
}

// finish ends a snapshot whose rows are all published. What is older than a copy of
// the whole table, and was not written anew, is gone.
func (s *Source) finish(ctx context.Context, j *job, sn cdc.Snapshot) error {
	if err := s.sweep(ctx, sn); err != nil {
		return err
	}
	s.endSnapshot(j.id, cdc.SnapshotDone, "")
	return nil
}

// sweep publishes the barrier of a snapshot that has one. The caller holds the lock.
func (s *Source) sweep(ctx context.Context, sn cdc.Snapshot) error {
	if sn.Sweep == 0 {
		return nil
	}
	if err := s.Out.Publish(ctx, &cdc.Change{Table: tableNamed(sn.Table), Op: cdc.OpBarrier, Version: sn.Sweep}); err != nil {
		return err
	}
	s.noteBarrier(sn.Table, sn.Sweep)
	return nil
}

// noteBarrier keeps the newest barrier of a table in the position.
func (s *Source) noteBarrier(table string, v cdc.Version) {
	barriers := maps.Clone(s.pos.Barriers) // checkpoints hold the old one
	if barriers == nil {
		barriers = map[string]cdc.Version{}
	}
	barriers[table] = max(barriers[table], v)
	s.pos.Barriers = barriers
}

// connect opens the connection unless it is open.
func (c *copier) connect(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	conn, err := connectCopier(ctx, c.Config)
	if err != nil {
		return err
	}
	done := until(ctx, conn)
	// Behind a virtual address another server may answer.
	c.snaps.mu.Lock()
	want := c.pos.ServerUUID
	c.snaps.mu.Unlock()
	if err := sameServer(conn, want); err != nil {
		done()
		return err
	}
	c.conn, c.close = conn, done
	return nil
}

func (c *copier) disconnect() {
	if c.conn != nil {
		c.close()
		c.conn = nil
	}
}

// connectCopier opens a connection that reads whole tables.
func connectCopier(ctx context.Context, cfg Config) (*client.Conn, error) {
	conn, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	conn.ReadTimeout = time.Hour // a condition without an index is silent for long
	noLimit := "SET max_execution_time = 0"
	if flavorOf(conn) == flavorMariaDB {
		noLimit = "SET max_statement_time = 0"
	}
	for _, set := range []string{
		"SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
		"SET sql_mode = 'ALLOW_INVALID_DATES'", // a key may be one
		"SET max_sort_length = 65536",          // a key that is a prefix is sorted, and must be sorted whole
		noLimit,
	} {
		if _, err := conn.Execute(set); err != nil {
			conn.Close()
			return nil, fmt.Errorf("prepare the session on %s: %s: %w", cfg.Addr, set, err)
		}
	}
	return conn, nil
}

// checkWhere lets the server say whether a condition can be used.
func checkWhere(conn *client.Conn, t cdc.TableName, where string) error {
	if where == "" {
		return nil
	}
	for _, form := range []string{"SELECT 1 FROM %s WHERE (\n%s\n)", "SELECT 1 FROM %s WHERE CASE WHEN\n%s\nTHEN TRUE ELSE FALSE END"} { // both only when it is one expression
		_, err := queryRows(conn, "EXPLAIN "+fmt.Sprintf(form, quoteTable(t), where))
		if my, ok := errors.AsType[*gomysql.MyError](err); ok {
			return BadWhere{stopf("", "the condition %s cannot be used for %s: %s", where, t, my.Message)}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// estimateRows is about how many rows a table has, as the server keeps count.
func estimateRows(conn *client.Conn, t cdc.TableName) (uint64, error) {
	_, _ = conn.Execute("SET information_schema_stats_expiry = 0") // MySQL remembers for a day, MariaDB does not
	rows, err := queryRows(conn, "SELECT IFNULL(TABLE_ROWS, 0) FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?", t.DB, t.Table)
	if err != nil {
		return 0, fmt.Errorf("estimate the rows of %s: %w", t, err)
	}
	if len(rows) == 0 {
		return 0, nil
	}
	return strconv.ParseUint(rows[0][0], 10, 64)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
