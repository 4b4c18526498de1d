package kafka

import (
	"slices"
	"strconv"
	"testing"
	"time"
)

func TestScanBeginsAtATimeAndTellsWhereOlderRecordsAreGone(t *testing.T) {
	t.Parallel()
	cfg, prefix := real(t)
	c := open(t, cfg)
	ctx := deadline(t, time.Minute)
	topic := prefix + ".db.t"
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: topic, Partitions: 2, Configs: map[string]string{"message.timestamp.type": "CreateTime"}}))
	p, stop := publisher(t, c, cfg)
	base := time.Now().Add(-2 * time.Hour).Truncate(time.Second)
	for i := range 20 {
		must(t, p.Publish(ctx, Record{Topic: topic, Partition: i % 2, Time: base.Add(time.Duration(i) * time.Minute), Key: text(i), Value: text(i)}))
	}
	must(t, p.Flush(ctx))
	must(t, stop())
	scan := func(since time.Time) (got, cuts []int) {
		t.Helper()
		must(t, c.Scan(ctx, []string{topic}, since, func(r Record, cut bool) error {
			n, err := strconv.Atoi(string(r.Value))
			if got = append(got, n); cut {
				cuts = append(cuts, n)
			}
			return err
		}))
		return got, cuts
	}
	for _, s := range []struct {
		since time.Time
		want  []int
	}{
		{time.Time{}, []int{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19}},
		{base.Add(15 * time.Minute), []int{16, 18, 15, 17, 19}},
		{base.Add(19 * time.Minute), []int{19}},
		{base.Add(time.Hour), nil},
	} {
		if got, cuts := scan(s.since); !slices.Equal(got, s.want) || len(cuts) > 0 {
			t.Errorf("since %s: %v, cut before %v; want %v", s.since, got, cuts, s.want)
		}
	}
	truncate(t, topic, 0, 3)
	until(t, "the records are gone", func() bool {
		starts, err := c.StartOffsets(ctx, topic)
		return err == nil && starts[0] == 3
	})
	if got, cuts := scan(time.Time{}); !slices.Equal(cuts, []int{6}) || len(got) != 17 {
		t.Errorf("after 0, 2 and 4 are gone: %v, cut before %v", got, cuts)
	}
	if _, cuts := scan(base.Add(15 * time.Minute)); len(cuts) > 0 {
		t.Errorf("cut before %v", cuts)
	}
}
