package dlq

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"lockstep/cdc"
	"lockstep/sinks"
)

// Mode says what a replay gives to the store.
type Mode string

const (
	// Resync reads the rows again from the source, as they are there now.
	Resync Mode = "resync"
	// Payload sends what was recorded.
	Payload Mode = "payload"
)

// Modes lists them, the default first.
var Modes = []Mode{Resync, Payload}

// Job is a replay that somebody has asked for. It does not change; how far it is stands
// in a Progress.
type Job struct {
	Format int       `json:"format"` // jobFormat
	ID     string    `json:"id"`
	Mode   Mode      `json:"mode"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason,omitempty"`
	Asked  time.Time `json:"asked"`
	// Filter holds fields of a Query with times that do not move, and IDs names letters:
	// it is about the open letters that both take. Without either it is about all.
	Filter map[string]string `json:"filter,omitempty"`
	IDs    []string          `json:"ids,omitempty"`
	// Rate is how many letters a second it begins at most; 0 is as fast as it goes.
	Rate int `json:"rate,omitempty"`
	// Canary is how many letters are replayed first. The others follow when CanaryShare
	// of these succeeded. 0 is none.
	Canary int `json:"canary,omitempty"`
}

const (
	jobFormat = 1
	// CanaryShare is how much of a canary has to succeed, in percent.
	CanaryShare = 95
	// MaxIDs bounds the letters that a job names one by one, so that it fits a record.
	MaxIDs = 1000
	// maxRate and maxCanary are far above what makes sense.
	maxRate, maxCanary = 1_000_000, 1_000_000
)

// JobID makes an ID that sorts by time.
func JobID(now time.Time) string {
	return now.UTC().Format("20060102T150405") + "-" + uuid.NewString()[:4]
}

// Check says what is wrong with a job as somebody asks for it, as a FieldError.
func (j *Job) Check() error {
	bad := func(field, format string, args ...any) error {
		return &FieldError{field, fmt.Sprintf(format, args...)}
	}
	switch {
	case !slices.Contains(Modes, j.Mode):
		return bad("mode", "%q is not known; use resync to read the rows again from MySQL, or payload to send what was recorded", j.Mode)
	case j.Rate < 0 || j.Rate > maxRate:
		return bad("rate", "%d is no number of letters a second; use 1 to %d, or 0 for as fast as it goes", j.Rate, maxRate)
	case j.Canary < 0 || j.Canary > maxCanary:
		return bad("canary", "%d is no number of letters; use 1 to %d, or 0 for none", j.Canary, maxCanary)
	case len(j.IDs) > MaxIDs:
		return bad("ids", "there are %d, and a job names at most %d; choose them by table, class or fingerprint", len(j.IDs), MaxIDs)
	case len(j.Reason) > textBytes:
		return bad("reason", "it has %d bytes; use at most %d", len(j.Reason), textBytes)
	}
	return nil
}

// Describe says in the fields of the audit log what a job is to do.
func (j *Job) Describe() map[string]string {
	what := map[string]string{"job": j.ID, "mode": string(j.Mode)}
	maps.Copy(what, j.Filter)
	if len(j.IDs) > 0 {
		what["ids"] = strings.Join(j.IDs, ",")
	}
	if j.Rate > 0 {
		what["rate"] = fmt.Sprint(j.Rate)
	}
	if j.Canary > 0 {
		what["canary"] = fmt.Sprint(j.Canary)
	}
	return what
}

// Fields are the fields that ParseQuery makes this Query from, at any later time.
func (q Query) Fields() map[string]string {
	fields := map[string]string{
		"sink": q.Sink, "table": q.Table, "key": q.Key, "state": string(q.State), "class": string(q.Class), "fingerprint": q.Fingerprint,
		"since": instant(q.Since), "until": instant(q.Until), "min_version": number(q.MinVersion), "max_version": number(q.MaxVersion),
	}
	maps.DeleteFunc(fields, func(_, value string) bool { return value == "" })
	return fields
}

