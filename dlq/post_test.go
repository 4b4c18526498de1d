package dlq

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// quiet is a partition of a change topic of which only commits are of interest.
type quiet int

func (q quiet) Name() (string, int)                              { return "shop.bank.questions", int(q) }
func (quiet) Fetch(context.Context, int) ([]kafka.Record, error) { return nil, nil }
func (quiet) Commit(context.Context, int64) error                { return nil }

// withPost runs do with the post of a partition whose letters are on tape.
func withPost(t *testing.T, tape *tape, try func(cdc.Change) sinks.Outcome, do func(ctx context.Context, p *Posts, part sinks.Partition)) *Posts {
	t.Helper()
	return withPostOf(t, 3, tape, try, do)
}

func withPostOf(t *testing.T, partition int, tape *tape, try func(cdc.Change) sinks.Outcome, do func(ctx context.Context, p *Posts, part sinks.Partition)) *Posts {
	t.Helper()
	w := &wire{tape: tape, draw: func(n int) int { return n - 1 }}
	p := &Posts{
		Letters: &Letters{Sink: "es", Topic: "shop.dlq.es", Log: w}, Log: w,
		Retries: sinks.DefaultConfig().Retries, HoldMin: time.Second, HoldMax: time.Second, Loading: make(chan struct{}, 1), Metrics: NewMetrics(prometheus.NewRegistry()),
		Try: func(_ context.Context, _ string, changes []cdc.Change) (out []sinks.Outcome) {
			for _, c := range changes {
				out = append(out, try(c))
			}
			return out
		},
	}
	if err := p.RunPartition(t.Context(), quiet(partition), func(ctx context.Context, part sinks.Partition) error {
		do(ctx, p, part)
		return nil
	}); err != nil {
		t.Error(err)
	}
	return p
}

// newestOf is the newest record of a row on tape: its version and its state.
func newestOf(t *testing.T, tape *tape, id int) string {
	t.Helper()
	l := &Letters{Sink: "es"}
	said := "nothing"
	for _, r := range tape.all(3) {
		letter, err := l.read(r)
		if err != nil {
			t.Fatal(err)
		}
		if letter.Key == fmt.Sprint(id) {
			said = fmt.Sprintf("%d %s %d", letter.Version-base, letter.State, letter.Retries)
		}
	}
	return said
}

func never(cdc.Change) sinks.Outcome {
	return sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassMapping, Reason: "no"}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A commit covers the end of the letters that it makes void, also of those that were not
// known yet when their rows were settled.
func TestACommitWaitsForTheEndOfTheLettersItMakesVoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tape := newTape()
		withPost(t, tape, never, func(ctx context.Context, p *Posts, part sinks.Partition) {
			for id := 1; id <= 4; id++ {
				must(t, p.Bury(ctx, refusal(id, base+5, "a")))
			}
			p.Settled(3, refusal(1, base+5, "").Change, sinks.Duplicate)
			p.Settled(3, refusal(2, base+4, "").Change, sinks.Applied)
			must(t, part.Commit(ctx, 1))
			expect(t, "row 1", newestOf(t, tape, 1), "5 resolved 0")
			expect(t, "row 2, of which an older change came", newestOf(t, tape, 2), "5 parked 0")
		})
		withPost(t, tape, never, func(ctx context.Context, p *Posts, part sinks.Partition) { // the process was killed
			p.Settled(3, refusal(2, base+6, "").Change, sinks.Applied)
			p.Settled(3, refusal(3, base+5, "").Change, sinks.Stale)
			expect(t, "row 2 before the commit", newestOf(t, tape, 2), "5 parked 0")
			must(t, part.Commit(ctx, 1))
			expect(t, "row 2", newestOf(t, tape, 2), "5 superseded 0")
			expect(t, "row 3", newestOf(t, tape, 3), "5 superseded 0")
			p.Settled(3, &cdc.Change{Table: questions, Op: cdc.OpBarrier, Version: base + 5}, sinks.Applied)
			must(t, part.Commit(ctx, 2))
			expect(t, "row 4 behind a barrier", newestOf(t, tape, 4), "5 superseded 0")
		})
	})
}

func TestTheLetterOfANewerChangeIsNotHiddenByAnOlderOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tape := newTape()
		withPost(t, tape, never, func(ctx context.Context, p *Posts, _ sinks.Partition) {
			must(t, p.Bury(ctx, refusal(1, base+6, "a")))
			older := p.refused(refusal(1, base+5, "a"))
			older.place.Partition = 3
			must(t, p.Bury(ctx, refusal(1, base+5, "a")))
			expect(t, "records", len(tape.all(3)), 1)
			must(t, p.Skip(ctx, older, "an operator, who has an old list"))
			time.Sleep(time.Minute)
			expect(t, "after an older letter was closed", newestOf(t, tape, 1), "6 parked 0")
			must(t, p.Letters.Log.Produce(ctx, p.open(refusal(1, base+4, "a").Record, p.refused(refusal(1, base+4, "a")))))
			time.Sleep(time.Minute)
			expect(t, "after an older one was written", newestOf(t, tape, 1), "6 parked 0")
		})
		expect(t, "records", len(tape.all(3)), 5)
	})
}

