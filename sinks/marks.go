package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
)

// ErrWentBack says that a store may not have kept all that it took since a mark
// was found: it is empty, or another server with another history answers.
var ErrWentBack = errors.New("the store has lost what it took, or may have")

// lookAfter is how often a partition asks whether its store has lost something.
const lookAfter = 500 * time.Millisecond

// Mark is how far a partition is applied, kept in the store itself behind what it
// covers, so that whatever loses rows loses it too.
type Mark interface {
	// Next is the offset behind the last record that is known to be in the store. It
	// is not found in a store that has never seen the partition, or has lost
	// everything of it; then birth names this life of the store.
	Next() (next int64, found bool, birth string)
	// Kept reports whether the store certainly has all that it took since the mark was
	// written: one that is behind then only was not written any more.
	Kept() bool
	// Begin writes the mark of a partition that begins at next; ErrWentBack when it
	// is not the mark that was found any more.
	Begin(ctx context.Context, next int64) error
	// Move says that everything before next is in the store. The mark follows within
	// a few seconds. It is to be called often, with the same offset too, for
	// it reports ErrWentBack. No other error means anything is lost.
	Move(ctx context.Context, next int64) error
	// End writes the mark down, if the store can be reached, and lets go of it.
	End(ctx context.Context)
}

// Rewindable is a Partition that can go back.
type Rewindable interface {
	Partition
	// Place gives the offset that Fetch goes on with, negative while the group has
	// none, and the one with which the log begins.
	Place(ctx context.Context) (next, start int64, err error)
	// GoTo makes Fetch go on with an offset.
	GoTo(next int64)
}

// Keeper runs the partitions of a store that may lose what it has acknowledged, and
// mends that: a partition whose mark is behind the committed offset is read
// again from the mark; one whose mark is gone is read again from its beginning when
// Kafka has it, and otherwise its table is copied anew.
type Keeper struct {
	Name string // of the sink
	// Find finds the mark of a partition.
	Find func(ctx context.Context, topic string, partition int) (Mark, error)
	// Lost asks for a new copy of a topic's table. It is called once or more for a
	// loss, and each time with the same id.
	Lost func(ctx context.Context, topic, id string) error
	// Sweep is the sink's.
	Sweep   func(ctx context.Context, table cdc.TableName, v cdc.Version) (removed int, err error)
	Log     *slog.Logger
	Metrics *Metrics
	Config  Config

	killed sync.Once // it was said that a run did not write its marks
}

// Repairs of a loss, as metric labels.
const (
	repairRewind   = "rewind"
	repairReplay   = "replay"
	repairSnapshot = "snapshot"
)

var repairs = []string{repairRewind, repairReplay, repairSnapshot}

// RunPartition gives p to run, which is a Worker's RunPartition, as often as the
// store goes back, each time from where it is to be read again.
func (k *Keeper) RunPartition(ctx context.Context, p Rewindable, run func(context.Context, Partition) error) error {
	k.Metrics.declareRepairs(k.Name)
	for {
		kept, err := k.begin(ctx, p)
		if err != nil || kept == nil {
			return err
		}
		err = kept.watch(ctx, run)
		last, release := linger(ctx, k.Config.StopWithin/5) // the worker has had its share
		kept.mark.End(last)
		release()
		if !errors.Is(err, ErrWentBack) {
			return err
		}
	}
}

// begin finds the mark of a partition and takes the partition to where it is to
// begin, waiting for the store as long as ctx lasts; then it returns nil.
func (k *Keeper) begin(ctx context.Context, p Rewindable) (*keptPartition, error) {
	topic, id := p.Name()
	log := k.Log.With("sink", k.Name, "topic", topic, "partition", id)
	wait, said := pause{min: k.Config.HoldMin, max: k.Config.HoldMax}, false
	for {
		kept, err := k.try(ctx, p, log)
		if err == nil {
			if said {
				log.Info("partition begins")
			}
			return kept, nil
		}
		if kafkaErr, ok := errors.AsType[placeError](err); ok {
			return nil, kafkaErr.error
		}
		if !said && ctx.Err() == nil && !errors.Is(err, ErrWentBack) {
			said = true
			log.Warn("partition does not begin yet: how far the store is cannot be seen", "error", err)
		}
		if !wait.sleep(ctx) {
			return nil, nil
		}
	}
}

// placeError is an error of Kafka's, which ends the partition's run.
type placeError struct{ error }

