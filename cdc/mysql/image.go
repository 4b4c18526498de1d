package mysql

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"

	"lockstep/cdc"
)

// span is where a column's value stands in the JSON of its row.
type span struct{ from, to int }

// errShort says that bytes end before the value they hold.
var errShort = errors.New("the row image ends too early")

// errDamaged says that bytes are no value of their column's type.
var errDamaged = errors.New("the row image is damaged: its bytes are no value of the column's type")

// appendImage appends one full row image of a row event as a JSON object in the
// table's order, and returns how many bytes of data it took. It notes in spans,
// one per column, where in dst each value stands that is not dropped by its mask. It
// does not keep data, and allocates nothing where dst has room. With trim it leaves out
// what takes more than cdc.SmallValue and is not in the key.
func (l *layout) appendImage(dst, data []byte, spans []span, trim bool) (out []byte, n int, err error) {
	nulls := (len(l.columns) + 7) / 8
	if len(data) < nulls {
		return dst, 0, fmt.Errorf("%s: %w", l.table, errShort)
	}
	n = nulls
	dst = append(dst, '{')
	open := len(dst)
	for i := range l.columns {
		c := &l.columns[i]
		before := len(dst)
		if before > open {
			dst = append(dst, ',')
		}
		dst = append(dst, c.field...)
		spans[i].from = len(dst)
		if data[i>>3]&(1<<(i&7)) != 0 {
			dst = append(dst, "null"...)
		} else if size := c.large(data[n:]); trim && size > 0 && !slices.Contains(l.key, i) {
			n += size
			dst = dst[:before]
			continue
		} else {
			var size int
			if dst, size, err = c.appendLogged(dst, data[n:]); err != nil {
				return dst, n, fmt.Errorf("%s: %w", l.table, c.wrong(err))
			}
			n += size
			if c.mask != nil {
				dst = c.conceal(dst, spans[i].from)
			}
		}
		spans[i].to = len(dst)
		if c.dropped() {
			dst = dst[:before]
		}
	}
	return append(dst, '}'), n, nil
}

// large is how many bytes of b a value takes that is left out of a trimmed image; 0 for
// one that stays.
func (c *column) large(b []byte) int {
	n := c.log.size
	switch c.log.typ {
	case gomysql.MYSQL_TYPE_BLOB, gomysql.MYSQL_TYPE_JSON, gomysql.MYSQL_TYPE_GEOMETRY, gomysql.MYSQL_TYPE_VECTOR:
		if len(b) >= n {
			if length := littleEndian(b[:n]); length > cdc.SmallValue && length <= uint64(len(b)-n) {
				return n + int(length)
			}
		}
	}
	return 0
}

// appendKeyOf appends the primary key of a row that appendImage wrote, as a JSON
// object in the key's order. The spans point into row.
func (l *layout) appendKeyOf(dst, row []byte, spans []span) []byte {
	dst = append(dst, '{')
	for n, i := range l.key {
		if n > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, l.columns[i].field...)
		dst = append(dst, row[spans[i].from:spans[i].to]...)
	}
	return append(dst, '}')
}

// logged is how the log writes a column: the type and what its metadata says.
type logged struct {
	typ  byte // a MYSQL_TYPE, never MYSQL_TYPE_STRING for an ENUM or SET
	size int  // bytes of a value of fixed size, or of the length before one that varies
	// precision of a DECIMAL; its scale and the digits of a second are the column's
	// fraction.
	precision int
	// compressed says that MariaDB may have compressed the value.
	compressed bool
}

