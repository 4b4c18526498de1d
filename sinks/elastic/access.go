package elastic

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"lockstep/internal/certs"
	"lockstep/internal/files"
)

// lookAgain is how often the files of certificates and secrets are looked at while
// all is well. When the cluster refuses what they hold, they are looked at at once.
const lookAgain = 5 * time.Second

// errNotElasticsearch is what a server gets that answers like Elasticsearch and does
// not say that it is one.
var errNotElasticsearch = errors.New("the server does not say that it is Elasticsearch; Lockstep writes to Elasticsearch 8 and 9, and OpenSearch or an older release behaves otherwise where it matters")

// access carries requests to the cluster with the login and the certificates that
// the configured files hold at the moment.
type access struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	way     *http.Transport
	login   string // the Authorization header; empty for none
	stamps  map[string]certs.Stamp
	looked  time.Time
	trouble string // that was logged last
}

// openAccess reads the files. They must be there and right at the start; one that is
// broken later, or half written, is left alone until it is whole.
func openAccess(cfg Config, log *slog.Logger) (*access, error) {
	a := &access{cfg: cfg, log: log, stamps: certs.Stamps(cfg.files()...)}
	var err error
	a.way, a.login, err = cfg.credentials()
	a.looked = time.Now()
	return a, err
}

// files are those whose content may change while the sink runs.
func (c Config) files() (names []string) {
	for _, name := range []string{c.CAFile, c.CertFile, c.KeyFile, c.PasswordFile, c.APIKeyFile} {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// credentials reads certificates and secrets. Its errors begin with the field.
func (c Config) credentials() (way *http.Transport, login string, err error) {
	way = http.DefaultTransport.(*http.Transport).Clone()
	way.MaxIdleConnsPerHost = 64 // partitions write side by side
	way.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if err := certs.Load(way.TLSClientConfig, c.CAFile, c.CertFile, c.KeyFile); err != nil {
		return nil, "", errors.New(strings.TrimPrefix(err.Error(), "tls.")) // there is no such section here
	}
	password, err := secretOf(c.Password.Reveal(), c.PasswordFile)
	if err != nil {
		return nil, "", fmt.Errorf("password_file: %w", err)
	}
	key, err := secretOf(c.APIKey.Reveal(), c.APIKeyFile)
	if err != nil {
		return nil, "", fmt.Errorf("api_key_file: %w", err)
	}
	switch {
	case key != "":
		login = "ApiKey " + key
	case c.Username != "":
		login = "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+password))
	}
	return way, login, nil
}

// secretOf is the text itself, or what the file holds without the line's end.
func secretOf(text, file string) (string, error) {
	if file == "" {
		return text, nil
	}
	return files.Secret(file)
}

// RoundTrip sends a request. One that is refused for its login or its certificate is
// not repeated here: whoever asked does so, with what the files hold then.
func (a *access) RoundTrip(req *http.Request) (*http.Response, error) {
	way, login := a.present(false)
	if login != "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", login)
	}
	res, err := way.RoundTrip(req)
	switch {
	case err != nil:
		if ofTLS(err) {
			a.present(true)
		}
		return nil, certs.Explain(err, "", a.cfg.CAFile, a.cfg.CertFile)
	case res.StatusCode == http.StatusUnauthorized:
		a.present(true)
	case res.StatusCode < 300 && res.Header.Get("X-Elastic-Product") != "Elasticsearch":
		res.Body.Close()
		return nil, errNotElasticsearch
	}
	return res, nil
}

// ofTLS reports whether an error may pass with another certificate.
func ofTLS(err error) bool {
	var record tls.RecordHeaderError
	var verify *tls.CertificateVerificationError
	var alert tls.AlertError
	var unknown x509.UnknownAuthorityError
	return errors.As(err, &record) || errors.As(err, &verify) || errors.As(err, &alert) || errors.As(err, &unknown) ||
		strings.Contains(err.Error(), "remote error: tls:") // not every release of Go gives it a type
}

// present is what to send requests with. It looks at the files now and then, and
// now when the cluster has just refused what they held.
func (a *access) present(refused bool) (*http.Transport, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	names := a.cfg.files()
	if len(names) == 0 || !refused && time.Since(a.looked) < lookAgain {
		return a.way, a.login
	}
	a.looked = time.Now()
	stamps := certs.Stamps(names...)
	if maps.Equal(stamps, a.stamps) {
		return a.way, a.login
	}
	way, login, err := a.cfg.credentials()
	if err != nil {
		if text := err.Error(); text != a.trouble {
			a.trouble = text
			a.log.Warn("a file of certificates or secrets has changed and cannot be used; going on with what it was", "error", err)
		}
		return a.way, a.login
	}
	a.way.CloseIdleConnections() // those under way end by themselves
	a.way, a.login, a.stamps, a.trouble = way, login, stamps, ""
	a.log.Info("certificates and secrets read anew", "files", strings.Join(names, " "))
	return a.way, a.login
}

func (a *access) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.way.CloseIdleConnections()
}

// checkAccess reports what contradicts itself.
func (c Config) checkAccess() []error {
	var errs []error
	beside := func(one, other string, set bool) {
		if set {
			errs = append(errs, fmt.Errorf("%s: stands beside %s; set one of them", one, other))
		}
	}
	password, key := cmp.Or(string(c.Password), c.PasswordFile) != "", cmp.Or(string(c.APIKey), c.APIKeyFile) != ""
	beside("api_key", "username", key && c.Username != "")
	beside("password_file", "password", c.Password != "" && c.PasswordFile != "")
	beside("api_key_file", "api_key", c.APIKey != "" && c.APIKeyFile != "")
	beside("cloud_id", "addresses", c.CloudID != "" && len(c.Addresses) > 0)
	if password && c.Username == "" {
		errs = append(errs, errors.New("password: has no username"))
	}
	for name, file := range map[string]string{"password_file": c.PasswordFile, "api_key_file": c.APIKeyFile} {
		if _, err := secretOf("", file); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("cert_file: goes together with key_file; set both or neither"))
	}
	return errs
}
