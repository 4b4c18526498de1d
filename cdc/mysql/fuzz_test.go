package mysql

import (
	"bytes"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/go-mysql-org/go-mysql/client"
	"github.com/go-mysql-org/go-mysql/replication"

	"lockstep/cdc"
)

// These take the bytes of a server or of an operator. Each must end with an error, not a
// panic, and make nothing that is much larger than what it was given.

// What a server sends is cut into events whose sizes are theirs, or refused.
func FuzzAStreamOfAnyBytes(f *testing.F) {
	rows := appendEvent(nil, replication.WRITE_ROWS_EVENTv2, bytes.Repeat([]byte{7}, 60), true)
	f.Add(sent(rows, appendEvent(nil, replication.XID_EVENT, make([]byte, 8), true)))
	f.Add(sent(appendEvent(nil, replication.TRANSACTION_PAYLOAD_EVENT, payload(payloadZstd, rows), true)))
	f.Add([]byte("\x10\x00\x00\x01\xff\xd4\x04#HY000no such log"))
	f.Fuzz(func(t *testing.T, data []byte) {
		log := logOf()
		log.br.Reset(bytes.NewReader(data))
		log.whole, log.conn = 100, new(client.Conn)
		for read := 0; ; {
			var ev event
			if log.next(&ev) != nil {
				return
			}
			if ev.rest != nil {
				n, err := io.Copy(io.Discard, ev.rest)
				if err != nil {
					return
				}
				read += int(n)
			}
			if read += len(ev.data); read > len(data) {
				t.Fatalf("%d bytes are events of %d", len(data), read)
			}
		}
	})
}

// A compressed transaction is unpacked into events or refused.
func FuzzAPayloadOfAnyBytes(f *testing.F) {
	xid := appendEvent(nil, replication.XID_EVENT, make([]byte, 8), false)
	for _, compression := range []uint64{payloadZstd, payloadNone} {
		f.Add(payload(compression, xid, appendEvent(nil, replication.ROWS_QUERY_EVENT, make([]byte, 300), false)))
	}
	f.Add(payload(payloadNone, []byte("\x00\x00\x00\x00\x10\x01\x00\x00\x00\xff\xff\xff\x7f\x00\x00\x00\x00\x00\x00"))) // says two gigabytes
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := newPayloadReader()
		if err != nil {
			t.Fatal(err)
		}
		defer p.zstd.Close()
		if p.open(bytes.NewReader(body)) != nil {
			return
		}
		for range 1000 {
			var ev event
			if p.next(&ev) != nil {
				return
			}
			if len(ev.data) != int(ev.EventSize) {
				t.Fatalf("an event of %d bytes has %d", ev.EventSize, len(ev.data))
			}
		}
	})
}

// An event that says it is larger than it is asks for no memory for that.
func TestWhatAnEventSaysOfItsSizeIsNotBelievedAtOnce(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := readWhole(bytes.NewReader(make([]byte, 100)), 2<<30); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
		t.Errorf("100 bytes asked for %d", got)
	}
	whole := bytes.Repeat([]byte("0123456789"), 300_000)
	if got, err := readWhole(bytes.NewReader(append(whole, 7)), len(whole)); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("%d bytes came back as %d, %v", len(whole), len(got), err)
	}
}

// mapOfTwo is the table map of (id INT PRIMARY KEY, name VARCHAR(20), state ENUM('a','b')) as
// a server with binlog_row_metadata=FULL sends it.
var mapOfTwo = []byte("\x6c\x00\x00\x00\x00\x00\x01\x00\x01d\x00\x01t\x00\x03\x03\x0f\xfe\x04\x50\x00\xf7\x01\x06" +
	"\x01\x01\x00\x02\x01\xff\x04\x0e\x02id\x04name\x05state\x06\x05\x02\x01a\x01b\x08\x01\x00\x0b\x01\xff")

// withFormat is a reader that knows how the events of a file look.
func withFormat(t testing.TB) *reader {
	t.Helper()
	body := append([]byte("\x04\x009.7.4"), make([]byte, 45+4)...)
	body = append(body, replication.EventHeaderSize)
	lengths := bytes.Repeat([]byte{8}, 42) // of what is fixed in each type of event
	r := newReader(t.Context(), &Source{}, nil)
	ev := event{data: appendEvent(nil, replication.FORMAT_DESCRIPTION_EVENT, append(append(body, lengths...), 1, 0, 0, 0, 0), false)}
	if err := r.format(&ev); err != nil {
		t.Fatal(err)
	}
	return r
}

var fuzzSets = collations{255: "utf8mb4", 63: "binary", 8: "latin1", 28: "gbk"}

// A table map of any bytes is a table, whose rows then are any bytes, or refused.
func FuzzATableMapOfAnyBytes(f *testing.F) {
	row := []byte("\x6c\x00\x00\x00\x00\x00\x01\x00\x02\x00\x03\x07\x00\x07\x00\x00\x00\x02xy\x02")
	f.Add(mapOfTwo, row, byte(replication.WRITE_ROWS_EVENTv2))
	f.Add(mapOfTwo, append(slices.Clone(row[:11]), "\x07\x07\x00\x07\x00\x00\x00\x02xy\x02\x00\x08\x00\x00\x00\x01z\x01"...), byte(replication.UPDATE_ROWS_EVENTv2))
	f.Fuzz(func(t *testing.T, tableMap, rows []byte, typ byte) {
		r := withFormat(t)
		if len(tableMap) < 8 { // tableMap refuses it
			return
		}
		tm, err := r.readTableMap(appendEvent(nil, replication.TABLE_MAP_EVENT, tableMap, false))
		if err != nil {
			return
		}
		l, err := layoutOf(tm, fuzzSets, DefaultConfig().policy())
		if err != nil {
			return
		}
		l.sign()
		ev := event{data: appendEvent(nil, replication.EventType(typ), rows, false)}
		if err := ev.decodeHeader(ev.data); err != nil {
			t.Fatal(err)
		}
		var e rowsEvent
		if e.read(&ev) != nil || e.columns != len(l.columns) || !e.full {
			return
		}
		spans := make([]span, len(l.columns))
		for data := e.images; len(data) > 0; {
			row, n, err := l.appendImage(nil, data, spans, false)
			if err != nil {
				return
			}
			if !cdc.Valid(row) || !cdc.Valid(l.appendKeyOf(nil, row, spans)) || n < 1 || n > len(data) {
				t.Fatalf("%d bytes of %d became %s", n, len(data), row)
			}
			data = data[n:]
		}
	})
}

