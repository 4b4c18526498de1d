package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kafkago "github.com/segmentio/kafka-go"
)

const (
	// leaseHeartbeat bounds how late a standby hears that the lease is free.
	leaseHeartbeat = 300 * time.Millisecond
	// leaseTick is how often the holder looks at the clock to see whether it stood still.
	leaseTick = 250 * time.Millisecond
)

// Lease lets one of several processes do something at a time. The processes are
// the members of a consumer group, and whoever has partition 0 of its topic holds
// the lease. Nothing is read from the topic.
//
// A member that comes or goes does not disturb the holder: it claims the lease in
// every round of the group and goes on meanwhile. While Kafka is away it goes on
// too, because nobody can take the lease from it there. So there can be moments
// with two holders, when one was frozen or cut off for longer than the timeout:
// the lease saves work and keeps order in the logs, it is not what correctness
// rests on.
type Lease struct {
	Client *Client
	Group  string
	Topic  string // must exist
	// Hold runs while the lease is held, until its ctx ends, with ErrRevoked as the
	// cause when another member has the lease or may have it. As a rule nobody else
	// gets it before Hold has returned, but after a freeze or a cut two of them can
	// run for a while: that nothing wrong comes of it rests on the versions of the
	// changes and on the term of the position. Its error ends Run, unless the lease
	// is lost.
	Hold    func(ctx context.Context) error
	Metrics *LeaseMetrics
	Log     *slog.Logger

	state atomic.Int32
	claim atomic.Int32 // the last generation that gave us the lease; 0 without it
}

// LeaseState says what a member does.
type LeaseState int32

const (
	LeaseJoining LeaseState = iota // Kafka has not answered yet
	LeaseStandby                   // another member holds the lease
	LeaseActive
)

func (s LeaseState) String() string { return [...]string{"joining", "standby", "active"}[s] }

// State is what this member does now.
func (l *Lease) State() LeaseState { return LeaseState(l.state.Load()) }

// LeaseMetrics are the metrics of a lease.
type LeaseMetrics struct {
	active    *prometheus.GaugeVec // without labels; there while this process is a member or is to be one
	takeovers prometheus.Counter
	frozen    prometheus.Counter
}

// NewLeaseMetrics makes the metrics of the lease of a part and registers them; does says
// what its holder does ("captures"), and do what it begins to ("capture").
func NewLeaseMetrics(reg prometheus.Registerer, part, does, do string) *LeaseMetrics {
	m := &LeaseMetrics{
		active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_" + part + "_active", Help: "1 while this process " + does + ", 0 while it stands by."}, nil),
		takeovers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_" + part + "_takeovers_total", Help: "How often this process has begun to " + do + ", its first time included."}),
		frozen: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockstep_" + part + "_frozen_total", Help: "How often this process stood still for longer than kafka.lease_timeout while it had the lease."}),
	}
	reg.MustRegister(m.active, m.takeovers, m.frozen)
	return m
}

// tenure is one time of holding the lease.
type tenure struct {
	revoke context.CancelCauseFunc
	ctx    context.Context
	over   chan struct{} // closed when Hold has returned
	err    error         // of Hold, then
}

// Run is a member of the group until ctx ends and Hold has returned, then leaves
// it and returns nil, or until Hold or the group refuses, with that error.
func (l *Lease) Run(ctx context.Context) error {
	c := l.Client
	l.Metrics.active.WithLabelValues().Set(0)
	defer l.Metrics.active.Reset()
	l.buryDead(ctx)
	dialer := *c.dialer
	dialer.ClientID = memberName(dialer.ClientID)
	group, err := kafkago.NewConsumerGroup(kafkago.ConsumerGroupConfig{
		ID:                l.Group,
		Brokers:           c.cfg.Brokers,
		Dialer:            &dialer,
		Topics:            []string{l.Topic},
		GroupBalancers:    []kafkago.GroupBalancer{leaseBalancer{l}},
		HeartbeatInterval: leaseHeartbeat,
		SessionTimeout:    c.cfg.LeaseTimeout,
		RebalanceTimeout:  c.cfg.LeaseTimeout,
		JoinGroupBackoff:  joinBackoff,
		StartOffset:       kafkago.FirstOffset,
	})
	if err != nil {
		return fmt.Errorf("group %s: %w", l.Group, err)
	}
	generations, refused := make(chan *kafkago.Generation), make(chan error, 1)
	joining, leave := context.WithCancel(context.WithoutCancel(ctx))
	var asking sync.WaitGroup
	asking.Go(func() { l.join(joining, group, generations, refused) })
	defer asking.Wait()
	defer group.Close() // leaves, so that another one takes over at once
	defer leave()

	var held *tenure
	defer func() {
		held.end()
		l.become(LeaseJoining)
	}()
	tick := time.NewTicker(leaseTick)
	defer tick.Stop()
	beat := time.Now()
	for {
		var over <-chan struct{}
		if held != nil {
			over = held.over
		}
		select {
		case <-ctx.Done():
			if held == nil {
				return nil
			}
			<-held.over
			if errors.Is(held.err, context.Canceled) {
				return nil
			}
			return held.err
		case err := <-refused:
			return fmt.Errorf("group %s: %w", l.Group, err)
		case <-tick.C:
			l.thawed(held, beat)
			beat = time.Now()
		case <-over:
			l.thawed(held, beat)
			if ctx.Err() != nil {
				continue // to the case above
			}
			if held.ctx.Err() == nil {
				return held.err
			}
			l.ended(held)
			held = nil
			l.become(LeaseJoining)
		case gen := <-generations:
			switch mine := len(gen.Assignments[l.Topic]) > 0; {
			case !mine:
				if held != nil {
					l.Log.Warn("another process has taken over; standing by", "group", l.Group)
					held.end()
					l.ended(held)
					held = nil
				}
				if l.State() == LeaseJoining {
					l.Log.Info("standing by: another process is active", "group", l.Group)
				}
				l.become(LeaseStandby)
			case held == nil && ctx.Err() == nil:
				held = l.take(ctx)
				fallthrough
			default:
				l.claim.Store(gen.ID)
				if t := held; t != nil {
					gen.Start(func(generation context.Context) { // its end ends the generation, and the group begins a new round
						select {
						case <-generation.Done():
						case <-t.over:
						}
					})
				}
			}
		}
	}
}

