package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	produceapi "github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"
)

const (
	// sharedBytes is how large a request is at most that several partitions share.
	sharedBytes = 1 << 20
	// largeBytes is the size of a batch that does not wait for company.
	largeBytes = 128 << 10
)

// carrier sends batches to the brokers, those of several partitions with one
// request.
type carrier struct {
	client  *Client
	leaders leaders
	parcels together[*parcel]
}

// parcel is a batch on its way.
type parcel struct {
	topicPartition
	ctx  context.Context
	buf  []byte
	done chan delivery
}

// delivery is what a broker said of a parcel.
type delivery struct {
	base int64 // offset of its first record; negative when the broker does not say
	err  error
}

func newCarrier(c *Client) *carrier {
	k := &carrier{client: c, leaders: leaders{client: c}}
	k.parcels.send = k.send
	return k
}

// carry sends a sealed batch once, and returns the offset of its first record, negative
// when the broker does not say. When it returns an error it is not known whether
// the broker has the batch, and the bytes may still be in use.
func (k *carrier) carry(ctx context.Context, to topicPartition, buf []byte) (base int64, err error) {
	p := &parcel{topicPartition: to, ctx: ctx, buf: buf, done: make(chan delivery, 1)}
	k.parcels.add(len(buf) >= largeBytes, p)
	select {
	case d := <-p.done:
		return d.base, d.err
	case <-ctx.Done():
		k.parcels.drop(func(other *parcel) bool { return other == p })
		return -1, ctx.Err()
	}
}

func (p *parcel) at() topicPartition { return p.topicPartition }

func (k *carrier) send(parcels []*parcel) {
	for _, some := range share(parcels[0].ctx, &k.leaders, parcels, sharedBytes, (*parcel).at, func(p *parcel) int { return len(p.buf) }) {
		go k.request(some)
	}
}

// request sends to one broker, once.
func (k *carrier) request(parcels []*parcel) {
	res, err := k.roundTrip(parcels)
	if err != nil {
		k.leaders.forget()
	}
	answers := make(map[topicPartition]delivery, len(parcels))
	if err == nil {
		for i := range res.Topics {
			t := &res.Topics[i]
			for j := range t.Partitions {
				answers[topicPartition{t.Topic, int(t.Partitions[j].Partition)}] = delivered(&t.Partitions[j])
			}
		}
	}
	for _, p := range parcels {
		answer, ok := answers[p.topicPartition]
		switch {
		case err != nil:
			p.done <- delivery{-1, err}
		case !ok:
			p.done <- delivery{-1, protocol.ErrNoPartition}
		default:
			p.done <- answer
		}
	}
}

func delivered(answer *produceapi.ResponsePartition) delivery {
	switch code := kafkago.Error(answer.ErrorCode); {
	case code == 0:
		return delivery{answer.BaseOffset, nil}
	case errors.Is(code, kafkago.DuplicateSequenceNumber): // the broker has it from an earlier try
		return delivery{-1, nil}
	case answer.ErrorMessage != "":
		return delivery{-1, fmt.Errorf("%w: %s", code, answer.ErrorMessage)}
	default:
		return delivery{-1, code}
	}
}

func (k *carrier) roundTrip(parcels []*parcel) (*produceapi.Response, error) {
	req := &rawproduce.Request{Acks: int16(kafkago.RequireAll), Timeout: int32(requestTimeout / 2 / time.Millisecond)}
	byTopic(parcels, (*parcel).at, func(topic string, some []*parcel) {
		t := rawproduce.RequestTopic{Topic: topic}
		for _, p := range some {
			t.Partitions = append(t.Partitions, rawproduce.RequestPartition{Partition: int32(p.id), RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(p.buf)}})
		}
		req.Topics = append(req.Topics, t)
	})
	ctx, cancel := context.WithTimeout(parcels[0].ctx, requestTimeout)
	defer cancel()
	m, err := k.client.transport.RoundTrip(ctx, k.client.api.Addr, req)
	if err != nil {
		return nil, err
	}
	res, ok := m.(*produceapi.Response)
	if !ok {
		return nil, fmt.Errorf("a produce request was answered with a %T", m)
	}
	return res, nil
}
