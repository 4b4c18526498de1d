package main

import (
	"context"

	"lockstep/cdc"
	"lockstep/cdc/mysql"
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

func (p *process) openElastic(name string, cfg elastic.Config) (*store, error) {
	describe := func(ctx context.Context, t cdc.TableName) (cdc.Table, error) {
		return mysql.Describe(ctx, p.cfg.Source, t)
	}
	s, err := elastic.Open(cfg, p.cfg.ElasticTable, describe, p.log.With("sink", name), p.metrics.elastic)
	if err != nil {
		return nil, err
	}
	return &store{
		Sink:  s,
		takes: func(t cdc.TableName) bool { _, ok := p.cfg.ElasticTable(t); return ok },
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
		check: elastic.CheckTable,
		close: s.Close,
	}, nil
}

func (p *process) openRedis(ctx context.Context, name string, cfg redis.Config) (*store, error) {
	s, err := redis.Open(ctx, cfg, p.cfg.RedisTable, p.log.With("sink", name))
	if err != nil {
		return nil, err
	}
	opened := &store{
		Sink:  s,
		takes: func(t cdc.TableName) bool { _, ok := p.cfg.RedisTable(t); return ok },
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
			return redis.CheckTable(table, t)
		},
		moves: s.Moves,
		close: func() { _ = s.Close() },
	}
	if cfg.Mode == redis.ModeMirror { // of a cache nobody promises that it has everything
		opened.mark, opened.marks = s.FindMark, s.Marks
	}
	return opened, nil
}
