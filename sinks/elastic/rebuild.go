package elastic

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
)

// Rebuild says what to rebuild and how.
type Rebuild struct {
	Table cdc.TableName
	// DryRun looks and changes nothing.
	DryRun bool
	// LeaveOut goes on without documents that the new mapping refuses.
	LeaveOut bool
	// Progress is told how far it is, after every page; nil for nobody.
	Progress func(doing string, done, of int64)
}

// Rebuilt is what a rebuild has done, or would do.
type Rebuilt struct {
	Alias     string   `json:"alias"`
	From      string   `json:"from"`
	To        string   `json:"to"`
	Documents int64    `json:"documents"`
	LeftOut   []string `json:"left_out,omitempty"` // _ids that the new mapping refused
	Changes   []string `json:"changes,omitempty"`  // what the new index has otherwise
	HeldMilli int64    `json:"held_ms"`            // for how long nothing could be written
}

// Rebuild puts a new index with the mapping of today behind the alias of a table, with
// every document of the old one, and leaves the old one as it was.
//
// It needs nothing of the workers and may run in any process. They write to the old
// index, and readers search it, while its documents are copied under their versions.
// At the end Elasticsearch itself blocks writes to the old index, so that workers
// hold their changes; what was written or deleted meanwhile is made good, the counts
// are compared, and the alias moves in one step. Killed at any moment it leaves an
// index that nobody reads, and perhaps the block; the next run takes both away and
// begins anew. Of two at once one ends with an error.
//
// The new index does not know the versions of rows that were deleted hard before it
// was there, just as if its node had restarted.
func (s *Sink) Rebuild(ctx context.Context, what Rebuild) (*Rebuilt, error) {
	r := &rebuild{Sink: s, Rebuild: what, out: &Rebuilt{}}
	if r.Progress == nil {
		r.Progress = func(string, int64, int64) {}
	}
	return r.out, r.run(ctx)
}

type rebuild struct {
	*Sink
	Rebuild
	t     *table
	shape cdc.Table
	old   *index
	next  string
	alias string // of the new index, until it has the table's
	known map[string]bool
	seen  map[int]int64 // per shard the sequence number up to which it is copied
	out   *Rebuilt

	refused map[docName]refusal
}

// docName names a document: an _id is unique only under one routing.
type docName struct{ id, routing string }

// refusal is why the new mapping does not take a document, and which state of it.
type refusal struct {
	version cdc.Version
	reason  string
}

func (r *rebuild) run(ctx context.Context) error {
	if err := r.begin(ctx); err != nil || r.DryRun {
		return err
	}
	done := false
	defer func() {
		if !done {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			_ = r.block(ctx, false) // else the next run does, or its sentence says it
			_ = r.discard(ctx, r.next)
		}
	}()
	if err := r.create(ctx); err != nil {
		return err
	}
	for _, doing := range []string{"copy", "catch up"} { // twice: what is left for the end is little
		if err := r.copy(ctx, doing); err != nil {
			return err
		}
	}
	held := time.Now()
	if err := r.block(ctx, true); err != nil {
		return err
	}
	if err := r.copy(ctx, "finish"); err != nil {
		return err
	}
	if err := r.verify(ctx); err != nil {
		return err
	}
	if err := r.swap(ctx); err != nil {
		return err
	}
	done = true
	r.out.HeldMilli = time.Since(held).Milliseconds()
	r.log.Info("index rebuilt", "table", r.Table.String(), "alias", r.t.alias, "from", r.old.name, "to", r.next, "documents", r.out.Documents,
		"left_out", len(r.refused), "held", time.Since(held).Round(time.Millisecond).String())
	return nil
}

