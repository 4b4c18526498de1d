package freshness

import (
	"testing"
	"time"
)

// A process that says nothing is silent, until it says something, is started again in its place, or is
// long gone; one that has stopped has said so.
func TestASilentProcessIsToldOfUntilAnotherStandsInItsPlace(t *testing.T) {
	var h heard
	start := time.Unix(1_000_000, 0)
	now := start
	says := func(id, name string, started time.Time, stopped bool) {
		h.take(Record{Process: &Process{Process: id, Name: name, Stopped: stopped, StartedMicros: started.UnixMicro(), AtMicros: now.UnixMicro()}}, now)
	}
	want := func(what string, want ...string) {
		t.Helper()
		var got []string
		for _, k := range h.known(now) {
			word := k.Name
			if k.Silent() {
				word += " is silent"
			}
			got = append(got, word)
		}
		if len(got) != len(want) {
			t.Fatalf("%s: %q, want %q", what, got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
	}
	says("1", "a", start, false)
	says("2", "b", start, false)
	says("3", "c", start, false)
	want("all are there", "a", "b", "c")
	says("3", "c", start, true)
	want("c has stopped", "a", "b")
	now = now.Add(silence + time.Second)
	says("2", "b", start, false)
	want("a says nothing", "a is silent", "b")
	says("4", "a", now, false)
	want("a was started again", "a", "b")
	says("5", "b", start, false)
	want("two on one machine", "a", "b", "b")
	now = now.Add(forgotten + time.Second)
	says("4", "a", start, false)
	want("b is forgotten", "a")
}
