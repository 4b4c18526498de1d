package elastic

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

func TestADoctorSeesWhatIsWrongWithAnIndexAndChangesNothing(t *testing.T) {
	for _, c := range []struct{ claim, index, then, want, note string }{
		{"no index yet", "", "", "", ""},
		{"a good one", "made by the sink", "", "", "can be stored in NAME-000001"},
		{"a closed one", "made by the sink", "POST /NAME-000001/_close", "is closed; open it", ""},
		{"a read-only one", "made by the sink", `PUT /NAME-000001/_settings {"index.blocks.read_only_allow_delete":true}`, "is read-only", ""},
		{"one that takes no writes", "made by the sink", `PUT /NAME-000001/_settings {"index.blocks.write":true}`, "lockstep rebuild search --table sinktest.question", ""},
		{"one with a pipeline", "made by the sink", `PUT /NAME-000001/_settings {"index.final_pipeline":"lockstep-test"}`, "", "warning: the ingest pipeline lockstep-test may change or drop"},
		{"one with a pipeline that is not there", "made by the sink", `PUT /NAME-000001/_settings {"index.default_pipeline":"nobody"}`, "ingest pipeline nobody, which is not there", ""},
		{"an empty one of somebody else", `{"aliases":{"NAME":{}}}`, "", "", "can be stored"},
		{"a full one of somebody else", `{"aliases":{"NAME":{}}}`, `PUT /NAME-000001/_doc/1 {"id":1}`, "has 1 documents and no field _lockstep", ""},
		{"a document without the guard", "made by the sink", `PUT /NAME-000001/_doc/77 {"id":77}`, "1 documents of NAME-000001 have no _lockstep.v", ""},
		{"a document that somebody has changed", "made by the sink", `PUT /NAME-000001/_doc/1 {"id":1,"title":"edited","_lockstep":{"v":13194139533313}}`, "1 of 1 documents of NAME-000001 that were looked at were written by somebody else, the first of them 1", ""},
		{"a field of another type", `{"aliases":{"NAME":{}},"mappings":{"properties":{"id":{"type":"text"},"_lockstep":{"properties":{"v":{"type":"long"}}}}}}`, "", "field id is text and column id bigint needs long", ""},
		{"two indices", `{"aliases":{"NAME":{}}}`, `PUT /NAME-000002 {"aliases":{"NAME":{}}}`, "covers 2 indices (NAME-000001, NAME-000002)", ""},
	} {
		t.Run(c.claim, func(t *testing.T) {
			s := openStore(t, nil)
			alias := s.alias(sinktest.Questions.Name)
			if status, res := s.ask(t, http.MethodPut, "/_ingest/pipeline/lockstep-test", `{"processors":[]}`); status != http.StatusOK {
				t.Fatal(res.Raw)
			}
			named := strings.NewReplacer("NAME", alias)
			send := func(method, path, body string) {
				if status, res := s.ask(t, method, named.Replace(path), named.Replace(body)); status >= 300 {
					t.Fatal(res.Raw)
				}
			}
			switch c.index {
			case "":
			case "made by the sink":
				if out := verdictOf(t, s, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Applied {
					t.Fatal(out)
				}
			default:
				send(http.MethodPut, "/NAME-000001", c.index)
			}
			if c.then != "" {
				words := append(strings.SplitN(c.then, " ", 3), "")
				send(words[0], words[1], words[2])
			}
			if strings.Contains(c.then, "NAME-000002") {
				t.Cleanup(func() { s.ask(t, http.MethodDelete, "/"+alias+"-000002", "") })
			}
			_, before := s.ask(t, http.MethodGet, "/"+alias, "")
			notes, err := s.Inspect(t.Context(), sinktest.Questions)
			if _, after := s.ask(t, http.MethodGet, "/"+alias, ""); after.Raw != before.Raw {
				t.Errorf("it made %s of %s", after.Raw, before.Raw)
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), named.Replace(c.want))) {
				t.Errorf("error %v; want %q", err, named.Replace(c.want))
			}
			if got := strings.Join(notes, "; "); c.note == "" && got != "" || !strings.Contains(got, named.Replace(c.note)) {
				t.Errorf("notes %q; want %q", got, named.Replace(c.note))
			}
		})
	}
}

func TestAnIngestPipelineIsWarnedAboutAndRowsAreWritten(t *testing.T) {
	s := openStore(t, nil)
	var log bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	s.ask(t, http.MethodPut, "/_ingest/pipeline/lockstep-test", `{"processors":[]}`)
	alias := s.alias(sinktest.Questions.Name)
	s.ask(t, http.MethodPut, "/"+alias+"-000001", fmt.Sprintf(`{"aliases":{%q:{}},"settings":{"index.default_pipeline":"lockstep-test"}}`, alias))
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "x")); out.Verdict != sinks.Applied {
		t.Errorf("%+v; want applied", out)
	}
	if !strings.Contains(log.String(), "pipeline=lockstep-test") {
		t.Errorf("the log does not warn of the pipeline:\n%s", log.String())
	}
}

// The local build has no data streams.
func TestADataStreamIsRefused(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Elastic-Product", "Elasticsearch")
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{".ds-q-2026.11.26-000001":{"aliases":{},"mappings":{},"settings":{},"data_stream":"q"},".ds-q-2026.11.26-000002":{"aliases":{},"mappings":{},"settings":{},"data_stream":"q"}}`)
	}))
	defer server.Close()
	cfg := DefaultConfig()
	cfg.Addresses = []string{server.URL}
	s, err := Open("search", cfg, func(cdc.TableName) (TableConfig, bool) { return TableConfig{Index: "q"}, true },
		func(context.Context, cdc.TableName) (cdc.Table, error) { return sinktest.Questions, nil },
		slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if out := s.Apply(t.Context(), []cdc.Change{sinktest.Upsert(1, 1, "x")})[0]; out.Verdict != sinks.Unavailable || !strings.Contains(out.Sentence(), "q is a data stream, which takes no versions") {
		t.Errorf("%+v; want it refused", out)
	}
}

// That an index is gone is told once for each time; that its alias is gone is something
// else, and told to nobody but the log.
func TestRefillIsToldOnceThatAnIndexIsGone(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	name, told := sinktest.Questions.Name, 0
	s.Refill = func(_ context.Context, n cdc.TableName, had bool) (bool, error) {
		if n != name || had != (told > 0) {
			t.Errorf("%s is said to be gone, and that it was there: %v", n, had)
		}
		told++
		return true, nil
	}
	apply := func(version int, want sinks.Verdict, wantTold int) {
		t.Helper()
		var out sinks.Outcome
		for range 3 { // the first change finds out
			if out = verdictOf(t, s, sinktest.Upsert(1, version, "x")); out.Verdict == want {
				break
			}
		}
		if out.Verdict != want || told != wantTold {
			t.Errorf("version %d: %+v, told %d times; want verdict %d and %d", version, out, told, want, wantTold)
		}
	}
	apply(1, sinks.Applied, 1)
	apply(2, sinks.Applied, 1)
	s.ask(t, http.MethodDelete, "/"+s.alias(name)+"-000001", "")
	apply(3, sinks.Applied, 2)
	s.ask(t, http.MethodDelete, "/"+s.alias(name)+"-000001/_alias/"+s.alias(name), "")
	for version := 4; version < 7; version++ {
		apply(version, sinks.Unavailable, 2)
	}
}
