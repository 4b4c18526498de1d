package e2e

import (
	"encoding/hex"
	"os"
	"testing"
	"time"

	spans "go.opentelemetry.io/proto/otlp/trace/v1"

	"lockstep/internal/collector"
)

// The trace of an application goes on through the pipeline: from the comment of its statement over the capture
// to both sinks, which run in processes of their own.
func TestTheTraceOfAStatementGoesOnInEverySink(t *testing.T) {
	t.Parallel()
	traces := collector.New(t)
	w := newWorld(t, 20)
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.config, append(text, "tracing: {endpoint: "+traces.URL+", sample: 0}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	all := []*process{w.start("capture"), w.start("sink", "search"), w.start("sink", "cache")}
	w.equal(2 * time.Minute)

	conn, err := w.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, statement := range []string{
		"UPDATE questions SET title = 'not traced' WHERE id = 2",
		"SET SESSION binlog_rows_query_log_events = ON",
		"UPDATE questions SET title = 'traced' WHERE id = 1 /*traceparent='00-" + trace + "-" + parent + "-01'*/",
		"UPDATE tags SET name = CONCAT(name, '+') WHERE id = 1",
	} {
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"capture " + w.name + ".questions", "sink search", "sink cache"}
	came := map[string]*spans.Span{}
	await(t, time.Minute, "the spans", func() bool {
		for _, s := range traces.Spans() {
			came[s.Name] = s
		}
		return came[names[0]] != nil && came[names[1]] != nil && came[names[2]] != nil
	})
	capture := came[names[0]]
	for name, s := range came {
		above := hex.EncodeToString(s.ParentSpanId)
		want := parent
		if name != names[0] {
			want = hex.EncodeToString(capture.SpanId)
		}
		if hex.EncodeToString(s.TraceId) != trace || above != want || s.StartTimeUnixNano > s.EndTimeUnixNano {
			t.Errorf("%s: trace %x, parent %s; want %s and %s: %s", name, s.TraceId, above, trace, want, s)
		}
	}
	if len(came) != len(names) {
		t.Errorf("%d spans came, and one statement was traced: %v", len(came), came)
	}
	w.equal(time.Minute)
	for _, p := range all {
		p.stop()
	}
}
