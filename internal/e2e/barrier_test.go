package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// hands write a row each time, wait at a barrier, and read it from the store: whatever
// happens meanwhile, a barrier that says "visible" has made it so.
type hands struct {
	w      *world
	doors  []func() string // the addresses of processes that are asked
	cache  *redis.Client
	reads  atomic.Int64 // behind a barrier
	early  atomic.Int64 // that did not find what was written
	waited atomic.Int64 // barriers that were not visible in time
	mu     sync.Mutex
	took   []time.Duration
}

// sharedRows are counters that all hands raise.
const sharedRows, firstShared = 2, 100_000

// work is one hand: it has rows of its own, and counts in those of all.
func (h *hands) work(ctx context.Context, hand, rows int, more func() bool) error {
	random := rand.New(rand.NewPCG(uint64(hand), 7))
	for n := 0; more() && ctx.Err() == nil; n++ {
		if random.IntN(2) == 0 {
			if err := h.count(ctx, random); err != nil {
				return err
			}
			continue
		}
		id := 1 + hand*rows + random.IntN(rows)
		title := fmt.Sprintf("hand %d has written %d", hand, n)
		if random.IntN(20) == 0 {
			title = "" // it is deleted
		}
		if err := h.write(ctx, id, title); err != nil {
			return err
		}
		for _, sink := range []string{"search", "cache"} {
			if err := h.pass(ctx, random, sink, id); err != nil {
				return err
			}
			got, _, err := h.read(ctx, sink, id)
			if err != nil {
				return err
			}
			h.reads.Add(1)
			if got != title {
				h.early.Add(1)
				h.w.t.Errorf("sink %s: row %d is %q behind the barrier; want %q", sink, id, got, title)
			}
		}
	}
	return nil
}

// count raises a counter that others raise, too: behind the barrier it is there, or higher.
func (h *hands) count(ctx context.Context, random *rand.Rand) error {
	id := firstShared + random.IntN(sharedRows)
	result, err := h.w.db.ExecContext(ctx, "UPDATE questions SET views = LAST_INSERT_ID(views + 1) WHERE id = ?", id)
	if err != nil {
		return err
	}
	count, err := result.LastInsertId()
	if err != nil {
		return err
	}
	sink := []string{"search", "cache"}[random.IntN(2)]
	if err := h.pass(ctx, random, sink, id); err != nil {
		return err
	}
	_, got, err := h.read(ctx, sink, id)
	if err != nil {
		return err
	}
	h.reads.Add(1)
	if got < count {
		h.early.Add(1)
		h.w.t.Errorf("sink %s: the counter of row %d is %d behind the barrier; want %d or more", sink, id, got, count)
	}
	return nil
}

// write leaves a row with a title, or deletes it for an empty one.
func (h *hands) write(ctx context.Context, id int, title string) error {
	if title == "" {
		_, err := h.w.db.ExecContext(ctx, "DELETE FROM questions WHERE id = ?", id)
		return err
	}
	_, err := h.w.db.ExecContext(ctx, `INSERT INTO questions (id, slug, title, statement, difficulty, points, settings, author_id) VALUES (?, ?, ?, '', 'easy', 1, '{}', 1)
		ON DUPLICATE KEY UPDATE title = VALUES(title)`, id, fmt.Sprintf("hand-%d", id), title)
	return err
}

