package mysql

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"lockstep/cdc"
)

func TestARowReaderReadsATableInTheOrderOfItsKey(t *testing.T) {
	w := newWorld(t)
	w.exec("CREATE TABLE q (a INT, b VARCHAR(10), n INT, PRIMARY KEY (a, b))", "INSERT INTO q VALUES (1, 'x', 1), (1, 'y', 2), (2, 'a', 3), (3, 'a', 4)")
	read := func(where string, most, bytes int) string {
		r, err := OpenRows(t.Context(), w.cfg, cdc.TableName{DB: w.name, Table: "q"}, where)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var chunks []string
		var after []byte
		for {
			rows, err := r.Next(after, most, bytes)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) == 0 {
				return strings.Join(chunks, " | ")
			}
			var keys []string
			for _, row := range rows {
				keys = append(keys, string(row.Key))
			}
			after = rows[len(rows)-1].Key
			chunks = append(chunks, strings.Join(keys, " "))
		}
	}
	all := `{"a":1,"b":"x"} {"a":1,"b":"y"} {"a":2,"b":"a"} {"a":3,"b":"a"}`
	if got := read("", 100, 1<<20); got != all {
		t.Errorf("it reads %s", got)
	}
	if got := read("", 3, 1<<20); got != `{"a":1,"b":"x"} {"a":1,"b":"y"} {"a":2,"b":"a"} | {"a":3,"b":"a"}` {
		t.Errorf("in threes it reads %s", got)
	}
	if got := read("", 100, 1); got != strings.ReplaceAll(all, "} {", "} | {") {
		t.Errorf("a byte at a time it reads %s", got)
	}
	if got := read("n > 2", 100, 1<<20); got != `{"a":2,"b":"a"} {"a":3,"b":"a"}` {
		t.Errorf("of a part it reads %s", got)
	}
	r, err := OpenRows(t.Context(), w.cfg, cdc.TableName{DB: w.name, Table: "q"}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rows, err := r.Last(1)
	if err != nil || len(rows) != 1 || string(rows[0].Row) != `{"a":3,"b":"a","n":4}` {
		t.Errorf("the last row is %q, %v", rows, err)
	}
	before, err := r.Executed()
	if err != nil {
		t.Fatal(err)
	}
	w.exec("INSERT INTO q VALUES (4, 'a', 5)")
	after, err := r.Executed()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		set, other string
		want       bool
	}{{after, before, true}, {before, after, false}, {after, after, true}} {
		if got, err := Contains("", c.set, c.other); got != c.want || err != nil {
			t.Errorf("%s contains %s: %v, %v", c.set, c.other, got, err)
		}
	}
	server, _, _ := strings.Cut(after, ":")
	for set, want := range map[string]bool{after: true, "": true, server + ":1-99999999": false} {
		if got, err := r.Shows(set); got != want || err != nil {
			t.Errorf("it shows %q: %v, %v", set, got, err)
		}
	}
	if same, err := r.Same(); !same || err != nil {
		t.Errorf("the table is the same: %v, %v", same, err)
	}
	w.exec("ALTER TABLE q ADD COLUMN more INT")
	if same, err := r.Same(); same || err != nil {
		t.Errorf("the table was altered, and is the same: %v, %v", same, err)
	}
	none, err := OpenRows(t.Context(), w.cfg, cdc.TableName{DB: w.name, Table: "none"}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()
	if rows, err := none.Next(nil, 10, 10); len(rows) > 0 || err != nil {
		t.Errorf("a table that is not there has %q, %v", rows, err)
	}
	if _, err := OpenRows(t.Context(), w.cfg, cdc.TableName{DB: w.name, Table: "q"}, "nothing = 1"); !errors.As(err, new(BadWhere)) || !strings.Contains(fmt.Sprint(err), "nothing") {
		t.Errorf("a wrong condition gives %v", err)
	}
}

func TestAPaceFollowsTheTimeOfAChunk(t *testing.T) {
	p := Pace{Snapshot: DefaultConfig().Snapshot}
	for _, step := range []struct {
		took time.Duration
		want int
	}{{20 * time.Millisecond, 2000}, {20 * time.Millisecond, 4000}, {2 * time.Second, 2000}, {200 * time.Millisecond, 2000}} {
		if p.Took(p.Rows(), step.took); p.Rows() != step.want {
			t.Fatalf("after %s it is %d, want %d", step.took, p.Rows(), step.want)
		}
	}
}
