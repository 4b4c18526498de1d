package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Watcher reads random keys from both stores while they are written to, and
// notes every time a version that it reads is lower than one it has read before.
// A key that was gone must come back with a higher version than it had.
type Watcher struct {
	// Spec names the tables and the stores.
	Spec Spec
	// Keys is how many keys are kept in view, spread over all tables; 0 is 2000.
	// Rows that are deleted stay in view.
	Keys int

	mu         sync.Mutex
	reads      int64
	failed     int64
	violations []string
	total      int
}

// Reads is how many answers were judged. A watch that read nothing saw nothing.
func (w *Watcher) Reads() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reads
}

// Failed is how many requests a store did not answer, because it was down.
func (w *Watcher) Failed() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// Violations lists the first hundred steps back, and nothing when there was none.
func (w *Watcher) Violations() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.total > len(w.violations) {
		return append(w.violations[:len(w.violations):len(w.violations)], fmt.Sprintf("and %d more", w.total-len(w.violations)))
	}
	return w.violations
}

// sight is what was last seen of a key in one store.
type sight struct {
	version uint64
	gone    bool // absent since version was seen
}

// watched is a key in view.
type watched struct {
	table          *TableSpec
	id, redisKey   string
	elastic, redis sight
}

// Run reads until ctx ends and returns nil, or an error when MySQL cannot be
// asked for keys. Stores that do not answer are asked again.
func (w *Watcher) Run(ctx context.Context) error {
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	var store *redis.Client
	if w.Spec.RedisAddr != "" {
		store = redis.NewClient(&redis.Options{Addr: w.Spec.RedisAddr, ContextTimeoutEnabled: true, ReadTimeout: 5 * time.Second})
		defer store.Close()
	}
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	view := make([][]*watched, len(w.Spec.Tables))
	known := make([]map[string]bool, len(w.Spec.Tables))
	for i := range known {
		known[i] = map[string]bool{}
	}
	most := w.Keys
	if most == 0 {
		most = 2000
	}
	most = max(1, most/max(1, len(w.Spec.Tables)))

	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for lap := 0; ; lap++ {
		for i := range w.Spec.Tables {
			if lap%20 == 0 && len(view[i]) < most {
				more, err := w.choose(ctx, &w.Spec.Tables[i], known[i], min(100, most-len(view[i])))
				if err != nil && ctx.Err() == nil {
					return err
				}
				view[i] = append(view[i], more...)
			}
			rng.Shuffle(len(view[i]), func(a, b int) { view[i][a], view[i][b] = view[i][b], view[i][a] })
			w.lap(ctx, client, store, &w.Spec.Tables[i], view[i][:min(50, len(view[i]))])
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// choose takes random rows of the table into view.
func (w *Watcher) choose(ctx context.Context, t *TableSpec, known map[string]bool, n int) ([]*watched, error) {
	var template template
	if t.RedisKey != "" {
		var err error
		if template, err = parseTemplate(t.RedisKey, w.Spec.Database, t.Table); err != nil {
			return nil, err
		}
	}
	var chosen []*watched
	err := query(ctx, w.Spec.DB, w.Spec.Database, *t, fmt.Sprintf("ORDER BY RAND() LIMIT %d", n), true, func(key, _ []field) error {
		r, err := newRow(template, key, nil)
		if err == nil && !known[r.id] {
			known[r.id] = true
			chosen = append(chosen, &watched{table: t, id: r.id, redisKey: r.redisKey})
		}
		return err
	})
	return chosen, err
}

// lap reads the keys once from each store.
func (w *Watcher) lap(ctx context.Context, client *http.Client, store *redis.Client, t *TableSpec, keys []*watched) {
	if len(keys) == 0 {
		return
	}
	if w.Spec.ElasticURL != "" && t.Index != "" {
		versions, err := elasticVersions(ctx, client, w.Spec.ElasticURL, t, keys)
		w.count(ctx, len(versions), err)
		for i, v := range versions {
			w.judge(Elastic, keys[i], &keys[i].elastic, v)
		}
	}
	if store != nil && t.RedisKey != "" {
		versions, err := redisVersions(ctx, store, t, keys)
		w.count(ctx, len(versions), err)
		for i, v := range versions {
			w.judge(Redis, keys[i], &keys[i].redis, v)
		}
	}
}

func (w *Watcher) count(ctx context.Context, reads int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads += int64(reads)
	if err != nil && ctx.Err() == nil {
		w.failed++
	}
}

// judge holds what was read, 0 for an absent key, against what was seen before.
func (w *Watcher) judge(sink string, k *watched, last *sight, version uint64) {
	switch {
	case version == 0:
		last.gone = last.version > 0
		return
	case version < last.version:
		w.accuse("%s: %s/%s went from version %d down to %d", sink, k.table.Table, k.id, last.version, version)
	case version == last.version && last.gone:
		w.accuse("%s: %s/%s was deleted and came back with the version %d it had before", sink, k.table.Table, k.id, version)
	}
	*last = sight{version: max(version, last.version)}
}

func (w *Watcher) accuse(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.total++
	if len(w.violations) < 100 {
		w.violations = append(w.violations, fmt.Sprintf(format, args...))
	}
}

// elasticVersions reads past the refresh: what a GET by id returns right now.
func elasticVersions(ctx context.Context, client *http.Client, base string, t *TableSpec, keys []*watched) ([]uint64, error) {
	ids := make([]string, len(keys))
	for i, k := range keys {
		ids[i] = k.id
	}
	docs, err := mget(ctx, client, base, t.Index, "realtime=true&_source=false", ids)
	if err != nil {
		return nil, err
	}
	versions := make([]uint64, len(docs))
	for i, d := range docs {
		if d.Error != nil {
			return nil, errors.New(string(d.Error))
		}
		if d.Found {
			if versions[i], err = parseVersion(d.Version); err != nil {
				return nil, err
			}
		}
	}
	return versions, nil
}

func redisVersions(ctx context.Context, store *redis.Client, t *TableSpec, keys []*watched) ([]uint64, error) {
	commands := make([]*redis.StringCmd, len(keys))
	_, err := store.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, k := range keys {
			if t.RedisMode == "json" {
				commands[i] = p.Get(ctx, k.redisKey)
			} else {
				commands[i] = p.HGet(ctx, k.redisKey, "_lockstep_v")
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, err
	}
	versions := make([]uint64, len(keys))
	for i, command := range commands {
		text, err := command.Result()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return nil, err
		}
		version := json.Number(text)
		if t.RedisMode == "json" {
			var value struct {
				CDC struct {
					V json.Number `json:"v"`
				} `json:"_lockstep"`
			}
			if err := json.NewDecoder(strings.NewReader(text)).Decode(&value); err != nil {
				return nil, err
			}
			version = value.CDC.V
		}
		if versions[i], err = parseVersion(version); err != nil {
			return nil, err
		}
	}
	return versions, nil
}

func parseVersion(n json.Number) (uint64, error) {
	v, err := n.Int64()
	if err != nil || v < 1 {
		return 0, fmt.Errorf("%q is not a version", n.String())
	}
	return uint64(v), nil
}
