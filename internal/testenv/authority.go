package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const day = 24 * time.Hour

// Authority signs certificates for servers and clients on 127.0.0.1 and writes them
// into files, as servers and configurations name them.
type Authority struct {
	File string // its own certificate, in PEM
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority that is good for a day, as its certificates are.
func NewAuthority(t testing.TB, name string) *Authority {
	t.Helper()
	return NewAuthorityUntil(t, name, time.Now().Add(day))
}

// NewAuthorityUntil makes an authority that is good until then.
func NewAuthorityUntil(t testing.TB, name string, end time.Time) *Authority {
	t.Helper()
	a := &Authority{File: filepath.Join(t.TempDir(), "ca.crt")}
	template := certificate(name, end)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	var der []byte
	a.key, der = a.issue(t, template, template)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.File, "CERTIFICATE", der)
	return a
}

// Sign makes a certificate and its key (PKCS #8), for either side of a connection, and
// returns the names of their files in dir; what was there under the name is replaced.
func (a *Authority) Sign(t testing.TB, dir, name string) (cert, key string) {
	t.Helper()
	return a.SignUntil(t, dir, name, time.Now().Add(day))
}

// SignUntil makes a certificate that is good until then.
func (a *Authority) SignUntil(t testing.TB, dir, name string, end time.Time) (cert, key string) {
	t.Helper()
	template := certificate(name, end)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.IPAddresses = []net.IP{net.ParseIP(host)}
	pair, der := a.issue(t, template, a.cert)
	secret, err := x509.MarshalPKCS8PrivateKey(pair)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	writePEM(t, cert, "CERTIFICATE", der)
	writePEM(t, key, "PRIVATE KEY", secret)
	return cert, key
}

func certificate(name string, end time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: end.Add(-2 * day), NotAfter: end,
	}
}

// issue makes a key and signs its certificate; the authority's own with itself.
func (a *Authority) issue(t testing.TB, template, parent *x509.Certificate) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := a.key
	if signer == nil {
		signer = pair
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pair.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return pair, der
}

func writePEM(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