func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func number(v cdc.Version) string {
	if v == 0 {
		return ""
	}
	return v.String()
}

// takes reports whether q takes a letter of its sink.
func (q Query) takes(l *Letter) bool {
	return q.Filter.takes(l) &&
		(q.State == "" || q.State == l.State) &&
		(q.Until.IsZero() || l.FirstFailed.Before(q.Until)) &&
		(q.MinVersion == 0 || l.Version >= q.MinVersion) &&
		(q.MaxVersion == 0 || l.Version <= q.MaxVersion)
}

// JobState says what is going on with a job.
type JobState string

const (
	JobAsked     JobState = "asked"     // no process has taken it up
	JobRunning   JobState = "running"   // or it waits; Waits says for what
	JobDone      JobState = "done"      // every letter was replayed, whatever came of it
	JobStopped   JobState = "stopped"   // its canary did not succeed
	JobCancelled JobState = "cancelled" // by an operator
	JobFailed    JobState = "failed"    // it cannot be carried out
)

// JobStates lists them in the order of a job's life.
var JobStates = []JobState{JobAsked, JobRunning, JobDone, JobStopped, JobCancelled, JobFailed}

// Over reports whether a job in this state has ended.
func (s JobState) Over() bool { return s != JobAsked && s != JobRunning }

// Fate is what a replay came to for one letter.
type Fate string

const (
	FateResolved   Fate = "resolved"   // the store has taken the recorded change
	FateResynced   Fate = "resynced"   // the store has the row as it was read again, or newer
	FateSuperseded Fate = "superseded" // the store has a newer change, or the row is gone
	FateSkipped    Fate = "skipped"    // the sink does not take the change any more
	FateClosed     Fate = "closed"     // it had ended before the job came to it
	FateStays      Fate = "stays"      // it is open still: refused again, or nothing can be done for it
)

// Fates lists them; only the last one is no success.
var Fates = []Fate{FateResolved, FateResynced, FateSuperseded, FateSkipped, FateClosed, FateStays}

// Stay is why letters of a job stay.
type Stay struct {
	Reason  string `json:"reason" doc:"of the first of them"`
	Letters int    `json:"letters"`
	Example string `json:"example" doc:"the ID of the first of them"`
}

// maxStays bounds the reasons that are kept apart.
const maxStays = 10

// Progress is how far a job is, as its runner saves it.
type Progress struct {
	Format int `json:"format"` // jobFormat
	// Run counts the processes that have taken the job up. What an earlier one still
	// writes counts no more.
	Run   int       `json:"run"`
	State JobState  `json:"state"`
	Began time.Time `json:"began"`
	At    time.Time `json:"at"` // of this record
	// Moved is when letters were last counted.
	Moved time.Time `json:"moved,omitzero"`
	Ended time.Time `json:"ended,omitzero"`
	// Scope holds for each sink where its letters ended when the job began, by partition:
	// a letter whose newest record stands behind that is none of the job's.
	Scope map[string][]int64 `json:"scope,omitempty"`
	// Total is how many letters were in the scope then.
	Total int `json:"total"`
	// Cursor is behind the last letter that is counted.
	Cursor  Cursor       `json:"cursor"`
	Letters map[Fate]int `json:"letters,omitempty"`
	Stays   []Stay       `json:"stays,omitempty"`
	Waits   string       `json:"waits,omitempty"`
	Problem string       `json:"problem,omitempty"`
}

// Cursor is a place in the letters of a job: sinks by name, their partitions, offsets.
type Cursor struct {
	Sink      string `json:"sink,omitempty"`
	Partition int    `json:"partition,omitempty"`
	Next      int64  `json:"next,omitempty"`
}

func (c Cursor) compare(o Cursor) int {
	return cmp.Or(strings.Compare(c.Sink, o.Sink), cmp.Compare(c.Partition, o.Partition), cmp.Compare(c.Next, o.Next))
}

// done is how many letters are counted.
func (p *Progress) done() (n int) {
	for _, letters := range p.Letters {
		n += letters
	}
	return n
}

