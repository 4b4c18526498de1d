package mysql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"

	"lockstep/cdc"
)

// RowReader reads rows of one table as the server has them now, through the encoders of
// the log, masks included. It is for one goroutine.
type RowReader struct {
	table  cdc.Table
	layout uint32 // of a Change

	conn *client.Conn
	done func()
	in   *tableIn
	// threads is the limit of Busy.
	threads int
	policy  policy

	key, row []byte
	values   []any
}

// OpenRows opens a reader for the rows of a table that match where, or for all when that
// is empty. ctx ends what it does.
func OpenRows(ctx context.Context, cfg Config, t cdc.TableName, where string) (*RowReader, error) {
	conn, err := connectCopier(ctx, cfg)
	if err != nil {
		return nil, err
	}
	r, err := newRowReader(ctx, conn, cfg, t, where)
	if err == nil && r.in != nil {
		if err = errors.Join(mayReadAll(conn, t, cfg.User), checkWhere(conn, t, where)); err != nil {
			r.Close()
		}
	}
	return r, err
}

// newRowReader makes a reader of a connection, which it ends when there is none.
func newRowReader(ctx context.Context, conn *client.Conn, cfg Config, t cdc.TableName, where string) (*RowReader, error) {
	r := &RowReader{table: cdc.Table{Name: t}, conn: conn, done: until(ctx, conn), threads: cfg.Snapshot.MaxThreadsRunning, policy: cfg.policy()}
	l, err := tableLayout(conn, t, r.policy)
	switch {
	case errors.Is(err, cdc.ErrNoTable):
		return r, nil
	case err != nil:
		r.done()
		return nil, err
	}
	r.table, r.layout, r.in, r.values = l.describe(), l.print, newTableIn(l, where), make([]any, len(l.columns))
	return r, nil
}

// Table is the table as it was when the reader was opened, without columns when there was
// none, and the layout of a Change of its rows.
func (r *RowReader) Table() (cdc.Table, uint32) { return r.table, r.layout }

// Same reports whether the columns of the table are those that the reader reads.
func (r *RowReader) Same() (bool, error) {
	l, err := tableLayout(r.conn, r.table.Name, r.policy)
	switch {
	case errors.Is(err, cdc.ErrNoTable):
		return r.in == nil, nil
	case err != nil:
		return false, err
	}
	return l.print == r.layout, nil
}

// Close ends the connection.
func (r *RowReader) Close() { r.done() }

// Next reads the rows behind a key, in the order of the key: at most so many, and no more
// once they have that many bytes. When it returns none there are none.
func (r *RowReader) Next(after []byte, most, bytes int) ([]cdc.Row, error) {
	if r.in == nil {
		return nil, nil
	}
	query, err := r.in.selectRows(after, nil, most)
	if err != nil {
		return nil, err
	}
	return r.read(query, bytes)
}

// Last reads the rows with the highest keys.
func (r *RowReader) Last(most int) ([]cdc.Row, error) {
	if r.in == nil {
		return nil, nil
	}
	where, err := r.in.within(nil, nil)
	if err != nil {
		return nil, err
	}
	return r.read("SELECT "+r.in.exprs(r.in.all())+r.in.from()+where+r.in.order(" DESC")+fmt.Sprintf(" LIMIT %d", most), 0)
}

// Listed reads the rows with these keys; those without one come with their key alone. The
// condition does not count.
func (r *RowReader) Listed(keys [][]byte) ([]cdc.Row, error) {
	var buf buffer
	err := r.eachListed(keys, func(key, row []byte) error {
		buf.add(key, row)
		return nil
	})
	return buf.all(), err
}

