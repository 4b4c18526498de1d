package redis

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/cdc"
)

// sweepPage is how many keys a sweep looks at together.
const sweepPage = 1000

// Sweep removes the rows of a table whose version is not above v, and leaves v in
// their companions. It walks over the names of all keys of every master. Keys of
// another table may match the same pattern (question:{id} and question:{id}:tags),
// so a key is taken for a row of this one only when the row in it gives that key.
func (s *Sink) Sweep(ctx context.Context, name cdc.TableName, v cdc.Version) (removed int, err error) {
	t, err := s.target(name)
	if err != nil || t == nil {
		return 0, err
	}
	pattern := glob(t.template.String(), name.DB, name.Table)
	var n atomic.Int64
	err = s.eachMaster(ctx, func(ctx context.Context, server *goredis.Client) error {
		for cursor := uint64(0); ; {
			keys, next, err := server.Scan(ctx, cursor, pattern, sweepPage).Result()
			if err != nil {
				return fmt.Errorf("redis %s: scan %q: %w", server.Options().Addr, pattern, err)
			}
			gone, err := s.sweepKeys(ctx, t, name, keys, v)
			n.Add(int64(gone))
			if err != nil {
				return fmt.Errorf("redis %s: sweep %s: %w", server.Options().Addr, name, err)
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	})
	return int(n.Load()), err
}

// sweepKeys removes those of keys that are old rows of the table.
func (s *Sink) sweepKeys(ctx context.Context, t *target, name cdc.TableName, keys []string, v cdc.Version) (removed int, err error) {
	keys = slices.DeleteFunc(keys, func(key string) bool { return strings.HasPrefix(key, companionPrefix) })
	old, err := s.choose(ctx, keys, t.readVersion, func(_ string, cmd goredis.Cmder) bool {
		stored, ok := t.versionIn(cmd)
		return ok && stored <= v
	})
	if err != nil {
		return 0, err
	}
	old, err = s.choose(ctx, old, t.readRow, func(key string, cmd goredis.Cmder) bool {
		return t.template.Gives(name, key, t.rowIn(cmd))
	})
	if err != nil || len(old) == 0 {
		return 0, err
	}
	digest := sweepHash.digest
	if t.json {
		digest = sweepJSON.digest
	}
	pipe := s.client.Pipeline()
	calls := make([]*goredis.Cmd, len(old))
	for i, key := range old {
		marker, _ := companion(key)
		calls[i] = pipe.EvalSha(ctx, digest, []string{key, marker}, v.String(), s.ttl)
	}
	_, execErr := pipe.Exec(ctx)
	for _, call := range calls {
		stored, err := call.Int64()
		switch {
		case code(err) == "NOSCRIPT":
			return removed, s.reload(ctx, err)
		case err != nil:
			return removed, err
		case stored == 0:
			removed++
		}
	}
	return removed, execErr
}

// reload loads the scripts that the server has forgotten. The sweep is told to
// begin again in any case.
func (s *Sink) reload(ctx context.Context, why error) error {
	if err := s.Probe(ctx); err != nil {
		return err
	}
	return why
}

// choose asks one question about each key and keeps the keys whose answers pass.
// A key of another type than the rows have is not chosen.
func (s *Sink) choose(ctx context.Context, keys []string, ask func(context.Context, goredis.Pipeliner, string) goredis.Cmder, pass func(string, goredis.Cmder) bool) ([]string, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	pipe := s.client.Pipeline()
	answers := make([]goredis.Cmder, len(keys))
	for i, key := range keys {
		answers[i] = ask(ctx, pipe, key)
	}
	_, execErr := pipe.Exec(ctx)
	var chosen []string
	for i, answer := range answers {
		switch err := answer.Err(); {
		case err == goredis.Nil || code(err) == "WRONGTYPE":
		case err != nil:
			return nil, err
		case pass(keys[i], answer):
			chosen = append(chosen, keys[i])
		}
	}
	if execErr != nil && execErr != goredis.Nil && code(execErr) != "WRONGTYPE" {
		return nil, execErr
	}
	return chosen, nil
}

func (t *target) readVersion(ctx context.Context, pipe goredis.Pipeliner, key string) goredis.Cmder {
	if t.json {
		return pipe.GetRange(ctx, key, -48, -1)
	}
	return pipe.HGet(ctx, key, versionField)
}

// jsonTail is where a JSON row has its version.
var jsonTail = regexp.MustCompile(`,"` + jsonField + `":\{"v":(\d+)\}\}$`)

// versionIn is the version of a row; false for a value that has none and so was not
// written here.
func (t *target) versionIn(cmd goredis.Cmder) (cdc.Version, bool) {
	text := cmd.(*goredis.StringCmd).Val()
	if t.json {
		m := jsonTail.FindStringSubmatch(text)
		if m == nil {
			return 0, false
		}
		text = m[1]
	}
	v, err := cdc.ParseVersion(text)
	return v, err == nil
}

func (t *target) readRow(ctx context.Context, pipe goredis.Pipeliner, key string) goredis.Cmder {
	if t.json {
		return pipe.Get(ctx, key)
	}
	return pipe.HGetAll(ctx, key)
}

// rowIn is a row by column, each value as the text that a key has of it.
func (t *target) rowIn(cmd goredis.Cmder) map[string]string {
	if hash, ok := cmd.(*goredis.MapStringStringCmd); ok {
		row := hash.Val()
		delete(row, versionField)
		return row
	}
	row := make(map[string]string)
	texts, _ := fields([]byte(cmd.(*goredis.StringCmd).Val()))
	for i := 0; i+1 < len(texts); i += 2 {
		row[texts[i]] = texts[i+1]
	}
	delete(row, jsonField)
	return row
}
