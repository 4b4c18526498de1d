package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/internal/bank"
	"lockstep/internal/testenv"
)

const (
	database = "lockstep_bench"
	backlog  = "questions" // the table whose changes are drained
	guarded  = "guarded"   // the table that is written while barriers are measured
	live     = "live"      // the table that is written while latency is measured
	acked    = "acked"     // the same while acknowledgements are measured
	stepped  = "stepped"   // the same at rising rates
	search   = "search"    // the sink that is Elasticsearch
	cache    = "cache"     // the sink that is Redis

	partitions = 4 // of every topic
)

// patience bounds each wait for something that comes by itself.
const patience = 5 * time.Minute

// bench is one run. The fields of the first block are what the caller chooses.
type bench struct {
	rows     int
	rate     float64 // rows per second
	per      int     // rows of a transaction
	wide     int     // bytes more of each row of servers
	duration time.Duration
	out      string
	binary   string
	dir      string
	parts    []string // to measure; nil for all

	began   time.Time
	name    string // of this run, in every store
	db      *sql.DB
	kafka   *kafkago.Client
	redis   *goredis.Client
	servers struct{ mysql, kafka, elastic, redis testenv.Server }
	before  string // the GTIDs executed before the backlog
	docs    *documents
	logs    []string // of the children
	figures []Figure

	maxRecord int // of the next pipeline; 0 for the default
}

// say tells a person what goes on, with the seconds since the beginning.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// only chooses what is measured.
func (b *bench) only(list string) error {
	b.parts = strings.Split(list, ",")
	for _, part := range b.parts {
		if !slices.Contains([]string{"capture", "search", "cache", "latency", "steps", "ack", "large", "letters", "barrier", "servers"}, part) {
			return fmt.Errorf("%q is no part", part)
		}
	}
	return nil
}

func (b *bench) wants(parts ...string) bool {
	return b.parts == nil || slices.ContainsFunc(parts, func(part string) bool { return slices.Contains(b.parts, part) })
}

// sinks reports whether any sink takes part.
func (b *bench) sinks() bool {
	return b.wants("search", "cache", "latency", "steps", "barrier", "servers")
}

// run measures everything and removes what it wrote.
func (b *bench) run(ctx context.Context) (err error) {
	if err := b.prepare(b.sinks(), b.dir); err != nil {
		return err
	}
	release, err := b.alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	defer func() {
		b.say("removing what was written")
		clearing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, b.clear(clearing), b.db.Close(), b.redis.Close())
	}()
	header := b.header(ctx)
	for _, step := range []struct {
		wanted bool
		run    func(context.Context) error
	}{
		{true, b.createWorld},
		{b.wants("capture", "search", "cache"), b.firstStart},
		{b.wants("capture", "search", "cache"), b.writeBacklog},
		{b.wants("capture", "search", "cache"), b.measureCapture},
		{b.wants("search", "cache"), b.readPublished},
		{b.wants("search"), b.measureSearch},
		{b.wants("cache"), b.measureCache},
		{b.wants("latency"), b.measureLatency},
		{b.wants("steps"), b.measureSteps},
		{b.wants("ack"), b.measureAck},
		{b.wants("barrier"), b.measureBarrier},
		{b.wants("servers"), b.measureServers},
		{b.wants("large"), b.measureLarge},
		{b.wants("letters"), b.measureLetters},
	} {
		if !step.wanted {
			continue
		}
		if err := step.run(ctx); err != nil {
			return err
		}
	}
	header.Warnings = b.warnings()
	header.Seconds = round(time.Since(b.began).Seconds())
	report := Report{Header: header, Figures: b.figures}
	fmt.Print(report.table())
	if err := report.save(b.out); err != nil {
		return err
	}
	b.say("the figures are in %s", b.out)
	return nil
}

// prepare finds the servers and makes the folders.
func (b *bench) prepare(elastic bool, dir string) error {
	servers := map[string]*testenv.Server{"mysql": &b.servers.mysql, "kafka": &b.servers.kafka, "redis": &b.servers.redis}
	if elastic { // the others do with Redis, which the capture looks into at its first start
		servers["elasticsearch"] = &b.servers.elastic
	}
	for name, server := range servers {
		found, err := testenv.Lookup(name)
		if err != nil {
			return err
		}
		*server = found
	}
	if _, err := os.Stat(b.binary); err != nil {
		return fmt.Errorf("%s is not there; make build makes it", b.binary)
	}
	b.name = fmt.Sprintf("bench-%d", b.began.Unix())
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = stepWriters
	b.kafka = &kafkago.Client{Addr: kafkago.TCP(b.servers.kafka.Addr), Timeout: 30 * time.Second}
	b.redis = goredis.NewClient(&goredis.Options{Addr: b.servers.redis.Addr, ReadTimeout: 30 * time.Second})
	for _, path := range []string{dir, filepath.Dir(b.out)} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// alone refuses a second run at the same time: both would measure each other, and
// the second would remove the tables of the first.
func (b *bench) alone(ctx context.Context) (release func(), err error) {
	if b.db, err = bank.Open(ctx, b.servers.mysql.Addr, testenv.AdminUser, testenv.AdminPassword, database); err != nil {
		return nil, fmt.Errorf("%w; make up starts the servers", err)
	}
	conn, err := b.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	var got int
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK('lockstep_bench', 0)").Scan(&got); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if got != 1 {
		return nil, errors.Join(errors.New("another bench is running on this MySQL"), conn.Close())
	}
	return func() { conn.Close() }, nil
}