// setLogged reads the metadata of a column of a table map. Width is the length in
// bytes of CHAR, BINARY, ENUM and SET.
func (c *column) setLogged(typ byte, meta uint16, width int) error {
	switch typ {
	case typeBlobCompressed:
		typ, c.log.compressed = gomysql.MYSQL_TYPE_BLOB, true
	case typeVarcharCompressed:
		typ, c.log.compressed = gomysql.MYSQL_TYPE_VARCHAR, true
	}
	c.log.typ = typ
	switch typ {
	case gomysql.MYSQL_TYPE_TINY, gomysql.MYSQL_TYPE_YEAR:
		c.log.size = 1
	case gomysql.MYSQL_TYPE_SHORT:
		c.log.size = 2
	case gomysql.MYSQL_TYPE_INT24, gomysql.MYSQL_TYPE_DATE, gomysql.MYSQL_TYPE_TIME:
		c.log.size = 3
	case gomysql.MYSQL_TYPE_LONG, gomysql.MYSQL_TYPE_FLOAT, gomysql.MYSQL_TYPE_TIMESTAMP:
		c.log.size = 4
	case gomysql.MYSQL_TYPE_LONGLONG, gomysql.MYSQL_TYPE_DOUBLE, gomysql.MYSQL_TYPE_DATETIME:
		c.log.size = 8
	case gomysql.MYSQL_TYPE_BIT:
		c.log.size = int(meta>>8) + (int(meta&0xff)+7)/8
	case gomysql.MYSQL_TYPE_NEWDECIMAL:
		c.log.precision, c.fraction = int(meta>>8), int(meta&0xff)
		if c.log.precision > 65 || c.fraction > c.log.precision {
			return errDamaged
		}
		c.log.size = digitBytes(c.log.precision-c.fraction) + digitBytes(c.fraction)
	case gomysql.MYSQL_TYPE_TIME2:
		c.log.size = 3 + (c.fraction+1)/2
	case gomysql.MYSQL_TYPE_TIMESTAMP2:
		c.log.size = 4 + (c.fraction+1)/2
	case gomysql.MYSQL_TYPE_DATETIME2:
		c.log.size = 5 + (c.fraction+1)/2
	case gomysql.MYSQL_TYPE_ENUM, gomysql.MYSQL_TYPE_SET:
		c.log.size = width
	case gomysql.MYSQL_TYPE_STRING:
		c.log.size = lengthBytes(width)
	case gomysql.MYSQL_TYPE_VARCHAR, gomysql.MYSQL_TYPE_VAR_STRING:
		c.log.size = lengthBytes(int(meta))
	case gomysql.MYSQL_TYPE_BLOB, gomysql.MYSQL_TYPE_JSON, gomysql.MYSQL_TYPE_GEOMETRY, gomysql.MYSQL_TYPE_VECTOR:
		c.log.size = int(meta)
	}
	if c.log.size < 1 || c.log.size > 8 && typ != gomysql.MYSQL_TYPE_NEWDECIMAL || c.fraction > 6 && typ != gomysql.MYSQL_TYPE_NEWDECIMAL {
		return errDamaged
	}
	return nil
}

func lengthBytes(width int) int {
	if width > 255 {
		return 2
	}
	return 1
}

