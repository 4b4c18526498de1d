package helm

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"lockstep/config"
)

var update = flag.Bool("update", false, "rewrite testdata/golden")

const (
	chart     = "lockstep"
	namespace = "lockstep"
)

var (
	tools   = map[string]string{}
	toolsMu sync.Mutex
)

// tool is the path of what deploy/local/kubernetes/tools builds, once for this machine.
func tool(t testing.TB, name string) string {
	t.Helper()
	toolsMu.Lock()
	defer toolsMu.Unlock()
	if path := tools[name]; path != "" {
		return path
	}
	cmd := exec.Command("../local/kubernetes/tools", name)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("deploy/local/kubernetes/tools %s: %v", name, err)
	}
	tools[name] = strings.TrimSpace(string(out))
	return tools[name]
}

// helm runs Helm with a home of the test's own.
func helm(t testing.TB, args ...string) (stdout string, err error) {
	t.Helper()
	cmd := exec.Command(tool(t, "helm"), args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home, "KUBECONFIG="+filepath.Join(home, "none"))
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		err = errors.New(strings.TrimSpace(problem.String() + "\n" + string(out)))
	}
	return string(out), err
}

// copyChart is the chart with the given files in place of its own in files/, so that what is
// held against testdata stays as it is when an alert or a dashboard changes.
func copyChart(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "lockstep")
	if err := os.CopyFS(dir, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "files")); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(dir, "files", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// render is what the values files make of a chart.
func render(t testing.TB, chart string, files ...string) (string, error) {
	t.Helper()
	// The oldest that Chart.yaml promises; a Helm that Go has built knows of none.
	args := []string{"template", "shop", chart, "--namespace", namespace, "--kube-version", "1.27.0"}
	for _, file := range files {
		args = append(args, "--values", file)
	}
	return helm(t, args...)
}

// valueSets are the files in testdata/values.
func valueSets(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/values/*.yaml")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d value sets, %v", len(files), err)
	}
	return files
}

type object = map[string]any

func objects(t testing.TB, text string) (all []object) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var one object
		switch err := d.Decode(&one); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatal(err)
		case len(one) > 0:
			all = append(all, one)
		}
	}
}

// at walks down into an object; what is not there is nil.
func at(v any, path ...string) any {
	for _, key := range path {
		m, _ := v.(object)
		v = m[key]
	}
	return v
}

func list(v any) []any { l, _ := v.([]any); return l }

func TestTheSchemaAndTheReadmeAreInStepWithTheValues(t *testing.T) {
	schema, readme, err := Generate(chart, config.Schema)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"values.schema.json": schema, "README.md": readme} {
		got, err := os.ReadFile(filepath.Join(chart, name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(got), string(want)); diff != "" {
			t.Errorf("deploy/helm/lockstep/%s is stale; run: go generate ./...\n%s", name, diff)
		}
	}
}

func TestEveryValueIsUsed(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := fields(text)
	if err != nil {
		t.Fatal(err)
	}
	var templates strings.Builder
	for _, pattern := range []string{"templates/*", "templates/tests/*"} {
		files, _ := filepath.Glob(filepath.Join(chart, pattern))
		for _, file := range files {
			text, _ := os.ReadFile(file)
			templates.Write(text)
		}
	}
	for _, f := range all {
		if key := f.path[len(f.path)-1]; !regexp.MustCompile(`[.]` + key + `\b`).MatchString(templates.String()) {
			t.Errorf("no template uses %s", f.name())
		}
	}
}

func TestEveryValueSetRendersAsBefore(t *testing.T) {
	bare := copyChart(t, nil)
	for _, file := range valueSets(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			got, err := render(t, bare, file)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata/golden", filepath.Base(file))
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("it renders otherwise; go test ./deploy/helm -update takes that as right\n%s", diff)
			}
			if out, err := helm(t, "lint", "--strict", "--quiet", bare, "--values", file); err != nil {
				t.Errorf("helm lint: %v\n%s", err, out)
			}
			check(t, objects(t, got))
		})
	}
}

// The values that docs/kubernetes.md shows are taken as they stand there.
func TestTheValuesOfThePageRender(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	rendered := 0
	for heading, first := range map[string]string{"## Install": "    image: ", "## An account for each part": "    config:\n"} {
		_, section, _ := strings.Cut(string(page), "\n"+heading+"\n")
		_, block, ok := strings.Cut(section, "\n"+first)
		block, _, _ = strings.Cut(first+block, "\n\n")
		if !ok {
			t.Fatalf("%s has no values", heading)
		}
		file := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(file, []byte(regexp.MustCompile("(?m)^    ").ReplaceAllString(block, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := render(t, chart, file)
		if err != nil {
			t.Errorf("%s: %v", heading, err)
			continue
		}
		rendered++
		all := objects(t, got)
		check(t, all)
		// What the commands beside them make is what the pods wait for.
		for _, o := range all {
			for _, volume := range list(at(o, "spec", "template", "spec", "volumes")) {
				for _, source := range list(at(volume, "projected", "sources")) {
					if name := at(source, "secret", "name"); !strings.Contains(section, " create secret generic "+name.(string)+" ") {
						t.Errorf("%s: nothing makes the Secret %s", heading, name)
					}
				}
			}
		}
	}
	if rendered != 2 {
		t.Errorf("%d sets of values", rendered)
	}
}

// check asks the program about the configuration of a render, with the secrets and the
// variables that its pods have.
func check(t *testing.T, all []object) {
	t.Helper()
	var text string
	for _, o := range all {
		if file, ok := at(o, "data", "lockstep.yaml").(string); ok {
			text = file
		}
	}
	dir := t.TempDir()
	write := func(path string) {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("0123456789abcdef0123456789\n"), 0o440); err != nil && !errors.Is(err, os.ErrPermission) {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"mysql", "kafka", "elastic", "redis"} {
		write("mnt/secrets/" + name)
	}
	pods := 0
	for _, o := range all {
		if o["kind"] != "Deployment" {
			continue
		}
		pods++
		spec := at(o, "spec", "template", "spec")
		for _, volume := range list(at(spec, "volumes")) {
			for _, source := range list(at(volume, "projected", "sources")) {
				for _, item := range list(at(source, "secret", "items")) {
					write("etc/lockstep-secrets/" + at(item, "path").(string))
				}
			}
		}
		env := map[string]string{}
		for _, one := range list(at(list(at(spec, "containers"))[0], "env")) {
			env[at(one, "name").(string)] = at(one, "value").(string)
		}
		own := strings.NewReplacer("/etc/lockstep-secrets", dir+"/etc/lockstep-secrets", "/mnt/secrets", dir+"/mnt/secrets").Replace(text)
		cfg, err := config.Parse("lockstep.yaml", []byte(own), func(name string) (string, bool) { v, ok := env[name]; return v, ok })
		if err != nil {
			t.Errorf("%s has a configuration that lockstep config check refuses:\n%v", at(o, "metadata", "name"), err)
			continue
		}
		// Only who serves the API to others, and asks for a token, listens for them.
		api := at(o, "metadata", "labels", "app.kubernetes.io/component") == "admin" && len(cfg.Admin.Tokens) > 0
		if open := cfg.Admin.Listen != "127.0.0.1:8080"; open != api {
			t.Errorf("%s listens on %s", at(o, "metadata", "name"), cfg.Admin.Listen)
		}
	}
	if pods == 0 || text == "" {
		t.Error("the render has no Deployment, or no configuration")
	}
}

// A label has 63 letters at most, and controllers make labels of names.
func TestNoNameIsLongerThanALabel(t *testing.T) {
	text, err := os.ReadFile("testdata/golden/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	longest, seen := 0, map[string]bool{}
	for _, o := range objects(t, string(text)) {
		name := at(o, "metadata", "name").(string)
		longest = max(longest, len(name))
		if kind := o["kind"].(string) + " " + name; len(name) > 63 || seen[kind] {
			t.Errorf("%s has %d letters, or is there twice", kind, len(name))
		} else {
			seen[kind] = true
		}
	}
	if longest < 60 {
		t.Errorf("the longest name has %d letters, so this tells nothing", longest)
	}
}

func TestTheConfigurationChangesTheChecksumOfEveryPodUnlessThatIsLeftOut(t *testing.T) {
	sums := func(files ...string) (sums []any) {
		text, err := render(t, chart, files...)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects(t, text) {
			if o["kind"] == "Deployment" {
				sums = append(sums, at(o, "spec", "template", "metadata", "annotations", "checksum/config"))
			}
		}
		return sums
	}
	other := filepath.Join(t.TempDir(), "other.yaml")
	if err := os.WriteFile(other, []byte("config: {worker: {calls_max: 7}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, after := sums("testdata/values/minimal.yaml"), sums("testdata/values/minimal.yaml", other)
	if len(before) != 5 || before[0] == nil || slices.ContainsFunc(after, func(sum any) bool { return slices.Contains(before, sum) }) {
		t.Errorf("checksums %v, and with another configuration %v", before, after)
	}
	if err := os.WriteFile(other, []byte("{sink: {replicas: 7}, image: {tag: other}, networkPolicy: {enabled: true, egress: [{}]}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, sums("testdata/values/minimal.yaml", other)); diff != "" {
		t.Errorf("the checksums are others with the same configuration:\n%s", diff)
	}
	if kept := sums("testdata/values/account.yaml"); slices.ContainsFunc(kept, func(sum any) bool { return sum != nil }) {
		t.Errorf("restartOnConfigChange is false, and the checksums are %v", kept)
	}
}

func TestAlertsAndDashboardsAreTakenAsTheyAre(t *testing.T) {
	const dashboard = `{"title": "{{sink}} of {{ .Values }}"}`
	with := copyChart(t, map[string]string{"dashboards/one.json": dashboard, "alerts.yaml": `groups:
  - name: lockstep
    interval: 30s
    rules:
      - {record: lockstep:late, expr: "1"}
      - {alert: LockstepLate, expr: lockstep:late > 2, for: 5m, labels: {severity: page}, annotations: {summary: "{{ $labels.sink }} is late", runbook_url: "docs/runbooks/late.md"}}
      - {alert: LockstepLost, expr: "0"}
      - {alert: LockstepLoud, expr: "1"}
`})
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte("prometheusRule: {disabled: [LockstepLoud]}"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := render(t, with, "testdata/values/servicemonitor.yaml", values)
	if err != nil {
		t.Fatal(err)
	}
	var groups, board any
	for _, o := range objects(t, text) {
		if o["kind"] == "PrometheusRule" {
			groups = at(o, "spec", "groups")
		}
		if one := at(o, "data", "one.json"); one != nil {
			board = one
		}
	}
	if board != dashboard {
		t.Errorf("the dashboard became %v", board)
	}
	const base = "https://wiki.example.com/runbooks/"
	want := []any{object{"name": "lockstep", "interval": "30s", "rules": []any{
		object{"record": "lockstep:late", "expr": "1"},
		object{"alert": "LockstepLate", "expr": "lockstep:late > 2", "for": "5m", "labels": object{"severity": "page", "team": "data"},
			"annotations": object{"summary": "{{ $labels.sink }} is late", "runbook_url": base + "late.md"}},
		object{"alert": "LockstepLost", "expr": "0", "labels": object{"team": "data"}, "annotations": object{"runbook_url": base + "LockstepLost.md"}},
	}}}
	if diff := cmp.Diff(want, groups); diff != "" {
		t.Errorf("alerts:\n%s", diff)
	}
	if err := os.WriteFile(values, []byte("prometheusRule: {disabled: [LockstepLuod]}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := render(t, with, "testdata/values/servicemonitor.yaml", values); err == nil || !strings.Contains(err.Error(), "there is no alert LockstepLuod; there are LockstepLate, LockstepLost, LockstepLoud") {
		t.Errorf("an unknown alert: %v", err)
	}
}

func TestWhatCannotBeMeantIsRefusedWithASentence(t *testing.T) {
	const minimal, secrets = "testdata/values/minimal.yaml", "testdata/values/secrets.yaml"
	for _, c := range []struct{ name, base, values, want string }{
		{"unknown value", minimal, "capture: {replica: 3}", "at '/capture': additional properties 'replica' not allowed"},
		{"unknown field of the configuration", minimal, "config: {kafka: {partition: 3}}", "at '/config/kafka': additional properties 'partition' not allowed"},
		{"no configuration", "", "", "at '/config': missing properties 'prefix', 'source', 'sinks', 'tables'"},
		{"digest", minimal, "image: {digest: latest}", "at '/image/digest': 'latest' does not match pattern"},
		{"HPA and KEDA", minimal, `sink: {autoscaling: {hpa: {enabled: true}, keda: {enabled: true}}}`, "sinks.cache.autoscaling: hpa and keda are both enabled, and would scale against each other; turn one off"},
		{"KEDA without Prometheus", minimal, `sinks: {search: {autoscaling: {keda: {enabled: true}}}}`, "sinks.search.autoscaling.keda.serverAddress: is empty"},
		{"least above most", minimal, `sinks: {search: {autoscaling: {minReplicas: 9}}}`, "sinks.search.autoscaling.minReplicas: 9 is more than maxReplicas, 4; lower it"},
		{"capture scaled", minimal, `capture: {autoscaling: {enabled: true}}`, "capture.autoscaling: one capture is active whatever their number, so it is never scaled; leave it out"},
		{"both monitors", minimal, `{serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}`, "both would scrape every pod twice; turn one off"},
		{"closed network", minimal, `networkPolicy: {enabled: true}`, "networkPolicy.egress: is empty, so no pod would reach MySQL, Kafka or a store"},
		{"no password of the source", minimal, `secrets: {source: {password: {existingSecret: ""}}}`, "secrets.source.password.existingSecret: is empty; name the Secret that holds the password of config.source.user"},
		{"password in the ConfigMap", minimal, `config: {source: {password: hunter2}}`, "config.source.password: a secret has no place in a ConfigMap; name the Secret that holds it in secrets.source.password.existingSecret"},
		{"API key in the ConfigMap", minimal, `config: {sinks: {search: {elastic: {api_key: hunter2}}}}`, "config.sinks.search.elastic.api_key: a secret has no place in a ConfigMap; name the Secret that holds it in secrets.sinks.search.apiKey.existingSecret"},
		{"Redis password in the ConfigMap", minimal, `config: {sinks: {cache: {redis: {password: hunter2}}}}`, "config.sinks.cache.redis.password: a secret has no place in a ConfigMap"},
		{"sentinel password in the ConfigMap", secrets, `config: {sinks: {cache: {redis: {sentinel: {password: hunter2}}}}}`, "config.sinks.cache.redis.sentinel.password: a secret has no place in a ConfigMap"},
		{"Kafka password in the ConfigMap", secrets, `config: {kafka: {sasl: {password: hunter2}}}`, "config.kafka.sasl.password: a secret has no place in a ConfigMap"},
		{"mask salt in the ConfigMap", minimal, `config: {source: {mask_salt: hunter2hunter2hunter2}}`, "config.source.mask_salt: a secret has no place in a ConfigMap"},
		{"file and Secret", minimal, `config: {source: {password_file: /mnt/x}}`, "config.source.password_file: is set and secrets.source.password names a Secret, too; leave one out"},
		{"sink without its secret", minimal, `config: {sinks: {search: {elastic: {username: lockstep}}}}`, "secrets.sinks.search.password.existingSecret: is empty and config.sinks.search.elastic.username asks for a login; name the Secret that holds its password"},
		{"Kafka without its secret", minimal, `config: {kafka: {sasl: {mechanism: plain, username: lockstep}}}`, "secrets.kafka.password.existingSecret: is empty and config.kafka.sasl.mechanism asks for a login"},
		{"Kafka secret without a login", minimal, `secrets: {kafka: {password: {existingSecret: shop-kafka}}}`, "secrets.kafka.password: is of a login and config.kafka.sasl.mechanism names none"},
		{"certificates without TLS", minimal, `secrets: {kafka: {tls: {existingSecret: shop-kafka-tls}}}`, "secrets.kafka.tls: TLS is off, so these certificates are of no use; set config.kafka.tls.enabled: true, or leave them out"},
		{"half a client certificate", secrets, `secrets: {source: {tls: {key: ""}}}`, "secrets.source.tls: cert and key belong together; set both, or none"},
		{"secret of another store", minimal, `secrets: {sinks: {cache: {apiKey: {existingSecret: x}}}}`, "secrets.sinks.cache.apiKey: is of Elasticsearch, and this sink is Redis"},
		{"secret of no sink", minimal, `secrets: {sinks: {serach: {password: {existingSecret: x}}}}`, "secrets.sinks.serach: config.sinks has no sink of this name; it has cache, search"},
		{"values of no sink", minimal, `sinks: {serach: {replicas: 3}}`, "sinks.serach: config.sinks has no sink of this name; it has cache, search"},
		{"the chart's own address", minimal, `config: {admin: {listen: "0.0.0.0:8080"}}`, "config.admin.listen: the chart sets it; leave it out, and name tokens in secrets.tokens"},
		{"a name that Kubernetes cannot have", minimal, `config: {sinks: {search-: {redis: {}}}}`, "config.sinks.search-: no object of Kubernetes may have a name that ends with -"},
		{"two tokens of one name", minimal, `secrets: {tokens: [{name: ann, role: operator, existingSecret: x}, {name: ann, role: viewer, existingSecret: x2}]}`, "secrets.tokens: there are two of the name ann; give one another name"},
		{"a name of a token", minimal, `secrets: {tokens: [{name: a/b, role: operator, existingSecret: x}]}`, "at '/secrets/tokens/0/name': 'a/b' does not match pattern"},
		{"secret of traces in the ConfigMap", minimal, `config: {tracing: {endpoint: "http://otel:4318", authorization: Bearer x}}`, "config.tracing.authorization: a secret has no place in a ConfigMap; name the Secret that holds it in secrets.tracing.authorization.existingSecret"},
		{"secret of traces that nobody takes", minimal, `secrets: {tracing: {authorization: {existingSecret: x}}}`, "secrets.tracing: config.tracing.endpoint is empty, so nothing is traced"},
		{"password without a login", minimal, `secrets: {sinks: {search: {password: {existingSecret: x}}}}`, "secrets.sinks.search.password: is of a login and config.sinks.search.elastic.username names none"},
		{"two ways to log in", secrets, `secrets: {sinks: {search: {apiKey: {existingSecret: x}}}}`, "secrets.sinks.search: password and apiKey are two ways to log in; leave one out"},
		{"routes in the configuration", minimal, `config: {objectives: {config_map: {name: shop-lockstep}}}`, "config.objectives.config_map.name: shop-lockstep is the ConfigMap of the configuration; take another name"},
		{"a label of the chart's own", minimal, `commonLabels: {app.kubernetes.io/name: mine}`, "app.kubernetes.io/name: the chart gives this label to its objects, and finds its pods by it; leave it out"},
		{"a label of the chart's own, of a pod", minimal, `capture: {pod: {labels: {app.kubernetes.io/component: mine}}}`, "app.kubernetes.io/component: the chart gives this label to its objects"},
		{"a label that is a number", minimal, `pod: {labels: {cost-centre: 42}}`, "at '/pod/labels/cost-centre': got number, want string"},
		{"containers beside ours", minimal, `pod: {extraSpec: {containers: []}}`, "at '/pod/extraSpec': additional properties 'containers' not allowed"},
		{"a tag in the repository", minimal, `image: {repository: "registry:5000/lockstep:1"}`, "at '/image/repository': 'registry:5000/lockstep:1' does not match pattern"},
		{"a name of a pull secret", minimal, `imagePullSecrets: [registry]`, "at '/imagePullSecrets/0': got string, want object"},
		{"token without its secret", minimal, `secrets: {tokens: [{name: ann, role: operator}]}`, "at '/secrets/tokens/0': missing property 'existingSecret'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(file, []byte(c.values), 0o600); err != nil {
				t.Fatal(err)
			}
			files := []string{file}
			if c.base != "" {
				files = []string{c.base, file}
			}
			out, err := render(t, chart, files...)
			if err == nil {
				t.Fatalf("it renders:\n%s", out)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("it says\n%v\nand not\n%s", err, c.want)
			}
		})
	}
}
