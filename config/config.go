// Package config reads the one file in which a pipeline is described.
//
// It puts the Config of each package into one struct and adds nothing to their
// meaning. Load reports every mistake of a file at once, each with line and column
// and the way out, and never repeats a secret. Schema and Example are what editors
// and newcomers begin with; both are kept in step with the structs by tests.
package config

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"lockstep/admin"
	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/internal/nearest"
	"lockstep/kafka"
	"lockstep/reconcile"
	"lockstep/route"
	"lockstep/shape"
	"lockstep/sinks"
	"lockstep/sinks/elastic"
	"lockstep/sinks/redis"
	"lockstep/tracing"
)

//go:generate go run ./internal/gen

// Schema is the JSON schema of the configuration file.
//
//go:embed schema.json
var Schema []byte

// Example is a commented configuration for the local servers.
//
//go:embed example.yaml
var Example []byte

// Config is a pipeline: one source, one Kafka, some sinks, and the tables that
// travel from the one to the others.
type Config struct {
	// Prefix is the name of the pipeline. Its topics and consumer groups begin with
	// it and its log lines carry it, so two pipelines on one Kafka need two
	// prefixes. It is 1 to 100 letters, digits, _ and -. It has no default. A
	// running pipeline that gets another prefix begins anew.
	Prefix string `yaml:"prefix"`
	// Source is the MySQL server whose changes are captured.
	Source mysql.Config `yaml:"source"`
	// Kafka carries the changes from the source to the sinks.
	Kafka kafka.Config `yaml:"kafka"`
	// Sinks are the stores to keep in step, each under a name of your own. The name
	// is 1 to 50 small letters, digits and -; it stands in commands, metrics, the
	// consumer group and the topic of dead letters. A sink that gets another name
	// reads everything again.
	Sinks map[string]Sink `yaml:"sinks"`
	// Tables says which tables are captured and where their rows go. The first
	// entry that matches a table is the one that counts; a table without an entry
	// is left alone.
	Tables []Table `yaml:"tables"`
	// Worker tunes how changes are handed to the sinks. It holds for all of them.
	Worker sinks.Config `yaml:"worker"`
	// Reconcile says how rows are compared with the sinks all the time (docs/reconcile.md).
	Reconcile reconcile.Config `yaml:"reconcile"`
	// Objectives says how late and how wrong a sink may be, table by table, until reads are
	// sent to MySQL (docs/route.md).
	Objectives route.Config `yaml:"objectives"`
	// Admin is the HTTP server for operators.
	Admin admin.Config `yaml:"admin"`
	// Tracing tells an OpenTelemetry collector of single changes on their way.
	Tracing tracing.Config `yaml:"tracing"`
	// Log says what is written to standard error.
	Log Log `yaml:"log"`
}

// Sink is one store; exactly one of its fields is set.
type Sink struct {
	// Elastic makes the sink an Elasticsearch cluster.
	Elastic *elastic.Config `yaml:"elastic"`
	// Redis makes the sink a Redis or Valkey server or cluster.
	Redis *redis.Config `yaml:"redis"`
}

// Store is the kind of the sink: elastic or redis.
func (s Sink) Store() string {
	if s.Elastic != nil {
		return "elastic"
	}
	return "redis"
}

