package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

// getDocs is how many documents are asked for at once.
const getDocs = 1000

// Stored is sinks.Reader.Stored. It asks for documents by their _id, so that it sees what
// a search does not see yet.
func (s *Sink) Stored(ctx context.Context, changes []cdc.Change, most int) []sinks.Stored {
	out := make([]sinks.Stored, len(changes))
	outcomes := make([]sinks.Outcome, len(changes))
	places := s.places(ctx, changes, outcomes, func(_ context.Context, t *table, _ uint32) *sinks.Outcome {
		if t.wrong != nil {
			return unready(t.wrong)
		}
		return nil
	})
	var docs []*document
	for i := range changes {
		c, t := &changes[i], places[i].table
		if t == nil {
			if outcomes[i].Verdict != sinks.Applied { // else it is nowhere
				out[i].Problem, out[i].Away = problem(outcomes[i]), outcomes[i].Verdict == sinks.Unavailable && !outcomes[i].Unasked
			}
			continue
		}
		id, err := cdc.KeyText(c.Key)
		if err == nil && (id == "" || len(id) > longestID) {
			err = fmt.Errorf("the primary key makes no _id")
		}
		if err != nil {
			out[i].Problem = err.Error()
			continue
		}
		out[i].Place = map[string]string{"index": t.alias, "_id": id}
		if r := places[i].routing; r != "" {
			out[i].Place["routing"] = r
		}
		docs = append(docs, &document{at: i, change: c, table: t, routing: places[i].routing})
	}
	for some := range slices.Chunk(docs, getDocs) {
		most = s.fetch(ctx, some, most, out)
	}
	return out
}

// problem is why something has no place here.
func problem(o sinks.Outcome) string {
	if o.Verdict == sinks.Filtered {
		return "the sink does not take this table"
	}
	return o.Sentence()
}

// fetch brings documents of at most that many bytes, and returns how many are left.
func (s *Sink) fetch(ctx context.Context, docs []*document, most int, out []sinks.Stored) int {
	source := "true"
	room := most + 4096*len(docs) // for what stands around them
	if most <= 0 {
		source, room = `["`+guardField+`"]`, 64<<20
	}
	res, err := s.doWithin(ctx, gets(docs, source), room)
	switch half := len(docs) / 2; {
	case errors.Is(err, errTooMuch) && half > 0:
		return s.fetch(ctx, docs[half:], s.fetch(ctx, docs[:half], most, out), out)
	case errors.Is(err, errTooMuch) && most > 0:
		s.fetch(ctx, docs, 0, out)
		return most
	}
	found := gjson.GetBytes(res.body, "docs").Array()
	if err != nil || res.status != http.StatusOK || len(found) != len(docs) {
		no := away(fmt.Sprintf("ask for %d documents", len(docs)), res, err)
		for _, d := range docs {
			out[d.at].Problem, out[d.at].Away = no.Reason, true
		}
		return most
	}
	for i, doc := range found {
		o := &out[docs[i].at]
		if e := doc.Get("error"); e.Exists() {
			if kind, reason := explain(e); kind != kindNoIndex {
				o.Problem, o.Away = reason, kind != kindUnrouted // its shard may be on the way, as after a start
			}
			continue
		}
		h := readStored(doc)
		if !h.found {
			continue
		}
		o.Version = h.version
		o.Place["index"] = doc.Get("_index").Str
		if o.Foreign = h.foreign(); o.Foreign {
			o.Place["_version"] = h.compared.String() // somebody else has written it
		}
		switch o.Deleted = doc.Get("_source." + guardField + ".deleted").Bool(); {
		case o.Deleted:
		case most <= 0:
			o.Omitted = true
		default:
			o.Document = withoutGuard(doc.Get("_source"))
			most -= len(o.Document)
		}
	}
	return most
}

// withoutGuard is a document without the guard's field.
func withoutGuard(source gjson.Result) []byte {
	if i := strings.LastIndex(source.Raw, `,"`+guardField+`":{"v":`); i > 0 { // as we write it
		if digits, ok := strings.CutSuffix(source.Raw[i+len(`,"`+guardField+`":{"v":`):], "}}"); ok && strings.Trim(digits, "0123456789") == "" {
			return append([]byte(source.Raw[:i]), '}')
		}
	}
	b := []byte{'{'}
	source.ForEach(func(name, value gjson.Result) bool {
		if name.Str == guardField {
			return true
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, name.Raw...), ':'), value.Raw...)
		return true
	})
	return append(b, '}')
}

