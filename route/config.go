package route

import (
	"errors"
	"fmt"
	"time"
)

// Config is what the route of a table is judged by. A table can have limits of its own
// (Override).
type Config struct {
	// P99 is how long 99 of 100 changes of a table may take at most from the commit in the source to the store's acknowledgement, over the last window of them; above it the state is warning. The default is 800ms.
	P99 time.Duration `yaml:"p99"`
	// P99Tolerated is the same for the state degraded. The default is 2.5s.
	P99Tolerated time.Duration `yaml:"p99_tolerated"`
	// Window is how long ago the oldest change may have been committed at most that a sink has not applied yet; above it the state is warning. The default is 1.2s.
	Window time.Duration `yaml:"window"`
	// WindowTolerated is the same for the state degraded. The default is 5s.
	WindowTolerated time.Duration `yaml:"window_tolerated"`
	// Mismatch is the share of the compared keys of a table whose confirmed difference makes the state warning. It is 0 to 1; the default is 0.01, which is 1 %.
	Mismatch float64 `yaml:"mismatch"`
	// MismatchTolerated is the same for the state degraded. The default is 0.03.
	MismatchTolerated float64 `yaml:"mismatch_tolerated"`
	// Missing is how many rows a store may lack: confirmed by the reconciler to be missing, or open dead letters. More make the state degraded, however many keys were compared, and one open dead letter makes it warning. The default is 5.
	Missing int `yaml:"missing"`
	// MinChanges is how many changes the window must hold for p99 to be judged. The default is 100.
	MinChanges int `yaml:"min_changes"`
	// MinKeys is how many keys must have been compared, or the whole table, for the share of mismatches to be judged and for a sample to count as verified. The default is 1000.
	MinKeys int `yaml:"min_keys"`
	// MinConfirmed is how many differences must be confirmed for their share to be judged. The default is 10.
	MinConfirmed int `yaml:"min_confirmed"`
	// Silence is how long nothing may be heard of a part of a table in a sink, or of the capture, until it counts as unknown, which is degraded. It is to be longer than a partition needs to move from one process to another. The default is 5s.
	Silence time.Duration `yaml:"silence"`
	// WorsenAfter is how long a limit must be passed without a break until the state gets worse. A breaker that opens, silence and confirmed differences count at once. The default is 300ms.
	WorsenAfter time.Duration `yaml:"worsen_after"`
	// RecoverAfter is how long everything must be within the limits without a break until the state gets better. The default is 10s.
	RecoverAfter time.Duration `yaml:"recover_after"`
	// Verify says whether a degraded table returns only when the reconciler has compared min_keys keys, or the whole table, since everything is within the limits, and has confirmed no more than is allowed: always, never, or auto, which is always while a reconciler of the pipeline was heard of within ten minutes. The default is auto.
	Verify string `yaml:"verify" jsonschema:"enum=auto,enum=always,enum=never"`
	// Shares are the percentages of the keys that may read from the sink while a table returns, one after the other; behind the last come all. The default is 1, 10, 50; an empty list returns all at once.
	Shares []int `yaml:"shares"`
	// ShareEvery is how long each of the shares lasts. The default is 10s.
	ShareEvery time.Duration `yaml:"share_every"`
	// TTL is how long an answer may be used after it was given, also when Lockstep cannot be asked any more. Who has no usable answer is to read from MySQL. The default is 30s.
	TTL time.Duration `yaml:"ttl"`
	// DryRun judges everything and says what it would do, and all is read from the sinks and nothing stopped. Default false.
	DryRun bool `yaml:"dry_run"`
	// ConfigMap publishes the routes in Kubernetes. It is off by default.
	ConfigMap ConfigMap `yaml:"config_map"`
}

// ConfigMap is where the routes are published in Kubernetes, with the service account of
// the pod, which needs the verbs create and patch on configmaps there.
type ConfigMap struct {
	// Name is that of the ConfigMap. Its key routes.json holds what GET /v1/route answers. Empty, which is the default, turns it off.
	Name string `yaml:"name"`
	// Namespace is where it is; the pod's own by default.
	Namespace string `yaml:"namespace"`
	// Every is how often it is written when nothing changes, so that it stays usable. It is at most a half of ttl. The default is 10s.
	Every time.Duration `yaml:"every"`
}

// Override are the limits of a table. What is 0 or empty is as in objectives.
type Override struct {
	// P99 stands in the place of objectives.p99.
	P99 time.Duration `yaml:"p99"`
	// P99Tolerated stands in the place of objectives.p99_tolerated.
	P99Tolerated time.Duration `yaml:"p99_tolerated"`
	// Window stands in the place of objectives.window.
	Window time.Duration `yaml:"window"`
	// WindowTolerated stands in the place of objectives.window_tolerated.
	WindowTolerated time.Duration `yaml:"window_tolerated"`
	// Mismatch stands in the place of objectives.mismatch.
	Mismatch float64 `yaml:"mismatch"`
	// MismatchTolerated stands in the place of objectives.mismatch_tolerated.
	MismatchTolerated float64 `yaml:"mismatch_tolerated"`
	// Missing stands in the place of objectives.missing; -1, the default, is as there.
	Missing int `yaml:"missing"`
	// Mode is act or dry-run, in the place of objectives.dry_run.
	Mode string `yaml:"mode" jsonschema:"enum=,enum=act,enum=dry-run"`
}

// What Config.Verify can be.
const (
	VerifyAuto   = "auto"
	VerifyAlways = "always"
	VerifyNever  = "never"
)

