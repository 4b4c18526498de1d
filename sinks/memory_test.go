package sinks

import (
	"context"
	"testing"
	"testing/synctest"
)

func TestABusyPartitionLeavesMemoryToTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(1000)
		gauge := 0.0
		newShare := func() *share { return m.share(func(d float64) { gauge += d }) }
		reads := func(s *share) bool {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan bool, 1)
			go func() {
				_, ok := s.wait(ctx)
				done <- ok
			}()
			synctest.Wait()
			cancel()
			return <-done
		}
		a, b, c := newShare(), newShare(), newShare()
		for reads(a) {
			a.add(100)
		}
		if a.held != 600 {
			t.Errorf("one that is alone holds %d of 1000; want what passes the half", a.held)
		}
		for reads(b) {
			b.add(100)
		}
		if b.held < 200 || a.held+b.held > 1000 {
			t.Errorf("a second one holds %d beside %d", b.held, a.held)
		}
		c.add(1000 - a.held - b.held) // all is used up
		c.close()
		c.add(300)
		if reads(c) {
			t.Error("one that holds much reads on though nothing is free")
		}
		if d := newShare(); !reads(d) {
			t.Error("one that holds nothing may not read")
		}
		// One that waits is told.
		done := make(chan bool, 1)
		go func() {
			_, ok := c.wait(t.Context())
			done <- ok
		}()
		synctest.Wait()
		a.close()
		if !<-done {
			t.Error("one that waits is not told that memory is free")
		}
		b.close()
		c.close()
		if m.used != 0 || gauge != 0 {
			t.Errorf("%d bytes are used and the gauge shows %v when nobody holds any", m.used, gauge)
		}
	})
}

// Many partitions that all read in the same moment pass the limit by half of it at
// most, once they know what becomes of a fetch.
func TestManyPartitionsAskForLittleEach(t *testing.T) {
	const limit, swell = 256 << 20, 9
	m := NewMemory(limit)
	shares := make([]*share, 160)
	for i := range shares {
		shares[i] = m.share(func(float64) {})
		shares[i].fetched(swell*leastFetch, leastFetch)
		shares[i].add(-shares[i].held)
	}
	busy := shares[0]
	for {
		most, _ := busy.wait(t.Context())
		if busy.fetched(swell*most, most); busy.held > limit-m.used {
			break // it would wait now
		}
	}
	asked := make([]int, len(shares))
	for i, s := range shares[1:] {
		var ok bool
		if asked[i+1], ok = s.wait(t.Context()); !ok {
			t.Fatal("one that holds nothing may not read")
		}
	}
	for i, s := range shares {
		s.fetched(swell*asked[i], leastFetch)
	}
	if m.used > limit*3/2 {
		t.Errorf("%d bytes are held of %d", m.used, limit)
	}
	alone := NewMemory(limit).share(func(float64) {})
	if most, _ := alone.wait(t.Context()); most != enough/swelling {
		t.Errorf("one that is alone asks for %d bytes; want what becomes enough", most)
	}
}
