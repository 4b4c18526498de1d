package elastic

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/elastic/go-elasticsearch/v8/esapi"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

// table is what the sink knows of a table's index.
type table struct {
	name   cdc.TableName
	config TableConfig
	alias  string
	// tombstones says that a deleted row leaves a document behind.
	tombstones bool
	wrong      error // why the table can never be written with this configuration

	work     sync.Mutex // one look at the index at a time
	refilled bool       // Refill was told that the index is gone, and none is made yet; guarded by work
	altered  bool       // changes of other columns came, and the index was not seen to take them; guarded by work

	absent bool // Run has seen that its alias is not there, and that nothing is to be done about it

	had     atomic.Bool // an index was seen or made
	foreign atomic.Bool // the log has told of a document that somebody else wrote

	mu       sync.Mutex
	prepared bool
	layouts  map[uint32]bool // of changes, that the index was looked at for since it was prepared
	widened  int             // counts the changes of the mapping
	uuid     string          // of the index, when it is known to be the table's
	trouble  *Trouble
}

// mostLayouts bounds what is remembered of changes from before and behind an ALTER TABLE.
const mostLayouts = 100

// Trouble is why the index of a table takes nothing.
type Trouble struct {
	Table        cdc.TableName
	Reason, Mend string
	Since        time.Time
}

// Troubles lists the tables whose index takes nothing, as far as that was seen: by a
// change, or by a look that Run takes.
func (s *Sink) Troubles() (all []Trouble) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tables {
		if t == nil {
			continue
		}
		t.mu.Lock()
		if t.trouble != nil {
			all = append(all, *t.trouble)
		}
		t.mu.Unlock()
	}
	return all
}

func (t *table) generation() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.widened
}

// forget makes the next change look at the index again.
func (t *table) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.prepared, t.layouts = false, nil
}

// knows reports whether the index was prepared and looked at for such changes.
func (t *table) knows(layout uint32) (prepared, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.prepared, t.prepared && (layout == 0 || t.layouts[layout])
}

// is notes which index is the table's.
func (t *table) is(uuid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.uuid = uuid
}

// has reports whether that index is the table's.
func (t *table) has(uuid string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.uuid == uuid
}

// learn notes that the index takes changes of a layout.
func (t *table) learn(layout uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.prepared = true; t.layouts == nil || len(t.layouts) >= mostLayouts {
		t.layouts = make(map[uint32]bool)
	}
	t.layouts[layout] = true
}

// table finds the state of a table, or nil when it is not for this sink.
func (s *Sink) table(name cdc.TableName) *table {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tables[name]; ok {
		return t
	}
	config, ok := s.lookup(name)
	if !ok {
		s.tables[name] = nil
		return nil
	}
	t := &table{name: name, config: config, tombstones: cmp.Or(config.Deletes, s.config.Deletes) == Tombstone}
	if t.alias, t.wrong = config.Alias(name); t.wrong == nil {
		for _, other := range s.tables {
			if other != nil && other.alias == t.alias {
				t.wrong = fmt.Errorf("table %s and table %s both go to the index %s, where equal primary keys would overwrite each other; give each its own", name, other.name, t.alias)
			}
		}
	}
	s.tables[name] = t
	return t
}

// Alias is the name under which the rows of a table are searched.
func (c TableConfig) Alias(name cdc.TableName) (string, error) {
	alias, err := aliasOf(c.Index, name.DB, name.Table)
	if err != nil {
		return "", fmt.Errorf("index of %s: %w", name, err)
	}
	return alias, nil
}

// ready makes sure that the table's index can take documents made of changes of a layout.
// It returns nil, or what to answer to every change of the table.
func (s *Sink) ready(ctx context.Context, t *table, layout uint32) *sinks.Outcome {
	t.work.Lock()
	defer t.work.Unlock()
	prepared, known := t.knows(layout)
	if known {
		return nil
	}
	t.altered = t.altered || prepared // else it was not looked at yet
	err := t.wrong
	if err == nil {
		err = s.prepare(ctx, t)
	}
	s.say(ctx, t, err)
	if err == nil {
		t.altered = false
		t.learn(layout)
		return nil
	}
	t.forget()
	if errors.Is(err, cdc.ErrNoTable) {
		// The barrier of its DROP stands behind the change and makes it void.
		return &sinks.Outcome{Verdict: sinks.Transient, Class: sinks.ClassNoTable, Reason: err.Error()}
	}
	return unready(err)
}

