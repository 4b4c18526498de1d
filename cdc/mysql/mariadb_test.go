package mysql

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lockstep/cdc"
	"lockstep/internal/secret"
	"lockstep/internal/testenv"
)

func newMariaWorld(t *testing.T) *world {
	t.Helper()
	server := testenv.MariaDB(t)
	name := testenv.Database(t, server)
	cfg := DefaultConfig()
	cfg.Addr, cfg.User, cfg.Password, cfg.ServerID = server.Addr, server.User, secret.Text(server.Password), 90002
	cfg.CheckpointInterval = time.Millisecond
	return &world{t: t, db: testenv.OpenMySQL(t, server, name), name: name, cfg: cfg}
}

// state is what a table is after changes, by key.
func state(changes []cdc.Change) map[string]string {
	rows, versions := map[string]string{}, map[string]cdc.Version{}
	for _, c := range changes {
		if c.Op == cdc.OpBarrier {
			for id, v := range versions {
				if strings.HasPrefix(id, c.Table.Table+"{") && v <= c.Version {
					delete(rows, id)
				}
			}
			continue
		}
		id := c.Table.Table + string(c.Key)
		if c.Version < versions[id] {
			continue
		}
		versions[id] = c.Version
		if rows[id] = string(c.After); c.Op == cdc.OpDelete {
			delete(rows, id)
		}
	}
	return rows
}

