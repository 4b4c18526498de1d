package tracing

import (
	"context"
	"encoding/hex"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"

	"lockstep/cdc"
	"lockstep/internal/collector"
)

func opened(t *testing.T, clock func(time.Time) time.Time) (*collector.Collector, *Tracer, *Metrics) {
	c, metrics := collector.New(t), NewMetrics(prometheus.NewRegistry())
	tracer, err := Open(Config{Endpoint: c.URL, Authorization: "Bearer abc"}, "shop", "1", clock, metrics, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c, tracer, metrics
}

func TestAChangeIsToldOfFromItsCommitToEverySink(t *testing.T) {
	const ahead = 3 * time.Second // the source's clock
	c, tracer, metrics := opened(t, func(at time.Time) time.Time { return at.Add(ahead) })
	now := time.Now()
	change := cdc.Change{Table: cdc.TableName{DB: "shop", Table: "orders"}, Op: cdc.OpUpdate, Version: 77, GTID: "u:1",
		CommitMicros: now.Add(ahead).UnixMicro(), Key: []byte(`{"mail":"private"}`), After: []byte(`{"mail":"private"}`),
		Trace: cdc.Trace{ID: [16]byte{1}, Parent: [8]byte{2}}.Of(77)}
	tracer.Captured(&change, now.Add(20*time.Millisecond))
	far := change
	far.Trace.Parent = [8]byte{} // as it comes from Kafka
	tracer.Settled("search", &far, now.Add(30*time.Millisecond), now.Add(50*time.Millisecond), "applied")
	tracer.Captured(&cdc.Change{Table: change.Table}, now) // not traced
	if err := tracer.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	came := c.Spans()
	if len(came) != 2 {
		t.Fatalf("%d spans came: %v", len(came), came)
	}
	of := map[string]*spans.Span{came[0].Name: came[0], came[1].Name: came[1]}
	captured, settled := of["capture shop.orders"], of["sink search"]
	if captured == nil || settled == nil {
		t.Fatalf("spans %v", came)
	}
	trace := "01" + strings.Repeat("0", 30)
	for _, s := range came {
		if hex.EncodeToString(s.TraceId) != trace {
			t.Errorf("%s is in trace %x", s.Name, s.TraceId)
		}
		if strings.Contains(s.String(), "private") {
			t.Errorf("%s tells a value", s.Name)
		}
	}
	if hex.EncodeToString(captured.ParentSpanId) != "0200000000000000" || string(settled.ParentSpanId) != string(captured.SpanId) || string(captured.SpanId) != string(change.Trace.Span[:]) {
		t.Errorf("parents: %x of the capture %x, and %x of the sink", captured.ParentSpanId, captured.SpanId, settled.ParentSpanId)
	}
	if took := time.Duration(captured.EndTimeUnixNano - captured.StartTimeUnixNano).Round(time.Millisecond); took != 20*time.Millisecond {
		t.Errorf("from the commit to Kafka it took %s", took)
	}
	if text := settled.String(); !strings.Contains(text, `"applied"`) {
		t.Errorf("the outcome is missing: %s", text)
	}
	if logins := c.Logins(); !slices.Contains(logins, "Bearer abc") {
		t.Errorf("logins %v", logins)
	}
	if n := testutil.ToFloat64(metrics.spans.WithLabelValues("sent")); n != 2 {
		t.Errorf("%v are counted", n)
	}
}

// A collector that refuses, or is not there, costs spans and nothing else.
func TestNothingWaitsForACollector(t *testing.T) {
	c, tracer, metrics := opened(t, func(at time.Time) time.Time { return at })
	c.Refuse(http.StatusBadRequest)
	change := cdc.Change{Table: cdc.TableName{DB: "shop", Table: "orders"}, Version: 77, Trace: cdc.Trace{ID: [16]byte{1}}.Of(77)}
	const n = 3 * queue
	for range n {
		tracer.Captured(&change, time.Now())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_ = tracer.Close(ctx)
	if lost := testutil.ToFloat64(metrics.spans.WithLabelValues("lost")); lost != n {
		t.Errorf("%v of %d are counted as lost", lost, n)
	}
	var nobody *Tracer
	nobody.Captured(&change, time.Now())
	nobody.Settled("search", &change, time.Now(), time.Now(), "applied")
	if err := nobody.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestMistakesOfTheSectionAreNamed(t *testing.T) {
	for _, c := range []Config{{Endpoint: "collector:4318"}, {Endpoint: "http://me:secret@collector:4318"}, {Sample: 1.5}, {Sample: -1}} {
		err := c.Check()
		if err == nil || strings.Contains(err.Error(), "secret@") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := DefaultConfig().Check(); err != nil {
		t.Error(err)
	}
	if tracer, err := Open(DefaultConfig(), "p", "1", nil, nil, nil); tracer != nil || err != nil {
		t.Errorf("without an endpoint there is %v, %v", tracer, err)
	}
}
