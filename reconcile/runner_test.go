package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// topic is the state's topic in memory.
type topic struct{ records []kafka.Record }

func (k *topic) EnsureTopic(context.Context, kafka.TopicSpec) error { return nil }

func (k *topic) Produce(_ context.Context, r kafka.Record) error {
	k.records = append(k.records, r)
	return nil
}

func (k *topic) ReadFrom(_ context.Context, _ string, _ int, from int64, fn func(kafka.Record) error) (int64, error) {
	for _, r := range k.records[from:] {
		if err := fn(r); err != nil {
			return from, err
		}
	}
	return int64(len(k.records)), nil
}

// runner compares the table of a stage; its log is written to notes.
func (s *stage) runner(k *topic, notes *strings.Builder) *Runner {
	log := slog.New(slog.NewTextHandler(notes, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	return &Runner{
		Config: DefaultConfig(), World: s.world(), Targets: []Target{{Name: "search", Store: s}},
		State: &State{Prefix: "shop", Kafka: k, Log: log},
		Tables: func(context.Context) (followed, now []cdc.TableName, err error) {
			return []cdc.TableName{table.Name}, []cdc.TableName{table.Name}, nil
		},
		Recent: func(_ context.Context, _ cdc.TableName, since Log, most int) (keys [][]byte, now Log, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, c := range s.log[max(since[0], int64(len(s.log)-most)):] {
				keys = union(keys, [][]byte{c.Key})
			}
			return keys, Log{0: int64(len(s.log))}, nil
		},
		Pace: func() (func() int, func(int, time.Duration)) {
			return func() int { return 5 }, func(int, time.Duration) {}
		},
		Metrics: NewMetrics(prometheus.NewRegistry()), Log: log,
	}
}

// runFor lets a runner run for a time.
func runFor(t *testing.T, r *Runner, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := r.Run(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestARunnerMakesAFullPassADayAndTellsWhatItFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for id := range 12 {
			s.write(id, "a")
		}
		s.all()
		lost := s.docs[string(keyOf(3))]
		delete(s.docs, string(keyOf(3)))
		k, notes := &topic{}, &strings.Builder{}
		r := s.runner(k, notes)
		r.Config.SampleEvery = 100 * time.Hour
		// passes are the full ones of a stretch of time, and the mismatches that stand at its end.
		passes := func(r *Runner, d time.Duration) (n, standing float64) {
			before := testutil.ToFloat64(r.Metrics.passes.WithLabelValues("shop.orders", "full"))
			runFor(t, r, d)
			return testutil.ToFloat64(r.Metrics.passes.WithLabelValues("shop.orders", "full")) - before, testutil.ToFloat64(r.Metrics.standing.WithLabelValues("shop.orders", "search"))
		}
		if n, standing := passes(r, 30*time.Minute); n != 1 || standing != 1 {
			t.Errorf("%v full passes at first, and %v mismatches stand", n, standing)
		}
		if !strings.Contains(notes.String(), `class=missing key="{\"id\":3}"`) {
			t.Errorf("the log says\n%s", notes)
		}
		again := s.runner(k, notes)
		again.Config.SampleEvery = r.Config.SampleEvery
		if n, standing := passes(again, 25*time.Minute); n != 0 || standing != 1 {
			t.Errorf("started again it makes %v full passes, and %v mismatches stand", n, standing)
		}
		if n, standing := passes(again, time.Hour); n != 1 || standing != 1 {
			t.Errorf("%v full passes look an hour later whether it was repaired, and %v mismatches stand", n, standing)
		}
		s.docs[string(keyOf(3))] = lost
		if n, standing := passes(again, time.Hour); n != 1 || standing != 0 {
			t.Errorf("%v full passes after the repair, and %v mismatches stand", n, standing)
		}
		if n, _ := passes(again, 22*time.Hour); n != 0 {
			t.Errorf("%v full passes before a day is over", n)
		}
		if n, _ := passes(again, 2*time.Hour); n != 1 {
			t.Errorf("%v full passes after a day", n)
		}
	})
}

// long is a table of 90 rows of which a sink lacks one of the first, and what full passes have read behind.
type long struct {
	*stage
	topic  *topic
	firsts []string
}

func newLong(t *testing.T) *long {
	l := &long{stage: newStage(t), topic: &topic{}}
	for id := range 90 {
		l.write(100+id, "a")
	}
	l.all()
	delete(l.docs, string(keyOf(103)))
	return l
}

// runner makes full passes, slowly, and no samples.
func (l *long) runner() *Runner {
	r := l.stage.runner(l.topic, &strings.Builder{})
	r.Config.SampleEvery = 24 * time.Hour
	r.World.Open = func(context.Context, cdc.TableName, string) (Source, error) { return slow{l}, nil }
	return r
}

func TestAFullPassGoesOnWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLong(t)
		r := l.runner()
		began := time.Now().Unix()
		runFor(t, r, 150*time.Second) // each chunk of five takes ten seconds
		if at := testutil.ToFloat64(r.Metrics.uncovered.WithLabelValues("shop.orders", "search")); at != float64(began) {
			t.Errorf("the table is said to be uncovered since %v; want %d", at, began)
		}
		again := l.runner()
		before := len(l.firsts)
		runFor(t, again, time.Hour)
		if l.firsts[0] != "" || l.firsts[before] <= string(keyOf(120)) || l.firsts[before] > l.firsts[before-1] {
			t.Errorf("it has read behind %q, and then began behind %q", l.firsts[:before], l.firsts[before])
		}
		if n := testutil.ToFloat64(again.Metrics.passes.WithLabelValues("shop.orders", "full")); n != 1 {
			t.Errorf("%v passes came to their end", n)
		}
		if n := testutil.ToFloat64(again.Metrics.standing.WithLabelValues("shop.orders", "search")); n != 1 || again.State.of("shop.orders").Last.Rows != 90 {
			t.Errorf("%v mismatches stand after %d rows; one was found before it was started again", n, again.State.of("shop.orders").Last.Rows)
		}
		if n := testutil.CollectAndCount(again.Metrics.uncovered); n != 0 {
			t.Errorf("%d samples say since when the table is uncovered; it is covered", n)
		}
	})
}

