package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"lockstep/cdc"
	"lockstep/config"
)

// small is the least that a configuration must have.
const small = `prefix: shop
source: {addr: "127.0.0.1:3306", user: u, server_id: 9}
sinks:
  search: {elastic: {addresses: ["http://127.0.0.1:9200"]}}
  cache: {redis: {}}
tables:
  - match: bank.questions
`

func TestTheLeastConfigurationIsFilledWithTheDefaults(t *testing.T) {
	c, err := config.Parse("t.yaml", []byte(small), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	def := config.Default()
	if c.Kafka.Partitions != def.Kafka.Partitions || c.Source.ReadTimeout != def.Source.ReadTimeout || c.Admin.Listen != def.Admin.Listen || c.Log != def.Log || len(c.Worker.Retries) != 5 {
		t.Errorf("got %+v", c)
	}
	if s := c.Sinks["search"]; s.Elastic.BulkBytes == 0 || s.Store() != "elastic" || s.Redis != nil {
		t.Errorf("search is %+v", s)
	}
	if s := c.Sinks["cache"]; len(s.Redis.Addresses) != 1 || s.Store() != "redis" || s.Elastic != nil {
		t.Errorf("cache is %+v", s)
	}
	if table := c.Tables[0]; table.Elastic.Index != "{db}_{table}" || table.Redis.Key != "{db}:{table}:{pk}" || table.Redis.Mode != "hash" {
		t.Errorf("the table is %+v", table)
	}
}

func TestTheExampleIsRight(t *testing.T) {
	c, err := config.Parse("example.yaml", config.Example, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if c.Source.Password != "lockstep-local" {
		t.Error("the password has no default for the local servers")
	}
	c, err = config.Parse("example.yaml", config.Example, func(name string) (string, bool) { return "other", name == "LOCKSTEP_MYSQL_PASSWORD" })
	if err != nil || c.Source.Password != "other" {
		t.Errorf("the variable is not taken: %v", err)
	}
}

// Each claim is one change to the least configuration and the one line that
// answers it.
func TestWhatTheSectionsMustAgreeOn(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, want string }{
		"a prefix that makes no topic": {"prefix: shop", "prefix: my.shop",
			`1:9: prefix: "my.shop" is no name for a pipeline; use 1 to 100 letters, digits, _ and -`},
		"no prefix": {"prefix: shop\n", "",
			`1:1: prefix: "" is no name for a pipeline; use 1 to 100 letters, digits, _ and -`},
		"a mistake that the source sees": {"server_id: 9", "server_id: 0",
			`2:54: source.server_id: 0 is not allowed; use a number from 1 to 4294967295 that no server or replica of the topology has`},
		"a field that the source lacks": {", server_id: 9", "",
			`2:1: source.server_id: 0 is not allowed; use a number from 1 to 4294967295 that no server or replica of the topology has`},
		"a mistake that a sink sees": {"redis: {}", "redis: {timeout: 1ms}",
			`5:28: sinks.cache.redis.timeout: 1ms is out of range; use 100ms to 5m (default 5s)`},
		"a mistake that kafka sees": {"sinks:", "kafka: {partitions: 0}\nsinks:",
			`3:21: kafka.partitions: 0 is too small; use 1 to 1000 (default 4)`},
		"a mistake in a list of kafka": {"sinks:", "kafka: {brokers: [\"a:1\", b]}\nsinks:",
			`3:26: kafka.brokers[1]: "b" is not host:port; write for example kafka-0:9092`},
		"no sink": {"sinks:\n  search: {elastic: {addresses: [\"http://127.0.0.1:9200\"]}}\n  cache: {redis: {}}\n", "sinks: {}\n",
			`3:1: sinks: none is named; name at least one, for example search: {elastic: {addresses: [http://127.0.0.1:9200]}}`},
		"a sink without a store": {"cache: {redis: {}}", "cache:",
			`5:3: sinks.cache: no store is named; write elastic: or redis: under it`},
		"a sink with two stores": {"cache: {redis: {}}", "cache: {redis: {}, elastic: {}}",
			`5:3: sinks.cache: a sink is one store; give elastic and redis a name each`},
		"a sink whose name makes no topic": {"cache:", "Cache:",
			`3:1: sinks: "Cache" is no name for a sink; use 1 to 50 small letters, digits and -`},
		"a sink with the name of the capture's group": {"  cache:", "  capture:",
			`5:3: sinks.capture: the consumer group of that name is the capture's; give the sink another name`},
		"a login inside an address": {"http://127", "http://elastic:hunter2@127",
			`4:34: sinks.search.elastic.addresses[0]: holds a login; use the fields username and password`},
		"no table": {"tables:\n  - match: bank.questions\n", "",
			`1:1: tables: none is named; name at least one, for example - match: "shop.*"`},
		"a table without its database": {"bank.questions", "questions",
			`7:12: tables[0].match: "questions" is not db.table; write for example shop.orders or shop.*`},
		"a table of the dead letters": {"bank.questions", "dlq.search",
			`7:12: tables[0].match: topic refused: database "dlq" cannot be captured, because p.dlq.* are the topics of dead letters; rename the database`},
		"a key template that is not closed": {"bank.questions", "bank.questions\n    redis: {key: \"q:{id\"}",
			`8:18: tables[0].redis.key: key template "q:{id": the placeholder at character 3 is not closed or empty; write {column}`},
		"a key template without a column": {"bank.questions", "bank.questions\n    redis: {key: q}",
			`8:18: tables[0].redis.key: key template "q" names no primary-key column, so all rows would share one key; write for example "q:{id}"`},
		"an entry behind the same one": {"bank.questions", "bank.questions\n  - match: bank.questions",
			`8:12: tables[1].match: bank.questions is never used, because tables[0] (bank.questions) matches it first; put it before that one`},
		"an entry behind a wider one": {"bank.questions", "bank.*\n  - match: bank.q*s",
			`8:12: tables[1].match: bank.q*s is never used, because tables[0] (bank.*) matches it first; put it before that one`},
		"two tables in one index": {"bank.questions", "bank.questions\n    elastic: {index: q}\n  - match: bank.quizzes\n    elastic: {index: q}",
			`10:22: tables[1].elastic.index: q is the index of tables[0] (bank.questions) already; each table needs its own`},
		"two tables in one index by their names": {"bank.questions", "a_b.c\n  - match: a.b_c\n    redis: {key: \"x:{id}\"}",
			`8:5: tables[1].elastic.index: a_b_c is the index of tables[0] (a_b.c) already; each table needs its own`},
		"two tables under the same keys": {"bank.questions", "bank.questions\n    redis: {key: \"q:{id}\"}\n  - match: bank.quizzes\n    redis: {key: \"q:{pk}\"}",
			`10:18: tables[1].redis.key: q:{pk} gives the keys of tables[0] (bank.questions) again; each table needs its own`},
		"a pattern of tables in one index": {"bank.questions", "bank.*\n    elastic: {index: all}",
			`8:22: tables[0].elastic.index: all tables of bank.* would share the index all; put {table} into it, or name the tables one by one`},
		"a pattern of databases under the same keys": {"bank.questions", "bank_*.questions\n    redis: {key: \"{table}:{pk}\"}",
			`8:18: tables[0].redis.key: all tables of bank_*.questions would share the keys {table}:{pk}; put {db} into it, or name the tables one by one`},
		"a shape that contradicts itself": {"bank.questions", "bank.questions\n    shape: {drop: [a], rename: {a: b}}",
			`8:36: tables[0].shape.rename.a: the column is dropped too; take it out of drop or out of rename`},
		"a condition that is not CEL": {"bank.questions", "bank.questions\n    shape:\n      where: row.status = 'x'",
			`9:14: tables[0].shape.where: row.status = 'x' is not CEL: at character 12: Syntax error: token recognition error at: '= '; write for example row.status == 'published'`},
		"a mistake in the shape of one sink": {"bank.questions", "bank.questions\n    shapes: {search: {drop: [a, a]}}",
			`8:23: tables[0].shapes.search.drop: a is named twice; name it once`},
		"a column of a key that a shape leaves out": {"bank.questions", "bank.questions\n    redis: {key: 'q:{level}:{id}'}\n    shapes: {cache: {fields: [id, title]}}",
			`8:18: tables[0].redis.key: q:{level}:{id} names the column level, which the documents of bank.questions in sink cache do not have, because tables[0].shapes.cache says so; let it stay there, or name another column here`},
		"a column of a text that has another name": {"bank.questions", "bank.questions\n    redis: {mode: string, value: '{title}|{label}|{total}'}\n    shape: {rename: {title: label}, compute: {total: '1'}}",
			`8:34: tables[0].redis.value: {title}|{label}|{total} names the column title, which the documents of bank.questions in sink cache do not have under this name but as label, because tables[0].shape says so; let it stay there, or name another column here`},
		"a shape for a sink that is none": {"bank.questions", "bank.questions\n    shapes: {serach: {drop: [a]}}",
			`8:14: tables[0].shapes.serach: there is no sink of this name; did you mean "search"?`},
		"a mask that is none": {"bank.questions", "bank.questions\n    mask: {email: md5}",
			`8:19: tables[0].mask.email: "md5" is not known; use drop, sha256, or for example keep last 4 or keep first 1 last 2`},
		"a mask without its salt": {"bank.questions", "bank.questions\n    mask: {email: sha256}",
			`8:19: tables[0].mask.email: sha256 needs source.mask_salt, without which values could be guessed; make one with: openssl rand -hex 32`},
		"a salt that can be guessed": {"server_id: 9", "server_id: 9, mask_salt: hunter2",
			`2:68: source.mask_salt: has 7 characters, which can be guessed; use 16 or more, made with: openssl rand -hex 32`},
		"a worker that stops too late for Kafka": {"sinks:", "worker: {stop_within: 6s}\nsinks:",
			`3:23: worker.stop_within: 6s is more than half of kafka.session_timeout; use at most 5s, or raise the session timeout`},
		"metrics where the API is": {"sinks:", "admin: {listen: \"127.0.0.1:1\", metrics_listen: \"127.0.0.1:1\"}\nsinks:",
			`3:48: admin.metrics_listen: 127.0.0.1:1 is what listen says already, which serves /metrics, too; leave it out, or take another port`},
		"an admin address without a port": {"sinks:", "admin: {listen: localhost}\nsinks:",
			`3:17: admin.listen: "localhost" is not host:port; write for example 127.0.0.1:8080`},
		"a log level that is none": {"sinks:", "log: {level: loud}\nsinks:",
			`3:14: log.level: "loud" is not known; use debug, info, warn or error (default info)`},
		"a log format that is none": {"sinks:", "log: {format: xml}\nsinks:",
			`3:15: log.format: "xml" is not known; use text or json (default text)`},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(small, tc.old, tc.new, 1)
			if text == small {
				t.Fatalf("%q is not in the configuration", tc.old)
			}
			_, err := config.Parse("t.yaml", []byte(text), noEnv)
			if err == nil {
				t.Fatal("no problem")
			}
			if got, want := err.Error(), "t.yaml:"+tc.want; got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestACollisionInAStoreThatNoSinkHasIsNone(t *testing.T) {
	text := strings.Replace(small, "  cache: {redis: {}}\n", "", 1)
	text = strings.Replace(text, "bank.questions", "bank_*.questions", 1)
	if _, err := config.Parse("t.yaml", []byte(text), noEnv); err != nil {
		t.Error(err)
	}
}

// The shape of a sink's own stands in the place of the table's as a whole.
func TestASinkHasItsOwnShapeOrTheTables(t *testing.T) {
	text := small + "    shape: {drop: [a]}\n    shapes: {cache: {where: row.b > 1}, search: {}}\n    mask: {email: drop}\n  - match: bank.tags\n    shape: {drop: [b]}\n  - match: bank.plain\n"
	c, err := config.Parse("t.yaml", []byte(text), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ sink, table, path, where string }{
		{"cache", "questions", "tables[0].shapes.cache", "row.b > 1"},
		{"search", "questions", "", ""},
		{"cache", "tags", "tables[1].shape", ""},
		{"cache", "plain", "", ""},
		{"cache", "other", "", ""},
	} {
		shape, path, ok := c.ShapeOf(tc.sink, cdc.TableName{DB: "bank", Table: tc.table})
		if ok != (tc.path != "") || ok && path != tc.path || shape.Where != tc.where || tc.where != "" && len(shape.Drop) > 0 {
			t.Errorf("%s in %s: %+v at %s, %t", tc.table, tc.sink, shape, path, ok)
		}
	}
	if !c.Shapes("search") || !c.Shapes("cache") {
		t.Error("the sinks count as not shaped")
	}
	if masks := c.Source.Masks(cdc.TableName{DB: "bank", Table: "questions"}); masks["email"] != "drop" {
		t.Errorf("the source has the masks %v", masks)
	}
	if masks := c.Source.Masks(cdc.TableName{DB: "bank", Table: "tags"}); len(masks) != 0 {
		t.Errorf("the source has the masks %v of a table without", masks)
	}
}

func TestTheFirstEntryThatMatchesATableCounts(t *testing.T) {
	c := config.Config{Tables: []config.Table{{Match: "bank.questions"}, {Match: "bank_*.q*s_?"}, {Match: "*.tags"}, {Match: "bank.*"}}}
	c.Tables[3].Redis.Key = "{table}/{pk}"
	for name, want := range map[cdc.TableName]string{
		{DB: "bank", Table: "questions"}:   "bank.questions",
		{DB: "bank", Table: "Questions"}:   "bank.*",
		{DB: "bank", Table: "tags"}:        "*.tags",
		{DB: "shop", Table: "tags"}:        "*.tags",
		{DB: "bank", Table: "x"}:           "bank.*",
		{DB: "bank_1", Table: "quizzes_?"}: "bank_*.q*s_?",
		{DB: "bank_", Table: "qs_?"}:       "bank_*.q*s_?",
		{DB: "bank_1", Table: "quizzes_1"}: "",
		{DB: "bank2", Table: "x"}:          "",
		{DB: "shop", Table: "orders"}:      "",
	} {
		table, ok := c.MatchTable(name)
		if ok != (want != "") || ok && table.Match != want {
			t.Errorf("%s: got %+v %v, want %q", name, table, ok, want)
		}
		if ok && table != nil && want == "bank.*" {
			if r, ok := c.RedisTable(name); !ok || r.Key != "{table}/{pk}" {
				t.Errorf("%s: the redis side is %+v %v", name, r, ok)
			}
		}
	}
	if _, ok := c.ElasticTable(cdc.TableName{DB: "shop", Table: "orders"}); ok {
		t.Error("a table that is not captured has an index")
	}
}

// Elasticsearch reads the files of its secrets again, so it is told their names.
func TestTheFilesOfElasticsearchAreLeftToIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(fields string) string { return strings.Replace(small, "elastic: {", "elastic: {"+fields+", ", 1) }
	c, err := config.Parse("t.yaml", []byte(with("username: u, password_file: "+file)), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Sinks["search"].Elastic; s.PasswordFile != file || s.Password != "" {
		t.Errorf("password_file %q, password of %d bytes", s.PasswordFile, len(s.Password))
	}
	for fields, want := range map[string]string{
		"username: u, password_file: /nowhere":             "t.yaml:4:50: sinks.search.elastic.password_file: open /nowhere: no such file or directory",
		"username: u, password: x, password_file: " + file: "password is set too; keep one of the two",
		"username: u, api_key_file: " + file:               "api_key: stands beside username",
		"cloud_id: x":                                      "cloud_id: stands beside addresses",
	} {
		if _, err := config.Parse("t.yaml", []byte(with(fields)), noEnv); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", fields, err, want)
		}
	}
	if _, err := config.Parse("t.yaml", []byte(strings.Replace(small, `addresses: ["http://127.0.0.1:9200"]`, "cloud_id: x", 1)), noEnv); err != nil {
		t.Errorf("a cloud id alone: %v", err)
	}
}

func TestASecretIsNeverPrinted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(
		"user: u", "user: u, password: hunter2",
		`elastic: {`, `elastic: {api_key: "${PW}", `,
		"redis: {}", "redis: {username: u, password: hunter2}",
		"sinks:", "kafka: {sasl: {mechanism: plain, username: u, password_file: "+file+"}}\nsinks:",
	).Replace(small)
	c, err := config.Parse("t.yaml", []byte(text), func(name string) (string, bool) { return "hunter2", name == "PW" })
	if err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string]string{
		"source": c.Source.Password.Reveal(), "kafka": c.Kafka.SASL.Password.Reveal(),
		"search": c.Sinks["search"].Elastic.APIKey.Reveal(), "cache": c.Sinks["cache"].Redis.Password.Reveal(),
	} {
		if got != "hunter2" {
			t.Fatalf("%s: the secret is %q", what, got)
		}
	}
	var dump bytes.Buffer
	for _, v := range []any{c, *c, c.Source, c.Kafka, c.Sinks, *c.Sinks["search"].Elastic, *c.Sinks["cache"].Redis} {
		fmt.Fprintf(&dump, "%v %+v %#v\n", v, v, v)
		asJSON, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		asYAML, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		dump.Write(asJSON)
		dump.Write(asYAML)
		slog.New(slog.NewTextHandler(&dump, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&dump, nil)).Info("x", "v", v)
	}
	// The same secrets in a configuration that is wrong in every section.
	_, err = config.Parse("t.yaml", []byte(strings.NewReplacer(
		"server_id: 9", "server_id: 0", "redis: {", "redis: {db: -1, ", "elastic: {", "elastic: {bulk_bytes: 1, ",
		"mechanism: plain", "mechanism: none", "prefix: shop", "prefix: ''", "bank.questions", "bank").Replace(text)),
		func(name string) (string, bool) { return "hunter2", name == "PW" })
	if problems, ok := err.(config.Problems); !ok || len(problems) != 6 {
		t.Fatalf("want 6 problems:\n%v", err)
	}
	fmt.Fprintf(&dump, "%v %+v %#v", err, err, err)
	asJSON, _ := json.Marshal(err)
	dump.Write(asJSON)
	if i := strings.Index(dump.String(), "hunter2"); i >= 0 {
		t.Errorf("the secret is in: ...%s", dump.String()[max(0, i-200):i+8])
	}
}

