package elastic

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

// The sinks of the tests log in with the role that docs/elasticsearch.md prints and have nothing
// else; what is not the sink's doing is asked for past it, where one may do anything.
const account, password, rolesHeading = "lockstep", "of the sink", "## The account"

var (
	scope testenv.Scope
	node  *testenv.ElasticNode
	start = sync.OnceValue(func() error {
		return scope.Run(func(t testing.TB) {
			node = testenv.NewSecureElastic(t, testenv.NewAuthority(t, "first authority"))
			node.Account(t, account, password, testenv.ElasticRole(t, "elasticsearch.md", rolesHeading))
		})
	})
)

func TestMain(m *testing.M) {
	code := m.Run()
	scope.Close()
	os.Exit(code)
}

// theNode is that of the package. It is started when the first test asks for it.
func theNode(t testing.TB) *testenv.ElasticNode {
	t.Helper()
	if err := start(); err != nil {
		t.Fatal(err)
	}
	return node
}

// store is a sink on the real server whose indices nobody else uses. Tables can
// be changed by the test.
type store struct {
	*Sink
	base   string
	prefix string
	tables map[cdc.TableName]cdc.Table
}

func openStore(t *testing.T, change func(*Config)) *store {
	t.Helper()
	node := theNode(t)
	s := &store{base: node.Plain, prefix: "shop_" + strings.ToLower(rand.Text()[:10]), tables: make(map[cdc.TableName]cdc.Table)}
	for _, table := range sinktest.Tables {
		s.tables[table.Name] = table
	}
	cfg := DefaultConfig()
	cfg.Addresses, cfg.CAFile, cfg.CertFile, cfg.KeyFile = []string{node.URL}, node.CA, node.Cert, node.Key
	cfg.Username, cfg.Password = account, password
	cfg.Replicas = 0
	cfg.Timeout = 5 * time.Minute // a machine with other work
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Check(); err != nil {
		t.Fatal(err)
	}
	var err error
	s.Sink, err = Open("search", cfg, func(n cdc.TableName) (TableConfig, bool) {
		return TableConfig{Index: s.prefix + "_{db}_{table}"}, n.DB == "sinktest"
	}, func(_ context.Context, n cdc.TableName) (cdc.Table, error) {
		table, ok := s.tables[n]
		if !ok {
			return table, fmt.Errorf("table %s: %w", n, cdc.ErrNoTable)
		}
		return table, nil
	}, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, table := range s.tables {
			alias := s.alias(table.Name)
			s.ask(t, http.MethodDelete, "/"+alias+"-000001", "")
			s.ask(t, http.MethodDelete, "/"+alias, "")
		}
		s.Close()
	})
	return s
}

func (s *store) alias(n cdc.TableName) string { return s.prefix + "_" + n.DB + "_" + n.Table }

// ask sends a request past the sink.
func (s *store) ask(t testing.TB, method, path, body string) (int, gjson.Result) {
	t.Helper()
	req, err := http.NewRequest(method, s.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, gjson.ParseBytes(text)
}

func (s *store) Read(t testing.TB, table cdc.TableName, key []byte) (map[string]string, cdc.Version, bool) {
	id, err := cdc.KeyText(key)
	if err != nil {
		t.Fatal(err)
	}
	// "." and ".." would be taken for steps of the path.
	path := "/" + s.alias(table) + "/_doc/" + strings.ReplaceAll(url.PathEscape(id), ".", "%2E")
	status, doc := s.ask(t, http.MethodGet, path, "")
	for range 1000 {
		if status != http.StatusServiceUnavailable { // the index was made this moment
			break
		}
		status, doc = s.ask(t, http.MethodGet, path, "")
	}
	if status == http.StatusNotFound {
		return nil, 0, false
	}
	if doc.Get("_source." + guardField + ".deleted").Bool() {
		return nil, 0, false
	}
	if status != http.StatusOK {
		t.Fatalf("read %s: %d %s", key, status, doc.Raw)
	}
	fields := make(map[string]string)
	doc.Get("_source").ForEach(func(name, value gjson.Result) bool {
		if name.Str == guardField {
			if inside := value.Get("v").Uint(); inside != doc.Get("_version").Uint() {
				t.Errorf("document %s says version %d inside and has %s", key, inside, doc.Get("_version").Raw)
			}
			return true
		}
		switch value.Type {
		case gjson.Null:
		case gjson.String:
			fields[name.Str] = value.Str
		default:
			fields[name.Str] = value.Raw
		}
		return true
	})
	return fields, cdc.Version(doc.Get("_version").Uint()), true
}

func (s *store) Poison(_ testing.TB, id int, version cdc.Version) cdc.Change {
	c := sinktest.Upsert(id, 1, "")
	c.Version = version
	c.After = []byte(`{"id":"no number"}`)
	return c
}

func TestElasticIsASink(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) sinktest.Store { return openStore(t, nil) })
}

