package elastic

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

// tenants is a table whose rows belong to somebody and may be given away.
var tenants = cdc.Table{
	Name:    cdc.TableName{DB: "sinktest", Table: "tenants"},
	Columns: []cdc.Column{{Name: "id", Kind: cdc.KindInt}, {Name: "tenant", Kind: cdc.KindKeyword, Nullable: true}},
	Key:     []string{"id"},
}

func owned(id int, tenant string) []byte {
	if tenant == "" {
		return fmt.Appendf(nil, `{"id":%d,"tenant":null}`, id)
	}
	return fmt.Appendf(nil, `{"id":%d,"tenant":%q}`, id, tenant)
}

func openRouted(t *testing.T, change func(*Config)) *store {
	s := openStore(t, func(c *Config) {
		c.Shards = 3
		if change != nil {
			change(c)
		}
	})
	s.tables[tenants.Name] = tenants
	s.lookup = func(cdc.TableName) (TableConfig, bool) {
		return TableConfig{Index: s.prefix + "_{db}_{table}", Routing: "tenant", RoutingOfNull: "nobody"}, true
	}
	return s
}

func TestTheRoutingIsReadFromTheImages(t *testing.T) {
	t.Parallel()
	c := TableConfig{Routing: "tenant", RoutingOfNull: "nobody"}
	key := []byte(`{"id":1}`)
	for _, x := range []struct {
		claim  string
		change cdc.Change
		want   place
		poison bool
	}{
		{"a create", cdc.Change{Op: 'c', Key: key, After: owned(1, "a")}, place{routing: "a"}, false},
		{"a NULL", cdc.Change{Op: 'c', Key: key, After: owned(1, "")}, place{routing: "nobody"}, false},
		{"a number", cdc.Change{Op: 'c', Key: key, After: []byte(`{"tenant":12345678901234567890}`)}, place{routing: "12345678901234567890"}, false},
		{"an update that stays", cdc.Change{Op: 'u', Key: key, Before: owned(1, "a"), After: owned(1, "a")}, place{routing: "a"}, false},
		{"an update that moves", cdc.Change{Op: 'u', Key: key, Before: owned(1, "a"), After: owned(1, "b")}, place{routing: "b", left: []string{"a"}}, false},
		{"one that stands for others", cdc.Change{Op: 'u', Key: key, Before: owned(1, "b"), After: owned(1, "a"), Left: [][]byte{owned(1, ""), owned(1, "a"), owned(1, "b")}},
			place{routing: "a", left: []string{"b", "nobody"}}, false},
		{"a delete", cdc.Change{Op: 'd', Key: key, Before: owned(1, "a"), Left: [][]byte{owned(1, "c")}}, place{routing: "a", left: []string{"c"}}, false},
		{"a delete that does not tell", cdc.Change{Op: 'd', Key: key}, place{asked: true}, false},
		{"a row read again", cdc.Change{Op: 'r', Key: key, After: owned(1, "a")}, place{routing: "a", asked: true}, false},
		{"a row without the column", cdc.Change{Op: 'c', Key: key, After: []byte(`{"id":1}`)}, place{}, true},
		{"a key that tells", cdc.Change{Op: 'd', Key: []byte(`{"tenant":"a","id":1}`)}, place{routing: "a"}, false},
	} {
		got := c.place(&x.change)
		no := got.no
		if !x.poison && (no != nil || !reflect.DeepEqual(got, x.want)) || x.poison && (no == nil || no.Verdict != sinks.Poison || no.Class != sinks.ClassKey) {
			t.Errorf("%s: %+v, %+v; want %+v", x.claim, got, no, x.want)
		}
	}
}

func TestARoutingColumnThatWillNotDoIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]TableConfig{
		"":                     {Routing: "id"},
		"has no column region": {Routing: "region"},
		"column tenant of sinktest.tenants may be NULL": {Routing: "tenant"},
	} {
		if err := c.CheckTable(tenants); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%+v: %v; want %q", c, err, want)
		}
	}
	s := openRouted(t, nil)
	s.lookup = func(cdc.TableName) (TableConfig, bool) {
		return TableConfig{Index: s.prefix + "_{db}_{table}", Routing: "region"}, true
	}
	c := cdc.Change{Table: tenants.Name, Op: 'c', Version: 1, Key: sinktest.Key(1), After: owned(1, "a")}
	if out := verdictOf(t, s, c); out.Verdict != sinks.Unavailable || !strings.Contains(out.Sentence(), "has no column region") {
		t.Errorf("%+v; want the table held", out)
	}
}

