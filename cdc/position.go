package cdc

import "encoding/json"

// Position is a place in the source's log between two transactions, and the log
// clock there. Reading on from it gives every later change the version it has.
type Position struct {
	// Format of this structure; PositionFormat.
	Format int `json:"format"`
	// Run names the start that this position goes on from. Of two first starts at
	// the same moment only one counts.
	Run string `json:"run,omitempty"`
	// Term counts the captures that went on from one another. What a capture saves
	// that was taken over from, and did not notice yet, counts no more.
	Term uint64 `json:"term,omitempty"`
	// Flavor is the kind of the server: mariadb, or empty for mysql.
	Flavor string `json:"flavor,omitempty"`
	// ServerUUID of the server whose log the clock was counted on; of a MariaDB, what
	// it is known by.
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
	// LastGTID names that transaction; empty when it is not known.
	LastGTID string `json:"last_gtid,omitempty"`
	// Replaced is where the epoch before ended, as long as changes behind it come
	// again that are in Kafka under that epoch; else 0.
	Replaced Version `json:"replaced,omitempty"`
	// Copied lists the tables ("db.table", sorted) whose changes are followed: those
	// whose rows are or will be copied (see Snapshots), and those created later,
	// whose log is whole.
	Copied []string `json:"copied"`
	// Keys names the primary-key columns of copied tables, joined by ", ": the
	// sinks know their rows by these.
	Keys map[string]string `json:"keys,omitempty"`
	// Snapshots are the copies of rows that are under way, in the order in which
	// they were asked for, and the newest of those that have ended.
	Snapshots []Snapshot `json:"snapshots,omitempty"`
	// Barriers holds the version of the newest barrier of each table that had one:
	// no row that is older may come back.
	Barriers map[string]Version `json:"barriers,omitempty"`
}

// PositionFormat is the format number of a Position.
const PositionFormat = 2

// Version is the version of a row read from the tables at this position, by the first
// copy that does so.
func (p Position) Version() (Version, error) { return NewVersion(p.Epoch, p.Seq) }

// Snapshot is a copy of rows of one table and how far it is.
type Snapshot struct {
	ID    string `json:"id"`
	Table string `json:"table"` // db.table
	// Reason says who asked for it: "first copy", an operator's words, a statement.
	Reason string `json:"reason"`
	// GTID of the transaction whose statement asked for it; empty for the others.
	GTID string `json:"gtid,omitempty"`
	// Where restricts the rows; empty for all.
	Where string `json:"where,omitempty"`
	// Keys is the number of keys of a copy that reads only those; the keys stand in
	// the SnapshotRequest of the same ID. A key without a row becomes a delete.
	Keys int `json:"keys,omitempty"`
	// Sweep is published as a barrier when every row is in Kafka: what the copy has
	// not written again is gone. 0 for none.
	Sweep Version `json:"sweep,omitempty"`
	// Turn is added to the version of every row. It is above that of any copy of the
	// table that may have read at the same clock before, and below Turns.
	Turn uint8 `json:"turn,omitempty"`
	// Ended is the version of the position at which it ended.
	Ended Version       `json:"ended,omitempty"`
	State SnapshotState `json:"state"`
	// Problem says why it failed.
	Problem string `json:"problem,omitempty"`
	// After is the key (a JSON object) up to which every row is in Kafka.
	After json.RawMessage `json:"after,omitempty"`
	// Rows are in Kafka of about Estimate.
	Rows     uint64 `json:"rows"`
	Estimate uint64 `json:"estimate,omitempty"`
	// BeganMicros and EndedMicros are by the clock of the capture.
	BeganMicros int64 `json:"began_us"`
	EndedMicros int64 `json:"ended_us,omitempty"`
}

// SnapshotState says what is going on with a snapshot.
type SnapshotState string

const (
	SnapshotRunning   SnapshotState = "running"
	SnapshotPaused    SnapshotState = "paused"
	SnapshotDone      SnapshotState = "done"
	SnapshotCancelled SnapshotState = "cancelled"
	SnapshotFailed    SnapshotState = "failed"
)

// SnapshotRequest asks the capture for a copy of rows, and later for its pause,
// its going on or its end. The newest request of an ID counts.
type SnapshotRequest struct {
	Format int    `json:"format"` // SnapshotRequestFormat
	ID     string `json:"id"`
	Table  string `json:"table"`
	Reason string `json:"reason,omitempty"`
	Where  string `json:"where,omitempty"`
	// Keys are JSON objects as in Change.Key; empty for the whole table or Where.
	Keys []json.RawMessage `json:"keys,omitempty"`
	// Sweep removes what a copy of the whole table has not written again.
	Sweep bool `json:"sweep,omitempty"`
	// Want is SnapshotRunning, SnapshotPaused or SnapshotCancelled.
	Want     SnapshotState `json:"want"`
	AtMicros int64         `json:"at_us"`
}

// ReplayPrefix begins the IDs of requests by which dead letters are replayed. Those of
// one replay, ReplayPrefix, its name and a number behind the last dot, name each row once.
const ReplayPrefix = "replay-"

// LostPrefix begins the IDs of requests for what a sink, a topic or the dead letters of a
// sink have lost.
const LostPrefix = "lost-"

// A SnapshotRequest names no more keys, nor more bytes of them, so that it fits a
// record of Kafka.
const (
	MaxRequestKeys  = 5000
	MaxRequestBytes = 400 << 10
)

// SnapshotRequestFormat is the format number of a SnapshotRequest.
const SnapshotRequestFormat = 1
