package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	goredis "github.com/redis/go-redis/v9"

	"lockstep/admin"
	"lockstep/cdc"
	"lockstep/dlq"
	"lockstep/internal/testenv"
	"lockstep/kafka"
	"lockstep/sinks"
)

// mailbox is a pipeline of one table into both stores, on real servers, of which nothing
// runs. In the search index code is a number, and in MySQL a text.
type mailbox struct {
	*counter
	db    *sql.DB
	redis *goredis.Client
	table cdc.TableName
	text  string // of the configuration
}

func newMailbox(t *testing.T) *mailbox {
	t.Helper()
	source, search, cache := testenv.MySQL(t), testenv.Elastic(t), testenv.Redis(t)
	name := testenv.Database(t, source)
	m := &mailbox{
		counter: newCounter(t, ""), db: testenv.OpenMySQL(t, source, name), table: cdc.TableName{DB: name, Table: "questions"},
		redis: goredis.NewClient(&goredis.Options{Addr: cache.Addr}),
	}
	m.exec("CREATE TABLE questions (id int PRIMARY KEY, code varchar(50), secret varchar(50))")
	operator := file(t, "operator", "operator-0123456789abcdef\n")
	m.text = fmt.Sprintf(`prefix: %s
source: {addr: %q, user: %s, password: %s, server_id: 76546}
kafka: {brokers: [%q], partitions: 2}
sinks:
  search: {elastic: {addresses: [%q], replicas: 0}}
  cache: {redis: {addresses: [%q]}}
tables:
  - match: "%[8]s.questions"
    elastic: {mapping: {code: {type: long}}}
    redis: {key: "%[8]s:{id}"}
    mask: {secret: keep last 1}
admin: {listen: "127.0.0.1:0", tokens: [{name: olga, role: operator, file: %[9]q}]}
`, m.prefix, source.Addr, source.User, source.Password, testenv.Kafka(t).Addr, search.URL, cache.Addr, name, operator)
	m.path = file(t, "lockstep.yaml", m.text)
	t.Cleanup(func() {
		for _, key := range m.redis.Keys(context.Background(), "*"+name+"*").Val() {
			m.redis.Del(context.Background(), key)
		}
		m.redis.Close()
		req, _ := http.NewRequest(http.MethodDelete, search.URL+"/"+name+"_questions-000001", nil)
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
		}
	})
	m.office(func(ctx context.Context, o *office) error {
		if err := kafka.EnsureCheckpoint(ctx, o.kafka, m.prefix); err != nil {
			return err
		}
		pos, _ := json.Marshal(cdc.Position{Format: cdc.PositionFormat, Epoch: 3, Seq: 1000})
		return o.log.Produce(ctx, kafka.Record{Topic: kafka.CheckpointTopic(m.prefix), Key: []byte("test"), Value: pos})
	})
	return m
}

// replays has a process carry out replays until the test ends.
func (m *mailbox) replays() {
	m.t.Helper()
	a := &app{configPath: m.path, stderr: m.t.Output(), env: func(string) (string, bool) { return "", false }}
	cfg, err := a.loadConfig(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	p, err := newProcess(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(m.t.Context()))
	ended := make(chan error, 1)
	go func() {
		ended <- p.runReplays(ctx, dlq.NewJobMetrics(p.registry), newReplaysLeaseMetrics(p.registry))
	}()
	m.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			m.t.Error(err)
		}
		p.kafka.Close()
	})
}

func (m *mailbox) exec(statement string) {
	m.t.Helper()
	if _, err := m.db.Exec(statement); err != nil {
		m.t.Fatal(err)
	}
}

// change is a change of a row at a version of epoch 3.
func (m *mailbox) change(id int, version uint64, row string) cdc.Change {
	v, err := cdc.NewVersion(3, version)
	if err != nil {
		m.t.Fatal(err)
	}
	return cdc.Change{Table: m.table, Op: cdc.OpUpdate, Version: v, Key: fmt.Appendf(nil, `{"id":%d}`, id), After: []byte(row)}
}

// apply gives changes to a sink and buries those that it refuses.
func (m *mailbox) apply(sink string, changes ...cdc.Change) {
	m.t.Helper()
	m.office(func(ctx context.Context, o *office) error {
		s, err := o.openSink(ctx, sink)
		if err != nil {
			return err
		}
		defer s.close()
		var refusals []sinks.Refusal
		for i, out := range s.Apply(ctx, changes) {
			switch c := &changes[i]; out.Verdict {
			case sinks.Applied:
			case sinks.Poison:
				refusals = append(refusals, m.refusal(c, out))
			default:
				return fmt.Errorf("change %d: %+v", i, out)
			}
		}
		m.bury(sink, refusals...)
		return nil
	})
}

