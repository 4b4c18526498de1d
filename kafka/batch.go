package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/pierrec/lz4/v4"
	"github.com/segmentio/kafka-go/compress"
)

// A batch is encoded here and not by the library, record by record into one
// buffer as they are published: that costs no allocation per record, keeps
// nothing of the caller's, and counts exactly the bytes that are held.
//
// Offsets of the fields of a record batch (format 2) behind the 4 bytes of its
// size, which the produce request wants in front.
const (
	sizeLen       = 4
	atLength      = sizeLen + 8
	atLeaderEpoch = sizeLen + 12
	atMagic       = sizeLen + 16
	atCRC         = sizeLen + 17
	atAttributes  = sizeLen + 21
	atLastOffset  = sizeLen + 23
	atBaseTime    = sizeLen + 27
	atMaxTime     = sizeLen + 35
	atProducer    = sizeLen + 43
	atEpoch       = sizeLen + 51
	atSequence    = sizeLen + 53
	atCount       = sizeLen + 57
	atRecords     = sizeLen + 61
	maxBatchCount = 16384
	maxBatchBytes = 1 << 20
)

var (
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
	compressions = map[string]compress.Compression{
		"none": compress.None, "gzip": compress.Gzip, "snappy": compress.Snappy, "lz4": compress.Lz4, "zstd": compress.Zstd,
	}
)

// batch is what one produce request carries.
type batch struct {
	buf      []byte
	count    int
	baseTime int64     // of the first record, milliseconds
	maxTime  int64     // milliseconds
	oldest   time.Time // of all records
	cost     int64     // bytes of the publisher's budget
	fence    *fence
	codec    compress.Compression // what the records are compressed with
}

func newBatch(buf []byte) *batch {
	return &batch{buf: append(buf[:0], make([]byte, atRecords)...)}
}

// takes reports whether a record of size bytes fits. The first always does.
func (b *batch) takes(size int) bool {
	return b.count == 0 || (b.count < maxBatchCount && len(b.buf)+size <= maxBatchBytes)
}

func (b *batch) add(r *Record) {
	ms := r.Time.UnixMilli()
	if b.count == 0 {
		b.baseTime, b.maxTime, b.oldest = ms, ms, r.Time
	}
	b.maxTime = max(b.maxTime, ms)
	if r.Time.Before(b.oldest) {
		b.oldest = r.Time
	}
	dt, dn := ms-b.baseTime, int64(b.count)
	size := recordLen(r, dt, dn)
	buf := slices.Grow(b.buf, size+binary.MaxVarintLen64)
	buf = binary.AppendVarint(buf, int64(size))
	buf = append(buf, 0) // attributes
	buf = binary.AppendVarint(buf, dt)
	buf = binary.AppendVarint(buf, dn)
	buf = appendBytes(buf, r.Key)
	if r.encoder != nil {
		buf = binary.AppendVarint(buf, int64(r.encoder.ValueLen()))
		buf = r.encoder.AppendValue(buf)
	} else {
		buf = appendBytes(buf, r.Value)
	}
	buf = binary.AppendVarint(buf, int64(len(r.Headers)))
	for _, h := range r.Headers {
		buf = binary.AppendVarint(buf, int64(len(h.Key)))
		buf = append(buf, h.Key...)
		buf = appendBytes(buf, h.Value)
	}
	b.buf = buf
	b.count++
}

// appendBytes keeps nil, which deletes a key from a compacted topic, apart from empty.
func appendBytes(buf, b []byte) []byte {
	if b == nil {
		return append(buf, 1) // -1
	}
	buf = binary.AppendVarint(buf, int64(len(b)))
	return append(buf, b...)
}

// recordLen is the length of a record behind its length field.
func recordLen(r *Record, dt, dn int64) int {
	n := 1 + varintLen(dt) + varintLen(dn) + bytesLen(r.Key) + varintLen(int64(len(r.Headers)))
	if r.encoder != nil {
		n += varintLen(int64(r.encoder.ValueLen())) + r.encoder.ValueLen()
	} else {
		n += bytesLen(r.Value)
	}
	for _, h := range r.Headers {
		n += varintLen(int64(len(h.Key))) + len(h.Key) + bytesLen(h.Value)
	}
	return n
}

