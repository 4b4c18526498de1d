package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"golang.org/x/sync/semaphore"

	"lockstep/cdc"
)

// ErrStopped is what Publish and Flush return after Run has returned.
var ErrStopped = errors.New("publisher has stopped")

const (
	// drainTime is how long Run waits for batches in flight when it is told to stop.
	drainTime = 5 * time.Second
	// producerIdle is how long a partition may rest before it takes a new
	// producer id. A broker forgets an id a day after the partition's last batch
	// (producer.id.expiration.ms) and some answer the next one with an error.
	// With nothing in flight a new id is always safe.
	producerIdle = time.Hour
	// goneAfter is how long a topic may be unknown to a cluster that answers
	// before the publisher believes that it was deleted.
	goneAfter = 60 * time.Second
)

// Publisher writes records to Kafka, each partition in the order of Publish and
// each record once.
//
// A partition has one batch in flight; what is published meanwhile becomes the
// next batch, so a slow broker gets large batches and an idle pipeline waits for
// nothing. A batch carries a producer id and a sequence number and is repeated
// byte for byte until it is acknowledged by all in-sync replicas, so the broker
// drops what it has already. Only a restart of the process can publish a record
// a second time, because the position it reads on from is older.
type Publisher struct {
	client  *Client
	carrier *carrier
	codec   compress.Compression
	max     int
	metrics *Metrics
	log     *slog.Logger

	size   int64 // of the budget
	budget *semaphore.Weighted

	failed  context.Context // ends with the error that stopped the publisher
	fail    context.CancelCauseFunc
	partsMu sync.Mutex
	parts   map[topicPartition]*partition
	at      func(time.Time) time.Time // of the clock that records have their times from
	start   func(*partition)          // set while Run runs
	mu      sync.Mutex                // guards what follows
	fences  []*fence                  // oldest first; the last one is open
	firing  bool
	buffers [][]byte
}

// What partition.end is when it is no offset.
const (
	endNone    = -1 // nothing was acknowledged yet
	endUnknown = -2 // something was, and the broker did not say where it stands
)

type topicPartition struct {
	topic string
	id    int
}

// fence stands between the batches that were begun before a call of AfterAcked
// and those begun after it.
type fence struct {
	pending int      // batches begun behind the fence before it and not acknowledged
	fns     []func() // called when this and all earlier fences have nothing pending
}

// partition is one partition that is published to.
type partition struct {
	topicPartition
	published, acked, ackedBytes prometheus.Counter
	age                          prometheus.Observer

	end atomic.Int64 // offset behind the last record that is acknowledged, or endNone or endUnknown

	mu    sync.Mutex
	queue []*batch      // the last one still takes records
	wake  chan struct{} // tells the sender of the first batch

	// The sender's own.
	producer int64 // id; -1 before the first batch
	epoch    int16
	sequence int32
	lastAck  time.Time
}

// NewPublisher makes a publisher; Run makes it send. cfg gives its budget,
// compression and largest record.
func NewPublisher(client *Client, cfg Config, metrics *Metrics, log *slog.Logger) *Publisher {
	failed, fail := context.WithCancelCause(context.Background())
	return &Publisher{
		client:  client,
		carrier: newCarrier(client),
		codec:   compressions[cfg.Compression],
		max:     cfg.MaxRecordBytes,
		metrics: metrics,
		log:     log,
		size:    int64(cfg.PublishBufferBytes),
		budget:  semaphore.NewWeighted(int64(cfg.PublishBufferBytes)),
		failed:  failed,
		fail:    fail,
		parts:   make(map[topicPartition]*partition),
		fences:  []*fence{{}},
		at:      func(t time.Time) time.Time { return t },
	}
}

// Clock says what the clock by which records have their times shows at a time of this
// machine, so that the ages of what is acknowledged are right. It is called before Run.
func (p *Publisher) Clock(at func(time.Time) time.Time) { p.at = at }