func (m *mailbox) refusal(c *cdc.Change, out sinks.Outcome) sinks.Refusal {
	topic, err := kafka.ChangeTopic(m.prefix, m.table)
	if err != nil {
		m.t.Fatal(err)
	}
	return sinks.Refusal{
		Record: kafka.Record{Topic: topic, Partition: kafka.PartitionFor(c.Key, 2), Offset: int64(c.Version.Seq()), Key: c.Key, Value: c.AppendValue(nil, m.prefix), Headers: c.Headers()},
		Change: c, Class: out.Class, Reason: out.Reason, Failed: time.Now().UTC(),
	}
}

// without is m where nobody answers at an address.
func (m *mailbox) without(address string) *mailbox {
	c := *m.counter
	c.path = file(m.t, "lockstep.yaml", strings.ReplaceAll(m.text, address, "127.0.0.1:1"))
	other := *m
	other.counter = &c
	return &other
}

// show is what dlq show says of a letter in JSON, and in a table.
func (m *mailbox) show(id string) (shown admin.Letter, table string) {
	m.t.Helper()
	got := m.run("dlq", "show", id, "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &shown); err != nil || got.code != 0 {
		m.t.Fatalf("%+v, %v", got, err)
	}
	in := m.run("dlq", "show", id)
	if in.code != 0 {
		m.t.Fatalf("%+v", in)
	}
	for _, said := range []string{got.stdout, in.stdout} {
		if strings.Contains(said, "raw") {
			m.t.Errorf("a masked value appears:\n%s", said)
		}
	}
	return shown, in.stdout
}

func fieldsOf(shown admin.Letter) (lines []string) {
	for _, f := range shown.Fields {
		star := ""
		if f.Differs {
			star = "*"
		}
		lines = append(lines, fmt.Sprintf("%s%s %s/%s/%s", star, f.Name, f.Recorded, f.Now, f.Sink))
	}
	return lines
}

