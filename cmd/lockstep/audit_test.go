package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"lockstep/audit"
	"lockstep/cdc"
	"lockstep/config"
	"lockstep/dlq"
	"lockstep/internal/testenv"
	"lockstep/kafka"
	"lockstep/sinks"
)

// counter is a pipeline with letters in a real Kafka and nothing else that runs.
type counter struct {
	t      *testing.T
	prefix string
	path   string // of the configuration
	env    map[string]string
}

func newCounter(t *testing.T, admin string) *counter {
	t.Helper()
	c := &counter{t: t, prefix: "counter-" + uuid.NewString()[:8], env: map[string]string{}}
	c.path = file(t, "lockstep.yaml", fmt.Sprintf(`prefix: %s
source: {addr: "127.0.0.1:1", user: nobody, password: x, server_id: 76545}
kafka: {brokers: [%q], partitions: 2}
sinks:
  search: {elastic: {addresses: ["http://127.0.0.1:1"]}}
  cache: {redis: {addresses: ["127.0.0.1:1"]}}
tables:
  - match: "bank.*"
admin: {%s}
`, c.prefix, testenv.Kafka(t).Addr, admin))
	t.Cleanup(func() {
		cfg := kafka.DefaultConfig()
		cfg.Brokers = []string{testenv.Kafka(t).Addr}
		client, err := kafka.Open(cfg, "test", (&app{stderr: t.Output()}).quiet())
		if err != nil {
			t.Error(err)
			return
		}
		defer client.Close()
		topics, err := client.Topics(context.Background())
		for _, topic := range topics {
			if strings.HasPrefix(topic, c.prefix+".") {
				err = client.DeleteTopics(context.Background(), topic)
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *counter) run(args ...string) result {
	c.t.Helper()
	return lockstep(c.t, c.env, append(args, "-c", c.path)...)
}

// office opens the pipeline as a command does.
func (c *counter) office(do func(ctx context.Context, o *office) error) {
	c.t.Helper()
	a := &app{configPath: c.path, stderr: c.t.Output(), env: func(string) (string, bool) { return "", false }}
	if err := a.withLetters(c.t.Context(), do); err != nil {
		c.t.Fatal(err)
	}
}

// bury makes letters of rows of bank.questions with these keys.
func (c *counter) bury(sink string, refusals ...sinks.Refusal) {
	c.t.Helper()
	c.office(func(ctx context.Context, o *office) error {
		if err := o.kafka.EnsureTopic(ctx, dlq.Topic(c.prefix, sink, 2, o.cfg.Kafka.MaxRecordBytes)); err != nil {
			return err
		}
		for _, r := range refusals {
			if err := o.box(sink).Bury(ctx, r); err != nil {
				return err
			}
		}
		return nil
	})
}

func refused(id int, reason string, failed string) sinks.Refusal {
	version, _ := cdc.NewVersion(1, uint64(id))
	change := &cdc.Change{Table: cdc.TableName{DB: "bank", Table: "questions"}, Op: cdc.OpUpdate, Version: version, CommitMicros: 1_700_000_000_000_000, Key: fmt.Appendf(nil, `{"id":%d}`, id), After: fmt.Appendf(nil, `{"id":%d,"n":1}`, id)}
	at, err := moment("since", failed)
	if err != nil {
		panic(err)
	}
	return sinks.Refusal{
		Record: kafka.Record{Topic: "t.bank.questions", Partition: id % 2, Offset: int64(id), Key: change.Key, Value: change.AppendValue(nil, "t"), Headers: change.Headers()},
		Change: change, Class: sinks.ClassMapping, Reason: reason, Failed: at,
	}
}

func (c *counter) letters(args ...string) (letters []dlq.Letter) {
	c.t.Helper()
	got := c.run(append([]string{"dlq", "list", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(got.stdout), &letters); err != nil || got.code != 0 {
		c.t.Fatalf("%+v, %v", got, err)
	}
	return letters
}

func TestWhatOperatorsDoIsListedAndTamperingIsFound(t *testing.T) {
	c := newCounter(t, "")
	if got := c.run("audit", "list"); got.code != 0 || got.stdout != "no acts\n" {
		t.Errorf("%+v", got)
	}
	if got := c.run("audit", "verify"); got.code != 1 || got.stderr != "lockstep: there is no audit log yet: nobody has done anything\n" {
		t.Errorf("%+v", got)
	}
	c.bury("search", refused(1, "no field n", "2026-11-22T08:00:00Z"), refused(2, "no field n", "2026-11-22T08:00:00Z"))
	id := c.letters("--key", "1")[0].ID
	if got := c.run("dlq", "skip", id, "--reason", "test data", "--actor", "ann", "-o", "json"); got.code != 0 ||
		got.stdout != fmt.Sprintf("{\n  \"id\": %q,\n  \"state\": \"skipped\",\n  \"reason\": \"test data\"\n}\n", id) {
		t.Fatalf("%+v", got)
	}
	c.env["LOCKSTEP_ACTOR"] = "bob"
	// A dry run is no act, even when it fails because the source does not answer.
	if got := c.run("dlq", "replay", "--sink", "search", "--dry-run"); got.code != 1 {
		t.Errorf("%+v", got)
	}
	var job struct{ ID string }
	if got := c.run("dlq", "replay", "--sink", "search", "--class", "mapping", "--detach", "-o", "json"); got.code != 0 || json.Unmarshal([]byte(got.stdout), &job) != nil {
		t.Errorf("%+v", got)
	}
	delete(c.env, "LOCKSTEP_ACTOR")
	var acts []audit.Listed
	got := c.run("audit", "list", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &acts); err != nil || len(acts) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	type said struct {
		Actor, Via, Act, Reason string
		Outcome                 audit.Outcome
		Filter                  map[string]string
		Counts                  map[string]int
	}
	var all []said
	for _, l := range acts {
		all = append(all, said{l.Actor, l.Via, l.Act, l.Reason, l.Outcome, l.Filter, l.Counts})
	}
	want := []said{
		{"ann", "cli", "dlq.skip", "test data", audit.Done, map[string]string{"id": id}, map[string]int{"skipped": 1}},
		{"bob", "cli", "dlq.replay", "", audit.Done, map[string]string{"sink": "search", "class": "mapping", "mode": "resync", "job": job.ID}, map[string]int{"jobs": 1}},
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
	if got := c.run("audit", "list", "--actor", "b*", "--since", "1h"); strings.Count(got.stdout, "\n") != 2 || !strings.Contains(got.stdout, "class=mapping job="+job.ID+" mode=resync sink=search") {
		t.Errorf("%+v", got)
	}
	if got := c.run("audit", "list", "-o", "yaml", "--act", "dlq.skip"); got.code != 0 || !strings.HasPrefix(got.stdout, "- seq: 0\n  id: ") {
		t.Errorf("%+v", got)
	}

	var v audit.Verified
	got = c.run("audit", "verify", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &v); err != nil || got.code != 0 || v.Records != 4 || len(v.Breaks) != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	// Somebody writes a record of his own.
	c.office(func(ctx context.Context, o *office) error {
		return o.log.Produce(ctx, kafka.Record{Topic: audit.TopicOf(c.prefix), Value: []byte(`{"act":"nothing"}`)})
	})
	if got := c.run("audit", "verify", "--head", v.Head.String()); got.code != 3 || !strings.Contains(got.stdout, "it is no audit record, so somebody else has written or changed it") || got.stderr != "lockstep: the audit log is broken at 1 place\n" {
		t.Errorf("%+v", got)
	}
	if got := c.run("audit", "list"); !strings.Contains(got.stderr, "the audit log is broken at 1 place, so what it says may be false") {
		t.Errorf("%+v", got)
	}
	if got := c.run("audit", "verify", "--head", strings.Repeat("0", 64)); got.code != 3 || !strings.Contains(got.stdout, "was never in this log") {
		t.Errorf("%+v", got)
	}
}

func TestWhoActsMustHaveAName(t *testing.T) {
	a := &app{env: func(string) (string, bool) { return "", false }}
	if who, err := a.who(); err != nil || !strings.Contains(who, "@") {
		t.Errorf("%q, %v", who, err)
	}
	for _, bad := range []string{" ann", "a\nb", strings.Repeat("x", 201)} {
		a.actor = bad
		if who, err := a.who(); err == nil {
			t.Errorf("%q is taken as %q", bad, who)
		}
	}
}

func TestMistakesInTheAuditCommandsAreUsageErrors(t *testing.T) {
	path := file(t, "lockstep.yaml", string(config.Example))
	for want, args := range map[string][]string{
		`--since "yesterday" is no time; write how long ago, such as 2h, or a time such as 2026-11-26T03:00:00Z`: {"audit", "list", "--since", "yesterday"},
		`--until "-2h" is no time; write how long ago, such as 2h, or a time such as 2026-11-26T03:00:00Z`:       {"audit", "list", "--until", "-2h"},
		`--head: "abc" is not a SHA-256: 64 hexadecimal digits`:                                                  {"audit", "verify", "--head", "abc"},
	} {
		if got := lockstep(t, nil, append(args, "-c", path)...); got.code != 2 || got.stderr != "lockstep: "+want+"\n" {
			t.Errorf("%q: %+v", args, got)
		}
	}
}

func TestAnActThatThereIsNotIsRefused(t *testing.T) {
	for _, act := range []string{"nope", "dlq.skipp", "dlg.*"} {
		got := lockstep(t, nil, "audit", "list", "--act", act)
		if want := fmt.Sprintf("lockstep: --act: %q is no act; there are %s\n", act, strings.Join(audit.Acts, ", ")); got.code != 2 || got.stderr != want {
			t.Errorf("%+v, want %s", got, want)
		}
	}
}
