package admin

import (
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"lockstep/audit"
)

func TestProfilesAreForOperatorsAndTheCommandLineIsForNobody(t *testing.T) {
	a := newAPI(t)
	a.handler = a.server.Profiles()
	for _, tc := range []struct {
		method, path, token string
		status              int
		code                string
	}{
		{"GET", "/debug/pprof/heap", "", 401, "token_missing"},
		{"GET", "/debug/pprof/heap", "another-0123456789abcdef", 401, "token_unknown"},
		{"GET", "/debug/pprof/", viewer, 403, "role_viewer"},
		{"GET", "/debug/pprof/goroutine?debug=2", viewer, 403, "role_viewer"},
		{"GET", "/debug/pprof/cmdline", operator, 404, "not_found"},
		{"POST", "/debug/pprof/heap", operator, 404, "not_found"},
		{"GET", "/debug/pprof/", operator, 200, ""},
		{"GET", "/debug/pprof/goroutine?debug=1", operator, 200, ""},
	} {
		got := a.ask(tc.method, tc.path, tc.token, "")
		if got.status != tc.status || got.code != tc.code {
			t.Errorf("%s %s: %+v", tc.method, tc.path, got)
		}
		if tc.status == 200 && !strings.Contains(string(got.body), "goroutine") {
			t.Errorf("%s: %s", tc.path, got.body)
		}
	}
	a.config.Tokens = nil
	a.restart()
	a.handler = a.server.Profiles()
	if got := a.ask("GET", "http://127.0.0.1/debug/pprof/heap", "", ""); got.status != 403 || got.code != "not_writable" {
		t.Errorf("without tokens: %+v", got)
	}
}

func TestTheLevelOfTheLogIsChangedByAnActOfAnOperator(t *testing.T) {
	a := newAPI(t)
	var level slog.LevelVar
	a.handler = a.server.Handler(LevelRoutes(&level)...)
	put := func(token, body, id string) answer {
		t.Helper()
		return a.ask("PUT", "/v1/log-level", token, body, jsonType, "X-Request-ID: "+id)
	}
	if got := put(viewer, `{"level": "debug"}`, "a"); got.code != "role_viewer" {
		t.Errorf("%+v", got)
	}
	for _, body := range []string{`{"level": "loud"}`, `{"level": "DEBUG-4"}`, `{}`} {
		if got := put(operator, body, "b"); got.status != 400 || got.code != "parameter_invalid" || level.Level() != slog.LevelInfo {
			t.Errorf("%s: %+v", body, got)
		}
	}
	got := put(operator, `{"level": "debug", "reason": "to see"}`, "c")
	var done levelDone
	if err := json.Unmarshal(got.body, &done); err != nil || got.status != 200 || done != (levelDone{"debug", "info"}) || level.Level() != slog.LevelDebug {
		t.Errorf("%+v, %v", got, err)
	}
	acts, _, err := audit.List(t.Context(), a.log, "shop", audit.Filter{})
	if err != nil || len(acts) != 1 || acts[0].Act != "log.level" || acts[0].Filter["level"] != "debug" || acts[0].Actor != "olga" || acts[0].Reason != "to see" {
		t.Errorf("%+v, %v", acts, err)
	}
}

// Who has no right token is limited with those of his address alone, and however many addresses
// there are, what is remembered of them is bounded.
func TestWhoIsUnknownIsLimitedByAddress(t *testing.T) {
	a := newAPI(t)
	ask := func(from string) int {
		r, err := http.NewRequest("GET", "/v1/dlq", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = from
		w := &verdict{}
		a.handler.ServeHTTP(w, r)
		return w.code
	}
	for code := 0; code != 429; code = ask("192.0.2.1:1") {
		if code != 0 && code != 401 {
			t.Fatal(code)
		}
	}
	if code := ask("192.0.2.2:1"); code != 401 {
		t.Errorf("from another address: %d", code)
	}
	if got := a.ask("GET", "/v1/dlq", viewer, ""); got.status != 200 {
		t.Errorf("%+v", got)
	}
	var l limits
	now := time.Now()
	for i := range 3 * mostLimits {
		l.take(strconv.Itoa(i), now)
	}
	if n := len(l.all); n != mostLimits+1 {
		t.Errorf("%d are remembered; want %d, and one for all others", n, mostLimits)
	}
	l.take("late", now.Add(time.Minute))
	if n := len(l.all); n > 2 {
		t.Errorf("%d are remembered that have not asked for a minute", n)
	}
}

// Who may not send a body is told so at once, and does not hold the connection with it.
func TestNobodyWaitsForTheBodyOfWhoIsRefused(t *testing.T) {
	a := newAPI(t)
	server := a.serve(15 * time.Second)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "POST /v1/dlq/skip HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 401 ") {
		t.Errorf("%v: %s", err, all)
	}
}
