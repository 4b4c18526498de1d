package config

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"lockstep/internal/files"
	"lockstep/internal/nearest"
	"lockstep/internal/secret"
)

// decoder puts a YAML tree into a struct and goes on after a mistake, so that one
// run names all of them. It is ours because the library's decoder stops at its
// first mistake and prints the lines around it, secrets included. No message of
// the decoder repeats a value.
type decoder struct {
	env      func(string) (string, bool)
	defaults map[reflect.Type]any // what a struct made on the way starts from
	anchors  map[string]ast.Node
	places   map[string]place // path -> where it stands
	wrong    []string         // paths that could not be decoded
	problems Problems
	within   map[string]bool // anchors whose alias is being followed
	repeated int             // values that aliases have stood for
}

// mostRepeated is how many values aliases may stand for: aliases of aliases make a small file a
// large one.
const mostRepeated = 100_000

type place struct{ line, column int }

func newDecoder(env func(string) (string, bool), defaults ...any) *decoder {
	d := &decoder{env: env, defaults: map[reflect.Type]any{}, anchors: map[string]ast.Node{}, places: map[string]place{}, within: map[string]bool{}}
	for _, v := range defaults {
		d.defaults[reflect.TypeOf(v)] = v
	}
	return d
}

// Visit collects anchors, so that an alias can be followed.
func (d *decoder) Visit(n ast.Node) ast.Visitor {
	if a, ok := n.(*ast.AnchorNode); ok {
		d.anchors[a.Name.GetToken().Value] = a.Value
	}
	return d
}

func (d *decoder) fail(at place, path, format string, args ...any) {
	d.wrong = append(d.wrong, path)
	d.problems = append(d.problems, Problem{Line: at.line, Column: at.column, Path: path, Message: fmt.Sprintf(format, args...)})
}

