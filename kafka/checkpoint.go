package kafka

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"lockstep/cdc"
)

// CheckpointSpec is the topic of saved positions.
func CheckpointSpec(prefix string) TopicSpec {
	return TopicSpec{Name: CheckpointTopic(prefix), Partitions: 1, Compacted: true}
}

// EnsureCheckpoint makes the topic of saved positions if it is not there.
func EnsureCheckpoint(ctx context.Context, c *Client, prefix string) error {
	if err := CheckPrefix(prefix); err != nil {
		return err
	}
	return c.EnsureTopic(ctx, CheckpointSpec(prefix))
}

// checkpointRecord is a position as it is saved. The key is epoch, run and the
// writer's own, so that compaction keeps the last position of each: a capture that
// was taken over from and still writes somewhere cannot push out the newest one.
func checkpointRecord(prefix, writer string, pos cdc.Position) (Record, error) {
	pos.Format = cdc.PositionFormat
	value, err := json.Marshal(pos)
	if err != nil {
		return Record{}, fmt.Errorf("save the source's position: %w", err)
	}
	return Record{Topic: CheckpointTopic(prefix), Key: fmt.Appendf(nil, "epoch-%d-%s-%s", pos.Epoch, pos.Run, writer), Value: value}, nil
}

// older orders positions by epoch, term and log clock.
func older(a, b cdc.Position) bool {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Term, b.Term), cmp.Compare(a.Seq, b.Seq)) < 0
}

// LoadCheckpoint returns the saved position of the pipeline: the one with the
// highest epoch, term and log clock, of equal ones the last. Within an epoch only
// the positions of the run that began it first count: another one has counted its
// clock from another place in the log. It makes the topic when it
// is not there, so that "nothing saved" is Kafka's word and not a stale listing's.
func LoadCheckpoint(ctx context.Context, c *Client, prefix string) (pos cdc.Position, found bool, err error) {
	if err := EnsureCheckpoint(ctx, c, prefix); err != nil {
		return pos, false, err
	}
	return findCheckpoint(ctx, c, prefix)
}

// PeekCheckpoint is LoadCheckpoint for who only looks: it makes no topic.
func PeekCheckpoint(ctx context.Context, c *Client, prefix string) (cdc.Position, bool, error) {
	topics, err := c.Topics(ctx)
	if err != nil || !slices.Contains(topics, CheckpointTopic(prefix)) {
		return cdc.Position{}, false, err
	}
	return findCheckpoint(ctx, c, prefix)
}

func findCheckpoint(ctx context.Context, c *Client, prefix string) (pos cdc.Position, found bool, err error) {
	var newest newestPosition
	err = c.readCheckpoints(ctx, prefix, func(_ []byte, saved cdc.Position) { newest.note(saved) })
	if err != nil {
		return cdc.Position{}, false, err
	}
	return newest.pos, newest.found, nil
}

// newestPosition finds the position that counts among all that were saved.
type newestPosition struct {
	began map[uint16]string // the run of each epoch
	pos   cdc.Position
	found bool
}

func (n *newestPosition) note(saved cdc.Position) {
	if first, known := n.began[saved.Epoch]; known && first != saved.Run {
		return
	}
	if n.began == nil {
		n.began = map[uint16]string{}
	}
	n.began[saved.Epoch] = saved.Run
	if !n.found || !older(saved, n.pos) {
		n.pos, n.found = saved, true
	}
}

// Positions follows the saved positions of a pipeline. It is for one goroutine.
type Positions struct {
	client *Client
	prefix string
	next   int64
	newest newestPosition
}

// NewPositions follows the positions from the beginning of their topic, which must be
// there (EnsureCheckpoint).
func NewPositions(c *Client, prefix string) *Positions { return &Positions{client: c, prefix: prefix} }

// Load is LoadCheckpoint that reads only what is new since it was called before.
func (p *Positions) Load(ctx context.Context) (pos cdc.Position, found bool, err error) {
	next, err := p.client.ReadFrom(ctx, CheckpointTopic(p.prefix), 0, p.next, func(r Record) error {
		return decodeCheckpoint(r, func(_ []byte, saved cdc.Position) { p.newest.note(saved) })
	})
	switch {
	case err == nil:
		p.next = next
	case errors.Is(err, errBeyondEnd):
		p.next = 0
	}
	return p.newest.pos, p.newest.found, err
}

// readCheckpoints calls fn with every position that is saved and its key, in the
// order in which they were.
func (c *Client) readCheckpoints(ctx context.Context, prefix string, fn func(key []byte, saved cdc.Position)) error {
	return c.ReadAll(ctx, CheckpointTopic(prefix), func(r Record) error { return decodeCheckpoint(r, fn) })
}

func decodeCheckpoint(r Record, fn func(key []byte, saved cdc.Position)) error {
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
	fn(r.Key, saved)
	return nil
}

// superseded lists the keys whose last position pos has made useless: those of its
// own run and of earlier epochs. A capture that was taken over from may still write
// under such a key; what it writes is older by its term.
func (c *Client) superseded(ctx context.Context, prefix string, own []byte, pos cdc.Position) (keys [][]byte, err error) {
	last := map[string]cdc.Position{}
	err = c.readCheckpoints(ctx, prefix, func(key []byte, saved cdc.Position) { last[string(key)] = saved })
	for key, saved := range last {
		if key != string(own) && older(saved, pos) && (saved.Epoch < pos.Epoch || saved.Run == pos.Run) {
			keys = append(keys, []byte(key))
		}
	}
	return keys, err
}
