package oracle

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// kind says how a column's value is written in JSON.
type kind int

const (
	exactNumber kind = iota // digits, compared as text
	float32Number
	float64Number
	text
	labels // a set: array of texts
	dateTime
	timestamp
	binary
	jsonValue
)

// field is a column's value in MySQL.
type field struct {
	name string
	kind kind
	null bool
	// text is the value as plain text: digits, the text itself, base64, JSON.
	text string
}

// newField turns what MySQL printed into what the stores should hold.
func newField(name string, k kind, raw []byte) field {
	if raw == nil {
		return field{name: name, kind: k, null: true}
	}
	f := field{name: name, kind: k, text: string(raw)}
	switch k {
	case dateTime:
		f.text = strings.Replace(f.text, " ", "T", 1)
	case timestamp:
		f.text = strings.Replace(f.text, " ", "T", 1) + "Z"
	case binary:
		f.text = base64.StdEncoding.EncodeToString(raw)
	case labels:
		members := []string{}
		if len(raw) > 0 {
			members = strings.Split(string(raw), ",")
		}
		f.text = jsonText(members)
	case jsonValue:
		// A document cannot tell JSON's null from no value.
		f.null = f.text == "null"
	}
	return f
}

// String shows the value as JSON.
func (f field) String() string {
	switch {
	case f.null:
		return "null"
	case f.kind == text || f.kind == dateTime || f.kind == timestamp || f.kind == binary:
		return jsonText(f.text)
	}
	return f.text
}

// equal compares with a value decoded from JSON, numbers as json.Number.
func (f field) equal(got any) bool {
	if f.null || got == nil {
		return f.null && got == nil
	}
	switch f.kind {
	case exactNumber:
		n, ok := got.(json.Number)
		return ok && n.String() == f.text
	case float32Number, float64Number:
		n, ok := got.(json.Number)
		return ok && f.sameFloat(n.String())
	case labels, jsonValue:
		var want any
		return decodeJSON([]byte(f.text), &want) == nil && sameJSON(want, got)
	}
	s, ok := got.(string)
	return ok && s == f.text
}

// equalText compares with a value written as plain text.
func (f field) equalText(got string) bool {
	if f.null {
		return false
	}
	switch f.kind {
	case float32Number, float64Number:
		return f.sameFloat(got)
	case jsonValue:
		// A JSON text stands in a hash like any text, without its quotes.
		var want any
		if decodeJSON([]byte(f.text), &want) == nil {
			if s, ok := want.(string); ok {
				return got == s
			}
		}
		fallthrough
	case labels:
		var v any
		return decodeJSON([]byte(got), &v) == nil && f.equal(v)
	}
	return got == f.text
}

// sameJSON compares two decoded values. Two numbers are the same when both or
// neither are written as integers and they have the same value to the last digit:
// 1e-7 is 0.0000001, but 1.0 is not 1.
func sameJSON(want, got any) bool {
	switch want := want.(type) {
	case json.Number:
		got, ok := got.(json.Number)
		if !ok || want == got {
			return ok
		}
		a, okA := new(big.Rat).SetString(want.String())
		b, okB := new(big.Rat).SetString(got.String())
		return okA && okB && isInteger(want) == isInteger(got) && a.Cmp(b) == 0
	case []any:
		got, ok := got.([]any)
		return ok && slices.EqualFunc(want, got, sameJSON)
	case map[string]any:
		got, ok := got.(map[string]any)
		return ok && maps.EqualFunc(want, got, sameJSON)
	}
	return want == got
}

func isInteger(n json.Number) bool { return !strings.ContainsAny(n.String(), ".eE") }

func (f field) sameFloat(got string) bool {
	bits := 64
	if f.kind == float32Number {
		bits = 32
	}
	a, errA := strconv.ParseFloat(f.text, bits)
	b, errB := strconv.ParseFloat(got, bits)
	return errA == nil && errB == nil && a == b
}

// decodeJSON decodes one JSON value and keeps the digits of its numbers.
func decodeJSON(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the value")
	}
	return nil
}

func jsonText(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// template is a Redis key template, split at its placeholders.
type template struct {
	parts []string // literal text; one more than names
	names []string // columns, or "pk"
}

func parseTemplate(s, database, table string) (template, error) {
	var t template
	var literal strings.Builder
	for rest := s; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "{{"), strings.HasPrefix(rest, "}}"):
			literal.WriteByte(rest[0])
			rest = rest[2:]
		case rest[0] == '{':
			name, after, ok := strings.Cut(rest[1:], "}")
			if !ok {
				return t, fmt.Errorf("redis key %q: a brace is not closed", s)
			}
			switch name {
			case "db":
				literal.WriteString(database)
			case "table":
				literal.WriteString(table)
			default:
				t.parts, t.names = append(t.parts, literal.String()), append(t.names, name)
				literal.Reset()
			}
			rest = after
		default:
			literal.WriteByte(rest[0])
			rest = rest[1:]
		}
	}
	if len(t.names) == 0 {
		return t, fmt.Errorf("redis key %q names no column", s)
	}
	t.parts = append(t.parts, literal.String())
	return t, nil
}

// escaped is how a value is written beside others: "a:b","c" is not "a","b:c".
func escaped(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "%", "%25"), ":", "%3A")
}

// render gives the key of a row whose primary key is key.
func (t template) render(key []field) (string, error) {
	var b strings.Builder
	for i, name := range t.names {
		b.WriteString(t.parts[i])
		at := slices.IndexFunc(key, func(f field) bool { return f.name == name })
		switch {
		case name == "pk":
			b.WriteString(joinKey(key))
		case at < 0:
			return "", fmt.Errorf("%s is not a column of the primary key", name)
		case len(t.names) == 1:
			b.WriteString(key[at].text)
		default:
			b.WriteString(escaped(key[at].text))
		}
	}
	b.WriteString(t.parts[len(t.parts)-1])
	return b.String(), nil
}

// pattern matches every key that render can give.
func (t template) pattern() string {
	quoted := make([]string, len(t.parts))
	for i, p := range t.parts {
		quoted[i] = strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`, "^", `\^`).Replace(p)
	}
	return strings.Join(quoted, "*")
}

// joinKey is the id of a row: the value of its key, or the values joined.
func joinKey(key []field) string {
	if len(key) == 1 {
		return key[0].text
	}
	parts := make([]string, len(key))
	for i, f := range key {
		parts[i] = escaped(f.text)
	}
	return strings.Join(parts, ":")
}
