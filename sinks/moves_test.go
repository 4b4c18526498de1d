package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/tidwall/gjson"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/kafka"
)

// rooms is a store that keeps a row where a column says that is no key, as
// with a routing column. For each row and place it remembers the newest version, of the
// row or of its going away.
type rooms struct {
	mu      sync.Mutex
	draw    func(int) int
	calm    bool
	log     []kafka.Record
	sent    int
	start   int
	at      map[string]map[string]cdc.Version // by row and place
	gone    map[string]map[string]bool
	letters map[string]Refusal // the newest of each row
	fault   string
}

func (s *rooms) Name() (string, int) { return "p.shop.q", 1 }

func (s *rooms) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
	s.mu.Lock()
	n := 0
	if s.sent < len(s.log) {
		n = 1 + s.draw(min(5, len(s.log)-s.sent))
	}
	out := s.log[s.sent : s.sent+n]
	s.sent += n
	pause := time.Duration(s.draw(5)) * 50 * time.Millisecond
	s.mu.Unlock()
	if n == 0 {
		pause = time.Minute
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(pause):
		return out, nil
	}
}

func (s *rooms) Commit(_ context.Context, next int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.calm && s.draw(4) == 0 {
		return errors.New("away")
	}
	s.start = int(next)
	return nil
}

func (s *rooms) put(row, place string, v cdc.Version, gone bool) {
	if s.at[row] == nil {
		s.at[row], s.gone[row] = map[string]cdc.Version{}, map[string]bool{}
	}
	if s.at[row][place] < v {
		s.at[row][place], s.gone[row][place] = v, gone
	}
}

func (s *rooms) Apply(_ context.Context, changes []cdc.Change) []Outcome {
	s.mu.Lock()
	took := time.Duration(s.draw(200)) * time.Millisecond
	s.mu.Unlock()
	time.Sleep(took)
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Outcome, len(changes))
	for i, c := range changes {
		const wrote, left, nothing, transient, poison, taken = 0, 1, 2, 3, 4, 5
		mishap := s.draw(10)
		if s.calm || mishap > taken {
			mishap = taken
		}
		out[i] = Outcome{Verdict: []Verdict{Unavailable, Unavailable, Unavailable, Transient, Poison, Applied}[mishap], Class: ClassRefused}
		if mishap == nothing {
			continue
		}
		row := string(c.Key)
		here := gjson.GetBytes(c.After, "at").Str // older places are left also when it is refused
		for _, image := range append([][]byte{c.Before}, c.Left...) {
			if there := gjson.GetBytes(image, "at").Str; there != "" && there != here {
				s.put(row, there, c.Version, true)
			}
		}
		if c.Op != cdc.OpDelete && (mishap == wrote || mishap == taken) {
			s.put(row, here, c.Version, false)
		}
	}
	return out
}

func (s *rooms) bury(_ context.Context, r Refusal) error {
	time.Sleep(100 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.calm && s.draw(4) == 0 {
		return errors.New("away")
	}
	if row := string(r.Change.Key); s.letters[row].Change == nil || s.letters[row].Change.Version <= r.Change.Version {
		s.letters[row] = r
	}
	return nil
}

// retry gives letters to the store beside the live stream, as they are read from Kafka:
// without what the worker knew of older places.
func (s *rooms) retry(ctx context.Context, w *Worker) {
	for ctx.Err() == nil {
		s.mu.Lock()
		pause := time.Duration(s.draw(500)) * time.Millisecond
		s.mu.Unlock()
		time.Sleep(pause)
		s.mu.Lock()
		letters := maps.Clone(s.letters)
		s.mu.Unlock()
		for row, letter := range letters {
			c, err := cdc.Decode(letter.Record.Key, letter.Record.Value, letter.Record.Headers)
			v := w.Try(ctx, "p.shop.q", []cdc.Change{c})[0].Verdict
			s.mu.Lock()
			if err != nil {
				s.fault = err.Error()
			}
			if v == Applied && s.letters[row].Change.Version == c.Version {
				delete(s.letters, row)
			}
			s.mu.Unlock()
		}
	}
}

func (s *rooms) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) { return 0, nil }

// Whatever is refused, tried again, put off, overtaken or read again, a row that moved is
// in its newest place and in no other.
func TestWhateverHappensARowIsInOnePlace(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		changes := rapid.IntRange(1, 60).Draw(rt, "changes")
		restarts := rapid.IntRange(0, 5).Draw(rt, "restarts")
		var fault string
		synctest.Test(t, func(t *testing.T) { fault = move(t, seed, changes, restarts) })
		if fault != "" {
			rt.Fatal(fault)
		}
	})
}

func move(t *testing.T, seed uint64, changes, restarts int) string {
	s := &rooms{at: map[string]map[string]cdc.Version{}, gone: map[string]map[string]bool{}, letters: map[string]Refusal{}, draw: rand.New(rand.NewPCG(seed, seed)).IntN}
	place := map[string]string{} // of each row now
	for i := range changes {
		row := string(rune('a' + s.draw(3)))
		version, _ := cdc.NewVersion(1, uint64(i+1))
		c := cdc.Change{Table: shopQ, Op: cdc.OpUpdate, Version: version, Key: fmt.Appendf(nil, `{"id":%q}`, row)}
		if was := place[row]; was != "" {
			c.Before = fmt.Appendf(nil, `{"id":%q,"at":%q}`, row, was)
		}
		if s.draw(6) == 0 && c.Before != nil {
			c.Op, place[row] = cdc.OpDelete, ""
		} else {
			place[row] = string(rune('p' + s.draw(5)))
			c.After = fmt.Appendf(nil, `{"id":%q,"at":%q}`, row, place[row])
		}
		s.log = append(s.log, kafka.Record{Topic: "p.shop.q", Partition: 1, Key: c.Key, Value: c.AppendValue(nil, "p"), Headers: c.Headers()})
		if s.draw(15) == 0 { // a capture reads its log again
			s.log = append(s.log, s.log[max(0, len(s.log)-1-s.draw(5)):]...)
		}
	}
	for i := range s.log {
		s.log[i].Offset = int64(i)
	}
	reg := prometheus.NewRegistry()
	cfg := DefaultConfig()
	cfg.BatchChanges, cfg.FloodShare = 3, 1
	cfg.CommitEvery = 50 * time.Millisecond
	worker := &Worker{
		Name: "es", Sink: s, Moves: func(cdc.TableName) bool { return true }, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(reg), Config: cfg,
		Bury: s.bury,
	}
	run := func(d time.Duration) {
		s.mu.Lock()
		s.sent = s.start
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		var retrying sync.WaitGroup
		defer retrying.Wait()
		retrying.Go(func() { s.retry(ctx, worker) })
		if err := worker.RunPartition(ctx, s); err != nil {
			s.fault = err.Error()
		}
	}
	for range restarts {
		run(time.Duration(1+s.draw(3000)) * time.Millisecond)
	}
	s.calm = true
	run(10 * time.Minute)
	switch {
	case s.fault != "":
		return s.fault
	case s.start != len(s.log):
		return fmt.Sprintf("committed %d of %d", s.start, len(s.log))
	case len(s.letters) > 0:
		return fmt.Sprintf("%d letters were not taken", len(s.letters))
	}
	for row, want := range place {
		key := fmt.Sprintf(`{"id":%q}`, row)
		found := ""
		for there := range s.at[key] {
			if !s.gone[key][there] {
				found += there
			}
		}
		if found != want {
			return fmt.Sprintf("row %s is in %q, want %q", row, found, want)
		}
	}
	return unbalanced(t, reg, true)
}
