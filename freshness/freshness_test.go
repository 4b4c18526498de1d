package freshness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"lockstep/cdc"
	"lockstep/dlq"
	"lockstep/internal/testenv"
	"lockstep/kafka"
	"lockstep/sinks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newHub runs a hub on the real Kafka under a prefix.
func newHub(t testing.TB, prefix string) *Hub {
	t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{testenv.Kafka(t).Addr}
	log := slog.New(slog.DiscardHandler)
	client, err := kafka.Open(cfg, "test", log)
	must(t, err)
	metrics := kafka.NewMetrics(prometheus.NewRegistry())
	h := &Hub{Prefix: prefix, Kafka: client, Log: log, Publisher: func() *kafka.Publisher { return kafka.NewPublisher(client, cfg, metrics, log) }}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		client.Close()
	})
	return h
}

// newPrefix is one of the test's own, whose topic is deleted at the end.
func newPrefix(t testing.TB) string {
	t.Helper()
	prefix := "fresh-" + uuid.NewString()[:8]
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{testenv.Kafka(t).Addr}
	t.Cleanup(func() {
		client, err := kafka.Open(cfg, "test", slog.New(slog.DiscardHandler))
		must(t, err)
		defer client.Close()
		must(t, client.DeleteTopics(context.Background(), Topic(prefix)))
	})
	return prefix
}

// heardBy collects what a hub hears.
func heardBy(t testing.TB, h *Hub) (next func(what string, ok func(Record) bool) Record) {
	t.Helper()
	records := make(chan Record, 1000)
	t.Cleanup(h.Listen(func(r Record) { records <- r }))
	return func(what string, ok func(Record) bool) Record {
		t.Helper()
		for late := time.After(2 * time.Minute); ; {
			select {
			case r := <-records:
				if ok(r) {
					return r
				}
			case <-late:
				t.Fatalf("waited 2 m for %s", what)
			}
		}
	}
}

func TestWhatOneProcessWritesEveryOtherHears(t *testing.T) {
	prefix := newPrefix(t)
	one, other := newHub(t, prefix), newHub(t, prefix)
	nextOne, nextOther := heardBy(t, one), heardBy(t, other)
	_, err := other.open(t.Context())
	must(t, err)
	must(t, one.Write(t.Context(), Record{Want: &Want{ID: "w", GTIDs: "x"}}))
	for name, next := range map[string]func(string, func(Record) bool) Record{"its writer": nextOne, "another one": nextOther} {
		if r := next("the want at "+name, func(Record) bool { return true }); r.Want == nil || r.Want.ID != "w" {
			t.Errorf("%s hears %+v", name, r)
		}
	}
}

func TestARecordOfAnotherFormatIsRefusedAndTheNextOneHeard(t *testing.T) {
	h := newHub(t, newPrefix(t))
	next := heardBy(t, h)
	publisher, err := h.open(t.Context())
	must(t, err)
	for _, value := range []string{`{"format":2,"want":{"id":"later"}}`, `{`, `{"want":{"id":"none"}}`} {
		must(t, publisher.Publish(t.Context(), kafka.Record{Topic: Topic(h.Prefix), Value: []byte(value)}))
	}
	must(t, h.Write(t.Context(), Record{Want: &Want{ID: "ours"}}))
	if r := next("the next one", func(Record) bool { return true }); r.Want.ID != "ours" {
		t.Errorf("heard %+v", r.Want)
	}
	if _, err := Decode(kafka.Record{Value: []byte(`{"format":2}`)}); err == nil || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("a record of format 2: %v", err)
	}
}

// source is what an Answers asks, in the hands of a test.
type source struct {
	mu     sync.Mutex
	passes map[string]bool // sets that are read
	moved  chan struct{}
	acks   []func()
	ends   map[string][]int64
	copies []string
}

