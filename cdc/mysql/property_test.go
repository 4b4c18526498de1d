package mysql

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"

	"lockstep/cdc"
)

// A columnType makes columns of one SQL type.
type columnType struct {
	name   string // as the page of types has it
	flavor string // empty: both servers have it
	key    bool   // it may stand in a primary key
	make   func(*rand.Rand) randomColumn
}

// A randomColumn is a declaration, behind the name, and a maker of values as SQL.
type randomColumn struct {
	sql   string
	value func() string
}

func integers(name string, bits int) columnType {
	return columnType{name: name, key: true, make: func(r *rand.Rand) randomColumn {
		sql := name + pick(r, "", " UNSIGNED", " UNSIGNED ZEROFILL")
		return randomColumn{sql, func() string {
			u := r.Uint64() >> (64 - bits) >> r.IntN(bits)
			if sql != name {
				return fmt.Sprint(pick(r, u, 0, 1<<(bits-1), math.MaxUint64>>(64-bits)))
			}
			return fmt.Sprint(pick(r, int64(u>>1), -int64(u>>1)-1, 0, -1<<(bits-1), 1<<(bits-1)-1))
		}}
	}}
}

func texts(name, length string, key bool) columnType {
	return columnType{name: name, key: key, make: func(r *rand.Rand) randomColumn {
		set := pick(r, "utf8mb4", "utf8mb4", "utf8mb3", "latin1", "ascii", "sjis", "cp932", "ujis", "eucjpms", "gbk", "gb2312", "big5", "euckr", "latin2", "cp1251", "swe7", "ucs2", "utf16", "utf16le", "utf32")
		return randomColumn{name + length + " CHARACTER SET " + set, func() string { return textIn(r, set, 12) }}
	}}
}

func binaries(name, length string, key bool) columnType {
	return columnType{name: name, key: key, make: func(r *rand.Rand) randomColumn {
		return randomColumn{name + length, func() string {
			b := make([]byte, r.IntN(21))
			for i := range b {
				b[i] = pick(r, 0, byte(r.Uint32()))
			}
			return fmt.Sprintf("X'%X'", b)
		}}
	}}
}

func temporal(name string, value func(*rand.Rand) string) columnType {
	return columnType{name: name, key: true, make: func(r *rand.Rand) randomColumn {
		sql := fmt.Sprintf("%s(%d)", name, r.IntN(7))
		if name == "TIMESTAMP" {
			sql += " DEFAULT '2001-01-01 00:00:00'"
		}
		return randomColumn{sql, func() string { return "'" + value(r) + "'" }}
	}}
}

func shapes(name string) columnType {
	return columnType{name: name, make: func(r *rand.Rand) randomColumn {
		return randomColumn{name, func() string {
			var fit []string
			for _, g := range append(geometries, "MULTIPOINT(1 2,3 4)") {
				if name == "GEOMETRY" || strings.HasPrefix(g, name+"(") {
					fit = append(fit, g)
				}
			}
			if name == "GEOMETRYCOLLECTION" {
				fit = []string{"GEOMETRYCOLLECTION(POINT(1 2),LINESTRING(0 0,1 1))"}
			}
			return fmt.Sprintf("ST_GeomFromText('%s', %d)", pick(r, fit...), pick(r, 0, 3857))
		}}
	}}
}

