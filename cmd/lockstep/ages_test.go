package main

import (
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/freshness"
)

// Ages are those of the last minute, of changes alone, summed over tables and apart by sink.
func TestAgesAreThoseOfTheChangesOfTheLastMinute(t *testing.T) {
	vec := func(labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "x", Buckets: []float64{.1, 1, 10}}, labels)
	}
	acked, applied := vec("topic"), vec("sink", "table")
	a := ages{changes: func(topic string) bool { return topic == "shop.d.t" }}
	a.add("acked", acked)
	a.add("applied", applied)
	applied.WithLabelValues("search", "d.t").Observe(5) // before anybody looked
	now := time.Unix(1_000_000, 0)
	want := func(what string, want ...freshness.Stage) {
		t.Helper()
		if got := a.lately(now); !slices.Equal(got, want) {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
		now = now.Add(time.Second)
	}
	want("at first")
	for range 98 {
		acked.WithLabelValues("shop.d.t").Observe(.05)
		applied.WithLabelValues("search", "d.t").Observe(.5)
	}
	acked.WithLabelValues("shop.watermarks").Observe(99)
	for range 2 {
		applied.WithLabelValues("search", "d.u").Observe(99)
	}
	of := func(stage, sink string, n uint64, p50, p99 float64) freshness.Stage {
		return freshness.Stage{Name: stage, Sink: sink, Count: n, P50: p50, P99: p99}
	}
	want("two tables", of("acked", "", 98, .1, .1), of("applied", "search", 100, 1, 10))
	now = now.Add(agesKept)
	want("a minute later")
}
