package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Severities. A page is for what readers of the stores notice, or will before the morning.
const (
	page   = "page"
	ticket = "ticket"
)

// rule is an alert, or a series that alerts are made of.
type rule struct {
	record string
	alert  string
	expr   string // {P} stands for the labels of a pipeline: a job, in a namespace and a cluster where there are any
	wait   string // how long it must be true; "" is not at all
	level  string
	labels map[string]string // further ones

	summary, description string
	means                string // for lists of alerts, when the rules of one name differ: their common meaning
}

// pipelineLabels tell two pipelines apart. What a process says of itself has no such label, for
// a pipeline is what is scraped as one job.
const pipelineLabels = "cluster, namespace, job"

type group struct {
	name  string
	rules []rule
}

// lateAbove is the objective: this share of the changes may take longer than lateAfter.
const (
	lateAfter = "0.8" // seconds; a bound of the buckets of lockstep_sink_latency_seconds
	mayBeLate = 0.01
)

// burns are the windows in which the share of late changes is looked at (Site Reliability
// Workbook, chapter 5): with the first one the changes that 30 days may have late are used up
// in two days. A page waits for longer than its short window, so that nobody is woken by what
// is over: a large transaction, or a sink that has caught up.
var burns = []struct {
	short, long string
	factor      float64
	wait, level string
}{
	{"3m", "1h", 14.4, "5m", page},
	{"30m", "6h", 6, "35m", page},
	{"2h", "1d", 3, "1h", ticket},
	{"6h", "3d", 1, "3h", ticket},
}

