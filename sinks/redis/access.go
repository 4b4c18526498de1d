package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"lockstep/internal/certs"
	"lockstep/internal/files"
)

// access makes connections with the login and the certificates that the configured
// files hold at that moment. They must be there and right at the start; one that is
// broken later, or half written, is left alone until it is whole.
type access struct {
	cfg Config
	log *slog.Logger

	mu       sync.Mutex
	tls      *tls.Config // nil without TLS
	password string
	trouble  string // that was logged last
}

func openAccess(cfg Config, log *slog.Logger) (*access, error) {
	a := &access{cfg: cfg, log: log}
	return a, a.read()
}

// read reads the files anew. Its errors begin with the field.
func (a *access) read() error {
	tlsConfig, err := a.cfg.TLS.config()
	if err != nil {
		return err
	}
	password, err := passwordOf(a.cfg.Password.Reveal(), a.cfg.PasswordFile)
	if err != nil {
		return err
	}
	a.tls, a.password = tlsConfig, password
	return nil
}

func passwordOf(text, file string) (string, error) {
	if file == "" {
		return text, nil
	}
	text, err := files.Secret(file)
	if err != nil {
		return "", fmt.Errorf("password_file: %w", err)
	}
	return text, nil
}

// present is what to connect with now.
func (a *access) present() (*tls.Config, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch err := a.read(); {
	case err == nil:
		a.trouble = ""
	case err.Error() != a.trouble:
		a.trouble = err.Error()
		a.log.Warn("a file of certificates or secrets cannot be used; going on with what it was", "error", err)
	}
	return a.tls, a.password
}

func (a *access) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: a.cfg.Timeout, KeepAlive: 30 * time.Second}
	config, _ := a.present()
	if config == nil {
		return plain.DialContext(ctx, network, addr)
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	conn, err := (&tls.Dialer{NetDialer: plain, Config: config}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, a.explain(err)
	}
	return secure{conn.(*tls.Conn), a}, nil
}

// secure is a connection with TLS. With TLS 1.3 a server refuses a certificate behind the handshake.
type secure struct {
	*tls.Conn
	of *access
}

func (s secure) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	return n, s.refused(err)
}

func (s secure) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	return n, s.refused(err)
}

func (s secure) refused(err error) error {
	if refused, ok := errors.AsType[*certs.Refusal](s.of.explain(err)); ok {
		return fmt.Errorf("%w", refused) // the driver takes one error off while it logs in
	}
	return err
}

func (a *access) explain(err error) error {
	return certs.Explain(err, "tls.", a.cfg.TLS.CAFile, a.cfg.TLS.CertFile)
}

func (a *access) login(context.Context) (username, password string, err error) {
	_, password = a.present()
	return a.cfg.Username, password, nil
}