var columnTypes = []columnType{
	integers("TINYINT", 8), integers("SMALLINT", 16), integers("MEDIUMINT", 24), integers("INT", 32), integers("BIGINT", 64),
	{name: "BIT", key: true, make: func(r *rand.Rand) randomColumn {
		n := 1 + r.IntN(64)
		return randomColumn{fmt.Sprintf("BIT(%d)", n), func() string { return fmt.Sprintf("b'%b'", pick(r, 0, r.Uint64()>>(64-n), math.MaxUint64>>(64-n))) }}
	}},
	{name: "YEAR", key: true, make: func(r *rand.Rand) randomColumn {
		return randomColumn{"YEAR", func() string { return fmt.Sprint(pick(r, 0, 1901, 2155, 1901+r.IntN(255))) }}
	}},
	{name: "DECIMAL", key: true, make: func(r *rand.Rand) randomColumn {
		p := 1 + r.IntN(65)
		s := r.IntN(min(p, 30) + 1)
		return randomColumn{fmt.Sprintf("DECIMAL(%d,%d)%s", p, s, pick(r, "", " UNSIGNED", " ZEROFILL")), func() string {
			digits := func(n int) string {
				b := []byte("0")
				for range r.IntN(n + 1) {
					b = append(b, '0'+byte(pick(r, 0, 9, r.IntN(10))))
				}
				return string(b)
			}
			return pick(r, "", "-") + digits(p-s) + "." + digits(s)
		}}
	}},
	{name: "FLOAT", make: func(r *rand.Rand) randomColumn {
		return randomColumn{"FLOAT" + pick(r, "", "(7,3)"), func() string {
			f := math.Float32frombits(r.Uint32())
			if f != f || math.IsInf(float64(f), 0) {
				f = 0.1
			}
			return strconv.FormatFloat(float64(pick(r, f, float32(r.NormFloat64()*1000), 16777216, -0.1)), 'e', -1, 32)
		}}
	}},
	{name: "DOUBLE", make: func(r *rand.Rand) randomColumn {
		return randomColumn{"DOUBLE" + pick(r, "", "(12,3)"), func() string {
			f := math.Float64frombits(r.Uint64())
			if f != f || math.IsInf(f, 0) {
				f = 0.1
			}
			return strconv.FormatFloat(pick(r, f, r.NormFloat64()*1000, 1e15, -0.1, 1e21), 'e', -1, 64)
		}}
	}},
	{name: "DATE", key: true, make: func(r *rand.Rand) randomColumn {
		return randomColumn{"DATE", func() string { return "'" + date(r) + "'" }}
	}},
	temporal("DATETIME", func(r *rand.Rand) string { return date(r) + " " + daytime(r, 24) }),
	temporal("TIMESTAMP", func(r *rand.Rand) string {
		return pick(r, time.Unix(r.Int64N(1<<31-1), r.Int64N(1e9)).UTC().Format("2006-01-02 15:04:05.000000"), "1970-01-01 00:00:01", "2038-01-19 03:14:07.9", "0000-00-00 00:00:00")
	}),
	temporal("TIME", func(r *rand.Rand) string {
		return pick(r, "", "-") + pick(r, daytime(r, 839), "00:00:00.000001", "00:00:00", "838:59:59")
	}),
	texts("CHAR", "(20)", true), texts("VARCHAR", "(60)", true), texts("VARCHAR", "(300)", false),
	texts("TINYTEXT", "", false), texts("TEXT", "", false), texts("MEDIUMTEXT", "", false), texts("LONGTEXT", "", false),
	binaries("BINARY", "(20)", true), binaries("VARBINARY", "(20)", true), binaries("VARBINARY", "(300)", false),
	binaries("TINYBLOB", "", false), binaries("BLOB", "", false), binaries("MEDIUMBLOB", "", false), binaries("LONGBLOB", "", false),
	{name: "ENUM", key: true, make: func(r *rand.Rand) randomColumn {
		n := pick(r, 3, 300)
		sql, set := labels(r, n)
		return randomColumn{"ENUM(" + sql + ") CHARACTER SET " + set, func() string { return fmt.Sprint(pick(r, 1+r.IntN(n), n, n+1)) }}
	}},
	{name: "SET", key: true, make: func(r *rand.Rand) randomColumn {
		n := pick(r, 3, 30, 60)
		sql, set := labels(r, n)
		return randomColumn{"SET(" + strings.ReplaceAll(sql, ",_", "_") + ") CHARACTER SET " + set, func() string { return fmt.Sprint(pick(r, 0, r.Uint64()>>(64-n), math.MaxUint64>>(64-n))) }}
	}},
	{name: "JSON", make: func(r *rand.Rand) randomColumn {
		return randomColumn{"JSON", func() string {
			text, _ := json.Marshal(document(r, 0))
			doc := fmt.Sprintf("CONVERT(X'%X' USING utf8mb4)", text)
			if r.IntN(3) > 0 {
				return doc
			}
			return fmt.Sprintf("JSON_OBJECT('date', DATE('2026-01-02'), 'time', TIMEDIFF('10:00:00.5', '%s'), 'at', CAST('2026-01-02 03:04:05.6' AS DATETIME(3)), 'bytes', X'%X', 'decimal', %d.%03d, 'long', %d.%040d, 'real', %g, 'doc', JSON_EXTRACT(%s, '$'))",
				daytime(r, 24), text, r.IntN(1000), r.IntN(1000), r.Uint32(), r.Uint64(), r.NormFloat64(), doc)
		}}
	}},
	shapes("GEOMETRY"), shapes("POINT"), shapes("LINESTRING"), shapes("POLYGON"), shapes("MULTIPOINT"), shapes("MULTILINESTRING"), shapes("MULTIPOLYGON"), shapes("GEOMETRYCOLLECTION"),
	{name: "VECTOR", flavor: gomysql.MySQLFlavor, make: func(r *rand.Rand) randomColumn {
		return randomColumn{"VECTOR(3)", func() string {
			return fmt.Sprintf("TO_VECTOR('[%g,%g,%g]')", r.Float32(), r.NormFloat64(), pick(r, 0.0, -0.0, 1e-30))
		}}
	}},
	{name: "UUID", flavor: gomysql.MariaDBFlavor, key: true, make: func(r *rand.Rand) randomColumn {
		return randomColumn{"UUID", func() string {
			return pick(r, "UUID()", fmt.Sprintf("'%08x-%04x-%d%03x-%x%03x-%012x'", r.Uint32(), r.Uint32()>>16, 1+r.IntN(7), r.Uint32()>>20, 8+r.IntN(4), r.Uint32()>>20, r.Uint64()>>16))
		}}
	}},
	{name: "INET4", flavor: gomysql.MariaDBFlavor, key: true, make: func(r *rand.Rand) randomColumn {
		return randomColumn{"INET4", func() string { return fmt.Sprintf("'%d.%d.0.%d'", r.IntN(256), r.IntN(256), r.IntN(2)) }}
	}},
	{name: "INET6", flavor: gomysql.MariaDBFlavor, key: true, make: func(r *rand.Rand) randomColumn {
		return randomColumn{"INET6", func() string { return fmt.Sprintf("'%x::%x:0'", r.IntN(1<<16), r.IntN(1<<16)) }}
	}},
	{name: "COMPRESSED", flavor: gomysql.MariaDBFlavor, make: func(r *rand.Rand) randomColumn {
		return randomColumn{pick(r, "VARCHAR(900) COMPRESSED CHARACTER SET latin1", "TEXT COMPRESSED", "VARBINARY(90) COMPRESSED", "LONGBLOB COMPRESSED"), func() string {
			return fmt.Sprintf("REPEAT('%x', %d)", r.Uint32(), r.IntN(20)*r.IntN(20))
		}}
	}},
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func date(r *rand.Rand) string {
	return pick(r, fmt.Sprintf("%04d-%02d-%02d", 1+r.IntN(9999), 1+r.IntN(12), 1+r.IntN(28)), "1000-01-01", "9999-12-31", "2024-02-29", "0000-00-00", "2026-02-31", "2026-00-10", "0000-01-01")
}

func daytime(r *rand.Rand, hours int) string {
	return fmt.Sprintf("%02d:%02d:%02d.%06d", r.IntN(hours), r.IntN(60), r.IntN(60), r.IntN(1e6))
}

// textIn gives a text of a character set as SQL.
func textIn(r *rand.Rand, set string, most int) string {
	cs, err := newCharset(set)
	if err != nil {
		panic(err)
	}
	b := []byte{}
	for range r.IntN(most + 1) {
		ascii := pick(r, ' ', '\t', '\n', '"', '\\', '/', '\'', '\x00', '\x01', ',', 'a', 'B', 'z', byte(32+r.IntN(95)))
		switch {
		case cs.kind == charsetUCS2 || cs.kind == charsetUTF16:
			b = append(b, pick[byte](r, 0, 0x30, 0x4e), ascii)
		case cs.kind == charsetUTF16LE:
			b = append(b, ascii, pick[byte](r, 0, 0x30, 0x4e))
		case cs.kind == charsetUTF32:
			b = append(b, 0, pick[byte](r, 0, 1), pick[byte](r, 0, 0x30, 0x4e), ascii)
		case r.IntN(2) == 0:
			b = append(b, ascii)
		case cs.kind == charsetUTF8 && set == "utf8mb4":
			b = append(b, pick(r, "é", "日", "😀", "\u2028", "\U0010ffff", "\u0080", "ÿ")...)
		case cs.kind == charsetUTF8:
			b = append(b, pick(r, "é", "日", "\u2028", "\uffff", "ÿ")...)
		case cs.table.double != nil:
			for {
				if at := r.IntN(1 << 16); at >= 0x8100 && cs.table.double[at] != 0 {
					b = append(b, byte(at>>8), byte(at))
					break
				}
			}
		default:
			b = append(b, byte(r.Uint32()))
			if set == "ascii" || set == "swe7" {
				b[len(b)-1] &= 0x7f
			}
		}
	}
	return fmt.Sprintf("_%s X'%X'", set, b)
}

// labels declares n labels of an ENUM or SET.
func labels(r *rand.Rand, n int) (sql, set string) {
	set = pick(r, "utf8mb4", "latin1", "gbk", "sjis", "utf16", "binary")
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("'%s%d'", pick(r, "a", "it''s ", `"q" `, "größe", "back\\\\slash", "日本", "line\\nbreak", ",_", " x"), i))
		if set == "latin1" || set == "binary" {
			all[i] = strings.ReplaceAll(all[i], "日本", "ñandú")
		}
	}
	return strings.Join(all, ","), set
}

