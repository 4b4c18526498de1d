package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/redis/go-redis/v9"
)

// comparison is what lockstep reconcile --once prints.
type comparison struct {
	Equal, Certain bool
	Tables         []struct {
		Table string
		Rows  int
		Sinks []struct {
			Sink, Incomparable, Reason                      string
			Compared, Letters, Unclear, Repaired, Remaining int
			Mismatches                                      map[string]int
		}
	}
	Findings []struct {
		Table, Sink, Class, Repair string
		Key                        json.RawMessage
		Fields                     []struct{ Field string }
	}
	Left int `json:"findings_left_out"`
}

// reconcile runs lockstep reconcile --once and gives its exit code.
func (w *world) reconcile(args ...string) (c comparison, code int) {
	w.t.Helper()
	c, code, err := w.tryReconcile(args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return c, code
}

// tryReconcile is reconcile for another goroutine.
func (w *world) tryReconcile(args ...string) (c comparison, code int, err error) {
	cmd := exec.Command(w.binary, append([]string{"reconcile", "--once", "-c", w.config, "-o", "json"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		return c, code, err
	}
	if json.Unmarshal(out, &c) != nil || code > 1 {
		return c, code, fmt.Errorf("lockstep reconcile %s: exit code %d\n%s\n%s", strings.Join(args, " "), code, out, &stderr)
	}
	return c, code, nil
}

// counts are the confirmed mismatches by table, sink and class.
func (c *comparison) counts(w *world) map[string]int {
	counts := map[string]int{}
	for _, t := range c.Tables {
		for _, s := range t.Sinks {
			for class, n := range s.Mismatches {
				counts[strings.TrimPrefix(t.Table, w.name+".")+" "+s.Sink+" "+class] += n
			}
			if s.Letters+s.Unclear > 0 || s.Incomparable != "" {
				counts[t.Table+" "+s.Sink+" "+s.Incomparable+s.Reason] += s.Letters + s.Unclear
			}
		}
	}
	return counts
}

// elastic sends a request past the pipeline.
func (w *world) elastic(method, path, body string) []byte {
	w.t.Helper()
	req, err := http.NewRequest(method, w.spec.ElasticURL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode > http.StatusCreated {
		w.t.Fatalf("%s %s: %d %v\n%.2000s", method, path, res.StatusCode, err, text)
	}
	return text
}

// spoilElastic plants n faults of each class in the index of a table, into documents in the
// order in which a search gives them.
func (w *world) spoilElastic(table, field string, n int) {
	w.t.Helper()
	index := w.name + "-" + table
	w.elastic(http.MethodPut, "/"+index+"/_settings", `{"index":{"gc_deletes":"0s"}}`)
	w.elastic(http.MethodPost, "/"+index+"/_refresh", "")
	var found struct {
		Hits struct {
			Hits []struct {
				ID      string          `json:"_id"`
				Version uint64          `json:"_version"`
				Source  json.RawMessage `json:"_source"`
			}
		}
	}
	if err := json.Unmarshal(w.elastic(http.MethodPost, "/"+index+"/_search", fmt.Sprintf(`{"size":%d,"version":true,"sort":["id"]}`, 4*n)), &found); err != nil || len(found.Hits.Hits) < 4*n {
		w.t.Fatalf("%d documents, %v", len(found.Hits.Hits), err)
	}
	var first, then strings.Builder
	outranked := map[string]bool{}
	for i, hit := range found.Hits.Hits {
		var doc map[string]json.RawMessage
		if err := json.Unmarshal(hit.Source, &doc); err != nil {
			w.t.Fatal(err)
		}
		doc[field] = json.RawMessage(`"spoiled"`)
		put := func(version uint64) {
			doc["_lockstep"] = fmt.Appendf(nil, `{"v":%d}`, version)
			text, _ := json.Marshal(doc)
			fmt.Fprintf(&then, "{\"index\":{\"_id\":%q,\"version\":%d,\"version_type\":\"external_gte\"}}\n%s\n", hit.ID, version, text)
		}
		if i < 3*n {
			fmt.Fprintf(&first, "{\"delete\":{\"_id\":%q}}\n", hit.ID)
		}
		switch i / n {
		case 0: // missing, and an orphan elsewhere
			hit.ID = fmt.Sprint(5_000_000 + i)
			doc["id"] = json.RawMessage(hit.ID)
			put(hit.Version)
		case 1: // stale
			put(hit.Version - 1)
		case 2: // differing
			put(hit.Version)
		case 3: // tampered, every other one under a version that nobody can outrank
			if i%2 == 0 {
				put(1<<53 - 1)
				outranked[hit.ID] = true
				break
			}
			text, _ := json.Marshal(doc)
			fmt.Fprintf(&first, "{\"index\":{\"_id\":%q}}\n%s\n", hit.ID, text)
		}
	}
	w.elastic(http.MethodPost, "/"+index+"/_bulk?refresh=true", first.String())
	await(w.t, time.Minute, "Elasticsearch to forget the deletes", func() bool {
		w.elastic(http.MethodPost, "/"+index+"/_refresh", "")
		return !bytes.Contains(w.elastic(http.MethodPost, "/"+index+"/_bulk?refresh=true", then.String()), []byte(`"errors":true`))
	})
	w.elastic(http.MethodPut, "/"+index+"/_settings", `{"index":{"gc_deletes":"1h"}}`)
	for i := range w.spec.Tables {
		if w.spec.Tables[i].Table == table {
			w.spec.Tables[i].SkipElastic = outranked // whose _version stays the other's for ever, and the oracle minds
		}
	}
}

// spoilRedis plants n faults of each class among the rows of a table with these ids.
func (w *world) spoilRedis(table, mode, field string, ids []int, n int) {
	w.t.Helper()
	ctx := w.t.Context()
	client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: strings.Split(w.spec.RedisAddr, ",")})
	defer client.Close()
	do := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	for i, id := range ids[:4*n] {
		key := fmt.Sprintf("%s:%s:%d", w.name, table, id)
		if mode == "hash" {
			doc, err := client.HGetAll(ctx, key).Result()
			do(err)
			v, err := strconv.ParseUint(doc["_lockstep_v"], 10, 64)
			do(err)
			switch i / n {
			case 0:
				do(client.Del(ctx, key).Err())
				doc["id"] = fmt.Sprint(5_000_000 + i)
				do(client.HSet(ctx, fmt.Sprintf("%s:%s:%d", w.name, table, 5_000_000+i), doc).Err())
			case 1:
				do(client.HSet(ctx, key, field, "spoiled", "_lockstep_v", v-1).Err())
			case 2:
				do(client.HSet(ctx, key, field, "spoiled").Err())
			case 3:
				if i%2 == 0 {
					do(client.HSet(ctx, key, field, "spoiled", "_lockstep_v", uint64(1<<53-1)).Err())
				} else {
					do(client.HDel(ctx, key, "_lockstep_v").Err())
				}
			}
			continue
		}
		text, err := client.Get(ctx, key).Result()
		do(err)
		var doc map[string]json.RawMessage
		do(json.Unmarshal([]byte(text), &doc))
		v, err := strconv.ParseUint(strings.Trim(string(doc["_lockstep"]), `{}v":`), 10, 64)
		do(err)
		delete(doc, "_lockstep")
		set := func(key string, end string) {
			text, err := json.Marshal(doc)
			do(err)
			do(client.Set(ctx, key, strings.TrimSuffix(string(text), "}")+end, 0).Err())
		}
		switch i / n {
		case 0:
			do(client.Del(ctx, key).Err())
			doc["id"] = json.RawMessage(fmt.Sprint(5_000_000 + i))
			set(fmt.Sprintf("%s:%s:%d", w.name, table, 5_000_000+i), fmt.Sprintf(`,"_lockstep":{"v":%d}}`, v))
		case 1:
			doc[field] = json.RawMessage(`"spoiled"`)
			set(key, fmt.Sprintf(`,"_lockstep":{"v":%d}}`, v-1))
		case 2:
			doc[field] = json.RawMessage(`"spoiled"`)
			set(key, fmt.Sprintf(`,"_lockstep":{"v":%d}}`, v))
		case 3:
			set(key, "}")
		}
	}
}

func (w *world) ids(table string) (ids []int) {
	w.t.Helper()
	rows, err := w.db.Query("SELECT id FROM " + table + " ORDER BY id")
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int
		if err := rows.Scan(&id); err != nil {
			w.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

var classes = []string{"missing", "stale", "differing", "orphan", "tampered"}

// Three hundred faults of each class (LOCKSTEP_RECONCILE_FAULTS sets another number) are planted in Elasticsearch and in hashes and JSON of
// Redis. One pass finds these and no others, and a repair mends them all.
func TestEveryPlantedFaultIsFoundInOnePassAndRepaired(t *testing.T) {
	t.Parallel()
	n := 300
	if text := os.Getenv("LOCKSTEP_RECONCILE_FAULTS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, 4*n+200)
	p := w.start("run")
	w.equal(3 * time.Minute)
	w.sql("UPDATE questions SET views = views + 1") // so that there are older versions
	w.sql("UPDATE test_cases SET weight = weight + 1")
	if c, code := w.reconcile(); code != 0 || !c.Equal || len(c.Findings) > 0 {
		t.Fatalf("nothing is planted, and it exits with %d: %v", code, c.counts(w))
	}
	w.spoilElastic("questions", "title", n)
	w.spoilRedis("questions", "hash", "title", w.ids("questions"), n)
	w.spoilRedis("test_cases", "json", "input", w.ids("test_cases"), n)
	c, code := w.reconcile("--limit", "20")
	want := map[string]int{}
	for _, class := range classes {
		want["questions search "+class], want["questions cache "+class], want["test_cases cache "+class] = n, n, n
	}
	same := func(got map[string]int) { t.Helper(); onlyPlanted(t, want, got) }
	if same(c.counts(w)); code != 1 || c.Equal || len(c.Findings) != 20 || c.Left != 15*n-20 {
		t.Errorf("it exits with %d, equal %v, and lists %d of the findings, %d not", code, c.Equal, len(c.Findings), c.Left)
	}
	for _, f := range c.Findings {
		if f.Class == "differing" && (len(f.Fields) != 1 || f.Fields[0].Field != "title" && f.Fields[0].Field != "input") {
			t.Errorf("it shows %+v", f)
		}
	}
	if c, code = w.reconcile("--repair", "--dry-run"); code != 1 {
		t.Errorf("a dry run exits with %d", code)
	}
	same(c.counts(w))
	// So many that somebody should look first.
	if out, err := exec.Command(w.binary, "reconcile", "--once", "--repair", "-c", w.config).CombinedOutput(); err == nil || !strings.Contains(string(out), "would do harm now") || !strings.Contains(string(out), "--anyway") {
		t.Errorf("a repair of tables that are degraded: %v\n%s", err, out)
	}
	if c, code = w.reconcile("--repair", "--anyway", "--reason", "planted"); code != 0 || !c.Equal {
		t.Errorf("a repair exits with %d", code)
	}
	if same(c.counts(w)); len(c.Findings) != 100 {
		t.Errorf("it lists %d", len(c.Findings))
	}
	for _, f := range c.Findings {
		if f.Repair != "repaired" {
			t.Errorf("it lists %+v", f)
		}
	}
	if c, code = w.reconcile(); code != 0 {
		t.Errorf("after the repair it exits with %d: %v", code, c.counts(w))
	}
	w.equal(time.Minute)
	p.balanced("search")
	p.balanced("cache")
	p.stop()
}

// onlyPlanted expects what was planted to be found, and nothing else.
func onlyPlanted(t *testing.T, want, got map[string]int) {
	t.Helper()
	for of, m := range want {
		if got[of] != m {
			t.Errorf("%s: %d found, want %d", of, got[of], m)
		}
		delete(got, of)
	}
	for of, m := range got {
		if m > 0 {
			t.Errorf("%s: %d found that nobody planted", of, m)
		}
	}
}

// A Redis Cluster whose slots move while passes look through it: what was planted is found and
// repaired, and nothing else.
func TestACacheInAClusterIsComparedAndRepaired(t *testing.T) {
	t.Parallel()
	const n = 6
	w := newWorld(t, 300)
	cluster := w.ownCluster()
	p := w.start("run")
	w.equal(2 * time.Minute)
	w.sql("UPDATE questions SET views = views + 1")
	w.sql("UPDATE test_cases SET weight = weight + 1")
	w.passed(p)
	w.spoilRedis("questions", "hash", "title", w.ids("questions"), n)
	w.spoilRedis("test_cases", "json", "input", w.ids("test_cases"), n)
	want := map[string]int{}
	for _, class := range classes {
		want["questions cache "+class], want["test_cases cache "+class] = n, n
	}
	// during makes a pass while something happens.
	during := func(happens func(), args ...string) (c comparison, code int) {
		t.Helper()
		ended := make(chan error, 1)
		go func() {
			var err error
			c, code, err = w.tryReconcile(args...)
			ended <- err
		}()
		happens()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		return c, code
	}
	slot := 0
	moves := func() {
		for end := slot + 1000; slot < end; slot++ {
			cluster.Move(t, slot, 0, 1)
		}
	}
	c, code := during(moves)
	if onlyPlanted(t, want, c.counts(w)); code != 1 {
		t.Errorf("it exits with %d", code)
	}
	c, code = during(moves, "--repair", "--anyway")
	if onlyPlanted(t, want, c.counts(w)); code != 0 {
		t.Errorf("a repair exits with %d: %+v", code, c.Findings)
	}
	w.equal(time.Minute)
	c, code = during(moves)
	if onlyPlanted(t, nil, c.counts(w)); code != 0 {
		t.Errorf("after the repair it exits with %d", code)
	}
	p.stop()
}

// Under a load of deletes, rows made again and keys that change, with a kill in the middle,
// nothing is reported. LOCKSTEP_RECONCILE_FOR makes it longer, such as 10m, and
// LOCKSTEP_RECONCILE_RATE, in transactions a second, faster.
func TestNothingThatIsOnlyInFlightIsReported(t *testing.T) {
	during := 20 * time.Second
	if text := os.Getenv("LOCKSTEP_RECONCILE_FOR"); text != "" {
		var err error
		if during, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	rate := 300.0
	if text := os.Getenv("LOCKSTEP_RECONCILE_RATE"); text != "" {
		var err error
		if rate, err = strconv.ParseFloat(text, 64); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, 2000)
	p := w.start("run")
	w.equal(2 * time.Minute)
	end := w.load(rate, 11)
	seen := w.views(rate / 10)
	passes, rows := 0, 0
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for began := time.Now(); time.Since(began) < during; passes++ {
			c, code, err := w.tryReconcile()
			for of, n := range c.counts(w) {
				if n > 0 {
					t.Errorf("%d of %s are reported", n, of)
				}
			}
			if err != nil || code != 0 || t.Failed() {
				t.Errorf("it exits with %d, %v: %+v", code, err, c.Findings)
				return
			}
			for _, t := range c.Tables {
				rows += t.Rows
			}
		}
	}()
	waitFor(t, during/2)
	p.kill()
	waitFor(t, 2*time.Second)
	p = w.start("run")
	<-ended
	stats := end()
	t.Logf("%d passes over %d rows while %.0f rows a second changed: %d views, and %s", passes, rows, float64(stats.Rows()+seen())/stats.Elapsed.Seconds(), seen(), stats)
	w.equal(2 * time.Minute)
	if c, code := w.reconcile(); code != 0 {
		t.Errorf("at the end it exits with %d: %v", code, c.counts(w))
	}
	p.stop()
}

// views counts the views of pages of 20 questions, so many pages a second, until the
// function that it returns is called, which says of how many rows.
func (w *world) views(rate float64) (seen func() int64) {
	ctx, stop := context.WithCancel(w.t.Context())
	var rows int64
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
			defer tick.Stop()
			for page := 0; ; page++ {
				select {
				case <-ctx.Done():
					return nil
				case <-tick.C:
				}
				result, err := w.db.Exec("UPDATE questions SET views=views+1 WHERE id > ? ORDER BY id LIMIT 20", page%97*20)
				if refused, ok := errors.AsType[*mysql.MySQLError](err); ok && (refused.Number == 1213 || refused.Number == 1205) {
					continue // a lock
				}
				if err != nil {
					return err
				}
				n, err := result.RowsAffected()
				if err != nil {
					return err
				}
				rows += n
			}
		}()
	}()
	return sync.OnceValue(func() int64 {
		stop()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		return rows
	})
}

// A reconciler that runs beside the pipeline finds a spoiled row by a sample. Another one
// stands by, and knows after a kill of the first what that has compared.
func TestTheReconcilerRunsAllTheTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 30)
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.config, append(text, "reconcile: {sample_every: 1s}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	p := w.start("run")
	w.equal(2 * time.Minute)
	active := w.start("reconcile")
	covered := func(p *process) func() bool {
		return func() bool {
			for _, table := range tables {
				for _, sink := range []string{"search", "cache"} {
					if p.metric("lockstep_reconcile_coverage_timestamp_seconds", fmt.Sprintf("table=%q", w.name+"."+table.name), fmt.Sprintf("sink=%q", sink)) == 0 {
						return false
					}
				}
			}
			return true
		}
	}
	await(t, 2*time.Minute, "a full pass over every table", covered(active))
	if n := active.metric("lockstep_reconcile_mismatch_total"); n != 0 {
		t.Errorf("%v mismatches, and nothing is wrong", n)
	}
	standby := w.start("reconcile")
	client := redis.NewClient(&redis.Options{Addr: w.spec.RedisAddr})
	defer client.Close()
	if err := client.HSet(t.Context(), w.name+":questions:7", "title", "spoiled").Err(); err != nil {
		t.Fatal(err)
	}
	of := []string{fmt.Sprintf("table=%q", w.name+".questions"), `sink="cache"`}
	await(t, time.Minute, "a sample to find the spoiled row", func() bool { return active.metric("lockstep_reconcile_mismatch_total", of...) > 0 })
	if n := active.metric("lockstep_reconcile_mismatch_class_total", append(of, `class="differing"`)...); n == 0 || active.metric("lockstep_reconcile_mismatch_total", `sink="search"`) != 0 {
		t.Errorf("%v are differing", n)
	}
	if n := standby.metric("lockstep_reconcile_active"); n != 0 {
		t.Errorf("both are active")
	}
	active.kill()
	await(t, time.Minute, "the other one to take over", func() bool { return standby.metric("lockstep_reconcile_active") == 1 })
	await(t, time.Minute, "it to know what the first has compared", covered(standby))
	if n := standby.metric("lockstep_reconcile_passes_total", `kind="full"`); n != 0 {
		t.Errorf("it has made %v full passes again", n)
	}
	w.elastic(http.MethodDelete, "/"+w.name+"-questions/_doc/8", "") // under the very version that the first row read again gets: nothing is written to the source
	if c, code := w.reconcile("--repair", "--reason", "spoiled"); code != 0 || c.counts(w)["questions cache differing"] != 1 || c.counts(w)["questions search missing"] != 1 {
		t.Errorf("a repair exits with %d: %v", code, c.counts(w))
	}
	w.equal(time.Minute)
	standby.stop()
	p.stop()
}
