package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"lockstep/kafka"
)

// memory is a Kafka of one partition.
type memory struct {
	mu      sync.Mutex
	records []kafka.Record
	down    error
	before  func() // called before a record is written
}

func (m *memory) EnsureTopic(context.Context, kafka.TopicSpec) error { return m.down }

func (m *memory) Produce(_ context.Context, r kafka.Record) error {
	if m.down != nil {
		return m.down
	}
	if m.before != nil {
		m.before()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r.Offset, r.Time = int64(len(m.records)), time.Now()
	m.records = append(m.records, r)
	return nil
}

func (m *memory) ReadFrom(_ context.Context, _ string, _ int, from int64, fn func(kafka.Record) error) (int64, error) {
	m.mu.Lock()
	some := slices.Clone(m.records[min(from, int64(len(m.records))):])
	m.mu.Unlock()
	for _, r := range some {
		if err := fn(r); err != nil {
			return from, err
		}
		from = r.Offset + 1
	}
	return from, nil
}

func (m *memory) set(values [][]byte) {
	m.records = nil
	for i, v := range values {
		m.records = append(m.records, kafka.Record{Offset: int64(i), Value: v})
	}
}

func (m *memory) values() (all [][]byte) {
	for _, r := range m.records {
		all = append(all, r.Value)
	}
	return all
}

func skip(letter string) Act {
	return Act{Actor: "ann@desk", Via: "cli", Name: "dlq.skip", Filter: map[string]string{"letter": letter}, Reason: "known"}
}

func do(t testing.TB, l *Log, act Act, counts map[string]int, failed error) {
	t.Helper()
	if err := l.Do(t.Context(), act, func() (map[string]int, error) { return counts, failed }); !errors.Is(err, failed) {
		t.Fatal(err)
	}
}

func verify(t testing.TB, k Kafka) Verified {
	t.Helper()
	v, err := Verify(context.Background(), k, "shop", nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func listed(t testing.TB, k Kafka, f Filter) []Listed {
	t.Helper()
	acts, _, err := List(t.Context(), k, "shop", f)
	if err != nil {
		t.Fatal(err)
	}
	return acts
}

func TestAnActIsTwoRecordsThatSayEverything(t *testing.T) {
	m := &memory{}
	l := &Log{Prefix: "shop", Kafka: m}
	do(t, l, skip("search-1"), map[string]int{"skipped": 1}, nil)
	do(t, l, Act{Actor: "bob@desk", Via: "http", Name: "dlq.replay", Request: "r-1"}, map[string]int{"resolved": 2, "parked": 1}, errors.New("store is away"))
	e, _, err := l.Begin(t.Context(), Act{Actor: "bob@desk", Via: "cli", Name: "snapshot.start"})
	if err != nil || e == nil {
		t.Fatal(err)
	}
	if v := verify(t, m); v.Records != 5 || v.Late != 0 || len(v.Breaks) != 0 {
		t.Errorf("%+v", v)
	}
	acts := listed(t, m, Filter{})
	var said []string
	for _, a := range acts {
		said = append(said, fmt.Sprint(a.Seq, " ", a.Actor, " ", a.Via, " ", a.Act, " ", a.Filter, " ", a.Reason, " ", a.RequestID, " ", a.Outcome, " ", a.Problem, " ", a.Counts, " ", a.Ended != nil))
	}
	want := []string{
		"0 ann@desk cli dlq.skip map[letter:search-1] known  done  map[skipped:1] true",
		"2 bob@desk http dlq.replay map[]  r-1 failed store is away map[parked:1 resolved:2] true",
		"4 bob@desk cli snapshot.start map[]   begun  map[] false",
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Error(diff)
	}
	began := acts[1].Began
	for want, f := range map[string]Filter{
		"[0]": {Actor: "ann@desk"}, "[2 4]": {Actor: "bob*"}, "[0 2]": {Act: "dlq.*"}, "[4]": {Act: "snapshot.start"},
		"[]": {Act: "dlq"}, "[2 4] ": {Since: began}, "[0] ": {Until: began},
	} {
		var got []int64
		for _, a := range listed(t, m, f) {
			got = append(got, a.Seq)
		}
		if fmt.Sprint(got) != strings.TrimSpace(want) {
			t.Errorf("%+v takes %v, want %s", f, got, want)
		}
	}
}

func TestAnActThatCannotBeWrittenDownIsNotDone(t *testing.T) {
	m := &memory{down: errors.New("no broker")}
	l := &Log{Prefix: "shop", Kafka: m}
	err := l.Do(t.Context(), skip("search-1"), func() (map[string]int, error) {
		t.Error("it was done")
		return nil, nil
	})
	if err == nil || err.Error() != "audit log: no broker" {
		t.Error(err)
	}
	m.down = nil
	err = l.Do(t.Context(), skip("search-1"), func() (map[string]int, error) {
		m.down = errors.New("no broker now")
		return nil, nil
	})
	if err == nil || err.Error() != "the end of it is not in the audit log: no broker now" {
		t.Error(err)
	}
}

// Whatever is done to one record or two, save to the last of all, is found.
func TestWhatIsRemovedChangedMovedOrPutInIsFound(t *testing.T) {
	m := &memory{}
	for i := range 6 {
		// Two writers, of which the second is late each time.
		a, b := &Log{Prefix: "shop", Kafka: m}, &Log{Prefix: "shop", Kafka: m}
		if err := b.catchUp(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		m.before = func() {
			m.before = nil
			do(t, a, skip(fmt.Sprint("first-", i)), nil, nil)
		}
		do(t, b, skip(fmt.Sprint("second-", i)), nil, nil)
	}
	good := m.values()
	v := verify(t, m)
	if v.Late != 6 || v.Records != 30 || len(v.Breaks) != 0 {
		t.Fatalf("%+v", v)
	}
	if n := len(listed(t, m, Filter{})); n != 12 {
		t.Errorf("%d acts are listed", n)
	}
	rapid.Check(t, func(r *rapid.T) {
		last := len(good) - 1
		i := rapid.IntRange(0, last-1).Draw(r, "i")
		j := rapid.IntRange(0, last-1).Filter(func(j int) bool { return j != i }).Draw(r, "j")
		bad := slices.Clone(good)
		switch rapid.SampledFrom([]string{"remove", "change", "swap", "repeat", "foreign", "write"}).Draw(r, "how") {
		case "remove":
			bad = slices.Delete(bad, i, i+1)
		case "change":
			changed := slices.Clone(bad[i])
			at := rapid.IntRange(0, len(changed)-1).Draw(r, "byte")
			changed[at] ^= byte(rapid.IntRange(1, 255).Draw(r, "bits"))
			bad[i] = changed
		case "swap":
			bad[i], bad[j] = bad[j], bad[i]
		case "repeat":
			bad = slices.Insert(bad, i, good[j])
		case "foreign":
			bad = slices.Insert(bad, i, []byte("hello"))
		case "write": // as a writer would that has read up to there, or less
			c := newChain("shop")
			for _, v := range good[:i] {
				c.add(v)
			}
			value, _ := json.Marshal(Record{Format: format, Seq: c.n, Prev: c.head, ID: "x", Step: Began, Act: skip("forged")})
			bad = slices.Insert(bad, max(i, min(j, i+1)), value)
		}
		m.set(bad)
		if len(verify(t, m).Breaks) == 0 {
			r.Fatal("it is not found")
		}
	})
	// The end needs a head that was kept.
	m.set(good[:len(good)-1])
	if v := verify(t, m); len(v.Breaks) != 0 {
		t.Errorf("%+v", v)
	}
	cut, err := Verify(t.Context(), m, "shop", &v.Head)
	if err != nil || len(cut.Breaks) != 1 || !strings.Contains(cut.Breaks[0].Problem, "was never in this log") {
		t.Errorf("%+v, %v", cut, err)
	}
	m.set(good)
	if old, err := Verify(t.Context(), m, "shop", &cut.Head); err != nil || len(old.Breaks) != 0 {
		t.Errorf("%+v, %v", old, err)
	}
	if other, err := Verify(t.Context(), m, "bazaar", nil); err != nil || len(other.Breaks) == 0 {
		t.Errorf("the log of another pipeline passes: %+v, %v", other, err)
	}
}

// Each break is told once and where it is, and what comes behind it is still verified and
// continued.
func TestEveryBreakIsToldOnceAndTheLogGoesOn(t *testing.T) {
	m := &memory{}
	l := &Log{Prefix: "shop", Kafka: m}
	for i := range 5 {
		do(t, l, skip(fmt.Sprint(i)), nil, nil)
	}
	values := m.values()
	values[2] = []byte(strings.Replace(string(values[2]), "known", "other", 1))
	values = slices.Delete(values, 6, 7)
	m.set(values)
	do(t, &Log{Prefix: "shop", Kafka: m}, skip("after"), nil, nil)
	v := verify(t, m)
	var said []string
	for _, b := range v.Breaks {
		said = append(said, fmt.Sprint(b.Offset, ": ", b.Problem))
	}
	want := []string{
		"3: its hash is not that of the records before it: one of them was changed, or exchanged for another",
		"6: its writer saw 7 records before it and there are 6: records were removed or moved",
	}
	if diff := cmp.Diff(want, said); diff != "" || v.Late != 0 || v.Records != 11 {
		t.Errorf("%+v\n%s", v, diff)
	}
	if _, breaks, err := List(t.Context(), m, "shop", Filter{}); err != nil || breaks != 2 {
		t.Errorf("list says %d breaks, %v", breaks, err)
	}
}

// A writer that is killed between its write and its look leaves a record that stands for
// nothing, and is shown so.
func TestALateRecordOfAKilledWriterIsShownAsUnconfirmed(t *testing.T) {
	m := &memory{}
	killed := &Log{Prefix: "shop", Kafka: m}
	if err := killed.catchUp(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	do(t, &Log{Prefix: "shop", Kafka: m}, skip("mine"), nil, nil)
	value, _ := json.Marshal(Record{Format: format, Seq: killed.chain.n, Prev: killed.chain.head, ID: "x", Step: Began, Act: skip("late")})
	if err := m.Produce(t.Context(), kafka.Record{Value: value}); err != nil {
		t.Fatal(err)
	}
	do(t, &Log{Prefix: "shop", Kafka: m}, skip("next"), nil, nil)
	v := verify(t, m)
	acts := listed(t, m, Filter{})
	if v.Late != 1 || len(v.Breaks) != 0 || len(acts) != 3 || acts[1].Outcome != Unconfirmed || acts[2].Outcome != Done {
		t.Errorf("%+v %+v", v, acts)
	}
}

func TestARequestIsDoneOnceADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		ask := func(body string) (*Log, *Entry, *Answer, error) {
			l := &Log{Prefix: "shop", Kafka: m} // as after a restart
			act := skip("search-1")
			act.Request, act.Body = "r-1", body
			e, answer, err := l.Begin(t.Context(), act)
			return l, e, answer, err
		}
		if _, e, _, err := ask("a"); err != nil || e == nil {
			t.Fatal(err)
		}
		if _, _, _, err := ask("a"); !errors.Is(err, ErrUnderWay) {
			t.Errorf("a second one begins: %v", err)
		}
		if _, _, _, err := ask("b"); !errors.Is(err, ErrReused) {
			t.Errorf("another body begins: %v", err)
		}
		time.Sleep(UnderWay + time.Second)
		_, e, answer, err := ask("a") // the first was cut off
		if err != nil || e == nil || answer != nil {
			t.Fatal(err)
		}
		if err := e.End(t.Context(), Result{Outcome: Done, Answer: &Answer{200, json.RawMessage(`{"ok":true}`)}}); err != nil {
			t.Fatal(err)
		}
		before := len(m.records)
		l, e, answer, err := ask("a")
		if err != nil || e != nil || answer == nil || answer.Status != 200 || string(answer.Body) != `{"ok":true}` {
			t.Errorf("%+v %+v %v", e, answer, err)
		}
		act := skip("search-1")
		act.Request, act.Body = "r-1", "a"
		if found, err := l.Find(t.Context(), act); err != nil || found == nil || found.Status != 200 {
			t.Errorf("%+v, %v", found, err)
		}
		if _, _, _, err := ask("b"); !errors.Is(err, ErrReused) {
			t.Errorf("another body begins: %v", err)
		}
		if len(m.records) != before {
			t.Error("asking again has written")
		}
		time.Sleep(requestDay + time.Second)
		if _, e, answer, err := ask("b"); err != nil || e == nil || answer != nil {
			t.Errorf("a day later: %+v, %v", answer, err)
		}
	})
}

// Of many that begin one request at once, in processes of their own, one may.
func TestOfManyThatBeginOneRequestOneMay(t *testing.T) {
	m := &memory{}
	act := skip("search-1")
	act.Request, act.Body = "r-1", "a"
	var mu sync.Mutex
	var all sync.WaitGroup
	began := 0
	for range 16 {
		all.Go(func() {
			e, _, err := (&Log{Prefix: "shop", Kafka: m}).Begin(t.Context(), act)
			mu.Lock()
			defer mu.Unlock()
			if e != nil {
				began++
			} else if !errors.Is(err, ErrUnderWay) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if began != 1 {
		t.Errorf("%d have begun", began)
	}
}

// What can be chosen by is all that is ever written.
func TestAnActIsOneOfThoseThereAre(t *testing.T) {
	if _, _, err := (&Log{Prefix: "shop", Kafka: &memory{}}).Begin(t.Context(), Act{Actor: "ann@desk", Via: "cli", Name: "nope"}); err == nil || err.Error() != `audit log: "nope" is not in Acts` {
		t.Error(err)
	}
	for pattern, want := range map[string]bool{"": true, "dlq.skip": true, "dlq.*": true, "*": true, "nope": false, "dlq.": false, "nope.*": false} {
		if err := (Filter{Act: pattern}).Check(); (err == nil) != want {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}
