package dlq

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// What a preview says of a letter beside Parked, which is for one that a replay cannot
// send. No letter is ever in these states.
const (
	WouldApply     State = "would be applied"
	WouldResolve   State = "would be resolved"   // the store has it already
	WouldSupersede State = "would be superseded" // the store has a newer one, or the row is gone
	WouldSkip      State = "would be skipped"    // the sink does not take it any more
	WouldRefuse    State = "would be refused"    // the letter would stay
	Unknown        State = "unknown"             // store or source cannot be asked
)

// Preview says what a replay would do, and asks for it what is there: it changes nothing.
type Preview struct {
	// Resync is for a replay that sends the row as the source has it now, under a newer
	// version than any; else the recorded change is sent.
	Resync bool
	// Rows reads rows of a table as they are in the source, nil for one that is not there:
	// mysql.Rows.
	Rows func(ctx context.Context, table cdc.TableName, keys [][]byte, fn func(key, row []byte, layout uint32) error) error
	// Would is that of the sink's Reader.
	Would func(ctx context.Context, changes []cdc.Change) []sinks.Prospect
	// Next is a version that no change has yet, for Resync.
	Next cdc.Version
	// Moves, Remembers and Barriers are those of ReplayOptions.
	Moves     func(c *cdc.Change) bool
	Remembers time.Duration
	Barriers  map[string]cdc.Version
	// Tell is called once for each letter.
	Tell func(Letter, Result)
}

// Preview goes through the letters of one List in batches. A letter of which source or
// store cannot be asked is Unknown; an error says that it stopped, because Kafka cannot be
// read or ctx has ended.
func (l *Letters) Preview(ctx context.Context, letters []Letter, p Preview) error {
	v := preview{Preview: p}
	if err := l.Records(ctx, letters, func(letter Letter, record kafka.Record) error {
		return v.add(ctx, letter, record)
	}); err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	if err := v.flush(ctx); err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	return nil
}

// Would is what a replay of the row as it is patched would come to; Resync and Tell of the
// preview are not used.
func (p *Patching) Would(ctx context.Context, how Preview) (would Result, err error) {
	how.Resync, how.Tell = false, func(_ Letter, r Result) { would = r }
	v := preview{Preview: how}
	if err = v.add(ctx, p.Letter, p.record); err == nil {
		err = v.flush(ctx)
	}
	return would, err
}

// preview is one under way.
type preview struct {
	Preview
	batch []candidate // whose rows are not asked for yet
	bytes int
	ready []candidate // whose changes the store is to be asked about
	load  int         // bytes of these
}

// candidate is a letter and what a replay would send.
type candidate struct {
	letter Letter
	change cdc.Change
}

func (v *preview) add(ctx context.Context, letter Letter, record kafka.Record) error {
	change, result := v.first(letter, record)
	if result.State != "" {
		v.Tell(letter, result)
		return nil
	}
	if len(v.batch) == batchLetters || v.bytes+letter.Bytes > batchBytes {
		if err := v.flush(ctx); err != nil {
			return err
		}
	}
	v.batch, v.bytes = append(v.batch, candidate{letter: letter, change: change}), v.bytes+letter.Bytes
	return nil
}

// first is what the letter alone says: the change that it holds, or a Result.
func (p *Preview) first(letter Letter, record kafka.Record) (cdc.Change, Result) {
	change, err := decodeLetter(letter, record)
	switch {
	case err != nil:
		return change, Result{Parked, err.Error()}
	case !p.Resync && change.Version <= p.Barriers[change.Table.String()]:
		return change, Result{WouldSupersede, sweptAway}
	}
	return change, Result{}
}

// decodeLetter is the change that a letter holds.
func decodeLetter(letter Letter, record kafka.Record) (cdc.Change, error) {
	if !letter.Replayable() {
		return cdc.Change{}, fmt.Errorf("the record could not be decoded, so there is no change to apply: %s", letter.Reason)
	}
	return cdc.Decode(record.Key, record.Value, record.Headers)
}

