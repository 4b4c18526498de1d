package elastic

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/internal/secret"
	"lockstep/internal/testenv"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

// sign gives the texts of a certificate, its key and the certificate of who has signed it.
func sign(t *testing.T, name string, by *testenv.Authority) (cert, key, ca string) {
	t.Helper()
	certFile, keyFile := by.Sign(t, t.TempDir(), name)
	text := func(name string) string {
		pem, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem)
	}
	return text(certFile), text(keyFile), text(by.File)
}

// A node with security, TLS and client certificates: everything that Lockstep does
// there takes no more than the documented privileges, and while rows flow the
// password, the certificates of both sides and an API key are changed. No change is lost.
func TestPasswordCertificatesAndKeysAreChangedWhileRowsFlow(t *testing.T) {
	t.Parallel()
	first := testenv.NewAuthority(t, "first authority")
	nodeCert, nodeKey, ca := sign(t, "node", first)
	clientCert, clientKey, _ := sign(t, "client", first)
	users := func(password string) string {
		return "lockstep:" + testenv.ElasticHash(t, password) + "\nroot:" + testenv.ElasticHash(t, "administrator") + "\n"
	}
	node := testenv.NewElastic(t, testenv.ElasticSecurity("1s"), map[string]string{
		"node.key": nodeKey, "node.crt": nodeCert, "ca.crt": ca, "roles.yml": testenv.ElasticRoles(t, map[string]testenv.ElasticRights{"lockstep": testenv.ElasticRole(t, "elasticsearch.md", "## The account", "secured_*")}),
		"users": users("first secret"), "users_roles": "lockstep:lockstep\nsuperuser:root\n",
	})

	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close() // a node that is down
	cfg := DefaultConfig()
	cfg.Addresses = []string{"https://" + gone.Addr().String(), node.URL}
	cfg.Replicas = 0
	cfg.CAFile, cfg.CertFile, cfg.KeyFile = file("ca.crt", ca), file("client.crt", clientCert), file("client.key", clientKey)
	cfg.Username, cfg.PasswordFile = "lockstep", file("password", "first secret\n")
	if err := cfg.Check(); err != nil {
		t.Fatal(err)
	}
	open := func(name string, cfg Config) *Sink {
		s, err := Open("search", cfg, func(n cdc.TableName) (TableConfig, bool) {
			return TableConfig{Index: "secured_" + name + "_{table}", Deletes: Tombstone}, true
		}, func(_ context.Context, n cdc.TableName) (cdc.Table, error) { return sinktest.Questions, nil },
			slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	s := open("a", cfg)

	// write repeats a change until it is in, as a worker does, for five minutes.
	write := func(s *Sink, c cdc.Change) {
		var out sinks.Outcome
		for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if out = s.Apply(context.WithoutCancel(t.Context()), []cdc.Change{c})[0]; out.Verdict != sinks.Unavailable {
				break
			}
		}
		if out.Verdict != sinks.Applied && out.Verdict != sinks.Duplicate {
			t.Errorf("%s at %d: %+v", c.Key, c.Version.Seq(), out)
		}
	}
	write(s, sinktest.Upsert(0, 1, "first"))
	for id := range 20 { // the node that is down does not show
		if out := s.Apply(t.Context(), []cdc.Change{sinktest.Upsert(100+id, 1, "x")})[0]; out.Verdict != sinks.Applied {
			t.Errorf("beside a node that is down: %+v", out)
		}
	}

	// Everything else that Lockstep does, under the same role.
	if _, err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if n, err := s.Sweep(t.Context(), sinktest.Questions.Name, sinktest.Version(2)); err != nil || n != 21 {
		t.Errorf("swept %d, error %v; want 21", n, err)
	}
	for _, look := range []func(context.Context, func(context.Context) ([]cdc.TableName, error)) error{s.lap, s.watch} {
		if err := look(t.Context(), ofSuite); err != nil { // of the second table there is no index
			t.Error(err)
		}
	}
	if _, err := s.Rebuild(t.Context(), Rebuild{Table: sinktest.Questions.Name}); err != nil {
		t.Error(err)
	}
	if dropped, err := s.DropOld(t.Context(), sinktest.Questions.Name, false); err != nil || len(dropped) != 1 {
		t.Errorf("dropped %v, error %v", dropped, err)
	}
	if _, err := s.Inspect(t.Context(), sinktest.Questions); err != nil {
		t.Error(err)
	}

	// admin asks as the administrator, with the certificates of the moment.
	admin := func(method, path, body string) gjson.Result {
		t.Helper()
		way, _, err := s.config.credentials()
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequest(method, node.URL+path, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		req.SetBasicAuth("root", "administrator")
		res, err := (&http.Client{Transport: way}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		if res.StatusCode >= 300 {
			t.Fatalf("%s %s: %s", method, path, text)
		}
		return gjson.ParseBytes(text)
	}
	// A pipeline through which documents go is looked at, too.
	admin(http.MethodPut, "/_ingest/pipeline/secured", `{"processors":[]}`)
	admin(http.MethodPut, "/secured_a_question/_settings", `{"index.final_pipeline":"secured"}`)
	if found, err := s.Inspect(t.Context(), sinktest.Questions); err != nil || !strings.Contains(fmt.Sprint(found), "the ingest pipeline secured") {
		t.Errorf("an index with a pipeline: %+v, error %v", found, err)
	}
	admin(http.MethodPut, "/secured_a_question/_settings", `{"index.final_pipeline":"_none"}`)
	var stop atomic.Bool
	var last atomic.Int64
	var writer sync.WaitGroup
	writer.Go(func() {
		for v := 10; !stop.Load(); v++ {
			write(s, sinktest.Upsert(v%5, v, fmt.Sprint("version ", v)))
			last.Store(int64(v))
		}
	})
	defer writer.Wait()
	defer stop.Store(true)
	// goesOn waits until rows are written again, and more than what was under way.
	goesOn := func(what string) {
		t.Helper()
		from := last.Load()
		for end := time.Now().Add(5 * time.Minute); last.Load() < from+3; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: the writer stands still", what)
			}
		}
	}
	goesOn("at first")

	node.Write(t, "users", users("second secret"))
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) { // until it is refused
		if _, err := s.Probe(t.Context()); err != nil || time.Now().After(end) {
			break
		}
		if res, err := s.access.RoundTrip(authenticate(t, node.URL)); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusUnauthorized {
				break
			}
		}
	}
	file("password", "second secret")
	goesOn("another password")

	second := testenv.NewAuthority(t, "second authority")
	nodeCert, nodeKey, ca2 := sign(t, "node", second)
	clientCert, clientKey, _ = sign(t, "client", second)
	node.Write(t, "node.key", nodeKey)
	node.Write(t, "node.crt", nodeCert)
	node.Write(t, "ca.crt", ca2)
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // until it shows the new one
		conn, err := tls.Dial("tcp", node.Addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			continue
		}
		issuer := conn.ConnectionState().PeerCertificates[0].Issuer.CommonName
		conn.Close()
		if issuer == "second authority" {
			break
		}
	}
	s.access.close()                 // connections made before are still good; these are not kept
	file("ca.crt", ca2[:len(ca2)/2]) // half written
	time.Sleep(100 * time.Millisecond)
	file("ca.crt", ca2)
	file("client.key", clientKey)
	file("client.crt", clientCert)
	s.access.close()
	goesOn("other certificates")

	stop.Store(true)
	writer.Wait()
	end := int(last.Load())
	for v := end - 4; v <= end; v++ {
		doc := admin(http.MethodGet, fmt.Sprintf("/secured_a_question/_doc/%d", v%5), "")
		if got := doc.Get("_source.title").Str; got != fmt.Sprint("version ", v) {
			t.Errorf("row %d is %q; want version %d", v%5, got, v)
		}
	}
}

