package main

import (
	"fmt"

	"github.com/tidwall/gjson"
)

// tally follows the rows of a topic as a consumer without a memory of versions sees
// them. A row's views only ever grow at the source, so the pair of id and views names
// a change.
type tally struct {
	records    int
	duplicates int // changes that came before
	stepBacks  int // records that show an older state of their row than one before
	newest     map[int64]int64
	seen       map[[2]int64]struct{}
}

func newTally() *tally {
	return &tally{newest: map[int64]int64{}, seen: map[[2]int64]struct{}{}}
}

// changes is how many different changes came.
func (t *tally) changes() int { return len(t.seen) }

func (t *tally) add(id, views int64) {
	t.records++
	change := [2]int64{id, views}
	if _, again := t.seen[change]; again {
		t.duplicates++
	}
	t.seen[change] = struct{}{}
	if newest, known := t.newest[id]; known && views < newest {
		t.stepBacks++
		return
	}
	t.newest[id] = views
}

// envelope is what both programs write: Debezium's envelope, without a schema.
type envelope struct {
	id, views int64
	updated   string // as it stands there
}

func readEnvelope(value []byte) (envelope, error) {
	after := gjson.GetBytes(value, "after")
	if !after.IsObject() {
		return envelope{}, fmt.Errorf("a record without a row: %.200s", value)
	}
	return envelope{after.Get("id").Int(), after.Get("views").Int(), after.Get("updated_at").String()}, nil
}
