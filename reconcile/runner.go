package reconcile

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lockstep/cdc"
)

const (
	// saveEvery is how often the cursor of a full pass is saved at most.
	saveEvery = 10 * time.Second
	// recheck is how long after a full pass that has left differences there is another one, which
	// tells whether they were repaired.
	recheck = time.Hour
	// retryAfter is how long a comparison that could not be made is left alone.
	retryAfter = 30 * time.Second
)

// Runner compares all the time: samples, and full passes.
type Runner struct {
	Config  Config
	World   *World
	Targets []Target
	State   *State
	// Tables are those that are followed, and which of them can be compared now.
	Tables func(ctx context.Context) (followed, now []cdc.TableName, err error)
	// Recent gives keys of rows that changed last, at most so many, behind one end of the log
	// and up to the present one, which it returns.
	Recent func(ctx context.Context, table cdc.TableName, since Log, most int) (keys [][]byte, now Log, err error)
	// Pace gives Pass.ChunkRows and Pass.Took.
	Pace    func() (rows func() int, took func(rows int, took time.Duration))
	Metrics *Metrics
	// Found, if set, is told of every pass; whole says that it was over all rows.
	Found func(ctx context.Context, r *Result, whole bool)
	Log   *slog.Logger

	turn int                   // of the tables, in samples
	seen map[cdc.TableName]Log // ends of the last sample

	failed map[cdc.TableName]time.Time // when a full pass could not be made, of those that none could be made of since

	shown    bool // the gauges are those of the tables that were followed then
	followed []cdc.TableName
}

// Run compares until ctx ends. What cannot be compared now is tried again later.
func (r *Runner) Run(ctx context.Context) error {
	if err := r.State.Load(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.repeat(ctx, r.Config.SampleEvery, "sample", r.sample) })
	g.Go(func() error { return r.repeat(ctx, time.Second, "full", r.full) })
	return g.Wait()
}

