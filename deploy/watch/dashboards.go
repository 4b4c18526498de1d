package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// board is a dashboard of Grafana.
type board struct {
	name   string // of the file, and in the uid, which never changes
	title  string
	shows  string
	panels []panel
}

// panel is one picture. Its queries write {P} for the matchers of the pipelines that are
// chosen, {PS} for those and the sinks, and {PST} for those and the tables; further
// matchers stand before the brace: {PS,outcome="dead"}.
type panel struct {
	row     string // begins a row with this title
	title   string
	kind    string // timeseries where it is empty, stat, or table
	shows   string
	unit    string // as Grafana calls it
	queries []query
	limits  []limit
	names   map[string]string // of values: "0": "closed"
	alerts  []string          // those that look at the same, whose runbooks it links to
	whole   bool              // as wide as two
	quiet   bool              // it is empty while all is well
}

type query struct {
	expr   string
	legend string // labels in {{ }}
}

// limit is from where on the colour is another one.
type limit struct {
	at     float64
	colour string
}

var (
	zeroIsGood = []limit{{1, "red"}}
	waiting    = []limit{{1, "orange"}}
	late       = []limit{{0.8, "orange"}, {2.5, "red"}}
	behind     = []limit{{5, "orange"}, {60, "red"}}
	closed     = map[string]string{"0": "closed", "1": "half-open", "2": "open"}
	states     = map[string]string{"0": "ok", "1": "warning", "2": "degraded"}
)

// quantiles asks for P50 and P99 of a histogram, by the pipeline and further labels.
func quantiles(histogram, selector, by, legend string) []query {
	var all []query
	if by != "" {
		by = ", " + by
	}
	for _, q := range []struct{ q, name string }{{"0.5", "P50"}, {"0.99", "P99"}} {
		all = append(all, query{fmt.Sprintf("histogram_quantile(%s, sum by (le, {L}%s) (rate(%s_bucket%s[$__rate_interval])))", q.q, by, histogram, selector), q.name + " " + legend})
	}
	return all
}

func one(expr, legend string) []query { return []query{{expr, legend}} }

