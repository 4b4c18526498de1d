package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/internal/secret"
	"lockstep/internal/testenv"
)

// memory is an Output that keeps everything and lets a test wait for it.
type memory struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change
	changes []cdc.Change
	pos     []cdc.Position
	refuse  error
	most    int   // bytes of a row, when it is not 0
	ended   error // why the source stopped by itself

	requests []cdc.SnapshotRequest
}

func newMemory() *memory { return &memory{changed: make(chan struct{})} }

func (m *memory) notify() { close(m.changed); m.changed = make(chan struct{}) }

func (m *memory) Publish(_ context.Context, c *cdc.Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	if len(c.After) > m.most && m.most > 0 {
		return fmt.Errorf("the row: %w", cdc.ErrTooLarge)
	}
	kept := *c
	kept.Key, kept.Before, kept.After = slices.Clone(c.Key), slices.Clone(c.Before), slices.Clone(c.After)
	m.changes = append(m.changes, kept)
	m.notify()
	return nil
}

func (m *memory) Checkpoint(_ context.Context, pos cdc.Position) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pos = append(m.pos, pos)
	m.notify()
	return nil
}

func (m *memory) Flush(context.Context) error { return nil }

// await waits until ok says so of what has been published.
func (m *memory) await(t *testing.T, what string, ok func([]cdc.Change, []cdc.Position) bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		m.mu.Lock()
		done, changed, ended := ok(m.changes, m.pos), m.changed, m.ended
		n := len(m.changes)
		m.mu.Unlock()
		if done {
			return
		}
		if ended != nil {
			t.Fatalf("waiting for %s, the source ended: %v", what, ended)
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited 2m for %s; %d changes so far", what, n)
		}
	}
}

func (m *memory) awaitChanges(t *testing.T, n int) []cdc.Change {
	t.Helper()
	m.await(t, fmt.Sprintf("%d changes", n), func(c []cdc.Change, _ []cdc.Position) bool { return len(c) >= n })
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.changes)
}

// awaitCopied waits until every snapshot of the position is done, or was replaced by
// another one.
func (m *memory) awaitCopied(t *testing.T) {
	t.Helper()
	m.await(t, "the copies", func(_ []cdc.Change, p []cdc.Position) bool {
		if len(p) == 0 || len(p[len(p)-1].Snapshots) == 0 {
			return false
		}
		for _, sn := range p[len(p)-1].Snapshots {
			if sn.State != cdc.SnapshotDone && sn.State != cdc.SnapshotCancelled {
				return false
			}
		}
		return true
	})
}

// awaitKey waits for a change of the row with this key.
func (m *memory) awaitKey(t *testing.T, key string) {
	t.Helper()
	m.await(t, "key "+key, func(c []cdc.Change, _ []cdc.Position) bool {
		return slices.ContainsFunc(c, func(c cdc.Change) bool { return string(c.Key) == key })
	})
}

// awaitSaved waits until a position covers every change.
func (m *memory) awaitSaved(t *testing.T) {
	t.Helper()
	m.await(t, "a position behind all changes", func(c []cdc.Change, p []cdc.Position) bool {
		if len(c) == 0 || len(p) == 0 {
			return false
		}
		v, err := p[len(p)-1].Version()
		return err == nil && v >= c[len(c)-1].Version
	})
}

type world struct {
	t    *testing.T
	db   *sql.DB
	name string
	cfg  Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	server := testenv.MySQL(t)
	name := testenv.Database(t, server)
	cfg := DefaultConfig()
	cfg.Addr, cfg.User, cfg.Password, cfg.ServerID = server.Addr, server.User, secret.Text(server.Password), 90001
	cfg.CheckpointInterval = time.Millisecond
	return &world{t: t, db: testenv.OpenMySQL(t, server, name), name: name, cfg: cfg}
}

func (w *world) exec(statements ...string) {
	w.t.Helper()
	for _, s := range statements {
		if _, err := w.db.Exec(s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

func (w *world) source(out Output, from *cdc.Position) *Source {
	return &Source{Config: w.cfg, Match: func(t cdc.TableName) bool { return t.DB == w.name && !strings.HasPrefix(t.Table, "_") },
		Out: out, Log: testLog(w.t), Metrics: NewMetrics(prometheus.NewRegistry()), From: from,
		FirstEpoch: func(context.Context) (uint16, error) { return 1, nil }}
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// run starts a source and returns what stops it and tells how it ended.
func (w *world) run(s *Source) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		err := s.Run(ctx)
		m := s.Out.(*memory)
		m.mu.Lock()
		m.ended = err
		m.notify()
		m.mu.Unlock()
		ended <- err
	}()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-ended })
		return err
	}
	w.t.Cleanup(func() { _ = stop() })
	return stop
}