func (m *mailbox) expect(what string, got, want any) {
	m.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		m.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestAnOperatorSeesARowOnAllThreeSides(t *testing.T) {
	m := newMailbox(t)
	m.exec("INSERT INTO questions VALUES (1, '7', 'raw-now-1')")
	m.apply("search", m.change(1, 1, `{"id":1,"code":"5","secret":"***1"}`))
	m.apply("search", m.change(1, 2, `{"id":1,"code":"abc","secret":"raw-before-the-mask"}`))
	id := m.letters()[0].ID
	shown, table := m.show(id)
	m.expect("fields", fieldsOf(shown), []string{`id 1/1/1`, `*code "abc"/"7"/"5"`, `*secret "(masked)"/"***1"/"***1"`})
	m.expect("payload", shown.Payload.State, dlq.WouldRefuse)
	m.expect("resync", *shown.Resync, dlq.Result{State: dlq.WouldApply})
	m.expect("place", shown.Stored.Place, map[string]string{"index": m.table.DB + "_questions-000001", "_id": "1"})
	m.expect("mend", shown.Mend, "the store takes the row as it is in MySQL now; run: lockstep dlq replay "+id)
	for _, want := range []string{"the store's schema does not take a value of the row", "FIELD", "MYSQL NOW", `"abc"`, "*  code", "a replay of the recorded row", "would be refused: mapping: "} {
		if !strings.Contains(table, want) {
			t.Errorf("%s is not in\n%s", want, table)
		}
	}
	if strings.Contains(table, "Preview of field's value: 'abc'") {
		t.Errorf("a value is quoted:\n%s", table)
	}

	// The API says the same.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+m.serving()+"/v1/dlq/"+id, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer operator-0123456789abcdef")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	var answered admin.Letter
	if err := json.Unmarshal(body, &answered); err != nil || strings.Contains(string(body), "raw") || res.Header.Get("ETag") == "" {
		t.Errorf("%v: %s", err, body)
	}
	m.expect("by the API", fieldsOf(answered), fieldsOf(shown))

	m.exec("DELETE FROM questions")
	shown, table = m.show(id)
	m.expect("gone", []any{shown.Now.Gone, shown.Payload.State, shown.Resync.State}, []any{true, dlq.WouldSupersede, dlq.WouldSupersede})
	if !strings.Contains(table, "the row is gone") {
		t.Errorf("%s", table)
	}
}

func TestAnOperatorSeesWhatRedisHas(t *testing.T) {
	m := newMailbox(t)
	m.exec("INSERT INTO questions VALUES (1, 'x', NULL), (2, 'y', NULL)")
	key := m.table.DB + ":1"
	m.redis.LPush(t.Context(), key, "x")
	m.apply("cache", m.change(1, 2, `{"id":1,"code":"x","secret":null}`), m.change(2, 2, `{"id":2,"code":"y","secret":null}`))
	id := m.letters()[0].ID
	shown, _ := m.show(id)
	m.expect("place", shown.Stored.Place, map[string]string{"key": key})
	if !strings.HasPrefix(shown.Stored.Problem, "WRONGTYPE") || shown.Payload.State != dlq.WouldRefuse || !strings.Contains(shown.Mend, fmt.Sprintf("find out who writes the key %q, delete it", key)) {
		t.Errorf("%+v", shown.View)
	}
	m.redis.Del(t.Context(), key)
	shown, _ = m.show(id)
	m.expect("mended", []any{shown.Payload.State, shown.Resync.State, shown.Stored.Version}, []any{dlq.WouldApply, dlq.WouldApply, cdc.Version(0)})
	m.apply("cache", m.change(1, 3, `{"id":1,"code":"z","secret":null}`))
	shown, _ = m.show(id)
	m.expect("fields", fieldsOf(shown), []string{`id 1/1/"1"`, `*code "x"/"x"/"z"`, `secret null/null/`})
	m.expect("payload", *shown.Payload, dlq.Result{State: dlq.WouldSupersede, Reason: "the store has a newer version"})
}

// What cannot be reached is said, and the rest is shown.
func TestWhatCannotBeReachedIsSaidAndLeftOut(t *testing.T) {
	m := newMailbox(t)
	m.exec("INSERT INTO questions VALUES (1, '7', 'raw-now-1')")
	m.apply("search", m.change(1, 1, `{"id":1,"code":"5","secret":"***1"}`))
	m.apply("search", m.change(1, 2, `{"id":1,"code":"abc","secret":"raw-before"}`))
	id := m.letters()[0].ID
	shown, table := m.without(testenv.MySQL(t).Addr).show(id)
	m.expect("without MySQL", fieldsOf(shown), []string{`id 1//1`, `*code "abc"//"5"`, `secret "(masked)"//"(masked)"`})
	m.expect("a place that may be made of what is masked", len(shown.Stored.Place), 0)
	if !strings.Contains(shown.Now.Problem, "127.0.0.1:1") || !strings.Contains(table, "cannot be told: ") || shown.Resync != nil || shown.Payload == nil {
		t.Errorf("%+v\n%s", shown.View, table)
	}
	away := m.without(strings.TrimPrefix(testenv.Elastic(t).URL, "http://"))
	shown, _ = away.show(id)
	m.expect("without the store", fieldsOf(shown), []string{`id 1/1/`, `*code "abc"/"7"/`, `*secret "(masked)"/"***1"/`})
	if shown.Stored.Problem == "" || shown.Resync.State != dlq.Unknown || shown.Payload.State != dlq.Unknown {
		t.Errorf("%+v", shown.View)
	}
	if got := away.run("dlq", "replay", "--mode", "payload", "--dry-run", id); got.code != 1 || !strings.Contains(got.stdout, "unknown") || !strings.Contains(got.stderr, "of 1 of 1 dead letter nobody knows what would become of them") {
		t.Errorf("%+v", got)
	}
}

// A dry run tells of each letter what a replay would come to, and a replay comes to that.
func TestADryRunIsWhatAReplayComesTo(t *testing.T) {
	m := newMailbox(t)
	m.exec("INSERT INTO questions VALUES (1, 'a', NULL), (2, '2', NULL), (3, 'c', NULL), (4, 'd', NULL)")
	row := func(id int, code string) string { return fmt.Sprintf(`{"id":%d,"code":%q,"secret":null}`, id, code) }
	m.apply("search", m.change(9, 1, row(9, "0"))) // makes the index
	var refusals []sinks.Refusal
	for id := 1; id <= 5; id++ {
		c := m.change(id, 10+uint64(id), row(id, fmt.Sprint("abc"[:id%3], id)))
		refusals = append(refusals, m.refusal(&c, sinks.Outcome{Class: sinks.ClassMapping, Reason: "no number"}))
	}
	m.bury("search", refusals...)
	m.apply("search", m.change(3, 50, row(3, "3"))) // of the row of letter 3: it stays, for no worker runs
	said := func(got result) map[string]string {
		var out []outcome
		if err := json.Unmarshal([]byte(got.stdout), &out); err != nil {
			t.Fatalf("%+v", got)
		}
		states := map[string]string{}
		for _, o := range out {
			states[o.Key] = string(o.Result.State)
		}
		return states
	}
	dry := m.run("dlq", "replay", "--sink", "search", "--mode", "payload", "--dry-run", "-o", "json")
	if dry.code != 0 {
		t.Errorf("%+v", dry)
	}
	m.expect("would be", said(dry), map[string]string{"1": "would be refused", "2": "would be refused", "3": "would be superseded", "4": "would be refused", "5": "would be superseded"})
	if !strings.Contains(dry.stdout, "mapping: ") {
		t.Errorf("%s", dry.stdout)
	}
	m.office(func(ctx context.Context, o *office) error {
		letters, err := o.Choose(ctx, dlq.Query{})
		if err != nil {
			return err
		}
		var out strings.Builder
		if err := o.preview(ctx, &app{output: "json", stdout: &out, stderr: &out}, letters, dlq.Resync); err != nil {
			return err
		}
		m.expect("as they are now", said(result{stdout: out.String()}), map[string]string{"1": "would be refused", "2": "would be applied", "3": "would be refused", "4": "would be refused", "5": "would be superseded"})
		return nil
	})
	if got := m.run("audit", "list"); got.stdout != "no acts\n" {
		t.Errorf("a dry run became an act: %+v", got)
	}
	m.expect("letters", len(m.letters()), 5)
	m.replays()
	var s dlq.JobStatus
	if got := m.run("dlq", "replay", "--sink", "search", "--all", "--mode", "payload", "-o", "json"); got.code != 1 || json.Unmarshal([]byte(got.stdout), &s) != nil {
		t.Errorf("%+v", got)
	}
	m.expect("came to", []int{s.Letters[dlq.FateSuperseded], s.Letters[dlq.FateStays]}, []int{2, 3})
	open := map[string]dlq.State{}
	for _, l := range m.letters() {
		open[l.Key] = l.State
	}
	m.expect("open", open, map[string]dlq.State{"1": dlq.Parked, "2": dlq.Parked, "4": dlq.Parked})
}

// The letters of a topic that was lost are put back byte for byte, and the act is in the
// audit log; a dry run is none.
func TestLettersOfALostTopicAreImported(t *testing.T) {
	m := newMailbox(t)
	var refusals []sinks.Refusal
	for id := 1; id <= 5; id++ {
		c := m.change(id, uint64(id), fmt.Sprintf(`{"id":%d,"code":"<&> \u2028 Grüße","secret":null}`, id))
		refusals = append(refusals, m.refusal(&c, sinks.Outcome{Class: sinks.ClassMapping, Reason: "no number"}))
	}
	m.bury("search", refusals...)
	m.bury("cache", refusals[:2]...)
	read := func() (records []string) {
		m.office(func(ctx context.Context, o *office) error {
			for _, sink := range []string{"search", "cache"} {
				if err := o.kafka.ReadAll(ctx, kafka.LettersTopic(m.prefix, sink), func(r kafka.Record) error {
					records = append(records, fmt.Sprintf("%s/%d %q %q %q", r.Topic, r.Partition, r.Key, r.Value, r.Headers))
					return nil
				}); err != nil {
					return err
				}
			}
			return nil
		})
		slices.Sort(records)
		return records
	}
	before := read()
	path := filepath.Join(t.TempDir(), "letters.ndjson")
	if got := m.run("dlq", "export", "--file", path); got.code != 0 || got.stdout != "7 dead letters in "+path+"\n" {
		t.Fatalf("%+v", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if got := m.run("dlq", "export", "--file", path); got.code != 1 || got.stderr != "lockstep: "+path+" is there already; name another file, or remove it\n" {
		t.Errorf("%+v", got)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.run("dlq", "export", "--sink", "search", "--key", "3"); got.code != 0 || strings.Count(got.stdout, "\n") != 1 || !strings.Contains(string(text), got.stdout) {
		t.Errorf("%+v", got)
	}
	m.lose("search", "cache")
	broken := file(t, "broken.ndjson", string(text)+`{"format":"9"}`+"\n")
	if got := m.run("dlq", "import", broken, "--dry-run"); got.code != 1 || got.stderr != "lockstep: "+broken+": line 8: it has format \"9\" and this lockstep knows 2; import it with the lockstep that exported it; nothing was imported\n" {
		t.Errorf("%+v", got)
	}
	if got := m.run("dlq", "import", path, "--dry-run"); got.code != 0 || strings.Count(got.stdout, "would be imported\n") != 7 || !strings.HasSuffix(got.stdout, "\n7 would be imported, 0 left out\n") {
		t.Errorf("%+v", got)
	}
	var changed []string
	for line := range strings.Lines(string(text)) {
		changed = append(changed, line)
	}
	changed[6] = strings.Replace(changed[6], "Grüße", "Grüsse", 1)
	if got := m.run("dlq", "import", file(t, "changed.ndjson", strings.Join(changed, "")), "--dry-run"); got.code != 1 || !strings.Contains(got.stderr, "line 7: it is not as it was exported") {
		t.Errorf("%+v", got)
	}
	if got := m.run("dlq", "import", path); got.code != 2 || got.stderr != "lockstep: --reason is missing; say why the letters are put back\n" {
		t.Errorf("%+v", got)
	}
	m.expect("letters", len(m.letters()), 0)
	if got := m.run("audit", "list"); got.stdout != "no acts\n" {
		t.Errorf("%+v", got)
	}
	if got := m.run("dlq", "import", path, "--reason", "the topic was deleted", "--actor", "ann"); got.code != 0 || strings.Count(got.stdout, "  imported\n") != 7 || !strings.HasSuffix(got.stdout, "\n7 imported, 0 left out\n") {
		t.Errorf("%+v", got)
	}
	m.expect("records", read(), before)
	if got := m.run("dlq", "import", path, "--reason", "again"); got.code != 0 || strings.Count(got.stdout, "left out: it is open already") != 7 || !strings.HasSuffix(got.stdout, "\n0 imported, 7 left out\n") {
		t.Errorf("%+v", got)
	}
	m.expect("records of an import that was repeated", read(), before)
	if got := m.run("audit", "list"); strings.Count(got.stdout, "\n") != 2 || !strings.Contains(got.stdout, "dlq.import") || !strings.Contains(got.stdout, "imported=7 left_out=0") || !strings.Contains(got.stdout, "the topic was deleted") {
		t.Errorf("%+v", got)
	}
}

// request sends a request of the operator to a process, and gives the status and the answer.
func (m *mailbox) request(address, method, path, body string, headers ...string) (status int, answer string) {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), method, "http://"+address+path, strings.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer operator-0123456789abcdef")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// What is exported over HTTP is what the command exports, and what was lost comes back by it
// byte for byte, a letter that was skipped meanwhile with it: it was open when it was exported.
func TestLettersTravelOverHTTPAndBack(t *testing.T) {
	m := newMailbox(t)
	var refusals []sinks.Refusal
	for id := 1; id <= 5; id++ {
		c := m.change(id, uint64(id), fmt.Sprintf(`{"id":%d,"code":"<&> \u2028 Grüße","secret":"raw-before-the-mask"}`, id))
		refusals = append(refusals, m.refusal(&c, sinks.Outcome{Class: sinks.ClassMapping, Reason: "no number"}))
	}
	m.bury("search", refusals...)
	m.bury("cache", refusals[:2]...)
	address := m.serving()
	const file, id = "Content-Type: application/x-ndjson", "X-Request-ID: ticket-4711"
	status, text := m.request(address, "GET", "/v1/dlq/export", "")
	if by := m.run("dlq", "export"); status != 200 || text != by.stdout || strings.Count(text, "\n") != 7 {
		t.Fatalf("%d %s, by command %+v", status, text, by)
	}
	if status, some := m.request(address, "GET", "/v1/dlq/export?sink=search&key=3", ""); status != 200 || strings.Count(some, "\n") != 1 || !strings.Contains(text, some) {
		t.Errorf("%d %s", status, some)
	}
	if got := m.run("dlq", "skip", m.letters("--sink", "cache", "--key", "2")[0].ID, "--reason", "by mistake"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	m.lose("search")
	m.expect("lost", len(m.letters()), 1)
	address = m.serving() // the other process knows for a moment more that there was a topic, and fails
	broken := text + `{"format":"9"}` + "\n"
	if status, said := m.request(address, "POST", "/v1/dlq/import?reason=x", broken, file, id); status != 422 || !strings.Contains(said, "line 8: it has format") {
		t.Errorf("%d %s", status, said)
	}
	if status, said := m.request(address, "POST", "/v1/dlq/import?reason=x", text[:len(text)-100], file, id); status != 422 || !strings.Contains(said, "line 7: it is no letter") {
		t.Errorf("%d %s", status, said)
	}
	if status, said := m.request(address, "POST", "/v1/dlq/import?dry_run=true", text, file, id); status != 200 || !strings.Contains(said, `"imported": 6`) || !strings.Contains(said, `"left_out": 1`) {
		t.Errorf("%d %s", status, said)
	}
	m.expect("still lost", len(m.letters()), 1)
	if got := m.run("audit", "list", "--act", "dlq.import"); got.stdout != "no acts\n" {
		t.Errorf("%+v", got)
	}
	status, first := m.request(address, "POST", "/v1/dlq/import?reason=the+topic+was+deleted", text, file, id)
	if status != 200 || !strings.Contains(first, `"imported": 6`) || !strings.Contains(first, `"left_out": 1`) {
		t.Fatalf("%d %s", status, first)
	}
	if status, again := m.request(m.serving(), "POST", "/v1/dlq/import?reason=the+topic+was+deleted", text, file, id); status != 200 || again != first {
		t.Errorf("another process: %d %s", status, again)
	}
	if status, said := m.request(address, "POST", "/v1/dlq/import?reason=the+topic+was+deleted", text[:strings.Index(text, "\n")+1], file, id); status != 409 || !strings.Contains(said, "request_id_reused") {
		t.Errorf("%d %s", status, said)
	}
	back := m.run("dlq", "export").stdout
	m.expect("letters that are back", sortedLines(back), sortedLines(text))
	if got := m.run("audit", "list", "--act", "dlq.import"); strings.Count(got.stdout, "\n") != 2 || !strings.Contains(got.stdout, "imported=6 left_out=1") || !strings.Contains(got.stdout, "the topic was deleted") {
		t.Errorf("%+v", got)
	}
}

func sortedLines(text string) []string { return slices.Sorted(strings.Lines(text)) }

// lose deletes the letters' topics of sinks.
func (m *mailbox) lose(names ...string) {
	m.t.Helper()
	m.office(func(ctx context.Context, o *office) error {
		var lost []string
		for _, sink := range names {
			lost = append(lost, kafka.LettersTopic(m.prefix, sink))
		}
		if err := o.kafka.DeleteTopics(ctx, lost...); err != nil {
			return err
		}
		for { // Kafka forgets a topic in its own time
			topics, err := o.kafka.Topics(ctx)
			if err != nil || !slices.ContainsFunc(topics, func(t string) bool { return slices.Contains(lost, t) }) {
				return err
			}
		}
	})
}

// A version that the pipeline cannot have made would keep every later change of its row out.
func TestALetterOfAnotherPipelineIsNotImported(t *testing.T) {
	m := newMailbox(t)
	c := m.change(1, 1000+cdc.Turns, `{"id":1,"code":"abc","secret":null}`)
	m.bury("search", m.refusal(&c, sinks.Outcome{Class: sinks.ClassMapping, Reason: "no number"}))
	export := func(name string) string {
		path := filepath.Join(t.TempDir(), name)
		if got := m.run("dlq", "export", "--file", path); got.code != 0 {
			t.Fatalf("%+v", got)
		}
		return path
	}
	if got := m.run("dlq", "import", export("newest"), "--dry-run"); got.code != 0 {
		t.Errorf("%+v", got)
	}
	c.Version++
	m.bury("search", m.refusal(&c, sinks.Outcome{Class: sinks.ClassMapping, Reason: "no number"}))
	path := export("newer")
	if got := m.run("dlq", "import", path, "--dry-run"); got.code != 1 || !strings.Contains(got.stderr, "the newest that this pipeline can have made") {
		t.Errorf("%+v", got)
	}
	m.office(func(ctx context.Context, o *office) error {
		return o.kafka.DeleteTopics(ctx, kafka.CheckpointTopic(m.prefix))
	})
	for { // Kafka forgets a topic in its own time
		got := m.run("dlq", "import", path, "--dry-run")
		if strings.Contains(got.stderr, "nothing was imported: no position is saved of the pipeline "+m.prefix+", so nobody knows which letters are its own; start its capture first") {
			break
		}
		if t.Context().Err() != nil || got.code == 0 {
			t.Fatalf("%+v", got)
		}
	}
}

func TestStandardInputIsImportedToo(t *testing.T) {
	a := &app{stdin: strings.NewReader("one\ntwo\n")}
	f, done, err := a.twice("-")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(f); err != nil || string(text) != "one\ntwo\n" {
			t.Errorf("%q, %v", text, err)
		}
	}
	done()
	if _, err := os.Stat(f.Name()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the copy stays: %v", err)
	}
}

// A row that MySQL cannot have mended now is patched in its letter: first shown, then done,
// by command and by the API, and a replay sends it in its version.
func TestARowIsPatchedInItsLetterAndReplayed(t *testing.T) {
	m := newMailbox(t)
	m.exec("INSERT INTO questions VALUES (1, 'abc', 'raw-1')")
	m.apply("search", m.change(1, 1, `{"id":1,"code":"5","secret":"***1"}`))
	m.apply("search", m.change(1, 2, `{"id":1,"code":"abc","secret":"raw-before"}`))
	id := m.letters()[0].ID
	patch := file(t, "patch.json", `[{"op": "test", "path": "/code", "value": "abc"}, {"op": "replace", "path": "/code", "value": "7"}]`)
	if got := m.run("dlq", "patch", id, "--patch", patch, "--dry-run"); got.code != 0 || got.stdout != "FIELD  WAS    IS\ncode   \"abc\"  \"7\"\n\na replay of the patched row: would be applied\n" {
		t.Errorf("%+v", got)
	}
	for want, args := range map[string][]string{
		"2 lockstep: --patch is missing; name a file with a JSON Patch, or - for standard input\n":                                                                                       {id, "--reason", "x"},
		"2 lockstep: --reason is missing; say why the row is changed here and not in MySQL\n":                                                                                            {id, "--patch", patch},
		"1 lockstep: no open dead letter has the ID search-none; see: lockstep dlq list\n":                                                                                               {"search-none", "--patch", patch, "--reason", "x"},
		"1 lockstep: open nowhere.json: no such file or directory\n":                                                                                                                     {id, "--patch", "nowhere.json", "--reason", "x"},
		"1 lockstep: letter " + id + " is not patched: operation 1 (add /colour) is of a column colour that the table " + m.table.String() + " does not have; it has id, code, secret\n": {id, "--patch", file(t, "bad.json", `[{"op":"add","path":"/colour","value":1}]`), "--reason", "x"},
	} {
		if got := m.run(append([]string{"dlq", "patch"}, args...)...); fmt.Sprint(got.code, " ", got.stderr) != want {
			t.Errorf("%+v; want %s", got, want)
		}
	}
	if got := m.run("audit", "list"); got.stdout != "no acts\n" || m.letters()[0].Patched != nil {
		t.Errorf("something was done: %+v", got)
	}
	if got := m.run("dlq", "patch", id, "--patch", patch, "--reason", "ticket 4711", "--actor", "ann"); got.code != 0 || !strings.HasPrefix(got.stdout, "dead letter "+id+" is patched\n") {
		t.Errorf("%+v", got)
	}
	shown, table := m.show(id)
	m.expect("fields", fieldsOf(shown), []string{`id 1/1/1`, `*code "7"/"abc"/"5"`, `*secret "(masked)"/"***1"/"***1"`})
	if want := "lockstep dlq replay " + id + " --mode payload"; !strings.HasSuffix(shown.Mend, want) {
		t.Errorf("%s; want %s", shown.Mend, want)
	}
	m.expect("patched", []any{shown.Patched.By, shown.State, shown.Payload.State, shown.Resync.State}, []any{"ann", dlq.Parked, dlq.WouldApply, dlq.WouldRefuse})
	if !strings.Contains(table, "patched") || !strings.Contains(table, "by ann at ") {
		t.Errorf("%s", table)
	}

	address := m.serving()
	ask := func(method, path, body, etag string) (*http.Response, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Authorization": {"Bearer operator-0123456789abcdef"}, "X-Request-Id": {"ticket-4711"}, "Content-Type": {"application/json-patch+json"}}
		if etag != "" {
			req.Header.Set("If-Match", etag)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(text)
	}
	read, _ := ask(http.MethodGet, "/v1/dlq/"+id, "", "")
	res, body := ask(http.MethodPatch, "/v1/dlq/"+id+"?dry_run=true", `[{"op":"replace","path":"/code","value":"8"}]`, read.Header.Get("ETag"))
	if res.StatusCode != http.StatusOK || !strings.Contains(body, `"now": "8"`) || !strings.Contains(body, `"state": "would be applied"`) {
		t.Fatalf("%s %s", res.Status, body)
	}
	res, body = ask(http.MethodPatch, "/v1/dlq/"+id+"?reason=again", `[{"op":"replace","path":"/code","value":"8"}]`, read.Header.Get("ETag"))
	if res.StatusCode != http.StatusOK || !strings.Contains(body, `"recorded": "7"`) {
		t.Fatalf("%s %s", res.Status, body)
	}
	if now, _ := ask(http.MethodGet, "/v1/dlq/"+id, "", ""); now.Header.Get("ETag") != res.Header.Get("ETag") || now.Header.Get("ETag") == read.Header.Get("ETag") {
		t.Errorf("the ETag is %s, the patch said %s", now.Header.Get("ETag"), res.Header.Get("ETag"))
	}
	was := shown.Patched.Was
	if shown, _ = m.show(id); shown.Patched.By != "olga" || shown.Patched.Was != was {
		t.Errorf("%+v", shown.Patched)
	}
	if got := m.run("audit", "list", "--act", "dlq.patch"); strings.Count(got.stdout, "\n") != 3 || !strings.Contains(got.stdout, "columns=code id="+id) || !strings.Contains(got.stdout, "ticket 4711") {
		t.Errorf("%+v", got)
	}
	m.replays()
	if got := m.run("dlq", "replay", id, "--mode", "payload"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	m.office(func(ctx context.Context, o *office) error {
		s, err := o.openSink(ctx, "search")
		if err != nil {
			return err
		}
		defer s.close()
		c := m.change(1, 2, "")
		is := s.reader.Stored(ctx, []cdc.Change{c}, 1<<20)[0]
		m.expect("in the store", []any{is.Version, string(is.Document)}, []any{c.Version, `{"id":1,"code":"8","secret":"raw-before"}`})
		return nil
	})
}

// What stands before a position, copies that were read at its clock included, is not above it.
// A column that names the key of a row in Redis is not patched: no later change of the row
// would know of the place where it would stand.
func TestAPatchTakesNoRowToAnotherPlace(t *testing.T) {
	m := newMailbox(t)
	if err := os.WriteFile(m.path, []byte(strings.Replace(m.text, `:{id}"}`, `:{code}:{id}"}`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	m.exec("INSERT INTO questions VALUES (1, 'abc', 'raw-1')")
	m.redis.LPush(t.Context(), m.table.DB+":abc:1", "x")
	m.apply("cache", m.change(1, 1, `{"id":1,"code":"abc","secret":"***1"}`))
	got := m.run("dlq", "patch", m.letters()[0].ID, "--patch", file(t, "patch.json", `[{"op":"replace","path":"/code","value":"7"}]`), "--reason", "x")
	if got.code != 1 || !strings.Contains(got.stderr, "it changes code, which redis.key names: no later change of the row would find the place where it would stand") {
		t.Errorf("%+v", got)
	}
}

func TestNoChangeBeforeAPositionIsAboveItsNewestVersion(t *testing.T) {
	for _, pos := range []cdc.Position{{Epoch: 1}, {Epoch: 3, Seq: 1000}, {Epoch: cdc.MaxEpoch, Seq: cdc.MaxSeq}} {
		newest := newestVersion(pos)
		if newest.Epoch() != pos.Epoch || newest.Seq() != min(pos.Seq+cdc.Turns, cdc.MaxSeq) {
			t.Errorf("of %d, %d it is %s", pos.Epoch, pos.Seq, newest)
		}
	}
}

// A record that nobody can read may be the newest state of a row, which its store then lacks:
// its letter is found for the row of its key, and for every row of its partition when the key
// cannot be read either.
func TestALetterThatNobodyCanReadIsFoundForTheRowsThatItMayBeOf(t *testing.T) {
	m := newMailbox(t)
	other := m.change(1, 1, `{"id":1,"code":"abc"}`)
	bury := func(offset int64, partition int, key string) {
		r := m.refusal(&other, sinks.Outcome{Class: sinks.ClassUndecodable, Reason: "broken"})
		r.Change, r.Record.Value, r.Record.Offset, r.Record.Partition, r.Record.Key = nil, []byte("?"), offset, partition, []byte(key)
		m.bury("search", r)
	}
	find := func(key string, partitions ...int) (letter *dlq.Letter) {
		m.office(func(ctx context.Context, o *office) (err error) {
			in := map[int]bool{}
			for _, id := range partitions {
				in[id] = true
			}
			letter, err = o.letterOf(ctx, "search", m.table.String(), key, in)
			return err
		})
		return letter
	}
	m.bury("search", m.refusal(&other, sinks.Outcome{Class: sinks.ClassMapping, Reason: "no number"}))
	bury(70, 1, `{"id":7}`)
	if l := find("1", 0, 1); l == nil || l.Class != sinks.ClassMapping {
		t.Errorf("of the row itself: %+v", l)
	}
	if l := find("7", 0, 1); l == nil || l.Source.Offset != 70 {
		t.Errorf("of the row of its key: %+v", l)
	}
	if l := find("8", 0, 1); l != nil {
		t.Errorf("of another row: %+v", l)
	}
	bury(71, 1, "?")
	if l := find("8", 0, 1); l == nil || l.Source.Offset != 71 {
		t.Errorf("of a row that it may be: %+v", l)
	}
	if l := find("8", 0); l != nil {
		t.Errorf("of a row of another partition: %+v", l)
	}
}
