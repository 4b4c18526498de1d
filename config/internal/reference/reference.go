// Package reference turns the configuration's structs, their comments and their
// defaults into a JSON schema and a page for people, so that none of the three
// can say something else than the code.
package reference

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"

	"github.com/invopop/jsonschema"

	"lockstep/config"
	"lockstep/internal/secret"
)

// sources are the packages whose comments are read, from the module's root.
var sources = []string{"cdc/mysql", "kafka", "shape", "sinks", "reconcile", "route", "admin", "tracing", "config"}

// A value that names a variable may become anything once it is expanded.
const (
	variable        = `\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}`
	durationPattern = `^[+-]?([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$|^0$|` + variable
)

// Generate makes the schema and the page. The working directory must be the
// module's root. A field without a comment is an error.
func Generate() (schema, markdown []byte, err error) {
	r := &jsonschema.Reflector{
		Anonymous: true, DoNotReference: true, ExpandedStruct: true,
		RequiredFromJSONSchemaTags: true, FieldNameTag: "yaml",
		Mapper: leaf,
		Namer:  reflect.Type.String, // every package has its Config
	}
	for _, dir := range sources {
		if err := r.AddGoComments("lockstep", "./"+dir); err != nil {
			return nil, nil, err
		}
	}
	w := &walker{comments: r.CommentMap, sections: map[reflect.Type]reflect.Value{}, required: map[string]bool{}}
	def := config.Default()
	w.require("", def.Check())
	for _, section := range config.Sections() {
		w.sections[reflect.TypeOf(section)] = reflect.ValueOf(section)
		if c, ok := section.(interface{ Check() error }); ok {
			w.require(reflect.TypeOf(section).String(), c.Check())
		}
	}
	root := r.Reflect(&config.Config{})
	root.Title = "lockstep.yaml"
	root.Description = "A pipeline of Lockstep: one source, one Kafka, some sinks, and the tables that travel from the one to the others."
	if err := w.structure(root, reflect.ValueOf(def), "", ""); err != nil {
		return nil, nil, err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(root); err != nil {
		return nil, nil, err
	}
	return b.Bytes(), w.markdown(), nil
}

// leaf maps the types that are one value in YAML though Go sees more or less.
func leaf(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "string", Pattern: durationPattern}, {Const: 0}}}
	case reflect.TypeFor[secret.Text]():
		return &jsonschema.Schema{Type: "string"}
	default:
		return nil
	}
}

type walker struct {
	comments map[string]string
	sections map[reflect.Type]reflect.Value // what a struct made on the way starts from
	required map[string]bool                // "scope path" of what has no default
	rows     []row
}

// row is a line of the page.
type row struct{ path, kind, def, meaning string }

// require notes the fields about which the defaults alone do not pass the check:
// those, and no others, have no default.
func (w *walker) require(scope string, err error) {
	if err == nil {
		return
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		path, _, _ := strings.Cut(line, ": ")
		for ; path != ""; path = path[:max(0, strings.LastIndexByte(path, '.'))] {
			w.required[scope+" "+path] = true
		}
	}
}

// structure completes the schema of a struct. path is where it stands in the
// file, scope where in the struct whose Check was asked: "scope path".
func (w *walker) structure(s *jsonschema.Schema, def reflect.Value, path, scope string) error {
	t := def.Type()
	completed := jsonschema.NewProperties()
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "-" {
			continue
		}
		prop, ok := s.Properties.Get(name)
		if !ok {
			return fmt.Errorf("%s.%s has no yaml tag", t, f.Name)
		}
		comment := w.comments[t.PkgPath()+"."+t.Name()+"."+f.Name]
		if comment == "" {
			return fmt.Errorf("%s.%s has no comment", t, f.Name)
		}
		prop.Description = sentence(comment, f.Name, name)
		completed.Set(name, prop)
		inner := scope + "." + name
		if !strings.Contains(scope, " ") {
			inner = scope + " " + name
		}
		must := w.required[inner]
		if must && f.Type != reflect.TypeFor[secret.Text]() {
			s.Required = append(s.Required, name)
		}
		if err := w.field(prop, def.Field(i), join(path, name), inner, must || tagged(s, name)); err != nil {
			return err
		}
		if f.Type == reflect.TypeFor[secret.Text]() {
			completed.Set(name+"_file", &jsonschema.Schema{Type: "string", Description: "Path of a file that holds " + name + ", in place of it. Line ends at the end of the file are left out."})
		}
	}
	s.Properties = completed
	s.AdditionalProperties = jsonschema.FalseSchema
	return nil
}

