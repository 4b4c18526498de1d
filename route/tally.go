package route

import (
	"fmt"
	"strings"
	"time"
)

// tally is what the reconciler has found lately: the newest samples that together are large
// enough, and no older ones.
type tally struct{ samples []Sample }

// add takes a sample in and forgets those that are not needed beside it.
func (t *tally) add(s Sample, keys int) {
	t.samples = append(t.samples, s)
	for len(t.samples) > 1 {
		if _, enough := sum(t.samples[1:], keys); !enough {
			return
		}
		t.samples = t.samples[1:]
	}
}

// since is the sum of the samples that began at a time or later, and whether they are
// enough.
func (t *tally) since(from time.Time, keys int) (Sample, bool) {
	for i, s := range t.samples {
		if !s.Began.Before(from) {
			return sum(t.samples[i:], keys)
		}
	}
	return Sample{}, false
}

func sum(samples []Sample, keys int) (total Sample, enough bool) {
	total.Confirmed = map[Class]int{}
	for _, s := range samples {
		total.Compared += s.Compared
		total.Whole = total.Whole || s.Whole
		for c, n := range s.Confirmed {
			total.Confirmed[c] += n
		}
	}
	return total, total.Whole || total.Compared >= keys
}

// confirmed is how many differences there are.
func (s Sample) confirmed() (n int) {
	for _, of := range s.Confirmed {
		n += of
	}
	return n
}

// judge says what a sample means under limits; its reason is empty when it is clean. A
// share counts only of enough. When it is the missing rows that make it too large, the cause
// is that they are missing.
func (c Config) judge(s Sample, enough bool) (level State, cause Cause, reason string) {
	n, missing := s.confirmed(), s.Confirmed[ClassMissing]
	over := func(n int, limit float64) bool {
		return enough && n >= c.MinConfirmed && float64(n)/float64(max(s.Compared, 1)) > limit
	}
	found := func(limit float64) string {
		return fmt.Sprintf("of %d keys compared %d are confirmed to differ, %.1f %% (%s); that is more than %g %%",
			s.Compared, n, 100*float64(n)/float64(max(s.Compared, 1)), s.classes(), 100*limit)
	}
	switch {
	case over(n-missing, c.MismatchTolerated):
		return Degraded, Mismatch, found(c.MismatchTolerated)
	case over(n, c.MismatchTolerated):
		return Degraded, Missing, found(c.MismatchTolerated)
	case missing > c.Missing:
		return Degraded, Missing, fmt.Sprintf("%d rows are confirmed to be missing; that is more than %d", missing, c.Missing)
	case over(n, c.Mismatch):
		return Warning, Mismatch, found(c.Mismatch)
	}
	return OK, "", ""
}

func (s Sample) classes() string {
	var all []string
	for _, c := range []Class{ClassMissing, ClassOrphan, ClassTampered, ClassStale, ClassDiffering} {
		if n := s.Confirmed[c]; n > 0 {
			all = append(all, fmt.Sprintf("%d %s", n, c))
		}
	}
	return strings.Join(all, ", ")
}
