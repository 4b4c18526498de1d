package mysql

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/google/uuid"

	"lockstep/cdc"
)

// Output takes what a Source reads.
type Output interface {
	// Publish queues a change; changes of one key keep their order. It blocks
	// while the output has no room, and must not keep the change or its slices.
	Publish(ctx context.Context, c *cdc.Change) error
	// Checkpoint says that the changes published so far are all there is before
	// pos. It is saved once they are safe, never earlier.
	Checkpoint(ctx context.Context, pos cdc.Position) error
	// Flush returns when everything published is safe and the last checkpoint
	// is saved.
	Flush(ctx context.Context) error
}

// Source reads one MySQL server into an Output.
type Source struct {
	Config  Config
	Match   func(cdc.TableName) bool // the tables to capture
	Out     Output
	Log     *slog.Logger
	Metrics *Metrics
	// Clock is the source's; nil takes this machine's for it.
	Clock *WallClock
	// From is the saved position; nil starts with a copy of every table.
	From *cdc.Position
	// FirstEpoch gives the epoch when From is nil.
	FirstEpoch func(context.Context) (uint16, error)
	// Saved reads the position back that was just saved for the first time. Nil
	// takes it as saved.
	Saved func(context.Context) (cdc.Position, bool, error)
	// MayCopy is asked before a table is copied for the first time, and refuses it
	// with an error. Known says that the sinks may have rows of it from before: what
	// the copy does not write again is swept. Nil allows every table, and knows none.
	MayCopy func(context.Context, cdc.Table) (known bool, err error)
	// Resnapshot copies every table again under a new epoch before anything else.
	Resnapshot bool
	// OnGap says what to do when log was purged before it was read: empty to stop,
	// or OnGapResnapshot.
	OnGap string
	// Published calls fn with the changes of captured tables that are in Kafka and
	// were committed at or after since, or with all of them for the zero time; in the
	// order of each partition, without images. Cut says that older changes of the same
	// partition are gone. Nil stands for an output without a memory.
	Published func(ctx context.Context, since time.Time, fn func(c *cdc.Change, partition int, cut bool) error) error
	// Repair writes requests for rows to be read again, and returns when they are safe.
	Repair func(ctx context.Context, requests []cdc.SnapshotRequest) error
	// Tracing says which changes are traced.
	Tracing Tracing
	// Requests tells of the snapshots that operators ask for. Nil: nobody does.
	Requests Requests
	// SkipGTID names the one transaction whose statement is passed over although
	// it cannot be followed.
	SkipGTID string

	pos cdc.Position // the last end of a transaction
	// foldNames: the server compares table names without case and keeps them in
	// lower case, but statements stand in its log as they were written.
	foldNames bool
	// refuseCascades: the server does not log what foreign keys change, and nobody has
	// accepted that.
	refuseCascades bool
	missed         cdc.TableName // rows were met of it before it was copied
	gtids          gtidSet
	published      map[string]*replay // by GTID: what is in Kafka under the last epoch and read again
	reading        atomic.Bool
	snaps          snapshots
}

// Reading reports whether the log is being read now.
func (s *Source) Reading() bool { return s.reading.Load() }

// Run reads until ctx ends, and then returns nil once what was published is safe.
// A lost connection is made again without end. It returns an error for what
// reading again does not mend: a Stop, or an Output that cannot go on.
func (s *Source) Run(ctx context.Context) error {
	if s.From != nil {
		s.pos = *s.From
		if err := s.restoreGTIDs(); err != nil {
			return err
		}
	}
	s.Metrics.forgetSnapshots() // of tables that are not captured any more, for one
	wait := &backoff.ExponentialBackOff{InitialInterval: 200 * time.Millisecond, Multiplier: 2, MaxInterval: 10 * time.Second, RandomizationFactor: 0.3}
	refused := "-" // the position from which the server did not send its log
	for {
		started := time.Now()
		err := s.session(ctx)
		s.setReading(false)
		s.Metrics.connected.Set(0)
		if ctx.Err() != nil {
			return s.flush(ctx)
		}
		if appeared, ok := errors.AsType[*appearedError](err); ok {
			s.Log.Info("a captured table has appeared, copying it", "table", appeared.table)
			continue
		}
		// The log may have been purged before it was read, or cut: the next session
		// tells. When that finds nothing wrong, it is refused for another reason.
		if my := (*gomysql.MyError)(nil); errors.As(err, &my) && my.Code == gomysql.ER_MASTER_FATAL_ERROR_READING_BINLOG {
			if at := s.gtids.String(); at == refused {
				err = stopf("lockstep run --resnapshot", "the server cannot send its log from the saved position: %v", err)
			} else {
				refused = at
			}
		}
		var lost *lostError
		if !errors.As(err, &lost) {
			return errors.Join(err, s.flush(ctx))
		}
		if time.Since(started) > time.Minute {
			wait.Reset()
		}
		pause := wait.NextBackOff()
		s.Metrics.reconnects.Inc()
		s.Log.Warn("source lost, trying again", "addr", s.Config.Addr, "error", lost.err, "wait", pause.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return s.flush(ctx)
		case <-time.After(pause):
		}
	}
}

