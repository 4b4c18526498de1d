package elastic

import (
	"context"
	"fmt"
	"slices"

	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/sinks"
)

// A document of a table with a routing column lives in the shard that the column's
// value names, and a version guards only inside one shard. So a row whose value
// changes is written under the new routing and deleted under every other that it is
// known to have had. That delete has the version just below the change's own: it
// outranks whatever the row was before, and never stands in the way of the change
// itself when both routings mean the same shard.

// Moves reports whether a row of the table may change its place without changing
// its key.
func (s *Sink) Moves(name cdc.TableName) bool {
	t := s.table(name)
	return t != nil && t.config.Routing != ""
}

// route is the routing of a row as an image has it; false when the image does not
// tell, or the row has none.
func (c TableConfig) route(image []byte) (string, bool) {
	value := gjson.GetBytes(image, gjson.Escape(c.Routing))
	if !value.Exists() {
		return "", false
	}
	text := value.String()
	if value.Type == gjson.Null || text == "" { // Elasticsearch takes an empty routing for none
		text = c.RoutingOfNull
	}
	return text, text != ""
}

// place is where a change goes: the routing of its document, and the others that it
// is to be deleted under. asked says that the change does not tell where the row
// was, and that the index has to be asked. no is the outcome of one of which nothing
// else is to be written.
type place struct {
	table   *table
	routing string
	left    []string
	asked   bool
	no      *sinks.Outcome
}

// place reads a change.
func (c TableConfig) place(change *cdc.Change) (p place) {
	if c.Routing == "" {
		return p
	}
	fixed := gjson.GetBytes(change.Key, gjson.Escape(c.Routing)).Exists()
	now := change.After
	switch {
	case fixed:
		now = change.Key
	case change.Op == cdc.OpDelete:
		now = change.Before
	}
	var ok bool
	p.routing, ok = c.route(now)
	switch {
	case change.Leaves:
		p.no = &sinks.Outcome{Verdict: sinks.Filtered}
	case !ok && (fixed || change.Op != cdc.OpDelete):
		p.no = &sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassKey,
			Reason: fmt.Sprintf("the routing column %s is NULL or empty; set tables[].elastic.routing_of_null", c.Routing)}
	}
	if fixed {
		return p
	}
	for _, image := range append([][]byte{change.Before}, change.Left...) {
		if old, ok := c.route(image); ok && old != p.routing && !slices.Contains(p.left, old) {
			p.left = append(p.left, old)
		}
	}
	p.asked = change.Op == cdc.OpDelete && !ok || change.Op != cdc.OpCreate && change.Op != cdc.OpDelete && change.Before == nil
	return p
}

// find completes places with those that the index has documents under.
func (s *Sink) find(ctx context.Context, t *table, places map[string]*place) error {
	ids := make([]string, 0, len(places))
	for id := range places {
		ids = append(ids, id)
	}
	return s.pages(ctx, t.alias, map[string]any{"ids": map[string]any{"values": ids}}, false, func(page []gjson.Result) error {
		for _, hit := range page {
			p := places[hit.Get("_id").Str]
			routing := hit.Get("_routing").Str
			switch {
			case p == nil || routing == p.routing || slices.Contains(p.left, routing):
			case p.routing == "" && p.no == nil:
				p.routing = routing
			default:
				p.left = append(p.left, routing)
			}
		}
		return nil
	})
}
