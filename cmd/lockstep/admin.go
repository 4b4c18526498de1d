package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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

// add makes a part known, in the place of the one that had its name.
func (r *readiness) add(name string, ready func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parts = slices.DeleteFunc(r.parts, func(p part) bool { return p.name == name })
	r.parts = append(r.parts, part{name, ready})
}

// drop forgets a part that this process does not have any more.
func (r *readiness) drop(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parts = slices.DeleteFunc(r.parts, func(p part) bool { return p.name == name })
	delete(r.notes, name)
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

// httpServer is one address at which a process answers.
type httpServer struct {
	field        string       // of the configuration, which says where
	listener     net.Listener // nil when it is turned off
	server       *http.Server
	certificates func() *admin.Certificates // nil for no TLS
}

// adminServer serves /metrics, /healthz, /readyz, the API under /v1 and profiles.
type adminServer struct {
	*httpServer
	log     *rareLog
	audit   *audit.Log
	jobs    *dlq.Jobs
	load    admin.Load
	crowd   *crowd
	scrapes *scrapes
	now     atomic.Pointer[configuredAdmin]
}

// configuredAdmin is what of the server follows the configuration.
type configuredAdmin struct {
	api, profiles, metrics http.Handler
	certificates           *admin.Certificates // nil for no TLS
}

func (p *process) listenAdmin() (*adminServer, error) {
	log := &rareLog{p.newLetterLog()}
	a := &adminServer{
		log: log, audit: &audit.Log{Prefix: p.cfg.Prefix, Kafka: log}, crowd: newCrowd(connections()), scrapes: &scrapes{from: p.registry},
		jobs: &dlq.Jobs{Prefix: p.cfg.Prefix, Kafka: log, Log: p.log.With("part", "admin"), Held: p.replaysHeld},
	}
	configured, err := a.prepare(p)
	if err != nil {
		return nil, err
	}
	configured()
	mux := p.openPaths(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.now.Load().metrics.ServeHTTP(w, r) }))
	mux.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) { a.now.Load().api.ServeHTTP(w, r) })
	mux.HandleFunc("/debug/pprof/", func(w http.ResponseWriter, r *http.Request) { a.now.Load().profiles.ServeHTTP(w, r) })
	if a.httpServer, err = p.listen("admin.listen", p.cfg.Admin.Listen, mux, a.crowd); err != nil {
		return nil, err
	}
	if a.now.Load().certificates != nil {
		a.httpServer.certificates = func() *admin.Certificates { return a.now.Load().certificates } // they are not turned off while the process runs
	}
	return a, nil
}

// listenMetrics serves what probes and scrapes ask for, and nothing else.
func (p *process) listenMetrics() (*httpServer, error) {
	return p.listen("admin.metrics_listen", p.cfg.Admin.MetricsListen, p.openPaths(&scrapes{from: p.registry}), newCrowd(connections()))
}

// openPaths are those that are open to everybody who can reach the server.
func (p *process) openPaths(metrics http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
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
func (p *process) listen(field, address string, handler http.Handler, all *crowd) (*httpServer, error) {
	s := &httpServer{field: field, server: &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second,
		WriteTimeout: answerWithin, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ConnState: all.note, ConnContext: all.with,
		ErrorLog: slog.NewLogLogger(p.log.With("part", "admin").Handler(), slog.LevelDebug), // of single connections
	}}
	if address == "" {
		return s, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (parts that run in processes of their own need an address each, such as ${ADMIN:-127.0.0.1:8080}; \"\" turns it off)", field, err)
	}
	s.listener = listener
	return s, nil
}

// prepare reads what the server needs for the configuration of p; what it gives has
// requests answered with that from then on. Those under way end as they began.
func (a *adminServer) prepare(p *process) (configure func(), err error) {
	tokens, err := admin.OpenTokens(p.cfg.Admin, p.log)
	if err != nil {
		return nil, err
	}
	api := &admin.Server{
		Tokens: tokens, Audit: a.audit,
		Log: p.log.With("part", "admin"), Metrics: p.metrics.admin, ImportBytes: p.cfg.Admin.ImportBytes, OpenRoute: p.cfg.Admin.OpenRoute, Load: &a.load,
		Stay: a.crowd.stay,
	}
	certificates, err := admin.OpenCertificates(p.cfg.Admin.TLS, api.Log)
	if err != nil {
		return nil, err
	}
	known := p.cfg.Admin.TLS.Known
	now := &configuredAdmin{
		api: known(api.Handler(p.routes(a.log, a.jobs)...)), profiles: known(api.Profiles()), certificates: certificates,
		metrics: known(a.scrapes),
	}
	return func() { a.now.Store(now) }, nil
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
	return slices.Concat([]admin.Route{status}, admin.FreshnessRoutes(fresh), admin.LetterRoutes(d), admin.JobRoutes(d, jobs), admin.GatewayRoutes(gateways{p}), admin.LevelRoutes(p.level))
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

func (s *httpServer) addr() string {
	if s.listener == nil {
		return "off"
	}
	return s.listener.Addr().String()
}

func (s *httpServer) run(ctx context.Context) error {
	if s.listener == nil {
		<-ctx.Done()
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.server.Shutdown(closing) != nil {
			_ = s.server.Close()
		}
	})
	defer stop()
	serve := s.server.Serve
	if s.certificates != nil {
		s.server.TLSConfig = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.certificates().Config(), nil
		}}
		serve = func(l net.Listener) error { return s.server.ServeTLS(l, "", "") }
	}
	if err := serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", s.field, err)
	}
	return nil
}
