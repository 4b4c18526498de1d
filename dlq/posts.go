package dlq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// PartitionLog is the part of Kafka that posts need.
type PartitionLog interface {
	Log
	// Follow calls fn with the records of a partition from its beginning on, in order, as
	// they come. whole says that with these fn has had everything that was there at first.
	// It returns nil when ctx ends, and fn's first error.
	Follow(ctx context.Context, topic string, partition, most int, fn func(records []kafka.Record, whole bool) error) error
	// EndOffsets gives for each partition the offset behind its last record.
	EndOffsets(ctx context.Context, topic string) (map[int]int64, error)
	// ReadAt calls fn with the records at these offsets, which ascend. Those that were
	// compacted away are left out.
	ReadAt(ctx context.Context, topic string, partition int, offsets []int64, fn func(kafka.Record) error) error
}

// Posts look after the letters of a sink: whoever owns a partition of the change topics
// has the post of that partition. It writes the letters of what the store refuses, tries
// those again that may pass, and closes those of rows that the live stream has brought up
// to date. All of them stand in the letters' topic in the same partition, so nobody else
// does that at the same time, save operators, whose guard is the store's.
//
// A post knows its letters from nothing but their topic, its own writes included; so one
// that begins after a kill knows what one knows that was never killed. Why nothing is
// lost, and nothing stays open, wherever a process dies:
//
//   - before a letter is acknowledged, its record's offset is not committed: it is read
//     again, and refused again or taken;
//   - before the end of a letter is acknowledged, the offset of the change that brought it
//     about is not committed: it is read again, the store calls it a duplicate or stale,
//     and that ends the letter;
//   - between an attempt and the record of it, the attempt is made once more, and the
//     store's guard makes that harmless;
//   - while a post does not yet know all its letters no offset is committed at all; what
//     the stream settles meanwhile is remembered, and reading waits when that is much;
//   - when a topic has got more partitions a letter is written to the partition where the
//     changes of its row come from then on, before it is ended in the old one, and both
//     before the offset of the first growth is committed. No change behind the second one is
//     read before that anywhere (sinks), so whatever brings the row up to date finds the letter.
type Posts struct {
	*Letters
	Log PartitionLog
	// Try gives changes of a topic to the store, beside the live stream: a Worker's Try.
	Try     func(ctx context.Context, topic string, changes []cdc.Change) []sinks.Outcome
	Retries []time.Duration // waits before the attempts
	// HoldMin and HoldMax bound the waits between attempts while the store is unavailable.
	HoldMin, HoldMax time.Duration
	// Loading bounds how many posts of a process read their letters at once, which costs
	// memory.
	Loading chan struct{}
	Metrics *Metrics

	mu    sync.Mutex
	posts map[int]*post
	byID  sync.Map // the same, without a lock for the live stream
}

// RunPartition gives p to run, which is a Worker's RunPartition, with the post of its
// partition beside it.
func (p *Posts) RunPartition(ctx context.Context, part sinks.Partition, run func(context.Context, sinks.Partition) error) error {
	topic, id := part.Name()
	running, stop := context.WithCancel(ctx)
	defer stop()
	at := p.enter(running, topic, id)
	defer p.leave(at, topic)
	defer context.AfterFunc(at.over, stop)()
	err := run(running, posted{part, at, running})
	if failure := context.Cause(at.over); failure != nil {
		return errors.Join(err, fmt.Errorf("sink %s: dead letters of partition %d: %w", p.Sink, id, failure))
	}
	return err
}

// enter begins the post of a partition, or joins it.
func (p *Posts) enter(ctx context.Context, topic string, id int) *post {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.posts == nil {
		p.posts = make(map[int]*post)
	}
	at := p.posts[id]
	if at == nil {
		at = newPost(p, id)
		p.posts[id] = at
		p.byID.Store(id, at)
		p.Metrics.enter(at)
		at.start(context.WithoutCancel(ctx)) // it ends when the last one has left
	}
	at.users++
	at.own(topic, 1, ctx)
	return at
}

