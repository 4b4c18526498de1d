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
	// Retries is the list of waits after which a dead letter is tried again that the store refused for a reason that may pass; each is lengthened or shortened by up to a quarter, by chance. When the list is used up the letter waits for a change of its row, or for a person. The default is 1s, 2s, 4s, 8s, 16s; with an empty list nothing is tried again.
	Retries []time.Duration `yaml:"retries"`
	// CallsMin is how many calls of each store may be under way at a time when it is slow or has complained. All partitions of a sink share them. It is 1 to 256; the default is 4.
	CallsMin int `yaml:"calls_min"`
	// CallsMax is how many calls of each store may be under way at a time while there is a backlog and the store does not get slower. It is 1 to 256; the default is 12.
	CallsMax int `yaml:"calls_max"`
	// MemoryBytes is how many bytes of records the sinks of a process hold before they stop reading: fetched, waiting, or in a call. A partition that holds none may always fetch a little, so it can be passed by half. What is decoded, encoded and not yet collected comes on top: give the process four times as much memory. It is 1048576 to 68719476736 bytes; the default is 67108864.
	MemoryBytes int `yaml:"memory_bytes"`
	// HoldMin is the first wait of a partition whose store is unavailable; each further wait is twice as long. The default is 100ms.
	HoldMin time.Duration `yaml:"hold_min"`
	// HoldMax is the longest wait between two attempts while the store is unavailable. The default is 5s. It bounds how long after its recovery a store is noticed.
	HoldMax time.Duration `yaml:"hold_max"`
	// BreakerFailures is how many calls in a row, over all partitions of the sink, must find the store unavailable until the breaker opens. It is 1 to 1000; the default is 5.
	BreakerFailures int `yaml:"breaker_failures"`
	// BreakerOpen is how long an open breaker waits before it lets one call through to see whether the store is back. The default is 3s.
	BreakerOpen time.Duration `yaml:"breaker_open"`
	// FloodShare is the share of the last changes of a table that a sink must have refused in the same way until the table is held: its changes wait instead of becoming dead letters, and one is tried now and then. It is above 0 and up to 1; the default is 0.5. At 1 no table is ever held.
	FloodShare float64 `yaml:"flood_share"`
	// FloodWindow is how many of the last changes of a table that share is of. A quarter of them must be refused in any case. It is 4 to 100000; the default is 200. It bounds how many dead letters a flood leaves behind.
	FloodWindow int `yaml:"flood_window"`
	// FloodWait is how long a table is held until one change is tried; each further wait is twice as long. The default is 5s.
	FloodWait time.Duration `yaml:"flood_wait"`
	// FloodWaitMax is the longest wait between two such tries. The default is 5m. It bounds how long after the fault is mended a table goes on.
	FloodWaitMax time.Duration `yaml:"flood_wait_max"`
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
		CallsMin:        4,
		CallsMax:        12,
		MemoryBytes:     64 << 20,
		HoldMin:         100 * time.Millisecond,
		HoldMax:         5 * time.Second,
		BreakerFailures: 5,
		BreakerOpen:     3 * time.Second,
		FloodShare:      0.5,
		FloodWindow:     200,
		FloodWait:       5 * time.Second,
		FloodWaitMax:    5 * time.Minute,
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
	number("calls_min", c.CallsMin, 1, 256, d.CallsMin)
	number("calls_max", c.CallsMax, 1, 256, d.CallsMax)
	if c.CallsMax < c.CallsMin {
		errs = append(errs, fmt.Errorf("calls_max: %d is less than calls_min %d; use at least that", c.CallsMax, c.CallsMin))
	}
	number("memory_bytes", c.MemoryBytes, 1<<20, 64<<30, d.MemoryBytes)
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
	if c.FloodShare <= 0 || c.FloodShare > 1 {
		errs = append(errs, fmt.Errorf("flood_share: %g is outside what makes sense; use more than 0 and up to 1 (default %g)", c.FloodShare, d.FloodShare))
	}
	number("flood_window", c.FloodWindow, 4, 100_000, d.FloodWindow)
	span("flood_wait", c.FloodWait, 10*time.Millisecond, time.Hour, d.FloodWait)
	span("flood_wait_max", c.FloodWaitMax, 10*time.Millisecond, 24*time.Hour, d.FloodWaitMax)
	if c.FloodWaitMax < c.FloodWait {
		errs = append(errs, fmt.Errorf("flood_wait_max: %s is shorter than flood_wait %s; use at least that", c.FloodWaitMax, c.FloodWait))
	}
	span("commit_every", c.CommitEvery, time.Millisecond, time.Minute, d.CommitEvery)
	span("stop_within", c.StopWithin, 10*time.Millisecond, time.Minute, d.StopWithin)
	return errors.Join(errs...)
}
