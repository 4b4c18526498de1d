package sinks

import (
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
)

// sign is what one outcome says about its table.
type sign struct {
	taken  bool   // the store has the row as it is to be, or a newer one
	print  string // the fingerprint of a refusal that counts; empty when it does not
	class  Class
	reason string
}

// flood decides whether the refusals of a table are some bad rows, which become dead
// letters, or one fault that would make a letter of every row: when more than a share
// of the last outcomes are refusals with one fingerprint, the table is held. After a
// while one change is tried; when that is not refused in the same way the table goes
// on. Each wait is twice as long as the last, until a whole window has passed without
// holding again.
//
// It is gobreaker's idea, with its names for the states, but what trips it is not a
// row of failures, and its waits grow.
type flood struct {
	window int // how many outcomes count
	share  float64
	pause  pause

	recent []string // the fingerprints of the last outcomes; empty for one that was taken
	at     int      // of the oldest of them, once the window is full
	counts map[string]int
	calm   int // outcomes since it was closed

	state  gobreaker.State
	print  string
	class  Class
	reason string
	since  time.Time
	next   time.Time // when a change is tried
}

func newFlood(cfg Config) *flood {
	return &flood{
		window: cfg.FloodWindow,
		share:  cfg.FloodShare,
		pause:  pause{min: cfg.FloodWait, max: cfg.FloodWaitMax},
		counts: make(map[string]int),
	}
}

// note takes the outcomes of a call in, and reports whether the table is held.
func (f *flood) note(now time.Time, signs []sign) bool {
	for _, s := range signs {
		if f.state != gobreaker.StateClosed {
			break
		}
		if s.taken || s.print != "" {
			f.count(now, s)
		}
	}
	return f.state != gobreaker.StateClosed
}

func (f *flood) count(now time.Time, s sign) {
	if len(f.recent) < f.window {
		f.recent = append(f.recent, s.print)
	} else {
		if old := f.recent[f.at]; old != "" {
			if f.counts[old]--; f.counts[old] == 0 {
				delete(f.counts, old)
			}
		}
		f.recent[f.at] = s.print
		f.at = (f.at + 1) % f.window
	}
	if f.calm++; f.calm >= f.window {
		f.pause.reset()
	}
	if s.print == "" {
		return
	}
	f.counts[s.print]++
	if n := f.counts[s.print]; 4*n >= f.window && float64(n) > f.share*float64(len(f.recent)) {
		f.print, f.class, f.reason, f.since = s.print, known(s.class), s.reason, now
		f.hold(now, f.pause.more())
	}
}

func (f *flood) hold(now time.Time, wait time.Duration) {
	f.state, f.next = gobreaker.StateOpen, now.Add(wait)
}

// probe claims the one try of a table that is held.
func (f *flood) probe(now time.Time) bool {
	if f.state != gobreaker.StateOpen || now.Before(f.next) {
		return false
	}
	f.state, f.next = gobreaker.StateHalfOpen, time.Time{}
	return true
}

// probed takes the outcome of the try in, and reports whether the table is held on.
// One that says nothing, because the store was unavailable, is repeated soon.
func (f *flood) probed(now time.Time, s sign) bool {
	switch {
	case s.print == f.print:
		f.reason = s.reason
		f.hold(now, f.pause.more())
		return true
	case !s.taken && s.print == "":
		f.hold(now, f.pause.min)
		return true
	}
	f.state, f.since, f.next, f.print, f.class, f.reason = gobreaker.StateClosed, time.Time{}, time.Time{}, "", "", ""
	f.recent, f.at, f.calm = f.recent[:0], 0, 0
	clear(f.counts)
	return false
}

// tableBreaker is the flood of one table, shared by the partitions of its topic.
type tableBreaker struct {
	sink  string
	table string
	log   *slog.Logger
	bell  bell // rings when the state changes
	state prometheus.Gauge
	since prometheus.Gauge
	next  prometheus.Gauge
	held  map[Class]prometheus.Gauge
	waits held

	mu    sync.Mutex
	flood *flood
	lanes int // partitions of the table that this process has now
}

func newTableBreaker(sink, table string, cfg Config, m *Metrics, log *slog.Logger) *tableBreaker {
	b := &tableBreaker{
		sink: sink, table: table, flood: newFlood(cfg), log: log.With("sink", sink, "table", table),
		state: m.tableBreaker.WithLabelValues(sink, table),
		since: m.tableSince.WithLabelValues(sink, table),
		next:  m.tableNext.WithLabelValues(sink, table),
		held:  make(map[Class]prometheus.Gauge),
		waits: held{partitions: m.tableWaits.MustCurryWith(prometheus.Labels{"sink": sink, "table": table}), by: make(map[*driver]heldPartition)},
	}
	for _, by := range holders {
		b.waits.partitions.WithLabelValues(by)
	}
	for _, c := range Classes {
		b.held[c] = m.tableHeld.WithLabelValues(sink, table, string(c))
	}
	return b
}