func (k *Keeper) try(ctx context.Context, p Rewindable, log *slog.Logger) (*keptPartition, error) {
	topic, id := p.Name()
	next, start, err := p.Place(ctx)
	if err != nil {
		return nil, placeError{fmt.Errorf("sink %s: place in %s/%d: %w", k.Name, topic, id, err)}
	}
	mark, err := k.Find(ctx, topic, id)
	if err != nil {
		return nil, err
	}
	kept := &keptPartition{Rewindable: p, keeper: k, mark: mark}
	at, found, birth := mark.Next()
	repair := ""
	switch {
	case next < 0: // nothing was ever applied
		return kept, mark.Begin(ctx, 0)
	case found && at >= next:
		return kept, mark.Begin(ctx, next)
	case found && at >= start:
		repair = repairRewind
	case start == 0:
		repair, at = repairReplay, 0
	default:
		repair, at = repairSnapshot, next
		if err := k.Lost(ctx, topic, birth); err != nil {
			return nil, fmt.Errorf("ask for a new copy of what the store has lost: %w", err)
		}
	}
	if err := mark.Begin(ctx, at); err != nil {
		return nil, err
	}
	p.GoTo(at)
	kept.again = next
	if repair == repairRewind && mark.Kept() {
		k.killed.Do(func() {
			k.Log.Info("the last run ended before it wrote down how far the store is, as one that is killed does: what it committed behind that is read again, and the store has lost nothing", "sink", k.Name)
		})
		return kept, nil
	}
	k.Metrics.repairs.WithLabelValues(k.Name, repair).Inc()
	switch repair {
	case repairRewind:
		log.Warn("the store is behind what was committed: reading again what it may have lost", "from", at, "to", next)
	case repairReplay:
		log.Warn("the store has nothing of this partition any more: reading it again from its beginning", "to", next)
	case repairSnapshot:
		log.Warn("the store has lost this partition, and Kafka keeps it only from a later place on: the table is copied anew", "log_begins", start, "committed", next, "snapshot", birth)
	}
	return kept, nil
}

// keptPartition moves the mark behind what is committed, and ends the run when the
// store has gone back.
type keptPartition struct {
	Rewindable
	keeper *Keeper
	mark   Mark

	// What is before this offset is read again. The owner of partition 0 may have
	// swept for a barrier in it before the older rows here came back, so the table is
	// swept for once more, behind them.
	again    int64
	mu       sync.Mutex
	barriers []barrierAt
}

type barrierAt struct {
	offset  int64
	table   cdc.TableName
	version cdc.Version
}

// watch gives p to run and looks after the store meanwhile, since a partition that is idle,
// or waits, commits nothing.
func (p *keptPartition) watch(ctx context.Context, run func(context.Context, Partition) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(lookAfter)
		defer tick.Stop()
		for {
			if err := p.mark.Move(ctx, -1); errors.Is(err, ErrWentBack) {
				stop(err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	err := run(ctx, p)
	if cause := context.Cause(ctx); errors.Is(cause, ErrWentBack) {
		err = cause
	}
	stop(nil)
	watching.Wait()
	return err
}

// Fetch remembers the barriers of what is read again.
func (p *keptPartition) Fetch(ctx context.Context, most int) ([]kafka.Record, error) {
	records, err := p.Rewindable.Fetch(ctx, most)
	for _, r := range records {
		if r.Offset >= p.again {
			break
		}
		// What cannot be decoded is a dead letter of the worker's.
		if c, err := cdc.DecodeHeaders(r.Key, r.Headers); err == nil && c.Op == cdc.OpBarrier {
			p.mu.Lock()
			p.barriers = append(p.barriers, barrierAt{r.Offset, c.Table, c.Version})
			p.mu.Unlock()
		}
	}
	return records, err
}

// Commit commits nothing that the store may have lost.
func (p *keptPartition) Commit(ctx context.Context, next int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.barriers) > 0 && p.barriers[0].offset < next {
		b := p.barriers[0]
		if _, err := p.keeper.Sweep(ctx, b.table, b.version); err != nil {
			return fmt.Errorf("sweep %s again: %w", b.table, err)
		}
		p.barriers = p.barriers[1:]
	}
	if err := p.mark.Move(ctx, next); errors.Is(err, ErrWentBack) {
		return err
	}
	return p.Rewindable.Commit(ctx, next)
}
