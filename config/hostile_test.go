package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Whatever stands in a file, it is refused with a sentence, soon, and without all the memory
// there is.
func TestAHostileTextIsRefused(t *testing.T) {
	bomb := "free:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := range 9 {
		was, now := string(rune('0'+i)), string(rune('1'+i))
		bomb += "  a" + now + ": &a" + now + " [" + strings.TrimSuffix(strings.Repeat("*a"+was+", ", 10), ", ") + "]\n"
	}
	for _, tc := range []struct{ name, text, want string }{
		{"an anchor that holds itself", "free: &a {x: *a}", "stands inside the anchor of its own name"},
		{"two that hold each other", "free: {a: &a [*b], b: &b [*a]}", "stands inside the anchor of its own name"},
		{"a billion laughs", bomb, "aliases stand for too much"},
		{"a pit of lists", "free: {a: " + strings.Repeat("[", 1<<20), "deeper than"},
		{"a pit of maps", "free: " + strings.Repeat("{a: ", 1<<18), "deeper than"},
		{"a pit of entries", "free:\n " + strings.Repeat("- ", 1<<18) + "x", "deeper than"},
		{"a pit of keys", "free:\n " + strings.Repeat("? ", 1<<18) + "x", "deeper than"},
		{"a pit of anchors", "free:\n " + strings.Repeat("&a ", 1<<18) + "x", "deeper than"},
		{"what is not UTF-8", "text: \xff\xfe\xfd", "is not UTF-8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			began := time.Now()
			_, problems := read(t, tc.text, nil)
			if problems == nil || !strings.Contains(problems.Error(), tc.want) {
				t.Errorf("got %.300v; want %q", problems, tc.want)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// A path that leads to something else than a file keeps nobody waiting.
func TestWhatIsNoFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, 1<<40); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{pipe: " is no file", dir: " is no file", "/dev/zero": " is no file", large: " has more than "} {
		said := make(chan string, 2)
		go func() {
			_, problems := read(t, "password_file: "+path, nil)
			said <- problems.Error()
		}()
		select {
		case got := <-said:
			if !strings.Contains(got, "password_file: "+path+want) {
				t.Errorf("%s: %s", path, got)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: it waits for what never comes", path)
		}
	}
	for path, want := range map[string]string{dir: " is no file", "/dev/zero": " is no file", large: " has more than "} {
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), path+want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
