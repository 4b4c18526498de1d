package elastic

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

// longestID is Elasticsearch's limit. One id that is longer, or empty, makes it
// refuse the whole bulk request, so such a change is never sent.
const longestID = 512

// idOf is the _id of a change's document, or says why there can be none.
func idOf(c *cdc.Change) (string, *sinks.Outcome) {
	id, err := cdc.KeyText(c.Key)
	if err != nil {
		return "", &sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassKey, Reason: err.Error()}
	}
	if id == "" || len(id) > longestID {
		return "", &sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassKey,
			Reason: fmt.Sprintf("the primary key makes an _id of %d bytes; Elasticsearch takes 1 to %d", len(id), longestID)}
	}
	return id, nil
}

// appendChange appends the bulk lines of a change, under a routing unless it is
// empty, or says why they cannot be sent.
func appendChange(b []byte, c *cdc.Change, t *table, routing string, maxBytes int) ([]byte, *sinks.Outcome) {
	id, no := idOf(c)
	if no != nil {
		return b, no
	}
	if len(c.After) > maxBytes {
		return b, tooLarge(c, maxBytes)
	}
	a := action{index: t.alias, id: id, routing: routing, version: c.Version}
	switch {
	case c.Op != cdc.OpDelete:
		b = append(appendSource(a.append(b, verbIndex), c.After, c.Version), '\n')
	case t.tombstones:
		b = append(appendTombstone(a.append(b, verbIndex), c.Version, time.Now()), '\n')
	default:
		b = a.append(b, verbDelete)
	}
	return b, nil
}

func tooLarge(c *cdc.Change, most int) *sinks.Outcome {
	return &sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassTooLarge,
		Reason: fmt.Sprintf("the document has %d bytes; max_document_bytes is %d", len(c.After), most)}
}

// appendLeft appends the delete of a row under a routing that it has left.
func appendLeft(b []byte, c *cdc.Change, t *table, routing string) []byte {
	id, _ := cdc.KeyText(c.Key)
	a := action{index: t.alias, id: id, routing: routing, version: c.Version, again: true}
	if t.tombstones {
		return append(appendTombstone(a.append(b, verbIndex), c.Version, time.Now()), '\n')
	}
	return a.append(b, verbDelete)
}

// The verbs of a bulk request.
const (
	verbIndex  = "index"
	verbDelete = "delete"
	verbUpdate = "update"
)

// action is the first line of a write in a bulk request.
type action struct {
	index, id string
	routing   string // empty for none
	version   cdc.Version
	again     bool    // may replace what has the same version
	over      *stored // is to be replaced, whatever its version
}

func (a action) append(b []byte, verb string) []byte {
	b = append(append(append(b, `{"`...), verb...), `":{"_index":`...)
	b = cdc.AppendString(b, a.index)
	b = append(b, `,"_id":`...)
	b = cdc.AppendString(b, a.id)
	if a.routing != "" {
		b = append(b, `,"routing":`...)
		b = cdc.AppendString(b, a.routing)
	}
	if a.over != nil {
		return append(a.over.appendOver(b), "}}\n"...)
	}
	b = append(b, `,"version":`...)
	b = strconv.AppendUint(b, uint64(a.version), 10)
	b = append(b, `,"version_type":"external`...)
	if a.again {
		b = append(b, "_gte"...)
	}
	return append(b, "\"}}\n"...)
}

// appendSource appends the row as it is, with the version spliced in at its end.
func appendSource(dst, row []byte, v cdc.Version) []byte {
	if bytes.ContainsAny(row, "\n\r") {
		// Line breaks can only be white space between values, and they end a bulk
		// line.
		var flat bytes.Buffer
		if json.Compact(&flat, row) == nil {
			row = flat.Bytes()
		}
	}
	row = bytes.TrimSuffix(bytes.TrimSpace(row), []byte("}"))
	dst = append(dst, row...)
	if len(bytes.TrimSpace(row)) > 1 {
		dst = append(dst, ',')
	}
	dst = append(dst, `"`+guardField+`":{"v":`...)
	dst = strconv.AppendUint(dst, uint64(v), 10)
	return append(dst, '}', '}')
}

// answer is what Elasticsearch said about one document.
type answer struct {
	status int
	kind   string // error.type; empty for a success
	reason string
	index  string        // where a delete went
	after  time.Duration // how long it asks to be left alone
}

// Error makes it what went wrong, where it is no success.
func (a answer) Error() string {
	if a.kind == "" {
		return fmt.Sprintf("status %d", a.status)
	}
	return fmt.Sprintf("status %d, %s: %s", a.status, a.kind, a.reason)
}

// readBulk reads the body of a bulk response, one answer per document in the
// order of the request.
func readBulk(body []byte) []answer {
	var answers []answer
	gjson.GetBytes(body, "items").ForEach(func(_, item gjson.Result) bool {
		item.ForEach(func(_, result gjson.Result) bool {
			a := answer{status: int(result.Get("status").Int()), index: result.Get("_index").Str}
			if e := result.Get("error"); e.Exists() {
				a.kind, a.reason = explain(e)
			}
			answers = append(answers, a)
			return false
		})
		return true
	})
	return answers
}

// retryAfter reads a Retry-After header: seconds or a date; 0 when there is none.
func retryAfter(header string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(header); err == nil {
		return max(0, time.Duration(min(seconds, 86400))*time.Second)
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(0, at.Sub(now)), 24*time.Hour)
	}
	return 0
}

