package sinks

import (
	"context"
	"time"

	"lockstep/cdc"
)

// awaitGrowth waits until every partition, this one too, has committed what a growth is
// behind. From there on a row may stand in another partition than before, and a store
// remembers for a time only that a newer change has taken it away. The growth itself is given
// to the lane afterwards, so whoever reads it again waits again. It reports false when ctx
// ended before.
func (d *driver) awaitGrowth(ctx context.Context, g *cdc.Growth) bool {
	ends := make(map[int]int64, len(g.Behind))
	for id, offset := range g.Behind {
		ends[id] = offset
	}
	d.growth.Store(g)
	defer d.growth.Store(nil)
	began, failed := time.Now(), false
	tell := began.Add(lagAfter)
	wait := pause{min: sweepPause, max: 5 * sweepPause}
	for {
		_, committed, err := d.Progress(ctx, d.lane.topic)
		switch {
		case err == nil:
			behind := lagging(ends, committed)
			if len(behind) == 0 {
				return true
			}
			if !time.Now().Before(tell) {
				tell = time.Now().Add(lagAgain)
				d.log.Warn("the topic has got more partitions: what is behind that waits until the other partitions have come to it", "behind", behind, "waiting", time.Since(began).Round(time.Second).String())
			}
		case !failed && ctx.Err() == nil:
			failed = true
			d.log.Warn("the topic has got more partitions, and how far the others are is not known; trying again", "error", err)
		}
		if !wait.sleep(ctx) {
			return false
		}
	}
}
