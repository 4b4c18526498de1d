package mysql

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"

	"lockstep/cdc"
)

// source is what a table id means.
type source struct {
	tableMap []byte // the event, without checksum
	known    bool   // whether what follows is read from it
	layout   *layout
	counters *tableCounters
}

func (l *layout) keyNames() string {
	names := make([]string, len(l.key))
	for n, i := range l.key {
		names[n] = l.columns[i].name
	}
	return strings.Join(names, ", ")
}

// noTable is the table id of an event that only says that a statement ends.
const noTable = 0x00ffffff

// tableMap notes what an id means from here on. The same table map comes with
// every statement, so it is read only when rows of another one come.
func (r *reader) tableMap(ev *event) error {
	body := ev.body()
	if len(body) < 8 {
		return fmt.Errorf("the table map at %s:%d is not whole", r.file, ev.LogPos)
	}
	id := tableID(body)
	if src := r.sources[id]; src != nil && bytes.Equal(src.tableMap[replication.EventHeaderSize:], body) {
		return nil
	}
	r.sources[id] = &source{tableMap: slices.Clone(ev.data)}
	return nil
}

func tableID(body []byte) uint64 {
	return uint64(binary.LittleEndian.Uint32(body)) | uint64(binary.LittleEndian.Uint16(body[4:]))<<32
}

// source gives the meaning of a table id: a nil layout for a table that is not
// captured.
func (r *reader) source(id uint64) (*source, error) {
	src := r.sources[id]
	if src == nil {
		return nil, fmt.Errorf("the log has rows of table id %d before it says which table that is", id)
	}
	if src.known {
		return src, nil
	}
	tm, err := r.readTableMap(src.tableMap)
	if err != nil {
		return nil, err
	}
	if name := (cdc.TableName{DB: string(tm.Schema), Table: string(tm.Table)}); r.Match(name) && !isSequence(tm) {
		l, err := layoutOf(tm, r.sets, r.Config.policy())
		var stop *Stop
		if errors.As(err, &stop) { // the rows are in the log for good, so mending the table is not enough
			return &source{}, r.refuse(stop.Remedy, "%s (or leave the table out with tables[].skip)", stop.Problem)
		}
		if err != nil {
			return nil, err
		}
		if err := l.mask(r.Config.policy()); err != nil {
			return nil, err
		}
		l.sign()
		if !r.copied(name) {
			return nil, r.appeared(name)
		}
		if err := r.sameKey(l); err != nil {
			return nil, err
		}
		src.layout, src.counters = l, r.Metrics.table(name)
	}
	src.known = true
	return src, nil
}

func (r *reader) readTableMap(data []byte) (*replication.TableMapEvent, error) {
	data = slices.Clone(data) // without the checksum that its size may count
	binary.LittleEndian.PutUint32(data[9:], uint32(len(data)))
	parsed, err := r.parse(data)
	if err != nil {
		return nil, err
	}
	tm := parsed.Event.(*replication.TableMapEvent)
	return tm, mendTableMap(tm, data)
}

// rowsEvent is the fixed part of an event of rows.
type rowsEvent struct {
	typ   replication.EnumRowsEventType
	table uint64
	// columns is how many columns the images have; full says that none is left out.
	columns int
	full    bool
	images  []byte // one behind the other
}

var errShortRows = errors.New("the event of rows is not whole")

func (e *rowsEvent) read(ev *event) error {
	body := ev.body()
	if len(body) < 8 {
		return errShortRows
	}
	e.table = tableID(body)
	body = body[8:] // with two bytes of flags
	e.typ = replication.EnumRowsEventTypeInsert
	switch ev.EventType {
	case replication.UPDATE_ROWS_EVENTv1, replication.UPDATE_ROWS_EVENTv2, replication.PARTIAL_UPDATE_ROWS_EVENT, replication.MARIADB_UPDATE_ROWS_COMPRESSED_EVENT_V1:
		e.typ = replication.EnumRowsEventTypeUpdate
	case replication.DELETE_ROWS_EVENTv1, replication.DELETE_ROWS_EVENTv2, replication.MARIADB_DELETE_ROWS_COMPRESSED_EVENT_V1:
		e.typ = replication.EnumRowsEventTypeDelete
	}
	switch ev.EventType {
	case replication.WRITE_ROWS_EVENTv2, replication.UPDATE_ROWS_EVENTv2, replication.DELETE_ROWS_EVENTv2, replication.PARTIAL_UPDATE_ROWS_EVENT:
		if len(body) < 2 {
			return errShortRows
		}
		extra := int(binary.LittleEndian.Uint16(body)) // counts itself
		if extra < 2 || len(body) < extra {
			return errShortRows
		}
		body = body[extra:]
	}
	columns, n, err := lengthEncoded(body)
	if err != nil {
		return err
	}
	body = body[n:]
	e.columns, e.full = int(columns), true
	bitmaps := 1
	if e.typ == replication.EnumRowsEventTypeUpdate {
		bitmaps = 2
	}
	for range bitmaps {
		length := (e.columns + 7) / 8
		if e.columns > 1<<16 || len(body) < length {
			return errShortRows
		}
		e.full = e.full && allSet(body, e.columns)
		body = body[length:]
	}
	e.images = body
	return nil
}

