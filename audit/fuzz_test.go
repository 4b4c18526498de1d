package audit

import (
	"encoding/json"
	"testing"
)

// What stands in the topic of the audit log is a record of a known format or explained, and
// the chain goes on behind it.
func FuzzARecordOfAnyBytes(f *testing.F) {
	m := &memory{}
	do(f, &Log{Kafka: m, Prefix: "shop"}, skip("es-1"), map[string]int{"skipped": 1}, nil)
	for _, value := range m.values() {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := decode(value)
		if err == nil {
			text, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := decode(text); err != nil {
				t.Fatalf("%s became %s: %v", value, text, err)
			}
		}
		c := newChain("shop")
		for range 2 {
			if _, s, problem := c.add(value); (s == isBroken) != (problem != "") {
				t.Fatalf("%q is %v, and the problem %q", value, s, problem)
			}
		}
		if err != nil && c.n != 2 {
			t.Fatalf("behind two broken records there are %d", c.n)
		}
	})
}
