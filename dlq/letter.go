package dlq

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// A letter is the refused record itself, key, value and headers untouched, with
// these headers behind its own. HeaderFormat is the first of them: everything
// before its last occurrence belongs to the refused record.
const (
	// HeaderFormat is the format number of the letter's headers, now 1.
	HeaderFormat = "lockstep.letter.format"
	// HeaderState is parked for a letter. A record with another state closes the
	// letters of its key that stand before it and are not newer: resolved (the
	// store has the change), superseded (the store has a newer one) or skipped (a
	// person decided to leave it).
	HeaderState = "lockstep.letter.state"
	// HeaderSink is the name of the sink that refused the record.
	HeaderSink = "lockstep.letter.sink"
	// HeaderTopic, HeaderPartition and HeaderOffset say where the refused record
	// stands in its own topic.
	HeaderTopic     = "lockstep.letter.topic"
	HeaderPartition = "lockstep.letter.partition"
	HeaderOffset    = "lockstep.letter.offset"
	// HeaderTable ("db.table"), HeaderKey (the primary key as text, cut at 1 KiB),
	// HeaderVersion and HeaderGTID are missing when the record could not be decoded.
	HeaderTable   = "lockstep.letter.table"
	HeaderKey     = "lockstep.letter.key"
	HeaderVersion = "lockstep.letter.version"
	HeaderGTID    = "lockstep.letter.gtid"
	// HeaderClass is one of sinks.Classes.
	HeaderClass = "lockstep.letter.class"
	// HeaderReason is the store's own answer, without quoted values, cut at 1 KiB;
	// in a record that closes letters it is why they were closed.
	HeaderReason = "lockstep.letter.reason"
	// HeaderFirstFailed and HeaderLastFailed are times in RFC 3339.
	HeaderFirstFailed = "lockstep.letter.first_failed"
	HeaderLastFailed  = "lockstep.letter.last_failed"
	// HeaderFingerprint is the same for letters with the same cause: a hash of
	// sink, table, class and the reason without its numbers and values.
	HeaderFingerprint = "lockstep.letter.fingerprint"
	// HeaderRetryCount is how often the record was tried again: by the worker before
	// it became a letter, and by every replay since.
	HeaderRetryCount = "x-retry-count"
)

// The names by which Kafka Connect describes a dead letter, for tools that know
// those.
const (
	ConnectTopic     = "__connect.errors.topic"
	ConnectPartition = "__connect.errors.partition"
	ConnectOffset    = "__connect.errors.offset"
	ConnectSink      = "__connect.errors.connector.name"
	ConnectClass     = "__connect.errors.exception.class.name"
	ConnectReason    = "__connect.errors.exception.message"
)

// HeaderBytes is more than a letter is larger than the record it holds. The
// letters' topic and its publisher must take records that much larger than the
// change topics do, or the largest row could not be buried.
const HeaderBytes = 8 << 10

const (
	letterFormat = "1"
	// textBytes bounds the key and the reason in a header.
	textBytes = 1 << 10
	// nameBytes bounds a name: MySQL's are at most 64 characters of 3 bytes.
	nameBytes = 512
)

// State of a letter, or of the record that closes one.
type State string

const (
	Parked     State = "parked"
	Resolved   State = "resolved"
	Superseded State = "superseded"
	Skipped    State = "skipped"
)

// What a dry run says of a letter that a replay would not leave parked. No letter is
// ever in these states.
const (
	WouldApply     State = "would be applied"
	WouldSupersede State = "would be superseded"
)

// Place is a record's place in Kafka.
type Place struct {
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	Offset    int64  `json:"offset"`
}

func (p Place) String() string { return fmt.Sprintf("%s/%d/%d", p.Topic, p.Partition, p.Offset) }