// say notes the trouble with a table's index, and puts it into the log, once while it
// lasts. That the cluster does not answer is no table's trouble, and of a table that is
// gone its barrier tells.
func (s *Sink) say(ctx context.Context, t *table, err error) {
	switch {
	case ctx.Err() != nil || ofCluster(err):
		return
	case errors.Is(err, cdc.ErrNoTable):
		err = nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.trouble = nil
		return
	}
	now := Trouble{Table: t.name, Since: time.Now()}
	now.Reason, now.Mend = sinks.Advice(err.Error())
	if was := t.trouble; was != nil {
		if now.Since = was.Since; now == *was {
			return
		}
	}
	t.trouble = &now
	s.log.Error("index is not ready", "table", t.name.String(), "index", t.alias, "error", err)
}

// prepare creates the index behind the alias, or adds the columns that it lacks.
func (s *Sink) prepare(ctx context.Context, t *table) error {
	index, err := s.look(ctx, t)
	if err != nil {
		return err
	}
	if index != nil {
		t.refilled = false // somebody else has made it
		if err := s.examine(ctx, t, index); err != nil {
			return err
		}
		if err := s.adopt(ctx, t, index); err != nil {
			return err
		}
		t.had.Store(true)
		if err := s.hide(ctx, t, index); err != nil {
			return err
		}
	}
	shape, describeErr := s.describe(ctx, t.name)
	if describeErr == nil {
		if err := t.config.CheckTable(shape); err != nil {
			return err
		}
	}
	switch {
	case index == nil && describeErr != nil:
		return fmt.Errorf("make an index for %s: %w", t.name, describeErr)
	case index == nil:
		return s.create(ctx, t, shape)
	case describeErr != nil && t.altered && !errors.Is(describeErr, cdc.ErrNoTable):
		return fmt.Errorf("look at %s, which was altered: %w", t.name, describeErr)
	case describeErr != nil:
		// The stream carries on without the source, whose rows mostly fit.
		if ctx.Err() == nil {
			s.log.Warn("mapping not compared with the table", "table", t.name.String(), "index", t.alias, "error", describeErr)
		}
		return nil
	}
	if err := s.refit(ctx, t, index, shape); err != nil {
		return err
	}
	_, err = s.add(ctx, t, index, shape)
	return err
}

// fits refuses an index whose fields are not of the types that the table needs.
func (s *Sink) fits(t *table, index *index, shape cdc.Table) error {
	if routed := index.made().Routing; routed != t.config.Routing || index.Mappings.Routing.Required != (routed != "") {
		return fmt.Errorf("the documents of index %s are routed by %s, and those of %s are to be routed by %s; run: lockstep rebuild %s --table %s, or put tables[].elastic.routing back as it was",
			index.name, cmp.Or(routed, "_id"), t.name, cmp.Or(t.config.Routing, "_id"), s.name, t.name)
	}
	if found := misfits(index.Mappings.Properties, shape, t.config.Mapping); len(found) > 0 {
		return &outgrown{index: index.name, sink: s.name, table: t.name, misfits: found}
	}
	return nil
}

// refit gives the fields that are configured anew their mapping, and refuses what
// Elasticsearch cannot change.
func (s *Sink) refit(ctx context.Context, t *table, index *index, shape cdc.Table) error {
	if err := s.fits(t, index, shape); err != nil {
		return err
	}
	fields := refitted(index.Mappings.Properties, shape, t.config.Mapping)
	if len(fields) == 0 {
		return nil
	}
	res, err := s.put(ctx, func(body []byte) esapi.Request {
		return esapi.IndicesPutMappingRequest{Index: []string{index.name}, Body: bytes.NewReader(body)}
	}, map[string]any{"properties": fields})
	switch {
	case err == nil:
		return nil
	case res.status == http.StatusBadRequest:
		return fmt.Errorf("the index %s cannot take the mapping that is configured for %s (%s); run: lockstep rebuild %s --table %s, or put tables[].elastic.mapping back as it was",
			index.name, t.name, res.reason, s.name, t.name)
	}
	return fmt.Errorf("change the mapping of %s: %w", index.name, err)
}

