package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// Hash stands for everything in the log up to a place: SHA-256 of the hash before the
// last record and the bytes of that record.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText makes it hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return fmt.Errorf("%q is not a SHA-256: 64 hexadecimal digits", text)
	}
	_, err := hex.Decode(h[:], text)
	return err
}

func (h Hash) behind(value []byte) Hash {
	sum := sha256.New()
	sum.Write(h[:])
	sum.Write(value)
	return Hash(sum.Sum(nil))
}

// standing is what a record's place makes of it.
type standing int

const (
	isConfirmed standing = iota
	// isLate: another record came between what its writer had read and this one. It says
	// nothing; its writer says it again.
	isLate
	// isBroken: no writer can have written this here.
	isBroken
)

// chain walks over the log. What it makes of a record depends on nothing but the log, so
// that all who read it agree.
type chain struct {
	n     int64 // records, as the writers count them
	head  Hash
	heads map[Hash]int64 // every head there was, and its n
}

// newChain begins a pipeline's log: that of another one does not continue it.
func newChain(prefix string) *chain {
	head := Hash(sha256.Sum256([]byte("lockstep audit log of " + prefix)))
	return &chain{head: head, heads: map[Hash]int64{head: 0}}
}

// add takes the next record of the log. A broken one is explained, and from it on the
// chain goes on as its writer saw it, so that every break is found and not only the
// first.
func (c *chain) add(value []byte) (r Record, s standing, problem string) {
	r, err := decode(value)
	if err != nil {
		c.put(c.n+1, c.head.behind(value))
		return r, isBroken, "it is no audit record, so somebody else has written or changed it: " + err.Error()
	}
	n, known := c.heads[r.Prev]
	switch {
	case r.Prev == c.head && r.Seq == c.n:
		c.put(c.n+1, c.head.behind(value))
		return r, isConfirmed, ""
	case known && n == r.Seq:
		c.put(c.n+1, c.head.behind(value))
		return r, isLate, ""
	case r.Seq > c.n:
		problem = fmt.Sprintf("its writer saw %d records before it and there are %d: records were removed or moved", r.Seq, c.n)
	case r.Seq < c.n:
		problem = fmt.Sprintf("its writer saw %d records before it and there are %d: records were changed, moved or put in", r.Seq, c.n)
	default:
		problem = "its hash is not that of the records before it: one of them was changed, or exchanged for another"
	}
	c.put(r.Seq+1, r.Prev.behind(value))
	return r, isBroken, problem
}

func (c *chain) put(n int64, head Hash) {
	c.n, c.head = n, head
	c.heads[head] = n
}

func decode(value []byte) (r Record, err error) {
	if err := json.Unmarshal(value, &r); err != nil {
		return r, err
	}
	switch {
	case r.Format != format:
		return r, fmt.Errorf("it has format %d and this program knows format %d", r.Format, format)
	case r.Seq < 0 || r.Seq >= 1<<53 || r.ID == "" || r.Step != Began && r.Step != Ended:
		return r, errors.New("seq, id or step is missing or wrong")
	}
	return r, nil
}
