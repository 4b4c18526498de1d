package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lockstep/internal/testenv"
)

// A process follows a key of etcd as it follows a file: what is put there counts at once, and what
// cannot be used, an etcd that is away included, changes nothing and is told.
func TestAConfigurationInEtcdIsFollowed(t *testing.T) {
	server := testenv.NewEtcd(t, "--max-request-bytes=20000000")
	client := server.Client(t, clientv3.Config{MaxCallSendMsgSize: 16 << 20})
	name := "etcd://" + server.Addr + "/lockstep/shop"
	listen := testenv.FreeAddr(t)
	c := newCounter(t, fmt.Sprintf("listen: %q", listen))
	raw, err := os.ReadFile(c.path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw) + "log: {level: info}\n"
	put := func(text string) (revision int64) {
		t.Helper()
		res, err := client.Put(t.Context(), "/lockstep/shop", text)
		if err != nil {
			t.Fatal(err)
		}
		return res.Header.Revision
	}
	c.path = name
	if got := c.run("config", "check"); got.code != 2 || got.stderr != name+": there is no such key; put the configuration there: etcdctl put /lockstep/shop < lockstep.yaml\n" {
		t.Errorf("%+v", got)
	}
	first := put(text)
	if got := c.run("config", "check"); got.code != 0 || !strings.HasPrefix(got.stdout, name+" is ok: pipeline "+c.prefix) {
		t.Errorf("%+v", got)
	}
	if got := c.run("config", "check", "--against", name); got.code != 0 || !strings.Contains(got.stdout, "a process that runs with "+name+" and gets this file:\nchanged: -\n") {
		t.Errorf("%+v", got)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan int, 1)
	var said bytes.Buffer
	go func() {
		ended <- run(ctx, []string{"admin", "-c", name}, strings.NewReader(""), io.Discard, &said, func(string) (string, bool) { return "", false })
	}()
	var now configStatus
	var s processStatus
	until := func(within time.Duration, what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
			got := c.run("status", "-o", "json", "--address", listen)
			s = processStatus{}
			if json.Unmarshal([]byte(got.stdout), &s) == nil && s.Configuration != nil {
				if now = *s.Configuration; is() {
					return
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v", what, now)
			}
		}
	}
	runs := func(revision int64, level string) func() bool {
		return func() bool { return now.Revision == revision && now.Problem == "" && now.LogLevel == level }
	}
	until(time.Minute, "the start", runs(first, "info"))
	if now.File != name {
		t.Errorf("the configuration is that of %s", now.File)
	}
	second := put(strings.Replace(text, "level: info", "level: debug", 1))
	until(30*time.Second, "another level", runs(second, "debug"))
	again := put(strings.Replace(text, "level: info", "level: debug", 1))
	until(30*time.Second, "the same text", runs(again, "debug"))

	for what, bad := range map[string]struct{ text, want string }{
		"nothing":      {"", name + ": is empty; begin with: lockstep config example > lockstep.yaml"},
		"a mistake":    {strings.Replace(text, "partitions: 2", "partitions: 0", 1), name + ":3:"},
		"no UTF-8":     {"prefix: \xff\xfe\n", name + ":"},
		"a restart":    {strings.Replace(text, "partitions: 2", "partitions: 4", 1), "kafka.partitions: cannot change while the process runs"},
		"another 10MB": {strings.Replace(text, "prefix: ", "#"+strings.Repeat("x", 10<<20)+"\nprefix: other", 1), "prefix: cannot change while the process runs"},
	} {
		put(bad.text)
		until(time.Minute, what, func() bool { return strings.HasPrefix(now.Problem, bad.want) })
		if now.Revision != again || now.LogLevel != "debug" {
			t.Errorf("%s: %+v", what, now)
		}
	}
	if got := c.run("status", "--address", listen); got.code != 3 || !strings.Contains(got.stdout, "the configuration is not used") {
		t.Errorf("%+v", got)
	}
	right := put(text)
	until(30*time.Second, "the right one", runs(right, "info"))
	if got := c.run("status", "--address", listen, "--tables"); !strings.Contains(got.stdout, fmt.Sprintf("configuration %s (revision %d, sha256 ", name, right)) {
		t.Errorf("%+v", got)
	}
	if _, err := client.Delete(t.Context(), "/lockstep/shop"); err != nil {
		t.Fatal(err)
	}
	until(30*time.Second, "no key", func() bool {
		return now.Problem == name+": there is no such key; put the configuration there: etcdctl put /lockstep/shop < lockstep.yaml"
	})
	right = put(text)
	until(30*time.Second, "the key", func() bool { return now.Problem == "" })

	server.Kill(t)
	until(time.Minute, "no etcd", func() bool { return strings.HasPrefix(now.Problem, name+": etcd does not answer within 5s: ") })
	server.Start(t)
	until(time.Minute, "etcd again", func() bool { return now.Problem == "" })
	last := put(strings.Replace(text, "level: info", "level: debug", 1))
	until(30*time.Second, "what came last", runs(last, "debug"))
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("it ended with %d", code)
	}
	if n := strings.Count(said.String(), "the configuration was read again"); n != 3 {
		t.Errorf("%d times a configuration was applied; want 3:\n%s", n, said.String())
	}
}

// A put counts with the first look, and the watch has the reloader look.
func TestAPutIntoEtcdCountsAtOnce(t *testing.T) {
	server := testenv.NewEtcd(t)
	client := server.Client(t, clientv3.Config{})
	put := func(old, new string) {
		t.Helper()
		if _, err := client.Put(t.Context(), "/shop", strings.Replace(planned, old, new, 1)); err != nil {
			t.Fatal(err)
		}
	}
	put("", "")
	r := newReloadingFrom(t, "etcd://"+server.Addr+"/shop")
	r.begin("sink cache row.a > 1", "sink search row.a > 1")
	r.every = time.Hour
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.run(ctx, nil) }()
	put("row.a > 1", "row.a > 2")
	r.begin("sink cache row.a > 2", "sink search row.a > 2")
	put("row.a > 1", "row.a > 3")
	r.begin("sink cache row.a > 3", "sink search row.a > 3")
	stop()
	if err := <-ended; err != nil || r.count(reloadApplied) != 2 {
		t.Errorf("%v, %v were applied", err, r.count(reloadApplied))
	}
	r.finish()
}

func TestAnEtcdThatIsAwayAtTheStartIsOneSentence(t *testing.T) {
	name := "etcd://" + testenv.FreeAddr(t) + "/shop"
	got := lockstep(t, nil, "run", "-c", name)
	if got.code != 2 || !strings.HasPrefix(got.stderr, name+": etcd does not answer within 5s: ") || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("%+v", got)
	}
	for _, ask := range [][]string{{"config", "check"}, {"config", "check", "-o", "json"}, {"run"}} {
		got = lockstep(t, map[string]string{"LOCKSTEP_CONFIG": "etcd://ann:hunter2@h:2379/shop"}, ask...)
		if got.code != 2 || !strings.Contains(got.stderr, "etcd://********@h:2379/shop: a login has no place in the address") || strings.Contains(got.stdout+got.stderr, "hunter2") {
			t.Errorf("%+v", got)
		}
	}
}
