package e2e

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// The trace of an application goes on through the pipeline: from the comment of its statement over the capture
// to both sinks, which run in processes of their own.
func TestTheTraceOfAStatementGoesOnInEverySink(t *testing.T) {
	var mu sync.Mutex
	came := map[string]*spans.Span{} // by name
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			body, _ = gzip.NewReader(body)
		}
		text, err := io.ReadAll(body)
		var request collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(text, &request) != nil {
			t.Errorf("what came is no export of traces: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, resource := range request.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				for _, s := range scope.Spans {
					came[s.Name] = s
				}
			}
		}
	}))
	defer server.Close()
	w := newWorld(t, 20)
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.config, append(text, "tracing: {endpoint: "+server.URL+", sample: 0}\n"...), 0o600); err != nil {
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
	await(t, time.Minute, "the spans", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return came[names[0]] != nil && came[names[1]] != nil && came[names[2]] != nil
	})
	mu.Lock()
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
	mu.Unlock()
	w.equal(time.Minute)
	for _, p := range all {
		p.stop()
	}
}
