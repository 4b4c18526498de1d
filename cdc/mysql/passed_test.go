package mysql

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lockstep/cdc"
)

// askPassed asks a source whether sets are passed, for a while.
func askPassed(t *testing.T, s *Source, within time.Duration, sets ...string) (cdc.Position, []string, []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	named := map[string]string{}
	for _, set := range sets {
		named[set] = set
	}
	at, passed, copying, err := s.Passed(ctx, named, nil)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return at, passed, copying
}

// committed is what the server has committed.
func (w *world) committed() (string, time.Time) {
	w.t.Helper()
	commits := &Commits{Config: w.cfg}
	defer commits.Close()
	gtids, at, err := commits.Committed(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if off := time.Since(at).Abs(); off > 30*time.Second {
		w.t.Fatalf("the server on this machine says it is %s, %s off", at, off)
	}
	return gtids, at
}

func passesWhenRead(t *testing.T, w *world) {
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)", "INSERT INTO q VALUES (1, 1)")
	out := newMemory()
	s := w.source(out, nil)
	if _, passed, _ := askPassed(t, s, 50*time.Millisecond, ""); passed != nil {
		t.Fatalf("before it reads %q is passed", passed)
	}
	stop := w.run(s)
	out.awaitCopied(t)
	for n := range 100 {
		w.exec("UPDATE q SET v = v + 1")
		set, _ := w.committed()
		at, passed, _ := askPassed(t, s, 30*time.Second, set, "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5", "77-88-99")
		if !slices.Equal(passed, []string{set}) {
			t.Fatalf("passed are %q; want %q", passed, set)
		}
		out.mu.Lock()
		updates := 0
		for _, c := range out.changes {
			if c.Op == cdc.OpUpdate {
				updates++
			}
		}
		out.mu.Unlock()
		if updates != n+1 {
			t.Fatalf("update %d of %d was published when its transaction was passed, at %s", updates, n+1, at.GTIDSet)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestATransactionIsPassedWhenWhatItChangedIsPublished(t *testing.T) {
	passesWhenRead(t, newWorld(t))
}

func TestATransactionOfAMariaDBIsPassedWhenWhatItChangedIsPublished(t *testing.T) {
	passesWhenRead(t, newMariaWorld(t))
}

// A table counts as copied when the last row of its copy is published; one that an
// operator has copied again has all its rows in Kafka already.
func TestATableIsBeingCopiedUntilItsOwnCopyIsOver(t *testing.T) {
	w := newWorld(t)
	w.tiny(2)
	w.cfg.Snapshot.RowsPerSecond = 20
	w.exec("CREATE TABLE q (id INT PRIMARY KEY, v INT)", "INSERT INTO q VALUES (1,1),(2,1),(3,1),(4,1),(5,1),(6,1),(7,1),(8,1)")
	out, requests := newMemory(), &asked{}
	s := w.source(out, nil)
	s.Requests = requests
	stop := w.run(s)
	table := w.name + ".q"
	state := func() []string {
		t.Helper()
		set, _ := w.committed()
		_, passed, copying := askPassed(t, s, 30*time.Second, set)
		if len(passed) != 1 {
			t.Fatal("what is committed is not passed")
		}
		return copying
	}
	if copying := state(); !slices.Equal(copying, []string{table}) {
		t.Errorf("during the first copy there are copied %q", copying)
	}
	out.awaitCopied(t)
	if copying := state(); len(copying) != 0 {
		t.Errorf("behind the first copy there are copied %q", copying)
	}
	requests.ask(cdc.SnapshotRequest{ID: "mine", Table: table})
	out.awaitSnapshot(t, "mine", cdc.SnapshotRunning)
	if copying := state(); len(copying) != 0 {
		t.Errorf("while an operator has it copied there are copied %q", copying)
	}
	out.awaitSnapshot(t, "mine", cdc.SnapshotDone)
	requests.ask(cdc.SnapshotRequest{ID: cdc.LostPrefix + "search", Table: table})
	out.awaitSnapshot(t, cdc.LostPrefix+"search", cdc.SnapshotRunning)
	if copying := state(); !slices.Equal(copying, []string{table}) {
		t.Errorf("while a store gets back what it has lost there are copied %q", copying)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsNoSetOfTransactionsIsRefused(t *testing.T) {
	for _, good := range []string{"3e11fa47-71ca-11e1-9e33-c80aa9429562:23", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7,\n4e11fa47-71ca-11e1-9e33-c80aa9429562:1", "0-1-23", "0-1-23,1-2-4"} {
		if err := CheckGTIDs(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "23", "0-1", "3e11fa47-71ca-11e1-9e33-c80aa9429562", "3e11fa47:1", " "} {
		if err := CheckGTIDs(bad); err == nil || !strings.Contains(err.Error(), "SELECT @@GLOBAL.gtid_executed") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