func bytesLen(b []byte) int {
	if b == nil {
		return 1
	}
	return varintLen(int64(len(b))) + len(b)
}

func varintLen(v int64) int {
	n := 1
	for u := uint64(v)<<1 ^ uint64(v>>63); u >= 0x80; u >>= 7 {
		n++
	}
	return n
}

// huge reports whether b is one record of many megabytes.
func (b *batch) huge() bool { return len(b.buf) > 4*maxBatchBytes }

// compress replaces the records by their compressed form, written into into, and
// returns the buffer that is no longer needed. Records that do not get smaller stay
// as they are.
func (b *batch) compress(codec compress.Compression, into []byte) (spare []byte, err error) {
	if b.huge() {
		// Whether it is worth it, and how much memory it takes, shows in the first part.
		part := batch{buf: b.buf[:maxBatchBytes]}
		if into, err = part.compress(codec, into); err != nil || part.codec == compress.None {
			return into, err
		}
		into = make([]byte, 0, len(part.buf)*(len(b.buf)/maxBatchBytes+2))
	}
	out := boundedWriter{buf: append(into[:0], b.buf[:atRecords]...), most: len(b.buf)}
	w := newWriter(codec, &out)
	_, err = w.Write(b.buf[atRecords:])
	if closed := w.Close(); err == nil {
		err = closed
	}
	if errors.Is(err, errLarger) {
		return out.buf, nil
	}
	if err != nil {
		return out.buf, fmt.Errorf("%s: %w", codec, err)
	}
	spare, b.buf, b.codec = b.buf, out.buf, codec
	return spare, nil
}

// newWriter makes a writer that compresses. The one that the library has for lz4
// holds 8 MB for each partition.
func newWriter(codec compress.Compression, out io.Writer) io.WriteCloser {
	if codec != compress.Lz4 {
		return codec.Codec().NewWriter(out)
	}
	w := lz4Writers.Get().(*lz4.Writer)
	w.Reset(out)
	return lz4Writer{w}
}

var lz4Writers = sync.Pool{New: func() any {
	w := lz4.NewWriter(nil)
	// The batch has a checksum.
	if err := w.Apply(lz4.BlockSizeOption(lz4.Block256Kb), lz4.ChecksumOption(false)); err != nil {
		panic(err) // the options are ours
	}
	return w
}}

type lz4Writer struct{ *lz4.Writer }

func (w lz4Writer) Close() error {
	err := w.Writer.Close()
	w.Reset(nil)
	lz4Writers.Put(w.Writer)
	return err
}

// boundedWriter refuses to grow beyond most bytes.
type boundedWriter struct {
	buf  []byte
	most int
}

var errLarger = errors.New("compression does not make it smaller")

func (w *boundedWriter) Write(p []byte) (int, error) {
	if len(w.buf)+len(p) >= w.most {
		return 0, errLarger
	}
	w.buf = append(w.buf, p...)
	return len(p), nil
}

// seal fills in the header. After it the bytes are not touched again: a retry
// must be the same batch to the broker.
func (b *batch) seal(producer int64, epoch int16, sequence int32) {
	h := b.buf
	be := binary.BigEndian
	be.PutUint32(h, uint32(len(h)-sizeLen))
	be.PutUint32(h[atLength:], uint32(len(h)-atLeaderEpoch))
	be.PutUint32(h[atLeaderEpoch:], ^uint32(0))
	h[atMagic] = 2
	be.PutUint16(h[atAttributes:], uint16(b.codec))
	be.PutUint32(h[atLastOffset:], uint32(b.count-1))
	be.PutUint64(h[atBaseTime:], uint64(b.baseTime))
	be.PutUint64(h[atMaxTime:], uint64(b.maxTime))
	be.PutUint64(h[atProducer:], uint64(producer))
	be.PutUint16(h[atEpoch:], uint16(epoch))
	be.PutUint32(h[atSequence:], uint32(sequence))
	be.PutUint32(h[atCount:], uint32(b.count))
	be.PutUint32(h[atCRC:], crc32.Checksum(h[atAttributes:], castagnoli))
}

// nextSequence is the sequence number count records after s: 2^31 wraps to 0.
func nextSequence(s int32, count int) int32 {
	return int32((uint32(s) + uint32(count)) & 0x7fffffff)
}
