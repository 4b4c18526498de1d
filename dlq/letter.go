package dlq

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// An open letter is one record of the letters' topic: its value is the refused record's
// value, and behind that record's own headers stand these. HeaderFormat is the first of
// them: everything before its last occurrence belongs to the refused record. The record
// that closes a letter has its key, these headers and no value, so that Kafka forgets it
// some time later (History).
const (
	// HeaderFormat is the format number of the letter's headers, now 2. Format 1 was that
	// of a topic that was not compacted.
	HeaderFormat = "lockstep.letter.format"
	// HeaderState is one of the States.
	HeaderState = "lockstep.letter.state"
	// HeaderSink is the name of the sink that refused the record.
	HeaderSink = "lockstep.letter.sink"
	// HeaderTopic, HeaderPartition and HeaderOffset say where the refused record
	// stands in its own topic.
	HeaderTopic     = "lockstep.letter.topic"
	HeaderPartition = "lockstep.letter.partition"
	HeaderOffset    = "lockstep.letter.offset"
	// HeaderRecordKey is the key of the refused record; it is missing when that has
	// none. HeaderNoValue is there when that has no value.
	HeaderRecordKey = "lockstep.letter.record_key"
	HeaderNoValue   = "lockstep.letter.no_value"
	// HeaderPartitions is in the end of a letter that has moved: how many partitions the
	// topic of its row has since.
	HeaderPartitions = "lockstep.letter.partitions"
	// HeaderTable ("db.table"), HeaderKey (the primary key as text, cut at 1 KiB),
	// HeaderVersion, HeaderGTID and HeaderCommitted (the commit time in the source) are
	// missing when the record could not be decoded.
	HeaderTable     = "lockstep.letter.table"
	HeaderKey       = "lockstep.letter.key"
	HeaderVersion   = "lockstep.letter.version"
	HeaderGTID      = "lockstep.letter.gtid"
	HeaderCommitted = "lockstep.letter.committed"
	// HeaderUndelivered is since when the store lacks the row, by the commit time of the
	// oldest change that it has not, or "unknown". It is missing when that is HeaderCommitted.
	HeaderUndelivered = "lockstep.letter.undelivered"
	// HeaderClass is one of sinks.Classes, and HeaderStage one of decode, shape and apply.
	HeaderClass = "lockstep.letter.class"
	HeaderStage = "lockstep.letter.stage"
	// HeaderReason is the store's own answer, without quoted values, cut at 1 KiB.
	HeaderReason = "lockstep.letter.reason"
	// HeaderFirstFailed and HeaderLastFailed are times in RFC 3339, as all here are.
	HeaderFirstFailed = "lockstep.letter.first_failed"
	HeaderLastFailed  = "lockstep.letter.last_failed"
	// HeaderFingerprint is the same for letters with the same cause: a hash of
	// sink, table, class and the reason without its numbers and values.
	HeaderFingerprint = "lockstep.letter.fingerprint"
	// HeaderRetryCount is how often the record was tried again.
	HeaderRetryCount = "x-retry-count"
	// HeaderApp is the version of lockstep that wrote the letter.
	HeaderApp = "lockstep.letter.app"
	// HeaderClosed is why a letter was closed.
	HeaderClosed = "lockstep.letter.closed"
	// HeaderPatchedBy says who has patched the row of the letter last, HeaderPatchedAt when,
	// and HeaderPatchedWas is the SHA-256 of the record's value as it was recorded first.
	// They are there when the value is not as it was recorded.
	HeaderPatchedBy  = "lockstep.letter.patched_by"
	HeaderPatchedAt  = "lockstep.letter.patched_at"
	HeaderPatchedWas = "lockstep.letter.patched_was"
)

// The names by which Kafka Connect describes a dead letter, for tools that know
// those.
const (
	ConnectTopic     = "__connect.errors.topic"
	ConnectPartition = "__connect.errors.partition"
	ConnectOffset    = "__connect.errors.offset"
	ConnectSink      = "__connect.errors.connector.name"
	ConnectTask      = "__connect.errors.task.id"
	ConnectStage     = "__connect.errors.stage"
	ConnectClass     = "__connect.errors.exception.class.name"
	ConnectReason    = "__connect.errors.exception.message"
)

// HeaderBytes is more than a letter is larger than the record it holds. The
// letters' topic and its publisher must take records that much larger than the
// change topics do, or the largest row could not be buried.
const HeaderBytes = 16 << 10