// Run sends what is published until ctx ends or it cannot go on. When ctx ends it
// waits up to five seconds for the batches in flight and returns nil; what was
// only queued is left, and so is everything behind AfterAcked. It returns an
// error when going on could lose, repeat or reorder a record. It is called once.
func (p *Publisher) Run(ctx context.Context) error {
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stopDrain := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(drainTime, cancel)
		context.AfterFunc(sending, func() { t.Stop() })
	})
	defer stopDrain()
	defer context.AfterFunc(p.failed, cancel)()

	var senders sync.WaitGroup
	p.partsMu.Lock()
	p.start = func(part *partition) { senders.Go(func() { p.send(ctx, sending, part) }) }
	for _, part := range p.parts {
		p.start(part)
	}
	p.partsMu.Unlock()

	select {
	case <-ctx.Done():
	case <-p.failed.Done():
	}
	p.partsMu.Lock()
	p.start = nil
	p.partsMu.Unlock()
	senders.Wait()

	p.fail(ErrStopped) // unless it has failed already
	left, cost := p.left()
	p.metrics.unacked.Sub(float64(cost)) // another publisher may follow in this process
	if err := context.Cause(p.failed); err != ErrStopped {
		return err
	}
	if left > 0 {
		p.log.Info("kafka publisher stopped", "records_not_acknowledged", left)
	}
	return nil
}

// left counts the records that are queued, and what they take of the budget.
func (p *Publisher) left() (n int, cost int64) {
	p.partsMu.Lock()
	defer p.partsMu.Unlock()
	for _, part := range p.parts {
		part.mu.Lock()
		for _, b := range part.queue {
			n += b.count
			cost += b.cost
		}
		part.mu.Unlock()
	}
	return n, cost
}

// Publish queues r behind everything published to its partition before. It
// copies r, and waits while the budget of unacknowledged bytes is used up. An
// error means that r is not queued: it is larger than Config.MaxRecordBytes
// (cdc.ErrTooLarge), ctx has ended, or the publisher has failed, with its failure as
// the error.
func (p *Publisher) Publish(ctx context.Context, r Record) error {
	return p.publish(ctx, p.partition(r.Topic, r.Partition), &r)
}

func (p *Publisher) publish(ctx context.Context, part *partition, r *Record) error {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	size := recordLen(r, 0, 0) + 16
	if size > p.max {
		return fmt.Errorf("publish to %s/%d: %w: %d bytes, and kafka.max_record_bytes is %d", part.topic, part.id, cdc.ErrTooLarge, size, p.max)
	}
	cost := min(int64(size), p.size)
	if err := p.reserve(ctx, cost); err != nil {
		return err
	}
	part.mu.Lock()
	var b *batch
	if n := len(part.queue); n > 0 && part.queue[n-1].takes(size) {
		b = part.queue[n-1]
	} else {
		b = p.begin()
		part.queue = append(part.queue, b)
	}
	b.add(r)
	b.cost += cost
	first := len(part.queue) == 1 && b.count == 1
	part.mu.Unlock()
	if first {
		select {
		case part.wake <- struct{}{}:
		default:
		}
	}
	part.published.Inc()
	p.metrics.unacked.Add(float64(cost))
	return nil
}

func (p *Publisher) reserve(ctx context.Context, cost int64) error {
	if p.failed.Err() != nil {
		return context.Cause(p.failed)
	}
	if p.budget.TryAcquire(cost) {
		return nil
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.failed, cancel)()
	if p.budget.Acquire(waiting, cost) == nil {
		return nil
	}
	if p.failed.Err() != nil {
		return context.Cause(p.failed)
	}
	return ctx.Err()
}

