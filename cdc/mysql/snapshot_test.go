package mysql

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"lockstep/cdc"
)

// tiny makes chunks so small that a few rows are many of them.
func (w *world) tiny(rows int) {
	w.cfg.Snapshot.ChunkRows = rows
	w.cfg.Snapshot.MaxThreadsRunning = 0
}

// load changes rows of a table from several connections until ctx ends. Every
// write of a row takes a higher value than any before it, deleted or not.
func (w *world) load(ctx context.Context, keys int) (done func()) {
	var all sync.WaitGroup
	var mu sync.Mutex
	value := 1_000_000
	next := func() int { mu.Lock(); defer mu.Unlock(); value++; return value }
	for seed := range uint64(3) {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			conn, err := w.db.Conn(context.Background())
			if err != nil {
				w.t.Error(err)
				return
			}
			defer conn.Close()
			for ctx.Err() == nil {
				// One row per transaction: the row's lock is taken before the value is.
				id := r.IntN(keys)
				tx, err := conn.BeginTx(context.Background(), nil)
				if err != nil {
					w.t.Error(err)
					return
				}
				var found int
				err = tx.QueryRow("SELECT v FROM q WHERE id = ? FOR UPDATE", id).Scan(&found)
				switch {
				case err == sql.ErrNoRows:
					_, err = tx.Exec("INSERT INTO q VALUES (?, ?)", id, next())
				case err == nil && r.IntN(5) == 0:
					_, err = tx.Exec("DELETE FROM q WHERE id = ?", id)
				case err == nil && r.IntN(5) == 0:
					_, err = tx.Exec("UPDATE IGNORE q SET id = ?, v = ? WHERE id = ?", r.IntN(keys), next(), id)
				case err == nil:
					_, err = tx.Exec("UPDATE q SET v = ? WHERE id = ?", next(), id)
				}
				if err != nil {
					_ = tx.Rollback() // a deadlock
					continue
				}
				_ = tx.Commit()
			}
		})
	}
	return all.Wait
}

func (w *world) rows(table string) map[string]string {
	w.t.Helper()
	res, err := w.db.Query("SELECT id, v FROM " + table)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Close()
	rows := map[string]string{}
	for res.Next() {
		var id, v int
		if err := res.Scan(&id, &v); err != nil {
			w.t.Fatal(err)
		}
		rows[fmt.Sprintf(`{"id":%d}`, id)] = fmt.Sprintf(`{"id":%d,"v":%d}`, id, v)
	}
	return rows
}

// sink is what a store would hold.
type sink struct {
	rows     map[string]string
	versions map[string]cdc.Version
}

func (s *sink) apply(changes []cdc.Change) {
	if s.rows == nil {
		s.rows, s.versions = map[string]string{}, map[string]cdc.Version{}
	}
	for _, c := range changes {
		if key := string(c.Key); c.Version > s.versions[key] {
			s.versions[key] = c.Version
			s.rows[key] = string(c.After)
			if c.Op == cdc.OpDelete {
				delete(s.rows, key)
			}
		}
	}
}

// stepsBack says where a value or a version is lower than one of the same key
// before it. Order is that of publishing: what a reader sees who has no guard.
func stepsBack(changes []cdc.Change) (problems []string) {
	type seen struct {
		v       int
		version cdc.Version
		line    string
	}
	last := map[string]seen{}
	for _, c := range changes {
		image := c.After
		if image == nil {
			image = c.Before
		}
		var row struct{ V int }
		_ = json.Unmarshal(image, &row)
		line := fmt.Sprintf("%s %s v=%d at %s", c.Op, c.Key, row.V, c.Version)
		key := c.Table.Table + string(c.Key)
		was := last[key]
		if row.V < was.v || c.Version < was.version {
			problems = append(problems, was.line+" then "+line)
		}
		last[key] = seen{row.V, c.Version, line}
	}
	return problems
}

// Whatever happens beside a copy in small parts by several readers, what is published
// ends equal to the table, and no row steps back on the way.
func TestACopyBesideRandomChangesEndsEqualAndNoRowStepsBack(t *testing.T) {
	for round := range 3 {
		w := newWorld(t)
		w.tiny(3 + 40*round)
		w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)", "SET SESSION cte_max_recursion_depth = 100000",
			"INSERT INTO q WITH RECURSIVE r AS (SELECT 0 n UNION ALL SELECT n + 1 FROM r WHERE n < 599) SELECT n, n FROM r")
		ctx, cancel := context.WithCancel(t.Context())
		ended := w.load(ctx, 800)
		out := newMemory()
		stop := w.run(w.source(out, nil))
		out.awaitCopied(t)
		cancel()
		ended()
		w.exec("INSERT INTO q VALUES (99999, 2000000)")
		out.awaitKey(t, `{"id":99999}`)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		var s sink
		s.apply(out.changes)
		if diff := cmp.Diff(w.rows("q"), s.rows); diff != "" {
			t.Errorf("(-table +published)\n%s", diff)
		}
		if back := stepsBack(out.changes); len(back) > 0 {
			t.Errorf("%d rows step back, first %s", len(back), back[0])
		}
		reads := 0
		for _, c := range out.changes {
			if c.Op == cdc.OpRead {
				reads++
			}
		}
		t.Logf("%d changes, %d of them copied", len(out.changes), reads)
	}
}

