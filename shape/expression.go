package shape

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
)

// costLimit bounds what one expression may do with one row, in CEL's units: some ten
// of them are a comparison, and a long text costs one for every ten bytes.
const costLimit = 1_000_000

const (
	rowName = "row" // of the variable
	rowType = "row"
)

// expression is a compiled CEL expression.
type expression struct {
	place   string // in the Config
	text    string
	reads   []string // the columns
	program cel.Program
	out     *cel.Type
}

// Error says which expression cannot be evaluated for a row, and never with what
// values.
type Error struct {
	Place   string   // "where", "compute.total"
	Text    string   // of the expression
	Columns []string // that it reads
	Cause   string
}

func (e *Error) Error() string {
	reads := ""
	if len(e.Columns) > 0 {
		reads = ", which reads " + list(e.Columns)
	}
	return fmt.Sprintf("%s: %s%s: %s", e.Place, e.Text, reads, e.Cause)
}

// The language, whatever the table: numbers of different types may be compared, and
// timestamp() takes dates and times without a zone for UTC.
var language = []cel.EnvOption{
	cel.CrossTypeNumericComparisons(true),
	cel.EnableIdentifierEscapeSyntax(),
	cel.ParserExpressionSizeLimit(10_000),
	ext.Strings(),
	cel.Function(overloads.TypeConvertTimestamp,
		cel.Overload(overloads.StringToTimestamp, []*cel.Type{cel.StringType}, cel.TimestampType, cel.UnaryBinding(toTimestamp))),
}

var clocks = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", time.DateOnly}

func toTimestamp(v ref.Val) ref.Val {
	for _, clock := range clocks {
		if t, err := time.Parse(clock, string(v.(types.String))); err == nil {
			return types.Timestamp{Time: t}
		}
	}
	return types.NewErrFromString(noTime)
}

// What an evaluation can end with, as a reason may repeat it.
const (
	noTime     = "a text is no date or time"
	noOverload = "no such overload"
)

// parse reports what keeps a text from being CEL.
func parse(text string) error {
	env, err := cel.NewEnv(language...)
	if err != nil {
		return err
	}
	if _, issues := env.Parse(text); issues.Err() != nil {
		first := issues.Errors()[0]
		return fmt.Errorf("%s is not CEL: at character %d: %s; write for example row.status == 'published'", text, first.Location.Column()+1, oneLine(first.Message))
	}
	return nil
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func newEnv(s *Shape) (*cel.Env, error) {
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, err
	}
	provider := &provider{Registry: registry, fields: map[string]*types.FieldType{}}
	for i := range s.columns {
		provider.names = append(provider.names, s.columns[i].Name)
		provider.fields[s.columns[i].Name] = s.columns[i].fieldType(i)
	}
	return cel.NewEnv(append(slices.Clone(language),
		cel.CustomTypeAdapter(registry), cel.CustomTypeProvider(provider), cel.Variable(rowName, cel.ObjectType(rowType)))...)
}

// provider makes the table the type of the variable row.
type provider struct {
	*types.Registry
	names  []string
	fields map[string]*types.FieldType
}

func (p *provider) FindStructType(name string) (*types.Type, bool) {
	if name == rowType {
		return types.NewTypeTypeWithParam(types.NewObjectType(rowType)), true
	}
	return p.Registry.FindStructType(name)
}

func (p *provider) FindStructFieldNames(name string) ([]string, bool) {
	if name == rowType {
		return p.names, true
	}
	return p.Registry.FindStructFieldNames(name)
}

func (p *provider) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	if name == rowType {
		f, ok := p.fields[field]
		return f, ok
	}
	return p.Registry.FindStructFieldType(name, field)
}

// ResolveName and Parent make a row what a program is evaluated with.
func (r *row) ResolveName(name string) (any, bool) { return r, name == rowName }

func (r *row) Parent() cel.Activation { return nil }

