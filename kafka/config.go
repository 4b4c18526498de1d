package kafka

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"lockstep/internal/certs"
	"lockstep/internal/secret"
)

// Config says how to reach Kafka and how the topics of the pipeline are made.
type Config struct {
	// Brokers to ask first, each as host:port. The others are found through them, so two or three are enough. Default 127.0.0.1:9092.
	Brokers []string `yaml:"brokers"`
	// Partitions of every change and dead-letter topic. It bounds how many workers can share a sink. It can be raised: the topics get the others when a capture and the sinks start with the new number, and dead letters follow their rows. It cannot be lowered. Default 4.
	Partitions int `yaml:"partitions"`
	// ReplicationFactor of new topics. 0 leaves it to the brokers' default.replication.factor. Set 3 in production. Default 0.
	ReplicationFactor int `yaml:"replication_factor"`
	// MinInsyncReplicas of new topics: how many replicas must have a record before it counts as acknowledged. 0 leaves it to the brokers. Set 2 with three replicas. Default 0.
	MinInsyncReplicas int `yaml:"min_insync_replicas"`
	// MaxRecordBytes is the largest record, in bytes before compression. A row travels with its state before the change where both fit, else alone, so this is a little more than the largest row as JSON, in which a binary column takes a third more. Raise it when capture stops at a large row; lockstep doctor says what topics that are there already then need. Default 16777216, at most 94371840, because brokers take no request of more than 100 MB (socket.request.max.bytes).
	MaxRecordBytes int `yaml:"max_record_bytes"`
	// Retention of the change topics, counted from when a record reached Kafka. A sink that stands still for longer needs a new initial copy. 0 keeps records for ever. Default 168h.
	Retention time.Duration `yaml:"retention"`
	// Compression of published batches: none, lz4, zstd, snappy or gzip. lz4 costs little and saves most of the network and disk; take none when the CPU of capture is scarce. Default lz4.
	Compression string `yaml:"compression"`
	// PublishBufferBytes bounds the memory of records that are published and not yet acknowledged, in bytes. When it is used up, reading the source waits. Default 16777216.
	PublishBufferBytes int `yaml:"publish_buffer_bytes"`
	// FetchMaxBytes is what one partition asks for in one fetch, in bytes as stored in Kafka. A sink asks for less when it has many partitions, see worker.memory_bytes. A larger single batch still gets through. Default 1048576.
	FetchMaxBytes int `yaml:"fetch_max_bytes"`
	// SessionTimeout is how long a worker may be silent before its partitions go to another one. Half of it is the time a worker has to finish what is in flight when partitions move. Default 10s.
	SessionTimeout time.Duration `yaml:"session_timeout"`
	// LeaseTimeout is how long the active capture may be silent before another one takes over. Brokers take no less than their group.min.session.timeout.ms, which is 6s unless it was lowered. Default 8s.
	LeaseTimeout time.Duration `yaml:"lease_timeout"`
	// TLS of the connections to the brokers. What changes here counts for connections from then on.
	TLS TLS `yaml:"tls"`
	// SASL login at the brokers. What changes here counts for connections from then on.
	SASL SASL `yaml:"sasl"`
}

// TLS says whether and how connections are encrypted.
type TLS struct {
	// Enabled turns TLS on. Default false.
	Enabled bool `yaml:"enabled"`
	// CAFile is a PEM file with the authorities that may have signed the brokers' certificates. It and the others are read again for every new connection, so they may be changed while the process runs. Empty means the system's own. Default empty.
	CAFile string `yaml:"ca_file"`
	// CertFile is a PEM file with the client's certificate, when the brokers ask for one. Default empty.
	CertFile string `yaml:"cert_file"`
	// KeyFile is a PEM file with the key of cert_file. Default empty.
	KeyFile string `yaml:"key_file"`
	// ServerName expected in the brokers' certificates, when it is not the host name that is dialled. Default empty.
	ServerName string `yaml:"server_name"`
}

