// Package sinks applies row changes to a store and accounts for every one of
// them.
//
// A Sink is a store; Apply answers with exactly one Outcome per change, and Sweep
// removes what a table no longer has. A Worker feeds it from Kafka: it decodes, keeps the newest change of each key,
// hands what the store refuses to Bury, and commits an offset only behind changes that
// are settled.
package sinks

import (
	"context"
	"slices"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
)

// Sink is a store that applies changes behind a version guard.
//
// Apply returns exactly one Outcome per change, in the order of changes. The
// guard must make it safe to call with the same changes again, in any order.
// The changes of one call have distinct (table, key) pairs, and none is a barrier.
//
// A row whose place depends on more than its key is taken out of the older places that
// the images of its change name, each behind a guard of its own, also when the change is
// refused: what comes next does not know them. So Transient and Poison say that it is in
// none of these any more, and where that cannot be said the change is Unavailable.
//
// Sweep removes every row of the table whose version is not above v, each through
// the guard as a delete at v, so that it may be repeated and changes may be applied
// meanwhile. It returns how many rows it removed. An error means that rows may be
// left; calling it again goes on.
type Sink interface {
	Apply(ctx context.Context, changes []cdc.Change) []Outcome
	Sweep(ctx context.Context, table cdc.TableName, v cdc.Version) (removed int, err error)
}

// Unfit says why a store will not do until someone changes its configuration or ours.
type Unfit struct {
	Problem string
	Mend    string // what is to be done
}

func (e Unfit) Error() string { return e.Problem + "; " + e.Mend }

// Verdict says what became of a change.
type Verdict uint8

const (
	// Unavailable: the store could not be asked, or cannot take writes now. It
	// is the zero value, so a forgotten outcome holds the partition rather than
	// losing the change. No attempt is counted and nothing is buried.
	Unavailable Verdict = iota
	// Applied: the store has the change now.
	Applied
	// Duplicate: the store had exactly this version already.
	Duplicate
	// Stale: the store has a newer version.
	Stale
	// Filtered: the change is not meant for this store.
	Filtered
	// Transient: refused for a reason that may pass for this change alone.
	Transient
	// Poison: refused for a reason that will not pass.
	Poison
)

// Class is the kind of a refusal: a closed set, fit for a metric label.
type Class string

const (
	ClassMapping     Class = "mapping"     // the store's schema does not take the row
	ClassTooLarge    Class = "too_large"   // the row is larger than the store takes
	ClassUndecodable Class = "undecodable" // the record is not a change of ours
	ClassKey         Class = "key"         // the primary key makes no id for the store
	ClassWrongType   Class = "wrong_type"  // the key holds something of another type
	ClassShape       Class = "shape"       // the row makes no document as the configuration wants it
	ClassNoTable     Class = "no_table"    // the table is gone and the store has no place for it
	ClassRefused     Class = "refused"     // refused again and again with an unknown answer
)

// Classes lists every Class, so that metrics exist from the start.
var Classes = []Class{ClassMapping, ClassTooLarge, ClassUndecodable, ClassKey, ClassWrongType, ClassShape, ClassNoTable, ClassRefused}

// known is c, or ClassRefused for a class that a sink made up: it would make a label up.
func known(c Class) Class {
	if slices.Contains(Classes, c) {
		return c
	}
	return ClassRefused
}

// Outcome is the store's answer to one change.
type Outcome struct {
	Verdict Verdict
	// Class is set for Transient and Poison.
	Class Class
	// Reason is the store's own answer, for a human: error type and message.
	Reason string
	// Mend is what is to be done, a command where one does it; empty when nobody knows, or
	// nothing is to be done.
	Mend string
	// Unasked says of an Unavailable that the store was not asked, or has refused, for a
	// reason of this table's own: its partition waits, and the others and the breaker hear
	// nothing.
	Unasked bool
	// RetryAfter is how long the store has asked not to be called again; zero when it
	// has not. The whole sink waits that long, up to a minute.
	RetryAfter time.Duration
}

// Sentence is the reason with what is to be done.
func (o Outcome) Sentence() string { return sentence(o.Reason, o.Mend) }

// Refusal is a record that ends as a dead letter.
type Refusal struct {
	Record kafka.Record // key, value and headers as they came from the source topic
	Change *cdc.Change  // nil when the record could not be decoded
	Class  Class
	Reason string
	// Transient is of one that may be taken when it is tried again.
	Transient bool
	Failed    time.Time
}
