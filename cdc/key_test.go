package cdc

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

var keyed = Table{Name: TableName{DB: "shop", Table: "orders"}, Columns: []Column{
	{Name: "region", Kind: KindKeyword}, {Name: "n", Kind: KindInt}, {Name: "tags", Kind: KindSet}, {Name: "level", Kind: KindKeyword},
}, Key: []string{"region", "n"}}

func TestAKeyIsReadBackFromItsText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		region := rapid.StringOf(rapid.SampledFrom([]rune(`a:%3A5{}|"ü`))).Draw(t, "region")
		n := rapid.Int64().Draw(t, "n")
		key, err := keyed.KeyOf(func(column string) (string, bool) {
			return map[string]string{"region": region, "n": string(appendInt(n))}[column], true
		})
		if err != nil {
			t.Fatal(err)
		}
		text, err := KeyText(key)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := keyed.ParseKey(text); err != nil || string(back) != string(key) {
			t.Fatalf("%s became %s and was read as %s: %v", key, text, back, err)
		}
	})
}

func appendInt(n int64) []byte {
	c := Change{CommitMicros: n}
	for _, h := range c.Headers() {
		if h.Key == HeaderCommit {
			return h.Value
		}
	}
	return []byte("0")
}

func TestTheColumnsOfAKeyAreReadBackFromItsTemplate(t *testing.T) {
	one := keyed
	one.Key = []string{"n"}
	for _, c := range []struct {
		template, key string
		table         Table
		want          string // region n level, or an error
	}{
		{"{table}:{n}", "orders:7", one, " 7 "},
		{"{table}:{n}", "orders:07", one, "no"},
		{"{table}:{n}", "others:7", one, "no"},
		{"q:{n}:tags", "q:7:tags", one, " 7 "},
		{"q:{n}:tags", "q:7", one, "no"},
		{"{pk}", "a%3Ab:7", keyed, "a:b 7 "},
		{"{level}:{n}", "b%3A1:7", one, " 7 b:1"},
		{"{level}|{n}", "a|7|8", one, " 8 a|7"},
		{"{region}|{level}|{n}", "a|b|c|8", keyed, "ambiguous"},
		{"{n}{level}", "77", one, "ambiguous"},
		{"{n}{level}", "7x", one, " 7 x"},
		{"{n}{level}", "", one, "no"},
	} {
		template, err := ParseTemplate(c.template)
		if err != nil {
			t.Fatal(err)
		}
		got := "no"
		columns, err := template.Read(c.table, c.key)
		switch {
		case err == nil:
			got = columns["region"] + " " + columns["n"] + " " + columns["level"]
		case errors.Is(err, ErrAmbiguous):
			got = "ambiguous"
		}
		if got != c.want {
			t.Errorf("%s of %s gives %q (%v); want %q", c.key, c.template, got, err, c.want)
		}
	}
}
