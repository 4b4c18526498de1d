package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"lockstep/internal/collector"
	"lockstep/internal/testenv"
)

type object = map[string]any

// at walks down into an object; what is not there is nil.
func at(v any, path ...string) any {
	for _, key := range path {
		m, _ := v.(object)
		v = m[key]
	}
	return v
}

func list(v any) []any { l, _ := v.([]any); return l }

// secretsApart takes the secrets and the files out of a configuration, puts them into Secrets
// and returns values of the chart that name these.
func secretsApart(t *testing.T, config string) (values object, inCluster map[string]map[string]string) {
	t.Helper()
	text, err := os.ReadFile(config)
	must(t, err)
	var cfg object
	must(t, yaml.Unmarshal(text, &cfg))
	inCluster = map[string]map[string]string{}
	password := func(name string, section any, field, key string) object {
		value, ok := at(section, field).(string)
		if !ok {
			t.Fatalf("%s has no %s", name, field)
		}
		delete(section.(object), field)
		inCluster[name] = map[string]string{key: value + "\n"}
		return object{"existingSecret": name}
	}
	certificates := func(name string, section any) object {
		files := map[string]string{}
		for field, key := range map[string]string{"ca_file": "ca.crt", "cert_file": "tls.crt", "key_file": "tls.key"} {
			content, err := os.ReadFile(at(section, field).(string))
			must(t, err)
			files[key] = string(content)
			delete(section.(object), field)
		}
		inCluster[name] = files
		return object{"existingSecret": name, "cert": "tls.crt", "key": "tls.key"}
	}
	source, kafka := at(cfg, "source"), at(cfg, "kafka")
	search, cache := at(cfg, "sinks", "search", "elastic"), at(cfg, "sinks", "cache", "redis")
	token, err := os.ReadFile(at(list(at(cfg, "admin", "tokens"))[0], "file").(string))
	must(t, err)
	inCluster["tokens"] = map[string]string{"ann": string(token)}
	delete(cfg, "admin")
	return object{
		"config": cfg,
		"secrets": object{
			"source": object{"password": password("mysql", source, "password", "password"), "maskSalt": password("salt", source, "mask_salt", "mask-salt"), "tls": certificates("mysql-tls", at(source, "tls"))},
			"kafka":  object{"password": password("kafka", at(kafka, "sasl"), "password", "password"), "tls": certificates("kafka-tls", at(kafka, "tls"))},
			"sinks": object{
				"search": object{"password": password("es", search, "password", "password"), "tls": certificates("es-tls", search)},
				"cache":  object{"password": password("redis", cache, "password", "password"), "tls": certificates("redis-tls", at(cache, "tls"))},
			},
			"tokens": []object{{"name": "ann", "role": "operator", "existingSecret": "tokens", "key": "ann"}},
		},
	}, inCluster
}

// render is what Helm makes of the chart with values.
func render(t *testing.T, values object) (all []object) {
	t.Helper()
	root, dir := testenv.Root(t), t.TempDir()
	tool, err := exec.Command(filepath.Join(root, "deploy/local/kubernetes/tools"), "helm").Output()
	must(t, err)
	text, err := yaml.Marshal(values)
	must(t, err)
	file := filepath.Join(dir, "values.yaml")
	must(t, os.WriteFile(file, text, 0o600))
	cmd := exec.Command(strings.TrimSpace(string(tool)), "template", "quiz", filepath.Join(root, "deploy/helm/lockstep"), "--namespace", "bank", "--kube-version", "1.27.0", "--values", file)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+dir, "HELM_CONFIG_HOME="+dir, "HELM_DATA_HOME="+dir)
	out, err := cmd.Output()
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("helm template: %v\n%s", err, ended.Stderr)
	}
	must(t, err)
	for d := yaml.NewDecoder(strings.NewReader(string(out))); ; {
		var one object
		if err := d.Decode(&one); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
}

// pod is the only container of a pod, as a kubelet runs it: with the words, the variables and the
// files that the manifest says, and nothing else. The files are in a directory of their own, and
// the ports are free ones, because there is one machine for all.
type pod struct {
	name      string
	args, env []string
	container any
	metrics   string // host:port, in place of port 9090
	api       string // host:port of admin.listen
	binary    string
	log       string // path
	ended     chan struct{}
	cmd       *exec.Cmd
}

