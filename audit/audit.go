// Package audit keeps what operators do: who, when, what, why, and how it ended.
//
// The records stand in a Kafka topic of one partition, which keeps them for ever. Each
// carries a hash over everything that stands before it, so that a record that was
// removed, changed, moved or put in is found (Verify). An act whose beginning cannot be
// written down is not done.
//
// Kafka has no write that fails when somebody else was faster, so the order of the log
// decides: of two writers that have read the same log, the record that stands first is
// confirmed and the other one is late. A writer reads back what it wrote and writes a
// late record again, behind what it missed. So the log can be asked "may I?" and answers
// one writer alone, whoever else asks and whoever is killed in between; that is how a
// request is done once (Act.Request).
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"lockstep/kafka"
)

// Kafka is the part of it that the audit log needs.
type Kafka interface {
	EnsureTopic(ctx context.Context, spec kafka.TopicSpec) error
	// Produce writes a record and returns when all in-sync replicas have it.
	Produce(ctx context.Context, r kafka.Record) error
	// ReadFrom calls fn with the records of a partition from an offset to the end of
	// this moment, and returns where to go on.
	ReadFrom(ctx context.Context, topic string, partition int, from int64, fn func(kafka.Record) error) (int64, error)
}

// TopicOf is the name of a pipeline's audit log.
func TopicOf(prefix string) string { return prefix + ".audit" }

// Topic says what the topic must be: one order, and kept for ever.
func Topic(prefix string) kafka.TopicSpec {
	return kafka.TopicSpec{Name: TopicOf(prefix), Partitions: 1, Configs: map[string]string{"retention.ms": "-1", "retention.bytes": "-1"}}
}

// Step is a half of an act.
type Step string

const (
	Began Step = "began" // it is about to be done
	Ended Step = "ended" // it is over, and this is what came of it
)

// Outcome is how an act ended.
type Outcome string

const (
	Done   Outcome = "done"
	Failed Outcome = "failed" // Problem says why; counts say how far it came
)

// Record is what stands in the log. An act has two, with one ID.
type Record struct {
	Format int `json:"format"`
	// Seq is how many records the writer had seen, and Prev the hash over them: the
	// record counts when both are right where it stands.
	Seq  int64 `json:"seq"`
	Prev Hash  `json:"prev"`

	ID   string    `json:"id"`
	Step Step      `json:"step"`
	At   time.Time `json:"at"` // by the writer's clock
	Act
	Result
}

// Act is what somebody is about to do.
type Act struct {
	Actor string `json:"actor"`
	Via   string `json:"via"` // cli, http, or replay: the end of one
	Name  string `json:"act"` // such as dlq.skip
	// Filter says on what it is done.
	Filter map[string]string `json:"filter,omitempty"`
	Reason string            `json:"reason,omitempty"`
	// Request names a request that is to be done once, Body is the hash of what it
	// asks for.
	Request string `json:"request_id,omitempty"`
	Body    string `json:"request_hash,omitempty"`
}

// Result is what came of an act.
type Result struct {
	Outcome Outcome        `json:"outcome,omitempty"`
	Problem string         `json:"problem,omitempty"`
	Counts  map[string]int `json:"counts,omitempty"`
	// Answer is what a request was told, so that it is told the same again.
	Answer *Answer `json:"answer,omitempty"`
}

// Answer is that to a request.
type Answer struct {
	Status int             `json:"status"`
	Body   json.RawMessage `json:"body"`
}

const (
	format    = 1
	textBytes = 1 << 10
	// A request is known for a day after it ended.
	requestDay = 24 * time.Hour
	// UnderWay is how long an act that began counts as under way. One that did not end
	// by then was cut off, and its request may be done again.
	UnderWay = 2 * time.Minute
)

var (
	// ErrReused says that a request ID has stood for something else.
	ErrReused = errors.New("the request ID was used for another request within a day")
	// ErrUnderWay says that a request is being done now, here or in another process.
	ErrUnderWay = errors.New("a request with this ID is under way, or was cut off less than " + UnderWay.String() + " ago")
)

// Log writes the audit log of a pipeline. Several goroutines may use it, and any number
// of processes may have one of the same topic.
type Log struct {
	Prefix string
	Kafka  Kafka

	mu       sync.Mutex // one act at a time is written
	made     bool
	next     int64 // offset
	chain    *chain
	requests map[string]*request
	open     map[string]bool // IDs of acts that this process has begun
}

// request is what the log holds of one.
type request struct {
	id, body string
	at       time.Time // of its newest record, by the broker
	answer   *Answer
	ended    bool
}

// Entry is an act that has begun.
type Entry struct {
	log *Log
	id  string
	act Act
}

// Begin writes down that an act begins and returns when that is confirmed; only then may
// it be done. Its name is one of Acts. Of the acts that carry the same request ID and body one is begun, whichever
// process asks: another one gets the answer of the first, or ErrUnderWay.
func (l *Log) Begin(ctx context.Context, act Act) (*Entry, *Answer, error) {
	if !slices.Contains(Acts, act.Name) {
		return nil, nil, fmt.Errorf("audit log: %q is not in Acts", act.Name)
	}
	act = act.clipped()
	e := &Entry{log: l, id: uuid.NewString(), act: act}
	l.mu.Lock()
	defer l.mu.Unlock()
	var known *Answer
	err := l.append(ctx, Record{ID: e.id, Step: Began, Act: act}, func() (err error) {
		known, err = l.known(act)
		return err
	})
	if known != nil {
		return nil, known, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("audit log: %w", err)
	}
	l.open[e.id] = true
	return e, nil, nil
}

