package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/config"
	"lockstep/freshness"
	"lockstep/kafka"
	"lockstep/reconcile"
	"lockstep/route"
	"lockstep/route/configmap"
)

// sinksOf are the sinks that take a table now; none for one that is not captured.
func (p *process) sinksOf(table string) []string {
	p = p.now()
	if !p.captured(tableNamed(table)) {
		return nil
	}
	return p.cfg.SinkNames()
}

// newBoard judges tables by what the configuration says of each.
func (p *process) newBoard() *route.Board {
	board := route.NewBoard(func(table string) route.Config { return p.now().cfg.ObjectivesOf(tableNamed(table)) }, route.NewMetrics(p.registry))
	board.Takes = func(at route.Place) bool { return slices.Contains(p.sinksOf(at.Table), at.Sink) }
	return board
}

// gateways answers those who ask where to read.
type gateways struct{ *process }

func (g gateways) Ready() bool              { return g.restored.Load() }
func (g gateways) Tables() []string         { return g.board.Tables() }
func (g gateways) Changed() <-chan struct{} { return g.board.Changed() }

func (g gateways) Answer(table string) (route.Advice, bool) {
	sinks := g.sinksOf(table)
	return g.board.Answer(time.Now(), table, sinks), len(sinks) > 0
}

// all is where all tables are to be read.
func (g gateways) all() []route.Advice {
	all := []route.Advice{}
	for _, table := range g.Tables() {
		if a, ok := g.Answer(table); ok {
			all = append(all, a)
		}
	}
	return all
}

// routeLap is how often routes are decided about.
const routeLap = 100 * time.Millisecond

// runRoute decides where tables are to be read until ctx ends.
func (p *process) runRoute(ctx context.Context) error {
	log := p.log.With("part", "route")
	feed := &route.Feed{Board: p.board, Sinks: p.sinksOf}
	defer p.hub.Listen(func(r freshness.Record) { feed.Hear(time.Now(), r) })()
	var journal route.Journal
	tick := time.NewTicker(routeLap)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		if turns := p.board.Lap(now); p.restored.Load() {
			journal.Add(now, turns)
		}
		for _, l := range journal.Due(now) {
			say := log.Info
			if l.Now == route.Degraded {
				say = log.Warn
			}
			say("route", "sink", l.Sink, "state", l.Now.String(), "was", l.Was.String(), "share", l.Share, "tables", len(l.Tables), "which", some(l.Tables),
				"cause", string(l.Cause()), "reason", l.Reason, "dry_run", l.DryRun)
		}
	}
}

// tellWithin is how long a comparison waits for Kafka to take what it has found.
const tellWithin = 10 * time.Second

// tellCompared tells whoever judges the sinks what a comparison has found. What Kafka does
// not take is told of in the log; another comparison comes.
func (p *process) tellCompared(ctx context.Context, r *reconcile.Result, whole bool) {
	ctx, cancel := context.WithTimeout(ctx, tellWithin)
	defer cancel()
	for _, s := range r.Sinks {
		if s.Incomparable != "" {
			continue
		}
		c := &freshness.Compared{
			Sink: s.Sink, Table: r.Table, BeganMicros: r.Began.UnixMicro(), AtMicros: time.Now().UnixMicro(),
			Keys: s.Compared - s.Unclear, Whole: whole && s.Unclear == 0, Confirmed: map[string]int64{},
		}
		for class, n := range s.Mismatches {
			if n > 0 && s.Repaired < s.Differ() {
				c.Confirmed[string(class)] = n
			}
		}
		if err := p.hub.Write(ctx, freshness.Record{Compared: c}); err != nil {
			p.log.Warn("what was compared is not told to those who judge the sink", "sink", s.Sink, "table", r.Table, "error", err)
		}
	}
}

// routeSpec is the topic in which a process finds what was known before it was started:
// its newest record is all there is to know.
func (p *process) routeSpec() kafka.TopicSpec {
	millis := strconv.FormatInt((10 * time.Minute).Milliseconds(), 10)
	return kafka.TopicSpec{Name: p.cfg.Prefix + ".route", Partitions: 1, Configs: map[string]string{"retention.ms": millis, "segment.ms": millis}}
}

// mayRepair refuses to repair where that would do harm, as a running process of the
// pipeline has found; where none runs nobody knows of any.
func (p *process) mayRepair(ctx context.Context, tables []cdc.TableName, sinks []string) error {
	spec := p.routeSpec()
	all, err := p.kafka.Topics(ctx)
	if err != nil || !slices.Contains(all, spec.Name) {
		return err
	}
	newest, err := p.kafka.Newest(ctx, spec.Name)
	if err != nil {
		return err
	}
	for _, r := range newest {
		for _, t := range tables {
			topic, err := kafka.ChangeTopic(p.cfg.Prefix, t)
			if err != nil {
				return err
			}
			if !slices.Contains(all, topic) {
				continue // it has never had a row, so no process has a part of it, and a repair does no harm
			}
			for _, sink := range sinks {
				stops, why, err := route.Forbidden(time.Now(), r.Value, route.Place{Sink: sink, Table: t.String()})
				if err != nil {
					return err
				}
				if stops.Repairs {
					return fmt.Errorf("repairs of %s in sink %s would do harm now: %s; mend that first, or add --anyway", t, sink, why)
				}
			}
		}
	}
	return nil
}

