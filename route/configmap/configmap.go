// Package configmap keeps a ConfigMap of Kubernetes with one key as it is told.
//
// It asks the API server with what Kubernetes gives to every pod: its address in the
// environment, a certificate and a token in files. The token is read anew for every request,
// for Kubernetes replaces it.
package configmap

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// account is where a pod finds its service account.
const account = "/var/run/secrets/kubernetes.io/serviceaccount"

// Map is one ConfigMap.
type Map struct {
	server    string // https://host:port
	namespace string
	name      string
	token     string // path
	client    *http.Client
}

// timeout bounds one request.
const timeout = 5 * time.Second

// InPod finds the API server as a pod does; an empty namespace is that of the pod.
func InPod(env func(string) (string, bool), namespace, name string) (*Map, error) {
	host, _ := env("KUBERNETES_SERVICE_HOST")
	port, _ := env("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; it works in a pod of Kubernetes alone")
	}
	return Open("https://"+net.JoinHostPort(host, port), account, namespace, name)
}

// Open takes the account from the files ca.crt, token and namespace of a directory.
func Open(server, account, namespace, name string) (*Map, error) {
	authority, err := os.ReadFile(filepath.Join(account, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("the pod has no service account: %w; set automountServiceAccountToken", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(account, "ca.crt"))
	}
	if namespace == "" {
		text, err := os.ReadFile(filepath.Join(account, "namespace"))
		if err != nil {
			return nil, fmt.Errorf("the namespace of the pod is not known: %w", err)
		}
		namespace = strings.TrimSpace(string(text))
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, IdleConnTimeout: time.Minute}
	return &Map{server, namespace, name, filepath.Join(account, "token"), &http.Client{Transport: transport, Timeout: timeout}}, nil
}

// Set gives the ConfigMap a key, and makes it when it is not there. Other keys stay.
func (m *Map) Set(ctx context.Context, key, value string) error {
	token, err := os.ReadFile(m.token)
	if err != nil {
		return fmt.Errorf("the token of the service account: %w", err)
	}
	// A server-side apply: it owns the fields that it names and makes what is not there.
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": m.name, "namespace": m.namespace},
		"data":     map[string]string{key: value},
	})
	if err != nil {
		return err
	}
	address := fmt.Sprintf("%s/api/v1/namespaces/%s/configmaps/%s?fieldManager=lockstep&force=true", m.server, url.PathEscape(m.namespace), url.PathEscape(m.name))
	req, err := http.NewRequestWithContext(ctx, http.MethodPatch, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/apply-patch+yaml") // JSON is YAML
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	res, err := m.client.Do(req)
	if err != nil {
		return fmt.Errorf("apply ConfigMap %s/%s: %w", m.namespace, m.name, err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10)) // to its end, so that the connection can be used again
	if res.StatusCode == http.StatusOK || res.StatusCode == http.StatusCreated {
		return nil
	}
	var status struct{ Message string }
	if json.Unmarshal(text, &status) != nil || status.Message == "" {
		status.Message = "it does not say why"
	}
	mend := ""
	if res.StatusCode == http.StatusForbidden {
		mend = "; give the service account the verbs create and patch on configmaps there"
	}
	return fmt.Errorf("apply ConfigMap %s/%s: the API server answers %s: %s%s", m.namespace, m.name, res.Status, status.Message, mend)
}
