package oracle

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestAVersionThatGoesDownOrComesBackUnchangedIsAViolation(t *testing.T) {
	const gone = 0
	for _, c := range []struct {
		name string
		seen []uint64
		want string
	}{
		{"rising", []uint64{1, 2, 2, 5}, ""},
		{"falling", []uint64{5, 4}, "from version 5 down to 4"},
		{"falling back to where it was before", []uint64{3, 5, 3}, "from version 5 down to 3"},
		{"deleted for good", []uint64{5, gone, gone}, ""},
		{"deleted and written anew", []uint64{5, gone, 6}, ""},
		{"deleted and back", []uint64{5, gone, gone, 5}, "came back with the version 5"},
		{"deleted and older", []uint64{5, gone, 4}, "from version 5 down to 4"},
		{"absent at first", []uint64{gone, gone, 1, 1}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w Watcher
			k := &watched{table: &TableSpec{Table: "t"}, id: "1"}
			for _, v := range c.seen {
				w.judge(Redis, k, &k.redis, v)
			}
			got := strings.Join(w.Violations(), "; ")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Fatalf("want %q, got %q", c.want, got)
			}
		})
	}
}

// waitUntil polls a condition, for at most half a minute.
func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func TestTheWatcherSeesAStepBackInEachStore(t *testing.T) {
	w := newWorld(t)
	watcher := &Watcher{Spec: w.spec}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- watcher.Run(ctx) }()
	waitUntil(t, "both stores to be read", func() bool { return watcher.Reads() > 50 })
	if v := watcher.Violations(); len(v) > 0 {
		t.Fatalf("nothing happened yet, got %v", v)
	}

	sees := func(text string) func() bool {
		return func() bool { return strings.Contains(strings.Join(watcher.Violations(), "\n"), text) }
	}
	must(t, w.redis.HSet(ctx, w.thing("2"), "_lockstep_v", "4398046511998").Err())
	waitUntil(t, "the hash's step back", sees("redis: things/2 went from version 4398046511999 down to 4398046511998"))
	must(t, w.redis.Set(ctx, w.pair("x:8"), `{"_lockstep":{"v":7}}`, 0).Err())
	waitUntil(t, "the JSON text's step back", sees("redis: pairs/x:8 went from version 4398046511999 down to 7"))
	index := w.spec.Tables[0].Index
	w.elastic("DELETE", "/"+index, "")
	w.elastic("PUT", "/"+index, `{"mappings":{"enabled":false}}`)
	w.putDoc(index, "2", things["2"], "5")
	waitUntil(t, "the document's step back", sees("elastic: things/2 went from version 4398046511999 down to 5"))

	cancel()
	must(t, <-done)
}
