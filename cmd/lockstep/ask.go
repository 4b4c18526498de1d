package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"lockstep/config"
	"lockstep/internal/certs"
)

// callerFlags say how a command proves to a process who asks, and whom it trusts.
type callerFlags struct{ ca, cert, key, name string }

func (f *callerFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.ca, "ca-file", "", "PEM file with the authorities of an address that is https (default admin.tls.cert_file, else those of the system)")
	flags.StringVar(&f.cert, "cert-file", "", "PEM file with a certificate to show, where admin.tls.client_ca_file asks for one")
	flags.StringVar(&f.key, "key-file", "", "PEM file with its key")
	flags.StringVar(&f.name, "server-name", "", "name in the certificate of the process, when it is not the host of its address")
}

// client is what processes are asked with; cfg may be nil.
func (f *callerFlags) client(cfg *config.Config) (*http.Client, error) {
	if (f.cert == "") != (f.key == "") {
		return nil, usageError{errors.New("--cert-file and --key-file go together; give both or neither")}
	}
	ca := f.ca
	if ca == "" && cfg != nil {
		ca = cfg.Admin.TLS.CertFile
	}
	way := http.DefaultTransport.(*http.Transport).Clone()
	way.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.name}
	if err := certs.Load(way.TLSClientConfig, ca, f.cert, f.key); err != nil {
		return nil, usageError{fmt.Errorf("--%s", strings.NewReplacer("tls.ca_file", "ca-file", "tls.cert_file", "cert-file").Replace(err.Error()))}
	}
	return &http.Client{Transport: way}, nil
}

// urlOf is where an address is asked: host:port alone is without TLS.
func urlOf(address string) string {
	if strings.HasPrefix(address, "https://") || strings.HasPrefix(address, "http://") {
		return strings.TrimSuffix(address, "/")
	}
	return "http://" + address
}
