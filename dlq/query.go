package dlq

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
)

// Query chooses letters of any sink. An empty field chooses all.
type Query struct {
	Filter               // Since is that of the time range
	Sink       string    // name
	State      State     // one that is open
	Until      time.Time // first failed before
	MinVersion cdc.Version
	MaxVersion cdc.Version
}

// QueryField is a field of a Query as operators write it.
type QueryField struct {
	Name, Doc string
	Values    []string // those there are; any when empty
}

// QueryFields are all of them. They are the flags of the commands and the parameters of
// the API.
func QueryFields() []QueryField {
	classes := make([]string, len(sinks.Classes))
	for i, class := range sinks.Classes {
		classes[i] = string(class)
	}
	var states []string
	for _, state := range openStates() {
		states = append(states, string(state))
	}
	return []QueryField{
		{Name: "sink", Doc: "only letters of this sink"},
		{Name: "table", Doc: "only letters of this table, as db.table"},
		{Name: "key", Doc: "only the letter of this primary key"},
		{Name: "state", Doc: "only letters in this state", Values: states},
		{Name: "class", Doc: "only letters of this class", Values: classes},
		{Name: "fingerprint", Doc: "only letters refused for this same reason"},
		{Name: "since", Doc: "only letters first refused since this time, or within this time, such as 2h"},
		{Name: "until", Doc: "only letters first refused before this time, or longer ago than this, such as 2h"},
		{Name: "min_version", Doc: "only letters of this version or a newer one"},
		{Name: "max_version", Doc: "only letters of this version or an older one"},
	}
}

// openStates are those in which a letter waits for something.
func openStates() []State {
	return slices.DeleteFunc(slices.Clone(States), func(s State) bool { return !s.Open() })
}

// FieldError is a mistake in a field of a Query.
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

var isFingerprint = regexp.MustCompile(`^[0-9a-f]{12}$`)

// ParseQuery reads a Query from its fields, with the sinks there are. A field that is not
// known, empty or not understood is a FieldError.
func ParseQuery(fields map[string]string, known []string, now time.Time) (Query, error) {
	var q Query
	var err error
	bad := func(field, format string, args ...any) {
		err = cmp.Or(err, error(&FieldError{field, fmt.Sprintf(format, args...)}))
	}
	version := func(field, text string) cdc.Version {
		n, wrong := strconv.ParseInt(text, 10, 64)
		if wrong != nil || n < 1 || n >= 1<<53 {
			bad(field, "%q is no version; use a number from 1 to 2^53-1", text)
		}
		return cdc.Version(n)
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		text := fields[field]
		if text == "" {
			bad(field, "is empty; leave it out to choose all")
			continue
		}
		switch field {
		case "sink":
			if q.Sink = text; !slices.Contains(known, text) {
				bad(field, "there is no sink %q; there are %s", text, strings.Join(known, ", "))
			}
		case "table":
			if q.Table = text; strings.Count(text, ".") < 1 || strings.HasPrefix(text, ".") || strings.HasSuffix(text, ".") {
				bad(field, "%q is not db.table; write for example shop.orders", text)
			}
		case "key":
			q.Key = text
		case "state":
			if q.State = State(text); !slices.Contains(openStates(), q.State) {
				bad(field, "%q is no state of an open letter; use one of %v", text, openStates())
			}
		case "class":
			if q.Class = sinks.Class(text); !slices.Contains(sinks.Classes, q.Class) {
				bad(field, "%q is not known; use one of %v", text, sinks.Classes)
			}
		case "fingerprint":
			if q.Fingerprint = strings.ToLower(text); !isFingerprint.MatchString(q.Fingerprint) {
				bad(field, "%q is not 12 hexadecimal digits; copy it from lockstep dlq group or lockstep status", text)
			}
		case "since":
			q.Since = moment(text, now, func(problem string) { bad(field, "%s", problem) })
		case "until":
			q.Until = moment(text, now, func(problem string) { bad(field, "%s", problem) })
		case "min_version":
			q.MinVersion = version(field, text)
		case "max_version":
			q.MaxVersion = version(field, text)
		default:
			var names []string
			for _, f := range QueryFields() {
				names = append(names, f.Name)
			}
			bad(field, "is no field of a dead letter to choose by; there are %s", strings.Join(names, ", "))
		}
	}
	switch {
	case err != nil:
	case !q.Since.IsZero() && !q.Until.IsZero() && !q.Since.Before(q.Until):
		bad("until", "is not after since, so no letter can be chosen")
	case q.MinVersion > q.MaxVersion && q.MaxVersion > 0:
		bad("max_version", "%d is below min_version, so no letter can be chosen", q.MaxVersion)
	}
	return q, err
}

// moment is a time, or how long before now it was.
func moment(text string, now time.Time, bad func(string)) time.Time {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago)
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		bad(fmt.Sprintf("%q is no time; write how long ago, such as 2h, or a time such as 2026-11-26T03:00:00Z", text))
	}
	return at
}

// Choose lists the letters of this box that q takes. The sink of q is not looked at.
func (l *Letters) Choose(ctx context.Context, q Query) ([]Letter, error) {
	letters, err := l.List(ctx, q.Filter)
	return slices.DeleteFunc(letters, func(l Letter) bool { return !q.takes(&l) }), err
}

// Order compares letters of several sinks: oldest failure first, and then by ID.
func Order(a, b Letter) int {
	return cmp.Or(a.FirstFailed.Compare(b.FirstFailed), strings.Compare(a.ID, b.ID))
}
