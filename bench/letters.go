package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"lockstep/dlq"
)

const (
	lettered = "lettered"
	// openLetters is how many dead letters are open when lockstep starts.
	openLetters = 1_000_000
	// lateRows are there in all, of which one is written before lockstep stops.
	lateRows = 1000
)

// measureLetters starts lockstep beside a million open dead letters and asks how long it
// takes until rows travel, until it knows the letters, and how much memory that is.
func (b *bench) measureLetters(ctx context.Context) error {
	if _, err := b.db.ExecContext(ctx, fmt.Sprintf(createTable, database+"."+lettered)); err != nil {
		return fmt.Errorf("create table %s: %w", lettered, err)
	}
	if err := insertRows(ctx, b.db, lettered, firstRow, firstRow); err != nil {
		return err
	}
	p, err := b.pipeline(lettered)
	if err != nil {
		return err
	}
	c, err := b.start(p, "run")
	if err != nil {
		return err
	}
	_, err = c.await(ctx, "the first row is in Redis", func(m metrics) bool { return m.settled(cache) == 1 })
	if err := c.stopWith(err); err != nil {
		return err
	}

	b.say("letters: writing %s dead letters", thousands(openLetters))
	if err := b.writeLetters(ctx, p); err != nil {
		return err
	}
	if err := insertRows(ctx, b.db, lettered, firstRow+1, lateRows); err != nil {
		return err
	}
	b.say("letters: lockstep starts")
	if c, err = b.start(p, "run"); err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	if _, err := c.await(ctx, "rows are in Redis", func(m metrics) bool { return m.settled(cache) > 0 }); err != nil {
		return err
	}
	b.add("letters.first_row", time.Since(c.started).Seconds(), "s")
	if _, err := c.await(ctx, "all rows are in Redis", func(m metrics) bool { return m.settled(cache) == lateRows-firstRow }); err != nil {
		return err
	}
	b.add("letters.all_rows", time.Since(c.started).Seconds(), "s")
	m, err := c.await(ctx, "the letters are known", func(m metrics) bool {
		return m["lockstep_dlq_loading_partitions"] != nil && m.sum("lockstep_dlq_loading_partitions") == 0
	})
	if err != nil {
		return err
	}
	b.add("letters.known", time.Since(c.started).Seconds(), "s")
	if n := m.sum("lockstep_dlq_letters", "sink", cache); n != openLetters {
		return fmt.Errorf("lockstep counts %.0f letters, and there are %d", n, openLetters)
	}
	usage, err := usageNow(c.cmd.Process.Pid)
	if err != nil {
		return err
	}
	b.add("letters.peak_memory", usage.PeakMB, "MB")
	b.add("letters.cpu", usage.CPU, "s")
	return c.stop()
}

// stopWith stops lockstep and joins how that went to err.
func (c *child) stopWith(err error) error {
	if stopped := c.stop(); err == nil {
		err = stopped
	}
	return err
}

// writeLetters writes letters of rows that the table does not have.
func (b *bench) writeLetters(ctx context.Context, p *pipeline) error {
	w := &kafkago.Writer{
		Addr: kafkago.TCP(b.servers.kafka.Addr), Transport: &kafkago.Transport{}, // the shared one may not know the topic yet
		Topic: p.prefix + ".dlq." + cache, RequiredAcks: kafkago.RequireAll,
		BatchSize: 2000, BatchBytes: 4 << 20, BatchTimeout: 10 * time.Millisecond,
		Balancer: kafkago.BalancerFunc(func(m kafkago.Message, partitions ...int) int { return partitions[m.Offset%int64(len(partitions))] }),
	}
	defer w.Close()
	now := time.Now().UTC().Format(time.RFC3339Nano)
	reason := "ERR " + strings.Repeat("of a kind that nobody knows ", 3)
	messages := make([]kafkago.Message, 0, 10_000)
	for i := range openLetters {
		id, version := strconv.Itoa(10_000_000+i), strconv.Itoa(1<<42+i)
		key := `{"id":` + id + `}`
		headers := [][2]string{
			{dlq.HeaderFormat, "2"}, {dlq.HeaderState, string(dlq.Parked)}, {dlq.HeaderSink, cache},
			{dlq.HeaderTopic, p.topic}, {dlq.HeaderPartition, strconv.Itoa(i % 4)}, {dlq.HeaderOffset, strconv.Itoa(i)}, {dlq.HeaderRecordKey, key},
			{dlq.HeaderTable, database + "." + lettered}, {dlq.HeaderKey, id}, {dlq.HeaderVersion, version}, {dlq.HeaderClass, "refused"}, {dlq.HeaderStage, "apply"},
			{dlq.HeaderReason, reason}, {dlq.HeaderFirstFailed, now}, {dlq.HeaderLastFailed, now}, {dlq.HeaderFingerprint, "c0ffee123456"}, {dlq.HeaderRetryCount, "0"},
			{dlq.ConnectTopic, p.topic}, {dlq.ConnectPartition, strconv.Itoa(i % 4)}, {dlq.ConnectOffset, strconv.Itoa(i)}, {dlq.ConnectSink, cache},
			{dlq.ConnectClass, "refused"}, {dlq.ConnectReason, reason},
		}
		m := kafkago.Message{Offset: int64(i), Key: []byte(database + "." + lettered + "/" + key), Value: []byte(`{"before":null,"after":{"id":` + id + `,"title":"` + strings.Repeat("words ", 40) + `"},"op":"c"}`)}
		for _, h := range headers {
			m.Headers = append(m.Headers, kafkago.Header{Key: h[0], Value: []byte(h[1])})
		}
		if messages = append(messages, m); len(messages) == cap(messages) || i == openLetters-1 {
			if err := w.WriteMessages(ctx, messages...); err != nil {
				return fmt.Errorf("write letters: %w", err)
			}
			messages = messages[:0]
		}
	}
	return nil
}
