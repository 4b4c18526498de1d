// Package tracing tells an OpenTelemetry collector of single changes on their way: one span from
// the commit in the source to the acknowledgement by Kafka, and for each sink one from there, with what
// became of the change. Both belong to the trace of whoever made the change, where that is known.
//
// It is for seeing what a slow change waited for. Nothing depends on it: what a collector does
// not take is counted and given up, and nothing waits for it. No value of a row is told, and no key.
package tracing

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"lockstep/cdc"
	"lockstep/internal/certs"
)

// Metrics of the package.
type Metrics struct{ spans *prometheus.CounterVec }

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{spans: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "lockstep_trace_spans_total",
		Help: "Spans of traced changes, by outcome: sent to the collector, or lost because it did not take them or not fast enough."}, []string{"outcome"})}
	m.spans.WithLabelValues("sent")
	m.spans.WithLabelValues("lost")
	reg.MustRegister(m.spans)
	return m
}

// Tracer tells of changes. A nil Tracer tells nobody.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	clock    func(time.Time) time.Time
	metrics  *Metrics
	waiting  atomic.Int64 // spans that are made and not sent
}

// queue is how many spans may wait for the collector.
const queue = 8192

// Open makes a Tracer for a pipeline. Clock says what the source's clock shows at a time of this
// machine. It does not ask the collector. Without an endpoint the Tracer is nil.
func Open(cfg Config, pipeline, version string, clock func(time.Time) time.Time, metrics *Metrics, log *slog.Logger) (*Tracer, error) {
	if cfg.Endpoint == "" {
		return nil, nil
	}
	at, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("tracing: endpoint: %w", err)
	}
	if at.Path == "" || at.Path == "/" {
		at.Path = "/v1/traces"
	}
	options := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(at.String())}
	if text := cfg.Authorization.Reveal(); text != "" {
		options = append(options, otlptracehttp.WithHeaders(map[string]string{"Authorization": text}))
	}
	if at.Scheme == "https" {
		conf := &tls.Config{MinVersion: tls.VersionTLS12}
		if err := certs.Load(conf, cfg.CAFile, "", ""); err != nil {
			return nil, fmt.Errorf("tracing: %s", strings.TrimPrefix(err.Error(), "tls."))
		}
		options = append(options, otlptracehttp.WithTLSClientConfig(conf))
	}
	t := &Tracer{clock: clock, metrics: metrics}
	t.provider = sdk.NewTracerProvider(
		sdk.WithBatcher(&sender{tracer: t, client: otlptracehttp.NewClient(options...), log: log}, sdk.WithMaxQueueSize(queue+1), sdk.WithBatchTimeout(time.Second)),
		sdk.WithSampler(sdk.AlwaysSample()), // who is traced was decided where the change was read
		sdk.WithIDGenerator(given{}),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "lockstep"),
			attribute.String("service.namespace", pipeline),
			attribute.String("service.version", version))),
	)
	t.tracer = t.provider.Tracer("lockstep")
	return t, nil
}

// Close sends what is left, until ctx ends.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Captured tells of a change that Kafka has acknowledged.
func (t *Tracer) Captured(c *cdc.Change, acked time.Time) {
	if t == nil || !c.Trace.Traced() {
		return
	}
	parent := c.Trace
	parent.Span = c.Trace.Parent
	_, span := t.tracer.Start(within(parent, c.Trace.Span), "capture "+c.Table.String(), trace.WithTimestamp(t.committed(c, acked)),
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(about(c)...))
	t.end(span, acked)
}

// Settled tells what became of a change in a sink, which fetched it and has settled it now.
func (t *Tracer) Settled(sink string, c *cdc.Change, fetched, settled time.Time, outcome string) {
	if t == nil || !c.Trace.Traced() {
		return
	}
	_, span := t.tracer.Start(within(c.Trace, [8]byte{}), "sink "+sink, trace.WithTimestamp(fetched),
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(append(about(c),
			attribute.String("lockstep.sink", sink), attribute.String("lockstep.outcome", outcome),
			attribute.Float64("lockstep.age_ms", float64(settled.Sub(t.committed(c, settled)).Microseconds())/1e3))...))
	t.end(span, settled)
}

// end hands a span to the sender, unless too many wait for it.
func (t *Tracer) end(span trace.Span, at time.Time) {
	if t.waiting.Add(1) > queue {
		t.waiting.Add(-1)
		t.metrics.spans.WithLabelValues("lost").Inc()
		return
	}
	span.End(trace.WithTimestamp(at))
}

// committed is when a change was committed, by this machine's clock; at the latest now.
func (t *Tracer) committed(c *cdc.Change, now time.Time) time.Time {
	at := time.UnixMicro(c.CommitMicros).Add(now.Sub(t.clock(now)))
	if c.CommitMicros == 0 || at.After(now) {
		return now
	}
	return at
}

// about says which change it is. The texts of a change are parts of buffers, so they are copied.
func about(c *cdc.Change) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("db.system.name", "mysql"),
		attribute.String("db.namespace", strings.Clone(c.Table.DB)),
		attribute.String("db.collection.name", strings.Clone(c.Table.Table)),
		attribute.String("lockstep.op", c.Op.String()),
		attribute.String("lockstep.gtid", strings.Clone(c.GTID)),
		attribute.Int64("lockstep.version", int64(c.Version)),
	}
}

// spanID is the key of the id that a span is to have.
type spanID struct{}

// traceID is the key of the id that a trace is to have.
type traceID struct{}

// within is a context in which a span begins that has this parent, and this id unless it is zero.
func within(parent cdc.Trace, id [8]byte) context.Context {
	ctx := context.WithValue(context.Background(), traceID{}, trace.TraceID(parent.ID))
	if id != [8]byte{} {
		ctx = context.WithValue(ctx, spanID{}, trace.SpanID(id))
	}
	if parent.Span == [8]byte{} {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: parent.ID, SpanID: parent.Span, TraceFlags: trace.FlagsSampled, Remote: true,
	}))
}

// given gives the ids that the context names.
type given struct{}

func (given) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	id, _ := ctx.Value(traceID{}).(trace.TraceID)
	return id, given{}.NewSpanID(ctx, id)
}

func (given) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	id, ok := ctx.Value(spanID{}).(trace.SpanID)
	if ok {
		return id
	}
	binary.BigEndian.PutUint64(id[:], max(1, rand.Uint64()))
	return id
}

// sender sends spans to the collector and counts what becomes of them.
type sender struct {
	tracer   *Tracer
	client   otlptrace.Client
	exporter *otlptrace.Exporter
	log      *slog.Logger
	failed   bool
}

// ExportSpans is called by one goroutine at a time.
func (s *sender) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	if s.exporter == nil {
		s.exporter = otlptrace.NewUnstarted(s.client)
		if err := s.exporter.Start(ctx); err != nil {
			return err
		}
	}
	err := s.exporter.ExportSpans(ctx, spans)
	n := int64(len(spans))
	s.tracer.waiting.Add(-n)
	if err == nil {
		s.tracer.metrics.spans.WithLabelValues("sent").Add(float64(n))
		if s.failed {
			s.log.Info("the collector of traces takes spans again")
		}
	} else {
		s.tracer.metrics.spans.WithLabelValues("lost").Add(float64(n))
		if !s.failed {
			s.log.Warn("the collector of traces does not take spans; they are given up, and nothing waits for them", "error", err)
		}
	}
	s.failed = err != nil
	return nil // it is told
}

func (s *sender) Shutdown(ctx context.Context) error {
	if s.exporter == nil {
		return nil
	}
	return s.exporter.Shutdown(ctx)
}