// runToEnd runs a source that is expected to stop by itself.
func (w *world) runToEnd(s *Source) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return s.Run(ctx)
}

func show(changes []cdc.Change) []string {
	var lines []string
	for _, c := range changes {
		lines = append(lines, fmt.Sprintf("%s %s %s -> %s", c.Op, c.Key, c.Before, c.After))
	}
	return lines
}

const allTypes = `CREATE TABLE v (
	id BIGINT UNSIGNED PRIMARY KEY,
	t1 TINYINT, t1u TINYINT UNSIGNED, t2 SMALLINT, t2u SMALLINT UNSIGNED, t3 MEDIUMINT, t3u MEDIUMINT UNSIGNED,
	t4 INT, t4u INT UNSIGNED, t8 BIGINT, t8u BIGINT UNSIGNED,
	de DECIMAL(65,30), d0 DECIMAL(10,0), f FLOAT, d DOUBLE, b1 BIT(1), b9 BIT(9), b64 BIT(64), y YEAR,
	da DATE, dt DATETIME, dt3 DATETIME(3), dt6 DATETIME(6), ts TIMESTAMP NULL, ts6 TIMESTAMP(6) NULL, ti TIME, ti2 TIME(2), ti6 TIME(6),
	c CHAR(10), cl CHAR(10) CHARACTER SET latin1, vc VARCHAR(300), vg VARCHAR(100) CHARACTER SET gbk, vu VARCHAR(20) CHARACTER SET utf16, tx TEXT, tl TEXT CHARACTER SET latin1,
	bi BINARY(8), vb VARBINARY(100), bl BLOB, lb LONGBLOB,
	e ENUM('small','größe','日本'), el ENUM('a','ä') CHARACTER SET latin1, s SET('x','y','ü','z'), j JSON, g POINT, ve VECTOR(3),
	gs INT GENERATED ALWAYS AS (t4 + 1) STORED, gv INT GENERATED ALWAYS AS (t4 + 2) VIRTUAL, inv INT INVISIBLE
) CHARACTER SET utf8mb4`

// The rows of allTypes, without the generated columns.
var allTypesColumns = `id,t1,t1u,t2,t2u,t3,t3u,t4,t4u,t8,t8u,de,d0,f,d,b1,b9,b64,y,da,dt,dt3,dt6,ts,ts6,ti,ti2,ti6,c,cl,vc,vg,vu,tx,tl,bi,vb,bl,lb,e,el,s,j,g,ve,inv`