// DefaultConfig holds the default of every field.
func DefaultConfig() Config {
	return Config{
		P99: 800 * time.Millisecond, P99Tolerated: 2500 * time.Millisecond,
		Window: 1200 * time.Millisecond, WindowTolerated: 5 * time.Second,
		Mismatch: 0.01, MismatchTolerated: 0.03, Missing: 5,
		MinChanges: 100, MinKeys: 1000, MinConfirmed: 10,
		Silence: 5 * time.Second, WorsenAfter: 300 * time.Millisecond, RecoverAfter: 10 * time.Second,
		Verify: VerifyAuto, Shares: []int{1, 10, 50}, ShareEvery: 10 * time.Second, TTL: 30 * time.Second,
		ConfigMap: ConfigMap{Every: 10 * time.Second},
	}
}

// DefaultOverride changes nothing.
func DefaultOverride() Override { return Override{Missing: -1} }

// With is the configuration of a table that has limits of its own.
func (c Config) With(o Override) Config {
	span := func(to *time.Duration, own time.Duration) {
		if own != 0 {
			*to = own
		}
	}
	span(&c.P99, o.P99)
	span(&c.P99Tolerated, o.P99Tolerated)
	span(&c.Window, o.Window)
	span(&c.WindowTolerated, o.WindowTolerated)
	if o.Mismatch != 0 {
		c.Mismatch = o.Mismatch
	}
	if o.MismatchTolerated != 0 {
		c.MismatchTolerated = o.MismatchTolerated
	}
	if o.Missing >= 0 {
		c.Missing = o.Missing
	}
	if o.Mode != "" {
		c.DryRun = o.Mode == "dry-run"
	}
	return c
}

// Check reports every field that is out of range.
func (c Config) Check() error {
	errs := c.checkLimits()
	d := DefaultConfig()
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	span := func(name string, got, low, high, def time.Duration) {
		if got < low || got > high {
			bad("%s: %s is outside %s to %s (default %s)", name, got, low, high, def)
		}
	}
	number := func(name string, got, low, high, def int) {
		if got < low || got > high {
			bad("%s: %d is outside %d to %d (default %d)", name, got, low, high, def)
		}
	}
	number("min_changes", c.MinChanges, 1, 1_000_000, d.MinChanges)
	number("min_keys", c.MinKeys, 1, 1_000_000, d.MinKeys)
	number("min_confirmed", c.MinConfirmed, 1, 1_000_000, d.MinConfirmed)
	span("silence", c.Silence, 2*time.Second, 10*time.Minute, d.Silence)
	span("worsen_after", c.WorsenAfter, 0, 10*time.Minute, d.WorsenAfter)
	span("recover_after", c.RecoverAfter, time.Second, time.Hour, d.RecoverAfter)
	span("share_every", c.ShareEvery, time.Second, 24*time.Hour, d.ShareEvery)
	span("ttl", c.TTL, time.Second, time.Hour, d.TTL)
	if c.Verify != VerifyAuto && c.Verify != VerifyAlways && c.Verify != VerifyNever {
		bad("verify: %q is not known; use auto, always or never (default auto)", c.Verify)
	}
	last := 0
	for i, share := range c.Shares {
		if share <= last || share >= 100 {
			bad("shares[%d]: %d is not above %d and below 100; give percentages that grow (default 1, 10, 50)", i, share, last)
		}
		last = max(last, share)
	}
	if m := c.ConfigMap; m.Name != "" && (m.Every < time.Second || m.Every > c.TTL/2) {
		bad("config_map.every: %s is outside 1s to %s, half of ttl; what is written less often is not usable all the time", m.Every, c.TTL/2)
	}
	if c.ConfigMap.Name == "" && c.ConfigMap.Namespace != "" {
		bad("config_map.namespace: is set and name is empty; name the ConfigMap, or leave both out")
	}
	return errors.Join(errs...)
}

// CheckOverride reports what is wrong with the limits of a table, beside those that it
// leaves as they are.
func (c Config) CheckOverride(o Override) error {
	if o.Mode != "" && o.Mode != "act" && o.Mode != "dry-run" {
		return fmt.Errorf("mode: %q is not known; use act or dry-run, or leave it out", o.Mode)
	}
	if o.Missing < -1 {
		return fmt.Errorf("missing: %d is less than none; use 0 or more, or leave it out", o.Missing)
	}
	return errors.Join(c.With(o).checkLimits()...)
}

func (c Config) checkLimits() (errs []error) {
	d := DefaultConfig()
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	pair := func(name string, limit, tolerated, def, defTolerated time.Duration) {
		if limit < time.Millisecond || limit > time.Hour {
			bad("%s: %s is outside 1ms to 1h0m0s (default %s)", name, limit, def)
		}
		if tolerated < limit || tolerated > 24*time.Hour {
			bad("%s_tolerated: %s is outside %s (%s) to 24h0m0s (default %s)", name, tolerated, name, limit, defTolerated)
		}
	}
	pair("p99", c.P99, c.P99Tolerated, d.P99, d.P99Tolerated)
	pair("window", c.Window, c.WindowTolerated, d.Window, d.WindowTolerated)
	if !(c.Mismatch > 0 && c.Mismatch <= 1) {
		bad("mismatch: %g is no share; use more than 0 and up to 1 (default %g)", c.Mismatch, d.Mismatch)
	}
	if !(c.MismatchTolerated >= c.Mismatch && c.MismatchTolerated <= 1) {
		bad("mismatch_tolerated: %g is outside mismatch (%g) to 1 (default %g)", c.MismatchTolerated, c.Mismatch, d.MismatchTolerated)
	}
	if c.Missing < 0 || c.Missing > 1_000_000 {
		bad("missing: %d is outside 0 to 1000000 (default %d)", c.Missing, d.Missing)
	}
	return errs
}