func TestElasticWithTombstonesIsASink(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) sinktest.Store {
		return openStore(t, func(c *Config) { c.Deletes = Tombstone })
	})
}

func verdictOf(t *testing.T, s *store, c cdc.Change) sinks.Outcome {
	t.Helper()
	out := s.Apply(t.Context(), []cdc.Change{c})
	if len(out) != 1 {
		t.Fatalf("one change got %d answers", len(out))
	}
	return out[0]
}

func TestEveryKindOfColumnIsTakenWithItsExtremesAndFoundBySearch(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	name := cdc.TableName{DB: "sinktest", Table: "kinds"}
	table := cdc.Table{Name: name, Key: []string{"id"}, Columns: []cdc.Column{{Name: "id", Kind: cdc.KindInt}}}
	values := map[cdc.Kind][]string{
		cdc.KindInt:     {"-9223372036854775808", "9223372036854775807", "0"},
		cdc.KindUint:    {"18446744073709551615", "0", "9223372036854775808"},
		cdc.KindFloat:   {"3.4028235e+38", "-1.5", "0"},
		cdc.KindDouble:  {"1.7976931348623157e+308", "5e-324", "-0.1"},
		cdc.KindDecimal: {`"99999999999999999999999999999999999.999999999999999999999999999999"`, `"-0.01"`, `"12.30"`},
		cdc.KindKeyword: {`"word"`, `""`, `"838:59:59.000000"`, `"` + strings.Repeat("世", 20_000) + `"`},
		cdc.KindText:    {`"some words"`, `"` + strings.Repeat("x", 1<<20) + `"`},
		cdc.KindSet:     {`["a","b"]`, `[]`},
		cdc.KindDate:    {`"2026-11-22"`, `"0001-01-01"`, `"9999-12-31"`, `"0000-01-01"`},
		cdc.KindDateTime: {`"2026-11-22T08:15:30.123456"`, `"1000-01-01T00:00:00"`, `"9999-12-31T23:59:59.999999"`,
			`"2026-11-22T08:15:30.1"`},
		cdc.KindTimestamp: {`"2026-11-22T08:15:30.123456Z"`, `"1970-01-01T00:00:01Z"`, `"2038-01-19T03:14:07.999999Z"`},
		cdc.KindBytes:     {`"AAEC/w=="`, `""`, `"` + strings.Repeat("AAAA", 50_000) + `"`},
		cdc.KindBool:      {"true", "false"},
		cdc.KindJSON:      {`{"a":{"b":[1,"x",null,true,1.0]}}`, `{}`, `{"a":"` + strings.Repeat("y", 40_000) + `"}`},
	}
	kinds := 0
	for kind := range values {
		table.Columns = append(table.Columns, cdc.Column{Name: "c_" + string(kind), Kind: kind})
		kinds++
	}
	s.tables[name] = table
	id := 0
	for kind, list := range values {
		for _, value := range append(list, "null") {
			id++
			c := cdc.Change{Table: name, Op: cdc.OpRead, Version: sinktest.Version(1), Key: sinktest.Key(id),
				After: fmt.Appendf(nil, `{"id":%d,"c_%s":%s}`, id, kind, value)}
			if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
				t.Errorf("%s %.60s: verdict %d, %.300s", kind, value, out.Verdict, out.Reason)
				continue
			}
			status, doc := s.ask(t, http.MethodGet, fmt.Sprintf("/%s/_source/%d", s.alias(name), id), "")
			if got := doc.Get("c_" + string(kind)).Raw; status != http.StatusOK || got != value {
				t.Errorf("%s: stored %.60s as %.60s", kind, value, got)
			}
		}
	}
	s.ask(t, http.MethodPost, "/"+s.alias(name)+"/_refresh", "")
	for query, want := range map[string]int64{
		`{"term":{"c_uint":18446744073709551615}}`:                              1,
		`{"term":{"c_int":9223372036854775807}}`:                                1,
		`{"term":{"c_decimal":12.3}}`:                                           1,
		`{"term":{"c_set":"b"}}`:                                                1,
		`{"term":{"c_json.a.b":"x"}}`:                                           1,
		`{"match":{"c_text":"words"}}`:                                          1,
		`{"range":{"c_date":{"gte":"9999-01-01"}}}`:                             1,
		`{"range":{"c_timestamp":{"gte":"2026-11-22","lt":"2026-11-23"}}}`:      1,
		`{"range":{"c_datetime":{"gt":"2026-11-22T08:15:30.122","lt":"2027"}}}`: 1,
		fmt.Sprintf(`{"term":{"_lockstep.v":%d}}`, sinktest.Version(1)):         int64(id),
	} {
		_, res := s.ask(t, http.MethodPost, "/"+s.alias(name)+"/_count", `{"query":`+query+`}`)
		if got := res.Get("count"); got.Int() != want || !got.Exists() {
			t.Errorf("%s found %s rows; want %d", query, res.Raw, want)
		}
	}
}