var allTypesRows = []string{
	`1,-128,255,-32768,65535,-8388608,16777215,-2147483648,4294967295,-9223372036854775808,18446744073709551615,
	 12345678901234567890123456789012345.123456789012345678901234567890,-9999999999,3.4028234e38,-1.7976931348623157e308,b'1',b'100000001',b'1111111111111111111111111111111111111111111111111111111111111111',2155,
	 '9999-12-31','9999-12-31 23:59:59','2026-11-22 08:15:30.120','2026-11-22 08:15:30.123456','2038-01-19 03:14:07','2026-11-22 08:15:30.000001','838:59:59','-12:00:00.10','-838:59:59.000000',
	 'ab  ','é','naïve "q" \\ \n\t\u0001 😀','汉字','日本😀','long text','latin ÿ',
	 X'0102000000000000',X'00FF00',X'DEADBEEF00',X'00',
	 '日本','ä','x,ü,z','{"b": 1, "a": [1.0, 2.50, 12345678901234567890, "ü", null, true], "n": 1e100}',ST_GeomFromText('POINT(1 2)'),TO_VECTOR('[1,2,3]'),7`,
	`2,127,0,32767,0,8388607,0,2147483640,0,9223372036854775807,0,
	 -0.000000000000000000000000000001,0,1.1,0.1,b'0',b'0',b'0',1901,
	 '1000-01-01','1000-01-01 00:00:00','1000-01-01 00:00:00.000','1000-01-01 00:00:00.000000','1970-01-01 00:00:01','1970-01-01 00:00:01.000000','00:00:00','00:00:00.00','00:00:00.000001',
	 '','','','','','','',
	 X'',X'',X'','',
	 'small','a','','[]',ST_GeomFromText('POINT(0 0)'),TO_VECTOR('[0.1,0.2,0.3]'),NULL`,
	`3` + strings.Repeat(",NULL", 45),
	`4,1,1,1,1,1,1,1,1,1,1,0.5,5,1e-7,1e21,b'1',b'1',b'10',0,
	 '2024-02-29','2024-02-29 23:59:59','2026-01-01 00:00:00.100','2026-01-01 00:00:00.100000','2026-06-01 12:00:00','2026-06-01 12:00:00.999999','-00:00:01','-00:00:00.01','-00:00:00.000001',
	 'x','x','x','x','x','x','x',X'61',X'61',X'61',X'61','größe','a','x','"text"',NULL,NULL,0`,
	`5,1,1,1,1,1,1,1,1,1,1,0.5,5,16777216,1e-6,b'1',b'1',b'10',2026,
	 '2024-02-29','2024-02-29 23:59:59','2026-01-01 00:00:00.100','2026-01-01 00:00:00.100000','2026-06-01 12:00:00','2026-06-01 12:00:00.5','10:20:30','10:20:30.5','10:20:30.25',
	 'x','x','x','x','x','x','x',X'61',X'61',X'61',X'61','small','a','y','{"d": 1.0, "t": "2026-01-01", "i": -0.0, "s": "a b\\n\\"\\u0007", "e": 1e-7, "p": 0.1, "l": 123456789012345678.5}',NULL,NULL,0`,
}

// A row is the same bytes whether the copy read it or the log.
func TestCopyAndLogGiveTheSameBytes(t *testing.T) {
	w := newWorld(t)
	w.exec(allTypes)
	w.exec("SET time_zone = '+00:00'")
	insert := func() {
		for _, r := range allTypesRows {
			w.exec("SET time_zone = '+00:00'", "INSERT INTO v ("+allTypesColumns+") VALUES ("+r+")")
		}
	}
	insert()
	out := newMemory()
	stop := w.run(w.source(out, nil))
	copied := out.awaitChanges(t, len(allTypesRows))
	w.exec("DELETE FROM v")
	insert()
	all := out.awaitChanges(t, 3*len(allTypesRows))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	byKey := func(changes []cdc.Change, op cdc.Op) map[string]string {
		rows := map[string]string{}
		for _, c := range changes {
			if c.Op == op {
				rows[string(c.Key)] = string(c.After)
			}
		}
		return rows
	}
	want, got := byKey(copied, cdc.OpRead), byKey(all, cdc.OpCreate)
	if len(want) != len(allTypesRows) {
		t.Fatalf("%d rows copied, want %d", len(want), len(allTypesRows))
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if diff := cmp.Diff(strings.Split(want[key], `,"`), strings.Split(got[key], `,"`)); diff != "" {
			t.Errorf("row %s (-copied +from the log)\n%s", key, diff)
		}
	}
	for _, part := range []string{
		`"t8u":18446744073709551615,`, `"de":"12345678901234567890123456789012345.123456789012345678901234567890"`, `"b64":18446744073709551615,`,
		`"dt6":"2026-11-22T08:15:30.123456"`, `"ts6":"2026-11-22T08:15:30.000001Z"`, `"ti":"838:59:59"`, `"ti2":"-12:00:00.10"`, `"cl":"é"`, `"vg":"汉字"`, `"vu":"日本😀"`,
		`"bi":"AQIAAAAAAAA="`, `"e":"日本"`, `"el":"ä"`, `"s":["x","ü","z"]`, `"gs":-2147483647`, `"inv":7`, `"y":2155`, `12345678901234567890`, `"f":3.4028235e+38,`, `"j":{"a":[1.0,2.5,12345678901234567890,"ü",null,true],"b":1,"n":1e+100}`,
	} {
		if !strings.Contains(got[`{"id":1}`], part) {
			t.Errorf("row 1 from the log lacks %s:\n%s", part, got[`{"id":1}`])
		}
	}
}

