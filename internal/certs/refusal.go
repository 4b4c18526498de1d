package certs

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"lockstep/internal/files"
)

// Refusal is that one side of a connection does not take the certificate of the other, for it is
// out of date.
type Refusal struct {
	Problem, Mend string
	err           error
}

func (r *Refusal) Error() string { return r.Problem + "; " + r.Mend }
func (r *Refusal) Unwrap() error { return r.err }

// Explain makes a Refusal of the error of a connection, where it is one: what the two sides say
// themselves names neither the certificate nor its file. Any other error is as it was. caFile and
// certFile are those that were connected with, and section says where they are configured:
// "kafka.tls.".
func Explain(err error, section, caFile, certFile string) error {
	switch bad, ok := errors.AsType[x509.CertificateInvalidError](err); {
	case ok && bad.Reason == x509.Expired:
		shown, _ := errors.AsType[*tls.CertificateVerificationError](err)
		switch {
		case shown != nil && !slices.ContainsFunc(shown.UnverifiedCertificates, bad.Cert.Equal):
			return refusal(err, fmt.Sprintf("the authority %s in %s (%sca_file)", bad.Cert.Subject, cmp.Or(caFile, "the system's own"), section), bad.Cert, "put the one there that signs for the server now")
		case shown != nil && !bad.Cert.Equal(shown.UnverifiedCertificates[0]):
			return refusal(err, fmt.Sprintf("the certificate of %s, which the server shows with its own,", bad.Cert.Subject), bad.Cert, "give the server a new one")
		}
		return refusal(err, fmt.Sprintf("the certificate of the server (%s)", bad.Cert.Subject), bad.Cert, "give the server a new one")
	case err != nil && (strings.Contains(err.Error(), "remote error: tls:") || // not every release of Go gives it a type
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)): // who writes before it has read what was wrong hears this
		if bad := outdated(certFile); bad != nil {
			return refusal(err, fmt.Sprintf("the certificate in %s (%scert_file)", certFile, section), bad, "put a new one and its key there: they are read again")
		}
	}
	return err
}

func refusal(err error, which string, cert *x509.Certificate, mend string) *Refusal {
	if now := time.Now(); now.Before(cert.NotBefore) {
		return &Refusal{which + " is good only from " + cert.NotBefore.UTC().Format(time.RFC3339) + " on", "see to the clock of this machine, or wait", err}
	}
	return &Refusal{which + " expired on " + cert.NotAfter.UTC().Format(time.RFC3339), mend, err}
}

// outdated is the first certificate in a file that is not good now; nil for none.
func outdated(file string) *x509.Certificate {
	if file == "" {
		return nil
	}
	rest, err := files.Read(file)
	if err != nil {
		return nil
	}
	for now := time.Now(); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && (now.After(cert.NotAfter) || now.Before(cert.NotBefore)) {
			return cert
		}
	}
}
