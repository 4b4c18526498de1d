package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/kafka"
)

// world is a topic, a store with a version guard, and the letters, with any mishap
// drawn at any moment: calls take any time, so they end in any order; they are answered
// in part; they are given up and write all the same, at once or much later. Two
// processes share the partitions, which move between them while calls are under way.
// It checks every commit against what is really stored.
type world struct {
	mu      sync.Mutex
	draw    func(int) int // a number below
	calm    bool          // no mishap any more
	tracks  []*track
	stored  map[string]cdc.Version
	letters map[string]map[cdc.Version]bool
	told    map[string]cdc.Version // what the worker said that the store has
	refused map[string][]Verdict   // answers, by row and version: two processes may be told different ones
	late    sync.WaitGroup         // writes of calls that were given up
	calls   int                    // under way
	most    int                    // at a time
	fault   string
}

// track is a partition of the topic.
type track struct {
	*world
	id         int
	log        []kafka.Record
	start      int            // the committed offset
	broken     map[int64]bool // offsets of buried records that nobody can read
	generation int
}

// ride is a partition in the hands of one process for one generation of the group.
type ride struct {
	*track
	generation int
	sent       int // of log
}

func (w *world) blame(format string, args ...any) {
	if w.fault == "" {
		w.fault = fmt.Sprintf(format, args...)
	}
}

func (r *ride) Name() (string, int) { return "p.shop.q", r.id }

func (r *ride) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
	r.mu.Lock()
	n := 0
	if r.sent < len(r.log) {
		n = 1 + r.draw(min(6, len(r.log)-r.sent))
	}
	out := r.log[r.sent : r.sent+n]
	r.sent += n
	pause := time.Duration(r.draw(4)) * 100 * time.Millisecond
	r.mu.Unlock()
	if n == 0 {
		pause = time.Minute
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(pause):
		return out, nil
	}
}

// Commit checks P1: of everything below next the state is stored or in a letter, or a
// newer change of the row is still to come.
func (r *ride) Commit(_ context.Context, next int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.generation != r.track.generation || !r.calm && r.draw(4) == 0 {
		return errors.New("away")
	}
	r.start = int(next)
	for _, rec := range r.log[:next] {
		if !r.kept(rec, next) {
			r.blame("offset %d of partition %d is committed, but %s at %d is nowhere", next, r.id, rec.Value, rec.Offset)
		}
	}
	return nil
}

func (k *track) kept(r kafka.Record, next int64) bool {
	c, err := cdc.Decode(r.Key, r.Value, r.Headers)
	if err != nil {
		return k.broken[r.Offset]
	}
	key := string(c.Key)
	if k.told[key] >= c.Version {
		return true
	}
	for v := range k.letters[key] {
		if v >= c.Version {
			return true
		}
	}
	for _, later := range k.log[next:] {
		if l, err := cdc.Decode(later.Key, later.Value, later.Headers); err == nil && string(l.Key) == key && l.Version > c.Version {
			return true
		}
	}
	return false
}

func (w *world) Apply(ctx context.Context, changes []cdc.Change) []Outcome {
	w.mu.Lock()
	w.calls++
	w.most = max(w.most, w.calls)
	took := time.Duration(w.draw(40)) * time.Millisecond
	if !w.calm && w.draw(20) == 0 {
		took = time.Duration(w.draw(8)) * time.Second // it may not end before the partition is taken away
	}
	w.mu.Unlock()
	gaveUp := false
	select {
	case <-time.After(took):
	case <-ctx.Done():
		gaveUp = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls--
	out := make([]Outcome, len(changes))
	away := gaveUp || !w.calm && w.draw(8) == 0
	seen := make(map[string]bool)
	for i, c := range changes {
		key := string(c.Key)
		if seen[key] {
			w.blame("one call has two changes of %s", key)
		}
		seen[key] = true
		this := key + c.Version.String()
		mishap := w.draw(10)
		switch {
		case away || !w.calm && mishap == 0:
			out[i] = Outcome{Verdict: Unavailable, RetryAfter: time.Duration(w.draw(3)) * time.Second}
			switch w.draw(3) {
			case 0:
				w.write(key, c.Version)
			case 1:
				w.late.Go(func() {
					time.Sleep(time.Duration(mishap) * time.Second)
					w.mu.Lock()
					defer w.mu.Unlock()
					w.write(key, c.Version)
				})
			}
		case !w.calm && mishap == 1:
			w.refused[this] = append(w.refused[this], Transient)
			out[i] = Outcome{Verdict: Transient, Class: ClassRefused, Reason: "not now"}
		case !w.calm && mishap == 2:
			w.refused[this] = append(w.refused[this], Poison)
			out[i] = Outcome{Verdict: Poison, Class: ClassMapping, Reason: fmt.Sprintf("no field %c", 'a'+w.draw(3))}
		default:
			out[i] = Outcome{Verdict: w.write(key, c.Version)}
		}
	}
	return out
}

// write is the guard, and checks P2.
func (w *world) write(key string, v cdc.Version) Verdict {
	switch at := w.stored[key]; {
	case at > v:
		return Stale
	case at == v:
		return Duplicate
	}
	if w.stored[key] > v {
		w.blame("%s went back from %d to %d", key, w.stored[key].Seq(), v.Seq())
	}
	w.stored[key] = v
	return Applied
}

func (w *world) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) { return 0, nil }

