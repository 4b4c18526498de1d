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
		newShare := func() *share { return &share{Memory: m, gauge: func(d float64) { gauge += d }} }
		reads := func(s *share) bool {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan bool, 1)
			go func() { done <- s.wait(ctx) }()
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
		go func() { done <- c.wait(t.Context()) }()
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
