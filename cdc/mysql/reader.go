package mysql

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/google/uuid"

	"lockstep/cdc"
)

// stream reads the log from the end of the last transaction on.
func (s *Source) stream(ctx context.Context, sets collations) error {
	r := &reader{Source: s, ctx: ctx, sets: sets, clock: s.pos.Seq, layouts: map[uint64]*source{}, marked: time.Now()}
	host, port, err := splitAddr(s.Config.Addr)
	if err != nil {
		return err
	}
	tlsConfig, err := s.Config.TLS.client(s.Config.Addr)
	if err != nil {
		return err
	}
	// When the syncer is closed it opens one more connection to KILL the first by
	// its number. Behind a virtual address that number may belong to somebody
	// else, and closing the socket does the same, so that connection is refused.
	var connected bool
	dial := func(dialing context.Context, network, addr string) (net.Conn, error) {
		if connected {
			return nil, errors.New("one connection is enough")
		}
		connected = true
		conn, err := (&net.Dialer{Timeout: s.Config.ConnectTimeout}).DialContext(dialing, network, addr)
		if err == nil { // the library does not hear the end of ctx while it shakes hands
			context.AfterFunc(ctx, func() { conn.Close() })
		}
		return conn, err
	}
	// The checks were made on another connection, and behind a virtual address
	// another server may answer this one.
	sameServer := func(conn *client.Conn) error {
		id, err := queryOne(conn, "SELECT @@GLOBAL.server_uuid")
		if err == nil && id != s.pos.ServerUUID {
			err = fmt.Errorf("server %s answers now, not %s", id, s.pos.ServerUUID)
		}
		return err
	}
	syncer := replication.NewBinlogSyncer(replication.BinlogSyncerConfig{
		ServerID: s.Config.ServerID, Flavor: gomysql.MySQLFlavor,
		Host: host, Port: port, User: s.Config.User, Password: s.Config.Password.Reveal(), TLSConfig: tlsConfig,
		Charset:                 "utf8mb4",
		Dialer:                  dial,
		Option:                  sameServer,
		Logger:                  slog.New(slog.DiscardHandler),
		DisableRetrySync:        true, // its own loses tagged GTIDs, and sends the open transaction again
		HeartbeatPeriod:         time.Second,
		ReadTimeout:             s.Config.ReadTimeout,
		VerifyChecksum:          true,
		TimestampStringLocation: time.UTC,
		RenderJSONAsMySQLText:   true,
		DiscardGTIDSet:          true,
		RowsEventDecodeFunc:     r.decodeRows,
		SynchronousEventHandler: r, // no queue of decoded events: memory stays bounded
	})
	defer syncer.Close()
	here := s.pos                                          // the handler moves it on as soon as the log comes
	streamer, err := syncer.StartSyncGTID(s.gtids.Clone()) // it keeps and changes the set
	if err != nil {
		return lost(fmt.Errorf("ask %s for its log: %w", s.Config.Addr, err))
	}
	s.reading.Store(true)
	s.Metrics.connected.Set(1)
	s.Metrics.clock.Set(float64(here.Seq))
	s.Metrics.epoch.Set(float64(here.Epoch))
	s.Log.Info("reading the log", "addr", s.Config.Addr, "epoch", here.Epoch, "log_clock", here.Seq, "tables", len(here.Copied))
	_, err = streamer.GetEvent(ctx) // blocks: events go to the handler
	if ctx.Err() != nil {
		return nil
	}
	if r.failed != nil {
		return r.failed
	}
	return lost(fmt.Errorf("read the log of %s: %w", s.Config.Addr, err))
}

func splitAddr(addr string) (string, uint16, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return host, uint16(n), err
}

// reader follows the events of one connection.
type reader struct {
	*Source
	ctx     context.Context // of the session; a reader does not outlive it
	sets    collations
	clock   uint64 // the log clock at the next event
	layouts map[uint64]*source
	txn     transaction
	skipCRC uint32
	file    string
	marked  time.Time // of the last checkpoint
	moved   bool      // the position has moved since then
	failed  error     // why the handler gave up

	key, before, after []byte // reused from row to row
}

// source is what a table id means: a nil layout for a table that is not
// captured.
type source struct {
	layout   *layout
	counters *tableCounters
}

// transaction is the one being read.
type transaction struct {
	id     uuid.UUID
	tag    gomysql.Tag
	gno    int64
	gtid   string
	commit int64 // microseconds
	open   bool  // between BEGIN and its end
	xa     bool  // rows are logged before the decision
	rows   int   // captured rows so far
}

