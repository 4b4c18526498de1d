package mysql

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"

	"lockstep/cdc"
)

// Keep at least this much log: a capture may stand still for a weekend's first night.
const minRetention = 24 * time.Hour

// InspectPlace looks at whether the server's log goes on where the saved position
// ends, and for how long it will; saved is nil when there is none yet. Capturing
// says that a capture of this pipeline is connected now. It reports all that it
// finds; an error means that the server could not be asked.
func InspectPlace(ctx context.Context, cfg Config, saved *cdc.Position, capturing bool) ([]Finding, error) {
	conn, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer until(ctx, conn)()
	found := inspectServerID(conn, cfg, capturing)
	now, err := inspectKept(conn)
	if err != nil {
		return found, err
	}
	if now.flavor == flavorMySQL {
		found = append(found, inspectSessions(conn)...)
	}
	if saved == nil {
		return append(found, now.retention(nil, false), Finding{Check: "position", OK: true, Detail: "none is saved: the first start copies every table"}), nil
	}
	if cmp.Or(saved.Flavor, flavorMySQL) != now.flavor {
		return append(found, Finding{Check: "position", Detail: fmt.Sprintf("it is of %s, and the server is %s", cmp.Or(saved.Flavor, flavorMySQL), now.title()),
			Fix: "see that " + cfg.Addr + " is the server that is meant, or copy every table again: lockstep run --on-gap resnapshot"}), nil
	}
	read, err := parseGTIDs(now.flavor, saved.GTIDSet)
	if err != nil {
		return append(found, now.retention(nil, false)), fmt.Errorf("read the saved position: %w", err)
	}
	now.executed, now.purged, err = now.gtids(conn)
	if err != nil {
		return append(found, now.retention(nil, false)), knownDenial(err)
	}
	return append(append(found, now.retention(saved, !read.contains(now.executed))), now.findPlace(cfg, saved, read)...), nil
}

// inspectKept asks a server who it is and for how long it keeps its log, which needs
// no privilege.
func inspectKept(conn *client.Conn) (*server, error) {
	s := &server{version: conn.GetServerVersion(), flavor: flavorOf(conn), settings: map[string]string{}}
	rows, err := queryRows(conn, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('log_bin', 'binlog_expire_logs_seconds', 'binlog_expire_logs_auto_purge')")
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		s.settings[r[0]] = r[1]
	}
	s.id, err = identify(conn)
	return s, err
}

// knownDenial leaves out what a missing privilege keeps us from asking: that it is
// missing is a finding already.
func knownDenial(err error) error {
	if my, ok := errors.AsType[*gomysql.MyError](err); ok && my.Code == gomysql.ER_SPECIFIC_ACCESS_DENIED_ERROR {
		return nil
	}
	return err
}

// findPlace compares what was read with what the server has and has purged.
func (s *server) findPlace(cfg Config, saved *cdc.Position, read gtidSet) []Finding {
	lost, gap, behind := read.minus(s.executed), s.purged.minus(read), s.executed.minus(read)
	same := Finding{Check: "server of the position", OK: true, Detail: "the position was counted on this server's log"}
	if s.id != saved.ServerUUID {
		same.Detail = fmt.Sprintf("the position was counted on the log of %s and this is %s: its log is followed under a new epoch", saved.ServerUUID, s.id)
	}
	tail := Finding{Check: "lost tail", OK: lost.empty(), Detail: "the server has every transaction that is in Kafka"}
	if !tail.OK {
		tail.Detail = "transactions that are in Kafka already are not on this server: " + lost.String()
		tail.Fix = "see that " + cfg.Addr + " is the server that is meant and has caught up; if they are lost for good, start the capture: it reads their rows again under a new epoch"
	}
	hole := Finding{Check: "gap", OK: gap.empty(), Detail: "the log is there from the saved position on"}
	if !hole.OK {
		hole.Detail = "the server has purged log that was not read yet: " + gap.String()
		hole.Fix = "read a replica that still has this log, or copy every table again: lockstep run --on-gap resnapshot"
	}
	way := Finding{Check: "position", OK: true, Detail: "it is at the end of the log, " + saved.GTIDSet}
	if !behind.empty() {
		way.Detail = fmt.Sprintf("%s is still to be read after %s", behind, saved.GTIDSet)
	}
	return []Finding{same, tail, hole, way}
}

// retention says how long the log is kept, and how far a position that is behind is
// from being purged.
func (s *server) retention(saved *cdc.Position, behind bool) Finding {
	f := Finding{Check: "log retention", OK: true}
	keep := s.keeps()
	if keep == 0 {
		f.Detail = "the server purges its log only when told to"
		return f
	}
	f.Detail = fmt.Sprintf("the log is kept for %s", keep)
	if keep < minRetention {
		f.OK = false
		f.Detail += fmt.Sprintf("; a capture that stands still for longer finds it purged, and %s is the least that is advised", minRetention)
		f.Fix = persist(s.flavor, "binlog_expire_logs_seconds", "259200")
	}
	if saved == nil || saved.CommitMicros == 0 || !behind {
		return f
	}
	age := time.Since(time.UnixMicro(saved.CommitMicros)).Round(time.Second)
	f.Detail += fmt.Sprintf("; the saved position is %s behind, so it is %s from being purged", age, max(0, keep-age))
	if age > keep*3/4 {
		f.OK = false
		f.Fix = "start the capture now; meanwhile SET GLOBAL binlog_expire_logs_seconds = 0"
	}
	return f
}