// fieldType says what an expression sees of a column. A column that the row does not
// have is an error, and has() tells: it may have got another name, and to take it
// for NULL would delete every row.
func (c *column) fieldType(i int) *types.FieldType {
	t, read := c.celType()
	return &types.FieldType{
		Type: t,
		IsSet: func(target any) bool {
			v := target.(*row).value(i)
			return v != nil && !isNull(v)
		},
		GetFrom: func(target any) (any, error) {
			r := target.(*row)
			v := r.value(i)
			switch {
			case v == nil:
				return nil, fmt.Errorf("the row has no column %s", c.Name)
			case isNull(v):
				r.null = true
				return types.NullValue, nil
			}
			if value, ok := read(v); ok {
				return value, nil
			}
			r.misread = c.Name
			return nil, fmt.Errorf("the value of column %s is not %s", c.Name, c.spoken())
		},
	}
}

// celType is the type of a column and how a value of it is read.
func (c *column) celType() (*cel.Type, func([]byte) (any, bool)) {
	switch {
	case c.vector():
		return cel.ListType(cel.DoubleType), readNumbers
	case c.Kind == cdc.KindInt:
		return cel.NullableType(cel.IntType), func(v []byte) (any, bool) {
			n, err := strconv.ParseInt(string(v), 10, 64)
			return types.Int(n), err == nil
		}
	case c.Kind == cdc.KindUint:
		return cel.NullableType(cel.UintType), func(v []byte) (any, bool) {
			n, err := strconv.ParseUint(string(v), 10, 64)
			return types.Uint(n), err == nil
		}
	case c.Kind == cdc.KindFloat, c.Kind == cdc.KindDouble:
		return cel.NullableType(cel.DoubleType), func(v []byte) (any, bool) {
			n, err := strconv.ParseFloat(string(v), 64)
			return types.Double(n), err == nil
		}
	case c.Kind == cdc.KindSet:
		return cel.ListType(cel.StringType), readJSON
	case c.Kind == cdc.KindJSON:
		return cel.DynType, readJSON
	}
	return cel.NullableType(cel.StringType), func(v []byte) (any, bool) {
		s, ok := text(v)
		return types.String(s), ok
	}
}

func (c *column) vector() bool {
	return c.Kind == cdc.KindFloat && strings.HasPrefix(c.SQLType, "vector")
}

// spoken names the values of a column for people.
func (c *column) spoken() string {
	if c.vector() {
		return "a list of numbers"
	}
	switch c.Kind {
	case cdc.KindInt:
		return "a whole number"
	case cdc.KindUint:
		return "a whole number without sign"
	case cdc.KindFloat, cdc.KindDouble:
		return "a number"
	case cdc.KindSet:
		return "a list of texts"
	case cdc.KindJSON:
		return "JSON"
	}
	return "text"
}

func readNumbers(v []byte) (any, bool) {
	var numbers []float64
	err := json.Unmarshal(v, &numbers)
	return numbers, err == nil
}

// readJSON decodes a value. Whole numbers stay exact.
func readJSON(v []byte) (any, bool) {
	value := native(gjson.ParseBytes(v))
	return value, value != nil
}

func native(v gjson.Result) any {
	switch v.Type {
	case gjson.False, gjson.True:
		return v.Type == gjson.True
	case gjson.String:
		return v.Str
	case gjson.Number:
		if n, err := strconv.ParseInt(v.Raw, 10, 64); err == nil {
			return n
		}
		if n, err := strconv.ParseUint(v.Raw, 10, 64); err == nil {
			return n
		}
		return v.Num
	case gjson.JSON:
		if v.IsArray() {
			list := []any{}
			v.ForEach(func(_, item gjson.Result) bool {
				list = append(list, native(item))
				return true
			})
			return list
		}
		fields := map[string]any{}
		v.ForEach(func(name, item gjson.Result) bool {
			fields[name.Str] = native(item)
			return true
		})
		return fields
	}
	return nil
}

