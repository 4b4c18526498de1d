package sinks

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
)

// The outcomes that end a change, as metric labels. For every sink and table
//
//	received = applied + stale + duplicate + filtered + superseded + dead + released + in flight
//
// where in flight is what the workers hold at that moment. As an expression, which is
// 0 for every sink and table save for what happens while it is scraped:
//
//	sum by (sink, table) (lockstep_sink_received_total)
//	  - sum by (sink, table) (lockstep_sink_in_flight)
//	  - sum by (sink, table) (lockstep_sink_changes_total)
const (
	outcomeApplied    = "applied"
	outcomeStale      = "stale"
	outcomeDuplicate  = "duplicate"
	outcomeFiltered   = "filtered"
	outcomeSuperseded = "superseded" // a newer change of the row, or a barrier of its table, arrived before this one was applied
	outcomeDead       = "dead"       // became a dead letter
	outcomeReleased   = "released"   // given back to Kafka when the partition was left; it is received again
)

var outcomes = []string{outcomeApplied, outcomeStale, outcomeDuplicate, outcomeFiltered, outcomeSuperseded, outcomeDead, outcomeReleased}

// LatencyBounds are the buckets, in seconds, in which ages of changes since their commit are counted.
var LatencyBounds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, .8, 1.2, 2.5, 5, 10, 30, 60, 300}

// Metrics are the counters of all workers of a process.
type Metrics struct {
	received     *prometheus.CounterVec
	inFlight     *prometheus.GaugeVec
	changes      *prometheus.CounterVec
	dead         *prometheus.CounterVec
	latency      *prometheus.HistogramVec
	fetched      *prometheus.HistogramVec
	future       *prometheus.CounterVec
	held         *prometheus.GaugeVec
	memory       *prometheus.GaugeVec
	poolSize     *prometheus.GaugeVec
	calls        *prometheus.GaugeVec
	waiting      *prometheus.GaugeVec
	breaker      *prometheus.GaugeVec
	breakerSince *prometheus.GaugeVec
	breakerNext  *prometheus.GaugeVec
	tableBreaker *prometheus.GaugeVec
	tableSince   *prometheus.GaugeVec
	tableNext    *prometheus.GaugeVec
	tableHeld    *prometheus.GaugeVec
	tableWaits   *prometheus.GaugeVec
	apply        *prometheus.HistogramVec
	newest       *prometheus.GaugeVec
	sweeping     *prometheus.GaugeVec
	swept        *prometheus.CounterVec
	repairs      *prometheus.CounterVec
}