func (s *secured) pod(t *testing.T, name string, spec any, configMaps map[string]object, inCluster map[string]map[string]string) *pod {
	t.Helper()
	if n := len(list(at(spec, "containers"))) + len(list(at(spec, "initContainers"))); n != 1 {
		t.Fatalf("%s has %d containers, and helm test --logs and kubectl logs show nothing of it unless one is chosen", name, n)
	}
	dir := t.TempDir()
	p := &pod{name: name, container: list(at(spec, "containers"))[0], metrics: testenv.FreeAddr(t), binary: s.binary, log: filepath.Join(dir, "log")}
	ours := strings.NewReplacer("/etc/lockstep", dir+"/etc/lockstep", `:9090`, p.metrics)
	write := func(mount any, path, content string, mode os.FileMode) {
		path = filepath.Join(dir, at(mount, "mountPath").(string), path)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(content), mode))
	}
	for _, mount := range list(at(p.container, "volumeMounts")) {
		i := slices.IndexFunc(list(at(spec, "volumes")), func(v any) bool { return at(v, "name") == at(mount, "name") })
		if i < 0 {
			t.Fatalf("%s mounts %v, which is no volume", name, at(mount, "name"))
		}
		volume := list(at(spec, "volumes"))[i]
		if from, ok := at(volume, "configMap", "name").(string); ok {
			for path, content := range at(configMaps[from], "data").(object) {
				write(mount, path, ours.Replace(content.(string)), 0o644)
			}
		}
		for _, source := range list(at(volume, "projected", "sources")) {
			for _, item := range list(at(source, "secret", "items")) {
				from, key := at(source, "secret", "name").(string), at(item, "key").(string)
				content, ok := inCluster[from][key]
				if !ok {
					t.Fatalf("%s waits for the key %s of the Secret %s for ever", name, key, from)
				}
				write(mount, at(item, "path").(string), content, os.FileMode(at(volume, "projected", "defaultMode").(uint64)))
			}
		}
	}
	for _, word := range list(at(p.container, "args")) {
		p.args = append(p.args, word.(string))
	}
	p.api = testenv.FreeAddr(t)
	for _, one := range list(at(p.container, "env")) {
		if at(one, "name") != "LOCKSTEP_ADMIN_LISTEN" {
			p.env = append(p.env, fmt.Sprintf("%s=%s", at(one, "name"), ours.Replace(at(one, "value").(string))))
		}
	}
	p.env = append(p.env, "LOCKSTEP_ADMIN_LISTEN="+p.api)
	return p
}

// run is the command with other words in the place of its last ones, and what it says and ends with.
func (p *pod) run(t *testing.T, last ...string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.binary, append(p.args[:len(p.args)-len(last):len(p.args)-len(last)], last...)...)
	cmd.Env = p.env
	text, err := cmd.CombinedOutput()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

func (p *pod) start(t *testing.T) {
	t.Helper()
	log, err := os.Create(p.log)
	must(t, err)
	defer log.Close()
	p.cmd, p.ended = exec.Command(p.binary, p.args...), make(chan struct{})
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.env, log, log
	must(t, p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			said, _ := os.ReadFile(p.log)
			t.Logf("the end of the log of %s:\n%s", p.name, said[max(0, len(said)-3000):])
		}
	})
}

func (p *pod) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// answers reports whether the process passes a probe.
func (p *pod) answers(t *testing.T, probe string) bool {
	t.Helper()
	select {
	case <-p.ended:
		t.Fatalf("%s has ended", p.name)
	default:
	}
	if port := at(p.container, probe, "httpGet", "port"); port != "metrics" {
		t.Fatalf("the %s of %s asks port %v", probe, p.name, port)
	}
	response, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + p.metrics + at(p.container, probe, "httpGet", "path").(string))
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// served has the chart serve the API over TLS and tell a collector that wants TLS and a login of every
// change. It returns the authority of both, and the collector.
func served(t *testing.T, values object, inCluster map[string]map[string]string) (trusted *x509.CertPool, traces *collector.Collector) {
	t.Helper()
	ca := testenv.NewAuthority(t, "of the cluster")
	authority, err := os.ReadFile(ca.File)
	must(t, err)
	trusted = x509.NewCertPool()
	trusted.AppendCertsFromPEM(authority)
	cert, key := ca.Sign(t, t.TempDir(), "api")
	pair, err := tls.LoadX509KeyPair(cert, key)
	must(t, err)
	files := map[string]string{}
	for name, path := range map[string]string{"tls.crt": cert, "tls.key": key} {
		text, err := os.ReadFile(path)
		must(t, err)
		files[name] = string(text)
	}
	traces = collector.New(t)
	behind, err := url.Parse(traces.URL)
	must(t, err)
	front := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(behind))
	front.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	front.StartTLS()
	t.Cleanup(front.Close)
	inCluster["api-tls"], inCluster["otel"] = files, map[string]string{"authorization": "Bearer of-the-traces\n", "ca.crt": string(authority)}
	secrets := values["secrets"].(object)
	secrets["admin"] = object{"tls": object{"existingSecret": "api-tls"}}
	secrets["tracing"] = object{"authorization": object{"existingSecret": "otel"}, "ca": object{"existingSecret": "otel"}}
	values["config"].(object)["tracing"] = object{"endpoint": front.URL, "sample": 1}
	return trusted, traces
}

