package sinks_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"lockstep/cdc"
	"lockstep/sinks"
)

// recorder is a sink that answers in the order it is asked.
type recorder struct {
	sinks.Sink
	got   []string
	short bool
}

func (r *recorder) Apply(_ context.Context, changes []cdc.Change) []sinks.Outcome {
	outcomes := make([]sinks.Outcome, len(changes))
	for i, c := range changes {
		r.got = append(r.got, fmt.Sprintf("%s %s %s", c.Op, c.Key, c.After))
		outcomes[i] = sinks.Outcome{Verdict: sinks.Applied, Reason: string(c.Key)}
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
	shaped := sinks.Shaped{Sink: store, Shape: func(_ context.Context, c *cdc.Change) *sinks.Outcome {
		switch string(c.Key) {
		case "poison":
			return &sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassShape, Reason: "no"}
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
