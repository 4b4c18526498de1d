package dlq

import (
	"encoding/json"
	"log/slog"
	"slices"
	"testing"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// A line of a file of letters is put back as it was exported or refused, and does not change
// on the way.
func FuzzALineOfAnyBytes(f *testing.F) {
	box, log := newLetters()
	bury(f, box, rightly(1, base+1, "mapping: the field \"title\" is no number")[0])
	f.Add([]byte(exported(f, box)), true)
	f.Add([]byte(`{"format":"2","id":"x","sink":"es","partition":0,"key":null,"value":{"base64":"/w=="},"headers":[]}`), true)
	f.Fuzz(func(t *testing.T, text []byte, seal bool) {
		if seal { // past the hash
			var in line
			if json.Unmarshal(text, &in) == nil {
				var err error
				if in.SHA256, err = in.seal(); err != nil {
					t.Fatal(err)
				}
				if text, err = json.Marshal(in); err != nil {
					t.Fatal(err)
				}
			}
		}
		r, l, err := arrival(box, log).parse(text)
		if err != nil {
			return
		}
		if !l.State.Open() || l.Sink != "es" {
			t.Fatalf("%s is let in as %+v", text, l)
		}
		if again, err := box.read(r); err != nil || again.ID != l.ID {
			t.Fatalf("%s is let in and read as %+v, %v", text, again, err)
		}
	})
}

// What stands in a topic of letters is a letter of a known state, or undecodable and seen.
func FuzzALetterOfAnyBytes(f *testing.F) {
	box, log := newLetters()
	bury(f, box, refusal(1, base+1, "mapping"))
	for _, r := range log.records[box.Topic] {
		text, err := json.Marshal(r.Headers)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.Key, r.Value, text, false)
		f.Add(r.Key, []byte{}, text, true)
	}
	f.Fuzz(func(t *testing.T, key, value, text []byte, closed bool) {
		r := kafka.Record{Topic: box.Topic, Key: key, Value: value, Time: failed}
		if closed {
			r.Value = nil
		}
		if json.Unmarshal(text, &r.Headers) != nil {
			return
		}
		l, err := box.read(r)
		if err != nil {
			return
		}
		if !slices.Contains(States, l.State) || l.State.Open() && r.Value == nil {
			t.Fatalf("%+v of value %q", l, r.Value)
		}
		if l.Class == sinks.ClassUndecodable || l.Version == 0 {
			return
		}
		if l.Version.Check() != nil {
			t.Fatalf("version %d is let in", l.Version)
		}
		if r.Value != nil {
			held := original(l, r)
			_, _ = cdc.Decode(held.Key, held.Value, held.Headers)
		}
		if again, err := box.read(kafka.Record{Topic: box.Topic, Key: key, Value: r.Value, Headers: l.headers(), Time: failed}); err != nil || again.State != l.State || again.Version != l.Version || again.Table != l.Table {
			t.Fatalf("%+v came back as %+v, %v", l, again, err)
		}
	})
}

// What stands in the topic of replays is taken in or refused, and what is known can be shown.
func FuzzAJobOfAnyBytes(f *testing.F) {
	job, err := json.Marshal(Job{Format: jobFormat, ID: "a", Mode: Resync, Actor: "ann", Asked: failed, Filter: map[string]string{"table": "bank.questions"}, Rate: 5})
	if err != nil {
		f.Fatal(err)
	}
	progress, err := json.Marshal(Progress{Format: jobFormat, State: JobRunning, Run: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a", job, "a"+progressKey, progress)
	f.Add("a", job, "a"+cancelKey, []byte(`{"format":1,"id":"a","actor":"ann","at":"2026-11-22T08:15:30Z"}`))
	f.Fuzz(func(t *testing.T, key1 string, value1 []byte, key2 string, value2 []byte) {
		j := &Jobs{Prefix: "shop", Log: slog.New(slog.DiscardHandler), known: map[string]*jobRecord{}}
		for _, r := range []kafka.Record{{Key: []byte(key1), Value: value1}, {Key: []byte(key2), Value: value2}, {Key: []byte(key1)}} {
			_ = j.note(r)
			for id, known := range j.known {
				if known.job != nil && (known.job.ID != id || known.job.Check() != nil) {
					t.Fatalf("%q is known as %+v", id, known.job)
				}
			}
			for _, known := range j.ordered() {
				if known.job != nil {
					_ = known.status()
					_ = known.job.Describe()
				}
			}
			outdated(j.ordered(), time.Now())
		}
	})
}