// inspectServerID looks for another reader with our server_id: the two would throw
// each other out.
func inspectServerID(conn *client.Conn, cfg Config, capturing bool) []Finding {
	f := Finding{Check: "server_id", OK: true, Detail: fmt.Sprintf("%d is nobody else's", cfg.ServerID)}
	mend := "set source.server_id to a number that no server and no replica of the topology has"
	own, err := queryOne(conn, "SELECT @@GLOBAL.server_id")
	if err == nil && own == strconv.FormatUint(uint64(cfg.ServerID), 10) {
		return []Finding{{Check: f.Check, Detail: fmt.Sprintf("%d is the server's own", cfg.ServerID), Fix: mend}}
	}
	host, connected, err := readerOf(conn, cfg.ServerID)
	// The server keeps a reader that has just stopped until its next heartbeat fails.
	for range 5 {
		if err != nil || !connected || capturing {
			break
		}
		time.Sleep(heartbeat)
		host, connected, err = readerOf(conn, cfg.ServerID)
	}
	switch {
	case err != nil:
		return nil
	case connected && capturing:
		f.Detail = fmt.Sprintf("%d is connected%s: the capture of this pipeline, which runs", cfg.ServerID, host)
	case connected:
		f.OK, f.Fix = false, mend
		f.Detail = fmt.Sprintf("%d is connected%s, and no capture of this pipeline runs", cfg.ServerID, host)
	}
	return []Finding{f}
}

// readerOf reports whether a reader of the log has that server_id, and from where.
func readerOf(conn *client.Conn, id uint32) (from string, connected bool, err error) {
	rows, err := queryRows(conn, "SHOW REPLICAS")
	if err != nil { // MariaDB, or no privilege, which is a finding of its own
		if rows, err = queryRows(conn, "SHOW SLAVE HOSTS"); err != nil {
			return "", false, err
		}
	}
	for _, r := range rows { // server id, host, ...
		if r[0] == strconv.FormatUint(uint64(id), 10) {
			if r[1] != "" {
				from = " from " + r[1]
			}
			return from, true, nil
		}
	}
	return "", false, nil
}

// sessionSettings can be set by a session for itself, whatever the global value is.
var sessionSettings = []struct{ name, want string }{
	{"binlog_format", "ROW"}, {"binlog_row_image", "FULL"}, {"binlog_row_value_options", ""},
}

// inspectSessions looks for sessions that log in a way that cannot be followed.
func inspectSessions(conn *client.Conn) []Finding {
	var names, differ []string
	for _, s := range sessionSettings {
		names = append(names, s.name)
		differ = append(differ, fmt.Sprintf("(v.VARIABLE_NAME = '%s' AND v.VARIABLE_VALUE <> '%s')", s.name, s.want))
	}
	f := Finding{Check: "sessions", OK: true}
	rows, err := queryRows(conn, `SELECT t.PROCESSLIST_ID, t.PROCESSLIST_USER, v.VARIABLE_NAME, v.VARIABLE_VALUE
		FROM performance_schema.variables_by_thread v JOIN performance_schema.threads t USING (THREAD_ID) WHERE t.PROCESSLIST_ID <> CONNECTION_ID() AND (`+strings.Join(differ, " OR ")+")")
	if err != nil {
		f.Detail = strings.Join(names, ", ") + " are looked at as new sessions get them; a session with the privilege can set its own, and what it then writes stops the capture (GRANT SELECT ON performance_schema.* to have the doctor look at the sessions)"
		return []Finding{f}
	}
	if len(rows) == 0 {
		f.Detail = "no session logs otherwise than the server"
		return []Finding{f}
	}
	var found []Finding
	for _, r := range rows {
		found = append(found, Finding{Check: "session " + r[0], Detail: fmt.Sprintf("session %s of %s has set %s to %s for itself: what it changes cannot be followed and stops the capture", r[0], r[1], r[2], shown(r[3])),
			Fix: "have that program not set " + r[2] + ", or end the session: KILL " + r[0]})
	}
	return found
}

// idleRoles reports whether roles are granted that are not active when we log in.
// SHOW GRANTS tells what the active ones allow.
func idleRoles(conn *client.Conn) bool {
	roles, err := queryOne(conn, "SELECT CURRENT_ROLE()")
	if err != nil || !strings.EqualFold(roles, "NONE") {
		return false
	}
	rows, err := queryRows(conn, "SHOW GRANTS")
	for _, r := range rows {
		if err == nil && strings.HasPrefix(r[0], "GRANT `") && !strings.Contains(r[0], " ON ") {
			return true
		}
	}
	return false
}