func (p *Posts) leave(at *post, topic string) {
	at.own(topic, -1, context.Background())
	p.mu.Lock()
	at.users--
	last := at.users == 0
	if last {
		delete(p.posts, at.id)
		p.byID.Delete(at.id)
	}
	p.mu.Unlock()
	if last {
		at.stop()
		p.Metrics.leave(at)
	}
}

func (p *Posts) at(partition int) *post {
	at, ok := p.byID.Load(partition)
	if !ok {
		return nil
	}
	return at.(*post)
}

// Bury writes the letter of a refused record and returns when it is safe, so that the
// record's offset may be committed. It writes none where a letter of the row is open that
// is not older. Within RunPartition it is a Worker's Bury.
func (p *Posts) Bury(ctx context.Context, r sinks.Refusal) error {
	at := p.at(r.Record.Partition)
	if at == nil {
		return fmt.Errorf("bury %s/%d/%d: the partition has no post", r.Record.Topic, r.Record.Partition, r.Record.Offset)
	}
	return at.bury(ctx, r)
}

// Settled ends the letters that a change makes void: that of its row, if it is not newer;
// of a barrier those of its table. Within RunPartition it is a Worker's Settled.
func (p *Posts) Settled(partition int, c *cdc.Change, v sinks.Verdict) {
	if at := p.at(partition); at != nil {
		at.settled(c, v)
	}
}

// Retrying is how many letters of this process are tried again by themselves.
func (p *Posts) Retrying() (n int64) {
	p.byID.Range(func(_, at any) bool {
		n += at.(*post).count(Retrying)
		return true
	})
	return n
}

// Open are open letters of a table, in the partitions of this process.
type Open struct {
	Letters int
	// Failed is the first failure of the letter that waits longest.
	Failed time.Time
	// Committed is when the oldest change was committed that the store lacks, of a letter or
	// of one that it has replaced, to the second below; zero when nobody knows that of any.
	Committed time.Time
	// Blind are letters of which nobody knows that: of rows of a copy, and of records that
	// nobody can read.
	Blind int
}

// Open are the open letters of this process by table. It reports false while letters are
// still being read, of which it says nothing.
func (p *Posts) Open() (byTable map[string]Open, all bool) {
	byTable, all = make(map[string]Open), true
	p.byID.Range(func(_, at any) bool {
		all = at.(*post).addOpen(byTable) && all
		return true
	})
	return byTable, all
}

// OpenIn counts the open letters of a partition of a topic, those left out whose row the
// stream has brought up to date since. It is -1 while they are not all known, or are
// moved to another partition, and where the partition has no post here.
func (p *Posts) OpenIn(topic string, partition int) int {
	if at := p.at(partition); at != nil {
		return at.openIn(topic)
	}
	return -1
}

// Guard is the sink for a Worker. It sweeps a table when no attempt with one of its
// letters is under way any more that the barrier has made void: one that ends later would
// bring the row back.
func (p *Posts) Guard(s sinks.Sink) sinks.Sink { return guarded{s, p} }

type guarded struct {
	sinks.Sink
	posts *Posts
}

func (g guarded) Sweep(ctx context.Context, table cdc.TableName, v cdc.Version) (int, error) {
	if at := g.posts.at(0); at != nil { // the others have committed their barriers
		if err := at.flush(ctx, ctx); err != nil {
			return 0, err
		}
	}
	return g.Sink.Sweep(ctx, table, v)
}

// posted is a partition with a post beside it.
type posted struct {
	sinks.Partition
	post    *post
	running context.Context
}

// Fetch waits while the post has much to remember.
func (p posted) Fetch(ctx context.Context, most int) ([]kafka.Record, error) {
	if err := p.post.room(ctx); err != nil {
		return nil, err
	}
	return p.Partition.Fetch(ctx, most)
}

// Commit waits until the letters are closed that were to be closed for what it covers.
func (p posted) Commit(ctx context.Context, next int64) error {
	if err := p.post.flush(ctx, p.running); err != nil {
		return err
	}
	return p.Partition.Commit(ctx, next)
}