// lock returns what is to be called when the flood was asked: it tells of what has
// changed.
func (b *tableBreaker) lock() func() {
	b.mu.Lock()
	was := b.flood.state
	return func() {
		f := b.flood
		now, print, reason, since, next := f.state, f.print, f.reason, f.since, f.next
		b.show()
		b.mu.Unlock()
		if was == now {
			return
		}
		switch {
		case now == gobreaker.StateOpen && was == gobreaker.StateClosed:
			b.log.Warn("table held: the store refuses its changes one like the other, so they wait instead of becoming dead letters",
				"fingerprint", print, "reason", reason, "next_probe", next.Format(time.RFC3339), "see", "lockstep status")
		case now == gobreaker.StateOpen:
			b.log.Info("table still held", "fingerprint", print, "reason", reason, "since", since.Format(time.RFC3339), "next_probe", next.Format(time.RFC3339))
		case now == gobreaker.StateClosed:
			b.log.Info("table goes on")
		}
		b.bell.ring()
	}
}

// show brings the gauges up to date. A table whose partitions are all elsewhere is
// not shown as held.
func (b *tableBreaker) show() {
	f := b.flood
	state, since, next, class := f.state, f.since, f.next, f.class
	if b.lanes == 0 {
		state, since, next, class = gobreaker.StateClosed, time.Time{}, time.Time{}, ""
	}
	b.state.Set(float64(state))
	setTime(b.since, since)
	setTime(b.next, next)
	for c, g := range b.held {
		if c == class {
			g.Set(1)
		} else {
			g.Set(0)
		}
	}
}

// enter notes that a partition of the table came, or that one left. What is known of
// a flood is kept: the partition may come back.
func (b *tableBreaker) enter(n int) {
	defer b.lock()()
	b.lanes += n
}

// note takes the outcomes of a call in, and reports whether the table is held.
func (b *tableBreaker) note(now time.Time, c *call, signs []sign) bool {
	defer b.lock()()
	if c != nil && c.probe {
		return b.flood.probed(now, signs[0])
	}
	return b.flood.note(now, signs)
}

// claim takes the one try of a table that is held, if it is due.
func (b *tableBreaker) claim(now time.Time) bool {
	defer b.lock()()
	return b.flood.probe(now)
}

// tries reports whether the table is held for such refusals. If its try is due it is
// over with that: whoever asks knows how it would end.
func (b *tableBreaker) tries(now time.Time, s sign) bool {
	defer b.lock()()
	if b.flood.print != s.print {
		return false
	}
	if b.flood.probe(now) {
		b.flood.probed(now, s)
	}
	return true
}

// unclaim gives the try back, for it was not made.
func (b *tableBreaker) unclaim(now time.Time) {
	defer b.lock()()
	b.flood.hold(now, b.flood.pause.min)
}

// admits reports whether the table's changes may be sent; if not, when one of them
// may; zero when that depends on a call that is under way.
func (b *tableBreaker) admits() (ok bool, at time.Time, why hold) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flood.state == gobreaker.StateClosed {
		return true, time.Time{}, hold{}
	}
	return false, b.flood.next, hold{by: ByFlood, reason: b.flood.reason, mend: b.wayOut()}
}

// sign is that of a refusal; of a record that nobody can read, which has no table, when
// it is not readable.
func (b *tableBreaker) sign(c Class, reason string, readable bool) sign {
	table := b.table
	if !readable {
		table = ""
	}
	return sign{print: Fingerprint(b.sink, table, c, reason), class: c, reason: reason}
}

// wayOut is what is to be done about a flood.
func (b *tableBreaker) wayOut() string {
	mend := "mend what refuses the rows (the index or key, the table's entry in the configuration) or the rows themselves in MySQL; " +
		"the table goes on by itself with the first try that is taken, or once the sink is started again"
	if b.flood.class == ClassUndecodable { // no replay can apply their letters
		return mend
	}
	return mend + "; then apply the letters from before: " +
		strings.Join([]string{"lockstep dlq replay --sink", b.sink, "--table", b.table, "--fingerprint", b.flood.print}, " ")
}

// status is the breaker as an operator sees it, and how many partitions of the table
// this process has.
func (b *tableBreaker) status() (s BreakerStatus, lanes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.flood
	return BreakerStatus{
		State: f.state.String(), Class: f.class, Fingerprint: f.print, Reason: f.reason,
		Since: notZero(f.since), NextProbe: notZero(f.next),
	}, b.lanes
}