// decodeRows stands in for the library's decoding of a row event: rows of tables
// that are not captured are never decoded.
func (r *reader) decodeRows(e *replication.RowsEvent, data []byte) error {
	pos, err := e.DecodeHeader(data)
	if err != nil {
		return err
	}
	src, err := r.layout(e.Table)
	if err != nil {
		r.failed = err
		return err
	}
	if src.layout == nil {
		return nil
	}
	if !allSet(e.ColumnBitmap1, int(e.ColumnCount)) || e.ColumnBitmap2 != nil && !allSet(e.ColumnBitmap2, int(e.ColumnCount)) {
		r.failed = r.refuse("SET PERSIST binlog_row_image = FULL where it is not, and see which session sets another", "transaction %s has incomplete rows of %s in the log", r.txn.gtid, src.layout.table)
		return r.failed // nil: passed over, and the event has no rows
	}
	return e.DecodeData(pos, data)
}

func allSet(bitmap []byte, n int) bool {
	for i := range n {
		if bitmap[i>>3]&(1<<(i&7)) == 0 {
			return false
		}
	}
	return true
}

func (r *reader) layout(tm *replication.TableMapEvent) (*source, error) {
	if src, ok := r.layouts[tm.TableID]; ok {
		return src, nil
	}
	src := &source{}
	if name := (cdc.TableName{DB: string(tm.Schema), Table: string(tm.Table)}); r.Match(name) {
		l, err := layoutOf(tm, r.sets, r.Config.ZeroDates)
		var stop *Stop
		if errors.As(err, &stop) { // the rows are in the log for good, so mending the table is not enough
			return &source{}, r.refuse(stop.Remedy, "%s (or leave the table out with tables[].skip)", stop.Problem)
		}
		if err != nil {
			return nil, err
		}
		if !r.copied(name) {
			return nil, r.appeared(name)
		}
		if err := r.sameKey(l); err != nil {
			return nil, err
		}
		src.layout, src.counters = l, r.Metrics.table(name)
	}
	r.layouts[tm.TableID] = src
	return src, nil
}

func (l *layout) keyNames() string {
	names := make([]string, len(l.key))
	for n, i := range l.key {
		names[n] = l.columns[i].name
	}
	return strings.Join(names, ", ")
}

// HandleEvent takes every event of the log in order.
func (r *reader) HandleEvent(e *replication.BinlogEvent) error {
	r.snaps.mu.Lock()
	defer r.snaps.mu.Unlock()
	if err := r.handle(e, uint64(len(e.RawData))); err != nil {
		r.failed = err
		return err
	}
	return nil
}

func (r *reader) handle(e *replication.BinlogEvent, size uint64) error {
	switch ev := e.Event.(type) {
	case *replication.RowsEvent:
		return r.rows(e, ev, size-uint64(r.skipCRC))
	case *replication.GTIDEvent:
		return r.begin(ev, e.Header.EventType)
	case *replication.GtidTaggedLogEvent:
		return r.begin(&ev.GTIDEvent, e.Header.EventType)
	case *replication.QueryEvent:
		return r.query(e, ev, size-uint64(r.skipCRC))
	case *replication.XIDEvent:
		return r.end(e)
	case *replication.TransactionPayloadEvent:
		crc := r.skipCRC
		r.skipCRC = 0 // events inside carry none
		defer func() { r.skipCRC = crc }()
		for _, inner := range ev.Events {
			if err := r.handle(inner, uint64(len(inner.RawData))); err != nil {
				return err
			}
		}
		return nil
	case *replication.TableMapEvent, *replication.PreviousGTIDsEvent, *replication.RowsQueryEvent, *replication.IntVarEvent:
		return nil
	case *replication.FormatDescriptionEvent: // a file begins
		clear(r.layouts) // a server that was restarted gives the table ids out anew
		r.skipCRC = 0
		if ev.ChecksumAlgorithm == replication.BINLOG_CHECKSUM_ALG_CRC32 {
			r.skipCRC = replication.BinlogChecksumLength
		}
		return nil
	case *replication.RotateEvent:
		r.file = string(ev.NextLogName)
		r.pos.File, r.pos.Pos = r.file, uint32(ev.Position)
		return nil
	case *replication.HeartbeatEvent: // the end of the log is reached
		r.Metrics.lag.Set(0)
		if r.txn.gno == 0 {
			r.snaps.idle()
		}
		return r.mark(true)
	case *replication.BeginLoadQueryEvent, *replication.ExecuteLoadQueryEvent:
		return r.refuse("SET PERSIST binlog_format = ROW", "the log has a LOAD DATA by statement in transaction %s", r.txn.gtid)
	}
	switch e.Header.EventType {
	case replication.STOP_EVENT, replication.RAND_EVENT, replication.USER_VAR_EVENT, replication.IGNORABLE_EVENT,
		replication.TRANSACTION_CONTEXT_EVENT, replication.VIEW_CHANGE_EVENT:
		return nil
	case replication.XA_PREPARE_LOG_EVENT:
		return r.end(e)
	}
	return r.refuse("", "the log has an event of type %s (%d), which this version does not know, at %s:%d in transaction %s",
		e.Header.EventType, byte(e.Header.EventType), r.file, e.Header.LogPos, r.txn.gtid)
}

