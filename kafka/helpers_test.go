package kafka

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"lockstep/internal/testenv"
)

// The broker of the package lets nobody in without TLS, the certificate of a client and a password,
// and the clients of the tests have the rights of docs/privileges.md and no other; what is not the
// product's doing is asked for past that, where one may do anything.
var (
	scope  testenv.Scope
	broker *testenv.KafkaBroker
	start  = sync.OnceValue(func() error {
		return scope.Run(func(t testing.TB) { broker = testenv.NewSecureKafka(t, testenv.NewAuthority(t, "authority")) })
	})
)

// suite is all tests, without the broker at the end.
type suite struct{ *testing.M }

func (s suite) Run() int {
	defer scope.Close()
	return s.M.Run()
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(suite{m})
}

// fake starts a Kafka in memory.
func fake(t testing.TB, opts ...kfake.Opt) (*kfake.Cluster, Config) {
	t.Helper()
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	cfg := DefaultConfig()
	cfg.Brokers = cluster.ListenAddrs()
	return cluster, cfg
}

// real gives the configuration for the real Kafka and a prefix of the test's own, with an
// account that is called as the prefix is.
func real(t testing.TB) (Config, string) {
	t.Helper()
	if of, inside := os.LookupEnv(ofParent); inside {
		words := strings.Fields(of)
		return secured(words), words[0]
	}
	must(t, start())
	prefix := "kafkatest-" + uuid.NewString()[:8]
	broker.Accounts(t, password, testenv.KafkaRights(t, "## Kafka", prefix))
	return secured([]string{prefix, broker.Addr, broker.CA, broker.Cert, broker.Key}), prefix
}

const password = "of the clients"

// secured is the configuration of an account, from its name, the address of the broker and the files of a client.
func secured(words []string) Config {
	cfg := DefaultConfig()
	cfg.Brokers = words[1:2]
	cfg.TLS = TLS{Enabled: true, CAFile: words[2], CertFile: words[3], KeyFile: words[4]}
	cfg.SASL = SASL{Mechanism: "scram-sha-512", Username: words[0], Password: password}
	return cfg
}

// past is a client of the real Kafka that may do anything.
func past(t testing.TB) *Client {
	cfg := DefaultConfig()
	cfg.Brokers = []string{broker.Plain}
	return open(t, cfg)
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func open(t testing.TB, cfg Config) *Client {
	t.Helper()
	c, err := Open(cfg, "test", quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func metrics() *Metrics { return NewMetrics(prometheus.NewRegistry()) }

// running starts run and returns what stops it and gives its error.
func running(t testing.TB, run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() {
			cancel()
			select {
			case err = <-result:
			case <-time.After(patience):
				t.Error("does not stop")
			}
		})
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

func publisher(t testing.TB, c *Client, cfg Config) (*Publisher, func() error) {
	p := NewPublisher(c, cfg, metrics(), quiet)
	return p, running(t, p.Run)
}

// patience is what a machine with other work gets for anything that is waited for: a test
// says what must happen, not how fast.
const patience = 2 * time.Minute

// deadline is d from now, or so long that a whole test fits where that is longer.
func deadline(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), max(d, 5*patience))
	t.Cleanup(cancel)
	return ctx
}

// until polls ok for as long as patience lasts.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited %s for: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// values reads a topic back, partition by partition.
func values(t testing.TB, c *Client, topic string) map[int][]string {
	t.Helper()
	got := map[int][]string{}
	err := c.ReadAll(deadline(t, 60*time.Second), topic, func(r Record) error {
		got[r.Partition] = append(got[r.Partition], string(r.Value))
		return nil
	})
	must(t, err)
	return got
}

func text(i int) []byte { return fmt.Appendf(nil, "%d", i) }

// lines keeps what is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), s)
}
