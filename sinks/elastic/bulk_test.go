package elastic

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/tidwall/gjson"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

func TestEachAnswerHasItsVerdict(t *testing.T) {
	t.Parallel()
	conflict := func(current, given int) string {
		return fmt.Sprintf("[1]: version conflict, current version [%d] is higher or equal to the one provided [%d]", current, given)
	}
	for _, c := range []struct {
		op     cdc.Op
		status int
		kind   string
		reason string
		want   sinks.Verdict
		class  sinks.Class
	}{
		{'u', 200, "", "", sinks.Applied, ""},
		{'c', 201, "", "", sinks.Applied, ""},
		{'d', 200, "", "", sinks.Applied, ""},
		{'d', 404, "", "", sinks.Applied, ""},
		{'u', 409, kindConflict, conflict(7, 7), sinks.Duplicate, ""},
		{'u', 409, kindConflict, conflict(8, 7), sinks.Stale, ""},
		{'u', 409, kindConflict, conflict(77, 7), sinks.Stale, ""},
		{'u', 409, kindConflict, "in words of another release", sinks.Stale, ""},
		{'d', 409, kindConflict, conflict(7, 7), sinks.Duplicate, ""},
		{'u', 409, "some_other_conflict", conflict(7, 7), sinks.Transient, sinks.ClassRefused},
		{'u', 429, "es_rejected_execution_exception", "", sinks.Unavailable, ""},
		{'u', 429, "circuit_breaking_exception", "", sinks.Unavailable, ""},
		{'u', 429, "cluster_block_exception", "", sinks.Unavailable, ""},
		{'u', 403, "cluster_block_exception", "read only / allow delete", sinks.Unavailable, ""},
		{'u', 403, "security_exception", "", sinks.Unavailable, ""},
		{'u', 401, "security_exception", "", sinks.Unavailable, ""},
		{'u', 500, "exception", "", sinks.Unavailable, ""},
		{'u', 503, "unavailable_shards_exception", "", sinks.Unavailable, ""},
		{'u', 503, "", "", sinks.Unavailable, ""},
		{'u', 400, "index_closed_exception", "", sinks.Unavailable, ""},
		{'u', 404, kindNoIndex, "", sinks.Unavailable, ""},
		{'d', 404, kindNoIndex, "", sinks.Unavailable, ""},
		{'u', 0, "", "", sinks.Unavailable, ""},
		{'u', 400, kindStrict, "", sinks.Poison, sinks.ClassMapping},
		{'u', 400, "mapper_parsing_exception", "", sinks.Poison, sinks.ClassMapping},
		{'u', 400, "document_parsing_exception", "", sinks.Poison, sinks.ClassMapping},
		{'u', 400, "illegal_argument_exception", "", sinks.Poison, sinks.ClassMapping},
		{'u', 400, "action_request_validation_exception", "", sinks.Poison, sinks.ClassMapping},
		{'u', 413, "", "", sinks.Poison, sinks.ClassTooLarge},
		{'u', 400, "a_kind_nobody_knows", "", sinks.Transient, sinks.ClassRefused},
		{'u', 404, "", "", sinks.Transient, sinks.ClassRefused},
	} {
		got := classify(c.op, 7, answer{status: c.status, kind: c.kind, reason: c.reason})
		if got.Verdict != c.want || got.Class != c.class {
			t.Errorf("%s: %d %s: verdict %d, class %q; want %d, %q", c.op, c.status, c.kind, got.Verdict, got.Class, c.want, c.class)
		}
		if settled := c.want == sinks.Applied || c.want == sinks.Stale || c.want == sinks.Duplicate; !settled && got.Reason == "" {
			t.Errorf("%s: %d %s: no reason given", c.op, c.status, c.kind)
		}
	}
}

func TestTheVersionIsSplicedIntoTheRowAsItIs(t *testing.T) {
	t.Parallel()
	for row, want := range map[string]string{
		`{"id":1}`:                    `{"id":1,"_lockstep":{"v":7}}`,
		`{"id":1,"meta":{"a":{}}}`:    `{"id":1,"meta":{"a":{}},"_lockstep":{"v":7}}`,
		`{}`:                          `{"_lockstep":{"v":7}}`,
		"{\n \"id\": 1.0\r\n}\n":      `{"id":1.0,"_lockstep":{"v":7}}`,
		`{"price":12345678901234567}`: `{"price":12345678901234567,"_lockstep":{"v":7}}`,
	} {
		if got := string(appendSource(nil, []byte(row), 7)); got != want {
			t.Errorf("%q: got %s, want %s", row, got, want)
		}
	}
}

