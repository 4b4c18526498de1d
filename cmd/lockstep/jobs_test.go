package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"lockstep/audit"
	"lockstep/config"
	"lockstep/dlq"
	"lockstep/sinks"
)

// A replay is asked for, listed, shown and cancelled, while no process carries it out.
func TestAReplayIsAskedForShownAndCancelled(t *testing.T) {
	c := newCounter(t, "")
	if got := c.run("dlq", "jobs", "list"); got.code != 0 || got.stdout != "no replays\n" {
		t.Errorf("%+v", got)
	}
	c.bury("search", refused(1, "no field n", "2026-11-22T08:00:00Z"), refused(2, "no field n", "2026-11-22T08:00:00Z"))
	letter := c.letters("--key", "1")[0].ID
	got := c.run("dlq", "replay", letter, "--mode", "payload", "--rate", "5", "--canary", "2", "--since", "48000h", "--reason", "ticket 7", "--actor", "ann", "--detach")
	id, _, _ := strings.Cut(strings.TrimPrefix(got.stdout, "replay "), " ")
	if got.code != 0 || got.stdout != "replay "+id+" is asked for; see lockstep dlq jobs show "+id+"\n" {
		t.Fatalf("%+v", got)
	}
	var s dlq.JobStatus
	got = c.run("dlq", "jobs", "show", id, "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &s); err != nil || s.State != dlq.JobAsked || s.Mode != dlq.Payload || s.Rate != 5 || s.Canary != 2 || s.Reason != "ticket 7" || s.Actor != "ann" || len(s.IDs) != 1 || s.IDs[0] != letter {
		t.Errorf("%+v, %v", got, err)
	}
	if since, err := time.Parse(time.RFC3339Nano, s.Filter["since"]); err != nil || time.Since(since) < 48000*time.Hour {
		t.Errorf("a time that moves: %v", s.Filter)
	}
	for _, want := range []string{"state               asked\n", "mode                payload\n", " by ann\n", "canary              2 letters\n"} {
		text := c.run("dlq", "jobs", "show", id).stdout
		if !strings.Contains(strings.Join(strings.Fields(text), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	unheld := "no process has held it since " + s.Asked.Format(time.RFC3339) + "; start lockstep run, or lockstep sink, and it goes on"
	if got := c.run("dlq", "jobs", "list"); strings.Count(got.stdout, "\n") != 2 || !strings.Contains(got.stdout, id) || !strings.Contains(got.stdout, s.Asked.Local().Format("01-02 15:04:05")+"  -") || !strings.Contains(got.stdout, unheld) {
		t.Errorf("%+v", got)
	}
	if s.UnheldSince == nil || !s.UnheldSince.Equal(s.Asked) || !strings.Contains(c.run("dlq", "jobs", "show", id).stdout, unheld) {
		t.Errorf("%+v", s)
	}
	for _, verb := range []string{"show", "cancel"} {
		if got := lockstep(t, nil, "__complete", "-c", c.path, "dlq", "jobs", verb, ""); !strings.HasPrefix(got.stdout, id+"\tasked, 0 of 0\n:4\n") {
			t.Errorf("completion of %s: %+v", verb, got)
		}
	}
	if got := c.run("dlq", "jobs", "cancel", id, "--reason", "the wrong one", "--actor", "bob"); got.code != 0 || got.stdout != "replay "+id+" is to be cancelled\n" {
		t.Errorf("%+v", got)
	}
	if got := c.run("dlq", "jobs", "list"); !strings.Contains(got.stdout, "asked, to be cancelled") {
		t.Errorf("%+v", got)
	}
	if got := c.run("dlq", "jobs", "show", id); !strings.Contains(got.stdout, "to be cancelled by  bob: the wrong one\n") {
		t.Errorf("%+v", got)
	}
	var acts []audit.Listed
	got = c.run("audit", "list", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &acts); err != nil || len(acts) != 2 || acts[0].Act != "dlq.replay" || acts[0].Actor != "ann" || acts[0].Reason != "ticket 7" || acts[0].Filter["ids"] != letter ||
		acts[1].Act != "dlq.cancel" || acts[1].Actor != "bob" || acts[1].Reason != "the wrong one" || acts[1].Filter["job"] != id {
		t.Errorf("%+v, %v", got, err)
	}

	for want, args := range map[string][]string{
		`2 name letters by ID, choose them with flags, or say --all`:                                                                  {"replay"},
		`2 --mode: "copy" is not known; use resync to read the rows again from MySQL, or payload to send what was recorded`:           {"replay", "--all", "--mode", "copy"},
		`2 --rate: -1 is no number of letters a second; use 1 to 1000000, or 0 for as fast as it goes`:                                {"replay", "--all", "--rate", "-1"},
		`2 --canary: -1 is no number of letters; use 1 to 1000000, or 0 for none`:                                                     {"replay", "--all", "--canary", "-1"},
		`2 --rate says how to replay, and --dry-run replays nothing; leave one of them out`:                                           {"replay", "--all", "--rate", "1", "--dry-run"},
		`1 no open dead letter has the ID nowhere; see: lockstep dlq list`:                                                            {"replay", "nowhere"},
		`1 no open dead letter has the ID else; see: lockstep dlq list`:                                                               {"replay", "else", "--sink", "cache"},
		`1 dead letter ` + letter + ` is open, but the other flags exclude it; leave them out, or see: lockstep dlq show ` + letter:   {"replay", letter, "--sink", "cache"},
		`1 no open letter matches; see: lockstep dlq list`:                                                                            {"replay", "--key", "999"},
		`2 --fingerprint: "c0ffee" is not 12 hexadecimal digits; copy it from lockstep dlq group or lockstep status`:                  {"replay", "--fingerprint", "c0ffee"},
		`2 --table: bank_.questions is not captured, and no open letter that is chosen is of it: no entry of tables[].match takes it`: {"replay", "--table", "bank_.questions"},
		`2 --state: "open" is not known; use one of [asked running done stopped cancelled failed]`:                                    {"jobs", "list", "--state", "open"},
		`2 --limit: 0 is no number of replays; use 1 or more`:                                                                         {"jobs", "list", "--limit", "0"},
		`2 name one replay; see lockstep dlq jobs list`:                                                                               {"jobs", "cancel"},
		`1 no replay has the ID nowhere; see lockstep dlq jobs list`:                                                                  {"jobs", "show", "nowhere"},
		`2 unknown command "stop"; did you mean show?; see lockstep dlq jobs --help`:                                                  {"jobs", "stop"},
		`2 unknown flag --canari; did you mean --canary?; see lockstep dlq replay --help`:                                             {"replay", "--canari", "1"},
	} {
		got := c.run(append([]string{"dlq"}, args...)...)
		if code, text, _ := strings.Cut(want, " "); got.stderr != "lockstep: "+text+"\n" || code[0] != byte('0'+got.code) {
			t.Errorf("%q: %+v, want %s", args, got, want)
		}
	}
	for _, args := range [][]string{{"--detach"}, {"--dry-run"}} { // nothing is chosen by either
		if got := c.run(append([]string{"dlq", "replay", "--fingerprint", "C0FFEE123456"}, args...)...); got.code != 1 || got.stderr != "lockstep: no open letter matches; see: lockstep dlq list\n" {
			t.Errorf("%q: %+v", args, got)
		}
	}
	if got := c.run("dlq", "replay", "--fingerprint", strings.ToUpper(c.letters()[0].Fingerprint), "--detach"); got.code != 0 {
		t.Errorf("in capitals: %+v", got)
	}
	if got := c.run("dlq", "list", "--table", "bank_.questions"); got.code != 2 {
		t.Errorf("%+v", got)
	}
	got = c.run("dlq", "replay", "--all", "--detach")
	last := strings.Fields(got.stdout + " - -")[1]
	if got.code != 0 {
		t.Errorf("every letter: %+v", got)
	}
	if got := c.run("dlq", "jobs", "list", "--limit", "1"); strings.Count(got.stdout, "\n") != 2 || !strings.Contains(got.stdout, last) {
		t.Errorf("the newest: %+v", got)
	}
	if got := c.run("dlq", "jobs", "list", "--state", "done"); got.stdout != "no replays\n" {
		t.Errorf("%+v", got)
	}
	if got := c.run("dlq", "jobs", "list", "--state", "asked"); strings.Count(got.stdout, "\n") != 4 {
		t.Errorf("%+v", got)
	}
}

func TestATableThatIsNotCapturedIsNamed(t *testing.T) {
	cfg := config.Default()
	cfg.Tables = []config.Table{{Match: "bank.*"}}
	for table, want := range map[string]string{
		"": "", "bank.questions": "",
		"bank_.questions": "--table: bank_.questions is not captured, and no open letter that is chosen is of it: no entry of tables[].match takes it",
	} {
		got := ""
		if err := flagMistake(uncaptured(&cfg, table)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", table, got, want)
		}
	}
}

func TestTheBarShowsHowFarAReplayIs(t *testing.T) {
	s := dlq.JobStatus{ID: "j", State: dlq.JobRunning, Total: 1200, Done: 600, Letters: map[dlq.Fate]int{}}
	before := s
	before.Done = 100
	for want, change := range map[string]func(s *dlq.JobStatus){
		"j [############------------]  50% 600 of 1200 letters, 50 letters/s, 12s left":                       func(*dlq.JobStatus) {},
		"j [############------------]  50% 600 of 1200 letters, 7 stay, 50 letters/s, 12s left":               func(s *dlq.JobStatus) { s.Letters[dlq.FateStays] = 7 },
		"j [############------------]  50% 600 of 1200 letters, waits: the capture":                           func(s *dlq.JobStatus) { s.Waits = "the capture" },
		"j [############------------]  50% 600 of 1200 letters, stopped: of the canary":                       func(s *dlq.JobStatus) { s.State, s.Problem = dlq.JobStopped, "of the canary" },
		"j [------------------------]   0% 0 of 0 letters, waits for a process of the pipeline to take it up": func(s *dlq.JobStatus) { s.State, s.Total, s.Done = dlq.JobAsked, 0, 0 },
		"j [########################] 100% 0 of 0 letters, done":                                              func(s *dlq.JobStatus) { s.State, s.Total, s.Done = dlq.JobDone, 0, 0 },
	} {
		now := s
		now.Letters = map[dlq.Fate]int{}
		change(&now)
		if got := replayLine(&now, &before, 10*time.Second); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// A replay waits for a table that is held. For a store that was away it must not: on a quiet
// sink its own call is the one that finds it back.
func TestAReplayWaitsForTablesAndNotForTheBreakerOfAQuietSink(t *testing.T) {
	closed, open := sinks.BreakerStatus{State: "closed"}, sinks.BreakerStatus{State: "open", Reason: "no answer"}
	table := func(b sinks.BreakerStatus, by string) []sinks.TableStatus {
		one := sinks.TableStatus{Table: "d.t", Breaker: b}
		if by != "" {
			one.Held = &sinks.HeldStatus{By: by, Reason: "no"}
		}
		return []sinks.TableStatus{{Table: "d.other", Breaker: open}, one}
	}
	for name, test := range map[string]struct {
		status sinks.Status
		why    string
		wait   bool
	}{
		"well":             {sinks.Status{Breaker: closed, Tables: table(closed, "")}, "", false},
		"away":             {sinks.Status{Breaker: open, Tables: table(closed, "")}, "its breaker is open: no answer", false},
		"away, changes":    {sinks.Status{Breaker: closed, Tables: table(closed, sinks.ByStore)}, "table d.t is held by store: no", false},
		"its index":        {sinks.Status{Breaker: closed, Tables: table(closed, sinks.ByTable)}, "table d.t is held by table: no", true},
		"a flood":          {sinks.Status{Breaker: closed, Tables: table(open, sinks.ByFlood)}, "table d.t is held by flood: no", true},
		"a flood, no held": {sinks.Status{Breaker: closed, Tables: table(open, "")}, "the breaker of table d.t is open: no answer", true},
	} {
		w := &replayWorld{process: routed()}
		w.workers.add(worker{name: "search", status: func() sinks.Status { return test.status }})
		if why, wait := w.heldBy("search", "d.t"); why != test.why || wait != test.wait {
			t.Errorf("%s: %q, %t", name, why, wait)
		}
		if why, wait := w.heldBy("cache", "d.t"); why != "" || wait {
			t.Errorf("a sink of another process: %q, %t", why, wait)
		}
	}
}
