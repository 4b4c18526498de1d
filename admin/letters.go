package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"lockstep/dlq"
	"lockstep/kafka"
)

// Desk is what the operations on dead letters work with.
type Desk interface {
	// Sinks are the names of the sinks there are.
	Sinks() []string
	// Choose lists the open letters of all sinks that q takes, in the order of dlq.Order. It may
	// be a dlq.FieldError that there is none.
	Choose(ctx context.Context, q dlq.Query) ([]dlq.Letter, error)
	// Look is what there is to see of a letter now, and the record that it holds, as it may
	// be shown.
	Look(ctx context.Context, l dlq.Letter) (dlq.View, kafka.Record, error)
	// Preview tells of each letter what a replay would come to: of the row as it is now, or
	// of the recorded one.
	Preview(ctx context.Context, letters []dlq.Letter, resync bool, tell func(dlq.Letter, dlq.Result)) error
	// Patching is a JSON Patch of the row that a letter holds, once it fits; its error is a
	// dlq.PatchError where it does not. Fields are what it changes, as they may be shown.
	Patching(ctx context.Context, l dlq.Letter, patch []byte) (p *dlq.Patching, fields []dlq.Field, err error)
	// WouldPatch is what a replay of the patched row would come to.
	WouldPatch(ctx context.Context, p *dlq.Patching) (dlq.Result, error)
	// Patch writes it.
	Patch(ctx context.Context, p *dlq.Patching, by string) error
	// Export writes letters that Choose has listed, one in a line.
	Export(ctx context.Context, letters []dlq.Letter, to io.Writer) error
	// Arriving checks a file of letters, and returns what Import does with each. Its error is a
	// dlq.LineError for a line that is no letter for this pipeline, and a dlq.ErrNoPosition
	// where nobody knows that of any.
	Arriving(ctx context.Context, file io.ReadSeeker) ([]dlq.Found, error)
	// Import puts back the letters of a file that was found so; done is called for each that is
	// safe.
	Import(ctx context.Context, file io.ReadSeeker, found []dlq.Found, done func(i int)) error
	// Skip closes letters; done is called for each that is.
	Skip(ctx context.Context, letters []dlq.Letter, reason string, done func(dlq.Letter)) error
}

// Letter is a dead letter with what there is to see of it and the record that it holds.
type Letter struct {
	dlq.Letter
	dlq.View
	RecordKey   any               `json:"record_key" doc:"the key of the refused record: JSON where it is JSON, else text"`
	RecordValue any               `json:"record_value" doc:"the value of the refused record, likewise"`
	Headers     map[string]string `json:"headers" doc:"the headers of the refused record"`
}

// Show joins a letter, what there is to see of it, and its record.
func Show(l dlq.Letter, v dlq.View, r kafka.Record) Letter {
	shown := Letter{Letter: l, View: v, RecordKey: readable(r.Key), RecordValue: readable(r.Value), Headers: map[string]string{}}
	for _, h := range r.Headers {
		shown.Headers[h.Key] = string(h.Value)
	}
	return shown
}

// readable is b as JSON when it is JSON, else as text.
func readable(b []byte) any {
	if json.Valid(b) {
		return json.RawMessage(b)
	}
	return string(b)
}

// letterPage is a part of the list.
type letterPage struct {
	Letters []dlq.Letter `json:"letters" doc:"oldest failure first, and of one moment by ID"`
	Next    string       `json:"next,omitempty" doc:"the cursor of the page behind this one; missing on the last page"`
}

type groupList struct {
	Groups []dlq.Group `json:"groups" doc:"largest first"`
}

// foreseen is what a replay of a letter would come to.
type foreseen struct {
	ID     string     `json:"id"`
	Sink   string     `json:"sink"`
	Table  string     `json:"table"`
	Key    string     `json:"key"`
	Result dlq.Result `json:"result"`
}

type prospects struct {
	Letters []foreseen `json:"letters" doc:"in no order"`
	More    int        `json:"more" doc:"how many letters were chosen beside these"`
}

type skipBody struct {
	Reason string `json:"reason" doc:"why the row may stay stale"`
}

// arrived is what became of a letter of a file.
type arrived struct {
	ID     string `json:"id"`
	Sink   string `json:"sink"`
	Table  string `json:"table"`
	Key    string `json:"key"`
	Result string `json:"result" doc:"imported, would be imported, or left out and why"`
}

