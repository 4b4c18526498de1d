package reconcile

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those of a Runner. A nil one counts nothing.
type Metrics struct {
	mismatches *prometheus.CounterVec
	classes    *prometheus.CounterVec
	keys       *prometheus.CounterVec
	suspects   *prometheus.GaugeVec
	standing   *prometheus.GaugeVec
	ratio      *prometheus.GaugeVec
	coverage   *prometheus.GaugeVec
	uncovered  *prometheus.GaugeVec
	unclear    *prometheus.GaugeVec
	passes     *prometheus.CounterVec
}

// Standing are the gauges of the mismatches that remain and of when tables were last compared.
func (m *Metrics) Standing() (mismatches, coverage prometheus.Collector) {
	return m.standing, m.coverage
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	of := []string{"table", "sink"}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "lockstep_reconcile_" + name, Help: help}, labels)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lockstep_reconcile_" + name, Help: help}, labels)
	}
	m := &Metrics{
		mismatches: counter("mismatch_total", "Rows that were confirmed to differ, each time that they were.", of...),
		classes:    counter("mismatch_class_total", "The same by class: missing, stale, differing, orphan or tampered.", "table", "sink", "class"),
		keys:       counter("keys_compared_total", "Rows that were compared.", of...),
		suspects:   gauge("suspects", "Rows that differ and are looked at again now; most have only changed meanwhile.", of...),
		standing:   gauge("mismatches", "Mismatches that the last full pass has found and that were not repaired.", of...),
		ratio:      gauge("mismatch_ratio", "The same as a part of the rows that it has compared.", of...),
		coverage:   gauge("coverage_timestamp_seconds", "When the last full pass began that has compared the whole table, in seconds since 1970; time() minus this is the age of the coverage.", of...),
		uncovered:  gauge("uncovered_since_timestamp_seconds", "When the first full pass over the table began, in seconds since 1970, while none has come to its end; no sample afterwards.", of...),
		unclear:    gauge("unclear", "Rows of which the last full pass could not say whether they are equal.", of...),
		passes:     counter("passes_total", "Comparisons that came to their end: full and sample.", "table", "kind"),
	}
	reg.MustRegister(m.mismatches, m.classes, m.keys, m.suspects, m.standing, m.ratio, m.coverage, m.uncovered, m.unclear, m.passes)
	return m
}

func (m *Metrics) compared(table, sink string, n int) {
	if m != nil {
		m.keys.WithLabelValues(table, sink).Add(float64(n))
	}
}

func (m *Metrics) suspected(table, sink string, n int) {
	if m != nil {
		m.suspects.WithLabelValues(table, sink).Set(float64(n))
	}
}

func (m *Metrics) mismatch(f Finding) {
	if m != nil {
		m.mismatches.WithLabelValues(f.Table, f.Sink).Inc()
		m.classes.WithLabelValues(f.Table, f.Sink, string(f.Class)).Inc()
	}
}

// begin makes the metrics of a table in a sink, so that they are there from the start.
func (m *Metrics) begin(table, sink string) {
	if m == nil {
		return
	}
	m.mismatches.WithLabelValues(table, sink)
	m.keys.WithLabelValues(table, sink)
	for _, class := range Classes {
		m.classes.WithLabelValues(table, sink, string(class))
	}
}

// first notes since when the first full pass over a table is under way, and ended that a pass has come to its end.
func (m *Metrics) first(table, sink string, began time.Time) {
	if m != nil {
		m.uncovered.WithLabelValues(table, sink).Set(float64(began.Unix()))
	}
}

func (m *Metrics) ended(table string) {
	if m != nil {
		m.uncovered.DeletePartialMatch(prometheus.Labels{"table": table})
	}
}

// covered notes what a full pass has found in a sink.
func (m *Metrics) covered(table string, began time.Time, r *SinkResult) {
	if m == nil {
		return
	}
	left := r.Differ() - r.Repaired
	m.standing.WithLabelValues(table, r.Sink).Set(float64(left))
	m.ratio.WithLabelValues(table, r.Sink).Set(float64(left) / float64(max(1, r.Compared)))
	m.unclear.WithLabelValues(table, r.Sink).Set(float64(r.Unclear))
	m.coverage.WithLabelValues(table, r.Sink).Set(float64(began.Unix()))
}

// forget takes the gauges of a table away. What was counted stays.
func (m *Metrics) forget(table string) {
	if m == nil {
		return
	}
	for _, g := range m.gauges() {
		g.DeletePartialMatch(prometheus.Labels{"table": table})
	}
}

// Rest takes all gauges away: whoever compares from now on says what stands.
func (m *Metrics) Rest() {
	for _, g := range m.gauges() {
		g.Reset()
	}
}

func (m *Metrics) gauges() []*prometheus.GaugeVec {
	return []*prometheus.GaugeVec{m.suspects, m.standing, m.ratio, m.unclear, m.coverage, m.uncovered}
}

func (m *Metrics) done(table, kind string) {
	if m != nil {
		m.passes.WithLabelValues(table, kind).Inc()
	}
}
