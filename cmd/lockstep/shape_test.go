package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"lockstep/cdc"
	"lockstep/config"
	"lockstep/shape"
	"lockstep/sinks"
)

// A tailor shapes the rows of one table that a test alters.
type tailor struct {
	*shaper
	columns string // of the table, now; empty when it is gone
	err     error  // why it cannot be described
	asked   int
}

func newTailor(rule shape.Config, columns string) *tailor {
	t := &tailor{columns: columns}
	t.shaper = &shaper{
		rule: func(name cdc.TableName) (shape.Config, string, bool) {
			return rule, "tables[3].shape", name.Table == "t"
		},
		describe: func(_ context.Context, name cdc.TableName) (cdc.Table, error) {
			t.asked++
			table := cdc.Table{Name: name, Key: []string{"id"}}
			if t.columns == "" {
				return table, fmt.Errorf("describe: %w", cdc.ErrNoTable)
			}
			for _, c := range strings.Fields(t.columns) {
				column, kind, _ := strings.Cut(c, ":")
				table.Columns = append(table.Columns, cdc.Column{Name: column, Kind: cdc.Kind(kind), SQLType: kind})
			}
			return table, t.err
		},
		log: slog.New(slog.DiscardHandler), active: true, tables: map[cdc.TableName]*shapedTable{},
	}
	return t
}

// of shapes a row and says what became of it.
func (t *tailor) of(row string) string {
	c := cdc.Change{Table: cdc.TableName{DB: "d", Table: "t"}, Op: cdc.OpCreate, After: []byte(row)}
	if no := t.shape(context.Background(), &c); no != nil {
		said := fmt.Sprintf("%d %s %s", no.Verdict, no.Class, no.Reason)
		if c.Leaves {
			said += fmt.Sprintf("; leaves what is not at %s", c.After)
		}
		return said
	}
	return fmt.Sprintf("%s %s", c.Op, c.After)
}

func (t *tailor) expect(test *testing.T, asked int, row, want string) {
	test.Helper()
	if got := t.of(row); !strings.Contains(got, want) {
		test.Errorf("%s became %s; want %s", row, got, want)
	}
	if t.asked != asked {
		test.Errorf("%s: the table was described %d times; want %d", row, t.asked, asked)
	}
}

// What is asked when the process stops already says nothing to anybody.
func TestAStopIsNoTroubleOfAShape(t *testing.T) {
	var log bytes.Buffer
	s := newTailor(shape.Config{Where: "row.a > 1"}, "id:int a:int")
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cfg := config.Default()
	if err := (&process{cfg: &cfg, shared: &shared{}}).checkShapes(ctx, &store{shaper: s.shaper}); !errors.Is(err, context.Canceled) || log.Len() > 0 {
		t.Errorf("error %v, and the log says %s", err, log.String())
	}
}

const (
	held   = "0  " // unavailable: the partition waits
	retry  = "5 "
	poison = "6 "
)

// A row that shows another table makes it be looked at once; a shape that does not fit
// any more holds the row, so that nothing reaches the store that nobody wants.
func TestAnAlteredTableIsLookedAtBeforeItsRowsAreShaped(t *testing.T) {
	s := newTailor(shape.Config{Drop: []string{"secret"}, Where: "row.a == 'in'"}, "id:int a:keyword secret:keyword")
	s.expect(t, 1, `{"id":1,"a":"in","secret":"x"}`, `c {"id":1,"a":"in"}`)
	s.expect(t, 1, `{"id":2,"a":"out","secret":"x"}`, `d `)

	s.columns = "id:int a:keyword secret:keyword b:int"
	s.expect(t, 2, `{"id":1,"a":"in","secret":"x","b":1}`, `c {"id":1,"a":"in","b":1}`)
	s.expect(t, 3, `{"id":1,"a":"in","secret":"x"}`, `c {"id":1,"a":"in"}`) // an older row
	s.expect(t, 3, `{"id":1,"a":"in","secret":"x"}`, `c {"id":1,"a":"in"}`)
	s.expect(t, 3, `{"id":1,"a":"in","secret":"x","b":1}`, `c {"id":1,"a":"in","b":1}`)

	s.columns = "id:int a:keyword hidden:keyword b:int" // secret has another name
	const renamed = `{"id":1,"a":"in","hidden":"x","b":1}`
	s.expect(t, 4, renamed, held+"tables[3].shape.drop: d.t has no column secret; it has id, a, hidden, b")
	s.expect(t, 5, renamed, held)
	s.columns = "id:int a:keyword secret:keyword b:int"
	s.expect(t, 6, renamed, `c {"id":1,"a":"in","hidden":"x","b":1}`) // and back again: the row is older
	s.expect(t, 6, renamed, `c `)

	s.columns = "id:int a:int secret:keyword b:int" // of another type
	s.expect(t, 7, `{"id":1,"a":7,"secret":"x","b":1}`, held+"tables[3].shape.where: at character 7: found no matching overload for '_==_' applied to '(int, string)'; row.a (int) is a whole number")
	s.columns = "id:int state:keyword secret:keyword b:int" // what the condition needs has another name
	s.expect(t, 8, `{"id":1,"state":"in","secret":"x","b":1}`, held+`tables[3].shape.where: d.t has no column a`)
}

