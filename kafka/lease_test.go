package kafka

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// contender wants the lease.
type contender struct {
	*Lease
	began, ended atomic.Int32
	stop         func() error
}

// contend starts a member of its own client, as another process would be. holding counts
// those that hold now.
func contend(t *testing.T, cfg Config, prefix string, holding *atomic.Int32) *contender {
	c := open(t, cfg)
	must(t, EnsureCheckpoint(deadline(t, 20*time.Second), c, prefix))
	m := &contender{}
	m.Lease = &Lease{
		Client: c, Group: prefix + ".capture", Topic: CheckpointTopic(prefix), Metrics: NewLeaseMetrics(prometheus.NewRegistry()), Log: quiet,
		Hold: func(ctx context.Context) error {
			if n := holding.Add(1); n != 1 {
				t.Errorf("%d hold the lease at a time", n)
			}
			m.began.Add(1)
			<-ctx.Done()
			time.Sleep(100 * time.Millisecond) // nobody else begins meanwhile
			holding.Add(-1)
			m.ended.Add(1)
			return context.Cause(ctx)
		},
	}
	m.stop = running(t, m.Run)
	return m
}

func TestOneMemberHoldsTheLeaseAndTheOthersComeAndGoWithoutDisturbingIt(t *testing.T) {
	cfg, prefix := real(t)
	cfg.LeaseTimeout = 3 * time.Second
	var holding atomic.Int32
	first := contend(t, cfg, prefix, &holding)
	until(t, "the first to hold it", func() bool { return first.State() == LeaseActive })
	others := []*contender{contend(t, cfg, prefix, &holding), contend(t, cfg, prefix, &holding), contend(t, cfg, prefix, &holding)}
	for _, other := range others {
		until(t, "the others to stand by", func() bool { return other.State() == LeaseStandby })
	}
	before := first.claim.Load()
	if err := others[0].stop(); err != nil {
		t.Error(err)
	}
	until(t, "a new round", func() bool { return first.claim.Load() > before })
	if first.began.Load() != 1 || first.ended.Load() != 0 {
		t.Errorf("the holder was disturbed: it began %d times and ended %d times", first.began.Load(), first.ended.Load())
	}
	if got := testutil.ToFloat64(first.Metrics.active); got != 1 {
		t.Errorf("the metric of the holder says %v", got)
	}
	if got := testutil.ToFloat64(others[1].Metrics.active); got != 0 {
		t.Errorf("the metric of one that stands by says %v", got)
	}
	began := time.Now()
	if err := first.stop(); err != nil {
		t.Errorf("told to stop it ended with %v", err)
	}
	until(t, "another one to take over", func() bool { return others[1].State() == LeaseActive || others[2].State() == LeaseActive })
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the lease that was given back was taken after %s", took)
	}
}

func TestTheErrorOfTheHolderEndsIt(t *testing.T) {
	cfg, prefix := real(t)
	c := open(t, cfg)
	ctx := deadline(t, 30*time.Second)
	must(t, EnsureCheckpoint(ctx, c, prefix))
	broken := errors.New("the log is gone")
	l := &Lease{Client: c, Group: prefix + ".capture", Topic: CheckpointTopic(prefix), Metrics: NewLeaseMetrics(prometheus.NewRegistry()), Log: quiet,
		Hold: func(context.Context) error { return broken }}
	if err := l.Run(ctx); !errors.Is(err, broken) {
		t.Errorf("it ended with %v", err)
	}
	c.cfg.LeaseTimeout = time.Hour // above the broker's group.max.session.timeout.ms
	if err := l.Run(ctx); err == nil || !strings.Contains(err.Error(), "Session Timeout") {
		t.Errorf("with a timeout that the broker does not take it ended with %v", err)
	}
}

// A holder that stands still loses the lease, hears of it when it goes on, and
// stands by. It is a process of its own, because only that can be stopped.
func TestAHolderThatStoodStillStandsByWhenItGoesOn(t *testing.T) {
	const member = "LOCKSTEP_TEST_LEASE"
	cfg, prefix := real(t)
	cfg.LeaseTimeout = 3 * time.Second
	var holding atomic.Int32
	if name := os.Getenv(member); name != "" {
		log := slog.New(slog.NewTextHandler(os.Stdout, nil))
		l := &Lease{Client: open(t, cfg), Group: name + ".capture", Topic: CheckpointTopic(name), Metrics: NewLeaseMetrics(prometheus.NewRegistry()), Log: log,
			Hold: func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }}
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(0) }()
		must(t, l.Run(t.Context()))
		return
	}
	must(t, EnsureCheckpoint(deadline(t, 20*time.Second), open(t, cfg), prefix))
	self, err := os.Executable()
	must(t, err)
	child := exec.Command(self, "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), member+"="+prefix)
	var said lines
	child.Stdout = &said
	in, err := child.StdinPipe()
	must(t, err)
	must(t, child.Start())
	defer child.Wait()
	defer in.Close()
	until(t, "the other process to hold it", func() bool { return said.has("active:") })
	second := contend(t, cfg, prefix, &holding)
	until(t, "this one to stand by", func() bool { return second.State() == LeaseStandby })
	must(t, child.Process.Signal(syscall.SIGSTOP))
	defer child.Process.Signal(syscall.SIGCONT)
	until(t, "this one to take over", func() bool { return second.State() == LeaseActive })
	must(t, child.Process.Signal(syscall.SIGCONT))
	until(t, "the other one to stand by", func() bool { return said.has("stood still") && said.has("standing by: another") })
	if second.began.Load() != 1 || second.State() != LeaseActive {
		t.Errorf("the one that took over was disturbed: it began %d times and is %s", second.began.Load(), second.State())
	}
}
