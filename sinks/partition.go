package sinks

import (
	"context"

	"lockstep/kafka"
)

// KafkaPartition is a Partition of Kafka's.
type KafkaPartition struct{ *kafka.Partition }

// Name gives the topic and the number of the partition.
func (p KafkaPartition) Name() (topic string, id int) { return p.Topic, p.ID }

// Fetch waits for the next records.
func (p KafkaPartition) Fetch(ctx context.Context, most int) ([]kafka.Record, error) {
	return p.FetchAtMost(ctx, most)
}

var _ Partition = KafkaPartition{}
