package dlq

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// Patched says that the row of a letter is not as it was recorded.
type Patched struct {
	By  string    `json:"by"`
	At  time.Time `json:"at"`
	Was string    `json:"was" doc:"SHA-256 of the record's value as it was recorded first"`
}

// PatchError is why a patch does not fit a letter. Nothing was changed.
type PatchError struct{ Problem string }

func (e *PatchError) Error() string { return e.Problem }

func unfit(format string, args ...any) error { return &PatchError{fmt.Sprintf(format, args...)} }

// Patching is a patch of a letter that fits, and is not written yet.
type Patching struct {
	Letter  Letter
	Columns []string // that it changes
	Before  []byte   // the row as it is in the letter
	After   []byte   // and as it is to be

	record kafka.Record
}

// NewPatching applies a JSON Patch (RFC 6902) to the row that a letter holds. columns are
// those that the table has now, and masked the masked ones in lower case. It keeps key and
// version, and refuses, with a PatchError, whatever the table could not have and whatever
// names a masked column: its recorded value may be older than the mask, and a patch could
// copy it to where it shows, or test it.
func NewPatching(letter Letter, record kafka.Record, patch []byte, columns []cdc.Column, masked map[string]bool) (*Patching, error) {
	change, err := decodeLetter(letter, record)
	switch {
	case err != nil:
		return nil, unfit("there is no row to patch: %v", err)
	case change.Op == cdc.OpDelete:
		return nil, unfit("it is the delete of a row, so there is no row to patch")
	case letter.State == Retrying:
		return nil, unfit("it is tried again by itself (worker.retries), which would undo the patch; patch it when it is exhausted")
	}
	p := &Patching{Letter: letter, Before: change.After}
	if p.After, p.Columns, err = patchRow(change, patch, columns, masked); err != nil {
		return nil, err
	}
	p.record = record
	after := gjson.GetBytes(record.Value, "after")
	p.record.Value = slices.Concat(record.Value[:after.Index], p.After, record.Value[after.Index+len(after.Raw):])
	if !slices.Equal(names(p.Before), names(p.After)) { // it has not the columns of its layout any more
		p.record.Headers = slices.DeleteFunc(slices.Clone(record.Headers), func(h cdc.Header) bool { return h.Key == cdc.HeaderLayout })
	}
	if letter.Patched == nil {
		sum := sha256.Sum256(record.Value)
		p.Letter.Patched = &Patched{Was: hex.EncodeToString(sum[:])}
	}
	return p, nil
}

// Fields are the columns that the patch changes.
func (p *Patching) Fields(masked map[string]bool) []Field {
	s := Seen{Masked: masked}
	before, after := s.veil(p.Before, p.Before, nil), s.veil(p.After, p.After, nil)
	fields := []Field{}
	for _, name := range p.Columns {
		fields = append(fields, Field{Name: name, Recorded: sinks.Field(before, name), Now: sinks.Field(after, name), Differs: true})
	}
	return fields
}

// Patch writes the letter with its patched row. It is parked then: a replay of the recorded
// row sends the patched one, in the version that it had.
func (l *Letters) Patch(ctx context.Context, p *Patching, by string, at time.Time) error {
	letter := p.Letter
	was := *letter.Patched
	was.By, was.At = sinks.Clip(by, nameBytes), at
	letter.State, letter.App, letter.Patched = Parked, sinks.Clip(l.App, nameBytes), &was
	if err := l.Log.ProduceAll(ctx, everywhere(letter, l.open(p.record, letter))...); err != nil {
		return fmt.Errorf("patch letter %s: %w", letter.ID, err)
	}
	return nil
}