func TestAColumnAddedToTheTableIsAddedToTheMappingByItsFirstRow(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "before")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	row := sinktest.Upsert(1, 2, "after")
	row.After = []byte(`{"id":1,"title":"after","level":7}`)
	if out := verdictOf(t, s, row); out.Verdict != sinks.Transient || out.Class != sinks.ClassMapping {
		t.Fatalf("a column that the table does not have: %+v; want transient", out)
	}
	newer := sinktest.Upsert(1, 5, "newer")
	newer.Key = sinktest.Key(2)
	older := row
	older.Key = newer.Key
	if out := verdictOf(t, s, newer); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	if out := verdictOf(t, s, older); out.Verdict != sinks.Stale {
		t.Fatalf("such a column in a row that is newer already: %+v; want stale", out)
	}
	table := s.tables[row.Table]
	table.Columns = append(append([]cdc.Column{}, table.Columns...), cdc.Column{Name: "level", Kind: cdc.KindInt})
	s.tables[row.Table] = table
	if out := verdictOf(t, s, row); out.Verdict != sinks.Applied {
		t.Fatalf("a column that the table has got: %+v; want applied", out)
	}
	_, doc := s.ask(t, http.MethodGet, "/"+s.alias(row.Table)+"/_mapping", "")
	if got := doc.Get(s.alias(row.Table) + "-000001.mappings.properties.level.type").Str; got != "long" {
		t.Errorf("level is mapped as %q; want long", got)
	}
}

func TestARowWaitsWhileTheTableCannotBeLookedAt(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "before")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	s.describe = func(context.Context, cdc.TableName) (cdc.Table, error) {
		return cdc.Table{}, errors.New("MySQL is away")
	}
	row := sinktest.Upsert(1, 2, "after")
	row.After = []byte(`{"id":1,"level":7}`)
	if out := verdictOf(t, s, row); out.Verdict != sinks.Unavailable {
		t.Fatalf("%+v; want unavailable, as the column may be new", out)
	}
}

func TestARestartFindsTheIndexWithoutTheSource(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "one")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	s.table(sinktest.Questions.Name).forget()
	s.describe = func(context.Context, cdc.TableName) (cdc.Table, error) {
		return cdc.Table{}, errors.New("MySQL is away")
	}
	if out := verdictOf(t, s, sinktest.Upsert(1, 2, "two")); out.Verdict != sinks.Applied {
		t.Fatalf("%+v; want applied", out)
	}
}

func TestATableThatIsGoneAndHasNoIndexIsRefusedAndOneThatHasIsServed(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	gone := sinktest.Upsert(1, 1, "x")
	table := s.tables[gone.Table]
	delete(s.tables, gone.Table)
	if out := verdictOf(t, s, gone); out.Verdict != sinks.Transient || out.Class != sinks.ClassNoTable {
		t.Fatalf("%+v; want transient no_table", out)
	}
	s.tables[gone.Table] = table
	if out := verdictOf(t, s, gone); out.Verdict != sinks.Applied {
		t.Fatalf("%+v; want applied once the table is there", out)
	}
	s.table(gone.Table).forget()
	delete(s.tables, gone.Table)
	defer func() { s.tables[gone.Table] = table }() // for the clean-up
	if out := verdictOf(t, s, sinktest.Upsert(1, 2, "x")); out.Verdict != sinks.Applied {
		t.Fatalf("%+v; want applied to the index that is there", out)
	}
}

