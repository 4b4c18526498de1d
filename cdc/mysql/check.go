package mysql

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"

	"lockstep/cdc"
)

// server is what a MySQL or MariaDB server says of itself.
type server struct {
	flavor  string
	version string
	// id tells it from every other server: server_uuid on MySQL. MariaDB has server_uid
	// since 10.11.5, made of the network address and the port, and before that
	// its host name and port stand in; server_id is added to both.
	id       string
	executed gtidSet // what it has
	purged   gtidSet // what its log does not tell any more
	file     string  // of the log being written
	settings map[string]string
	// What the log leaves out: the databases of binlog_do_db and binlog_ignore_db,
	// and on a replica what it replicates, unless log_replica_updates is ON.
	logOnly, logNot string
	replica         bool
	applying        bool // it may still get or apply transactions of its source
}

// setting is one that the reader depends on, with the value it must have.
type setting struct{ name, want, why string }

var required = map[string][]setting{
	flavorMySQL: {
		{"log_bin", "ON", "without a binary log there is nothing to follow"},
		{"enforce_gtid_consistency", "ON", "gtid_mode=ON needs it"},
		{"gtid_mode", "ON", "only GTIDs name a place in the log that outlives the server's files"},
		{"binlog_format", "ROW", "statements do not say which rows they changed"},
		{"binlog_row_image", "FULL", "a partial row cannot be written whole"},
		{"binlog_row_metadata", "FULL", "without it the log does not name its columns"},
		{"binlog_row_value_options", "", "partial JSON updates cannot be written whole"},
		{"binlog_order_commits", "ON", "a snapshot could see a transaction that the log brings later than its GTID says"},
	},
	flavorMariaDB: {
		{"log_bin", "ON", "without a binary log there is nothing to follow"},
		{"binlog_format", "ROW", "statements do not say which rows they changed"},
		{"binlog_row_image", "FULL", "a partial row cannot be written whole"},
		{"binlog_row_metadata", "FULL", "without it the log does not name its columns"},
		{"binlog_alter_two_phase", "OFF", "an ALTER TABLE would be logged before it is decided"},
	},
}

// flavorOf tells the kind of server from the version it greets with.
func flavorOf(conn *client.Conn) string {
	if strings.Contains(strings.ToLower(conn.GetServerVersion()), "mariadb") {
		return flavorMariaDB
	}
	return flavorMySQL
}

