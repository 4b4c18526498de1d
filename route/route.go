// Package route decides where the rows of a table are to be read: from a sink, or from
// MySQL while the sink cannot be trusted, and how many of the readers may go back when it
// can be again.
//
// A Machine judges one table in one sink by what it is told: what the processes of the
// sink report, whether the capture is heard, what the reconciler has confirmed. It does no
// I/O and is handed the time. It promises:
//
//   - What is bad for longer than Config.WorsenAfter makes the state worse, and nothing makes
//     it better before Config.RecoverAfter has passed in peace.
//   - What is not known is bad: a part of the table, or the capture, of which nothing was
//     heard for Config.Silence is degraded.
//   - While a table is degraded nobody is sent to the sink. Readers come back by their keys, a
//     share at a time, and a key that has come back stays.
//   - A share of mismatches is judged only by a sample that is large enough; a count of missing
//     rows always.
//
// A Board is all machines of a process, and the answers.
package route

import (
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"time"
)

// State says how far a sink can be trusted with a table.
type State int

const (
	OK State = iota
	Warning
	Degraded // nobody reads from the sink
)

var stateNames = [...]string{"ok", "warning", "degraded"}

func (s State) String() string { return stateNames[s] }

// MarshalText writes the name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name; another one is an error.
func (s *State) UnmarshalText(text []byte) error {
	for i, name := range stateNames {
		if name == string(text) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("state %q is not known", text)
}

// Cause is what a state is for.
type Cause string

const (
	Unheard     Cause = "unheard"     // a part of the table, or the capture, is not heard
	Unavailable Cause = "unavailable" // the store does not take changes
	Missing     Cause = "missing"     // rows are confirmed to be missing
	Mismatch    Cause = "mismatch"    // too many rows are confirmed to be different
	Undelivered Cause = "undelivered" // there are open dead letters
	Late        Cause = "late"        // the sink is behind
	Slow        Cause = "slow"        // changes take long
	Returning   Cause = "returning"   // only a share of the keys is back
)

// Report is what a process of a sink says of a table, with what the capture has said. Its
// times are by the clock of who is told.
type Report struct {
	Process string
	// Partitions are those of the table's topic that the process has, of so many. Of two
	// processes that name one partition the one of the higher generation has it.
	Partitions []int
	Of         int
	Generation int32
	// Down is why changes do not get on; empty while they do. Open says that it is no matter
	// of a moment: a breaker is not closed.
	Down string
	Open bool
	// P99 is the latency of the last Changes.
	P99     time.Duration
	Changes int
	// Behind is how late the sink is. When it lacks something, Lacks is when that was
	// committed, at the earliest; else it is zero. Neither is Known after a start until it was
	// found out.
	Behind time.Duration
	Lacks  time.Time
	Known  bool
	// Copying says that rows of the table are being copied from the source.
	Copying bool
	// Letters are open dead letters.
	Letters int
}

// Class is how a row in a store differs.
type Class string

const (
	ClassMissing   Class = "missing"   // there is no document of the row
	ClassOrphan    Class = "orphan"    // there is no row of the document
	ClassTampered  Class = "tampered"  // somebody else wrote the document
	ClassStale     Class = "stale"     // the document is older than what was published
	ClassDiffering Class = "differing" // any other difference
)

// Sample is what the reconciler has found in a part of a table.
type Sample struct {
	// Began is before the first of the keys was read, by the clock of who is told.
	Began    time.Time
	Compared int  // keys
	Whole    bool // they are all that the table has
	// Confirmed are the differences that remain, by class.
	Confirmed map[Class]int
}

// Decision is where a table is to be read.
type Decision struct {
	State  State
	Cause  Cause
	Reason string
	// Since is when the state began.
	Since time.Time
	// Share of the keys, in percent, reads from the sink; the others read from MySQL.
	Share int
	// Waits is what the state waits for until it gets better; empty when it is ok.
	Waits string
	// Stops is what must not be done meanwhile.
	Stops Stops
	// DryRun says that the state is what it would be: Share is 100 and nothing is stopped
	// all the same. WouldShare is what Share would be; without a dry run they are equal.
	DryRun     bool
	WouldShare int
}

// Stops is what a state forbids. The stream is never stopped: to be late makes nothing
// worse than not to come at all.
type Stops struct {
	Replays bool `json:"replays,omitempty"` // of dead letters
	Repairs bool `json:"repairs,omitempty"` // of what the reconciler has found
	Deletes bool `json:"deletes,omitempty"` // of documents without a row
}

// stops says what a cause forbids. What is needed for the way back is not: missing rows
// come by repairs, and dead letters end by replays. A store that does not take changes is
// found to be back by whoever calls it, so replays go on then as far as its breakers let
// them; and they need no capture when they send what was recorded.
func stops(c Cause) Stops {
	switch c {
	case Mismatch:
		return Stops{Replays: true, Repairs: true, Deletes: true}
	case Missing:
		return Stops{Deletes: true}
	case Unavailable, Unheard:
		return Stops{Repairs: true, Deletes: true}
	case Late, Slow:
		return Stops{Replays: true, Repairs: true}
	}
	return Stops{}
}

func (s Stops) or(o Stops) Stops {
	return Stops{s.Replays || o.Replays, s.Repairs || o.Repairs, s.Deletes || o.Deletes}
}

// Takes reports whether a key is among the share, in percent, that reads from the sink:
// CRC-32 (IEEE) of its bytes, modulo 100, is below share. Whoever is in a share is in every
// larger one. It is part of the API and never changes.
func Takes(key string, share int) bool {
	return int(crc32.ChecksumIEEE([]byte(key))%100) < share
}

// String names what is stopped.
func (s Stops) String() string { return strings.Join(s.Names(), " ") }

// Names are what is stopped, for people and JSON.
func (s Stops) Names() []string {
	names := []string{}
	for name, stopped := range map[string]bool{"replays": s.Replays, "repairs": s.Repairs, "deletes": s.Deletes} {
		if stopped {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
