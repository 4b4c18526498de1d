package testenv

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ElasticNode is an Elasticsearch of a test's own, with settings and files of its
// choice. It is started from the installed distribution, so it needs the native servers.
type ElasticNode struct {
	Server
	config string // the directory of its configuration
	start  func(t testing.TB) (stop func())
	stop   func()
}

// ElasticSecurity are settings by which a node lets nobody in without a password and the certificate of a
// client, with the files node.key, node.crt and ca.crt beside them, and sees other accounts after a time.
func ElasticSecurity(reload string) map[string]string {
	return map[string]string{
		"xpack.security.enabled": "true", "xpack.security.http.ssl.enabled": "true", "xpack.security.http.ssl.client_authentication": "required",
		"xpack.security.http.ssl.key": "node.key", "xpack.security.http.ssl.certificate": "node.crt", "xpack.security.http.ssl.certificate_authorities": "ca.crt",
		"resource.reload.interval.high": reload,
	}
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
	state := filepath.Join(t.TempDir(), "node")
	words := native(t, "a further Elasticsearch", "elasticsearch", `elasticsearch_install >&2 && elasticsearch_prepare "$2" >&2 || exit 1
elasticsearch_command "$2"
printf '%s\0' "${command[@]}"`, []string{fmt.Sprintf("LOCKSTEP_PORT_OFFSET=%d", n-ports["elasticsearch"])}, state)
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
	e.start = func(t testing.TB) func() {
		t.Helper()
		return spawn(t, "Elasticsearch", words, filepath.Join(state, "log"), 10*time.Minute, e.answers)
	}
	e.Start(t)
	return e
}

// Stop kills it; Start starts it on the data it has and returns when it listens.
func (e *ElasticNode) Stop()              { e.stop() }
func (e *ElasticNode) Start(t testing.TB) { t.Helper(); e.stop = e.start(t) }

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

// answers reports whether the node listens.
func (e *ElasticNode) answers() bool {
	way := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer way.CloseIdleConnections()
	res, err := (&http.Client{Transport: way, Timeout: 5 * time.Second}).Get(e.URL)
	if err == nil {
		res.Body.Close()
		return true
	}
	return strings.Contains(err.Error(), "remote error: tls") // it wants a certificate
}
