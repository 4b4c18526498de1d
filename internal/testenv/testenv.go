// Package testenv finds the real servers that tests run against, and stops and
// starts them for tests that want to see a fault.
//
// The servers are those of deploy/local/servers, on the ports it gives them. A
// server that is missing fails the test that asked for it; nothing is ever skipped.
// A test that stops a server disturbs everything else that uses it, so it must not
// be parallel, and packages are tested one at a time (see the Makefile).
package testenv

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Server says where a server listens and who may use it. Servers without users
// leave User and Password empty.
type Server struct {
	Name     string // as deploy/local/servers calls it: mysql, kafka, ...
	Addr     string // host:port
	User     string // the account a pipeline reads with
	Password string
	URL      string // scheme://host:port, for servers that are addressed so
}

// The account every local database gives to tests and demo, which may do anything.
const (
	AdminUser     = "root"
	AdminPassword = "lockstep-local"
)

const (
	readerUser     = "lockstep"
	readerPassword = "lockstep-local"
	host           = "127.0.0.1"
)

// ports are those of deploy/local/lib.sh; a test there keeps them in step.
var ports = map[string]int{
	"mysql":         13306,
	"mariadb":       13307,
	"kafka":         19092,
	"elasticsearch": 19200,
	"redis":         16379,
	"redis8":        16380,
	"valkey":        16381,
	"prometheus":    19090,
}

// MySQL returns the local MySQL, or fails the test if it does not listen.
func MySQL(t testing.TB) Server { t.Helper(); return find(t, "mysql") }

// MariaDB returns the local MariaDB, or fails the test if it does not listen.
func MariaDB(t testing.TB) Server { t.Helper(); return find(t, "mariadb") }

// Kafka returns the local Kafka broker, or fails the test if it does not listen.
func Kafka(t testing.TB) Server { t.Helper(); return find(t, "kafka") }

// Elastic returns the local Elasticsearch, or fails the test if it does not listen.
func Elastic(t testing.TB) Server { t.Helper(); return find(t, "elasticsearch") }

// Redis returns the local Redis, or fails the test if it does not listen. With
// LOCKSTEP_REDIS=redis8 or valkey in the environment it is that one.
func Redis(t testing.TB) Server { t.Helper(); return find(t, redisKind()) }

// redisKind is which of the servers that speak Redis' language is meant.
func redisKind() string { return cmp.Or(os.Getenv("LOCKSTEP_REDIS"), "redis") }

// Lookup returns where a server listens without asking whether it does.
func Lookup(name string) (Server, error) {
	port, ok := ports[name]
	if !ok {
		return Server{}, fmt.Errorf("no local server is called %q", name)
	}
	addr, err := Local(port)
	if err != nil {
		return Server{}, err
	}
	s := Server{Name: name, Addr: addr}
	switch name {
	case "mysql", "mariadb":
		s.User, s.Password = readerUser, readerPassword
	case "elasticsearch", "prometheus":
		s.URL = "http://" + s.Addr
	case "redis", "redis8", "valkey":
		s.URL = "redis://" + s.Addr
	}
	return s, nil
}

// Local is an address of this machine, its port moved by LOCKSTEP_PORT_OFFSET.
func Local(port int) (string, error) {
	if offset := os.Getenv("LOCKSTEP_PORT_OFFSET"); offset != "" {
		n, err := strconv.Atoi(offset)
		if err != nil {
			return "", fmt.Errorf("LOCKSTEP_PORT_OFFSET: %w", err)
		}
		port += n
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}

func find(t testing.TB, name string) Server {
	t.Helper()
	s, err := Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", s.Addr, 5*time.Second)
	if err != nil {
		t.Fatalf("%s is not up on %s (%v): run `make up`, or `deploy/local/servers up %s`", name, s.Addr, err, name)
	}
	conn.Close()
	return s
}

// Stop stops a server gently and returns when it is gone. At the end of the test
// it is started again, if the test has not done so.
func Stop(t testing.TB, name string) { t.Helper(); end(t, "stop", name) }

// Kill ends a server with SIGKILL and returns when it is gone. At the end of the
// test it is started again, if the test has not done so.
func Kill(t testing.TB, name string) { t.Helper(); end(t, "kill", name) }

// Start starts a stopped server on the data it had and returns when it answers.
func Start(t testing.TB, name string) {
	t.Helper()
	if out, err := servers("start", name); err != nil {
		t.Fatalf("start %s: %v\n%s", name, err, out)
	}
}

func end(t testing.TB, verb, name string) {
	t.Helper()
	// Registered first: a stop that fails half way must not leave it down for the next test.
	t.Cleanup(func() {
		if out, err := servers("start", name); err != nil {
			t.Errorf("start %s after the test: %v\n%s", name, err, out)
		}
	})
	if out, err := servers(verb, name); err != nil {
		t.Fatalf("%s %s: %v\n%s", verb, name, err, out)
	}
}

func servers(verb, name string) ([]byte, error) {
	root, err := root()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(root, "deploy", "local", "servers"), verb, name)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd.CombinedOutput()
}

// Root returns the root directory of the repository.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := root()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var root = sync.OnceValues(func() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod in or above %s", start)
		}
	}
})

// Lockstep builds the lockstep binary, once per test process, and returns its
// path. With LOCKSTEP_RACE=1 in the environment it has the race detector in it.
func Lockstep(t testing.TB) string {
	t.Helper()
	path, err := lockstep()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// LockstepOf is Lockstep that calls itself by this version.
func LockstepOf(t testing.TB, version string) string {
	t.Helper()
	path, err := build("-"+version, "-ldflags", "-X main.version="+version)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var lockstep = sync.OnceValues(func() (string, error) { return build("") })

// build makes the binary with this at the end of its name.
func build(suffix string, flags ...string) (string, error) {
	root, err := root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, ".local", "bin", "lockstep-test"+suffix)
	args := append([]string{"build"}, flags...)
	if os.Getenv("LOCKSTEP_RACE") == "1" {
		path += "-race"
		args = append(args, "-race")
	}
	// Built beside and renamed, so that a process that runs the old one is not disturbed.
	fresh := path + "." + strconv.Itoa(os.Getpid())
	cmd := exec.Command("go", append(args, "-o", fresh, "./cmd/lockstep")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lockstep: %w\n%s", err, out)
	}
	if err := os.Rename(fresh, path); err != nil {
		return "", err
	}
	return path, nil
}

// Await waits for something to be so, and for so long.
func Await(t testing.TB, within time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s", within, what)
		}
	}
}
