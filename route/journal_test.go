package route

import (
	"fmt"
	"testing"
	"time"
)

// 500 tables that turn within a moment are one line for each sink and state, and a table that turns again is
// another one.
func TestTheLogTellsOnceOfAllTablesOfASink(t *testing.T) {
	var j Journal
	now := time.Unix(1_000_000, 0)
	turn := func(sink, table string, was, is State, cause Cause) Turn {
		return Turn{Place{sink, table}, Decision{State: was, Share: 100}, Decision{State: is, Cause: cause, Reason: "of " + table}}
	}
	for i := range 500 {
		table, cause := fmt.Sprintf("shop.t%03d", i), Unavailable
		if i%5 == 0 {
			cause = Late
		}
		j.Add(now, []Turn{turn("search", table, OK, Degraded, cause), turn("cache", table, OK, Degraded, cause)})
		now = now.Add(time.Millisecond)
		if due := j.Due(now); due != nil {
			t.Fatalf("after %d tables it tells of %d", i, len(due[0].Tables))
		}
	}
	j.Add(now, []Turn{{Place{"search", "shop.t000"}, Decision{State: Degraded}, Decision{State: Degraded, Cause: Late}}})
	now = now.Add(gathering)
	due := j.Due(now)
	if len(due) != 2 || due[0].Sink != "search" || len(due[0].Tables) != 500 || due[0].Tables[0] != "shop.t000" || due[0].Cause() != Unavailable || due[0].Causes[Late] != 100 {
		t.Fatalf("it tells of %+v", due)
	}
	if j.Add(now, []Turn{turn("search", "shop.t000", Degraded, OK, "")}); len(j.Due(now)) != 0 || len(j.Due(now.Add(gathering))) != 1 {
		t.Error("what comes later is no line of its own")
	}
}
