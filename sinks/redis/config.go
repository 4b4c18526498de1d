package redis

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"lockstep/cdc"
	"lockstep/internal/certs"
	"lockstep/internal/secret"
)

// Modes of Config.Mode.
const (
	ModeMirror = "mirror"
	ModeCache  = "cache"
)

// Modes of TableConfig.Mode.
const (
	ModeHash       = "hash"
	ModeJSON       = "json"
	ModeString     = "string"
	ModeStream     = "stream"
	ModeSet        = "set"
	ModeZset       = "zset"
	ModeInvalidate = "invalidate"
)

// modes lists them as messages do.
const modes = "hash, json, string, stream, set, zset or invalidate"

const (
	maxPipelineBytes = 64 << 20
	maxValueBytes    = 512 << 20 // the largest string Redis holds
	minTombstoneTTL  = time.Hour
	maxTombstoneTTL  = 366 * 24 * time.Hour
)

// Config says how to reach Redis or Valkey and what may be asked of it.
type Config struct {
	// Addresses are host:port pairs. One address is a single server, several are
	// the seeds of a cluster, and with Sentinel they are the sentinels. Default
	// 127.0.0.1:6379.
	Addresses []string `yaml:"addresses"`
	// Sentinel has the sentinels at Addresses say which server is the master, so that
	// a failover is followed. Default off.
	Sentinel Sentinel `yaml:"sentinel"`
	// Username of the ACL user; empty for the default user. docs/redis.md has the
	// statement that makes one with the rights it needs. Default empty.
	Username string `yaml:"username"`
	// Password of the user; empty when the server asks for none. Default empty.
	Password secret.Text `yaml:"password"`
	// PasswordFile is a file that holds the password, in place of Password. It and the
	// files of TLS are read again for every new connection, so they may be changed
	// while the sink runs. Default empty.
	PasswordFile string `yaml:"password_file"`
	// DB is the number of the logical database, 0 to 1023; a cluster has only 0.
	// Default 0.
	DB int `yaml:"db"`
	// TLS to the server. Default off.
	TLS TLS `yaml:"tls"`
	// Mode is mirror or cache. A mirror promises every row and refuses a server
	// that may evict keys (maxmemory-policy other than noeviction). A cache accepts
	// any policy: evicted rows stay away until they change again, and an evicted
	// delete marker lets a redelivered older change bring the row back until the
	// delete itself is redelivered. Default mirror.
	Mode string `yaml:"mode"`
	// PipelineBytes is the size in bytes at which a pipeline is sent, 1024 to
	// 67108864. A larger row goes alone. Raise it for a server far away; lower it
	// when other clients of the server see pauses. Default 1048576.
	PipelineBytes int `yaml:"pipeline_bytes"`
	// Timeout of one dial, of writing one pipeline and of reading its replies,
	// 100ms to 5m. Default 5s.
	Timeout time.Duration `yaml:"timeout"`
	// TombstoneTTL is how long the version of a deleted row is remembered, 1h to
	// 8784h. An older change that arrives later than this after the delete brings the row
	// back, so keep it above the time for which changes may be redelivered or
	// replayed. The default is twice Kafka's default retention of a week. A
	// remembered delete costs about 100 bytes. Default 336h.
	TombstoneTTL time.Duration `yaml:"tombstone_ttl"`
	// MaxValueBytes is the largest row in bytes of JSON that is written, 1024 to
	// 536870912; a larger one becomes a dead letter. A server whose
	// proto-max-bulk-len is below it is refused, where CONFIG GET is allowed. Default 33554432.
	MaxValueBytes int `yaml:"max_value_bytes"`
}

// Sentinel says what the sentinels watch and how to log in to them.
type Sentinel struct {
	// Master is the name under which the sentinels know the master. Default empty,
	// no sentinels.
	Master string `yaml:"master"`
	// Username of the ACL user of the sentinels. Default empty.
	Username string `yaml:"username"`
	// Password of that user. Default empty.
	Password secret.Text `yaml:"password"`
	// PasswordFile is a file that holds this password, read at the start. Default
	// empty.
	PasswordFile string `yaml:"password_file"`
}