func (s *source) passed(ctx context.Context, sets map[string]string, more <-chan struct{}) (cdc.Position, []string, []string, error) {
	for {
		s.mu.Lock()
		var ids []string
		for id, set := range sets {
			if s.passes[set] {
				ids = append(ids, id)
			}
		}
		moved, copies := s.moved, slices.Clone(s.copies)
		s.mu.Unlock()
		if len(ids) > 0 {
			return cdc.Position{Epoch: 1, Seq: 7, GTIDSet: "read", Keys: map[string]string{"a.b": "id"}}, ids, copies, nil
		}
		select {
		case <-moved:
		case <-more:
			return cdc.Position{}, nil, nil, nil
		case <-ctx.Done():
			return cdc.Position{}, nil, nil, ctx.Err()
		}
	}
}

func (s *source) pass(set string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passes[set] = true
	close(s.moved)
	s.moved = make(chan struct{})
}

// ack acknowledges what was published.
func (s *source) ack() {
	s.mu.Lock()
	acks := s.acks
	s.acks = nil
	s.mu.Unlock()
	for _, fn := range acks {
		fn()
	}
}

func newAnswers(t *testing.T, h *Hub) (*source, *Answers) {
	t.Helper()
	s := &source{passes: map[string]bool{}, moved: make(chan struct{}), ends: map[string][]int64{"a.b": {3, 4}, "a.c": {5}}}
	a := &Answers{
		Hub: h, Process: "p", Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()), Passed: s.passed, Requests: func() int64 { return 2 },
		AfterAcked: func(fn func()) { s.mu.Lock(); s.acks = append(s.acks, fn); s.mu.Unlock() },
		Ends:       func(context.Context, uint16) (map[string][]int64, error) { return s.ends, nil },
		Committed:  func(context.Context) (string, time.Time, error) { return "beat", time.UnixMicro(2_000_000), nil },
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	return s, a
}

func TestTheCaptureAnswersWhenTheTransactionsAreReadAndWhatTheyChangedIsAcknowledged(t *testing.T) {
	h := newHub(t, newPrefix(t))
	next := heardBy(t, h)
	s, _ := newAnswers(t, h)
	must(t, h.Write(t.Context(), Record{Want: &Want{ID: "one", GTIDs: "x", Millis: 60_000, Table: "a.b"}}))
	must(t, h.Write(t.Context(), Record{Want: &Want{ID: "two", GTIDs: "y", Millis: 60_000}}))
	next("the wants", func(r Record) bool { return r.Want != nil && r.Want.ID == "two" })
	quiet := func(why string) {
		t.Helper()
		must(t, h.Write(t.Context(), Record{Want: &Want{ID: why, GTIDs: "never", Millis: 1}}))
		next(why, func(r Record) bool {
			if r.Capture != nil {
				t.Errorf("%s it answers %+v", why, r.Capture)
			}
			return r.Want != nil && r.Want.ID == why
		})
	}
	quiet("before anything is read")
	s.pass("x")
	until(t, "the answer to wait for Kafka", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.acks) > 0 })
	quiet("before it is acknowledged")
	s.ack()
	c := next("the answer", func(r Record) bool { return r.Capture != nil }).Capture
	if !slices.Equal(c.Wants, []string{"one"}) || len(c.Ends) != 1 || !slices.Equal(c.Ends["a.b"], []int64{3, 4}) || c.Keys["a.b"] != "id" || c.Requests != 2 || c.UpToMicros != 0 {
		t.Errorf("answered %+v", c)
	}
	s.mu.Lock()
	s.copies = []string{"a.c"}
	s.mu.Unlock()
	s.pass("y")
	s.pass("beat")
	until(t, "the answer to wait for Kafka", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.acks) > 0 })
	s.ack()
	var all Capture
	next("both answers", func(r Record) bool {
		if r.Capture != nil {
			all.Wants = append(all.Wants, r.Capture.Wants...)
			if c := r.Capture; c.UpToMicros > 0 {
				all.UpToMicros = c.UpToMicros
				// By the source's clock, which stands in 1970, it was written after it was told.
				if age := c.AtMicros + c.SkewMicros - c.UpToMicros; age <= 0 || age > time.Minute.Microseconds() {
					t.Errorf("what was told a moment ago is %d us old", age)
				}
			}
			if len(r.Capture.Wants) > 0 && (len(r.Capture.Ends) != 2 || !slices.Equal(r.Capture.Copying, []string{"a.c"})) {
				t.Errorf("answered %+v", r.Capture)
			}
		}
		s.ack()
		return len(all.Wants) > 0 && all.UpToMicros > 0
	})
	if !slices.Equal(all.Wants, []string{"two"}) || all.UpToMicros != 2_000_000 {
		t.Errorf("answered %+v", all)
	}
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited 2 m for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// A beat that waits long, because the capture is far behind, is passed by and by; and those
// that a failover has lost hold up none that came later.
func TestBeatsThatNeverComeDoNotStopLaterOnes(t *testing.T) {
	a := &Answers{wants: map[string]wanted{}, more: make(chan struct{})}
	for n := range 1000 {
		id := fmt.Sprint(n)
		a.enter(id)
		a.add(id, wanted{gtids: id, micros: int64(n)})
	}
	if len(a.beats) > mostBeats || len(a.wants) != len(a.beats) || a.beats[0] != "0" || a.beats[len(a.beats)-1] != "999" {
		t.Fatalf("%d wants, beats %v", len(a.wants), a.beats)
	}
	c := &Capture{}
	a.settle(c, []string{"999"}, nil, nil)
	if c.UpToMicros != 999 || len(a.beats) != 0 || len(a.wants) != 0 {
		t.Errorf("up to %d, %d beats and %d wants are left", c.UpToMicros, len(a.beats), len(a.wants))
	}
}

