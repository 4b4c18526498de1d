package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"lockstep/internal/bank"
	"lockstep/internal/oracle"
	"lockstep/internal/testenv"
)

// A Prometheus scrapes a pipeline under load: every panel shows something, every rule
// evaluates, and when something breaks the alerts about it come true, in the stretches
// of time that a test has.
func TestAPrometheusSeesAPipelineAndItsFaults(t *testing.T) {
	w := newWorld(t)
	p := w.start("run")
	t.Run("every panel shows something", func(t *testing.T) {
		for _, b := range boards {
			for _, panel := range b.panels {
				for _, q := range panel.queries {
					w.shows(t, b.name+": "+panel.title, q.text(), panel.quiet)
				}
			}
		}
	})
	t.Run("the metrics are those of the reference", func(t *testing.T) {
		known := reference(t)
		families := w.families(t)
		for name := range known { // those of the client library
			if families[name] == nil && (strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_")) {
				t.Errorf("%s is not at /metrics", name)
			}
		}
		for name, family := range families {
			if !strings.HasPrefix(name, "lockstep_") {
				continue
			}
			labels, ok := known[name]
			if !ok {
				t.Errorf("%s is at /metrics and not in docs/metrics.md", name)
			}
			for _, m := range family.GetMetric() {
				for _, l := range m.GetLabel() {
					if !slices.Contains(labels, l.GetName()) {
						t.Errorf("%s has the label %s, and docs/metrics.md does not say so", name, l.GetName())
					}
				}
			}
		}
	})
	t.Run("every rule evaluates", func(t *testing.T) {
		var answer struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
		w.ask(t, "rules", nil, &answer)
		rules := 0
		for _, g := range answer.Groups {
			for _, r := range g.Rules {
				rules++
				if r.LastError != "" {
					t.Errorf("%s: %s", r.Name, r.LastError)
				}
			}
		}
		if want := len(alerts()); rules <= want {
			t.Errorf("Prometheus has %d rules, of which %d would be alerts", rules, want)
		}
		w.quiet(t, "LockstepNobodyCaptures", "LockstepSourceUnreachable", "LockstepCaptureBehind", "LockstepSourceLogAboutToBeLost", "LockstepBreakerOpen", "LockstepTableHeld",
			"LockstepDeadLettersWaiting", "LockstepRowsDiffer", "LockstepReconcileCoverageOld", "LockstepPipelineDown", "LockstepProcessDown", "LockstepBuildMismatch",
			"LockstepPipelinesShareAJob", "LockstepKafkaUnreachable")
	})
	t.Run("a row that the store refuses", func(t *testing.T) {
		if _, err := bank.PlantPoison(t.Context(), w.db); err != nil {
			t.Fatal(err)
		}
		w.fires(t, "LockstepDeadLettersWaiting", nil, map[string]string{"sink": "search", "class": "mapping", "table": w.name + ".questions"})
		w.fires(t, "LockstepDeadLetterOld", shorter{"> 86400": "> 1"}, map[string]string{"sink": "search"})
	})
	scalers := scalersOfCache(t)
	asks := func(t *testing.T, what string, ok func(seconds float64) bool) {
		t.Helper()
		for name, query := range scalers {
			w.comes(t, name+" asks "+what, query, ok)
		}
	}
	late := func(seconds float64) bool { return seconds > 2 } // autoscaling.targetSeconds
	t.Run("a sink in time asks for no replicas", func(t *testing.T) {
		asks(t, "for none", func(seconds float64) bool { return seconds > 0 && !late(seconds) })
	})
	t.Run("a store that is away", func(t *testing.T) {
		w.cache.Point("127.0.0.1:1")
		w.fires(t, "LockstepBreakerOpen", shorter{"> 120": "> 1"}, map[string]string{"sink": "cache"})
		w.fires(t, "LockstepRouteDegraded", nil, map[string]string{"sink": "cache"})
		w.fires(t, "LockstepSinkNotMoving", shorter{"[5m]": "[5s]"}, map[string]string{"sink": "cache"})
		asks(t, "for none, which would not help", func(seconds float64) bool { return seconds == 0 })
	})
	t.Run("a sink that is late asks for replicas until it has caught up", func(t *testing.T) {
		w.cache.Point(testenv.Redis(t).Addr)
		asks(t, "for more", late)
		asks(t, "for none", func(seconds float64) bool { return !late(seconds) })
	})
	t.Run("a process that is killed, and one without the capture in its place", func(t *testing.T) {
		p.kill()
		w.fires(t, "LockstepPipelineDown", nil, nil)
		w.fires(t, "LockstepProcessDown", nil, nil)
		w.start("sink", "search")
		w.fires(t, "LockstepNobodyCaptures", nil, nil)
		w.fires(t, "LockstepSourceLogAboutToBeLost", shorter{"> 0.5": "> 0"}, nil)
	})
}

