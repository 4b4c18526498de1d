package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lockstep/internal/testenv"
)

// blocks are the fenced blocks of a language in a page.
func blocks(t *testing.T, page, language string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), page))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, part := range strings.Split(string(text), "```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		found = append(found, strings.TrimSpace(block))
	}
	return found
}

// Every command of the README does what it says, in the order in which it stands
// there. The tests are not run from inside the tests.
func TestEveryCommandOfTheReadmeWorks(t *testing.T) {
	t.Parallel()
	root := testenv.Root(t)
	mine := filepath.Join(root, "lockstep.yaml") // one command writes it
	if kept, err := os.ReadFile(mine); err == nil {
		t.Cleanup(func() { _ = os.WriteFile(mine, kept, 0o600) })
	} else {
		t.Cleanup(func() { _ = os.Remove(mine) })
	}
	ran := 0
	for _, block := range blocks(t, "README.md", "sh") {
		for command := range strings.Lines(block) {
			if command = strings.TrimSpace(command); command == "make test" {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
			cmd := exec.CommandContext(ctx, "bash", "-c", command)
			cmd.Dir = root
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
			cmd.WaitDelay = 20 * time.Second
			began := time.Now()
			err := cmd.Run()
			cancel()
			if err != nil {
				t.Fatalf("%s: %v\n%s", command, err, &out)
			}
			t.Logf("%s: %s", command, time.Since(began).Round(time.Millisecond))
			ran++
		}
	}
	if ran < 5 {
		t.Errorf("the README has only %d commands", ran)
	}
}

// The account that the README tells to make is enough, as the doctor sees it.
func TestTheAccountOfTheReadmeIsEnough(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5)
	account := "reader" + w.name[len(w.name)-8:]
	statements := strings.NewReplacer("'lockstep'", "'"+account+"'", "'...'", "'a-Password-1'", "`shop`", "`"+w.name+"`").Replace(strings.Join(blocks(t, "README.md", "sql"), "\n"))
	if _, err := w.db.Exec("SELECT 1"); err != nil || !strings.Contains(statements, account) {
		t.Fatalf("the README makes no account: %s, %v", statements, err)
	}
	on := theServers(t).source
	on.Exec(t, statements)
	t.Cleanup(func() { _, _ = on.DB().Exec("DROP USER '" + account + "'") })
	w.replace("user: "+w.name+", password: "+strconv.Quote(secrets["source"]), "user: "+account+`, password: "a-Password-1"`)
	var findings []struct {
		System, Check string
		OK            bool
	}
	w.lockstep(&findings, "doctor")
	if len(findings) < 15 {
		t.Errorf("the doctor looked at only %d things", len(findings))
	}
	p := w.start("run")
	w.equal(time.Minute)
	p.stop()
}