// Ages are the histograms of how old changes were when they came and when they were applied, by
// sink and table.
func (m *Metrics) Ages() (fetched, applied prometheus.Collector) { return m.fetched, m.latency }

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_sink_received_total",
			Help: "Records taken from Kafka. Records read again after a restart count again.",
		}, []string{"sink", "table"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_in_flight",
			Help: "Records taken from Kafka and not settled yet. sum by (sink, table) of received_total, less that of in_flight and of changes_total, is 0.",
		}, []string{"sink", "table"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_sink_changes_total",
			Help: "Records settled, by what became of them.",
		}, []string{"sink", "table", "outcome"}),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_sink_dead_letters_total",
			Help: "Changes that became dead letters, by the kind of the refusal. Those that may pass are tried again: see lockstep_dlq_letters.",
		}, []string{"sink", "table", "class"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lockstep_sink_latency_seconds",
			Help:    "Time from the commit in the source to the store's acknowledgement, of applied changes, by the source's clock.",
			Buckets: LatencyBounds,
		}, []string{"sink", "table"}),
		fetched: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lockstep_sink_fetched_age_seconds",
			Help:    "Time from the commit in the source to the coming of the change from Kafka, by the source's clock.",
			Buckets: LatencyBounds,
		}, []string{"sink", "table"}),
		future: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_sink_commits_from_the_future_total",
			Help: "Applied changes whose commit time lies ahead of the source's clock, as it is known here; they are left out of the latency.",
		}, []string{"sink"}),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_held_partitions",
			Help: "Partitions that wait: for an unavailable store, for a table that is held, or for Kafka to take a dead letter.",
		}, []string{"sink"}),
		memory: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_memory_bytes",
			Help: "Bytes of the records that the sink holds, of worker.memory_bytes for all sinks of the process.",
		}, []string{"sink"}),
		poolSize: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_pool_size",
			Help: "How many calls of the store may be under way now, between worker.calls_min and worker.calls_max; as many again by partitions that found it unavailable.",
		}, []string{"sink"}),
		calls: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_pool_calls",
			Help: "Calls of the store that are under way.",
		}, []string{"sink"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_pool_waiting",
			Help: "Partitions that wait for their turn to call the store.",
		}, []string{"sink"}),
		breaker: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_breaker_state",
			Help: "The sink's breaker: 0 closed, 1 half-open, 2 open.",
		}, []string{"sink"}),
		breakerSince: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_breaker_since_timestamp_seconds",
			Help: "When the sink's breaker opened; 0 while it is closed.",
		}, []string{"sink"}),
		breakerNext: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_breaker_next_probe_timestamp_seconds",
			Help: "When an open breaker of a sink lets one call through; 0 while there is nothing to wait for.",
		}, []string{"sink"}),
		tableBreaker: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_table_breaker_state",
			Help: "The breaker of one table in a sink: 0 closed, 1 half-open, 2 open, which holds the table's changes.",
		}, []string{"sink", "table"}),
		tableSince: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_table_breaker_since_timestamp_seconds",
			Help: "When the table's breaker opened; 0 while it is closed.",
		}, []string{"sink", "table"}),
		tableNext: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_table_breaker_next_probe_timestamp_seconds",
			Help: "When an open breaker of a table lets one change through; 0 while there is nothing to wait for.",
		}, []string{"sink", "table"}),
		tableHeld: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_table_held",
			Help: "1 while a table is held because a sink refuses its changes with this class, else 0. lockstep status tells the reason.",
		}, []string{"sink", "table", "class"}),
		tableWaits: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_table_held_partitions",
			Help: "Partitions of a table that wait, by what for: table (its own index, its shape, or the source, which cannot be asked for it), store (which is unavailable), flood (the table's breaker), kafka (which does not take a dead letter). lockstep status tells the reason.",
		}, []string{"sink", "table", "by"}),
		apply: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lockstep_sink_apply_seconds",
			Help:    "Duration of one call of the store.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"sink"}),
		newest: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_applied_commit_timestamp_seconds",
			Help: "Commit time of the newest change that was applied, of any table. lockstep status says up to when all tables are.",
		}, []string{"sink"}),
		sweeping: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_sink_sweeping",
			Help: "Tables whose rows from before a TRUNCATE, a DROP or a new copy are being removed, or wait for other partitions to be.",
		}, []string{"sink"}),
		swept: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_sink_swept_rows_total",
			Help: "Rows removed because a TRUNCATE, a DROP or a new copy of their table left them out.",
		}, []string{"sink", "table"}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_sink_store_losses_total",
			Help: "Partitions of which the store had lost changes, or may have, by what was done: rewind to the store's mark, replay from the partition's beginning, or a new snapshot of the table.",
		}, []string{"sink", "repair"}),
	}
	reg.MustRegister(m.repairs, m.inFlight, m.memory, m.poolSize, m.calls, m.waiting, m.breakerSince, m.breakerNext, m.tableBreaker, m.tableSince, m.tableNext, m.tableHeld, m.tableWaits)
	reg.MustRegister(m.received, m.changes, m.dead, m.latency, m.fetched, m.future, m.held, m.breaker, m.apply, m.newest, m.sweeping, m.swept)
	return m
}

// Declare makes the metrics of a sink and its tables exist, with zeros, before
// the first record arrives.
func (m *Metrics) Declare(sink string, tables []cdc.TableName) {
	m.future.WithLabelValues(sink)
	m.held.WithLabelValues(sink)
	for _, g := range []*prometheus.GaugeVec{m.breaker, m.breakerSince, m.breakerNext, m.memory, m.poolSize, m.calls, m.waiting} {
		g.WithLabelValues(sink)
	}
	m.apply.WithLabelValues(sink)
	m.newest.WithLabelValues(sink)
	m.sweeping.WithLabelValues(sink)
	for _, t := range tables {
		m.account(sink, t.String())
	}
}

// declareRepairs makes the losses of a sink whose store keeps marks exist.
func (m *Metrics) declareRepairs(sink string) {
	for _, repair := range repairs {
		m.repairs.WithLabelValues(sink, repair)
	}
}

// account is the book of one table in one sink.
type account struct {
	received prometheus.Counter
	inFlight prometheus.Gauge
	settled  map[string]prometheus.Counter // by outcome
	dead     map[Class]prometheus.Counter
	latency  prometheus.Observer
	swept    prometheus.Counter
}

func (m *Metrics) account(sink, table string) *account {
	a := &account{
		received: m.received.WithLabelValues(sink, table),
		inFlight: m.inFlight.WithLabelValues(sink, table),
		settled:  make(map[string]prometheus.Counter, len(outcomes)),
		dead:     make(map[Class]prometheus.Counter, len(Classes)),
		latency:  m.latency.WithLabelValues(sink, table),
		swept:    m.swept.WithLabelValues(sink, table),
	}
	for _, o := range outcomes {
		a.settled[o] = m.changes.WithLabelValues(sink, table, o)
	}
	for _, c := range Classes {
		a.dead[c] = m.dead.WithLabelValues(sink, table, string(c))
	}
	return a
}

// highest is a gauge of a time that only moves forward.
type highest struct {
	mu    sync.Mutex
	value int64
}

func (h *highest) set(micros int64, g prometheus.Gauge) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if micros > h.value {
		h.value = micros
		g.Set(float64(micros) / float64(time.Second/time.Microsecond))
	}
}
