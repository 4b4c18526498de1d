package kafka

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"lockstep/internal/secret"
)

func TestEveryLoginWorksForPublisherAndConsumer(t *testing.T) {
	t.Parallel()
	_, cfg := fake(t, kfake.NumBrokers(1), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "plain", "p1"), kfake.Superuser("SCRAM-SHA-256", "s256", "p2"), kfake.Superuser("SCRAM-SHA-512", "s512", "p3"))
	for _, login := range []SASL{
		{Mechanism: "plain", Username: "plain", Password: "p1"},
		{Mechanism: "scram-sha-256", Username: "s256", Password: "p2"},
		{Mechanism: "scram-sha-512", Username: "s512", Password: "p3"},
	} {
		t.Run(login.Mechanism, func(t *testing.T) {
			cfg := cfg
			cfg.SASL = login
			c := open(t, cfg)
			fill(t, c, cfg, login.Mechanism, 1, 10)
			seen := &collector{}
			stop := running(t, func(ctx context.Context) error {
				return c.Consume(ctx, ConsumeConfig{Group: login.Mechanism, Topics: fixed(login.Mechanism), Handle: seen.handle, Log: quiet})
			})
			until(t, "the records", func() bool { return seen.count() == 10 })
			must(t, stop())

			cfg.SASL.Password = secret.Text("wrong")
			wrong := open(t, cfg)
			err := wrong.Consume(deadline(t, 20*time.Second), ConsumeConfig{Group: "x", Topics: fixed(login.Mechanism), Handle: seen.handle, Log: quiet})
			if err == nil {
				t.Error("a wrong password let a consumer wait for ever")
			}
		})
	}
}

func TestTheLogHearsOnceThatKafkaIsAwayAndOnceThatItIsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		h := &health{log: slog.New(slog.NewTextHandler(&log, nil))}
		a, b := h.watch(), h.watch()
		for range 10 {
			a.failed(errors.New("refused"))
			b.failed(errors.New("refused"))
			time.Sleep(time.Second)
		}
		if got := (&Client{health: health{failing: h.failing, since: h.since}}).Unavailable(); got != 10*time.Second {
			t.Errorf("it says that Kafka has been away for %s", got)
		}
		a.done()
		b.failed(errors.New("refused"))
		b.done()
		b.done()
		a.failed(errors.New("election")) // over at once
		a.done()
		if got := log.String(); strings.Count(got, "kafka unavailable") != 1 || strings.Count(got, "kafka back") != 1 {
			t.Fatalf("got:\n%s", got)
		}
	})
}
