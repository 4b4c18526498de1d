package route

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Board has the machines of all tables in all sinks of a pipeline. It may be used from
// several goroutines; the times that it is handed must not go back.
type Board struct {
	// Takes reports whether a sink takes a table now; nil is for every one. What is said of others
	// is passed over.
	Takes func(Place) bool
	// config is that of a table.
	config  func(table string) Config
	metrics *Metrics

	mu       sync.Mutex
	machines map[Place]*machine
	changed  chan struct{}
}

// Place is a table in a sink.
type Place struct{ Sink, Table string }

func (p Place) compare(o Place) int {
	return cmp.Or(cmp.Compare(p.Table, o.Table), cmp.Compare(p.Sink, o.Sink))
}

type machine struct {
	*Machine
	last Decision
	tag  string // of last; it is made when that changes
}

// decide takes a decision, and reports whether it is another one for who acts on it.
func (m *machine) decide(now time.Time) bool {
	was := m.last
	m.last = m.Decide(now)
	if m.tag != "" && m.last.acts() == was.acts() {
		return false
	}
	m.tag = m.last.tag()
	return true
}

// NewBoard makes a board without tables.
func NewBoard(config func(table string) Config, metrics *Metrics) *Board {
	return &Board{config: config, metrics: metrics, machines: map[Place]*machine{}, changed: make(chan struct{})}
}

// Configure has every table judged by what the configuration says of it now. What is known of
// a table stays, and of one that is not taken any more nothing is.
func (b *Board) Configure() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, m := range b.machines {
		if !b.takes(p) {
			delete(b.machines, p)
			b.metrics.forget(p)
			continue
		}
		m.configure(b.config(p.Table))
	}
}

func (b *Board) takes(p Place) bool { return b.Takes == nil || b.Takes(p) }

// at is the machine of a place, a new one if need be; nil for a place that is not taken.
func (b *Board) at(now time.Time, p Place) *machine {
	m := b.machines[p]
	if m == nil {
		if !b.takes(p) {
			return nil
		}
		m = &machine{Machine: NewMachine(b.config(p.Table), now)}
		m.decide(now)
		b.machines[p] = m
		b.metrics.show(p, m.last)
	}
	return m
}

// Know makes a table known in a sink of which nothing may ever be heard.
func (b *Board) Know(now time.Time, p Place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at(now, p)
}

// Capture takes in that the capture was heard.
func (b *Board) Capture(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.machines {
		m.Capture(now)
	}
}

// Hear takes in what a process said of a place at a time, as Machine.Hear does.
func (b *Board) Hear(at time.Time, p Place, r Report) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m := b.at(at, p); m != nil {
		m.Hear(at, r)
	}
}

// Verify takes in what the reconciler has found.
func (b *Board) Verify(now time.Time, p Place, s Sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m := b.at(now, p); m != nil {
		m.Verify(s)
	}
	for _, m := range b.machines {
		m.Compares(now)
	}
}

// Turn is a change of what a reader has to do.
type Turn struct {
	Place
	Was, Now Decision
}

// Lap decides about every table, and tells of those whose route is another one than before.
func (b *Board) Lap(now time.Time) (turns []Turn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, m := range b.machines {
		was := m.last
		if m.decide(now) {
			turns = append(turns, Turn{p, was, m.last})
			b.metrics.show(p, m.last)
			b.metrics.count(p, was, m.last)
		}
	}
	if len(turns) > 0 {
		close(b.changed)
		b.changed = make(chan struct{})
		slices.SortFunc(turns, func(x, y Turn) int { return x.compare(y.Place) })
	}
	return turns
}

// tag is what a reader acts on. What else a decision says may change with every moment.
func (d Decision) tag() string { return fmt.Sprint(d.acts()) }

// acts is the same, to be compared.
func (d Decision) acts() acts {
	return acts{d.State, d.Cause, d.Since.UnixNano(), d.Share, d.Stops, d.DryRun, d.WouldShare}
}