// explain reads an error object; the innermost cause names the field.
func explain(e gjson.Result) (kind, reason string) {
	kind, reason = e.Get("type").Str, e.Get("reason").Str
	if e.Type == gjson.String {
		kind, reason = "error", e.Str
	}
	if cause := e.Get("caused_by.reason"); cause.Exists() {
		reason += ": " + cause.Str
	}
	return kind, clip(reason)
}

// clip keeps a reason readable: Elasticsearch may quote the whole document.
func clip(s string) string {
	const most = 1000
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

// The kinds of error that behaviour follows.
const (
	kindConflict = "version_conflict_engine_exception"
	kindStrict   = "strict_dynamic_mapping_exception"
	kindNoIndex  = "index_not_found_exception"
	kindClosed   = "index_closed_exception"
	kindUnrouted = "routing_missing_exception"
	kindBlocked  = "cluster_block_exception" // a closed or read-only index, as on a full disk
	kindDenied   = "security_exception"      // of one document: the account has no right on its index
)

// ofCluster reports whether the answer would be the same for every index: the cluster
// is overloaded, not whole, or does not know us.
func (a answer) ofCluster() bool {
	return a.status == 0 || a.status == 401 || a.status == 408 || a.status == 429 && a.kind != kindBlocked || a.status >= 500
}

// ofIndex reports whether it is the index that takes nothing.
func (a answer) ofIndex() bool {
	return (a.kind == kindNoIndex || a.kind == kindClosed || a.kind == kindBlocked || a.kind == kindDenied) && !a.ofCluster()
}

var currentVersion = regexp.MustCompile(`current version \[(\d+)\]`)

// classify turns the answer to one document into an outcome. Only status and
// kind decide; the reason's numbers tell a duplicate from a stale change, which
// both are settled.
func classify(op cdc.Op, version cdc.Version, a answer) sinks.Outcome {
	refused := func(v sinks.Verdict, c sinks.Class) sinks.Outcome {
		out := sinks.Outcome{Verdict: v, Class: c, Reason: a.Error()}
		if v == sinks.Unavailable {
			out.RetryAfter = a.after
		}
		return out
	}
	switch {
	case a.kind == "" && (a.status == 200 || a.status == 201):
		return sinks.Outcome{Verdict: sinks.Applied}
	case a.kind == "" && a.status == 404 && op == cdc.OpDelete:
		// There was nothing to delete; the version is remembered all the same.
		return sinks.Outcome{Verdict: sinks.Applied}
	case a.status == 409 && a.kind == kindConflict:
		if m := currentVersion.FindStringSubmatch(a.reason); m != nil && m[1] == version.String() {
			return sinks.Outcome{Verdict: sinks.Duplicate}
		}
		return sinks.Outcome{Verdict: sinks.Stale}
	case a.status == 429, a.status >= 500, a.status == 401, a.status == 403, a.status == 408, a.status == 0:
		return refused(sinks.Unavailable, "") // 403 is also a read-only index, as on a full disk
	case a.ofIndex():
		return refused(sinks.Unavailable, "")
	case a.status == 413:
		return refused(sinks.Poison, sinks.ClassTooLarge)
	}
	switch a.kind {
	case kindStrict, "mapper_parsing_exception", "document_parsing_exception", "illegal_argument_exception",
		"action_request_validation_exception", "parse_exception", "x_content_parse_exception", "parsing_exception", "max_bytes_length_exceeded_exception":
		return refused(sinks.Poison, sinks.ClassMapping)
	}
	return refused(sinks.Transient, sinks.ClassRefused)
}

// document is what a call knows of one change.
type document struct {
	at       int // of the change in the call
	change   *cdc.Change
	table    *table
	routing  string
	left     bool    // the delete under a routing that the row has left
	lines    span    // of the bulk body
	over     *stored // what somebody else wrote, to be replaced
	outcome  sinks.Outcome
	unmapped bool // refused by the mapping
	strict   bool // because it lacks a field
	prepared int  // the generation of the mapping it was sent against
}

// answer is its outcome. Where a delete under a routing is refused the row may still be,
// and nobody else would know of that: its change has to wait.
func (d *document) answer() sinks.Outcome {
	out := d.outcome
	refused := out.Verdict == sinks.Transient || out.Verdict == sinks.Poison
	if refused && d.change.Op == cdc.OpDelete && d.table.config.Routing != "" {
		out.Verdict, out.Unasked = sinks.Unavailable, true
	}
	return out
}

type span struct{ from, to int }

// pack says how many of docs make the next request.
func pack(docs []*document, maxDocs, maxBytes int) int {
	size := 0
	for i, d := range docs {
		size += d.lines.to - d.lines.from
		if i == maxDocs || i > 0 && size > maxBytes {
			return i
		}
	}
	return len(docs)
}

// join is the body of a request for docs: a part of body where they stand side by
// side in it, a copy where they do not.
func join(body []byte, docs []*document) []byte {
	size := 0
	for _, d := range docs {
		size += d.lines.to - d.lines.from
	}
	from := docs[0].lines.from
	if to := docs[len(docs)-1].lines.to; to-from == size {
		return body[from:to]
	}
	out := make([]byte, 0, size)
	for _, d := range docs {
		out = append(out, body[d.lines.from:d.lines.to]...)
	}
	return out
}
