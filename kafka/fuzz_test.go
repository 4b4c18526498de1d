package kafka

import (
	"encoding/binary"
	"hash/crc32"
	"testing"
	"time"

	"lockstep/cdc"
)

// An answer of a broker, whatever it is, is read as records or refused: nothing is made of
// more bytes than there are, and no offset is passed twice.
func FuzzAnAnswerOfAnyBytes(f *testing.F) {
	for _, codec := range []string{"none", "lz4", "zstd", "snappy", "gzip"} {
		f.Add(fuzzSealed(codec, 10), int64(10), true)
		f.Add(append(fuzzSealed(codec, 10), fuzzSealed("none", 13)...), int64(11), false)
	}
	f.Fuzz(func(t *testing.T, batches []byte, from int64, seal bool) {
		if seal && len(batches) >= atRecords-sizeLen { // past the checksum
			be := binary.BigEndian
			be.PutUint32(batches[atLength-sizeLen:], uint32(len(batches)-(atLeaderEpoch-sizeLen)))
			batches[atMagic-sizeLen] = 2
			be.PutUint32(batches[atCRC-sizeLen:], crc32.Checksum(batches[atAttributes-sizeLen:], castagnoli))
		}
		r := fetched{next: from, end: 1 << 40}
		err := r.readAll(batches, "t", 0)
		last := from - 1
		for _, one := range r.records {
			if one.Offset <= last {
				t.Fatalf("offset %d comes behind %d", one.Offset, last)
			}
			last = one.Offset
		}
		if err == nil && (r.next < from || len(r.records) > 0 && r.next <= last) {
			t.Fatalf("from %d on: the last record is %d and the next one %d", from, last, r.next)
		}
	})
}

func fuzzSealed(codec string, base int64) []byte {
	b := newBatch(nil)
	for i := range 3 {
		b.add(&Record{Key: []byte(`{"id":1}`), Value: []byte(`{"before":null,"after":{"id":1}}`), Time: time.UnixMilli(1700000000000 + int64(i)), Headers: []cdc.Header{{Key: cdc.HeaderFormat, Value: []byte("1")}, {Key: "x"}}})
	}
	if codec != "none" {
		if _, err := b.compress(compressions[codec], nil); err != nil {
			panic(err)
		}
	}
	b.seal(1, 2, 3)
	binary.BigEndian.PutUint64(b.buf[sizeLen:], uint64(base))
	return b.buf[sizeLen:]
}

// A saved position that is taken is one of a format that is known, and comes back.
func FuzzASavedPosition(f *testing.F) {
	r, err := checkpointRecord("shop", "w", cdc.Position{Run: "r", ServerUUID: "u", GTIDSet: "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-23", Epoch: 1, Seq: 77, Copied: []string{"a.b"},
		Keys: map[string]string{"a.b": "id"}, Barriers: map[string]cdc.Version{"a.b": 1 << 42}})
	must(f, err)
	f.Add(r.Value)
	f.Fuzz(func(t *testing.T, value []byte) {
		_ = decodeCheckpoint(Record{Value: value}, func(_ []byte, pos cdc.Position) {
			again, err := checkpointRecord("shop", "w", pos)
			must(t, err)
			if err := decodeCheckpoint(again, func(_ []byte, same cdc.Position) {
				if older(same, pos) || older(pos, same) || same.GTIDSet != pos.GTIDSet || same.Run != pos.Run {
					t.Fatalf("%s came back as %+v", again.Value, same)
				}
			}); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// A request of a snapshot is one of its key and format, or refused.
func FuzzASnapshotRequest(f *testing.F) {
	f.Add([]byte("a1"), []byte(`{"format":1,"id":"a1","want":"running","table":"bank.questions","keys":[{"id":1}]}`))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if r, err := decodeRequest(Record{Key: key, Value: value}); err == nil && (r.ID != string(key) || r.Format != cdc.SnapshotRequestFormat) {
			t.Fatalf("%+v is let in under %q", r, key)
		}
	})
}