// begin looks at what is there and takes away what a run that was killed has left.
func (r *rebuild) begin(ctx context.Context) (err error) {
	if r.t = r.table(r.Table); r.t == nil {
		return fmt.Errorf("the table %s is not for this sink; see tables[].match", r.Table)
	}
	if r.t.wrong != nil {
		return r.t.wrong
	}
	if r.old, err = r.look(ctx, r.t); err != nil {
		return err
	}
	if r.old == nil {
		return fmt.Errorf("there is no index behind %s; the sink makes it with the first change", r.t.alias)
	}
	if r.shape, err = r.describe(ctx, r.Table); err != nil {
		return err
	}
	if err := r.t.config.CheckTable(r.shape); err != nil {
		return err
	}
	if r.out.Documents, err = r.count(ctx, r.old.name, nil); err != nil {
		return err
	}
	r.known = map[string]bool{guardField: true}
	for _, c := range r.shape.Columns {
		r.known[c.Name] = true
	}
	r.differences()
	all, err := r.generations(ctx, r.t)
	if err != nil {
		return err
	}
	highest := 0
	for name, i := range all {
		switch {
		case !i.unfinished(r.t.alias):
			n, _ := strconv.Atoi(name[len(name)-6:])
			highest = max(highest, n)
		case !r.DryRun:
			if err := r.discard(ctx, name); err != nil {
				return err
			}
		}
	}
	r.next = fmt.Sprintf("%s-%06d", r.t.alias, highest+1)
	r.alias = r.t.alias + "-rebuild-" + strings.ToLower(rand.Text()[:10])
	r.out.Alias, r.out.From, r.out.To = r.t.alias, r.old.name, r.next
	if !r.DryRun && r.old.Settings.Index.Blocks.Write == "true" {
		return r.block(ctx, false)
	}
	return nil
}

// differences notes what the new index will have otherwise.
func (r *rebuild) differences() {
	var misfit *outgrown
	if err := r.fits(r.t, r.old, r.shape); errors.As(err, &misfit) {
		for _, m := range misfit.misfits {
			r.out.Changes = append(r.out.Changes, fmt.Sprintf("field %s: %s instead of %s", m.field, m.needs, m.has))
		}
	} else if err != nil {
		r.out.Changes = append(r.out.Changes, err.Error())
	}
	for field := range r.old.Mappings.Properties {
		if !r.known[field] {
			r.out.Changes = append(r.out.Changes, fmt.Sprintf("field %s: left out, the table has no such column", field))
		}
	}
	slices.Sort(r.out.Changes)
}

// generations are the indices that were ever made for a table and are still there.
func (s *Sink) generations(ctx context.Context, t *table) (map[string]*index, error) {
	res, err := s.do(ctx, esapi.IndicesGetRequest{Index: []string{t.alias + "-*"}, ExpandWildcards: "open,closed"})
	if err == nil && res.status == http.StatusNotFound {
		return nil, nil
	}
	if err := s.good(res, err, "list the indices "+t.alias+"-*"); err != nil {
		return nil, err
	}
	var all map[string]*index
	if err := json.Unmarshal(res.body, &all); err != nil {
		return nil, fmt.Errorf("list the indices %s-*: %w", t.alias, err)
	}
	ours := regexp.MustCompile("^" + regexp.QuoteMeta(t.alias) + "-[0-9]{6}$")
	maps.DeleteFunc(all, func(name string, _ *index) bool { return !ours.MatchString(name) })
	return all, nil
}

// unfinished reports whether an index was being filled by a rebuild that did not end.
func (i *index) unfinished(alias string) bool {
	for name := range i.Aliases {
		if len(i.Aliases) == 1 && strings.HasPrefix(name, alias+"-rebuild-") {
			return true
		}
	}
	return false
}

func (r *rebuild) discard(ctx context.Context, name string) error {
	res, err := r.do(ctx, esapi.IndicesDeleteRequest{Index: []string{name}})
	if err == nil && res.status == http.StatusNotFound {
		return nil
	}
	return r.good(res, err, "delete the unfinished index "+name)
}

// create makes the new index, behind an alias of this run alone: with require_alias
// nothing is written once another run has taken the index away.
func (r *rebuild) create(ctx context.Context) error {
	_, err := r.twice(ctx, func(unsignedLong bool) map[string]any {
		body := indexBody(r.t, r.shape, r.config, unsignedLong)
		body["aliases"] = map[string]any{r.alias: map[string]any{"is_write_index": true}}
		return body
	}, func(body []byte) esapi.Request {
		return esapi.IndicesCreateRequest{Index: r.next, Body: bytes.NewReader(body)}
	})
	if err != nil {
		return fmt.Errorf("create index %s: %w", r.next, err)
	}
	all, err := r.generations(ctx, r.t)
	if err != nil {
		return err
	}
	next := all[r.next]
	if next == nil {
		return fmt.Errorf("the index %s is gone again", r.next)
	}
	next.name = r.next
	if err := r.sign(ctx, next); err != nil { // its rows are those of the old one
		return err
	}
	r.seen, r.refused = map[int]int64{}, map[docName]refusal{}
	return nil
}

