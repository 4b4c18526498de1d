package elastic

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"lockstep/cdc"
)

// misfit is a field of an index that is not of the type which the table would get
// today. Elasticsearch never changes the type of a field.
type misfit struct {
	field, has, needs string
	column            string // with its type, as the source declares it
}

// misfits finds the fields of an index that a table has outgrown, in the order of
// its columns. Fields of columns that the table no longer has are left alone.
func misfits(has map[string]json.RawMessage, shape cdc.Table, override map[string]any) []misfit {
	var found []misfit
	wanted := properties(shape, override, true)
	for _, c := range shape.Columns {
		raw, ok := has[c.Name]
		if !ok {
			continue // will be added
		}
		var field map[string]any
		if err := json.Unmarshal(raw, &field); err != nil {
			continue // Elasticsearch's own words are JSON
		}
		is, needs := typeOf(field), typeOf(wanted[c.Name])
		if is == needs || is == "keyword" && needs == "unsigned_long" { // see twice
			continue
		}
		found = append(found, misfit{field: c.Name, has: is, needs: needs, column: strings.TrimSpace(c.Name + " " + c.SQLType)})
	}
	return found
}

// typeOf is the type of a field's mapping; one that names none has fields inside.
func typeOf(mapping any) string {
	m, _ := mapping.(map[string]any)
	name, _ := m["type"].(string)
	return cmp.Or(name, "object")
}

// refitted are the overrides whose words differ from those of the index: only
// Elasticsearch can tell whether they may still be changed.
func refitted(has map[string]json.RawMessage, shape cdc.Table, override map[string]any) map[string]any {
	fields := map[string]any{}
	for _, c := range shape.Columns {
		m, ok := override[c.Name]
		raw, there := has[c.Name]
		if !ok || !there {
			continue
		}
		var is any
		wanted, err := json.Marshal(m)
		if err == nil && json.Unmarshal(raw, &is) == nil {
			if sorted, err := json.Marshal(is); err == nil && string(sorted) == string(wanted) {
				continue
			}
		}
		fields[c.Name] = m
	}
	return fields
}

// outgrown is the sentence for an index that its table no longer fits.
type outgrown struct {
	index, sink string
	table       cdc.TableName
	misfits     []misfit
}

func (e *outgrown) Error() string {
	var parts []string
	for _, m := range e.misfits {
		parts = append(parts, fmt.Sprintf("field %s is %s and column %s needs %s", m.field, m.has, m.column, m.needs))
	}
	slices.Sort(parts)
	return fmt.Sprintf("the index %s does not fit %s any more: %s; run: lockstep rebuild %s --table %s, or keep the field as it is with tables[].elastic.mapping, or, when it was rebuilt after the configuration had changed, start the sink again",
		e.index, e.table, strings.Join(parts, ", "), e.sink, e.table)
}