func TestWhatATableCannotBeAskedHoldsItsRows(t *testing.T) {
	s := newTailor(shape.Config{Where: "10 / row.a > 1"}, "id:int a:int")
	s.err = errors.New("no answer")
	s.expect(t, 1, `{"id":1,"a":1}`, held+"no answer")
	s.err = nil
	s.expect(t, 2, `{"id":1,"a":1}`, `c {"id":1,"a":1}`)
	s.expect(t, 2, `{"id":1,"a":0}`, poison+"shape tables[3].shape.where: 10 / row.a > 1, which reads a: division by zero; leaves what is not at {\"id\":1,\"a\":0}")
	s.expect(t, 2, `{"id":1,"a":null}`, `d `)

	s = newTailor(shape.Config{Where: "row.a > 1"}, "")
	s.expect(t, 1, `{"id":1,"a":1}`, retry+"no_table")
	other := cdc.Change{Table: cdc.TableName{DB: "d", Table: "other"}, After: []byte(`{"x":1}`)}
	if no := s.shape(t.Context(), &other); no != nil || string(other.After) != `{"x":1}` || s.asked != 1 {
		t.Errorf("a table without a shape: %v, %s", no, other.After)
	}
}

// The sinks describe a table as its documents are.
func TestATableIsDescribedAsItsDocumentsAre(t *testing.T) {
	s := newTailor(shape.Config{Fields: []string{"id", "a"}, Rename: map[string]string{"a": "b"}, Compute: map[string]string{"c": "row.secret > 3"}}, "id:int a:keyword secret:int")
	table, err := s.described(t.Context(), cdc.TableName{DB: "d", Table: "t"})
	if got := fmt.Sprint(table.Columns, table.Key, err); got != "[{id int int false} {b keyword keyword false} {c bool computed true}] [id] <nil>" {
		t.Errorf("the table is %s", got)
	}
	table, err = s.described(t.Context(), cdc.TableName{DB: "d", Table: "other"})
	if err != nil || len(table.Columns) != 3 {
		t.Errorf("one without a shape is %v, %v", table, err)
	}
}

func TestAColumnThatIsNotThereIsNamedWithTheOneThatWasMeant(t *testing.T) {
	s := newTailor(shape.Config{Fields: []string{"idd"}, Where: "row.secert > 3"}, "id:int secret:int")
	_, err := s.shaped(must(s.describe(t.Context(), cdc.TableName{DB: "d", Table: "t"})))
	if want := "tables[3].shape.fields: d.t has no column idd; did you mean \"id\"?\ntables[3].shape.where: d.t has no column secert; did you mean \"secret\"?"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestRedisKeepsTheKeyInItsDocuments(t *testing.T) {
	table := must(newTailor(shape.Config{}, "id:int a:int").describe(t.Context(), cdc.TableName{DB: "d", Table: "t"}))
	for _, c := range []struct {
		rule shape.Config
		ok   bool
	}{
		{shape.Config{Drop: []string{"a"}}, true}, {shape.Config{Fields: []string{"id"}}, true},
		{shape.Config{Drop: []string{"id"}}, false}, {shape.Config{Fields: []string{"a"}}, false}, {shape.Config{Rename: map[string]string{"id": "a", "a": "id"}}, false},
	} {
		err := checkKeyStays(newTailor(c.rule, "").shaper, table)
		if c.ok != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), "tables[3].shape: takes the primary-key column id of d.t out") {
			t.Errorf("%+v: %v", c.rule, err)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var _ sinks.Sink = sinks.Shaped{}