// The seeds of a table map are one.
func TestTheTableMapThatFuzzingBeginsWithIsOne(t *testing.T) {
	tm, err := withFormat(t).readTableMap(appendEvent(nil, replication.TABLE_MAP_EVENT, mapOfTwo, false))
	if err != nil {
		t.Fatal(err)
	}
	l, err := layoutOf(tm, fuzzSets, DefaultConfig().policy())
	if err != nil {
		t.Fatal(err)
	}
	row, n, err := l.appendImage(nil, []byte("\x00\x07\x00\x00\x00\x02xy\x02"), make([]span, 3), false)
	if want := `{"id":7,"name":"xy","state":"b"}`; err != nil || n != 9 || string(row) != want {
		t.Errorf("got %s, %d bytes, %v; want %s", row, n, err, want)
	}
}

// What is compressed by MariaDB is inflated to what it says, or refused.
func FuzzACompressedEventOfAnyBytes(f *testing.F) {
	f.Add([]byte("\x81\x05x\x9c\xcbH\xcd\xc9\xc9\x07\x00\x06\x2c\x02\x15")) // hello
	f.Add([]byte("\x84\x7f\xff\xff\xffx\x9c\xcbH\xcd\xc9\xc9\x07\x00\x06\x2c\x02\x15"))
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := inflateEvent(data)
		if size, _ := inflatedSize(data); err == nil && uint64(len(out)) != size {
			t.Fatalf("%d bytes are said and %d there", size, len(out))
		}
		if size, err := inflatedSize(data); err == nil && size > zlibMost*uint64(len(data)) {
			t.Fatalf("%d bytes are said to hold %d", len(data), size)
		}
		_, _ = inflateColumn(data)
	})
}

// The events that the library reads are read or refused.
func FuzzAnEventOfTheLibrary(f *testing.F) {
	f.Add(byte(replication.GTID_EVENT), append([]byte{1}, make([]byte, 60)...))
	f.Add(byte(replication.GTID_TAGGED_LOG_EVENT), []byte("\x02\x76\x00\x00\x02\x02\x25\x02\xdc\xf0\x09\x02\x30\xf9\x03\x22"))
	f.Add(byte(replication.MARIADB_GTID_EVENT), make([]byte, 13))
	f.Add(byte(replication.FORMAT_DESCRIPTION_EVENT), []byte("\x04\x009.7.4"))
	f.Add(byte(replication.ROTATE_EVENT), []byte("\x04\x00\x00\x00\x00\x00\x00\x00binlog.000002"))
	f.Fuzz(func(t *testing.T, typ byte, body []byte) {
		ev := event{data: appendEvent(nil, replication.EventType(typ), body, false)}
		for _, into := range []replication.Event{&replication.GTIDEvent{}, &replication.GtidTaggedLogEvent{}, &replication.MariadbGTIDEvent{}, &replication.RotateEvent{}} {
			_ = decode(into, &ev)
		}
		if n, length, err := lengthEncoded(body); err == nil && (length > len(body) || n > 0 && length == 0) {
			t.Fatalf("%d of %d bytes", length, len(body))
		}
		_, _ = checksumOf(ev.data)
		if typ == byte(replication.FORMAT_DESCRIPTION_EVENT) { // as in a compressed transaction
			r := newReader(t.Context(), &Source{}, nil)
			_ = r.format(&ev)
			_, _ = r.readTableMap(appendEvent(nil, replication.TABLE_MAP_EVENT, mapOfTwo, false))
		}
	})
}

// A set of transactions comes back from its text, and every part of it is in it.
func FuzzASetOfTransactions(f *testing.F) {
	f.Add("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7:tag:1-3,\n3e11fa47-71ca-11e1-9e33-c80aa9429563:9", false)
	f.Add("0-1-100,7-1-9,0-2-110", true)
	f.Fuzz(func(t *testing.T, text string, maria bool) {
		flavor := flavorMySQL
		if maria {
			flavor = flavorMariaDB
		}
		set, err := parseGTIDs(flavor, text)
		if err != nil || strings.Contains(set.String(), " to ") {
			return
		}
		again, err := parseGTIDs(flavor, set.String())
		if err != nil {
			t.Fatalf("%q is %s, and that is refused: %v", text, set, err)
		}
		if again.String() != set.String() || !again.contains(set) || !set.contains(again) || !set.minus(again).empty() {
			t.Fatalf("%q is %s, and that %s", text, set, again)
		}
		union := set.union(again)
		if !union.contains(set) || !set.contains(union) || set.union(again).String() != union.String() {
			t.Fatalf("%s joined with itself is %s, and once more %s", set, union, set.union(again))
		}
		_ = IsGTID(text)
	})
}