func TestEveryKindOfChangeArrivesInCommitOrder(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (a INT, b VARCHAR(10), n INT, PRIMARY KEY (b, a))", "CREATE TABLE _other (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1, 'x', 1)")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitChanges(t, 1)
	w.exec("INSERT INTO q VALUES (2, 'y', 2), (3, 'z', 3)", "INSERT INTO _other VALUES (1)", "UPDATE q SET n = n + 10 WHERE a < 3", "UPDATE q SET a = 9 WHERE a = 3", "DELETE FROM q WHERE a = 2",
		"UPDATE q SET n = n", "SAVEPOINT s")
	tx, _ := w.db.Begin()
	for _, s := range []string{"INSERT INTO q VALUES (20, 'p', 0)", "SAVEPOINT s1", "INSERT INTO q VALUES (21, 'p', 0)", "ROLLBACK TO s1", "INSERT INTO q VALUES (22, 'p', 0)"} {
		if _, err := tx.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	changes := out.awaitChanges(t, 10)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`r {"b":"x","a":1}  -> {"a":1,"b":"x","n":1}`,
		`c {"b":"y","a":2}  -> {"a":2,"b":"y","n":2}`,
		`c {"b":"z","a":3}  -> {"a":3,"b":"z","n":3}`,
		`u {"b":"x","a":1} {"a":1,"b":"x","n":1} -> {"a":1,"b":"x","n":11}`,
		`u {"b":"y","a":2} {"a":2,"b":"y","n":2} -> {"a":2,"b":"y","n":12}`,
		`d {"b":"z","a":3} {"a":3,"b":"z","n":3} -> `,
		`c {"b":"z","a":9}  -> {"a":9,"b":"z","n":3}`,
		`d {"b":"y","a":2} {"a":2,"b":"y","n":12} -> `,
		`c {"b":"p","a":20}  -> {"a":20,"b":"p","n":0}`,
		`c {"b":"p","a":22}  -> {"a":22,"b":"p","n":0}`,
	}
	if diff := cmp.Diff(want, show(changes)); diff != "" {
		t.Errorf("changes (-want +got)\n%s", diff)
	}
	for i := 1; i < len(changes); i++ {
		if changes[i].Version <= changes[i-1].Version {
			t.Errorf("change %d has version %d, not above %d before it", i, changes[i].Version, changes[i-1].Version)
		}
	}
	last := changes[len(changes)-1]
	if age := time.Since(time.UnixMicro(last.CommitMicros)); age < 0 || age > time.Minute {
		t.Errorf("commit time %d is %s away", last.CommitMicros, age)
	}
}

