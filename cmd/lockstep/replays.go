package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/audit"
	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/dlq"
	"lockstep/kafka"
	"lockstep/route"
	"lockstep/sinks"
)

// replaysGroup is the consumer group whose members want to carry out replays. No sink has
// a dot in its name.
func (p *process) replaysGroup() string { return p.group("dlq.replays") }

// replaysHeld reports whether a process of the pipeline carries out replays. One that was
// killed counts until Kafka has given it up (kafka.lease_timeout).
func (p *process) replaysHeld(ctx context.Context) (bool, error) {
	_, members, err := p.kafka.GroupState(ctx, p.replaysGroup())
	return members > 0, err
}

func newReplaysLeaseMetrics(reg prometheus.Registerer) *kafka.LeaseMetrics {
	return kafka.NewLeaseMetrics(reg, "replays", "carries out replays of dead letters", "carry out replays")
}

// runReplays carries out replays while no other process of the pipeline does.
func (p *process) runReplays(ctx context.Context, metrics *dlq.JobMetrics, lease *kafka.LeaseMetrics) error {
	log := p.log.With("part", "replays")
	err := (&dlq.Jobs{Prefix: p.cfg.Prefix, Kafka: p.newLetterLog()}).Ensure(ctx)
	if err == nil {
		err = (&kafka.Lease{
			Client: p.kafka, Group: p.replaysGroup(), Topic: dlq.JobsTopic(p.cfg.Prefix), Metrics: lease, Log: log,
			Hold: func(ctx context.Context) error { return p.holdReplays(ctx, metrics) },
		}).Run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("replays: %w", err)
	}
	return nil
}

// holdReplays carries out replays until ctx ends.
func (p *process) holdReplays(ctx context.Context, metrics *dlq.JobMetrics) error {
	return p.withLetterLog(ctx, func(ctx context.Context, letters *letterLog) error {
		w := &replayWorld{process: p, letters: letters, stores: map[string]*store{}, requests: kafka.NewSnapshotRequests(p.kafka, letters.publisher, p.cfg.Prefix, p.log)}
		defer w.close()
		return w.runner(metrics).Run(ctx)
	})
}

// replayWorld is what surrounds a runner of replays. Several jobs use it at once.
type replayWorld struct {
	*process
	letters *letterLog

	opening sync.Mutex
	stores  map[string]*store // of sinks that are not in this process

	asking   sync.Mutex
	requests *kafka.SnapshotRequests
	stand    map[string]bool // requests of which the capture has not said that they are over
	pos      cdc.Position
	posAt    time.Time
}

func (w *replayWorld) runner(metrics *dlq.JobMetrics) *dlq.Runner {
	log := w.log.With("part", "replays")
	records := &audit.Log{Prefix: w.cfg.Prefix, Kafka: w.letters}
	return &dlq.Runner{
		Jobs:    &dlq.Jobs{Prefix: w.cfg.Prefix, Kafka: w.letters, Log: log},
		Letters: func(sink string) *dlq.Letters { return (&desk{w.process, w.letters}).box(sink) },
		Log:     w.letters, Sinks: w.cfg.SinkNames, Metrics: metrics, Notes: log,
		Store: w.store, Held: w.heldBy, Refuses: w.refuses,
		Unreadable: func(ctx context.Context, table string, keys [][]byte) (map[int]string, error) {
			return mysql.Unreadable(ctx, w.cfg.Source, tableNamed(table), keys)
		},
		Read: func(ctx context.Context, id, table, reason string, keys [][]byte) error {
			r := cdc.SnapshotRequest{ID: id, Table: table, Reason: reason, Want: cdc.SnapshotRunning, AtMicros: time.Now().UnixMicro()}
			for _, key := range keys {
				r.Keys = append(r.Keys, json.RawMessage(key))
			}
			return w.ask(ctx, r)
		},
		Stop: func(ctx context.Context, id, table string) error {
			return w.ask(ctx, cdc.SnapshotRequest{ID: id, Table: table, Want: cdc.SnapshotCancelled, AtMicros: time.Now().UnixMicro()})
		},
		Readings: w.readings,
		Progress: func(ctx context.Context, sink, table string) (ends, committed map[int]int64, err error) {
			topic, err := kafka.ChangeTopic(w.cfg.Prefix, tableNamed(table))
			if err != nil {
				return nil, nil, err
			}
			return w.kafka.Progress(ctx, w.group(sink), topic)
		},
		Over: func(ctx context.Context, s dlq.JobStatus) error { return writeEnd(ctx, records, s) },
	}
}

