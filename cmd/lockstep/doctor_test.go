package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"lockstep/audit"
	"lockstep/cdc"
	"lockstep/dlq"
	"lockstep/freshness"
	"lockstep/internal/testenv"
	"lockstep/kafka"
	"lockstep/reconcile"
)

// patient is a pipeline that the doctor is sent to.
type patient struct {
	t             *testing.T
	name, account string
	admin         *sql.DB
	kafka         *kafka.Client
	brokers       string
	text          string // of the configuration
}

func newPatient(t *testing.T) *patient {
	source, brokers, cache := testenv.MySQL(t), testenv.Kafka(t), testenv.Redis(t)
	p := &patient{t: t, name: testenv.Database(t, source), admin: testenv.OpenMySQL(t, source, ""), brokers: brokers.Addr}
	p.account = "doctor" + p.name[len(p.name)-8:]
	p.exec("CREATE TABLE " + p.name + ".questions (id int PRIMARY KEY, title text)")
	p.exec("CREATE USER '" + p.account + "'@'%' IDENTIFIED BY 'a-Password-1'")
	p.exec("GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '" + p.account + "'@'%'")
	t.Cleanup(func() { p.exec("DROP USER IF EXISTS '" + p.account + "'@'%'") })
	p.text = fmt.Sprintf(`prefix: %s
source: {addr: %q, user: %s, password: a-Password-1, server_id: 76543}
kafka: {brokers: [%q], partitions: 2, retention: 24h}
sinks:
  cache: {redis: {addresses: [%q]}}
tables:
  - {match: "%[1]s.questions", redis: {key: "%[1]s:{pk}"}}
`, p.name, source.Addr, p.account, brokers.Addr, cache.Addr)
	cfg := kafka.DefaultConfig()
	cfg.Brokers, cfg.Partitions, cfg.Retention = []string{brokers.Addr}, 2, 24*time.Hour
	var err error
	if p.kafka, err = kafka.Open(cfg, "doctor test", slog.New(slog.NewTextHandler(io.Discard, nil))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		if err := p.kafka.DeleteTopics(ctx, kafka.CheckpointTopic(p.name), p.name+"."+p.name+".questions", kafka.LettersTopic(p.name, "cache")); err != nil {
			t.Error(err)
		}
		p.kafka.Close()
	})
	return p
}

func (p *patient) exec(statement string) {
	p.t.Helper()
	if _, err := p.admin.Exec(statement); err != nil {
		p.t.Fatalf("%s: %v", statement, err)
	}
}

// look sends the doctor, and returns what it found to be mended.
func (p *patient) look() (bad []finding, all []finding) {
	p.t.Helper()
	got := lockstep(p.t, nil, "doctor", "-o", "json", "-c", file(p.t, "lockstep.yaml", p.text))
	if err := json.Unmarshal([]byte(got.stdout), &all); err != nil {
		p.t.Fatalf("%v: %+v", err, got)
	}
	for _, f := range all {
		if !f.OK {
			bad = append(bad, f)
		}
		if f.OK != (f.Fix == "") {
			p.t.Errorf("ok and mend do not go together: %+v", f)
		}
	}
	if (got.code != 0) != (len(bad) > 0) {
		p.t.Errorf("exit code %d with %d findings", got.code, len(bad))
	}
	return bad, all
}

// expect wants each of these in a finding of its own, "check: part of the detail",
// and no other finding.
func (p *patient) expect(want ...string) {
	p.t.Helper()
	bad, _ := p.look()
	for _, w := range want {
		check, detail, _ := strings.Cut(w, ": ")
		found := false
		for i, f := range bad {
			if f.Check == check && strings.Contains(f.Detail, detail) {
				bad, found = append(bad[:i], bad[i+1:]...), true
				break
			}
		}
		if !found {
			p.t.Errorf("%q is not found", w)
		}
	}
	for _, f := range bad {
		p.t.Errorf("found as well: %+v", f)
	}
}

