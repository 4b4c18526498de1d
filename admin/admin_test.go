package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"lockstep/audit"
	"lockstep/cdc"
	"lockstep/dlq"
	"lockstep/kafka"
)

// memory is the Kafka of an audit log.
type memory struct {
	mu      sync.Mutex
	records []kafka.Record
	down    error
}

func (m *memory) EnsureTopic(context.Context, kafka.TopicSpec) error { return nil }

func (m *memory) Produce(_ context.Context, r kafka.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return m.down
	}
	r.Offset, r.Time = int64(len(m.records)), time.Now()
	m.records = append(m.records, r)
	return nil
}

func (m *memory) ReadFrom(_ context.Context, _ string, _ int, from int64, fn func(kafka.Record) error) (int64, error) {
	m.mu.Lock()
	some := slices.Clone(m.records[from:])
	m.mu.Unlock()
	for _, r := range some {
		if err := fn(r); err != nil {
			return from, err
		}
	}
	return from + int64(len(some)), nil
}

// shelf is a Desk with some letters.
type shelf struct {
	mu      sync.Mutex
	letters []dlq.Letter
	skips   int
	fail    error
	halfway error // of many that are skipped
	asked   dlq.Query
	gate    *sync.WaitGroup // who looks for a letter waits there for the others

	padding  string // of exported lines
	between  func(context.Context)
	broken   error // of an export
	unplaced bool
	imported []string
}

func (s *shelf) Sinks() []string { return []string{"cache", "search"} }

func (s *shelf) Choose(_ context.Context, q dlq.Query) (chosen []dlq.Letter, err error) {
	if s.gate != nil {
		s.gate.Done()
		s.gate.Wait()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = q
	if q.Table == "shop.gone" {
		return nil, &dlq.FieldError{Field: "table", Problem: "shop.gone is not captured"}
	}
	for _, l := range s.letters {
		if (q.ID == "" || q.ID == l.ID) && (q.Key == "" || q.Key == l.Key) {
			chosen = append(chosen, l)
		}
	}
	return chosen, s.fail
}

func (s *shelf) Look(_ context.Context, l dlq.Letter) (dlq.View, kafka.Record, error) {
	return dlq.View{Why: "why", Mend: "mend", Now: dlq.RowNow{Problem: "no answer"}, Fields: []dlq.Field{{Name: "id", Recorded: []byte("1"), Differs: true}}}, kafka.Record{Key: []byte(`{"id":1}`), Value: []byte("\xff"), Headers: []cdc.Header{{Key: "h", Value: []byte("v")}}}, nil
}

func (s *shelf) Preview(_ context.Context, letters []dlq.Letter, resync bool, tell func(dlq.Letter, dlq.Result)) error {
	for _, l := range letters {
		tell(l, dlq.Result{State: dlq.WouldApply, Reason: fmt.Sprint("resync ", resync)})
	}
	return s.fail
}

func (s *shelf) Patching(_ context.Context, l dlq.Letter, patch []byte) (*dlq.Patching, []dlq.Field, error) {
	if string(patch) == "[]" {
		return nil, nil, &dlq.PatchError{Problem: "the patch changes nothing"}
	}
	return &dlq.Patching{Letter: l, Columns: []string{"n", "m"}}, []dlq.Field{{Name: "n", Now: []byte("1"), Differs: true}}, nil
}

func (s *shelf) WouldPatch(context.Context, *dlq.Patching) (dlq.Result, error) {
	return dlq.Result{State: dlq.WouldApply}, s.fail
}

func (s *shelf) Patch(_ context.Context, p *dlq.Patching, by string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.letters {
		if s.letters[i].ID == p.Letter.ID {
			s.letters[i].Patched = &dlq.Patched{By: by}
		}
	}
	return s.fail
}

func (s *shelf) Skip(_ context.Context, letters []dlq.Letter, _ string, done func(dlq.Letter)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, l := range letters {
		if s.halfway != nil && i == len(letters)/2 {
			return s.halfway
		}
		s.skips++
		s.letters = slices.DeleteFunc(s.letters, func(other dlq.Letter) bool { return other.ID == l.ID })
		done(l)
	}
	return nil
}

const (
	viewer   = "viewer-0123456789abcdef"
	operator = "operator-0123456789abcdef"
)

// api is a server with a viewer and an operator.
type api struct {
	t       *testing.T
	shelf   *shelf
	log     *memory
	jobs    *dlq.Jobs
	config  Config
	server  *Server
	handler http.Handler
}

func newAPI(t *testing.T) *api {
	t.Helper()
	a := &api{t: t, shelf: &shelf{}, log: &memory{}, jobs: &dlq.Jobs{Prefix: "shop", Kafka: &memory{}}, config: Config{Tokens: []Token{
		{"victor", Viewer, tokenFile(t, viewer+"\n", 0o600)}, {"olga", Operator, tokenFile(t, operator, 0o640)},
	}}}
	at := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for i := range 5 {
		a.shelf.letters = append(a.shelf.letters, dlq.Letter{ID: fmt.Sprint("search-", i), Sink: "search", Table: "bank.questions", Key: fmt.Sprint(i), Version: 7, Class: "mapping", FirstFailed: at.Add(time.Duration(i/2) * time.Second), LastFailed: at, Fingerprint: "f"})
	}
	a.restart()
	return a
}

// restart is another process of the pipeline.
func (a *api) restart() {
	a.t.Helper()
	tokens, err := OpenTokens(a.config, slog.New(slog.DiscardHandler))
	if err != nil {
		a.t.Fatal(err)
	}
	a.server = &Server{Tokens: tokens, Audit: &audit.Log{Prefix: "shop", Kafka: a.log}, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()), ImportBytes: 1 << 20, Load: &Load{}}
	a.handler = a.server.Handler(append(LetterRoutes(a.shelf), JobRoutes(a.shelf, a.jobs)...)...)
}