func tableNamed(name string) cdc.TableName {
	db, table, _ := strings.Cut(name, ".")
	return cdc.TableName{DB: db, Table: table}
}

// store is what takes recorded changes for a sink: the worker of this process, with its
// breakers and its pool of calls, or a store of its own.
func (w *replayWorld) store(ctx context.Context, sink string) (sinks.Sink, dlq.ReplayOptions, error) {
	opt := dlq.ReplayOptions{Gone: func(ctx context.Context, table cdc.TableName, keys [][]byte) (map[string]bool, error) {
		return mysql.Gone(ctx, w.cfg.Source, table, keys)
	}}
	pos, err := w.position(ctx)
	if err != nil {
		return nil, opt, err
	}
	opt.Barriers = pos.Barriers
	if local, ok := w.workers.find(sink); ok {
		opt.Moves, opt.Remembers = local.store.movesRow, local.store.remembers
		return tries{local, w.cfg.Prefix}, opt, nil
	}
	w.opening.Lock()
	defer w.opening.Unlock()
	s := w.stores[sink]
	if s == nil {
		if s, err = w.openSink(ctx, sink); err != nil {
			return nil, opt, err
		}
		w.stores[sink] = s
	}
	opt.Moves, opt.Remembers = s.movesRow, s.remembers
	return s, opt, nil
}

func (w *replayWorld) close() {
	for _, s := range w.stores {
		s.close()
	}
}

// tries is a worker's Try as a sink.
type tries struct {
	worker
	prefix string
}

// Apply gives the changes of each table to the worker.
func (t tries) Apply(ctx context.Context, changes []cdc.Change) []sinks.Outcome {
	byTable := map[cdc.TableName][]int{}
	for i := range changes {
		byTable[changes[i].Table] = append(byTable[changes[i].Table], i)
	}
	outcomes := make([]sinks.Outcome, len(changes))
	for table, some := range byTable {
		of := make([]cdc.Change, len(some))
		for n, i := range some {
			of[n] = changes[i]
		}
		topic, err := kafka.ChangeTopic(t.prefix, table)
		if err != nil {
			for _, i := range some {
				outcomes[i] = sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassNoTable, Reason: err.Error()}
			}
			continue
		}
		for n, o := range t.try(ctx, topic, of) {
			outcomes[some[n]] = o
		}
	}
	return outcomes
}

// Sweep is not for replays.
func (t tries) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) {
	return 0, errors.New("a replay sweeps nothing")
}

// heldBy says why changes of a table do not get on in a sink of this process. A table that
// is held goes on by itself; a store that was away is found to be back by who calls it, so
// nobody may wait for that.
func (w *replayWorld) heldBy(sink, table string) (why string, wait bool) {
	if d := w.board.Decision(route.Place{Sink: sink, Table: table}); d.Stops.Replays {
		return fmt.Sprintf("table %s is degraded there, so replays wait: %s", table, d.Reason), true
	}
	local, ok := w.workers.find(sink)
	if !ok {
		return "", false
	}
	s := local.status()
	if s.Breaker.State != "closed" {
		return "its breaker is " + s.Breaker.State + because(s.Breaker.Reason), false
	}
	for _, t := range s.Tables {
		switch {
		case t.Table != table:
		case t.Held != nil:
			return fmt.Sprintf("table %s is held by %s%s", table, t.Held.By, because(t.Held.Reason)), t.Held.By != sinks.ByStore
		case t.Breaker.State != "closed":
			return fmt.Sprintf("the breaker of table %s is %s%s", table, t.Breaker.State, because(t.Breaker.Reason)), true
		}
	}
	return "", false
}

