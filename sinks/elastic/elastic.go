package elastic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/elastic/go-elasticsearch/v8"
	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

// Sink is one Elasticsearch cluster. It is safe for concurrent use.
type Sink struct {
	// Refill is told that a table has no index, before one is made, or another one than it
	// had, and whether it had one while this process ran. It reports whether rows of the table were applied here
	// before, and has seen to it then that they come again. An error keeps the index from being made. Nil is for a process in which
	// nothing is known of that; it is not to be set once changes are applied.
	Refill func(ctx context.Context, t cdc.TableName, had bool) (lost bool, err error)

	// Clock says what the source's clock shows at a time of this machine's; nil is for
	// clocks that show the same.
	Clock func(time.Time) time.Time

	name     string
	config   Config
	client   *elasticsearch.BaseClient
	access   *access
	lookup   func(cdc.TableName) (TableConfig, bool)
	describe func(context.Context, cdc.TableName) (cdc.Table, error)
	log      *slog.Logger
	metrics  *Metrics

	watchEvery time.Duration
	seeking    seeking

	mu     sync.Mutex
	tables map[cdc.TableName]*table // nil for a table that is not for this sink
}

// Open makes the sink of that name, of the cluster at cfg.Addresses. It does not talk to it yet:
// a cluster that is down makes changes wait, not a process die.
//
// tables says where the rows of a table go, if anywhere. describe gives the
// present shape of a table, from which its index is made; its error wraps
// cdc.ErrNoTable when the table is gone.
func Open(name string, cfg Config, tables func(cdc.TableName) (TableConfig, bool), describe func(context.Context, cdc.TableName) (cdc.Table, error), log *slog.Logger, metrics *Metrics) (*Sink, error) {
	access, err := openAccess(cfg, log)
	if err != nil {
		return nil, fmt.Errorf("open Elasticsearch: %w", err)
	}
	client, err := elasticsearch.NewBaseClient(elasticsearch.Config{
		Addresses: cfg.Addresses,
		CloudID:   cfg.CloudID,
		Transport: access,
		// The worker holds and tries again, in one place and with a breaker.
		DisableRetry: true,
		// One client for Elasticsearch 8 and 9.
		EnableCompatibilityMode: true,
		DisableMetaHeader:       true,
	})
	if err != nil {
		return nil, fmt.Errorf("open Elasticsearch: %w", err)
	}
	return &Sink{
		name: name, config: cfg, client: client, access: access, lookup: tables, describe: describe,
		log: log, metrics: metrics, watchEvery: watchEvery, tables: make(map[cdc.TableName]*table),
		seeking: seeking{next: make(map[*table]time.Time), wake: make(chan struct{}, 1)},
	}, nil
}

// Close gives the connections back.
func (s *Sink) Close() { s.access.close() }

// Apply writes the changes with as few bulk requests as their size allows.
func (s *Sink) Apply(ctx context.Context, changes []cdc.Change) []sinks.Outcome {
	outcomes := make([]sinks.Outcome, len(changes))
	places := s.places(ctx, changes, outcomes, s.ready)
	size := 0
	for i := range changes {
		size += len(changes[i].After) + 256
	}
	body := make([]byte, 0, size)
	docs := make([]*document, 0, len(changes))
	var unsent []*document // too large to try
	for i := range changes {
		c, p := &changes[i], &places[i]
		t := p.table
		if t == nil {
			continue // answered already
		}
		from := len(body)
		var no *sinks.Outcome
		if p.no == nil {
			body, no = appendChange(body, c, t, p.routing, s.config.MaxDocumentBytes)
		} else {
			_, no = idOf(c)
		}
		d := &document{at: i, change: c, table: t, routing: p.routing, lines: span{from, len(body)}}
		switch {
		case no == nil && p.no == nil:
			docs = append(docs, d)
		case no == nil:
			outcomes[i] = *p.no
		case no.Class == sinks.ClassTooLarge:
			d.outcome = *no
			unsent = append(unsent, d)
		default:
			outcomes[i] = *no
			continue
		}
		for _, routing := range p.left {
			from := len(body)
			gone := &cdc.Change{Table: c.Table, Op: cdc.OpDelete, Version: c.Version - 1, Key: c.Key}
			body = appendLeft(body, gone, t, routing)
			docs = append(docs, &document{at: i, change: gone, table: t, routing: routing, left: true, lines: span{from, len(body)}})
		}
	}
	s.send(ctx, body, docs)
	s.send(ctx, body, s.widen(ctx, docs))
	docs = append(docs, unsent...)
	s.overtaken(ctx, body, docs)
	for _, d := range docs {
		if !d.left {
			outcomes[d.at] = d.answer()
		}
	}
	for _, d := range docs {
		// A row that is not gone from where it was is not where it should be alone.
		if out := d.answer(); d.left && out.Verdict == sinks.Unavailable && outcomes[d.at].Verdict != sinks.Unavailable {
			outcomes[d.at] = out
		}
	}
	s.seek(docs, outcomes)
	return outcomes
}

