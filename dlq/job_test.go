package dlq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// A job is about the letters that it chooses and whose newest record stood before the end
// when it began, whatever is written later.
func TestTheScopeOfAJobIsFixedWhenItBegins(t *testing.T) {
	// a+2 is an open letter of row a at version 2, a+2! one that the job does not want,
	// a-2 its end, a>2 its move to another partition; | is the end of the scope.
	for story, want := range map[string]string{
		"":                          "",
		"a+1 b+2 |":                 "a@1 b@2",
		"a+1 | b+2":                 "a@1", // b came too late
		"a+1 b+1 a-1 |":             "b@1", // a has ended
		"a+2 a+1 a-1 |":             "a@2", // what an older writer says does not count
		"a+1 b+1 a+2 |":             "b@1 a@2",
		"a+1 a+1! |":                "", // the newest record decides
		"a+1! a+1 |":                "a@1",
		"a+1 b+1 | a-1":             "a@1:closed b@1",
		"a+1 | a+2":                 "a@1:stays", // another change was refused
		"a+1 | a+2 a-2":             "a@1:stays",
		"a+2 | a+1 a-1":             "a@2",           // an older writer
		"a+1 b+1 | a>1":             "a@1:stays b@1", // it is open elsewhere
		"a+1 a>1 |":                 "",
		"a+1 b+1 | a+1 a+1":         "a@1>3 b@1", // still the same letter, at another place
		"a+1 b+1 c+1 | a+1 a-1 b-1": "a@1>3:closed b@1:closed c@1",
	} {
		before, after, _ := strings.Cut(story, "|")
		end := len(strings.Fields(before))
		s := newSector("es", 0, int64(end), func(l *Letter) bool { return l.Class != "" })
		for i, word := range append(strings.Fields(before), strings.Fields(after)...) {
			l := Letter{key: word[:1], State: Parked, Version: cdc.Version(word[2] - '0'), Class: "mapping", Reason: "r", place: Place{Offset: int64(i)}}
			switch word[1] {
			case '-':
				l.State = Resolved
			case '>':
				l.State = Moved
			}
			if strings.HasSuffix(word, "!") {
				l.Class = ""
			}
			s.read(&l)
		}
		s.seal()
		var got []string
		for _, it := range s.take(100) {
			for _, name := range []string{"a", "b", "c"} {
				if it.id == identify(name) {
					text := fmt.Sprintf("%s@%d", name, it.version)
					if it.offset != it.order {
						text += fmt.Sprintf(">%d", it.offset)
					}
					if it.fate != "" {
						text += ":" + string(it.fate)
					}
					got = append(got, text)
				}
			}
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("%q: %s, want %s", story, got, want)
		}
	}
}

func TestARestartedSectorBeginsBehindTheCursor(t *testing.T) {
	s := newSector("es", 0, 4, func(*Letter) bool { return true })
	for i, key := range []string{"a", "b", "c", "d"} {
		s.read(&Letter{key: key, State: Parked, Version: 1, place: Place{Offset: int64(i)}})
	}
	s.seal()
	s.skip(2)
	s.read(&Letter{key: "a", State: Resolved, Version: 1, place: Place{Offset: 9}})
	if got := s.take(1); len(got) != 1 || got[0].order != 2 || s.left() != 1 {
		t.Errorf("%+v, %d left", got, s.left())
	}
}

func TestACourseKeepsTheRateAndTheCanary(t *testing.T) {
	now := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	room := func(c course, done, underWay int) int {
		n, _ := c.room(now, done, underWay)
		return n
	}
	resync, payload := newCourse(&Job{Mode: Resync}), newCourse(&Job{Mode: Payload})
	expect(t, "resync", []int{room(resync, 0, 0), room(resync, 0, flightLetters-10), room(resync, 0, flightLetters)}, []int{resyncLetters, 10, 0})
	expect(t, "payload", []int{room(payload, 0, 0), room(payload, 0, batchLetters)}, []int{batchLetters, 0})

	canary := newCourse(&Job{Mode: Resync, Canary: 30})
	expect(t, "canary", []int{room(canary, 0, 0), room(canary, 0, 20), room(canary, 0, 30), room(canary, 20, 10), room(canary, 30, 0), room(canary, 31, 0)},
		[]int{30, 10, 0, 0, resyncLetters, resyncLetters})

	slow := newCourse(&Job{Mode: Resync, Rate: 20})
	for second := range 3 {
		n, _ := slow.room(now, 0, 0)
		expect(t, fmt.Sprintf("letters in second %d", second), n, 20)
		slow.began(now, n)
		none, at := slow.room(now, 0, n)
		expect(t, "at once", none, 0)
		expect(t, "wait", at.Sub(now), time.Second)
		now = at
	}
	slow.began(now, 5)
	_, at := slow.room(now, 0, 0)
	expect(t, "a small batch waits less", at.Sub(now), 250*time.Millisecond)
	now = now.Add(time.Hour)
	slow.began(now, 20)
	_, at = slow.room(now, 0, 0)
	expect(t, "what was not used is not caught up", at.Sub(now), time.Second)
}

