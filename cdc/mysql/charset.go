package mysql

import (
	"archive/zip"
	"bytes"
	_ "embed"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
)

// charset turns a column's bytes into UTF-8.
type charset struct {
	name  string
	kind  charsetKind
	table *codes // of charsetTable
}

type charsetKind uint8

const (
	charsetUTF8 charsetKind = iota
	charsetTable
	charsetUCS2
	charsetUTF16
	charsetUTF16LE
	charsetUTF32
)

// newCharset finds the decoder for one of MySQL's character sets.
func newCharset(name string) (charset, error) {
	switch name {
	case "utf8mb4", "utf8mb3", "utf8":
		return charset{name: name}, nil
	case "ucs2":
		return charset{name: name, kind: charsetUCS2}, nil
	case "utf16":
		return charset{name: name, kind: charsetUTF16}, nil
	case "utf16le":
		return charset{name: name, kind: charsetUTF16LE}, nil
	case "utf32":
		return charset{name: name, kind: charsetUTF32}, nil
	}
	table, err := readCodes(name)
	if err != nil {
		return charset{}, fmt.Errorf("character set %s is not known; convert the column to utf8mb4", name)
	}
	return charset{name: name, kind: charsetTable, table: table}, nil
}

// codes are the code points of a character set as the server converts it, which
// differs from what others make of the same name: 0x815F of sjis is a backslash.
// A 0 is no character, but for the byte 0 itself; "?" stands for what the set has
// and Unicode does not, as in the server's own answers.
type codes struct {
	single [256]uint16
	double []uint16 // by two bytes; nil in sets of one byte
	// triple, of the EUC sets, is by the two bytes behind 0x8F; quad, of gb18030, by
	// the place of four bytes from 0x81308130 to 0x8439FE39.
	triple, quad []uint16
	ascii        bool // the first 128 are ASCII's
}

// The tables are what a server answers, one file a set: big-endian numbers of 16
// bits in the order of the fields of codes. The test that compares them with the
// servers writes them anew when told to.
//
//go:embed charsets.zip
var codesArchive []byte

var codesCache sync.Map // name to *codes

func readCodes(name string) (*codes, error) {
	if c, ok := codesCache.Load(name); ok {
		return c.(*codes), nil
	}
	archive, err := zip.NewReader(bytes.NewReader(codesArchive), int64(len(codesArchive)))
	if err != nil {
		return nil, err
	}
	file, err := archive.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	all := make([]uint16, len(raw)/2)
	for i := range all {
		all[i] = binary.BigEndian.Uint16(raw[2*i:])
	}
	c := &codes{ascii: true}
	all = all[copy(c.single[:], all):]
	if len(all) > 0 {
		c.double, all = all[:1<<16], all[1<<16:]
	}
	if name == "gb18030" {
		c.quad = all
	} else if len(all) > 0 {
		c.triple = all
	}
	for i := range rune(128) {
		c.ascii = c.ascii && rune(c.single[i]) == i
	}
	codesCache.Store(name, c)
	return c, nil
}

// next reads the character that b begins with. What is none is a "?" of one byte,
// as in the server's own conversion.
func (t *codes) next(b []byte) (r rune, size int) {
	if r := t.single[b[0]]; r != 0 || b[0] == 0 {
		return rune(r), 1
	}
	if len(b) >= 2 && t.double != nil {
		if r := t.double[int(b[0])<<8|int(b[1])]; r != 0 {
			return rune(r), 2
		}
	}
	if len(b) >= 3 && t.triple != nil && b[0] == 0x8f {
		if r := t.triple[int(b[1])<<8|int(b[2])]; r != 0 {
			return rune(r), 3
		}
	}
	if len(b) >= 4 && t.quad != nil {
		if at := quadPlace(b); at >= 0 && at < len(t.quad) && t.quad[at] != 0 {
			return rune(t.quad[at]), 4
		} else if at -= quadPlane1; at >= 0 && at < 1<<20 {
			return 0x10000 + rune(at), 4
		}
	}
	return '?', 1
}

// quadPlane1 is the place of U+10000, 0x90308130, from where on gb18030 follows
// Unicode's order.
const quadPlane1 = (0x90 - 0x81) * 12600

