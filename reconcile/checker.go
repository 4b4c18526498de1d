package reconcile

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
)

const (
	// roundGap is the least time between two looks at a suspect.
	roundGap = time.Second
	// mostRounds is after how many looks a row is given up that the log names each time.
	mostRounds = 30
	// roundKeys is how many suspects a round looks at together.
	roundKeys = 2000
)

// suspect is a row that was seen to differ.
type suspect struct {
	key   []byte
	found *sinks.Found // where a store has it; nil for a row of the source
	first Log          // the end before the last round, when it differed there; nil when not
	looks int
	blind int // looks in a row at which nothing could be told
	due   time.Time
	of    *stretch // of whose rows it is; nil for none
}

// id tells suspects apart.
func (s *suspect) id() string {
	if s.found == nil {
		return string(s.key)
	}
	return string(s.key) + "\x00" + s.found.Place
}

// sight is what was seen of a suspect in one round.
type sight struct {
	before Log // the end of the log when the round began
	after  Log // and when the store had answered
	row    []byte
	want   sinks.Expected
	has    sinks.Stored
	newest cdc.Version
	letter string
}

// Checker confirms or clears the suspects of one table in one sink.
type Checker struct {
	World  *World
	Target Target
	Source Source
	// Report is told of each confirmed mismatch.
	Report func(Finding)
	// Unclear is told of each row of which nothing can be said, and why.
	Unclear func(s *suspect, why string)
	// Done, if set, is told of each suspect of which everything is said.
	Done func(s *suspect)
	now  func() time.Time
}

func (c *Checker) clock() time.Time {
	if c.now != nil {
		return c.now()
	}
	return time.Now()
}

// look makes one round about suspects, and returns those that are to be looked at again.
func (c *Checker) look(ctx context.Context, suspects []*suspect) (again []*suspect, err error) {
	sights, err := c.see(ctx, suspects)
	if err != nil {
		return nil, err
	}
	var twice []*suspect
	var seen []*sight
	for i, s := range suspects {
		s.looks++
		now := sights[i]
		switch relate(now.want, now.has) {
		case equal:
		case unknown:
			if again = append(again, s); c.blind(s, now) {
				again = again[:len(again)-1]
			}
		case differs:
			if s.blind = 0; s.first != nil {
				twice, seen = append(twice, s), append(seen, now)
				continue
			}
			s.first = now.before
			again = append(again, s)
		}
	}
	named, err := c.named(ctx, twice, seen)
	if err != nil {
		return nil, err
	}
	var confirmed []*suspect
	var proofs []*sight
	for i, s := range twice {
		switch n := named[i]; {
		case n == nil:
			confirmed, proofs = append(confirmed, s), append(proofs, seen[i])
		case n.shows(seen[i]): // equal, and newer changes are on their way
		case s.looks >= mostRounds:
			c.Unclear(s, "it changed whenever it was looked at")
		default:
			s.first = seen[i].before
			again = append(again, s)
		}
	}
	for _, s := range again {
		s.due = c.clock().Add(roundGap * time.Duration(1+s.looks/5))
	}
	return again, c.confirm(ctx, confirmed, proofs)
}

// blind deals with a suspect of which nothing can be told, and reports whether it is done
// with.
func (c *Checker) blind(s *suspect, now *sight) bool {
	s.first = nil
	reason := now.want.Problem
	switch {
	case reason != "" && now.letter != "": // the letter tells why
		class := Missing
		if now.has.Document != nil || now.has.Omitted {
			class = Differing
		}
		c.Report(Finding{Table: c.table().String(), Sink: c.Target.Name, Key: s.key, Class: class, Version: now.has.Version, Letter: now.letter, Reason: reason, of: s.of})
		return true
	case reason == "":
		reason = now.has.Problem
	}
	if reason == "" {
		reason = "its document is too large to be compared"
	}
	if s.blind++; s.blind < 3 {
		return false
	}
	c.Unclear(s, reason)
	return true
}

