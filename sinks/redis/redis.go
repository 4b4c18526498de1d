// Package redis keeps rows in Redis or Valkey, alone or as a cluster, and never
// lets an older version of a row replace a newer one.
//
// TableConfig.Mode is the shape of a table's rows. A hash, a JSON string and a
// stream carry the version in themselves; a delete removes the key and leaves the version in a companion
// key, lockstep:t:{key} (lockstep:t::key when key has a hash tag), for Config.TombstoneTTL; the next upsert removes the
// companion. A text, the members of a set and what is only invalidated have it in a companion of
// their table, lockstep:v:db.table:{key}. One Lua script per shape compares and writes, so a change may come
// again, late or out of order. A key of the right type that carries no version
// was not written here; it is overwritten.
//
// A key template may name columns besides the primary key. A row whose place changes is removed
// from the old one, at the version of the change, and put into the new one, each behind its guard.
//
// Only what Redis 7 and Valkey 8 share is used.
package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
	// Describe gives a table as the rows of it come here now, and an error of
	// cdc.ErrNoTable when it is gone. It is asked when a row lacks a column that the
	// table's templates name: where the table lacks it too, its rows wait. nil makes
	// each a dead letter. It is to be set before the first Apply.
	Describe func(ctx context.Context, table cdc.TableName) (cdc.Table, error)

	cfg     Config
	client  goredis.UniversalClient
	cluster bool
	ttl     string // of companions, in milliseconds
	tables  func(cdc.TableName) (TableConfig, bool)
	targets sync.Map // cdc.TableName -> *target
	keys    sync.Map // key template with its table filled in -> cdc.TableName
	marks   sync.Map // consumer group -> *marks
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
	access, err := openAccess(cfg, log)
	if err != nil {
		return nil, err
	}
	sentinel, err := passwordOf(cfg.Sentinel.Password.Reveal(), cfg.Sentinel.PasswordFile)
	if err != nil {
		return nil, fmt.Errorf("sentinel.%w", err)
	}
	s := &Sink{
		cfg:     cfg,
		cluster: cfg.cluster(),
		ttl:     strconv.FormatInt(cfg.TombstoneTTL.Milliseconds(), 10),
		tables:  tables,
		log:     log,
		client: goredis.NewUniversalClient(&goredis.UniversalOptions{
			Addrs:            cfg.Addresses,
			MasterName:       cfg.Sentinel.Master,
			SentinelUsername: cfg.Sentinel.Username,
			SentinelPassword: sentinel,
			DB:               cfg.DB,
			Dialer:           access.dial,
			// Asked for each connection.
			CredentialsProviderContext: access.login,
			DialTimeout:                cfg.Timeout,
			ReadTimeout:                cfg.Timeout,
			WriteTimeout:               cfg.Timeout,
			PoolTimeout:                cfg.Timeout,
			// Without it a deadline of the caller is not heard.
			ContextTimeoutEnabled: true,
			// Trying again is the worker's business: it halves and backs off.
			MaxRetries:    -1,
			DialerRetries: 1,
			// Behind a new connection may stand another server.
			OnConnect: func(ctx context.Context, conn *goredis.Conn) error {
				return checkPolicy(ctx, conn, cfg)
			},
			// It would need a right, and Redis 7.0 does not know it.
			DisableIdentity: true,
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
		if err == nil {
			err = loadScripts(ctx, server)
		}
		switch code(err) {
		case "NOAUTH", "WRONGPASS", "NOPERM":
			who, user := "server refuses", s.cfg.Username
			if strings.Contains(err.Error(), "all sentinels") { // the driver has asked them for the master
				who, user = "sentinels refuse", s.cfg.Sentinel.Username
			}
			err = sinks.Unfit{Problem: fmt.Sprintf("%s the user %q: %v", who, user, err), Mend: "see to its password and its rights"}
		}
		if err != nil {
			return fmt.Errorf("redis %s: %w", server.Options().Addr, err)
		}
		return nil
	})
}

