package mysql

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
)

// mariaSession is what a MariaDB wants to know before it sends its log. It knows a
// replica that can do GTIDs by a capability, and its place by the newest transaction
// of each domain. Strict says that this transaction must be in the log.
func mariaSession(read gtidSet) []string {
	return []string{
		"SET @mariadb_slave_capability = 4",
		"SET @slave_connect_state = '" + read.request().String() + "'",
		"SET @slave_gtid_strict_mode = 1",
	}
}

// dumpMaria asks for the log behind @slave_connect_state.
func dumpMaria(conn *client.Conn, serverID uint32) error {
	le := binary.LittleEndian
	msg := append(make([]byte, 4, 16), gomysql.COM_BINLOG_DUMP)
	msg = le.AppendUint32(msg, 4) // no file name, so this is not looked at
	msg = le.AppendUint16(msg, 0) // flags: no texts of statements
	msg = le.AppendUint32(msg, serverID)
	conn.ResetSequence()
	return conn.WritePacket(msg)
}

// flagPreparedXA marks the first half of a two-phase transaction.
const flagPreparedXA = 64

// beginMaria begins a transaction of a MariaDB. There is no BEGIN: one that is not
// standalone goes on to its XID or COMMIT, and a standalone one is a single statement.
// Its commit time is known to the second.
func (r *reader) beginMaria(ev *event) error {
	var g replication.MariadbGTIDEvent
	if err := decode(&g, ev); err != nil {
		return err
	}
	if r.txn.gno != 0 {
		return stopf("", "the log begins a transaction before the end of %s", r.txn.gtid)
	}
	if g.GTID.SequenceNumber == 0 {
		return stopf("", "the log has a transaction without a GTID at %s:%d", r.file, ev.LogPos)
	}
	r.txn = transaction{domain: g.GTID.DomainID, server: ev.ServerID, gno: int64(g.GTID.SequenceNumber),
		commit: int64(ev.Timestamp) * 1e6, open: !g.IsStandalone(), xa: g.Flags&flagPreparedXA != 0}
	r.txn.gtid = fmt.Sprintf("%d-%d-%d", r.txn.domain, r.txn.server, r.txn.gno)
	return nil
}

func isCompressedRows(t replication.EventType) bool {
	return t == replication.MARIADB_WRITE_ROWS_COMPRESSED_EVENT_V1 || t == replication.MARIADB_UPDATE_ROWS_COMPRESSED_EVENT_V1 || t == replication.MARIADB_DELETE_ROWS_COMPRESSED_EVENT_V1
}

var errCompressed = errors.New("what is compressed in it is not whole")

// zlibMost is how many bytes zlib makes of one at most.
const zlibMost = 1032

// inflatedSize is the length of what is compressed in data: a byte with the method
// and the length of the length, and the length with its high byte first.
func inflatedSize(data []byte) (uint64, error) {
	if len(data) == 0 || data[0]&0xf0 != 0x80 { // 0x80 is zlib
		return 0, errCompressed
	}
	n := int(data[0] & 7)
	if n < 1 || n > 4 || len(data) < 1+n {
		return 0, errCompressed
	}
	var size uint64
	for _, b := range data[1 : 1+n] {
		size = size<<8 | uint64(b)
	}
	if size > zlibMost*uint64(len(data)) { // so much cannot be in it
		return 0, errCompressed
	}
	return size, nil
}

// inflateEvent unpacks what log_bin_compress has packed.
func inflateEvent(data []byte) ([]byte, error) {
	size, err := inflatedSize(data)
	if err != nil {
		return nil, err
	}
	out, err := gomysql.DecompressMariadbData(data)
	if err != nil {
		return nil, err
	}
	if uint64(len(out)) != size {
		return nil, errCompressed
	}
	return out, nil
}