// document is a random JSON value.
func document(r *rand.Rand, depth int) any {
	n := r.IntN(4)
	if depth == 0 {
		n = pick(r, 1, 2, 3, 300)
	} else if depth > 3 {
		n = 0
	}
	switch r.IntN(5) {
	case 0:
		list := []any{}
		for range n {
			list = append(list, document(r, depth+1))
		}
		return list
	case 1, 2:
		object := map[string]any{}
		for i := range n {
			object[pick(r, "", "a", "ü", "long name", `"`, "日本")+strconv.Itoa(i)] = document(r, depth+1)
		}
		return object
	}
	return pick[any](r, nil, true, false, 0, -1, 40000, -40000, 1<<31, -1<<40, uint64(1<<63+1), int64(math.MinInt64), 1.5, 1e-7, 1e100, r.NormFloat64(),
		"", "text \"q\" \\ \n\t\b\f\u0001\u007f é 😀", strings.Repeat("x", 127), strings.Repeat("y", 300+70000/(1+r.IntN(1000))))
}

// Rows of random tables, some of their columns masked, are the same bytes whether a
// copy reads them or the log, in both images of an update as well.
func TestRandomRowsAreTheSameFromTheCopyAndTheLog(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("LOCKSTEP_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("LOCKSTEP_SEED=%d gives the same tables again", seed)
	for _, name := range []string{gomysql.MySQLFlavor, gomysql.MariaDBFlavor} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			f := newFlavor(t, name)
			f.exec("SET sql_mode = 'ALLOW_INVALID_DATES'")
			var types []columnType
			for _, typ := range columnTypes {
				if typ.flavor == "" || typ.flavor == name {
					types = append(types, typ)
				}
			}
			for round := 0; len(types) > 0; round++ {
				n := min(8, len(types))
				f.cfg.ZeroDates, f.cfg.Geometry = pick(r, zeroNull, zeroText), pick(r, geometryJSON, geometryWKT, geometryWKB)
				f.randomTable(r, fmt.Sprintf("t%d", round), types[:n], name)
				if r.IntN(2) == 0 || round%2 == 1 { // each type is in one table at least
					types = types[n:]
				}
			}
		})
	}
}