func TestACanaryGoesOnWhenNinetyFivePercentSucceeded(t *testing.T) {
	for name, test := range map[string]struct {
		canary, total, good, stay int
		stops                     bool
	}{
		"none":              {0, 100, 0, 100, false},
		"not through":       {20, 100, 10, 9, false},
		"all":               {20, 100, 20, 0, false},
		"one of twenty":     {20, 100, 19, 1, false},
		"two of twenty":     {20, 100, 18, 2, true},
		"one of nineteen":   {19, 100, 18, 1, true},
		"it is the whole":   {20, 20, 0, 20, false}, // there is nothing to be spared
		"fewer letters":     {20, 10, 0, 10, false},
		"long behind it":    {20, 100, 21, 40, false},
		"the only one":      {1, 100, 0, 1, true},
		"the only one good": {1, 100, 1, 0, false},
	} {
		c := newCourse(&Job{Canary: test.canary})
		p := Progress{Total: test.total, Letters: map[Fate]int{FateResynced: test.good, FateStays: test.stay}, Stays: []Stay{{"no field", test.stay, "es-1"}}}
		if why := c.stop(&p); (why != "") != test.stops || test.stops && !strings.Contains(why, "es-1, no field") {
			t.Errorf("%s: %q", name, why)
		}
	}
}

func TestReasonsThatDifferInValuesAreOne(t *testing.T) {
	p := Progress{Letters: map[Fate]int{}}
	for i := range 30 {
		p.count(FateStays, fmt.Sprintf("no field 'a' of %d", i), fmt.Sprint("es-", i))
		p.count(FateResolved, "", "")
	}
	expect(t, "one cause", p.Stays, []Stay{{"no field 'a' of 0", 30, "es-0"}})
	for i := range 20 {
		p.count(FateStays, "cause "+strings.Repeat("x", i), "es-x")
	}
	if len(p.Stays) != maxStays+1 || p.Stays[maxStays].Reason != "others" || p.Stays[maxStays].Letters != 11 {
		t.Errorf("%+v", p.Stays)
	}
	expect(t, "counts", p.Letters, map[Fate]int{FateStays: 50, FateResolved: 30})
}

// A query survives being written down, with times that do not move.
func TestAQueryIsWrittenDownWithTimesThatDoNotMove(t *testing.T) {
	now := time.Date(2026, 11, 26, 8, 0, 0, 7, time.UTC)
	q, err := ParseQuery(map[string]string{"sink": "es", "table": "a.b", "since": "2h", "until": "1h", "min_version": "5", "key": "k", "class": "mapping", "fingerprint": "c0ffee123456", "max_version": "9"}, []string{"es"}, now)
	if err != nil {
		t.Fatal(err)
	}
	later, err := ParseQuery(q.Fields(), []string{"es"}, now.Add(72*time.Hour))
	expect(t, "error", err, nil)
	expect(t, "query", later, q)
	expect(t, "nothing", len(Query{}.Fields()), 0)
}

// yard is a pipeline around a runner, in memory: letters' topics, the topic of jobs, a
// source, a capture, and a store that refuses some rows.
type yard struct {
	t  testing.TB
	mu sync.Mutex

	logs    map[string][]kafka.Record // by topic/partition
	rows    map[string]cdc.Version    // of the source, by key
	refuse  map[string]bool           // keys that the store refuses
	store   map[string]cdc.Version
	down    bool // the store
	idle    bool // the capture
	asked   map[string]*asked
	clock   cdc.Version
	over    map[string][]JobStatus // the audit log
	sent    []int                  // letters of each call of the store
	began   []time.Time            // of those
	audits  int                    // that fail
	problem string                 // of every reading
	held    string
	stopped []string
	late    bool     // the sink has its say when it is asked how far it is
	pending []string // keys of which it has not had its say
}

type asked struct {
	Reading
	keys [][]byte
	due  time.Time
}

const letterParts = 2

func newYard(t testing.TB) *yard {
	return &yard{t: t, logs: map[string][]kafka.Record{}, rows: map[string]cdc.Version{}, refuse: map[string]bool{}, store: map[string]cdc.Version{},
		asked: map[string]*asked{}, clock: base + 1000, over: map[string][]JobStatus{}}
}

