package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// letter is what dlq list tells of one.
type letter struct{ ID, Sink, Table, Key, State, Class string }

// openLetters lists those that are open, by sink.
func (w *world) openLetters() map[string][]letter {
	w.t.Helper()
	var all []letter
	w.lockstep(&all, "dlq", "list")
	by := map[string][]letter{}
	for _, l := range all {
		by[l.Sink] = append(by[l.Sink], l)
	}
	return by
}

// Letters of which nobody knows any more that they were closed are put back and replayed a
// week after they were written, when both stores have forgotten the deletes: what was deleted stays away, and what is newer stays.
func TestLettersOfLastWeekBringNothingBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 200)
	cache := redis.NewClient(&redis.Options{Addr: w.spec.RedisAddr})
	t.Cleanup(func() { cache.Close() })
	p := w.start("run")
	w.equal(time.Minute)

	// A fifth of the rows fits neither store.
	var squatted []string
	for id := 5; id <= 200; id += 5 {
		key := fmt.Sprintf("%s:questions:%d", w.name, id)
		cache.Del(t.Context(), key)
		cache.Set(t.Context(), key, "of somebody else", 0)
		squatted = append(squatted, key)
	}
	w.sql(`UPDATE questions SET settings = IF(id % 5 = 0, CAST('"checker: none"' AS JSON), JSON_OBJECT('n', id))`)
	await(t, time.Minute, "40 letters of each sink", func() bool {
		open := w.openLetters()
		return len(open["search"]) == 40 && len(open["cache"]) == 40
	})
	file := filepath.Join(t.TempDir(), "letters.ndjson")
	if out, err := exec.Command(w.binary, "dlq", "export", "--file", file, "-c", w.config).CombinedOutput(); err != nil {
		t.Fatalf("export: %v\n%s", err, out)
	}
	if err := cache.Del(t.Context(), squatted...).Err(); err != nil {
		t.Fatal(err)
	}

	// Half of those rows are deleted, the others mended: all the letters close.
	w.sql("DELETE FROM test_cases WHERE question_id % 10 = 0", "DELETE FROM question_tags WHERE question_id % 10 = 0", "DELETE FROM questions WHERE id % 10 = 0",
		"UPDATE questions SET settings = JSON_OBJECT('mended', id) WHERE id % 5 = 0")
	w.equal(time.Minute)
	await(t, time.Minute, "the letters to close", func() bool { return len(w.openLetters()) == 0 })
	p.balanced("search")
	p.balanced("cache")
	p.stop()
	// It knows no more of deletes than after a restart of its node.
	w.index(http.MethodPost, "questions", "/_close")
	w.index(http.MethodPost, "questions", "/_open")
	forgotten := 0
	for _, key := range squatted { // which it does by itself after tombstone_ttl
		forgotten += int(cache.Del(t.Context(), "lockstep:t:{"+key+"}").Val())
	}
	if forgotten != 20 {
		t.Fatalf("Redis remembered %d deletes; want those of 20 rows", forgotten)
	}

	writeLastWeek(t, file)
	p = w.start("run")
	p.awaitReady()
	if out, err := exec.Command(w.binary, "dlq", "import", file, "--reason", "a week late", "-c", w.config).CombinedOutput(); err != nil {
		t.Fatalf("import: %v\n%s", err, out)
	}
	if open := w.openLetters(); len(open["search"]) != 40 || len(open["cache"]) != 40 {
		t.Fatalf("%d and %d letters are open after the import; want 40 and 40", len(open["search"]), len(open["cache"]))
	}
	if out, err := exec.CommandContext(t.Context(), w.binary, "dlq", "replay", "--all", "--mode", "payload", "-c", w.config).CombinedOutput(); err != nil {
		t.Errorf("replay: %v\n%s", err, out)
	}
	if open := w.openLetters(); len(open) != 0 {
		t.Errorf("letters after the replay: %+v", open)
	}
	w.equal(time.Minute)
	p.stop()
}

var (
	failed = regexp.MustCompile(`(_failed","value":")[^"]*`)
	sealed = regexp.MustCompile(`,"sha256":"[0-9a-f]*"}\n`)
)

// writeLastWeek makes the letters of a file a week older.
func writeLastWeek(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-7 * 24 * time.Hour).UTC().Format(time.RFC3339Nano)
	var old bytes.Buffer
	dated := 0
	for line := range strings.Lines(string(text)) {
		dated += len(failed.FindAllString(line, -1))
		line = sealed.ReplaceAllString(failed.ReplaceAllString(line, "${1}"+then), "}")
		fmt.Fprintf(&old, "%s,\"sha256\":\"%x\"}\n", strings.TrimSuffix(line, "}"), sha256.Sum256([]byte(line)))
	}
	if dated != 2*80 {
		t.Fatalf("%d times are in the file; want two of each of 80 letters", dated)
	}
	if err := os.WriteFile(file, old.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
