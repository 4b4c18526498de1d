// Package mysql reads row changes from a MySQL server: first a copy of the
// tables that are new to the pipeline, then the binary log, transaction by
// transaction.
//
// It promises that every row change of a captured table that the server
// committed reaches the Output, in commit order, with the version that the log
// clock gives it; that a re-read of any stretch of the log gives the same
// versions; and that what it cannot read exactly stops it with a Stop error
// instead of being left out.
//
// Row layouts come from the table map events alone
// (binlog_row_metadata=FULL), so there is no schema history to lose. It is the
// only package that knows go-mysql.
package mysql