// global changes a variable of the server until undo.
func (p *patient) global(name, value string) (undo func()) {
	p.t.Helper()
	var was string
	if err := p.admin.QueryRow("SELECT @@GLOBAL." + name).Scan(&was); err != nil {
		p.t.Fatal(err)
	}
	done := false
	undo = func() {
		if !done {
			done = true
			p.exec("SET GLOBAL " + name + " = '" + was + "'")
		}
	}
	if strings.HasSuffix(name, "seconds") {
		undo = func() { p.exec("SET GLOBAL " + name + " = " + was) }
		p.t.Cleanup(undo)
		p.exec("SET GLOBAL " + name + " = " + value)
		return undo
	}
	p.t.Cleanup(undo)
	p.exec("SET GLOBAL " + name + " = '" + value + "'")
	return undo
}

func (p *patient) save(pos cdc.Position) {
	p.t.Helper()
	ctx := p.t.Context()
	if err := kafka.EnsureCheckpoint(ctx, p.kafka, p.name); err != nil {
		p.t.Fatal(err)
	}
	pos.Format = cdc.PositionFormat
	value, _ := json.Marshal(pos)
	w := &kafkago.Writer{Addr: kafkago.TCP(p.brokers), Topic: kafka.CheckpointTopic(p.name), RequiredAcks: kafkago.RequireAll, BatchTimeout: time.Millisecond}
	defer w.Close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := w.WriteMessages(ctx, kafkago.Message{Key: []byte("test"), Value: value})
		if err == nil {
			return
		}
		if !errors.Is(err, kafkago.UnknownTopicOrPartition) || time.Now().After(end) { // a broker may hear of a topic a moment later
			p.t.Fatal(err)
		}
	}
}

func TestTheDoctorFindsNothingWhereNothingIsWrongAndChangesNothing(t *testing.T) {
	p := newPatient(t)
	p.text = strings.Replace(p.text, "sinks:\n", fmt.Sprintf("sinks:\n  search: {elastic: {addresses: [%q]}}\n", testenv.Elastic(t).URL), 1)
	p.expect() // before the first start there is no topic and no index
	topics, err := p.kafka.Topics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range topics {
		if strings.HasPrefix(topic, p.name) {
			t.Errorf("the doctor made topic %s", topic)
		}
	}
	if _, all := p.look(); len(all) < 20 {
		t.Errorf("it looked at only %d things", len(all))
	}
}

