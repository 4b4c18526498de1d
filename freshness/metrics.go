package freshness

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those of the watermarks and of barriers in one process.
type Metrics struct {
	upTo    prometheus.Gauge
	waiting prometheus.Gauge
	seconds *prometheus.HistogramVec
}

// What a barrier came to, as a metric label.
const (
	endedVisible = "visible"
	endedHidden  = "hidden" // by a dead letter
	endedTimeout = "timeout"
)

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		upTo: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_capture_up_to_timestamp_seconds",
			Help: "Time, by the source's clock, up to which everything that was committed is in Kafka, while this process captures; 0 when it has not. It moves every second, also while nothing is written."}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_barriers_waiting", Help: "Barriers that wait in this process now."}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lockstep_barrier_seconds", Help: "How long barriers of this process have waited, by what they came to: visible, hidden by a dead letter, or the timeout.",
			Buckets: []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"result"}),
	}
	for _, result := range []string{endedVisible, endedHidden, endedTimeout} {
		m.seconds.WithLabelValues(result)
	}
	reg.MustRegister(m.upTo, m.waiting, m.seconds)
	return m
}

// ended counts a barrier.
func (m *Metrics) ended(a *Answer, began time.Time) {
	result := endedTimeout
	switch {
	case a.Visible:
		result = endedVisible
	case a.Settled():
		result = endedHidden
	}
	m.seconds.WithLabelValues(result).Observe(time.Since(began).Seconds())
}

// passed notes how far the capture is.
func (m *Metrics) passed(c *Capture) {
	if c.UpToMicros > 0 {
		m.upTo.Set(float64(c.UpToMicros) / 1e6)
	}
}

// left notes that this process captures no more.
func (m *Metrics) left() {
	m.upTo.Set(0)
}
