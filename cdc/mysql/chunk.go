package mysql

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
)

// A chunk is a range of rows in the order in which the server keeps the primary
// key. Its ends are keys in JSON, as rows have them; here they become SQL that
// compares as the server does, by the column's own type and collation.

// tableIn is what a query of a snapshot reads: the rows of a table that match.
type tableIn struct {
	*layout
	where  string
	labels map[int][]string // of ENUM and SET columns of the key, by column
}

func newTableIn(l *layout, where string) *tableIn {
	t := &tableIn{layout: l, where: where, labels: map[int][]string{}}
	for _, i := range l.key {
		if f := l.columns[i].form; f == formEnum || f == formSet {
			t.labels[i] = parseLabels(l.columns[i].sqlType)
		}
	}
	return t
}

// from is the FROM clause. With a condition the server chooses the index.
func (t *tableIn) from() string {
	if t.where != "" {
		return " FROM " + quoteTable(t.table)
	}
	return " FROM " + quoteTable(t.table) + " FORCE INDEX (PRIMARY)"
}

// within is the WHERE clause of the rows behind the key after up to the key upTo;
// nil is no limit.
func (t *tableIn) within(after, upTo []byte) (string, error) {
	var terms []string
	for _, end := range []struct {
		key  []byte
		sign byte
	}{{after, '>'}, {upTo, '<'}} {
		if end.key == nil {
			continue
		}
		values, err := t.values(end.key)
		if err != nil {
			return "", err
		}
		terms = append(terms, t.beyond(values, end.sign))
	}
	if t.where != "" {
		terms = append(terms, "(\n"+t.where+"\n)")
	}
	if len(terms) == 0 {
		return "", nil
	}
	return " WHERE " + strings.Join(terms, " AND "), nil
}

// beyond is the condition of the keys above values (sign >), or up to and with
// them (sign <). A row constructor would say the same, but the server finds no range
// of its index in it.
func (t *tableIn) beyond(values []string, sign byte) string {
	var b strings.Builder
	for n, i := range t.key {
		if n > 0 {
			fmt.Fprintf(&b, " OR (%s = %s AND ", quote(t.columns[t.key[n-1]].name), values[n-1])
		}
		last := n == len(t.key)-1
		b.WriteString("(" + t.compare(i, values[n], sign, last && sign == '<'))
	}
	b.WriteString(strings.Repeat(")", 2*len(t.key)-1))
	return b.String()
}

// maxLabels bounds the list that stands for a range of ENUM labels.
const maxLabels = 1000

func (t *tableIn) compare(i int, value string, sign byte, equal bool) string {
	name := quote(t.columns[i].name)
	labels := t.labels[i]
	if t.columns[i].form != formEnum || len(labels) > maxLabels {
		op := string(sign)
		if equal {
			op += "="
		}
		return name + " " + op + " " + value
	}
	// The server orders an ENUM by index, and finds no range of one in its index.
	at, _ := strconv.Atoi(value)
	var list []string
	for n := 0; n <= len(labels); n++ {
		if sign == '>' && n > at || sign == '<' && (n < at || equal && n == at) {
			list = append(list, strconv.Itoa(n))
		}
	}
	if len(list) == 0 {
		return "FALSE"
	}
	return name + " IN (" + strings.Join(list, ",") + ")"
}

// order is the ORDER BY clause.
func (t *tableIn) order(direction string) string {
	names := make([]string, len(t.key))
	for n, i := range t.key {
		names[n] = quote(t.columns[i].name) + direction
	}
	return " ORDER BY " + strings.Join(names, ", ")
}

// selectRows reads whole rows of a range, at most limit.
func (t *tableIn) selectRows(after, upTo []byte, limit int) (string, error) {
	where, err := t.within(after, upTo)
	return "SELECT " + t.exprs(t.all()) + t.from() + where + t.order("") + " LIMIT " + strconv.Itoa(limit), err
}

// selectListed reads the rows of the listed keys.
func (t *tableIn) selectListed(keys [][]byte) (string, error) {
	terms := make([]string, 0, len(keys))
	for _, key := range keys {
		values, err := t.values(key)
		if err != nil {
			return "", err
		}
		equal := make([]string, len(values))
		for n, i := range t.key {
			equal[n] = quote(t.columns[i].name) + " = " + values[n]
		}
		terms = append(terms, "("+strings.Join(equal, " AND ")+")")
	}
	return "SELECT " + t.exprs(t.all()) + t.from() + " WHERE " + strings.Join(terms, " OR "), nil
}

// selectNth reads the key of the n-th row of a range, counted from 1.
func (t *tableIn) selectNth(after, upTo []byte, n int) (string, error) {
	where, err := t.within(after, upTo)
	return "SELECT " + t.exprs(t.key) + t.from() + where + t.order("") + " LIMIT " + strconv.Itoa(n-1) + ", 1", err
}

// selectLast reads the last key.
func (t *tableIn) selectLast() string {
	where, _ := t.within(nil, nil)
	return "SELECT " + t.exprs(t.key) + t.from() + where + t.order(" DESC") + " LIMIT 1"
}

func (t *tableIn) all() []int {
	all := make([]int, len(t.columns))
	for i := range all {
		all[i] = i
	}
	return all
}

func (t *tableIn) exprs(columns []int) string {
	exprs := make([]string, len(columns))
	for n, i := range columns {
		exprs[n] = t.columns[i].selectExpr()
	}
	return strings.Join(exprs, ", ")
}

// rowJSON appends the key and the row of a SELECT of all columns. values is scratch.
func (t *tableIn) rowJSON(key, row []byte, values []any, fields []gomysql.FieldValue) (_, _ []byte, err error) {
	for i := range fields {
		values[i] = value(&fields[i])
	}
	if key, err = t.appendKey(key, values); err == nil {
		row, err = t.appendRow(row, values)
	}
	return key, row, err
}

