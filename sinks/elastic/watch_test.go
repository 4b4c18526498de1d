package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

func ofSuite(context.Context) ([]cdc.TableName, error) {
	return []cdc.TableName{sinktest.Questions.Name, sinktest.Tags.Name}, nil
}

func tag(name string, version int) cdc.Change {
	key := fmt.Appendf(nil, `{"name":%q}`, name)
	return cdc.Change{Table: sinktest.Tags.Name, Op: cdc.OpCreate, Version: sinktest.Version(version), Key: key, After: key}
}

// An index that is deleted under a table of which no change comes is made again, and one
// whose alias is gone is told of; to see that costs one request for all tables.
func TestAnIndexThatGoesUnderAnIdleTableIsNoticed(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	target, err := url.Parse(theNode(t).Plain)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		proxy.ServeHTTP(w, r)
	}))
	defer server.Close()
	s := openStore(t, func(c *Config) { c.Addresses = []string{server.URL} })
	told := 0
	s.Refill = func(context.Context, cdc.TableName, bool) (bool, error) { told++; return told > 2, nil }
	for _, c := range []cdc.Change{sinktest.Upsert(1, 1, "x"), tag("a", 1)} {
		if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	watch := func(requests int32) {
		t.Helper()
		asked.Store(0)
		if err := s.watch(t.Context(), ofSuite); err != nil {
			t.Fatal(err)
		}
		if n := asked.Load(); requests > 0 && n != requests {
			t.Errorf("it asked %d times; want %d", n, requests)
		}
	}
	watch(1)
	name := sinktest.Questions.Name
	index := s.alias(name) + "-000001"
	s.ask(t, http.MethodDelete, "/"+index, "")
	watch(0)
	if seen, _ := s.seen(t, name); told != 3 || seen != 0 {
		t.Errorf("told %d times of a lost index, and %d documents are in the new one; want 3 and 0", told, seen)
	}
	if status, _ := s.ask(t, http.MethodGet, "/_alias/"+s.alias(name), ""); status != http.StatusOK {
		t.Errorf("the index was not made again: status %d", status)
	}
	watch(1)

	s.ask(t, http.MethodDelete, "/"+index+"/_alias/"+s.alias(name), "")
	for range 2 {
		watch(0)
		if all := s.Troubles(); told != 3 || len(all) != 1 || all[0].Table != name || all[0].Since.IsZero() ||
			all[0].Reason != "the index "+index+" is there and its alias "+s.alias(name)+" is not" || !strings.HasPrefix(all[0].Mend, "put it back with POST /_aliases {") {
			t.Errorf("told %d times, troubles %+v; want that the alias is gone", told, all)
		}
	}
	if _, err := s.Inspect(t.Context(), sinktest.Questions); err == nil || !strings.Contains(err.Error(), "its alias "+s.alias(name)+" is not") {
		t.Errorf("the doctor says %v", err)
	}
	if _, err := s.Sweep(t.Context(), name, sinktest.Version(9)); err == nil {
		t.Error("an index without its alias was swept, as if there were none")
	}
	_, body, _ := strings.Cut(s.Troubles()[0].Mend, "POST /_aliases ")
	body, _, _ = strings.Cut(body, ", or delete")
	if status, res := s.ask(t, http.MethodPost, "/_aliases", body); status != http.StatusOK {
		t.Fatal(res.Raw)
	}
	watch(0)
	if all := s.Troubles(); len(all) != 0 {
		t.Errorf("it is mended, and there is %+v", all)
	}
	if out := verdictOf(t, s, sinktest.Upsert(1, 2, "y")); out.Verdict != sinks.Applied {
		t.Error(out)
	}
}

