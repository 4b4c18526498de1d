package route

import (
	"bytes"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What another board has saved, whatever it is, is gone on from or refused, and what is gone
// on from can be saved again.
func FuzzASavedBoardOfAnyBytes(f *testing.F) {
	now := time.Date(2026, 11, 22, 8, 15, 30, 0, time.UTC)
	board := func() *Board {
		return NewBoard(func(string) Config { return DefaultConfig() }, NewMetrics(prometheus.NewRegistry()))
	}
	b := board()
	b.mu.Lock()
	b.at(now, Place{Table: "bank.questions", Sink: "search"})
	b.mu.Unlock()
	f.Add(b.Save(now))
	f.Add([]byte(`{"format":1,"at":"2026-11-22T08:15:29Z","places":[{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b := board()
		if b.Restore(now, text) != nil {
			return
		}
		saved := b.Save(now)
		again := board()
		if err := again.Restore(now, saved); err != nil {
			t.Fatalf("%s became %s, and that is refused: %v", text, saved, err)
		}
		if twice := again.Save(now); !bytes.Equal(saved, twice) {
			t.Fatalf("%s came back as %s", saved, twice)
		}
	})
}
