package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/dlq"
	"lockstep/freshness"
	"lockstep/kafka"
	"lockstep/reconcile"
)

// reconcileWorld is what surrounds a comparison.
type reconcileWorld struct {
	*process
	stores map[string]*store
	// patience is how long a capture or a sink may get no further while somebody waits.
	patience time.Duration

	mu        sync.Mutex // guards what follows
	positions *kafka.Positions
	pos       cdc.Position
	posAt     time.Time
	waits     map[string]string // what is waited for, by sink
	searched  int               // records that newest has read

	replays *replayWorld // asks the capture for rows
	stamp   string       // of this world's requests, which nobody else gives any
	asks    int
}

// openReconcile opens the stores of sinks for comparing.
func (p *process) openReconcile(ctx context.Context, names []string, letters *letterLog) (*reconcileWorld, error) {
	if err := kafka.EnsureCheckpoint(ctx, p.kafka, p.cfg.Prefix); err != nil {
		return nil, err
	}
	w := &reconcileWorld{process: p, stores: map[string]*store{}, patience: 10 * time.Minute, positions: kafka.NewPositions(p.kafka, p.cfg.Prefix), waits: map[string]string{}, stamp: time.Now().UTC().Format("20060102T150405-") + p.id[:8],
		replays: &replayWorld{process: p, letters: letters, requests: kafka.NewSnapshotRequests(p.kafka, letters.publisher, p.cfg.Prefix, p.log)}}
	for _, name := range names {
		s, err := p.openSink(ctx, name)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("sink %s: %w", name, err)
		}
		w.stores[name] = s
	}
	return w, nil
}

func (w *reconcileWorld) close() {
	for _, s := range w.stores {
		s.close()
	}
}

func (w *reconcileWorld) targets(names []string) (targets []reconcile.Target) {
	for _, name := range names {
		targets = append(targets, reconcile.Target{Name: name, Store: w.stores[name].reader, Masked: func(t cdc.TableName) map[string]bool {
			if w.cfg.Source.Masks == nil {
				return nil
			}
			return w.cfg.Source.Masks(t).Columns()
		}})
	}
	return targets
}

// world hands over what reconcile needs.
func (w *reconcileWorld) world() *reconcile.World {
	return &reconcile.World{
		Open: func(ctx context.Context, t cdc.TableName, where string) (reconcile.Source, error) {
			return mysql.OpenRows(ctx, w.cfg.Source, t, where)
		},
		Await: w.await, Ends: w.ends, Changes: w.changes, Newest: w.newest, Letters: w.lettersOf, Reread: w.reread,
	}
}

// position is the newest one that is saved, read again when the last one is older than age.
func (w *reconcileWorld) position(ctx context.Context, age time.Duration) (cdc.Position, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.posAt) < age {
		return w.pos, nil
	}
	pos, found, err := w.positions.Load(ctx)
	if err == nil && !found {
		err = fmt.Errorf("no position is saved: the capture has never run, so there is nothing to compare with; run lockstep capture")
	}
	if err == nil {
		w.pos, w.posAt = pos, time.Now()
	}
	return pos, err
}

// peek is position for who does not mind that there is none.
func (w *reconcileWorld) peek(ctx context.Context) (cdc.Position, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.positions.Load(ctx)
}

// awaitTick is how often what is waited for is looked at.
const awaitTick = 100 * time.Millisecond

