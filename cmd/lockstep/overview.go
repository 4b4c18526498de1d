package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"lockstep/freshness"
	"lockstep/route"
	"lockstep/sinks"
)

// overview is the whole pipeline as one process of it has heard: what all of them say in the topic of
// watermarks. Fields are added to it, none is renamed.
type overview struct {
	Capture   captureStatus    `json:"capture"`
	Sinks     []sinkOverview   `json:"sinks"`
	Ages      []ageStatus      `json:"ages" doc:"how old changes were since their commit, at each stage of their way, within the last minute; of several processes the highest"`
	Reconcile *reconcileStatus `json:"reconcile,omitempty" doc:"absent when no process compares rows"`
	Processes []processOf      `json:"processes"`
}

type captureStatus struct {
	Process  string           `json:"process,omitempty" doc:"the one that captures; absent when none is heard of that does"`
	Standby  int              `json:"standby" doc:"how many processes stand by"`
	Behind   *float64         `json:"behind_seconds,omitempty" doc:"everything that was committed before then is in Kafka; absent while it is not known"`
	Quiet    *float64         `json:"quiet_seconds,omitempty" doc:"for how long nothing was said of that"`
	Position string           `json:"position,omitempty" doc:"file and position in the source's log"`
	GTIDs    string           `json:"gtids,omitempty"`
	Copies   []freshness.Copy `json:"copies" doc:"tables that are being copied"`
}

type sinkOverview struct {
	Sink       string              `json:"sink"`
	Store      string              `json:"store"`
	Processes  int                 `json:"processes"`
	Partitions int                 `json:"partitions" doc:"that some process has"`
	Of         int                 `json:"of" doc:"partitions there are"`
	Held       int                 `json:"held_partitions"`
	Breaker    sinks.BreakerStatus `json:"breaker"`
	Behind     *float64            `json:"behind_seconds,omitempty" doc:"everything that was committed before then is applied, or a dead letter; absent while it is not known"`
	BehindIn   string              `json:"behind_in,omitempty" doc:"the table that is most behind, or of which that is not known"`
	Delivered  *float64            `json:"delivered_behind_seconds,omitempty" doc:"the same, with dead letters as not delivered"`
	Letters    int64               `json:"letters" doc:"open dead letters"`
	Routes     map[string]int      `json:"routes" doc:"tables by the state of their route: ok, warning, degraded"`
	FromMySQL  int                 `json:"from_mysql" doc:"tables that are read from MySQL, or whose keys are not all back"`
}

type ageStatus = freshness.Stage

type reconcileStatus struct {
	Process    string     `json:"process,omitempty" doc:"the one that compares; absent when all stand by"`
	Standby    int        `json:"standby"`
	Mismatches int        `json:"mismatches" doc:"that the last full passes have found and that were not repaired"`
	Passed     *time.Time `json:"passed,omitempty" doc:"when the oldest of the last full passes over the tables began"`
}

type processOf struct {
	Name    string           `json:"name"`
	Version string           `json:"version"`
	Parts   []freshness.Part `json:"parts"`
	Started time.Time        `json:"started"`
	Skew    *float64         `json:"clock_skew_seconds,omitempty" doc:"how far the source's clock is ahead of its own; absent while that is not known"`
	Quiet   float64          `json:"quiet_seconds" doc:"for how long nothing was heard of it"`
	Silent  bool             `json:"silent" doc:"it counts as gone"`
}

// trouble is something that an operator should look at.
type trouble struct {
	What  string     `json:"what"`
	Since *time.Time `json:"since,omitempty"`
	Why   string     `json:"why,omitempty"`
	Mend  string     `json:"mend,omitempty" doc:"what is to be done; absent when it goes on by itself"`
	// Letters says that it is a dead letter: it waits for somebody, and nothing waits for it.
	Letters bool `json:"letters,omitempty" doc:"it is about dead letters: they wait for somebody, and nothing waits for them"`
}

