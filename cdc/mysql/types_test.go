package mysql

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/google/go-cmp/cmp"

	"lockstep/cdc"
)

// A key is the bytes of the row, whatever the collation takes for equal: of an
// update that changes only case or the spaces at the end, the stores see one row go
// and another come.
func TestAKeyThatChangesOnlyInCaseOrSpacesIsAnother(t *testing.T) {
	for _, collation := range []string{"utf8mb4_0900_ai_ci", "utf8mb4_general_ci", "utf8mb4_bin", "latin1_swedish_ci"} { // the last three pad with spaces
		set, _, _ := strings.Cut(collation, "_")
		t.Run(collation, func(t *testing.T) {
			w := newWorld(t)
			w.exec(fmt.Sprintf("CREATE TABLE k (n INT, k VARCHAR(20) CHARACTER SET %s COLLATE %s, v INT, PRIMARY KEY (k, n))", set, collation), "INSERT INTO k VALUES (1, 'abc', 1)")
			out := newMemory()
			stop := w.run(w.source(out, nil))
			out.awaitChanges(t, 1)
			w.exec("UPDATE k SET k = 'ABC'", "UPDATE k SET k = 'ABC '", "UPDATE k SET v = 2", "DELETE FROM k WHERE k = 'ABC '")
			changes := out.awaitChanges(t, 7)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			want := []string{
				`r {"k":"abc","n":1}  -> {"n":1,"k":"abc","v":1}`,
				`d {"k":"abc","n":1} {"n":1,"k":"abc","v":1} -> `,
				`c {"k":"ABC","n":1}  -> {"n":1,"k":"ABC","v":1}`,
				`d {"k":"ABC","n":1} {"n":1,"k":"ABC","v":1} -> `,
				`c {"k":"ABC ","n":1}  -> {"n":1,"k":"ABC ","v":1}`,
				`u {"k":"ABC ","n":1} {"n":1,"k":"ABC ","v":1} -> {"n":1,"k":"ABC ","v":2}`,
				`d {"k":"ABC ","n":1} {"n":1,"k":"ABC ","v":2} -> `,
			}
			if diff := cmp.Diff(want, show(changes)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Rows under a key that MySQL made itself have that key, and rows whose key is a
// zero date keep its digits: null would be one key for all of them.
func TestKeysThatNobodySees(t *testing.T) {
	f := newFlavor(t, gomysql.MySQLFlavor)
	f.exec("SET sql_generate_invisible_primary_key = ON", "CREATE TABLE q (a INT, b INT INVISIBLE)", "CREATE TABLE z (d DATE, at DATETIME, PRIMARY KEY (d))")
	from := f.end()
	f.exec("INSERT INTO q (a, b) VALUES (1, 2)", "INSERT INTO z VALUES ('0000-00-00', '0000-00-00')")
	if diff := cmp.Diff(map[string]string{`{"my_row_id":1}`: `{"my_row_id":1,"a":1,"b":2}`}, f.compare("q", from)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{`{"d":"0000-00-00"}`: `{"d":"0000-00-00","at":null}`}, f.compare("z", from)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A SET's empty label is not in the server's own list of them.
func TestLabelsThatAreEmpty(t *testing.T) {
	for _, name := range []string{gomysql.MySQLFlavor, gomysql.MariaDBFlavor} {
		f := newFlavor(t, name)
		f.exec("CREATE TABLE q (id INT PRIMARY KEY, s SET('', 'a', 'b'), e ENUM('', 'x'))")
		from := f.end()
		f.exec("INSERT INTO q VALUES (1, 0, 0), (2, 1, 1), (3, 3, 2), (4, 7, 3)")
		rows := f.compare("q", from)
		if row := rows[`{"id":4}`]; row != `{"id":4,"s":["a","b"],"e":""}` {
			t.Errorf("%s: %s", name, row)
		}
	}
}

func TestWhatOnlyMariaDBHas(t *testing.T) {
	f := newFlavor(t, gomysql.MariaDBFlavor)
	layoutError := func(table string) error {
		t.Helper()
		conn, err := connect(context.Background(), f.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = tableLayout(conn, cdc.TableName{DB: f.home, Table: table}, f.cfg.policy())
		return err
	}
	t.Run("its own types", func(t *testing.T) {
		f.exec("CREATE TABLE own (id INT PRIMARY KEY, u UUID, i4 INET4, i6 INET6, j JSON, c TEXT COMPRESSED, b VARBINARY(500) COMPRESSED, v VARCHAR(10) CHARACTER SET latin1)")
		from := f.end()
		f.exec("INSERT INTO own VALUES (1, '01234567-89ab-4def-8123-456789abcdef', '1.2.3.0', '::', '{\"a\":  1}', REPEAT('abc', 300), REPEAT(X'00FF', 200), 'é')")
		rows := f.compare("own", from)
		want := `{"id":1,"u":"ASNFZ4mrTe+BI0VniavN7w==","i4":"AQIDAA==","i6":"AAAAAAAAAAAAAAAAAAAAAA==","j":"{\"a\":  1}","c":"` + strings.Repeat("abc", 300) + `","b":"` + strings.Repeat("AP8A/wD/", 66) + `AP8A/w==","v":"é"}`
		if row := rows[`{"id":1}`]; row != want {
			t.Errorf("row\n%s, want\n%s", row, want)
		}
	})
	t.Run("temporal columns of before 10.1", func(t *testing.T) {
		f.exec("SET GLOBAL mysql56_temporal_format = OFF")
		t.Cleanup(func() { f.exec("SET GLOBAL mysql56_temporal_format = ON") })
		f.exec("CREATE TABLE old (id INT PRIMARY KEY, d DATETIME, s TIMESTAMP NULL, t TIME)", "CREATE TABLE parts (id INT PRIMARY KEY, d DATETIME(3))")
		from := f.end()
		f.exec("INSERT INTO old VALUES (1, '2026-01-02 03:04:05', '2026-01-02 03:04:05', '-838:59:59'), (2, '0000-00-00', 0, '12:13:14'), (3, NULL, NULL, NULL)")
		f.compare("old", from)
		if err := layoutError("parts"); err == nil || !strings.Contains(err.Error(), "ALTER TABLE") {
			t.Errorf("a fraction in the old format: %v", err)
		}
	})
	t.Run("refusals", func(t *testing.T) {
		f.exec("CREATE TABLE versions (id INT PRIMARY KEY) WITH SYSTEM VERSIONING", "CREATE TABLE years (id INT PRIMARY KEY, y YEAR(2))")
		for table, want := range map[string]string{"versions": "DROP SYSTEM VERSIONING", "years": "change it to YEAR"} {
			var stop *Stop
			if err := layoutError(table); !errors.As(err, &stop) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want a Stop that says %q", table, err, want)
			}
		}
	})
	t.Run("the rows of a sequence are not a table's", func(t *testing.T) {
		from := f.end()
		f.exec("CREATE SEQUENCE s", "DO NEXTVAL(s)")
		bodies, _ := f.log(from, f.end())
		if len(bodies) == 0 || !isSequence(bodies[0].table) {
			t.Errorf("%d events; a sequence is taken for a table", len(bodies))
		}
	})
}

// allocates is how many bytes f takes.
func allocates(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// 64 MB in one column are in memory once besides their JSON.
func TestALargeValueIsNotCopied(t *testing.T) {
	const size = 64 << 20
	var room []byte
	cost := allocates(func() { room = slices.Grow(room, size) }) / size // 2 under the race detector
	text, blob := bytes.Repeat([]byte("0123456789abcdef"), size/16), make([]byte, size)
	l := &layout{columns: []column{{form: formText}, {form: formBytes}}}
	for i, v := range [][]byte{text, blob} {
		c := &l.columns[i]
		c.setName("c")
		c.log.typ, c.log.size = gomysql.MYSQL_TYPE_BLOB, 4
		value := append([]byte{size & 0xff, size >> 8 & 0xff, size >> 16 & 0xff, size >> 24}, v...)
		for path, decode := range map[string]func() ([]byte, error){
			"log":  func() ([]byte, error) { out, _, err := c.appendLogged(nil, value); return out, err },
			"copy": func() ([]byte, error) { return c.append(nil, v) },
		} {
			var out []byte
			var err error
			took := allocates(func() { out, err = decode() })
			if err != nil || took > cost*uint64(len(out))+1<<20 {
				t.Errorf("%s of a %d: %d bytes of JSON took %d (%v)", path, c.form, len(out), took, err)
			}
		}
	}
}

// Of a row before a change of more than 16 MB only what may name its place in a store is
// kept; the row behind it is whole.
func TestALargeRowBeforeIsTrimmed(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v LONGTEXT, n INT, small TEXT, b LONGBLOB)")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitCopied(t)
	w.exec("INSERT INTO q VALUES (1, REPEAT('x', 9000000), 1, 'little', REPEAT('y', 1025))", "UPDATE q SET n = 2", "DELETE FROM q",
		"INSERT INTO q VALUES (2, REPEAT('x', 17000000), NULL, REPEAT('z', 1024), NULL)", "DELETE FROM q")
	out.awaitChanges(t, 5)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	of := func(image []byte) string {
		if len(image) > 2000 {
			return fmt.Sprintf("%d MB", len(image)/1_000_000)
		}
		return strings.ReplaceAll(string(image), strings.Repeat("z", 1024), "z..")
	}
	var got []string
	for _, c := range out.changes {
		got = append(got, c.Op.String()+" "+of(c.Before)+" -> "+of(c.After))
	}
	if diff := cmp.Diff([]string{"c  -> 9 MB", `u {"id":1,"n":1,"small":"little"} -> 9 MB`, "d 9 MB -> ", "c  -> 17 MB", `d {"id":2,"n":null,"small":"z..","b":null} -> `}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// The page of types names every type that the random tables have, and no other.
func TestThePageOfTypesIsWhole(t *testing.T) {
	page, err := os.ReadFile("../../docs/types.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, line := range strings.Split(string(page), "\n") {
		if cells := strings.Split(line, "|"); len(cells) > 4 && !strings.HasPrefix(cells[1], " ---") && strings.TrimSpace(cells[1]) != "column" {
			for _, name := range regexp.MustCompile(`\b[A-Z][A-Z0-9]+\b`).FindAllString(cells[1], -1) {
				named[name] = true
			}
		}
	}
	for _, typ := range columnTypes {
		if !named[typ.name] {
			t.Errorf("the page does not name %s", typ.name)
		}
	}
	for name := range named {
		if !slices.ContainsFunc(columnTypes, func(c columnType) bool { return c.name == name }) && !slices.Contains([]string{"UNSIGNED", "BOOLEAN"}, name) {
			t.Errorf("the page names %s, and no random table has it", name)
		}
	}
}

// Binary JSON and WKB must end with an error, not a panic or without end, on any
// bytes.
func FuzzADocumentOfAnyBytes(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x0c\x00\x0b\x00\x01\x00\x05\x01\x00a"))
	f.Add([]byte("\x02\x02\x00\x0a\x00\x04\x01\x00\x05\x02\x00"))
	f.Add([]byte("\x0f\xf6\x04\x02\x01\x82\x05"))
	f.Add([]byte("\x0f\x0b\x08\x01\x02\x03\x04\x05\x06\x07\x08"))
	f.Add([]byte("\x00\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\xf0\x3f\x00\x00\x00\x00\x00\x00\x00\x40"))
	f.Add([]byte("\xe6\x10\x00\x00\x01\x07\x00\x00\x00\x01\x00\x00\x00\x01\x07\x00\x00\x00\x00\x00\x00\x00"))
	// Both elements of each array lead to the next one: twice as much at each step.
	bomb := []byte{jsonString, 1, 'x'}
	for range 20 {
		size := byte(10 + len(bomb) - 1)
		bomb = append([]byte{2, 2, 0, size, 0, bomb[0], 10, 0, bomb[0], 10, 0}, bomb[1:]...)
	}
	f.Add(bomb)
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, decode := range map[string]func([]byte) ([]byte, error){
			"json": func(b []byte) ([]byte, error) { return appendJSONB(nil, b) },
			"wkt": func(b []byte) ([]byte, error) {
				return (&column{policy: policy{geometry: geometryWKT}}).appendGeometry(nil, b)
			},
			"geo": func(b []byte) ([]byte, error) {
				return (&column{policy: policy{geometry: geometryJSON}}).appendGeometry(nil, b)
			},
			"vector": func(b []byte) ([]byte, error) { return appendVector(nil, b) },
			"packed": func(b []byte) ([]byte, error) {
				v, err := inflateColumn(b)
				return cdc.AppendString(nil, fmt.Sprintf("%x", v)), err
			},
		} {
			out, err := decode(slices.Clone(data))
			if err == nil && !json.Valid(out) {
				t.Errorf("%s: %q became %s", name, data, out)
			}
			if err == nil && name == "json" && len(out) > 400*len(data)+1000 {
				t.Errorf("%d bytes of JSON became %d", len(data), len(out))
			}
		}
	})
}

// A document of more than 64 KB has wider offsets, and more numbers lie in them.
func TestALargeDocument(t *testing.T) {
	f := newFlavor(t, gomysql.MySQLFlavor)
	f.exec("CREATE TABLE q (id INT PRIMARY KEY, j JSON)")
	from := f.end()
	f.exec(`INSERT INTO q VALUES (1, JSON_OBJECT('text', REPEAT('x', 70000), 'list', JSON_ARRAY(1, -1, 40000, -40000, 3000000000, -3000000000, 1.5, TRUE, NULL, JSON_OBJECT('in', 70000)))),
		(2, CONCAT('[', REPEAT('{"k": 70000},', 70000), '-70000]')), (3, JSON_ARRAY(REPEAT('"', 2000000)))`)
	if rows := f.compare("q", from); len(rows[`{"id":3}`]) < 4000000 {
		t.Errorf("a text of 2 MB became %d bytes", len(rows[`{"id":3}`]))
	}
}
