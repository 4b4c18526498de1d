package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lockstep/cdc/mysql"
	"lockstep/config"
)

// Names of the parts of a process that can begin anew while the others go on. The capture
// and the sinks have those under which /readyz and lockstep status show them.
const (
	clockPart     = "clock"
	configMapPart = "config map"
	replaysPart   = "replays"
	reconcilePart = "reconcile"
)

func sinkPart(name string) string { return "sink " + name }

// errOtherConfig ends a part that is to begin anew.
var errOtherConfig = errors.New("the configuration has changed")

// settings is the configuration that runs, and which parts run.
type settings struct {
	view atomic.Pointer[process] // with the configuration of this moment

	mu    sync.Mutex
	parts map[string]context.CancelCauseFunc
	// back tells that a part could not go on. It reports whether and when it is to try again,
	// with the configuration of that moment; nil is never.
	back func(part string, err error) (wait time.Duration, again bool)
}

// now is the process with the configuration of this moment.
func (p *process) now() *process { return p.settings.view.Load() }

// under runs a part until ctx ends or it cannot go on, and each time that the configuration
// changes in what concerns it, ends it and runs it anew. A part has a configuration that
// never changes, and a change is to it what a restart of the process would be.
func (p *process) under(ctx context.Context, part string, run func(context.Context, *process) error) error {
	s := &p.settings
	for {
		running, cancel := context.WithCancelCause(ctx)
		s.mu.Lock()
		if s.parts == nil {
			s.parts = map[string]context.CancelCauseFunc{}
		}
		s.parts[part] = cancel
		now := s.view.Load()
		s.mu.Unlock()
		err := run(running, now)
		s.mu.Lock()
		delete(s.parts, part)
		back := s.back
		s.mu.Unlock()
		cancel(nil)
		switch changed := context.Cause(running) == errOtherConfig; {
		case ctx.Err() != nil:
			return err
		case changed && err != nil:
			p.log.Warn("a part that was to begin anew ended with an error", "part", part, "error", err)
		case changed:
		case err == nil || back == nil:
			return err
		default:
			wait, again := back(part, err)
			if !again {
				return err
			}
			select {
			case <-ctx.Done():
				return err
			case <-time.After(wait):
			}
		}
	}
}

// set has a configuration run from now on, and ends those of some parts that run here, so
// that they begin anew with it. It gives their names.
func (s *settings) set(view *process, parts []string) (ended []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view.Store(view)
	for _, part := range parts {
		if cancel := s.parts[part]; cancel != nil {
			cancel(errOtherConfig)
			ended = append(ended, part)
		}
	}
	return ended
}

// concern is what a change of some fields means while a process runs.
type concern struct {
	// field is the path of a field or of a section, with [] for the places of a list and * for
	// names: it stands for all below it that no longer path names.
	field string
	// parts begin anew; none when the change counts at once.
	parts []string
	// restart says that only a new process can have it.
	restart bool
}

// These stand for several parts.
const (
	allSinks     = "sinks"
	elasticSinks = "sinks of kind elastic"
	redisSinks   = "sinks of kind redis"
	thisSink     = "the sink that is named"
)

// readers read the source and make documents of it.
var readers = []string{allSinks, replaysPart, reconcilePart}

// concerns has every field of the configuration. Replays go through the workers of this
// process, so they begin anew with every sink.
var concerns = []concern{
	{field: "prefix", restart: true},
	{field: "source", parts: append([]string{config.CapturePart, clockPart}, readers...)},
	{field: "source.snapshot", parts: []string{config.CapturePart, reconcilePart}},
	{field: "source.checkpoint_interval", parts: []string{config.CapturePart}},
	{field: "source.after_alter", parts: []string{config.CapturePart}},
	{field: "source.unlogged_cascades", parts: []string{config.CapturePart}},
	// All parts share one client, which makes its connections with the login of that moment.
	{field: "kafka", restart: true},
	{field: "kafka.sasl"},
	{field: "kafka.tls"},
	// Which sinks there are is in the command line of a process that runs one, and in the topics
	// of all.
	{field: "sinks", restart: true},
	{field: "sinks.*.elastic", parts: []string{thisSink, replaysPart, reconcilePart}},
	{field: "sinks.*.redis", parts: []string{thisSink, replaysPart, reconcilePart}},
	{field: "tables", parts: append([]string{config.CapturePart}, readers...)},
	{field: "tables[].shape", parts: readers},
	{field: "tables[].shapes", parts: readers},
	{field: "tables[].shapes.*", parts: []string{thisSink, replaysPart, reconcilePart}},
	{field: "tables[].elastic", parts: []string{elasticSinks, replaysPart, reconcilePart}},
	{field: "tables[].redis", parts: []string{redisSinks, replaysPart, reconcilePart}},
	{field: "tables[].objectives"},
	{field: "worker", parts: []string{allSinks, replaysPart}},
	{field: "reconcile", parts: []string{reconcilePart}},
	{field: "objectives"},
	{field: "objectives.config_map", parts: []string{configMapPart}},
	{field: "admin"},
	{field: "admin.listen", restart: true},
	{field: "admin.metrics_listen", restart: true},
	// Who sends what is told is made once.
	{field: "tracing", restart: true},
	{field: "tracing.sample", parts: []string{config.CapturePart}},
	{field: "tracing.comments", parts: []string{config.CapturePart}},
	{field: "log.level"},
	{field: "log.format", restart: true},
}

