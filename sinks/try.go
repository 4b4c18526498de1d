package sinks

import (
	"context"
	"slices"

	"lockstep/cdc"
)

// Try gives changes of a topic's table, with distinct keys, to the store beside the calls
// of the partitions: letters that are tried again. It takes its turn among those calls.
// While the store's breaker or the table's is open it asks nobody and every outcome is
// Unavailable. What the store says counts for the store's breaker, not for the table's.
func (w *Worker) Try(ctx context.Context, topic string, changes []cdc.Change) []Outcome {
	w.start()
	held := func(reason string) []Outcome {
		return slices.Repeat([]Outcome{{Reason: reason}}, len(changes))
	}
	w.mu.Lock()
	table := w.tables[topic]
	w.mu.Unlock()
	if table != nil {
		if ok, _, why := table.admits(); !ok {
			return held("table held: " + why.reason)
		}
	}
	if ok, _ := w.breaker.admits(); !ok {
		return held("the breaker of the sink is open")
	}
	t := w.pool.ask(&seat{crew: &crew{}}, false, len(changes))
	select {
	case <-t.granted:
	case <-ctx.Done():
		w.pool.drop(t)
		return held("told to stop")
	}
	bytes := 0
	for i := range changes {
		bytes += len(changes[i].Key) + len(changes[i].After)
	}
	outcomes, made := t.joint.apply(ctx, changes, bytes)
	w.pool.give(t)
	if !made {
		return held("the breaker of the sink is open")
	}
	return outcomes
}
