package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"lockstep/cdc"
	"lockstep/internal/secret"
	"lockstep/internal/testenv"
)

func TestWhatAServersLogMeansForAPosition(t *testing.T) {
	const a, b = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "4e11fa47-71ca-11e1-9e33-c80aa9429562"
	type side struct {
		id, executed, purged string
		applying             bool
	}
	for _, c := range []struct {
		name, flavor, id, read string
		now                    side
		want                   verdict
		gtids                  string
	}{
		{"the same log", "", a, a + ":1-5", side{a, a + ":1-9", a + ":1-5", false}, goesOn, ""},
		{"the same log, at its end", "", a, a + ":1-9", side{a, a + ":1-9", "", false}, goesOn, ""},
		{"an errant transaction", "", a, a + ":1-5", side{a, a + ":1-5," + b + ":1", "", false}, goesOn, ""},
		{"purged unread", "", a, a + ":1-4", side{a, a + ":1-9", a + ":1-5", false}, gap, a + ":5"},
		{"nothing read", "", a, "", side{a, a + ":1-9", a + ":1-5", false}, gap, a + ":1-5"},
		{"an errant transaction, purged", "", a, a + ":1-5", side{b, a + ":1-9," + b + ":1", b + ":1", false}, gap, b + ":1"},
		{"purged on a replica that applies", "", a, a + ":1-4", side{b, a + ":1-3", a + ":1-3," + b + ":1", true}, gap, b + ":1"},
		{"switched", "", a, a + ":1-5", side{b, a + ":1-9," + b + ":1-3", a + ":1-5", false}, switched, ""},
		{"switched to a replica that goes on applying", "", a, a + ":1-5", side{b, a + ":1-5", "", true}, switched, ""},
		{"a replica that is behind", "", a, a + ":1-9", side{b, a + ":1-7", "", true}, catchingUp, a + ":8-9"},
		{"promoted without the tail", "", a, a + ":1-9", side{b, a + ":1-7," + b + ":1-100", a + ":1-2", false}, tailLost, a + ":8-9"},
		{"a crash has cost the tail", "", a, a + ":1-9", side{a, a + ":1-7", "", false}, tailLost, a + ":8-9"},
		{"the log was reset", "", a, a + ":1-9," + b + ":1-2", side{a, "", "", false}, tailLost, a + ":1-9," + b + ":1-2"},
		{"a tagged transaction is lost", "", a, a + ":1-9:app:1-3", side{b, a + ":1-9:app:1-2", "", false}, tailLost, a + ":app:3"},
		{"MariaDB, the same log", "mariadb", "m/1", "0-1-5", side{"m/1", "0-1-9", "0-1-5", false}, goesOn, ""},
		{"MariaDB, purged unread", "mariadb", "m/1", "0-1-5", side{"m/1", "0-1-9", "0-1-7", false}, gap, "0-1-6 to 0-1-7"},
		{"MariaDB, switched", "mariadb", "m/1", "0-1-5", side{"m/2", "0-1-7,0-2-9", "0-1-3", false}, switched, ""},
		{"MariaDB, promoted without the tail", "mariadb", "m/1", "0-1-9", side{"m/2", "0-1-7,0-2-100", "", false}, tailLost, "0-1-8 to 0-1-9"},
		{"MariaDB, a replica that is behind", "mariadb", "m/1", "0-1-9", side{"m/2", "0-1-7", "", true}, catchingUp, "0-1-8 to 0-1-9"},
		{"MariaDB, the log was reset", "mariadb", "m/1", "0-1-9", side{"m/1", "", "", false}, tailLost, "0-1-9"},
	} {
		flavor := flavorMySQL
		if c.flavor != "" {
			flavor = c.flavor
		}
		set := func(s string) gtidSet {
			parsed, err := parseGTIDs(flavor, s)
			if err != nil {
				t.Fatal(err)
			}
			return parsed
		}
		got, gtids := judge(c.flavor, c.id, set(c.read), &server{flavor: flavor, id: c.now.id, executed: set(c.now.executed), purged: set(c.now.purged), applying: c.now.applying})
		if got != c.want || gtids.String() != c.gtids {
			t.Errorf("%s: %s %q, want %s %q", c.name, got, gtids, c.want, c.gtids)
		}
	}
}

// stage is two servers of a test's own behind one address, and a table.
type stage struct {
	*world
	a, b  *testenv.Instance
	relay *testenv.Relay
	last  *memory
}

// newStage has b follow a, behind which the address is.
func newStage(t *testing.T, start func(testing.TB, ...string) *testenv.Instance, settings ...string) *stage {
	t.Helper()
	s := &stage{}
	started := make(chan bool)
	go func() { defer close(started); s.b = start(t, settings...) }()
	s.a = start(t, settings...)
	<-started
	if s.b == nil {
		t.FailNow()
	}
	s.b.Follow(t, s.a.Server)
	s.alone(t)
	return s
}

