package elastic

import (
	"errors"
	"fmt"
	"strings"

	"lockstep/cdc"
)

// guardField is the field of every document that Lockstep keeps for itself: the
// version once more, where a search and a reconciler can see it.
const guardField = "_lockstep"

// madeField is the field of a mapping's _meta that Lockstep keeps for itself.
const madeField = "lockstep"

// metadataFields are names that Elasticsearch keeps for itself.
var metadataFields = map[string]bool{
	"_id": true, "_index": true, "_type": true, "_source": true, "_routing": true, "_version": true,
	"_seq_no": true, "_primary_term": true, "_field_names": true, "_ignored": true, "_ignored_source": true,
	"_doc_count": true, "_nested_path": true, "_tier": true, "_size": true, "_meta": true, "_feature": true,
	"_data_stream_timestamp": true, "_tsid": true, "_ts_routing_hash": true, "_inference_fields": true,
	guardField: true,
}

// CheckTable reports what keeps a table out of Elasticsearch: columns whose names
// cannot be the names of fields.
func CheckTable(t cdc.Table) error {
	var errs []error
	for _, c := range t.Columns {
		switch {
		case strings.TrimSpace(c.Name) == "":
			errs = append(errs, fmt.Errorf("%s has a column whose name is blank, which Elasticsearch cannot hold; rename the column or leave the table out", t.Name))
		case strings.Contains(c.Name, "."):
			errs = append(errs, fmt.Errorf("column %s of %s has a dot in its name, which Elasticsearch reads as a path; rename the column or leave the table out", c.Name, t.Name))
		case metadataFields[c.Name]:
			errs = append(errs, fmt.Errorf("column %s of %s has a name that is reserved in a document; rename the column or leave the table out", c.Name, t.Name))
		}
	}
	return errors.Join(errs...)
}

// aliasOf fills in a template and checks that the result can name an alias.
func aliasOf(template, db, table string) (string, error) {
	name := strings.ToLower(strings.NewReplacer("{db}", db, "{table}", table).Replace(template))
	switch {
	case name == "":
		return "", errors.New("is empty; use for example {db}_{table}")
	case strings.ContainsAny(name, "{}"):
		return "", fmt.Errorf("%q has a placeholder other than {db} and {table}", template)
	case strings.ContainsAny(name, "\\/*?\"<>| ,#:"):
		return "", fmt.Errorf("%q has a character that no index name may have: \\ / * ? \" < > | space , # :", name)
	case strings.ContainsAny(name[:1], "-_+."):
		return "", fmt.Errorf("%q begins with -, _, + or a dot, which no index name may", name)
	case len(name) > 240:
		return "", fmt.Errorf("%q is longer than 240 bytes", name)
	}
	return name, nil
}

// guardMapping is the mapping of the guard's field: the version, and of a tombstone
// that it is one and when it was written.
var guardMapping = map[string]any{"properties": map[string]any{
	"v":       map[string]any{"type": "long"},
	"deleted": map[string]any{"type": "boolean"},
	"at":      map[string]any{"type": "date", "format": "epoch_millis"},
}}

// hidden is the query of tombstones; the filter of the alias is that nothing is one.
var (
	hidden = map[string]any{"term": map[string]any{guardField + ".deleted": true}}
	filter = map[string]any{"bool": map[string]any{"must_not": hidden}}
)

// aliasBody is the alias of a table: the one index behind it takes the writes, and
// where there are tombstones searches do not see them.
func aliasBody(tombstones bool) map[string]any {
	body := map[string]any{"is_write_index": true}
	if tombstones {
		body["filter"] = filter
	}
	return body
}

// properties makes the field mappings of a table. Small builds of Elasticsearch
// lack the type unsigned_long and must do without.
func properties(t cdc.Table, override map[string]any, unsignedLong bool) map[string]any {
	fields := map[string]any{
		guardField: guardMapping,
	}
	for _, c := range t.Columns {
		if m, ok := override[c.Name]; ok {
			fields[c.Name] = m
			continue
		}
		fields[c.Name] = field(c.Kind, unsignedLong)
	}
	return fields
}

// longestTerm is the number of characters that fit the 32,766 bytes of a term
// whatever characters they are.
const longestTerm = 8191

// field is the mapping of a kind. The document keeps every value as it came; the
// mapping decides only what a search finds.
func field(kind cdc.Kind, unsignedLong bool) map[string]any {
	switch kind {
	case cdc.KindInt:
		return map[string]any{"type": "long"}
	case cdc.KindUint:
		if unsignedLong {
			return map[string]any{"type": "unsigned_long"}
		}
		// Equality stays exact; ranges compare as text.
		return map[string]any{"type": "keyword"}
	case cdc.KindFloat:
		return map[string]any{"type": "float"}
	case cdc.KindDouble, cdc.KindDecimal:
		return map[string]any{"type": "double"}
	case cdc.KindText:
		return map[string]any{"type": "text"}
	case cdc.KindDate, cdc.KindDateTime, cdc.KindTimestamp:
		// Searches see milliseconds: date_nanos would see all, but only of the
		// years 1970 to 2262.
		return map[string]any{"type": "date", "format": "strict_date_optional_time"}
	case cdc.KindBool:
		return map[string]any{"type": "boolean"}
	case cdc.KindBytes:
		return map[string]any{"type": "binary"}
	case cdc.KindJSON:
		return map[string]any{"type": "flattened", "ignore_above": longestTerm}
	default: // keyword, set
		return map[string]any{"type": "keyword", "ignore_above": longestTerm}
	}
}

// indexBody is the request that creates the index of a table behind its alias.
func indexBody(t *table, shape cdc.Table, cfg Config, unsignedLong bool) map[string]any {
	shards := cfg.Shards
	if t.config.Shards > 0 {
		shards = t.config.Shards
	}
	mappings := map[string]any{
		"dynamic":    "strict",
		"properties": properties(shape, t.config.Mapping, unsignedLong),
	}
	if t.config.Routing != "" {
		// A write or a GET that forgets the routing is refused and does not miss.
		mappings["_routing"] = map[string]any{"required": true}
		mappings["_meta"] = map[string]any{madeField: made{Routing: t.config.Routing}}
	}
	return map[string]any{
		"aliases": map[string]any{t.alias: aliasBody(t.tombstones)},
		"settings": map[string]any{"index": map[string]any{
			"number_of_shards":   shards,
			"number_of_replicas": cfg.Replicas,
			"refresh_interval":   fmt.Sprintf("%dms", cfg.RefreshInterval.Milliseconds()),
			// How long the version of a deleted document is remembered.
			"gc_deletes": "1h",
			"mapping":    map[string]any{"total_fields": map[string]any{"limit": max(1000, 2*len(shape.Columns)+16)}},
		}},
		"mappings": mappings,
	}
}