// settled waits until what is committed now is settled in the sink.
func (c *Checker) settled(ctx context.Context) (Reached, error) {
	set, err := c.Source.Executed()
	if err != nil {
		return Reached{}, err
	}
	table, _ := c.Source.Table()
	return c.World.Await(ctx, c.Target.Name, table.Name, set)
}

// shown waits until what is read shows what the capture has read of the log: else a store
// would have what the source does not show yet.
func (c *Checker) shown(ctx context.Context, set string) error {
	for began := time.Now(); ; {
		ok, err := c.Source.Shows(set)
		switch {
		case err != nil || ok:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Since(began) > patience:
			return fmt.Errorf("the source has transactions of %s in its log and has not shown them for %s: see whether a semi-synchronous replica does not answer", set, patience)
		}
	}
}

// see makes the observations of a round.
func (c *Checker) see(ctx context.Context, suspects []*suspect) ([]*sight, error) {
	table, layout := c.Source.Table()
	at, err := c.settled(ctx)
	if err != nil {
		return nil, err
	}
	before, err := c.World.Ends(ctx, table.Name)
	if err != nil {
		return nil, err
	}
	if err := c.shown(ctx, at.Read); err != nil {
		return nil, err
	}
	rows, err := c.rows(suspects)
	if err != nil {
		return nil, err
	}
	if at, err = c.settled(ctx); err != nil {
		return nil, err
	}
	sights := make([]*sight, len(suspects))
	changes := make([]cdc.Change, len(suspects))
	for i, s := range suspects {
		sights[i] = &sight{before: before, row: rows[string(s.key)], newest: at.Newest}
		changes[i] = changeOf(table.Name, layout, cdc.Row{Key: s.key, Row: sights[i].row})
	}
	for i, e := range c.expect(ctx, suspects, changes) {
		sights[i].want = e
	}
	all := make([]int, len(suspects))
	for i := range all {
		all[i] = i
	}
	if err := c.read(ctx, suspects, changes, sights, all); err != nil {
		return nil, err
	}
	var differ []int
	for i := range suspects {
		if relate(sights[i].want, sights[i].has) != equal {
			differ = append(differ, i)
		}
	}
	if len(differ) > 0 {
		// A letter that is closed after this was closed by what the store has then.
		letters, err := c.World.Letters(ctx, c.Target.Name, table.Name)
		if err != nil {
			return nil, err
		}
		for _, i := range differ {
			if text, err := cdc.KeyText(suspects[i].key); err == nil {
				sights[i].letter = letters[text]
			}
		}
		if err := c.read(ctx, suspects, changes, sights, differ); err != nil {
			return nil, err
		}
	}
	after, err := c.World.Ends(ctx, table.Name)
	for i := range sights {
		sights[i].after = after
	}
	return sights, err
}

// rows reads the rows of suspects that can have one.
func (c *Checker) rows(suspects []*suspect) (map[string][]byte, error) {
	rows := map[string][]byte{}
	var keys [][]byte
	for _, s := range suspects {
		if _, known := rows[string(s.key)]; !known && s.key != nil {
			rows[string(s.key)] = nil
			keys = append(keys, s.key)
		}
	}
	read, err := c.Source.Listed(keys)
	for _, r := range read {
		rows[string(r.Key)] = r.Row
	}
	return rows, err
}

// changeOf is a row as a copy would bring it.
func changeOf(table cdc.TableName, layout uint32, r cdc.Row) cdc.Change {
	c := cdc.Change{Table: table, Op: cdc.OpRead, Key: r.Key, After: r.Row, Layout: layout}
	if r.Row == nil {
		c.Op, c.Before = cdc.OpDelete, r.Key
	}
	return c
}

// expect says what the store is to have in the place of each suspect. Where a row was
// found elsewhere than it belongs, that is nothing.
func (c *Checker) expect(ctx context.Context, suspects []*suspect, changes []cdc.Change) []sinks.Expected {
	out := make([]sinks.Expected, len(suspects))
	for _, some := range unlike(suspects) {
		part := make([]cdc.Change, len(some))
		for n, i := range some {
			part[n] = changes[i]
		}
		for n, e := range c.Target.Store.Expect(ctx, part) {
			i := some[n]
			if f := suspects[i].found; f != nil && e.Problem == "" && e.Place != f.Place {
				e = sinks.Expected{}
			}
			out[i] = e
		}
	}
	return out
}

