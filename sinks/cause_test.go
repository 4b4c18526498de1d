package sinks

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestAFingerprintIsOfTheCauseAndNotOfTheRow(t *testing.T) {
	same := [][]string{
		{
			`status 400, document_parsing_exception: [1:23] failed to parse field [price] of type [integer] in document with id '17'. Preview of field's value: 'abc': For input string: "abc"`,
			`status 400, document_parsing_exception: [1:4711] failed to parse field [price] of type [integer] in document with id 'k-9'. Preview of field's value: 'it's "so" long': For input string: "it's"`,
		},
		{
			`status 400, strict_dynamic_mapping_exception: [1:2] mapping set to strict, dynamic introduction of [colour] within [_doc] is not allowed`,
			`status 400, strict_dynamic_mapping_exception: [1:99] mapping set to strict, dynamic introduction of [colour] within [_doc] is not allowed`,
		},
		{
			`the document has 1048577 bytes; max_document_bytes is 1048576`,
			`the document has 9000000 bytes; max_document_bytes is 1048576`,
		},
		{
			`WRONGTYPE key 3e11fa47-71ca-11e1-9e33-c80aa9429562 at deadbeef00112233 -1.5`,
			`WRONGTYPE key 00000000-0000-0000-0000-000000000000 at 0011223344556677 27`,
		},
		{
			`document with id [abc] is bad`,
			`document with id [x y z] is bad`,
		},
	}
	seen := map[string]int{}
	for i, group := range same {
		for _, reason := range group {
			print := Fingerprint("es", "b.q", ClassMapping, reason)
			if print != Fingerprint("es", "b.q", ClassMapping, group[0]) {
				t.Errorf("%q and %q have two fingerprints", reason, group[0])
			}
			if other, ok := seen[print]; ok && other != i {
				t.Errorf("%q has the fingerprint of %q", reason, same[other][0])
			}
			seen[print] = i
		}
	}
	field := func(path string) string {
		return Fingerprint("es", "b.q", ClassMapping, "failed to parse field ["+path+"] of type [integer]")
	}
	if field("address.zip") == field("address.street") {
		t.Error("two fields have one fingerprint")
	}
	different := []string{
		Fingerprint("es", "b.q", ClassMapping, "no"), Fingerprint("es", "b.q", ClassKey, "no"),
		Fingerprint("es", "b.t", ClassMapping, "no"), Fingerprint("es2", "b.q", ClassMapping, "no"),
	}
	slices.Sort(different)
	if n := len(slices.Compact(different)); n != 4 {
		t.Errorf("%d fingerprints; want one for each sink, table and class: %v", n, different)
	}
}

func TestAReasonKeepsWhatWeQuoteAndHidesWhatTheStoreQuotes(t *testing.T) {
	for _, test := range []struct {
		class        Class
		reason, want string
	}{
		{ClassKey, `key template "q:{n}": n is no column`, `key template "q:{n}": n is no column`},
		{ClassRefused, `ERR value "secret" is odd`, `ERR value '?' is odd`},
		{ClassMapping, `Preview of field's value: '{tok=S3CRET}'`, `Preview of field's value: '?'`},
		{ClassMapping, `value "a 'S3CRET" c'`, `value '?'`},
	} {
		if got := Redact(test.class, test.reason); got != test.want {
			t.Errorf("%s, %q: %q, want %q", test.class, test.reason, got, test.want)
		}
	}
}

// A reason is redacted where the store gives it, and again where it becomes a letter: its
// fingerprint is the same before and after.
func TestARedactedReasonStaysAsItIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.OneOf(rapid.SampledFrom([]string{`'`, `"`, ` `, `a`, `é`, `7`, `\xff`, `id [`, `]`, strings.Repeat("ä", 600)}), rapid.String())
		raw := strings.Join(rapid.SliceOf(part).Draw(t, "reason"), "")
		class := rapid.SampledFrom(Classes).Draw(t, "class")
		once := Redact(class, raw)
		if twice := Redact(class, once); twice != once {
			t.Fatalf("%q becomes %q", once, twice)
		}
		if !utf8.ValidString(once) || len(once) > ReasonBytes {
			t.Fatalf("%d bytes: %q", len(once), once)
		}
		if Fingerprint("es", "b.q", class, raw) != Fingerprint("es", "b.q", class, once) {
			t.Fatalf("%q and %q have two fingerprints", raw, once)
		}
	})
}
