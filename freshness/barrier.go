package freshness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"lockstep/cdc"
	"lockstep/dlq"
)

// ErrBusy says that too many barriers wait at once.
var ErrBusy = errors.New("too many barriers wait already; ask again in a moment")

const (
	// mostInquiries is how many different things are waited for at once. Barriers that
	// wait for the same share one.
	mostInquiries = 1024
	// askAgain is how often a want is repeated: an answer may be lost, or a partition have
	// a new owner who has not heard it.
	askAgain = time.Second
)

// Barrier waits until what is committed is in the stores. One serves a process.
type Barrier struct {
	Hub *Hub
	// Committed gives the transactions that are committed in the source.
	Committed func(ctx context.Context) (gtids string, err error)
	// Takes reports whether a sink takes a table.
	Takes func(sink, table string) bool
	// Refresh makes everything that a sink has of tables visible to searches. A store that
	// is always searched as it is does nothing.
	Refresh func(ctx context.Context, sink string, tables []string) error
	// Letter finds the open dead letter of a row by its primary key as text, or one of a
	// record in these partitions that nobody can read and that may be of the row; nil when
	// there is neither. Nil partitions stand for all.
	Letter  func(ctx context.Context, sink, table, key string, partitions map[int]bool) (*dlq.Letter, error)
	Metrics *Metrics

	committed joint

	mu        sync.Mutex
	inquiries map[inquiryKey]*inquiry
	refreshes map[string]*joint // by sink and tables
}

// Ask is what a barrier waits for.
type Ask struct {
	Sinks []string
	// Table ("db.table") is the one that matters; empty for all that a sink takes.
	Table string
	// Key is the primary key of the one row of Table that matters, as text or as a JSON
	// object; empty for all rows.
	Key string
	// GTIDs are the transactions that are waited for; empty for all that are committed now.
	GTIDs string
	// Search waits until searches find it, too.
	Search bool
}

// Answer is what became of a barrier.
type Answer struct {
	// Visible says that everything is in every sink: settled, and no dead letter is open.
	Visible bool         `json:"visible" doc:"everything is in every sink"`
	GTIDs   string       `json:"gtids" doc:"the transactions that were waited for"`
	Millis  float64      `json:"ms" doc:"how long it took, in milliseconds"`
	Sinks   []SinkAnswer `json:"sinks"`

	columns []string // of the key of Ask.Table, once the capture has told them
	place   Reached  // of the capture, once it has answered
}

// Settled reports whether every sink has settled everything.
func (a *Answer) Settled() bool {
	return !slices.ContainsFunc(a.Sinks, func(s SinkAnswer) bool { return !s.Settled })
}

// SinkAnswer is one sink of an Answer.
type SinkAnswer struct {
	Sink string `json:"sink"`
	// Settled says that everything is in the store, or a dead letter, and Visible that
	// there is no such letter.
	Settled bool `json:"settled" doc:"everything is in the store, or a dead letter"`
	Visible bool `json:"visible" doc:"settled, and no dead letter hides a row"`
	// Letters counts the open dead letters, by table.
	Letters map[string]int `json:"letters,omitempty" doc:"open dead letters by table"`
	// WaitsFor says for what it waits, as sentences; empty once it is visible.
	WaitsFor []string `json:"waits_for,omitempty" doc:"for what it waits, as sentences; missing when it is visible"`
	// Ends are the offsets up to which the topics were waited for, by table and partition.
	Ends map[string][]int64 `json:"-"`
	// Known says that somebody is at it: a capture is heard of, and an owner of every
	// partition that matters.
	Known bool `json:"-"`
}

// Await returns when everything that was committed before it was called, or Ask.GTIDs, is
// settled in the sinks, or when ctx ends; the answer says which, and for what it waits. A
// row that is a dead letter is settled and not visible. Its error is ErrBusy, or that
// what is committed cannot be known.
func (b *Barrier) Await(ctx context.Context, ask Ask) (answer Answer, err error) {
	began := time.Now()
	if answer.GTIDs = ask.GTIDs; answer.GTIDs == "" {
		answer.GTIDs, err = b.committed.do(ctx, b.Committed)
		if ctx.Err() != nil {
			return b.unasked(ask, began), nil
		}
		if err != nil {
			return answer, fmt.Errorf("what is committed is not known: %w", err)
		}
	}
	q, err := b.inquire(ask, answer.GTIDs)
	if err != nil {
		return answer, err
	}
	defer b.release(q)
	defer func() { answer.columns, answer.place = q.told() }()
	b.Metrics.waiting.Inc()
	defer b.Metrics.waiting.Dec()
	defer func() { b.Metrics.ended(&answer, began) }()
	for !answer.Settled() || answer.Sinks == nil {
		var changed <-chan struct{}
		if answer.Sinks, changed = q.judge(ask, nil); answer.Settled() {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			state := b.Hub.State()
			answer.Sinks, _ = q.judge(ask, &state) // with what it waits for
			answer.Millis = millis(began)
			return answer, nil
		}
	}
	if ask.Search {
		if err := b.refresh(ctx, answer.Sinks); err != nil {
			return answer, err
		}
	}
	answer.Visible = !slices.ContainsFunc(answer.Sinks, func(s SinkAnswer) bool { return !s.Visible })
	answer.Millis = millis(began)
	return answer, nil
}