func TestAnyRowAndAnyKeyMakeWholeBulkLines(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		name, title := text.Draw(t, "key"), text.Draw(t, "title")
		key, _ := json.Marshal(map[string]string{"name": name})
		row, _ := json.MarshalIndent(map[string]any{"name": name, "title": title, "n": []any{map[string]any{}}}, "", rapid.SampledFrom([]string{"", " ", "\n"}).Draw(t, "indent"))
		c := cdc.Change{Op: cdc.OpUpdate, Version: 1 << 42, Key: key, After: row}
		lines, no := appendChange(nil, &c, &table{alias: "alias"}, "", 1<<20)
		if no != nil {
			if name != "" && len(name) <= longestID {
				t.Fatalf("refused: %+v", no)
			}
			return
		}
		parts := strings.Split(string(lines), "\n")
		if len(parts) != 3 || parts[2] != "" {
			t.Fatalf("%d lines in %q; want two, each ended", len(parts)-1, lines)
		}
		var action struct {
			Index struct {
				ID          string `json:"_id"`
				Version     int64
				VersionType string `json:"version_type"`
			}
		}
		if err := json.Unmarshal([]byte(parts[0]), &action); err != nil || action.Index.ID != name || action.Index.Version != 1<<42 || action.Index.VersionType != "external" {
			t.Fatalf("action %s: %v", parts[0], err)
		}
		var doc struct {
			Title string
			CDC   struct{ V int64 } `json:"_lockstep"`
		}
		if err := json.Unmarshal([]byte(parts[1]), &doc); err != nil || doc.Title != title || doc.CDC.V != 1<<42 {
			t.Fatalf("document %s: %v", parts[1], err)
		}
	})
}

func TestTheGeneratedMappingKnowsEveryKind(t *testing.T) {
	t.Parallel()
	for kind, want := range map[cdc.Kind]string{
		cdc.KindInt: "long", cdc.KindUint: "unsigned_long", cdc.KindFloat: "float", cdc.KindDouble: "double", cdc.KindDecimal: "double",
		cdc.KindKeyword: "keyword", cdc.KindText: "text", cdc.KindSet: "keyword", cdc.KindDate: "date", cdc.KindDateTime: "date",
		cdc.KindTimestamp: "date", cdc.KindBytes: "binary", cdc.KindJSON: "flattened", cdc.KindBool: "boolean",
	} {
		if got := field(kind, true)["type"]; got != want {
			t.Errorf("%s is mapped to %s; want %s", kind, got, want)
		}
	}
	if got := field(cdc.KindUint, false)["type"]; got != "keyword" {
		t.Errorf("without unsigned_long uint is mapped to %s; want keyword", got)
	}
}

func TestColumnsThatCannotBeFieldsAreNamed(t *testing.T) {
	t.Parallel()
	for column, ok := range map[string]bool{"id": true, "_private": true, "größe": true, "a b": true, "a.b": false, "_id": false, "_lockstep": false, " ": false} {
		err := CheckTable(cdc.Table{Columns: []cdc.Column{{Name: column}}})
		if (err == nil) != ok {
			t.Errorf("column %q: %v", column, err)
		}
	}
}

func TestAliasesAreCheckedBeforeTheServerSeesThem(t *testing.T) {
	t.Parallel()
	for template, want := range map[string]string{
		"{db}_{table}": "shop_order", "Fixed": "fixed", "{db}.{table}": "shop.order",
		"": "", "_x": "", "a b": "", "a*": "", "{pk}": "", "a,b": "", ".hidden": "",
	} {
		got, err := aliasOf(template, "Shop", "Order")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", template, got, err, want)
		}
	}
}

// fake is an Elasticsearch whose bulk answers are made up by a test; everything
// else is as if the index were there.
type fake struct {
	mu    sync.Mutex
	sizes []int // documents of each bulk request
	bulk  func(w http.ResponseWriter, ids []string)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Elastic-Product", "Elasticsearch")
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/_mget" { // holds none of them yet
		var asked struct{ Docs []struct{} }
		json.NewDecoder(r.Body).Decode(&asked)
		docs := make([]map[string]any, len(asked.Docs))
		for i := range docs {
			docs[i] = map[string]any{"found": false}
		}
		json.NewEncoder(w).Encode(map[string]any{"docs": docs})
		return
	}
	if r.URL.Path != "/_bulk" {
		fields := map[string]any{guardField: 1}
		for _, c := range sinktest.Questions.Columns {
			fields[c.Name] = 1
		}
		json.NewEncoder(w).Encode(map[string]any{"a-000001": map[string]any{
			"aliases": map[string]any{"a": map[string]any{}}, "mappings": map[string]any{"properties": fields},
		}})
		return
	}
	var ids []string
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if id := gjson.Get(lines.Text(), "index._id"); id.Exists() {
			ids = append(ids, id.Str)
		}
	}
	f.mu.Lock()
	f.sizes = append(f.sizes, len(ids))
	f.mu.Unlock()
	f.bulk(w, ids)
}