// A capture that is killed anywhere goes on with its copies, not from zero, and loses
// nothing.
func TestAKilledCopyGoesOnWhereItWas(t *testing.T) {
	w := newWorld(t)
	w.tiny(5)
	w.cfg.Snapshot.RowsPerSecond = 2000
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)",
		"INSERT INTO q WITH RECURSIVE r AS (SELECT 0 n UNION ALL SELECT n + 1 FROM r WHERE n < 799) SELECT n, n FROM r")
	ctx, cancel := context.WithCancel(t.Context())
	ended := w.load(ctx, 1000)
	var s sink
	var from *cdc.Position
	reads := map[string]int{}
	kills := 0
	for done := false; !done; kills++ {
		if kills > 60 {
			t.Fatal("the copy does not get anywhere")
		}
		out := newMemory()
		// A kill: what stood in the position that was saved last counts, and a part
		// of what was published behind it is in Kafka too.
		stop := w.run(w.source(out, from))
		before := 0
		if from != nil && len(from.Snapshots) > 0 {
			before = int(from.Snapshots[0].Rows)
		}
		out.await(t, "more of the copy", func(_ []cdc.Change, p []cdc.Position) bool {
			if len(p) == 0 || len(p[len(p)-1].Snapshots) == 0 {
				return false
			}
			sn := p[len(p)-1].Snapshots[0]
			return sn.State == cdc.SnapshotDone || int(sn.Rows) > before+60
		})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := len(out.pos); n > 3 {
			out.pos = out.pos[:n-rand.IntN(3)]
		}
		last := out.pos[len(out.pos)-1]
		from = &last
		done = last.Snapshots[0].State == cdc.SnapshotDone
		s.apply(out.changes)
		for _, c := range out.changes {
			if c.Op == cdc.OpRead {
				reads[string(c.Key)]++
			}
		}
	}
	cancel()
	ended()
	out := newMemory()
	stop := w.run(w.source(out, from))
	w.exec("INSERT INTO q VALUES (99999, 2000000)")
	out.awaitKey(t, `{"id":99999}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	s.apply(out.changes)
	if diff := cmp.Diff(w.rows("q"), s.rows); diff != "" {
		t.Errorf("(-table +published)\n%s", diff)
	}
	twice := 0
	for _, n := range reads {
		twice += n - 1
	}
	t.Logf("killed %d times, %d rows copied, %d of them again", kills, len(reads), twice)
	// Each kill costs the chunks under way and what was not saved, never more.
	if kills < 5 || twice > kills*60 {
		t.Errorf("killed %d times, and %d rows were copied again", kills, twice)
	}
}

// Every type that a primary key can have is a chunk's end, and no row is left out or
// read for ever.
func TestEveryTypeOfKeyIsCopiedInParts(t *testing.T) {
	for name, c := range map[string]struct{ columns, key, values string }{
		"negative and unsigned": {"a BIGINT, b BIGINT UNSIGNED", "a, b", "(-9223372036854775808,0),(-9223372036854775808,18446744073709551615),(-1,1),(0,0),(0,9223372036854775808),(9223372036854775807,1),(9223372036854775807,2)"},
		"case folding":          {"a VARCHAR(20) COLLATE utf8mb4_0900_ai_ci", "a", "('a'),('B'),('c'),('É'),('f'),('ss '),('ss'),('z'),(''),(' '),('Ω'),('日本'),('😀')"},
		"trailing spaces":       {"a VARCHAR(20) COLLATE utf8mb4_general_ci, b CHAR(3) COLLATE utf8mb4_bin", "a, b", "('a ','x'),('a','y'),('a  ','z'),('a\\t','x'),('a!','x'),('','x'),('b','x ')"},
		"latin1 and gbk":        {"a VARCHAR(20) CHARACTER SET latin1, b VARCHAR(20) CHARACTER SET gbk", "a, b", "('é','汉'),('é','字'),('ÿ','a'),('a','汉字'),('€','x'),('z','丂')"},
		"utf16":                 {"a VARCHAR(20) CHARACTER SET utf16", "a", "('a'),('é'),('日'),('😀'),('z')"},
		"binary":                {"a VARBINARY(20), b BINARY(4)", "a, b", "(X'00',X'00'),(X'',X'61'),(X'0000',X'61'),(X'FF',X'00'),(X'FF00',X'01'),(X'2720',X'27')"},
		"decimal":               {"a DECIMAL(65,30)", "a", "(-0.000000000000000000000000000001),(0),(12345678901234567890123456789012345.123456789012345678901234567890),(-5),(1.5)"},
		"floats":                {"a FLOAT, b DOUBLE", "a, b", "(1.1,0.1),(1.1,0.30000000000000004),(-1.1,1e-300),(16777216,1),(3.4028234e38,-1.7976931348623157e308),(0.1,2),(0.2,2)"},
		"enum":                  {"a ENUM('z','y','it''s','a,b','größe','x'), b ENUM('q','p')", "a, b", "('z','q'),('z','p'),('y','q'),('it''s','p'),('a,b','q'),('größe','p'),('x','q'),('x','p')"},
		"set":                   {"a SET('c','b','a')", "a", "(''),('c'),('b'),('b,c'),('a'),('a,c'),('a,b,c')"},
		"dates":                 {"a DATE, b TIME(2)", "a, b", "('1000-01-01','-838:59:59'),('1000-01-01','-00:00:00.01'),('1000-01-01','838:59:59'),('9999-12-31','00:00:00'),('2024-02-29','00:00:00.01'),('0000-00-00','01:00:00'),('2024-02-31','1:2:3')"},
		"moments":               {"a DATETIME(6), b TIMESTAMP(3), y YEAR", "a, b, y", "('2026-11-22 08:15:30.123456','2026-11-22 08:15:30.120',2026),('2026-11-22 08:15:30.123457','1970-01-01 00:00:01',1901),('1000-01-01','2038-01-19 03:14:07',0),('1000-01-01','2038-01-19 03:14:07',2155)"},
		"bits":                  {"a BIT(64), b BIT(1)", "a, b", "(0,0),(0,1),(18446744073709551615,0),(9223372036854775808,1),(1,1)"},
		"prefix":                {"a TEXT, b BLOB", "a(40), b(40)", "('a','b'),('a','c'),('ab',''),('',''),('é','x')"},
		"names":                 {"`order` INT, `a\"b` INT, `x.y` INT", "`order`, `a\"b`, `x.y`", "(1,1,1),(1,1,2),(1,2,1),(2,0,0)"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.tiny(1)
			w.cfg.ZeroDates = zeroText
			n := strings.Count(c.values, "),(") + 1
			w.exec("SET NAMES utf8mb4; SET sql_mode = 'ALLOW_INVALID_DATES,NO_ZERO_IN_DATE'; SET time_zone = '+00:00'; CREATE TABLE k ("+c.columns+", PRIMARY KEY ("+c.key+")) CHARACTER SET utf8mb4",
				"SET sql_mode = 'ALLOW_INVALID_DATES'; SET time_zone = '+00:00'; INSERT IGNORE INTO k VALUES "+c.values)
			var in int
			if err := w.db.QueryRow("SELECT COUNT(*) FROM k").Scan(&in); err != nil || in < n-2 {
				t.Fatalf("%d of %d rows are in the table: %v", in, n, err)
			}
			out := newMemory()
			stop := w.run(w.source(out, nil))
			out.awaitCopied(t)
			// The log gives a row the same key.
			w.exec("SET time_zone = '+00:00'; SET sql_mode = ''; CREATE TABLE _old AS SELECT * FROM k; DELETE FROM k")
			out.await(t, "the deletes", func(c []cdc.Change, _ []cdc.Position) bool { return len(c) >= 2*in })
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			keys := map[cdc.Op][]string{}
			for _, c := range out.changes {
				keys[c.Op] = append(keys[c.Op], string(c.Key))
			}
			slices.Sort(keys[cdc.OpRead])
			slices.Sort(keys[cdc.OpDelete])
			if len(keys[cdc.OpRead]) != in {
				t.Errorf("%d rows copied of %d", len(keys[cdc.OpRead]), in)
			}
			if diff := cmp.Diff(keys[cdc.OpDelete], keys[cdc.OpRead]); diff != "" {
				t.Errorf("(-keys in the log +keys copied)\n%s", diff)
			}
		})
	}
}

