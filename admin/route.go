package admin

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Route is one operation of the API, and what its page says of it. Who may use it follows
// from what it is, unless Role says more: reading needs a viewer, writing an operator.
type Route struct {
	Method    string
	Path      string // as http.ServeMux has it, below /v1
	ID        string // operationId
	Short     string // one line
	Long      string // the rest
	Query     []Param
	Wildcards []Param // of Path
	// Body and Answer are zero values of what is sent and answered, in JSON.
	Body, Answer any
	// Takes is the media type of the body; application/json when it is empty.
	Takes string
	// Role is who may use it.
	Role Role
	// Bulk is for a body or an answer that may be large: it is not held in memory, and has a
	// time of its own.
	Bulk bool
	// Tagged answers carry an ETag; a write then takes If-Match, and one that is Matched
	// needs it.
	Tagged, Matched bool
	// Often is for what programs ask for at their own pace, with a right token or none where
	// none is needed: it is not counted.
	Often bool
	// Codes are the problems that it can answer with beside those of every operation.
	Codes []Code

	// Open routes can be read without a token where Config.OpenRoute says so.
	Open bool

	// Read answers a request that changes nothing. Stream is one whose answer is of the media
	// type Gives and is written as it comes.
	Read   func(context.Context, *Request) (any, error)
	Stream func(context.Context, *Request, io.Writer) error
	Gives  string
	// Watch, if set, answers one that accepts text/event-stream: it says an event with every
	// change, under an ID that stands for what it says, until ctx ends or say fails.
	Watch func(ctx context.Context, r *Request, say func(id string, v any) error) error
	// Act is what a write is called in the audit log, and Write prepares it: it checks
	// everything, changes nothing and says what is to be done.
	Act   string
	Write func(context.Context, *Request) (*Work, error)

	within time.Duration // that a request may take; timeLimit when it is 0
}

// Param is a parameter of the query or the path.
type Param struct {
	Name, Doc string
	Type      string   // of JSON; string when empty
	Enum      []string // the values there are; any when empty
}

// Code is a problem an operation can answer with.
type Code struct {
	Status int
	Code   string
	Doc    string
}

// Work is what a write is about to do.
type Work struct {
	Filter map[string]string // for the audit log: on what
	Reason string
	// Do does it. It may be done again after it was cut off, and must not mind.
	Do func(ctx context.Context) (answer any, counts map[string]int, err error)
	// Would is the answer to a rehearsal, which does nothing and stands nowhere.
	Would any
}

// Request is what a route is asked.
type Request struct {
	*http.Request
	Identity Identity
	ID       string // X-Request-ID, or one that was made up for it
	// Rehearsal is for a write that is to be shown and not done.
	Rehearsal bool

	body   []byte
	file   *os.File // the body of a Bulk route
	sum    string   // its SHA-256
	etag   string
	header http.Header // of the answer
}

// rehearsed is the parameter of writes that can be rehearsed.
var rehearsed = Param{Name: "dry_run", Type: "boolean", Doc: "say what would be done, and do nothing; that stands in no audit log, and its X-Request-ID may be used again"}

// rehearses finds out whether a write is only to be shown.
func (r *Request) rehearses(route Route) error {
	values, given := r.URL.Query()[rehearsed.Name]
	if !given || !slices.ContainsFunc(route.Query, func(p Param) bool { return p.Name == rehearsed.Name }) {
		return nil // whoever reads the fields says that it is not known
	}
	if len(values) != 1 || values[0] != "true" && values[0] != "false" {
		return problem(http.StatusBadRequest, "parameter_invalid", "%s: %q is neither true nor false", rehearsed.Name, strings.Join(values, ", "))
	}
	r.Rehearsal = values[0] == "true"
	return nil
}

// role is who may use the route.
func (r Route) role() Role {
	if r.Write != nil || r.Role == Operator {
		return Operator
	}
	return Viewer
}

// limit is how long a request may take, and work how long what it asks for may.
func (r Route) limit() time.Duration {
	if r.Bulk {
		return bulkLimit
	}
	return cmp.Or(r.within, timeLimit)
}

