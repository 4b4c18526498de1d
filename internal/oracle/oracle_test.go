package oracle

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"lockstep/internal/bank"
	"lockstep/internal/testenv"
)

// The world of these tests is written by hand: MySQL by SQL, the documents and
// keys as the literal text that the pipeline promises for those rows.

const createThings = `CREATE TABLE things (
  id     bigint unsigned PRIMARY KEY,
  name   varchar(50),
  price  decimal(8,2),
  ratio  float,
  exact  double,
  flags  set('a','b','c'),
  kind   enum('small','large'),
  day    date,
  at     datetime(6),
  seen   timestamp(3) NULL,
  span   time(6),
  y      year,
  bits   bit(64),
  raw    binary(4),
  doc    json,
  count  int
)`

// things has one row with a value in every column and one with none.
var things = map[string]map[string]string{
	"18446744073709551615": {
		"id": `18446744073709551615`, "name": `"it's \"5\" 🎯"`, "price": `"12.30"`, "ratio": `0.1`, "exact": `1e-7`,
		"flags": `["a","c"]`, "kind": `"large"`, "day": `"2026-11-22"`, "at": `"2026-11-22T08:15:30.123400"`,
		"seen": `"2026-11-22T07:15:30.120Z"`, "span": `"-838:59:59.000000"`, "y": `2026`, "bits": `9223372036854775809`,
		"raw": `"YWIAAA=="`, "doc": `{"n": 9007199254740993, "f": 0.1, "l": [1, null]}`, "count": `-5`,
	},
	"2": {
		"id": `2`, "name": `null`, "price": `null`, "ratio": `null`, "exact": `null`, "flags": `null`, "kind": `null`, "day": `null`,
		"at": `null`, "seen": `null`, "span": `null`, "y": `null`, "bits": `null`, "raw": `null`, "doc": `null`, "count": `null`,
	},
}

const createPairs = `CREATE TABLE pairs (a varchar(20), b int, note varchar(20), PRIMARY KEY (a, b))`

// pairs has a composite key whose text needs care.
var pairs = map[string]map[string]string{
	"x%3A1%25:7": {"a": `"x:1%"`, "b": `7`, "note": `"one"`},
	"x:8":        {"a": `"x"`, "b": `8`, "note": `""`},
}

const version = "4398046511999"

type world struct {
	t     *testing.T
	spec  Spec
	redis *redis.Client
}

// newWorld makes a world in which everything is equal. Tables things and pairs
// are in Elasticsearch; in Redis things is a hash and pairs is JSON text.
func newWorld(t *testing.T) *world {
	t.Helper()
	ctx := t.Context()
	server, es, store := testenv.MySQL(t), testenv.Elastic(t), testenv.Redis(t)
	name := fmt.Sprintf("oracle_%d_%d", os.Getpid(), time.Now().UnixNano())
	db, err := bank.Open(ctx, server.Addr, testenv.AdminUser, testenv.AdminPassword, name)
	must(t, err)
	w := &world{t: t, redis: redis.NewClient(&redis.Options{Addr: store.Addr}), spec: Spec{
		DB: db, Database: name, ElasticURL: es.URL, RedisAddr: store.Addr,
		Tables: []TableSpec{
			{Table: "things", Index: name + "-things", RedisKey: "{db}:thing:{id}"},
			{Table: "pairs", Index: name + "-pairs", RedisKey: "{db}:pair:{pk}", RedisMode: "json"},
		},
	}}
	t.Cleanup(func() {
		ctx := context.Background()
		_, err := db.ExecContext(ctx, "DROP DATABASE "+name)
		must(t, err)
		must(t, db.Close())
		for _, table := range w.spec.Tables {
			w.elastic("DELETE", "/"+table.Index, "")
		}
		keys, err := w.redis.Keys(ctx, name+":*").Result()
		must(t, err)
		if len(keys) > 0 {
			must(t, w.redis.Del(ctx, keys...).Err())
		}
		must(t, w.redis.Close())
	})
	for _, statement := range []string{
		createThings, createPairs,
		`INSERT INTO things VALUES (18446744073709551615, 'it''s "5" 🎯', 12.3, 0.1, 1e-7, 'c,a', 'large', '2026-11-22', '2026-11-22 08:15:30.1234',
		 '2026-11-22 07:15:30.12', '-838:59:59', 2026, 9223372036854775809, 'ab', '{"n": 9007199254740993, "f": 0.1, "l": [1, null]}', -5)`,
		`INSERT INTO things (id) VALUES (2)`,
		`INSERT INTO pairs VALUES ('x:1%', 7, 'one'), ('x', 8, '')`,
	} {
		_, err := db.ExecContext(ctx, statement)
		must(t, err)
	}
	w.fill()
	return w
}