// What a full run has in Kafka is what the doctor looks at, and nothing else.
func TestTheDoctorLooksAtAllThatAFullRunHasInKafka(t *testing.T) {
	p := newPatient(t)
	p.text += "reconcile: {enabled: true}\nadmin: {listen: \"\"}\n"
	a := &app{stdout: io.Discard, stderr: t.Output(), env: func(string) (string, bool) { return "", false }, configPath: file(t, "lockstep.yaml", p.text), actor: "doctor"}
	cfg, err := a.loadConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deleteTopics(t, *cfg) })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { // an epoch is written into the audit log
		ended <- a.serve(ctx, parts{capture: &captureFlags{onGap: "stop", epoch: 1}, sinks: cfg.SinkNames(), compare: cfg.SinkNames()})
	}()
	p.exec("INSERT INTO " + p.name + ".questions VALUES (1, NULL)") // a table that never had a row has no topic
	known, err := newProcess(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer known.kafka.Close()
	specs, groups := known.used(examined{})
	want := []string{p.name + "." + p.name + ".questions"}
	for _, s := range specs {
		want = append(want, s.Name)
	}
	slices.Sort(want)
	slices.Sort(groups)
	api := &kafkago.Client{Addr: kafkago.TCP(p.brokers)}
	var topics, has []string
	mine := func(name string) bool { return strings.HasPrefix(name, p.name+".") }
	awaited(t, "all topics and groups", func() bool {
		all, err := p.kafka.Topics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		listed, err := api.ListGroups(t.Context(), &kafkago.ListGroupsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		topics, has = nil, nil
		for _, name := range all {
			if mine(name) {
				topics = append(topics, name)
			}
		}
		for _, g := range listed.Groups {
			if mine(g.GroupID) {
				has = append(has, g.GroupID)
			}
		}
		slices.Sort(topics)
		slices.Sort(has)
		return len(topics) >= len(want) && len(has) >= len(groups)
	})
	if !slices.Equal(topics, want) {
		t.Errorf("it has the topics %q, and the doctor looks at %q", topics, want)
	}
	if !slices.Equal(has, groups) {
		t.Errorf("it has the groups %q, and the doctor looks at %q", has, groups)
	}
	p.expect() // nothing is wrong with any of them
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestTheDoctorFindsEverySettingOfTheServerInOneRun(t *testing.T) {
	p := newPatient(t)
	undo := []func(){
		p.global("binlog_row_image", "MINIMAL"), p.global("binlog_row_metadata", "MINIMAL"),
		p.global("gtid_mode", "ON_PERMISSIVE"), p.global("gtid_mode", "OFF_PERMISSIVE"),
		p.global("binlog_format", "STATEMENT"), p.global("binlog_row_value_options", "PARTIAL_JSON"), p.global("binlog_expire_logs_seconds", "3600"),
	}
	bad, _ := p.look()
	for _, u := range slices.Backward(undo) {
		u()
	}
	found := map[string]string{}
	for _, f := range bad {
		found[f.Check] = f.Fix
	}
	for check, fix := range map[string]string{
		"binlog_row_image": "SET PERSIST binlog_row_image = 'FULL'", "binlog_row_metadata": "SET PERSIST binlog_row_metadata = 'FULL'",
		"binlog_format": "SET PERSIST binlog_format = 'ROW'", "binlog_row_value_options": "SET PERSIST binlog_row_value_options = ''",
		"log retention": "SET PERSIST binlog_expire_logs_seconds = 259200",
		"gtid_mode":     "SET PERSIST gtid_mode = 'ON_PERMISSIVE'; SET PERSIST gtid_mode = 'ON'",
	} {
		if found[check] != fix {
			t.Errorf("%s: mended by %q, want %q", check, found[check], fix)
		}
	}
	p.expect()
}

func TestTheDoctorFindsASessionThatLogsOtherwise(t *testing.T) {
	p := newPatient(t)
	p.exec("GRANT SELECT ON performance_schema.* TO '" + p.account + "'@'%'")
	undo := p.global("binlog_row_image", "NOBLOB")
	p.expect("binlog_row_image: is NOBLOB") // and not the session of the doctor
	undo()
	conn, err := p.admin.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), "SET SESSION binlog_row_image = 'MINIMAL'"); err != nil {
		t.Fatal(err)
	}
	var id string
	if err := conn.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	p.expect("session " + id + ": has set binlog_row_image to MINIMAL")
	if _, err := conn.ExecContext(t.Context(), "SET SESSION binlog_row_image = 'FULL'"); err != nil {
		t.Fatal(err)
	}
	p.expect()
}

func TestTheDoctorKnowsPrivilegesThatComeFromARole(t *testing.T) {
	p := newPatient(t)
	role := p.account + "role"
	p.exec("REVOKE REPLICATION SLAVE, REPLICATION CLIENT ON *.* FROM '" + p.account + "'@'%'")
	p.expect("REPLICATION SLAVE: is not granted", "REPLICATION CLIENT: is not granted")
	p.exec("CREATE ROLE '" + role + "'")
	t.Cleanup(func() { p.exec("DROP ROLE '" + role + "'") })
	p.exec("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '" + role + "'")
	p.exec("GRANT '" + role + "' TO '" + p.account + "'@'%'")
	p.expect("REPLICATION SLAVE: none of its roles is active", "REPLICATION CLIENT: none of its roles is active")
	p.exec("SET DEFAULT ROLE ALL TO '" + p.account + "'@'%'")
	p.expect()
}

