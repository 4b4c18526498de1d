package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"lockstep/internal/bank"
	"lockstep/internal/testenv"
)

// The number of partitions is raised while the source changes and letters are open, and the
// processes are killed meanwhile, of which one has the old number for a while. Nothing goes
// missing; a row that is mended afterwards closes its letter, wherever that is now; and the
// number cannot be lowered.
func TestTheNumberOfPartitionsIsRaisedUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 500)
	partitions := func(n int) {
		text, err := os.ReadFile(w.config)
		if err != nil {
			t.Fatal(err)
		}
		for _, old := range []int{4, 2, 5} {
			text = []byte(strings.Replace(string(text), fmt.Sprintf("partitions: %d,", old), fmt.Sprintf("partitions: %d,", n), 1))
		}
		if err := os.WriteFile(w.config, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	partitions(2)
	for _, right := range testenv.KafkaRights(t, "## Kafka", w.name) { // more than what a pipeline needs otherwise
		if right.ResourceType == kafkago.ResourceTypeTopic {
			right.Operation = kafkago.ACLOperationTypeAlter
			theServers(t).kafka.Allow(t, right)
			break
		}
	}
	p := w.start("run")
	p.awaitReady()
	end := w.load(60, 5)
	const rows = 12
	var ids []uint64
	for range rows {
		id, err := bank.PlantPoison(t.Context(), w.db)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	type letter struct {
		ID, Sink, Key, State string
		Retries              int
		FirstFailed          time.Time `json:"first_failed"`
		Source               struct {
			Topic     string
			Partition int
			Offset    int64
		}
	}
	listed := func() map[string]letter {
		var letters []letter
		w.lockstep(&letters, "dlq", "list")
		byKey := map[string]letter{}
		for _, l := range letters {
			if _, twice := byKey[l.Key]; twice {
				t.Errorf("the letter of row %s is listed twice: %+v", l.Key, letters)
			}
			byKey[l.Key] = l
		}
		return byKey
	}
	await(t, 60*time.Second, "the dead letters", func() bool { return p.metric("lockstep_sink_dead_letters_total") >= rows })
	before := listed()
	if len(before) != rows {
		t.Fatalf("%d letters, want %d: %+v", len(before), rows, before)
	}

	old := w.start("sink", "search") // it has the old number, and goes on with it
	old.awaitReady()
	partitions(5)
	for i := range 4 {
		p.kill()
		p = w.start("run")
		await(t, 60*time.Second, "the capture to be active", func() bool { return p.metric("lockstep_capture_active") == 1 })
		waitFor(t, time.Duration(i)*700*time.Millisecond)
		if after := listed(); len(after) != rows {
			t.Errorf("%d letters while they are moved, want %d: %+v", len(after), rows, after)
		}
	}
	old.kill()
	p.awaitReady()
	await(t, 90*time.Second, "every letter to be in one partition", func() bool { // this process has all of them
		p.alive()
		return p.metric("lockstep_dlq_loading_partitions") == 0 && p.metric("lockstep_dlq_letters", `sink="search"`) == rows
	})
	for key, was := range before {
		if is := listed()[key]; is != was {
			t.Errorf("the letter of row %s is %+v after the growth and was %+v", key, is, was)
		}
	}

	p.kill()
	for _, id := range ids[:rows-1] {
		if _, err := w.db.Exec("UPDATE questions SET settings = JSON_OBJECT('mended', true) WHERE id = ?", id); err != nil {
			t.Fatal(err)
		}
	}
	p = w.start("run")
	p.awaitReady()
	t.Log(end())
	last := fmt.Sprint(ids[rows-1])
	await(t, 60*time.Second, "the end of the letters", func() bool { // they are counted one by one while they are read
		return p.metric("lockstep_dlq_loading_partitions") == 0 && p.metric("lockstep_dlq_letters", `sink="search"`) == 1
	})
	left := listed()
	if _, stays := left[last]; !stays || len(left) != 1 {
		t.Errorf("letters after all rows but %s were mended: %+v", last, left)
	}
	if _, err := w.db.Exec("UPDATE questions SET settings = JSON_OBJECT('mended', true) WHERE id = ?", ids[rows-1]); err != nil {
		t.Fatal(err)
	}
	w.equal(90 * time.Second)
	await(t, 60*time.Second, "the end of the last letter", func() bool { return len(listed()) == 0 })
	p.stop()

	partitions(2)
	out, err := exec.Command(w.binary, "run", "-c", w.config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "set kafka.partitions to 5 or more, because Kafka takes no partition away") {
		t.Errorf("with a smaller number it ends with %v:\n%s", err, out)
	}
}
