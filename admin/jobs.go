package admin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"time"

	"lockstep/dlq"
)

// Jobs are the replays of a pipeline: dlq.Jobs.
type Jobs interface {
	// List returns the jobs that have not ended and the newest that have, oldest first.
	List(ctx context.Context) ([]dlq.JobStatus, error)
	// Find returns the job with this ID; false when there is none.
	Find(ctx context.Context, id string) (dlq.JobStatus, bool, error)
	// Ask asks for a job. One that is known by this ID is left as it is.
	Ask(ctx context.Context, job dlq.Job) (dlq.JobStatus, error)
	// Cancel asks for the end of a job.
	Cancel(ctx context.Context, id, actor, reason string) error
}

type replayBody struct {
	choice
	Mode   dlq.Mode `json:"mode,omitempty" doc:"resync reads the rows again from MySQL and is the default, payload sends what was recorded"`
	Rate   int      `json:"rate,omitempty" doc:"letters a second at most; 0 is as fast as the store takes them"`
	Canary int      `json:"canary,omitempty" doc:"so many letters first; the others follow only when at least 95 % of these succeeded"`
	Reason string   `json:"reason,omitempty" doc:"why, for the audit log and those who ask later"`
}

type cancelBody struct {
	Reason string `json:"reason,omitempty" doc:"why, for the audit log and those who ask later"`
}

// jobPage is a part of the list.
type jobPage struct {
	Jobs []dlq.JobStatus `json:"jobs" doc:"oldest first"`
	Next string          `json:"next,omitempty" doc:"the cursor of the page behind this one; missing on the last page"`
}

// JobRoutes are the operations on replays.
func JobRoutes(d Desk, jobs Jobs) []Route {
	id := []Param{{Name: "id", Doc: "the job's ID"}}
	states := make([]string, len(dlq.JobStates))
	for i, state := range dlq.JobStates {
		states[i] = string(state)
	}
	listed := paged(pageMost, Param{Name: "state", Doc: "only replays in this state", Enum: states})
	unknown := Code{http.StatusBadRequest, "parameter_unknown", ""}
	none := Code{http.StatusNotFound, "no_job", "it never was, or ended more than a week ago"}
	return []Route{
		{
			Method: http.MethodPost, Path: "/v1/dlq/replay", ID: "replayLetters", Short: "Replay dead letters", Body: replayBody{}, Answer: dlq.JobStatus{},
			Long: "Makes a job of the chosen letters that are open when it begins, which a process of the pipeline carries out. " +
				"A replay goes through the version guard, so it may run twice, late or beside another one.",
			Codes: []Code{unknown, {http.StatusBadRequest, "nothing_chosen", ""}, {http.StatusBadRequest, "parameter_invalid", ""}, {http.StatusNotFound, "no_letter", ""}, {http.StatusConflict, "no_letters", ""}},
			Act:   "dlq.replay",
			Write: func(ctx context.Context, r *Request) (*Work, error) { return replay(ctx, r, d, jobs) },
		},
		{
			Method: http.MethodGet, Path: "/v1/dlq/jobs", ID: "listJobs", Short: "List replays", Query: listed, Answer: jobPage{},
			Codes: []Code{unknown, {http.StatusBadRequest, "parameter_invalid", ""}, {http.StatusBadRequest, "cursor_invalid", ""}},
			Long:  "Those under way, and those that ended within a week, at most 200 of them.",
			Read:  func(ctx context.Context, r *Request) (any, error) { return listJobs(ctx, r, jobs, listed) },
		},
		{
			Method: http.MethodGet, Path: "/v1/dlq/jobs/{id}", ID: "getJob", Short: "Show how far a replay is", Wildcards: id, Answer: dlq.JobStatus{}, Tagged: true,
			Codes: []Code{unknown, none},
			Read: func(ctx context.Context, r *Request) (any, error) {
				return findJob(ctx, r, jobs)
			},
		},
		{
			Method: http.MethodPost, Path: "/v1/dlq/jobs/{id}/cancel", ID: "cancelJob", Short: "End a replay", Wildcards: id, Body: cancelBody{}, Answer: dlq.JobStatus{}, Tagged: true,
			Long:  "What it has replayed by then stays so. The answer is the job as it was when that was asked for.",
			Codes: []Code{unknown, none, {http.StatusConflict, "job_ended", ""}, {http.StatusPreconditionFailed, "changed", ""}},
			Act:   "dlq.cancel",
			Write: func(ctx context.Context, r *Request) (*Work, error) {
				var body cancelBody
				if err := r.Decode(&body); err != nil {
					return nil, err
				}
				s, err := findJob(ctx, r, jobs)
				if err != nil {
					return nil, err
				}
				if s.State.Over() {
					return nil, problem(http.StatusConflict, "job_ended", "replay %s has ended already: it is %s", s.ID, s.State)
				}
				return &Work{Filter: map[string]string{"job": s.ID}, Reason: body.Reason, Do: func(ctx context.Context) (any, map[string]int, error) {
					s.CancelledBy, s.CancelReason = r.Identity.Name, body.Reason
					return s, map[string]int{"jobs": 1}, jobs.Cancel(ctx, s.ID, r.Identity.Name, body.Reason)
				}}, nil
			},
		},
	}
}

