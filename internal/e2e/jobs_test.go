package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"lockstep/internal/oracle"
)

// replay is a job as lockstep dlq jobs shows it.
type replay struct {
	ID, State, Waits, Problem string
	Total, Done               int
	Letters                   map[string]int
	UnheldSince               *time.Time `json:"unheld_since"`
	Progressed                *time.Time
	CancelReason              string `json:"cancel_reason"`
}

// letters makes so many rows that Elasticsearch refuses, and Redis takes, and waits for
// their letters.
func (w *world) letters(p *process, rows int) {
	w.t.Helper()
	w.sql(fmt.Sprintf(`UPDATE questions SET settings = CAST('"checker: none"' AS JSON) WHERE id <= %d`, rows))
	await(w.t, time.Minute+time.Duration(rows)*10*time.Millisecond, "the letters", func() bool {
		p.alive()
		return p.metric("lockstep_sink_dead_letters_total", `sink="search"`) >= float64(rows)*9/10
	})
}

// mendUnseen mends the rows so that the log does not tell of it: what is in the stores then
// is what a replay brings.
func (w *world) mendUnseen(rows int) {
	w.t.Helper()
	ctx := w.t.Context()
	conn, err := w.db.Conn(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	for _, s := range []string{"SET sql_log_bin = 0", fmt.Sprintf("UPDATE questions SET settings = JSON_OBJECT('mended', id) WHERE id <= %d", rows), "SET sql_log_bin = 1"} {
		if _, err := conn.ExecContext(ctx, s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

// noFlood has every refused row become a letter.
func (w *world) noFlood() {
	w.t.Helper()
	text, err := os.ReadFile(w.config)
	if err == nil {
		err = os.WriteFile(w.config, []byte(strings.Replace(string(text), "worker: {", "worker: {flood_share: 1, ", 1)), 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) replayed(id string) (s replay) {
	w.t.Helper()
	w.lockstep(&s, "dlq", "jobs", "show", id)
	return s
}

// detached asks for a replay and does not wait for it.
func (w *world) detached(args ...string) string {
	w.t.Helper()
	var s replay
	w.lockstep(&s, append([]string{"dlq", "replay", "--detach"}, args...)...)
	return s.ID
}

// A thousand letters and more, replayed by two operators at once, one by reading the rows
// again and one by sending what was recorded, under load on the same rows, with a second
// process that joins and a first one that is killed in the middle: both jobs end, both
// stores are equal to MySQL, no letter is left, and no reader sees a version go down.
// LOCKSTEP_E2E_LETTERS=100000 makes it so many.
func TestTwoReplaysOfAGroupUnderLoadOutliveAKillAndARebalance(t *testing.T) {
	t.Parallel()
	rows, rate := 1500, "300"
	if text := os.Getenv("LOCKSTEP_E2E_LETTERS"); text != "" {
		var err error
		if rows, err = strconv.Atoi(text); err != nil || rows < 1500 {
			t.Fatalf("LOCKSTEP_E2E_LETTERS is %q; want a number, 1500 or more", text)
		}
		rate = strconv.Itoa(rows / 30)
	}
	patience := 2*time.Minute + time.Duration(rows)*10*time.Millisecond
	w := newWorld(t, rows+500)
	w.noFlood()
	p := w.start("run")
	w.equal(patience)
	w.letters(p, rows)
	var groups []struct {
		Fingerprint string
		Count       int
	}
	w.lockstep(&groups, "dlq", "group")
	if len(groups) != 1 || groups[0].Count < rows*9/10 {
		t.Fatalf("groups: %+v", groups)
	}
	w.mendUnseen(rows) // before the load: of a row that it mends no letter tells
	end := w.load(40, 5)
	watcher := &oracle.Watcher{Spec: w.spec}
	watching, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	watched := make(chan error, 1)
	go func() { watched <- watcher.Run(watching) }()

	jobs := []string{
		w.detached("--fingerprint", groups[0].Fingerprint, "--mode", "payload", "--rate", rate, "--actor", "ann", "--reason", "as it was"),
		w.detached("--fingerprint", groups[0].Fingerprint, "--rate", rate, "--actor", "bob"),
	}
	other := w.start("run")
	await(t, time.Minute, "both to be under way", func() bool {
		p.alive()
		return w.replayed(jobs[0]).Done > 100 && w.replayed(jobs[1]).Done > 100
	})
	for _, id := range jobs {
		if s := w.replayed(id); s.State != "running" {
			t.Fatalf("it is over before anything is killed: %+v", s)
		}
	}
	if p.metric("lockstep_replays_active") != 1 {
		p, other = other, p
	}
	p.kill()
	for _, id := range jobs {
		await(t, patience, "the end of replay "+id, func() bool {
			other.alive()
			return w.replayed(id).State != "running"
		})
		s := w.replayed(id)
		t.Logf("%+v", s)
		if s.State != "done" || s.Done != s.Total || s.Total < rows/4 {
			t.Errorf("%+v", s)
		}
	}
	t.Log(end())
	w.equal(patience)
	stop()
	if err := <-watched; err != nil {
		t.Fatal(err)
	}
	for _, v := range watcher.Violations() {
		t.Errorf("step back: %s", v)
	}
	if reads := watcher.Reads(); reads < 1000 {
		t.Errorf("the watcher has read only %d times", reads)
	}
	await(t, patience, "the last letter to end", func() bool { return other.metric("lockstep_dlq_letters", `sink="search"`) == 0 })
	var acts []struct {
		Act, Actor, Outcome, Reason string
		Filter                      map[string]string
		Counts                      map[string]int
	}
	w.lockstep(&acts, "audit", "list", "--act", "dlq.replay*")
	ends := 0
	for _, a := range acts {
		if a.Act == "dlq.replay.end" && a.Outcome == "done" && a.Counts["letters"] >= rows/4 && (a.Filter["job"] == jobs[0] && a.Actor == "ann" && a.Reason == "as it was" || a.Filter["job"] == jobs[1] && a.Actor == "bob") {
			ends++
		}
	}
	if len(acts) != 4 || ends != 2 {
		t.Errorf("acts: %+v", acts)
	}
	other.stop()
}

// A canary of rows that are refused still stops the job and spares the others; a slow one is
// cancelled; when the rows are mended a replay closes the letters and the stores are equal
// to MySQL. A job waits for the capture and says so.
func TestAReplayIsTriedStoppedAndCancelledBeforeItMends(t *testing.T) {
	t.Parallel()
	const rows = 60
	w := newWorld(t, 100)
	w.noFlood()
	p := w.start("run")
	w.equal(90 * time.Second)
	w.letters(p, rows)

	var s replay
	fails := func(args ...string) {
		t.Helper()
		s = replay{}
		out, err := exec.Command(w.binary, append([]string{"dlq", "replay", "-c", w.config, "-o", "json"}, args...)...).Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
			t.Errorf("replay %q ended with %v; want exit code 1", args, err)
		}
		w.decode(&s, out)
	}
	for _, mode := range []string{"resync", "payload"} {
		fails("--all", "--canary", "10", "--mode", mode)
		if s.State != "stopped" || s.Done != 10 || s.Total != rows || s.Letters["stays"] != 10 || !strings.Contains(s.Problem, "of the canary of 10 letters 10 stay") {
			t.Errorf("%s: %+v", mode, s)
		}
	}
	slow := w.detached("--all", "--rate", "1", "--mode", "payload")
	await(t, 30*time.Second, "the slow one to begin", func() bool { return w.replayed(slow).Done > 0 })
	if s := w.replayed(slow); s.UnheldSince != nil || s.Progressed == nil {
		t.Errorf("under way: %+v", s)
	}
	p.kill()
	killed := time.Now()
	await(t, 30*time.Second, "somebody to notice that no process has it", func() bool { return w.replayed(slow).UnheldSince != nil })
	if s := w.replayed(slow); s.State != "running" || s.UnheldSince.After(killed) || killed.Sub(*s.UnheldSince) > time.Minute || s.Progressed.After(*s.UnheldSince) {
		t.Errorf("killed at %s: %+v, %s, %s", killed, s, s.UnheldSince, s.Progressed)
	}
	p = w.start("run")
	await(t, 30*time.Second, "another process to hold it", func() bool { return w.replayed(slow).UnheldSince == nil })
	w.lockstep(&s, "dlq", "jobs", "cancel", slow, "--reason", "too slow")
	await(t, 30*time.Second, "its end", func() bool { return w.replayed(slow).State == "cancelled" })
	if s := w.replayed(slow); s.Done >= s.Total || s.Total != rows || s.CancelReason != "too slow" || s.UnheldSince != nil {
		t.Errorf("%+v", s)
	}

	w.mendUnseen(rows)
	p.stop()
	sink := w.start("sink", "search")
	id := w.detached("--all")
	await(t, 30*time.Second, "the job to wait for a capture", func() bool {
		return strings.HasPrefix(w.replayed(id).Waits, "the capture has not begun to read rows of ")
	})
	p = w.start("run")
	await(t, time.Minute, "the end of the job", func() bool { return w.replayed(id).State == "done" })
	if s := w.replayed(id); s.Letters["resynced"] != rows || s.Total != rows {
		t.Errorf("%+v", s)
	}
	w.equal(time.Minute)
	s = replay{}
	w.lockstep(&s, "dlq", "replay", "--all")
	if s.State != "done" || s.Total != 0 {
		t.Errorf("of no letters: %+v", s)
	}
	sink.stop()
	p.stop()
}
