package cdc

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// KeyField is one column of a primary key. Text is its value as plain text: a
// number's digits, a text without quotes.
type KeyField struct {
	Column string
	Text   string
}

// KeyFields reads a Change's Key into its columns, in the key's order.
func KeyFields(key []byte) ([]KeyField, error) {
	if !isObject(key) {
		return nil, undecodable("key is not a JSON object")
	}
	var fields []KeyField
	var err error
	gjson.Parse(View(key)).ForEach(func(name, value gjson.Result) bool {
		switch value.Type {
		case gjson.String:
			fields = append(fields, KeyField{name.Str, value.Str})
		case gjson.Number:
			fields = append(fields, KeyField{name.Str, value.Raw})
		case gjson.JSON: // a SET in a primary key
			fields = append(fields, KeyField{name.Str, value.Raw})
		default:
			err = undecodable("key column %s is %s", name.Str, value.Raw)
			return false
		}
		return true
	})
	if err == nil && len(fields) == 0 {
		err = undecodable("key has no column")
	}
	return fields, err
}

// escapeKey keeps "a:b","c" and "a","b:c" apart when the columns of a composite
// key are joined.
var escapeKey = strings.NewReplacer("%", "%25", ":", "%3A")

// KeyText joins the columns of a primary key into the one text by which a store
// knows the row: the value itself for a key of one column, the values joined by
// ":" for a composite key, with "%" and ":" inside a value written as %25 and %3A.
// Different keys give different texts.
func KeyText(key []byte) (string, error) {
	fields, err := KeyFields(key)
	if err != nil {
		return "", err
	}
	texts := make([]string, len(fields))
	for i, f := range fields {
		texts[i] = f.Text
	}
	return JoinKey(texts), nil
}

// JoinKey is the KeyText of the key whose columns have these texts, in its order.
func JoinKey(texts []string) string {
	if len(texts) == 1 {
		return texts[0]
	}
	parts := make([]string, len(texts))
	for i, text := range texts {
		parts[i] = escapeKey.Replace(text)
	}
	return strings.Join(parts, ":")
}

// KeyOf makes the Key of a row from the texts of its columns: what KeyFields reads. It
// refuses texts that no key of the table has.
func (t Table) KeyOf(text func(column string) (string, bool)) ([]byte, error) {
	key := []byte{'{'}
	for i, name := range t.Key {
		value, ok := text(name)
		if !ok {
			return nil, fmt.Errorf("%s: the key column %s is missing", t.Name, name)
		}
		if i > 0 {
			key = append(key, ',')
		}
		key = append(AppendString(key, name), ':')
		switch kind := t.kind(name); kind {
		case KindInt, KindUint:
			if !isInteger.MatchString(value) {
				return nil, fmt.Errorf("%s: the key column %s is an integer and not %q", t.Name, name, value)
			}
			key = append(key, value...)
		case KindFloat, KindDouble, KindSet, KindJSON:
			if !Valid([]byte(value)) || strings.TrimSpace(value) != value {
				return nil, fmt.Errorf("%s: the key column %s is %s and not %q", t.Name, name, kind, value)
			}
			key = append(key, value...)
		default:
			if !utf8.ValidString(value) {
				return nil, fmt.Errorf("%s: the key column %s is no text", t.Name, name)
			}
			key = AppendString(key, value)
		}
	}
	return append(key, '}'), nil
}

var isInteger = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)

func (t Table) kind(column string) Kind {
	for _, c := range t.Columns {
		if c.Name == column {
			return c.Kind
		}
	}
	return ""
}

var unescapeKey = strings.NewReplacer("%3A", ":", "%25", "%")

// SplitKey takes a KeyText of a key of so many columns apart into their texts. It is not ok
// when the text is not of so many.
func SplitKey(text string, columns int) (texts []string, ok bool) {
	if columns == 1 {
		return []string{text}, true
	}
	texts = strings.Split(text, ":")
	for i := range texts {
		texts[i] = unescapeKey.Replace(texts[i])
	}
	return texts, len(texts) == columns
}

