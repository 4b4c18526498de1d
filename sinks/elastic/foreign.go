package elastic

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

// Whoever else writes to an index raises the _version of a document, by one or to any
// number, and from then on Elasticsearch refuses changes of the row that are newer than
// what the document holds. So a change that is refused as stale is believed only when
// the version inside the document says so, too.

// stored is a document as it is in the index.
type stored struct {
	found bool
	// version is that of the guard; what somebody else has written has none, 0.
	version   cdc.Version
	compared  cdc.Version // _version, by which Elasticsearch compares
	seq, term int64
}

// foreign reports whether somebody else wrote it.
func (d stored) foreign() bool { return d.found && d.version != d.compared }

// ask reads what the index has of each of docs, in their order. nil means that it
// could not, and then every one of docs is unavailable.
func (s *Sink) ask(ctx context.Context, docs []*document) []stored {
	res, err := s.do(ctx, gets(docs, `["`+guardField+`.v"]`))
	found := gjson.GetBytes(res.body, "docs").Array()
	if err != nil || res.status != http.StatusOK || len(found) != len(docs) {
		all(docs, *away(fmt.Sprintf("ask for the versions of %d documents", len(docs)), res, err))
		return nil
	}
	out := make([]stored, len(docs))
	for i, doc := range found {
		out[i] = readStored(doc)
	}
	return out
}

// gets asks for documents in their present state, searchable or not, in the order of
// docs. source is what is wanted of them, as JSON.
func gets(docs []*document, source string) esapi.MgetRequest {
	body := []byte(`{"docs":[`)
	for i, d := range docs {
		id, _ := cdc.KeyText(d.change.Key) // it made one before
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, `{"_index":`...)
		body = cdc.AppendString(body, d.table.alias)
		body = append(body, `,"_id":`...)
		body = cdc.AppendString(body, id)
		if d.routing != "" {
			body = append(body, `,"routing":`...)
			body = cdc.AppendString(body, d.routing)
		}
		body = append(append(append(body, `,"_source":`...), source...), '}')
	}
	return esapi.MgetRequest{Body: bytes.NewReader(append(body, "]}"...))}
}

func readStored(doc gjson.Result) stored {
	return stored{
		found: doc.Get("found").Bool(), version: cdc.Version(doc.Get("_source." + guardField + ".v").Uint()),
		compared: versionOf(doc), seq: doc.Get("_seq_no").Int(), term: doc.Get("_primary_term").Int(),
	}
}

// overtaken looks at what is refused for good, and at what is stale.
//
// Elasticsearch reads a document before it compares versions, so it refuses an old
// state that nobody needs any more in the same words as a new one. Such a change is
// stale, not poison; without this the letter of a row that was mended could never be
// closed by a replay.
//
// And it calls stale what is newer than the document but not than the number that
// somebody else has given it. Such a change is written over the document, on the
// condition that nobody has touched it since.
func (s *Sink) overtaken(ctx context.Context, body []byte, docs []*document) {
	var asked []*document
	for _, d := range docs {
		if v := d.outcome.Verdict; v != sinks.Poison && v != sinks.Stale && !d.outdated() {
			continue
		}
		asked = append(asked, d)
	}
	if len(asked) == 0 {
		return
	}
	has := s.ask(ctx, asked)
	if has == nil {
		return
	}
	var mend []*document
	for i, d := range asked {
		h := has[i]
		if h.foreign() {
			s.tell(d, h)
		}
		switch {
		case d.outcome.Verdict == sinks.Stale:
			if h.foreign() && h.version < d.change.Version {
				d.over = &has[i]
				mend = append(mend, d)
			}
		case !h.found || h.version < d.change.Version:
		case h.version == d.change.Version:
			d.outcome = sinks.Outcome{Verdict: sinks.Duplicate}
		default:
			d.outcome = sinks.Outcome{Verdict: sinks.Stale}
		}
	}
	s.mend(ctx, body, mend)
}

// tell counts a document that somebody else has written, and names the first of a
// table in the log.
func (s *Sink) tell(d *document, h stored) {
	s.metrics.foreign.Inc()
	if d.table.foreign.Swap(true) {
		return
	}
	id, _ := cdc.KeyText(d.change.Key)
	s.log.Warn("somebody else writes to the index: the _version of a document is not its "+guardField+".v; more of this table are only counted (lockstep_elastic_foreign_writes_total)",
		"table", d.table.name.String(), "index", d.table.alias, "id", id, "_version", h.compared.String(), guardField+".v", h.version.String())
}

// mend writes docs over what somebody else has written. The number by which
// Elasticsearch compares stays the other's, and grows by one; the version inside is
// right again, and by it the next change is judged.
func (s *Sink) mend(ctx context.Context, body []byte, docs []*document) {
	if len(docs) == 0 {
		return
	}
	var lines []byte
	for _, d := range docs {
		from := len(lines)
		verb, source, _ := bytes.Cut(body[d.lines.from:d.lines.to], []byte("\n"))
		id, _ := cdc.KeyText(d.change.Key)
		a := action{index: d.table.alias, id: id, routing: d.routing, over: d.over}
		if bytes.HasPrefix(verb, []byte(`{"`+verbDelete)) {
			lines = a.append(lines, verbDelete)
		} else {
			lines = append(a.append(lines, verbIndex), source...)
		}
		d.lines = span{from, len(lines)}
	}
	s.send(ctx, lines, docs)
	for _, d := range docs {
		if d.outcome.Verdict == sinks.Stale { // touched since: by a newer change, or by somebody again
			d.outcome = sinks.Outcome{Verdict: sinks.Unavailable, Reason: "the document was written by somebody else at the same moment"}
		}
	}
}

// appendOver appends the condition that a document is as it was.
func (d *stored) appendOver(b []byte) []byte {
	b = append(b, `,"if_seq_no":`...)
	b = strconv.AppendInt(b, d.seq, 10)
	b = append(b, `,"if_primary_term":`...)
	return strconv.AppendInt(b, d.term, 10)
}
