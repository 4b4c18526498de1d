package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lockstep/internal/testenv"
)

// story is a course of series and what the alert of a name says at its end.
type story struct {
	alert  string
	about  string
	every  string            // between two values; 1m where it is empty. Above, the rules are evaluated every half an hour
	series map[string]string // as promtool writes values
	at     string
	fires  []firing // nothing: it is quiet
}

type firing struct {
	labels               string // name=value, with spaces between; the severity is that of the rule
	summary, description string
}

// grow is a counter that grows by a step for a number of values, then by another one for
// as many as are said next, and so on.
func grow(steps ...float64) string {
	var all []string
	last := 0.0
	for i := 0; i < len(steps); i += 2 {
		step, n := steps[i], steps[i+1]
		if n == 0 {
			continue
		}
		all = append(all, fmt.Sprintf("%.2f+%.2fx%.0f", last+step, step, n-1))
		last += step * n
	}
	return strings.Join(all, " ")
}

// aging are the counters of a sink that settles a change a second, of which a share is late
// from an hour on.
func aging(share float64, from, until float64) map[string]string {
	const anHour, perStep = 30, 120 // in steps of two minutes
	return counted(grow(perStep, until*anHour), grow(perStep, from*anHour, perStep*(1-share), (until-from)*anHour), grow(0, until*anHour))
}

// counted are the counters of a sink: changes, those in time, and dead letters.
func counted(changes, inTime, letters string) map[string]string {
	return map[string]string{
		`lockstep_sink_latency_seconds_count{job="shop",instance="a",sink="search",table="s.q"}`:           changes,
		`lockstep_sink_latency_seconds_bucket{job="shop",instance="a",sink="search",table="s.q",le="0.8"}`: inTime,
		`lockstep_sink_dead_letters_total{job="shop",instance="a",sink="search",table="s.q",class="key"}`:  letters,
	}
}

const (
	buildA = `lockstep_build_info{job="shop",instance="a",version="v1",commit="c",pipeline="shop"}`
	buildB = `lockstep_build_info{job="shop",instance="b",version="v1",commit="c",pipeline="shop"}`
)

const tooLate = "Changes reach sink search of shop too late"

func tooLateBy(share, short, long string) string {
	return fmt.Sprintf("%s of the changes of the last %s took longer than 0.8 s from the commit to the store, or are dead letters; 1 %% may, and over the last %s it is too many, too.", share, short, long)
}