type importDone struct {
	DryRun   bool      `json:"dry_run" doc:"nothing was changed"`
	Imported int       `json:"imported" doc:"of a dry run, how many would be"`
	LeftOut  int       `json:"left_out"`
	Letters  []arrived `json:"letters" doc:"the first of them, in the order of the body"`
	More     int       `json:"more" doc:"how many letters there were beside these"`
}

// operation is one of a JSON Patch.
type operation struct {
	Op    string `json:"op" doc:"add, remove, replace, move, copy or test"`
	Path  string `json:"path" doc:"a column, such as /price, or a place in a JSON column, such as /meta/tags/0"`
	From  string `json:"from,omitempty"`
	Value any    `json:"value,omitempty"`
}

type patchedLetter struct {
	ID      string      `json:"id"`
	DryRun  bool        `json:"dry_run" doc:"nothing was changed"`
	State   dlq.State   `json:"state"`
	Reason  string      `json:"reason"`
	Fields  []dlq.Field `json:"fields" doc:"the columns that are other ones now: recorded is what they were, now what they are"`
	Payload *dlq.Result `json:"would_payload,omitempty" doc:"of a dry run, what a replay of the patched row would come to"`
	ETag    string      `json:"etag,omitempty" doc:"of the letter as it is now, which is in the header, too; missing when it is closed already or could not be read"`
}

type skipped struct {
	ID     string    `json:"id"`
	State  dlq.State `json:"state"`
	Reason string    `json:"reason"`
}

type skipManyBody struct {
	choice
	Count  *int   `json:"count,omitempty" doc:"how many letters these are, as a dry run counts them: when they are more or fewer by now, none is skipped. It must be there, but for a dry run and where only ids choose"`
	Reason string `json:"reason,omitempty" doc:"why the rows may stay stale; it must be there, but for a dry run"`
}

type skippedMany struct {
	DryRun  bool     `json:"dry_run" doc:"nothing was changed"`
	Skipped int      `json:"skipped" doc:"of a dry run, how many would be"`
	IDs     []string `json:"ids" doc:"the first of them, oldest failure first"`
	More    int      `json:"more" doc:"how many letters there were beside these"`
}

// skippedNamed is how many letters an answer names, so that it can be kept.
const skippedNamed = 500

