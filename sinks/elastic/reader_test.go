package elastic

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

// What the mapping says of a document is known before it is written, through the alias,
// with the fields that would be added first; and nothing of it is done.
func TestTheMappingIsAskedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	name := cdc.TableName{DB: "sinktest", Table: "kinds"}
	table := cdc.Table{Name: name, Key: []string{"id"}, Columns: []cdc.Column{
		{Name: "id", Kind: cdc.KindInt}, {Name: "at", Kind: cdc.KindDate}, {Name: "word", Kind: cdc.KindKeyword}, {Name: "n", Kind: cdc.KindUint}, {Name: "data", Kind: cdc.KindBytes},
	}}
	s.tables[name] = table
	n := 0
	change := func(row string) cdc.Change {
		n++
		return cdc.Change{Table: name, Op: cdc.OpCreate, Version: sinktest.Version(n), Key: sinktest.Key(n), After: []byte(row)}
	}
	first := change(`{"id":1}`)
	if got := s.Would(t.Context(), []cdc.Change{first})[0]; got.Verdict != sinks.Applied || got.Reason != sinks.CannotAsk+", because its index is not made yet" {
		t.Errorf("without an index: %+v", got)
	}
	if status, _ := s.ask(t, http.MethodGet, "/"+s.alias(name), ""); status != http.StatusNotFound {
		t.Errorf("asking made an index: status %d", status)
	}
	if got := verdictOf(t, s, first); got.Verdict != sinks.Applied {
		t.Fatal(got)
	}
	table.Columns = append(table.Columns, cdc.Column{Name: "later", Kind: cdc.KindInt})
	s.tables[name] = table
	for _, x := range []struct {
		claim, row string
		want       sinks.Verdict
	}{
		{"a column that is new", `{"id":8,"later":1}`, sinks.Applied},
		{"a row that fits", `{"id":2,"at":"2026-11-26","word":"w","n":18446744073709551615,"data":"AAE="}`, sinks.Applied},
		{"arrays and NULL", `{"id":3,"at":["2026-11-26"],"word":["a","b"],"n":null}`, sinks.Applied},
		{"a word above ignore_above", `{"id":4,"word":"` + strings.Repeat("x", 40_000) + `"}`, sinks.Applied},
		{"a number that is none", `{"id":"five"}`, sinks.Poison},
		{"a date that is none", `{"id":6,"at":"2026-13-45"}`, sinks.Poison},
		{"an object for a number", `{"id":7,"n":{"a":1}}`, sinks.Poison},
		{"a new column with a value that it does not take", `{"id":9,"later":"x"}`, sinks.Poison},
		{"a column that the table has no more", `{"id":10,"former":1}`, sinks.Transient},
	} {
		c := change(x.row)
		_, before := s.ask(t, http.MethodGet, "/"+s.alias(name)+"/_mapping", "")
		would := s.Would(t.Context(), []cdc.Change{c})[0]
		if would.Verdict != x.want || (x.want == sinks.Applied) != (would.Reason == "") {
			t.Errorf("%s: %+v", x.claim, would.Outcome)
		}
		if _, now := s.ask(t, http.MethodGet, "/"+s.alias(name)+"/_mapping", ""); now.Raw != before.Raw {
			t.Errorf("%s: asking has changed the mapping", x.claim)
		}
		got := verdictOf(t, s, c)
		if got.Verdict != would.Verdict || got.Class != would.Class || x.want != sinks.Applied && !strings.Contains(got.Reason, would.Reason[strings.Index(would.Reason, "]"):][:20]) {
			t.Errorf("%s: would get %+v and got %+v", x.claim, would.Outcome, got)
		}
	}
}

// A mapping that is configured anew is asked about as the next change would put it. Whether it
// can be put nobody knows before, and that is said.
func TestAMappingThatIsConfiguredAnewIsAskedBeforeItIsPut(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		mapping     map[string]any
		would, gets sinks.Verdict
		reason      string // a part of it
	}{
		{map[string]any{"type": "long"}, sinks.Poison, sinks.Poison, "failed to parse field [n]"},
		{map[string]any{"type": "long", "coerce": false}, sinks.Poison, sinks.Poison, "failed to parse field [n]"},
		{map[string]any{"type": "long", "ignore_malformed": true}, sinks.Applied, sinks.Applied, sinks.CannotAsk + ", because the configured mapping has other words"},
		{map[string]any{"type": "long", "ignore_malformed": true, "doc_values": false}, sinks.Applied, sinks.Unavailable, sinks.CannotAsk + ", because the configured mapping has other words"},
	} {
		s := openStore(t, nil)
		name := cdc.TableName{DB: "sinktest", Table: "numbers"}
		s.tables[name] = cdc.Table{Name: name, Key: []string{"id"}, Columns: []cdc.Column{{Name: "id", Kind: cdc.KindInt}, {Name: "n", Kind: cdc.KindInt}}}
		row := cdc.Change{Table: name, Op: cdc.OpCreate, Version: sinktest.Version(1), Key: sinktest.Key(1), After: []byte(`{"id":1,"n":1}`)}
		if got := verdictOf(t, s, row); got.Verdict != sinks.Applied {
			t.Fatal(got)
		}
		s.table(name).config.Mapping = map[string]any{"n": x.mapping}
		s.table(name).forget()
		row.Version, row.After = sinktest.Version(2), []byte(`{"id":1,"n":"one"}`)
		_, before := s.ask(t, http.MethodGet, "/"+s.alias(name)+"/_mapping", "")
		if would := s.Would(t.Context(), []cdc.Change{row})[0]; would.Verdict != x.would || !strings.Contains(would.Reason, x.reason) {
			t.Errorf("%v: %+v; want verdict %d: %s", x.mapping, would.Outcome, x.would, x.reason)
		}
		if _, now := s.ask(t, http.MethodGet, "/"+s.alias(name)+"/_mapping", ""); now.Raw != before.Raw {
			t.Errorf("%v: asking has changed the mapping", x.mapping)
		}
		if got := verdictOf(t, s, row); got.Verdict != x.gets {
			t.Errorf("%v: got %+v; want verdict %d", x.mapping, got, x.gets)
		}
	}
}

