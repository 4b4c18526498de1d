package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/config"
	"lockstep/internal/secret"
	"lockstep/internal/testenv"
	"lockstep/kafka"
)

// A primary dies, and so does the capture before it has saved its place; a replica
// without the last transactions takes over. What Kafka has already is not published
// again, and the rows of what is lost are read again.
func TestAFailoverThroughKafka(t *testing.T) {
	var a, b *testenv.Instance
	var both sync.WaitGroup
	both.Go(func() { a = testenv.NewMySQL(t) })
	both.Go(func() { b = testenv.NewMySQL(t) })
	both.Wait()
	a.Exec(t, "CREATE DATABASE shop", "CREATE TABLE shop.q (id INT PRIMARY KEY, v INT)", "CREATE TABLE shop.other (id INT PRIMARY KEY)", "INSERT INTO shop.q VALUES (1, 0), (2, 0), (3, 0)")
	b.Follow(t, a.Server)
	relay := testenv.NewRelay(t, a.Addr)

	cfg := config.Default()
	cfg.Prefix = "failover-" + uuid.NewString()[:8]
	cfg.Source.Addr, cfg.Source.User, cfg.Source.Password, cfg.Source.ServerID = relay.Addr, a.User, secret.Text(a.Password), 90003
	cfg.Source.CheckpointInterval = time.Minute // only the end of the log saves the position
	cfg.Kafka.Brokers = []string{testenv.Kafka(t).Addr}
	cfg.Kafka.Partitions = 3
	cfg.Tables = []config.Table{{Match: "shop.q"}}
	start := func() (*process, func()) {
		t.Helper()
		p, err := newProcess(&cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.capture(ctx, captureFlags{}, mysql.NewMetrics(p.registry), func(*mysql.Source) {}) }()
		stop := sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(func() { stop(); p.kafka.Close() })
		return p, stop
	}
	p, stop := start()
	t.Cleanup(func() { deleteTopics(t, cfg) })

	await(t, p, "the first rows", func(got []string) bool { return len(got) == 3 })
	a.Exec(t, "UPDATE shop.q SET v = 1 WHERE id = 1")
	var before cdc.Position
	for deadline := time.Now().Add(2 * time.Minute); before.Seq == 0; {
		pos, found, err := p.saved(t.Context())
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("no position behind the copy: %v", err)
		}
		if found {
			before = pos
		}
	}
	busy, rest := context.WithCancel(t.Context()) // as long as something comes, the end of the log is not reached
	var filler sync.WaitGroup
	filler.Go(func() {
		for n := 1; busy.Err() == nil; n++ {
			if _, err := a.DB().Exec(fmt.Sprintf("INSERT INTO shop.other VALUES (%d)", n)); err != nil {
				t.Error(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	a.Exec(t, "BEGIN; INSERT INTO shop.q VALUES (4, 0); UPDATE shop.q SET v = 1 WHERE id = 4; COMMIT", "UPDATE shop.q SET v = 2 WHERE id = 1")
	b.CatchUp(t, a)
	b.Exec(t, "STOP REPLICA")
	a.Exec(t, "UPDATE shop.q SET v = 9 WHERE id = 2", "DELETE FROM shop.q WHERE id = 3", "INSERT INTO shop.q VALUES (50, 0)")
	await(t, p, "the tail", func(got []string) bool { return slices.Contains(got, `c {"id":50} epoch 1`) })
	stop()
	rest()
	filler.Wait()
	if pos, _, err := p.saved(t.Context()); err != nil || pos.Seq != before.Seq {
		t.Fatalf("the saved position has moved on to %d from %d (%v), so there is no tail", pos.Seq, before.Seq, err)
	}
	a.Kill(t)
	b.Unfollow(t)
	relay.Point(b.Addr)
	b.Exec(t, "INSERT INTO shop.q VALUES (5, 0)", "UPDATE shop.q SET v = 3 WHERE id = 1")

	p, stop = start()
	await(t, p, "the new log, and the rows of what is lost", func(got []string) bool {
		return slices.Contains(got, `u {"id":1} epoch 2`) && slices.Contains(got, `d {"id":50} epoch 2`) &&
			slices.Contains(got, `r {"id":2} epoch 2`) && slices.Contains(got, `r {"id":3} epoch 2`)
	})
	stop()
	want := []string{
		`c {"id":4} epoch 1`, `c {"id":50} epoch 1`, `c {"id":5} epoch 2`, `d {"id":3} epoch 1`, `d {"id":50} epoch 2`,
		`r {"id":1} epoch 1`, `r {"id":2} epoch 1`, `r {"id":2} epoch 2`, `r {"id":3} epoch 1`, `r {"id":3} epoch 2`,
		`u {"id":1} epoch 1`, `u {"id":1} epoch 1`, `u {"id":1} epoch 2`, `u {"id":2} epoch 1`, `u {"id":4} epoch 1`,
	}
	if diff := cmp.Diff(want, inKafka(t, p)); diff != "" {
		t.Errorf("in Kafka (-want +got)\n%s", diff)
	}
	var repairs []string
	err := p.kafka.ReadAll(t.Context(), cfg.Prefix+".snapshots", func(r kafka.Record) error {
		if r.Value == nil { // it was answered
			return nil
		}
		var req cdc.SnapshotRequest
		if err := json.Unmarshal(r.Value, &req); err != nil {
			return err
		}
		if !strings.HasPrefix(req.ID, "repair-2-shop.q-") || req.Want != cdc.SnapshotRunning {
			return fmt.Errorf("a request reads %s", r.Value)
		}
		for _, k := range req.Keys {
			repairs = append(repairs, req.Table+string(k))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`shop.q{"id":2}`, `shop.q{"id":3}`, `shop.q{"id":50}`}, repairs); diff != "" {
		t.Errorf("asked for (-want +got)\n%s", diff)
	}
	if pos, _, err := p.saved(t.Context()); err != nil || pos.Epoch != 2 {
		t.Errorf("the saved position is %+v (%v)", pos, err)
	}
}

// inKafka lists the changes in Kafka, sorted.
func inKafka(t *testing.T, p *process) (got []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err := p.published(ctx, time.Time{}, func(c *cdc.Change, _ int, _ bool) error {
		got = append(got, fmt.Sprintf("%s %s epoch %d", c.Op, c.Key, c.Version.Epoch()))
		return nil
	})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	slices.Sort(got)
	return got
}

func await(t *testing.T, p *process, what string, ok func([]string) bool) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(2 * time.Minute); !ok(got); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 2m for %s; Kafka has %q", what, got)
		}
		got = inKafka(t, p)
	}
}

func deleteTopics(t *testing.T, cfg config.Config) {
	p, err := newProcess(&cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer p.kafka.Close()
	all, err := p.kafka.Topics(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	mine := slices.DeleteFunc(all, func(topic string) bool { return !strings.HasPrefix(topic, cfg.Prefix+".") })
	if err := p.kafka.DeleteTopics(context.Background(), mine...); err != nil {
		t.Error(err)
	}
}
