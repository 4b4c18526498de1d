package kafka

import (
	"time"

	"lockstep/cdc"
)

// Record is a Kafka record: what is published, and what a consumer gets.
type Record struct {
	Topic     string
	Partition int
	Offset    int64 // set by the broker
	Time      time.Time
	Key       []byte
	Value     []byte
	Headers   []cdc.Header

	encoder *cdc.Encoder // writes the value in place of Value
}

// Size is what the record counts against a byte budget.
func (r *Record) Size() int {
	n := len(r.Key) + len(r.Value) + 64
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value) + 4
	}
	return n
}
