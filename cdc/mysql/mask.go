package mysql

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"lockstep/cdc"
)

// Masks are the masks of a table's columns, by column.
type Masks map[string]Mask

// Mask says what becomes of a column's values before they leave the capture: drop,
// sha256, or keep first N last M. ", was NAME" names the column's older names, and
// ", may be gone" allows that there is none of them.
type Mask string

// hiddenText stands for the characters that a partial mask leaves out, however many.
const hiddenText = "***"

// shortestSalt is the length below which a salt could be guessed.
const shortestSalt = 16

type maskRule uint8

const (
	maskDrop maskRule = iota + 1
	maskHash
	maskPartial
)

// mask is a Mask that was read.
type mask struct {
	rule        maskRule
	first, last int // characters that a partial mask keeps
	was         []string
	mayBeGone   bool
	macs        *sync.Pool // of hash.Hash, for maskHash
}

const maskWays = "use drop, sha256, or for example keep last 4 or keep first 1 last 2"

func (m Mask) parse() (mask, error) {
	parts := strings.Split(string(m), ",")
	var out mask
	switch words := strings.Fields(parts[0]); {
	case len(words) == 1 && words[0] == "drop":
		out.rule = maskDrop
	case len(words) == 1 && words[0] == "sha256":
		out.rule = maskHash
	case len(words) >= 3 && len(words) <= 5 && words[0] == "keep":
		out.rule = maskPartial
		for ends := words[1:]; len(ends) > 0; ends = ends[2:] {
			n, err := 0, errors.New("no number")
			if len(ends) > 1 {
				n, err = strconv.Atoi(ends[1])
			}
			switch {
			case err != nil || n < 1 || n > 1000:
				return out, fmt.Errorf("%q is not known; %s", m, maskWays)
			case ends[0] == "first" && out.first == 0 && out.last == 0:
				out.first = n
			case ends[0] == "last" && out.last == 0:
				out.last = n
			default:
				return out, fmt.Errorf("%q is not known; %s", m, maskWays)
			}
		}
	default:
		return out, fmt.Errorf("%q is not known; %s", m, maskWays)
	}
	for _, part := range parts[1:] {
		part = strings.TrimSpace(part)
		name, older := strings.CutPrefix(part, "was ")
		switch {
		case part == "may be gone":
			out.mayBeGone = true
		case older && strings.TrimSpace(name) != "":
			out.was = append(out.was, strings.TrimSpace(name))
		default:
			return out, fmt.Errorf("%q ends with what is not known; behind the comma stands was OLDNAME or may be gone", m)
		}
	}
	return out, nil
}

// Check names every mistake in the masks of a table, each with the way out. Salted
// says that there is a salt.
func (m Masks) Check(salted bool) error {
	var errs []error
	for _, column := range slices.Sorted(maps.Keys(m)) {
		parsed, err := m[column].parse()
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", column, err))
		case parsed.rule == maskHash && !salted:
			errs = append(errs, fmt.Errorf("%s: sha256 needs source.mask_salt, without which values could be guessed; make one with: openssl rand -hex 32", column))
		}
	}
	return errors.Join(errs...)
}

// Columns are the masked columns in lower case, those by their older names, too.
func (m Masks) Columns() map[string]bool {
	columns := map[string]bool{}
	for name, text := range m {
		columns[strings.ToLower(name)] = true
		if parsed, err := text.parse(); err == nil {
			for _, was := range parsed.was {
				columns[strings.ToLower(was)] = true
			}
		}
	}
	return columns
}

// mask puts the masks of the policy on the columns of l. It returns a Stop when one of
// them fits no column, because the column may be there under a name that hides it from
// its mask.
func (l *layout) mask(p policy) error {
	if p.masks == nil {
		return nil
	}
	masks := p.masks(l.table)
	macs := &sync.Pool{New: func() any { return hmac.New(sha256.New, []byte(p.maskSalt.Reveal())) }}
	for _, name := range slices.Sorted(maps.Keys(masks)) {
		m, err := masks[name].parse()
		if err != nil {
			return stopf("", "table %s: mask.%s: %v", l.table, name, err)
		}
		m.macs = macs
		found := false
		for _, called := range append([]string{name}, m.was...) {
			i := slices.IndexFunc(l.columns, func(c column) bool { return strings.EqualFold(c.name, called) })
			if i < 0 {
				continue
			}
			found = true
			if err := l.maskColumn(i, &m); err != nil {
				return err
			}
		}
		if !found && !m.mayBeGone {
			return stopf(fmt.Sprintf("%s if it has another name now, or {%s: %q} if it is gone for good", underNewName("NEWNAME", name, masks[name]), name, masks[name]+", may be gone"),
				"table %s has no column %s, which its mask names, so a column may be unmasked", l.table, name)
		}
	}
	return nil
}