// flush gives what is under way a short time of its own to get safe.
func (s *Source) flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := s.Out.Flush(ctx); err != nil {
		// Nothing is lost: the saved position is behind it and it is read again.
		s.Log.Warn("not everything read was acknowledged before the stop; it is read again at the next start", "error", err)
	}
	return nil
}

// lostError marks an error of the connection or of the server that a new
// connection may mend.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

func lost(err error) error {
	var stop *Stop
	if err == nil || errors.As(err, &stop) {
		return err
	}
	// What no new connection mends: a wrong password, a missing privilege.
	var my *gomysql.MyError
	if errors.As(err, &my) {
		switch my.Code {
		case gomysql.ER_ACCESS_DENIED_ERROR, gomysql.ER_DBACCESS_DENIED_ERROR, gomysql.ER_SPECIFIC_ACCESS_DENIED_ERROR, gomysql.ER_TABLEACCESS_DENIED_ERROR:
			return stopf("lockstep doctor", "%v", err)
		}
	}
	return &lostError{err}
}

func (s *Source) restoreGTIDs() error {
	set, err := parseGTIDs(s.pos.Flavor, s.pos.GTIDSet)
	if err != nil {
		return fmt.Errorf("read the saved position: %w", err)
	}
	s.gtids = set
	return nil
}

// session is one connection's worth: checks, the copy of tables that are new,
// and the log until something ends it.
func (s *Source) session(ctx context.Context) error {
	conn, err := connect(ctx, s.Config)
	if err != nil {
		return lost(err)
	}
	sets, err := s.prepare(ctx, conn) // closes it
	if err != nil {
		return err
	}
	return s.alongside(ctx, func(ctx context.Context) error { return s.stream(ctx, sets) })
}

// prepare checks the server against the position and copies the tables whose
// rows are not in Kafka yet.
func (s *Source) prepare(ctx context.Context, conn *client.Conn) (collations, error) {
	defer until(ctx, conn)()
	conn.ReadTimeout = s.Config.ReadTimeout // these questions have short answers
	server, err := inspect(conn)
	if err != nil {
		return nil, lost(err)
	}
	if problem := server.firstProblem(); problem != nil {
		return nil, problem
	}
	s.Metrics.kept.Set(server.keeps().Seconds())
	s.foldNames = server.settings["lower_case_table_names"] != "0"
	tables, err := listTables(conn, s.Match)
	if err != nil {
		return nil, lost(err)
	}
	if s.gtids == nil {
		err = s.begin(ctx, server)
	} else {
		err = s.takeUp(ctx, conn, server, tables)
	}
	if err != nil {
		return nil, err
	}
	if left := s.forget(); len(left) > 0 {
		s.Log.Warn("tables are not captured any more, and their rows stay in the sinks as they are; one that comes back is copied anew", "tables", left)
		if err := s.checkpoint(ctx); err != nil {
			return nil, err
		}
	}
	sets, err := readCollations(conn)
	if err != nil {
		return nil, lost(err)
	}
	s.refuseCascades = s.Config.UnloggedCascades == "refuse" && !server.logsCascades()
	if err := s.checkCascades(conn, tables); err != nil {
		return nil, lost(err)
	}
	if len(tables) == 0 && len(s.pos.Copied) == 0 {
		s.Log.Warn("no table of the source matches the configuration yet", "addr", s.Config.Addr)
	}
	conn.ReadTimeout = queryTimeout
	return sets, s.copyTables(ctx, conn, tables)
}

// begin makes the first position: the transactions executed now, under a fresh
// epoch. It is safe in Kafka before the first row is read, so that a copy that
// is interrupted starts again from the same place in the log.
func (s *Source) begin(ctx context.Context, server *server) error {
	epoch, err := s.FirstEpoch(ctx)
	if err != nil {
		return err
	}
	pos := cdc.Position{Format: cdc.PositionFormat, Run: uuid.NewString(), Flavor: flavorName(server.flavor), ServerUUID: server.id, GTIDSet: server.executed.String(), Epoch: epoch, Copied: []string{}}
	if _, err := nextEpoch(epoch - 1); err != nil {
		return err
	}
	if err := s.Out.Checkpoint(ctx, pos); err != nil {
		return err
	}
	if err := s.Out.Flush(ctx); err != nil {
		return err
	}
	if s.Saved != nil {
		saved, found, err := s.Saved(ctx)
		if err != nil {
			return err
		}
		if !found || saved.Run != pos.Run {
			return stopf("", "another capture of this pipeline has begun at the same moment; start this one again, if two are wanted, and it goes on from there")
		}
	}
	s.pos = pos
	s.Log.Info("starting from a new position", "gtid_set", pos.GTIDSet, "epoch", epoch, "server", server.id)
	return s.restoreGTIDs()
}

