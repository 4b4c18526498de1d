package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kafkago "github.com/segmentio/kafka-go"
)

// ErrRevoked is wrapped by Fetch and Commit when the partition has been, or is
// about to be, given to another member of the group, or the group cannot be
// reached. A Handle may return it: the partition will be handed out again.
var ErrRevoked = errors.New("partition revoked")

const (
	heartbeatInterval = time.Second
	joinBackoff       = 500 * time.Millisecond
	lagInterval       = 2 * time.Second
)

// ConsumeConfig says what a group reads and what becomes of it.
type ConsumeConfig struct {
	// Group is the consumer group.
	Group string
	// Topics gives the topics to read. It is asked at the start and every
	// TopicsInterval; when the answer has changed, or one of them has got more partitions,
	// the group begins anew with it.
	Topics func(ctx context.Context) ([]string, error)
	// TopicsInterval defaults to three seconds.
	TopicsInterval time.Duration
	// Handle owns one partition until its ctx ends: it fetches, applies and
	// commits. When ctx ends it finishes what is in flight, commits, and returns
	// within Client.DrainTime; nobody else gets the partition before. Its error
	// ends Consume, unless it is ErrRevoked or the end of ctx.
	Handle func(ctx context.Context, p *Partition) error
	// Member, if set, is told when this process has got its share of the partitions,
	// which may be none, and when that share is over.
	Member func(in bool)
	// Metrics may be nil.
	Metrics *Metrics
	Log     *slog.Logger
}

// DrainTime is how long a Handle may take to return once its ctx has ended: half
// of the session timeout, behind which the group gives the partition away.
func (c *Client) DrainTime() time.Duration { return c.cfg.SessionTimeout / 2 }

// Consume reads as a member of a group until ctx ends, then leaves the group and
// returns nil. It returns the first error of a Handle, or that of a group that
// does not let us in. While Kafka is away it tries again for ever.
//
// Partitions are assigned by range: whoever has partition p of one topic has p of
// every topic with as many partitions. Right after the set of topics has changed
// this can be broken for some seconds, until every member has seen the change.
func (c *Client) Consume(ctx context.Context, cc ConsumeConfig) error {
	if cc.TopicsInterval == 0 {
		cc.TopicsInterval = 3 * time.Second
	}
	for ctx.Err() == nil {
		topics, err := c.awaitTopics(ctx, cc, layout{})
		if err != nil {
			return err
		}
		if err := c.session(ctx, cc, topics); err != nil {
			return fmt.Errorf("group %s: %w", cc.Group, err)
		}
	}
	return nil
}

// layout is which topics a group reads, and how many partitions each of them had.
type layout struct {
	topics     []string
	partitions map[string]int
}

// differs reports whether there are other topics than before, or more partitions. A topic
// that cannot be seen now does not count.
func (l layout) differs(before layout) bool {
	for topic, n := range l.partitions {
		if n > before.partitions[topic] {
			return true
		}
	}
	return !slices.Equal(l.topics, before.topics)
}

// layout looks at topics. What cannot be seen now is left out.
func (c *Client) layout(ctx context.Context, topics []string) layout {
	l := layout{topics, map[string]int{}}
	if meta, err := c.api.Metadata(ctx, &kafkago.MetadataRequest{Topics: topics}); err == nil {
		for _, t := range meta.Topics {
			if t.Error == nil {
				l.partitions[t.Name] = len(t.Partitions)
			}
		}
	}
	return l
}

// awaitTopics returns the topics once there are some and they differ from old. It
// returns none when ctx ends.
func (c *Client) awaitTopics(ctx context.Context, cc ConsumeConfig, old layout) (layout, error) {
	tick := time.NewTicker(cc.TopicsInterval)
	defer tick.Stop()
	for {
		topics, err := cc.Topics(ctx)
		if ctx.Err() != nil {
			return layout{}, nil
		}
		if err != nil {
			return layout{}, fmt.Errorf("topics of group %s: %w", cc.Group, err)
		}
		topics = slices.Clone(topics)
		slices.Sort(topics)
		topics = slices.Compact(topics)
		if len(topics) > 0 {
			if now := c.layout(ctx, topics); now.differs(old) {
				return now, nil
			}
		}
		select {
		case <-ctx.Done():
			return layout{}, nil
		case <-tick.C:
		}
	}
}