// alone puts only a behind the address.
func (s *stage) alone(t *testing.T) {
	s.relay = testenv.NewRelay(t, s.a.Addr)
	cfg := DefaultConfig()
	cfg.Addr, cfg.User, cfg.Password, cfg.ServerID = s.relay.Addr, s.a.User, secret.Text(s.a.Password), 90001
	cfg.CheckpointInterval = time.Millisecond
	s.world = &world{t: t, name: "shop", cfg: cfg}
	s.a.Exec(t, "CREATE DATABASE shop", "CREATE TABLE shop.q (id INT PRIMARY KEY, v INT)", "CREATE TABLE shop._no (id INT PRIMARY KEY)")
}

// source reads on from a position; what earlier ones have published is in Kafka.
func (s *stage) source(from *cdc.Position, before ...*memory) (*Source, *memory) {
	out := newMemory()
	src := s.world.source(out, from)
	src.Published = func(_ context.Context, since time.Time, fn func(*cdc.Change, int, bool) error) error {
		for _, m := range append(before, out) {
			m.mu.Lock()
			changes := slices.Clone(m.changes)
			m.mu.Unlock()
			for i := range changes {
				if changes[i].CommitMicros >= since.UnixMicro() || since.IsZero() {
					if err := fn(&changes[i], 0, false); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
	src.Repair = func(_ context.Context, r []cdc.SnapshotRequest) error {
		out.mu.Lock()
		defer out.mu.Unlock()
		out.requests = append(out.requests, r...)
		return nil
	}
	return src, out
}

// awaitStart waits until the tables are copied.
func (m *memory) awaitStart(t *testing.T) {
	t.Helper()
	m.await(t, "the first copy", func(_ []cdc.Change, p []cdc.Position) bool {
		if len(p) == 0 || len(p[len(p)-1].Copied) == 0 {
			return false
		}
		for _, sn := range p[len(p)-1].Snapshots {
			if sn.State != cdc.SnapshotDone {
				return false
			}
		}
		return true
	})
}

func (m *memory) lastPos() cdc.Position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pos[len(m.pos)-1]
}

// awaitEpoch waits until a position of an epoch is saved.
func (m *memory) awaitEpoch(t *testing.T, epoch uint16) cdc.Position {
	t.Helper()
	m.await(t, fmt.Sprintf("epoch %d", epoch), func(_ []cdc.Change, p []cdc.Position) bool {
		return len(p) > 0 && p[len(p)-1].Epoch == epoch
	})
	return m.lastPos()
}

// repairs are the keys that are asked to be read again.
func (m *memory) repairs() (keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.requests {
		for _, k := range r.Keys {
			keys = append(keys, r.Table+string(k))
		}
	}
	return keys
}

func insert(t *testing.T, db *sql.DB, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		if _, err := db.Exec("INSERT INTO shop.q VALUES (?, 0)", i); err != nil {
			t.Fatal(err)
		}
	}
}

// checkOrder says that every row came in one piece: no version twice, and none lower
// than one before it.
func checkOrder(t *testing.T, changes []cdc.Change) {
	t.Helper()
	last := map[string]cdc.Version{}
	for _, c := range changes {
		if c.Version <= last[string(c.Key)] {
			t.Errorf("%s of %s has version %s after %s", c.Op, c.Key, c.Version, last[string(c.Key)])
		}
		last[string(c.Key)] = c.Version
	}
}

func eachFlavor(t *testing.T, test func(t *testing.T, start func(testing.TB, ...string) *testenv.Instance)) {
	t.Run("MySQL", func(t *testing.T) { t.Parallel(); test(t, testenv.NewMySQL) })
	t.Run("MariaDB", func(t *testing.T) { t.Parallel(); test(t, testenv.NewMariaDB) })
}

// The address moves to a replica and back while somebody writes. Nothing is left
// out, nothing comes twice, and every version is above the ones before.
func TestASwitchToAReplicaAndBack(t *testing.T) {
	t.Parallel()
	eachFlavor(t, func(t *testing.T, start func(testing.TB, ...string) *testenv.Instance) {
		s := newStage(t, start)
		src, out := s.source(nil)
		stop := s.run(src)
		out.awaitStart(t)
		insert(t, s.a.DB(), 1, 20)
		out.awaitKey(t, `{"id":20}`)
		s.b.CatchUp(t, s.a)
		s.b.Unfollow(t)
		s.b.Exec(t, "INSERT INTO shop._no VALUES (1)")
		insert(t, s.b.DB(), 21, 40)
		s.relay.Point(s.b.Addr)
		if pos := out.awaitEpoch(t, 2); pos.ServerUUID == out.pos[0].ServerUUID {
			t.Errorf("epoch 2 is of the same server")
		}
		out.awaitKey(t, `{"id":40}`)
		s.a.Follow(t, s.b.Server)
		s.a.CatchUp(t, s.b)
		s.a.Unfollow(t)
		s.relay.Point(s.a.Addr)
		insert(t, s.a.DB(), 41, 60)
		out.awaitEpoch(t, 3)
		out.awaitKey(t, `{"id":60}`)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		checkOrder(t, out.changes)
		var keys []string
		for _, c := range out.changes {
			keys = append(keys, string(c.Key))
		}
		var want []string
		for i := range 60 {
			want = append(want, fmt.Sprintf(`{"id":%d}`, i+1))
		}
		if diff := cmp.Diff(want, keys); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if len(out.repairs()) != 0 {
			t.Errorf("rows are read again: %s", out.repairs())
		}
	})
}

// What is in Kafka behind the saved position is not published again by the log of
// another server, in whatever part of a transaction the last capture was killed.
func TestWhatIsInKafkaBehindThePositionIsLeftOut(t *testing.T) {
	t.Parallel()
	s := newStage(t, testenv.NewMySQL)
	src, first := s.source(nil)
	stop := s.run(src)
	first.awaitStart(t)
	insert(t, s.a.DB(), 1, 3)
	first.awaitKey(t, `{"id":3}`)
	first.awaitGTIDs(t, s.a)
	from := first.lastPos()
	s.b.CatchUp(t, s.a)
	s.b.Exec(t, "STOP REPLICA SQL_THREAD")
	s.a.Exec(t, "BEGIN; UPDATE shop.q SET v = 1 WHERE id = 1; UPDATE shop.q SET v = 2 WHERE id = 1; UPDATE shop.q SET v = 1 WHERE id = 2; UPDATE shop.q SET v = 3 WHERE id = 1; COMMIT",
		"UPDATE shop.q SET v = 9 WHERE id = 3")
	all := first.awaitChanges(t, 8)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	before := newMemory()
	before.changes = append(slices.Clone(all[:5]), all[3:5]...) // two of the three updates of row 1, and these twice
	s.relay.Point(s.b.Addr)
	again, out := s.source(&from, before)
	stop = s.run(again)
	eventually(t, "a replica is waited for that has the position, and not what is behind it", func() bool { return testutil.ToFloat64(again.Metrics.reconnects) >= 1 })
	if len(out.pos) > 0 {
		t.Fatalf("it went on to %+v", out.pos)
	}
	s.b.Exec(t, "START REPLICA SQL_THREAD")
	s.b.CatchUp(t, s.a)
	s.b.Unfollow(t)
	insert(t, s.b.DB(), 4, 4)
	out.awaitKey(t, `{"id":4}`)
	out.awaitGTIDs(t, s.b)
	// Killed again before the end of the tail, it goes on the same way.
	half := out.pos[0]
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`u {"id":2} {"id":2,"v":0} -> {"id":2,"v":1}`, `u {"id":1} {"id":1,"v":2} -> {"id":1,"v":3}`,
		`u {"id":3} {"id":3,"v":0} -> {"id":3,"v":9}`, `c {"id":4}  -> {"id":4,"v":0}`,
	}
	if diff := cmp.Diff(want, show(out.changes)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if half.Epoch != 2 || half.Replaced == 0 || out.lastPos().Replaced != 0 {
		t.Errorf("the first position of the epoch is %+v, the last %+v", half, out.lastPos())
	}
	third, out := s.source(&half, before)
	stop = s.run(third)
	out.awaitKey(t, `{"id":4}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, show(out.changes)); diff != "" {
		t.Errorf("after another start (-want +got)\n%s", diff)
	}
}

// awaitGTIDs waits until the saved position has everything that a server has.
func (m *memory) awaitGTIDs(t *testing.T, of *testenv.Instance) {
	t.Helper()
	query, flavor := "SELECT @@GLOBAL.gtid_executed", flavorMySQL
	if of.Name == "mariadb" {
		query, flavor = "SELECT @@GLOBAL.gtid_binlog_state", flavorMariaDB
	}
	want, err := parseGTIDs(flavor, oneLine(of.Value(t, query)))
	if err != nil {
		t.Fatal(err)
	}
	m.await(t, "position "+want.String(), func(_ []cdc.Change, p []cdc.Position) bool {
		if len(p) == 0 {
			return false
		}
		got, err := parseGTIDs(flavor, p[len(p)-1].GTIDSet)
		return err == nil && got.contains(want)
	})
}

// A primary dies before its replica has everything. What only it had is in Kafka,
// so exactly those rows are read again; before that, a replica that still applies
// is waited for.
func TestAPrimaryThatLostItsTail(t *testing.T) {
	t.Parallel()
	eachFlavor(t, func(t *testing.T, start func(testing.TB, ...string) *testenv.Instance) {
		s := newStage(t, start)
		src, out := s.source(nil)
		stop := s.run(src)
		out.awaitStart(t)
		insert(t, s.a.DB(), 1, 5)
		s.b.CatchUp(t, s.a)
		s.b.Exec(t, map[bool]string{true: "STOP REPLICA SQL_THREAD", false: "STOP SLAVE SQL_THREAD"}[s.b.Name == "mysql"])
		s.a.Exec(t, "INSERT INTO shop.q VALUES (100, 1)", "UPDATE shop.q SET v = 1 WHERE id = 1", "DELETE FROM shop.q WHERE id = 2", "INSERT INTO shop._no VALUES (7)")
		out.awaitChanges(t, 8)
		out.awaitGTIDs(t, s.a)
		s.a.Kill(t)
		s.relay.Point(s.b.Addr)
		eventually(t, "the replica is waited for", func() bool { return testutil.ToFloat64(src.Metrics.reconnects) >= 2 })
		if pos := out.lastPos(); pos.Epoch != 1 {
			t.Fatalf("the epoch is %d while the replica may still get the rest", pos.Epoch)
		}
		s.b.Unfollow(t)
		out.awaitEpoch(t, 2)
		insert(t, s.b.DB(), 6, 8)
		out.awaitKey(t, `{"id":8}`)
		out.awaitGTIDs(t, s.b)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{`shop.q{"id":100}`, `shop.q{"id":1}`, `shop.q{"id":2}`}, out.repairs()); diff != "" {
			t.Errorf("read again (-want +got)\n%s", diff)
		}
		if n, k := testutil.ToFloat64(src.Metrics.ghostTransactions), testutil.ToFloat64(src.Metrics.ghostKeys); n != 3 || k != 3 {
			t.Errorf("%v transactions and %v rows are counted, want 3 and 3", n, k)
		}
		// Nothing is left to be mended for the one that starts next.
		next, again := s.source(new(out.lastPos()), out)
		stop = s.run(next)
		insert(t, s.b.DB(), 9, 9)
		again.awaitKey(t, `{"id":9}`)
		again.awaitGTIDs(t, s.b)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if pos := again.lastPos(); pos.Epoch != 2 || len(again.repairs()) != 0 {
			t.Errorf("the next start is in epoch %d and reads again %s", pos.Epoch, again.repairs())
		}
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 2m until %s", what)
		}
	}
}

// A replica that is behind is no reason to read anything again: it gets the rest.
func TestAReplicaThatIsBehindIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newStage(t, testenv.NewMySQL)
	src, out := s.source(nil)
	stop := s.run(src)
	out.awaitStart(t)
	s.b.CatchUp(t, s.a)
	s.b.Exec(t, "STOP REPLICA SQL_THREAD")
	insert(t, s.a.DB(), 1, 5)
	out.awaitKey(t, `{"id":5}`)
	out.awaitGTIDs(t, s.a)
	s.relay.Point(s.b.Addr)
	eventually(t, "the replica is waited for", func() bool { return testutil.ToFloat64(src.Metrics.reconnects) >= 2 })
	s.b.Exec(t, "START REPLICA SQL_THREAD")
	out.awaitEpoch(t, 2)
	insert(t, s.a.DB(), 6, 6) // by way of the replica
	out.awaitKey(t, `{"id":6}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	checkOrder(t, out.changes)
	if len(out.changes) != 6 || len(out.repairs()) != 0 {
		t.Errorf("%d changes, and read again %s", len(out.changes), out.repairs())
	}
}

// What only the new server has is read, unless its log does not tell it any more.
func TestErrantTransactions(t *testing.T) {
	t.Parallel()
	s := newStage(t, testenv.NewMySQL)
	src, out := s.source(nil)
	stop := s.run(src)
	out.awaitStart(t)
	s.b.CatchUp(t, s.a)
	s.b.Exec(t, "INSERT INTO shop.q VALUES (700, 7)")
	insert(t, s.a.DB(), 1, 3)
	out.awaitKey(t, `{"id":3}`)
	s.b.CatchUp(t, s.a)
	s.b.Unfollow(t)
	s.relay.Point(s.b.Addr)
	out.awaitKey(t, `{"id":700}`)
	out.awaitGTIDs(t, s.b)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	pos := out.lastPos()
	s.b.Exec(t, "INSERT INTO shop.q VALUES (701, 7)", "FLUSH BINARY LOGS")
	s.b.Exec(t, "PURGE BINARY LOGS TO '"+lastLog(t, s.b)+"'")
	next, _ := s.source(&pos, out)
	err := s.runToEnd(next)
	if err == nil || !strings.Contains(err.Error(), "has purged log that was not read yet") || !strings.Contains(err.Error(), "--on-gap resnapshot") {
		t.Fatalf("ended with %v", err)
	}
}

func lastLog(t *testing.T, i *testenv.Instance) (name string) {
	t.Helper()
	rows, err := i.DB().Query("SHOW BINARY LOGS")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, _ := rows.Columns()
	for rows.Next() {
		fields := make([]any, len(columns))
		for n := range fields {
			fields[n] = new(sql.NullString)
		}
		if err := rows.Scan(fields...); err != nil {
			t.Fatal(err)
		}
		name = fields[0].(*sql.NullString).String
	}
	return name
}

// newSolo is one server without a replica, and a source that has read rows 1 to 5.
func newSolo(t *testing.T, start func(testing.TB, ...string) *testenv.Instance) (*stage, cdc.Position) {
	t.Helper()
	s := &stage{a: start(t)}
	s.alone(t)
	src, out := s.source(nil)
	stop := s.run(src)
	out.awaitStart(t)
	insert(t, s.a.DB(), 1, 5)
	out.awaitKey(t, `{"id":5}`)
	out.awaitGTIDs(t, s.a)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	s.last = out
	return s, out.lastPos()
}

// Log that was purged before it was read stops the capture with what is missing and
// what is left, and is passed over with a new copy when the operator says so.
func TestAGapInTheLog(t *testing.T) {
	t.Parallel()
	eachFlavor(t, func(t *testing.T, start func(testing.TB, ...string) *testenv.Instance) {
		s, pos := newSolo(t, start)
		s.a.Exec(t, "INSERT INTO shop.q VALUES (6, 0)", "DELETE FROM shop.q WHERE id = 1", "CREATE TABLE shop.r (id INT PRIMARY KEY)", "INSERT INTO shop.r VALUES (1)", "FLUSH BINARY LOGS")
		if s.a.Name == "mariadb" { // its file is in use until a later one is safe
			s.a.Exec(t, "INSERT INTO shop.q VALUES (7, 0)", "FLUSH BINARY LOGS", "INSERT INTO shop.q VALUES (8, 0)")
		}
		eventually(t, "the log is purged", func() bool {
			s.a.Exec(t, "PURGE BINARY LOGS TO '"+lastLog(t, s.a)+"'")
			rows, err := s.a.DB().Query("SHOW BINARY LOGS")
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			n := 0
			for rows.Next() {
				n++
			}
			return n == 1
		})
		src, out := s.source(&pos, s.last)
		err := s.runToEnd(src)
		for _, part := range []string{"has purged log that was not read yet", "binlog_expire_logs_seconds", "keeps its log from behind", "--on-gap resnapshot"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Fatalf("ended with %v, which does not say %q", err, part)
			}
		}
		if len(out.changes) != 0 || len(out.pos) != 0 {
			t.Errorf("%d changes were published and %d positions saved", len(out.changes), len(out.pos))
		}
		src, out = s.source(&pos, s.last)
		src.OnGap = OnGapResnapshot
		src.FirstEpoch = func(context.Context) (uint16, error) { return 2, nil }
		stop := s.run(src)
		first := out.awaitEpoch(t, 2)
		out.awaitKey(t, `{"id":6}`)
		insert(t, s.a.DB(), 9, 9)
		out.awaitKey(t, `{"id":9}`)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		sweep, _ := cdc.NewVersion(1, cdc.MaxSeq)
		if len(first.Snapshots) != 1 || first.Snapshots[0].Table != "shop.q" || first.Snapshots[0].Sweep != sweep || first.Snapshots[0].State != cdc.SnapshotRunning {
			t.Errorf("the copies of the new epoch are %+v", first.Snapshots)
		}
		checkOrder(t, append(slices.Clone(s.last.changes), out.changes...))
	})
}

// A server whose log was reset has lost the numbers of all that was read: every row
// that Kafka knows is read again.
func TestTheLogIsReset(t *testing.T) {
	t.Parallel()
	eachFlavor(t, func(t *testing.T, start func(testing.TB, ...string) *testenv.Instance) {
		s, pos := newSolo(t, start)
		s.a.Exec(t, map[bool]string{true: "RESET BINARY LOGS AND GTIDS", false: "RESET MASTER"}[s.a.Name == "mysql"])
		src, out := s.source(&pos, s.last)
		stop := s.run(src)
		out.awaitEpoch(t, 2)
		insert(t, s.a.DB(), 6, 6)
		out.awaitKey(t, `{"id":6}`)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if got := len(out.repairs()); got != 5 {
			t.Errorf("read again: %s", out.repairs())
		}
	})
}

// When the numbers have been given out again before anybody looked, those that were
// read and those that are there cannot be told apart by number.
func TestNumbersThatAreGivenOutAgainAreAGap(t *testing.T) {
	t.Parallel()
	s, pos := newSolo(t, testenv.NewMySQL)
	s.a.Exec(t, "RESET BINARY LOGS AND GTIDS")
	insert(t, s.a.DB(), 6, 7)
	check := func(what string) {
		t.Helper()
		src, out := s.source(&pos, s.last)
		if err := s.runToEnd(src); err == nil || !strings.Contains(err.Error(), "gives the numbers of transactions that were read to other ones") {
			t.Fatalf("%s: ended with %v", what, err)
		}
		if len(out.changes) != 0 || len(out.pos) != 0 {
			t.Errorf("%s: %d changes were published and %d positions saved", what, len(out.changes), len(out.pos))
		}
	}
	check("fewer than before")
	insert(t, s.a.DB(), 8, 30)
	check("more than before")
	src, out := s.source(&pos, s.last)
	src.OnGap = OnGapResnapshot
	src.FirstEpoch = func(context.Context) (uint16, error) { return 2, nil }
	stop := s.run(src)
	out.awaitKey(t, `{"id":30}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// A server restored from a backup lacks what was read since; it may have given the
// same numbers out again.
func TestAServerRestoredFromABackup(t *testing.T) {
	t.Parallel()
	s := &stage{a: testenv.NewMySQL(t)}
	s.alone(t)
	src, out := s.source(nil)
	stop := s.run(src)
	out.awaitStart(t)
	insert(t, s.a.DB(), 1, 5)
	out.awaitKey(t, `{"id":5}`)
	s.a.Kill(t)
	restore := s.a.Backup(t)
	s.a.Start(t)
	s.a.Exec(t, "INSERT INTO shop.q VALUES (6, 0)", "UPDATE shop.q SET v = 5 WHERE id = 2", "DELETE FROM shop.q WHERE id = 3", "INSERT INTO shop.q VALUES (7, 0)")
	out.awaitKey(t, `{"id":7}`)
	out.awaitGTIDs(t, s.a)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	pos := out.lastPos()
	s.a.Kill(t)
	restore()
	s.a.Start(t)
	again, next := s.source(&pos, out)
	stop = s.run(again)
	next.awaitEpoch(t, 2)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	repairs := next.repairs()
	slices.Sort(repairs)
	if diff := cmp.Diff([]string{`shop.q{"id":2}`, `shop.q{"id":3}`, `shop.q{"id":6}`, `shop.q{"id":7}`}, repairs); diff != "" {
		t.Errorf("read again (-want +got)\n%s", diff)
	}
	insert(t, s.a.DB(), 50, 51)
	for what, more := range map[string]int{"fewer than were lost": 0, "more than were lost": 20} {
		insert(t, s.a.DB(), 100, 99+more)
		src, out := s.source(&pos, out)
		if err := s.runToEnd(src); err == nil || !strings.Contains(err.Error(), "gives the numbers of transactions that were read to other ones") {
			t.Errorf("%s: ended with %v", what, err)
		}
		if len(out.changes) != 0 || len(out.pos) != 0 {
			t.Errorf("%s: %d changes were published and %d positions saved", what, len(out.changes), len(out.pos))
		}
		if more > 0 {
			break // the other way round there are no fewer any more
		}
	}
}

func TestTheEpochsAreUsedUp(t *testing.T) {
	t.Parallel()
	s, pos := newSolo(t, testenv.NewMariaDB)
	pos.Epoch = cdc.MaxEpoch
	pos.ServerUUID = "another"
	src, out := s.source(&pos, s.last)
	var stop *Stop
	if err := s.runToEnd(src); !errors.As(err, &stop) || !strings.Contains(err.Error(), "all 2047 epochs") || stop.Remedy == "" {
		t.Fatalf("ended with %v", err)
	}
	if len(out.pos) != 0 {
		t.Errorf("%d positions were saved", len(out.pos))
	}
}

// A barrier that Kafka has behind the saved position keeps its version: a new one
// would stand above the rows behind it, which are not published again.
func TestABarrierInKafkaBehindThePositionIsLeftOut(t *testing.T) {
	t.Parallel()
	s := newStage(t, testenv.NewMySQL)
	src, first := s.source(nil)
	stop := s.run(src)
	first.awaitStart(t)
	insert(t, s.a.DB(), 1, 3)
	first.awaitKey(t, `{"id":3}`)
	first.awaitCopied(t)
	first.awaitGTIDs(t, s.a)
	from := first.lastPos()
	s.a.Exec(t, "TRUNCATE TABLE shop.q", "INSERT INTO shop.q VALUES (7, 0)")
	first.awaitKey(t, `{"id":7}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(first.changes, func(c cdc.Change) bool { return c.Op == cdc.OpBarrier })
	if at < 0 {
		t.Fatal("no barrier was published")
	}
	barrier := first.changes[at].Version
	s.b.CatchUp(t, s.a)
	s.b.Unfollow(t)
	insert(t, s.b.DB(), 8, 8)
	s.relay.Point(s.b.Addr)
	until := newMemory() // killed before the barrier
	until.changes = slices.Clone(first.changes[:at])
	for _, c := range []struct {
		name   string
		before *memory
		ops    string
	}{{"with it", first, "c"}, {"without it", until, "tcc"}} {
		again, out := s.source(&from, c.before)
		stop := s.run(again)
		out.awaitKey(t, `{"id":8}`)
		out.awaitGTIDs(t, s.b)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		ops := ""
		for _, c := range out.changes {
			ops += c.Op.String()
		}
		if ops != c.ops {
			t.Errorf("%s: published %s, want %s", c.name, ops, c.ops)
		}
		if got := out.lastPos().Barriers["shop.q"]; (got == barrier) != (c.before == first) || got < barrier {
			t.Errorf("%s: the barrier has version %s, and had %s", c.name, got, barrier)
		}
	}
}

// Where Kafka does not hold the lost changes any more, nobody can tell the rows.
func TestGhostsThatKafkaHasForgottenAreAGap(t *testing.T) {
	t.Parallel()
	s, pos := newSolo(t, testenv.NewMariaDB)
	s.a.Exec(t, "RESET MASTER")
	src, out := s.source(&pos, s.last)
	all := src.Published
	src.Published = func(ctx context.Context, since time.Time, fn func(*cdc.Change, int, bool) error) error {
		oldest := true
		return all(ctx, since, func(c *cdc.Change, p int, _ bool) error {
			if c.Op == cdc.OpRead || string(c.Key) == `{"id":1}` {
				return nil
			}
			cut := oldest
			oldest = false
			return fn(c, p, cut)
		})
	}
	if err := s.runToEnd(src); err == nil || !strings.Contains(err.Error(), "Kafka does not hold all of their changes") || !strings.Contains(err.Error(), "--on-gap resnapshot") {
		t.Fatalf("ended with %v", err)
	}
	if len(out.pos) != 0 || len(out.repairs()) != 0 {
		t.Errorf("%d positions were saved, and rows asked for: %s", len(out.pos), out.repairs())
	}
}

// A statement that emptied a table named no rows; when it is lost, all are read again.
func TestALostTruncateHasTheTableReadAgain(t *testing.T) {
	q := cdc.TableName{DB: "shop", Table: "q"}
	read, err1 := parseGTIDs(flavorMariaDB, "0-1-9")
	left, err2 := parseGTIDs(flavorMariaDB, "0-1-7,0-2-20")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	ghosts := read.minus(left)
	out := newMemory()
	s := &Source{Log: testLog(t), Metrics: NewMetrics(prometheus.NewRegistry()),
		Published: func(_ context.Context, _ time.Time, fn func(*cdc.Change, int, bool) error) error {
			return errors.Join(fn(&cdc.Change{Table: q, Op: cdc.OpBarrier, GTID: "0-1-8"}, 0, false), fn(&cdc.Change{Table: q, Op: cdc.OpCreate, GTID: "0-1-9", Key: []byte(`{"id":1}`)}, 0, false),
				fn(&cdc.Change{Table: q, Op: cdc.OpCreate, GTID: "0-2-9", Key: []byte(`{"id":2}`)}, 0, false))
		},
		Repair: func(_ context.Context, r []cdc.SnapshotRequest) error { out.requests = r; return nil },
	}
	whole, err := s.repair(t.Context(), &server{flavor: flavorMariaDB}, ghosts, 4)
	if err != nil || !whole || len(out.requests) != 2 || out.requests[0].ID != "repair-4-shop.q" || len(out.requests[0].Keys) != 0 || len(out.requests[1].Keys) != 1 {
		t.Errorf("%t, %v: %+v", whole, err, out.requests)
	}
}

// A statement that had a table copied anew took rows away that no record names; when
// it is lost, they are back.
func TestALostStatementHasItsTableReadAgain(t *testing.T) {
	read, err1 := parseGTIDs(flavorMySQL, "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-9")
	left, err2 := parseGTIDs(flavorMySQL, "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-7")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	out := newMemory()
	s := &Source{Log: testLog(t), Metrics: NewMetrics(prometheus.NewRegistry()),
		Published: func(_ context.Context, _ time.Time, fn func(*cdc.Change, int, bool) error) error {
			return fn(&cdc.Change{Table: cdc.TableName{DB: "shop", Table: "old"}, Op: cdc.OpCreate, GTID: "0-1-9", Key: []byte(`{"id":1}`)}, 0, false) // of another kind of server
		},
		Repair: func(_ context.Context, r []cdc.SnapshotRequest) error { out.requests = r; return nil },
	}
	gtid := func(n int) string { return fmt.Sprintf("3e11fa47-71ca-11e1-9e33-c80aa9429562:%d", n) }
	s.pos.Snapshots = []cdc.Snapshot{
		{ID: "kept", Table: "shop.p", GTID: gtid(7), Sweep: 5, State: cdc.SnapshotRunning},
		{ID: "lost", Table: "shop.q", GTID: gtid(8), Sweep: 6, State: cdc.SnapshotRunning},
		{ID: "done", Table: "shop.r", GTID: gtid(9), Sweep: 7, State: cdc.SnapshotDone},
	}
	whole, err := s.repair(t.Context(), &server{flavor: flavorMySQL}, read.minus(left), 4)
	var asked []string
	for _, r := range out.requests {
		asked = append(asked, r.Table)
	}
	if diff := cmp.Diff([]string{"shop.q", "shop.r"}, asked); err != nil || !whole || diff != "" {
		t.Errorf("%t, %v; asked for (-want +got)\n%s", whole, err, diff)
	}
	if s.snapshot("lost").State != cdc.SnapshotCancelled || s.snapshot("kept").State != cdc.SnapshotRunning {
		t.Errorf("%+v", s.pos.Snapshots)
	}
}

func TestRequestsForKeysAreBoundedAndHaveTheSameNamesAgain(t *testing.T) {
	var keys []string
	for i := range 12_000 {
		keys = append(keys, fmt.Sprintf(`{"id":%d}`, i))
	}
	keys = append(keys, `{"id":"`+strings.Repeat("x", 300<<10)+`"}`, `{"id":"`+strings.Repeat("y", 300<<10)+`"}`)
	requests := keyRequests(cdc.TableName{DB: "shop", Table: "q"}, keys, 2, "why")
	again := keyRequests(cdc.TableName{DB: "shop", Table: "q"}, keys, 2, "why")
	var got []string
	ids := map[string]bool{}
	for i, r := range requests {
		size := 0
		for _, k := range r.Keys {
			size += len(k)
			got = append(got, string(k))
		}
		if len(r.Keys) > cdc.MaxRequestKeys || size > cdc.MaxRequestBytes || ids[r.ID] || again[i].ID != r.ID {
			t.Errorf("request %s has %d keys and %d bytes", r.ID, len(r.Keys), size)
		}
		ids[r.ID] = true
	}
	if !slices.Equal(got, keys) {
		t.Errorf("%d of %d keys are asked for", len(got), len(keys))
	}
}

// Asked for a new copy, the capture begins an epoch, copies every table and has what
// is not in the source any more swept out; a table that is gone is swept at once.
func TestANewCopyOfEveryTable(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)", "CREATE TABLE r (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1), (2)", "INSERT INTO r VALUES (1)")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitStart(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.exec("DELETE FROM q WHERE id = 2", "DROP TABLE r", "CREATE TABLE n (id INT PRIMARY KEY)", "INSERT INTO n VALUES (1)")
	again := newMemory()
	s := w.source(again, new(out.lastPos()))
	s.Resnapshot = true
	s.FirstEpoch = func(context.Context) (uint16, error) { return 5, nil }
	stop = w.run(s)
	again.awaitStart(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	sweep, _ := cdc.NewVersion(4, cdc.MaxSeq)
	barriers := map[string]cdc.Version{}
	var rows []string
	for _, c := range again.changes {
		if c.Op == cdc.OpBarrier {
			barriers[c.Table.Table] = c.Version
			continue
		}
		rows = append(rows, fmt.Sprintf("%s %s%s epoch %d", c.Op, c.Table.Table, c.Key, c.Version.Epoch()))
	}
	slices.Sort(rows)
	if diff := cmp.Diff([]string{`r n{"id":1} epoch 5`, `r q{"id":1} epoch 5`}, rows); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(map[string]cdc.Version{"q": sweep, "r": sweep}, barriers); diff != "" {
		t.Errorf("barriers (-want +got)\n%s", diff)
	}
	if pos := again.lastPos(); pos.Epoch != 5 || pos.Barriers[w.name+".q"] != sweep || pos.Barriers[w.name+".r"] != sweep {
		t.Errorf("the position is %+v", pos)
	}
}

// A connection over which nothing comes any more, but which nobody has closed, is
// noticed within the read timeout, and so is a server that lets in and says nothing.
func TestAHalfOpenConnectionIsNoticed(t *testing.T) {
	if promised := 20 * time.Second; DefaultConfig().ReadTimeout > promised-2*time.Second {
		t.Errorf("with the default read timeout of %s it is not sure to be noticed within %s", DefaultConfig().ReadTimeout, promised)
	}
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)")
	relay := testenv.NewRelay(t, w.cfg.Addr)
	w.cfg.Addr, w.cfg.ReadTimeout, w.cfg.ConnectTimeout = relay.Addr, 5*time.Second, 2*time.Second
	out := newMemory()
	s := w.source(out, nil)
	stop := w.run(s)
	out.awaitStart(t)
	eventually(t, "it reads", s.Reading)
	frozen := time.Now()
	relay.Freeze()
	eventually(t, "it is noticed", func() bool { return !s.Reading() })
	if took := time.Since(frozen); took > w.cfg.ReadTimeout+2*time.Second {
		t.Errorf("it took %s, with a read timeout of %s", took, w.cfg.ReadTimeout)
	}
	eventually(t, "new connections fail, too", func() bool { return testutil.ToFloat64(s.Metrics.reconnects) >= 2 })
	w.exec("INSERT INTO q VALUES (1)")
	relay.Thaw()
	out.awaitKey(t, `{"id":1}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// Where only tables change that are not captured, the position moves on all the
// same, so that the log may be purged behind it.
func TestThePositionMovesOnWhereNothingIsCaptured(t *testing.T) {
	t.Parallel()
	eachFlavor(t, func(t *testing.T, start func(testing.TB, ...string) *testenv.Instance) {
		s, pos := newSolo(t, start)
		s.cfg.CheckpointInterval = time.Minute // only the end of the log saves it
		src, out := s.source(&pos, s.last)
		stop := s.run(src)
		eventually(t, "it reads", src.Reading)
		for range 3 {
			s.a.Exec(t, "REPLACE INTO shop._no VALUES (1)", "FLUSH BINARY LOGS")
		}
		out.awaitGTIDs(t, s.a)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log is purged", func() bool {
			s.a.Exec(t, "PURGE BINARY LOGS TO '"+lastLog(t, s.a)+"'")
			return s.a.Name == "mysql" || s.a.Value(t, "SELECT @@GLOBAL.gtid_binlog_pos") != ""
		})
		saved := out.lastPos()
		if saved.LastGTID == pos.LastGTID {
			t.Errorf("the last transaction is still %s", saved.LastGTID)
		}
		next, again := s.source(&saved, out)
		stop = s.run(next)
		insert(t, s.a.DB(), 60, 60)
		again.awaitKey(t, `{"id":60}`)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}