// identify asks a server who it is.
func identify(conn *client.Conn) (string, error) {
	if flavorOf(conn) == flavorMySQL {
		return queryOne(conn, "SELECT @@GLOBAL.server_uuid")
	}
	rows, err := queryRows(conn, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_uid', 'hostname', 'port', 'server_id')")
	if err != nil {
		return "", err
	}
	is := map[string]string{}
	for _, r := range rows {
		is[r[0]] = r[1]
	}
	return cmp.Or(is["server_uid"], is["hostname"]+":"+is["port"]) + "/" + is["server_id"], nil
}

// keeps is for how long the server keeps its log, 0 when it purges it only when told to.
func (s *server) keeps() time.Duration {
	seconds, err := strconv.Atoi(s.settings["binlog_expire_logs_seconds"])
	if err != nil || s.settings["binlog_expire_logs_auto_purge"] == "OFF" {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

func inspect(conn *client.Conn) (*server, error) {
	s := &server{version: conn.GetServerVersion(), flavor: flavorOf(conn), settings: map[string]string{}}
	names := []string{"innodb_native_foreign_keys", "log_replica_updates", "log_slave_updates", "lower_case_table_names", "binlog_expire_logs_seconds", "binlog_expire_logs_auto_purge"}
	for _, r := range required[s.flavor] {
		names = append(names, r.name)
	}
	rows, err := queryRows(conn, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('"+strings.Join(names, "','")+"')")
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		s.settings[r[0]] = r[1]
	}
	if s.id, err = identify(conn); err != nil {
		return nil, err
	}
	// Whether it applies is asked before what it has: a replica that has stopped in
	// between has got everything it will get.
	if err := s.inspectReplica(conn); err != nil {
		return nil, err
	}
	if err := s.inspectLog(conn); err != nil {
		return nil, err
	}
	s.executed, s.purged, err = s.gtids(conn)
	return s, err
}

// gtids asks which transactions a server has, and which of them are not in its log
// any more.
func (s *server) gtids(conn *client.Conn) (executed, purged gtidSet, err error) {
	query := "SELECT @@GLOBAL.gtid_executed, @@GLOBAL.gtid_purged"
	if s.flavor == flavorMariaDB {
		// A server that was made from a copy of another one has a gtid_slave_pos
		// before it has a log.
		query = "SELECT @@GLOBAL.gtid_binlog_state, @@GLOBAL.gtid_slave_pos"
	}
	rows, err := queryRows(conn, query)
	if err != nil {
		return nil, nil, err
	}
	first, second := oneLine(rows[0][0]), oneLine(rows[0][1])
	if executed, err = parseGTIDs(s.flavor, first); err != nil {
		return nil, nil, err
	}
	if s.flavor == flavorMySQL {
		purged, err = parseGTIDs(s.flavor, second)
		return executed, purged, err
	}
	if s.settings["log_bin"] != "ON" {
		return executed, executed, nil
	}
	applied, err := parseGTIDs(s.flavor, second)
	if err != nil {
		return nil, nil, err
	}
	if !executed.contains(applied) {
		executed = executed.union(applied)
	}
	purged, err = firstOfLog(conn)
	return executed, purged, err
}

// firstOfLog reads what a MariaDB had written when its oldest log file began.
func firstOfLog(conn *client.Conn) (gtidSet, error) {
	logs, err := queryRows(conn, "SHOW BINARY LOGS")
	if err != nil {
		return nil, err
	}
	if len(logs) == 0 {
		return nil, errors.New("SHOW BINARY LOGS names no file")
	}
	events, err := queryRows(conn, "SHOW BINLOG EVENTS IN '"+logs[0][0]+"' LIMIT 4")
	if err != nil {
		return nil, err
	}
	for _, e := range events { // file, position, type, server, end, info
		if e[2] == "Gtid_list" {
			return parseGTIDs(flavorMariaDB, strings.Trim(e[5], "[]"))
		}
	}
	return nil, fmt.Errorf("the log file %s does not say which transactions came before it", logs[0][0])
}

// inspectLog asks what the server leaves out of its log.
func (s *server) inspectLog(conn *client.Conn) error {
	status, err := queryRows(conn, "SHOW BINARY LOG STATUS")
	if err != nil { // MariaDB, MySQL before 8.2, or not allowed
		var older error
		if status, older = queryRows(conn, "SHOW MASTER STATUS"); older != nil {
			return err
		}
	}
	if len(status) > 0 && len(status[0]) >= 4 { // file, position, do_db, ignore_db
		s.file, s.logOnly, s.logNot = status[0][0], status[0][2], status[0][3]
	}
	return nil
}

// inspectReplica asks what the server gets from others.
func (s *server) inspectReplica(conn *client.Conn) error {
	query, io, sql := "SHOW REPLICA STATUS", "Replica_IO_Running", "Replica_SQL_Running"
	if s.flavor == flavorMariaDB {
		query, io, sql = "SHOW ALL SLAVES STATUS", "Slave_IO_Running", "Slave_SQL_Running"
	}
	res, err := conn.Execute(query)
	if err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	defer res.Close()
	s.replica = res.RowNumber() > 0
	for i := range res.RowNumber() { // one row for each source
		for _, column := range []string{io, sql} {
			running, err := res.GetStringByName(i, column)
			if err != nil {
				return fmt.Errorf("%s: %w", query, err)
			}
			s.applying = s.applying || running != "No"
		}
	}
	return nil
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
	for _, r := range required[s.flavor] {
		got, ok := s.settings[r.name]
		f := Finding{Check: r.name, OK: ok && strings.EqualFold(got, r.want), Detail: fmt.Sprintf("%s is %s", r.name, shown(got))}
		if !f.OK {
			f.Detail = fmt.Sprintf("%s is %s, not %s: %s", r.name, shown(got), shown(r.want), r.why)
			f.Fix = s.mend(r)
		}
		found = append(found, f)
	}
	whole := Finding{Check: "log is whole", OK: true, Detail: "no database and no replicated change is left out of the log"}
	switch {
	case s.logOnly != "" || s.logNot != "":
		whole = Finding{Check: whole.Check, Detail: fmt.Sprintf("the server leaves databases out of its log (binlog_do_db %s, binlog_ignore_db %s)", shown(s.logOnly), shown(s.logNot)),
			Fix: "remove binlog_do_db and binlog_ignore_db from the server's option file and restart it"}
	case s.replica && s.settings["log_replica_updates"] != "ON" && s.settings["log_slave_updates"] != "ON":
		name := "log_replica_updates"
		if s.flavor == flavorMariaDB {
			name = "log_slave_updates"
		}
		whole = Finding{Check: whole.Check, Detail: "the server is a replica and does not log what it replicates (" + name + " is OFF)",
			Fix: "set " + name + "=ON in the server's option file and restart it, or read its source"}
	}
	return append(found, whole)
}

// mend says what gives a setting the value it must have.
func (s *server) mend(r setting) string {
	switch r.name {
	case "log_bin":
		return "set log_bin in the server's option file and restart it"
	case "gtid_mode": // goes one step at a time
		steps := []string{"OFF", "OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"}
		var statements []string
		for _, step := range steps[slices.Index(steps, s.settings[r.name])+1:] {
			statements = append(statements, persist(s.flavor, r.name, "'"+step+"'"))
		}
		return strings.Join(statements, "; ")
	}
	return persist(s.flavor, r.name, "'"+r.want+"'")
}

// persist is the statement that changes a setting for good.
func persist(flavor, name, value string) string {
	if flavor == flavorMariaDB {
		return fmt.Sprintf("SET GLOBAL %s = %s (and the same in the server's option file)", name, value)
	}
	return fmt.Sprintf("SET PERSIST %s = %s", name, value)
}

// title names the server for a reader of a report.
func (s *server) title() string {
	if s.flavor == flavorMariaDB {
		return fmt.Sprintf("MariaDB %s, server %s", s.version, s.id)
	}
	return fmt.Sprintf("MySQL %s, server_uuid %s", s.version, s.id)
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
	if flavorOf(conn) == flavorMariaDB {
		return cascadesOfMaria(conn, tables)
	}
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

// cascadesOfMaria reads the statements that would make the tables: a MariaDB shows its
// REFERENTIAL_CONSTRAINTS only to those who may write.
func cascadesOfMaria(conn *client.Conn, tables []cdc.TableName) (names []string, err error) {
	for _, t := range tables {
		rows, err := queryRows(conn, "SHOW CREATE TABLE "+quoteTable(t))
		if missing(err) || denied(err) { // which are told of where the table is read
			continue
		}
		if err != nil {
			return nil, err
		}
		if cascading(rows[0][1]) {
			names = append(names, t.String())
		}
	}
	return names, nil
}

// denied reports whether a table, or columns of it, may not be read.
func denied(err error) bool {
	my, ok := errors.AsType[*gomysql.MyError](err)
	return ok && (my.Code == gomysql.ER_TABLEACCESS_DENIED_ERROR || my.Code == gomysql.ER_COLUMNACCESS_DENIED_ERROR)
}

// checkCascades stops at tables whose foreign keys change rows that are not in the log.
func (s *Source) checkCascades(conn *client.Conn, tables []cdc.TableName) error {
	if !s.refuseCascades {
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
	found, err := inspectPrivileges(conn, flavorOf(conn), cfg.User)
	if err != nil {
		return nil, err
	}
	denied := slices.ContainsFunc(found, func(f Finding) bool { return !f.OK })
	s, err := inspect(conn)
	switch {
	case err == nil:
		found = append(found, Finding{Check: "server", OK: true, Detail: s.title()})
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

// InspectTables looks at what a process needs of the server that reads rows and not the log:
// the captured tables.
func InspectTables(ctx context.Context, cfg Config, match func(cdc.TableName) bool) ([]Finding, error) {
	conn, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer until(ctx, conn)()
	tables, err := listTables(conn, match)
	if err != nil {
		return nil, err
	}
	return inspectTables(conn, tables, cfg)
}

func inspectPrivileges(conn *client.Conn, flavor, user string) ([]Finding, error) {
	rows, err := queryRows(conn, "SHOW GRANTS")
	if err != nil {
		return nil, err
	}
	var all strings.Builder
	for _, r := range rows {
		all.WriteString(strings.ToUpper(r[0]) + "\n")
	}
	var found []Finding
	wanted := []string{"REPLICATION SLAVE", "REPLICATION CLIENT"}
	if flavor == flavorMariaDB {
		wanted = []string{"REPLICATION SLAVE", "BINLOG MONITOR", "SLAVE MONITOR"}
	}
	for _, p := range wanted {
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
		l, err := tableLayout(conn, t, cfg.policy())
		var stop *Stop
		switch {
		case errors.As(err, &stop):
			f.OK, f.Detail, f.Fix = false, stop.Problem, stop.Remedy
		case err != nil:
			return nil, err
		default:
			f.Detail = fmt.Sprintf("%d columns, primary key (%s)", len(l.columns), l.keyNames())
			err := mayReadAll(conn, t, cfg.User)
			if errors.As(err, &stop) {
				f.OK, f.Detail, f.Fix = false, stop.Problem, stop.Remedy
			} else if err != nil {
				return nil, err
			}
		}
		found = append(found, f)
	}
	return found, nil
}

// mayReadAll stops where an account may not read every column of a table. Columns that
// it may not read are left out of information_schema as if they were not there, and a
// copy would leave them out of the rows.
func mayReadAll(conn *client.Conn, t cdc.TableName, user string) error {
	_, err := queryRows(conn, "SELECT * FROM "+quoteTable(t)+" LIMIT 0")
	if denied(err) {
		return stopf(fmt.Sprintf("GRANT SELECT ON %s TO '%s'@'%%'", quoteTable(t), user), "%s may not read every column of table %s", user, t)
	}
	return err
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
		l, err := tableLayout(conn, n, cfg.policy())
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
