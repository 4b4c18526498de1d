package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"lockstep/internal/bank"
	"lockstep/internal/oracle"
	"lockstep/internal/testenv"
)

// Random inserts, updates, deletes and changes of primary keys from several
// connections end equal, with capture and each sink in processes of their own;
// and when everything is delivered again from the first offset, nothing changes.
func TestRandomChangesEndEqualAndRedeliveryChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 300)
	capture := w.start("capture")
	search := []*process{w.start("sink", "search"), w.start("sink", "search")}
	cache := w.start("sink", "cache")
	end := w.load(100, 1)
	for seed := range uint64(8) {
		if err := bank.ChangeAllTypes(t.Context(), w.db, seed); err != nil {
			t.Fatal(err)
		}
		waitFor(t, 2*time.Second)
	}
	stats := end()
	t.Log(stats)
	if stats.Inserts == 0 || stats.Updates == 0 || stats.Deletes == 0 || stats.KeyUpdates == 0 {
		t.Fatalf("the load has not made every kind of change: %s", stats)
	}
	w.equal(90 * time.Second)
	cache.balanced("cache")
	for _, p := range append(search, cache) {
		if dead := p.metric("lockstep_sink_dead_letters_total"); dead != 0 {
			t.Errorf("%v dead letters", dead)
		}
	}
	published := capture.metric("lockstep_capture_rows_total")
	for _, p := range append(search, cache, capture) {
		p.stop()
	}

	w.config = w.again
	for _, sink := range []string{"search2", "cache2"} {
		again := w.start("sink", sink)
		again.awaitReady()
		await(t, 2*time.Minute, "every record to be delivered again", func() bool {
			again.alive()
			return again.metric("lockstep_sink_received_total") >= published
		})
		again.balanced(sink)
		known := 0.0
		for _, outcome := range []string{"stale", "duplicate", "superseded"} {
			known += again.metric("lockstep_sink_changes_total", fmt.Sprintf("outcome=%q", outcome))
		}
		if received := again.metric("lockstep_sink_received_total"); known != received {
			t.Errorf("sink %s: %v of %v redelivered records are stale, duplicate or superseded; %v were applied", sink, known, received,
				again.metric("lockstep_sink_changes_total", `outcome="applied"`))
		}
		again.stop()
	}
	w.equal(time.Second)
}

// waitFor lets the load run.
func waitFor(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// Killed ten times at random moments under load, in the first copy too, the
// pipeline ends equal, and no reader ever sees the version of a key go down.
func TestKilledAtRandomMomentsItEndsEqualAndNoReaderSeesAStepBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2000)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	end := w.load(80, seed)
	watcher := &oracle.Watcher{Spec: w.spec}
	watching, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	watched := make(chan error, 1)
	go func() { watched <- watcher.Run(watching) }()
	defer func() { stop() }()
	var logs []string
	for range 10 {
		p := w.start("run")
		logs = append(logs, p.log)
		await(t, 30*time.Second, "the capture to be active", func() bool { return p.metric("lockstep_capture_active") == 1 })
		waitFor(t, time.Duration(random.Int64N(int64(5*time.Second))))
		p.alive()
		p.kill()
	}
	p := w.start("run")
	p.awaitReady()
	waitFor(t, 2*time.Second)
	t.Log(end())
	w.equal(90 * time.Second)
	stop()
	if err := <-watched; err != nil {
		t.Fatal(err)
	}
	if reads := watcher.Reads(); reads < 5000 {
		t.Errorf("the watcher has read only %d times", reads)
	}
	for _, v := range watcher.Violations() {
		t.Errorf("step back: %s", v)
	}
	if dead := p.metric("lockstep_sink_dead_letters_total"); dead != 0 {
		t.Errorf("%v dead letters", dead)
	}
	if losses := p.metric("lockstep_sink_store_losses_total"); losses != 0 {
		t.Errorf("%v losses of a store that has lost nothing", losses)
	}
	p.stop()
	for _, name := range append(logs, p.log) {
		if log, err := os.ReadFile(name); err != nil || strings.Contains(string(log), "the store is behind what was committed") {
			t.Errorf("a killed pipeline is taken for a loss of the store, %v:\n%s", err, log)
		}
	}
}