// asked is what an operator would have written into Kafka.
type asked struct {
	mu      sync.Mutex
	news    []cdc.SnapshotRequest
	deleted []string
}

func (a *asked) ask(r ...cdc.SnapshotRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range r {
		r.Format, r.AtMicros = cdc.SnapshotRequestFormat, time.Now().UnixMicro()
		if r.Want == "" {
			r.Want = cdc.SnapshotRunning
		}
		a.news = append(a.news, r)
	}
}

func (a *asked) Poll(context.Context) ([]cdc.SnapshotRequest, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	news := a.news
	a.news = nil
	return news, nil
}

func (a *asked) Delete(_ context.Context, id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deleted = append(a.deleted, id)
	return nil
}

// awaitSnapshot waits until a snapshot is in one of the states.
func (m *memory) awaitSnapshot(t *testing.T, id string, states ...cdc.SnapshotState) (found cdc.Snapshot) {
	t.Helper()
	m.await(t, fmt.Sprintf("snapshot %s to be %v", id, states), func(_ []cdc.Change, p []cdc.Position) bool {
		if len(p) == 0 {
			return false
		}
		for _, sn := range p[len(p)-1].Snapshots {
			if sn.ID == id && slices.Contains(states, sn.State) {
				found = sn
				return true
			}
		}
		return false
	})
	return found
}

func TestASnapshotThatIsAskedForReadsWhatItNames(t *testing.T) {
	w := newWorld(t)
	w.tiny(2)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)", "INSERT INTO q VALUES (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)", "CREATE TABLE p (id INT PRIMARY KEY)", "INSERT INTO p VALUES (1)",
		"CREATE TABLE s (k VARCHAR(10) COLLATE utf8mb4_general_ci PRIMARY KEY)", "INSERT INTO s VALUES ('abc'), ('a<b')")
	out, requests := newMemory(), &asked{}
	s := w.source(out, nil)
	s.Requests = requests
	stop := w.run(s)
	out.awaitCopied(t)
	w.exec("UPDATE q SET v = v + 10")
	out.awaitChanges(t, 17)
	table := w.name + ".q"
	for _, c := range []struct {
		r       cdc.SnapshotRequest
		state   cdc.SnapshotState
		problem string
		want    []string
	}{
		{cdc.SnapshotRequest{ID: "all", Table: table}, cdc.SnapshotDone, "", []string{"r1", "r2", "r3", "r4", "r5", "r6", "r7"}},
		{cdc.SnapshotRequest{ID: "swept", Table: table, Sweep: true}, cdc.SnapshotDone, "", []string{"r1", "r2", "r3", "r4", "r5", "r6", "r7", "t"}},
		{cdc.SnapshotRequest{ID: "where", Table: table, Where: "v % 2 = 0 -- even\n OR id = 1"}, cdc.SnapshotDone, "", []string{"r1", "r2", "r4", "r6"}},
		{cdc.SnapshotRequest{ID: "keys", Table: table, Keys: raw(`{"id":3}`, `{"id":99}`, `{"id":-5}`, `{"id":7}`)}, cdc.SnapshotDone, "", []string{"r3", "r7", "d99", "d-5"}},
		{cdc.SnapshotRequest{ID: "folded", Table: w.name + ".s", Keys: raw(`{"k":"ABC"}`)}, cdc.SnapshotDone, "", []string{`r"abc"`, `d"ABC"`}},
		{cdc.SnapshotRequest{ID: "escaped", Table: w.name + ".s", Keys: raw(`{"k":"a\u003cb"}`)}, cdc.SnapshotDone, "", []string{`r"a<b"`}},
		{cdc.SnapshotRequest{ID: "no-table", Table: w.name + ".none"}, cdc.SnapshotFailed, "is not captured", nil},
		{cdc.SnapshotRequest{ID: "no-column", Table: table, Where: "nothing = 1"}, cdc.SnapshotFailed, "Unknown column 'nothing'", nil},
		{cdc.SnapshotRequest{ID: "two", Table: table, Where: "1) OR (1"}, cdc.SnapshotFailed, "cannot be used", nil},
		{cdc.SnapshotRequest{ID: "wrong-key", Table: table, Keys: raw(`{"no":3}`)}, cdc.SnapshotFailed, "is no key of", nil},
		{cdc.SnapshotRequest{ID: "two-names", Table: table, Keys: raw(`{"id":3,"id":4}`)}, cdc.SnapshotFailed, "is no key of", nil},
	} {
		out.mu.Lock()
		before := len(out.changes)
		out.mu.Unlock()
		requests.ask(c.r)
		sn := out.awaitSnapshot(t, c.r.ID, cdc.SnapshotDone, cdc.SnapshotFailed)
		if sn.State != c.state || !strings.Contains(sn.Problem, c.problem) {
			t.Errorf("%s ended %s: %s", c.r.ID, sn.State, sn.Problem)
		}
		out.mu.Lock()
		var got []string
		for _, c := range out.changes[before:] {
			_, key, _ := strings.Cut(strings.TrimSuffix(string(c.Key), "}"), ":")
			got = append(got, c.Op.String()+key)
		}
		out.mu.Unlock()
		slices.Sort(got)
		slices.Sort(c.want)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", c.r.ID, diff)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for i, c := range out.changes { // of the copy that sweeps: between its rows and those of the one before
		if c.Op == cdc.OpBarrier && (out.changes[i-1].Version != c.Version+1 || out.changes[i-8].Version > c.Version) {
			t.Errorf("the barrier is at %s, its copy at %s and the one before at %s", c.Version, out.changes[i-1].Version, out.changes[i-8].Version)
		}
	}
	if back := stepsBack(slices.DeleteFunc(out.changes, func(c cdc.Change) bool { return c.Op == cdc.OpDelete })); len(back) > 0 {
		t.Errorf("rows step back: %s", back[0])
	}
}