// keyJSON is the key of a SELECT of the key's columns.
func (t *tableIn) keyJSON(fields []gomysql.FieldValue) ([]byte, error) {
	values := make([]any, len(t.columns))
	for n, i := range t.key {
		values[i] = value(&fields[n])
	}
	return t.appendKey(nil, values)
}

// values are the columns of a key in JSON as SQL literals, in the key's order.
func (t *tableIn) values(key []byte) ([]string, error) {
	parsed := gjson.ParseBytes(key)
	fields := map[string]gjson.Result{}
	named := 0 // a name that stands twice is counted twice
	parsed.ForEach(func(name, v gjson.Result) bool {
		fields[name.Str] = v
		named++
		return true
	})
	if !parsed.IsObject() || !cdc.Valid(key) || named != len(t.key) {
		return nil, fmt.Errorf("%s is no key of %s, whose primary key is (%s)", key, t.table, t.keyNames())
	}
	values := make([]string, len(t.key))
	for n, i := range t.key {
		v, ok := fields[t.columns[i].name]
		if !ok {
			return nil, fmt.Errorf("%s is no key of %s, whose primary key is (%s)", key, t.table, t.keyNames())
		}
		var err error
		if values[n], err = t.literal(i, v); err != nil {
			return nil, fmt.Errorf("%s is no key of %s: column %s: %w", key, t.table, t.columns[i].name, err)
		}
	}
	return values, nil
}

var (
	intText     = regexp.MustCompile(`^-?[0-9]{1,20}$`)
	decimalText = regexp.MustCompile(`^-?[0-9]{1,65}(\.[0-9]{1,30})?$`)
	timeText    = regexp.MustCompile(`^[-0-9:.T ]{1,40}Z?$`)
)

// literal is the value of a column as SQL that equals it exactly.
func (t *tableIn) literal(i int, v gjson.Result) (string, error) {
	c := &t.columns[i]
	number, text := v.Type == gjson.Number, v.Type == gjson.String
	switch c.form {
	case formInt:
		if number && intText.MatchString(v.Raw) {
			return v.Raw, nil
		}
	case formFloat, formDouble:
		bits := 64
		if c.form == formFloat { // the column's 32 bits, as the double the server compares
			bits = 32
		}
		if f, err := strconv.ParseFloat(v.Raw, bits); number && err == nil {
			return strconv.FormatFloat(f, 'e', -1, 64), nil
		}
	case formDecimal:
		if text && decimalText.MatchString(v.Str) {
			return v.Str, nil
		}
	case formText:
		if text {
			return "_utf8mb4 X'" + hex.EncodeToString([]byte(v.Str)) + "'", nil
		}
	case formBytes:
		if raw, err := base64.StdEncoding.DecodeString(v.Str); text && err == nil {
			return "X'" + hex.EncodeToString(raw) + "'", nil
		}
	case formDate, formDateTime, formStamp, formTime:
		if text && timeText.MatchString(v.Str) {
			return "'" + strings.TrimSuffix(strings.Replace(v.Str, "T", " ", 1), "Z") + "'", nil
		}
	case formEnum:
		if at := slices.Index(t.labels[i], v.Str); text && (at >= 0 || v.Str == "") {
			return strconv.Itoa(at + 1), nil
		}
	case formSet:
		if !v.IsArray() {
			break
		}
		var mask uint64
		for _, label := range v.Array() {
			at := slices.Index(t.labels[i], label.Str)
			if at < 0 {
				return "", fmt.Errorf("%s is not one of its labels", label.Raw)
			}
			mask |= 1 << at
		}
		return strconv.FormatUint(mask, 10), nil
	}
	return "", fmt.Errorf("%s is no value of the type %s", v.Raw, c.sqlType)
}

// parseLabels reads the labels of a declared type such as enum('a','it”s').
func parseLabels(sqlType string) []string {
	open := strings.IndexByte(sqlType, '(')
	tokens := tokens{rest: sqlType[open+1:]}
	var labels []string
	for tok := tokens.next(); tok.text != "" || tok.quoted; tok = tokens.next() {
		if tok.quoted {
			labels = append(labels, tok.text)
		}
	}
	return labels
}

// buffer holds the rows of a chunk. What it has held may be held again after reset.
type buffer struct {
	layout uint32   // of the rows
	slabs  [][]byte // the last one in use is filled up
	used   int
	rows   []row
	bytes  int
}

// row is one row of a chunk; after is nil for a key that has no row.
type row struct{ key, after []byte }

// slabBytes is how much memory a buffer takes at once.
const slabBytes = 256 << 10

func (b *buffer) reset() {
	b.used, b.bytes = 0, 0
	clear(b.rows)
	b.rows = b.rows[:0]
}

// add keeps a copy of a row.
func (b *buffer) add(key, after []byte) {
	b.rows = append(b.rows, row{b.keep(key), b.keep(after)})
	b.bytes += len(key) + len(after)
}

func (b *buffer) keep(p []byte) []byte {
	if p == nil || len(p) > slabBytes/4 { // a large row has memory of its own, which goes with it
		return slices.Clone(p)
	}
	if b.used == 0 || len(b.slabs[b.used-1])+len(p) > slabBytes {
		if b.used == len(b.slabs) {
			b.slabs = append(b.slabs, make([]byte, 0, slabBytes))
		}
		b.slabs[b.used] = b.slabs[b.used][:0]
		b.used++
	}
	slab := b.slabs[b.used-1]
	b.slabs[b.used-1] = append(slab, p...)
	return b.slabs[b.used-1][len(slab) : len(slab)+len(p) : len(slab)+len(p)]
}
