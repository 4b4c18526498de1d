package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"lockstep/internal/certs"
)

// access makes connections with the login that is configured and the certificates that
// the configured files hold at that moment. They must be there and right when they are
// configured; a file that is broken later, or half written, is left alone until it is
// whole. It is the login for the library, which asks for it at each connection.
type access struct {
	log *slog.Logger

	mu sync.Mutex
	credentials
	trouble string // that was logged last

	// A broker has shown a certificate that is right, and let this process in. Before that a
	// refusal is a mistake in the configuration, and from then on a change that is not
	// everywhere yet: servers and clients never change at the same moment.
	trusted, admitted bool
	told              time.Time // when the log heard last that it is refused now
}

// tellAgain is how often the log hears of a refusal that lasts.
const tellAgain = time.Minute

// credentials are what to make connections with.
type credentials struct {
	files TLS
	tls   *tls.Config // nil without TLS
	login sasl.Mechanism
}

// credentials reads the files. Its errors begin with the field.
func (c Config) credentials() (k credentials, err error) {
	k.files = c.TLS
	if k.tls, err = c.TLS.config(); err != nil {
		return k, err
	}
	if k.login, err = c.SASL.login(); err != nil {
		err = fmt.Errorf("sasl: %w", err)
	}
	return k, err
}

func (s SASL) login() (sasl.Mechanism, error) {
	switch s.Mechanism {
	case "plain":
		return plain.Mechanism{Username: s.Username, Password: s.Password.Reveal()}, nil
	case "scram-sha-256":
		return scram.Mechanism(scram.SHA256, s.Username, s.Password.Reveal())
	case "scram-sha-512":
		return scram.Mechanism(scram.SHA512, s.Username, s.Password.Reveal())
	}
	return nil, nil
}

func (a *access) use(k credentials) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.credentials, a.told = k, time.Time{}
}

// certificates are what to connect with now; nil without TLS.
func (a *access) certificates() *tls.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch conf, err := a.files.config(); {
	case err == nil:
		a.tls, a.trouble = conf, ""
	case err.Error() != a.trouble:
		a.trouble = err.Error()
		a.log.Warn("a file of kafka.tls cannot be used; going on with what it was", "error", err)
	}
	return a.tls
}

// dial connects, and shakes hands where TLS is on.
func (a *access) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: dialTimeout}
	conf := a.certificates()
	if conf == nil {
		return plain.DialContext(ctx, network, addr)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{NetDialer: plain, Config: conf}).DialContext(ctx, network, addr)
	if err == nil {
		a.mu.Lock()
		a.trusted = true
		a.mu.Unlock()
	}
	return conn, err
}

func (a *access) mechanism() sasl.Mechanism {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.login
}

// Name is that of the mechanism of this moment. When another one begins between this and
// Start, the broker refuses a connection, and the next one is right.
func (a *access) Name() string { return a.mechanism().Name() }

// Start begins a login.
func (a *access) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	steps, first, err := a.mechanism().Start(ctx)
	return &login{StateMachine: steps, of: a}, first, err
}

// login is one that is under way.
type login struct {
	sasl.StateMachine
	of *access
}

func (l *login) Next(ctx context.Context, challenge []byte) (done bool, response []byte, err error) {
	done, response, err = l.StateMachine.Next(ctx, challenge)
	if done && err == nil {
		l.of.mu.Lock()
		l.of.admitted = true
		l.of.mu.Unlock()
	}
	return done, response, err
}

// refusal reports whether an error says that one side does not take the other's login or
// certificate, which fields of the configuration that concerns, and whether the same was
// taken before.
func (a *access) refusal(err error) (fields string, before, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch code, _ := errors.AsType[kafkago.Error](err); code {
	case kafkago.SASLAuthenticationFailed:
		return "kafka.sasl.username and kafka.sasl.password, or what the file of kafka.sasl.password_file holds", a.admitted, true
	case kafkago.UnsupportedSASLMechanism, kafkago.IllegalSASLState:
		return "kafka.sasl.mechanism", a.admitted, true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		if a.files.CAFile == "" {
			return "kafka.tls.ca_file, which is empty and so stands for the system's authorities", a.trusted, true
		}
		return "kafka.tls.ca_file " + a.files.CAFile, a.trusted, true
	}
	_, explained := errors.AsType[*certs.Refusal](err)
	if explained || strings.Contains(err.Error(), "remote error: tls:") { // not every release of Go gives it a type
		return strings.TrimSpace("kafka.tls.cert_file " + a.files.CertFile), true, true
	}
	return "", false, false
}

// named says of a refusal which fields of the configuration it concerns. The log hears of
// one that comes after a login that was taken, because it will be tried again.
func (c *Client) named(err error) error {
	if err == nil {
		return nil
	}
	fields, before, ok := c.access.refusal(err)
	if !ok {
		return err
	}
	c.access.mu.Lock()
	defer c.access.mu.Unlock()
	err = certs.Explain(err, "kafka.tls.", c.access.files.CAFile, c.access.files.CertFile)
	if _, ok := errors.AsType[*certs.Refusal](err); !ok {
		err = fmt.Errorf("%s: refused: %w", fields, err)
	}
	if before && time.Since(c.access.told) > tellAgain {
		c.access.told = time.Now()
		c.log.Warn("kafka refuses a login or certificate that took its place; what is connected goes on, what is not tries again", "error", err)
	}
	return err
}

// Renew prepares that connections are made with the login and the certificates of another
// configuration; an error names a mistake in it or in the files that it names. When use is
// called, this begins; connections that are there stay until they end. Whether there is a
// login at all stays as it is.
func (c *Client) Renew(cfg Config) (use func(), err error) {
	k, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	return func() {
		c.access.use(k)
		go c.tryLogin(cfg.Brokers)
	}, nil
}

// tryLogin makes a connection, so that the log says at once whether the brokers take what
// is new, and not when they start again.
func (c *Client) tryLogin(brokers []string) {
	for _, broker := range brokers {
		ctx, cancel := context.WithTimeout(c.ctx, requestTimeout)
		conn, err := c.dialer.DialContext(ctx, "tcp", broker)
		if err == nil {
			_, err = conn.ApiVersions() // with TLS 1.3 a certificate is refused behind the handshake
			conn.Close()
		}
		cancel()
		if err == nil {
			c.log.Info("kafka takes the login and the certificates that have changed", "broker", broker)
			return
		}
		_ = c.named(err)
	}
}
