package shape

import (
	cmporder "cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"lockstep/cdc"
)

// questions is a table with a column of every kind.
var questions = cdc.Table{Name: cdc.TableName{DB: "bank", Table: "questions"}, Key: []string{"id"}, Columns: []cdc.Column{
	{Name: "id", Kind: cdc.KindInt, SQLType: "bigint"},
	{Name: "status", Kind: cdc.KindKeyword, SQLType: "varchar(20)"},
	{Name: "price", Kind: cdc.KindDecimal, SQLType: "decimal(10,2)"},
	{Name: "votes", Kind: cdc.KindInt, SQLType: "int"},
	{Name: "views", Kind: cdc.KindUint, SQLType: "bigint unsigned"},
	{Name: "score", Kind: cdc.KindDouble, SQLType: "double"},
	{Name: "tags", Kind: cdc.KindSet, SQLType: "set('a','b')"},
	{Name: "settings", Kind: cdc.KindJSON, SQLType: "json"},
	{Name: "day", Kind: cdc.KindDate, SQLType: "date"},
	{Name: "at", Kind: cdc.KindDateTime, SQLType: "datetime(6)"},
	{Name: "stamp", Kind: cdc.KindTimestamp, SQLType: "timestamp"},
	{Name: "odd name", Kind: cdc.KindText, SQLType: "text"},
	{Name: "place", Kind: cdc.KindFloat, SQLType: "vector(2)"},
}}

const question = `{"id":9007199254740993,"status":"published","price":"12.30","votes":null,"views":18446744073709551615,"score":1.5,"tags":["a"],` +
	`"settings":{"big":9007199254740993,"list":[1,2]},"day":"2026-11-22","at":"2026-11-22T08:15:30.500000","stamp":"2026-11-22T08:15:30Z","odd name":"a \"b\" \u0001é","place":[0.5,1]}`

func compiled(t testing.TB, c Config, table cdc.Table) *Shape {
	t.Helper()
	s, err := Compile(c, table)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// short is a table of three columns.
var short = cdc.Table{Name: cdc.TableName{DB: "d", Table: "t"}, Key: []string{"id"}, Columns: []cdc.Column{
	{Name: "id", Kind: cdc.KindInt, SQLType: "int"}, {Name: "a", Kind: cdc.KindKeyword, SQLType: "varchar(5)"}, {Name: "b", Kind: cdc.KindInt, SQLType: "int"},
}}

func TestADocumentHasWhatTheShapeSays(t *testing.T) {
	const row = `{"id":1,"a":"x","b":2}`
	for _, c := range []struct {
		name   string
		config Config
		row    string
		want   string
		fields string
	}{
		{"nothing", Config{Where: "true"}, row, row, "id a b"},
		{"chosen, in the order of the row", Config{Fields: []string{"b", "id"}}, row, `{"id":1,"b":2}`, "id b"},
		{"dropped", Config{Drop: []string{"a"}}, row, `{"id":1,"b":2}`, "id b"},
		{"the first one dropped", Config{Drop: []string{"id"}}, row, `{"a":"x","b":2}`, "a b"},
		{"renamed", Config{Rename: map[string]string{"a": `of "a"`}}, row, `{"id":1,"of \"a\"":"x","b":2}`, `id of "a" b`},
		{"two names swapped", Config{Rename: map[string]string{"a": "b", "b": "a"}}, row, `{"id":1,"b":"x","a":2}`, "id b a"},
		{"computed, in the order of the alphabet", Config{Compute: map[string]string{"z": "row.b + 1", "c": "row.a"}}, row, `{"id":1,"a":"x","b":2,"c":"x","z":3}`, "id a b c z"},
		{"a computed field in the place of a column", Config{Drop: []string{"a"}, Compute: map[string]string{"a": "row.a + '!'"}}, row, `{"id":1,"b":2,"a":"x!"}`, "id b a"},
		{"an expression sees what is dropped and not new names", Config{Fields: []string{"id"}, Rename: map[string]string{"id": "b"}, Compute: map[string]string{"c": "row.b"}}, row, `{"b":1,"c":2}`, "b c"},
		{"only computed", Config{Drop: []string{"id", "a", "b"}, Compute: map[string]string{"c": "row.b"}}, row, `{"c":2}`, "c"},
		{"a row that is older", Config{Drop: []string{"b"}}, `{"id":1,"a":"x"}`, `{"id":1,"a":"x"}`, "id a"},
		{"a row that is newer", Config{Drop: []string{"b"}}, `{"id":1,"new":[1,{"x":"}"}],"a":"x","b":2}`, `{"id":1,"new":[1,{"x":"}"}],"a":"x"}`, "id a"},
		{"a row that is newer, of chosen columns", Config{Fields: []string{"a"}}, `{"new":1,"a":"x","b":2}`, `{"a":"x"}`, "a"},
		{"white space", Config{Drop: []string{"b"}}, "\n{ \"id\" : 1 ,\t\"a\":\"x\", \"b\" :2 }", `{"id":1,"a":"x"}`, "id a"},
		{"an empty row", Config{Drop: []string{"b"}}, `{}`, `{}`, "id a"},
	} {
		s := compiled(t, c.config, short)
		got, err := s.Document(nil, []byte(c.row))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, got, err, c.want)
		}
		if fields := strings.Join(namesOf(s.Table()), " "); fields != c.fields {
			t.Errorf("%s: the table has the columns %s; want %s", c.name, fields, c.fields)
		}
		if !slices.Equal(s.Table().Key, short.Key) {
			t.Errorf("%s: the primary key became %s", c.name, s.Table().Key)
		}
	}
}

