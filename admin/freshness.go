package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"lockstep/freshness"
)

// Freshness is what the operations on freshness work with.
type Freshness struct {
	Barrier *freshness.Barrier
	// Sinks are the names of the sinks there are.
	Sinks func() []string
	// Check says as a dlq.FieldError what is wrong with a question.
	Check func(freshness.Ask) error
}

const (
	barrierWait = 5 * time.Second
	rowWait     = 200 * time.Millisecond
	// mostWait leaves room for the answer within timeLimit.
	mostWait = timeLimit - 5*time.Second
)

// FreshnessRoutes wait for what is committed to be in the sinks.
func FreshnessRoutes(f *Freshness) []Route {
	gtid := Param{Name: "gtid", Doc: "the transactions that are waited for, as the source writes GTIDs; all that are committed when the request comes when it is left out"}
	wait := func(name string, usual time.Duration) Param {
		return Param{Name: name, Doc: fmt.Sprintf("how long to wait at most, such as 500ms, up to %s; %s when it is left out", mostWait, usual)}
	}
	asked := []Param{
		{Name: "sink", Doc: "the sink that matters; every sink when it is left out"},
		{Name: "table", Doc: "db.table, the table that matters; every table when it is left out"},
		gtid, wait("timeout", barrierWait),
		{Name: "search", Doc: "true: wait until searches find it, too, which costs a refresh of the indices", Enum: []string{"true", "false"}},
	}
	row := []Param{gtid, wait("wait", rowWait)}
	wrong := []Code{{http.StatusBadRequest, "parameter_unknown", ""}, {http.StatusBadRequest, "parameter_invalid", ""},
		{http.StatusServiceUnavailable, "barriers_busy", "too many wait at once"}, {http.StatusServiceUnavailable, "source_silent", "what is committed cannot be asked for"}}
	return []Route{
		{
			Method: http.MethodGet, Path: "/v1/barrier", ID: "getBarrier", Short: "Wait until what is committed is in the sinks",
			Query: asked, Answer: freshness.Answer{}, Codes: wrong, Often: true,
			Long: "It answers when everything that was committed before the request, or gtid, is in the sinks, with visible true; when the timeout is over, with visible false and for what it waits; and when a dead letter hides a row, likewise. It never answers with visible true too early.",
			Read: func(ctx context.Context, r *Request) (any, error) { return f.barrier(ctx, r, asked) },
		},
		{
			Method: http.MethodGet, Path: "/v1/freshness/{sink}/{table}/{key}", ID: "getFreshness", Short: "Tell whether a row is in a sink as a transaction left it",
			Wildcards: []Param{{Name: "sink", Doc: "the sink"}, {Name: "table", Doc: "db.table"}, {Name: "key", Doc: "the primary key as text, as dead letters have it, exactly as the row has it, or as a JSON object"}},
			Query:     row, Answer: freshness.Row{}, Codes: wrong, Often: true,
			Long: "applied: it is there as the transactions left it, or newer. pending: it is not, and waits_for says why. dead-lettered: the sink has refused it. unknown: nobody is heard of who would know. A row that gtid has not touched is applied once gtid has passed.",
			Read: func(ctx context.Context, r *Request) (any, error) { return f.row(ctx, r, row) },
		},
	}
}

func (f *Freshness) barrier(ctx context.Context, r *Request, known []Param) (any, error) {
	fields, err := r.fields(known)
	if err != nil {
		return nil, err
	}
	ask := freshness.Ask{Sinks: f.Sinks(), Table: fields["table"], GTIDs: fields["gtid"], Search: fields["search"] == "true"}
	if sink, given := fields["sink"]; given {
		ask.Sinks = []string{sink}
	}
	if s := fields["search"]; s != "" && s != "true" && s != "false" {
		return nil, problem(http.StatusBadRequest, "parameter_invalid", "search: %q is not known; use true or false", s)
	}
	ctx, cancel, err := f.within(ctx, "timeout", fields, barrierWait, ask)
	if err != nil {
		return nil, err
	}
	defer cancel()
	answer, err := f.Barrier.Await(ctx, ask)
	return answer, unanswered(err)
}

func (f *Freshness) row(ctx context.Context, r *Request, known []Param) (any, error) {
	fields, err := r.fields(known)
	if err != nil {
		return nil, err
	}
	ask := freshness.Ask{Sinks: []string{r.PathValue("sink")}, Table: r.PathValue("table"), Key: r.PathValue("key"), GTIDs: fields["gtid"]}
	ctx, cancel, err := f.within(ctx, "wait", fields, rowWait, ask)
	if err != nil {
		return nil, err
	}
	defer cancel()
	row, err := f.Barrier.Row(ctx, ask.Sinks[0], ask.Table, ask.Key, ask.GTIDs)
	return row, unanswered(err)
}

// within checks a question, and bounds the time that it may take.
func (f *Freshness) within(ctx context.Context, name string, fields map[string]string, usual time.Duration, ask freshness.Ask) (context.Context, context.CancelFunc, error) {
	for _, sink := range ask.Sinks {
		if !slices.Contains(f.Sinks(), sink) {
			return nil, nil, problem(http.StatusBadRequest, "parameter_invalid", "sink: there is no sink %q; there are %s", sink, strings.Join(f.Sinks(), ", "))
		}
	}
	wait := usual
	if text, given := fields[name]; given {
		var err error
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 || wait > mostWait {
			return nil, nil, problem(http.StatusBadRequest, "parameter_invalid", "%s: %q is no time that can be waited; write for example 500ms, up to %s", name, text, mostWait)
		}
	}
	if err := f.Check(ask); err != nil {
		return nil, nil, invalid(err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	return ctx, cancel, nil
}

// unanswered is why there is no answer, as a problem.
func unanswered(err error) error {
	switch {
	case err == nil:
		return nil
	case invalid(err) != err:
		return invalid(err)
	case errors.Is(err, freshness.ErrBusy):
		return problem(http.StatusServiceUnavailable, "barriers_busy", "%v", err)
	}
	return problem(http.StatusServiceUnavailable, "source_silent", "%v", err)
}
