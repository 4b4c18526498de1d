package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// selfSigned writes a certificate and its key.
func selfSigned(t *testing.T, cert, key string) {
	t.Helper()
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &pair.PublicKey, pair)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(pair)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A certificate that is replaced counts, one that is broken does not and is told of once.
func TestCertificatesAreReadAgainWhenTheyChange(t *testing.T) {
	dir := t.TempDir()
	files := TLS{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}
	if _, err := OpenCertificates(files, slog.Default()); err == nil || !strings.HasPrefix(err.Error(), "admin.tls.cert_file: open ") {
		t.Errorf("got %v", err)
	}
	selfSigned(t, files.CertFile, files.KeyFile)
	files.ClientCAFile = files.CertFile
	var log strings.Builder
	c, err := OpenCertificates(files, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	first := c.Config()
	if first.ClientCAs == nil || len(first.Certificates) != 1 {
		t.Errorf("%+v", first)
	}
	look := func() { c.looked = time.Time{} }
	if look(); c.Config() != first {
		t.Error("files that are as they were are another configuration")
	}
	if err := os.WriteFile(files.CertFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if look(); c.Config() != first {
			t.Error("a broken certificate is used")
		}
	}
	if n := strings.Count(log.String(), "stay as they were"); n != 1 {
		t.Errorf("the log tells of it %d times: %s", n, &log)
	}
	selfSigned(t, files.CertFile, files.KeyFile)
	if look(); c.Config() == first || len(c.Config().Certificates) != 1 {
		t.Error("the new certificate is not used")
	}
}

func TestTLSIsWholeOrNotThere(t *testing.T) {
	for want, c := range map[string]TLS{
		"": {}, "tls.cert_file: cert_file and key_file go together": {CertFile: "c"},
		"tls.client_ca_file: there is no TLS without": {ClientCAFile: "a"},
	} {
		config := DefaultConfig()
		config.TLS = c
		if err := config.Check(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
