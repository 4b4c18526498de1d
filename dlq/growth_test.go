package dlq

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// mortal is a wire that breaks at the n-th record that is written.
type mortal struct {
	wire
	left int
}

func (m *mortal) ProduceAll(ctx context.Context, records ...kafka.Record) error {
	for _, r := range records {
		if m.left == 0 {
			m.kill()
		}
		m.left--
		if err := m.wire.ProduceAll(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (m *mortal) Produce(ctx context.Context, r kafka.Record) error { return m.ProduceAll(ctx, r) }

// growth is the first growth of the table of questions.
var growth = &cdc.Change{Table: questions, Op: cdc.OpGrowth, Version: base + 9, Growth: &cdc.Growth{Partitions: many}}

// standing says of each row where its letters are open, and how often each was tried.
func standing(t *testing.T, tape *tape) map[string][]string {
	t.Helper()
	open := map[home]Letter{}
	l := &Letters{Sink: "es"}
	for id := range many {
		for _, r := range tape.all(id) {
			letter, err := l.read(r)
			must(t, err)
			if at := (home{letter.identity(), id}); letter.State.Open() {
				open[at] = letter
			} else {
				delete(open, at)
			}
		}
	}
	out := map[string][]string{}
	for at, letter := range open {
		out[letter.Key] = append(out[letter.Key], fmt.Sprintf("%s %d in %d", letter.State, letter.Retries, at.partition))
	}
	return out
}

// Wherever a process is killed while letters go where the changes of their rows come: each
// is open somewhere, and in the list once; in the end each is open where it belongs, as it
// was, and the offset of the growth is committed not before that.
func TestALetterIsOpenSomewhereAtAllTimesWhileItIsMoved(t *testing.T) {
	const rows = 6
	for kill := 0; ; kill++ {
		ended := false
		synctest.Test(t, func(t *testing.T) {
			tape := newTape()
			before := map[string]Letter{}
			l := &Letters{Sink: "es", Topic: "shop.dlq.es", Log: &wire{tape: tape, draw: func(int) int { return 0 }}}
			for id := range rows {
				r := refusal(id, base+5, "a")
				r.Record.Partition = 3
				letter := l.refused(r)
				letter.Retries, letter.State = id, Exhausted
				must(t, l.Log.Produce(t.Context(), l.open(r.Record, letter)))
			}
			list := func() map[string]Letter {
				letters, err := l.List(t.Context(), Filter{})
				must(t, err)
				expect(t, "letters in the list", len(letters), rows)
				out := map[string]Letter{}
				for _, letter := range letters {
					out[letter.Key] = letter
				}
				return out
			}
			before = list()
			life := func(left int) (committed bool) {
				w := &mortal{wire{tape: tape, draw: func(n int) int { return n - 1 }}, left}
				p := &Posts{
					Letters: &Letters{Sink: "es", Topic: "shop.dlq.es", Log: w}, Log: w,
					Loading: make(chan struct{}, 1), Metrics: NewMetrics(prometheus.NewRegistry()),
				}
				err := p.RunPartition(t.Context(), quiet(3), func(ctx context.Context, part sinks.Partition) error {
					p.Settled(3, growth, sinks.Applied)
					ctx, stop := context.WithTimeout(ctx, time.Minute)
					defer stop()
					committed = part.Commit(ctx, 1) == nil
					return nil
				})
				if err != nil && !errors.Is(err, errCut) {
					t.Error(err)
				}
				return committed
			}
			at := func(committed bool) {
				for id := range rows {
					row := fmt.Sprint(id)
					key := refusal(id, base+5, "a").Record.Key
					want := fmt.Sprintf("exhausted %d in %d", id, kafka.PartitionFor(key, many))
					switch open := standing(t, tape)[row]; {
					case len(open) == 0:
						t.Errorf("killed at record %d: the letter of row %s is open nowhere", kill, row)
					case committed && (len(open) != 1 || open[0] != want):
						t.Errorf("killed at record %d: the letter of row %s is %v, want %s", kill, row, open, want)
					}
				}
			}
			ended = life(kill)
			at(ended)
			list()
			at(life(-1))
			after := list()
			for row, letter := range after {
				was := before[row]
				was.place, was.App = letter.place, letter.App
				if fmt.Sprintf("%+v", was) != fmt.Sprintf("%+v", letter) {
					t.Errorf("row %s: the letter is\n%+v and was\n%+v", row, letter, was)
				}
			}
		})
		if ended {
			if kill < rows {
				t.Fatalf("it ended with %d records, which is less than one for each letter", kill)
			}
			return
		}
	}
}

// An operator who has an old list skips a letter that is somewhere else now, or is being
// moved; and one whose letter is open in two partitions skips it in both.
func TestAnOperatorsActFollowsALetterThatIsMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tape := newTape()
		withPost(t, tape, never, func(ctx context.Context, p *Posts, part sinks.Partition) {
			for id := range 6 {
				must(t, p.Bury(ctx, refusal(id, base+5, "a")))
			}
			old, err := p.List(ctx, Filter{})
			must(t, err)
			twice := old[5]
			other := p.open(refusal(5, base+5, "a").Record, p.refused(refusal(5, base+5, "a")))
			other.Partition = 4
			must(t, p.Letters.Log.Produce(ctx, other))
			now, err := p.List(ctx, Filter{Key: twice.Key})
			must(t, err)
			expect(t, "letters of a row in two partitions", len(now), 1)
			must(t, p.Skip(ctx, now[0], "known"))
			expect(t, "a letter that was skipped in both", len(standing(t, tape)[twice.Key]), 0)

			p.Settled(3, growth, sinks.Applied)
			must(t, part.Commit(ctx, 1))
			expect(t, "letters that stand", len(standing(t, tape)), 5)
			for _, letter := range old[:4] {
				must(t, p.Skip(ctx, letter, "known"))
			}
			time.Sleep(time.Minute)
			if open := standing(t, tape); len(open) != 1 {
				t.Errorf("after all but one were skipped these are open: %v", open)
			}
		})
		withPost(t, tape, never, func(ctx context.Context, p *Posts, part sinks.Partition) { // another process
			must(t, part.Commit(ctx, 2))
			again := p.open(refusal(0, base+5, "a").Record, p.refused(refusal(0, base+5, "a")))
			must(t, p.Letters.Log.Produce(ctx, again)) // of a replay that began before the letters were moved
			time.Sleep(time.Minute)
			expect(t, "a letter that is refused again where it was", standing(t, tape)["0"], []string{"parked 0 in 0"})
		})
	})
}

// What the stream settles while letters that were moved here are not in the index yet closes
// them as well.
func TestALetterThatHasJustComeIsClosedByTheNextChangeOfItsRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tape := newTape()
		withPost(t, tape, never, func(ctx context.Context, p *Posts, part sinks.Partition) {
			must(t, part.Commit(ctx, 0)) // all letters are known
			r := refusal(1, base+5, "a")
			r.Record.Partition = 3
			letter := p.open(r.Record, p.refused(r))
			tape.append(letter) // and nobody has read it yet
			p.Settled(3, growth, sinks.Applied)
			p.Settled(3, refusal(1, base+6, "").Change, sinks.Applied)
			must(t, part.Commit(ctx, 1))
			expect(t, "row 1", newestOf(t, tape, 1), "5 superseded 0")
		})
	})
}
