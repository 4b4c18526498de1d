package dlq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// ErrUnavailable is wrapped when a replay stopped because the store takes no
// writes now. What was not reached is as it was.
var ErrUnavailable = errors.New("store is not available")

const (
	// A replay sends this many letters to the store at once, or fewer large ones.
	batchLetters = 100
	batchBytes   = 4 << 20
)

// Result says what became of a letter in a replay.
type Result struct {
	// State is resolved, superseded or skipped when the letter is closed, and an open one
	// when it stays; of a Preview one that begins with Would, Parked or Unknown.
	State State `json:"state"`
	// Reason is why it stays, was skipped, or is superseded for what the source says.
	Reason string `json:"reason,omitempty"`
}

// ReplayOptions say how to replay.
type ReplayOptions struct {
	// Gone asks the source which of these rows it does not have now, by their keys. An
	// upsert of one is superseded by its delete, which the store may have forgotten.
	Gone func(ctx context.Context, table cdc.TableName, keys [][]byte) (map[string]bool, error)
	// Moves reports whether the place of a change's row in the store depends on more
	// than its key: the row may have gone on from where the letter would put it. nil is
	// for a store where no row's does.
	Moves func(c *cdc.Change) bool
	// Remembers is how long such a store knows that a row has left a place.
	Remembers time.Duration
	// Barriers holds the version of each table's newest barrier, by db.table: a change
	// that is not newer is of a row that was taken away with all others (TRUNCATE,
	// DROP, or a new copy that has left it out), and is superseded.
	Barriers map[string]cdc.Version
	// Progress, if set, is called once for each letter.
	Progress func(Letter, Result)
}

// Replay applies the recorded changes of letters to the store again, through its
// guard, so that it may run twice, late or beside the live stream. A letter whose
// change the store now has is closed as resolved, one whose row is newer there as
// superseded; so are one from before the newest barrier of its table and one whose row
// the source does not have any more, which is taken out of the store. One that is refused again is written again with a higher retry
// count. A record that could not be decoded stays: only Skip closes it.
//
// The letters are those of one List. An error says that it stopped: the store is
// unavailable, or Kafka is; letters without a Progress are as they were.
func (l *Letters) Replay(ctx context.Context, letters []Letter, sink sinks.Sink, opt ReplayOptions) error {
	return l.replay(ctx, sink, opt, func(add func(Letter, kafka.Record) error) error { return l.Records(ctx, letters, add) })
}

// replay is Replay of what each gives to add.
func (l *Letters) replay(ctx context.Context, sink sinks.Sink, opt ReplayOptions, each func(add func(Letter, kafka.Record) error) error) error {
	r := replay{Letters: l, sink: sink, opt: opt}
	if r.opt.Progress == nil {
		r.opt.Progress = func(Letter, Result) {}
	}
	if err := each(func(letter Letter, record kafka.Record) error { return r.add(ctx, letter, record) }); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	if err := r.flush(ctx); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	return nil
}

// replay is a replay under way.
type replay struct {
	*Letters
	sink    sinks.Sink
	opt     ReplayOptions
	letters []Letter
	records []kafka.Record
	changes []cdc.Change
	gone    []bool // by index in changes: what is sent is the delete of the row
	bytes   int
	over    []ending
}

// ending is what became of a letter, and the record that says so.
type ending struct {
	letter Letter
	result Result
	record kafka.Record
}

// end notes what became of a letter.
func (r *replay) end(letter Letter, result Result, record kafka.Record) {
	r.over = append(r.over, ending{letter, result, record})
}

// write writes down what became of letters, and then says so.
func (r *replay) write(ctx context.Context) error {
	over := r.over
	r.over = nil
	records := make([]kafka.Record, 0, len(over))
	for _, e := range over {
		records = append(records, everywhere(e.letter, e.record)...)
	}
	if len(over) > 0 {
		if err := r.Log.ProduceAll(ctx, records...); err != nil {
			return fmt.Errorf("write down what became of %d letters, the first of them %s: %w", len(over), over[0].letter.ID, err)
		}
	}
	for _, e := range over {
		r.opt.Progress(e.letter, e.result)
	}
	return nil
}

