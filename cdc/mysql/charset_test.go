package mysql

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
	"unicode/utf8"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
)

var update = flag.Bool("update", false, "write charsets.zip anew from what MySQL answers")

// tabled are the character sets that have a table, with the sequences of more
// than one byte that they can have.
var tabled = map[string][]string{
	"big5": {"double"}, "cp932": {"double"}, "eucjpms": {"double", "triple"}, "euckr": {"double"}, "gb18030": {"double", "quad"}, "gb2312": {"double"},
	"gbk": {"double"}, "sjis": {"double"}, "ujis": {"double", "triple"},
	"armscii8": nil, "ascii": nil, "cp1250": nil, "cp1251": nil, "cp1256": nil, "cp1257": nil, "cp850": nil, "cp852": nil, "cp866": nil, "dec8": nil, "geostd8": nil,
	"greek": nil, "hebrew": nil, "hp8": nil, "keybcs2": nil, "koi8r": nil, "koi8u": nil, "latin1": nil, "latin2": nil, "latin5": nil, "latin7": nil,
	"macce": nil, "macroman": nil, "swe7": nil, "tis620": nil,
}

// sequences are the bytes that a set may have: an expression over the tables x and
// y of all bytes and digits, and over their rows.
var sequences = map[string]string{
	"single": "SELECT CHAR(x.n) AS s FROM bytes x",
	"double": "SELECT CHAR(x.n, y.n) AS s FROM bytes x, bytes y WHERE x.n >= 128",
	"triple": "SELECT CHAR(143, x.n, y.n) AS s FROM bytes x, bytes y WHERE x.n >= 128",
	"quad":   "SELECT CHAR(v.n, w.n, x.n, y.n) AS s FROM bytes v, bytes w, bytes x, bytes y WHERE v.n BETWEEN 129 AND 132 AND w.n BETWEEN 48 AND 57 AND x.n BETWEEN 129 AND 254 AND y.n BETWEEN 48 AND 57",
}

// answers asks the server what it makes of each sequence that is one of the set.
func (f *flavor) answers(set, kind string, each func(sequence []byte, text string)) {
	f.t.Helper()
	rows, err := f.db.Query(fmt.Sprintf(`SELECT s, CONVERT(CONVERT(s USING %[1]s) USING utf8mb4) FROM (%s) t WHERE HEX(CONVERT(s USING %[1]s)) = HEX(s)`, set, sequences[kind]))
	if err != nil {
		f.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var sequence, text []byte
		if err := rows.Scan(&sequence, &text); err != nil {
			f.t.Fatal(err)
		}
		each(sequence, string(text))
	}
	if err := rows.Err(); err != nil {
		f.t.Fatal(err)
	}
}

// Every byte sequence of every character set is the text that the server makes of
// it for a copy.
func TestEveryCharacterIsWhatTheServerMakesOfIt(t *testing.T) {
	for _, name := range []string{gomysql.MySQLFlavor, gomysql.MariaDBFlavor} {
		f := newFlavor(t, name)
		f.exec("CREATE TABLE bytes (n INT PRIMARY KEY)", "INSERT INTO bytes WITH RECURSIVE r (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r WHERE n < 255) SELECT n FROM r")
		if *update && name == gomysql.MySQLFlavor {
			f.writeTables()
		}
		known := map[string]bool{}
		for _, set := range f.sets {
			known[set] = true
		}
		for set := range known {
			kinds, isTabled := tabled[set]
			if isTabled {
				kinds = append([]string{"single"}, kinds...)
			} else if set != "binary" {
				kinds = map[string][]string{"ucs2": {"double"}, "utf16": {"double"}, "utf16le": {"double"}, "utf8mb3": {"single"}, "utf8mb4": {"single"}, "utf32": nil}[set]
				if _, err := newCharset(set); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			cs, _ := newCharset(set)
			n, wrong := 0, 0
			for _, kind := range kinds {
				f.answers(set, kind, func(sequence []byte, text string) {
					if text == "" || !utf8.ValidString(text) { // a part of a character; a surrogate, which is refused
						return
					}
					n++
					got, err := cs.appendText(nil, sequence)
					want, _ := json.Marshal(text)
					var plain string
					if json.Unmarshal(got, &plain) != nil || err != nil || plain != text {
						if wrong++; wrong < 10 {
							t.Errorf("%s %s %X: got %s (%v), the server says %s", name, set, sequence, got, err, want)
						}
					}
				})
			}
			if n == 0 && kinds != nil {
				t.Errorf("%s has no characters of %s", name, set)
			}
		}
	}
}

func (f *flavor) writeTables() {
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	for _, set := range slices.Sorted(maps.Keys(tabled)) {
		kinds := tabled[set]
		file, err := archive.Create(set)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, kind := range append([]string{"single"}, kinds...) {
			table := make([]uint16, map[string]int{"single": 256, "double": 1 << 16, "triple": 1 << 16, "quad": 4 * 12600}[kind])
			f.answers(set, kind, func(sequence []byte, text string) {
				r, size := utf8.DecodeRuneInString(text)
				if size != len(text) || size == 0 {
					return // not one character
				}
				at := int(sequence[len(sequence)-1])
				if kind == "quad" {
					at = quadPlace(sequence)
				} else if kind != "single" {
					at |= int(sequence[len(sequence)-2]) << 8
				}
				if table[at] = uint16(r); r > 0xffff || r == 0 && at != 0 {
					f.t.Fatalf("%s: %X is %U", set, sequence, r)
				}
			})
			if err := binary.Write(file, binary.BigEndian, table); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	if err := archive.Close(); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile("charsets.zip", out.Bytes(), 0o644); err != nil {
		f.t.Fatal(err)
	}
	codesArchive = out.Bytes()
	codesCache.Clear()
}
