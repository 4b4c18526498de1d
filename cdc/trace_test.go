package cdc

import (
	"strings"
	"testing"
)

func TestATraceTravelsInTheRecordOfItsChange(t *testing.T) {
	made := Trace{ID: [16]byte{1, 2, 3}, Parent: [8]byte{9}}
	c := Change{Table: TableName{"shop", "orders"}, Op: OpCreate, Version: 4398046511111, Key: []byte(`{"id":1}`), After: []byte(`{"id":1}`)}
	c.Trace = made.Of(c.Version)
	if again := made.Of(c.Version); again != c.Trace || c.Trace.Span == [8]byte{} {
		t.Errorf("the span is %x and then %x", c.Trace.Span, again.Span)
	}
	if other := made.Of(c.Version + 1); other.Span == c.Trace.Span {
		t.Error("two changes have one span")
	}
	e := NewEncoder("p", c.Table)
	e.Set(&c)
	back, err := DecodeHeaders(c.Key, e.Headers())
	if err != nil {
		t.Fatal(err)
	}
	if want := (Trace{ID: c.Trace.ID, Span: c.Trace.Span}); back.Trace != want {
		t.Errorf("%+v came back as %+v", want, back.Trace)
	}
	c.Trace = Trace{}
	e.Set(&c)
	for _, h := range e.Headers() {
		if h.Key == HeaderTrace {
			t.Errorf("a change that is not traced has %s", h.Value)
		}
	}
}

func TestATraceparentIsReadAsTheStandardSays(t *testing.T) {
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for text, traced := range map[string]bool{
		"00-" + id + "-" + span + "-01":                      true,
		"00-" + id + "-" + span + "-03":                      true,
		"cc-" + id + "-" + span + "-01":                      true,
		"cc-" + id + "-" + span + "-01-what":                 true,
		"00-" + id + "-" + span + "-00":                      false, // its sender does not trace
		"00-" + id + "-" + span + "-01-what":                 false,
		"cc-" + id + "-" + span + "-01what":                  false,
		"ff-" + id + "-" + span + "-01":                      false,
		"00-" + strings.ToUpper(id) + "-" + span + "-01":     false,
		"00-" + strings.Repeat("0", 32) + "-" + span + "-01": false,
		"00-" + id + "-" + strings.Repeat("0", 16) + "-01":   false,
		"00-" + id + "-" + span + "-0x":                      false,
		"00-" + id + "-" + span:                              false,
		"":                                                   false,
	} {
		if got := ParseTrace([]byte(text)).Traced(); got != traced {
			t.Errorf("%s: traced %v", text, got)
		}
	}
}
