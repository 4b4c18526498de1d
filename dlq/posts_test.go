package dlq

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/tidwall/gjson"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// tape is a compacted letters' topic in memory.
type tape struct {
	mu      sync.Mutex
	records map[int][]kafka.Record
	next    map[int]int64
	bell    chan struct{}
}

func newTape() *tape {
	return &tape{records: map[int][]kafka.Record{}, next: map[int]int64{}, bell: make(chan struct{})}
}

func (t *tape) append(records ...kafka.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range records {
		r.Offset, r.Time = t.next[r.Partition], time.Now()
		t.next[r.Partition]++
		t.records[r.Partition] = append(t.records[r.Partition], r)
	}
	close(t.bell)
	t.bell = make(chan struct{})
}

// all is what stands in a partition.
func (t *tape) all(partition int) []kafka.Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.records[partition])
}

// compact forgets what is older than lag and not the newest of its key.
func (t *tape) compact(lag time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, records := range t.records {
		newest := map[string]int64{}
		for _, r := range records {
			newest[string(r.Key)] = r.Offset
		}
		t.records[id] = slices.DeleteFunc(slices.Clone(records), func(r kafka.Record) bool {
			return r.Offset < newest[string(r.Key)] && time.Since(r.Time) > lag
		})
	}
}

// wire is a tape as one process has it. Once it is cut, nothing gets through any more.
type wire struct {
	*tape
	draw func(int) int
	mu   sync.Mutex
	cut  bool
}

var errCut = errors.New("killed")

func (w *wire) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
}

func (w *wire) dead() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut
}

func (w *wire) Produce(ctx context.Context, r kafka.Record) error { return w.ProduceAll(ctx, r) }

func (w *wire) ProduceAll(_ context.Context, records ...kafka.Record) error {
	for i := range records {
		time.Sleep(time.Duration(w.draw(5)) * time.Millisecond)
		if w.dead() {
			return errCut
		}
		w.append(records[i])
	}
	time.Sleep(time.Duration(w.draw(20)) * time.Millisecond)
	if w.dead() { // it is there, and nobody heard
		return errCut
	}
	return nil
}