// ParseKey is the Key that KeyText has made a text of. It refuses one that no key of the
// table has.
func (t Table) ParseKey(text string) ([]byte, error) {
	parts, ok := SplitKey(text, len(t.Key))
	if !ok {
		return nil, fmt.Errorf("%s: %q has not the %d columns of a key", t.Name, text, len(t.Key))
	}
	key, err := t.KeyOf(func(column string) (string, bool) { return parts[slices.Index(t.Key, column)], true })
	if err != nil {
		return nil, err
	}
	if again, err := KeyText(key); err != nil || again != text {
		return nil, fmt.Errorf("%s: %q is not how a key is written", t.Name, text)
	}
	return key, nil
}

// KeyTemplate is a parsed template such as "question:{id}".
type KeyTemplate struct {
	text   string
	parts  []string // literal text around the placeholders: one more than names
	names  []string
	values int // placeholders other than {db} and {table}
}

// ParseKeyTemplate parses a template that names at least one column. Placeholders
// are {column}, {pk} for the whole primary key joined by ":", {db} and {table}. "{{"
// and "}}" stand for the braces themselves, for example to write a Redis Cluster
// hash tag.
func ParseKeyTemplate(text string) (KeyTemplate, error) {
	t, err := ParseTemplate(text)
	if err == nil && t.values == 0 {
		return t, fmt.Errorf("key template %q names no primary-key column, so all rows would share one key; write for example %q", text, text+":{id}")
	}
	return t, err
}

// ParseTemplate is ParseKeyTemplate for a template that need not name a column.
func ParseTemplate(text string) (KeyTemplate, error) {
	t := KeyTemplate{text: text}
	var literal strings.Builder
	for i := 0; i < len(text); {
		switch {
		case strings.HasPrefix(text[i:], "{{"), strings.HasPrefix(text[i:], "}}"):
			literal.WriteByte(text[i])
			i += 2
		case text[i] == '{':
			end := strings.IndexByte(text[i:], '}')
			if end < 2 {
				return t, fmt.Errorf("key template %q: the placeholder at character %d is not closed or empty; write {column}", text, i+1)
			}
			name := text[i+1 : i+end]
			t.parts = append(t.parts, literal.String())
			literal.Reset()
			t.names = append(t.names, name)
			if name != "db" && name != "table" {
				t.values++
			}
			i += end + 1
		case text[i] == '}':
			return t, fmt.Errorf("key template %q: the brace at character %d closes nothing; write }} for a brace", text, i+1)
		default:
			literal.WriteByte(text[i])
			i++
		}
	}
	t.parts = append(t.parts, literal.String())
	return t, nil
}

// String is the template as it was written.
func (t KeyTemplate) String() string { return t.text }

// Columns are the columns it names one by one, without {pk}, {db} and {table}.
func (t KeyTemplate) Columns() []string {
	var columns []string
	for _, name := range t.names {
		if name != "pk" && name != "db" && name != "table" {
			columns = append(columns, name)
		}
	}
	return columns
}

// Render gives the key of a row. It fails unless the template names every column
// of the primary key and no other, so that no two rows can share a key and a
// delete finds what its insert wrote.
func (t KeyTemplate) Render(table TableName, key []byte) (string, error) {
	r, err := RenderTogether(table, key, nil, t)
	if err != nil {
		return "", err
	}
	return r.Texts[0], nil
}

// Rendered is what templates give for a row.
type Rendered struct {
	Texts []string // of each template
	// FromRow says that columns besides the primary key went into them, so that
	// another image of the row may give other texts.
	FromRow bool
	// Null is the first such column that is NULL, and then there are no Texts.
	Null string
}

// RenderTogether fills templates that between them name the whole primary key, so
// that no two rows share all of their texts. Other columns are taken from row, a
// JSON object with an image of the row; with a nil row there are none.
func RenderTogether(table TableName, key, row []byte, templates ...KeyTemplate) (Rendered, error) {
	fields, err := KeyFields(key)
	if err != nil {
		return Rendered{}, err
	}
	var r Rendered
	used := make([]bool, len(fields))
	for _, t := range templates {
		text, err := t.fill(table, key, fields, row, used, &r)
		if err != nil || r.Null != "" {
			return r, err
		}
		r.Texts = append(r.Texts, text)
	}
	for j, ok := range used {
		if !ok {
			t := templates[len(templates)-1]
			return r, fmt.Errorf("key template %q leaves out the primary-key column %s of %s; add {%s}", t.text, fields[j].Column, table, fields[j].Column)
		}
	}
	return r, nil
}

