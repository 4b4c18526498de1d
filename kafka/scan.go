package kafka

import (
	"context"
	"fmt"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// Scan calls fn with the records that the topics hold at this moment, partition by
// partition and in order, and stops at fn's first error. With a time, a partition is
// read from its first record that is not older on, whatever the time of those behind
// it. Cut tells that records before this one are gone from its partition.
func (c *Client) Scan(ctx context.Context, topics []string, since time.Time, fn func(r Record, cut bool) error) error {
	for _, topic := range topics {
		starts, err := c.StartOffsets(ctx, topic)
		if err != nil {
			return err
		}
		ends, err := c.EndOffsets(ctx, topic)
		if err != nil {
			return err
		}
		from := starts
		if !since.IsZero() {
			if from, err = c.offsetsSince(ctx, topic, since, ends); err != nil {
				return err
			}
		}
		for partition := range len(ends) {
			start := starts[partition]
			first := max(from[partition], start)
			oldest := start > 0 && first == start
			err := c.readRange(ctx, topic, partition, first, ends[partition], func(r Record) error {
				cut := oldest
				oldest = false
				return fn(r, cut)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// offsetsSince asks for the first offset of each partition whose record is not older
// than since; where there is none, it is the end.
func (c *Client) offsetsSince(ctx context.Context, topic string, since time.Time, ends map[int]int64) (map[int]int64, error) {
	offsets := make(map[int]int64, len(ends))
	err := c.retry(ctx, "offsets of topic "+topic, func() error {
		ask := make([]kafkago.OffsetRequest, len(ends))
		for i := range ask {
			ask[i] = kafkago.TimeOffsetOf(i, since)
		}
		res, err := c.api.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{topic: ask}})
		if err != nil {
			return err
		}
		clear(offsets)
		for _, p := range res.Topics[topic] {
			if p.Error != nil {
				return fmt.Errorf("partition %d: %w", p.Partition, p.Error)
			}
			offsets[p.Partition] = ends[p.Partition]
			for offset := range p.Offsets {
				if offset >= 0 {
					offsets[p.Partition] = offset
				}
			}
		}
		if len(offsets) != len(ends) {
			return fmt.Errorf("%d of %d partitions answered", len(offsets), len(ends))
		}
		return nil
	})
	return offsets, err
}