// owned is a partition in the hands of a test.
type owned struct {
	done, end int64
	ok        bool
}

func (o *owned) Done() (before, end int64, generation int32, ok bool) { return o.done, o.end, 4, o.ok }

func newReport() (*Report, map[int]int64, map[int]int) {
	settled, letters := map[int]int64{}, map[int]int{}
	r := &Report{
		Sink: "s", Process: "p",
		Shown:     func(_ string, id int) (sinks.Shown, bool) { at, ok := settled[id]; return sinks.Shown{Before: at}, ok },
		Letters:   func(_ string, id int) int { return letters[id] },
		State:     func() sinks.Status { return sinks.Status{} },
		Latencies: func() map[string][]uint64 { return nil },
		TableOf:   func(topic string) (string, bool) { return strings.CutPrefix(topic, "p.") },
	}
	r.Open()
	return r, settled, letters
}

func TestAReportAnswersWhenAllItsPartitionsAreThereAndKnowsWhatItDoesNotKnow(t *testing.T) {
	r, settled, letters := newReport()
	first, third := &owned{0, 4, true}, &owned{2, 3, true}
	r.Own("p.a.b", 0, first)
	leave := r.Own("p.a.b", 2, third)
	wants := map[string]Want{"w": {ID: "w", Sinks: []string{"s"}, Millis: 60_000}}
	r.aim(&Capture{Wants: []string{"w"}, Ends: map[string][]int64{"a.b": {5, 9, 2}, "a.elsewhere": {1}}}, wants)
	now := time.Now()
	none := func(why string) {
		t.Helper()
		if s := r.answer(now); s != nil {
			t.Errorf("%s it answers %+v", why, s)
		}
	}
	none("while no partition runs")
	settled[0], settled[2] = 4, -1
	none("while one is behind")
	settled[0] = 5
	third.ok = false
	none("while Kafka does not answer for one")
	third.ok = true
	none("while one has not read what an owner before may have read")
	third.end = 2
	letters[0] = 1
	s := r.answer(now)
	if s == nil || s.Generation != 4 || s.Whole || len(s.Tables) != 1 {
		t.Fatalf("answered %+v", s)
	}
	if of := s.Tables["a.b"].Partitions; len(of) != 2 || of[0] != (Place{5, 0, 1}) || of[2] != (Place{2, 0, 0}) {
		t.Errorf("answered %+v", of)
	}
	none("a second time")
	r.aim(&Capture{Wants: []string{"w"}, Ends: map[string][]int64{"a.b": {5, 9, 9}}}, map[string]Want{"w": {ID: "w", Sinks: []string{"s"}, Millis: 60_000}})
	none("while another one is behind")
	leave()
	r.Refilled("a.b", 8)
	if s := r.answer(now); s == nil || len(s.Tables["a.b"].Partitions) != 1 || s.Tables["a.b"].Refill != 8 {
		t.Errorf("what is left to it is not answered: %+v", s)
	}
}

