package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"

	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/internal/nearest"
	"lockstep/shape"
	"lockstep/sinks"
)

// shaper shapes the rows of one sink. The shapes are made from the tables as they are
// in the source, and made again when a row shows that its table is another by now.
type shaper struct {
	rule     func(cdc.TableName) (rule shape.Config, path string, ok bool)
	describe func(context.Context, cdc.TableName) (cdc.Table, error)
	log      *slog.Logger
	active   bool // some table of the sink is shaped

	mu     sync.Mutex
	tables map[cdc.TableName]*shapedTable
}

// shapedTable is what a shaper knows of a table.
type shapedTable struct {
	name     cdc.TableName
	path     string // of the shape in the configuration
	rule     shape.Config
	compiled atomic.Pointer[shape.Shape] // nil before the table was described

	looking sync.Mutex // one look at the table at a time
	mu      sync.Mutex
	met     map[string]bool // rows of other columns, since when the table was described
}

// mostMet bounds what is remembered of rows that do not look like their table.
const mostMet = 100

func (p *process) newShaper(sink string) *shaper {
	return &shaper{
		rule: func(t cdc.TableName) (shape.Config, string, bool) { return p.cfg.ShapeOf(sink, t) },
		describe: func(ctx context.Context, t cdc.TableName) (cdc.Table, error) {
			return mysql.Describe(ctx, p.cfg.Source, t)
		},
		log:    p.log.With("sink", sink),
		active: p.cfg.Shapes(sink),
		tables: map[cdc.TableName]*shapedTable{},
	}
}

// before is a store that gets documents in place of rows.
func (s *shaper) before(store sinks.Sink) sinks.Sink {
	if !s.active {
		return store
	}
	return sinks.Shaped{Sink: store, Shape: s.shape}
}

// reads is before for what a store tells.
func (s *shaper) reads(store sinks.Reader) sinks.Reader {
	if !s.active {
		return store
	}
	return sinks.ShapedReader{Reader: store, Shape: s.shape}
}

// checkShapes refuses shapes that do not fit the tables as they are. A source that
// cannot be asked now is asked when the first row comes.
func (p *process) checkShapes(ctx context.Context, s *store) error {
	if !s.shaper.active {
		return nil
	}
	tables, err := mysql.Tables(ctx, p.cfg.Source, func(t cdc.TableName) bool { return p.captured(t) && s.shaper.table(t) != nil })
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		s.shaper.log.Warn("shapes are not compared with the tables of the source yet", "error", err)
		return nil
	}
	var errs []error
	for _, t := range tables {
		errs = append(errs, s.check(t))
	}
	return errors.Join(errs...)
}

// table is nil for one that is not shaped.
func (s *shaper) table(name cdc.TableName) *shapedTable {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tables[name]; ok {
		return t
	}
	var t *shapedTable
	if rule, path, ok := s.rule(name); ok {
		t = &shapedTable{name: name, path: path, rule: rule, met: map[string]bool{}}
	}
	s.tables[name] = t
	return t
}

// shape is sinks.Shaped.Shape. A table that cannot be described now, or that the
// configuration does not fit any more, holds the partition: nothing may reach the
// store in a shape that nobody wants.
func (s *shaper) shape(ctx context.Context, c *cdc.Change) *sinks.Outcome {
	t := s.table(c.Table)
	if t == nil {
		return nil
	}
	if t.compiled.Load() == nil {
		if no := s.look(ctx, t, ""); no != nil {
			return no
		}
	}
	for {
		shaped := *c
		unfamiliar, err := t.compiled.Load().Apply(&shaped)
		// The first row of its kind makes the table be looked at, which is then at
		// least as new as the row.
		if unfamiliar != "" && !t.knows(unfamiliar) {
			if no := s.look(ctx, t, unfamiliar); no != nil {
				return no
			}
			continue
		}
		if *c = shaped; err != nil {
			return &sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassShape, Reason: t.reason(err)}
		}
		return nil
	}
}

func (t *shapedTable) reason(err error) string {
	if _, ok := errors.AsType[*shape.Error](err); ok {
		return t.path + "." + err.Error()
	}
	return t.path + ": " + err.Error()
}

func (t *shapedTable) knows(signature string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.met[signature]
}

// look describes the table and fits the shape to it.
func (s *shaper) look(ctx context.Context, t *shapedTable, unfamiliar string) *sinks.Outcome {
	t.looking.Lock()
	defer t.looking.Unlock()
	if unfamiliar == "" && t.compiled.Load() != nil || t.knows(unfamiliar) {
		return nil
	}
	table, err := s.describe(ctx, t.name)
	if err == nil {
		if _, misfit := s.shaped(table); misfit != nil {
			return &sinks.Outcome{Verdict: sinks.Unavailable, Unasked: true, Reason: oneLine(strings.ReplaceAll(misfit.Error(), "\n", "; ")),
				Mend: fmt.Sprintf("mend %s and start the sink again, or ALTER the table back", t.path)}
		}
	}
	switch {
	case errors.Is(err, cdc.ErrNoTable): // the barrier of its DROP stands behind the change
		return &sinks.Outcome{Verdict: sinks.Transient, Class: sinks.ClassNoTable, Reason: err.Error()}
	case err != nil:
		return &sinks.Outcome{Verdict: sinks.Unavailable, Unasked: true, Reason: err.Error()}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.met) >= mostMet {
		clear(t.met)
	}
	if unfamiliar != "" {
		t.met[unfamiliar] = true
	}
	return nil
}

// adopt compiles the shape for a table as it is now.
func (t *shapedTable) adopt(table cdc.Table, log *slog.Logger) (*shape.Shape, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.compiled.Load()
	if was != nil && reflect.DeepEqual(was.Source(), table) {
		return was, nil
	}
	compiled, err := shape.Compile(t.rule, table)
	if err != nil {
		return nil, misshapen(t.path, err)
	}
	if was != nil {
		log.Info("shape fitted to the altered table", "table", t.name.String())
	}
	t.compiled.Store(compiled)
	clear(t.met)
	return compiled, nil
}

// shaped is the table as the sink sees it.
func (s *shaper) shaped(table cdc.Table) (cdc.Table, error) {
	t := s.table(table.Name)
	if t == nil {
		return table, nil
	}
	compiled, err := t.adopt(table, s.log)
	if err != nil {
		return cdc.Table{}, err
	}
	return compiled.Table(), nil
}

// described describes a table as the sink sees it.
func (s *shaper) described(ctx context.Context, name cdc.TableName) (cdc.Table, error) {
	table, err := s.describe(ctx, name)
	if err != nil {
		return cdc.Table{}, err
	}
	return s.shaped(table)
}

// misshapen gives each mistake of a shape its place in the configuration, and a
// column that is not there the name that was meant.
func misshapen(path string, err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, one := range joined.Unwrap() {
			all = append(all, misshapen(path, one))
		}
		return errors.Join(all...)
	}
	hint := ""
	if unknown, ok := errors.AsType[*shape.UnknownColumn](err); ok {
		hint = "; it has " + strings.Join(unknown.Columns, ", ")
		if near := nearest.Name(unknown.Column, unknown.Columns); near != "" {
			hint = fmt.Sprintf("; did you mean %q?", near)
		}
	}
	return fmt.Errorf("%s.%w%s", path, err, hint)
}
