package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"lockstep/internal/bank"
	"lockstep/internal/oracle"
)

// watched is the table whose route the demo shows.
const watched = database + ".questions"

// objectives are shorter than the defaults, so that nobody has to wait for long, and the
// limits of time are wider: this is about a store that breaks.
const objectives = `reconcile:
  enabled: true
  sample_every: 2s
objectives:
  verify: always
  min_keys: 500
  recover_after: 3s
  share_every: 3s
  p99: 30s
  p99_tolerated: 1m
  window_tolerated: 20s
`

// direction is what a gateway is told of the watched table in Elasticsearch.
type direction struct {
	Sink, Read, State, Reason, Waits string
	Share                            int
}

func (d direction) String() string {
	text := fmt.Sprintf("%-8s %3d %% of the keys read from Elasticsearch", d.State, d.Share)
	if d.Reason != "" {
		text += ": " + d.Reason
	}
	return text
}

// showRoute breaks Elasticsearch under load and shows where a gateway is told to read,
// until everything is as it was.
func (d *demo) showRoute(ctx context.Context) (err error) {
	m := &meter{url: "http://" + d.admin + "/metrics", prefix: d.prefix}
	if _, err := d.awaitCopy(ctx, m); err != nil {
		return err
	}
	load := &bank.Workload{DB: d.db, Rate: d.rate, Seed: uint64(d.began.UnixNano()), Connections: 8}
	loading, stopLoad := context.WithCancel(ctx)
	loaded := make(chan error, 1)
	go func() { loaded <- load.Run(loading) }()
	defer stopLoad()
	d.say("writing %.0f transactions/s; asking http://%s/v1/route/%s?sink=%s where to read, by long poll", d.rate, d.admin, watched, search)
	told := make(chan direction)
	go d.follow(ctx, told)
	d.breaker = make(chan string)
	go d.followBreaker(ctx)

	if err := d.until(ctx, told, "the table is read from Elasticsearch", func(now direction) bool { return now.Read == "sink" }); err != nil {
		return err
	}
	broken := make(chan time.Time, 1)
	address := strings.TrimPrefix(d.servers.elastic.URL, "http://")
	go func() {
		for {
			conn, err := net.DialTimeout("tcp", address, time.Second)
			if err != nil {
				broken <- time.Now()
				return
			}
			conn.Close()
			time.Sleep(5 * time.Millisecond)
		}
	}()
	d.say("stopping Elasticsearch")
	started := false
	defer func() {
		if !started { // leave nothing broken behind
			err = errors.Join(err, servers("start", "elasticsearch"))
		}
	}()
	stopped := make(chan error, 1)
	go func() { stopped <- servers("stop", "elasticsearch") }()
	if err := d.until(ctx, told, "", func(now direction) bool { return now.Read == "mysql" }); err != nil {
		return err
	}
	turned := time.Since(<-broken)
	d.say("the gateway reads from MySQL, %s after Elasticsearch refused its first connection", turned.Round(time.Millisecond))
	if err := <-stopped; err != nil {
		return err
	}
	if turned > time.Second {
		return fmt.Errorf("the route turned after %s, which is more than a second", turned)
	}
	if !pause(ctx, d.duration/4) {
		return ctx.Err()
	}
	d.say("starting Elasticsearch; writes go on meanwhile, and wait in Kafka")
	started = true
	if err := servers("start", "elasticsearch"); err != nil {
		return err
	}
	d.say("Elasticsearch is up; the breaker tries one call, then the backlog drains, and the readers come back by shares")
	if err := d.until(ctx, told, "all keys read from Elasticsearch again", func(now direction) bool { return now.Read == "sink" }); err != nil {
		return err
	}
	stopLoad()
	if err := <-loaded; err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	d.say("writing has ended (%s); comparing every row of MySQL with both stores", load.Stats())
	report, err := oracle.WaitEqual(ctx, d.spec, patience)
	if err != nil {
		return err
	}
	d.say("compared: %s", report)
	d.say("EQUAL: Elasticsearch and Redis hold every row of MySQL, and nobody has read from a store that lacked some")
	return nil
}

// until prints what a gateway is told, until it is as it should be.
func (d *demo) until(ctx context.Context, told <-chan direction, what string, ok func(direction) bool) error {
	late := time.NewTimer(2 * patience)
	defer late.Stop()
	last := ""
	for {
		select {
		case now := <-told:
			if line := now.String(); line != last {
				last = line
				d.say("  %s", line)
			}
			if ok(now) {
				if what != "" {
					d.say("%s", what)
				}
				return nil
			}
		case line := <-d.breaker:
			d.say("  %s", line)
		case <-late.C:
			return fmt.Errorf("waited %s until %s; see %s", 2*patience, what, filepath.Join(d.dir, "lockstep.log"))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow asks by long poll and tells of every change.
func (d *demo) follow(ctx context.Context, told chan<- direction) {
	etag := ""
	for ctx.Err() == nil {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.admin+"/v1/route/"+watched+"?wait=20s&sink="+search, nil)
		if err != nil {
			return
		}
		request.Header.Set("If-None-Match", etag)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			pause(ctx, 200*time.Millisecond)
			continue
		}
		var answer struct{ Sinks []direction }
		fresh := response.StatusCode == http.StatusOK && json.NewDecoder(response.Body).Decode(&answer) == nil && len(answer.Sinks) == 1
		response.Body.Close()
		if !fresh {
			if response.StatusCode != http.StatusNotModified {
				pause(ctx, 200*time.Millisecond)
			}
			continue
		}
		etag = response.Header.Get("ETag")
		select {
		case told <- answer.Sinks[0]:
		case <-ctx.Done():
		}
	}
}

// followBreaker tells of every state of the breaker, and of what the reconciler has compared.
func (d *demo) followBreaker(ctx context.Context) {
	last, waits := "", ""
	for pause(ctx, 200*time.Millisecond) {
		response, err := http.Get("http://" + d.admin + "/v1/status")
		if err != nil {
			continue
		}
		var status struct {
			Sinks []struct {
				Name    string
				Breaker struct{ State string }
			}
			Routes []struct {
				Table string
				Sinks []direction
			}
		}
		err = json.NewDecoder(response.Body).Decode(&status)
		response.Body.Close()
		if err != nil {
			continue
		}
		for _, s := range status.Sinks {
			if now := "the breaker of Elasticsearch is " + s.Breaker.State; s.Name == search {
				d.tell(ctx, &last, now)
			}
		}
		for _, r := range status.Routes {
			for _, s := range r.Sinks {
				if r.Table == watched && s.Sink == search && strings.HasPrefix(s.Waits, "the reconciler") {
					d.tell(ctx, &waits, s.Waits)
				}
			}
		}
	}
}

// tell says a line that is another one than the last.
func (d *demo) tell(ctx context.Context, last *string, line string) {
	if line == *last {
		return
	}
	*last = line
	select {
	case d.breaker <- line:
	case <-ctx.Done():
	}
}

// servers does something to a local server.
func servers(verb, name string) error {
	if out, err := exec.Command(filepath.Join("deploy", "local", "servers"), verb, name).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", verb, name, err, out)
	}
	return nil
}