// places finds where each change goes, once its table is ready. A change without a place,
// and so without a table, has its outcome.
func (s *Sink) places(ctx context.Context, changes []cdc.Change, outcomes []sinks.Outcome, ready func(context.Context, *table, uint32) *sinks.Outcome) []place {
	places := make([]place, len(changes))
	type look struct {
		*table
		layout uint32
	}
	looked := make(map[look]*sinks.Outcome)
	asked := make(map[*table]map[string]*place)
	for i := range changes {
		c := &changes[i]
		t := s.table(c.Table)
		if t == nil || c.Leaves && t.config.Routing == "" {
			outcomes[i] = sinks.Outcome{Verdict: sinks.Filtered}
			continue
		}
		no, known := looked[look{t, c.Layout}]
		if !known {
			no = ready(ctx, t, c.Layout)
			looked[look{t, c.Layout}] = no
		}
		if no != nil {
			outcomes[i] = *no
			continue
		}
		p := &places[i]
		*p = t.config.place(c)
		p.table = t
		if p.asked {
			if asked[t] == nil {
				asked[t] = make(map[string]*place)
			}
			id, _ := cdc.KeyText(c.Key) // a key that makes no id is refused later
			asked[t][id] = p
		}
	}
	lost := make(map[*table]error)
	for t, of := range asked {
		lost[t] = s.find(ctx, t, of)
	}
	for i := range places {
		p := &places[i]
		if p.table == nil || !p.asked {
			continue
		}
		if err := lost[p.table]; err != nil {
			p.table, outcomes[i] = nil, *unready(fmt.Errorf("ask where the row is: %w", err))
		} else if changes[i].Op == cdc.OpDelete && p.routing == "" {
			p.no = &sinks.Outcome{Verdict: sinks.Applied} // it is nowhere
		}
	}
	return places
}

// send writes docs and notes their outcomes.
func (s *Sink) send(ctx context.Context, body []byte, docs []*document) {
	for len(docs) > 0 {
		n := pack(docs, s.config.BulkDocs, s.config.BulkBytes)
		if no := s.bulk(ctx, body, docs[:n]); no != nil {
			// Whoever does not answer one request will not answer the next.
			all(docs, *no)
			return
		}
		docs = docs[n:]
	}
}

func all(docs []*document, out sinks.Outcome) {
	for _, d := range docs {
		d.outcome = out
	}
}

// unready is the outcome of changes whose table cannot be written to. Unless it is the
// cluster that does not answer, that is nothing to the other tables.
func unready(err error) *sinks.Outcome {
	if ofCluster(err) {
		return &sinks.Outcome{Verdict: sinks.Unavailable, Reason: err.Error()}
	}
	out := &sinks.Outcome{Verdict: sinks.Unavailable, Unasked: true}
	out.Reason, out.Mend = sinks.Advice(err.Error())
	return out
}

// errNoAnswer is wrapped where the cluster has not answered.
var errNoAnswer = errors.New("ask Elasticsearch")

// ofCluster reports whether an error would be the same for every table.
func ofCluster(err error) bool {
	a, answered := errors.AsType[answer](err)
	return errors.Is(err, errNoAnswer) || answered && a.ofCluster()
}

// away is the outcome of what got no answer, or none that counts.
func away(doing string, res response, err error) *sinks.Outcome {
	if err != nil {
		return &sinks.Outcome{Verdict: sinks.Unavailable, Reason: err.Error()}
	}
	return &sinks.Outcome{Verdict: sinks.Unavailable, Reason: fmt.Sprintf("%s: %v", doing, res.answer), RetryAfter: res.after}
}

