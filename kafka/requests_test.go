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
	first, _ := publisher(t, client, cfg)
	prefix := "requests"
	desk := NewSnapshotRequests(client, first, prefix, slog.New(slog.DiscardHandler))
	reader := NewSnapshotRequests(client, first, prefix, slog.New(slog.DiscardHandler))
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
	if err := first.Publish(t.Context(), Record{Topic: SnapshotTopic(prefix), Key: []byte("c"), Value: []byte("nonsense")}); err != nil {
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
	// The topic is made anew, with less in it: what it has now is read, and nothing of it is taken yet.
	if err := client.DeleteTopics(t.Context(), SnapshotTopic(prefix)); err != nil {
		t.Fatal(err)
	}
	again.made = false
	if err := again.make(t.Context()); err != nil {
		t.Fatal(err)
	}
	other, _ := publisher(t, client, cfg)
	desk = NewSnapshotRequests(client, other, prefix, slog.New(slog.DiscardHandler))
	ask("d", cdc.SnapshotRunning)
	same("d running 0 keys")
	if taken := reader.Taken(); taken != 0 {
		t.Errorf("%d requests are taken of those that were read a moment ago", taken)
	}
	same()
	if taken := reader.Taken(); taken != 1 {
		t.Errorf("%d requests are taken, not 1", taken)
	}
	// It is deleted, and nobody makes it again but the reader.
	if err := client.DeleteTopics(t.Context(), SnapshotTopic(prefix)); err != nil {
		t.Fatal(err)
	}
	same()
	same()
}