// patient repeats look, at each tick and when there is news, until it says that there is
// nothing more to wait for. When what it waits for stays the same for too long it gives up, with that.
func (w *reconcileWorld) patient(ctx context.Context, sink string, news <-chan struct{}, look func() (waits string, err error)) error {
	last, since := "", time.Now()
	defer w.waiting(sink, "")
	for {
		waits, err := look()
		switch {
		case err != nil || waits == "":
			return err
		case waits != last:
			last, since = waits, time.Now()
		case time.Since(since) > w.patience:
			return fmt.Errorf("for %s nothing has changed: %s; see lockstep status", w.patience, waits)
		}
		if time.Since(since) > 2*time.Second {
			w.waiting(sink, waits)
		}
		select {
		case <-time.After(awaitTick):
		case <-news:
			news = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *reconcileWorld) waiting(sink, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits[sink] = what
}

// waitsFor tells what is waited for.
func (w *reconcileWorld) waitsFor() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, what := range w.waits {
		if what != "" && !slices.Contains(all, what) {
			all = append(all, what)
		}
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

// await is reconcile.World.Await: no copy of rows of the table is under way, and a barrier has
// passed, which takes milliseconds under load, or what is saved says the same, which it does where nothing
// is written or nobody runs: the capture has read up to the set, and the sink has committed what is in Kafka then.
func (w *reconcileWorld) await(ctx context.Context, sink string, t cdc.TableName, set string) (at reconcile.Reached, err error) {
	topic, err := kafka.ChangeTopic(w.cfg.Prefix, t)
	if err != nil {
		return at, err
	}
	asking, stop := context.WithCancel(ctx)
	passed := make(chan struct{})
	var place freshness.Reached
	var barrier sync.WaitGroup
	barrier.Go(func() {
		if reached, err := w.barrier.Reach(asking, sink, t.String(), set); err == nil {
			place = reached
			close(passed)
		}
	})
	defer barrier.Wait()
	defer stop()
	var ends map[int]int64
	return at, w.patient(ctx, sink, passed, func() (string, error) {
		pos, err := w.position(ctx, awaitTick/5)
		if err != nil {
			return "", err
		}
		for _, sn := range pos.Snapshots {
			if sn.Table == t.String() && !ended(sn.State) {
				return fmt.Sprintf("snapshot %s of %s is %s with %s", sn.ID, t, sn.State, count(int(sn.Rows), "row")), nil
			}
		}
		select {
		case <-passed:
			at = reconcile.Reached{Newest: above(place.Version), Read: place.GTIDs}
			return "", nil
		default:
		}
		if ends == nil {
			done, err := mysql.Contains(pos.Flavor, pos.GTIDSet, set)
			if err != nil {
				return "", err
			}
			if !done {
				return "the capture has read up to " + cmp.Or(pos.GTIDSet, "the beginning"), nil
			}
			var there bool
			at = reconcile.Reached{Newest: newestVersion(pos), Read: pos.GTIDSet}
			if ends, there, err = w.kafka.Ends(ctx, topic); err != nil || !there {
				return "", err
			}
		}
		_, committed, err := w.progress(ctx, sink, w.stores[sink], topic)
		if err != nil { // its store, where that says how far the sink is, may be back soon
			return fmt.Sprintf("how far sink %s is cannot be told: %s", sink, oneLine(err.Error())), ctx.Err()
		}
		left := int64(0)
		for id, end := range ends {
			left += max(0, end-committed[id])
		}
		if left > 0 {
			return fmt.Sprintf("sink %s has %s of %s to apply", sink, count(int(left), "change"), t), nil
		}
		return "", nil
	})
}

func (w *reconcileWorld) ends(ctx context.Context, t cdc.TableName) (reconcile.Log, error) {
	topic, err := kafka.ChangeTopic(w.cfg.Prefix, t)
	if err != nil {
		return nil, err
	}
	ends, _, err := w.kafka.Ends(ctx, topic)
	return ends, err
}

func (w *reconcileWorld) changes(ctx context.Context, t cdc.TableName, from, to reconcile.Log, fn func(int64, int, *cdc.Change) error) (whole bool, err error) {
	topic, err := kafka.ChangeTopic(w.cfg.Prefix, t)
	if err != nil {
		return false, err
	}
	whole = true
	for partition, end := range to {
		if from[partition] >= end {
			continue
		}
		cut, err := w.kafka.ReadRange(ctx, topic, partition, from[partition], end, func(r kafka.Record) error {
			c, err := cdc.Decode(r.Key, r.Value, r.Headers)
			if err != nil {
				return nil // no change of ours: a dead letter at most
			}
			return fn(r.Offset, partition, &c)
		})
		if err != nil {
			return false, err
		}
		whole = whole && !cut
	}
	return whole, nil
}

const (
	// newestBlock is how many records are looked through at once for the newest versions of
	// rows, from the end of the log on, and mostSearched bounds all of them.
	newestBlock  = 20_000
	mostSearched = 20_000_000
)

// newest is reconcile.World.Newest.
func (w *reconcileWorld) newest(ctx context.Context, t cdc.TableName, keys [][]byte) (map[string]cdc.Version, error) {
	found := map[string]cdc.Version{}
	topic, err := kafka.ChangeTopic(w.cfg.Prefix, t)
	if err != nil {
		return nil, err
	}
	ends, _, err := w.kafka.Ends(ctx, topic)
	if err != nil || len(ends) == 0 {
		return found, err
	}
	starts, err := w.kafka.StartOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	wanted := make([]map[string]bool, len(ends))
	for _, key := range keys {
		id := kafka.PartitionFor(key, len(ends))
		if wanted[id] == nil {
			wanted[id] = map[string]bool{}
		}
		wanted[id][string(key)] = true
	}
	for id, want := range wanted {
		for to := ends[id]; to > starts[id] && len(want) > 0 && w.search(newestBlock); to -= newestBlock {
			here := map[string]bool{}
			_, err := w.kafka.ReadRange(ctx, topic, id, max(starts[id], to-newestBlock), to, func(r kafka.Record) error {
				if !want[string(r.Key)] {
					return nil
				}
				c, err := cdc.DecodeHeaders(r.Key, r.Headers)
				if err == nil && !c.Op.OfTable() {
					here[string(r.Key)] = true
					found[string(r.Key)] = max(found[string(r.Key)], c.Version)
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
			for key := range here {
				delete(want, key)
			}
		}
	}
	return found, nil
}

// search reports whether so many more records may be looked through.
func (w *reconcileWorld) search(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.searched += n
	return w.searched <= mostSearched
}

func (w *reconcileWorld) lettersOf(ctx context.Context, sink string, t cdc.TableName) (map[string]string, error) {
	letters, err := (&desk{w.process, w.replays.letters}).Choose(ctx, dlq.Query{Sink: sink, Filter: dlq.Filter{Table: t.String()}})
	if err != nil {
		return nil, err
	}
	open := map[string]string{}
	for _, l := range letters {
		if l.State.Open() {
			open[l.Key] = l.ID
		}
	}
	return open, nil
}

// reread is reconcile.World.Reread: the capture reads the rows by their keys, as for a replay of dead letters.
func (w *reconcileWorld) reread(ctx context.Context, t cdc.TableName, try int, keys [][]byte) error {
	var ids []string
	for _, r := range (snapshotFlags{table: t.String(), reason: "they differ in a sink"}).requests(keys) {
		w.mu.Lock()
		w.asks++
		// Of one replay, so that the requests of a try share a turn: they name each row once.
		r.ID = fmt.Sprintf("%sreconcile-%s-%s-%d.%d", cdc.ReplayPrefix, t, w.stamp, try, w.asks)
		w.mu.Unlock()
		if err := w.replays.ask(ctx, r); err != nil {
			return err
		}
		ids = append(ids, r.ID)
	}
	return w.patient(ctx, "", nil, func() (string, error) {
		readings, err := w.replays.readings(ctx, ids)
		if err != nil {
			return "", err
		}
		waits := ""
		for _, id := range ids {
			switch r := readings[id]; r.State {
			case cdc.SnapshotDone:
			case cdc.SnapshotFailed, cdc.SnapshotCancelled:
				return "", fmt.Errorf("snapshot %s is %s%s", id, r.State, because(r.Problem))
			default:
				waits = fmt.Sprintf("the capture has read %d of %d rows again", r.Rows, len(keys))
			}
		}
		return waits, nil
	})
}

// unfollowed says of tables that cannot be compared yet why not.
func (w *reconcileWorld) unfollowed(ctx context.Context, tables []cdc.TableName) (map[cdc.TableName]string, error) {
	pos, err := w.position(ctx, awaitTick)
	why := map[cdc.TableName]string{}
	for _, t := range tables {
		if !slices.Contains(pos.Copied, t.String()) {
			why[t] = "the capture does not follow it yet; see lockstep snapshot list"
		}
	}
	return why, err
}

// reconcileGroup is the consumer group whose members want to compare. No sink has a dot in
// its name.
func (p *process) reconcileGroup() string { return p.group("reconcile.runner") }

func newReconcileLeaseMetrics(reg prometheus.Registerer) *kafka.LeaseMetrics {
	return kafka.NewLeaseMetrics(reg, "reconcile", "compares rows with the sinks", "compare")
}

// compareNothing is the reconciler that is turned off. Nobody waits for it to be ready.
func (p *process) compareNothing(ctx context.Context) error {
	p.ready.drop(reconcilePart)
	return idle(ctx, nil)
}

// runReconcile compares all the time, while no other process of the pipeline does.
func (p *process) runReconcile(ctx context.Context, names []string, metrics *reconcile.Metrics, lease *kafka.LeaseMetrics) error {
	log := p.log.With("part", "reconcile")
	state := &reconcile.State{Prefix: p.cfg.Prefix, Kafka: p.newLetterLog(), Log: log}
	one := &kafka.Lease{
		Client: p.kafka, Group: p.reconcileGroup(), Topic: reconcile.Topic(p.cfg.Prefix), Metrics: lease, Log: log,
		Hold: func(ctx context.Context) error {
			p.compares.Store(metrics)
			defer p.compares.Store(nil)
			defer metrics.Rest()
			return p.holdReconcile(ctx, names, metrics, log)
		},
	}
	p.ready.add(reconcilePart, func() bool { return one.State() != kafka.LeaseJoining })
	p.ready.say(reconcilePart, func() string { return one.State().String() })
	err := state.Load(ctx) // which makes the topic of the lease
	if err == nil {
		err = one.Run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	return nil
}

// holdReconcile compares until ctx ends.
func (p *process) holdReconcile(ctx context.Context, names []string, metrics *reconcile.Metrics, log *slog.Logger) error {
	return p.withLetterLog(ctx, func(ctx context.Context, letters *letterLog) error {
		w, err := p.openReconcile(ctx, names, letters)
		if err != nil {
			return err
		}
		defer w.close()
		return (&reconcile.Runner{
			Config: p.cfg.Reconcile, World: w.world(), Targets: w.targets(names), Metrics: metrics, Log: log,
			State: &reconcile.State{Prefix: p.cfg.Prefix, Kafka: letters, Log: log},
			Tables: func(ctx context.Context) (followed, now []cdc.TableName, err error) {
				pos, found, err := w.peek(ctx)
				if err != nil || !found {
					return nil, nil, err
				}
				for _, name := range pos.Copied {
					t := tableNamed(name)
					if !p.captured(t) {
						continue
					}
					if followed = append(followed, t); !copying(pos, name) {
						now = append(now, t)
					}
				}
				return followed, now, nil
			},
			Recent: w.recent, Found: p.tellCompared,
			Pace: func() (func() int, func(int, time.Duration)) {
				pace := &mysql.Pace{Snapshot: p.cfg.Source.Snapshot}
				return pace.Rows, pace.Took
			},
		}).Run(ctx)
	})
}

// copying reports whether a copy of the table is under way.
func copying(pos cdc.Position, table string) bool {
	return slices.ContainsFunc(pos.Snapshots, func(sn cdc.Snapshot) bool { return sn.Table == table && sn.Keys == 0 && !ended(sn.State) })
}

// recent is reconcile.Runner.Recent.
func (w *reconcileWorld) recent(ctx context.Context, t cdc.TableName, since reconcile.Log, most int) ([][]byte, reconcile.Log, error) {
	topic, err := kafka.ChangeTopic(w.cfg.Prefix, t)
	if err != nil {
		return nil, nil, err
	}
	ends, _, err := w.kafka.Ends(ctx, topic)
	if err != nil || len(ends) == 0 {
		return nil, nil, err
	}
	var keys [][]byte
	known := map[string]bool{}
	share := int64(max(1, most/len(ends)))
	for partition, end := range ends {
		from := max(since[partition], end-share, 0)
		if from >= end {
			continue
		}
		_, err := w.kafka.ReadRange(ctx, topic, partition, from, end, func(r kafka.Record) error {
			c, err := cdc.DecodeHeaders(r.Key, r.Headers)
			if err == nil && !c.Op.OfTable() && !known[string(r.Key)] && len(keys) < most {
				known[string(r.Key)] = true
				keys = append(keys, slices.Clone(r.Key))
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return keys, ends, nil
}
