package testenv

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Etcd is a member of an etcd of a test's own.
type Etcd struct {
	Addr   string
	words  []string
	log    string
	health string // where it says, without TLS, how it is
	kill   func()
}

// NewEtcd starts an etcd of one member with further words of its command line, and returns when it
// answers. It is gone at the end of the test.
func NewEtcd(t testing.TB, settings ...string) *Etcd {
	t.Helper()
	return NewEtcdCluster(t, 1, settings...)[0]
}

// NewEtcdCluster is NewEtcd with more members.
func NewEtcdCluster(t testing.TB, members int, settings ...string) []*Etcd {
	t.Helper()
	tool := exec.Command(filepath.Join(Root(t), "deploy", "local", "kubernetes", "tools"), "etcd")
	program, err := tool.Output()
	if err != nil {
		t.Fatalf("deploy/local/kubernetes/tools etcd: %v", err)
	}
	scheme := "http"
	if slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, "--cert-file=") }) {
		scheme = "https"
	}
	cluster, peers := make([]*Etcd, members), make([]string, members)
	for i := range peers {
		peers[i] = fmt.Sprintf("m%d=http://%s", i, FreeAddr(t))
	}
	for i := range cluster {
		dir := t.TempDir()
		e := &Etcd{Addr: FreeAddr(t), log: filepath.Join(dir, "log"), health: "http://" + FreeAddr(t)}
		name, peer, _ := strings.Cut(peers[i], "=")
		e.words = append([]string{strings.TrimSpace(string(program)), "--name=" + name, "--data-dir=" + filepath.Join(dir, "data"), "--unsafe-no-fsync",
			"--listen-client-urls=" + scheme + "://" + e.Addr, "--advertise-client-urls=" + scheme + "://" + e.Addr, "--listen-metrics-urls=" + e.health,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=" + strings.Join(peers, ",")}, settings...)
		e.Start(t)
		cluster[i] = e
	}
	for _, e := range cluster {
		for deadline := time.Now().Add(time.Minute); e.healthy() != http.StatusOK; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the etcd of the test on %s has no leader", e.Addr)
			}
		}
	}
	return cluster
}

// healthy is the status with which it says how it is; 0 when it says nothing.
func (e *Etcd) healthy() int {
	res, err := http.Get(e.health + "/health")
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

// Start starts it on the data it has. It may still lack a leader.
func (e *Etcd) Start(t testing.TB) {
	t.Helper()
	e.kill = spawn(t, "etcd", e.words, e.log, time.Minute, func() bool { return e.healthy() != 0 })
}

// Kill ends it with SIGKILL and returns when it is gone.
func (e *Etcd) Kill(testing.TB) { e.kill() }

// Client is a client of this member; conf may say who asks.
func (e *Etcd) Client(t testing.TB, conf clientv3.Config) *clientv3.Client {
	t.Helper()
	conf.Endpoints, conf.Logger = []string{e.Addr}, zap.NewNop()
	c, err := clientv3.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
