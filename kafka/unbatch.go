package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"
	fetchapi "github.com/segmentio/kafka-go/protocol/fetch"

	"lockstep/cdc"
)

// The records of a fetch are decoded here and not by the library, which reads them byte
// by byte and makes each key and value of a header by itself.

// fetchResponse is what the library's has, with the record batches as they came.
type fetchResponse struct {
	ThrottleTimeMs int32        `kafka:"min=v1,max=v11"`
	ErrorCode      int16        `kafka:"min=v7,max=v11"`
	SessionID      int32        `kafka:"min=v7,max=v11"`
	Topics         []fetchTopic `kafka:"min=v0,max=v11"`
}

type fetchTopic struct {
	Topic      string           `kafka:"min=v0,max=v11"`
	Partitions []fetchPartition `kafka:"min=v0,max=v11"`
}

type fetchPartition struct {
	Partition            int32                          `kafka:"min=v0,max=v11"`
	ErrorCode            int16                          `kafka:"min=v0,max=v11"`
	HighWatermark        int64                          `kafka:"min=v0,max=v11"`
	LastStableOffset     int64                          `kafka:"min=v4,max=v11"`
	LogStartOffset       int64                          `kafka:"min=v5,max=v11"`
	AbortedTransactions  []fetchapi.ResponseTransaction `kafka:"min=v4,max=v11"`
	PreferredReadReplica int32                          `kafka:"min=v11,max=v11"`
	Batches              []byte                         `kafka:"min=v0,max=v11"`
}

func (*fetchResponse) ApiKey() protocol.ApiKey { return protocol.Fetch }

// From here on the library's own Client.Fetch, which nothing uses, would not know the answer.
func init() { protocol.Register(&fetchapi.Request{}, &fetchResponse{}) }

// leastRecord is how many bytes a record has at least.
const leastRecord = 7

// Bits of a batch's attributes.
const (
	codecBits  = 7
	controlBit = 1 << 5
)

// readAll takes the records of an answer. What a broker has cut off at its end comes with
// the next one.
func (f *fetched) readAll(batches []byte, topic string, partition int) error {
	if f.next < f.start { // some brokers answer with what they have
		return kafkago.OffsetOutOfRange
	}
	if len(batches) == 0 {
		return nil
	}
	be := binary.BigEndian
	for first := true; len(batches) > 0; first = false {
		whole := len(batches) >= atRecords-sizeLen
		length := 0
		if whole {
			length = int(int32(be.Uint32(batches[atLength-sizeLen:]))) + atLeaderEpoch - sizeLen
			whole = length <= len(batches)
		}
		switch {
		case !whole && first:
			return fmt.Errorf("offset %d: the answer has %d bytes, less than one batch", f.next, len(batches))
		case !whole:
			return nil
		case length < atRecords-sizeLen:
			return fmt.Errorf("offset %d: a batch has %d bytes, less than its header", f.next, length)
		}
		if err := f.read(batches[:length], topic, partition); err != nil {
			return fmt.Errorf("batch at offset %d: %w", be.Uint64(batches), err)
		}
		batches = batches[length:]
	}
	return nil
}

