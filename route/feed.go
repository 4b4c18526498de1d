package route

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"lockstep/freshness"
	"lockstep/sinks"
)

// Feed tells a board what is said in the topic of watermarks. It is for one goroutine.
type Feed struct {
	Board *Board
	// Sinks are those that take a table; none for one that is not captured.
	Sinks func(table string) []string

	beats []beat
	heard map[speaker]said
}

// beat is what the capture has said: everything that was committed before upTo stands
// before these ends. Times are by the clock of this process, and are not moved when somebody
// sets it.
type beat struct {
	upTo, heard time.Time
	source      int64              // upTo by the source's clock
	ends        map[string][]int64 // by table
	copying     []string
	requests    int64
}

// beatsKept bounds how far back a sink that is behind can be told how far.
const beatsKept = 60

// speaker is a process that has a part of a sink.
type speaker struct{ sink, process string }

type said struct {
	at     time.Time
	record *freshness.Sink
}

// Hear takes in a record of the topic.
func (f *Feed) Hear(now time.Time, r freshness.Record) {
	switch {
	case r.Capture != nil && r.Capture.UpToMicros > 0:
		f.capture(now, r.Capture)
	case r.Sink != nil && r.Sink.Whole:
		f.sink(now, r.Sink)
	case r.Compared != nil:
		f.compared(now, r.Compared)
	}
}

func (f *Feed) compared(now time.Time, c *freshness.Compared) {
	if !slices.Contains(f.Sinks(c.Table), c.Sink) {
		return
	}
	s := Sample{Began: now.Add(-micros(c.AtMicros - c.BeganMicros)), Compared: int(c.Keys), Whole: c.Whole, Confirmed: map[Class]int{}}
	for class, n := range c.Confirmed {
		s.Confirmed[Class(class)] = int(n)
	}
	f.Board.Verify(now, Place{c.Sink, c.Table}, s)
}

func (f *Feed) capture(now time.Time, c *freshness.Capture) {
	f.beats = append(f.beats, beat{
		upTo: now.Add(-c.UpTo()), heard: now, source: c.UpToMicros, ends: c.Ends, copying: c.Copying, requests: c.Requests,
	})
	if len(f.beats) > beatsKept {
		f.beats = slices.Delete(f.beats, 0, len(f.beats)-beatsKept)
	}
	for table := range c.Ends {
		for _, sink := range f.Sinks(table) {
			f.Board.Know(now, Place{sink, table})
		}
	}
	f.Board.Capture(now)
	for who, what := range f.heard {
		if now.Sub(what.at) > time.Minute {
			delete(f.heard, who) // it is no more
			continue
		}
		f.tell(what)
	}
}

func (f *Feed) sink(now time.Time, s *freshness.Sink) {
	who := speaker{s.Sink, s.Process}
	if f.heard == nil {
		f.heard = map[speaker]said{}
	}
	if before, known := f.heard[who]; known {
		for table := range before.record.Tables {
			if _, has := s.Tables[table]; !has { // it has given it up
				f.Board.Hear(now, Place{s.Sink, table}, Report{Process: s.Process, Generation: s.Generation, Known: true})
			}
		}
	}
	what := said{now, s}
	f.heard[who] = what
	f.tell(what)
}

// tell tells the board what a process has said of its tables, in the light of what the
// capture has.
func (f *Feed) tell(what said) {
	for table, t := range what.record.Tables {
		if slices.Contains(f.Sinks(table), what.record.Sink) {
			f.Board.Hear(what.at, Place{what.record.Sink, table}, f.report(what.record, table, t))
		}
	}
}

func (f *Feed) report(s *freshness.Sink, table string, t freshness.Table) Report {
	r := Report{
		Process: s.Process, Generation: s.Generation, Partitions: slices.Sorted(maps.Keys(t.Partitions)),
		Changes: int(t.Latency.Count()), P99: time.Duration(t.Latency.Quantile(.99) * float64(time.Second)),
		Letters: int(t.Letters), Known: len(f.beats) > 0,
	}
	r.Down, r.Open = down(s, t)
	for id, p := range t.Partitions {
		r.Of = max(r.Of, id+1)
		r.Known = r.Known && p.Letters >= 0
	}
	if len(f.beats) == 0 {
		return r
	}
	last := &f.beats[len(f.beats)-1]
	r.Of = max(r.Of, len(last.ends[table]))
	r.Copying = slices.Contains(last.copying, table)
	if t.Refill > 0 && (last.requests < t.Refill || r.Copying) {
		r.Down, r.Open = "the store has lost rows of the table, which is copied again", true
	}
	behind, lacks, known := f.behind(table, t)
	r.Behind, r.Lacks, r.Known = behind, lacks, r.Known && known
	return r
}

// behind is how late a table is in a process: as late as the capture when everything before
// its last beat is settled, else since the last beat that is, or the last change. It is not
// known while no beat is settled and no change has come: nobody knows how old what it lacks
// is.
func (f *Feed) behind(table string, t freshness.Table) (behind time.Duration, lacks time.Time, known bool) {
	last := len(f.beats) - 1
	for i := last; i >= 0 && !known; i-- {
		b := &f.beats[i]
		if known = b.settled(table, t); known && i == last {
			return max(b.heard.Sub(b.upTo), 0), time.Time{}, true
		}
		lacks = b.upTo
	}
	if t.AppliedUpToMicros > 0 {
		applied := f.beats[last].upTo.Add(micros(t.AppliedUpToMicros - f.beats[last].source))
		if !known || applied.After(lacks) {
			lacks = applied
		}
		known = true
	}
	return 0, lacks, known
}

// settled reports whether a process has settled everything of a table before the beat, in
// the partitions that it has.
func (b *beat) settled(table string, t freshness.Table) bool {
	for id, end := range b.ends[table] {
		if p, has := t.Partitions[id]; has && p.Settled < end {
			return false
		}
	}
	return true
}

// down says why changes of a table do not get on, and whether a breaker does.
func down(s *freshness.Sink, t freshness.Table) (why string, open bool) {
	switch {
	case s.Breaker.State != "" && s.Breaker.State != "closed":
		return fmt.Sprintf("the breaker of sink %s is %s%s", s.Sink, s.Breaker.State, because(s.Breaker.Reason)), true
	case t.Breaker.State != "" && t.Breaker.State != "closed":
		return fmt.Sprintf("the breaker of the table is %s%s", t.Breaker.State, because(t.Breaker.Reason)), true
	case t.Held != nil:
		return fmt.Sprintf("its changes wait%s", because(t.Held.Reason)), t.Held.By != sinks.ByStore
	}
	return "", false
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func micros(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