// LetterRoutes are the operations on dead letters.
func LetterRoutes(d Desk) []Route {
	var chosen []Param
	for _, f := range dlq.QueryFields() {
		chosen = append(chosen, Param{Name: f.Name, Doc: f.Doc, Enum: f.Values})
	}
	listed := paged(pageDefault, chosen...)
	id := []Param{{Name: "id", Doc: "the letter's ID, such as search-5f0c2a91d37e"}}
	wrong := []Code{{http.StatusBadRequest, "parameter_unknown", ""}, {http.StatusBadRequest, "parameter_invalid", ""}}
	none := Code{http.StatusNotFound, "no_letter", "it is not open, or never was"}
	return []Route{
		{
			Method: http.MethodGet, Path: "/v1/dlq", ID: "listLetters", Short: "List open dead letters", Query: listed, Answer: letterPage{},
			Long:  "Letters that are written meanwhile come on a later page, or with the next list; none that stays open is left out.",
			Codes: append(slices.Clone(wrong), Code{http.StatusBadRequest, "cursor_invalid", ""}),
			Read:  func(ctx context.Context, r *Request) (any, error) { return listLetters(ctx, r, d, listed) },
		},
		{
			Method: http.MethodGet, Path: "/v1/dlq/groups", ID: "groupLetters", Short: "Group open dead letters by their cause", Query: chosen, Answer: groupList{}, Codes: wrong,
			Read: func(ctx context.Context, r *Request) (any, error) {
				fields, err := r.fields(chosen)
				if err != nil {
					return nil, err
				}
				letters, err := choose(ctx, d, fields)
				return groupList{dlq.Groups(letters)}, err
			},
		},
		{
			Method: http.MethodGet, Path: "/v1/dlq/preview", ID: "previewReplay", Short: "Say what a replay would come to", Answer: prospects{}, Codes: wrong,
			Long: "Source and store are asked, and nothing is changed. The oldest letters come first when there are more than limit.",
			Query: append(slices.Clone(chosen),
				Param{Name: "mode", Enum: []string{"resync", "payload"}, Doc: "send the row as it is in the source now, which is the default, or as it was recorded"},
				Param{Name: "limit", Type: "integer", Doc: fmt.Sprintf("how many letters at most, 1 to %d; %d when it is left out", pageMost, pageDefault)}),
			Read: func(ctx context.Context, r *Request) (any, error) { return preview(ctx, r, d, chosen) },
		},
		{
			Method: http.MethodGet, Path: "/v1/dlq/export", ID: "exportLetters", Short: "Export open dead letters, whole", Query: chosen,
			Role: Operator, Bulk: true, Gives: ndjson, Answer: lines{},
			Long: "A letter in each line, byte for byte, which importLetters and lockstep dlq import put back. It is for operators, for it holds values as they were recorded, those of columns that are masked since included. " +
				"An answer that cannot be ended is cut off without its last chunk, which clients report as an error: what came by then is no export.",
			Codes:  append(slices.Clone(wrong), Code{http.StatusHTTPVersionNotSupported, "http_version", "HTTP/1.0 cannot tell a whole answer from a part"}),
			Stream: func(ctx context.Context, r *Request, to io.Writer) error { return export(ctx, r, d, chosen, to) },
		},
		{
			Method: http.MethodPost, Path: "/v1/dlq/import", ID: "importLetters", Short: "Put dead letters back that were exported", Bulk: true, Takes: ndjson, Body: lines{}, Answer: importDone{},
			Query: []Param{{Name: "reason", Doc: "why they are put back; it must be there, but for a dry run"}, rehearsed},
			Long: "Every line is checked first, and when one is wrong nothing is changed. It is safe to import twice, or late: a letter whose row has an open letter that is not older is left out. " +
				"The body may have admin.import_bytes.",
			Codes: append(slices.Clone(wrong), Code{http.StatusBadRequest, "reason_missing", ""}, Code{http.StatusUnprocessableEntity, "line_refused", "a line is no letter for this pipeline; its number is named"},
				Code{http.StatusConflict, "no_position", "the pipeline has never run"}, Code{http.StatusRequestTimeout, "body_slow", ""}),
			Act:   "dlq.import",
			Write: func(ctx context.Context, r *Request) (*Work, error) { return importLetters(ctx, r, d) },
		},
		{
			Method: http.MethodGet, Path: "/v1/dlq/{id}", ID: "getLetter", Short: "Show an open dead letter, and its row in source and sink now", Wildcards: id, Answer: Letter{}, Tagged: true,
			Long:  "What cannot be reached is left out, and a problem in its place says why. The ETag is that of the letter alone.",
			Codes: append(slices.Clone(wrong[:1]), none),
			Read: func(ctx context.Context, r *Request) (any, error) {
				if _, err := r.fields(nil); err != nil {
					return nil, err
				}
				l, err := find(ctx, r, d)
				if err != nil {
					return nil, err
				}
				view, record, err := d.Look(ctx, l)
				return Show(l, view, record), err
			},
		},
		{
			Method: http.MethodPatch, Path: "/v1/dlq/{id}", ID: "patchLetter", Short: "Change the row that a dead letter holds", Wildcards: id,
			Query: []Param{{Name: "reason", Doc: "why the row is changed here and not in the source; it must be there, but for a dry run"}, rehearsed},
			Body:  []operation{}, Takes: "application/json-patch+json", Answer: patchedLetter{}, Tagged: true, Matched: true,
			Long: "A JSON Patch (RFC 6902) of the row. Key and version stay, and so does the letter, parked; the answer has its new ETag. A replay of the recorded row sends it; one that reads the row again from the source does not know of it.",
			Codes: append(slices.Clone(wrong[:1]), none, Code{http.StatusPreconditionFailed, "changed", ""}, Code{http.StatusBadRequest, "reason_missing", ""},
				Code{http.StatusUnprocessableEntity, "patch_refused", "it does not fit the letter or the table"}),
			Act: "dlq.patch",
			Write: func(ctx context.Context, r *Request) (*Work, error) {
				fields, err := r.fields([]Param{{Name: "reason"}, rehearsed})
				if err != nil {
					return nil, err
				}
				reason := fields["reason"]
				if strings.TrimSpace(reason) == "" && !r.Rehearsal {
					return nil, problem(http.StatusBadRequest, "reason_missing", "reason is missing; say why the row is changed here and not in the source")
				}
				l, err := find(ctx, r, d)
				if err != nil {
					return nil, err
				}
				p, changed, err := d.Patching(ctx, l, r.body)
				if no, ok := errors.AsType[*dlq.PatchError](err); ok {
					return nil, problem(http.StatusUnprocessableEntity, "patch_refused", "%s", no.Problem)
				}
				if err != nil {
					return nil, err
				}
				said := patchedLetter{ID: l.ID, DryRun: r.Rehearsal, State: dlq.Parked, Reason: reason, Fields: changed}
				if r.Rehearsal {
					would, err := d.WouldPatch(ctx, p)
					said.Payload, said.ETag = &would, r.etag
					return &Work{Would: said}, err
				}
				return &Work{Filter: map[string]string{"id": l.ID, "columns": strings.Join(p.Columns, ",")}, Reason: reason, Do: func(ctx context.Context) (any, map[string]int, error) {
					counts := map[string]int{"patched": 1}
					if err := d.Patch(ctx, p, r.Identity.Name); err != nil {
						return nil, counts, err
					}
					said.ETag, _ = tagNow(ctx, d, l.ID) // it is patched: without, whoever wants it reads the letter
					return said, counts, nil
				}}, nil
			},
		},
		{
			Method: http.MethodPost, Path: "/v1/dlq/skip", ID: "skipLetters", Short: "Close dead letters and leave their rows stale", Body: skipManyBody{}, Answer: skippedMany{}, Query: []Param{rehearsed},
			Long: "The rows stay as they are in the store until they change again. A letter of a newer version that comes meanwhile stays open.",
			Codes: append(slices.Clone(wrong), Code{http.StatusBadRequest, "nothing_chosen", ""}, none, Code{http.StatusConflict, "no_letters", ""}, Code{http.StatusBadRequest, "reason_missing", ""},
				Code{http.StatusBadRequest, "count_missing", ""}, Code{http.StatusConflict, "other_count", "more or fewer letters are chosen by now"}),
			Act:   "dlq.skip",
			Write: func(ctx context.Context, r *Request) (*Work, error) { return skipMany(ctx, r, d) },
		},
		{
			Method: http.MethodPost, Path: "/v1/dlq/{id}/skip", ID: "skipLetter", Short: "Close a dead letter and leave the row stale", Wildcards: id, Body: skipBody{}, Answer: skipped{}, Tagged: true,
			Long:  "The row stays as it is in the store until it changes again. A letter of a newer version that comes meanwhile stays open.",
			Codes: append(slices.Clone(wrong[:1]), none, Code{http.StatusPreconditionFailed, "changed", ""}, Code{http.StatusBadRequest, "reason_missing", ""}),
			Act:   "dlq.skip",
			Write: func(ctx context.Context, r *Request) (*Work, error) {
				if _, err := r.fields(nil); err != nil {
					return nil, err
				}
				var body skipBody
				if err := r.Decode(&body); err != nil {
					return nil, err
				}
				if strings.TrimSpace(body.Reason) == "" {
					return nil, problem(http.StatusBadRequest, "reason_missing", "reason is missing; say why the row may stay stale")
				}
				l, err := find(ctx, r, d)
				if err != nil {
					return nil, err
				}
				return &Work{Filter: map[string]string{"id": l.ID}, Reason: body.Reason, Do: func(ctx context.Context) (any, map[string]int, error) {
					return skipped{l.ID, dlq.Skipped, body.Reason}, map[string]int{"skipped": 1}, d.Skip(ctx, []dlq.Letter{l}, body.Reason, func(dlq.Letter) {})
				}}, nil
			},
		},
	}
}

