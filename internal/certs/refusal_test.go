package certs

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"lockstep/internal/testenv"
)

// Whoever refuses a certificate that is out of date, the error says whose it is, in which file it
// stands and what to do; another error stays as it is.
func TestACertificateThatIsOutOfDateIsNamed(t *testing.T) {
	dir, past, future := t.TempDir(), time.Now().Add(-time.Minute), time.Now().Add(100*time.Hour)
	ca, others := testenv.NewAuthority(t, "ca"), testenv.NewAuthority(t, "others")
	old := testenv.NewAuthorityUntil(t, "old", past)
	type files struct{ cert, key string }
	sign := func(by *testenv.Authority, name string, end time.Time) files {
		cert, key := by.SignUntil(t, dir, name, end)
		return files{cert, key}
	}
	server, client := sign(ca, "server", time.Now().Add(time.Hour)), sign(ca, "client", time.Now().Add(time.Hour))
	expired := sign(ca, "expired", past)
	for what, tc := range map[string]struct {
		server, client files
		ca, want       string
	}{
		"a server that is out of date":     {expired, client, ca.File, "the certificate of the server (CN=expired) expired on " + past.UTC().Format(time.RFC3339) + "; give the server a new one"},
		"a server that is too early":       {sign(ca, "early", future), client, ca.File, "the certificate of the server (CN=early) is good only from "},
		"a client that is out of date":     {server, expired, ca.File, "the certificate in " + expired.cert + " (kafka.tls.cert_file) expired on " + past.UTC().Format(time.RFC3339) + "; put a new one and its key there: they are read again"},
		"an authority that is out of date": {sign(old, "of old", time.Now().Add(time.Hour)), client, old.File, "the authority CN=old in " + old.File + " (kafka.tls.ca_file) expired on "},
		"an authority that nobody knows":   {sign(others, "other", time.Now().Add(time.Hour)), client, ca.File, ""},
		"a client of others":               {server, sign(others, "stranger", time.Now().Add(time.Hour)), ca.File, ""},
		"a client that has no certificate": {server, files{}, ca.File, ""},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			err := refused(t, tc.server.cert, tc.server.key, ca.File, version, tc.ca, tc.client.cert, tc.client.key)
			got := Explain(err, "kafka.tls.", tc.ca, tc.client.cert)
			if tc.want == "" && got != err || tc.want != "" && !strings.HasPrefix(got.Error(), tc.want) {
				t.Errorf("%s: %v of %v; want %q", what, got, err, tc.want)
			}
			if !errors.Is(got, err) {
				t.Errorf("%s: what happened is lost", what)
			}
		}
	}
	if away := os.ErrDeadlineExceeded; Explain(away, "", ca.File, expired.cert) != away || Explain(nil, "", ca.File, expired.cert) != nil {
		t.Error("what is no refusal is made one")
	}
}

// refused is what a client hears of a server that asks for certificates of an authority.
func refused(t *testing.T, cert, key, clients string, version uint16, caFile, certFile, keyFile string) error {
	t.Helper()
	pair, err := Pair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := Authorities(clients)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, conn) // shakes hands
			conn.Close()
		}
	}()
	conf := &tls.Config{}
	if err := Load(conf, caFile, certFile, keyFile); err != nil {
		t.Fatal(err)
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Minute}, "tcp", listener.Addr().String(), conf)
	if err == nil {
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1)) // with TLS 1.3 a certificate is refused behind the handshake
	}
	if err == nil || err == io.EOF {
		t.Fatalf("nobody is refused: %v", err)
	}
	return err
}
