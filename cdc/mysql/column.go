package mysql

import (
	"encoding/base64"
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
)

// column is one column of a layout.
type column struct {
	name   string
	field  []byte // `"name":`, ready to append
	form   form
	cs     charset
	labels []string // of an enum or set, in UTF-8
	// width is the declared length of BINARY(n), whose trailing zero bytes the log
	// leaves out.
	width int
	// fraction is how many digits of a second a temporal column has.
	fraction  int
	unsigned  bool
	zeroDates string
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
	case formEnum:
		return c.appendEnum(dst, v)
	case formSet:
		return c.appendSet(dst, v)
	}
	s, ok := asString(v)
	if !ok {
		return dst, fmt.Errorf("a %T does not fit the type %s", v, c.sqlType)
	}
	switch c.form {
	case formDecimal, formTime:
		if c.form == formTime {
			s = withFraction(s, c.fraction)
		}
		return cdc.AppendString(dst, s), nil
	case formText:
		s, err := c.cs.text(s)
		if err != nil {
			return dst, err
		}
		return cdc.AppendString(dst, s), nil
	case formBytes:
		return appendBase64(dst, s, c.width), nil
	case formDate, formDateTime, formStamp:
		return c.appendDate(dst, s)
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

func (c *column) appendEnum(dst []byte, v any) ([]byte, error) {
	switch n := v.(type) {
	case int64:
		if n == 0 { // MySQL's error value, printed as the empty text
			return append(dst, '"', '"'), nil
		}
		if n < 0 || int(n) > len(c.labels) {
			return dst, fmt.Errorf("enum index %d, but the table map names %d labels", n, len(c.labels))
		}
		return cdc.AppendString(dst, c.labels[n-1]), nil
	case string:
		return cdc.AppendString(dst, n), nil
	}
	return dst, fmt.Errorf("a %T does not fit the type %s", v, c.sqlType)
}

func (c *column) appendSet(dst []byte, v any) ([]byte, error) {
	dst = append(dst, '[')
	first := true
	add := func(label string) {
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = cdc.AppendString(dst, label)
	}
	switch m := v.(type) {
	case int64:
		for i := range 64 {
			if uint64(m)&(1<<i) == 0 {
				continue
			}
			if i >= len(c.labels) {
				return dst, fmt.Errorf("set bit %d, but the table map names %d labels", i, len(c.labels))
			}
			add(c.labels[i])
		}
	case string:
		if m != "" {
			for label := range strings.SplitSeq(m, ",") {
				add(label)
			}
		}
	default:
		return dst, fmt.Errorf("a %T does not fit the type %s", v, c.sqlType)
	}
	return append(dst, ']'), nil
}

// appendDate turns "2026-11-22 08:15:30.5" into ISO 8601 with the declared
// number of digits.
func (c *column) appendDate(dst []byte, s string) ([]byte, error) {
	if !validDate(s) {
		switch c.zeroDates {
		case zeroStop:
			return dst, fmt.Errorf("the date %s is zero or does not exist; mend the row, or set source.zero_dates to as_null or as_text", s)
		case zeroNull:
			return append(dst, "null"...), nil
		}
	}
	if c.form == formDate {
		return cdc.AppendString(dst, s), nil
	}
	s = withFraction(s, c.fraction)
	dst = append(dst, '"')
	at := len(dst)
	dst = append(dst, s...)
	if len(s) > 10 && s[10] == ' ' {
		dst[at+10] = 'T'
	}
	if c.form == formStamp {
		dst = append(dst, 'Z')
	}
	return append(dst, '"'), nil
}

// validDate reports whether the first ten characters name a day that exists.
func validDate(s string) bool {
	if len(s) < 10 {
		return false
	}
	year, err1 := strconv.Atoi(s[:4])
	month, err2 := strconv.Atoi(s[5:7])
	day, err3 := strconv.Atoi(s[8:10])
	if err1 != nil || err2 != nil || err3 != nil || month < 1 || month > 12 || day < 1 {
		return false
	}
	return day <= daysIn(year, month)
}

func daysIn(year, month int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// withFraction gives s the declared number of digits after the seconds:
// go-mysql leaves a zero fraction out of TIME values.
func withFraction(s string, digits int) string {
	if digits == 0 || strings.IndexByte(s, '.') >= 0 {
		return s
	}
	return s + "." + "000000"[:digits]
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

func appendBase64(dst []byte, s string, width int) []byte {
	raw := []byte(s)
	if len(raw) < width {
		raw = append(raw, make([]byte, width-len(raw))...)
	}
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, raw)
	return append(dst, '"')
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
