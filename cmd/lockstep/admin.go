package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"lockstep/admin"
	"lockstep/audit"
	"lockstep/dlq"
	"lockstep/kafka"
)

// readiness knows what must be under way before the process counts as ready.
type readiness struct {
	mu    sync.Mutex
	parts []part
	notes map[string]func() string
}

type part struct {
	name  string
	ready func() bool
}

func (r *readiness) add(name string, ready func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parts = append(r.parts, part{name, ready})
}

// say gives a part a word for what it does now.
func (r *readiness) say(name string, note func() string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.notes == nil {
		r.notes = map[string]func() string{}
	}
	r.notes[name] = note
}

// doing is the word of each part that has one.
func (r *readiness) doing() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	words := map[string]string{}
	for name, note := range r.notes {
		words[name] = note()
	}
	return words
}

// state says of each part whether it is ready, and whether all are.
func (r *readiness) state() (map[string]bool, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	state, all := map[string]bool{}, len(r.parts) > 0
	for _, p := range r.parts {
		state[p.name] = p.ready()
		all = all && state[p.name]
	}
	return state, all
}

// adminServer serves /metrics, /healthz, /readyz and the API under /v1, or without the API.
type adminServer struct {
	field    string       // of the configuration, which says where
	listener net.Listener // nil when it is turned off
	server   *http.Server
}

func (p *process) listenAdmin() (*adminServer, error) {
	tokens, err := admin.OpenTokens(p.cfg.Admin, p.log)
	if err != nil {
		return nil, err
	}
	mux := p.openPaths()
	log := &rareLog{p.newLetterLog()}
	api := &admin.Server{
		Tokens: tokens, Audit: &audit.Log{Prefix: p.cfg.Prefix, Kafka: log},
		Log: p.log.With("part", "admin"), Metrics: p.metrics.admin, ImportBytes: p.cfg.Admin.ImportBytes, OpenRoute: p.cfg.Admin.OpenRoute,
	}
	mux.Handle("/v1/", api.Handler(p.routes(log, &dlq.Jobs{Prefix: p.cfg.Prefix, Kafka: log, Log: p.log.With("part", "admin"), Held: p.replaysHeld})...))
	return listen("admin.listen", p.cfg.Admin.Listen, mux)
}

// listenMetrics serves what probes and scrapes ask for, and nothing else.
func (p *process) listenMetrics() (*adminServer, error) {
	return listen("admin.metrics_listen", p.cfg.Admin.MetricsListen, p.openPaths())
}

// openPaths are those that are open to everybody who can reach the server.
func (p *process) openPaths() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{Registry: p.registry}))
	// Alive means that this process answers. A store that is down must not have
	// it restarted: that would only take longer.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		parts, ready := p.ready.state()
		w.Header().Set("Content-Type", "application/json")
		if !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(struct {
			Ready bool              `json:"ready"`
			Parts map[string]bool   `json:"parts"`
			Doing map[string]string `json:"doing,omitempty"`
		}{ready, parts, p.ready.doing()})
	})
	return mux
}

// listen makes a server at an address; it is turned off by an empty one.
func listen(field, address string, handler http.Handler) (*adminServer, error) {
	a := &adminServer{field: field, server: &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second,
		WriteTimeout: 2 * time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}}
	if address == "" {
		return a, nil
	}
	var err error
	if a.listener, err = net.Listen("tcp", address); err != nil {
		return nil, fmt.Errorf("%s: %w (parts that run in processes of their own need an address each, such as ${ADMIN:-127.0.0.1:8080}; \"\" turns it off)", field, err)
	}
	return a, nil
}

// routes are the operations of the API.
func (p *process) routes(log dlq.Log, jobs *dlq.Jobs) []admin.Route {
	status := admin.Route{
		Method: http.MethodGet, Path: "/v1/status", ID: "getStatus", Short: "How this process is", Answer: processStatus{},
		Long: "Parts, breakers, what waits, and for every table the books of this process alone.",
		Read: func(context.Context, *admin.Request) (any, error) { return p.status(), nil },
	}
	d := &desk{p, log}
	fresh := &admin.Freshness{Barrier: p.barrier, Sinks: d.Sinks, Check: p.checkAsk}
	return slices.Concat([]admin.Route{status}, admin.FreshnessRoutes(fresh), admin.LetterRoutes(d), admin.JobRoutes(d, jobs), admin.GatewayRoutes(gateways{p}))
}

// rareLog is a letterLog for who writes now and then: each write has a publisher of its
// own, so that one that could not go on does not stand in the way of the next.
type rareLog struct{ *letterLog }

func (l *rareLog) Produce(ctx context.Context, r kafka.Record) error { return l.ProduceAll(ctx, r) }

func (l *rareLog) ProduceAll(ctx context.Context, records ...kafka.Record) error {
	publisher := l.fresh()
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- publisher.Run(running) }()
	err := (&letterLog{l.Client, publisher, nil}).ProduceAll(ctx, records...)
	stop()
	return errors.Join(err, <-ended)
}

func (a *adminServer) addr() string {
	if a.listener == nil {
		return "off"
	}
	return a.listener.Addr().String()
}

func (a *adminServer) run(ctx context.Context) error {
	if a.listener == nil {
		<-ctx.Done()
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if a.server.Shutdown(closing) != nil {
			_ = a.server.Close()
		}
	})
	defer stop()
	if err := a.server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", a.field, err)
	}
	return nil
}
