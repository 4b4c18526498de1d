package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	fetchapi "github.com/segmentio/kafka-go/protocol/fetch"
)

// ErrDataLost is wrapped when records that should be read are not in Kafka any
// more. Reading never jumps over them by itself.
var ErrDataLost = errors.New("records are gone from Kafka")

// fetchWait is how long a broker holds a fetch when it has nothing to give.
const fetchWait = 500 * time.Millisecond

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
	a := &ask{topicPartition: topicPartition{topic, partition}, offset: offset, most: maxBytes}
	res, err := c.fetchAll(ctx, []*ask{a}, wait)
	if err != nil {
		return fetched{}, err
	}
	if a.answer = res.of(a.topicPartition); a.answer == nil {
		return fetched{}, protocol.ErrNoPartition
	}
	return a.fetched()
}

// fetchAll asks one broker, once.
func (c *Client) fetchAll(ctx context.Context, asks []*ask, wait time.Duration) (*fetchResponse, error) {
	req := &fetchapi.Request{ReplicaID: -1, MinBytes: 1, SessionID: -1, SessionEpoch: -1}
	most := 0
	byTopic(asks, (*ask).at, func(topic string, some []*ask) {
		t := fetchapi.RequestTopic{Topic: topic}
		for _, a := range some {
			most += a.most
			t.Partitions = append(t.Partitions, fetchapi.RequestPartition{
				Partition: int32(a.id), CurrentLeaderEpoch: -1, FetchOffset: a.offset, LogStartOffset: -1, PartitionMaxBytes: int32(a.most),
			})
		}
		req.Topics = append(req.Topics, t)
	})
	req.MaxBytes = int32(min(most, math.MaxInt32))
	req.MaxWaitTime = int32(max(wait, time.Millisecond) / time.Millisecond)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m, err := c.transport.RoundTrip(ctx, c.api.Addr, req)
	if err != nil {
		return nil, err
	}
	res, ok := m.(*fetchResponse)
	if !ok {
		return nil, fmt.Errorf("a fetch was answered with a %T", m)
	}
	if res.ErrorCode != 0 {
		return nil, kafkago.Error(res.ErrorCode)
	}
	return res, nil
}

// of is what an answer says of a partition, or nil.
func (r *fetchResponse) of(at topicPartition) *fetchPartition {
	for i := range r.Topics {
		for j := range r.Topics[i].Partitions {
			if p := &r.Topics[i].Partitions[j]; r.Topics[i].Topic == at.topic && int(p.Partition) == at.id {
				return p
			}
		}
	}
	return nil
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
