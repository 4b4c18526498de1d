package shape

import (
	"encoding/json"
	"testing"

	"lockstep/cdc"
)

// A row of any bytes becomes a document, which is JSON when the row is, or an error.
func FuzzARowOfAnyBytes(f *testing.F) {
	f.Add([]byte(question))
	f.Add([]byte(`{"status":"x","more":{"a":[1,"}"]},"id":1,"settings":null,"tags":[]}`))
	f.Add([]byte(` { "id" : 1 , "id" : 2 } `))
	whole := compiled(f, Config{}, questions)
	chosen := compiled(f, Config{Drop: []string{"score"}, Rename: map[string]string{"status": "state"}, Where: `row.status != "draft"`,
		Compute: map[string]string{"label": `row.status + " " + string(row.id)`, "list": `row.tags`, "deep": `row.settings`}}, questions)
	f.Fuzz(func(t *testing.T, data []byte) {
		if !cdc.Valid(data) { // Decode lets no other in
			return
		}
		for name, s := range map[string]*Shape{"whole": whole, "chosen": chosen} {
			out, err := s.Document(nil, data)
			if err == nil && !json.Valid(out) {
				t.Fatalf("%s: %s became %s", name, data, out)
			}
			for _, op := range []cdc.Op{cdc.OpUpdate, cdc.OpDelete} {
				c := cdc.Change{Table: questions.Name, Op: op, Version: 1 << 42, Key: []byte(`{"id":1}`), Before: data, After: data}
				if op == cdc.OpDelete {
					c.After = nil
				}
				if _, err := s.Apply(&c); err == nil && c.After != nil && !json.Valid(c.After) {
					t.Fatalf("%s: %s became %s", name, data, c.After)
				}
			}
		}
	})
}