func (d *decoder) decode(n ast.Node, v reflect.Value, path string) {
	at := where(n)
	if len(d.within) > 0 {
		if d.repeated++; d.repeated > mostRepeated {
			if d.repeated == mostRepeated+1 {
				d.fail(at, path, "aliases stand for too much, for more than %d values; write them out", mostRepeated)
			}
			return
		}
	}
	switch node := n.(type) {
	case *ast.AnchorNode:
		d.decode(node.Value, v, path)
		return
	case *ast.AliasNode:
		name := node.Value.GetToken().Value
		target, ok := d.anchors[name]
		switch {
		case !ok:
			d.fail(at, path, "there is no anchor of this name; put a text that begins with * in quotes")
		case d.within[name]:
			d.fail(at, path, "the alias stands inside the anchor of its own name, so it would never end; write the values out")
		default:
			d.within[name] = true
			d.decode(target, v, path)
			delete(d.within, name)
		}
		return
	case *ast.TagNode:
		d.fail(at, path, "tags are not understood; put a text that begins with ! in quotes")
		return
	}
	if isScalar(n) {
		d.places[path] = at
	}
	if v.Kind() == reflect.Pointer {
		if _, null := n.(*ast.NullNode); null {
			d.fail(at, path, "has no value; write {} to take every default, or leave the line out")
			return
		}
		fresh := d.fresh(v.Type().Elem())
		d.decode(n, fresh, path)
		v.Set(fresh.Addr())
		return
	}
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok || v.Type() == reflect.TypeFor[time.Duration]() {
		d.scalar(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Interface:
		if value := d.free(n, path); value != nil {
			v.Set(reflect.ValueOf(value))
		}
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.list(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

// fresh makes a value to decode into: the registered default of its type, or zero.
func (d *decoder) fresh(t reflect.Type) reflect.Value {
	v := reflect.New(t).Elem()
	if def, ok := d.defaults[t]; ok {
		v.Set(reflect.ValueOf(def))
	}
	return v
}

// pairs lists the entries of a mapping and reports the keys it cannot take. A
// missing value counts as an empty mapping, so that a section whose lines are all
// commented out keeps its defaults.
func (d *decoder) pairs(n ast.Node, path, want string) []pair {
	if _, null := n.(*ast.NullNode); null {
		return nil
	}
	m, ok := n.(ast.MapNode)
	if !ok {
		d.fail(where(n), path, "wants %s, not %s", want, describe(n))
		return nil
	}
	var out []pair
	seen := map[string]place{}
	for iter := m.MapRange(); iter.Next(); {
		key := iter.Key()
		if key.IsMergeKey() {
			d.fail(where(key), path, "merge keys (<<) are not understood; write the fields out")
			continue
		}
		at, name := where(key), key.GetToken().Value
		if k, ok := key.(*ast.MappingKeyNode); ok {
			at, name = where(k.Value), k.Value.GetToken().Value
		}
		if first, twice := seen[name]; twice {
			d.fail(at, join(path, shown(name)), "duplicate key %q; it stands at line %d already", shown(name), first.line)
			continue
		}
		seen[name] = at
		out = append(out, pair{name, at, iter.Value()})
	}
	return out
}

type pair struct {
	name  string
	at    place
	value ast.Node
}

func (d *decoder) structure(n ast.Node, v reflect.Value, path string) {
	fields := fieldsOf(v.Type())
	given := map[string]bool{}
	for _, p := range d.pairs(n, path, "a mapping of fields") {
		full := join(path, p.name)
		if i := slices.IndexFunc(fields, func(f field) bool { return f.name == p.name }); i >= 0 {
			d.places[full] = p.at
			given[p.name] = true
			d.decode(p.value, v.FieldByIndex(fields[i].index), full)
			continue
		}
		base, isFile := strings.CutSuffix(p.name, fileSuffix)
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == base && f.secret })
		if isFile && i >= 0 {
			d.places[full] = p.at
			given[p.name] = true
			d.secretFile(p.value, v.FieldByIndex(fields[i].index), full)
			continue
		}
		message := fmt.Sprintf("unknown field %q", shown(p.name))
		if near := nearest.Name(p.name, fieldNames(fields)); near != "" {
			message += fmt.Sprintf("; did you mean %q?", near)
		}
		d.fail(p.at, join(path, shown(p.name)), "%s", message)
	}
	for _, f := range fields {
		if f.secret && given[f.name] && given[f.name+fileSuffix] {
			full := join(path, f.name+fileSuffix)
			d.fail(d.places[full], full, "%s is set too; keep one of the two", f.name)
		}
	}
}

const fileSuffix = "_file"

// secretFile reads the file named by <field>_file into the secret field.
func (d *decoder) secretFile(n ast.Node, v reflect.Value, path string) {
	var name string
	mistakes := len(d.problems)
	d.decode(n, reflect.ValueOf(&name).Elem(), path)
	if len(d.problems) > mistakes {
		return
	}
	text, err := files.Secret(name)
	if err != nil {
		d.fail(where(n), path, "%v", err)
		return
	}
	v.SetString(text)
	d.places[strings.TrimSuffix(path, fileSuffix)] = where(n)
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	if v.Type().Key().Kind() != reflect.String {
		panic("config: " + v.Type().String() + " has keys that are not text")
	}
	for _, p := range d.pairs(n, path, "a mapping of names") {
		full := join(path, p.name)
		d.places[full] = p.at
		elem := d.fresh(v.Type().Elem())
		d.decode(p.value, elem, full)
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
		v.SetMapIndex(reflect.ValueOf(p.name).Convert(v.Type().Key()), elem)
	}
}

// free reads what has no shape of ours, such as a field mapping that goes to the
// store as it stands. Variables in its texts are expanded.
func (d *decoder) free(n ast.Node, path string) any {
	switch node := n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		var inner any // decode knows what to do with these and comes back here
		d.decode(node, reflect.ValueOf(&inner).Elem(), path)
		return inner
	case *ast.NullNode:
		return nil
	case *ast.BoolNode:
		return node.Value
	case *ast.IntegerNode:
		return node.Value
	case *ast.FloatNode:
		return node.Value
	case *ast.SequenceNode:
		out := []any{}
		d.list(n, reflect.ValueOf(&out).Elem(), path)
		return out
	case ast.MapNode:
		out := map[string]any{}
		d.mapping(n, reflect.ValueOf(&out).Elem(), path)
		return out
	default:
		var text string
		d.scalar(n, reflect.ValueOf(&text).Elem(), path)
		return text
	}
}

func (d *decoder) list(n ast.Node, v reflect.Value, path string) {
	if _, null := n.(*ast.NullNode); null {
		return
	}
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(where(n), path, "wants a list such as [a, b], not %s", describe(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), 0, len(seq.Values))
	for i, item := range seq.Values {
		full := fmt.Sprintf("%s[%d]", path, i)
		d.places[full] = where(item)
		elem := d.fresh(v.Type().Elem())
		d.decode(item, elem, full)
		out = reflect.Append(out, elem)
	}
	v.Set(out)
}

// scalar sets a field that is one value. Text that names a variable is expanded
// first and may then be any kind of value: port: ${PORT}.
func (d *decoder) scalar(n ast.Node, v reflect.Value, path string) {
	at := where(n)
	if _, null := n.(*ast.NullNode); null {
		want := wanted(v.Type())
		if v.Kind() == reflect.String {
			want += ` (the word null in quotes)`
		}
		d.fail(at, path, "has no value; give %s, or leave the line out", want)
		return
	}
	text, isText := textOf(n)
	expanded := false
	if isText {
		raw := text
		var err error
		if text, err = expand(text, d.env); err != nil {
			d.fail(at, path, "%v", err)
			return
		}
		expanded = strings.Contains(raw, "${")
	}
	mismatch := func() {
		if expanded {
			d.fail(at, path, "wants %s, which is not what the variable holds", wanted(v.Type()))
			return
		}
		d.fail(at, path, "wants %s, not %s", wanted(v.Type()), describe(n))
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if !isText {
			mismatch()
		} else if err := u.UnmarshalText([]byte(text)); err != nil {
			d.fail(at, path, "%v", err)
		}
		return
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		if _, isInteger := n.(*ast.IntegerNode); isInteger && n.GetToken().Value == "0" {
			text, isText = "0", true // zero needs no unit
		}
		parsed, err := time.ParseDuration(text)
		if !isText || err != nil {
			d.fail(at, path, "wants %s", wanted(v.Type()))
			return
		}
		v.SetInt(int64(parsed))
		return
	}
	literal := text
	if !isText {
		literal = n.GetToken().Value
	}
	switch v.Kind() {
	case reflect.String:
		if !isText {
			d.fail(at, path, "wants text, not %s; put it in quotes", describe(n))
			return
		}
		v.SetString(text)
	case reflect.Bool:
		_, isBool := n.(*ast.BoolNode)
		parsed, err := strconv.ParseBool(literal)
		if err != nil || !isBool && !expanded {
			mismatch()
			return
		}
		v.SetBool(parsed)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		_, isInteger := n.(*ast.IntegerNode)
		if !isInteger && !expanded || !setInteger(v, literal) {
			mismatch()
		}
	case reflect.Float32, reflect.Float64:
		_, isInteger := n.(*ast.IntegerNode)
		_, isFloat := n.(*ast.FloatNode)
		parsed, err := strconv.ParseFloat(literal, 64)
		if err != nil || math.IsNaN(parsed) || math.IsInf(parsed, 0) || !isInteger && !isFloat && !expanded {
			mismatch()
			return
		}
		v.SetFloat(parsed)
	default:
		panic("config: a field of type " + v.Type().String() + " cannot be read from YAML")
	}
}

// setInteger takes plain decimal digits only, with _ between them: a leading
// zero means eight to some readers and ten to others.
func setInteger(v reflect.Value, text string) bool {
	text = strings.ReplaceAll(text, "_", "")
	if digits := strings.TrimLeft(text, "+-"); len(digits) > 1 && digits[0] == '0' {
		return false
	}
	if v.CanInt() {
		i, err := strconv.ParseInt(text, 10, 64)
		if err != nil || v.OverflowInt(i) {
			return false
		}
		v.SetInt(i)
		return true
	}
	u, err := strconv.ParseUint(text, 10, 64)
	if err != nil || v.OverflowUint(u) {
		return false
	}
	v.SetUint(u)
	return true
}

// wanted names what a field of this type takes.
func wanted(t reflect.Type) string {
	if t == reflect.TypeFor[time.Duration]() {
		return `a duration with its unit such as "500ms", "10s" or "2m"`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Int8, reflect.Int16, reflect.Int32:
		limit := int64(1) << (t.Bits() - 1)
		return fmt.Sprintf("a whole number from %d to %d", -limit, limit-1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(math.MaxUint64)>>(64-t.Bits()))
	case reflect.Float32, reflect.Float64:
		return "a number"
	default:
		return "text"
	}
}

// describe names the kind of a value, never the value: it may be a secret.
func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.NullNode:
		return "nothing"
	case *ast.StringNode, *ast.LiteralNode:
		return "text"
	case *ast.IntegerNode:
		return "this whole number"
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "this number"
	case *ast.BoolNode:
		return "true or false"
	case *ast.SequenceNode:
		return "a list"
	case ast.MapNode:
		return "a mapping"
	default:
		return "this"
	}
}

