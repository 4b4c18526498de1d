package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/internal/testenv"
	"lockstep/sinks"
	"lockstep/sinks/elastic"
)

// A column changes its type: the doctor says what to run, and running it mends it.
func TestTheCommandThatTheDoctorNamesRebuildsTheIndex(t *testing.T) {
	source, search := testenv.MySQL(t), testenv.Elastic(t)
	name := testenv.Database(t, source)
	db := testenv.OpenMySQL(t, source, name)
	if _, err := db.Exec("CREATE TABLE questions (id int PRIMARY KEY, code int)"); err != nil {
		t.Fatal(err)
	}
	path := file(t, "lockstep.yaml", fmt.Sprintf(`prefix: %s
source: {addr: %q, user: %s, password: %s, server_id: 76544}
kafka: {brokers: ["127.0.0.1:1"], partitions: 2}
sinks:
  search: {elastic: {addresses: [%q], replicas: 0}}
  cache: {redis: {addresses: ["127.0.0.1:1"]}}
tables:
  - match: "%[1]s.questions"
`, name, source.Addr, source.User, source.Password, search.URL))
	a := &app{configPath: path, stderr: t.Output(), env: func(string) (string, bool) { return "", false }}
	cfg, err := a.loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProcess(cfg, a.quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer p.kafka.Close()
	s, err := p.elasticSink("search", *cfg.Sinks["search"].Elastic)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	alias := name + "_questions"
	t.Cleanup(func() {
		for i := range 3 {
			req, _ := http.NewRequest(http.MethodDelete, fmt.Sprintf("%s/%s-%06d", search.URL, alias, i), nil)
			if res, err := http.DefaultClient.Do(req); err == nil {
				res.Body.Close()
			}
		}
	})
	table := cdc.TableName{DB: name, Table: "questions"}
	row := cdc.Change{Table: table, Op: cdc.OpCreate, Version: 1 << 42, Key: []byte(`{"id":1}`), After: []byte(`{"id":1,"code":7}`)}
	if out := s.Apply(t.Context(), []cdc.Change{row})[0]; out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	examine := func() finding {
		t.Helper()
		shape, err := mysql.Describe(t.Context(), cfg.Source, table)
		if err != nil {
			t.Fatal(err)
		}
		if shape.Columns[0].Nullable || !shape.Columns[1].Nullable {
			t.Errorf("%+v: id may not be NULL and code may", shape.Columns)
		}
		found, err := p.examineSink(t.Context(), "search", []cdc.Table{shape}, nil)
		if err != nil || len(found) != 2 {
			t.Fatalf("%+v, %v", found, err)
		}
		return found[1]
	}
	if f := examine(); !f.OK || f.Detail != "can be stored in "+alias+"-000001" {
		t.Errorf("%+v", f)
	}
	if _, err := db.Exec("ALTER TABLE questions MODIFY code varchar(20)"); err != nil {
		t.Fatal(err)
	}
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
		"rebuild search --table " + name + ".tags":                        "is not captured",
		"rebuild search --leave-out --drop-old --table " + table.String(): "--drop-old rebuilds nothing",
	} {
		if got := lockstep(t, nil, append(strings.Fields(args), "-c", path)...); got.code != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("%s: %+v; want %q and exit code 2", args, got, want)
		}
	}
}