// second is what the source says of a row: the change to be sent, or a Result.
func (p *Preview) second(letter Letter, recorded cdc.Change, row []byte, layout uint32) (cdc.Change, Result) {
	switch {
	case row == nil && recorded.Op != cdc.OpDelete:
		return recorded, Result{WouldSupersede, isGone}
	case p.Resync:
		return Resynced(recorded, row, layout, p.Next), Result{}
	case recorded.Op != cdc.OpDelete && p.Moves != nil && p.Moves(&recorded) && time.Since(letter.FirstFailed) >= p.Remembers:
		return recorded, Result{Parked, tooOld(p.Remembers, recorded.Table)}
	}
	return recorded, Result{}
}

// Resynced is the change of the row of a recorded one when it is read again, under a
// version; row is nil when it is gone.
func Resynced(recorded cdc.Change, row []byte, layout uint32, version cdc.Version) cdc.Change {
	c := cdc.Change{Table: recorded.Table, Op: cdc.OpRead, Version: version, Key: recorded.Key, After: row, Layout: layout}
	if row == nil {
		c.Op, c.Before = cdc.OpDelete, recorded.Before
	}
	return c
}

// third is what the store says of the change.
func third(prospect sinks.Prospect) Result {
	switch o := prospect.Outcome; o.Verdict {
	case sinks.Applied:
		return Result{WouldApply, o.Reason}
	case sinks.Duplicate:
		return Result{WouldResolve, "the store has it already"}
	case sinks.Stale:
		return Result{WouldSupersede, "the store has a newer version"}
	case sinks.Filtered:
		return Result{WouldSkip, cmp.Or(o.Reason, notTaken)}
	case sinks.Transient, sinks.Poison:
		return Result{WouldRefuse, fmt.Sprintf("%s: %s", o.Class, sinks.Redact(o.Class, o.Sentence()))}
	default:
		return Result{Unknown, "the store: " + o.Sentence()}
	}
}

// flush asks source and store about the batch.
func (v *preview) flush(ctx context.Context) error {
	defer func() { v.batch, v.bytes = v.batch[:0], 0 }()
	waiting := map[cdc.TableName]map[string]candidate{} // for the source, by key
	keys := map[cdc.TableName][][]byte{}
	for _, c := range v.batch {
		t := c.change.Table
		if !v.Resync && c.change.Op == cdc.OpDelete { // it is sent as it is
			if err := v.ask(ctx, c); err != nil {
				return err
			}
			continue
		}
		if waiting[t] == nil {
			waiting[t] = map[string]candidate{}
		}
		waiting[t][string(c.change.Key)] = c
		keys[t] = append(keys[t], c.change.Key)
	}
	for t, candidates := range waiting {
		err := v.Rows(ctx, t, keys[t], func(key, row []byte, layout uint32) error {
			c := candidates[string(key)]
			delete(candidates, string(key))
			change, result := v.second(c.letter, c.change, bytes.Clone(row), layout)
			if result.State != "" {
				v.Tell(c.letter, result)
				return nil
			}
			return v.ask(ctx, candidate{c.letter, change})
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, c := range candidates {
			v.Tell(c.letter, Result{Unknown, fmt.Sprintf("the source: %v", err)})
		}
	}
	return v.sent(ctx)
}

// ask lays a change by for the store, which is asked about several.
func (v *preview) ask(ctx context.Context, c candidate) error {
	size := len(c.change.Before) + len(c.change.After)
	if len(v.ready) == batchLetters || v.load+size > batchBytes {
		if err := v.sent(ctx); err != nil {
			return err
		}
	}
	v.ready, v.load = append(v.ready, c), v.load+size
	return nil
}

// sent tells of what is laid by what the store says.
func (v *preview) sent(ctx context.Context) error {
	if len(v.ready) == 0 {
		return nil
	}
	changes := make([]cdc.Change, len(v.ready))
	for i, c := range v.ready {
		changes[i] = c.change
	}
	for i, prospect := range v.Would(ctx, changes) {
		v.Tell(v.ready[i].letter, third(prospect))
	}
	v.ready, v.load = v.ready[:0], 0
	return ctx.Err()
}
