package route

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Machine judges one table in one sink. Times it is handed never go back.
type Machine struct {
	cfg  Config
	born time.Time

	capture time.Time // when it was last heard
	reports map[string]heard
	parts   []part // partitions of the table
	tally   tally
	compare time.Time // when a reconciler was heard of last; zero for never

	bad [2]map[Cause]time.Time // for warning and degraded: since when without a break

	state  State
	cause  Cause
	reason string
	since  time.Time
	calm   time.Time // since when nothing speaks for the state; zero while something does
	stops  Stops
	clear  time.Time // since when a sample can tell that the sink is right again
	step   int       // shares that are back: 0 none, 1 Shares[0], len(Shares)+1 all
	stepAt time.Time
}

type heard struct {
	Report
	at time.Time
}

// part is a partition: the process that had it last, and when that last said how far it is.
type part struct {
	process    string
	generation int32
	told       time.Time
}

// behind is how late the sink is now: what it lacks gets older.
func (r Report) behind(now time.Time) time.Duration {
	if r.Lacks.IsZero() {
		return r.Behind
	}
	return max(r.Behind, now.Sub(r.Lacks))
}

// finding is something that speaks for a state.
type finding struct {
	level  State
	cause  Cause
	reason string
	atOnce bool // it needs not last
}

// NewMachine makes a machine of which nothing is known: the table is degraded until a
// sample of it is verified.
func NewMachine(cfg Config, now time.Time) *Machine {
	m := &Machine{cfg: cfg, born: now, reports: map[string]heard{}, bad: [2]map[Cause]time.Time{{}, {}}}
	m.state, m.cause, m.reason, m.since = Degraded, Unheard, "nothing is known of it yet", now
	return m
}

// configure has a machine judge by other limits. One that had all its readers back has them
// still, and one that was on its way goes on at the same step of the new shares.
func (m *Machine) configure(cfg Config) {
	if whole := m.step > len(m.cfg.Shares); whole || m.step > len(cfg.Shares) {
		m.step = len(cfg.Shares) + 1
	}
	m.cfg = cfg
}

