package redis

import (
	"bytes"
	"fmt"
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
	args   []any
	size   int
}

// encode makes the script call for a change, or says why there is none.
func (s *Sink) encode(c *cdc.Change) (call, *sinks.Outcome) {
	if err := c.Version.Check(); err != nil {
		return call{}, poison(sinks.ClassUndecodable, "%v", err)
	}
	t, err := s.target(c.Table)
	if err != nil {
		return call{}, &sinks.Outcome{Verdict: sinks.Unavailable, Reason: err.Error()}
	}
	if t == nil {
		return call{}, &sinks.Outcome{Verdict: sinks.Filtered}
	}
	key, err := t.template.Render(c.Table, c.Key)
	if err != nil {
		return call{}, poison(sinks.ClassKey, "%v", err)
	}
	if strings.HasPrefix(key, companionPrefix) {
		return call{}, poison(sinks.ClassKey, "key begins with %s, where the versions of deleted rows are kept; use another key template", companionPrefix)
	}
	marker, slotted := companion(key)
	if s.cluster && !slotted {
		return call{}, poison(sinks.ClassKey, "key is empty or holds } without a hash tag, so its delete marker has no name in the same slot; write a hash tag into the key template")
	}
	version := c.Version.String()

	if c.Op == cdc.OpDelete {
		script := deleteHash
		if t.json {
			script = deleteJSON
		}
		args := []any{"evalsha", script.digest, "2", key, marker, version, s.ttl}
		return call{args: args, size: commandBytes + 2*len(key)}, nil
	}

	row := bytes.TrimSpace(c.After)
	switch {
	case len(row) < 3 || row[0] != '{' || row[len(row)-1] != '}':
		return call{}, poison(sinks.ClassUndecodable, "row is not a JSON object with columns")
	case len(row) > s.cfg.MaxValueBytes:
		return call{}, poison(sinks.ClassTooLarge, "row has %d bytes, max_value_bytes is %d", len(row), s.cfg.MaxValueBytes)
	}
	size := commandBytes + 2*len(key) + len(row)
	if t.json {
		if gjson.GetBytes(row, jsonField).Exists() {
			return call{}, poison(sinks.ClassMapping, "column %s has the name under which the version is kept", jsonField)
		}
		return call{args: []any{"evalsha", upsertJSON.digest, "2", key, marker, version, jsonValue(row, version)}, size: size}, nil
	}
	texts, ok := fields(row)
	if !ok {
		return call{}, poison(sinks.ClassMapping, "column %s has the name under which the version is kept", versionField)
	}
	args := make([]any, 0, 8+len(texts))
	args = append(args, "evalsha", upsertHash.digest, "2", key, marker, version, versionField, version)
	for i := range texts {
		args = append(args, &texts[i]) // a pointer costs no allocation
	}
	return call{args: args, size: size + 16*len(args)}, nil
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

func poison(class sinks.Class, format string, args ...any) *sinks.Outcome {
	return &sinks.Outcome{Verdict: sinks.Poison, Class: class, Reason: fmt.Sprintf(format, args...)}
}

// target is a table's configuration, ready for use.
type target struct {
	template cdc.KeyTemplate
	json     bool
}

// target is nil for a table that does not go to this store.
func (s *Sink) target(name cdc.TableName) (*target, error) {
	if t, ok := s.targets.Load(name); ok {
		return t.(*target), nil
	}
	var t *target
	if cfg, ok := s.tables(name); ok {
		cfg = cfg.withDefaults()
		if err := cfg.Check(); err != nil {
			return nil, fmt.Errorf("table %s: %w", name, err)
		}
		template, err := cdc.ParseKeyTemplate(cfg.Key)
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", name, err)
		}
		t = &target{template, cfg.Mode == ModeJSON}
		keys := strings.NewReplacer("{db}", name.DB, "{table}", name.Table).Replace(cfg.Key)
		if first, taken := s.keys.LoadOrStore(keys, name); taken && first != name {
			return nil, fmt.Errorf("tables %s and %s would share the keys %s; put {db} or {table} into their key templates", first, name, keys)
		}
	}
	s.targets.Store(name, t)
	return t, nil
}