func TestAnIndexIsNotRoutedAnewWithoutARebuild(t *testing.T) {
	t.Parallel()
	s := openRouted(t, nil)
	c := cdc.Change{Table: tenants.Name, Op: 'c', Version: 1, Key: sinktest.Key(1), After: owned(1, "a")}
	if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	s.lookup = func(cdc.TableName) (TableConfig, bool) {
		return TableConfig{Index: s.prefix + "_{db}_{table}"}, true
	}
	s.restart(t)
	if out := verdictOf(t, s, c); out.Verdict != sinks.Unavailable || !strings.Contains(out.Sentence(), "are routed by tenant, and those of sinktest.tenants are to be routed by _id; run: lockstep rebuild search --table sinktest.tenants") {
		t.Errorf("%+v; want the table held", out)
	}
}

// Rows wander between routings, and their changes come shuffled, again, and folded
// into one another as a worker does it. At the end each row is in its last place and
// in no other.
func TestARowThatWandersIsInItsLastPlaceAndInNoOther(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]func(*Config){"hard": nil, "tombstone": tombstones} {
		t.Run(name, func(t *testing.T) {
			s := openRouted(t, config)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, seed))
			const rows, steps = 12, 15
			var history []cdc.Change
			last := map[int]cdc.Change{}
			for id := range rows {
				var now []byte
				for v := 1; v <= steps; v++ {
					c := cdc.Change{Table: tenants.Name, Version: sinktest.Version(10 + v), Key: sinktest.Key(id), Before: now}
					tenant := []string{"", "a", "b", "c", "d", "e", "f"}[random.IntN(7)]
					switch {
					case now == nil:
						c.Op, c.After = 'c', owned(id, tenant)
					case random.IntN(5) == 0:
						c.Op = 'd'
					default:
						c.Op, c.After = 'u', owned(id, tenant)
					}
					now = c.After
					history = append(history, c)
					last[id] = c
				}
			}
			deliver := func(list []cdc.Change) {
				for len(list) > 0 {
					n := min(1+random.IntN(40), len(list))
					newest := map[string]cdc.Change{}
					for _, c := range list[:n] {
						key := string(c.Key)
						other, ok := newest[key]
						if ok && other.Version > c.Version {
							c, other = other, c
						}
						if ok && other.Version != c.Version {
							c.Left = append(append(slices.Clone(c.Left), other.Left...), other.Before)
						}
						newest[key] = c
					}
					var batch []cdc.Change
					for _, c := range newest {
						batch = append(batch, c)
					}
					for i, out := range s.Apply(t.Context(), batch) {
						if out.Verdict != sinks.Applied && out.Verdict != sinks.Stale && out.Verdict != sinks.Duplicate {
							t.Fatalf("%s at %d: %+v", batch[i].Key, batch[i].Version.Seq(), out)
						}
					}
					list = list[n:]
				}
			}
			for range 3 {
				random.Shuffle(len(history), func(i, j int) { history[i], history[j] = history[j], history[i] })
				deliver(history)
			}
			check := func(when string) {
				t.Helper()
				s.ask(t, http.MethodPost, "/"+s.alias(tenants.Name)+"/_refresh", "")
				_, res := s.ask(t, http.MethodGet, "/"+s.alias(tenants.Name)+"/_search?size=1000&version=true", "")
				var got, want []string
				for _, hit := range res.Get("hits.hits").Array() {
					got = append(got, fmt.Sprint(hit.Get("_id").Str, " under ", hit.Get("_routing").Str, " at ", hit.Get("_version").Uint()))
				}
				for id, c := range last {
					if c.After != nil {
						routing, _ := TableConfig{Routing: "tenant", RoutingOfNull: "nobody"}.route(c.After)
						want = append(want, fmt.Sprint(id, " under ", routing, " at ", uint64(c.Version)))
					}
				}
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Fatalf("%s\ngot  %q\nwant %q", when, got, want)
				}
			}
			check("after every change")

			// A row read again has moved by a change that was lost, and a row that is gone
			// does not say where it was.
			var reread []cdc.Change
			for id := range rows {
				c := cdc.Change{Table: tenants.Name, Op: 'r', Version: sinktest.Version(100), Key: sinktest.Key(id), After: owned(id, "g")}
				if id%2 == 0 {
					c.Op, c.After = 'd', nil
				}
				reread, last[id] = append(reread, c), c
			}
			deliver(reread)
			check("after rows are read again")
			if n, err := s.Sweep(t.Context(), tenants.Name, sinktest.Version(100)); err != nil || n != rows/2 {
				t.Fatalf("the sweep removed %d rows, error %v; want %d", n, err, rows/2)
			}
			clear(last)
			check("after a sweep")
		})
	}
}