func (p *Publisher) partition(topic string, id int) *partition {
	p.partsMu.Lock()
	defer p.partsMu.Unlock()
	tp := topicPartition{topic, id}
	part := p.parts[tp]
	if part == nil {
		part = &partition{
			topicPartition: tp,
			published:      p.metrics.published.WithLabelValues(topic),
			acked:          p.metrics.acked.WithLabelValues(topic),
			ackedBytes:     p.metrics.ackedBytes.WithLabelValues(topic),
			age:            p.metrics.age.WithLabelValues(topic),
			wake:           make(chan struct{}, 1),
			producer:       -1,
		}
		part.end.Store(endNone)
		p.parts[tp] = part
		if p.start != nil {
			p.start(part)
		}
	}
	return part
}

// begin makes a batch that the open fence waits for.
func (p *Publisher) begin() *batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := newBatch(p.buffer())
	b.fence = p.fences[len(p.fences)-1]
	b.fence.pending++
	return b
}

// buffer takes a buffer of an earlier batch, if there is one. The caller holds mu.
func (p *Publisher) buffer() []byte {
	n := len(p.buffers)
	if n == 0 {
		return nil
	}
	buf := p.buffers[n-1]
	p.buffers = p.buffers[:n-1]
	return buf
}

// keep gives a buffer back. The caller holds mu.
func (p *Publisher) keep(buf []byte) {
	if cap(buf) > 0 && cap(buf) <= 2*maxBatchBytes && int64(len(p.buffers)) < p.size/maxBatchBytes {
		p.buffers = append(p.buffers, buf)
	}
}

// AfterAcked calls fn once every record whose Publish returned before this call
// is acknowledged. The calls come in the order of AfterAcked, one at a time, from
// whatever goroutine had the last acknowledgement, perhaps this one; fn must be
// short and must not publish. It is never called after the publisher has failed.
func (p *Publisher) AfterAcked(fn func()) {
	p.mu.Lock()
	open := p.fences[len(p.fences)-1]
	open.fns = append(open.fns, fn)
	p.fences = append(p.fences, &fence{})
	p.fire()
}

// fire calls what has become due and unlocks mu, which the caller holds.
func (p *Publisher) fire() {
	if p.firing { // whoever is at it goes on until nothing is due
		p.mu.Unlock()
		return
	}
	p.firing = true
	for len(p.fences) > 1 && p.fences[0].pending == 0 {
		due := p.fences[0].fns
		p.fences = p.fences[1:]
		p.mu.Unlock()
		for _, fn := range due {
			fn()
		}
		p.mu.Lock()
	}
	p.firing = false
	p.mu.Unlock()
}

// Flush returns nil when every record whose Publish returned before is
// acknowledged.
func (p *Publisher) Flush(ctx context.Context) error {
	acked := make(chan struct{})
	p.AfterAcked(func() { close(acked) })
	select {
	case <-acked:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for acknowledgements: %w", ctx.Err())
	case <-p.failed.Done():
		return context.Cause(p.failed)
	}
}

// send is the goroutine of a partition. It ends with ctx, or with sending in the
// middle of a batch.
func (p *Publisher) send(ctx, sending context.Context, part *partition) {
	for {
		b := part.next(ctx, p.failed)
		if b == nil {
			return
		}
		tries, err := p.deliver(ctx, sending, part, b)
		if err != nil {
			if ctx.Err() == nil || p.client.hopeless(err) {
				p.fail(fmt.Errorf("publish to %s/%d: %w", part.topic, part.id, err))
			}
			part.mu.Lock()
			part.queue = append([]*batch{b}, part.queue...) // for the count of what is left
			part.mu.Unlock()
			return
		}
		p.delivered(part, b, tries)
	}
}

// next takes the first batch; from then on it takes no more records. It is nil
// when the publisher ends.
func (part *partition) next(ctx, failed context.Context) *batch {
	for {
		if ctx.Err() != nil || failed.Err() != nil {
			return nil
		}
		part.mu.Lock()
		if len(part.queue) > 0 {
			b := part.queue[0]
			part.queue[0] = nil
			part.queue = part.queue[1:]
			part.mu.Unlock()
			return b
		}
		part.mu.Unlock()
		select {
		case <-part.wake:
		case <-ctx.Done():
		case <-failed.Done():
		}
	}
}

