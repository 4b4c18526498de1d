package mysql

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"

	"lockstep/cdc"
)

// layout says how the rows of one table map, or of one SELECT, are read.
type layout struct {
	table   cdc.TableName
	columns []column
	key     []int // indexes of the primary key's columns, in the key's order
	print   uint32
}

// sign gives the layout its print, by which the sinks tell that a table was altered: it is
// another one when a column that is not dropped has another name or type. That of a table
// map and that of a SELECT of the same table are the same.
func (l *layout) sign() {
	h := fnv.New32a()
	for i := range l.columns {
		if c := &l.columns[i]; !c.dropped() {
			family := c.family()
			unsigned := c.unsigned && c.form == formInt && family != "year" // which is unsigned in the log alone
			fmt.Fprintf(h, "%s%d %t %s %t\n", c.field, c.form, unsigned, family, c.mask != nil)
		}
	}
	l.print = max(h.Sum32(), 1)
}

// family tells types apart whose values become JSON in the same way, as far as the log and
// information_schema both do.
func (c *column) family() string {
	if c.sqlType == "" {
		return families[c.log.typ]
	}
	word := c.sqlType[:len(c.sqlType)-len(strings.TrimLeft(c.sqlType, "abcdefghijklmnopqrstuvwxyz"))]
	switch {
	case strings.HasSuffix(word, "text") || strings.HasSuffix(word, "blob"):
		return "blob"
	case word == "varchar" || word == "varbinary":
		return "varchar"
	case word == "char" || word == "binary", word == "uuid" || word == "inet":
		return "char"
	case c.form == formInt:
		return word
	}
	return ""
}

// families are those of the types of the log.
var families = map[byte]string{
	gomysql.MYSQL_TYPE_BLOB: "blob", gomysql.MYSQL_TYPE_VARCHAR: "varchar", gomysql.MYSQL_TYPE_VAR_STRING: "varchar", gomysql.MYSQL_TYPE_STRING: "char",
	gomysql.MYSQL_TYPE_TINY: "tinyint", gomysql.MYSQL_TYPE_SHORT: "smallint", gomysql.MYSQL_TYPE_INT24: "mediumint", gomysql.MYSQL_TYPE_LONG: "int",
	gomysql.MYSQL_TYPE_LONGLONG: "bigint", gomysql.MYSQL_TYPE_YEAR: "year", gomysql.MYSQL_TYPE_BIT: "bit",
}

// appendRow appends the row as a JSON object in the table's order.
func (l *layout) appendRow(dst []byte, row []any) ([]byte, error) {
	if len(row) != len(l.columns) {
		return dst, fmt.Errorf("%s: a row has %d columns, its table map %d", l.table, len(row), len(l.columns))
	}
	dst = append(dst, '{')
	open := len(dst)
	var err error
	for i := range l.columns {
		if l.columns[i].dropped() {
			continue
		}
		if len(dst) > open {
			dst = append(dst, ',')
		}
		dst = append(dst, l.columns[i].field...)
		if dst, err = l.columns[i].append(dst, row[i]); err != nil {
			return dst, fmt.Errorf("%s: %w", l.table, err)
		}
	}
	return append(dst, '}'), nil
}

// appendKey appends the primary key as a JSON object in the key's order.
func (l *layout) appendKey(dst []byte, row []any) ([]byte, error) {
	dst = append(dst, '{')
	var err error
	for n, i := range l.key {
		if n > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, l.columns[i].field...)
		if dst, err = l.columns[i].append(dst, row[i]); err != nil {
			return dst, fmt.Errorf("%s: %w", l.table, err)
		}
	}
	return append(dst, '}'), nil
}

// collations maps a collation's id to its character set.
type collations map[uint64]string

const binaryCollation = 63

