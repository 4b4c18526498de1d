package sinks

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What the changes of a table wait for, as HeldStatus.By and a metric label.
const (
	ByTable = "table" // its own index, its shape, or the source, which cannot be asked for it
	ByStore = "store" // the store, which is unavailable
	ByFlood = "flood" // the breaker of the table
	ByKafka = "kafka" // Kafka, which does not take a dead letter
)

var holders = []string{ByTable, ByStore, ByFlood, ByKafka}

// hold is why the changes of a partition wait; the zero value is for one that goes on.
type hold struct {
	by     string
	reason string
	mend   string // what is to be done; empty where it goes on by itself
}

// sentence is the reason with what is to be done.
func (h hold) sentence() string { return sentence(h.reason, h.mend) }

func sentence(problem, mend string) string {
	if mend == "" {
		return problem
	}
	return problem + "; " + mend
}

// Advice takes a sentence apart that ends with what is to be done: "problem; mend".
func Advice(sentence string) (problem, mend string) {
	if at := strings.LastIndex(sentence, "; "); at >= 0 {
		return sentence[:at], sentence[at+2:]
	}
	return sentence, ""
}

// held is which partitions of a table wait, and for what.
type held struct {
	partitions *prometheus.GaugeVec // by holder

	mu sync.Mutex
	by map[*driver]heldPartition
}

type heldPartition struct {
	hold
	since, next time.Time
}

// set notes why a partition waits, or that it goes on, and when it looks again; zero
// for a time that nobody knows.
func (h *held) set(d *driver, why hold, next time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, waits := h.by[d]
	if waits && was.by != why.by {
		h.partitions.WithLabelValues(was.by).Dec()
	}
	if why.by == "" {
		delete(h.by, d)
		return
	}
	if !waits || was.by != why.by {
		h.partitions.WithLabelValues(why.by).Inc()
	}
	since := was.since
	if !waits {
		since = time.Now()
	}
	h.by[d] = heldPartition{why, since, next}
}

// status is nil while no partition of the table waits. The reason is that of the one
// that waits longest, the next try the first of any.
func (h *held) status() *HeldStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	var s *HeldStatus
	var next time.Time
	for _, p := range h.by {
		if s == nil || p.since.Before(s.Since) {
			s = &HeldStatus{By: p.by, Reason: p.reason, Mend: p.mend, Since: p.since, Partitions: len(h.by)}
		}
		if !p.next.IsZero() && (next.IsZero() || p.next.Before(next)) {
			next = p.next
		}
	}
	if s != nil {
		s.NextTry = notZero(next)
	}
	return s
}
