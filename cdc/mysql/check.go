package mysql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-mysql-org/go-mysql/client"

	"lockstep/cdc"
)

// server is what a MySQL server says of itself.
type server struct {
	version  string
	uuid     string
	executed string // GTID sets without line breaks
	purged   string
	settings map[string]string
	// What the log leaves out: the databases of binlog_do_db and binlog_ignore_db,
	// and on a replica what it replicates, unless log_replica_updates is ON.
	logOnly, logNot string
	replica         bool
}

// settings that the reader depends on, with the value each must have.
var required = []struct{ name, want, why string }{
	{"log_bin", "ON", "without a binary log there is nothing to follow"},
	{"gtid_mode", "ON", "only GTIDs name a place in the log that outlives the server's files"},
	{"enforce_gtid_consistency", "ON", "gtid_mode=ON needs it"},
	{"binlog_format", "ROW", "statements do not say which rows they changed"},
	{"binlog_row_image", "FULL", "a partial row cannot be written whole"},
	{"binlog_row_metadata", "FULL", "without it the log does not name its columns"},
	{"binlog_row_value_options", "", "partial JSON updates cannot be written whole"},
}

func inspect(conn *client.Conn) (*server, error) {
	s := &server{version: conn.GetServerVersion(), settings: map[string]string{}}
	if strings.Contains(strings.ToLower(s.version), "mariadb") {
		return nil, stopf("", "the source is %s; this version reads MySQL 8.0 and later only", s.version)
	}
	names := []string{"innodb_native_foreign_keys", "log_replica_updates", "lower_case_table_names"}
	for _, r := range required {
		names = append(names, r.name)
	}
	rows, err := queryRows(conn, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('"+strings.Join(names, "','")+"')")
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		s.settings[r[0]] = r[1]
	}
	rows, err = queryRows(conn, "SELECT @@GLOBAL.server_uuid, @@GLOBAL.gtid_executed, @@GLOBAL.gtid_purged")
	if err != nil {
		return nil, err
	}
	if err := s.inspectLog(conn); err != nil {
		return nil, err
	}
	s.uuid, s.executed, s.purged = rows[0][0], oneLine(rows[0][1]), oneLine(rows[0][2])
	return s, nil
}

// inspectLog asks what the server leaves out of its log.
func (s *server) inspectLog(conn *client.Conn) error {
	status, err := queryRows(conn, "SHOW BINARY LOG STATUS")
	if err != nil { // before MySQL 8.2, or not allowed
		var older error
		if status, older = queryRows(conn, "SHOW MASTER STATUS"); older != nil {
			return err
		}
	}
	if len(status) > 0 && len(status[0]) >= 4 { // file, position, do_db, ignore_db
		s.logOnly, s.logNot = status[0][2], status[0][3]
	}
	replica, err := queryRows(conn, "SHOW REPLICA STATUS")
	s.replica = len(replica) > 0
	return err
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "") }

// firstProblem is the first setting the reader cannot work with.
func (s *server) firstProblem() error {
	for _, f := range s.findings() {
		if !f.OK {
			return stopf(f.Fix, "%s", f.Detail)
		}
	}
	return nil
}

// Finding is one thing the doctor looked at.
type Finding struct {
	Check  string // what was looked at
	OK     bool
	Detail string // one sentence
	Fix    string // the statement that mends it; empty when OK
}

func (s *server) findings() []Finding {
	var found []Finding
	for _, r := range required {
		got, ok := s.settings[r.name]
		f := Finding{Check: r.name, OK: ok && strings.EqualFold(got, r.want), Detail: fmt.Sprintf("%s is %s", r.name, shown(got))}
		if !f.OK {
			f.Detail = fmt.Sprintf("%s is %s, not %s: %s", r.name, shown(got), shown(r.want), r.why)
			f.Fix = fmt.Sprintf("SET PERSIST %s = '%s'", r.name, r.want)
			if r.name == "log_bin" {
				f.Fix = "set log_bin in the server's option file and restart it"
			}
		}
		found = append(found, f)
	}
	whole := Finding{Check: "log is whole", OK: true, Detail: "no database and no replicated change is left out of the log"}
	switch {
	case s.logOnly != "" || s.logNot != "":
		whole = Finding{Check: whole.Check, Detail: fmt.Sprintf("the server leaves databases out of its log (binlog_do_db %s, binlog_ignore_db %s)", shown(s.logOnly), shown(s.logNot)),
			Fix: "remove binlog_do_db and binlog_ignore_db from the server's option file and restart it"}
	case s.replica && s.settings["log_replica_updates"] != "ON":
		whole = Finding{Check: whole.Check, Detail: "the server is a replica and does not log what it replicates (log_replica_updates is OFF)",
			Fix: "set log_replica_updates=ON in the server's option file and restart it, or read its source"}
	}
	return append(found, whole)
}

func shown(v string) string {
	if v == "" {
		return "empty"
	}
	return v
}

// logsCascades reports whether rows changed by a foreign key are in the log.
// MySQL 9.6 moved cascades above the storage engine; before, InnoDB made them
// unseen.
func (s *server) logsCascades() bool {
	native, known := s.settings["innodb_native_foreign_keys"]
	return known && native == "OFF"
}

// cascades lists the captured tables whose foreign keys change rows by themselves.
func cascades(conn *client.Conn, tables []cdc.TableName) ([]string, error) {
	rows, err := queryRows(conn, `SELECT CONSTRAINT_SCHEMA, TABLE_NAME, CONSTRAINT_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS
		WHERE DELETE_RULE IN ('CASCADE', 'SET NULL') OR UPDATE_RULE IN ('CASCADE', 'SET NULL')`)
	if err != nil {
		return nil, err
	}
	captured := map[cdc.TableName]bool{}
	for _, t := range tables {
		captured[t] = true
	}
	var names []string
	for _, r := range rows {
		if captured[cdc.TableName{DB: r[0], Table: r[1]}] {
			names = append(names, r[0]+"."+r[1]+" ("+r[2]+")")
		}
	}
	return names, nil
}