// layoutOf reads a table map. It stops on a table it cannot read exactly.
func layoutOf(tm *replication.TableMapEvent, sets collations, p policy) (*layout, error) {
	name := cdc.TableName{DB: string(tm.Schema), Table: string(tm.Table)}
	names := tm.ColumnNameString()
	if len(names) != int(tm.ColumnCount) || tm.SignednessBitmap == nil && hasNumber(tm) {
		return nil, stopf("SET GLOBAL binlog_row_metadata = FULL",
			"the log of %s does not name its columns (binlog_row_metadata is not FULL)", name)
	}
	if len(tm.PrimaryKey) == 0 {
		return nil, stopf(fmt.Sprintf("ALTER TABLE %s ADD PRIMARY KEY (...)", quoteTable(name)),
			"table %s has no primary key, so its rows cannot be told apart", name)
	}
	l := &layout{table: name, columns: make([]column, tm.ColumnCount)}
	unsigned := tm.UnsignedMap()
	texts, enums := textCollations(tm), tm.EnumSetCollationMap()
	enumLabels, setLabels := tm.EnumStrValueMap(), tm.SetStrValueMap()
	for i := range l.columns {
		c := &l.columns[i]
		c.setName(names[i])
		c.policy = p
		c.unsigned = unsigned[i]
		meta := tm.ColumnMeta[i]
		typ := tm.ColumnType[i]
		if typ == gomysql.MYSQL_TYPE_STRING {
			typ, c.width = realString(meta)
		}
		collation, isText := texts[i]
		var err error
		switch typ {
		case gomysql.MYSQL_TYPE_TINY, gomysql.MYSQL_TYPE_SHORT, gomysql.MYSQL_TYPE_INT24,
			gomysql.MYSQL_TYPE_LONG, gomysql.MYSQL_TYPE_LONGLONG, gomysql.MYSQL_TYPE_YEAR:
			c.form = formInt
		case gomysql.MYSQL_TYPE_BIT:
			c.form, c.unsigned = formInt, true
		case gomysql.MYSQL_TYPE_FLOAT:
			c.form = formFloat
		case gomysql.MYSQL_TYPE_DOUBLE:
			c.form = formDouble
		case gomysql.MYSQL_TYPE_NEWDECIMAL:
			c.form = formDecimal
		case gomysql.MYSQL_TYPE_DATE:
			c.form = formDate
		case gomysql.MYSQL_TYPE_DATETIME, gomysql.MYSQL_TYPE_DATETIME2:
			c.form, c.fraction = formDateTime, int(meta)
		case gomysql.MYSQL_TYPE_TIMESTAMP, gomysql.MYSQL_TYPE_TIMESTAMP2:
			c.form, c.fraction = formStamp, int(meta)
		case gomysql.MYSQL_TYPE_TIME, gomysql.MYSQL_TYPE_TIME2:
			c.form, c.fraction = formTime, int(meta)
		case gomysql.MYSQL_TYPE_JSON:
			c.form = formJSON
		case gomysql.MYSQL_TYPE_GEOMETRY:
			c.form = formGeometry
		case gomysql.MYSQL_TYPE_VECTOR:
			c.form = formVector
		case gomysql.MYSQL_TYPE_ENUM:
			c.form = formEnum
			c.labels, err = decodeLabels(enumLabels[i], enums[i], sets)
		case gomysql.MYSQL_TYPE_SET:
			c.form = formSet
			c.labels, err = decodeLabels(setLabels[i], enums[i], sets)
		case gomysql.MYSQL_TYPE_STRING, gomysql.MYSQL_TYPE_VARCHAR, gomysql.MYSQL_TYPE_VAR_STRING, gomysql.MYSQL_TYPE_BLOB,
			typeBlobCompressed, typeVarcharCompressed:
			switch {
			case !isText:
				err = fmt.Errorf("the table map names no collation")
			case collation == binaryCollation:
				c.form = formBytes
			default:
				c.form = formText
				c.cs, err = sets.charset(collation)
			}
		default:
			err = fmt.Errorf("the column type %d is not known", tm.ColumnType[i])
		}
		if err == nil {
			err = c.setLogged(typ, meta, c.width)
		}
		if c.form != formBytes || typ != gomysql.MYSQL_TYPE_STRING {
			c.width = 0
		}
		if err != nil {
			return nil, stopf("", "%s: column %s: %v", name, names[i], err)
		}
	}
	for _, i := range tm.PrimaryKey {
		if i >= uint64(len(l.columns)) {
			return nil, fmt.Errorf("the table map of %s names column %d in the primary key, and has %d", name, i, len(l.columns))
		}
		l.addKey(int(i))
	}
	return l, nil
}

// addKey makes a column the next one of the primary key. A zero date in a key
// keeps its digits: null would be the same key for many rows.
func (l *layout) addKey(i int) {
	l.key = append(l.key, i)
	if l.columns[i].zeroDates == zeroNull {
		l.columns[i].zeroDates = zeroText
	}
}

// The types of MariaDB's columns that are COMPRESSED.
const (
	typeBlobCompressed    = 140
	typeVarcharCompressed = 141
)

func isCompressed(typ byte) bool { return typ == typeBlobCompressed || typ == typeVarcharCompressed }

// textCollations gives the collations of a table map's text columns by their
// index. The library does not count compressed columns and VECTOR, which the
// servers do.
func textCollations(tm *replication.TableMapEvent) map[int]uint64 {
	if len(tm.DefaultCharset)+len(tm.ColumnCharset) == 0 {
		return nil
	}
	texts := map[int]uint64{}
	n := 0
	for i := range int(tm.ColumnCount) {
		if typ := tm.ColumnType[i]; !tm.IsCharacterColumn(i) && !isCompressed(typ) && typ != gomysql.MYSQL_TYPE_VECTOR {
			continue
		}
		if n < len(tm.ColumnCharset) {
			texts[i] = tm.ColumnCharset[n]
		} else if len(tm.DefaultCharset) > 0 {
			texts[i] = tm.DefaultCharset[0]
			for j := 1; j+1 < len(tm.DefaultCharset); j += 2 {
				if tm.DefaultCharset[j] == uint64(n) {
					texts[i] = tm.DefaultCharset[j+1]
				}
			}
		}
		n++
	}
	return texts
}

