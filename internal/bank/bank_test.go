package bank

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"lockstep/internal/testenv"
)

func openBank(t *testing.T) *sql.DB {
	t.Helper()
	server := testenv.MySQL(t)
	name := fmt.Sprintf("bank_%d_%d", os.Getpid(), time.Now().UnixNano())
	db, err := Open(t.Context(), server.Addr, testenv.AdminUser, testenv.AdminPassword, name)
	must(t, err)
	t.Cleanup(func() {
		_, err := db.ExecContext(context.Background(), "DROP DATABASE "+name)
		must(t, err)
		must(t, db.Close())
	})
	return db
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, db *sql.DB, query string) (n int64) {
	t.Helper()
	must(t, db.QueryRowContext(t.Context(), query).Scan(&n))
	return n
}

func rows(t *testing.T, db *sql.DB) (n int64) {
	t.Helper()
	for _, table := range Tables {
		n += count(t, db, "SELECT COUNT(*) FROM "+table)
	}
	return n
}

func checksum(t *testing.T, db *sql.DB, table string) (sum int64) {
	t.Helper()
	var name string
	must(t, db.QueryRowContext(t.Context(), "CHECKSUM TABLE "+table).Scan(&name, &sum))
	return sum
}

func TestTheSameSeedGivesTheSameRows(t *testing.T) {
	a, b, other := openBank(t), openBank(t), openBank(t)
	for db, seed := range map[*sql.DB]uint64{a: 1, b: 1, other: 2} {
		must(t, Create(t.Context(), db))
		must(t, Seed(t.Context(), db, 300, seed))
	}
	for _, table := range Tables {
		if checksum(t, a, table) != checksum(t, b, table) {
			t.Errorf("%s differs between two banks of one seed", table)
		}
		if checksum(t, a, table) == checksum(t, other, table) {
			t.Errorf("%s is the same for two seeds", table)
		}
	}
	if n := count(t, a, "SELECT COUNT(*) FROM questions"); n != 300 {
		t.Errorf("want 300 questions, got %d", n)
	}
	for _, want := range []string{
		"SELECT COUNT(*) FROM questions WHERE status = 'draft' AND published_at IS NULL",
		"SELECT COUNT(*) FROM questions WHERE status = 'published' AND published_at IS NOT NULL",
		"SELECT COUNT(*) FROM questions WHERE labels = ''",
		"SELECT COUNT(*) FROM test_cases WHERE hidden = 1 AND grace > '24:00:00'",
	} {
		if count(t, a, want) == 0 {
			t.Errorf("%s: want some", want)
		}
	}
}

func TestTheWorkloadCountsWhatMySQLCommitted(t *testing.T) {
	db := openBank(t)
	must(t, Create(t.Context(), db))
	must(t, Seed(t.Context(), db, 8, 1))
	before := rows(t, db)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	w := &Workload{DB: db, Seed: 7, Connections: 8}
	must(t, w.Run(ctx))
	s := w.Stats()
	t.Log(s)
	if got, want := rows(t, db)-before, s.Inserts-s.Deletes; got != want {
		t.Errorf("%d inserts and %d deletes were counted, but the tables grew by %d rows", s.Inserts, s.Deletes, got)
	}
	for name, n := range map[string]int64{"transactions": s.Transactions, "inserts": s.Inserts, "updates": s.Updates, "deletes": s.Deletes, "key updates": s.KeyUpdates} {
		if n < 10 {
			t.Errorf("want some %s, got %d", name, n)
		}
	}
	if s.LateMax != 0 {
		t.Errorf("a workload without a rate cannot be late, got %s", s.LateMax)
	}
}

func TestTheWorkloadKeepsItsRate(t *testing.T) {
	db := openBank(t)
	must(t, Create(t.Context(), db))
	must(t, Seed(t.Context(), db, 200, 1))
	const rate = 100
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	w := &Workload{DB: db, Rate: rate, Seed: 7, Connections: 4}
	must(t, w.Run(ctx))
	s := w.Stats()
	t.Log(s)
	most := int64(s.Elapsed.Seconds()*rate) + 1
	if s.Transactions > most || s.Transactions < 10 { // a slow machine makes fewer
		t.Errorf("want %d transactions at most in %s, got %d", most, s.Elapsed, s.Transactions)
	}
	if s.LateP50 > s.LateP99 || s.LateP99 > s.LateMax || s.LateMax == 0 {
		t.Errorf("want lateness in order, got P50 %s, P99 %s, most %s", s.LateP50, s.LateP99, s.LateMax)
	}
	few := &Workload{DB: db, Rate: 1000, Most: 20, Seed: 8}
	must(t, few.Run(t.Context()))
	if s := few.Stats(); s.Transactions != 20 {
		t.Errorf("a load of 20 transactions has made %d", s.Transactions)
	}
}