const (
	letterFormat = "2"
	// textBytes bounds the key and the reason in a header.
	textBytes = sinks.ReasonBytes
	// nameBytes bounds a name: MySQL's are at most 64 characters of 3 bytes.
	nameBytes = 512
	// keyBytes bounds the key of a letter: of a longer one its hash stands there.
	keyBytes = 1536
	// unknown is a time that nobody knows.
	unknown = "unknown"
)

// State of a letter.
type State string

// A letter is parked, or retrying and then exhausted, until it is closed by one of the
// others.
const (
	Parked     State = "parked"     // refused for good: it waits for a change of its row, or for a person
	Retrying   State = "retrying"   // refused for now: it is tried again by itself
	Exhausted  State = "exhausted"  // it was, as often as worker.retries says, and waits as a parked one does
	Resolved   State = "resolved"   // the store has the change
	Superseded State = "superseded" // the store has a newer one of the row, or the row is gone
	Skipped    State = "skipped"    // a person, or the configuration, has decided to leave it
)

// Moved ends a letter in a partition, because it stands in another one since the topics
// have more of them. It says nothing about the letter.
const Moved State = "moved"

// States lists every State: first the open ones, in the order of a letter's life.
var States = []State{Parked, Retrying, Exhausted, Resolved, Superseded, Skipped, Moved}

// Open reports whether a letter in this state waits for something.
func (s State) Open() bool { return s == Parked || s == Retrying || s == Exhausted }

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
	ID    string `json:"id"`
	Sink  string `json:"sink"`
	State State  `json:"state"`
	// Table, Key, Version, GTID and Committed are empty when the record could not be
	// decoded.
	Table     string      `json:"table,omitempty"` // db.table
	Key       string      `json:"key,omitempty"`   // the primary key as text
	Version   cdc.Version `json:"version,omitempty"`
	GTID      string      `json:"gtid,omitempty"`
	Committed time.Time   `json:"committed,omitzero"`
	// Undelivered is when the oldest change of the row was committed that the store lacks:
	// the letter's, or one of a letter that it has replaced. It is zero when nobody knows.
	Undelivered time.Time   `json:"undelivered,omitzero"`
	Class       sinks.Class `json:"class"`
	Stage       string      `json:"stage"`
	Reason      string      `json:"reason"`
	Retries     int         `json:"retries"`
	FirstFailed time.Time   `json:"first_failed"` // of the row, since the store had it
	LastFailed  time.Time   `json:"last_failed"`
	Fingerprint string      `json:"fingerprint"`
	App         string      `json:"app,omitempty"`    // the version of lockstep that wrote it
	Closed      string      `json:"closed,omitempty"` // why, when it is
	// Patched is there when the row is not as it was recorded.
	Patched *Patched `json:"patched,omitempty"`
	// Source is the place of the refused record.
	Source Place `json:"source"`
	// Bytes of the refused record's key and value.
	Bytes int `json:"bytes"`

	place     Place  // in the letters' topic
	also      []int  // other partitions of it where the letter is open, too, while it is moved
	key       string // of the letter
	recordKey []byte // of the refused record; nil when it has none
	noValue   bool   // the refused record has none
	among     int    // see HeaderPartitions
}

// Replayable reports whether the letter holds a change that can be applied. A
// record that could not be decoded can only be looked at and skipped.
func (l Letter) Replayable() bool { return l.Table != "" }

// MayBeOf reports whether a record that nobody can read may be of the row with this primary
// key as text: it is, when its own key can be read and is that one, and nobody knows when its
// key cannot be read.
func (l Letter) MayBeOf(key string) bool {
	text, err := cdc.KeyText(l.recordKey)
	return err != nil || text == key
}

// rowKey is the key of a row's letter: of (table, primary key) one can be open.
func rowKey(table cdc.TableName, key []byte) string {
	text := table.String() + "/" + string(key)
	if len(text) > keyBytes {
		return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text)))
	}
	return text
}

// refused is the letter of a refusal; it has no place yet.
func (l *Letters) refused(r sinks.Refusal) Letter {
	letter := Letter{
		Sink:        l.Sink,
		State:       Parked,
		Class:       r.Class,
		Stage:       stage(r.Class),
		Reason:      sinks.Redact(r.Class, r.Reason),
		FirstFailed: r.Failed,
		LastFailed:  r.Failed,
		App:         sinks.Clip(l.App, nameBytes),
		Source:      Place{r.Record.Topic, r.Record.Partition, r.Record.Offset},
		recordKey:   r.Record.Key,
		noValue:     r.Record.Value == nil,
	}
	letter.key = letter.Source.String() // what nobody can read stands for itself
	if c := r.Change; c != nil {
		letter.key = rowKey(c.Table, c.Key)
		letter.Table = sinks.Clip(c.Table.String(), nameBytes)
		letter.Version = c.Version
		letter.GTID = sinks.Clip(c.GTID, nameBytes)
		if c.CommitMicros > 0 {
			letter.Committed = time.UnixMicro(c.CommitMicros).UTC()
			letter.Undelivered = letter.Committed
		}
		if text, err := cdc.KeyText(c.Key); err == nil {
			letter.Key = sinks.Clip(text, textBytes)
		}
	}
	letter.Fingerprint = sinks.Fingerprint(letter.Sink, letter.Table, letter.Class, letter.Reason)
	return letter
}