func TestRoutedRowsAreReadWhereTheyAre(t *testing.T) {
	t.Parallel()
	s := openRouted(t, nil)
	c := cdc.Change{Table: tenants.Name, Op: cdc.OpCreate, Version: sinktest.Version(1), Key: sinktest.Key(1), After: owned(1, "a")}
	if got := verdictOf(t, s, c); got.Verdict != sinks.Applied {
		t.Fatal(got)
	}
	got := s.Stored(t.Context(), []cdc.Change{c}, 1<<20)[0]
	if got.Version != c.Version || string(got.Document) != string(c.After) || got.Place["routing"] != "a" || got.Place["_id"] != "1" || got.Place["index"] != s.alias(tenants.Name)+"-000001" {
		t.Errorf("%+v", got)
	}
	if would := s.Would(t.Context(), []cdc.Change{c})[0]; would.Verdict != sinks.Duplicate {
		t.Errorf("%+v", would)
	}
	s.ask(t, http.MethodPost, "/"+s.alias(tenants.Name)+"/_refresh", "")
	bare := cdc.Change{Table: tenants.Name, Op: cdc.OpDelete, Version: sinktest.Version(2), Key: sinktest.Key(1)}
	if got := s.Stored(t.Context(), []cdc.Change{bare}, 1<<20)[0]; got.Version != c.Version {
		t.Errorf("by its key alone: %+v", got)
	}
	// A node that starts answers before it has its shards.
	index := "/" + s.alias(tenants.Name) + "-000001"
	s.ask(t, http.MethodDelete, index, "")
	if status, said := s.ask(t, http.MethodPut, index+"?wait_for_active_shards=0", `{"settings":{"index.routing.allocation.require._name":"nobody"},"aliases":{"`+s.alias(tenants.Name)+`":{}}}`); status != http.StatusOK {
		t.Fatalf("%d %s", status, said)
	}
	if got := s.Stored(t.Context(), []cdc.Change{c}, 1<<20)[0]; !got.Away || got.Problem == "" {
		t.Errorf("without a shard: %+v", got)
	}
}

// A cluster that has no simulation, or one that does not look at mappings, is not believed.
func TestAClusterThatDoesNotTellIsNotGuessedAt(t *testing.T) {
	t.Parallel()
	target, err := url.Parse(theNode(t).Plain)
	if err != nil {
		t.Fatal(err)
	}
	for what, answer := range map[string]string{
		"it has no such request":       `{"error":{"type":"illegal_argument_exception","reason":"no handler"},"status":400}`,
		"it does not look at mappings": `{"docs":[{"doc":{"_id":"1"}},{"doc":{"_id":"canary"}}]}`,
	} {
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/_simulate") {
				w.Header().Set("X-Elastic-Product", "Elasticsearch")
				w.Header().Set("Content-Type", "application/json")
				if strings.Contains(answer, "error") {
					w.WriteHeader(http.StatusBadRequest)
				}
				_, _ = io.WriteString(w, answer)
				return
			}
			httputil.NewSingleHostReverseProxy(target).ServeHTTP(w, r)
		}))
		defer front.Close()
		s := openStore(t, func(c *Config) { c.Addresses = []string{front.URL} })
		if got := verdictOf(t, s, sinktest.Upsert(1, 1, "one")); got.Verdict != sinks.Applied {
			t.Fatal(got)
		}
		c := sinktest.Upsert(1, 2, "")
		c.After = []byte(`{"id":"no number"}`)
		if got := s.Would(t.Context(), []cdc.Change{c})[0]; got.Verdict != sinks.Applied || !strings.HasPrefix(got.Reason, sinks.CannotAsk) {
			t.Errorf("%s: %+v", what, got.Outcome)
		}
		if got := s.Would(t.Context(), []cdc.Change{sinktest.Upsert(1, 1, "one")})[0]; got.Verdict != sinks.Duplicate {
			t.Errorf("%s: versions: %+v", what, got.Outcome)
		}
	}
}
