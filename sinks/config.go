package sinks

import (
	"errors"
	"fmt"
	"time"
)

// Config tunes the workers of one sink.
type Config struct {
	// BatchChanges is how many changes go to the store in one call at most. It is a number of changes, 1 to 100000; the default is 1000. Raise it when the store is far away, lower it when single calls take seconds.
	BatchChanges int `yaml:"batch_changes"`
	// BatchBytes is how many bytes of records go to the store in one call at most; a larger record travels alone. It is 1024 to 104857600 bytes; the default is 8388608. Lower it when memory is short.
	BatchBytes int `yaml:"batch_bytes"`
	// Retries is the list of waits after which a change is tried again that the store refused for a reason that may pass. When the list is used up the change becomes a dead letter. The default is 1s, 2s, 4s, 8s, 16s; an empty list makes a dead letter at once.
	Retries []time.Duration `yaml:"retries"`
	// RetryBytes is how many bytes of changes may wait for a retry in each partition before the partition stops reading. It is 1024 to 1073741824 bytes; the default is 33554432.
	RetryBytes int `yaml:"retry_bytes"`
	// HoldMin is the first wait of a partition whose store is unavailable; each further wait is twice as long. The default is 100ms.
	HoldMin time.Duration `yaml:"hold_min"`
	// HoldMax is the longest wait between two attempts while the store is unavailable. The default is 5s. It bounds how long after its recovery a store is noticed.
	HoldMax time.Duration `yaml:"hold_max"`
	// BreakerFailures is how many calls in a row, over all partitions of the sink, must find the store unavailable until the breaker opens. It is 1 to 1000; the default is 5.
	BreakerFailures int `yaml:"breaker_failures"`
	// BreakerOpen is how long an open breaker waits before it lets one call through to see whether the store is back. The default is 3s.
	BreakerOpen time.Duration `yaml:"breaker_open"`
	// CommitEvery is how often the offset of a partition is committed at most. The default is 500ms. What is not committed when a process dies is read again, and counted as stale or duplicate.
	CommitEvery time.Duration `yaml:"commit_every"`
	// StopWithin is how long a call that is under way may take to finish when the process stops or the partition moves to another worker. The default is 5s; keep it below the session timeout of the Kafka group.
	StopWithin time.Duration `yaml:"stop_within"`
}

// DefaultConfig holds the default of every field.
func DefaultConfig() Config {
	return Config{
		BatchChanges:    1000,
		BatchBytes:      8 << 20,
		Retries:         []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second},
		RetryBytes:      32 << 20,
		HoldMin:         100 * time.Millisecond,
		HoldMax:         5 * time.Second,
		BreakerFailures: 5,
		BreakerOpen:     3 * time.Second,
		CommitEvery:     500 * time.Millisecond,
		StopWithin:      5 * time.Second,
	}
}

// Check reports every field that is out of range.
func (c Config) Check() error {
	var errs []error
	number := func(name string, got, low, high, def int) {
		if got < low || got > high {
			errs = append(errs, fmt.Errorf("%s: %d is outside %d to %d (default %d)", name, got, low, high, def))
		}
	}
	span := func(name string, got, low, high, def time.Duration) {
		if got < low || got > high {
			errs = append(errs, fmt.Errorf("%s: %s is outside %s to %s (default %s)", name, got, low, high, def))
		}
	}
	d := DefaultConfig()
	number("batch_changes", c.BatchChanges, 1, 100_000, d.BatchChanges)
	number("batch_bytes", c.BatchBytes, 1<<10, 100<<20, d.BatchBytes)
	number("retry_bytes", c.RetryBytes, 1<<10, 1<<30, d.RetryBytes)
	number("breaker_failures", c.BreakerFailures, 1, 1000, d.BreakerFailures)
	for i, wait := range c.Retries {
		span(fmt.Sprintf("retries[%d]", i), wait, time.Millisecond, time.Hour, min(time.Second<<i, time.Hour))
	}
	span("hold_min", c.HoldMin, time.Millisecond, time.Minute, d.HoldMin)
	span("hold_max", c.HoldMax, time.Millisecond, 10*time.Minute, d.HoldMax)
	if c.HoldMax < c.HoldMin {
		errs = append(errs, fmt.Errorf("hold_max: %s is shorter than hold_min %s; use at least that", c.HoldMax, c.HoldMin))
	}
	span("breaker_open", c.BreakerOpen, 10*time.Millisecond, 10*time.Minute, d.BreakerOpen)
	span("commit_every", c.CommitEvery, time.Millisecond, time.Minute, d.CommitEvery)
	span("stop_within", c.StopWithin, 10*time.Millisecond, time.Minute, d.StopWithin)
	return errors.Join(errs...)
}