// A letter that may pass is tried after 1, 2, 4, 8 and 16 seconds, more or less a quarter,
// whoever is killed meanwhile; then it waits.
func TestALetterTriesItselfFiveTimesInAllWhoeverIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tape := newTape()
		var at []time.Time
		later := func(cdc.Change) sinks.Outcome {
			at = append(at, time.Now())
			return sinks.Outcome{Verdict: sinks.Transient, Class: sinks.ClassRefused, Reason: "not now"}
		}
		began := time.Now()
		withPost(t, tape, later, func(ctx context.Context, p *Posts, _ sinks.Partition) {
			r := refusal(1, base+5, "a")
			r.Transient, r.Failed = true, time.Now()
			must(t, p.Bury(ctx, r))
			expect(t, "at first", newestOf(t, tape, 1), "5 retrying 0")
			time.Sleep(4 * time.Second)
			expect(t, "after 1 and 2 seconds", newestOf(t, tape, 1), "5 retrying 2")
		})
		withPost(t, tape, later, func(ctx context.Context, p *Posts, _ sinks.Partition) {
			time.Sleep(15 * time.Second)
			expect(t, "after 4 and 8 more", newestOf(t, tape, 1), "5 retrying 4")
			expect(t, "retrying", p.Retrying(), 1)
		})
		withPost(t, tape, later, func(ctx context.Context, p *Posts, part sinks.Partition) {
			time.Sleep(10 * time.Minute)
			expect(t, "in the end", newestOf(t, tape, 1), "5 exhausted 5")
			p.Settled(3, refusal(1, base+6, "").Change, sinks.Applied)
			must(t, part.Commit(ctx, 1))
			expect(t, "when the row has changed", newestOf(t, tape, 1), "5 superseded 5")
		})
		if len(at) != 5 {
			t.Fatalf("%d attempts, want 5", len(at))
		}
		last, exact := began, 0
		for i, when := range at {
			wait, want := when.Sub(last), sinks.DefaultConfig().Retries[i]
			if wait < want*3/4 || wait > want*5/4+time.Second {
				t.Errorf("attempt %d comes after %s, want about %s", i+1, wait, want)
			}
			if wait == want {
				exact++
			}
			last = when
		}
		if exact > 0 {
			t.Errorf("%d waits are without jitter", exact)
		}
	})
}

// While the store is unavailable no attempt is counted, and one that is taken ends the
// letter.
func TestAnUnavailableStoreCostsALetterNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tape := newTape()
		var up atomic.Bool
		withPost(t, tape, func(cdc.Change) sinks.Outcome {
			if !up.Load() {
				return sinks.Outcome{Reason: "away"}
			}
			return sinks.Outcome{Verdict: sinks.Applied}
		}, func(ctx context.Context, p *Posts, _ sinks.Partition) {
			r := refusal(1, base+5, "a")
			r.Transient, r.Failed = true, time.Now()
			must(t, p.Bury(ctx, r))
			time.Sleep(time.Hour)
			expect(t, "after an hour", newestOf(t, tape, 1), "5 retrying 0")
			up.Store(true)
			time.Sleep(time.Minute)
			expect(t, "when it is back", newestOf(t, tape, 1), "5 resolved 0")
		})
	})
}

// sweeper is a store that knows when it was swept.
type sweeper struct {
	sinks.Sink
	at time.Time
}

func (s *sweeper) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) {
	s.at = time.Now()
	return 0, nil
}

// An attempt that began before a barrier may bring a row back that the sweep has removed:
// so the sweep comes after it.
func TestASweepWaitsForTheAttemptsThatABarrierMakesVoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var began, ended atomic.Int64 // nanoseconds
		withPostOf(t, 0, newTape(), func(cdc.Change) sinks.Outcome {
			began.Store(time.Now().UnixNano())
			time.Sleep(5 * time.Second)
			ended.Store(time.Now().UnixNano())
			return sinks.Outcome{Verdict: sinks.Applied}
		}, func(ctx context.Context, p *Posts, _ sinks.Partition) {
			r := refusal(1, base+5, "a")
			r.Record.Partition, r.Transient, r.Failed = 0, true, time.Now()
			must(t, p.Bury(ctx, r))
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if began.Load() == 0 || ended.Load() != 0 {
				t.Fatal("no attempt is under way")
			}
			p.Settled(0, &cdc.Change{Table: questions, Op: cdc.OpBarrier, Version: base + 6}, sinks.Applied)
			var s sweeper
			_, err := p.Guard(&s).Sweep(ctx, questions, base+6)
			must(t, err)
			synctest.Wait()
			if at := s.at.UnixNano(); ended.Load() == 0 || at < ended.Load() {
				t.Errorf("swept at %d, and the attempt ended at %d", at, ended.Load())
			}
		})
	})
}

