package kafka

import (
	"context"
	"fmt"
	"slices"
)

// emptyFetches is how many answers without a record, in a row and before the end
// of the log, are taken for a broker that cannot give what it promises.
const emptyFetches = 20

// ReadAll calls fn with every record that the topic holds at this moment,
// partition by partition and in order, and stops at fn's first error. Of a
// compacted topic that is at least the newest record of each key.
func (c *Client) ReadAll(ctx context.Context, topic string, fn func(Record) error) error {
	starts, err := c.StartOffsets(ctx, topic)
	if err != nil {
		return err
	}
	ends, err := c.EndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	for partition := range len(ends) {
		if err := c.readRange(ctx, topic, partition, starts[partition], ends[partition], fn); err != nil {
			return err
		}
	}
	return nil
}

// Newest returns the newest record of each partition that has one, by partition.
func (c *Client) Newest(ctx context.Context, topic string) ([]Record, error) {
	starts, err := c.StartOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	ends, err := c.EndOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	var newest []Record
	for partition := range len(ends) {
		start, end := starts[partition], ends[partition]
		found := false
		// The last offset may be empty, so look ever further back.
		for back := int64(1); !found && end > start; back *= 8 {
			from := max(start, end-back)
			err := c.readRange(ctx, topic, partition, from, end, func(r Record) error {
				if !found {
					newest, found = append(newest, r), true
				}
				newest[len(newest)-1] = r
				return nil
			})
			if err != nil {
				return nil, err
			}
			if from == start {
				break
			}
		}
	}
	return slices.Clip(newest), nil
}

// readRange calls fn with the records at offsets from to end-1.
func (c *Client) readRange(ctx context.Context, topic string, partition int, from, end int64, fn func(Record) error) error {
	what := fmt.Sprintf("read %s/%d", topic, partition)
	for next, empty := from, 0; next < end; {
		var f fetched
		err := c.retry(ctx, what, func() (err error) {
			f, err = c.fetch(ctx, topic, partition, next, c.cfg.FetchMaxBytes, fetchWait)
			if missing(err) && c.gone(ctx, topic) {
				return final{err}
			}
			return c.explainRange(ctx, err, "", topic, partition, next)
		})
		if err != nil {
			return err
		}
		for _, r := range f.records {
			if r.Offset >= end {
				break
			}
			if err := fn(r); err != nil {
				return err
			}
		}
		if f.next > next {
			next, empty = f.next, 0
		} else if empty++; empty == emptyFetches {
			return fmt.Errorf("%s: %w: the log ends at %d and the broker gives nothing from %d on", what, ErrDataLost, end, next)
		}
	}
	return nil
}

// ReadFrom calls fn with the records that a partition holds at this moment from an
// offset on, in order, and returns the offset at which to go on. It stops at fn's first
// error. Records before the beginning of the log are not there and not missed; an offset behind
// its end is an error that wraps ErrDataLost: the topic was made anew.
func (c *Client) ReadFrom(ctx context.Context, topic string, partition int, from int64, fn func(Record) error) (int64, error) {
	var start, end int64
	sure := surelyBeyond()
	err := c.retry(ctx, fmt.Sprintf("offsets of %s/%d", topic, partition), func() (err error) {
		start, end, err = c.bounds(ctx, topic, partition)
		if missing(err) && c.gone(ctx, topic) {
			return final{err}
		}
		if err == nil && from > end {
			err = beyondEnd(from, end, "")
		}
		return sure(err)
	})
	if err != nil {
		return from, err
	}
	from = max(from, start)
	if from >= end {
		return from, nil
	}
	return end, c.readRange(ctx, topic, partition, from, end, fn)
}

// ReadRange calls fn with the records of a partition at the offsets from up to and without
// to, which must be within the log's end, in order, and stops at fn's first error. Those
// that are gone from the beginning of the log are left out, and cut says that there were some.
func (c *Client) ReadRange(ctx context.Context, topic string, partition int, from, to int64, fn func(Record) error) (cut bool, err error) {
	var start int64
	err = c.retry(ctx, fmt.Sprintf("offsets of %s/%d", topic, partition), func() (err error) {
		start, _, err = c.bounds(ctx, topic, partition)
		return err
	})
	if err != nil {
		return false, err
	}
	return start > from, c.readRange(ctx, topic, partition, max(from, start), to, fn)
}
