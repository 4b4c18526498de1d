package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/sasl"

	"lockstep/internal/certs"
)

const (
	// requestTimeout bounds one request. The library tells the broker half of it
	// as the time to wait for replicas; left at 0 it would tell 500 ms.
	requestTimeout = 20 * time.Second
	dialTimeout    = 5 * time.Second
	// metadataTTL is how long a moved partition leader can go unnoticed: the
	// library does not refresh on a NOT_LEADER answer, it waits for this.
	metadataTTL = 2 * time.Second
	maxBackoff  = time.Second
)

// Client is a connection to a Kafka cluster. It is safe for use by several
// goroutines. Every method that waits for Kafka tries again, for as long as its
// ctx allows, while the cluster is unreachable or moving leaders; an error means
// that trying again would not help, or that ctx has ended.
type Client struct {
	cfg       Config
	log       *slog.Logger
	api       *kafkago.Client
	transport *kafkago.Transport
	dialer    *kafkago.Dialer
	access    *access
	ctx       context.Context // of what the library and we do by ourselves
	cancel    context.CancelFunc
	health    health
}

// Open prepares a client; clientID is what the brokers' logs and quotas call it.
// It does not wait for a broker, so it works while Kafka is down. An error names
// a mistake in cfg or in the files that cfg names.
func Open(cfg Config, clientID string, log *slog.Logger) (*Client, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	k, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	a := &access{log: log}
	a.use(k)
	var login sasl.Mechanism
	if k.login != nil {
		login = a
	}
	ctx, cancel := context.WithCancel(context.Background())
	transport := &kafkago.Transport{
		Dial:        a.dial, // TLS too, so that it is that of the moment
		DialTimeout: dialTimeout,
		MetadataTTL: metadataTTL,
		ClientID:    clientID,
		SASL:        login,
		Context:     ctx, // ends the library's own goroutines at Close
	}
	return &Client{
		cfg:       cfg,
		log:       log,
		api:       &kafkago.Client{Addr: kafkago.TCP(cfg.Brokers...), Timeout: requestTimeout, Transport: transport},
		transport: transport,
		dialer:    &kafkago.Dialer{ClientID: clientID, Timeout: dialTimeout, DialFunc: a.dial, SASLMechanism: login},
		access:    a,
		ctx:       ctx,
		cancel:    cancel,
		health:    health{log: log},
	}, nil
}

// Close ends the connections. Nothing else of the client may be in use.
func (c *Client) Close() {
	c.transport.CloseIdleConnections()
	c.cancel()
}

// hopeless reports whether the same request would be refused again however long
// we wait. Everything else is tried again: broken connections, timeouts, leaders
// on the move, and codes we do not know, which show in the log while they last; and
// logins and certificates that were taken before, because they are being changed.
func (c *Client) hopeless(err error) bool {
	if _, ok := errors.AsType[final](err); ok {
		return true
	}
	if _, before, ok := c.access.refusal(err); ok {
		return !before
	}
	code, ok := errors.AsType[kafkago.Error](err)
	if !ok {
		return false
	}
	switch code {
	case kafkago.OutOfOrderSequenceNumber, kafkago.UnknownProducerId,
		kafkago.InvalidProducerEpoch, kafkago.ProducerFenced, kafkago.InvalidProducerIDMapping,
		kafkago.MessageSizeTooLarge, kafkago.RecordListTooLarge, kafkago.InvalidRecord,
		kafkago.InvalidTimestamp, kafkago.InvalidTopic, kafkago.InvalidRequiredAcks,
		kafkago.UnsupportedForMessageFormat, kafkago.UnsupportedCompressionType, kafkago.UnsupportedVersion,
		kafkago.TopicAuthorizationFailed, kafkago.GroupAuthorizationFailed, kafkago.ClusterAuthorizationFailed,
		kafkago.InvalidSessionTimeout, kafkago.InconsistentGroupProtocol, kafkago.InvalidGroupId,
		kafkago.InvalidPartitionNumber, kafkago.InvalidReplicationFactor, kafkago.InvalidConfiguration,
		kafkago.InvalidRequest, kafkago.PolicyViolation, kafkago.SecurityDisabled, kafkago.GroupMaxSizeReached:
		return true
	}
	return false
}

// missing reports whether err says that the topic or partition does not exist,
// which is also what a cluster says for a moment about a topic just made.
func missing(err error) bool {
	return errors.Is(err, kafkago.UnknownTopicOrPartition) ||
		errors.Is(err, protocol.ErrNoTopic) || errors.Is(err, protocol.ErrNoPartition)
}

// final marks an error that retry hands back at once.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// retry calls try until it returns nil or a hopeless error, or ctx ends. What
// says what is being done, for the error.
func (c *Client) retry(ctx context.Context, what string, try func() error) error {
	seen := c.health.watch()
	defer seen.gaveUp()
	var answer error // the last one
	for n := 0; ; n++ {
		err := try()
		if err == nil {
			seen.done()
			return nil
		}
		err = c.named(err)
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) { // that is known, and why is in what came before
			if answer != nil {
				err = answer
			}
		}
		answer = err
		switch {
		case ctx.Err() != nil:
			if refused, ok := errors.AsType[*certs.Refusal](err); ok {
				return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), refused)
			}
			return fmt.Errorf("%s: %w (last answer: %v)", what, context.Cause(ctx), err)
		case c.hopeless(err):
			seen.done() // an answer, too
			return fmt.Errorf("%s: %w", what, err)
		}
		seen.failed(err)
		pause(ctx, n)
	}
}

// pause waits before try n+1: 20 ms doubling to 1 s, of which a random half, so
// that partitions which failed together do not come back together.
func pause(ctx context.Context, n int) {
	d := maxBackoff
	if n < 6 {
		d = min(d, 20*time.Millisecond<<n)
	}
	t := time.NewTimer(d/2 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// health tells the log once when Kafka goes away and once when it is back,
// however many loops notice.
type health struct {
	log     *slog.Logger
	mu      sync.Mutex
	failing int // loops whose last try failed
	since   time.Time
	told    bool
}

// unavailableAfter keeps a leader election out of the log.
const unavailableAfter = 2 * time.Second

// Unavailable is for how long some request has been sent again and again without an
// answer; 0 while Kafka answers.
func (c *Client) Unavailable() time.Duration {
	h := &c.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failing == 0 {
		return 0
	}
	return time.Since(h.since)
}

// watcher is the view of one loop. It is for one goroutine.
type watcher struct {
	h   *health
	bad bool
}

func (h *health) watch() *watcher { return &watcher{h: h} }

func (w *watcher) failed(err error) {
	h := w.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if !w.bad {
		w.bad = true
		if h.failing++; h.failing == 1 {
			h.since = time.Now()
		}
	}
	if !h.told && time.Since(h.since) >= unavailableAfter {
		h.told = true
		h.log.Warn("kafka unavailable", "error", err)
	}
}

// gaveUp says that the loop has stopped asking without an answer.
func (w *watcher) gaveUp() {
	if w.bad {
		w.bad = false
		w.h.mu.Lock()
		w.h.failing--
		w.h.mu.Unlock()
	}
}

// done says that the loop got its answer.
func (w *watcher) done() {
	if !w.bad {
		return
	}
	w.bad = false
	h := w.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failing--; h.failing == 0 && h.told {
		h.told = false
		h.log.Info("kafka back", "after", time.Since(h.since).Round(time.Millisecond))
	}
}
