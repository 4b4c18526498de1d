package elastic

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

// widenTitle has the column title become a text.
func (s *store) widenTitle() {
	table := s.tables[sinktest.Questions.Name]
	table.Columns = slices.Clone(table.Columns)
	table.Columns[1] = cdc.Column{Name: "title", Kind: cdc.KindText, SQLType: "text"}
	s.tables[table.Name] = table
}

func (s *store) indices(t *testing.T) []string {
	t.Helper()
	var names []string
	_, all := s.ask(t, http.MethodGet, "/"+s.alias(sinktest.Questions.Name)+"-*?filter_path=*.aliases&expand_wildcards=open,closed", "")
	for name := range all.Map() {
		names = append(names, strings.TrimPrefix(name, s.alias(sinktest.Questions.Name)))
	}
	slices.Sort(names)
	t.Cleanup(func() {
		s.ask(t, http.MethodDelete, "/"+s.alias(sinktest.Questions.Name)+"-*?expand_wildcards=all", "")
	})
	return names
}

// Writers and readers go on while the index is rebuilt, with small pages so that it
// takes its time. No reader ever finds fewer rows than there always were, no writer is
// refused for good, and at the end the new index has the last state of every row.
func TestARebuildLosesNothingAndReadersAlwaysSeeAll(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]func(*Config){"hard": nil, "tombstone": tombstones} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, func(c *Config) {
				c.Shards = 2
				c.BulkDocs = 100
				if config != nil {
					config(c)
				}
			})
			const rows, steady = 600, 300 // the rows from steady on are deleted and made again
			var changes []cdc.Change
			for id := range rows {
				changes = append(changes, sinktest.Upsert(id, 1, "old"))
			}
			for _, out := range s.Apply(t.Context(), changes) {
				if out.Verdict != sinks.Applied {
					t.Fatal(out)
				}
			}
			alias := s.alias(sinktest.Questions.Name)
			s.indices(t)
			s.seen(t, sinktest.Questions.Name)
			var stop atomic.Bool
			var least atomic.Int64
			least.Store(rows)
			last := make([]cdc.Change, rows)
			copy(last, changes)
			var all sync.WaitGroup
			all.Go(func() { // one writer: its changes of a row are in order
				for v := 2; !stop.Load(); v++ {
					for id := v % 7; id < rows && !stop.Load(); id += 7 {
						c := sinktest.Upsert(id, v, fmt.Sprint("version ", v))
						if id >= steady && v%2 == 0 {
							c = sinktest.Delete(id, v)
						}
						for s.Apply(t.Context(), []cdc.Change{c})[0].Verdict != sinks.Applied {
							time.Sleep(5 * time.Millisecond) // held
						}
						last[id] = c
					}
				}
			})
			all.Go(func() {
				for !stop.Load() {
					status, res := s.ask(t, http.MethodPost, "/"+alias+"/_count", fmt.Sprintf(`{"query":{"range":{"id":{"lt":%d}}}}`, steady))
					if n := res.Get("count").Int(); status != http.StatusOK || n < steady {
						least.Store(n)
					}
				}
			})
			s.widenTitle()
			s.table(sinktest.Questions.Name) // is prepared and goes on
			var heard []string
			out, err := s.Rebuild(t.Context(), Rebuild{Table: sinktest.Questions.Name, Progress: func(doing string, _, _ int64) {
				if !slices.Contains(heard, doing) {
					heard = append(heard, doing)
				}
			}})
			time.Sleep(300 * time.Millisecond)
			stop.Store(true)
			all.Wait()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v, %v", out, heard)
			if n := least.Load(); n < steady {
				t.Errorf("a reader found %d of the %d rows that are always there", n, steady)
			}
			if out.From != alias+"-000001" || out.To != alias+"-000002" || !slices.Contains(out.Changes, "field title: text instead of keyword") {
				t.Errorf("%+v", out)
			}
			_, mapping := s.ask(t, http.MethodGet, "/"+alias+"/_mapping", "")
			if got := mapping.Get(alias + "-000002.mappings.properties.title.type").Str; got != "text" {
				t.Errorf("title is %q; want text", got)
			}
			for id, c := range last {
				fields, v, found := s.Read(t, c.Table, c.Key)
				want := c.Op != cdc.OpDelete
				if found != want || want && (v != c.Version || !strings.Contains(string(c.After), fields["title"])) {
					t.Fatalf("row %d: found %v at %d, %v; want %s at %d", id, found, v.Seq(), fields, c.Op, c.Version.Seq())
				}
			}
			if got := fmt.Sprint(s.indices(t)); got != "[-000001 -000002]" {
				t.Errorf("indices %s; want the old one and the new one", got)
			}
			for _, dry := range []bool{true, false} {
				if dropped, err := s.DropOld(t.Context(), sinktest.Questions.Name, dry); err != nil || !slices.Equal(dropped, []string{alias + "-000001"}) {
					t.Errorf("dropped %v, error %v; want the old one", dropped, err)
				}
			}
			if got := fmt.Sprint(s.indices(t)); got != "[-000002]" {
				t.Errorf("indices %s; want the new one", got)
			}
		})
	}
}

