package kafka

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"lockstep/cdc"
)

// sealed is a batch of n records as Kafka hands it out, the first of them at an offset.
func sealed(t *testing.T, codec string, base int64, n int) []byte {
	t.Helper()
	b := newBatch(nil)
	for i := range n {
		b.add(&Record{Key: fmt.Appendf(nil, "key %d", i), Value: []byte(strings.Repeat(fmt.Sprint(i), 40)), Time: time.UnixMilli(1700000000000 + int64(i)),
			Headers: []cdc.Header{{Key: "a", Value: fmt.Append(nil, i)}, {Key: fmt.Sprint("b", i%2)}}})
	}
	if codec != "none" {
		_, err := b.compress(compressions[codec], nil)
		must(t, err)
	}
	b.seal(1, 2, 3)
	binary.BigEndian.PutUint64(b.buf[sizeLen:], uint64(base))
	return b.buf[sizeLen:]
}

// unpack gives the values of what is read of batches from an offset on, and the next one.
func unpack(batches []byte, from int64) (offsets []int64, next int64, err error) {
	f := fetched{next: from, end: 1 << 40}
	err = f.readAll(batches, "t", 0)
	for i, r := range f.records {
		offsets = append(offsets, r.Offset)
		if len(r.Headers) != 2 || len(f.records) == 0 || string(r.Key) != "key "+string(r.Headers[0].Value) {
			return nil, 0, fmt.Errorf("record %d has key %q and headers %v", i, r.Key, r.Headers)
		}
	}
	return offsets, f.next, err
}

func TestBatchesAreReadFromAnyOffsetOn(t *testing.T) {
	t.Parallel()
	batches := append(append(sealed(t, "lz4", 10, 5), sealed(t, "none", 20, 3)...), sealed(t, "zstd", 23, 2)...)
	all := []int64{10, 11, 12, 13, 14, 20, 21, 22, 23, 24} // compaction has left a gap
	for from := int64(0); from < 30; from++ {
		var want []int64
		for _, offset := range all {
			if offset >= from {
				want = append(want, offset)
			}
		}
		got, next, err := unpack(batches, from)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) || next != max(from, 25) {
			t.Errorf("from %d: got %v, then %d, %v; want %v, then %d", from, got, next, err, want, max(from, 25))
		}
	}
}

// Where all records of a batch were compacted away, or it is a mark of a transaction, reading
// goes on behind it.
func TestABatchWithoutRecordsOfOursIsPassed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(b []byte) []byte{
		"empty": func(b []byte) []byte {
			b = b[:atRecords-sizeLen]
			binary.BigEndian.PutUint32(b[atLength-sizeLen:], uint32(len(b)-12))
			binary.BigEndian.PutUint32(b[atCount-sizeLen:], 0)
			return b
		},
		"control": func(b []byte) []byte {
			b[atAttributes-sizeLen+1] |= controlBit
			return b
		},
	} {
		b := change(sealed(t, "none", 7, 4))
		binary.BigEndian.PutUint32(b[atCRC-sizeLen:], crc32.Checksum(b[atAttributes-sizeLen:], castagnoli))
		got, next, err := unpack(append(b, sealed(t, "none", 11, 1)...), 7)
		if err != nil || fmt.Sprint(got) != "[11]" || next != 12 {
			t.Errorf("%s: got %v, then %d, %v; want [11], then 12", name, got, next, err)
		}
	}
}

// What a broker cuts off comes again; nothing is left out, and nothing else is refused.
func TestAnAnswerThatIsCutOffIsReadUpToItsLastWholeBatch(t *testing.T) {
	t.Parallel()
	first, second := sealed(t, "lz4", 0, 3), sealed(t, "lz4", 3, 3)
	batches := append(first, second...)
	for n := 1; n <= len(batches); n++ {
		got, next, err := unpack(batches[:n], 0)
		want := int64(3 * (n / len(first)))
		if n == len(batches) {
			want = 6
		}
		if n < len(first) {
			if err == nil {
				t.Fatalf("an answer of %d bytes, which is no whole batch, is read as %v", n, got)
			}
			continue
		}
		if err != nil || int64(len(got)) != min(want, 6) || next != min(want, 6) {
			t.Fatalf("of %d bytes: %d records, then %d, %v; want %d", n, len(got), next, err, want)
		}
	}
}

// Every bit that is covered by the checksum counts, and so does what says how a batch is to
// be read. Only the epoch of the leader, which nobody asks for, does not.
func TestADamagedBatchIsRefused(t *testing.T) {
	t.Parallel()
	for _, codec := range []string{"none", "lz4"} {
		whole := sealed(t, codec, 0, 3)
		for i := range whole {
			if i < atLength-sizeLen || i >= atLeaderEpoch-sizeLen && i < atMagic-sizeLen {
				continue // the broker sets these when it takes the batch
			}
			for bit := range 8 {
				b := append([]byte(nil), whole...)
				b[i] ^= 1 << bit
				if got, _, err := unpack(b, 0); err == nil {
					t.Fatalf("%s: bit %d of byte %d is wrong, and %v is read", codec, bit, i, got)
				}
			}
		}
	}
}

// A checksum proves what was written, not who wrote it: a batch that was made wrong is
// refused and not read in part.
func TestABatchThatIsMadeWrongIsRefused(t *testing.T) {
	t.Parallel()
	whole := sealed(t, "none", 0, 3)
	seal := func(b []byte) []byte {
		binary.BigEndian.PutUint32(b[atLength-sizeLen:], uint32(len(b)-12))
		binary.BigEndian.PutUint32(b[atCRC-sizeLen:], crc32.Checksum(b[atAttributes-sizeLen:], castagnoli))
		return b
	}
	for n := atRecords - sizeLen; n < len(whole); n++ {
		if got, _, err := unpack(seal(append([]byte(nil), whole[:n]...)), 0); err == nil {
			t.Fatalf("a batch without its last %d bytes is read as %v", len(whole)-n, got)
		}
	}
	if got, _, err := unpack(seal(append(append([]byte(nil), whole...), 0)), 0); err == nil {
		t.Fatalf("a batch with a byte too much is read as %v", got)
	}
	for i := atAttributes - sizeLen; i < len(whole); i++ { // whatever it is, it does not panic
		for bit := range 8 {
			b := append([]byte(nil), whole...)
			b[i] ^= 1 << bit
			f := fetched{end: 10}
			_ = f.readAll(seal(b), "t", 0)
		}
	}
	b := append([]byte(nil), whole...)
	b[atAttributes-sizeLen+1] |= 7
	if _, _, err := unpack(seal(b), 0); err == nil || !strings.Contains(err.Error(), "in a way (7) that is not known") {
		t.Errorf("a codec that there is not is refused with %v", err)
	}
	b = append([]byte(nil), whole...)
	b[atMagic-sizeLen] = 1
	if _, _, err := unpack(seal(b), 0); err == nil || !strings.Contains(err.Error(), "message format 1") {
		t.Errorf("an old format is refused with %v", err)
	}
}
