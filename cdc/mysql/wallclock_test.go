package mysql

import (
	"log/slog"
	"testing"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

func newWallClock() *WallClock {
	return &WallClock{Log: slog.New(slog.DiscardHandler), Metrics: NewWallClockMetrics(prometheus.NewRegistry())}
}

func TestAClockKeepsItsBestMeasurementUntilItIsOldOrProvedWrong(t *testing.T) {
	c, start := newWallClock(), time.Now()
	after := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	expect := func(why string, want time.Duration) {
		t.Helper()
		if got, _, known := c.Skew(); !known || got != want {
			t.Errorf("%s: the clock is %v ahead (known: %t), want %v", why, got, known, want)
		}
	}
	if _, _, known := c.Skew(); known {
		t.Error("a clock that was never measured is known")
	}
	c.learn(start, 40*time.Millisecond, 5*time.Millisecond)
	expect("the first one counts", 40*time.Millisecond)
	c.learn(after(1), 42*time.Millisecond, time.Millisecond)
	expect("a better one counts", 42*time.Millisecond)
	c.learn(after(2), 48*time.Millisecond, 9*time.Millisecond)
	expect("a worse one that does not contradict it does not count", 42*time.Millisecond)
	c.learn(after(2), -time.Hour, 9*time.Millisecond)
	expect("a worse one that does contradict it shows that a clock was set", -time.Hour)
	c.learn(after(102), -time.Hour+20*time.Millisecond, 30*time.Millisecond)
	expect("a worse one counts when the one known is old", -time.Hour+20*time.Millisecond)
}

func TestTheClockOfARealSourceIsMeasured(t *testing.T) {
	f := newFlavor(t, gomysql.MySQLFlavor)
	c := newWallClock()
	conn, err := connect(t.Context(), f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := c.measure(conn); err != nil {
		t.Fatal(err)
	}
	offset, within, known := c.Skew()
	if !known || offset.Abs() > within+time.Millisecond {
		t.Errorf("the source on this machine is %v ahead, within %v (known: %t), want the same clock", offset, within, known)
	}
	if _, err := conn.Execute("SET TIMESTAMP = UNIX_TIMESTAMP() + 90"); err != nil {
		t.Fatal(err)
	}
	if err := c.measure(conn); err != nil {
		t.Fatal(err)
	}
	if offset, _, _ := c.Skew(); (offset - 90*time.Second).Abs() > 2*time.Second {
		t.Errorf("a source whose clock is 90 s ahead is measured as %v ahead", offset)
	}
	if ahead := time.Until(c.At(time.Now())); (ahead - 90*time.Second).Abs() > 2*time.Second {
		t.Errorf("its time is %v ahead", ahead)
	}
	if got := testutil.ToFloat64(c.Metrics.skew); got < 88 || got > 92 {
		t.Errorf("the metric says %v", got)
	}
}

func TestTheAgeOfARowIsToldWhenItIsReadByTheClockOfTheSource(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (id INT PRIMARY KEY)")
	out := newMemory()
	s := w.source(out, nil)
	s.Clock = newWallClock()
	s.Clock.learn(time.Now(), time.Hour, 0)
	w.run(s)
	out.awaitCopied(t)
	w.exec("INSERT INTO q VALUES (1), (2)", "UPDATE q SET id = 3 WHERE id = 2", "DELETE FROM q WHERE id = 1")
	out.awaitKey(t, `{"id":3}`)
	out.awaitSaved(t)
	var m dto.Metric
	if err := s.Metrics.readAge.WithLabelValues(w.name + ".q").(prometheus.Histogram).Write(&m); err != nil {
		t.Fatal(err)
	}
	// The update of a key is a delete and a create.
	if n, mean := m.Histogram.GetSampleCount(), m.Histogram.GetSampleSum()/float64(m.Histogram.GetSampleCount()); n < 4 || mean < 3600 || mean > 3660 {
		t.Errorf("%d rows were %v s old in the mean, by a clock that is an hour ahead; want four or five, an hour old", n, mean)
	}
}

// A copy waits while the capture is behind, by the clock of the source, which stamps what it is behind of.
func TestHowFarTheCaptureIsBehindIsSeenByTheClockOfTheSource(t *testing.T) {
	for lag, behind := range map[time.Duration]bool{0: false, -time.Minute: false, time.Minute: true} {
		s, read := &Source{Clock: newWallClock()}, time.Now()
		s.Config.Snapshot.MaxLag = 10 * time.Second
		s.Clock.learn(read, -time.Minute, time.Millisecond) // the source's shows a minute less than ours
		s.snaps.endAt = read
		s.pos.CommitMicros = read.Add(-time.Minute - lag).UnixMicro()
		if why, err := s.busy(nil); err != nil || (why != "") != behind {
			t.Errorf("%v behind: a copy waits for %q, %v", lag, why, err)
		}
	}
}