var stories = []story{
	{alert: "LockstepFreshnessBudgetBurns", about: "a fifth is late for an hour", every: "2m", series: aging(.2, 71, 73), at: "72h30m", fires: []firing{{"job=shop sink=search window=1h", tooLate, tooLateBy("20%", "3m", "1h")}}},
	{alert: "LockstepFreshnessBudgetBurns", about: "seven of a hundred are late for six hours", every: "2m", series: aging(.07, 66, 73), at: "72h30m", fires: []firing{{"job=shop sink=search window=6h", tooLate, tooLateBy("7%", "30m", "6h")}}},
	{alert: "LockstepFreshnessBudgetBurns", about: "four of a hundred are late for a day", every: "2m", series: aging(.04, 48, 73), at: "72h", fires: []firing{
		{"job=shop sink=search window=1d", tooLate, tooLateBy("4%", "2h", "1d")}, {"job=shop sink=search window=3d", tooLate, tooLateBy("4%", "6h", "3d")}}},
	{alert: "LockstepFreshnessBudgetBurns", about: "three of two hundred are late for long", every: "2m", series: aging(.015, 0, 11), at: "10h", fires: []firing{{"job=shop sink=search window=3d", tooLate, tooLateBy("1.5%", "6h", "3d")}}},
	{alert: "LockstepFreshnessBudgetBurns", about: "one of two hundred is late for long", every: "2m", series: aging(.005, 0, 11), at: "10h"},
	{alert: "LockstepFreshnessBudgetBurns", about: "half was late for an hour, and that is over", every: "2m", series: counted(grow(120, 74*30), grow(120, 71*30, 60, 30, 120, 60), grow(0, 74*30)), at: "72h30m"},
	{alert: "LockstepFreshnessBudgetBurns", about: "some changes an hour, all late", every: "2m", series: counted(grow(1, 90), grow(0, 90), grow(0, 90)), at: "2h"},
	{alert: "LockstepFreshnessBudgetBurns", about: "everything becomes a dead letter", every: "2m", series: counted(grow(0, 60), grow(0, 60), grow(120, 60)), at: "90m",
		fires: []firing{{"job=shop sink=search window=1h", tooLate, tooLateBy("100%", "3m", "1h")}, {"job=shop sink=search window=6h", tooLate, tooLateBy("100%", "30m", "6h")},
			{"job=shop sink=search window=1d", tooLate, tooLateBy("100%", "2h", "1d")}}},
	{alert: "LockstepFreshnessBudgetBurns", about: "a large transaction in a quiet night", series: counted(grow(60, 100, 100000, 1, 60, 80), grow(60, 180), grow(0, 180)), at: "130m"},

	{alert: "LockstepNobodyCaptures", about: "two stand by", series: map[string]string{
		`lockstep_capture_active{job="shop",instance="a"}`: "0x10", `lockstep_capture_active{job="shop",instance="b"}`: "0x10", buildA: "1x10", buildB: "1x10",
	}, at: "5m", fires: []firing{{"job=shop", "Nobody captures in shop", "No process of the pipeline has the lease of the capture, so nothing that is committed in MySQL gets to Kafka."}}},
	{alert: "LockstepNobodyCaptures", about: "there are only sinks", series: map[string]string{buildA: "1x10"}, at: "5m",
		fires: []firing{{"job=shop", "Nobody captures in shop", "No process of the pipeline has the lease of the capture, so nothing that is committed in MySQL gets to Kafka."}}},
	{alert: "LockstepNobodyCaptures", about: "one of two captures", series: map[string]string{
		`lockstep_capture_active{job="shop",instance="a"}`: "0x10", `lockstep_capture_active{job="shop",instance="b"}`: "1x10", buildA: "1x10", buildB: "1x10",
	}, at: "5m"},
	{alert: "LockstepNobodyCaptures", about: "the lease goes from one to the other", series: map[string]string{
		`lockstep_capture_active{job="shop",instance="a"}`: "1x4 0x5", `lockstep_capture_active{job="shop",instance="b"}`: "0x5 1x4", buildA: "1x10", buildB: "1x10",
	}, at: "6m"},

	{alert: "LockstepSourceUnreachable", about: "the active one is not connected", series: map[string]string{
		`lockstep_capture_active{job="shop",instance="a"}`: "1x10", `lockstep_capture_connected{job="shop",instance="a"}`: "0x10",
	}, at: "5m", fires: []firing{{"job=shop", "The capture of shop does not read the log of MySQL", "A process has the lease of the capture and is not connected to the binary log, so nothing that is committed gets to Kafka."}}},
	{alert: "LockstepSourceUnreachable", about: "the active one is connected", series: map[string]string{
		`lockstep_capture_active{job="shop",instance="a"}`: "1x10", `lockstep_capture_connected{job="shop",instance="a"}`: "1x10",
		`lockstep_capture_active{job="shop",instance="b"}`: "0x10", `lockstep_capture_connected{job="shop",instance="b"}`: "0x10",
	}, at: "5m"},

	{alert: "LockstepCaptureBehind", about: "it stands still", series: map[string]string{`lockstep_capture_up_to_timestamp_seconds{job="shop",instance="a"}`: "60x10"}, at: "5m",
		fires: []firing{{"job=shop", "The capture of shop is behind", "What was committed in MySQL in the last 4m 0s is not in Kafka yet; normally that is a second."}}},
	{alert: "LockstepCaptureBehind", about: "it moves, and another one stands by", series: map[string]string{
		`lockstep_capture_up_to_timestamp_seconds{job="shop",instance="a"}`: "1+60x10", `lockstep_capture_up_to_timestamp_seconds{job="shop",instance="b"}`: "0x10"}, at: "5m"},

	{alert: "LockstepSourceLogAboutToBeLost", about: "nobody has captured for half of a day", every: "5m", series: map[string]string{
		`lockstep_capture_up_to_timestamp_seconds{job="shop",instance="a"}`: "1+300x11 0x200", `lockstep_source_log_kept_seconds{job="shop",instance="a"}`: "86400x11 _x200", `up{job="shop",instance="a"}`: "1x300",
	}, at: "14h", fires: []firing{{"job=shop", "MySQL is about to purge log that shop has not read", "The capture is behind by 56.25% of the time for which MySQL keeps its binary log. When that is over every table must be copied again."}}},
	{alert: "LockstepSourceLogAboutToBeLost", about: "nobody has captured for some hours", every: "5m", series: map[string]string{
		`lockstep_capture_up_to_timestamp_seconds{job="shop",instance="a"}`: "1+300x11 0x200", `lockstep_source_log_kept_seconds{job="shop",instance="a"}`: "86400x11 _x200", `up{job="shop",instance="a"}`: "1x300",
	}, at: "11h"},
	{alert: "LockstepSourceLogAboutToBeLost", about: "the pipeline is no more", every: "5m", series: map[string]string{
		`lockstep_capture_up_to_timestamp_seconds{job="shop",instance="a"}`: "1+300x11 stale", `lockstep_source_log_kept_seconds{job="shop",instance="a"}`: "86400x11 stale", `up{job="shop",instance="a"}`: "1x11 stale",
	}, at: "14h"},
	{alert: "LockstepSourceLogAboutToBeLost", about: "MySQL keeps its log until told otherwise", every: "5m", series: map[string]string{
		`lockstep_capture_up_to_timestamp_seconds{job="shop",instance="a"}`: "1x300", `lockstep_source_log_kept_seconds{job="shop",instance="a"}`: "0x300", `up{job="shop",instance="a"}`: "1x300",
	}, at: "14h"},

	{alert: "LockstepSnapshotFailed", about: "it has", series: map[string]string{
		`lockstep_snapshot_state{job="shop",instance="a",table="s.q",state="failed"}`: "1x10", `lockstep_capture_active{job="shop",instance="a"}`: "1x10",
	}, at: "6m", fires: []firing{{"job=shop table=s.q", "The copy of s.q in shop has failed", "The newest snapshot of the table has ended without all of its rows. Changes of the table travel on."}}},
	{alert: "LockstepSnapshotFailed", about: "it is done, and one who captured before remembers another", series: map[string]string{
		`lockstep_snapshot_state{job="shop",instance="a",table="s.q",state="done"}`: "1x10", `lockstep_snapshot_state{job="shop",instance="a",table="s.q",state="failed"}`: "0x10", `lockstep_capture_active{job="shop",instance="a"}`: "1x10",
		`lockstep_snapshot_state{job="shop",instance="b",table="s.q",state="failed"}`: "1x10", `lockstep_capture_active{job="shop",instance="b"}`: "0x10",
	}, at: "6m"},

	{alert: "LockstepSinkNotMoving", about: "one of two partitions stands still", series: map[string]string{
		`lockstep_consumer_lag_records{job="shop",instance="a",group="shop.search",topic="shop.s.q",partition="0"}`: "0+7x20", `lockstep_consumer_lag_records{job="shop",instance="a",group="shop.search",topic="shop.s.q",partition="1"}`: "1x20",
		`lockstep_sink_changes_total{job="shop",instance="a",sink="search",table="s.q",outcome="applied"}`: "0+60x20", `lockstep_sink_applied_up_to_timestamp_seconds{job="shop",instance="a",sink="search"}`: "1x20",
	}, at: "15m", fires: []firing{{"job=shop instance=a sink=search", "Sink search of shop does not move", "71 changes or more have waited on a for five minutes, and the time up to which it has applied everything stands still."}}},
	{alert: "LockstepSinkNotMoving", about: "nothing is settled, and no time is known", series: map[string]string{
		`lockstep_consumer_lag_records{job="shop",instance="a",group="shop.search",topic="shop.s.q",partition="0"}`: "5x20",
		`lockstep_sink_changes_total{job="shop",instance="a",sink="search",table="s.q",outcome="applied"}`:          "9x20",
	}, at: "15m", fires: []firing{{"job=shop instance=a sink=search", "Sink search of shop does not move", "5 changes or more have waited on a for five minutes, and the time up to which it has applied everything stands still."}}},
	{alert: "LockstepSinkNotMoving", about: "there is nothing to do", series: map[string]string{
		`lockstep_consumer_lag_records{job="shop",instance="a",group="shop.search",topic="shop.s.q",partition="0"}`: "0x20",
		`lockstep_sink_changes_total{job="shop",instance="a",sink="search",table="s.q",outcome="applied"}`:          "9x20", `lockstep_sink_applied_up_to_timestamp_seconds{job="shop",instance="a",sink="search"}`: "1x20",
	}, at: "15m"},
	{alert: "LockstepSinkNotMoving", about: "it works off what has heaped up", series: map[string]string{
		`lockstep_consumer_lag_records{job="shop",instance="a",group="shop.search",topic="shop.s.q",partition="0"}`: "9000-60x20",
		`lockstep_sink_changes_total{job="shop",instance="a",sink="search",table="s.q",outcome="applied"}`:          "0+60x20", `lockstep_sink_applied_up_to_timestamp_seconds{job="shop",instance="a",sink="search"}`: "1+90x20",
	}, at: "15m"},

	{alert: "LockstepSinkNotMoving", about: "a table is copied while nothing is written, and what a copy has left is worked off", series: map[string]string{
		`lockstep_consumer_lag_records{job="shop",instance="a",group="shop.search",topic="shop.s.q",partition="0"}`: "0+60x20", `lockstep_capture_copying{job="shop",instance="c"}`: "1x20",
		`lockstep_sink_changes_total{job="shop",instance="a",sink="search",table="s.q",outcome="applied"}`: "0+60x20", `lockstep_sink_applied_up_to_timestamp_seconds{job="shop",instance="a",sink="search"}`: "1x20",
		`lockstep_consumer_lag_records{job="bank",instance="b",group="bank.search",topic="bank.s.q",partition="0"}`: "9000-60x20", `lockstep_capture_copying{job="bank",instance="b"}`: "0x20",
		`lockstep_sink_changes_total{job="bank",instance="b",sink="search",table="s.q",outcome="applied"}`: "0+60x20", `lockstep_sink_applied_up_to_timestamp_seconds{job="bank",instance="b",sink="search"}`: "1x20",
	}, at: "15m"},

	{alert: "LockstepBreakerOpen", about: "for four minutes", series: map[string]string{`lockstep_sink_breaker_since_timestamp_seconds{job="shop",instance="a",sink="search"}`: "60x10", `lockstep_sink_breaker_since_timestamp_seconds{job="shop",instance="b",sink="search"}`: "0x10"}, at: "5m",
		fires: []firing{{"job=shop sink=search", "The store of sink search of shop is unavailable", "The breaker of the sink has been open for 4m 0s. Its changes wait in Kafka."}}},
	{alert: "LockstepBreakerOpen", about: "for a minute", series: map[string]string{`lockstep_sink_breaker_since_timestamp_seconds{job="shop",instance="a",sink="search"}`: "240x10"}, at: "5m"},

	{alert: "LockstepTableHeld", about: "by a flood, and tried again and again", series: map[string]string{`lockstep_sink_table_held_partitions{job="shop",instance="a",sink="search",table="s.q",by="flood"}`: "4 4 4 0 4 4 0 4 4 4 4"}, at: "9m",
		fires: []firing{{"job=shop sink=search table=s.q by=flood", "Table s.q is held in sink search of shop", "4 partitions of the table wait, held by flood. The other tables go on."}}},
	{alert: "LockstepTableHeld", about: "not any more, and another one waits for the store", series: map[string]string{
		`lockstep_sink_table_held_partitions{job="shop",instance="a",sink="search",table="s.q",by="table"}`: "4 4 0x8", `lockstep_sink_table_held_partitions{job="shop",instance="a",sink="search",table="s.t",by="store"}`: "4x10",
	}, at: "9m"},

	{alert: "LockstepRouteDegraded", about: "one of two processes says so", series: map[string]string{`lockstep_route_state{job="shop",instance="a",sink="search",table="s.q"}`: "2x20", `lockstep_route_state{job="shop",instance="b",sink="search",table="s.q"}`: "0x20",
		`lockstep_route_share_percent{job="shop",instance="a",sink="search",table="s.q"}`: "0x20", `lockstep_route_share_percent{job="shop",instance="b",sink="search",table="s.q"}`: "100x20",
		`lockstep_snapshot_state{job="shop",instance="a",table="s.q",state="running"}`: "0x20", `lockstep_snapshot_state{job="shop",instance="a",table="s.t",state="running"}`: "1x20", `lockstep_capture_active{job="shop",instance="a"}`: "1x20",
		`lockstep_snapshot_state{job="shop",instance="b",table="s.q",state="running"}`: "1x20", `lockstep_capture_active{job="shop",instance="b"}`: "0x20"}, at: "15m",
		fires: []firing{{"job=shop sink=search table=s.q", "Readers of s.q are sent from sink search to MySQL in shop", "The route of the table is degraded for ten minutes, and no copy of it is under way: the sink cannot be trusted with it, and MySQL bears its reads."}}},
	{alert: "LockstepRouteDegraded", about: "a warning, a dry run, and a table that is being copied", series: map[string]string{
		`lockstep_route_state{job="shop",instance="a",sink="search",table="s.q"}`: "1x20", `lockstep_route_share_percent{job="shop",instance="a",sink="search",table="s.q"}`: "10x20",
		`lockstep_route_state{job="shop",instance="a",sink="search",table="s.d"}`: "2x20", `lockstep_route_share_percent{job="shop",instance="a",sink="search",table="s.d"}`: "100x20",
		`lockstep_route_state{job="shop",instance="a",sink="search",table="s.t"}`: "2x20", `lockstep_route_share_percent{job="shop",instance="a",sink="search",table="s.t"}`: "0x20",
		`lockstep_snapshot_state{job="shop",instance="a",table="s.t",state="running"}`: "1x20", `lockstep_capture_active{job="shop",instance="a"}`: "1x20"}, at: "15m"},

	{alert: "LockstepBooksDoNotBalance", about: "one of six thousand a minute has gone missing", series: map[string]string{
		`lockstep_sink_received_total{job="shop",instance="a",sink="search",table="s.q"}`: "0+6000x50", `lockstep_sink_in_flight{job="shop",instance="a",sink="search",table="s.q"}`: "0x5 3 0x9 7 0x40",
		`lockstep_sink_changes_total{job="shop",instance="a",sink="search",table="s.q",outcome="applied"}`: "0 6000 11999+6000x4 41986+6000x42", `lockstep_sink_changes_total{job="shop",instance="a",sink="search",table="s.q",outcome="stale"}`: "0x6 10x50",
	}, at: "49m", fires: []firing{{"job=shop instance=a sink=search table=s.q", "The books of s.q in sink search of shop do not balance", "On a the changes received and the changes settled or in flight have differed by 4 or more to the same side for half an hour: one has ended nowhere, or twice."}}},
	{alert: "LockstepBooksDoNotBalance", about: "one has ended twice", series: map[string]string{
		`lockstep_sink_received_total{job="shop",instance="a",sink="search",table="s.q"}`: "10x50", `lockstep_sink_in_flight{job="shop",instance="a",sink="search",table="s.q"}`: "0x50",
		`lockstep_sink_changes_total{job="shop",instance="a",sink="search",table="s.q",outcome="applied"}`: "10x5 11x45",
	}, at: "45m", fires: []firing{{"job=shop instance=a sink=search table=s.q", "The books of s.q in sink search of shop do not balance", "On a the changes received and the changes settled or in flight have differed by -1 or more to the same side for half an hour: one has ended nowhere, or twice."}}},
	{alert: "LockstepBooksDoNotBalance", about: "they are never scraped without changes that come", series: map[string]string{
		`lockstep_sink_received_total{job="shop",instance="a",sink="search",table="s.q"}`: "0+6000x50", `lockstep_sink_in_flight{job="shop",instance="a",sink="search",table="s.q"}`: strings.Repeat("0 9 9 0 9 ", 10),
		`lockstep_sink_changes_total{job="shop",instance="a",sink="search",table="s.q",outcome="applied"}`: "-4+6000x50",
	}, at: "48m"},

	{alert: "LockstepDeadLetterFlood", about: "two hundred in five minutes", series: map[string]string{`lockstep_sink_dead_letters_total{job="shop",instance="a",sink="search",table="s.q",class="mapping"}`: "0x5 40+40x5"}, at: "10m",
		fires: []firing{{"job=shop sink=search table=s.q", "Sink search of shop refuses many rows of s.q", "200 changes became dead letters in five minutes."}}},
	{alert: "LockstepDeadLetterFlood", about: "two hundred as a process starts, before it is scraped", series: map[string]string{
		`lockstep_sink_dead_letters_total{job="shop",instance="b",sink="search",table="s.q",class="mapping"}`: "_x3 200x9", `process_start_time_seconds{job="shop",instance="b"}`: "_x3 220x9",
		`lockstep_sink_dead_letters_total{job="shop",instance="a",sink="search",table="s.q",class="mapping"}`: "5x12", `process_start_time_seconds{job="shop",instance="a"}`: "1x12"}, at: "8m",
		fires: []firing{{"job=shop sink=search table=s.q", "Sink search of shop refuses many rows of s.q", "200 changes became dead letters in five minutes."}}},
	{alert: "LockstepDeadLetterFlood", about: "Prometheus is new, and a process has had many for long", series: map[string]string{
		`lockstep_sink_dead_letters_total{job="shop",instance="a",sink="search",table="s.q",class="mapping"}`: "_x30 5000x9", `process_start_time_seconds{job="shop",instance="a"}`: "_x30 1x9"}, at: "34m"},
	{alert: "LockstepDeadLetterFlood", about: "some", series: map[string]string{`lockstep_sink_dead_letters_total{job="shop",instance="a",sink="search",table="s.q",class="mapping"}`: "0x5 4+4x5"}, at: "10m"},

	{alert: "LockstepDeadLettersWaiting", about: "parked on one process, exhausted on another", series: map[string]string{
		`lockstep_dlq_letters{job="shop",instance="a",sink="search",table="s.q",class="mapping",state="parked"}`: "2x20", `lockstep_dlq_letters{job="shop",instance="b",sink="search",table="s.q",class="mapping",state="exhausted"}`: "1x20",
	}, at: "16m", fires: []firing{{"job=shop sink=search table=s.q class=mapping", "Dead letters of s.q wait in sink search of shop", "3 rows are refused with mapping and wait for a change of the row, or for you."}}},
	{alert: "LockstepDeadLettersWaiting", about: "they try themselves again, and those that waited are closed", series: map[string]string{
		`lockstep_dlq_letters{job="shop",instance="a",sink="search",table="s.q",class="refused",state="retrying"}`: "2x20", `lockstep_dlq_letters{job="shop",instance="a",sink="search",table="s.q",class="refused",state="parked"}`: "1x10 0x10",
	}, at: "16m"},

	{alert: "LockstepDeadLettersRetrying", about: "more and more", series: map[string]string{`lockstep_dlq_letters{job="shop",instance="a",sink="search",table="s.q",class="refused",state="retrying"}`: "0+4x30"}, at: "20m",
		fires: []firing{{"job=shop sink=search table=s.q", "More and more dead letters of s.q try themselves again in sink search of shop", "80 rows were refused for a reason that may pass and try themselves again; ten minutes before there were fewer."}}},
	{alert: "LockstepDeadLettersRetrying", about: "some, and some more for a while", series: map[string]string{`lockstep_dlq_letters{job="shop",instance="a",sink="search",table="s.q",class="refused",state="retrying"}`: "3x10 40 30 20 9 8 7 6x20"}, at: "20m"},

	{alert: "LockstepDeadLetterOld", about: "of two tables", series: map[string]string{`lockstep_dlq_oldest_unresolved_seconds{job="shop",instance="a",sink="search",table="s.q"}`: "90000x5", `lockstep_dlq_oldest_unresolved_seconds{job="shop",instance="a",sink="search",table="s.t"}`: "60x5"}, at: "4m",
		fires: []firing{{"job=shop sink=search table=s.q", "Sink search of shop has lacked a row of s.q for a day", "The oldest open dead letter of the table was refused first 1d 1h 0m 0s ago, and nobody has ended it."}}},
	{alert: "LockstepDeadLetterOld", about: "an hour", series: map[string]string{`lockstep_dlq_oldest_unresolved_seconds{job="shop",instance="a",sink="search",table="s.q"}`: "3600x5"}, at: "4m"},

	{alert: "LockstepRowsDiffer", about: "a full pass has found some", series: map[string]string{`lockstep_reconcile_mismatches{job="shop",instance="a",sink="search",table="s.q"}`: "3x5", `lockstep_reconcile_active{job="shop",instance="a"}`: "1x5"}, at: "4m",
		fires: []firing{{"job=shop sink=search table=s.q", "Sink search of shop has rows of s.q that are not as in MySQL", "The reconciler has confirmed 3 rows that differ and that nothing under way explains."}}},
	{alert: "LockstepRowsDiffer", about: "a sample has found one since the last full pass, which had found none", every: "5m", series: map[string]string{`lockstep_reconcile_mismatch_total{job="shop",instance="a",sink="search",table="s.q"}`: "0x6 1x12",
		`lockstep_reconcile_mismatches{job="shop",instance="a",sink="search",table="s.q"}`: "0x18", `lockstep_reconcile_active{job="shop",instance="a"}`: "1x18"}, at: "1h",
		fires: []firing{{"job=shop sink=search table=s.q", "Sink search of shop has rows of s.q that are not as in MySQL", "The reconciler has confirmed 1 rows that differ and that nothing under way explains."}}},
	{alert: "LockstepRowsDiffer", about: "one who compared before remembers some", series: map[string]string{
		`lockstep_reconcile_mismatches{job="shop",instance="a",sink="search",table="s.q"}`: "3x5", `lockstep_reconcile_active{job="shop",instance="a"}`: "0x5",
		`lockstep_reconcile_mismatches{job="shop",instance="b",sink="search",table="s.q"}`: "0x5", `lockstep_reconcile_active{job="shop",instance="b"}`: "1x5",
		`lockstep_reconcile_mismatch_total{job="shop",instance="a",sink="search",table="s.q"}`: "3x5",
	}, at: "4m"},

	{alert: "LockstepReconcileCoverageOld", about: "for two days", every: "5m", series: map[string]string{`lockstep_reconcile_coverage_timestamp_seconds{job="shop",instance="a",sink="search",table="s.q"}`: "600x620", `lockstep_reconcile_active{job="shop",instance="a"}`: "1x620"}, at: "49h",
		fires: []firing{{"job=shop sink=search table=s.q", "s.q was not compared with sink search of shop for two days", "The last full pass over the table that has come to its end, or the first one, which has not, began 2d 0h 50m 0s ago. reconcile.full_every is a day where nothing else is configured."}}},
	{alert: "LockstepReconcileCoverageOld", about: "the first pass does not come to its end", every: "5m", series: map[string]string{`lockstep_reconcile_uncovered_since_timestamp_seconds{job="shop",instance="a",sink="search",table="s.q"}`: "600x620", `lockstep_reconcile_active{job="shop",instance="a"}`: "1x620",
		`lockstep_reconcile_uncovered_since_timestamp_seconds{job="shop",instance="a",sink="search",table="s.t"}`: "86400x620"}, at: "49h",
		fires: []firing{{"job=shop sink=search table=s.q", "s.q was not compared with sink search of shop for two days", "The last full pass over the table that has come to its end, or the first one, which has not, began 2d 0h 50m 0s ago. reconcile.full_every is a day where nothing else is configured."}}},
	{alert: "LockstepReconcileCoverageOld", about: "yesterday, and one who compared before remembers longer ago", every: "5m", series: map[string]string{
		`lockstep_reconcile_coverage_timestamp_seconds{job="shop",instance="a",sink="search",table="s.q"}`: "86400x620", `lockstep_reconcile_active{job="shop",instance="a"}`: "1x620",
		`lockstep_reconcile_coverage_timestamp_seconds{job="shop",instance="b",sink="search",table="s.q"}`: "600x620", `lockstep_reconcile_active{job="shop",instance="b"}`: "0x620",
	}, at: "49h"},

	{alert: "LockstepNobodyCompares", about: "two stand by", series: map[string]string{`lockstep_reconcile_active{job="shop",instance="a"}`: "1x5 0x30", `lockstep_reconcile_active{job="shop",instance="b"}`: "0x35"}, at: "25m",
		fires: []firing{{"job=shop", "Nobody compares the rows of shop with MySQL", "Processes of the pipeline are to compare, and none has the lease for it, so a row that differs is not noticed."}}},
	{alert: "LockstepNobodyCompares", about: "the lease goes from one to the other, and another pipeline is not to compare", series: map[string]string{
		`lockstep_reconcile_active{job="shop",instance="a"}`: "1x10 0x25", `lockstep_reconcile_active{job="shop",instance="b"}`: "0x12 1x22", buildA: "1x35", `lockstep_build_info{job="other",instance="c",version="v1",commit="c",pipeline="other"}`: "1x35"}, at: "30m"},

	{alert: "LockstepKafkaUnreachable", about: "one process of two", series: map[string]string{`lockstep_kafka_unavailable_seconds{job="shop",instance="a"}`: "0x5", `lockstep_kafka_unavailable_seconds{job="shop",instance="b"}`: "0+30x5"}, at: "5m",
		fires: []firing{{"job=shop", "Kafka does not answer shop", "A process has asked Kafka for 2m 30s without an answer. Nothing is lost; what is committed in MySQL waits in its log."}}},
	{alert: "LockstepKafkaUnreachable", about: "an election", series: map[string]string{`lockstep_kafka_unavailable_seconds{job="shop",instance="a"}`: "0 0 0 0 20 40 0 0 0"}, at: "5m"},

	{alert: "LockstepPipelineDown", about: "all are gone", series: map[string]string{`up{job="shop",instance="a"}`: "1x4 0x10", `up{job="shop",instance="b"}`: "0x15", buildA: "1x4 stale"}, at: "10m",
		fires: []firing{{"job=shop", "No process of shop answers", "Prometheus reaches none of the processes of the pipeline that it scraped in the last day."}}},
	{alert: "LockstepPipelineDown", about: "one is left, and another job is down", series: map[string]string{
		`up{job="shop",instance="a"}`: "1x4 0x10", `up{job="shop",instance="b"}`: "1x15", buildA: "1x4 stale", buildB: "1x15", `up{job="other",instance="c"}`: "0x15"}, at: "10m"},

	{alert: "LockstepProcessDown", about: "one of two", series: map[string]string{`up{job="shop",instance="a"}`: "1x4 0x20", `up{job="shop",instance="b"}`: "1x25", buildA: "1x4 stale", buildB: "1x25"}, at: "20m",
		fires: []firing{{"job=shop instance=a", "a of shop does not answer", "Prometheus does not reach the process for ten minutes. Others do its work, where there are any."}}},
	{alert: "LockstepProcessDown", about: "it was taken away, and another program is down", series: map[string]string{`up{job="shop",instance="a"}`: "1x4 stale", `up{job="shop",instance="b"}`: "1x25", buildA: "1x4 stale", buildB: "1x25", `up{job="other",instance="c"}`: "0x25"}, at: "20m"},

	{alert: "LockstepProcessRestarts", about: "three times", series: map[string]string{`process_start_time_seconds{job="shop",instance="a"}`: "1x5 300x5 600x5 900x5", buildA: "1x30"}, at: "20m",
		fires: []firing{{"job=shop instance=a", "a of shop starts again and again", "It was started 3 times within an hour."}}},
	{alert: "LockstepProcessRestarts", about: "it is down for the moment", series: map[string]string{`process_start_time_seconds{job="shop",instance="a"}`: "1x5 300x5 600x5 900x5 stale", buildA: "1x23 stale"}, at: "25m",
		fires: []firing{{"job=shop instance=a", "a of shop starts again and again", "It was started 3 times within an hour."}}},
	{alert: "LockstepProcessRestarts", about: "an upgrade, and another program that starts again and again", series: map[string]string{`process_start_time_seconds{job="shop",instance="a"}`: "1x5 300x30", buildA: "1x30", `process_start_time_seconds{job="other",instance="c"}`: "1 2 3 4 5 6 7x20"}, at: "20m"},

	{alert: "LockstepBuildMismatch", about: "two", every: "5m", series: map[string]string{buildA: "1x20", `lockstep_build_info{job="shop",instance="b",version="v2",commit="d",pipeline="shop"}`: "1x20"}, at: "90m",
		fires: []firing{{"job=shop", "shop runs 2 builds of Lockstep", "The processes of the pipeline have been of 2 different builds for an hour; a rollout takes less."}}},
	{alert: "LockstepBuildMismatch", about: "a rollout, and another pipeline with another one", every: "5m", series: map[string]string{buildA: "1x20", buildB: "1x7 stale", `lockstep_build_info{job="shop",instance="c",version="v0",commit="d",pipeline="shop"}`: "1x7 stale",
		`lockstep_build_info{job="other",instance="d",version="v2",commit="d",pipeline="other"}`: "1x20"}, at: "90m"},

	{alert: "LockstepPipelinesShareAJob", about: "two prefixes", series: map[string]string{buildA: "1x20", `lockstep_build_info{job="shop",instance="b",version="v1",commit="c",pipeline="bank"}`: "1x20"}, at: "16m",
		fires: []firing{{"job=shop", "shop has 2 pipelines in it", "Processes of 2 prefixes are scraped as one job, so that an alert can take the health of one for that of another."}}},
	{alert: "LockstepPipelinesShareAJob", about: "two jobs", series: map[string]string{buildA: "1x20", buildB: "1x20", `lockstep_build_info{job="bank",instance="c",version="v1",commit="c",pipeline="bank"}`: "1x20"}, at: "16m"},

	{alert: "LockstepMemoryNearLimit", about: "nearly all", series: map[string]string{`process_resident_memory_bytes{job="shop",instance="a"}`: "950x20", `go_gc_gomemlimit_bytes{job="shop",instance="a"}`: "1000x20", buildA: "1x20"}, at: "16m",
		fires: []firing{{"job=shop instance=a", "a of shop has little memory left", "It has taken 95% of what the runtime may have (GOMEMLIMIT, or else three and a half times worker.memory_bytes) and gets slower above it."}}},
	{alert: "LockstepMemoryNearLimit", about: "half, and one without a limit", series: map[string]string{
		`process_resident_memory_bytes{job="shop",instance="a"}`: "500x20", `go_gc_gomemlimit_bytes{job="shop",instance="a"}`: "1000x20", buildA: "1x20",
		`process_resident_memory_bytes{job="shop",instance="b"}`: "9e18x20", `go_gc_gomemlimit_bytes{job="shop",instance="b"}`: "9.223372036854775807e18x20", buildB: "1x20"}, at: "16m"},

	{alert: "LockstepClockSkew", about: "behind, and unknown", series: map[string]string{`lockstep_source_clock_skew_seconds{job="shop",instance="a"}`: "-3x20", `lockstep_source_clock_uncertainty_seconds{job="shop",instance="a"}`: "0.001x20",
		`lockstep_source_clock_skew_seconds{job="shop",instance="b"}`: "0.1x20", `lockstep_source_clock_uncertainty_seconds{job="shop",instance="b"}`: "0.5x20"}, at: "16m",
		fires: []firing{{"job=shop instance=a", "The clocks of a of shop and of MySQL are apart", "The clocks differ, or are not known better, by 3s. Ages are corrected by what is known; times in logs and letters are not."},
			{"job=shop instance=b", "The clocks of b of shop and of MySQL are apart", "The clocks differ, or are not known better, by 500ms. Ages are corrected by what is known; times in logs and letters are not."}}},
	{alert: "LockstepClockSkew", about: "a little, and not measured yet", series: map[string]string{`lockstep_source_clock_skew_seconds{job="shop",instance="a"}`: "-0.2x20", `lockstep_source_clock_uncertainty_seconds{job="shop",instance="a"}`: "0.001x20",
		`lockstep_source_clock_skew_seconds{job="shop",instance="b"}`: "0x20", `lockstep_source_clock_uncertainty_seconds{job="shop",instance="b"}`: "_x20"}, at: "16m"},
}

