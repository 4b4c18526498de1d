package redis

import (
	"context"
	"encoding/json"
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
// their companions. It walks over the names of all keys of every master. Where the
// version lives in the row, keys of another table may match the same pattern
// (question:{id} and question:{id}:tags), so a key is taken for a row of this one
// only when the row in it gives that key. Where it lives beside the row, the
// companions are the table's own. Rows whose last known deed was a delete keep the
// version they have.
func (s *Sink) Sweep(ctx context.Context, name cdc.TableName, v cdc.Version) (removed int, err error) {
	t, err := s.target(name)
	if err != nil || t == nil {
		return 0, err
	}
	sw := sweep{Sink: s, t: t, v: v}
	err = s.names(ctx, t, sw.page)
	if err != nil {
		err = fmt.Errorf("sweep %s: %w", name, err)
	}
	return int(sw.removed.Load()), err
}

// names hands over the names of the keys that tell of a table's rows, page by page: of
// the rows, where the version lives in them, else of their companions. Among them may be
// keys that are none of the table's.
func (s *Sink) names(ctx context.Context, t *target, each func(ctx context.Context, names []string) error) error {
	pattern := glob(t.cfg.Key, t.name.DB, t.name.Table)
	if !t.inside() {
		pattern = escapeGlob.Replace(t.beside) + "*"
	}
	return s.eachMaster(ctx, func(ctx context.Context, server *goredis.Client) error {
		for cursor := uint64(0); ; {
			keys, next, err := server.Scan(ctx, cursor, pattern, sweepPage).Result()
			if err != nil {
				return fmt.Errorf("redis %s: scan %q: %w", server.Options().Addr, pattern, err)
			}
			if err := each(ctx, keys); err != nil {
				return fmt.Errorf("redis %s: %w", server.Options().Addr, err)
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	})
}

// sweep is one Sweep under way.
type sweep struct {
	*Sink
	t       *target
	v       cdc.Version
	removed atomic.Int64
}

// page removes the old rows of the table that the names found lead to.
func (s *sweep) page(ctx context.Context, names []string) error {
	if s.t.inside() {
		return s.rows(ctx, names)
	}
	var old []place
	for _, name := range names {
		key, ok := besideWhat(s.t.beside, name)
		if !ok {
			continue
		}
		if !s.t.cfg.sets() {
			old = append(old, place{key: key})
			continue
		}
		if err := s.members(ctx, name, key); err != nil {
			return err
		}
	}
	return s.takeOut(ctx, old)
}

// rows removes those of keys that are old rows of the table.
func (s *sweep) rows(ctx context.Context, keys []string) error {
	keys = slices.DeleteFunc(keys, own)
	old, err := s.choose(ctx, keys, s.t.readVersion, func(_ string, cmd goredis.Cmder) bool {
		stored, ok := s.t.versionIn(cmd)
		return ok && stored <= s.v
	})
	if err != nil {
		return err
	}
	old, err = s.choose(ctx, old, s.t.readRow, func(key string, cmd goredis.Cmder) bool {
		row, ok := s.t.rowIn(cmd)
		return ok && s.t.places[0].Gives(s.t.name, key, row)
	})
	if err != nil {
		return err
	}
	places := make([]place, len(old))
	for i, key := range old {
		places[i].key = key
	}
	return s.takeOut(ctx, places)
}

// own tells keys that are no rows.
func own(key string) bool { return strings.HasPrefix(key, ownPrefix) }

// members removes the old members of one set, whose versions are in the hash.
func (s *sweep) members(ctx context.Context, hash, key string) error {
	return s.eachMember(ctx, hash, func(members map[string]string) error {
		var old []place
		for member, version := range members {
			if stored, err := cdc.ParseVersion(version); err == nil && stored <= s.v {
				old = append(old, place{key, member})
			}
		}
		return s.takeOut(ctx, old)
	})
}

// eachMember hands over the members that a hash of versions names, page by page, each
// with its version.
func (s *Sink) eachMember(ctx context.Context, hash string, each func(members map[string]string) error) error {
	for cursor := uint64(0); ; {
		pairs, next, err := s.client.HScan(ctx, hash, cursor, "", sweepPage).Result()
		if code(err) == "WRONGTYPE" {
			return nil
		}
		if err != nil {
			return err
		}
		members := map[string]string{}
		for i := 0; i+1 < len(pairs); i += 2 {
			members[pairs[i]] = pairs[i+1]
		}
		if err := each(members); err != nil {
			return err
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// takeOut removes rows, each through the guard.
func (s *sweep) takeOut(ctx context.Context, old []place) error {
	if len(old) == 0 {
		return nil
	}
	pipe := s.client.Pipeline()
	calls := make([]*goredis.Cmd, len(old))
	for i, at := range old {
		keys, _ := s.t.keys(at.key)
		args := []any{"evalsha", s.t.verbs.sweep.digest, len(keys)}
		for i := range keys {
			args = append(args, keys[i])
		}
		args = s.t.removal(append(args, s.v.String(), s.ttl), at.member, s.v)
		calls[i] = pipe.Do(ctx, args...)
	}
	_, execErr := pipe.Exec(ctx)
	for _, call := range calls {
		stored, err := call.Int64()
		switch {
		case code(err) == "NOSCRIPT":
			return s.reload(ctx, err)
		case code(err) == "WRONGTYPE": // not a row of ours
		case err != nil:
			return err
		case call.Err() == nil && stored == 0:
			s.removed.Add(1)
		}
	}
	if code(execErr) == "WRONGTYPE" {
		return nil
	}
	return execErr
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
	switch t.cfg.Mode {
	case ModeJSON:
		return pipe.GetRange(ctx, key, -48, -1)
	case ModeStream:
		return pipe.XRevRangeN(ctx, key, "+", "-", 1)
	}
	return pipe.HGet(ctx, key, versionField)
}

// jsonTail is where a JSON row has its version.
var jsonTail = regexp.MustCompile(`,"` + jsonField + `":\{"v":(\d+)\}\}$`)

// versionIn is the version of a row; false for a value that has none and so was not
// written here.
func (t *target) versionIn(cmd goredis.Cmder) (cdc.Version, bool) {
	if stream, ok := cmd.(*goredis.XMessageSliceCmd); ok {
		if len(stream.Val()) == 0 {
			return 0, false
		}
		v, err := streamVersion(stream.Val()[0].ID)
		return v, err == nil
	}
	text := cmd.(*goredis.StringCmd).Val()
	if t.cfg.Mode == ModeJSON {
		m := jsonTail.FindStringSubmatch(text)
		if m == nil {
			return 0, false
		}
		text = m[1]
	}
	v, err := cdc.ParseVersion(text)
	return v, err == nil
}

// streamVersion reads the id of an entry.
func streamVersion(id string) (cdc.Version, error) {
	var epoch uint16
	var seq uint64
	if _, err := fmt.Sscanf(id, "%d-%d", &epoch, &seq); err != nil {
		return 0, err
	}
	return cdc.NewVersion(epoch, seq)
}

func (t *target) readRow(ctx context.Context, pipe goredis.Pipeliner, key string) goredis.Cmder {
	switch t.cfg.Mode {
	case ModeJSON:
		return pipe.Get(ctx, key)
	case ModeStream:
		return t.readVersion(ctx, pipe, key)
	}
	return pipe.HGetAll(ctx, key)
}

// rowIn is a row by column, each value as the text that a key has of it. It is not
// ok when there is none.
func (t *target) rowIn(cmd goredis.Cmder) (row map[string]string, ok bool) {
	row = make(map[string]string)
	text := ""
	switch cmd := cmd.(type) {
	case *goredis.MapStringStringCmd:
		row = cmd.Val()
		delete(row, versionField)
		return row, true
	case *goredis.XMessageSliceCmd:
		if len(cmd.Val()) == 0 {
			return nil, false
		}
		text, _ = cmd.Val()[0].Values["row"].(string)
	case *goredis.StringCmd:
		text = cmd.Val()
	}
	if !json.Valid([]byte(text)) {
		return nil, false
	}
	texts, _ := fields(nil, []byte(text))
	for i := 0; i+1 < len(texts); i += 2 {
		row[texts[i]] = texts[i+1]
	}
	delete(row, jsonField)
	return row, true
}