func TestAnIndexDeletedUnderTheSinkIsMadeAgain(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "one")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	s.ask(t, http.MethodDelete, "/"+s.alias(sinktest.Questions.Name)+"-000001", "")
	for _, c := range []cdc.Change{sinktest.Delete(2, 1), sinktest.Upsert(1, 2, "two")} {
		if out := verdictOf(t, s, c); out.Verdict != sinks.Unavailable && out.Verdict != sinks.Applied {
			t.Fatalf("%+v; want the change held", out)
		}
		if out := verdictOf(t, s, c); out.Verdict != sinks.Applied && out.Verdict != sinks.Duplicate {
			t.Fatalf("%+v; want it applied to the new index", out)
		}
	}
	_, doc := s.ask(t, http.MethodGet, "/_alias/"+s.alias(sinktest.Questions.Name), "")
	if !doc.Get(s.alias(sinktest.Questions.Name) + "-000001").Exists() {
		t.Errorf("the alias is not back: %s", doc.Raw)
	}
}

func TestWhatCannotHoldRowsUnderAGuardIsRefusedWithASentence(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ claim, path, body, sentence string }{
		{"a concrete index", "/NAME", `{}`, "not an alias"},
		{"a pipeline that is not there", "/NAME-000001", `{"aliases":{"NAME":{}},"settings":{"index.default_pipeline":"nobody"}}`, "ingest pipeline nobody, which is not there"},
		{"a second index", "/NAME-000002", `{"aliases":{"NAME":{}}}`, "covers 2 indices"},
		{"a closed door", "/NAME-000001", `{"aliases":{"NAME":{"is_write_index":false}}}`, "is_write_index"},
		{"a routing", "/NAME-000001", `{"aliases":{"NAME":{"routing":"1"}}}`, "routing"},
		{"a lost alias", "/NAME-000001", `{}`, "is there and its alias NAME is not; put it back with POST /_aliases"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			s := openStore(t, nil)
			alias := s.alias(sinktest.Questions.Name)
			put := func(path, body string) {
				if status, res := s.ask(t, http.MethodPut, strings.ReplaceAll(path, "NAME", alias), strings.ReplaceAll(body, "NAME", alias)); status != http.StatusOK {
					t.Fatal(res.Raw)
				}
			}
			if c.claim == "a second index" {
				put("/NAME-000001", c.body)
				t.Cleanup(func() { s.ask(t, http.MethodDelete, "/"+alias+"-000002", "") })
			}
			put(c.path, c.body)
			out := verdictOf(t, s, sinktest.Upsert(1, 1, "x"))
			if out.Verdict != sinks.Unavailable || !out.Unasked || !strings.Contains(out.Sentence(), strings.ReplaceAll(c.sentence, "NAME", alias)) {
				t.Errorf("%+v; want unavailable because of %q", out, c.sentence)
			}
		})
	}
}

func TestTwoTablesMayNotShareAnIndex(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	s.lookup = func(cdc.TableName) (TableConfig, bool) { return TableConfig{Index: s.prefix + "_{db}_question"}, true }
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	c := sinktest.Upsert(1, 1, "x")
	c.Table = sinktest.Tags.Name
	if out := verdictOf(t, s, c); out.Verdict != sinks.Unavailable || !strings.Contains(out.Sentence(), "both go to the index") {
		t.Fatalf("%+v; want it refused", out)
	}
}

func TestAnIdThatWouldSpoilTheWholeBulkIsPoisonOnItsOwn(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	key := func(name string) []byte { return append(cdc.AppendString([]byte(`{"name":`), name), '}') }
	var changes []cdc.Change
	for _, name := range []string{"a", "", strings.Repeat("k", 512), strings.Repeat("k", 513), strings.Repeat("世", 171), "z"} {
		changes = append(changes, cdc.Change{Table: sinktest.Tags.Name, Op: cdc.OpCreate, Version: sinktest.Version(1), Key: key(name), After: key(name)})
	}
	for i, out := range s.Apply(t.Context(), changes) {
		want := sinks.Applied
		if i == 1 || i == 3 || i == 4 {
			want = sinks.Poison
		}
		if out.Verdict != want || want == sinks.Poison && out.Class != sinks.ClassKey {
			t.Errorf("change %d: %+v; want verdict %d", i, out, want)
		}
	}
}