// mendTableMap reads the columns' metadata of a table map anew where it has
// compressed columns, because the library does not know that theirs has bytes. Raw
// is the whole event. It must be called before layoutOf for a map of MariaDB.
func mendTableMap(tm *replication.TableMapEvent, raw []byte) error {
	if !slices.ContainsFunc(tm.ColumnType, isCompressed) {
		return nil
	}
	short := fmt.Errorf("the table map of %s.%s ends too early", tm.Schema, tm.Table)
	at := replication.EventHeaderSize + 6 + 2 + 1 + len(tm.Schema) + 2 + len(tm.Table) + 1
	if at >= len(raw) {
		return short
	}
	_, _, n := gomysql.LengthEncodedInt(raw[at:])
	if at += n + len(tm.ColumnType); at >= len(raw) {
		return short
	}
	size, _, n := gomysql.LengthEncodedInt(raw[at:])
	if at += n; size > uint64(len(raw)-at) {
		return short
	}
	meta := raw[at : at+int(size)]
	for i, typ := range tm.ColumnType {
		n := 0
		switch typ {
		case gomysql.MYSQL_TYPE_STRING, gomysql.MYSQL_TYPE_NEWDECIMAL, gomysql.MYSQL_TYPE_VAR_STRING, gomysql.MYSQL_TYPE_VARCHAR, gomysql.MYSQL_TYPE_BIT, typeVarcharCompressed:
			n = 2
		case gomysql.MYSQL_TYPE_BLOB, gomysql.MYSQL_TYPE_DOUBLE, gomysql.MYSQL_TYPE_FLOAT, gomysql.MYSQL_TYPE_GEOMETRY, gomysql.MYSQL_TYPE_JSON,
			gomysql.MYSQL_TYPE_TIME2, gomysql.MYSQL_TYPE_DATETIME2, gomysql.MYSQL_TYPE_TIMESTAMP2, typeBlobCompressed:
			n = 1
		}
		if n > len(meta) {
			return short
		}
		tm.ColumnMeta[i] = uint16(littleEndian(meta[:n]))
		if typ == gomysql.MYSQL_TYPE_STRING || typ == gomysql.MYSQL_TYPE_NEWDECIMAL {
			tm.ColumnMeta[i] = uint16(bigEndian(meta[:n]))
		}
		meta = meta[n:]
	}
	return nil
}

// isSequence reports whether a table map is that of a MariaDB sequence, which logs
// its values as rows of a table with these columns and no key.
func isSequence(tm *replication.TableMapEvent) bool {
	return len(tm.PrimaryKey) == 0 && strings.Join(tm.ColumnNameString(), " ") ==
		"next_not_cached_value minimum_value maximum_value start_value increment cache_size cycle_option cycle_count"
}

func hasNumber(tm *replication.TableMapEvent) bool {
	for i := range int(tm.ColumnCount) {
		if tm.IsNumericColumn(i) {
			return true
		}
	}
	return false
}

// realString unpacks the two bytes of metadata of a MYSQL_TYPE_STRING column:
// the real type (CHAR, ENUM and SET share it) and the length in bytes.
func realString(meta uint16) (typ byte, length int) {
	if meta < 256 {
		return gomysql.MYSQL_TYPE_STRING, int(meta)
	}
	b0, b1 := byte(meta>>8), byte(meta)
	if b0&0x30 != 0x30 {
		return b0 | 0x30, int(uint16(b1) | uint16((b0&0x30)^0x30)<<4)
	}
	return b0, int(b1)
}

func decodeLabels(raw []string, collation uint64, sets collations) ([][]byte, error) {
	if len(raw) == 0 {
		return nil, fmt.Errorf("the table map names no labels")
	}
	cs, err := sets.charset(collation)
	if err != nil {
		return nil, err
	}
	labels := make([][]byte, len(raw))
	for i, r := range raw {
		if labels[i], err = cs.appendText(nil, []byte(r)); err != nil {
			return nil, err
		}
	}
	return labels, nil
}

func (s collations) charset(id uint64) (charset, error) {
	name, ok := s[id]
	if !ok {
		return charset{}, fmt.Errorf("collation %d is not known to the server", id)
	}
	if name == "binary" { // an enum with a binary collation: its labels are ASCII or UTF-8
		name = "utf8mb4"
	}
	return newCharset(name)
}
