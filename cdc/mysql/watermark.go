package mysql

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
)

// mark is a place in the log at which a window opens: every transaction before it
// has been read.
type mark struct {
	set gtidSet
	// file and pos of the end of the last transaction; empty when none was read on
	// this connection.
	file string
	pos  uint32
}

// place is the present mark. The caller holds the lock.
func (s *Source) place() mark {
	m := mark{set: s.gtids.clone()}
	if s.snaps.placed {
		m.file, m.pos = s.pos.File, s.pos.Pos
	}
	return m
}

// between runs read so that it sees every transaction before low, and returns a set
// that holds every transaction it can have seen. A transaction stands in the log a
// moment before it can be seen.
func (c *copier) between(ctx context.Context, low mark, read func() error) (gtidSet, error) {
	if flavorOf(c.conn) == flavorMariaDB {
		return c.betweenMaria(ctx, low, read)
	}
	for {
		late, err := queryOne(c.conn, "SELECT WAIT_FOR_EXECUTED_GTID_SET('"+low.set.String()+"', 1)")
		if err != nil {
			return nil, err
		}
		if late == "0" {
			break
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if err := read(); err != nil {
		return nil, err
	}
	if err := c.connect(ctx); err != nil { // read has closed it when it was cut off
		return nil, err
	}
	return executed(c.conn)
}

// betweenMaria reads from a consistent snapshot, which on MariaDB stands at one
// place of the log (binlog_snapshot_file, binlog_snapshot_position): what its log
// says was executed may not be visible yet.
func (c *copier) betweenMaria(ctx context.Context, low mark, read func() error) (gtidSet, error) {
	for {
		if _, err := c.conn.Execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"); err != nil {
			return nil, err
		}
		shown, err := c.shows(low)
		if err != nil {
			return nil, err
		}
		if shown {
			break
		}
		if _, err := c.conn.Execute("COMMIT"); err != nil {
			return nil, err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	high, err := executed(c.conn) // at least what the snapshot shows
	if err != nil {
		return nil, err
	}
	if err := read(); err != nil {
		c.disconnect() // with its transaction
		return nil, err
	}
	if c.conn != nil {
		if _, err := c.conn.Execute("COMMIT"); err != nil {
			return nil, err
		}
	}
	return high, c.connect(ctx)
}

// shows reports whether the open snapshot of a MariaDB shows every transaction
// before low.
func (c *copier) shows(low mark) (bool, error) {
	rows, err := queryRows(c.conn, "SHOW STATUS WHERE Variable_name IN ('Binlog_snapshot_file', 'Binlog_snapshot_position')")
	if err != nil {
		return false, err
	}
	at := map[string]string{}
	for _, r := range rows {
		at[strings.ToLower(r[0])] = r[1]
	}
	file := at["binlog_snapshot_file"]
	pos, err := strconv.ParseUint(at["binlog_snapshot_position"], 10, 64)
	if err != nil || file == "" {
		return false, fmt.Errorf("the server does not say where in its log a snapshot stands (binlog_snapshot_file %q, binlog_snapshot_position %q)", file, at["binlog_snapshot_position"])
	}
	if low.file != "" { // else the server is asked, which reads its log file for that
		return cmp.Or(cmp.Compare(fileNumber(file), fileNumber(low.file)), cmp.Compare(pos, uint64(low.pos))) >= 0, nil
	}
	text, err := queryOne(c.conn, fmt.Sprintf("SELECT IFNULL(BINLOG_GTID_POS('%s', %d), '')", file, pos))
	if err != nil {
		return false, err
	}
	set, err := parseGTIDs(flavorMariaDB, oneLine(text))
	return err == nil && set.contains(low.set), err
}

// executed is what can have been seen by now and is, or comes, in the log.
func executed(conn *client.Conn) (gtidSet, error) {
	flavor, query := flavorOf(conn), "SELECT GTID_SUBTRACT(@@GLOBAL.gtid_executed, @@GLOBAL.gtid_purged)"
	if flavor == flavorMariaDB {
		query = "SELECT @@GLOBAL.gtid_binlog_pos"
	}
	text, err := queryOne(conn, query)
	if err != nil {
		return nil, err
	}
	return parseGTIDs(flavor, oneLine(text))
}
