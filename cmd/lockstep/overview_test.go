package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"lockstep/config"
	"lockstep/freshness"
	"lockstep/internal/testenv"
	"lockstep/route"
	"lockstep/sinks"
	"lockstep/sinks/redis"
)

// Any process of a pipeline says how all of them are.
func TestStatusOfOneProcessTellsOfAll(t *testing.T) {
	cfg := config.Default()
	cfg.Prefix, cfg.Kafka.Brokers = fmt.Sprintf("status-%d", time.Now().UnixNano()), []string{testenv.Kafka(t).Addr}
	cfg.Sinks = map[string]config.Sink{"cache": {Redis: &redis.Config{}}}
	entry := config.Table{Match: "d.t", Objectives: route.DefaultOverride()}
	cfg.Tables = []config.Table{entry}
	ctx, stop := context.WithCancel(t.Context())
	var ended []chan error
	start := func(name, listen string, parts ...string) *process {
		own := cfg
		own.Admin.Listen = listen
		p, err := newProcess(&own, slog.New(slog.NewTextHandler(t.Output(), nil)))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range parts {
			part, doing, _ := strings.Cut(part, " ")
			p.ready.add(part, func() bool { return true })
			p.ready.say(part, func() string { return doing })
		}
		for _, run := range []func(context.Context) error{p.hub.Run, p.runRoute, func(ctx context.Context) error { return p.hub.Announce(ctx, p.announce) }} {
			end := make(chan error, 1)
			go func() { end <- run(ctx) }()
			ended = append(ended, end)
		}
		t.Cleanup(p.kafka.Close)
		return p
	}
	asked := start("asked", "127.0.0.1:1")
	start("capture", "127.0.0.1:2", "capture active")
	worker := start("worker", "127.0.0.1:3", "capture standby", "cache")
	defer deleteTopics(t, cfg)
	defer func() {
		stop()
		for _, end := range ended {
			if err := <-end; err != nil {
				t.Error(err)
			}
		}
	}()

	now := time.Now()
	place := func(settled int64) freshness.Table {
		return freshness.Table{Partitions: map[int]freshness.Place{0: {Settled: settled}}, Breaker: sinks.BreakerStatus{State: "closed"}}
	}
	say := func(r freshness.Record) {
		t.Helper()
		if err := worker.hub.Write(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	tell := func(settled, letters int64) {
		table := place(settled)
		table.Letters = letters
		say(freshness.Record{Sink: &freshness.Sink{Sink: "cache", Process: "worker", Whole: true, Tables: map[string]freshness.Table{"d.t": table},
			Breaker: sinks.BreakerStatus{State: "closed"}}})
		say(freshness.Record{Capture: &freshness.Capture{UpToMicros: now.UnixMicro(), AtMicros: now.Add(300 * time.Millisecond).UnixMicro(), File: "binlog.7", Pos: 44,
			Ends: map[string][]int64{"d.t": {10, 10}}, Copies: []freshness.Copy{{Table: "d.t", State: "running", Rows: 30, Estimate: 60}}}})
	}
	var s processStatus
	screen := func() string {
		var text strings.Builder
		s = asked.status()
		s.screen(&text)
		return text.String()
	}
	awaited(t, "all to be heard", func() bool {
		tell(10, 0)
		s = asked.status()
		return s.Overview != nil && len(s.Overview.Processes) == 3 && s.Overview.Sinks[0].Partitions == 1 && s.Overview.Capture.Process != ""
	})
	o := s.Overview
	if o.Capture.Standby != 1 || !strings.HasSuffix(o.Capture.Process, ":2") || o.Capture.Position != "binlog.7:44" || o.Sinks[0].Of != 2 || o.Sinks[0].Processes != 1 {
		t.Errorf("%+v, %+v", o.Capture, o.Sinks[0])
	}
	text := screen()
	for _, want := range []string{"LOOK AT ", "d.t 50 %", "1 of 2", "sink cache: 1 of 2 partitions are in the hands of nobody", "\tcapture active\t", "sink cache: table d.t is read from MySQL", "cache is ? behind."} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	awaited(t, "a dead letter to be told of", func() bool {
		tell(10, 2)
		return strings.Contains(screen(), "sink cache: table d.t has 2 open dead letters: nobody knows since when")
	})
	for _, t1 := range s.LookAt {
		if t1.Letters && strings.Contains(strings.Join(s.unwell(false), ";"), t1.What) {
			t.Errorf("a letter is no trouble but for who asks: %q", s.unwell(false))
		}
	}
}
