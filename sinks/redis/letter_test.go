package redis

import (
	"context"
	"testing"
	"time"

	"lockstep/cdc"
	"lockstep/dlq"
	"lockstep/kafka"
	"lockstep/sinks"
)

// letterLog is a topic of letters.
type letterLog []kafka.Record

func (l *letterLog) Produce(_ context.Context, r kafka.Record) error {
	r.Offset = int64(len(*l))
	*l = append(*l, r)
	return nil
}

func (l *letterLog) ProduceAll(ctx context.Context, records ...kafka.Record) error {
	for _, r := range records {
		if err := l.Produce(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (l *letterLog) ReadAll(_ context.Context, _ string, f func(kafka.Record) error) error {
	for _, r := range *l {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// A move becomes a letter of which nothing came to the store but that the row has left its
// place, and the row goes on. Whatever became of it, a replay brings nothing back to the
// place that the letter names.
func TestAReplayOfAMoveLeavesNothingWhereTheRowIsNotAnyMore(t *testing.T) {
	addr := server(t)
	for mode, table := range moving {
		t.Run(mode, func(t *testing.T) {
			a, b, c := image(1, "a", 1), image(1, "b", 2), image(1, "c", 3)
			first, move := at(1, base+1, nil, a), at(1, base+2, a, b)
			shaped := func(f fixture, refuse *bool) sinks.Shaped {
				return sinks.Shaped{Sink: f.Sink, Shape: func(_ context.Context, c *cdc.Change) *sinks.Outcome {
					if *refuse && c.Version == move.Version && c.Op != cdc.OpDelete {
						c.Leaves = true
						return &sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassShape, Reason: "no"}
					}
					return nil
				}}
			}
			for name, test := range map[string]struct {
				then     cdc.Change // what happens to the row behind the letter
				mended   bool       // the letter is not refused any more
				age      time.Duration
				forgets  bool // the store does, meanwhile
				want     dlq.State
				contents map[int]cdc.Change
			}{
				"it stays there":              {mended: true, want: dlq.Resolved, contents: map[int]cdc.Change{1: move}},
				"it moves on":                 {then: at(1, base+3, b, c), mended: true, want: dlq.Superseded, contents: map[int]cdc.Change{1: at(1, base+3, b, c)}},
				"it moves back":               {then: at(1, base+3, b, a), mended: true, want: dlq.Superseded, contents: map[int]cdc.Change{1: at(1, base+3, b, a)}},
				"it gets NULL":                {then: at(1, base+3, b, image(1, null, 3)), mended: true, want: dlq.Superseded},
				"it is deleted":               {then: at(1, base+3, b, nil), want: dlq.Superseded},
				"it is deleted and forgotten": {then: at(1, base+3, b, nil), age: 400 * time.Hour, forgets: true, want: dlq.Superseded},
				"it moves on, and that is forgotten": {then: at(1, base+3, b, c), mended: true, age: 400 * time.Hour, forgets: true, want: dlq.Parked,
					contents: map[int]cdc.Change{1: at(1, base+3, b, c)}},
			} {
				t.Run(name, func(t *testing.T) {
					f := open(t, addr, table)
					f.plain.FlushDB(t.Context())
					refuse := true
					sink := shaped(f, &refuse)
					expect(t, "the row", f.verdicts(t, first), "applied")
					expect(t, "its move", sink.Apply(t.Context(), []cdc.Change{move})[0].Class, sinks.ClassShape)
					failed := time.Now().Add(-test.age)
					letters := dlq.Letters{Sink: "cache", Topic: "p.dlq.cache", Log: &letterLog{}}
					record := kafka.Record{Topic: "p.bank.questions", Key: move.Key, Value: move.AppendValue(nil, "p"), Headers: move.Headers()}
					if err := letters.Bury(t.Context(), sinks.Refusal{Record: record, Change: &move, Class: sinks.ClassShape, Reason: "no", Failed: failed}); err != nil {
						t.Fatal(err)
					}
					if test.then.Version != 0 {
						expect(t, "behind it", f.verdicts(t, test.then), "applied")
					}
					if test.forgets {
						f.forget(t)
					}
					refuse = !test.mended
					list, err := letters.List(t.Context(), dlq.Filter{})
					if err != nil || len(list) != 1 {
						t.Fatalf("letters %v, %v", list, err)
					}
					var got dlq.Result
					err = letters.Replay(t.Context(), list, sink, dlq.ReplayOptions{
						Moves: f.MovesRow, Remembers: f.cfg.TombstoneTTL,
						Gone: func(_ context.Context, _ cdc.TableName, keys [][]byte) (map[string]bool, error) {
							return map[string]bool{string(move.Key): test.then.Op == cdc.OpDelete}, nil
						},
						Progress: func(_ dlq.Letter, r dlq.Result) { got = r },
					})
					if err != nil || got.State != test.want {
						t.Errorf("the letter is %+v, %v; want %s", got, err, test.want)
					}
					if test.contents == nil {
						test.contents = map[int]cdc.Change{}
					}
					expect(t, "rows", f.contents(t, mode), expected(mode, test.contents))
				})
			}
		})
	}
}

// forget takes out what is kept of removed rows, as if its time had come.
func (f fixture) forget(t *testing.T) {
	t.Helper()
	for _, key := range keys(t, f) {
		if f.plain.PTTL(t.Context(), key).Val() > 0 {
			f.plain.Del(t.Context(), key)
		}
	}
}