func place(topic string, partition int) string { return fmt.Sprintf("%s/%d", topic, partition) }

func (y *yard) EnsureTopic(context.Context, kafka.TopicSpec) error { return nil }
func (y *yard) Used(_ context.Context, topic string) (bool, error) {
	return !strings.HasSuffix(topic, "never"), nil
}

func (y *yard) Produce(ctx context.Context, r kafka.Record) error { return y.ProduceAll(ctx, r) }

func (y *yard) ProduceAll(ctx context.Context, records ...kafka.Record) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	y.put(records...)
	return nil
}

func (y *yard) put(records ...kafka.Record) {
	for _, r := range records {
		at := place(r.Topic, r.Partition)
		r.Offset, r.Time = int64(len(y.logs[at])), time.Now()
		y.logs[at] = append(y.logs[at], r)
	}
}

func (y *yard) ReadFrom(ctx context.Context, topic string, partition int, from int64, fn func(kafka.Record) error) (int64, error) {
	y.mu.Lock()
	some := slices.Clone(y.logs[place(topic, partition)])
	y.mu.Unlock()
	if ctx.Err() != nil {
		return from, ctx.Err()
	}
	if from > int64(len(some)) {
		return from, kafka.ErrDataLost
	}
	for _, r := range some[from:] {
		if err := fn(r); err != nil {
			return from, err
		}
	}
	return int64(len(some)), nil
}

func (y *yard) ReadAt(_ context.Context, topic string, partition int, offsets []int64, fn func(kafka.Record) error) error {
	y.mu.Lock()
	some := slices.Clone(y.logs[place(topic, partition)])
	y.mu.Unlock()
	for _, offset := range offsets {
		if err := fn(some[offset]); err != nil {
			return err
		}
	}
	return nil
}

func (y *yard) EndOffsets(_ context.Context, topic string) (map[int]int64, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	ends := map[int]int64{}
	for i := range letterParts {
		ends[i] = int64(len(y.logs[place(topic, i)]))
	}
	return ends, nil
}

func (y *yard) ReadAll(context.Context, string, func(kafka.Record) error) error {
	return errors.New("a runner reads no whole topic")
}

func (y *yard) Follow(context.Context, string, int, int, func([]kafka.Record, bool) error) error {
	return errors.New("a runner follows none")
}

// box is the letters of a sink.
func (y *yard) box(sink string) *Letters {
	return &Letters{Sink: sink, Topic: "shop.dlq." + sink, Log: y}
}

// bury makes letters of these rows.
func (y *yard) bury(ids ...int) {
	for _, id := range ids {
		r := refusal(id, base+cdc.Version(id)+1, "no field of "+fmt.Sprint(id))
		r.Record.Partition = id % letterParts
		bury(y.t, y.box("es"), r)
		y.rows[fmt.Sprintf(`{"id":%d}`, id)] = r.Change.Version
		y.refuse[string(r.Change.Key)] = true
	}
}

// open are the rows whose letters are open.
func (y *yard) open() string {
	letters := map[identity]*Letter{}
	for i := range letterParts {
		_, err := y.ReadFrom(context.Background(), "shop.dlq.es", i, 0, func(r kafka.Record) error {
			l, err := y.box("es").read(r)
			if e := letters[l.identity()]; e == nil || e.Version <= l.Version {
				letters[l.identity()] = &l
			}
			return err
		})
		if err != nil {
			y.t.Fatal(err)
		}
	}
	var open []string
	for _, l := range letters {
		if l.State.Open() {
			open = append(open, fmt.Sprintf("%s@%d", l.Key, l.Version-base))
		}
	}
	slices.Sort(open)
	return strings.Join(open, " ")
}

func (y *yard) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) { return 0, nil }

// Apply is the store.
func (y *yard) Apply(_ context.Context, changes []cdc.Change) []sinks.Outcome {
	time.Sleep(20 * time.Millisecond)
	y.mu.Lock()
	defer y.mu.Unlock()
	out := make([]sinks.Outcome, len(changes))
	if y.down {
		for i := range out {
			out[i].Reason = "connection refused"
		}
		return out
	}
	y.sent, y.began = append(y.sent, len(changes)), append(y.began, time.Now())
	for i := range changes {
		c := &changes[i]
		switch key := string(c.Key); {
		case y.refuse[key]:
			out[i] = sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassMapping, Reason: "no field"}
		case y.store[key] > c.Version:
			out[i].Verdict = sinks.Stale
		default:
			out[i].Verdict = sinks.Applied
			y.store[key] = c.Version
		}
	}
	return out
}

