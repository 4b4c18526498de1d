package dlq

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"lockstep/kafka"
	"lockstep/sinks"
)

// JobLog is the part of Kafka that jobs need.
type JobLog interface {
	EnsureTopic(ctx context.Context, spec kafka.TopicSpec) error
	// Produce writes a record and returns when all in-sync replicas have it.
	Produce(ctx context.Context, r kafka.Record) error
	// ReadFrom calls fn with the records of a partition from an offset to the end of
	// this moment, and returns where to go on.
	ReadFrom(ctx context.Context, topic string, partition int, from int64, fn func(kafka.Record) error) (int64, error)
}

// JobsTopic is where replays are asked for and tell how far they are.
func JobsTopic(prefix string) string { return prefix + ".jobs" }

// JobsSpec is that topic.
func JobsSpec(prefix string) kafka.TopicSpec {
	return kafka.TopicSpec{Name: JobsTopic(prefix), Partitions: 1, Compacted: true}
}

// Jobs are the replays of a pipeline. They stand in a compacted topic. A job has up to
// three keys, each with one kind of writer, so that none overwrites what another has said:
// its ID (who asks), ID/progress (its runner) and ID/cancel (who cancels). Several
// goroutines may use it.
type Jobs struct {
	Prefix string
	Kafka  JobLog
	Log    *slog.Logger
	// Held reports whether a process carries out replays. Without it nobody is told that none
	// does.
	Held func(ctx context.Context) (bool, error)

	mu    sync.Mutex
	made  bool
	next  int64 // offset
	known map[string]*jobRecord
}

const (
	// jobHistory is how long a job is kept that has ended.
	jobHistory = 7 * 24 * time.Hour
	// shownJobs is how many jobs that have ended are kept and shown at most.
	shownJobs = 200

	progressKey, cancelKey = "/progress", "/cancel"
)

// jobRecord is what the topic says of a job.
type jobRecord struct {
	job      *Job
	progress *Progress
	cancel   *cancellation
}