// A suspect is not forgotten by a restart, however long the sink let its pass wait.
func TestAPassGoesOnBehindNoRowThatIsSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLong(t)
		lags := func(d time.Duration) *Runner {
			r := l.runner()
			until, await := time.Now().Add(d), r.World.Await
			r.World.Await = func(ctx context.Context, sink string, t cdc.TableName, set string) (Reached, error) {
				time.Sleep(time.Until(until))
				return await(ctx, sink, t, set)
			}
			return r
		}
		runFor(t, lags(5*time.Minute), 5*time.Minute+time.Second) // it is looked at a first time
		again := lags(0)
		runFor(t, again, time.Hour)
		if n := testutil.ToFloat64(again.Metrics.standing.WithLabelValues("shop.orders", "search")); n != 1 {
			t.Errorf("%v mismatches stand, want 1: it has read behind %q", n, l.firsts)
		}
	})
}

// slow is a source that takes its time.
type slow struct{ *long }

func (s slow) Next(after []byte, most, bytes int) ([]cdc.Row, error) {
	time.Sleep(time.Second) // rests nine times as long
	s.firsts = append(s.firsts, string(after))
	return s.stage.Next(after, most, bytes)
}

func TestASampleFindsWhatWasLostJustNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for id := range 50 {
			s.write(id, "a")
		}
		s.all()
		k, notes := &topic{}, &strings.Builder{}
		r := s.runner(k, notes)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		time.Sleep(time.Minute) // the full pass is over
		s.mu.Lock()
		s.lost[string(keyOf(7))] = true
		s.write(7, "b")
		s.write(8, "b")
		s.all()
		s.mu.Unlock()
		time.Sleep(20 * time.Second)
		found := testutil.ToFloat64(r.Metrics.classes.WithLabelValues("shop.orders", "search", "stale"))
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if found != 1 {
			t.Errorf("%v stale rows after a sample; the log says\n%s", found, notes)
		}
	})
}

func TestWhatCannotBeComparedNowIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.write(1, "a")
		s.all()
		k, notes := &topic{}, &strings.Builder{}
		r := s.runner(k, notes)
		var tries atomic.Int32
		open := r.World.Open
		r.World.Open = func(ctx context.Context, n cdc.TableName, where string) (Source, error) {
			if tries.Add(1) < 4 {
				return nil, errors.New("no source")
			}
			return open(ctx, n, where)
		}
		runFor(t, r, 10*time.Minute)
		if n := testutil.ToFloat64(r.Metrics.passes.WithLabelValues("shop.orders", "full")); n != 1 || !strings.Contains(notes.String(), "are compared again") {
			t.Errorf("%v full passes; the log says\n%s", n, notes)
		}
	})
}

func TestARepairMendsAndIsLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for id := range 10 {
			s.write(id, "a")
		}
		s.write(9, "")
		s.all()
		delete(s.docs, string(keyOf(1)))
		s.docs[string(keyOf(2))] = s.docs[string(keyOf(3))]
		orphan := s.docs[string(keyOf(4))]
		s.docs[string(keyOf(9))] = orphan
		s.docs[string(keyOf(5))] = s.docs[string(keyOf(6))]
		s.lost[string(keyOf(5))] = true // it stays as it is
		// A delete by somebody else is remembered under a version that the first reading does not have.
		s.docs[string(keyOf(7))] = sinks.Stored{Version: cdc.Version(s.committed + 5), Deleted: true}
		var findings []*Finding
		p := &Pass{World: s.world(), Table: table.Name, Targets: []Target{{Name: "search", Store: s}}, Repair: true, Rate: 2,
			Report: func(f *Finding) bool { findings = append(findings, f); return true }}
		began := time.Now()
		r, err := p.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range findings {
			got = append(got, fmt.Sprintf("%s %s %s", f.Key, f.Class, f.Repair))
		}
		slices.Sort(got)
		want := []string{`{"id":1} missing repaired`, `{"id":2} tampered repaired`, `{"id":5} tampered remains`, `{"id":7} missing repaired`, `{"id":9} orphan repaired`}
		if !slices.Equal(got, want) || r.Equal() || r.Sinks[0].Repaired != 4 || r.Sinks[0].Remaining != 1 {
			t.Errorf("it says %q and %+v; want %q", got, r.Sinks[0], want)
		}
		if took := time.Since(began); took < 2*time.Second {
			t.Errorf("5 rows at 2 a second took %s", took)
		}
	})
}

func TestAPassReadsNoFurtherWhileASinkIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for id := range 100 {
			s.write(id, "a")
		}
		s.all()
		read := 0
		s.between = func(step string) {
			if step == "next" {
				read++
			}
		}
		w := s.world()
		await, there := w.Await, make(chan struct{})
		w.Await = func(ctx context.Context, sink string, t cdc.TableName, set string) (Reached, error) {
			<-there
			return await(ctx, sink, t, set)
		}
		p := &Pass{World: w, Table: table.Name, Targets: []Target{{Name: "search", Store: s}}, ChunkRows: func() int { return 1 }, Report: func(*Finding) bool { return false }}
		ended := make(chan error, 1)
		go func() {
			_, err := p.Run(t.Context())
			ended <- err
		}()
		synctest.Wait()
		if read > 16 { // those that wait and those that are being looked at
			t.Errorf("%d chunks are read, and the sink has not settled the first", read)
		}
		close(there)
		if err := <-ended; err != nil || read != 101 {
			t.Errorf("%d chunks are read, %v", read, err)
		}
	})
}

func TestADocumentOfARowThatTheStoreIsNotToHaveIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.write(1, "a")
		s.write(2, "b")
		s.all()
		s.hidden = map[string]bool{string(keyOf(1)): true}
		findings := 0
		p := &Pass{World: s.world(), Table: table.Name, Targets: []Target{{Name: "search", Store: s}}, Report: func(*Finding) bool { findings++; return false }}
		r, err := p.Run(t.Context())
		if err != nil || findings != 1 || r.Sinks[0].Mismatches[Orphan] != 1 || r.Sinks[0].Differ() != 1 {
			t.Errorf("%d findings, %+v, %v", findings, r.Sinks[0], err)
		}
	})
}

func TestAStoreThatFailsInTheMiddleIsLookedThroughAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for away, want := range map[int]error{scanTries - 1: nil, scanTries: errAway} {
			s := newStage(t)
			s.write(1, "a")
			s.all()
			s.docs[string(keyOf(7))] = sinks.Stored{Version: 1, Document: rowOf(7, "orphan")}
			s.away = away
			p := &Pass{World: s.world(), Table: table.Name, Targets: []Target{{Name: "search", Store: s}}, Report: func(*Finding) bool { return false }}
			r, err := p.Run(t.Context())
			if !errors.Is(err, want) || err == nil && (r.Sinks[0].Mismatches[Orphan] != 1 || r.Sinks[0].Documents != 1) {
				t.Errorf("it fails %d times: %+v, %v; want %v", away, r.Sinks[0], err, want)
			}
		}
	})
}

