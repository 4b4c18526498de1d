package cdc

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestVersionsOfAHigherEpochOrSequenceAreHigherAndExactAsDoubles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		epoch := rapid.Uint16Range(1, MaxEpoch)
		seq := rapid.Uint64Range(0, MaxSeq)
		e1, e2, s1, s2 := epoch.Draw(t, "e1"), epoch.Draw(t, "e2"), seq.Draw(t, "s1"), seq.Draw(t, "s2")
		v1, err1 := NewVersion(e1, s1)
		v2, err2 := NewVersion(e2, s2)
		if err := errors.Join(err1, err2, v1.Check(), v2.Check()); err != nil {
			t.Fatal(err)
		}
		if v1.Epoch() != e1 || v1.Seq() != s1 {
			t.Fatalf("%d/%d came back as %d/%d", e1, s1, v1.Epoch(), v1.Seq())
		}
		if (v1 < v2) != (e1 < e2 || e1 == e2 && s1 < s2) {
			t.Fatalf("%d/%d and %d/%d are in the wrong order", e1, s1, e2, s2)
		}
		if (float64(v1) < float64(v2)) != (v1 < v2) {
			t.Fatalf("as doubles %d and %d are in the wrong order", v1, v2)
		}
		if parsed, err := ParseVersion(v1.String()); err != nil || parsed != v1 {
			t.Fatalf("%s parsed as %d, %v", v1, parsed, err)
		}
	})
}

func TestAVersionOutsideTheRangeIsRefused(t *testing.T) {
	for _, text := range []string{"", "0", "-1", "1", "4398046511103", "9007199254740992", "18446744073709551615", "1.5", "x"} {
		if v, err := ParseVersion(text); !errors.Is(err, ErrNoVersion) {
			t.Errorf("%q gave %d, %v", text, v, err)
		}
	}
	for _, c := range []struct {
		epoch uint16
		seq   uint64
	}{{0, 1}, {MaxEpoch + 1, 1}, {1, MaxSeq + 1}} {
		if v, err := NewVersion(c.epoch, c.seq); err == nil {
			t.Errorf("epoch %d, sequence %d gave %d", c.epoch, c.seq, v)
		}
	}
}

func sample() Change {
	return Change{Table: TableName{"bank", "questions"}, Op: OpUpdate, Version: 1<<42 + 77, GTID: "3e11fa47-71ca-11e1-9e33-c80aa9429562:23",
		CommitMicros: 1795384578314314, Key: []byte(`{"id":1}`), Before: []byte(`{"id":1,"t":"a"}`), After: []byte(`{"id":1,"t":"b \"q\" \n"}`),
		Origin: Origin{ServerID: 7, File: "binlog.000002", Pos: 1234, Row: 3}}
}

func TestAChangeComesBackFromItsRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := sample()
		want.Table = TableName{rapid.StringN(1, 20, -1).Draw(t, "db"), rapid.StringN(1, 20, -1).Draw(t, "table")}
		want.Op = rapid.SampledFrom([]Op{OpCreate, OpUpdate, OpDelete, OpRead}).Draw(t, "op")
		want.Version = Version(rapid.Uint64Range(1<<42, 1<<53-1).Draw(t, "version"))
		want.CommitMicros = rapid.Int64Range(0, 1<<55).Draw(t, "commit")
		want.GTID = rapid.SampledFrom([]string{"", want.GTID, want.GTID + ":tag:1"}).Draw(t, "gtid")
		want.Layout = rapid.Uint32().Draw(t, "layout")
		text := rapid.String().Draw(t, "text")
		want.After = append(AppendString([]byte(`{"id":1,"t":`), text), '}')
		if want.Op == OpDelete {
			want.After = nil
		}
		if want.Op == OpCreate || want.Op == OpRead {
			want.Before = nil
		}
		value := want.AppendValue(nil, "shop")
		if !json.Valid(value) {
			t.Fatalf("not JSON: %s", value)
		}
		got, err := Decode(want.Key, value, want.Headers())
		if err != nil {
			t.Fatal(err)
		}
		want.Origin = Origin{} // stays in the envelope, for people
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
	})
}