func groups() []group {
	return []group{
		{"lockstep-freshness", freshness()},
		{"lockstep-capture", []rule{
			{record: "lockstep:capture_up_to_timestamp_seconds:max", expr: remembered("lockstep_capture_up_to_timestamp_seconds", "lockstep:capture_up_to_timestamp_seconds:max")},
			{record: "lockstep:source_log_kept_seconds:max", expr: remembered("lockstep_source_log_kept_seconds", "lockstep:source_log_kept_seconds:max")},
			{alert: "LockstepNobodyCaptures", level: page, wait: "2m",
				expr: `max by ({P}) (lockstep_capture_active) == 0
or
(count by ({P}) (lockstep_build_info) unless count by ({P}) (lockstep_capture_active))`,
				summary:     `Nobody captures in {{ $labels.job }}`,
				description: `No process of the pipeline has the lease of the capture, so nothing that is committed in MySQL gets to Kafka.`},
			{alert: "LockstepSourceUnreachable", level: page, wait: "2m",
				expr:        `max by ({P}) (lockstep_capture_active) == 1 and max by ({P}) (lockstep_capture_connected) == 0`,
				summary:     `The capture of {{ $labels.job }} does not read the log of MySQL`,
				description: `A process has the lease of the capture and is not connected to the binary log, so nothing that is committed gets to Kafka.`},
			{alert: "LockstepCaptureBehind", level: page, wait: "2m",
				expr:        `time() - max by ({P}) (lockstep_capture_up_to_timestamp_seconds > 0) > 60`,
				summary:     `The capture of {{ $labels.job }} is behind`,
				description: `What was committed in MySQL in the last {{ $value | humanizeDuration }} is not in Kafka yet; normally that is a second.`},
			{alert: "LockstepSourceLogAboutToBeLost", level: page, wait: "5m",
				expr:        `(time() - lockstep:capture_up_to_timestamp_seconds:max) / lockstep:source_log_kept_seconds:max > 0.5`,
				summary:     `MySQL is about to purge log that {{ $labels.job }} has not read`,
				description: `The capture is behind by {{ $value | humanizePercentage }} of the time for which MySQL keeps its binary log. When that is over every table must be copied again.`},
			{alert: "LockstepSnapshotFailed", level: ticket, wait: "5m",
				expr:        `max by ({P}, table) (lockstep_snapshot_state{state="failed"} and on ({P}, instance) lockstep_capture_active == 1) == 1`,
				summary:     `The copy of {{ $labels.table }} in {{ $labels.job }} has failed`,
				description: `The newest snapshot of the table has ended without all of its rows. Changes of the table travel on.`},
		}},
		{"lockstep-sinks", []rule{
			{record: "lockstep:sink_lag_records:sum",
				expr: `sum by ({P}, instance, sink) (label_replace(lockstep_consumer_lag_records, "sink", "$1", "group", ".*[.](.+)"))`},
			{alert: "LockstepSinkNotMoving", level: page, wait: "5m",
				expr: `min_over_time(lockstep:sink_lag_records:sum[5m]) > 0
and on ({P}, instance, sink)
(
  sum by ({P}, instance, sink) (rate(lockstep_sink_changes_total{outcome!~"released|superseded"}[5m])) == 0
  or
  max_over_time(lockstep_sink_applied_up_to_timestamp_seconds[5m]) - min_over_time(lockstep_sink_applied_up_to_timestamp_seconds[5m]) < 1
  and on ({P}, instance, sink) lockstep:sink_lag_records:sum >= lockstep:sink_lag_records:sum offset 5m
  unless on ({P}) max by ({P}) (lockstep_capture_copying) == 1
)`, // a change that waits can be superseded, which moves it a little; rows of a copy have no time
				summary:     `Sink {{ $labels.sink }} of {{ $labels.job }} does not move`,
				description: `{{ $value }} changes or more have waited on {{ $labels.instance }} for five minutes, and the time up to which it has applied everything stands still.`},
			{alert: "LockstepBreakerOpen", level: page,
				expr:        `max by ({P}, sink) (time() - (lockstep_sink_breaker_since_timestamp_seconds > 0)) > 120`,
				summary:     `The store of sink {{ $labels.sink }} of {{ $labels.job }} is unavailable`,
				description: `The breaker of the sink has been open for {{ $value | humanizeDuration }}. Its changes wait in Kafka.`},
			{alert: "LockstepTableHeld", level: page, wait: "5m",
				expr:        `sum by ({P}, sink, table, by) (max_over_time(lockstep_sink_table_held_partitions{by=~"table|flood"}[2m])) > 0`,
				summary:     `Table {{ $labels.table }} is held in sink {{ $labels.sink }} of {{ $labels.job }}`,
				description: `{{ $value }} partitions of the table wait, held by {{ $labels.by }}. The other tables go on.`},
			{alert: "LockstepRouteDegraded", level: page, wait: "10m",
				expr: `max by ({P}, sink, table) (lockstep_route_state == 2 and lockstep_route_share_percent == 0)
unless on ({P}, table)
(lockstep_snapshot_state{state="running"} and on ({P}, instance) lockstep_capture_active == 1) == 1`, // a copy takes its time; a dry run sends nobody away
				summary:     `Readers of {{ $labels.table }} are sent from sink {{ $labels.sink }} to MySQL in {{ $labels.job }}`,
				description: `The route of the table is degraded for ten minutes, and no copy of it is under way: the sink cannot be trusted with it, and MySQL bears its reads.`},
			{record: "lockstep:sink_books:difference",
				expr: `sum by ({P}, instance, sink, table) (lockstep_sink_received_total)
- sum by ({P}, instance, sink, table) (lockstep_sink_in_flight)
- sum by ({P}, instance, sink, table) (lockstep_sink_changes_total)`},
			// What happens while it is scraped is now more and now less, or 0; what is lost stays.
			{alert: "LockstepBooksDoNotBalance", level: page, wait: "20m",
				expr:        `min_over_time(lockstep:sink_books:difference[10m]) > 0 or max_over_time(lockstep:sink_books:difference[10m]) < 0`,
				summary:     `The books of {{ $labels.table }} in sink {{ $labels.sink }} of {{ $labels.job }} do not balance`,
				description: `On {{ $labels.instance }} the changes received and the changes settled or in flight have differed by {{ $value }} or more to the same side for half an hour: one has ended nowhere, or twice.`},
		}},
		{"lockstep-dead-letters", []rule{
			{alert: "LockstepDeadLetterFlood", level: page,
				expr: `sum by ({P}, sink, table) (increase(lockstep_sink_dead_letters_total[5m])) > 100
or
sum by ({P}, sink, table) (lockstep_sink_dead_letters_total and on ({P}, instance) time() - process_start_time_seconds < 300) > 100`, // of a counter that is no 0 when it is scraped first nothing is an increase
				summary:     `Sink {{ $labels.sink }} of {{ $labels.job }} refuses many rows of {{ $labels.table }}`,
				description: `{{ $value | printf "%.0f" }} changes became dead letters in five minutes.`},
			{alert: "LockstepDeadLettersWaiting", level: ticket, wait: "15m",
				expr:        `sum by ({P}, sink, table, class) (lockstep_dlq_letters{state=~"parked|exhausted"}) > 0`,
				summary:     `Dead letters of {{ $labels.table }} wait in sink {{ $labels.sink }} of {{ $labels.job }}`,
				description: `{{ $value }} rows are refused with {{ $labels.class }} and wait for a change of the row, or for you.`},
			{alert: "LockstepDeadLettersRetrying", level: ticket, wait: "5m",
				expr: `sum by ({P}, sink, table) (lockstep_dlq_letters{state="retrying"}) > 10
and
sum by ({P}, sink, table) (lockstep_dlq_letters{state="retrying"})
> (sum by ({P}, sink, table) (lockstep_dlq_letters{state="retrying"} offset 10m) or sum by ({P}, sink, table) (lockstep_dlq_letters{state="retrying"}) * 0)`,
				summary:     `More and more dead letters of {{ $labels.table }} try themselves again in sink {{ $labels.sink }} of {{ $labels.job }}`,
				description: `{{ $value }} rows were refused for a reason that may pass and try themselves again; ten minutes before there were fewer.`},
			{alert: "LockstepDeadLetterOld", level: ticket,
				expr:        `max by ({P}, sink, table) (lockstep_dlq_oldest_unresolved_seconds) > 86400`,
				summary:     `Sink {{ $labels.sink }} of {{ $labels.job }} has lacked a row of {{ $labels.table }} for a day`,
				description: `The oldest open dead letter of the table was refused first {{ $value | humanizeDuration }} ago, and nobody has ended it.`},
		}},
		{"lockstep-correctness", []rule{
			{alert: "LockstepRowsDiffer", level: page,
				expr: `max by ({P}, sink, table) (lockstep_reconcile_mismatches and on ({P}, instance) lockstep_reconcile_active == 1) > 0
or
sum by ({P}, sink, table) (increase(lockstep_reconcile_mismatch_total[1h])) > 0`,
				summary:     `Sink {{ $labels.sink }} of {{ $labels.job }} has rows of {{ $labels.table }} that are not as in MySQL`,
				description: `The reconciler has confirmed {{ $value | printf "%.0f" }} rows that differ and that nothing under way explains.`},
			{alert: "LockstepReconcileCoverageOld", level: ticket, wait: "15m",
				expr: `time() - min by ({P}, sink, table) (
  (lockstep_reconcile_coverage_timestamp_seconds or lockstep_reconcile_uncovered_since_timestamp_seconds)
  and on ({P}, instance) lockstep_reconcile_active == 1
) > 2 * 86400`,
				summary:     `{{ $labels.table }} was not compared with sink {{ $labels.sink }} of {{ $labels.job }} for two days`,
				description: `The last full pass over the table that has come to its end, or the first one, which has not, began {{ $value | humanizeDuration }} ago. reconcile.full_every is a day where nothing else is configured.`},
			{alert: "LockstepNobodyCompares", level: ticket, wait: "15m",
				expr:        `max by ({P}) (lockstep_reconcile_active) == 0`,
				summary:     `Nobody compares the rows of {{ $labels.job }} with MySQL`,
				description: `Processes of the pipeline are to compare, and none has the lease for it, so a row that differs is not noticed.`},
		}},
		{"lockstep-processes", []rule{
			{alert: "LockstepKafkaUnreachable", level: page,
				expr:        `max by ({P}) (lockstep_kafka_unavailable_seconds) > 60`,
				summary:     `Kafka does not answer {{ $labels.job }}`,
				description: `A process has asked Kafka for {{ $value | humanizeDuration }} without an answer. Nothing is lost; what is committed in MySQL waits in its log.`},
			{alert: "LockstepPipelineDown", level: page, wait: "2m",
				expr:        `(max by ({P}) (up) == 0) and on ({P}) last_over_time(lockstep_build_info[1d])`,
				summary:     `No process of {{ $labels.job }} answers`,
				description: `Prometheus reaches none of the processes of the pipeline that it scraped in the last day.`},
			{alert: "LockstepProcessDown", level: ticket, wait: "10m",
				expr:        `up == 0 and on ({P}, instance) last_over_time(lockstep_build_info[1d])`,
				summary:     `{{ $labels.instance }} of {{ $labels.job }} does not answer`,
				description: `Prometheus does not reach the process for ten minutes. Others do its work, where there are any.`},
			{alert: "LockstepProcessRestarts", level: ticket,
				expr:        `changes(process_start_time_seconds[1h]) > 2 and on ({P}, instance) last_over_time(lockstep_build_info[1h])`,
				summary:     `{{ $labels.instance }} of {{ $labels.job }} starts again and again`,
				description: `It was started {{ $value }} times within an hour.`},
			{alert: "LockstepBuildMismatch", level: ticket, wait: "1h",
				expr:        `count by ({P}) (count by ({P}, version, commit) (lockstep_build_info)) > 1`,
				summary:     `{{ $labels.job }} runs {{ $value }} builds of Lockstep`,
				description: `The processes of the pipeline have been of {{ $value }} different builds for an hour; a rollout takes less.`},
			{alert: "LockstepPipelinesShareAJob", level: ticket, wait: "15m",
				expr:        `count by ({P}) (count by ({P}, pipeline) (lockstep_build_info)) > 1`,
				summary:     `{{ $labels.job }} has {{ $value }} pipelines in it`,
				description: `Processes of {{ $value }} prefixes are scraped as one job, so that an alert can take the health of one for that of another.`},
			{alert: "LockstepMemoryNearLimit", level: ticket, wait: "15m",
				expr:        `process_resident_memory_bytes / (go_gc_gomemlimit_bytes < 9e18) > 0.9 and on ({P}, instance) lockstep_build_info`,
				summary:     `{{ $labels.instance }} of {{ $labels.job }} has little memory left`,
				description: `It has taken {{ $value | humanizePercentage }} of what the runtime may have (GOMEMLIMIT, or else three and a half times worker.memory_bytes) and gets slower above it.`},
			{alert: "LockstepClockSkew", level: ticket, wait: "15m",
				expr:        `abs(lockstep_source_clock_skew_seconds) > 1 or lockstep_source_clock_uncertainty_seconds > 0.4`,
				summary:     `The clocks of {{ $labels.instance }} of {{ $labels.job }} and of MySQL are apart`,
				description: `The clocks differ, or are not known better, by {{ $value | humanizeDuration }}. Ages are corrected by what is known; times in logs and letters are not.`},
		}},
	}
}

