package oracle

import "testing"

func TestJSONIsComparedByMeaningAndItsNumbersToTheLastDigit(t *testing.T) {
	for _, c := range []struct {
		want, got string
		same      bool
	}{
		{`{"a": 1, "b": [true, null]}`, `{"b":[true,null],"a":1}`, true},
		{`{"a": 1}`, `{"a":1,"b":null}`, false},
		{`{"a": null}`, `{}`, false},
		{`{"a": null}`, `{"b":null}`, false},
		{`[1, 2]`, `[2,1]`, false},
		{`[1]`, `[1,1]`, false},
		{`[]`, `{}`, false},
		{`0.0000001`, `1e-07`, true},
		{`1.5e300`, `1.5e+300`, true},
		{`-0.5`, `0.5`, false},
		{`1.0`, `1`, false},
		{`1`, `"1"`, false},
		{`"1"`, `1`, false},
		{`true`, `"true"`, false},
		{`9007199254740993`, `9007199254740992`, false},
		{`18446744073709551615`, `18446744073709551615`, true},
		{`0.30000000000000004`, `0.3`, false},
		{`"é"`, `"\u00e9"`, true},
		{`"a "`, `"a"`, false},
	} {
		f := newField("doc", jsonValue, []byte(c.want))
		var got any
		if err := decodeJSON([]byte(c.got), &got); err != nil {
			t.Fatal(err)
		}
		if f.equal(got) != c.same {
			t.Errorf("%s and %s: want same %t", c.want, c.got, c.same)
		}
	}
}