func TestTheLatencyOfAWindowIsThatOfItsChangesAlone(t *testing.T) {
	r, _, _ := newReport()
	counts := make([]uint64, len(sinks.LatencyBounds)+1)
	r.Latencies = func() map[string][]uint64 { return map[string][]uint64{"a.b": slices.Clone(counts)} }
	now := time.Now()
	counts[3] = 100 // before
	r.window(now)
	counts[1] += 98
	counts[5] += 2
	l := r.window(now.Add(Window / 2))["a.b"]
	if l.Count() != 100 || l.Quantile(.5) != sinks.LatencyBounds[1] || l.Quantile(.99) != sinks.LatencyBounds[5] {
		t.Errorf("%d changes, half within %v, nearly all within %v", l.Count(), l.Quantile(.5), l.Quantile(.99))
	}
	if both := l.Add(Latency{[]uint64{0, 2}}); both.Count() != 102 || l.Count() != 100 {
		t.Errorf("together %d", both.Count())
	}
	for n := range 30 {
		l = r.window(now.Add(Window/2 + time.Duration(n)*time.Second))["a.b"]
	}
	if l.Count() != 0 || l.Quantile(.99) != 0 || !l.IsZero() {
		t.Errorf("a window later there are still %d", l.Count())
	}
}

// Whatever types the columns of a key have, its partition is among those that its text is
// looked for in.
func TestAKeyAsTextLeadsToItsPartition(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	values := []func() (raw []byte){
		func() []byte { return fmt.Appendf(nil, "%d", random.Int64()-1<<40) },
		func() []byte { return cdc.AppendString(nil, fmt.Sprintf("a%%b:%d\"ü\n", random.Int())) },
		func() []byte { return cdc.AppendString(nil, fmt.Sprint(random.Int())) },
		func() []byte { return fmt.Appendf(nil, "%d.%02d", random.IntN(1000), random.IntN(100)) },
		func() []byte { return []byte(`["x","y"]`) },
	}
	for range 3000 {
		var columns []string
		key := []byte("{")
		for i := range 1 + random.IntN(3) {
			columns = append(columns, fmt.Sprint("column ", i))
			if i > 0 {
				key = append(key, ',')
			}
			key = append(append(cdc.AppendString(key, columns[i]), ':'), values[random.IntN(len(values))]()...)
		}
		key = append(key, '}')
		text, err := cdc.KeyText(key)
		must(t, err)
		n := 1 + random.IntN(200)
		for _, given := range []string{text, string(key)} {
			ids := rowPartitions(keyTexts(given, columns), columns, n)
			if ids == nil || !ids[kafka.PartitionFor(key, n)] || !ids[0] {
				t.Fatalf("key %s of partition %d, given as %s, is looked for in %v", key, kafka.PartitionFor(key, n), given, ids)
			}
			if len(ids) > 1<<len(columns)+1 {
				t.Fatalf("key %s is looked for in %d partitions", key, len(ids))
			}
		}
	}
	for _, given := range []string{"1:2", `{"other":1}`, `{"id":`, `{"a":1,"b":2,"a":3}`} {
		if ids := rowPartitions(keyTexts(given, []string{"a", "b", "c"}), []string{"a", "b", "c"}, 4); ids != nil {
			t.Errorf("%s is looked for in %v, not in all", given, ids)
		}
	}
}

