package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lockstep/internal/secret"
)

// sample has every kind of field that a configuration may have.
type sample struct {
	Text    string           `yaml:"text"`
	Secret  secret.Text      `yaml:"password"`
	Bytes   int              `yaml:"bulk_bytes"`
	Port    uint16           `yaml:"port"`
	Share   float64          `yaml:"share"`
	On      bool             `yaml:"on"`
	Wait    time.Duration    `yaml:"wait"`
	Names   []string         `yaml:"names"`
	Inner   inner            `yaml:"inner"`
	Pointer *inner           `yaml:"pointer"`
	Stores  map[string]store `yaml:"stores"`
	Items   []inner          `yaml:"items"`
	Waits   []time.Duration  `yaml:"waits"`
	Free    map[string]any   `yaml:"free"`
}

type store struct {
	Inner *inner `yaml:"inner"`
}

type inner struct {
	Key  string      `yaml:"key"`
	Size int         `yaml:"size"`
	Auth secret.Text `yaml:"auth"`
}

func (s sample) check() error {
	var errs []error
	if s.Bytes == 0 {
		errs = append(errs, errors.New("bulk_bytes: 0 is too small; use 1 to 9"))
	}
	for name, st := range s.Stores {
		if st.Inner != nil && st.Inner.Size < 0 {
			errs = append(errs, under("stores."+name+".inner", errors.New("size: is below zero"))...)
		}
	}
	for i, item := range s.Items {
		if item.Key == "" {
			errs = append(errs, fmt.Errorf("items[%d].key: is empty", i))
		}
	}
	return errors.Join(errs...)
}

// read decodes text as t.yaml over a sample whose defaults are not zero.
func read(t *testing.T, text string, env map[string]string) (sample, Problems) {
	t.Helper()
	s := sample{Text: "default", Bytes: 5, Names: []string{"d"}, Inner: inner{Key: "k", Size: 7}}
	look := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	problems := parse([]byte(text), look, &s, func() error { return s.check() }, inner{Size: 42})
	return s, problems.in("t.yaml")
}

func mustRead(t *testing.T, text string, env map[string]string) sample {
	t.Helper()
	s, problems := read(t, text, env)
	if len(problems) > 0 {
		t.Fatalf("problems:\n%v", problems)
	}
	return s
}