// bulk sends one request and notes the outcome of each document. When the request
// as a whole was not answered it returns that, and notes nothing.
func (s *Sink) bulk(ctx context.Context, body []byte, docs []*document) *sinks.Outcome {
	for _, d := range docs {
		d.prepared = d.table.generation()
		d.strict, d.unmapped = false, false
	}
	part := join(body, docs)
	alias := true
	res, err := s.do(ctx, esapi.BulkRequest{
		Body:         bytes.NewReader(part),
		RequireAlias: &alias,
		FilterPath:   []string{"items.*.status", "items.*.error", "items.delete._index", "error", "status"},
	})
	s.metrics.count(res.status, len(part))
	switch {
	case err != nil:
		return away("", res, err)
	case res.status == http.StatusOK:
	case len(docs) > 1 && (res.status == http.StatusBadRequest || res.status == http.StatusRequestEntityTooLarge):
		// Too much at once, or one document that spoils the request: halve it until
		// it shows which.
		half := len(docs) / 2
		if no := s.bulk(ctx, body, docs[:half]); no != nil {
			return no
		}
		if no := s.bulk(ctx, body, docs[half:]); no != nil {
			all(docs[half:], *no) // the first half has its answers
		}
		return nil
	case res.status == http.StatusRequestEntityTooLarge, res.status == http.StatusBadRequest && res.kind != "":
		docs[0].outcome = classify(docs[0].change.Op, docs[0].change.Version, res.answer)
		return nil
	default:
		return away("bulk request", res, nil)
	}
	answers := readBulk(res.body)
	if len(answers) != len(docs) {
		return away(fmt.Sprintf("bulk request: %d answers to %d documents", len(answers), len(docs)), res, nil)
	}
	for i, d := range docs {
		a := answers[i]
		a.after = res.after
		d.outcome = classify(d.change.Op, d.change.Version, a)
		d.strict = a.kind == kindStrict
		d.unmapped = d.outcome.Verdict == sinks.Poison && d.outcome.Class == sinks.ClassMapping
		switch {
		case d.outcome.Verdict == sinks.Unavailable && a.ofIndex():
			d.table.forget() // the next look tells why
			d.outcome.Unasked = true
		case d.change.Op == cdc.OpDelete && a.index == d.table.alias:
			// require_alias does not bind deletes: the alias had vanished and a
			// cluster with action.auto_create_index made an index in its place.
			d.table.forget()
			d.outcome = sinks.Outcome{Verdict: sinks.Unavailable, Unasked: true, Reason: "the alias " + d.table.alias + " has become an index"}
		}
	}
	return nil
}

// widen looks at the tables of documents that a mapping has refused. It adds the
// columns that they got since, and returns the documents that were refused for want
// of them. Those of a table which the index does not fit any more have to wait.
func (s *Sink) widen(ctx context.Context, docs []*document) []*document {
	type look struct {
		wider bool
		err   error
	}
	looks := make(map[*table]look)
	var again []*document
	for _, d := range docs {
		if !d.unmapped {
			continue
		}
		l, looked := looks[d.table]
		if !looked {
			l.wider, l.err = s.extend(ctx, d.table, d.prepared)
			looks[d.table] = l
		}
		var misfit *outgrown
		switch {
		case errors.As(l.err, &misfit):
			d.table.forget() // until the index is rebuilt
			d.outcome = *unready(misfit)
		case !d.strict && l.wider:
			again = append(again, d)
		case !d.strict:
			// Its value is refused by a field that is as it should be.
		case errors.Is(l.err, cdc.ErrNoTable):
			d.outcome.Verdict = sinks.Transient
		case l.err != nil:
			d.outcome = sinks.Outcome{Verdict: sinks.Unavailable, Unasked: !ofCluster(l.err), Reason: sinks.Redact(d.outcome.Class, d.outcome.Reason) + "; the table could not be looked at: " + l.err.Error()}
		case l.wider:
			again = append(again, d)
		default: // a row from before a column was dropped: its new shape, or its end, comes behind it
			d.outcome.Verdict = sinks.Transient
			d.outcome.Reason += noColumn
		}
	}
	return again
}

