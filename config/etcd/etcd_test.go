package etcd

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lockstep/internal/certs"
	"lockstep/internal/testenv"
)

func noEnv(string) (string, bool) { return "", false }

func TestAnAddressNamesServersAndAKeyAndNoLogin(t *testing.T) {
	for address, want := range map[string]string{
		"etcd://etcd-1:2379,10.0.0.7:2379,[::1]:2379/lockstep/shop.yaml": "",
		"etcd://ann:hunter2@etcd-1:2379/shop":                            "a login has no place in the address; put the user into LOCKSTEP_ETCD_USER, and the name of a file with the password into LOCKSTEP_ETCD_PASSWORD_FILE",
		"etcds://ann@etcd-1:2379/shop":                                   "a login has no place in the address",
		"etcd://etcd-1:2379":                                             "names no key; write for example etcd://",
		"etcd://etcd-1:2379/":                                            "names no key",
		"etcd://etcd-1/shop":                                             `"etcd-1" is no host:port`,
		"etcd:///shop":                                                   `"" is no host:port`,
		"etcd://etcd-1:2379,/shop":                                       `"" is no host:port`,
		"etcd://etcd-1:2379/shop?tls=1":                                  "? and # have no place in the address",
	} {
		k, err := Open(address, noEnv)
		switch {
		case want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v; want %q", address, err, want)
		case err != nil && strings.Contains(err.Error(), "hunter2"):
			t.Errorf("%s: the password is in %v", address, err)
		case want == "" && (k.key != "/lockstep/shop.yaml" || len(k.endpoints) != 3):
			t.Errorf("%s: %+v", address, k)
		}
	}
	if got := WithoutLogin("etcd://ann:hunter2@h:1/k@x"); got != "etcd://********@h:1/k@x" {
		t.Error(got)
	}
	for _, tc := range []struct{ variable, want string }{
		{certFile, certFile + " and " + keyFile + " go together"},
		{passwordFile, user + " and " + passwordFile + " go together"},
		{caFile, caFile + " is set, but etcd:// has no TLS; write etcds://"},
	} {
		if _, err := Open("etcd://h:1/k", func(name string) (string, bool) {
			if name == tc.variable {
				return "x", true
			}
			return "", false
		}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.variable, err)
		}
	}
}

// followed is a key that a test follows.
type followed struct {
	*Key
	t    *testing.T
	told chan string
}

func follow(t *testing.T, was string, change func(*Key), members ...string) *followed {
	t.Helper()
	key, err := Open("etcd://"+strings.Join(members, ",")+"/shop", noEnv)
	if err != nil {
		t.Fatal(err)
	}
	change(key)
	f := &followed{Key: key, t: t, told: make(chan string, 100)}
	first, err := key.Get(t.Context())
	if err != nil || string(first.Text) != was {
		t.Fatalf("%s, %v; want %s", first.Text, err, was)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		key.Follow(ctx, first, func(v Value, err error) {
			if err != nil {
				f.told <- err.Error()
				return
			}
			f.told <- fmt.Sprintf("%s at %d", v.Text, v.Revision)
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("it follows on")
		}
	})
	return f
}

// says waits for what is told next.
func (f *followed) says(within time.Duration, want string) {
	f.t.Helper()
	select {
	case got := <-f.told:
		if !strings.HasPrefix(got, want) {
			f.t.Errorf("it says %q; want %q", got, want)
		}
	case <-time.After(within):
		f.t.Fatalf("nothing is said; want %q", want)
	}
}

func (f *followed) saysNothing(while time.Duration) {
	f.t.Helper()
	select {
	case got := <-f.told:
		f.t.Errorf("it says %q", got)
	case <-time.After(while):
	}
}

type writer struct {
	*clientv3.Client
	t *testing.T
}

func (w writer) put(text string) (revision int64) {
	w.t.Helper()
	res, err := w.Put(w.t.Context(), "/shop", text)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Header.Revision
}