// Table says which tables an entry is for and where their rows go.
type Table struct {
	// Match names the table as db.table. A * stands for any run of characters
	// inside the name of the database or of the table: bank.*, shop_*.orders.
	// Capital and small letters differ.
	Match string `yaml:"match" jsonschema:"required"`
	// Mask hides columns before their values reach Kafka, logs and dead letters, each by
	// its name: drop (the column is left out), sha256 (its HMAC-SHA-256 under
	// source.mask_salt, in hexadecimal), or the characters that stay, such as keep last
	// 4 or keep first 1 last 2. NULL stays NULL, and what is masked is text. Columns of
	// the primary key cannot be masked. A table without such a column stops the capture,
	// because it may have another name by now: {mail: "sha256, was email"} holds for
	// both, {email: "drop, may be gone"} for a table that has lost it. It is empty by
	// default. docs/shaping.md says more.
	Mask mysql.Masks `yaml:"mask"`
	// Shape says which document a row becomes, in every sink. docs/shaping.md has
	// examples.
	Shape shape.Config `yaml:"shape"`
	// Shapes are the shapes for single sinks, by the sink's name. Each stands in the
	// place of shape as a whole: {} leaves the rows of that sink as they are.
	Shapes map[string]shape.Config `yaml:"shapes"`
	// Skip leaves the tables that match out, for example scratch tables inside a wider pattern that stands behind this entry. Default false.
	Skip bool `yaml:"skip"`
	// Elastic says how rows are kept in sinks of kind elastic.
	Elastic elastic.TableConfig `yaml:"elastic"`
	// Redis says how rows are kept in sinks of kind redis.
	Redis redis.TableConfig `yaml:"redis"`
	// Objectives are limits of these tables in the place of those of all.
	Objectives route.Override `yaml:"objectives"`
}

// Log says what is written to standard error.
type Log struct {
	// Level is the least important line that is written: debug, info, warn or
	// error. The default is info. The flag --log-level goes before it.
	Level string `yaml:"level" jsonschema:"enum=debug,enum=info,enum=warn,enum=error"`
	// Format is text, for people, or json, for log collectors. The default is text.
	Format string `yaml:"format" jsonschema:"enum=text,enum=json"`
}

// Default is a configuration with every default in place. It lacks what has none:
// prefix, source, sinks and tables.
func Default() Config {
	return Config{
		Source: mysql.DefaultConfig(),
		Kafka:  kafka.DefaultConfig(),
		Worker: sinks.DefaultConfig(),

		Objectives: route.DefaultConfig(),
		Reconcile:  reconcile.DefaultConfig(),
		Admin:      admin.DefaultConfig(),
		Tracing:    tracing.DefaultConfig(),
		Log:        Log{Level: "info", Format: "text"},
	}
}

// Sections are the defaults of what a file may hold any number of: the stores
// and the entries of tables.
func Sections() []any {
	return []any{
		elastic.DefaultConfig(),
		redis.DefaultConfig(),
		Table{Elastic: elastic.DefaultTableConfig(), Redis: redis.DefaultTableConfig(), Objectives: route.DefaultOverride()},
	}
}

// MatchTable returns the first entry that matches the table. It is false for a
// table that is not captured.
func (c *Config) MatchTable(name cdc.TableName) (*Table, bool) {
	t := c.entry(name)
	return t, t != nil && !t.Skip && !c.HelperTable(name)
}

// HelperTable reports whether a table would be captured, were its name not that of
// a helper of an online schema change (see source.helper_tables).
func (c *Config) HelperTable(name cdc.TableName) bool {
	t := c.entry(name)
	if t == nil || t.Skip || !c.Source.Helper(name.Table) {
		return false
	}
	_, exact := t.exact()
	return !exact
}

// entry is the first one that matches the table, or nil.
func (c *Config) entry(name cdc.TableName) *Table {
	for i := range c.Tables {
		if c.Tables[i].Matches(name) {
			return &c.Tables[i]
		}
	}
	return nil
}

// ElasticTable is where the rows of a table go in Elasticsearch. It is false for
// a table that is not captured.
func (c *Config) ElasticTable(name cdc.TableName) (elastic.TableConfig, bool) {
	if t, ok := c.MatchTable(name); ok {
		return t.Elastic, true
	}
	return elastic.TableConfig{}, false
}

// RedisTable is where the rows of a table go in Redis. It is false for a table
// that is not captured.
func (c *Config) RedisTable(name cdc.TableName) (redis.TableConfig, bool) {
	if t, ok := c.MatchTable(name); ok {
		return t.Redis, true
	}
	return redis.TableConfig{}, false
}