func loadScripts(ctx context.Context, server *goredis.Client) error {
	_, err := server.Pipelined(ctx, func(pipe goredis.Pipeliner) error {
		for _, script := range scripts {
			pipe.ScriptLoad(ctx, script.text)
		}
		return nil
	})
	return err
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
	policy := infoField(info, "maxmemory_policy")
	if policy == "" && cfg.Sentinel.Master != "" {
		return nil // a sentinel, which keeps nothing
	}
	if policy != "noeviction" {
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
	return eachMasterOf(ctx, s.client, f)
}

func eachMasterOf(ctx context.Context, client goredis.UniversalClient, f func(context.Context, *goredis.Client) error) error {
	switch client := client.(type) {
	case *goredis.ClusterClient:
		return client.ForEachMaster(ctx, f)
	case *goredis.Client:
		return f(ctx, client)
	}
	panic(fmt.Sprintf("redis: client is a %T", client))
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
	a := attempt{Sink: s, scratch: scratches.Get().(*scratch), changes: changes, tallies: make([]tally, len(changes))}
	defer a.giveBack()
	for i := range changes {
		if !a.add(ctx, i) {
			// The rest would wait for the same server, one timeout each.
			break
		}
	}
	if a.broken == nil && len(a.pipe) > 0 {
		a.flush(ctx)
	}
	outcomes := make([]sinks.Outcome, len(changes))
	for i := range outcomes {
		outcomes[i] = a.tallies[i].outcome(a.broken)
	}
	return outcomes
}

// attempt is one Apply under way.
type attempt struct {
	*Sink
	*scratch
	changes []cdc.Change
	tallies []tally
	pipe    []call
	size    int
	broken  error                            // the connection failed
	misfits map[cdc.TableName]*sinks.Outcome // of the tables that were looked at
	to      *target                          // of the last change
}

// target is Sink.target, which mostly is what it was for the change before.
func (a *attempt) target(name cdc.TableName) (t *target, err error) {
	if a.to != nil && a.to.name == name {
		return a.to, nil
	}
	a.to, err = a.Sink.target(name)
	return a.to, err
}

// tally gathers the answers to the calls of one change.
type tally struct {
	answered bool
	main     sinks.Outcome
	refused  *sinks.Outcome // the gravest refusal of any call
}

// gravity orders refusals: what was not asked counts before what was refused.
var gravity = [...]int{sinks.Unavailable: 3, sinks.Poison: 2, sinks.Transient: 1, sinks.Filtered: 0}

func (t *tally) note(main bool, out sinks.Outcome) {
	if main {
		t.answered, t.main = true, out
	}
	if g := gravity[out.Verdict]; g > 0 && (t.refused == nil || g > gravity[t.refused.Verdict]) {
		t.refused = &out
	}
}

// outcome is what the place of the row answered, provided that every other call of
// the change was taken as well. Whatever got no answer waits.
func (t *tally) outcome(broken error) sinks.Outcome {
	switch {
	case t.refused != nil:
		return *t.refused
	case t.answered:
		return t.main
	case broken != nil:
		return sinks.Outcome{Reason: broken.Error()}
	}
	return sinks.Outcome{}
}

// add encodes a change, and sends the pipeline before it when both would be too
// large. It reports false when the connection failed.
func (a *attempt) add(ctx context.Context, i int) bool {
	begin := len(a.pipe)
	pipe, refusal := a.encode(&a.changes[i], a.pipe)
	a.pipe = pipe
	if refusal != nil && refusal.Unasked {
		if refusal = a.unfit(ctx, a.changes[i].Table, refusal); refusal.Verdict == sinks.Unavailable {
			pipe = pipe[:begin] // it stays where it is while the table waits
			a.pipe = pipe
		}
	}
	if refusal != nil { // other calls may be to be made all the same
		a.tallies[i].note(true, *refusal)
	}
	size := 0
	for j := range pipe[begin:] {
		pipe[begin+j].change = i
		size += pipe[begin+j].size
	}
	if begin > 0 && a.size+size > a.cfg.PipelineBytes {
		mine := slices.Clone(pipe[begin:])
		a.pipe = pipe[:begin]
		if a.flush(ctx); a.broken != nil {
			return false
		}
		a.pipe = append(a.pipe, mine...)
	}
	a.size += size
	return true
}

// unfit decides about a row without a column that a template names. It waits while the
// configuration does not fit the table, and is a dead letter when the table is only
// another by now than the row.
func (a *attempt) unfit(ctx context.Context, table cdc.TableName, refusal *sinks.Outcome) *sinks.Outcome {
	misfit, looked := a.misfits[table]
	if !looked && a.Describe != nil {
		now, err := a.Describe(ctx, table)
		switch cfg, _ := a.tables(table); {
		case errors.Is(err, cdc.ErrNoTable): // the barrier of its DROP stands behind the change
			misfit = &sinks.Outcome{Verdict: sinks.Transient, Class: sinks.ClassNoTable, Reason: err.Error()}
		case err != nil:
			misfit = &sinks.Outcome{Unasked: true, Reason: err.Error()}
		default:
			if err := CheckTable(cfg, now); err != nil {
				misfit = &sinks.Outcome{Unasked: true, Reason: err.Error() + ", and start the sink again"}
			}
		}
		if a.misfits == nil {
			a.misfits = map[cdc.TableName]*sinks.Outcome{}
		}
		a.misfits[table] = misfit
	}
	if misfit != nil {
		return misfit
	}
	return poison(refusal.Class, "%s", refusal.Reason)
}

// flush sends the pipeline. Scripts that the server has forgotten (it was
// restarted, another one took over, SCRIPT FLUSH) are loaded again and their calls
// repeated; places of one Apply differ, so the order of the calls does not matter.
func (a *attempt) flush(ctx context.Context) {
	forgotten := a.exec(ctx, a.pipe)
	if a.broken == nil && len(forgotten) > 0 {
		a.log.Info("redis has forgotten the scripts; loading them again", "calls", len(forgotten))
		if a.broken = a.Probe(ctx); a.broken == nil {
			forgotten = a.exec(ctx, forgotten)
		}
	}
	reason := "the scripts are forgotten again and again" // it is on its way up or down
	if a.broken != nil {
		reason = a.broken.Error()
	}
	for _, c := range forgotten {
		a.tallies[c.change].note(c.main, sinks.Outcome{Reason: reason})
	}
	if a.broken != nil {
		a.lookAnew(ctx)
	}
	a.pipe, a.size = a.pipe[:0], 0
}

// lookAnew has the driver ask anew who has which slots of a cluster, once somebody does not
// answer: it does so by itself when a server says so, not when one is gone.
func (s *Sink) lookAnew(ctx context.Context) {
	if cluster, ok := s.client.(*goredis.ClusterClient); ok {
		cluster.ReloadState(ctx)
	}
}

// exec runs one pipeline and notes its outcomes. It returns the calls whose scripts
// the server does not know.
func (a *attempt) exec(ctx context.Context, calls []call) (forgotten []call) {
	pipe := a.client.Pipeline()
	cmds := make([]*goredis.Cmd, len(calls))
	for i, c := range calls {
		cmds[i] = goredis.NewCmd(ctx, c.args...)
		if err := pipe.Process(ctx, cmds[i]); err != nil {
			panic("redis: queue a command: " + err.Error())
		}
	}
	_, execErr := pipe.Exec(ctx)
	for i, cmd := range cmds {
		c := calls[i]
		stored, err := cmd.Int64()
		var out sinks.Outcome
		switch {
		case err == nil:
			out.Verdict = verdict(stored, a.changes[c.change].Version)
		case cmd.Err() == nil:
			// No reply and no error of its own: the connection could not be made,
			// for example because the server wants a password.
			if execErr != nil {
				err = execErr
			}
			a.broken = err
			out.Reason = err.Error()
		case code(err) == "NOSCRIPT":
			forgotten = append(forgotten, c)
			continue
		default:
			if code(err) == "" {
				a.broken = err
			}
			if out = classify(err); c.leaves && out.Verdict == sinks.Transient {
				out.Verdict, out.Unasked = sinks.Unavailable, true // it may still be there, and nobody else would know
			}
		}
		a.tallies[c.change].note(c.main, out)
	}
	return forgotten
}

// Empty reports whether the store has neither a row of the table nor a version of
// one. It reads the names of all keys until it finds one; ctx bounds how long. Keys
// that the table only invalidates belong to somebody else.
func (s *Sink) Empty(ctx context.Context, table cdc.TableName, cfg TableConfig) (bool, error) {
	t, err := newTarget(table, cfg)
	if err != nil {
		return false, err
	}
	rows := glob(t.cfg.Key, table.DB, table.Table)
	patterns := []string{rows, deletedPrefix + "[{:]" + rows + "*"}
	if !t.inside() {
		patterns[1] = escapeGlob.Replace(t.beside) + "*"
	}
	if t.cfg.Mode == ModeInvalidate {
		patterns = patterns[1:]
	}
	var found atomic.Bool
	err = s.eachMaster(ctx, func(ctx context.Context, server *goredis.Client) error {
		for _, pattern := range patterns {
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