// fill writes both stores anew.
func (w *world) fill() {
	w.t.Helper()
	for i, rows := range []map[string]map[string]string{things, pairs} {
		table := w.spec.Tables[i]
		w.elastic("DELETE", "/"+table.Index, "")
		w.elastic("PUT", "/"+table.Index, `{"settings":{"number_of_replicas":0},"mappings":{"enabled":false}}`)
		for id, row := range rows {
			w.putDoc(table.Index, id, row, version)
		}
	}
	ctx := w.t.Context()
	keys, err := w.redis.Keys(ctx, w.spec.Database+":*").Result()
	must(w.t, err)
	if len(keys) > 0 {
		must(w.t, w.redis.Del(ctx, keys...).Err())
	}
	for id, row := range things {
		hash := map[string]any{"_lockstep_v": version}
		for name, value := range row {
			if value != "null" {
				hash[name] = plain(value)
			}
		}
		must(w.t, w.redis.HSet(ctx, w.thing(id), hash).Err())
	}
	for id, row := range pairs {
		w.putJSON(id, row)
	}
}

// plain is the text of a JSON value: of a string without its quotes.
func plain(value string) string {
	if value[0] != '"' {
		return value
	}
	return strings.NewReplacer(`\"`, `"`).Replace(value[1 : len(value)-1])
}

func (w *world) thing(id string) string { return w.spec.Database + ":thing:" + id }
func (w *world) pair(id string) string  { return w.spec.Database + ":pair:" + id }

func document(row map[string]string) string {
	fields := make([]string, 0, len(row))
	for _, name := range slices.Sorted(maps.Keys(row)) {
		fields = append(fields, fmt.Sprintf("%q:%s", name, row[name]))
	}
	return "{" + strings.Join(fields, ",") + `,"_lockstep":{"v":` + version + `}}`
}

func (w *world) putDoc(index, id string, row map[string]string, externalVersion string) {
	w.t.Helper()
	w.elastic("PUT", "/"+index+"/_doc/"+strings.ReplaceAll(id, "%", "%25")+"?version_type=external_gte&version="+externalVersion, document(row))
}

func (w *world) putJSON(id string, row map[string]string) {
	w.t.Helper()
	must(w.t, w.redis.Set(w.t.Context(), w.pair(id), document(row), 0).Err())
}

func (w *world) elastic(method, path, body string) {
	w.t.Helper()
	request, err := http.NewRequest(method, w.spec.ElasticURL+path, bytes.NewBufferString(body))
	must(w.t, err)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	must(w.t, err)
	defer response.Body.Close()
	if response.StatusCode >= 300 && !(method == "DELETE" && response.StatusCode == 404) {
		w.t.Fatalf("%s %s: %s", method, path, response.Status)
	}
}