// An index that somebody has deleted and made again looks like the one that was there and
// has no rows. The table is told of as lost, under this process and before it, once; after a
// rebuild it is not.
func TestAnIndexThatSomebodyElseHasMadeAgainIsLost(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	name := sinktest.Questions.Name
	var told []bool
	refill := func(_ context.Context, _ cdc.TableName, had bool) (bool, error) {
		told = append(told, had)
		return true, nil
	}
	expect := func(claim string, want ...bool) {
		t.Helper()
		if !slices.Equal(told, want) {
			t.Errorf("%s: told %v; want %v", claim, told, want)
		}
		told = nil
	}
	version := 0
	apply := func() {
		t.Helper()
		version++
		if out := verdictOf(t, s, sinktest.Upsert(1, version, "x")); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	only := func(context.Context) ([]cdc.TableName, error) { return []cdc.TableName{name}, nil }
	looks := func(look func(context.Context, func(context.Context) ([]cdc.TableName, error)) error) {
		t.Helper()
		for range 2 {
			if err := look(t.Context(), only); err != nil {
				t.Fatal(err)
			}
		}
	}
	restart := func() {
		s.restart(t)
		s.Refill = refill
	}
	index := "/" + s.alias(name) + "-000001"
	again := func(meta bool) {
		t.Helper()
		_, res := s.ask(t, http.MethodGet, index, "")
		is, _ := res.Get(index[1:]).Value().(map[string]any)
		delete(is, "settings")
		if !meta {
			delete(is["mappings"].(map[string]any), "_meta")
		}
		body, _ := json.Marshal(is)
		s.ask(t, http.MethodDelete, index, "")
		if status, res := s.ask(t, http.MethodPut, index, string(body)); status != http.StatusOK {
			t.Fatal(res.Raw)
		}
	}
	s.Refill = refill
	apply()
	looks(s.watch)
	expect("an index that is made", false)
	restart()
	looks(s.lap)
	expect("under another process")
	again(true)
	looks(s.watch)
	expect("one that is made again", true)
	apply()
	restart()
	looks(s.lap)
	looks(s.watch)
	apply()
	expect("and then under another process")

	for _, meta := range []bool{true, false} {
		again(meta)
		restart()
		looks(s.lap)
		apply()
		looks(s.watch)
		expect("one that is made again between two processes", false)
		again(meta)
		restart()
		apply()
		looks(s.lap)
		expect("and whose table changes at once", false)
	}

	if _, err := s.Rebuild(t.Context(), Rebuild{Table: name}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ask(t, http.MethodDelete, "/"+s.alias(name)+"-000002", "") })
	looks(s.watch)
	apply()
	restart()
	looks(s.lap)
	expect("a rebuild")
}