// A re-read from any saved position gives every change the version it had,
// whether its transaction was compressed or not, and whatever else is captured.
func TestReadingAgainGivesTheSameVersions(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE a (id INT PRIMARY KEY, v LONGTEXT)", "CREATE TABLE b (id INT PRIMARY KEY, v INT)", "CREATE TABLE _not (id INT PRIMARY KEY, v INT)")
	first := newMemory()
	stop := w.run(w.source(first, nil))
	first.awaitCopied(t)
	conn, err := w.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	exec := func(q string) {
		t.Helper()
		if _, err := conn.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	for i := range 60 {
		exec(fmt.Sprintf("SET SESSION binlog_transaction_compression = %d", i%2))
		exec("BEGIN")
		exec(fmt.Sprintf("INSERT INTO a VALUES (%d, REPEAT('x', %d)), (%d, 'y')", i, i*997, i+1000))
		exec(fmt.Sprintf("INSERT INTO _not VALUES (%d, 1)", i))
		exec(fmt.Sprintf("INSERT INTO b VALUES (%d, 1)", i))
		exec(fmt.Sprintf("UPDATE a SET id = id + 5000 WHERE id = %d", i))
		exec("COMMIT")
	}
	exec("INSERT INTO b VALUES (-1, 0)")
	first.awaitKey(t, `{"id":-1}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, c := range first.changes {
		versions[c.Version.String()+string(c.Key)] = fmt.Sprintf("%s %s", c.Op, c.After)
	}
	if len(versions) != len(first.changes) || len(first.pos) < 10 {
		t.Fatalf("%d changes, %d versions, %d positions", len(first.changes), len(versions), len(first.pos))
	}
	last := first.changes[len(first.changes)-1].Version
	for i := 1; i < len(first.pos); i += len(first.pos) / 7 {
		from := first.pos[i]
		if v, err := from.Version(); err != nil || v >= last { // behind the end there is nothing to read again
			if i < len(first.pos)/2 {
				t.Fatalf("position %d of %d is at %s already: %v", i, len(first.pos), v, err)
			}
			break
		}
		again := newMemory()
		s := w.source(again, &from)
		if i%2 == 0 { // another filter must not shift the clock
			all := s.Match
			s.Match = func(t cdc.TableName) bool { return all(t) && t.Table != "a" }
		}
		stop := w.run(s)
		again.awaitKey(t, `{"id":-1}`)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for _, c := range again.changes {
			if c.Op == cdc.OpRead { // of a copy, at whatever place that is
				continue
			}
			if was := versions[c.Version.String()+string(c.Key)]; was != fmt.Sprintf("%s %s", c.Op, c.After) {
				t.Fatalf("from position %d: %s %s has version %s, under which it was %q", i, c.Op, c.Key, c.Version, was)
			}
		}
	}
}

// Killed connections cost a re-read, never a change.
func TestALostConnectionLosesNothing(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)")
	out := newMemory()
	s := w.source(out, nil)
	stop := w.run(s)
	admin := testenv.OpenMySQL(t, testenv.MySQL(t), "")
	out.awaitCopied(t)
	for i := range 20 {
		w.exec(fmt.Sprintf("INSERT INTO q VALUES (%d)", i))
		if i%5 == 4 {
			out.awaitKey(t, fmt.Sprintf(`{"id":%d}`, i))
			killDumps(t, admin, w.name)
		}
	}
	out.awaitKey(t, `{"id":19}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]cdc.Version{}
	for _, c := range out.changes {
		if c.Op == cdc.OpRead {
			continue
		}
		if v, ok := seen[string(c.Key)]; ok && v != c.Version {
			t.Errorf("key %s came under version %s and under %s", c.Key, v, c.Version)
		}
		seen[string(c.Key)] = c.Version
	}
	if len(seen) != 20 {
		t.Errorf("%d keys arrived, want 20", len(seen))
	}
}

func killDumps(t *testing.T, admin *sql.DB, _ string) {
	t.Helper()
	rows, err := admin.Query("SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND LIKE 'Binlog Dump%'")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		_, _ = admin.Exec(fmt.Sprintf("KILL %d", id)) // it may be gone already
	}
}