var boards = []board{
	{name: "overview", title: "Lockstep / Overview", shows: "Is everything well, and if not, where to look: the objective, what waits, what is refused, what differs.", panels: []panel{
		{title: "Captures", kind: "stat", shows: "How many processes capture: one, for each pipeline.", queries: one(`sum by ({L}) (lockstep_capture_active{P})`, "{{job}}"),
			limits: []limit{{0, "red"}, {1, "green"}, {2, "red"}}, alerts: []string{"LockstepNobodyCaptures"}},
		{title: "In Kafka up to", kind: "stat", unit: "s", shows: "Age of the time up to which everything that was committed in MySQL is in Kafka. It is about a second, also while nothing is written.",
			queries: one(`time() - max by ({L}) (lockstep_capture_up_to_timestamp_seconds{P} > 0)`, "{{job}}"), limits: behind, alerts: []string{"LockstepCaptureBehind"}},
		{title: "Late changes, last hour", kind: "stat", unit: "percentunit", shows: "Share of changes that were not in the store within 800 ms of the commit, or are dead letters. The objective is 1 %. Nothing is shown after an hour without changes.",
			queries: one(`1 - sum by ({L}, sink) (increase(lockstep_sink_latency_seconds_bucket{PS,le="0.8"}[1h])) / (sum by ({L}, sink) (increase(lockstep_sink_latency_seconds_count{PS}[1h])) + sum by ({L}, sink) (increase(lockstep_sink_dead_letters_total{PS}[1h])) > 0)`, "{{sink}}"),
			limits:  []limit{{0.01, "orange"}, {0.144, "red"}}, alerts: []string{"LockstepFreshnessBudgetBurns"}},
		{title: "Breakers", kind: "stat", shows: "Whether the store of a sink is available: closed is good.", queries: one(`max by ({L}, sink) (lockstep_sink_breaker_state{PS})`, "{{sink}}"),
			limits: []limit{{1, "orange"}, {2, "red"}}, names: closed, alerts: []string{"LockstepBreakerOpen"}},
		{title: "Dead letters that wait", kind: "stat", shows: "Rows that a store refuses and that wait for a change of the row, or for a person.", queries: one(`sum by ({L}, sink) (lockstep_dlq_letters{PS,state=~"parked|exhausted"})`, "{{sink}}"),
			limits: waiting, alerts: []string{"LockstepDeadLettersWaiting", "LockstepDeadLetterOld"}, quiet: true},
		{title: "Routes", kind: "stat", shows: "The worst state of the tables of a sink: ok is good. Tables that are degraded are read from MySQL.", queries: one(`max by ({L}, sink) (lockstep_route_state{PS})`, "{{sink}}"),
			limits: []limit{{1, "orange"}, {2, "red"}}, names: states, alerts: []string{"LockstepRouteDegraded"}},
		{title: "Rows that differ", kind: "stat", shows: "Rows that the last full pass of the reconciler has found to differ from MySQL and that were not repaired. It is 0 while all is well.",
			queries: one(`max by ({L}, sink) (lockstep_reconcile_mismatches{PS})`, "{{sink}}"), limits: zeroIsGood, alerts: []string{"LockstepRowsDiffer"}},
		{title: "Kafka", kind: "stat", unit: "s", shows: "For how long Kafka has not answered a process. It is 0 but for elections of some seconds.", queries: one(`max by ({L}) (lockstep_kafka_unavailable_seconds{P})`, "{{job}}"),
			limits: []limit{{10, "orange"}, {60, "red"}}, alerts: []string{"LockstepKafkaUnreachable"}},
		{row: "Alerts", title: "Alerts", kind: "table", whole: true, shows: "Alerts of Lockstep that are pending or firing.", queries: one(`ALERTS{P,alertname=~"Lockstep.*"}`, ""), quiet: true},
		{row: "Flow", title: "From the commit to the store", unit: "s", shows: "Age of changes when the store has acknowledged them, by the source's clock. P99 below 0.8 s keeps the objective.", queries: quantiles("lockstep_sink_latency_seconds", "{PST}", "sink", "{{sink}}"), limits: late, alerts: []string{"LockstepFreshnessBudgetBurns"}},
		{title: "Changes", unit: "cps", shows: "Row changes read from MySQL, and records settled by each sink. Each sink settles about what is captured.", queries: []query{
			{`sum by ({L}) (rate(lockstep_capture_rows_total{P}[$__rate_interval]))`, "captured"},
			{`sum by ({L}, sink) (rate(lockstep_sink_changes_total{PS,outcome!="released"}[$__rate_interval]))`, "settled {{sink}}"}}},
		{title: "Waiting in Kafka", unit: "short", shows: "Records that a sink has not committed. It comes back to about 0 after each burst.", queries: one(`sum by ({L}, sink) (label_replace(lockstep_consumer_lag_records{P,group=~"[^.]+[.]($sink)"}, "sink", "$1", "group", ".*[.](.+)"))`, "{{sink}}"), alerts: []string{"LockstepSinkNotMoving"}},
		{title: "Applied and delivered up to", unit: "s", shows: "Age of the time up to which everything is applied, and up to which everything is in the store, dead letters included. On a quiet database they grow without a fault.", queries: []query{
			{`time() - min by ({L}, sink) (lockstep_sink_applied_up_to_timestamp_seconds{PS})`, "applied {{sink}}"},
			{`time() - min by ({L}, sink) (lockstep_sink_delivered_up_to_timestamp_seconds{PS})`, "delivered {{sink}}"}}},
		{row: "Processes", title: "Processes", kind: "table", shows: "What runs, of which build: one, but for a rollout.", queries: one(`lockstep_build_info{P}`, ""), alerts: []string{"LockstepBuildMismatch", "LockstepPipelinesShareAJob"}},
		{title: "Memory", unit: "bytes", shows: "Memory of each process, and what the runtime may have. Nine tenths of that are too much.", queries: []query{
			{`process_resident_memory_bytes{P} and on ({L}, instance) lockstep_build_info{P}`, "{{instance}}"},
			{`(go_gc_gomemlimit_bytes{P} < 9e18) and on ({L}, instance) lockstep_build_info{P}`, "limit {{instance}}"}}, alerts: []string{"LockstepMemoryNearLimit"}},
		{title: "CPU", unit: "short", shows: "Cores that each process uses, to be seen beside what it may use.", queries: one(`rate(process_cpu_seconds_total{P}[$__rate_interval]) and on ({L}, instance) lockstep_build_info{P}`, "{{instance}}")},
		{title: "Uptime", unit: "s", shows: "For how long each process runs. It falls to 0 with each start.", queries: one(`(time() - process_start_time_seconds{P}) and on ({L}, instance) lockstep_build_info{P}`, "{{instance}}"), alerts: []string{"LockstepProcessRestarts", "LockstepProcessDown", "LockstepPipelineDown"}},
	}},
	{name: "capture", title: "Lockstep / Capture", shows: "From MySQL to Kafka: who captures, how far, where the time goes, copies of tables, the log that is left.", panels: []panel{
		{title: "Who captures", shows: "1 for the process that has the lease of the capture: exactly one of a pipeline.", queries: one(`lockstep_capture_active{P}`, "{{instance}}"), alerts: []string{"LockstepNobodyCaptures"}},
		{title: "Connected", shows: "1 while the log of MySQL is being read: it is for the one that captures.", queries: one(`lockstep_capture_connected{P}`, "{{instance}}"), alerts: []string{"LockstepSourceUnreachable"}},
		{title: "In Kafka up to", unit: "s", shows: "Age of the time up to which everything that was committed is in Kafka. It is about a second, also while nothing is written.", queries: one(`time() - max by ({L}) (lockstep_capture_up_to_timestamp_seconds{P} > 0)`, "{{job}}"), limits: behind, alerts: []string{"LockstepCaptureBehind"}},
		{title: "Part of the log's life", unit: "percentunit", shows: "How far the capture is behind, as a part of the time for which MySQL keeps its log. At 100 % log is lost. Nothing is shown of a server that purges only when told to.",
			queries: one(`(time() - max by ({L}) (lockstep_capture_up_to_timestamp_seconds{P} > 0)) / max by ({L}) (lockstep_source_log_kept_seconds{P} > 0)`, "{{job}}"), limits: []limit{{0.25, "orange"}, {0.5, "red"}}, alerts: []string{"LockstepSourceLogAboutToBeLost"}},
		{row: "Flow", title: "Rows", unit: "rowsps", shows: "Row changes by operation: create, update, delete, and read by a copy.", queries: one(`sum by ({L}, op) (rate(lockstep_capture_rows_total{PT}[$__rate_interval]))`, "{{op}}")},
		{title: "Rows by table", unit: "rowsps", shows: "The same by table.", queries: one(`sum by ({L}, table) (rate(lockstep_capture_rows_total{PT}[$__rate_interval]))`, "{{table}}")},
		{title: "Read from the log", unit: "s", shows: "Age of row changes when the capture has read them: some milliseconds, or the lag of a replica.", queries: quantiles("lockstep_capture_read_age_seconds", "{PT}", "", ""), limits: late},
		{title: "Acknowledged by Kafka", unit: "s", shows: "Age of the oldest record of a batch when Kafka has acknowledged it: some milliseconds more than when it was read.", queries: quantiles("lockstep_kafka_ack_age_seconds", "{P}", "", ""), limits: late},
		{title: "Transactions", unit: "cps", shows: "Transactions read from the log, also those without captured rows.", queries: one(`sum by ({L}) (rate(lockstep_capture_transactions_total{P}[$__rate_interval]))`, "{{job}}")},
		{title: "Log", unit: "Bps", shows: "Row log read.", queries: one(`sum by ({L}) (rate(lockstep_capture_log_clock_bytes{P}[$__rate_interval]))`, "{{job}}")},
		{title: "To Kafka", unit: "Bps", shows: "Bytes that Kafka has acknowledged, after compression.", queries: one(`sum by ({L}) (rate(lockstep_kafka_acked_bytes_total{P}[$__rate_interval]))`, "{{job}}")},
		{title: "Not acknowledged", unit: "bytes", shows: "Bytes that wait for Kafka's acknowledgement. Where they stay near kafka.publish_buffer_bytes, Kafka is the slow one.", queries: one(`sum by ({L}, instance) (lockstep_kafka_unacked_bytes{P})`, "{{instance}}")},
		{row: "Trouble", title: "Reconnects, retries, takeovers", unit: "short", shows: "Connections to MySQL that were lost, batches that were sent again, and how often the lease was taken, in five minutes. All are 0 but for a restart.", queries: []query{
			{`sum by ({L}) (increase(lockstep_capture_reconnects_total{P}[5m]))`, "reconnects"},
			{`sum by ({L}) (increase(lockstep_kafka_publish_retries_total{P}[5m]))`, "batches sent again"},
			{`sum by ({L}) (increase(lockstep_capture_takeovers_total{P}[5m]))`, "takeovers"},
			{`sum by ({L}) (increase(lockstep_capture_frozen_total{P}[5m]))`, "stood still"}}},
		{title: "Kafka unavailable", unit: "s", shows: "For how long Kafka has not answered a process. It is 0 but for elections of some seconds.", queries: one(`lockstep_kafka_unavailable_seconds{P}`, "{{instance}}"), limits: []limit{{10, "orange"}, {60, "red"}}, alerts: []string{"LockstepKafkaUnreachable"}},
		{title: "Clocks", unit: "s", shows: "How far the clock of MySQL is ahead of that of a process, and how far that may be off. Both are milliseconds while time services do their work.", queries: []query{
			{`lockstep_source_clock_skew_seconds{P}`, "{{instance}}"}, {`lockstep_source_clock_uncertainty_seconds{P}`, "give or take, {{instance}}"}}, alerts: []string{"LockstepClockSkew"}},
		{title: "Statements and lost transactions", unit: "short", shows: "DDL met by what was done, and transactions in Kafka that MySQL has lost in a failover, in five minutes.", queries: []query{
			{`sum by ({L}, action) (increase(lockstep_capture_ddl_total{P}[5m]))`, "{{action}}"},
			{`sum by ({L}) (increase(lockstep_capture_ghost_transactions_total{P}[5m]))`, "lost transactions"}}},
		{row: "Copies", title: "Rows copied", unit: "short", shows: "Rows that the newest copy of a table has in Kafka, of about how many.", queries: []query{
			{`max by ({L}, table) (lockstep_snapshot_rows{PT})`, "{{table}}"}, {`max by ({L}, table) (lockstep_snapshot_estimated_rows{PT} > 0)`, "about, {{table}}"}}},
		{title: "Copies by state", unit: "short", shows: "The newest copies of the tables, by state: done, or running. A failed one lacks rows.", queries: one(`sum by ({L}, state) (lockstep_snapshot_state{PT})`, "{{state}}"), alerts: []string{"LockstepSnapshotFailed"}},
	}},
	{name: "sinks", title: "Lockstep / Sinks", shows: "From Kafka to the stores: age of changes, outcomes, calls, breakers, what is held, memory.", panels: []panel{
		{title: "From the commit to the store", unit: "s", shows: "Age of changes when the store has acknowledged them, by table. P99 below 0.8 s keeps the objective.", queries: quantiles("lockstep_sink_latency_seconds", "{PST}", "sink, table", "{{sink}} {{table}}"), limits: late, alerts: []string{"LockstepFreshnessBudgetBurns"}},
		{title: "When they come from Kafka", unit: "s", shows: "Age of changes when the sink gets them: what comes before the sink.", queries: quantiles("lockstep_sink_fetched_age_seconds", "{PST}", "sink", "{{sink}}"), limits: late},
		{title: "Calls of the store", unit: "s", shows: "How long a call of the store takes. What grows here is the store's, or the size of its calls (worker, bulk_docs).", queries: quantiles("lockstep_sink_apply_seconds", "{PS}", "sink", "{{sink}}")},
		{title: "Until a search finds it", unit: "s", shows: "Elasticsearch: age of a document when a search finds it, of a sample. Mostly refresh_interval.", queries: quantiles("lockstep_elastic_searchable_age_seconds", "{PST}", "sink", "{{sink}}")},
		{row: "Flow", title: "Outcomes", unit: "cps", shows: "Records settled, by what became of them: nearly all are applied, or superseded under load. Many stale or duplicate ones are a replay; dead ones are letters.", queries: one(`sum by ({L}, sink, outcome) (rate(lockstep_sink_changes_total{PST}[$__rate_interval]))`, "{{sink}} {{outcome}}")},
		{title: "By table", unit: "cps", shows: "Records received, by table.", queries: one(`sum by ({L}, sink, table) (rate(lockstep_sink_received_total{PST}[$__rate_interval]))`, "{{sink}} {{table}}")},
		{title: "Waiting in Kafka", unit: "short", shows: "Records of a table that a sink has not committed. It comes back to about 0 after each burst.", queries: one(`sum by ({L}, group, topic) (lockstep_consumer_lag_records{P,group=~"[^.]+[.]($sink)",topic=~"[^.]+[.]($table)"})`, "{{group}} {{topic}}"), alerts: []string{"LockstepSinkNotMoving"}},
		{title: "In flight", unit: "short", shows: "Records taken from Kafka and not settled yet. It does not stand still above 0.", queries: one(`sum by ({L}, sink, table) (lockstep_sink_in_flight{PST})`, "{{sink}} {{table}}")},
		{row: "What holds it", title: "Breakers", shows: "0 closed, which is good, 1 half-open, 2 open: the store is unavailable.", queries: one(`max by ({L}, sink) (lockstep_sink_breaker_state{PS})`, "{{sink}}"), limits: []limit{{1, "orange"}, {2, "red"}}, names: closed, alerts: []string{"LockstepBreakerOpen"}},
		{title: "Breakers of tables", shows: "0 while all is well, 2 while the changes of a table wait because the store refuses one like the other.", queries: one(`max by ({L}, sink, table) (lockstep_sink_table_breaker_state{PST})`, "{{sink}} {{table}}"), limits: []limit{{1, "orange"}, {2, "red"}}, names: closed, alerts: []string{"LockstepTableHeld"}},
		{title: "Held partitions", unit: "short", shows: "Partitions that wait, by what for: none while all is well.", queries: one(`sum by ({L}, sink, by) (lockstep_sink_table_held_partitions{PST})`, "{{sink}} {{by}}"), limits: waiting, alerts: []string{"LockstepTableHeld"}},
		{title: "Pool", unit: "short", shows: "Calls of the store: how many may be under way, how many are, and partitions that wait for their turn. Where many wait and as many are under way as may be, the store is the slow one.", queries: []query{
			{`sum by ({L}, sink) (lockstep_sink_pool_size{PS})`, "may, {{sink}}"}, {`sum by ({L}, sink) (lockstep_sink_pool_calls{PS})`, "are, {{sink}}"}, {`sum by ({L}, sink) (lockstep_sink_pool_waiting{PS})`, "wait, {{sink}}"}}},
		{title: "Memory of records", unit: "bytes", shows: "Bytes of the records that a sink holds, of worker.memory_bytes.", queries: one(`sum by ({L}, instance, sink) (lockstep_sink_memory_bytes{PS})`, "{{sink}} {{instance}}"), alerts: []string{"LockstepMemoryNearLimit"}},
		{title: "Elasticsearch", unit: "reqps", shows: "Bulk requests by answer: 2xx. 429 is a cluster with too much to do, none one that does not answer.", queries: one(`sum by ({L}, answer) (rate(lockstep_elastic_bulk_requests_total{P}[$__rate_interval]))`, "{{answer}}")},
		{title: "Losses of a store", unit: "short", shows: "Redis: partitions of which the store had lost changes, by what was done, in an hour. It is 0 but for a failover or a restart of Redis.", queries: one(`sum by ({L}, sink, repair) (increase(lockstep_sink_store_losses_total{PS}[1h]))`, "{{sink}} {{repair}}"), limits: waiting},
		{title: "Sweeps", unit: "short", shows: "Tables whose old rows are being removed after a TRUNCATE, a DROP or a new copy. It comes back to 0.", queries: one(`sum by ({L}, sink) (lockstep_sink_sweeping{PS})`, "{{sink}}")},
	}},
	{name: "dead-letters", title: "Lockstep / Dead letters", shows: "What stores refuse: how much, why, since when, and what becomes of it.", panels: []panel{
		{title: "Open, by state", unit: "short", shows: "Open letters: retrying try themselves again; parked and exhausted wait for a change of the row, or for a person.", queries: one(`sum by ({L}, sink, state) (lockstep_dlq_letters{PST})`, "{{sink}} {{state}}"), limits: waiting, alerts: []string{"LockstepDeadLettersWaiting", "LockstepDeadLettersRetrying"}, quiet: true},
		{title: "Open, by table and class", unit: "short", shows: "The same by table and by the kind of the refusal. lockstep dlq group has the causes.", queries: one(`sum by ({L}, sink, table, class) (lockstep_dlq_letters{PST})`, "{{sink}} {{table}} {{class}}"), limits: waiting, alerts: []string{"LockstepDeadLettersWaiting"}, quiet: true},
		{title: "Oldest open letter", unit: "s", shows: "Time since the first refusal of the letter that waits longest.", queries: one(`max by ({L}, sink, table) (lockstep_dlq_oldest_unresolved_seconds{PST})`, "{{sink}} {{table}}"), limits: []limit{{3600, "orange"}, {86400, "red"}}, alerts: []string{"LockstepDeadLetterOld"}, quiet: true},
		{title: "Oldest change that a store lacks", unit: "s", shows: "Age of the oldest change that is not in the store because of an open letter, since its commit.", queries: one(`max by ({L}, sink, table) (lockstep_dlq_undelivered_seconds{PST})`, "{{sink}} {{table}}"), limits: []limit{{3600, "orange"}, {86400, "red"}}, alerts: []string{"LockstepDeadLetterOld"}, quiet: true},
		{row: "What becomes of them", title: "New letters", unit: "short", shows: "Changes that became dead letters in five minutes, by class: none while all is well.", queries: one(`sum by ({L}, sink, class) (increase(lockstep_sink_dead_letters_total{PST}[5m]))`, "{{sink}} {{class}}"), limits: []limit{{100, "red"}}, alerts: []string{"LockstepDeadLetterFlood"}},
		{title: "Closed by themselves", unit: "short", shows: "Letters that the pipeline closed in five minutes.", queries: one(`sum by ({L}, sink, state) (increase(lockstep_dlq_closed_total{PS}[5m]))`, "{{sink}} {{state}}")},
		{title: "Attempts", unit: "short", shows: "Letters that tried themselves again in five minutes, by what came of it.", queries: one(`sum by ({L}, sink, result) (increase(lockstep_dlq_attempts_total{PST}[5m]))`, "{{sink}} {{result}}"), quiet: true},
		{title: "Letters being read", unit: "short", shows: "Partitions whose letters are being read after a process got them; no offset is committed there meanwhile.", queries: one(`sum by ({L}, sink) (lockstep_dlq_loading_partitions{PS})`, "{{sink}}")},
		{row: "Replays", title: "Replays by state", unit: "short", shows: "Replays that are known, by state. They are kept for a week.", queries: one(`sum by ({L}, state) (lockstep_dlq_jobs{P} and on ({L}, instance) lockstep_replays_active{P} == 1)`, "{{state}}")},
		{title: "Letters replayed", unit: "short", shows: "Letters that replays were through with in five minutes, by what came of them.", queries: one(`sum by ({L}, sink, mode, outcome) (increase(lockstep_dlq_replayed_total{PS}[5m]))`, "{{sink}} {{mode}} {{outcome}}"), quiet: true},
	}},
	{name: "correctness", title: "Lockstep / Correctness", shows: "Are the stores equal to MySQL, can they be trusted, do the books balance.", panels: []panel{
		{title: "Rows that differ", unit: "short", shows: "Rows that the last full pass has found to differ and that were not repaired. It is 0 while all is well.", queries: one(`max by ({L}, sink, table) (lockstep_reconcile_mismatches{PST})`, "{{sink}} {{table}}"), limits: zeroIsGood, alerts: []string{"LockstepRowsDiffer"}},
		{title: "Confirmed differences", unit: "short", shows: "Rows that were confirmed to differ in an hour, by class: none while all is well.", queries: one(`sum by ({L}, sink, class) (increase(lockstep_reconcile_mismatch_class_total{PST}[1h]))`, "{{sink}} {{class}}"), limits: zeroIsGood, alerts: []string{"LockstepRowsDiffer"}},
		{title: "Age of the coverage", unit: "s", shows: "Time since the last full pass over a table began. It stays below reconcile.full_every, a day, and the length of a pass.", queries: one(`time() - max by ({L}, sink, table) (lockstep_reconcile_coverage_timestamp_seconds{PST})`, "{{sink}} {{table}}"), limits: []limit{{90000, "orange"}, {172800, "red"}}, alerts: []string{"LockstepReconcileCoverageOld", "LockstepNobodyCompares"}},
		{title: "Rows compared", unit: "rowsps", shows: "Rows that the reconciler compares. Samples alone make it up to 70 a second; nothing at all is no reconciler.", queries: one(`sum by ({L}, sink, table) (rate(lockstep_reconcile_keys_compared_total{PST}[$__rate_interval]))`, "{{sink}} {{table}}")},
		{title: "Suspects", unit: "short", shows: "Rows that differ and are looked at again. Most have only changed meanwhile.", queries: one(`sum by ({L}, sink) (lockstep_reconcile_suspects{PST})`, "{{sink}}")},
		{title: "Unclear", unit: "short", shows: "Rows of which the last full pass could not say whether they are equal: none while all is well.", queries: one(`sum by ({L}, sink, table) (lockstep_reconcile_unclear{PST})`, "{{sink}} {{table}}"), limits: waiting},
		{row: "Routes", title: "States", shows: "How far a sink can be trusted with a table: 0 ok, 1 warning, 2 degraded.", queries: one(`max by ({L}, sink, table) (lockstep_route_state{PST})`, "{{sink}} {{table}}"), limits: []limit{{1, "orange"}, {2, "red"}}, names: states, alerts: []string{"LockstepRouteDegraded"}},
		{title: "Keys read from the sink", unit: "percent", shows: "Percentage of the keys of a table that are read from the sink; the others are read from MySQL. It is 100 while all is well.", queries: one(`min by ({L}, sink, table) (lockstep_route_share_percent{PST})`, "{{sink}} {{table}}"), limits: []limit{{0, "red"}, {50, "orange"}, {100, "green"}}, alerts: []string{"LockstepRouteDegraded"}},
		{row: "Books", title: "Books", unit: "short", shows: "Received, less what is in flight and what is settled. It is 0, save for what happens while it is scraped.", queries: one(`sum by ({L}, instance, sink, table) (lockstep_sink_received_total{PST}) - sum by ({L}, instance, sink, table) (lockstep_sink_in_flight{PST}) - sum by ({L}, instance, sink, table) (lockstep_sink_changes_total{PST})`, "{{sink}} {{table}} {{instance}}"), alerts: []string{"LockstepBooksDoNotBalance"}},
		{title: "Written by somebody else", unit: "short", shows: "Elasticsearch: changes that met a document that somebody else had written, in an hour: none while nobody else writes there.", queries: one(`sum by ({L}) (increase(lockstep_elastic_foreign_writes_total{P}[1h]))`, "{{job}}"), limits: zeroIsGood},
		{row: "Barriers", title: "How long barriers wait", unit: "s", shows: "Barriers by what they came to. There are none while nobody asks.", queries: quantiles("lockstep_barrier_seconds", "{P}", "result", "{{result}}")},
		{title: "Barriers", unit: "short", shows: "Barriers that ended, and those that wait now.", queries: []query{
			{`sum by ({L}, result) (rate(lockstep_barrier_seconds_count{P}[$__rate_interval]))`, "{{result}}"}, {`sum by ({L}) (lockstep_barriers_waiting{P})`, "waiting"}}},
	}},
}

