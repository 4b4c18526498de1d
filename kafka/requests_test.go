package kafka

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lockstep/cdc"
)

// A request is seen once, its newest word counts, and what was deleted is said.
func TestSnapshotRequestsAreReadOnceAndTheNewestCounts(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t)
	client := open(t, cfg)
	publisher, _ := publisher(t, client, cfg)
	prefix := "requests"
	desk := NewSnapshotRequests(client, publisher, prefix, slog.New(slog.DiscardHandler))
	reader := NewSnapshotRequests(client, publisher, prefix, slog.New(slog.DiscardHandler))
	poll := func() (got []string) {
		t.Helper()
		list, err := reader.Poll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			got = append(got, fmt.Sprintf("%s %s %d keys", r.ID, r.Want, len(r.Keys)))
		}
		return got
	}
	same := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, poll()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	ask := func(id string, want cdc.SnapshotState, keys ...json.RawMessage) {
		t.Helper()
		if err := desk.Ask(t.Context(), cdc.SnapshotRequest{ID: id, Table: "d.t", Want: want, Keys: keys, AtMicros: time.Now().UnixMicro()}); err != nil {
			t.Fatal(err)
		}
	}
	same()
	ask("b", cdc.SnapshotRunning)
	ask("a", cdc.SnapshotRunning, json.RawMessage(`{"id":1}`), json.RawMessage(`{"id":2}`))
	ask("b", cdc.SnapshotPaused)
	same("a running 2 keys", "b paused 0 keys")
	same()
	if err := publisher.Publish(t.Context(), Record{Topic: SnapshotTopic(prefix), Key: []byte("c"), Value: []byte("nonsense")}); err != nil {
		t.Fatal(err)
	}
	ask("b", cdc.SnapshotCancelled)
	if err := reader.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	same("a  0 keys", "b cancelled 0 keys")
	again := NewSnapshotRequests(client, nil, prefix, slog.New(slog.DiscardHandler))
	if list, err := again.Poll(t.Context()); err != nil || len(list) != 2 || list[1].Want != cdc.SnapshotCancelled {
		t.Errorf("read from the start: %+v, %v", list, err)
	}
}
