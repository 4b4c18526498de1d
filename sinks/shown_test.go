package sinks

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
	"lockstep/kafka"
)

// A change is settled, and its offset may be committed, when a newer one of its row has come;
// the store shows neither before it has that one.
func TestWhatTheStoreShowsMayBeBehindWhatIsSettled(t *testing.T) {
	for _, moves := range []bool{false, true} {
		l := newLane(DefaultConfig(), "p.shop.a", 1, &books{metrics: NewMetrics(prometheus.NewRegistry()), sink: "s", byTable: make(map[cdc.TableName]*account)})
		l.moves = func(cdc.TableName) bool { return moves }
		l.applied, l.met = func(*item, time.Time) {}, func(*item, Verdict) {}
		now, offset := time.Now(), int64(10)
		take := func(row string, version cdc.Version, op cdc.Op) {
			it := &item{record: kafka.Record{Offset: offset}, change: cdc.Change{Table: cdc.TableName{DB: "shop", Table: "a"}, Op: op, Version: version, Key: []byte(row), CommitMicros: 1}}
			it.row = rowKey{it.change.Table, row}
			offset++
			l.take(now, []*item{it})
		}
		expect := func(when string, settled, shown int64) {
			t.Helper()
			if moves {
				settled = min(settled, shown) // there the offset waits likewise
			}
			if got := l.settledTo(); got != settled && !moves || l.shownTo() != shown {
				t.Errorf("moves %v, %s: settled up to %d and shown up to %d; want %d and %d", moves, when, got, l.shownTo(), settled, shown)
			}
		}
		answer := func(c *call, v Verdict) {
			t.Helper()
			outcomes := make([]Outcome, len(c.items))
			for i := range outcomes {
				outcomes[i] = Outcome{Verdict: v, Reason: "no"}
			}
			if err := l.answer(now, c, outcomes, false); err != nil {
				t.Fatal(err)
			}
		}
		expect("before the first", -1, -1)
		take("x", 1, cdc.OpUpdate)
		take("x", 2, cdc.OpUpdate)
		expect("a newer one has come", 11, 10)
		first := l.call(now, 1)
		take("x", 3, cdc.OpUpdate)
		expect("and one more, behind a call", 11, 10)
		answer(first, Unavailable)
		expect("the call brought nothing", 12, 10)
		take("y", 4, cdc.OpUpdate)
		take("x", 2, cdc.OpUpdate) // again, and older
		expect("an older one was read again", 12, 10)
		second := l.call(now, 1)
		take("x", 5, cdc.OpUpdate)
		answer(second, Applied)
		expect("what was called is there, and another row waits", 13, 13)
		answer(l.call(now, 1), Applied)
		expect("that is there, and the newest of the first one waits", 15, 15)
		answer(l.call(now, 1), Applied)
		expect("it is there", 16, 16)
		take("z", 6, cdc.OpUpdate)
		take("", 7, cdc.OpBarrier)
		expect("a barrier has made it void", 18, 18)
		if l.void != 7 || l.firstMark != nil || l.lastMark != nil {
			t.Errorf("void is %d, and left are %v and %v", l.void, l.firstMark, l.lastMark)
		}
	}
}