// block forbids writes to the old index and waits for those under way, or allows
// them again.
func (r *rebuild) block(ctx context.Context, on bool) error {
	if on {
		res, err := r.do(ctx, esapi.IndicesAddBlockRequest{Index: []string{r.old.name}, Block: "write"})
		return r.good(res, err, "block writes to "+r.old.name)
	}
	res, err := r.do(ctx, esapi.IndicesPutSettingsRequest{Index: []string{r.old.name}, Body: strings.NewReader(`{"index.blocks.write":null}`)})
	return r.good(res, err, "allow writes to "+r.old.name)
}

// copy brings over what was written since it was called before.
func (r *rebuild) copy(ctx context.Context, doing string) error {
	ends, err := r.ends(ctx)
	if err != nil {
		return err
	}
	done, of := int64(0), r.out.Documents
	if len(r.seen) > 0 {
		of = 0
		for shard, end := range ends {
			of += end - r.seen[shard]
		}
	}
	for _, shard := range slices.Sorted(maps.Keys(ends)) {
		query := map[string]any{"match_all": map[string]any{}}
		if from, again := r.seen[shard]; again {
			query = map[string]any{"range": map[string]any{"_seq_no": map[string]any{"gt": from}}}
		}
		err := r.shardPages(ctx, r.old.name, fmt.Sprintf("_shards:%d", shard), query, true, func(page []gjson.Result) error {
			done += int64(len(page))
			r.Progress(doing, done, max(of, done))
			return r.bring(ctx, page)
		})
		if err != nil {
			return err
		}
		r.seen[shard] = ends[shard]
	}
	return r.mayLeaveOut()
}

// ends is the highest sequence number of every shard of the old index. A search after
// a refresh sees what has one up to it.
func (r *rebuild) ends(ctx context.Context) (map[int]int64, error) {
	res, err := r.do(ctx, esapi.IndicesStatsRequest{Index: []string{r.old.name}, Level: "shards"})
	if err := r.good(res, err, "ask how far "+r.old.name+" is"); err != nil {
		return nil, err
	}
	ends := map[int]int64{}
	gjson.GetBytes(res.body, "indices."+gjson.Escape(r.old.name)+".shards").ForEach(func(shard, copies gjson.Result) bool {
		for _, c := range copies.Array() {
			if c.Get("routing.primary").Bool() {
				ends[int(shard.Int())] = c.Get("seq_no.max_seq_no").Int()
			}
		}
		return true
	})
	if len(ends) == 0 {
		return nil, fmt.Errorf("ask how far %s is: no primary shard answers", r.old.name)
	}
	return ends, nil
}

// batch is a bulk request that is being filled.
type batch struct {
	body     []byte
	names    []docName
	versions []cdc.Version
}

// bring writes a page of documents to the new index, in requests of the size that is
// configured.
func (r *rebuild) bring(ctx context.Context, page []gjson.Result) error {
	var b batch
	for _, hit := range page {
		source := []byte(hit.Get("_source").Raw)
		a := action{index: r.alias, id: hit.Get("_id").Str, routing: hit.Get("_routing").Str, version: versionOf(hit), again: true}
		if v := gjson.GetBytes(source, guardField+".v"); v.Exists() {
			a.version = cdc.Version(v.Uint()) // whatever somebody else has made of _version
		}
		if gone := gjson.GetBytes(source, guardField+".deleted").Bool(); !gone || r.t.config.Routing == "" {
			a.routing, _ = r.t.config.route(source)
		}
		b.body = append(r.appendKnown(a.append(b.body, verbIndex), source), '\n')
		b.names, b.versions = append(b.names, docName{a.id, a.routing}), append(b.versions, a.version)
		if len(b.body) >= r.config.BulkBytes {
			if err := r.write(ctx, b); err != nil {
				return err
			}
			b = batch{body: b.body[:0]}
		}
	}
	if len(b.names) == 0 {
		return nil
	}
	return r.write(ctx, b)
}

