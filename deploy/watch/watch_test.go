package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lockstep/internal/testenv"
)

func TestTheGeneratedFilesAreFresh(t *testing.T) {
	root := testenv.Root(t)
	files, err := generated(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(got), string(want)); diff != "" {
			t.Errorf("%s is stale; run: go generate ./deploy/watch\n%s", name, diff)
		}
	}
	found, err := filepath.Glob(filepath.Join(root, boardsDir, "*"))
	if err != nil || len(found) != len(boards) {
		t.Errorf("%d dashboards are made, and the directory has %v, %v", len(boards), found, err)
	}
}

func TestEveryAlertHasItsRunbookAndEveryRunbookItsAlert(t *testing.T) {
	dir := filepath.Join(testenv.Root(t), runbookDir)
	pages := []string{"README"}
	for _, name := range alertNames() {
		pages = append(pages, name)
		text, err := os.ReadFile(filepath.Join(dir, name+".md"))
		if err != nil {
			t.Error(err)
			continue
		}
		at := 0
		for _, part := range []string{"# " + name + "\n", "\n## Meaning\n", "\n## Impact\n", "\n## Diagnosis\n", "\n```sh\nlockstep ", "\n## Mitigation\n"} {
			next := strings.Index(string(text[at:]), part)
			if next < 0 {
				t.Errorf("%s.md has no %q where it belongs", name, part)
				break
			}
			at += next
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := strings.TrimSuffix(filepath.Base(file), ".md"); !slices.Contains(pages, name) {
			t.Errorf("%s is of no alert", file)
		}
	}
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), guide))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`\bLockstep[A-Z]\w+`).FindAllString(string(text), -1) {
		if !slices.Contains(pages, name) {
			t.Errorf("%s names %s, which is no alert", guide, name)
		}
	}
	for _, b := range boards {
		for _, p := range b.panels {
			for _, name := range p.alerts {
				if !slices.Contains(pages, name) {
					t.Errorf("%s: %s links to the runbook of %s, which is no alert", b.name, p.title, name)
				}
			}
		}
	}
}

// targetLabels are those that Prometheus gives; the cluster comes where several share one.
var targetLabels = []string{"job", "instance", "namespace", "cluster"}

// reference is what docs/metrics.md has, which a test of cmd/lockstep holds against the
// metrics themselves: the labels of each. To it come those of the client library, and of
// Prometheus.
func reference(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{"up": nil, "ALERTS": {"alertname"}}
	for _, row := range regexp.MustCompile("(?m)^\\| `(lockstep_[a-z0-9_]+)` \\| ([a-z0-9_, ]*) \\|").FindAllStringSubmatch(string(text), -1) {
		known[row[1]] = strings.FieldsFunc(row[2], func(r rune) bool { return r == ',' || r == ' ' })
	}
	if len(known) < 30 {
		t.Fatalf("docs/metrics.md names %d metrics; it cannot be read any more", len(known))
	}
	for _, name := range []string{"process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds", "go_gc_gomemlimit_bytes"} {
		known[name] = nil
	}
	return known
}

var (
	strs     = regexp.MustCompile(`"[^"]*"`)
	selector = regexp.MustCompile(`\b(ALERTS|up|(?:lockstep|process|go)_[a-z0-9_]+|lockstep:[A-Za-z0-9_:]+)\b(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
	grouping = regexp.MustCompile(`\b(?:by|on|without|ignoring)\s*\(([^)]*)\)`)
)

// problems are the names in an expression that nobody gives: metrics, and labels that a
// metric does not have.
func problems(expr string, known map[string][]string) (found []string) {
	expr = strs.ReplaceAllString(expr, `""`)
	all := slices.Concat(targetLabels, []string{"le"})
	for _, m := range selector.FindAllStringSubmatch(expr, -1) {
		name, matchers := m[1], m[2]
		labels, ok := known[name]
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if base, cut := strings.CutSuffix(name, suffix); cut && !ok {
				labels, ok = known[base]
				labels = append(slices.Clone(labels), "le")
			}
		}
		if !ok {
			found = append(found, name+" is no metric")
			continue
		}
		all = append(all, labels...)
		for _, l := range matcher.FindAllStringSubmatch(matchers, -1) {
			if !slices.Contains(labels, l[1]) && !slices.Contains(targetLabels, l[1]) {
				found = append(found, name+" has no label "+l[1])
			}
		}
	}
	if strings.Contains(expr, "label_replace(") {
		all = append(all, "sink") // what both sides that do so make
	}
	for _, m := range grouping.FindAllStringSubmatch(expr, -1) {
		for _, label := range strings.Split(m[1], ",") {
			if !slices.Contains(all, strings.TrimSpace(label)) {
				found = append(found, "no metric here has the label "+strings.TrimSpace(label))
			}
		}
	}
	return found
}

func TestRulesDashboardsAndTheirCasesNameMetricsAndLabelsThatAreThere(t *testing.T) {
	known := reference(t)
	check := func(where, expr string) {
		for _, p := range problems(expr, known) {
			t.Errorf("%s: %s", where, p)
		}
	}
	for _, g := range groups() { // what is recorded has the labels by which it is put together
		for _, r := range g.rules {
			if r.record != "" {
				known[r.record] = []string{"sink"}
			}
		}
	}
	for _, g := range groups() {
		for _, r := range g.rules {
			check(r.alert+r.record, r.text())
		}
	}
	for _, b := range boards {
		for _, p := range b.panels {
			for _, q := range p.queries {
				check(b.name+": "+p.title, q.text())
			}
		}
	}
	for _, s := range stories {
		for series := range s.series {
			check(s.alert+": "+s.about, series)
		}
	}
	// It does find what is wrong.
	for expr, want := range map[string]string{
		`sum by (sink) (rate(lockstep_sink_recieved_total[5m]))`: "lockstep_sink_recieved_total is no metric",
		`lockstep_sink_breaker_state{table="a"}`:                 "lockstep_sink_breaker_state has no label table",
		`sum by (table) (lockstep_sink_breaker_state)`:           "no metric here has the label table",
		`up{sink="a"}`: "up has no label sink",
	} {
		if got := problems(expr, known); !slices.Equal(got, []string{want}) && !slices.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", expr, got, want)
		}
	}
}

// What Grafana needs of a dashboard that is read from a file.
func TestDashboardsAreWhole(t *testing.T) {
	for _, b := range boards {
		titles := map[string]bool{}
		for _, p := range b.panels {
			if p.title == "" || p.shows == "" || !strings.HasSuffix(p.shows, ".") || len(p.queries) == 0 {
				t.Errorf("%s: %q lacks a title, what it shows, or a query", b.name, p.title)
			}
			if titles[p.title] {
				t.Errorf("%s: two panels are called %q", b.name, p.title)
			}
			titles[p.title] = true
			if p.unit == "" && len(p.names) == 0 && p.kind == "" && !strings.Contains(p.shows, "1 ") {
				t.Errorf("%s: %q has no unit", b.name, p.title)
			}
		}
	}
}