// Saved is what a machine must know of itself after a restart.
type Saved struct {
	State  State     `json:"state"`
	Cause  Cause     `json:"cause,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	Step   int       `json:"step"`
	// Stops is for who asks beside those who judge; it is found anew.
	Stops Stops `json:"stops"`
}

// Save is what Restore takes.
func (m *Machine) Save() Saved {
	s := Saved{m.state, m.cause, m.reason, m.since, m.step, m.stops}
	if m.cfg.DryRun {
		s.Stops = Stops{}
	}
	return s
}

// Restore goes on where a machine was that judged until now, or a moment ago. What it has
// not heard within Config.Silence is unknown then.
func (m *Machine) Restore(s Saved, now time.Time) {
	m.state, m.cause, m.reason, m.since = s.State, s.Cause, s.Reason, s.Since
	m.step, m.stepAt = min(max(s.Step, 0), len(m.cfg.Shares)+1), now
	if m.state == Degraded {
		m.step = 0
	}
}

// Hear takes in what a process of the sink said at a time. What it said before counts no
// more.
func (m *Machine) Hear(at time.Time, r Report) {
	m.reports[r.Process] = heard{r, at}
	for len(m.parts) < r.Of {
		m.parts = append(m.parts, part{told: at})
	}
	for id := range m.parts {
		p := &m.parts[id]
		switch claimed := slices.Contains(r.Partitions, id); {
		case claimed && (p.process == r.Process || p.process == "" || r.Generation >= p.generation || at.Sub(p.told) > m.cfg.Silence):
			p.process, p.generation = r.Process, r.Generation
			if r.Known {
				p.told = at
			}
		case !claimed && p.process == r.Process:
			p.process = "" // given up, and nobody else has it yet
		}
	}
	maps.DeleteFunc(m.reports, func(process string, _ heard) bool { return !m.has(process) })
}

// has reports whether a process has a partition of the table.
func (m *Machine) has(process string) bool {
	return slices.ContainsFunc(m.parts, func(p part) bool { return p.process == process })
}

// Capture takes in that the capture was heard.
func (m *Machine) Capture(now time.Time) { m.capture = now }

// Verify takes in what the reconciler has found.
func (m *Machine) Verify(s Sample) { m.tally.add(s, m.cfg.MinKeys) }

// Compares takes in that a reconciler is there, whatever it compares.
func (m *Machine) Compares(now time.Time) { m.compare = now }

// reconcilerKept is how long after it was heard of a reconciler counts as one that is there.
const reconcilerKept = 10 * time.Minute

// verifies reports whether a degraded table needs a sample to return.
func (m *Machine) verifies(now time.Time) bool {
	switch m.cfg.Verify {
	case VerifyAlways:
		return true
	case VerifyNever:
		return false
	}
	return !m.compare.IsZero() && now.Sub(m.compare) < reconcilerKept
}

// Decide says where the table is to be read from now on. It is to be asked several times a
// second.
func (m *Machine) Decide(now time.Time) Decision {
	found := m.look(now)
	for level, since := range m.bad {
		for _, f := range found {
			if _, known := since[f.cause]; !known && f.level > State(level) {
				since[f.cause] = now
			}
		}
		maps.DeleteFunc(since, func(c Cause, _ time.Time) bool {
			return !slices.ContainsFunc(found, func(f finding) bool { return f.cause == c && f.level > State(level) })
		})
	}
	if worst(found).level == Degraded {
		m.stepAt = now // the shares grow in peace
	}
	if m.clear.IsZero() || slices.ContainsFunc(found, func(f finding) bool { return f.level == Degraded && f.cause != Missing && f.cause != Mismatch }) {
		m.clear = now
	}
	m.returns(now)
	m.turn(now, found)
	return m.decision(now)
}

// worst is the first of those with the highest level.
func worst(found []finding) (top finding) {
	for _, f := range found {
		if f.level > top.level {
			top = f
		}
	}
	return top
}

// mature is what is found at the levels at which it has lasted long enough.
func (m *Machine) mature(now time.Time, found []finding) []finding {
	out := slices.Clone(found)
	for i := range out {
		f := &out[i]
		for f.level > OK && !f.atOnce && now.Sub(m.bad[f.level-1][f.cause]) < m.cfg.WorsenAfter {
			f.level--
		}
	}
	return out
}

// turn changes the state, for the worse at once and for the better after a time in peace.
func (m *Machine) turn(now time.Time, found []finding) {
	lasting := m.mature(now, found)
	raw, top := worst(found), worst(lasting)
	defer func() { m.forbid(lasting) }()
	if m.returning() {
		top = worst([]finding{top, m.back()})
	}
	if top.level > m.state {
		m.become(now, top)
		return
	}
	if top.level == m.state && top.cause != "" {
		m.cause, m.reason = top.cause, top.reason
	}
	if m.cause == Returning && !m.returning() {
		m.reason = fmt.Sprintf("all keys are back since %s", clock(m.stepAt))
	}
	if raw.level >= m.state {
		m.calm = time.Time{}
		return
	}
	if m.calm.IsZero() {
		m.calm = now
	}
	switch {
	case top.level == m.state || m.waits(now) != "":
	case m.state == Degraded:
		m.step, m.stepAt = 1, now
		if m.step <= len(m.cfg.Shares) {
			raw = worst([]finding{raw, m.back()})
		}
		m.become(now, raw)
	default:
		m.become(now, raw)
	}
}

// forbid finds what must not be done: what speaks for the state now says so, and of
// differences the last that was found.
func (m *Machine) forbid(lasting []finding) {
	m.stops = Stops{}
	if m.state != Degraded {
		return
	}
	if m.cause == Mismatch || m.cause == Missing {
		m.stops = stops(m.cause)
	}
	for _, f := range lasting {
		if f.level == Degraded {
			m.stops = m.stops.or(stops(f.cause))
		}
	}
}

func (m *Machine) become(now time.Time, f finding) {
	m.state, m.cause, m.reason, m.since, m.calm = f.level, f.cause, f.reason, now, time.Time{}
	if m.state == Degraded {
		m.step = 0
	}
}

// returns lets the next share of the keys back when the last one has had its time.
func (m *Machine) returns(now time.Time) {
	if m.returning() && now.Sub(m.stepAt) >= m.cfg.ShareEvery {
		m.step, m.stepAt = m.step+1, now
	}
}

// returning reports whether some keys are back and some are not.
func (m *Machine) returning() bool { return m.state != Degraded && m.step <= len(m.cfg.Shares) }

// back says which.
func (m *Machine) back() finding {
	return finding{Warning, Returning, fmt.Sprintf("%d %% of the keys are back since %s", m.share(), clock(m.stepAt)), true}
}

// share is the part of the keys that is back.
func (m *Machine) share() int {
	switch {
	case m.step == 0:
		return 0
	case m.step > len(m.cfg.Shares):
		return 100
	}
	return m.cfg.Shares[m.step-1]
}

// waits is what a state waits for until it gets better.
func (m *Machine) waits(now time.Time) string {
	switch {
	case m.state == OK:
		return ""
	case m.calm.IsZero():
		return "it is still so"
	case now.Sub(m.calm) < m.cfg.RecoverAfter:
		return fmt.Sprintf("it is better since %s and has to stay so for %s", clock(m.calm), m.cfg.RecoverAfter)
	case m.state != Degraded || !m.verifies(now):
		return ""
	}
	s, enough := m.tally.since(m.clear, m.cfg.MinKeys)
	if !enough {
		return fmt.Sprintf("the reconciler has compared %d keys since %s; it takes %d, or the whole table", s.Compared, clock(m.clear), m.cfg.MinKeys)
	}
	return "" // what it has found is judged like everything else
}

// decision is what the state means.
func (m *Machine) decision(now time.Time) Decision {
	d := Decision{
		State: m.state, Cause: m.cause, Reason: m.reason, Since: m.since,
		Share: m.share(), WouldShare: m.share(), Waits: m.waits(now), Stops: m.stops, DryRun: m.cfg.DryRun,
	}
	if d.DryRun {
		d.Share, d.Stops = 100, Stops{}
	}
	return d
}

// look finds what speaks for a state, the most telling first.
func (m *Machine) look(now time.Time) (found []finding) {
	say := func(level State, cause Cause, atOnce bool, format string, args ...any) {
		found = append(found, finding{level, cause, fmt.Sprintf(format, args...), atOnce})
	}
	limit := func(cause Cause, got, limit, tolerated time.Duration, format string, args ...any) {
		switch what := fmt.Sprintf(format, args...); {
		case got > tolerated:
			say(Degraded, cause, false, "%s; more than %s is not tolerated", what, tolerated)
		case got > limit:
			say(Warning, cause, false, "%s; the objective is %s", what, limit)
		}
	}
	if why := m.unheard(now); why != "" {
		say(Degraded, Unheard, true, "%s", why)
	}
	if level, cause, reason := m.cfg.judge(sum(m.tally.samples, m.cfg.MinKeys)); level > OK {
		say(level, cause, true, "%s", reason)
	}
	letters := 0
	for _, process := range slices.Sorted(maps.Keys(m.reports)) {
		r := m.reports[process]
		if now.Sub(r.at) > m.cfg.Silence {
			continue // that nothing is known of it was said
		}
		if r.Down != "" {
			say(Degraded, Unavailable, r.Open, "%s", r.Down)
		}
		if behind := r.behind(now); r.Known {
			limit(Late, behind, m.cfg.Window, m.cfg.WindowTolerated, "the sink lacks what was committed %s ago", rounded(behind))
		}
		if r.Copying && m.state == Degraded {
			say(Degraded, Late, true, "rows of the table are being copied, and nobody knows whether the sink has them")
		}
		if r.Changes >= m.cfg.MinChanges {
			limit(Slow, r.P99, m.cfg.P99, m.cfg.P99Tolerated, "99 of 100 of the last %d changes took up to %s", r.Changes, rounded(r.P99))
		}
		letters += r.Letters
	}
	switch {
	case letters > m.cfg.Missing:
		say(Degraded, Undelivered, false, "%d rows are not as they should be, because of open dead letters; that is more than %d", letters, m.cfg.Missing)
	case letters > 0:
		say(Warning, Undelivered, false, "%d rows are not as they should be, because of open dead letters", letters)
	}
	return found
}

// unheard says of what nothing is known. A table that is degraded does not get better before
// everything is; one that is not has Config.Silence.
func (m *Machine) unheard(now time.Time) string {
	strict := m.state == Degraded
	since := func(t time.Time) time.Duration { return now.Sub(later(t, m.born)) }
	switch quiet := since(m.capture); {
	case quiet > m.cfg.Silence:
		return fmt.Sprintf("the capture has said nothing for %s", rounded(quiet))
	case strict && m.capture.IsZero():
		return "the capture has said nothing yet"
	}
	if len(m.parts) == 0 && (strict || since(m.born) > m.cfg.Silence) {
		return "no process of the sink has the table"
	}
	for id, p := range m.parts {
		r, known := m.reports[p.process]
		quiet := now.Sub(p.told)
		switch {
		case quiet <= m.cfg.Silence && (!strict || known && r.Known):
		case !known:
			return fmt.Sprintf("no process of the sink has partition %d of the table", id)
		case now.Sub(r.at) > m.cfg.Silence:
			return fmt.Sprintf("the process %s, which has partition %d of the table, has said nothing for %s", p.process, id, rounded(quiet))
		default:
			return fmt.Sprintf("how far the process %s is, which has partition %d of the table, is not known", p.process, id)
		}
	}
	return ""
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func rounded(d time.Duration) time.Duration {
	if d > 10*time.Second {
		return d.Round(time.Second)
	}
	return d.Round(10 * time.Millisecond)
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05") }
