package redis

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/uuid"
	goredis "github.com/redis/go-redis/v9"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/sinks/sinktest"
)

func TestHashesPassTheSuiteOfSinks(t *testing.T) { suite(t, ModeHash) }
func TestJSONPassesTheSuiteOfSinks(t *testing.T) { suite(t, ModeJSON) }

func suite(t *testing.T, mode string) {
	sinktest.Run(t, func(t *testing.T) sinktest.Store {
		addr := testenv.Redis(t).Addr
		prefix := "sinktest-" + uuid.NewString()[:8]
		table := TableConfig{Key: prefix + ":{table}:{pk}", Mode: mode}
		cfg := DefaultConfig()
		cfg.Addresses = []string{addr}
		cfg.PipelineBytes = 4096 // several pipelines in one call
		s, err := Open(t.Context(), cfg, func(cdc.TableName) (TableConfig, bool) { return table, true }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		st := store{s, goredis.NewClient(&goredis.Options{Addr: addr}), table}
		t.Cleanup(func() {
			keys := st.plain.Scan(context.Background(), 0, "*"+prefix+"*", 1000).Iterator()
			for keys.Next(context.Background()) {
				st.plain.Del(context.Background(), keys.Val())
			}
			if err := errors.Join(keys.Err(), s.Close(), st.plain.Close()); err != nil {
				t.Error(err)
			}
		})
		return st
	})
}

// store reads what the sink wrote as a client of Redis does.
type store struct {
	*Sink
	plain *goredis.Client
	table TableConfig
}

func (s store) key(t testing.TB, table cdc.TableName, key []byte) string {
	template, err := cdc.ParseKeyTemplate(s.table.Key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := template.Render(table, key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (s store) Read(t testing.TB, table cdc.TableName, key []byte) (map[string]string, cdc.Version, bool) {
	fields, version := map[string]string{}, ""
	if s.table.Mode == ModeHash {
		hash, err := s.plain.HGetAll(context.Background(), s.key(t, table, key)).Result()
		if err != nil {
			t.Error(err)
		}
		if len(hash) == 0 {
			return nil, 0, false
		}
		fields, version = hash, hash["_lockstep_v"]
		delete(fields, "_lockstep_v")
	} else {
		text, err := s.plain.Get(context.Background(), s.key(t, table, key)).Result()
		if errors.Is(err, goredis.Nil) {
			return nil, 0, false
		}
		if err != nil || !gjson.Valid(text) {
			t.Errorf("error %v, text %q", err, text)
		}
		gjson.Parse(text).ForEach(func(name, value gjson.Result) bool {
			switch {
			case name.Str == "_lockstep":
				version = value.Get("v").Raw
			case value.Type != gjson.Null:
				fields[name.Str] = value.String()
			}
			return true
		})
	}
	v, err := cdc.ParseVersion(version)
	if err != nil {
		t.Error(err)
	}
	return fields, v, true
}

// Poison puts a list where the row is to be.
func (s store) Poison(t testing.TB, id int, version cdc.Version) cdc.Change {
	c := sinktest.Upsert(id, 0, "poison")
	c.Version = version
	if err := s.plain.LPush(context.Background(), s.key(t, c.Table, c.Key), "x").Err(); err != nil {
		t.Fatal(err)
	}
	return c
}