// asked is what the API of a pod answers an operator who trusts these authorities; nil is the system's own.
func (p *pod) asked(t *testing.T, trusted *x509.CertPool) (status int, err error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+p.api+"/v1/status", nil)
	must(t, err)
	request.Header.Set("Authorization", "Bearer "+secrets["token"])
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}, DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

// What the chart makes of the configuration runs as its manifests say, every workload of it,
// against servers that let nobody in without certificate and password; and helm test says
// whether changes travel.
func (s *secured) pods(t *testing.T) {
	values, inCluster := secretsApart(t, s.config)
	trusted, traces := served(t, values, inCluster)
	values["sink"] = object{"replicas": 1}
	configMaps, all := map[string]object{}, []*pod{}
	objects := render(t, values)
	for _, o := range objects {
		if o["kind"] == "ConfigMap" {
			configMaps[at(o, "metadata", "name").(string)] = o
		}
	}
	// For the other pod of helm test the network ends before Redis.
	away := list(at(values, "config", "sinks", "cache", "redis", "addresses"))[0].(string)
	cut := map[string]object{}
	for name, o := range configMaps {
		data := maps.Clone(at(o, "data").(object))
		for path, content := range data {
			data[path] = strings.ReplaceAll(content.(string), away, testenv.FreeAddr(t))
		}
		cut[name] = object{"data": data}
	}
	var tests []*pod
	for _, o := range objects {
		name, _ := at(o, "metadata", "name").(string)
		switch o["kind"] {
		case "Deployment":
			for range at(o, "spec", "replicas").(uint64) {
				all = append(all, s.pod(t, name, at(o, "spec", "template", "spec"), configMaps, inCluster))
			}
		case "Pod":
			tests = append(tests, s.pod(t, name, o["spec"], configMaps, inCluster), s.pod(t, name, o["spec"], cut, inCluster))
		}
	}
	if len(all) != 6 || len(tests) != 2 { // two captures, two sinks, the reconciler and the API
		t.Fatalf("%d pods and %d tests", len(all), len(tests))
	}
	for _, p := range all {
		p.start(t)
	}
	for _, p := range all {
		for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
			await(t, time.Minute, "the "+probe+" of "+p.name, func() bool { return p.answers(t, probe) })
		}
	}
	s.sql("UPDATE questions SET views = views + 1")
	if out, code := tests[0].run(t); code != 0 {
		t.Errorf("helm test ended with %d:\n%s", code, out)
	}
	s.same()
	if out, code := tests[1].run(t); code == 0 || !regexp.MustCompile(`FAIL +sink cache +reachable `).MatchString(out) || !strings.Contains(out, "so no barrier was asked") {
		t.Errorf("without Redis helm test ended with %d:\n%s", code, out)
	}
	for _, p := range all {
		if p.name != "quiz-lockstep-admin" {
			continue
		}
		if status, err := p.asked(t, trusted); status != http.StatusOK {
			t.Errorf("over TLS the API answers %d, %v", status, err)
		}
		if _, err := p.asked(t, nil); !errors.As(err, new(x509.UnknownAuthorityError)) && !errors.As(err, new(*tls.CertificateVerificationError)) {
			t.Errorf("who trusts another authority is told %v", err)
		}
		host, _, _ := strings.Cut(p.api, ":")
		cmd := exec.CommandContext(t.Context(), p.binary, "status", "--server-name", host)
		cmd.Env = p.env
		if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 0 && cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("status inside the pod: %v\n%s", err, out)
		}
	}
	await(t, time.Minute, "the spans of a change", func() bool {
		came := map[string]bool{}
		for _, span := range traces.Spans() {
			came[span.Name] = true
		}
		return came["capture "+s.table("questions")] && came["sink search"] && came["sink cache"]
	})
	for _, login := range traces.Logins() {
		if login != "Bearer of-the-traces" {
			t.Fatalf("the collector is sent the login %q", login)
		}
	}

	for _, p := range all {
		if p.name == "quiz-lockstep-sink-cache" {
			p.kill()
		}
	}
	s.sql("UPDATE questions SET views = views + 1")
	if out, code := tests[0].run(t, "3s"); code == 0 || !strings.Contains(out, "sink cache") || !strings.Contains(out, "lacks something that was committed") {
		t.Errorf("without a sink helm test ended with %d:\n%s", code, out)
	}
	for _, p := range all {
		p.kill()
	}
}
