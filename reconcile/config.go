package reconcile

import (
	"errors"
	"fmt"
	"time"
)

// Config says how often rows are compared, and how much that may cost.
type Config struct {
	// Enabled has lockstep run compare, too, beside everything else that it does. Default false: lockstep reconcile does it in a process of its own. Of all that could, one does.
	Enabled bool `yaml:"enabled"`
	// SampleEvery is the time from one sample to the next, 1s to 24h. Default 15s.
	SampleEvery time.Duration `yaml:"sample_every"`
	// SampleRows is how many rows a sample compares at most, those that changed last first, 1 to 100000. Default 1000.
	SampleRows int `yaml:"sample_rows"`
	// FullEvery is the time from the beginning of a full pass over a table to that of the next, 1m to 8784h. Default 24h.
	FullEvery time.Duration `yaml:"full_every"`
	// Load is the part of the time for which a full pass may have the source read rows, above 0 and up to 1. Default 0.1: after a SELECT of 200ms it rests for 1.8s. How long a SELECT takes, and when the source is too busy for any, source.snapshot says.
	Load float64 `yaml:"load"`
}

// DefaultConfig holds the default of every field.
func DefaultConfig() Config {
	return Config{SampleEvery: 15 * time.Second, SampleRows: 1000, FullEvery: 24 * time.Hour, Load: 0.1}
}

// Check reports every field that is out of range.
func (c Config) Check() error {
	var errs []error
	d := DefaultConfig()
	span := func(name string, got, low, high, def time.Duration) {
		if got < low || got > high {
			errs = append(errs, fmt.Errorf("%s: %s is outside %s to %s (default %s)", name, got, low, high, def))
		}
	}
	span("sample_every", c.SampleEvery, time.Second, 24*time.Hour, d.SampleEvery)
	span("full_every", c.FullEvery, time.Minute, 8784*time.Hour, d.FullEvery)
	if c.SampleRows < 1 || c.SampleRows > 100_000 {
		errs = append(errs, fmt.Errorf("sample_rows: %d is outside 1 to 100000 (default %d)", c.SampleRows, d.SampleRows))
	}
	if !(c.Load > 0 && c.Load <= 1) {
		errs = append(errs, fmt.Errorf("load: %g is outside what makes sense; use more than 0 and up to 1 (default %g)", c.Load, d.Load))
	}
	return errors.Join(errs...)
}
