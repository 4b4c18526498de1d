package admin

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"lockstep/route"
)

// Gateways is what the operations on routes work with.
type Gateways interface {
	// Ready reports whether it is known what was so before this process was started.
	Ready() bool
	// Answer says where a table is to be read; false for one that is not captured.
	Answer(table string) (route.Advice, bool)
	// Tables are those that are known.
	Tables() []string
	// Changed is closed with the next change of a route.
	Changed() <-chan struct{}
}

// routeList is where all tables are to be read.
type routeList struct {
	Tables []route.Advice `json:"tables" doc:"by name"`
}

// waitMost is how long a request may wait for news: less than timeLimit.
const waitMost = 25 * time.Second

// UsableHeader says, with a 304 too, for how many seconds after it has come the answer may
// be used.
const UsableHeader = "Lockstep-Usable-Seconds"

// GatewayRoutes are the operations that tell gateways where to read.
func GatewayRoutes(g Gateways) []Route {
	const long = "Rows are read from the sink while its state is ok or warning, and from MySQL while it is degraded; while it returns, a share of the keys reads from the sink: " +
		"those whose CRC-32 (IEEE) of the key's bytes, modulo 100, is below the share, so a key stays on its side while the share grows. " +
		"An answer may be used until usable_until, also when Lockstep cannot be asked again; then read from MySQL. " +
		"The ETag stands for what is to be done and not for the texts. With Accept: text/event-stream an event comes at once, with every change, and three times within that time."
	wait := Param{Name: "wait", Doc: "with If-None-Match: how long to wait for another answer, up to 25s; then it is 304 with the header " + UsableHeader}
	one := gate{g, []Param{
		{Name: "key", Doc: "answer for this key alone: read is sink or mysql"},
		{Name: "sink", Doc: "answer for this sink alone"}, wait,
	}, func(r *Request, fields map[string]string) (any, []route.Advice, error) {
		table := r.PathValue("table")
		a, ok := g.Answer(table)
		if !ok {
			return nil, nil, problem(http.StatusNotFound, "table_unknown", "the table %q is not captured; write db.table, and see GET /v1/route", table)
		}
		if sink, given := fields["sink"]; given {
			if a, ok = a.Of(sink); !ok {
				return nil, nil, problem(http.StatusNotFound, "sink_unknown", "the table %s does not go to a sink %q", table, sink)
			}
		}
		if key, given := fields["key"]; given {
			a = a.For(key)
		}
		return a, []route.Advice{a}, nil
	}}
	all := gate{g, []Param{wait}, func(*Request, map[string]string) (any, []route.Advice, error) {
		list := routeList{Tables: []route.Advice{}}
		for _, table := range g.Tables() {
			if a, ok := g.Answer(table); ok {
				list.Tables = append(list.Tables, a)
			}
		}
		return list, list.Tables, nil
	}}
	invalid := Code{http.StatusBadRequest, "parameter_invalid", ""}
	unknown := Code{http.StatusBadRequest, "parameter_unknown", ""}
	return []Route{{
		Method: http.MethodGet, Path: "/v1/route/{table}", ID: "getRoute", Short: "Where a table is to be read", Long: long,
		Wildcards: []Param{{Name: "table", Doc: "db.table"}},
		Query:     one.params, Answer: route.Advice{}, Tagged: true, Open: true, Often: true, Read: one.read, Watch: one.watch,
		Codes: []Code{invalid, unknown, {http.StatusNotFound, "table_unknown", ""}, {http.StatusNotFound, "sink_unknown", ""}, {http.StatusServiceUnavailable, "busy", ""}, {http.StatusServiceUnavailable, "starting", ""}},
	}, {
		Method: http.MethodGet, Path: "/v1/route", ID: "listRoutes", Short: "Where all tables are to be read", Long: long,
		Query: all.params, Answer: routeList{}, Tagged: true, Open: true, Often: true, Read: all.read, Watch: all.watch,
		Codes: []Code{invalid, unknown, {http.StatusServiceUnavailable, "busy", ""}, {http.StatusServiceUnavailable, "starting", ""}},
	}}
}

// gate answers one kind of question.
type gate struct {
	Gateways
	params []Param
	answer func(*Request, map[string]string) (any, []route.Advice, error)
}

// read answers at once, or when there is another answer than the one that who asks has.
func (g gate) read(ctx context.Context, r *Request) (any, error) {
	fields, wait, err := g.ask(r)
	if err != nil {
		return nil, err
	}
	late := time.NewTimer(wait)
	defer late.Stop()
	for {
		changed := g.Changed() // before the answer, so that nothing is missed in between
		out, answers, err := g.answer(r, fields)
		if err != nil {
			return nil, err
		}
		tag, usable := adviceTag(answers)
		if err := r.Tag(tag); err != nil {
			return nil, err
		}
		r.header.Set(UsableHeader, strconv.FormatFloat(usable.Seconds(), 'f', -1, 64))
		if !holds(r.Header.Values("If-None-Match"), r.etag) {
			return out, nil
		}
		select {
		case <-changed:
		case <-late.C:
			wait = 0
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if wait == 0 {
			return out, nil
		}
	}
}

// watch says an answer at once, with every change, and often enough for one to be usable.
func (g gate) watch(ctx context.Context, r *Request, say func(string, any) error) error {
	fields, _, err := g.ask(r)
	if err != nil {
		return err
	}
	last, due := "", true
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		changed := g.Changed()
		out, answers, err := g.answer(r, fields)
		if err != nil {
			return err
		}
		if tag, usable := adviceTag(answers); due || tag != last {
			if err := say(tag, out); err != nil {
				return err
			}
			last, due = tag, false
			again.Reset(usable / 3)
		}
		select {
		case <-changed:
		case <-again.C:
			due = true
		case <-ctx.Done():
			return nil
		}
	}
}

// ask reads the parameters.
func (g gate) ask(r *Request) (fields map[string]string, wait time.Duration, err error) {
	if !g.Ready() {
		return nil, 0, problem(http.StatusServiceUnavailable, "starting", "this process does not know yet what the routes were before it was started; use the last answer while it is usable, or ask another process")
	}
	if fields, err = r.fields(g.params); err != nil {
		return nil, 0, err
	}
	text, given := fields["wait"]
	if !given {
		return fields, 0, nil
	}
	wait, err = time.ParseDuration(text)
	if err != nil || wait < 0 || wait > waitMost {
		return nil, 0, problem(http.StatusBadRequest, "parameter_invalid", "wait: %q is no time from 0s to %s, such as 20s", text, waitMost)
	}
	return fields, wait, nil
}

// adviceTag is what answers mean together, and for how long they may be used.
func adviceTag(answers []route.Advice) (tag string, usable time.Duration) {
	usable = time.Hour // of no table
	tags := make([]string, len(answers))
	for i, a := range answers {
		tags[i] = a.Table + "\n" + a.Tag()
		usable = min(usable, a.UsableUntil.Sub(a.At))
	}
	slices.Sort(tags)
	return strings.Join(tags, "\n"), usable
}