// appendKnown appends a document without the fields that the table no longer has,
// which a strict mapping refuses.
func (r *rebuild) appendKnown(dst, source []byte) []byte {
	dst = append(dst, '{')
	first := true
	gjson.ParseBytes(source).ForEach(func(name, value gjson.Result) bool {
		if !r.known[name.Str] {
			return true
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(append(append(dst, name.Raw...), ':'), value.Raw...)
		return true
	})
	return append(dst, '}')
}

// write sends a batch until the cluster has room for all of it.
func (r *rebuild) write(ctx context.Context, b batch) error {
	wait := 100 * time.Millisecond
	for {
		after, full, err := r.writeOnce(ctx, b)
		if err != nil || !full {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(wait, after)):
			wait = min(2*wait, 5*time.Second)
		}
	}
}

func (r *rebuild) writeOnce(ctx context.Context, b batch) (after time.Duration, full bool, err error) {
	alias := true
	res, err := r.do(ctx, esapi.BulkRequest{Body: bytes.NewReader(b.body), RequireAlias: &alias, FilterPath: []string{"items.*.status", "items.*.error", "error", "status"}})
	r.metrics.count(res.status, len(b.body))
	if err == nil && res.status == http.StatusTooManyRequests {
		return res.after, true, nil
	}
	if err := r.good(res, err, "write to "+r.next); err != nil {
		return 0, false, err
	}
	answers := readBulk(res.body)
	if len(answers) != len(b.names) {
		return 0, false, fmt.Errorf("write to %s: %d answers to %d documents", r.next, len(answers), len(b.names))
	}
	for i, a := range answers {
		switch {
		case a.kind == "", a.status == http.StatusConflict:
			delete(r.refused, b.names[i])
		case a.status == http.StatusTooManyRequests:
			full = true // the others may go again
		case a.status == http.StatusBadRequest:
			r.refused[b.names[i]] = refusal{b.versions[i], a.reason}
		default:
			return 0, false, fmt.Errorf("write %s to %s: %s", b.names[i].id, r.next, a)
		}
	}
	return res.after, full, nil
}

// mayLeaveOut ends a rebuild of documents that the new mapping refuses, unless it may
// leave them out.
func (r *rebuild) mayLeaveOut() error {
	if len(r.refused) == 0 || r.LeaveOut {
		return nil
	}
	names := slices.SortedFunc(maps.Keys(r.refused), func(a, b docName) int { return strings.Compare(a.id, b.id) })
	return fmt.Errorf("%d documents of %s do not fit the new mapping, the first of them %s: %s; add --leave-out to go on without them, and copy their rows anew afterwards: lockstep snapshot start --table %s",
		len(r.refused), r.old.name, names[0].id, r.refused[names[0]].reason, r.Table)
}

// verify makes sure, with writes blocked, that the new index has exactly what the old
// one has, save what was left out.
func (r *rebuild) verify(ctx context.Context) error {
	shape, err := r.describe(ctx, r.Table)
	if err != nil {
		return err
	}
	if !slices.Equal(shape.Columns, r.shape.Columns) {
		return fmt.Errorf("the columns of %s have changed while its index was rebuilt; run it again", r.Table)
	}
	if err := r.leaveOut(ctx); err != nil {
		return err
	}
	has, err := r.count(ctx, r.old.name, nil)
	if err != nil {
		return err
	}
	has -= int64(len(r.refused))
	for attempt := range 2 {
		if r.out.Documents, err = r.count(ctx, r.next, nil); err != nil {
			return err
		}
		switch got := r.out.Documents; {
		case got == has:
			return nil
		case got < has || attempt > 0:
			return fmt.Errorf("the index %s has %d documents where %s has %d; it is discarded, run it again", r.next, got, r.old.name, has)
		}
		// Rows were deleted, or have moved, since they were copied.
		if err := r.prune(ctx); err != nil {
			return err
		}
	}
	return nil
}

