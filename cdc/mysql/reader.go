package mysql

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/google/uuid"

	"lockstep/cdc"
)

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
	sources map[uint64]*source
	parser  *replication.BinlogParser // of the events that are not frequent
	payload *payloadReader            // nil before the first compressed transaction
	txn     transaction
	file    string
	marked  time.Time // of the last checkpoint
	moved   bool      // the position has moved since then

	age         float64    // seconds since the commit when the rows of an event are read; negative when it is not known
	change      cdc.Change // reused from row to row, as are the images
	key, oldKey []byte
	before      image
	after       image
}

func newReader(ctx context.Context, s *Source, sets collations) *reader {
	parser := replication.NewBinlogParser()
	if s.pos.Flavor == flavorMariaDB {
		parser.SetFlavor(gomysql.MariaDBFlavor)
	}
	return &reader{Source: s, ctx: ctx, sets: sets, clock: s.pos.Seq, sources: map[uint64]*source{}, parser: parser, marked: time.Now()}
}

// transaction is the one being read.
type transaction struct {
	id     uuid.UUID
	tag    gomysql.Tag
	domain uint32 // of a MariaDB, as is server
	server uint32
	gno    int64
	gtid   string
	commit int64 // microseconds
	open   bool  // between BEGIN and its end
	xa     bool  // rows are logged before the decision
	rows   int   // captured row images so far
	drawn  bool  // whether the transaction is traced was decided
	trace  cdc.Trace
}

// take takes every event of the log in order.
func (r *reader) take(ev *event) error {
	if ev.EventType == replication.TRANSACTION_PAYLOAD_EVENT {
		return r.unpack(ev)
	}
	r.snaps.mu.Lock()
	defer r.snaps.mu.Unlock()
	return r.handle(ev)
}

func (r *reader) handle(ev *event) error {
	switch ev.EventType {
	case replication.WRITE_ROWS_EVENTv1, replication.UPDATE_ROWS_EVENTv1, replication.DELETE_ROWS_EVENTv1,
		replication.WRITE_ROWS_EVENTv2, replication.UPDATE_ROWS_EVENTv2, replication.DELETE_ROWS_EVENTv2,
		replication.PARTIAL_UPDATE_ROWS_EVENT, replication.MARIADB_WRITE_ROWS_COMPRESSED_EVENT_V1,
		replication.MARIADB_UPDATE_ROWS_COMPRESSED_EVENT_V1, replication.MARIADB_DELETE_ROWS_COMPRESSED_EVENT_V1:
		return r.rows(ev)
	case replication.TABLE_MAP_EVENT:
		return r.tableMap(ev)
	case replication.QUERY_EVENT, replication.MARIADB_QUERY_COMPRESSED_EVENT:
		return r.statement(ev)
	case replication.XID_EVENT, replication.XA_PREPARE_LOG_EVENT:
		return r.end(ev.header())
	case replication.GTID_EVENT:
		var g replication.GTIDEvent
		if err := decode(&g, ev); err != nil {
			return err
		}
		return r.begin(&g)
	case replication.GTID_TAGGED_LOG_EVENT:
		var g replication.GtidTaggedLogEvent
		if err := decode(&g, ev); err != nil {
			return err
		}
		return r.begin(&g.GTIDEvent)
	case replication.MARIADB_GTID_EVENT:
		return r.beginMaria(ev)
	case replication.ANONYMOUS_GTID_EVENT:
		return stopf("SET @@GLOBAL.gtid_mode = ON", "the log has a transaction without GTID (gtid_mode is not ON)")
	case replication.FORMAT_DESCRIPTION_EVENT: // a file begins
		clear(r.sources) // a server that was restarted gives the table ids out anew
		return r.format(ev)
	case replication.ROTATE_EVENT:
		var rotate replication.RotateEvent
		if err := decode(&rotate, ev); err != nil {
			return err
		}
		r.file = string(rotate.NextLogName)
		r.pos.File, r.pos.Pos = r.file, uint32(rotate.Position)
		return nil
	case replication.HEARTBEAT_EVENT, replication.HEARTBEAT_LOG_EVENT_V2: // the end of the log is reached
		r.Metrics.lag.Set(0)
		if r.txn.gno == 0 {
			r.snaps.idle()
		}
		return r.mark(true)
	case replication.BEGIN_LOAD_QUERY_EVENT, replication.EXECUTE_LOAD_QUERY_EVENT:
		return r.refuse(persist(r.pos.Flavor, "binlog_format", "ROW"), "the log has a LOAD DATA by statement in transaction %s", r.txn.gtid)
	case replication.ROWS_QUERY_EVENT, replication.MARIADB_ANNOTATE_ROWS_EVENT:
		r.statementText(ev)
		return nil
	case replication.PREVIOUS_GTIDS_EVENT, replication.INTVAR_EVENT,
		replication.STOP_EVENT, replication.RAND_EVENT, replication.USER_VAR_EVENT, replication.IGNORABLE_EVENT,
		replication.TRANSACTION_CONTEXT_EVENT, replication.VIEW_CHANGE_EVENT,
		replication.MARIADB_GTID_LIST_EVENT, replication.MARIADB_BINLOG_CHECKPOINT_EVENT,
		replication.MARIADB_START_ENCRYPTION_EVENT: // the server sends in clear what it has encrypted
		return nil
	}
	return r.refuse("", "the log has an event of type %s (%d), which this version does not know, at %s:%d in transaction %s",
		ev.EventType, byte(ev.EventType), r.file, ev.LogPos, r.txn.gtid)
}

