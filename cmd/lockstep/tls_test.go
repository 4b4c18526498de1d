package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"lockstep/internal/testenv"
)

// The server speaks HTTPS, knows its clients by certificates and by tokens, and takes new
// certificates over while it runs; commands can ask it.
func TestTheAdminServerSpeaksTLSAndAsksForCertificates(t *testing.T) {
	dir := t.TempDir()
	signs := testenv.NewAuthority(t, "ca")
	ca := signs.File
	cert, key := signs.Sign(t, dir, "server")
	mine, myKey := signs.Sign(t, dir, "me")
	other, otherKey := testenv.NewAuthority(t, "strangers").Sign(t, dir, "other")
	viewer := file(t, "viewer", "viewer-0123456789abcdef\n")
	c := newCounter(t, fmt.Sprintf(`listen: "127.0.0.1:0", tls: {cert_file: %q, key_file: %q, client_ca_file: %q}, tokens: [{name: victor, role: viewer, file: %q}]`, cert, key, ca, viewer))
	address := "https://" + c.serving()

	roots := x509.NewCertPool()
	authority, err := os.ReadFile(ca)
	if err != nil || !roots.AppendCertsFromPEM(authority) {
		t.Fatal(err)
	}
	get := func(path string, certificates ...tls.Certificate) (status int, serial string, err error) {
		way := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certificates}}
		defer way.CloseIdleConnections()
		res, err := (&http.Client{Transport: way, Timeout: time.Minute}).Get(address + path)
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		return res.StatusCode, res.TLS.PeerCertificates[0].SerialNumber.String(), nil
	}
	me, err := tls.LoadX509KeyPair(mine, myKey)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := tls.LoadX509KeyPair(other, otherKey)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 401, "/v1/status": 401, "/debug/pprof/": 401} {
		if status, _, err := get(path); status != want {
			t.Errorf("%s without a certificate: %d, %v", path, status, err)
		}
		if status, _, err := get(path, stranger); err == nil && status == 200 && want != 200 {
			t.Errorf("%s with the certificate of a stranger: %d", path, status)
		}
	}
	if status, _, err := get("/metrics", me); status != 200 {
		t.Errorf("/metrics with a certificate: %d, %v", status, err)
	}
	if status, _, err := get("/v1/status", me); status != 401 {
		t.Errorf("a certificate stands for a token: %d, %v", status, err)
	}
	ask := []string{"status", "--address", address, "--ca-file", ca}
	if got := c.run(append(ask, "--cert-file", mine, "--key-file", myKey)...); got.code != 0 {
		t.Errorf("%+v", got)
	}
	for want, flags := range map[string][]string{
		"show a certificate that an authority of admin.tls.client_ca_file has signed": nil,
		"--cert-file and --key-file go together":                                      {"--cert-file", mine},
		"--ca-file: open nowhere":                                                     {"--ca-file", "nowhere"},
	} {
		if got := c.run(append(ask, flags...)...); got.code == 0 || !strings.Contains(got.stderr, want) {
			t.Errorf("%v: %+v", flags, got)
		}
	}

	_, before, err := get("/healthz")
	if err != nil {
		t.Fatal(err)
	}
	signs.Sign(t, dir, "server")
	for deadline := time.After(time.Minute); ; {
		_, now, err := get("/healthz")
		if err == nil && now != before {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			t.Fatalf("the new certificate is not used: %v", err)
		}
	}
}