func checkCascades(conn *client.Conn, s *server, tables []cdc.TableName, policy string) error {
	if policy == "accept" || s.logsCascades() {
		return nil
	}
	names, err := cascades(conn, tables)
	if err != nil || len(names) == 0 {
		return err
	}
	return stopf("drop those rules, or set source.unlogged_cascades: accept if the rows they change need not be followed",
		"the server does not log rows that a foreign key changes, and these captured tables have such a rule: %s", strings.Join(names, ", "))
}

// Inspect looks at everything the reader needs of the server and reports all of
// it in one run. An error means that the server could not be asked at all.
func Inspect(ctx context.Context, cfg Config, match func(cdc.TableName) bool) ([]Finding, error) {
	conn, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer until(ctx, conn)()
	found, err := inspectPrivileges(conn, cfg.User)
	if err != nil {
		return nil, err
	}
	denied := slices.ContainsFunc(found, func(f Finding) bool { return !f.OK })
	s, err := inspect(conn)
	switch {
	case err == nil:
		found = append(found, Finding{Check: "server", OK: true, Detail: fmt.Sprintf("MySQL %s, server_uuid %s", s.version, s.uuid)})
		found = append(found, s.findings()...)
	case !denied:
		return found, err
	}
	tables, err := listTables(conn, match)
	if err != nil {
		return nil, err
	}
	more, err := inspectTables(conn, tables, cfg)
	if err != nil {
		return nil, err
	}
	found = append(found, more...)
	if s == nil {
		return found, nil // what the server may not tell us is a finding already
	}
	names, err := cascades(conn, tables)
	if err != nil {
		return nil, err
	}
	f := Finding{Check: "foreign keys", OK: true, Detail: "no captured table has a foreign key whose changes the log leaves out"}
	if len(names) > 0 && !s.logsCascades() {
		f = Finding{Check: "foreign keys", OK: cfg.UnloggedCascades == "accept",
			Detail: "rows changed by these foreign keys are not in the log: " + strings.Join(names, ", "),
			Fix:    "drop those rules, or set source.unlogged_cascades: accept"}
	}
	return append(found, f), nil
}

func inspectPrivileges(conn *client.Conn, user string) ([]Finding, error) {
	rows, err := queryRows(conn, "SHOW GRANTS")
	if err != nil {
		return nil, err
	}
	var all strings.Builder
	for _, r := range rows {
		all.WriteString(strings.ToUpper(r[0]) + "\n")
	}
	var found []Finding
	for _, p := range []string{"REPLICATION SLAVE", "REPLICATION CLIENT"} {
		f := Finding{Check: p, OK: strings.Contains(all.String(), p) || strings.Contains(all.String(), "ALL PRIVILEGES ON *.*"), Detail: "granted to " + user}
		if !f.OK {
			f.Detail = fmt.Sprintf("%s is not granted to %s", p, user)
			f.Fix = fmt.Sprintf("GRANT %s ON *.* TO '%s'@'%%'", p, user)
			if idleRoles(conn) {
				f.Detail += " itself, and none of its roles is active when it logs in"
				f.Fix += fmt.Sprintf(", or SET DEFAULT ROLE ALL TO '%s'@'%%'", user)
			}
		}
		found = append(found, f)
	}
	return found, nil
}

func inspectTables(conn *client.Conn, tables []cdc.TableName, cfg Config) ([]Finding, error) {
	if len(tables) == 0 {
		return []Finding{{Check: "tables", OK: false, Detail: "no table that " + cfg.User + " may read matches the configuration",
			Fix: "mend tables[].match, or GRANT SELECT on the tables to '" + cfg.User + "'@'%'"}}, nil
	}
	var found []Finding
	for _, t := range tables {
		f := Finding{Check: "table " + t.String(), OK: true}
		l, err := tableLayout(conn, t, cfg.ZeroDates)
		var stop *Stop
		switch {
		case errors.As(err, &stop):
			f.OK, f.Detail, f.Fix = false, stop.Problem, stop.Remedy
		case err != nil:
			return nil, err
		default:
			f.Detail = fmt.Sprintf("%d columns, primary key (%s)", len(l.columns), l.keyNames())
			if _, err := queryRows(conn, "SELECT 1 FROM "+quoteTable(t)+" LIMIT 0"); err != nil {
				f.OK, f.Detail = false, err.Error()
				f.Fix = fmt.Sprintf("GRANT SELECT ON %s TO '%s'@'%%'", quoteTable(t), cfg.User)
			}
		}
		found = append(found, f)
	}
	return found, nil
}

// Tables lists the tables of the source that match and can be captured, with
// their present shapes.
func Tables(ctx context.Context, cfg Config, match func(cdc.TableName) bool) ([]cdc.Table, error) {
	conn, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer until(ctx, conn)()
	names, err := listTables(conn, match)
	if err != nil {
		return nil, err
	}
	var tables []cdc.Table
	for _, n := range names {
		l, err := tableLayout(conn, n, cfg.ZeroDates)
		var stop *Stop
		if errors.Is(err, cdc.ErrNoTable) || errors.As(err, &stop) {
			continue
		}
		if err != nil {
			return nil, err
		}
		tables = append(tables, l.describe())
	}
	return tables, nil
}