// keepRoute takes over what was known of the routes before, and saves what is known. Without
// it tables would begin anew with every start: read from MySQL until they are verified. When
// Kafka does not take it, it tries again.
func (p *process) keepRoute(ctx context.Context) error {
	log, said := p.log.With("part", "route"), false
	for ctx.Err() == nil {
		err := p.tryKeepRoute(ctx)
		if err != nil && ctx.Err() == nil && !said {
			said = true
			log.Warn("the routes are not saved, so a process that is started now begins anew; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

func (p *process) tryKeepRoute(ctx context.Context) error {
	spec := p.routeSpec()
	if err := p.kafka.EnsureTopic(ctx, spec); err != nil {
		return err
	}
	if !p.restored.Load() {
		newest, err := p.kafka.Newest(ctx, spec.Name)
		if err != nil {
			return err
		}
		for _, r := range newest {
			if err := p.board.Restore(time.Now(), r.Value); err != nil {
				p.log.Error("the routes begin anew", "part", "route", "topic", spec.Name, "error", err)
			}
		}
		p.restored.Store(true)
	}
	log := p.newLetterLog()
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- log.publisher.Run(running) }()
	again := time.NewTicker(route.SaveEvery)
	defer again.Stop()
	for {
		changed := p.board.Changed()
		if err := log.Produce(ctx, kafka.Record{Topic: spec.Name, Value: p.board.Save(time.Now())}); err != nil {
			stop()
			return fmt.Errorf("save the routes: %w", firstOf(<-ended, err))
		}
		select {
		case <-ctx.Done():
			stop()
			return <-ended
		case <-changed:
		case <-again.C:
		}
	}
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func newConfigMapLeaseMetrics(reg prometheus.Registerer) *kafka.LeaseMetrics {
	return kafka.NewLeaseMetrics(reg, "config_map", "publishes the routes in Kubernetes", "publish the routes")
}

// openConfigMap is where the routes are published; nil for nowhere.
func (a *app) openConfigMap(cfg *config.Config) (*configmap.Map, error) {
	c := cfg.Objectives.ConfigMap
	if c.Name == "" {
		return nil, nil
	}
	m, err := configmap.InPod(a.env, c.Namespace, c.Name)
	if err != nil {
		return nil, fmt.Errorf("objectives.config_map: %w", err)
	}
	return m, nil
}

// configMapGroup is the consumer group whose members want to publish the routes. No sink has a
// dot in its name.
func (p *process) configMapGroup() string { return p.group("route.configmap") }

// runConfigMap publishes the routes in Kubernetes while no other process of the pipeline
// does.
func (p *process) runConfigMap(ctx context.Context, m *configmap.Map, metrics *kafka.LeaseMetrics) error {
	spec := p.routeSpec()
	err := p.kafka.EnsureTopic(ctx, spec)
	if err == nil {
		err = (&kafka.Lease{
			Client: p.kafka, Group: p.configMapGroup(), Topic: spec.Name, Metrics: metrics, Log: p.log.With("part", "config map"),
			Hold: func(ctx context.Context) error { return p.publishRoutes(ctx, m) },
		}).Run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("config map: %w", err)
	}
	return nil
}

// routesKey is the key of the ConfigMap.
const routesKey = "routes.json"

func (p *process) publishRoutes(ctx context.Context, m *configmap.Map) error {
	failing := false
	for ctx.Err() == nil {
		changed, wait := p.board.Changed(), p.cfg.Objectives.ConfigMap.Every
		if err := p.publishRoute(ctx, m); err != nil && ctx.Err() == nil {
			if wait = time.Second; !failing {
				p.log.Warn("the routes are not published in Kubernetes, trying again", "part", "config map", "error", err)
			}
			failing, changed = true, nil
		} else {
			failing = false
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(wait):
		}
	}
	return nil
}

// publishRoute writes what GET /v1/route answers.
func (p *process) publishRoute(ctx context.Context, m *configmap.Map) error {
	if !p.restored.Load() {
		return fmt.Errorf("what they were before this process was started is not known yet")
	}
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if err := e.Encode(map[string]any{"tables": gateways{p}.all()}); err != nil {
		return err
	}
	return m.Set(ctx, routesKey, text.String())
}