func TestATableNewToTheConfigurationIsCopied(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE a (id INT PRIMARY KEY)", "CREATE TABLE b (id INT PRIMARY KEY)", "INSERT INTO a VALUES (1)", "INSERT INTO b VALUES (1)")
	out := newMemory()
	s := w.source(out, nil)
	s.Match = func(t cdc.TableName) bool { return t.DB == w.name && t.Table == "a" }
	stop := w.run(s)
	out.awaitCopied(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	again := newMemory()
	stop = w.run(w.source(again, &out.pos[len(out.pos)-1]))
	changes := again.awaitChanges(t, 1)
	w.exec("CREATE TABLE c (id INT PRIMARY KEY)", "INSERT INTO c VALUES (7)")
	again.awaitKey(t, `{"id":7}`)
	again.await(t, "the table made meanwhile in the position", func(_ []cdc.Change, p []cdc.Position) bool {
		return slices.Equal(p[len(p)-1].Copied, []string{w.name + ".a", w.name + ".b", w.name + ".c"})
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if changes[0].Table.Table != "b" || changes[0].Op != cdc.OpRead {
		t.Errorf("first change is %s of %s, want the copy of b", changes[0].Op, changes[0].Table)
	}
}

// Rows of a table that could not be copied are not passed on as if they were all
// there is: the account may not see the table, or may only now.
func TestATableTheAccountCannotSeeStopsAndIsCopiedOnceItCan(t *testing.T) {
	w := newWorld(t)
	account := "r" + w.name[len(w.name)-10:]
	w.exec("CREATE TABLE a (id INT PRIMARY KEY)", "CREATE TABLE b (id INT PRIMARY KEY)", "INSERT INTO b VALUES (1)",
		"CREATE USER '"+account+"'@'%' IDENTIFIED BY 'a-Password-1'",
		"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '"+account+"'@'%'", "GRANT SELECT ON "+w.name+".a TO '"+account+"'@'%'")
	t.Cleanup(func() { w.exec("DROP USER '" + account + "'@'%'") })
	w.cfg.User, w.cfg.Password = account, "a-Password-1"
	out := newMemory()
	s := w.source(out, nil)
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	go func() { ended <- s.Run(ctx) }()
	out.await(t, "the start", func(_ []cdc.Change, p []cdc.Position) bool { return len(p) >= 2 })
	w.exec("INSERT INTO b VALUES (2)")
	err := <-ended
	var stop *Stop
	if !errors.As(err, &stop) || !strings.Contains(err.Error(), "GRANT SELECT ON `"+w.name+"`.`b`") {
		t.Fatalf("ended with %v", err)
	}
	w.exec("GRANT SELECT ON " + w.name + ".b TO '" + account + "'@'%'")
	again := newMemory()
	halt := w.run(w.source(again, &out.pos[len(out.pos)-1]))
	again.awaitCopied(t)
	again.awaitKey(t, `{"id":2}`)
	if err := halt(); err != nil {
		t.Fatal(err)
	}
	if got := show(again.changes); !slices.Contains(got, `r {"id":1}  -> {"id":1}`) || !slices.Contains(got, `c {"id":2}  -> {"id":2}`) {
		t.Errorf("got %q", got)
	}
}

// A table of which the account may read some columns only looks like one that has no
// others. It is not copied without them, and the doctor says so beforehand.
func TestATableWithColumnsTheAccountMayNotReadStops(t *testing.T) {
	for name, w := range map[string]*world{"MySQL": newWorld(t), "MariaDB": newMariaWorld(t)} {
		t.Run(name, func(t *testing.T) {
			account := "r" + w.name[len(w.name)-10:]
			client := map[string]string{"MySQL": "REPLICATION CLIENT", "MariaDB": "BINLOG MONITOR, SLAVE MONITOR"}[name]
			w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)", "INSERT INTO q VALUES (1, 2)", "CREATE USER '"+account+"'@'%' IDENTIFIED BY 'a-Password-1'",
				"GRANT REPLICATION SLAVE, "+client+" ON *.* TO '"+account+"'@'%'", "GRANT SELECT (id) ON "+w.name+".q TO '"+account+"'@'%'")
			t.Cleanup(func() { w.exec("DROP USER '" + account + "'@'%'") })
			w.cfg.User, w.cfg.Password = account, "a-Password-1"
			out := newMemory()
			s := w.source(out, nil)
			want := "GRANT SELECT ON `" + w.name + "`.`q` TO '" + account + "'@'%'"
			findings, err := Inspect(t.Context(), w.cfg, s.Match)
			if err != nil || !slices.ContainsFunc(findings, func(f Finding) bool { return f.Check == "table "+w.name+".q" && f.Fix == want }) {
				t.Errorf("the doctor finds %+v, %v", findings, err)
			}
			if err := w.runToEnd(s); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("ended with %v", err)
			}
			if len(out.changes) > 0 {
				t.Errorf("it has copied %q", show(out.changes))
			}
		})
	}
}

