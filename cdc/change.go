package cdc

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
	OpRead   Op = 'r' // a row read by the initial copy
)

func (o Op) String() string { return string(rune(o)) }

// Valid reports whether o is one of the four.
func (o Op) Valid() bool {
	return o == OpCreate || o == OpUpdate || o == OpDelete || o == OpRead
}

// Change is one row change: the whole row before and after, under one version.
//
// Key, Before and After are JSON objects whose fields stand in the order of the
// table's columns; Key holds the primary key alone. Before is nil for a create
// or a read, After is nil for a delete. The slices are not to be changed.
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
	Origin       Origin
}

// Origin says where in the source's log a change stood. It is for the eye of an
// operator; nothing is decided by it.
type Origin struct {
	ServerID uint32
	File     string
	Pos      uint32
	Row      int // index of the row inside its event
}

// Position is a place in the source's log between two transactions, and the log
// clock there. Reading on from it gives every later change the version it has.
type Position struct {
	// Format of this structure; PositionFormat.
	Format int `json:"format"`
	// Run names the start that this position goes on from. Of two first starts at
	// the same moment only one counts.
	Run string `json:"run,omitempty"`
	// ServerUUID of the server whose log the clock was counted on.
	ServerUUID string `json:"server_uuid"`
	// GTIDSet holds every transaction before this place.
	GTIDSet string `json:"gtid_set"`
	Epoch   uint16 `json:"epoch"`
	Seq     uint64 `json:"seq"`
	// File and Pos are for the operator's eye.
	File string `json:"file,omitempty"`
	Pos  uint32 `json:"pos,omitempty"`
	// CommitMicros is the commit time of the last transaction before this place.
	CommitMicros int64 `json:"commit_us,omitempty"`
	// Copied lists the tables ("db.table", sorted) whose rows are in Kafka: those
	// that were copied, and those created later, whose log is whole.
	Copied []string `json:"copied"`
	// Keys names the primary-key columns of copied tables, joined by ", ": the
	// sinks know their rows by these.
	Keys map[string]string `json:"keys,omitempty"`
}

// PositionFormat is the format number of a Position.
const PositionFormat = 1

// Version is the version of a row read from the tables at this position.
func (p Position) Version() (Version, error) { return NewVersion(p.Epoch, p.Seq) }
