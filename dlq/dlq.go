// Package dlq keeps the changes that a store refuses for good.
//
// A dead letter is a row that has gone stale in one store, not a lost message:
// the refused record stands untouched in the letters' topic of the sink, with
// headers that say why, until the store has that change or a newer one, or until
// a person decides to leave it. The topic is compacted: the newest record of a key is
// the letter of that row, whole, or its end, which Kafka forgets after a week.
package dlq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// Log is the part of Kafka that letters need.
type Log interface {
	// Produce writes a record to its Topic and Partition and returns when it is
	// acknowledged by all in-sync replicas.
	Produce(ctx context.Context, r kafka.Record) error
	// ProduceAll is Produce for several.
	ProduceAll(ctx context.Context, records ...kafka.Record) error
	// ReadAll calls fn with every record the topic holds at this moment, each
	// partition in order, and stops at fn's first error, which it returns.
	ReadAll(ctx context.Context, topic string, fn func(kafka.Record) error) error
}

// Letters are the dead letters of one sink. Several goroutines may use it if Log
// allows that.
type Letters struct {
	Sink  string // the sink's name
	Topic string // kafka.LettersTopic of the pipeline's prefix and the sink
	App   string // the version of this program
	Log   Log
}

const (
	// History is how long the end of a letter can be read.
	History = 7 * 24 * time.Hour
	// unsettled is how long the topic keeps every record. A letter that was overwritten
	// by what an older writer had to say of its row is found and written again by the
	// owner of its partition; this is the time it has for that.
	unsettled = 24 * time.Hour
)

// Topic says what the letters' topic of a sink must be. It keeps the newest record of
// each key for ever and the end of a letter for a week, and has as many partitions as the
// change topics, because a letter stands in the partition in which its row changes.
// maxRecordBytes is the largest record of a change topic; the publisher of letters must
// take HeaderBytes more as well.
func Topic(prefix, sink string, partitions, maxRecordBytes int) kafka.TopicSpec {
	return kafka.TopicSpec{
		Name:       kafka.LettersTopic(prefix, sink),
		Partitions: partitions,
		Compacted:  true,
		Grows:      true,
		Mend:       "a topic of dead letters that is not compacted was made by an older lockstep, with letters of format 1: settle them with that one (lockstep dlq replay, lockstep dlq skip), then delete the topic; it is made again",
		Configs: map[string]string{
			"delete.retention.ms":   strconv.FormatInt(History.Milliseconds(), 10),
			"min.compaction.lag.ms": strconv.FormatInt(unsettled.Milliseconds(), 10),
			"segment.ms":            strconv.FormatInt(unsettled.Milliseconds(), 10), // only older segments are compacted
			"max.message.bytes":     strconv.Itoa(maxRecordBytes + HeaderBytes + 1024),
		},
	}
}

// Bury writes the letter of a refused record and returns when it is safe. It does not look
// for others of the row: the owner of the partition does (Posts).
func (l *Letters) Bury(ctx context.Context, r sinks.Refusal) error {
	letter := l.refused(r)
	if err := l.Log.Produce(ctx, l.open(r.Record, letter)); err != nil {
		return fmt.Errorf("bury %s: %w", letter.Source, err)
	}
	return nil
}

// open is the record of an open letter, which holds a refused record.
func (l *Letters) open(record kafka.Record, letter Letter) kafka.Record {
	record.Topic = l.Topic // and the partition stays
	record.Time = time.Time{}
	record.Key = []byte(letter.key)
	if record.Value == nil {
		record.Value = []byte{} // without one Kafka would take it for an end
	}
	record.Headers = append(slices.Clip(record.Headers), letter.headers()...)
	return record
}

// end is the record that closes a letter where it stands.
func (l *Letters) end(letter Letter, state State, reason string) kafka.Record {
	return l.endIn(letter.place.Partition, letter, state, reason)
}

// endIn is the record that closes it in a partition.
func (l *Letters) endIn(partition int, letter Letter, state State, reason string) kafka.Record {
	letter.State, letter.Closed, letter.App = state, sinks.Clip(reason, textBytes), sinks.Clip(l.App, nameBytes)
	return kafka.Record{Topic: l.Topic, Partition: partition, Key: []byte(letter.key), Headers: letter.headers()}
}

// Skip closes a letter and leaves the store without the change. The reason is for
// those who ask later and must not be empty.
func (l *Letters) Skip(ctx context.Context, letter Letter, reason string) error {
	return l.SkipAll(ctx, []Letter{letter}, reason, func(Letter) {})
}

// SkipAll is Skip for several. done is called for each that is closed.
func (l *Letters) SkipAll(ctx context.Context, letters []Letter, reason string, done func(Letter)) error {
	if strings.TrimSpace(reason) == "" {
		return errors.New("skip letters: the reason is empty; say why their rows may stay stale")
	}
	for batch := range slices.Chunk(letters, batchLetters) {
		var ends []kafka.Record
		for _, letter := range batch {
			ends = append(ends, everywhere(letter, l.end(letter, Skipped, reason))...)
		}
		if err := l.Log.ProduceAll(ctx, ends...); err != nil {
			return fmt.Errorf("close letters from %s on as %s: %w", batch[0].ID, Skipped, err)
		}
		for _, letter := range batch {
			done(letter)
		}
	}
	return nil
}

