package mysql

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-mysql-org/go-mysql/client"

	"lockstep/cdc"
)

// Passed returns the names of the sets of transactions up to which the log is read,
// once there is one at least or more says that there are others, and the place where the
// log is then: whatever stands before it was given to Out.Publish. Copying are the tables
// of which rows that are older than the place have not been, because their copy is not
// over: one that the capture began itself, or that a sink has asked for which has lost its
// rows. Its error is the end of ctx.
func (s *Source) Passed(ctx context.Context, sets map[string]string, more <-chan struct{}) (at cdc.Position, passed, copying []string, err error) {
	parsed := map[string]gtidSet{}
	for {
		s.snaps.mu.Lock()
		if s.reading.Load() && (s.Requests == nil || s.snaps.polled) {
			for name, text := range sets {
				set := parsed[name]
				if set == nil {
					if set, err = parseGTIDs(s.pos.Flavor, text); err != nil {
						delete(sets, name) // the other kind of server's: it never comes
						continue
					}
					parsed[name] = set
				}
				if s.gtids.contains(set) {
					passed = append(passed, name)
				}
			}
		}
		if len(passed) > 0 {
			at, copying = s.pos, s.copying()
			at.GTIDSet = s.gtids.String()
			s.snaps.mu.Unlock()
			return at, passed, copying, nil
		}
		moved := s.snaps.moved.heard()
		s.snaps.mu.Unlock()
		select {
		case <-moved:
		case <-more:
			return at, nil, nil, nil
		case <-ctx.Done():
			return at, nil, nil, ctx.Err()
		}
	}
}

// copying lists the tables whose copy brings rows that were not published before. The
// caller holds the lock.
func (s *Source) copying() (tables []string) {
	for i := range s.pos.Snapshots {
		sn := &s.pos.Snapshots[i]
		if underway(sn.State) && (ownCopy(sn) || strings.HasPrefix(sn.ID, cdc.LostPrefix)) && !slices.Contains(tables, sn.Table) {
			tables = append(tables, sn.Table)
		}
	}
	return tables
}

// setReading says whether the position belongs to the reader of the log.
func (s *Source) setReading(reading bool) {
	s.snaps.mu.Lock()
	defer s.snaps.mu.Unlock()
	s.reading.Store(reading)
	s.snaps.moved.ring()
}

// CheckGTIDs reports whether s is a set of transactions of either kind of server.
func CheckGTIDs(s string) error {
	set, err := parseGTIDs(flavorMySQL, s)
	if err == nil && !set.empty() {
		return nil
	}
	if set, no := parseGTIDs(flavorMariaDB, s); no == nil && !set.empty() {
		return nil
	}
	return fmt.Errorf("%q names no transactions; write GTIDs as the source does, for example 3e11fa47-71ca-11e1-9e33-c80aa9429562:23 (SELECT @@GLOBAL.gtid_executed), or 0-1-23 of a MariaDB", s)
}

// Commits asks a server what was committed there. It keeps its connection and is safe for
// use by several goroutines, one at a time.
type Commits struct {
	Config Config

	mu     sync.Mutex
	conn   *client.Conn
	opened time.Time
}

// commitsAge is how long a connection is kept: it has the settings that the server had when it
// was opened, and shows them to whoever looks at its sessions.
const commitsAge = time.Minute

// Committed gives the transactions that are committed, those that are not in the log any
// more left out, and the time on the server just before that.
func (c *Commits) Committed(ctx context.Context) (gtids string, at time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil && time.Since(c.opened) > commitsAge {
		c.conn.Close()
		c.conn = nil
	}
	fresh := c.conn == nil
	gtids, at, err = c.ask(ctx)
	if err != nil && !fresh && ctx.Err() == nil { // it may have been closed while it was idle
		gtids, at, err = c.ask(ctx)
	}
	if err != nil {
		err = fmt.Errorf("ask %s what is committed: %w", c.Config.Addr, err)
	}
	return gtids, at, err
}

func (c *Commits) ask(ctx context.Context) (gtids string, at time.Time, err error) {
	if c.conn == nil {
		if c.conn, err = connect(ctx, c.Config); err != nil {
			c.conn = nil
			return "", at, err
		}
		c.conn.ReadTimeout, c.opened = c.Config.ReadTimeout, time.Now()
	}
	defer func() {
		if err != nil {
			c.conn.Close()
			c.conn = nil
		}
	}()
	conn := c.conn
	defer context.AfterFunc(ctx, func() { conn.Conn.Conn.Close() })()
	what := "GTID_SUBTRACT(@@GLOBAL.gtid_executed, @@GLOBAL.gtid_purged)"
	if flavorOf(conn) == flavorMariaDB {
		what = "@@GLOBAL.gtid_binlog_pos"
	}
	rows, err := queryRows(conn, "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED), "+what)
	if err != nil {
		return "", at, err
	}
	micros, err := strconv.ParseInt(rows[0][0], 10, 64)
	if err != nil {
		return "", at, fmt.Errorf("the server's time is %q", rows[0][0])
	}
	return oneLine(rows[0][1]), time.UnixMicro(micros), nil
}

// Close ends the connection.
func (c *Commits) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}
