package cdc

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"
)

// What an Encoder writes, Decode reads back, whatever the row holds.
func FuzzAChangeComesBack(f *testing.F) {
	c := sample()
	f.Add(string(c.Key), string(c.Before), string(c.After), c.Table.DB, c.Table.Table, c.GTID, uint64(c.Version), c.CommitMicros, uint32(7), byte(c.Op))
	f.Add(`{"a":"x","b":[1]}`, "", `{"a":"x","b":[1],"after":{"before":null}}`, "d\"", "t\n", "", uint64(1)<<42, int64(0), uint32(0), byte(OpRead))
	f.Fuzz(func(t *testing.T, key, before, after, db, table, gtid string, version uint64, commit int64, layout uint32, op byte) {
		c := Change{Table: TableName{db, table}, Op: Op(op), Version: Version(version), GTID: gtid, CommitMicros: commit, Layout: layout, Key: []byte(key)}
		if before != "" {
			c.Before = []byte(before)
		}
		if after != "" {
			c.After = []byte(after)
		}
		good := func(image []byte) bool { return image == nil || isObject(image) }
		ok := c.Version.Check() == nil && (c.Op == OpCreate || c.Op == OpUpdate || c.Op == OpDelete || c.Op == OpRead) && db != "" && table != "" &&
			isObject(c.Key) && good(c.Before) && good(c.After) && (c.Op == OpDelete) == (c.After == nil)
		e := NewEncoder("shop", c.Table)
		e.Set(&c)
		value := e.AppendValue(nil)
		if len(value) != e.ValueLen() {
			t.Fatalf("the value has %d bytes and says %d", len(value), e.ValueLen())
		}
		got, err := Decode(c.Key, value, e.Headers())
		switch {
		case ok && err != nil:
			t.Fatalf("%s is refused: %v", value, err)
		case ok && !reflect.DeepEqual(got, c):
			t.Fatalf("%+v came back as %+v", c, got)
		case err != nil && !errors.Is(err, ErrUndecodable):
			t.Fatalf("the error is no ErrUndecodable: %v", err)
		}
	})
}

// Whatever the headers are, they are a change of a table or refused as undecodable.
func FuzzHeadersOfAnyBytes(f *testing.F) {
	c := sample()
	c.Layout = 9
	for _, h := range [][]Header{c.Headers(), (&Change{Table: c.Table, Op: OpGrowth, Version: c.Version, Growth: &Growth{Partitions: 3, Behind: []int64{1, 0, 7}}}).Headers()} {
		text := []byte{}
		for _, one := range h {
			text = append(append(append(append(text, one.Key...), 0), one.Value...), 0)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var headers []Header
		parts := bytes.Split(text, []byte{0})
		for i := 0; i+1 < len(parts); i += 2 {
			headers = append(headers, Header{string(parts[i]), parts[i+1]})
		}
		c, err := DecodeHeaders(nil, headers)
		switch {
		case err != nil && !errors.Is(err, ErrUndecodable):
			t.Fatalf("the error is no ErrUndecodable: %v", err)
		case err == nil && (c.Version.Check() != nil || !c.Op.Valid() || c.Table.DB == "" || c.Table.Table == "" || (c.Op == OpGrowth) != (c.Growth != nil)):
			t.Fatalf("%+v is let in", c)
		case err != nil:
			return
		}
		again, err := DecodeHeaders(nil, c.Headers())
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v came back as %+v, %v", c, again, err)
		}
	})
}

// A text is JSON here when it is JSON for the standard library, save that which is nested
// too deep for one of the two.
func FuzzValidIsWhatIsJSON(f *testing.F) {
	f.Add([]byte(`{"id":1,"j":{"a":[1.5e3,"\u00e9\n",null,true]}}`))
	f.Add([]byte(`{"a":"\"[{"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 4096 {
			return
		}
		if got, want := Valid(text), json.Valid(text); got != want {
			t.Fatalf("%q is JSON: %t, and for the standard library: %t", text, got, want)
		}
	})
}

// A key of any bytes is read into columns whose texts make the same key again, or refused.
func FuzzAKeyOfAnyBytes(f *testing.F) {
	f.Add([]byte(`{"id":1}`), "q:{id}", "q:1")
	f.Add([]byte(`{"a":"x:%","b":-7}`), "{{{a}}}:{pk}:{db}.{table}", "{x%3A%25}:x%3A%25:-7:d.t")
	f.Add([]byte(`{"s":["a","b"],"f":1.5}`), "{pk}", "%5B")
	f.Fuzz(func(t *testing.T, key []byte, template, text string) {
		fields, err := KeyFields(key)
		if err == nil {
			texts := make([]string, len(fields))
			for i, one := range fields {
				texts[i] = one.Text
			}
			joined, err := KeyText(key)
			if err != nil {
				t.Fatalf("%s has fields and no text: %v", key, err)
			}
			if split, ok := SplitKey(joined, len(fields)); !ok || !slices.Equal(split, texts) {
				t.Fatalf("%s is %q, and that %q", key, joined, split)
			}
		}
		kt, err := ParseKeyTemplate(template)
		if err != nil || len(template) > 200 || len(text) > 200 {
			return
		}
		table := Table{Name: TableName{"d", "t"}, Key: []string{"a", "b"}, Columns: []Column{{Name: "a", Kind: KindKeyword}, {Name: "b", Kind: KindInt}}}
		columns, err := kt.Read(table, text)
		if err != nil {
			return
		}
		row := []byte{'{'}
		for name, value := range maps.All(columns) {
			if len(row) > 1 {
				row = append(row, ',')
			}
			row = AppendString(append(AppendString(row, name), ':'), value)
		}
		if !kt.Gives(table.Name, text, columns) {
			t.Fatalf("%s: %q is read as %s, which does not give it", template, text, append(row, '}'))
		}
	})
}
