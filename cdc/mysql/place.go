package mysql

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-mysql-org/go-mysql/client"

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
	if strings.Contains(strings.ToLower(conn.GetServerVersion()), "mariadb") {
		return found, nil // its GTIDs are compared when the capture connects
	}
	found = append(found, inspectSessions(conn)...)
	retention, err := inspectRetention(conn, saved)
	if err != nil {
		return found, err
	}
	found = append(found, retention)
	if saved == nil {
		return append(found, Finding{Check: "position", OK: true, Detail: "none is saved: the first start copies every table"}), nil
	}
	more, err := inspectGTIDs(conn, cfg, saved)
	return append(found, more...), err
}

// inspectGTIDs compares the position with what the server has and has purged. The
// server does the sums: it knows its own notation best.
func inspectGTIDs(conn *client.Conn, cfg Config, saved *cdc.Position) ([]Finding, error) {
	rows, err := queryRows(conn, `SELECT @@GLOBAL.server_uuid, GTID_SUBTRACT(?, @@GLOBAL.gtid_executed),
		GTID_SUBTRACT(@@GLOBAL.gtid_purged, ?), GTID_SUBTRACT(@@GLOBAL.gtid_executed, ?)`, saved.GTIDSet, saved.GTIDSet, saved.GTIDSet)
	if err != nil {
		return nil, err
	}
	id, lost, gap, behind := rows[0][0], oneLine(rows[0][1]), oneLine(rows[0][2]), oneLine(rows[0][3])
	same := Finding{Check: "server of the position", OK: true, Detail: "the position was counted on this server's log"}
	if id != saved.ServerUUID {
		same.Detail = fmt.Sprintf("the position was counted on the log of %s and this is %s: its log is followed under a new epoch", saved.ServerUUID, id)
	}
	tail := Finding{Check: "lost tail", OK: lost == "", Detail: "the server has every transaction that is in Kafka"}
	if !tail.OK {
		tail.Detail = "transactions that are in Kafka already are not on this server: " + lost
		tail.Fix = "see that " + cfg.Addr + " is the server that is meant and has caught up; if they are lost for good, start the capture: it reads their rows again under a new epoch"
	}
	hole := Finding{Check: "gap", OK: gap == "", Detail: "the log is there from the saved position on"}
	if !hole.OK {
		hole.Detail = "the server has purged log that was not read yet: " + gap
		hole.Fix = "read a replica that still has this log, or copy every table again: lockstep run --on-gap resnapshot"
	}
	way := Finding{Check: "position", OK: true, Detail: "it is at the end of the log, " + saved.GTIDSet}
	if n := countGTIDs(behind); n > 0 {
		way.Detail = fmt.Sprintf("%d transactions are still to be read after %s", n, saved.GTIDSet)
	}
	return []Finding{same, tail, hole, way}, nil
}

// countGTIDs counts the transactions of a MySQL GTID set: uuid:1-5:7,uuid:tag:3.
func countGTIDs(set string) (n uint64) {
	for _, part := range strings.Split(set, ",") {
		for _, interval := range strings.Split(part, ":") {
			first, last, is := strings.Cut(strings.TrimSpace(interval), "-")
			from, err := strconv.ParseUint(first, 10, 64)
			if err != nil {
				continue // the uuid, or a tag
			}
			to := from
			if is {
				if to, err = strconv.ParseUint(last, 10, 64); err != nil {
					continue
				}
			}
			n += to - from + 1
		}
	}
	return n
}

// inspectRetention says how long the log is kept, and how far the position is from
// being purged.
func inspectRetention(conn *client.Conn, saved *cdc.Position) (Finding, error) {
	f := Finding{Check: "log retention", OK: true}
	rows, err := queryRows(conn, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('binlog_expire_logs_seconds', 'binlog_expire_logs_auto_purge')")
	if err != nil {
		return f, err
	}
	is := map[string]string{}
	for _, r := range rows {
		is[r[0]] = r[1]
	}
	seconds, _ := strconv.ParseInt(is["binlog_expire_logs_seconds"], 10, 64)
	keep := time.Duration(seconds) * time.Second
	if keep == 0 || is["binlog_expire_logs_auto_purge"] == "OFF" {
		f.Detail = "the server purges its log only when told to"
		return f, nil
	}
	f.Detail = fmt.Sprintf("the log is kept for %s", keep)
	if keep < minRetention {
		f.OK = false
		f.Detail += fmt.Sprintf("; a capture that stands still for longer finds it purged, and %s is the least that is advised", minRetention)
		f.Fix = "SET PERSIST binlog_expire_logs_seconds = 259200"
	}
	if saved == nil || saved.CommitMicros == 0 {
		return f, nil
	}
	behind, err := queryOne(conn, "SELECT GTID_SUBTRACT(@@GLOBAL.gtid_executed, '"+strings.ReplaceAll(saved.GTIDSet, "'", "")+"')")
	if err != nil || behind == "" {
		return f, err
	}
	age := time.Since(time.UnixMicro(saved.CommitMicros)).Round(time.Second)
	f.Detail += fmt.Sprintf("; the saved position is %s behind, so it is %s from being purged", age, max(0, keep-age))
	if age > keep*3/4 {
		f.OK = false
		f.Fix = "start the capture now; meanwhile SET GLOBAL binlog_expire_logs_seconds = 0"
	}
	return f, nil
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
		FROM performance_schema.variables_by_thread v JOIN performance_schema.threads t USING (THREAD_ID) WHERE `+strings.Join(differ, " OR "))
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