// work is the capture and the worker of the sink with its posts: what was asked for long
// enough is read, and comes to an end or to another letter.
func (y *yard) work() {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.idle {
		return
	}
	for _, a := range y.asked {
		if a.State == "" && time.Now().After(a.due) {
			a.State = cdc.SnapshotRunning
			continue
		}
		if a.State != cdc.SnapshotRunning || y.down {
			continue
		}
		if a.State = cdc.SnapshotDone; y.problem != "" {
			a.State, a.Problem = cdc.SnapshotFailed, y.problem
			continue
		}
		y.clock++
		for _, key := range a.keys {
			if y.late {
				y.pending = append(y.pending, string(key))
			} else {
				y.settle(string(key), y.clock)
			}
		}
	}
}

// settle gives a row of some version to the store.
func (y *yard) settle(key string, v cdc.Version) {
	var id int
	fmt.Sscanf(key, `{"id":%d}`, &id)
	r := refusal(id, v, "no field")
	r.Record.Partition = id % letterParts
	l := y.box("es").refused(r)
	if y.refuse[key] {
		y.put(y.box("es").open(r.Record, l))
		return
	}
	y.store[key] = max(y.store[key], v)
	l.place.Partition = r.Record.Partition
	y.put(y.box("es").end(l, Superseded, "the store has it"))
}

// runner is one of a process.
func (y *yard) runner() *Runner {
	return &Runner{
		Jobs: &Jobs{Prefix: "shop", Kafka: y}, Letters: y.box, Log: y, Sinks: func() []string { return []string{"es", "never"} },
		Store: func(context.Context, string) (sinks.Sink, ReplayOptions, error) {
			return y, ReplayOptions{Gone: func(_ context.Context, _ cdc.TableName, keys [][]byte) (map[string]bool, error) {
				gone := map[string]bool{}
				for _, key := range keys {
					_, there := y.rows[string(key)]
					gone[string(key)] = !there
				}
				return gone, nil
			}}, nil
		},
		Refuses: func(_, table string) string {
			if table == "bank.tags" {
				return "the table is not captured any more"
			}
			return ""
		},
		Unreadable: func(_ context.Context, _ string, keys [][]byte) (map[int]string, error) {
			bad := map[int]string{}
			for i, key := range keys {
				if string(key) == `{"id":666}` {
					bad[i] = "no such key"
				}
			}
			return bad, nil
		},
		Read: func(_ context.Context, id, table, _ string, keys [][]byte) error {
			y.mu.Lock()
			defer y.mu.Unlock()
			if y.asked[id] != nil {
				y.t.Errorf("%s is asked for twice", id)
			}
			y.asked[id] = &asked{keys: keys, due: time.Now().Add(time.Second)}
			return nil
		},
		Stop: func(_ context.Context, id, _ string) error {
			y.mu.Lock()
			defer y.mu.Unlock()
			y.stopped = append(y.stopped, id)
			return nil
		},
		Readings: func(_ context.Context, ids []string) (map[string]Reading, error) {
			y.mu.Lock()
			defer y.mu.Unlock()
			now := map[string]Reading{}
			for _, id := range ids {
				now[id] = y.asked[id].Reading
			}
			return now, nil
		},
		Progress: func(context.Context, string, string) (ends, committed map[int]int64, err error) {
			y.mu.Lock()
			defer y.mu.Unlock()
			for _, key := range y.pending {
				y.settle(key, y.clock)
			}
			y.pending = nil
			return map[int]int64{}, map[int]int64{}, nil
		},
		Held: func(string, string) (string, bool) {
			y.mu.Lock()
			defer y.mu.Unlock()
			return y.held, y.held != ""
		},
		Over: func(_ context.Context, s JobStatus) error {
			y.mu.Lock()
			defer y.mu.Unlock()
			if y.audits > 0 {
				y.audits--
				return errors.New("audit log: no broker")
			}
			y.over[s.ID] = append(y.over[s.ID], s)
			return nil
		},
		Metrics: NewJobMetrics(prometheus.NewRegistry()), Notes: slog.New(slog.DiscardHandler),
	}
}

// run runs a runner until the returned function ends it.
func (y *yard) run() (stop func()) {
	ctx, cancel := context.WithCancel(y.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := y.runner().Run(ctx); err != nil {
			y.t.Error(err)
		}
	}()
	return func() { cancel(); <-ended }
}

// jobs asks for jobs and looks at them.
func (y *yard) jobs() *Jobs { return &Jobs{Prefix: "shop", Kafka: y} }

func (y *yard) ask(j Job) {
	y.t.Helper()
	if j.Mode == "" {
		j.Mode = Resync
	}
	j.Asked = time.Now()
	if _, err := y.jobs().Ask(y.t.Context(), j); err != nil {
		y.t.Fatal(err)
	}
}

