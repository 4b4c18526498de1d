package oracle

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
)

// column is a column of a table and the expression that makes MySQL print it
// without loss, whatever the session's settings.
type column struct {
	name string
	kind kind
	expr string
}

// describe returns the columns of a table or view, and the places of its key's
// columns among them, in the key's order.
func describe(ctx context.Context, conn *sql.Conn, database string, t TableSpec) (columns []column, key []int, err error) {
	rows, err := conn.QueryContext(ctx, `SELECT c.COLUMN_NAME, c.DATA_TYPE, COALESCE(k.SEQ_IN_INDEX, 0)
		FROM information_schema.COLUMNS c
		LEFT JOIN information_schema.STATISTICS k ON k.TABLE_SCHEMA = c.TABLE_SCHEMA AND k.TABLE_NAME = c.TABLE_NAME
		  AND k.COLUMN_NAME = c.COLUMN_NAME AND k.INDEX_NAME = 'PRIMARY'
		WHERE c.TABLE_SCHEMA = ? AND c.TABLE_NAME = ? ORDER BY c.ORDINAL_POSITION`, database, t.Table)
	if err != nil {
		return nil, nil, fmt.Errorf("read the columns: %w", err)
	}
	defer rows.Close()
	places := map[int]int{}
	for rows.Next() {
		var name, dataType string
		var place int
		if err := rows.Scan(&name, &dataType, &place); err != nil {
			return nil, nil, fmt.Errorf("read the columns: %w", err)
		}
		c, err := newColumn(name, dataType)
		if err != nil {
			return nil, nil, err
		}
		if of := slices.Index(t.Key, name); of >= 0 {
			place = of + 1
		}
		if place > 0 {
			places[place] = len(columns)
		}
		columns = append(columns, c)
	}
	if err := rows.Err(); err != nil {
		return nil, nil, fmt.Errorf("read the columns: %w", err)
	}
	if len(places) == 0 {
		return nil, nil, fmt.Errorf("table %s.%s is missing or has no primary key", database, t.Table)
	}
	for place := 1; place <= len(places); place++ {
		key = append(key, places[place])
	}
	return columns, key, nil
}

func newColumn(name, dataType string) (column, error) {
	q := quote(name)
	c := column{name: name, kind: text}
	switch strings.ToLower(dataType) {
	case "tinyint", "smallint", "mediumint", "int", "bigint":
		c.kind, c.expr = exactNumber, "CAST("+q+" AS CHAR)"
	case "year", "bit":
		c.kind, c.expr = exactNumber, "CAST(CAST("+q+" AS UNSIGNED) AS CHAR)"
	case "float":
		// As a double, because a float is printed with six digits.
		c.kind, c.expr = float32Number, "CAST(CAST("+q+" AS DOUBLE) AS CHAR)"
	case "double":
		c.kind, c.expr = float64Number, "CAST("+q+" AS CHAR)"
	case "decimal", "date", "time":
		c.expr = "CAST(" + q + " AS CHAR)"
	case "char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum":
		c.expr = "CONVERT(" + q + " USING utf8mb4)"
	case "set":
		c.kind, c.expr = labels, "CONVERT("+q+" USING utf8mb4)"
	case "datetime":
		c.kind, c.expr = dateTime, "CAST("+q+" AS CHAR)"
	case "timestamp":
		c.kind, c.expr = timestamp, "CAST("+q+" AS CHAR)"
	case "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob":
		c.kind, c.expr = binary, q
	case "json":
		c.kind, c.expr = jsonValue, "CONVERT(CAST("+q+" AS CHAR) USING utf8mb4)"
	default:
		return c, fmt.Errorf("column %s is of type %s, which is not known here", name, dataType)
	}
	return c, nil
}

// session makes what MySQL prints depend on nothing that the caller has set.
var session = []string{
	"SET NAMES utf8mb4",
	"SET SESSION time_zone = '+00:00'",
	"SET SESSION sql_mode = ''",
	"SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
	"START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
}

// query opens a session of its own, describes the table and runs the SELECT that
// clauses end. Each row goes to handle as fields, the key's apart.
func query(ctx context.Context, db *sql.DB, database string, t TableSpec, clauses string, keyOnly bool, handle func(key, fields []field) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("connect to mysql: %w", err)
	}
	defer conn.Close()
	// The session's settings must not travel back into the caller's pool.
	defer conn.Raw(func(any) error { return driver.ErrBadConn })
	for _, statement := range session {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	columns, key, err := describe(ctx, conn, database, t)
	if err != nil {
		return err
	}
	if keyOnly {
		only := make([]column, len(key))
		for i, at := range key {
			only[i], key[i] = columns[at], i
		}
		columns = only
	}
	exprs, order := make([]string, len(columns)), make([]string, len(key))
	for i, c := range columns {
		exprs[i] = c.expr
	}
	for i, at := range key {
		order[i] = quote(columns[at].name)
	}
	if clauses == "" {
		clauses = "ORDER BY " + strings.Join(order, ", ")
	}
	rows, err := conn.QueryContext(ctx, fmt.Sprintf("SELECT %s FROM %s.%s %s", strings.Join(exprs, ", "), quote(database), quote(t.Table), clauses))
	if err != nil {
		return fmt.Errorf("read %s.%s: %w", database, t.Table, err)
	}
	defer rows.Close()
	raw := make([]sql.RawBytes, len(columns))
	into := make([]any, len(columns))
	for i := range raw {
		into[i] = &raw[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return fmt.Errorf("read %s.%s: %w", database, t.Table, err)
		}
		fields, keyFields := make([]field, len(columns)), make([]field, len(key))
		for i, c := range columns {
			fields[i] = newField(c.name, c.kind, raw[i])
		}
		for i, at := range key {
			keyFields[i] = fields[at]
		}
		if err := handle(keyFields, fields); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read %s.%s: %w", database, t.Table, err)
	}
	return nil
}

// readRows hands over all rows of a table, in batches.
func readRows(ctx context.Context, db *sql.DB, database string, of TableSpec, t template, handle func([]row) error) error {
	var batch []row
	err := query(ctx, db, database, of, "", false, func(key, fields []field) error {
		r, err := newRow(t, key, fields)
		if err != nil {
			return err
		}
		batch = append(batch, r)
		if len(batch) < batchRows {
			return nil
		}
		full := batch
		batch = nil
		return handle(full)
	})
	if err != nil || len(batch) == 0 {
		return err
	}
	return handle(batch)
}

func newRow(t template, key, fields []field) (row, error) {
	r := row{id: joinKey(key), fields: fields}
	if len(t.names) == 0 {
		return r, nil
	}
	var err error
	r.redisKey, err = t.render(key)
	return r, err
}

func quote(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }
