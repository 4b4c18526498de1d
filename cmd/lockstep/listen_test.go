package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"lockstep/config"
)

// watched is a server of probes and metrics alone.
func watched(t *testing.T) (address string) {
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
	return server.addr()
}

// Those who say nothing, have said all they had to, or never come to an end make room for who asks
// something.
func TestAProbeIsAnsweredHoweverManyConnectionsAreHeldOpen(t *testing.T) {
	address := watched(t)
	for kind, say := range map[string]string{"silent": "", "half a header": "GET /healthz HTTP/1.1\r\nHost: x\r\nX-", "idle": "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"} {
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
