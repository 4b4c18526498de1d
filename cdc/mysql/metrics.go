package mysql

import (
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
)

// Metrics of the reader.
type Metrics struct {
	rows         *prometheus.CounterVec
	transactions prometheus.Counter
	connected    prometheus.Gauge
	reconnects   prometheus.Counter
	lag          prometheus.Gauge
	clock        prometheus.Gauge
	epoch        prometheus.Gauge
	fileNumber   prometheus.Gauge
	filePos      prometheus.Gauge
	copying      prometheus.Gauge
	copied       *prometheus.GaugeVec
	estimated    *prometheus.GaugeVec
	copyState    *prometheus.GaugeVec
	held         prometheus.Gauge
	leftOut      prometheus.Counter
	ddl          *prometheus.CounterVec
	readAge      *prometheus.HistogramVec
	kept         prometheus.Gauge

	ghostTransactions, ghostKeys prometheus.Counter
}

// ageBuckets are those of every age since a commit, in seconds: fine where a pipeline should
// be, and up to where it is a day's work to catch up.
var ageBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, .8, 1.2, 2.5, 5, 10, 30, 60, 300, 3600}

// ReadAge is the histogram of how old rows were when they were read.
func (m *Metrics) ReadAge() prometheus.Collector { return m.readAge }

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_capture_rows_total", Help: "Row changes read from the source, by table and operation (c, u, d, r)."}, []string{"table", "op"}),
		transactions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_capture_transactions_total", Help: "Transactions read from the source's log, those without captured rows included."}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_capture_connected", Help: "1 while the source's log is being read, else 0."}),
		reconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_capture_reconnects_total", Help: "How often the connection to the source was lost and tried again."}),
		lag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_capture_lag_seconds", Help: "Age of the last transaction when it was read; 0 once the end of the log is reached."}),
		clock: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_capture_log_clock_bytes", Help: "The log clock: bytes of row log read in this epoch."}),
		epoch: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_capture_epoch", Help: "The epoch of the versions."}),
		fileNumber: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_capture_binlog_file_number", Help: "Number at the end of the name of the binary log file being read."}),
		filePos: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_capture_binlog_position_bytes", Help: "Position in the binary log file being read."}),
		copying: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_capture_copying", Help: "1 while rows are being copied beside the log, else 0."}),
		copied: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_snapshot_rows", Help: "Rows that the table's snapshot under way, or its newest, has in Kafka."}, []string{"table"}),
		estimated: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_snapshot_estimated_rows", Help: "About how many rows that snapshot will have; 0 when nobody knows."}, []string{"table"}),
		copyState: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_snapshot_state", Help: "1 for the state of that snapshot, 0 for the others: running, paused, done, cancelled or failed."}, []string{"table", "state"}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_snapshot_held", Help: "1 while snapshots wait because the source is busy or the capture is behind, else 0."}),
		leftOut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_snapshot_rows_left_out_total", Help: "Rows read by snapshots and not published, because the log brought something newer meanwhile."}),
		ddl: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_capture_ddl_total", Help: "Statements met in the log that change a captured table, by what was done: emptied or dropped (the sinks are emptied), copied (the table is copied anew), passed (its rows stay as they are) or skipped by the operator."}, []string{"action"}),
		readAge: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lockstep_capture_read_age_seconds", Help: "Time from the commit in the source to the reading of the row change from its log, by the source's clock.",
			Buckets: ageBuckets}, []string{"table"}),
		kept: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_source_log_kept_seconds", Help: "For how long the source keeps its binary log (binlog_expire_logs_seconds), as the capture saw it when it connected last; 0 before, and when the server purges its log only when told to."}),
		ghostTransactions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_capture_ghost_transactions_total", Help: "Transactions in Kafka that the source has lost, as when a replica took over without them; the rows they changed are read again."}),
		ghostKeys: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_capture_ghost_keys_total", Help: "Rows read again because a transaction that the source has lost had changed them."}),
	}
	for _, action := range []string{"emptied", "dropped", "copied", "passed", "skipped"} {
		m.ddl.WithLabelValues(action)
	}
	reg.MustRegister(m.rows, m.transactions, m.connected, m.reconnects, m.lag, m.clock, m.epoch, m.fileNumber, m.filePos, m.copying, m.copied, m.estimated, m.copyState, m.held, m.leftOut, m.ddl, m.readAge, m.kept, m.ghostTransactions, m.ghostKeys)
	return m
}

// forgetSnapshots takes away what is said of snapshots. Those there are say it again.
func (m *Metrics) forgetSnapshots() {
	for _, g := range []*prometheus.GaugeVec{m.copied, m.estimated, m.copyState} {
		g.Reset()
	}
}

// tableCounters are the counters of one table, looked up once.
type tableCounters struct {
	create, update, delete, read prometheus.Counter
	readAge                      prometheus.Observer
}

func (m *Metrics) table(t cdc.TableName) *tableCounters {
	count := func(op cdc.Op) prometheus.Counter { return m.rows.WithLabelValues(t.String(), op.String()) }
	return &tableCounters{count(cdc.OpCreate), count(cdc.OpUpdate), count(cdc.OpDelete), count(cdc.OpRead), m.readAge.WithLabelValues(t.String())}
}

func (c *tableCounters) inc(op cdc.Op) {
	switch op {
	case cdc.OpCreate:
		c.create.Inc()
	case cdc.OpUpdate:
		c.update.Inc()
	case cdc.OpDelete:
		c.delete.Inc()
	case cdc.OpRead:
		c.read.Inc()
	}
}
