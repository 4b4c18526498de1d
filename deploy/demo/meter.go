package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// meter reads lockstep's metrics.
type meter struct {
	url    string
	prefix string // of the pipeline; the topics of the tables begin with it
}

// snapshot is what the metrics said at one moment.
type snapshot struct {
	copied int // rows of the initial copy
	rows   int // rows from the log
	behind time.Duration
	acked  int // records of rows that Kafka has
	sinks  map[string]sinkState
}

// sinkState is the book of one sink, over all tables.
type sinkState struct {
	received int
	outcomes map[string]int
	lag      int // records in Kafka that are not committed yet
	latency  histogram
}

// settled is the number of records that came to an end in the sink. What was
// given back to Kafka will be received again.
func (s sinkState) settled() int {
	n := 0
	for outcome, count := range s.outcomes {
		if outcome != "released" {
			n += count
		}
	}
	return n
}

// open is the number of records that were received and have not ended.
func (s sinkState) open() int { return s.received - s.settled() - s.outcomes["released"] }

// read asks for the metrics once.
func (m *meter) read(ctx context.Context) (snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", m.url, nil)
	if err != nil {
		return snapshot{}, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return snapshot{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return snapshot{}, fmt.Errorf("%s: %s", m.url, response.Status)
	}
	return m.parse(response.Body)
}

func (m *meter) parse(text io.Reader) (snapshot, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return snapshot{}, fmt.Errorf("%s: %w", m.url, err)
	}
	s := snapshot{sinks: map[string]sinkState{}}
	for _, sink := range []string{search, cache} {
		s.sinks[sink] = sinkState{outcomes: map[string]int{}, latency: histogram{upTo: map[float64]uint64{}}}
	}
	each := func(name string, do func(labels map[string]string, metric *dto.Metric)) {
		for _, metric := range families[name].GetMetric() {
			labels := map[string]string{}
			for _, pair := range metric.GetLabel() {
				labels[pair.GetName()] = pair.GetValue()
			}
			do(labels, metric)
		}
	}
	each("lockstep_capture_rows_total", func(labels map[string]string, metric *dto.Metric) {
		if labels["op"] == "r" {
			s.copied += int(metric.GetCounter().GetValue())
		} else {
			s.rows += int(metric.GetCounter().GetValue())
		}
	})
	each("lockstep_capture_lag_seconds", func(_ map[string]string, metric *dto.Metric) {
		s.behind = time.Duration(metric.GetGauge().GetValue() * float64(time.Second))
	})
	each("lockstep_kafka_acked_records_total", func(labels map[string]string, metric *dto.Metric) {
		if strings.HasPrefix(labels["topic"], m.prefix+"."+database+".") {
			s.acked += int(metric.GetCounter().GetValue())
		}
	})
	ofSink := func(name string, do func(*sinkState, map[string]string, *dto.Metric)) {
		each(name, func(labels map[string]string, metric *dto.Metric) {
			if sink, ok := s.sinks[labels["sink"]]; ok {
				do(&sink, labels, metric)
				s.sinks[labels["sink"]] = sink
			}
		})
	}
	ofSink("lockstep_sink_received_total", func(sink *sinkState, _ map[string]string, metric *dto.Metric) {
		sink.received += int(metric.GetCounter().GetValue())
	})
	ofSink("lockstep_sink_changes_total", func(sink *sinkState, labels map[string]string, metric *dto.Metric) {
		sink.outcomes[labels["outcome"]] += int(metric.GetCounter().GetValue())
	})
	ofSink("lockstep_sink_latency_seconds", func(sink *sinkState, _ map[string]string, metric *dto.Metric) {
		sink.latency.add(metric.GetHistogram())
	})
	each("lockstep_consumer_lag_records", func(labels map[string]string, metric *dto.Metric) {
		for name, sink := range s.sinks {
			if labels["group"] == m.prefix+"."+name && strings.HasPrefix(labels["topic"], m.prefix+"."+database+".") {
				sink.lag += int(metric.GetGauge().GetValue())
				s.sinks[name] = sink
			}
		}
	})
	return s, nil
}

// settled waits until both sinks have received what Kafka has and every record
// of it has ended. Records that were given again count again.
func (m *meter) settled(ctx context.Context, timeout time.Duration) (snapshot, error) {
	deadline := time.Now().Add(timeout)
	for {
		s, err := m.read(ctx)
		if err == nil {
			for name, sink := range s.sinks {
				if sink.open() != 0 || sink.settled() < s.acked {
					err = errors.Join(err, fmt.Errorf("%s: not every record has ended: Kafka has %d, %d were received, %d have ended, %d were given back",
						name, s.acked, sink.received, sink.settled(), sink.outcomes["released"]))
				}
			}
			if err == nil {
				return s, nil
			}
		}
		if time.Now().After(deadline) || !pause(ctx, 200*time.Millisecond) {
			return s, err
		}
	}
}

// histogram counts observations by the upper bounds of their buckets.
type histogram struct {
	upTo  map[float64]uint64 // cumulative
	count uint64
}

func (h *histogram) add(from *dto.Histogram) {
	for _, b := range from.GetBucket() {
		h.upTo[b.GetUpperBound()] += b.GetCumulativeCount()
	}
	h.count += from.GetSampleCount()
}

// since is what was observed after an earlier state of the histogram.
func (h histogram) since(earlier histogram) histogram {
	delta := histogram{upTo: map[float64]uint64{}, count: h.count - earlier.count}
	for bound, n := range h.upTo {
		delta.upTo[bound] = n - earlier.upTo[bound]
	}
	return delta
}

// quantile estimates a quantile, spread evenly within its bucket, for the eye.
func (h histogram) quantile(q float64) string {
	if h.count == 0 {
		return "-"
	}
	rank, below, lower := q*float64(h.count), 0.0, 0.0
	for _, bound := range slices.Sorted(maps.Keys(h.upTo)) {
		n := float64(h.upTo[bound])
		if n >= rank && n > below {
			if math.IsInf(bound, 1) {
				break
			}
			return seconds(lower + (bound-lower)*(rank-below)/(n-below))
		}
		if !math.IsInf(bound, 1) {
			below, lower = n, bound
		}
	}
	return "over " + seconds(lower)
}

func seconds(s float64) string {
	switch {
	case s < 0.01:
		return fmt.Sprintf("%.1f ms", s*1000)
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1000)
	}
	return fmt.Sprintf("%.1f s", s)
}
