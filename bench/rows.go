package main

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/errgroup"

	"lockstep/internal/testenv"
)

// createTable has nine columns; its rows take about 420 bytes.
const createTable = `CREATE TABLE %s (
  id         bigint unsigned NOT NULL,
  slug       varchar(160) NOT NULL,
  title      varchar(200) NOT NULL,
  statement  text NOT NULL,
  difficulty enum('easy','medium','hard') NOT NULL,
  points     decimal(8,2) NOT NULL,
  settings   json NOT NULL,
  views      int unsigned NOT NULL,
  updated_at datetime(6) NOT NULL,
  PRIMARY KEY (id)
)`

const perInsert = 100 // rows of a transaction

// firstRow is the id of the row of a first start. It belongs to the last of four partitions:
// a topic that has records but none there is taken for one that has grown, and says so in
// further records at the next start.
const firstRow = 3

// appendRow appends the values of a row. All rows have about the same size and
// each id always has the same values.
func appendRow(dst []byte, id int) []byte {
	const words = "sum of the longest path in a grid where every cell holds a number and walls may be moved once per turn, " +
		"given that two players take turns and both of them play as well as anybody could; print the answer modulo a prime "
	shift := id * 31 % len(words)
	return fmt.Appendf(dst, `(%d,'question-%d-%x','Question number %d about grids','%s%s','%s',%d.%02d,'{"limits": {"ms": %d, "mb": 256}, "languages": ["go", "c", "py"]}',%d,'2026-01-02 03:04:05.%06d')`,
		id, id, id*2654435761%4294967296, id, words[shift:], words[:shift], []string{"easy", "medium", "hard"}[id%3], id%900, id%100, 500+id%7*250, id%1000, id%1000000)
}

// insertRows writes the rows with the ids from to last, some per transaction.
func insertRows(ctx context.Context, db *sql.DB, table string, from, last int) error {
	var statement []byte
	for ; from <= last; from += perInsert {
		statement = append(statement[:0], "INSERT INTO "+database+"."+table+" VALUES "...)
		for id := from; id < min(from+perInsert, last+1); id++ {
			if id > from {
				statement = append(statement, ',')
			}
			statement = appendRow(statement, id)
		}
		if _, err := db.ExecContext(ctx, string(statement)); err != nil {
			return fmt.Errorf("insert into %s: %w", table, err)
		}
	}
	return nil
}

// inserts is how many of the backlog's changes are inserts; the others are updates.
func (b *bench) inserts() int { return b.rows * 3 / 5 }

// writeBacklog commits the changes that are then measured. Many connections let
// MySQL flush many transactions at once.
func (b *bench) writeBacklog(ctx context.Context) error {
	inserts := b.inserts()
	b.say("writing the backlog: %s inserts, %d per transaction, and %s updates, one per transaction",
		thousands(float64(inserts)), perInsert, thousands(float64(b.rows-inserts)))
	began := time.Now()
	c := mysql.NewConfig()
	c.Net, c.Addr, c.User, c.Passwd, c.MultiStatements = "tcp", b.servers.mysql.Addr, testenv.AdminUser, testenv.AdminPassword, true
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	db.SetMaxIdleConns(64)

	const first = firstRow + 1
	writers, writing := errgroup.WithContext(ctx)
	writers.SetLimit(8)
	for from := first; from < first+inserts; from += 2000 {
		writers.Go(func() error {
			return insertRows(writing, db, backlog, from, min(from+2000, first+inserts)-1)
		})
	}
	if err := writers.Wait(); err != nil {
		return err
	}

	// Statements travel together, but each is a transaction.
	const together = 50
	var updated atomic.Int64
	writers, writing = errgroup.WithContext(ctx)
	writers.SetLimit(48)
	for from := 0; from < b.rows-inserts; from += together {
		writers.Go(func() error {
			random := rand.New(rand.NewPCG(uint64(from), 1))
			var text strings.Builder
			n := min(together, b.rows-inserts-from)
			for range n {
				fmt.Fprintf(&text, "UPDATE %s.%s SET views = views + 1, updated_at = NOW(6) WHERE id = %d;", database, backlog, first+random.IntN(inserts))
			}
			if _, err := db.ExecContext(writing, text.String()); err != nil {
				return fmt.Errorf("update %s: %w", backlog, err)
			}
			updated.Add(int64(n))
			return nil
		})
	}
	if err := writers.Wait(); err != nil {
		return err
	}
	var rows, views int
	err = db.QueryRowContext(ctx, "SELECT COUNT(*), COALESCE(SUM(views - id % 1000), 0) FROM "+database+"."+backlog).Scan(&rows, &views)
	switch {
	case err != nil:
		return fmt.Errorf("count %s: %w", backlog, err)
	case rows != inserts+1 || views != b.rows-inserts || int(updated.Load()) != views:
		return fmt.Errorf("the backlog is wrong: want %d rows and %d updates, MySQL has %d and %d", inserts+1, b.rows-inserts, rows, views)
	}
	b.say("the backlog is written, %s row changes/s", thousands(float64(b.rows)/time.Since(began).Seconds()))
	return nil
}

// schedule writes transactions at fixed times, whether or not the
// earlier ones are through, so that a slow moment is not hidden by writing less.
type schedule struct {
	db          *sql.DB
	table       string  // live when empty
	rate        float64 // transactions per second
	per         int     // rows that each changes
	connections int
	rows        int // that the table has
	// do is a transaction that changes the rows with these ids; nil for an update alone.
	do func(ctx context.Context, conn *sql.Conn, ids []string) error
}

// writerStats says how well the schedule was kept.
type writerStats struct {
	transactions int
	rows         int             // that they changed
	late, commit []time.Duration // sorted
	done         []time.Duration // since it was due, sorted
}

// run writes for that long and returns what it did.
func (s schedule) run(ctx context.Context, duration time.Duration) (writerStats, error) {
	table := database + "." + cmp.Or(s.table, live)
	total := int(s.rate * duration.Seconds())
	began := time.Now()
	var next atomic.Int64
	late, commit, done := make([]time.Duration, total), make([]time.Duration, total), make([]time.Duration, total)
	do := s.do
	if do == nil {
		do = func(ctx context.Context, conn *sql.Conn, ids []string) error {
			_, err := conn.ExecContext(ctx, "UPDATE "+table+" SET views = views + 1, updated_at = NOW(6) WHERE id IN ("+strings.Join(ids, ",")+")")
			return err
		}
	}
	writers, ctx := errgroup.WithContext(ctx)
	for range s.connections {
		writers.Go(func() error {
			conn, err := s.db.Conn(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			for {
				i := int(next.Add(1)) - 1
				if i >= total {
					return nil
				}
				due := began.Add(time.Duration(float64(i) / s.rate * float64(time.Second)))
				if wait := time.Until(due); wait > 0 && !pause(ctx, wait) {
					return ctx.Err()
				}
				sent := time.Now()
				// Neighbours in time are different rows: nobody waits for a lock.
				ids := make([]string, s.per)
				for n := range ids {
					ids[n] = strconv.Itoa((i*s.per+n)*7919%s.rows + 1)
				}
				if err := do(ctx, conn, ids); err != nil {
					return fmt.Errorf("update %s: %w", table, err)
				}
				late[i], commit[i], done[i] = sent.Sub(due), time.Since(sent), time.Since(due)
			}
		})
	}
	if err := writers.Wait(); err != nil {
		return writerStats{}, err
	}
	slices.Sort(late)
	slices.Sort(commit)
	slices.Sort(done)
	return writerStats{total, total * s.per, late, commit, done}, nil
}

// pause waits; it is false when ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