// taken answers that each document was written.
func taken(w http.ResponseWriter, ids []string) {
	items := make([]string, len(ids))
	for i := range ids {
		items[i] = `{"index":{"status":201}}`
	}
	fmt.Fprintf(w, `{"items":[%s]}`, strings.Join(items, ","))
}

func (f *fake) open(t *testing.T) *Sink {
	t.Helper()
	return f.openWithin(t, time.Minute)
}

func (f *fake) openWithin(t *testing.T, timeout time.Duration) *Sink {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	cfg := DefaultConfig()
	cfg.Addresses = []string{server.URL}
	cfg.Timeout = timeout
	s, err := Open("search", cfg, func(cdc.TableName) (TableConfig, bool) { return TableConfig{Index: "a"}, true },
		func(context.Context, cdc.TableName) (cdc.Table, error) { return sinktest.Questions, nil },
		slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func eight() []cdc.Change {
	changes := make([]cdc.Change, 8)
	for i := range changes {
		changes[i] = sinktest.Upsert(i, 1, "x")
	}
	return changes
}

func verdicts(outcomes []sinks.Outcome) string {
	var b strings.Builder
	for _, out := range outcomes {
		b.WriteString(map[sinks.Verdict]string{sinks.Applied: "+", sinks.Poison: "x", sinks.Unavailable: "!", sinks.Transient: "~"}[out.Verdict])
	}
	return b.String()
}

func TestWhatIsAnsweredToAWholeRequest(t *testing.T) {
	t.Parallel()
	refuse := func(status int, body string) func(http.ResponseWriter, []string) {
		return func(w http.ResponseWriter, _ []string) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	const tooLong = "an answer that takes too long is none"
	// when answers so if the request holds document 5, and takes it otherwise.
	when := func(status int, body string) func(http.ResponseWriter, []string) {
		return func(w http.ResponseWriter, ids []string) {
			for _, id := range ids {
				if id == "5" {
					refuse(status, body)(w, ids)
					return
				}
			}
			taken(w, ids)
		}
	}
	for _, c := range []struct {
		claim string
		bulk  func(http.ResponseWriter, []string)
		want  string
		sizes string
	}{
		{"all taken", taken, "++++++++", "[8]"},
		{"429 is unavailable and is not split here", refuse(429, `{"error":{"type":"es_rejected_execution_exception","reason":"full"},"status":429}`), "!!!!!!!!", "[8]"},
		{"503 is unavailable", refuse(503, ``), "!!!!!!!!", "[8]"},
		{"401 is unavailable", refuse(401, `{"error":{"type":"security_exception","reason":"no"},"status":401}`), "!!!!!!!!", "[8]"},
		{"a 413 is halved until the document that is too large stands alone", when(413, ``), "+++++x++", "[8 4 4 2 1 1 2]"},
		{"a 400 that names a kind is halved until the document that spoils the request stands alone",
			when(400, `{"error":{"type":"illegal_argument_exception","reason":"bad"},"status":400}`), "+++++x++", "[8 4 4 2 1 1 2]"},
		{"a 400 of somebody else buries nothing", refuse(400, `<html>proxy</html>`), "!!!!!!!!", "[8 4 2 1]"},
		{"an answer that breaks off is none", refuse(200, `{"items":[{"index":{"status":201}},{"index":{"sta`), "!!!!!!!!", "[8]"},
		{"fewer answers than documents are none", func(w http.ResponseWriter, ids []string) { taken(w, ids[1:]) }, "!!!!!!!!", "[8]"},
		{tooLong, func(w http.ResponseWriter, ids []string) { time.Sleep(600 * time.Millisecond); taken(w, ids) }, "!!!!!!!!", "[8]"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			f, timeout := &fake{bulk: c.bulk}, time.Minute
			if c.claim == tooLong {
				timeout = 300 * time.Millisecond
			}
			out := f.openWithin(t, timeout).Apply(t.Context(), eight())
			f.mu.Lock()
			defer f.mu.Unlock()
			if got, sizes := verdicts(out), fmt.Sprint(f.sizes); got != c.want || sizes != c.sizes {
				t.Errorf("got %s with requests of %s documents; want %s with %s\n%+v", got, sizes, c.want, c.sizes, out)
			}
		})
	}
}

// What one index refuses the account is the matter of its table; what all of them do is the store's.
func TestARightThatIsMissingOnOneIndexIsAMatterOfItsTable(t *testing.T) {
	t.Parallel()
	denied := `{"type":"security_exception","reason":"action [indices:data/write/bulk[s]] is unauthorized"}`
	for whole, answer := range map[bool]string{true: `{"error":` + denied + `,"status":403}`, false: `{"items":[{"index":{"status":403,"error":` + denied + `}}]}`} {
		f := &fake{bulk: func(w http.ResponseWriter, _ []string) {
			if whole {
				w.WriteHeader(http.StatusForbidden)
			}
			io.WriteString(w, answer)
		}}
		out := f.open(t).Apply(t.Context(), eight()[:1])[0]
		if out.Verdict != sinks.Unavailable || out.Unasked == whole || !strings.Contains(out.Reason, "unauthorized") {
			t.Errorf("as a whole %v: %+v", whole, out)
		}
	}
}

func TestAFullStoreSaysHowLongItWantsToBeLeftAlone(t *testing.T) {
	t.Parallel()
	full := `{"items":[{"index":{"status":201}},{"index":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"full"}}}]}`
	for header, least := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "soon": 0, "-3": 0, time.Now().Add(time.Minute).UTC().Format(http.TimeFormat): 50 * time.Second,
	} {
		for status, body := range map[int]string{429: `{"error":{"type":"es_rejected_execution_exception","reason":"full"}}`, 503: "", 200: full} {
			f := &fake{bulk: func(w http.ResponseWriter, _ []string) {
				if header != "" {
					w.Header().Set("Retry-After", header)
				}
				w.WriteHeader(status)
				io.WriteString(w, body)
			}}
			out := f.open(t).Apply(t.Context(), eight()[:2])
			if out[1].Verdict != sinks.Unavailable || out[1].RetryAfter < least || out[1].RetryAfter > least+10*time.Second || least == 0 && out[1].RetryAfter != 0 {
				t.Errorf("%d with Retry-After %q: %+v; want unavailable for at least %s", status, header, out[1], least)
			}
			if status == 200 && (out[0].Verdict != sinks.Applied || out[0].RetryAfter != 0) {
				t.Errorf("the document that was taken: %+v", out[0])
			}
		}
	}
}

func TestRequestsAreCutByCountAndBytes(t *testing.T) {
	t.Parallel()
	f := &fake{bulk: taken}
	s := f.open(t)
	s.config.BulkDocs = 3
	s.Apply(t.Context(), eight())
	s.config.BulkDocs, s.config.BulkBytes = 1000, 1024
	changes := eight()
	changes[3] = sinktest.Upsert(3, 1, strings.Repeat("x", 5000))
	s.Apply(t.Context(), changes)
	if got := fmt.Sprint(f.sizes); got != "[3 3 2 3 1 4]" {
		t.Errorf("requests of %s documents; want [3 3 2], then [3 1 4] with the large one alone", got)
	}
}

func TestAStoreThatIsAwayIsAskedOnceAndNotForEveryRequestOfACall(t *testing.T) {
	t.Parallel()
	f := &fake{bulk: func(w http.ResponseWriter, _ []string) { w.WriteHeader(503) }}
	s := f.open(t)
	s.config.BulkDocs = 1
	out := s.Apply(t.Context(), eight())
	if got := verdicts(out); got != "!!!!!!!!" || len(f.sizes) != 1 {
		t.Errorf("got %s after %d requests; want all unavailable after one", got, len(f.sizes))
	}
	if out[7].Reason == "" {
		t.Error("the last change does not say why it is unavailable")
	}
}

func TestDefaultsPassTheCheck(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Addresses = []string{"http://127.0.0.1:9200"}
	if err := cfg.Check(); err != nil {
		t.Error(err)
	}
	if err := DefaultTableConfig().Check(); err != nil {
		t.Error(err)
	}
	if err := (Config{}).Check(); err == nil {
		t.Error("an empty configuration passed")
	}
}