func tokenFile(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// answer is what came of a request.
type answer struct {
	status int
	code   string // of a problem
	detail string
	body   []byte
	header http.Header
}

// ask sends a request; header is "Name: value" each, and token goes in one of its own.
func (a *api) ask(method, path, token, body string, headers ...string) answer {
	a.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	return a.read(method, path, w.Code, w.Body.Bytes(), w.Header())
}

// read is an answer, with its problem when it is one.
func (a *api) read(method, path string, status int, body []byte, header http.Header) answer {
	a.t.Helper()
	got := answer{status: status, body: body, header: header}
	if status >= 400 && method != "HEAD" {
		var p Problem
		if err := json.Unmarshal(got.body, &p); err != nil || header.Get("Content-Type") != "application/problem+json" || p.Status != status || p.Title == "" || p.Detail == "" || p.Type != "about:blank" || p.RequestID != header.Get("X-Request-ID") {
			a.t.Errorf("%s %s: no problem body: %v %s", method, path, err, got.body)
		}
		got.code, got.detail = p.Code, p.Detail
	}
	return got
}

// requests is how many of an operation had an answer, as the metrics count them.
func (a *api) requests(operation, code string) float64 {
	a.t.Helper()
	return testutil.ToFloat64(a.server.Metrics.requests.WithLabelValues(operation, code))
}

const skipPath, skipReason, jsonType = "/v1/dlq/search-1/skip", `{"reason":"test data"}`, "Content-Type: application/json"

func (a *api) skip(id, body string, headers ...string) answer {
	a.t.Helper()
	return a.ask("POST", skipPath, operator, body, append(headers, jsonType, "X-Request-ID: "+id)...)
}

func (a *api) acts() (n int) {
	a.t.Helper()
	acts, breaks, err := audit.List(a.t.Context(), a.log, "shop", audit.Filter{})
	if err != nil || breaks > 0 {
		a.t.Fatal(err, breaks)
	}
	for _, act := range acts {
		if act.Outcome != audit.Unconfirmed { // else it was late, and then found that it was done
			n++
		}
	}
	return n
}

func TestOnlyARightTokenMayReadAndOnlyAnOperatorMayWrite(t *testing.T) {
	a := newAPI(t)
	for name, tc := range map[string]struct {
		token, header string
		status        int
		code          string
	}{
		"none":              {"", "", 401, "token_missing"},
		"a wrong one":       {strings.Repeat("x", 30), "", 401, "token_unknown"},
		"a part of one":     {viewer[:len(viewer)-1], "", 401, "token_unknown"},
		"one with more":     {viewer + "0", "", 401, "token_unknown"},
		"another scheme":    {"", "Authorization: Basic " + viewer, 401, "token_malformed"},
		"no characters":     {"", "Authorization: Bearer ", 401, "token_malformed"},
		"strange":           {"", "Authorization: Bearer " + viewer + "\u00e9", 401, "token_malformed"},
		"two":               {viewer, "Authorization: Bearer " + operator, 401, "token_malformed"},
		"of a viewer":       {viewer, "", 403, "role_viewer"},
		"of an operator":    {operator, "", 400, "request_id_missing"}, // it got that far
		"the word in small": {"", "Authorization: bearer " + operator, 400, "request_id_missing"},
	} {
		headers := []string{jsonType}
		if tc.header != "" {
			headers = append(headers, tc.header)
		}
		if got := a.ask("POST", skipPath, tc.token, skipReason, headers...); got.status != tc.status || got.code != tc.code {
			t.Errorf("%s: a write gets %d %s: %s", name, got.status, got.code, got.detail)
		}
		want := 200
		if tc.status == 401 {
			want = 401
		}
		for _, path := range []string{"/v1/dlq", "/v1/dlq/groups", "/v1/dlq/search-1", "/v1/openapi.json"} {
			got := a.ask("GET", path, tc.token, "", headers...)
			if got.status != want {
				t.Errorf("%s: GET %s gets %d %s", name, path, got.status, got.detail)
			}
			if want == 401 && got.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: no WWW-Authenticate", name)
			}
			a.restart() // so that nobody asks too often
		}
	}
	if a.shelf.skips != 0 || a.acts() != 0 {
		t.Errorf("%d letters were skipped", a.shelf.skips)
	}
}

