package lockstep

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// pages are the pages for people, by path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/runbooks/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all[path] = string(text)
		}
	}
	return all
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	fence   = regexp.MustCompile("(?s)```.*?```")
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	notWord = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// anchors are what a page can be entered by, as GitHub makes them of headings.
func anchors(text string) (names []string) {
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		names = append(names, strings.ReplaceAll(notWord.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return names
}

func TestEveryLinkOfThePagesLeadsSomewhere(t *testing.T) {
	all := pages(t)
	links := 0
	for path, text := range all {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			file, anchor, _ := strings.Cut(m[1], "#")
			to := path
			if file != "" {
				to = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s links to %s, and there is no %s", path, m[1], to)
			} else if anchor != "" && !slices.Contains(anchors(all[to]), anchor) {
				t.Errorf("%s links to %s, and %s has no heading of that name", path, m[1], to)
			}
		}
	}
	if links < 40 {
		t.Errorf("only %d links were found", links)
	}
}

var (
	command = regexp.MustCompile("(?:^|[\\s`(/])lockstep((?: +[^\\s`|;&>)]+)*)")
	flag    = regexp.MustCompile(`^--?[a-z][a-z-]*`)
	known   = regexp.MustCompile(`--[a-z][a-z-]*|(?m)^  +-[a-z]\b`)
)

// Every command that a page names is one, with flags that it has. docs/cli.md, which is made of
// the commands themselves, says what there is.
func TestEveryCommandOfThePagesIsOne(t *testing.T) {
	all := pages(t)
	flags := map[string][]string{} // of each command
	for _, section := range strings.Split(all["docs/cli.md"], "\n## ")[1:] {
		name, text, _ := strings.Cut(section, "\n")
		flags[strings.TrimSpace(name)] = known.FindAllString(text, -1)
	}
	found := 0
	for path, text := range all {
		if path == "docs/cli.md" {
			continue
		}
		var code []string // blocks line by line, and what stands between backquotes
		for _, block := range fence.FindAllString(text, -1) {
			code = append(code, strings.Split(block, "\n")[1:]...)
		}
		for i, part := range strings.Split(fence.ReplaceAllString(text, ""), "`") {
			if i%2 == 1 {
				code = append(code, part)
			}
		}
		for _, line := range code {
			line, _, _ = strings.Cut(line, " #")
			if !strings.HasPrefix(line, "lockstep ") && !strings.Contains(line, "bin/lockstep ") {
				continue
			}
			for _, m := range command.FindAllStringSubmatch(line, -1) {
				words := strings.Fields(m[1])
				name := "lockstep"
				for len(words) > 0 {
					longer := name + " " + words[0]
					if _, ok := flags[longer]; !ok {
						break
					}
					name, words = longer, words[1:]
				}
				if name == "lockstep" && len(words) > 0 {
					t.Errorf("%s: there is no command in %q", path, line)
					continue
				}
				found++
				for _, word := range words {
					f := flag.FindString(word)
					if f == "" || slices.Contains(flags[name], f) || slices.Contains(flags["lockstep"], f) {
						continue
					}
					if f = strings.TrimLeft(f, "-"); len(f) > 1 || !slices.ContainsFunc(flags["lockstep"], func(k string) bool { return strings.TrimSpace(k) == "-"+f }) {
						t.Errorf("%s: %s has no flag %s, in %q", path, name, word, line)
					}
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d commands were found", found)
	}
}

var (
	metric  = regexp.MustCompile("`(?:[^`]*[^a-z0-9_`])?(lockstep_[a-z0-9_]+)")
	apiPath = regexp.MustCompile(`/v1/[a-z][A-Za-z0-9_./{}$-]*`)
	inPath  = regexp.MustCompile(`\{[^}]*\}|\$[A-Z]+`)
	row     = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:[^|]* \\| `([^`]*)` \\|)?")
	stated  = regexp.MustCompile("`([a-z_]+(?:\\.[a-z_]+)*)` \\(([0-9][^)]*)\\)")
)

// Metrics, paths of the API and defaults that a page names are those of the pages that are made of
// the program.
func TestWhatThePagesNameIsInTheReference(t *testing.T) {
	all := pages(t)
	openapi, err := os.ReadFile("docs/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var api struct {
		Paths map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(openapi, &api); err != nil {
		t.Fatal(err)
	}
	paths := map[string]bool{"/v1/openapi.json": true}
	for path := range api.Paths {
		paths[inPath.ReplaceAllString(path, "*")] = true
	}
	metrics, defaults := map[string]bool{}, map[string]string{}
	for _, m := range row.FindAllStringSubmatch(all["docs/metrics.md"], -1) {
		metrics[m[1]] = true
	}
	for _, m := range row.FindAllStringSubmatch(all["docs/config.md"], -1) {
		defaults[m[1]] = m[2]
	}
	// Of an adapter of Prometheus, of records in a store and of the demo.
	others := []string{"lockstep_sink_late_seconds", "lockstep_v", "lockstep_demo"}
	found := map[string]int{}
	for path, text := range all {
		if slices.Contains([]string{"docs/metrics.md", "docs/config.md", "CHANGELOG.md"}, path) {
			continue
		}
		for _, m := range metric.FindAllStringSubmatch(text, -1) {
			name := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(m[1], "_bucket"), "_count"), "_sum")
			if found["metrics"]++; !metrics[m[1]] && !metrics[name] && !slices.Contains(others, m[1]) {
				t.Errorf("%s: there is no metric %s", path, m[1])
			}
		}
		for _, p := range apiPath.FindAllString(text, -1) {
			p = inPath.ReplaceAllString(strings.TrimRight(p, "./"), "*")
			if found["paths"]++; !slices.ContainsFunc(slices.Collect(maps.Keys(paths)), func(known string) bool {
				like, _ := filepath.Match(known, p) // what is filled in as an example
				return like || known == p
			}) {
				t.Errorf("%s: the API has no %s", path, p)
			}
		}
		for _, m := range stated.FindAllStringSubmatch(text, -1) {
			is, known := defaults[m[1]]
			if path == "docs/route.md" && !known {
				is, known = defaults["objectives."+m[1]]
			}
			if !known {
				continue
			}
			found["defaults"]++
			says := []string{strings.Trim(is, "[]")}
			if n, err := strconv.ParseFloat(is, 64); err == nil {
				says = append(says, fmt.Sprintf("%g %%", 100*n), fmt.Sprintf("%g MiB", n/(1<<20)))
			} else if d, err := time.ParseDuration(is); err == nil {
				says = append(says, fmt.Sprintf("%g days", d.Hours()/24))
			}
			if !slices.Contains(says, m[2]) {
				t.Errorf("%s: %s is said to be %s, and its default is %s", path, m[1], m[2], is)
			}
		}
	}
	for what, least := range map[string]int{"metrics": 60, "paths": 25, "defaults": 10} {
		if found[what] < least {
			t.Errorf("only %d %s were found", found[what], what)
		}
	}
}
