package kafka

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"

	"lockstep/cdc"
)

// SnapshotTopic is where operators ask the capture for snapshots.
func SnapshotTopic(prefix string) string { return prefix + ".snapshots" }

// SnapshotRequests is what operators have asked the capture for: the newest request
// of every ID, until its snapshot has ended.
type SnapshotRequests struct {
	client    *Client
	publisher *Publisher // may be nil for a reader
	topic     string
	prefix    string
	log       *slog.Logger

	made  bool
	next  int64        // the offset at which Poll goes on
	taken atomic.Int64 // what next was when Poll was called last
}

// Taken is the offset before which every request was returned by a Poll that was followed by
// another one: whoever polls has dealt with it.
func (r *SnapshotRequests) Taken() int64 { return r.taken.Load() }

// SnapshotSpec is the topic of requests for snapshots.
func SnapshotSpec(prefix string) TopicSpec {
	return TopicSpec{Name: SnapshotTopic(prefix), Partitions: 1, Compacted: true}
}

// NewSnapshotRequests opens the requests of a pipeline. Publisher must be running
// for Ask and Delete, and may be nil without them.
func NewSnapshotRequests(client *Client, publisher *Publisher, prefix string, log *slog.Logger) *SnapshotRequests {
	return &SnapshotRequests{client: client, publisher: publisher, topic: SnapshotTopic(prefix), prefix: prefix, log: log}
}

// make makes the topic if it is not there.
func (r *SnapshotRequests) make(ctx context.Context) error {
	if r.made {
		return nil
	}
	err := r.client.EnsureTopic(ctx, SnapshotSpec(r.prefix))
	r.made = err == nil
	return err
}

// Poll returns the requests that are new since the call before, of each ID the
// newest; at the first call all there are. One that was deleted has an ID and
// nothing else. What cannot be read is reported and passed over.
func (r *SnapshotRequests) Poll(ctx context.Context) ([]cdc.SnapshotRequest, error) {
	r.taken.Store(r.next)
	if err := r.make(ctx); err != nil {
		return nil, err
	}
	news := map[string]cdc.SnapshotRequest{}
	next, err := r.client.ReadFrom(ctx, r.topic, 0, r.next, func(rec Record) error {
		id := string(rec.Key)
		if rec.Value == nil {
			news[id] = cdc.SnapshotRequest{ID: id}
			return nil
		}
		request, err := decodeRequest(rec)
		if err != nil {
			r.log.Warn("a snapshot request is passed over", "offset", rec.Offset, "error", err)
			return nil
		}
		news[id] = request
		return nil
	})
	if errors.Is(err, errBeyondEnd) || missing(err) { // whoever reads a request twice knows it by its ID
		r.log.Warn("requests for snapshots are read from the beginning", "reason", err)
		r.next, r.made = 0, false
		return r.Poll(ctx)
	}
	if err != nil {
		return nil, err
	}
	r.next = next
	var list []cdc.SnapshotRequest
	for _, id := range slices.Sorted(maps.Keys(news)) {
		list = append(list, news[id])
	}
	return list, nil
}

func decodeRequest(rec Record) (cdc.SnapshotRequest, error) {
	var request cdc.SnapshotRequest
	if err := json.Unmarshal(rec.Value, &request); err != nil {
		return request, err
	}
	switch request.Want {
	case cdc.SnapshotRunning, cdc.SnapshotPaused, cdc.SnapshotCancelled:
	default:
		return request, fmt.Errorf("it wants %q, not running, paused or cancelled", request.Want)
	}
	if request.Format != cdc.SnapshotRequestFormat || request.ID != string(rec.Key) {
		return request, fmt.Errorf("it has format %d and ID %q under the key %q; this program knows format %d", request.Format, request.ID, rec.Key, cdc.SnapshotRequestFormat)
	}
	return request, nil
}

// Ask writes requests and returns when they are acknowledged.
func (r *SnapshotRequests) Ask(ctx context.Context, requests ...cdc.SnapshotRequest) error {
	if err := r.make(ctx); err != nil {
		return err
	}
	for _, request := range requests {
		request.Format = cdc.SnapshotRequestFormat
		var value bytes.Buffer
		to := json.NewEncoder(&value)
		to.SetEscapeHTML(false) // keys stay as rows have them
		if err := to.Encode(request); err != nil {
			return fmt.Errorf("snapshot request %s: %w", request.ID, err)
		}
		if err := r.publisher.Publish(ctx, Record{Topic: r.topic, Key: []byte(request.ID), Value: value.Bytes()}); err != nil {
			return err
		}
	}
	return r.publisher.Flush(ctx)
}

// Delete deletes a request whose snapshot has ended.
func (r *SnapshotRequests) Delete(ctx context.Context, id string) error {
	if err := r.publisher.Publish(ctx, Record{Topic: r.topic, Key: []byte(id)}); err != nil {
		return err
	}
	return r.publisher.Flush(ctx)
}
