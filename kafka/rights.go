package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// noBatch is a batch of format 1, which a broker refuses once it has seen that the account
// may write.
func noBatch() []byte {
	batch := make([]byte, 61)
	binary.BigEndian.PutUint32(batch[8:], uint32(len(batch)-12))
	batch[16] = 1
	return batch
}

// inspectRights finds what the account must not do with a topic that is there, by what the
// broker says to a fetch behind the end and to a batch that it does not take.
func (c *Client) inspectRights(ctx context.Context, topic string) ([]Finding, error) {
	var missing []string
	ask := func(right string, do func() error) error {
		denied := false
		err := c.retry(ctx, "ask for the right to "+right+" "+topic, func() error {
			err := do()
			if denied = errors.Is(err, kafkago.TopicAuthorizationFailed); denied {
				return nil
			}
			return err
		})
		if denied {
			missing = append(missing, right)
		}
		return err
	}
	if err := ask("READ", func() error {
		_, err := c.fetch(ctx, topic, 0, 1<<62, 1, time.Millisecond)
		if errors.Is(err, kafkago.OffsetOutOfRange) {
			return nil
		}
		return err
	}); err != nil {
		return nil, err
	}
	if err := ask("WRITE", func() error {
		res, err := c.api.RawProduce(ctx, &kafkago.RawProduceRequest{
			Topic: topic, RequiredAcks: kafkago.RequireAll, RawRecords: protocol.RawRecordSet{Reader: bytes.NewReader(noBatch())},
		})
		if err == nil {
			err = res.Error
		}
		if errors.Is(err, kafkago.InvalidRecord) || errors.Is(err, kafkago.InvalidMessage) {
			return nil
		}
		return err
	}); err != nil {
		return nil, err
	}
	if len(missing) == 0 {
		return nil, nil
	}
	rights := strings.Join(missing, " and ")
	return []Finding{{Check: "topic " + topic, Detail: "the account may not " + rights + " it", Fix: "allow the account " + rights + " on the topic"}}, nil
}
