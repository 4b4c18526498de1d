package sinks

import (
	"context"

	"lockstep/cdc"
)

// Shaped is a Sink that gets, in place of each change, what Shape makes of it. All
// that leads to the store leads through it, a replay of dead letters too; what is
// recorded of a change stays as it was.
type Shaped struct {
	Sink
	// Shape turns the change of a row into that of the store's document: other images,
	// or a delete in place of an upsert. It must leave table, key and version alone and
	// make new images. It returns nil, or the outcome of a change that is not to reach
	// the store, save that it Leaves. It is called from several goroutines.
	Shape func(ctx context.Context, c *cdc.Change) *Outcome
}

// Apply is Sink.Apply for changes as they come from the source.
func (s Shaped) Apply(ctx context.Context, changes []cdc.Change) []Outcome {
	outcomes := make([]Outcome, len(changes))
	shaped := make([]cdc.Change, 0, len(changes))
	at := make([]int, 0, len(changes))
	for i, c := range changes {
		if no := s.Shape(ctx, &c); no != nil {
			if outcomes[i] = *no; !c.Leaves {
				continue
			}
		}
		shaped, at = append(shaped, c), append(at, i)
	}
	if len(shaped) == 0 {
		return outcomes
	}
	answers := s.Sink.Apply(ctx, shaped)
	if len(answers) != len(shaped) {
		return nil // the worker says what is wrong with it
	}
	for i, answer := range answers {
		if !shaped[i].Leaves || answer.Verdict == Unavailable {
			outcomes[at[i]] = answer
		}
	}
	return outcomes
}