// lengthEncoded reads an integer of the protocol that is one to nine bytes long.
func lengthEncoded(b []byte) (value uint64, length int, err error) {
	if len(b) == 0 {
		return 0, 0, errShortRows
	}
	length = 1
	switch b[0] {
	case 0xfc:
		length = 3
	case 0xfd:
		length = 4
	case 0xfe:
		length = 9
	}
	if len(b) < length {
		return 0, 0, errShortRows
	}
	value, _, _ = gomysql.LengthEncodedInt(b)
	return value, length, nil
}

func allSet(bitmap []byte, n int) bool {
	for i := range n {
		if bitmap[i>>3]&(1<<(i&7)) == 0 {
			return false
		}
	}
	return true
}

// rows publishes the row changes of an event. Rows of tables that are not captured
// are never decoded. The clock goes on by the size of the event, and the n-th image
// has the clock before it, the turns of copies, and n: an event has more bytes than
// that, because an image takes one at least and what stands before them thirty, so no
// two images of the log have the same, nor one the version of a row that is read behind
// the event.
func (r *reader) rows(ev *event) error {
	clock := r.clock
	r.clock += uint64(len(ev.data))
	var e rowsEvent
	if err := e.read(ev); err != nil {
		return r.damaged(ev, err)
	}
	if isCompressedRows(ev.EventType) { // it may have more images than bytes
		size, err := inflatedSize(e.images)
		if err != nil {
			return r.damaged(ev, err)
		}
		r.clock += size
	}
	if e.table == noTable {
		return nil
	}
	src, err := r.source(e.table)
	if err != nil || src.layout == nil {
		return err
	}
	l := src.layout
	switch {
	case ev.EventType == replication.PARTIAL_UPDATE_ROWS_EVENT:
		return r.refuse("SET PERSIST binlog_row_value_options = '' where it is not, and see which session sets another", "transaction %s has partial JSON updates of %s in the log", r.txn.gtid, l.table)
	case !e.full:
		return r.refuse(persist(r.pos.Flavor, "binlog_row_image", "FULL")+" where it is not, and see which session sets another", "transaction %s has incomplete rows of %s in the log", r.txn.gtid, l.table)
	case r.txn.xa:
		return r.refuse("", "transaction %s changes %s in an XA transaction, whose rows are logged before it is decided", r.txn.gtid, l.table)
	case e.columns != len(l.columns):
		return r.damaged(ev, fmt.Errorf("its rows have %d columns, and its table map %d", e.columns, len(l.columns)))
	}
	if isCompressedRows(ev.EventType) {
		if e.images, err = inflateEvent(e.images); err != nil {
			return r.damaged(ev, err)
		}
	}
	clock += cdc.Turns - 1
	r.change = cdc.Change{Table: l.table, GTID: r.txn.gtid, CommitMicros: r.txn.commit, Layout: l.print,
		Origin: cdc.Origin{ServerID: ev.ServerID, File: r.file, Pos: ev.LogPos}}
	r.age = -1
	if r.txn.commit > 0 {
		r.age = max(0, r.Clock.At(time.Now()).Sub(time.UnixMicro(r.txn.commit)).Seconds())
	}
	data := e.images
	e.images, ev.data = nil, nil // a large one is not to stay while its rows are published
	for len(data) > 0 {
		n, images, err := r.read(l, e.typ, data)
		if err != nil {
			return stopf("", "transaction %s: %v", r.txn.gtid, err)
		}
		data = data[n:]
		if len(data) == 0 {
			data = nil
		}
		if n > hugeRow {
			runtime.GC()
		}
		if err := r.row(src, e.typ, clock); err != nil {
			return err
		}
		clock += images
		r.txn.rows += int(images)
		r.change.Origin.Row++
	}
	r.change = cdc.Change{}
	r.before.release()
	r.after.release()
	return nil
}