func TestTheDoctorFindsTablesAndEntriesThatCannotWork(t *testing.T) {
	p := newPatient(t)
	p.text += fmt.Sprintf(`  - {match: "%[1]s.tags", redis: {key: "t:{pk}"}}
  - {match: "%[1]s.bare", redis: {key: "b:{pk}"}}
  - {match: "%[1]s.quest*", redis: {key: "q:{table}:{pk}"}}
`, p.name)
	p.exec("CREATE TABLE " + p.name + ".bare (id int)")
	p.expect("tables[1]: takes no table that", "table "+p.name+".bare: primary key", fmt.Sprintf("tables[3]: match %q stands before it", p.name+".questions"))
}

func TestTheDoctorFindsShapesAndMasksThatDoNotFit(t *testing.T) {
	p := newPatient(t)
	p.exec("CREATE TABLE " + p.name + ".people (id int PRIMARY KEY, email text)")
	p.text = strings.Replace(p.text, "{pk}\"}}\n", `{pk}"}, shape: {where: "row.titel == 'x'", drop: [id]}}
  - {match: "`+p.name+`.people", redis: {key: "p:{pk}"}, mask: {mail: drop}}
  - {match: "`+p.name+`.notes", redis: {mode: string, value: "{titel}"}}
`, 1)
	p.exec("CREATE TABLE " + p.name + ".notes (id int PRIMARY KEY, title text)")
	p.expect("table "+p.name+`.questions: tables[0].shape.where: `+p.name+`.questions has no column titel; did you mean "title"?; tables[0].shape: takes the primary-key column id`,
		"table "+p.name+".people: has no column mail, which its mask names",
		"table "+p.name+".notes: redis.value: {titel} names the column titel, which rows of "+p.name+".notes do not have here; they have id, title: name one of these")
}

// A sink whose shape does not fit a table that is copied already does not start.
func TestASinkDoesNotStartWithAShapeThatDoesNotFit(t *testing.T) {
	p := newPatient(t)
	text := strings.Replace(p.text, "{pk}\"}}\n", `{pk}"}, shapes: {cache: {where: "row.id > 'x'"}, other: {drop: [title]}}}`+"\n", 1)
	text = strings.Replace(text, "\ntables:", fmt.Sprintf("\n  other: {elastic: {addresses: [%q]}}\ntables:", testenv.Elastic(t).URL), 1)
	path := file(t, "lockstep.yaml", text)
	t.Cleanup(func() { _ = p.kafka.DeleteTopics(context.Background(), kafka.LettersTopic(p.name, "other")) })
	for _, command := range [][]string{{"sink", "cache"}, {"run"}} {
		got := lockstep(t, nil, append(command, "-c", path)...)
		const want = "sink cache: tables[0].shapes.cache.where: at character 8: found no matching overload for '_>_' applied to '(int, string)'; row.id (int) is a whole number"
		if got.code != 1 || strings.Count(got.stderr, want) != 1 || strings.Contains(got.stderr, "context canceled") || strings.Contains(got.stderr, "level=WARN") {
			t.Errorf("%s: exit code %d, %s; want %s and no other trouble", command, got.code, got.stderr, want)
		}
	}
}