// ShapeOf is the shape of a table's documents in a sink, and where it stands in the
// file. It is false for a table that is not captured or not shaped.
func (c *Config) ShapeOf(sink string, name cdc.TableName) (s shape.Config, path string, ok bool) {
	t, captured := c.MatchTable(name)
	if !captured {
		return s, "", false
	}
	s, path = t.shapeFor(sink)
	for i := range c.Tables {
		if t == &c.Tables[i] {
			path = fmt.Sprintf("tables[%d].%s", i, path)
		}
	}
	return s, path, !s.Empty()
}

// Shapes reports whether any table is shaped for a sink.
func (c *Config) Shapes(sink string) bool {
	return slices.ContainsFunc(c.Tables, func(t Table) bool {
		s, _ := t.shapeFor(sink)
		return !t.Skip && !s.Empty()
	})
}

// shapeFor is the shape of an entry for a sink, and its name in the entry.
func (t *Table) shapeFor(sink string) (shape.Config, string) {
	if own, replaced := t.Shapes[sink]; replaced {
		return own, "shapes." + sink
	}
	return t.Shape, "shape"
}

// ObjectivesOf are those of a table.
func (c *Config) ObjectivesOf(name cdc.TableName) route.Config {
	if t, ok := c.MatchTable(name); ok {
		return c.Objectives.With(t.Objectives)
	}
	return c.Objectives
}

// masks are those of a table.
func (c *Config) masks(name cdc.TableName) mysql.Masks {
	if t, ok := c.MatchTable(name); ok {
		return t.Mask
	}
	return nil
}

// SinkNames lists the sinks in the order of the alphabet.
func (c *Config) SinkNames() []string { return slices.Sorted(maps.Keys(c.Sinks)) }

// has reports whether a sink is of the given kind.
func (c *Config) has(store string) bool {
	for _, s := range c.Sinks {
		if s.Store() == store {
			return true
		}
	}
	return false
}

// Matches reports whether the pattern of the entry takes a table; an entry before it
// may have it all the same.
func (t *Table) Matches(name cdc.TableName) bool {
	db, table, ok := strings.Cut(t.Match, ".")
	return ok && glob(db, name.DB) && glob(table, name.Table)
}

// exact is the one table that the entry is for; false for a pattern.
func (t *Table) exact() (cdc.TableName, bool) {
	db, table, ok := strings.Cut(t.Match, ".")
	return cdc.TableName{DB: db, Table: table}, ok && !strings.Contains(t.Match, "*")
}

// glob matches text against a pattern in which * is any run of characters.
func glob(pattern, text string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == text
	}
	text, ok := strings.CutPrefix(text, first)
	if !ok {
		return false
	}
	for i := 0; i <= len(text); i++ {
		if glob(rest, text[i:]) {
			return true
		}
	}
	return false
}

// SinkPattern is what the name of a sink looks like.
const SinkPattern = `^[a-z0-9-]{1,50}$`