var errKnown = errors.New("answered")

// known reports what is known of the request of an act.
func (l *Log) known(act Act) (*Answer, error) {
	r := l.requests[act.Request]
	switch {
	case act.Request == "" || r == nil || time.Since(r.at) > requestDay:
		return nil, nil
	case r.body != act.Body:
		return nil, ErrReused
	case r.answer != nil:
		return r.answer, errKnown
	case !r.ended && (l.open[r.id] || time.Since(r.at) < UnderWay):
		return nil, ErrUnderWay
	}
	return nil, nil // cut off: it is done again
}

// Find returns the answer to a request that has ended, nil when there is none, and
// ErrReused or ErrUnderWay as Begin does. It writes nothing.
func (l *Log) Find(ctx context.Context, act Act) (*Answer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.catchUp(ctx, nil); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	answer, err := l.known(act)
	if answer != nil {
		err = nil
	}
	return answer, err
}

// End writes down what came of the act.
func (e *Entry) End(ctx context.Context, r Result) error {
	r.Problem = clip(r.Problem)
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	defer delete(e.log.open, e.id)
	if err := e.log.append(ctx, Record{ID: e.id, Step: Ended, Act: e.act, Result: r}, nil); err != nil {
		return fmt.Errorf("the end of it is not in the audit log: %w", err)
	}
	return nil
}

// endWithin is how long the end of an act may take to be written when it was interrupted.
const endWithin = 10 * time.Second

// Do begins an act, does it and writes down what came of it.
func (l *Log) Do(ctx context.Context, act Act, do func() (map[string]int, error)) error {
	e, _, err := l.Begin(ctx, act)
	if err != nil {
		return err
	}
	counts, failed := do()
	r := Result{Outcome: Done, Counts: counts}
	if failed != nil {
		r.Outcome, r.Problem = Failed, failed.Error()
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	return errors.Join(failed, e.End(ending, r))
}

// append writes r at the end of the chain and returns when it is confirmed there. may is
// asked each time before it is written, with everything in sight that stands before it.
func (l *Log) append(ctx context.Context, r Record, may func() error) error {
	if err := l.prepare(ctx); err != nil {
		return err
	}
	r.Format, r.At = format, time.Now().UTC()
	for try := 0; ; try++ {
		if err := l.catchUp(ctx, nil); err != nil {
			return err
		}
		if may != nil {
			if err := may(); err != nil {
				return err
			}
		}
		r.Seq, r.Prev = l.chain.n, l.chain.head
		value, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := l.Kafka.Produce(ctx, kafka.Record{Topic: TopicOf(l.Prefix), Value: value}); err != nil {
			return err
		}
		confirmed, err := l.readBack(ctx, value)
		if confirmed || err != nil {
			return err
		}
		if err := pause(ctx, 10*time.Millisecond<<min(try, 6)); err != nil { // somebody was faster
			return err
		}
	}
}

func (l *Log) prepare(ctx context.Context) error {
	if l.made {
		return nil
	}
	if err := l.Kafka.EnsureTopic(ctx, Topic(l.Prefix)); err != nil {
		return err
	}
	l.made, l.chain = true, newChain(l.Prefix)
	l.requests, l.open = map[string]*request{}, map[string]bool{}
	return nil
}

// readBack reads up to the record with this value and tells whether it is confirmed.
func (l *Log) readBack(ctx context.Context, value []byte) (confirmed bool, err error) {
	for found := false; !found; {
		err := l.catchUp(ctx, func(v []byte, s standing) {
			if bytes.Equal(v, value) {
				found, confirmed = true, s == isConfirmed
			}
		})
		if err != nil {
			return false, err
		}
		if !found { // a new leader may not know yet how far all replicas are
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return false, err
			}
		}
	}
	return confirmed, nil
}

// catchUp reads what is new in the log.
func (l *Log) catchUp(ctx context.Context, see func(value []byte, s standing)) error {
	if err := l.prepare(ctx); err != nil {
		return err
	}
	from := l.next
	_, err := l.Kafka.ReadFrom(ctx, TopicOf(l.Prefix), 0, from, func(k kafka.Record) error {
		r, s, _ := l.chain.add(k.Value)
		l.next = k.Offset + 1
		if s == isConfirmed && r.Request != "" {
			l.note(r, k.Time)
		}
		if see != nil {
			see(k.Value, s)
		}
		return nil
	})
	return err
}

// note remembers the request of a record for a day.
func (l *Log) note(r Record, at time.Time) {
	if r.Step == Began && len(l.requests)%1000 == 999 {
		for id, old := range l.requests {
			if time.Since(old.at) > requestDay {
				delete(l.requests, id)
			}
		}
	}
	now := &request{id: r.ID, body: r.Body, at: at, answer: r.Answer, ended: r.Step == Ended}
	if before := l.requests[r.Request]; before != nil && r.Step == Ended && before.id != r.ID {
		return // of one that was taken for cut off and done again since
	}
	l.requests[r.Request] = now
}

func pause(ctx context.Context, most time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(rand.N(most)):
		return nil
	}
}

// clip cuts text to what a record has room for.
func clip(text string) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= textBytes {
		return text
	}
	end := textBytes
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// clipped is the act with no text that is too long for a record.
func (a Act) clipped() Act {
	a.Reason = clip(a.Reason)
	filter := make(map[string]string, len(a.Filter))
	for key, value := range a.Filter {
		filter[key] = clip(value)
	}
	a.Filter = filter
	return a
}