// sentence is a comment on one line. A Go name of several words at its beginning
// becomes the name in the file; one of a single word reads well as it is.
func sentence(comment, goName, name string) string {
	text := strings.Join(strings.Fields(comment), " ")
	if rest, ok := strings.CutPrefix(text, goName+" "); ok && strings.ToLower(goName[1:]) != goName[1:] && strings.ToUpper(goName) != goName {
		return name + " " + rest
	}
	return text
}

func tagged(s *jsonschema.Schema, name string) bool {
	for _, r := range s.Required {
		if r == name {
			return true
		}
	}
	return false
}

func (w *walker) field(s *jsonschema.Schema, def reflect.Value, path, scope string, must bool) error {
	t := def.Type()
	add := func(kind string) {
		w.rows = append(w.rows, row{path, kind, shown(def, must), s.Description})
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		add("duration")
	case t == reflect.TypeFor[secret.Text]():
		add("secret text")
		return nil
	case t.Kind() == reflect.Pointer:
		section, ok := w.sections[t.Elem()]
		if !ok {
			return fmt.Errorf("%s: no default of %s is registered", path, t.Elem())
		}
		add("section")
		return w.structure(s, section, path, t.Elem().String())
	case t.Kind() == reflect.Struct:
		add("section")
		return w.structure(s, def, path, scope)
	case t.Kind() == reflect.Map && t.Elem().Kind() != reflect.Struct:
		add("mapping")
		return nil
	case t.Kind() == reflect.Map:
		add("section per name")
		if must {
			s.MinProperties = new(uint64(1))
		}
		s.PropertyNames = &jsonschema.Schema{Pattern: config.SinkPattern}
		each := s.AdditionalProperties
		if t.Elem() == reflect.TypeFor[config.Sink]() {
			each.MinProperties, each.MaxProperties = new(uint64(1)), new(uint64(1))
		}
		return w.structure(each, reflect.Zero(t.Elem()), path+".NAME", "none")
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		add("list of sections")
		if must {
			s.MinItems = new(uint64(1))
		}
		section, ok := w.sections[t.Elem()]
		if !ok {
			section = reflect.Zero(t.Elem())
		}
		return w.structure(s.Items, section, path+"[]", "none")
	case t.Kind() == reflect.Slice:
		kind, plural := kindOf(t.Elem()), "s"
		if kind == "text" {
			plural = ""
		}
		add("list of " + kind + plural)
	default:
		add(kindOf(t))
		scalar(s, t)
	}
	if !must && !(t.Kind() == reflect.String && def.Len() == 0) && !(t.Kind() == reflect.Slice && def.IsNil()) {
		s.Default = plain(def)
	}
	return nil
}

// scalar bounds a number and lets a variable stand for a number or a truth.
func scalar(s *jsonschema.Schema, t reflect.Type) {
	if t.Kind() == reflect.String {
		return
	}
	value := &jsonschema.Schema{Type: s.Type}
	if t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64 {
		value.Minimum = "0"
		value.Maximum = json.Number(fmt.Sprint(uint64(math.MaxUint64) >> (64 - t.Bits())))
	}
	s.Type = ""
	s.AnyOf = []*jsonschema.Schema{value, {Type: "string", Pattern: variable}}
}

func kindOf(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t.Kind() == reflect.String:
		return "text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Float64, t.Kind() == reflect.Float32:
		return "number"
	default:
		return "whole number"
	}
}

// plain is a default as it would stand in the file.
func plain(v reflect.Value) any {
	if v.Type() == reflect.TypeFor[time.Duration]() {
		return duration(time.Duration(v.Int()))
	}
	if v.Kind() == reflect.Slice {
		items := make([]any, v.Len())
		for i := range items {
			items[i] = plain(v.Index(i))
		}
		return items
	}
	return v.Interface()
}

