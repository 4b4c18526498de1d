package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"lockstep/kafka"
)

// StateLog is the part of Kafka that a State needs.
type StateLog interface {
	EnsureTopic(ctx context.Context, spec kafka.TopicSpec) error
	Produce(ctx context.Context, r kafka.Record) error
	ReadFrom(ctx context.Context, topic string, partition int, from int64, fn func(kafka.Record) error) (int64, error)
}

// Topic is where full passes say how far they are.
func Topic(prefix string) string { return prefix + ".reconcile" }

// Spec is that topic.
func Spec(prefix string) kafka.TopicSpec {
	return kafka.TopicSpec{Name: Topic(prefix), Partitions: 1, Compacted: true}
}

// stateFormat is the format number of a TableState.
const stateFormat = 1

// TableState is how far the full pass over a table is, and what the last one has found.
type TableState struct {
	Format int    `json:"format"` // stateFormat
	Table  string `json:"table"`  // db.table
	// Began is when the pass under way began; zero when none is.
	Began time.Time `json:"began,omitzero"`
	// After is the key up to which its rows are compared, and Found what was found among these.
	After json.RawMessage `json:"after,omitempty"`
	Found *Result         `json:"found,omitempty"`
	// Last is the result of the last pass that came to its end.
	Last *Result `json:"last,omitempty"`
}

// State are the states of all tables of a pipeline, in a compacted topic.
type State struct {
	Prefix string
	Kafka  StateLog
	Log    *slog.Logger

	tables map[string]*TableState
}

// Load reads all states. One that cannot be read is reported, and its table begins anew.
func (s *State) Load(ctx context.Context) error {
	s.tables = map[string]*TableState{}
	if err := s.Kafka.EnsureTopic(ctx, Spec(s.Prefix)); err != nil {
		return err
	}
	_, err := s.Kafka.ReadFrom(ctx, Topic(s.Prefix), 0, 0, func(r kafka.Record) error {
		delete(s.tables, string(r.Key))
		if r.Value == nil {
			return nil
		}
		t := &TableState{}
		err := json.Unmarshal(r.Value, t)
		if err == nil && t.Format != stateFormat {
			err = fmt.Errorf("it has format %d and this program knows %d", t.Format, stateFormat)
		}
		if err != nil {
			s.Log.Warn("what is saved of a comparison is passed over, so the table is compared anew", "table", string(r.Key), "offset", r.Offset, "error", err)
			return nil
		}
		s.tables[string(r.Key)] = t
		return nil
	})
	return err
}

// of is the state of a table.
func (s *State) of(table string) *TableState {
	t := s.tables[table]
	if t == nil {
		t = &TableState{Format: stateFormat, Table: table}
		s.tables[table] = t
	}
	return t
}

// save writes the state of a table.
func (s *State) save(ctx context.Context, t *TableState) error {
	var value bytes.Buffer
	to := json.NewEncoder(&value)
	to.SetEscapeHTML(false) // keys stay as rows have them
	if err := to.Encode(t); err != nil {
		return err
	}
	return s.Kafka.Produce(ctx, kafka.Record{Topic: Topic(s.Prefix), Key: []byte(t.Table), Value: value.Bytes()})
}
