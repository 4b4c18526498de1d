package main

import (
	"context"
	"errors"
	"fmt"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/elastic"
	"lockstep/sinks/redis"
)

// openSink opens the store of a sink.
func (p *process) openSink(ctx context.Context, name string) (*store, error) {
	switch s := p.cfg.Sinks[name]; {
	case s.Elastic != nil:
		return p.openElastic(name, *s.Elastic)
	case s.Redis != nil:
		return p.openRedis(ctx, name, *s.Redis)
	}
	return nil, errNoStore
}

func (p *process) elasticSink(name string, cfg elastic.Config, shaper *shaper) (*elastic.Sink, error) {
	return elastic.Open(name, cfg, p.cfg.ElasticTable, shaper.described, p.log.With("sink", name), p.metrics.elastic)
}

func (p *process) openElastic(name string, cfg elastic.Config) (*store, error) {
	shaper := p.newShaper(name)
	s, err := p.elasticSink(name, cfg, shaper)
	if err != nil {
		return nil, err
	}
	s.Clock = p.clock.At
	return &store{
		Sink:   shaper.before(s),
		reader: shaper.reads(s),
		shaper: shaper,
		takes:  func(t cdc.TableName) bool { _, ok := p.cfg.ElasticTable(t); return ok },
		empty: func(ctx context.Context, t cdc.TableName) (bool, error) {
			table, ok := p.cfg.ElasticTable(t)
			if !ok {
				return true, nil
			}
			alias, err := table.Alias(t)
			if err != nil {
				return false, err
			}
			return s.Empty(ctx, alias)
		},
		probe: s.Probe,
		check: func(t cdc.Table) error {
			shaped, err := shaper.shaped(t)
			if err != nil {
				return err
			}
			table, _ := p.cfg.ElasticTable(t.Name)
			return table.CheckTable(shaped)
		},
		inspect: func(ctx context.Context, t cdc.Table) ([]string, error) {
			shaped, err := shaper.shaped(t)
			if err != nil {
				return nil, err
			}
			return s.Inspect(ctx, shaped)
		},
		refill: func(lost func(context.Context, cdc.TableName, bool) (bool, error)) { s.Refill = lost },
		run:    s.Run,
		lacks: func(ctx context.Context, tables []cdc.Table, write bool) ([]string, error) {
			var aliases []string
			for _, t := range tables {
				if table, ok := p.cfg.ElasticTable(t.Name); ok {
					alias, err := table.Alias(t.Name)
					if err != nil {
						return nil, err
					}
					aliases = append(aliases, alias)
				}
			}
			return s.Lacks(ctx, aliases, write)
		},
		held: func() map[string]*sinks.HeldStatus {
			held := map[string]*sinks.HeldStatus{}
			for _, t := range s.Troubles() {
				held[t.Table.String()] = &sinks.HeldStatus{By: sinks.ByTable, Reason: t.Reason, Mend: t.Mend, Since: t.Since}
			}
			return held
		},
		moves:   s.Moves,
		refresh: s.Refresh,
		close:   s.Close,
	}, nil
}

func (p *process) openRedis(ctx context.Context, name string, cfg redis.Config) (*store, error) {
	s, err := redis.Open(ctx, cfg, p.cfg.RedisTable, p.log.With("sink", name))
	if err != nil {
		return nil, err
	}
	shaper := p.newShaper(name)
	s.Describe = shaper.described
	opened := &store{
		Sink:   shaper.before(s),
		reader: shaper.reads(s),
		shaper: shaper,
		takes:  func(t cdc.TableName) bool { _, ok := p.cfg.RedisTable(t); return ok },
		empty: func(ctx context.Context, t cdc.TableName) (bool, error) {
			table, ok := p.cfg.RedisTable(t)
			if !ok {
				return true, nil
			}
			return s.Empty(ctx, t, table)
		},
		probe: func(ctx context.Context) (string, error) {
			return "answers, keeps what it is given and has the scripts", s.Probe(ctx)
		},
		check: func(t cdc.Table) error {
			table, _ := p.cfg.RedisTable(t.Name)
			shaped, err := shaper.shaped(t)
			if err == nil {
				err = redis.CheckTable(table, shaped)
			}
			return errors.Join(err, checkKeyStays(shaper, t))
		},
		moves:     s.Moves,
		refresh:   func(context.Context, []cdc.TableName) error { return nil }, // whoever reads sees what is there
		movesRow:  s.MovesRow,
		remembers: cfg.TombstoneTTL,
		close:     func() { _ = s.Close() },
	}
	if cfg.Mode == redis.ModeMirror { // of a cache nobody promises that it has everything
		opened.mark, opened.marks = s.FindMark, s.Marks
	}
	return opened, nil
}

// checkKeyStays reports whether the documents of a table have its primary key: a
// sweep of Redis tells by it whose a key is.
func checkKeyStays(s *shaper, t cdc.Table) error {
	rule, path, _ := s.rule(t.Name)
	for _, column := range t.Key {
		if !rule.Keeps(column) {
			return fmt.Errorf("%s: takes the primary-key column %s of %s out of the document or gives it another name, and Redis tells by it whose a key is; let it stay, with tables[].shapes for this sink if the others are to do without", path, column, t.Name)
		}
	}
	return nil
}
