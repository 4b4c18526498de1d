package elastic

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

func TestWhatATableHasOutgrown(t *testing.T) {
	t.Parallel()
	one := func(kind cdc.Kind, sqlType string) cdc.Table {
		return cdc.Table{Columns: []cdc.Column{{Name: "c", Kind: kind, SQLType: sqlType}}}
	}
	for _, c := range []struct {
		claim    string
		field    string
		table    cdc.Table
		override map[string]any
		want     string
	}{
		{"the type that it would get today", `{"type":"long"}`, one(cdc.KindInt, "int"), nil, "[]"},
		{"a wider integer", `{"type":"long"}`, one(cdc.KindInt, "bigint"), nil, "[]"},
		{"a number that became text", `{"type":"long"}`, one(cdc.KindKeyword, "varchar(9)"), nil, "[{c long keyword c varchar(9)}]"},
		{"a word that became text", `{"type":"keyword"}`, one(cdc.KindText, "text"), nil, "[{c keyword text c text}]"},
		{"an unsigned number on a build without the type", `{"type":"keyword"}`, one(cdc.KindUint, "bigint unsigned"), nil, "[]"},
		{"an override", `{"type":"text"}`, one(cdc.KindKeyword, "varchar(9)"), map[string]any{"c": map[string]any{"type": "text"}}, "[]"},
		{"an override that is new", `{"type":"keyword"}`, one(cdc.KindKeyword, "varchar(9)"), map[string]any{"c": map[string]any{"type": "text"}}, "[{c keyword text c varchar(9)}]"},
		{"fields inside", `{"properties":{}}`, one(cdc.KindJSON, "json"), map[string]any{"c": map[string]any{"properties": map[string]any{}}}, "[]"},
		{"fields inside that became nested", `{"properties":{}}`, one(cdc.KindJSON, "json"), map[string]any{"c": map[string]any{"type": "nested"}}, "[{c object nested c json}]"},
	} {
		got := fmt.Sprint(misfits(map[string]json.RawMessage{"c": json.RawMessage(c.field), "gone": json.RawMessage(`{"type":"long"}`)}, c.table, c.override))
		if got != c.want {
			t.Errorf("%s: got %s; want %s", c.claim, got, c.want)
		}
	}
}

// A column changes its type while rows flow: what still fits goes on, and what does
// not is held and not buried.
func TestAColumnOfAnotherTypeStopsItsTableWithTheCommandThatMendsIt(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	table := s.tables[sinktest.Questions.Name]
	table.Columns = append([]cdc.Column{}, table.Columns...)
	table.Columns[0] = cdc.Column{Name: "id", Kind: cdc.KindKeyword, SQLType: "varchar(20)"}
	s.tables[table.Name] = table
	sentence := fmt.Sprintf("the index %s-000001 does not fit sinktest.question any more: field id is long and column id varchar(20) needs keyword; run: lockstep rebuild search --table sinktest.question",
		s.alias(table.Name))
	out := verdictOf(t, s, s.Poison(t, 1, sinktest.Version(2)))
	if out.Verdict != sinks.Unavailable || !strings.HasPrefix(out.Sentence(), sentence) {
		t.Errorf("a row that the index refuses: %+v; want it held: %s", out, sentence)
	}
	// From now on, and after a restart, no row is written to an index of another shape.
	if out := verdictOf(t, s, sinktest.Upsert(2, 1, "x")); out.Verdict != sinks.Unavailable || !strings.HasPrefix(out.Sentence(), sentence) {
		t.Errorf("the next row: %+v; want it held: %s", out, sentence)
	}
	if out := verdictOf(t, s, cdc.Change{Table: sinktest.Tags.Name, Op: cdc.OpCreate, Version: 1, Key: []byte(`{"name":"a"}`), After: []byte(`{"name":"a"}`)}); out.Verdict != sinks.Applied {
		t.Errorf("another table: %+v; want applied", out)
	}
}

func TestAMappingThatIsConfiguredAnewIsTakenOrStopsTheTable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mapping map[string]any
		want    sinks.Verdict
	}{
		{map[string]any{"type": "keyword", "ignore_above": 100}, sinks.Applied},
		{map[string]any{"type": "keyword", "doc_values": false}, sinks.Unavailable},
	} {
		s := openStore(t, nil)
		if out := verdictOf(t, s, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
		name := sinktest.Questions.Name
		s.table(name).config.Mapping = map[string]any{"title": c.mapping}
		s.table(name).forget()
		out := verdictOf(t, s, sinktest.Upsert(1, 2, "y"))
		if out.Verdict != c.want || c.want == sinks.Unavailable && !strings.Contains(out.Sentence(), "doc_values") {
			t.Errorf("%v: %+v; want verdict %d", c.mapping, out, c.want)
		}
		if c.want == sinks.Applied {
			_, doc := s.ask(t, http.MethodGet, "/"+s.alias(name)+"/_mapping", "")
			if got := doc.Get(s.alias(name) + "-000001.mappings.properties.title.ignore_above").Int(); got != 100 {
				t.Errorf("ignore_above is %d; want 100", got)
			}
		}
	}
}