// Letter is a dead letter without the record it holds.
type Letter struct {
	// ID names the letter within its pipeline, "search-5f0c2a91d37e". It is made of
	// sink, table and key, so that it stays when a replay is refused again.
	ID   string `json:"id"`
	Sink string `json:"sink"`
	// Table, Key and Version are empty when the record could not be decoded.
	Table       string      `json:"table,omitempty"` // db.table
	Key         string      `json:"key,omitempty"`   // the primary key as text
	Version     cdc.Version `json:"version,omitempty"`
	GTID        string      `json:"gtid,omitempty"`
	Class       sinks.Class `json:"class"`
	Reason      string      `json:"reason"`
	Retries     int         `json:"retries"`
	FirstFailed time.Time   `json:"first_failed"`
	LastFailed  time.Time   `json:"last_failed"`
	Fingerprint string      `json:"fingerprint"`
	// Source is the place of the refused record.
	Source Place `json:"source"`
	// Bytes of the refused record's key and value.
	Bytes int `json:"bytes"`

	place Place
	state State
	key   string // the record's key, byte for byte
	noKey bool   // the record has no key
}

// Replayable reports whether the letter holds a change that can be applied. A
// record that could not be decoded can only be looked at and skipped.
func (l Letter) Replayable() bool { return l.Table != "" }

// refused is the letter of a refusal; it has no place yet.
func refused(sink string, r sinks.Refusal) Letter {
	l := Letter{
		Sink:        sink,
		Class:       r.Class,
		Reason:      clip(redact(r.Class, r.Reason), textBytes),
		Retries:     r.Retries,
		FirstFailed: r.FirstFailed,
		LastFailed:  r.LastFailed,
		Source:      Place{r.Record.Topic, r.Record.Partition, r.Record.Offset},
	}
	if c := r.Change; c != nil {
		l.Table = clip(c.Table.String(), nameBytes)
		l.Version = c.Version
		l.GTID = clip(c.GTID, nameBytes)
		if text, err := cdc.KeyText(c.Key); err == nil {
			l.Key = clip(text, textBytes)
		}
	}
	l.Fingerprint = fingerprint(l.Sink, l.Table, l.Class, l.Reason)
	return l
}

// headers are those of the letter, in the state it is to have.
func (l Letter) headers(state State) []cdc.Header {
	var h []cdc.Header
	add := func(key, value string) {
		if value != "" {
			h = append(h, cdc.Header{Key: key, Value: []byte(value)})
		}
	}
	add(HeaderFormat, letterFormat)
	add(HeaderState, string(state))
	add(HeaderSink, l.Sink)
	add(HeaderTopic, l.Source.Topic)
	add(HeaderPartition, strconv.Itoa(l.Source.Partition))
	add(HeaderOffset, strconv.FormatInt(l.Source.Offset, 10))
	add(HeaderTable, l.Table)
	add(HeaderKey, l.Key)
	if l.Version != 0 {
		add(HeaderVersion, l.Version.String())
	}
	add(HeaderGTID, l.GTID)
	add(HeaderClass, string(l.Class))
	add(HeaderReason, l.Reason)
	add(HeaderFirstFailed, l.FirstFailed.UTC().Format(time.RFC3339Nano))
	add(HeaderLastFailed, l.LastFailed.UTC().Format(time.RFC3339Nano))
	add(HeaderFingerprint, l.Fingerprint)
	add(HeaderRetryCount, strconv.Itoa(l.Retries))
	if state == Parked {
		add(ConnectTopic, l.Source.Topic)
		add(ConnectPartition, strconv.Itoa(l.Source.Partition))
		add(ConnectOffset, strconv.FormatInt(l.Source.Offset, 10))
		add(ConnectSink, l.Sink)
		add(ConnectClass, string(l.Class))
		add(ConnectReason, l.Reason)
	}
	return h
}

// read is the letter in a record of the letters' topic. What is none counts as an
// undecodable record that was refused where it stands, so that it is seen.
func read(sink string, r kafka.Record) Letter {
	l := readHeaders(sink, r)
	id := l.identity()
	l.ID = fmt.Sprintf("%s-%x", sink, id[:6])
	return l
}

