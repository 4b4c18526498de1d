package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockstep/internal/oracle"
)

// Of several captures one is active. Another one takes over from one that was told to stop
// without waiting for its lease to run out, and from one that was killed or is frozen when
// that has; one that goes on finds its place taken, does no harm with what it still had in
// hand, and stands by.
func TestAnotherCaptureTakesOverFromOneThatStopsIsKilledOrFrozen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 500)
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	// What the first one has lasts longer than this test would wait.
	long := strings.Replace(string(text), ", lease_timeout: 3s", ", lease_timeout: 10m", 1)
	if long == string(text) {
		t.Fatal("the lease timeout is not in the configuration")
	}
	if err := os.WriteFile(w.config, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	search, cache := w.start("sink", "search"), w.start("sink", "cache")
	first := w.start("capture")
	first.awaitReady()
	if err := os.WriteFile(w.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	second := w.start("capture")
	second.awaitReady()
	if active := first.metric("lockstep_capture_active"); active != 1 {
		t.Fatalf("active is %v in the first capture", active)
	}
	if active := second.metric("lockstep_capture_active"); active != 0 {
		t.Fatalf("active is %v in the one that stands by", active)
	}
	for p, want := range map[*process]string{first: "active", second: "standby"} {
		if doing := p.doing("capture"); doing != want {
			t.Errorf("/readyz says of the capture %q; want %q", doing, want)
		}
	}
	end := w.load(80, 5)
	watcher := &oracle.Watcher{Spec: w.spec}
	watching, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	watched := make(chan error, 1)
	go func() { watched <- watcher.Run(watching) }()
	defer func() { stop() }()

	took := func(p *process, since time.Time, what string) {
		t.Helper()
		await(t, patience, "the other one to take over after "+what, func() bool {
			p.alive()
			return p.metric("lockstep_capture_connected") == 1
		})
		t.Logf("after %s the other one reads the log in %s", what, time.Since(since).Round(10*time.Millisecond))
	}
	waitFor(t, time.Second)
	since := time.Now()
	first.stop()
	took(second, since, "SIGTERM")

	third := w.start("capture")
	third.awaitReady()
	since = time.Now()
	if err := second.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	took(third, since, "SIGSTOP")
	waitFor(t, 2*time.Second)
	if err := second.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await(t, 30*time.Second, "the frozen one to stand by", func() bool {
		second.alive()
		return second.metric("lockstep_capture_frozen_total") == 1 && second.metric("lockstep_capture_active") == 0
	})
	second.awaitReady()
	waitFor(t, time.Second)
	if active := third.metric("lockstep_capture_active"); active != 1 || third.metric("lockstep_capture_takeovers_total") != 1 {
		t.Errorf("the one that took over was disturbed: active is %v", active)
	}
	said, err := os.ReadFile(second.log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(said), "stood still") {
		t.Error("its log does not say that it stood still")
	}

	since = time.Now()
	third.kill()
	took(second, since, "kill -9")
	waitFor(t, time.Second)
	t.Log(end())
	w.equal(60 * time.Second)
	stop()
	if err := <-watched; err != nil {
		t.Fatal(err)
	}
	for _, v := range watcher.Violations() {
		t.Errorf("step back: %s", v)
	}
	for _, p := range []*process{search, cache, second} {
		p.stop()
	}
}

// doing is the word that /readyz has for a part of the process.
func (p *process) doing(part string) string {
	p.w.t.Helper()
	response, err := http.Get("http://" + p.admin + "/readyz")
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer response.Body.Close()
	var state struct{ Doing map[string]string }
	if err := json.NewDecoder(response.Body).Decode(&state); err != nil {
		p.w.t.Fatal(err)
	}
	return state.Doing[part]
}