// appendLogged appends the value that b begins with as JSON, and returns how many
// bytes it took.
func (c *column) appendLogged(dst, b []byte) (out []byte, n int, err error) {
	n = c.log.size
	if len(b) < n {
		return dst, 0, errShort
	}
	v := b[:n]
	switch c.log.typ {
	case gomysql.MYSQL_TYPE_TINY, gomysql.MYSQL_TYPE_SHORT, gomysql.MYSQL_TYPE_INT24, gomysql.MYSQL_TYPE_LONG, gomysql.MYSQL_TYPE_LONGLONG:
		u := littleEndian(v)
		if c.unsigned {
			return strconv.AppendUint(dst, u, 10), n, nil
		}
		shift := 64 - 8*n
		return strconv.AppendInt(dst, int64(u<<shift)>>shift, 10), n, nil
	case gomysql.MYSQL_TYPE_YEAR:
		if v[0] == 0 {
			return append(dst, '0'), n, nil
		}
		return strconv.AppendUint(dst, 1900+uint64(v[0]), 10), n, nil
	case gomysql.MYSQL_TYPE_BIT:
		return strconv.AppendUint(dst, bigEndian(v), 10), n, nil
	case gomysql.MYSQL_TYPE_FLOAT:
		return finite(dst, n, float64(math.Float32frombits(binary.LittleEndian.Uint32(v))), 32)
	case gomysql.MYSQL_TYPE_DOUBLE:
		return finite(dst, n, math.Float64frombits(binary.LittleEndian.Uint64(v)), 64)
	case gomysql.MYSQL_TYPE_NEWDECIMAL:
		dst = append(dst, '"')
		if dst, err = appendDecimal(dst, v, c.log.precision, c.fraction); err != nil {
			return dst, n, err
		}
		return append(dst, '"'), n, nil
	case gomysql.MYSQL_TYPE_DATE, gomysql.MYSQL_TYPE_DATETIME, gomysql.MYSQL_TYPE_DATETIME2, gomysql.MYSQL_TYPE_TIMESTAMP, gomysql.MYSQL_TYPE_TIMESTAMP2:
		m, ok := c.moment(v)
		if !ok {
			return dst, n, errDamaged
		}
		dst, err = c.appendMoment(dst, m)
		return dst, n, err
	case gomysql.MYSQL_TYPE_TIME, gomysql.MYSQL_TYPE_TIME2:
		return c.appendTime(dst, c.clock(v)), n, nil
	case gomysql.MYSQL_TYPE_ENUM:
		dst, err = c.appendLabel(dst, littleEndian(v))
		return dst, n, err
	case gomysql.MYSQL_TYPE_SET:
		dst, err = c.appendLabels(dst, littleEndian(v))
		return dst, n, err
	}
	// What is left has its length before it.
	length := littleEndian(v)
	if length > uint64(len(b)-n) {
		return dst, n, errShort
	}
	v = b[n : n+int(length)]
	n += int(length)
	if c.log.compressed {
		if v, err = inflateColumn(v); err != nil {
			return dst, n, err
		}
	}
	switch c.form {
	case formText:
		dst, err = c.cs.appendText(dst, v)
	case formBytes:
		dst = appendBase64(dst, v, c.width)
	case formGeometry:
		dst, err = c.appendGeometry(dst, v)
	case formVector:
		dst, err = appendVector(dst, v)
	case formJSON:
		dst, err = appendJSONB(dst, v)
	default:
		err = errDamaged
	}
	return dst, n, err
}

// inflateColumn unpacks a value of a MariaDB column that is COMPRESSED. Its first byte is
// 0 before plain bytes; else it holds the method, 8 for zlib's, a bit that says
// that zlib's own header and sum are left out, and how many bytes behind it are the
// plain length.
func inflateColumn(v []byte) ([]byte, error) {
	if len(v) == 0 || v[0] == 0 {
		return v[min(1, len(v)):], nil
	}
	method, bare, digits := v[0]>>4, v[0]&8 != 0, int(v[0]&7)
	if method != 8 || digits < 1 || digits > 4 || len(v) < 1+digits {
		return nil, errDamaged
	}
	length := bigEndian(v[1 : 1+digits])
	packed := bytes.NewReader(v[1+digits:])
	var plain io.Reader = flate.NewReader(packed)
	if !bare {
		var err error
		if plain, err = zlib.NewReader(packed); err != nil {
			return nil, errDamaged
		}
	}
	// A damaged length asks for no more than can be in it.
	out := bytes.NewBuffer(make([]byte, 0, min(length, zlibMost*uint64(len(v)))+bytes.MinRead))
	if n, err := out.ReadFrom(io.LimitReader(plain, int64(length)+1)); err != nil || uint64(n) != length {
		return nil, errDamaged
	}
	return out.Bytes(), nil
}

// littleEndian reads an unsigned integer of one to eight bytes, least first.
func littleEndian(b []byte) (u uint64) {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	case 8:
		return binary.LittleEndian.Uint64(b)
	}
	for i := len(b) - 1; i >= 0; i-- {
		u = u<<8 | uint64(b[i])
	}
	return u
}

