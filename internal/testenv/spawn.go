package testenv

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// native runs lines of bash beside the functions of deploy/local, with words in $2 and on, and
// returns what they print, each ended by a zero byte. What says in the error what cannot be
// had, and server is who brings it.
func native(t testing.TB, what, server, lines string, env []string, words ...string) []string {
	t.Helper()
	const begin = `set -uo pipefail
ROOT=$1 HERE=$1/deploy/local
. "$HERE/lib.sh" && . "$HERE/native.sh" || exit 1
`
	cmd := exec.Command("bash", append([]string{"-c", begin + lines, "native", Root(t)}, words...)...)
	cmd.Env = append(os.Environ(), env...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil || len(out) == 0 {
		t.Fatalf("%s cannot be had of the native servers (deploy/local/servers up %s installs them): %v\n%s", what, server, err, problem.String())
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// spawn starts a server whose output goes to a file and returns when it answers, for which it has
// so long. It is gone, with what it has started, when kill returns, and at the end of the test.
func spawn(t testing.TB, what string, words []string, log string, patience time.Duration, answers func() bool) (kill func()) {
	t.Helper()
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	process := exec.Command(words[0], words[1:]...)
	process.Stdout, process.Stderr = file, file
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a launcher and the server
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = process.Wait(); close(ended) }()
	kill = sync.OnceFunc(func() {
		_ = syscall.Kill(-process.Process.Pid, syscall.SIGKILL)
		<-ended
	})
	t.Cleanup(kill)
	for deadline := time.Now().Add(patience); !answers(); {
		select {
		case <-ended:
			said, _ := os.ReadFile(log)
			t.Fatalf("the %s of the test has ended:\n%s", what, said)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the %s of the test does not answer", what)
		}
	}
	return kill
}
