package mysql

import (
	"errors"
	"slices"
	"strings"

	"github.com/go-mysql-org/go-mysql/replication"

	"lockstep/cdc"
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
		if err := r.refuse(persist(r.pos.Flavor, "binlog_format", "ROW")+" where it is not, and see which session sets another", "transaction %s in database %s changes rows by statement, so nobody can tell which: %s", r.txn.gtid, ev.Schema, truncate(string(ev.Query), 80)); err != nil {
			return err
		}
	default:
		if r.refuseCascades && slices.ContainsFunc(st.tables, r.Match) && cascading(string(ev.Query)) {
			if err := r.passOver("source.unlogged_cascades: accept; or drop that rule, ", "transaction %s gives %s a foreign key that changes rows by itself, and the server does not log such changes: %s",
				r.txn.gtid, st.tables[0], truncate(string(ev.Query), 200)); err != nil {
				return err
			}
		}
		if err := r.unversioned(st); err != nil {
			return err
		}
		v, err := cdc.NewVersion(r.pos.Epoch, r.clock+cdc.Turns)
		if err != nil {
			return err
		}
		if st.verb.clocked() {
			r.clock += size
		}
		if err := r.act(st, string(ev.Query), v); err != nil {
			return err
		}
	}
	if r.txn.open {
		return nil
	}
	return r.end(e)
}

// act follows a statement that changes tables as a whole. v lies above the versions
// of all rows before it and below those of all rows behind it. Layouts come with the
// next table map.
func (r *reader) act(st statement, query string, v cdc.Version) error {
	reason := st.words + " in " + r.txn.gtid
	var err error
	done := func(action string, t cdc.TableName) {
		r.Metrics.ddl.WithLabelValues(action).Inc()
		r.Log.Info("statement followed", "table", t.String(), "done", action, "gtid", r.txn.gtid, "statement", truncate(query, 200))
	}
	empty := func(t cdc.TableName) {
		if err == nil && r.follows(t) {
			err = r.emptied(t, v, reason)
			done("emptied", t)
		}
	}
	drop := func(t cdc.TableName) {
		if err == nil && r.follows(t) {
			err = r.emptied(t, v, reason)
			r.unfollow(t)
			done("dropped", t)
		}
	}
	recopy := func(t cdc.TableName) {
		if err == nil && r.Match(t) {
			r.recopy(t, v, reason)
			done("copied", t)
		}
	}
	switch st.verb {
	case verbCreate, verbReplace:
		for _, t := range st.tables {
			if st.verb == verbReplace {
				drop(t)
			}
			if r.Match(t) {
				r.addCopied(t) // all its rows are in the log
			}
		}
	case verbMayCreate: // it may have been there, unseen
		for _, t := range st.tables {
			if err == nil && r.Match(t) && !r.copied(t) {
				r.schedule(r.firstCopy(t)) // nothing of it is in the sinks to be swept
				done("copied", t)
			}
		}
	case verbEmpty:
		for _, t := range st.tables {
			empty(t)
		}
	case verbDrop:
		for _, t := range st.tables {
			drop(t)
		}
	case verbDatabase:
		for _, name := range r.pos.Copied {
			if db, table, _ := strings.Cut(name, "."); db == st.db {
				drop(cdc.TableName{DB: db, Table: table})
			}
		}
	case verbRename:
		lost, got := st.renamed()
		for _, t := range lost {
			drop(t)
		}
		for _, t := range got {
			recopy(t)
		}
	case verbPart:
		for _, t := range st.tables {
			if r.follows(t) {
				recopy(t)
			}
		}
	case verbReshape, verbTidy:
		for _, t := range st.tables {
			if !r.follows(t) {
				continue
			}
			if err := r.keyStays(t, st); err != nil {
				return err
			}
			switch {
			case st.verb == verbReshape && r.Config.AfterAlter == alterRecopy:
				recopy(t)
			case st.verb == verbReshape:
				r.Metrics.ddl.WithLabelValues("passed").Inc()
				r.Log.Warn("a captured table was altered; rows written before keep their old shape in the sinks until they change (source.after_alter is leave)",
					"table", t.String(), "gtid", r.txn.gtid, "statement", truncate(query, 200))
			default:
				done("passed", t)
			}
		}
	}
	for _, t := range st.touches() {
		r.snaps.disturbed(t)
	}
	return err
}