func namesOf(t cdc.Table) (names []string) {
	for _, c := range t.Columns {
		names = append(names, c.Name)
	}
	return names
}

func TestAnExpressionReadsEveryKindOfColumn(t *testing.T) {
	for _, c := range []struct {
		text string
		kind cdc.Kind
		want string
	}{
		{"row.id", cdc.KindInt, "9007199254740993"},
		{"row.id + 1 == 9007199254740994", cdc.KindBool, "true"},
		{"row.id > 1.5", cdc.KindBool, "true"},
		{"row.views", cdc.KindUint, "18446744073709551615"},
		{"row.views > 5", cdc.KindBool, "true"},
		{"row.status == 'published'", cdc.KindBool, "true"},
		{"row.status.upperAscii() + '!'", cdc.KindKeyword, `"PUBLISHED!"`},
		{"row.status in ['published', 'archived']", cdc.KindBool, "true"},
		{"row.status.matches('^pub')", cdc.KindBool, "true"},
		{"row.price", cdc.KindKeyword, `"12.30"`},
		{"double(row.price) * 2.0", cdc.KindDouble, "24.6"},
		{"row.score * 1e22", cdc.KindDouble, "1.5e+22"},
		{"row.tags", cdc.KindSet, `["a"]`},
		{"'a' in row.tags", cdc.KindBool, "true"},
		{"row.settings.big", cdc.KindJSON, "9007199254740993"},
		{"row.settings", cdc.KindJSON, `{"big":9007199254740993,"list":[1,2]}`},
		{"int(row.settings.big) - 1", cdc.KindInt, "9007199254740992"},
		{"row.settings.list.map(x, int(x) + 1)", cdc.KindInt, "[2,3]"},
		{"has(row.settings.nothing) ? 1 : 2", cdc.KindInt, "2"},
		{"timestamp(row.day)", cdc.KindTimestamp, `"2026-11-22T00:00:00Z"`},
		{"timestamp(row.day) < timestamp(row.at) && timestamp(row.stamp) < timestamp(row.at)", cdc.KindBool, "true"},
		{"timestamp(row.at).getFullYear()", cdc.KindInt, "2026"},
		{"row.day >= '2026-01-01'", cdc.KindBool, "true"},
		{"row.`odd name`", cdc.KindKeyword, `"a \"b\" \u0001é"`},
		{"row.place[0] + row.place[1]", cdc.KindDouble, "1.5"},
		{"{'b': row.id, 'a': [row.status]}", cdc.KindJSON, `{"a":["published"],"b":9007199254740993}`},
		{"bytes(row.status)", cdc.KindBytes, `"cHVibGlzaGVk"`},
		// NULL
		{"row.votes", cdc.KindInt, "null"},
		{"row.votes + 1", cdc.KindInt, "null"},
		{"row.votes > 3", cdc.KindBool, "null"},
		{"!(row.votes > 3)", cdc.KindBool, "null"},
		{"row.votes > 3 || row.status == 'published'", cdc.KindBool, "true"},
		{"row.votes > 3 && row.status == 'draft'", cdc.KindBool, "false"},
		{"row.votes == null", cdc.KindBool, "true"},
		{"has(row.votes)", cdc.KindBool, "false"},
		{"has(row.status)", cdc.KindBool, "true"},
		{"has(row.votes) ? row.votes : 0", cdc.KindInt, "0"},
	} {
		s, err := Compile(Config{Fields: []string{"id"}, Compute: map[string]string{"it": c.text}}, questions)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		doc, err := s.Document(nil, []byte(question))
		got := strings.TrimSuffix(strings.TrimPrefix(string(doc), `{"id":9007199254740993,"it":`), "}")
		if kind := s.Table().Columns[1].Kind; err != nil || got != c.want || kind != c.kind {
			t.Errorf("%s: %s of kind %s, %v; want %s of kind %s", c.text, got, kind, err, c.want, c.kind)
		}
		if !json.Valid(doc) {
			t.Errorf("%s: not JSON: %s", c.text, doc)
		}
	}
}