// extend adds the columns that the table got since the given generation of the
// mapping, and reports whether the mapping is wider now. Its error says so when a
// field does not fit its column any more.
func (s *Sink) extend(ctx context.Context, t *table, generation int) (bool, error) {
	t.work.Lock()
	defer t.work.Unlock()
	if t.generation() != generation {
		return true, nil
	}
	shape, err := s.describe(ctx, t.name)
	if err != nil {
		return false, err
	}
	index, err := s.look(ctx, t)
	if err != nil {
		return false, err
	}
	if index == nil {
		return false, fmt.Errorf("the alias %s has vanished", t.alias)
	}
	if err := s.refit(ctx, t, index, shape); err != nil {
		t.altered = true
		return false, err
	}
	return s.add(ctx, t, index, shape)
}

// index is the part of an index that matters here.
type index struct {
	name    string
	Aliases map[string]struct {
		Filter       json.RawMessage `json:"filter"`
		Routing      string          `json:"index_routing"`
		IsWriteIndex *bool           `json:"is_write_index"`
	} `json:"aliases"`
	Mappings struct {
		Routing struct {
			Required bool `json:"required"`
		} `json:"_routing"`
		Meta       map[string]json.RawMessage `json:"_meta"`
		Properties map[string]json.RawMessage `json:"properties"`
	} `json:"mappings"`
	Settings struct {
		Index struct {
			UUID            string `json:"uuid"`
			DefaultPipeline string `json:"default_pipeline"`
			FinalPipeline   string `json:"final_pipeline"`
			Closed          string `json:"verified_before_close"`
			Blocks          struct {
				Write               string `json:"write"`
				ReadOnly            string `json:"read_only"`
				ReadOnlyAllowDelete string `json:"read_only_allow_delete"`
			} `json:"blocks"`
		} `json:"index"`
	} `json:"settings"`
	DataStream string `json:"data_stream"`
}

// made is what Lockstep has noted in the mapping of an index.
type made struct {
	Routing string `json:"routing,omitempty"` // the column that its documents are routed by
	UUID    string `json:"uuid,omitempty"`    // its own: see adopt
}

func (i *index) made() (m made) {
	_ = json.Unmarshal(i.Mappings.Meta[madeField], &m) // what is none of ours says nothing
	return m
}

// adopt looks whether an index is the one that was the table's. That has its own uuid in
// its mapping, which Lockstep has written there when it was new. One that somebody has
// deleted and made again, brought back from a backup or put in its place has none there or
// another one's: it may lack any row, so Refill is told before it becomes the table's. The
// caller holds t.work.
func (s *Sink) adopt(ctx context.Context, t *table, index *index) error {
	uuid := index.Settings.Index.UUID
	if index.made().UUID != uuid {
		if s.Refill != nil {
			if _, err := s.Refill(ctx, t.name, t.had.Load()); err != nil {
				return fmt.Errorf("take the index %s for that of %s: %w", index.name, t.name, err)
			}
		}
		if err := s.sign(ctx, index); err != nil {
			return err
		}
		t.forget() // its mapping is another, too
	}
	t.is(uuid)
	return nil
}

// sign writes the uuid of an index into its mapping.
func (s *Sink) sign(ctx context.Context, index *index) error {
	m := index.made()
	m.UUID = index.Settings.Index.UUID
	meta := maps.Clone(index.Mappings.Meta)
	if meta == nil {
		meta = make(map[string]json.RawMessage)
	}
	meta[madeField], _ = json.Marshal(m)
	if _, err := s.put(ctx, func(body []byte) esapi.Request {
		return esapi.IndicesPutMappingRequest{Index: []string{index.name}, Body: bytes.NewReader(body)}
	}, map[string]any{"_meta": meta}); err != nil {
		return fmt.Errorf("write the uuid of %s into its mapping: %w", index.name, err)
	}
	index.Mappings.Meta = meta
	return nil
}

// knowsTombstones reports whether the mapping has the fields of a tombstone.
func (i *index) knowsTombstones() bool {
	return gjson.GetBytes(i.Mappings.Properties[guardField], "properties.deleted").Exists()
}

