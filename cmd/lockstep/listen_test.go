package main

import (
	"context"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/config"
)

// watched is a server of probes and metrics alone.
func watched(t *testing.T) (address string, registry *prometheus.Registry) {
	t.Helper()
	cfg := config.Default()
	cfg.Prefix, cfg.Admin.Listen, cfg.Admin.MetricsListen = "shop", "", "127.0.0.1:0"
	p, err := newProcess(&cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server, err := p.listenMetrics()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		p.kafka.Close()
	})
	return server.addr(), p.registry
}

// Those who say nothing, have said all they had to, never come to an end, or are waited for make
// room for who asks something.
func TestAProbeIsAnsweredHoweverManyConnectionsAreHeldOpen(t *testing.T) {
	address, _ := watched(t)
	for kind, say := range map[string]string{"silent": "", "half a header": "GET /healthz HTTP/1.1\r\nHost: x\r\nX-", "idle": "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
		"half a body": "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"} {
		t.Run(kind, func(t *testing.T) {
			for range connectionsAtOnce + 100 {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := io.WriteString(conn, say); err != nil {
					t.Fatal(err)
				}
			}
			ask := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			for range 3 {
				began := time.Now()
				res, err := ask.Get("http://" + address + "/healthz")
				if err != nil {
					t.Fatalf("after %s: %v", time.Since(began), err)
				}
				res.Body.Close()
			}
		})
	}
}

// Of those that say nothing and those that are being answered the larger half makes room, the
// longest first; who is meant to last stays.
func TestWhoMakesRoomForOneMore(t *testing.T) {
	c := newCrowd(4)
	conns := make([]net.Conn, 8)
	for i := range conns {
		conns[i] = &net.TCPConn{}
	}
	move := func(i int, state http.ConnState, want net.Conn) {
		t.Helper()
		if out := c.move(conns[i], state); out != want {
			t.Errorf("%d becomes %s: %v is closed, want %v", i, state, slices.Index(conns, out), slices.Index(conns, want))
		}
	}
	for i := range 4 {
		move(i, http.StateNew, nil)
	}
	for i := range 4 {
		move(i, http.StateActive, nil)
	}
	stream := (&http.Request{}).WithContext(c.with(t.Context(), conns[0]))
	c.stay(stream)
	move(4, http.StateNew, conns[1]) // the stream is there for longer, and stays
	move(1, http.StateClosed, nil)
	move(4, http.StateActive, nil)
	move(3, http.StateIdle, nil)
	move(5, http.StateNew, conns[3]) // one of two
	move(5, http.StateActive, nil)
	move(6, http.StateNew, conns[2])
	move(0, http.StateIdle, nil) // the stream is over, and like the others
	move(7, http.StateNew, conns[6])
	move(6, http.StateClosed, nil)
	c.stay((&http.Request{}).WithContext(c.with(t.Context(), conns[6]))) // is gone
	for _, i := range []int{0, 4, 5, 7} {
		move(i, http.StateClosed, nil)
	}
	if n := len(c.known) + c.quiet.Len() + c.busy.Len(); n != 0 {
		t.Errorf("%d are remembered", n)
	}
}

// Where half of the connections stay the next one is like the others, and where a process may have
// few files it has few connections.
func TestThoseThatStayLeaveRoom(t *testing.T) {
	c := newCrowd(4)
	conns := []net.Conn{&net.TCPConn{}, &net.TCPConn{}, &net.TCPConn{}, &net.TCPConn{}, &net.TCPConn{}}
	for _, conn := range conns[:4] {
		c.move(conn, http.StateActive)
		c.stay((&http.Request{}).WithContext(c.with(t.Context(), conn)))
	}
	if out := c.move(conns[4], http.StateNew); out != conns[2] {
		t.Errorf("%d is closed; want the first that could not stay", slices.Index(conns, out))
	}
	for files, want := range map[uint64]int{256: 64, 1024: 256, 1 << 20: connectionsAtOnce, math.MaxUint64: connectionsAtOnce} {
		if n := connectionsOf(files); n != want {
			t.Errorf("%d files: %d connections, want %d", files, n, want)
		}
	}
}

// However many do not take the metrics that they have asked for, a scrape and a probe are answered.
func TestAScrapeIsAnsweredHoweverManyDoNotTakeTheirs(t *testing.T) {
	address, registry := watched(t)
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "large", Help: strings.Repeat("more than a connection holds ", 300_000)}))
	for range 2 * scrapesAtOnce {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil { // its answer has begun
			t.Fatal(err)
		}
	}
	ask := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]string{"/metrics": "lockstep_build_info", "/healthz": "ok"} {
		res, err := ask.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, %v: %.100s", path, res.Status, err, body)
		}
	}
}

// Answers are made anew for whoever asks, and shared only while many are under way: then one
// that is not older than a second is enough for all.
func TestScrapesShareAnAnswerWhenTheyAreMany(t *testing.T) {
	s := &scrapes{from: prometheus.NewRegistry()}
	now := time.Now()
	seen := map[*scrape]bool{}
	for range scrapesAtOnce {
		seen[s.enter(now)] = true
	}
	if len(seen) != scrapesAtOnce {
		t.Errorf("%d have %d answers", scrapesAtOnce, len(seen))
	}
	one := s.enter(now.Add(scrapeShared))
	if !seen[one] {
		t.Error("one more has an answer of its own")
	}
	two := s.enter(now.Add(scrapeShared + 1))
	if seen[two] || s.enter(now.Add(scrapeShared+2)) != two {
		t.Error("an old answer is given, or a new one to nobody else")
	}
	for range scrapesAtOnce + 3 {
		s.leave()
	}
	if s.newest != nil || s.enter(now.Add(scrapeShared+3)) == two {
		t.Error("an answer is kept for nobody")
	}
}