// await is the job when ok says so of it, while the pipeline works.
func (y *yard) await(id string, ok func(JobStatus) bool) JobStatus {
	y.t.Helper()
	for range 20_000 {
		y.work()
		s, found, err := y.jobs().Find(y.t.Context(), id)
		if err != nil {
			y.t.Fatal(err)
		}
		if found && ok(s) {
			return s
		}
		time.Sleep(50 * time.Millisecond)
	}
	s, _, _ := y.jobs().Find(y.t.Context(), id)
	y.t.Fatalf("job %s does not get there: %+v", id, s)
	return JobStatus{}
}

func over(s JobStatus) bool { return s.State.Over() }

// counts spells what came of the letters of a job.
func counts(s JobStatus) string {
	words := []string{string(s.State), fmt.Sprintf("%d/%d", s.Done, s.Total)}
	for _, f := range Fates {
		if n := s.Letters[f]; n > 0 {
			words = append(words, fmt.Sprintf("%s=%d", f, n))
		}
	}
	return strings.Join(words, " ")
}

func upTo(n int) (ids []int) {
	for i := range n {
		ids = append(ids, i)
	}
	return ids
}

func (y *yard) mend(ids ...int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, id := range ids {
		delete(y.refuse, fmt.Sprintf(`{"id":%d}`, id))
	}
}

func TestAJobEndsTheLettersOfMendedRowsAndTellsOfTheOthers(t *testing.T) {
	for _, mode := range Modes {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				y := newYard(t)
				y.bury(upTo(6)...)
				y.mend(0, 1, 2, 3)
				defer y.run()()
				y.ask(Job{ID: "j", Mode: mode, Actor: "ann"})
				s := y.await("j", over)
				good := map[Mode]string{Resync: "resynced", Payload: "resolved"}[mode]
				expect(t, "counts", counts(s), "done 6/6 "+good+"=4 stays=2")
				expect(t, "stays", s.Stays, []Stay{{"no field", 2, letterID("es", identify(`bank.questions/{"id":4}`))}})
				expect(t, "open letters", strings.Count(y.open(), "@"), 2)
				expect(t, "ends in the audit log", len(y.over["j"]), 1)
				expect(t, "the end", counts(y.over["j"][0]), counts(s))
			})
		})
	}
}

// Of a row that is gone the capture would make a delete that does not know where the row
// was, for every sink: it is not asked for it.
func TestRowsThatAreGoneAreNotReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.bury(1, 2)
		y.mend(1, 2)
		y.mu.Lock()
		delete(y.rows, `{"id":1}`)
		y.mu.Unlock()
		defer y.run()()
		y.ask(Job{ID: "j", Mode: Resync})
		expect(t, "counts", counts(y.await("j", over)), "done 2/2 resynced=1 superseded=1")
		var keys []string
		for _, a := range y.asked {
			for _, key := range a.keys {
				keys = append(keys, string(key))
			}
		}
		expect(t, "asked for", keys, []string{`{"id":2}`})
		expect(t, "open letters", y.open(), "")
	})
}

func TestWhatCannotBeReplayedStaysWithItsReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.bury(1, 666)
		y.mend(1, 666)
		tags := refusal(2, base+1, "no")
		tags.Change.Table.Table = "tags"
		broken := undecodable(7, nil)
		bury(t, y.box("es"), tags, broken)
		for i, r := range y.logs["shop.dlq.es/3"] { // where refusal puts them
			r.Partition = i % letterParts
			y.put(r)
		}
		defer y.run()()
		y.ask(Job{ID: "j"})
		s := y.await("j", over)
		expect(t, "counts", counts(s), "done 4/4 resynced=1 stays=3")
		reasons := map[string]bool{}
		for _, stay := range s.Stays {
			reasons[stay.Reason] = true
		}
		expect(t, "reasons", reasons, map[string]bool{
			"no such key": true, "the table is not captured any more": true,
			"the record could not be decoded, so there is no change to apply: header lockstep.format is missing": true,
		})
	})
}