// pipelines are the ingest pipelines that every document of the index goes through.
func (i *index) pipelines() []string {
	return slices.DeleteFunc([]string{i.Settings.Index.DefaultPipeline, i.Settings.Index.FinalPipeline},
		func(p string) bool { return p == "" || p == "_none" })
}

// filtered reports whether the alias hides tombstones.
func (i *index) filtered(alias string) bool {
	var is any
	if json.Unmarshal(i.Aliases[alias].Filter, &is) != nil {
		return false
	}
	was, err := json.Marshal(is)
	wanted, _ := json.Marshal(filter)
	return err == nil && bytes.Equal(was, wanted)
}

// look finds the index behind the alias; nil when there is none. It refuses what
// cannot hold rows under a version guard.
func (s *Sink) look(ctx context.Context, t *table) (*index, error) {
	res, err := s.do(ctx, esapi.IndicesGetRequest{Index: []string{t.alias}})
	if err != nil {
		return nil, fmt.Errorf("look at index %s: %w", t.alias, err)
	}
	if res.status == http.StatusNotFound {
		return nil, s.orphan(ctx, t)
	}
	if res.status != http.StatusOK {
		return nil, fmt.Errorf("look at index %s: %w", t.alias, res.answer)
	}
	var found map[string]*index
	if err := json.Unmarshal(res.body, &found); err != nil {
		return nil, fmt.Errorf("look at index %s: %w", t.alias, err)
	}
	names := slices.Sorted(maps.Keys(found))
	for _, name := range names {
		if found[name].DataStream != "" {
			return nil, fmt.Errorf("%s is a data stream, which takes no versions; give the table another name in tables[].elastic.index, or delete it", t.alias)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("the alias %s covers %d indices (%s), but a version guards only inside one; let it point to one", t.alias, len(found), strings.Join(names, ", "))
	}
	one := found[names[0]]
	one.name = names[0]
	alias, isAlias := one.Aliases[t.alias]
	switch {
	case !isAlias:
		return nil, fmt.Errorf("%s is an index, not an alias; rename or delete it, and an index %s-000001 behind an alias will be made", t.alias, t.alias)
	case alias.IsWriteIndex != nil && !*alias.IsWriteIndex:
		return nil, fmt.Errorf("the alias %s forbids writing to its only index %s; set is_write_index", t.alias, one.name)
	case alias.Routing != "":
		return nil, fmt.Errorf("the alias %s has a routing of its own, so that a document would not be found by its id alone; remove it", t.alias)
	}
	return one, nil
}

// orphan refuses a table whose alias is gone while its index is there: nobody but a
// human knows which of the two was meant to go.
func (s *Sink) orphan(ctx context.Context, t *table) error {
	all, err := s.generations(ctx, t)
	if err != nil {
		return err
	}
	maps.DeleteFunc(all, func(_ string, i *index) bool { return i.unfinished(t.alias) })
	if len(all) == 0 {
		return nil
	}
	newest := slices.Max(slices.Collect(maps.Keys(all)))
	return fmt.Errorf("the index %s is there and its alias %s is not; put it back with POST /_aliases {\"actions\":[{\"add\":{\"index\":%q,\"alias\":%q,\"is_write_index\":true}}]}, or delete %s, and the table is copied again",
		newest, t.alias, newest, t.alias, strings.Join(slices.Sorted(maps.Keys(all)), " and "))
}

// examine refuses an index that takes no rows, or has rows that nobody known has
// written, and warns of what may change them.
func (s *Sink) examine(ctx context.Context, t *table, index *index) error {
	blocks := index.Settings.Index.Blocks
	switch {
	case index.Settings.Index.Closed == "true":
		return fmt.Errorf("the index %s is closed; open it: POST /%s/_open", index.name, index.name)
	case blocks.ReadOnly == "true" || blocks.ReadOnlyAllowDelete == "true":
		return fmt.Errorf("the index %s is read-only, as an index becomes when the disk is full; make room, then PUT /%s/_settings {\"index.blocks.read_only\": null, \"index.blocks.read_only_allow_delete\": null}", index.name, index.name)
	case blocks.Write == "true":
		return fmt.Errorf("the index %s takes no writes (index.blocks.write), as at the end of a rebuild; if none is running, run lockstep rebuild %s --table %s once more, or set it to null", index.name, s.name, t.name)
	}
	for _, p := range index.pipelines() {
		res, err := s.do(ctx, esapi.IngestGetPipelineRequest{PipelineID: p})
		switch {
		case err != nil:
			return err
		case res.status == http.StatusNotFound:
			return fmt.Errorf("the index %s sends its documents through an ingest pipeline %s, which is not there, so that it would refuse every row; make the pipeline, or set index.default_pipeline and index.final_pipeline to _none", index.name, p)
		case res.status != http.StatusOK:
			return fmt.Errorf("look at the ingest pipeline %s of index %s: %w", p, index.name, res.answer)
		}
		s.log.Warn("an ingest pipeline may change or drop what is written, and then the index is not what the table says", "table", t.name.String(), "index", index.name, "pipeline", p)
	}
	if _, ok := index.Mappings.Properties[guardField]; !ok {
		n, err := s.count(ctx, index.name, nil)
		if err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("the index %s has %d documents and no field %s, so Lockstep did not write them; give the table another name in tables[].elastic.index, or delete the index", index.name, n, guardField)
		}
	}
	return nil
}

