package mysql

import (
	"bytes"
	"fmt"
	"math"
	"strconv"

	"lockstep/cdc"
)

// What zero_dates may be.
const (
	zeroNull = "as_null"
	zeroText = "as_text"
	zeroStop = "stop"
)

// form says how a column's value becomes JSON, whether it comes from the log
// (appendLogged) or from a SELECT (append).
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
	mask     *mask // nil: values pass as they are
	policy
	// What the stores need to know.
	kind     cdc.Kind
	sqlType  string
	nullable bool
}

func (c *column) setName(name string) {
	c.name = name
	c.field = append(cdc.AppendString(nil, name), ':')
}

// append appends v as JSON: nil, or what value gives for the field of a SELECT of
// the column's selectExpr.
func (c *column) append(dst []byte, v any) ([]byte, error) {
	if v == nil {
		return append(dst, "null"...), nil
	}
	out, err := c.appendValue(dst, v)
	if err != nil {
		return dst, c.wrong(err)
	}
	if c.mask != nil {
		return c.conceal(out, len(dst)), nil
	}
	return out, nil
}

func (c *column) appendValue(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case int64:
		if c.form == formInt {
			return strconv.AppendInt(dst, v, 10), nil
		}
	case uint64:
		if c.form == formInt {
			return strconv.AppendUint(dst, v, 10), nil
		}
	case float64:
		switch c.form {
		case formFloat:
			return appendFloat(dst, float64(float32(v)), 32), nil
		case formDouble:
			return appendFloat(dst, v, 64), nil
		}
	case []byte:
		switch c.form {
		case formDecimal:
			for len(v) > 1 && v[0] == '0' && v[1] != '.' { // ZEROFILL
				v = v[1:]
			}
			return cdc.AppendString(dst, v), nil
		case formEnum:
			return c.cs.appendText(dst, v)
		case formSet:
			return c.appendSet(dst, v)
		case formTime:
			t, err := parseClock(string(v))
			if err != nil {
				return dst, err
			}
			return c.appendTime(dst, t), nil
		case formText:
			return c.cs.appendText(dst, v)
		case formBytes:
			return appendBase64(dst, v, c.width), nil
		case formGeometry:
			return c.appendGeometry(dst, v)
		case formVector:
			return appendVector(dst, v)
		case formDate, formDateTime, formStamp:
			m, err := parseMoment(string(v))
			if err != nil {
				return dst, err
			}
			return c.appendMoment(dst, m)
		case formJSON:
			if len(v) == 0 { // INSERT IGNORE of a NULL; MySQL reads it as the JSON null
				return append(dst, "null"...), nil
			}
			return appendJSON(dst, v), nil
		}
	}
	return dst, fmt.Errorf("a %T does not fit the type %s", v, c.sqlType)
}

// appendSet appends the labels of a SET as the server lists them, which leaves out
// the empty one.
func (c *column) appendSet(dst, list []byte) (out []byte, err error) {
	dst = append(dst, '[')
	for n := 0; len(list) > 0; n++ {
		label, rest, _ := bytes.Cut(list, []byte{','})
		if n > 0 {
			dst = append(dst, ',')
		}
		if dst, err = c.cs.appendText(dst, label); err != nil {
			return dst, err
		}
		list = rest
	}
	return append(dst, ']'), nil
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
