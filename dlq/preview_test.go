package dlq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// world is a source and a store as a preview sees them.
type world struct {
	rows    map[string]string        // in the source, by key
	refuses map[string]sinks.Outcome // by key
	has     map[string]cdc.Version   // in the store
	down    error                    // of the source
	sent    []string                 // what the store was asked about
	batches []int
}

func (w *world) Rows(_ context.Context, _ cdc.TableName, keys [][]byte, fn func(key, row []byte, layout uint32) error) error {
	if w.down != nil {
		return w.down
	}
	for _, key := range keys {
		var row []byte
		if text, ok := w.rows[string(key)]; ok {
			row = []byte(text)
		}
		if err := fn(key, row, 7); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) Would(_ context.Context, changes []cdc.Change) []sinks.Prospect {
	w.batches = append(w.batches, len(changes))
	out := make([]sinks.Prospect, len(changes))
	for i, c := range changes {
		w.sent = append(w.sent, fmt.Sprintf("%s %s@%d %s", c.Op, c.Key, int64(c.Version)-int64(base), c.After))
		out[i].Outcome = sinks.Outcome{Verdict: sinks.Applied}
		if no, ok := w.refuses[string(c.Key)]; ok {
			out[i].Outcome = no
		} else if has := w.has[string(c.Key)]; has == c.Version {
			out[i].Verdict = sinks.Duplicate
		} else if has > c.Version {
			out[i].Verdict = sinks.Stale
		}
	}
	return out
}

func foreseen(t *testing.T, l *Letters, w *world, p Preview) map[string]string {
	t.Helper()
	said := map[string]string{}
	p.Rows, p.Would, p.Next = w.Rows, w.Would, base+1000
	p.Tell = func(l Letter, r Result) {
		if _, twice := said[l.Key]; twice {
			t.Errorf("letter %s is told of twice", l.Key)
		}
		if said[l.Key] = string(r.State); r.Reason != "" {
			said[l.Key] += ": " + r.Reason
		}
	}
	if err := l.Preview(t.Context(), list(t, l, Filter{}), p); err != nil {
		t.Fatal(err)
	}
	slices.Sort(w.sent)
	return said
}

// a removal is the refusal of a delete.
func removal(id int, v cdc.Version) sinks.Refusal {
	r := refusal(id, v, "a")
	r.Change.Op, r.Change.Before, r.Change.After = cdc.OpDelete, r.Change.After, nil
	r.Record.Value, r.Record.Headers = r.Change.AppendValue(nil, "shop"), r.Change.Headers()
	return r
}

// The recorded change is sent, unless a barrier or the source says that the row is gone;
// the store says the rest.
func TestAPreviewOfTheRecordedRows(t *testing.T) {
	l, log := newLetters()
	for id := 1; id <= 7; id++ {
		bury(t, l, refusal(id, base+cdc.Version(id), "a"))
	}
	bury(t, l, undecodable(1, nil), removal(8, base+8))
	records := len(log.records[l.Topic])
	w := &world{
		rows: map[string]string{`{"id":1}`: "{}", `{"id":2}`: "{}", `{"id":3}`: "{}", `{"id":4}`: "{}", `{"id":6}`: "{}", `{"id":7}`: "{}"},
		has:  map[string]cdc.Version{`{"id":3}`: base + 3, `{"id":4}`: base + 9},
		refuses: map[string]sinks.Outcome{
			`{"id":6}`: {Verdict: sinks.Poison, Class: sinks.ClassMapping, Reason: "no number: 'secret'", Mend: "mend it"},
			`{"id":7}`: {Verdict: sinks.Unavailable, Reason: "connection refused"},
		},
	}
	expect(t, "foreseen", foreseen(t, l, w, Preview{Barriers: map[string]cdc.Version{"bank.questions": base + 1}}), map[string]string{
		"":  "parked: the record could not be decoded, so there is no change to apply: header lockstep.format is missing",
		"1": "would be superseded: the table was emptied, dropped or copied anew since",
		"2": "would be applied",
		"3": "would be resolved: the store has it already",
		"4": "would be superseded: the store has a newer version",
		"5": "would be superseded: the source does not have the row any more",
		"6": "would be refused: mapping: no number: '?'; mend it",
		"7": "unknown: the store: connection refused",
		"8": "would be applied",
	})
	expect(t, "asked", w.sent, []string{`d {"id":8}@8 `, `u {"id":2}@2 {"id":2,"title":"t4398046511106"}`, `u {"id":3}@3 {"id":3,"title":"t4398046511107"}`,
		`u {"id":4}@4 {"id":4,"title":"t4398046511108"}`, `u {"id":6}@6 {"id":6,"title":"t4398046511110"}`, `u {"id":7}@7 {"id":7,"title":"t4398046511111"}`})
	expect(t, "records", len(log.records[l.Topic]), records)
}

// The row as the source has it now is sent, under a version that outranks what the store
// has.
func TestAPreviewOfTheRowsAsTheyAreNow(t *testing.T) {
	l, _ := newLetters()
	bury(t, l, refusal(1, base+1, "a"), refusal(2, base+2, "a"), refusal(3, base+3, "a"), removal(4, base+4), removal(5, base+5), undecodable(1, nil))
	w := &world{
		rows:    map[string]string{`{"id":1}`: `{"id":1,"title":"now"}`, `{"id":3}`: `{"id":3}`, `{"id":5}`: `{"id":5,"title":"again"}`},
		has:     map[string]cdc.Version{`{"id":1}`: base + 9},
		refuses: map[string]sinks.Outcome{`{"id":3}`: {Verdict: sinks.Filtered}},
	}
	expect(t, "foreseen", foreseen(t, l, w, Preview{Resync: true, Barriers: map[string]cdc.Version{"bank.questions": base + 5}}), map[string]string{
		"":  "parked: the record could not be decoded, so there is no change to apply: header lockstep.format is missing",
		"1": "would be applied",
		"2": "would be superseded: the source does not have the row any more",
		"3": "would be skipped: the sink does not take this table any more",
		"4": "would be applied",
		"5": "would be applied",
	})
	expect(t, "asked", w.sent, []string{`d {"id":4}@1000 `, `r {"id":1}@1000 {"id":1,"title":"now"}`, `r {"id":3}@1000 {"id":3}`, `r {"id":5}@1000 {"id":5,"title":"again"}`})
}

func TestAPreviewSaysSoWhenTheSourceCannotBeAsked(t *testing.T) {
	l, _ := newLetters()
	bury(t, l, refusal(1, base+1, "a"), removal(2, base+2))
	w := &world{down: errors.New("connection refused")}
	expect(t, "recorded", foreseen(t, l, w, Preview{}), map[string]string{"1": "unknown: the source: connection refused", "2": "would be applied"})
	expect(t, "now", foreseen(t, l, w, Preview{Resync: true}), map[string]string{"1": "unknown: the source: connection refused", "2": "unknown: the source: connection refused"})
}

func TestAPreviewLeavesOldLettersOfRowsThatMove(t *testing.T) {
	l, _ := newLetters()
	bury(t, l, refusal(1, base+1, "a"))
	w := &world{rows: map[string]string{`{"id":1}`: "{}"}}
	moves := Preview{Moves: func(*cdc.Change) bool { return true }, Remembers: time.Hour}
	expect(t, "recorded", foreseen(t, l, w, moves)["1"][:60], "parked: the store remembers for 1h0m0s that a row has left a")
	moves.Resync = true
	expect(t, "now", foreseen(t, l, w, moves), map[string]string{"1": "would be applied"})
}

// However many letters there are, source and store are asked about a batch at a time.
func TestAPreviewIsMadeInBatches(t *testing.T) {
	l, _ := newLetters()
	w := &world{rows: map[string]string{}}
	for id := range 250 {
		w.rows[fmt.Sprintf(`{"id":%d}`, id)] = "{}"
		bury(t, l, refusal(id, base+1, "a"))
	}
	w.rows[`{"id":3}`] = `{"x":"` + string(make([]byte, batchBytes)) + `"}`
	expect(t, "told", len(foreseen(t, l, w, Preview{Resync: true})), 250)
	if most := slices.Max(w.batches); most > batchLetters || len(w.batches) < 4 {
		t.Errorf("batches of %v", w.batches)
	}
}

func TestAPreviewStopsWithItsContext(t *testing.T) {
	l, _ := newLetters()
	bury(t, l, refusal(1, base+1, "a"))
	ctx, cancel := context.WithCancel(t.Context())
	p := Preview{Rows: func(context.Context, cdc.TableName, [][]byte, func(key, row []byte, layout uint32) error) error {
		cancel()
		return ctx.Err()
	}, Tell: func(l Letter, r Result) { t.Errorf("letter %s is %v", l.Key, r) }}
	if err := l.Preview(ctx, list(t, l, Filter{}), p); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func taken(document string) *sinks.Prospect {
	return &sinks.Prospect{Outcome: sinks.Outcome{Verdict: sinks.Applied}, Document: []byte(document)}
}

// spell is a table of fields: name recorded/now/sink, with a star where they differ.
func spell(fields []Field) (lines []string) {
	for _, f := range fields {
		star := ""
		if f.Differs {
			star = "*"
		}
		lines = append(lines, fmt.Sprintf("%s%s %s/%s/%s", star, f.Name, f.Recorded, f.Now, f.Sink))
	}
	return lines
}

func TestAViewPutsThreeSidesBesideEachOther(t *testing.T) {
	row := func(recorded, then, now, present, stored string) []string {
		raw := func(s string) []byte {
			if s == "" {
				return nil
			}
			return []byte(s)
		}
		return spell(compare(raw(recorded), raw(then), raw(now), raw(present), raw(stored)))
	}
	same := `{"id":1,"n":"a"}`
	expect(t, "all the same", row(same, same, same, same, `{"n":"a","id":1}`), []string{"id 1/1/1", `n "a"/"a"/"a"`})
	expect(t, "mended in the source", row(same, same, `{"id":1,"n":"b"}`, `{"id":1,"n":"b"}`, same), []string{"id 1/1/1", `*n "a"/"b"/"a"`})
	expect(t, "older in the store", row(same, same, same, same, `{"id":1,"n":"z"}`), []string{"id 1/1/1", `*n "a"/"a"/"z"`})
	expect(t, "not in the store", row(same, same, same, same, ""), []string{"id 1/1/", `n "a"/"a"/`})
	expect(t, "the source cannot be asked", row(same, same, "", "", `{"id":1,"n":"z"}`), []string{"id 1//1", `*n "a"//"z"`})
	expect(t, "a column that is new", row(same, same, `{"id":1,"n":"a","x":null}`, `{"id":1,"n":"a","x":null}`, same), []string{"id 1/1/1", `n "a"/"a"/"a"`, `*x /null/`})
	expect(t, "a hash has texts", row(same, `{"id":"1","n":"a"}`, same, `{"id":"1","n":"a"}`, `{"id":"1","n":"a"}`), []string{`id 1/1/"1"`, `n "a"/"a"/"a"`})
	expect(t, "a shape renames", row(same, `{"id":1,"name":"a"}`, same, `{"id":1,"name":"a"}`, `{"id":1,"name":"z"}`), []string{"id 1/1/1", `n "a"/"a"/`, `*name "a"/"a"/"z"`})
	expect(t, "a text", row(same, `"a"`, same, `"a"`, `"z"`), []string{"id 1/1/", `n "a"/"a"/`, `*(value) "a"/"a"/"z"`})
	expect(t, "JSON is compared by what it says", row(`{"j":{"a":1,"b":2}}`, `{"j":{"a":1,"b":2}}`, `{"j":{"b":2,"a":1}}`, `{"j":{"b":2,"a":1}}`, `{"j":{ "a":1, "b":2}}`), []string{`j {"a":1,"b":2}/{"b":2,"a":1}/{ "a":1, "b":2}`})
	expect(t, "numbers by all their digits", row(`{"n":18446744073709551615}`, "", `{"n":18446744073709551614}`, "", ""), []string{`*n 18446744073709551615/18446744073709551614/`})
}

// seen is what is known of a letter whose row was recorded with this title.
func seen(t *testing.T, r sinks.Refusal) Seen {
	t.Helper()
	l, _ := newLetters()
	bury(t, l, r)
	s := Seen{Letter: list(t, l, Filter{})[0], Store: "elastic"}
	if err := l.Records(t.Context(), []Letter{s.Letter}, func(_ Letter, record kafka.Record) error { s.Record = record; return nil }); err != nil {
		t.Fatal(err)
	}
	return s
}

// A value that may have been recorded before its column was masked is shown nowhere, but
// as the source gives it now.
func TestAViewHidesWhatIsOlderThanItsMask(t *testing.T) {
	r := refusal(1, base+1, "a")
	r.Change.Before, r.Change.After = []byte(`{"id":1,"Card":"4111-raw"}`), []byte(`{"id":1,"Card":"4222-raw","ok":"a"}`)
	r.Record.Value = r.Change.AppendValue(nil, "shop")
	s := seen(t, r)
	s.Masked = map[string]bool{"card": true}
	s.Now.Row = []byte(`{"id":1,"Card":"***3","ok":"b"}`)
	s.Stored = sinks.Stored{Version: base, Document: []byte(`{"id":1,"Card":"4333-raw","number":"4333-raw","ok":"a"}`)}
	s.Payload, s.Resync = taken(`{"id":1,"Card":"4222-raw","number":"4222-raw","ok":"a"}`), taken(`{"id":1,"Card":"***3","number":"***3","ok":"b"}`)
	v := NewView(s)
	expect(t, "fields", spell(v.Fields), []string{"id 1/1/1", `*Card "(masked)"/"***3"/"(masked)"`, `*ok "a"/"b"/"a"`, `*number "(masked)"/"***3"/"(masked)"`})
	expect(t, "recorded", string(v.Recorded), `{"id":1,"Card":"(masked)","ok":"a"}`)
	expect(t, "the sink", string(v.Stored.Document), `{"id":1,"Card":"(masked)","number":"(masked)","ok":"a"}`)
	change, err := cdc.Decode(s.Record.Key, s.Veiled().Value, s.Record.Headers)
	expect(t, "the record", []string{string(change.Before), string(change.After), fmt.Sprint(err)}, []string{`{"id":1,"Card":"(masked)"}`, `{"id":1,"Card":"(masked)","ok":"a"}`, "<nil>"})

	s.Now, s.Resync = RowNow{Problem: "no answer"}, nil
	expect(t, "without the source", spell(NewView(s).Fields), []string{`id 1//1`, `Card "(masked)"//"(masked)"`, `ok "a"//"a"`, `number "(masked)"//"(masked)"`})
	s.Now, s.Resync = RowNow{Row: []byte(`{"id":1,"Card":"4222-raw","ok":"a"}`)}, taken(`"text"`)
	s.Stored.Document = []byte(`"4333-raw"`)
	expect(t, "a text", string(NewView(s).Stored.Document), `"(masked)"`)
}

func TestAViewSaysWhatIsLikelyToHelp(t *testing.T) {
	id := ""
	of := func(class sinks.Class, change func(*Seen)) string {
		r := refusal(1, base+1, "a")
		r.Class = class
		s := seen(t, r)
		id = s.Letter.ID
		s.Now.Row = []byte(`{"id":1,"title":"now"}`)
		s.Stored.Place = map[string]string{"key": "q:1"}
		refused := &sinks.Prospect{Outcome: sinks.Outcome{Verdict: sinks.Poison, Class: class, Reason: "no"}}
		s.Payload, s.Resync = refused, refused
		if change != nil {
			change(&s)
		}
		v := NewView(s)
		if v.Why == "" {
			t.Errorf("class %s has no words", class)
		}
		return v.Mend
	}
	redis := func(s *Seen) { s.Store = "redis" }
	replay := "run: lockstep dlq replay " + seen(t, refusal(1, base+1, "a")).Letter.ID
	row := "mend the row in MySQL, and the letter closes itself with the next change of the row"
	for what, x := range map[string][2]string{
		"mapping":             {of(sinks.ClassMapping, nil), row + "; or give the column another type in tables[].elastic.mapping and run: lockstep rebuild es --table bank.questions, and then: lockstep dlq replay " + id},
		"mapping in Redis":    {of(sinks.ClassMapping, redis), row + "; or name other columns in tables[].redis, start the sink again, and then " + replay},
		"too large":           {of(sinks.ClassTooLarge, nil), "make the row smaller in MySQL, and the letter closes itself; or raise sinks.es.elastic.max_document_bytes, start the sink again, and then " + replay},
		"too large for Redis": {of(sinks.ClassTooLarge, redis), "make the row smaller in MySQL, and the letter closes itself; or raise sinks.es.redis.max_value_bytes, start the sink again, and then " + replay},
		"key":                 {of(sinks.ClassKey, redis), row + "; or see to tables[].redis.key, start the sink again, and then " + replay},
		"wrong type":          {of(sinks.ClassWrongType, redis), `find out who writes the key "q:1", delete it, and then ` + replay},
		"shape":               {of(sinks.ClassShape, nil), row + "; or mend tables[].shape, start the sink again, and then " + replay},
		"no table":            {of(sinks.ClassNoTable, nil), "when the table was dropped for good: lockstep dlq skip " + id + " --reason WHY; when it is back: lockstep dlq replay " + id},
		"refused":             {of(sinks.ClassRefused, nil), "look into the log of the store for what it says, and then " + replay},
		"mended in the source": {of(sinks.ClassMapping, func(s *Seen) { s.Resync = taken("{}") }),
			"the store takes the row as it is in MySQL now; " + replay},
		"perhaps mended": {of(sinks.ClassRefused, func(s *Seen) { s.Resync = taken("{}"); s.Resync.Reason = sinks.CannotAsk }),
			"look into the log of the store for what it says, and then " + replay},
		"patched": {of(sinks.ClassMapping, func(s *Seen) { s.Letter.Patched, s.Payload, s.Resync = &Patched{}, taken("{}"), taken("{}") }),
			"the store takes the row as it was patched; " + replay + " --mode payload"},
		"patched in vain": {of(sinks.ClassMapping, func(s *Seen) { s.Letter.Patched, s.Resync = &Patched{}, taken("{}") }),
			"the store takes the row as it is in MySQL now; " + replay},
		"patched, and neither helps": {of(sinks.ClassMapping, func(s *Seen) { s.Letter.Patched = &Patched{} }),
			row + "; or give the column another type in tables[].elastic.mapping and run: lockstep rebuild es --table bank.questions, and then: lockstep dlq replay " + id + " --mode payload"},
		"newer in the store": {of(sinks.ClassMapping, func(s *Seen) { s.Payload = &sinks.Prospect{Outcome: sinks.Outcome{Verdict: sinks.Stale}} }),
			"the store has a newer version, so a replay only closes it; " + replay},
		"gone":  {of(sinks.ClassMapping, func(s *Seen) { s.Now = RowNow{Gone: true} }), isGone + ", so a replay only closes it; " + replay},
		"swept": {of(sinks.ClassMapping, func(s *Seen) { s.Newest = base + 1 }), sweptAway + ", so a replay only closes it; " + replay},
	} {
		expect(t, what, x[0], x[1])
	}
	l := seen(t, undecodable(4, []byte("k")))
	expect(t, "undecodable", NewView(l).Mend, "nobody can apply it; find out who writes to shop.bank.questions, copy the row again if it is known (lockstep snapshot start), and then: lockstep dlq skip "+l.Letter.ID+" --reason WHY")
	for _, class := range sinks.Classes {
		if meanings[class] == "" {
			t.Errorf("class %s has no words", class)
		}
	}
}