func (w writer) must(_ any, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// wantLogins has everybody but root and lockstep, who may read /shop, refused.
func (w writer) wantLogins() {
	w.t.Helper()
	ctx := w.t.Context()
	w.must(w.UserAdd(ctx, "root", "root"))
	w.must(w.UserGrantRole(ctx, "root", "root"))
	w.must(w.RoleAdd(ctx, "reader"))
	w.must(w.RoleGrantPermission(ctx, "reader", "/shop", "", clientv3.PermissionType(clientv3.PermRead)))
	w.must(w.UserAdd(ctx, "lockstep", "hunter2"))
	w.must(w.UserGrantRole(ctx, "lockstep", "reader"))
	w.must(w.AuthEnable(ctx))
}

func plain(*Key) {}

// watchOnly takes the beat away, so that only the watch can tell.
func watchOnly(k *Key) { k.beat = time.Hour }

func impatient(k *Key) { k.patience, k.beat = time.Second, 300*time.Millisecond }

// What the watch has to do alone: tell of puts, a delete and a lease that ends, go on after a cut, and find
// what was compacted meanwhile; each state once.
func TestAKeyIsWatched(t *testing.T) {
	t.Parallel()
	server := testenv.NewEtcd(t)
	w := writer{server.Client(t, clientv3.Config{}), t}
	w.put("one")
	relay := testenv.NewRelay(t, server.Addr)
	f := follow(t, "one", watchOnly, relay.Addr)
	f.saysNothing(300 * time.Millisecond)
	f.says(time.Second, fmt.Sprintf("two at %d", w.put("two")))
	f.says(time.Second, fmt.Sprintf("two at %d", w.put("two")))
	w.must(w.Delete(t.Context(), "/shop"))
	f.says(time.Second, "there is no such key; put the configuration there: etcdctl put /shop < lockstep.yaml")
	lease, err := w.Grant(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	w.must(w.Put(t.Context(), "/shop", "lent", clientv3.WithLease(lease.ID)))
	f.says(time.Second, "lent at")
	w.must(w.Revoke(t.Context(), lease.ID))
	f.says(time.Second, "there is no such key")
	w.put("three")
	f.says(time.Second, "three at")
	w.must(w.Put(t.Context(), "/shop/other", "of others"))

	relay.Cut()
	f.says(5*time.Second, fmt.Sprintf("four at %d", w.put("four")))

	relay.Freeze()
	relay.Cut()
	w.put("five")
	last := w.put("six")
	w.must(w.Compact(t.Context(), last))
	relay.Thaw()
	relay.Cut()
	f.says(10*time.Second, fmt.Sprintf("six at %d", last))
	f.says(time.Second, fmt.Sprintf("seven at %d", w.put("seven")))
	f.saysNothing(300 * time.Millisecond)
}

// An etcd that is away is told of once, as is what it has when it is back.
func TestAnEtcdThatIsAwayComesBack(t *testing.T) {
	t.Parallel()
	server := testenv.NewEtcd(t)
	w := writer{server.Client(t, clientv3.Config{}), t}
	w.put("one")
	relay := testenv.NewRelay(t, server.Addr)
	f := follow(t, "one", impatient, relay.Addr)
	server.Kill(t)
	f.says(10*time.Second, "etcd does not answer within 1s: ")
	f.saysNothing(2 * time.Second)
	server.Start(t)
	f.says(10*time.Second, "one at")
	f.says(time.Second, fmt.Sprintf("two at %d", w.put("two")))

	relay.Freeze() // nobody closes a connection, as when a machine has lost its power
	f.says(10*time.Second, "etcd does not answer within 1s: ")
	relay.Thaw()
	relay.Cut()
	f.says(10*time.Second, "two at")
	f.saysNothing(500 * time.Millisecond)
}

// A leader that is lost is nothing to tell of, and a majority that is lost is.
func TestALeaderIsLost(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewEtcdCluster(t, 3)
	var members []string
	leader := 0
	var err error
	for i, m := range cluster {
		members = append(members, m.Addr)
		s, err := m.Client(t, clientv3.Config{}).Status(t.Context(), m.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if s.Leader == s.Header.MemberId {
			leader = i
		}
	}
	a, b := (leader+1)%3, (leader+2)%3
	w := writer{cluster[a].Client(t, clientv3.Config{}), t}
	w.put("one")
	f := follow(t, "one", plain, members...)
	cluster[leader].Kill(t)
	for deadline := time.Now().Add(30 * time.Second); ; { // an answer comes from a new leader
		if _, err = w.Get(t.Context(), "/shop"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	f.says(10*time.Second, fmt.Sprintf("two at %d", w.put("two")))
	f.saysNothing(time.Second)
	cluster[b].Kill(t)
	f.says(25*time.Second, "etcd does not answer within 5s: ")
	cluster[b].Start(t)
	f.says(15*time.Second, "two at")
	f.says(5*time.Second, fmt.Sprintf("three at %d", w.put("three")))
}

// A store that was made anew counts from 1 again, and its revisions are not waited for.
func TestAnEtcdThatWasMadeAnewIsFollowed(t *testing.T) {
	t.Parallel()
	old, now := testenv.NewEtcd(t), testenv.NewEtcd(t)
	w, n := writer{old.Client(t, clientv3.Config{}), t}, writer{now.Client(t, clientv3.Config{}), t}
	for range 20 {
		w.put("old")
	}
	n.put("new")
	relay := testenv.NewRelay(t, old.Addr)
	f := follow(t, "old", impatient, relay.Addr)
	relay.Point(now.Addr)
	f.says(10*time.Second, "new at 2")
	f.says(time.Second, fmt.Sprintf("newer at %d", n.put("newer")))
}

func TestEtcdWithTLSAndALogin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	signs := testenv.NewAuthority(t, "ca")
	cert, key := signs.Sign(t, dir, "server")
	mine, myKey := signs.Sign(t, dir, "me")
	server := testenv.NewEtcd(t, "--cert-file="+cert, "--key-file="+key, "--client-cert-auth=true", "--trusted-ca-file="+signs.File, "--bcrypt-cost=4")
	conf := &tls.Config{}
	if err := certs.Load(conf, signs.File, mine, myKey); err != nil {
		t.Fatal(err)
	}
	w := writer{server.Client(t, clientv3.Config{TLS: conf}), t}
	w.put("mine")
	w.must(w.Put(t.Context(), "/secret", "not for lockstep"))
	w.wantLogins()

	right := map[string]string{caFile: signs.File, certFile: mine, keyFile: myKey, user: "lockstep"}
	other, otherKey := testenv.NewAuthority(t, "strangers").Sign(t, dir, "other")
	for _, tc := range []struct {
		what, path, word string
		change           map[string]string
		want             string
	}{
		{"all that it wants", "/shop", "hunter2\n", nil, ""},
		{"another password", "/shop", "hunter3", nil, "etcd refuses the user lockstep; mend LOCKSTEP_ETCD_USER or what LOCKSTEP_ETCD_PASSWORD_FILE holds"},
		{"an empty one", "/shop", "\n", nil, "LOCKSTEP_ETCD_PASSWORD_FILE: .* is empty"},
		{"no file", "/shop", "hunter2", map[string]string{passwordFile: "nowhere"}, "LOCKSTEP_ETCD_PASSWORD_FILE: open nowhere"},
		{"no login but the certificate's", "/shop", "hunter2", map[string]string{user: "", passwordFile: ""}, "etcd does not let us read the key"},
		{"another key", "/secret", "hunter2", nil, "etcd does not let us read the key; grant it: etcdctl role grant-permission ROLE read /secret"},
		{"no authority", "/shop", "hunter2", map[string]string{caFile: ""}, "etcd does not answer within 5s: connection error: .*certificate signed by unknown authority"},
		{"a stranger's certificate", "/shop", "hunter2", map[string]string{certFile: other, keyFile: otherKey}, "etcd does not answer within 5s: .*"},
		{"no certificate", "/shop", "hunter2", map[string]string{certFile: "", keyFile: ""}, "etcd does not answer within 5s: .*"},
		{"a file that is none", "/shop", "hunter2", map[string]string{caFile: "nowhere"}, "LOCKSTEP_ETCD_CA_FILE: open nowhere"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			password := file(t, tc.word)
			k, err := Open("etcds://"+server.Addr+tc.path, func(name string) (string, bool) {
				v, ok := tc.change[name]
				switch {
				case ok:
					return v, true
				case name == passwordFile:
					return password, true
				}
				return right[name], true
			})
			if err != nil {
				t.Fatal(err)
			}
			v, err := k.Get(t.Context())
			switch {
			case tc.want == "" && (err != nil || string(v.Text) != "mine"):
				t.Errorf("%q, %v", v.Text, err)
			case tc.want != "" && (err == nil || !regexp.MustCompile("^"+tc.want).MatchString(err.Error())):
				t.Errorf("%v; want %s", err, tc.want)
			}
		})
	}
	t.Run("no TLS", func(t *testing.T) {
		t.Parallel()
		plain, err := Open("etcd://"+server.Addr+"/shop", noEnv)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = plain.Get(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "etcd does not answer within 5s: connection error: ") || !strings.HasSuffix(err.Error(), "; with TLS it is etcds://") {
			t.Error(err)
		}
	})
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A login that is asked for while a process follows is told of; so is one that comes to be right.
func TestALoginIsAskedForLater(t *testing.T) {
	t.Parallel()
	server := testenv.NewEtcd(t, "--bcrypt-cost=4")
	w := writer{server.Client(t, clientv3.Config{}), t}
	w.put("one")
	f := follow(t, "one", impatient, server.Addr)
	w.wantLogins()
	f.says(10*time.Second, "etcd wants a login; set LOCKSTEP_ETCD_USER and LOCKSTEP_ETCD_PASSWORD_FILE")
	root := server.Client(t, clientv3.Config{Username: "root", Password: "root"})
	w.must(root.AuthDisable(t.Context()))
	f.says(10*time.Second, "one at")
}
