package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"lockstep/admin"
	"lockstep/audit"
	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/config"
	"lockstep/dlq"
	"lockstep/freshness"
	"lockstep/kafka"
	"lockstep/reconcile"
	"lockstep/route"
	"lockstep/sinks"
	"lockstep/sinks/elastic"
	"lockstep/tracing"
)

// process is one running lockstep, as a part of it sees it: with the configuration under
// which that part runs, which stays as it is, and what all parts share.
type process struct {
	cfg    *config.Config
	memory *sinks.Memory // of all sinks
	*shared
}

// shared is what the parts of a process share.
type shared struct {
	settings settings
	log      *slog.Logger
	level    *slog.LevelVar // of the log
	registry *prometheus.Registry
	kafka    *kafka.Client
	ready    readiness
	loading  chan struct{} // room for those who read their dead letters
	workers  workers
	clock    *mysql.WallClock
	tracer   *tracing.Tracer // nil: nobody is told
	board    *route.Board
	restored atomic.Bool // the board knows what was known before
	started  time.Time
	id       string // of this run, among the watermarks
	hub      *freshness.Hub
	barrier  *freshness.Barrier
	commits  *commits // what the source has committed
	ages     ages
	compares atomic.Pointer[reconcile.Metrics] // while this process may compare
	metrics  struct {
		kafka   *kafka.Metrics
		sinks   *sinks.Metrics
		elastic *elastic.Metrics
		admin   *admin.Metrics
		dlq     *dlq.Metrics

		freshness *freshness.Metrics
		reload    *reloadMetrics
	}
	configured func() configStatus // nil in a command that answers once
}

func newProcess(cfg *config.Config, log *slog.Logger) (*process, error) {
	client, err := kafka.Open(cfg.Kafka, "lockstep-"+cfg.Prefix, log)
	if err != nil {
		return nil, err
	}
	p := &process{cfg: cfg, memory: sinks.NewMemory(cfg.Worker.MemoryBytes), shared: &shared{
		log: log, level: new(slog.LevelVar), registry: prometheus.NewRegistry(), kafka: client, loading: make(chan struct{}, 1), started: time.Now(),
	}}
	p.settings.view.Store(p)
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.registry.MustRegister(newBuildInfo(cfg.Prefix), newKafkaUnavailable(client))
	p.metrics.kafka = kafka.NewMetrics(p.registry)
	p.metrics.sinks = sinks.NewMetrics(p.registry)
	p.metrics.elastic = elastic.NewMetrics(p.registry)
	p.metrics.admin = admin.NewMetrics(p.registry)
	p.metrics.dlq = dlq.NewMetrics(p.registry)
	p.metrics.freshness = freshness.NewMetrics(p.registry)
	p.metrics.reload = newReloadMetrics(p.registry)
	p.registry.MustRegister(&p.workers)
	p.ages.changes = func(topic string) bool { _, ok := kafka.TableOf(cfg.Prefix, topic); return ok }
	fetched, applied := p.metrics.sinks.Ages()
	p.ages.add("acked", p.metrics.kafka.AckAge())
	p.ages.add("fetched", fetched)
	p.ages.add("applied", applied)
	p.ages.add("searchable", p.metrics.elastic.Searchable())
	p.clock = &mysql.WallClock{Config: cfg.Source, Log: log, Metrics: mysql.NewWallClockMetrics(p.registry)}
	if p.tracer, err = tracing.Open(cfg.Tracing, cfg.Prefix, version, p.clock.At, tracing.NewMetrics(p.registry), log); err != nil {
		return nil, err
	}
	p.id, p.commits = uuid.NewString(), newCommits(cfg.Source)
	p.board = p.newBoard()
	p.hub = p.newHub()
	p.barrier = p.newBarrier()
	return p, nil
}

// parts says what a process does.
type parts struct {
	capture *captureFlags // nil: no capture
	sinks   []string
	compare []string // the sinks that are compared with the source
	admin   bool     // nothing but the API
	enabled bool     // they are only while reconcile.enabled says so
}