func TestTheDoctorComparesTheSavedPositionWithTheServer(t *testing.T) {
	p := newPatient(t)
	var id, executed string
	if err := p.admin.QueryRow("SELECT @@GLOBAL.server_uuid, REPLACE(@@GLOBAL.gtid_executed, '\\n', '')").Scan(&id, &executed); err != nil {
		t.Fatal(err)
	}
	const lost = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa:1-7"
	p.save(cdc.Position{Run: "a", ServerUUID: id, GTIDSet: executed, Epoch: 1, CommitMicros: time.Now().UnixMicro()})
	p.expect()
	table := p.name + ".questions"
	p.save(cdc.Position{Run: "a", ServerUUID: id, GTIDSet: executed, Epoch: 1, CommitMicros: time.Now().UnixMicro(), Keys: map[string]string{table: "a, b"}})
	p.expect("key of " + table + ": has changed from (a, b) to (id)")
	p.save(cdc.Position{Run: "a", ServerUUID: id, GTIDSet: executed + "," + lost, Epoch: 1, Seq: 1, CommitMicros: time.Now().UnixMicro()})
	p.expect("lost tail: are not on this server: " + lost)
	p.save(cdc.Position{Run: "a", ServerUUID: id, GTIDSet: executed, Epoch: 1, Seq: 2, CommitMicros: time.Now().Add(-60 * time.Hour).UnixMicro()})
	p.exec("INSERT INTO " + p.name + ".questions VALUES (1, 'later')")
	p.expect("log retention: behind")

	var log string
	p.exec("FLUSH BINARY LOGS")
	if err := p.admin.QueryRow("SELECT SUBSTRING_INDEX(FILE_NAME, '/', -1) FROM (SELECT @@log_bin_basename FILE_NAME) t").Scan(&log); err != nil {
		t.Fatal(err)
	}
	p.exec("PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY")
	p.save(cdc.Position{Run: "a", ServerUUID: id, GTIDSet: executed, Epoch: 1, Seq: 3, CommitMicros: time.Now().UnixMicro()})
	p.expect("gap: has purged log that was not read yet")
}

func TestTheDoctorFindsAServerIDThatIsTaken(t *testing.T) {
	p := newPatient(t)
	var own string
	if err := p.admin.QueryRow("SELECT @@GLOBAL.server_id").Scan(&own); err != nil {
		t.Fatal(err)
	}
	usual := p.text
	p.text = strings.Replace(p.text, "server_id: 76543", "server_id: "+own, 1)
	p.expect("server_id: is the server's own")
	p.text = usual

	path := file(t, "lockstep.yaml", p.text+"admin: {listen: \"127.0.0.1:0\"}\n")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"capture", "-c", path}, strings.NewReader(""), io.Discard, io.Discard, func(string) (string, bool) { return "", false })
	}()
	defer func() {
		stop()
		if code := <-ended; code != 0 {
			t.Errorf("the capture ended with %d", code)
		}
	}()
	connected := func() (n int) {
		rows, err := p.admin.Query("SHOW REPLICAS")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			var rest [4]any
			if err := rows.Scan(&id, &rest[0], &rest[1], &rest[2], &rest[3]); err != nil {
				t.Fatal(err)
			}
			if id == "76543" {
				n++
			}
		}
		return n
	}
	for end := time.Now().Add(2 * time.Minute); connected() == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the capture does not connect")
		}
	}
	p.expect() // it is this pipeline's own
	p.text = strings.Replace(p.text, "prefix: "+p.name, "prefix: "+p.name+"-b", 1)
	p.expect("server_id: no capture of this pipeline runs")
}

