package testenv

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// RedisInstance is a Redis of a test's own, which it may stop, break and throw away.
// It is started from the installed binaries, so it needs the native servers.
type RedisInstance struct {
	Server
	Secure  string // host:port with TLS, of one that has it
	Dir     string
	command []string
	process *exec.Cmd
	ended   chan struct{}
}

// NewRedis starts a Redis of the test's own that keeps nothing on disk unless
// settings, further words of its command line, say so. It is gone at the end of the test.
func NewRedis(t testing.TB, settings ...string) *RedisInstance {
	t.Helper()
	i := newRedis(t, FreeAddr(t), append([]string{"--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"}, settings...)...)
	i.Start(t)
	return i
}

// NewSecureRedis is NewRedis which listens a second time, for those who have a certificate of an authority.
func NewSecureRedis(t testing.TB, authority *Authority, settings ...string) *RedisInstance {
	t.Helper()
	cert, key := authority.Sign(t, t.TempDir(), "redis")
	addr := FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	i := NewRedis(t, append(settings, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", authority.File, "--tls-auth-clients", "yes")...)
	i.Secure = addr
	return i
}

// NewSentinel starts a sentinel of the test's own with a configuration.
func NewSentinel(t testing.TB, config string) *RedisInstance {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "sentinel.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	i := newRedis(t, FreeAddr(t))
	i.command = append(append(redisWords(t), file, "--sentinel"), i.command[len(redisWords(t)):]...)
	i.Start(t)
	return i
}

func newRedis(t testing.TB, addr string, settings ...string) *RedisInstance {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	i := &RedisInstance{Server: Server{Name: redisKind(), Addr: addr, URL: "redis://" + addr}, Dir: t.TempDir()}
	i.command = append(redisWords(t), "--port", port, "--bind", host, "--protected-mode", "no", "--dir", i.Dir)
	i.command = append(i.command, settings...)
	t.Cleanup(func() { i.end(syscall.SIGKILL) })
	return i
}

// redisWords are the words that start a redis-server.
func redisWords(t testing.TB) []string {
	t.Helper()
	return native(t, "a further redis", "redis", `"$2_install" >&2 || exit 1
"$2_words"
printf '%s\0' "${command[@]}"`, nil, redisKind())
}

// Port is the port it listens on.
func (i *RedisInstance) Port() string {
	_, port, _ := net.SplitHostPort(i.Addr)
	return port
}

// Start starts it on the data it has and returns when it answers.
func (i *RedisInstance) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(i.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	i.process = exec.Command(i.command[0], i.command[1:]...)
	i.process.Stdout, i.process.Stderr = log, log
	if err := i.process.Start(); err != nil {
		t.Fatal(err)
	}
	i.ended = make(chan struct{})
	go func(p *exec.Cmd, ended chan struct{}) { _ = p.Wait(); close(ended) }(i.process, i.ended)
	for range 12000 {
		if i.answers() {
			return
		}
		select {
		case <-i.ended:
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("the redis of the test has ended:\n%s", said)
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatalf("the redis of the test does not answer on %s", i.Addr)
}

// answers reports whether it takes connections and has loaded its data.
func (i *RedisInstance) answers() bool {
	conn, err := net.DialTimeout("tcp", i.Addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	reply := make([]byte, 7)
	n, err := conn.Read(reply)
	return err == nil && !strings.HasPrefix(string(reply[:n]), "-LOAD")
}

func (i *RedisInstance) end(signal syscall.Signal) {
	if i.process == nil {
		return
	}
	_ = i.process.Process.Signal(signal)
	<-i.ended
	i.process = nil
}

// Stop stops it gently, Kill at once; both return when it is gone.
func (i *RedisInstance) Stop(testing.TB) { i.end(syscall.SIGTERM) }
func (i *RedisInstance) Kill(testing.TB) { i.end(syscall.SIGKILL) }
