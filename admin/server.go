// Package admin is the HTTP interface for operators: who may do what, what every request
// and answer has in common, and the operations on dead letters.
//
// Every operation is a Route in one table, from which the server and the OpenAPI document
// are made. A write is done once for its X-Request-ID, by whichever process of the
// pipeline it reaches, and stands in the audit log before it is done. A body of many
// letters is there, whole and checked, before anything is changed; an answer of many that
// cannot be ended is cut off, so that nobody takes a part of it for all.
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/audit"
)

// timeLimit is how long a request may take. It is far below audit.UnderWay, so that what
// is still under way by then was cut off.
const timeLimit = 30 * time.Second

// Server answers requests to the API.
type Server struct {
	Tokens  *Tokens
	Audit   *audit.Log
	Log     *slog.Logger
	Metrics *Metrics
	// ImportBytes is Config.ImportBytes.
	ImportBytes int64
	// OpenRoute is Config.OpenRoute.
	OpenRoute bool
	// Load is that of the process.
	Load *Load
	// Stay, if set, is told of the requests that may take long and of which there are few: streams
	// of events, exports and imports.
	Stay func(*http.Request)

	routes   []Route
	patience time.Duration // of a test; see stall
}

// Metrics of the API.
type Metrics struct {
	requests *prometheus.CounterVec
}

// NewMetrics registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "lockstep_admin_requests_total",
		Help: "Requests to the API under /v1, by operation (none for what is no operation) and status (cut for an answer that had begun and could not be ended).",
	}, []string{"operation", "code"})}
	r.MustRegister(m.requests)
	return m
}

// Handler serves the routes, and under /v1/ nothing else.
func (s *Server) Handler(routes ...Route) http.Handler {
	s.routes = append(routes, Route{
		Method: http.MethodGet, Path: "/v1/openapi.json", ID: "getDocument", Short: "This document", Answer: map[string]any{},
		Read: func(context.Context, *Request) (any, error) { return json.RawMessage(Document(routes)), nil },
	})
	mux := http.NewServeMux()
	for _, route := range s.routes {
		if (route.Read == nil && route.Stream == nil) == (route.Write == nil) || route.Read != nil && route.Stream != nil || (route.Write == nil) != (route.Method == http.MethodGet) || (route.Write == nil) != (route.Act == "") {
			panic(fmt.Sprintf("route %s %s must either read by GET or be an act", route.Method, route.Path))
		}
		mux.Handle(route.Method+" "+route.Path, s.serve(route, func(ctx context.Context, w http.ResponseWriter, r *Request) error {
			if err := r.Identity.mayBe(route.role()); err != nil {
				return err
			}
			switch {
			case route.Write != nil:
				return s.write(ctx, w, r, route)
			case route.Stream != nil:
				return s.stream(ctx, w, r, route)
			}
			if route.Watch != nil && r.accepts(eventStream) {
				return s.watch(w, r, route)
			}
			return s.read(ctx, w, r, route)
		}))
	}
	none := s.serve(Route{ID: "none"}, func(_ context.Context, w http.ResponseWriter, r *Request) error {
		var said verdict
		h, _ := mux.Handler(r.Request)
		if h.ServeHTTP(&said, r.Request); said.code == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", said.header.Get("Allow"))
			return problem(said.code, "method_not_allowed", "%s is not for %s; use %s", r.Method, r.URL.Path, said.header.Get("Allow"))
		}
		return problem(http.StatusNotFound, "not_found", "there is no %s; see /v1/openapi.json", r.URL.Path)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern == "" {
			none.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// verdict is what the mux says of a request that is for no route: 404, or 405 and Allow.
type verdict struct {
	header http.Header
	code   int
}

func (v *verdict) Header() http.Header {
	if v.header == nil {
		v.header = http.Header{}
	}
	return v.header
}

func (v *verdict) WriteHeader(code int)        { v.code = code }
func (v *verdict) Write(b []byte) (int, error) { return len(b), nil }

// serve does what all requests have in common.
func (s *Server) serve(route Route, do func(context.Context, http.ResponseWriter, *Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r := &Request{Request: request, ID: request.Header.Get("X-Request-ID")}
		made := !legalRequestID.MatchString(r.ID)
		if made {
			r.ID = uuid.NewString()
		}
		w.Header().Set("X-Request-ID", r.ID)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		seen := &status{ResponseWriter: w, code: http.StatusOK}
		ctx, cancel := context.WithTimeout(request.Context(), route.limit())
		defer cancel()
		if request.ContentLength == 0 {
			// When it passes, the request counts as given up.
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		}
		r.header = w.Header()
		who, err := s.admit(r, route)
		if err == nil && !route.Often && !route.Bulk { // these have limits of their own
			var done func()
			if done, err = s.Load.limits.turn(ctx, who); err == nil {
				defer done()
			}
		}
		if err == nil {
			err = do(ctx, seen, r)
		} else if request.ContentLength != 0 {
			// Nobody waits for the body of who may not send one.
			w.Header().Set("Connection", "close")
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Second))
		}
		if cut, ok := errors.AsType[errCut](err); ok {
			s.Metrics.requests.WithLabelValues(route.ID, "cut").Inc()
			s.Log.Warn("an answer was cut off", "path", r.URL.Path, "who", r.Identity.Name, "request_id", r.ID, "error", cut.error)
			panic(http.ErrAbortHandler)
		}
		if err != nil {
			late(w)
			s.refuse(seen, r, err)
		}
		s.Metrics.requests.WithLabelValues(route.ID, fmt.Sprint(seen.code)).Inc()
	})
}