func TestRunWatchesByItself(t *testing.T) {
	t.Parallel()
	if watchEvery > time.Minute {
		t.Errorf("it looks every %s; want it within a minute", watchEvery)
	}
	s := openStore(t, nil)
	s.watchEvery = 10 * time.Millisecond
	told := make(chan struct{}, 9)
	s.Refill = func(context.Context, cdc.TableName, bool) (bool, error) { told <- struct{}{}; return true, nil }
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	<-told // that there was none yet
	ctx, cancel := context.WithCancel(t.Context())
	begun, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- s.Run(ctx, func(context.Context) ([]cdc.TableName, error) {
			select {
			case begun <- struct{}{}:
			default:
			}
			return []cdc.TableName{sinktest.Questions.Name}, nil
		})
	}()
	for range 3 { // it is past the first lap then
		<-begun
	}
	s.ask(t, http.MethodDelete, "/"+s.alias(sinktest.Questions.Name)+"-000001", "")
	<-told
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What is the matter with one index holds its own table; that the cluster does not answer
// is the matter of all.
func TestTheTroubleOfOneIndexIsNotThatOfTheStore(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	index := "/" + s.alias(sinktest.Questions.Name) + "-000001"
	for _, c := range []struct{ claim, method, path, body, then, reason string }{
		{"read-only", http.MethodPut, "/_settings", `{"index.blocks.read_only_allow_delete":true}`, `{"index.blocks.read_only_allow_delete":null}`, "is read-only"},
		{"without writes", http.MethodPut, "/_settings", `{"index.blocks.write":true}`, `{"index.blocks.write":null}`, "takes no writes"},
	} {
		if status, res := s.ask(t, c.method, index+c.path, c.body); status != http.StatusOK {
			t.Fatal(res.Raw)
		}
		for i := range 2 { // the first one finds out
			out := verdictOf(t, s, sinktest.Upsert(1, 2, "y"))
			if out.Verdict != sinks.Unavailable || !out.Unasked || i > 0 && (!strings.Contains(out.Reason, c.reason) || out.Mend == "") {
				t.Errorf("%s: %+v; want it to be the matter of this table alone", c.claim, out)
			}
		}
		if out := verdictOf(t, s, tag("a", 1)); out.Verdict != sinks.Applied && out.Verdict != sinks.Duplicate {
			t.Errorf("another table: %+v", out)
		}
		s.ask(t, c.method, index+c.path, c.then)
	}
	if out := verdictOf(t, s, sinktest.Upsert(1, 2, "y")); out.Verdict != sinks.Applied {
		t.Errorf("mended: %+v", out)
	}
	away := openStore(t, func(c *Config) { c.Addresses = []string{"http://127.0.0.1:1"} })
	if out := verdictOf(t, away, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Unavailable || out.Unasked {
		t.Errorf("no cluster: %+v; want it to be the matter of the store", out)
	}
	if all := away.Troubles(); len(all) != 0 {
		t.Errorf("no cluster is the trouble of %+v", all)
	}
}

// When the sink is told to stop, what it was just asking for is nothing to tell of.
func TestAStopIsNoTroubleOfAnIndex(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	var log bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Apply(ctx, []cdc.Change{sinktest.Upsert(1, 1, "x")})
	if err := s.Run(ctx, ofSuite); err != nil {
		t.Error(err)
	}
	if all := s.Troubles(); log.Len() > 0 || len(all) > 0 {
		t.Errorf("troubles %+v, and the log says %s", all, log.String())
	}
}

// A column that gets another type whose values the old field takes as well is noticed with
// the first change that has it.
func TestAnAlteredTableIsComparedWithItsIndexBeforeItsFirstRow(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	name := sinktest.Questions.Name
	described := 0
	describe := s.describe
	s.describe = func(ctx context.Context, n cdc.TableName) (cdc.Table, error) {
		described++
		return describe(ctx, n)
	}
	apply := func(version int, layout uint32, want sinks.Verdict, looks int) sinks.Outcome {
		t.Helper()
		c := sinktest.Upsert(1, version, "7")
		c.Layout = layout
		described = 0
		out := verdictOf(t, s, c)
		if out.Verdict != want || described != looks {
			t.Errorf("version %d of layout %d: %+v after %d looks at the table; want verdict %d after %d", version, layout, out, described, want, looks)
		}
		return out
	}
	alter := func(kind cdc.Kind, sqlType string) {
		table := s.tables[name]
		table.Columns = append([]cdc.Column{}, table.Columns...)
		table.Columns[1].Kind, table.Columns[1].SQLType = kind, sqlType
		s.tables[name] = table
	}
	apply(1, 10, sinks.Applied, 1)
	apply(2, 10, sinks.Applied, 0)
	alter(cdc.KindKeyword, "varchar(400)") // the mapping follows
	apply(3, 11, sinks.Applied, 1)
	apply(4, 11, sinks.Applied, 0)
	apply(5, 10, sinks.Applied, 0) // what was on its way

	s.describe = func(context.Context, cdc.TableName) (cdc.Table, error) {
		described++
		return cdc.Table{}, errors.New("MySQL is away")
	}
	for range 2 {
		if out := apply(6, 12, sinks.Unavailable, 1); !out.Unasked || !strings.Contains(out.Reason, "MySQL is away") {
			t.Errorf("%+v; want it to wait for the source", out)
		}
	}
	s.describe = func(ctx context.Context, n cdc.TableName) (cdc.Table, error) {
		described++
		return describe(ctx, n)
	}
	alter(cdc.KindInt, "int") // it does not, though a keyword takes "7"
	for range 2 {
		out := apply(6, 12, sinks.Unavailable, 1)
		if !out.Unasked || !strings.HasSuffix(out.Reason, "field title is keyword and column title int needs long") || !strings.HasPrefix(out.Mend, "run: lockstep rebuild search --table sinktest.question") {
			t.Errorf("%+v; want the table held", out)
		}
	}
	apply(6, 11, sinks.Unavailable, 1) // nor is any other row written to it
	if all := s.Troubles(); len(all) != 1 {
		t.Errorf("troubles: %+v", all)
	}
	if _, err := s.Rebuild(t.Context(), Rebuild{Table: name}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ask(t, http.MethodDelete, "/"+s.alias(name)+"-000002", "") })
	apply(6, 12, sinks.Applied, 1)
	apply(7, 12, sinks.Applied, 0)
	if all := s.Troubles(); len(all) != 0 {
		t.Errorf("troubles after the rebuild: %+v", all)
	}
}

// A change may make the index while the watch asks the source for its table.
func TestAnIndexThatIsMadeUnderTheWatchIsNotLost(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	told := 0
	s.Refill = func(context.Context, cdc.TableName, bool) (bool, error) { told++; return false, nil }
	describe := s.describe
	s.describe = func(ctx context.Context, n cdc.TableName) (cdc.Table, error) {
		s.describe = describe
		if out := verdictOf(t, s, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Applied {
			t.Error(out)
		}
		return describe(ctx, n)
	}
	err := s.watch(t.Context(), func(context.Context) ([]cdc.TableName, error) { return []cdc.TableName{sinktest.Questions.Name}, nil })
	if err != nil || told != 1 {
		t.Errorf("told %d times that there is no index, %v; want once, before it was made", told, err)
	}
}