// What a store does not tell is not the matter of the rows: the pass ends with that.
func TestAStoreThatDoesNotTellWhatItHasEndsThePass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for looks, want := range map[int]string{0: "sink search has not told for 5m0s what it has: away", 1: "look again at rows of shop.orders in sink search: sink search has not told for 5m0s what it has: away"} {
			s := newStage(t)
			s.write(1, "a")
			s.all()
			s.docs[string(keyOf(1))] = sinks.Stored{}
			s.between = func(step string) {
				if step != "store" {
					return
				}
				if looks--; looks < 0 {
					s.docs[string(keyOf(1))] = sinks.Stored{Problem: "away", Away: true}
				}
			}
			p := &Pass{World: s.world(), Table: table.Name, Targets: []Target{{Name: "search", Store: s}}, Report: func(*Finding) bool { return false }}
			if r, err := p.Run(t.Context()); err == nil || err.Error() != want || !r.Equal() {
				t.Errorf("%+v, %v; want %s", r.Sinks[0], err, want)
			}
		}
	})
}

func TestATableThatCannotBeComparedKeepsNoOtherFromIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.write(1, "a")
		s.all()
		r := s.runner(&topic{}, &strings.Builder{})
		bad, open := cdc.TableName{DB: "shop", Table: "bad"}, r.World.Open
		r.Tables = func(context.Context) (followed, now []cdc.TableName, err error) {
			return []cdc.TableName{bad, table.Name}, []cdc.TableName{bad, table.Name}, nil
		}
		var tries atomic.Int64
		r.World.Open = func(ctx context.Context, n cdc.TableName, where string) (Source, error) {
			if n == bad {
				tries.Add(1)
				return nil, errors.New("it is held")
			}
			return open(ctx, n, where)
		}
		r.Config.SampleEvery = 24 * time.Hour
		runFor(t, r, 10*time.Minute)
		if n := testutil.ToFloat64(r.Metrics.passes.WithLabelValues("shop.orders", "full")); n != 1 || tries.Load() < 10 {
			t.Errorf("%v full passes beside a table that was tried %d times", n, tries.Load())
		}
	})
}

// Of a table that is not followed any more nothing stands, nor after a start, and of one that is
// being copied again what the last pass has found does.
func TestOfATableThatIsNotFollowedNothingStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		for id := range 12 {
			s.write(id, "a")
		}
		s.all()
		delete(s.docs, string(keyOf(3)))
		k, notes := &topic{}, &strings.Builder{}
		standing := func(r *Runner) (n int) {
			for _, g := range []prometheus.Collector{r.Metrics.standing, r.Metrics.ratio, r.Metrics.unclear, r.Metrics.coverage} {
				n += testutil.CollectAndCount(g)
			}
			return n
		}
		r := s.runner(k, notes)
		runFor(t, r, time.Hour)
		if n := standing(r); n != 4 {
			t.Fatalf("%d gauges stand after a pass", n)
		}
		r.Tables = func(context.Context) (followed, now []cdc.TableName, err error) {
			return []cdc.TableName{table.Name}, nil, nil
		}
		runFor(t, r, time.Minute)
		if n := standing(r); n != 4 {
			t.Errorf("%d gauges stand while it is copied", n)
		}
		r.Metrics.Rest()
		if n := standing(r); n != 0 {
			t.Errorf("%d gauges stand when another process compares", n)
		}
		r.Tables = func(context.Context) (followed, now []cdc.TableName, err error) { return nil, nil, nil }
		for name, one := range map[string]*Runner{"goes on": r, "starts": s.runner(k, notes)} {
			one.Tables = r.Tables
			runFor(t, one, time.Minute)
			if n := standing(one); n != 0 {
				t.Errorf("%d gauges stand of a table that is not followed, where the process %s", n, name)
			}
		}
	})
}

// A column that is gone is an error of the source in the middle of the rows.
func TestAnAlterInTheMiddleIsNamed(t *testing.T) {
	for _, altered := range []bool{true, false} {
		s := newStage(t)
		s.write(1, "a")
		s.all()
		w := s.world()
		gone := errors.New("unknown column")
		w.Await = func(context.Context, string, cdc.TableName, string) (Reached, error) {
			s.altered = altered
			return Reached{}, gone
		}
		p := &Pass{World: w, Table: table.Name, Targets: []Target{{Name: "search", Store: s}}, Report: func(*Finding) bool { return false }}
		_, err := p.Run(t.Context())
		if errors.Is(err, ErrAltered) != altered || err == nil || !strings.Contains(err.Error(), gone.Error()) {
			t.Errorf("altered %v: it ends with %v", altered, err)
		}
	}
}