func TestEveryKindOfValueIsReadOnTopOfItsDefault(t *testing.T) {
	got := mustRead(t, `
text: hello
password: hunter2
bulk_bytes: 1_000
port: 65535
share: 0.5
on: true
wait: 1m30s
names: [a, "b"]
inner:
  key: other
pointer: {key: p}
stores:
  one: {inner: {key: s}}
  two:
items:
  - key: i
waits: [1s, 2s]
free: {Body: {type: text, "n": [1, 2.5, true, ~, *f]}, other: &f {a: b}}
`, nil)
	want := sample{
		Text: "hello", Secret: "hunter2", Bytes: 1000, Port: 65535, Share: 0.5, On: true, Wait: 90 * time.Second,
		Names: []string{"a", "b"}, Inner: inner{Key: "other", Size: 7}, Pointer: &inner{Key: "p", Size: 42},
		Stores: map[string]store{"one": {Inner: &inner{Key: "s", Size: 42}}, "two": {}},
		Items:  []inner{{Key: "i", Size: 42}}, Waits: []time.Duration{time.Second, 2 * time.Second},
		Free: map[string]any{
			"Body":  map[string]any{"type": "text", "n": []any{uint64(1), 2.5, true, nil, map[string]any{"a": "b"}}},
			"other": map[string]any{"a": "b"},
		},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b secret.Text) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestAMistakeNamesItsPlaceAndTheWayOut(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want string
	}{
		"a misspelt field is answered with the nearest one": {
			"text: x\nbulk_byte: 1", `t.yaml:2:1: unknown field "bulk_byte"; did you mean "bulk_bytes"?`},
		"a misspelt field inside a list, a map and braces has its own column": {
			"items:\n  - {key: a, sise: 1}", `t.yaml:2:14: unknown field "sise"; did you mean "size"?`},
		"a misspelt secret file is answered too": {
			"pasword_file: x", `t.yaml:1:1: unknown field "pasword_file"; did you mean "password_file"?`},
		"a hyphen for an underscore is answered": {
			"bulk-bytes: 1", `t.yaml:1:1: unknown field "bulk-bytes"; did you mean "bulk_bytes"?`},
		"a field like no other gets no guess": {
			"zzzzzzzz: 1", `t.yaml:1:1: unknown field "zzzzzzzz"`},
		"only a secret has a file": {
			"text_file: x", `t.yaml:1:1: unknown field "text_file"`},
		"all mistakes are named in one go, in the order of the lines": {
			"port: x\ntxt: 1\nwait: 5\nbulk_bytes: 0\nitems:\n  - size: 1\n",
			`t.yaml:1:7: port: wants a whole number from 0 to 65535, not text
t.yaml:2:1: unknown field "txt"; did you mean "text"?
t.yaml:3:7: wait: wants a duration with its unit such as "500ms", "10s" or "2m"
t.yaml:4:13: bulk_bytes: 0 is too small; use 1 to 9
t.yaml:6:5: items[0].key: is empty`},
		"a check on a field that the file does not have points at its section": {
			"items:\n- {key: a}\n-\n  size: 2", `t.yaml:4:3: items[1].key: is empty`},
		"a check deep in a map points at the value": {
			"stores:\n  one:\n    inner:\n      size: -1", `t.yaml:4:13: stores.one.inner.size: is below zero`},
		"a check is not repeated where the value could not be read": {
			"items: [{key: {}, size: 1}]", `t.yaml:1:15: items[0].key: wants text, not a mapping; put it in quotes`},
		"a number too large for the field": {
			"port: 65536", `t.yaml:1:7: port: wants a whole number from 0 to 65535, not this whole number`},
		"a fraction where a whole number is wanted": {
			"bulk_bytes: 1.5", `t.yaml:1:13: bulk_bytes: wants a whole number, not this number`},
		"a number with a leading zero": {
			"bulk_bytes: 010", `t.yaml:1:13: bulk_bytes: wants a whole number, not this whole number`},
		"a number in quotes": {
			`bulk_bytes: "1"`, `t.yaml:1:13: bulk_bytes: wants a whole number, not text`},
		"a number where text is wanted": {
			"text: 0123", `t.yaml:1:7: text: wants text, not this whole number; put it in quotes`},
		"yes is not true": {
			"on: yes", `t.yaml:1:5: on: wants true or false, not text`},
		"infinity is no share": {
			"share: .inf", `t.yaml:1:8: share: wants a number, not this number`},
		"text where a list is wanted": {
			"names: a", `t.yaml:1:8: names: wants a list such as [a, b], not text`},
		"a list where a section is wanted": {
			"inner:\n  - key", `t.yaml:2:3: inner: wants a mapping of fields, not a list`},
		"a list as the whole file": {
			"- a", `t.yaml:1:1: wants a mapping of fields, not a list`},
		"a field without a value": {
			"on: ~", `t.yaml:1:5: on: has no value; give true or false, or leave the line out`},
		"a field whose line ends after its name": {
			"text:\nport: 1", `t.yaml:1:6: text: has no value; give text (the word null in quotes), or leave the line out`},
		"a word that YAML takes for nothing": {
			"text: null", `t.yaml:1:7: text: has no value; give text (the word null in quotes), or leave the line out`},
		"a store without a value": {
			"pointer: ~", `t.yaml:1:10: pointer: has no value; write {} to take every default, or leave the line out`},
		"a duplicate key": {
			"text: a\nport: 1\ntext: b", `t.yaml:3:1: duplicate key "text"; it stands at line 1 already`},
		"a duplicate name in a map": {
			"stores:\n  a: {}\n  a: {}", `t.yaml:3:3: duplicate key "a"; it stands at line 2 already`},
		"a merge key": {
			"inner:\n  <<: {key: a}", `t.yaml:2:3: inner: merge keys (<<) are not understood; write the fields out`},
		"a tag": {
			"text: !!str 1", `t.yaml:1:7: text: tags are not understood; put a text that begins with ! in quotes`},
		"an alias of nothing": {
			"text: *nobody", `t.yaml:1:7: text: there is no anchor of this name; put a text that begins with * in quotes`},
		"a tab in the indentation": {
			"inner:\n \tkey: a", `t.yaml:2:2: a tab character stands in the indentation; indent with spaces`},
		"a second document": {
			"text: a\n---\ntext: b", `t.yaml:2:1: a second YAML document begins here; one file is one configuration`},
		"an empty file":               {"", `t.yaml: is empty; begin with: lockstep config example > lockstep.yaml`},
		"a file of comments alone":    {"# later\n", `t.yaml: is empty; begin with: lockstep config example > lockstep.yaml`},
		"a file that says nothing":    {"~\n", `t.yaml: is empty; begin with: lockstep config example > lockstep.yaml`},
		"a quote that is never ended": {"text: \"a\n", `t.yaml:1:7: not YAML: could not find end character of double-quoted text`},
		"a bare variable in braces": {
			"inner: {key: ${A}}", `t.yaml:1:14: inside { } and [ ] a variable needs quotes: "${NAME}"`},
		"a variable that is not set": {
			"text: a\ninner: {key: \"x-${NOPE}\"}", `t.yaml:2:14: inner.key: the environment variable NOPE is not set; set it, or give a default: ${NOPE:-text}`},
		"a variable that is not ended": {
			"text: ${A", `t.yaml:1:7: text: ${ is not closed; write ${NAME}, or $${ for the characters themselves`},
		"a variable without a name": {
			"text: ${}", `t.yaml:1:7: text: what stands between ${ and } is not a variable; write ${NAME} or ${NAME:-text}, or $${ for the characters themselves`},
		"a variable of the wrong kind": {
			"port: ${WORD}", `t.yaml:1:7: port: wants a whole number from 0 to 65535, which is not what the variable holds`},
		"a secret and its file": {
			"password: a\npassword_file: testdata/nothing", `t.yaml:2:16: password_file: open testdata/nothing: no such file or directory
t.yaml:2:16: password_file: password is set too; keep one of the two`},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := read(t, tc.text, map[string]string{"WORD": "word"})
			if diff := cmp.Diff(sortedLines(tc.want), sortedLines(problems.Error())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func sortedLines(s string) map[string]bool {
	lines := map[string]bool{}
	for line := range strings.Lines(s) {
		lines[strings.TrimSpace(line)] = true
	}
	return lines
}

func TestProblemsComeInTheOrderOfTheirLines(t *testing.T) {
	_, problems := read(t, "bulk_bytes: 0\nport: x\nitems: [{size: 1}]\ntxt: 1", nil)
	for i, p := range problems {
		if p.Line != i+1 {
			t.Fatalf("problem %d is of line %d:\n%v", i, p.Line, problems)
		}
	}
	if len(problems) != 4 {
		t.Fatalf("got %d problems, want 4:\n%v", len(problems), problems)
	}
}

func TestASectionWhoseLinesAreAllCommentedOutKeepsItsDefaults(t *testing.T) {
	got := mustRead(t, "inner:\n  # key: other\nnames:\n", nil)
	if got.Inner != (inner{Key: "k", Size: 7}) || len(got.Names) != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestAnAliasRepeatsItsAnchor(t *testing.T) {
	got := mustRead(t, "inner: &i {key: same, size: 3}\npointer: *i\nitems: [*i]", nil)
	if got.Pointer.Key != "same" || got.Items[0].Size != 3 {
		t.Errorf("got %+v", got)
	}
}

func TestAVariableIsExpandedAfterTheYAMLIsParsed(t *testing.T) {
	env := map[string]string{
		"PW": "a: b # ${PORT}\nport: 1", "PORT": "13306", "ON": "true", "WAIT": "3s", "EMPTY": "",
	}
	for text, want := range map[string]sample{
		"password: ${PW}":                        {Secret: "a: b # ${PORT}\nport: 1"},
		"text: ${PORT}-${PORT}":                  {Text: "13306-13306"},
		"text: 'in quotes ${PORT}'":              {Text: "in quotes 13306"},
		"text: |-\n  in a block ${PORT}":         {Text: "in a block 13306"},
		"port: ${PORT}":                          {Port: 13306},
		"on: ${ON}":                              {On: true},
		"wait: ${WAIT}":                          {Wait: 3 * time.Second},
		"share: ${SHARE:-0.25}":                  {Share: 0.25},
		"text: ${NOPE:-localhost:1}":             {Text: "localhost:1"},
		"text: ${EMPTY:-filled}":                 {Text: "filled"},
		"text: ${EMPTY}":                         {Text: ""},
		"text: ${NOPE:-}":                        {Text: ""},
		"text: cost $5 and $$6 $${PORT} $":       {Text: "cost $5 and $6 ${PORT} $"},
		"names: [\"${PORT}\"]":                   {Names: []string{"13306"}},
		"stores: {a: {inner: {key: \"${ON}\"}}}": {Stores: map[string]store{"a": {Inner: &inner{Key: "true", Size: 42}}}},
	} {
		got := mustRead(t, text, env)
		base := mustRead(t, "{}", nil)
		switch { // what the text does not name keeps its default
		case strings.HasPrefix(text, "text"):
			base.Text = want.Text
		default:
			if want.Names != nil {
				base.Names = want.Names
			}
			base.Secret, base.Port, base.On, base.Wait, base.Share, base.Stores = want.Secret, want.Port, want.On, want.Wait, want.Share, want.Stores
		}
		if diff := cmp.Diff(base, got, cmp.Comparer(func(a, b secret.Text) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
}

func TestASecretIsReadFromItsFileWithoutTheLineEnds(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]secret.Text{
		"s3cret\n": "s3cret", "s3cret\r\n": "s3cret", "s3cret": "s3cret", " s3 \r\n\n": " s3 ", "${HOME}$$": "${HOME}$$",
	} {
		file := filepath.Join(dir, "pw")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got := mustRead(t, "password_file: ${DIR}/pw\nitems: [{key: a, auth_file: "+file+"}]", map[string]string{"DIR": dir})
		if got.Secret != want || got.Items[0].Auth != want {
			t.Errorf("file %q gives %q and %q, want %q", content, got.Secret.Reveal(), got.Items[0].Auth.Reveal(), want.Reveal())
		}
	}
}

func TestAnEmptySecretFileIsAMistake(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pw")
	if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, problems := read(t, "password_file: "+file, nil)
	if want := "t.yaml:1:16: password_file: " + file + " is empty"; problems.Error() != want {
		t.Errorf("got  %v\nwant %v", problems, want)
	}
}

// A secret may stand in any broken place; whatever is wrong around it, it is not
// repeated.
func TestNoMistakeRepeatsASecret(t *testing.T) {
	for _, text := range []string{
		"password: hunter2: x",
		"inner: {key: a, auth hunter2}",
		"inner: {key: a, \"auth:hunter2\": 1}",
		"inner:\n  key: a\n  auth:hunter2\n",
		"password: \"hunter2",
		"password: 'hunter2",
		"password: 'a'hunter2",
		"password: @hunter2",
		"password: `hunter2",
		"password: !hunter2",
		"password: !hunter2 hunter2",
		"password: !!hunter2 x",
		"password: *hunter2",
		"password: &hunter2",
		"password: {hunter2}",
		"password: [hunter2]",
		"password: [hunter2",
		"password: {hunter2: ",
		"password: \"\\hunter2\"",
		"password: ${hunter2-}",
		"password: a${hunter2",
		"password: ${A:-${hunter2}}",
		"password:\n\thunter2",
		"password: hunter2\n\tx: 1",
		"password: |hunter2",
		"password: >\nhunter2",
		"password: - hunter2",
		"password: hunter2\npassword: hunter2",
		"password: ? hunter2",
		"%hunter2\n---\n",
		"%YAML hunter2\n---\na: b",
		"- password: hunter2",
		"wait: hunter2",
		"port: hunter2",
		"port: ${PW}",
		"wait: ${PW}",
		"on: ${PW}",
		"password: hunter2\nbulk_bytes: 0\nport: -1",
		"password: ${PW}\nbulk_bytes: 0",
		"\"password\": \"hunter2\" x",
	} {
		_, problems := read(t, text, map[string]string{"PW": "hunter2"})
		if len(problems) == 0 {
			t.Errorf("%q: no problem", text)
		}
		if dump := fmt.Sprintf("%v %+v %#v", problems, problems, problems); strings.Contains(dump, "hunter2") {
			t.Errorf("%q: the secret is in: %s", text, dump)
		}
	}
}

func FuzzNoTextMakesTheLoaderPanic(f *testing.F) {
	for _, seed := range []string{"text: a\ninner: {key: b}", "a: &x [*x]", "a: *x", "? a\n: b", "- - - a", "{{a}: b}", "text: |\n a\n b", "inner: &a {key: *a}", "\xff", "items:\n- key: ${A:-b}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) { read(t, text, nil) })
}