func TestAConfigThatDoesNotFitTheTableIsRefused(t *testing.T) {
	where := func(text string) Config { return Config{Where: text} }
	compute := func(text string) Config { return Config{Compute: map[string]string{"it": text}} }
	for _, c := range []struct {
		config Config
		want   []string
	}{
		{Config{Fields: []string{"id", "stauts"}}, []string{"fields: bank.questions has no column stauts"}},
		{Config{Drop: []string{"stauts"}}, []string{"drop: bank.questions has no column stauts"}},
		{Config{Rename: map[string]string{"stauts": "s"}}, []string{"rename: bank.questions has no column stauts"}},
		{where("row.stauts == 'x' && row.none"), []string{"where: bank.questions has no column stauts", "where: bank.questions has no column none"}},
		{compute("has(row.stauts)"), []string{"compute.it: bank.questions has no column stauts"}},
		{Config{Rename: map[string]string{"votes": "status"}}, []string{"rename.votes: the document has a field status already; drop or rename the column status"}},
		{Config{Compute: map[string]string{"status": "'x'"}}, []string{"compute.status: the document has a field status already"}},
		{where("row.price > 10"), []string{"where: at character 11", "row.price (decimal(10,2)) is text, as a number it is double(row.price)"}},
		{where("row.at > timestamp(row.stamp)"), []string{"where: at character", "as a time it is timestamp(row.at)"}},
		{where("row.tags == 'a'"), []string{"where: at character", "'x' in row.tags"}},
		{where("row.status.matches('(')"), []string{"where: "}},
		{where("row.status"), []string{"where: gives string, not true or false"}},
		{where("size(row) > 1"), []string{"where: row is used as a whole"}},
		{where("row['status'] == 'x'"), []string{"where: row is used as a whole"}},
		{where("[1].exists(row, row > 0)"), []string{"where: row is used as a whole"}},
		{where("now() > timestamp(row.at)"), []string{"where: at character 4: undeclared reference to 'now'"}},
		{compute("null"), []string{"compute.it: gives null_type, which no field can hold"}},
		{compute("duration('1s')"), []string{"compute.it: gives google.protobuf.Duration, which no field can hold"}},
		{Config{Drop: namesOf(questions)}, []string{"drop: leaves no field of the document"}},
	} {
		_, err := Compile(c.config, questions)
		if err == nil {
			t.Errorf("%+v: no error; want %q", c.config, c.want)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v; want %q", c.config, err, want)
			}
		}
	}
}