// session is a member's life in the group with one set of topics. It returns nil
// when ctx has ended or the topics have changed, and every Handle has returned.
func (c *Client) session(ctx context.Context, cc ConsumeConfig, topics layout) error {
	if len(topics.topics) == 0 {
		return nil
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	group, err := kafkago.NewConsumerGroup(kafkago.ConsumerGroupConfig{
		ID:                cc.Group,
		Brokers:           c.cfg.Brokers,
		Dialer:            c.dialer,
		Topics:            topics.topics,
		GroupBalancers:    []kafkago.GroupBalancer{kafkago.RangeGroupBalancer{}},
		HeartbeatInterval: heartbeatInterval,
		SessionTimeout:    c.cfg.SessionTimeout,
		RebalanceTimeout:  c.cfg.SessionTimeout,
		JoinGroupBackoff:  joinBackoff,
		StartOffset:       kafkago.FirstOffset,
	})
	if err != nil {
		return err
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		news, err := c.awaitTopics(ctx, cc, topics)
		if err != nil {
			end(final{err})
		} else if news.topics != nil {
			cc.Log.Info("topics changed, joining the group anew", "group", cc.Group, "topics", len(news.topics))
			end(nil)
		}
	})

	poll := newPoller(ctx, c)
	seen := c.health.watch()
	for ctx.Err() == nil {
		gen, err := group.Next(ctx)
		err = c.named(err)
		if err != nil {
			if ctx.Err() == nil && c.hopeless(err) {
				end(final{err})
			} else if ctx.Err() == nil && !errors.Is(err, kafkago.RebalanceInProgress) {
				seen.failed(err)
			}
			continue
		}
		seen.done()
		c.begin(ctx, end, cc, poll, gen)
	}
	seen.gaveUp()
	group.Close() // ends the generation, waits for every Handle, leaves
	tasks.Wait()
	if failure, ok := errors.AsType[final](context.Cause(ctx)); ok {
		return failure.error
	}
	return nil
}

// begin starts a Handle for each partition of a generation. The group does not
// join again before all of them have returned.
func (c *Client) begin(ctx context.Context, end context.CancelCauseFunc, cc ConsumeConfig, poll *poller, gen *kafkago.Generation) {
	if cc.Member != nil {
		gen.Start(func(generation context.Context) {
			if generation.Err() != nil { // over already: nobody would wait for us
				return
			}
			cc.Member(true)
			<-generation.Done()
			cc.Member(false)
		})
	}
	owned := make(map[string][]*Partition)
	for topic, assigned := range gen.Assignments {
		for _, a := range assigned {
			p := &Partition{Topic: topic, ID: a.ID, client: c, poller: poll, gen: gen, next: a.Offset, committed: a.Offset, first: -1}
			if cc.Metrics != nil {
				p.lag = cc.Metrics.lag
			}
			owned[topic] = append(owned[topic], p)
			gen.Start(func(generation context.Context) {
				if generation.Err() != nil { // over already: nobody would wait for us
					return
				}
				if err := c.handle(ctx, generation, cc, p); err != nil {
					end(final{fmt.Errorf("%s/%d: %w", p.Topic, p.ID, err)})
				}
			})
		}
	}
	if cc.Metrics != nil {
		gen.Start(func(generation context.Context) { c.watchLag(ctx, generation, owned) })
	}
}

// watchLag keeps the lag of partitions true while nobody fetches from them, which
// is when it matters most: a store that is away holds them.
func (c *Client) watchLag(session, generation context.Context, owned map[string][]*Partition) {
	ctx, cancel := context.WithCancel(session)
	defer cancel()
	defer context.AfterFunc(generation, cancel)()
	tick := time.NewTicker(lagInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for topic, partitions := range owned {
			ends, err := c.EndOffsets(ctx, topic)
			if err != nil {
				continue // the end of ctx, or a topic that is gone: its fetches say so
			}
			for _, p := range partitions {
				p.setEnd(ends[p.ID])
			}
		}
	}
}

