package admin

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

type object = map[string]any

// everywhere are the problems that any operation can answer with, and of a write those
// behind them.
var (
	everywhere = []Code{
		{http.StatusUnauthorized, "token_missing", ""}, {http.StatusUnauthorized, "token_malformed", ""}, {http.StatusUnauthorized, "token_unknown", ""},
		{http.StatusMisdirectedRequest, "wrong_host", ""}, {http.StatusTooManyRequests, "too_many", ""},
		{http.StatusServiceUnavailable, "timeout", ""}, {http.StatusInternalServerError, "internal", ""},
	}
	ofOperators = []Code{{http.StatusForbidden, "not_writable", "there are no tokens"}, {http.StatusForbidden, "role_viewer", ""}}
	ofWrites    = []Code{
		{http.StatusForbidden, "not_writable", ""}, {http.StatusForbidden, "role_viewer", ""},
		{http.StatusBadRequest, "request_id_missing", ""}, {http.StatusBadRequest, "request_id_invalid", ""}, {http.StatusBadRequest, "body_invalid", ""},
		{http.StatusConflict, "request_id_reused", ""}, {http.StatusConflict, "request_under_way", ""},
		{http.StatusRequestEntityTooLarge, "body_too_large", ""}, {http.StatusUnsupportedMediaType, "not_json", ""},
	}
)

// Document is the OpenAPI document of the routes.
func Document(routes []Route) []byte {
	b := &book{schemas: object{}}
	b.schema(reflect.TypeFor[Problem]())
	paths := object{}
	for _, route := range routes {
		path, ok := paths[route.Path].(object)
		if !ok {
			path = object{}
			paths[route.Path] = path
		}
		path[strings.ToLower(route.Method)] = b.operation(route)
	}
	doc := object{
		"openapi": "3.1.0",
		"info": object{
			"title":   "Lockstep",
			"version": "1",
			"description": "What operators can ask and do over HTTP. Answers get more fields; none is renamed or takes another meaning. " +
				"A write needs a token of the role operator and an X-Request-ID, and is done once for it: repeated within a day it gets the first answer.",
			"license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers":  []any{object{"url": "/"}},
		"security": []any{object{"token": []any{}}, object{}},
		"paths":    paths,
		"components": object{
			"schemas":         b.schemas,
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer", "description": "One of admin.tokens. Where none is configured, this machine may read without."}},
		},
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		panic(err) // it is made of texts
	}
	return append(text, '\n')
}

var wildcard = regexp.MustCompile(`\{([a-z_]+)\}`)

func (b *book) operation(route Route) object {
	params := []any{}
	add := func(in string, p Param, required bool) {
		kind := p.Type
		if kind == "" {
			kind = "string"
		}
		schema := object{"type": kind}
		if len(p.Enum) > 0 {
			schema["enum"] = p.Enum
		}
		params = append(params, object{"name": p.Name, "in": in, "required": required, "description": p.Doc, "schema": schema})
	}
	for _, m := range wildcard.FindAllStringSubmatch(route.Path, -1) {
		i := slices.IndexFunc(route.Wildcards, func(p Param) bool { return p.Name == m[1] })
		if i < 0 {
			panic(fmt.Sprintf("route %s does not describe %s", route.Path, m[1]))
		}
		add("path", route.Wildcards[i], true)
	}
	for _, p := range route.Query {
		add("query", p, false)
	}
	write := route.Write != nil
	codes := slices.Concat(everywhere, route.Codes)
	switch {
	case write:
		codes = slices.Concat(everywhere, ofWrites, route.Codes)
		if route.Matched {
			codes = append(codes, Code{http.StatusPreconditionRequired, "if_match_missing", ""})
		}
		add("header", Param{Name: "X-Request-ID", Doc: "A name of your own making for this request, 1 to 128 letters, digits and ._:- The same one when you try again."}, true)
	case route.role() == Operator:
		codes = slices.Concat(everywhere, ofOperators, route.Codes)
	}
	if route.Bulk {
		codes = append(codes, Code{http.StatusTooManyRequests, "busy", "others are under way in this process"})
	}
	if route.Tagged {
		if write {
			add("header", Param{Name: "If-Match", Doc: "The ETag that was read: nothing is done when it is another one by now."}, route.Matched)
		} else {
			add("header", Param{Name: "If-None-Match", Doc: "An ETag that was read before: the answer is 304 while it is the same."}, false)
		}
	}
	ok := object{"description": "Done", "content": object{cmp.Or(route.Gives, "application/json"): object{"schema": b.schema(reflect.TypeOf(route.Answer))}}}
	if route.Tagged && (!write || route.Matched) {
		ok["headers"] = object{"ETag": object{"description": "Of it as it is now", "schema": object{"type": "string"}}}
	}
	answers := object{"200": ok}
	byStatus := map[int][]string{}
	for _, c := range codes {
		text := c.Code
		if c.Doc != "" {
			text += " (" + c.Doc + ")"
		}
		byStatus[c.Status] = append(byStatus[c.Status], text)
	}
	for status, texts := range byStatus {
		answers[fmt.Sprint(status)] = object{
			"description": strings.Join(texts, ", "),
			"content":     object{"application/problem+json": object{"schema": object{"$ref": "#/components/schemas/Problem"}}},
		}
	}
	if route.Tagged && !write {
		answers["304"] = object{"description": "It has not changed"}
	}
	op := object{"operationId": route.ID, "summary": route.Short, "parameters": params, "responses": answers}
	if write {
		op["requestBody"] = object{"required": true, "content": object{route.takes(): object{"schema": b.schema(reflect.TypeOf(route.Body))}}}
	}
	op["description"] = strings.TrimSpace(route.Long + fmt.Sprintf(" Needs the role %s.", route.role()))
	return op
}

// book collects the schemas of types.
type book struct{ schemas object }

func (b *book) schema(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[lines]():
		return object{"type": "string", "contentMediaType": ndjson, "description": "a letter in each line, as lockstep dlq export writes it"}
	case t == reflect.TypeFor[json.RawMessage](), t.Kind() == reflect.Interface:
		return object{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return b.schema(t.Elem())
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice:
		return object{"type": "array", "items": b.schema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": b.schema(t.Elem())}
	case reflect.Struct:
		return b.structure(t)
	}
	if t.ConvertibleTo(reflect.TypeFor[int64]()) {
		return object{"type": "integer"}
	}
	panic(fmt.Sprintf("no schema for %s", t))
}

func (b *book) structure(t reflect.Type) object {
	name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
	if _, known := b.schemas[name]; !known {
		b.schemas[name] = nil // of a type that holds itself
		properties, required := object{}, []string{}
		b.fields(t, properties, &required)
		slices.Sort(required)
		b.schemas[name] = object{"type": "object", "properties": properties, "required": required}
	}
	return object{"$ref": "#/components/schemas/" + name}
}

func (b *book) fields(t reflect.Type, properties object, required *[]string) {
	for f := range slices.Values(reflect.VisibleFields(t)) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || f.Anonymous || name == "" || name == "-" {
			continue
		}
		schema := maps.Clone(b.schema(f.Type))
		if doc := f.Tag.Get("doc"); doc != "" {
			schema["description"] = doc
		}
		properties[name] = schema
		if !strings.Contains(options, "omit") {
			*required = append(*required, name)
		}
	}
}
