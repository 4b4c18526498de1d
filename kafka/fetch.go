package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
	"unsafe"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"lockstep/cdc"
)

// ErrDataLost is wrapped when records that should be read are not in Kafka any
// more. Reading never jumps over them by itself.
var ErrDataLost = errors.New("records are gone from Kafka")

// fetchWait is how long a broker holds a fetch when it has nothing to give.
const fetchWait = 500 * time.Millisecond

// fewRecords is room for the records of a usual answer.
const fewRecords = 256

// fetched is the answer to one fetch.
type fetched struct {
	records    []Record
	next       int64 // offset to ask for next
	start, end int64 // of the log, as the broker saw it
}

// fetch asks once for the records of a partition from offset on. No record is
// the answer of a partition without news, after wait; next may move all the same, over
// offsets that compaction or a transaction has left empty.
func (c *Client) fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, wait time.Duration) (fetched, error) {
	res, err := c.api.Fetch(ctx, &kafkago.FetchRequest{
		Topic: topic, Partition: partition, Offset: offset,
		MinBytes: 1, MaxBytes: int64(maxBytes), MaxWait: wait,
	})
	if err != nil {
		return fetched{}, err
	}
	if res.Error != nil {
		return fetched{}, res.Error
	}
	f := fetched{next: offset, start: res.LogStartOffset, end: res.HighWatermark}
	return f, f.readAll(res.Records, topic, partition)
}

// readAll takes the records of an answer.
func (f *fetched) readAll(records protocol.RecordReader, topic string, partition int) error {
	if f.next < f.start { // some brokers answer with what they have
		return kafkago.OffsetOutOfRange
	}
	stream, ok := records.(*protocol.RecordStream)
	if !ok {
		return nil
	}
	f.records = make([]Record, 0, min(max(0, f.end-f.next), fewRecords))
	for _, b := range stream.Records {
		if err := f.read(b, topic, partition); err != nil {
			return err
		}
	}
	return nil
}

// read takes the records of one batch.
func (f *fetched) read(b protocol.RecordReader, topic string, partition int) error {
	_, control := b.(*protocol.ControlBatch)
	empty := true
	for {
		r, err := b.ReadRecord()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read batch: %w", err)
		}
		empty = false
		if r.Offset < f.next || control {
			release(r)
			f.next = max(f.next, r.Offset+1)
			continue
		}
		rec, err := record(r, topic, partition)
		if err != nil {
			return fmt.Errorf("read offset %d: %w", r.Offset, err)
		}
		f.records = append(f.records, rec)
		f.next = r.Offset + 1
	}
	// Compaction can leave a batch without records, whose last offset the library
	// does not tell. Its first is behind us or is the next one.
	if batch, ok := b.(*protocol.RecordBatch); ok && empty {
		f.next = max(f.next, batch.BaseOffset) + 1
	}
	return nil
}

func release(r *protocol.Record) {
	if r.Key != nil {
		r.Key.Close()
	}
	if r.Value != nil {
		r.Value.Close()
	}
}

// A header of the library's is one of ours.
var _ = cdc.Header(protocol.Header{})

func record(r *protocol.Record, topic string, partition int) (Record, error) {
	defer release(r)
	key, err := protocol.ReadAll(r.Key)
	if err != nil {
		return Record{}, err
	}
	value, err := protocol.ReadAll(r.Value)
	if err != nil {
		return Record{}, err
	}
	rec := Record{Topic: topic, Partition: partition, Offset: r.Offset, Time: r.Time, Key: key, Value: value}
	rec.Headers = *(*[]cdc.Header)(unsafe.Pointer(&r.Headers)) // by another name
	return rec, nil
}

// bounds asks for the first offset of a partition and the one after its last.
func (c *Client) bounds(ctx context.Context, topic string, partition int) (start, end int64, err error) {
	res, err := c.api.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{
		topic: {kafkago.FirstOffsetOf(partition), kafkago.LastOffsetOf(partition)},
	}})
	if err != nil {
		return 0, 0, err
	}
	for _, p := range res.Topics[topic] {
		if p.Partition == partition {
			return p.FirstOffset, p.LastOffset, p.Error
		}
	}
	return 0, 0, protocol.ErrNoPartition
}
