package mysql

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"lockstep/cdc"
	"lockstep/internal/certs"
	"lockstep/internal/secret"
)

// Config says which server to read and how.
type Config struct {
	// Addr is the server's host:port. It has no default.
	Addr string `yaml:"addr"`
	// User is the account to read with. It needs SELECT on the captured tables,
	// REPLICATION SLAVE and REPLICATION CLIENT, and no more. It has no default.
	User string `yaml:"user"`
	// Password of the account.
	Password secret.Text `yaml:"password"`
	// ServerID is the replica id under which the server knows this reader, 1 to
	// 4294967295. It must differ from the id of every server and replica of the
	// topology. It has no default.
	ServerID uint32 `yaml:"server_id"`
	// TLS of the connection.
	TLS TLS `yaml:"tls"`
	// ZeroDates says what a zero or invalid date such as 0000-00-00 becomes: as_null,
	// as_text (the digits as MySQL prints them) or stop. Default as_null. Use stop when
	// a zero date is a mistake that must be seen.
	ZeroDates string `yaml:"zero_dates"`
	// Geometry says what a GEOMETRY, POINT and the like becomes: geojson (an object),
	// wkt (text) or wkb (the server's bytes in base64: the SRID in four bytes, then
	// WKB). Default geojson. Longitude comes before latitude in all of them. An SRID
	// other than 0 stands in the object's crs, or before the text as SRID=4326;.
	Geometry string `yaml:"geometry"`
	// UnloggedCascades says what to do with a captured table whose foreign key changes
	// rows by ON DELETE or ON UPDATE CASCADE or SET NULL on a server that does not log
	// those changes (MariaDB, MySQL before 9.6, or innodb_native_foreign_keys=ON): refuse
	// or accept. Default refuse, because such rows would go missing quietly.
	UnloggedCascades string `yaml:"unlogged_cascades"`
	// AfterAlter says what becomes of rows that an ALTER TABLE has given other columns
	// or values: recopy or leave. Default recopy: the table is copied anew beside the
	// log, so that every row in the sinks has its new shape. With leave, rows keep
	// their old shape there until they change; use it where a copy costs too much.
	AfterAlter string `yaml:"after_alter"`
	// HelperTables says what to do with the tables that gh-ost and pt-online-schema-change
	// make beside the one they alter (_orders_gho, _orders_ghc, _orders_del, _orders_new,
	// _orders_old): skip or capture. Default skip: a pattern of tables[].match does
	// not take them; an entry that names one in full does.
	HelperTables string `yaml:"helper_tables"`
	// ConnectTimeout bounds one attempt to connect. Default 10s.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// ReadTimeout is how long the log may be silent, heartbeats included, before
	// the connection counts as lost. Default 15s, at least 5s. A server that has nothing
	// to tell sends a heartbeat every second.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// CheckpointInterval is how often the position is handed on to be saved while
	// transactions arrive. Default 50ms. A longer one re-reads more after a crash.
	CheckpointInterval time.Duration `yaml:"checkpoint_interval"`
	// Snapshot says how the rows of tables are copied beside the log.
	Snapshot Snapshot `yaml:"snapshot"`
	// MaskSalt is the secret with which tables[].mask hashes values (sha256). Equal
	// values get equal hashes under one salt, in all tables. It has 16 characters at
	// least; make it with openssl rand -hex 32. It has no default. With another salt,
	// rows keep their old hashes until they change or the table is copied again.
	MaskSalt secret.Text `yaml:"mask_salt"`
	// Masks gives the masks of a table; nil is none. It is no field of the file, which
	// has them in tables[].mask.
	Masks func(cdc.TableName) Masks `yaml:"-" json:"-"`
}

// Snapshot says how fast rows are copied, and what goes before.
type Snapshot struct {
	// Readers is how many connections read rows at once, of several tables or of
	// parts of one. Default 3, 1 to 32. More load the source more.
	Readers int `yaml:"readers"`
	// ChunkTime is how long one SELECT should take; the number of its rows follows
	// from it. Default 200ms, 1ms to 1m.
	ChunkTime time.Duration `yaml:"chunk_time"`
	// ChunkRows is the largest number of rows of one SELECT. Default 20000.
	ChunkRows int `yaml:"chunk_rows"`
	// ChunkBytes bounds the rows that one reader holds in memory, in bytes. A single
	// row may be larger. Default 4194304.
	ChunkBytes int `yaml:"chunk_bytes"`
	// RowsPerSecond bounds what all readers read together. 0 is no bound. Default 0.
	RowsPerSecond int `yaml:"rows_per_second"`
	// MaxThreadsRunning pauses copying while the source has more threads running than
	// this, the readers included. 0 never pauses. Default 50.
	MaxThreadsRunning int `yaml:"max_threads_running"`
	// MaxLag pauses copying while the capture is further behind the source than this.
	// 0 never pauses. Default 10s.
	MaxLag time.Duration `yaml:"max_lag"`
}

