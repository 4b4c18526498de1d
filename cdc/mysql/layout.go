package mysql

import (
	"fmt"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"

	"lockstep/cdc"
)

// layout says how the rows of one table map, or of one SELECT, are read.
type layout struct {
	table   cdc.TableName
	columns []column
	key     []int // indexes of the primary key's columns, in the key's order
}

// appendRow appends the row as a JSON object in the table's order.
func (l *layout) appendRow(dst []byte, row []any) ([]byte, error) {
	if len(row) != len(l.columns) {
		return dst, fmt.Errorf("%s: a row has %d columns, its table map %d", l.table, len(row), len(l.columns))
	}
	dst = append(dst, '{')
	var err error
	for i := range l.columns {
		if i > 0 {
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
func layoutOf(tm *replication.TableMapEvent, sets collations, zeroDates string) (*layout, error) {
	name := cdc.TableName{DB: string(tm.Schema), Table: string(tm.Table)}
	names := tm.ColumnNameString()
	if len(names) != int(tm.ColumnCount) || tm.SignednessBitmap == nil && hasNumber(tm) {
		return nil, stopf("SET PERSIST binlog_row_metadata = FULL",
			"the log of %s does not name its columns (binlog_row_metadata is not FULL)", name)
	}
	if len(tm.PrimaryKey) == 0 {
		return nil, stopf(fmt.Sprintf("ALTER TABLE %s ADD PRIMARY KEY (...)", quoteTable(name)),
			"table %s has no primary key, so its rows cannot be told apart", name)
	}
	l := &layout{table: name, columns: make([]column, tm.ColumnCount)}
	for _, i := range tm.PrimaryKey {
		l.key = append(l.key, int(i))
	}
	unsigned := tm.UnsignedMap()
	texts, enums := tm.CollationMap(), tm.EnumSetCollationMap()
	enumLabels, setLabels := tm.EnumStrValueMap(), tm.SetStrValueMap()
	for i := range l.columns {
		c := &l.columns[i]
		c.setName(names[i])
		c.zeroDates = zeroDates
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
		case gomysql.MYSQL_TYPE_GEOMETRY, gomysql.MYSQL_TYPE_VECTOR:
			c.form = formBytes
		case gomysql.MYSQL_TYPE_ENUM:
			c.form = formEnum
			c.labels, err = decodeLabels(enumLabels[i], enums[i], sets)
		case gomysql.MYSQL_TYPE_SET:
			c.form = formSet
			c.labels, err = decodeLabels(setLabels[i], enums[i], sets)
		case gomysql.MYSQL_TYPE_STRING, gomysql.MYSQL_TYPE_VARCHAR, gomysql.MYSQL_TYPE_VAR_STRING, gomysql.MYSQL_TYPE_BLOB:
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
	return l, nil
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

func decodeLabels(raw []string, collation uint64, sets collations) ([]string, error) {
	if len(raw) == 0 {
		return nil, fmt.Errorf("the table map names no labels")
	}
	cs, err := sets.charset(collation)
	if err != nil {
		return nil, err
	}
	labels := make([]string, len(raw))
	for i, r := range raw {
		if labels[i], err = cs.text(r); err != nil {
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
