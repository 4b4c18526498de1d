package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/config"
	"lockstep/internal/testenv"
	"lockstep/route"
	"lockstep/route/configmap"
	"lockstep/sinks/redis"
)

// routed is a process that has a board, of table d.t in the sink search.
func routed() *process {
	cfg := config.Default()
	cfg.Sinks = map[string]config.Sink{"search": {Redis: &redis.Config{}}}
	cfg.Tables = []config.Table{{Match: "d.t", Objectives: route.DefaultOverride()}}
	p := &process{cfg: &cfg, shared: &shared{registry: prometheus.NewRegistry(), log: slog.New(slog.DiscardHandler)}}
	p.settings.view.Store(p)
	p.board = p.newBoard()
	return p
}

// Rows that are confirmed to be stale hold up replays, which would come on top; open dead
// letters do not, for replays are their way out. Both send readers to MySQL.
func TestADegradedTableHoldsUpReplaysUnlessTheyAreItsWayOut(t *testing.T) {
	place := route.Place{Sink: "search", Table: "d.t"}
	for _, tc := range []struct {
		name  string
		found map[route.Class]int
		open  int
		why   string
	}{
		{"stale rows", map[route.Class]int{route.ClassStale: 31}, 0, "table d.t is degraded there, so replays wait: of 1000 keys compared 31 are confirmed to differ, 3.1 % (31 stale); that is more than 3 %"},
		{"missing rows", map[route.Class]int{route.ClassMissing: 6}, 0, ""},
		{"dead letters", nil, 6, ""},
	} {
		w := &replayWorld{process: routed()}
		now := time.Now()
		for range 100 {
			now = now.Add(250 * time.Millisecond)
			w.board.Capture(now)
			w.board.Hear(now, place, route.Report{Process: "p", Of: 1, Partitions: []int{0}, Known: true, Letters: tc.open})
			w.board.Verify(now, place, route.Sample{Began: now, Compared: 1000, Confirmed: tc.found})
			w.board.Lap(now)
		}
		if d := w.board.Decision(place); d.State != route.Degraded {
			t.Fatalf("%s: %+v", tc.name, d)
		}
		if why, wait := w.heldBy("search", "d.t"); why != tc.why || wait != (tc.why != "") {
			t.Errorf("%s: %q, %t", tc.name, why, wait)
		}
	}
}

// status shows where tables are read, whatever the process does, and is not well while one
// is read from MySQL.
func TestStatusTellsWhereTablesAreRead(t *testing.T) {
	p := routed()
	now := time.Now()
	for range 100 {
		now = now.Add(250 * time.Millisecond)
		p.board.Capture(now)
		p.board.Hear(now, route.Place{Sink: "search", Table: "d.t"}, route.Report{Process: "p", Of: 1, Partitions: []int{0}, Known: true, Down: "no answer", Open: true})
		p.board.Lap(now)
	}
	s := p.status()
	var text strings.Builder
	s.screen(&text)
	s.details(&text)
	if !strings.Contains(text.String(), "search\td.t\tdegraded\tmysql\t0 %\t") || !strings.Contains(text.String(), "\tno answer\t") {
		t.Errorf("status:\n%s", &text)
	}
	if what := strings.Join(s.unwell(false), "; "); !strings.Contains(what, "sink search: table d.t is read from MySQL") {
		t.Errorf("not well: %s", what)
	}
}

