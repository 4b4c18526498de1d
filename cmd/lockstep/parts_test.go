package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"lockstep/config"
)

// Every field of the configuration belongs to something, and everything that is named there is
// a field or a section of it.
func TestEveryFieldOfTheConfigurationConcernsSomebody(t *testing.T) {
	met := map[string]bool{}
	for _, field := range config.Fields() {
		c, _ := concernOf(field)
		if c == nil {
			t.Errorf("nothing says what a change of %s means", field)
			continue
		}
		met[c.field] = true
	}
	known := []string{config.CapturePart, clockPart, configMapPart, replaysPart, reconcilePart, allSinks, elasticSinks, redisSinks, thisSink}
	for _, c := range concerns {
		whole := c.field == "sinks" || c.field == "tables[].shapes" // which there are
		if !met[c.field] && !whole {
			t.Errorf("%s is no field", c.field)
		}
		if c.restart && len(c.parts) > 0 {
			t.Errorf("%s is refused and has parts begin anew", c.field)
		}
		for _, part := range c.parts {
			if !slices.Contains(known, part) {
				t.Errorf("%s concerns %q, which is no part", c.field, part)
			}
		}
	}
}

// docs/operating.md says of every row of concerns what it does.
func TestThePageSaysWhatAChangeOfEachFieldDoes(t *testing.T) {
	page, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Changing the configuration\n")
	section, _, _ = strings.Cut(section, "\n### ")
	says := func(text, field string) bool { return strings.Contains(text, "`"+field+"`") }
	words := map[string]string{
		config.CapturePart: "the capture", replaysPart: "replays", reconcilePart: "reconciler", configMapPart: "what publishes the routes in Kubernetes",
		allSinks: "all sinks", elasticSinks: "the sinks of that kind", redisSinks: "the sinks of that kind", thisSink: "that sink",
	}
	_, refused, _ := strings.Cut(section, "\n- what a running process cannot have is refused")
	refused, _, _ = strings.Cut(refused, "\n\n")
	atOnce, _, _ := strings.Cut(section[strings.Index(section, "\n- what can change at once does"):], "\n- a part whose")
	for _, c := range concerns {
		field := strings.NewReplacer("*", "NAME").Replace(c.field)
		switch {
		case c.restart:
			if !says(refused, field) {
				t.Errorf("the page does not say that %s needs a restart", field)
			}
			continue
		case len(c.parts) == 0:
			if !says(atOnce, field) {
				t.Errorf("the page does not say that %s counts at once", field)
			}
			continue
		}
		var want []string
		for _, part := range c.parts {
			if part != clockPart { // nobody sees that one
				want = append(want, strings.TrimPrefix(words[part], "the "))
			}
		}
		slices.Sort(want)
		found := false
		for line := range strings.Lines(section) {
			cells := strings.Split(line, " | ")
			if len(cells) != 2 || !says(cells[0], field) {
				continue
			}
			found = true
			var got []string
			for word := range strings.SplitSeq(strings.TrimSuffix(strings.TrimSpace(cells[1]), " |"), ", ") {
				got = append(got, strings.TrimPrefix(word, "the "))
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("what begins anew with %s (-program +page)\n%s", field, diff)
			}
		}
		if !found {
			t.Errorf("the page does not say what begins anew with %s", field)
		}
	}
}

const planned = `prefix: shop
source: {addr: "127.0.0.1:3306", user: u, password: one, server_id: 7}
sinks:
  search: {elastic: {addresses: ["http://127.0.0.1:9200"]}}
  cache: {redis: {addresses: ["127.0.0.1:6379"]}}
admin: {listen: ""}
tables:
  - match: shop.orders
    shape: {where: "row.a > 1"}
    shapes: {cache: {fields: [id]}}
  - match: shop.items
`

