package mysql

import (
	"fmt"
	"testing"

	"lockstep/cdc"
)

// Of copies that read a table at one clock each outranks the ones before it, but those of
// one replay of dead letters share a turn, however many there are; and what is kept of
// them does not grow while the clock stands still.
func TestManyRequestsOfOneReplayTakeOneTurn(t *testing.T) {
	at, err := cdc.Position{Epoch: 1, Seq: 1000}.Version()
	if err != nil {
		t.Fatal(err)
	}
	s := &Source{pos: cdc.Position{Epoch: 1, Seq: 1000}}
	s.snaps.requests = map[string]cdc.SnapshotRequest{}
	ended := func(id string) (turn uint8) {
		turn = s.turn(id, "d.t")
		s.pos.Snapshots = append(s.pos.Snapshots, cdc.Snapshot{ID: id, Table: "d.t", State: cdc.SnapshotDone, Turn: turn, Ended: at})
		s.trimSnapshots()
		return turn
	}
	for _, step := range []struct {
		id   string
		want uint8
	}{
		{"d.t-a", 0}, {"replay-j.1.1", 1}, {"replay-j.1.2", 1}, {"d.t-b", 2}, {"replay-j.1.3", 3}, {"replay-j.1.4", 3},
		{"replay-j.2.1", 4}, {"replay-k.1.1", 5}, {"replay-k.1.2", 5}, {"list.1", 6}, {"list.2", 7},
	} {
		if got := ended(step.id); got != step.want {
			t.Errorf("%s has turn %d, want %d", step.id, got, step.want)
		}
	}
	for i := range 1000 {
		if got := ended(fmt.Sprintf("replay-l.1.%d", i)); got != 8 {
			t.Fatalf("request %d of a replay has turn %d", i, got)
		}
	}
	others := 0
	for _, sn := range s.pos.Snapshots {
		if !ofReplay(sn.ID) {
			others++
		}
	}
	if n := len(s.pos.Snapshots); n > 2*keptSnapshots || others != 4 {
		t.Errorf("%d snapshots are kept, %d of them of no replay", n, others)
	}
	if got := s.turn("replay-m.1.1", "d.t"); got != 9 {
		t.Errorf("the next one has turn %d: the turns before it are forgotten", got)
	}
	s.pos.Seq++
	if got := s.turn("replay-m.1.1", "d.t"); got != 0 {
		t.Errorf("once the clock has moved the next one has turn %d", got)
	}
}