// unasked is the answer when the source has not said in time what is committed.
func (b *Barrier) unasked(ask Ask, began time.Time) Answer {
	answer := Answer{Millis: millis(began)}
	for _, sink := range ask.Sinks {
		answer.Sinks = append(answer.Sinks, SinkAnswer{Sink: sink, WaitsFor: []string{"the source has not said in time what is committed"}})
	}
	b.Metrics.ended(&answer, began)
	return answer
}

func millis(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

// refresh makes what is settled visible to searches. Barriers that come to it while a
// refresh is under way share the next one.
func (b *Barrier) refresh(ctx context.Context, sinks []SinkAnswer) error {
	for _, s := range sinks {
		tables := slices.Sorted(maps.Keys(s.Ends))
		if len(tables) == 0 {
			continue
		}
		key := s.Sink + " " + strings.Join(tables, " ")
		b.mu.Lock()
		if b.refreshes == nil || len(b.refreshes) >= mostInquiries {
			b.refreshes = make(map[string]*joint)
		}
		j := b.refreshes[key]
		if j == nil {
			j = &joint{}
			b.refreshes[key] = j
		}
		b.mu.Unlock()
		if _, err := j.do(ctx, func(ctx context.Context) (string, error) { return "", b.Refresh(ctx, s.Sink, tables) }); err != nil {
			return fmt.Errorf("sink %s has everything, and whether searches find it is not known: %w", s.Sink, err)
		}
	}
	return nil
}

// Reached is a place of the capture in the log.
type Reached struct {
	// GTIDs are the transactions before it, and no change before it has a higher version
	// than Version, save those of a copy that was made there, which have up to cdc.Turns more.
	GTIDs   string
	Version cdc.Version
}

// Reach returns when the transactions gtids, or all that is committed now when it is
// empty, are settled in a sink as far as they touch a table, with a place of the capture
// behind all of them. Dead letters count as settled. Its error is also the end of ctx,
// with for what it waits.
func (b *Barrier) Reach(ctx context.Context, sink, table, gtids string) (Reached, error) {
	answer, err := b.Await(ctx, Ask{Sinks: []string{sink}, Table: table, GTIDs: gtids})
	if err != nil {
		return Reached{}, err
	}
	if !answer.Settled() {
		return Reached{}, fmt.Errorf("%w: %v", context.Cause(ctx), answer.Sinks[0].WaitsFor)
	}
	return answer.place, nil
}

// inquiryKey is what makes two barriers wait for the same.
type inquiryKey struct{ gtids, table, sinks string }

// inquiry is one want and what was answered to it.
type inquiry struct {
	key   inquiryKey
	want  Want
	takes func(sink, table string) bool
	users int // guarded by Barrier.mu
	stop  func()

	mu      sync.Mutex
	changed chan struct{}
	asked   bool     // the want stands in the topic: what is said from now on is an answer
	passed  bool     // the capture has answered
	place   Reached  // where it was when it first did
	columns []string // of the key of the one table that matters
	pins    map[string]pin
	refills map[string]int64                   // by table: what the requests must have come to
	voids   map[string]cdc.Version             // by table: what the version must have come to
	seen    map[string]map[string]map[int]seen // by sink, table and partition
}

// pin is up to where a table must be settled.
type pin struct {
	copying  bool // it is not known yet
	ends     []int64
	version  cdc.Version // before which everything is before ends
	sweep    cdc.Version // of a barrier that may be behind them all the same, at the end of a copy; 0 for none
	requests int64
}

// holds reports whether a pin holds all that it must.
func (q *inquiry) holds(table string) bool {
	p := q.pins[table]
	// Rows that the store has lost are in Kafka again when the capture has taken the
	// request for them in and its copy is over; a barrier of the table that has made changes
	// void stands in partition 0 when the capture has passed it.
	return !p.copying && p.requests >= q.refills[table] && p.version > q.voids[table] && (p.sweep == 0 || p.sweep > q.voids[table])
}

// seen is what was said of a partition last, by who has it by the highest generation.
type seen struct {
	Place
	generation int32
}

// inquire joins the barriers that wait for the same, or begins.
func (b *Barrier) inquire(ask Ask, gtids string) (*inquiry, error) {
	key := inquiryKey{gtids, ask.Table, fmt.Sprint(ask.Sinks)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if q := b.inquiries[key]; q != nil {
		q.users++
		return q, nil
	}
	if len(b.inquiries) >= mostInquiries {
		return nil, ErrBusy
	}
	if b.inquiries == nil {
		b.inquiries = make(map[inquiryKey]*inquiry)
	}
	q := &inquiry{
		key: key, users: 1, takes: b.Takes, changed: make(chan struct{}),
		want: Want{ID: uuid.NewString(), GTIDs: gtids, Sinks: slices.Clone(ask.Sinks), Table: ask.Table, Millis: (10 * askAgain).Milliseconds()},
		pins: make(map[string]pin), refills: make(map[string]int64), voids: make(map[string]cdc.Version), seen: make(map[string]map[string]map[int]seen),
	}
	b.inquiries[key] = q
	ctx, cancel := context.WithCancel(context.Background())
	deaf := b.Hub.Listen(q.hear)
	var asking sync.WaitGroup
	asking.Go(func() { q.ask(ctx, b.Hub) })
	q.stop = func() {
		deaf()
		cancel()
		asking.Wait()
	}
	return q, nil
}

func (b *Barrier) release(q *inquiry) {
	b.mu.Lock()
	q.users--
	last := q.users == 0
	if last {
		delete(b.inquiries, q.key)
	}
	b.mu.Unlock()
	if last {
		q.stop()
	}
}

// ask writes the want, over and over.
func (q *inquiry) ask(ctx context.Context, hub *Hub) {
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for {
		if hub.Write(ctx, Record{Want: &q.want}) != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// hear takes a record in. What stands before the want says nothing: a store may have lost
// since what was settled then, or a topic have been made again.
func (q *inquiry) hear(r Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case r.Want != nil && r.Want.ID == q.want.ID:
		q.asked = true
	case !q.asked:
		return
	case r.Capture != nil && slices.Contains(r.Capture.Wants, q.want.ID):
		q.pass(r.Capture)
	case r.Sink != nil && slices.Contains(q.want.Sinks, r.Sink.Sink):
		q.see(r.Sink)
	default:
		return
	}
	close(q.changed)
	q.changed = make(chan struct{})
}

// pass notes up to where the tables must be settled. What was known already stays: what is
// published later was not asked for.
func (q *inquiry) pass(c *Capture) {
	if names := c.Keys[q.want.Table]; names != "" {
		q.columns = strings.Split(names, ", ")
	}
	tables := map[string]bool{}
	for table := range c.Ends {
		tables[table] = true
	}
	for _, table := range c.Copying {
		tables[table] = true
	}
	for table := range tables {
		_, known := q.pins[table]
		if q.want.Table != "" && table != q.want.Table || known && q.holds(table) || !known && q.passed {
			continue
		}
		q.pins[table] = pin{copying: slices.Contains(c.Copying, table), ends: c.Ends[table], version: c.Version, sweep: c.Sweeps[table], requests: c.Requests}
	}
	for table, was := range q.pins { // its topic was not there, and its copy had no row
		if was.copying && !tables[table] {
			delete(q.pins, table)
		}
	}
	if !q.passed {
		q.passed, q.place = true, Reached{c.GTIDs, c.Version}
	}
}

// see notes what a process says of its partitions.
func (q *inquiry) see(s *Sink) {
	tables := q.seen[s.Sink]
	if tables == nil {
		tables = make(map[string]map[int]seen)
		q.seen[s.Sink] = tables
	}
	for table, t := range s.Tables {
		if q.want.Table != "" && table != q.want.Table {
			continue
		}
		if tables[table] == nil {
			tables[table] = make(map[int]seen)
		}
		for id, place := range t.Partitions {
			if tables[table][id].generation <= s.Generation {
				tables[table][id] = seen{place, s.Generation}
			}
			q.voids[table] = max(q.voids[table], place.Void)
		}
		q.refills[table] = max(q.refills[table], t.Refill)
	}
}

// told gives the columns of the key of the one table that matters and the place of the
// capture, as far as it has told them.
func (q *inquiry) told() ([]string, Reached) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.columns, q.place
}

// judge says of each sink whether it is there, with a state also for what it waits, and
// gives what is closed when there is news.
func (q *inquiry) judge(ask Ask, state *State) (answers []SinkAnswer, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, sink := range ask.Sinks {
		answers = append(answers, q.sink(ask, sink, state))
	}
	return answers, q.changed
}

func (q *inquiry) sink(ask Ask, sink string, state *State) SinkAnswer {
	a := SinkAnswer{Sink: sink, Settled: true, Ends: make(map[string][]int64), Known: state != nil && state.Capture != nil}
	if !q.passed {
		a.waits(state, func() string { return state.awaitsCapture() })
		return a
	}
	for _, table := range slices.Sorted(maps.Keys(q.pins)) {
		if !q.takes(sink, table) {
			continue
		}
		p := q.pins[table]
		if !q.holds(table) {
			a.waits(state, func() string {
				if !p.copying && p.requests >= q.refills[table] {
					return fmt.Sprintf("%s was emptied, and the capture has not passed that", table)
				}
				return fmt.Sprintf("%s is being copied, and the copy is not over (lockstep snapshot list)", table)
			})
			continue
		}
		a.Ends[table] = p.ends
		var concerned map[int]bool
		if ask.Key != "" {
			concerned = rowPartitions(keyTexts(ask.Key, q.columns), q.columns, len(p.ends))
		}
		for id, end := range p.ends {
			if concerned != nil && !concerned[id] {
				continue
			}
			q.partition(&a, sink, table, id, end, state)
		}
	}
	if a.Visible = a.Settled && len(a.Letters) == 0; a.Settled {
		for _, table := range slices.Sorted(maps.Keys(a.Letters)) {
			a.WaitsFor = append(a.WaitsFor, fmt.Sprintf("open dead letters of %s hide what the store has refused: %d (lockstep dlq list --sink %s --table %s)", table, a.Letters[table], sink, table))
		}
	}
	return a
}

// waits notes that the sink is not there, and why if there is a state to say it from.
func (a *SinkAnswer) waits(state *State, why func() string) {
	a.Settled = false
	if state != nil {
		a.WaitsFor = append(a.WaitsFor, why())
	}
}

// partition adds to a what is to be said of one partition.
func (q *inquiry) partition(a *SinkAnswer, sink, table string, id int, end int64, state *State) {
	at, known := q.seen[sink][table][id]
	switch {
	case !known || at.Settled < end:
		a.waits(state, func() string {
			a.Known = a.Known && state.owner(sink, table, id) != nil
			return state.awaitsPartition(sink, table, id, end)
		})
	case at.Letters < 0:
		a.waits(state, func() string { return fmt.Sprintf("the dead letters of partition %d of %s are being read", id, table) })
	case at.Letters > 0:
		if a.Letters == nil {
			a.Letters = make(map[string]int)
		}
		a.Letters[table] += at.Letters
	}
}

// joint does something for all who ask for it while it is not begun: whoever asks gets an
// answer to a question that was put after it had asked.
type joint struct {
	mu      sync.Mutex
	running bool
	next    *round
}

type round struct {
	done   chan struct{}
	answer string
	err    error
}

// do asks, or waits for the next asking. That has a time of its own, so that one caller who
// goes away takes nobody along.
func (j *joint) do(ctx context.Context, ask func(context.Context) (string, error)) (string, error) {
	j.mu.Lock()
	if j.next == nil {
		j.next = &round{done: make(chan struct{})}
	}
	r := j.next
	if !j.running {
		j.running = true
		go j.run(context.WithoutCancel(ctx), ask)
	}
	j.mu.Unlock()
	select {
	case <-r.done:
		return r.answer, r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// run asks as long as somebody waits.
func (j *joint) run(ctx context.Context, ask func(context.Context) (string, error)) {
	for {
		j.mu.Lock()
		r := j.next
		if j.next = nil; r == nil {
			j.running = false
			j.mu.Unlock()
			return
		}
		j.mu.Unlock()
		asking, cancel := context.WithTimeout(ctx, 10*time.Second)
		r.answer, r.err = ask(asking)
		cancel()
		close(r.done)
	}
}
