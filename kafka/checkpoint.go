package kafka

import (
	"context"
	"encoding/json"
	"fmt"

	"lockstep/cdc"
)

// checkpointSpec is the topic of saved positions.
func checkpointSpec(prefix string) TopicSpec {
	return TopicSpec{Name: CheckpointTopic(prefix), Partitions: 1, Compacted: true}
}

// checkpointRecord is a position as it is saved. The key is epoch and run, so
// that compaction keeps the last position of each: a reader of an older epoch
// that is still alive somewhere cannot push out the newest one.
func checkpointRecord(prefix string, pos cdc.Position) (Record, error) {
	pos.Format = cdc.PositionFormat
	value, err := json.Marshal(pos)
	if err != nil {
		return Record{}, fmt.Errorf("save the source's position: %w", err)
	}
	return Record{Topic: CheckpointTopic(prefix), Key: fmt.Appendf(nil, "epoch-%d-%s", pos.Epoch, pos.Run), Value: value}, nil
}

// LoadCheckpoint returns the saved position of the pipeline: the one with the
// highest epoch and log clock, of equal ones the last. Within an epoch only the
// positions of the run that began it first count: another one has counted its
// clock from another place in the log. It makes the topic when it
// is not there, so that "nothing saved" is Kafka's word and not a stale listing's.
func LoadCheckpoint(ctx context.Context, c *Client, prefix string) (pos cdc.Position, found bool, err error) {
	if err := CheckPrefix(prefix); err != nil {
		return pos, false, err
	}
	if err := c.EnsureTopic(ctx, checkpointSpec(prefix)); err != nil {
		return pos, false, err
	}
	began := map[uint16]string{} // the run of each epoch
	err = c.ReadAll(ctx, CheckpointTopic(prefix), func(r Record) error {
		if r.Value == nil {
			return nil
		}
		var saved cdc.Position
		if err := json.Unmarshal(r.Value, &saved); err != nil {
			return fmt.Errorf("saved position at %s/%d offset %d: %w", r.Topic, r.Partition, r.Offset, err)
		}
		if saved.Format < 1 || saved.Format > cdc.PositionFormat {
			return fmt.Errorf("saved position at %s/%d offset %d has format %d and this program knows only %d; run the program that wrote it, or a newer one",
				r.Topic, r.Partition, r.Offset, saved.Format, cdc.PositionFormat)
		}
		if first, known := began[saved.Epoch]; known && first != saved.Run {
			return nil
		}
		began[saved.Epoch] = saved.Run
		if !found || saved.Epoch > pos.Epoch || (saved.Epoch == pos.Epoch && saved.Seq >= pos.Seq) {
			pos, found = saved, true
		}
		return nil
	})
	if err != nil {
		return cdc.Position{}, false, err
	}
	return pos, found, nil
}
