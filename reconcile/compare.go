package reconcile

import (
	"encoding/json"
	"strings"

	"lockstep/cdc"
	"lockstep/sinks"
)

// Class is the kind of a confirmed mismatch: a closed set, fit for a metric label.
type Class string

const (
	// Missing: the row is there and its document is not.
	Missing Class = "missing"
	// Stale: the document is that of an older version than the log has of the row.
	Stale Class = "stale"
	// Differing: the document has another content than the row, and no older version.
	Differing Class = "differing"
	// Orphan: the document is there and no row is.
	Orphan Class = "orphan"
	// Tampered: somebody else has written the document.
	Tampered Class = "tampered"
)

// Classes lists every Class.
var Classes = []Class{Missing, Stale, Differing, Orphan, Tampered}

// relation is how what a store has stands to what it is to have.
type relation int

const (
	equal relation = iota
	differs
	unknown // the store, or the shape, did not tell
)

// relate compares what is expected of a row with what the store has in its place.
func relate(want sinks.Expected, has sinks.Stored) relation {
	there := has.Document != nil || has.Omitted
	switch {
	case want.Problem != "", has.Problem != "" && !has.Foreign, has.Omitted && want.Document != nil:
		return unknown
	case has.Problem != "": // somebody else's, of another type
		return differs
	case want.Document == nil && !there:
		return equal
	case want.Document == nil || !there:
		return differs
	case has.Version == 0: // without one the guard protects it no more
		return differs
	case sinks.Same(want.Document, has.Document):
		return equal
	}
	return differs
}

// classify says what kind of mismatch a difference is. newest is the highest version that
// was published of any row by then, and logged that of the row which the log still has; 0
// when it has none.
func classify(want sinks.Expected, has sinks.Stored, newest, logged cdc.Version) Class {
	switch {
	case want.Document == nil:
		return Orphan
	case has.Document == nil && !has.Omitted && has.Problem == "":
		return Missing
	case has.Foreign, has.Version == 0, newest > 0 && has.Version > newest, logged > 0 && has.Version > logged:
		return Tampered
	case has.Version < logged:
		return Stale
	}
	return Differing
}

// Finding is one confirmed mismatch.
type Finding struct {
	Table string `json:"table"`
	Sink  string `json:"sink"`
	Class Class  `json:"class"`
	// Key of the row; missing where no row can be.
	Key json.RawMessage `json:"key,omitempty"`
	// Place is where the store has it, or should.
	Place map[string]string `json:"place,omitempty"`
	// Version is the one that the store has, 0 for none, and Logged the newest that the log
	// has of the row, where that was looked for.
	Version cdc.Version `json:"version,omitempty"`
	Logged  cdc.Version `json:"logged,omitempty"`
	// Letter is the ID of the open dead letter of the row: why it differs is known.
	Letter string `json:"letter,omitempty"`
	// Fields are those that differ.
	Fields []FieldDiff `json:"fields,omitempty"`
	// Reason says more, where nothing can be shown field by field.
	Reason string `json:"reason,omitempty"`
	// Repair is what came of its repair: repaired, remains, or empty when nobody tried.
	Repair string `json:"repair,omitempty"`

	found *sinks.Found
	of    *stretch
}

// FieldDiff is a field of a document on both sides; a side that does not have it is missing.
type FieldDiff struct {
	Name   string          `json:"field"`
	Source json.RawMessage `json:"source,omitempty"`
	Sink   json.RawMessage `json:"sink,omitempty"`
}

const (
	// shownFields and shownBytes bound what a Finding shows of a document.
	shownFields = 50
	shownBytes  = 2000
)

// hidden stands for what a store may have from before its column was masked.
var hidden = json.RawMessage(`"(masked)"`)

// fieldsOf tells in which fields two documents differ. Of a table with masks the store's
// value is shown only of columns of the row that have none: row tells which these are.
func fieldsOf(want, has, row []byte, masked map[string]bool) (diffs []FieldDiff) {
	if want == nil || has == nil {
		return nil
	}
	seen := map[string]bool{}
	for _, document := range [][]byte{want, has} {
		sinks.EachField(document, func(name string) {
			if seen[name] || len(diffs) == shownFields {
				return
			}
			seen[name] = true
			d := FieldDiff{name, sinks.Field(want, name), sinks.Field(has, name)}
			if d.Source != nil && d.Sink != nil && sinks.Same(d.Source, d.Sink) {
				return
			}
			if len(masked) > 0 && d.Sink != nil && (masked[strings.ToLower(name)] || sinks.Field(row, name) == nil) {
				d.Sink = hidden
			}
			d.Source, d.Sink = short(d.Source), short(d.Sink)
			diffs = append(diffs, d)
		})
	}
	return diffs
}

// short is a value that may be shown: a large one as the beginning of its text.
func short(value json.RawMessage) json.RawMessage {
	if len(value) <= shownBytes {
		return append(json.RawMessage(nil), value...)
	}
	return cdc.AppendString(nil, strings.ToValidUTF8(string(value[:shownBytes]), "")+"...")
}
