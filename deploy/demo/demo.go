package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sync/errgroup"

	"lockstep/internal/bank"
	"lockstep/internal/oracle"
	"lockstep/internal/testenv"
)

// The demo's names in the world.
const (
	database = "lockstep_demo"
	search   = "search" // the sink that is Elasticsearch
	cache    = "cache"  // the sink that is Redis
)

// patience is how long the stores may take to catch up, on a busy machine too.
const patience = 10 * time.Minute

// tables says where the rows of the question bank go.
var tables = []oracle.TableSpec{
	{Table: "questions", Index: "demo-questions", RedisKey: "demo:question:{id}", RedisMode: "hash"},
	{Table: "tags", Index: "demo-tags", RedisKey: "demo:tag:{id}", RedisMode: "hash"},
	{Table: "question_tags", Index: "demo-question-tags", RedisKey: "demo:question-tag:{pk}", RedisMode: "json"},
	{Table: "test_cases", Index: "demo-test-cases", RedisKey: "demo:case:{id}", RedisMode: "json"},
}

// configuration is the file that lockstep runs with.
var configuration = template.Must(template.New("lockstep.yaml").Parse(`# Written by the demo. Each run of the demo has a prefix of its own.
prefix: {{.Prefix}}
source:
  addr: {{.MySQL.Addr}}
  user: {{.MySQL.User}}
  password: ${LOCKSTEP_MYSQL_PASSWORD:-{{.MySQL.Password}}}
  server_id: 4310
kafka:
  brokers: [{{.Kafka.Addr}}]
  partitions: 4
sinks:
  {{.Search}}:
    elastic:
      addresses: [{{.Elastic.URL}}]
  {{.Cache}}:
    redis:
      addresses: [{{.Redis.Addr}}]
tables:
{{- range .Tables}}
  - match: {{$.Database}}.{{.Table}}
    elastic:
      index: {{.Index}}
    redis:
      key: {{.RedisKey}}
      mode: {{.RedisMode}}
{{- end}}
admin:
  listen: {{.Admin}}
{{.Objectives}}`))

// demo is one run. The fields of the first block are what the caller chooses.
type demo struct {
	rate      float64
	duration  time.Duration
	questions int
	binary    string
	dir       string
	admin     string      // host:port of lockstep's HTTP server
	route     bool        // show where reads are sent when Elasticsearch breaks
	breaker   chan string // what is to be told of it

	began   time.Time
	db      *sql.DB
	spec    oracle.Spec
	prefix  string
	config  string // path of the configuration
	servers struct{ mysql, kafka, elastic, redis testenv.Server }
}