// The post of a topic with a letter of another format does nothing.
func TestAPostRefusesALetterOfAnotherFormat(t *testing.T) {
	tape := newTape()
	tape.append(kafka.Record{Topic: "shop.dlq.es", Partition: 3, Key: []byte("k"), Value: []byte("?"), Headers: []cdc.Header{{Key: HeaderFormat, Value: []byte("3")}}})
	w := &wire{tape: tape, draw: func(int) int { return 0 }}
	p := &Posts{Letters: &Letters{Sink: "es", Topic: "shop.dlq.es", Log: w}, Log: w, Loading: make(chan struct{}, 1), Metrics: NewMetrics(prometheus.NewRegistry())}
	err := p.RunPartition(t.Context(), quiet(3), func(ctx context.Context, part sinks.Partition) error {
		<-ctx.Done()
		return part.Commit(context.WithoutCancel(ctx), 1)
	})
	if !errors.Is(err, ErrFormat) {
		t.Fatalf("%v; want it to stop", err)
	}
	expect(t, "records", len(tape.all(3)), 1)
}

// Of each table the letter that waits longest and the oldest change are known, also when the
// oldest letters are closed.
func TestTheOldestLetterOfATableIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		withPost(t, newTape(), never, func(ctx context.Context, p *Posts, part sinks.Partition) {
			second := failed.Truncate(time.Second)
			is := func(what string, want map[string]Open) {
				t.Helper()
				must(t, part.Commit(ctx, 1)) // every letter is known
				got, all := p.Open()
				expect(t, what, got, want)
				expect(t, what+": all", all, true)
			}
			is("no letters", map[string]Open{})
			for id, age := range []time.Duration{3, 9, 5} {
				r := refusal(id, base+5, "a")
				r.Change.CommitMicros = failed.Add(-age * time.Minute).UnixMicro()
				r.Failed = failed.Add(time.Duration(id) * time.Hour)
				must(t, p.Bury(ctx, r))
			}
			is("three letters", map[string]Open{"bank.questions": {Letters: 3, Failed: second, Committed: second.Add(-9 * time.Minute)}})
			copied := refusal(3, base+5, "a")
			copied.Change.CommitMicros, copied.Failed = 0, failed.Add(9*time.Hour)
			must(t, p.Bury(ctx, copied))
			other := undecodable(7, nil)
			other.Record.Partition = 3
			must(t, p.Bury(ctx, other))
			is("five letters", map[string]Open{"bank.questions": {Letters: 5, Failed: second, Committed: second.Add(-9 * time.Minute), Blind: 2}})
			for _, id := range []int{0, 1, 3} {
				p.Settled(3, refusal(id, base+6, "").Change, sinks.Applied)
			}
			is("without the oldest", map[string]Open{"bank.questions": {Letters: 2, Failed: second, Committed: second.Add(-5 * time.Minute), Blind: 1}})
		})
	})
}