type acts struct {
	state      State
	cause      Cause
	since      int64
	share      int
	stops      Stops
	dryRun     bool
	wouldShare int
}

// Changed is closed with the next change of a route.
func (b *Board) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// Decision is the last one about a place; of one that is not known it is that nothing is
// known.
func (b *Board) Decision(p Place) Decision {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, _ := b.decision(p)
	return d
}

// decision is that about a place, and its tag.
func (b *Board) decision(p Place) (Decision, string) {
	if m := b.machines[p]; m != nil {
		return m.last, m.tag
	}
	d := NewMachine(b.config(p.Table), time.Time{}).Decide(time.Time{})
	return d, d.tag()
}

// Tables are those that are known, by name.
func (b *Board) Tables() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for p := range b.machines {
		names = append(names, p.Table)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Where rows are read.
const (
	ReadSink  = "sink"
	ReadMySQL = "mysql"
	ReadSplit = "split" // by key
)

// Direction is where the rows of a table are to be read that a sink has.
type Direction struct {
	Sink  string    `json:"sink"`
	Read  string    `json:"read" doc:"sink, mysql, or split: the keys in the share read from the sink. With the parameter key it is sink or mysql"`
	Share int       `json:"share" doc:"percentage of the keys that read from the sink: those whose CRC-32 (IEEE), modulo 100, is below it"`
	State State     `json:"state" doc:"ok, warning or degraded"`
	Cause Cause     `json:"cause,omitempty" doc:"unheard, unavailable, missing, mismatch, undelivered, late, slow or returning"`
	Why   string    `json:"reason,omitempty" doc:"one sentence"`
	Since time.Time `json:"since" doc:"when the state began"`
	Waits string    `json:"waits,omitempty" doc:"what it waits for until it gets better"`
	Stops []string  `json:"stops" doc:"what must not be done meanwhile: deletes, repairs, replays"`
	// DryRun and WouldShare are Decision's.
	DryRun     bool `json:"dry_run,omitempty" doc:"the state is what it would be: all is read from the sink and nothing stopped all the same"`
	WouldShare *int `json:"would_share,omitempty" doc:"what share would be without the dry run"`

	tag string
}

// Advice is where a table is to be read.
type Advice struct {
	Table string      `json:"table"`
	Sinks []Direction `json:"sinks"`
	// At is when it was given. It may be used until UsableUntil, by the clock of who gives
	// it, or for so many seconds after it has come; who has none reads from MySQL.
	At            time.Time `json:"at"`
	UsableUntil   time.Time `json:"usable_until" doc:"until when it may be used, also when nobody can be asked again; afterwards read from MySQL"`
	UsableSeconds float64   `json:"usable_seconds" doc:"the same as a time from when it comes"`

	tag string
}

// Tag changes when a reader has to act otherwise.
func (a Advice) Tag() string { return a.tag }

// Answer says where a table is to be read that some sinks have.
func (b *Board) Answer(now time.Time, table string, sinks []string) Advice {
	ttl := b.config(table).TTL
	a := Advice{Table: table, Sinks: []Direction{}, At: now.UTC(), UsableUntil: now.Add(ttl).UTC(), UsableSeconds: ttl.Seconds()}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, sink := range sinks {
		d, tag := b.decision(Place{sink, table})
		a.Sinks = append(a.Sinks, direction(sink, d, tag))
		a.tag += a.Sinks[len(a.Sinks)-1].tag
	}
	return a
}

func direction(sink string, d Decision, tag string) Direction {
	out := Direction{
		Sink: sink, Share: d.Share, State: d.State, Cause: d.Cause, Why: d.Reason, Since: d.Since.UTC(), Waits: d.Waits,
		Stops: d.Stops.Names(), DryRun: d.DryRun, tag: sink + " " + tag + "\n",
	}
	if d.DryRun {
		out.WouldShare = &d.WouldShare
	}
	switch d.Share {
	case 0:
		out.Read = ReadMySQL
	case 100:
		out.Read = ReadSink
	default:
		out.Read = ReadSplit
	}
	return out
}

// Of is the answer for one sink; false when it is not in it.
func (a Advice) Of(sink string) (Advice, bool) {
	i := slices.IndexFunc(a.Sinks, func(d Direction) bool { return d.Sink == sink })
	if i < 0 {
		return a, false
	}
	a.Sinks = a.Sinks[i : i+1]
	a.tag = a.Sinks[0].tag
	return a, true
}

// For is the answer for one key.
func (a Advice) For(key string) Advice {
	a.Sinks = slices.Clone(a.Sinks)
	for i := range a.Sinks {
		d := &a.Sinks[i]
		if d.Read = ReadMySQL; Takes(key, d.Share) {
			d.Read = ReadSink
		}
	}
	return a
}

// saved is what a board must know after a restart.
type saved struct {
	Format int          `json:"format"`
	At     time.Time    `json:"at"`
	Places []savedPlace `json:"places"`
}

type savedPlace struct {
	Place
	Saved
}

const savedFormat = 1

// SaveEvery is how often a board is to be saved when nothing changes.
const SaveEvery = 5 * time.Second

// savedFor is how old a saved board may be that another one goes on with: for longer nobody
// can have judged.
const savedFor = 6 * SaveEvery

// Save is what Restore takes.
func (b *Board) Save(now time.Time) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := saved{Format: savedFormat, At: now.UTC(), Places: []savedPlace{}}
	for _, p := range slices.SortedFunc(maps.Keys(b.machines), Place.compare) {
		all.Places = append(all.Places, savedPlace{p, b.machines[p].Save()})
	}
	text, err := json.Marshal(all)
	if err != nil {
		panic(err) // it is made of texts, times and numbers
	}
	return text
}