var inList = regexp.MustCompile(`\[\d*\]`)

// concernOf is the longest path that stands for a field, and the name that it has for *.
func concernOf(field string) (found *concern, name string) {
	path := strings.Split(strings.TrimSuffix(inList.ReplaceAllString(field, "[]"), "[]"), ".")
	most := 0
next:
	for i := range concerns {
		c := &concerns[i]
		of, named := strings.Split(c.field, "."), ""
		if len(of) > len(path) || len(of) <= most {
			continue
		}
		for n, word := range of {
			switch {
			case word == "*":
				named = path[n]
			case word != path[n] && word+"[]" != path[n]:
				continue next
			}
		}
		found, name, most = c, named, len(of)
	}
	return found, name
}

// plan is what a change does.
type plan struct {
	Fields   []string `json:"fields"`   // that differ
	AtOnce   []string `json:"at_once"`  // of these
	Restarts []string `json:"restarts"` // parts that begin anew
	Refused  []string `json:"refused"`  // fields that only a new process can have
}

// planOf is what it would be to go from one configuration to the other.
func planOf(from, to *config.Config) plan {
	p := plan{Fields: config.Diff(from, to), AtOnce: []string{}, Restarts: []string{}, Refused: []string{}}
	if from.Admin.TLS.On() != to.Admin.TLS.On() {
		p.Refused = append(p.Refused, "admin.tls") // whoever asks would have to know
	}
	if (from.Kafka.SASL.Mechanism == "") != (to.Kafka.SASL.Mechanism == "") {
		p.Refused = append(p.Refused, "kafka.sasl") // brokers have other ports for it
	}
	for _, field := range p.Fields {
		c, named := concernOf(field)
		switch {
		case c == nil || c.restart: // the test of concerns says that there is one
			p.Refused = append(p.Refused, field)
		case len(c.parts) == 0:
			p.AtOnce = append(p.AtOnce, field)
		}
		if c != nil {
			for _, part := range c.parts {
				p.Restarts = append(p.Restarts, partsOf(to, part, named)...)
			}
		}
	}
	if p.Fields == nil {
		p.Fields = []string{}
	}
	slices.Sort(p.Restarts)
	p.Restarts = slices.Compact(p.Restarts)
	return p
}

// partsOf are the parts that a word of a concern stands for.
func partsOf(c *config.Config, word, named string) (parts []string) {
	for _, name := range c.SinkNames() {
		if kind := c.Sinks[name].Store(); word == allSinks || word == elasticSinks && kind == "elastic" || word == redisSinks && kind == "redis" || word == thisSink && name == named {
			parts = append(parts, sinkPart(name))
		}
	}
	if !slices.Contains([]string{allSinks, elasticSinks, redisSinks, thisSink}, word) {
		parts = append(parts, word)
	}
	return parts
}

// refusal is why a plan cannot be carried out; nil when it can.
func (p plan) refusal() error {
	if len(p.Refused) == 0 {
		return nil
	}
	return fmt.Errorf("%s: cannot change while the process runs; restart it to have that, or put back what was there", strings.Join(p.Refused, ", "))
}

// runClock follows the clock of the source.
func (p *process) runClock(ctx context.Context) {
	p.clock.Config = p.cfg.Source // whoever asks what time it is there does not look at it
	p.clock.Run(ctx)
}

// commits asks the source that is configured now what is committed there.
type commits struct{ of atomic.Pointer[mysql.Commits] }

func newCommits(source mysql.Config) *commits {
	c := &commits{}
	c.of.Store(&mysql.Commits{Config: source})
	return c
}

func (c *commits) now() *mysql.Commits { return c.of.Load() }

// ask has another source asked from now on, or the same one as another account.
func (c *commits) ask(source mysql.Config) { c.of.Swap(&mysql.Commits{Config: source}).Close() }

func (c *commits) Close() { c.now().Close() }
