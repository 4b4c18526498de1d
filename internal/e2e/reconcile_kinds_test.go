package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"lockstep/internal/oracle"
	"lockstep/internal/testenv"
)

// kinds are a table for each way in which a row finds its place in a store, and in which it
// is another document there, with its entry of the configuration; NAME is the database.
var kinds = []struct{ name, create, rows, entry string }{
	{"open", "(id INT PRIMARY KEY, status VARCHAR(9), email VARCHAR(40), n INT)", "(1,'open','ann@x.org',1),(2,'shut','bob@x.org',2),(3,'open','cat@x.org',3)",
		"redis: {key: 'NAME:open:{pk}', mode: json}, mask: {email: sha256}, shape: {where: row.status == 'open', rename: {n: number}, compute: {twice: row.n * 2}}"},
	{"routed", "(id INT PRIMARY KEY, region VARCHAR(9) NOT NULL, v INT)", "(1,'eu',1),(2,'eu',2),(3,'us',3),(4,'us',4)",
		"elastic: {index: NAME-routed, routing: region, deletes: tombstone}, redis: {key: 'NAME:routed:{region}:{id}', mode: hash}"},
	{"member", "(a VARCHAR(20) COLLATE utf8mb4_general_ci, b INT, v INT, PRIMARY KEY (a, b))", "('Ä/b',1,1),('a:c',2,2),('',3,3),('plain',4,4)", "redis: {key: 'NAME:member:{a}', member: '{b}', mode: set}"},
	{"score", "(id INT PRIMARY KEY, points INT)", "(1,10),(2,20),(3,30)", "redis: {key: 'NAME:score', member: '{id}', score: points, mode: zset}"},
	{"told", "(id INT PRIMARY KEY, v VARCHAR(20))", "(1,'x'),(2,'y')", "redis: {key: 'NAME:told:{id}', value: v, mode: string}"},
	{"story", "(id INT PRIMARY KEY, v INT)", "(1,1),(2,2)", "redis: {key: 'NAME:story:{id}', mode: stream}"},
	{"cached", "(id INT PRIMARY KEY)", "(1)", "redis: {key: 'NAME:cached:{id}', mode: invalidate}"},
	{"nothing", "(id INT PRIMARY KEY)", "", "redis: {key: 'NAME:nothing:{id}', mode: json}"},
	{"left_out", "(a INT)", "(1)", "skip: true"},
}