// While it cannot go on a job waits and says for what, and goes on by itself.
func TestAJobWaitsAndSaysForWhat(t *testing.T) {
	for what, test := range map[string]struct {
		mode   Mode
		hinder func(y *yard, broken bool)
	}{
		"the capture has not begun to read rows of bank.questions again": {Resync, func(y *yard, broken bool) { y.idle = broken }},
		"the capture reads rows of bank.questions again: 0 of":           {Resync, func(y *yard, broken bool) { y.down = broken }},
		"sink es: replay: letter ":                                       {Payload, func(y *yard, broken bool) { y.down = broken }},
		"sink es: table held":                                            {Resync, func(y *yard, broken bool) { y.held = map[bool]string{true: "table held"}[broken] }},
		"sink es: table held ":                                           {Payload, func(y *yard, broken bool) { y.held = map[bool]string{true: "table held "}[broken] }},
		"audit log: no broker":                                           {Payload, func(y *yard, broken bool) { y.audits = map[bool]int{true: 1000}[broken] }},
	} {
		synctest.Test(t, func(t *testing.T) {
			y := newYard(t)
			y.bury(upTo(4)...)
			y.mend(upTo(4)...)
			test.hinder(y, true)
			defer y.run()()
			y.ask(Job{ID: "j", Mode: test.mode})
			y.await("j", func(s JobStatus) bool { return s.State == JobRunning && strings.HasPrefix(s.Waits, what) })
			y.mu.Lock()
			test.hinder(y, false)
			y.mu.Unlock()
			if s := y.await("j", over); s.State != JobDone || s.Stay() != 0 || s.Waits != "" {
				t.Errorf("%s: %+v", what, s)
			}
		})
	}
}

// The sink closes a letter before it commits, and that may be the moment before it is asked
// how far it is.
func TestWhatTheSinkSaysLastIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.late = true
		y.bury(upTo(6)...)
		y.mend(0, 1, 2, 3)
		defer y.run()()
		y.ask(Job{ID: "j"})
		s := y.await("j", over)
		expect(t, "counts", counts(s), "done 6/6 resynced=4 stays=2")
		expect(t, "stays", s.Stays[0].Reason, "no field")
	})
}

// Of a row that is read again, of which the sink says nothing, the letter stays, and the job
// does not wait for ever.
func TestARowOfWhichTheSinkSaysNothingStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.bury(1)
		y.clock = 0 // the versions are not newer, so there is no other letter
		defer y.run()()
		y.ask(Job{ID: "j"})
		s := y.await("j", over)
		expect(t, "counts", counts(s), "done 1/1 stays=1")
		expect(t, "stays", s.Stays[0].Reason, "its row was read again, and the sink has said nothing new of it; lockstep dlq show has its last answer")
	})
}

// A snapshot that fails, or that somebody cancels, leaves its letters, which say so.
func TestRowsThatWereNotReadAgainStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.problem = "the source is another one"
		y.bury(1, 2)
		defer y.run()()
		y.ask(Job{ID: "j"})
		s := y.await("j", over)
		expect(t, "counts", counts(s), "done 2/2 stays=2")
		expect(t, "stays", s.Stays[0].Reason, "its row was not read again: the source is another one")
	})
}

func TestACanaryThatFailsSparesTheOthers(t *testing.T) {
	for _, mode := range Modes {
		synctest.Test(t, func(t *testing.T) {
			y := newYard(t)
			y.bury(upTo(40)...)
			before := y.open()
			defer y.run()()
			y.ask(Job{ID: "j", Mode: mode, Canary: 10})
			s := y.await("j", over)
			if counts(s) != "stopped 10/40 stays=10" || !strings.Contains(s.Problem, "of the canary of 10 letters 10 stay") {
				t.Errorf("%s: %s, %s", mode, counts(s), s.Problem)
			}
			touched := 0
			for word := range strings.FieldsSeq(before) {
				if !strings.Contains(" "+y.open()+" ", " "+word+" ") {
					touched++
				}
			}
			if mode == Resync && touched != 10 || len(y.sent) > 1 {
				t.Errorf("%s: %d letters were touched, calls of %v", mode, touched, y.sent)
			}
			y.mend(upTo(40)...)
			y.ask(Job{ID: "k", Mode: mode, Canary: 10})
			if s := y.await("k", over); counts(s) != "done 40/40 "+map[Mode]string{Resync: "resynced=40", Payload: "resolved=40"}[mode] {
				t.Errorf("%s, mended: %s", mode, counts(s))
			}
		})
	}
}

func TestAJobKeepsItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.bury(upTo(100)...)
		y.mend(upTo(100)...)
		defer y.run()()
		y.ask(Job{ID: "j", Mode: Payload, Rate: 10})
		s := y.await("j", over)
		expect(t, "counts", counts(s), "done 100/100 resolved=100")
		for i := range y.began {
			within := 0
			for k := i; k < len(y.began) && y.began[k].Sub(y.began[i]) < time.Second; k++ {
				within += y.sent[k]
			}
			if within > 10 {
				t.Fatalf("%d letters within a second", within)
			}
		}
		if took := y.began[len(y.began)-1].Sub(y.began[0]); took > 15*time.Second {
			t.Errorf("100 letters at 10 a second took %s", took)
		}
	})
}

