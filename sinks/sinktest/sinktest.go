// Package sinktest is the suite that every sink passes, against the real server.
//
// What it claims is what the rest of the pipeline leans on: a version never goes
// back, whatever is delivered again, late or out of order; a row that the store
// refuses stands alone; and every change gets exactly one answer.
package sinktest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

// Store is a sink under test, and a way to read it as its users do.
type Store interface {
	sinks.Sink
	sinks.Reader
	// Read finds a row. The fields are the columns that are not NULL, each as text:
	// a number's digits, a text without quotes, JSON as it is written. The version
	// is the one the guard of the store goes by.
	Read(t testing.TB, table cdc.TableName, key []byte) (fields map[string]string, version cdc.Version, found bool)
	// Poison gives a change of the row with this id of Questions which this store
	// refuses for good, and prepares the store if that takes it.
	Poison(t testing.TB, id int, version cdc.Version) cdc.Change
}

// Questions is the table most claims are made about.
var Questions = cdc.Table{
	Name: cdc.TableName{DB: "sinktest", Table: "question"},
	Columns: []cdc.Column{
		{Name: "id", Kind: cdc.KindInt, SQLType: "bigint"},
		{Name: "title", Kind: cdc.KindKeyword, SQLType: "varchar(200)"},
		{Name: "body", Kind: cdc.KindText, SQLType: "longtext"},
		{Name: "views", Kind: cdc.KindUint, SQLType: "bigint unsigned"},
		{Name: "price", Kind: cdc.KindDecimal, SQLType: "decimal(20,6)"},
		{Name: "meta", Kind: cdc.KindJSON, SQLType: "json"},
	},
	Key: []string{"id"},
}

// Tags is a table whose primary key is a text.
var Tags = cdc.Table{
	Name: cdc.TableName{DB: "sinktest", Table: "tag"},
	Columns: []cdc.Column{
		{Name: "name", Kind: cdc.KindKeyword, SQLType: "varchar(200)"},
		{Name: "uses", Kind: cdc.KindInt, SQLType: "int"},
	},
	Key: []string{"name"},
}

// Tables are all tables of the suite; New must take both.
var Tables = []cdc.Table{Questions, Tags}

// Version is version n of the suite.
func Version(n int) cdc.Version {
	v, err := cdc.NewVersion(3, uint64(n))
	if err != nil {
		panic(err)
	}
	return v
}

// Key is the key of a row of Questions.
func Key(id int) []byte { return fmt.Appendf(nil, `{"id":%d}`, id) }

// Upsert is a change that gives the row with this id of Questions a title.
func Upsert(id, version int, title string) cdc.Change {
	row := fmt.Appendf(nil, `{"id":%d,"title":`, id)
	row = cdc.AppendString(row, title)
	return cdc.Change{Table: Questions.Name, Op: cdc.OpUpdate, Version: Version(version), Key: Key(id), After: append(row, '}')}
}

// Delete is a change that deletes the row with this id of Questions.
func Delete(id, version int) cdc.Change {
	return cdc.Change{Table: Questions.Name, Op: cdc.OpDelete, Version: Version(version), Key: Key(id), Before: Key(id)}
}