// hugeRow is how many bytes of the log make a row for which what was needed before
// it is collected at once, because the next step needs as much again.
const hugeRow = 8 << 20

func (r *reader) damaged(ev *event, err error) error {
	return stopf("", "the event of type %s at %s:%d in transaction %s cannot be read: %v", ev.EventType, r.file, ev.LogPos, r.txn.gtid, err)
}

// read reads the row change that data begins with. It returns how many bytes and row
// images that took.
func (r *reader) read(l *layout, typ replication.EnumRowsEventType, data []byte) (n int, images uint64, err error) {
	switch typ {
	case replication.EnumRowsEventTypeInsert:
		n, err = r.after.read(l, data, 1, false)
		return n, 1, err
	case replication.EnumRowsEventTypeDelete:
		n, err = r.before.read(l, data, 1, len(data) > trimAbove)
		return n, 1, err
	}
	if n, err = r.before.read(l, data, 2, len(data) > trimAbove); err != nil {
		return 0, 0, err
	}
	m, err := r.after.read(l, data[n:], 1, false)
	return n + m, 2, err
}

// row publishes the row change that was read.
func (r *reader) row(src *source, typ replication.EnumRowsEventType, clock uint64) error {
	l := src.layout
	switch typ {
	case replication.EnumRowsEventTypeInsert:
		r.key = l.appendKeyOf(r.key[:0], r.after.json, r.after.spans)
		return r.publish(src, cdc.OpCreate, r.key, nil, r.after.json, clock+1)
	case replication.EnumRowsEventTypeDelete:
		r.key = l.appendKeyOf(r.key[:0], r.before.json, r.before.spans)
		return r.publish(src, cdc.OpDelete, r.key, r.before.json, nil, clock+1)
	}
	r.oldKey = l.appendKeyOf(r.oldKey[:0], r.before.json, r.before.spans)
	r.key = l.appendKeyOf(r.key[:0], r.after.json, r.after.spans)
	if bytes.Equal(r.oldKey, r.key) {
		return r.publish(src, cdc.OpUpdate, r.key, r.before.json, r.after.json, clock+2)
	}
	// An update of the primary key: to the stores, one row goes and one comes.
	if err := r.publish(src, cdc.OpDelete, r.oldKey, r.before.json, nil, clock+1); err != nil {
		return err
	}
	return r.publish(src, cdc.OpCreate, r.key, nil, r.after.json, clock+2)
}

// image is a row as JSON. Its buffer is reused from row to row.
type image struct {
	json  []byte
	spans []span
}

// trimAbove is how many bytes of the log a row change has at most whose row before goes
// with all its columns. Of a larger one only the small values are worth their memory
// and their place in a record (see cdc.SmallValue).
const trimAbove = 16 << 20

// read reads the image that data begins with. Of is how many images share a large
// event; trim leaves the large values out.
func (i *image) read(l *layout, data []byte, of int, trim bool) (n int, err error) {
	if len(i.spans) != len(l.columns) {
		i.spans = make([]span, len(l.columns))
	}
	if room := len(data) / of; room > largeBuffer && !trim { // growing as it is written would take twice the memory
		room += room / 16
		if slices.ContainsFunc(l.columns, func(c column) bool { return c.form == formBytes }) {
			room += room / 3 // base64
		}
		i.json = slices.Grow(i.json[:0], room)
	}
	i.json, n, err = l.appendImage(i.json[:0], data, i.spans, trim)
	return n, err
}

// release lets go of a buffer that one large row made.
func (i *image) release() {
	if cap(i.json) > largeBuffer {
		i.json = nil
	}
}

func (r *reader) publish(src *source, op cdc.Op, key, before, after []byte, clock uint64) (err error) {
	c := &r.change
	if c.Version, err = cdc.NewVersion(r.pos.Epoch, clock); err != nil {
		return err
	}
	c.Op, c.Key, c.Before, c.After = op, key, before, after
	if r.Tracing != (Tracing{}) {
		c.Trace = r.traced().Of(c.Version)
	}
	src.counters.inc(op)
	if r.age >= 0 {
		src.counters.readAge.Observe(r.age)
	}
	r.snaps.touched(c.Table, c.Key)
	if r.wasPublished(c) {
		return nil
	}
	if err = r.Out.Publish(r.ctx, c); errors.Is(err, cdc.ErrTooLarge) {
		return r.passOver("a higher kafka.max_record_bytes; or, where this row may stay as it is in the sinks, ", "transaction %s: %v", r.txn.gtid, err)
	}
	return err
}