// refuse stops, unless the operator has named this transaction.
func (r *reader) refuse(remedy, format string, args ...any) error {
	if r.SkipGTID != "" && r.SkipGTID == r.txn.gtid {
		r.Metrics.ddl.WithLabelValues("skipped").Inc()
		r.Log.Warn("passed over, as told by --skip-gtid", "gtid", r.txn.gtid, "what", fmt.Sprintf(format, args...))
		return nil
	}
	if remedy != "" {
		remedy += ", then "
	}
	remedy += "let every sink catch up (lockstep sink NAME until lockstep_consumer_lag_records is 0), make its rows agree by hand, and start once with --skip-gtid " + r.txn.gtid
	return stopf(remedy, format, args...)
}

func (r *reader) begin(ev *replication.GTIDEvent, typ replication.EventType) error {
	if typ == replication.ANONYMOUS_GTID_EVENT {
		return stopf("SET @@GLOBAL.gtid_mode = ON", "the log has a transaction without GTID (gtid_mode is not ON)")
	}
	if r.txn.gno != 0 {
		return stopf("", "the log begins a transaction before the end of %s", r.txn.gtid)
	}
	id, err := uuid.FromBytes(ev.SID)
	if err != nil {
		return err
	}
	r.txn = transaction{id: id, tag: ev.Tag, gno: ev.GNO, commit: int64(ev.OriginalCommitTimestamp)}
	r.txn.gtid = id.String() + ":"
	if tag := ev.Tag.String(); tag != "" {
		r.txn.gtid += tag + ":"
	}
	r.txn.gtid += strconv.FormatInt(ev.GNO, 10)
	return nil
}

// rows publishes the row changes of an event.
func (r *reader) rows(e *replication.BinlogEvent, ev *replication.RowsEvent, size uint64) error {
	base := r.clock + 1 // above the rows of a copy, which have the clock itself
	r.clock += size
	src, err := r.layout(ev.Table)
	if err != nil || src.layout == nil {
		return err
	}
	l := src.layout
	if e.Header.EventType == replication.PARTIAL_UPDATE_ROWS_EVENT {
		return r.refuse("SET PERSIST binlog_row_value_options = '' where it is not, and see which session sets another", "transaction %s has partial JSON updates of %s in the log", r.txn.gtid, l.table)
	}
	if r.txn.xa {
		return r.refuse("", "transaction %s changes %s in an XA transaction, whose rows are logged before it is decided", r.txn.gtid, l.table)
	}
	if len(ev.Rows) >= int(size) {
		return fmt.Errorf("%s: an event of %d bytes has %d rows, so versions would collide", l.table, size, len(ev.Rows))
	}
	r.txn.rows += len(ev.Rows)
	change := cdc.Change{Table: l.table, GTID: r.txn.gtid, CommitMicros: r.txn.commit,
		Origin: cdc.Origin{ServerID: e.Header.ServerID, File: r.file, Pos: e.Header.LogPos}}
	step := 1
	if ev.Type() == replication.EnumRowsEventTypeUpdate {
		step = 2
	}
	for i := 0; i+step <= len(ev.Rows); i += step {
		change.Origin.Row = i / step
		if err := r.row(src, &change, ev, i, base+uint64(i)); err != nil {
			return err
		}
	}
	return nil
}

