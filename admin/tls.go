package admin

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"time"

	"lockstep/internal/certs"
)

// TLS says with which certificate the server proves who it is, and who may come.
type TLS struct {
	// CertFile is a PEM file with the server's certificate, and with those between it and the
	// authority that clients know. With it the server speaks HTTPS alone. It is read again
	// when it changes. Default empty, no TLS.
	CertFile string `yaml:"cert_file"`
	// KeyFile is a PEM file with the key of cert_file, read again with it. Default empty.
	KeyFile string `yaml:"key_file"`
	// ClientCAFile is a PEM file with the authorities whose certificates clients must show, for
	// all but /healthz and /readyz, and beside their token. It is read again when it changes.
	// Default empty: clients need no certificate.
	ClientCAFile string `yaml:"client_ca_file"`
}

// On reports whether the server speaks HTTPS.
func (t TLS) On() bool { return t.CertFile != "" }

// Check returns every mistake, joined.
func (t TLS) Check() error {
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		return errors.New("tls.cert_file: cert_file and key_file go together; set both or neither")
	case t.ClientCAFile != "" && t.CertFile == "":
		return errors.New("tls.client_ca_file: there is no TLS without a certificate of the server; set cert_file and key_file, too")
	}
	return nil
}

// lookAgain is how often the files are looked at.
const lookAgain = time.Second

// Certificates has what the files of a TLS hold. What a file holds that is broken later, or
// half written, is left alone until it is whole.
type Certificates struct {
	files TLS
	log   *slog.Logger

	mu      sync.Mutex
	conf    *tls.Config
	stamps  map[string]certs.Stamp
	looked  time.Time
	trouble string // that was logged last
}

// OpenCertificates reads the files, and refuses those that are not right. It is nil for no
// TLS.
func OpenCertificates(files TLS, log *slog.Logger) (*Certificates, error) {
	if !files.On() {
		return nil, nil
	}
	c := &Certificates{files: files, log: log, stamps: files.stamps(), looked: time.Now()}
	var err error
	c.conf, err = files.read()
	return c, err
}

// Config is what connections begin with from now on.
func (c *Certificates) Config() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < lookAgain {
		return c.conf
	}
	c.looked = time.Now()
	stamps := c.files.stamps()
	if maps.Equal(stamps, c.stamps) {
		return c.conf
	}
	conf, err := c.files.read()
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	switch {
	case err == nil:
		c.conf, c.stamps = conf, stamps
		c.log.Info("the certificates of the admin server were read again")
	case trouble != c.trouble:
		c.log.Warn("the certificates of the admin server stay as they were until their files are mended", "error", err)
	}
	c.trouble = trouble
	return c.conf
}

func (t TLS) stamps() map[string]certs.Stamp {
	return certs.Stamps(t.CertFile, t.KeyFile, t.ClientCAFile)
}

func (t TLS) read() (*tls.Config, error) {
	pair, err := certs.Pair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("admin.tls.cert_file: %w", err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if t.ClientCAFile == "" {
		return conf, nil
	}
	if conf.ClientCAs, err = certs.Authorities(t.ClientCAFile); err != nil {
		return nil, fmt.Errorf("admin.tls.client_ca_file: %w", err)
	}
	conf.ClientAuth = tls.VerifyClientCertIfGiven
	return conf, nil
}

// Known has a handler answer only those who have shown a certificate, where files name the
// authorities for it. It is for connections by Certificates, which refuse a wrong one.
func (t TLS) Known(h http.Handler) http.Handler {
	if t.ClientCAFile == "" {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			answerProblem(w, problem(http.StatusUnauthorized, "certificate_missing", "show a certificate that an authority of admin.tls.client_ca_file has signed"), "")
			return
		}
		h.ServeHTTP(w, r)
	})
}
