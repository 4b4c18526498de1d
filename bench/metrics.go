package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// metrics is what a lockstep process said of itself at one moment.
type metrics map[string]*dto.MetricFamily

func readMetrics(ctx context.Context, admin string) (metrics, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	url := "http://" + admin + "/metrics"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, response.Status)
	}
	return parseMetrics(response.Body)
}

func parseMetrics(text io.Reader) (metrics, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	return families, nil
}

// each calls do with every series of a family that has all the labels, given as
// name and value in turn.
func (m metrics) each(name string, labels []string, do func(*dto.Metric)) {
	for _, series := range m[name].GetMetric() {
		has := map[string]string{}
		for _, pair := range series.GetLabel() {
			has[pair.GetName()] = pair.GetValue()
		}
		fits := true
		for i := 0; i < len(labels); i += 2 {
			fits = fits && has[labels[i]] == labels[i+1]
		}
		if fits {
			do(series)
		}
	}
}

// sum adds up the counters or gauges of a family that have all the labels.
func (m metrics) sum(name string, labels ...string) (sum float64) {
	m.each(name, labels, func(s *dto.Metric) { sum += s.GetCounter().GetValue() + s.GetGauge().GetValue() })
	return sum
}

// outcome is how many changes ended so in a sink.
func (m metrics) outcome(sink, outcome string) int {
	return int(m.sum("lockstep_sink_changes_total", "sink", sink, "outcome", outcome))
}

// settled is how many records of Kafka have come to an end in a sink. Those given
// back to Kafka have not.
func (m metrics) settled(sink string) int {
	return int(m.sum("lockstep_sink_changes_total", "sink", sink)) - m.outcome(sink, "released")
}

// histogram counts observations by the upper bounds of their buckets.
type histogram struct {
	upTo  map[float64]float64 // cumulative
	count float64
}

func (m metrics) histogram(name string, labels ...string) histogram {
	h := histogram{upTo: map[float64]float64{}}
	m.each(name, labels, func(s *dto.Metric) {
		for _, bucket := range s.GetHistogram().GetBucket() {
			h.upTo[bucket.GetUpperBound()] += float64(bucket.GetCumulativeCount())
		}
		h.count += float64(s.GetHistogram().GetSampleCount())
	})
	return h
}

// since is what was observed after an earlier state of the histogram.
func (h histogram) since(earlier histogram) histogram {
	delta := histogram{upTo: map[float64]float64{}, count: h.count - earlier.count}
	for bound, n := range h.upTo {
		delta.upTo[bound] = n - earlier.upTo[bound]
	}
	return delta
}

// quantile estimates a quantile, taking the observations of a bucket as spread
// evenly. Beyond the last bound it is that bound; of nothing it is NaN.
func (h histogram) quantile(q float64) float64 {
	rank, below, lower := q*h.count, 0.0, 0.0
	for _, bound := range slices.Sorted(maps.Keys(h.upTo)) {
		if math.IsInf(bound, 1) {
			break
		}
		n := h.upTo[bound]
		if n >= rank && n > below {
			return lower + (bound-lower)*(rank-below)/(n-below)
		}
		below, lower = n, bound
	}
	if h.count == 0 {
		return math.NaN()
	}
	return lower
}

// quantile of sorted values; 0 when there are none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
