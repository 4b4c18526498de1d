package cdc

import (
	"bytes"

	"github.com/tidwall/gjson"
)

const (
	// deepest is how deep JSON may be nested: MySQL takes 100 levels, and who is to read more
	// needs a stack for it.
	deepest = 1000
	// shallow is how many objects and arrays may be there without anybody looking how deep
	// they are: few enough for a stack.
	shallow = 64 << 10
)

// Valid reports whether text is one JSON value that is nested no deeper than anybody can
// read.
func Valid(text []byte) bool {
	if len(text) > shallow && bytes.Count(text, []byte{'['})+bytes.Count(text, []byte{'{'}) > shallow && tooDeep(text) {
		return false
	}
	return gjson.Valid(View(text))
}

// tooDeep reports whether text is nested too deep, of valid JSON exactly.
func tooDeep(text []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			if depth++; depth > deepest {
				return true
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return false
}