// serve runs the parts until ctx ends or one of them cannot go on; its error
// stops the others.
func (a *app) serve(ctx context.Context, what parts) error {
	hup := hangUps()
	file, err := a.readConfig(ctx)
	if err != nil {
		return err
	}
	cfg := file.cfg
	for _, name := range what.sinks {
		if _, err := a.sinkNamed(cfg, name); err != nil {
			return err
		}
	}
	if what.capture != nil {
		if what.capture.actor, err = a.who(); err != nil {
			return err
		}
		if err := cfg.Source.TLS.CheckFiles(); err != nil {
			return err
		}
	}
	level := levelOf(cfg)
	log := a.logger(cfg, level)
	slog.SetDefault(log) // what libraries write by themselves
	if cfg.Log.Format == "json" {
		a.last = log
	}
	p, err := newProcess(cfg, log)
	if err != nil {
		return err
	}
	p.level = level
	server, err := p.listenAdmin()
	if err != nil {
		return err
	}
	watched, err := p.listenMetrics()
	if err != nil {
		return err
	}
	if _, err := a.openConfigMap(cfg); err != nil {
		return err
	}
	reload := p.newReloader(a, file, server)
	log.Info("lockstep starts", "version", version, "admin", server.addr(), "metrics", watched.addr())
	outer := ctx
	g, ctx := errgroup.WithContext(outer)
	g.Go(func() error { return server.run(ctx) })
	g.Go(func() error { return watched.run(ctx) })
	defer p.stopTracing()
	g.Go(func() error { return reload.run(ctx, hup) })
	g.Go(func() error {
		return p.under(ctx, clockPart, func(ctx context.Context, p *process) error { p.runClock(ctx); return nil })
	})
	listening, deaf := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return p.hub.Run(listening) })
	g.Go(func() error {
		defer deaf()
		return p.hub.Announce(ctx, p.announce)
	})
	g.Go(func() error { return p.runRoute(ctx) })
	g.Go(func() error { return p.keepRoute(ctx) })
	mapped := sync.OnceValue(func() *kafka.LeaseMetrics { return newConfigMapLeaseMetrics(p.registry) })
	g.Go(func() error {
		return p.under(ctx, configMapPart, func(ctx context.Context, p *process) error {
			published, err := a.openConfigMap(p.cfg)
			if err != nil || published == nil {
				return idle(ctx, err)
			}
			return p.runConfigMap(ctx, published, mapped())
		})
	})
	if what.capture != nil {
		g.Go(func() error { return p.standby(ctx, *what.capture) })
	}
	if len(what.sinks) > 0 {
		a.collectLess(cfg.Worker)
		replays, lease := dlq.NewJobMetrics(p.registry), newReplaysLeaseMetrics(p.registry)
		g.Go(func() error { return p.runSinks(ctx, what.sinks) })
		g.Go(func() error {
			return p.under(ctx, replaysPart, func(ctx context.Context, p *process) error { return p.runReplays(ctx, replays, lease) })
		})
	}
	if len(what.compare) > 0 {
		metrics := sync.OnceValue(func() *reconcile.Metrics { return reconcile.NewMetrics(p.registry) })
		lease := sync.OnceValue(func() *kafka.LeaseMetrics { return newReconcileLeaseMetrics(p.registry) })
		g.Go(func() error {
			return p.under(ctx, reconcilePart, func(ctx context.Context, p *process) error {
				if what.enabled && !p.cfg.Reconcile.Enabled {
					return p.compareNothing(ctx)
				}
				return p.runReconcile(ctx, what.compare, metrics(), lease())
			})
		})
	}
	if what.admin {
		p.ready.add("admin", func() bool { return true }) // it answers
	}
	whole, err := finish(outer, ctx, g, stopWithin)
	if !whole {
		log.Warn("some connection did not close in time; stopping without it")
		return err
	}
	p.kafka.Close()
	p.commits.Close()
	log.Info("lockstep stopped", "cleanly", err == nil)
	return err
}

// idle is a part that has nothing to do.
func idle(ctx context.Context, err error) error {
	if err == nil {
		<-ctx.Done()
	}
	return err
}

// collectLess has the garbage collector come half as often while the process is small
// beside what it may have, which is four times worker.memory_bytes: what a sink makes is
// soon dead. GOGC and GOMEMLIMIT of the environment have the last word.
func (a *app) collectLess(cfg sinks.Config) {
	if _, set := a.env("GOGC"); !set {
		debug.SetGCPercent(200)
	}
	if _, set := a.env("GOMEMLIMIT"); !set {
		debug.SetMemoryLimit(max(int64(cfg.MemoryBytes), 64<<20) * 7 / 2)
	}
}

// stopWithin is how long a stop may take: less than the 10 seconds promised.
const stopWithin = 9 * time.Second

