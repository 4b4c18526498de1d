package shape

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"lockstep/cdc"
)

// Shape is a Config that fits a table. It may be used by several goroutines.
type Shape struct {
	source  cdc.Table // as it was compiled for
	table   cdc.Table // as the sink sees it
	columns []column
	index   map[string]int
	only    bool            // a column that the table did not have is left out
	given   map[string]bool // the names of the document's fields
	where   *expression     // nil: every row
	compute []computed
	rows    sync.Pool
}

type computed struct {
	head []byte
	*expression
}

// UnknownColumn says that a Config names a column that the table does not have.
type UnknownColumn struct {
	Place   string // "where", "drop", "compute.total"
	Column  string
	Table   cdc.TableName
	Columns []string // that the table has
}

func (e *UnknownColumn) Error() string {
	return fmt.Sprintf("%s: %s has no column %s", e.Place, e.Table, e.Column)
}

// Compile checks c against the present shape of a table. The error joins every
// mistake, each one sentence that begins with the place in the Config; those about a
// column that is not there are of type *UnknownColumn.
func Compile(c Config, t cdc.Table) (*Shape, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	s := &Shape{source: t, table: cdc.Table{Name: t.Name, Key: t.Key}, index: map[string]int{}, only: len(c.Fields) > 0, given: map[string]bool{}}
	s.rows.New = func() any { return &row{members: make([]member, 0, len(t.Columns))} }
	for i, col := range t.Columns {
		s.index[col.Name] = i
		s.columns = append(s.columns, column{Column: col, head: head(col.Name)})
	}
	errs := s.unknown(c)
	give := func(place, name string) {
		if s.given[name] {
			errs = append(errs, fmt.Errorf("%s: the document has a field %s already; drop or rename the column %s, or give this field another name", place, name, name))
		}
		s.given[name] = true
	}
	s.choose(c, give)
	if c.Where != "" || len(c.Compute) > 0 {
		errs = append(errs, s.compile(c, give)...)
	}
	if len(s.table.Columns) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("drop: leaves no field of the document; keep one column"))
	}
	return s, errors.Join(errs...)
}

// unknown finds the columns that c names and the table does not have; expressions
// have their own.
func (s *Shape) unknown(c Config) (errs []error) {
	for _, of := range []struct {
		place string
		names []string
	}{{"fields", c.Fields}, {"drop", c.Drop}, {"rename", sorted(c.Rename)}} {
		for _, name := range of.names {
			if _, ok := s.index[name]; !ok {
				errs = append(errs, &UnknownColumn{of.place, name, s.source.Name, s.names()})
			}
		}
	}
	return errs
}

// choose says which columns the document has, and under what names. Columns that keep
// theirs come first, so that a new name that is taken is the one to be changed.
func (s *Shape) choose(c Config, give func(place, name string)) {
	for i := range s.columns {
		col := &s.columns[i]
		if slices.Contains(c.Drop, col.Name) || s.only && !slices.Contains(c.Fields, col.Name) {
			continue
		}
		as := col.Column
		if name, renamed := c.Rename[col.Name]; renamed {
			as.Name = name
		} else {
			give("fields", as.Name)
		}
		col.as = head(as.Name)
		s.table.Columns = append(s.table.Columns, as)
	}
	for _, name := range sorted(c.Rename) {
		if _, ok := s.index[name]; ok {
			give("rename."+name, c.Rename[name])
		}
	}
}

func (s *Shape) names() []string {
	names := make([]string, len(s.columns))
	for i := range s.columns {
		names[i] = s.columns[i].Name
	}
	return names
}

