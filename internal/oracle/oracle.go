// Package oracle says whether Elasticsearch and Redis hold exactly what MySQL
// holds: every row, every field, every delete. It reads the three stores by
// itself and shares no code with the pipeline, so that a fault of the pipeline
// cannot hide in the judge.
//
// The stores must be at rest while they are compared: a change that is under way
// shows up as a difference.
package oracle

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

// Sinks as they are named in a Difference.
const (
	Elastic = "elastic"
	Redis   = "redis"
)

// Spec says what to compare with what.
type Spec struct {
	// DB is the source. Any session settings will do.
	DB *sql.DB
	// Database that the tables are in.
	Database string
	Tables   []TableSpec
	// ElasticURL such as http://127.0.0.1:9200; user and password may be in it.
	// Empty: Elasticsearch is not compared.
	ElasticURL string
	// RedisAddr is host:port, of a cluster several with commas. Empty: Redis is not compared.
	RedisAddr string
}

// TableSpec says where the rows of a table are.
type TableSpec struct {
	Table string
	// Key names the columns that tell the rows of a view apart, which says by itself
	// what the stores are to hold. Empty for a table, which has a primary key.
	Key []string
	// Index is the index or its alias. Empty: not in Elasticsearch.
	Index string
	// RedisKey is a key template such as "question:{id}", with the placeholders
	// {column}, {pk}, {db} and {table}. Empty: not in Redis.
	RedisKey string
	// RedisMode is "hash", the default, or "json".
	RedisMode string
	// SkipElastic and SkipRedis name rows by their key, as an Elasticsearch _id
	// writes it, that are not looked at in that store: absent, old or equal.
	SkipElastic, SkipRedis map[string]bool
}

// Difference is one field, one row or one orphan that is not as MySQL has it.
type Difference struct {
	Table, Key string
	Sink       string // Elastic or Redis
	Field      string // empty when it is about the whole row
	Want, Got  string
}

func (d Difference) String() string {
	place := d.Sink + ": " + d.Table + "/" + d.Key
	if d.Field != "" {
		place += " " + d.Field
	}
	return fmt.Sprintf("%s: want %s, got %s", place, shorten(d.Want), shorten(d.Got))
}

// shorten keeps a long value from filling the screen; it says how long it was.
func shorten(s string) string {
	const most = 160
	if len(s) <= most {
		return s
	}
	return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(s[:most], ""), len(s))
}

// maxListed is how many differences a Report lists; all are counted.
const maxListed = 20

// Report is the outcome of a comparison.
type Report struct {
	// Rows of MySQL by table.
	Rows map[string]int
	// Documents and Keys that the stores hold, by table.
	Documents, Keys map[string]int
	// Compared counts the rows looked at in each sink, and Fields their fields.
	Compared, Fields map[string]int
	// Total number of differences; Differences lists the first twenty.
	Total       int
	Differences []Difference
	// Took is how long the comparison ran.
	Took time.Duration
}

// Equal reports whether nothing differs.
func (r Report) Equal() bool { return r.Total == 0 }

func (r Report) String() string {
	rows := 0
	for _, n := range r.Rows {
		rows += n
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d rows in MySQL; %d rows, %d fields compared in Elasticsearch; %d rows, %d fields compared in Redis; %d differences; %.1f s",
		rows, r.Compared[Elastic], r.Fields[Elastic], r.Compared[Redis], r.Fields[Redis], r.Total, r.Took.Seconds())
	for _, d := range r.Differences {
		b.WriteString("\n  " + d.String())
	}
	if more := r.Total - len(r.Differences); more > 0 {
		fmt.Fprintf(&b, "\n  and %d more", more)
	}
	return b.String()
}

// Compare reads every row of every table and looks for it in both stores, then
// looks through both stores for what MySQL does not have. An error means that
// the comparison itself could not be made.
func Compare(ctx context.Context, spec Spec) (Report, error) {
	start := time.Now()
	c := &comparison{
		spec: spec,
		http: &http.Client{Timeout: time.Minute},
		report: Report{
			Rows: map[string]int{}, Documents: map[string]int{}, Keys: map[string]int{},
			Compared: map[string]int{}, Fields: map[string]int{},
		},
		redisKeys: map[string]bool{},
	}
	if spec.RedisAddr != "" {
		c.redis = redis.NewUniversalClient(&redis.UniversalOptions{Addrs: strings.Split(spec.RedisAddr, ","), ContextTimeoutEnabled: true})
		defer c.redis.Close()
	}
	defer c.http.CloseIdleConnections()
	err := c.run(ctx)
	c.report.Took = time.Since(start)
	return c.report, err
}