// freshness is the service level objective: of the changes of a sink, dead letters
// among them, that were in the store within lateAfter seconds of their commit.
func freshness() []rule {
	var windows []string
	for _, b := range burns {
		for _, w := range []string{b.short, b.long} {
			if !slices.Contains(windows, w) {
				windows = append(windows, w)
			}
		}
	}
	var all []rule
	for _, w := range windows {
		all = append(all,
			rule{record: "lockstep:sink_changes:rate" + w, expr: fmt.Sprintf(`sum by ({P}, sink) (rate(lockstep_sink_latency_seconds_count[%[1]s])) + sum by ({P}, sink) (rate(lockstep_sink_dead_letters_total[%[1]s]))`, w)},
			rule{record: "lockstep:sink_late_changes:ratio_rate" + w, expr: fmt.Sprintf(`(lockstep:sink_changes:rate%[1]s - sum by ({P}, sink) (rate(lockstep_sink_latency_seconds_bucket{le="%[2]s"}[%[1]s]))) / (lockstep:sink_changes:rate%[1]s > 0)`, w, lateAfter)})
	}
	seconds := map[string]int{"1h": 3600, "6h": 6 * 3600, "1d": 86400, "3d": 3 * 86400}
	for _, b := range burns {
		share := b.factor * mayBeLate
		all = append(all, rule{alert: "LockstepFreshnessBudgetBurns", level: b.level, wait: b.wait, labels: map[string]string{"window": b.long},
			expr: fmt.Sprintf(`lockstep:sink_late_changes:ratio_rate%s > %.3f
and
lockstep:sink_late_changes:ratio_rate%[3]s > %.3[2]f
and
lockstep:sink_changes:rate%[3]s * %[4]d >= 100`, b.short, share, b.long, seconds[b.long]),
			summary:     `Changes reach sink {{ $labels.sink }} of {{ $labels.job }} too late`,
			description: fmt.Sprintf(`{{ $value | humanizePercentage }} of the changes of the last %s took longer than %s s from the commit to the store, or are dead letters; %g %% may, and over the last %s it is too many, too.`, b.short, lateAfter, mayBeLate*100, b.long),
			means:       fmt.Sprintf("More than %g %% of the changes take longer than %s s from the commit to the store, measured over 3 minutes and an hour, 30 minutes and 6 hours (page), 2 hours and a day, 6 hours and 3 days (ticket).", mayBeLate*100, lateAfter),
		})
	}
	return all
}