// TLS says how the connection is encrypted and whom to trust.
type TLS struct {
	// Mode is disabled, required (encrypted, the server's certificate is not
	// checked) or verify (the certificate must match). Default disabled.
	Mode string `yaml:"mode"`
	// CAFile holds the certificates to trust, in PEM. Default: those of the system.
	CAFile string `yaml:"ca_file"`
	// CertFile is the client's certificate, in PEM, where the server asks for one.
	CertFile string `yaml:"cert_file"`
	// KeyFile is the key of the client's certificate, in PEM.
	KeyFile string `yaml:"key_file"`
	// ServerName is the name in the server's certificate. Default: the host of addr.
	ServerName string `yaml:"server_name"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		TLS:                TLS{Mode: "disabled"},
		ZeroDates:          zeroNull,
		Geometry:           geometryJSON,
		UnloggedCascades:   "refuse",
		AfterAlter:         alterRecopy,
		HelperTables:       helpersSkip,
		ConnectTimeout:     10 * time.Second,
		ReadTimeout:        15 * time.Second,
		CheckpointInterval: 50 * time.Millisecond,
		Snapshot: Snapshot{Readers: 3, ChunkTime: 200 * time.Millisecond, ChunkRows: 20_000, ChunkBytes: 4 << 20,
			MaxThreadsRunning: 50, MaxLag: 10 * time.Second},
	}
}

// Check names every mistake in c, each with the way out.
func (c Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		bad("addr: %q is not host:port; write for example mysql.internal:3306", c.Addr)
	}
	if c.User == "" {
		bad("user: is empty; name the account with REPLICATION SLAVE, REPLICATION CLIENT and SELECT")
	}
	if c.ServerID == 0 {
		bad("server_id: 0 is not allowed; use a number from 1 to 4294967295 that no server or replica of the topology has")
	}
	switch c.ZeroDates {
	case zeroNull, zeroText, zeroStop:
	default:
		bad("zero_dates: %q is not known; use as_null, as_text or stop (default as_null)", c.ZeroDates)
	}
	switch c.Geometry {
	case geometryJSON, geometryWKT, geometryWKB:
	default:
		bad("geometry: %q is not known; use geojson, wkt or wkb (default geojson)", c.Geometry)
	}
	if c.UnloggedCascades != "refuse" && c.UnloggedCascades != "accept" {
		bad("unlogged_cascades: %q is not known; use refuse or accept (default refuse)", c.UnloggedCascades)
	}
	if c.AfterAlter != alterRecopy && c.AfterAlter != alterLeave {
		bad("after_alter: %q is not known; use recopy or leave (default recopy)", c.AfterAlter)
	}
	if c.HelperTables != helpersSkip && c.HelperTables != helpersCapture {
		bad("helper_tables: %q is not known; use skip or capture (default skip)", c.HelperTables)
	}
	if c.ConnectTimeout <= 0 {
		bad("connect_timeout: %s is too short; use for example 10s (default 10s)", c.ConnectTimeout)
	}
	if c.ReadTimeout < 5*time.Second {
		bad("read_timeout: %s is too short; use 5s or more (default 15s)", c.ReadTimeout)
	}
	if c.CheckpointInterval < 10*time.Millisecond || c.CheckpointInterval > time.Minute {
		bad("checkpoint_interval: %s is out of range; use 10ms to 1m (default 50ms)", c.CheckpointInterval)
	}
	if n := len(c.MaskSalt); n > 0 && n < shortestSalt {
		bad("mask_salt: has %d characters, which can be guessed; use %d or more, made with: openssl rand -hex 32", n, shortestSalt)
	}
	n := c.Snapshot
	if n.Readers < 1 || n.Readers > 32 {
		bad("snapshot.readers: %d is out of range; use 1 to 32 (default 3)", n.Readers)
	}
	if n.ChunkTime < time.Millisecond || n.ChunkTime > time.Minute {
		bad("snapshot.chunk_time: %s is out of range; use 1ms to 1m (default 200ms)", n.ChunkTime)
	}
	if n.ChunkRows < 1 {
		bad("snapshot.chunk_rows: %d is too small; use 1 or more (default 20000)", n.ChunkRows)
	}
	if n.ChunkBytes < 1 {
		bad("snapshot.chunk_bytes: %d is too small; use for example 4194304 (default 4194304)", n.ChunkBytes)
	}
	if n.RowsPerSecond < 0 {
		bad("snapshot.rows_per_second: %d is negative; use 0 for no bound (default 0)", n.RowsPerSecond)
	}
	if n.MaxThreadsRunning < 0 {
		bad("snapshot.max_threads_running: %d is negative; use 0 to copy whatever the load (default 50)", n.MaxThreadsRunning)
	}
	if n.MaxLag < 0 {
		bad("snapshot.max_lag: %s is negative; use 0 to copy however far behind (default 10s)", n.MaxLag)
	}
	switch c.TLS.Mode {
	case "disabled", "required", "verify":
	default:
		bad("tls.mode: %q is not known; use disabled, required or verify (default disabled)", c.TLS.Mode)
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		bad("tls.cert_file: cert_file and key_file go together; set both or neither")
	}
	return errors.Join(errs...)
}

// policy is what the configuration says about values.
type policy struct {
	zeroDates, geometry string
	masks               func(cdc.TableName) Masks
	maskSalt            secret.Text
}

func (c Config) policy() policy { return policy{c.ZeroDates, c.Geometry, c.Masks, c.MaskSalt} }

// CheckFiles reports what is wrong with the files that t names.
func (t TLS) CheckFiles() error {
	_, err := t.client("localhost:0")
	return err
}

// client returns the TLS configuration, nil when TLS is disabled.
func (t TLS) client(addr string) (*tls.Config, error) {
	if t.Mode == "disabled" {
		return nil, nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.Mode == "required"}
	if t.ServerName != "" {
		cfg.ServerName = t.ServerName
	}
	if err := certs.Load(cfg, t.CAFile, t.CertFile, t.KeyFile); err != nil {
		return nil, fmt.Errorf("source.%w", err)
	}
	return cfg, nil
}