func export(ctx context.Context, r *Request, d Desk, chosen []Param, to io.Writer) error {
	fields, err := r.fields(chosen)
	if err != nil {
		return err
	}
	letters, err := choose(ctx, d, fields)
	if err != nil {
		return err
	}
	return d.Export(ctx, letters, to)
}

// importLetters prepares an import: it checks every line.
func importLetters(ctx context.Context, r *Request, d Desk) (*Work, error) {
	fields, err := r.fields([]Param{{Name: "reason"}, rehearsed})
	if err != nil {
		return nil, err
	}
	reason := fields["reason"]
	if strings.TrimSpace(reason) == "" && !r.Rehearsal {
		return nil, problem(http.StatusBadRequest, "reason_missing", "reason is missing; say why the letters are put back")
	}
	found, err := d.Arriving(ctx, r.file)
	switch wrong, ok := errors.AsType[*dlq.LineError](err); {
	case ok && ctx.Err() == nil:
		return nil, problem(http.StatusUnprocessableEntity, "line_refused", "%v; nothing was imported", wrong)
	case errors.Is(err, dlq.ErrNoPosition):
		return nil, problem(http.StatusConflict, "no_position", "nothing was imported: %v", err)
	case err != nil:
		return nil, err
	}
	said := tell(found, r.Rehearsal)
	return &Work{Filter: map[string]string{"sha256": r.sum}, Reason: reason, Would: said, Do: func(ctx context.Context) (any, map[string]int, error) {
		counts := map[string]int{"imported": 0, "left_out": said.LeftOut}
		err := d.Import(ctx, r.file, found, func(int) { counts["imported"]++ })
		if err != nil {
			err = fmt.Errorf("%d of %d letters are imported, and then: %w; send it again under the same X-Request-ID", counts["imported"], said.Imported, err)
		}
		return said, counts, err
	}}, nil
}