// settled checks that whoever keeps the letters hears only what is true.
func (w *world) settled(partition int, c *cdc.Change, v Verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := string(c.Key)
	if at := w.stored[key]; at < c.Version || v == Stale && at == c.Version || partition != int(c.Key[len(c.Key)-3])%2 {
		w.blame("partition %d says %d of %s, of which the store has %d", partition, v, key+c.Version.String(), at)
	}
	w.told[key] = max(w.told[key], c.Version)
}

func (w *world) bury(_ context.Context, r Refusal) error {
	w.mu.Lock()
	pause := time.Duration(w.draw(20)) * time.Millisecond
	away := !w.calm && w.draw(3) == 0
	w.mu.Unlock()
	time.Sleep(pause)
	if away {
		return errors.New("away")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Change == nil {
		w.tracks[r.Record.Partition].broken[r.Record.Offset] = true
		return nil
	}
	key := string(r.Change.Key)
	this := key + r.Change.Version.String()
	as := Poison
	if r.Transient {
		as = Transient
	}
	if said := w.refused[this]; !slices.Contains(said, as) {
		w.blame("%s was buried with verdict %d, and the store said %v", this, as, said)
	}
	if w.letters[key] == nil {
		w.letters[key] = make(map[cdc.Version]bool)
	}
	w.letters[key][r.Change.Version] = true
	return nil
}

func TestWhateverHappensNothingIsLostAndTheBooksBalance(t *testing.T) {
	most := 0
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		records := rapid.IntRange(1, 80).Draw(rt, "records")
		moves := rapid.IntRange(0, 6).Draw(rt, "moves")
		var w *world
		synctest.Test(t, func(t *testing.T) { w = live(t, seed, records, moves) })
		most = max(most, w.most)
		if w.fault != "" {
			rt.Fatal(w.fault)
		}
	})
	if most < 3 {
		t.Errorf("%d calls were under way at a time at most; the test shows nothing", most)
	}
}