// A snapshot that the capture has asked for itself may not fail alone: nobody would
// know of the rows that stay as they were.
func TestARepairThatCannotBeMadeStopsTheCapture(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1)")
	out, requests := newMemory(), &asked{}
	s := w.source(out, nil)
	s.Requests = requests
	asks := keyRequests(cdc.TableName{DB: w.name, Table: "q"}, []string{`{"no":3}`}, 2, "test")
	requests.ask(asks...)
	err := w.runToEnd(s)
	if _, stopped := errors.AsType[*Stop](err); !stopped || !strings.Contains(err.Error(), "is no key of") {
		t.Errorf("it ended with %v", err)
	}
	if sn := s.snapshot(asks[0].ID); sn == nil || sn.State != cdc.SnapshotRunning {
		t.Errorf("the repair is %+v", sn)
	}
}

func raw(keys ...string) (list []json.RawMessage) {
	for _, k := range keys {
		list = append(list, json.RawMessage(k))
	}
	return list
}

func TestASnapshotIsPausedResumedAndCancelled(t *testing.T) {
	w := newWorld(t)
	w.tiny(2)
	w.cfg.Snapshot.RowsPerSecond = 40
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)",
		"INSERT INTO q WITH RECURSIVE r AS (SELECT 0 n UNION ALL SELECT n + 1 FROM r WHERE n < 299) SELECT n, n FROM r")
	out, requests := newMemory(), &asked{}
	s := w.source(out, nil)
	s.Requests = requests
	stop := w.run(s)
	var first string
	out.await(t, "the first rows", func(c []cdc.Change, p []cdc.Position) bool {
		if len(c) > 4 {
			first = p[len(p)-1].Snapshots[0].ID
		}
		return len(c) > 4
	})
	table := w.name + ".q"
	requests.ask(cdc.SnapshotRequest{ID: first, Table: table, Want: cdc.SnapshotPaused})
	paused := out.awaitSnapshot(t, first, cdc.SnapshotPaused)
	if paused.Rows > 250 {
		t.Fatalf("paused at %d rows", paused.Rows)
	}
	w.exec("INSERT INTO q VALUES (1000, 1)")
	out.awaitKey(t, `{"id":1000}`) // the log goes on
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	again := newMemory()
	s = w.source(again, &out.pos[len(out.pos)-1])
	s.Requests = requests
	s.Config.Snapshot.RowsPerSecond = 0
	stop = w.run(s)
	w.exec("INSERT INTO q VALUES (1001, 1)")
	again.awaitKey(t, `{"id":1001}`)
	again.mu.Lock()
	for _, c := range again.changes {
		if c.Op == cdc.OpRead {
			t.Errorf("a paused snapshot has copied %s", c.Key)
		}
	}
	again.mu.Unlock()
	requests.ask(cdc.SnapshotRequest{ID: first, Table: table, Want: cdc.SnapshotRunning})
	again.awaitSnapshot(t, first, cdc.SnapshotDone)
	requests.ask(cdc.SnapshotRequest{ID: "again", Table: table, Want: cdc.SnapshotPaused})
	again.awaitSnapshot(t, "again", cdc.SnapshotPaused)
	requests.ask(cdc.SnapshotRequest{ID: "again", Table: table, Want: cdc.SnapshotCancelled})
	again.awaitSnapshot(t, "again", cdc.SnapshotCancelled)
	again.await(t, "the requests to be deleted", func([]cdc.Change, []cdc.Position) bool {
		requests.mu.Lock()
		defer requests.mu.Unlock()
		return slices.Contains(requests.deleted, "again") && slices.Contains(requests.deleted, first)
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var all sink
	all.apply(out.changes)
	all.apply(again.changes)
	if diff := cmp.Diff(w.rows("q"), all.rows); diff != "" {
		t.Errorf("(-table +published)\n%s", diff)
	}
}

// A change of shape in the middle of a copy does not stop it, and no row of the old
// shape comes behind one of the new.
func TestAChangeOfShapeDuringACopy(t *testing.T) {
	w := newWorld(t)
	w.tiny(2)
	w.cfg.Snapshot.RowsPerSecond = 300
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)",
		"INSERT INTO q WITH RECURSIVE r AS (SELECT 0 n UNION ALL SELECT n + 1 FROM r WHERE n < 199) SELECT n, n FROM r")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitChanges(t, 20)
	w.exec("ALTER TABLE q ADD COLUMN x INT DEFAULT 5 FIRST")
	out.awaitChanges(t, 60)
	w.exec("ALTER TABLE q MODIFY v VARCHAR(10)")
	out.awaitChanges(t, 90)
	w.exec("ALTER TABLE q DROP COLUMN v", "UPDATE q SET x = 6 WHERE id = 199")
	out.awaitCopied(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	shapes := []string{}
	for _, c := range out.changes {
		if c.Op == cdc.OpBarrier {
			continue
		}
		var row map[string]any
		if err := json.Unmarshal(c.After, &row); err != nil {
			t.Fatal(err)
		}
		shape := strings.Join(slices.Sorted(maps.Keys(row)), ",")
		if len(shapes) == 0 || shapes[len(shapes)-1] != shape {
			shapes = append(shapes, shape)
		}
	}
	if diff := cmp.Diff([]string{"id,v", "id,v,x", "id,x"}, shapes); diff != "" {
		t.Errorf("shapes in the order of publishing (-want +got)\n%s", diff)
	}
}

