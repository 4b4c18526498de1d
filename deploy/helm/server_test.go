package helm

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lockstep/internal/testenv"
	"lockstep/route/configmap"
)

// server is an API server of Kubernetes with its etcd. There is no kubelet and no
// controller: what is asked of it is stored, and nothing runs.
type server struct {
	t      *testing.T
	url    string
	ca     string // path
	client *http.Client
}

const adminToken = "admin-0123456789abcdef"

func newServer(t *testing.T) *server {
	t.Helper()
	dir := t.TempDir()
	etcd, peer, addr := testenv.FreeAddr(t), testenv.FreeAddr(t), testenv.FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	start(t, filepath.Join(dir, "etcd.log"), tool(t, "etcd"), "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--name=one",
		"--listen-client-urls=http://"+etcd, "--advertise-client-urls=http://"+etcd, "--listen-peer-urls=http://"+peer,
		"--initial-advertise-peer-urls=http://"+peer, "--initial-cluster=one=http://"+peer)
	key := filepath.Join(dir, "account.key")
	signer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(signer)}), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.WriteFile(tokens, []byte(adminToken+",admin,admin,system:masters\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, filepath.Join(dir, "apiserver.log"), tool(t, "kube-apiserver"), "--etcd-servers=http://"+etcd, "--bind-address=127.0.0.1", "--secure-port="+port,
		"--cert-dir="+filepath.Join(dir, "certs"), "--service-account-issuer=https://kubernetes.default", "--service-account-key-file="+key,
		"--service-account-signing-key-file="+key, "--token-auth-file="+tokens, "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24")
	s := &server{
		t: t, url: "https://" + addr, ca: filepath.Join(dir, "certs", "apiserver.crt"),
		client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	}
	s.await("the API server", func() bool {
		code, _, err := s.try(http.MethodGet, "/readyz", "", nil)
		return err == nil && code == http.StatusOK
	})
	return s
}

// start runs a program until the end of the test.
func start(t *testing.T, log, program string, args ...string) {
	t.Helper()
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = filepath.Dir(log), file, file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("the end of %s:\n%s", filepath.Base(log), text[max(0, len(text)-4000):])
		}
	})
}

func (s *server) await(what string, ready func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !ready(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s is not ready after five minutes", what)
		}
	}
}

