package mysql

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	"github.com/prometheus/client_golang/prometheus"
)

// WallClock tells the time as the source has it, so that an age since a commit is right when
// the clock of this machine is not the source's.
//
// It asks the source for its time every clockEvery. The answer was made at some moment of
// the round trip, so half of that is how far the difference may be off (as NTP has it,
// RFC 5905, section 8). Until the first answer the clocks count as equal.
type WallClock struct {
	Config  Config
	Log     *slog.Logger
	Metrics *WallClockMetrics

	mu     sync.Mutex
	offset time.Duration // the source's time less ours
	within time.Duration // how far that may be off, when it was measured
	at     time.Time     // of the measurement; zero when there is none
}

// WallClockMetrics are those of a WallClock.
type WallClockMetrics struct{ skew, uncertainty prometheus.Gauge }

// NewWallClockMetrics makes the metrics and registers them.
func NewWallClockMetrics(reg prometheus.Registerer) *WallClockMetrics {
	m := &WallClockMetrics{
		skew: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_source_clock_skew_seconds",
			Help: "How far the source's clock is ahead of this machine's, as it was measured last; negative when it is behind. Ages since a commit are corrected by it."}),
		uncertainty: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_source_clock_uncertainty_seconds",
			Help: "How far lockstep_source_clock_skew_seconds may be off: half a round trip to the source; NaN until it is measured."}),
	}
	m.uncertainty.Set(math.NaN())
	reg.MustRegister(m.skew, m.uncertainty)
	return m
}

const (
	clockEvery = 10 * time.Second
	clockAsks  = 5 // of which the fastest counts
	// clockDrift is how far two clocks part in a second, at most: quartz does a tenth of it.
	clockDrift = 0.0005
)

// At is what the source's clock shows when ours shows t. A nil WallClock is one that shows the
// same.
func (c *WallClock) At(t time.Time) time.Time {
	if c == nil {
		return t
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return t.Add(c.offset)
}

// Skew is how far the source's clock is ahead of ours, how far that may be off, and
// whether it is known.
func (c *WallClock) Skew() (offset, within time.Duration, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offset, c.within, !c.at.IsZero()
}

// Run measures until ctx ends. A source that does not answer changes nothing.
func (c *WallClock) Run(ctx context.Context) {
	var conn *client.Conn
	done := func() {}
	defer func() { done() }()
	for {
		var err error
		if conn == nil {
			if conn, err = connect(ctx, c.Config); err == nil {
				done = until(ctx, conn)
			}
		}
		if err == nil {
			err = c.measure(conn)
		}
		if err != nil && conn != nil {
			done()
			conn, done = nil, func() {}
		}
		if err != nil && ctx.Err() == nil {
			c.Log.Debug("the source's clock cannot be read", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(clockEvery):
		}
	}
}

// measure asks several times and takes the answer with the shortest round trip.
func (c *WallClock) measure(conn *client.Conn) error {
	var offset, within time.Duration
	for i := range clockAsks {
		asked := time.Now()
		text, err := queryOne(conn, "SELECT UTC_TIMESTAMP(6)")
		trip := time.Since(asked)
		if err != nil {
			return err
		}
		said, err := time.Parse("2006-01-02 15:04:05.999999", text)
		if err != nil {
			return fmt.Errorf("the source answers %q when it is asked for the time", text)
		}
		if half := trip / 2; i == 0 || half < within {
			offset, within = said.Sub(asked.Add(half).Round(0)), half
		}
	}
	c.learn(time.Now(), offset, within)
	return nil
}

// learn takes a measurement in when it is better than what is known, by its age too, or
// when it shows that a clock was set.
func (c *WallClock) learn(now time.Time, offset, within time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.within + time.Duration(now.Sub(c.at).Seconds()*clockDrift*float64(time.Second))
	if !c.at.IsZero() && within > known && (offset-c.offset).Abs() <= within+known {
		return
	}
	c.offset, c.within, c.at = offset, within, now
	c.Metrics.skew.Set(offset.Seconds())
	c.Metrics.uncertainty.Set(within.Seconds())
}