// The envelope is the one that Debezium's users know.
func TestTheEnvelopeHasDebeziumsFields(t *testing.T) {
	c := sample()
	const want = `{"before":{"id":1,"t":"a"},"after":{"id":1,"t":"b \"q\" \n"},"source":{"connector":"mysql","name":"shop","db":"bank","table":"questions","snapshot":false,"server_id":7,"gtid":"3e11fa47-71ca-11e1-9e33-c80aa9429562:23","file":"binlog.000002","pos":1234,"row":3,"ts_us":1795384578314314,"version":4398046511181},"op":"u","ts_ms":1795384578314}`
	if got := string(c.AppendValue(nil, "shop")); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A barrier is Debezium's truncate: of a table, without key and rows.
func TestABarrierComesBack(t *testing.T) {
	want := sample()
	want.Op, want.Key, want.Before, want.After, want.Origin = OpBarrier, nil, nil, nil, Origin{}
	value := want.AppendValue(nil, "shop")
	if !json.Valid(value) || !strings.Contains(string(value), `"before":null,"after":null`) || !strings.Contains(string(value), `"op":"t"`) {
		t.Errorf("the value is %s", value)
	}
	got, err := Decode(nil, value, want.Headers())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, err := Decode([]byte(`{"id":1}`), value, want.Headers()); !errors.Is(err, ErrUndecodable) {
		t.Errorf("a barrier with a key gave %v", err)
	}
}

func TestARecordThatIsNotWholeIsRefused(t *testing.T) {
	without := func(name string) func(*[]byte, *[]byte, *[]Header) {
		return func(_, _ *[]byte, h *[]Header) {
			var kept []Header
			for _, x := range *h {
				if x.Key != name {
					kept = append(kept, x)
				}
			}
			*h = kept
		}
	}
	set := func(name, value string) func(*[]byte, *[]byte, *[]Header) {
		return func(k, v *[]byte, h *[]Header) {
			without(name)(k, v, h)
			*h = append(*h, Header{name, []byte(value)})
		}
	}
	for name, c := range map[string]struct {
		spoil func(key, value *[]byte, headers *[]Header)
		want  string
	}{
		"no format":       {without(HeaderFormat), "header lockstep.format is missing"},
		"another format":  {set(HeaderFormat, "0"), `format "0" is not known`},
		"no number":       {set(HeaderFormat, "two"), `format "two" is not known`},
		"no version":      {without(HeaderVersion), "header lockstep.version"},
		"version 0":       {set(HeaderVersion, "0"), "header lockstep.version"},
		"unknown op":      {set(HeaderOp, "x"), "header lockstep.op"},
		"no table":        {without(HeaderTable), "do not name a table"},
		"commit in words": {set(HeaderCommit, "now"), "lockstep.commit_us"},
		"layout in words": {set(HeaderLayout, "wide"), "lockstep.layout"},
		"no key":          {func(k, _ *[]byte, _ *[]Header) { *k = nil }, "key is not a JSON object"},
		"half a value":    {func(_, v *[]byte, _ *[]Header) { *v = (*v)[:len(*v)/2] }, "value is not a JSON object"},
		"a tombstone":     {func(_, v *[]byte, _ *[]Header) { *v = nil }, "value is not a JSON object"},
		"no row":          {func(_, v *[]byte, _ *[]Header) { *v = []byte(`{"before":null,"after":null}`) }, "has no row in after"},
		"row in a delete": {set(HeaderOp, "d"), "op d has a row in after"},
	} {
		change := sample()
		key, value, headers := change.Key, change.AppendValue(nil, "shop"), change.Headers()
		c.spoil(&key, &value, &headers)
		if _, err := Decode(key, value, headers); !errors.Is(err, ErrUndecodable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

func TestARecordOfALaterFormatIsNotJudged(t *testing.T) {
	change := sample()
	headers := change.Headers()
	for i, h := range headers {
		if h.Key == HeaderFormat {
			headers[i].Value = fmt.Append(nil, Format+1)
		}
	}
	_, err := Decode(change.Key, []byte("what may come"), headers)
	if !errors.Is(err, ErrNewer) || errors.Is(err, ErrUndecodable) || !strings.Contains(err.Error(), fmt.Sprintf("format %d, and this one knows up to %d", Format+1, Format)) {
		t.Errorf("%v", err)
	}
}

func FuzzDecodeNeverPanics(f *testing.F) {
	c := sample()
	f.Add(c.Key, c.AppendValue(nil, "shop"), "1", "4398046511181", "u")
	f.Fuzz(func(t *testing.T, key, value []byte, format, version, op string) {
		_, _ = Decode(key, value, []Header{{HeaderFormat, []byte(format)}, {HeaderVersion, []byte(version)}, {HeaderOp, []byte(op)}, {HeaderDB, []byte("d")}, {HeaderTable, []byte("t")}})
	})
}

func TestAppendStringIsWhatJSONReads(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.String().Draw(t, "text")
		if !utf8.ValidString(want) {
			t.Skip("not text")
		}
		var got string
		if err := json.Unmarshal(AppendString(nil, want), &got); err != nil || got != want {
			t.Fatalf("%q came back as %q, %v", want, got, err)
		}
	})
}

func TestDifferentKeysHaveDifferentTexts(t *testing.T) {
	key := func(a, b string) []byte {
		k := AppendString([]byte(`{"a":`), a)
		k = AppendString(append(k, `,"b":`...), b)
		return append(k, '}')
	}
	template, err := ParseKeyTemplate("k:{a}:{b}")
	if err != nil {
		t.Fatal(err)
	}
	part := rapid.StringOfN(rapid.SampledFrom([]rune(`ab:%3A25{}`)), 0, 5, -1)
	rapid.Check(t, func(t *rapid.T) {
		a1, b1, a2, b2 := part.Draw(t, "a1"), part.Draw(t, "b1"), part.Draw(t, "a2"), part.Draw(t, "b2")
		same := a1 == a2 && b1 == b2
		t1, err1 := KeyText(key(a1, b1))
		t2, err2 := KeyText(key(a2, b2))
		r1, err3 := template.Render(TableName{"d", "t"}, key(a1, b1))
		r2, err4 := template.Render(TableName{"d", "t"}, key(a2, b2))
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Fatal(err)
		}
		if (t1 == t2) != same || (r1 == r2) != same {
			t.Fatalf("(%q, %q) is %q and %q, (%q, %q) is %q and %q", a1, b1, t1, r1, a2, b2, t2, r2)
		}
	})
}

// A key is told from that of another table's row by what stands in the row.
func TestAKeyIsGivenByItsRowAndByNoOther(t *testing.T) {
	table := TableName{"bank", "cases"}
	for _, c := range []struct {
		template, key string
		row           map[string]string
		want          bool
	}{
		{"question:{id}", "question:7", map[string]string{"id": "7", "title": "x"}, true},
		{"question:{id}", "question:7:tags:3", map[string]string{"qid": "7", "tid": "3"}, false},
		{"question:{id}", "question:7:tags:3", map[string]string{"id": "3", "qid": "7"}, false},
		{"question:{pk}", "question:7:tags:3", map[string]string{"qid": "7", "tid": "3"}, false},
		{"question:{pk}", "question:a:b%", map[string]string{"id": "a:b%"}, true},
		{"q:{pk}", "q:7:de%3A", map[string]string{"id": "7", "lang": "de:", "n": "1"}, true},
		{"q:{pk}", "q:7:7", map[string]string{"id": "7", "n": "1"}, false},
		{"q:{pk}", "q:7:7", map[string]string{"id": "7", "other": "7"}, true},
		{"{{{pk}}}:{db}.{table}:{pk}", "{7}:bank.cases:7", map[string]string{"id": "7"}, true},
		{"{{{pk}}}:{db}.{table}:{pk}", "{7}:bank.cases:8", map[string]string{"id": "7", "n": "8"}, false},
		{"{a}:{b}", "1%3A:2", map[string]string{"a": "1:", "b": "2"}, true},
		{"q:{id}x", "q:", map[string]string{"id": ""}, false},
		{"q:{pk}xy", "q:x", map[string]string{"id": ""}, false},
	} {
		template, err := ParseKeyTemplate(c.template)
		if err != nil {
			t.Fatal(err)
		}
		if got := template.Gives(table, c.key, c.row); got != c.want {
			t.Errorf("%s, key %s, row %v: %v", c.template, c.key, c.row, got)
		}
	}
}

func TestEveryKeyIsGivenByItsRow(t *testing.T) {
	part := rapid.StringOfN(rapid.SampledFrom([]rune(`ab:%3A25{}`)), 0, 5, -1)
	rapid.Check(t, func(t *rapid.T) {
		row := map[string]string{"a": part.Draw(t, "a"), "b": part.Draw(t, "b"), "c": part.Draw(t, "c")}
		key := AppendString([]byte(`{"a":`), row["a"])
		key = append(AppendString(append(key, `,"b":`...), row["b"]), '}')
		for _, text := range []string{"q:{pk}", "q:{a}:{b}", "{b}{{{a}}}", "{pk}{pk}:"} {
			template, err := ParseKeyTemplate(text)
			if err != nil {
				t.Fatal(err)
			}
			got, err := template.Render(TableName{"d", "t"}, key)
			if err != nil || !template.Gives(TableName{"d", "t"}, got, row) {
				t.Fatalf("%s of %v is %q, %v, and is not given by it", text, row, got, err)
			}
		}
	})
}

func TestAKeyTemplateRendersOrSaysWhatIsWrong(t *testing.T) {
	table := TableName{"bank", "cases"}
	for _, c := range []struct{ template, key, want, wrong string }{
		{"question:{id}", `{"id":42}`, "question:42", ""},
		{"q:{id}", `{"id":"a:b%"}`, "q:a:b%", ""},
		{"{db}.{table}:{pk}", `{"a":1,"b":"x:y"}`, "bank.cases:1:x%3Ay", ""},
		{"{{{id}}}", `{"id":42}`, "{42}", ""},
		{"q:{id}", `{"id":1,"lang":"de"}`, "", "leaves out the primary-key column lang"},
		{"q:{slug}", `{"id":1}`, "", "slug is not a primary-key column"},
		{"q", "", "", "names no primary-key column"},
		{"q:{id", "", "", "is not closed"},
		{"q:{}", "", "", "not closed or empty"},
		{"q}", "", "", "closes nothing"},
	} {
		var got string
		template, err := ParseKeyTemplate(c.template)
		if err == nil {
			got, err = template.Render(table, []byte(c.key))
		}
		switch {
		case c.wrong == "" && (err != nil || got != c.want):
			t.Errorf("%s of %s: %q, %v; want %q", c.template, c.key, got, err, c.want)
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s of %s: %q, %v; want %q", c.template, c.key, got, err, c.wrong)
		}
	}
}

func TestATemplateTakesOtherColumnsFromAnImageOfTheRow(t *testing.T) {
	table, key := TableName{"d", "t"}, []byte(`{"id":7}`)
	large := `"` + strings.Repeat("x", SmallValue) + `"`
	for _, tt := range []struct{ template, row, want string }{
		{"q:{level}:{id}", `{"id":7,"level":"a:b%"}`, "q:a%3Ab%25:7"},
		{"q:{id}", `{"id":7}`, "q:7"},
		{"q:{level}:{id}", `{"id":7,"level":null}`, "NULL level"},
		{"q:{level}:{id}", `{"id":7,"level":""}`, "q::7"},
		{"q:{level}:{pk}", `{"id":7,"level":12.50}`, "q:12.50:7"},
		{"q:{level}", `{"id":7,"level":1}`, `key template "q:{level}" leaves out the primary-key column id of d.t; add {id}`},
		{"q:{level}:{id}", `{"id":7}`, `template q:{level}:{id} names the column level, which rows of d.t do not have`},
		{"q:{level}:{id}", `{"id":7,"level":` + large + `}`, `key template q:{level}:{id}: column level of d.t has a value of 1026 bytes; at most 1024 may go into a key`},
	} {
		template, err := ParseKeyTemplate(tt.template)
		if err != nil {
			t.Fatal(err)
		}
		r, err := RenderTogether(table, key, []byte(tt.row), template)
		got := ""
		switch {
		case err != nil:
			got = err.Error()
		case r.Null != "":
			got = "NULL " + r.Null
		default:
			got = r.Texts[0]
		}
		if got != tt.want {
			t.Errorf("%s of %s: %s, want %s", tt.template, tt.row, got, tt.want)
		}
	}
	set, _ := ParseTemplate("tag:{tag}")
	member, _ := ParseTemplate("{id}")
	if r, err := RenderTogether(table, key, []byte(`{"id":7,"tag":"a:b"}`), set, member); err != nil || r.Texts[0] != "tag:a:b" || r.Texts[1] != "7" || !r.FromRow {
		t.Errorf("a set and its member: %+v, %v", r, err)
	}
	text, _ := ParseTemplate("{title}|{gone}|{{{pk}}}")
	if got, err := text.Text(table, key, []byte(`{"title":"a:\"","gone":null}`)); err != nil || got != `a:"||{7}` {
		t.Errorf("text %q, %v", got, err)
	}
}
