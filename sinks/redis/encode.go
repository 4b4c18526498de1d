package redis

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

const (
	versionField = "_lockstep_v" // of a hash
	jsonField    = "_lockstep"   // of a JSON row
	// commandBytes is what a command weighs in a pipeline besides the row.
	commandBytes = 160
)

// call is one script call on its way to the server.
type call struct {
	change int // index among the changes of one Apply
	// main says that this call is about the place where the row is now, or was when
	// it was deleted; the others remove it from where it was before.
	main bool
	// leaves says that it removes a row from a place that other columns than its key name.
	leaves bool
	args   []any
	size   int
}

// scratch is what the calls of an Apply are made of. It goes from one Apply to the next.
type scratch struct {
	args  []any
	texts []string
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// begin puts the command of a script behind what was lent before, up to the version. A pointer
// to a text costs no allocation.
func (s *scratch) begin(of *script, keys []string, version *string) []any {
	args := append(s.args, "evalsha", &of.digest, len(keys))
	for i := range keys {
		args = append(args, &keys[i])
	}
	return append(args, version)
}

// lend gives the arguments of one call, which are args behind those that were lent before.
func (s *scratch) lend(args []any) []any {
	begin := len(s.args)
	s.args = args
	return args[begin:len(args):len(args)]
}

// giveBack ends the use of everything that was lent.
func (s *scratch) giveBack() {
	clear(s.args) // they hold the rows
	clear(s.texts)
	s.args, s.texts = s.args[:0], s.texts[:0]
	scratches.Put(s)
}

// encode appends the script calls of a change to calls, or says why there are
// none. A row that has moved is removed, at the version of the change, from every
// place that an older image of it names: each place has a guard of its own, so
// the calls may come in any order and again. It is removed from them as well when its
// new place cannot take it, or when a NULL leaves it without one: it is there no more,
// and no later change knows where it was.
func (a *attempt) encode(c *cdc.Change, calls []call) ([]call, *sinks.Outcome) {
	if err := c.Version.Check(); err != nil {
		return calls, poison(sinks.ClassUndecodable, "%v", err)
	}
	t, err := a.target(c.Table)
	if err != nil {
		return calls, &sinks.Outcome{Verdict: sinks.Unavailable, Reason: err.Error()}
	}
	if t == nil {
		return calls, &sinks.Outcome{Verdict: sinks.Filtered}
	}
	begin, done := len(calls), make([]place, 0, 1)
	var fromRow bool
	var refusal *sinks.Outcome
	switch {
	case c.Leaves:
		if fromRow, done = t.stays(c, done); len(done) == 0 {
			before := *c
			before.Version-- // the change itself may be let in later, and to one of these places
			c = &before
		}
	case c.Op == cdc.OpDelete:
		calls, fromRow, done, refusal = a.remove(t, c, c.Before, calls, done)
	default:
		calls, fromRow, done, refusal = a.upsert(t, c, calls, done)
	}
	if fromRow { // else there is one place for all images
		older := c.Left
		if c.Op != cdc.OpDelete {
			older = append([][]byte{c.Before}, older...)
		}
		for _, image := range older {
			if image != nil { // one of which no place can be made has put the row nowhere
				calls, _, done, _ = a.remove(t, c, image, calls, done)
			}
		}
	}
	switch {
	case refusal != nil:
		return calls, refusal
	case len(calls) == begin: // and it was never anywhere
		return calls, &sinks.Outcome{Verdict: sinks.Filtered, Reason: "a column that names its place is NULL, so the row has none in this store"}
	}
	calls[begin].main = true
	return calls, nil
}

// upsert appends the call that puts a row into its place. It reports whether the row may
// have had others.
func (a *attempt) upsert(t *target, c *cdc.Change, calls []call, done []place) (_ []call, fromRow bool, _ []place, _ *sinks.Outcome) {
	row := bytes.TrimSpace(c.After)
	if len(row) < 3 || row[0] != '{' || row[len(row)-1] != '}' {
		return calls, true, done, poison(sinks.ClassUndecodable, "row is not a JSON object with columns")
	}
	at, null, fromRow, err := t.place(c, row)
	if err != nil {
		return calls, true, done, unreadable(sinks.ClassKey, err)
	}
	if null == "" && t.unscored(row) {
		if c.Op == cdc.OpRead { // which does not tell what was there before
			return a.remove(t, c, row, calls, done)
		}
		return calls, true, done, nil
	}
	if null != "" { // it has no place
		return calls, true, done, nil
	}
	done = append(done, at)
	put, refusal := a.put(t, c, at, row)
	if refusal == nil {
		calls = append(calls, put)
	}
	return calls, fromRow, done, refusal
}

// put is the call that writes a row to a place.
func (a *attempt) put(t *target, c *cdc.Change, at place, row []byte) (call, *sinks.Outcome) {
	if len(row) > a.cfg.MaxValueBytes {
		return call{}, poison(sinks.ClassTooLarge, "row has %d bytes, max_value_bytes is %d", len(row), a.cfg.MaxValueBytes)
	}
	keys, refusal := a.keysOf(t, at.key)
	if refusal != nil {
		return call{}, refusal
	}
	version := c.Version.String()
	begin := len(a.args)
	args := a.begin(&t.verbs.upsert, keys, &version)
	size := commandBytes + 2*len(at.key) + len(row)
	switch t.cfg.Mode {
	case ModeHash:
		first, ok := len(a.texts), false
		if a.texts, ok = fields(a.texts, row); !ok {
			return call{}, poison(sinks.ClassMapping, "column %s has the name under which the version is kept", versionField)
		}
		args = append(args, versionField, &version)
		for i := first; i < len(a.texts); i++ {
			args = append(args, &a.texts[i])
		}
		size += 16 * (len(args) - begin)
	case ModeJSON:
		if gjson.GetBytes(row, jsonField).Exists() {
			return call{}, poison(sinks.ClassMapping, "column %s has the name under which the version is kept", jsonField)
		}
		args = append(args, jsonValue(row, version))
	case ModeString:
		text, err := t.value.Text(c.Table, c.Key, row)
		if err != nil {
			return call{}, unreadable(sinks.ClassMapping, fmt.Errorf("value: %w", err))
		}
		if len(text) > a.cfg.MaxValueBytes { // a column may be named twice
			return call{}, poison(sinks.ClassTooLarge, "value has %d bytes, max_value_bytes is %d", len(text), a.cfg.MaxValueBytes)
		}
		args = append(args, text)
	case ModeStream:
		args = append(args, a.ttl, streamID(c.Version), t.cfg.MaxLen, c.Op.String(), row)
	case ModeSet:
		args = append(args, a.ttl, at.member)
	case ModeZset:
		text, _, ok := cdc.ColumnText(row, t.cfg.Score)
		if !ok {
			return call{}, unreadable(sinks.ClassMapping, fmt.Errorf("score: %w", &cdc.NoColumn{Template: "{" + t.cfg.Score + "}", Column: t.cfg.Score, Table: c.Table}))
		}
		number, ok := score(text)
		if !ok {
			return call{}, poison(sinks.ClassMapping, "score: %s is %q, neither a number nor a date", t.cfg.Score, text)
		}
		args = append(args, a.ttl, at.member, number)
	case ModeInvalidate:
		args = append(args, a.ttl)
		if t.cfg.StaleField != "" {
			args = append(args, t.cfg.StaleField)
		}
	}
	return call{args: a.lend(args), size: size}, nil
}

// unreadable is the refusal of a row of which no key or value can be made. One that
// lacks a column is unasked: the table decides about it.
func unreadable(class sinks.Class, err error) *sinks.Outcome {
	if _, ok := errors.AsType[*cdc.NoColumn](err); ok {
		return &sinks.Outcome{Class: class, Reason: err.Error(), Unasked: true}
	}
	return poison(class, "%v", err)
}

// remove appends the call that takes a row out of the place an image of it names,
// unless that is among those done. It reports whether the row may have had others.
func (a *attempt) remove(t *target, c *cdc.Change, image []byte, calls []call, done []place) ([]call, bool, []place, *sinks.Outcome) {
	at, null, fromRow, err := t.place(c, image)
	if _, nowhere := errors.AsType[*cdc.TooLong](err); nowhere || null != "" {
		return calls, true, done, nil
	}
	if err != nil {
		if image == nil {
			err = fmt.Errorf("%w, and the change has no before image; copy the table again (lockstep snapshot start)", err)
		}
		return calls, true, done, unreadable(sinks.ClassKey, err)
	}
	if slices.Contains(done, at) {
		return calls, fromRow, done, nil
	}
	keys, refusal := a.keysOf(t, at.key)
	if refusal != nil {
		return calls, fromRow, done, refusal
	}
	version := c.Version.String()
	args := t.removal(append(a.begin(&t.verbs.remove, keys, &version), a.ttl), at.member, c.Version)
	return append(calls, call{leaves: fromRow, args: a.lend(args), size: commandBytes + 2*len(at.key) + len(at.member)}), fromRow, append(done, at), nil
}

// removal appends what a shape's scripts of removal want besides the version and
// the time to live.
func (t *target) removal(args []any, member string, v cdc.Version) []any {
	switch t.cfg.Mode {
	case ModeStream:
		return append(args, streamID(v), t.cfg.MaxLen, cdc.OpDelete.String())
	case ModeSet, ModeZset:
		return append(args, member)
	}
	return args
}

// keysOf are the KEYS of a call, or what is wrong with the key.
func (s *Sink) keysOf(t *target, key string) ([]string, *sinks.Outcome) {
	if strings.HasPrefix(key, ownPrefix) {
		return nil, poison(sinks.ClassKey, "key begins with %s, where versions are kept; use another key template", ownPrefix)
	}
	keys, slotted := t.keys(key)
	if s.cluster && !slotted {
		return nil, poison(sinks.ClassKey, "key is empty or holds } without a hash tag, so its delete marker has no name in the same slot; write a hash tag into the key template")
	}
	return keys, nil
}

// streamID is a version as the id of an entry.
func streamID(v cdc.Version) string {
	return strconv.FormatUint(uint64(v.Epoch()), 10) + "-" + strconv.FormatUint(v.Seq(), 10)
}

// jsonValue is the row with its version as the very last field, where the script
// looks for it.
func jsonValue(row []byte, version string) []byte {
	v := make([]byte, 0, len(row)+len(`,"_lockstep":{"v":}}`)+len(version))
	v = append(v, row[:len(row)-1]...)
	v = append(v, `,"_lockstep":{"v":`...)
	v = append(v, version...)
	return append(v, "}}"...)
}

// fields appends the columns of a row, name and text in turn, which are parts of it; NULL
// is left out. It is false when a column has the name of the version's field.
func fields(texts []string, row []byte) (_ []string, ok bool) {
	ok = true
	gjson.Parse(cdc.View(row)).ForEach(func(name, value gjson.Result) bool {
		switch value.Type {
		case gjson.Null:
			return true
		case gjson.String:
			texts = append(texts, name.Str, value.Str)
		default:
			texts = append(texts, name.Str, value.Raw)
		}
		ok = name.Str != versionField
		return ok
	})
	return texts, ok
}

// verdict reads a script's answer.
func verdict(stored int64, version cdc.Version) sinks.Verdict {
	switch {
	case stored == 0:
		return sinks.Applied
	case stored == int64(version):
		return sinks.Duplicate
	}
	return sinks.Stale
}
