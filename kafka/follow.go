package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// followWait is how long a broker holds a fetch of Follow when it has nothing to give.
const followWait = 5 * time.Second

// Follow calls fn with the records of a partition, from its beginning on and in order,
// as they come; whole says that with these fn has had everything that the partition held
// when Follow was called. The first call may come without records. Each call has at most
// so many bytes of records, as stored in Kafka, or is one batch. Of a compacted topic
// every record comes that was not compacted away before it was read.
//
// It returns nil when ctx ends, and the first error of fn.
func (c *Client) Follow(ctx context.Context, topic string, partition, most int, fn func(records []Record, whole bool) error) error {
	var next, end int64
	what := fmt.Sprintf("follow %s/%d", topic, partition)
	err := c.retry(ctx, what, func() (err error) {
		next, end, err = c.bounds(ctx, topic, partition)
		return err
	})
	for first := true; err == nil; first = false {
		if first && next >= end {
			err = fn(nil, true)
			continue
		}
		var f fetched
		sure := surelyBeyond()
		err = c.retry(ctx, what, func() (err error) {
			f, err = c.fetch(ctx, topic, partition, next, most, followWait)
			if missing(err) && c.gone(ctx, topic) {
				return final{fmt.Errorf("topic %s was deleted while it was read; start lockstep again, which makes it anew: %w", topic, err)}
			}
			return sure(c.explainRange(ctx, err, "", topic, partition, next))
		})
		if err == nil && (len(f.records) > 0 || f.next > next) {
			next = f.next
			err = fn(f.records, next >= end)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Tail calls fn with the records that come to a partition from now on, in order, until ctx
// ends, and then returns nil; it returns the first error of fn, and one when the topic is
// gone. Each call has at most so many bytes, as stored in Kafka, or is one batch. The first
// call has no records: what is written behind it comes. Where records were removed before
// they were read, there is another one like that, and it goes on with what comes then.
func (c *Client) Tail(ctx context.Context, topic string, partition, most int, fn func(records []Record) error) error {
	what := fmt.Sprintf("tail %s/%d", topic, partition)
	next, begin := int64(0), true
	for {
		var f fetched
		err := c.retry(ctx, what, func() (err error) {
			if begin {
				_, f.next, err = c.bounds(ctx, topic, partition)
			} else {
				f, err = c.fetch(ctx, topic, partition, next, most, followWait)
			}
			if missing(err) && c.gone(ctx, topic) {
				return final{err}
			}
			if errors.Is(err, kafkago.OffsetOutOfRange) {
				return final{err}
			}
			return err
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, kafkago.OffsetOutOfRange):
			begin = true
			continue
		case err != nil:
			return err
		}
		news := begin || len(f.records) > 0
		next, begin = f.next, false
		if news {
			if err := fn(f.records); err != nil {
				return err
			}
		}
	}
}

// ReadAt calls fn with the records of a partition at these offsets, which ascend. Those
// that were compacted away are left out. It stops at fn's first error.
func (c *Client) ReadAt(ctx context.Context, topic string, partition int, offsets []int64, fn func(Record) error) error {
	what := fmt.Sprintf("read %s/%d", topic, partition)
	for empty := 0; len(offsets) > 0; {
		var f fetched
		err := c.retry(ctx, what, func() (err error) {
			f, err = c.fetch(ctx, topic, partition, offsets[0], min(readAtBytes, c.cfg.FetchMaxBytes), fetchWait)
			return c.explainRange(ctx, err, "", topic, partition, offsets[0])
		})
		if err != nil {
			return err
		}
		if f.next > offsets[0] {
			empty = 0
		} else if empty++; empty == emptyFetches {
			return fmt.Errorf("%s: %w: the broker gives nothing from %d on", what, ErrDataLost, offsets[0])
		}
		for _, r := range f.records {
			for len(offsets) > 0 && offsets[0] < r.Offset {
				offsets = offsets[1:]
			}
			if len(offsets) > 0 && offsets[0] == r.Offset {
				if err := fn(r); err != nil {
					return err
				}
			}
		}
		for len(offsets) > 0 && offsets[0] < f.next {
			offsets = offsets[1:]
		}
	}
	return nil
}

// readAtBytes is how much one fetch of ReadAt asks for: what is wanted may lie close
// together or far apart.
const readAtBytes = 256 << 10