// A row that the index refuses under its new routing is not under the old ones any more:
// whoever changes it next does not know them, and neither does its dead letter. One that
// could not be taken out of there waits.
func TestARefusedRowLeavesItsOlderRoutings(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]func(*Config){"hard": nil, "tombstone": tombstones} {
		t.Run(name, func(t *testing.T) {
			s := openRouted(t, func(c *Config) {
				if c.MaxDocumentBytes = 1024; config != nil {
					config(c)
				}
			})
			version := 10
			change := func(op cdc.Op, before, after []byte, left ...[]byte) cdc.Change {
				version += 2
				return cdc.Change{Table: tenants.Name, Op: op, Version: sinktest.Version(version), Key: sinktest.Key(1), Before: before, After: after, Left: left}
			}
			routings := func() string {
				t.Helper()
				s.ask(t, http.MethodPost, "/"+s.alias(tenants.Name)+"/_refresh", "")
				_, res := s.ask(t, http.MethodGet, "/"+s.alias(tenants.Name)+"/_search", "")
				var found []string
				for _, hit := range res.Get("hits.hits").Array() {
					found = append(found, hit.Get("_routing").Str)
				}
				slices.Sort(found)
				return strings.Join(found, " ")
			}
			var refused []cdc.Change
			for claim, after := range map[string][]byte{
				"the mapping refuses it": []byte(`{"id":"x","tenant":"c"}`),
				"it is too large":        fmt.Appendf(nil, `{"id":1,"tenant":"c","x":"%s"}`, bytes.Repeat([]byte("x"), 1024)),
				"it has no routing":      []byte(`{"id":1}`),
			} {
				for _, tenant := range []string{"a", "b"} {
					if out := verdictOf(t, s, change('c', nil, owned(1, tenant))); out.Verdict != sinks.Applied {
						t.Fatal(out)
					}
				}
				c := change('u', owned(1, "b"), after, owned(1, "a"))
				if out := verdictOf(t, s, c); out.Verdict != sinks.Poison || routings() != "" {
					t.Errorf("%s: %+v; it is under %q still", claim, out, routings())
				}
				refused = append(refused, c)
			}
			for _, tenant := range []string{"a", "b"} {
				if out := verdictOf(t, s, change('c', nil, owned(1, tenant))); out.Verdict != sinks.Applied {
					t.Fatal(out)
				}
			}
			stays := change('u', owned(1, "b"), owned(1, "a"), owned(1, "a"))
			stays.Leaves = true
			if out := verdictOf(t, s, stays); out.Verdict != sinks.Filtered || routings() != "a" {
				t.Errorf("a row that has no document and stays: %+v; it is under %q, want a", out, routings())
			}
			leaves := change('u', owned(1, "a"), nil)
			leaves.Leaves = true
			if out := verdictOf(t, s, leaves); out.Verdict != sinks.Filtered || routings() != "" {
				t.Errorf("a row that has no document, and whose routing is not known: %+v; it is under %q still", out, routings())
			}
			for _, c := range refused {
				if verdictOf(t, s, c); routings() != "" {
					t.Errorf("%s once more: it is under %q", c.After, routings())
				}
			}
		})
	}
	c := &cdc.Change{Op: cdc.OpDelete}
	for verdict, want := range map[sinks.Verdict]sinks.Verdict{sinks.Poison: sinks.Unavailable, sinks.Transient: sinks.Unavailable, sinks.Stale: sinks.Stale} {
		for routing, want := range map[string]sinks.Verdict{"tenant": want, "": verdict} {
			d := document{change: c, table: &table{config: TableConfig{Routing: routing}}, outcome: sinks.Outcome{Verdict: verdict}}
			if got := d.answer(); got.Verdict != want {
				t.Errorf("a delete under the routing %q is %d and its change %d; want %d", routing, verdict, got.Verdict, want)
			}
		}
	}
}