// remembered is a time of the capture that stays what it was when no process says it any
// more, for as long as something of the pipeline is scraped.
func remembered(metric, record string) string {
	return fmt.Sprintf(`max by ({P}) (%s > 0)
or
(max by ({P}) (last_over_time(%s[1h])) and on ({P}) up)`, metric, record)
}

func (r rule) text() string { return strings.ReplaceAll(r.expr, "{P}", pipelineLabels) }

// rules is the file of rules.
func rules() []byte {
	var b bytes.Buffer
	b.WriteString(`# Rules for Prometheus. Generated by go generate ./deploy/watch; docs/watch.md says how they are used.
# A runbook_url is a page of the sources of Lockstep: put before it where these can be read.
groups:
`)
	for _, g := range groups() {
		fmt.Fprintf(&b, "  - name: %s\n    rules:\n", g.name)
		for _, r := range g.rules {
			if r.record != "" {
				fmt.Fprintf(&b, "      - record: %s\n        expr: |-\n%s", r.record, indented(r.text(), 10))
				continue
			}
			fmt.Fprintf(&b, "      - alert: %s\n        expr: |-\n%s", r.alert, indented(r.text(), 10))
			if r.wait != "" {
				fmt.Fprintf(&b, "        for: %s\n", r.wait)
			}
			fmt.Fprintf(&b, "        labels:\n          severity: %s\n", r.level)
			for name, value := range r.labels {
				fmt.Fprintf(&b, "          %s: %s\n", name, value)
			}
			fmt.Fprintf(&b, "        annotations:\n          summary: %s\n          description: %s\n          runbook_url: %s\n",
				quoted(r.summary), quoted(r.description), runbook(r.alert))
		}
	}
	return b.Bytes()
}

