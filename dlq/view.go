package dlq

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// View is what an operator sees of a letter before he acts: what was recorded, what the
// source and the store have now, and what would come of a replay.
type View struct {
	Why      string          `json:"why" doc:"the kind of refusal, in words"`
	Mend     string          `json:"mend" doc:"what is likely to help, with the command where there is one"`
	Recorded json.RawMessage `json:"row_recorded,omitempty" doc:"the row as it was recorded; missing for a delete and for what nobody can read"`
	Now      RowNow          `json:"row_now"`
	Stored   SinkNow         `json:"sink_now"`
	Payload  *Result         `json:"would_payload,omitempty" doc:"what a replay of the recorded change would come to"`
	Resync   *Result         `json:"would_resync,omitempty" doc:"what a replay of the row as it is now would come to"`
	Fields   []Field         `json:"fields" doc:"the row column by column, and what the document has besides"`
}

// RowNow is what the source has of a row.
type RowNow struct {
	Row     json.RawMessage `json:"row,omitempty" doc:"as the capture would read it, masks included"`
	Gone    bool            `json:"gone,omitempty"`
	Problem string          `json:"problem,omitempty" doc:"why it cannot be told"`
}

// SinkNow is what the store of a letter has of its row.
type SinkNow struct {
	Version  cdc.Version       `json:"version,omitempty"`
	Deleted  bool              `json:"deleted,omitempty" doc:"the store remembers the delete of the row"`
	Document json.RawMessage   `json:"document,omitempty"`
	Omitted  bool              `json:"omitted,omitempty" doc:"there is a document, and it is too large to be shown"`
	Place    map[string]string `json:"place,omitempty" doc:"index, _id and routing, or key and member"`
	Problem  string            `json:"problem,omitempty" doc:"why it cannot be told"`
}

// Field is a column of a row, or a field of its document, on all three sides; a side that
// does not have it is missing.
type Field struct {
	Name     string          `json:"field"`
	Recorded json.RawMessage `json:"recorded,omitempty"`
	Now      json.RawMessage `json:"now,omitempty"`
	Sink     json.RawMessage `json:"sink,omitempty"`
	Differs  bool            `json:"differs" doc:"the recorded row is not the present one there, or the sink has not what it would have of the present one (where that is not known, of the recorded one)"`
}

// Seen is what View needs to know.
type Seen struct {
	Letter Letter
	Record kafka.Record
	Store  string // elastic or redis
	Now    RowNow
	Stored sinks.Stored
	// Payload and Resync are what the store would answer to what a replay would send; nil
	// where nothing would be sent.
	Payload, Resync *sinks.Prospect
	// Newest is the version of the newest barrier of the table.
	Newest cdc.Version
	// Masked are the columns whose values may be shown only as the source gives them now,
	// in lower case: what is recorded may be older than the mask.
	Masked map[string]bool
}

// hidden stands for a value that was recorded before its column was masked.
var hidden = json.RawMessage(`"(masked)"`)

// NewView joins what was seen.
func NewView(s Seen) View {
	change, err := decodeLetter(s.Letter, s.Record)
	s.Stored.Document = s.veil(s.Stored.Document, change.After, s.document(s.Resync, change.After))
	v := View{
		Now:    s.Now,
		Stored: SinkNow{Version: s.Stored.Version, Deleted: s.Stored.Deleted, Document: s.Stored.Document, Omitted: s.Stored.Omitted, Place: s.Stored.Place, Problem: s.Stored.Problem},
		Fields: []Field{},
	}
	if err == nil {
		v.Recorded = s.veil(change.After, change.After, s.Now.Row)
		v.Payload = result(s.Payload)
		if v.Resync = result(s.Resync); s.Now.Gone && change.Op != cdc.OpDelete {
			v.Payload, v.Resync = &Result{WouldSupersede, isGone}, &Result{WouldSupersede, isGone}
		}
		if change.Version <= s.Newest {
			v.Payload = &Result{WouldSupersede, sweptAway}
		}
		v.Fields = compare(v.Recorded, s.document(s.Payload, change.After), s.Now.Row, s.document(s.Resync, change.After), s.Stored.Document)
	}
	v.Why = meanings[s.Letter.Class]
	v.Mend = mend(s, v)
	return v
}

func result(p *sinks.Prospect) *Result {
	if p == nil {
		return nil
	}
	r := third(*p)
	return &r
}

// document is what the store would have; where it is not made of the present row, veiled.
func (s Seen) document(p *sinks.Prospect, recorded []byte) json.RawMessage {
	switch {
	case p == nil:
		return nil
	case p == s.Resync:
		return p.Document
	case s.Resync == nil:
		return s.veil(p.Document, recorded, nil)
	}
	return s.veil(p.Document, recorded, s.Resync.Document)
}

// veil hides values that may be older than their mask: of a masked column, or of a field
// that is no column and so may be made of one, unless present, which is made of the row as
// it is now, has the same. recorded tells the columns where the source does not.
func (s Seen) veil(document, recorded, present []byte) json.RawMessage {
	if len(s.Masked) == 0 || len(document) == 0 {
		return document
	}
	if !gjson.ParseBytes(document).IsObject() {
		if !sinks.Same(document, present) {
			return hidden
		}
		return document
	}
	b := []byte{'{'}
	gjson.ParseBytes(document).ForEach(func(name, value gjson.Result) bool {
		if len(b) > 1 {
			b = append(b, ',')
		}
		raw := []byte(value.Raw)
		open := !s.Masked[strings.ToLower(name.Str)] && (sinks.Field(s.Now.Row, name.Str) != nil || sinks.Field(recorded, name.Str) != nil)
		if !open && value.Type != gjson.Null && !sinks.Same(raw, sinks.Field(present, name.Str)) {
			raw = hidden
		}
		b = append(append(append(b, name.Raw...), ':'), raw...)
		return true
	})
	return append(b, '}')
}

