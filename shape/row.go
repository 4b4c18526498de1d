package shape

import (
	"bytes"
	"encoding/json"
	"errors"

	"lockstep/cdc"
)

// column is a column of the table that a shape was compiled for.
type column struct {
	cdc.Column
	head []byte // `"name":` as rows have it
	// as is the field's head in the document; nil when the document does not have it.
	as []byte
}

// span is a part of a row.
type span struct{ from, to int }

// member is a column as it stands in a row.
type member struct {
	column int  // of the table; -1 for one that the shape does not know
	head   span // the name with its colon
	value  span
}

// row is a row taken apart into members, none of them decoded. It is reused.
type row struct {
	table   *Shape
	json    []byte
	members []member
	at      []int  // column -> member, or -1
	fits    bool   // exactly the table's columns in the table's order
	null    bool   // an expression has read a NULL
	misread string // the column that has no value of its type
}

var errNoRow = errors.New("the row is not a JSON object")

// read takes a row apart. The row must be valid JSON.
func (r *row) read(s *Shape, data []byte) error {
	r.table, r.json, r.members, r.misread = s, data, r.members[:0], ""
	if cap(r.at) < len(s.columns) {
		r.at = make([]int, len(s.columns))
	}
	r.at = r.at[:len(s.columns)]
	for i := range r.at {
		r.at[i] = -1
	}
	r.fits = true
	i := skipSpace(data, 0)
	if i >= len(data) || data[i] != '{' {
		return errNoRow
	}
	if i = skipSpace(data, i+1); i < len(data) && data[i] == '}' {
		r.fits = len(s.columns) == 0
		return nil
	}
	for {
		m := member{column: len(r.members)}
		m.head.from = i
		if n := m.column; n < len(s.columns) && bytes.HasPrefix(data[i:], s.columns[n].head) {
			m.head.to = i + len(s.columns[n].head)
		} else if err := r.name(&m); err != nil {
			return err
		}
		m.value.from = skipSpace(data, m.head.to)
		if m.value.to = valueEnd(data, m.value.from); m.value.to <= m.value.from {
			return errNoRow
		}
		if m.column >= 0 {
			r.at[m.column] = len(r.members)
		}
		r.members = append(r.members, m)
		switch i = skipSpace(data, m.value.to); {
		case i >= len(data):
			return errNoRow
		case data[i] == '}':
			r.fits = r.fits && len(r.members) == len(s.columns)
			return nil
		}
		i = skipSpace(data, i+1)
	}
}

// name reads the name of a member that does not stand where the table has it.
func (r *row) name(m *member) error {
	r.fits = false
	from := m.head.from
	if from >= len(r.json) || r.json[from] != '"' {
		return errNoRow
	}
	end := stringEnd(r.json, from)
	name, ok := text(r.json[from:end])
	colon := skipSpace(r.json, end)
	if !ok || colon >= len(r.json) || r.json[colon] != ':' {
		return errNoRow
	}
	m.head.to, m.column = colon+1, -1
	if i, known := r.table.index[name]; known {
		m.column = i
	}
	return nil
}

// nameOf is the name of a member.
func (r *row) nameOf(m *member) string {
	name, _ := text(r.json[m.head.from:stringEnd(r.json, m.head.from)])
	return name
}

// value is what the row has of a column; nil when it does not have the column.
func (r *row) value(column int) []byte {
	if r.at[column] < 0 {
		return nil
	}
	at := r.members[r.at[column]].value
	return r.json[at.from:at.to]
}

// signature names the columns of the row in their order, and the one of another type.
func (r *row) signature() string {
	names := []byte(r.misread)
	for _, m := range r.members {
		names = append(names, r.json[m.head.from:m.head.to]...)
	}
	return string(names)
}

func isNull(value []byte) bool { return len(value) == 4 && value[0] == 'n' }

// text reads a JSON string.
func text(value []byte) (string, bool) {
	if len(value) < 2 || value[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return string(value[1 : len(value)-1]), true
	}
	var s string
	err := json.Unmarshal(value, &s)
	return s, err == nil
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && b[i] <= ' ' {
		i++
	}
	return i
}

// stringEnd is the place behind the string that begins at i.
func stringEnd(b []byte, i int) int {
	for i++; i < len(b); i++ {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			break
		}
		if escape := bytes.IndexByte(b[i:i+n], '\\'); escape >= 0 {
			i += escape + 1
			continue
		}
		return i + n + 1
	}
	return len(b)
}

// valueEnd is the place behind the value that begins at i.
func valueEnd(b []byte, i int) int {
	for depth := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			if i = stringEnd(b, i); depth == 0 {
				return i
			}
			i--
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // behind a number or a word
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
	}
	return len(b)
}