func (w *world) compare() Report {
	w.t.Helper()
	report, err := Compare(w.t.Context(), w.spec)
	must(w.t, err)
	return report
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// with is a copy of row in which one field has another value.
func with(row map[string]string, field, value string) map[string]string {
	other := maps.Clone(row)
	if value == "" {
		delete(other, field)
	} else {
		other[field] = value
	}
	return other
}

const full = "18446744073709551615" // the row with a value in every column

func TestEqualStoresAreReportedEqual(t *testing.T) {
	w := newWorld(t)
	report := w.compare()
	if !report.Equal() {
		t.Fatalf("want no difference, got %s", report)
	}
	for _, sink := range []string{Elastic, Redis} {
		if report.Compared[sink] != 4 || report.Fields[sink] != 2*16+2*3 {
			t.Errorf("%s: want 4 rows and 38 fields compared, got %d and %d", sink, report.Compared[sink], report.Fields[sink])
		}
	}
	if report.Documents["things"] != 2 || report.Keys["pairs"] != 2 {
		t.Errorf("want 2 documents and 2 keys, got %v and %v", report.Documents, report.Keys)
	}
}

// TestEveryTamperingIsSeen changes one thing at a time in worlds that are equal
// otherwise, and wants exactly that one reported.
func TestEveryTamperingIsSeen(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	index, pairIndex := w.spec.Tables[0].Index, w.spec.Tables[1].Index
	exec := func(query string) func() {
		return func() {
			_, err := w.spec.DB.ExecContext(ctx, query)
			must(t, err)
		}
	}
	for _, c := range []struct {
		name   string
		tamper func()
		repair func() // of MySQL; the stores are filled anew
		want   []string
	}{
		{name: "a document is missing", tamper: func() { w.elastic("DELETE", "/"+index+"/_doc/2", "") },
			want: []string{"elastic: things/2: want a document, got none"}},
		{name: "an index is missing", tamper: func() { w.elastic("DELETE", "/"+pairIndex, "") },
			want: []string{"elastic: pairs/x%3A1%25:7: want a document", "elastic: pairs/x:8: want a document"}},
		{name: "a document has no row", tamper: func() { w.putDoc(index, "3", things["2"], version) },
			want: []string{"elastic: things/3: want none, got a document without a row"}},
		{name: "a document of a composite key has no row", tamper: func() { w.putDoc(pairIndex, "x%3A1%25:8", pairs["x:8"], version) },
			want: []string{"elastic: pairs/x%3A1%25:8: want none, got a document without a row"}},
		{name: "a document has a field too many", tamper: func() { w.putDoc(index, "2", with(things["2"], "more", "1"), version) },
			want: []string{"elastic: things/2 more: want no such field, got 1"}},
		{name: "a document has another version than its _version", tamper: func() { w.putDoc(index, "2", things["2"], "4398046512000") },
			want: []string{"elastic: things/2 _version: want _lockstep.v, which is 4398046511999, got 4398046512000"}},
		{name: "a key is missing", tamper: func() { must(t, w.redis.Del(ctx, w.thing("2")).Err()) },
			want: []string{"redis: things/2: want the key"}},
		{name: "a JSON key is missing", tamper: func() { must(t, w.redis.Del(ctx, w.pair("x:8")).Err()) },
			want: []string{"redis: pairs/x:8: want the key"}},
		{name: "a key has no row", tamper: func() { must(t, w.redis.HSet(ctx, w.thing("3"), "id", "3").Err()) },
			want: []string{"thing:3: want none, got a key without a row"}},
		{name: "a key is of another type", tamper: func() {
			must(t, w.redis.Set(ctx, w.thing("2"), "x", 0).Err())
		}, want: []string{"redis: things/2: want the key"}},
		{name: "a hash has a field too many", tamper: func() { must(t, w.redis.HSet(ctx, w.thing("2"), "more", "1").Err()) },
			want: []string{`redis: things/2 more: want no such field, got "1"`}},
		{name: "a hash has a field that is NULL", tamper: func() { must(t, w.redis.HSet(ctx, w.thing("2"), "name", "").Err()) },
			want: []string{`redis: things/2 name: want no such field, got ""`}},
		{name: "a hash has no version", tamper: func() { must(t, w.redis.HDel(ctx, w.thing("2"), "_lockstep_v").Err()) },
			want: []string{`redis: things/2 _lockstep_v: want a version`}},
		{name: "a row was deleted", tamper: exec("DELETE FROM pairs WHERE b = 8"), repair: exec("INSERT INTO pairs VALUES ('x', 8, '')"),
			want: []string{"elastic: pairs/x:8: want none", "pair:x:8: want none"}},
		{name: "a row was inserted", tamper: exec("INSERT INTO pairs VALUES ('y', 9, NULL)"), repair: exec("DELETE FROM pairs WHERE b = 9"),
			want: []string{"elastic: pairs/y:9: want a document", "redis: pairs/y:9: want the key"}},
		{name: "a key changed", tamper: exec("UPDATE pairs SET b = 9 WHERE b = 8"), repair: exec("UPDATE pairs SET b = 8 WHERE b = 9"),
			want: []string{"elastic: pairs/x:8: want none", "elastic: pairs/x:9: want a document", "pair:x:8: want none", "redis: pairs/x:9: want the key"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.tamper()
			expect(t, w.compare(), c.want)
			if c.repair != nil {
				c.repair()
			}
			w.fill()
		})
	}
	if report := w.compare(); !report.Equal() {
		t.Fatalf("after all repairs: %s", report)
	}
}

// expect wants exactly the differences that hold the wanted texts.
func expect(t *testing.T, report Report, want []string) {
	t.Helper()
	if report.Total != len(want) {
		t.Errorf("want %d differences, got %s", len(want), report)
	}
	for _, text := range want {
		if !slices.ContainsFunc(report.Differences, func(d Difference) bool { return strings.Contains(d.String(), text) }) {
			t.Errorf("want a difference %q, got %s", text, report)
		}
	}
}

// nearby are values that are almost right.
var nearby = map[string][]string{
	"id":    {`18446744073709551614`, `1.8446744073709552e19`, `"18446744073709551615"`},
	"name":  {`"it's \"5\" 🎯 "`, `""`},
	"price": {`"12.3"`, `12.30`},
	"ratio": {`0.10001`, `"0.1"`},
	"exact": {`1.0000000000000002e-7`, `0`},
	"flags": {`["a"]`, `["c","a"]`, `"a,c"`, `[]`},
	"kind":  {`"small"`, `2`},
	"day":   {`"2026-11-21"`, `"2026-11-22T00:00:00"`},
	"at":    {`"2026-11-22T08:15:30.1234"`, `"2026-11-22T08:15:30.123400Z"`, `"2026-11-22 08:15:30.123400"`},
	"seen":  {`"2026-11-22T07:15:30.120"`, `"2026-11-22T08:15:30.120Z"`},
	"span":  {`"838:59:59.000000"`, `"-838:59:59"`},
	"y":     {`26`, `"2026"`},
	"bits":  {`9223372036854775808`, `-9223372036854775807`},
	"raw":   {`"YWI="`},
	"doc":   {`{"n": 9007199254740992, "f": 0.1, "l": [1, null]}`, `{"n": 9007199254740993, "f": 0.1, "l": [1]}`, `{"n": 9007199254740993, "l": [1, null]}`, `{}`},
	"count": {`5`, `-5.0`},
}

func TestEveryFieldThatIsAlmostRightIsSeen(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if len(nearby) != len(things[full]) {
		t.Fatalf("%d of %d columns have a value that is almost right", len(nearby), len(things[full]))
	}
	for field, values := range nearby {
		for _, value := range append(values, "null", "") {
			t.Run(field+" "+value, func(t *testing.T) {
				place := "things/" + full + " " + field + ":"
				want := []string{"elastic: " + place}
				w.putDoc(w.spec.Tables[0].Index, full, with(things[full], field, value), version)
				if value == "" {
					must(t, w.redis.HDel(ctx, w.thing(full), field).Err())
					want = append(want, "redis: "+place)
				} else if text := plain(value); text != plain(things[full][field]) { // a hash has no types
					must(t, w.redis.HSet(ctx, w.thing(full), field, text).Err())
					want = append(want, "redis: "+place)
				}
				expect(t, w.compare(), want)
				w.putDoc(w.spec.Tables[0].Index, full, things[full], version)
				must(t, w.redis.HSet(ctx, w.thing(full), field, plain(things[full][field])).Err())
			})
		}
	}
	t.Run("in JSON text", func(t *testing.T) {
		w.putJSON("x:8", with(pairs["x:8"], "note", `"two"`))
		expect(t, w.compare(), []string{`redis: pairs/x:8 note: want "", got "two"`})
	})
}

func TestAJSONTextStandsInAHashWithoutItsQuotes(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.spec.DB.ExecContext(ctx, `UPDATE things SET doc = '"a \\"b\\""' WHERE id = 2`)
	must(t, err)
	w.putDoc(w.spec.Tables[0].Index, "2", with(things["2"], "doc", `"a \"b\""`), version)
	must(t, w.redis.HSet(ctx, w.thing("2"), "doc", `a "b"`).Err())
	expect(t, w.compare(), nil)
	must(t, w.redis.HSet(ctx, w.thing("2"), "doc", `"a \"b\""`).Err())
	expect(t, w.compare(), []string{"redis: things/2 doc:"})
}

func TestARowThatIsSkippedInOneStoreIsStillComparedInTheOther(t *testing.T) {
	w := newWorld(t)
	w.spec.Tables[0].SkipElastic = map[string]bool{"2": true}
	w.elastic("DELETE", "/"+w.spec.Tables[0].Index+"/_doc/2", "")
	expect(t, w.compare(), nil)
	must(t, w.redis.Del(t.Context(), w.thing("2")).Err())
	expect(t, w.compare(), []string{"redis: things/2: want the key"})
	w.spec.Tables[0].SkipRedis = w.spec.Tables[0].SkipElastic
	expect(t, w.compare(), nil)
}

func TestManyDifferencesAreAllCountedAndTwentyListed(t *testing.T) {
	w := newWorld(t)
	for i := range 30 {
		must(t, w.redis.HSet(t.Context(), w.thing(fmt.Sprint(100+i)), "id", i).Err())
	}
	report := w.compare()
	if report.Total != 30 || len(report.Differences) != 20 || !strings.Contains(report.String(), "and 10 more") {
		t.Fatalf("want 30 differences of which 20 are listed, got %s", report)
	}
}

func TestATableWithoutAPrimaryKeyOrWithAnUnknownTypeIsRefused(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ create, want string }{
		{"CREATE TABLE odd (a int)", "no primary key"},
		{"CREATE TABLE odd (a int PRIMARY KEY, p point)", "type point"},
	} {
		_, err := w.spec.DB.ExecContext(t.Context(), c.create)
		must(t, err)
		spec := w.spec
		spec.Tables = []TableSpec{{Table: "odd", RedisKey: "{db}:odd:{a}"}}
		if _, err := Compare(t.Context(), spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want an error with %q, got %v", c.create, c.want, err)
		}
		_, err = w.spec.DB.ExecContext(t.Context(), "DROP TABLE odd")
		must(t, err)
	}
}

