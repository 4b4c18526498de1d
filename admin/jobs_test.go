package admin

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"lockstep/audit"
	"lockstep/dlq"
)

// post sends a write of the operator.
func (a *api) post(path, id, body string, headers ...string) answer {
	a.t.Helper()
	return a.ask("POST", path, operator, body, append(headers, jsonType, "X-Request-ID: "+id)...)
}

// job is the job of an answer.
func (a *api) job(got answer) (s dlq.JobStatus) {
	a.t.Helper()
	if err := json.Unmarshal(got.body, &s); err != nil || got.status != http.StatusOK {
		a.t.Fatalf("%d %s, %v", got.status, got.body, err)
	}
	return s
}

func (a *api) known() []dlq.JobStatus {
	a.t.Helper()
	list, err := a.jobs.List(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	return list
}

// A replay is asked for once for its request, and what is to be done stands in the audit
// log with who asked, what is chosen and why.
func TestAReplayIsAskedForOnceAndAudited(t *testing.T) {
	a := newAPI(t)
	body := `{"filter": {"sink": "search", "class": "mapping", "until": "2026-11-22T09:00:00+01:00"}, "mode": "payload", "rate": 50, "canary": 10, "reason": "ticket 7"}`
	first := a.job(a.post("/v1/dlq/replay", "a", body))
	again := a.post("/v1/dlq/replay", "a", body)
	if again.header.Get("Idempotent-Replayed") != "true" || a.job(again).ID != first.ID {
		t.Errorf("%s", again.body)
	}
	other := a.job(a.post("/v1/dlq/replay", "b", `{"all": true}`))
	list := a.known()
	if len(list) != 2 || list[0].ID != first.ID || list[1].ID != other.ID || first.ID == other.ID {
		t.Fatalf("%+v", list)
	}
	s := list[0]
	filter := map[string]string{"sink": "search", "class": "mapping", "until": "2026-11-22T08:00:00Z"}
	if s.State != dlq.JobAsked || s.Mode != dlq.Payload || s.Rate != 50 || s.Canary != 10 || s.Reason != "ticket 7" || s.Actor != "olga" || !maps.Equal(s.Filter, filter) {
		t.Errorf("%+v", s)
	}
	if s := list[1]; s.Mode != dlq.Resync || len(s.Filter) != 0 {
		t.Errorf("%+v", s)
	}
	cancelled := a.post("/v1/dlq/jobs/"+first.ID+"/cancel", "c", `{"reason": "the wrong group"}`)
	for _, s := range []dlq.JobStatus{a.job(cancelled), a.known()[0]} {
		if s.CancelledBy != "olga" || s.CancelReason != "the wrong group" {
			t.Errorf("%+v", s)
		}
	}
	acts, _, err := audit.List(t.Context(), a.log, "shop", audit.Filter{})
	if err != nil || len(acts) != 3 {
		t.Fatalf("%+v, %v", acts, err)
	}
	filter["job"], filter["mode"], filter["rate"], filter["canary"] = first.ID, "payload", "50", "10"
	for i, want := range []string{"dlq.replay ticket 7", "dlq.replay ", "dlq.cancel the wrong group"} {
		if got := acts[i]; got.Actor != "olga" || got.Via != "http" || got.Act+" "+got.Reason != want || got.Outcome != audit.Done {
			t.Errorf("%+v", got)
		}
	}
	if !maps.Equal(acts[0].Filter, filter) || acts[2].Filter["job"] != first.ID {
		t.Errorf("%v, %v", acts[0].Filter, acts[2].Filter)
	}
}

func TestWhatIsWrongWithAReplayIsOneSentenceAndChangesNothing(t *testing.T) {
	a := newAPI(t)
	for body, want := range map[string]string{
		`{}`:                                     "400 nothing_chosen nothing is chosen; send a filter, ids, or \"all\": true",
		`{"filter": {}}`:                         "400 nothing_chosen nothing is chosen; send a filter, ids, or \"all\": true",
		`{"al": true}`:                           `400 body_invalid the body is not what is asked for: unknown field "al"`,
		`{"all": true, "mode": "copy"}`:          `400 parameter_invalid mode: "copy" is not known; use resync to read the rows again from MySQL, or payload to send what was recorded`,
		`{"all": true, "rate": -1}`:              "400 parameter_invalid rate: -1 is no number of letters a second; use 1 to 1000000, or 0 for as fast as it goes",
		`{"all": true, "canary": -1}`:            "400 parameter_invalid canary: -1 is no number of letters; use 1 to 1000000, or 0 for none",
		`{"filter": {"sink": "cash"}}`:           `400 parameter_invalid sink: there is no sink "cash"; there are cache, search`,
		`{"filter": {"sin": "search"}}`:          "400 parameter_invalid sin: is no field of a dead letter to choose by; there are ",
		`{"filter": {"key": "999"}}`:             "409 no_letters no open letter matches the filter; GET /v1/dlq lists those there are",
		`{"filter": {"table": "shop.gone"}}`:     "400 parameter_invalid table: shop.gone is not captured",
		`{"filter": {"fingerprint": "c0ffee"}}`:  `400 parameter_invalid fingerprint: "c0ffee" is not 12 hexadecimal digits; `,
		`{"ids": ["search-9"]}`:                  "404 no_letter no open dead letter that is chosen has the ID search-9",
		`{"ids": ["search-1", "x"]}`:             "404 no_letter no open dead letter that is chosen has the ID x",
		`{"filter": {"since": "monday"}}`:        `400 parameter_invalid since: "monday" is no time; `,
		`{"all": true, "filter": {"table": ""}}`: "400 parameter_invalid table: is empty; leave it out to choose all",
	} {
		got := a.post("/v1/dlq/replay", "a", body)
		if text := fmt.Sprint(got.status, " ", got.code, " ", got.detail); !strings.HasPrefix(text, want) {
			t.Errorf("%s: %s, want %s", body, text, want)
		}
		a.restart()
	}
	for path, want := range map[string]string{
		"GET /v1/dlq/jobs/nowhere":         "404 no_job no replay has the ID nowhere",
		"GET /v1/dlq/jobs?x=1":             `400 parameter_unknown the parameter "x" is not known; there are state, limit, cursor`,
		"GET /v1/dlq/jobs?state=open":      `400 parameter_invalid state: "open" is not known; use one of [asked running done stopped cancelled failed]`,
		"GET /v1/dlq/jobs?limit=0":         `400 parameter_invalid limit: "0" is not 1 to 1000`,
		"GET /v1/dlq/jobs?cursor=x":        "400 cursor_invalid the cursor is none that a page gave; begin without one",
		"POST /v1/dlq/jobs/nowhere/cancel": "404 no_job no replay has the ID nowhere",
		"POST /v1/dlq/replay?x=1":          `400 parameter_unknown the parameter "x" is not known; there is none here`,
	} {
		method, path, _ := strings.Cut(path, " ")
		got := a.ask(method, path, operator, `{"reason": ""}`, jsonType, "X-Request-ID: b")
		if text := fmt.Sprint(got.status, " ", got.code, " ", got.detail); text != want {
			t.Errorf("%s %s: %s, want %s", method, path, text, want)
		}
	}
	if got := a.ask("POST", "/v1/dlq/replay", viewer, `{"all": true}`, jsonType, "X-Request-ID: c"); got.code != "role_viewer" {
		t.Errorf("a viewer gets %d %s", got.status, got.code)
	}
	if len(a.known()) != 0 || a.acts() != 0 {
		t.Errorf("%+v", a.known())
	}
}

// Pages hold every replay once, oldest first, also when one is asked for meanwhile.
func TestReplaysAreListedByStateAndInPages(t *testing.T) {
	a := newAPI(t)
	var asked, listed []string
	for n := range 5 {
		asked = append(asked, a.job(a.post("/v1/dlq/replay", fmt.Sprint("r-", n), `{"all": true}`)).ID)
	}
	for next := ""; ; {
		got := a.ask("GET", "/v1/dlq/jobs?limit=2&state=asked"+next, viewer, "")
		var page jobPage
		if err := json.Unmarshal(got.body, &page); err != nil || len(page.Jobs) == 0 || len(page.Jobs) > 2 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		for _, s := range page.Jobs {
			listed = append(listed, s.ID)
		}
		if page.Next == "" {
			break
		}
		if next = "&cursor=" + page.Next; len(listed) == 2 {
			asked = append(asked, a.job(a.post("/v1/dlq/replay", "later", `{"all": true}`)).ID)
		}
	}
	if !slices.Equal(listed, asked) {
		t.Errorf("%q are listed of %q", listed, asked)
	}
	if got := a.ask("GET", "/v1/dlq/jobs?state=failed", viewer, ""); string(compact(got.body)) != `{"jobs":[]}` {
		t.Errorf("%s", got.body)
	}
}

func TestAJobHasAnETag(t *testing.T) {
	a := newAPI(t)
	s := a.job(a.post("/v1/dlq/replay", "a", `{"all": true}`))
	path := "/v1/dlq/jobs/" + s.ID
	etag := a.ask("GET", path, viewer, "").header.Get("ETag")
	if got := a.ask("GET", path, viewer, "", "If-None-Match: "+etag); got.status != http.StatusNotModified {
		t.Errorf("unchanged: %d", got.status)
	}
	if got := a.post(path+"/cancel", "b", `{}`, `If-Match: "0"`); got.code != "changed" || a.known()[0].CancelledBy != "" {
		t.Errorf("%d %s", got.status, got.detail)
	}
	if got := a.post(path+"/cancel", "c", `{}`, "If-Match: "+etag); got.status != http.StatusOK {
		t.Errorf("%d %s", got.status, got.detail)
	}
	if got := a.ask("GET", path, viewer, "", "If-None-Match: "+etag); got.status != http.StatusOK {
		t.Errorf("changed: %d", got.status)
	}
}