// inherit takes over since when the store lacks the row from the letter that l replaces, to
// the second below. Where nobody knows that of the older change, nobody does of the row.
func (l *Letter) inherit(older card) {
	if at := time.Unix(int64(older.failed), 0).UTC(); at.Before(l.FirstFailed) {
		l.FirstFailed = at
	}
	at := time.Unix(int64(older.undelivered), 0).UTC()
	switch {
	case older.undelivered == 0:
		l.Undelivered = time.Time{}
	case l.Undelivered.IsZero() || at.Before(l.Undelivered):
		l.Undelivered = at
	}
}

// stage is how far a refused record had come.
func stage(c sinks.Class) string {
	switch c {
	case sinks.ClassUndecodable:
		return "decode"
	case sinks.ClassShape:
		return "shape"
	}
	return "apply"
}

// connectStages are Kafka Connect's names of the stages.
var connectStages = map[string]string{"decode": "VALUE_CONVERTER", "shape": "TRANSFORMATION", "apply": "TASK_PUT"}

// headers are those of the letter in its state.
func (l Letter) headers() []cdc.Header {
	var h []cdc.Header
	add := func(key, value string) {
		if value != "" {
			h = append(h, cdc.Header{Key: key, Value: []byte(value)})
		}
	}
	when := func(key string, t time.Time) {
		if !t.IsZero() {
			add(key, t.UTC().Format(time.RFC3339Nano))
		}
	}
	add(HeaderFormat, letterFormat)
	add(HeaderState, string(l.State))
	add(HeaderSink, l.Sink)
	add(HeaderTopic, l.Source.Topic)
	add(HeaderPartition, strconv.Itoa(l.Source.Partition))
	add(HeaderOffset, strconv.FormatInt(l.Source.Offset, 10))
	if l.recordKey != nil {
		h = append(h, cdc.Header{Key: HeaderRecordKey, Value: l.recordKey})
	}
	if l.noValue {
		add(HeaderNoValue, "true")
	}
	add(HeaderTable, l.Table)
	add(HeaderKey, l.Key)
	if l.Version != 0 {
		add(HeaderVersion, l.Version.String())
	}
	add(HeaderGTID, l.GTID)
	when(HeaderCommitted, l.Committed)
	switch {
	case l.Undelivered.Equal(l.Committed):
	case l.Undelivered.IsZero():
		add(HeaderUndelivered, unknown)
	default:
		when(HeaderUndelivered, l.Undelivered)
	}
	add(HeaderClass, string(l.Class))
	add(HeaderStage, l.Stage)
	add(HeaderReason, l.Reason)
	when(HeaderFirstFailed, l.FirstFailed)
	when(HeaderLastFailed, l.LastFailed)
	add(HeaderFingerprint, l.Fingerprint)
	add(HeaderRetryCount, strconv.Itoa(l.Retries))
	add(HeaderApp, l.App)
	add(HeaderClosed, l.Closed)
	if p := l.Patched; p != nil {
		add(HeaderPatchedBy, p.By)
		when(HeaderPatchedAt, p.At)
		add(HeaderPatchedWas, p.Was)
	}
	if l.State == Moved {
		add(HeaderPartitions, strconv.Itoa(l.among))
	}
	if !l.State.Open() {
		return h
	}
	add(ConnectTopic, l.Source.Topic)
	add(ConnectPartition, strconv.Itoa(l.Source.Partition))
	add(ConnectOffset, strconv.FormatInt(l.Source.Offset, 10))
	add(ConnectSink, l.Sink)
	add(ConnectTask, strconv.Itoa(l.Source.Partition))
	add(ConnectStage, connectStages[l.Stage])
	add(ConnectClass, string(l.Class))
	add(ConnectReason, l.Reason)
	return h
}

// ErrFormat is wrapped when a letter has another format number than this program knows.
// Nobody can tell what it means, so whatever was to be done is not.
var ErrFormat = errors.New("letter of another format")