func TestAConfigThatContradictsItselfIsRefusedWithoutTheTable(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{Fields: []string{"a", "a"}}, "fields: a is named twice"},
		{Config{Fields: []string{"a"}, Drop: []string{"b"}}, "drop: stands beside fields"},
		{Config{Drop: []string{"a"}, Rename: map[string]string{"a": "b"}}, "rename.a: the column is dropped too"},
		{Config{Fields: []string{"b"}, Rename: map[string]string{"a": "c"}}, "rename.a: the column is not among fields"},
		{Config{Rename: map[string]string{"a": "c", "b": "c"}}, "rename.b: gives the name c, which rename.a gives already"},
		{Config{Rename: map[string]string{"a": "c"}, Compute: map[string]string{"c": "1"}}, "compute.c: gives the name c, which rename.a gives already"},
		{Config{Rename: map[string]string{"a": "_lockstep"}}, "rename.a: names that begin with _lockstep"},
		{Config{Compute: map[string]string{"_lockstep_v": "1"}}, "compute._lockstep_v: names that begin with _lockstep"},
		{Config{Rename: map[string]string{"a": " "}}, "rename.a: gives a field a blank name"},
		{Config{Where: "row.status = 'x'"}, "where: row.status = 'x' is not CEL: at character 12"},
		{Config{Compute: map[string]string{"a": "row.("}}, "compute.a: row.( is not CEL"},
	} {
		if err := c.config.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v; want %q", c.config, err, c.want)
		}
	}
	if err := (Config{}).Check(); err != nil || !(Config{}).Empty() {
		t.Errorf("the empty shape: %v", err)
	}
}

// A row that leaves the condition is deleted, one that enters it is written, whatever
// the op; key and version stay.
func TestARowThatDoesNotMeetTheConditionIsADelete(t *testing.T) {
	s := compiled(t, Config{Where: "row.a == 'in'", Drop: []string{"b"}}, short)
	row := func(a string) []byte { return fmt.Appendf(nil, `{"id":1,"a":%s,"b":2}`, a) }
	doc := func(a string) []byte { return fmt.Appendf(nil, `{"id":1,"a":%s}`, a) }
	for _, c := range []struct {
		name          string
		op            cdc.Op
		before, after []byte
		wantOp        cdc.Op
		wantBefore    []byte
		wantAfter     []byte
	}{
		{"enters", cdc.OpUpdate, row(`"out"`), row(`"in"`), cdc.OpUpdate, doc(`"out"`), doc(`"in"`)},
		{"leaves", cdc.OpUpdate, row(`"in"`), row(`"out"`), cdc.OpDelete, doc(`"in"`), nil},
		{"is made outside", cdc.OpCreate, nil, row(`"out"`), cdc.OpDelete, doc(`"out"`), nil},
		{"is made inside", cdc.OpCreate, nil, row(`"in"`), cdc.OpCreate, nil, doc(`"in"`)},
		{"is read outside", cdc.OpRead, nil, row(`"out"`), cdc.OpDelete, doc(`"out"`), nil},
		{"is NULL", cdc.OpRead, nil, row(`null`), cdc.OpDelete, doc(`null`), nil},
		{"is deleted", cdc.OpDelete, row(`"in"`), nil, cdc.OpDelete, doc(`"in"`), nil},
	} {
		change := cdc.Change{Table: short.Name, Op: c.op, Version: 1<<42 + 7, Key: []byte(`{"id":1}`), GTID: "g", Before: c.before, After: c.after}
		want := change
		want.Op, want.Before, want.After = c.wantOp, c.wantBefore, c.wantAfter
		if unfamiliar, err := s.Apply(&change); err != nil || unfamiliar != "" {
			t.Errorf("%s: %q, %v", c.name, unfamiliar, err)
		}
		if diff := cmp.Diff(want, change); diff != "" {
			t.Errorf("%s (-want +got)\n%s", c.name, diff)
		}
	}
}