// unpacked are buffers for the records of a compressed batch, out of which they are copied.
var unpacked = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// read takes the records of one batch.
func (f *fetched) read(b []byte, topic string, partition int) error {
	be := binary.BigEndian
	if magic := b[atMagic-sizeLen]; magic != 2 {
		return fmt.Errorf("it has message format %d, and only 2 is read", magic)
	}
	if sum, is := be.Uint32(b[atCRC-sizeLen:]), crc32.Checksum(b[atAttributes-sizeLen:], castagnoli); sum != is {
		return fmt.Errorf("it is damaged: its checksum is %08x and should be %08x; let another replica of the partition lead it, or mend the broker's disk", is, sum)
	}
	base, attributes := int64(be.Uint64(b)), be.Uint16(b[atAttributes-sizeLen:])
	// Compaction and transactions leave offsets without a record.
	behind := base + int64(int32(be.Uint32(b[atLastOffset-sizeLen:]))) + 1
	time0, count := int64(be.Uint64(b[atBaseTime-sizeLen:])), int(int32(be.Uint32(b[atCount-sizeLen:])))
	if attributes&controlBit != 0 || behind <= f.next || count == 0 {
		f.next = max(f.next, behind)
		return nil
	}
	r := fields{rest: b[atRecords-sizeLen:]}
	if codec := compress.Compression(attributes & codecBits); codec != compress.None {
		known := codec.Codec()
		if known == nil {
			return fmt.Errorf("it is compressed in a way (%d) that is not known", codec)
		}
		into := unpacked.Get().(*bytes.Buffer)
		defer func() {
			if into.Reset(); into.Cap() <= 4*maxBatchBytes {
				unpacked.Put(into)
			}
		}()
		from := known.NewReader(bytes.NewReader(r.rest))
		_, err := into.ReadFrom(from)
		if closed := from.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return fmt.Errorf("%s: %w", codec, err)
		}
		r.rest = into.Bytes()
	}
	f.records = slices.Grow(f.records, max(min(count, len(r.rest)/leastRecord), 0))
	var like []cdc.Header
	last := base - 1
	for range count {
		rec := Record{Topic: topic, Partition: partition}
		offset, size := base, r.varint()
		of := fields{rest: r.take(size)}
		if !r.broken && of.record(&rec, time0, &offset, f.next, like) && of.whole() && last < offset && offset < behind {
			if last, rec.Offset = offset, offset; offset >= f.next {
				f.records, like = append(f.records, rec), rec.Headers
			}
			continue
		}
		return fmt.Errorf("its record %d of %d cannot be read", len(f.records), count)
	}
	if !r.whole() {
		return fmt.Errorf("it has more than the %d records that it tells of", count)
	}
	f.next = behind
	return nil
}

// fields reads what a record is made of.
type fields struct {
	rest   []byte
	broken bool
}

func (r *fields) whole() bool { return !r.broken && len(r.rest) == 0 }

func (r *fields) varint() int64 {
	if len(r.rest) > 0 && r.rest[0] < 0x80 { // most are short
		u := r.rest[0]
		r.rest = r.rest[1:]
		return int64(u>>1) ^ -int64(u&1)
	}
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.broken, n = true, 0
	}
	r.rest = r.rest[n:]
	return v
}

// take gives the next n bytes, or nil when n is negative, as of a key that is null.
func (r *fields) take(n int64) []byte {
	if n < 0 {
		return nil
	}
	if n > int64(len(r.rest)) {
		r.broken = true
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// record reads one record, whose offset is so far behind *offset. One before from is only
// measured. Headers are mostly named as those of the record before are: like.
func (r *fields) record(rec *Record, time0 int64, offset *int64, from int64, like []cdc.Header) bool {
	r.take(1) // attributes, of which there are none
	rec.Time = time.UnixMilli(time0 + r.varint())
	if *offset += r.varint(); *offset < from {
		r.rest = nil
		return !r.broken
	}
	key, value := r.take(r.varint()), r.take(r.varint())
	count := r.varint()
	if r.broken || count < 0 || count > int64(len(r.rest)) {
		return false
	}
	rec.Key, rec.Value = bytes.Clone(key), bytes.Clone(value)
	if count == 0 {
		return true
	}
	rec.Headers = make([]cdc.Header, count)
	values := bytes.Clone(r.rest) // they share it: what keeps a record keeps them all
	at := fields{rest: values}
	for i := range rec.Headers {
		name := at.take(at.varint())
		if i < len(like) && like[i].Key == string(name) {
			rec.Headers[i].Key = like[i].Key
		} else {
			rec.Headers[i].Key = string(name)
		}
		rec.Headers[i].Value = at.take(at.varint())
	}
	r.rest, r.broken = at.rest, at.broken
	return !r.broken
}
