package mysql

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/google/uuid"
)

// heartbeat is how often an idle server says that it is there.
const heartbeat = time.Second

// stream reads the log from the end of the last transaction on.
func (s *Source) stream(ctx context.Context, sets collations) error {
	conn, err := connect(ctx, s.Config)
	if err != nil {
		return lost(err)
	}
	defer until(ctx, conn)()
	conn.ReadTimeout = s.Config.ReadTimeout
	// The checks were made on another connection, and behind a virtual address
	// another server may answer this one.
	if err := sameServer(conn, s.pos.ServerUUID); err != nil {
		return lost(err)
	}
	checksums, err := s.askForLog(conn, s.gtids)
	if err != nil {
		return lost(fmt.Errorf("ask %s for its log: %w", s.Config.Addr, err))
	}
	r := newReader(ctx, s, sets)
	log := newEventLog(conn, s.Config.ReadTimeout, checksums)
	if out, ok := s.Out.(roomy); ok {
		log.room = func() error { return out.Room(ctx) }
	}
	s.setReading(true)
	s.Metrics.connected.Set(1)
	s.Metrics.clock.Set(float64(s.pos.Seq))
	s.Metrics.epoch.Set(float64(s.pos.Epoch))
	s.Log.Info("reading the log", "addr", s.Config.Addr, "epoch", s.pos.Epoch, "log_clock", s.pos.Seq, "tables", len(s.pos.Copied))
	for {
		var ev event
		err := log.next(&ev)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return lost(fmt.Errorf("read the log of %s: %w", s.Config.Addr, err))
		}
		if err := r.take(&ev); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

func sameServer(conn *client.Conn, want string) error {
	id, err := identify(conn)
	if err == nil && id != want {
		err = fmt.Errorf("server %s answers now, not %s", id, want)
	}
	return err
}

// askForLog makes conn a replica's, which from then on carries nothing but the
// log behind what was read. It reports whether the first event, which comes before
// the one that says so, has a checksum.
func (s *Source) askForLog(conn *client.Conn, read gtidSet) (checksums bool, err error) {
	algorithm, err := queryOne(conn, "SELECT @@GLOBAL.binlog_checksum")
	if err != nil {
		return false, err
	}
	id := uuid.NewString()
	settings := []string{
		fmt.Sprintf("SET @master_binlog_checksum = '%s', @source_binlog_checksum = '%[1]s'", algorithm),
		fmt.Sprintf("SET @master_heartbeat_period = %d, @source_heartbeat_period = %[1]d", heartbeat.Nanoseconds()),
		fmt.Sprintf("SET @slave_uuid = '%s', @replica_uuid = '%[1]s'", id),
	}
	maria := flavorOf(conn) == flavorMariaDB
	if maria {
		settings = append(settings, mariaSession(read)...)
	}
	for _, set := range settings {
		if _, err := conn.Execute(set); err != nil {
			return false, fmt.Errorf("%s: %w", set, err)
		}
	}
	if err := registerReplica(conn, s.Config); err != nil {
		return false, err
	}
	if maria {
		return algorithm != "NONE", dumpMaria(conn, s.Config.ServerID)
	}
	return algorithm != "NONE", dump(conn, s.Config.ServerID, read.request().Encode())
}

// registerReplica makes the reader show up in SHOW REPLICAS.
func registerReplica(conn *client.Conn, cfg Config) error {
	host, _ := os.Hostname()
	host, user := truncate(host, 60), truncate(cfg.User, 60)
	_, port, err := splitAddr(cfg.Addr)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	msg := append(make([]byte, 4, 128), gomysql.COM_REGISTER_SLAVE)
	msg = le.AppendUint32(msg, cfg.ServerID)
	msg = append(append(msg, byte(len(host))), host...)
	msg = append(append(msg, byte(len(user))), user...)
	msg = append(msg, 0) // no password
	msg = le.AppendUint16(msg, port)
	msg = le.AppendUint64(msg, 0) // rank and source id, which nobody reads
	conn.ResetSequence()
	if err := conn.WritePacket(msg); err != nil {
		return err
	}
	_, err = conn.ReadOKPacket()
	return err
}

func dump(conn *client.Conn, serverID uint32, gtids []byte) error {
	le := binary.LittleEndian
	msg := append(make([]byte, 4, 64+len(gtids)), gomysql.COM_BINLOG_DUMP_GTID)
	msg = le.AppendUint16(msg, 0) // flags
	msg = le.AppendUint32(msg, serverID)
	msg = le.AppendUint32(msg, 0) // no file name
	msg = le.AppendUint64(msg, 4)
	msg = le.AppendUint32(msg, uint32(len(gtids)))
	conn.ResetSequence()
	return conn.WritePacket(append(msg, gtids...))
}

// event is an event of the log.
type event struct {
	replication.EventHeader
	// data is the header and the body, without the checksum. It is good until the
	// next event is read.
	data []byte
	// rest is the body of a transaction payload that is too large to be held; data
	// is its header then. It must be read to its end, which fails when the checksum
	// is wrong.
	rest io.Reader
}

func (e *event) body() []byte { return e.data[replication.EventHeaderSize:] }

func (e *event) decodeHeader(h []byte) error {
	le := binary.LittleEndian
	e.Timestamp = le.Uint32(h)
	e.EventType = replication.EventType(h[4])
	e.ServerID = le.Uint32(h[5:])
	e.EventSize = le.Uint32(h[9:])
	e.LogPos = le.Uint32(h[13:])
	e.Flags = le.Uint16(h[17:])
	if e.EventSize < replication.EventHeaderSize {
		return fmt.Errorf("an event of %d bytes is shorter than its header", e.EventSize)
	}
	return nil
}

const (
	readBuffer = 128 << 10
	// wholeEvent is the largest transaction payload that is held, so that its
	// checksum is known before anything of it is published.
	wholeEvent = 16 << 20
	// largeBuffer is how large a buffer may grow and be kept for the next row.
	largeBuffer = 1 << 20
)

// eventLog cuts the answer to a dump command into events. Most are handed out
// where they lie in the buffer.
type eventLog struct {
	conn     *client.Conn
	br       *bufio.Reader
	sequence uint8
	left     int  // bytes of the packet under way
	last     bool // no other packet belongs to the event
	checksum int  // length of the checksum of an event
	whole    int  // the largest transaction payload that is held
	// room waits, before a large event is read, until there is room for it; nil does not.
	room func() error
}

func newEventLog(conn *client.Conn, timeout time.Duration, checksums bool) *eventLog {
	l := &eventLog{conn: conn, br: bufio.NewReaderSize(&patientConn{Conn: conn.Conn.Conn, timeout: timeout}, readBuffer), sequence: conn.Sequence, whole: wholeEvent}
	if checksums {
		l.checksum = replication.BinlogChecksumLength
	}
	return l
}

// patientConn fails a read for which nothing comes for three quarters of the
// timeout or more, and for the timeout at most. It does not ask for a new deadline
// at every read, because that costs as much as a small read.
type patientConn struct {
	net.Conn
	timeout  time.Duration
	deadline time.Time
}

func (c *patientConn) Read(p []byte) (int, error) {
	if now := time.Now(); c.deadline.Sub(now) < c.timeout*3/4 {
		c.deadline = now.Add(c.timeout)
		if err := c.Conn.SetReadDeadline(c.deadline); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

// packet begins the next packet.
func (l *eventLog) packet() error {
	h, err := l.br.Peek(4)
	if err != nil {
		return err
	}
	l.left = int(h[0]) | int(h[1])<<8 | int(h[2])<<16
	l.last = l.left < gomysql.MaxPayloadLen
	if h[3] != l.sequence {
		return fmt.Errorf("packet %d came where %d was due", h[3], l.sequence)
	}
	l.sequence++
	_, err = l.br.Discard(4)
	return err
}

// Read reads on in the event under way, across packets.
func (l *eventLog) Read(p []byte) (int, error) {
	for l.left == 0 {
		if l.last {
			return 0, io.EOF
		}
		if err := l.packet(); err != nil {
			return 0, unexpected(err)
		}
	}
	n, err := l.br.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, unexpected(err)
}

// finish reads the packet without bytes that ends an event which fills its packets.
func (l *eventLog) finish() error {
	for l.left == 0 && !l.last {
		if err := l.packet(); err != nil {
			return unexpected(err)
		}
	}
	if l.left > 0 {
		return errors.New("a packet has more than its event")
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next reads the next event.
func (l *eventLog) next(ev *event) error {
	if err := l.packet(); err != nil {
		return err
	}
	status, err := l.br.Peek(1)
	if err != nil {
		return unexpected(err)
	}
	if status[0] != gomysql.OK_HEADER {
		return l.ended()
	}
	h, err := l.br.Peek(1 + replication.EventHeaderSize)
	if err != nil {
		return unexpected(err)
	}
	if err := ev.decodeHeader(h[1:]); err != nil {
		return err
	}
	size := int(ev.EventSize)
	if l.last && l.left != 1+size || l.left < 1+replication.EventHeaderSize {
		return fmt.Errorf("a packet of %d bytes has an event of %d", l.left, size)
	}
	_, _ = l.br.Discard(1)
	l.left--
	switch {
	case l.last && size <= readBuffer:
		if ev.data, err = l.br.Peek(size); err != nil {
			return unexpected(err)
		}
		_, _ = l.br.Discard(size) // what was seen stays where it is until the next read
		l.left = 0
	case ev.EventType == replication.TRANSACTION_PAYLOAD_EVENT && size > l.whole:
		return l.stream(ev)
	default:
		if size > trimAbove { // what was read before it is not to stay beside it
			if l.room != nil {
				if err := l.room(); err != nil {
					return err
				}
			}
			debug.FreeOSMemory()
		}
		if ev.data, err = readWhole(l, size); err != nil { // not kept for the next one: most events are small
			return err
		}
		if err := l.finish(); err != nil {
			return err
		}
	}
	return l.check(ev)
}

// readWhole reads so many bytes into a slice of their own. What an event says of its size
// is believed when the first of it is there.
func readWhole(from io.Reader, size int) ([]byte, error) {
	data := make([]byte, min(size, 1<<20))
	n, err := io.ReadFull(from, data)
	if err == nil && size > n {
		data = append(make([]byte, 0, size), data...)[:size]
		_, err = io.ReadFull(from, data[n:])
	}
	return data, unexpected(err)
}

// check takes the checksum off.
func (l *eventLog) check(ev *event) error {
	if ev.EventType == replication.FORMAT_DESCRIPTION_EVENT {
		l.checksum = 0
		if algorithm, err := checksumOf(ev.data); err != nil {
			return err
		} else if algorithm == replication.BINLOG_CHECKSUM_ALG_CRC32 {
			l.checksum = replication.BinlogChecksumLength
		}
	}
	if l.checksum == 0 {
		return nil
	}
	n := len(ev.data) - l.checksum
	if n < replication.EventHeaderSize || crc32.ChecksumIEEE(ev.data[:n]) != binary.LittleEndian.Uint32(ev.data[n:]) {
		return wrongChecksum(ev)
	}
	if ev.EventType != replication.FORMAT_DESCRIPTION_EVENT { // which has the room for it anyway
		ev.data = ev.data[:n]
	}
	return nil
}

func wrongChecksum(ev *event) error {
	return fmt.Errorf("the checksum of the event of type %s at %d is wrong", ev.EventType, ev.LogPos)
}

// checksumOf reads the algorithm of the events' checksums from a format
// description event. It stands before the room for that event's own checksum.
func checksumOf(data []byte) (replication.BinlogChecksum, error) {
	const room = 1 + replication.BinlogChecksumLength
	if len(data) < replication.EventHeaderSize+57+room {
		return 0, errors.New("the format description event is too short")
	}
	algorithm := replication.BinlogChecksum(data[len(data)-room])
	if algorithm > replication.BINLOG_CHECKSUM_ALG_CRC32 {
		return 0, stopf("", "the log has checksums of kind %d, which this version does not know", algorithm)
	}
	return algorithm, nil
}

// stream hands out the body as it comes.
func (l *eventLog) stream(ev *event) error {
	ev.data = make([]byte, replication.EventHeaderSize)
	if _, err := io.ReadFull(l, ev.data); err != nil {
		return unexpected(err)
	}
	ev.rest = &checkedBody{ev: ev, log: l, left: int(ev.EventSize) - len(ev.data) - l.checksum, sum: crc32.ChecksumIEEE(ev.data)}
	return nil
}

// checkedBody is the body of an event. At its end it compares the checksum.
type checkedBody struct {
	ev   *event
	log  *eventLog
	left int
	sum  uint32
	err  error // of the end, once it was reached
}

func (b *checkedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		if b.err == nil {
			b.err = b.end()
		}
		return 0, b.err
	}
	n, err := b.log.Read(p[:min(len(p), b.left)])
	b.left -= n
	b.sum = crc32.Update(b.sum, crc32.IEEETable, p[:n])
	return n, unexpected(err)
}

func (b *checkedBody) end() error {
	var sum [replication.BinlogChecksumLength]byte
	if _, err := io.ReadFull(b.log, sum[:b.log.checksum]); err != nil {
		return unexpected(err)
	}
	if b.log.checksum > 0 && binary.LittleEndian.Uint32(sum[:]) != b.sum {
		return wrongChecksum(b.ev)
	}
	if err := b.log.finish(); err != nil {
		return err
	}
	return io.EOF
}

// ended reads what the server says instead of an event.
func (l *eventLog) ended() error {
	msg, err := io.ReadAll(l)
	if err != nil {
		return unexpected(err)
	}
	if len(msg) > 0 && msg[0] == gomysql.ERR_HEADER {
		return l.conn.HandleErrorPacket(slices.Clone(msg))
	}
	return errors.New("the server has ended its log")
}
