package client

import (
	"context"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// lockstep answers that a share of the keys reads from the sink, for a second each time.
type lockstep struct {
	*httptest.Server
	share atomic.Int32
	asked atomic.Int32
	away  atomic.Bool
}

func newLockstep(t *testing.T, share int32) *lockstep {
	l := &lockstep{}
	l.share.Store(share)
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.asked.Add(1); l.away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if r.Header.Get("Authorization") != "Bearer secret" || r.URL.Path != "/v1/route/shop.orders" || r.URL.Query().Get("sink") != "search" {
			t.Errorf("asked %s with %s", r.URL, r.Header)
		}
		share := l.share.Load()
		etag := fmt.Sprintf("%q", fmt.Sprint("share ", share))
		w.Header().Set("ETag", etag)
		w.Header().Set("Lockstep-Usable-Seconds", "1")
		if r.Header.Get("If-None-Match") == etag {
			time.Sleep(20 * time.Millisecond) // not for as long as it may: news can come
			w.WriteHeader(http.StatusNotModified)
			return
		}
		fmt.Fprintf(w, `{"table":"shop.orders","sinks":[{"sink":"search","share":%d,"reason":"it is so"}]}`, share)
	}))
	t.Cleanup(l.Close)
	return l
}

func (l *lockstep) follow(t *testing.T) *Route {
	r := &Route{Client: &Client{URL: l.URL, Token: "secret"}, Table: "shop.orders", Sink: "search"}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

// sinks counts the keys that read from the sink.
func sinks(r *Route) (n int) {
	for i := range 1000 {
		if r.ReadsSink(fmt.Sprint("user-", i)) {
			n++
		}
	}
	return n
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
	}
}

func TestAGatewayFollowsTheRouteKeyByKey(t *testing.T) {
	l := newLockstep(t, 100)
	r := l.follow(t)
	await(t, "all keys", func() bool { return sinks(r) == 1000 })
	l.share.Store(0)
	await(t, "no key", func() bool { return sinks(r) == 0 })
	if why := r.Why(); why != "it is so" {
		t.Errorf("because %q", why)
	}
	back := map[string]bool{}
	for _, share := range []int32{1, 10, 50, 100} {
		l.share.Store(share)
		want := 0
		for i := range 1000 {
			if int(crc32.ChecksumIEEE(fmt.Append(nil, "user-", i))%100) < int(share) {
				want++
			}
		}
		await(t, fmt.Sprint(share, " %"), func() bool { return sinks(r) == want })
		for key := range back {
			if !r.ReadsSink(key) {
				t.Fatalf("%s was back and is not at %d %%", key, share)
			}
		}
		for i := range 1000 {
			if key := fmt.Sprint("user-", i); r.ReadsSink(key) {
				back[key] = true
			}
		}
	}
}

// The last answer is used while it is usable when Lockstep is away, and no longer; when it
// is back, so is the route.
func TestTheLastAnswerIsUsedForItsTimeAndNoLonger(t *testing.T) {
	l := newLockstep(t, 100)
	r := l.follow(t)
	await(t, "an answer", func() bool { return sinks(r) == 1000 })
	asked := l.asked.Load()
	await(t, "the answer to be renewed", func() bool { return l.asked.Load() > asked+1 })
	l.away.Store(true)
	away := time.Now()
	time.Sleep(300 * time.Millisecond) // of the second that it may be used
	if n := sinks(r); n != 1000 {
		t.Errorf("%s after Lockstep went away %d of 1000 keys read from the sink", time.Since(away), n)
	}
	await(t, "the answer to be used up", func() bool { return sinks(r) == 0 })
	if took := time.Since(away); took > 3*time.Second || r.Why() != "there is no usable answer of Lockstep" {
		t.Errorf("used for %s, because %q", took, r.Why())
	}
	l.away.Store(false)
	await(t, "the route to be back", func() bool { return sinks(r) == 1000 })
}