// handle runs Handle until the session or the generation ends, and returns only
// an error that ends Consume.
func (c *Client) handle(session, generation context.Context, cc ConsumeConfig, p *Partition) error {
	ctx, cancel := context.WithCancelCause(session)
	defer cancel(nil)
	defer context.AfterFunc(generation, func() { cancel(ErrRevoked) })()
	var returned atomic.Bool
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(c.DrainTime(), func() {
			if !returned.Load() {
				cc.Log.Warn("partition takes too long to drain; another member may get it before it is done",
					"group", cc.Group, "topic", p.Topic, "partition", p.ID, "allowed", c.DrainTime())
			}
		})
	})()
	err := cc.Handle(ctx, p)
	returned.Store(true)
	p.forget()
	if err == nil || errors.Is(err, ErrRevoked) {
		return nil
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return nil
	}
	return err
}

// Partition is one partition in the hands of a Handle. It is for one goroutine,
// except Commit and Lag, which any may call.
type Partition struct {
	Topic string
	ID    int

	client *Client
	poller *poller
	gen    *kafkago.Generation
	lag    *prometheus.GaugeVec
	next   int64 // offset to fetch; negative while the group has none

	mu        sync.Mutex
	committed int64
	end       int64
	sound     bool  // the last try to fetch had an answer
	first     int64 // the end of the log when the first one had since it begins where it begins; -1 before that
	gone      bool  // the gauge is deleted and must not come back
}

// Fetch waits up to half a second for records behind those it has returned, the
// first time behind the committed offset, and returns none when there are none.
// While Kafka is away it waits for as long as ctx lasts; then its error is the
// cause of ctx's end, ErrRevoked when the partition has to be given back. An
// error that wraps ErrDataLost means that the next record is not in Kafka.
//
// A group that has committed nothing begins at offset 0. When retention has
// removed that, it is refused as data lost: a sink that never saw those records
// needs a new initial copy.
func (p *Partition) Fetch(ctx context.Context) ([]Record, error) {
	return p.FetchAtMost(ctx, p.client.cfg.FetchMaxBytes)
}

// FetchAtMost is Fetch with a lower bound than Config.FetchMaxBytes on the bytes, as
// stored in Kafka. A single batch that is larger gets through.
func (p *Partition) FetchAtMost(ctx context.Context, bytes int) ([]Record, error) {
	bytes = min(bytes, p.client.cfg.FetchMaxBytes)
	var f fetched
	sure := surelyBeyond()
	err := p.client.retry(ctx, fmt.Sprintf("fetch %s/%d", p.Topic, p.ID), func() (err error) {
		if p.next < 0 {
			start, _, err := p.client.bounds(ctx, p.Topic, p.ID)
			if err != nil {
				return err
			}
			if start > 0 {
				return final{fmt.Errorf("%w: group %s has never committed an offset and the log begins at %d, so it would miss what retention has removed; take a new initial copy of the table, then let the group begin there with kafka-consumer-groups.sh --group %s --topic %s:%d --reset-offsets --to-offset %d --execute",
					ErrDataLost, p.gen.GroupID, start, p.gen.GroupID, p.Topic, p.ID, start)}
			}
			p.next = 0
			p.setCommitted(0)
		}
		f, err = p.poller.fetch(ctx, p.Topic, p.ID, p.next, bytes)
		p.heard(err == nil, f.end)
		return sure(p.client.explainRange(ctx, err, p.gen.GroupID, p.Topic, p.ID, p.next))
	})
	if err != nil {
		return nil, err
	}
	p.next = f.next
	p.setEnd(f.end)
	return f.records, nil
}

// Place gives the offset that Fetch goes on with, negative while the group has
// none, and the one with which the log begins.
func (p *Partition) Place(ctx context.Context) (next, start int64, err error) {
	err = p.client.retry(ctx, fmt.Sprintf("begin of %s/%d", p.Topic, p.ID), func() (err error) {
		start, _, err = p.client.bounds(ctx, p.Topic, p.ID)
		return err
	})
	return p.next, start, err
}

