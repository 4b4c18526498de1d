package admin

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
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/route"
)

// gateways is a board of one table, shop.orders, in the sinks search and cache.
type gateways struct {
	*route.Board
	now      time.Time // of the board
	starting bool
	stay     chan string // the paths of requests that are meant to last
}

var gatewayConfig = func() route.Config {
	c := route.DefaultConfig()
	c.TTL = 3 * time.Second
	return c
}()

func newGateways() *gateways {
	return &gateways{route.NewBoard(func(string) route.Config { return gatewayConfig }, route.NewMetrics(prometheus.NewRegistry())), time.Now(), false, make(chan string, 10)}
}

func (g *gateways) Ready() bool { return !g.starting }

func (g *gateways) Tables() []string { return []string{"shop.orders"} }

func (g *gateways) Answer(table string) (route.Advice, bool) {
	return g.Board.Answer(time.Now(), table, []string{"cache", "search"}), table == "shop.orders"
}

// pass lets time pass in which search is as it is told and cache is fine.
func (g *gateways) pass(d time.Duration, search route.Report) {
	for range d / (250 * time.Millisecond) {
		g.now = g.now.Add(250 * time.Millisecond)
		g.Capture(g.now)
		for _, sink := range []string{"search", "cache"} {
			r := route.Report{}
			if sink == "search" {
				r = search
			}
			r.Process, r.Of, r.Partitions, r.Known = "p1", 1, []int{0}, true
			g.Hear(g.now, route.Place{Sink: sink, Table: "shop.orders"}, r)
		}
		g.Lap(g.now)
	}
}

// serve is the API with a viewer's token over a real connection.
func (g *gateways) serve(t *testing.T, open bool) (url string) {
	t.Helper()
	tokens, err := OpenTokens(Config{Tokens: []Token{{"victor", Viewer, tokenFile(t, viewer, 0o600)}}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Tokens: tokens, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()), OpenRoute: open, Load: &Load{}, Stay: func(r *http.Request) { g.stay <- r.URL.Path }}
	server := httptest.NewUnstartedServer(s.Handler(GatewayRoutes(g)...))
	// Less than some tests wait, as the real one has it.
	server.Config.ReadTimeout, server.Config.WriteTimeout = 500*time.Millisecond, 800*time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}

func get(t *testing.T, url string, headers ...string) (*http.Response, route.Advice) {
	t.Helper()
	res, body := fetch(t, url, headers...)
	var a route.Advice
	if res.StatusCode == http.StatusOK {
		if err := json.Unmarshal(body, &a); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
	}
	return res, a
}

func fetch(t *testing.T, url string, headers ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+viewer)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if r.Header.Set(name, value); value == "" {
			r.Header.Del(name)
		}
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, body
}

func TestAGatewayIsToldWhereToReadForWhomAndUntilWhen(t *testing.T) {
	g := newGateways()
	url := g.serve(t, false) + "/v1/route/shop.orders"
	if _, a := get(t, url); len(a.Sinks) != 2 || a.Sinks[1].Read != route.ReadMySQL || a.Sinks[1].State != route.Degraded || a.Sinks[1].Why == "" {
		t.Errorf("before anything is known: %+v", a)
	}
	g.pass(12*time.Second, route.Report{})
	_, a := get(t, url)
	search := a.Sinks[1]
	if search.Sink != "search" || search.Read != route.ReadSplit || search.Share != 1 || search.Cause != route.Returning {
		t.Errorf("when it returns: %+v", search)
	}
	if in := a.UsableUntil.Sub(a.At); in != 3*time.Second || a.UsableSeconds != 3 || time.Since(a.At) > time.Minute {
		t.Errorf("usable for %s, %v s, from %s on", in, a.UsableSeconds, a.At)
	}
	one, other := "", ""
	for i := range 10_000 {
		if key := fmt.Sprint(i); route.Takes(key, 1) {
			one = key
		} else if route.Takes(key, 10) {
			other = key
		}
	}
	reads := func(key string) string {
		_, a := get(t, url+"?sink=search&key="+key)
		if len(a.Sinks) != 1 || a.Sinks[0].Sink != "search" {
			t.Fatalf("asked for search: %+v", a)
		}
		return a.Sinks[0].Read
	}
	if first, later := reads(one), reads(other); first != route.ReadSink || later != route.ReadMySQL {
		t.Errorf("at 1 %%: %s reads from %s and %s from %s", one, first, other, later)
	}
	g.pass(10*time.Second, route.Report{})
	if first, later := reads(one), reads(other); first != route.ReadSink || later != route.ReadSink {
		t.Errorf("at 10 %%: %s reads from %s and %s from %s", one, first, other, later)
	}
	g.pass(time.Second, route.Report{Down: "connection refused", Open: true})
	_, a = get(t, url)
	if d := a.Sinks[1]; d.Read != route.ReadMySQL || d.Share != 0 || d.Why != "connection refused" || strings.Join(d.Stops, " ") != "deletes repairs" {
		t.Errorf("when it breaks: %+v", d)
	}
	if d := a.Sinks[0]; d.Read != route.ReadSplit {
		t.Errorf("the other sink, when one breaks: %+v", d)
	}
	if _, body := fetch(t, strings.TrimSuffix(url, "/shop.orders")); !strings.Contains(string(body), `"table": "shop.orders"`) {
		t.Errorf("all tables: %s", body)
	}
	g.starting = true
	if res, body := fetch(t, url); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), `"starting"`) {
		t.Errorf("before it knows: %s %s", res.Status, body)
	}
	g.starting = false
	for query, want := range map[string]string{
		"/v1/route/shop.carts":            "the table \"shop.carts\" is not captured",
		"/v1/route/shop.orders?sink=none": "does not go to a sink \"none\"",
		"/v1/route/shop.orders?wait=26s":  "is no time from 0s to 25s",
		"/v1/route/shop.orders?wait=soon": "is no time from 0s to 25s",
		"/v1/route?key=1":                 "is not known; there are wait",
	} {
		for _, accept := range []string{"Accept: application/json", "Accept: text/event-stream"} {
			if res, body := fetch(t, strings.Split(url, "/v1/")[0]+query, accept); res.StatusCode < 400 || !strings.Contains(strings.ReplaceAll(string(body), `\"`, `"`), want) {
				t.Errorf("%s answers %s: %s", query, res.Status, body)
			}
		}
	}
}

