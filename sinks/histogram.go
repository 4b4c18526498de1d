package sinks

import dto "github.com/prometheus/client_model/go"

// Counts are how many values a histogram has in each of its buckets, and, last, above them.
func Counts(h *dto.Histogram) []uint64 {
	counts, below := make([]uint64, len(h.GetBucket())+1), uint64(0)
	for i, b := range h.GetBucket() {
		counts[i], below = b.GetCumulativeCount()-below, b.GetCumulativeCount()
	}
	counts[len(counts)-1] = h.GetSampleCount() - below
	return counts
}

// Quantile is the upper bound of the bucket that a share of counted values does not pass; the last
// bound stands for what is above it, and 0 for no values.
func Quantile(bounds []float64, counts []uint64, share float64) float64 {
	all := uint64(0)
	for _, n := range counts {
		all += n
	}
	need, seen := share*float64(all), 0.
	for i, n := range counts {
		if seen += float64(n); n > 0 && seen >= need {
			return bounds[min(i, len(bounds)-1)]
		}
	}
	return 0
}
