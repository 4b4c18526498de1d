package sinks

import (
	"bytes"
	"encoding/json"

	"github.com/tidwall/gjson"
)

// Same reports whether two values of JSON are the same: numbers by their digits, objects
// whatever the order.
func Same(a, b []byte) bool {
	return bytes.Equal(a, b) || canonical(a) == canonical(b)
}

func canonical(raw []byte) string {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return string(raw)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return string(raw)
	}
	return string(text)
}

// Whole is the name of the one field of a document that is no object.
const Whole = "(value)"

// EachField calls fn with the names of a document's fields, in their order.
func EachField(document []byte, fn func(name string)) {
	switch parsed := gjson.ParseBytes(document); {
	case len(document) == 0:
	case parsed.IsObject():
		parsed.ForEach(func(name, _ gjson.Result) bool { fn(name.Str); return true })
	default:
		fn(Whole)
	}
}

// Field is a field of a document; nil when it has none of that name.
func Field(document []byte, name string) (found json.RawMessage) {
	parsed := gjson.ParseBytes(document)
	if name == Whole && len(document) > 0 && !parsed.IsObject() {
		return document
	}
	parsed.ForEach(func(n, value gjson.Result) bool {
		if n.Str == name {
			found = json.RawMessage(value.Raw)
		}
		return found == nil
	})
	return found
}