func TestADocumentOverTheLimitIsPoisonOnItsOwn(t *testing.T) {
	t.Parallel()
	s := openStore(t, func(c *Config) { c.MaxDocumentBytes = 2000 })
	large := sinktest.Upsert(2, 1, strings.Repeat("x", 2000))
	out := s.Apply(t.Context(), []cdc.Change{sinktest.Upsert(1, 1, "a"), large, sinktest.Upsert(3, 1, "b")})
	if out[0].Verdict != sinks.Applied || out[1].Verdict != sinks.Poison || out[1].Class != sinks.ClassTooLarge || out[2].Verdict != sinks.Applied {
		t.Errorf("%+v; want applied, too_large, applied", out)
	}
}

// The server reads a document before it compares versions, so it refuses an old
// state in the same words as a new one.
func TestARefusedChangeThatANewerOneHasOvertakenIsStale(t *testing.T) {
	t.Parallel()
	s := openStore(t, func(c *Config) { c.MaxDocumentBytes = 2000 })
	if out := verdictOf(t, s, sinktest.Upsert(1, 5, "mended")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	for version, want := range map[int]sinks.Verdict{4: sinks.Stale, 5: sinks.Duplicate, 6: sinks.Poison} {
		if out := verdictOf(t, s, s.Poison(t, 1, sinktest.Version(version))); out.Verdict != want {
			t.Errorf("refused by the mapping at version %d: %+v; want verdict %d", version, out, want)
		}
		if out := verdictOf(t, s, sinktest.Upsert(1, version, strings.Repeat("x", 2000))); out.Verdict != want {
			t.Errorf("too large at version %d: %+v; want verdict %d", version, out, want)
		}
	}
	if out := verdictOf(t, s, s.Poison(t, 2, sinktest.Version(1))); out.Verdict != sinks.Poison {
		t.Errorf("refused and never seen: %+v; want poison", out)
	}
}

func TestAReadOnlyIndexHoldsAndDoesNotBury(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "one")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	settings := "/" + s.alias(sinktest.Questions.Name) + "/_settings"
	s.ask(t, http.MethodPut, settings, `{"index.blocks.read_only_allow_delete":true}`)
	if out := verdictOf(t, s, sinktest.Upsert(1, 2, "two")); out.Verdict != sinks.Unavailable {
		t.Errorf("%+v; want unavailable", out)
	}
	s.ask(t, http.MethodPut, settings, `{"index.blocks.read_only_allow_delete":null}`)
	if out := verdictOf(t, s, sinktest.Upsert(1, 2, "two")); out.Verdict != sinks.Applied {
		t.Errorf("%+v; want applied", out)
	}
}

func TestTheClusterIsProbedAndAnEmptyAliasIsKnown(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	version, err := s.Probe(t.Context())
	if err != nil || !strings.Contains(version, ".") {
		t.Errorf("version %q, error %v", version, err)
	}
	large := openStore(t, func(c *Config) { c.MaxDocumentBytes = 200 << 20 })
	_, err = large.Probe(t.Context())
	if unfit, ok := errors.AsType[sinks.Unfit](err); !ok || !strings.Contains(unfit.Problem, "http.max_content_length is 104857600 bytes") {
		t.Errorf("with documents of 200 MB: %v", err)
	}
	empty := func() bool {
		e, err := s.Empty(t.Context(), s.alias(sinktest.Questions.Name))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	if !empty() {
		t.Error("an alias that does not exist is not empty")
	}
	verdictOf(t, s, sinktest.Delete(1, 1))
	if empty() {
		t.Error("an index that remembers a deleted document is empty")
	}
}

func TestTheIndexIsMadeAsDeclared(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	s.lookup = func(cdc.TableName) (TableConfig, bool) {
		return TableConfig{Index: s.prefix + "_{db}_{table}", Shards: 2, Mapping: map[string]any{"title": map[string]any{"type": "text"}}}, true
	}
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	res, err := s.do(t.Context(), esapi.IndicesGetRequest{Index: []string{s.alias(sinktest.Questions.Name)}})
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(res.body, &all); err != nil {
		t.Fatal(err)
	}
	doc := gjson.ParseBytes(all[s.alias(sinktest.Questions.Name)+"-000001"])
	for path, want := range map[string]string{
		"settings.index.number_of_shards": "2", "settings.index.number_of_replicas": "0", "settings.index.gc_deletes": "1h",
		"settings.index.refresh_interval": "1000ms", "mappings.dynamic": "strict", "mappings.properties.title.type": "text",
		"mappings.properties._lockstep.properties.v.type": "long",
	} {
		if got := doc.Get(path).String(); got != want {
			t.Errorf("%s is %q; want %q", path, got, want)
		}
	}
}
