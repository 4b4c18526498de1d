package audit

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/internal/testenv"
	"lockstep/kafka"
)

// desk is a process' way to a real Kafka.
type desk struct {
	*kafka.Client
	publisher *kafka.Publisher
}

func (d desk) Produce(ctx context.Context, r kafka.Record) error {
	if err := d.publisher.Publish(ctx, r); err != nil {
		return err
	}
	return d.publisher.Flush(ctx)
}

func open(addr string) (desk, func(), error) {
	quiet := slog.New(slog.DiscardHandler)
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{addr}
	client, err := kafka.Open(cfg, "audittest", quiet)
	if err != nil {
		return desk{}, nil, err
	}
	d := desk{client, kafka.NewPublisher(client, cfg, kafka.NewMetrics(prometheus.NewRegistry()), quiet)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = d.publisher.Run(ctx) }()
	return d, func() { stop(); <-done; client.Close() }, nil
}

const writes = "LOCKSTEP_TEST_WRITES_AUDIT"

// TestMain is, in a child of a test, a process that does acts until it is killed, and
// says each that was confirmed.
func TestMain(m *testing.M) {
	prefix, addr, ok := strings.Cut(os.Getenv(writes), "@")
	if !ok {
		os.Exit(m.Run())
	}
	d, _, err := open(addr)
	l := &Log{Prefix: prefix, Kafka: d}
	for i := 0; err == nil; i++ {
		act := Act{Actor: strconv.Itoa(os.Getpid()), Via: "cli", Name: "dlq.skip", Filter: map[string]string{"n": strconv.Itoa(i)}}
		err = l.Do(context.Background(), act, func() (map[string]int, error) { return nil, nil })
		fmt.Println(i)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Processes write at the same time and are killed at any moment: what was confirmed is in
// the chain, once, and the chain is whole.
func TestProcessesThatWriteAtOnceAndAreKilledDoNotForkTheChain(t *testing.T) {
	broker := testenv.Kafka(t)
	prefix := "audittest-" + uuid.NewString()[:8]
	d, end, err := open(broker.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := d.EnsureTopic(ctx, Topic(prefix)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.DeleteTopics(context.WithoutCancel(ctx), TopicOf(prefix)); err != nil {
			t.Error(err)
		}
	}()

	var mu sync.Mutex
	confirmed := map[string]bool{} // actor/n
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Each child is killed when it has said so many acts: in the middle of the next.
	var all sync.WaitGroup
	for child := range 4 {
		all.Go(func() {
			cmd := exec.CommandContext(ctx, self)
			cmd.Env = append(os.Environ(), writes+"="+prefix+"@"+broker.Addr)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Error(err)
				return
			}
			lines := bufio.NewScanner(out)
			for n := 0; n < 3+child && lines.Scan(); n++ {
				mu.Lock()
				confirmed[fmt.Sprint(cmd.Process.Pid, "/", lines.Text())] = true
				mu.Unlock()
			}
			_ = cmd.Process.Kill()
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
		})
	}
	all.Wait()
	if ctx.Err() != nil || len(confirmed) != 4*3+6 {
		t.Fatalf("%d acts are confirmed, %v", len(confirmed), ctx.Err())
	}
	v, err := Verify(ctx, d, prefix, nil)
	if err != nil || len(v.Breaks) != 0 {
		t.Fatalf("%+v, %v", v, err)
	}
	if v.Late == 0 {
		t.Error("nobody was late, so this shows nothing")
	}
	acts, _, err := List(ctx, d, prefix, Filter{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, a := range acts {
		who := a.Actor + "/" + a.Filter["n"]
		if seen[who] {
			t.Errorf("%s is there twice", who)
		}
		seen[who] = true
		if confirmed[who] && a.Outcome != Done {
			t.Errorf("%s was confirmed and is %s", who, a.Outcome)
		}
	}
	for who := range confirmed {
		if !seen[who] {
			t.Errorf("%s was confirmed and is not there", who)
		}
	}
	t.Logf("%d records, %d late, %d acts", v.Records, v.Late, len(acts))
}