func TestWaitEqualReturnsWhenTheStoresCatchUpAndFailsWhenTheyDoNot(t *testing.T) {
	w := newWorld(t)
	must(t, w.redis.Del(t.Context(), w.pair("x:8")).Err())
	if report, err := WaitEqual(t.Context(), w.spec, 0); err == nil || !strings.Contains(err.Error(), "pairs/x:8") || report.Total != 1 {
		t.Fatalf("want the missing key in the error, got %v", err)
	}
	var repair sync.WaitGroup
	repair.Go(func() { w.putJSON("x:8", pairs["x:8"]) })
	_, err := WaitEqual(t.Context(), w.spec, 2*time.Minute)
	repair.Wait()
	must(t, err)
}

func TestWaitEqualAsksAStoreThatIsDownAgainAndSaysSoInTheEnd(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if asked.Add(1) <= 2 {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		target, err := url.Parse(w.spec.ElasticURL)
		if err != nil {
			panic(err)
		}
		httputil.NewSingleHostReverseProxy(target).ServeHTTP(rw, r)
	}))
	defer proxy.Close()
	down, up := w.spec, w.spec
	up.ElasticURL = proxy.URL
	if _, err := Compare(t.Context(), up); !errors.Is(err, errUnavailable) {
		t.Fatalf("want the 503 from Compare, got %v", err)
	}
	_, err := WaitEqual(t.Context(), up, 2*time.Minute)
	must(t, err)

	down.RedisAddr = "127.0.0.1:1"
	if _, err := WaitEqual(t.Context(), down, 0); !errors.Is(err, errUnavailable) {
		t.Fatalf("want an error about the store, got %v", err)
	}
}

func TestTheCallersSessionsAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.spec.DB.SetMaxOpenConns(1)
	before := sessionOf(t, w.spec.DB)
	w.compare()
	if after := sessionOf(t, w.spec.DB); after != before {
		t.Fatalf("want %s, got %s", before, after)
	}
}

func sessionOf(t *testing.T, db *sql.DB) (s string) {
	t.Helper()
	must(t, db.QueryRowContext(t.Context(), "SELECT CONCAT_WS('|', @@time_zone, @@sql_mode, @@transaction_isolation)").Scan(&s))
	return s
}

func TestEraseRemovesWhatTheTablesHaveAndNothingElse(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	index, neighbour, stranger := w.spec.Tables[0].Index+"-000001", w.spec.Tables[0].Index+"-more", w.spec.Database+":other:1"
	w.elastic("PUT", "/"+index, "")
	w.elastic("PUT", "/"+neighbour, "")
	defer w.elastic("DELETE", "/"+neighbour, "")
	for _, key := range []string{stranger, "lockstep:t:{" + w.thing("9") + "}", "lockstep:t::" + w.pair("{x}:9")} {
		must(t, w.redis.Set(ctx, key, version, 0).Err())
	}
	must(t, Erase(ctx, w.spec))
	must(t, Erase(ctx, w.spec)) // once more changes nothing

	keys, err := w.redis.Keys(ctx, "*"+w.spec.Database+"*").Result()
	must(t, err)
	if len(keys) != 1 || keys[0] != stranger {
		t.Errorf("want only %s left, got %v", stranger, keys)
	}
	for name, want := range map[string]int{w.spec.Tables[0].Index: 404, w.spec.Tables[1].Index: 404, index: 404, neighbour: 200} {
		response, err := http.Head(w.spec.ElasticURL + "/" + name)
		must(t, err)
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("index %s: want %d, got %d", name, want, response.StatusCode)
		}
	}
}
