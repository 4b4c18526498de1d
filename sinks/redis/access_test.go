package redis

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

// trust writes the certificate of an authority into a file.
func trust(t *testing.T, name string, a *testenv.Authority) {
	t.Helper()
	pem, err := os.ReadFile(a.File)
	if err != nil {
		t.Fatal(err)
	}
	write(t, name, pem)
}

func write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// acl is the statement of docs/redis.md that makes the user.
func acl(t testing.TB, password string) []any {
	t.Helper()
	words := []any{"ACL", "SETUSER", "lockstep"}
	for _, word := range testenv.RedisRights(t, "redis.md", "lockstep", password) {
		words = append(words, word)
	}
	return words
}

// limited has a sink log in as a user of the test server that may do what docs/redis.md says, and
// no more.
func limited(t testing.TB, cfg Config) Config {
	t.Helper()
	words := acl(t, "documented")
	words[2] = "documented"
	admin := goredis.NewClient(&goredis.Options{Addr: testenv.Redis(t).Addr})
	defer admin.Close()
	if err := admin.Do(t.Context(), words...).Err(); err != nil {
		t.Fatal(err)
	}
	cfg.Username, cfg.Password = "documented", "documented"
	return cfg
}

// A server that wants certificates of its clients, a user with the documented rights,
// and all files changed under way.
func TestCertificatesAndPasswordsAreReadAgainWhenTheyChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bundle := filepath.Join(dir, "ca.crt")
	first := testenv.NewAuthority(t, "first")
	trust(t, bundle, first)
	serverCert, serverKey := first.Sign(t, dir, "server")
	clientCert, clientKey := first.Sign(t, dir, "client")
	addr := testenv.FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	server := testenv.NewRedis(t, "--tls-port", port, "--tls-cert-file", serverCert, "--tls-key-file", serverKey, "--tls-ca-cert-file", bundle, "--tls-auth-clients", "yes")
	plain := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer plain.Close()
	do := func(args ...any) {
		t.Helper()
		if err := plain.Do(context.Background(), args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	do(acl(t, "one")...)
	password := filepath.Join(dir, "password")
	write(t, password, []byte("one\n"))
	cfg := privateConfig(addr)
	cfg.Username, cfg.PasswordFile = "lockstep", password
	cfg.TLS = TLS{Enabled: true, CAFile: bundle, CertFile: clientCert, KeyFile: clientKey}
	open := func() (*Sink, error) {
		return Open(t.Context(), cfg, func(cdc.TableName) (TableConfig, bool) { return mirrored, true }, slog.New(slog.DiscardHandler))
	}
	s, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f := fixture{Sink: s}
	version := base
	applied := func(what string) {
		t.Helper()
		version++
		for range 10 { // the driver may first notice that its connections are gone
			got := f.verdicts(t, upsert(1, version, `{"id":1}`))
			if got == "applied" {
				return
			}
			t.Logf("%s: %s", what, got)
		}
		t.Errorf("%s: not applied", what)
	}
	held := func(what string) {
		t.Helper()
		version++
		for range 3 {
			if got := f.verdicts(t, upsert(1, version, `{"id":1}`)); !strings.HasPrefix(got, "unavailable") {
				t.Errorf("%s: %s", what, got)
			}
		}
	}
	cut := func() { do("client", "kill", "skipme", "yes", "type", "normal") }
	applied("at the start")

	// Without a certificate of its own nobody comes in.
	cfg.TLS.CertFile, cfg.TLS.KeyFile = "", ""
	if other, err := open(); err == nil {
		if got := (fixture{Sink: other}).verdicts(t, upsert(9, base, `{"id":9}`)); !strings.HasPrefix(got, "unavailable") {
			t.Errorf("without a certificate: %s", got)
		}
		other.Close()
	}

	do("acl", "setuser", "lockstep", "resetpass", ">two")
	cut()
	held("another password")
	write(t, password, []byte("two\n"))
	applied("the file has it, too")
	write(t, password, nil) // half written
	cut()
	applied("a file that is empty is left alone")
	write(t, password, []byte("two\n"))

	second := testenv.NewAuthority(t, "second")
	trust(t, bundle, second)
	second.Sign(t, dir, "server")
	do("config", "set", "tls-cert-file", serverCert, "tls-key-file", serverKey, "tls-ca-cert-file", bundle)
	cut()
	held("a client certificate that the old authority has signed")
	second.Sign(t, dir, "client")
	applied("all certificates are new")
}

// rights are what docs/redis.md says that the user of the sentinels wants.
func rights(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	sentence := regexp.MustCompile(`Sentinels want a user with (.*)\.`).FindStringSubmatch(string(text))
	if sentence == nil {
		t.Fatal("docs/redis.md does not say what the user of the sentinels wants")
	}
	return strings.Join(regexp.MustCompile(`\+\w+`).FindAllString(sentence[1], -1), " ")
}

// A certificate that is out of date is named, whichever side refuses it.
func TestACertificateThatIsOutOfDateIsNamed(t *testing.T) {
	t.Parallel()
	dir, past := t.TempDir(), time.Now().Add(-time.Minute)
	authority := testenv.NewAuthority(t, "all")
	old, oldKey := authority.SignUntil(t, dir, "old", past)
	mine, myKey := authority.Sign(t, dir, "mine")
	server := testenv.NewSecureRedis(t, authority)
	said := func(cert, key, want string) {
		t.Helper()
		cfg := DefaultConfig()
		cfg.Addresses, cfg.TLS = []string{server.Secure}, TLS{Enabled: true, CAFile: authority.File, CertFile: cert, KeyFile: key}
		s, err := Open(t.Context(), cfg, func(cdc.TableName) (TableConfig, bool) { return DefaultTableConfig(), true }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the doctor is told %v; want %q", err, want)
		}
		if out := s.Apply(t.Context(), []cdc.Change{sinktest.Upsert(1, 1, "x")})[0]; out.Verdict != sinks.Unavailable || !strings.Contains(out.Reason, want) {
			t.Errorf("a change gets %+v; want %q", out, want)
		}
	}
	said(old, oldKey, "the certificate in "+old+" (tls.cert_file) expired on ")
	plain := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer plain.Close()
	if err := plain.Do(t.Context(), "CONFIG", "SET", "tls-cert-file", old, "tls-key-file", oldKey).Err(); err != nil {
		t.Fatal(err)
	}
	said(mine, myKey, "the certificate of the server (CN=old) expired on ")
}

// serving are the settings of a server with certificates of an authority, and ours.
func serving(t *testing.T) (settings []string, ours TLS) {
	t.Helper()
	dir := t.TempDir()
	authority := testenv.NewAuthority(t, "all")
	ours = TLS{Enabled: true, CAFile: authority.File}
	cert, key := authority.Sign(t, dir, "server")
	return []string{"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", ours.CAFile, "--tls-auth-clients", "no"}, ours
}

// Sentinels and servers that speak TLS alone, with a login of their own for each, and the
// documented rights; the master changes under way.
func TestSentinelsOverTLSHaveALoginOfTheirOwn(t *testing.T) {
	t.Parallel()
	settings, ours := serving(t)
	secured := func() (server *testenv.RedisInstance, plain *goredis.Client, port string) {
		_, port, _ = net.SplitHostPort(testenv.FreeAddr(t))
		server = testenv.NewRedis(t, append(settings, "--tls-port", port, "--tls-replication", "yes")...)
		plain = goredis.NewClient(&goredis.Options{Addr: server.Addr})
		t.Cleanup(func() { plain.Close() })
		if err := plain.Do(t.Context(), acl(t, "of-redis")...).Err(); err != nil {
			t.Fatal(err)
		}
		return server, plain, port
	}
	_, _, port := secured()
	_, young, youngPort := secured()
	if err := young.SlaveOf(t.Context(), "127.0.0.1", port).Err(); err != nil {
		t.Fatal(err)
	}
	addr := testenv.FreeAddr(t)
	_, watchPort, _ := net.SplitHostPort(addr)
	lines := []string{
		"tls-port " + watchPort, "tls-replication yes", "sentinel monitor bank 127.0.0.1 " + port + " 1",
		"user watcher on >of-sentinel resetchannels &* -@all " + rights(t),
	}
	for i := 0; i < len(settings); i += 2 {
		lines = append(lines, strings.TrimPrefix(settings[i], "--")+" "+settings[i+1])
	}
	sentinel := testenv.NewSentinel(t, strings.Join(lines, "\n")+"\n")
	watch := goredis.NewSentinelClient(&goredis.Options{Addr: sentinel.Addr})
	defer watch.Close()
	await(t, "the sentinel has found the replica, and it is in step", func() bool {
		replicas, err := watch.Replicas(t.Context(), "bank").Result()
		return err == nil && len(replicas) == 1 && replicas[0]["port"] == youngPort && replicas[0]["master-link-status"] == "ok"
	})
	// Nobody comes in without a login any more.
	conn := goredis.NewClient(&goredis.Options{Addr: sentinel.Addr})
	defer conn.Close()
	if err := conn.Do(t.Context(), "acl", "setuser", "default", "off").Err(); err != nil {
		t.Fatal(err)
	}
	cfg := privateConfig(addr)
	cfg.TLS, cfg.Username, cfg.Password = ours, "lockstep", "of-redis"
	cfg.Sentinel = Sentinel{Master: "bank", Username: "watcher", Password: "of-sentinel"}
	open := func(cfg Config) (*Sink, error) {
		return Open(t.Context(), cfg, func(cdc.TableName) (TableConfig, bool) { return mirrored, true }, slog.New(slog.DiscardHandler))
	}
	s, err := open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f := fixture{Sink: s}
	expect(t, "a row", f.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")
	if _, err := f.FindMark(t.Context(), "g", "t", 0); err != nil {
		t.Error(err)
	}
	wrong := cfg
	wrong.Sentinel.Password = wrong.Password
	if _, err := open(wrong); err == nil || !strings.Contains(err.Error(), `sentinels refuse the user "watcher"`) {
		t.Errorf("with the password of the servers for the sentinels: %v", err)
	}
	await(t, "the replica has the row", func() bool { return young.Exists(t.Context(), "questions:1").Val() == 1 })
	if err := watch.Failover(t.Context(), "bank").Err(); err != nil {
		t.Fatal(err)
	}
	await(t, "the replica has taken over", func() bool {
		return infoField(young.Info(t.Context(), "replication").Val(), "role") == "master"
	})
	await(t, "rows go to the new master", func() bool {
		f.verdicts(t, upsert(2, base, `{"id":2}`))
		return young.Exists(t.Context(), "questions:2").Val() == 1
	})
}

func TestAClusterOverTLS(t *testing.T) {
	t.Parallel()
	settings, ours := serving(t)
	c := newCluster(t, settings...)
	for _, client := range c.Clients {
		if err := client.Do(t.Context(), acl(t, "secret")...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	cfg := c.config()
	cfg.TLS, cfg.Username, cfg.Password = ours, "lockstep", "secret"
	f := fixture{Sink: c.open(t, cfg, moving[ModeHash])}
	rows := func() (n int64) {
		for _, client := range c.Clients[:3] {
			for _, key := range client.Keys(t.Context(), "q:*").Val() {
				n += client.Exists(t.Context(), key).Val()
			}
		}
		return n
	}
	var changes []cdc.Change
	for id := range 60 {
		changes = append(changes, at(id, base, nil, image(id, "a", 1)))
	}
	f.deliver(t, changes)
	for id := range 60 {
		changes[id] = at(id, base+1, image(id, "a", 1), image(id, "b", 1))
	}
	f.deliver(t, changes)
	expect(t, "rows", rows(), 60)
	m, err := f.FindMark(t.Context(), "g", "t", 0)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the mark begins", m.Begin(t.Context(), 1), nil)
	if n, err := f.Sweep(t.Context(), questions, base+1); n != 60 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	expect(t, "rows", rows(), 0)
}

// Every script and every question of the sink passes with the documented rights, and
// nothing that it does not need.
func TestTheDocumentedRightsAreEnough(t *testing.T) {
	t.Parallel()
	server := testenv.NewRedis(t)
	plain := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer plain.Close()
	if err := plain.Do(t.Context(), acl(t, "secret")...).Err(); err != nil {
		t.Fatal(err)
	}
	cfg := privateConfig(server.Addr)
	cfg.Username, cfg.Password = "lockstep", "secret"
	tables := map[string]TableConfig{ModeInvalidate: {Key: "q:{level}:{id}", Mode: ModeInvalidate, StaleField: "stale"}}
	for mode, table := range moving {
		tables[mode] = table
	}
	for mode, table := range tables {
		plain.FlushAll(t.Context())
		s, err := Open(t.Context(), cfg, func(cdc.TableName) (TableConfig, bool) { return table, true }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		f := fixture{Sink: s}
		if empty, err := s.Empty(t.Context(), questions, table); !empty || err != nil {
			t.Errorf("%s: empty at the start %v, %v", mode, empty, err)
		}
		if mode == ModeInvalidate {
			plain.HSet(t.Context(), "q:a:1", "x", "y")
		}
		expect(t, mode, f.verdicts(t, at(1, base+1, nil, image(1, "a", 1))), "applied")
		expect(t, mode, f.verdicts(t, at(1, base, nil, image(1, "a", 1))), "stale")
		again := []cdc.Change{at(1, base+1, nil, image(1, "a", 1))}
		expect(t, mode+" is read", s.Stored(t.Context(), again, 1<<20)[0].Version, base+1)
		expect(t, mode+" is asked", s.Would(t.Context(), again)[0].Outcome, sinks.Outcome{Verdict: sinks.Duplicate})
		expect(t, mode, f.verdicts(t, at(1, base+2, image(1, "a", 1), image(1, "b", 1))), "applied")
		expect(t, mode, f.verdicts(t, at(1, base+3, image(1, "b", 1), nil)), "applied")
		expect(t, mode, f.verdicts(t, at(2, base+3, nil, image(2, "b", 1))), "applied")
		if mode == ModeInvalidate {
			plain.Set(t.Context(), "q:b:2", "y", 0)
		}
		if n, err := s.Sweep(t.Context(), questions, base+5); n != 1 || err != nil {
			t.Errorf("%s: swept %d, %v", mode, n, err)
		}
		if empty, err := s.Empty(t.Context(), questions, table); empty || err != nil {
			t.Errorf("%s: empty at the end %v, %v", mode, empty, err)
		}
		m, err := s.FindMark(t.Context(), "g", "t", 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(m.Begin(t.Context(), 1), m.Move(t.Context(), 2)); err != nil {
			t.Error(err)
		}
		m.End(t.Context())
		if marks, err := s.Marks(t.Context(), "g"); marks["t/1"] != 2 || err != nil {
			t.Errorf("marks %v, %v", marks, err)
		}
		s.Close()
	}
	mine := goredis.NewClient(&goredis.Options{Addr: server.Addr, Username: "lockstep", Password: "secret"})
	defer mine.Close()
	for _, args := range [][]any{{"flushall"}, {"config", "set", "maxmemory", "1"}, {"keys", "*"}, {"eval", "return 1", 0}, {"acl", "list"}, {"rename", "a", "b"}, {"shutdown"}} {
		if err := mine.Do(t.Context(), args...).Err(); code(err) != "NOPERM" {
			t.Errorf("%v: %v; want NOPERM", args, err)
		}
	}
}

// A hash is written over with the documented rights, and made anew by an account that may
// not do what this takes.
func TestAHashIsWhatTheRowIsAlsoWithFewerRights(t *testing.T) {
	t.Parallel()
	server := testenv.NewRedis(t)
	plain := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer plain.Close()
	if err := plain.Do(t.Context(), acl(t, "secret")...).Err(); err != nil {
		t.Fatal(err)
	}
	cfg := privateConfig(server.Addr)
	cfg.Username, cfg.Password = "lockstep", "secret"
	s, err := Open(t.Context(), cfg, func(cdc.TableName) (TableConfig, bool) { return TableConfig{Key: "q:{id}"}, true }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f := fixture{Sink: s}
	version := base
	put := func(row string, want map[string]string) {
		t.Helper()
		version++
		want["_lockstep_v"] = version.String()
		expect(t, row, f.verdicts(t, upsert(1, version, row)), "applied")
		expect(t, "hash of "+row, plain.HGetAll(t.Context(), "q:1").Val(), want)
		expect(t, "time to live", plain.TTL(t.Context(), "q:1").Val(), -1)
		plain.Expire(t.Context(), "q:1", time.Hour)
	}
	for _, right := range []string{"", "hlen", "persist"} {
		if right != "" {
			plain.Do(t.Context(), "acl", "setuser", "lockstep", "-"+right)
		}
		deleted := func() string { return plain.Info(t.Context(), "commandstats").Val() }
		put(`{"id":1,"a":1,"b":1}`, map[string]string{"id": "1", "a": "1", "b": "1"})
		plain.ConfigResetStat(t.Context())
		put(`{"id":1,"a":2,"b":2}`, map[string]string{"id": "1", "a": "2", "b": "2"})
		if made := strings.Contains(deleted(), "cmdstat_del:"); made != (right != "") {
			t.Errorf("without %q a hash is made anew: %v", right, made)
		}
		put(`{"id":1,"a":3}`, map[string]string{"id": "1", "a": "3"})
		if right != "" {
			plain.Do(t.Context(), "acl", "setuser", "lockstep", "+"+right)
		}
	}
}
