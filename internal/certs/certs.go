// Package certs reads the certificate files that a TLS section names, and tells when files have changed.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"lockstep/internal/files"
)

// Load puts the authorities of caFile and the client's certificate of certFile and
// keyFile into conf; an empty name leaves that out. Its errors begin with the field
// of the section: "tls.ca_file: ...".
func Load(conf *tls.Config, caFile, certFile, keyFile string) error {
	if caFile != "" {
		var err error
		if conf.RootCAs, err = Authorities(caFile); err != nil {
			return fmt.Errorf("tls.ca_file: %w", err)
		}
	}
	if certFile != "" {
		pair, err := Pair(certFile, keyFile)
		if err != nil {
			return fmt.Errorf("tls.cert_file: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return nil
}

// Authorities reads the certificates of authorities.
func Authorities(file string) (*x509.CertPool, error) {
	pem, err := files.Read(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return pool, nil
}

// Pair reads a certificate and its key.
func Pair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := files.Read(certFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := files.Read(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}
