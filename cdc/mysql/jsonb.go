package mysql

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
)

// The tags of values in MySQL's binary JSON.
const (
	jsonSmallObject = 0x00
	jsonLargeObject = 0x01
	jsonSmallArray  = 0x02
	jsonLargeArray  = 0x03
	jsonLiteral     = 0x04
	jsonInt16       = 0x05
	jsonUint16      = 0x06
	jsonInt32       = 0x07
	jsonUint32      = 0x08
	jsonInt64       = 0x09
	jsonUint64      = 0x0a
	jsonDouble      = 0x0b
	jsonString      = 0x0c
	jsonOpaque      = 0x0f
)

// maxJSONDepth is how deep MySQL lets documents nest.
const maxJSONDepth = 100

// appendJSONB appends a document in MySQL's binary form as appendJSON writes the
// server's text of it.
func appendJSONB(dst, doc []byte) ([]byte, error) {
	if len(doc) == 0 { // INSERT IGNORE of a NULL; MySQL reads it as the JSON null
		return append(dst, "null"...), nil
	}
	j := jsonb{left: len(doc)}
	out, ok := j.value(dst, doc[0], doc[1:], 0)
	if !ok {
		return dst, errDamaged
	}
	return out, nil
}

// jsonb reads one document. Left is how many of its bytes no value has taken yet:
// offsets of a damaged one that lead to the same bytes twice must not grow the
// result without bound.
type jsonb struct{ left int }

func (j *jsonb) take(n int) bool {
	j.left -= n
	return j.left >= 0
}

func (j *jsonb) value(dst []byte, tag byte, b []byte, depth int) ([]byte, bool) {
	size := 0
	switch tag {
	case jsonSmallObject, jsonLargeObject, jsonSmallArray, jsonLargeArray:
		return j.container(dst, tag, b, depth)
	case jsonLiteral:
		size = 1
	case jsonInt16, jsonUint16:
		size = 2
	case jsonInt32, jsonUint32:
		size = 4
	case jsonInt64, jsonUint64, jsonDouble:
		size = 8
	case jsonOpaque:
		return j.opaque(dst, b)
	case jsonString:
		s, ok := j.text(b)
		if !ok {
			return dst, false
		}
		return appendUTF8(dst, s, true)
	default:
		return dst, false
	}
	if len(b) < size {
		return dst, false
	}
	b = b[:size]
	switch tag {
	case jsonLiteral:
		if b[0] > 2 {
			return dst, false
		}
		return append(dst, [3]string{"null", "true", "false"}[b[0]]...), true
	case jsonUint16, jsonUint32, jsonUint64:
		return strconv.AppendUint(dst, littleEndian(b), 10), true
	case jsonDouble:
		f := math.Float64frombits(binary.LittleEndian.Uint64(b))
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return dst, false
		}
		return appendJSONDouble(dst, f), true
	}
	shift := 64 - 8*size
	return strconv.AppendInt(dst, int64(littleEndian(b)<<shift)>>shift, 10), true
}

// container reads an object or array: the counts of elements and bytes, an entry
// for each key and each value, then the keys and the values that do not fit in
// their entry.
func (j *jsonb) container(dst []byte, tag byte, b []byte, depth int) ([]byte, bool) {
	width := 2 // of counts and offsets
	if tag == jsonLargeObject || tag == jsonLargeArray {
		width = 4
	}
	if depth > maxJSONDepth || len(b) < 2*width {
		return dst, false
	}
	count, size := littleEndian(b[:width]), littleEndian(b[width:2*width])
	if size > uint64(len(b)) || count > size {
		return dst, false
	}
	b = b[:size]
	object := tag == jsonSmallObject || tag == jsonLargeObject
	keys, values := 2*width, 2*width
	if object {
		values += int(count) * (width + 2)
	}
	head := values + int(count)*(1+width)
	if head > len(b) || !j.take(head) {
		return dst, false
	}
	opening, closing := byte('['), byte(']')
	if object {
		opening, closing = '{', '}'
	}
	dst = append(dst, opening)
	for i := range int(count) {
		if i > 0 {
			dst = append(dst, ',')
		}
		if object {
			entry := b[keys+i*(width+2):]
			from, length := littleEndian(entry[:width]), littleEndian(entry[width:width+2])
			if from < uint64(head) || from+length > uint64(len(b)) || !j.take(int(length)) {
				return dst, false
			}
			var ok bool
			if dst, ok = appendUTF8(dst, b[from:from+length], true); !ok {
				return dst, false
			}
			dst = append(dst, ':')
		}
		entry := b[values+i*(1+width):]
		tag, at := entry[0], entry[1:1+width]
		if tag != jsonLiteral && tag != jsonInt16 && tag != jsonUint16 && (width == 2 || tag != jsonInt32 && tag != jsonUint32) {
			from := littleEndian(at)
			if from < uint64(head) || from > uint64(len(b)) {
				return dst, false
			}
			at = b[from:]
		}
		var ok bool
		if dst, ok = j.value(dst, tag, at, depth+1); !ok {
			return dst, false
		}
	}
	return append(dst, closing), true
}

