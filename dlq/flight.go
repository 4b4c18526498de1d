package dlq

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// flight is a batch of a job: letters of one partition.
type flight struct {
	sink      string
	partition int
	items     []item // in order
	at        map[identity]int
	since     time.Time // it began

	loaded  bool     // what follows is known
	keys    [][]byte // of the rows
	tables  []string
	reading []*reading // of a resync
}

// reading is what the capture was asked for: rows of one table.
type reading struct {
	Reading
	id, table string
	items     []int // of the flight
	// end is where the rows stand in the table's topic, at most, once the capture has read
	// them; -1 before. left is how far the sink is from there, and passed says that
	// it has come there, and that it had its say before the letters were read last.
	end, left int64
	passed    bool
	over      bool // nothing more comes of it
}

func newFlight(s *sector, letters int) *flight {
	f := &flight{sink: s.sink, partition: s.partition, items: s.take(letters), at: map[identity]int{}}
	for i := range f.items {
		f.at[f.items[i].id] = i
	}
	return f
}

// over reports whether it is known of every letter what became of it.
func (f *flight) over() bool {
	return !slices.ContainsFunc(f.items, func(it item) bool { return it.fate == "" })
}

// decide notes what became of a letter, unless that is known.
func (f *flight) decide(i int, fate Fate, reason string) {
	if it := &f.items[i]; it.fate == "" {
		it.decided = decided{fate, reason}
	}
}

// news takes in what the topic says of a letter. That one ended while its row was read
// again is what a resync is for.
func (f *flight) news(l *Letter) {
	i, ok := f.at[l.identity()]
	if !ok || f.items[i].fate != "" {
		return
	}
	it := &f.items[i]
	if it.news(l); it.fate == FateClosed && slices.ContainsFunc(f.reading, func(r *reading) bool { return slices.Contains(r.items, i) }) {
		it.fate = FateResynced
	}
}

// each calls fn with the letters that are not decided. One that is not where it stood any
// more, and of which there is no news, stays.
func (f *flight) each(ctx context.Context, box *Letters, log RunnerLog, fn func(i int, l Letter, r kafka.Record) error) error {
	byOffset := map[int64]int{}
	var offsets []int64
	for i := range f.items {
		if it := &f.items[i]; it.fate == "" {
			byOffset[it.offset] = i
			offsets = append(offsets, it.offset)
		}
	}
	slices.Sort(offsets)
	err := log.ReadAt(ctx, box.Topic, f.partition, offsets, func(r kafka.Record) error {
		l, err := box.read(r)
		if err != nil {
			return err
		}
		i := byOffset[r.Offset]
		delete(byOffset, r.Offset)
		return fn(i, l, r)
	})
	if err != nil {
		return fmt.Errorf("read letters of sink %s: %w", box.Sink, err)
	}
	for offset, i := range byOffset {
		f.decide(i, FateStays, fmt.Sprintf("the letter is not in %s/%d at offset %d any more", box.Topic, f.partition, offset))
	}
	return nil
}

// load finds out the table and the key of each letter, and for which of them nothing can
// be done.
func (f *flight) load(ctx context.Context, e *errand) error {
	f.keys, f.tables = make([][]byte, len(f.items)), make([]string, len(f.items))
	err := f.each(ctx, e.Letters(f.sink), e.Runner.Log, func(i int, l Letter, _ kafka.Record) error {
		f.keys[i], f.tables[i] = slices.Clone(l.recordKey), l.Table
		if !l.Replayable() {
			f.decide(i, FateStays, "the record could not be decoded, so there is no change to apply: "+l.Reason)
		} else if e.job.Mode == Resync {
			if why := e.Refuses(f.sink, l.Table); why != "" {
				f.decide(i, FateStays, why)
			}
		}
		return nil
	})
	f.loaded = err == nil
	return err
}

// open are the tables of the letters that are not decided, in order, and which they are.
func (f *flight) open() (tables []string, letters map[string][]int) {
	letters = map[string][]int{}
	for i := range f.items {
		if f.items[i].fate == "" {
			letters[f.tables[i]] = append(letters[f.tables[i]], i)
		}
	}
	for table := range letters {
		tables = append(tables, table)
	}
	slices.Sort(tables)
	return tables, letters
}

