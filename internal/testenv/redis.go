package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
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

// RedisCluster is three masters and a replica of the first one.
type RedisCluster struct {
	Nodes     []*RedisInstance
	Clients   []*redis.Client
	Addresses []string // for clients
	Buses     []string // ports among themselves
}

const redisSlots = 16384

// NewRedisCluster makes a cluster whose nodes talk TLS, among themselves too, if there are
// such settings.
func NewRedisCluster(t testing.TB, tls ...string) *RedisCluster {
	t.Helper()
	c := &RedisCluster{}
	var ports []string
	for range 4 {
		_, bus, _ := net.SplitHostPort(FreeAddr(t))
		settings := []string{"--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0"}
		addr := ""
		if tls != nil {
			addr = FreeAddr(t)
			_, port, _ := net.SplitHostPort(addr)
			settings = append(append(settings, tls...), "--tls-port", port, "--tls-cluster", "yes", "--tls-replication", "yes")
		}
		node := NewRedis(t, settings...)
		if tls == nil {
			addr = node.Addr
		}
		client := redis.NewClient(&redis.Options{Addr: node.Addr})
		t.Cleanup(func() { client.Close() })
		_, port, _ := net.SplitHostPort(addr)
		c.Nodes, c.Clients, c.Addresses, c.Buses, ports = append(c.Nodes, node), append(c.Clients, client), append(c.Addresses, addr), append(c.Buses, bus), append(ports, port)
	}
	for i := range c.Nodes {
		c.Do(t, 0, "cluster", "meet", "127.0.0.1", ports[i], c.Buses[i])
	}
	for i := range 3 {
		c.Do(t, i, "cluster", "addslotsrange", i*redisSlots/3, (i+1)*redisSlots/3-1)
	}
	first := c.ID(t, 0)
	Await(t, 2*time.Minute, "the replica to know its master", func() bool {
		return c.Clients[3].Do(t.Context(), "cluster", "replicate", first).Err() == nil
	})
	for i, client := range c.Clients {
		Await(t, 2*time.Minute, "the cluster to be whole", func() bool {
			info := client.ClusterInfo(t.Context()).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:4") &&
				(i != 3 || strings.Contains(client.Info(t.Context(), "replication").Val(), "master_link_status:up"))
		})
	}
	return c
}

// Do has a node do a command.
func (c *RedisCluster) Do(t testing.TB, node int, args ...any) any {
	t.Helper()
	reply, err := c.Clients[node].Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatalf("node %d: %v: %v", node, args, err)
	}
	return reply
}

// ID is the name of a node in the cluster.
func (c *RedisCluster) ID(t testing.TB, node int) string {
	t.Helper()
	return fmt.Sprint(c.Do(t, node, "cluster", "myid"))
}

// Move moves a slot from one of the masters to another one, a few keys at a time. Slots that
// move both ways at once leave the masters at odds about them for ever.
func (c *RedisCluster) Move(t testing.TB, slot, from, to int) {
	t.Helper()
	source, target := c.ID(t, from), c.ID(t, to)
	c.Do(t, to, "cluster", "setslot", slot, "importing", source)
	c.Do(t, from, "cluster", "setslot", slot, "migrating", target)
	for {
		keys := c.Do(t, from, "cluster", "getkeysinslot", slot, 20).([]any)
		if len(keys) == 0 {
			break
		}
		c.Do(t, from, append([]any{"migrate", "127.0.0.1", c.Nodes[to].Port(), "", 0, 5000, "keys"}, keys...)...)
		time.Sleep(5 * time.Millisecond)
	}
	for _, node := range []int{to, from, 3 - to - from} {
		c.Do(t, node, "cluster", "setslot", slot, "node", target)
	}
}

// FailOver kills the first master and returns when its replica has taken over.
func (c *RedisCluster) FailOver(t testing.TB) {
	t.Helper()
	c.Nodes[0].Kill(t)
	Await(t, 2*time.Minute, "the replica to take over", func() bool {
		return strings.Contains(c.Clients[3].Info(t.Context(), "replication").Val(), "role:master") &&
			strings.Contains(c.Clients[1].ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	})
}
