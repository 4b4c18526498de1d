package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// liveRows is how many rows the table has that is written at a fixed rate.
const liveRows = 5000

// warmUp is how long is written before the measurement, with nothing counted.
const warmUp = 3 * time.Second

// measureLatency writes at a fixed rate, first for a bare reader and then for
// lockstep with both sinks.
func (b *bench) measureLatency(ctx context.Context) error {
	if b.duration == 0 {
		return nil
	}
	if err := insertRows(ctx, b.db, live, 1, liveRows); err != nil {
		return err
	}
	writer := schedule{db: b.db, table: live, rate: b.rate, connections: 8, rows: liveRows}

	alone := max(b.duration/2, time.Second)
	b.say("latency: %.0f transactions/s for %s, for a bare go-mysql reader", b.rate, warmUp+alone)
	bare, bareWriter, err := b.bareLatency(ctx, writer, alone)
	if err != nil {
		return err
	}

	b.say("latency: %.0f transactions/s for %s, for lockstep with both sinks", b.rate, warmUp+b.duration)
	p, err := b.pipeline(live)
	if err != nil {
		return err
	}
	c, err := b.start(p, "run")
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	settled := func(rows int) (metrics, error) {
		return c.await(ctx, fmt.Sprintf("%d row changes settled in both sinks", rows), func(m metrics) bool {
			return m.sum("lockstep_capture_connected") == 1 && m.settled(search) >= rows && m.settled(cache) >= rows
		})
	}
	if _, err := settled(liveRows); err != nil {
		return err
	}
	warm, err := writer.run(ctx, warmUp)
	if err != nil {
		return err
	}
	before, err := settled(liveRows + warm.transactions)
	if err != nil {
		return err
	}
	usageBefore, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	stats, err := writer.run(ctx, b.duration)
	if err != nil {
		return err
	}
	after, err := settled(liveRows + warm.transactions + stats.transactions)
	if err != nil {
		return err
	}
	usage, err := usageNow(c.cmd.Process.Pid)
	if err := errors.Join(err, c.stop()); err != nil {
		return err
	}

	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	for _, sink := range []string{search, cache} {
		h := after.histogram("lockstep_sink_latency_seconds", "sink", sink).since(before.histogram("lockstep_sink_latency_seconds", "sink", sink))
		ended := after.settled(sink) - before.settled(sink)
		overtaken := after.outcome(sink, "superseded") - before.outcome(sink, "superseded")
		future := after.sum("lockstep_sink_commits_from_the_future_total", "sink", sink) - before.sum("lockstep_sink_commits_from_the_future_total", "sink", sink)
		if ended != stats.transactions || int(h.count+future)+overtaken != ended {
			return fmt.Errorf("sink %s: %d rows were written, %d settled, %.0f have a latency, %.0f come from the future, %d were overtaken",
				sink, stats.transactions, ended, h.count, future, overtaken)
		}
		b.beside("latency."+sink+"_p50", h.quantile(.5)*1000, "ms", bare.P50*1000)
		b.beside("latency."+sink+"_p99", h.quantile(.99)*1000, "ms", bare.P99*1000)
		calls := after.histogram("lockstep_sink_apply_seconds", "sink", sink).since(before.histogram("lockstep_sink_apply_seconds", "sink", sink))
		b.add("latency."+sink+"_call_p50", calls.quantile(.5)*1000, "ms")
		b.add("latency."+sink+"_call_rows", float64(ended-overtaken)/calls.count, "rows")
	}
	b.add("latency.cpu", (usage.CPU-usageBefore.CPU)/b.duration.Seconds(), "CPUs")
	b.add("latency.peak_memory", usage.PeakMB, "MB")
	b.beside("latency.commit_p50", ms(quantile(stats.commit, .5)), "ms", ms(quantile(bareWriter.commit, .5)))
	b.beside("latency.commit_p99", ms(quantile(stats.commit, .99)), "ms", ms(quantile(bareWriter.commit, .99)))
	for _, w := range []struct {
		name string
		late []time.Duration
	}{{"latency.writer_late", stats.late}, {"latency.bare_writer_late", bareWriter.late}} {
		b.add(w.name+"_p50", ms(quantile(w.late, .5)), "ms")
		b.add(w.name+"_p99", ms(quantile(w.late, .99)), "ms")
	}
	return nil
}

// bareLatency is the time from a commit until a reader that does nothing else has
// decoded its row.
func (b *bench) bareLatency(ctx context.Context, writer schedule, duration time.Duration) (readerReport, writerStats, error) {
	var executed string
	if err := b.db.QueryRowContext(ctx, "SELECT @@GLOBAL.gtid_executed").Scan(&executed); err != nil {
		return readerReport{}, writerStats{}, err
	}
	skip := int(writer.rate * warmUp.Seconds())
	r, err := b.startReader(ctx, order{Table: live, GTIDs: executed, Skip: skip, Rows: int(writer.rate * duration.Seconds()), Delays: true})
	if err != nil {
		return readerReport{}, writerStats{}, err
	}
	defer r.stop()
	if _, err := writer.run(ctx, warmUp); err != nil {
		return readerReport{}, writerStats{}, err
	}
	stats, err := writer.run(ctx, duration)
	if err != nil {
		return readerReport{}, writerStats{}, err
	}
	report, err := r.report()
	return report, stats, err
}
