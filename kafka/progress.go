package kafka

import "context"

// Progress gives for each partition of a topic the offset after its last record,
// and the offset to which a group has committed: 0 where it has committed nothing.
func (c *Client) Progress(ctx context.Context, group, topic string) (ends, committed map[int]int64, err error) {
	if ends, err = c.EndOffsets(ctx, topic); err != nil {
		return nil, nil, err
	}
	committed, err = c.committed(ctx, group, topic, len(ends))
	for id, offset := range committed {
		committed[id] = max(0, offset)
	}
	return ends, committed, err
}
