package config

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Problem is one mistake in a configuration file and its place.
type Problem struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"` // from 1; 0 when the file as a whole is meant
	Column int    `json:"column,omitempty"`
	// Path of the field, such as sinks.search.elastic.bulk_bytes; empty when the
	// text is not YAML.
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
}

func (p Problem) Error() string {
	message := p.Message
	if p.Path != "" && !strings.HasPrefix(p.Message, "unknown field") && !strings.HasPrefix(p.Message, "duplicate key") {
		message = p.Path + ": " + p.Message
	}
	if p.Line == 0 {
		return p.File + ": " + message
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, message)
}

// Problems is everything that is wrong with a file, in the order of its lines.
// It never holds a secret.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

func (ps Problems) in(file string) Problems {
	for i := range ps {
		ps[i].File = file
	}
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return ps
}

// fieldPath is how the errors of a Check begin.
var fieldPath = regexp.MustCompile(`(?s)^([A-Za-z0-9_-]+(?:\[\d+\])?(?:\.[A-Za-z0-9_-]+(?:\[\d+\])?)*): (.+)`)

// leaves lists the errors that were joined into err.
func leaves(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, leaves(e)...)
	}
	return out
}

// under puts the path of a section before the errors of its own Check.
func under(path string, err error) []error {
	var out []error
	for _, e := range leaves(err) {
		if fieldPath.MatchString(e.Error()) {
			out = append(out, fmt.Errorf("%s.%w", path, e))
		} else {
			out = append(out, fmt.Errorf("%s: %w", path, e))
		}
	}
	return out
}

// locate gives each error of a Check its place: that of its field, or of the
// nearest section around it that the file has. What follows from a mistake that
// the decoder named already is left out.
func (d *decoder) locate(err error) Problems {
	var out Problems
	for _, e := range leaves(err) {
		p := Problem{Message: e.Error()}
		if m := fieldPath.FindStringSubmatch(p.Message); m != nil {
			p.Path, p.Message = m[1], m[2]
		}
		if slices.ContainsFunc(d.wrong, func(w string) bool { return within(p.Path, w) }) {
			continue
		}
		at := place{1, 1}
		for path := p.Path; path != ""; path = parent(path) {
			if found, ok := d.places[path]; ok {
				at = found
				break
			}
		}
		p.Line, p.Column = at.line, at.column
		out = append(out, p)
	}
	return out
}

// within reports whether path is outer or a field of it.
func within(path, outer string) bool {
	rest, ok := strings.CutPrefix(path, outer)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

func parent(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}
