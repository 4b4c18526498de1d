package sinks

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
)

func TestThePoolFollowsBacklogAndLatency(t *testing.T) {
	const ms = time.Millisecond
	p := pace{min: 4, max: 12, size: 4}
	calls := func(n int, took time.Duration, bytes int, backlog bool) {
		for range n {
			p.note(took, bytes, false, backlog)
		}
	}
	expect := func(want int, when string) {
		t.Helper()
		if p.size != want {
			t.Errorf("%s the pool has %d calls; want %d", when, p.size, want)
		}
	}
	calls(200, 10*ms, 5000, false)
	expect(4, "without a backlog")
	calls(200, 10*ms, 5000, true)
	expect(12, "with a backlog and a steady latency")
	calls(200, 15*ms, 5000, false)
	expect(12, "when the backlog is over")
	calls(200, 100*ms, 1<<20, true)
	expect(12, "with larger calls that take longer")
	calls(60, 40*ms, 5000, true)
	if p.size >= 12 {
		t.Errorf("with four times the latency the pool has still %d calls", p.size)
	}
	calls(200, 40*ms, 5000, true)
	low := p.size
	if low > 6 {
		t.Errorf("after a long time with four times the latency the pool has still %d calls", low)
	}
	calls(20_000, 40*ms, 5000, true)
	expect(12, "when the store has become a slower one for good")
	p.note(ms, 5000, true, true)
	expect(6, "when the store was unavailable once")
	p.note(ms, 5000, true, true)
	p.note(ms, 5000, true, true)
	expect(4, "when it was again and again")
}

// desk is a pool whose tickets a test asks for.
type desk struct{ *pool }

func newDesk(calls int, call func(*joint)) desk {
	cfg := DefaultConfig()
	cfg.CallsMin, cfg.CallsMax, cfg.BatchChanges = calls, calls, 10
	return desk{newPool("es", cfg, NewMetrics(prometheus.NewRegistry()), call)}
}

// granted waits until nothing more happens by itself and reports whose turn it is.
func granted(t *ticket) bool {
	synctest.Wait()
	select {
	case <-t.granted:
		return true
	default:
		return false
	}
}

// done ends the call of a ticket.
func (d desk) done(t *ticket, w went) {
	w.made, w.asked = true, true
	t.joint.went = w
	d.give(t)
}

func TestWhoeverWaitsLongestCallsNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDesk(2, nil)
		var ts [5]*ticket
		for i := range ts {
			ts[i] = p.ask(p.seat(string(rune('a'+i))), false, 1)
		}
		a, b, c, d, e := ts[0], ts[1], ts[2], ts[3], ts[4]
		if !granted(a) || !granted(b) || granted(c) || granted(d) || granted(e) {
			t.Fatal("not the first two of five are granted")
		}
		p.drop(c) // it has nothing to send any more
		p.done(a, went{took: time.Millisecond})
		if !granted(d) || granted(e) {
			t.Fatal("the next is not the one that waits longest")
		}
		p.done(b, went{took: time.Millisecond, retryAfter: 3 * time.Second})
		if granted(e) {
			t.Fatal("the store asked for a wait and is called")
		}
		time.Sleep(3 * time.Second)
		if !granted(e) {
			t.Fatal("the wait is over and the store is not called")
		}
		p.drop(d)
		p.drop(e)
		if size, used, waiting, _ := p.state(); size != 2 || used != 0 || waiting != 0 {
			t.Errorf("size %d, used %d, waiting %d; want 2, 0, 0", size, used, waiting)
		}
	})
}

func TestOneTableLeavesCallsToTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDesk(4, nil)
		ask := func(s *seat, held bool) *ticket {
			time.Sleep(mostPatience) // it has waited for company long enough
			return p.ask(s, held, 1)
		}
		greedy, other := p.seat("greedy"), p.seat("other")
		first, second, third := ask(greedy, false), ask(greedy, false), ask(greedy, false)
		if !granted(first) || !granted(second) || granted(third) {
			t.Error("one that is alone does not get the half of four")
		}
		if a, b := ask(other, false), ask(other, false); !granted(a) || granted(b) {
			t.Error("another one does not get one of the other half, for the next one to come has the last")
		}
		if !granted(ask(p.seat("a third"), false)) {
			t.Error("a third one does not get the last")
		}
		if granted(ask(p.seat("a fourth"), false)) {
			t.Error("there are more than four")
		}
		for range 4 { // partitions of one table, each for itself
			if !granted(ask(p.seat("away"), true)) {
				t.Error("one that found the store unavailable waits for those that did not, or for another one")
			}
		}
		if granted(ask(p.seat("away"), true)) {
			t.Error("there are more than four of those that found the store unavailable")
		}
		p.done(first, went{took: time.Millisecond})
		p.done(second, went{took: time.Millisecond})
		if !granted(third) {
			t.Error("what was given back is not granted")
		}
	})
}

func TestThePartitionsOfATopicShareCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDesk(8, nil)
		topic := func(n int) *ticket { return p.ask(p.seat("topic"), false, n) }
		first := topic(1)
		if !granted(first) || first.among != 1 {
			t.Fatal("one change that comes alone does not go at once")
		}
		second, third := topic(1), topic(1)
		time.Sleep(between - 1)
		if granted(second) {
			t.Fatal("no time is given to company")
		}
		time.Sleep(1)
		if !granted(second) || !granted(third) || second.joint != third.joint || second.among != 2 {
			t.Fatal("what waits does not share a call")
		}
		a, b, c := topic(4), topic(5), topic(2)
		if !granted(a) || !granted(b) || granted(c) || a.joint != b.joint || a.among != 2 {
			t.Fatal("enough for a full call does not make one at once, with the next one left over")
		}
		p.more(c, 10)
		if !granted(c) || c.among != 1 {
			t.Fatal("enough for a full call that has come meanwhile does not make one at once")
		}
		p.done(a, went{})
		if _, used, _, _ := p.state(); used != 4 {
			t.Errorf("%d calls are in use, want 4: one of two that share a call has given it back", used)
		}
		p.done(b, went{})
		if _, used, _, _ := p.state(); used != 3 {
			t.Errorf("%d calls are in use, want 3", used)
		}
	})
}

func TestASharedCallAnswersEachForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		var asked []int
		var during context.Context
		w, _ := plain(func(ctx context.Context, changes []cdc.Change) []Outcome {
			asked, during = append(asked, len(changes)), ctx
			<-hang
			outcomes := make([]Outcome, len(changes))
			for i := range changes {
				outcomes[i] = Outcome{Verdict: Applied, Reason: string(changes[i].Key)}
			}
			return outcomes
		}).worker(t, nil)
		w.start()
		change := func(key string) []cdc.Change { return []cdc.Change{{Key: []byte(key)}} }

		j := newJoint(4, w.call)
		impatient, leave := context.WithCancel(t.Context())
		answers := make(chan string, 3)
		put := func(ctx context.Context, key string) {
			outcomes, made := j.apply(ctx, change(key), 1)
			answers <- fmt.Sprint(key, " ", len(outcomes), outcomes[0].Verdict == Applied, outcomes[0].Reason, made)
		}
		go put(t.Context(), "a")
		go put(impatient, "b")
		go put(t.Context(), "c")
		synctest.Wait()
		if len(asked) != 0 {
			t.Fatal("the store is asked before everybody has come")
		}
		j.leave()
		synctest.Wait()
		leave()
		if got := <-answers; got != "b 1 falsetrue" {
			t.Errorf("who does not wait is told %s", got)
		}
		if during.Err() != nil {
			t.Error("the others do not get their answer because one does not wait")
		}
		close(hang)
		got := []string{<-answers, <-answers}
		slices.Sort(got)
		if want := []string{"a 1 trueatrue", "c 1 truectrue"}; !slices.Equal(got, want) || !slices.Equal(asked, []int{3}) {
			t.Errorf("calls of %v changes answered %v; want one of 3 and %v", asked, got, want)
		}

		hang = make(chan struct{})
		j = newJoint(2, w.call)
		ctx, stop := context.WithCancel(t.Context())
		go put(ctx, "a")
		go put(ctx, "b")
		synctest.Wait()
		stop()
		synctest.Wait()
		if during.Err() == nil {
			t.Error("a call goes on for which nobody waits")
		}
		close(hang)
		<-answers
		<-answers
	})
}

func TestASharedCallLeavesRoomForEach(t *testing.T) {
	cfg := DefaultConfig()
	cfg.BatchChanges = 10
	l := newLane(cfg, "p.shop.q", 0, &books{metrics: NewMetrics(prometheus.NewRegistry()), sink: "es", byTable: make(map[cdc.TableName]*account)})
	items, _ := decode(rows(30))
	now := time.Now()
	l.take(now, items)
	for _, c := range []struct{ among, want int }{{1, 10}, {4, 2}, {100, 1}} {
		if got := len(l.call(now, c.among).items); got != c.want {
			t.Errorf("of 10 changes %d partitions put in %d each; want %d", c.among, got, c.want)
		}
	}
	l.cfg.BatchBytes = 4 * items[20].load()
	if got := len(l.call(now, 2).items); got != 2 {
		t.Errorf("of four changes' bytes two partitions put in %d each; want 2", got)
	}
}
