package tracing

import (
	"errors"
	"fmt"
	"net/url"

	"lockstep/internal/secret"
)

// Config says to whom single changes are told of, and which ones (docs/tracing.md).
type Config struct {
	// Endpoint is the URL of an OpenTelemetry collector that takes OTLP over HTTP, such as
	// http://127.0.0.1:4318; without a path, /v1/traces is added. Empty, which is the default, traces nothing.
	Endpoint string `yaml:"endpoint"`
	// Sample is the share of the transactions that is traced, 0 to 1. The default is 0.001. Of
	// a transaction, 100 row images are traced at most.
	Sample float64 `yaml:"sample"`
	// Comments has those changes traced, too, whose statement has a traceparent in a comment at its beginning or end, when
	// its flag says sampled. The source must have binlog_rows_query_log_events on. Default true.
	Comments bool `yaml:"comments"`
	// Authorization is sent to the collector in the header of that name, for example Bearer and a
	// token. Empty by default, which sends none.
	Authorization secret.Text `yaml:"authorization"`
	// ca_file is a PEM file with the authorities that may have signed the collector's
	// certificate. Empty by default, which means the system's own.
	CAFile string `yaml:"ca_file"`
}

// DefaultConfig traces nothing.
func DefaultConfig() Config { return Config{Sample: 0.001, Comments: true} }

// Check returns every mistake, joined, each as one sentence that begins with its field.
func (c Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Endpoint != "" {
		if u, err := url.Parse(c.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			bad("endpoint: is no URL with http or https; write for example http://127.0.0.1:4318")
		} else if u.User != nil {
			bad("endpoint: has a login in it; give it in authorization or authorization_file")
		}
	}
	if !(c.Sample >= 0 && c.Sample <= 1) {
		bad("sample: %v is no share; use 0 to 1 (default %v)", c.Sample, DefaultConfig().Sample)
	}
	return errors.Join(errs...)
}
