package lockstep

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
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