// eachListed calls fn with each of the keys, as it was given, and its row, which is nil where
// there is none and good until fn returns.
func (r *RowReader) eachListed(keys [][]byte, fn func(key, row []byte) error) error {
	for chunk := range slices.Chunk(keys, keyChunk) {
		wanted := map[string][]byte{} // by the key as rows have it: JSON can be written in other ways
		var list [][]byte
		for _, key := range chunk {
			if r.in != nil {
				if _, err := r.in.values(key); err == nil {
					wanted[string(r.in.ordered(key))] = key
					list = append(list, key)
					continue
				}
			}
			if err := fn(key, nil); err != nil {
				return err
			}
		}
		if len(list) == 0 {
			continue
		}
		query, err := r.in.selectListed(list)
		if err != nil {
			return err
		}
		err = r.each(query, func(key, row []byte) error {
			given, ok := wanted[string(key)]
			if !ok {
				return nil // equal by the collation of a column
			}
			delete(wanted, string(key))
			return fn(given, row)
		})
		if err != nil {
			return err
		}
		for _, key := range wanted {
			if err := fn(key, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *RowReader) read(query string, bytes int) ([]cdc.Row, error) {
	var buf buffer
	full := false
	err := r.each(query, func(key, row []byte) error {
		if full = full || bytes > 0 && buf.bytes >= bytes; !full {
			buf.add(key, row)
		}
		return nil
	})
	return buf.all(), err
}

func (b *buffer) all() []cdc.Row {
	rows := make([]cdc.Row, len(b.rows))
	for i, row := range b.rows {
		rows[i] = cdc.Row{Key: row.key, Row: row.after}
	}
	return rows
}

func (r *RowReader) each(query string, fn func(key, row []byte) error) error {
	var failed error // not the connection's
	var result gomysql.Result
	err := r.conn.ExecuteSelectStreaming(query, &result, func(fields []gomysql.FieldValue) error {
		if r.key, r.row, failed = r.in.rowJSON(r.key[:0], r.row[:0], r.values, fields); failed == nil {
			failed = fn(r.key, r.row)
		}
		return failed
	}, nil)
	if failed != nil {
		return failed
	}
	if err != nil {
		return fmt.Errorf("read rows of %s: %w", r.table.Name, err)
	}
	return nil
}

// Executed is a GTID set that holds every transaction of which something can have been
// read before, save one that was committed this very moment.
func (r *RowReader) Executed() (string, error) {
	set, err := executed(r.conn)
	if err != nil {
		return "", err
	}
	return set.String(), nil
}

// Shows waits up to a second until every transaction of a set can be seen, and reports
// whether that is so. MariaDB cannot be asked, and is taken to show them.
func (r *RowReader) Shows(set string) (bool, error) {
	if flavorOf(r.conn) == flavorMariaDB {
		return true, nil
	}
	gtids, err := parseGTIDs(flavorMySQL, set)
	if err != nil {
		return false, err
	}
	late, err := queryOne(r.conn, "SELECT WAIT_FOR_EXECUTED_GTID_SET('"+gtids.String()+"', 1)")
	return late == "0", err
}

// Busy says why the server should be left alone now, by Snapshot.MaxThreadsRunning; empty
// when nothing does.
func (r *RowReader) Busy() (string, error) { return threadsRunning(r.conn, r.threads) }

// Contains reports whether a GTID set, of a Position of this flavor, holds another one.
func Contains(flavor, set, other string) (bool, error) {
	a, err := parseGTIDs(flavor, set)
	if err != nil {
		return false, err
	}
	b, err := parseGTIDs(flavor, other)
	return err == nil && a.contains(b), err
}

// Pace finds how many rows one SELECT should read so that it takes about Snapshot.ChunkTime.
type Pace struct {
	Snapshot Snapshot
	size     int
}

// Rows is the size of the next chunk.
func (p *Pace) Rows() int {
	if p.size == 0 {
		p.size = min(firstChunk, p.Snapshot.ChunkRows)
	}
	return p.size
}

// Took notes how long a chunk of so many rows has taken.
func (p *Pace) Took(rows int, took time.Duration) { p.size = p.Snapshot.nextSize(p.Rows(), rows, took) }
