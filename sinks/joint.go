package sinks

import (
	"context"
	"slices"
	"sync"
	"time"

	"lockstep/cdc"
)

// joint is one call of the store that the partitions of a crew share. It is made when
// each of them has put its changes in or has left.
type joint struct {
	call    func(*joint)
	holders int             // tickets that have not been given back; the pool guards it
	ctx     context.Context // ends when nobody waits any more
	cancel  context.CancelFunc

	mu      sync.Mutex
	missing int // partitions that are still to put something in
	waiting int // partitions that wait for their outcomes
	parts   []*part
	went    went
}

func newJoint(partitions int, call func(*joint)) *joint {
	j := &joint{call: call, holders: partitions, missing: partitions}
	j.ctx, j.cancel = context.WithCancel(context.Background())
	return j
}

// part is what one partition puts in.
type part struct {
	changes  []cdc.Change
	bytes    int
	outcomes []Outcome
	done     chan struct{}
}

// went is how a call went.
type went struct {
	made       bool // false while it is under way, and when the breaker did not let it through
	asked      bool // whether it came to the store; else it says nothing of how long that takes
	took       time.Duration
	bytes      int
	down       bool          // the store was unavailable
	retryAfter time.Duration // how long it asks to be left alone
}

// apply puts changes into the call and returns what became of them, and whether the
// call was made. When ctx ends before, they are unavailable, and the call goes on for
// the others; the last one stops it and waits for its end.
func (j *joint) apply(ctx context.Context, changes []cdc.Change, bytes int) (outcomes []Outcome, made bool) {
	p := &part{changes: changes, bytes: bytes, done: make(chan struct{})}
	j.mu.Lock()
	j.parts = append(j.parts, p)
	j.waiting++
	j.mu.Unlock()
	j.leave()
	select {
	case <-p.done:
	case <-ctx.Done():
		j.mu.Lock()
		j.waiting--
		others := j.waiting + j.missing
		j.mu.Unlock()
		if others > 0 {
			return make([]Outcome, len(changes)), true
		}
		j.cancel()
		<-p.done
	}
	return p.outcomes, j.result().made
}

// leave says that a partition has put its changes in, or that it has none.
func (j *joint) leave() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.missing--; j.missing > 0 {
		return
	}
	if len(j.parts) == 0 {
		j.cancel()
		return
	}
	if j.waiting == 0 {
		j.cancel()
	}
	go j.call(j)
}

// result is how the call went, as far as it is over.
func (j *joint) result() went {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.went
}

// call makes a joint's call of the store.
func (w *Worker) call(j *joint) {
	defer j.cancel()
	first := j.parts[0]
	changes, went := slices.Clip(first.changes), went{bytes: first.bytes} // mostly it is alone
	for _, p := range j.parts[1:] {
		changes = append(changes, p.changes...)
		went.bytes += p.bytes
	}
	var outcomes []Outcome
	went.made = w.breaker.try(func() (error, string) {
		began := time.Now()
		outcomes = w.Sink.Apply(j.ctx, changes)
		went.took = time.Since(began)
		for i := range outcomes {
			outcomes[i].redact() // here: from here on reasons reach logs, breakers and letters
		}
		return verdict(j.ctx, outcomes)
	})
	if went.made {
		w.Metrics.apply.WithLabelValues(w.Name).Observe(went.took.Seconds())
	}
	went.asked = went.made && len(outcomes) == 0
	for _, out := range outcomes {
		went.asked = went.asked || !out.Unasked
		went.down = went.down || out.Verdict == Unavailable && !out.Unasked
		went.retryAfter = max(went.retryAfter, out.RetryAfter)
	}
	j.mu.Lock()
	j.went = went
	j.mu.Unlock()
	whole := len(outcomes) == len(changes)
	for _, p := range j.parts {
		switch {
		case whole:
			p.outcomes, outcomes = outcomes[:len(p.changes):len(p.changes)], outcomes[len(p.changes):]
		case len(j.parts) == 1:
			p.outcomes = outcomes // whoever gets them says what is wrong
		}
		close(p.done)
	}
}
