package elastic

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

func TestADocumentCountsAsSearchableWhenASearchFindsIt(t *testing.T) {
	s := openStore(t, nil)
	const ahead = 30 * time.Second
	s.Clock = func(at time.Time) time.Time { return at.Add(ahead) }
	table := sinktest.Questions.Name
	apply := func(id, seq int, committed time.Time) {
		t.Helper()
		c := sinktest.Upsert(id, seq, "x")
		c.CommitMicros = committed.Add(ahead).UnixMicro()
		if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	ages := func() *dto.Histogram {
		var m dto.Metric
		if err := s.metrics.searchable.WithLabelValues("search", table.String()).(prometheus.Histogram).Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.GetHistogram()
	}
	apply(1, 1, time.Time{}.Add(-ahead))       // makes the index; nobody knows when it was committed
	never := `{"index.refresh_interval":"-1"}` // by itself
	if status, res := s.ask(t, http.MethodPut, "/"+s.alias(table)+"/_settings", never); status != http.StatusOK {
		t.Fatal(res)
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) { // the refresh that was due before is over
		if _, pool := s.ask(t, http.MethodGet, "/_cat/thread_pool/refresh?h=active,queue&format=json", ""); pool.Get("0.active").Str == "0" && pool.Get("0.queue").Str == "0" {
			break
		} else if time.Now().After(end) {
			t.Fatal(pool)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, func(context.Context) ([]cdc.TableName, error) { return nil, nil }) }()
	committed := time.Now()
	apply(2, 2, committed)
	apply(3, 3, committed.Add(-time.Hour)) // it is not the table's turn again
	time.Sleep(time.Second)
	if h := ages(); h.GetSampleCount() != 0 {
		t.Fatalf("%d documents count as found before any refresh", h.GetSampleCount())
	}
	refreshed := time.Since(committed)
	s.ask(t, http.MethodPost, "/"+s.alias(table)+"/_refresh", "")
	for ages().GetSampleCount() == 0 && time.Since(committed) < time.Minute {
		time.Sleep(10 * time.Millisecond)
	}
	if h, most := ages(), time.Since(committed); h.GetSampleCount() != 1 || h.GetSampleSum() < refreshed.Seconds() || h.GetSampleSum() > most.Seconds() {
		t.Errorf("%d documents count as found, after %v s; want one, after %v to %v", h.GetSampleCount(), h.GetSampleSum(), refreshed, most)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