// told is an inquiry and what happens to it.
type told struct {
	*inquiry
	ask Ask
}

func newTold(ask Ask) told {
	return told{&inquiry{
		want: Want{ID: "me", Sinks: ask.Sinks, Table: ask.Table}, takes: func(_, table string) bool { return table != "a.none" }, changed: make(chan struct{}),
		pins: map[string]pin{}, refills: map[string]int64{}, voids: map[string]cdc.Version{}, seen: map[string]map[string]map[int]seen{},
	}, ask}
}

func (q told) says(t *testing.T, when string, settled, visible bool) {
	t.Helper()
	state := State{}
	answers, _ := q.judge(q.ask, &state)
	all := Answer{Sinks: answers}
	seen := !slices.ContainsFunc(answers, func(s SinkAnswer) bool { return !s.Visible })
	if all.Settled() != settled || seen != visible {
		t.Errorf("%s: settled is %v and visible %v; want %v and %v: %+v", when, all.Settled(), seen, settled, visible, answers)
	}
	for _, a := range answers {
		if a.Visible == (len(a.WaitsFor) > 0) {
			t.Errorf("%s: visible is %v and it waits for %q", when, a.Visible, a.WaitsFor)
		}
	}
}

func sinkSays(sink string, generation int32, table string, places map[int]Place) Record {
	return Record{Sink: &Sink{Sink: sink, Generation: generation, Tables: map[string]Table{table: {Partitions: places}}}}
}

func TestABarrierWaitsForEverythingItDoesNotKnow(t *testing.T) {
	q := newTold(Ask{Sinks: []string{"s", "t"}})
	there := map[int]Place{0: {10, 0, 0}, 1: {20, 0, 0}}
	q.says(t, "at first", false, false)
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{}}})
	q.hear(sinkSays("s", 1, "a.b", there))
	q.says(t, "what stands before the want says nothing", false, false)
	q.hear(Record{Want: &Want{ID: "me"}})
	q.hear(Record{Want: &Want{ID: "other"}})
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"other"}, Ends: map[string][]int64{}}})
	q.says(t, "an answer to somebody else", false, false)
	q.hear(sinkSays("t", 1, "a.b", there)) // before the capture's answer, and behind the want
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {10, 20}, "a.none": {1}}}})
	q.says(t, "no word of sink s", false, false)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{0: {10, 0, 0}}))
	q.says(t, "no word of partition 1", false, false)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{1: {19, 0, 0}}))
	q.says(t, "partition 1 is behind", false, false)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{1: {20, 0, -1}}))
	q.says(t, "its letters are not known", false, false)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{1: {20, 0, 2}}))
	q.says(t, "two letters", true, false)
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {100, 200}, "a.later": {1}}}})
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{1: {21, 0, 0}}))
	q.says(t, "what was published later was not asked for", true, true)
	q.hear(sinkSays("s", 3, "a.b", map[int]Place{1: {5, 0, 0}}))
	q.says(t, "the store went back under a new owner", false, false)
	q.hear(sinkSays("s", 2, "a.b", map[int]Place{1: {30, 0, 0}}))
	q.says(t, "the owner of before speaks", false, false)
	q.hear(sinkSays("s", 3, "a.b", map[int]Place{1: {30, 0, 0}}))
	q.says(t, "and the new one is there", true, true)
}

