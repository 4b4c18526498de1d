package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"lockstep/cdc"
)

// checkpointInterval is the shortest time between two saved positions. What it
// costs is that much log read again after a crash.
const checkpointInterval = 50 * time.Millisecond

// positionsBuffer is room for the positions that are not acknowledged.
const positionsBuffer = 1 << 20

// ChangeLog is what the source writes its changes and positions into.
//
// The saved position is never ahead of Kafka: it is written only when every
// change published before it is acknowledged.
type ChangeLog struct {
	client    *Client
	publisher *Publisher
	positions *Publisher // of the checkpoint topic, where nothing waits for changes
	prefix    string
	cfg       Config
	metrics   *Metrics
	log       *slog.Logger
	traced    func(*cdc.Change, time.Time)

	publishing sync.Mutex // guards what follows; the order of Publish is its order
	topics     map[cdc.TableName]*changeTopic

	mu    sync.Mutex    // guards what follows
	asked int           // calls of Checkpoint
	safe  int           // of them, those before which everything is acknowledged
	pos   cdc.Position  // of the last of those
	saved int           // calls that a saved position covers
	moved chan struct{} // closed when saved or stopped changes
	ended bool          // Run has returned

	wake  chan struct{}
	hurry chan struct{}

	writer string // makes the keys of saved positions this change log's own
	tidied bool   // Run's: older positions are taken out of the topic
}

// NewChangeLog makes a change log whose topics begin with prefix. Publisher must
// be running for it to get anywhere.
func NewChangeLog(client *Client, publisher *Publisher, prefix string, cfg Config, metrics *Metrics, log *slog.Logger) *ChangeLog {
	small := cfg
	small.PublishBufferBytes = positionsBuffer
	return &ChangeLog{
		client: client, publisher: publisher, positions: NewPublisher(client, small, metrics, log), prefix: prefix, cfg: cfg, metrics: metrics, log: log,
		topics: make(map[cdc.TableName]*changeTopic),
		moved:  make(chan struct{}),
		wake:   make(chan struct{}, 1),
		hurry:  make(chan struct{}, 1),
		writer: uuid.NewString(),
	}
}

// Traced has fn told of every traced change of a row when it is acknowledged. Fn must be short. It is called
// before the first Publish.
func (l *ChangeLog) Traced(fn func(c *cdc.Change, acked time.Time)) { l.traced = fn }

// Publish queues c behind everything published before; nothing of c is kept. The
// first change of a table makes its topic. It waits while the publisher's budget
// is used up or the topic cannot be made because Kafka is away. An error means
// that c is not queued and never will be: a table whose name makes no topic, a
// topic with another number of partitions, a record too large (cdc.ErrTooLarge), the
// end of ctx, or the failure of the publisher. A change whose two rows are too large
// for one record goes without the large values of the row before.
//
// A barrier goes to every partition, to the first one only when all others have
// acknowledged it, so that whoever meets it there knows that it stands in all. A topic
// with fewer partitions than the configuration says gets the others, and before any
// change goes there every partition says so (cdc.Growth).
func (l *ChangeLog) Publish(ctx context.Context, c *cdc.Change) error {
	l.publishing.Lock()
	defer l.publishing.Unlock()
	topic, ok := l.topics[c.Table]
	if !ok {
		var err error
		if topic, err = l.makeTopic(ctx, c.Table); err != nil {
			return err
		}
		l.topics[c.Table] = topic
	}
	topic.encoder.Set(c)
	defer topic.encoder.Done()
	r := Record{Key: c.Key, Headers: topic.encoder.Headers(), encoder: topic.encoder}
	if c.CommitMicros != 0 {
		r.Time = time.UnixMicro(c.CommitMicros)
	}
	if c.Op == cdc.OpBarrier {
		return l.publishBarrier(ctx, topic, &r)
	}
	part := topic.partitions[PartitionFor(c.Key, len(topic.partitions))]
	err := l.publisher.publish(ctx, part, &r)
	if errors.Is(err, cdc.ErrTooLarge) && c.Before != nil {
		topic.encoder.TrimBefore()
		err = l.publisher.publish(ctx, part, &r)
	}
	if errors.Is(err, cdc.ErrTooLarge) {
		return fmt.Errorf("row %.200s of %s: %w", c.Key, c.Table, err)
	}
	if err == nil && l.traced != nil && c.Trace.Traced() {
		told := cdc.Change{Table: c.Table, Op: c.Op, Version: c.Version, GTID: c.GTID, CommitMicros: c.CommitMicros, Trace: c.Trace}
		l.publisher.AfterAcked(func() { l.traced(&told, time.Now()) })
	}
	return err
}

