package route

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the routes.
type Metrics struct {
	state, share *prometheus.GaugeVec
	changes      *prometheus.CounterVec
	would        *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	labels := []string{"sink", "table"}
	m := &Metrics{
		state: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_route_state",
			Help: "How far a sink can be trusted with a table, as this process sees it: 0 ok, 1 warning, 2 degraded. In a dry run it is what it would be.",
		}, labels),
		share: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_route_share_percent",
			Help: "Percentage of the keys of a table that read from the sink; the others read from MySQL.",
		}, labels),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_route_changes_total",
			Help: "Changes of a table's state in a sink, by the new one.",
		}, append(labels, "state")),
		would: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_route_would_degrade_total",
			Help: "How often a dry run would have turned the route of a table to MySQL.",
		}, labels),
	}
	reg.MustRegister(m.state, m.share, m.changes, m.would)
	return m
}

// show sets the gauges, and makes the counters of a place that is new.
func (m *Metrics) show(p Place, d Decision) {
	m.state.WithLabelValues(p.Sink, p.Table).Set(float64(d.State))
	m.share.WithLabelValues(p.Sink, p.Table).Set(float64(d.Share))
	m.would.WithLabelValues(p.Sink, p.Table)
	for _, state := range stateNames {
		m.changes.WithLabelValues(p.Sink, p.Table, state)
	}
}

// forget takes the gauges of a place away. What was counted stays.
func (m *Metrics) forget(p Place) {
	m.state.DeleteLabelValues(p.Sink, p.Table)
	m.share.DeleteLabelValues(p.Sink, p.Table)
}

func (m *Metrics) count(p Place, was, now Decision) {
	if was.State == now.State {
		return
	}
	m.changes.WithLabelValues(p.Sink, p.Table, now.State.String()).Inc()
	if now.DryRun && now.State == Degraded {
		m.would.WithLabelValues(p.Sink, p.Table).Inc()
	}
}