// unversioned refuses a statement that makes a table of MariaDB system-versioned, which
// LIKE may do, and options anywhere in it. The table is asked for as it is now: was it
// another one then, the log says more of it.
func (r *reader) unversioned(st statement) error {
	if r.pos.Flavor != flavorMariaDB || st.verb != verbCreate && st.verb != verbReplace && st.verb != verbReshape {
		return nil
	}
	for _, t := range st.tables {
		if !r.Match(t) {
			continue
		}
		conn, err := connect(r.ctx, r.Config)
		if err != nil {
			return lost(err)
		}
		conn.ReadTimeout = r.Config.ReadTimeout
		done := until(r.ctx, conn)
		err = refuseVersioned(conn, t)
		done()
		if stop, ok := errors.AsType[*Stop](err); ok {
			err = r.refuse(stop.Remedy, "transaction %s: %s", r.txn.gtid, stop.Problem)
		}
		if err != nil {
			return lost(err)
		}
	}
	return nil
}

// follows reports whether changes of a table are in Kafka.
func (r *reader) follows(t cdc.TableName) bool { return r.Match(t) && r.copied(t) }

// emptied tells the sinks that every row of t is gone. What is written later is in
// the log, so a copy that is under way has nothing left to do.
func (r *reader) emptied(t cdc.TableName, v cdc.Version, reason string) error {
	r.cancelSnapshots(t, reason)
	return r.barrier(t, v)
}

// recopy has t copied anew, and what is not written again by that swept.
func (r *reader) recopy(t cdc.TableName, v cdc.Version, reason string) {
	r.cancelSnapshots(t, reason)
	r.schedule(cdc.Snapshot{ID: t.String() + "-" + v.String(), Table: t.String(), Reason: reason, GTID: r.txn.gtid, Sweep: v})
}

// barrier publishes that no row of t whose version is not above v may stay.
func (r *reader) barrier(t cdc.TableName, v cdc.Version) error {
	if again := r.published[r.txn.gtid]; again != nil && again.barriers[t] != 0 {
		v = again.barriers[t] // it is in Kafka, and so may be what is behind it
	} else {
		c := cdc.Change{Table: t, Op: cdc.OpBarrier, Version: v, GTID: r.txn.gtid, CommitMicros: r.txn.commit}
		if err := r.Out.Publish(r.ctx, &c); err != nil {
			return err
		}
	}
	r.noteBarrier(t.String(), v)
	return nil
}

// keyStays refuses an ALTER TABLE that gives a table another primary key.
func (r *reader) keyStays(t cdc.TableName, st statement) error {
	was, known := r.pos.Keys[t.String()]
	now := strings.Join(st.key, ", ")
	if !known || st.key == nil && !st.dropsKey || strings.EqualFold(was, now) {
		return nil
	}
	return keyChanged(t.String(), was, now)
}

func keyChanged(table, was, now string) *Stop {
	return stopf("lockstep run --resnapshot (after the table's index is deleted and its keys are emptied)", "the primary key of %s has changed from (%s) to (%s)", table, was, now)
}

// touches are all tables that the statement names.
func (s statement) touches() []cdc.TableName {
	tables := slices.Clone(s.tables)
	for _, m := range s.moves {
		tables = append(tables, m.from, m.to)
	}
	return tables
}

// renamed follows the moves one after another: lost are the names that hold nothing
// in the end, got those that hold what another name held.
func (s statement) renamed() (lost, got []cdc.TableName) {
	holds := map[cdc.TableName]cdc.TableName{} // the name that its rows had before
	var names []cdc.TableName
	held := func(t cdc.TableName) cdc.TableName {
		if _, known := holds[t]; !known {
			names = append(names, t)
			holds[t] = t
		}
		return holds[t]
	}
	for _, m := range s.moves {
		rows := held(m.from)
		held(m.to)
		holds[m.from], holds[m.to] = cdc.TableName{}, rows
	}
	for _, t := range names {
		switch holds[t] {
		case cdc.TableName{}:
			lost = append(lost, t)
		case t:
		default:
			got = append(got, t)
		}
	}
	return lost, got
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
