// Package redis keeps rows in Redis or Valkey, alone or as a cluster, one key per
// row, and never lets an older version of a row replace a newer one.
//
// A row is a hash with one field per column, or a JSON string; its version lives
// in the value. A delete removes the key and leaves the version in a companion
// key, lockstep:t:{key} (lockstep:t::key when key has a hash tag), for Config.TombstoneTTL; the next upsert removes the
// companion. One Lua script per shape compares and writes, so a change may come
// again, late or out of order. A key of the right type that carries no version
// was not written here; it is overwritten.
//
// Only what Redis 7 and Valkey 8 share is used.
package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"lockstep/cdc"
	"lockstep/sinks"
)

// Sink is a sinks.Sink on Redis. It is safe for use by several goroutines.
type Sink struct {
	cfg     Config
	client  goredis.UniversalClient
	cluster bool
	ttl     string // of companions, in milliseconds
	tables  func(cdc.TableName) (TableConfig, bool)
	targets sync.Map // cdc.TableName -> *target
	keys    sync.Map // key template with its table filled in -> cdc.TableName
	log     *slog.Logger
}

// The driver reports lost connections to a logger of its own; ours come back as
// errors.
func init() { goredis.SetLogger(silent{}) }

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// Open connects to Redis and loads the scripts. A server that may evict keys, or
// does not know us, is refused with an error. A server that cannot be reached now
// is not: Apply answers Unavailable until it can be. Every new connection is
// checked in the same way.
//
// tables gives the configuration of a table, or false for a table that does not
// go to this store; it is asked once for each.
func Open(ctx context.Context, cfg Config, tables func(cdc.TableName) (TableConfig, bool), log *slog.Logger) (*Sink, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	tlsConfig, err := cfg.TLS.config()
	if err != nil {
		return nil, err
	}
	s := &Sink{
		cfg:     cfg,
		cluster: len(cfg.Addresses) > 1,
		ttl:     strconv.FormatInt(cfg.TombstoneTTL.Milliseconds(), 10),
		tables:  tables,
		log:     log,
		client: goredis.NewUniversalClient(&goredis.UniversalOptions{
			Addrs:        cfg.Addresses,
			Username:     cfg.Username,
			Password:     cfg.Password.Reveal(),
			DB:           cfg.DB,
			TLSConfig:    tlsConfig,
			DialTimeout:  cfg.Timeout,
			ReadTimeout:  cfg.Timeout,
			WriteTimeout: cfg.Timeout,
			PoolTimeout:  cfg.Timeout,
			// Without it a deadline of the caller is not heard.
			ContextTimeoutEnabled: true,
			// Trying again is the worker's business: it halves and backs off.
			MaxRetries:    -1,
			DialerRetries: 1,
			// Behind a new connection may stand another server.
			OnConnect: func(ctx context.Context, conn *goredis.Conn) error {
				return checkPolicy(ctx, conn, cfg)
			},
			// A command that other servers than Redis Enterprise answer with an error.
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		}),
	}
	if err := s.Probe(ctx); err != nil {
		if _, no := errors.AsType[sinks.Unfit](err); no || ctx.Err() != nil {
			return nil, errors.Join(err, s.client.Close())
		}
		log.Warn("redis is not available yet", "addresses", cfg.Addresses, "error", err)
	}
	return s, nil
}

// Close ends all connections. Apply must not be under way.
func (s *Sink) Close() error { return s.client.Close() }

// Probe reports whether the store can take changes now: it answers, its eviction
// policy is the right one, and it has the scripts.
func (s *Sink) Probe(ctx context.Context) error {
	return s.eachMaster(ctx, func(ctx context.Context, server *goredis.Client) error {
		err := checkPolicy(ctx, server, s.cfg)
		if err == nil {
			err = checkLimit(ctx, server, s.cfg)
		}
		for i := 0; err == nil && i < len(scripts); i++ {
			err = server.ScriptLoad(ctx, scripts[i].text).Err()
		}
		switch code(err) {
		case "NOAUTH", "WRONGPASS", "NOPERM":
			err = sinks.Unfit{Problem: fmt.Sprintf("server refuses the user %q: %v", s.cfg.Username, err), Mend: "see to its password and its rights"}
		}
		if err != nil {
			return fmt.Errorf("redis %s: %w", server.Options().Addr, err)
		}
		return nil
	})
}

// checkPolicy refuses a server that may evict keys, unless that was agreed to. It
// asks INFO, which needs no right to read the configuration.
func checkPolicy(ctx context.Context, server interface {
	Info(ctx context.Context, section ...string) *goredis.StringCmd
}, cfg Config) error {
	if cfg.Mode == ModeCache {
		return nil
	}
	info, err := server.Info(ctx, "memory").Result()
	if err != nil {
		return err
	}
	if policy := infoField(info, "maxmemory_policy"); policy != "noeviction" {
		// The driver strips one layer off what OnConnect returns, so nothing wraps it.
		return sinks.Unfit{Problem: fmt.Sprintf("its maxmemory-policy is %q, so it may evict rows", policy),
			Mend: `set "maxmemory-policy noeviction" there, or declare this sink "mode: cache" if rows may be missing`}
	}
	return nil
}

