package sinks

import (
	"context"

	"lockstep/cdc"
)

// Reader tells what a store has of rows and what it would do with changes, and changes
// nothing in it. Both methods return exactly one answer per change, in their order; the
// changes of one call have distinct (table, key) pairs, and none is a barrier.
type Reader interface {
	// Stored looks where the row of each change is, by its key and, where more than that
	// says so, by its images. It brings documents of at most that many bytes together;
	// what does not fit is Omitted, so a large one is to be asked for alone.
	Stored(ctx context.Context, changes []cdc.Change, most int) []Stored
	// Would says what Apply would answer now. It sees neither other changes that are
	// under way nor, in Elasticsearch, a delete that is remembered without a document.
	Would(ctx context.Context, changes []cdc.Change) []Prospect
}

// Stored is what a store has of a row. The zero value is for nothing.
type Stored struct {
	// Problem is why it cannot be told, as a sentence; then only Place may be known.
	Problem string
	// Version is the one by which the guard judges; 0 when it has none.
	Version cdc.Version
	// Deleted says that the store remembers the delete of the row, at Version.
	Deleted bool
	// Document is JSON as a Prospect has it, without what the guard keeps in it; nil when
	// there is none.
	Document []byte
	// Omitted says that there is a document, and it was too large to bring along.
	Omitted bool
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
	shaped := make([]cdc.Change, len(changes))
	for i, c := range changes {
		if s.Shape(ctx, &c) != nil {
			c = cdc.Change{Table: c.Table, Op: cdc.OpDelete, Version: c.Version, Key: c.Key}
		}
		shaped[i] = c
	}
	return s.Reader.Stored(ctx, shaped, most)
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
