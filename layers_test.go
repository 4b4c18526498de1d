package lockstep

import (
	"fmt"
	"go/build"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// imports is the architecture: what each package may import of ours. The
// pipeline reads mysql -> cdc -> kafka -> shape -> sinks -> dlq, and a package knows only
// what stands to its left; cmd knows everyone and hands functions to the left.
var imports = map[string][]string{
	"cdc":             {},
	"cdc/mysql":       {"cdc", "internal/certs", "internal/secret"},
	"kafka":           {"cdc", "internal/certs", "internal/secret"},
	"shape":           {"cdc"},
	"sinks":           {"cdc", "kafka"},
	"sinks/elastic":   {"cdc", "sinks", "internal/certs", "internal/files", "internal/secret"},
	"sinks/redis":     {"cdc", "sinks", "internal/certs", "internal/files", "internal/secret"},
	"dlq":             {"cdc", "kafka", "sinks"},
	"freshness":       {"cdc", "kafka", "sinks", "dlq"},
	"reconcile":       {"cdc", "kafka", "sinks"},
	"route":           {"freshness", "sinks"},
	"route/configmap": {},
	"audit":           {"kafka"},
	"admin":           {"kafka", "dlq", "freshness", "route", "audit", "internal/certs"},
	"tracing":         {"cdc", "internal/certs", "internal/secret"},
	"client":          {}, // for other programs
	"config/etcd":     {"internal/certs", "internal/files"},
	"config":          {"cdc", "cdc/mysql", "kafka", "shape", "sinks", "sinks/elastic", "sinks/redis", "reconcile", "admin", "route", "tracing", "internal/files", "internal/nearest", "internal/secret"},
	"cmd/lockstep":    {"cdc", "cdc/mysql", "kafka", "shape", "sinks", "sinks/elastic", "sinks/redis", "dlq", "freshness", "reconcile", "route", "route/configmap", "audit", "admin", "tracing", "config", "config/etcd", "internal/certs", "internal/nearest"},
	"internal/secret": {}, "internal/nearest": {}, "internal/certs": {"internal/files"}, "internal/files": {},

	// Not in the binary: tests, demo, benchmarks and generators.
	"sinks/sinktest":   {"cdc", "sinks"},
	"internal/testenv": {}, "internal/collector": {},
	"internal/bank":   {},
	"internal/oracle": {}, // the judge shares no code with the judged
	"internal/e2e":    {"internal/bank", "internal/collector", "internal/oracle", "internal/testenv"},
	"deploy/local":    {},
}

// clients are the outside systems: one package each may name them.
var clients = map[string]string{
	"github.com/go-mysql-org/go-mysql":        "cdc/mysql",
	"github.com/segmentio/kafka-go":           "kafka",
	"github.com/elastic/go-elasticsearch":     "sinks/elastic",
	"github.com/elastic/elastic-transport-go": "sinks/elastic",
	"github.com/redis/go-redis":               "sinks/redis",
	"cel.dev/cel-go":                          "shape",
	"go.opentelemetry.io/otel":                "tracing",
	"go.etcd.io/etcd":                         "config/etcd",
}

// outside says which packages are not part of the product and may name any
// client: they judge it, measure it or show it.
func outside(pkg string) bool {
	return strings.HasPrefix(pkg, "internal/") || strings.HasPrefix(pkg, "deploy/") || pkg == "bench" || strings.Contains(pkg, "/internal/")
}

func TestAPackageImportsOnlyWhatStandsToItsLeft(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if base := filepath.Base(path); path != "." && (strings.HasPrefix(base, ".") || base == "testdata") {
			return filepath.SkipDir
		}
		pkg, err := build.ImportDir(path, 0)
		if err != nil {
			return nil // no Go here
		}
		name := filepath.ToSlash(path)
		seen[name] = true
		for _, problem := range wrongImports(name, pkg) {
			t.Error(problem)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range imports {
		if !seen[name] {
			t.Errorf("the table names %s, which is not there", name)
		}
	}
}

func wrongImports(name string, pkg *build.Package) (problems []string) {
	allowed, listed := imports[name]
	if !listed && !outside(name) && name != "." {
		problems = append(problems, fmt.Sprintf("%s is not in the table of imports; give it its place", name))
	}
	for _, path := range pkg.Imports {
		if ours, ok := strings.CutPrefix(path, "lockstep/"); ok && listed && !slices.Contains(allowed, ours) {
			problems = append(problems, fmt.Sprintf("%s imports %s; it may import %v", name, ours, allowed))
		}
		for client, owner := range clients {
			if strings.HasPrefix(path, client) && owner != name && !outside(name) {
				problems = append(problems, fmt.Sprintf("%s imports %s; only %s may", name, path, owner))
			}
		}
	}
	return problems
}
