// Package reconcile compares the rows of the source with what every sink has, by value and
// by version, while writes flow, and has repaired what differs.
//
// What it reports is confirmed: the row did not change, everything that Kafka has of it
// was applied, and the store has something else all the same. A pass reads a table in chunks
// by its key, waits until the sink has settled what the chunk can have seen, and asks the
// store for the same rows. A row that differs is only suspect then, for it may have changed
// meanwhile. A Checker looks at suspects in rounds. A round
//
//   - waits until everything that was committed is settled, and notes the end of the log;
//   - waits until the source shows what the capture has read;
//   - reads the rows by their keys, and waits until everything that can have been seen is
//     settled;
//   - asks the store, and notes the end of the log again.
//
// A difference counts when it was there in two rounds, one after the other, and the log
// does not name the row from the end that the first one noted first to the end that the
// second one noted last: so all there is of the row was before the first round, and was settled.
// A row that the log names is looked at again. It is equal as well when the store
// has what the log said of it under the version that the store has.
//
// The package asks nobody by itself: what it needs of the source, of Kafka and of the
// dead letters are functions of a World.
package reconcile
