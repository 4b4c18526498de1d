package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"

	"lockstep/internal/oracle"
)

const (
	maskSalt = "0123456789abcdef0123456789abcdef"
	secret   = "geheim"
)

// articles adds a table whose rows go through a status machine, shaped otherwise for
// each sink, and views of what either sink is to hold, which MySQL makes by itself.
func (w *world) articles() {
	w.t.Helper()
	w.sql(`CREATE TABLE articles (id INT AUTO_INCREMENT PRIMARY KEY, status ENUM('draft','published','archived'), title VARCHAR(60) NOT NULL,
			votes INT NOT NULL DEFAULT 1, price DECIMAL(8,2), email VARCHAR(60), phone VARCHAR(20), notes TEXT)`,
		`CREATE VIEW searched AS SELECT id, title AS headline, votes, price, `+hmacSQL("email")+` AS email, CONCAT('***', RIGHT(phone, 3)) AS phone, 100 DIV votes AS share
			FROM articles WHERE status = 'published'`,
		`CREATE VIEW cached AS SELECT id, status, title FROM articles WHERE status IN ('published', 'archived') AND price > 10`)
	for path, suffix := range map[string]string{w.config: "", w.again: "2"} {
		text, err := os.ReadFile(path)
		if err != nil {
			w.t.Fatal(err)
		}
		text = []byte(strings.Replace(string(text), "server_id:", "mask_salt: "+maskSalt+", server_id:", 1))
		text = fmt.Appendf(text, `  - match: %[1]s.articles
    elastic: {index: %[1]s-articles, mapping: {headline: {type: text}}}
    redis: {key: "%[1]s:articles:{id}"}
    mask: {email: sha256, phone: keep last 3, notes: drop}
    shape:
      where: row.status == 'published'
      drop: [status]
      rename: {title: headline}
      compute: {share: 100 / row.votes}
    shapes:
      cache%[2]s:
        where: row.status in ['published', 'archived'] && double(row.price) > 10.0
        fields: [id, status, title]
`, w.name, suffix)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	w.spec.Tables = append(w.spec.Tables,
		oracle.TableSpec{Table: "searched", Key: []string{"id"}, Index: w.name + "-articles"},
		oracle.TableSpec{Table: "cached", Key: []string{"id"}, RedisKey: w.name + ":articles:{id}"})
}

// hmacSQL is HMAC-SHA-256 as MySQL computes it.
func hmacSQL(column string) string {
	pad := func(with byte) string {
		key := make([]byte, 64)
		copy(key, maskSalt)
		for i := range key {
			key[i] ^= with
		}
		return "X'" + hex.EncodeToString(key) + "'"
	}
	return fmt.Sprintf("SHA2(CONCAT(%s, UNHEX(SHA2(CONCAT(%s, CAST(%s AS BINARY)), 256))), 256)", pad(0x5c), pad(0x36), column)
}

// edit moves articles through their states until the returned function ends it.
func (w *world) edit() (end func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	var hands sync.WaitGroup
	for hand := range 3 {
		random := rand.New(rand.NewPCG(7, uint64(hand)))
		hands.Go(func() {
			for ctx.Err() == nil {
				id := 1 + random.IntN(60)
				for _, status := range []string{"draft", "published", "archived", "published"}[random.IntN(3):] {
					query := "UPDATE articles SET status = ?, votes = votes + 1, price = price + 1 WHERE id = ?"
					switch random.IntN(12) {
					case 0:
						query = "DELETE FROM articles WHERE status = ? AND id = ?"
					case 1:
						query = "REPLACE INTO articles (status, id, title, price, email, phone, notes) VALUES (?, ?, 'again', 8, '" + secret + "@again.org', '" + secret + "222', '" + secret + "')"
					}
					if _, err := w.db.ExecContext(ctx, query, status, id); err != nil && ctx.Err() == nil {
						w.t.Errorf("edit: %v", err)
						return
					}
				}
				waitFor(w.t, 3*time.Millisecond)
			}
		})
	}
	end = sync.OnceFunc(func() { cancel(); hands.Wait() })
	w.t.Cleanup(end)
	return end
}

// Rows that move through a status machine end in each sink as its shape says, under
// load, when everything comes again, and when the stores are empty and the whole
// history comes through a fresh group. What is masked is nowhere.
func TestShapedRowsFollowTheirStatusAndMaskedValuesAreNowhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5)
	w.articles()
	w.sql(`INSERT INTO articles (status, title, votes, price, email, phone, notes) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)
		SELECT ELT(1 + i % 4, 'draft', 'published', 'archived', NULL), CONCAT('article ', i), i, i, IF(i % 7 = 0, NULL, CONCAT('` + secret + `', i, '@x.org')), CONCAT('` + secret + `', 1000 + i), '` + secret + `' FROM n`)
	p := w.start("run")
	p.awaitReady()
	end := w.edit()
	waitFor(t, 3*time.Second)
	end()

	w.sql("INSERT INTO articles (id, status, title, votes, price, email) VALUES (900, 'published', 'divided', 0, 20, '" + secret + "')")
	await(t, 20*time.Second, "the dead letter", func() bool { return p.metric("lockstep_sink_dead_letters_total", `class="shape"`) == 1 })
	var letters []struct{ ID, Sink, Key, Class, Reason string }
	w.lockstep(&letters, "dlq", "list")
	if len(letters) != 1 || letters[0].Sink != "search" || letters[0].Key != "900" || letters[0].Class != "shape" || !strings.HasSuffix(letters[0].Reason, ".shape.compute.share: 100 / row.votes, which reads votes: division by zero") {
		t.Errorf("dead letters: %+v", letters)
	}
	replayed, _ := exec.Command(w.binary, "dlq", "replay", "--all", "-c", w.config).Output() // fails, because the letter stays
	if !strings.Contains(string(replayed), "stays") || !strings.Contains(string(replayed), "division by zero") {
		t.Errorf("a replay goes around the shape: %s", replayed)
	}
	w.sql("UPDATE articles SET votes = 5 WHERE id = 900")
	w.equal(30 * time.Second)
	await(t, 20*time.Second, "the end of the letter", func() bool { return p.metric("lockstep_dlq_letters", `sink="search"`) == 0 })
	p.balanced("search")
	p.balanced("cache")
	published := p.metric("lockstep_capture_rows_total")
	p.stop()
	var findings []struct{ Check, Detail string }
	w.lockstep(&findings, "doctor")
	logs := []string{p.log}

	w.config = w.again // fresh groups; first over what is there, then over nothing
	for _, fresh := range []bool{false, true} {
		if fresh {
			w.otherGroups()
			w.erase()
		}
		again := w.start("run")
		await(t, 30*time.Second, "everything to come again", func() bool {
			again.alive()
			return again.metric("lockstep_sink_received_total") >= 2*published
		})
		w.equal(30 * time.Second)
		if applied := again.metric("lockstep_sink_changes_total", `outcome="applied"`, `.articles"`); fresh == (applied == 0) {
			t.Errorf("with empty stores: %t: %v changes of articles were applied", fresh, applied)
		}
		again.stop()
		logs = append(logs, again.log)
	}

	for name, text := range w.everything(logs) {
		if len(text) < 100 {
			t.Errorf("the test finds nothing in %s", name)
		}
		if at := strings.Index(text, secret); at >= 0 {
			t.Errorf("a masked value is in %s: %s", name, text[max(0, at-200):min(len(text), at+50)])
		}
		if strings.Contains(text, maskSalt) {
			t.Errorf("the salt is in %s", name)
		}
	}
}