// join hands on the generations of the group.
func (l *Lease) join(ctx context.Context, group *kafkago.ConsumerGroup, generations chan<- *kafkago.Generation, refused chan<- error) {
	seen := l.Client.health.watch()
	defer seen.gaveUp()
	for {
		gen, err := group.Next(ctx)
		err = l.Client.named(err)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && l.Client.hopeless(err):
			refused <- err
			return
		case errors.Is(err, kafkago.RebalanceInProgress):
		case err != nil:
			seen.failed(err)
		default:
			seen.done()
			select {
			case generations <- gen:
			case <-ctx.Done():
				return
			}
		}
	}
}

// take begins a tenure.
func (l *Lease) take(ctx context.Context) *tenure {
	t := &tenure{over: make(chan struct{})}
	t.ctx, t.revoke = context.WithCancelCause(ctx)
	l.Log.Info("active: this process has the lease", "group", l.Group)
	l.Metrics.takeovers.Inc()
	l.become(LeaseActive)
	go func() {
		defer close(t.over)
		t.err = l.Hold(t.ctx)
	}()
	return t
}

// end revokes the tenure, if there is one, and waits for its Hold.
func (t *tenure) end() {
	if t != nil {
		t.revoke(ErrRevoked)
		<-t.over
	}
}

// ended tells of an error that ends nothing else, because the lease was lost.
func (l *Lease) ended(t *tenure) {
	if t.err != nil && !errors.Is(t.err, ErrRevoked) && !errors.Is(t.err, context.Canceled) {
		l.Log.Warn("what was under way when the lease was lost ended with an error", "error", t.err)
	}
}

// thawed revokes a tenure when the process stood still, since beat, for so long
// that another one may hold the lease now. Kafka counts from the last heartbeat,
// which was before.
func (l *Lease) thawed(t *tenure, beat time.Time) {
	gap := time.Since(beat)
	if t == nil || gap < l.Client.cfg.LeaseTimeout-2*leaseHeartbeat || t.ctx.Err() != nil {
		return
	}
	l.Metrics.frozen.Inc()
	l.Log.Warn("this process stood still, so another one may have taken over; standing by", "for", gap.Round(time.Millisecond), "lease_timeout", l.Client.cfg.LeaseTimeout)
	l.claim.Store(0)
	t.revoke(ErrRevoked)
}

func (l *Lease) become(s LeaseState) {
	l.state.Store(int32(s))
	if s == LeaseActive {
		l.Metrics.active.WithLabelValues().Set(1)
		return
	}
	l.claim.Store(0)
	l.Metrics.active.WithLabelValues().Set(0)
}

// leaseBalancer gives the partition to the member that had it last.
type leaseBalancer struct{ lease *Lease }

func (leaseBalancer) ProtocolName() string { return "lockstep-lease" }

// UserData is the member's claim, sent in every round.
func (b leaseBalancer) UserData() ([]byte, error) {
	return binary.BigEndian.AppendUint32(nil, uint32(b.lease.claim.Load())), nil
}

// AssignGroups gives partition 0 to the highest claim: a holder that was cut off
// claims an older generation than the one that followed it.
func (b leaseBalancer) AssignGroups(members []kafkago.GroupMember, _ []kafkago.Partition) kafkago.GroupMemberAssignments {
	var holder string
	best := int64(-1)
	for _, m := range members {
		claim := int64(0)
		if len(m.UserData) == 4 {
			claim = int64(binary.BigEndian.Uint32(m.UserData))
		}
		if claim > best || claim == best && m.ID < holder {
			holder, best = m.ID, claim
		}
	}
	return kafkago.GroupMemberAssignments{holder: {b.lease.Topic: {0}}}
}