// Random changes on a MariaDB, with log_bin_compress on and off, DDL and engines
// without transactions between: the copy and the log end at what the tables are, and a
// re-read from any position gives every change the version it had.
func TestMariaDBFromTheCopyToTheLogAndAgain(t *testing.T) {
	w := newMariaWorld(t)
	w.exec("CREATE TABLE a (id INT PRIMARY KEY, v LONGTEXT, n DECIMAL(20,5), d DATETIME(3), e ENUM('x','y'))", "CREATE TABLE m (id INT PRIMARY KEY, v INT) ENGINE=MyISAM", "CREATE TABLE _not (id INT PRIMARY KEY, v INT)",
		"INSERT INTO a SELECT seq, 'old', seq / 7, NOW(3), 'x' FROM seq_1_to_50")
	out := newMemory()
	s := w.source(out, nil)
	stop := w.run(s)
	out.awaitChanges(t, 50)
	conn, err := w.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	exec := func(q string, args ...any) {
		t.Helper()
		if _, err := conn.ExecContext(t.Context(), q, args...); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	t.Cleanup(func() { _, _ = w.db.Exec("SET GLOBAL log_bin_compress = OFF") })
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 120 {
		if i%10 == 0 {
			exec("SET GLOBAL log_bin_compress = " + []string{"OFF", "ON"}[i/10%2])
			exec("SET GLOBAL log_bin_compress_min_len = 10")
		}
		exec("BEGIN")
		for range 1 + r.IntN(4) {
			id := r.IntN(60)
			switch r.IntN(5) {
			case 0:
				exec("REPLACE INTO a (id, v, n, d, e) VALUES (?, REPEAT('new ', ?), ?, NOW(3), 'y')", id, r.IntN(3000), r.IntN(100))
			case 1:
				exec("DELETE FROM a WHERE id = ?", id)
			case 2:
				exec("UPDATE IGNORE a SET id = id + 7, v = 'moved' WHERE id = ?", id)
			case 3:
				exec("UPDATE a SET n = n + 1 WHERE id < ?", id)
			case 4:
				exec("REPLACE INTO _not VALUES (?, 1)", id)
			}
		}
		exec([]string{"COMMIT", "COMMIT", "ROLLBACK"}[r.IntN(3)])
		exec("REPLACE INTO m VALUES (?, ?)", r.IntN(20), i)
		switch i {
		case 40:
			exec("CREATE TABLE late (id INT PRIMARY KEY, v INT) SELECT seq AS id, 1 AS v FROM seq_1_to_5")
		case 60:
			exec("ALTER TABLE a ADD COLUMN extra INT DEFAULT 3")
			exec("UPDATE a SET extra = 4")
		case 70:
			exec("XA START 'x'")
			exec("INSERT INTO _not VALUES (1000, 1)")
			exec("XA END 'x'")
			exec("XA PREPARE 'x'")
			exec("XA COMMIT 'x'")
		case 80:
			exec("CREATE OR REPLACE VIEW vw AS SELECT 1")
			exec("CREATE TEMPORARY TABLE tmp (id INT)")
			exec("INSERT INTO tmp VALUES (1)")
			exec("DROP TEMPORARY TABLE tmp")
			exec("FLUSH BINARY LOGS")
		case 90: // killed in the middle
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			s = w.source(out, new(out.lastPos()))
			stop = w.run(s)
		}
	}
	exec("INSERT INTO a (id, v) VALUES (-1, 'end')")
	out.awaitKey(t, `{"id":-1}`)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	fresh := newMemory()
	stop = w.run(w.source(fresh, nil))
	fresh.awaitStart(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(state(fresh.changes), state(out.changes)); diff != "" {
		t.Errorf("the tables, and what came of them (-want +got)\n%s", diff)
	}
	versions := map[string]string{}
	for _, c := range out.changes {
		if c.Op != cdc.OpRead && c.Op != cdc.OpBarrier && (c.CommitMicros == 0 || !strings.HasPrefix(c.GTID, "0-2-")) {
			t.Fatalf("a change of GTID %q was committed at %d", c.GTID, c.CommitMicros)
		}
		versions[c.Version.String()+c.Table.Table+string(c.Key)] = fmt.Sprintf("%s %s", c.Op, c.After)
	}
	for i := 1; i < len(out.pos); i += 1 + len(out.pos)/6 {
		again := newMemory()
		s := w.source(again, &out.pos[i])
		if i%2 == 0 {
			all := s.Match
			s.Match = func(t cdc.TableName) bool { return all(t) && t.Table != "m" }
		}
		stop := w.run(s)
		again.awaitKey(t, `{"id":-1}`)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for _, c := range again.changes {
			if c.Op == cdc.OpRead || c.Op == cdc.OpBarrier {
				continue
			}
			if was := versions[c.Version.String()+c.Table.Table+string(c.Key)]; was != fmt.Sprintf("%s %s", c.Op, c.After) {
				t.Fatalf("from position %d: %s %s has version %s, under which it was %q", i, c.Op, c.Key, c.Version, was)
			}
		}
	}
}

// A compressed event counts as what is in it, so that it cannot have more images than
// bytes.
func TestCompressedRowsOfMariaDBHaveVersionsOfTheirOwn(t *testing.T) {
	w := newMariaWorld(t)
	w.exec("CREATE TABLE a (id INT PRIMARY KEY, v INT)")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitStart(t)
	t.Cleanup(func() { _, _ = w.db.Exec("SET GLOBAL log_bin_compress = OFF") })
	w.exec("SET GLOBAL log_bin_compress = ON", "INSERT INTO a SELECT seq, 0 FROM seq_1_to_20000", "UPDATE a SET v = 1", "DELETE FROM a")
	changes := out.awaitChanges(t, 60000)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(changes); i++ {
		if changes[i].Version <= changes[i-1].Version {
			t.Fatalf("change %d has version %s after %s", i, changes[i].Version, changes[i-1].Version)
		}
	}
	const image = 9 // bytes: nulls and two integers
	if span := changes[len(changes)-1].Version - changes[0].Version; span < 3*20_000*image {
		t.Errorf("the clock has moved on by %d bytes over 80,000 images of %d", span, image)
	}
}

func TestWhatCannotBeFollowedOfMariaDBStops(t *testing.T) {
	for name, c := range map[string]struct {
		statements []string
		want       string
	}{
		"XA":                {[]string{"XA START 'x'", "INSERT INTO q VALUES (8)", "XA END 'x'", "XA PREPARE 'x'", "XA COMMIT 'x'"}, "XA transaction"},
		"statement":         {[]string{"SET SESSION binlog_format = STATEMENT", "INSERT INTO q VALUES (5)"}, "by statement"},
		"a history":         {[]string{"CREATE TABLE v (id INT PRIMARY KEY, x INT) WITH SYSTEM VERSIONING"}, "system-versioned"},
		"a history by LIKE": {[]string{"CREATE TABLE _v (id INT PRIMARY KEY, x INT) WITH SYSTEM VERSIONING", "CREATE TABLE v LIKE _v"}, "system-versioned"},
		"a history of q":    {[]string{"ALTER TABLE q ADD SYSTEM VERSIONING"}, "system-versioned"},
		"compressed statement": {[]string{"SET GLOBAL log_bin_compress = ON", "SET SESSION binlog_format = STATEMENT",
			"INSERT INTO q VALUES (5)" + strings.Repeat(" ", 1000)}, "by statement"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newMariaWorld(t)
			t.Cleanup(func() { _, _ = w.db.Exec("SET GLOBAL log_bin_compress = OFF") })
			w.exec("CREATE TABLE q (id INT PRIMARY KEY)")
			out := newMemory()
			s := w.source(out, nil)
			ended := make(chan error, 1)
			go func() { ended <- s.Run(t.Context()) }()
			out.awaitStart(t)
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
			select {
			case err = <-ended:
			case <-time.After(2 * time.Minute):
				t.Fatal("it did not stop in 2m")
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "--skip-gtid 0-2-") {
				t.Fatalf("ended with %v; want %q", err, c.want)
			}
		})
	}
}

func TestTheDoctorOnMariaDB(t *testing.T) {
	w := newMariaWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)")
	findings, err := Inspect(t.Context(), w.cfg, func(t cdc.TableName) bool { return t.DB == w.name })
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if !f.OK {
			t.Errorf("%s: %s; mend it with: %s", f.Check, f.Detail, f.Fix)
		}
	}
	account := "r" + w.name[len(w.name)-10:]
	w.exec("CREATE USER '"+account+"'@'%' IDENTIFIED BY 'a-Password-1'", "GRANT REPLICATION SLAVE, BINLOG MONITOR, SELECT ON *.* TO '"+account+"'@'%'")
	t.Cleanup(func() { w.exec("DROP USER '" + account + "'@'%'") })
	w.cfg.User, w.cfg.Password = account, "a-Password-1"
	findings, err = Inspect(t.Context(), w.cfg, func(t cdc.TableName) bool { return t.DB == w.name })
	if err != nil || !slices.ContainsFunc(findings, func(f Finding) bool {
		return !f.OK && f.Fix == "GRANT SLAVE MONITOR ON *.* TO '"+account+"'@'%'"
	}) {
		t.Errorf("without SLAVE MONITOR: %+v, %v", findings, err)
	}
}

