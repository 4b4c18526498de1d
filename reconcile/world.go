package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
)

// Source reads rows of one table as they are now. It is for one goroutine.
type Source interface {
	// Next reads rows behind a key, in the order of the key: at most so many, and no more
	// once they have that many bytes. When it returns none there are none.
	Next(after []byte, most, bytes int) ([]cdc.Row, error)
	// Last reads rows with the highest keys.
	Last(most int) ([]cdc.Row, error)
	// Listed reads the rows with these keys; those without one come with their key alone.
	Listed(keys [][]byte) ([]cdc.Row, error)
	// Executed is a GTID set with every transaction of which something can have been read
	// before, save one that was committed this very moment.
	Executed() (string, error)
	// Table is the table as it was when the reader was opened, and Layout that of its rows.
	Table() (table cdc.Table, layout uint32)
	// Same reports whether the columns of the table are still those.
	Same() (bool, error)
	// Busy says why the source should be left alone now; empty when nothing does.
	Busy() (string, error)
	// Shows reports whether what is read now shows every transaction of a set of the log,
	// and waits a moment for it: one stands in the log before it can be seen, and as long as
	// a semi-synchronous replica lets the source wait.
	Shows(set string) (bool, error)
	Close()
}

// ErrAltered says that the columns of a table have changed while it was compared.
var ErrAltered = errors.New("the table was altered while it was compared; compare it again")

// Log is where the changes of a table begin or end: an offset for each partition.
type Log map[int]int64

// World is what surrounds a comparison. Its functions may be called by several goroutines.
type World struct {
	// Open opens a reader for the rows of a table that match a condition; all when it is
	// empty.
	Open func(ctx context.Context, table cdc.TableName, where string) (Source, error)
	// Await returns once every change of the table that belongs to a transaction of a GTID
	// set is settled in a sink.
	Await func(ctx context.Context, sink string, table cdc.TableName, set string) (Reached, error)
	// Ends is the end of the log of a table.
	Ends func(ctx context.Context, table cdc.TableName) (Log, error)
	// Changes calls fn with the changes between two ends, in order within a partition. It is
	// not whole when some are there no more.
	Changes func(ctx context.Context, table cdc.TableName, from, to Log, fn func(offset int64, partition int, c *cdc.Change) error) (whole bool, err error)
	// Newest finds the newest version that the log has of each row, by key; it has none of
	// those that are left out.
	Newest func(ctx context.Context, table cdc.TableName, keys [][]byte) (map[string]cdc.Version, error)
	// Letters gives the IDs of the open dead letters of a table in a sink, by the text of
	// the key (cdc.KeyText).
	Letters func(ctx context.Context, sink string, table cdc.TableName) (map[string]string, error)
	// Reread has the rows with these keys read again and written by the normal way, and
	// returns when they are in the log. A try names each row once, and outranks the tries before it.
	Reread func(ctx context.Context, table cdc.TableName, try int, keys [][]byte) error
}

// Reached is a place of the capture in the source's log.
type Reached struct {
	// Newest is a version such that no change that was published by the time the set was
	// made that Await was given is of a higher one.
	Newest cdc.Version
	// Read are the transactions before the place, a GTID set.
	Read string
}

// Target is a sink whose documents are compared.
type Target struct {
	Name  string
	Store sinks.Reader
	// Masked are the columns, in lower case, whose values may be shown only as the source
	// gives them now.
	Masked func(table cdc.TableName) map[string]bool
}

const (
	// readRows and readBytes bound one call to a store, readAlone the document of one row.
	readRows             = 1000
	readBytes, readAlone = 8 << 20, 64 << 20
	// patience is how long a store may not say what it has of some rows.
	patience = 5 * time.Minute
)

// stored is what the store has of the rows of changes, which have distinct keys.
func (t *Target) stored(ctx context.Context, changes []cdc.Change) ([]sinks.Stored, error) {
	return readAll(ctx, t.Name, changes, func(part []cdc.Change, most int) []sinks.Stored { return t.Store.Stored(ctx, part, most) })
}

// again is what the store has where rows were found.
func (t *Target) again(ctx context.Context, found []sinks.Found) ([]sinks.Stored, error) {
	return readAll(ctx, t.Name, found, func(part []sinks.Found, most int) []sinks.Stored { return t.Store.Again(ctx, part, most) })
}

// readAll asks for all of what, and alone for what has no room beside the others. It waits
// for a store that does not answer, for as long as patience allows.
func readAll[T any](ctx context.Context, sink string, what []T, read func(part []T, most int) []sinks.Stored) (all []sinks.Stored, err error) {
	answer := func(part []T, most int) ([]sinks.Stored, error) {
		for began, wait := time.Now(), 200*time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
			out := read(part, most)
			away := slices.IndexFunc(out, func(s sinks.Stored) bool { return s.Away })
			switch {
			case away < 0:
				return out, nil
			case time.Since(began) > patience:
				return nil, fmt.Errorf("sink %s has not told for %s what it has: %s", sink, patience, out[away].Problem)
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	for part := range slices.Chunk(what, readRows) {
		out, err := answer(part, readBytes)
		if err != nil {
			return nil, err
		}
		for i := range out {
			if out[i].Omitted {
				one, err := answer(part[i:i+1], readAlone)
				if err != nil {
					return nil, err
				}
				out[i] = one[0]
			}
		}
		all = append(all, out...)
	}
	return all, nil
}