// compile compiles the expressions.
func (s *Shape) compile(c Config, give func(place, name string)) (errs []error) {
	env, err := newEnv(s)
	if err != nil {
		return []error{err}
	}
	if c.Where != "" {
		if s.where, err = compile(env, s, "where", c.Where); err == nil {
			err = s.where.mustBeBool()
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	for _, name := range sorted(c.Compute) {
		give("compute."+name, name)
		x, err := compile(env, s, "compute."+name, c.Compute[name])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		kind, err := x.kind()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.compute = append(s.compute, computed{head(name), x})
		s.table.Columns = append(s.table.Columns, cdc.Column{Name: name, Kind: kind, SQLType: "computed", Nullable: true})
	}
	return errs
}

func head(name string) []byte { return append(cdc.AppendString(nil, name), ':') }

// Table is the table as the sink sees it: its columns are the fields of the
// document. The primary key keeps the names of the source, as Change.Key does.
func (s *Shape) Table() cdc.Table { return s.table }

// Source is the table that s was compiled for.
func (s *Shape) Source() cdc.Table { return s.source }

func (s *Shape) done(r *row) {
	r.json = nil
	s.rows.Put(r)
}

// Document appends the document of a row, whether or not it meets the condition.
func (s *Shape) Document(dst, data []byte) ([]byte, error) {
	r := s.rows.Get().(*row)
	defer s.done(r)
	if err := r.read(s, data); err != nil {
		return dst, err
	}
	return s.document(dst, r, false)
}

// document appends the document of a row. Past says that the row is what was there
// before: then a computed field that it has no value for is left out.
func (s *Shape) document(dst []byte, r *row, past bool) ([]byte, error) {
	dst = append(dst, '{')
	open := len(dst)
	for i := range r.members {
		m := &r.members[i]
		as := r.json[m.head.from:m.head.to]
		switch {
		case m.column >= 0:
			as = s.columns[m.column].as
		case s.only:
			continue
		case s.given[r.nameOf(m)]:
			return dst, fmt.Errorf("the row has a column %s that %s does not have now, and the document has a field of this name already", r.nameOf(m), s.source.Name)
		}
		if as == nil {
			continue
		}
		if len(dst) > open {
			dst = append(dst, ',')
		}
		dst = append(dst, as...)
		dst = append(dst, r.json[m.value.from:m.value.to]...)
	}
	for _, c := range s.compute {
		out := dst
		if len(dst) > open {
			out = append(out, ',')
		}
		out, err := c.append(append(out, c.head...), r)
		switch {
		case err == nil:
			dst = out
		case !past:
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// Apply turns the change of a row into the change of its document. A row that does
// not meet the condition becomes a delete of its key under its own version. Key and
// version stay. The images are new slices; those from before lack the computed fields
// that they have no values for. An error names the expression and the
// columns that it reads, never a value; c then only Leaves.
//
// A row whose columns are not those of the table, or hold values of another type, is
// from before or behind a change of the table. Such a row is unfamiliar, which names
// its columns: s should be compiled anew if the table was not looked at since.
func (s *Shape) Apply(c *cdc.Change) (unfamiliar string, err error) {
	if c.Op == cdc.OpDelete {
		s.lookBack(c)
		return "", nil
	}
	r := s.rows.Get().(*row)
	defer s.done(r)
	if err := r.read(s, c.After); err != nil {
		s.lookBack(c)
		c.After, c.Leaves = nil, true
		return "", err
	}
	if err = s.apply(c, r); err != nil {
		s.lookBack(c)
		c.After, c.Leaves = s.past(r), true
	}
	if !r.fits || r.misread != "" {
		unfamiliar = r.signature()
	}
	return unfamiliar, err
}

func (s *Shape) apply(c *cdc.Change, r *row) error {
	if s.where != nil {
		met, err := s.where.met(r)
		if err != nil {
			return err
		}
		if !met {
			s.lookBack(c)
			if c.Before == nil { // where its document would be is where an older one is
				c.Before = s.past(r)
			}
			c.Op, c.After = cdc.OpDelete, nil
			return nil
		}
	}
	after, err := s.document(make([]byte, 0, len(c.After)+64*len(s.compute)), r, false)
	if err != nil {
		return err
	}
	s.lookBack(c)
	c.After = after
	return nil
}

// lookBack makes documents of the images from before the change. They say where an
// older document is, so one that is not whole is better than none.
func (s *Shape) lookBack(c *cdc.Change) {
	c.Before = s.before(c.Before)
	if c.Left == nil {
		return
	}
	left := make([][]byte, len(c.Left))
	for i, image := range c.Left {
		left[i] = s.before(image)
	}
	c.Left = left
}

func (s *Shape) before(image []byte) []byte {
	if image == nil {
		return nil
	}
	r := s.rows.Get().(*row)
	defer s.done(r)
	if r.read(s, image) != nil {
		return nil
	}
	return s.past(r)
}

func (s *Shape) past(r *row) []byte {
	doc, err := s.document(make([]byte, 0, len(r.json)+64*len(s.compute)), r, true)
	if err != nil {
		return nil
	}
	return doc
}

// list is "a, b and c".
func list(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
