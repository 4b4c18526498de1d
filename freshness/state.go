package freshness

import (
	"fmt"
	"maps"
	"strings"
	"time"
)

// silence is how long after its last word a process counts as gone.
const silence = 5 * time.Second

// State is what was heard last, of those who are not silent.
type State struct {
	// Capture is nil when none is heard of.
	Capture *Capture
	// Sinks are the whole states of the processes, by sink and process.
	Sinks map[string]map[string]*Sink
	// Beat is the last word of a capture on how far it is, however long ago that was, and BeatAge how long; nil
	// when none was heard.
	Beat    *Capture
	BeatAge time.Duration
	// Processes are those that were heard of, and Reading says whether this one hears them.
	Processes []Known
	Reading   bool
}

// heard keeps the State of a hub. It is guarded by Hub.mu.
type heard struct {
	capture *Capture
	at      time.Time // of capture
	beat    *Capture
	beatAt  time.Time
	sinks   map[string]map[string]heardSink

	processes map[string]heardProcess
}

type heardSink struct {
	at   time.Time
	last *Sink
}

func (h *heard) take(r Record, now time.Time) {
	switch {
	case r.Capture != nil:
		if h.capture, h.at = r.Capture, now; r.Capture.UpToMicros > 0 {
			h.beat, h.beatAt = r.Capture, now
		}
	case r.Process != nil:
		h.takeProcess(r.Process, now)
	case r.Sink != nil && r.Sink.Whole:
		if h.sinks == nil {
			h.sinks = make(map[string]map[string]heardSink)
		}
		of := h.sinks[r.Sink.Sink]
		if of == nil {
			of = make(map[string]heardSink)
			h.sinks[r.Sink.Sink] = of
		}
		of[r.Sink.Process] = heardSink{now, r.Sink}
		maps.DeleteFunc(of, func(_ string, s heardSink) bool { return now.Sub(s.at) > silence })
	}
}

// State says what was heard last.
func (h *Hub) State() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, s := time.Now(), State{
		Sinks: make(map[string]map[string]*Sink), Beat: h.heard.beat, BeatAge: time.Since(h.heard.beatAt), Processes: h.heard.known(time.Now()), Reading: h.running,
	}
	if now.Sub(h.heard.at) <= silence {
		s.Capture = h.heard.capture
	}
	for name, of := range h.heard.sinks {
		for process, at := range of {
			if now.Sub(at.at) > silence {
				continue
			}
			if s.Sinks[name] == nil {
				s.Sinks[name] = make(map[string]*Sink)
			}
			s.Sinks[name][process] = at.last
		}
	}
	return s
}

// owner is who has a partition, as far as it was heard.
func (s State) owner(sink, table string, id int) *Sink {
	var owner *Sink
	for _, at := range s.Sinks[sink] {
		if _, has := at.Tables[table].Partitions[id]; has && (owner == nil || at.Generation > owner.Generation) {
			owner = at
		}
	}
	return owner
}

// awaitsCapture says why the capture has not answered.
func (s State) awaitsCapture() string {
	if s.Capture == nil {
		return "no capture is heard of: none is running, or it cannot reach the source or Kafka"
	}
	up := ""
	if s.Capture.UpToMicros > 0 {
		up = fmt.Sprintf(" (what was committed up to %s is in Kafka)", time.UnixMicro(s.Capture.UpToMicros).UTC().Format(time.RFC3339Nano))
	}
	return "the capture has not read up to the transactions, or Kafka has not acknowledged what they changed" + up
}

// awaitsPartition says why a partition is not settled.
func (s State) awaitsPartition(sink, table string, id int, end int64) string {
	owner := s.owner(sink, table, id)
	if owner == nil {
		return fmt.Sprintf("no process of sink %s is heard of that has partition %d of %s: none is running, or the partitions are being given out, or Redis or Kafka cannot be asked", sink, id, table)
	}
	t := owner.Tables[table]
	sentence := fmt.Sprintf("partition %d of %s is settled up to offset %d of %d in sink %s", id, table, t.Partitions[id].Settled, end, sink)
	if t.Held != nil {
		sentence += ", and its changes wait: " + strings.TrimSuffix(t.Held.Reason, ".")
	} else if owner.Breaker.State != "" && owner.Breaker.State != "closed" {
		sentence += ", and the sink's breaker is " + owner.Breaker.State
	}
	return sentence
}