// bigEndian reads an unsigned integer of at most eight bytes, greatest first.
func bigEndian(b []byte) (u uint64) {
	for _, x := range b {
		u = u<<8 | uint64(x)
	}
	return u
}

func finite(dst []byte, n int, f float64, bits int) ([]byte, int, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return dst, n, errDamaged
	}
	return appendFloat(dst, f, bits), n, nil
}

// digitBytes is how many bytes a DECIMAL's digits take on one side of its point:
// four for every nine, fewer for the rest.
func digitBytes(digits int) int { return digits/9*4 + restBytes[digits%9] }

var restBytes = [9]int{0, 1, 1, 2, 2, 3, 3, 4, 4}

// appendDecimal appends the text of a DECIMAL that fills b: groups of nine digits
// in big-endian binary, the rest before the first group of the integral and behind
// the last of the fraction, all bits turned around when it is negative, and the
// sign in the first bit.
func appendDecimal(dst, b []byte, precision, scale int) ([]byte, error) {
	flip := byte(0)
	if b[0]&0x80 == 0 {
		flip = 0xff
		dst = append(dst, '-')
	}
	sign := byte(0x80)
	start, whole := len(dst), precision-scale
	group := func(digits int) bool {
		size := 4
		if digits < 9 {
			size = restBytes[digits]
		}
		var u uint32
		for _, x := range b[:size] {
			u = u<<8 | uint32(x^flip^sign)
			sign = 0
		}
		b = b[size:]
		at := len(dst)
		dst = append(dst, "000000000"[:digits]...)
		for i := at + digits - 1; i >= at; i-- {
			dst[i] = '0' + byte(u%10)
			u /= 10
		}
		return u == 0
	}
	ok := true
	if rest := whole % 9; rest > 0 {
		ok = group(rest)
	}
	for range whole / 9 {
		ok = group(9) && ok
	}
	zeros := start // no zeros before the first digit, but one before a point
	for zeros < len(dst)-1 && dst[zeros] == '0' {
		zeros++
	}
	dst = slices.Delete(dst, start, zeros)
	if whole == 0 {
		dst = append(dst, '0')
	}
	if scale > 0 {
		dst = append(dst, '.')
		for range scale / 9 {
			ok = group(9) && ok
		}
		if rest := scale % 9; rest > 0 {
			ok = group(rest) && ok
		}
	}
	if !ok {
		return dst, errDamaged
	}
	return dst, nil
}

// appendBase64 appends b, filled up with zero bytes to width.
func appendBase64(dst, b []byte, width int) []byte {
	dst = append(dst, '"')
	if len(b) < width {
		var filled [256]byte
		copy(filled[:], b)
		b = filled[:width]
	}
	dst = base64.StdEncoding.AppendEncode(dst, b)
	return append(dst, '"')
}

// appendLabel appends the label of an ENUM. Its index counts from 1; 0 is MySQL's
// error value, which it prints as the empty text.
func (c *column) appendLabel(dst []byte, index uint64) ([]byte, error) {
	if index == 0 {
		return append(dst, '"', '"'), nil
	}
	if index > uint64(len(c.labels)) {
		return dst, fmt.Errorf("enum index %d, but the table map names %d labels", index, len(c.labels))
	}
	return append(dst, c.labels[index-1]...), nil
}

// appendLabels appends the labels of a SET, which has a bit for each.
func (c *column) appendLabels(dst []byte, bits uint64) ([]byte, error) {
	dst = append(dst, '[')
	first := true
	for i := 0; bits != 0; i, bits = i+1, bits>>1 {
		if bits&1 == 0 {
			continue
		}
		if i >= len(c.labels) {
			return dst, fmt.Errorf("set bit %d, but the table map names %d labels", i, len(c.labels))
		}
		if len(c.labels[i]) == len(`""`) { // the server leaves it out of its list
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, c.labels[i]...)
	}
	return append(dst, ']'), nil
}