// pass waits until the row is said to be visible, by one way of asking or another.
func (h *hands) pass(ctx context.Context, random *rand.Rand, sink string, id int) error {
	query := url.Values{}
	if random.IntN(2) == 0 {
		var gtids string
		if err := h.w.db.QueryRowContext(ctx, "SELECT @@GLOBAL.gtid_executed").Scan(&gtids); err != nil {
			return err
		}
		query.Set("gtid", gtids)
	}
	table, path := h.w.name+".questions", ""
	switch random.IntN(3) {
	case 0:
		query.Set("wait", "10s")
		path = fmt.Sprintf("/v1/freshness/%s/%s/%d", sink, table, id)
	case 1:
		query.Set("table", table)
		fallthrough
	default:
		query.Set("sink", sink)
		query.Set("timeout", "10s")
		path = "/v1/barrier"
	}
	for ctx.Err() == nil {
		door := h.doors[random.IntN(len(h.doors))]()
		began := time.Now()
		var answer struct {
			Visible bool
			State   string
		}
		err := ask(ctx, "http://"+door+path+"?"+query.Encode(), &answer)
		if err == nil && (answer.Visible || answer.State == "applied") {
			h.mu.Lock()
			h.took = append(h.took, time.Since(began))
			h.mu.Unlock()
			return nil
		}
		if err == nil {
			h.waited.Add(1)
			continue
		}
		select { // that process is being killed
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// ask gets an answer of the API.
func ask(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, body)
	}
	return json.Unmarshal(body, into)
}

// read is the title and the counter that a store has, empty and 0 when it has no row.
func (h *hands) read(ctx context.Context, sink string, id int) (title string, count int64, err error) {
	if sink == "cache" {
		fields, err := h.cache.HGetAll(ctx, fmt.Sprintf("%s:questions:%d", h.w.name, id)).Result()
		if err != nil || len(fields) == 0 {
			return "", 0, err
		}
		count, err := strconv.ParseInt(fields["views"], 10, 64)
		return fields["title"], count, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/%s-questions/_doc/%d", h.w.spec.ElasticURL, h.w.name, id), nil)
	if err != nil {
		return "", 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer res.Body.Close()
	var doc struct {
		Source struct {
			Title string
			Views int64
		} `json:"_source"`
	}
	if res.StatusCode == http.StatusNotFound {
		return "", 0, nil
	}
	err = json.NewDecoder(res.Body).Decode(&doc)
	return doc.Source.Title, doc.Source.Views, err
}

// A thousand times, or as often as LOCKSTEP_BARRIER_READS says, a row is written, a barrier
// waited for and the row read from a store, while workers are killed and come back, so that their partitions go to and fro between two
// processes, and the capture fails over. Not once is it not there.
func TestNoBarrierReturnsEarlyWhileWorkersAndCapturesAreKilled(t *testing.T) {
	t.Parallel()
	reads, _ := strconv.ParseInt(os.Getenv("LOCKSTEP_BARRIER_READS"), 10, 64)
	if reads == 0 {
		reads = 1000
	}
	w := newWorld(t, 10)
	h := &hands{w: w, cache: redis.NewClient(&redis.Options{Addr: w.spec.RedisAddr})}
	t.Cleanup(func() { h.cache.Close() })
	const workers, rows = 48, 10
	// Those that stay, and beside each of them one that comes and goes.
	stay := []*process{w.start("sink", "search"), w.start("sink", "cache")}
	var mu sync.Mutex
	moving := []*process{w.start("sink", "search"), w.start("sink", "cache"), w.start("capture"), w.start("capture")}
	args := [][]string{{"sink", "search"}, {"sink", "cache"}, {"capture"}, {"capture"}}
	for _, p := range stay {
		h.doors = append(h.doors, func() string { return p.admin })
	}
	for i := range moving {
		h.doors = append(h.doors, func() string {
			mu.Lock()
			defer mu.Unlock()
			return moving[i].admin
		})
	}
	for i := range sharedRows {
		if err := h.write(t.Context(), firstShared+i, "a counter"); err != nil {
			t.Fatal(err)
		}
	}
	w.equal(2 * time.Minute)

	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	var all sync.WaitGroup
	failed := make(chan error, workers)
	var sinkEnds, captureEnds atomic.Int64
	more := func() bool { return h.reads.Load() < reads || sinkEnds.Load() < 2 || captureEnds.Load() < 2 }
	for hand := range workers {
		all.Go(func() {
			if err := h.work(ctx, hand, rows, more); err != nil {
				failed <- err
				cancel()
			}
		})
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for turn := 0; ; turn++ {
		select {
		case <-done:
		case <-time.After(3*time.Second + time.Duration(random.Int64N(int64(4*time.Second)))):
			i := turn % len(moving)
			old := moving[i]
			if random.IntN(2) == 0 {
				old.kill()
			} else {
				old.stop()
			}
			if args[i][0] == "sink" {
				sinkEnds.Add(1)
			} else {
				captureEnds.Add(1)
			}
			started := w.start(args[i]...)
			mu.Lock()
			moving[i] = started
			mu.Unlock()
			continue
		}
		break
	}
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	slices.Sort(h.took)
	t.Logf("%d reads behind barriers, %d early; %d barriers were not visible within 10s; %d ends of sinks and %d of captures; half of the barriers within %s, the slowest %s",
		h.reads.Load(), h.early.Load(), h.waited.Load(), sinkEnds.Load(), captureEnds.Load(), h.took[len(h.took)/2].Round(time.Millisecond), h.took[len(h.took)-1].Round(time.Millisecond))
	if more() {
		t.Errorf("only %d reads, with %d ends of sinks and %d of captures", h.reads.Load(), sinkEnds.Load(), captureEnds.Load())
	}
	w.equal(2 * time.Minute)
}

// passes runs lockstep barrier, and gives its exit code, what it printed and what it said.
func (w *world) passes(args ...string) (code int, visible bool, said string) {
	w.t.Helper()
	cmd := exec.Command(w.binary, append(append([]string{"barrier"}, args...), "-c", w.config, "-o", "json")...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (&exec.ExitError{}); err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	var answer struct{ Visible bool }
	if len(out) > 0 {
		w.decode(&answer, out)
	}
	return cmd.ProcessState.ExitCode(), answer.Visible, stderr.String()
}

// found is how many documents a search of an index finds.
func (w *world) found(table, query string) (n int) {
	w.t.Helper()
	var answer struct{ Count int }
	if err := ask(w.t.Context(), fmt.Sprintf("%s/%s-%s/_count?q=%s", w.spec.ElasticURL, w.name, table, url.QueryEscape(query)), &answer); err != nil {
		w.t.Fatal(err)
	}
	return answer.Count
}

// A barrier waits for the first copy and for the sweep behind a TRUNCATE, tells of what a
// dead letter hides, and says for whom it waits when nobody answers.
func TestABarrierWaitsForCopiesAndSweepsAndTellsOfDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1000)
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	slow := strings.Replace(string(text), "server_id:", "snapshot: {rows_per_second: 500}, server_id:", 1)
	if err := os.WriteFile(w.config, []byte(slow), 0o600); err != nil {
		t.Fatal(err)
	}
	p := w.start("run")
	expect := func(what string, code int, part string, args ...string) {
		t.Helper()
		got, visible, said := w.passes(args...)
		if got != code || visible != (code == 0) || !strings.Contains(said, part) {
			t.Fatalf("%s: barrier %q ends with %d, visible %v and %q; want %d and %q", what, args, got, visible, said, code, part)
		}
	}
	rows := func(table string) (n int) {
		t.Helper()
		if err := w.db.QueryRow("SELECT COUNT(*) FROM " + table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	expect("during the first copy", 0, "", "--sink", "search", "--search", "--timeout", "2m")
	for _, table := range []string{"questions", "tags", "question_tags"} {
		if n := w.found(table, "*"); n != rows(table) {
			t.Fatalf("behind the barrier a search finds %d of %d %s", n, rows(table), table)
		}
	}
	expect("behind the first copy", 0, "", "--timeout", "1m")

	w.sql("UPDATE questions SET title = 'heliotrope' WHERE id <= 40")
	expect("behind an update", 0, "", "--sink", "search", "--table", w.name+".questions", "--search", "--timeout", "1m")
	if n := w.found("questions", "title:heliotrope"); n != 40 {
		t.Errorf("behind the barrier a search finds %d of 40", n)
	}

	w.sql("TRUNCATE question_tags")
	expect("behind TRUNCATE", 0, "", "--sink", "search", "--search", "--timeout", "1m")
	if n := w.found("question_tags", "*"); n != 0 {
		t.Errorf("behind the barrier a search finds %d rows of an empty table", n)
	}

	fresh := func(sink string, id int) (state, letter string) {
		t.Helper()
		var row struct {
			State  string
			Letter struct{ ID string }
		}
		if err := ask(t.Context(), fmt.Sprintf("http://%s/v1/freshness/%s/%s.questions/%d?wait=20s", p.admin, sink, w.name, id), &row); err != nil {
			t.Fatal(err)
		}
		return row.State, row.Letter.ID
	}
	w.sql(`UPDATE questions SET settings = '"checker: none"', title = 'refused' WHERE id = 5`)
	expect("with a letter", 1, "open dead letters of "+w.name+".questions hide what the store has refused: 1 ", "--sink", "search", "--timeout", "1m")
	expect("of another table", 0, "", "--sink", "search", "--table", w.name+".tags", "--timeout", "1m")
	expect("of the other sink", 0, "", "--sink", "cache", "--timeout", "1m")
	open := w.openLetters()["search"]
	if len(open) != 1 {
		t.Fatalf("letters: %v", open)
	}
	for id, want := range map[int]string{5: "dead-lettered", 6: "applied", 999_999: "applied"} {
		if state, letter := fresh("search", id); state != want || (letter == open[0].ID) != (id == 5) {
			t.Errorf("row %d is %s with letter %q; want %s", id, state, letter, want)
		}
	}
	if state, _ := fresh("cache", 5); state != "applied" {
		t.Errorf("in the cache row 5 is %s", state)
	}
	w.sql(`UPDATE questions SET settings = '{}' WHERE id = 5`)
	expect("when it is mended", 0, "", "--timeout", "1m")
	if state, _ := fresh("search", 5); state != "applied" {
		t.Errorf("row 5 is %s", state)
	}

	expect("of no table", 2, w.name+".nothing is not captured", "--table", w.name+".nothing")
	expect("of no transaction", 2, "names no transactions", "--gtid", "12")
	expect("of no sink", 2, `has no sink "nowhere"`, "--sink", "nowhere")
	expect("of a transaction that never comes", 1, "the capture has not read up to the transactions", "--gtid", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1", "--timeout", "2s")
	p.stop()
	w.sql("UPDATE questions SET title = 'nobody' WHERE id = 6")
	expect("when nothing runs", 1, "no capture is heard of", "--timeout", "2s")
	capture := w.start("capture")
	capture.awaitReady()
	expect("when no sink runs", 1, "no process of sink cache is heard of that has partition", "--sink", "cache", "--timeout", "10s")
	capture.stop()
}
