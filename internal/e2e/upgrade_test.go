package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"lockstep/internal/oracle"
	"lockstep/internal/testenv"
)

// Under load every process is replaced by one of another build, one by one, and each of these
// by the first build again: nothing is lost, buried or stepped back. A record of a format of
// the future stops who reads it and is not taken for a broken one.
func TestARollingUpgradeAndItsRollbackLoseNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 200)
	newer := testenv.LockstepOf(t, "v99.0.0")
	roles := [][]string{{"capture"}, {"capture"}, {"sink", "search"}, {"sink", "search"}, {"sink", "cache"}}
	running := make([]*process, len(roles))
	for i, role := range roles {
		running[i] = w.start(role...)
	}
	w.equal(2 * time.Minute)
	end := w.load(60, 5)
	watcher := &oracle.Watcher{Spec: w.spec}
	watching, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	watched := make(chan error, 1)
	go func() { watched <- watcher.Run(watching) }()
	for _, binary := range []string{newer, w.binary} {
		w.binary = binary
		for i, role := range roles {
			running[i].stop()
			running[i] = w.start(role...)
			running[i].awaitReady()
		}
	}
	t.Log(end())
	w.equal(2 * time.Minute)
	stop()
	if err := <-watched; err != nil {
		t.Fatal(err)
	}
	if watcher.Reads() == 0 {
		t.Error("nobody has watched")
	}
	for _, v := range watcher.Violations() {
		t.Errorf("step back: %s", v)
	}
	for _, p := range running {
		if dead := p.metric("lockstep_sink_dead_letters_total"); dead != 0 {
			t.Errorf("%v dead letters", dead)
		}
	}

	writer := &kafkago.Writer{Addr: kafkago.TCP(w.brokers), Topic: w.name + "." + w.name + ".questions", RequiredAcks: kafkago.RequireAll}
	defer writer.Close()
	if err := writer.WriteMessages(t.Context(), kafkago.Message{Key: []byte(`{"id":1}`), Value: []byte("what may come"), Headers: []kafkago.Header{{Key: "lockstep.format", Value: []byte("2")}}}); err != nil {
		t.Fatal(err)
	}
	cache := running[4]
	select {
	case <-cache.ended:
	case <-time.After(time.Minute):
		t.Fatal("a record of a later format has not stopped the sink")
	}
	said, err := os.ReadFile(cache.log)
	if err != nil || !strings.Contains(string(said), "written by a newer lockstep: the record has format 2") {
		t.Errorf("it ended without saying why, %v:\n%s", err, said)
	}
	var letters []any
	w.lockstep(&letters, "dlq", "list")
	if len(letters) != 0 {
		t.Errorf("it became a dead letter: %v", letters)
	}
	for _, p := range running[:2] {
		p.stop()
	}
}