func TestTheDoctorFindsTopicsThatWouldLoseOrRefuseRecords(t *testing.T) {
	p := newPatient(t)
	topic := p.name + "." + p.name + ".questions"
	for name, configs := range map[string]map[string]string{
		topic: {"cleanup.policy": "compact", "max.message.bytes": "1000000", "retention.ms": "60000", "retention.bytes": "1000000",
			"message.timestamp.type": "CreateTime", "min.insync.replicas": "2"},
		kafka.CheckpointTopic(p.name): {"cleanup.policy": "delete"},
	} {
		partitions := 3
		if name != topic {
			partitions = 1
		}
		entries := []kafkago.ConfigEntry{}
		for k, v := range configs {
			entries = append(entries, kafkago.ConfigEntry{ConfigName: k, ConfigValue: v})
		}
		c := &kafkago.Client{Addr: kafkago.TCP(p.brokers)}
		res, err := c.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: name, NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: entries}}})
		if err != nil || res.Errors[name] != nil {
			t.Fatal(err, res.Errors)
		}
	}
	p.text = strings.Replace(p.text, "retention: 24h}", "retention: 24h, replication_factor: 2}", 1)
	p.expect("topic "+topic+": 3 partitions, but the configuration says 2", "topic "+topic+": cleanup.policy is compact and must be delete",
		"topic "+topic+": max.message.bytes is 1000000", "topic "+topic+": retention.ms is 60000", "topic "+topic+": retention.bytes is 1000000",
		"topic "+topic+": message.timestamp.type is CreateTime", "topic "+topic+": min.insync.replicas is 2",
		"topic "+kafka.CheckpointTopic(p.name)+": cleanup.policy is delete and must be compact", "topic "+kafka.CheckpointTopic(p.name)+": 1 replicas and kafka.replication_factor is 2",
		"topic "+kafka.LettersTopic(p.name, "cache")+": it cannot be made", "topic "+audit.TopicOf(p.name)+": it cannot be made", "topic "+freshness.Topic(p.name)+": it cannot be made",
		"topic "+kafka.SnapshotTopic(p.name)+": it cannot be made", "topic "+dlq.JobsTopic(p.name)+": it cannot be made", "topic "+p.name+".route: it cannot be made", "topic "+reconcile.Topic(p.name)+": it cannot be made")
}

func TestTheDoctorFindsAStoreThatWillNotDo(t *testing.T) {
	p := newPatient(t)
	conn, err := net.Dial("tcp", testenv.Redis(t).Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	set := func(policy string) {
		answer := make([]byte, 64)
		fmt.Fprintf(conn, "CONFIG SET maxmemory-policy %s\r\n", policy)
		if n, err := conn.Read(answer); err != nil || string(answer[:n]) != "+OK\r\n" {
			t.Fatalf("%q, %v", answer[:n], err)
		}
	}
	set("allkeys-lru")
	defer set("noeviction")
	bad, _ := p.look()
	if len(bad) != 1 || bad[0].System != "sink cache" || bad[0].Check != "fit" || !strings.Contains(bad[0].Detail, "allkeys-lru") || !strings.Contains(bad[0].Fix, "maxmemory-policy noeviction") {
		t.Errorf("found %+v", bad)
	}
}

// Rows that a sink has already and that nobody known wrote are found before the first
// start refuses them.
func TestTheDoctorFindsRowsOfSomebodyElse(t *testing.T) {
	p := newPatient(t)
	p.expect()
	conn, err := net.Dial("tcp", testenv.Redis(t).Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	key := p.name + ":questions:77"
	tell := func(command string) {
		answer := make([]byte, 64)
		fmt.Fprint(conn, command+"\r\n")
		if n, err := conn.Read(answer); err != nil || answer[0] != ':' {
			t.Fatalf("%q, %v", answer[:n], err)
		}
	}
	tell("HSET " + key + " id 77")
	defer tell("DEL " + key)
	p.expect("table " + p.name + ".questions: that this pipeline did not write")
}

func TestTheDoctorFindsAGroupThatWantsWhatIsGone(t *testing.T) {
	p := newPatient(t)
	topic := p.name + "." + p.name + ".questions"
	if err := p.kafka.EnsureTopic(t.Context(), kafka.TopicSpec{Name: topic, Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	c := &kafkago.Client{Addr: kafkago.TCP(p.brokers)}
	res, err := c.OffsetCommit(t.Context(), &kafkago.OffsetCommitRequest{GroupID: p.name + ".cache", GenerationID: -1, Topics: map[string][]kafkago.OffsetCommit{topic: {{Partition: 1, Offset: 99}}}})
	if err != nil || res.Topics[topic][0].Error != nil {
		t.Fatal(err, res)
	}
	p.expect("group "+p.name+".cache: offset 99 is wanted and the log has 0 to 0", "losses: it has nothing of what was committed for "+topic+"/1")
}