func TestAKeyThatWasDeletedComesBack(t *testing.T) {
	w := &Workload{deleted: []uint64{3}}
	w.lastID.Store(10)
	c := &change{w: w, rng: rand.New(rand.NewPCG(1, 1))}
	var got []uint64
	for range 50 {
		got = append(got, c.freshID())
	}
	slices.Sort(got)
	if got[0] != 3 || len(slices.Compact(got)) != 50 || slices.Max(got) != 59 {
		t.Fatalf("want 3 once and 11 to 59, got %v", got)
	}
}

func TestThePoisonRowIsLeftAloneByTheWorkload(t *testing.T) {
	db := openBank(t)
	must(t, Create(t.Context(), db))
	must(t, Seed(t.Context(), db, 20, 1))
	id, err := PlantPoison(t.Context(), db)
	must(t, err)
	second, err := PlantPoison(t.Context(), db)
	must(t, err)
	if second == id {
		t.Fatalf("want two rows, got %d twice", id)
	}
	poison := fmt.Sprintf("SELECT CRC32(CONCAT_WS('|', slug, title, views, updated_at)) FROM questions WHERE id = %d AND JSON_TYPE(settings) = 'STRING'", id)
	before := count(t, db, poison)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	w := &Workload{DB: db, Seed: 3}
	must(t, w.Run(ctx))
	if after := count(t, db, poison); after != before {
		t.Fatal("the poison row changed")
	}
	if n := count(t, db, fmt.Sprintf("SELECT COUNT(*) FROM questions WHERE id > %d AND id < %d", 1_000_000, id)); n != 0 {
		t.Fatalf("%d questions were given ids near the poison row", n)
	}
}

func TestADeadlockIsTriedAgainAndAnotherErrorIsNot(t *testing.T) {
	for err, want := range map[error]bool{
		fmt.Errorf("update: %w", &mysql.MySQLError{Number: 1213}): true,
		fmt.Errorf("update: %w", &mysql.MySQLError{Number: 1205}): true,
		&mysql.MySQLError{Number: 1062}:                           false,
		errors.New("Error 1213: Deadlock found"):                  false,
	} {
		if got := lostLock(err); got != want {
			t.Errorf("%v: want %t, got %t", err, want, got)
		}
	}
}

func TestAllTypesTakesEveryEdgeAndChangesThem(t *testing.T) {
	db := openBank(t)
	must(t, CreateAllTypes(t.Context(), db))
	n, err := SeedAllTypes(t.Context(), db, 50, 1)
	must(t, err)
	if got := count(t, db, "SELECT COUNT(*) FROM all_types"); got != int64(n) || n != len(edgeRows)+50 {
		t.Fatalf("want %d rows, got %d", n, got)
	}
	for _, column := range typeColumns {
		if count(t, db, "SELECT COUNT("+column+") FROM all_types") == 0 {
			t.Errorf("%s is NULL everywhere", column)
		}
		if count(t, db, "SELECT COUNT(*) FROM all_types WHERE "+column+" IS NULL") == 0 {
			t.Errorf("%s is NULL nowhere", column)
		}
	}
	if got := count(t, db, `SELECT COUNT(*) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'all_types'`); got != int64(len(typeColumns))+1 {
		t.Errorf("want %d columns, got %d", len(typeColumns)+1, got)
	}
	if count(t, db, "SELECT COUNT(*) FROM all_types WHERE t_big_u = 18446744073709551615 AND t_bit64 = 18446744073709551615") == 0 {
		t.Error("the greatest numbers are missing")
	}
	before := checksum(t, db, "all_types")
	must(t, ChangeAllTypes(t.Context(), db, 2))
	if checksum(t, db, "all_types") == before {
		t.Error("nothing changed")
	}
	if got := count(t, db, "SELECT COUNT(*) FROM all_types"); got != int64(n) {
		t.Errorf("want %d rows still, got %d", n, got)
	}
}
