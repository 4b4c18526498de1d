package redis

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

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
	args []any
	size int
}

// encode appends the script calls of a change to calls, or says why there are
// none. A row that has moved is removed, at the version of the change, from every
// place that an older image of it names: each place has a guard of its own, so
// the calls may come in any order and again.
func (s *Sink) encode(c *cdc.Change, calls []call) ([]call, *sinks.Outcome) {
	if err := c.Version.Check(); err != nil {
		return calls, poison(sinks.ClassUndecodable, "%v", err)
	}
	t, err := s.target(c.Table)
	if err != nil {
		return calls, &sinks.Outcome{Verdict: sinks.Unavailable, Reason: err.Error()}
	}
	if t == nil {
		return calls, &sinks.Outcome{Verdict: sinks.Filtered}
	}
	begin, older, done := len(calls), [][]byte{c.Before}, make([]place, 0, 1)
	var refusal *sinks.Outcome
	if c.Op == cdc.OpDelete {
		var fromRow bool
		if calls, fromRow, done, refusal = s.remove(t, c, c.Before, calls, done); refusal != nil {
			return calls[:begin], refusal
		}
		if older = c.Left; !fromRow {
			older = nil
		}
	} else {
		var fromRow bool
		if calls, fromRow, done, refusal = s.upsert(t, c, calls, done); refusal != nil {
			return calls[:begin], refusal
		}
		if older = append(older, c.Left...); !fromRow {
			older = nil
		}
	}
	for _, image := range older {
		if image == nil {
			continue
		}
		if calls, _, done, refusal = s.remove(t, c, image, calls, done); refusal != nil {
			return calls[:begin], refusal
		}
	}
	if len(calls) == begin { // a NULL, and it was never anywhere
		return calls, &sinks.Outcome{Verdict: sinks.Filtered}
	}
	calls[begin].main = true
	return calls, nil
}

// upsert appends the call that puts a row into its place.
func (s *Sink) upsert(t *target, c *cdc.Change, calls []call, done []place) ([]call, bool, []place, *sinks.Outcome) {
	row := bytes.TrimSpace(c.After)
	switch {
	case len(row) < 3 || row[0] != '{' || row[len(row)-1] != '}':
		return calls, false, done, poison(sinks.ClassUndecodable, "row is not a JSON object with columns")
	case len(row) > s.cfg.MaxValueBytes:
		return calls, false, done, poison(sinks.ClassTooLarge, "row has %d bytes, max_value_bytes is %d", len(row), s.cfg.MaxValueBytes)
	}
	at, null, fromRow, err := t.place(c, row)
	if err != nil {
		return calls, false, done, poison(sinks.ClassKey, "%v", err)
	}
	if null == "" && t.cfg.Score != "" {
		if _, isNull, _ := cdc.ColumnText(row, t.cfg.Score); isNull {
			null = t.cfg.Score
		}
	}
	switch {
	case null != "" && t.cfg.sets(): // a member of nothing
		return calls, true, done, nil
	case null != "":
		return calls, false, done, poison(sinks.ClassKey, "column %s of the key template is NULL, so the row has no key", null)
	}
	keys, refusal := s.keysOf(t, at.key)
	if refusal != nil {
		return calls, false, done, refusal
	}
	version := c.Version.String()
	args := make([]any, 0, 12)
	args = append(args, "evalsha", t.verbs.upsert.digest, len(keys))
	for i := range keys {
		args = append(args, keys[i])
	}
	args = append(args, version)
	size := commandBytes + 2*len(at.key) + len(row)
	switch t.cfg.Mode {
	case ModeHash:
		texts, ok := fields(row)
		if !ok {
			return calls, false, done, poison(sinks.ClassMapping, "column %s has the name under which the version is kept", versionField)
		}
		args = append(slices.Grow(args, 2+len(texts)), versionField, version)
		for i := range texts {
			args = append(args, &texts[i]) // a pointer costs no allocation
		}
		size += 16 * len(args)
	case ModeJSON:
		if gjson.GetBytes(row, jsonField).Exists() {
			return calls, false, done, poison(sinks.ClassMapping, "column %s has the name under which the version is kept", jsonField)
		}
		args = append(args, jsonValue(row, version))
	case ModeString:
		text, err := t.value.Text(c.Table, c.Key, row)
		if err != nil {
			return calls, false, done, poison(sinks.ClassMapping, "value: %v", err)
		}
		if len(text) > s.cfg.MaxValueBytes { // a column may be named twice
			return calls, false, done, poison(sinks.ClassTooLarge, "value has %d bytes, max_value_bytes is %d", len(text), s.cfg.MaxValueBytes)
		}
		args = append(args, text)
	case ModeStream:
		args = append(args, s.ttl, streamID(c.Version), t.cfg.MaxLen, c.Op.String(), row)
	case ModeSet:
		args = append(args, s.ttl, at.member)
	case ModeZset:
		text, _, ok := cdc.ColumnText(row, t.cfg.Score)
		if !ok {
			return calls, false, done, poison(sinks.ClassMapping, "score: the row has no column %s", t.cfg.Score)
		}
		number, ok := score(text)
		if !ok {
			return calls, false, done, poison(sinks.ClassMapping, "score: %s is %q, neither a number nor a date", t.cfg.Score, text)
		}
		args = append(args, s.ttl, at.member, number)
	case ModeInvalidate:
		args = append(args, s.ttl)
		if t.cfg.StaleField != "" {
			args = append(args, t.cfg.StaleField)
		}
	}
	return append(calls, call{args: args, size: size}), fromRow, append(done, at), nil
}

// remove appends the call that takes a row out of the place an image of it names,
// unless that is among those done.
func (s *Sink) remove(t *target, c *cdc.Change, image []byte, calls []call, done []place) ([]call, bool, []place, *sinks.Outcome) {
	at, null, fromRow, err := t.place(c, image)
	if err != nil {
		if image == nil {
			err = fmt.Errorf("%w, and the change has no before image; copy the table again (lockstep snapshot start)", err)
		}
		return calls, false, done, poison(sinks.ClassKey, "%v", err)
	}
	if null != "" || slices.Contains(done, at) {
		return calls, fromRow, done, nil
	}
	keys, refusal := s.keysOf(t, at.key)
	if refusal != nil {
		return calls, false, done, refusal
	}
	args := make([]any, 0, 12)
	args = append(args, "evalsha", t.verbs.remove.digest, len(keys))
	for i := range keys {
		args = append(args, keys[i])
	}
	args = append(args, c.Version.String(), s.ttl)
	args = t.removal(args, at.member, c.Version)
	return append(calls, call{args: args, size: commandBytes + 2*len(at.key) + len(at.member)}), fromRow, append(done, at), nil
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

// fields are the columns of a row, name and text in turn; NULL is left out. It is
// false when a column has the name of the version's field.
func fields(row []byte) (texts []string, ok bool) {
	texts, ok = make([]string, 0, 32), true
	gjson.ParseBytes(row).ForEach(func(name, value gjson.Result) bool {
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