func TestEveryAlertHasACaseInWhichItFiresAndOneInWhichItDoesNot(t *testing.T) {
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, s := range stories {
		if len(s.fires) == 0 {
			quiet[s.alert] = true
		}
		for _, f := range s.fires {
			fires[s.alert+" "+labelsOf(f.labels)["window"]] = true
		}
	}
	for _, r := range alerts() {
		if !fires[r.alert+" "+r.labels["window"]] {
			t.Errorf("%s %s: no case in which it fires", r.alert, r.labels["window"])
		}
		if !quiet[r.alert] {
			t.Errorf("%s: no case in which it does not fire", r.alert)
		}
	}
}

func TestPromtoolAgrees(t *testing.T) {
	promtool := testenv.Promtool(t)
	rulesPath := filepath.Join(testenv.Root(t), rulesFile)
	run := func(words ...string) {
		t.Helper()
		if out, err := exec.Command(promtool[0], append(promtool[1:], words...)...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(words, " "), err, out)
		}
	}
	run("check", "rules", rulesPath)
	files := map[string][]any{}
	for _, s := range stories {
		every := s.every
		if every == "" {
			every = "1m"
		}
		var input, want []any
		for series, values := range s.series {
			input = append(input, object{"series": series, "values": values})
		}
		for _, f := range s.fires {
			labels := labelsOf(f.labels)
			for _, r := range alerts() {
				if r.alert == s.alert && r.labels["window"] == labels["window"] {
					labels["severity"] = r.level
				}
			}
			want = append(want, object{"exp_labels": labels, "exp_annotations": object{"summary": f.summary, "description": f.description, "runbook_url": runbook(s.alert)}})
		}
		files[every] = append(files[every], object{"name": s.alert + ": " + s.about, "interval": every, "input_series": input,
			"alert_rule_test": []any{object{"eval_time": s.at, "alertname": s.alert, "exp_alerts": want}}})
	}
	for every, tests := range files {
		// A JSON text is YAML, too.
		evaluate := every
		if every != "1m" {
			evaluate = "30m"
		}
		text, err := json.Marshal(object{"rule_files": []string{rulesPath}, "evaluation_interval": evaluate, "tests": tests})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "stories.yaml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		run("test", "rules", path)
	}
}

func labelsOf(text string) map[string]string {
	labels := map[string]string{}
	for _, word := range strings.Fields(text) {
		name, value, _ := strings.Cut(word, "=")
		labels[name] = value
	}
	return labels
}
