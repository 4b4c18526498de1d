package freshness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"lockstep/cdc"
)

const (
	// beat is how often a process says how far it is, whether anybody asks or not.
	beat = time.Second
	// mostWants is how many wants a capture looks after at once; the oldest are left, and
	// asked again.
	mostWants = 4096
	// mostWait is for how long a want is looked after at most; whoever waits longer asks again.
	mostWait = time.Minute
)

// Answers is the part of the capture: it says what of the log is in Kafka.
type Answers struct {
	Hub     *Hub
	Process string
	// Passed returns the names of the sets of transactions up to which the log is read,
	// once there is one or more is heard, with the place, and the tables of which rows are
	// older than it and not published.
	Passed func(ctx context.Context, sets map[string]string, more <-chan struct{}) (at cdc.Position, passed, copying []string, err error)
	// AfterAcked calls fn when everything that is published now is acknowledged.
	AfterAcked func(fn func())
	// Ends gives the offset behind what is acknowledged of each table, by partition, as the
	// log of an epoch is read.
	Ends func(ctx context.Context, epoch uint16) (map[string][]int64, error)
	// Requests is the offset behind the last request for a snapshot that is taken in.
	Requests func() int64
	// Committed gives what is committed in the source, and when that was by its clock.
	Committed func(ctx context.Context) (gtids string, at time.Time, err error)
	Metrics   *Metrics
	Log       *slog.Logger

	mu    sync.Mutex
	wants map[string]wanted
	more  chan struct{}
	beats []string // those of wants that are the capture's own, oldest first
}

// wanted is what somebody waits for.
type wanted struct {
	gtids string
	table string // empty for all
	until time.Time
	// Of a beat: the time in the source, and when we were told.
	micros int64
	told   time.Time
}

// mostBeats is how many beats wait at once: of more every other one is left.
const mostBeats = 64

// Run answers until ctx ends, and then returns nil.
func (a *Answers) Run(ctx context.Context) error {
	a.wants, a.more = make(map[string]wanted), make(chan struct{})
	defer a.Hub.Listen(func(r Record) {
		if r.Want != nil {
			wait := min(time.Duration(r.Want.Millis)*time.Millisecond, mostWait)
			a.add(r.Want.ID, wanted{gtids: r.Want.GTIDs, table: r.Want.Table, until: time.Now().Add(wait)})
		}
	})()
	var beating sync.WaitGroup
	defer beating.Wait()
	defer a.Metrics.left()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	beating.Go(func() { a.beat(ctx) })
	for failing := false; ; {
		err := a.lap(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failing = false
			continue
		case !failing:
			failing = true
			a.Log.Warn("barriers get no answer of the capture, trying again", "error", err)
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return nil
		}
	}
}

// add has a want looked after.
func (a *Answers) add(id string, w wanted) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.wants) >= mostWants {
		oldest := ""
		for id, other := range a.wants {
			if w.until.IsZero() {
				continue // a beat
			}
			if oldest == "" || other.until.Before(a.wants[oldest].until) {
				oldest = id
			}
		}
		delete(a.wants, oldest)
	}
	a.wants[id] = w
	close(a.more)
	a.more = make(chan struct{})
}

// pending gives the sets that are waited for, and what is closed when there are others.
func (a *Answers) pending(now time.Time) (sets map[string]string, more <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.wants, func(_ string, w wanted) bool { return !w.until.IsZero() && w.until.Before(now) })
	sets = make(map[string]string, len(a.wants))
	for id, w := range a.wants {
		sets[id] = w.gtids
	}
	return sets, a.more
}

