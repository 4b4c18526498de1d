package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/config"
	"lockstep/dlq"
	"lockstep/kafka"
	"lockstep/sinks"
)

// patientSink refuses every change in the same way while it is ill.
type patientSink struct{ ill atomic.Bool }

func (s *patientSink) Apply(_ context.Context, changes []cdc.Change) []sinks.Outcome {
	out := make([]sinks.Outcome, len(changes))
	for i := range out {
		if out[i].Verdict = sinks.Applied; s.ill.Load() {
			out[i] = sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassMapping, Reason: fmt.Sprintf("no field in '%s'", changes[i].Key)}
		}
	}
	return out
}

func (s *patientSink) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) { return 0, nil }

// rowsOnce is a partition with some rows.
type rowsOnce struct{ records []kafka.Record }

func (p *rowsOnce) Name() (string, int) { return "shop.bank.tags", 0 }

func (p *rowsOnce) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
	if r := p.records; r != nil {
		p.records = nil
		return r, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (p *rowsOnce) Commit(context.Context, int64) error { return nil }

// The command asks a process with one sink, whose store refuses a table until it is
// mended.
func TestStatusTellsWhatIsHeldAndWhy(t *testing.T) {
	cfg := config.Default()
	cfg.Prefix, cfg.Admin.Listen = "shop", "127.0.0.1:0"
	cfg.Worker.FloodWindow, cfg.Worker.FloodWait = 4, 2*time.Second
	p, err := newProcess(&cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer p.kafka.Close()
	admin, err := p.listenAdmin()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = admin.run(ctx) }()
	ask := func(args ...string) result {
		return lockstep(t, nil, append([]string{"status", "--address", admin.addr()}, args...)...)
	}
	if got := ask(); got.code != 3 || !strings.Contains(got.stdout, "NOT READY") || got.stderr != "lockstep: the process is not ready\n" {
		t.Errorf("a process without parts: %+v", got)
	}

	sink := &patientSink{}
	sink.ill.Store(true)
	crew := &sinks.Worker{
		Name: "search", Sink: sink, Bury: func(context.Context, sinks.Refusal) error { return nil },
		Log: p.log, Metrics: p.metrics.sinks, Config: cfg.Worker,
	}
	var idle atomic.Pointer[sinks.HeldStatus]
	p.workers.add(worker{name: "search", kind: "elastic", status: func() sinks.Status {
		return withHeld(crew.Status(), func() map[string]*sinks.HeldStatus {
			return map[string]*sinks.HeldStatus{"bank.tags": idle.Load(), "bank.other": idle.Load()}
		})
	}})
	p.ready.add("sink search", func() bool { return true })
	part := &rowsOnce{}
	for i := range 3 {
		version, _ := cdc.NewVersion(1, uint64(i+1))
		c := cdc.Change{Table: cdc.TableName{DB: "bank", Table: "tags"}, Op: cdc.OpUpdate, Version: version, CommitMicros: 1_700_000_000_000_000, Key: fmt.Appendf(nil, `{"id":%d}`, i), After: []byte(`{}`)}
		part.records = append(part.records, kafka.Record{Offset: int64(i), Key: c.Key, Value: c.AppendValue(nil, "shop"), Headers: c.Headers()})
	}
	done := make(chan error, 1)
	go func() { done <- crew.RunPartition(ctx, part) }()
	await := func(code int) result {
		t.Helper()
		for until := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
			if got := ask(); got.code == code && strings.Contains(got.stderr, "partitions wait") == (code == 3) || time.Now().After(until) {
				return got
			}
		}
	}
	got := await(3)
	for _, want := range []string{
		"lockstep ", ", pipeline shop, up ", ", ready\n", "LOOK AT 2 things.",
		"sink search: table bank.tags is held since ", " ago: breaker open, next try in ", ": no field in '", "(mapping, fingerprint ",
		"\n  mend: mend what refuses the rows ", "; then apply the letters from before: lockstep dlq replay --sink search --table bank.tags --fingerprint ",
	} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is not in\n%s", want, got.stdout)
		}
	}
	if got.code != 3 || !strings.Contains(got.stderr, "sink search: table bank.tags is held; sink search: 1 of 1 partitions wait") {
		t.Errorf("got %d and %q", got.code, got.stderr)
	}
	got = ask("-o", "json")
	var asked map[string]any
	if err := json.Unmarshal([]byte(got.stdout), &asked); err != nil {
		t.Fatalf("%v: %s", err, got.stdout)
	}
	// The shape is a promise: what is there stays there.
	for _, v := range []struct{ what, by string }{
		{`"(now|since|held_since|next_probe|next_try|applied_up_to|delivered_up_to)": "[^"]+"`, `"$1": "T"`},
		{`"uptime_seconds": [0-9.]+`, `"uptime_seconds": 1`},
		{`"(version|fingerprint)": "[^"]+"`, `"$1": "V"`},
		{`no field in '[^']*'`, `no field`},
		{`"mend": "[^"]+"`, `"mend": "M"`},
		{`next try (in [0-9.ms]+|now): `, `next try in T: `}, {`fingerprint [0-9a-f]+`, `fingerprint V`},
	} {
		got.stdout = regexp.MustCompile(v.what).ReplaceAllString(got.stdout, v.by)
	}
	const shape = `{
  "version": "V",
  "pipeline": "shop",
  "now": "T",
  "uptime_seconds": 1,
  "ready": true,
  "parts": [
    {
      "name": "sink search",
      "ready": true
    }
  ],
  "sinks": [
    {
      "name": "search",
      "store": "elastic",
      "breaker": {
        "state": "closed"
      },
      "partitions": 1,
      "held_partitions": 1,
      "held_since": "T",
      "retrying": 0,
      "pool": {
        "size": 4,
        "in_use": 0,
        "waiting": 0
      },
      "applied_up_to": "T",
      "sweeps": [],
      "tables": [
        {
          "table": "bank.tags",
          "breaker": {
            "state": "open",
            "class": "mapping",
            "fingerprint": "V",
            "reason": "no field",
            "since": "T",
            "next_probe": "T"
          },
          "held": {
            "by": "flood",
            "reason": "no field",
            "mend": "M",
            "since": "T",
            "next_try": "T",
            "partitions": 1
          },
          "received": 3,
          "in_flight": 3,
          "outcomes": {
            "applied": 0,
            "dead": 0,
            "duplicate": 0,
            "filtered": 0,
            "released": 0,
            "stale": 0,
            "superseded": 0
          },
          "applied_up_to": "T",
          "letters": 0
        }
      ]
    }
  ],
  "routes": [],
  "look_at": [
    {
      "what": "sink search: table bank.tags is held",
      "since": "T",
      "why": "breaker open, next try in T: no field (mapping, fingerprint V)",
      "mend": "M"
    },
    {
      "what": "sink search: 1 of 1 partitions wait",
      "since": "T"
    }
  ]
}
`
	if diff := cmp.Diff(shape, got.stdout); diff != "" {
		t.Error(diff)
	}

	sink.ill.Store(false)
	if got := await(0); got.code != 0 || got.stderr != "" || !strings.Contains(got.stdout, "2023-11-14T22:13:20Z") {
		t.Errorf("the store is mended: %+v", got)
	}
	idle.Store(&sinks.HeldStatus{By: sinks.ByTable, Reason: "its alias is gone", Mend: "put it back", Since: time.Now()})
	got = ask()
	if got.code != 3 || got.stderr != "lockstep: sink search: table bank.tags is held\n" ||
		!regexp.MustCompile(`(?s)\nsink search: table bank.tags is held since \S+ ago: its alias is gone\n  mend: put it back\n.*search  bank.tags  closed   table `).MatchString(got.stdout) {
		t.Errorf("a table that would wait: %+v", got)
	}
	idle.Store(nil)
	watching, stop := context.WithTimeout(ctx, watchInterval*5/4)
	defer stop()
	var out bytes.Buffer
	if err := (&app{output: "json", stdout: &out, stderr: io.Discard}).watchStatus(watching, processAt{address: admin.addr()}, false, false, watchInterval); err != nil || strings.Count(out.String(), `"pipeline"`) != 2 {
		t.Errorf("%v; watched for one interval and a bit:\n%s", err, out.String())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// An open letter is no trouble of the process, but for who asks for letters.
func TestOpenLettersAreToldToWhoAsksForThem(t *testing.T) {
	c := newCounter(t, `listen: "127.0.0.1:0"`)
	p, address := c.process()
	var letters atomic.Int64
	committed := time.Now().Add(-time.Minute)
	p.workers.add(worker{name: "search", kind: "elastic", status: func() sinks.Status {
		return sinks.Status{Breaker: sinks.BreakerStatus{State: "closed"}, Tables: []sinks.TableStatus{
			{Table: "bank.tags", Breaker: sinks.BreakerStatus{State: "closed"}, Letters: letters.Load(), OldestLetter: &committed},
		}}
	}})
	for n, want := range []string{"", "table bank.tags has 1 open dead letter", "table bank.tags has 2 open dead letters"} {
		letters.Store(int64(n))
		if got := c.run("status", "--address", address); got.code != 0 || !strings.Contains(got.stdout, want) && n > 0 {
			t.Errorf("%d letters: %+v", n, got)
		}
		code, stderr := 3, "lockstep: sink search: "+want+"\n"
		if n == 0 {
			code, stderr = 0, ""
		}
		if got := c.run("status", "--address", address, "--letters"); got.code != code || got.stderr != stderr {
			t.Errorf("%d letters, asked for: %+v, want %d and %q", n, got, code, stderr)
		}
	}
}

func TestStatusOfWhatCannotBeAskedIsExitCodeOne(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/status" {
			fmt.Fprintln(w, "hello")
		}
	}))
	defer other.Close()
	old := httptest.NewServer(http.NotFoundHandler())
	defer old.Close()
	gone := file(t, "gone.yaml", strings.Replace(string(config.Example), "listen: 127.0.0.1:8080", "listen: 127.0.0.1:1", 1))
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"nobody listens":  {[]string{"-c", gone}, "ask the process at 127.0.0.1:1: "},
		"another program": {[]string{"--address", strings.TrimPrefix(other.URL, "http://")}, "answers what is no status"},
		"an older one":    {[]string{"--address", strings.TrimPrefix(old.URL, "http://")}, "answers 404 Not Found; is it lockstep"},
	} {
		t.Run(name, func(t *testing.T) {
			got := lockstep(t, nil, append([]string{"status"}, tc.args...)...)
			if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, tc.want) {
				t.Errorf("got %+v; want code 1 and %q", got, tc.want)
			}
		})
	}
	if got := lockstep(t, nil, "status", "--address", "a b"); got.code != 2 || !strings.Contains(got.stderr, `--address "a b" is not host:port`) {
		t.Errorf("got %+v", got)
	}
}