func (w *wire) ReadAll(_ context.Context, topic string, fn func(kafka.Record) error) error {
	w.tape.mu.Lock()
	var all []kafka.Record
	for id := range w.records {
		all = append(all, w.records[id]...)
	}
	w.tape.mu.Unlock()
	for _, r := range all {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

func (w *wire) Follow(ctx context.Context, _ string, partition, _ int, fn func([]kafka.Record, bool) error) error {
	w.tape.mu.Lock()
	at, end := int64(0), w.next[partition]
	w.tape.mu.Unlock()
	for first := true; ; first = false {
		time.Sleep(time.Duration(w.draw(300)) * time.Millisecond)
		w.tape.mu.Lock()
		var some []kafka.Record
		for _, r := range w.records[partition] {
			if r.Offset >= at && len(some) < 3 {
				some = append(some, r)
				at = r.Offset + 1
			}
		}
		if len(some) == 0 {
			at = w.next[partition]
		}
		bell := w.bell
		w.tape.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		if len(some) > 0 || first {
			if err := fn(some, at >= end); err != nil {
				return err
			}
			continue
		}
		select {
		case <-bell:
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *wire) EndOffsets(context.Context, string) (map[int]int64, error) {
	time.Sleep(time.Duration(w.draw(30)) * time.Millisecond)
	w.tape.mu.Lock()
	defer w.tape.mu.Unlock()
	return maps.Clone(w.next), nil
}

func (w *wire) ReadAt(_ context.Context, _ string, partition int, offsets []int64, fn func(kafka.Record) error) error {
	w.tape.mu.Lock()
	records := w.records[partition]
	w.tape.mu.Unlock()
	for _, r := range records {
		if slices.Contains(offsets, r.Offset) {
			if err := fn(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// town is a whole sink: change topics of two tables with two partitions, which may become
// five at some time, a store, the letters' topic, processes that are killed or lose their partitions, and operators, with
// any mishap at any moment. The rows of one table move in the store.
type town struct {
	t        *testing.T
	draw     func(int) int
	tape     *tape
	mu       sync.Mutex
	calm     bool
	streets  []*street
	rows     map[string]*house // of the store
	tries    map[string]int    // of changes that are refused some times
	skipped  map[string]bool   // changes that an operator has given up
	again    map[string]bool   // rows whose letters an operator has tried
	fault    string
	grown    bool
	moved    int // letters
	believed int // rows that were said to be visible, and are
}

// grow puts a growth into every street.
func (w *town) grow(i int) {
	w.grown = true
	for n, table := range tables {
		c := cdc.Change{Table: table, Op: cdc.OpGrowth, Growth: &cdc.Growth{Partitions: many}}
		c.Version, _ = cdc.NewVersion(1, uint64(i))
		for range 2 {
			c.Growth.Behind = nil
			for id := range many {
				c.Growth.Behind = append(c.Growth.Behind, int64(len(w.streets[many*n+id].log)))
			}
			for id := range many {
				w.streets[many*n+id].put(&c)
			}
		}
	}
}

// street is a partition of a change topic.
type street struct {
	*town
	topic string
	id    int
	log   []kafka.Record
	start int
	read  int // of any process
	turn  int // generation
}

// house is a row in the store: for each place the newest version that it was told of, and
// whether the row is there.
type house struct {
	newest cdc.Version
	places map[string]cdc.Version
	lives  map[string]bool
}

var tables = []cdc.TableName{{DB: "shop", Table: "still"}, {DB: "shop", Table: "moving"}}

func moving(t cdc.TableName) bool { return t == tables[1] }

func (w *town) roll(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.draw(n)
}

func (w *town) blame(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fault == "" {
		w.fault = fmt.Sprintf(format, args...)
	}
}

// fate says how often the store refuses a change: never, some times, or always; and
// whether that may pass.
func fate(c *cdc.Change) (times int, poison bool) {
	h := fnv.New32a()
	fmt.Fprint(h, c.Table, string(c.Key), c.Version)
	switch n := h.Sum32() % 20; {
	case n < 4:
		return 1 << 30, true
	case n < 8:
		return 1 + int(n-4), false
	case n < 9:
		return 1 << 30, false
	}
	return 0, false
}

func rowOf(c *cdc.Change) string    { return c.Table.Table + string(c.Key) }
func changeOf(c *cdc.Change) string { return rowOf(c) + c.Version.String() }

func (w *town) Apply(ctx context.Context, changes []cdc.Change) []sinks.Outcome {
	time.Sleep(time.Duration(w.roll(60)) * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]sinks.Outcome, len(changes))
	for i := range changes {
		c := &changes[i]
		times, poison := fate(c)
		refused := w.tries[changeOf(c)] < times
		if mishap := w.draw(10); !w.calm && mishap < 2 {
			if mishap == 0 && !refused {
				w.write(c)
			}
			continue // unavailable
		}
		if refused {
			w.tries[changeOf(c)]++
			w.leave(c)
			out[i] = sinks.Outcome{Verdict: sinks.Transient, Class: sinks.ClassMapping, Reason: "not now"}
			if poison {
				out[i] = sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassMapping, Reason: fmt.Sprintf("no field %c", 'a'+w.draw(3))}
			}
			continue
		}
		out[i] = sinks.Outcome{Verdict: w.write(c)}
	}
	return out
}

// house finds a row, or makes room for it.
func (w *town) house(c *cdc.Change) *house {
	h := w.rows[rowOf(c)]
	if h == nil {
		h = &house{places: map[string]cdc.Version{}, lives: map[string]bool{}}
		w.rows[rowOf(c)] = h
	}
	return h
}

// put is the guard, at each place.
func (h *house) put(place string, v cdc.Version, lives bool) sinks.Verdict {
	switch at := h.places[place]; {
	case at > v:
		return sinks.Stale
	case at == v:
		return sinks.Duplicate
	}
	h.places[place], h.lives[place] = v, lives
	return sinks.Applied
}

// leave takes a row out of its older places.
func (w *town) leave(c *cdc.Change) {
	here := gjson.GetBytes(c.After, "at").Str
	for _, image := range append([][]byte{c.Before}, c.Left...) {
		if there := gjson.GetBytes(image, "at").Str; there != here && moving(c.Table) && image != nil {
			w.house(c).put(there, c.Version, false)
		}
	}
}

func (w *town) write(c *cdc.Change) sinks.Verdict {
	w.leave(c)
	h := w.house(c)
	h.newest = max(h.newest, c.Version)
	switch {
	case !moving(c.Table):
		return h.put("", c.Version, c.Op != cdc.OpDelete)
	case c.Op == cdc.OpDelete:
		return sinks.Applied
	}
	return h.put(gjson.GetBytes(c.After, "at").Str, c.Version, true)
}

// Sweep forgets what it removes: whatever comes later from before the barrier brings the
// row back.
func (w *town) Sweep(_ context.Context, t cdc.TableName, v cdc.Version) (int, error) {
	time.Sleep(time.Duration(w.roll(100)) * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, h := range w.rows {
		if !strings.HasPrefix(name, t.Table+"{") {
			continue
		}
		for place, at := range h.places {
			if at <= v {
				delete(h.places, place)
				delete(h.lives, place)
			}
		}
		if h.newest <= v {
			h.newest = 0
		}
	}
	return 0, nil
}

// lane is a street in the hands of one process.
type lane struct {
	*street
	turn, sent int
	wire       *wire
}

func (l *lane) Name() (string, int) { return l.topic, l.id }

func (l *lane) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
	pause := time.Duration(l.roll(400)) * time.Millisecond
	l.mu.Lock()
	n := 0
	if l.sent < len(l.log) {
		n = 1 + l.draw(min(4, len(l.log)-l.sent))
	}
	out := l.log[l.sent : l.sent+n]
	l.sent += n
	l.read = max(l.read, l.sent)
	l.mu.Unlock()
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

func (l *lane) Commit(_ context.Context, next int64) error {
	dead := l.wire.dead()
	l.mu.Lock()
	defer l.mu.Unlock()
	if dead || l.turn != l.street.turn || !l.calm && l.draw(5) == 0 {
		return errCut
	}
	l.start = int(next)
	return nil
}

// machine is a process that has all partitions.
type machine struct {
	wire   *wire
	worker *sinks.Worker
	posts  *Posts
	reg    *prometheus.Registry
	from   map[*street]int // the end of what was read before
	stop   context.CancelFunc
	done   sync.WaitGroup
}

func (w *town) boot() *machine {
	m := &machine{from: map[*street]int{}, wire: &wire{tape: w.tape, draw: w.roll}, reg: prometheus.NewRegistry()}
	cfg := sinks.DefaultConfig()
	cfg.BatchChanges, cfg.FloodShare, cfg.StopWithin, cfg.CommitEvery = 3, 1, 2*time.Second, 20*time.Millisecond
	m.posts = &Posts{
		Letters: &Letters{Sink: "es", Topic: "p.dlq.es", Log: m.wire}, Log: m.wire,
		Retries: cfg.Retries, HoldMin: cfg.HoldMin, HoldMax: cfg.HoldMax, Loading: make(chan struct{}, 1), Metrics: NewMetrics(m.reg),
	}
	m.worker = &sinks.Worker{
		Name: "es", Sink: m.posts.Guard(w), Bury: m.posts.Bury, Settled: m.posts.Settled, Moves: moving,
		Progress: func(_ context.Context, topic string) (ends, committed map[int]int64, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			ends, committed = map[int]int64{}, map[int]int64{}
			for _, s := range w.streets {
				if s.topic == topic {
					ends[s.id], committed[s.id] = int64(len(s.log)), int64(s.start)
				}
			}
			return ends, committed, nil
		},
		Log: slog.New(slog.DiscardHandler), Metrics: sinks.NewMetrics(prometheus.NewRegistry()), Config: cfg,
	}
	m.posts.Try = m.worker.Try
	m.worker.Moved = func() { w.believe(m) }
	ctx, stop := context.WithCancel(w.t.Context())
	m.stop = stop
	for _, s := range w.streets {
		w.mu.Lock()
		s.turn++
		m.from[s] = s.read
		l := &lane{street: s, turn: s.turn, sent: s.start, wire: m.wire}
		w.mu.Unlock()
		m.done.Go(func() {
			if err := m.posts.RunPartition(ctx, l, m.worker.RunPartition); err != nil && !errors.Is(err, errCut) {
				w.blame("%v", err)
			}
		})
	}
	return m
}

// believe takes the process at its word: where the store shows a partition up to an offset,
// behind all that an earlier process has read, and it
// has no open letter, the store has every row as it was left before that offset, or newer.
func (w *town) believe(m *machine) {
	for _, s := range w.streets {
		shown, ok := m.worker.Shown(s.topic, s.id)
		if !ok || shown.Before < int64(m.from[s]) {
			continue
		}
		letters := m.posts.OpenIn(s.topic, s.id) // behind it
		w.mu.Lock()
		if letters == 0 && !w.grown { // else a letter may be on its way to another partition
			w.visible(s, shown, m.from[s])
		}
		w.mu.Unlock()
	}
}

// visible blames a store that lacks something of a street before an offset. The caller
// holds the lock.
func (w *town) visible(s *street, shown sinks.Shown, from int) {
	left, barrier := map[string]cdc.Change{}, cdc.Version(0)
	for offset, r := range s.log {
		c, err := cdc.Decode(r.Key, r.Value, r.Headers)
		switch {
		case err != nil || c.Op == cdc.OpGrowth:
		case c.Op == cdc.OpBarrier:
			if barrier = max(barrier, c.Version); offset < from { // it was met before: nobody knows of it here
				shown.Void = max(shown.Void, c.Version)
			}
		case int64(offset) < shown.Before && c.Version > left[rowOf(&c)].Version:
			left[rowOf(&c)] = c
		}
	}
	for row, c := range left {
		key, _ := cdc.KeyText(c.Key)
		h := w.rows[row]
		gone := h == nil || h.newest == 0 // by the barrier, which is newer
		if c.Version <= shown.Void || c.Version <= barrier && gone || h != nil && h.newest >= c.Version || w.skipped[c.Table.String()+key+c.Version.String()] {
			w.believed++
			continue
		}
		if w.fault == "" {
			w.fault = fmt.Sprintf("%s/%d is settled up to %d of %d and has no letter, and the store has no version %s of %s: %+v", s.topic, s.id, shown.Before, len(s.log), c.Version, row, h)
		}
	}
}

// operate plays an operator: a letter is skipped, or the letters are replayed, some time
// after they were listed.
func (w *town) operate() {
	l := &Letters{Sink: "es", Topic: "p.dlq.es", Log: &wire{tape: w.tape, draw: w.roll}}
	letters, err := l.List(w.t.Context(), Filter{})
	if err != nil {
		w.blame("list: %v", err)
	}
	if len(letters) == 0 {
		return
	}
	time.Sleep(time.Duration(w.roll(2000)) * time.Millisecond)
	if letter := letters[w.roll(len(letters))]; w.roll(3) == 0 {
		w.mu.Lock()
		if letter.Replayable() {
			w.skipped[letter.Table+letter.Key+letter.Version.String()] = true
		} else {
			w.skipped[letter.ID] = true
		}
		w.mu.Unlock()
		if err := l.Skip(w.t.Context(), letter, "known"); err != nil {
			w.blame("skip: %v", err)
		}
		return
	}
	w.mu.Lock()
	for _, letter := range letters {
		w.again[letter.Table+letter.Key] = true
	}
	barriers := map[string]cdc.Version{}
	for _, s := range w.streets {
		for _, r := range s.log {
			if c, err := cdc.Decode(r.Key, r.Value, r.Headers); err == nil && c.Op == cdc.OpBarrier {
				barriers[c.Table.String()] = c.Version
			}
		}
	}
	w.mu.Unlock()
	err = l.Replay(w.t.Context(), letters, w, ReplayOptions{Barriers: barriers, Gone: func(context.Context, cdc.TableName, [][]byte) (map[string]bool, error) { return nil, nil }})
	if err != nil && !errors.Is(err, ErrUnavailable) && !strings.Contains(err.Error(), "is not in") {
		w.blame("replay: %v", err)
	}
}

// Whatever happens, and whenever a process is killed: a row is in the store as it was
// left, or its newest change is a letter; no letter stays that the store has overtaken;
// what may pass is tried to the end; and what a barrier took away stays away.
func TestWhateverHappensALetterIsOpenForWhatTheStoreLacksAndForNothingElse(t *testing.T) {
	var letters, overtaken, retried, moved, believed int
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		changes := rapid.IntRange(1, 60).Draw(rt, "changes")
		kills := rapid.IntRange(0, 4).Draw(rt, "kills")
		operators := rapid.IntRange(0, 2).Draw(rt, "operators")
		grows := rapid.IntRange(-1, 40).Draw(rt, "grows")
		var w *town
		var closed map[string]float64
		synctest.Test(t, func(t *testing.T) { w, closed = dwell(t, seed, changes, kills, operators, grows) })
		if w.fault != "" {
			rt.Fatal(w.fault)
		}
		letters += len(w.tape.all(0)) + len(w.tape.all(1))
		moved += w.moved
		believed += w.believed
		overtaken += int(closed["superseded"])
		retried += int(closed["resolved"])
	})
	if letters < 100 || overtaken < 10 || retried < 10 || moved < 3 || believed < 100 {
		t.Errorf("%d records of letters, %d overtaken, %d taken at an attempt, %d moved, %d believed: that shows nothing", letters, overtaken, retried, moved, believed)
	}
}

const (
	few  = 2 // partitions at first
	many = 5 // and once the topics have grown
)

// dwell lets changes happen in a town, which grows before one of them.
func dwell(t *testing.T, seed uint64, changes, kills, operators, grows int) (*town, map[string]float64) {
	w := &town{
		t: t, tape: newTape(), draw: rand.New(rand.NewPCG(seed, seed)).IntN,
		rows: map[string]*house{}, tries: map[string]int{}, skipped: map[string]bool{}, again: map[string]bool{},
	}
	for _, table := range tables {
		for id := range many {
			w.streets = append(w.streets, &street{town: w, topic: "p." + table.String(), id: id})
		}
	}
	newest, place, barrier := map[string]cdc.Change{}, map[string]string{}, map[cdc.TableName]cdc.Version{}
	partitions := few
	for i := range changes {
		if i == grows {
			w.grow(i)
			partitions = many
		}
		n := w.draw(2)
		c := cdc.Change{Table: tables[n], Op: cdc.OpUpdate, CommitMicros: 1}
		c.Version, _ = cdc.NewVersion(1, uint64(i+1))
		if w.draw(15) == 0 {
			c.Op = cdc.OpBarrier
			barrier[c.Table] = c.Version
			for id := partitions - 1; id >= 0; id-- {
				w.streets[many*n+id].put(&c)
			}
			for row := range newest {
				if strings.HasPrefix(row, c.Table.Table+"{") {
					delete(newest, row)
					delete(place, row)
				}
			}
			continue
		}
		key := w.draw(4)
		c.Key = fmt.Appendf(nil, `{"id":%d}`, key)
		row := rowOf(&c)
		if was := place[row]; was != "" {
			c.Before = fmt.Appendf(nil, `{"id":%d,"at":%q}`, key, was)
		}
		if w.draw(5) == 0 && c.Before != nil {
			c.Op, place[row] = cdc.OpDelete, ""
		} else {
			place[row] = string(rune('p' + w.draw(3)))
			c.After = fmt.Appendf(nil, `{"id":%d,"at":%q}`, key, place[row])
		}
		newest[row] = c
		s := w.streets[many*n+kafka.PartitionFor(c.Key, partitions)]
		s.put(&c)
		if w.draw(15) == 0 {
			s.repeat(1 + w.draw(5))
		}
		if w.draw(20) == 0 {
			s.log = append(s.log, kafka.Record{Topic: s.topic, Partition: s.id, Offset: int64(len(s.log)), Value: []byte("?")})
		}
	}

	closed := map[string]float64{}
	var operating sync.WaitGroup
	m := w.boot()
	end := func(killed bool) {
		if killed {
			m.wire.kill()
		}
		m.stop()
		m.done.Wait()
		families, err := m.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "lockstep_dlq_closed_total" {
				for _, metric := range f.GetMetric() {
					closed[metric.GetLabel()[1].GetValue()] += metric.GetCounter().GetValue()
				}
			}
		}
	}
	for i := range kills + operators {
		time.Sleep(time.Duration(w.roll(20_000)) * time.Millisecond)
		w.tape.compact(time.Minute)
		if i >= kills {
			operating.Go(w.operate)
			continue
		}
		end(w.roll(3) > 0)
		m = w.boot()
	}
	operating.Wait()
	w.mu.Lock()
	w.calm = true
	w.mu.Unlock()
	time.Sleep(10 * time.Minute)
	w.tape.compact(100 * time.Hour)
	synctest.Wait()
	w.judge(newest, barrier)
	end(false)
	return w, closed
}

func (s *street) put(c *cdc.Change) {
	s.log = append(s.log, kafka.Record{Topic: s.topic, Partition: s.id, Offset: int64(len(s.log)), Key: c.Key, Value: c.AppendValue(nil, "p"), Headers: c.Headers()})
}

// repeat puts the last records there once more, as a capture does that reads its log again:
// those whose rows are at home there, for behind a growth it puts the others elsewhere.
func (s *street) repeat(n int) {
	partitions := many
	if !s.grown {
		partitions = few
	}
	for _, r := range s.log[max(0, len(s.log)-n):] {
		c, err := cdc.DecodeHeaders(nil, r.Headers)
		if err == nil && c.Op != cdc.OpGrowth && (c.Op.OfTable() || kafka.PartitionFor(r.Key, partitions) == s.id) {
			r.Offset = int64(len(s.log))
			s.log = append(s.log, r)
		}
	}
}

func (w *town) judge(newest map[string]cdc.Change, barrier map[cdc.TableName]cdc.Version) {
	for _, s := range w.streets {
		if s.start != len(s.log) {
			w.blame("committed %d of %d of %s/%d", s.start, len(s.log), s.topic, s.id)
		}
	}
	l := &Letters{Sink: "es", Topic: "p.dlq.es", Log: &wire{tape: w.tape, draw: func(int) int { return 0 }}}
	letters, err := l.List(w.t.Context(), Filter{})
	if err != nil {
		w.blame("list: %v", err)
	}
	open := map[string]Letter{}
	broken := 0
	for id := range many {
		for _, r := range w.tape.all(id) {
			if letter, _ := l.read(r); letter.State == Moved {
				w.moved++
			}
		}
	}
	for _, letter := range letters {
		if len(letter.also) > 0 {
			w.blame("letter %+v is open in several partitions", letter)
		}
		if !letter.Replayable() {
			broken++
			continue
		}
		_, table, _ := strings.Cut(letter.Table, ".")
		open[fmt.Sprintf(`%s{"id":%s}`, table, letter.Key)] = letter
	}
	wrong := func(row string, format string, args ...any) {
		w.blame("%s: %s; open: %+v, in the store: %+v", row, fmt.Sprintf(format, args...), open[row], w.rows[row])
	}
	for _, s := range w.streets {
		for _, r := range s.log {
			if len(r.Headers) == 0 {
				broken--
			}
		}
	}
	gaveUp := func(c cdc.Change) bool {
		key, _ := cdc.KeyText(c.Key)
		return w.skipped[c.Table.String()+key+c.Version.String()]
	}
	skips := 0
	for key := range w.skipped {
		if strings.HasPrefix(key, "es-") {
			skips++
		}
	}
	if broken > 0 || broken < -skips {
		w.blame("%d letters too many of what nobody can read, and %d were skipped", broken, skips)
	}
	for row, c := range newest {
		letter, isOpen := open[row]
		h := w.rows[row]
		key, _ := cdc.KeyText(c.Key)
		times, poison := fate(&c)
		switch {
		case isOpen && letter.State == Retrying:
			wrong(row, "still retrying")
		case h != nil && h.newest >= c.Version:
			// Where an operator's attempt ended late its letter may stand again.
			if isOpen && !w.again[c.Table.String()+key] {
				wrong(row, "the letter is overtaken")
			}
		case isOpen && letter.Version == c.Version:
			want := Exhausted
			if poison {
				want = Parked
			}
			if times < 1<<30 || letter.State != want && !w.again[c.Table.String()+key] {
				wrong(row, "state %s after being refused %d times", letter.State, times)
			}
		case !gaveUp(c):
			wrong(row, "version %s is neither in the store nor a letter", c.Version)
		}
		if h == nil || !moving(c.Table) {
			continue
		}
		here := gjson.GetBytes(c.After, "at").Str
		for there, lives := range h.lives {
			if lives && there != here {
				wrong(row, "it is in %q, and its place is %q", there, here)
			}
		}
		if h.newest >= c.Version && c.After != nil && !h.lives[here] {
			wrong(row, "it is not in its place %q", here)
		}
	}
	for row, letter := range open {
		if home := kafka.PartitionFor(letter.recordKey, many); w.grown && letter.place.Partition != home && !w.again[letter.Table+letter.Key] {
			wrong(row, "its letter is in partition %d and its changes come in %d", letter.place.Partition, home)
		}
		if _, known := newest[row]; !known && !w.again[letter.Table+letter.Key] {
			wrong(row, "a barrier took the row away, and its letter stands")
		}
	}
	for row, h := range w.rows {
		_, known := newest[row]
		for there, lives := range h.lives {
			for t, b := range barrier {
				if lives && strings.HasPrefix(row, t.Table+"{") && h.places[there] <= b && !known {
					wrong(row, "a barrier at %s took the row away and it is there", b)
				}
			}
		}
	}
}
