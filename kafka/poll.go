package kafka

import (
	"context"
	"math"
	"slices"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// poller fetches for the partitions of one member of a group, many with one request.
// A broker holds that until one of them has news; the others then go on to wait in
// the next.
type poller struct {
	client  *Client
	ctx     context.Context // of the member
	leaders leaders
	asks    together[*ask]
}

// ask is what one partition wants.
type ask struct {
	topicPartition
	ctx    context.Context // of whoever waits; what nobody waits for is not asked again
	offset int64
	most   int // bytes
	until  time.Time

	done   chan struct{} // closed when what follows is set
	answer *fetchPartition
	err    error
}

func newPoller(ctx context.Context, c *Client) *poller {
	p := &poller{client: c, ctx: ctx, leaders: leaders{client: c}}
	p.asks.send = p.send
	return p
}

// fetch is Client.fetch, in company.
func (p *poller) fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int) (fetched, error) {
	a := &ask{topicPartition: topicPartition{topic, partition}, ctx: ctx, offset: offset, most: maxBytes, until: time.Now().Add(fetchWait), done: make(chan struct{})}
	p.asks.add(false, a)
	select {
	case <-a.done:
	case <-ctx.Done():
		p.asks.drop(func(other *ask) bool { return other == a })
		return fetched{}, ctx.Err()
	}
	if a.err != nil {
		return fetched{}, a.err
	}
	return a.fetched()
}

func (a *ask) end(answer *fetchPartition, err error) {
	a.answer, a.err = answer, err
	close(a.done)
}

// fetched reads the answer.
func (a *ask) fetched() (fetched, error) {
	f := fetched{next: a.offset}
	if a.answer == nil {
		return f, nil
	}
	f.start, f.end = a.answer.LogStartOffset, a.answer.HighWatermark
	if a.answer.ErrorCode != 0 {
		return f, kafkago.Error(a.answer.ErrorCode)
	}
	return f, f.readAll(a.answer.Batches, a.topic, a.id)
}

func (p *poller) send(asks []*ask) {
	asks = slices.DeleteFunc(asks, func(a *ask) bool { return a.ctx.Err() != nil })
	if len(asks) == 0 {
		return
	}
	for _, some := range share(p.ctx, &p.leaders, asks, math.MaxInt32, (*ask).at, func(a *ask) int { return a.most }) {
		go p.request(some)
	}
}

func (a *ask) at() topicPartition { return a.topicPartition }

// request asks one broker, once.
func (p *poller) request(asks []*ask) {
	wait := fetchWait
	for _, a := range asks {
		wait = min(wait, time.Until(a.until))
	}
	res, err := p.client.fetchAll(p.ctx, asks, wait)
	if err != nil {
		p.leaders.forget()
	}
	answers := make(map[topicPartition]*fetchPartition, len(asks))
	if err == nil {
		for i := range res.Topics {
			t := &res.Topics[i]
			for j := range t.Partitions {
				answers[topicPartition{t.Topic, int(t.Partitions[j].Partition)}] = &t.Partitions[j]
			}
		}
	}
	var again []*ask
	soon := time.Now().Add(fetchWait / 2) // so that they come to wait together
	for _, a := range asks {
		switch answer := answers[a.topicPartition]; {
		case err != nil:
			a.end(nil, err)
		case answer == nil:
			a.end(nil, protocol.ErrNoPartition)
		case silent(a, answer) && answer.HighWatermark > a.offset && len(asks) > 1:
			// A batch larger than was asked for goes only to the first that has news.
			go p.request([]*ask{a})
		case silent(a, answer) && soon.Before(a.until):
			again = append(again, a)
		default:
			a.end(answer, nil)
		}
	}
	if len(again) > 0 {
		p.asks.add(false, again...)
	}
}

// silent reports whether an answer has nothing to tell.
func silent(a *ask, answer *fetchPartition) bool {
	return answer.ErrorCode == 0 && len(answer.Batches) == 0 && answer.LogStartOffset <= a.offset
}