func TestATableIsHeldSinceItsTroubleBeganWhoeverHadItsPartitions(t *testing.T) {
	now := time.Now()
	held := func(by string, ago time.Duration) *sinks.HeldStatus {
		return &sinks.HeldStatus{By: by, Since: now.Add(-ago), Partitions: 1}
	}
	s := withHeld(sinks.Status{Tables: []sinks.TableStatus{
		{Table: "older", Held: held(sinks.ByTable, time.Second)},
		{Table: "newer", Held: held(sinks.ByTable, time.Minute)},
		{Table: "other", Held: held(sinks.ByStore, time.Second)},
	}}, func() map[string]*sinks.HeldStatus {
		trouble := held(sinks.ByTable, 10*time.Second)
		return map[string]*sinks.HeldStatus{"older": trouble, "newer": trouble, "other": trouble}
	})
	for i, want := range []time.Duration{10 * time.Second, time.Minute, time.Second} {
		if got := s.Tables[i]; now.Sub(got.Held.Since) != want || got.Held.Partitions != 1 {
			t.Errorf("%s is held since %s ago by %d partitions; want %s and 1", got.Table, now.Sub(got.Held.Since), got.Held.Partitions, want)
		}
	}
}

// A time that nobody knows has no sample: as 0 it would look like the oldest of all.
func TestATimeThatIsNotKnownIsNoSample(t *testing.T) {
	applied, delivered := time.Unix(100, 0), time.Unix(90, 500_000_000)
	var w workers
	for name, s := range map[string]sinks.Status{
		"started":  {},
		"unread":   {AppliedUpTo: &applied},
		"complete": {AppliedUpTo: &applied, DeliveredUpTo: &delivered},
	} {
		w.add(worker{name: name, status: func() sinks.Status { return s }})
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(&w)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			got[f.GetName()+" "+m.Label[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	want := map[string]float64{
		"lockstep_sink_applied_up_to_timestamp_seconds unread":     100,
		"lockstep_sink_applied_up_to_timestamp_seconds complete":   100,
		"lockstep_sink_delivered_up_to_timestamp_seconds complete": 90.5,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("samples (-want +got):", diff)
	}
}

// What a store lacks is missing there, whether it is written down or not.
func TestDeliveredUpToDoesNotPassAnOpenLetter(t *testing.T) {
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }
	for _, c := range []struct {
		name    string
		applied int64 // 0: unknown
		open    map[string]dlq.Open
		loading bool
		want    int64 // 0: absent
	}{
		{"no letters", 100, nil, false, 100},
		{"all are closed", 100, map[string]dlq.Open{"shop.a": {}}, false, 100},
		{"letters of two tables", 100, map[string]dlq.Open{"shop.a": {Letters: 2, Committed: at(90)}, "shop.b": {Letters: 1, Committed: at(80)}}, false, 80},
		{"a letter of what is not applied yet", 70, map[string]dlq.Open{"shop.a": {Letters: 1, Committed: at(90)}}, false, 70},
		{"a letter of a row of a copy", 100, map[string]dlq.Open{"shop.a": {Letters: 2, Committed: at(90), Blind: 1}, "shop.b": {Letters: 1, Committed: at(80)}}, false, 0},
		{"letters are still being read", 100, nil, true, 0},
		{"how far it is nobody knows", 0, map[string]dlq.Open{"shop.a": {Letters: 1, Committed: at(90)}}, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s sinks.Status
			if applied := at(c.applied); c.applied > 0 {
				s.AppliedUpTo = &applied
			}
			s.Tables = []sinks.TableStatus{{Table: "shop.a"}, {Table: "shop.b"}}
			s = withLetters(s, c.open, !c.loading)
			switch {
			case c.want == 0 && s.DeliveredUpTo != nil:
				t.Errorf("delivered up to %s, and nobody can know", s.DeliveredUpTo)
			case c.want > 0 && (s.DeliveredUpTo == nil || !s.DeliveredUpTo.Equal(at(c.want))):
				t.Errorf("delivered up to %v, want %s", s.DeliveredUpTo, at(c.want))
			}
			for _, table := range s.Tables {
				if o := c.open[table.Table]; table.Letters != int64(o.Letters) || (table.OldestLetter != nil) != !o.Committed.IsZero() {
					t.Errorf("%s has %d letters, the oldest of %v; want %+v", table.Table, table.Letters, table.OldestLetter, o)
				}
			}
		})
	}
}