func runbook(alert string) string { return runbookDir + "/" + alert + ".md" }

func indented(text string, by int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.Repeat(" ", by) + strings.TrimSuffix(line, "\n") + "\n")
	}
	return b.String()
}

// quoted is a text of YAML in which nothing but the quote is special.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// alerts are all of them, in the order of the file.
func alerts() []rule {
	var all []rule
	for _, g := range groups() {
		for _, r := range g.rules {
			if r.alert != "" {
				all = append(all, r)
			}
		}
	}
	return all
}

// alertNames are those of alerts, each once.
func alertNames() []string {
	var names []string
	for _, r := range alerts() {
		names = append(names, r.alert)
	}
	return slices.Compact(names)
}

// alertList is a table of the alerts, with links to their pages in a directory.
func alertList(dir string) string {
	var b strings.Builder
	b.WriteString("| alert | severity | when |\n| --- | --- | --- |\n")
	all := alerts()
	for i, r := range all {
		if i > 0 && all[i-1].alert == r.alert {
			continue
		}
		level, means := r.level, r.means
		if last := slices.IndexFunc(all, func(o rule) bool { return o.alert == r.alert && o.level != r.level }); last >= 0 {
			level += ", " + all[last].level
		}
		if means == "" {
			means = plain(r.summary)
			if r.wait != "" {
				means += ", for " + r.wait
			}
			means += "."
		}
		fmt.Fprintf(&b, "| [%s](%s%s.md) | %s | %s |\n", r.alert, dir, r.alert, level, means)
	}
	return b.String()
}

// plain is a summary without the words of templates.
func plain(summary string) string {
	text := strings.NewReplacer(" of {{ $labels.job }}", "", " in {{ $labels.job }}", "", "{{ $labels.job }}", "the pipeline",
		"Sink {{ $labels.sink }}", "A sink", "sink {{ $labels.sink }}", "a sink", "Table {{ $labels.table }}", "A table", "{{ $labels.table }}", "a table",
		"{{ $labels.instance }}", "a process", "{{ $value | humanizeDuration }}", "too long", "{{ $value }}", "several").Replace(summary)
	return strings.ToUpper(text[:1]) + text[1:]
}