// repeat makes laps until ctx ends. One that cannot be made is told of, and the next one waits.
func (r *Runner) repeat(ctx context.Context, every time.Duration, kind string, lap func(context.Context) error) error {
	failed := false
	for {
		wait := every
		if err := lap(ctx); ctx.Err() != nil {
			return nil
		} else if err != nil {
			r.Log.Warn("rows could not be compared; trying again", "comparison", kind, "error", err, "wait", max(wait, retryAfter))
			wait, failed = max(wait, retryAfter), true
		} else if failed {
			r.Log.Info("rows are compared again", "comparison", kind)
			failed = false
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// report writes a finding into the log.
func (r *Runner) report(f *Finding) bool {
	args := []any{"table", f.Table, "sink", f.Sink, "class", f.Class, "key", string(f.Key), "version", f.Version}
	if f.Letter != "" {
		return false // it is told of elsewhere
	}
	if f.Reason != "" {
		args = append(args, "reason", f.Reason)
	}
	r.Log.Warn("a row is not as it is in the source", args...)
	return false
}

// limited is report for the first findings of a pass; of thousands the metrics tell.
func (r *Runner) limited() func(*Finding) bool {
	left := 20
	return func(f *Finding) bool {
		if left--; left < 0 {
			return false
		}
		return r.report(f)
	}
}

// begin makes the metrics of tables.
func (r *Runner) begin(tables []cdc.TableName) {
	for _, t := range tables {
		for _, target := range r.Targets {
			if target.Store.Keeps(t) == nil {
				r.Metrics.begin(t.String(), target.Name)
			}
		}
	}
}

// sample compares some rows: of each table those that changed since the last sample, and
// of one after the other, as far as there is room, those with the highest keys.
func (r *Runner) sample(ctx context.Context) error {
	_, tables, err := r.Tables(ctx)
	if err != nil || len(tables) == 0 {
		return err
	}
	r.begin(tables)
	if r.seen == nil {
		r.seen = map[cdc.TableName]Log{}
	}
	room := r.Config.SampleRows
	r.turn++
	for i := range tables {
		t := tables[(r.turn+i)%len(tables)]
		if room <= 0 {
			break
		}
		keys, now, err := r.Recent(ctx, t, r.seen[t], room)
		if err != nil {
			return err
		}
		if i == 0 && len(keys) < room {
			more, err := r.highest(ctx, t, min(200, room-len(keys)))
			if err != nil {
				return err
			}
			keys = union(keys, more)
		}
		if len(keys) == 0 {
			continue
		}
		room -= len(keys)
		pass := &Pass{World: r.World, Table: t, Targets: r.Targets, Keys: keys, Report: r.limited(), Metrics: r.Metrics}
		result, err := pass.Run(ctx)
		if err != nil {
			return err
		}
		r.found(ctx, result, false)
		r.seen[t] = now
		r.Metrics.done(t.String(), "sample")
	}
	return nil
}

func union(keys, more [][]byte) [][]byte {
	known := map[string]bool{}
	for _, k := range keys {
		known[string(k)] = true
	}
	for _, k := range more {
		if !known[string(k)] {
			keys = append(keys, k)
		}
	}
	return keys
}

func (r *Runner) highest(ctx context.Context, t cdc.TableName, most int) (keys [][]byte, err error) {
	source, err := r.World.Open(ctx, t, "")
	if err != nil {
		return nil, err
	}
	defer source.Close()
	rows, err := source.Last(most)
	for _, row := range rows {
		keys = append(keys, row.Key)
	}
	return keys, err
}

// full makes the full pass that is due for the longest time, if one is.
func (r *Runner) full(ctx context.Context) error {
	followed, tables, err := r.Tables(ctx)
	if err != nil {
		return err
	}
	if !r.shown || !slices.Equal(followed, r.followed) {
		r.show(followed)
		r.shown, r.followed = true, followed
	}
	var due *TableState
	var table cdc.TableName
	for _, t := range tables {
		s := r.State.of(t.String())
		if !r.isDue(s) {
			continue
		}
		// One that cannot be compared does not keep the others from it.
		if due == nil || cmp.Or(r.failed[t].Compare(r.failed[table]), dueSince(s).Compare(dueSince(due))) < 0 {
			due, table = s, t
		}
	}
	if due == nil {
		return nil
	}
	err = r.pass(ctx, table, due)
	if delete(r.failed, table); err != nil {
		if r.failed == nil {
			r.failed = map[cdc.TableName]time.Time{}
		}
		r.failed[table] = time.Now()
	}
	return err
}

func (r *Runner) isDue(s *TableState) bool {
	if !s.Began.IsZero() || s.Last == nil { // it is to go on, or is the first
		return true
	}
	if time.Since(s.Last.Ended) >= recheck && slices.ContainsFunc(s.Last.Sinks, func(k *SinkResult) bool { return k.Differ() > k.Repaired }) {
		return true
	}
	return time.Since(s.Last.Began) >= r.Config.FullEvery
}

// show has the metrics say what the last full passes have found, of the tables that are followed and
// of the sinks that there are, and nothing of others: they may be gone.
func (r *Runner) show(followed []cdc.TableName) {
	for name, t := range r.State.tables {
		switch {
		case !slices.ContainsFunc(followed, func(n cdc.TableName) bool { return n.String() == name }):
			r.Metrics.forget(name)
		case t.Last != nil:
			for _, s := range t.Last.Sinks {
				if s.Incomparable == "" && slices.ContainsFunc(r.Targets, func(target Target) bool { return target.Name == s.Sink }) {
					r.Metrics.covered(name, t.Last.Began, s)
				}
			}
		}
	}
}

func dueSince(s *TableState) time.Time {
	if s.Last == nil {
		return time.Time{}
	}
	return s.Last.Began
}

// pass makes a full pass over a table, or goes on with it.
func (r *Runner) pass(ctx context.Context, table cdc.TableName, state *TableState) error {
	resumed := len(state.After) > 0 && r.has(table, state.Found)
	if !resumed {
		state.Began, state.After, state.Found = time.Now(), nil, &Result{}
	}
	if state.Last == nil {
		for _, target := range r.Targets {
			if target.Store.Keeps(table) == nil {
				r.Metrics.first(table.String(), target.Name, state.Began)
			}
		}
	}
	rows, took := r.Pace()
	before, cursor := state.Found, &trail{found: state.Found.copy()}
	pass := &Pass{
		World: r.World, Table: table, Targets: r.Targets, After: state.After, ChunkRows: rows, Took: took,
		Report: r.limited(), Metrics: r.Metrics, Done: cursor.done,
		Rest: func(ctx context.Context, source Source, took time.Duration) error {
			if err := cursor.save(func(key []byte, found *Result) error {
				state.After, state.Found = key, found
				return r.State.save(ctx, state)
			}); err != nil {
				return err
			}
			return r.rest(ctx, source, took)
		},
	}
	r.Log.Info("comparing all rows of a table", "table", table.String(), "goes_on", resumed)
	result, err := pass.Run(ctx)
	if err != nil {
		return err // and it goes on behind the cursor
	}
	result.add(before)
	result.Began = state.Began
	r.found(ctx, result, true)
	state.Began, state.After, state.Found, state.Last = time.Time{}, nil, nil, result
	r.Metrics.ended(table.String())
	for _, s := range result.Sinks {
		if s.Incomparable == "" {
			r.Metrics.covered(table.String(), result.Began, s)
		}
		r.Log.Info("all rows of a table are compared", "table", table.String(), "sink", s.Sink, "compared", s.Compared, "mismatches", s.Differ(), "letters", s.Letters, "unclear", s.Unclear, "took", result.Ended.Sub(result.Began).Round(time.Millisecond))
	}
	r.Metrics.done(table.String(), "full")
	return r.State.save(ctx, state)
}

// has reports whether a pass has found something, be it nothing, in each sink that is compared and in no
// other: one that is new has not seen the rows before the cursor.
func (r *Runner) has(table cdc.TableName, found *Result) bool {
	var now, then []string
	for _, target := range r.Targets {
		if target.Store.Keeps(table) == nil {
			now = append(now, target.Name)
		}
	}
	if found != nil {
		for _, s := range found.Sinks {
			then = append(then, s.Sink)
		}
	}
	slices.Sort(now)
	slices.Sort(then)
	return slices.Equal(now, then)
}

func (r *Runner) found(ctx context.Context, result *Result, whole bool) {
	if r.Found != nil {
		r.Found(ctx, result, whole)
	}
}

// rest leaves the source alone for as long as Load says, and for as long as it is busy.
func (r *Runner) rest(ctx context.Context, source Source, took time.Duration) error {
	wait := min(time.Duration(float64(took)*(1/r.Config.Load-1)), time.Minute)
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		busy, err := source.Busy()
		if err != nil || busy == "" {
			return err
		}
		wait = time.Second
	}
}

// trail is how far a pass is, and what it has found up to there.
type trail struct {
	mu    sync.Mutex
	key   []byte // nil when it is saved
	found *Result

	saving sync.Mutex
	saved  time.Time
}

func (t *trail) done(key []byte, found *Result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key = key
	t.found.add(found)
}

// save gives do the key up to which everything is said, when there is another one and it is time for that.
func (t *trail) save(do func(key []byte, found *Result) error) error {
	t.saving.Lock()
	defer t.saving.Unlock()
	if time.Since(t.saved) < saveEvery {
		return nil
	}
	t.mu.Lock()
	key, found := t.key, t.found.copy()
	t.key = nil
	t.mu.Unlock()
	if key == nil {
		return nil
	}
	t.saved = time.Now()
	return do(key, found)
}
