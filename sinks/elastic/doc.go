// Package elastic keeps an Elasticsearch index in step with each table.
//
// A row is a whole document whose _id is its primary key. Every write carries the
// row's version with version_type=external, so Elasticsearch itself refuses what
// is older than what it has: a conflict is success. Nothing is ever written
// without a version, and never by _update.
//
// Readers search an alias. The index behind it, with a strict mapping made from
// the table, is created with the first change of the table; columns that are added
// to the table later are added to the mapping. What cannot be added stops the table
// with one sentence, and Rebuild puts a new index behind the alias.
//
// A document that is deleted hard has its version remembered for an hour (gc_deletes)
// and in memory only: after a restart of the node an older change of the row that comes
// once more would bring the document back. A tombstone in its place keeps it out.
package elastic