func TestABarrierWaitsForCopies(t *testing.T) {
	q := newTold(Ask{Sinks: []string{"s"}})
	q.hear(Record{Want: &Want{ID: "me"}})
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {1}}, Copying: []string{"a.b", "a.new"}}})
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{0: {100, 0, 0}}))
	q.says(t, "while they are copied", false, false)
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {101}}, Copying: []string{"a.new"}}})
	q.says(t, "the rows of the copy are not there", false, false)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{0: {101, 0, 0}}))
	q.says(t, "another one is copied still", false, false)
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {500}}}}) // it had no row, so it has no topic
	q.says(t, "both are over", true, true)

	lost := sinkSays("s", 1, "a.b", map[int]Place{0: {101, 0, 0}})
	table := lost.Sink.Tables["a.b"]
	table.Refill = 7
	lost.Sink.Tables["a.b"] = table
	q.hear(lost)
	q.says(t, "the store has lost it", false, false)
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {101}}, Requests: 6}})
	q.says(t, "the capture has not heard of that", false, false)
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {101}}, Requests: 7, Copying: []string{"a.b"}}})
	q.says(t, "it is copied again", false, false)
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {130}}, Requests: 7}})
	q.says(t, "its rows are on their way", false, false)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{0: {130, 0, 0}}))
	q.says(t, "they are there", true, true)
}

// A change that a TRUNCATE has made void is settled, and the store may show the row as it was
// before until it is swept.
func TestABarrierWaitsForTheSweepThatMadeAChangeVoid(t *testing.T) {
	q := newTold(Ask{Sinks: []string{"s"}})
	capture := func(version cdc.Version, end int64, sweeps map[string]cdc.Version) {
		q.hear(Record{Capture: &Capture{Version: version, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {end, 10}}, Sweeps: sweeps}})
	}
	q.hear(Record{Want: &Want{ID: "me"}})
	capture(50, 5, nil)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{0: {5, 0, 0}, 1: {10, 60, 0}}))
	q.says(t, "a change was void by a barrier that the capture had not passed", false, false)
	capture(60, 5, nil)
	q.says(t, "nor has it now", false, false)
	capture(61, 7, nil)
	q.says(t, "the barrier is not settled in partition 0", false, false)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{0: {7, 0, 0}}))
	q.says(t, "it is swept", true, true)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{1: {10, 70, 0}}))
	q.says(t, "the next one", false, false)
	capture(90, 7, map[string]cdc.Version{"a.b": 70})
	q.says(t, "which ends a copy that is under way", false, false)
	capture(91, 8, map[string]cdc.Version{"a.b": 80})
	q.says(t, "it is over", false, false)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{0: {8, 0, 0}}))
	q.says(t, "and swept for", true, true)
}

func TestABarrierForARowWaitsForItsPartitionAndTheFirst(t *testing.T) {
	const partitions = 8
	key := ""
	for n := 0; key == "" || kafka.PartitionFor([]byte(`{"id":`+key+`}`), partitions) != 5 || len(rowPartitions([]string{key}, []string{"id"}, partitions)) == 2; n++ {
		key = fmt.Sprint(n)
	}
	for _, without := range []int{-1, 0, 1, 5} {
		q := newTold(Ask{Sinks: []string{"s"}, Table: "a.b", Key: key})
		q.hear(Record{Want: &Want{ID: "me"}})
		q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {1, 1, 1, 1, 1, 1, 1, 1}}, Keys: map[string]string{"a.b": "id"}}})
		places := map[int]Place{}
		for id := range rowPartitions([]string{key}, []string{"id"}, partitions) {
			if id != without {
				places[id] = Place{1, 0, 0}
			}
		}
		q.hear(sinkSays("s", 1, "a.b", places))
		want := without != 0 && without != 5
		q.says(t, fmt.Sprint("without partition ", without), want, want)
	}
}

