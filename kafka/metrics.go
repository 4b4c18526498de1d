package kafka

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of the package. The labels topic and partition name what the
// configuration and the source make, never keys or texts.
type Metrics struct {
	published   *prometheus.CounterVec // topic
	acked       *prometheus.CounterVec // topic
	ackedBytes  *prometheus.CounterVec // topic
	retries     prometheus.Counter
	unacked     prometheus.Gauge
	age         *prometheus.HistogramVec // topic
	checkpoints prometheus.Counter
	lag         *prometheus.GaugeVec // group, topic, partition
}

// AckAge is the histogram of how old batches were when they were acknowledged.
func (m *Metrics) AckAge() prometheus.Collector { return m.age }

// NewMetrics makes the metrics and registers them with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		published: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_kafka_published_records_total", Help: "Records handed to the publisher.",
		}, []string{"topic"}),
		acked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_kafka_acked_records_total", Help: "Records acknowledged by all in-sync replicas.",
		}, []string{"topic"}),
		ackedBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_kafka_acked_bytes_total", Help: "Bytes of acknowledged batches, after compression.",
		}, []string{"topic"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_kafka_publish_retries_total", Help: "Batches sent again after an error.",
		}),
		unacked: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_kafka_unacked_bytes", Help: "Bytes published and not yet acknowledged, before compression.",
		}),
		age: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lockstep_kafka_ack_age_seconds",
			Help:    "Time from the commit of a batch's oldest record at the source to its acknowledgement by Kafka, by the source's clock.",
			Buckets: []float64{.001, .0015, .002, .003, .005, .0075, .01, .015, .02, .03, .05, .1, .2, .5, .8, 1, 2.5, 5, 10, 30, 60, 300, 3600},
		}, []string{"topic"}),
		checkpoints: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_kafka_checkpoints_total", Help: "Positions of the source saved.",
		}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_consumer_lag_records", Help: "Records of a partition that its consumer group has not committed.",
		}, []string{"group", "topic", "partition"}),
	}
	reg.MustRegister(m.published, m.acked, m.ackedBytes, m.retries, m.unacked, m.age, m.checkpoints, m.lag)
	return m
}

func lagLabels(group, topic string, partition int) []string {
	return []string{group, topic, strconv.Itoa(partition)}
}