// MariaDB with a table of every kind: nothing is reported while nothing is wrong, each
// planted fault is, and a repair mends all but one that a sweep removes: a copy in a place that
// its row has left.
func TestRowsOfEveryKindAreComparedAndRepaired(t *testing.T) {
	t.Parallel()
	source := testenv.MariaDB(t)
	w := worldOf(t, source)
	sqlRights(t, w.db, "### MariaDB", w.name, w.name, " REQUIRE X509", "") // the local one has no TLS
	text := fmt.Sprintf(`prefix: %[1]s
source: {addr: %[2]q, user: %[1]s, password: %[3]q, server_id: %[4]d, mask_salt: 9f2c4e6a8b0d1f3e5a7c9e0b2d4f6a8c}
kafka: {brokers: [%[5]q], partitions: 2, %[6]s}
sinks:
  search: {elastic: {addresses: [%[7]q], %[8]s}}
  cache: {redis: {addresses: [%[9]q], %[10]s}}
admin: {listen: "127.0.0.1:0"}
tables:
`, w.name, source.Addr, secrets["source"], 5000+os.Getpid()%50000, w.at.kafka, w.login("kafka"), w.at.search, w.login("search"), w.at.cache, w.login("cache"))
	for _, k := range kinds {
		w.sql("CREATE TABLE " + k.name + " " + k.create)
		if k.rows != "" {
			w.sql("INSERT INTO " + k.name + " VALUES " + k.rows)
		}
		index := ", elastic: {index: NAME-" + k.name + "}"
		if strings.Contains(k.entry, "elastic:") || k.entry == "skip: true" {
			index = ""
		}
		text += strings.ReplaceAll("  - {match: NAME."+k.name+", "+k.entry+index+"}\n", "NAME", w.name)
		w.spec.Tables = append(w.spec.Tables, oracle.TableSpec{Table: k.name, Index: w.name + "-" + k.name})
	}
	w.config = filepath.Join(t.TempDir(), "lockstep.yaml")
	if err := os.WriteFile(w.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: w.spec.RedisAddr})
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := oracle.Erase(ctx, w.spec); err != nil {
			t.Errorf("clean up: %v", err)
		}
		for keys := client.Scan(ctx, 0, "*"+w.name+"*", 1000).Iterator(); keys.Next(ctx); {
			client.Del(ctx, keys.Val())
		}
		client.Close()
	})
	p := w.start("run")
	w.passed(p)
	w.sql("DELETE FROM routed WHERE id = 4") // a tombstone
	w.sql("UPDATE routed SET region = 'eu' WHERE id = 3")
	w.sql("UPDATE open SET status = 'open', n = 9 WHERE id = 2")
	w.sql("UPDATE open SET status = 'shut' WHERE id = 3")
	w.sql("UPDATE story SET v = 5 WHERE id = 1")
	w.sql("UPDATE score SET points = NULL WHERE id = 3")
	w.sql("UPDATE member SET a = 'ä/B' WHERE b = 1")
	w.passed(p)
	incomparable := map[string]int{w.name + ".cached cache its rows are only invalidated there (redis.mode: invalidate), so there is nothing to compare with them": 0}
	c, code := w.reconcile()
	if counts := c.counts(w); code != 0 || !maps.Equal(counts, incomparable) || len(c.Tables) != len(kinds)-1 {
		t.Fatalf("nothing is planted, and it exits with %d: %v", code, counts)
	}

	doc := func(method, index, id, query string) string {
		return string(w.elastic(method, "/"+w.name+"-"+index+"/_doc/"+id+query, ""))
	}
	put := func(index, id, query, body string) {
		t.Helper()
		w.elastic(http.MethodPut, "/"+w.name+"-"+index+"/_doc/"+id+query, body)
	}
	do := func(args ...any) {
		t.Helper()
		for i := range args {
			if s, ok := args[i].(string); ok {
				args[i] = strings.ReplaceAll(s, "NAME", w.name)
			}
		}
		if err := client.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(args, err)
		}
	}
	doc(http.MethodDelete, "open", "1", "")                           // missing
	put("open", "3", "", `{"id":3,"status":"open"}`)                  // orphan: its row does not meet the condition
	put("routed", "4", "?routing=us", `{"id":4,"region":"us","v":4}`) // orphan in place of a tombstone
	put("routed", "1", "?routing=eu", `{"id":1,"region":"eu","v":7}`) // tampered
	doc(http.MethodDelete, "member", "plain:4", "")                   // missing
	do("SET", "NAME:open:1", strings.Replace(client.Get(t.Context(), w.name+":open:1").Val(), `"twice":2`, `"twice":3`, 1))
	do("COPY", "NAME:routed:eu:1", "NAME:routed:us:1") // orphan: a place of another region
	do("HSET", "NAME:routed:us:1", "region", "us")
	do("DEL", "NAME:routed:eu:2")
	do("SREM", "NAME:member:plain", "4")
	do("ZADD", "NAME:score", "5", "2")
	do("ZADD", "NAME:score", "5", "3") // orphan: a row without points has no place
	do("SET", "NAME:told:1", "spoiled")
	do("XTRIM", "NAME:story:1", "MAXLEN", "0")
	w.sql("UPDATE score SET points = 11 WHERE id = 1") // the log goes on
	w.passed(p)

	want := map[string]int{
		"open search missing": 1, "open search orphan": 1, "routed search orphan": 1, "routed search tampered": 1, "member search missing": 1,
		"open cache differing": 1, "routed cache orphan": 1, "routed cache missing": 1, "member cache missing": 1,
		"score cache differing": 1, "score cache orphan": 1, "told cache differing": 1, "story cache missing": 1,
	}
	maps.Copy(want, incomparable)
	c, code = w.reconcile()
	if counts := c.counts(w); code != 1 || !maps.Equal(counts, want) {
		t.Errorf("it exits with %d and says\n%v\nwant\n%v", code, counts, want)
	}
	for _, f := range c.Findings {
		if strings.Contains(fmt.Sprintf("%+v %s", f, f.Key), "@x.org") {
			t.Errorf("it shows what is masked: %+v", f)
		}
	}
	if c, code = w.reconcile("--repair", "--anyway", "--reason", "planted"); code != 1 {
		t.Errorf("a repair exits with %d", code)
	}
	var remain []string
	for _, f := range c.Findings {
		if f.Repair != "repaired" {
			remain = append(remain, strings.TrimPrefix(f.Table, w.name+".")+" "+f.Sink+" "+f.Class)
		}
	}
	slices.Sort(remain)
	if left := []string{"routed cache orphan"}; !slices.Equal(remain, left) {
		t.Errorf("%q remain, want %q", remain, left)
	}
	w.lockstep(new(any), "snapshot", "start", "--table", w.name+".routed", "--sweep")
	await(t, 3*time.Minute, "the sweep", func() bool {
		c, code = w.reconcile()
		return code == 0
	})
	p.stop()
}

// passed waits until everything that is committed is in the sinks.
func (w *world) passed(p *process) {
	w.t.Helper()
	p.alive()
	w.lockstep(new(any), "barrier", "--timeout", "3m")
}