// deliver sends b until it is acknowledged, and says how many times. After an
// error it is not known whether the broker has the batch.
func (p *Publisher) deliver(ctx, sending context.Context, part *partition, b *batch) (tries int, err error) {
	if part.producer < 0 || time.Since(part.lastAck) > producerIdle {
		if err := p.newProducer(ctx, part); err != nil {
			return 0, err
		}
	}
	if b.huge() {
		runtime.GC() // what the reader had of it, because sending takes as much again
	}
	if p.codec != compress.None {
		p.mu.Lock()
		into := p.buffer()
		p.mu.Unlock()
		spare, err := b.compress(p.codec, into)
		if err != nil {
			return 0, final{err}
		}
		p.mu.Lock()
		p.keep(spare)
		p.mu.Unlock()
	}
	b.seal(part.producer, part.epoch, part.sequence)

	seen := p.client.health.watch()
	defer seen.gaveUp()
	var goneSince time.Time
	for tries = 1; ; tries++ {
		base, err := p.carrier.carry(sending, part.topicPartition, b.buf)
		err = p.client.named(err)
		switch {
		case err == nil:
			seen.done()
			part.sequence = nextSequence(part.sequence, b.count)
			part.lastAck = time.Now()
			end := int64(endUnknown)
			if base >= 0 {
				end = base + int64(b.count)
			}
			part.end.Store(end)
			return tries, nil
		case sending.Err() != nil || p.client.hopeless(err):
			return tries, explain(err)
		case !missing(err):
			goneSince = time.Time{}
		case goneSince.IsZero():
			goneSince = time.Now()
		case time.Since(goneSince) > goneAfter && p.client.gone(sending, part.topic):
			return tries, final{fmt.Errorf("the topic is gone; start again, which makes it anew, and has its table copied if it is one of changes: %w", err)}
		}
		seen.failed(err)
		p.metrics.retries.Inc()
		pause(sending, tries-1)
	}
}

// gone reports whether the cluster answers and does not know the topic.
func (c *Client) gone(ctx context.Context, topic string) bool {
	_, err := c.partitions(ctx, topic)
	return errors.Is(err, kafkago.UnknownTopicOrPartition)
}

// explain adds to an answer what it means for the publisher.
func explain(err error) error {
	switch {
	case errors.Is(err, kafkago.OutOfOrderSequenceNumber), errors.Is(err, kafkago.UnknownProducerId):
		return fmt.Errorf("the broker does not have the batch before this one, so acknowledged records may be lost there; restart to read on from the last saved position: %w", err)
	case errors.Is(err, kafkago.MessageSizeTooLarge), errors.Is(err, kafkago.RecordListTooLarge):
		return fmt.Errorf("the topic takes no batch this large; raise its max.message.bytes to kafka.max_record_bytes and %d more: %w", batchRoom, err)
	}
	return err
}

func (p *Publisher) newProducer(ctx context.Context, part *partition) error {
	return p.client.retry(ctx, "get a producer id", func() error {
		res, err := p.client.api.InitProducerID(ctx, &kafkago.InitProducerIDRequest{ProducerID: -1, ProducerEpoch: -1})
		if err != nil {
			return err
		}
		if res.Error != nil {
			return res.Error
		}
		part.producer, part.epoch, part.sequence = int64(res.Producer.ProducerID), int16(res.Producer.ProducerEpoch), 0
		return nil
	})
}

func (p *Publisher) delivered(part *partition, b *batch, tries int) {
	part.acked.Add(float64(b.count))
	part.ackedBytes.Add(float64(len(b.buf)))
	part.age.Observe(max(0, p.at(time.Now()).Sub(b.oldest).Seconds()))
	p.metrics.unacked.Sub(float64(b.cost))
	p.budget.Release(b.cost)
	p.mu.Lock()
	if tries == 1 { // else a connection that was given up may still be writing the buffer
		p.keep(b.buf)
	}
	b.fence.pending--
	p.fire()
}
