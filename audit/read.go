package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"lockstep/kafka"
)

// Listed is an act as it is shown: both its records in one.
type Listed struct {
	Seq   int64     `json:"seq" yaml:"seq"` // of its first record
	ID    string    `json:"id" yaml:"id"`
	Began time.Time `json:"began" yaml:"began"`
	// Ended is missing while it is under way, and for one that was cut off.
	Ended     *time.Time        `json:"ended,omitempty" yaml:"ended,omitempty"`
	Actor     string            `json:"actor" yaml:"actor"`
	Via       string            `json:"via" yaml:"via"`
	Act       string            `json:"act" yaml:"act"`
	Filter    map[string]string `json:"filter,omitempty" yaml:"filter,omitempty"`
	Reason    string            `json:"reason,omitempty" yaml:"reason,omitempty"`
	RequestID string            `json:"request_id,omitempty" yaml:"request_id,omitempty"`
	// Outcome is done or failed; begun when there is no end, and unconfirmed when not even
	// the beginning counts: nothing was done, because its writer was killed before it
	// could say it again, or another process did the same request.
	Outcome Outcome        `json:"outcome" yaml:"outcome"`
	Problem string         `json:"problem,omitempty" yaml:"problem,omitempty"`
	Counts  map[string]int `json:"counts,omitempty" yaml:"counts,omitempty"`
}

// What Listed.Outcome is for an act without an end.
const (
	Begun       Outcome = "begun"
	Unconfirmed Outcome = "unconfirmed"
)

// Filter chooses acts. An empty field chooses all.
type Filter struct {
	Since, Until time.Time // it began at or after, and before
	Actor        string    // as it is, or with a * at its end: what begins so
	Act          string    // likewise: dlq.*
}

// Acts are those there are, by name.
var Acts = []string{
	"capture.epoch", "capture.skip_gtid", "dlq.cancel", "dlq.import", "dlq.patch", "dlq.replay", "dlq.replay.end", "dlq.skip", "log.level",
	"rebuild", "rebuild.drop-old", "reconcile.repair", "snapshot.cancel", "snapshot.pause", "snapshot.resnapshot", "snapshot.resume", "snapshot.start",
}

// Check says that no act is called as the filter has it.
func (f Filter) Check() error {
	if !slices.ContainsFunc(Acts, func(act string) bool { return like(f.Act, act) }) {
		return fmt.Errorf("%q is no act; there are %s", f.Act, strings.Join(Acts, ", "))
	}
	return nil
}

func (f Filter) takes(l *Listed) bool {
	return !l.Began.Before(f.Since) && (f.Until.IsZero() || l.Began.Before(f.Until)) && like(f.Actor, l.Actor) && like(f.Act, l.Act)
}

func like(pattern, text string) bool {
	if begin, open := strings.CutSuffix(pattern, "*"); open {
		return strings.HasPrefix(text, begin)
	}
	return pattern == "" || pattern == text
}

// List reads the log and returns the acts that f takes, oldest first, and at how many
// places the chain is broken: what is said there may not be believed, and Verify tells
// more.
func List(ctx context.Context, k Kafka, prefix string, f Filter) (chosen []Listed, breaks int, err error) {
	var acts []*Listed
	byID := map[string]*Listed{}
	_, err = walk(ctx, k, prefix, func(_ kafka.Record, r Record, s standing, _ string) {
		if s == isBroken {
			breaks++
		}
		if r.ID == "" {
			return
		}
		l := byID[r.ID]
		if l == nil {
			l = &Listed{
				Seq: r.Seq, ID: r.ID, Began: r.At, Actor: r.Actor, Via: r.Via, Act: r.Name,
				Filter: r.Filter, Reason: r.Reason, RequestID: r.Request, Outcome: Unconfirmed,
			}
			byID[r.ID] = l
			acts = append(acts, l)
		}
		switch {
		case s == isLate:
		case r.Step == Began:
			l.Seq, l.Outcome = r.Seq, Begun
		default:
			l.Ended, l.Outcome, l.Problem, l.Counts = &r.At, r.Outcome, r.Problem, r.Counts
		}
	})
	if err != nil {
		return nil, 0, err
	}
	chosen = []Listed{}
	for _, l := range acts {
		if f.takes(l) {
			chosen = append(chosen, *l)
		}
	}
	return chosen, breaks, nil
}

// Verified is what is to be said of the whole log.
type Verified struct {
	Records int64 `json:"records" yaml:"records"`
	// Late records stand for nothing: another process was faster, and they were said
	// again behind it, or their writer was killed and did nothing.
	Late   int64   `json:"late" yaml:"late"`
	Breaks []Break `json:"breaks" yaml:"breaks"`
	// Head is the hash over all of it. Who keeps it elsewhere can tell later that
	// nothing up to here was taken away or written anew.
	Head Hash `json:"head" yaml:"head"`
}

// Break is a record that cannot stand where it stands.
type Break struct {
	Offset  int64     `json:"offset" yaml:"offset"`
	Time    time.Time `json:"time" yaml:"time"` // by the broker
	Problem string    `json:"problem" yaml:"problem"`
}

// Verify reads the whole log and finds what was removed, changed, moved or put in. head,
// if not nil, is one that was kept from an earlier time and must be in the chain: without
// it, records that were taken from the end, or written anew up to the end, are not found.
func Verify(ctx context.Context, k Kafka, prefix string, head *Hash) (Verified, error) {
	v := Verified{Breaks: []Break{}}
	c, err := walk(ctx, k, prefix, func(at kafka.Record, _ Record, s standing, problem string) {
		v.Records++
		switch s {
		case isLate:
			v.Late++
		case isBroken:
			v.Breaks = append(v.Breaks, Break{at.Offset, at.Time, problem})
		}
	})
	if err != nil {
		return v, err
	}
	v.Head = c.head
	if _, known := c.heads[valueOr(head, c.head)]; !known {
		v.Breaks = append(v.Breaks, Break{Offset: -1, Problem: fmt.Sprintf("the head %s was never in this log: its end was taken away, or it was written anew", *head)})
	}
	return v, nil
}

func valueOr(h *Hash, other Hash) Hash {
	if h == nil {
		return other
	}
	return *h
}

func walk(ctx context.Context, k Kafka, prefix string, fn func(k kafka.Record, r Record, s standing, problem string)) (*chain, error) {
	c := newChain(prefix)
	_, err := k.ReadFrom(ctx, TopicOf(prefix), 0, 0, func(at kafka.Record) error {
		r, s, problem := c.add(at.Value)
		fn(at, r, s, problem)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	return c, nil
}
