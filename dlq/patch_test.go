package dlq

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

var patchColumns = []cdc.Column{
	{Name: "id", Kind: cdc.KindInt, SQLType: "bigint"},
	{Name: "title", Kind: cdc.KindKeyword, SQLType: "varchar(20)"},
	{Name: "price", Kind: cdc.KindDecimal, SQLType: "decimal(9,2)"},
	{Name: "meta", Kind: cdc.KindJSON, SQLType: "json"},
	{Name: "new", Kind: cdc.KindUint, SQLType: "bigint unsigned", Nullable: true},
}

// boxed is a letter of a row with its record.
func boxed(t *testing.T, l *Letters, row string) (Letter, kafka.Record) {
	t.Helper()
	r := refusal(1, base+5, "a")
	r.Change.Before, r.Change.After, r.Change.Layout = []byte(`{"id":1,"title":"before"}`), []byte(row), 0xabc
	r.Record.Value, r.Record.Headers = r.Change.AppendValue(nil, "shop"), r.Change.Headers()
	bury(t, l, r)
	letter := list(t, l, Filter{})[0]
	var record kafka.Record
	if err := l.Records(t.Context(), []Letter{letter}, func(_ Letter, r kafka.Record) error { record = r; return nil }); err != nil {
		t.Fatal(err)
	}
	return letter, record
}

