package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// direction is what a gateway is told of a table in a sink.
type direction struct {
	Sink, Read, State, Cause, Reason, Waits string
	Share                                   int
	Stops                                   []string
	Since                                   time.Time
}

type advice struct {
	Table       string
	Sinks       []direction
	At          time.Time
	UsableUntil time.Time `json:"usable_until"`
}

// more adds a line to the configuration.
func (w *world) more(text string) {
	w.t.Helper()
	file, err := os.OpenFile(w.config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer file.Close()
	if _, err := fmt.Fprintln(file, text); err != nil {
		w.t.Fatal(err)
	}
}

// route asks where a table is to be read that a sink has.
func (p *process) route(table, sink, key string) direction {
	p.w.t.Helper()
	query := url.Values{"sink": {sink}}
	if key != "" {
		query.Set("key", key)
	}
	res, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + p.admin + "/v1/route/" + p.w.name + "." + table + "?" + query.Encode())
	if err != nil {
		p.alive()
		p.w.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusServiceUnavailable {
		return direction{Read: "mysql", State: "starting"}
	}
	var a advice
	if err := json.NewDecoder(res.Body).Decode(&a); err != nil || res.StatusCode != http.StatusOK || len(a.Sinks) != 1 {
		p.w.t.Fatalf("%s: %+v, %v", res.Status, a, err)
	}
	if !a.UsableUntil.After(a.At) {
		p.w.t.Fatalf("usable until %s, at %s", a.UsableUntil, a.At)
	}
	return a.Sinks[0]
}

// gateway follows the route of a table by long polls, as one that reads from it would.
type gateway struct {
	mu   sync.Mutex
	seen []sighting
	end  chan struct{}
	over sync.WaitGroup
}

type sighting struct {
	direction
	at time.Time
}

func (p *process) gateway(table, sink string) *gateway {
	g := &gateway{end: make(chan struct{})}
	client := &http.Client{Timeout: 30 * time.Second}
	address := "http://" + p.admin + "/v1/route/" + p.w.name + "." + table + "?sink=" + sink
	etag := ""
	poll := func() {
		req, err := http.NewRequestWithContext(p.w.t.Context(), http.MethodGet, address+"&wait=2s", nil)
		if err != nil {
			p.w.t.Error(err)
			return
		}
		req.Header.Set("If-None-Match", etag)
		res, err := client.Do(req)
		if err != nil {
			time.Sleep(50 * time.Millisecond) // it has the last answer meanwhile
			return
		}
		defer res.Body.Close()
		var a advice
		if res.StatusCode != http.StatusOK || json.NewDecoder(res.Body).Decode(&a) != nil || len(a.Sinks) != 1 {
			return
		}
		etag = res.Header.Get("ETag")
		g.mu.Lock()
		g.seen = append(g.seen, sighting{a.Sinks[0], time.Now()})
		g.mu.Unlock()
	}
	g.over.Go(func() {
		for {
			select {
			case <-g.end:
				return
			default:
				poll()
			}
		}
	})
	p.w.t.Cleanup(g.stop)
	return g
}

func (g *gateway) stop() {
	select {
	case <-g.end:
	default:
		close(g.end)
	}
	g.over.Wait()
}

// since are the sightings from a time on.
func (g *gateway) since(at time.Time) []sighting {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(g.seen), func(s sighting) bool { return s.at.Before(at) })
}

func (g *gateway) first(at time.Time, read string) (sighting, bool) {
	for _, s := range g.since(at) {
		if s.Read == read {
			return s, true
		}
	}
	return sighting{}, false
}

// The whole cycle: Elasticsearch breaks under load, a gateway is told within a second to read
// from MySQL, the other sink goes on; when it is back the backlog drains, a sample is
// verified, and readers come back by shares, each key once.
func TestTheRouteTurnsWhenAStoreBreaksAndReturnsByItself(t *testing.T) {
	w := newWorld(t, 300)
	// The limits of time are wide: this is about a store that breaks, whatever else this machine does.
	w.more("objectives: {verify: always, min_keys: 200, recover_after: 3s, shares: [1, 10, 50], share_every: 2s, silence: 10s, ttl: 5s, p99: 30s, p99_tolerated: 2m, window: 10s, window_tolerated: 20s}")
	w.more("reconcile: {enabled: true, sample_every: 1s}")
	p := w.start("run")
	p.awaitReady()
	end := w.load(30, 5)
	await(t, 90*time.Second, "the table to be read from both sinks", func() bool {
		return p.route("questions", "search", "").Read == "sink" && p.route("questions", "cache", "").Read == "sink"
	})
	g, other := p.gateway("questions", "search"), p.gateway("questions", "cache")
	waitFor(t, 3*time.Second)

	search := theServers(t).search
	again := func() {
		if !reachable(search.Addr) {
			must(t, scope.Run(search.Start))
		}
	}
	t.Cleanup(again)
	broke := make(chan time.Time, 1)
	go func() {
		for reachable(search.Addr) {
			time.Sleep(5 * time.Millisecond)
		}
		broke <- time.Now()
	}()
	search.Stop()
	at := <-broke
	await(t, 5*time.Second, "the route to turn", func() bool { _, turned := g.first(time.Time{}, "mysql"); return turned })
	turned, _ := g.first(time.Time{}, "mysql")
	t.Logf("%s after Elasticsearch broke the gateway was told: %+v", turned.at.Sub(at), turned.direction)
	if late := turned.at.Sub(at); late > time.Second || turned.State != "degraded" || turned.Cause != "unavailable" || turned.Reason == "" {
		t.Errorf("%s after Elasticsearch broke: %+v", late, turned.direction)
	}
	waitFor(t, 6*time.Second)
	if s := p.route("questions", "search", ""); s.Read != "mysql" || !slices.Contains(s.Stops, "repairs") {
		t.Errorf("while it is away: %+v", s)
	}
	if s := p.route("questions", "cache", ""); s.Read != "sink" || len(other.since(at)) != 0 {
		t.Errorf("the other sink meanwhile: %+v, %+v", s, other.since(at))
	}

	keys := make([]string, 300)
	for i := range keys {
		keys[i] = fmt.Sprint(i + 1)
	}
	compared := func() float64 {
		return p.metric("lockstep_reconcile_keys_compared_total", `sink="search"`, fmt.Sprintf("table=%q", w.name+".questions"))
	}
	back, before := map[string]bool{}, compared()
	again()
	started := time.Now()
	await(t, 2*time.Minute, "the route to be back", func() bool {
		p.alive()
		for _, key := range keys[:20] {
			switch d := p.route("questions", "search", key); {
			case d.Read == "sink":
				back[key] = true
			case back[key]:
				t.Fatalf("key %s read from the sink and is to read from %s again: %+v", key, d.Read, d)
			}
		}
		return p.route("questions", "search", "").Read == "sink"
	})
	t.Log(end())
	if after := compared(); after < before+200 {
		t.Errorf("it is read again, and the reconciler has compared %v rows since it broke", after-before)
	}
	var shares []int
	for _, s := range g.since(started) {
		t.Logf("%6.1fs %s %d%% %s %s", s.at.Sub(started).Seconds(), s.State, s.Share, s.Cause, s.Reason)
		if len(shares) == 0 || shares[len(shares)-1] != s.Share {
			shares = append(shares, s.Share)
		}
	}
	if len(shares) > 0 && shares[0] == 0 {
		shares = shares[1:]
	}
	if !slices.Equal(shares, []int{1, 10, 50, 100}) {
		t.Errorf("the readers came back by %v; want 1, 10, 50, 100", shares)
	}
	w.equal(90 * time.Second)
	p.stop()
}