// What is deleted between the copying and the end must not come back.
func TestARebuildCanBeCutOffAnywhereAndIsRepeated(t *testing.T) {
	t.Parallel()
	s := openStore(t, func(c *Config) { c.BulkDocs = 2 })
	name := sinktest.Questions.Name
	var changes []cdc.Change
	for id := range 6 {
		changes = append(changes, sinktest.Upsert(id, 1, "old"))
	}
	s.Apply(t.Context(), changes)
	s.indices(t)
	s.widenTitle()
	for _, steps := range []int{2, 3, 5, 6} {
		// It ends as a process does that is killed: nothing that would come behind is done.
		r := &rebuild{Sink: s.Sink, Rebuild: Rebuild{Table: name, Progress: func(string, int64, int64) {}}, out: &Rebuilt{}}
		for _, step := range []func(context.Context) error{
			r.begin, r.create, func(ctx context.Context) error { return r.copy(ctx, "copy") }, func(ctx context.Context) error { return r.copy(ctx, "catch up") },
			func(ctx context.Context) error { return r.block(ctx, true) }, func(ctx context.Context) error { return r.copy(ctx, "finish") },
		}[:steps] {
			if err := step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if steps < 5 {
			continue
		}
		if out := verdictOf(t, s, sinktest.Upsert(1, 2, "while blocked")); out.Verdict != sinks.Unavailable {
			t.Errorf("killed at the end: %+v; want changes held", out)
		}
		s.restart(t)
		if out := verdictOf(t, s, sinktest.Upsert(1, 2, "while blocked")); out.Verdict != sinks.Unavailable || !strings.Contains(out.Sentence(), "lockstep rebuild search --table sinktest.question") {
			t.Errorf("after a restart: %+v; want the command", out)
		}
	}
	if got := len(s.indices(t)); got != 2 {
		t.Errorf("%d indices; want the old one and the one that was not finished", got)
	}
	dry, err := s.Rebuild(t.Context(), Rebuild{Table: name, DryRun: true})
	if err != nil || dry.To != s.alias(name)+"-000002" || len(s.indices(t)) != 2 {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	out, err := s.Rebuild(t.Context(), Rebuild{Table: name})
	if err != nil || out.Documents != 6 {
		t.Fatalf("%+v, %v", out, err)
	}
	s.restart(t)
	if out := verdictOf(t, s, sinktest.Upsert(1, 2, "after all")); out.Verdict != sinks.Applied {
		t.Error(out)
	}
	if got := len(s.indices(t)); got != 2 {
		t.Errorf("%d indices; want the old one and the new one", got)
	}
}

func TestOfTwoRebuildsAtOnceOneEndsAndTheOtherLosesNothing(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	name := sinktest.Questions.Name
	for id := range 5 {
		verdictOf(t, s, sinktest.Upsert(id, 1, "x"))
	}
	s.indices(t)
	s.widenTitle()
	first := &rebuild{Sink: s.Sink, Rebuild: Rebuild{Table: name, Progress: func(string, int64, int64) {}}, out: &Rebuilt{}}
	for _, step := range []func(context.Context) error{first.begin, first.create} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	second := &rebuild{Sink: s.Sink, Rebuild: first.Rebuild, out: &Rebuilt{}}
	for _, step := range []func(context.Context) error{second.begin, second.create} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.copy(t.Context(), "copy"); err == nil {
		t.Error("the first wrote into an index that was taken away")
	}
	if err := first.swap(t.Context()); err == nil {
		t.Error("the first moved the alias to the index of the second")
	}
	if _, err := s.Rebuild(t.Context(), first.Rebuild); err != nil {
		t.Fatal(err)
	}
	if seen, _ := s.seen(t, name); seen != 5 {
		t.Errorf("a search finds %d rows; want 5", seen)
	}
}

func TestDocumentsThatDoNotFitStopARebuildUnlessTheyMayBeLeftOut(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	name := sinktest.Questions.Name
	for id, title := range []string{"1", "no number", "3"} {
		c := sinktest.Upsert(id, 1, title)
		c.After = fmt.Appendf(nil, `{"id":%d,"title":%q,"body":"dropped later"}`, id, title)
		if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	s.indices(t)
	table := s.tables[name]
	table.Columns = []cdc.Column{{Name: "id", Kind: cdc.KindInt}, {Name: "title", Kind: cdc.KindInt, SQLType: "int"}}
	s.tables[name] = table
	_, err := s.Rebuild(t.Context(), Rebuild{Table: name})
	if err == nil || !strings.Contains(err.Error(), "1 documents of "+s.alias(name)+"-000001 do not fit the new mapping, the first of them 1: ") || !strings.Contains(err.Error(), "lockstep snapshot start --table sinktest.question") {
		t.Errorf("%v", err)
	}
	if seen, _ := s.seen(t, name); seen != 3 || len(s.indices(t)) != 1 {
		t.Errorf("a search finds %d rows, there are indices %v; want nothing changed", seen, s.indices(t))
	}
	out, err := s.Rebuild(t.Context(), Rebuild{Table: name, LeaveOut: true})
	if err != nil || out.Documents != 2 || !slices.Equal(out.LeftOut, []string{"1"}) {
		t.Errorf("%+v, %v", out, err)
	}
	if fields, _, _ := s.Read(t, name, sinktest.Key(2)); fields["title"] != "3" || fields["body"] != "" {
		t.Errorf("row 2 is %v; want it without the column that was dropped", fields)
	}
	s.restart(t)
	if out := verdictOf(t, s, sinktest.Upsert(9, 1, "9")); out.Verdict != sinks.Applied {
		t.Error(out)
	}
}

func TestARebuildRoutesDocumentsAnew(t *testing.T) {
	t.Parallel()
	s := openRouted(t, nil)
	t.Cleanup(func() { s.ask(t, http.MethodDelete, "/"+s.alias(tenants.Name)+"-*", "") })
	routed := s.lookup
	plain := func(cdc.TableName) (TableConfig, bool) {
		return TableConfig{Index: s.prefix + "_{db}_{table}"}, true
	}
	s.lookup = plain
	create := func(id int, tenant string, v int) {
		t.Helper()
		if out := verdictOf(t, s, cdc.Change{Table: tenants.Name, Op: 'c', Version: sinktest.Version(v), Key: sinktest.Key(id), After: owned(id, tenant)}); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	for id := range 20 {
		create(id, []string{"", "a", "b", "c"}[id%4], 1)
	}
	for version, to := range []func(cdc.TableName) (TableConfig, bool){routed, plain} {
		s.lookup = to
		s.restart(t)
		if out, err := s.Rebuild(t.Context(), Rebuild{Table: tenants.Name}); err != nil || out.Documents != 20 {
			t.Fatalf("%+v, %v", out, err)
		}
		create(5, "a", version+2)
	}
}
