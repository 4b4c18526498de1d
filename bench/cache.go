package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

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
	row := bytes.Clone(b.docs.row(0))
	b.docs = nil
	debug.FreeOSMemory()
	if n, err := b.unlink(ctx, bareKeys+"*"); err != nil || n != b.inserts() {
		return fmt.Errorf("the bare loop left %d keys in Redis, want %d (%w)", n, b.inserts(), err)
	}

	p, err := b.pipeline(backlog)
	if err != nil {
		return err
	}
	peer, err := b.redisBenchmark(ctx, row)
	if err != nil {
		return err
	}
	b.say("cache: lockstep drains the topic")
	d, err := b.drainSink(ctx, p, cache)
	if err != nil {
		return err
	}
	if n, err := b.unlink(ctx, p.keys+"*"); err != nil || n != b.inserts()+1 {
		return fmt.Errorf("there were %d keys in Redis, want %d (%w)", n, b.inserts()+1, err)
	}
	b.reportSink(cache, "ops", d, bare)
	if peer.operations > 0 {
		sent := float64(b.rows - d.metrics.outcome(cache, "superseded"))
		b.beside(cache+".ops_beside_redis_benchmark", sent/d.took.Seconds(), "ops/s", float64(peer.operations)/peer.took.Seconds())
		b.beside(cache+".cpu_per_op_beside_redis_benchmark", d.usage.CPU/sent*1e6, "CPU us", peer.cpu/float64(peer.operations)*1e6)
		b.beside(cache+".store_cpu_per_op_beside_redis_benchmark", d.storeCPU/sent*1e6, "CPU us", peer.storeCPU/float64(peer.operations)*1e6)
	}
	return nil
}

// redisBenchmark lets the redis-benchmark of the native servers pipeline the script that lockstep
// calls, with a row of the backlog under keys that are all new. It did nothing where there is
// none.
func (b *bench) redisBenchmark(ctx context.Context, row []byte) (did bareLoop, err error) {
	const find = `set -euo pipefail
ROOT=$PWD HERE=$PWD/deploy/local
. "$HERE/lib.sh"; . "$HERE/native.sh"
[[ -e $CACHE/debian-bookworm/usr/bin/redis-benchmark ]]
suite_run "$CACHE/debian-bookworm" usr/bin/redis-benchmark
printf '%s\0' "${run[@]}"`
	out, err := exec.CommandContext(ctx, "bash", "-c", find).Output()
	if err != nil {
		b.say("cache: redis-benchmark is not here, so it is left out; deploy/local/servers up redis installs it without containers")
		return did, nil
	}
	words := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	digest, err := b.redis.ScriptLoad(ctx, redis.UpsertScript(redis.ModeHash)).Result()
	if err != nil {
		return did, fmt.Errorf("load the script: %w", err)
	}
	host, port, _ := strings.Cut(b.servers.redis.Addr, ":")
	keys := b.name + ":redis-benchmark:"
	const random = "__rand_int__"
	words = append(words, "-h", host, "-p", port, "-q", "-n", strconv.Itoa(b.rows), "-r", "2000000000", "-P", "100", "-c", "4",
		"evalsha", digest, "2", keys+random, "lockstep:t:{"+keys+random+"}", "1000000000", "_lockstep_v", "1000000000")
	gjson.ParseBytes(row).ForEach(func(name, value gjson.Result) bool {
		words = append(words, name.Str, value.String())
		return true
	})
	b.say("cache: redis-benchmark pipelines the same script")
	before, err := b.storeCPU(ctx, cache)
	if err != nil {
		return did, err
	}
	run := exec.CommandContext(ctx, words[0], words[1:]...)
	var said bytes.Buffer
	run.Stdout, run.Stderr = &said, &said
	began := time.Now()
	if err := run.Run(); err != nil {
		return did, fmt.Errorf("redis-benchmark: %w: %.300s", err, said.String())
	}
	did = bareLoop{operations: b.rows, took: time.Since(began), cpu: (run.ProcessState.UserTime() + run.ProcessState.SystemTime()).Seconds()}
	after, err := b.storeCPU(ctx, cache)
	if err != nil {
		return did, err
	}
	did.storeCPU = after - before
	// By chance a few keys are the same.
	if n, err := b.unlink(ctx, keys+"*"); err != nil || n < b.rows*999/1000 {
		return did, fmt.Errorf("redis-benchmark left %d keys in Redis, want %d (%w): %.300s", n, b.rows, err, said.String())
	}
	return did, nil
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