// WaitEqual compares until nothing differs, at most for timeout. A store that does
// not answer is asked again. It returns the last report, and an error with what was
// wrong last when the time is over.
func WaitEqual(ctx context.Context, spec Spec, timeout time.Duration) (Report, error) {
	start := time.Now()
	for {
		report, err := Compare(ctx, spec)
		if err == nil && report.Equal() {
			return report, nil
		}
		if err == nil {
			err = fmt.Errorf("not equal after %s: %s", time.Since(start).Round(time.Second), report)
		} else if !errors.Is(err, errUnavailable) {
			return report, err
		}
		if time.Since(start) > timeout {
			return report, err
		}
		select {
		case <-ctx.Done():
			return report, errors.Join(ctx.Err(), err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// comparison is one Compare under way.
type comparison struct {
	spec  Spec
	http  *http.Client
	redis redis.UniversalClient

	mu        sync.Mutex
	report    Report
	redisKeys map[string]bool // every key that a row of any table has
}

func (c *comparison) run(ctx context.Context) error {
	for _, t := range c.spec.Tables {
		ids, err := c.table(ctx, t)
		if err != nil {
			return fmt.Errorf("compare %s: %w", t.Table, err)
		}
		if c.spec.ElasticURL != "" && t.Index != "" {
			if err := c.elasticOrphans(ctx, t, ids); err != nil {
				return fmt.Errorf("look for orphans in %s: %w", t.Index, err)
			}
		}
	}
	if c.redis == nil {
		return nil
	}
	// After all tables, for one table's pattern may match another table's keys.
	seen := map[string]bool{}
	for _, t := range c.spec.Tables {
		if t.RedisKey == "" {
			continue
		}
		if err := c.redisOrphans(ctx, t, seen); err != nil {
			return fmt.Errorf("look for orphans under %s: %w", t.RedisKey, err)
		}
	}
	return nil
}

// row is a row of MySQL and the names by which the stores know it.
type row struct {
	id       string // Elasticsearch _id
	redisKey string
	fields   []field
}

// batchRows is how many rows are asked for in one request.
const batchRows = 500

// table compares the rows of a table and returns their Elasticsearch ids.
func (c *comparison) table(ctx context.Context, t TableSpec) (map[string]bool, error) {
	elastic := c.spec.ElasticURL != "" && t.Index != ""
	inRedis := c.redis != nil && t.RedisKey != ""
	template, err := parseTemplate(t.RedisKey, c.spec.Database, t.Table)
	if inRedis && err != nil {
		return nil, err
	}
	if t.RedisMode != "" && t.RedisMode != "hash" && t.RedisMode != "json" {
		return nil, fmt.Errorf("redis mode %q is neither hash nor json", t.RedisMode)
	}
	if elastic {
		if err := c.refresh(ctx, t.Index); err != nil {
			return nil, err
		}
	}

	group, ctx := errgroup.WithContext(ctx)
	batches := make(chan []row)
	ids := map[string]bool{}
	group.Go(func() error {
		defer close(batches)
		return readRows(ctx, c.spec.DB, c.spec.Database, t, template, func(batch []row) error {
			for _, r := range batch {
				ids[r.id] = true
			}
			c.mu.Lock()
			c.report.Rows[t.Table] += len(batch)
			for _, r := range batch {
				if inRedis {
					c.redisKeys[r.redisKey] = true
				}
			}
			c.mu.Unlock()
			select {
			case batches <- batch:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range 4 {
		group.Go(func() error {
			for batch := range batches {
				if elastic {
					if err := c.elasticRows(ctx, t, without(batch, t.SkipElastic)); err != nil {
						return err
					}
				}
				if inRedis {
					if err := c.redisRows(ctx, t, without(batch, t.SkipRedis)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return ids, group.Wait()
}

func without(batch []row, skip map[string]bool) []row {
	if len(skip) == 0 {
		return batch
	}
	var kept []row
	for _, r := range batch {
		if !skip[r.id] {
			kept = append(kept, r)
		}
	}
	return kept
}

func (c *comparison) differs(d Difference) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Total++
	if len(c.report.Differences) < maxListed {
		c.report.Differences = append(c.report.Differences, d)
	}
}

func (c *comparison) compared(sink string, rows, fields int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Compared[sink] += rows
	c.report.Fields[sink] += fields
}

// document compares a JSON document with a row. It returns the document's own
// version.
func (c *comparison) document(t TableSpec, r row, sink string, source []byte) string {
	differs := func(field, want, got string) {
		c.differs(Difference{Table: t.Table, Key: r.id, Sink: sink, Field: field, Want: want, Got: got})
	}
	var doc map[string]any
	if err := decodeJSON(source, &doc); err != nil {
		differs("", "a JSON object", fmt.Sprintf("%s (%v)", source, err))
		return ""
	}
	for _, f := range r.fields {
		got, ok := doc[f.name]
		switch {
		case !ok:
			differs(f.name, f.String(), "no such field")
		case !f.equal(got):
			differs(f.name, f.String(), jsonText(got))
		}
		delete(doc, f.name)
	}
	version := ""
	if meta, ok := doc["_lockstep"].(map[string]any); ok {
		version = jsonText(meta["v"])
	}
	if !isVersion(version) {
		differs("_lockstep.v", "a version", jsonText(doc["_lockstep"]))
	}
	delete(doc, "_lockstep")
	for name, got := range doc {
		differs(name, "no such field", jsonText(got))
	}
	return version
}

// isVersion reports whether s is an integer of 1 to 2^53-1 in decimal.
func isVersion(s string) bool {
	if s == "" || s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return false
	}
	const most = "9007199254740991"
	return len(s) < len(most) || len(s) == len(most) && bytes.Compare([]byte(s), []byte(most)) <= 0
}