// live plays the records with mishaps, moves, and a calm end.
func live(t *testing.T, seed uint64, records, moves int) *world {
	w := &world{
		stored: make(map[string]cdc.Version), letters: make(map[string]map[cdc.Version]bool),
		told: make(map[string]cdc.Version), refused: make(map[string][]Verdict),
	}
	w.draw = rand.New(rand.NewPCG(seed, seed)).IntN
	for id := range 2 {
		w.tracks = append(w.tracks, &track{world: w, id: id, broken: make(map[int64]bool)})
	}
	var published []kafka.Record
	put := func(r kafka.Record) {
		id := w.draw(2)
		if r.Key != nil {
			id = int(r.Key[len(r.Key)-3]) % 2 // by the row
		}
		k := w.tracks[id]
		r.Topic, r.Partition, r.Offset = "p.shop.q", id, int64(len(k.log))
		k.log = append(k.log, r)
	}
	for i := range records {
		r := kafka.Record{Value: []byte("?")}
		switch w.draw(10) {
		case 0:
		case 1: // the capture was restarted and writes again what it had written
			for _, again := range published[len(published)-w.draw(len(published)+1):] {
				put(again)
			}
			continue
		default:
			r = record(shopQ, string(rune('a'+w.draw(6))), uint64(1+i))
			published = append(published, r)
		}
		put(r)
	}

	cfg := DefaultConfig()
	cfg.BatchChanges, cfg.StopWithin = 4, 2*time.Second
	cfg.FloodWindow, cfg.FloodWait, cfg.FloodWaitMax = 20, time.Second, 10*time.Second
	const memory, fetch = 6000, 6000
	var processes []*Worker
	var books []*prometheus.Registry
	for range 2 {
		reg := prometheus.NewRegistry()
		books = append(books, reg)
		processes = append(processes, &Worker{Name: "es", Memory: NewMemory(memory), Sink: w, Bury: w.bury, Settled: w.settled, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(reg), Config: cfg})
	}
	var riding sync.WaitGroup
	cancels := make([]context.CancelFunc, len(w.tracks))
	// move gives a partition to a process. The former owner may still finish its calls.
	move := func(k *track, to *Worker) {
		if cancels[k.id] != nil {
			cancels[k.id]()
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancels[k.id] = cancel
		w.mu.Lock()
		k.generation++
		r := &ride{track: k, generation: k.generation, sent: k.start}
		w.mu.Unlock()
		riding.Go(func() {
			if err := to.RunPartition(ctx, r); err != nil {
				w.mu.Lock()
				w.blame("%v", err)
				w.mu.Unlock()
			}
		})
	}
	look := func(over bool) {
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		for i, reg := range books {
			if wrong := unbalanced(t, reg, over); wrong != "" {
				w.blame("process %d: %s", i, wrong)
			}
			if used := inUse(processes[i].Memory); used > memory+len(w.tracks)*fetch {
				w.blame("process %d holds %d bytes", i, used)
			}
		}
	}
	for _, k := range w.tracks {
		w.mu.Lock()
		to := processes[w.draw(2)]
		w.mu.Unlock()
		move(k, to)
	}
	for range moves {
		w.mu.Lock()
		pause := time.Duration(w.draw(15_000)) * time.Millisecond
		k, to := w.tracks[w.draw(2)], processes[w.draw(2)]
		w.mu.Unlock()
		time.Sleep(pause)
		look(false)
		move(k, to)
	}
	w.mu.Lock()
	w.calm = true
	w.mu.Unlock()
	time.Sleep(5 * time.Minute)
	look(false)
	for _, cancel := range cancels {
		cancel()
	}
	riding.Wait()
	w.late.Wait()
	look(true)
	// A flood of records that nobody can read waits for a person, with what stands behind them.
	waits := func(k *track) bool {
		return k.start < len(k.log) && k.log[k.start].Key == nil && slices.ContainsFunc(processes, func(p *Worker) bool {
			b := p.tables[k.log[k.start].Topic]
			return b != nil && b.flood.class == ClassUndecodable
		})
	}
	for _, k := range w.tracks {
		log := k.log
		if waits(k) {
			log = log[:k.start]
		}
		if k.start != len(log) {
			w.blame("committed %d of %d records of partition %d after five calm minutes", k.start, len(log), k.id)
		}
		for _, r := range log {
			if !k.kept(r, int64(len(k.log))) {
				w.blame("%s is neither stored nor in a letter", r.Value)
			}
		}
	}
	for i := range processes {
		if used := inUse(processes[i].Memory); used != 0 {
			w.blame("process %d has given everything back and holds %d bytes", i, used)
		}
	}
	return w
}

func inUse(m *Memory) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// unbalanced names a sink and table whose books do not balance; over says that nothing
// is to be in flight any more, and nothing to wait or to be held.
func unbalanced(t testing.TB, reg *prometheus.Registry, over bool) string {
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	type page struct{ received, settled, inFlight, dead, letters float64 }
	pages := make(map[string]*page)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			label := make(map[string]string)
			for _, l := range m.GetLabel() {
				label[l.GetName()] = l.GetValue()
			}
			key := label["sink"] + " " + label["table"]
			if pages[key] == nil {
				pages[key] = &page{}
			}
			switch p := pages[key]; f.GetName() {
			case "lockstep_sink_received_total":
				p.received += m.GetCounter().GetValue()
			case "lockstep_sink_changes_total":
				p.settled += m.GetCounter().GetValue()
				if label["outcome"] == outcomeDead {
					p.dead += m.GetCounter().GetValue()
				}
			case "lockstep_sink_dead_letters_total":
				p.letters += m.GetCounter().GetValue()
			case "lockstep_sink_pool_calls", "lockstep_sink_pool_waiting", "lockstep_sink_memory_bytes", "lockstep_sink_held_partitions", "lockstep_sink_sweeping":
				if n := m.GetGauge().GetValue(); n < 0 || over && n != 0 {
					return fmt.Sprintf("%s is %v", f.GetName(), n)
				}
			case "lockstep_sink_in_flight":
				p.inFlight += m.GetGauge().GetValue()
			}
		}
	}
	for key, p := range pages {
		if p.received != p.settled+p.inFlight || p.inFlight < 0 || p.dead != p.letters || over && p.inFlight != 0 {
			return fmt.Sprintf("the books of %s do not balance: %+v", key, *p)
		}
	}
	return ""
}
