package sinks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/kafka"
)

var shopQ = cdc.TableName{DB: "shop", Table: "q"}

// barrierRecord is a barrier of a table.
func barrierRecord(table cdc.TableName, seq uint64) kafka.Record {
	version, err := cdc.NewVersion(1, seq)
	if err != nil {
		panic(err)
	}
	c := cdc.Change{Table: table, Op: cdc.OpBarrier, Version: version}
	return kafka.Record{Value: c.AppendValue(nil, "p"), Headers: c.Headers()}
}

// street is a topic of several partitions with its store and letters. The store
// remembers no version of a row that was swept, so it can tell an older change
// that comes after the sweep from a new row no better than a stranger could.
type street struct {
	mu      sync.Mutex
	draw    func(int) int
	calm    bool
	houses  []*house
	stored  map[string]cdc.Version
	letters map[string]cdc.Version
	fault   string
}

// house is a partition of it.
type house struct {
	*street
	id    int
	log   []kafka.Record
	sent  int // of log, in this run
	start int // the committed offset
}

func (h *house) Name() (string, int) { return "p.shop.q", h.id }

func (h *house) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
	h.mu.Lock()
	n := 0
	if left := len(h.log) - h.sent; left > 0 {
		n = 1 + h.draw(min(4, left))
	}
	out := h.log[h.sent : h.sent+n]
	h.sent += n
	pause := time.Duration(1+h.draw(5)) * 100 * time.Millisecond
	h.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(pause):
		return out, nil
	}
}

func (h *house) Commit(_ context.Context, next int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.calm && h.draw(4) == 0 {
		return errors.New("away")
	}
	h.start = int(next)
	return nil
}

func (s *street) Apply(ctx context.Context, changes []cdc.Change) []Outcome {
	s.mu.Lock()
	took := time.Duration(s.draw(300)) * time.Millisecond
	s.mu.Unlock()
	time.Sleep(took) // calls end in any order
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Outcome, len(changes))
	for i, c := range changes {
		if c.Op == cdc.OpBarrier {
			s.fault = "a barrier was applied as a change"
		}
		key := string(c.Key)
		mishap := s.draw(8)
		switch at := s.stored[key]; {
		case !s.calm && mishap < 3:
			out[i] = Outcome{Verdict: []Verdict{Unavailable, Transient, Poison}[mishap], Class: ClassRefused}
		case at > c.Version:
			out[i].Verdict = Stale
		case at == c.Version:
			out[i].Verdict = Duplicate
		default:
			s.stored[key] = c.Version
			out[i].Verdict = Applied
		}
	}
	return out
}

func (s *street) Sweep(ctx context.Context, _ cdc.TableName, v cdc.Version) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.houses[1:] {
		for offset, r := range h.log {
			if c, _ := cdc.Decode(r.Key, r.Value, r.Headers); c.Op == cdc.OpBarrier && c.Version == v {
				if h.start <= offset {
					s.fault = fmt.Sprintf("swept for %d while partition %d has settled %d records and the barrier is at %d", v.Seq(), h.id, h.start, offset)
				}
				break
			}
		}
	}
	n := 0
	for key, at := range s.stored {
		if !s.calm && s.draw(10) == 0 {
			return n, errors.New("away")
		}
		if at <= v {
			delete(s.stored, key)
			n++
		}
	}
	return n, nil
}

func (s *street) bury(_ context.Context, r Refusal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.calm && s.draw(3) == 0 {
		return errors.New("away")
	}
	key := string(r.Change.Key)
	s.letters[key] = max(s.letters[key], r.Change.Version)
	return nil
}

func (s *street) progress(context.Context, string) (ends, committed map[int]int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.calm && s.draw(4) == 0 {
		return nil, nil, errors.New("away")
	}
	ends, committed = map[int]int64{}, map[int]int64{}
	for _, h := range s.houses {
		ends[h.id], committed[h.id] = int64(len(h.log)), int64(h.start)
	}
	return ends, committed, nil
}

// pen writes the log into the minutes of a stage.
type pen struct{ *stage }

func (p pen) Write(line []byte) (int, error) {
	p.say("%s", bytes.TrimSpace(line))
	return len(line), nil
}