// overview is nil while this process is no part of a running pipeline.
func (p *process) overview(now time.Time, routes []route.Advice) (*overview, []trouble) {
	if p.hub == nil {
		return nil, nil
	}
	s := p.hub.State()
	if !s.Reading {
		return nil, nil
	}
	o := &overview{Capture: captureStatus{Copies: []freshness.Copy{}}, Sinks: []sinkOverview{}, Ages: highest(s.Processes), Processes: []processOf{}}
	var found []trouble
	say := func(t trouble) { found = append(found, t) }
	heard := false
	for _, k := range s.Processes {
		heard = heard || k.Process.Process == p.id && !k.Silent()
		o.add(k, say, now)
	}
	if !heard {
		say(trouble{What: "this process does not hear the others, so what it says of them may be old", Why: "it cannot read or write the topic " + freshness.Topic(p.cfg.Prefix), Mend: "see that Kafka runs; lockstep doctor checks the account's rights"})
	}
	o.capture(s, say, now)
	for _, name := range p.cfg.SinkNames() {
		o.Sinks = append(o.Sinks, p.sinkOverview(name, s, routes, say, now))
	}
	if r := o.Reconcile; r != nil && r.Process == "" {
		say(trouble{What: "no process compares rows with the sinks", Mend: "one that stands by takes over within kafka.lease_timeout"})
	} else if r != nil && r.Mismatches > 0 {
		say(trouble{What: fmt.Sprintf("%s between MySQL and the sinks", count(r.Mismatches, "confirmed mismatch")), Since: r.Passed, Mend: "lockstep reconcile --once --dry-run lists them, --repair mends them"})
	}
	return o, found
}

// add takes a process in.
func (o *overview) add(k freshness.Known, say func(trouble), now time.Time) {
	one := processOf{Name: k.Name, Version: k.Version, Parts: k.Parts, Started: atMicros(k.StartedMicros), Quiet: k.Quiet.Seconds(), Silent: k.Silent()}
	if k.SkewMicros != nil {
		one.Skew = seconds(time.Duration(*k.SkewMicros) * time.Microsecond)
	}
	o.Processes = append(o.Processes, one)
	if one.Silent {
		since := now.Add(-k.Quiet)
		say(trouble{What: fmt.Sprintf("the process %s is silent (%s)", k.Name, partNames(k.Parts)), Since: &since, Mend: "see whether it runs and reaches Kafka; others take over what it did"})
		return
	}
	for _, part := range k.Parts {
		switch {
		case part.Name == "capture" && part.Doing == "active":
			o.Capture.Process = k.Name
		case part.Name == "capture":
			o.Capture.Standby++
		case part.Name == "reconcile":
			if o.Reconcile == nil {
				o.Reconcile = &reconcileStatus{}
			}
			if part.Doing != "active" {
				o.Reconcile.Standby++
			} else if o.Reconcile.Process = k.Name; k.Compares != nil {
				o.Reconcile.Mismatches = k.Compares.Mismatches
				if k.Compares.PassedMicros > 0 {
					passed := atMicros(k.Compares.PassedMicros)
					o.Reconcile.Passed = &passed
				}
			}
		}
		if !part.Ready {
			say(trouble{What: fmt.Sprintf("%s is not ready in the process %s", part.Name, k.Name), Mend: "its log says why; lockstep doctor checks what it needs"})
		}
	}
}

func (o *overview) capture(s freshness.State, say func(trouble), now time.Time) {
	c := &o.Capture
	var quiet *time.Time
	if b := s.Beat; b != nil {
		at := now.Add(-s.BeatAge)
		quiet, c.Quiet, c.Behind = &at, seconds(s.BeatAge), seconds(max(0, b.UpTo())+s.BeatAge)
		c.GTIDs = b.GTIDs
		if b.File != "" {
			c.Position = fmt.Sprintf("%s:%d", b.File, b.Pos)
		}
		c.Copies = append(c.Copies, b.Copies...)
	}
	switch {
	case c.Process == "":
		say(trouble{What: "no process captures, so nothing new comes to the sinks", Since: quiet, Mend: "start lockstep capture, or lockstep run; lockstep doctor says what would stop it"})
	case c.Behind == nil:
		say(trouble{What: "how far the capture is behind the source is not known: it has not said so since this process was started"})
	case *c.Behind > captureBehind.Seconds():
		since := now.Add(-time.Duration(*c.Behind * float64(time.Second)))
		say(trouble{What: "the capture is behind the source", Since: &since, Why: "what was committed after that is not in Kafka yet, or the source does not answer"})
	}
}

