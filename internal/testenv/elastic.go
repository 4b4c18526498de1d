package testenv

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// ElasticNode is an Elasticsearch of a test's own that lets nobody in without TLS, the certificate of
// a client and a password. It is started from the installed distribution, so it needs the native servers.
type ElasticNode struct {
	Server
	Plain         string // URL for the test itself: without TLS, and whoever comes may do anything
	CA, Cert, Key string // files of a client
	config        string // the directory of its configuration
	start         func(t testing.TB) (stop func())
	stop          func()

	mu    sync.Mutex // of the accounts: the node's files name all of them
	roles map[string]ElasticRights
	users map[string]string // the hashes of their passwords
}

// NewSecureElastic starts a node with a certificate of an authority, and returns when it listens.
// It is gone at the end of the test.
func NewSecureElastic(t testing.TB, authority *Authority) *ElasticNode {
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
	config := filepath.Join(state, "config")
	e := &ElasticNode{
		Server: Server{Name: "elasticsearch", Addr: addr, URL: "https://" + addr}, config: config,
		CA: filepath.Join(config, "ca.crt"), Cert: filepath.Join(config, "client.crt"), Key: filepath.Join(config, "client.key"),
		roles: map[string]ElasticRights{}, users: map[string]string{AdminUser: elasticHash(t, AdminPassword)},
	}
	e.configure(t, map[string]string{
		"xpack.security.enabled": "true", "xpack.security.http.ssl.enabled": "true", "xpack.security.http.ssl.client_authentication": "required",
		"xpack.security.http.ssl.key": "node.key", "xpack.security.http.ssl.certificate": "node.crt", "xpack.security.http.ssl.certificate_authorities": "ca.crt",
		"resource.reload.interval.high": "200ms",
	})
	e.certify(t, authority)
	e.writeAccounts(t)
	e.start = func(t testing.TB) func() {
		t.Helper()
		return spawn(t, "Elasticsearch", words, filepath.Join(state, "log"), 10*time.Minute, e.answers)
	}
	e.Start(t)
	e.Plain = fmt.Sprintf("http://%s:%s@%s", AdminUser, AdminPassword, newRelay(t, addr, e.dial).Addr)
	return e
}

// Stop kills it; Start starts it on the data it has and returns when it listens.
func (e *ElasticNode) Stop()              { e.stop() }
func (e *ElasticNode) Start(t testing.TB) { t.Helper(); e.stop = e.start(t) }

// Certify gives it a certificate of another authority, whose clients it trusts from then on and no
// others, and returns when it shows it.
func (e *ElasticNode) Certify(t testing.TB, authority *Authority) {
	t.Helper()
	e.certify(t, authority)
	pair, err := tls.LoadX509KeyPair(filepath.Join(e.config, "node.crt"), filepath.Join(e.config, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	Await(t, time.Minute, "Elasticsearch to show its new certificate", func() bool {
		conn, err := tls.Dial("tcp", e.Addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return false
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Equal(pair.Leaf)
	})
}

func (e *ElasticNode) certify(t testing.TB, authority *Authority) {
	t.Helper()
	authority.Sign(t, e.config, "client")
	cert, key := authority.Sign(t, t.TempDir(), "node")
	e.write(t, "ca.crt", read(t, authority.File)) // before the certificate, which shows that all are read
	e.write(t, "node.key", read(t, key))
	e.write(t, "node.crt", read(t, cert))
}

// Account makes an account with a role, or gives the one that there is another password and role, and
// returns when it has all rights of that role.
func (e *ElasticNode) Account(t testing.TB, name, password string, role ElasticRights) {
	t.Helper()
	hash := elasticHash(t, password)
	func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.roles[name], e.users[name] = role, hash
		e.writeAccounts(t)
	}()
	rights, err := json.Marshal(map[string]any{"cluster": role.Cluster, "index": role.Indices})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(user, password, path string, body []byte) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.Plain+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(user, password)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		said, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(said)
	}
	Await(t, time.Minute, "Elasticsearch to know the account "+name, func() bool {
		// A node that was asked in the moment in which it read the file may go on to hold a role for
		// missing, so it is made to look again.
		if status, said := ask(AdminUser, AdminPassword, "/_security/role/"+name+"/_clear_cache", nil); status != http.StatusOK {
			t.Fatalf("clear the cache of roles: status %d: %s", status, said)
		}
		status, said := ask(name, password, "/_security/user/_has_privileges", rights)
		return status == http.StatusOK && strings.Contains(said, `"has_all_requested":true`)
	})
}

// writeAccounts has each account in the role of its own name, and the administrator in all. Elasticsearch
// takes roles.yml apart by its lines, so each role has one, in JSON, which is YAML, too.
func (e *ElasticNode) writeAccounts(t testing.TB) {
	t.Helper()
	var roles, users strings.Builder
	members := "superuser:" + AdminUser + "\n"
	for name, role := range e.roles {
		text, err := json.Marshal(role)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&roles, "%s: %s\n", name, text)
		members += name + ":" + name + "\n"
	}
	for name, hash := range e.users {
		fmt.Fprintf(&users, "%s:%s\n", name, hash)
	}
	e.write(t, "roles.yml", roles.String())
	e.write(t, "users", users.String())
	e.write(t, "users_roles", members)
}

// elasticHash is a password as the file of a node's users has it.
func elasticHash(t testing.TB, password string) string {
	t.Helper()
	salt := make([]byte, 32)
	rand.Read(salt)
	key, err := pbkdf2.Key(sha512.New, password, salt, 10_000, 32)
	if err != nil {
		t.Fatal(err)
	}
	return "{PBKDF2}10000$" + base64.StdEncoding.EncodeToString(salt) + "$" + base64.StdEncoding.EncodeToString(key)
}

// dial connects to it with TLS and the certificate of a client that is good at the moment.
func (e *ElasticNode) dial(addr string) (net.Conn, error) {
	pair, err := tls.LoadX509KeyPair(e.Cert, e.Key)
	if err != nil {
		return nil, err
	}
	return tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
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
	e.write(t, "elasticsearch.yml", strings.Join(lines, "\n")+"\n")
}

// write puts a file into the directory of the configuration, in one step. The node
// sees some of them change while it runs.
func (e *ElasticNode) write(t testing.TB, name, content string) {
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