// The local build cannot make API keys.
func TestAnAPIKeyIsReadAgainWhenItIsRefused(t *testing.T) {
	t.Parallel()
	var right atomic.Value
	right.Store("ApiKey Zmlyc3Q6a2V5")
	f := &fake{bulk: taken}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != right.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"error":{"type":"security_exception","reason":"unable to authenticate"},"status":401}`)
			return
		}
		f.ServeHTTP(w, r)
	}))
	defer server.Close()
	path := filepath.Join(t.TempDir(), "key")
	put := func(key string) {
		if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("Zmlyc3Q6a2V5\n")
	cfg := DefaultConfig()
	cfg.Addresses, cfg.APIKeyFile = []string{server.URL}, path
	s, err := Open("search", cfg, func(cdc.TableName) (TableConfig, bool) { return TableConfig{Index: "a"}, true },
		func(context.Context, cdc.TableName) (cdc.Table, error) { return sinktest.Questions, nil },
		slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	expect := func(when string, want sinks.Verdict) {
		t.Helper()
		if out := s.Apply(t.Context(), []cdc.Change{sinktest.Upsert(1, 1, "x")})[0]; out.Verdict != want {
			t.Errorf("%s: %+v; want verdict %d", when, out, want)
		}
	}
	expect("at first", sinks.Applied)
	right.Store("ApiKey c2Vjb25kOmtleQ==")
	expect("while the file holds the old key", sinks.Unavailable)
	put("")
	expect("while the file is being written", sinks.Unavailable)
	put("c2Vjb25kOmtleQ==")
	expect("the call that finds the key refused", sinks.Unavailable)
	expect("the next one", sinks.Applied)
}

func authenticate(t *testing.T, base string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/_security/_authenticate", nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestAServerThatIsNotElasticsearchIsRefusedWithOneSentence(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"version":{"distribution":"opensearch","number":"2.19.1"},"items":[{"index":{"status":201}}]}`)
	}))
	defer server.Close()
	cfg := DefaultConfig()
	cfg.Addresses = []string{server.URL}
	s, err := Open("search", cfg, func(cdc.TableName) (TableConfig, bool) { return TableConfig{Index: "q"}, true },
		func(context.Context, cdc.TableName) (cdc.Table, error) { return sinktest.Questions, nil },
		slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), errNotElasticsearch.Error()) {
		t.Errorf("the doctor is told %v", err)
	}
	if out := s.Apply(t.Context(), []cdc.Change{sinktest.Upsert(1, 1, "x")})[0]; out.Verdict != sinks.Unavailable || !strings.Contains(out.Reason, errNotElasticsearch.Error()) {
		t.Errorf("a change gets %+v", out)
	}
}