// A store that is away makes lag and nothing else: no dead letter, and when it is back the
// pipeline catches up alone. Told to stop meanwhile, it stops in time, and the next start
// finds everything.
func TestAStoreThatIsAwayMakesLagAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 200)
	cache := w.ownRedis("--appendonly", "yes")
	address := theServers(t).search.Addr
	search := testenv.NewRelay(t, address)
	w.replace(address, search.Addr)
	p := w.start("run")
	p.awaitReady()
	end := w.load(50, 2)
	p.outage("elasticsearch", func() { search.Point("127.0.0.1:1") }, func() { search.Point(address) })
	p.outage("redis", func() { cache.Stop(t) }, func() { cache.Start(t) })
	t.Log(end())
	w.settled(p)

	cache.Stop(t)
	w.sql("UPDATE questions SET views = views + 1")
	waitFor(t, 2*time.Second)
	p.stop()
	cache.Start(t)
	p = w.start("run")
	w.equal(90 * time.Second)
	p.stop()
}

// So it is with Kafka.
func TestKafkaThatIsAwayMakesLagAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 200)
	kafka := w.ownKafka(theServers(t).authority)
	w.replace("lease_timeout: 3s", "lease_timeout: 1m") // nobody gives it up because it was slow
	p := w.start("run")
	w.equal(time.Minute) // every topic is there: none can be made while Kafka is away
	end := w.load(50, 2)
	p.outage("kafka", kafka.Stop, func() { kafka.Start(t) })
	t.Log(end())
	w.settled(p)

	kafka.Stop()
	w.sql("UPDATE questions SET views = views + 1")
	waitFor(t, 2*time.Second)
	p.stop()
	kafka.Start(t)
	p = w.start("run")
	w.equal(90 * time.Second)
	p.stop()
}

// outage takes a server away until so much waits for it that it was missed, and then until
// the process has caught up.
func (p *process) outage(server string, away, back func()) {
	t := p.w.t
	t.Helper()
	before := p.w.behind(p, server)
	away()
	waitFor(t, 5*time.Second) // more than one try
	await(t, patience, "the lag to grow while "+server+" is away", func() bool {
		p.alive()
		return p.w.behind(p, server) >= before+500
	})
	back()
	await(t, patience, "the pipeline to catch up after "+server, func() bool {
		p.alive()
		return p.w.behind(p, server) < before+400
	})
}

// behind is how many records wait before the server: to be applied in a store, or
// to be acknowledged by Kafka.
func (w *world) behind(p *process, server string) float64 {
	switch server {
	case "elasticsearch":
		return p.metric("lockstep_consumer_lag_records", `.search"`)
	case "redis":
		return p.metric("lockstep_consumer_lag_records", `.cache"`)
	}
	return p.metric("lockstep_kafka_published_records_total") - p.metric("lockstep_kafka_acked_records_total")
}