// createWorld begins with nothing, also where an earlier run was killed, and makes
// the tables.
func (b *bench) createWorld(ctx context.Context) error {
	b.say("%s: %s row changes; clearing what a killed run may have left", b.name, thousands(float64(b.rows)))
	if err := b.clear(ctx); err != nil {
		return err
	}
	if _, err := b.db.ExecContext(ctx, "CREATE DATABASE "+database+" DEFAULT CHARACTER SET utf8mb4"); err != nil {
		return fmt.Errorf("create database %s: %w", database, err)
	}
	for _, table := range []string{backlog, live, acked, stepped, guarded} {
		if _, err := b.db.ExecContext(ctx, fmt.Sprintf(createTable, database+"."+table)); err != nil {
			return fmt.Errorf("create table %s: %w", table, err)
		}
	}
	return nil
}

// configuration is what Lockstep runs with: the defaults, but for names, and no
// replicas, for which the local servers have no second node.
var configuration = template.Must(template.New("lockstep.yaml").Parse(`# Written by bench.
prefix: {{.Name}}-{{.Table}}
source:
  addr: {{.MySQL.Addr}}
  user: {{.MySQL.User}}
  password: {{.MySQL.Password}}
  server_id: {{.ServerID}}
kafka:
  brokers: [{{.Kafka.Addr}}]
  partitions: {{.Partitions}}
{{- if .MaxRecordBytes}}
  max_record_bytes: {{.MaxRecordBytes}}
{{- end}}
sinks:
{{- if .Elastic.URL}}
  {{.Search}}:
    elastic:
      addresses: [{{.Elastic.URL}}]
      replicas: 0
{{- end}}
  {{.Cache}}:
    redis:
      addresses: [{{.Redis.Addr}}]
tables:
  - match: {{.Database}}.{{.Table}}
{{- if .Elastic.URL}}
    elastic:
      index: {{.Name}}-{table}
{{- end}}
    redis:
      key: "{{.Name}}:{table}:{id}"
admin:
  listen: {{.Admin}}
`))

// pipeline is a configured Lockstep for one table.
type pipeline struct {
	table  string
	prefix string
	topic  string
	index  string
	keys   string // what its Redis keys begin with
	config string // path
	admin  string
}

func (b *bench) pipeline(table string) (*pipeline, error) {
	admin, err := freeAddress()
	if err != nil {
		return nil, err
	}
	prefix := b.name + "-" + table
	p := &pipeline{
		table: table, prefix: prefix, topic: prefix + "." + database + "." + table, index: b.name + "-" + table,
		keys: b.name + ":" + table + ":", config: filepath.Join(b.dir, table+".yaml"), admin: admin,
	}
	var text strings.Builder
	if err := configuration.Execute(&text, map[string]any{
		"Name": b.name, "Table": table, "Database": database, "Search": search, "Cache": cache, "Admin": admin, "ServerID": serverID(0),
		"Partitions": partitions, "MaxRecordBytes": b.maxRecord, "MySQL": b.servers.mysql, "Kafka": b.servers.kafka, "Elastic": b.servers.elastic, "Redis": b.servers.redis,
	}); err != nil {
		return nil, err
	}
	return p, os.WriteFile(p.config, []byte(text.String()), 0o600)
}

// serverID is a replica id that only this process uses.
func serverID(n int) uint32 { return 3_000_000_000 + uint32(os.Getpid()%1_000_000)*10 + uint32(n) }

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// firstStart runs the whole pipeline over a table of one row, so that the position
// is saved, and topics, index and groups are there before anything is measured.
func (b *bench) firstStart(ctx context.Context) error {
	b.say("first start of lockstep, with one row")
	if err := insertRows(ctx, b.db, backlog, firstRow, firstRow); err != nil {
		return err
	}
	p, err := b.pipeline(backlog)
	if err != nil {
		return err
	}
	command, what := "capture", "the first row is in Kafka"
	if b.sinks() {
		command, what = "run", "the first row is in both sinks"
	}
	c, err := b.start(p, command)
	if err != nil {
		return err
	}
	_, err = c.await(ctx, what, func(m metrics) bool {
		return m.sum("lockstep_capture_connected") == 1 && m.sum("lockstep_kafka_acked_records_total", "topic", p.topic) == 1 &&
			(!b.sinks() || m.settled(search) == 1 && m.settled(cache) == 1)
	})
	if err := errors.Join(err, c.stop()); err != nil {
		return err
	}
	return b.db.QueryRowContext(ctx, "SELECT @@GLOBAL.gtid_executed").Scan(&b.before)
}

func (b *bench) add(name string, value float64, unit string) {
	b.figures = append(b.figures, Figure{Name: name, Value: round(value), Unit: unit})
}

// beside adds a figure with what the bare loop did.
func (b *bench) beside(name string, value float64, unit string, ceiling float64) {
	ratio, ceiling := round(value/ceiling), round(ceiling)
	b.figures = append(b.figures, Figure{Name: name, Value: round(value), Unit: unit, Ceiling: &ceiling, Ratio: &ratio})
}