// finish waits for parts that run in the context that outer's end, or the first of them that fails,
// ends, and gives the error of that one. It waits no longer than this after that end, and then they have
// not come to theirs as a whole: everything that counts is written down before, what still waits is a
// server that does not answer, and it is safe to leave.
func finish(outer, ctx context.Context, g *errgroup.Group, within time.Duration) (whole bool, err error) {
	ended := make(chan error, 1)
	go func() { ended <- g.Wait() }()
	overdue := make(chan struct{})
	context.AfterFunc(ctx, func() { time.AfterFunc(within, func() { close(overdue) }) })
	select {
	case err := <-ended:
		return true, err
	case <-overdue:
	}
	if err = context.Cause(ctx); errors.Is(err, context.Cause(outer)) {
		err = nil
	}
	return false, err
}

// capture reads the source into Kafka until ctx ends; running is told of the
// source. The publisher outlives the reader, so that what was read gets safe before
// the process ends.
func (p *process) capture(ctx context.Context, flags captureFlags, metrics *mysql.Metrics, running func(*mysql.Source)) error {
	from, epoch, err := p.startingPoint(ctx, flags)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if err := p.writeDown(ctx, flags.acts()); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if from != nil {
		from.Term++ // what an earlier capture still saves counts no more
	}
	log := p.log.With("part", "capture")
	publisher := kafka.NewPublisher(p.kafka, p.cfg.Kafka, p.metrics.kafka, log)
	publisher.Clock(p.clock.At)
	out := kafka.NewChangeLog(p.kafka, publisher, p.cfg.Prefix, p.cfg.Kafka, p.metrics.kafka, log)
	out.Traced(p.tracer.Captured)
	requests := kafka.NewSnapshotRequests(p.kafka, publisher, p.cfg.Prefix, log)
	source := &mysql.Source{
		Config: p.cfg.Source, Match: p.captured, Out: out, Log: log, Metrics: metrics, Clock: p.clock,
		From: from, FirstEpoch: epoch, MayCopy: p.mayCopy(flags), Saved: p.saved, SkipGTID: flags.skipGTID,
		Resnapshot: flags.resnapshot && from != nil, OnGap: flags.onGap, Published: p.published,
		Requests: requests, Tracing: p.traced(),
		Repair: func(ctx context.Context, ask []cdc.SnapshotRequest) error { return requests.Ask(ctx, ask...) },
	}
	running(source)
	commits := &mysql.Commits{Config: p.cfg.Source}
	defer commits.Close()
	answers := p.newAnswers(source, publisher, out, requests, commits)
	g, reading := errgroup.WithContext(ctx)
	writing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g.Go(func() error { return publisher.Run(writing) })
	g.Go(func() error { return out.Run(writing) })
	g.Go(func() error { return answers.Run(reading) })
	g.Go(func() error {
		defer stop()
		if err := p.grow(reading, out); err != nil {
			if reading.Err() != nil {
				return nil
			}
			return err
		}
		if from != nil && !flags.resnapshot {
			if err := p.askForTopics(reading, from.Copied, requests); err != nil && reading.Err() == nil {
				return err
			}
		}
		return source.Run(reading)
	})
	return g.Wait()
}

// writeDown writes acts into the audit log that are about to be done by the capture.
func (p *process) writeDown(ctx context.Context, acts []audit.Act) error {
	log := &audit.Log{Prefix: p.cfg.Prefix, Kafka: &rareLog{p.newLetterLog()}}
	for _, act := range acts {
		if err := log.Do(ctx, act, func() (map[string]int, error) { return nil, nil }); err != nil {
			return fmt.Errorf("nothing was done, because it cannot be written down first: %w", err)
		}
	}
	return nil
}

