package sinks

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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

func TestWhoeverWaitsLongestCallsNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.CallsMin, cfg.CallsMax = 2, 2
		p := newPool("es", cfg, NewMetrics(prometheus.NewRegistry()))
		granted := func(ts ...*ticket) (n int) {
			for _, t := range ts {
				select {
				case <-t.granted:
					n++
				default:
				}
			}
			return n
		}
		a, b, c, d, e := p.ask(&seat{}, false), p.ask(&seat{}, false), p.ask(&seat{}, false), p.ask(&seat{}, false), p.ask(&seat{}, false)
		if granted(a, b) != 2 || granted(c, d, e) != 0 {
			t.Fatal("not the first two of five are granted")
		}
		p.drop(c) // it has nothing to send any more
		p.give(a, time.Millisecond, 1, false, 0)
		if granted(d) != 1 || granted(c, e) != 0 {
			t.Fatal("the next is not the one that waits longest")
		}
		p.give(b, time.Millisecond, 1, false, 3*time.Second)
		if granted(e) != 0 {
			t.Fatal("the store asked for a wait and is called")
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if granted(e) != 1 {
			t.Fatal("the wait is over and the store is not called")
		}
		p.drop(d)
		p.drop(e)
		if size, used, waiting, _ := p.state(); size != 2 || used != 0 || waiting != 0 {
			t.Errorf("size %d, used %d, waiting %d; want 2, 0, 0", size, used, waiting)
		}
	})
}

func TestOnePartitionLeavesCallsToTheOthers(t *testing.T) {
	cfg := DefaultConfig()
	cfg.CallsMin, cfg.CallsMax = 4, 4
	p := newPool("es", cfg, NewMetrics(prometheus.NewRegistry()))
	granted := func(t *ticket) bool {
		select {
		case <-t.granted:
			return true
		default:
			return false
		}
	}
	var greedy, other, away, gone seat
	first, second, third := p.ask(&greedy, false), p.ask(&greedy, false), p.ask(&greedy, false)
	if !granted(first) || !granted(second) || granted(third) {
		t.Error("one that is alone does not get the half of four")
	}
	if a, b := p.ask(&other, false), p.ask(&other, false); !granted(a) || granted(b) {
		t.Error("another one does not get one of the other half, for the next one to come has the last")
	}
	if !granted(p.ask(&seat{}, false)) {
		t.Error("a third one does not get the last")
	}
	if granted(p.ask(&seat{}, false)) {
		t.Error("there are more than four")
	}
	for _, s := range []*seat{&away, &gone, {}, {}} {
		if !granted(p.ask(s, true)) {
			t.Error("one that found the store unavailable waits for those that did not")
		}
	}
	if granted(p.ask(&seat{}, true)) {
		t.Error("there are more than four of those that found the store unavailable")
	}
	p.give(first, time.Millisecond, 1, false, 0)
	p.give(second, time.Millisecond, 1, false, 0)
	if !granted(third) {
		t.Error("what was given back is not granted")
	}
}
