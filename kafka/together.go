package kafka

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

const (
	// between is how far apart requests of one kind are sent at least: what comes up
	// in less than that after the last one shares the next.
	between = time.Millisecond
	// mostTogether is how many partitions share a request at most. A broker looks at
	// all of them, whether they have news or not.
	mostTogether = 32
)

// together collects what several partitions want from the brokers, so that it
// travels in one request where it would be one for each. What comes alone goes at
// once.
type together[T any] struct {
	send func([]T) // called in a goroutine of its own

	mu      sync.Mutex
	waiting []T
	sent    time.Time
	timer   bool
}

// add sends x, at once or with what comes within a moment.
func (t *together[T]) add(now bool, x ...T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = append(t.waiting, x...)
	if t.timer && !now {
		return
	}
	if wait := between - time.Since(t.sent); wait > 0 && !now {
		t.timer = true
		time.AfterFunc(wait, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.timer = false
			t.flush()
		})
		return
	}
	t.flush()
}

func (t *together[T]) flush() {
	if len(t.waiting) == 0 {
		return
	}
	all := t.waiting
	t.waiting, t.sent = nil, time.Now()
	go t.send(all)
}

// drop takes what waits out again, and reports whether it was still there.
func (t *together[T]) drop(is func(T) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.waiting, is)
	if i < 0 {
		return false
	}
	t.waiting = slices.Delete(t.waiting, i, i+1)
	return true
}

// leaders knows which broker leads a partition, as of a moment ago: what goes to one
// broker can share a request. When it is wrong the request fails, and it is asked for
// before the next one.
type leaders struct {
	client *Client

	mu    sync.Mutex
	asked time.Time
	known map[string]map[int]int // by topic and partition
}

// of gives the broker of a partition, or -1 when it is not known.
func (l *leaders) of(ctx context.Context, at topicPartition) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.asked) > metadataTTL {
		l.known, l.asked = make(map[string]map[int]int), time.Now()
	}
	topic, asked := l.known[at.topic]
	if !asked {
		topic = make(map[int]int)
		// The library answers from what it knows.
		if res, err := l.client.api.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{at.topic}}); err == nil {
			for _, t := range res.Topics {
				for _, p := range t.Partitions {
					if t.Name == at.topic && p.Error == nil {
						topic[p.ID] = p.Leader.ID
					}
				}
			}
		}
		l.known[at.topic] = topic
	}
	if broker, ok := topic[at.id]; ok {
		return broker
	}
	return -1
}

func (l *leaders) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = time.Time{}
}

// share splits what is to be sent into requests: each for partitions of one broker,
// mostTogether at most and of so many bytes, or for one partition.
func share[T any](ctx context.Context, l *leaders, all []T, most int, at func(T) topicPartition, bytes func(T) int) [][]T {
	if len(all) == 1 {
		return [][]T{all}
	}
	broker := make(map[topicPartition]int, len(all))
	for _, x := range all {
		broker[at(x)] = l.of(ctx, at(x))
	}
	slices.SortStableFunc(all, func(a, b T) int { return cmp.Compare(broker[at(a)], broker[at(b)]) })
	var requests [][]T
	room, last := 0, -1
	for _, x := range all {
		to := broker[at(x)]
		n := len(requests) - 1
		if to < 0 || to != last || len(requests[n]) == mostTogether || room < bytes(x) {
			requests, room, last = append(requests, nil), most, to
			n++
		}
		requests[n] = append(requests[n], x)
		room -= bytes(x)
	}
	return requests
}

// byTopic calls fn with the partitions of each topic, in the order that requests want.
func byTopic[T any](all []T, at func(T) topicPartition, fn func(topic string, some []T)) {
	slices.SortStableFunc(all, func(a, b T) int {
		return cmp.Or(cmp.Compare(at(a).topic, at(b).topic), cmp.Compare(at(a).id, at(b).id))
	})
	for len(all) > 0 {
		topic := at(all[0]).topic
		n := slices.IndexFunc(all, func(x T) bool { return at(x).topic != topic })
		if n < 0 {
			n = len(all)
		}
		fn(topic, all[:n])
		all = all[n:]
	}
}