// copyTables schedules the first copy of the tables that are not in the position
// yet. From then on their changes are followed, and their rows come beside them.
func (s *Source) copyTables(ctx context.Context, conn *client.Conn, tables []cdc.TableName) error {
	var layouts []*layout
	known := map[cdc.TableName]bool{}
	for _, t := range tables { // all are looked at before the first is scheduled
		if s.copied(t) && !s.Config.masked(t) { // that the masks fit is asked at every start
			continue
		}
		l, err := tableLayout(conn, t, s.Config.policy())
		if errors.Is(err, cdc.ErrNoTable) {
			continue // dropped a moment ago; the log tells
		}
		if err != nil {
			return lost(err)
		}
		if s.copied(t) {
			continue
		}
		if s.MayCopy != nil {
			if known[t], err = s.MayCopy(ctx, l.describe()); err != nil {
				return fmt.Errorf("copy %s: %w", t, err)
			}
		}
		layouts = append(layouts, l)
	}
	if len(layouts) == 0 {
		return nil
	}
	for _, l := range layouts {
		sn := s.firstCopy(l.table)
		if known[l.table] {
			at, err := s.pos.Version()
			if err != nil {
				return err
			}
			sn.Sweep = below(at)
		}
		s.schedule(sn)
		if err := s.sameKey(l); err != nil {
			return err
		}
	}
	return s.checkpoint(ctx)
}

// below is the version next below v; 0 when there is none. Below the first of an epoch it
// is the last of the one before.
func below(v cdc.Version) cdc.Version {
	if v--; v.Check() != nil {
		return 0
	}
	return v
}

// checkpoint hands the position on to be saved.
func (s *Source) checkpoint(ctx context.Context) error {
	s.pos.GTIDSet = s.gtids.String()
	return s.Out.Checkpoint(ctx, s.pos)
}

// sameKey remembers the primary key of a copied table, and refuses one that has
// become another: the sinks know its rows by the old key.
func (s *Source) sameKey(l *layout) error {
	name, now := l.table.String(), l.keyNames()
	was, known := s.pos.Keys[name]
	if known && was != now {
		return keyChanged(name, was, now)
	}
	if !known {
		keys := maps.Clone(s.pos.Keys) // checkpoints hold the old one
		if keys == nil {
			keys = map[string]string{}
		}
		keys[name] = now
		s.pos.Keys = keys
	}
	return nil
}

// SameKey says why a table cannot be followed from a position on: its primary key is
// another than the sinks know its rows by. Nil means that it is not.
func SameKey(from cdc.Position, t cdc.Table) *Stop {
	name, now := t.Name.String(), strings.Join(t.Key, ", ")
	if was, known := from.Keys[name]; known && was != now {
		return keyChanged(name, was, now)
	}
	return nil
}

// forget takes the tables out of the position that are not captured any more.
// When one comes back it is copied: its changes in between were not read.
func (s *Source) forget() (left []string) {
	var kept []string
	keys := map[string]string{}
	for _, name := range s.pos.Copied {
		if !s.Match(tableNamed(name)) {
			left = append(left, name)
			s.forgetSnapshots(name)
			continue
		}
		kept = append(kept, name)
		if key, ok := s.pos.Keys[name]; ok {
			keys[name] = key
		}
	}
	s.pos.Copied, s.pos.Keys = kept, keys
	return left
}

func (s *Source) copied(t cdc.TableName) bool {
	_, found := slices.BinarySearch(s.pos.Copied, t.String())
	return found
}

// appearedError says that the log has rows of a table that was not there to be
// copied and was not made since.
type appearedError struct{ table cdc.TableName }

func (e *appearedError) Error() string { return "table " + e.table.String() + " has appeared" }

// appeared answers to rows of a table that is neither copied nor made in the log:
// it was renamed, or granted to us only now. A new session copies it. When that
// did not find it either, its older rows cannot be had.
func (s *Source) appeared(t cdc.TableName) error {
	if s.missed == t {
		return stopf(fmt.Sprintf("GRANT SELECT ON %s TO '%s'@'%%' (or leave the table out of tables[].match)", quoteTable(t), s.Config.User),
			"the log has rows of %s, but %s cannot see the table to copy its older rows", t, s.Config.User)
	}
	s.missed = t
	return &appearedError{t}
}

// addCopied notes that the rows of t are in Kafka. The list is replaced, not
// changed, because checkpoints hold it.
func (s *Source) addCopied(t cdc.TableName) {
	i, found := slices.BinarySearch(s.pos.Copied, t.String())
	if !found {
		s.pos.Copied = slices.Insert(slices.Clone(s.pos.Copied), i, t.String())
	}
	if s.missed == t {
		s.missed = cdc.TableName{}
	}
}
