package mysql

import (
	"fmt"
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
