package mysql

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"

	"lockstep/cdc"
)

// progressEvery is how often a copy says how far it is.
const progressEvery = 10 * time.Second

// copier copies the rows of one table. It holds one row at a time.
type copier struct {
	source  *Source
	layout  *layout
	version cdc.Version

	key, after []byte // reused from row to row
	row        []any
}

func (c *copier) run(ctx context.Context, conn *client.Conn) error {
	s, table := c.source, c.layout.table
	counters := s.Metrics.table(table)
	gauge := s.Metrics.copied.WithLabelValues(table.String())
	gauge.Set(0)
	started, said := time.Now(), time.Now()
	rows := 0
	s.Log.Info("copying table", "table", table)

	var failed error // of ours, to tell it from the connection's
	change := cdc.Change{Table: table, Op: cdc.OpRead, Version: c.version}
	var result gomysql.Result
	err := conn.ExecuteSelectStreaming(c.query(), &result, func(fields []gomysql.FieldValue) error {
		if failed = c.read(&change, fields); failed != nil {
			return failed
		}
		if failed = s.Out.Publish(ctx, &change); failed != nil {
			return failed
		}
		rows++
		counters.inc(cdc.OpRead)
		gauge.Set(float64(rows))
		if time.Since(said) > progressEvery {
			said = time.Now()
			s.Log.Info("copying table", "table", table, "rows", rows, "rows_per_second", int(float64(rows)/time.Since(started).Seconds()))
		}
		return nil
	}, nil)
	if failed != nil {
		return failed
	}
	if err != nil {
		return lost(fmt.Errorf("copy %s: %w", table, err))
	}
	s.Log.Info("table copied", "table", table, "rows", rows, "seconds", time.Since(started).Round(time.Millisecond).Seconds())
	return nil
}

func (c *copier) query() string {
	exprs := make([]string, len(c.layout.columns))
	for i := range c.layout.columns {
		exprs[i] = c.layout.columns[i].selectExpr()
	}
	return "SELECT " + strings.Join(exprs, ", ") + " FROM " + quoteTable(c.layout.table)
}

func (c *copier) read(change *cdc.Change, fields []gomysql.FieldValue) (err error) {
	c.row = c.row[:0]
	for i := range fields {
		c.row = append(c.row, value(&fields[i]))
	}
	if c.after, err = c.layout.appendRow(c.after[:0], c.row); err != nil {
		return stopf("", "copy: %v", err)
	}
	if c.key, err = c.layout.appendKey(c.key[:0], c.row); err != nil {
		return stopf("", "copy: %v", err)
	}
	change.Key, change.After = c.key, c.after
	return nil
}