// tell says what becomes of the letters of a file, of as many as an answer has room for.
func tell(found []dlq.Found, rehearsal bool) importDone {
	done := importDone{DryRun: rehearsal, Letters: []arrived{}}
	result := "imported"
	if rehearsal {
		result = "would be imported"
	}
	size := 0
	for _, f := range found {
		one := arrived{f.ID, f.Sink, f.Table, f.Key, result}
		if f.Kept == "" {
			done.Imported++
		} else {
			done.LeftOut++
			one.Result = "left out: " + f.Kept
		}
		if text, _ := json.Marshal(one); done.More == 0 && size+len(text) < answerBytes/2 { // it is indented
			done.Letters, size = append(done.Letters, one), size+len(text)
		} else {
			done.More++
		}
	}
	return done
}

// tagNow is the ETag of a letter as it is now, empty when it is closed.
func tagNow(ctx context.Context, d Desk, id string) (string, error) {
	letters, err := d.Choose(ctx, dlq.Query{Filter: dlq.Filter{ID: id}})
	if err != nil || len(letters) == 0 {
		return "", err
	}
	return tagOf(letters[0])
}

// choice is which letters a body asks for.
type choice struct {
	Filter map[string]string `json:"filter,omitempty" doc:"fields that choose letters, with the names and values of the parameters of listLetters"`
	IDs    []string          `json:"ids,omitempty" doc:"letters by their IDs; with a filter, those that it takes"`
	All    bool              `json:"all,omitempty" doc:"every open letter; without a filter and IDs it must be said"`
}

// query is what its filter says.
func (c choice) query(d Desk) (dlq.Query, error) {
	if len(c.Filter)+len(c.IDs) == 0 && !c.All {
		return dlq.Query{}, problem(http.StatusBadRequest, "nothing_chosen", `nothing is chosen; send a filter, ids, or "all": true`)
	}
	q, err := dlq.ParseQuery(c.Filter, d.Sinks(), time.Now())
	return q, invalid(err)
}

// letters are those that are chosen; none, or an ID of none, is a problem.
func (c choice) letters(ctx context.Context, d Desk, q dlq.Query) ([]dlq.Letter, error) {
	letters, err := d.Choose(ctx, q)
	switch {
	case err != nil:
		return nil, invalid(err)
	case len(letters) == 0 && len(c.IDs) == 0:
		return nil, problem(http.StatusConflict, "no_letters", "no open letter matches the filter; GET /v1/dlq lists those there are")
	case len(c.IDs) == 0:
		return letters, nil
	}
	for _, id := range c.IDs {
		if !slices.ContainsFunc(letters, func(l dlq.Letter) bool { return l.ID == id }) {
			return nil, problem(http.StatusNotFound, "no_letter", "no open dead letter that is chosen has the ID %s", id)
		}
	}
	return slices.DeleteFunc(letters, func(l dlq.Letter) bool { return !slices.Contains(c.IDs, l.ID) }), nil
}

