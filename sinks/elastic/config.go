package elastic

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"lockstep/cdc"
	"lockstep/internal/secret"
)

// What a deleted row leaves behind.
const (
	Hard      = "hard"
	Tombstone = "tombstone"
)

// Config says which Elasticsearch to write to and how.
type Config struct {
	// Addresses are the URLs of the cluster's nodes, such as https://es1:9200; requests go to them in turn, and one that does not answer is left out for a while. There is no default: set this or cloud_id.
	Addresses []string `yaml:"addresses"`
	// CloudID names a deployment on Elastic Cloud and stands in place of addresses. It is empty by default.
	CloudID string `yaml:"cloud_id"`
	// Username is the user to log in as. It is empty by default, which sends no login.
	Username string `yaml:"username"`
	// Password belongs to the username.
	Password secret.Text `yaml:"password"`
	// PasswordFile is a file that holds the password, in place of password. It is empty by default. This file, api_key_file and those of the certificates are read again when they change, while the sink runs: within 5s, and at once when the cluster refuses what they held.
	PasswordFile string `yaml:"password_file"`
	// APIKey is a base64 API key that is used instead of username and password. It is empty by default.
	APIKey secret.Text `yaml:"api_key"`
	// APIKeyFile is a file that holds the API key, in place of api_key. It is empty by default.
	APIKeyFile string `yaml:"api_key_file"`
	// CAFile is a file of PEM certificates that the cluster's certificate must be signed by. It is empty by default, which means the system's certificates.
	CAFile string `yaml:"ca_file"`
	// CertFile is a file with the PEM certificate that the sink shows to the cluster. It is empty by default, which shows none.
	CertFile string `yaml:"cert_file"`
	// KeyFile is a file with the PEM key that belongs to cert_file.
	KeyFile string `yaml:"key_file"`
	// BulkBytes is the size of a bulk request at which the next one begins; a larger document travels alone. It is 1024 to 104857600 bytes; the default is 5242880. Lower it when the cluster answers 429.
	BulkBytes int `yaml:"bulk_bytes"`
	// BulkDocs is how many documents a bulk request holds at most. It is 1 to 100000; the default is 1000.
	BulkDocs int `yaml:"bulk_docs"`
	// MaxDocumentBytes is the size of the largest document that is sent; a larger one becomes a dead letter. It is 1024 to 2147483647 bytes; the default is 94371840, a little below the cluster's own default limit http.max_content_length of 100 MB. Change it together with that.
	MaxDocumentBytes int `yaml:"max_document_bytes"`
	// Timeout is how long one request may take. The default is 30s. A request that took longer is sent again; the version guard makes that harmless.
	Timeout time.Duration `yaml:"timeout"`
	// Shards is the number of primary shards of an index that is created here. It is 1 to 1024; the default is 1. Raise it for tables above some 50 GB; an existing index keeps its number.
	Shards int `yaml:"shards"`
	// Replicas is the number of copies of each shard of an index that is created here. It is 0 to 10; the default is 1. Set 0 on a cluster of one node.
	Replicas int `yaml:"replicas"`
	// Deletes says what a deleted row leaves behind. hard, the default, deletes the document; its version is remembered for an hour and lost when a node restarts, and after that a change that comes late could bring the row back. tombstone writes a document {_lockstep: {v, deleted: true, at}} in its place, which the filter of the alias hides from searches and not from a GET by id, and which keeps every late change out.
	Deletes string `yaml:"deletes" jsonschema:"enum=hard,enum=tombstone"`
	// TombstoneKeep is how long a tombstone is kept. It is 1h to 8760h; the default is 336h, which is 14 days. Keep it longer than Kafka keeps changes and than a dead letter may wait for its replay.
	TombstoneKeep time.Duration `yaml:"tombstone_keep"`
	// RefreshInterval is how long a change may stay invisible to searches, of an index that is created here. The default is 1s.
	RefreshInterval time.Duration `yaml:"refresh_interval"`
}

// DefaultConfig holds the default of every field.
func DefaultConfig() Config {
	return Config{
		BulkBytes:        5 << 20,
		BulkDocs:         1000,
		MaxDocumentBytes: 90 << 20,
		Timeout:          30 * time.Second,
		Shards:           1,
		Replicas:         1,
		Deletes:          Hard,
		TombstoneKeep:    14 * 24 * time.Hour,
		RefreshInterval:  time.Second,
	}
}