// closed notes that a letter is closed.
func (r *replay) closed(letter Letter, state State, said, why string) {
	r.end(letter, Result{state, said}, r.Letters.end(letter, state, why))
}

func (r *replay) add(ctx context.Context, letter Letter, record kafka.Record) error {
	stays := func(format string, args ...any) error {
		r.opt.Progress(letter, Result{Parked, fmt.Sprintf(format, args...)})
		return nil
	}
	if !letter.Replayable() {
		return stays("the record could not be decoded, so there is no change to apply: %s", letter.Reason)
	}
	change, err := cdc.Decode(record.Key, record.Value, record.Headers)
	if err != nil {
		return stays("%v", err)
	}
	if change.Version <= r.opt.Barriers[change.Table.String()] {
		r.superseded(letter, sweptAway)
		return nil
	}
	if len(r.letters) == batchLetters || r.bytes+letter.Bytes > batchBytes {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	r.letters = append(r.letters, letter)
	r.records = append(r.records, record)
	r.changes = append(r.changes, change)
	r.bytes += letter.Bytes
	return nil
}

// superseded closes a letter for what the source says of its row.
func (r *replay) superseded(letter Letter, reason string) {
	r.closed(letter, Superseded, reason, reason)
}

// flush applies the batch and writes down what became of each letter. When the
// store is unavailable for one of them it still settles the others.
func (r *replay) flush(ctx context.Context) error {
	defer func() { r.letters, r.records, r.changes, r.bytes = r.letters[:0], r.records[:0], r.changes[:0], 0 }()
	if err := r.withoutGone(ctx); err != nil {
		return err
	}
	if len(r.letters) == 0 {
		return r.write(ctx)
	}
	sent := slices.Clone(r.changes)
	for i := range sent {
		if r.gone[i] {
			sent[i] = leaves(sent[i])
		}
	}
	outcomes := r.sink.Apply(ctx, sent)
	if err := r.leftMeanwhile(ctx, outcomes); err != nil {
		return err
	}
	var unavailable error
	for i, outcome := range outcomes {
		letter := r.letters[i]
		if outcome.Verdict == sinks.Unavailable {
			unavailable = fmt.Errorf("letter %s: %w: %s", letter.ID, ErrUnavailable, outcome.Sentence())
			continue
		}
		if err := r.settle(i, outcome); err != nil {
			return errors.Join(err, unavailable)
		}
	}
	return errors.Join(r.write(ctx), unavailable)
}

const (
	// isGone is why a letter is superseded by what the source does not have, and sweptAway
	// why it is by a barrier.
	isGone    = "the source does not have the row any more"
	sweptAway = "the table was emptied, dropped or copied anew since"
	// notTaken is why one is skipped by the configuration.
	notTaken = "the sink does not take this table any more"
)

// tooOld is why a letter stays that may name a former place of its row.
func tooOld(remembers time.Duration, t cdc.TableName) string {
	return fmt.Sprintf("the store remembers for %s that a row has left a place, and this letter is older, so its place may be a former one by now; copy the row again (lockstep snapshot start --table %s --keys FILE) and skip the letter", remembers, t)
}

// whichAreGone asks the source for the rows of changes, by index.
func (r *replay) whichAreGone(ctx context.Context, wanted func(i int) bool) ([]bool, error) {
	keys := map[cdc.TableName][][]byte{}
	for i, c := range r.changes {
		if c.Op != cdc.OpDelete && wanted(i) {
			keys[c.Table] = append(keys[c.Table], c.Key)
		}
	}
	gone := make([]bool, len(r.changes))
	for table, keys := range keys {
		of, err := r.opt.Gone(ctx, table, keys)
		if err != nil {
			return nil, fmt.Errorf("which rows of %s are still there: %w", table, err)
		}
		for i, c := range r.changes {
			gone[i] = gone[i] || c.Table == table && c.Op != cdc.OpDelete && wanted(i) && of[string(c.Key)]
		}
	}
	return gone, nil
}

// leaves is the delete of a row that a change has brought and that the source does not
// have any more. No change of the row has its version, for those of a row are further apart;
// so it takes away what an attempt with this change has left, and nothing that is newer.
func leaves(c cdc.Change) cdc.Change {
	c.Op, c.Version, c.Before, c.After = cdc.OpDelete, c.Version+1, c.After, nil
	return c
}

// leftMeanwhile takes rows away again that the source has lost while the store was given
// them: a sweep of their table may have been over before they came.
func (r *replay) leftMeanwhile(ctx context.Context, outcomes []sinks.Outcome) error {
	gone, err := r.whichAreGone(ctx, func(i int) bool {
		return !r.gone[i] && (outcomes[i].Verdict == sinks.Applied || outcomes[i].Verdict == sinks.Duplicate)
	})
	if err != nil {
		return err
	}
	var changes []cdc.Change
	var at []int
	for i, gone := range gone {
		if gone {
			r.gone[i] = true
			changes, at = append(changes, leaves(r.changes[i])), append(at, i)
		}
	}
	if len(changes) > 0 {
		for n, outcome := range r.sink.Apply(ctx, changes) {
			outcomes[at[n]] = outcome
		}
	}
	return nil
}

// withoutGone passes over the letters of the batch whose rows may have moved on unknown to
// the store, and finds those whose rows the source does not have. They are taken out of the
// store: an attempt that was cut off may have brought them there.
func (r *replay) withoutGone(ctx context.Context) error {
	gone, err := r.whichAreGone(ctx, func(int) bool { return true })
	if err != nil {
		return err
	}
	left := 0
	r.gone = r.gone[:0]
	for i, c := range r.changes {
		switch {
		case gone[i], c.Op == cdc.OpDelete:
		case r.opt.Moves != nil && r.opt.Moves(&c) && time.Since(r.letters[i].FirstFailed) >= r.opt.Remembers:
			r.opt.Progress(r.letters[i], Result{Parked, tooOld(r.opt.Remembers, c.Table)})
			continue
		}
		r.letters[left], r.records[left], r.changes[left] = r.letters[i], r.records[i], c
		r.gone = append(r.gone, gone[i])
		left++
	}
	r.letters, r.records, r.changes = r.letters[:left], r.records[:left], r.changes[:left]
	return nil
}

// settle notes what became of the i-th letter of the batch.
func (r *replay) settle(i int, outcome sinks.Outcome) error {
	letter := r.letters[i]
	if v := outcome.Verdict; r.gone[i] && v != sinks.Transient && v != sinks.Poison {
		r.superseded(letter, isGone)
		return nil
	}
	switch outcome.Verdict {
	case sinks.Applied:
		r.closed(letter, Resolved, "", "replayed")
	case sinks.Duplicate:
		r.closed(letter, Resolved, "", "the store had it already")
	case sinks.Stale:
		r.closed(letter, Superseded, "", "the store has a newer version")
	case sinks.Filtered:
		reason := cmp.Or(outcome.Reason, notTaken)
		r.closed(letter, Skipped, reason, reason)
	case sinks.Transient, sinks.Poison:
		again := r.refused(sinks.Refusal{Record: r.records[i], Change: &r.changes[i], Class: outcome.Class, Reason: outcome.Reason, Failed: time.Now()})
		again.Retries, again.FirstFailed, again.Undelivered, again.Patched = letter.Retries+1, letter.FirstFailed, letter.Undelivered, letter.Patched
		if outcome.Verdict == sinks.Transient {
			again.State = Exhausted // whoever replays it looks at it
			if letter.State == Retrying {
				again.State = Retrying // it has attempts left
			}
		}
		r.end(letter, Result{again.State, again.Reason}, r.open(r.records[i], again))
	default:
		return fmt.Errorf("letter %s: the store answered verdict %d", letter.ID, outcome.Verdict)
	}
	return nil
}
