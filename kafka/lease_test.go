package kafka

import (
	"context"
	"encoding/binary"
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
	kafkago "github.com/segmentio/kafka-go"
)

// contender wants the lease.
type contender struct {
	*Lease
	began, ended atomic.Int32
	stop         func() error
}

// holders are how many hold the lease now.
type holders struct {
	atomic.Int32
	overlap atomic.Bool // two may for a moment
}

// contend starts a member of its own client, as another process would be.
func contend(t *testing.T, cfg Config, prefix string, holding *holders) *contender {
	c := open(t, cfg)
	must(t, EnsureCheckpoint(deadline(t, 20*time.Second), c, prefix))
	m := &contender{}
	m.Lease = &Lease{
		Client: c, Group: prefix + ".capture", Topic: CheckpointTopic(prefix), Metrics: NewLeaseMetrics(prometheus.NewRegistry(), "capture", "captures", "capture"), Log: quiet,
		Hold: func(ctx context.Context) error {
			if n := holding.Add(1); n != 1 && !holding.overlap.Load() {
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
	t.Parallel()
	cfg, prefix := real(t)
	cfg.LeaseTimeout = 5 * patience // nobody gets it because somebody was slow, or was waited for
	var holding holders
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
	if n := testutil.CollectAndCount(others[0].Metrics.active); n != 0 {
		t.Error("one that is no member any more says whether it is active")
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
	if err := first.stop(); err != nil {
		t.Errorf("told to stop it ended with %v", err)
	}
	until(t, "another one to take what was given back", func() bool { return others[1].State() == LeaseActive || others[2].State() == LeaseActive })
}

func TestTheErrorOfTheHolderEndsIt(t *testing.T) {
	t.Parallel()
	cfg, prefix := real(t)
	c := open(t, cfg)
	ctx := deadline(t, 30*time.Second)
	must(t, EnsureCheckpoint(ctx, c, prefix))
	broken := errors.New("the log is gone")
	l := &Lease{Client: c, Group: prefix + ".capture", Topic: CheckpointTopic(prefix), Metrics: NewLeaseMetrics(prometheus.NewRegistry(), "capture", "captures", "capture"), Log: quiet,
		Hold: func(context.Context) error { return broken }}
	if err := l.Run(ctx); !errors.Is(err, broken) {
		t.Errorf("it ended with %v", err)
	}
	c.cfg.LeaseTimeout = time.Hour // above the broker's group.max.session.timeout.ms
	if err := l.Run(ctx); err == nil || !strings.Contains(err.Error(), "Session Timeout") {
		t.Errorf("with a timeout that the broker does not take it ended with %v", err)
	}
}

func TestTheHighestClaimGetsTheLease(t *testing.T) {
	t.Parallel()
	claim := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for name, tc := range map[string]struct {
		members []kafkago.GroupMember
		want    string
	}{
		"nobody has held it":           {[]kafkago.GroupMember{{ID: "b", UserData: claim(0)}, {ID: "a", UserData: claim(0)}}, "a"},
		"the holder keeps it":          {[]kafkago.GroupMember{{ID: "a", UserData: claim(0)}, {ID: "b", UserData: claim(7)}}, "b"},
		"one that was cut off is past": {[]kafkago.GroupMember{{ID: "a", UserData: claim(7)}, {ID: "b", UserData: claim(9)}}, "b"},
		"a claim that cannot be read":  {[]kafkago.GroupMember{{ID: "a", UserData: []byte("?")}, {ID: "b", UserData: claim(1)}}, "b"},
	} {
		got := leaseBalancer{&Lease{Topic: "p.checkpoint"}}.AssignGroups(tc.members, nil)
		if len(got) != 1 || len(got[tc.want]["p.checkpoint"]) != 1 {
			t.Errorf("%s: %v; want it for %s", name, got, tc.want)
		}
	}
}

// While Kafka is away nobody can take the lease, so the holder goes on; when it is
// back one holds it.
func TestWhileKafkaIsAwayTheHolderGoesOnAndWhenItIsBackOneHoldsTheLease(t *testing.T) {
	cfg, prefix := real(t)
	cfg.LeaseTimeout = 3 * time.Second
	var holding holders
	members := []*contender{contend(t, cfg, prefix, &holding)}
	until(t, "the first to hold it", func() bool { return members[0].State() == LeaseActive })
	members = append(members, contend(t, cfg, prefix, &holding))
	until(t, "the second to stand by", func() bool { return members[1].State() == LeaseStandby })
	holding.overlap.Store(true) // one that was overtaken ends a moment later
	broker.Stop()
	time.Sleep(5 * time.Second) // longer than the timeout
	if members[0].ended.Load() != 0 || members[0].State() != LeaseActive {
		t.Errorf("the holder has given up while Kafka was away")
	}
	must(t, scope.Run(broker.Start))
	members = append(members, contend(t, cfg, prefix, &holding)) // it knows nothing of before, and may be faster than both
	until(t, "one to hold it and the others to stand by", func() bool {
		in := map[LeaseState]int{}
		for _, m := range members {
			in[m.State()]++
		}
		return in[LeaseActive] == 1 && in[LeaseStandby] == 2 && holding.Load() == 1
	})
}

// ofParent tells the process that otherHolder starts what real has given its parent.
const ofParent = "LOCKSTEP_TEST_LEASE"

// otherHolder starts a process of its own that holds the lease, because only that
// can be stopped or killed. In that process it does not return.
func otherHolder(t *testing.T, cfg Config, prefix string) (child *exec.Cmd, said *lines) {
	if _, inside := os.LookupEnv(ofParent); inside {
		log := slog.New(slog.NewTextHandler(os.Stdout, nil))
		l := &Lease{Client: open(t, cfg), Group: prefix + ".capture", Topic: CheckpointTopic(prefix), Metrics: NewLeaseMetrics(prometheus.NewRegistry(), "capture", "captures", "capture"), Log: log,
			Hold: func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }}
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(0) }()
		must(t, l.Run(t.Context()))
		os.Exit(1)
	}
	must(t, EnsureCheckpoint(deadline(t, 20*time.Second), open(t, cfg), prefix))
	self, err := os.Executable()
	must(t, err)
	said = &lines{}
	child = exec.Command(self, "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), ofParent+"="+strings.Join([]string{prefix, broker.Addr, broker.CA, broker.Cert, broker.Key}, " "))
	child.Stdout = said
	in, err := child.StdinPipe()
	must(t, err)
	must(t, child.Start())
	t.Cleanup(func() {
		in.Close() // it ends
		_ = child.Wait()
	})
	until(t, "the other process to hold it", func() bool { return said.has("active:") })
	return child, said
}

// A process that was killed and is started again does not wait for its own lease
// to run out; one that lives and only stands still is waited for.
func TestAHolderThatWasKilledOnThisMachineIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	cfg, prefix := real(t)
	cfg.LeaseTimeout = 2 * patience
	child, _ := otherHolder(t, cfg, prefix)
	must(t, child.Process.Kill())
	_ = child.Wait()
	var holding holders
	next := contend(t, cfg, prefix, &holding)
	until(t, "the next one to hold it", func() bool { return next.State() == LeaseActive })

	client := next.Client.dialer.ClientID
	self := memberName(client)
	if died(client, self) {
		t.Error("this process counts as dead")
	}
	if !died(client, self+"0") {
		t.Error("an earlier process with our id does not count as dead")
	}
	for _, other := range []string{client, client + ".elsewhere." + strings.TrimPrefix(self, client+"."), "x" + self + "0"} {
		if died(client, other) {
			t.Errorf("%s is not from here and counts as dead", other)
		}
	}
}

// A holder that stands still loses the lease, hears of it when it goes on, and
// stands by.
func TestAHolderThatStoodStillStandsByWhenItGoesOn(t *testing.T) {
	t.Parallel()
	cfg, prefix := real(t)
	cfg.LeaseTimeout = 5 * time.Second
	child, said := otherHolder(t, cfg, prefix)
	var holding holders
	second := contend(t, cfg, prefix, &holding)
	until(t, "this one to stand by", func() bool { return second.State() == LeaseStandby })
	must(t, child.Process.Signal(syscall.SIGSTOP))
	defer child.Process.Signal(syscall.SIGCONT)
	until(t, "this one to take over", func() bool { return second.State() == LeaseActive })
	must(t, child.Process.Signal(syscall.SIGCONT))
	until(t, "the other one to stand by", func() bool {
		return said.has("stood still") && (said.has("standing by: another") || said.has("another process has taken over"))
	})
	if second.began.Load() != 1 || second.State() != LeaseActive {
		t.Errorf("the one that took over was disturbed: it began %d times and is %s", second.began.Load(), second.State())
	}
}
