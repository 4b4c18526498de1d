package main

import (
	"testing"
	"time"
)

func TestATallyCountsDuplicatesAndStepsBackPerKey(t *testing.T) {
	for name, tc := range map[string]struct {
		records                       [][2]int64
		duplicates, stepBacks, change int
	}{
		"in order":                        {[][2]int64{{1, 0}, {1, 1}, {2, 7}, {1, 2}}, 0, 0, 4},
		"the last one again":              {[][2]int64{{1, 0}, {1, 1}, {1, 1}}, 1, 0, 2},
		"a stretch again":                 {[][2]int64{{1, 0}, {1, 1}, {1, 2}, {1, 0}, {1, 1}, {1, 2}}, 3, 2, 3},
		"a step back that is no old one":  {[][2]int64{{1, 0}, {1, 2}, {1, 1}}, 0, 1, 3},
		"other keys do not count":         {[][2]int64{{1, 5}, {2, 3}, {3, 1}}, 0, 0, 3},
		"every record below the newest":   {[][2]int64{{1, 9}, {1, 3}, {1, 4}, {1, 9}, {1, 10}}, 1, 2, 4},
		"an insert again after an update": {[][2]int64{{1, 0}, {1, 1}, {1, 0}}, 1, 1, 2},
	} {
		got := newTally()
		for _, r := range tc.records {
			got.add(r[0], r[1])
		}
		if got.records != len(tc.records) || got.duplicates != tc.duplicates || got.stepBacks != tc.stepBacks || got.changes() != tc.change {
			t.Errorf("%s: %d records, %d duplicates, %d steps back, %d changes; want %d, %d, %d, %d", name,
				got.records, got.duplicates, got.stepBacks, got.changes(), len(tc.records), tc.duplicates, tc.stepBacks, tc.change)
		}
	}
}

func TestTheRowIsReadFromTheEnvelopesOfBoth(t *testing.T) {
	want := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	for _, value := range []string{
		`{"before":null,"after":{"id":7,"views":3,"updated_at":"2026-01-02 03:04:05.678901"},"op":"u"}`,
		`{"before":null,"after":{"id":7,"views":3,"updated_at":1767323045678901},"op":"u"}`,
	} {
		e, err := readEnvelope([]byte(value))
		if err != nil || e.id != 7 || e.views != 3 {
			t.Errorf("%s: %+v, %v", value, e, err)
		}
		if at, err := writtenAt(e.updated); err != nil || !at.Equal(want) {
			t.Errorf("%s: written at %v, %v", value, at, err)
		}
	}
	if _, err := readEnvelope([]byte(`{"after":null,"op":"d"}`)); err == nil {
		t.Error("a record without a row is no error")
	}
}