// duration leaves out the zeros that time.Duration prints: 168h, not 168h0m0s.
func duration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// shown is a default as the page has it.
func shown(v reflect.Value, must bool) string {
	switch v.Kind() {
	case reflect.Struct, reflect.Map, reflect.Pointer:
		if must {
			return "required"
		}
		return ""
	}
	switch {
	case must:
		return "required"
	case v.Kind() == reflect.String && v.Len() == 0, v.Kind() == reflect.Slice && v.IsNil():
		return ""
	case v.Kind() == reflect.Slice:
		var items []string
		for _, item := range plain(v).([]any) {
			items = append(items, fmt.Sprint(item))
		}
		return "`[" + strings.Join(items, ", ") + "]`"
	default:
		return fmt.Sprintf("`%v`", plain(v))
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

const head = `# Configuration

<!-- Generated by go generate ./config from the comments in the code. -->

A pipeline is described in one YAML file, by default ` + "`lockstep.yaml`" + ` in the working
directory. ` + "`lockstep config example`" + ` prints one to begin with, ` + "`lockstep config check`" + `
names every mistake in one with its line and column, and ` + "`lockstep config schema`" + ` prints
the JSON schema for editors.

- A field that is not listed here is a mistake, not a comment.
- ` + "`${NAME}`" + ` in a value is the environment variable NAME, ` + "`${NAME:-text}`" + ` is text when it is
  unset or empty, and ` + "`$$`" + ` is a dollar. A variable that is unset and has no such text is a
  mistake. Variables are put in after the YAML is read, so their content needs no quoting;
  inside ` + "`{ }` and `[ ]`" + ` the ` + "`${NAME}`" + ` itself does.
- Beside each *secret text* there is a field of the same name with ` + "`_file`" + ` at its end. It
  takes the path of a file that holds the text, without line ends behind it. Set one of the two.
  Secrets are never printed. A relative path, of whatever file, begins at the working directory.
- A duration is a number with its unit: ` + "`500ms`, `10s`, `2m`, `168h`" + `.
- NAME stands for a name of your choice, ` + "`[]`" + ` for the entries of a list.

The same text can be the value of a key of etcd 3: ` + "`etcd://HOST:PORT,HOST:PORT/KEY`" + `, or ` + "`etcds://`" + ` with
TLS, stands wherever the path of a file may (` + "`--config`, `--against`, `$LOCKSTEP_CONFIG`" + `). The key begins with
the slash behind the hosts. [operating.md](operating.md#a-configuration-in-etcd) says how it is followed.

| variable | meaning |
| --- | --- |
| ` + "`LOCKSTEP_ETCD_CA_FILE`" + ` | PEM file with the authorities of etcds://. Default: those of the system. |
| ` + "`LOCKSTEP_ETCD_CERT_FILE`, `LOCKSTEP_ETCD_KEY_FILE`" + ` | PEM files with a certificate to show and its key, where etcd asks for one (` + "`--client-cert-auth`" + `). |
| ` + "`LOCKSTEP_ETCD_USER`, `LOCKSTEP_ETCD_PASSWORD_FILE`" + ` | the user and a file with the password, where etcd has them. The user needs no more than to read the key. |
`

func (w *walker) markdown() []byte {
	var b bytes.Buffer
	b.WriteString(head)
	open := false // whether a table is under way
	for _, r := range w.rows {
		section := strings.Contains(r.kind, "section")
		nested := strings.Count(strings.ReplaceAll(r.path, ".NAME", ""), ".") > 0
		if section && (!nested || strings.Contains(r.path, "NAME") && strings.Count(r.path, ".") == 2) {
			must := ""
			if r.def != "" {
				must = " Required."
			}
			fmt.Fprintf(&b, "\n## `%s`\n\n%s%s\n", r.path, r.meaning, must)
			open = false
			continue
		}
		if !open {
			b.WriteString("\n| field | type | default | meaning |\n| --- | --- | --- | --- |\n")
			open = true
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", r.path, r.kind, r.def, strings.ReplaceAll(r.meaning, "|", `\|`))
	}
	return b.Bytes()
}