func TestAChangeConcernsThoseWhoHaveIt(t *testing.T) {
	env := func(string) (string, bool) { return "", false }
	from, err := config.Parse("from", []byte(planned), env)
	if err != nil {
		t.Fatal(err)
	}
	everybody := []string{"capture", "reconcile", "replays", "sink cache", "sink search"}
	for _, tc := range []struct {
		name, old, new string
		want           plan
	}{
		{"nothing", "shop.items", "shop.items", plan{}},
		{"a comment", "tables:", "# of the shop\ntables:", plan{}},
		{"a password", "password: one", "password: two", plan{Fields: []string{"source.password"}, Restarts: []string{"capture", "clock", "reconcile", "replays", "sink cache", "sink search"}}},
		{"a rate", "server_id: 7", "server_id: 7, snapshot: {rows_per_second: 5}", plan{Fields: []string{"source.snapshot.rows_per_second"}, Restarts: []string{"capture", "reconcile"}}},
		{"a table more", "  - match: shop.items", "  - match: shop.items\n  - match: shop.bills", plan{Fields: []string{"tables"}, Restarts: everybody}},
		{"a table less", "  - match: shop.items\n", "", plan{Fields: []string{"tables"}, Restarts: everybody}},
		{"another table", "shop.items", "shop.bills", plan{Fields: []string{"tables[1].match"}, Restarts: everybody}},
		{"a condition", "row.a > 1", "row.a > 2", plan{Fields: []string{"tables[0].shape.where"}, Restarts: []string{"reconcile", "replays", "sink cache", "sink search"}}},
		{"a shape of one sink", "fields: [id]", "fields: [id, a]", plan{Fields: []string{"tables[0].shapes.cache.fields"}, Restarts: []string{"reconcile", "replays", "sink cache"}}},
		{"a mapping", "shop.items", "shop.items\n    elastic: {mapping: {a: {type: text}}}", plan{Fields: []string{"tables[1].elastic.mapping.a"}, Restarts: []string{"reconcile", "replays", "sink search"}}},
		{"a mode", "shop.items", "shop.items\n    redis: {mode: json}", plan{Fields: []string{"tables[1].redis.mode"}, Restarts: []string{"reconcile", "replays", "sink cache"}}},
		{"one sink", `"127.0.0.1:6379"]`, `"127.0.0.1:6379"], db: 2`, plan{Fields: []string{"sinks.cache.redis.db"}, Restarts: []string{"reconcile", "replays", "sink cache"}}},
		{"limits", "admin:", "worker: {calls_max: 30}\nadmin:", plan{Fields: []string{"worker.calls_max"}, Restarts: []string{"replays", "sink cache", "sink search"}}},
		{"objectives", "admin:", "objectives: {p99: 900ms}\nadmin:", plan{Fields: []string{"objectives.p99"}, AtOnce: []string{"objectives.p99"}}},
		{"a sink more", "admin:", "  more: {redis: {addresses: [\"127.0.0.1:6380\"]}}\nadmin:", plan{Fields: []string{"sinks.more"}, Refused: []string{"sinks.more"}}},
		{"another pipeline", "prefix: shop", "prefix: mall", plan{Fields: []string{"prefix"}, Refused: []string{"prefix"}}},
		{"a password of Kafka", "admin:", "kafka: {sasl: {mechanism: plain, username: u, password: two}}\nadmin:", plan{Fields: []string{"kafka.sasl.mechanism", "kafka.sasl.username", "kafka.sasl.password"}, AtOnce: []string{"kafka.sasl.mechanism", "kafka.sasl.username", "kafka.sasl.password"}, Refused: []string{"kafka.sasl"}}},
		{"certificates of Kafka", "admin:", "kafka: {tls: {enabled: true, ca_file: c}}\nadmin:", plan{Fields: []string{"kafka.tls.enabled", "kafka.tls.ca_file"}, AtOnce: []string{"kafka.tls.enabled", "kafka.tls.ca_file"}}},
		{"brokers", "admin:", "kafka: {brokers: [\"kafka:9092\"]}\nadmin:", plan{Fields: []string{"kafka.brokers[0]"}, Refused: []string{"kafka.brokers[0]"}}},
		{"another port", `listen: ""`, `listen: "127.0.0.1:1"`, plan{Fields: []string{"admin.listen"}, Refused: []string{"admin.listen"}}},
		{"TLS", `listen: ""`, `listen: "", tls: {cert_file: c, key_file: k}`, plan{Fields: []string{"admin.tls.cert_file", "admin.tls.key_file"}, AtOnce: []string{"admin.tls.cert_file", "admin.tls.key_file"}, Refused: []string{"admin.tls"}}},
	} {
		to, err := config.Parse("to", []byte(strings.Replace(planned, tc.old, tc.new, 1)), env)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		for _, list := range []*[]string{&tc.want.Fields, &tc.want.AtOnce, &tc.want.Restarts, &tc.want.Refused} {
			if *list == nil {
				*list = []string{}
			}
		}
		got := planOf(from, to)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

// reloading is a process whose parts are those of a test.
type reloading struct {
	*reloader
	t      *testing.T
	path   string
	began  chan string // a part and what it began with
	fail   chan error
	finish context.CancelFunc
	ended  chan error
}

func newReloading(t *testing.T) *reloading {
	t.Helper()
	return newReloadingFrom(t, file(t, "lockstep.yaml", planned))
}

func newReloadingFrom(t *testing.T, path string) *reloading {
	t.Helper()
	r := &reloading{t: t, path: path, began: make(chan string, 10), fail: make(chan error), ended: make(chan error, 2)}
	a := &app{configPath: r.path, stderr: io.Discard, env: func(string) (string, bool) { return "", false }}
	text, err := a.readConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProcess(text.cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kafka.Close)
	admin, err := p.listenAdmin()
	if err != nil {
		t.Fatal(err)
	}
	r.reloader = p.newReloader(a, text, admin)
	ctx, cancel := context.WithCancel(t.Context())
	r.finish = cancel
	for _, part := range []string{"sink search", "sink cache"} {
		go func() {
			r.ended <- p.under(ctx, part, func(ctx context.Context, p *process) error {
				r.began <- part + " " + p.cfg.Tables[0].Shape.Where
				select {
				case <-ctx.Done():
					return nil
				case err := <-r.fail:
					return err
				}
			})
		}()
	}
	return r
}

func (r *reloading) write(old, new string) {
	r.t.Helper()
	if err := os.WriteFile(r.path, []byte(strings.Replace(planned, old, new, 1)), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// begin waits for parts that begin.
func (r *reloading) begin(want ...string) {
	r.t.Helper()
	var got []string
	for range want {
		select {
		case one := <-r.began:
			got = append(got, one)
		case <-time.After(30 * time.Second):
			r.t.Fatalf("%v begin; want %v", got, want)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("what begins: %s", diff)
	}
	select {
	case more := <-r.began:
		r.t.Errorf("%s begins, too", more)
	default:
	}
}

func (r *reloading) count(outcome string) float64 {
	return testutil.ToFloat64(r.metrics.reloads.WithLabelValues(outcome))
}

func TestAFileCountsWhenItHasBeenThereForTwoLooksOrSomebodyAsks(t *testing.T) {
	r := newReloading(t)
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	r.write("row.a > 1", "row.a > 2")
	r.look(false)
	if n := r.count(reloadApplied); n != 0 {
		t.Errorf("a file that may be half written counts")
	}
	r.look(false)
	r.begin("sink cache row.a > 2", "sink search row.a > 2")
	r.look(false)
	r.look(false)
	r.write("row.a > 1", "row.a > 3")
	r.look(true)
	r.begin("sink cache row.a > 3", "sink search row.a > 3")
	r.write("db", "db") // back, with one sink otherwise
	r.look(true)
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	r.write(`"127.0.0.1:6379"]`, `"127.0.0.1:6379"], db: 2`)
	r.look(true)
	r.begin("sink cache row.a > 1")
	if n := r.count(reloadApplied); n != 4 {
		t.Errorf("%v reloads were applied; want 4", n)
	}
	r.finish()
	for range 2 {
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	}
}

func TestAFileThatCannotBeUsedChangesNothing(t *testing.T) {
	r := newReloading(t)
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	for _, bad := range []struct{ outcome, old, new, want string }{
		{reloadInvalid, "row.a > 1", "row.a >", "tables[0].shape.where"},
		{reloadInvalid, "prefix: shop", "prefix: [", "not YAML"},
		{reloadInvalid, `listen: ""`, `listen: "", tokens: [{name: ann, role: viewer, file: nowhere}]`, "admin.tokens[0].file"},
		{reloadInvalid, "server_id: 7", "server_id: 7, tls: {mode: verify, ca_file: nowhere}", "source.tls.ca_file: open nowhere"},
		{reloadRefused, "prefix: shop", "prefix: mall", "prefix: cannot change while the process runs; restart it to have that, or put back what was there"},
	} {
		before := r.count(bad.outcome)
		r.write(bad.old, bad.new)
		for range 4 {
			r.look(false)
		}
		s := r.status()
		if n := r.count(bad.outcome) - before; n != 1 || !strings.Contains(s.Problem, bad.want) || s.FailedAt == nil || testutil.ToFloat64(r.metrics.successful) != 0 {
			t.Errorf("%s: counted %v times; %+v", bad.new, n, s)
		}
		if now := r.process.now(); now.cfg.Prefix != "shop" || now != r.process {
			t.Errorf("%s: the configuration that runs is another one", bad.new)
		}
	}
	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	r.look(true)
	if s := r.status(); !strings.Contains(s.Problem, "there is no such file") {
		t.Errorf("%+v", s)
	}
	r.write("", "")
	r.look(true)
	if s := r.status(); s.Problem != "" || testutil.ToFloat64(r.metrics.successful) != 1 {
		t.Errorf("%+v", s)
	}
	r.begin()
	r.finish()
}

// What the configuration names is there when the capture begins: it would wait for it else.
func TestACaptureRefusesToBeginWithoutItsCertificates(t *testing.T) {
	c := file(t, "lockstep.yaml", strings.Replace(planned, "server_id: 7", "server_id: 7, tls: {mode: verify, ca_file: nowhere}", 1))
	if got := lockstep(t, nil, "capture", "-c", c); got.code != 1 || !strings.Contains(got.stderr, "source.tls.ca_file: open nowhere: no such file") {
		t.Errorf("%+v", got)
	}
}

// What stands in the place of the file may be anything: the process says so, goes on, and takes
// the next file that is right.
func TestWhateverTakesThePlaceOfTheFileTheProcessGoesOn(t *testing.T) {
	r := newReloading(t)
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	for _, tc := range []struct {
		want  string
		place func(path string) error
	}{
		{"is no file", func(path string) error { return syscall.Mkfifo(path, 0o600) }},
		{"is no file", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"is no file", func(path string) error { return os.Symlink("/dev/zero", path) }},
		{"is empty", func(path string) error { return os.WriteFile(path, nil, 0o600) }},
		{"bytes", func(path string) error { return os.WriteFile(path, make([]byte, 10<<20), 0o600) }},
		{"there is no such file", func(string) error { return nil }},
	} {
		if err := errors.Join(os.Remove(r.path), tc.place(r.path)); err != nil {
			t.Fatal(err)
		}
		looked := make(chan bool)
		go func() { r.look(true); close(looked) }()
		select {
		case <-looked:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: it looks for ever", tc.want)
		}
		if s := r.status(); !strings.Contains(s.Problem, tc.want) {
			t.Errorf("%+v does not say %q", s, tc.want)
		}
	}
	r.write("row.a > 1", "row.a > 2")
	r.look(true)
	r.begin("sink cache row.a > 2", "sink search row.a > 2")
	r.finish()
}

// A reconciler that is turned off while the process runs is none that somebody waits for.
func TestAReconcilerThatIsTurnedOffIsNotWaitedFor(t *testing.T) {
	r := newReloading(t)
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	p := r.process
	p.ready.add("sink cache", func() bool { return true })
	p.ready.add(reconcilePart, func() bool { return false })
	p.ready.say(reconcilePart, func() string { return "joining" })
	over, end := context.WithCancel(t.Context())
	end()
	if err := p.compareNothing(over); err != nil {
		t.Error(err)
	}
	if parts, ready := p.ready.state(); !ready || len(parts) != 1 || len(p.ready.doing()) != 0 {
		t.Errorf("%v %v", parts, p.ready.doing())
	}
	r.finish()
}

// What a configuration names may come later than itself, as Secrets of Kubernetes do beside a
// ConfigMap: then it runs without anybody's doing.
func TestAFileThatComesLaterMendsTheConfiguration(t *testing.T) {
	r := newReloading(t)
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	token := filepath.Join(t.TempDir(), "token")
	r.write(`listen: ""`, fmt.Sprintf(`listen: "", tokens: [{name: ann, role: viewer, file: %q}]`, token))
	for range 3 {
		r.look(false)
	}
	if s := r.status(); !strings.Contains(s.Problem, "admin.tokens[0].file") || r.count(reloadInvalid) != 1 {
		t.Errorf("%v times: %+v", r.count(reloadInvalid), s)
	}
	if err := os.WriteFile(token, []byte("viewer-0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r.look(false)
	}
	if s := r.status(); s.Problem != "" || r.count(reloadApplied) != 1 {
		t.Errorf("%v times: %+v", r.count(reloadApplied), s)
	}
	r.finish()
}

// revert has a part fail under the second condition, and all begin with the first again.
func (r *reloading) revert() {
	r.begin("sink cache row.a > 2", "sink search row.a > 2")
	r.fail <- errors.New("there is no column a")
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
}

// A part that cannot go on under what it was given goes on under what it had, and so do all
// others; one that cannot go on with that either tries again for a time, and ends the process
// then.
func TestWhatRanBeforeIsGivenBackWhenAPartCannotGoOn(t *testing.T) {
	r := newReloading(t)
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	r.write("row.a > 1", "row.a > 2")
	r.look(true)
	r.revert()
	s := r.status()
	if !strings.Contains(s.Problem, "could not go on: there is no column a") || r.count(reloadReverted) != 1 || r.process.now().cfg.Tables[0].Shape.Where != "row.a > 1" {
		t.Errorf("%+v", s)
	}
	r.look(false)
	r.look(false)
	r.begin() // it is not tried again until it changes or somebody asks
	if err := os.Rename(r.path, r.path+".away"); err != nil {
		t.Fatal(err)
	}
	r.look(false)
	r.look(false)
	if s := r.status(); !strings.Contains(s.Problem, "there is no such file") {
		t.Errorf("%+v", s)
	}
	if err := os.Rename(r.path+".away", r.path); err != nil {
		t.Fatal(err)
	}
	r.look(false)
	r.look(false)
	r.begin() // nor because it was away
	if s := r.status(); !strings.Contains(s.Problem, "could not go on: there is no column a") {
		t.Errorf("%+v", s)
	}
	r.look(true)
	r.revert()
	r.fail <- errors.New("a server is away")
	if one := <-r.began; !strings.HasSuffix(one, "row.a > 1") || len(r.ended) > 0 {
		t.Errorf("%s begins", one)
	}
	r.mu.Lock()
	r.since = r.since.Add(-2 * trial)
	r.mu.Unlock()
	r.fail <- errors.New("the column a is gone, too")
	if err := <-r.ended; err == nil || err.Error() != "the column a is gone, too" {
		t.Errorf("the part ended with %v", err)
	}
	r.finish()
}

// A part that tries again under what ran before goes on doing so when the file, too, becomes
// what it was: nothing has changed, so nobody has less time than before.
func TestWhoMendsTheFileEndsNoPartThatTriesAgain(t *testing.T) {
	r := newReloading(t)
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	r.write("row.a > 1", "row.a > 2")
	r.look(true)
	r.revert()
	r.write("", "")
	r.look(true)
	if s := r.status(); s.Problem != "" {
		t.Errorf("%+v", s)
	}
	r.fail <- errors.New("a server is away")
	select {
	case one := <-r.began:
		if !strings.HasSuffix(one, "row.a > 1") {
			t.Errorf("%s begins", one)
		}
	case err := <-r.ended:
		t.Errorf("the part ended with %v", err)
	}
	r.write("row.a > 1", "row.a > 3") // a second time
	r.look(true)
	r.begin("sink cache row.a > 3", "sink search row.a > 3")
	r.fail <- errors.New("there is no column a")
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	if n := r.count(reloadReverted); n != 2 {
		t.Errorf("%v times what ran before was given back; want 2", n)
	}
	r.finish()
}

// What the admin server has is read again only for a configuration that is another one: a token's file
// that is broken meanwhile is the matter of that token, and not of a comment.
func TestACommentIsNoMatterOfTheFilesOfTheAdminServer(t *testing.T) {
	token := file(t, "token", "viewer-0123456789abcdef\n")
	admin := `admin: {listen: ""}`
	tokens := fmt.Sprintf(`admin: {listen: "", tokens: [{name: ann, role: viewer, file: %q}]}`, token)
	r := newReloadingFrom(t, file(t, "lockstep.yaml", strings.Replace(planned, admin, tokens, 1)))
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	r.write(admin, tokens+" # of the shop")
	r.look(true)
	if s := r.status(); s.Problem != "" || r.count(reloadApplied) != 1 {
		t.Errorf("%v times: %+v", r.count(reloadApplied), s)
	}
	r.write(admin, tokens+"\nlog: {level: debug}")
	r.look(true)
	if s := r.status(); !strings.Contains(s.Problem, "admin.tokens[0].file") {
		t.Errorf("%+v", s)
	}
	r.finish()
}

// Who asks too often is told so across changes of the configuration.
func TestAChangeMakesNobodysAllowanceAnew(t *testing.T) {
	r := newReloading(t)
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	ask := func() int {
		w := httptest.NewRecorder()
		r.admin.now.Load().api.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/v1/log-level", nil))
		return w.Code
	}
	for n := 0; ask() != http.StatusTooManyRequests; n++ {
		if n > 10_000 {
			t.Fatal("nobody is told to wait")
		}
	}
	most := 0
	for n := range 20 {
		r.write("admin:", fmt.Sprintf("objectives: {p99: %dms}\nadmin:", 900+n))
		r.look(true)
		for ask() != http.StatusTooManyRequests {
			most++
		}
	}
	if most > 40 {
		t.Errorf("%d were answered between 20 changes", most)
	}
	r.finish()
}

func TestADryRunSaysWhatAReloadWouldDo(t *testing.T) {
	dir := t.TempDir()
	old, now := filepath.Join(dir, "old.yaml"), filepath.Join(dir, "new.yaml")
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(old, planned)
	write(now, strings.Replace(planned, "row.a > 1", "row.a > 2", 1)+"log: {level: debug}\n")
	got := lockstep(t, nil, "config", "check", "-c", now, "--against", old)
	for _, want := range []string{"at once: log.level\n", "begin anew: reconcile, replays, sink cache, sink search\n"} {
		if got.code != 0 || !strings.Contains(got.stdout, want) {
			t.Errorf("%+v does not say %q", got, want)
		}
	}
	write(now, strings.Replace(planned, "prefix: shop", "prefix: mall", 1))
	if got = lockstep(t, nil, "config", "check", "-c", now, "--against", old); got.code != 1 || !strings.Contains(got.stderr, "prefix: cannot change while the process runs") {
		t.Errorf("%+v", got)
	}
	if got = lockstep(t, nil, "config", "check", "-c", now, "--against", old, "-o", "json"); got.code != 1 || !strings.Contains(got.stdout, `"refused": [`) {
		t.Errorf("%+v", got)
	}
	// What a running process would not find is no less a mistake before.
	write(now, strings.NewReplacer("server_id: 7", "server_id: 7, tls: {mode: verify, ca_file: nowhere}", `listen: ""`, `listen: "", tokens: [{name: ann, role: viewer, file: nowhere}]`).Replace(planned)+"kafka: {tls: {enabled: true, ca_file: nowhere}}\n")
	got = lockstep(t, nil, "config", "check", "-c", now, "--against", old)
	for _, want := range []string{"source.tls.ca_file: open nowhere", "admin.tokens[0].file: stat nowhere", "kafka.tls.ca_file: open nowhere"} {
		if got.code != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("%+v does not say %q", got, want)
		}
	}
	if got = lockstep(t, nil, "config", "check", "-c", now, "--against", filepath.Join(dir, "none")); got.code != 2 || !strings.Contains(got.stderr, "there is no such file") {
		t.Errorf("%+v", got)
	}
}
