// Package bank is the world that demonstrations, tests and measurements write
// to: a bank of programming questions with tags and test cases, a workload that
// changes it the way an editorial team and its readers would, and a table with
// a column of every common type and its edges.
package bank

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Tables of the question bank, in the order in which they are created.
var Tables = []string{"questions", "tags", "question_tags", "test_cases"}

var createTables = []string{
	`CREATE TABLE questions (
  id           bigint unsigned NOT NULL AUTO_INCREMENT,
  slug         varchar(160) NOT NULL,
  title        varchar(200) NOT NULL,
  statement    text NOT NULL,
  difficulty   enum('easy','medium','hard') NOT NULL,
  status       enum('draft','published') NOT NULL DEFAULT 'draft',
  labels       set('array','string','graph','tree','dynamic-programming','greedy','math','geometry') NOT NULL DEFAULT '',
  points       decimal(8,2) NOT NULL,
  settings     json NOT NULL,
  author_id    int NOT NULL,
  views        int unsigned NOT NULL DEFAULT 0,
  published_at datetime(6) NULL,
  created_at   timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
  updated_at   timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
  PRIMARY KEY (id),
  UNIQUE KEY slug (slug)
) DEFAULT CHARSET=utf8mb4`,
	`CREATE TABLE tags (
  id          int unsigned NOT NULL AUTO_INCREMENT,
  name        varchar(60) NOT NULL,
  colour      char(7) NOT NULL,
  description varchar(255) NULL,
  uses        mediumint unsigned NOT NULL DEFAULT 0,
  first_used  date NULL,
  PRIMARY KEY (id),
  UNIQUE KEY name (name)
) DEFAULT CHARSET=utf8mb4`,
	`CREATE TABLE question_tags (
  question_id bigint unsigned NOT NULL,
  tag_id      int unsigned NOT NULL,
  position    tinyint unsigned NOT NULL,
  added_at    datetime(3) NOT NULL,
  PRIMARY KEY (question_id, tag_id),
  KEY tag (tag_id)
) DEFAULT CHARSET=utf8mb4`,
	`CREATE TABLE test_cases (
  id            bigint unsigned NOT NULL AUTO_INCREMENT,
  question_id   bigint unsigned NOT NULL,
  name          varchar(80) NOT NULL,
  input         mediumtext NOT NULL,
  expected      blob NOT NULL,
  weight        double NOT NULL,
  hidden        bit(1) NOT NULL,
  time_limit_ms int NOT NULL,
  memory_mb     smallint unsigned NULL,
  grace         time(3) NULL,
  introduced    year NOT NULL,
  PRIMARY KEY (id),
  KEY question (question_id)
) DEFAULT CHARSET=utf8mb4`,
}

// Open creates the database unless it is there and returns connections to it
// whose session time zone is UTC. The caller closes them.
func Open(ctx context.Context, addr, user, password, database string) (*sql.DB, error) {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.Passwd = "tcp", addr, user, password
	cfg.Collation = "utf8mb4_general_ci"
	cfg.InterpolateParams = true // one round trip per statement
	cfg.Params = map[string]string{"time_zone": "'+00:00'"}

	server, err := sql.Open("mysql", cfg.FormatDSN())
	if err != nil {
		return nil, fmt.Errorf("open mysql %s: %w", addr, err)
	}
	defer server.Close()
	if _, err := server.ExecContext(ctx, "CREATE DATABASE IF NOT EXISTS "+quote(database)+" DEFAULT CHARACTER SET utf8mb4"); err != nil {
		return nil, fmt.Errorf("create database %s: %w", database, err)
	}

	cfg.DBName = database
	db, err := sql.Open("mysql", cfg.FormatDSN())
	if err != nil {
		return nil, fmt.Errorf("open mysql %s/%s: %w", addr, database, err)
	}
	db.SetMaxIdleConns(64)
	return db, nil
}