// checkLimit refuses a server that cuts the connection at a value which we would send,
// because it would do so for ever. Where we may not ask, it is taken to be as it comes,
// far above.
func checkLimit(ctx context.Context, server *goredis.Client, cfg Config) error {
	const name = "proto-max-bulk-len"
	is, err := server.ConfigGet(ctx, name).Result()
	if err != nil {
		if code(err) != "" {
			return nil
		}
		return err
	}
	if most, err := strconv.Atoi(is[name]); err == nil && most < cfg.MaxValueBytes {
		return sinks.Unfit{Problem: fmt.Sprintf("its %s is %d, less than max_value_bytes %d: it would cut every connection that brings it a larger row", name, most, cfg.MaxValueBytes),
			Mend: fmt.Sprintf("set max_value_bytes to %d at most, or %s to %d or more there", most, name, cfg.MaxValueBytes)}
	}
	return nil
}

// eachMaster calls f for the server, or for every master of the cluster at once.
func (s *Sink) eachMaster(ctx context.Context, f func(context.Context, *goredis.Client) error) error {
	switch client := s.client.(type) {
	case *goredis.ClusterClient:
		return client.ForEachMaster(ctx, f)
	case *goredis.Client:
		return f(ctx, client)
	}
	panic(fmt.Sprintf("redis: client is a %T", s.client))
}

func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Apply writes the changes in pipelines of PipelineBytes. It is a sinks.Sink.
func (s *Sink) Apply(ctx context.Context, changes []cdc.Change) []sinks.Outcome {
	outcomes := make([]sinks.Outcome, len(changes))
	var pipe []call
	size := 0
	for i := range changes {
		c, refusal := s.encode(&changes[i])
		if refusal != nil {
			outcomes[i] = *refusal
			continue
		}
		c.change = i
		if len(pipe) > 0 && size+c.size > s.cfg.PipelineBytes {
			if err := s.send(ctx, pipe, changes, outcomes); err != nil {
				// The rest would wait for the same server, one timeout each.
				hold(outcomes[i:], err)
				return outcomes
			}
			pipe, size = pipe[:0], 0
		}
		pipe = append(pipe, c)
		size += c.size
	}
	if len(pipe) > 0 {
		s.send(ctx, pipe, changes, outcomes)
	}
	return outcomes
}

func hold(outcomes []sinks.Outcome, err error) {
	for i := range outcomes {
		outcomes[i] = sinks.Outcome{Verdict: sinks.Unavailable, Reason: err.Error()}
	}
}

// send runs one pipeline and fills in its outcomes. The error says that the
// connection failed. Scripts that the server has forgotten (it was restarted,
// another one took over, SCRIPT FLUSH) are loaded again and their calls repeated;
// keys of one Apply differ, so the order of the calls does not matter.
func (s *Sink) send(ctx context.Context, calls []call, changes []cdc.Change, outcomes []sinks.Outcome) error {
	forgotten, err := s.exec(ctx, calls, changes, outcomes)
	if err != nil || len(forgotten) == 0 {
		return err
	}
	s.log.Info("redis has forgotten the scripts; loading them again", "calls", len(forgotten))
	if err := s.Probe(ctx); err != nil {
		for _, c := range forgotten {
			hold(outcomes[c.change:c.change+1], err)
		}
		return err
	}
	_, err = s.exec(ctx, forgotten, changes, outcomes)
	return err
}

// exec runs one pipeline and fills in its outcomes, those of NOSCRIPT as
// Unavailable. It returns the calls that were answered so, and the error of the
// connection.
func (s *Sink) exec(ctx context.Context, calls []call, changes []cdc.Change, outcomes []sinks.Outcome) (forgotten []call, broken error) {
	pipe := s.client.Pipeline()
	cmds := make([]*goredis.Cmd, len(calls))
	for i, c := range calls {
		cmds[i] = goredis.NewCmd(ctx, c.args...)
		if err := pipe.Process(ctx, cmds[i]); err != nil {
			panic("redis: queue a command: " + err.Error())
		}
	}
	_, execErr := pipe.Exec(ctx)
	for i, cmd := range cmds {
		change := calls[i].change
		stored, err := cmd.Int64()
		switch {
		case err == nil:
			outcomes[change] = sinks.Outcome{Verdict: verdict(stored, changes[change].Version)}
			continue
		case cmd.Err() == nil:
			// No reply and no error of its own: the connection could not be made,
			// for example because the server wants a password.
			if execErr != nil {
				err = execErr
			}
			broken = err
			outcomes[change] = sinks.Outcome{Verdict: sinks.Unavailable, Reason: err.Error()}
			continue
		case code(err) == "NOSCRIPT":
			forgotten = append(forgotten, calls[i])
		case code(err) == "":
			broken = err
		}
		outcomes[change] = classify(err)
	}
	return forgotten, broken
}

// Empty reports whether the store has neither a row of the table nor a marker of
// a deleted one. It reads the names of all keys until it finds one; ctx bounds
// how long.
func (s *Sink) Empty(ctx context.Context, table cdc.TableName, cfg TableConfig) (bool, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Check(); err != nil {
		return false, fmt.Errorf("table %s: %w", table, err)
	}
	rows := glob(cfg.Key, table.DB, table.Table)
	var found atomic.Bool
	err := s.eachMaster(ctx, func(ctx context.Context, server *goredis.Client) error {
		for _, pattern := range []string{rows, companionPrefix + "[{:]" + rows + "*"} {
			for cursor := uint64(0); !found.Load(); {
				keys, next, err := server.Scan(ctx, cursor, pattern, 1000).Result()
				if err != nil {
					return fmt.Errorf("redis %s: scan %q: %w", server.Options().Addr, pattern, err)
				}
				if len(keys) > 0 {
					found.Store(true)
				}
				if cursor = next; cursor == 0 {
					break
				}
			}
		}
		return nil
	})
	return !found.Load(), err
}