// Veiled is the record of a letter as it may be shown: with the images in its value veiled.
func (s Seen) Veiled() kafka.Record {
	r := s.Record
	if len(s.Masked) == 0 || !gjson.ValidBytes(r.Value) {
		return r
	}
	for _, image := range []string{"before", "after"} {
		is := gjson.GetBytes(r.Value, image)
		if is.IsObject() {
			r.Value = bytes.Join([][]byte{r.Value[:is.Index], s.veil([]byte(is.Raw), []byte(is.Raw), s.Now.Row), r.Value[is.Index+len(is.Raw):]}, nil)
		}
	}
	return r
}

// compare puts three sides beside each other: the columns of the rows, and the fields of
// the documents that are no columns. wantedThen and wantedNow are the documents that the
// store would have of the rows.
func compare(recorded, wantedThen, now, wantedNow, stored json.RawMessage) []Field {
	var names []string
	known := map[string]bool{}
	for _, object := range []json.RawMessage{recorded, now, wantedThen, wantedNow, stored} {
		sinks.EachField(object, func(name string) {
			if !known[name] {
				known[name] = true
				names = append(names, name)
			}
		})
	}
	wanted := wantedNow
	if wanted == nil {
		wanted = wantedThen
	}
	fields := []Field{}
	for _, name := range names {
		f := Field{Name: name, Recorded: sinks.Field(recorded, name), Now: sinks.Field(now, name), Sink: sinks.Field(stored, name)}
		if f.Recorded == nil && f.Now == nil {
			f.Recorded, f.Now = sinks.Field(wantedThen, name), sinks.Field(wantedNow, name)
		}
		f.Differs = recorded != nil && now != nil && !sinks.Same(f.Recorded, f.Now) ||
			stored != nil && wanted != nil && !sinks.Same(f.Sink, sinks.Field(wanted, name))
		fields = append(fields, f)
	}
	return fields
}

var meanings = map[sinks.Class]string{
	sinks.ClassMapping:     "the store's schema does not take a value of the row",
	sinks.ClassTooLarge:    "the row is larger than the store takes",
	sinks.ClassUndecodable: "the record is no change that this lockstep can read",
	sinks.ClassKey:         "the row makes no key or _id for the store",
	sinks.ClassWrongType:   "the key holds something of another type, which was not written here",
	sinks.ClassShape:       "the row makes no document as the configuration wants it",
	sinks.ClassNoTable:     "the table is gone from the source, and the store has no place for it",
	sinks.ClassRefused:     "the store refuses it again and again, in words that are not known",
}

// mend is what is likely to help: first what needs nobody's hand but a replay, then what
// the class says.
func mend(s Seen, v View) string {
	l := s.Letter
	resync := "run: lockstep dlq replay " + l.ID
	replay := resync
	if l.Patched != nil {
		replay += " --mode payload" // the other one knows nothing of the patch
	}
	skip := fmt.Sprintf("lockstep dlq skip %s --reason WHY", l.ID)
	is := func(r *Result, state State) bool { return r != nil && r.State == state }
	switch {
	case !l.Replayable():
		return "nobody can apply it; find out who writes to " + cmp.Or(l.Source.Topic, "the topic") + ", copy the row again if it is known (lockstep snapshot start), and then: " + skip
	case is(v.Payload, WouldResolve), is(v.Payload, WouldSupersede):
		return v.Payload.Reason + ", so a replay only closes it; " + replay
	case l.Patched != nil && is(v.Payload, WouldApply) && v.Payload.Reason == "":
		return "the store takes the row as it was patched; " + replay
	case is(v.Resync, WouldApply) && v.Resync.Reason == "":
		return "the store takes the row as it is in MySQL now; " + resync
	}
	change := "mend the row in MySQL, and the letter closes itself with the next change of the row"
	table, sink := l.Table, l.Sink
	switch l.Class {
	case sinks.ClassMapping:
		if s.Store == "redis" {
			return change + "; or name other columns in tables[].redis, start the sink again, and then " + replay
		}
		return fmt.Sprintf("%s; or give the column another type in tables[].elastic.mapping and run: lockstep rebuild %s --table %s, and then: %s", change, sink, table, strings.TrimPrefix(replay, "run: "))
	case sinks.ClassTooLarge:
		limit := "max_document_bytes"
		if s.Store == "redis" {
			limit = "max_value_bytes"
		}
		return fmt.Sprintf("make the row smaller in MySQL, and the letter closes itself; or raise sinks.%s.%s.%s, start the sink again, and then %s", sink, s.Store, limit, replay)
	case sinks.ClassKey:
		of := "tables[].redis.key"
		if s.Store == "elastic" {
			of = "tables[].elastic.routing and routing_of_null"
		}
		return fmt.Sprintf("%s; or see to %s, start the sink again, and then %s", change, of, replay)
	case sinks.ClassWrongType:
		return fmt.Sprintf("find out who writes the key %q, delete it, and then %s", cmp.Or(s.Stored.Place["key"], "of the row"), replay)
	case sinks.ClassShape:
		return change + "; or mend tables[].shape, start the sink again, and then " + replay
	case sinks.ClassNoTable:
		return "when the table was dropped for good: " + skip + "; when it is back: " + strings.TrimPrefix(replay, "run: ")
	}
	return "look into the log of the store for what it says, and then " + replay
}