// count notes what became of a letter.
func (p *Progress) count(f Fate, reason, id string) {
	p.Letters[f]++
	if f != FateStays {
		return
	}
	same := sinks.Fingerprint("", "", "", reason)
	for i := range p.Stays {
		if s := &p.Stays[i]; i == maxStays || sinks.Fingerprint("", "", "", s.Reason) == same {
			s.Letters++
			return
		}
	}
	if len(p.Stays) == maxStays {
		reason = "others"
	}
	p.Stays = append(p.Stays, Stay{sinks.Clip(reason, 300), 1, id})
}

// clone is a copy that shares nothing that changes.
func (p Progress) clone() Progress {
	p.Letters, p.Stays = maps.Clone(p.Letters), slices.Clone(p.Stays)
	if p.Letters == nil {
		p.Letters = map[Fate]int{}
	}
	return p
}

// JobStatus is a job and how far it is, as operators see it.
type JobStatus struct {
	ID     string            `json:"id"`
	State  JobState          `json:"state"`
	Mode   Mode              `json:"mode"`
	Filter map[string]string `json:"filter,omitempty" doc:"the fields that choose its letters"`
	IDs    []string          `json:"ids,omitempty" doc:"the letters that it names"`
	Rate   int               `json:"rate,omitempty" doc:"letters a second"`
	Canary int               `json:"canary,omitempty" doc:"letters that are replayed first"`
	Reason string            `json:"reason,omitempty"`
	Actor  string            `json:"actor"`
	Asked  time.Time         `json:"asked"`
	// CancelledBy is who wants it to end.
	CancelledBy  string     `json:"cancelled_by,omitempty" doc:"who has cancelled it"`
	CancelReason string     `json:"cancel_reason,omitempty" doc:"why"`
	Began        *time.Time `json:"began,omitempty"`
	Progressed   *time.Time `json:"progressed,omitempty" doc:"when it was last through with letters"`
	// UnheldSince is when a process was last heard of that carries it out, when none does.
	UnheldSince *time.Time   `json:"unheld_since,omitempty" doc:"no process has held it since: none that carries out replays runs. Missing while one does, and when it has ended"`
	Ended       *time.Time   `json:"ended,omitempty"`
	Total       int          `json:"total" doc:"letters that it is about, counted when it began"`
	Done        int          `json:"done" doc:"of those, the ones that it is through with"`
	Letters     map[Fate]int `json:"letters" doc:"those by what came of them: resolved (the store has taken the recorded change), resynced (it has the row as it was read again, or newer), superseded (it has a newer change, or the row is gone), skipped (the sink does not take it any more), closed (it had ended before the job came to it), stays"`
	Stays       []Stay       `json:"stays,omitempty" doc:"why letters stay, the first reasons"`
	Waits       string       `json:"waits,omitempty" doc:"what it waits for"`
	Problem     string       `json:"problem,omitempty" doc:"why it was stopped, cancelled or has failed"`
}

func status(j *Job, p *Progress, cancelledBy string) JobStatus {
	s := JobStatus{
		ID: j.ID, State: JobAsked, Mode: j.Mode, Filter: j.Filter, IDs: j.IDs, Rate: j.Rate, Canary: j.Canary,
		Reason: j.Reason, Actor: j.Actor, Asked: j.Asked, CancelledBy: cancelledBy, Letters: map[Fate]int{},
	}
	for _, f := range Fates {
		s.Letters[f] = 0
	}
	if p == nil {
		return s
	}
	s.State, s.Total, s.Done, s.Stays, s.Waits, s.Problem = p.State, p.Total, p.done(), p.Stays, p.Waits, p.Problem
	maps.Copy(s.Letters, p.Letters)
	s.Began = &p.Began
	if !p.Moved.IsZero() {
		s.Progressed = &p.Moved
	}
	if !p.Ended.IsZero() {
		s.Ended = &p.Ended
	}
	return s
}

// Stay is how many letters stay, of those that the job is through with.
func (s *JobStatus) Stay() int { return s.Letters[FateStays] }