func readHeaders(sink string, r kafka.Record) Letter {
	l := Letter{
		Sink:  sink,
		Bytes: len(r.Key) + len(r.Value),
		place: Place{r.Topic, r.Partition, r.Offset},
		key:   string(r.Key),
		noKey: r.Key == nil,
	}
	own := ownHeaders(r.Headers)
	values := make(map[string]string, len(r.Headers)-own)
	for _, h := range r.Headers[own:] {
		values[h.Key] = string(h.Value)
	}
	fail := func(reason string) Letter {
		l.state, l.Class, l.Reason = Parked, sinks.ClassUndecodable, reason
		l.Source, l.FirstFailed, l.LastFailed = l.place, r.Time, r.Time
		return l
	}
	if format := values[HeaderFormat]; format != letterFormat {
		return fail(fmt.Sprintf("not a letter: header %s is %q, not %s", HeaderFormat, format, letterFormat))
	}
	l.state = State(values[HeaderState])
	switch l.state {
	case Parked, Resolved, Superseded, Skipped:
	default:
		return fail(fmt.Sprintf("not a letter: header %s is %q", HeaderState, l.state))
	}
	var bad string
	number := func(header string) int64 {
		n, err := strconv.ParseInt(values[header], 10, 64)
		if err != nil {
			bad = header
		}
		return n
	}
	when := func(header string) time.Time {
		t, err := time.Parse(time.RFC3339Nano, values[header])
		if err != nil {
			bad = header
		}
		return t
	}
	l.Table = values[HeaderTable]
	l.Key = values[HeaderKey]
	l.GTID = values[HeaderGTID]
	l.Class = sinks.Class(values[HeaderClass])
	l.Reason = values[HeaderReason]
	l.Retries = int(number(HeaderRetryCount))
	l.FirstFailed = when(HeaderFirstFailed)
	l.LastFailed = when(HeaderLastFailed)
	l.Fingerprint = values[HeaderFingerprint]
	l.Source = Place{values[HeaderTopic], int(number(HeaderPartition)), number(HeaderOffset)}
	if text := values[HeaderVersion]; text != "" {
		l.Version = cdc.Version(number(HeaderVersion))
	}
	if bad != "" {
		return fail(fmt.Sprintf("not a letter: header %s is %q", bad, values[bad]))
	}
	return l
}

// original is the refused record as it stood in its own topic.
func original(l Letter, r kafka.Record) kafka.Record {
	r.Topic, r.Partition, r.Offset = l.Source.Topic, l.Source.Partition, l.Source.Offset
	r.Headers = r.Headers[:ownHeaders(r.Headers)]
	return r
}

// ownHeaders is how many headers belong to the refused record: those before the
// last HeaderFormat, or all.
func ownHeaders(headers []cdc.Header) int {
	for i := len(headers) - 1; i >= 0; i-- {
		if headers[i].Key == HeaderFormat {
			return i
		}
	}
	return len(headers)
}

// identity is equal for letters of which only one can be open: those of one row.
// A record that could not be decoded stands for itself alone.
type identity [16]byte

func (l *Letter) identity() identity {
	text := "row\x00" + l.Table + "\x00" + l.key
	if l.Table == "" || l.noKey {
		text = "record\x00" + l.Source.String()
	}
	sum := sha256.Sum256([]byte(text))
	return identity(sum[:16])
}

var (
	// Greedy, and only behind something that is no letter: "field's value: 'it's'".
	quoted  = regexp.MustCompile(`(?s)\B'.*'|".*"`)
	numbers = regexp.MustCompile(`\b([0-9][\w.:+-]*|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27})`)
)

// redact takes out what a store quotes from the row. Our own reasons quote the
// configuration and stay as they are.
func redact(class sinks.Class, reason string) string {
	reason = strings.ToValidUTF8(reason, "?")
	switch class {
	case sinks.ClassKey, sinks.ClassUndecodable, sinks.ClassTooLarge, sinks.ClassNoTable:
		return reason
	}
	return quoted.ReplaceAllString(reason, "'?'")
}

func fingerprint(sink, table string, class sinks.Class, reason string) string {
	reason = numbers.ReplaceAllString(quoted.ReplaceAllString(reason, "?"), "#")
	sum := sha256.Sum256([]byte(strings.Join([]string{sink, table, string(class), reason}, "\x00")))
	return hex.EncodeToString(sum[:6])
}

// clip cuts valid text to at most max bytes, between two characters.
func clip(text string, max int) string {
	if text = strings.ToValidUTF8(text, "?"); len(text) <= max {
		return text
	}
	end := max - len("…")
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}
