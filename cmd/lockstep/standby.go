package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc/mysql"
	"lockstep/config"
	"lockstep/kafka"
)

// captureGroup is the consumer group whose members want to capture; no sink may
// have its name.
func (p *process) captureGroup() string { return p.group(config.CapturePart) }

func newCaptureLeaseMetrics(reg prometheus.Registerer) *kafka.LeaseMetrics {
	return kafka.NewLeaseMetrics(reg, "capture", "captures", "capture")
}

// standby runs the capture while no other process of the pipeline does, and stands
// by while one does. A capture that loses its lease, because this process stood
// still or was cut off, ends, and this process stands by again. The flags are for
// the first time it is active, but for --on-gap, which holds for all of them.
func (p *process) standby(ctx context.Context, flags captureFlags) error {
	log := p.log.With("part", "capture")
	always := captureFlags{onGap: flags.onGap, actor: flags.actor}
	once := []any{"resnapshot", flags.resnapshot, "epoch", flags.epoch, "skip_gtid", flags.skipGTID}
	if flags != always {
		log.Info("the flags of this start take effect when this process becomes active", once...)
	}
	metrics := mysql.NewMetrics(p.registry)
	p.ages.add("read", metrics.ReadAge())
	var running atomic.Pointer[mysql.Source]
	lease := &kafka.Lease{
		Client: p.kafka, Group: p.captureGroup(), Topic: kafka.CheckpointTopic(p.cfg.Prefix),
		Metrics: newCaptureLeaseMetrics(p.registry), Log: log,
		Hold: func(ctx context.Context) error {
			// The lease outlives a change of the configuration: whoever stands by may have
			// the older one.
			return p.under(ctx, config.CapturePart, func(ctx context.Context, p *process) error {
				defer running.Store(nil)
				now := flags
				flags = always
				err := p.capture(ctx, now, metrics, running.Store)
				if cause := context.Cause(ctx); now != always && (errors.Is(cause, kafka.ErrRevoked) || errors.Is(cause, errOtherConfig)) {
					log.Warn("the capture was ended early, and the flags of this start are not repeated; start again with them if the log does not say that they were done", append([]any{"cause", cause}, once...)...)
				}
				return err
			})
		},
	}
	p.ready.add("capture", func() bool {
		if lease.State() == kafka.LeaseStandby {
			return true
		}
		source := running.Load()
		return source != nil && source.Reading()
	})
	p.ready.say("capture", func() string { return lease.State().String() })
	if err := kafka.EnsureCheckpoint(ctx, p.kafka, p.cfg.Prefix); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("capture: %w", err)
	}
	if err := lease.Run(ctx); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}
