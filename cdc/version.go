package cdc

import (
	"errors"
	"fmt"
	"strconv"
)

// The layout of a Version is a data format: it is stored in every record and in
// every sink. Changing it needs a new Format number and a new epoch.
const (
	seqBits = 42
	// MaxSeq is the last sequence number of an epoch: 4.4 TB of row log.
	MaxSeq = 1<<seqBits - 1
	// MaxEpoch is the last epoch.
	MaxEpoch = 1<<11 - 1
	// Turns is how many copies of a row can be told apart that are read while the log
	// clock stands still: the versions from the clock on are theirs, and that of the
	// first row image behind it is Turns higher.
	Turns = 16
)

// ErrNoVersion is returned for a version outside [1, 2^53).
var ErrNoVersion = errors.New("version is outside 1 to 2^53-1")

// Version is the monotonic clock of a row: of two changes of the same row the
// one with the higher version is newer, whatever order they arrive in.
//
// It is epoch<<42 | seq and always in [1, 2^53), so that Lua, JavaScript and
// jq, which know only doubles, compare it exactly. The sequence is the log
// clock: the number of bytes of row log before the change, plus Turns, plus the index
// of its row image inside the event. A row that is read from its table has the clock of a
// place before it was read, plus the turn of its copy there. It is a pure function of the source's log, so
// a re-read gives every change the version it had before.
type Version uint64

// NewVersion joins an epoch (1 to MaxEpoch) and a sequence number (0 to MaxSeq).
// It fails rather than wrap around.
func NewVersion(epoch uint16, seq uint64) (Version, error) {
	if epoch < 1 || epoch > MaxEpoch {
		return 0, fmt.Errorf("epoch %d is outside 1 to %d", epoch, MaxEpoch)
	}
	if seq > MaxSeq {
		return 0, fmt.Errorf("log clock %d is past the end of epoch %d (%d)", seq, epoch, uint64(MaxSeq))
	}
	return Version(uint64(epoch)<<seqBits | seq), nil
}

// ParseVersion reads the decimal form and refuses what no source could have given.
func ParseVersion(s string) (Version, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("version %q: %w", s, ErrNoVersion)
	}
	v := Version(n)
	return v, v.Check()
}

// Check reports whether v can have come from NewVersion.
func (v Version) Check() error {
	if v.Epoch() < 1 || v.Epoch() > MaxEpoch || v >= 1<<53 {
		return fmt.Errorf("version %d: %w", uint64(v), ErrNoVersion)
	}
	return nil
}

// Epoch rises when the log itself is replaced by another one.
func (v Version) Epoch() uint16 { return uint16(v >> seqBits) }

// Seq is the log clock inside the epoch, in bytes of row log.
func (v Version) Seq() uint64 { return uint64(v) & MaxSeq }

// String is the decimal form that records and sinks carry.
func (v Version) String() string { return strconv.FormatUint(uint64(v), 10) }