// Keeps is sinks.Reader.Keeps.
func (s *Sink) Keeps(name cdc.TableName) error {
	switch t := s.table(name); {
	case t == nil:
		return &sinks.Incomparable{Reason: "the sink does not take this table"}
	case t.wrong != nil:
		return &sinks.Incomparable{Reason: t.wrong.Error()}
	}
	return nil
}

// Free is sinks.Freer.Free: the version inside the documents becomes 0, and then they are
// somebody else's, which the next change is written over.
func (s *Sink) Free(ctx context.Context, changes []cdc.Change, versions []cdc.Version) error {
	outcomes := make([]sinks.Outcome, len(changes))
	places := s.places(ctx, changes, outcomes, func(_ context.Context, t *table, _ uint32) *sinks.Outcome { return nil })
	var docs []*document
	for i := range changes {
		if _, no := idOf(&changes[i]); places[i].table != nil && no == nil {
			docs = append(docs, &document{at: i, change: &changes[i], table: places[i].table, routing: places[i].routing})
		}
	}
	for some := range slices.Chunk(docs, max(1, s.config.BulkDocs)) {
		has := s.ask(ctx, some)
		if has == nil {
			return errors.New(some[0].outcome.Reason)
		}
		var body []byte
		for i, d := range some {
			if !has[i].found || has[i].version != versions[d.at] {
				continue
			}
			id, _ := cdc.KeyText(d.change.Key)
			body = action{index: d.table.alias, id: id, routing: d.routing, over: &has[i]}.append(body, verbUpdate)
			body = append(body, `{"doc":{"`+guardField+`":{"v":0}}}`+"\n"...)
		}
		if len(body) == 0 {
			continue
		}
		res, err := s.do(ctx, esapi.BulkRequest{Body: bytes.NewReader(body), FilterPath: []string{"items.*.status", "items.*.error"}})
		if err := s.good(res, err, "free documents"); err != nil {
			return err
		}
		for _, a := range readBulk(res.body) {
			if a.kind != "" && a.status != http.StatusConflict { // touched since: it is looked at again
				return fmt.Errorf("free a document: %w", a)
			}
		}
	}
	return nil
}

// Expect is sinks.Reader.Expect.
func (s *Sink) Expect(_ context.Context, changes []cdc.Change) []sinks.Expected {
	out := make([]sinks.Expected, len(changes))
	for i := range changes {
		c := &changes[i]
		t := s.table(c.Table)
		if t == nil || c.Op == cdc.OpDelete {
			continue
		}
		id, no := idOf(c)
		p := t.config.place(c)
		if no == nil {
			no = p.no
		}
		if no == nil && len(c.After) > s.config.MaxDocumentBytes {
			no = tooLarge(c, s.config.MaxDocumentBytes)
		}
		if no != nil {
			out[i].Problem = no.Sentence()
			continue
		}
		out[i] = sinks.Expected{Document: c.After, Place: placeText(id, p.routing)}
	}
	return out
}

// placeText is a place in an index in one text. No routing has a zero byte.
func placeText(id, routing string) string {
	if routing == "" {
		return id
	}
	return id + "\x00" + routing
}

// Scan is sinks.Reader.Scan. Tombstones are no rows.
func (s *Sink) Scan(ctx context.Context, table cdc.Table, known func(place string) bool, each func([]sinks.Found) error) error {
	if err := s.Keeps(table.Name); err != nil {
		return err
	}
	t := s.table(table.Name)
	index, err := s.look(ctx, t)
	if err != nil || index == nil {
		return err // no index, no rows
	}
	return s.pages(ctx, index.name, map[string]any{"bool": map[string]any{"must_not": hidden}}, false, func(page []gjson.Result) error {
		var found []sinks.Found
		for _, hit := range page {
			id, routing := hit.Get("_id").Str, ""
			if t.config.Routing != "" { // else it is found by its id alone, whoever has given it one
				routing = hit.Get("_routing").Str
			}
			place := placeText(id, routing)
			if known(place) {
				continue
			}
			f := sinks.Found{Place: place, Change: cdc.Change{Table: table.Name, Op: cdc.OpDelete}}
			if key, err := table.ParseKey(id); err == nil {
				f.Change.Key = key
			}
			if routing != "" {
				f.Change.Before = cdc.AppendString(append(cdc.AppendString([]byte{'{'}, t.config.Routing), ':'), routing)
				f.Change.Before = append(f.Change.Before, '}')
			}
			found = append(found, f)
		}
		if len(found) == 0 {
			return nil
		}
		return each(found)
	})
}

