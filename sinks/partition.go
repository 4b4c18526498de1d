package sinks

import "lockstep/kafka"

// KafkaPartition is a Partition of Kafka's.
type KafkaPartition struct{ *kafka.Partition }

// Name gives the topic and the number of the partition.
func (p KafkaPartition) Name() (topic string, id int) { return p.Topic, p.ID }

var _ Partition = KafkaPartition{}
