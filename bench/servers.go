package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	served     = "served"
	servedRows = 40_000
)

// spent is what the servers and lockstep have used, in seconds of CPU, and how many bytes
// and records Kafka has acknowledged.
type spent struct {
	cpu            map[string]float64
	bytes, records float64
}

// measureServers asks what a pipeline with both sinks costs every process that takes part: while
// a table is copied, at a steady load of small transactions, without any, and while the rows are
// compared.
func (b *bench) measureServers(ctx context.Context) error {
	pids := map[string]int{}
	for name, server := range map[string]string{"mysql": b.servers.mysql.Addr, "kafka": b.servers.kafka.Addr, "elasticsearch": b.servers.elastic.Addr, "redis": b.servers.redis.Addr} {
		pid, err := listener(server)
		if err != nil {
			b.say("servers: %v; servers in containers are not measured", err)
			return nil
		}
		pids[name] = pid
	}
	if _, err := b.db.ExecContext(ctx, fmt.Sprintf(createTable, database+"."+served)); err != nil {
		return fmt.Errorf("create table %s: %w", served, err)
	}
	if err := insertRows(ctx, b.db, served, 1, servedRows); err != nil {
		return err
	}
	if b.wide > 0 {
		if _, err := b.db.ExecContext(ctx, "UPDATE "+database+"."+served+" SET statement = CONCAT(statement, "+noise("id", (b.wide+127)/128)+")"); err != nil {
			return fmt.Errorf("make the rows wider: %w", err)
		}
	}
	p, err := b.pipeline(served)
	if err != nil {
		return err
	}
	b.say("servers: a copy of %s rows", thousands(servedRows))
	before, err := spentBy(pids, nil, "")
	if err != nil {
		return err
	}
	c, err := b.start(p, "run")
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	pids["lockstep"] = c.cmd.Process.Pid
	before.cpu["lockstep"] = 0
	began := time.Now()
	rows := servedRows
	settle := func() (spent, error) {
		m, err := c.awaitBoth(ctx, rows)
		if err != nil {
			return spent{}, err
		}
		return spentBy(pids, m, p.topic)
	}
	after, err := settle()
	if err != nil {
		return err
	}
	b.add("servers.copy.rows", servedRows/time.Since(began).Seconds(), "rows/s")
	b.spent("servers.copy", before, after, servedRows)
	peak, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	b.add("servers.copy.peak_memory", peak.PeakMB, "MB")

	writer := schedule{db: b.db, table: served, rate: singleRate, per: 1, connections: 8, rows: servedRows}
	for _, measured := range []bool{false, true} { // it warms up first
		if before, err = settle(); err != nil {
			return err
		}
		wait := longWarmUp
		if measured {
			wait = max(b.duration, time.Second)
			b.say("servers: %d transactions/s of one row for %s", singleRate, wait)
		}
		stats, err := writer.run(ctx, wait)
		if err != nil {
			return err
		}
		rows += stats.rows
		if after, err = settle(); err != nil {
			return err
		}
		if measured {
			b.spent("servers.steady", before, after, float64(stats.transactions))
		}
	}

	b.say("servers: nothing for %s", longWarmUp)
	said := func() (float64, error) {
		m, err := readMetrics(ctx, c.admin)
		return m.sum("lockstep_kafka_acked_bytes_total", "topic", p.prefix+".watermarks"), err
	}
	saidBefore, err := said()
	if err != nil {
		return err
	}
	if !pause(ctx, longWarmUp) {
		return ctx.Err()
	}
	saidAfter, err := said()
	if err != nil {
		return err
	}
	b.add("servers.idle.watermarks", (saidAfter-saidBefore)/longWarmUp.Seconds(), "bytes/s")
	idle, err := spentBy(pids, nil, "")
	if err != nil {
		return err
	}
	for _, name := range []string{"lockstep", "kafka"} {
		b.add("servers.idle."+name, (idle.cpu[name]-after.cpu[name])/longWarmUp.Seconds()*100, "% of a CPU")
	}

	b.say("servers: all rows are compared")
	compare := exec.CommandContext(ctx, b.binary, "reconcile", "--once", "-c", p.config)
	out, err := compare.CombinedOutput()
	if err != nil {
		return fmt.Errorf("lockstep reconcile --once: %w: %.500s", err, out)
	}
	compared, err := spentBy(pids, nil, "")
	if err != nil {
		return err
	}
	b.add("servers.compare.reconciler", (compare.ProcessState.UserTime()+compare.ProcessState.SystemTime()).Seconds()/servedRows*1e6, "CPU us")
	if usage, ok := compare.ProcessState.SysUsage().(*syscall.Rusage); ok {
		b.add("servers.compare.peak_memory", float64(usage.Maxrss)/1024, "MB")
	}
	b.spent("servers.compare", idle, compared, servedRows)
	return c.stop()
}

// spent adds what was used of each for one of n.
func (b *bench) spent(name string, before, after spent, n float64) {
	for _, of := range []string{"lockstep", "mysql", "kafka", "elasticsearch", "redis"} {
		b.add(name+"."+of, (after.cpu[of]-before.cpu[of])/n*1e6, "CPU us")
	}
	if records := after.records - before.records; records > 0 {
		b.add(name+".published", (after.bytes-before.bytes)/records, "bytes")
	}
}

// spentBy asks the kernel for the processes, and the metrics for the topic of the rows.
func spentBy(pids map[string]int, m metrics, topic string) (spent, error) {
	s := spent{cpu: map[string]float64{}}
	for name, pid := range pids {
		usage, err := usageNow(pid)
		if err != nil {
			return s, err
		}
		s.cpu[name] = usage.CPU
	}
	if m != nil {
		s.bytes, s.records = m.sum("lockstep_kafka_acked_bytes_total", "topic", topic), m.sum("lockstep_kafka_acked_records_total", "topic", topic)
	}
	return s, nil
}

// listener finds the process of this machine that listens at an address.
func listener(addr string) (pid int, err error) {
	_, port, _ := strings.Cut(addr, ":")
	number, err := strconv.Atoi(port)
	if err != nil {
		return 0, fmt.Errorf("%q is no address", addr)
	}
	var sockets []string
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line) // of proc_pid_net(5): the local address, the state and the inode
			if len(fields) > 9 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", number)) && fields[3] == "0A" {
				sockets = append(sockets, "socket:["+fields[9]+"]")
			}
		}
	}
	files, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil && slices.Contains(sockets, to) {
			return strconv.Atoi(strings.Split(file, "/")[2])
		}
	}
	return 0, fmt.Errorf("no process of this machine listens on %s", addr)
}