// decode lets the library read the body of an event. It panics on one that is cut
// off.
func decode(into replication.Event, ev *event) (err error) {
	defer func() {
		if e := recover(); e != nil {
			err = fmt.Errorf("the event of type %s at %d is not whole: %v", ev.EventType, ev.LogPos, e)
		}
	}()
	return into.Decode(ev.body())
}

// parse lets the library read a whole event. It panics on one that is cut off.
func (r *reader) parse(data []byte) (e *replication.BinlogEvent, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the event of type %s is not whole: %v", replication.EventType(data[4]), p)
		}
	}()
	return r.parser.Parse(data)
}

// format tells the parser how the events of a file look; it gets them without
// checksums.
func (r *reader) format(ev *event) error {
	data := slices.Clone(ev.data)
	data[len(data)-1-replication.BinlogChecksumLength] = byte(replication.BINLOG_CHECKSUM_ALG_OFF)
	_, err := r.parse(data)
	return err
}

// header is what a statement's handler wants of an event.
func (e *event) header() *replication.BinlogEvent {
	return &replication.BinlogEvent{Header: &e.EventHeader}
}

// statement reads an event of a statement: thread, seconds, length of the database's
// name, error, length of what else the session has set, these, the database's name,
// a zero byte and the text.
func (r *reader) statement(ev *event) error {
	body := ev.body()
	if len(body) < 13 {
		return fmt.Errorf("the statement at %s:%d is not whole", r.file, ev.LogPos)
	}
	name := 13 + int(binary.LittleEndian.Uint16(body[11:]))
	text := name + int(body[8]) + 1
	if len(body) < text {
		return fmt.Errorf("the statement at %s:%d is not whole", r.file, ev.LogPos)
	}
	if string(body[text:]) == "BEGIN" { // nearly always
		r.txn.open = true
		return nil
	}
	query := body[text:]
	if ev.EventType == replication.MARIADB_QUERY_COMPRESSED_EVENT {
		var err error
		if query, err = inflateEvent(query); err != nil {
			return r.damaged(ev, err)
		}
	}
	return r.query(ev.header(), &replication.QueryEvent{Schema: body[name : text-1], Query: query}, uint64(len(ev.data)))
}

// refuse stops, unless the operator has named this transaction. Remedy is what keeps
// the next one from being refused.
func (r *reader) refuse(remedy, format string, args ...any) error {
	if remedy != "" {
		remedy += ", then "
	}
	return r.passOver(remedy, format, args...)
}

// passOver stops, unless the operator has named this transaction, which is what
// remains where nothing is done that is said before it.
func (r *reader) passOver(before, format string, args ...any) error {
	if r.SkipGTID != "" && r.SkipGTID == r.txn.gtid {
		r.Metrics.ddl.WithLabelValues("skipped").Inc()
		r.Log.Warn("passed over, as told by --skip-gtid", "gtid", r.txn.gtid, "what", fmt.Sprintf(format, args...))
		return nil
	}
	remedy := before + "start once with --skip-gtid " + r.txn.gtid + ", and have each captured table that it changed copied again: lockstep snapshot start --sweep --table DB.TABLE"
	return stopf(remedy, format, args...)
}

func (r *reader) begin(ev *replication.GTIDEvent) error {
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

// epochReserve is how much of an epoch's clock is left when it ends: more than
// one transaction can need, so that no transaction runs over the end.
const epochReserve = 1 << 38

// end moves the position behind the transaction.
func (r *reader) end(e *replication.BinlogEvent) error {
	if r.txn.gno == 0 {
		return fmt.Errorf("the log ends a transaction without a GTID at %s:%d", r.file, e.Header.LogPos)
	}
	r.gtids.add(gtid{r.txn.id, r.txn.tag.String(), r.txn.domain, r.txn.server, uint64(r.txn.gno)})
	if r.clock > cdc.MaxSeq-epochReserve { // a rule of the position alone, so a re-read does the same
		epoch, err := nextEpoch(r.pos.Epoch)
		if err != nil {
			return err
		}
		r.pos.Epoch, r.clock = epoch, 0
		r.Log.Info("the log clock is used up, a new epoch begins", "epoch", r.pos.Epoch, "gtid", r.txn.gtid)
	}
	r.pos.Seq = r.clock
	r.pos.File, r.pos.Pos, r.pos.CommitMicros, r.pos.LastGTID = r.file, e.Header.LogPos, r.txn.commit, r.txn.gtid
	delete(r.published, r.txn.gtid)
	if len(r.published) == 0 {
		r.pos.Replaced = 0
	}
	r.moved = true
	r.Metrics.transactions.Inc()
	r.Metrics.lag.Set(max(0, r.Clock.At(time.Now()).Sub(time.UnixMicro(r.txn.commit)).Seconds()))
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
	r.Metrics.fileNumber.Set(float64(fileNumber(r.file)))
	return r.checkpoint(r.ctx)
}

// values begins what in a statement may be a value of a row.
var values = regexp.MustCompile(`['"]|/\*|--|#|\b[0-9]`)

// withoutValues is the beginning of a statement, up to its first value: that may be
// one that is masked.
func withoutValues(statement string, n int) string {
	if at := values.FindStringIndex(statement); at != nil {
		statement = strings.TrimSpace(statement[:at[0]]) + " ..."
	}
	return truncate(statement, n)
}

func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