// TLS says how the connection is encrypted and how both sides prove who they are.
type TLS struct {
	// Enabled turns TLS on. Default false.
	Enabled bool `yaml:"enabled"`
	// CAFile is a PEM file with the certificates that may sign the server's.
	// Default empty, the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile is a PEM file with the client certificate, for servers that ask for
	// one. Default empty.
	CertFile string `yaml:"cert_file"`
	// KeyFile is a PEM file with the key of CertFile. Default empty.
	KeyFile string `yaml:"key_file"`
	// ServerName is the name expected in the server's certificate. Default empty,
	// the host of the address.
	ServerName string `yaml:"server_name"`
}

// TableConfig says under which key and in which shape a table's rows are kept.
type TableConfig struct {
	// Key is the template of the rows' keys. Placeholders are {column}, {pk} for
	// the primary-key columns joined by ":", {db} and {table}; "{{" and "}}" are
	// braces. It must name the whole primary key (in a set together with Member),
	// and two tables must not share keys. It may name other columns: a row in which
	// one changes moves to its new key, and one in which it is NULL has none, and is
	// removed. Default {db}:{table}:{pk}.
	Key string `yaml:"key"`
	// Mode is the shape of the rows: hash, json, string, stream, set, zset or
	// invalidate. A hash has one field per column with the value as plain text and
	// no field for NULL; its version stands in the field _lockstep_v. A json string
	// holds the row as JSON, its version stands at the end under _lockstep.v. A
	// string is made of Value. A stream is the history of one row: an entry per
	// change with the fields op (c, u, r or d) and row (as JSON, none for d) under
	// the id epoch-seq of its version; changes that a newer one overtook in a batch
	// have no entry. A set and a zset have a member per row, for look-ups. With
	// invalidate the keys are an application's, and a change deletes them. Default
	// hash.
	Mode string `yaml:"mode"`
	// Value is the template of a string, for example {title}|{level}: any column,
	// nothing is escaped, NULL is an empty text. Only for mode string. Default
	// empty.
	Value string `yaml:"value"`
	// Member is the template of a row's member in a set or zset, for example
	// {question_id} under the key tag:{tag_id}:questions. Only for those. Default
	// empty.
	Member string `yaml:"member"`
	// Score is the column of a zset's scores: a number, or a date or time, which
	// becomes seconds since 1970. What a double cannot hold is rounded; NULL is a
	// member of nothing. Only for mode zset. Default empty.
	Score string `yaml:"score"`
	// MaxLen is how many entries a stream keeps, 1 to 1000000. Only for mode
	// stream. Default 100.
	MaxLen int `yaml:"maxlen"`
	// StaleField is a field that is set to 1 in the application's hash instead of
	// deleting it, for readers that may serve old rows while they read anew. The hash
	// of a deleted row is deleted. Only for mode invalidate. Default empty.
	StaleField string `yaml:"stale_field"`
}

// DefaultConfig is the Config of a server on this machine.
func DefaultConfig() Config {
	return Config{
		Addresses:     []string{"127.0.0.1:6379"},
		Mode:          ModeMirror,
		PipelineBytes: 1 << 20,
		Timeout:       5 * time.Second,
		TombstoneTTL:  14 * 24 * time.Hour,
		MaxValueBytes: 32 << 20,
	}
}

// DefaultTableConfig is what an empty field of a TableConfig means.
func DefaultTableConfig() TableConfig {
	return TableConfig{Key: "{db}:{table}:{pk}", Mode: ModeHash}
}

// defaultMaxLen is how many entries a stream keeps.
const defaultMaxLen = 100

