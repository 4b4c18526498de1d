package main

import (
	"context"
	"fmt"
	"runtime/debug"
	"strconv"
	"sync/atomic"

	goredis "github.com/redis/go-redis/v9"
	"github.com/tidwall/gjson"
	"golang.org/x/sync/errgroup"

	"lockstep/sinks/redis"
)

// The bare loop of Redis.
const (
	pipelineCalls   = 1000
	pipelineWorkers = 2
)

// measureCache writes the backlog's rows with a bare loop and then lets lockstep
// drain it.
func (b *bench) measureCache(ctx context.Context) error {
	b.say("cache: a bare loop of pipelined scripts, %d calls each, %d at a time", pipelineCalls, pipelineWorkers)
	bareKeys := b.name + ":bare:"
	bare, err := b.scriptLoop(ctx, bareKeys)
	if err != nil {
		return err
	}
	b.docs = nil
	debug.FreeOSMemory()
	if n, err := b.unlink(ctx, bareKeys+"*"); err != nil || n != b.inserts() {
		return fmt.Errorf("the bare loop left %d keys in Redis, want %d (%w)", n, b.inserts(), err)
	}

	b.say("cache: lockstep drains the topic")
	p, err := b.pipeline(backlog)
	if err != nil {
		return err
	}
	d, err := b.drainSink(ctx, p, cache)
	if err != nil {
		return err
	}
	if n, err := b.unlink(ctx, p.keys+"*"); err != nil || n != b.inserts()+1 {
		return fmt.Errorf("there were %d keys in Redis, want %d (%w)", n, b.inserts()+1, err)
	}
	b.reportSink(cache, "ops", d, bare)
	return nil
}

// scriptLoop calls the script that lockstep calls for every row, as fast as Redis takes them. What is
// sent is made before, so that the loop does nothing but send it.
func (b *bench) scriptLoop(ctx context.Context, keys string) (bareLoop, error) {
	digest, err := b.redis.ScriptLoad(ctx, redis.UpsertScript(redis.ModeHash)).Result()
	if err != nil {
		return bareLoop{}, fmt.Errorf("load the script: %w", err)
	}
	calls := make([][]any, len(b.docs.at))
	for i := range calls {
		version := strconv.FormatUint(b.docs.at[i].version, 10)
		key := keys + strconv.Itoa(b.docs.at[i].id)
		args := []any{"evalsha", digest, "2", key, "lockstep:t:{" + key + "}", version, "_lockstep_v", version}
		gjson.ParseBytes(b.docs.row(i)).ForEach(func(name, value gjson.Result) bool {
			args = append(args, name.Str, value.String())
			return true
		})
		calls[i] = args
	}
	return measure(len(calls), func() error {
		var next atomic.Int64
		workers, ctx := errgroup.WithContext(ctx)
		for range pipelineWorkers {
			workers.Go(func() error {
				for ctx.Err() == nil {
					from := (int(next.Add(1)) - 1) * pipelineCalls
					if from >= len(calls) {
						return nil
					}
					if _, err := b.redis.Pipelined(ctx, func(pipe goredis.Pipeliner) error {
						for _, args := range calls[from:min(from+pipelineCalls, len(calls))] {
							pipe.Do(ctx, args...)
						}
						return nil
					}); err != nil {
						return fmt.Errorf("call the script: %w", err)
					}
				}
				return ctx.Err()
			})
		}
		return workers.Wait()
	})
}

// unlink removes the keys that match and says how many there were.
func (b *bench) unlink(ctx context.Context, pattern string) (int, error) {
	n, cursor := 0, uint64(0)
	for {
		keys, next, err := b.redis.Scan(ctx, cursor, pattern, 5000).Result()
		if err != nil {
			return n, fmt.Errorf("scan %s: %w", pattern, err)
		}
		if len(keys) > 0 {
			removed, err := b.redis.Unlink(ctx, keys...).Result()
			if err != nil {
				return n, fmt.Errorf("unlink %s: %w", pattern, err)
			}
			n += int(removed)
		}
		if cursor = next; cursor == 0 {
			return n, nil
		}
	}
}