// scalersOfCache are the queries whose value is compared with autoscaling.targetSeconds, for the sink
// cache, over a shorter stretch of time: that of KEDA as the chart renders it, and that of
// an adapter as docs/kubernetes.md has it, filled in as the adapter does.
func scalersOfCache(t *testing.T) map[string]string {
	t.Helper()
	root := testenv.Root(t)
	read := func(path string) string {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	keda := regexp.MustCompile(`query: (".*lockstep_sink_latency_seconds.*")`).FindStringSubmatch(read("deploy/helm/testdata/golden/keda.yaml"))
	_, rest, _ := strings.Cut(read("docs/kubernetes.md"), "```yaml\nexternalRules:")
	adapter := regexp.MustCompile(`metricsQuery: (.*)`).FindStringSubmatch(rest)
	if keda == nil || adapter == nil {
		t.Fatalf("KEDA %q, adapter %q", keda, adapter)
	}
	rendered, err := strconv.Unquote(keda[1])
	if err != nil {
		t.Fatal(err)
	}
	scalers := map[string]string{
		"KEDA":        strings.ReplaceAll(rendered, "search", "cache"),
		"the adapter": strings.ReplaceAll(adapter[1], "<<.LabelMatchers>>", `sink="cache",namespace="lockstep"`),
	}
	for name, query := range scalers {
		if !strings.Contains(query, "[2m]") || !strings.Contains(query, `sink="cache"`) {
			t.Fatalf("%s: %s", name, query)
		}
		scalers[name] = strings.ReplaceAll(query, "[2m]", "[10s]")
	}
	return scalers
}

// shorter has a rule speak of a shorter stretch of time.
type shorter map[string]string

// world is a pipeline of its own with a Prometheus that scrapes it.
type world struct {
	t      *testing.T
	db     *sql.DB
	name   string // of the database, the prefix, and in every index and key
	binary string
	config string // path
	admin  string // host:port
	url    string // of Prometheus
	cache  *testenv.Relay
}

func newWorld(t *testing.T) *world {
	t.Helper()
	source, brokers, search, cache := testenv.MySQL(t), testenv.Kafka(t), testenv.Elastic(t), testenv.Redis(t)
	w := &world{t: t, name: testenv.Database(t, source), binary: testenv.Lockstep(t), admin: testenv.FreeAddr(t), cache: testenv.NewRelay(t, cache.Addr)}
	var err error
	if w.db, err = bank.Open(t.Context(), source.Addr, testenv.AdminUser, testenv.AdminPassword, w.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.db.Close() })
	if err := errors.Join(bank.Create(t.Context(), w.db), bank.Seed(t.Context(), w.db, 100, 1)); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`prefix: %[1]s
source: {addr: %[2]q, user: %[3]s, password: %[4]q, server_id: %[5]d}
kafka: {brokers: [%[6]q], partitions: 2, session_timeout: 6s, lease_timeout: 3s}
sinks:
  search: {elastic: {addresses: [%[7]q]}}
  cache: {redis: {addresses: [%[8]q]}}
worker: {stop_within: 2s, breaker_open: 1s}
reconcile: {enabled: true, sample_every: 1s, full_every: 1m, load: 1}
admin: {listen: %[9]q}
tables:
`, w.name, source.Addr, source.User, source.Password, 5000+os.Getpid()%50000, brokers.Addr, search.URL, w.cache.Addr, w.admin)
	spec := oracle.Spec{DB: w.db, Database: w.name, ElasticURL: search.URL, RedisAddr: cache.Addr}
	for _, table := range []string{"questions", "tags"} {
		index, key := w.name+"-"+table, w.name+":"+table+":{pk}"
		text += fmt.Sprintf("  - {match: %q, elastic: {index: %q}, redis: {key: %q, mode: hash}}\n", w.name+"."+table, index, key)
		spec.Tables = append(spec.Tables, oracle.TableSpec{Table: table, Index: index, RedisKey: key, RedisMode: "hash"})
	}
	w.config = filepath.Join(t.TempDir(), "lockstep.yaml")
	if err := os.WriteFile(w.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := oracle.Erase(context.WithoutCancel(t.Context()), spec); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	w.url = testenv.NewPrometheus(t, fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: lockstep
    static_configs: [{targets: [%q], labels: {namespace: lockstep, pod: shop-lockstep-sink-cache-6c5d9b7f4-x2x7p}}]
`, filepath.Join(testenv.Root(t), rulesFile), w.admin))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- (&bank.Workload{DB: w.db, Rate: 50, Seed: 1, Connections: 2}).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("workload: %v", err)
		}
	})
	return w
}

// process is a lockstep that runs until it is killed, at the end of the test at the latest.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func (w *world) start(args ...string) *process {
	w.t.Helper()
	log, err := os.CreateTemp(w.t.TempDir(), "lockstep-*.log")
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	p := &process{cmd: exec.Command(w.binary, append(args, "-c", w.config)...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	w.t.Cleanup(func() {
		p.kill()
		if w.t.Failed() {
			said, _ := os.ReadFile(log.Name())
			lines := strings.Split(strings.TrimSpace(string(said)), "\n")
			w.t.Logf("the end of the log of lockstep %s:\n%s", strings.Join(args, " "), strings.Join(lines[max(0, len(lines)-20):], "\n"))
		}
	})
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.ended
}

// patience is for a machine that is busy; nothing here waits so long on one that is not.
const patience = 5 * time.Minute

// shows waits until a query has an answer with a series, or, of one that is quiet, until
// Prometheus has understood it.
func (w *world) shows(t *testing.T, where, query string, quiet bool) {
	t.Helper()
	query = ofAll.Replace(query)
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		if len(w.query(t, query)) > 0 || quiet {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s shows nothing:\n%s", where, query)
			return
		}
	}
}

// ofAll puts values in the place of a dashboard's variables.
var ofAll = strings.NewReplacer("$cluster", ".*", "$namespace", ".*", "$job", ".*", "$sink", ".*", "$table", ".*", "$__rate_interval", "5s")

// fires waits until one of the rules of an alert is true for the labels.
func (w *world) fires(t *testing.T, alert string, less shorter, labels map[string]string) {
	t.Helper()
	expr := w.expr(t, alert, less)
	var got []map[string]string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		got = w.query(t, expr)
		for _, series := range got {
			fits := true
			for name, value := range labels {
				fits = fits && series[name] == value
			}
			if fits {
				return
			}
		}
	}
	t.Errorf("%s is not true of %v but of %v:\n%s", alert, labels, got, expr)
}

// quiet checks that alerts are true of nothing.
func (w *world) quiet(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if got := w.query(t, w.expr(t, name, nil)); len(got) > 0 {
			t.Errorf("%s is true of %v while all is well", name, got)
		}
	}
}

func (w *world) expr(t *testing.T, alert string, less shorter) string {
	t.Helper()
	for _, r := range alerts() {
		if r.alert == alert {
			expr := r.text()
			for long, short := range less {
				if !strings.Contains(expr, long) {
					t.Fatalf("%s does not say %q", alert, long)
				}
				expr = strings.ReplaceAll(expr, long, short)
			}
			return expr
		}
	}
	t.Fatalf("no alert is called %s", alert)
	return ""
}

// query asks Prometheus for the series that an expression has now.
func (w *world) query(t *testing.T, expr string) (series []map[string]string) {
	t.Helper()
	var answer struct {
		Result []struct{ Metric map[string]string }
	}
	w.ask(t, "query", url.Values{"query": {expr}}, &answer)
	for _, r := range answer.Result {
		series = append(series, r.Metric)
	}
	return series
}

// comes waits until the only value of an expression is as it should be.
func (w *world) comes(t *testing.T, what, expr string, ok func(float64) bool) {
	t.Helper()
	var answer struct{ Result []struct{ Value [2]any } }
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		answer.Result = nil
		w.ask(t, "query", url.Values{"query": {expr}}, &answer)
		if len(answer.Result) == 1 {
			text, _ := answer.Result[0].Value[1].(string)
			if value, err := strconv.ParseFloat(text, 64); err == nil && ok(value) {
				return
			}
		}
	}
	t.Errorf("%s: it does not come to that; it is %v:\n%s", what, answer.Result, expr)
}

// ask gets the data of an answer of Prometheus' API, or fails the test with what it has
// against the question.
func (w *world) ask(t *testing.T, what string, values url.Values, into any) {
	t.Helper()
	res, err := http.Get(w.url + "/api/v1/" + what + "?" + values.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if answer.Status != "success" {
		t.Fatalf("%s of %v: %s", what, values, answer.Error)
	}
	if err := json.Unmarshal(answer.Data, into); err != nil {
		t.Fatal(err)
	}
}

// families are the metrics of the process, by their names.
func (w *world) families(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	res, err := http.Get("http://" + w.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}
