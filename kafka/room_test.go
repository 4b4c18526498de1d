package kafka

import (
	"context"
	"errors"
	"testing"
	"time"
)

// What can wait is let in only while the queue of the publisher is short.
func TestRoomWaitsWhileMoreThanAQuarterIsUnacknowledged(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t)
	cfg.PublishBufferBytes = 1 << 20
	client := open(t, cfg)
	must(t, client.EnsureTopic(t.Context(), TopicSpec{Name: "room", Partitions: 1}))
	p := NewPublisher(client, cfg, metrics(), quiet)
	must(t, p.Publish(t.Context(), Record{Topic: "room", Value: make([]byte, 200<<10)}))
	must(t, p.Room(t.Context()))
	must(t, p.Publish(t.Context(), Record{Topic: "room", Value: make([]byte, 200<<10)}))
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Room(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with 400 of 1024 KiB waiting, Room says %v", err)
	}
	running(t, p.Run)
	must(t, p.Room(deadline(t, 20*time.Second)))
}