// Refresh makes everything that is written of tables visible to searches. A table without
// an index has nothing to be seen.
func (s *Sink) Refresh(ctx context.Context, tables []cdc.TableName) error {
	var aliases []string
	for _, t := range tables {
		config, ok := s.lookup(t)
		if !ok {
			continue
		}
		alias, err := config.Alias(t)
		if err != nil {
			return err
		}
		aliases = append(aliases, alias)
	}
	if len(aliases) == 0 {
		return nil
	}
	absent := true
	res, err := s.do(ctx, esapi.IndicesRefreshRequest{Index: aliases, IgnoreUnavailable: &absent})
	if err := s.good(res, err, "refresh "+strings.Join(aliases, ",")); err != nil {
		return err
	}
	if n := gjson.GetBytes(res.body, "_shards.failed").Int(); n > 0 {
		return fmt.Errorf("refresh %s: %d shards did not do it", strings.Join(aliases, ","), n)
	}
	return nil
}

// count is the number of documents of an index that match a query, of all when it
// is nil.
func (s *Sink) count(ctx context.Context, index string, query any) (int64, error) {
	res, err := s.do(ctx, esapi.IndicesRefreshRequest{Index: []string{index}})
	if err := s.good(res, err, "refresh "+index); err != nil {
		return 0, err
	}
	req := esapi.CountRequest{Index: []string{index}}
	if query != nil {
		body, err := json.Marshal(map[string]any{"query": query})
		if err != nil {
			return 0, err
		}
		req.Body = bytes.NewReader(body)
	}
	res, err = s.do(ctx, req)
	return gjson.GetBytes(res.body, "count").Int(), s.good(res, err, "count the documents of "+index)
}

// hide gives the alias of a table with tombstones the filter that hides them. It
// stays when the table goes back to hard deletes, as old tombstones do.
func (s *Sink) hide(ctx context.Context, t *table, index *index) error {
	if !t.tombstones || index.filtered(t.alias) {
		return nil
	}
	if own := index.Aliases[t.alias].Filter; own != nil {
		return fmt.Errorf("the alias %s has a filter of its own (%s), where deletes: tombstone needs one; put yours on an alias of another name", t.alias, own)
	}
	_, err := s.add(ctx, t, index, cdc.Table{}) // the filter's field comes first
	if err != nil {
		return err
	}
	action := aliasBody(true)
	action["index"], action["alias"] = index.name, t.alias
	if _, err := s.put(ctx, func(body []byte) esapi.Request {
		return esapi.IndicesUpdateAliasesRequest{Body: bytes.NewReader(body)}
	}, map[string]any{"actions": []any{map[string]any{"add": action}}}); err != nil {
		return fmt.Errorf("hide tombstones from the alias %s: %w", t.alias, err)
	}
	s.log.Info("the alias hides tombstones from now on", "table", t.name.String(), "alias", t.alias)
	return nil
}