// Check reports every field that is out of range.
func (c Config) Check() error {
	var errs []error
	number := func(name string, got, low, high, def int) {
		if got < low || got > high {
			errs = append(errs, fmt.Errorf("%s: %d is outside %d to %d (default %d)", name, got, low, high, def))
		}
	}
	if len(c.Addresses) == 0 && c.CloudID == "" {
		errs = append(errs, errors.New("no cluster is named; set addresses, for example [http://127.0.0.1:9200], or cloud_id"))
	}
	for i, a := range c.Addresses {
		if u, err := url.Parse(a); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			errs = append(errs, fmt.Errorf("addresses[%d]: %q is not a URL such as https://es1:9200", i, a))
		}
	}
	errs = append(errs, c.checkAccess()...)
	d := DefaultConfig()
	number("bulk_bytes", c.BulkBytes, 1<<10, 100<<20, d.BulkBytes)
	number("bulk_docs", c.BulkDocs, 1, 100_000, d.BulkDocs)
	number("max_document_bytes", c.MaxDocumentBytes, 1<<10, 1<<31-1, d.MaxDocumentBytes)
	number("shards", c.Shards, 1, 1024, d.Shards)
	number("replicas", c.Replicas, 0, 10, d.Replicas)
	if c.Timeout < 100*time.Millisecond || c.Timeout > 10*time.Minute {
		errs = append(errs, fmt.Errorf("timeout: %s is outside 100ms to 10m (default %s)", c.Timeout, d.Timeout))
	}
	if c.Deletes != Hard && c.Deletes != Tombstone {
		errs = append(errs, fmt.Errorf("deletes: %q is not known; use hard or tombstone (default hard)", c.Deletes))
	}
	if c.TombstoneKeep < time.Hour || c.TombstoneKeep > 8760*time.Hour {
		errs = append(errs, fmt.Errorf("tombstone_keep: %s is outside 1h to 8760h (default 336h)", c.TombstoneKeep))
	}
	if c.RefreshInterval < 100*time.Millisecond || c.RefreshInterval > time.Hour {
		errs = append(errs, fmt.Errorf("refresh_interval: %s is outside 100ms to 1h (default %s)", c.RefreshInterval, d.RefreshInterval))
	}
	return errors.Join(errs...)
}

// TableConfig says where the rows of a table go.
type TableConfig struct {
	// Index is the name of the alias that readers search; {db} and {table} stand for the names of the table, and upper-case letters become lower-case. The index behind a new alias is called like it with -000001 behind. The default is {db}_{table}.
	Index string `yaml:"index"`
	// Mapping replaces the generated field mapping of single columns, for example body: {type: text, analyzer: english}. It is used when the index is created or a column is added; of a field that is there, a sink that is started changes what Elasticsearch can change, such as ignore_malformed, and else holds the table until lockstep rebuild.
	Mapping map[string]any `yaml:"mapping"`
	// Shards overrides the number of primary shards for this table; 0, the default, means the sink's.
	Shards int `yaml:"shards"`
	// Routing is the column whose value routes the documents of the table, for example tenant_id: documents of one value live in one shard, and searches that name it ask only that. It is empty by default, which routes by _id. A GET by id then needs the routing, too. An existing index takes another routing only by a rebuild.
	Routing string `yaml:"routing"`
	// RoutingOfNull is the routing of rows whose routing column is NULL or empty. It has no default, and without it a column that may be NULL is refused.
	RoutingOfNull string `yaml:"routing_of_null"`
	// Deletes overrides for this table what a deleted row leaves behind: hard or tombstone; empty, the default, means what the sink says.
	Deletes string `yaml:"deletes" jsonschema:"enum=hard,enum=tombstone,enum="`
}

// CheckTable reports what keeps a table out of Elasticsearch as it is configured.
func (c TableConfig) CheckTable(t cdc.Table) error {
	errs := []error{CheckTable(t)}
	if c.Routing != "" {
		at := slices.IndexFunc(t.Columns, func(column cdc.Column) bool { return column.Name == c.Routing })
		switch {
		case at < 0:
			errs = append(errs, fmt.Errorf("routing: %s has no column %s; name one that it has", t.Name, c.Routing))
		case t.Columns[at].Nullable && c.RoutingOfNull == "":
			errs = append(errs, fmt.Errorf("routing: column %s of %s may be NULL, and a document without a routing would not be found; say in routing_of_null what stands for NULL, or make the column NOT NULL", c.Routing, t.Name))
		}
	}
	return errors.Join(errs...)
}

// DefaultTableConfig holds the default of every field.
func DefaultTableConfig() TableConfig { return TableConfig{Index: "{db}_{table}"} }

// Check reports every field that is out of range.
func (c TableConfig) Check() error {
	var errs []error
	if _, err := aliasOf(c.Index, "db", "table"); err != nil {
		errs = append(errs, fmt.Errorf("index: %w", err))
	}
	if c.Shards < 0 || c.Shards > 1024 {
		errs = append(errs, fmt.Errorf("shards: %d is outside 0 to 1024 (default 0, the sink's number)", c.Shards))
	}
	if c.Deletes != "" && c.Deletes != Hard && c.Deletes != Tombstone {
		errs = append(errs, fmt.Errorf("deletes: %q is not known; use hard or tombstone, or leave it empty for what the sink says", c.Deletes))
	}
	if c.RoutingOfNull != "" && c.Routing == "" {
		errs = append(errs, errors.New("routing_of_null: has no routing; name the column in routing"))
	}
	for column, m := range c.Mapping {
		if _, ok := m.(map[string]any); !ok {
			errs = append(errs, fmt.Errorf("mapping.%s: is not a field mapping such as {type: keyword}", column))
		}
	}
	return errors.Join(errs...)
}
