package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// measureLarge asks for the most memory that the capture takes for what is large.
func (b *bench) measureLarge(ctx context.Context) error {
	for _, l := range []struct {
		table, what string
		rows        int
		setup       []string
		insert      string
	}{
		{"million_rows", "a transaction of a million rows", 1_000_000,
			[]string{"SET SESSION cte_max_recursion_depth = 1000000"},
			"INSERT INTO %s WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT i, SHA2(i, 512) FROM n"},
		{"compressed", "a compressed transaction of a gigabyte", 10_000,
			[]string{"SET SESSION cte_max_recursion_depth = 10000", "SET SESSION binlog_transaction_compression = ON"},
			"INSERT INTO %s WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 10000) SELECT i, REPEAT(" + noise("i", 80) + ", 10) FROM n"},
		{"large_row", "a row of 64 MB", 1, nil,
			"INSERT INTO %s SELECT 1, REPEAT(" + noise("7", 128) + ", 4096)"},
		{"updated_row", "a row of 64 MB, written and changed", 2, []string{"INSERT INTO " + database + ".updated_row SELECT 1, REPEAT(" + noise("7", 128) + ", 4096)"},
			"UPDATE %s SET v = REPEAT(" + noise("8", 128) + ", 4096)"},
		{"noisy_row", "a row of 64 MB that compression does not make smaller", 1,
			[]string{"SET SESSION cte_max_recursion_depth = 100000", "SET SESSION group_concat_max_len = 100000000"},
			"INSERT INTO %s WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 12288) SELECT 1, GROUP_CONCAT(TO_BASE64(RANDOM_BYTES(1024)) SEPARATOR '') FROM n, (SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4) AS four"},
	} {
		if err := b.measurePeak(ctx, l.table, l.what, l.rows, l.setup, l.insert); err != nil {
			return err
		}
	}
	// Whoever asks this server for its log next is not to be kept waiting while it
	// passes over all that.
	if _, err := b.db.ExecContext(ctx, "FLUSH BINARY LOGS"); err != nil {
		return fmt.Errorf("begin a new log file: %w", err)
	}
	return nil
}

// noise is an expression for text that nearly only repeats shorten: n times 128
// characters that depend on seed.
func noise(seed string, n int) string {
	text := "CONCAT("
	for i := range n {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf("SHA2(%s * 1000 + %d, 512)", seed, i)
	}
	return text + ")"
}

func (b *bench) measurePeak(ctx context.Context, table, what string, rows int, setup []string, insert string) error {
	b.say("large: %s", what)
	create := "CREATE TABLE " + database + "." + table + " (id int PRIMARY KEY, v longtext CHARACTER SET ascii NOT NULL)"
	if _, err := b.db.ExecContext(ctx, create); err != nil {
		return fmt.Errorf("%s: %w", create, err)
	}
	b.maxRecord = 80 << 20
	defer func() { b.maxRecord = 0 }()
	p, err := b.pipeline(table)
	if err != nil {
		return err
	}
	c, err := b.start(p, "capture")
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	before, err := c.await(ctx, "the log is read", func(m metrics) bool { return m.sum("lockstep_capture_connected") == 1 })
	if err != nil {
		return err
	}
	began := time.Now()
	if err := b.once(ctx, append(setup, fmt.Sprintf(insert, database+"."+table))); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	written := time.Now()
	m, err := c.await(ctx, what+" is in Kafka", func(m metrics) bool {
		return int(m.sum("lockstep_kafka_acked_records_total", "topic", p.topic)) >= rows
	})
	if err != nil {
		return err
	}
	usage, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	clock := m.sum("lockstep_capture_log_clock_bytes") - before.sum("lockstep_capture_log_clock_bytes")
	b.say("large: written in %.0f s, in Kafka %.0f s later, %.0f MB of rows", written.Sub(began).Seconds(), time.Since(written).Seconds(), clock/1e6)
	b.add("large."+table+"_peak_memory", usage.PeakMB, "MB")
	return c.stop()
}

// once runs statements in a session of their own.
func (b *bench) once(ctx context.Context, statements []string) error {
	conn, err := b.db.Conn(ctx)
	if err != nil {
		return err
	}
	// What it has set must not reach the next user of the connection.
	defer func() { _ = conn.Raw(func(any) error { return sql.ErrConnDone }); conn.Close() }()
	for _, s := range statements {
		if _, err := conn.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return nil
}
