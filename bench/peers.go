package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"lockstep/internal/testenv"
)

// manner is what a peer is tuned for. Lockstep has no such settings.
type manner string

const (
	throughput manner = "throughput" // go on from the saved place, or copy first
	snapshot   manner = "snapshot"   // copy, and no more
	lowLatency manner = "latency"
)

// peer is a program that reads MySQL into Kafka. An id has its topics and its saved
// place to itself.
type peer struct {
	name  string
	topic func(id, table string) string
	start func(id, table string, how manner) (*child, error)
}

// side is what was measured of one peer.
type side map[string]float64

// peerFigures lists what is measured, in the order of the report.
var peerFigures = []struct{ name, unit, better string }{
	{"backlog.rows", "rows/s", "more"}, {"backlog.first", "s", "less"}, {"backlog.cpu", "CPU s", "less"}, {"backlog.peak_memory", "MB", "less"},
	{"backlog.duplicates", "records", "less"}, {"backlog.lost", "changes", "less"},
	{"kill.until_first", "s", "less"}, {"kill.duplicates", "records", "less"}, {"kill.steps_back", "records", "less"}, {"kill.lost", "changes", "less"},
	{"snapshot.rows", "rows/s", "more"}, {"snapshot.took", "s", "less"}, {"snapshot.cpu", "CPU s", "less"}, {"snapshot.peak_memory", "MB", "less"},
	{"latency.p50", "ms", "less"}, {"latency.p99", "ms", "less"}, {"latency.p999", "ms", "less"}, {"latency.cpu", "CPU s", "less"}, {"latency.late_p99", "ms", "less"},
}

