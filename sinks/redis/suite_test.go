package redis

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	goredis "github.com/redis/go-redis/v9"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

func TestHashesPassTheSuiteOfSinks(t *testing.T)  { suite(t, ModeHash) }
func TestJSONPassesTheSuiteOfSinks(t *testing.T)  { suite(t, ModeJSON) }
func TestStringsPassTheSuiteOfSinks(t *testing.T) { suite(t, ModeString) }
func TestStreamsPassTheSuiteOfSinks(t *testing.T) { suite(t, ModeStream) }

var questionColumns = []string{"id", "title", "body", "views", "price", "meta"}

// between stands between the columns of a string.
const between = "\x1e"

// suiteTable is how the suite's tables are kept in a shape.
func suiteTable(prefix, mode string, name cdc.TableName) TableConfig {
	table := TableConfig{Key: prefix + ":{table}:{pk}", Mode: mode}
	if mode == ModeString {
		table.Value = "{name}" + between + "{uses}"
		if name == sinktest.Questions.Name {
			table.Value = "{" + strings.Join(questionColumns, "}"+between+"{") + "}"
		}
	}
	return table
}

func suite(t *testing.T, mode string) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) sinktest.Store {
		addr := testenv.Redis(t).Addr
		cfg := DefaultConfig()
		cfg.Addresses = []string{addr}
		return openStore(t, limited(t, cfg), goredis.NewClient(&goredis.Options{Addr: addr}), mode)
	})
}

// openStore opens a sink whose keys nobody else has, and removes them at the end.
func openStore(t *testing.T, cfg Config, plain goredis.UniversalClient, mode string) store {
	prefix := "sinktest-" + uuid.NewString()[:8]
	cfg.PipelineBytes = 4096 // several pipelines in one call
	st := store{plain: plain, table: func(name cdc.TableName) TableConfig { return suiteTable(prefix, mode, name) }}
	s, err := Open(t.Context(), cfg, func(name cdc.TableName) (TableConfig, bool) { return st.table(name), true }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	st.Sink = s
	t.Cleanup(func() {
		err := s.eachMaster(context.Background(), func(ctx context.Context, server *goredis.Client) error {
			keys := server.Scan(ctx, 0, "*"+prefix+"*", 1000).Iterator() // those beside them carry it too
			for keys.Next(ctx) {
				server.Del(ctx, keys.Val())
			}
			return keys.Err()
		})
		if err := errors.Join(err, s.Close(), plain.Close()); err != nil {
			t.Error(err)
		}
	})
	return st
}

// store reads what the sink wrote as a client of Redis does.
type store struct {
	*Sink
	plain goredis.UniversalClient
	table func(cdc.TableName) TableConfig
}

func (s store) key(t testing.TB, table cdc.TableName, key []byte) string {
	template, err := cdc.ParseKeyTemplate(s.table(table).Key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := template.Render(table, key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Apply completes the rows of the suite, which leave columns out, for a template
// that names them all.
func (s store) Apply(ctx context.Context, changes []cdc.Change) []sinks.Outcome {
	return s.Sink.Apply(ctx, s.complete(changes))
}

func (s store) Would(ctx context.Context, changes []cdc.Change) []sinks.Prospect {
	return s.Sink.Would(ctx, s.complete(changes))
}

func (s store) Expect(ctx context.Context, changes []cdc.Change) []sinks.Expected {
	return s.Sink.Expect(ctx, s.complete(changes))
}

func (s store) complete(changes []cdc.Change) []cdc.Change {
	changes = slices.Clone(changes)
	for i, c := range changes {
		if c.After == nil || c.Table != sinktest.Questions.Name || s.table(c.Table).Mode != ModeString {
			continue
		}
		row := bytes.TrimSuffix(bytes.TrimSpace(c.After), []byte("}"))
		for _, name := range questionColumns {
			if !gjson.GetBytes(c.After, name).Exists() {
				row = append(slices.Clip(row), `,"`+name+`":null`...)
			}
		}
		changes[i].After = append(slices.Clip(row), '}')
	}
	return changes
}

func (s store) Read(t testing.TB, table cdc.TableName, key []byte) (map[string]string, cdc.Version, bool) {
	name, ctx := s.key(t, table, key), context.Background()
	fields, version := map[string]string{}, ""
	ofJSON := func(text string) {
		if !gjson.Valid(text) {
			t.Errorf("text %q", text)
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
	var err error
	switch mode := s.table(table).Mode; mode {
	case ModeHash:
		fields, err = s.plain.HGetAll(ctx, name).Result()
		if err == nil && len(fields) == 0 {
			return nil, 0, false
		}
		version = fields["_lockstep_v"]
		delete(fields, "_lockstep_v")
	case ModeJSON, ModeString:
		var text string
		text, err = s.plain.Get(ctx, name).Result()
		if errors.Is(err, goredis.Nil) {
			return nil, 0, false
		}
		if mode == ModeJSON {
			ofJSON(text)
			break
		}
		columns := []string{"name", "uses"}
		if table == sinktest.Questions.Name {
			columns = questionColumns
		}
		for i, text := range strings.Split(text, between) {
			fields[columns[i]] = text
		}
		marker, _ := beside(ofTable(versionPrefix, table), name)
		version = s.plain.Get(ctx, marker).Val()
	case ModeStream:
		var newest []goredis.XMessage
		newest, err = s.plain.XRevRangeN(ctx, name, "+", "-", 1).Result()
		if err == nil && (len(newest) == 0 || newest[0].Values["op"] == "d") {
			return nil, 0, false
		}
		if err == nil {
			ofJSON(newest[0].Values["row"].(string))
			v, err := streamVersion(newest[0].ID)
			if err != nil {
				t.Error(err)
			}
			version = v.String()
		}
	}
	if err != nil {
		t.Error(err)
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
