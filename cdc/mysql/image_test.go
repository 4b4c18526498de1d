package mysql

import (
	"context"
	"database/sql"
	"encoding/json"
	"log/slog"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/google/go-cmp/cmp"

	"lockstep/cdc"
	"lockstep/internal/secret"
	"lockstep/internal/testenv"
)

// A flavor is a server that rows are read from in two ways: from its log and by a
// SELECT.
type flavor struct {
	t    testing.TB
	name string // gomysql.MySQLFlavor or gomysql.MariaDBFlavor
	env  testenv.Server
	db   *sql.DB // one connection, whose session settings stay
	home string  // a database of its own
	cfg  Config
	sets collations
}

func newFlavor(t testing.TB, name string) *flavor {
	t.Helper()
	env := testenv.MySQL(t)
	if name == gomysql.MariaDBFlavor {
		env = testenv.MariaDB(t)
	}
	f := &flavor{t: t, name: name, env: env, home: testenv.Database(t, env), cfg: DefaultConfig()}
	f.db = testenv.OpenMySQL(t, env, f.home)
	f.db.SetMaxOpenConns(1)
	f.cfg.Addr, f.cfg.User, f.cfg.Password = env.Addr, env.User, secret.Text(env.Password)
	f.exec("SET time_zone = '+00:00'", "SET sql_mode = ''", "SET NAMES utf8mb4")
	conn, err := connect(context.Background(), f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if f.sets, err = readCollations(conn); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *flavor) exec(statements ...string) {
	f.t.Helper()
	for _, s := range statements {
		if _, err := f.db.Exec(s); err != nil {
			f.t.Fatalf("%s: %v", truncate(s, 2000), err)
		}
	}
}

// end returns where the server's log ends now.
func (f *flavor) end() gomysql.Position {
	f.t.Helper()
	query := "SHOW BINARY LOG STATUS"
	if f.name == gomysql.MariaDBFlavor {
		query = "SHOW MASTER STATUS"
	}
	rows, err := f.db.Query(query)
	if err != nil {
		f.t.Fatal(err)
	}
	defer rows.Close()
	columns, _ := rows.Columns()
	fields := make([]sql.RawBytes, len(columns))
	into := make([]any, len(columns))
	for i := range fields {
		into[i] = &fields[i]
	}
	if !rows.Next() {
		f.t.Fatal("the server has no log")
	}
	if err := rows.Scan(into...); err != nil {
		f.t.Fatal(err)
	}
	pos, err := strconv.ParseUint(string(fields[1]), 10, 32)
	if err != nil {
		f.t.Fatal(err)
	}
	return gomysql.Position{Name: string(fields[0]), Pos: uint32(pos)}
}

// body is the part of a row event behind its header: the row images.
type body struct {
	table  *replication.TableMapEvent
	op     replication.EnumRowsEventType
	images []byte
}

// log returns the row events of f's database between two places of the log, and
// with their table maps as they came.
func (f *flavor) log(from, to gomysql.Position) (bodies []body, events [][]byte) {
	f.t.Helper()
	host, port, _ := net.SplitHostPort(f.env.Addr)
	n, _ := strconv.ParseUint(port, 10, 16)
	syncer := replication.NewBinlogSyncer(replication.BinlogSyncerConfig{
		ServerID: 90777, Flavor: f.name, Host: host, Port: uint16(n), User: f.env.User, Password: f.env.Password, Charset: "utf8mb4",
		Logger: slog.New(slog.DiscardHandler), DisableRetrySync: true, VerifyChecksum: true,
		RowsEventDecodeFunc: func(e *replication.RowsEvent, data []byte) error {
			pos, err := e.DecodeHeader(data)
			e.Rows = [][]any{{slices.Clone(data[pos:])}} // decoded well ahead of GetEvent
			return err
		},
	})
	defer syncer.Close()
	stream, err := syncer.StartSync(from)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		e, err := stream.GetEvent(ctx)
		if err != nil {
			f.t.Fatalf("read the log from %s to %s: %v", from, to, err)
		}
		if ev, ok := e.Event.(*replication.TableMapEvent); ok {
			if err := mendTableMap(ev, e.RawData); err != nil {
				f.t.Fatal(err)
			}
		}
		if ev, ok := e.Event.(*replication.RowsEvent); ok && string(ev.Table.Schema) == f.home {
			bodies = append(bodies, body{ev.Table, ev.Type(), ev.Rows[0][0].([]byte)})
		}
		switch e.Header.EventType {
		case replication.FORMAT_DESCRIPTION_EVENT, replication.TABLE_MAP_EVENT, replication.WRITE_ROWS_EVENTv2, replication.UPDATE_ROWS_EVENTv2, replication.DELETE_ROWS_EVENTv2:
			events = append(events, slices.Clone(e.RawData))
		}
		if e.Header.LogPos >= to.Pos {
			return bodies, events
		}
	}
}

