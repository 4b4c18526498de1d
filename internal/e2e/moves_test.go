package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"lockstep/internal/oracle"
)

// A row whose key in Redis gets a NULL is under none, also when it is deleted or leaves
// the condition afterwards, and comes back with a value; no dead letter is made. A column
// of a template that gets another name holds the table's rows until the entry is mended.
func TestRowsWithoutAKeyInRedisGoAndRowsWithoutAColumnWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5)
	w.sql("CREATE TABLE leaves (id INT PRIMARY KEY, slug VARCHAR(40), title VARCHAR(40), live TINYINT NOT NULL DEFAULT 1)",
		"INSERT INTO leaves (id, slug, title) VALUES (1, 'a', 'one'), (2, 'b', 'two'), (3, 'c', 'three'), (4, NULL, 'four')")
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	entry := fmt.Sprintf(`  - match: %[1]s.leaves
    elastic: {index: %[1]s-leaves}
    redis: {key: "%[1]s:leaf:{slug}:{id}", mode: string, value: "{title}"}
    shapes: {cache: {where: row.live == 1}}
`, w.name)
	configure := func(entry string) {
		if err := os.WriteFile(w.config, append(text, entry...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure(entry)
	w.spec.Tables = append(w.spec.Tables, oracle.TableSpec{Table: "leaves", Key: []string{"id"}, Index: w.name + "-leaves"})
	cache := redis.NewClient(&redis.Options{Addr: w.spec.RedisAddr})
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		for _, pattern := range []string{w.name + ":leaf:*", "lockstep:*" + w.name + "*"} {
			for _, key := range cache.Keys(ctx, pattern).Val() {
				cache.Del(ctx, key)
			}
		}
		cache.Close()
	})
	p := w.start("run")
	has := func(want string) {
		t.Helper()
		var got []string
		await(t, 30*time.Second, "the rows in Redis: "+want, func() bool {
			p.alive()
			got = got[:0]
			for id, slugs := 1, "abcz"; id <= 4; id++ {
				for _, slug := range slugs {
					if text, err := cache.Get(t.Context(), fmt.Sprintf("%s:leaf:%c:%d", w.name, slug, id)).Result(); err == nil {
						got = append(got, fmt.Sprintf("%c%d=%s", slug, id, text))
					}
				}
			}
			return strings.Join(got, " ") == want
		})
	}
	has("a1=one b2=two c3=three")
	w.sql("UPDATE leaves SET slug = NULL WHERE id = 1")
	has("b2=two c3=three")
	w.sql("UPDATE leaves SET slug = NULL", "DELETE FROM leaves WHERE id = 2", "UPDATE leaves SET live = 0 WHERE id = 3")
	has("")
	w.sql("UPDATE leaves SET slug = 'z' WHERE id = 1")
	has("z1=one")

	w.sql("ALTER TABLE leaves RENAME COLUMN title TO headline", "UPDATE leaves SET headline = 'uno' WHERE id = 1")
	reason := fmt.Sprintf("redis.value: {title} names the column title, which rows of %s.leaves do not have here; they have id, slug, headline, live: name one of these", w.name)
	await(t, 30*time.Second, "the table to be held", func() bool {
		log, _ := os.ReadFile(p.log)
		return strings.Contains(string(log), reason)
	})
	if dead := p.metric("lockstep_sink_dead_letters_total"); dead != 0 {
		t.Errorf("%v dead letters", dead)
	}
	p.stop()
	configure(strings.Replace(entry, "{title}", "{headline}", 1))
	p = w.start("run")
	has("z1=uno")
	if dead := p.metric("lockstep_sink_dead_letters_total"); dead != 0 {
		t.Errorf("%v dead letters", dead)
	}
	p.stop()
}