// captureBehind is how far the capture may be behind until somebody should look.
const captureBehind = 10 * time.Second

func (p *process) sinkOverview(name string, s freshness.State, routes []route.Advice, say func(trouble), now time.Time) sinkOverview {
	k := sinkOverview{Sink: name, Store: p.cfg.Sinks[name].Store(), Processes: len(s.Sinks[name]), Routes: map[string]int{}, Breaker: sinks.BreakerStatus{State: "closed"}}
	if s.Beat != nil {
		for table, ends := range s.Beat.Ends {
			if p.sinkTakes(name, table) {
				k.Of += len(ends)
			}
		}
	}
	type partition struct {
		table string
		id    int
	}
	has, held, letters := map[partition]bool{}, map[string]*sinks.HeldStatus{}, map[string]int64{}
	since := map[string]*time.Time{} // of the oldest letter
	var oldest *time.Time
	blind := false
	for _, id := range slices.Sorted(maps.Keys(s.Sinks[name])) {
		one := s.Sinks[name][id]
		blind = blind || one.AppliedUpToMicros > 0 && one.DeliveredUpToMicros == 0
		if b := one.Breaker; b.State != "closed" && b.State != "" && (k.Breaker.State == "closed" || b.State == "open") {
			k.Breaker = b
		}
		for table, t := range one.Tables {
			for id := range t.Partitions {
				has[partition{table, id}] = true
			}
			if letters[table] += t.Letters; t.OldestLetterMicros > 0 {
				at := p.here(atMicros(t.OldestLetterMicros))
				since[table], oldest = soonest(since[table], at), soonest(oldest, at)
			}
			if h := t.Held; h != nil {
				k.Held += h.Partitions
				if was := held[table]; was != nil {
					h = &sinks.HeldStatus{By: h.By, Reason: h.Reason, Mend: cmp.Or(h.Mend, was.Mend), Since: *soonest(&h.Since, was.Since), NextTry: h.NextTry, Partitions: h.Partitions + was.Partitions}
				}
				held[table] = h
			}
			k.Letters += t.Letters
		}
	}
	k.Partitions = len(has)
	lag := p.board.Lag(now, name)
	if k.BehindIn = lag.Table; lag.Known {
		k.Behind = seconds(lag.Behind)
		if k.Delivered = k.Behind; blind {
			k.Delivered = nil
		} else if oldest != nil {
			k.Delivered = seconds(max(lag.Behind, now.Sub(*oldest)))
		}
	}
	switch {
	case k.Processes == 0:
		say(trouble{What: fmt.Sprintf("no process of sink %s is heard of", name), Mend: "start lockstep sink " + name + ", or lockstep run"})
	case k.Partitions < k.Of:
		say(trouble{What: fmt.Sprintf("sink %s: %d of %d partitions are in the hands of nobody of whom it is known how far they are", name, k.Of-k.Partitions, k.Of), Mend: "they are given out within seconds; else see the log of the sink"})
	}
	if k.Breaker.State != "closed" {
		say(trouble{What: fmt.Sprintf("sink %s: breaker is %s", name, k.Breaker.State), Since: k.Breaker.Since, Why: k.Breaker.Reason, Mend: "mend the store; it goes on by itself"})
	}
	for _, table := range slices.Sorted(maps.Keys(held)) {
		if held[table].By != sinks.ByStore || k.Breaker.State == "closed" { // else it is told once
			say(heldTrouble(name, table, held[table], now))
		}
	}
	if tolerated := p.cfg.Objectives.WindowTolerated; lag.Known && lag.Behind > tolerated {
		since := now.Add(-lag.Behind)
		say(trouble{What: fmt.Sprintf("sink %s is behind, most in table %s", name, lag.Table), Since: &since})
	}
	for _, a := range routes {
		for _, d := range a.Sinks {
			if d.Sink == name {
				if k.Routes[d.State.String()]++; d.Read != route.ReadSink {
					k.FromMySQL++
				}
			}
		}
	}
	for _, table := range slices.Sorted(maps.Keys(letters)) {
		if letters[table] > 0 {
			say(letterTrouble(name, table, letters[table], since[table]))
		}
	}
	return k
}