func (s *Server) stay(r *Request) {
	if s.Stay != nil {
		s.Stay(r.Request)
	}
}

// status remembers the status of the answer.
type status struct {
	http.ResponseWriter
	code int
}

func (w *status) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (w *status) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// admit finds out who asks, under which name that counts, and whether it is not too often. Those without a right token
// share an allowance with all others of their address. What is open is also for those who
// send none.
func (s *Server) admit(r *Request, route Route) (who string, err error) {
	r.Identity, err = s.Tokens.identify(r.Request)
	switch {
	case route.Open && s.OpenRoute && len(r.Header.Values("Authorization")) == 0:
		r.Identity, err = Identity{Role: Viewer}, nil
	case route.Often && err == nil:
		return "", nil
	}
	if who = r.Identity.Name; who == "" {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		who = "from " + host // which is no name of a holder
	}
	if wait := s.Load.limits.take(who, time.Now()); wait > 0 {
		return who, &limited{problem(http.StatusTooManyRequests, "too_many", "more than %d requests a second; try again in %s", ratePerSecond, wait.Round(time.Millisecond)), wait}
	}
	return who, err
}

func (s *Server) refuse(w http.ResponseWriter, r *Request, err error) {
	p := *problemOf(err)
	wait := time.Duration(0)
	switch l, ok := errors.AsType[*limited](err); {
	case ok:
		wait = l.wait
	case p.Code == "request_under_way":
		wait = 5 * time.Second
	case p.Status == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="lockstep"`)
	case p.Status >= 500:
		s.Log.Warn("a request failed", "method", r.Method, "path", r.URL.Path, "who", r.Identity.Name, "request_id", r.ID, "error", p.Detail)
	}
	if wait > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int((wait+time.Second-1)/time.Second)))
	}
	answerProblem(w, &p, r.ID)
}

// answerProblem says why not.
func answerProblem(w http.ResponseWriter, p *Problem, request string) {
	said := *p
	said.Type, said.Title, said.RequestID = "about:blank", http.StatusText(p.Status), request
	body, err := json.Marshal(said)
	if err != nil {
		panic(err) // it is made of texts and a number
	}
	send(w, p.Status, "application/problem+json", body)
}

func send(w http.ResponseWriter, status int, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	_, _ = w.Write(bytes.TrimRight(body, "\n")) // it may be one that is kept for others
	_, _ = w.Write([]byte{'\n'})
}

func (s *Server) read(ctx context.Context, w http.ResponseWriter, r *Request, route Route) error {
	answer, err := route.Read(ctx, r)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(timeLimit)) // it may have waited
	if err != nil {
		return err
	}
	return answerWith(w, r, answer)
}

// answerWith sends an answer, or says that who asks has it.
func answerWith(w http.ResponseWriter, r *Request, answer any) error {
	if r.etag != "" {
		w.Header().Set("ETag", r.etag)
		if r.Method != http.MethodPatch && holds(r.Header.Values("If-None-Match"), r.etag) {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	body, err := encode(answer)
	if err != nil {
		return err
	}
	send(w, http.StatusOK, "application/json", body)
	return nil
}

func encode(answer any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(answer)
	return b.Bytes(), err
}

// mayBe refuses who is not of a role.
func (i Identity) mayBe(role Role) error {
	switch {
	case role == Viewer || i.Role == Operator:
		return nil
	case i.Name == "":
		return problem(http.StatusForbidden, "not_writable", "nothing can be written without a token, no letters exported and no profile taken; name one of the role operator in admin.tokens")
	}
	return problem(http.StatusForbidden, "role_viewer", "%s is a viewer, and this needs the role operator", i.Name)
}

// write does an act once for its X-Request-ID.
func (s *Server) write(ctx context.Context, w http.ResponseWriter, r *Request, route Route) error {
	switch id := r.Header.Values("X-Request-ID"); {
	case len(id) == 0:
		return problem(http.StatusBadRequest, "request_id_missing", "send a header X-Request-ID of your own making, such as a UUID, and the same one when you try again")
	case len(id) > 1 || id[0] != r.ID:
		return problem(http.StatusBadRequest, "request_id_invalid", "X-Request-ID is 1 to 128 letters, digits and ._:- and is there once")
	}
	if err := r.isOf(route.takes()); err != nil {
		return err
	}
	if err := r.rehearses(route); err != nil {
		return err
	}
	if route.Bulk {
		leave, err := s.room(r)
		if err != nil {
			return err
		}
		defer leave()
		done, err := s.lay(ctx, w, r)
		if err != nil {
			return err
		}
		defer done()
	} else if err := r.readBody(w); err != nil {
		return err
	}
	if route.Matched && len(r.Header.Values("If-Match")) == 0 {
		return problem(http.StatusPreconditionRequired, "if_match_missing", "send the ETag of what was read as If-Match, so that nothing is done when it has changed since")
	}
	if r.Rehearsal {
		work, err := route.Write(ctx, r)
		if err != nil {
			return err
		}
		late(w)
		return answerWith(w, r, work.Would)
	}
	act := audit.Act{Actor: r.Identity.Name, Via: "http", Name: route.Act, Request: r.ID, Body: r.hash()}
	known, err := s.Audit.Find(ctx, act)
	if known != nil || err != nil {
		return again(w, known, err)
	}
	work, err := route.Write(ctx, r)
	if err != nil {
		// Perhaps because the same request was done meanwhile.
		if known, since := s.Audit.Find(ctx, act); known != nil || since != nil {
			return again(w, known, since)
		}
		return err
	}
	act.Filter, act.Reason = work.Filter, work.Reason
	// What has begun ends, whether or not somebody still waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), route.work())
	defer cancel()
	entry, known, err := s.Audit.Begin(ctx, act)
	if known != nil || err != nil {
		return again(w, known, err)
	}
	answer, counts, failed := work.Do(ctx)
	result := audit.Result{Outcome: audit.Done, Counts: counts}
	body, status := []byte(nil), http.StatusOK
	if failed == nil {
		body, failed = encode(answer)
	}
	if failed != nil {
		result.Outcome, result.Problem = audit.Failed, failed.Error()
	} else if len(body) <= answerBytes {
		result.Answer = &audit.Answer{Status: status, Body: body}
	}
	ending, stop := context.WithTimeout(context.WithoutCancel(ctx), timeLimit)
	defer stop()
	if err := errors.Join(failed, entry.End(ending, result)); err != nil {
		return err // it may be tried again under the same ID
	}
	sendKept(w, status, body)
	return nil
}

// sendKept sends the answer to a write, the same each time. An etag in it is the header, too.
func sendKept(w http.ResponseWriter, status int, body []byte) {
	late(w)
	var of struct {
		ETag string `json:"etag"`
	}
	if _ = json.Unmarshal(body, &of); of.ETag != "" {
		w.Header().Set("ETag", of.ETag)
	}
	send(w, status, "application/json", asKept(body))
}

// asKept is the answer to a write as it can be written again from what the audit log keeps
// of it, so that a request that is repeated gets the same bytes.
func asKept(body []byte) []byte {
	kept, err := json.Marshal(json.RawMessage(body))
	if err != nil {
		panic(err) // it was encoded
	}
	var b bytes.Buffer
	_ = json.Indent(&b, kept, "", "  ")
	return b.Bytes()
}

// late makes time for an answer: a body that took its time has left none.
func late(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(timeLimit)) // else the connection is gone
}

// again answers a request that came before.
func again(w http.ResponseWriter, known *audit.Answer, err error) error {
	switch {
	case known != nil:
		w.Header().Set("Idempotent-Replayed", "true")
		sendKept(w, known.Status, known.Body)
		return nil
	case errors.Is(err, audit.ErrReused):
		return problem(http.StatusConflict, "request_id_reused", "this X-Request-ID was used for another request within a day; make a new one for each request")
	case errors.Is(err, audit.ErrUnderWay):
		return problem(http.StatusConflict, "request_under_way", "a request with this X-Request-ID is under way, or was cut off less than %s ago; try again with the same ID", audit.UnderWay)
	}
	return fmt.Errorf("nothing was done, because it cannot be written down first: %w", err)
}
