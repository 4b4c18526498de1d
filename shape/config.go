package shape

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Config says which document a row becomes.
type Config struct {
	// Fields are the columns that the document has. It is empty by default, which means
	// all of them, also those that the table is given later.
	Fields []string `yaml:"fields"`
	// Drop are columns that the document does not have, in place of fields. A column of
	// the primary key may be left out too: the document keeps its id, the key in Redis
	// its name. Sinks of kind redis need these columns all the same.
	Drop []string `yaml:"drop"`
	// Rename gives columns other names in the document, for example {cust_no: customer}.
	Rename map[string]string `yaml:"rename"`
	// Compute adds fields, each with a CEL expression over the row as it came, for
	// example {total: double(row.price) * 1.19}. Drop the column to give a
	// computed field its name.
	Compute map[string]string `yaml:"compute"`
	// Where is a CEL expression that says which rows the sink has, for example
	// row.status == 'published'. It is empty by default, which means all of them. A row
	// that does not meet it, or for which it is NULL, is deleted from the sink under the
	// version of its change, so one that leaves the condition goes and one that enters
	// it comes, in whatever order events arrive.
	Where string `yaml:"where"`
}

// Empty reports whether c leaves rows as they are.
func (c Config) Empty() bool {
	return len(c.Fields) == 0 && len(c.Drop) == 0 && len(c.Rename) == 0 && len(c.Compute) == 0 && c.Where == ""
}

// Keeps reports whether documents have a column of the table under its own name.
func (c Config) Keeps(column string) bool {
	_, renamed := c.Rename[column]
	return !renamed && !slices.Contains(c.Drop, column) && (len(c.Fields) == 0 || slices.Contains(c.Fields, column))
}

// Gives reports whether documents may have a field of that name: a column that stays or
// gets it, or a computed field. Whether the table has such a column is not known here.
func (c Config) Gives(field string) bool {
	_, computed := c.Compute[field]
	return computed || c.Keeps(field) || slices.Contains(slices.Collect(maps.Values(c.Rename)), field)
}

// reserved begins the names of the fields that sinks keep for themselves.
const reserved = "_lockstep"

// Check names every mistake that can be seen without the table, each with the way
// out: what contradicts itself, and what is not CEL.
func (c Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	twice := func(path string, names []string) {
		for i, name := range names {
			if slices.Contains(names[:i], name) {
				bad("%s: %s is named twice; name it once", path, name)
			}
		}
	}
	twice("fields", c.Fields)
	twice("drop", c.Drop)
	if len(c.Fields) > 0 && len(c.Drop) > 0 {
		bad("drop: stands beside fields, which says already what is kept; use one of the two")
	}
	taken := map[string]string{} // name of a field -> what gives it
	take := func(path, name, by string) {
		switch {
		case strings.TrimSpace(name) == "":
			bad("%s: gives a field a blank name; give it another", path)
		case strings.HasPrefix(name, reserved):
			bad("%s: names that begin with %s are the sinks' own; give the field %s another name", path, reserved, name)
		case taken[name] != "":
			bad("%s: gives the name %s, which %s gives already; each field needs its own", path, name, taken[name])
		default:
			taken[name] = by
		}
	}
	for _, column := range sorted(c.Rename) {
		path := "rename." + column
		switch {
		case slices.Contains(c.Drop, column):
			bad("%s: the column is dropped too; take it out of drop or out of rename", path)
		case len(c.Fields) > 0 && !slices.Contains(c.Fields, column):
			bad("%s: the column is not among fields; add it there, or take it out of rename", path)
		}
		take(path, c.Rename[column], path)
	}
	for _, field := range sorted(c.Compute) {
		path := "compute." + field
		take(path, field, path)
		if err := parse(c.Compute[field]); err != nil {
			bad("%s: %w", path, err)
		}
	}
	if c.Where != "" {
		if err := parse(c.Where); err != nil {
			bad("where: %w", err)
		}
	}
	return errors.Join(errs...)
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
