package mysql

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
)

// versions is an Output that remembers of every change only under which version it
// came and a hash of it.
type versions struct {
	seed maphash.Seed
	last cdc.Version // that is waited for
	done chan struct{}

	mu    sync.Mutex
	of    map[cdc.Version]uint64
	table map[cdc.Version]string
	pos   []cdc.Position
	wrong string
	end   sync.Once
}

func newVersions(seed maphash.Seed) *versions {
	return &versions{seed: seed, done: make(chan struct{}), of: map[cdc.Version]uint64{}, table: map[cdc.Version]string{}}
}

func (v *versions) Publish(_ context.Context, c *cdc.Change) error {
	if c.Op == cdc.OpRead { // rows of a chunk have the version of their window
		return nil
	}
	var h maphash.Hash
	h.SetSeed(v.seed)
	for _, part := range [][]byte{{byte(c.Op)}, []byte(c.Table.Table), []byte(c.GTID), c.Key, c.Before, c.After} {
		h.Write(part)
		h.WriteByte(0)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if was, found := v.of[c.Version]; found && was != h.Sum64() {
		v.wrong = fmt.Sprintf("two changes have version %s, one of them %s %s", c.Version, c.Op, c.Key)
	}
	v.of[c.Version], v.table[c.Version] = h.Sum64(), c.Table.Table
	if c.Table.Table == "z" {
		v.end.Do(func() { close(v.done) })
	}
	return nil
}

func (v *versions) Checkpoint(_ context.Context, pos cdc.Position) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pos = append(v.pos, pos)
	return nil
}

func (v *versions) Flush(context.Context) error { return nil }

// read reads with s until the row of the table z has come.
func (v *versions) read(t *testing.T, s *Source) {
	t.Helper()
	v.start(t, s)()
}

// start begins to read with s; what it returns waits for the row of the table z.
func (v *versions) start(t *testing.T, s *Source) (wait func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return func() {
		t.Helper()
		defer cancel()
		select {
		case <-v.done:
		case err := <-ended:
			t.Fatalf("the source ended: %v", err)
		case <-time.After(2 * time.Minute):
			t.Fatalf("the end has not come; %d changes so far", len(v.of))
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if v.wrong != "" {
			t.Fatal(v.wrong)
		}
	}
}

// The log clock is a function of the log alone: whoever reads on from whatever saved
// position gives every change the version it had, whichever tables he reads,
// whether transactions are compressed, and however large they are.
func TestTheClockIsAFunctionOfTheLog(t *testing.T) {
	w := newWorld(t)
	w.cfg.CheckpointInterval = 10 * time.Millisecond
	const small, tables = "abcde", "abcdef" // and a table that nobody captures
	for _, name := range tables {
		w.exec(fmt.Sprintf("CREATE TABLE %c (id INT PRIMARY KEY, v LONGTEXT, n INT)", name))
	}
	w.exec("CREATE TABLE _not (id INT PRIMARY KEY, v LONGTEXT, n INT)", "CREATE TABLE z (id INT PRIMARY KEY)")
	all := func(s string) func(cdc.TableName) bool {
		return func(t cdc.TableName) bool { return t.DB == w.name && (t.Table == "z" || strings.Contains(s, t.Table)) }
	}
	source := func(out Output, from *cdc.Position, captured string) *Source {
		return &Source{Config: w.cfg, Match: all(captured), Out: out, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()),
			From: from, FirstEpoch: func(context.Context) (uint16, error) { return 1, nil }}
	}

	seed := maphash.MakeSeed()
	first := newVersions(seed)
	random := rand.New(rand.NewPCG(1, 2))
	conn, err := w.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	exec := func(format string, args ...any) {
		t.Helper()
		q := fmt.Sprintf(format, args...)
		if _, err := conn.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%.200s: %v", q, err)
		}
	}
	table := func() string {
		if n := random.IntN(len(small) + 1); n < len(small) {
			return small[n : n+1]
		}
		return "_not"
	}
	wait := first.start(t, source(first, nil, tables))
	for first.positions() < 2 { // until it reads the log
		time.Sleep(10 * time.Millisecond)
	}
	exec("SET SESSION cte_max_recursion_depth = 1000000")
	id := 0
	for i := range 120 {
		exec("SET SESSION binlog_transaction_compression = %d", random.IntN(2))
		exec("BEGIN")
		for range 1 + random.IntN(5) {
			switch random.IntN(5) {
			case 0, 1:
				n := 1 + random.IntN(40)
				exec("INSERT INTO %s WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < %d) SELECT %d + i, REPEAT(SHA2(i, 256), %d), i FROM n", table(), n, id, random.IntN(100))
				id += n
			case 2:
				exec("UPDATE %s SET n = n + 1 WHERE id %% 7 = %d", table(), random.IntN(7))
			case 3:
				exec("UPDATE %s SET id = -id WHERE id %% 11 = %d AND id > 0", table(), random.IntN(11))
			case 4:
				exec("DELETE FROM %s WHERE id %% 13 = %d", table(), random.IntN(13))
			}
		}
		exec("COMMIT")
		switch i {
		case 30, 60:
			exec("SET SESSION binlog_transaction_compression = %d", i/60)
			exec("INSERT INTO f WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < %d) SELECT %d + i, SHA2(i, 256), i FROM n", 200_000*i/60, 1_000_000*i)
		case 40:
			exec("ALTER TABLE _not ADD COLUMN x INT")
			exec("ALTER TABLE _not DROP COLUMN x")
		case 80:
			exec("INSERT INTO b VALUES (100000000, REPEAT('long ', 4000000), 1)")
		case 90:
			exec("TRUNCATE TABLE _not")
			exec("FLUSH BINARY LOGS")
		}
	}
	exec("INSERT INTO z VALUES (1)")
	wait()
	if len(first.of) < 300_000 || len(first.pos) < 20 {
		t.Fatalf("%d changes and %d positions", len(first.of), len(first.pos))
	}
	for i := range 4 {
		from := first.pos[1+random.IntN(len(first.pos)-1)*(i+1)/4]
		captured := tables
		if i%2 == 1 { // others leave some out
			captured = tables[random.IntN(3) : 3+random.IntN(3)]
		}
		again := newVersions(seed)
		again.read(t, source(again, &from, captured))
		start, err := from.Version()
		if err != nil {
			t.Fatal(err)
		}
		for v, hash := range again.of {
			if first.of[v] != hash {
				t.Fatalf("from the clock %d: a change of %s has version %s, which was another's", from.Seq, again.table[v], v)
			}
		}
		for v, name := range first.table {
			if _, found := again.of[v]; v > start && !found && (name == "z" || strings.Contains(captured, name)) {
				t.Fatalf("from the clock %d: the change of %s with version %s did not come again", from.Seq, name, v)
			}
		}
	}
}

func (v *versions) positions() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.pos)
}