// Run makes every claim about the stores that open gives, a fresh and empty one
// for each.
func Run(t *testing.T, open func(t *testing.T) Store) {
	claim := func(name string, check func(t *testing.T, s suite)) {
		t.Run(name, func(t *testing.T) { check(t, suite{open(t)}) })
	}

	claim("changes in order are applied", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 1, "one"))
		s.title(t, 1, 1, "one")
		s.expect(t, sinks.Applied, Upsert(1, 2, "two"))
		s.title(t, 1, 2, "two")
		s.expect(t, sinks.Applied, Delete(1, 3))
		s.gone(t, 1)
	})

	claim("an older change is stale and changes nothing", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 5, "new"))
		s.expect(t, sinks.Stale, Upsert(1, 4, "old"))
		s.expect(t, sinks.Stale, Delete(1, 3))
		s.title(t, 1, 5, "new")
	})

	claim("the same change again is a duplicate", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 5, "new"))
		s.expect(t, sinks.Duplicate, Upsert(1, 5, "new"))
		s.title(t, 1, 5, "new")
		s.expect(t, sinks.Applied, Delete(1, 6))
		s.expect(t, sinks.Duplicate, Delete(1, 6))
		s.gone(t, 1)
	})

	claim("a deleted row stays deleted when an older change comes late", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 1, "one"))
		s.expect(t, sinks.Applied, Delete(1, 10))
		s.expect(t, sinks.Stale, Upsert(1, 9, "late"))
		s.gone(t, 1)
	})

	claim("the delete of a row never seen is applied and guards as well", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Delete(1, 10))
		s.expect(t, sinks.Stale, Upsert(1, 9, "late"))
		s.gone(t, 1)
	})

	claim("a row may be made again after its delete", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 1, "one"))
		s.expect(t, sinks.Applied, Delete(1, 2))
		s.expect(t, sinks.Applied, Upsert(1, 3, "three"))
		s.title(t, 1, 3, "three")
		s.expect(t, sinks.Stale, Delete(1, 2))
		s.title(t, 1, 3, "three")
	})

	claim("versions are compared as numbers up to 2^53-1", func(t *testing.T, s suite) {
		last := Upsert(1, 0, "last")
		last.Version = 1<<53 - 1
		before := Upsert(1, 0, "before")
		before.Version = 1<<53 - 2
		small := Upsert(2, 0, "small")
		small.Version = 1 << 42
		s.expect(t, sinks.Applied, before)
		s.expect(t, sinks.Applied, last)
		s.expect(t, sinks.Stale, before)
		s.expect(t, sinks.Duplicate, last)
		s.expect(t, sinks.Applied, small)
		s.expect(t, sinks.Applied, Upsert(2, 9, "nine"))
		s.expect(t, sinks.Applied, Upsert(2, 10, "ten"))
		s.expect(t, sinks.Stale, Upsert(2, 9, "nine"))
		s.title(t, 2, 10, "ten")
	})

	claim("every value arrives exactly", func(t *testing.T, s suite) {
		for i, title := range []string{
			"", "plain", `quote " and \ backslash`, "line\nbreak\r\nand tab\t", "control \u0001\u001f\u007f",
			"Grüße, 世界, Ελλάδα", "emoji 👩‍👩‍👧 and 𝕏", "\u2028\u2029", "null", "{}", strings.Repeat("ä", 200),
		} {
			s.expect(t, sinks.Applied, Upsert(i, 1, title))
			s.title(t, i, 1, title)
		}
		c := Upsert(100, 1, "")
		c.After = []byte(`{"id":100,"title":"t","body":"b","views":18446744073709551615,"price":"12345678901234.500000","meta":{"b":1.0,"a":[1,null,"x"]}}`)
		s.expect(t, sinks.Applied, c)
		s.row(t, Questions.Name, c.Key, 1, map[string]string{
			"id": "100", "title": "t", "body": "b", "views": "18446744073709551615", "price": "12345678901234.500000", "meta": `{"b":1.0,"a":[1,null,"x"]}`,
		})
	})

	claim("a column that becomes NULL loses its value", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 1, "something"))
		c := Upsert(1, 2, "")
		c.After = []byte(`{"id":1,"title":null,"body":null,"views":null,"price":null,"meta":null}`)
		s.expect(t, sinks.Applied, c)
		s.row(t, Questions.Name, c.Key, 2, map[string]string{"id": "1"})
	})

	claim("any text can be a primary key", func(t *testing.T, s suite) {
		names := []string{"a", "A", "a b", "a:b", "a%3Ab", `a"b`, `a\b`, "a\nb", "a\x01b", "a/b?c=d&e#f", "ключ", "👩‍👩‍👧", "a,b", "..", "{a}", "*"}
		var changes []cdc.Change
		for i, name := range names {
			key := append(cdc.AppendString([]byte(`{"name":`), name), '}')
			row := cdc.AppendString([]byte(`{"name":`), name)
			row = fmt.Appendf(row, `,"uses":%d}`, i)
			changes = append(changes, cdc.Change{Table: Tags.Name, Op: cdc.OpCreate, Version: Version(1), Key: key, After: row})
		}
		s.expect(t, sinks.Applied, changes...)
		for i, c := range changes {
			s.row(t, Tags.Name, c.Key, 1, map[string]string{"name": names[i], "uses": fmt.Sprint(i)})
			c.Op, c.Version, c.After = cdc.OpDelete, Version(2), nil
			s.expect(t, sinks.Applied, c)
			if _, _, found := s.Read(t, Tags.Name, c.Key); found {
				t.Errorf("row %q is still there after its delete", names[i])
			}
		}
	})

	claim("a large row goes through, with small ones around it", func(t *testing.T, s suite) {
		large := Upsert(2, 1, "large")
		body := strings.Repeat("a line of a long text. ", 8<<20/23)
		large.After = fmt.Appendf(nil, `{"id":2,"title":"large","body":%q}`, body)
		s.expect(t, sinks.Applied, Upsert(1, 1, "small"), large, Upsert(3, 1, "small"))
		fields, _, found := s.Read(t, Questions.Name, Key(2))
		if !found || fields["body"] != body {
			t.Fatalf("the row has a body of %d bytes; want %d", len(fields["body"]), len(body))
		}
	})

	claim("a white space between values is harmless", func(t *testing.T, s suite) {
		c := Upsert(1, 1, "")
		c.After = []byte("{\n  \"id\": 1,\r\n  \"title\": \"spaced\"\n}\n")
		s.expect(t, sinks.Applied, c, Upsert(2, 1, "next"))
		s.title(t, 1, 1, "spaced")
		s.title(t, 2, 1, "next")
	})

	claim("every change gets its own answer, in order", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(2, 5, "x"), Upsert(3, 5, "x"), Delete(5, 5))
		s.answers(t,
			[]cdc.Change{Upsert(1, 1, "new"), Upsert(2, 4, "old"), Upsert(3, 5, "same"), Delete(4, 1), Upsert(5, 2, "late"), Upsert(6, 1, "new")},
			sinks.Applied, sinks.Stale, sinks.Duplicate, sinks.Applied, sinks.Stale, sinks.Applied)
		if got := s.Apply(t.Context(), nil); len(got) != 0 {
			t.Errorf("no change got %d answers", len(got))
		}
	})

	claim("a poison row among a hundred neighbours stands alone", func(t *testing.T, s suite) {
		var changes []cdc.Change
		var want []sinks.Verdict
		for id := range 101 {
			if id == 50 {
				changes = append(changes, s.Poison(t, id, Version(2)))
				want = append(want, sinks.Poison)
				continue
			}
			changes = append(changes, Upsert(id, 2, fmt.Sprint("row ", id)))
			want = append(want, sinks.Applied)
		}
		outcomes := s.answers(t, changes, want...)
		if class := outcomes[50].Class; class == "" || outcomes[50].Reason == "" {
			t.Errorf("the poison has class %q and reason %q; want both", class, outcomes[50].Reason)
		}
		for id := range 101 {
			if id != 50 {
				s.title(t, id, 2, fmt.Sprint("row ", id))
			}
		}
	})

	claim("a call that is called off answers unavailable", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 1, "one")) // whatever is made on first use is made
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for i, out := range s.Apply(ctx, []cdc.Change{Upsert(1, 2, "two"), Upsert(2, 2, "two"), Delete(3, 2)}) {
			if out.Verdict != sinks.Unavailable {
				t.Errorf("change %d got verdict %d; want unavailable", i, out.Verdict)
			}
		}
		s.expect(t, sinks.Applied, Upsert(4, 1, "goes on"))
	})

	claim("a sweep removes what is not newer, of its table only, and may be repeated", func(t *testing.T, s suite) {
		sweep := func(v, want int) {
			t.Helper()
			if n, err := s.Sweep(t.Context(), Questions.Name, Version(v)); err != nil || n != want {
				t.Fatalf("sweep to %d removed %d rows, error %v; want %d", v, n, err, want)
			}
		}
		sweep(5, 0) // nothing was ever written
		tag := cdc.Change{Table: Tags.Name, Op: cdc.OpCreate, Version: Version(1), Key: []byte(`{"name":"7"}`), After: []byte(`{"name":"7","uses":7}`)}
		s.expect(t, sinks.Applied, Upsert(1, 9, "below"), Upsert(2, 10, "at"), Upsert(3, 11, "above"), Upsert(4, 2, "old"), tag)
		s.expect(t, sinks.Applied, Delete(4, 12), Upsert(5, 3, "old"))
		sweep(10, 3)
		for _, id := range []int{1, 2, 4, 5} {
			s.gone(t, id)
		}
		s.title(t, 3, 11, "above")
		s.row(t, Tags.Name, tag.Key, 1, map[string]string{"name": "7", "uses": "7"})
		sweep(10, 0)
		sweep(9, 0)
		s.title(t, 3, 11, "above")
		s.expect(t, sinks.Stale, Upsert(1, 9, "late"), Upsert(2, 9, "late"), Upsert(4, 11, "late"), Upsert(5, 9, "late"))
		s.gone(t, 1)
		s.expect(t, sinks.Applied, Upsert(1, 13, "again"))
		s.title(t, 1, 13, "again")
	})

	claim("a sweep of many rows takes them all, whatever is written meanwhile", func(t *testing.T, s suite) {
		const many = 2500
		var changes []cdc.Change
		for id := range many {
			changes = append(changes, Upsert(id, 1+id%3, "old"))
		}
		s.expect(t, sinks.Applied, changes...)
		var writer sync.WaitGroup
		writer.Go(func() {
			for id := 0; id < many; id += 50 {
				s.Apply(t.Context(), []cdc.Change{Upsert(id, 20, "new")})
			}
		})
		if _, err := s.Sweep(t.Context(), Questions.Name, Version(10)); err != nil {
			t.Error(err)
		}
		writer.Wait()
		for id := range many {
			if id%50 == 0 {
				s.title(t, id, 20, "new")
			} else {
				s.gone(t, id)
			}
		}
	})

	claim("a sweep that is called off is an error", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 1, "one"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Sweep(ctx, Questions.Name, Version(5)); err == nil {
			t.Error("it says that everything is swept")
		}
		s.title(t, 1, 1, "one")
	})

	claim("what would be answered is answered, and asking changes nothing", foresight)

	claim("a poison row would be refused, an old one would be stale", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 5, "new"))
		poison := s.Poison(t, 2, Version(5))
		asked := []cdc.Change{poison, Upsert(1, 4, "old"), Upsert(3, 1, "new"), Delete(4, 1)}
		would := s.Would(t.Context(), asked)
		got := s.answers(t, asked, sinks.Poison, sinks.Stale, sinks.Applied, sinks.Applied)
		for i, p := range would {
			if p.Verdict != got[i].Verdict || p.Class != got[i].Class || p.Verdict == sinks.Poison && p.Reason == "" {
				t.Errorf("change %d would get %+v and got %+v", i, p.Outcome, got[i])
			}
		}
	})

	claim("documents are read up to a number of bytes", func(t *testing.T, s suite) {
		long := strings.Repeat("long ", 20_000)
		s.expect(t, sinks.Applied, Upsert(1, 1, "short"), Upsert(2, 1, long), Upsert(3, 1, "short"))
		asked := []cdc.Change{Upsert(1, 1, ""), Upsert(2, 1, ""), Upsert(3, 1, ""), Upsert(4, 1, "")}
		for i, got := range s.Stored(t.Context(), asked, 50_000) {
			if found := i < 3; got.Problem != "" || (got.Version == Version(1)) != found || got.Omitted != (i == 1) || (got.Document != nil) != (found && i != 1) {
				t.Errorf("row %d: %.300v", i+1, got)
			}
		}
		if got := s.Stored(t.Context(), asked[1:2], 1<<20)[0]; got.Omitted || gjson.GetBytes(got.Document, "title").Str != long && !strings.Contains(string(got.Document), long) {
			t.Errorf("alone: %.300v", got)
		}
	})

	claim("what is expected of a row is what the store has once it is applied", func(t *testing.T, s suite) {
		changes := []cdc.Change{Upsert(1, 1, `quote " and \ é`), Upsert(2, 1, ""), Upsert(3, 1, "three"), Delete(3, 2)}
		changes[1].After = []byte(`{"id":2,"title":null,"body":"b","views":18446744073709551615,"price":"1.50","meta":{"b":1.0,"a":[1,null]}}`)
		for _, c := range changes {
			expected := s.Expect(t.Context(), []cdc.Change{c})[0]
			s.expect(t, sinks.Applied, c)
			got := s.Stored(t.Context(), []cdc.Change{c}, 1<<20)[0]
			if expected.Problem != "" || got.Foreign || !sameJSON(got.Document, expected.Document) || (expected.Place == "") != (c.Op == cdc.OpDelete) {
				t.Errorf("%s %s: expected %+v of %s and got %+v of %s", c.Op, c.Key, expected, expected.Document, got, got.Document)
			}
		}
	})

	claim("a scan finds each row where it is expected, and its key", func(t *testing.T, s suite) {
		if err := s.Keeps(Questions.Name); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		var changes []cdc.Change
		for id := -3; id < 1500; id++ { // more than a page
			changes = append(changes, Upsert(id, 1, fmt.Sprint("row ", id)))
		}
		for i, e := range s.Expect(t.Context(), changes) {
			want[e.Place] = string(changes[i].Key)
		}
		s.expect(t, sinks.Applied, changes...)
		s.expect(t, sinks.Applied, Delete(7, 2), Delete(8, 2))
		known := s.Expect(t.Context(), changes[:2])
		delete(want, known[0].Place)
		got := map[string]string{}
		err := s.Scan(t.Context(), Questions, func(place string) bool { return place == known[0].Place }, func(found []sinks.Found) error {
			stored := s.Again(t.Context(), found, 1<<20)
			for i, f := range found {
				if f.Problem != "" || f.Change.Op != cdc.OpDelete {
					t.Errorf("it finds %+v", f)
				}
				if stored[i].Document != nil {
					got[f.Place] = string(f.Change.Key)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, gone := range s.Expect(t.Context(), []cdc.Change{Upsert(7, 1, ""), Upsert(8, 1, "")}) {
			delete(want, gone.Place)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("want (-), found (+):\n%s", diff)
		}
		stop := fmt.Errorf("enough")
		if err := s.Scan(t.Context(), Questions, func(string) bool { return false }, func([]sinks.Found) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("it ends with %v", err)
		}
	})

	claim("the keys of any text are found again", func(t *testing.T, s suite) {
		want := map[string]bool{}
		for i, name := range []string{"a", "A", "a b", "a:b", "a%3Ab", `a"b`, `a\b`, "a\nb", "ключ", "..", "{a}", "*"} {
			key := append(cdc.AppendString([]byte(`{"name":`), name), '}')
			want[string(key)] = true
			s.expect(t, sinks.Applied, cdc.Change{Table: Tags.Name, Op: cdc.OpCreate, Version: Version(1), Key: key, After: fmt.Appendf(bytes.TrimSuffix(bytes.Clone(key), []byte("}")), `,"uses":%d}`, i)})
		}
		err := s.Scan(t.Context(), Tags, func(string) bool { return false }, func(found []sinks.Found) error {
			for _, f := range found {
				if !want[string(f.Change.Key)] {
					t.Errorf("it finds %s: %+v", f.Change.Key, f)
				}
				delete(want, string(f.Change.Key))
			}
			return nil
		})
		if err != nil || len(want) > 0 {
			t.Errorf("%v; it has not found %v", err, want)
		}
	})

	claim("a row whose version nobody can outrank is let go of, when it is that version", func(t *testing.T, s suite) {
		last := Upsert(1, 0, "foreign")
		last.Version = 1<<53 - 1
		s.expect(t, sinks.Applied, last, Upsert(2, 5, "ours"))
		s.expect(t, sinks.Stale, Upsert(1, 9, "nine"))
		rows := []cdc.Change{Upsert(1, 0, ""), Upsert(2, 0, "")}
		free := func(versions ...cdc.Version) {
			t.Helper()
			if err := s.Store.(sinks.Freer).Free(t.Context(), rows, versions); err != nil {
				t.Fatal(err)
			}
		}
		free(Version(7), Version(7)) // it is another one
		s.expect(t, sinks.Stale, Upsert(1, 9, "nine"))
		free(last.Version, Version(4))
		s.expect(t, sinks.Applied, Upsert(1, 9, "nine"))
		if got := s.Stored(t.Context(), rows, 1<<20); got[0].Version != Version(9) || got[1].Version != Version(5) || s.Stored(t.Context(), []cdc.Change{Upsert(3, 0, "")}, 1)[0].Document != nil {
			t.Errorf("the store has %+v", got)
		}
		s.expect(t, sinks.Stale, Upsert(1, 8, "eight"))
		s.expect(t, sinks.Applied, Upsert(1, 10, "ten"))
	})

	claim("reading that is called off says so", func(t *testing.T, s suite) {
		s.expect(t, sinks.Applied, Upsert(1, 1, "one"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		asked := []cdc.Change{Upsert(1, 2, "two"), Upsert(2, 2, "two")}
		for i, got := range s.Stored(ctx, asked, 1<<20) {
			if got.Problem == "" || !got.Away {
				t.Errorf("row %d: %+v", i, got)
			}
		}
		for i, got := range s.Would(ctx, asked) {
			if got.Verdict != sinks.Unavailable || got.Reason == "" {
				t.Errorf("change %d: %+v", i, got)
			}
		}
	})

	claim("whatever is delivered again, late or out of order, the newest change wins and no reader sees a step back", chaos)
}

type suite struct{ Store }

// expect applies changes in one call, and wants the same verdict for all.
func (s suite) expect(t *testing.T, want sinks.Verdict, changes ...cdc.Change) {
	t.Helper()
	verdicts := make([]sinks.Verdict, len(changes))
	for i := range verdicts {
		verdicts[i] = want
	}
	s.answers(t, changes, verdicts...)
}

func (s suite) answers(t *testing.T, changes []cdc.Change, want ...sinks.Verdict) []sinks.Outcome {
	t.Helper()
	got := s.Apply(t.Context(), changes)
	if len(got) != len(changes) {
		t.Fatalf("%d changes got %d answers", len(changes), len(got))
	}
	for i, out := range got {
		if out.Verdict != want[i] {
			t.Fatalf("%s %s at version %d got verdict %d (%s); want %d", changes[i].Op, changes[i].Key, changes[i].Version.Seq(), out.Verdict, out.Reason, want[i])
		}
	}
	return got
}

func (s suite) title(t *testing.T, id, version int, title string) {
	t.Helper()
	s.row(t, Questions.Name, Key(id), version, map[string]string{"id": fmt.Sprint(id), "title": title})
}

func (s suite) row(t *testing.T, table cdc.TableName, key []byte, version int, want map[string]string) {
	t.Helper()
	got, v, found := s.Read(t, table, key)
	if !found || v != Version(version) {
		t.Fatalf("row %s: found %v, version %d; want version %d", key, found, v.Seq(), version)
	}
	// NULL may be kept as an absent column or as an empty one.
	got = maps.Clone(got)
	for column, value := range got {
		if _, ok := want[column]; !ok && value == "" {
			delete(got, column)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("row %s: want (-), got (+):\n%s", key, diff)
	}
}

func (s suite) gone(t *testing.T, id int) {
	t.Helper()
	if fields, v, found := s.Read(t, Questions.Name, Key(id)); found {
		t.Fatalf("row %d is there with version %d: %v; want it gone", id, v.Seq(), fields)
	}
}

// foresight gives random changes to a few rows, each after asking what would become of it.
func foresight(t *testing.T, s suite) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, seed))
	for range 150 {
		var changes []cdc.Change
		for _, id := range random.Perm(4)[:1+random.IntN(3)] {
			c := Upsert(id, 1+random.IntN(12), fmt.Sprintf("title %d", random.IntN(1000)))
			if random.IntN(4) == 0 {
				c = Delete(id, 1+random.IntN(12))
			}
			changes = append(changes, c)
		}
		before := s.Stored(t.Context(), changes, 1<<20)
		would := s.Would(t.Context(), changes)
		if diff := cmp.Diff(before, s.Stored(t.Context(), changes, 1<<20)); diff != "" {
			t.Fatalf("asking has changed the store: %s", diff)
		}
		answers := s.Apply(t.Context(), changes)
		after := s.Stored(t.Context(), changes, 1<<20)
		for i, c := range changes {
			what := fmt.Sprintf("%s %s at version %d", c.Op, c.Key, c.Version.Seq())
			forgotten := before[i].Version == 0 && answers[i].Verdict != sinks.Applied // a delete that has no document
			if would[i].Verdict != answers[i].Verdict && !forgotten || forgotten && would[i].Verdict != sinks.Applied {
				t.Fatalf("%s would get %+v and got %+v; the store had %+v", what, would[i].Outcome, answers[i], before[i])
			}
			want := before[i]
			if answers[i].Verdict == sinks.Applied {
				if want.Version, want.Document = c.Version, would[i].Document; c.Op == cdc.OpDelete && after[i].Version == 0 {
					want.Version = 0
				}
			}
			if after[i].Problem != "" || after[i].Version != want.Version || !sameJSON(after[i].Document, want.Document) || after[i].Deleted != (after[i].Document == nil && after[i].Version > 0) {
				t.Fatalf("%s got %+v and the store has %+v; want version %d of %s", what, answers[i], after[i], want.Version.Seq(), want.Document)
			}
		}
	}
}

func sameJSON(a, b []byte) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && cmp.Equal(x, y)
}

// chaos delivers the history of a few rows several times over, shuffled, from
// several goroutines, while a reader watches.
func chaos(t *testing.T, s suite) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, seed))
	const rowsN, versions, deliveries, hands = 6, 30, 4, 3

	newest := make(map[int]cdc.Change)
	var history []cdc.Change
	for id := range rowsN {
		for v := 1; v <= versions; v++ {
			c := Upsert(id, v, fmt.Sprintf("row %d version %d", id, v))
			if random.IntN(4) == 0 {
				c = Delete(id, v)
			}
			history = append(history, c)
			newest[id] = c
		}
	}
	var queue []cdc.Change
	for range deliveries {
		queue = append(queue, history...)
	}
	random.Shuffle(len(queue), func(i, j int) { queue[i], queue[j] = queue[j], queue[i] })

	var writers sync.WaitGroup
	share := len(queue) / hands
	for h := range hands {
		mine := queue[h*share : (h+1)*share]
		writers.Go(func() {
			for len(mine) > 0 {
				n := distinct(mine)
				for i, out := range s.Apply(t.Context(), mine[:n]) {
					if out.Verdict != sinks.Applied && out.Verdict != sinks.Stale && out.Verdict != sinks.Duplicate {
						t.Errorf("%s %s got verdict %d: %s", mine[i].Op, mine[i].Key, out.Verdict, out.Reason)
					}
				}
				mine = mine[n:]
			}
		})
	}
	done := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		seen := make(map[int]cdc.Version)
		for {
			for id := range rowsN {
				if _, v, found := s.Read(t, Questions.Name, Key(id)); found {
					if v < seen[id] {
						t.Errorf("a reader saw row %d at version %d after version %d", id, v.Seq(), seen[id].Seq())
					}
					seen[id] = v
				}
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	writers.Wait()
	close(done)
	reader.Wait()
	for id, c := range newest {
		if c.Op == cdc.OpDelete {
			s.gone(t, id)
		} else {
			s.title(t, id, versions, fmt.Sprintf("row %d version %d", id, versions))
		}
	}
}

// distinct is how many of changes, at most 4, are of different rows.
func distinct(changes []cdc.Change) int {
	seen := make(map[string]bool)
	for i, c := range changes {
		if i == 4 || seen[string(c.Key)] {
			return i
		}
		seen[string(c.Key)] = true
	}
	return len(changes)
}