// row publishes the change of image i, whose log clock is clock.
func (r *reader) row(src *source, change *cdc.Change, ev *replication.RowsEvent, i int, clock uint64) error {
	switch ev.Type() {
	case replication.EnumRowsEventTypeInsert:
		return r.publish(src, change, cdc.OpCreate, nil, ev.Rows[i], clock)
	case replication.EnumRowsEventTypeDelete:
		return r.publish(src, change, cdc.OpDelete, ev.Rows[i], nil, clock)
	}
	same, err := src.layout.keepsKey(ev.Rows[i], ev.Rows[i+1])
	if err != nil {
		return stopf("", "%v", err)
	}
	if same {
		return r.publish(src, change, cdc.OpUpdate, ev.Rows[i], ev.Rows[i+1], clock+1)
	}
	// An update of the primary key: to the stores, one row goes and one comes.
	if err := r.publish(src, change, cdc.OpDelete, ev.Rows[i], nil, clock); err != nil {
		return err
	}
	return r.publish(src, change, cdc.OpCreate, nil, ev.Rows[i+1], clock+1)
}

func (l *layout) keepsKey(a, b []any) (bool, error) {
	for _, i := range l.key {
		if a[i] == nil || b[i] == nil {
			return false, fmt.Errorf("%s: the primary key column %s is NULL", l.table, l.columns[i].name)
		}
		if av, ok := a[i].([]byte); ok {
			bv, _ := b[i].([]byte)
			if string(av) != string(bv) {
				return false, nil
			}
		} else if a[i] != b[i] {
			return false, nil
		}
	}
	return true, nil
}

func (r *reader) publish(src *source, change *cdc.Change, op cdc.Op, before, after []any, clock uint64) error {
	var err error
	if change.Version, err = cdc.NewVersion(r.pos.Epoch, clock); err != nil {
		return err
	}
	change.Op, change.Before, change.After = op, nil, nil
	keyRow := after
	if after == nil {
		keyRow = before
	}
	if r.key, err = src.layout.appendKey(r.key[:0], keyRow); err != nil {
		return stopf("", "transaction %s: %v", change.GTID, err)
	}
	change.Key = r.key
	if before != nil {
		if r.before, err = src.layout.appendRow(r.before[:0], before); err != nil {
			return stopf("", "transaction %s: %v", change.GTID, err)
		}
		change.Before = r.before
	}
	if after != nil {
		if r.after, err = src.layout.appendRow(r.after[:0], after); err != nil {
			return stopf("", "transaction %s: %v", change.GTID, err)
		}
		change.After = r.after
	}
	src.counters.inc(op)
	r.snaps.touched(change.Table, change.Key)
	return r.Out.Publish(r.ctx, change)
}

// epochReserve is how much of an epoch's clock is left when it ends: more than
// one transaction can need, so that no transaction runs over the end.
const epochReserve = 1 << 38

// end moves the position behind the transaction.
func (r *reader) end(e *replication.BinlogEvent) error {
	if r.txn.gno == 0 {
		return fmt.Errorf("the log ends a transaction without a GTID at %s:%d", r.file, e.Header.LogPos)
	}
	r.gtids.AddGTIDWithTag(r.txn.id, r.txn.tag, r.txn.gno)
	if r.clock > cdc.MaxSeq-epochReserve { // a rule of the position alone, so a re-read does the same
		r.pos.Epoch++
		r.clock = 0
		r.Log.Info("the log clock is used up, a new epoch begins", "epoch", r.pos.Epoch, "gtid", r.txn.gtid)
	}
	r.pos.Seq = r.clock
	r.pos.File, r.pos.Pos, r.pos.CommitMicros = r.file, e.Header.LogPos, r.txn.commit
	r.moved = true
	r.Metrics.transactions.Inc()
	r.Metrics.lag.Set(max(0, time.Since(time.UnixMicro(r.txn.commit)).Seconds()))
	r.txn = transaction{}
	r.snaps.boundary()
	return r.mark(false)
}

// mark hands the position on to be saved: now and then while transactions
// arrive, and at once when the end of the log is reached.
func (r *reader) mark(now bool) error {
	if !r.moved || !now && time.Since(r.marked) < r.Config.CheckpointInterval {
		return nil
	}
	r.moved, r.marked = false, time.Now()
	r.Metrics.clock.Set(float64(r.pos.Seq))
	r.Metrics.epoch.Set(float64(r.pos.Epoch))
	r.Metrics.filePos.Set(float64(r.pos.Pos))
	if i := strings.LastIndexByte(r.file, '.'); i >= 0 {
		if n, err := strconv.Atoi(r.file[i+1:]); err == nil {
			r.Metrics.fileNumber.Set(float64(n))
		}
	}
	return r.checkpoint(r.ctx)
}

func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
