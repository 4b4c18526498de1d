package mysql

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sort"
	"strings"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"

	"lockstep/cdc"
	"lockstep/internal/certs"
)

// queryTimeout is how long the server may be silent before it has answered.
const queryTimeout = 5 * time.Minute

// connect opens a session whose texts are UTF-8 and whose times are UTC.
func connect(ctx context.Context, cfg Config) (*client.Conn, error) {
	tlsConfig, err := cfg.TLS.client(cfg.Addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	began := time.Now()
	late := func(err error) error { // the connection was closed under it, and that is all it says
		if ctx.Err() != context.DeadlineExceeded {
			return err
		}
		return fmt.Errorf("no answer for %s", time.Since(began).Round(100*time.Millisecond))
	}
	// The library hears ctx only while it dials; a server that accepts and never
	// says a word would hold it for ever.
	var release func() bool
	dial := func(ctx2 context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx2, network, addr)
		if err == nil {
			release = context.AfterFunc(ctx, func() { conn.Close() })
		}
		return conn, err
	}
	conn, err := client.ConnectWithDialer(ctx, "tcp", cfg.Addr, cfg.User, cfg.Password.Reveal(), "", dial,
		func(c *client.Conn) error {
			c.ReadTimeout = queryTimeout
			if tlsConfig != nil {
				c.SetTLSConfig(tlsConfig)
			}
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("connect to MySQL at %s as %s: %w", cfg.Addr, cfg.User, certs.Explain(late(err), "source.tls.", cfg.TLS.CAFile, cfg.TLS.CertFile))
	}
	// A session that lives for a whole copy must not be cut off while the reader
	// waits for Kafka.
	for _, set := range []string{
		"SET NAMES utf8mb4", "SET time_zone = '+00:00'", "SET sql_mode = ''",
		"SET net_write_timeout = 3600", "SET wait_timeout = 28800",
	} {
		if _, err := conn.Execute(set); err != nil {
			conn.Close()
			return nil, fmt.Errorf("prepare the session on %s: %s: %w", cfg.Addr, set, late(err))
		}
	}
	release()
	return conn, nil
}

// until closes conn when ctx ends, so that no query outlives it; the returned
// function ends the watch and closes conn.
func until(ctx context.Context, conn *client.Conn) (done func()) {
	stop := context.AfterFunc(ctx, func() { conn.Conn.Conn.Close() })
	return func() {
		stop()
		conn.Close()
	}
}

func queryRows(conn *client.Conn, query string, args ...any) ([][]string, error) {
	res, err := conn.Execute(query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.SplitN(query, "\n", 2)[0], err)
	}
	defer res.Close()
	rows := make([][]string, res.RowNumber())
	for i := range rows {
		rows[i] = make([]string, res.ColumnNumber())
		for j := range rows[i] {
			field, err := res.GetString(i, j)
			if err != nil {
				return nil, err
			}
			rows[i][j] = strings.Clone(field) // it lies in a buffer that goes back to a pool
		}
	}
	return rows, nil
}

func queryOne(conn *client.Conn, query string) (string, error) {
	rows, err := queryRows(conn, query)
	if err != nil {
		return "", err
	}
	if len(rows) != 1 || len(rows[0]) == 0 {
		return "", fmt.Errorf("%s: %d rows came back, not one", query, len(rows))
	}
	return rows[0][0], nil
}

func readCollations(conn *client.Conn) (collations, error) {
	res, err := conn.Execute("SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS WHERE ID IS NOT NULL")
	if err != nil {
		return nil, fmt.Errorf("read the server's collations: %w", err)
	}
	defer res.Close()
	sets := make(collations, res.RowNumber())
	for i := range res.RowNumber() {
		id, err := res.GetUint(i, 0)
		if err != nil {
			return nil, err
		}
		name, err := res.GetString(i, 1)
		if err != nil {
			return nil, err
		}
		sets[id] = strings.Clone(name)
	}
	return sets, nil
}

// systemSchemas are never captured.
const systemSchemas = "'mysql','information_schema','performance_schema','sys'"