// readElsewhere tells of the tables that are read from MySQL, of those of a sink at once.
func readElsewhere(routes []route.Advice) (found []trouble) {
	of, since, why := map[string][]string{}, map[string]*time.Time{}, map[string]string{}
	for _, a := range routes {
		for _, d := range a.Sinks {
			if d.Read != route.ReadMySQL {
				continue
			}
			of[d.Sink] = append(of[d.Sink], a.Table)
			if was := since[d.Sink]; soonest(was, d.Since) != was {
				since[d.Sink], why[d.Sink] = &d.Since, d.Why
			}
		}
	}
	for _, sink := range slices.Sorted(maps.Keys(of)) {
		what := fmt.Sprintf("sink %s: table %s is read from MySQL", sink, of[sink][0])
		if n := len(of[sink]); n > 1 {
			what = fmt.Sprintf("sink %s: %d tables are read from MySQL (%s)", sink, n, some(of[sink]))
		}
		found = append(found, trouble{What: what, Since: since[sink], Why: why[sink]})
	}
	return found
}

// letterTrouble tells of the open dead letters of a table.
func letterTrouble(sink, table string, n int64, oldest *time.Time) trouble {
	t := trouble{What: fmt.Sprintf("sink %s: table %s has %s", sink, table, count(int(n), "open dead letter")), Since: oldest, Letters: true, Mend: "see lockstep dlq group"}
	if t.Why = "the oldest change that the store lacks was committed then"; oldest == nil {
		t.Why = "nobody knows since when the store lacks the row"
	}
	return t
}

// here is a time of the source's clock by the one of this process.
func (p *process) here(at time.Time) time.Time {
	now := time.Now()
	return at.Add(now.Sub(p.clock.At(now)))
}

// heldTrouble tells of a table that is held.
func heldTrouble(sink, table string, h *sinks.HeldStatus, now time.Time) trouble {
	why := h.Reason
	if h.NextTry != nil {
		if d := h.NextTry.Sub(now); d > 0 {
			why = "next try in " + d.Round(100*time.Millisecond).String() + ": " + why
		}
	}
	if h.Partitions > 0 {
		why = count(h.Partitions, "partition") + " waiting, " + why
	}
	return trouble{What: fmt.Sprintf("sink %s: table %s is held", sink, table), Since: &h.Since, Why: why, Mend: h.Mend}
}

// highest are the ages of all processes, of each stage the highest.
func highest(all []freshness.Known) []ageStatus {
	out := []ageStatus{}
	for _, k := range all {
		if k.Silent() {
			continue
		}
		for _, s := range k.Stages {
			i := slices.IndexFunc(out, func(o ageStatus) bool { return o.Name == s.Name && o.Sink == s.Sink })
			if i < 0 {
				out = append(out, s)
				continue
			}
			o := &out[i]
			o.Count, o.P50, o.P99 = o.Count+s.Count, max(o.P50, s.P50), max(o.P99, s.P99)
		}
	}
	order := []string{"read", "acked", "fetched", "applied", "searchable"}
	slices.SortFunc(out, func(a, b ageStatus) int {
		return cmp.Or(cmp.Compare(a.Sink, b.Sink), cmp.Compare(slices.Index(order, a.Name), slices.Index(order, b.Name)))
	})
	return out
}

