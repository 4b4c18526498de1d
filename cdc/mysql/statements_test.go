package mysql

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lockstep/cdc"
)

// What a statement does to captured tables reaches the sinks: as a barrier where
// rows are gone, as a new copy with a sweep where others may have taken their place,
// and not at all where they stay as they are.
func TestStatementsReachTheSinks(t *testing.T) {
	for name, c := range map[string]struct {
		setup, statements []string
		leave             bool     // after_alter
		barriers, copies  []string // tables
		followed          []string // in the end, beside end
		created           string   // rows, in their order
	}{
		"truncate": {
			statements: []string{"TRUNCATE TABLE q", "INSERT INTO q VALUES (2)"},
			barriers:   []string{"q"}, followed: []string{"q"},
		},
		"truncate by statement": {
			statements: []string{"SET SESSION binlog_format = STATEMENT", "TRUNCATE q", "SET SESSION binlog_format = ROW"},
			barriers:   []string{"q"}, followed: []string{"q"},
		},
		"drop, and a table of another key in its place": {
			statements: []string{"DROP TABLE q", "CREATE TABLE q (k VARCHAR(10) PRIMARY KEY, n INT)", "INSERT INTO q VALUES ('x', 1)"},
			barriers:   []string{"q"}, followed: []string{"q"},
		},
		"drop of several, of which one is not there": {
			setup:      []string{"CREATE TABLE r (id INT PRIMARY KEY)", "CREATE TABLE _s (id INT PRIMARY KEY)"},
			statements: []string{"DROP TABLE IF EXISTS q, nosuch, r, _s"},
			barriers:   []string{"q", "r"},
		},
		"drop of a table that was never there": {
			statements: []string{"DROP TABLE IF EXISTS nosuch"}, followed: []string{"q"},
		},
		"rename out of sight": {
			statements: []string{"RENAME TABLE q TO _q"}, barriers: []string{"q"},
		},
		"rename into sight": {
			setup:      []string{"CREATE TABLE _r (id INT PRIMARY KEY)", "INSERT INTO _r VALUES (5)"},
			statements: []string{"RENAME TABLE _r TO r"}, copies: []string{"r"}, followed: []string{"q", "r"},
		},
		"rename within sight": {
			statements: []string{"ALTER TABLE q RENAME TO r", "INSERT INTO r VALUES (2)"},
			barriers:   []string{"q"}, copies: []string{"r"}, followed: []string{"r"},
		},
		"swap of an online schema change": {
			statements: []string{"CREATE TABLE _q_gho LIKE q", "ALTER TABLE _q_gho ADD COLUMN n INT DEFAULT 7", "INSERT INTO _q_gho (id) SELECT id FROM q",
				"RENAME TABLE q TO _q_del, _q_gho TO q", "INSERT INTO q VALUES (2, 8)", "DROP TABLE _q_del"},
			copies: []string{"q"}, followed: []string{"q"},
		},
		"swap of two": {
			setup:      []string{"CREATE TABLE r (id INT PRIMARY KEY)"},
			statements: []string{"RENAME TABLE q TO _x, r TO q, _x TO r"}, copies: []string{"q", "r"}, followed: []string{"q", "r"},
		},
		"partitions": {
			setup:      []string{"CREATE TABLE p (id INT PRIMARY KEY) PARTITION BY RANGE (id) (PARTITION a VALUES LESS THAN (10), PARTITION b VALUES LESS THAN (20), PARTITION c VALUES LESS THAN (30))", "INSERT INTO p VALUES (5), (15)"},
			statements: []string{"ALTER TABLE p EXCHANGE PARTITION a WITH TABLE q", "ALTER TABLE p TRUNCATE PARTITION b", "ALTER TABLE p REBUILD PARTITION a, b", "ALTER TABLE p DROP PARTITION b"},
			copies:     []string{"p", "q", "p", "p"}, followed: []string{"p", "q"},
		},
		"a tablespace": {
			statements: []string{"ALTER TABLE q DISCARD TABLESPACE"}, barriers: []string{"q"}, followed: []string{"q"},
		},
		"alter": {
			statements: []string{"ALTER TABLE q ADD COLUMN n INT DEFAULT 7", "INSERT INTO q VALUES (2, 8)", "ALTER TABLE q MODIFY n BIGINT FIRST", "INSERT INTO q VALUES (3, 3)", "ALTER TABLE q DROP COLUMN n", "INSERT INTO q VALUES (4)"},
			copies:     []string{"q", "q", "q"}, followed: []string{"q"},
		},
		"alter, and rows are to be left": {
			leave:      true,
			statements: []string{"ALTER TABLE q ADD COLUMN n INT DEFAULT 7", "INSERT INTO q VALUES (2, 8)"}, followed: []string{"q"},
		},
		"alter that changes no rows": {
			statements: []string{"ALTER TABLE q ADD INDEX i (id), COMMENT 'x', ALGORITHM = INPLACE", "ALTER TABLE q DROP PRIMARY KEY, ADD PRIMARY KEY (ID)", "ALTER TABLE q ENGINE = InnoDB"}, followed: []string{"q"},
		},
		"tables that are made": {
			statements: []string{"CREATE TABLE a LIKE q", "CREATE TABLE b (PRIMARY KEY (id)) SELECT id FROM q", "INSERT INTO a VALUES (9)", "CREATE TABLE IF NOT EXISTS q (id INT PRIMARY KEY)"},
			followed:   []string{"a", "b", "q"}, created: `b{"id":1} a{"id":9}`,
		},
		"a table that is made if it is not there": {
			statements: []string{"CREATE TABLE IF NOT EXISTS a (id INT PRIMARY KEY)", "INSERT INTO a VALUES (1)"},
			followed:   []string{"a", "q"}, created: `a{"id":1}`, // and nothing is swept
		},
	} {
		bothFlavors(t, name, func(t *testing.T, w *world) {
			if c.leave {
				w.cfg.AfterAlter = alterLeave
			}
			w.exec("CREATE TABLE end (id INT PRIMARY KEY)", "CREATE TABLE q (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1)")
			w.exec(c.setup...)
			out := newMemory()
			stop := w.run(w.source(out, nil))
			out.awaitTables(t, w.name+".q")
			w.onOneConnection(c.statements...)
			w.exec("INSERT INTO end VALUES (777)")
			out.awaitKey(t, `{"id":777}`)
			out.awaitSaved(t)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			pos := out.pos[len(out.pos)-1]
			var barriers, copies, followed []string
			sweeps := map[string]bool{}
			for _, p := range out.pos {
				for _, sn := range p.Snapshots {
					if sn.Sweep == 0 || slices.Contains(copies, sn.ID) { // the first copy
						continue
					}
					copies, sweeps[sn.Table+sn.Sweep.String()] = append(copies, sn.ID), true
					if !strings.HasSuffix(sn.Reason, " in "+sn.GTID) {
						t.Errorf("a copy whose reason names no transaction: %+v", sn)
					}
				}
			}
			for i, change := range out.changes {
				if change.Op != cdc.OpBarrier || sweeps[change.Table.String()+change.Version.String()] {
					continue
				}
				barriers = append(barriers, change.Table.Table)
				if pos.Barriers[change.Table.String()] < change.Version {
					t.Errorf("the position knows of barrier %v, not of %s", pos.Barriers, change.Version)
				}
				for j, other := range out.changes {
					if other.Table == change.Table && j != i && (j < i) != (other.Version < change.Version) {
						t.Errorf("the barrier of %s has version %s at %d, %s of %s %s at %d", change.Table, change.Version, i, other.Op, other.Key, other.Version, j)
					}
				}
			}
			for i, id := range copies {
				id = strings.TrimPrefix(id, w.name+".")
				copies[i], _, _ = strings.Cut(id, "-")
			}
			for _, name := range pos.Copied {
				if name != w.name+".end" {
					followed = append(followed, strings.TrimPrefix(name, w.name+"."))
				}
			}
			if c.created != "" {
				var created []string
				for _, change := range out.changes {
					if change.Op == cdc.OpCreate && change.Table.Table != "end" {
						created = append(created, change.Table.Table+string(change.Key))
					}
				}
				if got := strings.Join(created, " "); got != c.created {
					t.Errorf("rows made: %s; want %s", got, c.created)
				}
			}
			if diff := cmp.Diff([][]string{c.barriers, c.copies, c.followed}, [][]string{barriers, copies, followed}); diff != "" {
				t.Errorf("barriers, copies, tables that are followed (-want +got)\n%s\n%s", diff, strings.Join(show(out.changes), "\n"))
			}
		})
	}
}