// leaveOut removes older states of documents whose newest does not fit.
func (r *rebuild) leaveOut(ctx context.Context) error {
	if len(r.refused) == 0 {
		return nil
	}
	var body []byte
	for d, no := range r.refused {
		body = action{index: r.alias, id: d.id, routing: d.routing, version: no.version, again: true}.append(body, verbDelete)
		r.out.LeftOut = append(r.out.LeftOut, d.id)
	}
	slices.Sort(r.out.LeftOut)
	res, err := r.do(ctx, esapi.BulkRequest{Body: bytes.NewReader(body), FilterPath: []string{"items.*.status", "items.*.error", "error", "status"}})
	if err := r.good(res, err, "leave documents out of "+r.next); err != nil {
		return err
	}
	for _, a := range readBulk(res.body) {
		if a.kind != "" {
			return fmt.Errorf("leave documents out of %s: %s", r.next, a)
		}
	}
	return nil
}

// prune removes from the new index what the old one does not have any more.
func (r *rebuild) prune(ctx context.Context) error {
	was := TableConfig{Routing: r.old.made().Routing, RoutingOfNull: r.t.config.RoutingOfNull}
	return r.pages(ctx, r.next, map[string]any{"match_all": map[string]any{}}, []string{was.Routing}, func(page []gjson.Result) error {
		docs := make([]map[string]any, len(page))
		for i, hit := range page {
			docs[i] = map[string]any{"_id": hit.Get("_id").Str, "_source": false}
			switch routing, ok := was.route([]byte(hit.Get("_source").Raw)); {
			case was.Routing == "":
			case was.Routing == r.t.config.Routing: // a tombstone does not tell its own
				docs[i]["routing"] = hit.Get("_routing").Str
			case ok:
				docs[i]["routing"] = routing
			}
		}
		body, err := json.Marshal(map[string]any{"docs": docs})
		if err != nil {
			return err
		}
		res, err := r.do(ctx, esapi.MgetRequest{Index: r.old.name, Body: bytes.NewReader(body)})
		if err := r.good(res, err, "ask "+r.old.name+" for documents"); err != nil {
			return err
		}
		var gone []gjson.Result
		for i, doc := range gjson.GetBytes(res.body, "docs").Array() {
			if doc.Get("error").Exists() {
				return fmt.Errorf("ask %s for document %s: %s", r.old.name, page[i].Get("_id").Str, doc.Get("error.reason").Str)
			}
			if !doc.Get("found").Bool() {
				gone = append(gone, page[i])
			}
		}
		_, err = r.remove(ctx, &table{name: r.Table, alias: r.alias}, gone, false, versionOf)
		return err
	})
}

// swap moves the alias in one step, which fails when this run's own alias is gone.
func (r *rebuild) swap(ctx context.Context) error {
	add := aliasBody(r.t.tombstones || r.old.filtered(r.t.alias))
	add["index"], add["alias"] = r.next, r.t.alias
	_, err := r.put(ctx, func(body []byte) esapi.Request {
		return esapi.IndicesUpdateAliasesRequest{Body: bytes.NewReader(body)}
	}, map[string]any{"actions": []any{
		map[string]any{"remove": map[string]any{"index": r.next, "alias": r.alias, "must_exist": true}},
		map[string]any{"remove": map[string]any{"index": r.old.name, "alias": r.t.alias, "must_exist": true}},
		map[string]any{"add": add},
	}})
	if err != nil {
		return fmt.Errorf("move the alias %s from %s to %s: %w", r.t.alias, r.old.name, r.next, err)
	}
	return nil
}

// DropOld deletes the indices of a table that no alias leads to, as rebuilds leave
// them, and says which. With dry it only says so.
func (s *Sink) DropOld(ctx context.Context, name cdc.TableName, dry bool) (dropped []string, err error) {
	t := s.table(name)
	if t == nil {
		return nil, fmt.Errorf("the table %s is not for this sink; see tables[].match", name)
	}
	current, err := s.look(ctx, t)
	if err != nil {
		return nil, err
	}
	if current == nil {
		return nil, fmt.Errorf("there is no index behind %s, so none of its indices is old", t.alias)
	}
	all, err := s.generations(ctx, t)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if len(all[name].Aliases) > 0 {
			continue
		}
		if !dry {
			res, err := s.do(ctx, esapi.IndicesDeleteRequest{Index: []string{name}})
			if err := s.good(res, err, "delete "+name); err != nil {
				return dropped, err
			}
		}
		dropped = append(dropped, name)
	}
	return dropped, nil
}
