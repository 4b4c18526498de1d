package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
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

// admin serves /metrics, /healthz, /readyz and /v1/status.
type admin struct {
	listener net.Listener // nil when it is turned off
	server   *http.Server
}

func (p *process) listenAdmin() (*admin, error) {
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
	mux.HandleFunc("GET /v1/status", p.serveStatus)
	a := &admin{server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}}
	if p.cfg.Admin.Listen == "" {
		return a, nil
	}
	var err error
	if a.listener, err = net.Listen("tcp", p.cfg.Admin.Listen); err != nil {
		return nil, fmt.Errorf("admin.listen: %w (parts that run in processes of their own need an address each, such as ${ADMIN:-127.0.0.1:8080}; \"\" turns it off)", err)
	}
	return a, nil
}

func (a *admin) addr() string {
	if a.listener == nil {
		return "off"
	}
	return a.listener.Addr().String()
}

func (a *admin) run(ctx context.Context) error {
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
		return fmt.Errorf("admin.listen: %w", err)
	}
	return nil
}