// screen writes the overview for people.
func (o *overview) screen(w io.Writer, now time.Time) {
	c := o.Capture
	active := "nobody"
	if c.Process != "" {
		active = c.Process
	}
	fmt.Fprintf(w, "\nCAPTURE\tBEHIND\tSTANDBY\tPOSITION\tCOPYING\t\n%s\t%s\t%d\t%s\t%s\t\n", active, behind(c.Behind), c.Standby, dash(c.Position), copies(c.Copies))
	fmt.Fprintln(w, "\nSINK\tSTORE\tPARTITIONS\tHELD\tBREAKER\tBEHIND\tDELIVERED\tLETTERS\tREAD FROM IT\t")
	for _, k := range o.Sinks {
		all := 0
		for _, n := range k.Routes {
			all += n
		}
		fmt.Fprintf(w, "%s\t%s\t%d of %d\t%d\t%s\t%s\t%s\t%d\t%d of %s\t\n", k.Sink, k.Store, k.Partitions, k.Of, k.Held, k.Breaker.State,
			behind(k.Behind), behind(k.Delivered), k.Letters, all-k.FromMySQL, count(all, "table"))
	}
	if len(o.Ages) > 0 {
		fmt.Fprintln(w, "\nAGE SINCE COMMIT\tSINK\tHALF BELOW\t99 % BELOW\tCHANGES IN 1m\t")
		for _, s := range o.Ages {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t\n", s.Name, dash(s.Sink), span(s.P50), span(s.P99), s.Count)
		}
	}
	fmt.Fprintln(w, "\nPROCESS\tDOES\tUP\tHEARD\tSOURCE'S CLOCK\tVERSION\t")
	for _, p := range o.Processes {
		heard, skew := "yes", "-"
		if p.Silent {
			heard = "SILENT for " + span(p.Quiet)
		}
		if p.Skew != nil {
			skew = fmt.Sprintf("%+.3fs", *p.Skew)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", p.Name, partNames(p.Parts), now.Sub(p.Started).Round(time.Second), heard, skew, dash(p.Version))
	}
	if r := o.Reconcile; r != nil {
		passed := "no full pass is over yet"
		if r.Passed != nil {
			passed = "everything was compared since " + now.Sub(*r.Passed).Round(time.Second).String() + " ago"
		}
		fmt.Fprintf(w, "\nreconciler: %s is active, %d stand by; %s, %s\n", cmp.Or(r.Process, "nobody"), r.Standby, passed, count(r.Mismatches, "mismatch"))
	}
}

func copies(all []freshness.Copy) string {
	var out []string
	for _, c := range all {
		text := c.Table
		if c.Estimate > 0 {
			text += fmt.Sprintf(" %d %%", min(99, 100*c.Rows/c.Estimate))
		}
		if c.State != "running" {
			text += " " + c.State
		}
		out = append(out, text)
	}
	return dash(some(out))
}

// some names the first few.
func some(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}

func partNames(parts []freshness.Part) string {
	var out []string
	for _, p := range parts {
		text := p.Name
		if p.Doing != "" {
			text += " " + p.Doing
		}
		if !p.Ready {
			text += " NOT READY"
		}
		out = append(out, text)
	}
	return dash(strings.Join(out, ", "))
}

// behind is a time that may not be known.
func behind(s *float64) string {
	if s == nil {
		return "?"
	}
	return span(*s)
}

func span(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d >= 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(time.Millisecond).String()
}

func seconds(d time.Duration) *float64 {
	s := d.Round(time.Millisecond).Seconds()
	return &s
}

func atMicros(at int64) time.Time { return time.UnixMicro(at).UTC() }

// soonest is the earlier of two times, of which the first may be none.
func soonest(a *time.Time, b time.Time) *time.Time {
	if a == nil || b.Before(*a) {
		return &b
	}
	return a
}

// announce is how this process is, for the others.
func (p *process) announce() *freshness.Process {
	now := time.Now()
	parts, _ := p.ready.state()
	doing := p.ready.doing()
	out := &freshness.Process{
		Process: p.id, Name: p.name(), Version: thisVersion(), Parts: []freshness.Part{}, Stages: p.ages.lately(now),
		StartedMicros: p.started.UnixMicro(), AtMicros: now.UnixMicro(),
	}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		out.Parts = append(out.Parts, freshness.Part{Name: name, Ready: parts[name], Doing: doing[name]})
	}
	if skew, _, known := p.clock.Skew(); known {
		us := skew.Microseconds()
		out.SkewMicros = &us
	}
	if m := p.compares.Load(); m != nil {
		mismatches, coverage := m.Standing()
		out.Compares = &freshness.Compares{}
		for _, one := range collected(mismatches) {
			out.Compares.Mismatches += int(one.GetGauge().GetValue())
		}
		for _, one := range collected(coverage) {
			if at := int64(one.GetGauge().GetValue() * 1e6); out.Compares.PassedMicros == 0 || at < out.Compares.PassedMicros {
				out.Compares.PassedMicros = at
			}
		}
	}
	return out
}

// name is where this process can be asked, or the machine alone.
func (p *process) name() string {
	host, err := os.Hostname()
	if err != nil {
		host = "a machine without a name"
	}
	if _, port, err := net.SplitHostPort(p.cfg.Admin.Listen); err == nil {
		return net.JoinHostPort(host, port)
	}
	return host
}
