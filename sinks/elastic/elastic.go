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
	"os"
	"sync"

	"github.com/elastic/go-elasticsearch/v8"
	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

// Sink is one Elasticsearch cluster. It is safe for concurrent use.
type Sink struct {
	config    Config
	client    *elasticsearch.BaseClient
	transport *http.Transport
	lookup    func(cdc.TableName) (TableConfig, bool)
	describe  func(context.Context, cdc.TableName) (cdc.Table, error)
	log       *slog.Logger
	metrics   *Metrics

	mu     sync.Mutex
	tables map[cdc.TableName]*table // nil for a table that is not for this sink
}

// Open makes a sink of the cluster at cfg.Addresses. It does not talk to it yet:
// a cluster that is down makes changes wait, not a process die.
//
// tables says where the rows of a table go, if anywhere. describe gives the
// present shape of a table, from which its index is made; its error wraps
// cdc.ErrNoTable when the table is gone.
func Open(cfg Config, tables func(cdc.TableName) (TableConfig, bool), describe func(context.Context, cdc.TableName) (cdc.Table, error), log *slog.Logger, metrics *Metrics) (*Sink, error) {
	var ca []byte
	if cfg.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(cfg.CAFile); err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64 // partitions write side by side
	client, err := elasticsearch.NewBaseClient(elasticsearch.Config{
		Addresses: cfg.Addresses,
		Username:  cfg.Username,
		Password:  cfg.Password.Reveal(),
		APIKey:    cfg.APIKey.Reveal(),
		CACert:    ca,
		Transport: transport,
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
		config: cfg, client: client, transport: transport, lookup: tables, describe: describe,
		log: log, metrics: metrics, tables: make(map[cdc.TableName]*table),
	}, nil
}

// Close gives the connections back.
func (s *Sink) Close() { s.transport.CloseIdleConnections() }

// Apply writes the changes with as few bulk requests as their size allows.
func (s *Sink) Apply(ctx context.Context, changes []cdc.Change) []sinks.Outcome {
	outcomes := make([]sinks.Outcome, len(changes))
	unready := make(map[*table]*sinks.Outcome)
	size := 0
	for i := range changes {
		size += len(changes[i].After) + 256
	}
	body := make([]byte, 0, size)
	docs := make([]*document, 0, len(changes))
	var unsent []*document // too large to try
	for i := range changes {
		c := &changes[i]
		t := s.table(c.Table)
		if t == nil {
			outcomes[i] = sinks.Outcome{Verdict: sinks.Filtered}
			continue
		}
		no, asked := unready[t]
		if !asked {
			no = s.ready(ctx, t)
			unready[t] = no
		}
		from := len(body)
		if no == nil {
			body, no = appendChange(body, c, t.alias, s.config.MaxDocumentBytes)
		}
		d := &document{at: i, change: c, table: t, lines: span{from, len(body)}}
		switch {
		case no == nil:
			docs = append(docs, d)
		case no.Class == sinks.ClassTooLarge:
			d.outcome = *no
			unsent = append(unsent, d)
		default:
			outcomes[i] = *no
		}
	}
	s.send(ctx, body, docs)
	s.send(ctx, body, s.widen(ctx, docs))
	docs = append(docs, unsent...)
	s.overtaken(ctx, docs)
	for _, d := range docs {
		outcomes[d.at] = d.outcome
	}
	return outcomes
}

// send writes docs and notes their outcomes.
func (s *Sink) send(ctx context.Context, body []byte, docs []*document) {
	for len(docs) > 0 {
		n := pack(docs, s.config.BulkDocs, s.config.BulkBytes)
		if reason := s.bulk(ctx, body, docs[:n]); reason != "" {
			// Whoever does not answer one request will not answer the next.
			unavailable(docs, reason)
			return
		}
		docs = docs[n:]
	}
}

func unavailable(docs []*document, reason string) {
	for _, d := range docs {
		d.outcome = sinks.Outcome{Verdict: sinks.Unavailable, Reason: reason}
	}
}

// bulk sends one request and notes the outcome of each document. When the request
// as a whole was not answered it returns why, and notes nothing.
func (s *Sink) bulk(ctx context.Context, body []byte, docs []*document) (reason string) {
	for _, d := range docs {
		d.prepared = d.table.generation()
		d.strict = false
	}
	part := join(body, docs)
	alias := true
	res, err := s.do(ctx, esapi.BulkRequest{
		Body:         bytes.NewReader(part),
		RequireAlias: &alias,
		FilterPath:   []string{"items.*.status", "items.*.error", "items.delete._index", "error", "status"},
	})
	s.metrics.count(res.status, len(part))
	if err != nil {
		return err.Error()
	}
	switch {
	case res.status == http.StatusOK:
	case len(docs) > 1 && (res.status == http.StatusBadRequest || res.status == http.StatusRequestEntityTooLarge):
		// Too much at once, or one document that spoils the request: halve it until
		// it shows which.
		half := len(docs) / 2
		if reason = s.bulk(ctx, body, docs[:half]); reason != "" {
			return reason
		}
		if reason = s.bulk(ctx, body, docs[half:]); reason != "" {
			unavailable(docs[half:], reason)
			// The first half has its answers.
		}
		return ""
	case res.status == http.StatusRequestEntityTooLarge, res.status == http.StatusBadRequest && res.kind != "":
		docs[0].outcome = classify(docs[0].change.Op, docs[0].change.Version, res.answer)
		return ""
	default:
		return fmt.Sprintf("bulk request: %s", res.answer)
	}
	answers := readBulk(res.body)
	if len(answers) != len(docs) {
		return fmt.Sprintf("bulk request: %d answers to %d documents", len(answers), len(docs))
	}
	for i, d := range docs {
		a := answers[i]
		d.outcome = classify(d.change.Op, d.change.Version, a)
		d.strict = a.kind == kindStrict
		switch {
		case a.kind == kindNoIndex:
			d.table.forget()
		case d.change.Op == cdc.OpDelete && a.index == d.table.alias:
			// require_alias does not bind deletes: the alias had vanished and a
			// cluster with action.auto_create_index made an index in its place.
			d.table.forget()
			d.outcome = sinks.Outcome{Verdict: sinks.Unavailable, Reason: "the alias " + d.table.alias + " has become an index"}
		}
	}
	return ""
}

// widen adds to the mapping the columns that tables got since it was made, and
// returns the documents that were refused for want of them.
func (s *Sink) widen(ctx context.Context, docs []*document) []*document {
	type look struct {
		wider bool
		err   error
	}
	looks := make(map[*table]look)
	var again []*document
	for _, d := range docs {
		if !d.strict {
			continue
		}
		l, looked := looks[d.table]
		if !looked {
			l.wider, l.err = s.extend(ctx, d.table, d.prepared)
			looks[d.table] = l
		}
		switch {
		case errors.Is(l.err, cdc.ErrNoTable):
			d.outcome.Verdict = sinks.Transient
		case l.err != nil:
			d.outcome = sinks.Outcome{Verdict: sinks.Unavailable, Reason: d.outcome.Reason + "; the table could not be looked at: " + l.err.Error()}
		case l.wider:
			again = append(again, d)
		default: // a row from before a column was dropped: its new shape, or its end, comes behind it
			d.outcome.Verdict = sinks.Transient
			d.outcome.Reason += "; the table has no such column any more"
		}
	}
	return again
}

// outdated reports whether a change was refused for a column that the table no
// longer has.
func (d *document) outdated() bool {
	return d.outcome.Verdict == sinks.Transient && d.outcome.Class == sinks.ClassMapping
}

// overtaken looks at what is refused for good: Elasticsearch reads a document
// before it compares versions, so it refuses an old state that nobody needs any
// more in the same words as a new one. Such a change is stale, not poison; without
// this the letter of a row that was mended could never be closed by a replay.
func (s *Sink) overtaken(ctx context.Context, docs []*document) {
	body := []byte(`{"docs":[`)
	var refused []*document
	for _, d := range docs {
		if d.outcome.Verdict != sinks.Poison && !d.outdated() {
			continue
		}
		id, err := cdc.KeyText(d.change.Key)
		if err != nil {
			continue
		}
		if len(refused) > 0 {
			body = append(body, ',')
		}
		body = append(body, `{"_index":`...)
		body = cdc.AppendString(body, d.table.alias)
		body = append(body, `,"_id":`...)
		body = cdc.AppendString(body, id)
		body = append(body, `,"_source":false}`...)
		refused = append(refused, d)
	}
	if len(refused) == 0 {
		return
	}
	res, err := s.do(ctx, esapi.MgetRequest{Body: bytes.NewReader(append(body, "]}"...))})
	found := gjson.GetBytes(res.body, "docs").Array()
	switch {
	case err != nil:
		unavailable(refused, err.Error())
		return
	case res.status != http.StatusOK || len(found) != len(refused):
		unavailable(refused, fmt.Sprintf("ask for the versions of %d documents: %s", len(refused), res.answer))
		return
	}
	for i, d := range refused {
		switch has := cdc.Version(found[i].Get("_version").Uint()); {
		case !found[i].Get("found").Bool() || has < d.change.Version:
		case has == d.change.Version:
			d.outcome = sinks.Outcome{Verdict: sinks.Duplicate}
		default:
			d.outcome = sinks.Outcome{Verdict: sinks.Stale}
		}
	}
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
		return "", fmt.Errorf("ask Elasticsearch for its version: %s", res.answer)
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
		return false, fmt.Errorf("look for index %s: %s", alias, res.answer)
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
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	res, err := req.Do(ctx, s.client)
	if err != nil {
		return response{}, fmt.Errorf("ask Elasticsearch: %w", err)
	}
	defer res.Body.Close()
	out := response{answer: answer{status: res.StatusCode}}
	if out.body, err = io.ReadAll(res.Body); err != nil {
		return out, fmt.Errorf("read Elasticsearch's answer: %w", err)
	}
	if e := gjson.GetBytes(out.body, "error"); res.IsError() && e.Exists() {
		out.kind, out.reason = explain(e)
	}
	return out, nil
}
