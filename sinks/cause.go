package sinks

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"unicode/utf8"
)

// ReasonBytes bounds a reason that is kept or shown.
const ReasonBytes = 1 << 10

// quoted is from the first quotation mark that stands behind no letter to the last one,
// because a value may have quotation marks in it: "field's value: 'it's'".
var quoted = regexp.MustCompile(`(?s)(\B'|").*['"]`)

// Redact takes out what a store quotes from the row, and cuts the rest to ReasonBytes.
// Our own reasons quote the configuration and stay as they are. What is redacted already
// it leaves alone.
func Redact(c Class, reason string) string {
	reason = strings.ToValidUTF8(reason, "?")
	switch c {
	case ClassKey, ClassUndecodable, ClassTooLarge, ClassNoTable:
	default:
		reason = quoted.ReplaceAllString(reason, "'?'")
	}
	return Clip(reason, ReasonBytes)
}

// redact leaves nothing of the row in what the store says of a change that it refused.
func (o *Outcome) redact() {
	if o.Verdict == Transient || o.Verdict == Poison {
		o.Reason = Redact(known(o.Class), o.Reason)
	}
}

// What differs between two refusals for the same cause.
var varying = []struct {
	what *regexp.Regexp
	by   string
}{
	{quoted, `''`},
	{regexp.MustCompile(`\bid \[[^\]]*\]`), `id []`},
	{regexp.MustCompile(`\b[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b`), `#`},
	{regexp.MustCompile(`\b[0-9]*[a-fA-F]*[0-9][0-9a-fA-F]{7,}\b`), `#`},
	{regexp.MustCompile(`[+-]?\b\d+(?:[.:,]\d+)*\b`), `#`},
}

// Fingerprint tells the cause of a refusal, of a change in flight as of a dead letter: of
// two with the same one, sink, table, class and words are equal but for numbers, quoted
// values and ids. The path of a field stays. The table is empty for a record that nobody
// can read. It is 12 hexadecimal digits.
func Fingerprint(sink, table string, c Class, reason string) string {
	reason = Redact(c, reason)
	for _, v := range varying {
		reason = v.what.ReplaceAllString(reason, v.by)
	}
	reason = strings.Join(strings.Fields(reason), " ")
	sum := sha256.Sum256([]byte(strings.Join([]string{sink, table, string(known(c)), reason}, "\x00")))
	return hex.EncodeToString(sum[:6])
}

// Clip cuts valid text to at most max bytes, between two characters.
func Clip(text string, max int) string {
	if text = strings.ToValidUTF8(text, "?"); len(text) <= max {
		return text
	}
	end := max - len("…")
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}
