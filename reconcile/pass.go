package reconcile

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"lockstep/cdc"
	"lockstep/sinks"
)

const (
	// chunkBytes bounds the rows of one chunk, and chunksAhead how many of them wait for a
	// sink.
	chunkBytes  = 2 << 20
	chunksAhead = 4
	// mostPlaces is of how many rows the places are kept, 8 bytes each, to tell what a
	// store has besides. Of larger tables each document is looked up.
	mostPlaces = 8 << 20
	// mostRepairs is how many rows of a table one pass has repaired.
	mostRepairs = 500_000
	// scanTries is how often a store is looked through that does not answer to the end; half a
	// minute lies between the first try and the last one.
	scanTries = 6
)

// Pass compares the rows of one table with sinks, once. Done, ChunkRows, Took, Rest and Metrics may be nil.
type Pass struct {
	World   *World
	Table   cdc.TableName
	Targets []Target
	// Where restricts the rows; then documents without a row are not looked for.
	Where string
	// Keys, when there are any, are the only rows that are compared.
	Keys [][]byte
	// After is the key behind which the pass begins. Done is told of each key up to which
	// everything is said, by one goroutine at a time, and what was found since the last one.
	After []byte
	Done  func(key []byte, found *Result)
	// ChunkRows is how many rows the next SELECT reads, Took is told how long that took, and
	// Rest waits as long as the source is to be left alone then.
	ChunkRows func() int
	Took      func(rows int, took time.Duration)
	Rest      func(ctx context.Context, source Source, took time.Duration) error
	// Report is told of each confirmed mismatch, by one goroutine at a time, and says whether
	// it keeps it: what comes of its repair is put into it before Run returns.
	Report func(*Finding) (kept bool)
	// Repair has what differs written anew, at most Rate rows a second; 0 is no bound.
	Repair bool
	Rate   int
	// Metrics counts; nil for nobody.
	Metrics *Metrics

	progress progress
	mu       sync.Mutex // guards Report, the results and the way
	way      []*stretch // in the order of the keys, from the first one of which not everything is said
	seed     maphash.Seed
}

// Progress is how far a pass is.
type Progress struct {
	Doing    string // reads rows, looks for documents without a row, looks again, repairs
	Rows     int64  // read
	Compared map[string]int64
	Suspects int64 // rows that differ and are looked at again
}

type progress struct {
	doing    atomic.Value
	rows     atomic.Int64
	compared map[string]*atomic.Int64
	suspects map[string]*atomic.Int64
}

// Progress may be called while Run runs.
func (p *Pass) Progress() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := Progress{Rows: p.progress.rows.Load(), Compared: map[string]int64{}}
	out.Doing, _ = p.progress.doing.Load().(string)
	for sink, n := range p.progress.compared {
		out.Compared[sink] = n.Load()
		out.Suspects += p.progress.suspects[sink].Load()
	}
	return out
}

// Result is what a pass has found.
type Result struct {
	Table string        `json:"table"`
	Where string        `json:"where,omitempty"`
	Rows  int64         `json:"rows"`
	Began time.Time     `json:"began"`
	Ended time.Time     `json:"ended"`
	Sinks []*SinkResult `json:"sinks"`
}

// SinkResult is what a pass has found in one sink.
type SinkResult struct {
	Sink string `json:"sink"`
	// Incomparable is why nothing was compared.
	Incomparable string `json:"incomparable,omitempty"`
	// Compared counts rows, and Documents those that were looked up because no row that was
	// read is in their place.
	Compared  int64 `json:"compared"`
	Documents int64 `json:"documents"`
	// Mismatches counts what is confirmed, Letters rows that differ and have an open dead
	// letter, which are not among the mismatches.
	Mismatches map[Class]int64 `json:"mismatches"`
	Letters    int64           `json:"letters"`
	// Unclear counts rows of which nothing can be said, and Reason is that of one of them.
	Unclear int64  `json:"unclear"`
	Reason  string `json:"reason,omitempty"`
	// Repaired and Remaining count the mismatches that are none any more after a repair,
	// and that are some still.
	Repaired  int64 `json:"repaired"`
	Remaining int64 `json:"remaining"`

	repair []*Finding // what is to be repaired
}

// Differ counts the confirmed mismatches.
func (r *SinkResult) Differ() (n int64) {
	for _, some := range r.Mismatches {
		n += some
	}
	return n
}

// add adds what was found in other rows.
func (r *Result) add(o *Result) {
	r.Rows += o.Rows
	for _, of := range o.Sinks {
		to := r.of(of.Sink)
		to.Compared, to.Documents, to.Letters, to.Unclear = to.Compared+of.Compared, to.Documents+of.Documents, to.Letters+of.Letters, to.Unclear+of.Unclear
		to.Reason = cmp.Or(to.Reason, of.Reason)
		for class, n := range of.Mismatches {
			to.Mismatches[class] += n
		}
	}
}

