package admin

import (
	"errors"
	"fmt"
	"net"
	"regexp"
)

// Config is the HTTP server for operators: /metrics, /healthz, /readyz and the API under
// /v1 (docs/api.md).
type Config struct {
	// Listen is the host:port to listen on. The default is 127.0.0.1:8080; an address
	// that other machines can reach, such as 0.0.0.0:8080, needs tokens. An empty text
	// turns the server off. /metrics, /healthz and /readyz are open to everybody who can
	// reach it.
	Listen string `yaml:"listen"`
	// MetricsListen is a second host:port, which serves /metrics, /healthz and /readyz and
	// nothing else, such as 0.0.0.0:9090: probes and scrapes then reach them while the API
	// stays on loopback. The default is empty: they are served at listen alone, where they
	// are in any case.
	MetricsListen string `yaml:"metrics_listen"`
	// Tokens are the bearer tokens of those who may use the API under /v1. Without any,
	// it can be read by whoever is on this machine, and nobody can write. Default empty.
	Tokens []Token `yaml:"tokens"`
	// ImportBytes is the largest body of POST /v1/dlq/import in bytes, 1048576 to
	// 68719476736; the default is 268435456. It is kept in the directory for temporary files
	// (TMPDIR) until it is imported, and a process takes two at once. Each letter in it costs
	// some 300 bytes of memory meanwhile. Raise it, or export and import in parts, when an
	// export is larger.
	ImportBytes int64 `yaml:"import_bytes"`
	// OpenRoute lets whoever can reach the server read GET /v1/route and what is below it
	// without a token: gateways that hold none. It tells names of tables and sinks, their
	// state and what a store said last. Default false.
	OpenRoute bool `yaml:"open_route"`
	// TLS of the server. Default off.
	TLS TLS `yaml:"tls"`
}

// Token lets its holder in.
type Token struct {
	// Name is who holds the token. It stands in the audit log. It is 1 to 100 letters,
	// digits, dots, @, _ and -.
	Name string `yaml:"name" jsonschema:"required"`
	// Role is viewer, who may read, or operator, who may also write: skip dead letters,
	// for one.
	Role Role `yaml:"role" jsonschema:"required,enum=viewer,enum=operator"`
	// File is the path of the file that holds the token: 20 or more letters, digits and
	// the characters -._~+/= on one line. It must not be open to all (chmod 600 or 640).
	// It is read again for every request, so that a token that is changed or taken away
	// counts at once.
	File string `yaml:"file" jsonschema:"required"`
}

// DefaultConfig listens on loopback and has no tokens.
func DefaultConfig() Config { return Config{Listen: "127.0.0.1:8080", ImportBytes: 256 << 20} }

var tokenName = regexp.MustCompile(`^[A-Za-z0-9.@_-]{1,100}$`)

// Check returns every mistake, joined, each as one sentence that begins with its field.
func (c Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Listen != "" {
		host, port, err := net.SplitHostPort(c.Listen)
		switch {
		case err != nil || port == "":
			bad("listen: %q is not host:port; write for example 127.0.0.1:8080", c.Listen)
		case len(c.Tokens) == 0 && !loopback(host):
			bad("listen: %s can be reached from other machines and no tokens say who may; name some in admin.tokens, or listen on 127.0.0.1:%s", c.Listen, port)
		}
	}
	if c.MetricsListen != "" {
		_, port, err := net.SplitHostPort(c.MetricsListen)
		switch {
		case err != nil || port == "":
			bad("metrics_listen: %q is not host:port; write for example 0.0.0.0:9090", c.MetricsListen)
		case c.MetricsListen == c.Listen:
			bad("metrics_listen: %s is what listen says already, which serves /metrics, too; leave it out, or take another port", c.MetricsListen)
		}
	}
	if wrong := map[bool]string{c.ImportBytes < 1<<20: "small", c.ImportBytes > 64<<30: "large"}[true]; wrong != "" {
		bad("import_bytes: %d is too %s; use 1048576 to 68719476736 (default %d)", c.ImportBytes, wrong, DefaultConfig().ImportBytes)
	}
	if err := c.TLS.Check(); err != nil {
		errs = append(errs, err)
	}
	names, files := map[string]bool{}, map[string]bool{}
	for i, t := range c.Tokens {
		at := fmt.Sprintf("tokens[%d]", i)
		switch {
		case !tokenName.MatchString(t.Name):
			bad("%s.name: %q is no name; use 1 to 100 letters, digits, dots, @, _ and -", at, t.Name)
		case names[t.Name]:
			bad("%s.name: %s has a token already; give each holder a name of his own", at, t.Name)
		}
		switch {
		case t.File == "":
			bad("%s.file: is empty; give the path of the file that holds the token", at)
		case files[t.File]:
			bad("%s.file: %s is another token's already; each needs its own", at, t.File)
		}
		if t.Role != Viewer && t.Role != Operator {
			bad("%s.role: %q is not known; use viewer or operator", at, t.Role)
		}
		names[t.Name], files[t.File] = true, true
	}
	return errors.Join(errs...)
}

// loopback reports whether only this machine can reach a host.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
