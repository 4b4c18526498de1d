package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"lockstep/internal/files"
)

// Read gives the text of the file at path. Its error says what to do. A pipe is read to its
// end: lockstep config check -c /dev/stdin.
func Read(path string) ([]byte, error) {
	read := files.Read
	if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		read = files.Drain
	}
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("there is no such file; name one with --config, or begin with: lockstep config example > lockstep.yaml")
	}
	return data, err
}

// Parse reads and checks a configuration; name stands for its file in messages,
// and env looks up the variables of ${NAME}. The error is of type Problems and
// names everything that is wrong at once, except that a text which is not YAML
// is not looked at any further. A relative path in a *_file begins at the working
// directory, as all other paths do.
func Parse(name string, data []byte, env func(string) (string, bool)) (*Config, error) {
	c := Default()
	if problems := parse(data, env, &c, func() error { return c.Check() }, Sections()...); len(problems) > 0 {
		return nil, problems.in(name)
	}
	c.Source.Masks = c.masks
	return &c, nil
}

// parse decodes data on top of target and then asks check, whose errors it puts
// in their places.
func parse(data []byte, env func(string) (string, bool), target any, check func() error, defaults ...any) Problems {
	body, problem := syntax(data)
	if problem != nil {
		return Problems{*problem}
	}
	d := newDecoder(env, defaults...)
	ast.Walk(d, body)
	d.decode(body, reflect.ValueOf(target).Elem(), "")
	if _, isMapping := body.(ast.MapNode); isMapping {
		d.problems = append(d.problems, d.locate(check())...)
	}
	return d.problems
}

// ListNames names the sinks of a configuration that need not be right otherwise, and the tables
// that it names in full, in the order in which they stand there. Shell completion asks for it.
func ListNames(data []byte) (sinks, tables []string) {
	body, problem := syntax(data)
	if problem != nil {
		return nil, nil
	}
	d := newDecoder(nil)
	for _, section := range d.pairs(body, "", "") {
		switch section.name {
		case "sinks":
			for _, sink := range d.pairs(section.value, "", "") {
				sinks = append(sinks, sink.name)
			}
		case "tables":
			entries, ok := section.value.(*ast.SequenceNode)
			if !ok {
				continue
			}
			for _, entry := range entries.Values {
				for _, field := range d.pairs(entry, "", "") {
					match, ok := field.value.(*ast.StringNode)
					if ok && field.name == "match" && !strings.Contains(match.Value, "*") {
						tables = append(tables, match.Value)
					}
				}
			}
		}
	}
	return sinks, tables
}

// syntax parses the text of one YAML document.
func syntax(data []byte) (ast.Node, *Problem) {
	if !utf8.Valid(data) {
		return nil, &Problem{Message: "is not UTF-8; save it as that"}
	}
	for _, look := range []func([]byte) *Problem{tabProblem, depthProblem} {
		if p := look(data); p != nil {
			return nil, p
		}
	}
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, syntaxProblem(data, err)
	}
	var body ast.Node
	for i, doc := range file.Docs {
		switch {
		case i > 0 && doc.Start != nil:
			return nil, &Problem{Line: doc.Start.Position.Line, Column: doc.Start.Position.Column, Message: "a second YAML document begins here; one file is one configuration"}
		case i > 0 && doc.Body != nil:
			at := where(doc.Body)
			return nil, &Problem{Line: at.line, Column: at.column, Message: "a second YAML document begins here; one file is one configuration"}
		case i == 0:
			body = doc.Body
		}
	}
	if _, null := body.(*ast.NullNode); null || body == nil {
		return nil, &Problem{Message: "is empty; begin with: lockstep config example > lockstep.yaml"}
	}
	return body, nil
}

// tabProblem finds the first tab in an indentation. The library takes some of
// them, and counts each as one space.
func tabProblem(data []byte) *Problem {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
		tab := bytes.IndexByte(indent, '\t')
		if blank := len(bytes.TrimSpace(line)) == 0; tab >= 0 && !blank {
			return &Problem{Line: n, Column: tab + 1, Message: "a tab character stands in the indentation; indent with spaces"}
		}
	}
	return nil
}

// mostDeep is how deep values may stand in one another: the library goes down with them on its
// stack, of which there is an end that no process survives.
const mostDeep = 500

// depthProblem finds where values stand too deep. It counts brackets, and the marks before a value
// that stand side by side, wherever they are: no text has so many that are not closed.
func depthProblem(data []byte) *Problem {
	n, depth, marks := 0, 0, 0
	for line := range bytes.Lines(data) {
		n++
		for _, b := range line {
			switch b {
			case '[', '{':
				depth++
			case ']', '}':
				depth = max(0, depth-1)
			}
			if depth > mostDeep {
				return tooDeep(n)
			}
		}
		for word := range bytes.FieldsSeq(line) {
			if marks++; !bytes.ContainsAny(word[:1], "&!-?:") {
				marks = 0
			}
			if marks > mostDeep {
				return tooDeep(n)
			}
		}
	}
	return nil
}

func tooDeep(line int) *Problem {
	return &Problem{Line: line, Column: 1, Message: fmt.Sprintf("values stand deeper than %d in one another", mostDeep)}
}

// repeated is a part of a message that repeats a piece of the file.
var repeated = regexp.MustCompile(`"[^"]{2,}"`)

// syntaxProblem says where the text stops being YAML. The library's own message
// ends with the lines around that place; those may hold a secret and are left out.
func syntaxProblem(data []byte, err error) *Problem {
	detail, ok := errors.AsType[yaml.Error](err)
	if !ok || detail.GetToken() == nil || detail.GetToken().Position == nil {
		return &Problem{Message: "is not YAML"}
	}
	at := detail.GetToken().Position
	p := &Problem{Line: at.Line, Column: at.Column}
	lines := strings.Split(string(data), "\n")
	line := ""
	if at.Line >= 1 && at.Line <= len(lines) {
		line = lines[at.Line-1]
	}
	before := line
	if at.Column >= 1 && at.Column <= len(line) {
		before = line[:at.Column-1]
	}
	switch {
	case strings.HasSuffix(before, "$"):
		p.Column--
		p.Message = `inside { } and [ ] a variable needs quotes: "${NAME}"`
	case repeated.MatchString(detail.GetMessage()):
		p.Message = "not YAML: this cannot stand here"
	default:
		p.Message = fmt.Sprintf("not YAML: %s", detail.GetMessage())
	}
	return p
}
