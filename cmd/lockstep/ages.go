package main

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"lockstep/freshness"
	"lockstep/sinks"
)

// ages sums the histograms of the ages of changes, and knows what came within the last minute.
type ages struct {
	// changes reports whether a topic is one of changes; others say nothing of a way.
	changes func(topic string) bool

	mu   sync.Mutex
	from map[string]prometheus.Collector // by stage
	past []summed
}

type summed struct {
	at     time.Time
	stages map[stageOf]*counts
}

type stageOf struct{ stage, sink string }

// counts are those of a histogram, by the upper bounds of its buckets, one more for what is above.
type counts struct {
	bounds []float64
	n      []uint64
}

// agesKept is what counts as lately.
const agesKept = time.Minute

func (a *ages) add(stage string, c prometheus.Collector) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.from == nil {
		a.from = map[string]prometheus.Collector{}
	}
	a.from[stage] = c
}

// lately is how old changes were within the last minute.
func (a *ages) lately(now time.Time) (out []freshness.Stage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	sum := summed{now, map[stageOf]*counts{}}
	for stage, c := range a.from {
		for _, m := range collected(c) {
			if topic := label(m, "topic"); topic != "" && !a.changes(topic) {
				continue
			}
			of := stageOf{stage, label(m, "sink")}
			if sum.stages[of] == nil {
				sum.stages[of] = &counts{}
			}
			sum.stages[of].add(m.GetHistogram())
		}
	}
	for len(a.past) > 1 && now.Sub(a.past[1].at) >= agesKept {
		a.past = a.past[1:]
	}
	if a.past = append(a.past, sum); len(a.past) == 1 {
		return nil
	}
	for _, of := range slices.SortedFunc(maps.Keys(sum.stages), func(x, y stageOf) int {
		return cmp.Or(cmp.Compare(x.sink, y.sink), cmp.Compare(x.stage, y.stage))
	}) {
		c := sum.stages[of].since(a.past[0].stages[of])
		if s := (freshness.Stage{Name: of.stage, Sink: of.sink, Count: c.count(), P50: c.quantile(.5), P99: c.quantile(.99)}); s.Count > 0 {
			out = append(out, s)
		}
	}
	return out
}

func (c *counts) add(h *dto.Histogram) {
	if c.n == nil {
		c.n = make([]uint64, len(h.GetBucket())+1)
		for _, b := range h.GetBucket() {
			c.bounds = append(c.bounds, b.GetUpperBound())
		}
	}
	for i, n := range sinks.Counts(h) {
		c.n[i] += n
	}
}

func (c *counts) since(before *counts) *counts {
	if before == nil {
		return c
	}
	left := &counts{c.bounds, slices.Clone(c.n)}
	for i, n := range before.n {
		left.n[i] -= n
	}
	return left
}

func (c *counts) count() (n uint64) {
	for _, some := range c.n {
		n += some
	}
	return n
}

// quantile is the bound below which a share of them was.
func (c *counts) quantile(share float64) float64 { return sinks.Quantile(c.bounds, c.n, share) }

// collected are the metrics of a collector.
func collected(c prometheus.Collector) (all []*dto.Metric) {
	out := make(chan prometheus.Metric)
	go func() { defer close(out); c.Collect(out) }()
	for metric := range out {
		m := &dto.Metric{}
		if metric.Write(m) == nil {
			all = append(all, m)
		}
	}
	return all
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}