// What cannot be followed exactly stops the reader with a sentence that says
// what mends it, and can be passed over by naming its transaction.
func TestWhatCannotBeFollowedStops(t *testing.T) {
	for name, c := range map[string]struct {
		setup, statements []string
		want              string
		skippable         bool
		mend              string
	}{
		"statement":             {nil, []string{"SET SESSION binlog_format = STATEMENT", "INSERT INTO q VALUES (5)", "SET SESSION binlog_format = ROW"}, "by statement", true, ""},
		"minimal image":         {[]string{"CREATE TABLE m (id INT PRIMARY KEY, a INT, b INT)", "INSERT INTO m VALUES (1, 1, 1)"}, []string{"SET SESSION binlog_row_image = MINIMAL", "UPDATE m SET a = 2", "SET SESSION binlog_row_image = FULL"}, "incomplete rows of", true, ""},
		"no primary key":        {nil, []string{"CREATE TABLE nokey (id INT)", "INSERT INTO nokey VALUES (1)"}, "has no primary key", true, "ALTER TABLE nokey ADD PRIMARY KEY (id)"},
		"partial JSON":          {[]string{"CREATE TABLE j (id INT PRIMARY KEY, d JSON)", `INSERT INTO j VALUES (1, '{"a": 1, "b": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}')`}, []string{"SET SESSION binlog_row_value_options = PARTIAL_JSON", "UPDATE j SET d = JSON_SET(d, '$.a', 2)", "SET SESSION binlog_row_value_options = ''"}, "partial JSON", true, ""},
		"XA":                    {nil, []string{"XA START 'x'", "INSERT INTO q VALUES (8)", "XA END 'x'", "XA PREPARE 'x'", "XA COMMIT 'x'"}, "XA transaction", true, ""},
		"a row too large":       {[]string{"CREATE TABLE l (id INT PRIMARY KEY, v TEXT)"}, []string{"INSERT INTO l VALUES (1, REPEAT('x', 2000))"}, "record too large; mend it with: a higher kafka.max_record_bytes", true, ""},
		"another primary key":   {nil, []string{"INSERT INTO q VALUES (30)", "ALTER TABLE q ADD COLUMN n INT NOT NULL DEFAULT 1, DROP PRIMARY KEY, ADD PRIMARY KEY (n, id)", "INSERT INTO q VALUES (31, 1)"}, "primary key of", false, ""},
		"a zero date with stop": {[]string{"CREATE TABLE z (id INT PRIMARY KEY, d DATE)"}, []string{"SET SESSION sql_mode = ''", "INSERT INTO z VALUES (1, '0000-00-00')"}, "the date 0000-00-00 is zero", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cfg.ZeroDates = "stop"
			w.exec("CREATE TABLE q (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1)")
			w.exec(c.setup...)
			out := newMemory()
			out.most = 1000
			s := w.source(out, nil)
			ended := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			go func() { ended <- s.Run(ctx) }()
			out.awaitCopied(t)
			conn, err := w.db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, q := range c.statements {
				if _, err := conn.ExecContext(t.Context(), q); err != nil {
					t.Fatalf("%s: %v", q, err)
				}
			}
			err = <-ended
			var stop *Stop
			if !errors.As(err, &stop) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("ended with %v; want a Stop that says %q", err, c.want)
			}
			_, gtid, found := strings.Cut(err.Error(), "--skip-gtid ")
			gtid, _, _ = strings.Cut(gtid, ",")
			if found != c.skippable {
				t.Fatalf("names a way past: %t, want %t: %v", found, c.skippable, err)
			}
			if !c.skippable {
				return
			}
			gtid = strings.Fields(gtid)[0]
			if c.mend != "" {
				w.exec(c.mend)
			}
			if _, err := conn.ExecContext(t.Context(), "CREATE TABLE after_it (id INT PRIMARY KEY)"); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.ExecContext(t.Context(), "INSERT INTO after_it VALUES (777)"); err != nil {
				t.Fatal(err)
			}
			again := newMemory()
			again.most = out.most
			s = w.source(again, &out.pos[len(out.pos)-1])
			s.SkipGTID = gtid
			halt := w.run(s)
			again.awaitKey(t, `{"id":777}`)
			if err := halt(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAServerThatCannotGoOnFromThePositionIsRefused(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.await(t, "the start", func(_ []cdc.Change, p []cdc.Position) bool { return len(p) >= 2 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	good := out.pos[len(out.pos)-1]
	for name, c := range map[string]struct {
		change func(*cdc.Position)
		want   string
	}{
		"another kind of server":        {func(p *cdc.Position) { p.Flavor, p.GTIDSet = "mariadb", "0-1-5" }, "but the saved position is of"},
		"a position of a newer version": {func(p *cdc.Position) { p.GTIDSet = "nonsense" }, "read the saved position"},
	} {
		t.Run(name, func(t *testing.T) {
			pos := good
			c.change(&pos)
			if err := w.runToEnd(w.source(newMemory(), &pos)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("ended with %v; want %q", err, c.want)
			}
		})
	}
}

func TestCascadesThatTheServerDoesNotLogAreRefused(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE p (id INT PRIMARY KEY)", "CREATE TABLE c (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE)",
		"INSERT INTO p VALUES (1)", "INSERT INTO c VALUES (10, 1)")
	out := newMemory()
	s := w.source(out, nil)
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	go func() { ended <- s.Run(ctx) }()
	var native string
	_ = w.db.QueryRow("SELECT @@GLOBAL.innodb_native_foreign_keys").Scan(&native)
	if native != "0" {
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "foreign key") {
			t.Fatalf("ended with %v", err)
		}
		return
	}
	out.awaitChanges(t, 2)
	w.exec("DELETE FROM p WHERE id = 1")
	changes := out.awaitChanges(t, 4)
	cancel()
	<-ended
	deleted := []string{changes[2].Table.Table + string(changes[2].Key), changes[3].Table.Table + string(changes[3].Key)}
	slices.Sort(deleted)
	if diff := cmp.Diff([]string{`c{"id":10}`, `p{"id":1}`}, deleted); diff != "" {
		t.Errorf("the cascade is not in the log (-want +got)\n%s", diff)
	}
}

// A server that was restarted gives its table ids out anew, and one connection
// reads across the files of before and after.
func TestATableIDMeansWhatItsNewestTableMapSays(t *testing.T) {
	r := newReader(t.Context(), &Source{}, nil)
	first, second := tableMapOf(92, "a"), tableMapOf(92, "b")
	for _, ev := range []*event{first, tableMapOf(93, "c"), first} {
		if err := r.handle(ev); err != nil {
			t.Fatal(err)
		}
	}
	known := r.sources[92]
	if err := r.handle(first); err != nil || r.sources[92] != known {
		t.Errorf("the same table map was taken for another one: %v", err)
	}
	if err := r.handle(second); err != nil || r.sources[92] == known {
		t.Errorf("another table map was taken for the same: %v", err)
	}
}

func tableMapOf(id byte, name string) *event {
	ev := &event{data: append(make([]byte, replication.EventHeaderSize), append([]byte{id, 0, 0, 0, 0, 0, 1, 0}, name...)...)}
	ev.EventType = replication.TABLE_MAP_EVENT
	return ev
}

// A table that was left out for a time is copied when it comes back.
func TestATableThatWasLeftOutIsForgotten(t *testing.T) {
	s := &Source{Match: func(t cdc.TableName) bool { return t.Table != "b" },
		pos: cdc.Position{Copied: []string{"d.a", "d.b", "d.c"}, Keys: map[string]string{"d.a": "id", "d.b": "id"}}}
	left := s.forget()
	if diff := cmp.Diff([]string{"d.b"}, left); diff != "" {
		t.Errorf("left out (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(cdc.Position{Copied: []string{"d.a", "d.c"}, Keys: map[string]string{"d.a": "id"}}, s.pos); diff != "" {
		t.Errorf("position (-want +got)\n%s", diff)
	}
}

// A server that accepts and never says a word is noticed, and does not hold a stop.
func TestAHalfOpenServerIsLeft(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	tried := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			tried <- struct{}{}
		}
	}()
	w := &world{t: t, name: "none", cfg: DefaultConfig()}
	w.cfg.Addr, w.cfg.User, w.cfg.ServerID, w.cfg.ConnectTimeout = silent.Addr().String(), "u", 1, 200*time.Millisecond
	if _, err := connect(t.Context(), w.cfg); err == nil || !strings.HasSuffix(err.Error(), "as u: no answer for 200ms") {
		t.Errorf("connect ended with %v", err)
	}
	<-tried
	stop := w.run(w.source(newMemory(), nil))
	<-tried
	<-tried // the first attempt was given up
	began := time.Now()
	w.cfg.ConnectTimeout = time.Hour
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the stop took %s", took)
	}
	slow := w.source(newMemory(), nil)
	slow.Config.ConnectTimeout = time.Hour
	stop = w.run(slow)
	<-tried
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// Of two first starts at the same moment one counts.
func TestTheSecondOfTwoFirstStartsStops(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)")
	out := newMemory()
	s := w.source(out, nil)
	s.Saved = func(context.Context) (cdc.Position, bool, error) { return cdc.Position{Run: "another"}, true, nil }
	if err := w.runToEnd(s); err == nil || !strings.Contains(err.Error(), "begun at the same moment") {
		t.Fatalf("ended with %v", err)
	}
	if len(out.changes) > 0 {
		t.Errorf("%d changes were published", len(out.changes))
	}
}