// closeGone deals with the letters whose rows the source does not have, as a replay of what
// was recorded does. What the capture could make of one is a delete that does not know where
// the row was, for every sink.
func (e *errand) closeGone(ctx context.Context, f *flight) error {
	store, opt, err := e.Store(ctx, f.sink)
	if err != nil {
		return fmt.Errorf("sink %s: %w", f.sink, err)
	}
	gone := map[int]bool{}
	tables, letters := f.open()
	for _, name := range tables {
		db, table, _ := strings.Cut(name, ".")
		of, err := opt.Gone(ctx, cdc.TableName{DB: db, Table: table}, f.keysOf(letters[name]))
		if err != nil {
			return fmt.Errorf("which rows of %s are still there: %w", name, err)
		}
		for _, i := range letters[name] {
			if of[string(f.keys[i])] {
				gone[i] = true
			}
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return e.replay(ctx, f, store, opt, func(i int) bool { return gone[i] })
}

// replay gives letters of a flight to the store as they were recorded.
func (e *errand) replay(ctx context.Context, f *flight, store sinks.Sink, opt ReplayOptions, which func(i int) bool) error {
	opt.Progress = func(l Letter, r Result) {
		if i, ok := f.at[l.identity()]; ok {
			f.decide(i, fateOf(r.State), cmp.Or(r.Reason, l.Reason))
		}
	}
	box := e.Letters(f.sink)
	err := box.replay(ctx, store, opt, func(add func(Letter, kafka.Record) error) error {
		return f.each(ctx, box, e.Runner.Log, func(i int, l Letter, r kafka.Record) error {
			if !which(i) {
				return nil
			}
			return add(l, original(l, r))
		})
	})
	if err != nil {
		return fmt.Errorf("sink %s: %w", f.sink, err)
	}
	return nil
}

// ask has the capture read the rows of a flight again.
func (e *errand) ask(ctx context.Context, f *flight) error {
	tables, letters := f.open()
	for _, table := range tables {
		bad, err := e.Unreadable(ctx, table, f.keysOf(letters[table]))
		if err != nil {
			return err
		}
		for n, why := range bad {
			f.decide(letters[table][n], FateStays, why)
		}
	}
	if err := e.closeGone(ctx, f); err != nil {
		return err
	}
	tables, letters = f.open()
	for _, table := range tables {
		wanted := slices.DeleteFunc(letters[table], func(i int) bool { // after an error some are asked for already
			return slices.ContainsFunc(f.reading, func(r *reading) bool { return slices.Contains(r.items, i) })
		})
		for _, some := range parcels(wanted, func(i int) int { return len(f.keys[i]) }) {
			e.asks++
			r := &reading{id: fmt.Sprintf("%s%s.%s.%d", cdc.ReplayPrefix, e.job.ID, e.mark, e.asks), table: table, items: some, end: -1}
			if err := e.Read(ctx, r.id, table, "replay "+e.job.ID, f.keysOf(some)); err != nil {
				return err
			}
			f.reading = append(f.reading, r)
		}
	}
	return nil
}

// keysOf are the keys of letters.
func (f *flight) keysOf(letters []int) [][]byte {
	keys := make([][]byte, len(letters))
	for n, i := range letters {
		keys[n] = f.keys[i]
	}
	return keys
}

// parcels divides letters by the bytes of their keys; those of a negative size are left out.
func parcels(letters []int, size func(int) int) (all [][]int) {
	bytes := 0
	for _, i := range letters {
		n := size(i)
		if n < 0 {
			continue
		}
		if len(all) == 0 || bytes+n > resyncBytes {
			all, bytes = append(all, nil), 0
		}
		all[len(all)-1] = append(all[len(all)-1], i)
		bytes += n + 1
	}
	return all
}

// takeBack has the capture leave the rest of a flight.
func (e *errand) takeBack(ctx context.Context, f *flight) error {
	for _, r := range f.reading {
		if r.end < 0 && !r.over {
			if err := e.Stop(ctx, r.id, r.table); err != nil {
				return err
			}
			r.over = true
		}
	}
	return nil
}

// follow asks how far the rows are that are being read again, and decides about letters
// of which nothing more will be heard.
func (e *errand) follow(ctx context.Context) error {
	if time.Since(e.asked) < askEvery {
		return nil
	}
	e.asked = time.Now()
	var ids []string
	for _, f := range e.flights {
		for _, r := range f.reading {
			if !f.over() && !r.over && r.end < 0 {
				ids = append(ids, r.id)
			}
		}
	}
	readings := map[string]Reading{}
	if len(ids) > 0 {
		var err error
		if readings, err = e.Readings(ctx, ids); err != nil {
			return err
		}
	}
	for n, f := range e.flights {
		if f.over() {
			continue
		}
		for _, r := range f.reading {
			if now, ok := readings[r.id]; ok {
				r.Reading = now
			}
			if err := e.watch(ctx, f, r); err != nil {
				return err
			}
		}
		if n == 0 && time.Since(f.since) > saysAfter {
			e.said = f.waits()
			for _, r := range f.reading {
				if why, _ := e.Held(f.sink, r.table); why != "" && !r.over {
					e.said = fmt.Sprintf("sink %s: %s", f.sink, why)
				}
			}
		}
	}
	return nil
}

// watch looks after one reading. The sink has had its say of the rows when it has
// committed what stands behind them, and before that every letter is closed or written
// that comes of it; so what is not heard by the next time is not heard at all.
func (e *errand) watch(ctx context.Context, f *flight, r *reading) error {
	decide := func(reason string) {
		r.over = true
		for _, i := range r.items {
			f.decide(i, FateStays, reason)
		}
	}
	switch {
	case r.over:
	case r.passed:
		decide("its row was read again, and the sink has said nothing new of it; lockstep dlq show has its last answer")
	case r.State == cdc.SnapshotDone:
		ends, committed, err := e.Runner.Progress(ctx, f.sink, r.table)
		if err != nil {
			return err
		}
		if r.end < 0 {
			r.end = ends[f.partition]
		}
		r.left = max(r.end-committed[f.partition], 0)
		r.passed = r.left == 0
	case r.State == cdc.SnapshotFailed, r.State == cdc.SnapshotCancelled:
		decide("its row was not read again: " + cmp.Or(r.Problem, "the snapshot "+r.id+" was cancelled"))
	}
	return nil
}

// waits says what a flight waits for.
func (f *flight) waits() string {
	for _, r := range f.reading {
		switch {
		case r.over || r.passed:
		case r.end >= 0:
			return fmt.Sprintf("sink %s has %d records of %s to read before the rows that were read again", f.sink, r.left, r.table)
		case r.State == "":
			return "the capture has not begun to read rows of " + r.table + " again; does one run?"
		case r.State == cdc.SnapshotPaused:
			return "snapshot " + r.id + " is paused; lockstep snapshot resume lets it go on"
		default:
			return fmt.Sprintf("the capture reads rows of %s again: %d of %d", r.table, r.Rows, len(r.items))
		}
	}
	return ""
}
