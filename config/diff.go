package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Diff names the fields in which two configurations differ, such as worker.batch or
// tables[2].match, in the order of the file. A list that has become longer or shorter, and
// what one of them lacks, are named as a whole. It names no values: they may be secrets.
func Diff(a, b *Config) []string {
	return diff("", reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem())
}

func diff(path string, a, b reflect.Value) (out []string) {
	switch a.Kind() {
	case reflect.Struct:
		for _, f := range fieldsOf(a.Type()) {
			out = append(out, diff(dotted(path, f.name), a.FieldByIndex(f.index), b.FieldByIndex(f.index))...)
		}
		return out
	case reflect.Pointer:
		if !a.IsNil() && !b.IsNil() {
			return diff(path, a.Elem(), b.Elem())
		}
	case reflect.Slice:
		if a.Len() == b.Len() {
			for i := range a.Len() {
				out = append(out, diff(fmt.Sprintf("%s[%d]", path, i), a.Index(i), b.Index(i))...)
			}
			return out
		}
	case reflect.Map:
		names := map[string]bool{}
		for _, key := range append(a.MapKeys(), b.MapKeys()...) {
			names[key.String()] = true
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			key := reflect.ValueOf(name).Convert(a.Type().Key())
			x, y := a.MapIndex(key), b.MapIndex(key)
			if !x.IsValid() || !y.IsValid() {
				out = append(out, dotted(path, name))
				continue
			}
			out = append(out, diff(dotted(path, name), x, y)...)
		}
		return out
	}
	if !reflect.DeepEqual(a.Interface(), b.Interface()) {
		out = append(out, path)
	}
	return out
}

// Fields names every field that a file may have, with [] for the places of a list and * for
// the names of a map: tables[].match, sinks.*.redis.db.
func Fields() []string { return fields("", reflect.TypeFor[Config]()) }

func fields(path string, t reflect.Type) (out []string) {
	switch t.Kind() {
	case reflect.Struct:
		for _, f := range fieldsOf(t) {
			out = append(out, fields(dotted(path, f.name), t.FieldByIndex(f.index).Type)...)
		}
		return out
	case reflect.Pointer:
		return fields(path, t.Elem())
	case reflect.Slice:
		return fields(path+"[]", t.Elem())
	case reflect.Map:
		return fields(path+".*", t.Elem())
	}
	return []string{path}
}

func dotted(path, name string) string {
	return strings.TrimPrefix(path+"."+name, ".")
}