// listTables returns the base tables that match, sorted; also those that MariaDB
// keeps the history of, which tableLayout refuses.
func listTables(conn *client.Conn, match func(cdc.TableName) bool) ([]cdc.TableName, error) {
	rows, err := queryRows(conn, "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND TABLE_SCHEMA NOT IN ("+systemSchemas+")")
	if err != nil {
		return nil, err
	}
	var tables []cdc.TableName
	for _, r := range rows {
		if t := (cdc.TableName{DB: r[0], Table: r[1]}); match(t) {
			tables = append(tables, t)
		}
	}
	sort.Slice(tables, func(i, j int) bool { return tables[i].String() < tables[j].String() })
	return tables, nil
}

// tableLayout reads the present shape of a table. It returns cdc.ErrNoTable for
// a table that does not exist and a Stop for one that cannot be captured.
func tableLayout(conn *client.Conn, t cdc.TableName, p policy) (*layout, error) {
	if err := refuseVersioned(conn, t); err != nil {
		return nil, err
	}
	rows, err := queryRows(conn, `SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, IFNULL(CHARACTER_SET_NAME, ''), IFNULL(DATETIME_PRECISION, 0), IFNULL(GENERATION_EXPRESSION, ''), IS_NULLABLE
		FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION`, t.DB, t.Table)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("table %s: %w", t, cdc.ErrNoTable)
	}
	l := &layout{table: t, columns: make([]column, len(rows))}
	index := make(map[string]int, len(rows))
	for i, r := range rows {
		c := &l.columns[i]
		c.setName(r[0])
		c.sqlType, _, _ = strings.Cut(r[2], " /*") // MariaDB writes COMPRESSED as a comment
		c.policy = p
		c.unsigned = strings.Contains(r[2], "unsigned")
		fmt.Sscan(r[4], &c.fraction)
		c.nullable = r[6] == "YES"
		if c.fraction > 0 && strings.Contains(r[2], "/* mariadb-5.3 */") {
			return nil, stopf("SET GLOBAL mysql56_temporal_format = ON, then ALTER TABLE "+quoteTable(t)+" FORCE",
				"%s: column %s is kept in the format of MariaDB 5.3, of which the log does not say how long it is", t, r[0])
		}
		if err := c.fromType(r[1], r[3]); err != nil {
			return nil, stopf("", "%s: column %s: %v", t, r[0], err)
		}
		index[r[0]] = i
	}
	keys, err := queryRows(conn, `SELECT COLUMN_NAME FROM information_schema.STATISTICS
		WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND INDEX_NAME = 'PRIMARY' ORDER BY SEQ_IN_INDEX`, t.DB, t.Table)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, stopf(fmt.Sprintf("ALTER TABLE %s ADD PRIMARY KEY (...)", quoteTable(t)),
			"table %s has no primary key, so its rows cannot be told apart", t)
	}
	for _, k := range keys {
		l.addKey(index[k[0]])
	}
	if err := l.mask(p); err != nil {
		return nil, err
	}
	l.sign()
	for i, r := range rows {
		if err := l.masksWhatItIsMadeOf(i, r[5]); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// refuseVersioned stops at a table whose rows in the log are history, too. The log
// itself does not tell.
func refuseVersioned(conn *client.Conn, t cdc.TableName) error {
	versioned, err := queryRows(conn, "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND TABLE_TYPE = 'SYSTEM VERSIONED'", t.DB, t.Table)
	if err != nil || len(versioned) == 0 {
		return err
	}
	return stopf(fmt.Sprintf("ALTER TABLE %s DROP SYSTEM VERSIONING (or leave the table out)", quoteTable(t)),
		"table %s is system-versioned, so its log has rows that are history", t)
}

// fromType sets the form of a column from its declared type.
func (c *column) fromType(dataType, charset string) error {
	if c.sqlType == "year(2)" {
		return errors.New("the log has its years with four digits and a SELECT with two; change it to YEAR")
	}
	switch dataType {
	case "tinyint", "smallint", "mediumint", "int", "bigint", "year":
		c.form, c.kind = formInt, cdc.KindInt
		if dataType == "bigint" && c.unsigned {
			c.kind = cdc.KindUint
		}
	case "bit":
		c.form, c.kind, c.unsigned = formInt, cdc.KindInt, true
		if c.sqlType == "bit(64)" {
			c.kind = cdc.KindUint
		}
	case "float":
		c.form, c.kind = formFloat, cdc.KindFloat
	case "double":
		c.form, c.kind = formDouble, cdc.KindDouble
	case "decimal":
		c.form, c.kind = formDecimal, cdc.KindDecimal
	case "date":
		c.form, c.kind = formDate, cdc.KindDate
	case "datetime":
		c.form, c.kind = formDateTime, cdc.KindDateTime
	case "timestamp":
		c.form, c.kind = formStamp, cdc.KindTimestamp
	case "time":
		c.form, c.kind = formTime, cdc.KindKeyword
	case "json":
		c.form, c.kind = formJSON, cdc.KindJSON
	case "enum":
		c.form, c.kind = formEnum, cdc.KindKeyword
	case "set":
		c.form, c.kind = formSet, cdc.KindSet
	case "char", "varchar":
		c.form, c.kind = formText, cdc.KindKeyword
		c.cs.name = "utf8mb4" // the session's
		if charset == "binary" {
			c.form, c.kind = formBytes, cdc.KindBytes
		}
	case "tinytext", "text", "mediumtext", "longtext":
		c.form, c.kind = formText, cdc.KindText
		c.cs.name = "utf8mb4"
	case "vector":
		c.form, c.kind = formVector, cdc.KindFloat
	case "geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geomcollection", "geometrycollection":
		c.form = formGeometry
		c.kind = map[string]cdc.Kind{geometryJSON: cdc.KindJSON, geometryWKT: cdc.KindText, geometryWKB: cdc.KindBytes}[c.geometry]
	case "uuid", "inet4", "inet6": // of MariaDB, whose log does not tell them from BINARY
		c.form, c.kind = formBytes, cdc.KindBytes
	case "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob":
		c.form, c.kind = formBytes, cdc.KindBytes
	default:
		return fmt.Errorf("the type %s is not known", c.sqlType)
	}
	return nil
}

// selectExpr is how the column is read by a SELECT so that append gets an exact
// value: the text protocol rounds FLOAT and DOUBLE(m,d), and gives BIT and YEAR as bytes.
func (c *column) selectExpr() string {
	name := quote(c.name)
	switch {
	case c.form == formFloat || c.form == formDouble && strings.Contains(c.sqlType, "("):
		return name + " * 1e0"
	case c.form == formInt && (strings.HasPrefix(c.sqlType, "bit") || strings.HasPrefix(c.sqlType, "year")):
		return "CAST(" + name + " AS UNSIGNED)"
	}
	switch c.sqlType {
	case "uuid", "inet6":
		return "CAST(" + name + " AS BINARY(16))"
	case "inet4":
		return "CAST(" + name + " AS BINARY(4))"
	}
	return name
}

// value turns a field of a SELECT into what append takes: nil, int64, uint64,
// float64, or bytes that are good until the next row is read.
func value(f *gomysql.FieldValue) any {
	switch f.Type {
	case gomysql.FieldValueTypeNull:
		return nil
	case gomysql.FieldValueTypeSigned:
		return f.AsInt64()
	case gomysql.FieldValueTypeUnsigned:
		return f.AsUint64()
	case gomysql.FieldValueTypeFloat:
		return f.AsFloat64()
	}
	return f.AsString()
}

// table is what the stores need to know of l.
func (l *layout) describe() cdc.Table {
	t := cdc.Table{Name: l.table}
	for _, c := range l.columns {
		if c.dropped() {
			continue
		}
		t.Columns = append(t.Columns, cdc.Column{Name: c.name, Kind: c.kind, SQLType: c.sqlType, Nullable: c.nullable})
	}
	for _, i := range l.key {
		t.Key = append(t.Key, l.columns[i].name)
	}
	return t
}

// Describe reads the present shape of a table. The error wraps cdc.ErrNoTable
// when there is no such table.
func Describe(ctx context.Context, cfg Config, name cdc.TableName) (cdc.Table, error) {
	conn, err := connect(ctx, cfg)
	if err != nil {
		return cdc.Table{}, err
	}
	defer until(ctx, conn)()
	l, err := tableLayout(conn, name, cfg.policy())
	if err != nil {
		return cdc.Table{}, fmt.Errorf("describe %s: %w", name, err)
	}
	return l.describe(), nil
}

func quote(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

func quoteTable(t cdc.TableName) string { return quote(t.DB) + "." + quote(t.Table) }
