package main

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lockstep/cdc"
	"lockstep/config"
	"lockstep/internal/bank"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheConfigurationIsOneThatLockstepTakes(t *testing.T) {
	for _, route := range []bool{false, true} {
		theConfigurationIsRight(t, &demo{binary: os.Args[0], dir: t.TempDir(), admin: "127.0.0.1:0", route: route})
	}
}

func theConfigurationIsRight(t *testing.T, d *demo) {
	t.Helper()
	must(t, d.prepare())
	text, err := config.Read(d.config)
	must(t, err)
	c, err := config.Parse(d.config, text, func(string) (string, bool) { return "", false })
	must(t, err)
	if c.Prefix != d.prefix || c.Source.Password.Reveal() == "" {
		t.Errorf("want prefix %s and a password, got %s", d.prefix, c.Prefix)
	}
	for _, table := range bank.Tables {
		if _, ok := c.MatchTable(cdc.TableName{DB: database, Table: table}); !ok {
			t.Errorf("%s is not captured", table)
		}
	}
}

const metrics = `
# TYPE lockstep_capture_rows_total counter
lockstep_capture_rows_total{table="lockstep_demo.tags",op="r"} 40
lockstep_capture_rows_total{table="lockstep_demo.tags",op="c"} 3
lockstep_capture_rows_total{table="lockstep_demo.questions",op="u"} 1200
# TYPE lockstep_capture_lag_seconds gauge
lockstep_capture_lag_seconds 0.25
# TYPE lockstep_kafka_acked_records_total counter
lockstep_kafka_acked_records_total{topic="demo-1.lockstep_demo.tags"} 43
lockstep_kafka_acked_records_total{topic="demo-1.lockstep_demo.questions"} 1200
lockstep_kafka_acked_records_total{topic="demo-1.checkpoint"} 9
lockstep_kafka_acked_records_total{topic="demo-1.dlq.search"} 1
# TYPE lockstep_sink_received_total counter
lockstep_sink_received_total{sink="search",table="lockstep_demo.tags"} 43
lockstep_sink_received_total{sink="search",table="lockstep_demo.questions"} 1200
lockstep_sink_received_total{sink="cache",table="lockstep_demo.tags"} 7
# TYPE lockstep_sink_changes_total counter
lockstep_sink_changes_total{sink="search",table="lockstep_demo.tags",outcome="applied"} 40
lockstep_sink_changes_total{sink="search",table="lockstep_demo.tags",outcome="released"} 3
lockstep_sink_changes_total{sink="search",table="lockstep_demo.questions",outcome="applied"} 1000
lockstep_sink_changes_total{sink="search",table="lockstep_demo.questions",outcome="superseded"} 190
lockstep_sink_changes_total{sink="search",table="lockstep_demo.questions",outcome="dead"} 1
# TYPE lockstep_consumer_lag_records gauge
lockstep_consumer_lag_records{group="demo-1.search",topic="demo-1.lockstep_demo.tags",partition="0"} 2
lockstep_consumer_lag_records{group="demo-1.search",topic="demo-1.lockstep_demo.tags",partition="1"} 3
lockstep_consumer_lag_records{group="demo-1.search",topic="demo-1.dlq.search",partition="1"} 100
lockstep_consumer_lag_records{group="demo-1.cache",topic="demo-1.lockstep_demo.tags",partition="0"} 7
# TYPE lockstep_sink_latency_seconds histogram
lockstep_sink_latency_seconds_bucket{sink="search",table="lockstep_demo.tags",le="0.01"} 50
lockstep_sink_latency_seconds_bucket{sink="search",table="lockstep_demo.tags",le="0.1"} 90
lockstep_sink_latency_seconds_bucket{sink="search",table="lockstep_demo.tags",le="+Inf"} 100
lockstep_sink_latency_seconds_sum{sink="search",table="lockstep_demo.tags"} 1
lockstep_sink_latency_seconds_count{sink="search",table="lockstep_demo.tags"} 100
lockstep_sink_latency_seconds_bucket{sink="search",table="lockstep_demo.questions",le="0.01"} 50
lockstep_sink_latency_seconds_bucket{sink="search",table="lockstep_demo.questions",le="0.1"} 100
lockstep_sink_latency_seconds_bucket{sink="search",table="lockstep_demo.questions",le="+Inf"} 100
lockstep_sink_latency_seconds_sum{sink="search",table="lockstep_demo.questions"} 1
lockstep_sink_latency_seconds_count{sink="search",table="lockstep_demo.questions"} 100
`

