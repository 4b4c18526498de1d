package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"lockstep/internal/certs"
	"lockstep/internal/testenv"
)

// Whichever side refuses a certificate that is out of date, it is named: at once where a mistake of
// the configuration would be, and else to whoever has waited long enough.
func TestACertificateThatIsOutOfDateIsNamed(t *testing.T) {
	dir, past := t.TempDir(), time.Now().Add(-time.Minute)
	authority := testenv.NewAuthority(t, "all")
	good, goodKey := authority.Sign(t, dir, "good")
	old, oldKey := authority.SignUntil(t, dir, "old", past)
	pool, err := certs.Authorities(authority.File)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ broker, brokerKey, ours, oursKey, want string }{
		{old, oldKey, good, goodKey, "the certificate of the server (CN=old) expired on "},
		{good, goodKey, old, oldKey, "the certificate in " + old + " (kafka.tls.cert_file) expired on "},
	} {
		pair, err := certs.Pair(tc.broker, tc.brokerKey)
		if err != nil {
			t.Fatal(err)
		}
		broker, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
		if err != nil {
			t.Fatal(err)
		}
		defer broker.Close()
		go func() {
			for {
				conn, err := broker.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(io.Discard, conn); conn.Close() }()
			}
		}()
		cfg := DefaultConfig()
		cfg.Brokers, cfg.TLS = []string{broker.Addr().String()}, TLS{Enabled: true, CAFile: authority.File, CertFile: tc.ours, KeyFile: tc.oursKey}
		c, err := Open(cfg, "test", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err = c.Topics(ctx)
		if refused, ok := errors.AsType[*certs.Refusal](err); !ok || !strings.HasPrefix(refused.Problem, tc.want) {
			t.Errorf("%v; want %q", err, tc.want)
		}
	}
}
