package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sign writes a certificate and its key: of an authority when by is empty, else of somebody
// whom the authority of that name has signed.
func sign(t *testing.T, dir, name, by string) (cert, key string) {
	t.Helper()
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: by == "", BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1")}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := template, any(pair)
	if by != "" {
		authority, err := tls.LoadX509KeyPair(filepath.Join(dir, by+".crt"), filepath.Join(dir, by+".key"))
		if err != nil {
			t.Fatal(err)
		}
		parent, signer = authority.Leaf, authority.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &pair.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(pair)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// The server speaks HTTPS, knows its clients by certificates and by tokens, and takes new
// certificates over while it runs; commands can ask it.
func TestTheAdminServerSpeaksTLSAndAsksForCertificates(t *testing.T) {
	dir := t.TempDir()
	ca, _ := sign(t, dir, "ca", "")
	sign(t, dir, "strangers", "")
	cert, key := sign(t, dir, "server", "ca")
	mine, myKey := sign(t, dir, "me", "ca")
	other, otherKey := sign(t, dir, "other", "strangers")
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
	sign(t, dir, "server", "ca")
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
