package oracle

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"
)

func (c *comparison) redisRows(ctx context.Context, t TableSpec, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	commands := make([]redis.Cmder, len(rows))
	_, err := c.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, r := range rows {
			if t.RedisMode == "json" {
				commands[i] = p.Get(ctx, r.redisKey)
			} else {
				commands[i] = p.HGetAll(ctx, r.redisKey)
			}
		}
		return nil
	})
	// A key of another type, or none, is the row's difference and not our error.
	if _, refused := errors.AsType[redis.Error](err); err != nil && !refused {
		return fmt.Errorf("read %d keys from redis: %w: %w", len(rows), errUnavailable, err)
	}
	fields := 0
	for i, r := range rows {
		d := Difference{Table: t.Table, Key: r.id, Sink: Redis, Want: "the key " + r.redisKey}
		if err := commands[i].Err(); err != nil {
			d.Got = "none"
			if !errors.Is(err, redis.Nil) {
				d.Got = err.Error()
			}
			c.differs(d)
			continue
		}
		fields += len(r.fields)
		switch command := commands[i].(type) {
		case *redis.StringCmd:
			c.document(t, r, Redis, []byte(command.Val()))
		case *redis.MapStringStringCmd:
			if len(command.Val()) == 0 {
				d.Got = "none"
				c.differs(d)
				continue
			}
			c.hash(t, r, command.Val())
		}
	}
	c.compared(Redis, len(rows), fields)
	return nil
}

// hash compares a Redis hash with a row.
func (c *comparison) hash(t TableSpec, r row, hash map[string]string) {
	differs := func(field, want, got string) {
		c.differs(Difference{Table: t.Table, Key: r.id, Sink: Redis, Field: field, Want: want, Got: got})
	}
	for _, f := range r.fields {
		got, ok := hash[f.name]
		switch {
		case !ok && !f.null:
			differs(f.name, f.String(), "no such field")
		case ok && f.null:
			differs(f.name, "no such field", jsonText(got))
		case ok && !f.equalText(got):
			differs(f.name, f.String(), jsonText(got))
		}
		delete(hash, f.name)
	}
	if !isVersion(hash["_lockstep_v"]) {
		differs("_lockstep_v", "a version", jsonText(hash["_lockstep_v"]))
	}
	delete(hash, "_lockstep_v")
	for name, got := range hash {
		differs(name, "no such field", jsonText(got))
	}
}

// redisOrphans walks the keys that the table's template can give and reports
// every one that no row has. Seen holds the keys met so far.
func (c *comparison) redisOrphans(ctx context.Context, t TableSpec, seen map[string]bool) error {
	template, err := parseTemplate(t.RedisKey, c.spec.Database, t.Table)
	if err != nil {
		return err
	}
	skip := map[string]bool{}
	for id := range t.SkipRedis {
		if len(template.names) == 1 {
			skip[template.parts[0]+id+template.parts[1]] = true
		}
	}
	var one sync.Mutex // masters answer at once
	look := func(ctx context.Context, server *redis.Client) error {
		var cursor uint64
		for {
			keys, next, err := server.Scan(ctx, cursor, template.pattern(), 2000).Result()
			if err != nil {
				return fmt.Errorf("scan redis: %w: %w", errUnavailable, err)
			}
			one.Lock()
			for _, key := range keys {
				if seen[key] {
					continue
				}
				seen[key] = true
				c.report.Keys[t.Table]++
				if !c.redisKeys[key] && !skip[key] {
					c.differs(Difference{Table: t.Table, Key: key, Sink: Redis, Want: "none", Got: "a key without a row"})
				}
			}
			one.Unlock()
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	}
	if cluster, ok := c.redis.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, look)
	}
	return look(ctx, c.redis.(*redis.Client))
}