// unlike sorts suspects into groups in which each key is there once.
func unlike(suspects []*suspect) (groups [][]int) {
	times := map[string]int{}
	for i, s := range suspects {
		n := times[string(s.key)]
		times[string(s.key)]++
		if n == len(groups) {
			groups = append(groups, nil)
		}
		groups[n] = append(groups[n], i)
	}
	return groups
}

// read asks the store for some of the suspects.
func (c *Checker) read(ctx context.Context, suspects []*suspect, changes []cdc.Change, sights []*sight, some []int) error {
	var byKey, byPlace []int
	var wanted []cdc.Change
	var found []sinks.Found
	for _, i := range some {
		if f := suspects[i].found; f != nil && sights[i].want.Document == nil {
			byPlace, found = append(byPlace, i), append(found, *f)
		} else {
			byKey, wanted = append(byKey, i), append(wanted, changes[i])
		}
	}
	there, err := c.Target.stored(ctx, wanted)
	if err != nil {
		return err
	}
	again, err := c.Target.again(ctx, found)
	if err != nil {
		return err
	}
	for n, has := range there {
		sights[byKey[n]].has = has
	}
	for n, has := range again {
		sights[byPlace[n]].has = has
	}
	return nil
}

// naming is what the log says of a row between two ends.
type naming struct {
	whole    bool // of the table, or with gaps
	settled  cdc.Version
	versions map[cdc.Version]sinks.Expected
}

// shows reports whether the store has what the log said of the row under the version that
// the store has, and nothing newer that is settled.
func (n *naming) shows(s *sight) bool {
	logged, ok := n.versions[s.has.Version]
	return ok && !n.whole && s.has.Version >= n.settled && relate(logged, s.has) == equal
}

// named tells what the log says of suspects from before their first sight until behind
// the second one, which is given; nil for those that it does not name.
func (c *Checker) named(ctx context.Context, suspects []*suspect, seen []*sight) ([]*naming, error) {
	out := make([]*naming, len(suspects))
	if len(suspects) == 0 {
		return out, nil
	}
	at := map[string][]int{}
	from := maps.Clone(suspects[0].first)
	round := seen[0] // all are of one
	for i, s := range suspects {
		at[string(s.key)] = append(at[string(s.key)], i)
		for partition, offset := range s.first {
			from[partition] = min(from[partition], offset)
		}
	}
	name := func(i int) *naming {
		if out[i] == nil {
			out[i] = &naming{versions: map[cdc.Version]sinks.Expected{}}
		}
		return out[i]
	}
	whole, err := c.World.Changes(ctx, c.table(), from, round.after, func(offset int64, partition int, change *cdc.Change) error {
		if change.Op.OfTable() {
			for i, s := range suspects {
				if offset >= s.first[partition] {
					name(i).whole = true
				}
			}
			return nil
		}
		for _, i := range at[string(change.Key)] {
			if offset < suspects[i].first[partition] {
				continue
			}
			n := name(i)
			if offset < round.before[partition] {
				n.settled = max(n.settled, change.Version)
			}
			if change.Version == seen[i].has.Version && suspects[i].found == nil {
				n.versions[change.Version] = c.Target.Store.Expect(ctx, []cdc.Change{*change})[0]
			}
		}
		return nil
	})
	if err == nil && !whole {
		for i := range suspects {
			name(i).whole = true
		}
	}
	return out, err
}

