package kafka

import (
	"context"
	"maps"
	"slices"
	"time"
)

// Ends knows how far the topics of changes are that a ChangeLog writes to, without asking
// Kafka each time. It is for one goroutine.
type Ends struct {
	log *ChangeLog
	// topics lists those that are there.
	topics func(ctx context.Context) ([]string, error)
	from   time.Time
	before map[string][]int64 // by topic, as Kafka said; nil until it was asked
	epoch  uint16             // in which it was asked
}

// NewEnds makes one for a change log that begins now. Topics lists the topics of changes
// that exist, perhaps two seconds late.
func NewEnds(l *ChangeLog, topics func(ctx context.Context) ([]string, error)) *Ends {
	return &Ends{log: l, topics: topics, from: time.Now().Add(metadataTTL + time.Second)}
}

// Now gives for each table that has a topic the offset behind the last record that is
// acknowledged, by partition; of what earlier change logs wrote at least all that they
// had saved a position for. In another epoch Kafka is asked anew: what somebody else has
// published may be left out by whoever reads the log of another server. The first call waits
// until a topic must show that was made just before the change log began.
func (e *Ends) Now(ctx context.Context, epoch uint16) (map[string][]int64, error) {
	if e.before == nil || e.epoch != epoch {
		select {
		case <-time.After(time.Until(e.from)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		topics, err := e.topics(ctx)
		if err != nil {
			return nil, err
		}
		before, err := e.log.client.EndsOf(ctx, topics)
		if err != nil {
			return nil, err
		}
		e.before, e.epoch = before, epoch
	}
	byTopic := maps.Clone(e.before)
	unknown := e.log.publisher.overlay(e.log.prefix, byTopic)
	if len(unknown) > 0 {
		asked, err := e.log.client.EndsOf(ctx, unknown)
		if err != nil {
			return nil, err
		}
		maps.Copy(e.before, asked)
		maps.Copy(byTopic, asked)
	}
	ends := make(map[string][]int64, len(byTopic))
	for topic, of := range byTopic {
		if t, ok := TableOf(e.log.prefix, topic); ok {
			ends[t.String()] = of
		}
	}
	return ends, nil
}

// overlay puts what a publisher knows of the topics of changes over their ends. It
// returns those for which Kafka must be asked: of a partition that was written to it is not known
// how far.
func (p *Publisher) overlay(prefix string, ends map[string][]int64) (unknown []string) {
	p.partsMu.Lock()
	parts := slices.Collect(maps.Values(p.parts))
	p.partsMu.Unlock()
	cloned := map[string]bool{}
	for _, part := range parts {
		if _, ok := TableOf(prefix, part.topic); !ok {
			continue
		}
		of := ends[part.topic]
		if !cloned[part.topic] {
			of, cloned[part.topic] = slices.Clone(of), true
		}
		for part.id >= len(of) { // made since
			of = append(of, 0)
		}
		switch end := part.end.Load(); {
		case end >= 0:
			of[part.id] = max(of[part.id], end)
		case end == endUnknown && !slices.Contains(unknown, part.topic):
			unknown = append(unknown, part.topic)
		}
		ends[part.topic] = of
	}
	return unknown
}
