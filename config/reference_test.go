package config_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"lockstep/cdc"
	"lockstep/config"
	"lockstep/config/internal/reference"
	"lockstep/sinks/redis"
)

func TestTheSchemaAndThePageAreInStepWithTheCode(t *testing.T) {
	t.Chdir("..")
	schema, markdown, err := reference.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(config.Schema), string(schema)); diff != "" {
		t.Errorf("config/schema.json is stale; run: go generate ./config\n%s", diff)
	}
	page, err := os.ReadFile("docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(page), string(markdown)); diff != "" {
		t.Errorf("docs/config.md is stale; run: go generate ./config\n%s", diff)
	}
}

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(config.Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// valid asks the schema about a YAML text, as an editor does.
func valid(t *testing.T, s *jsonschema.Schema, text string) error {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(doc)
}

func TestTheExampleIsValidByTheSchema(t *testing.T) {
	if err := valid(t, compiled(t), string(config.Example)); err != nil {
		t.Error(err)
	}
}

func TestTheSchemaRefusesWhatTheLoaderRefuses(t *testing.T) {
	s := compiled(t)
	example := string(config.Example)
	for name, change := range map[string][2]string{
		"an unknown field":             {"user: lockstep", "user: lockstep\n  usr: x"},
		"an unknown field of a sink":   {"addresses: [127.0.0.1:16379]", "adresses: [127.0.0.1:16379]"},
		"a missing field":              {"  server_id: 4001\n", ""},
		"a missing section":            {"prefix: shop\n", ""},
		"a number as text":             {"server_id: 4001", "server_id: many"},
		"a number that is too large":   {"server_id: 4001", "server_id: 4294967296"},
		"text as a number":             {"user: lockstep", "user: 5"},
		"a duration without a unit":    {"retries: [1s", "retries: [1"},
		"a duration with another unit": {"retries: [1s", "retries: [1d"},
		"a level that is none":         {"level: info", "level: loud"},
		"two stores under one name":    {"    redis:\n      addresses", "    elastic: {}\n    redis:\n      addresses"},
		"a sink with a capital letter": {"  cache:", "  Cache:"},
		"a table without a match":      {"- match: bank.*", "- elastic: {}"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(example, change[0], change[1], 1)
			if text == example {
				t.Fatalf("%q is not in the example", change[0])
			}
			if err := valid(t, s, text); err == nil {
				t.Error("the schema takes it")
			}
			if _, err := config.Parse("t.yaml", []byte(text), noEnv); err == nil {
				t.Error("the loader takes it")
			}
		})
	}
}

func TestTheSchemaTakesWhatTheLoaderTakes(t *testing.T) {
	s := compiled(t)
	example := string(config.Example)
	for name, change := range map[string][2]string{
		"a variable for a number":   {"server_id: 4001", "server_id: ${ID:-4001}"},
		"a variable for a duration": {"retries: [1s, 2s, 4s, 8s, 16s]", "commit_every: ${EVERY:-1s}"},
		"a password file":           {"password: ${LOCKSTEP_MYSQL_PASSWORD:-lockstep-local}", "password_file: ../config/example.yaml"},
		"a zero duration":           {"partitions: 4", "retention: 0"},
		"a zero duration with unit": {"partitions: 4", "retention: 0s"},
		"a mixed duration":          {"partitions: 4", "retention: 1h30m"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(example, change[0], change[1], 1)
			if text == example {
				t.Fatalf("%q is not in the example", change[0])
			}
			if err := valid(t, s, text); err != nil {
				t.Error(err)
			}
			if _, err := config.Parse("t.yaml", []byte(text), noEnv); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheSchemaHoldsNoSecretAndClosesEverySection(t *testing.T) {
	var walk func(path string, node any)
	walk = func(path string, node any) {
		m, ok := node.(map[string]any)
		if !ok {
			return
		}
		if props, ok := m["properties"].(map[string]any); ok {
			if m["additionalProperties"] != false {
				t.Errorf("%s takes fields that are not known", path)
			}
			for name, p := range props {
				if p.(map[string]any)["description"] == "" {
					t.Errorf("%s.%s has no description", path, name)
				}
				walk(path+"."+name, p)
			}
		}
		walk(path+"[]", m["items"])
		if more, ok := m["additionalProperties"].(map[string]any); ok {
			walk(path+".NAME", more)
		}
	}
	var doc any
	if err := json.Unmarshal(config.Schema, &doc); err != nil {
		t.Fatal(err)
	}
	walk("", doc)
}

func noEnv(string) (string, bool) { return "", false }

// The tables of docs/redis.md are understood as they stand.
func TestTheTablesOfTheRedisPageAreRight(t *testing.T) {
	text, err := os.ReadFile("../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), "    tables:\n")
	block, _, end := strings.Cut(after, "\n\n")
	if !ok || !end {
		t.Fatal("docs/redis.md shows no tables")
	}
	head, _, _ := strings.Cut(small, "tables:\n")
	c, err := config.Parse("t.yaml", []byte(head+"tables:\n"+strings.ReplaceAll("\n"+block, "\n    ", "\n")+"\n"), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	columns := map[string][]string{"questions": {"id", "level"}, "question_tags": {"question_id", "tag_id"}, "leaderboard": {"user_id", "points"}}
	keys := map[string][]string{"questions": {"id"}, "question_tags": {"question_id", "tag_id"}, "leaderboard": {"user_id"}}
	if len(c.Tables) != len(columns) {
		t.Fatalf("%d tables", len(c.Tables))
	}
	for _, entry := range c.Tables {
		name := cdc.TableName{DB: "bank", Table: strings.TrimPrefix(entry.Match, "bank.")}
		table := cdc.Table{Name: name, Key: keys[name.Table]}
		for _, column := range columns[name.Table] {
			table.Columns = append(table.Columns, cdc.Column{Name: column})
		}
		if err := redis.CheckTable(entry.Redis, table); err != nil {
			t.Errorf("%s: %v", entry.Match, err)
		}
	}
}