// Again is sinks.Reader.Again.
func (s *Sink) Again(ctx context.Context, found []sinks.Found, most int) []sinks.Stored {
	return s.Stored(ctx, deletes(found), most)
}

func deletes(found []sinks.Found) []cdc.Change {
	changes := make([]cdc.Change, len(found))
	for i := range found {
		changes[i] = found[i].Change
	}
	return changes
}

// Would is sinks.Reader.Would. What the mapping says of a document is asked by a simulated
// ingest, where the cluster has one that looks at the mapping (Elasticsearch 8.19 does).
func (s *Sink) Would(ctx context.Context, changes []cdc.Change) []sinks.Prospect {
	out := make([]sinks.Prospect, len(changes))
	outcomes := make([]sinks.Outcome, len(changes))
	views := make(map[*table]*view)
	places := s.places(ctx, changes, outcomes, func(ctx context.Context, t *table, _ uint32) (no *sinks.Outcome) {
		if views[t] == nil {
			views[t] = &view{}
			views[t].no = s.view(ctx, t, views[t])
		}
		return views[t].no
	})
	var body []byte
	var docs, asked []*document
	for i := range changes {
		c, p := &changes[i], &places[i]
		if p.table == nil {
			continue
		}
		from := len(body)
		var no *sinks.Outcome
		body, no = appendChange(body, c, p.table, p.routing, s.config.MaxDocumentBytes)
		d := &document{at: i, change: c, table: p.table, routing: p.routing, lines: span{from, len(body)}, outcome: sinks.Outcome{Verdict: sinks.Applied}}
		if no != nil {
			d.outcome = *no
		}
		if docs = append(docs, d); no == nil || no.Class == sinks.ClassTooLarge {
			asked = append(asked, d)
		}
	}
	for some := range slices.Chunk(asked, max(1, s.config.BulkDocs)) {
		for i, h := range s.ask(ctx, some) {
			switch d := some[i]; {
			case !h.found || h.version < d.change.Version:
			case h.version == d.change.Version:
				d.outcome = sinks.Outcome{Verdict: sinks.Duplicate}
			default:
				d.outcome = sinks.Outcome{Verdict: sinks.Stale}
			}
		}
	}
	var mapped []*document
	for _, d := range asked {
		if d.outcome.Verdict == sinks.Applied && d.change.Op != cdc.OpDelete {
			mapped = append(mapped, d)
		}
	}
	for len(mapped) > 0 {
		n := 1
		for n < len(mapped) && mapped[n].table == mapped[0].table {
			n++
		}
		n = pack(mapped[:n], s.config.BulkDocs, s.config.BulkBytes)
		s.simulate(ctx, views[mapped[0].table], body, mapped[:n])
		mapped = mapped[n:]
	}
	for _, d := range docs {
		outcomes[d.at] = d.outcome
	}
	for i := range out {
		out[i].Outcome = outcomes[i]
		if changes[i].Op != cdc.OpDelete {
			out[i].Document = changes[i].After
		}
	}
	return out
}

// view is a table's index as it is, and the mappings of fields that an Apply would give it
// first: of those that it lacks, and of those that are configured anew.
type view struct {
	no      *sinks.Outcome // what every change of the table would be answered
	index   *index         // nil when there is none yet
	fields  func(unsignedLong bool) map[string]any
	anew    bool  // some are configured anew, and only the next change will tell whether the index takes that
	unknown error // why the table could not be looked at
}

