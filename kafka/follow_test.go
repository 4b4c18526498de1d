package kafka

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"
)

// numbers spells the values of records.
func numbers(t *testing.T, records ...Record) (ns []int) {
	t.Helper()
	for _, r := range records {
		n, err := strconv.Atoi(string(r.Value))
		must(t, err)
		ns = append(ns, n)
	}
	return ns
}

func TestFollowGivesWhatIsThereThenWhatComes(t *testing.T) {
	t.Parallel()
	cfg, prefix := real(t)
	c := open(t, cfg)
	ctx := deadline(t, time.Minute)
	topic := prefix + ".letters"
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: topic, Partitions: 2, Compacted: true}))
	p, stop := publisher(t, c, cfg)
	put := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			must(t, p.Publish(ctx, Record{Topic: topic, Partition: 1, Key: text(i), Value: text(i)}))
		}
		must(t, p.Flush(ctx))
	}
	over := errors.New("seen enough")
	var empty []bool
	if err := c.Follow(ctx, topic, 0, 1<<20, func(records []Record, whole bool) error {
		empty = append(empty, whole && len(records) == 0)
		return over
	}); !errors.Is(err, over) || !slices.Equal(empty, []bool{true}) {
		t.Fatalf("an empty partition: %v, %v", err, empty)
	}

	put(0, 5)
	var got []int
	wholeAt := -1
	if err := c.Follow(ctx, topic, 1, 1<<20, func(records []Record, whole bool) error {
		got = append(got, numbers(t, records...)...)
		if whole && wholeAt < 0 {
			wholeAt = len(got)
			put(5, 8)
		}
		if len(got) >= 8 {
			return over
		}
		return nil
	}); !errors.Is(err, over) {
		t.Fatal(err)
	}
	if want := []int{0, 1, 2, 3, 4, 5, 6, 7}; !slices.Equal(got, want) || wholeAt != 5 {
		t.Errorf("followed %v, whole after %d; want %v, 5", got, wholeAt, want)
	}

	got = nil
	must(t, c.ReadAt(ctx, topic, 1, []int64{1, 2, 6}, func(r Record) error {
		got = append(got, numbers(t, r)...)
		return nil
	}))
	if want := []int{1, 2, 6}; !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}

	ending, end := context.WithCancel(ctx)
	if err := c.Follow(ending, topic, 1, 1<<20, func([]Record, bool) error { end(); return nil }); err != nil {
		t.Errorf("the end of ctx: %v", err)
	}
	must(t, stop())
}
