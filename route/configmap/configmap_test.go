package configmap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// server is an API server over TLS, and the service account of a pod that may ask it.
type server struct {
	*httptest.Server
	account  string
	requests []request
	answer   func(w http.ResponseWriter)
}

type request struct{ method, uri, kind, token, body string }

func newServer(t *testing.T) *server {
	s := &server{account: t.TempDir(), answer: func(w http.ResponseWriter) { w.WriteHeader(http.StatusCreated) }}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		s.requests = append(s.requests, request{r.Method, r.URL.RequestURI(), r.Header.Get("Content-Type"), r.Header.Get("Authorization"), string(body)})
		s.answer(w)
	}))
	t.Cleanup(s.Close)
	s.file(t, "ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	s.file(t, "token", "first\n")
	s.file(t, "namespace", "shop\n")
	return s
}

func (s *server) file(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.account, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAKeyIsAppliedWithTheTokenOfNow(t *testing.T) {
	s := newServer(t)
	m, err := Open(s.URL, s.account, "", "lockstep-route")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Set(t.Context(), "routes.json", `{"tables":[]}`); err != nil {
		t.Fatal(err)
	}
	s.file(t, "token", "second")
	s.answer = func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) }
	if err := m.Set(t.Context(), "routes.json", "later"); err != nil {
		t.Fatal(err)
	}
	if len(s.requests) != 2 {
		t.Fatalf("%+v", s.requests)
	}
	first := s.requests[0]
	if want := (request{"PATCH", "/api/v1/namespaces/shop/configmaps/lockstep-route?fieldManager=lockstep&force=true", "application/apply-patch+yaml", "Bearer first", first.body}); first != want {
		t.Errorf("asked %+v\nwant %+v", first, want)
	}
	var sent struct {
		APIVersion, Kind string
		Metadata         struct{ Name, Namespace string }
		Data             map[string]string
	}
	if err := json.Unmarshal([]byte(first.body), &sent); err != nil || sent.APIVersion != "v1" || sent.Kind != "ConfigMap" || sent.Metadata.Name != "lockstep-route" || sent.Metadata.Namespace != "shop" || sent.Data["routes.json"] != `{"tables":[]}` {
		t.Errorf("sent %s, %v", first.body, err)
	}
	if token := s.requests[1].token; token != "Bearer second" {
		t.Errorf("after the token was replaced it sends %q", token)
	}
}

func TestWhatTheServerRefusesIsSaidWithTheWayOut(t *testing.T) {
	s := newServer(t)
	m, err := Open(s.URL, s.account, "other", "routes")
	if err != nil {
		t.Fatal(err)
	}
	s.answer = func(w http.ResponseWriter) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"kind":"Status","message":"configmaps is forbidden"}`)
	}
	err = m.Set(t.Context(), "k", "v")
	if err == nil || !strings.Contains(err.Error(), "ConfigMap other/routes") || !strings.Contains(err.Error(), "configmaps is forbidden") || !strings.Contains(err.Error(), "create and patch") {
		t.Errorf("%v", err)
	}
}

// A server that the pod's certificate does not vouch for gets no token.
func TestAStrangeServerGetsNoToken(t *testing.T) {
	s, other := newServer(t), httptest.NewUnstartedServer(nil)
	asked := false
	other.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true })
	other.StartTLS()
	defer other.Close()
	s.file(t, "ca.crt", strange(t))
	m, err := Open(other.URL, s.account, "shop", "routes")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Set(t.Context(), "k", "v"); err == nil || asked {
		t.Errorf("asked: %t, %v", asked, err)
	}
}

func TestAPodWithoutAnAccountIsToldWhatItLacks(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	if _, err := InPod(none, "", "routes"); err == nil || !strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") {
		t.Errorf("outside of Kubernetes: %v", err)
	}
	s := newServer(t)
	for _, lacks := range [][2]string{{"namespace", "namespace of the pod"}, {"ca.crt", "service account"}} {
		name, want := lacks[0], lacks[1]
		if err := os.Remove(filepath.Join(s.account, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(s.URL, s.account, "", "routes"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", name, err)
		}
	}
	s.file(t, "ca.crt", "nothing")
	if _, err := Open(s.URL, s.account, "", "routes"); err == nil || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("a file that is none: %v", err)
	}
}

// strange is a certificate of somebody else.
func strange(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
}