// randomTable makes a table of the types, under a random key, and compares what
// becomes of its rows.
func (f *flavor) randomTable(r *rand.Rand, table string, types []columnType, name string) {
	f.t.Helper()
	var names, declared, key []string
	var makers []func() string
	masks := Masks{}
	f.cfg.MaskSalt = "0123456789abcdef"
	f.cfg.Masks = func(cdc.TableName) Masks { return masks }
	add := func(typ columnType, inKey bool) {
		c := typ.make(r)
		column := fmt.Sprintf("c%d %s", len(names), pick(r, "plain", `q"uo\te`, "ünï 日本", "back`tick"))
		sql := quote(column) + " " + c.sql
		value := c.value
		if inKey {
			sql += " NOT NULL"
			key = append(key, quote(column))
		} else {
			value = func() string {
				if r.IntN(6) == 0 {
					return "NULL"
				}
				return c.value()
			}
			if strings.HasPrefix(c.sql, "TIMESTAMP") {
				sql += " NULL"
			}
			if r.IntN(3) == 0 {
				masks[column] = pick[Mask](r, "drop", "sha256")
				if strings.HasSuffix(typ.name, "INT") && typ.name[0] != 'P' && typ.name != "MULTIPOINT" || strings.Contains(c.sql, "CHARACTER SET") && !strings.Contains(c.sql, "SET(") || strings.HasPrefix(c.sql, "DEC") {
					masks[column] = pick[Mask](r, "keep first 2", "keep first 1 last 1", "keep last 3")
				}
			}
			if r.IntN(8) == 0 {
				sql += " INVISIBLE"
				if name == gomysql.MariaDBFlavor {
					sql = strings.ReplaceAll(sql, "COMPRESSED INVISIBLE", "COMPRESSED")
				}
			}
		}
		names, declared, makers = append(names, quote(column)), append(declared, sql), append(makers, value)
	}
	for range 1 + r.IntN(2) {
		for {
			if typ := columnTypes[r.IntN(len(columnTypes))]; typ.key && (typ.flavor == "" || typ.flavor == name) {
				add(typ, true)
				break
			}
		}
	}
	for _, typ := range types {
		add(typ, false)
	}
	declared = append(declared, "n INT", "gs INT GENERATED ALWAYS AS (n + 1) STORED", "gv VARCHAR(20) GENERATED ALWAYS AS (CONCAT('v', n)) VIRTUAL")
	r.Shuffle(len(declared), func(i, j int) { declared[i], declared[j] = declared[j], declared[i] })
	r.Shuffle(len(key), func(i, j int) { key[i], key[j] = key[j], key[i] })
	ddl := fmt.Sprintf("CREATE TABLE %s (%s, PRIMARY KEY (%s)) CHARACTER SET utf8mb4", table, strings.Join(declared, ", "), strings.Join(key, ", "))
	f.exec(ddl)
	f.t.Cleanup(func() {
		if f.t.Failed() {
			f.t.Logf("%s", ddl)
		}
	})
	from := f.end()
	var rows []string
	for range 25 {
		values := []string{fmt.Sprint(r.IntN(100))}
		for _, m := range makers {
			values = append(values, m())
		}
		rows = append(rows, "("+strings.Join(values, ", ")+")")
	}
	f.exec(fmt.Sprintf("INSERT IGNORE INTO %s (n, %s) VALUES %s", table, strings.Join(names, ", "), strings.Join(rows, ",\n")))
	for range 4 {
		sets := []string{"n = n + 1"}
		for i, m := range makers {
			if r.IntN(3) == 0 {
				sets = append(sets, names[i]+" = "+m())
			}
		}
		f.exec(fmt.Sprintf("UPDATE IGNORE %s SET %s ORDER BY RAND() LIMIT 3", table, strings.Join(sets, ", ")))
	}
	f.exec(fmt.Sprintf("DELETE FROM %s ORDER BY RAND() LIMIT 2", table))
	f.compare(table, from)
}
