package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// newCrowd is a board of two sinks with so many idle tables, which are ok.
func newCrowd(tables int) (b *Board, now time.Time) {
	cfg := DefaultConfig()
	cfg.Shares = nil
	b, now = NewBoard(func(string) Config { return cfg }, NewMetrics(prometheus.NewRegistry())), time.Unix(1_000_000, 0)
	for range 60 {
		now = now.Add(250 * time.Millisecond)
		b.Capture(now)
		for i := range tables {
			for _, sink := range []string{"search", "cache"} {
				b.Hear(now, Place{sink, fmt.Sprintf("shop.t%04d", i)}, Report{Process: "p", Of: 1, Partitions: []int{0}, Known: true})
			}
		}
		b.Lap(now)
	}
	return b, now
}

// Judging costs little while nothing happens: a lap comes ten times a second.
func BenchmarkALapOverAThousandIdleTables(b *testing.B) {
	board, now := newCrowd(1000)
	for b.Loop() {
		board.Lap(now)
	}
}

func TestALagIsThatOfTheTableWhichIsMostBehindAndUnknownWithOneOfThem(t *testing.T) {
	b, now := newCrowd(3)
	behind := func(table string, r Report) Lag {
		r.Process, r.Of, r.Partitions = "p", 1, []int{0}
		b.Hear(now, Place{"search", table}, r)
		return b.Lag(now, "search")
	}
	if l := b.Lag(now, "search"); !l.Known || l.Behind != 0 {
		t.Errorf("idle: %+v", l)
	}
	if l := behind("shop.t0001", Report{Known: true, Lacks: now.Add(-7 * time.Second)}); l != (Lag{"shop.t0001", 7 * time.Second, true}) {
		t.Errorf("one is behind: %+v", l)
	}
	if l := behind("shop.t0002", Report{}); l.Known || l.Table != "shop.t0002" {
		t.Errorf("of one nobody knows: %+v", l)
	}
	if l := b.Lag(now.Add(time.Minute), "cache"); l.Known {
		t.Errorf("nothing was heard for a minute: %+v", l)
	}
	if l := b.Lag(now, "nowhere"); l.Known {
		t.Errorf("a sink of which nothing was heard: %+v", l)
	}
}

// Of a table that is not taken any more nothing is told, whatever is still said of it, and nothing
// is left that an alert would see; one that comes back begins anew.
func TestATableThatIsNotTakenAnyMoreIsForgotten(t *testing.T) {
	b, now := newCrowd(3)
	gone := Place{"search", "shop.t0001"}
	taken := func(p Place) bool { return p.Table != gone.Table }
	b.Takes = func(p Place) bool { return taken(p) }
	b.Configure()
	saved := b.Save(now)
	b.Hear(now, gone, Report{Process: "p", Known: true})
	b.Verify(now, gone, Sample{})
	b.Know(now, gone)
	b.Lap(now.Add(time.Hour))
	if got := b.Tables(); len(got) != 2 || slices.Contains(got, gone.Table) {
		t.Errorf("it knows %v", got)
	}
	if n := testutil.CollectAndCount(b.metrics.state); n != 4 {
		t.Errorf("%d states are shown; want those of 2 tables in 2 sinks", n)
	}
	if n := testutil.CollectAndCount(b.metrics.share); n != 4 {
		t.Errorf("%d shares are shown", n)
	}
	if strings.Contains(string(saved), gone.Table) {
		t.Errorf("%s", saved)
	}
	other, _ := newCrowd(3)
	if err := b.Restore(now, other.Save(now)); err != nil || slices.Contains(b.Tables(), gone.Table) {
		t.Errorf("what another process knows of it is taken over: %v, %v", b.Tables(), err)
	}
	taken = func(Place) bool { return true }
	b.Know(now, gone)
	if d := b.Decision(gone); d.State != Degraded || d.Cause != Unheard {
		t.Errorf("it comes back as %+v", d)
	}
}