// grow gives the topics of changes the partitions that the configuration says, once the
// topics of dead letters have them.
func (p *process) grow(ctx context.Context, out *kafka.ChangeLog) error {
	topics, err := p.changeTopics(ctx)
	if err != nil {
		return err
	}
	return out.Grow(ctx, topics, func(ctx context.Context) error {
		for _, name := range p.cfg.SinkNames() {
			if err := p.kafka.EnsureTopic(ctx, p.lettersSpec(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *process) lettersSpec(sink string) kafka.TopicSpec {
	return dlq.Topic(p.cfg.Prefix, sink, p.cfg.Kafka.Partitions, p.cfg.Kafka.MaxRecordBytes)
}

// askForTopics has those tables copied again whose topic is gone, and with it what no
// sink had read, or was made again since and has nothing. A table that never had a row has
// no topic either; its copy makes it.
func (p *process) askForTopics(ctx context.Context, copied []string, requests *kafka.SnapshotRequests) error {
	var ask []cdc.SnapshotRequest
	for _, name := range copied {
		topic, err := kafka.ChangeTopic(p.cfg.Prefix, tableNamed(name))
		if err != nil {
			return err
		}
		used, err := p.kafka.Used(ctx, topic)
		if err != nil {
			return err
		}
		if now := time.Now().UnixMicro(); !used {
			ask = append(ask, cdc.SnapshotRequest{
				ID: fmt.Sprintf(cdc.LostPrefix+"topic-%s-%d", name, now), Table: name, Want: cdc.SnapshotRunning, Sweep: true, AtMicros: now,
				Reason: "there is nothing in the topic " + topic,
			})
		}
	}
	if len(ask) == 0 {
		return nil
	}
	return requests.Ask(ctx, ask...)
}

// captured reports whether a table is configured.
func (p *process) captured(t cdc.TableName) bool {
	_, ok := p.cfg.MatchTable(t)
	return ok
}

// startingPoint finds the saved position, nil when there is none, and what says with
// which epoch a new copy of every table begins.
func (p *process) startingPoint(ctx context.Context, flags captureFlags) (*cdc.Position, func(context.Context) (uint16, error), error) {
	saved, found, err := kafka.LoadCheckpoint(ctx, p.kafka, p.cfg.Prefix)
	if err != nil {
		return nil, nil, err
	}
	if found && !flags.resnapshot && flags.epoch > 0 {
		return nil, nil, fmt.Errorf("--epoch %d has no place here: a position of epoch %d is saved; leave it out, or add --resnapshot to begin anew", flags.epoch, saved.Epoch)
	}
	var from *cdc.Position
	if found {
		from = &saved
	}
	return from, func(ctx context.Context) (uint16, error) {
		last, err := p.lastEpoch(ctx)
		if err != nil {
			return 0, err
		}
		last = max(last, saved.Epoch)
		switch {
		case flags.epoch > 0 && flags.epoch <= last:
			return 0, fmt.Errorf("--epoch %d is not above %d, which records in Kafka have already", flags.epoch, last)
		case flags.epoch > 0:
			first := flags.epoch
			flags.epoch = 0 // it is asked for once
			return first, nil
		}
		if last > 0 && !found {
			p.log.Warn("no position is saved, so every table is copied again under a new epoch, and then what is not in it any more is swept from the sinks", "last_epoch", last)
		}
		return last + 1, nil
	}, nil
}

func (p *process) saved(ctx context.Context) (cdc.Position, bool, error) {
	return kafka.LoadCheckpoint(ctx, p.kafka, p.cfg.Prefix)
}

// lastEpoch is the highest epoch among the newest records of the change topics,
// 0 when there are none.
func (p *process) lastEpoch(ctx context.Context) (uint16, error) {
	topics, err := p.changeTopics(ctx)
	if err != nil {
		return 0, err
	}
	var last uint16
	for _, topic := range topics {
		records, err := p.kafka.Newest(ctx, topic)
		if err != nil {
			return 0, err
		}
		for _, r := range records {
			if c, err := cdc.Decode(r.Key, r.Value, r.Headers); err == nil {
				last = max(last, c.Version.Epoch())
				if c.Op.OfTable() && c.Version.Seq() == cdc.MaxSeq { // the sweep behind the end of an epoch
					last = max(last, c.Version.Epoch()+1)
				}
			}
		}
	}
	return last, nil
}

// published gives what Kafka holds of captured tables since a time. Records that no
// capture wrote are left to the sinks.
func (p *process) published(ctx context.Context, since time.Time, fn func(c *cdc.Change, partition int, cut bool) error) error {
	topics, err := p.changeTopics(ctx)
	if err != nil {
		return err
	}
	return p.kafka.Scan(ctx, topics, since, func(r kafka.Record, cut bool) error {
		c, err := cdc.DecodeHeaders(r.Key, r.Headers)
		if err != nil || c.Op == cdc.OpGrowth {
			return nil
		}
		return fn(&c, r.Partition, cut)
	})
}

// mayCopy refuses the first copy of a table that a sink cannot hold, or of which it
// has rows already that this pipeline did not write: their versions are unknown, and
// where they are higher every later change of those rows would count as stale. It waits
// for a store that does not answer.
func (p *process) mayCopy(flags captureFlags) func(context.Context, cdc.Table) (bool, error) {
	return func(ctx context.Context, t cdc.Table) (known bool, err error) {
		known, err = p.hasRecords(ctx, t.Name)
		if err != nil {
			return known, err
		}
		known = known || flags.epoch > 0
		for _, name := range p.cfg.SinkNames() {
			// What is to become of rows may have changed since the capture began.
			if err := p.now().mayTake(ctx, name, t, known); err != nil {
				return known, fmt.Errorf("sink %s: %w", name, err)
			}
		}
		return known, nil
	}
}

func (p *process) mayTake(ctx context.Context, sink string, t cdc.Table, known bool) error {
	s, err := p.openSink(ctx, sink)
	if err != nil {
		return err
	}
	defer s.close()
	wait := &backoff.ExponentialBackOff{InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: 5 * time.Second, RandomizationFactor: 0.3}
	for said := false; ; said = true {
		err := s.mayTake(ctx, t, known)
		if !errors.Is(err, errUnasked) || ctx.Err() != nil {
			return err
		}
		if !said {
			p.log.Warn("the first copy of a table waits for a store that does not answer", "sink", sink, "table", t.Name.String(), "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait.NextBackOff()):
		}
	}
}

// traced says which changes are traced.
func (p *process) traced() mysql.Tracing {
	if p.tracer == nil {
		return mysql.Tracing{}
	}
	return mysql.Tracing{Comments: p.cfg.Tracing.Comments, Share: p.cfg.Tracing.Sample}
}

// stopTracing sends what is left to tell, for a moment.
func (p *process) stopTracing() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = p.tracer.Close(ctx)
}

// hasRecords reports whether this pipeline has ever published changes of a table.
func (p *process) hasRecords(ctx context.Context, t cdc.TableName) (bool, error) {
	topic, err := kafka.ChangeTopic(p.cfg.Prefix, t)
	if err != nil {
		return false, nil // nothing can have been
	}
	return p.kafka.Used(ctx, topic)
}

// changeTopics lists the topics of configured tables.
func (p *process) changeTopics(ctx context.Context) ([]string, error) {
	return p.topicsOf(ctx, p.captured)
}

func (p *process) topicsOf(ctx context.Context, takes func(cdc.TableName) bool) ([]string, error) {
	all, err := p.kafka.Topics(ctx)
	if err != nil {
		return nil, err
	}
	var topics []string
	for _, topic := range all {
		if table, ok := kafka.TableOf(p.cfg.Prefix, topic); ok && takes(table) {
			topics = append(topics, topic)
		}
	}
	return topics, nil
}

// runSinks runs the named sinks until ctx ends.
func (p *process) runSinks(ctx context.Context, names []string) error {
	return p.withLetterLog(ctx, func(ctx context.Context, letters *letterLog) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, name := range names {
			g.Go(func() error {
				return p.under(ctx, sinkPart(name), func(ctx context.Context, p *process) error {
					if err := p.runSink(ctx, name, letters); err != nil && ctx.Err() == nil {
						return fmt.Errorf("sink %s: %w", name, err)
					}
					return nil
				})
			})
		}
		return g.Wait()
	})
}

func (p *process) runSink(ctx context.Context, name string, log *letterLog) error {
	store, err := p.openSink(ctx, name)
	if err != nil {
		return err
	}
	defer store.close()
	spec, report := p.lettersSpec(name), p.newReport(name)
	if err := p.lostLetters(ctx, name, spec.Name, store.takes, log, report); err != nil {
		return err
	}
	if err := p.kafka.EnsureTopic(ctx, spec); err != nil {
		return err
	}
	if err := p.checkShapes(ctx, store); err != nil {
		return err
	}
	again := p.newRefill(name, log, report)
	began := &beginnings{
		committed: func(ctx context.Context, t cdc.TableName) (int64, error) { return p.committed(ctx, name, t) },
		known:     make(map[cdc.TableName]int64),
	}
	if store.refill != nil {
		store.refill(p.lostIndex(name, began, again))
	}
	tuning := p.cfg.Worker
	tuning.StopWithin = min(tuning.StopWithin, p.kafka.DrainTime()*4/5) // the commit comes after it
	posts := &dlq.Posts{
		Letters: &dlq.Letters{Sink: name, Topic: spec.Name, App: version, Log: log}, Log: log,
		Retries: tuning.Retries, HoldMin: tuning.HoldMin, HoldMax: tuning.HoldMax,
		Loading: p.loading, Metrics: p.metrics.dlq,
	}
	crew := &sinks.Worker{
		Name: name, Sink: posts.Guard(store), Bury: posts.Bury, Settled: posts.Settled, Filter: store.takes,
		Progress: func(ctx context.Context, topic string) (ends, committed map[int]int64, err error) {
			return p.progress(ctx, name, store, topic)
		},
		Moved: report.Moved, Moves: store.moves, Memory: p.memory, Clock: p.clock.At, Log: p.log, Metrics: p.metrics.sinks, Config: tuning,
		Traced: func(c *cdc.Change, fetched, settled time.Time, outcome string) {
			p.tracer.Settled(name, c, fetched, settled, outcome)
		},
	}
	posts.Try = crew.Try
	runPosted := func(ctx context.Context, part sinks.Partition) error {
		return posts.RunPartition(ctx, part, crew.RunPartition)
	}
	run := func(ctx context.Context, part sinks.KafkaPartition) error { return runPosted(ctx, part) }
	if store.mark != nil {
		keeper := p.newKeeper(name, store, tuning, again)
		run = func(ctx context.Context, part sinks.KafkaPartition) error {
			return keeper.RunPartition(ctx, part, runPosted)
		}
	}
	status := func() sinks.Status {
		s := withHeld(crew.Status(), store.held)
		s.Retrying = posts.Retrying()
		open, all := posts.Open() // afterwards: whatever counts as applied and is a letter is there by now
		return withLetters(s, open, all)
	}
	told := ctx
	p.workers.add(worker{name: name, kind: p.cfg.Sinks[name].Store(), store: store, try: crew.Try, status: status, ending: func() bool { return told.Err() != nil }})
	defer p.workers.drop(name)
	report.Shown, report.Letters, report.State, report.Latencies = crew.Shown, posts.OpenIn, status, crew.Latencies
	// One that got no partition, because others have them all, is as ready as it can be.
	var member atomic.Bool
	p.ready.add("sink "+name, member.Load)
	p.log.Info("sink starts", "sink", name, "store", p.cfg.Sinks[name].Store())
	topics := func(ctx context.Context) ([]string, error) { return p.topicsOf(ctx, store.takes) }
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return report.Run(ctx) })
	if store.run != nil {
		g.Go(func() error {
			return store.run(ctx, func(ctx context.Context) (tables []cdc.TableName, err error) {
				names, err := topics(ctx)
				for _, topic := range names {
					if t, ok := kafka.TableOf(p.cfg.Prefix, topic); ok {
						tables = append(tables, t)
					}
				}
				return tables, err
			})
		})
	}
	g.Go(func() error {
		return p.kafka.Consume(ctx, kafka.ConsumeConfig{
			Group: p.group(name), Topics: topics, Member: member.Store,
			Metrics: p.metrics.kafka, Log: p.log.With("sink", name),
			Handle: func(ctx context.Context, part *kafka.Partition) error {
				defer report.Own(part.Topic, part.ID, part)()
				if t, ok := kafka.TableOf(p.cfg.Prefix, part.Topic); ok && store.refill != nil {
					if _, err := began.of(ctx, t); err != nil {
						return err
					}
				}
				return run(ctx, sinks.KafkaPartition{Partition: part})
			},
		})
	})
	return g.Wait()
}

// progress is how far a sink is in the partitions of a topic. What its store has lost is not
// behind it, whatever was committed.
func (p *process) progress(ctx context.Context, sink string, s *store, topic string) (ends, committed map[int]int64, err error) {
	ends, committed, err = p.kafka.Progress(ctx, p.group(sink), topic)
	if err != nil || s.marks == nil {
		return ends, committed, err
	}
	marks, err := s.marks(ctx, p.group(sink))
	for id := range committed {
		committed[id] = min(committed[id], marks[fmt.Sprintf("%s/%d", topic, id)])
	}
	return ends, committed, err
}

// newKeeper mends what the store of a sink loses.
func (p *process) newKeeper(name string, s *store, tuning sinks.Config, again refill) *sinks.Keeper {
	return &sinks.Keeper{
		Name: name, Log: p.log, Metrics: p.metrics.sinks, Config: tuning, Sweep: s.Sweep,
		Find: func(ctx context.Context, topic string, partition int) (sinks.Mark, error) {
			return s.mark(ctx, p.group(name), topic, partition)
		},
		Lost: func(ctx context.Context, topic, id string) error {
			table, ok := kafka.TableOf(p.cfg.Prefix, topic)
			if !ok {
				return fmt.Errorf("topic %s is not a table's", topic)
			}
			return again(ctx, table, id)
		},
	}
}

// refill has the capture copy a table that the store of a sink has lost, once for each
// ID of a loss.
type refill func(ctx context.Context, t cdc.TableName, id string) error

func (p *process) newRefill(sink string, log *letterLog, report *freshness.Report) refill {
	requests := kafka.NewSnapshotRequests(p.kafka, log.publisher, p.cfg.Prefix, p.log.With("sink", sink))
	var asking sync.Mutex
	return func(ctx context.Context, t cdc.TableName, id string) error {
		asking.Lock()
		defer asking.Unlock()
		err := requests.Ask(ctx, cdc.SnapshotRequest{
			ID: fmt.Sprintf(cdc.LostPrefix+"%s-%s-%s", sink, t, id), Table: t.String(), Want: cdc.SnapshotRunning, AtMicros: time.Now().UnixMicro(),
			Reason: "the store of sink " + sink + " has lost it",
		})
		if err != nil {
			return err
		}
		return p.noteRefill(ctx, report, t.String())
	}
}

// committed is how many changes of a table were committed for a sink.
func (p *process) committed(ctx context.Context, sink string, t cdc.TableName) (done int64, err error) {
	topic, err := kafka.ChangeTopic(p.cfg.Prefix, t)
	if err != nil {
		return 0, err
	}
	_, committed, err := p.kafka.Progress(ctx, p.group(sink), topic)
	for _, offset := range committed {
		done += offset
	}
	return done, err
}

// beginnings knows how many changes of each table were committed for a sink when this
// process came to it. What is committed later says nothing of an index that was not
// there yet: changes that newer ones of their rows replace need no store.
type beginnings struct {
	committed func(context.Context, cdc.TableName) (int64, error)

	mu    sync.Mutex
	known map[cdc.TableName]int64
}

func (b *beginnings) of(ctx context.Context, t cdc.TableName) (done int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	done, known := b.known[t]
	if known {
		return done, nil
	}
	if done, err = b.committed(ctx, t); err == nil {
		b.known[t] = done
	}
	return done, err
}

// lostIndex tells whether a table whose index is not there, or is new, had one, as this process has
// seen or as the changes show that were committed before, and has the table copied again
// then.
func (p *process) lostIndex(sink string, began *beginnings, again refill) func(context.Context, cdc.TableName, bool) (bool, error) {
	return func(ctx context.Context, t cdc.TableName, had bool) (bool, error) {
		done, err := began.of(ctx, t)
		if err == nil && had {
			done, err = began.committed(ctx, t)
		}
		if err != nil || done == 0 {
			return false, err
		}
		p.log.Warn("the index of a table is gone, or is another one: the table is copied again", "sink", sink, "table", t.String())
		return true, again(ctx, t, fmt.Sprint(done))
	}
}

// lostLetters has the tables of a sink copied again when it has read of them and has no
// topic of dead letters: nobody knows any more what its store has refused. The copy brings
// those rows, and takes away what is deleted; what is refused still is a letter again.
func (p *process) lostLetters(ctx context.Context, sink, topic string, takes func(cdc.TableName) bool, log *letterLog, report *freshness.Report) error {
	all, err := p.kafka.Topics(ctx)
	if err != nil || slices.Contains(all, topic) {
		return err
	}
	var ask []cdc.SnapshotRequest
	var tables []string
	for _, of := range all {
		t, ok := kafka.TableOf(p.cfg.Prefix, of)
		if !ok || !p.captured(t) || !takes(t) {
			continue
		}
		done, err := p.committed(ctx, sink, t)
		if err != nil {
			return err
		}
		if done > 0 {
			ask = append(ask, cdc.SnapshotRequest{
				ID: fmt.Sprintf(cdc.LostPrefix+"letters-%s-%s-%d", sink, t, done), Table: t.String(), Want: cdc.SnapshotRunning, Sweep: true, AtMicros: time.Now().UnixMicro(),
				Reason: "the dead letters of sink " + sink + " are gone",
			})
			tables = append(tables, t.String())
		}
	}
	if len(ask) == 0 {
		return nil
	}
	p.log.Warn("the topic of dead letters is gone, and with it what the store has refused: the tables are copied again", "sink", sink, "topic", topic, "tables", len(ask))
	if err := kafka.NewSnapshotRequests(p.kafka, log.publisher, p.cfg.Prefix, p.log.With("sink", sink)).Ask(ctx, ask...); err != nil {
		return err
	}
	return p.noteRefill(ctx, report, tables...)
}

// group is the consumer group of a sink.
func (p *process) group(sink string) string { return p.cfg.Prefix + "." + sink }

// letterLog is what dead letters are written to and read from.
type letterLog struct {
	*kafka.Client
	publisher *kafka.Publisher
	fresh     func() *kafka.Publisher // makes another one
}

func (p *process) newLetterLog() *letterLog {
	cfg := p.cfg.Kafka
	cfg.MaxRecordBytes += dlq.HeaderBytes // a letter is its record and what is said of it
	fresh := func() *kafka.Publisher {
		return kafka.NewPublisher(p.kafka, cfg, p.metrics.kafka, p.log.With("part", "dead letters"))
	}
	return &letterLog{p.kafka, fresh(), fresh}
}

// withLetterLog does something with a log of its own. The log's publisher outlives it, so
// that what was written gets safe before the process ends.
func (p *process) withLetterLog(ctx context.Context, do func(context.Context, *letterLog) error) error {
	log := p.newLetterLog()
	writing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return log.publisher.Run(writing) })
	g.Go(func() error {
		defer stop()
		return do(ctx, log)
	})
	return g.Wait()
}