// The reason of a dead letter names the expression and its columns, and never shows
// a value.
func TestAnErrorNamesTheExpressionAndNoValue(t *testing.T) {
	const secret = "geheim-4711"
	table := questions
	row := []byte(`{"id":4711,"status":"` + secret + `","price":"4711","votes":4711,"views":4711,"score":4711,"tags":["` + secret + `"],"settings":{"` + secret + `":"` + secret + `"},"day":"4711","at":"4711","stamp":"4711","odd name":"` + secret + `","place":[4711]}`)
	for _, c := range []struct{ text, want string }{
		{"int(row.status)", "it: int(row.status), which reads status: it has no value for this row"},
		{"double(row.status)", "which reads status: it has no value"},
		{"timestamp(row.day)", "it: timestamp(row.day), which reads day: a text is no date or time"},
		{"row.id / (row.votes - row.id)", "which reads id and votes: division by zero"},
		{"row.id * 9223372036854775807", "which reads id: integer overflow"},
		{"row.settings.missing", "which reads settings: the JSON has no such field; ask with has()"},
		{"row.settings.missing + row.status", "which reads settings and status: the JSON has no such field"},
		{"row.settings[row.status] + 1", "which reads settings and status: an operation does not take a value of this type"},
		{"row.place[7]", "which reads place: it has no value"},
		{"row.place.map(x, row.place.map(y, row.place.map(z, [1,2,3,4,5,6,7,8,9].map(a, [1,2,3,4,5,6,7,8,9].map(b, [1,2,3,4,5,6,7,8,9].map(c, [1,2,3,4,5,6,7,8,9].map(d, [1,2,3,4,5,6,7,8,9].map(e, [1,2,3,4,5,6,7,8,9].map(f, row.place.size()))))))))) == []", "it costs more than one row may"},
		{"row.score / 0.0", "it gives a value that JSON cannot hold"},
	} {
		s, err := Compile(Config{Compute: map[string]string{"it": c.text}}, table)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		change := cdc.Change{Op: cdc.OpCreate, After: row}
		_, err = s.Apply(&change)
		if _, ours := errors.AsType[*Error](err); !ours || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.text, err, c.want)
			continue
		}
		if text := strings.ReplaceAll(err.Error(), c.text, ""); strings.Contains(text, "4711") || strings.Contains(text, "geheim") {
			t.Errorf("%s: the error shows a value: %v", c.text, err)
		}
		if change.Op != cdc.OpCreate || string(change.After) != string(row) {
			t.Errorf("%s: the change is not what it was", c.text)
		}
	}
	s := compiled(t, Config{Where: "row.settings.public"}, table)
	if _, err := s.Apply(&cdc.Change{Op: cdc.OpCreate, After: []byte(strings.Replace(question, `"big"`, `"public":"`+secret+`","big"`, 1))}); err == nil || err.Error() != "where: row.settings.public, which reads settings: it gives neither true nor false" {
		t.Errorf("a condition that gives text: %v", err)
	}
}

// A column that an expression needs and the row lacks is an error and not NULL: it may
// have another name by now, and every row would be deleted.
func TestARowThatIsNotTheTablesIsUnfamiliar(t *testing.T) {
	s := compiled(t, Config{Where: "row.a == 'in'"}, short)
	for _, c := range []struct{ row, unfamiliar, wrong string }{
		{`{"id":1,"a":"in","b":2}`, ``, ""},
		{`{"id":1,"c":"in","b":2}`, `"id":"c":"b":`, "where: row.a == 'in', which reads a: the row has no column a"},
		{`{"id":1,"b":2,"a":"in"}`, `"id":"b":"a":`, ""},
		{`{"id":1,"a":"in","b":2,"c":3}`, `"id":"a":"b":"c":`, ""},
		{`{"id":1,"a":"in"}`, `"id":"a":`, ""},
		{`{"id":1,"a":7,"b":2}`, `a"id":"a":"b":`, "where: row.a == 'in', which reads a: the value of column a is not text"},
	} {
		unfamiliar, err := s.Apply(&cdc.Change{Op: cdc.OpCreate, After: []byte(c.row)})
		if unfamiliar != c.unfamiliar || fmt.Sprint(err) != cmporder.Or(c.wrong, "<nil>") {
			t.Errorf("%s: unfamiliar %s, %v; want %s, %s", c.row, unfamiliar, err, c.unfamiliar, c.wrong)
		}
	}
	guarded := compiled(t, Config{Where: "has(row.a) && row.a == 'in'"}, short)
	change := cdc.Change{Op: cdc.OpCreate, After: []byte(`{"id":1}`)}
	if _, err := guarded.Apply(&change); err != nil || change.Op != cdc.OpDelete {
		t.Errorf("with has(): %s, %v", change.Op, err)
	}
	renamed := compiled(t, Config{Rename: map[string]string{"a": "c"}}, short)
	if _, err := renamed.Apply(&cdc.Change{Op: cdc.OpCreate, After: []byte(`{"id":1,"a":"x","c":3}`)}); err == nil {
		t.Error("a new column with the name of a field made two fields of one name")
	}
}