var (
	prefixPattern = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,100}$`)
	sinkPattern   = regexp.MustCompile(SinkPattern)
	matchPattern  = regexp.MustCompile(`^[^.\s]+\.[^.\s]+$`)
)

// Check returns every mistake in c, joined, each as one sentence that begins with
// the path of its field: that of each section, and what the sections must agree on.
func (c *Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !prefixPattern.MatchString(c.Prefix) {
		bad("prefix: %q is no name for a pipeline; use 1 to 100 letters, digits, _ and -", c.Prefix)
	}
	errs = append(errs, under("source", c.Source.Check())...)
	errs = append(errs, under("kafka", c.Kafka.Check())...)
	errs = append(errs, under("worker", c.Worker.Check())...)
	// Kafka gives a member half of the session to let go of a partition; a call to
	// the store that takes longer would be cut off and done twice.
	if half := c.Kafka.SessionTimeout / 2; c.Worker.StopWithin > half && half > 0 {
		bad("worker.stop_within: %s is more than half of kafka.session_timeout; use at most %s, or raise the session timeout", c.Worker.StopWithin, half)
	}
	errs = append(errs, under("reconcile", c.Reconcile.Check())...)
	errs = append(errs, under("objectives", c.Objectives.Check())...)
	errs = append(errs, under("admin", c.Admin.Check())...)
	errs = append(errs, under("tracing", c.Tracing.Check())...)
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		bad("log.level: %q is not known; use debug, info, warn or error (default info)", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		bad("log.format: %q is not known; use text or json (default text)", c.Log.Format)
	}
	errs = append(errs, c.checkSinks()...)
	errs = append(errs, c.checkTables()...)
	return errors.Join(errs...)
}

// CapturePart names the capture beside the sinks: in its consumer group, for one.
const CapturePart = "capture"

func (c *Config) checkSinks() []error {
	if len(c.Sinks) == 0 {
		return []error{errors.New("sinks: none is named; name at least one, for example search: {elastic: {addresses: [http://127.0.0.1:9200]}}")}
	}
	var errs []error
	for _, name := range c.SinkNames() {
		s, path := c.Sinks[name], "sinks."+name
		switch {
		case !sinkPattern.MatchString(name):
			// Such a name may not pass for a path, so the place is that of all sinks.
			errs = append(errs, fmt.Errorf("sinks: %q is no name for a sink; use 1 to 50 small letters, digits and -", name))
		case name == CapturePart:
			errs = append(errs, fmt.Errorf("%s: the consumer group of that name is the capture's; give the sink another name", path))
		case s.Elastic == nil && s.Redis == nil:
			errs = append(errs, fmt.Errorf("%s: no store is named; write elastic: or redis: under it", path))
		case s.Elastic != nil && s.Redis != nil:
			errs = append(errs, fmt.Errorf("%s: a sink is one store; give elastic and redis a name each", path))
		case s.Elastic != nil:
			errs = append(errs, under(path+".elastic", s.Elastic.Check())...)
			for i, address := range s.Elastic.Addresses {
				// An address is shown in logs and messages.
				if u, err := url.Parse(address); err == nil && u.User != nil {
					errs = append(errs, fmt.Errorf("%s.elastic.addresses[%d]: holds a login; use the fields username and password", path, i))
				}
			}
		default:
			errs = append(errs, under(path+".redis", s.Redis.Check())...)
		}
	}
	return errs
}

func (c *Config) checkTables() []error {
	if len(c.Tables) == 0 {
		return []error{errors.New(`tables: none is named; name at least one, for example - match: "shop.*"`)}
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	indexes, keys := map[string]int{}, map[string]int{}
	for i := range c.Tables {
		t, path := &c.Tables[i], fmt.Sprintf("tables[%d]", i)
		if !matchPattern.MatchString(t.Match) {
			bad("%s.match: %q is not db.table; write for example shop.orders or shop.*", path, t.Match)
			continue
		}
		errs = append(errs, under(path+".elastic", t.Elastic.Check())...)
		errs = append(errs, under(path+".redis", t.Redis.Check())...)
		errs = append(errs, c.checkObjectives(path+".objectives", t.Objectives)...)
		errs = append(errs, under(path+".mask", t.Mask.Check(c.Source.MaskSalt != ""))...)
		errs = append(errs, under(path+".shape", t.Shape.Check())...)
		for _, sink := range slices.Sorted(maps.Keys(t.Shapes)) {
			errs = append(errs, under(path+".shapes."+sink, t.Shapes[sink].Check())...)
			if _, ok := c.Sinks[sink]; !ok {
				message := fmt.Sprintf("%s.shapes.%s: there is no sink of this name", path, sink)
				if near := nearest.Name(sink, c.SinkNames()); near != "" {
					message += fmt.Sprintf("; did you mean %q?", near)
				}
				errs = append(errs, errors.New(message))
			}
		}
		name, exact := t.exact()
		if exact {
			if _, err := kafka.ChangeTopic("p", name); err != nil {
				bad("%s.match: %w", path, err)
			}
		}
		if t.Skip {
			continue
		}
		if first := c.shadow(i); first >= 0 {
			bad("%s.match: %s is never used, because tables[%d] (%s) matches it first; put it before that one", path, t.Match, first, c.Tables[first].Match)
			continue
		}
		if c.has("elastic") {
			if lacks := missing(t.Match, t.Elastic.Index); lacks != "" {
				bad("%s.elastic.index: all tables of %s would share the index %s; put %s into it, or name the tables one by one", path, t.Match, t.Elastic.Index, lacks)
			} else if exact {
				collide(indexes, strings.ToLower(fill(t.Elastic.Index, name)), i, func(first int) {
					bad("%s.elastic.index: %s is the index of tables[%d] (%s) already; each table needs its own", path, fill(t.Elastic.Index, name), first, c.Tables[first].Match)
				})
			}
		}
		errs = append(errs, c.checkTemplates(path, t)...)
		if c.has("redis") {
			key := cmp.Or(t.Redis.Key, redis.DefaultTableConfig().Key)
			if lacks := missing(t.Match, key); lacks != "" {
				bad("%s.redis.key: all tables of %s would share the keys %s; put %s into it, or name the tables one by one", path, t.Match, key, lacks)
			} else if exact {
				collide(keys, column.ReplaceAllString(fill(key, name), "{}"), i, func(first int) {
					bad("%s.redis.key: %s gives the keys of tables[%d] (%s) again; each table needs its own", path, key, first, c.Tables[first].Match)
				})
			}
		}
	}
	return errs
}

// checkObjectives looks at the limits of an entry only when those of all are right.
func (c *Config) checkObjectives(path string, o route.Override) []error {
	if c.Objectives.Check() != nil {
		return nil
	}
	return under(path, c.Objectives.CheckOverride(o))
}

// checkTemplates finds the columns that the templates of an entry name for a sink whose
// documents do not have them.
func (c *Config) checkTemplates(path string, t *Table) (errs []error) {
	for _, sink := range c.SinkNames() {
		if c.Sinks[sink].Redis == nil {
			continue
		}
		rule, of := t.shapeFor(sink)
		for _, named := range t.Redis.Columns() {
			if rule.Gives(named.Column) {
				continue
			}
			as := ""
			if to, renamed := rule.Rename[named.Column]; renamed {
				as = " under this name but as " + to
			}
			errs = append(errs, fmt.Errorf("%s.redis.%s: %s names the column %s, which the documents of %s in sink %s do not have%s, because %s.%s says so; let it stay there, or name another column here",
				path, named.Field, named.Template, named.Column, t.Match, sink, as, path, of))
		}
	}
	return errs
}

// shadow is the first entry before i that takes every table of entry i, or -1.
func (c *Config) shadow(i int) int {
	db, table, _ := strings.Cut(c.Tables[i].Match, ".")
	for j := range c.Tables[:i] {
		// A * of the later pattern is, to the earlier one, a character that only
		// its own * takes.
		if c.Tables[j].Matches(cdc.TableName{DB: db, Table: table}) {
			return j
		}
	}
	return -1
}

// missing is the placeholder without which the tables of a pattern share a name.
func missing(match, template string) string {
	db, table, _ := strings.Cut(match, ".")
	switch {
	case strings.Contains(table, "*") && !strings.Contains(template, "{table}"):
		return "{table}"
	case strings.Contains(db, "*") && !strings.Contains(template, "{db}"):
		return "{db}"
	default:
		return ""
	}
}

// column is a placeholder that stands for a value of the row.
var column = regexp.MustCompile(`\{[^{}]+\}`)

func fill(template string, name cdc.TableName) string {
	return strings.NewReplacer("{db}", name.DB, "{table}", name.Table).Replace(template)
}

func collide(taken map[string]int, name string, i int, report func(first int)) {
	if first, ok := taken[name]; ok {
		report(first)
		return
	}
	taken[name] = i
}