// selectors are what the short forms in queries stand for.
var selectors = func() *strings.Replacer {
	const pipelines, sinks, tables = `cluster=~"$cluster",namespace=~"$namespace",job=~"$job"`, `,sink=~"$sink"`, `,table=~"$table"`
	words := []string{"{L}", pipelineLabels}
	for short, long := range map[string]string{"PST": pipelines + sinks + tables, "PS": pipelines + sinks, "PT": pipelines + tables, "P": pipelines} {
		words = append(words, "{"+short+",", "{"+long+",", "{"+short+"}", "{"+long+"}")
	}
	return strings.NewReplacer(words...)
}()

func (q query) text() string { return selectors.Replace(q.expr) }

// name is the legend with the pipeline in front, because several may be chosen.
func (q query) name() string {
	if strings.Contains(q.legend, "{{job}}") {
		return q.legend
	}
	return strings.TrimSpace("{{job}} " + q.legend)
}

type object = map[string]any

var datasource = object{"type": "prometheus", "uid": "${datasource}"}

// json is the dashboard as Grafana imports it. Keys come in the order of the alphabet, so
// the same dashboard is the same text.
func (b board) json() []byte {
	var panels []object
	x, y, height, id := 0, 0, 0, 0
	put := func(o object, w, h int) {
		if x+w > 24 {
			x, y = 0, y+height
		}
		if x == 0 {
			height = 0
		}
		id++
		o["id"], o["gridPos"] = id, object{"x": x, "y": y, "w": w, "h": h}
		x, height = x+w, max(height, h)
		panels = append(panels, o)
	}
	for _, p := range b.panels {
		if p.row != "" {
			if x > 0 {
				x, y = 0, y+height
			}
			put(object{"type": "row", "title": p.row, "collapsed": false, "panels": []any{}}, 24, 1)
			x, y = 0, y+1
		}
		w, h := 12, 8
		switch {
		case p.kind == "stat":
			w, h = 6, 4
		case p.whole:
			w, h = 24, 6
		}
		put(p.json(), w, h)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(object{
		"uid": "lockstep-" + b.name, "title": b.title, "description": b.shows, "tags": []string{"lockstep"},
		"schemaVersion": 39, "editable": true, "graphTooltip": 1, "refresh": "30s", "time": object{"from": "now-1h", "to": "now"}, "timezone": "",
		"annotations": object{"list": []any{}}, "panels": panels,
		"templating": object{"list": variables()},
		"links":      []object{{"type": "dashboards", "title": "Lockstep", "tags": []string{"lockstep"}, "includeVars": true, "keepTime": true, "asDropdown": false, "targetBlank": false, "icon": "external link", "url": ""}},
	}); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func variables() []object {
	const chosen = `{cluster=~"$cluster",namespace=~"$namespace",job=~"$job"}`
	list := []object{{"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "hide": 0, "refresh": 1, "multi": false, "includeAll": false}}
	for _, v := range []struct{ name, label, query string }{
		{"cluster", "Cluster", "label_values(lockstep_build_info, cluster)"},
		{"namespace", "Namespace", `label_values(lockstep_build_info{cluster=~"$cluster"}, namespace)`},
		{"job", "Job", `label_values(lockstep_build_info{cluster=~"$cluster",namespace=~"$namespace"}, job)`},
		{"sink", "Sink", "label_values(lockstep_sink_received_total" + chosen + ", sink)"},
		{"table", "Table", "label_values(lockstep_sink_received_total" + chosen + ", table)"},
	} {
		list = append(list, object{
			"type": "query", "name": v.name, "label": v.label, "datasource": datasource, "definition": v.query, "query": object{"query": v.query, "refId": v.name},
			"refresh": 2, "sort": 1, "hide": 0, "multi": true, "includeAll": true, "allValue": ".*", "regex": "",
			"current": object{"text": []string{"All"}, "value": []string{"$__all"}, "selected": true},
		})
	}
	return append(list, object{"type": "textbox", "name": "runbooks", "label": "Runbooks", "query": runbookDir, "hide": 2,
		"current": object{"text": runbookDir, "value": runbookDir}, "options": []object{{"text": runbookDir, "value": runbookDir, "selected": true}}})
}

func (p panel) json() object {
	kind := p.kind
	if kind == "" {
		kind = "timeseries"
	}
	var targets []object
	for i, q := range p.queries {
		target := object{"refId": string(rune('A' + i)), "datasource": datasource, "editorMode": "code", "expr": q.text(), "legendFormat": q.name(), "range": kind != "table", "instant": kind == "table"}
		if kind == "table" {
			target["format"] = "table"
		}
		targets = append(targets, target)
	}
	steps := []object{{"color": "green", "value": nil}}
	for _, l := range p.limits {
		steps = append(steps, object{"color": l.colour, "value": l.at})
	}
	mappings := []object{}
	if len(p.names) > 0 {
		options := object{}
		for value, text := range p.names {
			options[value] = object{"text": text}
		}
		mappings = append(mappings, object{"type": "value", "options": options})
	}
	defaults := object{"unit": p.unit, "thresholds": object{"mode": "absolute", "steps": steps}, "mappings": mappings}
	o := object{"type": kind, "title": p.title, "description": p.describe(), "datasource": datasource, "targets": targets,
		"fieldConfig": object{"defaults": defaults, "overrides": []any{}}}
	switch kind {
	case "timeseries":
		defaults["custom"] = object{"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": false, "thresholdsStyle": object{"mode": "off"}}
		if len(p.limits) > 0 {
			defaults["custom"].(object)["thresholdsStyle"] = object{"mode": "dashed"}
		}
		o["options"] = object{"legend": object{"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": []string{"lastNotNull", "max"}}, "tooltip": object{"mode": "multi", "sort": "desc"}}
	case "stat":
		o["options"] = object{"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false}, "colorMode": "background", "graphMode": "area", "textMode": "auto", "orientation": "auto", "justifyMode": "auto"}
	case "table":
		o["options"] = object{"showHeader": true, "cellHeight": "sm"}
		o["transformations"] = []object{{"id": "organize", "options": object{"excludeByName": object{"Time": true, "Value": true, "__name__": true}}}}
	}
	if len(p.alerts) > 0 {
		var links []object
		for _, name := range p.alerts {
			links = append(links, object{"title": "Runbook: " + name, "url": "${runbooks}/" + name + ".md", "targetBlank": true})
		}
		o["links"] = links
	}
	return o
}

// describe is what the panel shows, and whose runbooks are about it.
func (p panel) describe() string {
	if p.quiet {
		return p.shows + " It is empty while all is well."
	}
	return p.shows
}

// boardList is a table of the dashboards.
func boardList() string {
	var b strings.Builder
	b.WriteString("| dashboard | shows |\n| --- | --- |\n")
	for _, board := range boards {
		fmt.Fprintf(&b, "| `%s.json` | %s |\n", board.name, board.shows)
	}
	return b.String()
}