// say prints one step, with the seconds since the demo began.
func (d *demo) say(format string, args ...any) {
	fmt.Printf("%4.0fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// run is the demo from its first step to its last. Lockstep is stopped when it
// returns.
func (d *demo) run(ctx context.Context) (err error) {
	if err := d.prepare(); err != nil {
		return err
	}
	if err := d.resetWorld(ctx); err != nil {
		return err
	}
	defer d.db.Close()

	child, err := start(d.binary, []string{"run", "-c", d.config}, filepath.Join(d.dir, "lockstep.log"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, child.stop()) }()
	// When lockstep ends by itself, whatever the demo is doing ends with it.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		<-child.done
		cancel(child.lost())
	}()

	if d.route {
		d.say("started %s run -c %s", d.binary, d.config)
		err = d.showRoute(ctx)
	} else {
		err = d.show(ctx, child)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// prepare finds the servers and the binary and writes the configuration.
func (d *demo) prepare() error {
	for name, server := range map[string]*testenv.Server{
		"mysql": &d.servers.mysql, "kafka": &d.servers.kafka, "elasticsearch": &d.servers.elastic, "redis": &d.servers.redis,
	} {
		found, err := testenv.Lookup(name)
		if err != nil {
			return err
		}
		*server = found
	}
	if _, err := os.Stat(d.binary); err != nil {
		return fmt.Errorf("%s is not there; build it with go build -o %s ./cmd/lockstep", d.binary, d.binary)
	}
	if err := checkFree(d.admin); err != nil {
		return err
	}
	d.prefix = fmt.Sprintf("demo-%d", time.Now().Unix())
	d.config = filepath.Join(d.dir, "lockstep.yaml")
	d.spec = oracle.Spec{Database: database, Tables: tables, ElasticURL: d.servers.elastic.URL, RedisAddr: d.servers.redis.Addr}

	limits := ""
	if d.route {
		limits = objectives
	}
	var text bytes.Buffer
	if err := configuration.Execute(&text, map[string]any{
		"Objectives": limits,
		"Prefix":     d.prefix, "Database": database, "Tables": tables, "Search": search, "Cache": cache, "Admin": d.admin,
		"MySQL": d.servers.mysql, "Kafka": d.servers.kafka, "Elastic": d.servers.elastic, "Redis": d.servers.redis,
	}); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(d.config, text.Bytes(), 0o600)
}

// resetWorld removes what an earlier demo left and fills the question bank.
func (d *demo) resetWorld(ctx context.Context) error {
	d.say("clearing what an earlier demo left")
	server := d.servers.mysql
	db, err := bank.Open(ctx, server.Addr, testenv.AdminUser, testenv.AdminPassword, database)
	if err != nil {
		return fmt.Errorf("%w; start the servers with make up", err)
	}
	if _, err := db.ExecContext(ctx, "DROP DATABASE "+database); err != nil {
		return errors.Join(fmt.Errorf("drop database %s: %w", database, err), db.Close())
	}
	if err := db.Close(); err != nil {
		return err
	}
	if err := oracle.Erase(ctx, d.spec); err != nil {
		return err
	}
	d.say("creating a question bank of %s questions in MySQL, with their tags and test cases", thousands(d.questions))
	if d.db, err = bank.Open(ctx, server.Addr, testenv.AdminUser, testenv.AdminPassword, database); err != nil {
		return err
	}
	d.spec.DB = d.db
	if err := bank.Create(ctx, d.db); err != nil {
		return errors.Join(err, d.db.Close())
	}
	if err := bank.Seed(ctx, d.db, d.questions, 1); err != nil {
		return errors.Join(err, d.db.Close())
	}
	return nil
}

// show is what happens while lockstep runs.
func (d *demo) show(ctx context.Context, child *child) error {
	d.say("started %s run -c %s; its metrics: http://%s/metrics", d.binary, d.config, d.admin)
	m := &meter{url: "http://" + d.admin + "/metrics", prefix: d.prefix}
	copied, err := d.awaitCopy(ctx, m)
	if err != nil {
		return err
	}
	d.say("writing %.0f transactions/s for %s\n", d.rate, d.duration)

	load := &bank.Workload{DB: d.db, Rate: d.rate, Seed: uint64(d.began.UnixNano()), Connections: 8}
	p := &panel{meter: m, load: load, before: copied, began: d.began, duration: d.duration}
	live, stopLive := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.run(live)
	}()
	closePanel := func() {
		stopLive()
		<-ended
	}
	defer closePanel()

	poison, err := d.write(ctx, load, p)
	if err != nil {
		return err
	}
	// The books tell cheaply when the stores have caught up; comparing is what proves it.
	p.note("writing has ended; waiting until both stores have caught up")
	if _, err := m.settled(ctx, patience); err != nil {
		return err
	}
	p.note("comparing every row of MySQL with both stores")
	d.spec.Tables[0].SkipElastic = map[string]bool{poison: true}
	report, err := oracle.WaitEqual(ctx, d.spec, patience)
	if err != nil {
		return err
	}
	at, err := m.settled(ctx, patience)
	if err != nil {
		return err
	}
	closePanel()
	fmt.Println()
	d.say("the load: %s", load.Stats())
	d.say("compared: %s", report)
	if err := d.deadLetter(ctx, poison, at); err != nil {
		return err
	}
	if err := child.stop(); err != nil {
		return err
	}
	d.say("stopped lockstep")
	d.verdict(p, at, poison)
	return nil
}

// awaitCopy returns when both sinks have settled every row that was there before
// lockstep started, with what the metrics say then.
func (d *demo) awaitCopy(ctx context.Context, m *meter) (snapshot, error) {
	rows := 0
	for _, t := range tables {
		var n int
		if err := d.db.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+t.Table).Scan(&n); err != nil {
			return snapshot{}, fmt.Errorf("count %s: %w", t.Table, err)
		}
		rows += n
	}
	deadline := time.Now().Add(patience)
	spoken := time.Now()
	for {
		at, err := m.read(ctx)
		switch {
		case err == nil && at.sinks[search].settled() >= rows && at.sinks[cache].settled() >= rows:
			d.say("the initial copy of %s rows is in both stores", thousands(rows))
			return at, nil
		case ctx.Err() != nil:
			return at, ctx.Err()
		case time.Now().After(deadline):
			return at, fmt.Errorf("the initial copy is not in both stores after %s: %d rows in MySQL, %d settled in Elasticsearch, %d in Redis (%w); see %s",
				patience, rows, at.sinks[search].settled(), at.sinks[cache].settled(), err, filepath.Join(d.dir, "lockstep.log"))
		case err == nil && time.Since(spoken) > 2*time.Second:
			spoken = time.Now()
			d.say("initial copy: %s rows in MySQL, %s in Elasticsearch, %s in Redis", thousands(rows), thousands(at.sinks[search].settled()), thousands(at.sinks[cache].settled()))
		}
		if !pause(ctx, 100*time.Millisecond) {
			return at, ctx.Err()
		}
	}
}

// write runs the load and plants the poison row in its middle. It returns the
// row's key.
func (d *demo) write(ctx context.Context, load *bank.Workload, p *panel) (poison string, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.duration)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return load.Run(ctx) })
	group.Go(func() error {
		if !pause(ctx, d.duration/2) {
			return ctx.Err()
		}
		id, err := bank.PlantPoison(ctx, d.db)
		poison = strconv.FormatUint(id, 10)
		p.note("planted question " + poison + ", whose settings Elasticsearch refuses and Redis takes")
		return err
	})
	if err := group.Wait(); err != nil {
		return "", err
	}
	return poison, nil
}

