package main

import (
	"context"
	"fmt"
	"time"
)

// liveRows is how many rows the table has that is written at a fixed rate.
const liveRows = 5000

// warmUp is how long is written before the measurement, with nothing counted;
// longWarmUp is for what runs on a virtual machine that compiles as it goes.
const (
	warmUp     = 3 * time.Second
	longWarmUp = 15 * time.Second
)

// singleRate is how many transactions of one row per second are the second load.
const singleRate = 300

// load is a way to write at a fixed rate.
type load struct {
	name         string // of its figures
	transactions float64
	per          int

	writer     schedule
	bare       readerReport
	bareWriter writerStats
}

// measureLatency measures with each load.
func (b *bench) measureLatency(ctx context.Context) error {
	if b.duration == 0 {
		return nil
	}
	if err := insertRows(ctx, b.db, live, 1, liveRows); err != nil {
		return err
	}
	loads := []load{{name: "latency", transactions: b.rate / float64(b.per), per: b.per}, {name: "single", transactions: singleRate, per: 1}}
	for i := range loads {
		l := &loads[i]
		l.writer = schedule{db: b.db, table: live, rate: l.transactions, per: l.per, connections: 8, rows: liveRows}
		alone := max(b.duration/2, time.Second)
		b.say("%s: %.0f transactions/s for %s, %d rows each, for a bare go-mysql reader", l.name, l.transactions, warmUp+alone, l.per)
		var err error
		if l.bare, l.bareWriter, err = b.bareLatency(ctx, l.writer, alone); err != nil {
			return err
		}
	}
	p, err := b.pipeline(live)
	if err != nil {
		return err
	}
	c, err := b.start(p, "run")
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	rows := liveRows
	for i := range loads {
		if err := b.measureLoad(ctx, c, &loads[i], &rows); err != nil {
			return fmt.Errorf("%s: %w", loads[i].name, err)
		}
	}
	return c.stop()
}

// measureLoad writes for lockstep with both sinks, which have rows settled when it
// begins.
func (b *bench) measureLoad(ctx context.Context, c *child, l *load, rows *int) error {
	b.say("%s: %.0f transactions/s for %s, %d rows each, for lockstep with both sinks", l.name, l.transactions, longWarmUp+b.duration, l.per)
	if _, err := c.awaitBoth(ctx, *rows); err != nil {
		return err
	}
	warm, err := l.writer.run(ctx, longWarmUp)
	if err != nil {
		return err
	}
	*rows += warm.rows
	before, err := c.awaitBoth(ctx, *rows)
	if err != nil {
		return err
	}
	usageBefore, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	stats, err := l.writer.run(ctx, b.duration)
	if err != nil {
		return err
	}
	*rows += stats.rows
	after, err := c.awaitBoth(ctx, *rows)
	if err != nil {
		return err
	}
	usage, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}

	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	for _, sink := range []string{search, cache} {
		h := after.histogram("lockstep_sink_latency_seconds", "sink", sink).since(before.histogram("lockstep_sink_latency_seconds", "sink", sink))
		ended := after.settled(sink) - before.settled(sink)
		overtaken := after.outcome(sink, "superseded") - before.outcome(sink, "superseded")
		future := after.sum("lockstep_sink_commits_from_the_future_total", "sink", sink) - before.sum("lockstep_sink_commits_from_the_future_total", "sink", sink)
		if ended != stats.rows || int(h.count+future)+overtaken != ended {
			return fmt.Errorf("sink %s: %d rows were written, %d settled, %.0f have a latency, %.0f come from the future, %d were overtaken",
				sink, stats.rows, ended, h.count, future, overtaken)
		}
		b.beside(l.name+"."+sink+"_p50", h.quantile(.5)*1000, "ms", l.bare.P50*1000)
		b.beside(l.name+"."+sink+"_p99", h.quantile(.99)*1000, "ms", l.bare.P99*1000)
		calls := after.histogram("lockstep_sink_apply_seconds", "sink", sink).since(before.histogram("lockstep_sink_apply_seconds", "sink", sink))
		b.add(l.name+"."+sink+"_call_p50", calls.quantile(.5)*1000, "ms")
		b.add(l.name+"."+sink+"_call_rows", float64(ended-overtaken)/calls.count, "rows")
	}
	b.add(l.name+".cpu", (usage.CPU-usageBefore.CPU)/b.duration.Seconds(), "CPUs")
	b.add(l.name+".peak_memory", usage.PeakMB, "MB")
	b.beside(l.name+".commit_p50", ms(quantile(stats.commit, .5)), "ms", ms(quantile(l.bareWriter.commit, .5)))
	b.beside(l.name+".commit_p99", ms(quantile(stats.commit, .99)), "ms", ms(quantile(l.bareWriter.commit, .99)))
	for _, w := range []struct {
		name string
		late []time.Duration
	}{{l.name + ".writer_late", stats.late}, {l.name + ".bare_writer_late", l.bareWriter.late}} {
		b.add(w.name+"_p50", ms(quantile(w.late, .5)), "ms")
		b.add(w.name+"_p99", ms(quantile(w.late, .99)), "ms")
	}
	return nil
}

// bareLatency is the time from a commit until a reader that does nothing else has
// decoded its row.
func (b *bench) bareLatency(ctx context.Context, writer schedule, duration time.Duration) (r readerReport, stats writerStats, err error) {
	var executed string
	if err := b.db.QueryRowContext(ctx, "SELECT @@GLOBAL.gtid_executed").Scan(&executed); err != nil {
		return r, stats, err
	}
	skip := int(writer.rate*warmUp.Seconds()) * writer.per
	reader, err := b.startReader(ctx, order{Table: live, GTIDs: executed, Skip: skip, Rows: int(writer.rate*duration.Seconds()) * writer.per, Delays: true})
	if err != nil {
		return r, stats, err
	}
	defer reader.stop()
	if _, err := writer.run(ctx, warmUp); err != nil {
		return r, stats, err
	}
	if stats, err = writer.run(ctx, duration); err != nil {
		return r, stats, err
	}
	r, err = reader.report()
	return r, stats, err
}