func TestTheMetricsAreAddedUpOverTables(t *testing.T) {
	m := &meter{prefix: "demo-1"}
	s, err := m.parse(strings.NewReader(metrics))
	must(t, err)
	got := map[string]any{
		"copied": s.copied, "rows": s.rows, "behind": s.behind, "acked": s.acked,
		"search received": s.sinks[search].received, "search settled": s.sinks[search].settled(), "search open": s.sinks[search].open(),
		"search lag": s.sinks[search].lag, "cache open": s.sinks[cache].open(), "cache lag": s.sinks[cache].lag,
		"P50": s.sinks[search].latency.quantile(.5), "P99": s.sinks[search].latency.quantile(.99), "cache P50": s.sinks[cache].latency.quantile(.5),
	}
	want := map[string]any{
		"copied": 40, "rows": 1203, "behind": 250 * time.Millisecond, "acked": 1243,
		"search received": 1243, "search settled": 1231, "search open": 9, "search lag": 5, "cache open": 7, "cache lag": 7,
		"P50": "10 ms", "P99": "over 100 ms", "cache P50": "-",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("-want +got\n%s", diff)
	}
}

func TestAQuantileIsOfWhatWasObservedSince(t *testing.T) {
	earlier := histogram{count: 100, upTo: map[float64]uint64{.1: 100, 1: 100, math.Inf(1): 100}}
	later := histogram{count: 110, upTo: map[float64]uint64{.1: 100, 1: 110, math.Inf(1): 110}}
	for q, want := range map[float64]string{.5: "550 ms", .99: "991 ms"} {
		if got := later.since(earlier).quantile(q); got != want {
			t.Errorf("quantile %v: want %s, got %s", q, want, got)
		}
	}
}

func TestThePanelShowsEveryStage(t *testing.T) {
	m := &meter{prefix: "demo-1"}
	now, err := m.parse(strings.NewReader(metrics))
	must(t, err)
	none, err := m.parse(strings.NewReader(""))
	must(t, err)
	v := view{
		stats: bank.Stats{Transactions: 1100, Inserts: 3, Updates: 1200, Elapsed: 12 * time.Second, LateP99: 1500 * time.Microsecond},
		now:   now, earlier: none, window: "in the last seconds", duration: 20 * time.Second, notes: []string{"planted"},
	}
	want := `  MySQL     1,100 transactions, 1,203 rows; 12 of 20 s; started late by P99 1.5 ms
  captured  1,203 changes from the log, 40 rows copied; 250 ms behind
  Kafka     1,243 records acknowledged

                                 Elasticsearch           Redis
  received                               1,243               7
    applied                              1,040               0
    superseded                             190               0
    stale                                    0               0
    duplicate                                0               0
    filtered                                 0               0
    dead letters                             1               0
    given back to Kafka                      3               0
  lag, records                               5               7
  commit to applied, P50                 10 ms               -
    in the last seconds, P99       over 100 ms               -

  * planted`
	if diff := cmp.Diff(want, strings.Join(v.lines(), "\n")); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	short := "1,203 rows written, 1,203 changes captured, 1,203 in Kafka | Elasticsearch: lag 5, P50 10 ms, P99 over 100 ms, 1 dead | Redis: lag 7, P50 -, P99 -, 0 dead"
	if diff := cmp.Diff(short, v.line()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// startScript starts a shell script in the place of lockstep, once it has said
// that it is ready.
func startScript(t *testing.T, script string) *child {
	t.Helper()
	c, err := start("/bin/sh", []string{"-c", script}, filepath.Join(t.TempDir(), "log"))
	must(t, err)
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.done
	})
	deadline := time.Now().Add(2 * time.Minute)
	for !strings.Contains(c.tail(), "ready") {
		if time.Now().After(deadline) {
			t.Fatalf("the script is not ready: %s", c.tail())
		}
		time.Sleep(time.Millisecond)
	}
	return c
}

func TestLockstepIsStoppedBySIGTERMAndMustEndCleanly(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"it ends cleanly", `trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done`, ""},
		{"it ends with an error", `trap 'echo lost the checkpoint; exit 3' TERM; echo ready; while :; do sleep 0.01; done`, "lost the checkpoint"},
	} {
		t.Run(c.name, func(t *testing.T) {
			child := startScript(t, c.script)
			err := child.stop()
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, errUnclean) || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("want %q, got %v", c.want, err)
			}
			if child.lost() != nil {
				t.Errorf("it was told to end, but counts as lost: %v", child.lost())
			}
			must(t, child.stop()) // once more does nothing
		})
	}
}

func TestALockstepThatEndsByItselfIsToldWithItsLastLines(t *testing.T) {
	child := startScript(t, `echo ready; echo the last words; exit 4`)
	<-child.done
	err := child.lost()
	if err == nil || !strings.Contains(err.Error(), "the last words") || !strings.Contains(err.Error(), "exit status 4") {
		t.Fatalf("want its last words and its status, got %v", err)
	}
}

func TestLockstepIsOutOfReachOfTheTerminalsInterrupt(t *testing.T) {
	child := startScript(t, `trap 'exit 5' INT; echo ready; while :; do sleep 0.01; done`)
	group, err := syscall.Getpgid(child.cmd.Process.Pid)
	must(t, err)
	if group == syscall.Getpgrp() {
		t.Fatal("lockstep is in the demo's process group, so Ctrl-C would reach both")
	}
}
