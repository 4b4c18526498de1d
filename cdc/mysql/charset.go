package mysql

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/encoding/unicode/utf32"
)

// charset turns a column's bytes into UTF-8. The zero value passes UTF-8 on.
type charset struct {
	name string
	enc  encoding.Encoding // nil: the bytes are UTF-8 already
}

// whatwg names MySQL's character sets as the encoding standard does.
var whatwg = map[string]string{
	"gbk": "gbk", "gb2312": "gbk", "gb18030": "gb18030", "big5": "big5",
	"sjis": "shift_jis", "cp932": "shift_jis", "ujis": "euc-jp", "eucjpms": "euc-jp", "euckr": "euc-kr",
	"koi8r": "koi8-r", "koi8u": "koi8-u", "cp866": "ibm866", "macroman": "macintosh",
	"latin2": "iso-8859-2", "latin7": "iso-8859-13", "greek": "iso-8859-7", "hebrew": "iso-8859-8",
	"cp1250": "windows-1250", "cp1251": "windows-1251", "cp1256": "windows-1256", "cp1257": "windows-1257",
	"latin5": "windows-1254", "tis620": "windows-874",
}

// newCharset finds the decoder for one of MySQL's character sets. MySQL's latin1
// is cp1252.
func newCharset(name string) (charset, error) {
	switch name {
	case "utf8mb4", "utf8mb3", "utf8", "ascii":
		return charset{name: name}, nil
	case "latin1":
		return charset{name, charmap.Windows1252}, nil
	case "utf16", "ucs2":
		return charset{name, unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM)}, nil
	case "utf16le":
		return charset{name, unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM)}, nil
	case "utf32":
		return charset{name, utf32.UTF32(utf32.BigEndian, utf32.IgnoreBOM)}, nil
	}
	if label, ok := whatwg[name]; ok {
		enc, err := htmlindex.Get(label)
		return charset{name, enc}, err
	}
	return charset{}, fmt.Errorf("character set %s is not known; convert the column to utf8mb4", name)
}

// text returns s as UTF-8 and refuses bytes that are not text of this set.
func (c charset) text(s string) (string, error) {
	if c.enc != nil {
		return c.enc.NewDecoder().String(s)
	}
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("bytes %.40q are not %s text", s, c.name)
	}
	return s, nil
}

// appendText appends b as a JSON string and refuses bytes that are not text of
// this set.
func (c *charset) appendText(dst, b []byte) ([]byte, error) {
	if c.enc != nil {
		s, err := c.enc.NewDecoder().Bytes(b)
		if err != nil {
			return dst, err
		}
		b = s
	}
	out, ok := appendUTF8(dst, b, false)
	if !ok {
		return dst, fmt.Errorf("bytes %.40q are not %s text", b, c.name)
	}
	return out, nil
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// appendUTF8 appends s as a JSON string and reports whether it is valid UTF-8.
// Short says that \b and \f are written so, as MySQL does in its JSON, and not by
// their number, as cdc.AppendString does.
func appendUTF8(dst, s []byte, short bool) ([]byte, bool) {
	dst = append(slices.Grow(dst, len(s)+2), '"')
	start := 0
	for i := 0; i < len(s); {
		if i+8 <= len(s) { // eight at a time where all are ASCII and none needs an escape
			w := binary.LittleEndian.Uint64(s[i:])
			if (w|(w-0x20*ones)|((w^'"'*ones)-ones)|((w^'\\'*ones)-ones))&highs == 0 {
				i += 8
				continue
			}
		}
		b := s[i]
		switch {
		case b >= utf8.RuneSelf:
			r, size := utf8.DecodeRune(s[i:])
			if r == utf8.RuneError && size == 1 {
				return dst, false
			}
			i += size
			continue
		case b >= 0x20 && b != '"' && b != '\\':
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		i++
		start = i
		switch {
		case b == '"' || b == '\\':
			dst = append(dst, '\\', b)
		case b == '\n':
			dst = append(dst, '\\', 'n')
		case b == '\r':
			dst = append(dst, '\\', 'r')
		case b == '\t':
			dst = append(dst, '\\', 't')
		case b == '\b' && short:
			dst = append(dst, '\\', 'b')
		case b == '\f' && short:
			dst = append(dst, '\\', 'f')
		default:
			dst = append(dst, '\\', 'u', '0', '0', "01"[b>>4], "0123456789abcdef"[b&15])
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"'), true
}
