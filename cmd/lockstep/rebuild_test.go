package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/audit"
	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/internal/testenv"
	"lockstep/sinks"
	"lockstep/sinks/elastic"
)

// shelf is a table of two columns with a sink that indexes it.
type shelf struct {
	*elastic.Sink
	p           *process
	db          *sql.DB
	table       cdc.TableName
	path, alias string // of the configuration; of the index
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	source, search := testenv.MySQL(t), testenv.Elastic(t)
	name := testenv.Database(t, source)
	b := &shelf{table: cdc.TableName{DB: name, Table: "questions"}, alias: name + "_questions", db: testenv.OpenMySQL(t, source, name)}
	b.exec(t, "CREATE TABLE questions (id int PRIMARY KEY, code int)")
	b.path = file(t, "lockstep.yaml", fmt.Sprintf(`prefix: %s
source: {addr: %q, user: %s, password: %s, server_id: 76544}
kafka: {brokers: [%q], partitions: 2}
sinks:
  search: {elastic: {addresses: [%q], replicas: 0, bulk_docs: 200}}
  cache: {redis: {addresses: ["127.0.0.1:1"]}}
tables:
  - match: "%[1]s.questions"
`, name, source.Addr, source.User, source.Password, testenv.Kafka(t).Addr, search.URL))
	a := &app{configPath: b.path, stderr: t.Output(), env: func(string) (string, bool) { return "", false }}
	cfg, err := a.loadConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b.p, err = newProcess(cfg, a.quiet()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.p.kafka.Close)
	t.Cleanup(func() {
		if err := b.p.kafka.DeleteTopics(context.Background(), audit.TopicOf(name)); err != nil {
			t.Error(err)
		}
	})
	if b.Sink, err = b.p.elasticSink("search", *cfg.Sinks["search"].Elastic, b.p.newShaper("search")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	t.Cleanup(func() {
		for i := range 9 {
			req, _ := http.NewRequest(http.MethodDelete, fmt.Sprintf("%s/%s-%06d", search.URL, b.alias, i), nil)
			if res, err := http.DefaultClient.Do(req); err == nil {
				res.Body.Close()
			}
		}
	})
	return b
}

func (b *shelf) exec(t *testing.T, statement string) {
	t.Helper()
	if _, err := b.db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

// A column changes its type: the doctor says what to run, and running it mends it.
func TestTheCommandThatTheDoctorNamesRebuildsTheIndex(t *testing.T) {
	b := newShelf(t)
	s, p, table, path, alias := b.Sink, b.p, b.table, b.path, b.alias
	row := cdc.Change{Table: table, Op: cdc.OpCreate, Version: 1 << 42, Key: []byte(`{"id":1}`), After: []byte(`{"id":1,"code":7}`)}
	if out := s.Apply(t.Context(), []cdc.Change{row})[0]; out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	examine := func() finding {
		t.Helper()
		shape, err := mysql.Describe(t.Context(), p.cfg.Source, table)
		if err != nil {
			t.Fatal(err)
		}
		if shape.Columns[0].Nullable || !shape.Columns[1].Nullable {
			t.Errorf("%+v: id may not be NULL and code may", shape.Columns)
		}
		found, err := p.examineSink(t.Context(), examined{}, "search", []cdc.Table{shape}, nil)
		if err != nil || len(found) != 2 {
			t.Fatalf("%+v, %v", found, err)
		}
		return found[1]
	}
	if f := examine(); !f.OK || f.Detail != "can be stored in "+alias+"-000001" {
		t.Errorf("%+v", f)
	}
	b.exec(t, "ALTER TABLE questions MODIFY code varchar(20)")
	command := fmt.Sprintf("lockstep rebuild search --table %s", table)
	if f := examine(); f.OK || !strings.HasSuffix(f.Detail, "field code is long and column code varchar(20) needs keyword") || !strings.HasPrefix(f.Fix, "run: "+command) {
		t.Errorf("%+v; want it to name %s", f, command)
	}
	words := append(strings.Fields(command)[1:], "-c", path)
	if got := lockstep(t, nil, append(words, "--dry-run")...); got.code != 0 || !strings.Contains(got.stdout, alias+"-000001 with 1 documents would be copied to "+alias+"-000002") {
		t.Errorf("%+v", got)
	}
	got := lockstep(t, nil, append(words, "-o", "json")...)
	var out elastic.Rebuilt
	if err := json.Unmarshal([]byte(got.stdout), &out); err != nil || got.code != 0 || out.To != alias+"-000002" || out.Documents != 1 || len(out.Changes) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if f := examine(); !f.OK || f.Detail != "can be stored in "+alias+"-000002" {
		t.Errorf("%+v", f)
	}
	if got := lockstep(t, nil, append(words, "--drop-old")...); got.code != 0 || got.stdout != "deleted: "+alias+"-000001\n" {
		t.Errorf("%+v", got)
	}
	row.Version, row.After = row.Version+1, []byte(`{"id":1,"code":"seven"}`)
	if out := s.Apply(t.Context(), []cdc.Change{row})[0]; out.Verdict != sinks.Applied {
		t.Error(out)
	}

	for args, want := range map[string]string{
		"rebuild cache --table " + table.String():                         "the sink cache is redis, which has no index to rebuild",
		"rebuild cash --table " + table.String():                          `has no sink "cash"`,
		"rebuild search":                                                  `--table "" is not db.table`,
		"rebuild search --table " + table.DB + ".tags":                    "is not captured",
		"rebuild search --leave-out --drop-old --table " + table.String(): "--drop-old rebuilds nothing",
	} {
		if got := lockstep(t, nil, append(strings.Fields(args), "-c", path)...); got.code != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("%s: %+v; want %q and exit code 2", args, got, want)
		}
	}
}

// Rows are written all the time, by a worker that is held when it must be.
func TestARebuildThatIsKilledAtRandomMomentsLosesNothingAndIsRunAgain(t *testing.T) {
	b := newShelf(t)
	const rows = 3000
	change := func(id, v int) cdc.Change {
		return cdc.Change{Table: b.table, Op: cdc.OpUpdate, Version: cdc.Version(1<<42 + v), Key: fmt.Appendf(nil, `{"id":%d}`, id), After: fmt.Appendf(nil, `{"id":%d,"code":%d}`, id, v)}
	}
	var first []cdc.Change
	for id := range rows {
		first = append(first, change(id, 1))
	}
	for _, out := range b.Apply(t.Context(), first) {
		if out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	b.exec(t, "ALTER TABLE questions MODIFY code varchar(20)")
	var stop atomic.Bool
	last := make([]int, rows)
	var writer sync.WaitGroup
	writer.Go(func() {
		for v := 2; !stop.Load(); v++ {
			id := v % rows
			for b.Apply(context.WithoutCancel(t.Context()), []cdc.Change{change(id, v)})[0].Verdict == sinks.Unavailable {
				if stop.Load() {
					return // its last change was not taken
				}
				time.Sleep(5 * time.Millisecond)
			}
			last[id] = v
		}
	})
	defer writer.Wait()
	defer stop.Store(true)
	binary := testenv.Lockstep(t)
	args := []string{"rebuild", "search", "--table", b.table.String(), "-c", b.path}
	began := time.Now()
	if out, err := exec.Command(binary, append(args, "--dry-run")...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dry, killed := time.Since(began), 0
	for range 6 {
		cmd := exec.Command(binary, args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(dry + time.Duration(rand.IntN(600))*time.Millisecond)
		_ = cmd.Process.Kill()
		if cmd.Wait() != nil {
			killed++
		}
	}
	if killed == 0 {
		t.Error("no run was killed")
	}
	if out, err := exec.Command(binary, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	stop.Store(true)
	writer.Wait()
	changes := make([]cdc.Change, rows)
	for id := range rows {
		changes[id] = change(id, max(1, last[id]))
	}
	for id, out := range b.Apply(t.Context(), changes) {
		if out.Verdict != sinks.Duplicate {
			t.Fatalf("row %d: its last change at %d gets %+v; want duplicate", id, last[id], out)
		}
	}
}
