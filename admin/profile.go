package admin

import (
	"context"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"
)

// profileLimit is how long a profile may be taken.
const profileLimit = 100 * time.Second

// Profiles serves the profiles of the runtime below /debug/pprof/ to operators. The command
// line is not among them.
func (s *Server) Profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	return s.serve(Route{ID: "profile", within: profileLimit}, func(ctx context.Context, w http.ResponseWriter, r *Request) error {
		if err := r.Identity.mayBe(Operator); err != nil {
			return err
		}
		if _, pattern := mux.Handler(r.Request); pattern == "" || strings.HasSuffix(r.URL.Path, "/cmdline") {
			return problem(http.StatusNotFound, "not_found", "there is no %s %s; see GET /debug/pprof/", r.Method, r.URL.Path)
		}
		s.Log.Info("a profile is taken", "path", r.URL.Path, "who", r.Identity.Name, "request_id", r.ID)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(profileLimit + timeLimit))
		mux.ServeHTTP(w, r.WithContext(ctx))
		return nil
	})
}