// refuses says why rows of a table cannot be read again for a sink.
func (w *replayWorld) refuses(sink, table string) string {
	name := tableNamed(table)
	if !w.captured(name) {
		return "the table " + table + " is not captured any more, so nobody can read its row again; --mode payload sends what was recorded"
	}
	s := w.cfg.Sinks[sink]
	_, elastic := w.cfg.ElasticTable(name)
	_, redis := w.cfg.RedisTable(name)
	if s.Elastic != nil && !elastic || s.Redis != nil && !redis {
		return "the sink does not take the table " + table + " any more; skip the letter"
	}
	return ""
}

func (w *replayWorld) ask(ctx context.Context, r cdc.SnapshotRequest) error {
	w.asking.Lock()
	defer w.asking.Unlock()
	return w.requests.Ask(ctx, r)
}

// positionAge is how old a position may be that is used instead of reading it again.
const positionAge = 500 * time.Millisecond

func (w *replayWorld) position(ctx context.Context) (cdc.Position, error) {
	w.asking.Lock()
	defer w.asking.Unlock()
	if time.Since(w.posAt) < positionAge {
		return w.pos, nil
	}
	pos, _, err := kafka.PeekCheckpoint(ctx, w.kafka, w.cfg.Prefix)
	if err == nil {
		w.pos, w.posAt = pos, time.Now()
	}
	return pos, err
}

// readings says how far the capture is with requests. One that is gone when its snapshot is
// looked for has ended, and one that is not kept any more was done.
func (w *replayWorld) readings(ctx context.Context, ids []string) (map[string]dlq.Reading, error) {
	w.asking.Lock()
	defer w.asking.Unlock()
	news, err := w.requests.Poll(ctx)
	if err != nil {
		return nil, err
	}
	if w.stand == nil {
		w.stand = map[string]bool{}
	}
	for _, r := range news {
		if w.stand[r.ID] = true; r.Want == "" {
			delete(w.stand, r.ID)
		}
	}
	if w.pos, _, err = kafka.PeekCheckpoint(ctx, w.kafka, w.cfg.Prefix); err != nil {
		return nil, err
	}
	w.posAt = time.Now()
	readings := map[string]dlq.Reading{}
	for _, id := range ids {
		r := dlq.Reading{}
		if !w.stand[id] {
			r.State = cdc.SnapshotDone
		}
		readings[id] = r
	}
	for _, sn := range w.pos.Snapshots {
		if _, ok := readings[sn.ID]; ok {
			readings[sn.ID] = dlq.Reading{State: sn.State, Problem: sn.Problem, Rows: sn.Rows}
		}
	}
	return readings, nil
}

// writeEnd writes into the audit log how a replay ended, once.
func writeEnd(ctx context.Context, log *audit.Log, s dlq.JobStatus) error {
	act := audit.Act{
		Actor: s.Actor, Via: "replay", Name: "dlq.replay.end", Reason: s.Reason,
		Filter: map[string]string{"job": s.ID, "mode": string(s.Mode), "state": string(s.State)},
		// No request over HTTP has a slash in its ID.
		Request: "job/" + s.ID, Body: s.ID,
	}
	entry, known, err := log.Begin(ctx, act)
	if known != nil || err != nil {
		return err
	}
	r := audit.Result{Outcome: audit.Done, Problem: s.Problem, Counts: map[string]int{"letters": s.Total}, Answer: &audit.Answer{Status: 200, Body: json.RawMessage("{}")}}
	for fate, n := range s.Letters {
		if n > 0 {
			r.Counts[string(fate)] = n
		}
	}
	if s.State == dlq.JobStopped || s.State == dlq.JobFailed {
		r.Outcome = audit.Failed
	}
	return entry.End(ctx, r)
}
