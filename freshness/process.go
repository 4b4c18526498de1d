package freshness

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"
)

// Process is how one process of the pipeline is, whatever it does.
type Process struct {
	// Process is one run of it, and Name says where it is.
	Process string `json:"process"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Parts   []Part `json:"parts"`
	// SkewMicros is how far the source's clock is ahead of this one's; nil while that is not known.
	SkewMicros *int64  `json:"skew_us,omitempty"`
	Stages     []Stage `json:"stages,omitempty"`
	// Compares is of the process that compares rows with the sinks.
	Compares *Compares `json:"compares,omitempty"`
	// Stopped says that it is its last word.
	Stopped       bool  `json:"stopped,omitempty"`
	StartedMicros int64 `json:"started_us"`
	AtMicros      int64 `json:"at_us"`
}

// Part is something that a process does.
type Part struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	Doing string `json:"doing,omitempty"`
}

// Stage is how old changes were, since their commit, at one place of their way: the bounds, in
// seconds, below which half and 99 of 100 of them were within the last minute.
type Stage struct {
	Name  string  `json:"stage"` // read, acked, fetched, applied or searchable
	Sink  string  `json:"sink,omitempty"`
	Count uint64  `json:"changes"`
	P50   float64 `json:"p50_seconds"`
	P99   float64 `json:"p99_seconds"`
}

// Compares is what a reconciler knows of all tables and sinks.
type Compares struct {
	Mismatches int `json:"mismatches"` // of the last full passes, and not repaired
	// PassedMicros is when the oldest of the last full passes began; 0 before there is one.
	PassedMicros int64 `json:"passed_us,omitempty"`
}

// Known is a process as it was heard last.
type Known struct {
	*Process
	// Quiet is for how long nothing was heard of it.
	Quiet time.Duration
}

// Silent reports whether it counts as gone.
func (k Known) Silent() bool { return k.Quiet > silence }

// forgotten is how long a silent process is remembered.
const forgotten = 10 * time.Minute

type heardProcess struct {
	at   time.Time
	last *Process
}

// takeProcess notes what a process says. One that has stopped, and those that it stands in the place
// of, are forgotten.
func (h *heard) takeProcess(p *Process, now time.Time) {
	if h.processes == nil {
		h.processes = map[string]heardProcess{}
	}
	h.processes[p.Process] = heardProcess{now, p}
	maps.DeleteFunc(h.processes, func(id string, k heardProcess) bool {
		again := id != p.Process && k.last.Name == p.Name && k.last.AtMicros <= p.StartedMicros
		return k.last.Stopped || again || now.Sub(k.at) > forgotten
	})
}

// known are the processes that are or were there, by name.
func (h *heard) known(now time.Time) []Known {
	var all []Known
	for _, p := range h.processes {
		all = append(all, Known{p.last, now.Sub(p.at)})
	}
	slices.SortFunc(all, func(a, b Known) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.StartedMicros, b.StartedMicros))
	})
	return all
}

// flush waits for what was written, for as long as ctx lasts.
func (h *Hub) flush(ctx context.Context) {
	h.mu.Lock()
	publisher := h.publisher
	h.mu.Unlock()
	if publisher != nil {
		_ = publisher.Flush(ctx) // who stops is silent then
	}
}

// Announce says how a process is, every second until ctx ends, and then that it stops. The hub has to
// run until it returns.
func (h *Hub) Announce(ctx context.Context, how func() *Process) error {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		p := how()
		p.Stopped = ctx.Err() != nil
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), beat)
		err := h.Write(within, Record{Process: p})
		if p.Stopped {
			h.flush(within)
			cancel()
			return nil
		}
		cancel()
		if err != nil {
			h.Log.Debug("how this process is cannot be said", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