// GoTo makes Fetch go on with an offset, which may be one it has returned.
func (p *Partition) GoTo(next int64) {
	p.next = next
	p.mu.Lock()
	p.first = -1
	p.mu.Unlock()
	p.setCommitted(next)
	p.showLag()
}

var errBeyondEnd = fmt.Errorf("%w: offset behind the end of the log", ErrDataLost)

func beyondEnd(offset, end int64, mend string) error {
	return fmt.Errorf("%w: offset %d is wanted and the log ends at %d, so the topic was made anew or its end was lost%s", errBeyondEnd, offset, end, mend)
}

// surelyBeyond is for the answers to one request that is sent again and again: the tenth that says
// that the offset is behind the end of the log is final. During a change of leader it can look so for
// a moment.
func surelyBeyond() func(error) error {
	times := 0
	return func(err error) error {
		if errors.Is(err, errBeyondEnd) {
			if times++; times == 10 {
				return final{err}
			}
		}
		return err
	}
}

// explainRange turns "offset out of range" into what it means, by asking where
// the log begins and ends. Other errors pass.
func (c *Client) explainRange(ctx context.Context, err error, group, topic string, partition int, offset int64) error {
	if !errors.Is(err, kafkago.OffsetOutOfRange) {
		return err
	}
	start, end, boundsErr := c.bounds(ctx, topic, partition)
	if boundsErr != nil {
		return boundsErr
	}
	mend := ""
	if group != "" {
		mend = fmt.Sprintf("; take a new initial copy of the table, then let the group go on with kafka-consumer-groups.sh --group %s --topic %s:%d --reset-offsets --to-offset %d --execute", group, topic, partition, start)
	}
	switch {
	case offset < start:
		return final{fmt.Errorf("%w: offset %d is wanted and the log begins at %d, so %d records were removed before they were read%s", ErrDataLost, offset, start, start-offset, mend)}
	case offset > end:
		return beyondEnd(offset, end, mend)
	}
	return err
}

// Commit says that every record before offset next is done with. It works in a
// drain after ctx has ended too. An error wraps ErrRevoked: the records will be
// delivered again, perhaps to another member.
func (p *Partition) Commit(ctx context.Context, next int64) error {
	err := p.gen.CommitOffsets(map[string]map[int]int64{p.Topic: {p.ID: next}})
	if err != nil {
		return fmt.Errorf("commit %s/%d at %d: %w: %w", p.Topic, p.ID, next, ErrRevoked, err)
	}
	p.setCommitted(next)
	p.showLag()
	return nil
}

// Done gives the offset before which every record is done with, as the group was told, the
// end of the log when this process began to read it, and the generation of the group by
// which the partition is ours. It is not ok while Kafka does not answer for the partition:
// the topic may have been made again, and the offsets be those of the old topic.
func (p *Partition) Done() (before, end int64, generation int32, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.committed, p.first, p.gen.ID, p.sound && p.committed >= 0 && p.first >= 0
}

func (p *Partition) heard(sound bool, end int64) {
	p.mu.Lock()
	if p.sound = sound; sound && p.first < 0 {
		p.first = end
	}
	p.mu.Unlock()
}

func (p *Partition) setCommitted(next int64) {
	p.mu.Lock()
	p.committed = next
	p.mu.Unlock()
}

func (p *Partition) setEnd(end int64) {
	p.mu.Lock()
	p.end = max(p.end, end)
	p.mu.Unlock()
	p.showLag()
}

// Lag is the number of records between the committed offset and the
// end of the partition, as last seen: by the last fetch, or some seconds ago.
func (p *Partition) Lag() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, p.end-max(0, p.committed))
}

func (p *Partition) showLag() {
	if p.lag == nil {
		return
	}
	lag := float64(p.Lag())
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.gone {
		p.lag.WithLabelValues(lagLabels(p.gen.GroupID, p.Topic, p.ID)...).Set(lag)
	}
}

// forget takes the partition out of the metrics: its next owner shows it.
func (p *Partition) forget() {
	if p.lag == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	p.lag.DeleteLabelValues(lagLabels(p.gen.GroupID, p.Topic, p.ID)...)
}