// cancellation asks for the end of a job.
type cancellation struct {
	Format int       `json:"format"` // jobFormat
	ID     string    `json:"id"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// Ensure makes the topic if it is not there.
func (j *Jobs) Ensure(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ensure(ctx)
}

func (j *Jobs) ensure(ctx context.Context) error {
	if j.made {
		return nil
	}
	err := j.Kafka.EnsureTopic(ctx, JobsSpec(j.Prefix))
	j.made = err == nil
	return err
}

// look reads what is new in the topic. What cannot be read is reported and passed over.
func (j *Jobs) look(ctx context.Context) (err error) {
	if err := j.ensure(ctx); err != nil {
		return err
	}
	if j.known == nil {
		j.known = map[string]*jobRecord{}
	}
	j.next, err = j.Kafka.ReadFrom(ctx, JobsTopic(j.Prefix), 0, j.next, func(r kafka.Record) error {
		if err := j.note(r); err != nil && j.Log != nil {
			j.Log.Warn("a record of a replay job is passed over", "topic", r.Topic, "offset", r.Offset, "key", string(r.Key), "error", err)
		}
		return nil
	})
	if errors.Is(err, kafka.ErrDataLost) { // the topic was made anew, and so is what is known of it
		j.next, j.known = 0, nil
	}
	j.made = err == nil
	return err
}

// note takes a record of the topic in.
func (j *Jobs) note(r kafka.Record) error {
	id, kind := string(r.Key), ""
	if i := strings.IndexByte(id, '/'); i >= 0 {
		id, kind = id[:i], id[i:]
	}
	if r.Value == nil {
		if kind == "" { // it is deleted, with all that is said of it
			delete(j.known, id)
		}
		return nil
	}
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(r.Value, &head); err != nil {
		return err
	}
	if head.Format != jobFormat {
		return fmt.Errorf("it has format %d and this program knows %d", head.Format, jobFormat)
	}
	known := j.known[id]
	if known == nil {
		known = &jobRecord{}
	}
	var err error
	switch kind {
	case "":
		job := &Job{}
		if err = json.Unmarshal(r.Value, job); err == nil && job.ID != id {
			err = fmt.Errorf("it is of job %q", job.ID)
		}
		if err == nil {
			err = job.Check() // what nobody can carry out would wait for ever
		}
		if err == nil {
			known.job = job
		}
	case progressKey:
		p := &Progress{}
		if err = json.Unmarshal(r.Value, p); err == nil && !slices.Contains(JobStates, p.State) {
			err = fmt.Errorf("its state is %q", p.State)
		}
		if err != nil || known.progress != nil && p.older(known.progress) {
			return err
		}
		known.progress = p
	case cancelKey:
		c := &cancellation{}
		if err = json.Unmarshal(r.Value, c); err == nil {
			known.cancel = c
		}
	default:
		err = fmt.Errorf("nobody knows what %q is", kind)
	}
	if err == nil {
		j.known[id] = known
	}
	return err
}

// older reports whether another progress counts more: that of a later run, or of two at
// once the one that came to an end.
func (p *Progress) older(o *Progress) bool {
	return p.Run < o.Run || p.Run == o.Run && o.State.Over() && !p.State.Over()
}

func (r *jobRecord) status() JobStatus {
	if r.cancel == nil {
		return status(r.job, r.progress, "")
	}
	s := status(r.job, r.progress, r.cancel.Actor)
	s.CancelReason = r.cancel.Reason
	return s
}

// statuses are those of jobs, and say of which that have not ended no process holds them.
func (j *Jobs) statuses(ctx context.Context, records ...*jobRecord) ([]JobStatus, error) {
	list := make([]JobStatus, len(records))
	open := false
	for i, r := range records {
		list[i] = r.status()
		open = open || !r.over()
	}
	if !open || j.Held == nil {
		return list, nil
	}
	held, err := j.Held(ctx)
	if err != nil {
		return nil, fmt.Errorf("whether a process carries out replays: %w", err)
	}
	for i, r := range records {
		switch {
		case held || r.over():
		case r.progress == nil:
			list[i].UnheldSince = &r.job.Asked
		default:
			list[i].UnheldSince = &r.progress.At
		}
	}
	return list, nil
}

func (r *jobRecord) over() bool { return r.progress != nil && r.progress.State.Over() }

// List returns the jobs that have not ended and the newest that ended within a week, oldest
// first.
func (j *Jobs) List(ctx context.Context) ([]JobStatus, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.look(ctx); err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	all := j.ordered()
	old := outdated(all, time.Now())
	return j.statuses(ctx, slices.DeleteFunc(all, func(r *jobRecord) bool { return slices.Contains(old, r.job.ID) })...)
}

// ordered are the jobs, oldest first.
func (j *Jobs) ordered() (all []*jobRecord) {
	for _, r := range j.known {
		if r.job != nil {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *jobRecord) int {
		return cmp.Or(a.job.Asked.Compare(b.job.Asked), strings.Compare(a.job.ID, b.job.ID))
	})
	return all
}

// Find returns the job with this ID; false when there is none.
func (j *Jobs) Find(ctx context.Context, id string) (JobStatus, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.look(ctx); err != nil {
		return JobStatus{}, false, fmt.Errorf("read jobs: %w", err)
	}
	r := j.known[id]
	if r == nil || r.job == nil {
		return JobStatus{}, false, nil
	}
	list, err := j.statuses(ctx, r)
	if err != nil {
		return JobStatus{}, false, err
	}
	return list[0], true, nil
}

// Ask asks for a job. One that is known by this ID is left as it is.
func (j *Jobs) Ask(ctx context.Context, job Job) (JobStatus, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.look(ctx); err != nil {
		return JobStatus{}, fmt.Errorf("read jobs: %w", err)
	}
	if r := j.known[job.ID]; r != nil && r.job != nil {
		return r.status(), nil
	}
	job.Format = jobFormat
	if err := j.write(ctx, job.ID, job); err != nil {
		return JobStatus{}, fmt.Errorf("ask for job %s: %w", job.ID, err)
	}
	return status(&job, nil, ""), nil
}

// Cancel asks for the end of a job. It has no effect on one that has ended.
func (j *Jobs) Cancel(ctx context.Context, id, actor, reason string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.ensure(ctx); err != nil {
		return err
	}
	if err := j.write(ctx, id+cancelKey, cancellation{jobFormat, id, actor, sinks.Clip(reason, textBytes), time.Now().UTC()}); err != nil {
		return fmt.Errorf("cancel job %s: %w", id, err)
	}
	return nil
}

// save writes down how far a job is.
func (j *Jobs) save(ctx context.Context, id string, p Progress) error {
	p.Format, p.At = jobFormat, time.Now().UTC()
	if err := j.write(ctx, id+progressKey, p); err != nil {
		return fmt.Errorf("save job %s: %w", id, err)
	}
	return nil
}

// forget deletes jobs whose time is over.
func (j *Jobs) forget(ctx context.Context, ids []string) error {
	for _, id := range ids {
		for _, key := range []string{id, id + cancelKey, id + progressKey} { // the job first: without its progress it would begin anew
			if err := j.Kafka.Produce(ctx, kafka.Record{Topic: JobsTopic(j.Prefix), Key: []byte(key)}); err != nil {
				return fmt.Errorf("forget job %s: %w", id, err)
			}
		}
	}
	return nil
}

func (j *Jobs) write(ctx context.Context, key string, v any) error {
	var value bytes.Buffer
	to := json.NewEncoder(&value)
	to.SetEscapeHTML(false)
	if err := to.Encode(v); err != nil {
		return err
	}
	return j.Kafka.Produce(ctx, kafka.Record{Topic: JobsTopic(j.Prefix), Key: []byte(key), Value: value.Bytes()})
}

// outdated are the IDs of jobs that ended a week ago, and of the oldest that have ended
// when there are many. The jobs come oldest first.
func outdated(jobs []*jobRecord, now time.Time) (ids []string) {
	over := 0
	for _, r := range jobs {
		if r.over() {
			over++
		}
	}
	for _, r := range jobs {
		if r.over() && (over > shownJobs || now.Sub(r.progress.Ended) > jobHistory) {
			ids = append(ids, r.job.ID)
			over--
		}
	}
	return ids
}