func TestWithoutTokensThisMachineReadsAndNobodyWrites(t *testing.T) {
	a := newAPI(t)
	a.config = Config{}
	a.restart()
	for host, want := range map[string]int{"127.0.0.1:8080": 200, "localhost": 200, "[::1]:8080": 200, "evil.example:8080": 421, "": 421} {
		r := httptest.NewRequest("GET", "/v1/dlq", nil)
		r.Host = host
		w := httptest.NewRecorder()
		a.handler.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("host %q gets %d", host, w.Code)
		}
	}
	r := httptest.NewRequest("POST", skipPath, strings.NewReader(skipReason))
	r.Host = "localhost"
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Request-ID", "a")
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	if w.Code != 403 || !strings.Contains(w.Body.String(), "nothing can be written without a token") || a.shelf.skips != 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestATokenThatIsChangedOrTakenAwayCountsAtOnce(t *testing.T) {
	a := newAPI(t)
	path := a.config.Tokens[0].File
	read := func(token string) int { return a.ask("GET", "/v1/dlq", token, "").status }
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other := strings.ToUpper(viewer)
	write(other)
	if old, now := read(viewer), read(other); old != 401 || now != 200 {
		t.Errorf("changed: the old one gets %d, the new one %d", old, now)
	}
	write("")
	if got := read(other); got != 401 {
		t.Errorf("emptied: %d", got)
	}
	write(other)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := read(other); got != 401 {
		t.Errorf("open to all: %d", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := read(other); got != 401 {
		t.Errorf("removed: %d", got)
	}
	if got := read(operator); got != 200 {
		t.Errorf("the other token gets %d", got)
	}
}

func TestAFileThatHoldsNoTokenIsRefusedAtTheStart(t *testing.T) {
	good := tokenFile(t, viewer, 0o600)
	for want, path := range map[string]string{
		"is empty; put a token into it":                    tokenFile(t, "\n", 0o600),
		"has mode 0644, so others than its owner can":      tokenFile(t, viewer, 0o644),
		"has mode 0620, so others than its owner can":      tokenFile(t, viewer, 0o620),
		"holds no token: 20 to 4096 letters":               tokenFile(t, "secret", 0o600),
		"holds no token: 20 to 4096 ":                      tokenFile(t, viewer+"\n"+viewer, 0o600),
		"holds no token: 20 ":                              tokenFile(t, strings.Repeat("x", 4097), 0o600),
		"is no file":                                       t.TempDir(),
		"no such file or directory":                        filepath.Join(t.TempDir(), "nowhere"),
		"holds the token of another file, so nobody could": tokenFile(t, viewer+"\n", 0o600),
	} {
		_, err := OpenTokens(Config{Tokens: []Token{{"a", Viewer, good}, {"b", Operator, path}}}, slog.New(slog.DiscardHandler))
		if err == nil || !strings.HasPrefix(err.Error(), "admin.tokens[1].file: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "0123456789") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v; want %q and no token", err, want)
		}
	}
}

func TestMistakesInTheConfigurationAreNamed(t *testing.T) {
	one := []Token{{"ann", Viewer, "/a"}}
	for want, c := range map[string]Config{
		"": {Listen: "127.0.0.1:8080"}, " ": {}, "  ": {Listen: "0.0.0.0:8080", Tokens: one}, "   ": {Listen: "[::1]:0"},
		`listen: "localhost" is not host:port; write for example 127.0.0.1:8080`:                                                                    {Listen: "localhost"},
		"listen: 0.0.0.0:8080 can be reached from other machines and no tokens say who may; name some in admin.tokens, or listen on 127.0.0.1:8080": {Listen: "0.0.0.0:8080"},
		"listen: :8080 can be reached from other machines and no tokens say who may; name some in admin.tokens, or listen on 127.0.0.1:8080":        {Listen: ":8080"},
		"listen: db-1:80 can be reached from other machines and no tokens say who may; name some in admin.tokens, or listen on 127.0.0.1:80":        {Listen: "db-1:80"},
		`tokens[0].name: "a b" is no name; use 1 to 100 letters, digits, dots, @, _ and -`:                                                          {Tokens: []Token{{"a b", Viewer, "/a"}}},
		"tokens[1].name: ann has a token already; give each holder a name of his own":                                                               {Tokens: []Token{one[0], {"ann", Viewer, "/b"}}},
		"tokens[1].file: /a is another token's already; each needs its own":                                                                         {Tokens: []Token{one[0], {"bob", Viewer, "/a"}}},
		"tokens[0].file: is empty; give the path of the file that holds the token":                                                                  {Tokens: []Token{{"ann", Viewer, ""}}},
		`tokens[0].role: "admin" is not known; use viewer or operator`:                                                                              {Tokens: []Token{{"ann", "admin", "/a"}}},
	} {
		got := ""
		c.ImportBytes = DefaultConfig().ImportBytes
		if err := c.Check(); err != nil {
			got = err.Error()
		}
		if got != strings.TrimSpace(want) {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
}

// A comparison that stops at the first wrong byte cannot be written: the compiler refuses
// == between digests. And whichever token it is, all are looked at.
func TestTokensAreComparedInConstantTime(t *testing.T) {
	if reflect.TypeFor[digest]().Comparable() {
		t.Error("digests can be compared with ==")
	}
	text, err := os.ReadFile("token.go")
	if err != nil {
		t.Fatal(err)
	}
	body := string(text)[bytes.Index(text, []byte("\nfunc match(")):]
	body = body[:strings.Index(body, "\n}\n")]
	loop := body[strings.Index(body, "for "):]
	if !strings.Contains(loop, "subtle.ConstantTimeCompare") || strings.Contains(loop, "if ") || strings.Contains(loop, "break") || strings.Count(loop, "return") != 1 || strings.Count(string(text), ".sum[:]") != 2 {
		t.Errorf("match may stop early:\n%s", body)
	}
	all := []digest{digestOf([]byte("a")), digestOf([]byte("b")), digestOf([]byte("c"))}
	for i, token := range []string{"a", "b", "c"} {
		if got := match(digestOf([]byte(token)), all); got != i {
			t.Errorf("%s is %d", token, got)
		}
	}
	if got := match(digestOf([]byte("d")), all); got != -1 {
		t.Errorf("d is %d", got)
	}
}

func TestAWriteIsDoneOnceForItsRequestID(t *testing.T) {
	a := newAPI(t)
	const why = `{"reason":"a <b> & c"}`
	first := a.skip("r-1", why)
	if first.status != 200 || a.shelf.skips != 1 || a.acts() != 1 {
		t.Fatalf("%+v", first)
	}
	for range 2 {
		again := a.skip("r-1", why)
		if again.status != 200 || !bytes.Equal(again.body, first.body) || again.header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("again: %d %s, first %s", again.status, again.body, first.body)
		}
		a.restart()
	}
	for name, got := range map[string]answer{
		"another body": a.skip("r-1", `{"reason":"other"}`),
		"another path": a.ask("POST", "/v1/dlq/search-2/skip", operator, skipReason, jsonType, "X-Request-ID: r-1"),
	} {
		if got.status != 409 || got.code != "request_id_reused" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := a.skip("r-2", skipReason); got.status != 404 || got.code != "no_letter" { // it is skipped
		t.Errorf("%+v", got)
	}
	if a.shelf.skips != 1 || a.acts() != 1 {
		t.Errorf("%d skips, %d acts", a.shelf.skips, a.acts())
	}
}

func compact(body []byte) []byte {
	var b bytes.Buffer
	_ = json.Compact(&b, body)
	return b.Bytes()
}

func TestOfManyEqualWritesAtOnceOneIsDone(t *testing.T) {
	a := newAPI(t)
	handlers := []http.Handler{}
	for range 4 { // processes
		a.restart()
		handlers = append(handlers, a.handler)
	}
	var all, gate sync.WaitGroup
	gate.Add(12) // nobody begins before all have seen that nobody has begun
	a.shelf.gate = &gate
	for i := range 12 {
		all.Go(func() {
			r := httptest.NewRequest("POST", skipPath, strings.NewReader(skipReason))
			r.Header = http.Header{"Authorization": {"Bearer " + operator}, "Content-Type": {"application/json"}, "X-Request-Id": {"r-1"}}
			w := httptest.NewRecorder()
			handlers[i%4].ServeHTTP(w, r)
			if w.Code != 200 && (w.Code != 409 || w.Header().Get("Retry-After") == "") {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
	all.Wait()
	if a.shelf.skips != 1 || a.acts() != 1 {
		t.Errorf("%d skips, %d acts", a.shelf.skips, a.acts())
	}
}

func TestAWriteThatFailedMayBeTriedAgain(t *testing.T) {
	a := newAPI(t)
	a.shelf.fail = fmt.Errorf("no broker: %w", context.DeadlineExceeded)
	if got := a.skip("r-1", skipReason); got.status != 503 || got.code != "timeout" {
		t.Errorf("%+v", got)
	}
	a.shelf.fail = nil
	a.log.down = io.ErrUnexpectedEOF
	if got := a.skip("r-1", skipReason); got.status != 500 || !strings.HasPrefix(got.detail, "nothing was done, because it cannot be written down first: ") || a.shelf.skips != 0 {
		t.Errorf("%+v", got)
	}
	a.log.down = nil
	if got := a.skip("r-1", skipReason); got.status != 200 || a.shelf.skips != 1 {
		t.Errorf("%+v", got)
	}
}

func TestWhatIsWrongWithARequestIsOneSentenceAndChangesNothing(t *testing.T) {
	a := newAPI(t)
	long := strings.Repeat("x", 129)
	for want, got := range map[string]answer{
		"400 request_id_missing":      a.ask("POST", skipPath, operator, skipReason, jsonType),
		"400 request_id_invalid":      a.skip("a b", skipReason),
		"400 request_id_invalid ":     a.skip(long, skipReason),
		"400 request_id_invalid  ":    a.skip("r-1", skipReason, "X-Request-ID: r-0"),
		"415 not_json":                a.ask("POST", skipPath, operator, skipReason, "X-Request-ID: r-1"),
		"415 not_json ":               a.ask("POST", skipPath, operator, skipReason, "X-Request-ID: r-1", "Content-Type: text/plain"),
		"400 body_invalid":            a.skip("r-1", ``),
		"400 body_invalid ":           a.skip("r-1", `{"reason":"x"`),
		"400 body_invalid  ":          a.skip("r-1", `{"reason":7}`),
		"400 body_invalid   ":         a.skip("r-1", `{"reason":"x","why":"y"}`),
		"400 body_invalid    ":        a.skip("r-1", `{"reason":"x"} {}`),
		"400 reason_missing":          a.skip("r-1", `{"reason":" "}`),
		"413 body_too_large":          a.skip("r-1", `{"reason":"`+strings.Repeat("x", bodyBytes)+`"}`),
		"412 changed":                 a.skip("r-1", skipReason, `If-Match: "0000000000000000"`),
		"404 no_letter":               a.ask("POST", "/v1/dlq/search-9/skip", operator, skipReason, jsonType, "X-Request-ID: r-1"),
		"404 no_letter ":              a.ask("GET", "/v1/dlq/search-9", operator, ""),
		"404 not_found":               a.ask("GET", "/v1/nothing", operator, ""),
		"404 not_found ":              a.ask("POST", "/v1/dlq/search-1/skip/more", operator, ""),
		"405 method_not_allowed":      a.ask("DELETE", "/v1/dlq/search-1", operator, ""),
		"405 method_not_allowed ":     a.ask("GET", skipPath, operator, ""),
		"400 parameter_unknown":       a.ask("GET", "/v1/dlq?tabel=x", operator, ""),
		"400 parameter_unknown ":      a.ask("GET", "/v1/dlq/search-1?x=y", operator, ""),
		"400 parameter_unknown  ":     a.ask("GET", "/v1/dlq/groups?limit=1", operator, ""),
		"400 parameter_invalid":       a.ask("GET", "/v1/dlq?sink=cash", operator, ""),
		"400 parameter_invalid ":      a.ask("GET", "/v1/dlq?table=a.b&table=c.d", operator, ""),
		"400 parameter_invalid  ":     a.ask("GET", "/v1/dlq?limit=0", operator, ""),
		"400 parameter_invalid   ":    a.ask("GET", "/v1/dlq?limit=1001", operator, ""),
		"400 parameter_unknown    ":   a.ask("GET", "/v1/dlq/preview?cursor=x", operator, ""),
		"400 parameter_invalid     ":  a.ask("GET", "/v1/dlq/preview?mode=both", operator, ""),
		"400 parameter_invalid      ": a.ask("GET", "/v1/dlq/preview?limit=0", operator, ""),
		"400 parameter_invalid    ":   a.ask("GET", "/v1/dlq/groups?since=monday", operator, ""),
		"400 cursor_invalid":          a.ask("GET", "/v1/dlq?cursor=x", operator, ""),
	} {
		if has := fmt.Sprint(got.status, " ", got.code); has != strings.TrimSpace(want) || strings.Contains(got.detail, "\n") {
			t.Errorf("%s (%s), want %s", has, got.detail, want)
		}
	}
	if got := a.ask("DELETE", "/v1/dlq/search-1", operator, ""); got.header.Get("Allow") != "GET, HEAD, PATCH" {
		t.Errorf("Allow is %q", got.header.Get("Allow"))
	}
	if a.shelf.skips != 0 || a.acts() != 0 {
		t.Errorf("%d skips, %d acts", a.shelf.skips, a.acts())
	}
}

func TestALetterThatChangedMeanwhileIsNotSkipped(t *testing.T) {
	a := newAPI(t)
	got := a.ask("GET", "/v1/dlq/search-1", viewer, "")
	etag := got.header.Get("ETag")
	if got.status != 200 || etag == "" || !strings.Contains(string(got.body), `"record_value": "\ufffd"`) {
		t.Fatalf("%+v %s", got, got.body)
	}
	if got := a.ask("GET", "/v1/dlq/search-1", viewer, "", "If-None-Match: "+etag); got.status != 304 || len(got.body) > 0 {
		t.Errorf("%+v", got)
	}
	a.shelf.letters[1].Retries++
	if got := a.skip("r-1", skipReason, "If-Match: "+etag); got.status != 412 || a.shelf.skips != 0 {
		t.Errorf("%+v", got)
	}
	a.shelf.letters[1].Retries--
	if got := a.skip("r-1", skipReason, "If-Match: W/"+etag); got.status != 412 {
		t.Errorf("a weak one counts: %+v", got)
	}
	if got := a.skip("r-1", skipReason, `If-Match: "0", `+etag); got.status != 200 || a.shelf.skips != 1 {
		t.Errorf("%+v", got)
	}
}

func TestPagesHoldEveryLetterOnce(t *testing.T) {
	a := newAPI(t)
	var ids []string
	path := "/v1/dlq?limit=2&class=mapping"
	for next := ""; ; {
		got := a.ask("GET", path+next, viewer, "")
		var page letterPage
		if err := json.Unmarshal(got.body, &page); err != nil || got.status != 200 {
			t.Fatalf("%v %s", err, got.body)
		}
		for _, l := range page.Letters {
			ids = append(ids, l.ID)
		}
		if page.Next == "" {
			break
		}
		// One that was shown is closed meanwhile, which moves no other.
		a.shelf.letters = slices.DeleteFunc(a.shelf.letters, func(l dlq.Letter) bool { return l.ID == page.Letters[0].ID })
		if got := a.ask("GET", "/v1/dlq?limit=2&class=key&cursor="+page.Next, viewer, ""); got.code != "cursor_invalid" || !strings.Contains(got.detail, "other parameters") {
			t.Errorf("%+v", got)
		}
		next = "&cursor=" + page.Next
	}
	if diff := cmp.Diff([]string{"search-0", "search-1", "search-2", "search-3", "search-4"}, ids); diff != "" {
		t.Error(diff)
	}
	if a.shelf.asked.Class != "mapping" {
		t.Errorf("asked for %+v", a.shelf.asked)
	}
}

func TestWhoAsksTooOftenWaitsAndNobodyElse(t *testing.T) {
	a := newAPI(t)
	for range rateBurst {
		if got := a.ask("GET", "/v1/nothing", viewer, ""); got.status != 404 {
			t.Fatalf("%+v", got)
		}
	}
	for got := (answer{}); got.status != 429; got = a.ask("GET", "/v1/nothing", viewer, "") {
		if got.status != 0 && got.status != 404 {
			t.Fatalf("%+v", got)
		}
		if got.status == 429 && got.header.Get("Retry-After") != "1" {
			t.Errorf("%+v", got)
		}
	}
	if got := a.ask("GET", "/v1/dlq", operator, ""); got.status != 200 {
		t.Errorf("%+v", got)
	}
	var l limits
	now := time.Now()
	for range rateBurst {
		l.take("x", now)
	}
	if wait := l.take("x", now); wait <= 0 || wait > time.Second/ratePerSecond+time.Millisecond {
		t.Errorf("wait is %s", wait)
	}
	if wait := l.take("x", now.Add(time.Second/ratePerSecond+time.Millisecond)); wait != 0 {
		t.Errorf("wait is %s", wait)
	}
}

// Of one holder few requests are looked after at once, however long their answers are not taken; what is one more waits
// for its turn and not for long, and other holders are not concerned.
func TestFewRequestsOfAHolderAreLookedAfterAtOnce(t *testing.T) {
	a := newAPI(t)
	synctest.Test(t, func(t *testing.T) {
		var gate, all sync.WaitGroup
		gate.Add(workAtOnce + 1)
		a.shelf.gate = &gate
		ask := func(token string) int {
			r := httptest.NewRequest("GET", "/v1/dlq", nil)
			r.Header.Set("Authorization", "Bearer "+token)
			w := httptest.NewRecorder()
			a.handler.ServeHTTP(w, r)
			return w.Code
		}
		asked := func(token string, want int) {
			all.Go(func() {
				if code := ask(token); code != want {
					t.Errorf("%s: %d, want %d", token, code, want)
				}
			})
		}
		for range workAtOnce {
			asked(viewer, 200)
		}
		synctest.Wait()
		if code := ask(viewer); code != 429 {
			t.Errorf("one more: %d", code)
		}
		asked(operator, 200) // and the gate opens
		all.Wait()
		a.shelf.gate = nil
		asked(viewer, 200)
		all.Wait()
	})
}

func TestARouteThatWritesWithoutAnActIsABug(t *testing.T) {
	for _, r := range []Route{
		{Method: "POST", Path: "/v1/x", Read: func(context.Context, *Request) (any, error) { return nil, nil }},
		{Method: "POST", Path: "/v1/x", Write: func(context.Context, *Request) (*Work, error) { return nil, nil }},
		{Method: "GET", Path: "/v1/x", Act: "x", Write: func(context.Context, *Request) (*Work, error) { return nil, nil }},
		{Method: "GET", Path: "/v1/x"},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v is served", r)
				}
			}()
			(&Server{}).Handler(r)
		}()
	}
}

// What the document says of the answers is true of real ones, and it says something of
// every operation.
func TestTheDocumentIsTrueOfTheAnswers(t *testing.T) {
	a := newAPI(t)
	a.shelf.letters[2].GTID, a.shelf.letters[3].Fingerprint = "g:1", "other"
	raw := a.ask("GET", "/v1/openapi.json", viewer, "").body
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	check := func(method, path, status, kind string, body []byte) {
		t.Helper()
		at := fmt.Sprintf("openapi.json#/paths/%s/%s/responses/%s/content/%s/schema", strings.ReplaceAll(path, "/", "~1"), method, status, strings.ReplaceAll(kind, "/", "~1"))
		at = strings.NewReplacer("{", "%7B", "}", "%7D").Replace(at)
		s, err := c.Compile(at)
		if err != nil {
			t.Errorf("%s %s: %v", method, path, err)
			return
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
		if err == nil {
			err = s.Validate(value)
		}
		if err != nil {
			t.Errorf("%s %s %s: %v\n%s", method, path, status, err, body)
		}
	}
	const ok, bad = "application/json", "application/problem+json"
	check("get", "/v1/dlq", "200", ok, a.ask("GET", "/v1/dlq?limit=3", viewer, "").body)
	check("get", "/v1/dlq/groups", "200", ok, a.ask("GET", "/v1/dlq/groups", viewer, "").body)
	check("get", "/v1/dlq/preview", "200", ok, a.ask("GET", "/v1/dlq/preview?limit=2", viewer, "").body)
	server := a.serve(time.Minute)
	check("post", "/v1/dlq/import", "200", ok, a.importing(server, "i-1", importPath+"&dry_run=true", "letter 8\n").body)
	check("post", "/v1/dlq/import", "422", bad, a.importing(server, "i-1", importPath, "x\n").body)
	check("get", "/v1/dlq/{id}", "200", ok, a.ask("GET", "/v1/dlq/search-1", viewer, "").body)
	check("get", "/v1/dlq/{id}", "404", bad, a.ask("GET", "/v1/dlq/search-9", viewer, "").body)
	check("patch", "/v1/dlq/{id}", "428", bad, a.ask("PATCH", patchPath, operator, patchBody, patchType, "X-Request-ID: p-0").body)
	check("patch", "/v1/dlq/{id}", "422", bad, a.ask("PATCH", patchPath, operator, "[]", patchType, "X-Request-ID: p-0", "If-Match: *").body)
	check("patch", "/v1/dlq/{id}", "200", ok, a.ask("PATCH", patchPath, operator, patchBody, patchType, "X-Request-ID: p-1", "If-Match: *").body)
	check("post", "/v1/dlq/{id}/skip", "412", bad, a.skip("r-0", skipReason, `If-Match: "0"`).body)
	check("post", "/v1/dlq/skip", "409", bad, a.post("/v1/dlq/skip", "r-4", `{"all": true, "count": 1, "reason": "r"}`).body)
	check("post", "/v1/dlq/skip", "200", ok, a.post("/v1/dlq/skip?dry_run=true", "r-4", `{"all": true}`).body)
	check("post", "/v1/dlq/{id}/skip", "200", ok, a.skip("r-1", skipReason).body)
	replayed := a.post("/v1/dlq/replay", "r-2", `{"filter": {"sink": "search"}, "ids": ["search-2"], "rate": 5, "canary": 1, "reason": "r"}`)
	check("post", "/v1/dlq/replay", "200", ok, replayed.body)
	job := a.job(replayed)
	check("get", "/v1/dlq/jobs", "200", ok, a.ask("GET", "/v1/dlq/jobs", viewer, "").body)
	check("get", "/v1/dlq/jobs/{id}", "200", ok, a.ask("GET", "/v1/dlq/jobs/"+job.ID, viewer, "").body)
	check("post", "/v1/dlq/jobs/{id}/cancel", "200", ok, a.post("/v1/dlq/jobs/"+job.ID+"/cancel", "r-3", `{"reason": "r"}`).body)

	var paths struct {
		Paths map[string]map[string]struct {
			OperationID, Summary, Description string
			Parameters                        []struct{ Name, In, Description string }
		}
	}
	if err := json.Unmarshal(raw, &paths); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for path, operations := range paths.Paths {
		for method, op := range operations {
			if op.OperationID == "" || op.Summary == "" || op.Description == "" || seen[op.OperationID] {
				t.Errorf("%s %s: %+v", method, path, op)
			}
			seen[op.OperationID] = true
			for _, p := range op.Parameters {
				if p.Description == "" {
					t.Errorf("%s %s: parameter %s has no description", method, path, p.Name)
				}
			}
		}
	}
	for _, r := range append(LetterRoutes(a.shelf), JobRoutes(a.shelf, a.jobs)...) {
		if !seen[r.ID] {
			t.Errorf("%s is not in the document", r.ID)
		}
	}
}

func TestAReplayIsPreviewedForTheOldestLetters(t *testing.T) {
	a := newAPI(t)
	for path, want := range map[string]string{
		"/v1/dlq/preview":                        "5 0 resync true",
		"/v1/dlq/preview?limit=2&mode=resync":    "2 3 resync true",
		"/v1/dlq/preview?mode=payload&class=key": "5 0 resync false",
	} {
		got := a.ask("GET", path, viewer, "")
		var answer prospects
		if err := json.Unmarshal(got.body, &answer); err != nil || got.status != 200 || len(answer.Letters) == 0 {
			t.Fatalf("%s: %d %s", path, got.status, got.body)
		}
		first := answer.Letters[0]
		if is := fmt.Sprintf("%d %d %s", len(answer.Letters), answer.More, first.Result.Reason); is != want || first.ID != "search-0" || first.Result.State != dlq.WouldApply {
			t.Errorf("%s: %s, %+v; want %s", path, is, first, want)
		}
	}
	if a.shelf.asked.Class != "key" && a.shelf.asked.Class != "" {
		t.Errorf("%+v", a.shelf.asked)
	}
}

const patchPath, patchBody, patchType = "/v1/dlq/search-1?reason=ticket", `[{"op":"add","path":"/n","value":1}]`, "Content-Type: application/json-patch+json"

func TestALetterIsPatchedAsItWasRead(t *testing.T) {
	a := newAPI(t)
	ask := func(path, body string, headers ...string) answer {
		return a.ask("PATCH", path, operator, body, append(headers, "X-Request-ID: r-1")...)
	}
	for want, got := range map[string]answer{
		"415 not_json":          ask(patchPath, patchBody, jsonType, "If-Match: *"),
		"428 if_match_missing":  ask(patchPath, patchBody, patchType),
		"412 changed":           ask(patchPath, patchBody, patchType, `If-Match: "0"`),
		"400 reason_missing":    ask("/v1/dlq/search-1", patchBody, patchType, "If-Match: *"),
		"400 parameter_unknown": ask("/v1/dlq/search-1?reson=x", patchBody, patchType, "If-Match: *"),
		"404 no_letter":         ask("/v1/dlq/search-9?reason=x", patchBody, patchType, "If-Match: *"),
		"422 patch_refused":     ask(patchPath, "[]", patchType, "If-Match: *"),
		"403 role_viewer":       a.ask("PATCH", patchPath, viewer, patchBody, patchType, "X-Request-ID: r-1", "If-Match: *"),
	} {
		var p Problem
		if err := json.Unmarshal(got.body, &p); err != nil || fmt.Sprintf("%d %s", got.status, p.Code) != want {
			t.Errorf("%d %s; want %s", got.status, got.body, want)
		}
	}
	etag := a.ask("GET", "/v1/dlq/search-1", viewer, "").header.Get("ETag")
	would := ask("/v1/dlq/search-1?dry_run=true", patchBody, patchType, "If-Match: "+etag)
	if text := string(compact(would.body)); would.status != 200 || would.header.Get("ETag") != etag || !strings.Contains(text, `"dry_run":true`) || !strings.Contains(text, `"field":"n"`) || !strings.Contains(text, `"would_payload":{"state":"would be applied"`) || a.shelf.letters[1].Patched != nil || a.acts() != 0 {
		t.Errorf("%+v %s", would, text)
	}
	if got := ask("/v1/dlq/search-1?dry_run=true", "[]", patchType, "If-Match: "+etag); got.code != "patch_refused" {
		t.Errorf("%+v", got)
	}
	var after string
	for _, again := range []string{"", "true"} {
		got := ask(patchPath, patchBody, patchType, "If-Match: "+etag)
		if got.status != 200 || !strings.Contains(strings.ReplaceAll(string(got.body), " ", ""), `"field":"n"`) || got.header.Get("Idempotent-Replayed") != again {
			t.Errorf("%d %s", got.status, got.body)
		}
		after = got.header.Get("ETag")
		if now := a.ask("GET", "/v1/dlq/search-1", viewer, "").header.Get("ETag"); after == "" || after != now {
			t.Errorf("the answer has the ETag %s, and the letter %s", after, now)
		}
	}
	if p := a.shelf.letters[1].Patched; p == nil || p.By != "olga" {
		t.Errorf("%+v", p)
	}
	if now := a.ask("GET", "/v1/dlq/search-1", viewer, "").header.Get("ETag"); now == etag {
		t.Error("the ETag is the same after a patch")
	}
	if got := a.ask("PATCH", patchPath, operator, patchBody, patchType, "X-Request-ID: r-2", "If-Match: "+after); got.status != 200 { // without reading it again
		t.Errorf("%+v", got)
	}
}

// Letters are skipped by a filter once somebody has said how many they are.
func TestLettersAreSkippedTogether(t *testing.T) {
	a := newAPI(t)
	const path = "/v1/dlq/skip"
	would := a.post(path+"?dry_run=true", "a", `{"filter": {"sink": "search"}}`)
	if string(compact(would.body)) != `{"dry_run":true,"skipped":5,"ids":["search-0","search-1","search-2","search-3","search-4"],"more":0}` {
		t.Errorf("%s", would.body)
	}
	for body, want := range map[string]string{
		`{"reason": "r"}`:              "400 nothing_chosen nothing is chosen; send a filter, ids, or \"all\": true",
		`{"all": true, "reason": "r"}`: "400 count_missing count is missing; say how many letters these are, as dry_run=true counts them",
		`{"ids": ["search-1"], "filter": {"key": "1"}, "reason": "r"}`: "400 count_missing ",
		`{"all": true, "count": 5}`:                                    "400 reason_missing reason is missing; say why the rows may stay stale",
		`{"all": true, "count": 5, "reason": " "}`:                     "400 reason_missing ",
		`{"all": true, "count": 4, "reason": "r"}`:                     "409 other_count the letters that are chosen are 5 by now, and not 4; none was skipped",
		`{"all": true, "count": 0, "reason": "r"}`:                     "409 other_count ",
		`{"filter": {"key": "99"}, "count": 1, "reason": "r"}`:         "409 no_letters ",
		`{"filter": {"sink": "cash"}, "count": 1, "reason": "r"}`:      `400 parameter_invalid sink: there is no sink "cash"; there are cache, search`,
		`{"ids": ["search-1", "search-9"], "reason": "r"}`:             "404 no_letter no open dead letter that is chosen has the ID search-9",
		`{"ids": ["search-1"], "reason": "r", "dry_run": true}`:        `400 body_invalid the body is not what is asked for: unknown field "dry_run"`,
	} {
		got := a.post(path, "a", body)
		if text := fmt.Sprint(got.status, " ", got.code, " ", got.detail); !strings.HasPrefix(text, want) {
			t.Errorf("%s: %s, want %s", body, text, want)
		}
	}
	if got := a.ask("POST", path, viewer, `{"all": true, "count": 5, "reason": "r"}`, jsonType, "X-Request-ID: a"); got.code != "role_viewer" {
		t.Errorf("%+v", got)
	}
	a.restart()
	if a.shelf.skips != 0 || a.acts() != 0 {
		t.Fatalf("%d skips, %d acts", a.shelf.skips, a.acts())
	}
	first := a.post(path, "b", `{"ids": ["search-1", "search-1"], "reason": "r"}`)
	if first.status != 200 || a.shelf.skips != 1 || !strings.Contains(string(first.body), `"skipped": 1`) {
		t.Errorf("%+v %s", first, first.body)
	}
	a.shelf.halfway = errors.New("no broker")
	if got := a.post(path, "c", `{"all": true, "count": 4, "reason": "r"}`); got.status != 500 || got.detail != "2 of 4 letters are skipped, and then: no broker" {
		t.Errorf("%+v", got)
	}
	a.shelf.halfway = nil
	last := a.post(path, "d", `{"all": true, "count": 2, "reason": "r"}`)
	again := a.post(path, "d", `{"all": true, "count": 2, "reason": "r"}`)
	if last.status != 200 || !bytes.Equal(last.body, again.body) || again.header.Get("Idempotent-Replayed") != "true" || len(a.shelf.letters) != 0 {
		t.Errorf("%+v, %+v", last, again)
	}
	acts, _, _ := audit.List(t.Context(), a.log, "shop", audit.Filter{})
	if got := acts[1]; len(acts) != 3 || got.Outcome != audit.Failed || got.Counts["skipped"] != 2 || acts[0].Filter["ids"] != "search-1,search-1" {
		t.Errorf("%+v", acts)
	}
}