// The doctor compares a saved position with what a MariaDB has and has purged.
func TestTheDoctorComparesThePositionWithAMariaDB(t *testing.T) {
	m := testenv.NewMariaDB(t)
	m.Exec(t, "CREATE DATABASE shop", "CREATE TABLE shop.q (id INT PRIMARY KEY)", "INSERT INTO shop.q VALUES (1)")
	cfg := DefaultConfig()
	cfg.Addr, cfg.User, cfg.Password, cfg.ServerID = m.Addr, m.User, secret.Text(m.Password), 90003
	conn, err := connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	id, err := identify(conn)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(saved *cdc.Position, want ...string) {
		t.Helper()
		found, err := InspectPlace(t.Context(), cfg, saved, false)
		if err != nil {
			t.Error(err)
		}
		var got []string
		for _, f := range found {
			if !f.OK {
				got = append(got, f.Check+": "+f.Detail)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("findings (-want +got)\n%s\n%+v", diff, found)
		}
	}
	const state = "SELECT @@GLOBAL.gtid_binlog_state"
	at := func(set string) *cdc.Position {
		return &cdc.Position{Flavor: flavorMariaDB, ServerUUID: id, GTIDSet: set, Epoch: 1, CommitMicros: time.Now().UnixMicro()}
	}
	expect(nil)
	before := m.Value(t, state)
	expect(at(before))
	m.Exec(t, "INSERT INTO shop.q VALUES (2)", "FLUSH BINARY LOGS")
	expect(at(before))
	expect(at("0-77-1000000"), "lost tail: transactions that are in Kafka already are not on this server: 0-77-5 to 0-77-1000000")
	eventually(t, "the log is purged", func() bool {
		m.Exec(t, "PURGE BINARY LOGS TO '"+lastLog(t, m)+"'")
		var first, size string
		if err := m.DB().QueryRow("SHOW BINARY LOGS").Scan(&first, &size); err != nil {
			t.Fatal(err)
		}
		return first == lastLog(t, m)
	})
	expect(at(before), "gap: the server has purged log that was not read yet: "+m.Value(t, state))
	expect(&cdc.Position{ServerUUID: id, GTIDSet: "", Epoch: 1}, "position: it is of mysql, and the server is MariaDB "+conn.GetServerVersion()+", server "+id)
	m.Exec(t, "SET GLOBAL binlog_expire_logs_seconds = 3600")
	expect(nil, "log retention: the log is kept for 1h0m0s; a capture that stands still for longer finds it purged, and 24h0m0s is the least that is advised")
}

// A MariaDB does not log the rows that a foreign key changes. A captured table that has
// such a rule, or gets one, stops the capture; that the account may only read changes
// nothing.
func TestCascadesOfMariaDBAreRefusedWheneverTheyCome(t *testing.T) {
	const rule = "FOREIGN KEY (p) REFERENCES p (id) ON DELETE "
	for name, c := range map[string]struct {
		setup, statements []string
		mend              string
		skippable         bool
	}{
		"there at the start": {setup: []string{"CREATE TABLE c (id INT PRIMARY KEY, p INT, " + rule + "SET NULL)"}},
		"made with a table":  {statements: []string{"CREATE TABLE c (id INT PRIMARY KEY, p INT, CONSTRAINT f " + rule + "CASCADE)"}, mend: "ALTER TABLE c DROP FOREIGN KEY f", skippable: true},
		"added to a table": {setup: []string{"CREATE TABLE c (id INT PRIMARY KEY, p INT)"},
			statements: []string{"ALTER TABLE c ADD CONSTRAINT f FOREIGN KEY (p) REFERENCES p (id) ON UPDATE /* */ cascade"}, mend: "ALTER TABLE c DROP FOREIGN KEY f", skippable: true},
		"renamed into sight": {setup: []string{"CREATE TABLE _c (id INT PRIMARY KEY, p INT, " + rule + "CASCADE)"}, statements: []string{"RENAME TABLE _c TO c"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newMariaWorld(t)
			w.exec("CREATE TABLE p (id INT PRIMARY KEY)", "CREATE TABLE harmless (id INT PRIMARY KEY, p INT, at TIMESTAMP ON UPDATE CURRENT_TIMESTAMP, "+rule+"RESTRICT)")
			w.exec(c.setup...)
			out := newMemory()
			s := w.source(out, nil)
			ended := make(chan error, 1)
			go func() { ended <- w.runToEnd(s) }()
			if len(c.statements) > 0 {
				out.awaitTables(t, w.name+".p", w.name+".harmless")
				w.exec(c.statements...)
			}
			err := <-ended
			if _, stopped := errors.AsType[*Stop](err); !stopped || !strings.Contains(err.Error(), "foreign key") || !strings.Contains(err.Error(), w.name+".c") {
				t.Fatalf("ended with %v", err)
			}
			_, gtid, found := strings.Cut(err.Error(), "--skip-gtid ")
			gtid, _, _ = strings.Cut(gtid, ",")
			if found != c.skippable {
				t.Fatalf("names a way past: %t, want %t: %v", found, c.skippable, err)
			}
			if !found {
				return
			}
			findings, err := Inspect(t.Context(), w.cfg, s.Match)
			if err != nil || !slices.ContainsFunc(findings, func(f Finding) bool {
				return !f.OK && f.Check == "foreign keys" && strings.Contains(f.Detail, w.name+".c")
			}) {
				t.Errorf("the doctor finds %+v, %v", findings, err)
			}
			w.exec(c.mend, "INSERT INTO p VALUES (1)", "INSERT INTO c VALUES (7, 1)")
			again := newMemory()
			s = w.source(again, &out.pos[len(out.pos)-1])
			s.SkipGTID = gtid
			stop := w.run(s)
			again.awaitKey(t, `{"id":7}`)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
