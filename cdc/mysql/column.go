package mysql

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"lockstep/cdc"
)

// What zero_dates may be.
const (
	zeroNull = "as_null"
	zeroText = "as_text"
	zeroStop = "stop"
)

// form says how a column's value becomes JSON. There is one encoder for values
// from the log and from a SELECT; each form takes the Go types of both.
type form uint8

const (
	formInt      form = iota // number
	formFloat                // number, shortest text that gives the same 32 bits
	formDouble               // number, shortest text that gives the same 64 bits
	formDecimal              // text with every digit
	formText                 // text, turned into UTF-8
	formBytes                // text in base64
	formEnum                 // text: the label
	formSet                  // array of labels
	formDate                 // text
	formDateTime             // text, ISO 8601 without zone
	formStamp                // text, ISO 8601 in UTC
	formTime                 // text as MySQL prints it
	formJSON                 // the JSON value
	formGeometry             // as the policy says
	formVector               // array of numbers
)

// column is one column of a layout.
type column struct {
	name   string
	field  []byte // `"name":`, ready to append
	form   form
	cs     charset
	labels [][]byte // of an enum or set, as JSON strings
	// width is the declared length of BINARY(n), whose trailing zero bytes the log
	// leaves out.
	width int
	// fraction is how many digits of a second a temporal column has, or behind its
	// point a DECIMAL.
	fraction int
	log      logged
	unsigned bool
	policy   policy
	// What the stores need to know.
	kind    cdc.Kind
	sqlType string
}

func (c *column) setName(name string) {
	c.name = name
	c.field = append(cdc.AppendString(nil, name), ':')
}

// append appends v as JSON. v is nil, or what go-mysql gives for the column from
// the log or from a SELECT.
func (c *column) append(dst []byte, v any) ([]byte, error) {
	if v == nil {
		return append(dst, "null"...), nil
	}
	out, err := c.appendValue(dst, v)
	if err != nil {
		return dst, fmt.Errorf("column %s: %w", c.name, err)
	}
	return out, nil
}

func (c *column) appendValue(dst []byte, v any) ([]byte, error) {
	switch c.form {
	case formInt:
		return c.appendInt(dst, v)
	case formFloat:
		if f, ok := v.(float64); ok {
			v = float32(f)
		}
		if f, ok := v.(float32); ok {
			return appendFloat(dst, float64(f), 32), nil
		}
	case formDouble:
		if f, ok := v.(float64); ok {
			return appendFloat(dst, f, 64), nil
		}
	case formEnum, formSet:
		if n, ok := v.(int64); ok && c.form == formEnum {
			return c.appendLabel(dst, uint64(n))
		} else if ok {
			return c.appendLabels(dst, uint64(n))
		}
	}
	s, ok := asString(v)
	if !ok {
		return dst, fmt.Errorf("a %T does not fit the type %s", v, c.sqlType)
	}
	switch c.form {
	case formDecimal:
		for len(s) > 1 && s[0] == '0' && s[1] != '.' { // ZEROFILL
			s = s[1:]
		}
		return cdc.AppendString(dst, s), nil
	case formEnum:
		return cdc.AppendString(dst, s), nil
	case formSet:
		return appendSelected(dst, s), nil
	case formTime:
		t, err := parseClock(s)
		if err != nil {
			return dst, err
		}
		return c.appendTime(dst, t), nil
	case formText:
		return c.cs.appendText(dst, []byte(s))
	case formBytes:
		return appendBase64(dst, []byte(s), c.width), nil
	case formGeometry:
		return c.appendGeometry(dst, []byte(s))
	case formVector:
		return appendVector(dst, []byte(s))
	case formDate, formDateTime, formStamp:
		m, err := parseMoment(s)
		if err != nil {
			return dst, err
		}
		return c.appendMoment(dst, m)
	case formJSON:
		if s == "" { // INSERT IGNORE of a NULL; MySQL reads it as the JSON null
			s = "null"
		}
		return appendJSON(dst, s), nil
	}
	return dst, fmt.Errorf("a %T does not fit the type %s", v, c.sqlType)
}

func (c *column) appendInt(dst []byte, v any) ([]byte, error) {
	switch n := v.(type) {
	case int64:
		if c.unsigned { // BIT(64) comes as the same 64 bits, signed
			return strconv.AppendUint(dst, uint64(n), 10), nil
		}
		return strconv.AppendInt(dst, n, 10), nil
	case uint64:
		return strconv.AppendUint(dst, n, 10), nil
	case int32:
		return strconv.AppendInt(dst, int64(n), 10), nil
	case uint32:
		return strconv.AppendUint(dst, uint64(n), 10), nil
	case int16:
		return strconv.AppendInt(dst, int64(n), 10), nil
	case uint16:
		return strconv.AppendUint(dst, uint64(n), 10), nil
	case int8:
		return strconv.AppendInt(dst, int64(n), 10), nil
	case uint8:
		return strconv.AppendUint(dst, uint64(n), 10), nil
	case int: // YEAR
		return strconv.AppendInt(dst, int64(n), 10), nil
	}
	return dst, fmt.Errorf("a %T does not fit the type %s", v, c.sqlType)
}

// appendSelected appends the text that a SELECT gives for a SET.
func appendSelected(dst []byte, s string) []byte {
	dst = append(dst, '[')
	first := true
	for label := range strings.SplitSeq(s, ",") {
		if s == "" {
			break
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = cdc.AppendString(dst, label)
	}
	return append(dst, ']')
}

// appendFloat writes the shortest decimal that reads back as the same value, in
// the form encoding/json uses, so both sources of a row agree.
func appendFloat(dst []byte, f float64, bits int) []byte {
	abs := math.Abs(f)
	format := byte('f')
	if abs != 0 {
		if bits == 64 && (abs < 1e-6 || abs >= 1e21) || bits == 32 && (float32(abs) < 1e-6 || float32(abs) >= 1e21) {
			format = 'e'
		}
	}
	return strconv.AppendFloat(dst, f, format, -1, bits)
}

func asString(v any) (string, bool) {
	switch s := v.(type) {
	case string:
		return s, true
	case []byte:
		return string(s), true
	}
	return "", false
}
