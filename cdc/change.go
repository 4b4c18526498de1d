package cdc

import "errors"

// TableName names a table of the source.
type TableName struct {
	DB    string
	Table string
}

// String is "db.table", as in the configuration and in every message.
func (t TableName) String() string { return t.DB + "." + t.Table }

// Op says what happened to a row. The letters are Debezium's.
type Op byte

const (
	OpCreate Op = 'c' // INSERT
	OpUpdate Op = 'u' // UPDATE that kept the primary key
	OpDelete Op = 'd' // DELETE, or the old key of an UPDATE that changed it
	OpRead   Op = 'r' // a row read from the table rather than from the log
	// OpBarrier says that every row of the table whose version is not higher is
	// gone: TRUNCATE, DROP, or the end of a copy that has written anew what is
	// there. It has no key and no images and goes to every partition.
	OpBarrier Op = 't'
	// OpGrowth says that the topic of the table has more partitions than before: from
	// here on keys stand where the new number puts them. It has no key and no images
	// and goes to every partition.
	OpGrowth Op = 'g'
)

func (o Op) String() string { return string(rune(o)) }

// Valid reports whether o is one of the six.
func (o Op) Valid() bool {
	return o == OpCreate || o == OpUpdate || o == OpDelete || o == OpRead || o.OfTable()
}

// OfTable reports whether o is of a table and not of a row.
func (o Op) OfTable() bool { return o == OpBarrier || o == OpGrowth }

// Change is one row change: the whole row before and after, under one version.
//
// Key, Before and After are JSON objects whose fields stand in the order of the
// table's columns; Key holds the primary key alone. Before is nil for a create
// or a read, and may lack large values (above SmallValue) of a large row, or where a
// record has no room for two; After is nil for a delete. The slices are not to be changed.
type Change struct {
	Table   TableName
	Op      Op
	Version Version
	// GTID of the transaction; empty for rows of the initial copy.
	GTID string
	// CommitMicros is when the transaction was first committed, in microseconds
	// since 1970 by the source's clock; 0 for rows of the initial copy.
	CommitMicros int64
	Key          []byte
	Before       []byte
	After        []byte
	// Layout tells the table's columns as they were: of two changes of a table with the
	// same one, names and types are the same. 0 is for a barrier, and for records from
	// before there were layouts.
	Layout uint32
	// Left are before images of changes that this one stands for, besides Before:
	// older ones of the row that were left out because this one came. A store that
	// puts a row into a place made of more than its key finds there the places that
	// it may still hold the row in. It is not part of the record.
	Left [][]byte
	// Leaves says that the row is only to leave those places: After, which may be nil, tells
	// no more than where it is now. It is not part of the record.
	Leaves bool
	Origin Origin
	// Trace is the trace in which this change is told of, if there is one.
	Trace Trace
	// Growth is what an OpGrowth tells, and nil otherwise.
	Growth *Growth
}

// Growth is the change of a topic to a larger number of partitions.
type Growth struct {
	// Partitions is the new number.
	Partitions int `json:"partitions"`
	// Behind has for each partition an offset. The growth, and what stands behind it, must
	// wait until all partitions are applied up to there, because an older change of the same
	// row may be among that.
	//
	// Two growths stand in each partition. The first one is behind everything that the old
	// number has put where it is. The second one is behind the first ones, so that what is
	// done about a growth is done everywhere before a change comes that the new number has
	// put where it is.
	Behind []int64 `json:"behind"`
}

// ErrTooLarge is wrapped by the error for a change that the output takes under no
// circumstances as it is configured.
var ErrTooLarge = errors.New("record too large")

// Origin says where in the source's log a change stood. It is for the eye of an
// operator; nothing is decided by it.
type Origin struct {
	ServerID uint32
	File     string
	Pos      uint32
	Row      int // index of the row inside its event
}
