// Package shape turns a row of a table into the document that a sink keeps of it:
// columns chosen, left out, given other names, fields computed, and rows that do not
// meet a condition taken away.
//
// It does no I/O and knows no store. A Config is what the operator writes; Compile
// checks it against the table as it is and gives a Shape, which may be used by
// several goroutines. The values of columns pass byte for byte: only what an
// expression reads is decoded.
//
// The steps stand in this order, and each sees what the one before has left:
// where, fields or drop, rename, compute. Expressions are CEL and read the row as it
// came, under the table's names for its columns. A document has the columns in the
// order of the row and behind them the computed fields in the order of the alphabet.
//
// A document that is made of several tables would come in here: as a function that
// takes, beside the row, the rows that belong to it, and whose Table names the
// columns of all of them. What stands around this package asks only for a change that
// becomes another change (Shape.Apply) and for the table as the sink sees it
// (Shape.Table).
package shape
