package dlq

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

const base = cdc.Version(1 << 42)

var (
	questions = cdc.TableName{DB: "bank", Table: "questions"}
	failed    = time.Date(2026, 11, 22, 8, 15, 30, 123456000, time.UTC)
)

// memory is a Log in memory.
type memory struct {
	records map[string][]kafka.Record
	down    error
}

func (m *memory) Produce(_ context.Context, r kafka.Record) error {
	if m.down != nil {
		return m.down
	}
	if m.records == nil {
		m.records = map[string][]kafka.Record{}
	}
	r.Offset = int64(len(m.records[r.Topic]))
	m.records[r.Topic] = append(m.records[r.Topic], r)
	return nil
}

func (m *memory) ProduceAll(ctx context.Context, records ...kafka.Record) error {
	for _, r := range records {
		if err := m.Produce(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) ReadAll(_ context.Context, topic string, fn func(kafka.Record) error) error {
	for _, r := range slices.Clone(m.records[topic]) {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

func newLetters() (*Letters, *memory) {
	m := &memory{}
	return &Letters{Sink: "es", Topic: "shop.dlq.es", App: "1.2.3", Log: m}, m
}

// refusal is what a worker buries: a real record of the change.
func refusal(id int, v cdc.Version, reason string) sinks.Refusal {
	c := &cdc.Change{
		Table: questions, Op: cdc.OpUpdate, Version: v, GTID: "a-b-c:7",
		CommitMicros: failed.Add(-time.Second).UnixMicro(),
		Key:          fmt.Appendf(nil, `{"id":%d}`, id),
		After:        fmt.Appendf(nil, `{"id":%d,"title":"t%d"}`, id, v),
	}
	return sinks.Refusal{
		Record: kafka.Record{
			Topic: "shop.bank.questions", Partition: 3, Offset: int64(v - base),
			Key: c.Key, Value: c.AppendValue(nil, "shop"), Headers: c.Headers(),
		},
		Change: c, Class: sinks.ClassMapping, Reason: reason,
		Failed: failed,
	}
}

func undecodable(offset int64, key []byte) sinks.Refusal {
	return sinks.Refusal{
		Record: kafka.Record{Topic: "shop.bank.questions", Partition: 1, Offset: offset, Key: key, Value: []byte("\xff\x00")},
		Class:  sinks.ClassUndecodable, Reason: `header lockstep.format is missing`, Failed: failed,
	}
}

func bury(t testing.TB, l *Letters, refusals ...sinks.Refusal) {
	t.Helper()
	for _, r := range refusals {
		if err := l.Bury(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
}

func list(t testing.TB, l *Letters, f Filter) []Letter {
	t.Helper()
	letters, err := l.List(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return letters
}

// rows spells letters as key@version.
func rows(letters []Letter) string {
	var words []string
	for _, l := range letters {
		words = append(words, fmt.Sprintf("%s@%d", l.Key, int64(l.Version)-int64(base)))
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func expect[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(kafka.Record{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestALetterIsTheUntouchedRecordWithItsReason(t *testing.T) {
	l, log := newLetters()
	r := refusal(7, base+5, "mapper_parsing_exception: failed to parse field [price] of type [long]. Preview of field's value: 'it's 12'")
	own := slices.Clone(r.Record.Headers)
	bury(t, l, r)

	got := log.records["shop.dlq.es"][0]
	expect(t, "partition", got.Partition, 3)
	expect(t, "key", string(got.Key), `bank.questions/{"id":7}`)
	expect(t, "value", string(got.Value), string(r.Record.Value))
	expect(t, "own headers", got.Headers[:len(own)], own)
	headers := map[string]string{}
	for _, h := range got.Headers[len(own):] {
		headers[h.Key] = string(h.Value)
	}
	const reason = "mapper_parsing_exception: failed to parse field [price] of type [long]. Preview of field's value: '?'"
	expect(t, "headers", headers, map[string]string{
		"lockstep.letter.format":                "2",
		"lockstep.letter.state":                 "parked",
		"lockstep.letter.sink":                  "es",
		"lockstep.letter.topic":                 "shop.bank.questions",
		"lockstep.letter.partition":             "3",
		"lockstep.letter.offset":                "5",
		"lockstep.letter.record_key":            `{"id":7}`,
		"lockstep.letter.table":                 "bank.questions",
		"lockstep.letter.key":                   "7",
		"lockstep.letter.version":               "4398046511109",
		"lockstep.letter.gtid":                  "a-b-c:7",
		"lockstep.letter.committed":             "2026-11-22T08:15:29.123456Z",
		"lockstep.letter.class":                 "mapping",
		"lockstep.letter.stage":                 "apply",
		"lockstep.letter.reason":                reason,
		"lockstep.letter.first_failed":          "2026-11-22T08:15:30.123456Z",
		"lockstep.letter.last_failed":           "2026-11-22T08:15:30.123456Z",
		"lockstep.letter.fingerprint":           headers["lockstep.letter.fingerprint"],
		"x-retry-count":                         "0",
		"lockstep.letter.app":                   "1.2.3",
		"__connect.errors.topic":                "shop.bank.questions",
		"__connect.errors.partition":            "3",
		"__connect.errors.offset":               "5",
		"__connect.errors.connector.name":       "es",
		"__connect.errors.task.id":              "3",
		"__connect.errors.stage":                "TASK_PUT",
		"__connect.errors.exception.class.name": "mapping",
		"__connect.errors.exception.message":    reason,
	})

	letter := list(t, l, Filter{})[0]
	text, err := json.MarshalIndent(letter, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "listed", string(text), `{
 "id": "`+letter.ID+`",
 "sink": "es",
 "state": "parked",
 "table": "bank.questions",
 "key": "7",
 "version": 4398046511109,
 "gtid": "a-b-c:7",
 "committed": "2026-11-22T08:15:29.123456Z",
 "undelivered": "2026-11-22T08:15:29.123456Z",
 "class": "mapping",
 "stage": "apply",
 "reason": "`+reason+`",
 "retries": 0,
 "first_failed": "2026-11-22T08:15:30.123456Z",
 "last_failed": "2026-11-22T08:15:30.123456Z",
 "fingerprint": "`+headers["lockstep.letter.fingerprint"]+`",
 "app": "1.2.3",
 "source": {
  "topic": "shop.bank.questions",
  "partition": 3,
  "offset": 5
 },
 "bytes": `+fmt.Sprint(len(r.Record.Key)+len(r.Record.Value))+`
}`)
	err = l.Records(t.Context(), []Letter{letter}, func(_ Letter, record kafka.Record) error {
		expect(t, "original", record, r.Record)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheLargestHeadersFitTheRoomTheyAreGiven(t *testing.T) {
	l, log := newLetters()
	r := refusal(1, base, strings.Repeat("€", 5000))
	r.Record.Topic = strings.Repeat("t", 249)
	r.Record.Partition, r.Record.Offset = 1<<31, 1<<62
	r.Change.Table = cdc.TableName{DB: strings.Repeat("€", 64), Table: strings.Repeat("€", 64)}
	r.Change.Key = fmt.Appendf(nil, `{"id":"%s"}`, strings.Repeat("€", 1000))
	r.Change.GTID = strings.Repeat("g", 5000)
	r.Record.Key = r.Change.Key
	l.App = strings.Repeat("v", 5000)
	bury(t, l, r)
	got := log.records[l.Topic][0]
	if grown := got.Size() - r.Record.Size(); grown > HeaderBytes {
		t.Errorf("a letter is %d bytes larger than its record, HeaderBytes is %d", grown, HeaderBytes)
	}
	for _, h := range got.Headers[len(r.Record.Headers):] {
		if h.Key == HeaderRecordKey {
			continue
		}
		if !utf8.Valid(h.Value) || len(h.Value) > textBytes {
			t.Errorf("header %s is not valid text of at most %d bytes: %q", h.Key, textBytes, h.Value)
		}
	}
	if len(got.Key) > keyBytes {
		t.Errorf("the key has %d bytes", len(got.Key))
	}
	letter := list(t, l, Filter{})[0]
	expect(t, "table", letter.Table, r.Change.Table.String())
}

func TestOneLetterIsOpenPerRowTheNewest(t *testing.T) {
	l, _ := newLetters()
	bury(t, l, refusal(1, base+5, "a"), refusal(1, base+3, "a"), refusal(2, base+4, "a"), refusal(2, base+6, "a"), refusal(2, base+6, "b"))
	letters := list(t, l, Filter{})
	expect(t, "open", rows(letters), "1@5 2@6")
	expect(t, "of the same version the later one", letters[1].Reason, "b")
}

func TestAClosedLetterIsGoneUntilTheRowIsRefusedAgain(t *testing.T) {
	l, _ := newLetters()
	bury(t, l, refusal(1, base+5, "a"), refusal(2, base+5, "a"))
	letters := list(t, l, Filter{Key: "1"})
	bury(t, l, refusal(1, base+4, "a")) // redelivered
	if err := l.Skip(t.Context(), letters[0], "known"); err != nil {
		t.Fatal(err)
	}
	expect(t, "open", rows(list(t, l, Filter{})), "2@5")
	bury(t, l, refusal(1, base+5, "a"))
	expect(t, "refused again", rows(list(t, l, Filter{})), "1@5 2@5")
	bury(t, l, refusal(1, base+6, "a"))
	if err := l.Skip(t.Context(), letters[0], "known"); err != nil {
		t.Fatal(err)
	}
	expect(t, "closing an older letter leaves the newer", rows(list(t, l, Filter{})), "1@6 2@5")
	if err := l.Skip(t.Context(), letters[0], " "); err == nil {
		t.Error("skipped without a reason")
	}
}

func TestUndecodableRecordsStandForThemselves(t *testing.T) {
	l, log := newLetters()
	empty := undecodable(6, nil)
	empty.Record.Value = nil
	bury(t, l, undecodable(1, nil), undecodable(2, nil), undecodable(3, []byte("k")), undecodable(4, []byte("k")), undecodable(4, []byte("k")), empty)
	if err := log.Produce(t.Context(), kafka.Record{Topic: l.Topic, Key: []byte("k"), Value: []byte("by hand")}); err != nil {
		t.Fatal(err)
	}
	letters := list(t, l, Filter{})
	var places []string
	for _, letter := range letters {
		places = append(places, letter.Source.String())
	}
	slices.Sort(places)
	expect(t, "open", places, []string{
		"shop.bank.questions/1/1", "shop.bank.questions/1/2", "shop.bank.questions/1/3", "shop.bank.questions/1/4", "shop.bank.questions/1/6", "shop.dlq.es/0/6",
	})
	if err := l.Records(t.Context(), letters, func(letter Letter, r kafka.Record) error {
		if letter.Source.Offset == 6 && letter.Source.Topic != l.Topic {
			expect(t, "a record without key and value keeps having none", []bool{r.Key == nil, r.Value == nil}, []bool{true, true})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := l.Replay(t.Context(), letters, nil, ReplayOptions{Progress: func(l Letter, r Result) {
		if r.State != Parked || !strings.Contains(r.Reason, "could not be decoded") {
			t.Errorf("replay of %s says %+v", l.ID, r)
		}
	}}); err != nil {
		t.Fatal(err)
	}
	for _, letter := range letters {
		if err := l.Skip(t.Context(), letter, "junk"); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "open after skipping", len(list(t, l, Filter{})), 0)
}

// A letter of another format means what nobody here knows: nothing is done with any.
func TestALetterOfAnotherFormatIsRefusedByName(t *testing.T) {
	l, log := newLetters()
	bury(t, l, refusal(1, base+1, "a"))
	for _, format := range []string{"1", "3"} {
		r := refusal(2, base+1, "a").Record
		r.Topic, r.Key = l.Topic, []byte("k")
		r.Headers = append(r.Headers, cdc.Header{Key: HeaderFormat, Value: []byte(format)}, cdc.Header{Key: HeaderApp, Value: []byte("0.9")})
		log.records[l.Topic] = append(log.records[l.Topic][:1], r)
		_, err := l.List(t.Context(), Filter{})
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), `has format "`+format+`" and this lockstep knows 2; settle it with the lockstep that wrote it (header lockstep.letter.app: "0.9")`) {
			t.Errorf("format %s: %v", format, err)
		}
	}
}

// What a stranger writes over a letter, a bare end of its key too, hides no row.
func TestWhatIsNoLetterHidesNone(t *testing.T) {
	l, log := newLetters()
	bury(t, l, refusal(1, base+1, "a"))
	key := log.records[l.Topic][0].Key
	for _, r := range []kafka.Record{{Key: key}, {Key: key, Value: []byte("?")}} {
		r.Topic = l.Topic
		if err := log.Produce(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "open", rows(list(t, l, Filter{})), "1@1")
}

func TestALetterThatLandedInASourceTopicIsBuriedWholeAsWell(t *testing.T) {
	l, log := newLetters()
	bury(t, l, refusal(1, base, "a"))
	stray := undecodable(9, []byte("k"))
	stray.Record.Headers = log.records[l.Topic][0].Headers
	bury(t, l, stray)
	letters := list(t, l, Filter{Class: sinks.ClassUndecodable})
	expect(t, "letters", len(letters), 1)
	err := l.Records(t.Context(), letters, func(_ Letter, r kafka.Record) error {
		expect(t, "record", r, stray.Record)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFiltersChooseAmongTheOpenLetters(t *testing.T) {
	l, _ := newLetters()
	other := refusal(3, base+3, "a")
	other.Change.Table.Table = "tags"
	late := refusal(4, base+4, "a")
	late.Failed = failed.Add(time.Hour)
	changed := refusal(1, base+9, "a")
	changed.Class = sinks.ClassTooLarge
	bury(t, l, refusal(1, base+1, "a"), refusal(2, base+2, "b"), other, late, changed)
	all := list(t, l, Filter{})
	expect(t, "all", rows(all), "1@9 2@2 3@3 4@4")
	expect(t, "oldest first", all[3].Key, "4")
	for want, f := range map[string]Filter{
		"1@9":             {Class: sinks.ClassTooLarge},
		"2@2 3@3 4@4":     {Class: sinks.ClassMapping}, // not the older letter of row 1
		"3@3":             {Table: "bank.tags"},
		"2@2":             {Key: "2"},
		"4@4":             {Since: failed.Add(time.Minute)},
		"1@9 2@2 3@3 4@4": {Since: failed},
	} {
		expect(t, fmt.Sprintf("%+v", f), rows(list(t, l, f)), want)
	}
	i := slices.IndexFunc(all, func(l Letter) bool { return l.Key == "2" })
	expect(t, "by fingerprint", rows(list(t, l, Filter{Fingerprint: all[i].Fingerprint})), "2@2")
	expect(t, "by id", rows(list(t, l, Filter{ID: all[i].ID})), "2@2")
}

// The fingerprint that the breaker of a table shows is that of its letters.
func TestALetterHasTheFingerprintOfItsRefusal(t *testing.T) {
	l, _ := newLetters()
	long := refusal(2, base+2, strings.Repeat("no ", 600)+"'a value'")
	odd := undecodable(9, nil)
	bury(t, l, refusal(1, base+1, "Preview of field's value: '{tok=S3CRET}'"), long, odd)
	for _, letter := range list(t, l, Filter{}) {
		reason, table := "Preview of field's value: '{tok=OTHER}'", "bank.questions"
		switch letter.Class {
		case odd.Class:
			reason, table = odd.Reason, ""
		default:
			if letter.Key == "2" {
				reason = long.Reason
			}
		}
		expect(t, letter.Reason, letter.Fingerprint, sinks.Fingerprint("es", table, letter.Class, reason))
		expect(t, "a value of the row", strings.Contains(letter.Reason, "S3CRET"), false)
	}
}

// store is a sink with the guard of the real ones, that refuses on demand.
type store struct {
	rows  map[string]cdc.Version
	next  map[string]sinks.Outcome // by key, instead of the guard
	calls int
}

func (s *store) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) { return 0, nil }

func (s *store) Apply(_ context.Context, changes []cdc.Change) []sinks.Outcome {
	s.calls++
	seen := map[string]bool{}
	outcomes := make([]sinks.Outcome, len(changes))
	for i, c := range changes {
		key := string(c.Key)
		if seen[key] {
			panic("the same key twice in one Apply")
		}
		seen[key] = true
		o, odd := s.next[key]
		switch {
		case odd:
		case s.rows[key] > c.Version:
			o.Verdict = sinks.Stale
		case s.rows[key] == c.Version:
			o.Verdict = sinks.Duplicate
		default:
			s.rows[key] = c.Version
			o.Verdict = sinks.Applied
		}
		outcomes[i] = o
	}
	return outcomes
}

// replayed spells what a replay says of each letter.
func replayed(t *testing.T, l *Letters, s sinks.Sink, opt ReplayOptions) (map[string]string, error) {
	t.Helper()
	said := map[string]string{}
	if opt.Gone == nil {
		opt.Gone = func(context.Context, cdc.TableName, [][]byte) (map[string]bool, error) { return nil, nil }
	}
	opt.Progress = func(l Letter, r Result) {
		if _, twice := said[l.Key]; twice {
			t.Errorf("progress of %s comes twice", l.Key)
		}
		said[l.Key] = string(r.State)
	}
	return said, l.Replay(t.Context(), list(t, l, Filter{}), s, opt)
}

func TestAReplayClosesWhatTheStoreTakesAndBuriesTheRestAgain(t *testing.T) {
	l, log := newLetters()
	s := &store{
		rows: map[string]cdc.Version{`{"id":2}`: base + 2, `{"id":3}`: base + 9},
		next: map[string]sinks.Outcome{
			`{"id":4}`: {Verdict: sinks.Poison, Class: sinks.ClassTooLarge, Reason: "too much"},
			`{"id":5}`: {Verdict: sinks.Transient, Class: sinks.ClassRefused, Reason: "odd"},
			`{"id":6}`: {Verdict: sinks.Filtered},
		},
	}
	for id := 1; id <= 6; id++ {
		bury(t, l, refusal(id, base+cdc.Version(id), "a"))
	}
	said, err := replayed(t, l, s, ReplayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "said", said, map[string]string{"1": "resolved", "2": "resolved", "3": "superseded", "4": "parked", "5": "exhausted", "6": "skipped"})
	expect(t, "store", s.rows[`{"id":1}`], base+1)
	letters := list(t, l, Filter{})
	expect(t, "open", rows(letters), "4@4 5@5")
	for _, letter := range letters {
		expect(t, "retries", letter.Retries, 1)
		expect(t, "first failed", letter.FirstFailed, failed)
		if !letter.LastFailed.After(failed.Add(time.Second)) {
			t.Errorf("last failed is still %s", letter.LastFailed)
		}
	}
	expect(t, "class is the new one", letters[0].Class, sinks.ClassTooLarge)
	want := refusal(4, base+4, "a").Record
	err = l.Records(t.Context(), letters[:1], func(_ Letter, r kafka.Record) error {
		expect(t, "still the whole record", string(r.Value[:20]), string(want.Value[:20]))
		expect(t, "its headers once", len(r.Headers), len(want.Headers))
		expect(t, "its place", Place{r.Topic, r.Partition, r.Offset}, Place{want.Topic, want.Partition, want.Offset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	closing := log.records[l.Topic][6]
	expect(t, "closing record", []string{string(closing.Key), fmt.Sprint(closing.Value == nil), fmt.Sprint(closing.Partition)}, []string{`bank.questions/{"id":1}`, "true", "3"})
	end, err := l.read(closing)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the end tells everything but the row", []any{end.State, end.Closed, end.Reason, end.Version, end.GTID, end.Key, end.FirstFailed},
		[]any{Resolved, "replayed", "a", base + 1, "a-b-c:7", "1", failed})
}

// What a barrier has taken away comes back by no replay, and the store need not be
// asked.
func TestALetterFromBeforeABarrierIsSuperseded(t *testing.T) {
	l, _ := newLetters()
	for id := 1; id <= 3; id++ {
		bury(t, l, refusal(id, base+cdc.Version(id), "a"))
	}
	letters := list(t, l, Filter{})
	opt := ReplayOptions{Barriers: map[string]cdc.Version{letters[0].Table: base + 2, "other.table": base + 9}}
	s := &store{rows: map[string]cdc.Version{}}
	said, err := replayed(t, l, s, opt)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "said", said, map[string]string{"1": "superseded", "2": "superseded", "3": "resolved"})
	expect(t, "rows in the store", len(s.rows), 1)
	expect(t, "open", rows(list(t, l, Filter{})), "")
}

func TestAnUnavailableStoreStopsTheReplayAndTheLettersStay(t *testing.T) {
	l, _ := newLetters()
	s := &store{rows: map[string]cdc.Version{}, next: map[string]sinks.Outcome{`{"id":2}`: {Reason: "no connection"}}}
	for id := 1; id <= 3; id++ {
		bury(t, l, refusal(id, base+1, "a"))
	}
	said, err := replayed(t, l, s, ReplayOptions{})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no connection") {
		t.Errorf("error is %v", err)
	}
	expect(t, "said", said, map[string]string{"1": "resolved", "3": "resolved"})
	letters := list(t, l, Filter{})
	expect(t, "open", rows(letters), "2@1")
	expect(t, "no attempt is counted", letters[0].Retries, 0)
}

func TestALetterStaysWhenItsEndCannotBeWritten(t *testing.T) {
	l, log := newLetters()
	s := &store{rows: map[string]cdc.Version{}}
	bury(t, l, refusal(1, base+1, "a"))
	log.down = errors.New("broker is away")
	said, err := replayed(t, l, s, ReplayOptions{})
	if !errors.Is(err, log.down) {
		t.Errorf("error is %v", err)
	}
	expect(t, "said", said, map[string]string{})
	log.down = nil
	said, err = replayed(t, l, s, ReplayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "again", said, map[string]string{"1": "resolved"})
	expect(t, "open", len(list(t, l, Filter{})), 0)
}

// A store may have forgotten a delete. The source has not: what it does not have comes
// back by no replay.
func TestALetterOfARowThatIsGoneIsSuperseded(t *testing.T) {
	l, _ := newLetters()
	deleted := refusal(2, base+1, "a")
	deleted.Change.Op, deleted.Change.Before, deleted.Change.After = cdc.OpDelete, deleted.Change.After, nil
	deleted.Record.Value, deleted.Record.Headers = deleted.Change.AppendValue(nil, "shop"), deleted.Change.Headers()
	bury(t, l, refusal(1, base+1, "a"), deleted, refusal(3, base+1, "a"))
	s := &store{rows: map[string]cdc.Version{}}
	var asked []string
	opt := ReplayOptions{Gone: func(_ context.Context, table cdc.TableName, keys [][]byte) (map[string]bool, error) {
		for _, key := range keys {
			asked = append(asked, table.String()+string(key))
		}
		return map[string]bool{`{"id":1}`: true, `{"id":2}`: true}, nil
	}}
	table := list(t, l, Filter{})[0].Table
	said, err := replayed(t, l, s, opt)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "asked", asked, []string{table + `{"id":1}`, table + `{"id":3}`, table + `{"id":3}`})
	expect(t, "said", said, map[string]string{"1": "superseded", "2": "resolved", "3": "resolved"})
	expect(t, "the delete of row 1 in the store", s.rows[`{"id":1}`], cdc.Version(base+2))
	expect(t, "open", rows(list(t, l, Filter{})), "")
}

// told is a store that says what it was told last of each row.
type told map[string]string

func (s told) Apply(_ context.Context, changes []cdc.Change) []sinks.Outcome {
	out := make([]sinks.Outcome, len(changes))
	for i, c := range changes {
		s[string(c.Key)] = fmt.Sprintf("%s@%d before %s", c.Op, c.Version.Seq(), c.Before)
		out[i].Verdict = sinks.Applied
	}
	return out
}

func (told) Sweep(context.Context, cdc.TableName, cdc.Version) (int, error) { return 0, nil }

// The table is emptied, and the store swept, while the store is given a row of it: whoever
// gave it that takes it away again.
func TestARowThatGoesWhileItIsReplayedIsTakenAway(t *testing.T) {
	l, _ := newLetters()
	bury(t, l, refusal(1, base+1, "a"), refusal(2, base+1, "a"))
	s := told{}
	said, err := replayed(t, l, s, ReplayOptions{Gone: func(context.Context, cdc.TableName, [][]byte) (map[string]bool, error) {
		return map[string]bool{`{"id":1}`: len(s) > 0}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "said", said, map[string]string{"1": "superseded", "2": "resolved"})
	seq := uint64(cdc.Version(base).Seq())
	after := refusal(1, base+1, "a").Change.After
	expect(t, "row 1", s[`{"id":1}`], fmt.Sprintf("d@%d before %s", seq+2, after))
	expect(t, "row 2", strings.Contains(s[`{"id":2}`], fmt.Sprintf("@%d ", seq+1)), true)
	expect(t, "open", rows(list(t, l, Filter{})), "")
}

// When the source cannot be asked, nothing is sent and the letters stay.
func TestAReplayStopsWhenTheSourceCannotBeAsked(t *testing.T) {
	l, _ := newLetters()
	bury(t, l, refusal(1, base+1, "a"))
	s := &store{rows: map[string]cdc.Version{}}
	said, err := replayed(t, l, s, ReplayOptions{Gone: func(context.Context, cdc.TableName, [][]byte) (map[string]bool, error) {
		return nil, errors.New("connection refused")
	}})
	if err == nil || !strings.Contains(err.Error(), "still there: connection refused") || len(said) > 0 || s.calls > 0 {
		t.Errorf("%v, said %v, %d calls", err, said, s.calls)
	}
	expect(t, "open", rows(list(t, l, Filter{})), "1@1")
}

func TestALongReplayGoesInSeveralBatches(t *testing.T) {
	l, _ := newLetters()
	const n = 2*batchLetters + 1
	for id := range n {
		bury(t, l, refusal(id, base+1, "a"))
	}
	big := refusal(n, base+1, "a")
	big.Change.After = fmt.Appendf(nil, `{"id":%d,"x":"%s"}`, n, bytes.Repeat([]byte("x"), batchBytes))
	big.Record.Value = big.Change.AppendValue(nil, "shop")
	bury(t, l, big)
	s := &store{rows: map[string]cdc.Version{}}
	said, err := replayed(t, l, s, ReplayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "said", len(said), n+1)
	expect(t, "rows", len(s.rows), n+1)
	expect(t, "calls", s.calls, 4)
	expect(t, "open", len(list(t, l, Filter{})), 0)
}

// The fold against the plainest model: walk the history, remember per row the
// newest refusal that nothing has closed since.
func TestTheOpenLettersAreThoseTheHistoryLeavesOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, _ := newLetters()
		open := map[int]cdc.Version{}
		letters := map[int][]Letter{}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			id, v := rapid.IntRange(0, 3).Draw(t, "row"), base+cdc.Version(rapid.IntRange(0, 5).Draw(t, "version"))
			if past := letters[id]; len(past) > 0 && rapid.IntRange(0, 2).Draw(t, "skip") == 0 {
				letter := rapid.SampledFrom(past).Draw(t, "letter")
				if err := l.Skip(context.Background(), letter, "x"); err != nil {
					t.Fatal(err)
				}
				if letter.Version >= open[id] {
					delete(open, id)
				}
				continue
			}
			if err := l.Bury(context.Background(), refusal(id, v, "a")); err != nil {
				t.Fatal(err)
			}
			open[id] = max(open[id], v)
			now, err := l.List(context.Background(), Filter{Key: fmt.Sprint(id)})
			if err != nil {
				t.Fatal(err)
			}
			letters[id] = append(letters[id], now...)
		}
		var want []string
		for id, v := range maps.All(open) {
			want = append(want, fmt.Sprintf("%d@%d", id, int64(v)-int64(base)))
		}
		slices.Sort(want)
		now, err := l.List(context.Background(), Filter{})
		if err != nil {
			t.Fatal(err)
		}
		if got := rows(now); got != strings.Join(want, " ") {
			t.Fatalf("open are %q, want %q", got, want)
		}
	})
}
