package sinks

import (
	"context"

	"lockstep/cdc"
)

// Reader tells what a store has of rows and what it would do with changes, and changes
// nothing in it. Stored, Would and Expect return exactly one answer per change, in their
// order; the changes of one call have distinct (table, key) pairs, and none is a barrier.
type Reader interface {
	// Stored looks where the row of each change is, by its key and, where more than that
	// says so, by its images. It brings documents of at most that many bytes together;
	// what does not fit is Omitted, so a large one is to be asked for alone.
	Stored(ctx context.Context, changes []cdc.Change, most int) []Stored
	// Would says what Apply would answer now. It sees neither other changes that are
	// under way nor, in Elasticsearch, a delete that is remembered without a document.
	Would(ctx context.Context, changes []cdc.Change) []Prospect
	// Keeps returns nil when the store keeps the rows of a table as documents, and else, as an
	// Incomparable, why there is nothing to compare with its rows.
	Keeps(table cdc.TableName) error
	// Expect says what the store has of each row once its change is applied. It does not
	// ask the store.
	Expect(ctx context.Context, changes []cdc.Change) []Expected
	// Scan hands over the rows of a table that the store has, those that are there from its
	// beginning to its end at least once, save those in places that are known. Table is as
	// the source has it. It stops at each's first error.
	Scan(ctx context.Context, table cdc.Table, known func(place string) bool, each func([]Found) error) error
	// Again is Stored for rows that a Scan has found, each looked for where it was.
	Again(ctx context.Context, found []Found, most int) []Stored
}

// Freer is a Reader that can let go of what somebody else has written.
type Freer interface {
	// Free sees to it that the guard lets the next change of each row in, where the store
	// still has that version of it, which nobody can have published. Until then the row may
	// be missing there. Changes are as for Stored, and versions stand beside them.
	Free(ctx context.Context, changes []cdc.Change, versions []cdc.Version) error
}

// Incomparable says why nothing that a store has of a table can be compared with its rows.
type Incomparable struct{ Reason string }

func (e *Incomparable) Error() string { return e.Reason }

// Expected is what a store is to have of a row.
type Expected struct {
	// Problem is why no document can be made of the row, as a sentence: a change of it
	// becomes a dead letter, or waits.
	Problem string
	// Document is as in Stored; nil for none.
	Document []byte
	// Place says in one text where it is; empty when the row is nowhere.
	Place string
}

// Found is a row that a store has.
type Found struct {
	// Change is its delete: Key and Before lead to where it was found. Without a Key no row
	// of the table can be there, unless there is a Problem.
	Change cdc.Change
	// Place is as in Expected.
	Place string
	// Problem is why its key cannot be told from where it is, as a sentence.
	Problem string
}

// Stored is what a store has of a row. The zero value is for nothing.
type Stored struct {
	// Problem is why it cannot be told, as a sentence; then only Place may be known.
	Problem string
	// Away says that the Problem is of the store, which did not answer, and not of the row.
	Away bool
	// Version is the one by which the guard judges; 0 when it has none.
	Version cdc.Version
	// Deleted says that the store remembers the delete of the row, at Version.
	Deleted bool
	// Document is JSON as a Prospect has it, without what the guard keeps in it; nil when
	// there is none.
	Document []byte
	// Omitted says that there is a document, and it was too large to bring along.
	Omitted bool
	// Foreign says that somebody else has written what is there: the store's own marks of
	// a write of ours are missing, or are not what we have left.
	Foreign bool
	// Place says where in the store that is: index, _id and routing, or key and member.
	Place map[string]string
}

// Prospect is what a store would answer to a change.
//
// Of Applied the Reason says what the store cannot be asked; it is empty when nothing
// stands in the way of the change.
type Prospect struct {
	Outcome
	// Document is what the store would have then, as JSON; nil for none.
	Document []byte
}

// CannotAsk is the Reason of a Prospect of a store that does not tell whether it takes a
// document.
const CannotAsk = "the store cannot be asked whether it takes it"

// ShapedReader is a Reader of what a Shaped Sink writes: it gets, in place of each change,
// what Shape makes of it.
type ShapedReader struct {
	Reader
	// Shape is that of Shaped.
	Shape func(ctx context.Context, c *cdc.Change) *Outcome
}

// Stored is Reader.Stored for changes as they come from the source. The row of one of
// which no document can be made is looked for by its key alone.
func (s ShapedReader) Stored(ctx context.Context, changes []cdc.Change, most int) []Stored {
	return s.Reader.Stored(ctx, s.places(ctx, changes), most)
}

// places are changes that lead to where rows are.
func (s ShapedReader) places(ctx context.Context, changes []cdc.Change) []cdc.Change {
	shaped := make([]cdc.Change, len(changes))
	for i, c := range changes {
		if s.Shape(ctx, &c) != nil {
			c = cdc.Change{Table: c.Table, Op: cdc.OpDelete, Version: c.Version, Key: c.Key}
		}
		shaped[i] = c
	}
	return shaped
}

// Free is Freer.Free for changes as they come from the source, of a Reader that is a Freer.
func (s ShapedReader) Free(ctx context.Context, changes []cdc.Change, versions []cdc.Version) error {
	inner, ok := s.Reader.(Freer)
	if !ok {
		return nil
	}
	return inner.Free(ctx, s.places(ctx, changes), versions)
}

// Would is Reader.Would for changes as they come from the source.
func (s ShapedReader) Would(ctx context.Context, changes []cdc.Change) []Prospect {
	prospects := make([]Prospect, len(changes))
	shaped := make([]cdc.Change, 0, len(changes))
	at := make([]int, 0, len(changes))
	for i, c := range changes {
		if no := s.Shape(ctx, &c); no != nil {
			prospects[i].Outcome = *no
			continue
		}
		shaped, at = append(shaped, c), append(at, i)
	}
	if len(shaped) == 0 {
		return prospects
	}
	for i, p := range s.Reader.Would(ctx, shaped) {
		prospects[at[i]] = p
	}
	return prospects
}

// Expect is Reader.Expect for changes as they come from the source.
func (s ShapedReader) Expect(ctx context.Context, changes []cdc.Change) []Expected {
	out := make([]Expected, len(changes))
	shaped := make([]cdc.Change, 0, len(changes))
	at := make([]int, 0, len(changes))
	for i, c := range changes {
		if no := s.Shape(ctx, &c); no != nil {
			out[i].Problem = no.Sentence()
			continue
		}
		shaped, at = append(shaped, c), append(at, i)
	}
	for i, e := range s.Reader.Expect(ctx, shaped) {
		out[at[i]] = e
	}
	return out
}
