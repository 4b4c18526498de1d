package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// What a process cannot go on for is told, whatever else hangs; and a stop is no failure.
func TestTheErrorOfAPartIsKnownAlsoWhenAnotherDoesNotEnd(t *testing.T) {
	t.Parallel()
	broken := errors.New("the binlog is purged")
	never := make(chan struct{})
	defer close(never)
	for name, c := range map[string]struct {
		fails, stopped, hangs bool
		want                  error
	}{
		"a part fails":                              {fails: true, want: broken},
		"a part fails and another hangs":            {fails: true, hangs: true, want: broken},
		"a part fails, another hangs, and it stops": {fails: true, hangs: true, stopped: true, want: broken},
		"it is stopped":                             {stopped: true},
		"it is stopped and a part hangs":            {stopped: true, hangs: true},
	} {
		outer, stop := context.WithCancel(t.Context())
		defer stop()
		g, ctx := errgroup.WithContext(outer)
		if c.fails {
			g.Go(func() error { return broken })
			<-ctx.Done()
		}
		if c.stopped {
			stop()
		}
		g.Go(func() error {
			if c.hangs {
				<-never
			}
			<-ctx.Done()
			return nil
		})
		if whole, err := finish(outer, ctx, g, 20*time.Millisecond); whole == c.hangs || err != c.want {
			t.Errorf("%s: whole %v, error %v, want %v", name, whole, err, c.want)
		}
	}
}
