package kafka

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"lockstep/cdc"
)

func TestATopicNameLeadsBackToItsTable(t *testing.T) {
	t.Parallel()
	table := cdc.TableName{DB: "bank", Table: "question_tags"}
	topic, err := ChangeTopic("shop", table)
	must(t, err)
	if topic != "shop.bank.question_tags" {
		t.Fatalf("got %s", topic)
	}
	if got, ok := TableOf("shop", topic); !ok || got != table {
		t.Fatalf("got %v %v", got, ok)
	}
	for _, other := range []string{CheckpointTopic("shop"), LettersTopic("shop", "elastic"), "shop.a", "shop.a.", "shop..b", "shop.a.b.c", "other.a.b", "shopp.a.b"} {
		if got, ok := TableOf("shop", other); ok {
			t.Errorf("%s is taken for the topic of %s", other, got)
		}
	}
}

func TestATableWhoseNameMakesNoTopicIsRefused(t *testing.T) {
	t.Parallel()
	for _, table := range []cdc.TableName{
		{DB: "a.b", Table: "c"}, {DB: "a", Table: "b.c"}, {DB: "dlq", Table: "x"}, {DB: "", Table: "x"}, {DB: "a", Table: ""},
		{DB: "a", Table: "b$c"}, {DB: "a", Table: "prüfung"}, {DB: "a", Table: strings.Repeat("x", 250)},
	} {
		if topic, err := ChangeTopic("shop", table); !errors.Is(err, ErrTopic) {
			t.Errorf("%q.%q gives %q, %v", table.DB, table.Table, topic, err)
		}
	}
	for _, prefix := range []string{"", "a.b", "a b", "ü"} {
		if CheckPrefix(prefix) == nil {
			t.Errorf("prefix %q is taken", prefix)
		}
	}
}

// These partitions are a data format: a key that moves loses its order.
func TestPartitionsOfKeysNeverChange(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]int32{ // as in Kafka's own tests
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("hash of %q is %d, want %d", key, got, want)
		}
	}
	for key, want := range map[string]int{`{"id":1}`: 0, `{"id":2}`: 4, `{"id":18446744073709551615}`: 10, `{"a":"ü","b":7}`: 2} {
		if got := PartitionFor([]byte(key), 12); got != want {
			t.Errorf("key %s: partition %d of 12, want %d", key, got, want)
		}
	}
	java := kafkago.Murmur2Balancer{}
	partitions := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	for range 1000 {
		key := make([]byte, 1+rand.IntN(40))
		for i := range key {
			key[i] = byte(rand.Uint32())
		}
		want := java.Balance(kafkago.Message{Key: key}, partitions...)
		if got := PartitionFor(key, len(partitions)); got != want {
			t.Fatalf("key %x: partition %d, Kafka's own client takes %d", key, got, want)
		}
	}
}

func TestATopicWithAnotherNumberOfPartitionsIsRefused(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(3))
	c := open(t, cfg)
	ctx := deadline(t, 20*time.Second)
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "p.a.b", Partitions: 4}))
	must(t, c.EnsureTopic(ctx, TopicSpec{Name: "p.a.b", Partitions: 4}))
	err := c.EnsureTopic(ctx, TopicSpec{Name: "p.a.b", Partitions: 6})
	if !errors.Is(err, ErrPartitionCount) || !strings.Contains(err.Error(), "p.a.b has 4 and the configuration says 6") {
		t.Fatalf("got %v", err)
	}
	// Another process does not know the topic from having made it.
	if err := open(t, cfg).EnsureTopic(ctx, TopicSpec{Name: "p.a.b", Partitions: 6}); !errors.Is(err, ErrPartitionCount) {
		t.Fatalf("got %v", err)
	}
}

func TestATopicThatWouldDropItsRecordsIsRefused(t *testing.T) {
	t.Parallel()
	cluster, cfg := fake(t, kfake.NumBrokers(1))
	must(t, cluster.CreateTopic("p.checkpoint", 1, map[string]string{"cleanup.policy": "delete"}))
	c := open(t, cfg)
	if _, _, err := LoadCheckpoint(deadline(t, 10*time.Second), c, "p"); !errors.Is(err, ErrTopic) {
		t.Fatalf("got %v", err)
	}
}

func TestEveryMistakeInTheConfigurationNamesItsPlace(t *testing.T) {
	t.Parallel()
	must(t, DefaultConfig().Check())
	for place, spoil := range map[string]func(*Config){
		"brokers: ":             func(c *Config) { c.Brokers = nil },
		"brokers[0]: ":          func(c *Config) { c.Brokers = []string{"kafka"} },
		"partitions: ":          func(c *Config) { c.Partitions = 0 },
		"replication_factor: ":  func(c *Config) { c.ReplicationFactor = -1 },
		"min_insync_replicas: ": func(c *Config) { c.ReplicationFactor, c.MinInsyncReplicas = 2, 3 },
		"max_record_bytes: ":    func(c *Config) { c.MaxRecordBytes = 1 << 30 },
		"retention: ":           func(c *Config) { c.Retention = time.Second },
		"compression: ":         func(c *Config) { c.Compression = "brotli" },
		"publish_buffer_bytes:": func(c *Config) { c.PublishBufferBytes = 0 },
		"fetch_max_bytes: ":     func(c *Config) { c.FetchMaxBytes = 0 },
		"session_timeout: ":     func(c *Config) { c.SessionTimeout = time.Second },
		"tls.cert_file: ":       func(c *Config) { c.TLS = TLS{Enabled: true, CertFile: "x"} },
		"tls.enabled: ":         func(c *Config) { c.TLS.CAFile = "x" },
		"sasl.mechanism: ":      func(c *Config) { c.SASL.Mechanism = "oauth" },
		"sasl.username: ":       func(c *Config) { c.SASL.Mechanism = "plain" },
	} {
		c := DefaultConfig()
		spoil(&c)
		if err := c.Check(); err == nil || !strings.HasPrefix(err.Error(), place) {
			t.Errorf("got %v, want an error that begins with %s", err, place)
		}
	}
}