// One row that a store refuses becomes one dead letter; its neighbours and later
// rows go through, a replay changes nothing, and the letter ends by itself when the row
// is mended in the source, whatever was killed meanwhile.
func TestOnePoisonRowIsOneDeadLetterAndTheRestGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 200)
	p := w.start("run")
	p.awaitReady()
	end := w.load(60, 3)
	waitFor(t, 2*time.Second)
	id, err := bank.PlantPoison(t.Context(), w.db)
	if err != nil {
		t.Fatal(err)
	}
	await(t, 30*time.Second, "the dead letter", func() bool { return p.metric("lockstep_sink_dead_letters_total") > 0 })
	waitFor(t, 3*time.Second)
	t.Log(end())
	key := fmt.Sprint(id)
	for i := range w.spec.Tables {
		if w.spec.Tables[i].Table == "questions" {
			w.spec.Tables[i].SkipElastic = map[string]bool{key: true}
		}
	}
	w.equal(60 * time.Second)
	p.balanced("search")
	p.balanced("cache")

	type letter struct {
		ID, Sink, Table, Key, Class, GTID string
		Retries                           int
		Reason                            string
		Undelivered                       time.Time
	}
	var letters []letter
	w.lockstep(&letters, "dlq", "list")
	if len(letters) != 1 || letters[0].Key != key || letters[0].Sink != "search" || letters[0].Table != w.name+".questions" || letters[0].Class != "mapping" || letters[0].GTID == "" || letters[0].Reason == "" {
		t.Fatalf("dead letters: %+v; want the one of questions/%s in search", letters, key)
	}

	applied, delivered := p.metric("lockstep_sink_applied_up_to_timestamp_seconds", `sink="search"`), p.metric("lockstep_sink_delivered_up_to_timestamp_seconds", `sink="search"`)
	if committed := float64(letters[0].Undelivered.Unix()); delivered != committed || applied <= committed+1 {
		t.Errorf("applied up to %f and delivered up to %f, and a change that was committed at %f is a letter", applied, delivered, committed)
	}
	asked := time.Now()
	if age := p.metric("lockstep_dlq_undelivered_seconds", `sink="search"`, `.questions"`); age < asked.Sub(letters[0].Undelivered).Seconds()-5 {
		t.Errorf("the oldest change that is not delivered is %f seconds old, and was committed at %s", age, letters[0].Undelivered)
	}

	again, _ := exec.Command(w.binary, "dlq", "replay", letters[0].ID, "-c", w.config).Output() // fails, because the letter stays
	if !strings.Contains(string(again), "stays") {
		t.Errorf("replay of what is refused still: %s", again)
	}
	p.kill()
	if _, err := w.db.Exec("UPDATE questions SET settings = JSON_OBJECT('mended', true) WHERE id = ?", id); err != nil {
		t.Fatal(err)
	}
	for i := range w.spec.Tables {
		w.spec.Tables[i].SkipElastic = nil
	}
	p = w.start("run")
	p.awaitReady()
	w.equal(60 * time.Second)
	await(t, 30*time.Second, "the end of the letter", func() bool { return p.metric("lockstep_dlq_closed_total", `state="superseded"`) == 1 })
	if open := p.metric("lockstep_dlq_letters", `sink="search"`); open != 0 {
		t.Errorf("%v letters are counted after the last one was closed", open)
	}
	w.lockstep(&letters, "dlq", "list")
	if len(letters) != 0 {
		t.Errorf("letters after the row was mended: %+v", letters)
	}
	p.balanced("search")
	p.stop()
}

// Rows that a store refuses one like the other hold their table, and no other, instead
// of becoming as many dead letters; lockstep status says so; when they are mended the
// table goes on by itself.
func TestAFloodOfRefusalsHoldsTheTableUntilItIsMended(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 800)
	p := w.start("run")
	w.equal(90 * time.Second)
	w.sql(`UPDATE questions SET settings = CAST('"checker: none"' AS JSON)`)
	search, questions := `sink="search"`, fmt.Sprintf("table=%q", w.name+".questions")
	await(t, time.Minute, "the table to be held", func() bool {
		return p.metric("lockstep_sink_table_held", search, questions, `class="mapping"`) == 1
	})
	var status struct {
		Sinks []struct {
			Name   string
			Tables []struct {
				Table   string
				Breaker struct{ State, Class, Fingerprint, Reason string }
			}
		}
	}
	out, err := exec.Command(w.binary, "status", "--address", p.admin, "-o", "json").Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 {
		t.Errorf("lockstep status ended with %v; want exit code 3", err)
	}
	if err := json.Unmarshal(out, &status); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, s := range status.Sinks {
		for _, table := range s.Tables {
			b := table.Breaker
			held := s.Name == "search" && table.Table == w.name+".questions"
			if held != (b.State != "closed") || held && (b.Class != "mapping" || b.Fingerprint == "" || b.Reason == "") {
				t.Errorf("sink %s, table %s: %+v", s.Name, table.Table, b)
			}
		}
	}
	applied := func() float64 {
		return p.metric("lockstep_sink_changes_total", search, fmt.Sprintf("table=%q", w.name+".tags"), `outcome="applied"`)
	}
	before := applied()
	w.sql("UPDATE tags SET name = CONCAT(name, '+')")
	await(t, 30*time.Second, "another table to go on", func() bool { return applied() > before })
	waitFor(t, 6*time.Second) // a try
	if n := p.metric("lockstep_sink_dead_letters_total"); n > 200 {
		t.Errorf("%v dead letters of 800 rows; want no more than the window", n)
	}
	w.sql("UPDATE questions SET settings = JSON_OBJECT('mended', id)")
	w.equal(2 * time.Minute)
	p.balanced("search")
	p.stop()
}