// finish closes a letter, wherever it is open.
func (l *Letters) finish(ctx context.Context, letter Letter, state State, reason string) error {
	if err := l.Log.ProduceAll(ctx, everywhere(letter, l.end(letter, state, reason))...); err != nil {
		return fmt.Errorf("close letter %s as %s: %w", letter.ID, state, err)
	}
	return nil
}

// everywhere is a record of a letter for each partition where the letter is open.
func everywhere(letter Letter, r kafka.Record) []kafka.Record {
	records := []kafka.Record{r}
	records[0].Partition = letter.place.Partition
	for _, r.Partition = range letter.also {
		records = append(records, r)
	}
	return records
}

// Filter chooses letters. An empty field chooses all.
type Filter struct {
	ID          string
	Table       string // db.table
	Class       sinks.Class
	Key         string // the primary key as text
	Fingerprint string
	Since       time.Time // first failed at or after
}

func (f Filter) takes(l *Letter) bool {
	return (f.ID == "" || f.ID == l.ID) &&
		(f.Table == "" || f.Table == l.Table) &&
		(f.Class == "" || f.Class == l.Class) &&
		(f.Key == "" || sinks.Clip(f.Key, textBytes) == l.Key) &&
		(f.Fingerprint == "" || f.Fingerprint == l.Fingerprint) &&
		!l.FirstFailed.Before(f.Since)
}

// List reads the whole topic and returns the open letters that f takes, oldest
// failure first. Of a row's letters the one with the newest version is open; one that is
// being moved to another partition, and open in both, is one letter. It
// keeps no values, so its memory is about 1 KiB per letter that it returns.
func (l *Letters) List(ctx context.Context, f Filter) ([]Letter, error) {
	open := make(map[home]entry)
	err := l.Log.ReadAll(ctx, l.Topic, func(r kafka.Record) error {
		letter, err := l.read(r)
		if err != nil {
			return err
		}
		fold(open, letter, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read letters: %w", err)
	}
	letters := joined(open)
	slices.SortFunc(letters, func(a, b Letter) int {
		return cmp.Or(a.FirstFailed.Compare(b.FirstFailed), cmp.Compare(a.place.Partition, b.place.Partition), cmp.Compare(a.place.Offset, b.place.Offset))
	})
	return letters, nil
}

// home is a letter in a partition of its topic.
type home struct {
	id        identity
	partition int
}

// entry is the open letter of an identity in a partition; letter is nil when the filter
// does not take it.
type entry struct {
	version cdc.Version
	retries int
	letter  *Letter
}

// joined are the letters that a filter takes, each once. Of one that is open in several
// partitions the newest counts, and of equal ones that which was tried most often.
func joined(open map[home]entry) []Letter {
	newest := make(map[identity]home, len(open))
	var twice []home // seldom any
	for at, e := range open {
		first, known := newest[at.id]
		if !known {
			newest[at.id] = at
			continue
		}
		other := open[first]
		if cmp.Or(cmp.Compare(e.version, other.version), cmp.Compare(e.retries, other.retries), cmp.Compare(at.partition, first.partition)) > 0 {
			newest[at.id], at = at, first
		}
		twice = append(twice, at)
	}
	for _, at := range twice {
		if l := open[newest[at.id]].letter; l != nil {
			l.also = append(l.also, at.partition)
		}
	}
	var letters []Letter
	for _, at := range newest {
		if l := open[at].letter; l != nil {
			letters = append(letters, *l)
		}
	}
	return letters
}

// fold takes the next record of the topic into the open letters. What an older writer
// has to say of a row does not overwrite a newer letter; the end of a letter closes what
// stands before it: a row that is refused again later is a letter again.
func fold(open map[home]entry, l Letter, f Filter) {
	at := home{l.identity(), l.place.Partition}
	e, known := open[at]
	switch {
	case known && e.version > l.Version:
	case !l.State.Open():
		delete(open, at)
	case f.takes(&l):
		open[at] = entry{l.Version, l.Retries, &l}
	default:
		open[at] = entry{l.Version, l.Retries, nil}
	}
}

// errFound ends a reading early.
var errFound = errors.New("found")

// Records calls fn with each letter and the record it holds as it stood in its own
// topic, in the order of the letters' topic. A letter that is no longer there is
// an error.
func (l *Letters) Records(ctx context.Context, letters []Letter, fn func(Letter, kafka.Record) error) error {
	return l.each(ctx, letters, func(letter Letter, r kafka.Record) error { return fn(letter, original(letter, r)) })
}

// each is Records for the records of the letters themselves.
func (l *Letters) each(ctx context.Context, letters []Letter, fn func(Letter, kafka.Record) error) error {
	wanted := make(map[Place]Letter, len(letters))
	for _, letter := range letters {
		wanted[letter.place] = letter
	}
	if len(wanted) == 0 {
		return nil
	}
	err := l.Log.ReadAll(ctx, l.Topic, func(r kafka.Record) error {
		place := Place{r.Topic, r.Partition, r.Offset}
		letter, ok := wanted[place]
		if !ok {
			return nil
		}
		delete(wanted, place)
		if err := fn(letter, r); err != nil {
			return err
		}
		if len(wanted) == 0 {
			return errFound
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFound) {
		return err
	}
	for _, letter := range wanted {
		return fmt.Errorf("letter %s is not in %s any more", letter.ID, l.Topic)
	}
	return nil
}