// underNewName is the mask of a column that was renamed. It holds for the old name
// too, which older parts of the log have.
func underNewName(now, was string, m Mask) string {
	return fmt.Sprintf("tables[].mask: {%s: %q}", now, m+", was "+Mask(was))
}

// masksStay returns a Stop when a masked column gets a name that its mask does not
// know: another column may have taken the old one, and then the mask would fit.
func (c Config) masksStay(t cdc.TableName, renames []rename) error {
	if !c.masked(t) {
		return nil
	}
	for name, text := range c.Masks(t) {
		m, err := text.parse()
		if err != nil {
			return stopf("", "table %s: mask.%s: %v", t, name, err)
		}
		covers := func(column string) bool {
			return slices.ContainsFunc(append(m.was, name), func(n string) bool { return strings.EqualFold(n, column) })
		}
		for _, r := range renames {
			if covers(r.from) && !covers(r.to) {
				return stopf(underNewName(r.to, r.from, text), "table %s: its masked column %s is now called %s, which its mask does not know", t, r.from, r.to)
			}
		}
	}
	return nil
}

func (l *layout) maskColumn(i int, m *mask) error {
	c := &l.columns[i]
	if slices.Contains(l.key, i) {
		return stopf("take it out of tables[].mask", "table %s: the column %s cannot be masked, because the primary key tells its rows apart", l.table, c.name)
	}
	switch c.form {
	case formBytes, formSet, formJSON, formGeometry, formVector:
		if m.rule == maskPartial {
			return stopf("use drop or sha256 in tables[].mask", "table %s: the column %s is not text or a number, so no part of it can be kept", l.table, c.name)
		}
	}
	c.mask, c.kind = m, cdc.KindKeyword
	return nil
}

// masksWhatItIsMadeOf returns a Stop for a generated column that is made of a masked one
// and not masked itself. The log does not tell, so it is asked with the table's present
// shape.
func (l *layout) masksWhatItIsMadeOf(i int, expression string) error {
	if expression == "" || l.columns[i].mask != nil {
		return nil
	}
	for _, c := range l.columns {
		if c.mask != nil && strings.Contains(strings.ToLower(expression), strings.ToLower(quote(c.name))) {
			return stopf(fmt.Sprintf("tables[].mask: {%s: drop}", l.columns[i].name),
				"table %s: the column %s is made of the masked column %s and not masked itself", l.table, l.columns[i].name, c.name)
		}
	}
	return nil
}

// dropped reports whether rows leave the column out.
func (c *column) dropped() bool { return c.mask != nil && c.mask.rule == maskDrop }

// conceal masks the value that stands at the end of dst, from from on. Of equal JSON
// it makes equal JSON, so that the log and a SELECT agree. NULL stays NULL.
func (c *column) conceal(dst []byte, from int) []byte {
	value := dst[from:]
	if string(value) == "null" {
		return dst
	}
	plain := value
	if value[0] == '"' && c.form != formJSON && c.form != formGeometry {
		plain = unquoted(value)
	}
	switch c.mask.rule {
	case maskHash:
		mac := c.mask.macs.Get().(hash.Hash)
		defer c.mask.macs.Put(mac)
		mac.Reset()
		mac.Write(plain)
		var sum [sha256.Size]byte
		mac.Sum(sum[:0])
		dst = append(dst[:from], '"')
		dst = hex.AppendEncode(dst, sum[:])
		return append(dst, '"')
	case maskPartial:
		return cdc.AppendString(dst[:from], c.mask.partial(string(plain)))
	}
	return dst[:from]
}

// partial keeps the ends of a text. One that is no longer than they are shows
// nothing.
func (m *mask) partial(text string) string {
	if utf8.RuneCountInString(text) <= m.first+m.last {
		return hiddenText
	}
	from, to := 0, len(text)
	for range m.first {
		_, size := utf8.DecodeRuneInString(text[from:])
		from += size
	}
	for range m.last {
		_, size := utf8.DecodeLastRuneInString(text[:to])
		to -= size
	}
	return text[:from] + hiddenText + text[to:]
}

// unquoted is the text of a JSON string of ours.
func unquoted(value []byte) []byte {
	if !slices.Contains(value, '\\') {
		return value[1 : len(value)-1]
	}
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		panic("mysql: a row holds a string that is not JSON") // our own encoder wrote it
	}
	return []byte(text)
}

// wrong is an error about a value of the column, without the value where it is
// masked.
func (c *column) wrong(err error) error {
	if c.mask != nil && !errors.Is(err, errShort) && !errors.Is(err, errDamaged) {
		return fmt.Errorf("column %s: its value cannot be read, and is not shown because it is masked", c.name)
	}
	return fmt.Errorf("column %s: %w", c.name, err)
}

// masked reports whether a table has masks.
func (c Config) masked(t cdc.TableName) bool { return c.Masks != nil && len(c.Masks(t)) > 0 }
