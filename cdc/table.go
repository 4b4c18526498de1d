package cdc

import "errors"

// Kind says what a column's values look like in JSON, and so how a store should
// index them.
type Kind string

const (
	KindInt       Kind = "int"       // number, -2^63 to 2^63-1
	KindUint      Kind = "uint"      // number, 0 to 2^64-1: BIGINT UNSIGNED and BIT(64)
	KindFloat     Kind = "float"     // number: FLOAT; array of numbers: VECTOR
	KindDouble    Kind = "double"    // number: DOUBLE
	KindDecimal   Kind = "decimal"   // text with every digit: "12.30"
	KindKeyword   Kind = "keyword"   // text: CHAR, VARCHAR, ENUM, TIME
	KindText      Kind = "text"      // text: TINYTEXT to LONGTEXT
	KindSet       Kind = "set"       // array of texts
	KindDate      Kind = "date"      // text: "2026-11-22"
	KindDateTime  Kind = "datetime"  // text without zone: "2026-11-22T08:15:30.123456"
	KindTimestamp Kind = "timestamp" // text in UTC: "2026-11-22T08:15:30.123456Z"
	KindBytes     Kind = "bytes"     // text in base64: BINARY, VARBINARY, BLOB
	KindJSON      Kind = "json"      // the JSON value itself, and GEOMETRY as GeoJSON
	KindBool      Kind = "bool"      // true or false: no column, only a computed field
)

// Column is a column of a table as a store needs to know it.
type Column struct {
	Name string
	Kind Kind
	// SQLType is the declared type, for messages: "bigint unsigned".
	SQLType string
	// Nullable says that a row may have no value there.
	Nullable bool
}

// Table is the present shape of a table of the source.
type Table struct {
	Name    TableName
	Columns []Column // in the table's order
	Key     []string // the primary key's columns, in the key's order
}

// ErrNoTable is wrapped by the error that describes a table the source no longer
// has.
var ErrNoTable = errors.New("the source has no such table")
