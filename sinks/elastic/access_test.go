package elastic

import (
	"context"
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

	"lockstep/cdc"
	"lockstep/internal/secret"
	"lockstep/internal/testenv"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

// Beside a node that is down, and while rows flow, the password and the certificates of both sides
// are changed. No change is lost. Meanwhile nobody else gets in, so it is not parallel.
func TestPasswordAndCertificatesAreChangedWhileRowsFlow(t *testing.T) {
	node, dir := theNode(t), t.TempDir()
	role := testenv.ElasticRole(t, "elasticsearch.md", rolesHeading)
	node.Account(t, "changing", "first secret", role)
	text := func(name string) string {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
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
	s := openStore(t, func(c *Config) {
		c.Addresses = []string{"https://" + gone.Addr().String(), node.URL}
		c.CAFile, c.CertFile, c.KeyFile = file("ca.crt", text(node.CA)), file("client.crt", text(node.Cert)), file("client.key", text(node.Key))
		c.Username, c.Password, c.PasswordFile = "changing", "", file("password", "first secret\n")
	})

	// write repeats a change until it is in, as a worker does, for five minutes.
	write := func(c cdc.Change) {
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
	write(sinktest.Upsert(0, 1, "first"))
	for id := range 20 { // the node that is down does not show
		if out := s.Apply(t.Context(), []cdc.Change{sinktest.Upsert(100+id, 1, "x")})[0]; out.Verdict != sinks.Applied {
			t.Errorf("beside a node that is down: %+v", out)
		}
	}

	var stop atomic.Bool
	var last atomic.Int64
	var writer sync.WaitGroup
	writer.Go(func() {
		for v := 10; !stop.Load(); v++ {
			write(sinktest.Upsert(v%5, v, fmt.Sprint("version ", v)))
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

	node.Account(t, "changing", "second secret", role)
	if _, err := s.Probe(t.Context()); err == nil {
		t.Error("the old password is not refused")
	}
	file("password", "second secret")
	goesOn("another password")

	node.Certify(t, testenv.NewAuthority(t, "second authority"))
	ca := text(node.CA)
	s.access.close()               // connections made before are still good; these are not kept
	file("ca.crt", ca[:len(ca)/2]) // half written
	time.Sleep(100 * time.Millisecond)
	file("ca.crt", ca)
	file("client.key", text(node.Key))
	file("client.crt", text(node.Cert))
	s.access.close()
	goesOn("other certificates")

	stop.Store(true)
	writer.Wait()
	end := int(last.Load())
	for v := end - 4; v <= end; v++ {
		_, doc := s.ask(t, http.MethodGet, fmt.Sprintf("/%s/_doc/%d", s.alias(sinktest.Questions.Name), v%5), "")
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
