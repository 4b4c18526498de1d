package e2e

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockstep/internal/bank"
	"lockstep/internal/oracle"
	"lockstep/internal/testenv"
)

// world is a question bank with a pipeline of its own: database, topics, indices
// and keys that nobody else has.
type world struct {
	t       *testing.T
	db      *sql.DB
	name    string // of the database, the prefix, and in every index and key
	spec    oracle.Spec
	config  string // path
	again   string // the same with sinks search2 and cache2: groups that begin at the first offset
	binary  string
	brokers string                                // for the test itself
	at      struct{ kafka, search, cache string } // as the configuration names them
}

// tables of the bank and how each is stored in Redis.
var tables = []struct{ name, mode string }{
	{"questions", "hash"}, {"tags", "json"}, {"question_tags", "hash"}, {"test_cases", "json"}, {"all_types", "hash"}, {"odd_keys", "json"},
}

func newWorld(t *testing.T, questions int) *world {
	t.Helper()
	on := theServers(t)
	w := worldOf(t, on.source.Server)
	sqlRights(t, w.db, "## MySQL", w.name, w.name)
	for _, step := range []func() error{
		func() error { return bank.Create(t.Context(), w.db) },
		func() error { return bank.Seed(t.Context(), w.db, questions, 1) },
		func() error { return bank.CreateAllTypes(t.Context(), w.db) },
		func() error { _, err := bank.SeedAllTypes(t.Context(), w.db, 40, 1); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf(`prefix: %[1]s
source: {addr: %[2]q, user: %[1]s, password: %[3]q, server_id: %[4]d, tls: {mode: verify, %[5]s}}
kafka: {brokers: [%[6]q], partitions: 4, session_timeout: 6s, lease_timeout: 3s, %[7]s}
sinks:
  search: {elastic: {addresses: [%[8]q], timeout: 4m, %[9]s}}
  cache: {redis: {addresses: [%[10]q], %[11]s}}
worker: {stop_within: 2s}
admin: {listen: "127.0.0.1:0"}
tables:
`, w.name, on.source.Addr, secrets["source"], 100_000+rand.IntN(1<<30), on.files(), w.at.kafka, w.login("kafka"), w.at.search, w.login("search"), w.at.cache, w.login("cache"))
	for _, table := range tables {
		index, key := w.name+"-"+table.name, w.name+":"+table.name+":{pk}"
		text += fmt.Sprintf("  - {match: %q, elastic: {index: %q}, redis: {key: %q, mode: %s}}\n", w.name+"."+table.name, index, key, table.mode)
		w.spec.Tables = append(w.spec.Tables, oracle.TableSpec{Table: table.name, Index: index, RedisKey: key, RedisMode: table.mode})
	}
	dir := t.TempDir()
	w.config, w.again = filepath.Join(dir, "lockstep.yaml"), filepath.Join(dir, "again.yaml")
	again := strings.NewReplacer("  search: ", "  search2: ", "  cache: ", "  cache2: ").Replace(text)
	if err := errors.Join(os.WriteFile(w.config, []byte(text), 0o600), os.WriteFile(w.again, []byte(again), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := oracle.Erase(context.WithoutCancel(t.Context()), w.spec); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return w
}

// worldOf is a world without tables: an empty database of a server, and accounts on the others.
func worldOf(t *testing.T, source testenv.Server) *world {
	t.Helper()
	on := theServers(t)
	w := &world{t: t, name: testenv.Database(t, source), binary: testenv.Lockstep(t), brokers: on.kafka.Plain}
	var err error
	if w.db, err = bank.Open(t.Context(), source.Addr, testenv.AdminUser, testenv.AdminPassword, w.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.db.Close() })
	w.spec = oracle.Spec{DB: w.db, Database: w.name, ElasticURL: on.search.Plain, RedisAddr: on.cache.Addr}
	w.at.kafka, w.at.search, w.at.cache = on.kafka.Addr, on.search.URL, on.cache.Secure
	on.kafka.Accounts(t, secrets["kafka"], testenv.KafkaRights(t, "## Kafka", w.name))
	on.elasticAccount(t, "elasticsearch.md", wholeHeading, w.name, w.name+"-*")
	redisAccount(t, on.cache.Addr, w.name, redisRights(t, "redis.md", "lockstep", w.name))
	return w
}

// login is what the configuration says of the account of the world on a server.
func (w *world) login(server string) string {
	files := theServers(w.t).files()
	switch server {
	case "kafka":
		return fmt.Sprintf("tls: {enabled: true, %s}, sasl: {mechanism: scram-sha-512, username: %s, password: %q}", files, w.name, secrets["kafka"])
	case "search":
		return fmt.Sprintf("username: %s, password: %q, %s", w.name, secrets["elastic"], files)
	}
	return fmt.Sprintf("username: %s, password: %q, tls: {enabled: true, %s}", w.name, secrets["redis"], files)
}

// replace puts other words into the configuration of the world.
func (w *world) replace(old, with string) {
	w.t.Helper()
	for _, path := range []string{w.config, w.again} {
		text, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(text), old) {
			err = fmt.Errorf("%s is not in %s", old, path)
		}
		if err == nil {
			err = os.WriteFile(path, []byte(strings.ReplaceAll(string(text), old, with)), 0o600)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// ownRedis gives the world a Redis that nobody else has, so that it may be stopped and emptied.
func (w *world) ownRedis(settings ...string) *testenv.RedisInstance {
	w.t.Helper()
	rights := append([]string{"--user", w.name}, redisRights(w.t, "redis.md", "lockstep", w.name)...)
	own := testenv.NewSecureRedis(w.t, theServers(w.t).authority, append(settings, rights...)...)
	w.replace(w.at.cache, own.Secure)
	w.at.cache, w.spec.RedisAddr = own.Secure, own.Addr
	w.t.Cleanup(func() { w.spec.RedisAddr = "" }) // it is gone before the world is erased
	return own
}

// ownCluster gives the world a Redis Cluster, without passwords.
func (w *world) ownCluster() *testenv.RedisCluster {
	w.t.Helper()
	own := testenv.NewRedisCluster(w.t)
	masters := own.Addresses[:3]
	w.replace(fmt.Sprintf("[%q], %s", w.at.cache, w.login("cache")), `["`+strings.Join(masters, `", "`)+`"]`)
	w.spec.RedisAddr = strings.Join(masters, ",")
	w.t.Cleanup(func() { w.spec.RedisAddr = "" }) // it is gone before the world is erased
	return own
}

// ownKafka gives the world a Kafka that nobody else has, with a certificate of an authority, so
// that it may be stopped.
func (w *world) ownKafka(authority *testenv.Authority, settings ...string) *testenv.KafkaBroker {
	w.t.Helper()
	own := testenv.NewSecureKafka(w.t, authority, settings...)
	own.Accounts(w.t, secrets["kafka"], testenv.KafkaRights(w.t, "## Kafka", w.name))
	w.replace(w.at.kafka, own.Addr)
	w.at.kafka, w.brokers = own.Addr, own.Plain
	return own
}

// process is a lockstep that runs.
type process struct {
	w     *world
	cmd   *exec.Cmd
	admin string        // host:port, once it said so
	ended chan struct{} // closed when it has ended
	err   error         // how, then
	log   string        // path
}

// start runs lockstep with args and waits until it says where its metrics are.
func (w *world) start(args ...string) *process {
	w.t.Helper()
	p := &process{w: w, cmd: exec.Command(w.binary, append(args, "-c", w.config)...), ended: make(chan struct{})}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	file, err := os.CreateTemp(w.t.TempDir(), "lockstep-*.log")
	if err != nil {
		w.t.Fatal(err)
	}
	p.log = file.Name()
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	admin := make(chan string, 1)
	go func() {
		defer close(p.ended)
		defer file.Close()
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			fmt.Fprintln(file, lines.Text())
			if _, after, ok := strings.Cut(lines.Text(), "admin="); ok && strings.Contains(lines.Text(), "lockstep starts") {
				admin <- strings.Fields(after)[0]
			}
		}
		_, _ = io.Copy(file, out)
		p.err = p.cmd.Wait()
	}()
	w.t.Cleanup(func() {
		p.kill()
		if w.t.Failed() {
			text, _ := os.ReadFile(p.log)
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			w.t.Logf("lockstep %s ended with %v; the end of its log:\n%s", strings.Join(args, " "), p.err, strings.Join(lines[max(0, len(lines)-25):], "\n"))
		}
	})
	select {
	case p.admin = <-admin:
	case <-p.ended:
		text, _ := os.ReadFile(p.log)
		w.t.Fatalf("lockstep %s ended at once: %v\n%s", strings.Join(args, " "), p.err, text)
	case <-time.After(patience):
		w.t.Fatalf("lockstep %s did not start within %s", strings.Join(args, " "), patience)
	}
	return p
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// stop sends SIGTERM and expects a clean end within the thirty seconds that Kubernetes gives.
func (p *process) stop() {
	p.w.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.w.t.Fatalf("SIGTERM: %v", err)
	}
	select {
	case <-p.ended:
		if p.err != nil {
			p.w.t.Fatalf("after SIGTERM it ended with %v", p.err)
		}
	case <-time.After(30 * time.Second):
		p.w.t.Fatal("it did not stop within 30s of SIGTERM")
	}
}

// alive fails the test if the process has ended by itself.
func (p *process) alive() {
	p.w.t.Helper()
	select {
	case <-p.ended:
		p.w.t.Fatalf("lockstep ended by itself: %v", p.err)
	default:
	}
}

// metric adds up the samples of a metric whose labels contain all of want, such
// as `sink="cache"`.
func (p *process) metric(name string, want ...string) float64 {
	p.w.t.Helper()
	response, err := (&http.Client{Timeout: patience}).Get("http://" + p.admin + "/metrics")
	if err != nil {
		p.alive()
		p.w.t.Fatalf("read metrics: %v", err)
	}
	defer response.Body.Close()
	sum := 0.0
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
next:
	for lines.Scan() {
		sample, text, ok := cutLast(lines.Text(), " ")
		if !ok || sample != name && !strings.HasPrefix(sample, name+"{") {
			continue
		}
		for _, label := range want {
			if !strings.Contains(sample, label) {
				continue next
			}
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			p.w.t.Fatalf("metric %s: %v", lines.Text(), err)
		}
		sum += value
	}
	return sum
}

func cutLast(s, sep string) (string, string, bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// patience is what a machine with other work gets for anything that is waited for: a test
// says what must happen, not how fast.
const patience = 4 * time.Minute

// await polls until ok, or fails the test after d, or after patience where that is longer.
func await(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	d = max(d, patience)
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %s for %s", d, what)
		}
	}
}

func (p *process) awaitReady() {
	p.w.t.Helper()
	await(p.w.t, time.Minute, "readiness", func() bool {
		p.alive()
		response, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + p.admin + "/readyz")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// equal waits until both stores hold exactly what MySQL holds.
func (w *world) equal(within time.Duration) {
	w.t.Helper()
	report, err := oracle.WaitEqual(w.t.Context(), w.spec, max(within, patience))
	if err != nil {
		w.t.Fatalf("%v\n%s", err, report)
	}
	if !report.Equal() || report.Compared[oracle.Elastic] == 0 || report.Compared[oracle.Redis] == 0 {
		w.t.Fatalf("the stores differ\n%s", report)
	}
	w.t.Logf("%s", report)
}

// load runs a workload until the returned function ends it.
func (w *world) load(rate float64, seed uint64) (end func() bank.Stats) {
	return w.loadOf(rate, seed, 0)
}

// loadOf is load that makes no more than so many transactions, if not 0.
func (w *world) loadOf(rate float64, seed uint64, most int64) (end func() bank.Stats) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	if text := os.Getenv("LOCKSTEP_E2E_LOAD"); text != "" { // so many times the load, for who has a day or a larger machine
		times, err := strconv.ParseFloat(text, 64)
		if err != nil {
			w.t.Fatalf("LOCKSTEP_E2E_LOAD: %v", err)
		}
		rate *= times
	}
	workload := &bank.Workload{DB: w.db, Rate: rate, Most: most, Seed: seed, Connections: 4}
	ended := make(chan error, 1)
	go func() { ended <- workload.Run(ctx) }()
	stopped := false
	end = func() bank.Stats {
		w.t.Helper()
		if !stopped {
			stopped = true
			cancel()
			if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
				w.t.Fatalf("workload: %v", err)
			}
		}
		return workload.Stats()
	}
	w.t.Cleanup(func() { end() })
	return end
}

// balanced checks the books of a sink: every record received has come to an end.
func (p *process) balanced(sink string) {
	p.w.t.Helper()
	label := fmt.Sprintf("sink=%q", sink)
	var received, settled float64
	await(p.w.t, 30*time.Second, "the books of "+sink+" to balance", func() bool {
		received = p.metric("lockstep_sink_received_total", label)
		settled = p.metric("lockstep_sink_changes_total", label)
		return received == settled
	})
	if received == 0 {
		p.w.t.Fatalf("sink %s has received nothing", sink)
	}
}

// lockstep runs a command that ends by itself and decodes its JSON.
func (w *world) lockstep(into any, args ...string) {
	w.t.Helper()
	cmd := exec.Command(w.binary, append(args, "-c", w.config, "-o", "json")...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("lockstep %s: %v\n%s%s", strings.Join(args, " "), err, out, &stderr)
	}
	w.decode(into, out)
}

// decode reads what a command printed.
func (w *world) decode(into any, out []byte) {
	w.t.Helper()
	if err := json.Unmarshal(out, into); err != nil {
		w.t.Fatalf("lockstep printed no JSON: %v\n%s", err, out)
	}
}

// doctor decodes the findings of the doctor, whatever it makes of them.
func (w *world) doctor(into any) {
	w.t.Helper()
	out, _ := exec.Command(w.binary, "doctor", "-c", w.config, "-o", "json").Output()
	if err := json.Unmarshal(out, into); err != nil {
		w.t.Fatalf("lockstep doctor printed no JSON: %v\n%s", err, out)
	}
}

// reachable says whether something listens.
func reachable(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		conn.Close()
	}
	return err == nil
}