// confirm reports suspects of which it is certain that they differ.
func (c *Checker) confirm(ctx context.Context, suspects []*suspect, sights []*sight) error {
	if len(suspects) == 0 {
		return nil
	}
	if same, err := c.Source.Same(); err != nil {
		return err
	} else if !same { // what was read lacks columns that the documents have, or the other way round
		return ErrAltered
	}
	table := c.table()
	var ask [][]byte
	for i, s := range suspects {
		if sights[i].letter == "" && classify(sights[i].want, sights[i].has, sights[i].newest, 0) == Differing {
			ask = append(ask, s.key)
		}
	}
	logged := map[string]cdc.Version{}
	if len(ask) > 0 {
		var err error
		if logged, err = c.World.Newest(ctx, table, ask); err != nil {
			return err
		}
	}
	var masked map[string]bool
	if c.Target.Masked != nil {
		masked = c.Target.Masked(table)
	}
	for i, s := range suspects {
		seen := sights[i]
		f := Finding{
			Table: table.String(), Sink: c.Target.Name, Key: s.key, Place: maps.Clone(seen.has.Place),
			Class: classify(seen.want, seen.has, seen.newest, logged[string(s.key)]), Version: seen.has.Version, Logged: logged[string(s.key)],
			found: s.found, of: s.of, Letter: seen.letter, Fields: fieldsOf(seen.want.Document, seen.has.Document, seen.row, masked), Reason: seen.has.Problem,
		}
		if s.found != nil && seen.row != nil && f.Class == Orphan {
			f.Reason = "the row belongs elsewhere in this store now"
		}
		if len(masked) > 0 && seen.row == nil {
			f.Place = nil // it may be made of a value that is masked by now
		}
		c.Report(f)
	}
	return nil
}

// Check looks at suspects until each is cleared, confirmed or given up. More of them come
// from the channel until it is closed. Waiting is told how many there are.
func (c *Checker) Check(ctx context.Context, first *suspect, more <-chan *suspect, waiting func(n int)) error {
	queue := map[string]*suspect{}
	add := func(s *suspect) {
		if _, known := queue[s.id()]; known {
			c.done(s)
			return
		}
		s.key = bytes.Clone(s.key)
		queue[s.id()] = s
	}
	add(first)
	last := c.clock() // when the last round ended
	for more != nil || len(queue) > 0 {
		due := c.due(queue)
		wait := roundGap/2 - c.clock().Sub(last) // more may come that can be looked at together
		if len(due) > 0 && (wait <= 0 || len(due) == roundKeys || more == nil && len(due) == len(queue)) {
			left, err := c.look(ctx, due)
			last = c.clock()
			if err != nil {
				return fmt.Errorf("look again at rows of %s in sink %s: %w", c.table(), c.Target.Name, err)
			}
			for _, s := range due {
				delete(queue, s.id())
			}
			for _, s := range left {
				queue[s.id()] = s
			}
			for _, s := range due {
				if queue[s.id()] == nil {
					c.done(s)
				}
			}
			waiting(len(queue))
			continue
		}
		tick := time.NewTimer(max(wait, c.pause(queue)))
		taking := more
		if len(queue) > mostSuspects {
			taking = nil
		}
		select {
		case s, ok := <-taking:
			if !ok {
				more = nil
				break
			}
			add(s)
			for drained := false; !drained && len(queue) < mostSuspects; {
				select {
				case s, ok := <-taking:
					if !ok {
						more, drained = nil, true
						break
					}
					add(s)
				default:
					drained = true
				}
			}
			waiting(len(queue))
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return ctx.Err()
		}
		tick.Stop()
	}
	return nil
}

func (c *Checker) done(s *suspect) {
	if c.Done != nil {
		c.Done(s)
	}
}

// mostSuspects is how many suspects are held; a pass waits while there are more.
const mostSuspects = 20_000

func (c *Checker) table() cdc.TableName {
	table, _ := c.Source.Table()
	return table.Name
}

// due are those that may be looked at now, the longest overdue first.
func (c *Checker) due(queue map[string]*suspect) (due []*suspect) {
	now := c.clock()
	for _, s := range queue {
		if !s.due.After(now) {
			due = append(due, s)
		}
	}
	slices.SortFunc(due, func(a, b *suspect) int { return a.due.Compare(b.due) })
	return due[:min(len(due), roundKeys)]
}

// pause is how long nothing is due.
func (c *Checker) pause(queue map[string]*suspect) time.Duration {
	wait := time.Hour
	for _, s := range queue {
		wait = min(wait, s.due.Sub(c.clock()))
	}
	return max(wait, 0)
}
