package mysql

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/internal/testenv"
)

// appendEvent appends an event as the log has it.
func appendEvent(dst []byte, typ replication.EventType, body []byte, checksum bool) []byte {
	size := replication.EventHeaderSize + len(body)
	if checksum {
		size += replication.BinlogChecksumLength
	}
	start := len(dst)
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, 0)
	dst = append(dst, byte(typ))
	dst = le.AppendUint32(dst, 1)
	dst = le.AppendUint32(dst, uint32(size))
	dst = le.AppendUint32(dst, 4+uint32(size))
	dst = le.AppendUint16(dst, 0)
	dst = append(dst, body...)
	if checksum {
		dst = le.AppendUint32(dst, crc32.ChecksumIEEE(dst[start:]))
	}
	return dst
}

// sent is what a server sends for events: each in as many packets as it takes.
func sent(events ...[]byte) []byte {
	var out []byte
	sequence := byte(1)
	for _, e := range events {
		for payload := append([]byte{gomysql.OK_HEADER}, e...); ; {
			n := min(len(payload), gomysql.MaxPayloadLen)
			out = append(out, byte(n), byte(n>>8), byte(n>>16), sequence)
			sequence++
			out = append(out, payload[:n]...)
			payload = payload[n:]
			if n < gomysql.MaxPayloadLen {
				break
			}
		}
	}
	return out
}

func logOf(events ...[]byte) *eventLog {
	return &eventLog{br: bufio.NewReaderSize(bytes.NewReader(sent(events...)), readBuffer), sequence: 1, checksum: replication.BinlogChecksumLength, whole: wholeEvent}
}

func TestEventsComeOutOfPacketsAsTheyWere(t *testing.T) {
	const around = gomysql.MaxPayloadLen - 1 - replication.EventHeaderSize - replication.BinlogChecksumLength // fills a packet
	noise := make([]byte, 2*gomysql.MaxPayloadLen)
	for i := 0; i+8 <= len(noise); i += 8 {
		binary.LittleEndian.PutUint64(noise[i:], rand.Uint64())
	}
	var events, bodies [][]byte
	for _, n := range []int{0, 1, 100, readBuffer - 23, readBuffer - 22, readBuffer, around - 1, around, around + 1, around + gomysql.MaxPayloadLen, 5} {
		bodies = append(bodies, noise[:n])
		events = append(events, appendEvent(nil, replication.ROWS_QUERY_EVENT, noise[:n], true))
	}
	log := logOf(events...)
	for i, body := range bodies {
		var ev event
		if err := log.next(&ev); err != nil {
			t.Fatalf("event %d, with %d bytes: %v", i, len(body), err)
		}
		if !bytes.Equal(ev.body(), body) {
			t.Fatalf("event %d has %d bytes; want %d, and the same", i, len(ev.body()), len(body))
		}
	}
	if err := log.next(&event{}); err != io.EOF {
		t.Errorf("behind the last event: %v", err)
	}
}

func TestADamagedEventIsRefused(t *testing.T) {
	for _, n := range []int{10, 1 << 20} {
		e := appendEvent(nil, replication.ROWS_QUERY_EVENT, make([]byte, n), true)
		e[n/2+replication.EventHeaderSize] ^= 1
		if err := logOf(e).next(&event{}); err == nil || !strings.Contains(err.Error(), "checksum") {
			t.Errorf("with %d bytes: %v", n, err)
		}
	}
}

// payload is the body of a compressed transaction with a statement and its end.
func payload(compression uint64, inner ...[]byte) []byte {
	events := bytes.Join(inner, nil)
	if compression == payloadZstd {
		w, err := zstd.NewWriter(nil)
		if err != nil {
			panic(err)
		}
		events = w.EncodeAll(events, nil)
	}
	var body []byte
	for field, value := range map[byte]uint64{payloadCompression: compression, payloadSize: uint64(len(events))} {
		encoded := gomysql.AppendLengthEncodedInteger(nil, value)
		body = append(append(body, field, byte(len(encoded))), encoded...)
	}
	return append(append(body, payloadEnd), events...)
}