// Check reports every mistake in c, one sentence each.
func (c Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Addresses) == 0 {
		bad("addresses: is empty; name one server or the seeds of a cluster as host:port")
	}
	for _, a := range c.Addresses {
		if i := strings.LastIndexByte(a, ':'); i < 1 || i == len(a)-1 {
			bad("addresses: %q is not host:port; write for example 127.0.0.1:6379", a)
		}
	}
	switch {
	case c.DB < 0 || c.DB > 1023:
		bad("db: %d is not a database number; use 0 to 1023 (default 0)", c.DB)
	case c.DB != 0 && c.cluster():
		bad("db: a cluster has only database 0, not %d; leave it out", c.DB)
	}
	if c.Password != "" && c.PasswordFile != "" {
		bad("password_file: password is set too; keep one of the two")
	}
	if c.Sentinel.Password != "" && c.Sentinel.PasswordFile != "" {
		bad("sentinel.password_file: sentinel.password is set too; keep one of the two")
	}
	if c.Sentinel.Master == "" && c.Sentinel != (Sentinel{}) {
		bad("sentinel.master: is empty while other fields of sentinel are set; name the master as the sentinels know it")
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		bad("tls: cert_file and key_file belong together; give both or neither")
	}
	if !c.TLS.Enabled && (TLS{}) != c.TLS {
		bad("tls.enabled: is false while other fields of tls are set; set it to true or leave them out")
	}
	if c.Mode != ModeMirror && c.Mode != ModeCache {
		bad("mode: %q is not known; use mirror or cache (default mirror)", c.Mode)
	}
	if c.PipelineBytes < 1024 || c.PipelineBytes > maxPipelineBytes {
		bad("pipeline_bytes: %d is out of range; use 1024 to %d (default 1048576)", c.PipelineBytes, maxPipelineBytes)
	}
	if c.Timeout < 100*time.Millisecond || c.Timeout > 5*time.Minute {
		bad("timeout: %s is out of range; use 100ms to 5m (default 5s)", c.Timeout)
	}
	if c.TombstoneTTL < minTombstoneTTL || c.TombstoneTTL > maxTombstoneTTL {
		bad("tombstone_ttl: %s is out of range; use 1h to 8784h (default 336h)", c.TombstoneTTL)
	}
	if c.MaxValueBytes < 1024 || c.MaxValueBytes > maxValueBytes {
		bad("max_value_bytes: %d is out of range; use 1024 to %d (default 33554432)", c.MaxValueBytes, maxValueBytes)
	}
	return errors.Join(errs...)
}

// cluster reports whether the addresses are seeds of a cluster.
func (c Config) cluster() bool { return len(c.Addresses) > 1 && c.Sentinel.Master == "" }

// Check reports every mistake in c, one sentence each. Empty fields mean the
// default.
func (c TableConfig) Check() error {
	c = c.withDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	parse := cdc.ParseKeyTemplate
	if c.sets() { // the member tells the rows apart
		parse = cdc.ParseTemplate
	}
	if _, err := parse(c.Key); err != nil {
		bad("key: %w", err)
	}
	if strings.HasPrefix(c.Key, ownPrefix) {
		bad("key: %q begins with %s, where versions are kept; begin with another word", c.Key, ownPrefix)
	}
	if _, ok := shapes[c.Mode]; !ok {
		bad("mode: %q is not known; use %s (default hash)", c.Mode, modes)
		return errors.Join(errs...)
	}
	// belongs reports a field that the mode needs and lacks, or has and does not know.
	belongs := func(field, text string, want, may bool, example string) {
		switch {
		case want && text == "":
			bad("%s: mode %s needs it; write for example %s", field, c.Mode, example)
		case !may && text != "":
			bad("%s: has no place in mode %s; leave it out", field, c.Mode)
		}
	}
	isString, isZset := c.Mode == ModeString, c.Mode == ModeZset
	belongs("value", c.Value, isString, isString, `"{title}|{level}"`)
	belongs("member", c.Member, c.sets(), c.sets(), `"{question_id}"`)
	belongs("score", c.Score, isZset, isZset, "created_at")
	belongs("stale_field", c.StaleField, false, c.Mode == ModeInvalidate, "")
	for field, text := range map[string]string{"value": c.Value, "member": c.Member} {
		if _, err := cdc.ParseTemplate(text); err != nil {
			bad("%s: %w", field, err)
		}
	}
	switch {
	case c.Mode != ModeStream && c.MaxLen != 0:
		bad("maxlen: has no place in mode %s; leave it out", c.Mode)
	case c.Mode == ModeStream && (c.MaxLen < 1 || c.MaxLen > 1_000_000):
		bad("maxlen: %d is out of range; use 1 to 1000000 (default %d)", c.MaxLen, defaultMaxLen)
	}
	return errors.Join(errs...)
}

func (c TableConfig) sets() bool { return c.Mode == ModeSet || c.Mode == ModeZset }

func (c TableConfig) withDefaults() TableConfig {
	d := DefaultTableConfig()
	if c.Key == "" {
		c.Key = d.Key
	}
	if c.Mode == "" {
		c.Mode = d.Mode
	}
	if c.Mode == ModeStream && c.MaxLen == 0 {
		c.MaxLen = defaultMaxLen
	}
	return c
}

// config is nil when TLS is off.
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
