package sinks

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/cdc"
)

// recorder is a sink that answers in the order it is asked.
type recorder struct {
	Sink
	got   []string
	short bool
}

func (r *recorder) Apply(_ context.Context, changes []cdc.Change) []Outcome {
	outcomes := make([]Outcome, len(changes))
	for i, c := range changes {
		r.got = append(r.got, fmt.Sprintf("%s %s %s", c.Op, c.Key, c.After))
		outcomes[i] = Outcome{Verdict: Applied, Reason: string(c.Key)}
	}
	if r.short {
		return outcomes[1:]
	}
	return outcomes
}

// What a shape holds back is answered in its place, and the store gets what it makes
// of the rest; the caller's changes stay as they were.
func TestAShapedSinkGetsDocumentsAndAnswersForTheRest(t *testing.T) {
	store := &recorder{}
	shaped := Shaped{Sink: store, Shape: func(_ context.Context, c *cdc.Change) *Outcome {
		switch string(c.Key) {
		case "poison":
			return &Outcome{Verdict: Poison, Class: ClassShape, Reason: "no"}
		case "gone":
			c.Op, c.After = cdc.OpDelete, nil
		default:
			c.After = []byte(strings.ToUpper(string(c.After)))
		}
		return nil
	}}
	change := func(key string) cdc.Change {
		return cdc.Change{Op: cdc.OpCreate, Key: []byte(key), After: []byte("row " + key)}
	}
	changes := []cdc.Change{change("poison"), change("a"), change("gone"), change("poison"), change("b")}
	outcomes := shaped.Apply(t.Context(), changes)
	if got, want := strings.Join(store.got, ", "), "c a ROW A, d gone , c b ROW B"; got != want {
		t.Errorf("the store got %s; want %s", got, want)
	}
	for i, want := range []string{"no", "a", "gone", "no", "b"} {
		if outcomes[i].Reason != want {
			t.Errorf("change %d was answered with %+v; want %s", i, outcomes[i], want)
		}
		if string(changes[i].After) != "row "+string(changes[i].Key) || changes[i].Op != cdc.OpCreate {
			t.Errorf("change %d became %+v", i, changes[i])
		}
	}
	store.got = nil
	if shaped.Apply(t.Context(), changes[:1]); store.got != nil {
		t.Errorf("the store was asked about nothing: %s", store.got)
	}
	store.short = true
	if outcomes := shaped.Apply(t.Context(), changes); len(outcomes) == len(changes) {
		t.Error("a store that answers too little passed for one that answers all")
	}
}

// What has no document has still to leave its older places, and is answered as its shape
// says once it has.
func TestAChangeWithoutADocumentLeavesItsOlderPlaces(t *testing.T) {
	there := Outcome{Verdict: Unavailable, Reason: "no answer"}
	for _, c := range []struct{ answer, want Outcome }{
		{Outcome{Verdict: Applied}, Outcome{Verdict: Poison, Reason: "no"}},
		{Outcome{Verdict: Filtered}, Outcome{Verdict: Poison, Reason: "no"}},
		{there, there},
	} {
		var got []cdc.Change
		store := plain(func(_ context.Context, changes []cdc.Change) []Outcome {
			got = changes
			return []Outcome{c.answer}
		})
		shaped := Shaped{Sink: store, Shape: func(_ context.Context, c *cdc.Change) *Outcome {
			c.After, c.Leaves = nil, true
			return &Outcome{Verdict: Poison, Reason: "no"}
		}}
		outcomes := shaped.Apply(t.Context(), []cdc.Change{{Op: cdc.OpUpdate, Before: []byte("a"), After: []byte("b")}})
		if len(got) != 1 || !got[0].Leaves || string(got[0].Before) != "a" || len(outcomes) != 1 || outcomes[0] != c.want {
			t.Errorf("the store got %+v and said %+v, and the change was answered with %+v; want %+v", got, c.answer, outcomes, c.want)
		}
	}
}