// patchRow is the row of a change with a patch applied, and the columns that it changes.
func patchRow(c cdc.Change, patch []byte, columns []cdc.Column, masked map[string]bool) (row []byte, changed []string, err error) {
	if !json.Valid(patch) {
		return nil, nil, unfit("the patch is no JSON")
	}
	operations, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, nil, unfit("it is no JSON Patch, an array of operations such as {\"op\": \"replace\", \"path\": \"/title\", \"value\": \"x\"}: %v", err)
	}
	options := jsonpatch.NewApplyOptions()
	options.SupportNegativeIndices, options.EscapeHTML = false, false
	options.AccumulatedCopySizeLimit = int64(len(c.After)) + 1<<20
	row = c.After
	for i, op := range operations { // one at a time, to know which it was
		if problem := outOfReach(op, masked); problem != "" {
			return nil, nil, unfit("operation %d (%s) %s", i+1, spelled(op), problem)
		}
		next, err := jsonpatch.Patch{op}.ApplyWithOptions(row, options)
		if err != nil {
			return nil, nil, unfit("operation %d (%s) cannot be done: %v", i+1, spelled(op), err)
		}
		if !gjson.ParseBytes(next).IsObject() {
			return nil, nil, unfit("operation %d (%s) leaves no row: a row is an object of columns", i+1, spelled(op))
		}
		row = next
	}
	by := func(column string) string {
		for i := len(operations) - 1; i >= 0; i-- {
			path, _ := operations[i].Path()
			from, _ := operations[i].From()
			if columnOf(path) == column || operations[i].Kind() == "move" && columnOf(from) == column || path == "" {
				return fmt.Sprintf("operation %d (%s)", i+1, spelled(operations[i]))
			}
		}
		return "the patch"
	}
	before, after := names(c.After), names(row)
	for _, name := range slices.Concat(before, after) {
		was, is := sinks.Field(c.After, name), sinks.Field(row, name)
		if sinks.Same(was, is) || slices.Contains(changed, name) {
			continue
		}
		i := slices.IndexFunc(columns, func(c cdc.Column) bool { return c.Name == name })
		switch has := i >= 0; {
		case sinks.Field(c.Key, name) != nil:
			return nil, nil, unfit("%s changes %s, a column of the primary key, by which the row is known", by(name), name)
		case !has && is != nil:
			return nil, nil, unfit("%s is of a column %s that the table %s does not have; it has %s", by(name), name, c.Table, strings.Join(columnNames(columns), ", "))
		case has && is == nil:
			return nil, nil, unfit("%s takes the column %s away, which every row of %s has; replace its value", by(name), name, c.Table)
		case has && !fits(columns[i], is):
			return nil, nil, unfit("%s gives the column %s a value that it cannot have; it is %s, and takes %s", by(name), name, columns[i].SQLType, accepts(columns[i]))
		}
		changed = append(changed, name)
	}
	if len(changed) == 0 {
		return nil, nil, unfit("the patch changes nothing")
	}
	return row, changed, nil
}

// outOfReach is why an operation may not be done to a row with masked columns.
func outOfReach(op jsonpatch.Operation, masked map[string]bool) string {
	for _, place := range []func() (string, error){op.Path, op.From} {
		switch at, err := place(); {
		case err != nil: // it is not there
		case at != "" && at[0] != '/':
			return "has a path that does not begin with /"
		case at == "" && len(masked) > 0:
			return "is of the whole row, and this one has masked columns, whose values come from the source through the mask only; name the columns"
		case masked[strings.ToLower(columnOf(at))]:
			return "is of a masked column, and values of masked columns come from the source through the mask only"
		}
	}
	return ""
}

// fits reports whether a column can have a value, by the kind of its JSON.
func fits(c cdc.Column, value json.RawMessage) bool {
	v := gjson.ParseBytes(value)
	all := func(t gjson.Type) bool {
		return v.IsArray() && !slices.ContainsFunc(v.Array(), func(one gjson.Result) bool { return one.Type != t })
	}
	var err error
	switch {
	case c.Kind == cdc.KindJSON:
		return true
	case v.Type == gjson.Null:
		return c.Nullable
	case c.Kind == cdc.KindInt:
		_, err = strconv.ParseInt(v.Raw, 10, 64)
	case c.Kind == cdc.KindUint:
		_, err = strconv.ParseUint(v.Raw, 10, 64)
	case c.Kind == cdc.KindFloat && strings.HasPrefix(c.SQLType, "vector"):
		return all(gjson.Number)
	case c.Kind == cdc.KindFloat, c.Kind == cdc.KindDouble:
		return v.Type == gjson.Number
	case c.Kind == cdc.KindSet:
		return all(gjson.String)
	default:
		return v.Type == gjson.String
	}
	return err == nil
}

// accepts says what fits a column.
func accepts(c cdc.Column) string {
	or := ""
	if c.Nullable {
		or = " or null"
	}
	switch {
	case c.Kind == cdc.KindInt, c.Kind == cdc.KindUint:
		return "a whole number" + or
	case c.Kind == cdc.KindFloat && strings.HasPrefix(c.SQLType, "vector"):
		return "an array of numbers" + or
	case c.Kind == cdc.KindFloat, c.Kind == cdc.KindDouble:
		return "a number" + or
	case c.Kind == cdc.KindSet:
		return "an array of texts" + or
	}
	return "a text" + or
}

func columnNames(columns []cdc.Column) (names []string) {
	for _, c := range columns {
		names = append(names, c.Name)
	}
	return names
}

// spelled is an operation in short, without its value.
func spelled(op jsonpatch.Operation) string {
	path, _ := op.Path()
	if from, err := op.From(); err == nil {
		return fmt.Sprintf("%s %s to %s", op.Kind(), from, path)
	}
	return op.Kind() + " " + path
}

// columnOf is the column of a path such as /price or /meta/a.
func columnOf(path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return strings.NewReplacer("~1", "/", "~0", "~").Replace(first)
}

func names(row []byte) (names []string) {
	sinks.EachField(json.RawMessage(bytes.TrimSpace(row)), func(name string) { names = append(names, name) })
	return names
}
