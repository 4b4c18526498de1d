package kafka

import (
	"context"
	"fmt"
	"io"
	"log/slog"
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

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
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

// real gives the configuration for the real Kafka and a prefix of the test's own,
// whose topics are deleted at the end.
func real(t testing.TB) (Config, string) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Brokers = []string{testenv.Kafka(t).Addr}
	prefix := "kafkatest-" + uuid.NewString()[:8]
	t.Cleanup(func() {
		c := open(t, cfg)
		topics, err := c.Topics(context.Background())
		if err != nil {
			t.Error(err)
		}
		var mine []string
		for _, topic := range topics {
			if strings.HasPrefix(topic, prefix) {
				mine = append(mine, topic)
			}
		}
		if len(mine) > 0 {
			if err := c.DeleteTopics(context.Background(), mine...); err != nil {
				t.Error(err)
			}
		}
	})
	return cfg, prefix
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