func TestACancelledJobEndsAndTakesBackWhatItAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.bury(upTo(6)...)
		y.idle = true
		stop := y.run()
		y.ask(Job{ID: "j"})
		y.await("j", func(s JobStatus) bool { return s.Waits != "" })
		if err := y.jobs().Cancel(t.Context(), "j", "bob", "the wrong one"); err != nil {
			t.Fatal(err)
		}
		s := y.await("j", over)
		expect(t, "counts", counts(s), "cancelled 0/6")
		expect(t, "problem", s.Problem, "cancelled by bob")
		expect(t, "taken back", len(y.stopped), len(y.asked))
		stop()
		// One that is cancelled before it began touches nothing either.
		y.ask(Job{ID: "k"})
		if err := y.jobs().Cancel(t.Context(), "k", "bob", ""); err != nil {
			t.Fatal(err)
		}
		asked := len(y.asked)
		defer y.run()()
		expect(t, "counts", counts(y.await("k", over)), "cancelled 0/0")
		expect(t, "asked for", len(y.asked), asked)
	})
}

func TestAJobThatCannotBeUnderstoodFailsAndOthersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t)
		y.bury(1)
		y.mend(1)
		y.put(kafka.Record{Topic: "shop.jobs", Key: []byte("new"), Value: []byte(`{"format":2,"id":"new"}`)},
			kafka.Record{Topic: "shop.jobs", Key: []byte("slow"), Value: []byte(`{"format":1,"id":"slow","mode":"resync","rate":-5}`)},
			kafka.Record{Topic: "shop.jobs", Key: []byte("j/progress"), Value: []byte(`{"format":1,"run":3}`)},
			kafka.Record{Topic: "shop.jobs", Key: []byte("odd"), Value: []byte(`{`)}, kafka.Record{Topic: "shop.jobs", Key: []byte("odd/thing"), Value: []byte(`{"format":1}`)})
		defer y.run()()
		y.ask(Job{ID: "gone", Filter: map[string]string{"sink": "cash"}})
		y.ask(Job{ID: "j"})
		s := y.await("gone", over)
		expect(t, "state", s.State, JobFailed)
		expect(t, "problem", s.Problem, `filter: sink: there is no sink "cash"; there are es, never`)
		expect(t, "the other", counts(y.await("j", over)), "done 1/1 resynced=1")
		list, err := y.jobs().List(t.Context())
		if err != nil || len(list) != 2 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

func TestJobsAreForgottenAWeekAfterTheyEnded(t *testing.T) {
	now := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	var jobs []*jobRecord
	add := func(id string, state JobState, ago time.Duration) {
		r := &jobRecord{job: &Job{ID: id}}
		if state != JobAsked {
			r.progress = &Progress{State: state, Ended: now.Add(-ago)}
		}
		jobs = append(jobs, r)
	}
	add("old", JobDone, 8*24*time.Hour)
	add("asked", JobAsked, 0)
	add("running", JobRunning, 9*24*time.Hour)
	for i := range shownJobs + 1 {
		add(fmt.Sprint(i), JobCancelled, time.Hour)
	}
	expect(t, "forgotten", outdated(jobs, now), []string{"old", "0"})

	y := newYard(t)
	y.ask(Job{ID: "a"})
	y.ask(Job{ID: "b"})
	j := y.jobs()
	if err := errors.Join(j.save(t.Context(), "a", Progress{Run: 1, State: JobDone}), j.forget(t.Context(), []string{"a"})); err != nil {
		t.Fatal(err)
	}
	list, err := y.jobs().List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != "b" {
		t.Errorf("%+v, %v", list, err)
	}
	// Cut off in between, and compacted, it must not come back as one that did not begin.
	for n := range y.logs["shop.jobs/0"] {
		part, newest := newYard(t), map[string]kafka.Record{}
		for _, r := range y.logs["shop.jobs/0"][:n+1] {
			newest[string(r.Key)] = r
		}
		for _, r := range newest {
			if r.Value != nil {
				part.put(r)
			}
		}
		list, err := part.jobs().List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.ID == "a" && s.State == JobAsked && n > 2 {
				t.Errorf("after %d records the job is asked for again", n+1)
			}
		}
	}
}