func TestACloudIDNamesTheAddress(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.CloudID = "shop:" + base64.StdEncoding.EncodeToString([]byte("eu.example.com:9243$search$kibana"))
	if err := cfg.Check(); err != nil {
		t.Fatal(err)
	}
	var asked string
	s, err := Open("search", cfg, nil, nil, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.access.way.DialContext = func(_ context.Context, _, addr string) (net.Conn, error) {
		asked = addr
		return nil, fmt.Errorf("no such host in a test")
	}
	if _, err := s.Probe(t.Context()); err == nil || asked != "search.eu.example.com:9243" {
		t.Errorf("asked %q, error %v; want search.eu.example.com:9243", asked, err)
	}
	cfg.CloudID = "nonsense"
	if _, err := Open("search", cfg, nil, nil, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry())); err == nil {
		t.Error("a cloud id that is none was taken")
	}
}

func TestAccessThatContradictsItselfIsRefused(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"api_key: stands beside username":        func(c *Config) { c.Username, c.APIKeyFile = "u", "f" },
		"password_file: stands beside password":  func(c *Config) { c.Username, c.Password, c.PasswordFile = "u", "p", "f" },
		"api_key_file: stands beside api_key":    func(c *Config) { c.APIKey, c.APIKeyFile = secret.Text("k"), "f" },
		"cloud_id: stands beside addresses":      func(c *Config) { c.CloudID = "x" },
		"password: has no username":              func(c *Config) { c.PasswordFile = "f" },
		"api_key_file: open /nowhere":            func(c *Config) { c.APIKeyFile = "/nowhere" },
		"password_file: " + empty + " is empty":  func(c *Config) { c.Username, c.PasswordFile = "u", empty },
		"password_file: /dev/null is no file":    func(c *Config) { c.Username, c.PasswordFile = "u", "/dev/null" },
		"cert_file: goes together with key_file": func(c *Config) { c.CertFile = "f" },
		"no cluster is named; set addresses":     func(c *Config) { c.Addresses = nil },
		"deletes: \"soft\" is not known":         func(c *Config) { c.Deletes = "soft" },
		"tombstone_keep: 1m0s is outside":        func(c *Config) { c.TombstoneKeep = time.Minute },
	} {
		cfg := DefaultConfig()
		cfg.Addresses = []string{"http://127.0.0.1:9200"}
		change(&cfg)
		if err := cfg.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	for want, change := range map[string]func(*Config){
		"ca_file: ":       func(c *Config) { c.CAFile = "/nowhere" },
		"password_file: ": func(c *Config) { c.Username, c.PasswordFile = "u", "/nowhere" },
		"api_key_file: ":  func(c *Config) { c.APIKeyFile = "/dev/null" },
		"cert_file: ":     func(c *Config) { c.CertFile, c.KeyFile = "/dev/null", "/dev/null" },
	} {
		cfg := DefaultConfig()
		cfg.Addresses = []string{"http://127.0.0.1:9200"}
		change(&cfg)
		if _, err := Open("search", cfg, nil, nil, slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry())); err == nil || !strings.HasPrefix(err.Error(), "open Elasticsearch: "+want) {
			t.Errorf("%v; want it to begin with %q", err, want)
		}
	}
}