// text reads a length and as many bytes: seven bits of the length in each byte,
// the least first.
func (j *jsonb) text(b []byte) ([]byte, bool) {
	length := uint64(0)
	for i := range 5 {
		if i >= len(b) {
			return nil, false
		}
		length |= uint64(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			b = b[i+1:]
			if length > uint64(len(b)) || !j.take(int(length)) {
				return nil, false
			}
			return b[:length], true
		}
	}
	return nil, false
}

// opaque reads a value of a type that JSON does not have.
func (j *jsonb) opaque(dst, b []byte) ([]byte, bool) {
	if len(b) == 0 {
		return dst, false
	}
	typ := b[0]
	v, ok := j.text(b[1:])
	if !ok {
		return dst, false
	}
	switch typ {
	case gomysql.MYSQL_TYPE_NEWDECIMAL:
		if len(v) < 2 {
			return dst, false
		}
		precision, scale := int(v[0]), int(v[1])
		if v = v[2:]; scale > precision || len(v) < 1 || len(v) != digitBytes(precision-scale)+digitBytes(scale) {
			return dst, false
		}
		var text [96]byte
		if precision > 65 {
			return dst, false
		}
		s, err := appendDecimal(text[:0], v, precision, scale)
		if err != nil {
			return dst, false
		}
		return appendNumber(dst, string(s)), true
	case gomysql.MYSQL_TYPE_DATE, gomysql.MYSQL_TYPE_DATETIME, gomysql.MYSQL_TYPE_TIMESTAMP, gomysql.MYSQL_TYPE_TIME:
		if len(v) != 8 {
			return dst, false
		}
		return appendJSONTime(dst, typ, int64(littleEndian(v))), true
	}
	dst = append(dst, `"base64:type`...)
	dst = strconv.AppendUint(dst, uint64(typ), 10)
	dst = append(dst, ':')
	for len(v) > 57 { // the server breaks the line behind 76 characters
		dst = base64.StdEncoding.AppendEncode(dst, v[:57])
		dst, v = append(dst, '\\', 'n'), v[57:]
	}
	dst = base64.StdEncoding.AppendEncode(dst, v)
	return append(dst, '"'), true
}

// appendJSONTime appends a date or time inside a document. It is packed as in
// DATETIME2 and TIME2, always with microseconds.
func appendJSONTime(dst []byte, typ byte, n int64) []byte {
	dst = append(dst, '"')
	if n < 0 {
		dst = append(dst, '-')
		n = -n
	}
	micro, hms := int(n&(1<<24-1)), int(n>>24)
	if typ != gomysql.MYSQL_TYPE_TIME {
		ymd := hms >> 17
		hms &= 1<<17 - 1
		dst = append2(dst, ymd>>5/13/100)
		dst = append2(dst, ymd>>5/13)
		dst = append2(append(dst, '-'), ymd>>5%13)
		dst = append2(append(dst, '-'), ymd&31)
		if typ == gomysql.MYSQL_TYPE_DATE {
			return append(dst, '"')
		}
		dst = append(dst, ' ')
	}
	if hour := hms >> 12; hour >= 100 {
		dst = append(dst, '0'+byte(hour/100%10))
	}
	dst = append2(dst, hms>>12)
	dst = append2(append(dst, ':'), hms>>6&63)
	dst = append2(append(dst, ':'), hms&63)
	dst = appendFraction(dst, micro, 6)
	return append(dst, '"')
}
