package elastic

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count the bulk requests of all Elasticsearch sinks of a process.
type Metrics struct {
	requests *prometheus.CounterVec
	bytes    prometheus.Counter
	mappings prometheus.Counter
	outlived prometheus.Counter
	foreign  prometheus.Counter

	searchable *prometheus.HistogramVec
}

// Searchable is the histogram of how old documents were when a search found them.
func (m *Metrics) Searchable() prometheus.Collector { return m.searchable }

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_elastic_bulk_requests_total",
			Help: "Bulk requests by answer: an HTTP status class, 429, or none when there was no answer.",
		}, []string{"answer"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_elastic_bulk_bytes_total",
			Help: "Bytes of bulk requests sent.",
		}),
		mappings: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_elastic_mapping_updates_total",
			Help: "Indices created and columns added to the mapping of an index.",
		}),
	}
	m.outlived = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "lockstep_elastic_tombstones_removed_total",
		Help: "Tombstones removed because they were older than tombstone_keep.",
	})
	m.foreign = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "lockstep_elastic_foreign_writes_total",
		Help: "Changes that met a document which somebody else had written: its _version is not its _lockstep.v.",
	})
	m.searchable = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "lockstep_elastic_searchable_age_seconds",
		Help:    "Time from the commit in the source until a search finds the document, by the source's clock, of one document of each table every five seconds. One that is not found within a minute counts so long.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, .8, 1.2, 2.5, 5, 10, 30, 60, 300},
	}, []string{"sink", "table"})
	for _, answer := range []string{"none", "2xx", "4xx", "429", "5xx"} {
		m.requests.WithLabelValues(answer)
	}
	reg.MustRegister(m.requests, m.bytes, m.mappings, m.outlived, m.foreign, m.searchable)
	return m
}

func (m *Metrics) count(status, bytes int) {
	answer := "none"
	switch {
	case status == 429:
		answer = "429"
	case status >= 200 && status < 600:
		answer = strconv.Itoa(status/100) + "xx"
	}
	m.requests.WithLabelValues(answer).Inc()
	m.bytes.Add(float64(bytes))
}