func decoded(t *testing.T, l *Letters) (Letter, cdc.Change) {
	t.Helper()
	letter := list(t, l, Filter{})[0]
	var change cdc.Change
	if err := l.Records(t.Context(), []Letter{letter}, func(letter Letter, r kafka.Record) (err error) {
		change, err = decodeLetter(letter, r)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return letter, change
}

// The row is another one under the version and the key that it had; the letter says by whom
// and what it was, however often.
func TestAPatchedLetterKeepsItsVersionAndSaysSo(t *testing.T) {
	l, log := newLetters()
	letter, record := boxed(t, l, `{"id":1,"title":"<a> \u00fc","price":18446744073709551615,"meta":{"b":1.0,"a":[1,2]},"old":"x"}`)
	p, err := NewPatching(letter, record, []byte(`[{"op":"test","path":"/meta/b","value":1.0},{"op":"replace","path":"/title","value":"<b>"},{"op":"add","path":"/meta/a/-","value":3}]`), patchColumns, nil)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "columns", p.Columns, []string{"title", "meta"})
	expect(t, "fields", spell(p.Fields(nil)), []string{`*title "<a> \u00fc"/"<b>"/`, `*meta {"b":1.0,"a":[1,2]}/{"b":1.0,"a":[1,2,3]}/`})
	expect(t, "masked", spell(p.Fields(map[string]bool{"title": true}))[0], `*title "(masked)"/"(masked)"/`)
	expect(t, "nothing is written yet", len(log.records[l.Topic]), 1)
	at := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
	if err := l.Patch(t.Context(), p, "ann", at); err != nil {
		t.Fatal(err)
	}
	patched, change := decoded(t, l)
	expect(t, "row", string(change.After), `{"id":1,"title":"<b>","price":18446744073709551615,"meta":{"b":1.0,"a":[1,2,3]},"old":"x"}`)
	expect(t, "the rest", []any{change.Version, string(change.Key), string(change.Before), change.GTID, change.Layout}, []any{base + 5, `{"id":1}`, `{"id":1,"title":"before"}`, "a-b-c:7", uint32(0xabc)})
	expect(t, "by", *patched.Patched, Patched{"ann", at, p.Letter.Patched.Was})
	expect(t, "hash", len(patched.Patched.Was), 64)
	want := letter
	want.Patched, want.Bytes, want.place, want.App = patched.Patched, patched.Bytes, patched.place, patched.App
	if fmt.Sprintf("%+v", want) != fmt.Sprintf("%+v", patched) {
		t.Errorf("the letter was\n%+v and is\n%+v", want, patched)
	}

	_, record = patched, kafka.Record{}
	if err := l.Records(t.Context(), []Letter{patched}, func(_ Letter, r kafka.Record) error { record = r; return nil }); err != nil {
		t.Fatal(err)
	}
	again, err := NewPatching(patched, record, []byte(`[{"op":"remove","path":"/old"},{"op":"add","path":"/new","value":null}]`), patchColumns, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Patch(t.Context(), again, "bob", at); err != nil {
		t.Fatal(err)
	}
	patched, change = decoded(t, l)
	expect(t, "again", *patched.Patched, Patched{"bob", at, p.Letter.Patched.Was})
	expect(t, "other columns have another layout", change.Layout, uint32(0))

	// A replay sends it, and one that is refused again stays patched.
	s := &store{rows: map[string]cdc.Version{}, next: map[string]sinks.Outcome{`{"id":1}`: {Verdict: sinks.Poison, Class: sinks.ClassMapping, Reason: "still"}}}
	if said, err := replayed(t, l, s, ReplayOptions{}); err != nil || said["1"] != "parked" {
		t.Fatal(said, err)
	}
	patched, _ = decoded(t, l)
	expect(t, "refused again", *patched.Patched, Patched{"bob", at, p.Letter.Patched.Was})
	delete(s.next, `{"id":1}`)
	if said, err := replayed(t, l, s, ReplayOptions{}); err != nil || said["1"] != "resolved" {
		t.Fatal(said, err)
	}
	expect(t, "version in the store", s.rows[`{"id":1}`], base+5)
}

func TestAPatchThatDoesNotFitChangesNothing(t *testing.T) {
	const row = `{"id":1,"title":"a","price":"1.50","meta":{"a":[1,2]},"old":"x"}`
	const isNone = `it is no JSON Patch, an array of operations such as {"op": "replace", "path": "/title", "value": "x"}: `
	for want, patch := range map[string]string{
		"the patch is no JSON":                                                `[{"op"`,
		isNone + "json: cannot":                                               `{"title":"b"}`,
		isNone + "invalid operation":                                          `[{"op":"change","path":"/title"}]`,
		"the patch changes nothing":                                           `[]`,
		"the patch changes nothing ":                                          `[{"op":"replace","path":"/title","value":"b"},{"op":"replace","path":"/title","value":"a"}]`,
		"operation 1 (remove /none) cannot be done: ":                         `[{"op":"remove","path":"/none"}]`,
		"operation 2 (test /title) cannot be done: ":                          `[{"op":"replace","path":"/price","value":"2"},{"op":"test","path":"/title","value":"b"}]`,
		"operation 1 (add /meta/a/-1) cannot be done: ":                       `[{"op":"add","path":"/meta/a/-1","value":1}]`,
		"operation 1 (replace ) leaves no row: a row is an object of columns": `[{"op":"replace","path":"","value":[1]}]`,
		"operation 1 (replace /id) changes id, a column of the primary key, by which the row is known":                                  `[{"op":"replace","path":"/id","value":2}]`,
		"operation 1 (remove /id) changes id, a column of the primary key, by which the row is known":                                   `[{"op":"remove","path":"/id"}]`,
		"operation 1 (move /id to /new) changes id, a column of the primary key, by which the row is known":                             `[{"op":"move","from":"/id","path":"/new"}]`,
		"operation 2 (add /tilte) is of a column tilte that the table bank.questions does not have; it has id, title, price, meta, new": `[{"op":"replace","path":"/title","value":"b"},{"op":"add","path":"/tilte","value":"b"}]`,
		"operation 1 (replace /old) is of a column old that the table bank.questions does not have; it has ":                            `[{"op":"replace","path":"/old","value":"y"}]`,
		"operation 1 (add /Title) is of a column Title that":                                                                            `[{"op":"add","path":"/Title","value":"y"}]`,
		"operation 1 (remove /price) takes the column price away, which every row of bank.questions has; replace its value":             `[{"op":"remove","path":"/price"}]`,
	} {
		l, log := newLetters()
		letter, record := boxed(t, l, row)
		_, err := NewPatching(letter, record, []byte(patch), patchColumns, nil)
		var no *PatchError
		if !errors.As(err, &no) || !strings.HasPrefix(no.Problem, strings.TrimSuffix(want, " ")) || strings.Contains(no.Problem, "\n") {
			t.Errorf("%s: %v; want %s", patch, err, want)
		}
		expect(t, "records", len(log.records[l.Topic]), 1)
	}
	l, _ := newLetters()
	bury(t, l, removal(1, base+1), undecodable(2, nil))
	for _, letter := range list(t, l, Filter{}) {
		want := map[bool]string{true: "it is the delete of a row, so there is no row to patch", false: "there is no row to patch: the record could not be decoded"}[letter.Replayable()]
		if err := l.Records(t.Context(), []Letter{letter}, func(letter Letter, r kafka.Record) error {
			_, err := NewPatching(letter, r, []byte(`[{"op":"add","path":"/title","value":"b"}]`), patchColumns, nil)
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%v; want %s", err, want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	l, _ = newLetters()
	letter, record := boxed(t, l, row)
	letter.State = Retrying
	if _, err := NewPatching(letter, record, []byte(`[{"op":"add","path":"/title","value":"b"}]`), patchColumns, nil); err == nil || !strings.HasPrefix(err.Error(), "it is tried again by itself") {
		t.Error(err)
	}
}

// A value recorded before its column was masked neither shows nor can be guessed.
func TestAPatchDoesNotNameAMaskedColumn(t *testing.T) {
	l, _ := newLetters()
	letter, record := boxed(t, l, `{"id":1,"title":"secret","price":"1.50","meta":{"a":[1,2]}}`)
	masked := map[string]bool{"title": true}
	const through = "values of masked columns come from the source through the mask only"
	for patch, want := range map[string]string{
		`[{"op":"copy","from":"/title","path":"/meta"}]`:                                                "operation 1 (copy /title to /meta) is of a masked column, and " + through,
		`[{"op":"move","from":"/title","path":"/meta/a/0"}]`:                                            "operation 1 (move /title to /meta/a/0) is of a masked column",
		`[{"op":"test","path":"/title","value":"secret"},{"op":"replace","path":"/price","value":"2"}]`: "operation 1 (test /title) is of a masked column",
		`[{"op":"test","path":"/title","value":"other"},{"op":"replace","path":"/price","value":"2"}]`:  "operation 1 (test /title) is of a masked column",
		`[{"op":"test","path":"/t\u0069tle","value":"other"}]`:                                          "operation 1 (test /title) is of a masked column",
		`[{"op":"replace","path":"/title","value":"x"}]`:                                                "operation 1 (replace /title) is of a masked column",
		`[{"op":"remove","path":"/title"}]`:                                                             "operation 1 (remove /title) is of a masked column",
		`[{"op":"add","path":"/TITLE","value":"x"}]`:                                                    "operation 1 (add /TITLE) is of a masked column",
		`[{"op":"copy","from":"x/title","path":"/meta"}]`:                                               "operation 1 (copy x/title to /meta) has a path that does not begin with /",
		`[{"op":"copy","from":"","path":"/meta"}]`:                                                      "operation 1 (copy  to /meta) is of the whole row, and this one has masked columns",
		`[{"op":"test","path":"","value":{"id":1,"title":"secret","price":"1.50","meta":{"a":[1,2]}}}]`: "operation 1 (test ) is of the whole row",
		`[{"op":"replace","path":"/meta","value":1},{"op":"copy","from":"/title","path":"/meta"}]`:      "operation 2 (copy /title to /meta) is of a masked column",
	} {
		_, err := NewPatching(letter, record, []byte(patch), patchColumns, masked)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v; want %s", patch, err, want)
		}
	}
	if _, err := NewPatching(letter, record, []byte(`[{"op":"replace","path":"/meta","value":1}]`), patchColumns, masked); err != nil {
		t.Error(err)
	}
}

func TestAPatchGivesAColumnOnlyWhatItCanHave(t *testing.T) {
	columns := append(slices.Clone(patchColumns),
		cdc.Column{Name: "ratio", Kind: cdc.KindDouble, SQLType: "double"},
		cdc.Column{Name: "tags", Kind: cdc.KindSet, SQLType: "set('a','b')", Nullable: true},
		cdc.Column{Name: "place", Kind: cdc.KindFloat, SQLType: "vector(2)"})
	for column, values := range map[string]struct{ fit, not, takes string }{
		"title": {`"b"`, `1 true null {} ["b"]`, "it is varchar(20), and takes a text"},
		"price": {`"2.00"`, `2.00 null`, "it is decimal(9,2), and takes a text"},
		"meta":  {`1 "b" null {} [1] true`, ``, ""},
		"new":   {`0 18446744073709551615 null`, `-1 1.5 "1" true 18446744073709551616`, "it is bigint unsigned, and takes a whole number or null"},
		"ratio": {`1 -1.5e3`, `"1" null [1]`, "it is double, and takes a number"},
		"tags":  {`["a"] [] null`, `"a" [1] {}`, "it is set('a','b'), and takes an array of texts or null"},
		"place": {`[1,2.5]`, `1 ["a"] null`, "it is vector(2), and takes an array of numbers"},
	} {
		try := func(value string) error {
			l, _ := newLetters()
			letter, record := boxed(t, l, `{"id":1,"title":"a","price":"1.50","meta":{},"old":1}`)
			_, err := NewPatching(letter, record, []byte(`[{"op":"add","path":"/`+column+`","value":`+value+`},{"op":"remove","path":"/old"}]`), columns, nil)
			return err
		}
		for _, value := range strings.Fields(values.fit) {
			if err := try(value); err != nil {
				t.Errorf("%s is %s: %v", column, value, err)
			}
		}
		for _, value := range strings.Fields(values.not) {
			want := "operation 1 (add /" + column + ") gives the column " + column + " a value that it cannot have; " + values.takes
			if err := try(value); err == nil || err.Error() != want {
				t.Errorf("%s is %s: %v; want %s", column, value, err, want)
			}
		}
	}
}