// The row before a change may lack large values, or be one of which no document could be
// made: what is left of it still says where the document was.
func TestTheRowBeforeLacksWhatCannotBeComputed(t *testing.T) {
	s := compiled(t, Config{Compute: map[string]string{"n": "10 / row.b", "z": "row.id"}}, short)
	for _, c := range []struct{ before, want string }{
		{`{"id":1,"a":"x","b":0}`, `{"id":1,"a":"x","b":0,"z":1}`},
		{`{"id":1,"b":5}`, `{"id":1,"b":5,"n":2,"z":1}`},
		{`{"b":0}`, `{"b":0}`},
	} {
		left := [][]byte{[]byte(c.before)}
		change := cdc.Change{Op: cdc.OpUpdate, Before: []byte(c.before), After: []byte(`{"id":1,"a":"x","b":5}`), Left: left}
		if _, err := s.Apply(&change); err != nil || string(change.Before) != c.want || string(change.Left[0]) != c.want || string(left[0]) != c.before || string(change.After) != `{"id":1,"a":"x","b":5,"n":2,"z":1}` {
			t.Errorf("%s -> %s, %v; want %s", change.Before, change.After, err, c.want)
		}
	}
}

// Of a row that makes no document there is still what says where it is, and where it was.
func TestARowWithoutADocumentOnlyLeaves(t *testing.T) {
	for name, c := range map[string]struct {
		rule  Config
		after string
		want  cdc.Change
	}{
		"a computed field": {Config{Compute: map[string]string{"n": "10 / row.b"}, Drop: []string{"a"}}, `{"id":1,"a":"x","b":0}`,
			cdc.Change{Before: []byte(`{"id":1,"b":5,"n":2}`), After: []byte(`{"id":1,"b":0}`), Left: [][]byte{[]byte(`{"id":1,"b":2,"n":5}`)}}},
		"the condition": {Config{Where: "10 / row.b > 1", Drop: []string{"a"}}, `{"id":1,"a":"x","b":0}`,
			cdc.Change{Before: []byte(`{"id":1,"b":5}`), After: []byte(`{"id":1,"b":0}`), Left: [][]byte{[]byte(`{"id":1,"b":2}`)}}},
		"no row": {Config{Drop: []string{"a"}}, `x`,
			cdc.Change{Before: []byte(`{"id":1,"b":5}`), Left: [][]byte{[]byte(`{"id":1,"b":2}`)}}},
	} {
		change := cdc.Change{Op: cdc.OpUpdate, Before: []byte(`{"id":1,"a":"x","b":5}`), After: []byte(c.after), Left: [][]byte{[]byte(`{"id":1,"a":"x","b":2}`)}}
		_, err := compiled(t, c.rule, short).Apply(&change)
		c.want.Op, c.want.Leaves = cdc.OpUpdate, true
		if diff := cmp.Diff(c.want, change); diff != "" || err == nil {
			t.Errorf("%s: %v (-want +got)\n%s", name, err, diff)
		}
	}
}

