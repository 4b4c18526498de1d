package testenv

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Promtool returns the words that start promtool. It is of the native servers, which
// are installed if need be.
func Promtool(t testing.TB) []string { t.Helper(); return prometheusWords(t, "promtool") }

func prometheusWords(t testing.TB, program string) []string {
	t.Helper()
	const script = `set -uo pipefail
ROOT=$1 HERE=$1/deploy/local
. "$HERE/lib.sh" && . "$HERE/native.sh" || exit 1
prometheus_install >&2 || exit 1
prometheus_words "$2"
printf '%s\0' "${command[@]}"`
	cmd := exec.Command("bash", "-c", script, "words", Root(t), program)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s cannot be had of the native servers (deploy/local/servers up prometheus installs it): %v\n%s", program, err, problem.String())
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// NewPrometheus starts a Prometheus with the given configuration and returns where it
// answers. It is gone at the end of the test.
func NewPrometheus(t testing.TB, config string) (url string) {
	t.Helper()
	words := prometheusWords(t, "prometheus")
	dir, addr := t.TempDir(), FreeAddr(t)
	path := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	process := exec.Command(words[0], append(words[1:], "--config.file="+path, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr)...)
	process.Stdout, process.Stderr = log, log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = process.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = process.Process.Kill()
		<-ended
	})
	for deadline := time.Now().Add(time.Minute); ; {
		if res, err := http.Get("http://" + addr + "/-/ready"); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return "http://" + addr
			}
		}
		select {
		case <-ended:
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("the Prometheus of the test has ended:\n%s", said)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the Prometheus of the test does not answer on %s", addr)
		}
	}
}