// SASL is a login with user and password.
type SASL struct {
	// Mechanism is plain, scram-sha-256 or scram-sha-512. Empty means no login. Default empty.
	Mechanism string `yaml:"mechanism"`
	// Username of the login. Default empty.
	Username string `yaml:"username"`
	// Password of the login. Default empty.
	Password secret.Text `yaml:"password"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Brokers:            []string{"127.0.0.1:9092"},
		Partitions:         4,
		MaxRecordBytes:     16 << 20,
		Retention:          7 * 24 * time.Hour,
		Compression:        "lz4",
		PublishBufferBytes: 16 << 20,
		FetchMaxBytes:      1 << 20,
		SessionTimeout:     10 * time.Second,
		LeaseTimeout:       8 * time.Second,
	}
}

// Check returns every mistake in c, each as one sentence.
func (c Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	between := func(field string, n, low, high, def int) {
		switch {
		case n < low:
			bad("%s: %d is too small; use %d to %d (default %d)", field, n, low, high, def)
		case n > high:
			bad("%s: %d is too large; use %d to %d (default %d)", field, n, low, high, def)
		}
	}
	def := DefaultConfig()
	if len(c.Brokers) == 0 {
		bad("brokers: the list is empty; name at least one broker as host:port")
	}
	for i, b := range c.Brokers {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" {
			bad("brokers[%d]: %q is not host:port; write for example kafka-0:9092", i, b)
		}
	}
	between("partitions", c.Partitions, 1, 1000, def.Partitions)
	between("replication_factor", c.ReplicationFactor, 0, 100, def.ReplicationFactor)
	between("min_insync_replicas", c.MinInsyncReplicas, 0, 100, def.MinInsyncReplicas)
	if c.ReplicationFactor > 0 && c.MinInsyncReplicas > c.ReplicationFactor {
		bad("min_insync_replicas: %d is more than replication_factor %d, so nothing could ever be written; use 1 to %d", c.MinInsyncReplicas, c.ReplicationFactor, c.ReplicationFactor)
	}
	between("max_record_bytes", c.MaxRecordBytes, maxBatchBytes, 90<<20, def.MaxRecordBytes)
	if c.Retention < 0 || (c.Retention > 0 && c.Retention < time.Minute) {
		bad("retention: %s is too short; use 1m or more, or 0 to keep records for ever (default 168h)", c.Retention)
	}
	if _, ok := compressions[c.Compression]; !ok {
		bad("compression: %q is not known; use none, lz4, zstd, snappy or gzip (default lz4)", c.Compression)
	}
	between("publish_buffer_bytes", c.PublishBufferBytes, 1<<20, 16<<30, def.PublishBufferBytes)
	between("fetch_max_bytes", c.FetchMaxBytes, 1024, 1<<30, def.FetchMaxBytes)
	if c.SessionTimeout < 6*time.Second || c.SessionTimeout > 30*time.Minute {
		bad("session_timeout: %s is outside what brokers take; use 6s to 30m (default 10s)", c.SessionTimeout)
	}
	if c.LeaseTimeout < 2*time.Second || c.LeaseTimeout > 30*time.Minute {
		bad("lease_timeout: %s is outside what makes sense; use 2s to 30m, and 6s or more unless the brokers' group.min.session.timeout.ms was lowered (default 8s)", c.LeaseTimeout)
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		bad("tls.cert_file: a client certificate needs both cert_file and key_file; set both or neither")
	}
	if !c.TLS.Enabled && c.TLS != (TLS{}) {
		bad("tls.enabled: false, but other fields of tls are set; set it to true or remove them")
	}
	switch c.SASL.Mechanism {
	case "":
		if c.SASL.Username != "" || c.SASL.Password != "" {
			bad("sasl.mechanism: empty, but a login is given; use plain, scram-sha-256 or scram-sha-512")
		}
	case "plain", "scram-sha-256", "scram-sha-512":
		if c.SASL.Username == "" || c.SASL.Password == "" {
			bad("sasl.username: a login needs username and password; set both")
		}
	default:
		bad("sasl.mechanism: %q is not known; use plain, scram-sha-256 or scram-sha-512", c.SASL.Mechanism)
	}
	return errors.Join(errs...)
}

// config reads the files that t names. It returns nil when TLS is off.
func (t TLS) config() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if err := certs.Load(conf, t.CAFile, t.CertFile, t.KeyFile); err != nil {
		return nil, err
	}
	return conf, nil
}