func textOf(n ast.Node) (string, bool) {
	switch node := n.(type) {
	case *ast.StringNode:
		return node.Value, true
	case *ast.LiteralNode:
		return node.Value.Value, true
	default:
		return "", false
	}
}

// isScalar reports whether a mistake in n is best shown at n itself; for the
// others that is their key.
func isScalar(n ast.Node) bool {
	switch n.(type) {
	case ast.MapNode, *ast.SequenceNode, *ast.NullNode:
		return false
	default:
		return true
	}
}

// where a node begins. The library gives a block mapping the place of its first
// colon; its first key is what a reader looks for.
func where(n ast.Node) place {
	if m, ok := n.(ast.MapNode); ok && n.GetToken().Type == token.MappingValueType {
		if iter := m.MapRange(); iter.Next() {
			return where(iter.Key())
		}
	}
	p := n.GetToken().Position
	return place{p.Line, p.Column}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// field is a struct field as the file knows it.
type field struct {
	name   string
	index  []int
	secret bool
}

func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case !f.IsExported() && !f.Anonymous, name == "-":
		case options == "inline":
			for _, inner := range fieldsOf(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				out = append(out, inner)
			}
		default:
			if name == "" {
				panic(fmt.Sprintf("config: %s.%s has no yaml tag", t, f.Name))
			}
			out = append(out, field{name, []int{i}, f.Type == reflect.TypeFor[secret.Text]()})
		}
	}
	return out
}

func fieldNames(fields []field) []string {
	var names []string
	for _, f := range fields {
		names = append(names, f.name)
		if f.secret {
			names = append(names, f.name+fileSuffix)
		}
	}
	return names
}

// shown is a key as a message may repeat it: up to the first character that no
// field name has. What follows may be a value whose colon lacks its space, and
// that value a secret.
func shown(name string) string {
	end := strings.IndexFunc(name, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if end < 0 {
		return name
	}
	return name[:end] + "..."
}