// decoded is one change of the log as JSON.
type decoded struct {
	table, keyBefore, key, before, after string
	print                                uint32
}

// decode turns row events into JSON.
func (f *flavor) decode(bodies []body) (changes []decoded) {
	f.t.Helper()
	for _, b := range bodies {
		l, err := layoutOf(b.table, f.sets, f.cfg.policy())
		if err == nil {
			err = l.mask(f.cfg.policy())
		}
		if err != nil {
			f.t.Fatal(err)
		}
		l.sign()
		spans := make([]span, len(l.columns))
		for data := b.images; len(data) > 0; {
			d := decoded{table: l.table.Table, print: l.print}
			image := func() string {
				row, n, err := l.appendImage(nil, data, spans, false)
				if err != nil {
					f.t.Fatalf("%v\n%q", err, data)
				}
				data = data[n:]
				d.key = string(l.appendKeyOf(nil, row, spans))
				return string(row)
			}
			if b.op != replication.EnumRowsEventTypeInsert {
				d.before = image()
				d.keyBefore = d.key
			}
			if b.op != replication.EnumRowsEventTypeDelete {
				d.after = image()
			}
			changes = append(changes, d)
		}
	}
	return changes
}

// copied reads a table as a copy does: the rows by their keys.
func (f *flavor) copied(table string) (rows map[string]string, print uint32) {
	f.t.Helper()
	conn, err := connectCopier(context.Background(), f.cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	l, err := tableLayout(conn, cdc.TableName{DB: f.home, Table: table}, f.cfg.policy())
	if err != nil {
		f.t.Fatal(err)
	}
	in := newTableIn(l, "")
	query, err := in.selectRows(nil, nil, math.MaxInt32)
	if err != nil {
		f.t.Fatal(err)
	}
	rows = map[string]string{}
	values := make([]any, len(l.columns))
	var result gomysql.Result
	err = conn.ExecuteSelectStreaming(query, &result, func(fields []gomysql.FieldValue) error {
		key, row, err := in.rowJSON(nil, nil, values, fields)
		rows[string(key)] = string(row)
		return err
	}, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return rows, l.print
}

// fields cuts a row into its columns for a difference that can be read.
func fields(row string) []string { return strings.Split(row, `,"`) }

// compare reads the changes since from and requires that the table's rows, read as
// a copy does, are byte for byte the last images of the log, with the same print of the
// columns; it returns the rows.
func (f *flavor) compare(table string, from gomysql.Position) map[string]string {
	f.t.Helper()
	rows, print := f.copied(table)
	bodies, _ := f.log(from, f.end())
	last := map[string]string{}
	for _, d := range f.decode(bodies) {
		if d.table != table {
			continue
		}
		if d.print != print {
			f.t.Errorf("%s %s: the columns have the print %x in a copy and %x in the log", f.name, table, print, d.print)
		}
		if was := last[d.keyBefore]; d.before != was {
			f.t.Errorf("key %s: the image before is not the last one after (-want +got)\n%s", d.keyBefore, cmp.Diff(fields(was), fields(d.before)))
		}
		delete(last, d.keyBefore)
		if d.after != "" {
			last[d.key] = d.after
		}
	}
	for key, row := range rows {
		if last[key] != row {
			f.t.Errorf("%s %s key %s (-copied +from the log)\n%s", f.name, table, key, cmp.Diff(fields(row), fields(last[key])))
		}
	}
	for key := range last {
		if rows[key] == "" {
			f.t.Errorf("key %s is in the log and not in the table", key)
		}
	}
	if len(rows) == 0 {
		f.t.Errorf("table %s has no rows", table)
	}
	return rows
}

func TestARowImageIsTheRowThatACopyReads(t *testing.T) {
	f := newFlavor(t, gomysql.MySQLFlavor)
	f.exec(allTypes)
	from := f.end()
	for _, r := range allTypesRows {
		f.exec("INSERT INTO v (" + allTypesColumns + ") VALUES (" + r + ")")
	}
	f.exec("UPDATE v SET inv = 1")
	f.compare("v", from)
}

// The decoder must end with an error, not a panic, on any bytes.
func FuzzARowImageOfAnyBytes(f *testing.F) {
	fl := newFlavor(f, gomysql.MySQLFlavor)
	fl.exec(allTypes)
	from := fl.end()
	for _, r := range allTypesRows {
		fl.exec("INSERT INTO v (" + allTypesColumns + ") VALUES (" + r + ")")
	}
	bodies, _ := fl.log(from, fl.end())
	l, err := layoutOf(bodies[0].table, fl.sets, DefaultConfig().policy())
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range bodies {
		f.Add(b.images)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		spans := make([]span, len(l.columns))
		row, n, err := l.appendImage(nil, data, spans, false)
		if err != nil {
			if !strings.Contains(err.Error(), l.table.String()) {
				t.Errorf("the error does not name the table: %v", err)
			}
			return
		}
		if !json.Valid(row) || !json.Valid(l.appendKeyOf(nil, row, spans)) || n > len(data) {
			t.Errorf("%d bytes of %d became %s", n, len(data), row)
		}
		for cut := range n {
			if _, _, err := l.appendImage(nil, data[:cut], spans, false); err == nil {
				t.Fatalf("%d of %d bytes made a row", cut, n)
			}
		}
	})
}

// Beside the library's decoding of the same events into Go values, which has no
// JSON yet: the ratio of the two is what counts.
func BenchmarkRowImages(b *testing.B) {
	f := newFlavor(b, gomysql.MySQLFlavor)
	f.exec("CREATE TABLE q (id BIGINT PRIMARY KEY, account INT UNSIGNED, owner VARCHAR(60), amount DECIMAL(12,2), rate DOUBLE, note TEXT, at DATETIME(6), seen TIMESTAMP, state ENUM('open','closed'), data JSON)",
		"CREATE TABLE digits (n INT PRIMARY KEY)", "INSERT INTO digits VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9)")
	from := f.end()
	f.exec(`INSERT INTO q SELECT n, n * 7, CONCAT('owner ', n), n / 100, n / 7, REPEAT('some words of text, ', 10), '2026-11-22 08:15:30.123456' + INTERVAL n SECOND, '2026-11-22 08:15:30',
		1 + n % 2, JSON_OBJECT('n', n, 'list', JSON_ARRAY(1, 2.5, 'three')) FROM (SELECT a.n + 10 * b.n + 100 * c.n AS n FROM digits a, digits b, digits c) t`)
	bodies, events := f.log(from, f.end())
	l, err := layoutOf(bodies[0].table, f.sets, DefaultConfig().policy())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("straight to JSON", func(b *testing.B) {
		b.ReportAllocs()
		spans := make([]span, len(l.columns))
		var row, key []byte
		for b.Loop() {
			for _, body := range bodies {
				for data := body.images; len(data) > 0; {
					var n int
					if row, n, err = l.appendImage(row[:0], data, spans, false); err != nil {
						b.Fatal(err)
					}
					key = l.appendKeyOf(key[:0], row, spans)
					data = data[n:]
				}
			}
		}
	})
	b.Run("to the library's values", func(b *testing.B) {
		b.ReportAllocs()
		parser := replication.NewBinlogParser()
		parser.SetTimestampStringLocation(time.UTC)
		parser.SetRenderJSONAsMySQLText(true)
		for b.Loop() {
			for _, e := range events {
				if _, err := parser.Parse(e); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