// publishBarrier returns when the barrier is everywhere. It is in partition 0 only
// once everything before it is in Kafka, and nothing behind it is before that.
func (l *ChangeLog) publishBarrier(ctx context.Context, topic *changeTopic, r *Record) error {
	for _, part := range topic.partitions[1:] {
		if err := l.publisher.publish(ctx, part, r); err != nil {
			return err
		}
	}
	if err := l.publisher.Flush(ctx); err != nil {
		return err
	}
	if err := l.publisher.publish(ctx, topic.partitions[0], r); err != nil {
		return err
	}
	return l.publisher.Flush(ctx)
}

// changeTopic is the topic of a table.
type changeTopic struct {
	partitions []*partition
	encoder    *cdc.Encoder
}

func (l *ChangeLog) makeTopic(ctx context.Context, table cdc.TableName) (*changeTopic, error) {
	if err := CheckPrefix(l.prefix); err != nil {
		return nil, err
	}
	name, err := ChangeTopic(l.prefix, table)
	if err != nil {
		return nil, err
	}
	if err := l.client.EnsureTopic(ctx, ChangeSpec(name, l.cfg.Partitions)); err != nil {
		return nil, err
	}
	topic := &changeTopic{partitions: make([]*partition, l.cfg.Partitions), encoder: cdc.NewEncoder(l.prefix, table)}
	for id := range topic.partitions {
		topic.partitions[id] = l.publisher.partition(name, id)
	}
	return topic, l.announceGrowth(ctx, name, table, topic)
}

// ChangeSpec is the topic of a table.
func ChangeSpec(name string, partitions int) TopicSpec {
	return TopicSpec{Name: name, Partitions: partitions, Grows: true}
}

// Grow gives topics that exist the partitions that they lack, also those of tables that
// do not change. It calls first before, if any lacks some.
func (l *ChangeLog) Grow(ctx context.Context, topics []string, first func(context.Context) error) error {
	l.publishing.Lock()
	defer l.publishing.Unlock()
	var grow []string
	for _, name := range topics {
		ends, err := l.client.EndOffsets(ctx, name)
		if err != nil {
			return err
		}
		if len(ends) < l.cfg.Partitions {
			grow = append(grow, name)
		}
	}
	if len(grow) > 0 {
		if err := first(ctx); err != nil {
			return err
		}
		// All at once, because it takes a second or two until one shows.
		if err := l.client.retry(ctx, "add partitions", func() error { return l.client.growTopics(ctx, l.cfg.Partitions, grow...) }); err != nil {
			return err
		}
	}
	for _, name := range topics {
		table, ok := TableOf(l.prefix, name)
		if !ok || l.topics[table] != nil {
			continue
		}
		topic, err := l.makeTopic(ctx, table)
		if err != nil {
			return err
		}
		l.topics[table] = topic
	}
	return nil
}

// announceGrowth puts the growths of a topic that has grown into its partitions (cdc.Growth).
// The last one, which needs no more than the second, gets it when everything else is in Kafka:
// so a topic has grown and does not say so if there was never a record in its last
// partition, wherever a capture was killed. (That is also so of one whose few rows have left
// it out. Nothing is wrong with a growth there.)
func (l *ChangeLog) announceGrowth(ctx context.Context, name string, table cdc.TableName, topic *changeTopic) error {
	c := cdc.Change{Table: table, Op: cdc.OpGrowth, Version: 1}
	last := len(topic.partitions) - 1
	for turn := range 2 {
		ends, err := l.client.EndOffsets(ctx, name)
		if err != nil {
			return err
		}
		c.Growth = &cdc.Growth{Partitions: len(topic.partitions), Behind: make([]int64, len(topic.partitions))}
		for id, end := range ends {
			c.Growth.Behind[id] = end
		}
		if c.Growth.Behind[last] > 0 || slices.Max(c.Growth.Behind) == 0 {
			return nil
		}
		if turn == 0 {
			// Whoever looks for the highest version among the newest records must find it still.
			newest, err := l.client.Newest(ctx, name)
			if err != nil {
				return err
			}
			for _, r := range newest {
				if other, err := cdc.DecodeHeaders(r.Key, r.Headers); err == nil {
					c.Version = max(c.Version, other.Version)
				}
			}
			l.log.Info("topic has got more partitions", "topic", name, "partitions", len(topic.partitions))
		}
		topic.encoder.Set(&c)
		r := Record{Headers: topic.encoder.Headers(), encoder: topic.encoder}
		for _, part := range topic.partitions[:last] {
			if err := l.publisher.publish(ctx, part, &r); err != nil {
				return err
			}
		}
		if err := l.publisher.Flush(ctx); err != nil {
			return err
		}
		if turn == 1 {
			if err := l.publisher.publish(ctx, topic.partitions[last], &r); err != nil {
				return err
			}
		}
		topic.encoder.Done()
	}
	return l.publisher.Flush(ctx)
}