func (r Route) work() time.Duration {
	if r.Bulk {
		return bulkWork
	}
	return timeLimit
}

// takes is the media type of the body.
func (r Route) takes() string { return cmp.Or(r.Takes, "application/json") }

const (
	// bodyBytes bounds what a request may carry, answerBytes what is kept of an answer.
	bodyBytes   = 64 << 10
	answerBytes = 64 << 10
)

var legalRequestID = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// Decode reads the body into v and refuses fields that v does not have.
func (r *Request) Decode(v any) error {
	bad := func(format string, args ...any) error {
		return problem(http.StatusBadRequest, "body_invalid", "the body is not what is asked for: "+format, args...)
	}
	d := json.NewDecoder(strings.NewReader(string(r.body)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); errors.Is(err, io.EOF) {
		return bad("it is empty; send a JSON object")
	} else if err != nil {
		return bad("%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bad("there is more behind the JSON object")
	}
	return nil
}

// Tag gives the answer the ETag of v, and fails when the request has an If-Match that is
// of another state.
func (r *Request) Tag(v any) error {
	var err error
	if r.etag, err = tagOf(v); err != nil {
		return err
	}
	wanted := r.Header.Values("If-Match")
	if len(wanted) > 0 && !holds(wanted, r.etag) {
		return problem(http.StatusPreconditionFailed, "changed", "it has changed since: its ETag is %s now; read it again and decide anew", r.etag)
	}
	return nil
}

// tagOf is the ETag of v.
func tagOf(v any) (string, error) {
	text, err := json.Marshal(v)
	return etagOf(text), err
}

// etagOf is the ETag of a text.
func etagOf(text []byte) string {
	sum := sha256.Sum256(text)
	return `"` + hex.EncodeToString(sum[:8]) + `"`
}

// holds reports whether a list of entity tags has this one. A weak one never counts.
func holds(lists []string, etag string) bool {
	for _, list := range lists {
		for tag := range strings.SplitSeq(list, ",") {
			if tag = strings.TrimSpace(tag); tag == "*" || tag == etag {
				return true
			}
		}
	}
	return false
}

// Fields are the parameters of the query. One that the route does not have, or that is
// there twice, is a problem.
func (r *Request) fields(known []Param) (map[string]string, error) {
	fields := map[string]string{}
	names := make([]string, len(known))
	for i, p := range known {
		names[i] = p.Name
	}
	for name, values := range r.URL.Query() {
		switch {
		case !slices.Contains(names, name):
			return nil, problem(http.StatusBadRequest, "parameter_unknown", "the parameter %q is not known; %s", name, thereAre(names))
		case len(values) > 1:
			return nil, problem(http.StatusBadRequest, "parameter_invalid", "the parameter %s is there %d times; give it once", name, len(values))
		}
		fields[name] = values[0]
	}
	return fields, nil
}

func thereAre(names []string) string {
	if len(names) == 0 {
		return "there is none here"
	}
	return "there are " + strings.Join(names, ", ")
}

// isOf refuses a body of another media type.
func (r *Request) isOf(takes string) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != takes {
		return problem(http.StatusUnsupportedMediaType, "not_json", "the body is %q; send %s", r.Header.Get("Content-Type"), takes)
	}
	return nil
}

// readBody reads what a write carries, which is not too much.
func (r *Request) readBody(w http.ResponseWriter) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytes))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return problem(http.StatusRequestEntityTooLarge, "body_too_large", "the body has more than %d bytes", bodyBytes)
	}
	if err != nil {
		return problem(http.StatusBadRequest, "body_invalid", "the body cannot be read: %v", err)
	}
	r.body = body
	return nil
}

// hash is what makes a request the same one when it comes again: who, to what, with what.
func (r *Request) hash() string {
	sum := sha256.New()
	for _, part := range []string{r.Identity.Name, r.Method, r.URL.RequestURI(), cmp.Or(r.sum, string(r.body))} {
		fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(sum.Sum(nil))
}