// add puts the mapping of the columns that the index lacks.
func (s *Sink) add(ctx context.Context, t *table, index *index, shape cdc.Table) (bool, error) {
	if err := CheckTable(shape); err != nil {
		return false, err
	}
	var names []string
	missing := func(unsignedLong bool) map[string]any {
		fields := t.missing(index, shape, unsignedLong)
		names = slices.Sorted(maps.Keys(fields))
		return map[string]any{"properties": fields}
	}
	if missing(true); len(names) == 0 {
		return false, nil
	}
	_, err := s.twice(ctx, missing, func(body []byte) esapi.Request {
		return esapi.IndicesPutMappingRequest{Index: []string{index.name}, Body: bytes.NewReader(body)}
	})
	if err != nil {
		return false, fmt.Errorf("add %s to the mapping of %s: %w", strings.Join(names, ", "), index.name, err)
	}
	t.mu.Lock()
	t.widened++
	t.mu.Unlock()
	if index.Mappings.Properties == nil {
		index.Mappings.Properties = make(map[string]json.RawMessage)
	}
	for _, name := range names {
		index.Mappings.Properties[name], _ = json.Marshal(properties(shape, t.config.Mapping, true)[name])
	}
	s.metrics.mappings.Inc()
	s.log.Info("columns added to the mapping", "table", t.name.String(), "index", index.name, "columns", names)
	return true, nil
}

// missing are the fields of a table that the mapping of its index lacks.
func (t *table) missing(index *index, shape cdc.Table, unsignedLong bool) map[string]any {
	fields := properties(shape, t.config.Mapping, unsignedLong)
	maps.DeleteFunc(fields, func(name string, _ any) bool {
		_, ok := index.Mappings.Properties[name]
		return ok && (name != guardField || index.knowsTombstones())
	})
	return fields
}

// create makes the index and its alias in one step.
func (s *Sink) create(ctx context.Context, t *table, shape cdc.Table) error {
	if _, err := s.refill(ctx, t); err != nil { // before it is there: whoever fails here comes again
		return fmt.Errorf("make an index for %s: %w", t.name, err)
	}
	name := t.alias + "-000001"
	res, err := s.twice(ctx, func(unsignedLong bool) map[string]any {
		return indexBody(t, shape, s.config, unsignedLong)
	}, func(body []byte) esapi.Request {
		return esapi.IndicesCreateRequest{Index: name, Body: bytes.NewReader(body)}
	})
	if err == nil {
		s.metrics.mappings.Inc()
		s.log.Info("index created", "table", t.name.String(), "index", name, "alias", t.alias)
		index, err := s.look(ctx, t)
		if err == nil && index != nil {
			err = s.sign(ctx, index)
		}
		if err != nil || index == nil { // it is looked at again
			return cmp.Or(err, fmt.Errorf("the index %s is gone again", name))
		}
		t.refilled = false // should it go again
		t.is(index.Settings.Index.UUID)
		t.had.Store(true)
		return nil
	}
	if res.kind == "resource_already_exists_exception" {
		if index, err := s.look(ctx, t); err != nil || index != nil { // another worker was faster
			t.refilled = t.refilled && err != nil
			return err
		}
	}
	return fmt.Errorf("create index %s: %w", name, err)
}

// twice sends a mapping, and once more without the type unsigned_long when the
// server refuses it: its smallest builds do not have that type.
func (s *Sink) twice(ctx context.Context, body func(unsignedLong bool) map[string]any, request func([]byte) esapi.Request) (response, error) {
	res, err := s.put(ctx, request, body(true))
	if err == nil || res.kind != "mapper_parsing_exception" {
		return res, err
	}
	return s.put(ctx, request, body(false))
}

func (s *Sink) put(ctx context.Context, request func([]byte) esapi.Request, body map[string]any) (response, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return response{}, err
	}
	res, err := s.do(ctx, request(text))
	if err == nil && res.status != http.StatusOK {
		err = res.answer
	}
	return res, err
}

// survey looks at a table's index and changes nothing; nil when there is none yet.
func (s *Sink) survey(ctx context.Context, t *table) (*index, error) {
	if t.wrong != nil {
		return nil, t.wrong
	}
	index, err := s.look(ctx, t)
	if err != nil || index == nil {
		return nil, err
	}
	if err := s.examine(ctx, t, index); err != nil {
		return index, err
	}
	shape, err := s.describe(ctx, t.name)
	if err != nil {
		return index, nil // whoever reads the source says so
	}
	return index, s.fits(t, index, shape)
}