func TestObjectsInAJSONColumnCanBeNested(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	s.lookup = func(cdc.TableName) (TableConfig, bool) {
		return TableConfig{Index: s.prefix + "_{db}_{table}", Mapping: map[string]any{"meta": map[string]any{"type": "nested", "properties": map[string]any{
			"name": map[string]any{"type": "keyword"}, "n": map[string]any{"type": "long"}}}}}, true
	}
	for id, meta := range []string{`[{"name":"a","n":1},{"name":"b","n":2}]`, `[{"name":"a","n":2},{"name":"b","n":1}]`, `null`, `[]`} {
		c := sinktest.Upsert(id, 1, "")
		c.After = fmt.Appendf(nil, `{"id":%d,"meta":%s}`, id, meta)
		if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	s.restart(t)
	if out := verdictOf(t, s, sinktest.Upsert(9, 1, "after a restart")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	s.ask(t, http.MethodPost, "/"+s.alias(sinktest.Questions.Name)+"/_refresh", "")
	_, res := s.ask(t, http.MethodPost, "/"+s.alias(sinktest.Questions.Name)+"/_search", `{"query":{"nested":{"path":"meta","query":{"bool":{"must":[{"term":{"meta.name":"a"}},{"term":{"meta.n":2}}]}}}}}`)
	if hits := res.Get("hits.hits.#._id").Raw; hits != `["1"]` {
		t.Errorf("rows %s have an object that is both a and 2; want row 1 alone\n%s", hits, res.Raw)
	}
}

// The local build has no join fields; these are the requests that make one. A row of
// the table is a parent or a child by a JSON column, and both are routed alike.
func TestAJSONColumnCanJoinRowsOfOneTable(t *testing.T) {
	t.Parallel()
	config := TableConfig{Index: "q", Routing: "thread", Mapping: map[string]any{"kin": map[string]any{"type": "join", "relations": map[string]any{"question": "answer"}}}}
	shape := cdc.Table{Name: cdc.TableName{DB: "d", Table: "posts"}, Columns: []cdc.Column{{Name: "id", Kind: cdc.KindInt}, {Name: "thread", Kind: cdc.KindInt}, {Name: "kin", Kind: cdc.KindJSON}}}
	if err := config.CheckTable(shape); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(indexBody(&table{alias: "q", config: config}, shape, DefaultConfig(), true)["mappings"])
	if err != nil {
		t.Fatal(err)
	}
	mappings := gjson.ParseBytes(body)
	if got := mappings.Get("properties.kin").Raw; got != `{"relations":{"question":"answer"},"type":"join"}` || !mappings.Get("_routing.required").Bool() {
		t.Errorf("mapping %s", body)
	}
	c := cdc.Change{Op: 'c', Version: 7, Key: []byte(`{"id":9}`), After: []byte(`{"id":9,"thread":1,"kin":{"name":"answer","parent":"1"}}`)}
	lines, no := appendChange(nil, &c, &table{alias: "q", config: config}, config.place(&c).routing, 1<<20)
	want := `{"index":{"_index":"q","_id":"9","routing":"1","version":7,"version_type":"external"}}
{"id":9,"thread":1,"kin":{"name":"answer","parent":"1"},"_lockstep":{"v":7}}
`
	if no != nil || string(lines) != want {
		t.Errorf("%+v\n%s", no, lines)
	}
}