// A barrier that waits for a while is asked again, and those that wait for the same share
// their want.
func TestBarriersShareTheirWants(t *testing.T) {
	h := newHub(t, newPrefix(t))
	next := heardBy(t, h)
	asked := 0
	b := &Barrier{Hub: h, Metrics: NewMetrics(prometheus.NewRegistry()), Takes: func(string, string) bool { return true }, Committed: func(context.Context) (string, error) {
		asked++
		time.Sleep(20 * time.Millisecond)
		return "set", nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	answers := make(chan Answer, 50)
	for range 50 {
		all.Go(func() {
			a, err := b.Await(ctx, Ask{Sinks: []string{"s"}, Table: "a.b"})
			if err != nil {
				t.Error(err)
			}
			answers <- a
		})
	}
	var id string
	next("the want", func(r Record) bool { id = r.Want.ID; return true })
	again := next("the same want again", func(r Record) bool { return r.Want != nil })
	if again.Want.ID != id || again.Want.GTIDs != "set" {
		t.Errorf("wanted %s, then %+v", id, again.Want)
	}
	must(t, h.Write(ctx, Record{Capture: &Capture{Version: 100, Wants: []string{id}, Ends: map[string][]int64{"a.b": {4}}}}))
	must(t, h.Write(ctx, sinkSays("s", 1, "a.b", map[int]Place{0: {4, 0, 0}})))
	all.Wait()
	cancel()
	close(answers)
	for a := range answers {
		if !a.Visible || a.GTIDs != "set" || !slices.Equal(a.Sinks[0].Ends["a.b"], []int64{4}) {
			t.Errorf("answered %+v", a)
		}
	}
	if asked > 3 {
		t.Errorf("the source was asked %d times", asked)
	}
	if len(b.inquiries) != 0 {
		t.Errorf("%d inquiries are left", len(b.inquiries))
	}
}

func TestTheTimeoutSaysForWhomItWaits(t *testing.T) {
	h := newHub(t, newPrefix(t))
	b := &Barrier{Hub: h, Metrics: NewMetrics(prometheus.NewRegistry()), Takes: func(string, string) bool { return true }, Letter: func(context.Context, string, string, string, map[int]bool) (*dlq.Letter, error) {
		return &dlq.Letter{ID: "s-1"}, nil
	}}
	row := func() Row {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		r, err := b.Row(ctx, "s", "a.b", "1", "x")
		must(t, err)
		return r
	}
	waits := func(r Row, state RowState, part string) {
		t.Helper()
		if r.State != state || state != RowDead && !strings.Contains(strings.Join(r.WaitsFor, "; "), part) {
			t.Errorf("the row is %s and waits for %q; want %s and %q", r.State, r.WaitsFor, state, part)
		}
	}
	waits(row(), RowUnknown, "no capture is heard of")
	beating, stop := context.WithCancel(t.Context())
	var beats sync.WaitGroup
	defer beats.Wait()
	defer stop()
	whole := make(chan Record, 1)
	heard := heardBy(t, h)
	beats.Go(func() {
		var sink *Record
		for beating.Err() == nil {
			_ = h.Write(beating, Record{Capture: &Capture{UpToMicros: 1}})
			select {
			case r := <-whole:
				sink = &r
			case <-time.After(200 * time.Millisecond):
			case <-beating.Done():
			}
			if sink != nil {
				_ = h.Write(beating, *sink)
			}
		}
	})
	heard("the capture", func(r Record) bool { return r.Capture != nil })
	waits(row(), RowPending, "the capture has not read up to")
	// One answers for both from now on.
	ends := map[string][]int64{"a.b": {9}}
	defer h.Listen(func(r Record) {
		if r.Want != nil {
			go func() {
				_ = h.Write(t.Context(), Record{Capture: &Capture{Version: 100, Wants: []string{r.Want.ID}, Ends: ends}})
			}()
		}
	})()
	waits(row(), RowUnknown, "no process of sink s is heard of that has partition 0 of a.b")
	says := sinkSays("s", 1, "a.b", map[int]Place{0: {3, 0, 0}})
	says.Sink.Whole, says.Sink.Process = true, "p"
	of := says.Sink.Tables["a.b"]
	of.Held = &sinks.HeldStatus{By: sinks.ByStore, Reason: "it is down"}
	says.Sink.Tables["a.b"] = of
	whole <- says
	heard("the sink", func(r Record) bool { return r.Sink != nil })
	waits(row(), RowPending, "partition 0 of a.b is settled up to offset 3 of 9 in sink s, and its changes wait: it is down")
	defer h.Listen(func(r Record) {
		if r.Capture != nil {
			go func() { _ = h.Write(t.Context(), sinkSays("s", 1, "a.b", map[int]Place{0: {9, 0, 1}})) }()
		}
	})()
	if r := row(); r.State != RowDead || r.Letter == nil || r.Letter.ID != "s-1" {
		t.Errorf("a row with a letter: %+v", r)
	}
	b.Letter = func(context.Context, string, string, string, map[int]bool) (*dlq.Letter, error) { return nil, nil }
	if r := row(); r.State != RowApplied {
		t.Errorf("a row beside one with a letter: %+v", r)
	}
}

// However its key is written, the letter of a row is found by the key as letters have it, and
// what is no key of the table is a mistake and no row that is there.
func TestTheLetterOfARowIsLookedForByItsKeyHoweverThatIsWritten(t *testing.T) {
	h := newHub(t, newPrefix(t))
	asked, in := "", map[int]bool{}
	b := &Barrier{Hub: h, Metrics: NewMetrics(prometheus.NewRegistry()), Takes: func(string, string) bool { return true }, Letter: func(_ context.Context, _, _, key string, partitions map[int]bool) (*dlq.Letter, error) {
		asked, in = key, partitions
		return &dlq.Letter{ID: "s-1"}, nil
	}}
	defer h.Listen(func(r Record) {
		switch {
		case r.Want != nil:
			go func() {
				_ = h.Write(context.Background(), Record{Capture: &Capture{Version: 100, Wants: []string{r.Want.ID}, Ends: map[string][]int64{"a.b": {0, 0}}, Keys: map[string]string{"a.b": "x, y"}}})
			}()
		case r.Capture != nil:
			go func() {
				_ = h.Write(context.Background(), sinkSays("s", 1, "a.b", map[int]Place{0: {Letters: 1}, 1: {Letters: 1}}))
			}()
		}
	})()
	row := func(key string) (Row, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return b.Row(ctx, "s", "a.b", key, "g")
	}
	for _, key := range []string{"1:p%3Aq", `{"x":1,"y":"p:q"}`, `{"y": "p:q", "x": "1"}`} {
		r, err := row(key)
		must(t, err)
		if r.State != RowDead || asked != "1:p%3Aq" || !in[0] {
			t.Errorf("%s: %+v, looked for %q in %v", key, r, asked, in)
		}
	}
	for _, key := range []string{"1", "1:p:q", `{"x":1}`, `{"x":1,"z":"p:q"}`, `{"x":1,"x":"p:q"}`, `{"x":`} {
		asked = ""
		r, err := row(key)
		wrong, ok := errors.AsType[*dlq.FieldError](err)
		if !ok || wrong.Field != "key" || !strings.Contains(wrong.Problem, "is no primary key of a.b, which has the columns x, y") || asked != "" {
			t.Errorf("%s: %+v, %v", key, r, err)
		}
	}
}

// Nobody knows the columns of a table whose copy has not begun: then every partition matters.
func TestAKeyOfUnknownColumnsMayBeAnywhere(t *testing.T) {
	q := newTold(Ask{Sinks: []string{"s"}, Table: "a.b", Key: "7"})
	q.hear(Record{Want: &Want{ID: "me"}})
	q.hear(Record{Capture: &Capture{Version: 100, Wants: []string{"me"}, Ends: map[string][]int64{"a.b": {1, 1, 1, 1, 1, 1, 1, 1}}, Keys: map[string]string{"a.b": ""}}})
	places := map[int]Place{}
	for id := range 7 {
		places[id] = Place{Settled: 1}
	}
	q.hear(sinkSays("s", 1, "a.b", places))
	q.says(t, "without one partition", false, false)
	q.hear(sinkSays("s", 1, "a.b", map[int]Place{7: {Settled: 1}}))
	q.says(t, "with all", true, true)
}