// Produce writes a record and returns when it is acknowledged.
func (l *letterLog) Produce(ctx context.Context, r kafka.Record) error {
	return l.ProduceAll(ctx, r)
}

// ProduceAll writes records and returns when they are acknowledged.
func (l *letterLog) ProduceAll(ctx context.Context, records ...kafka.Record) error {
	for _, r := range records {
		if err := l.publisher.Publish(ctx, r); err != nil {
			return err
		}
	}
	return l.publisher.Flush(ctx)
}

// store is an open sink of either kind.
type store struct {
	sinks.Sink
	// reader tells what the store has and would answer.
	reader sinks.Reader
	takes  func(cdc.TableName) bool
	empty  func(context.Context, cdc.TableName) (bool, error)
	probe  func(context.Context) (string, error)
	check  func(cdc.Table) error
	// shaper makes its documents.
	shaper *shaper
	// inspect looks at what the store has for a table; the texts are what to know of
	// it, an error what is to be mended. nil when there is nothing to look at.
	inspect func(context.Context, cdc.Table) ([]string, error)
	// lacks names the rights that the account does not have of those it needs to read tables,
	// and to write them; nil for a store that does not tell.
	lacks func(ctx context.Context, tables []cdc.Table, write bool) ([]string, error)
	// refill is given what to do before a table gets an index; nil for a store without
	// indices.
	refill func(lost func(context.Context, cdc.TableName, bool) (bool, error))
	// held tells of tables whose changes would have to wait, by name; nil for a store that
	// knows only when they come.
	held func() map[string]*sinks.HeldStatus
	// run does what a store needs done beside the changes, until ctx ends; nil for
	// nothing.
	run func(ctx context.Context, tables func(context.Context) ([]cdc.TableName, error)) error
	// moves reports whether the place of a table's rows depends on more than their key;
	// nil for a store in which it never does.
	moves func(cdc.TableName) bool
	// movesRow is moves for the row of a change, and remembers is how long the store
	// knows of a place that a row has left it; nil for a store whose letters need no
	// such care.
	movesRow  func(*cdc.Change) bool
	remembers time.Duration
	// mark finds how far a partition is applied, and marks gives the same for all
	// partitions, by topic/partition; nil for a store that does not know.
	mark  func(ctx context.Context, group, topic string, partition int) (sinks.Mark, error)
	marks func(ctx context.Context, group string) (map[string]int64, error)
	// refresh makes what it has of tables visible to searches.
	refresh func(ctx context.Context, tables []cdc.TableName) error
	close   func()
}

// mayTake refuses a table that the store cannot hold, and rows that nobody known
// has written.
func (s *store) mayTake(ctx context.Context, t cdc.Table, known bool) error {
	if !s.takes(t.Name) {
		return nil
	}
	if err := s.check(t); err != nil {
		return err
	}
	if known {
		return nil
	}
	empty, err := s.empty(ctx, t.Name)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnasked, err)
	}
	if !empty {
		return sinks.Unfit{Problem: "it has rows of " + t.Name.String() + " that this pipeline did not write, under versions nobody knows",
			Mend: "delete its index, or its keys with their markers, or begin anew with lockstep run --resnapshot --epoch N, N above the epoch of every row that is there (its version >> 42)"}
	}
	return nil
}

// errUnasked says that a store did not answer.
var errUnasked = errors.New("whether it is empty cannot be seen")

var errNoStore = errors.New("the sink has neither elastic nor redis")