// Forbidden tells of a saved board what must not be done in a place, and why; nothing of one
// that was saved too long ago.
func Forbidden(now time.Time, text []byte, p Place) (Stops, string, error) {
	all, err := readSaved(text)
	if err != nil || now.Sub(all.At) > savedFor {
		return Stops{}, "", err
	}
	for _, one := range all.Places {
		if one.Place == p {
			return one.Stops, one.Reason, nil
		}
	}
	return Stops{}, "", nil
}

func readSaved(text []byte) (all saved, err error) {
	if err := json.Unmarshal(text, &all); err != nil {
		return all, fmt.Errorf("the saved routes: %w", err)
	}
	if all.Format != savedFormat {
		return all, fmt.Errorf("the saved routes have format %d and this program knows %d; run the same version of lockstep everywhere", all.Format, savedFormat)
	}
	return all, nil
}

// Restore goes on where another board was. One that was saved too long ago says nothing:
// its tables begin anew.
func (b *Board) Restore(now time.Time, text []byte) error {
	all, err := readSaved(text)
	if err != nil {
		return err
	}
	if now.Sub(all.At) > savedFor {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range all.Places {
		m := b.at(now, p.Place)
		if m == nil {
			continue
		}
		m.Restore(p.Saved, now)
		m.decide(now)
		b.metrics.show(p.Place, m.last)
	}
	return nil
}

// Lag is how late a sink is: by the table that is most, or of which that is not known.
type Lag struct {
	Table  string
	Behind time.Duration
	Known  bool
}

// Lag is how late a sink is with all tables. It is not known of a sink of which nothing was heard.
func (b *Board) Lag(now time.Time, sink string) Lag {
	b.mu.Lock()
	defer b.mu.Unlock()
	lag, any := Lag{Known: true}, false
	for p, m := range b.machines {
		if p.Sink != sink {
			continue
		}
		for _, part := range m.parts {
			any = true
			r, heard := m.reports[part.process]
			switch known := heard && r.Known && now.Sub(r.at) <= m.cfg.Silence; {
			case !known && lag.Known, known && lag.Known && r.behind(now) > lag.Behind:
				lag = Lag{p.Table, r.behind(now), known}
			}
		}
	}
	lag.Known = lag.Known && any
	return lag
}