// expand fills the template; column gives what is neither {db}, {table} nor {pk}.
func (t KeyTemplate) expand(table TableName, key []byte, column func(name string) (string, error)) (string, error) {
	var b strings.Builder
	for i, name := range t.names {
		b.WriteString(t.parts[i])
		switch name {
		case "db":
			b.WriteString(table.DB)
		case "table":
			b.WriteString(table.Table)
		case "pk":
			text, err := KeyText(key)
			if err != nil {
				return "", err
			}
			b.WriteString(text)
		default:
			text, err := column(name)
			if err != nil {
				return "", err
			}
			b.WriteString(text)
		}
	}
	b.WriteString(t.parts[len(t.parts)-1])
	return b.String(), nil
}

// NoColumn says that a template names a column that an image does not have.
type NoColumn struct {
	Template, Column string
	Table            TableName
}

// The template stands without quotes: what is quoted in the reason of a dead letter is
// taken for a value.
func (e *NoColumn) Error() string {
	return fmt.Sprintf("template %s names the column %s, which rows of %s do not have", e.Template, e.Column, e.Table)
}

// TooLong says that a column has a value too large to go into a key, so that no row
// was ever kept under it.
type TooLong struct {
	Template, Column string
	Table            TableName
	Bytes            int
}

func (e *TooLong) Error() string {
	return fmt.Sprintf("key template %s: column %s of %s has a value of %d bytes; at most %d may go into a key", e.Template, e.Column, e.Table, e.Bytes, SmallValue)
}

// errNull ends the filling of a key with a column that is NULL.
var errNull = errors.New("NULL")

func (t KeyTemplate) fill(table TableName, key []byte, fields []KeyField, row []byte, used []bool, r *Rendered) (string, error) {
	if slices.Contains(t.names, "pk") {
		for j := range used {
			used[j] = true
		}
	}
	text, err := t.expand(table, key, func(name string) (text string, err error) {
		if j := indexField(fields, name); j >= 0 {
			used[j] = true
			text = fields[j].Text
		} else if row == nil {
			return "", fmt.Errorf("key template %q: %s is not a primary-key column of %s", t.text, name, table)
		} else {
			r.FromRow = true
			value := column(row, name)
			switch {
			case !value.Exists():
				return "", &NoColumn{t.text, name, table}
			case len(value.Raw) > SmallValue: // a later change may come without it in its row before
				return "", &TooLong{t.text, name, table, len(value.Raw)}
			case value.Type == gjson.Null:
				r.Null = name
				return "", errNull
			}
			text = plain(value)
		}
		if t.values > 1 {
			text = escapeKey.Replace(text)
		}
		return text, nil
	})
	if err == errNull {
		return "", nil
	}
	return text, err
}

// ColumnText is the value of a column of an image as plain text: a text without
// quotes, anything else as it is written. It is not ok when there is no such column.
func ColumnText(row []byte, name string) (text string, null, ok bool) {
	value := column(row, name)
	return plain(value), value.Exists() && value.Type == gjson.Null, value.Exists()
}

func column(row []byte, name string) (found gjson.Result) {
	gjson.Parse(View(row)).ForEach(func(key, value gjson.Result) bool {
		if key.Str == name {
			found = value
		}
		return key.Str != name
	})
	return found
}

func plain(value gjson.Result) string {
	if value.Type == gjson.String {
		return value.Str
	}
	return value.Raw
}

// Text fills the template with the columns of an image for a reader's eye: nothing
// is escaped, and NULL is an empty text. {pk} is as in a key.
func (t KeyTemplate) Text(table TableName, key, row []byte) (string, error) {
	return t.expand(table, key, func(name string) (string, error) {
		text, null, ok := ColumnText(row, name)
		switch {
		case !ok:
			return "", &NoColumn{t.text, name, table}
		case null:
			return "", nil
		}
		return text, nil
	})
}

