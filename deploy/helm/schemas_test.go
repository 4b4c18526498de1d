package helm

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// Objects are held against the schemas of the API, in which an unknown field is a mistake.
func TestEveryRenderIsOfTheKubernetesAPI(t *testing.T) {
	schemas := strictSchemas(t)
	conform := func(file string) (string, error) {
		out, err := exec.Command(tool(t, "kubeconform"), "-strict", "-summary", "-schema-location", schemas+"/{{.Group}}_{{.ResourceAPIVersion}}_{{.ResourceKind}}.json", file).CombinedOutput()
		return string(out), err
	}
	for _, file := range valueSets(t) {
		if out, err := conform(filepath.Join("testdata/golden", filepath.Base(file))); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
	// A check that cannot fail would be none.
	text, err := os.ReadFile("testdata/golden/minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(t.TempDir(), "wrong.yaml")
	if err := os.WriteFile(wrong, []byte(strings.Replace(string(text), "enableServiceLinks:", "enableServiceLink:", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := conform(wrong); err == nil || !strings.Contains(out, "enableServiceLink") {
		t.Errorf("an unknown field passes: %v\n%s", err, out)
	}
}

// strictSchemas writes a JSON schema for each kind that a render may have, as
// GROUP_VERSION_KIND.json with kinds in small letters, and returns where.
func strictSchemas(t *testing.T) string {
	t.Helper()
	from, dir := tool(t, "schemas"), t.TempDir()
	write := func(group, version, kind string, schema any) {
		text, err := json.Marshal(schema)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%s_%s_%s.json", group, version, strings.ToLower(kind))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(from, "swagger.json"))
	if err != nil {
		t.Fatal(err)
	}
	var swagger struct{ Definitions map[string]object }
	if err := json.Unmarshal(text, &swagger); err != nil {
		t.Fatal(err)
	}
	for _, d := range swagger.Definitions {
		strict(d)
	}
	for kind, name := range map[string]string{
		"v1 v1 ConfigMap": "core.v1.ConfigMap", "v1 v1 Service": "core.v1.Service", "v1 v1 ServiceAccount": "core.v1.ServiceAccount", "v1 v1 Pod": "core.v1.Pod",
		"apps v1 Deployment": "apps.v1.Deployment", "policy v1 PodDisruptionBudget": "policy.v1.PodDisruptionBudget",
		"autoscaling v2 HorizontalPodAutoscaler": "autoscaling.v2.HorizontalPodAutoscaler", "networking.k8s.io v1 NetworkPolicy": "networking.v1.NetworkPolicy",
		"rbac.authorization.k8s.io v1 Role": "rbac.v1.Role", "rbac.authorization.k8s.io v1 RoleBinding": "rbac.v1.RoleBinding",
	} {
		name = "io.k8s.api." + name
		if swagger.Definitions[name] == nil {
			t.Fatalf("the API has no %s", name)
		}
		reached := object{}
		reach(swagger.Definitions, name, reached)
		words := strings.Fields(kind)
		write(words[0], words[1], words[2], object{"$ref": "#/definitions/" + name, "definitions": reached})
	}
	for _, file := range crds(t) {
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPIV3Schema object `yaml:"openAPIV3Schema"`
					}
				}
			}
		}
		if err := yaml.Unmarshal(file, &crd); err != nil {
			t.Fatal(err)
		}
		for _, v := range crd.Spec.Versions {
			strict(v.Schema.OpenAPIV3Schema)
			write(crd.Spec.Group, v.Name, crd.Spec.Names.Kind, v.Schema.OpenAPIV3Schema)
		}
	}
	return dir
}

// crds are the definitions of the kinds that are not Kubernetes' own.
func crds(t *testing.T) (all [][]byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(tool(t, "schemas"), "*.yaml"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%d CRDs, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text)
	}
	return all
}

// strict closes every object that names its fields, and lets quantities and the like be
// numbers.
func strict(v any) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			strict(one)
		}
	case object:
		if v["format"] == "int-or-string" || v["x-kubernetes-int-or-string"] == true {
			v["type"] = []any{"string", "integer"}
			delete(v, "format")
			delete(v, "anyOf")
		}
		if text, _ := v["description"].(string); strings.HasPrefix(text, "Quantity is a fixed-point") {
			v["type"] = []any{"string", "number"}
		}
		properties, named := v["properties"].(object)
		if _, said := v["additionalProperties"]; named && !said && v["x-kubernetes-preserve-unknown-fields"] != true {
			v["additionalProperties"] = false
		}
		for _, one := range properties {
			strict(one)
		}
		for _, word := range []string{"items", "additionalProperties"} {
			strict(v[word])
		}
	}
}

// reach collects a definition and those it names.
func reach(all map[string]object, name string, reached object) {
	if _, done := reached[name]; done {
		return
	}
	reached[name] = all[name]
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, one := range v {
				walk(one)
			}
		case object:
			if to, ok := v["$ref"].(string); ok {
				reach(all, strings.TrimPrefix(to, "#/definitions/"), reached)
			}
			for _, one := range v {
				walk(one)
			}
		}
	}
	walk(all[name])
}
