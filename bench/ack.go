package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"
)

// measureAck writes at a fixed rate, first beside bare produce requests and then
// for lockstep's capture, and compares how long Kafka takes to acknowledge: a
// produced record since it was due, a row since it was committed. MySQL writes the
// time of the commit before it makes it durable, so what a bare reader of the log
// waits is in the second time and not in the first.
func (b *bench) measureAck(ctx context.Context) error {
	if b.duration == 0 {
		return nil
	}
	if err := insertRows(ctx, b.db, acked, 1, liveRows); err != nil {
		return err
	}
	writer := schedule{db: b.db, table: acked, rate: b.rate, per: 1, connections: 8, rows: liveRows}
	duration := max(b.duration/2, time.Second)

	b.say("ack: %.0f transactions/s for %s, beside a bare reader and as many bare produced records", b.rate, warmUp+duration)
	var executed string
	if err := b.db.QueryRowContext(ctx, "SELECT @@GLOBAL.gtid_executed").Scan(&executed); err != nil {
		return err
	}
	reader, err := b.startReader(ctx, order{Table: acked, GTIDs: executed, Skip: int(b.rate * warmUp.Seconds()), Rows: int(b.rate * duration.Seconds()), Delays: true})
	if err != nil {
		return err
	}
	defer reader.stop()
	bare, err := b.bareProduce(ctx, writer, duration)
	if err != nil {
		return err
	}
	read, err := reader.report()
	if err != nil {
		return err
	}

	b.say("ack: %.0f transactions/s for %s, for lockstep's capture", b.rate, warmUp+duration)
	p, err := b.pipeline(acked)
	if err != nil {
		return err
	}
	c, err := b.start(p, "capture")
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	published := func(rows int) (metrics, error) {
		return c.await(ctx, fmt.Sprintf("%d row changes acknowledged by Kafka", rows), func(m metrics) bool {
			return m.sum("lockstep_capture_connected") == 1 && int(m.sum("lockstep_kafka_acked_records_total", "topic", p.topic)) >= rows
		})
	}
	if _, err := published(liveRows); err != nil {
		return err
	}
	warm, err := writer.run(ctx, warmUp)
	if err != nil {
		return err
	}
	before, err := published(liveRows + warm.transactions)
	if err != nil {
		return err
	}
	usageBefore, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	stats, err := writer.run(ctx, duration)
	if err != nil {
		return err
	}
	after, err := published(liveRows + warm.transactions + stats.transactions)
	if err != nil {
		return err
	}
	usage, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	const name = "lockstep_kafka_ack_age_seconds"
	h := after.histogram(name).since(before.histogram(name))
	b.beside("ack.p50", h.quantile(.5)*1000, "ms", quantile(bare, .5).Seconds()*1000)
	b.beside("ack.p99", h.quantile(.99)*1000, "ms", quantile(bare, .99).Seconds()*1000)
	b.add("ack.bare_read_p50", read.P50*1000, "ms")
	b.add("ack.bare_read_p99", read.P99*1000, "ms")
	b.add("ack.cpu", (usage.CPU-usageBefore.CPU)/duration.Seconds(), "CPUs")
	b.add("ack.commit_p50", quantile(stats.commit, .5).Seconds()*1000, "ms")
	b.add("ack.commit_p99", quantile(stats.commit, .99).Seconds()*1000, "ms")
	return c.stop()
}

// bareProduce produces records at the rate of the writer while that one writes. As
// in lockstep, each of four partitions has one request in flight, which carries
// what has become due meanwhile.
func (b *bench) bareProduce(ctx context.Context, writer schedule, duration time.Duration) ([]time.Duration, error) {
	topic := b.name + "-bare"
	made, err := b.kafka.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: topic, NumPartitions: partitions, ReplicationFactor: 1}}})
	if err == nil {
		err = made.Errors[topic]
	}
	if err != nil {
		return nil, fmt.Errorf("create topic %s: %w", topic, err)
	}
	if !pause(ctx, time.Second) { // until its leaders are known
		return nil, ctx.Err()
	}
	value := make([]byte, 1000)
	var mu sync.Mutex
	var delays []time.Duration
	began := time.Now()
	end := began.Add(warmUp + duration)
	every := time.Duration(partitions / writer.rate * float64(time.Second))
	producing, stopped := errgroup.WithContext(ctx)
	for partition := range partitions {
		producing.Go(func() error {
			due := began.Add(every * time.Duration(partition) / partitions)
			for due.Before(end) {
				if wait := time.Until(due); wait > 0 && !pause(stopped, wait) {
					return stopped.Err()
				}
				var records []kafkago.Record
				var times []time.Time
				for now := time.Now(); due.Before(now) && due.Before(end); due = due.Add(every) {
					records = append(records, kafkago.Record{Value: kafkago.NewBytes(value)})
					times = append(times, due)
				}
				if len(records) == 0 {
					continue
				}
				answer, err := b.kafka.Produce(stopped, &kafkago.ProduceRequest{Topic: topic, Partition: partition, RequiredAcks: kafkago.RequireAll,
					Records: kafkago.NewRecordReader(records...)})
				if err == nil {
					err = answer.Error
				}
				if err != nil {
					return fmt.Errorf("produce to %s/%d: %w", topic, partition, err)
				}
				now := time.Now()
				mu.Lock()
				for _, t := range times {
					if t.After(began.Add(warmUp)) {
						delays = append(delays, now.Sub(t))
					}
				}
				mu.Unlock()
			}
			return nil
		})
	}
	producing.Go(func() error {
		_, err := writer.run(stopped, warmUp+duration)
		return err
	})
	if err := producing.Wait(); err != nil {
		return nil, err
	}
	slices.Sort(delays)
	return delays, nil
}