// view looks at what ready would make sure of.
func (s *Sink) view(ctx context.Context, t *table, v *view) *sinks.Outcome {
	index, err := s.survey(ctx, t)
	if err != nil {
		return unready(err)
	}
	shape, err := s.describe(ctx, t.name)
	if v.index, v.unknown = index, err; err == nil {
		if err := t.config.CheckTable(shape); err != nil {
			return unready(err)
		}
		var anew map[string]any
		if index != nil {
			anew = refitted(index.Mappings.Properties, shape, t.config.Mapping)
		}
		v.anew = len(anew) > 0
		v.fields = func(unsignedLong bool) map[string]any {
			fields := t.missing(index, shape, unsignedLong)
			maps.Copy(fields, anew)
			return fields
		}
	}
	switch {
	case index != nil || err == nil:
		return nil
	case errors.Is(err, cdc.ErrNoTable):
		return &sinks.Outcome{Verdict: sinks.Transient, Class: sinks.ClassNoTable, Reason: err.Error()}
	}
	return unready(fmt.Errorf("make an index for %s: %w", t.name, err))
}

// canary is a document that no mapping of ours takes. A cluster that takes it in a
// simulation does not look at mappings there.
const canary = `{"` + guardField + `":{"v":"canary"}}`

// simulate asks what the mapping says of documents of one table.
func (s *Sink) simulate(ctx context.Context, v *view, body []byte, docs []*document) {
	cannot := func(reason string) {
		for _, d := range docs {
			d.outcome.Reason = sinks.CannotAsk + reason
		}
	}
	if v.index == nil {
		cannot(", because its index is not made yet")
		return
	}
	request := []byte(`{"docs":[`)
	add := func(id string, source []byte) {
		request = append(append(request, `{"_index":`...), cdc.AppendString(nil, v.index.name)...)
		request = append(cdc.AppendString(append(request, `,"_id":`...), id), `,"_source":`...)
		request = append(append(request, bytes.TrimSpace(source)...), "},"...)
	}
	for _, d := range docs {
		id, _ := cdc.KeyText(d.change.Key)
		_, source, _ := bytes.Cut(body[d.lines.from:d.lines.to], []byte("\n"))
		add(id, source)
	}
	add("canary", []byte(canary))
	request = append(request[:len(request)-1], ']')
	res, err := s.simulated(ctx, request, v, true)
	if err == nil && res.kind == "mapper_parsing_exception" {
		res, err = s.simulated(ctx, request, v, false) // see twice
	}
	answers := gjson.GetBytes(res.body, "docs.#.doc").Array()
	switch {
	case err != nil || res.ofCluster():
		all(docs, *away("ask what the mapping takes", res, err))
		return
	case res.status != http.StatusOK:
		cannot(fmt.Sprintf(" (%v)", res.answer))
		return
	case len(answers) != len(docs)+1 || !answers[len(docs)].Get("error").Exists():
		cannot("")
		return
	}
	if v.anew { // a simulation takes also what cannot be put
		cannot(", because the configured mapping has other words than that of the index, and is put with the next change")
	}
	for i, d := range docs {
		e := answers[i].Get("error")
		if !e.Exists() {
			continue
		}
		kind, reason := explain(e)
		d.outcome = classify(d.change.Op, d.change.Version, answer{status: http.StatusBadRequest, kind: kind, reason: reason})
		if kind != kindStrict {
			continue
		}
		switch { // as widen does
		case errors.Is(v.unknown, cdc.ErrNoTable):
			d.outcome.Verdict = sinks.Transient
		case v.unknown != nil:
			d.outcome = sinks.Outcome{Verdict: sinks.Unavailable, Unasked: !ofCluster(v.unknown), Reason: sinks.Redact(d.outcome.Class, d.outcome.Reason) + "; the table could not be looked at: " + v.unknown.Error()}
		default:
			d.outcome.Verdict = sinks.Transient
			d.outcome.Reason += noColumn
		}
	}
}

func (s *Sink) simulated(ctx context.Context, request []byte, v *view, unsignedLong bool) (response, error) {
	request = slices.Clip(request)
	if v.fields != nil {
		if fields := v.fields(unsignedLong); len(fields) > 0 {
			text, err := json.Marshal(map[string]any{"properties": fields})
			if err != nil {
				return response{}, err
			}
			request = append(append(request, `,"mapping_addition":`...), text...)
		}
	}
	return s.do(ctx, esapi.SimulateIngestRequest{
		Body: bytes.NewReader(append(request, '}')), FilterPath: []string{"docs.doc._id", "docs.doc.error.type", "docs.doc.error.reason", "docs.doc.error.caused_by.reason", "error", "status"},
	})
}