// A column gets a type that the index cannot follow, though it takes every value: the table
// is held by the first row, says so with the command that mends it, and holds up no other.
func TestAnAlteredTableIsHeldUntilItsIndexIsRebuilt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 50)
	p := w.start("run")
	w.equal(time.Minute)
	search, tags := `sink="search"`, fmt.Sprintf("table=%q", w.name+".tags")
	w.sql("ALTER TABLE tags MODIFY description TEXT")
	await(t, time.Minute, "the table to be held", func() bool {
		return p.metric("lockstep_sink_table_held_partitions", search, tags, `by="table"`) > 0
	})
	out, err := exec.Command(w.binary, "status", "--address", p.admin).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 {
		t.Errorf("lockstep status ended with %v; want exit code 3", err)
	}
	command := "rebuild search --table " + w.name + ".tags"
	for _, want := range []string{"table " + w.name + ".tags is held since ", "field description is keyword and column description text needs text\n  mend: run: lockstep " + command} {
		if !strings.Contains(string(out), want) {
			t.Errorf("lockstep status does not say %q:\n%s", want, out)
		}
	}
	applied := func() float64 {
		return p.metric("lockstep_sink_changes_total", search, fmt.Sprintf("table=%q", w.name+".questions"), `outcome="applied"`)
	}
	before := applied()
	w.sql("UPDATE questions SET title = CONCAT(title, '+')")
	await(t, 30*time.Second, "another table to go on", func() bool { return applied() == before+50 })
	if n := p.metric("lockstep_sink_breaker_state", search); n != 0 {
		t.Errorf("the state of the sink's breaker is %v; want 0, closed", n)
	}
	var rebuilt struct{ To string }
	if w.lockstep(&rebuilt, strings.Fields(command)...); !strings.HasSuffix(rebuilt.To, "-tags-000002") {
		t.Errorf("rebuilt to %q", rebuilt.To)
	}
	w.equal(time.Minute)
	await(t, 30*time.Second, "the table to go on", func() bool {
		return p.metric("lockstep_sink_table_held_partitions") == 0
	})
	p.stop()
}

// A table whose rows a sink has already, written by nobody this pipeline knows, is
// refused: their versions may be higher than ours.
func TestASinkThatHasRowsOfUnknownVersionsIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 20)
	p := w.start("run")
	w.equal(time.Minute)
	p.stop()
	text, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(text), "prefix: "+w.name, "prefix: "+w.name+"-b", 1)
	if err := os.WriteFile(w.config, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	rights := testenv.KafkaRights(t, "## Kafka", w.name)
	for i := range rights {
		rights[i].ResourceName = w.name + "-b."
	}
	theServers(t).kafka.Allow(t, rights...)
	p = w.start("run")
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	log, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	if p.err == nil || !strings.Contains(string(log), "versions nobody knows") {
		t.Fatalf("it ended with %v and said\n%s", p.err, log)
	}
	p = w.start("run", "--resnapshot", "--epoch", "7", "--actor", "ann")
	if _, err := w.db.Exec("UPDATE questions SET title = 'after the epoch' WHERE id = 1"); err != nil {
		t.Fatal(err)
	}
	w.equal(time.Minute)
	p.stop()
	var acts []struct {
		Actor, Act, Outcome string
		Filter              map[string]string
	}
	w.lockstep(&acts, "audit", "list")
	var did []string
	for _, act := range acts {
		did = append(did, act.Actor+" "+act.Act+" "+act.Filter["epoch"]+" "+act.Outcome)
	}
	if want := []string{"ann snapshot.resnapshot  done", "ann capture.epoch 7 done"}; !slices.Equal(did, want) {
		t.Errorf("the audit log says %q, want %q", did, want)
	}
}