// Whatever is chosen, dropped and renamed: the values that stay are the row's, byte for
// byte and in its order.
func TestValuesPassByteForByte(t *testing.T) {
	scalar := rapid.OneOf(
		rapid.Map(rapid.Int64(), func(n int64) string { return fmt.Sprint(n) }),
		rapid.Map(rapid.Uint64(), func(n uint64) string { return fmt.Sprint(n) }),
		rapid.SampledFrom([]string{"null", "true", "1e400", "-0.0", "0.10", "1E+2", `"\/\u00e9\\"`, `"}"`, `"a,\"b"`, `"\\"`, `""`, "[ ]", "{ }"}),
		rapid.Map(rapid.String(), func(s string) string { return string(cdc.AppendString(nil, strings.ToValidUTF8(s, ""))) }),
	)
	var value func(depth int) *rapid.Generator[string]
	value = func(depth int) *rapid.Generator[string] {
		if depth == 0 {
			return scalar
		}
		inner := value(depth - 1)
		return rapid.OneOf(scalar,
			rapid.Map(rapid.SliceOfN(inner, 0, 3), func(v []string) string { return "[" + strings.Join(v, ", ") + "]" }),
			rapid.Map(rapid.SliceOfN(inner, 0, 3), func(v []string) string {
				for i := range v {
					v[i] = fmt.Sprintf(`"k%d" : %s`, i, v[i])
				}
				return "{" + strings.Join(v, ",") + "}"
			}))
	}
	name := rapid.Map(rapid.StringN(1, 6, -1), func(s string) string { return strings.ToValidUTF8(s, "?") })
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(name, 1, 8, rapid.ID[string]).Draw(t, "names")
		table := cdc.Table{Name: short.Name}
		config := Config{Rename: map[string]string{}}
		var row, want []string
		taken := map[string]bool{}
		for _, n := range names {
			taken[n] = true
		}
		for i, n := range names {
			table.Columns = append(table.Columns, cdc.Column{Name: n, Kind: cdc.KindJSON})
			v := value(2).Draw(t, "value")
			if !json.Valid([]byte(v)) && v != "1e400" {
				t.Fatalf("the test makes no JSON: %s", v)
			}
			row = append(row, string(cdc.AppendString(nil, n))+":"+v)
			as := n
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				config.Drop = append(config.Drop, n)
				continue
			case 1:
				if as = fmt.Sprintf("new%d", i); !taken[as] && strings.TrimSpace(n) != "" {
					config.Rename[n] = as
				} else {
					as = n
				}
			}
			want = append(want, string(cdc.AppendString(nil, as))+":"+v)
		}
		if len(want) == 0 {
			t.Skip("nothing is left")
		}
		s, err := Compile(config, table)
		if err != nil {
			t.Fatal(err)
		}
		in := "{" + strings.Join(row, ",") + "}"
		got, err := s.Document(nil, []byte(in))
		if err != nil || string(got) != "{"+strings.Join(want, ",")+"}" {
			t.Fatalf("%+v of %s\ngot  %s, %v\nwant {%s}", config, in, got, err, strings.Join(want, ","))
		}
	})
}

// Documents are made by several goroutines at once.
func TestAShapeIsSafeForSeveralGoroutines(t *testing.T) {
	s := compiled(t, Config{Where: "row.b % 2 == 0", Compute: map[string]string{"c": "row.b * 2"}}, short)
	done := make(chan error)
	for g := range 8 {
		go func() {
			for i := range 500 {
				n := g*1000 + i
				change := cdc.Change{Op: cdc.OpCreate, After: fmt.Appendf(nil, `{"id":%d,"a":"x","b":%d}`, n, n)}
				if _, err := s.Apply(&change); err != nil {
					done <- err
					return
				}
				want := fmt.Sprintf(`{"id":%d,"a":"x","b":%d,"c":%d}`, n, n, 2*n)
				if n%2 == 1 {
					want = ""
				}
				if string(change.After) != want {
					done <- fmt.Errorf("got %s, want %s", change.After, want)
					return
				}
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	row := []byte(`{"id":48213,"status":"published","title":"What is the capital of France?","votes":17,"price":"12.30","author":4711,"created":"2026-11-22T08:15:30.123456","updated":"2026-11-22T08:15:30.123456Z","tags":["geo","easy"],"settings":{"level":3,"hint":"Seine"}}`)
	table := cdc.Table{Name: short.Name, Key: []string{"id"}}
	for _, c := range []struct {
		name string
		kind cdc.Kind
	}{{"id", cdc.KindInt}, {"status", cdc.KindKeyword}, {"title", cdc.KindText}, {"votes", cdc.KindInt}, {"price", cdc.KindDecimal}, {"author", cdc.KindInt}, {"created", cdc.KindDateTime}, {"updated", cdc.KindTimestamp}, {"tags", cdc.KindSet}, {"settings", cdc.KindJSON}} {
		table.Columns = append(table.Columns, cdc.Column{Name: c.name, Kind: c.kind})
	}
	for _, c := range []struct {
		name   string
		config Config
	}{
		{"choose", Config{Fields: []string{"id", "status", "title", "votes", "tags"}}},
		{"rename and drop", Config{Drop: []string{"settings"}, Rename: map[string]string{"author": "author_id"}}},
		{"where", Config{Where: "row.status == 'published'"}},
		{"compute", Config{Compute: map[string]string{"popular": "row.votes > 10"}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := compiled(b, c.config, table)
			change := new(cdc.Change)
			b.ReportAllocs()
			for b.Loop() {
				*change = cdc.Change{Op: cdc.OpCreate, After: row}
				if _, err := s.Apply(change); err != nil || change.After == nil {
					b.Fatal(err)
				}
			}
		})
	}
}