// skipMany prepares the end of all letters that are chosen.
func skipMany(ctx context.Context, r *Request, d Desk) (*Work, error) {
	if _, err := r.fields([]Param{rehearsed}); err != nil {
		return nil, err
	}
	var body skipManyBody
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	q, err := body.query(d)
	switch {
	case err != nil:
		return nil, err
	case r.Rehearsal:
	case strings.TrimSpace(body.Reason) == "":
		return nil, problem(http.StatusBadRequest, "reason_missing", "reason is missing; say why the rows may stay stale")
	case body.Count == nil && (len(body.IDs) == 0 || len(body.Filter) > 0):
		return nil, problem(http.StatusBadRequest, "count_missing", "count is missing; say how many letters these are, as dry_run=true counts them")
	}
	letters, err := body.letters(ctx, d, q)
	if err != nil {
		return nil, err
	}
	if body.Count != nil && *body.Count != len(letters) {
		return nil, problem(http.StatusConflict, "other_count", "the letters that are chosen are %d by now, and not %d; none was skipped", len(letters), *body.Count)
	}
	said := skippedMany{DryRun: r.Rehearsal, Skipped: len(letters), IDs: []string{}, More: max(0, len(letters)-skippedNamed)}
	for _, l := range letters[:len(letters)-said.More] {
		said.IDs = append(said.IDs, l.ID)
	}
	filter := q.Fields()
	if len(body.IDs) > 0 {
		filter["ids"] = strings.Join(body.IDs, ",")
	}
	return &Work{Filter: filter, Reason: body.Reason, Would: said, Do: func(ctx context.Context) (any, map[string]int, error) {
		counts := map[string]int{"skipped": 0}
		err := d.Skip(ctx, letters, body.Reason, func(dlq.Letter) { counts["skipped"]++ })
		if err != nil {
			err = fmt.Errorf("%d of %d letters are skipped, and then: %w", counts["skipped"], len(letters), err)
		}
		return said, counts, err
	}}, nil
}

// find is the open letter of the path, with its ETag.
func find(ctx context.Context, r *Request, d Desk) (dlq.Letter, error) {
	id := r.PathValue("id")
	letters, err := d.Choose(ctx, dlq.Query{Filter: dlq.Filter{ID: id}})
	if err != nil {
		return dlq.Letter{}, err
	}
	if len(letters) == 0 {
		return dlq.Letter{}, problem(http.StatusNotFound, "no_letter", "no open dead letter has the ID %s", id)
	}
	return letters[0], r.Tag(letters[0])
}

// choose lists the letters that the fields of a query take.
func choose(ctx context.Context, d Desk, fields map[string]string) ([]dlq.Letter, error) {
	q, err := dlq.ParseQuery(fields, d.Sinks(), time.Now())
	if err != nil {
		return nil, invalid(err)
	}
	letters, err := d.Choose(ctx, q)
	return letters, invalid(err)
}

// invalid is a dlq.FieldError as an answer.
func invalid(err error) error {
	if wrong, ok := errors.AsType[*dlq.FieldError](err); ok {
		return problem(http.StatusBadRequest, "parameter_invalid", "%s", wrong.Error())
	}
	return err
}

func preview(ctx context.Context, r *Request, d Desk, chosen []Param) (any, error) {
	fields, err := r.fields(append(slices.Clone(chosen), Param{Name: "mode"}, Param{Name: "limit"}))
	if err != nil {
		return nil, err
	}
	limit, err := limitOf(fields, pageDefault)
	if err != nil {
		return nil, err
	}
	mode, given := fields["mode"]
	if given && mode != "resync" && mode != "payload" {
		return nil, problem(http.StatusBadRequest, "parameter_invalid", "mode: %q is not known; use resync or payload", mode)
	}
	delete(fields, "mode")
	letters, err := choose(ctx, d, fields)
	if err != nil {
		return nil, err
	}
	out := prospects{Letters: []foreseen{}, More: max(0, len(letters)-limit)}
	err = d.Preview(ctx, letters[:min(limit, len(letters))], mode != "payload", func(l dlq.Letter, result dlq.Result) {
		out.Letters = append(out.Letters, foreseen{l.ID, l.Sink, l.Table, l.Key, result})
	})
	return out, err
}

func listLetters(ctx context.Context, r *Request, d Desk, known []Param) (any, error) {
	p, err := r.page(known, pageDefault)
	if err != nil {
		return nil, err
	}
	letters, err := choose(ctx, d, p.fields)
	if err != nil {
		return nil, err
	}
	letters = slices.DeleteFunc(letters, func(l dlq.Letter) bool { return !p.behind(l.FirstFailed, l.ID) })
	page, next := cut(letters, p, func(l dlq.Letter) (time.Time, string) { return l.FirstFailed, l.ID })
	return letterPage{page, next}, nil
}