func (s *server) try(method, path, kind string, body []byte) (code int, answer string, err error) {
	req, err := http.NewRequest(method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	req.Header.Set("Accept", "application/json")
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

// create posts an object and gives the server's message when it is refused.
func (s *server) create(path string, o any) error {
	s.t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.post(path, "application/json", text)
}

func (s *server) post(path, kind string, body []byte) error {
	s.t.Helper()
	code, answer, err := s.try(http.MethodPost, path, kind, body)
	if err != nil {
		s.t.Fatal(err)
	}
	if code == http.StatusCreated {
		return nil
	}
	var status struct{ Message string }
	_ = json.Unmarshal([]byte(answer), &status)
	return fmt.Errorf("%d: %s", code, status.Message)
}

func (s *server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// get reads an object; nil for none.
func (s *server) get(path string) object {
	s.t.Helper()
	code, answer, err := s.try(http.MethodGet, path, "", nil)
	if err != nil || code != http.StatusOK && code != http.StatusNotFound {
		s.t.Fatalf("GET %s: %d %v\n%s", path, code, err, answer)
	}
	if code == http.StatusNotFound {
		return nil
	}
	var o object
	s.must(json.Unmarshal([]byte(answer), &o))
	return o
}

// namespace makes one that takes only pods of the restricted profile.
func (s *server) namespace(name string) {
	s.t.Helper()
	s.must(s.create("/api/v1/namespaces", object{"metadata": object{"name": name, "labels": object{"pod-security.kubernetes.io/enforce": "restricted"}}}))
	for _, account := range []string{"default", "shop"} { // the first is a controller's to make, the second that of account.yaml
		s.must(s.create("/api/v1/namespaces/"+name+"/serviceaccounts", object{"metadata": object{"name": account}}))
	}
}

func (s *server) helm(args ...string) (string, error) {
	return helm(s.t, append(args, "--kube-apiserver", s.url, "--kube-token", adminToken, "--kube-ca-file", s.ca)...)
}

// plurals of the kinds that a render may have, behind the path of their API.
var plurals = map[string]string{
	"ConfigMap": "configmaps", "Service": "services", "ServiceAccount": "serviceaccounts", "Pod": "pods", "Deployment": "deployments",
	"PodDisruptionBudget": "poddisruptionbudgets", "HorizontalPodAutoscaler": "horizontalpodautoscalers", "NetworkPolicy": "networkpolicies",
	"Role": "roles", "RoleBinding": "rolebindings", "ServiceMonitor": "servicemonitors", "PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules",
	"ScaledObject": "scaledobjects",
}

func path(t *testing.T, o object, namespace string) string {
	version, kind := o["apiVersion"].(string), o["kind"].(string)
	plural, root := plurals[kind], "/apis/"
	if plural == "" {
		t.Fatalf("the test does not know the kind %s", kind)
	}
	if !strings.Contains(version, "/") {
		root = "/api/"
	}
	return root + version + "/namespaces/" + namespace + "/" + plural
}

// The whole chart on a real API server: everything it renders is taken, field by field,
// its pods by the restricted profile, and it can be installed, upgraded, rolled back and
// removed.
func TestTheChartOnAnAPIServer(t *testing.T) {
	s := newServer(t)
	for _, crd := range crds(t) {
		s.must(s.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "application/yaml", crd))
	}
	s.await("the custom kinds", func() bool {
		for _, group := range []string{"monitoring.coreos.com/v1/podmonitors", "monitoring.coreos.com/v1/servicemonitors", "monitoring.coreos.com/v1/prometheusrules", "keda.sh/v1alpha1/scaledobjects"} {
			if code, _, err := s.try(http.MethodGet, "/apis/"+group, "", nil); err != nil || code != http.StatusOK {
				return false
			}
		}
		return true
	})
	s.must(s.create("/apis/scheduling.k8s.io/v1/priorityclasses", object{"metadata": object{"name": "data"}, "value": 1}))

	for _, file := range valueSets(t) {
		set := strings.TrimSuffix(filepath.Base(file), ".yaml")
		s.namespace(set)
		text, err := render(t, chart, file)
		s.must(err)
		pods := 0
		for _, o := range objects(t, text) {
			at(o, "metadata").(object)["namespace"] = set
			if err := s.create(path(t, o, set)+"?dryRun=All&fieldValidation=Strict", o); err != nil {
				t.Errorf("%s: %s %s: %v", set, o["kind"], at(o, "metadata", "name"), err)
			}
			if o["kind"] == "ServiceAccount" { // no pod is taken without
				s.must(s.create(path(t, o, set), o))
			}
			if o["kind"] == "Pod" { // helm test --logs asks for its log as this does
				s.must(s.create(path(t, o, set), o))
				if code, answer, err := s.try(http.MethodGet, path(t, o, set)+"/"+at(o, "metadata", "name").(string)+"/log", "", nil); err != nil || code >= http.StatusBadRequest {
					t.Errorf("%s: the log of the test: %d %v %s", set, code, err, answer)
				}
			}
			if o["kind"] == "Deployment" {
				pods++
				pod := at(o, "spec", "template").(object)
				at(pod, "metadata").(object)["name"] = at(o, "metadata", "name")
				if err := s.create("/api/v1/namespaces/"+set+"/pods?dryRun=All&fieldValidation=Strict", pod); err != nil {
					t.Errorf("%s: a pod of %s: %v", set, at(o, "metadata", "name"), err)
				}
			}
		}
		if pods == 0 {
			t.Errorf("%s: no pods", set)
		}
	}

	t.Run("a pod outside the restricted profile is refused", func(t *testing.T) {
		text, err := helm(t, "template", "shop", chart, "--kube-version", "1.27.0", "--values", "testdata/values/minimal.yaml", "--set", "pod.containerSecurityContext.allowPrivilegeEscalation=true")
		s.must(err)
		for _, o := range objects(t, text) {
			if o["kind"] == "Deployment" {
				pod := at(o, "spec", "template").(object)
				at(pod, "metadata").(object)["name"] = "open"
				if err := s.create("/api/v1/namespaces/minimal/pods?dryRun=All", pod); err == nil || !strings.Contains(err.Error(), "violates PodSecurity") {
					t.Errorf("it is taken: %v", err)
				}
				return
			}
		}
	})
	t.Run("install, upgrade, roll back, remove", func(t *testing.T) {
		const at1 = "/apis/apps/v1/namespaces/installed/deployments/shop-lockstep-sink-"
		do := func(args ...string) {
			t.Helper()
			if out, err := s.helm(append(args, "--namespace", "installed")...); err != nil {
				t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		}
		s.namespace("installed")
		replicas := func() any { return at(s.get(at1+"search"), "spec", "replicas") }
		do("install", "shop", chart, "--values", "testdata/values/minimal.yaml")
		if got := replicas(); got != 2.0 || s.get(at1+"cache") == nil {
			t.Errorf("installed with %v replicas", got)
		}
		do("upgrade", "shop", chart, "--values", "testdata/values/sinks.yaml")
		if got := replicas(); got != 5.0 || s.get(at1+"cache") != nil {
			t.Errorf("upgraded to %v replicas", got)
		}
		do("rollback", "shop", "1")
		if got := replicas(); got != 2.0 || s.get(at1+"cache") == nil {
			t.Errorf("rolled back to %v replicas", got)
		}
		do("uninstall", "shop")
		if s.get(at1+"search") != nil || s.get("/api/v1/namespaces/installed/configmaps/shop-lockstep") != nil {
			t.Error("something stays behind")
		}
	})
	t.Run("the account writes its ConfigMap and no other", func(t *testing.T) {
		s.namespace("published")
		if out, err := s.helm("install", "shop", chart, "--namespace", "published", "--values", "testdata/values/routes.yaml"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		code, answer, err := s.try(http.MethodPost, "/api/v1/namespaces/published/serviceaccounts/shop-lockstep/token", "application/json", []byte(`{"spec": {}}`))
		if err != nil || code != http.StatusCreated {
			t.Fatalf("%d %v %s", code, err, answer)
		}
		var token object
		s.must(json.Unmarshal([]byte(answer), &token))
		authority, err := os.ReadFile(s.ca)
		s.must(err)
		account := t.TempDir()
		for name, text := range map[string]string{"ca.crt": string(authority), "token": at(token, "status", "token").(string), "namespace": "published"} {
			s.must(os.WriteFile(filepath.Join(account, name), []byte(text), 0o600))
		}
		for name, allowed := range map[string]bool{"shop-routes": true, "shop-lockstep": false, "other": false} {
			m, err := configmap.Open(s.url, account, "", name)
			s.must(err)
			err = m.Set(t.Context(), "routes.json", "{}")
			if err == nil {
				err = m.Set(t.Context(), "routes.json", `{"again": true}`)
			}
			if (err == nil) != allowed {
				t.Errorf("writing %s: %v", name, err)
			}
		}
	})
}