// copy is a result that adds the same and shares nothing.
func (r *Result) copy() *Result {
	c := &Result{}
	c.add(r)
	return c
}

// of is what was found in one sink.
func (r *Result) of(sink string) *SinkResult {
	for _, s := range r.Sinks {
		if s.Sink == sink {
			return s
		}
	}
	s := &SinkResult{Sink: sink, Mismatches: map[Class]int64{}}
	r.Sinks = append(r.Sinks, s)
	return s
}

// Equal reports whether everything was compared and nothing differs, or does any more.
func (r *Result) Equal() bool {
	return !slices.ContainsFunc(r.Sinks, func(s *SinkResult) bool { return s.Differ() > s.Repaired || s.Letters > 0 || s.Unclear > 0 })
}

// Certain reports whether of every row it is known whether it is equal.
func (r *Result) Certain() bool {
	return !slices.ContainsFunc(r.Sinks, func(s *SinkResult) bool { return s.Unclear > 0 })
}

// chunk is a part of the rows and a GTID set of what they can have shown.
type chunk struct {
	rows []cdc.Row
	set  string
	of   *stretch
}

// stretch is what a chunk leaves: everything is said of it once each side has compared it and
// nothing of it is suspect any more. So no suspect is forgotten by who goes on behind it.
type stretch struct {
	key   []byte // its last one
	open  int    // sides and suspects that are not done with it
	found *Result
}

// done says that a side, or a suspect, is done with a stretch.
func (p *Pass) done(of *stretch) {
	if of == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	of.open--
	for len(p.way) > 0 && p.way[0].open == 0 {
		p.Done(p.way[0].key, p.way[0].found)
		p.way = p.way[1:]
	}
}

// side is a pass in one sink.
type side struct {
	*Pass
	target   Target
	result   *SinkResult
	chunks   chan chunk
	suspects chan *suspect
	places   []uint64        // hashes of those of the rows
	partial  bool            // places does not have all
	orphans  map[string]bool // that were reported, by key and place
	layout   uint32
}

// Run compares. What it returns beside an error is what it had found by then.
func (p *Pass) Run(ctx context.Context) (*Result, error) {
	r := &Result{Table: p.Table.String(), Where: p.Where, Began: time.Now()}
	p.seed = maphash.MakeSeed()
	var sides []*side
	p.mu.Lock()
	p.progress.compared, p.progress.suspects = map[string]*atomic.Int64{}, map[string]*atomic.Int64{}
	for _, t := range p.Targets {
		s := &side{Pass: p, target: t, result: &SinkResult{Sink: t.Name, Mismatches: map[Class]int64{}}, partial: p.After != nil, orphans: map[string]bool{}}
		r.Sinks = append(r.Sinks, s.result)
		if err := t.Store.Keeps(p.Table); err != nil {
			s.result.Incomparable = err.Error()
			continue
		}
		p.progress.compared[t.Name], p.progress.suspects[t.Name] = new(atomic.Int64), new(atomic.Int64)
		sides = append(sides, s)
	}
	p.mu.Unlock()
	err := p.compare(ctx, sides)
	if err == nil && p.Repair {
		err = p.repair(ctx, sides)
	}
	r.Rows, r.Ended = p.progress.rows.Load(), time.Now()
	return r, err
}

func (p *Pass) compare(ctx context.Context, sides []*side) error {
	if len(sides) == 0 {
		return nil
	}
	p.progress.doing.Store("reads rows")
	source, err := p.World.Open(ctx, p.Table, p.Where)
	if err != nil {
		return err
	}
	defer source.Close()
	_, layout := source.Table()
	outer := ctx
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range sides {
		s.layout = layout
		s.chunks, s.suspects = make(chan chunk, chunksAhead), make(chan *suspect, 1000)
		g.Go(func() error { return s.check(ctx) })
		g.Go(func() error {
			defer close(s.suspects)
			return s.run(ctx)
		})
	}
	g.Go(func() error {
		defer func() {
			for _, s := range sides {
				close(s.chunks)
			}
		}()
		return p.read(ctx, source, sides)
	})
	return p.explain(outer, g.Wait(), layout)
}

// explain tells an error that comes of another shape of the table from others.
func (p *Pass) explain(ctx context.Context, err error, layout uint32) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrAltered) {
		return err
	}
	now, unknown := p.World.Open(ctx, p.Table, "")
	if unknown != nil {
		return err
	}
	defer now.Close()
	if _, is := now.Table(); is != layout {
		return fmt.Errorf("%w (%v)", ErrAltered, err)
	}
	return err
}