func listJobs(ctx context.Context, r *Request, jobs Jobs, known []Param) (any, error) {
	p, err := r.page(known, pageMost)
	if err != nil {
		return nil, err
	}
	state, given := p.fields["state"]
	if given && !slices.Contains(dlq.JobStates, dlq.JobState(state)) {
		return nil, problem(http.StatusBadRequest, "parameter_invalid", "state: %q is not known; use one of %v", state, dlq.JobStates)
	}
	all, err := jobs.List(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s dlq.JobStatus) bool {
		return given && s.State != dlq.JobState(state) || !p.behind(s.Asked, s.ID)
	})
	list, next := cut(all, p, func(s dlq.JobStatus) (time.Time, string) { return s.Asked, s.ID })
	return jobPage{list, next}, nil
}

// findJob is the job of the path, with its ETag.
func findJob(ctx context.Context, r *Request, jobs Jobs) (dlq.JobStatus, error) {
	if _, err := r.fields(nil); err != nil {
		return dlq.JobStatus{}, err
	}
	s, found, err := jobs.Find(ctx, r.PathValue("id"))
	if err != nil {
		return s, err
	}
	if !found {
		return s, problem(http.StatusNotFound, "no_job", "no replay has the ID %s", r.PathValue("id"))
	}
	return s, r.Tag(s)
}

// replay prepares a job. Its ID comes from the request, so that a request that was cut off
// and is done again makes no second one.
func replay(ctx context.Context, r *Request, d Desk, jobs Jobs) (*Work, error) {
	if _, err := r.fields(nil); err != nil {
		return nil, err
	}
	var body replayBody
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	query, err := body.query(d)
	if err != nil {
		return nil, err
	}
	if body.Mode == "" {
		body.Mode = dlq.Resync
	}
	job := dlq.Job{
		Mode: body.Mode, Actor: r.Identity.Name, Reason: body.Reason, Asked: time.Now().UTC(),
		Filter: query.Fields(), IDs: body.IDs, Rate: body.Rate, Canary: body.Canary,
	}
	if err := job.Check(); err != nil {
		return nil, invalid(err)
	}
	if len(body.IDs)+len(body.Filter) > 0 {
		if _, err := body.letters(ctx, d, query); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256([]byte(r.ID + "\x00" + r.hash()))
	job.ID = "http-" + hex.EncodeToString(sum[:6])
	return &Work{Filter: job.Describe(), Reason: body.Reason, Do: func(ctx context.Context) (any, map[string]int, error) {
		s, err := jobs.Ask(ctx, job)
		return s, map[string]int{"jobs": 1}, err
	}}, nil
}