// A topic that was made anew is read as it is now, whoever read the one before.
func TestJobsOfATopicThatIsMadeAnewAreSeen(t *testing.T) {
	y := newYard(t)
	y.ask(Job{ID: "a"})
	y.ask(Job{ID: "b"})
	j := y.jobs()
	if list, err := j.List(t.Context()); err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	delete(y.logs, "shop.jobs/0")
	y.ask(Job{ID: "c"})
	if list, err := j.List(t.Context()); !errors.Is(err, kafka.ErrDataLost) {
		t.Errorf("what was lost is not told: %+v, %v", list, err)
	}
	if list, err := j.List(t.Context()); err != nil || len(list) != 1 || list[0].ID != "c" {
		t.Errorf("%+v, %v", list, err)
	}
}

// What a runner says that was taken over from counts no more.
func TestTheLastRunOfAJobCounts(t *testing.T) {
	y := newYard(t)
	y.ask(Job{ID: "a"})
	j := y.jobs()
	for _, p := range []Progress{{Run: 1, State: JobRunning, Total: 1}, {Run: 2, State: JobDone, Total: 2}, {Run: 1, State: JobRunning, Total: 3}, {Run: 2, State: JobRunning, Total: 4}} {
		if err := j.save(t.Context(), "a", p); err != nil {
			t.Fatal(err)
		}
	}
	s, _, err := y.jobs().Find(t.Context(), "a")
	if err != nil || s.State != JobDone || s.Total != 2 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Whoever is killed whenever, alone or beside another runner, and however many jobs there
// are of the same letters: each job ends with every letter counted once, letters of
// mended rows are closed and the store has them, those of others stay, and no version in
// the store goes down.
func TestJobsOutliveKillsAndOneAnother(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		draw := func(n int) int { return rapid.IntRange(0, n-1).Draw(r, "n") }
		synctest.Test(t, func(t *testing.T) {
			y := newYard(t)
			n := 1 + draw(250)
			y.bury(upTo(n)...)
			good := 0
			for id := range n {
				if draw(4) > 0 {
					y.mend(id)
					good++
				}
			}
			jobs := 1 + draw(3)
			for i := range jobs {
				y.ask(Job{ID: fmt.Sprint("j", i), Mode: Modes[draw(2)], Rate: draw(2) * 100, Canary: draw(2) * (n + 1)})
			}
			seen := map[string]cdc.Version{}
			watch := func() {
				y.mu.Lock()
				defer y.mu.Unlock()
				for key, v := range y.store {
					if v < seen[key] {
						t.Errorf("%s steps back from %d to %d", key, seen[key], v)
					}
					seen[key] = v
				}
			}
			for range draw(6) { // kill after kill, now and then two at once
				stop := y.run()
				other := func() {}
				if draw(3) == 0 {
					other = y.run()
				}
				for range draw(40) {
					time.Sleep(time.Duration(draw(200)) * time.Millisecond)
					y.work()
					watch()
				}
				stop()
				other()
			}
			defer y.run()()
			for i := range jobs {
				s := y.await(fmt.Sprint("j", i), over)
				watch()
				if s.State != JobDone || s.Done != n || s.Total != n {
					t.Errorf("job %d of %d letters: %s", i, n, counts(s))
				}
				if s.Stay() != n-good {
					t.Errorf("job %d: %d letters stay; %d rows are refused: %+v", i, s.Stay(), n-good, s)
				}
			}
			open := strings.Fields(y.open())
			if len(open) != n-good {
				t.Errorf("%d letters are open of %d, %d rows are mended", len(open), n, good)
			}
			if len(y.store) != good {
				t.Errorf("the store has %d rows, %d are mended", len(y.store), good)
			}
		})
	})
}

func TestKeysAreAskedForInParcels(t *testing.T) {
	sizes := []int{resyncBytes - 10, 20, -1, 30, resyncBytes + 1, 5}
	got := parcels([]int{0, 1, 2, 3, 4, 5}, func(i int) int { return sizes[i] })
	expect(t, "parcels", got, [][]int{{0}, {1, 3}, {4}, {5}})
}

func TestWhatIsWrongWithAJobIsNamed(t *testing.T) {
	for want, j := range map[string]Job{
		`mode: "copy" is not known; use resync to read the rows again from MySQL, or payload to send what was recorded`: {Mode: "copy"},
		`rate: -1 is no number of letters a second; use 1 to 1000000, or 0 for as fast as it goes`:                      {Mode: Resync, Rate: -1},
		`canary: -1 is no number of letters; use 1 to 1000000, or 0 for none`:                                           {Mode: Resync, Canary: -1},
		`ids: there are 1001, and a job names at most 1000; choose them by table, class or fingerprint`:                 {Mode: Resync, IDs: make([]string, 1001)},
		`reason: it has 1025 bytes; use at most 1024`:                                                                   {Mode: Resync, Reason: strings.Repeat("x", 1025)},
	} {
		if err := j.Check(); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