// Who waits is told at once of a change of what is to be done, and of nothing else; when
// there is none the answer that he has goes on being usable.
func TestALongPollEndsWithTheNextChange(t *testing.T) {
	g := newGateways()
	url := g.serve(t, false) + "/v1/route/shop.orders?sink=search"
	g.pass(50*time.Second, route.Report{})
	res, a := get(t, url)
	etag := res.Header.Get("ETag")
	if a.Sinks[0].Read != route.ReadSink || etag == "" {
		t.Fatalf("%+v, ETag %q", a, etag)
	}
	g.pass(time.Second, route.Report{Behind: 1100 * time.Millisecond})
	began := time.Now()
	res, _ = get(t, url+"&wait=1s", "If-None-Match: "+etag)
	if took := time.Since(began); res.StatusCode != http.StatusNotModified || took < time.Second || took > 30*time.Second || res.Header.Get(UsableHeader) != "3" {
		t.Errorf("without a change: %s after %s, usable for %s", res.Status, took, res.Header.Get(UsableHeader))
	}
	type news struct {
		status int
		answer route.Advice
		after  time.Time
	}
	came := make(chan news, 1)
	go func() {
		res, a := get(t, url+"&wait=20s", "If-None-Match: "+etag)
		came <- news{res.StatusCode, a, time.Now()}
	}()
	select {
	case n := <-came:
		t.Fatalf("it does not wait: %+v", n)
	case <-time.After(1500 * time.Millisecond): // longer than the server's timeouts
	}
	broke := time.Now()
	g.pass(250*time.Millisecond, route.Report{Down: "connection refused", Open: true})
	n := <-came
	if took := n.after.Sub(broke); n.status != http.StatusOK || n.answer.Sinks[0].Read != route.ReadMySQL || took > 10*time.Second {
		t.Errorf("after a break: %d %+v within %s", n.status, n.answer, took)
	}
}

// A stream of events begins with the present, tells of every change, and often enough that
// the last event is usable.
func TestAStreamOfEventsTellsOfEveryChange(t *testing.T) {
	g := newGateways()
	url := g.serve(t, false) + "/v1/route/shop.orders?sink=search"
	g.pass(50*time.Second, route.Report{})
	get(t, url)
	ctx, leave := context.WithTimeout(t.Context(), 2*time.Minute)
	defer leave()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+viewer)
	r.Header.Set("Accept", "text/event-stream")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s, %s", res.Status, res.Header)
	}
	lines := bufio.NewScanner(res.Body)
	event := func() (id string, a route.Advice) {
		t.Helper()
		for lines.Scan() {
			field, value, _ := strings.Cut(lines.Text(), ": ")
			switch field {
			case "id":
				id = value
			case "data":
				if err := json.Unmarshal([]byte(value), &a); err != nil {
					t.Fatalf("%v: %s", err, value)
				}
			case "":
				return id, a
			}
		}
		t.Fatalf("the stream has ended: %v", lines.Err())
		return
	}
	first, a := event()
	if a.Sinks[0].Read != route.ReadSink {
		t.Errorf("the first event: %+v", a)
	}
	if len(g.stay) != 1 {
		t.Errorf("%d requests are meant to last; want the stream, and not what is answered at once", len(g.stay))
	}
	again, b := event() // longer than the server's timeouts
	if again != first || !b.UsableUntil.After(a.UsableUntil) || !b.At.Before(a.UsableUntil) {
		t.Errorf("the next event: %s after %s, at %s; the last was usable until %s", again, first, b.At, a.UsableUntil)
	}
	g.pass(250*time.Millisecond, route.Report{Down: "connection refused", Open: true})
	if id, c := event(); id == first || c.Sinks[0].Read != route.ReadMySQL || c.Sinks[0].State != route.Degraded {
		t.Errorf("the event of a break: %s %+v", id, c)
	}
}

// Only where it is configured a gateway needs no token, and for nothing but routes; a wrong
// one is refused there, too.
func TestARouteIsOpenOnlyWhereItIsSaidToBe(t *testing.T) {
	g := newGateways()
	for _, tc := range []struct {
		open         bool
		path, header string
		status       int
	}{
		{false, "/v1/route/shop.orders", "Authorization: ", 401},
		{false, "/v1/route", "Authorization: ", 401},
		{true, "/v1/route/shop.orders", "Authorization: ", 200},
		{true, "/v1/route", "Authorization: ", 200},
		{true, "/v1/route/shop.orders", "Authorization: Bearer wrong-0123456789abcdef", 401},
		{true, "/v1/openapi.json", "Authorization: ", 401},
		{true, "/v1/nothing", "Authorization: ", 401},
	} {
		if res, body := fetch(t, g.serve(t, tc.open)+tc.path, tc.header); res.StatusCode != tc.status {
			t.Errorf("%+v: %s %s", tc, res.Status, body)
		}
	}
}