// A row that is refused with every change is no fresher for it: its letter says since when the
// store lacks the row, until the store has it.
func TestALetterThatReplacesAnotherSaysSinceWhenTheStoreLacksTheRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tape := newTape()
		second := failed.Truncate(time.Second)
		is := func(ctx context.Context, p *Posts, part sinks.Partition, what string, want Open) {
			t.Helper()
			must(t, part.Commit(ctx, 1)) // every letter is known, and those that are void are closed
			got, _ := p.Open()
			expect(t, what, got, map[string]Open{"bank.questions": want})
		}
		// refused is the v-th change of row 1, refused v minutes after failed and committed
		// some minutes before that; 0 is a row of a copy.
		refused := func(v cdc.Version, committed int) sinks.Refusal {
			r := refusal(1, base+v, "a")
			r.Failed = failed.Add(time.Duration(v) * time.Minute)
			if r.Change.CommitMicros = r.Failed.Add(-time.Duration(committed) * time.Minute).UnixMicro(); committed == 0 {
				r.Change.Op, r.Change.CommitMicros = cdc.OpRead, 0
			}
			r.Record.Value, r.Record.Headers = r.Change.AppendValue(nil, "shop"), r.Change.Headers()
			return r
		}
		since := Open{Letters: 1, Failed: second.Add(time.Minute), Committed: second.Add(-8 * time.Minute)}
		withPost(t, tape, never, func(ctx context.Context, p *Posts, part sinks.Partition) {
			must(t, p.Bury(ctx, refused(1, 9)))
			is(ctx, p, part, "refused", since)
			must(t, p.Bury(ctx, refused(2, 1)))
			is(ctx, p, part, "its next change is, too", since)
			must(t, p.Bury(ctx, refused(3, 0)))
			is(ctx, p, part, "so is the row when it is read again", since)
			r := refused(4, 1)
			r.Transient = true
			must(t, p.Bury(ctx, r))
			time.Sleep(time.Hour)
			expect(t, "tried again", newestOf(t, tape, 1), "4 parked 1")
			is(ctx, p, part, "after another attempt", since)
		})
		withPost(t, tape, never, func(ctx context.Context, p *Posts, part sinks.Partition) {
			is(ctx, p, part, "after a start", since)
			said, err := replayed(t, p.Letters, &store{next: map[string]sinks.Outcome{`{"id":1}`: never(cdc.Change{})}}, ReplayOptions{})
			must(t, err)
			expect(t, "said", said, map[string]string{"1": "parked"})
			time.Sleep(time.Minute)
			is(ctx, p, part, "after a replay", since)
			p.Settled(3, refused(5, 1).Change, sinks.Applied)
			must(t, p.Bury(ctx, refused(6, 1))) // the letter is not closed yet
			is(ctx, p, part, "the store has had the row", Open{Letters: 1, Failed: second.Add(6 * time.Minute), Committed: second.Add(5 * time.Minute)})
			p.Settled(3, refused(6, 1).Change, sinks.Applied)
			is(ctx, p, part, "closed", Open{})
			must(t, p.Bury(ctx, refused(7, 0)))
			must(t, p.Bury(ctx, refused(8, 1)))
			is(ctx, p, part, "a row of a copy, and then its change", Open{Letters: 1, Failed: second.Add(7 * time.Minute), Blind: 1})
		})
		withPost(t, tape, never, func(ctx context.Context, p *Posts, part sinks.Partition) {
			is(ctx, p, part, "that nobody knows is known after a start", Open{Letters: 1, Failed: second.Add(7 * time.Minute), Blind: 1})
		})
	})
}

// Whoever is told to give a partition back while its letters are still being read, which
// others may hold up for long, waits for nothing: neither with a commit nor with a letter.
func TestAPartitionWhoseLettersAreStillReadIsGivenBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{tape: newTape(), draw: func(int) int { return 0 }}
		p := &Posts{Letters: &Letters{Sink: "es", Topic: "shop.dlq.es", Log: w}, Log: w, Loading: make(chan struct{}, 1), Metrics: NewMetrics(prometheus.NewRegistry())}
		p.Loading <- struct{}{} // somebody else reads
		ctx, revoke := context.WithCancel(t.Context())
		err := p.RunPartition(ctx, quiet(3), func(ctx context.Context, part sinks.Partition) error {
			work := context.WithoutCancel(ctx) // what is under way may finish
			began, ended := time.Now(), make(chan error, 2)
			go func() { ended <- p.Bury(work, refusal(1, base+5, "a")) }()
			go func() { ended <- part.Commit(work, 1) }()
			time.Sleep(time.Minute)
			revoke()
			for range 2 {
				if err := <-ended; !errors.Is(err, errLoading) {
					t.Errorf("%v, want that the letters are not known", err)
				}
			}
			expect(t, "the wait", time.Since(began), time.Minute)
			return nil
		})
		must(t, err)
	})
}

func TestLettersThatAreNotAllKnownAreNotCounted(t *testing.T) {
	if n := (&Posts{}).OpenIn("p.shop.items", 0); n != -1 {
		t.Errorf("a partition without a post has %d letters", n)
	}
	p := newPost(&Posts{}, 0)
	if n := p.openIn("p.shop.items"); n != -1 {
		t.Errorf("before they are read there are %d letters", n)
	}
	p.whole = true
	for i, topic := range []string{"p.shop.items", "p.shop.items", "p.shop.others"} {
		p.index.put(identity{byte(i)}, &Letter{Table: "shop.items", Version: cdc.Version(10 + i), Source: Place{Topic: topic}})
	}
	if n, others := p.openIn("p.shop.items"), p.openIn("p.shop.others"); n != 2 || others != 1 {
		t.Errorf("%d and %d letters are open; want 2 and 1", n, others)
	}
	p.closing[identity{0}] = news{version: 9} // older than the letter
	p.closing[identity{1}], p.ending = news{version: 11}, map[identity]news{{1}: {version: 11}, {2}: {version: 40}}
	if n, others := p.openIn("p.shop.items"), p.openIn("p.shop.others"); n != 1 || others != 0 {
		t.Errorf("%d and %d letters are open while two are closed; want 1 and 0", n, others)
	}
	p.astray = []identity{{0}}
	if n := p.openIn("p.shop.items"); n != -1 {
		t.Errorf("while one is on its way to another partition there are %d letters", n)
	}
}
