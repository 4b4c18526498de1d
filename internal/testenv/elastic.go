package testenv

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ElasticNode is an Elasticsearch of a test's own, with settings and files of its
// choice. It is started from the installed distribution, so it needs the native servers.
type ElasticNode struct {
	Server
	config string // the directory of its configuration
}

// NewElastic starts a node with further settings (lines of elasticsearch.yml that
// replace those of the same name) and files beside it, and returns when it listens.
// It is gone at the end of the test.
func NewElastic(t testing.TB, settings map[string]string, files map[string]string) *ElasticNode {
	t.Helper()
	addr := FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	// The functions of deploy/local make one of the state and the port they are told.
	const script = `set -uo pipefail
ROOT=$1 HERE=$1/deploy/local
. "$HERE/lib.sh" && . "$HERE/native.sh" || exit 1
elasticsearch_install >&2 && elasticsearch_prepare "$2" >&2 || exit 1
elasticsearch_command "$2"
printf '%s\0' "${command[@]}"`
	state := filepath.Join(t.TempDir(), "node")
	cmd := exec.Command("bash", "-c", script, "node", Root(t), state)
	cmd.Env = append(os.Environ(), fmt.Sprintf("LOCKSTEP_PORT_OFFSET=%d", n-ports["elasticsearch"]))
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("a further Elasticsearch cannot be made of the native servers (deploy/local/servers up elasticsearch installs them): %v\n%s", err, problem.String())
	}
	words := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	for i := range words {
		if strings.HasPrefix(words[i], "transport.port=") {
			words[i] = "transport.port=0" // nobody asks for it
		}
	}
	e := &ElasticNode{Server: Server{Name: "elasticsearch", Addr: addr, URL: "https://" + addr}, config: filepath.Join(state, "config")}
	e.configure(t, settings)
	for name, content := range files {
		e.Write(t, name, content)
	}
	e.run(t, words, filepath.Join(state, "log"))
	return e
}

func (e *ElasticNode) configure(t testing.TB, settings map[string]string) {
	t.Helper()
	path := filepath.Join(e.config, "elasticsearch.yml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, line := range strings.Split(string(text), "\n") {
		name, _, _ := strings.Cut(line, ":")
		if _, replaced := settings[name]; !replaced {
			lines = append(lines, line)
		}
	}
	for name, value := range settings {
		lines = append(lines, name+": "+value)
	}
	e.Write(t, "elasticsearch.yml", strings.Join(lines, "\n")+"\n")
}

// Write puts a file into the directory of the configuration, in one step. The node
// sees some of them change while it runs.
func (e *ElasticNode) Write(t testing.TB, name, content string) {
	t.Helper()
	path := filepath.Join(e.config, name)
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (e *ElasticNode) run(t testing.TB, words []string, log string) {
	t.Helper()
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	process := exec.Command(words[0], words[1:]...)
	process.Stdout, process.Stderr = file, file
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the launcher and the node
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = process.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = syscall.Kill(-process.Process.Pid, syscall.SIGKILL)
		<-ended
	})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 5 * time.Second}
	for deadline := time.Now().Add(10 * time.Minute); ; {
		res, err := client.Get(e.URL)
		if err == nil {
			res.Body.Close()
			return
		}
		if strings.Contains(err.Error(), "remote error: tls") {
			return // it answers, and wants a certificate
		}
		select {
		case <-ended:
			said, _ := os.ReadFile(log)
			t.Fatalf("the Elasticsearch of the test has ended:\n%s", said)
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the Elasticsearch of the test does not answer on %s: %v", e.Addr, err)
		}
	}
}
