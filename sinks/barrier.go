package sinks

import (
	"cmp"
	"context"
	"slices"
	"time"
)

const (
	// sweepPause is how often a barrier asks how far the other partitions are.
	sweepPause = 200 * time.Millisecond
	// lagAfter is how long a barrier waits for them before the log names them, and
	// lagAgain how long until it does so again.
	lagAfter = time.Minute
	lagAgain = 10 * time.Minute
)

// barrier takes a barrier in: no change of its table that is not newer is given to
// the store from now on, and those that wait are superseded by it. In partition 0,
// where a barrier arrives last, it is kept until the store is swept; in the others it
// has done its work.
func (l *lane) barrier(barrier *item) {
	t := barrier.change.Table
	l.barriers[t] = max(l.barriers[t], barrier.change.Version)
	l.void = max(l.void, barrier.change.Version)
	l.met(barrier, Applied)
	var void []*item
	for it := l.first; it != nil; it = it.next {
		if (it.place == ready || it.place == behind) && l.behindBarrier(it) {
			void = append(void, it)
		}
	}
	for _, it := range void {
		if it.place == ready {
			l.ready.remove(it)
		}
		delete(l.rows, it.row)
		l.settle(it, outcomeSuperseded)
	}
	if l.id != 0 {
		l.settle(barrier, outcomeApplied)
		return
	}
	barrier.place = sweeping
	l.sweeps = append(l.sweeps, barrier)
}

// behindBarrier reports whether a row is gone by a barrier that this lane has met.
func (l *lane) behindBarrier(it *item) bool {
	return it.change.Version <= l.barriers[it.change.Table]
}

// sweep gives the newest barrier that waits, unless a sweep is under way or a call is
// that may still write an older change. Changes go on meanwhile: the guard keeps what
// is newer.
func (l *lane) sweep() *item {
	if l.sweeping != nil || len(l.sweeps) == 0 {
		return nil
	}
	newest := slices.MaxFunc(l.sweeps, func(a, b *item) int { return cmp.Compare(a.change.Version, b.change.Version) })
	for _, it := range l.calling {
		if it.change.Table == newest.change.Table && it.change.Version <= newest.change.Version {
			return nil
		}
	}
	l.sweeping = newest
	return newest
}

// swept settles the barrier that was swept for and those it covers.
func (l *lane) swept(done bool) {
	it := l.sweeping
	l.sweeping = nil
	if !done {
		return
	}
	l.sweeps = slices.DeleteFunc(l.sweeps, func(other *item) bool {
		switch {
		case other == it:
			l.settle(it, outcomeApplied)
		case other.change.Version <= it.change.Version && other.change.Table == it.change.Table:
			l.settle(other, outcomeSuperseded)
		default:
			return false
		}
		return true
	})
}

// startSweep begins to sweep for a barrier whose time has come.
func (d *driver) startSweep(ctx context.Context) {
	if it := d.lane.sweep(); it != nil {
		go func() { d.swept <- d.sweep(ctx, it) }()
	}
}

// sweep removes the rows of a barrier's table from the store, once no older change
// of them can come any more. It reports false when ctx ended before.
func (d *driver) sweep(ctx context.Context, it *item) bool {
	table, version := it.change.Table, it.change.Version
	d.Metrics.sweeping.WithLabelValues(d.Name).Inc()
	defer d.Metrics.sweeping.WithLabelValues(d.Name).Dec()
	d.tellSweep(it, &SweepStatus{Table: table.String(), Version: version.String(), Since: time.Now()})
	defer d.tellSweep(it, nil)
	if !d.othersPassed(ctx, it) {
		return false
	}
	d.tellWaiting(it, nil)
	began, said, rows := time.Now(), false, 0
	wait := pause{min: d.Config.HoldMin, max: d.Config.HoldMax}
	for {
		n, err := d.Sink.Sweep(ctx, table, version)
		rows += n
		it.book.swept.Add(float64(n))
		if err == nil {
			d.log.Info("barrier: table swept", "table", table.String(), "version", version.String(), "gtid", it.change.GTID, "rows", rows, "took", time.Since(began).Round(time.Millisecond).String())
			return true
		}
		if !said && ctx.Err() == nil {
			said = true
			d.log.Warn("barrier: table not swept yet, trying again", "table", table.String(), "version", version.String(), "error", err)
		}
		if !wait.sleep(ctx) {
			return false
		}
	}
}

// tellSweep enters a sweep into the status, or takes it out when s is nil.
func (w *Worker) tellSweep(it *item, s *SweepStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sweeps[it] = s; s == nil {
		delete(w.sweeps, it)
	}
}

// tellWaiting notes in the status which partitions a sweep waits for.
func (w *Worker) tellWaiting(it *item, behind []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sweeps[it].WaitsFor = behind
}

// othersPassed waits until every other partition has settled what stood in it when
// this was called, the barrier included: what is older than the barrier has come
// to the store, or never will. The log tells of a wait that is long.
func (d *driver) othersPassed(ctx context.Context, it *item) bool {
	log := d.log.With("table", it.change.Table.String(), "version", it.change.Version.String())
	var ends map[int]int64
	began, failed := time.Now(), false
	tell := began.Add(lagAfter)
	wait := pause{min: sweepPause, max: 5 * sweepPause}
	for {
		now, committed, err := d.Progress(ctx, d.lane.topic)
		switch {
		case err == nil:
			if ends == nil {
				ends = now
				delete(ends, d.lane.id)
			}
			if g := d.growth.Load(); g != nil { // what is behind it waits for this barrier, too
				for id, end := range ends {
					if ends[id] = 0; id < len(g.Behind) {
						ends[id] = min(end, g.Behind[id])
					}
				}
			}
			behind := lagging(ends, committed)
			d.tellWaiting(it, behind)
			if len(behind) == 0 {
				return true
			}
			if !time.Now().Before(tell) {
				tell = time.Now().Add(lagAgain)
				log.Warn("barrier: table not swept yet, other partitions of the topic have not come to it", "behind", behind, "waiting", time.Since(began).Round(time.Second).String())
			}
		case !failed && ctx.Err() == nil:
			failed = true
			log.Warn("barrier: how far the other partitions are is not known, trying again", "error", err)
		}
		if !wait.sleep(ctx) {
			return false
		}
	}
}

// lagging gives the partitions that have not committed up to their end, in order.
func lagging(ends, committed map[int]int64) []int {
	var behind []int
	for id, end := range ends {
		if committed[id] < end {
			behind = append(behind, id)
		}
	}
	slices.Sort(behind)
	return behind
}