// What was read before a statement that changes the table as a whole, such as a
// TRUNCATE, must not be published behind it.
func TestAChunkReadBeforeAStatementOnTheWholeTableIsReadAgain(t *testing.T) {
	w := newWorld(t)
	out := newMemory()
	s := w.source(out, nil)
	s.pos.Epoch = 1
	if err := s.restoreGTIDs(); err != nil {
		t.Fatal(err)
	}
	q, other := cdc.TableName{DB: "d", Table: "q"}, cdc.TableName{DB: "d", Table: "other"}
	j := &job{table: q}
	s.snaps.jobs = map[string]*job{"j": j}
	c := &copier{Source: s}
	for _, statement := range []struct {
		on   cdc.TableName
		want bool
	}{{other, true}, {q, false}} {
		win, err := c.openWindow(t.Context(), q, 0)
		if err != nil {
			t.Fatal(err)
		}
		j.layout = &tableIn{}
		c.buf.reset()
		c.buf.add([]byte(`{"id":1}`), []byte(`{"id":1}`))
		s.snaps.disturbed(statement.on)
		ok, err := c.publish(t.Context(), j, win)
		if err != nil || ok != statement.want || (j.layout != nil) != statement.want {
			t.Errorf("a statement on %s: published %t, layout kept %t, %v", statement.on, ok, j.layout != nil, err)
		}
		c.closeWindow(win)
	}
	if len(out.changes) != 1 || len(s.snaps.windows) != 0 {
		t.Errorf("%d changes, %d windows", len(out.changes), len(s.snaps.windows))
	}
}