// Gives reports whether a row could have this key: its columns, given as the text
// that a key has of each, fill the template so. It need not know which columns make
// up the primary key, so {pk} is any column, or several of them joined.
func (t KeyTemplate) Gives(table TableName, key string, row map[string]string) bool {
	literal, pks := make([]string, 1), 0 // between the {pk}
	add := func(text string) { literal[len(literal)-1] += text }
	for i, name := range t.names {
		add(t.parts[i])
		switch name {
		case "db":
			add(table.DB)
		case "table":
			add(table.Table)
		case "pk":
			literal, pks = append(literal, ""), pks+1
		default:
			text, ok := row[name]
			if !ok {
				return false
			}
			if t.values > 1 {
				text = escapeKey.Replace(text)
			}
			add(text)
		}
	}
	add(t.parts[len(t.parts)-1])
	if pks == 0 {
		return literal[0] == key
	}
	length := len(key) - len(strings.Join(literal, ""))
	from := len(literal[0])
	if length < 0 || length%pks != 0 || from+length/pks > len(key) {
		return false
	}
	pk := key[from : from+length/pks]
	return strings.Join(literal, pk) == key && madeOf(pk, row)
}

// madeOf reports whether text is one of the values of row, or several of them
// joined as in KeyText.
func madeOf(text string, row map[string]string) bool {
	left := make(map[string]int, len(row))
	for _, value := range row {
		if value == text {
			return true
		}
		left[escapeKey.Replace(value)]++
	}
	parts := strings.Split(text, ":")
	for _, part := range parts {
		if left[part]--; left[part] < 0 {
			return false
		}
	}
	return len(parts) > 1
}

// ErrAmbiguous is wrapped by the error of Read for a key that several rows could have.
var ErrAmbiguous = errors.New("can be read in several ways")

// Read gives the columns of a row that has this key, as the texts that a key has of them:
// those that the template names, and with {pk} the whole primary key. It refuses a text
// that the template does not give, or could give of several rows (ErrAmbiguous).
func (t KeyTemplate) Read(table Table, key string) (map[string]string, error) {
	var found []map[string]string
	var read func(i int, rest string, columns map[string]string)
	read = func(i int, rest string, columns map[string]string) {
		rest, ok := strings.CutPrefix(rest, t.parts[i])
		if !ok || len(found) > 1 {
			return
		}
		if i == len(t.names) {
			if rest == "" {
				found = append(found, columns)
			}
			return
		}
		for end := 0; end <= len(rest); end++ {
			if !strings.HasPrefix(rest[end:], t.parts[i+1]) || i == len(t.names)-1 && end+len(t.parts[i+1]) != len(rest) {
				continue
			}
			if more, ok := t.take(table, t.names[i], rest[:end], columns); ok {
				read(i+1, rest[end:], more)
			}
		}
	}
	read(0, key, map[string]string{})
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("key template %q does not give %q", t.text, key)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("key %q of the template %q: %w", key, t.text, ErrAmbiguous)
}

// take reads the text of one placeholder and returns columns with what it says; false
// when it cannot stand there.
func (t KeyTemplate) take(table Table, name, text string, columns map[string]string) (map[string]string, bool) {
	switch name {
	case "db":
		return columns, text == table.Name.DB
	case "table":
		return columns, text == table.Name.Table
	}
	more := maps.Clone(columns)
	set := func(column, value string) bool {
		was, known := more[column]
		more[column] = value
		return !known || was == value
	}
	if name != "pk" {
		if t.values > 1 {
			plain := unescapeKey.Replace(text)
			if escapeKey.Replace(plain) != text {
				return nil, false
			}
			text = plain
		}
		if slices.Contains(table.Key, name) {
			if _, err := (Table{Name: table.Name, Columns: table.Columns, Key: []string{name}}).KeyOf(func(string) (string, bool) { return text, true }); err != nil {
				return nil, false
			}
		}
		return more, set(name, text)
	}
	key, err := table.ParseKey(text)
	if err != nil {
		return nil, false
	}
	fields, err := KeyFields(key)
	for _, f := range fields {
		if !set(f.Column, f.Text) {
			return nil, false
		}
	}
	return more, err == nil
}

func indexField(fields []KeyField, name string) int {
	for i, f := range fields {
		if f.Column == name {
			return i
		}
	}
	return -1
}