// A sweep that waits says once that it cannot ask, and after a minute, then every ten
// minutes, for which partitions it waits.
func TestASweepThatWaitsLongSaysForWhom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stage{began: time.Now(), records: make(chan []kafka.Record), others: []string{"0/2", "7/7", "4/5"}}
		log := slog.New(slog.NewTextHandler(pen{s}, nil))
		asked := 0
		worker := &Worker{
			Name: "es", Sink: s, Bury: s.bury, Log: log,
			Metrics: NewMetrics(prometheus.NewRegistry()), Config: DefaultConfig(),
			Progress: func(ctx context.Context, topic string) (ends, committed map[int]int64, err error) {
				if asked++; asked < 4 {
					return nil, nil, errors.New("no coordinator")
				}
				return s.progress(ctx, topic)
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- worker.RunPartition(ctx, s) }()
		s.records <- s.parse(t, []string{"|5"})
		said := func(after time.Duration, failures, waits int) {
			t.Helper()
			time.Sleep(time.Until(s.began.Add(after)))
			synctest.Wait()
			text := s.text()
			if f, w := strings.Count(text, "no coordinator"), strings.Count(text, `behind="[1 3]"`); f != failures || w != waits {
				t.Errorf("after %s the log has %d failures and %d waits, want %d and %d:\n%s", after, f, w, failures, waits, text)
			}
		}
		said(59*time.Second, 1, 0)
		said(62*time.Second, 1, 1)
		said(10*time.Minute, 1, 1)
		said(12*time.Minute, 1, 2)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		said(13*time.Minute, 1, 2)
	})
}

// event is a change of a row, or a barrier.
type event struct {
	row     string // empty for a barrier
	version uint64
}

func (s *street) publish(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	put := func(h *house, r kafka.Record) {
		r.Topic, r.Partition, r.Offset = "p.shop.q", h.id, int64(len(h.log))
		h.log = append(h.log, r)
	}
	if e.row != "" {
		put(s.houses[int(e.row[0])%len(s.houses)], record(shopQ, e.row, e.version))
		return
	}
	for i := range s.houses { // the first one last
		put(s.houses[(i+1)%len(s.houses)], barrierRecord(shopQ, e.version))
	}
}

// Whatever is refused, repeated, published again after a restart of the capture or
// given to another worker, the store ends with the newest change of each row behind
// the last barrier, and with nothing else.
func TestWhateverHappensTheStoreEndsWithWhatIsBehindTheLastBarrier(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		events := rapid.IntRange(1, 50).Draw(rt, "events")
		var fault string
		synctest.Test(t, func(t *testing.T) { fault = parade(t, seed, events) })
		if fault != "" {
			rt.Fatal(fault)
		}
	})
}

func parade(t *testing.T, seed uint64, events int) string {
	s := &street{stored: map[string]cdc.Version{}, letters: map[string]cdc.Version{}}
	s.draw = rand.New(rand.NewPCG(seed, seed)).IntN
	for id := range 3 {
		s.houses = append(s.houses, &house{street: s, id: id})
	}
	history := make([]event, events)
	model := map[string]uint64{}
	for i := range history {
		e := event{version: uint64(i + 1)}
		if s.draw(6) == 0 {
			clear(model)
		} else {
			e.row = string(rune('a' + s.draw(6)))
			model[e.row] = e.version
		}
		history[i] = e
	}
	reg := prometheus.NewRegistry()
	cfg := DefaultConfig()
	cfg.BatchChanges = 3
	worker := &Worker{Name: "es", Sink: s, Bury: s.bury, Progress: s.progress, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(reg), Config: cfg}

	ctx, cancel := context.WithCancel(t.Context())
	var hands sync.WaitGroup
	for _, h := range s.houses {
		hands.Go(func() { // the partition moves from worker to worker
			for ctx.Err() == nil {
				s.mu.Lock()
				h.sent = h.start
				life := time.Duration(1+s.draw(20_000)) * time.Millisecond
				if s.calm {
					life = time.Hour
				}
				s.mu.Unlock()
				run, end := context.WithTimeout(ctx, life)
				if err := worker.RunPartition(run, h); err != nil {
					s.mu.Lock()
					s.fault = err.Error()
					s.mu.Unlock()
				}
				end()
			}
		})
	}
	for i := 0; i < len(history); i++ {
		s.publish(history[i])
		s.mu.Lock()
		again, pause := s.draw(10) == 0, time.Duration(s.draw(1000))*time.Millisecond
		if again { // the capture was restarted and reads on from an older position
			i = max(-1, i-1-s.draw(8))
		}
		s.mu.Unlock()
		time.Sleep(pause)
	}
	s.mu.Lock()
	s.calm = true
	s.mu.Unlock()
	settled := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, h := range s.houses {
			if h.start < len(h.log) {
				return false
			}
		}
		return true
	}
	for range 300 {
		if settled() {
			break
		}
		time.Sleep(time.Second)
	}
	cancel()
	hands.Wait()
	switch {
	case s.fault != "":
		return s.fault
	case !settled():
		return "not everything is committed after five calm minutes"
	}
	for row := 'a'; row < 'g'; row++ {
		key := fmt.Sprintf(`{"id":%q}`, string(row))
		want, got, letter := model[string(row)], s.stored[key].Seq(), s.letters[key].Seq()
		if want != got && (want == 0 || letter < want) {
			return fmt.Sprintf("row %c has version %d in the store and %d in a letter; want %d", row, got, letter, want)
		}
	}
	return unbalanced(t, reg, true)
}