// Create makes the empty tables of the question bank in the database that db is
// connected to. It fails when one of them exists.
func Create(ctx context.Context, db *sql.DB) error {
	for i, statement := range createTables {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("create table %s: %w", Tables[i], err)
		}
	}
	return nil
}

// Seed fills the tables with n questions, about three tags and five test cases
// each. The same seed gives the same rows.
func Seed(ctx context.Context, db *sql.DB, n int, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	tags := newInsert(db, "tags", "id", "name", "colour", "description", "uses", "first_used")
	for i, name := range tagNames {
		if err := tags.add(ctx, tagRow(rng, uint32(i+1), name)...); err != nil {
			return err
		}
	}
	if err := tags.flush(ctx); err != nil {
		return err
	}

	questions := newInsert(db, "questions", questionColumns...)
	links := newInsert(db, "question_tags", linkColumns...)
	cases := newInsert(db, "test_cases", caseColumns...)
	for id := uint64(1); id <= uint64(n); id++ {
		q := newQuestion(rng, id)
		if err := questions.add(ctx, q.row()...); err != nil {
			return err
		}
		for position, tag := range pickTags(rng) {
			if err := links.add(ctx, id, tag, position, q.created); err != nil {
				return err
			}
		}
		for range 3 + rng.IntN(5) {
			if err := cases.add(ctx, caseRow(rng, id)...); err != nil {
				return err
			}
		}
	}
	for _, in := range []*insert{questions, links, cases} {
		if err := in.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// firstPoison is where the ids of planted rows begin: far above the ids that
// the workload gives out, which therefore leaves them alone.
const firstPoison = 1_000_000_000_000

// PlantPoison inserts a question that Elasticsearch refuses and Redis takes: its
// settings are a JSON text where the mapping wants an object. It returns the id.
func PlantPoison(ctx context.Context, db *sql.DB) (uint64, error) {
	var last sql.NullInt64
	if err := db.QueryRowContext(ctx, "SELECT MAX(id) FROM questions WHERE id >= ?", firstPoison).Scan(&last); err != nil {
		return 0, fmt.Errorf("find the last poison row: %w", err)
	}
	id := uint64(firstPoison)
	if last.Valid {
		id = uint64(last.Int64) + 1
	}
	q := newQuestion(rand.New(rand.NewPCG(id, 0)), id)
	q.settings = `"checker: exact, languages: all"`
	in := newInsert(db, "questions", questionColumns...)
	if err := in.add(ctx, q.row()...); err != nil {
		return 0, err
	}
	return id, in.flush(ctx)
}

// execer is a connection pool or a transaction.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// insert collects rows and sends them some hundred at a time.
type insert struct {
	to     execer
	table  string
	head   string
	tuple  string
	rows   int
	args   []any
	copied int64
}

func newInsert(to execer, table string, columns ...string) *insert {
	return &insert{
		to:    to,
		table: table,
		head:  "INSERT INTO " + quote(table) + " (" + strings.Join(columns, ",") + ") VALUES ",
		tuple: "(" + strings.TrimSuffix(strings.Repeat("?,", len(columns)), ",") + ")",
	}
}

func (in *insert) add(ctx context.Context, row ...any) error {
	in.args = append(in.args, row...)
	in.rows++
	if in.rows < 250 {
		return nil
	}
	return in.flush(ctx)
}

func (in *insert) flush(ctx context.Context) error {
	if in.rows == 0 {
		return nil
	}
	query := in.head + strings.TrimSuffix(strings.Repeat(in.tuple+",", in.rows), ",")
	if _, err := in.to.ExecContext(ctx, query, in.args...); err != nil {
		return fmt.Errorf("insert into %s: %w", in.table, err)
	}
	in.copied += int64(in.rows)
	in.rows, in.args = 0, in.args[:0]
	return nil
}

func quote(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// micros is t as MySQL takes it, with its microseconds.
func micros(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000000") }