// A process that is started takes over what others knew a moment ago, from a real Kafka;
// until then it gives no answer, and what it knows is saved for the next.
func TestRoutesSurviveARestart(t *testing.T) {
	brokers := testenv.Kafka(t)
	start := func(prefix string) (p *process, stop func()) {
		cfg := config.Default()
		cfg.Prefix, cfg.Kafka.Brokers, cfg.Admin.Listen = prefix, []string{brokers.Addr}, "127.0.0.1:0"
		cfg.Sinks = map[string]config.Sink{"search": {Redis: &redis.Config{}}}
		cfg.Tables = []config.Table{{Match: "d.t", Objectives: route.DefaultOverride()}}
		p, err := newProcess(&cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.keepRoute(ctx) }()
		return p, func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			p.kafka.Close()
		}
	}
	prefix := fmt.Sprintf("route-%d", time.Now().UnixNano())
	place := route.Place{Sink: "search", Table: "d.t"}
	first, stop := start(prefix)
	awaited(t, "the topic", func() bool { return first.restored.Load() })
	now := time.Now()
	for range 240 {
		now = now.Add(250 * time.Millisecond)
		first.board.Capture(now)
		first.board.Hear(now, place, route.Report{Process: "p", Of: 1, Partitions: []int{0}, Known: true})
		first.board.Lap(now)
	}
	if d := first.board.Decision(place); d.State != route.OK {
		t.Fatalf("%+v", d)
	}
	spec := first.routeSpec()
	awaited(t, "what it knows to be saved", func() bool {
		newest, err := first.kafka.Newest(t.Context(), spec.Name)
		return err == nil && len(newest) == 1 && strings.Contains(string(newest[0].Value), `"state":"ok"`)
	})
	stop()

	second, stop := start(prefix)
	defer stop()
	server, err := second.listenAdmin()
	if err != nil {
		t.Fatal(err)
	}
	serving, end := context.WithCancel(t.Context())
	defer end()
	go func() { _ = server.run(serving) }()
	var a route.Advice
	awaited(t, "an answer", func() bool {
		res, err := http.Get("http://" + server.addr() + "/v1/route/d.t")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(body), "starting") {
			return false
		}
		if err := json.Unmarshal(body, &a); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		return true
	})
	if len(a.Sinks) != 1 || a.Sinks[0].State != route.OK || a.Sinks[0].Read != route.ReadSink {
		t.Errorf("after the restart: %+v", a)
	}
}

func awaited(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited 2m for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// What GET /v1/route answers is written into the ConfigMap, at once and with every change,
// also after a server that was away.
func TestTheConfigMapSaysWhatTheRouteAnswers(t *testing.T) {
	var away atomic.Bool
	written := make(chan string, 100)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var sent struct{ Data map[string]string }
		if err := json.NewDecoder(r.Body).Decode(&sent); err != nil {
			t.Error(err)
		}
		written <- sent.Data["routes.json"]
	}))
	defer server.Close()
	account := t.TempDir()
	for name, text := range map[string]string{
		"ca.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})), "token": "t", "namespace": "shop",
	} {
		if err := os.WriteFile(filepath.Join(account, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := configmap.Open(server.URL, account, "", "routes")
	if err != nil {
		t.Fatal(err)
	}
	p := routed()
	place, now := route.Place{Sink: "search", Table: "d.t"}, time.Now()
	pass := func(d time.Duration, down string) {
		for range d / (250 * time.Millisecond) {
			now = now.Add(250 * time.Millisecond)
			p.board.Capture(now)
			p.board.Hear(now, place, route.Report{Process: "p", Of: 1, Partitions: []int{0}, Known: true, Down: down, Open: true})
			p.board.Lap(now)
		}
	}
	pass(50*time.Second, "")
	p.restored.Store(true)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.publishRoutes(ctx, m) }()
	reads := func() string {
		var got struct{ Tables []route.Advice }
		select {
		case text := <-written:
			if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Tables) != 1 || !got.Tables[0].UsableUntil.After(time.Now()) {
				t.Fatalf("%v: %s", err, text)
			}
		case <-time.After(8 * time.Second):
			t.Fatal("nothing is written")
		}
		return got.Tables[0].Sinks[0].Read
	}
	if read := reads(); read != route.ReadSink {
		t.Errorf("at first: %s", read)
	}
	away.Store(true)
	pass(time.Second, "no answer")
	away.Store(false)
	if read := reads(); read != route.ReadMySQL {
		t.Errorf("after a break: %s", read)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