// read is the letter in a record of the letters' topic. What is none counts as an
// undecodable record that was refused where it stands, so that it is seen.
func (l *Letters) read(r kafka.Record) (Letter, error) {
	letter, err := readHeaders(l.Sink, r)
	letter.ID = letterID(l.Sink, letter.identity())
	return letter, err
}

func readHeaders(sink string, r kafka.Record) (Letter, error) {
	l := Letter{
		Sink:      sink,
		place:     Place{r.Topic, r.Partition, r.Offset},
		key:       string(r.Key),
		recordKey: r.Key,
	}
	own := ownHeaders(r.Headers)
	values := make(map[string]string, len(r.Headers)-own)
	for _, h := range r.Headers[own:] {
		values[h.Key] = string(h.Value)
	}
	fail := func(format string, args ...any) (Letter, error) {
		l = Letter{Sink: sink, place: l.place, key: l.key, recordKey: r.Key} // with no version it hides no letter
		l.Reason = "not a letter: " + fmt.Sprintf(format, args...)
		l.State, l.Class, l.Stage = Parked, sinks.ClassUndecodable, stage(sinks.ClassUndecodable)
		l.Source, l.FirstFailed, l.LastFailed = l.place, r.Time, r.Time
		l.Fingerprint = sinks.Fingerprint(sink, "", l.Class, l.Reason)
		if r.Value == nil {
			l.State = Skipped // the end of what has no version; else it says nothing
		}
		return l, nil
	}
	format, ok := values[HeaderFormat]
	switch {
	case !ok:
		return fail("header %s is missing", HeaderFormat)
	case format != letterFormat:
		return l, fmt.Errorf("%w: %s has format %q and this lockstep knows %s; settle it with the lockstep that wrote it (header %s: %q)",
			ErrFormat, l.place, format, letterFormat, HeaderApp, values[HeaderApp])
	}
	l.State = State(values[HeaderState])
	if !slices.Contains(States, l.State) {
		return fail("header %s is %q", HeaderState, l.State)
	}
	if l.State.Open() != (r.Value != nil) {
		return fail("header %s is %q, and it has a value: %t", HeaderState, l.State, r.Value != nil)
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
	l.recordKey = nil
	if key, ok := values[HeaderRecordKey]; ok {
		l.recordKey = []byte(key)
	}
	_, l.noValue = values[HeaderNoValue]
	l.Bytes = len(l.recordKey) + len(r.Value)
	l.Table = values[HeaderTable]
	l.Key = values[HeaderKey]
	l.GTID = values[HeaderGTID]
	l.Class = sinks.Class(values[HeaderClass])
	l.Stage = values[HeaderStage]
	l.Reason = values[HeaderReason]
	if l.Retries = int(number(HeaderRetryCount)); l.Retries < 0 {
		bad = HeaderRetryCount
	}
	l.FirstFailed = when(HeaderFirstFailed)
	l.LastFailed = when(HeaderLastFailed)
	l.Fingerprint = values[HeaderFingerprint]
	l.App, l.Closed = values[HeaderApp], values[HeaderClosed]
	l.Source = Place{values[HeaderTopic], int(number(HeaderPartition)), number(HeaderOffset)}
	if l.State == Moved {
		l.among = int(number(HeaderPartitions))
	}
	if text := values[HeaderVersion]; text != "" {
		var err error
		if l.Version, err = cdc.ParseVersion(text); err != nil {
			bad = HeaderVersion
		}
	}
	if values[HeaderCommitted] != "" {
		l.Committed = when(HeaderCommitted)
	}
	switch values[HeaderUndelivered] {
	case "":
		l.Undelivered = l.Committed
	case unknown:
	default:
		l.Undelivered = when(HeaderUndelivered)
	}
	if by := values[HeaderPatchedBy]; by != "" {
		l.Patched = &Patched{by, when(HeaderPatchedAt), values[HeaderPatchedWas]}
	}
	if bad != "" {
		return fail("header %s is %q", bad, values[bad])
	}
	return l, nil
}

// original is the refused record as it stood in its own topic.
func original(l Letter, r kafka.Record) kafka.Record {
	r.Topic, r.Partition, r.Offset = l.Source.Topic, l.Source.Partition, l.Source.Offset
	r.Key = l.recordKey
	if l.noValue {
		r.Value = nil
	}
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

// identity stands for the key of a letter. Of a key one letter can be open.
type identity [16]byte

func identify(key string) identity {
	sum := sha256.Sum256([]byte(key))
	return identity(sum[:16])
}

func (l *Letter) identity() identity { return identify(l.key) }

func letterID(sink string, id identity) string { return fmt.Sprintf("%s-%x", sink, id[:6]) }