// read reads the rows and hands them to all sides.
func (p *Pass) read(ctx context.Context, source Source, sides []*side) error {
	after, keys := p.After, p.Keys
	for {
		began := time.Now()
		most := readRows
		if p.ChunkRows != nil {
			most = p.ChunkRows()
		}
		var rows []cdc.Row
		var err error
		if p.Keys != nil {
			n := min(most, len(keys))
			rows, err = source.Listed(keys[:n])
			keys = keys[n:]
		} else {
			rows, err = source.Next(after, most, chunkBytes)
		}
		if err != nil || len(rows) == 0 {
			return err
		}
		took := time.Since(began)
		set, err := source.Executed()
		if err != nil {
			return err
		}
		p.progress.rows.Add(int64(len(rows)))
		after = rows[len(rows)-1].Key
		var of *stretch
		if p.Done != nil {
			of = &stretch{after, len(sides), &Result{Rows: int64(len(rows))}}
			p.mu.Lock()
			p.way = append(p.way, of)
			p.mu.Unlock()
		}
		for _, s := range sides {
			select {
			case s.chunks <- chunk{rows, set, of}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if p.Took != nil {
			p.Took(len(rows), took)
		}
		if p.Rest != nil {
			if err := p.Rest(ctx, source, took); err != nil {
				return err
			}
		}
	}
}

// run compares the chunks, and then looks for documents that no row has.
func (s *side) run(ctx context.Context) error {
	for c := range s.chunks {
		all := []chunk{c}
		for more := true; more; { // one wait for all that is there
			select {
			case c, ok := <-s.chunks:
				if more = ok; ok {
					all = append(all, c)
				}
			default:
				more = false
			}
		}
		if _, err := s.World.Await(ctx, s.target.Name, s.Table, all[len(all)-1].set); err != nil {
			return fmt.Errorf("wait for sink %s: %w", s.target.Name, err)
		}
		for _, c := range all {
			if err := s.chunk(ctx, c); err != nil {
				return err
			}
			s.done(c.of)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.Where != "" || s.Keys != nil {
		s.progress.doing.CompareAndSwap("reads rows", "looks again")
		return nil
	}
	s.progress.doing.Store("looks for documents without a row")
	defer s.progress.doing.Store("looks again")
	return s.besides(ctx)
}

// chunk compares rows with the store.
func (s *side) chunk(ctx context.Context, c chunk) error {
	changes := make([]cdc.Change, 0, readRows)
	for part := range slices.Chunk(c.rows, readRows) {
		changes = changes[:0]
		for _, r := range part {
			changes = append(changes, changeOf(s.Table, s.layout, r))
		}
		expected := s.target.Store.Expect(ctx, changes)
		stored, err := s.target.stored(ctx, changes)
		if err != nil {
			return err
		}
		for i := range changes {
			s.remember(expected[i])
			if relate(expected[i], stored[i]) != equal {
				if err := s.suspect(ctx, &suspect{key: changes[i].Key, of: c.of}); err != nil {
					return err
				}
			}
		}
		s.count(len(changes), c.of)
	}
	return nil
}

func (s *side) count(n int, of *stretch) {
	s.progress.compared[s.target.Name].Add(int64(n))
	s.mu.Lock()
	s.note(of, func(r *SinkResult) { r.Compared += int64(n) })
	s.mu.Unlock()
	s.Metrics.compared(s.Table.String(), s.target.Name, n)
}

// note has something counted among all, and of its stretch. The caller holds mu.
func (s *side) note(of *stretch, do func(*SinkResult)) {
	if do(s.result); of != nil {
		do(of.found.of(s.target.Name))
	}
}

func (s *side) suspect(ctx context.Context, one *suspect) error {
	if one.of != nil {
		s.mu.Lock()
		one.of.open++
		s.mu.Unlock()
	}
	select {
	case s.suspects <- one:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// remember keeps where a row is, as long as there is room.
func (s *side) remember(e sinks.Expected) {
	switch {
	case e.Place == "" || s.partial || s.Where != "" || s.Keys != nil:
	case len(s.places) == mostPlaces:
		s.places, s.partial = nil, true
	default:
		s.places = append(s.places, maphash.String(s.seed, e.Place))
	}
}

// besides suspects what the store has and no row that was read.
func (s *side) besides(ctx context.Context) error {
	source, err := s.World.Open(ctx, s.Table, "")
	if err != nil {
		return err
	}
	defer source.Close()
	table, _ := source.Table()
	slices.Sort(s.places)
	known := func(place string) bool {
		_, found := slices.BinarySearch(s.places, maphash.String(s.seed, place))
		return found && !s.partial
	}
	s.mu.Lock()
	before := s.result.Documents
	s.mu.Unlock()
	for tries, wait := 1, time.Second; ; tries, wait = tries+1, 2*wait {
		var stopped error // by us, and not by the store
		err = s.target.Store.Scan(ctx, table, known, func(found []sinks.Found) error {
			for part := range slices.Chunk(found, readRows) {
				if stopped = s.look(ctx, source, part); stopped != nil {
					return stopped
				}
			}
			return nil
		})
		switch {
		case err == nil:
			return nil
		case stopped != nil || ctx.Err() != nil || tries == scanTries:
			return fmt.Errorf("look through %s in sink %s: %w", s.Table, s.target.Name, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
		s.result.Documents = before // it begins anew
		s.mu.Unlock()
	}
}

// look suspects those of what was found that are documents in a place where no row is.
func (s *side) look(ctx context.Context, source Source, found []sinks.Found) error {
	began := time.Now()
	var of []*suspect
	for i := range found {
		f := &found[i]
		switch {
		case f.Problem != "":
			s.unclear(nil, f.Problem)
		case f.Change.Key == nil:
			place, _ := json.Marshal(f.Place)
			s.report(Finding{Table: s.Table.String(), Sink: s.target.Name, Class: Orphan, Reason: "no row of the table can be at " + string(place)})
		default:
			of = append(of, &suspect{key: f.Change.Key, found: f})
		}
	}
	c := &Checker{World: s.World, Target: s.target, Source: source}
	rows, err := c.rows(of)
	if err != nil {
		return err
	}
	changes := make([]cdc.Change, len(of))
	for i, one := range of {
		changes[i] = changeOf(s.Table, s.layout, cdc.Row{Key: one.key, Row: rows[string(one.key)]})
	}
	var left []*suspect
	var places []sinks.Found
	for i, e := range c.expect(ctx, of, changes) {
		if e.Document == nil && e.Problem == "" { // no row is there
			left, places = append(left, of[i]), append(places, *of[i].found)
		}
	}
	s.mu.Lock()
	s.result.Documents += int64(len(found))
	s.mu.Unlock()
	there, err := s.target.again(ctx, places)
	if err != nil {
		return err
	}
	for i, has := range there {
		if relate(sinks.Expected{}, has) != equal {
			if err := s.suspect(ctx, left[i]); err != nil {
				return err
			}
		}
	}
	if s.Rest != nil {
		return s.Rest(ctx, source, time.Since(began))
	}
	return ctx.Err()
}

// check has the suspects looked at again, on a connection of its own, once there are any.
func (s *side) check(ctx context.Context) error {
	first, ok := <-s.suspects
	if !ok {
		return nil
	}
	return s.confirm(ctx, first, s.suspects, s.report, s.unclear)
}

// confirm looks at a suspect, and those behind it, until something is said of each.
func (s *side) confirm(ctx context.Context, first *suspect, suspects <-chan *suspect, report func(Finding), unclear func(s *suspect, why string)) error {
	source, err := s.World.Open(ctx, s.Table, "")
	if err != nil {
		return err
	}
	defer source.Close()
	c := &Checker{World: s.World, Target: s.target, Source: source, Report: report, Unclear: unclear, Done: func(one *suspect) { s.done(one.of) }}
	waiting := s.progress.suspects[s.target.Name]
	return c.Check(ctx, first, suspects, func(n int) {
		waiting.Store(int64(n))
		s.Metrics.suspected(s.Table.String(), s.target.Name, n)
	})
}

func (s *side) unclear(of *suspect, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at *stretch
	if of != nil {
		at, why = of.of, string(of.key)+": "+why
	}
	s.note(at, func(r *SinkResult) { r.Unclear, r.Reason = r.Unclear+1, cmp.Or(r.Reason, why) })
}

func (s *side) report(f Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Class == Orphan && f.Place != nil { // of a row that has no place it is found by its key, and again in the store
		id := string(f.Key) + fmt.Sprint(f.Place)
		if s.orphans[id] {
			return
		}
		s.orphans[id] = true
	}
	kept := s.Report(&f)
	if f.Letter != "" {
		s.note(f.of, func(r *SinkResult) { r.Letters++ })
		return
	}
	s.note(f.of, func(r *SinkResult) { r.Mismatches[f.Class]++ })
	s.Metrics.mismatch(f)
	switch {
	case !s.Repair:
	case f.Key == nil || len(s.result.repair) == mostRepairs:
		f.Repair = Remains
		s.result.Remaining++
	default:
		if !kept {
			f.Fields, f.Place = nil, nil
		}
		s.result.repair = append(s.result.repair, &f)
	}
}
