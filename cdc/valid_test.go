package cdc

import (
	"strings"
	"testing"
)

func TestJSONIsValidUnlessItIsNestedTooDeep(t *testing.T) {
	nested := func(open, inner, shut string, n int) string {
		return strings.Repeat(open, n) + inner + strings.Repeat(shut, n)
	}
	for name, c := range map[string]struct {
		text string
		want bool
	}{
		"a row":                        {`{"id":1,"j":{"a":[1,[2]]}}`, true},
		"no JSON":                      {`{"id":}`, false},
		"what MySQL takes":             {nested("[", "1", "]", 100), true},
		"wide and not deep":            {"[" + strings.Repeat(`{"a":[]},`, shallow) + "1]", true},
		"brackets in a text":           {`{"a":"` + strings.Repeat(`\"[{`, shallow) + `"}`, true},
		"arrays, deeper than a stack":  {nested("[", "", "]", 8<<20), false},
		"objects, deeper than a stack": {nested(`{"a":`, "1", "}", 4<<20), false},
		"never shut":                   {strings.Repeat("[", 16<<20), false},
		"deep behind much text":        {`{"a":"` + strings.Repeat("x", 1<<20) + `","b":` + nested("[", "", "]", 4<<20) + "}", false},
	} {
		if got := Valid([]byte(c.text)); got != c.want {
			t.Errorf("%s: valid is %t", name, got)
		}
	}
}
