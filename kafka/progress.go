package kafka

import (
	"context"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"
)

// Progress gives for each partition of a topic the offset after its last record,
// and the offset to which a group has committed: 0 where it has committed nothing.
func (c *Client) Progress(ctx context.Context, group, topic string) (ends, committed map[int]int64, err error) {
	if ends, err = c.EndOffsets(ctx, topic); err != nil {
		return nil, nil, err
	}
	ask := make([]int, 0, len(ends))
	for id := range ends {
		ask = append(ask, id)
	}
	committed = make(map[int]int64, len(ends))
	err = c.retry(ctx, "offsets of group "+group, func() error {
		res, err := c.api.OffsetFetch(ctx, &kafkago.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: ask}})
		if err != nil {
			return err
		}
		if res.Error != nil {
			return res.Error
		}
		for _, p := range res.Topics[topic] {
			if p.Error != nil {
				return fmt.Errorf("partition %d: %w", p.Partition, p.Error)
			}
			committed[p.Partition] = max(0, p.CommittedOffset)
		}
		return nil
	})
	return ends, committed, err
}