const noColumn = "; the table has no such column any more"

// outdated reports whether a change was refused for a column that the table no
// longer has.
func (d *document) outdated() bool {
	return d.outcome.Verdict == sinks.Transient && d.outcome.Class == sinks.ClassMapping
}

// Probe asks the cluster for its version, and whether it takes what is configured.
func (s *Sink) Probe(ctx context.Context) (version string, err error) {
	res, err := s.do(ctx, esapi.InfoRequest{})
	if err != nil {
		return "", err
	}
	version = gjson.GetBytes(res.body, "version.number").Str
	if res.status == http.StatusMethodNotAllowed { // a build without the main action
		if res, err = s.do(ctx, esapi.NodesInfoRequest{NodeID: []string{"_local"}, FilterPath: []string{"nodes.*.version"}}); err != nil {
			return "", err
		}
		version = gjson.GetBytes(res.body, "nodes.*.version").Str
	}
	if res.status != http.StatusOK {
		return "", fmt.Errorf("ask Elasticsearch for its version: %w", res.answer)
	}
	return version, s.checkLimit(ctx)
}

// checkLimit refuses nodes that take no request as large as a document may be. Where we
// may not ask, a document too large becomes a dead letter in its time.
func (s *Sink) checkLimit(ctx context.Context) error {
	res, err := s.do(ctx, esapi.NodesInfoRequest{Metric: []string{"http"}, FilterPath: []string{"nodes.*.http.max_content_length_in_bytes"}})
	if err != nil || res.status != http.StatusOK {
		return err
	}
	most := int64(math.MaxInt64)
	gjson.GetBytes(res.body, "nodes").ForEach(func(_, node gjson.Result) bool {
		if is := node.Get("http.max_content_length_in_bytes"); is.Exists() {
			most = min(most, is.Int())
		}
		return true
	})
	if most >= int64(s.config.MaxDocumentBytes) {
		return nil
	}
	return sinks.Unfit{Problem: fmt.Sprintf("http.max_content_length is %d bytes, less than max_document_bytes %d: a larger document becomes a dead letter", most, s.config.MaxDocumentBytes),
		Mend: fmt.Sprintf("set max_document_bytes below %d, or raise http.max_content_length in elasticsearch.yml", most)}
}

// Empty reports whether an alias does not exist. An index that was emptied is not
// enough: it remembers the versions of its deleted documents.
func (s *Sink) Empty(ctx context.Context, alias string) (bool, error) {
	res, err := s.do(ctx, esapi.IndicesExistsRequest{Index: []string{alias}})
	switch {
	case err != nil:
		return false, fmt.Errorf("look for index %s: %w", alias, err)
	case res.status == http.StatusNotFound:
		return true, nil
	case res.status != http.StatusOK:
		return false, fmt.Errorf("look for index %s: %w", alias, res.answer)
	}
	return false, nil
}

// response is an answer that has been read to its end.
type response struct {
	answer
	body []byte
}

// do sends one request within Config.Timeout. Its error means that there was no
// answer.
func (s *Sink) do(ctx context.Context, req esapi.Request) (response, error) {
	return s.doWithin(ctx, req, math.MaxInt)
}

// errTooMuch is wrapped when an answer has more bytes than were wanted.
var errTooMuch = errors.New("the answer is too large")

// doWithin is do for an answer of at most that many bytes.
func (s *Sink) doWithin(ctx context.Context, req esapi.Request, most int) (response, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	res, err := req.Do(ctx, s.client)
	if err != nil {
		return response{}, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	defer res.Body.Close()
	out := response{answer: answer{status: res.StatusCode, after: retryAfter(res.Header.Get("Retry-After"), time.Now())}}
	if out.body, err = io.ReadAll(io.LimitReader(res.Body, int64(most))); err != nil {
		return out, fmt.Errorf("%w: read its answer: %w", errNoAnswer, err)
	}
	if len(out.body) == most {
		return out, fmt.Errorf("%w: %d bytes or more", errTooMuch, most)
	}
	if e := gjson.GetBytes(out.body, "error"); res.IsError() && e.Exists() {
		out.kind, out.reason = explain(e)
	}
	return out, nil
}
