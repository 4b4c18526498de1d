package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/dlq"
	"lockstep/freshness"
)

// freshAPI is an API of a process that hears of nobody.
func freshAPI(t *testing.T) (*api, *atomic.Pointer[error]) {
	t.Helper()
	a := newAPI(t)
	var silent atomic.Pointer[error]
	fresh := &Freshness{
		Sinks: a.shelf.Sinks,
		Barrier: &freshness.Barrier{
			Hub: &freshness.Hub{}, Metrics: freshness.NewMetrics(prometheus.NewRegistry()), Takes: func(string, string) bool { return true },
			Committed: func(context.Context) (string, error) {
				if err := silent.Load(); err != nil {
					return "", *err
				}
				return "set", nil
			},
		},
		Check: func(ask freshness.Ask) error {
			if ask.Table == "shop.gone" {
				return &dlq.FieldError{Field: "table", Problem: "shop.gone is not captured"}
			}
			return nil
		},
	}
	log := slog.New(slog.DiscardHandler)
	tokens, err := OpenTokens(a.config, log)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Tokens: tokens, Log: log, Metrics: NewMetrics(prometheus.NewRegistry()), Load: &Load{}}
	a.handler = s.Handler(FreshnessRoutes(fresh)...)
	return a, &silent
}

func TestFreshnessIsForViewersAndSaysWhatIsWrongWithAQuestion(t *testing.T) {
	a, _ := freshAPI(t)
	if got := a.ask("GET", "/v1/barrier", "", ""); got.status != http.StatusUnauthorized {
		t.Errorf("without a token: %d", got.status)
	}
	for path, part := range map[string]string{
		"/v1/barrier?sink=nowhere":                     `there is no sink "nowhere"; there are cache, search`,
		"/v1/barrier?table=shop.gone":                  "shop.gone is not captured",
		"/v1/barrier?timeout=soon":                     `timeout: "soon" is no time`,
		"/v1/barrier?timeout=1h":                       "up to 25s",
		"/v1/barrier?timeout=-1s":                      "is no time that can be waited",
		"/v1/barrier?search=yes":                       `search: "yes" is not known; use true or false`,
		"/v1/barrier?sinks=a":                          `the parameter "sinks" is not known`,
		"/v1/freshness/nowhere/shop.items/1":           `there is no sink "nowhere"`,
		"/v1/freshness/search/shop.gone/1":             "shop.gone is not captured",
		"/v1/freshness/search/shop.items/1?wait=1":     `wait: "1" is no time`,
		"/v1/freshness/search/shop.items/1?timeout=1s": `the parameter "timeout" is not known; there are gtid, wait`,
	} {
		if got := a.ask("GET", path, viewer, ""); got.status != http.StatusBadRequest || !strings.Contains(got.detail, part) {
			t.Errorf("%s: %d %q; want %q", path, got.status, got.detail, part)
		}
	}
}

func TestFreshnessAnswersWhenTheTimeIsOver(t *testing.T) {
	a, silent := freshAPI(t)
	got := a.ask("GET", "/v1/barrier?timeout=20ms", viewer, "")
	var b freshness.Answer
	if err := json.Unmarshal(got.body, &b); err != nil || got.status != http.StatusOK || b.Visible || b.GTIDs != "set" || len(b.Sinks) != 2 || len(b.Sinks[0].WaitsFor) != 1 {
		t.Errorf("a barrier: %d %s (%v)", got.status, got.body, err)
	}
	got = a.ask("GET", `/v1/freshness/search/shop.items/%7B%22id%22:1%7D?wait=20ms&gtid=x`, viewer, "")
	var row freshness.Row
	if err := json.Unmarshal(got.body, &row); err != nil || row.State != freshness.RowUnknown || row.GTIDs != "x" || row.Key != `{"id":1}` || len(row.WaitsFor) != 1 {
		t.Errorf("a row: %d %s (%v)", got.status, got.body, err)
	}
	for range 3 * rateBurst { // programs ask at their own pace
		if got := a.ask("GET", "/v1/freshness/search/shop.items/1?wait=0s", viewer, ""); got.status != http.StatusOK {
			t.Fatalf("asked often: %d %s", got.status, got.body)
		}
	}
	refused := errors.New("ask db:3306 what is committed: connection refused")
	silent.Store(&refused)
	if got := a.ask("GET", "/v1/barrier", viewer, ""); got.status != http.StatusServiceUnavailable || got.code != "source_silent" || !strings.Contains(got.detail, "connection refused") {
		t.Errorf("when the source is silent: %d %s", got.status, got.body)
	}
}