// lap answers those wants that are passed, once there are some. Those that come meanwhile
// share the next answer.
func (a *Answers) lap(ctx context.Context) error {
	taken := a.Requests() // before copying is made of what they have begun
	sets, more := a.pending(time.Now())
	at, passed, copying, err := a.Passed(ctx, sets, more)
	if err != nil || len(passed) == 0 {
		return err
	}
	c := &Capture{Process: a.Process, GTIDs: at.GTIDSet, Copying: copying, Sweeps: sweeps(at.Snapshots), Requests: taken, File: at.File, Pos: at.Pos}
	for _, sn := range at.Snapshots {
		if sn.Keys == 0 && (sn.State == cdc.SnapshotRunning || sn.State == cdc.SnapshotPaused) {
			c.Copies = append(c.Copies, Copy{sn.Table, string(sn.State), sn.Rows, sn.Estimate})
		}
	}
	if c.Version, err = at.Version(); err != nil {
		return err
	}
	if err := a.acked(ctx); err != nil {
		return err
	}
	ends, err := a.Ends(ctx, at.Epoch)
	if err != nil {
		return err
	}
	a.settle(c, passed, ends, at.Keys)
	c.AtMicros = time.Now().UnixMicro()
	a.Metrics.passed(c)
	return a.Hub.Write(ctx, Record{Capture: c})
}

// sweeps are the versions of the barriers that copies will end with.
func sweeps(snapshots []cdc.Snapshot) map[string]cdc.Version {
	versions := make(map[string]cdc.Version)
	for _, sn := range snapshots {
		if sn.Sweep == 0 || sn.State != cdc.SnapshotRunning && sn.State != cdc.SnapshotPaused {
			continue
		}
		if v, other := versions[sn.Table]; !other || sn.Sweep < v {
			versions[sn.Table] = sn.Sweep
		}
	}
	return versions
}

// settle takes the wants that are passed out, and writes into c what they want to know.
func (a *Answers) settle(c *Capture, passed []string, ends map[string][]int64, keys map[string]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.Ends = make(map[string][]int64)
	for _, id := range passed {
		w, ok := a.wants[id]
		delete(a.wants, id)
		beat := slices.Index(a.beats, id)
		switch {
		case !ok:
		case beat >= 0:
			c.UpToMicros, c.SkewMicros = w.micros, skew(w.micros, w.told, time.Now())
			maps.Copy(c.Ends, ends)                // so that whoever listens knows when a sink is there
			for _, older := range a.beats[:beat] { // they say less
				delete(a.wants, older)
			}
			a.beats = slices.Clone(a.beats[beat+1:])
		default:
			c.Wants = append(c.Wants, id)
			if w.table == "" {
				maps.Copy(c.Ends, ends)
			} else if of, ok := ends[w.table]; ok {
				c.Ends[w.table] = of
				if c.Keys == nil {
					c.Keys = make(map[string]string)
				}
				c.Keys[w.table] = keys[w.table]
			}
		}
	}
}

// skew is how far the source's clock is ahead of ours now, when it was told. What passed since is
// measured by a clock that nobody sets.
func skew(micros int64, told, now time.Time) int64 {
	return micros + now.Sub(told).Microseconds() - now.UnixMicro()
}

// acked waits until everything that is published is acknowledged.
func (a *Answers) acked(ctx context.Context) error {
	done := make(chan struct{})
	a.AfterAcked(func() { close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enter notes a beat. When many wait, because the capture is far behind, some go; the
// newest stays, for the older ones may want what a failover has lost.
func (a *Answers) enter(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.beats) >= mostBeats {
		for i := range len(a.beats) / 2 {
			delete(a.wants, a.beats[2*i+1])
			a.beats[i] = a.beats[2*i]
		}
		a.beats = a.beats[:len(a.beats)/2]
	}
	a.beats = append(a.beats, id)
}

// beat wants what is committed now, over and over: so everybody hears up to when all is in
// Kafka, also while nothing is written.
func (a *Answers) beat(ctx context.Context) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	failing := false
	for {
		gtids, at, err := a.Committed(ctx)
		switch {
		case err == nil:
			failing = false
			id := fmt.Sprint("beat ", at.UnixMicro())
			a.enter(id)
			a.add(id, wanted{gtids: gtids, micros: at.UnixMicro(), told: time.Now()})
		case ctx.Err() == nil && !failing && !errors.Is(err, context.Canceled):
			failing = true
			a.Log.Warn("what is committed in the source is not known, so the watermark stands still", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