// bothFlavors runs a test on a MySQL and on a MariaDB.
func bothFlavors(t *testing.T, name string, test func(*testing.T, *world)) {
	t.Run(name+" on MySQL", func(t *testing.T) { test(t, newWorld(t)) })
	t.Run(name+" on MariaDB", func(t *testing.T) { test(t, newMariaWorld(t)) })
}

// awaitTables waits until tables are followed and no copy of them is under way.
func (m *memory) awaitTables(t *testing.T, tables ...string) {
	t.Helper()
	m.await(t, "the first copies", func(_ []cdc.Change, p []cdc.Position) bool {
		for _, name := range tables {
			if len(p) < 2 || !slices.Contains(p[len(p)-1].Copied, name) ||
				slices.ContainsFunc(p[len(p)-1].Snapshots, func(sn cdc.Snapshot) bool { return sn.Table == name && sn.State == cdc.SnapshotRunning }) {
				return false
			}
		}
		return true
	})
}

// onOneConnection executes statements of which some set what later ones need.
func (w *world) onOneConnection(statements ...string) {
	w.t.Helper()
	conn, err := w.db.Conn(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	for _, q := range statements {
		if _, err := conn.ExecContext(w.t.Context(), q); err != nil {
			w.t.Fatalf("%s: %v", q, err)
		}
	}
}

// Rows before and behind an ALTER TABLE are read each by its own columns.
func TestRowsAreReadByTheColumnsTheyWereWrittenWith(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, a VARCHAR(10))")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitTables(t, w.name+".q")
	w.exec("INSERT INTO q VALUES (1, 'x')", "ALTER TABLE q ADD COLUMN n INT UNSIGNED DEFAULT 7 FIRST", "INSERT INTO q VALUES (8, 2, 'y')",
		"ALTER TABLE q RENAME COLUMN a TO b, ALGORITHM = INSTANT", "UPDATE q SET b = 'z' WHERE id = 1",
		"ALTER TABLE q MODIFY n VARCHAR(5) AFTER b", "INSERT INTO q VALUES (3, 'w', '9')", "ALTER TABLE q DROP COLUMN b", "INSERT INTO q VALUES (4, NULL)", "DELETE FROM q WHERE id = 2")
	out.await(t, "the delete", func(c []cdc.Change, _ []cdc.Position) bool {
		return slices.ContainsFunc(c, func(c cdc.Change) bool { return c.Op == cdc.OpDelete })
	})
	changes := out.changes
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`c {"id":1}  -> {"id":1,"a":"x"}`,
		`c {"id":2}  -> {"n":8,"id":2,"a":"y"}`,
		`u {"id":1} {"n":7,"id":1,"b":"x"} -> {"n":7,"id":1,"b":"z"}`,
		`c {"id":3}  -> {"id":3,"b":"w","n":"9"}`,
		`c {"id":4}  -> {"id":4,"n":null}`,
		`d {"id":2} {"id":2,"n":"8"} -> `,
	}
	changes = slices.DeleteFunc(changes, func(c cdc.Change) bool { return c.Op == cdc.OpRead || c.Op == cdc.OpBarrier }) // of the copies behind each
	if diff := cmp.Diff(want, show(changes)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// DROP DATABASE takes every captured table of it.
func TestADatabaseThatIsDroppedTakesItsTablesAlong(t *testing.T) {
	w := newWorld(t)
	other := w.name + "x"
	w.exec("CREATE TABLE end (id INT PRIMARY KEY)", "CREATE DATABASE "+other, "CREATE TABLE "+other+".a (id INT PRIMARY KEY)", "CREATE TABLE "+other+".b (id INT PRIMARY KEY)", "CREATE TABLE "+other+"._c (id INT PRIMARY KEY)")
	t.Cleanup(func() { w.exec("DROP DATABASE IF EXISTS " + other) })
	out := newMemory()
	s := w.source(out, nil)
	s.Match = func(t cdc.TableName) bool {
		return (t.DB == w.name || t.DB == other) && !strings.HasPrefix(t.Table, "_")
	}
	stop := w.run(s)
	out.awaitTables(t, other+".a", other+".b")
	w.exec("DROP DATABASE "+other, "INSERT INTO end VALUES (777)")
	out.awaitKey(t, `{"id":777}`)
	out.awaitSaved(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range out.changes {
		got = append(got, fmt.Sprintf("%s %s", c.Op, c.Table))
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"c " + w.name + ".end", "t " + other + ".a", "t " + other + ".b"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{w.name + ".end"}, out.pos[len(out.pos)-1].Copied); diff != "" {
		t.Errorf("followed (-want +got)\n%s", diff)
	}
}

// The sinks know rows by the primary key, so another one is refused before a row of
// it is met.
func TestAnotherPrimaryKeyIsRefusedAtItsStatement(t *testing.T) {
	for _, alter := range []string{"ADD COLUMN n INT NOT NULL DEFAULT 1, DROP PRIMARY KEY, ADD PRIMARY KEY (n, id)", "DROP PRIMARY KEY"} {
		w := newWorld(t)
		w.exec("CREATE TABLE q (id INT PRIMARY KEY)", "INSERT INTO q VALUES (1)")
		out := newMemory()
		s := w.source(out, nil)
		ended := make(chan error, 1)
		go func() { ended <- w.runToEnd(s) }()
		out.await(t, "the key", func(_ []cdc.Change, p []cdc.Position) bool {
			return len(p) > 0 && p[len(p)-1].Keys[w.name+".q"] != ""
		})
		out.awaitCopied(t) // else the copy may see it first
		w.exec("ALTER TABLE q " + alter)
		var stop *Stop
		if err := <-ended; !errors.As(err, &stop) || !strings.Contains(err.Error(), "primary key of "+w.name+".q has changed from (id)") {
			t.Errorf("%s: ended with %v", alter, err)
		}
	}
}

// A copy reads a table as it is now, while the log may not have told yet that it was
// altered: the chunk is read again, and in the end every row has its newest shape.
func TestACopyOutlivesTheAlterationsOfItsTable(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE end (id INT PRIMARY KEY)", "CREATE TABLE q (id INT PRIMARY KEY, v INT)",
		"INSERT INTO q WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) SELECT i, i FROM n")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitTables(t, w.name+".q", w.name+".end")
	for range 12 {
		w.exec("ALTER TABLE q MODIFY v VARCHAR(10)", "ALTER TABLE q MODIFY v INT")
	}
	w.exec("ALTER TABLE q MODIFY v VARCHAR(10), ADD COLUMN n INT DEFAULT 5", "INSERT INTO end VALUES (777)")
	out.awaitKey(t, `{"id":777}`)
	out.awaitTables(t, w.name+".q")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	last := map[string]cdc.Change{}
	for _, c := range out.changes {
		if c.Table.Table == "q" && c.Version >= last[string(c.Key)].Version {
			last[string(c.Key)] = c
		}
	}
	barrier := last[""]
	for i := 1; i <= 300; i++ {
		c := last[fmt.Sprintf(`{"id":%d}`, i)]
		if want := fmt.Sprintf(`{"id":%d,"v":"%d","n":5}`, i, i); string(c.After) != want || c.Version <= barrier.Version {
			t.Fatalf("row %d ends as %s at %s, behind a barrier at %s; want %s", i, c.After, c.Version, barrier.Version, want)
		}
	}
}