// deadLetter prints the list of dead letters and wants exactly the poison row in
// it, from Elasticsearch.
func (d *demo) deadLetter(ctx context.Context, poison string, at snapshot) error {
	args := []string{"dlq", "list", "-c", d.config}
	out, err := exec.CommandContext(ctx, d.binary, args...).CombinedOutput()
	fmt.Printf("\n$ %s %s\n%s\n", d.binary, strings.Join(args, " "), out)
	if err != nil {
		return fmt.Errorf("lockstep dlq list: %w", err)
	}
	if !bytes.Contains(out, []byte(poison)) {
		return fmt.Errorf("the poison row questions/%s is not among the dead letters", poison)
	}
	if at.sinks[search].outcomes["dead"] != 1 || at.sinks[cache].outcomes["dead"] != 0 {
		return fmt.Errorf("want one dead letter from Elasticsearch and none from Redis, got %d and %d", at.sinks[search].outcomes["dead"], at.sinks[cache].outcomes["dead"])
	}
	return nil
}

func (d *demo) verdict(p *panel, at snapshot, poison string) {
	d.say("EQUAL: Elasticsearch and Redis hold every row of MySQL, field by field, and nothing else;")
	fmt.Printf("       the one row that Elasticsearch refuses, questions/%s, is a dead letter.\n\n", poison)
	fmt.Println("       from commit to applied, over the whole load:")
	for _, s := range []struct{ name, sink string }{{"Elasticsearch", search}, {"Redis", cache}} {
		l := at.sinks[s.sink].latency.since(p.before.sinks[s.sink].latency)
		fmt.Printf("         %-14s P50 %s   P99 %s   of %s changes\n", s.name, l.quantile(.5), l.quantile(.99), thousands(int(l.count)))
	}
	mysql, redis := d.servers.mysql, d.servers.redis
	fmt.Printf(`
Look around (the servers are up, lockstep is stopped):

  curl -s '%s/demo-questions/_search?q=statement:warehouse&size=2&pretty'
  redis-cli -p %s HGETALL demo:question:%s
  mysql -h 127.0.0.1 -P %s -u %s -p%s %s
  %s dlq list -c %s

Run it again, with metrics on http://%s/metrics:

  %s run -c %s
`, d.servers.elastic.URL, port(redis.Addr), poison, port(mysql.Addr), testenv.AdminUser, testenv.AdminPassword, database,
		d.binary, d.config, d.admin, d.binary, d.config)
}