// comparePeers measures Lockstep's capture and Debezium on the same server, broker
// and changes, one after the other, and prints the figures side by side.
func (b *bench) comparePeers(ctx context.Context) (err error) {
	debezium, err := b.debezium(ctx)
	if err != nil {
		return err
	}
	if err := b.preparePeers(); err != nil {
		return err
	}
	release, err := b.alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	wipe := func(ctx context.Context) error {
		return errors.Join(b.clearMySQL(ctx), b.clearKafka(ctx), b.clearRedis(ctx))
	}
	defer func() {
		b.say("removing what was written")
		clearing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, wipe(clearing), b.db.Close(), b.redis.Close())
	}()
	header := b.header(ctx)
	header.Versions["debezium"] = debeziumVersion
	delete(header.Versions, "elasticsearch")
	b.say("%s: %s row changes; clearing what a killed run may have left", b.name, thousands(float64(b.rows)))
	if err := wipe(ctx); err != nil {
		return err
	}
	for _, statement := range []string{"CREATE DATABASE " + database + " DEFAULT CHARACTER SET utf8mb4",
		fmt.Sprintf(createTable, database+"."+backlog), fmt.Sprintf(createTable, database+"."+live)} {
		if _, err := b.db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	if err := errors.Join(insertRows(ctx, b.db, backlog, firstRow, firstRow), insertRows(ctx, b.db, live, 1, liveRows)); err != nil {
		return err
	}
	peers := []peer{{"lockstep", b.lockstepTopic, b.startLockstep}, debezium}
	measured := map[string]side{}
	for _, p := range peers {
		measured[p.name] = side{}
		for _, id := range []string{"backlog", "kill"} {
			b.say("%s: first start of %s, with one row", p.name, id)
			if err := b.firstStartOf(ctx, p, id); err != nil {
				return err
			}
		}
	}
	if err := b.writeBacklog(ctx); err != nil {
		return err
	}
	for _, measure := range []func(context.Context, peer, side) error{b.peerBacklog, b.peerKill, b.peerSnapshot, b.peerLatency} {
		for _, p := range peers {
			if err := measure(ctx, p, measured[p.name]); err != nil {
				fmt.Print(peersTable(header, measured)) // what there is
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	header.Seconds = round(time.Since(b.began).Seconds())
	fmt.Print(peersTable(header, measured))
	return b.savePeers(header, measured)
}

func (b *bench) preparePeers() error {
	if err := os.RemoveAll(b.peersDir()); err != nil {
		return err
	}
	return b.prepare(false, b.peersDir())
}

func (b *bench) peersDir() string { return filepath.Join(b.dir, "peers") }

func (b *bench) lockstepTopic(id, table string) string {
	return b.name + "-" + id + "." + database + "." + table
}

// startLockstep runs a capture. The sink only has to be named, because a pipeline
// has one; it does not run.
func (b *bench) startLockstep(id, table string, how manner) (*child, error) {
	admin, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p := &pipeline{table: filepath.Join("peers", "lockstep-"+id+"-"+string(how)), config: filepath.Join(b.peersDir(), id+".yaml"), admin: admin}
	text := fmt.Sprintf(`prefix: %[1]s-%[2]s
source: {addr: %[3]q, user: %[4]q, password: %[5]q, server_id: %[6]d}
kafka: {brokers: [%[7]q], partitions: 4}
sinks: {cache: {redis: {addresses: [%[8]q]}}}
tables: [{match: %[9]s.%[10]s, redis: {key: "%[1]s:%[2]s:{id}"}}]
admin: {listen: %[11]q}
`, b.name, id, b.servers.mysql.Addr, b.servers.mysql.User, b.servers.mysql.Password, serverID(1), b.servers.kafka.Addr, b.servers.redis.Addr, database, table, admin)
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return b.start(p, "capture")
}

// quit ends a peer. Java ends with a status of its own when it is told to.
func (c *child) quit() error {
	select {
	case <-c.done:
		return fmt.Errorf("it ended by itself (%v); %s", c.err, c.tail())
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(30 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("it did not end within 30 s of SIGTERM; %s", c.tail())
	}
}

// published is how many records a topic has; 0 while it is not there.
func (b *bench) published(ctx context.Context, topic string) int {
	n, err := b.records(ctx, topic)
	if err != nil {
		return 0
	}
	return n
}

// reaches waits until a topic has n records, or more.
func (b *bench) reaches(ctx context.Context, c *child, topic string, n int) (at time.Time, err error) {
	err = c.poll(ctx, fmt.Sprintf("%d records in %s", n, topic), func() time.Duration {
		if at = time.Now(); b.published(ctx, topic) >= n {
			return 0
		}
		return 50 * time.Millisecond
	})
	return at, err
}

// settles waits until a topic has n records and gets no more for three seconds.
func (b *bench) settles(ctx context.Context, c *child, topic string, n int) error {
	last, since := -1, time.Now()
	return c.poll(ctx, fmt.Sprintf("%d records in %s", n, topic), func() time.Duration {
		now := b.published(ctx, topic)
		if now != last {
			last, since = now, time.Now()
		}
		if now >= n && time.Since(since) > 3*time.Second {
			return 0
		}
		return 100 * time.Millisecond
	})
}

func (b *bench) firstStartOf(ctx context.Context, p peer, id string) error {
	c, err := p.start(id, backlog, throughput)
	if err != nil {
		return err
	}
	return errors.Join(b.settles(ctx, c, p.topic(id, backlog), 1), c.quit())
}

// peerBacklog lets a peer drain the backlog.
func (b *bench) peerBacklog(ctx context.Context, p peer, s side) error {
	b.say("%s: the backlog", p.name)
	topic := p.topic("backlog", backlog)
	before := b.published(ctx, topic)
	c, err := p.start("backlog", backlog, throughput)
	if err != nil {
		return err
	}
	defer c.quit()
	first, err := b.reaches(ctx, c, topic, before+1)
	if err != nil {
		return err
	}
	had := b.published(ctx, topic)
	began := time.Now()
	end, err := b.reaches(ctx, c, topic, before+b.rows)
	if err != nil {
		return err
	}
	usage, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	s["backlog.first"], s["backlog.rows"] = first.Sub(c.started).Seconds(), float64(before+b.rows-had)/end.Sub(began).Seconds()
	s["backlog.cpu"], s["backlog.peak_memory"] = usage.CPU, usage.PeakMB
	if err := b.settles(ctx, c, topic, before+b.rows); err != nil {
		return err
	}
	t, err := b.tally(ctx, topic)
	if err != nil {
		return err
	}
	s["backlog.duplicates"], s["backlog.lost"] = float64(t.duplicates), float64(before+b.rows-t.changes())
	return nil
}

// peerKill kills a peer in the backlog, among the updates, and starts it again.
func (b *bench) peerKill(ctx context.Context, p peer, s side) error {
	b.say("%s: kill -9 in the backlog, and a restart", p.name)
	topic := p.topic("kill", backlog)
	before := b.published(ctx, topic)
	c, err := p.start("kill", backlog, throughput)
	if err != nil {
		return err
	}
	_, err = b.reaches(ctx, c, topic, before+b.rows*4/5)
	_ = c.cmd.Process.Kill()
	<-c.done
	if err != nil {
		return err
	}
	had := b.published(ctx, topic)
	if had >= before+b.rows {
		b.say("%s: it was done before it was killed; the figures of the kill say nothing", p.name)
	}
	if c, err = p.start("kill", backlog, throughput); err != nil {
		return err
	}
	defer c.quit()
	first, err := b.reaches(ctx, c, topic, had+1)
	if err != nil {
		return err
	}
	if err := b.settles(ctx, c, topic, before+b.rows); err != nil {
		return err
	}
	t, err := b.tally(ctx, topic)
	if err != nil {
		return err
	}
	s["kill.until_first"] = first.Sub(c.started).Seconds()
	s["kill.duplicates"], s["kill.steps_back"], s["kill.lost"] = float64(t.duplicates), float64(t.stepBacks), float64(before+b.rows-t.changes())
	return nil
}

// peerSnapshot lets a peer copy the table that the backlog has left.
func (b *bench) peerSnapshot(ctx context.Context, p peer, s side) error {
	rows := b.inserts() + 1
	b.say("%s: a copy of %s rows", p.name, thousands(float64(rows)))
	topic := p.topic("snapshot", backlog)
	c, err := p.start("snapshot", backlog, snapshot)
	if err != nil {
		return err
	}
	if _, err := b.reaches(ctx, c, topic, 1); err != nil {
		return errors.Join(err, c.quit())
	}
	had, began := b.published(ctx, topic), time.Now()
	end, err := b.reaches(ctx, c, topic, rows)
	if err != nil {
		return errors.Join(err, c.quit())
	}
	usage, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return errors.Join(err, c.quit())
	}
	if had < rows {
		s["snapshot.rows"] = float64(rows-had) / end.Sub(began).Seconds()
	}
	s["snapshot.took"], s["snapshot.cpu"], s["snapshot.peak_memory"] = end.Sub(c.started).Seconds(), usage.CPU, usage.PeakMB
	return c.quit()
}

// peerLatency writes at a fixed rate and reads the records as they come: from the
// beginning of the statement, by the server's clock, until a reader has the record.
func (b *bench) peerLatency(ctx context.Context, p peer, s side) error {
	if b.duration == 0 {
		return nil
	}
	b.say("%s: %.0f transactions/s for %s", p.name, b.rate, warmUp+b.duration)
	topic := p.topic("latency", live)
	c, err := p.start("latency", live, lowLatency)
	if err != nil {
		return err
	}
	defer c.quit()
	if err := b.settles(ctx, c, topic, liveRows); err != nil {
		return err
	}
	reader, err := b.tail(ctx, topic)
	if err != nil {
		return err
	}
	defer reader.stop()
	writer := schedule{db: b.db, table: live, rate: b.rate, per: 1, connections: 8, rows: liveRows}
	warm, err := writer.run(ctx, warmUp)
	if err != nil {
		return err
	}
	cold, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	since := time.Now()
	stats, err := writer.run(ctx, b.duration)
	if err != nil {
		return err
	}
	total := warm.transactions + stats.transactions
	if err := c.poll(ctx, fmt.Sprintf("%d records of the rate to be read", total), func() time.Duration {
		if reader.count() >= total {
			return 0
		}
		return 20 * time.Millisecond
	}); err != nil {
		return err
	}
	usage, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	took, err := reader.latencies(since)
	if err != nil {
		return err
	}
	for name, q := range map[string]float64{"p50": .5, "p99": .99, "p999": .999} {
		s["latency."+name] = milliseconds(quantile(took, q))
	}
	s["latency.cpu"], s["latency.late_p99"] = usage.CPU-cold.CPU, milliseconds(quantile(stats.late, .99))
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// peersTable is the report for the eye.
func peersTable(h Header, measured map[string]side) string {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%s row changes, %d CPUs, load %.1f before, %s, commit %s, %.0f s\nMySQL %s, Kafka %s, Debezium %s on Kafka Connect, %s\n\n",
		thousands(float64(h.Rows)), h.CPUs, h.Load, h.Date.Format(time.DateTime), h.Commit, h.Seconds, h.Versions["mysql"], h.Versions["kafka"], h.Versions["debezium"], h.Versions["go"])
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "NAME\tLOCKSTEP\tDEBEZIUM\tUNIT\tBETTER\t\n")
	group := ""
	for _, f := range peerFigures {
		ours, ok := measured["lockstep"][f.name]
		if !ok {
			continue
		}
		if of, _, _ := strings.Cut(f.name, "."); of != group {
			if group != "" {
				fmt.Fprintf(w, "\t\t\t\t\t\n")
			}
			group = of
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", f.name, number(ours), number(measured["debezium"][f.name]), f.unit, f.better)
	}
	w.Flush()
	text.WriteString("\nOne run each, one after the other, on this machine's cores together with both servers: what differs by less than\na third says nothing. Debezium is tuned for throughput, and for latency where that is measured.\n")
	return text.String()
}

// savePeers writes the figures as JSON.
func (b *bench) savePeers(h Header, measured map[string]side) error {
	type figure struct {
		Name     string  `json:"name"`
		Unit     string  `json:"unit"`
		Better   string  `json:"better"`
		Lockstep float64 `json:"lockstep"`
		Debezium float64 `json:"debezium"`
	}
	var figures []figure
	for _, f := range peerFigures {
		if ours, ok := measured["lockstep"][f.name]; ok {
			figures = append(figures, figure{f.name, f.unit, f.better, round(ours), round(measured["debezium"][f.name])})
		}
	}
	text, err := json.MarshalIndent(struct {
		Header  Header   `json:"header"`
		Figures []figure `json:"figures"`
	}{h, figures}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.out, append(text, '\n'), 0o644); err != nil {
		return err
	}
	b.say("the figures are in %s", b.out)
	return nil
}

// --- Debezium -----------------------------------------------------------------

const debeziumVersion = "3.6.1.Final"

// worker is a standalone Kafka Connect worker. Without schemas the values are half
// as large; the place is saved twelve times as often as by default.
const worker = `bootstrap.servers=%[1]s
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
key.converter.schemas.enable=false
value.converter.schemas.enable=false
offset.storage.file.filename=%[2]s/offsets.dat
offset.flush.interval.ms=5000
plugin.path=%[3]s
plugin.discovery=hybrid_warn
listeners=http://%[4]s
connector.client.config.override.policy=All
`

const connector = `name=%[1]s
connector.class=io.debezium.connector.mysql.MySqlConnector
tasks.max=1
database.hostname=%[2]s
database.port=%[3]s
database.user=%[4]s
database.password=%[5]s
database.server.id=%[6]d
database.ssl.mode=disabled
database.allowPublicKeyRetrieval=true
topic.prefix=%[1]s
database.include.list=%[7]s
table.include.list=%[7]s.%[8]s
include.schema.changes=false
snapshot.mode=%[9]s
snapshot.locking.mode=minimal
schema.history.internal=io.debezium.storage.file.history.FileSchemaHistory
schema.history.internal.file.filename=%[10]s/history.dat
decimal.handling.mode=string
time.precision.mode=adaptive_time_microseconds
topic.creation.default.partitions=4
topic.creation.default.replication.factor=1
`

var tuning = map[manner]string{
	throughput: tunedForThroughput, snapshot: tunedForThroughput,
	lowLatency: "poll.interval.ms=10\nproducer.override.linger.ms=0\n",
}

const tunedForThroughput = `max.batch.size=8192
max.queue.size=65536
poll.interval.ms=50
producer.override.batch.size=262144
producer.override.linger.ms=5
producer.override.compression.type=lz4
`

// debezium installs it, where it is not, and says how it is started.
func (b *bench) debezium(ctx context.Context) (peer, error) {
	install := exec.CommandContext(ctx, "deploy/local/debezium")
	install.Stderr = os.Stderr
	out, err := install.Output()
	if err != nil {
		return peer{}, fmt.Errorf("install Debezium: %w", err)
	}
	is := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		is[name] = value
	}
	name := func(id string) string { return b.name + "-debezium-" + id }
	return peer{
		name:  "debezium",
		topic: func(id, table string) string { return name(id) + "." + database + "." + table },
		start: func(id, table string, how manner) (*child, error) {
			state, err := filepath.Abs(filepath.Join(b.peersDir(), "debezium-"+id))
			if err != nil {
				return nil, err
			}
			rest, err := freeAddress()
			if err != nil {
				return nil, err
			}
			mode := "initial"
			if how == snapshot {
				mode = "initial_only"
			}
			host, port, _ := strings.Cut(b.servers.mysql.Addr, ":")
			files := map[string]string{
				"worker.properties": fmt.Sprintf(worker, b.servers.kafka.Addr, state, is["dir"]+"/plugins", rest),
				"connector.properties": fmt.Sprintf(connector, name(id), host, port, testenv.AdminUser, testenv.AdminPassword, serverID(2), database, table, mode, state) +
					tuning[how],
			}
			if err := os.MkdirAll(state, 0o755); err != nil {
				return nil, err
			}
			for file, text := range files {
				if err := os.WriteFile(filepath.Join(state, file), []byte(text), 0o600); err != nil {
					return nil, err
				}
			}
			log, err := os.Create(filepath.Join(state, strconv.FormatInt(time.Now().UnixMilli(), 10)+".log"))
			if err != nil {
				return nil, err
			}
			defer log.Close()
			c := &child{cmd: exec.Command(is["java"], "-Xmx1g", "-XX:+UseG1GC", "-Dorg.apache.logging.log4j.level=INFO", "-cp", is["dir"]+"/connect/libs/*",
				"org.apache.kafka.connect.cli.ConnectStandalone", state+"/worker.properties", state+"/connector.properties"),
				logPath: log.Name(), done: make(chan struct{}), started: time.Now()}
			c.cmd.Stdout, c.cmd.Stderr = log, log
			c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := c.cmd.Start(); err != nil {
				return nil, fmt.Errorf("start %s: %w", is["java"], err)
			}
			go func() {
				c.err = c.cmd.Wait()
				close(c.done)
			}()
			return c, nil
		},
	}, nil
}
