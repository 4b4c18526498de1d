package mysql

import (
	"strings"

	"github.com/go-mysql-org/go-mysql/replication"
)

// query follows a statement. size is that of its event.
func (r *reader) query(e *replication.BinlogEvent, ev *replication.QueryEvent, size uint64) error {
	st := parseStatement(string(ev.Query), string(ev.Schema))
	if r.foldNames {
		st.fold()
	}
	switch st.verb {
	case verbBegin:
		r.txn.open = true
		return nil
	case verbSavepoint:
		return nil
	case verbRollbackTo: // logged only when rows of an engine without transactions keep it from being cut off
		if r.txn.rows > 0 {
			return r.refuse("", "transaction %s rolls back to a savepoint rows that the log has shown already", r.txn.gtid)
		}
		return nil
	case verbCommit:
		return r.end(e)
	case verbRollback:
		if r.txn.rows > 0 {
			if err := r.refuse("", "transaction %s rolls back rows that the log has shown already (tables of an engine without transactions)", r.txn.gtid); err != nil {
				return err
			}
		}
		return r.end(e)
	case verbXA:
		return r.xa(e, string(ev.Query))
	case verbUnknown:
		if err := r.refuse("", "transaction %s has a statement that this version does not know (%s)", r.txn.gtid, truncate(string(ev.Query), 60)); err != nil {
			return err
		}
	case verbDML:
		if err := r.refuse("SET PERSIST binlog_format = ROW where it is not, and see which session sets another", "transaction %s in database %s changes rows by statement, so nobody can tell which: %s", r.txn.gtid, ev.Schema, truncate(string(ev.Query), 80)); err != nil {
			return err
		}
	case verbCreate:
		for _, t := range st.tables {
			if r.Match(t) {
				r.addCopied(t) // all its rows are in the log
			}
		}
	case verbDatabase, verbTableWide, verbAlter:
		r.clock += size
		if err := r.ddl(st, string(ev.Query)); err != nil {
			return err
		}
	}
	if r.txn.open {
		return nil
	}
	return r.end(e)
}

// ddl decides about a statement that changes a table as a whole. Layouts come
// with the next table map, so a change of shape is passed on; what takes rows away
// without row events is refused.
func (r *reader) ddl(st statement, query string) error {
	var hit []string
	for _, t := range st.tables {
		if r.Match(t) {
			hit = append(hit, t.String())
		}
	}
	for _, name := range r.pos.Copied {
		if st.verb == verbDatabase && strings.HasPrefix(name, st.db+".") {
			hit = append(hit, name)
		}
	}
	if len(hit) == 0 {
		return nil
	}
	for _, name := range hit {
		r.snaps.disturbed(tableNamed(name))
	}
	tables := strings.Join(hit, ", ")
	if st.verb == verbAlter {
		r.Metrics.ddl.WithLabelValues("passed").Inc()
		r.Log.Warn("a captured table was altered; rows written before keep their old shape in the sinks until they change",
			"table", tables, "gtid", r.txn.gtid, "statement", truncate(query, 200))
		return nil
	}
	return r.refuse("", "%s of the captured %s in transaction %s takes rows away that the log does not name", st.words, tables, r.txn.gtid)
}

func (r *reader) xa(e *replication.BinlogEvent, query string) error {
	words := strings.Fields(strings.ToUpper(query))
	if len(words) < 2 {
		return nil
	}
	switch words[1] {
	case "START", "BEGIN":
		r.txn.open, r.txn.xa = true, true
	case "COMMIT", "ROLLBACK":
		return r.end(e)
	}
	return nil
}