// compile checks an expression against the table.
func compile(env *cel.Env, s *Shape, place, text string) (*expression, error) {
	parsed, issues := env.Parse(text)
	if issues.Err() != nil {
		return nil, fmt.Errorf("%s: %w", place, issues.Err())
	}
	x := &expression{place: place, text: text}
	var errs []error
	var whole bool
	if x.reads, whole = columnsOf(parsed.NativeRep()); whole {
		return nil, fmt.Errorf("%s: row is used as a whole or as the name of something else; write row.name for a column, and row.`odd name` where the name is no word", place)
	}
	for _, name := range x.reads {
		if _, ok := s.index[name]; !ok {
			errs = append(errs, &UnknownColumn{place, name, s.source.Name, s.names()})
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	checked, issues := env.Check(parsed)
	if issues.Err() != nil {
		first := issues.Errors()[0]
		return nil, fmt.Errorf("%s: at character %d: %s%s", place, first.Location.Column()+1, wrapped.ReplaceAllString(oneLine(first.Message), "$1"), x.hints(s))
	}
	var err error
	x.out = checked.OutputType()
	x.program, err = env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(costLimit))
	if err != nil {
		return nil, fmt.Errorf("%s: %s", place, oneLine(err.Error()))
	}
	return x, nil
}

// wrapped is how the library writes a type whose values may be NULL.
var wrapped = regexp.MustCompile(`wrapper\((\w+)\)`)

// hints say what the columns of an expression are, and how they are compared.
func (x *expression) hints(s *Shape) string {
	var b strings.Builder
	for _, name := range x.reads {
		c := s.columns[s.index[name]]
		fmt.Fprintf(&b, "; row.%s (%s) is %s", name, c.SQLType, c.spoken())
		switch c.Kind {
		case cdc.KindDecimal:
			fmt.Fprintf(&b, ", as a number it is double(row.%s)", name)
		case cdc.KindDate, cdc.KindDateTime, cdc.KindTimestamp:
			fmt.Fprintf(&b, ", as a time it is timestamp(row.%s)", name)
		case cdc.KindSet:
			fmt.Fprintf(&b, ", ask it with 'x' in row.%s and has(row.%s)", name, name)
		}
	}
	if b.Len() == 0 {
		return "; columns are written row.name"
	}
	return b.String()
}

// columnsOf lists the columns that an expression reads, each once. Whole says that it
// names the row other than to read a column.
func columnsOf(tree *ast.AST) (names []string, whole bool) {
	idents, selects := 0, 0
	ast.PreOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind:
			if e.AsIdent() == rowName {
				idents++
			}
		case ast.ComprehensionKind:
			c := e.AsComprehension()
			whole = whole || c.IterVar() == rowName || c.IterVar2() == rowName
		case ast.SelectKind:
			if of := e.AsSelect().Operand(); of.Kind() == ast.IdentKind && of.AsIdent() == rowName {
				selects++
				if name := e.AsSelect().FieldName(); !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}))
	return names, whole || idents != selects
}

func (x *expression) mustBeBool() error {
	if k := x.out.Kind(); k != types.BoolKind && k != types.DynKind {
		return fmt.Errorf("%s: gives %s, not true or false; write for example row.status == 'published'", x.place, wrapped.ReplaceAllString(x.out.String(), "$1"))
	}
	return nil
}

// eval gives the value of the expression for a row. An operation that needs a value
// and meets NULL makes it NULL, as in SQL.
func (x *expression) eval(r *row) (ref.Val, error) {
	r.null = false
	value, _, err := x.program.Eval(r)
	if err == nil {
		return value, nil
	}
	if r.null && strings.HasPrefix(err.Error(), noOverload) {
		return types.NullValue, nil
	}
	return nil, x.fail(cause(err))
}

// cause is an error of an evaluation as far as it holds no value: the library
// quotes what it met.
func cause(err error) string {
	text := err.Error()
	for _, known := range []string{noOverload, "division by zero", "modulus by zero", "integer overflow", "unsigned integer overflow", "duration overflow", "timestamp overflow", noTime} {
		if strings.HasPrefix(text, known) {
			if known == noOverload {
				return "an operation does not take a value of this type"
			}
			return known
		}
	}
	switch {
	case strings.HasPrefix(text, "the row has no column "), strings.HasPrefix(text, "the value of column "): // ours
		return text
	case strings.Contains(text, "cost limit"):
		return "it costs more than one row may"
	case strings.HasPrefix(text, "no such key"):
		return "the JSON has no such field; ask with has()"
	}
	return "it has no value for this row"
}

func (x *expression) fail(cause string) error { return &Error{x.place, x.text, x.reads, cause} }

// met evaluates a condition.
func (x *expression) met(r *row) (bool, error) {
	value, err := x.eval(r)
	if err != nil {
		return false, err
	}
	switch v := value.(type) {
	case types.Bool:
		return bool(v), nil
	case types.Null:
		return false, nil
	}
	return false, x.fail("it gives neither true nor false")
}
