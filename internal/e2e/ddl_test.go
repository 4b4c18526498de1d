package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"lockstep/internal/oracle"
)

// shop adds a table of orders to a world, and the whole database to what is
// captured, so that tables made later are as well.
func (w *world) shop() {
	w.t.Helper()
	w.sql(`CREATE TABLE orders (id BIGINT AUTO_INCREMENT PRIMARY KEY, customer VARCHAR(40) NOT NULL, amount DECIMAL(10,2) NOT NULL, note TEXT)`,
		`INSERT INTO orders (customer, amount) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) SELECT CONCAT('first ', i), i FROM n`)
	for _, path := range []string{w.config, w.again} {
		text, err := os.ReadFile(path)
		if err != nil {
			w.t.Fatal(err)
		}
		text = fmt.Appendf(text, "  - {match: %q, elastic: {index: %q}, redis: {key: %q}}\n", w.name+".*", w.name+"-{table}", w.name+":{table}:{pk}")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	w.compare("orders")
}

// compare takes a table of the shop into the comparison.
func (w *world) compare(table string) {
	w.spec.Tables = append(w.spec.Tables, oracle.TableSpec{Table: table, Index: w.name + "-" + table, RedisKey: w.name + ":" + table + ":{pk}", RedisMode: "hash"})
}

func (w *world) sql(statements ...string) {
	w.t.Helper()
	for _, s := range statements {
		if _, err := w.db.Exec(s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

// trade writes orders until the returned function ends it. That the table or a
// column is not there for a moment disturbs nobody.
func (w *world) trade() (end func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	var hands sync.WaitGroup
	for hand := range 3 {
		random := rand.New(rand.NewPCG(1, uint64(hand)))
		hands.Go(func() {
			for ctx.Err() == nil {
				var err error
				switch id := random.IntN(1500); random.IntN(5) {
				case 0:
					_, err = w.db.ExecContext(ctx, "DELETE FROM orders WHERE id BETWEEN ? AND ?", id, id+2)
				case 1, 2:
					_, err = w.db.ExecContext(ctx, "UPDATE orders SET amount = amount + 1 WHERE id BETWEEN ? AND ?", id, id+3)
				case 3:
					_, err = w.db.ExecContext(ctx, "REPLACE INTO orders (id, customer, amount) VALUES (?, 'again', 1)", id+1)
				default:
					_, err = w.db.ExecContext(ctx, "INSERT INTO orders (customer, amount) VALUES ('x', 1), ('y', 2)")
				}
				my, ok := errors.AsType[*mysql.MySQLError](err)
				if err != nil && ctx.Err() == nil && !(ok && (my.Number == 1146 || my.Number == 1054 || my.Number == 1213 || my.Number == 1412)) {
					w.t.Errorf("trade: %v", err)
					return
				}
				waitFor(w.t, 5*time.Millisecond)
			}
		})
	}
	end = sync.OnceFunc(func() { cancel(); hands.Wait() })
	w.t.Cleanup(end)
	return end
}

// settled checks that both stores hold what MySQL holds, and that no change was
// refused on the way.
func (w *world) settled(p *process) {
	w.t.Helper()
	w.equal(90 * time.Second)
	p.balanced("search")
	p.balanced("cache")
	if dead := p.metric("lockstep_sink_dead_letters_total"); dead != 0 {
		w.t.Errorf("%v dead letters", dead)
	}
}

// Tables that are emptied, dropped and made again under writes, with a kill -9 in
// between, end equal in both stores.
func TestTablesThatAreEmptiedDroppedAndMadeAgainEndEqual(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 50)
	w.shop()
	p := w.start("run")
	p.awaitReady()
	end := w.trade()
	for i := range 3 {
		w.sql("TRUNCATE TABLE orders")
		waitFor(t, time.Second)
		w.sql("DROP TABLE orders", "CREATE TABLE orders (id BIGINT AUTO_INCREMENT PRIMARY KEY, customer VARCHAR(40) NOT NULL, amount DECIMAL(10,2) NOT NULL, remark VARCHAR(20) DEFAULT 'none')")
		w.sql(fmt.Sprintf("CREATE TABLE made%d (PRIMARY KEY (id)) SELECT id, customer FROM orders", i), fmt.Sprintf("INSERT INTO made%d VALUES (100000, 'late')", i))
		w.compare(fmt.Sprintf("made%d", i))
		if i == 1 {
			p.kill()
			p = w.start("run")
		}
		waitFor(t, time.Second)
	}
	end()
	w.settled(p) // a store that was behind would have nothing to sweep: it never gets what a barrier makes void
	w.sql("TRUNCATE TABLE tags", "DROP TABLE made0", "CREATE TABLE made0 (name VARCHAR(20) PRIMARY KEY)", "INSERT INTO made0 VALUES ('x')")
	w.settled(p)
	for _, sink := range []string{"search", "cache"} {
		if p.metric("lockstep_sink_swept_rows_total", fmt.Sprintf("sink=%q", sink)) == 0 {
			t.Errorf("nothing was swept from %s", sink)
		}
	}
	p.stop()
}

// An online schema change as pt-online-schema-change makes it (a table beside it,
// triggers, a copy, a swap), begun, given up and made again under writes, ends equal;
// so do ALTER TABLE and rows that come and go with a partition or a rename.
func TestOnlineSchemaChangesEndEqual(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 50)
	w.shop()
	p := w.start("run")
	p.awaitReady()
	end := w.trade()
	beside := func(helper string) {
		w.sql("CREATE TABLE "+helper+" LIKE orders", "ALTER TABLE "+helper+" ADD COLUMN vip TINYINT NOT NULL DEFAULT 1, DROP COLUMN note")
		const row = "(id, customer, amount) VALUES (NEW.id, NEW.customer, NEW.amount)"
		w.sql("CREATE TRIGGER osc_d AFTER DELETE ON orders FOR EACH ROW DELETE IGNORE FROM "+helper+" WHERE id = OLD.id",
			"CREATE TRIGGER osc_u AFTER UPDATE ON orders FOR EACH ROW REPLACE INTO "+helper+" "+row,
			"CREATE TRIGGER osc_i AFTER INSERT ON orders FOR EACH ROW REPLACE INTO "+helper+" "+row)
		w.retry("INSERT IGNORE INTO " + helper + " (id, customer, amount) SELECT id, customer, amount FROM orders")
	}
	beside("_orders_new")
	waitFor(t, 500*time.Millisecond)
	w.sql("DROP TRIGGER osc_d", "DROP TRIGGER osc_u", "DROP TRIGGER osc_i", "DROP TABLE _orders_new") // given up
	beside("_orders_gho")
	waitFor(t, 500*time.Millisecond)
	w.sql("RENAME TABLE orders TO _orders_20260101120000_del, _orders_gho TO orders")
	waitFor(t, 500*time.Millisecond)
	w.sql("DROP TABLE _orders_20260101120000_del")

	w.sql("ALTER TABLE orders ADD COLUMN colour VARCHAR(10) DEFAULT 'red' AFTER id", "ALTER TABLE orders ADD INDEX (colour)")
	waitFor(t, 500*time.Millisecond)
	w.sql("RENAME TABLE test_cases TO _away, tags TO _x", "RENAME TABLE _x TO tags") // what came back is copied
	w.spec.Tables = removeTable(w.spec.Tables, "test_cases")
	w.sql("CREATE TABLE parts (id INT PRIMARY KEY, n INT) PARTITION BY RANGE (id) (PARTITION a VALUES LESS THAN (100), PARTITION b VALUES LESS THAN (1000))",
		"INSERT INTO parts VALUES (1, 1), (2, 2), (101, 3), (102, 4)", "CREATE TABLE part (id INT PRIMARY KEY, n INT)", "INSERT INTO part VALUES (3, 33), (4, 44)",
		"ALTER TABLE parts EXCHANGE PARTITION a WITH TABLE part", "ALTER TABLE parts TRUNCATE PARTITION b")
	w.compare("parts")
	w.compare("part")
	waitFor(t, time.Second)
	end()
	w.settled(p)
	if p.metric("lockstep_kafka_published_records_total", `_orders_`) != 0 {
		t.Error("a helper table was captured")
	}
	p.stop()
}

// retry executes a statement that may lose a deadlock.
func (w *world) retry(statement string) {
	w.t.Helper()
	await(w.t, time.Minute, statement, func() bool {
		_, err := w.db.Exec(statement)
		if my, ok := errors.AsType[*mysql.MySQLError](err); ok && my.Number == 1213 {
			return false
		}
		if err != nil {
			w.t.Fatalf("%s: %v", statement, err)
		}
		return true
	})
}

func removeTable(tables []oracle.TableSpec, name string) (left []oracle.TableSpec) {
	for _, t := range tables {
		if t.Table != name {
			left = append(left, t)
		}
	}
	return left
}