// otherGroups gives the sinks a third name each.
func (w *world) otherGroups() {
	w.t.Helper()
	text, err := os.ReadFile(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.config = filepath.Join(w.t.TempDir(), "third.yaml")
	if err := os.WriteFile(w.config, []byte(strings.NewReplacer("search2:", "search3:", "cache2:", "cache3:").Replace(string(text))), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// erase empties both stores.
func (w *world) erase() {
	w.t.Helper()
	if err := oracle.Erase(w.t.Context(), w.spec); err != nil {
		w.t.Fatal(err)
	}
}

// everything is what Kafka, the stores and the logs hold of the articles.
func (w *world) everything(logs []string) map[string]string {
	w.t.Helper()
	held := map[string]string{}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			w.t.Fatal(err)
		}
		held[filepath.Base(path)] = string(text)
	}
	response, err := http.Get(w.spec.ElasticURL + "/" + w.name + "-articles/_search?size=1000")
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	documents, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	held["Elasticsearch"] = string(documents)

	store := redis.NewClient(&redis.Options{Addr: w.spec.RedisAddr})
	defer store.Close()
	keys, err := store.Keys(w.t.Context(), w.name+":articles:*").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, key := range keys {
		held["Redis"] += fmt.Sprintln(key, store.HGetAll(w.t.Context(), key).Val())
	}
	for _, topic := range []string{w.name + "." + w.name + ".articles", w.name + ".dlq.search"} {
		held["the topic "+topic] = w.topic(topic)
	}
	return held
}

// topic is all that the records of a topic hold.
func (w *world) topic(topic string) string {
	w.t.Helper()
	var all strings.Builder
	for partition := range 4 {
		ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
		defer cancel()
		conn, err := kafka.DialLeader(ctx, "tcp", w.brokers, topic, partition)
		if err != nil {
			w.t.Fatal(err)
		}
		end, err := conn.ReadLastOffset()
		conn.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		reader := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{w.brokers}, Topic: topic, Partition: partition, MaxWait: 100 * time.Millisecond})
		for offset := int64(0); offset < end; {
			record, err := reader.ReadMessage(ctx)
			if err != nil {
				w.t.Fatalf("read %s/%d to %d: %v", topic, partition, end, err)
			}
			fmt.Fprintf(&all, "%s %s %s\n", record.Key, record.Value, record.Headers)
			offset = record.Offset + 1
		}
		reader.Close()
	}
	return all.String()
}