// A table whose shape cannot be made waits, whatever the number of its partitions; the
// breaker does not hear of it, and other tables go on.
func TestATableThatWaitsForItsShapeHoldsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fits atomic.Bool
		w, _ := plain(func(_ context.Context, c []cdc.Change) []Outcome { return all(Applied, len(c)) }).worker(t, nil)
		w.Sink = Shaped{Sink: w.Sink, Shape: func(_ context.Context, c *cdc.Change) *Outcome {
			if c.Table.Table == "q" && !fits.Load() {
				return &Outcome{Verdict: Unavailable, Unasked: true, Reason: "the shape does not fit"}
			}
			return nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var parts []*list
		done := make(chan error)
		run := func(p *list) {
			parts = append(parts, p)
			go func() { done <- w.RunPartition(ctx, p) }()
		}
		for range 10 {
			run(&list{records: rows(3)})
		}
		time.Sleep(10 * time.Minute)
		other := &list{records: rows(3)}
		for i := range other.records {
			r := record(cdc.TableName{DB: "shop", Table: "other"}, fmt.Sprint(i), uint64(i+1))
			r.Topic, r.Offset = "p.shop.other", int64(i)
			other.records[i] = r
		}
		run(other)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if state := w.breaker.status(); state.State != "closed" || other.committed != 3 {
			t.Errorf("the breaker is %+v, and %d of 3 changes of another table are committed", state, other.committed)
		}
		if parts[0].committed != 0 {
			t.Error("a change without its shape was committed")
		}
		fits.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, p := range parts[:10] {
			if p.committed != 3 {
				t.Errorf("%d of 3 changes are committed once the shape fits", p.committed)
			}
		}
		cancel()
		for range parts {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// reads is a Reader that tells which changes it got.
type reads struct{ got []string }

func (r *reads) Stored(_ context.Context, changes []cdc.Change, most int) []Stored {
	stored := make([]Stored, len(changes))
	for i, c := range changes {
		stored[i].Problem = fmt.Sprintf("%s %s %s of %d", c.Op, c.Key, c.After, most)
	}
	return stored
}

func (r *reads) Would(_ context.Context, changes []cdc.Change) []Prospect {
	prospects := make([]Prospect, len(changes))
	for i, c := range changes {
		prospects[i] = Prospect{Outcome{Verdict: Stale, Reason: fmt.Sprintf("%s %s %s", c.Op, c.Key, c.After)}, c.After}
	}
	return prospects
}

func (r *reads) Expect(_ context.Context, changes []cdc.Change) []Expected {
	expected := make([]Expected, len(changes))
	for i, c := range changes {
		expected[i] = Expected{Document: c.After, Place: string(c.Key)}
	}
	return expected
}

func (r *reads) Keeps(cdc.TableName) error { return nil }

func (r *reads) Scan(context.Context, cdc.Table, func(string) bool, func([]Found) error) error {
	return nil
}

func (r *reads) Again(ctx context.Context, found []Found, most int) []Stored { return nil }

func TestAShapedReaderAsksForDocuments(t *testing.T) {
	shaped := ShapedReader{Reader: &reads{}, Shape: func(_ context.Context, c *cdc.Change) *Outcome {
		switch string(c.Key) {
		case "poison":
			return &Outcome{Verdict: Poison, Class: ClassShape, Reason: "no"}
		case "gone":
			c.Op, c.After = cdc.OpDelete, nil
		default:
			c.After = []byte(strings.ToUpper(string(c.After)))
		}
		return nil
	}}
	var changes []cdc.Change
	for _, key := range []string{"poison", "a", "gone"} {
		changes = append(changes, cdc.Change{Op: cdc.OpCreate, Key: []byte(key), Before: []byte("x"), After: []byte("row " + key)})
	}
	for i, want := range []string{"d poison  of 9", "c a ROW A of 9", "d gone  of 9"} {
		if got := shaped.Stored(t.Context(), changes, 9)[i].Problem; got != want {
			t.Errorf("stored: %s; want %s", got, want)
		}
	}
	for i, want := range []string{"no", "ROW A", ""} {
		if e := shaped.Expect(t.Context(), changes)[i]; e.Problem+string(e.Document) != want {
			t.Errorf("expected: %+v; want %s", e, want)
		}
	}
	for i, want := range []string{"no", "c a ROW A", "d gone "} {
		if got := shaped.Would(t.Context(), changes)[i].Reason; got != want {
			t.Errorf("would: %s; want %s", got, want)
		}
	}
	if got := shaped.Would(t.Context(), changes[:1])[0].Class; got != ClassShape {
		t.Errorf("alone: %s", got)
	}
}