func TestAFileIsLoadedAndOneThatIsMissingSaysHowToBegin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lockstep.yaml")
	_, err := config.Read(path)
	if want := "there is no such file; name one with --config, or begin with: lockstep config example > lockstep.yaml"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if err := os.WriteFile(path, []byte(small), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := config.Read(path); err != nil || string(text) != small {
		t.Errorf("%v: %s", err, text)
	}
	if _, err := config.Read(filepath.Dir(path)); err == nil || !strings.Contains(err.Error(), filepath.Dir(path)+" is no file") {
		t.Errorf("a folder gives %v", err)
	}
}

// A pattern does not take the tables that gh-ost and pt-online-schema-change make
// beside the one they alter.
func TestHelperTablesAreTakenByTheirFullNameOnly(t *testing.T) {
	c := config.Default()
	c.Tables = []config.Table{{Match: "shop._kept_old"}, {Match: "shop.*"}}
	for name, want := range map[string]bool{"orders": true, "_orders": true, "_orders_gho": false, "_kept_old": true} {
		table := cdc.TableName{DB: "shop", Table: name}
		if _, got := c.MatchTable(table); got != want || c.HelperTable(table) == want {
			t.Errorf("%s: captured %v, a helper %v", name, got, c.HelperTable(table))
		}
	}
	c.Source.HelperTables = "capture"
	if _, got := c.MatchTable(cdc.TableName{DB: "shop", Table: "_orders_gho"}); !got {
		t.Error("helper_tables: capture leaves one out")
	}
}
