package main

import (
	"context"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"
)

// measureCapture lets a bare reader and then lockstep read the same backlog.
func (b *bench) measureCapture(ctx context.Context) error {
	b.say("capture: a bare go-mysql loop decodes the backlog")
	r, err := b.startReader(ctx, order{Table: backlog, GTIDs: b.before, Rows: b.rows})
	if err != nil {
		return err
	}
	defer r.stop()
	bare, err := r.report()
	if err != nil {
		return err
	}
	if bare.Rows != b.rows {
		return fmt.Errorf("the bare reader counted %d row changes, want %d", bare.Rows, b.rows)
	}

	b.say("capture: lockstep publishes it to Kafka")
	p, err := b.pipeline(backlog)
	if err != nil {
		return err
	}
	c, err := b.start(p, "capture")
	if err != nil {
		return err
	}
	d, err := c.drain(ctx, "row changes acknowledged by Kafka", b.rows, func(m metrics) int {
		return int(m.sum("lockstep_kafka_acked_records_total", "topic", p.topic))
	})
	if err != nil {
		return err
	}
	records, err := b.records(ctx, p.topic)
	if err != nil {
		return err
	}
	if records != b.rows+1 { // and the first row
		return fmt.Errorf("topic %s has %d records, want %d", p.topic, records, b.rows+1)
	}

	rows := float64(b.rows)
	b.beside("capture.rows", rows/d.took.Seconds(), "rows/s", rows/bare.Seconds)
	b.beside("capture.cpu", d.usage.CPU, "CPU s", bare.Usage.CPU)
	b.beside("capture.rows_per_cpu", rows/d.usage.CPU, "rows/CPU s", rows/bare.Usage.CPU)
	b.beside("capture.peak_memory", d.usage.PeakMB, "MB", bare.Usage.PeakMB)
	b.beside("capture.log", float64(bare.Bytes)/1e6/d.took.Seconds(), "MB/s", float64(bare.Bytes)/1e6/bare.Seconds)
	b.add("capture.published", d.metrics.sum("lockstep_kafka_acked_bytes_total", "topic", p.topic)/rows, "B/row")
	b.add("capture.start", d.start.Seconds(), "s")
	return nil
}

// records is how many records a topic has.
func (b *bench) records(ctx context.Context, topic string) (int, error) {
	bounds, err := b.bounds(ctx, topic)
	n := 0
	for _, p := range bounds {
		n += int(p.LastOffset - p.FirstOffset)
	}
	return n, err
}

// bounds are the first offset of each partition and the one behind its last.
func (b *bench) bounds(ctx context.Context, topic string) ([]kafkago.PartitionOffsets, error) {
	meta, err := b.kafka.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return nil, fmt.Errorf("look at topic %s: %w", topic, err)
	}
	var ask []kafkago.OffsetRequest
	for _, t := range meta.Topics {
		for _, p := range t.Partitions {
			ask = append(ask, kafkago.FirstOffsetOf(p.ID), kafkago.LastOffsetOf(p.ID))
		}
	}
	answer, err := b.kafka.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{topic: ask}})
	if err != nil {
		return nil, fmt.Errorf("list the offsets of %s: %w", topic, err)
	}
	for _, p := range answer.Topics[topic] {
		if p.Error != nil {
			return nil, fmt.Errorf("list the offsets of %s/%d: %w", topic, p.Partition, p.Error)
		}
	}
	return answer.Topics[topic], nil
}