// quadPlace counts gb18030's characters of four bytes; -1 is none.
func quadPlace(b []byte) int {
	if b[0] < 0x81 || b[0] > 0xfe || b[1] < 0x30 || b[1] > 0x39 || b[2] < 0x81 || b[2] > 0xfe || b[3] < 0x30 || b[3] > 0x39 {
		return -1
	}
	return ((int(b[0]-0x81)*10+int(b[1]-0x30))*126+int(b[2]-0x81))*10 + int(b[3]-0x30)
}

// next reads the character that b begins with; a negative one is none.
func (c *charset) next(b []byte) (r rune, size int) {
	switch c.kind {
	case charsetTable:
		return c.table.next(b)
	case charsetUTF32:
		if len(b) < 4 {
			return -1, len(b)
		}
		if r = rune(binary.BigEndian.Uint32(b)); !utf8.ValidRune(r) {
			r = -1
		}
		return r, 4
	}
	if len(b) < 2 {
		return -1, len(b)
	}
	unit := binary.BigEndian.Uint16
	if c.kind == charsetUTF16LE {
		unit = binary.LittleEndian.Uint16
	}
	if r = rune(unit(b)); !utf16.IsSurrogate(r) {
		return r, 2
	}
	if c.kind == charsetUCS2 || len(b) < 4 {
		return -1, 2
	}
	if r = utf16.DecodeRune(r, rune(unit(b[2:]))); r == utf8.RuneError {
		return -1, 2
	}
	return r, 4
}

// appendText appends b as a JSON string and refuses bytes that are not text of
// this set.
func (c *charset) appendText(dst, b []byte) ([]byte, error) {
	if c.kind == charsetUTF8 {
		out, ok := appendUTF8(dst, b, false)
		if !ok {
			return dst, fmt.Errorf("bytes %q are not %s text", b[:min(40, len(b))], c.name)
		}
		return out, nil
	}
	ascii := c.kind == charsetTable && c.table.ascii
	dst = append(slices.Grow(dst, len(b)+2), '"')
	for len(b) > 0 {
		if ascii && len(b) >= 8 && plain(b) {
			dst, b = append(dst, b[:8]...), b[8:]
			continue
		}
		r, size := c.next(b)
		switch {
		case r < 0:
			return dst, fmt.Errorf("bytes %q are not %s text", b[:min(40, len(b))], c.name)
		case r < 0x20 || r == '"' || r == '\\':
			dst = appendEscape(dst, byte(r), false)
		default:
			dst = utf8.AppendRune(dst, r)
		}
		b = b[size:]
	}
	return append(dst, '"'), nil
}

// appendUTF8 appends s as a JSON string and reports whether it is valid UTF-8.
// Short says that \b and \f are written so, as MySQL does in its JSON, and not by
// their number, as cdc.AppendString does.
func appendUTF8(dst, s []byte, short bool) ([]byte, bool) {
	dst = append(slices.Grow(dst, len(s)+2), '"')
	start := 0
	for i := 0; i < len(s); {
		if i+8 <= len(s) && plain(s[i:]) {
			i += 8
			continue
		}
		b := s[i]
		if b >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(s[i:])
			if r == utf8.RuneError && size == 1 {
				return dst, false
			}
			i += size
			continue
		}
		if b < 0x20 || b == '"' || b == '\\' {
			dst = append(dst, s[start:i]...)
			dst = appendEscape(dst, b, short)
			start = i + 1
		}
		i++
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"'), true
}

// plain reports whether the first eight bytes are ASCII and need no escape.
func plain(b []byte) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	w := binary.LittleEndian.Uint64(b)
	return (w|(w-0x20*ones)|((w^'"'*ones)-ones)|((w^'\\'*ones)-ones))&highs == 0
}

func appendEscape(dst []byte, b byte, short bool) []byte {
	switch {
	case b == '"' || b == '\\':
		return append(dst, '\\', b)
	case b == '\n':
		return append(dst, '\\', 'n')
	case b == '\r':
		return append(dst, '\\', 'r')
	case b == '\t':
		return append(dst, '\\', 't')
	case b == '\b' && short:
		return append(dst, '\\', 'b')
	case b == '\f' && short:
		return append(dst, '\\', 'f')
	}
	return append(dst, '\\', 'u', '0', '0', "01"[b>>4], "0123456789abcdef"[b&15])
}