// A table that is dropped while it is copied is not waited for: what the copy was to
// sweep is swept, and a table that is made in its place is another one.
func TestATableDroppedDuringItsCopyEndsIt(t *testing.T) {
	w := newWorld(t)
	w.tiny(1)
	w.cfg.Snapshot.RowsPerSecond = 20
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10), (11), (12), (13), (14), (15), (16), (17), (18), (19), (20)")
	out := newMemory()
	s := w.source(out, nil)
	stop := w.run(s)
	out.awaitChanges(t, 2)
	sweep := cdc.Version(1<<42 + 5)
	s.snaps.mu.Lock()
	s.schedule(cdc.Snapshot{ID: "sweep", Table: w.name + ".q", Reason: "test", Sweep: sweep})
	s.snaps.mu.Unlock()
	w.onOneConnection("SET SESSION sql_log_bin = 0", "DROP TABLE q", "SET SESSION sql_log_bin = 1") // the log does not say so
	out.await(t, "the end of the copies", func(_ []cdc.Change, p []cdc.Position) bool {
		sn := p[len(p)-1].Snapshots
		return len(sn) == 2 && !slices.ContainsFunc(sn, func(sn cdc.Snapshot) bool {
			return sn.State != cdc.SnapshotCancelled || sn.Problem != "the table is gone"
		})
	})
	out.mu.Lock()
	last, pos := out.changes[len(out.changes)-1], out.pos[len(out.pos)-1]
	out.mu.Unlock()
	if last.Op != cdc.OpBarrier || last.Version != sweep || last.Table.Table != "q" || pos.Barriers[w.name+".q"] != sweep {
		t.Errorf("the last change is %s of %s at %s, and the position has the barriers %v", last.Op, last.Table, last.Version, pos.Barriers)
	}
	if len(pos.Copied) > 0 {
		t.Errorf("%v are followed", pos.Copied)
	}
	w.exec("CREATE TABLE q (k VARCHAR(10) PRIMARY KEY)", "INSERT INTO q VALUES ('x')")
	out.awaitKey(t, `{"k":"x"}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// What a copier meets that does not go with the table it was to copy is held against
// the log, which may be behind and tell more: that the table went, and what took its
// place.
func TestWhatACopierMeetsIsHeldAgainstTheLog(t *testing.T) {
	const remade, again = "CREATE TABLE q (k INT PRIMARY KEY)", "CREATE TABLE q (id INT PRIMARY KEY)"
	for name, c := range map[string]struct {
		statements []string // before the copier asks
		read       []string // by the log afterwards
		problem    string
		left       string // the snapshot that goes on
	}{
		"dropped, and another renamed in its place": {
			[]string{"DROP TABLE q"}, []string{"DROP TABLE q", "RENAME TABLE _new TO q"}, "", "new",
		},
		"dropped, and the log says nothing":                   {[]string{"DROP TABLE q"}, nil, "", ""},
		"dropped, and made again while the log is waited for": {[]string{"DROP TABLE q"}, []string{again}, "", "old"},
		"dropped, made again, and the log says both":          {[]string{"DROP TABLE q", remade}, []string{"DROP TABLE q", remade}, "", ""},
		"of another key, and the log says nothing":            {[]string{"DROP TABLE q", remade}, nil, "has changed from (id) to (k)", "old"},
		"without a key, and the log says nothing":             {[]string{"ALTER TABLE q DROP PRIMARY KEY"}, nil, "has no primary key", "old"},
		"without a key, and the log says it goes":             {[]string{"ALTER TABLE q DROP PRIMARY KEY"}, []string{"DROP TABLE q"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.exec(again)
			w.exec(c.statements...)
			conn, err := connect(t.Context(), w.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			out := newMemory()
			s := w.source(out, nil)
			s.pos.Epoch = 1
			if s.pos.ServerUUID, err = identify(conn); err != nil {
				t.Fatal(err)
			}
			if err := s.restoreGTIDs(); err != nil { // the log is at its beginning
				t.Fatal(err)
			}
			q := cdc.TableName{DB: w.name, Table: "q"}
			s.pos.Keys = map[string]string{q.String(): "id"}
			s.schedule(cdc.Snapshot{ID: "old", Table: q.String(), GTID: "of a statement", Sweep: 5})
			s.snaps.jobs = map[string]*job{}
			j := s.job(&s.pos.Snapshots[0])
			copier := &copier{Source: s}
			defer copier.disconnect()
			ended := make(chan error, 1)
			go func() {
				ended <- copier.persist(t.Context(), j, "plan", func() error {
					if err := copier.connect(t.Context()); err != nil {
						return err
					}
					_, err := copier.shapeOf(j)
					return err
				})
			}()
			waits := func() bool {
				s.snaps.mu.Lock()
				defer s.snaps.mu.Unlock()
				return len(s.snaps.windows) == 1 && s.snaps.windows[0].due != nil
			}
			for end := time.Now().Add(2 * time.Minute); !waits(); time.Sleep(time.Millisecond) {
				if len(ended) > 0 || time.Now().After(end) {
					t.Fatal("the log is not waited for")
				}
			}
			s.snaps.mu.Lock()
			r := newReader(t.Context(), s, nil)
			for i, q := range c.read {
				if q == again {
					w.exec(again)
				}
				if err := r.act(parseStatement(q, w.name), q, cdc.Version(1<<42+100+i)); err != nil {
					t.Error(err)
				}
			}
			if s.gtids, err = executed(conn); err != nil {
				t.Error(err)
			}
			s.snaps.boundary()
			s.snaps.mu.Unlock()
			err = <-ended
			if c.problem == "" && err != nil || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
				t.Errorf("it ended with %v", err)
			}
			var left string
			for _, sn := range s.pos.Snapshots {
				if sn.State == cdc.SnapshotRunning {
					if left = "old"; sn.ID != "old" {
						left = "new"
					}
				}
			}
			if left != c.left {
				t.Errorf("%q goes on, want %q: %+v", left, c.left, s.pos.Snapshots)
			}
			if follows := c.left != "" || slices.Contains(c.read, remade); s.copied(q) != follows {
				t.Errorf("the table is followed: %t", !follows)
			}
		})
	}
}

// Rows that are too many for a chunk's bytes are read in more windows.
func TestAChunkIsBoundedByBytes(t *testing.T) {
	w := newWorld(t)
	w.cfg.Snapshot.ChunkBytes = 1 << 20
	w.cfg.Snapshot.MaxThreadsRunning = 0
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT, t LONGTEXT)", "INSERT INTO q WITH RECURSIVE r AS (SELECT 0 n UNION ALL SELECT n + 1 FROM r WHERE n < 99) SELECT n, n, REPEAT('x', 300000) FROM r",
		"INSERT INTO q VALUES (500, 500, REPEAT('y', 9000000))")
	out := newMemory()
	s := w.source(out, nil)
	stop := w.run(s)
	out.awaitCopied(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if len(out.changes) != 101 {
		t.Errorf("%d rows copied", len(out.changes))
	}
	// Each window of less than two times the bound saved its progress.
	last, windows := uint64(0), 0
	for _, p := range out.pos {
		if len(p.Snapshots) == 0 {
			continue
		}
		if n := p.Snapshots[0].Rows - last; n > 0 {
			windows++
			last = p.Snapshots[0].Rows
			if n > 5 {
				t.Errorf("a chunk of %d rows of 300 kB", n)
			}
		}
	}
	if windows < 20 {
		t.Errorf("%d windows", windows)
	}
}

// A change reaches the output at once, however slow a copy beside it is.
func TestAChangeDoesNotWaitBehindACopy(t *testing.T) {
	w := newWorld(t)
	w.cfg.Snapshot.MaxThreadsRunning = 0
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)",
		"SET SESSION cte_max_recursion_depth = 1000000; INSERT INTO q WITH RECURSIVE r AS (SELECT 0 n UNION ALL SELECT n + 1 FROM r WHERE n < 49999) SELECT n, n FROM r")
	out := &crowded{memory: newMemory(), space: make(chan struct{}, 1000)}
	s := w.source(out, nil)
	s.Out = out
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	out.space <- struct{}{}
	out.awaitChanges(t, 1) // one slice is out, and for the next there is no room
	for i := range 5 {
		began := time.Now()
		w.exec(fmt.Sprintf("INSERT INTO q VALUES (%d, 1)", 100000+i))
		out.awaitKey(t, fmt.Sprintf(`{"id":%d}`, 100000+i))
		if took := time.Since(began); took > time.Second {
			t.Errorf("the change took %s", took)
		}
	}
	close(out.space)
	out.awaitCopied(t)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// crowded is an output that has room for a slice when the test says so.
type crowded struct {
	*memory
	space chan struct{}
}

func (c *crowded) Room(ctx context.Context) error {
	select {
	case <-c.space:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// What is read must show every transaction before the window: one can stand in the
// log before it can be seen.
func TestAWindowIsReadOnlyOnceItsLowMarkCanBeSeen(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)")
	s := w.source(newMemory(), nil)
	conn, err := connectCopier(t.Context(), w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &copier{Source: s, conn: conn}
	later := uuid.NewString() + ":1"
	low, err := parseGTIDs(flavorMySQL, later)
	if err != nil {
		t.Fatal(err)
	}
	saw := make(chan string, 1)
	var done sync.WaitGroup
	done.Go(func() {
		_, err := c.between(t.Context(), mark{set: low}, func() error {
			n, err := queryOne(conn, "SELECT COUNT(*) FROM "+quoteTable(cdc.TableName{DB: w.name, Table: "q"}))
			saw <- n
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	time.Sleep(200 * time.Millisecond) // a copy that does not wait has read by now
	w.exec("SET SESSION gtid_next = '" + later + "'; INSERT INTO q VALUES (1); SET SESSION gtid_next = AUTOMATIC")
	if n := <-saw; n != "1" {
		t.Errorf("the copy saw %s rows", n)
	}
	done.Wait()
}

// What is older than a copy of the whole table, and not in it, goes with a barrier
// behind the last row.
func TestACopyThatSweepsEndsWithABarrier(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1), (2)")
	out := newMemory()
	s := w.source(out, nil)
	stop := w.run(s)
	out.awaitCopied(t)
	s.snaps.mu.Lock()
	sweep := cdc.Version(1<<42 + 5)
	s.schedule(cdc.Snapshot{ID: "sweep", Table: w.name + ".q", Reason: "test", Sweep: sweep})
	s.snaps.mu.Unlock()
	out.awaitSnapshot(t, "sweep", cdc.SnapshotDone)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	last := out.changes[len(out.changes)-1]
	if len(out.changes) != 5 || last.Op != cdc.OpBarrier || last.Version != sweep || last.Table.Table != "q" {
		t.Errorf("%d changes, the last is %s of %s at %s", len(out.changes), last.Op, last.Table, last.Version)
	}
	if got := out.pos[len(out.pos)-1].Barriers[w.name+".q"]; got != sweep {
		t.Errorf("the position has the barrier %s", got)
	}
}

// Rows that were mended without the log saying so are newer than what the copies before
// read of them, though the log clock stands still, and older than any change behind it.
func TestCopiesOutrankOneAnotherWhileTheLogStandsStill(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)", "INSERT INTO q VALUES (1, 0), (2, 0)")
	out, requests := newMemory(), &asked{}
	s := w.source(out, nil)
	s.Requests = requests
	stop := w.run(s)
	out.awaitCopied(t)
	for i := 1; i < cdc.Turns; i++ {
		w.onOneConnection("SET SESSION sql_log_bin = 0", fmt.Sprintf("UPDATE q SET v = %d", i), "SET SESSION sql_log_bin = 1")
		id := fmt.Sprint("copy-", i)
		s.snaps.mu.Lock()
		s.schedule(cdc.Snapshot{ID: id, Table: w.name + ".q"})
		s.snaps.mu.Unlock()
		out.awaitSnapshot(t, id, cdc.SnapshotDone)
	}
	requests.ask(cdc.SnapshotRequest{ID: "one-more", Table: w.name + ".q"})
	if sn := out.awaitSnapshot(t, "one-more", cdc.SnapshotDone, cdc.SnapshotFailed); sn.State != cdc.SnapshotFailed || !strings.Contains(sn.Problem, "the source has logged no row") {
		t.Errorf("one copy more than there are turns is %s: %s", sn.State, sn.Problem)
	}
	w.exec("UPDATE q SET v = 100 WHERE id = 1")
	out.awaitChanges(t, 2+2*(cdc.Turns-1)+1)
	requests.ask(cdc.SnapshotRequest{ID: "behind", Table: w.name + ".q", Where: "id = 1"})
	out.awaitSnapshot(t, "behind", cdc.SnapshotDone)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	last := map[string]cdc.Change{}
	for _, c := range out.changes {
		if was, seen := last[string(c.Key)]; seen && c.Version <= was.Version {
			t.Errorf("%s of %s at %s comes behind %s at %s", c.Op, c.Key, c.Version, was.Op, was.Version)
		}
		last[string(c.Key)] = c
	}
	if got, want := string(last[`{"id":1}`].After), `{"id":1,"v":100}`; got != want {
		t.Errorf("the newest of row 1 is %s, want %s", got, want)
	}
}

// The rows of a table that came this way before are swept behind its copy, in a new
// pipeline too.
func TestWhatIsKnownFromBeforeIsSweptBehindAFirstCopy(t *testing.T) {
	for name, c := range map[string]struct {
		epoch uint16
		known bool
		want  cdc.Version // of the barrier
	}{
		"known":                       {2, true, 2<<42 - 1},
		"not known":                   {2, false, 0},
		"no version is below its own": {1, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.exec("CREATE TABLE q (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1)")
			out := newMemory()
			s := w.source(out, nil)
			s.FirstEpoch = func(context.Context) (uint16, error) { return c.epoch, nil }
			s.MayCopy = func(context.Context, cdc.Table) (bool, error) { return c.known, nil }
			stop := w.run(s)
			out.awaitCopied(t)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			var got cdc.Version
			for _, change := range out.changes {
				if change.Op == cdc.OpBarrier {
					got = change.Version
				} else if got != 0 {
					t.Errorf("%s of %s behind the barrier", change.Op, change.Key)
				}
			}
			if got != c.want {
				t.Errorf("the barrier has the version %s, want %s", got, c.want)
			}
		})
	}
}

func TestGoneNamesTheRowsThatAreNotThere(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (a INT, b VARCHAR(10), PRIMARY KEY (a, b))", "INSERT INTO q VALUES (1, 'x'), (2, 'y')")
	keys := [][]byte{[]byte(`{"a":1,"b":"x"}`), []byte(`{"a":1,"b":"y"}`), []byte(`{"id":1}`)}
	for table, want := range map[string]map[string]bool{
		"q":    {`{"a":1,"b":"y"}`: true, `{"id":1}`: true},
		"none": {`{"a":1,"b":"x"}`: true, `{"a":1,"b":"y"}`: true, `{"id":1}`: true},
	} {
		got, err := Gone(t.Context(), w.cfg, cdc.TableName{DB: w.name, Table: table}, keys)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", table, err, diff)
		}
	}
}

func TestRowsAreReadAsTheLogHasThem(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (a INT, b VARCHAR(10) COLLATE utf8mb4_0900_ai_ci, n DECIMAL(9,2), at DATETIME(3), secret TEXT, PRIMARY KEY (a, b))",
		`INSERT INTO q VALUES (1, 'x', 1.50, '2026-11-26 10:00:00.5', 'hidden'), (2, 'Y', NULL, NULL, NULL)`)
	w.cfg.Masks = func(cdc.TableName) Masks { return Masks{"secret": "keep last 1, was Password, may be gone"} }
	keys := [][]byte{[]byte(`{"b": "x", "a": 1}`), []byte(`{"a":2,"b":"y"}`), []byte(`{"id":1}`)}
	for table, want := range map[string]map[string]string{
		"q":    {`{"b": "x", "a": 1}`: `{"a":1,"b":"x","n":"1.50","at":"2026-11-26T10:00:00.500","secret":"***n"}`, `{"a":2,"b":"y"}`: "", `{"id":1}`: ""},
		"none": {`{"b": "x", "a": 1}`: "", `{"a":2,"b":"y"}`: "", `{"id":1}`: ""},
	} {
		got := map[string]string{}
		err := Rows(t.Context(), w.cfg, cdc.TableName{DB: w.name, Table: table}, keys, func(key, row []byte, layout uint32) error {
			if _, again := got[string(key)]; again || (layout == 0) != (table == "none") {
				t.Errorf("%s of layout %d", key, layout)
			}
			got[string(key)] = string(row)
			return nil
		})
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", table, err, diff)
		}
	}
	if diff := cmp.Diff(map[string]bool{"secret": true, "password": true}, w.cfg.Masks(cdc.TableName{}).Columns()); diff != "" {
		t.Error(diff)
	}
}

func TestCopiesWaitWhileTheSourceIsBusy(t *testing.T) {
	w := newWorld(t)
	w.tiny(1)
	w.cfg.Snapshot.RowsPerSecond = 2
	w.cfg.Snapshot.MaxThreadsRunning = 1 // the connection that asks is one
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1), (2), (3)")
	var busy []int
	for range 2 { // two threads that run
		conn, err := w.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var id int
		if err := conn.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = conn.ExecContext(context.Background(), "SELECT SLEEP(60)") }()
		busy = append(busy, id)
	}
	lines := &lockedLog{}
	out := newMemory()
	s := w.source(out, nil)
	s.Log = slog.New(slog.NewTextHandler(lines, nil))
	stop := w.run(s)
	lines.await(t, "snapshots wait")
	s.snaps.mu.Lock()
	held := s.snaps.hold
	s.snaps.mu.Unlock()
	if !strings.Contains(held, "threads running") {
		t.Errorf("held because %q", held)
	}
	for _, id := range busy {
		_, _ = w.db.Exec(fmt.Sprintf("KILL %d", id))
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

type lockedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) await(t *testing.T, part string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		l.mu.Lock()
		found := strings.Contains(l.text.String(), part)
		l.mu.Unlock()
		if found {
			return
		}
	}
	t.Fatalf("no line says %q:\n%s", part, l.text.String())
}

// A position of before snapshots were kept in it lists tables whose rows are all in
// Kafka.
func TestTablesCopiedByAnOlderFormatAreNotCopiedAgain(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1)")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitCopied(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	old := out.pos[len(out.pos)-1]
	old.Format, old.Snapshots = 1, nil
	again := newMemory()
	stop = w.run(w.source(again, &old))
	w.exec("INSERT INTO q VALUES (2)")
	again.awaitKey(t, `{"id":2}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`c {"id":2}  -> {"id":2}`}, show(again.changes)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A position keeps the newest snapshots that have ended, and those whose request
// still stands.
func TestOldSnapshotsAreForgottenOnceTheirRequestIsDeleted(t *testing.T) {
	w := &world{t: t}
	s := w.source(newMemory(), nil)
	s.snaps.requests = map[string]cdc.SnapshotRequest{"1": {}}
	for i := range 30 {
		s.schedule(cdc.Snapshot{ID: fmt.Sprint(i), Table: "d.t"})
		if i != 2 {
			s.endSnapshot(fmt.Sprint(i), cdc.SnapshotDone, "")
		}
	}
	var ids []string
	for _, sn := range s.pos.Snapshots {
		ids = append(ids, sn.ID)
	}
	want := append([]string{"1", "2"}, strings.Fields("11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29")...)
	if diff := cmp.Diff(want, ids); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