// Checkpoint asks for pos to be saved once every change published before this
// call is acknowledged. It does not wait. When positions come faster than they
// can be saved, only the newest is.
func (l *ChangeLog) Checkpoint(ctx context.Context, pos cdc.Position) error {
	if err := context.Cause(l.publisher.failed); err != nil {
		return err
	}
	l.mu.Lock()
	l.asked++
	asked := l.asked
	l.mu.Unlock()
	l.publisher.AfterAcked(func() {
		l.mu.Lock()
		l.safe, l.pos = asked, pos
		l.mu.Unlock()
		signal(l.wake)
	})
	return nil
}

// Flush returns nil when every change published before is acknowledged and the
// newest position is saved. Run and the publisher must still be running: at the
// end, stop the source, flush, and then stop them.
func (l *ChangeLog) Flush(ctx context.Context) error {
	if err := l.publisher.Flush(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	asked := l.asked
	l.mu.Unlock()
	signal(l.hurry)
	for {
		l.mu.Lock()
		done, ended, moved := l.saved >= asked, l.ended, l.moved
		l.mu.Unlock()
		switch {
		case done:
			return nil
		case ended:
			return fmt.Errorf("save the source's position: %w", ErrStopped)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("save the source's position: %w", ctx.Err())
		case <-l.publisher.failed.Done():
			return context.Cause(l.publisher.failed)
		}
	}
}

// Run saves positions until ctx ends or one cannot be saved.
func (l *ChangeLog) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.Go(func() error { return l.positions.Run(ctx) })
	g.Go(func() error {
		defer cancel()
		return l.run(ctx)
	})
	return g.Wait()
}

func (l *ChangeLog) run(ctx context.Context) error {
	defer l.move(func() { l.ended = true })
	if err := EnsureCheckpoint(ctx, l.client, l.prefix); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.publisher.failed.Done():
			return nil // its own Run says why
		case <-l.wake:
		}
		if err := l.save(ctx); err != nil {
			if ctx.Err() != nil || l.publisher.failed.Err() != nil {
				return nil
			}
			return err
		}
		rest := time.NewTimer(checkpointInterval)
		select {
		case <-rest.C:
		case <-l.hurry:
		case <-ctx.Done():
		}
		rest.Stop()
	}
}

// save writes the newest position before which everything is acknowledged, and
// returns when it is acknowledged itself.
func (l *ChangeLog) save(ctx context.Context) error {
	l.mu.Lock()
	pos, safe, saved := l.pos, l.safe, l.saved
	l.mu.Unlock()
	if safe == saved {
		return nil
	}
	r, err := checkpointRecord(l.prefix, l.writer, pos)
	if err != nil {
		return err
	}
	if err := l.positions.Publish(ctx, r); err != nil {
		return err
	}
	if err := l.positions.Flush(ctx); err != nil {
		return err
	}
	l.metrics.checkpoints.Inc()
	l.move(func() { l.saved = safe })
	return l.tidy(ctx, r.Key, pos)
}

// tidy deletes, once, what earlier captures have saved: this one's first position
// is safe now and stands above theirs.
func (l *ChangeLog) tidy(ctx context.Context, own []byte, pos cdc.Position) error {
	if l.tidied {
		return nil
	}
	l.tidied = true
	keys, err := l.client.superseded(ctx, l.prefix, own, pos)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := l.positions.Publish(ctx, Record{Topic: CheckpointTopic(l.prefix), Key: key}); err != nil {
			return err
		}
	}
	return nil
}

// move changes what Flush waits for.
func (l *ChangeLog) move(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	close(l.moved)
	l.moved = make(chan struct{})
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
