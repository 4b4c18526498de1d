package redis

import (
	"encoding/json"
	"errors"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/cdc"
)

// What a key holds, whoever has written it, is shown as JSON, and read as a row or not.
func FuzzAnAnswerOfAnyBytes(f *testing.F) {
	f.Add("4398046511181", `{"id":1,"title":"x","_lockstep":{"v":4398046511181}}`, "x", "m", int64(1), 1)
	f.Add("0", `{"a":{"b":1,"_lockstep":{"v":7}}}`, `{"id":`, "\xff", int64(1), 2)
	f.Add("4398046511181", `{"id":1}`, "1e400", "m", int64(1), 1)
	f.Add("4398046511181", `{"id":`, "not JSON", "m", int64(1), 2)
	f.Add("0", "", "", "", int64(1), 0)
	f.Fuzz(func(t *testing.T, version, first, second, member string, there int64, values int) {
		var list []any
		for i := range max(min(values, 6), 0) {
			list = append(list, []any{first, second, there}[i%3])
		}
		for _, mode := range []string{ModeHash, ModeJSON, ModeString, ModeStream, ModeSet, ModeZset, ModeInvalidate} {
			target := &target{cfg: TableConfig{Mode: mode}}
			r := reading{target: target, member: member, most: 1 << 20}
			if r.take([]any{version, there, int64(len(first)), list}) != nil {
				continue
			}
			if doc := r.document(); doc != nil && !json.Valid(doc) {
				t.Fatalf("%s: %q became %q", mode, r.value, doc)
			}
			cmd := goredis.NewStringResult(first, nil)
			if v, ok := target.versionIn(cmd); ok && v.Check() != nil {
				t.Fatalf("%s: %q has version %d", mode, first, v)
			}
			if mode == ModeJSON {
				_, _ = target.rowIn(cmd)
			}
		}
		for _, id := range []string{first, second} {
			if v, err := streamVersion(id); err == nil && v.Check() != nil {
				t.Fatalf("%q is version %d", id, v)
			}
			_ = classify(errors.New(id))
			if key, ok := besideWhat(deletedPrefix, id); ok {
				if name, _ := companion(key); name != id {
					t.Fatalf("%q is beside %q, and what is beside that is %q", id, key, name)
				}
			}
		}
		_, _ = cdc.ParseVersion(version)
	})
}