func TestACompressedTransactionEndsOnlyWhenItsChecksumIsRight(t *testing.T) {
	noise := make([]byte, 100_000) // keeps the payload long
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	begin := appendEvent(nil, replication.ROWS_QUERY_EVENT, noise, false)
	end := appendEvent(nil, replication.XID_EVENT, make([]byte, 8), false)
	for name, c := range map[string]struct {
		compression uint64
		inner       [][]byte
		whole       int
		damage      func(event []byte)
		want        string
	}{
		"whole":                    {payloadZstd, [][]byte{begin, end}, wholeEvent, nil, ""},
		"as it comes":              {payloadZstd, [][]byte{begin, end}, 1000, nil, ""},
		"not compressed":           {payloadNone, [][]byte{begin, end}, 1000, nil, ""},
		"whole and damaged":        {payloadNone, [][]byte{begin, end}, wholeEvent, func(e []byte) { e[1000] ^= 1 }, "checksum"},
		"damaged as it comes":      {payloadNone, [][]byte{begin, end}, 1000, func(e []byte) { e[1000] ^= 1 }, "checksum"},
		"another checksum":         {payloadZstd, [][]byte{begin, end}, 1000, func(e []byte) { e[len(e)-1] ^= 1 }, "checksum"},
		"something behind":         {payloadZstd, [][]byte{end, begin}, 1000, nil, "is behind its end"},
		"cut off":                  {payloadZstd, [][]byte{begin, end[:len(end)-1]}, wholeEvent, nil, "unexpected EOF"},
		"one inside another":       {payloadZstd, [][]byte{appendEvent(nil, replication.TRANSACTION_PAYLOAD_EVENT, nil, false)}, wholeEvent, nil, "in it"},
		"a kind that is not known": {7, [][]byte{begin, end}, 1000, nil, "compressed in a way"},
	} {
		t.Run(name, func(t *testing.T) {
			e := appendEvent(nil, replication.TRANSACTION_PAYLOAD_EVENT, payload(c.compression, c.inner...), true)
			if c.damage != nil {
				c.damage(e)
			}
			gtid := make([]byte, 42)
			gtid[17] = 1
			log := logOf(appendEvent(nil, replication.GTID_EVENT, gtid, true), e, appendEvent(nil, replication.HEARTBEAT_EVENT, nil, true))
			log.whole = c.whole
			s := &Source{Out: newMemory(), Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()), pos: cdc.Position{Epoch: 1}, Config: DefaultConfig()}
			if err := s.restoreGTIDs(); err != nil {
				t.Fatal(err)
			}
			r := newReader(t.Context(), s, nil)
			err := func() error {
				for {
					var ev event
					if err := log.next(&ev); err != nil {
						return err
					}
					if err := r.take(&ev); err != nil {
						return err
					}
				}
			}()
			if c.want == "" {
				if err != io.EOF || s.gtids.String() == "" {
					t.Fatalf("ended with %v behind %q; want the transaction", err, s.gtids)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || s.gtids.String() != "" {
				t.Fatalf("ended with %v behind %q; want %q and no transaction", err, s.gtids, c.want)
			}
			if _, stops := errors.AsType[*Stop](lost(err)); stops != (name == "a kind that is not known") {
				t.Errorf("stops: %t", stops)
			}
		})
	}
}

func TestTheLogComesThroughTLS(t *testing.T) {
	w := newWorld(t)
	w.cfg.TLS.Mode = "required"
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v LONGTEXT)")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitCopied(t)
	w.exec("INSERT INTO q VALUES (1, REPEAT('x', 300000)), (2, 'y')")
	changes := out.awaitChanges(t, 2)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if changes[0].Op != cdc.OpCreate || len(changes[0].After) < 300_000 {
		t.Errorf("%s of %d bytes", changes[0].Op, len(changes[0].After))
	}
}

// One connection reads files with and without checksums, whatever the server writes
// when it is opened.
func TestChecksumsMayComeAndGo(t *testing.T) {
	w := newWorld(t)
	admin := testenv.OpenMySQL(t, testenv.MySQL(t), "")
	checksums := func(algorithm string) {
		t.Helper()
		if _, err := admin.Exec("SET GLOBAL binlog_checksum = " + algorithm); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { checksums("CRC32") })
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)")
	out := newMemory()
	stop := w.run(w.source(out, nil))
	out.awaitCopied(t)
	out.mu.Lock()
	from := out.pos[len(out.pos)-1]
	out.mu.Unlock()
	w.exec("INSERT INTO q VALUES (1)")
	checksums("NONE")
	w.exec("INSERT INTO q VALUES (2)")
	checksums("CRC32")
	w.exec("INSERT INTO q VALUES (3)")
	first := out.awaitChanges(t, 3)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range []string{"NONE", "CRC32"} {
		checksums(algorithm)
		again := newMemory()
		stop := w.run(w.source(again, &from))
		changes := again.awaitChanges(t, 3)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for i, c := range changes {
			if c.Version != first[i].Version || c.Origin.File != first[i].Origin.File || string(c.Key) != string(first[i].Key) {
				t.Errorf("opened under %s: %s %s in %s; want %s %s in %s", algorithm, c.Key, c.Version, c.Origin.File, first[i].Key, first[i].Version, first[i].Origin.File)
			}
		}
	}
}
