package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lockstep/internal/testenv"
)

// Kafka's password, its authority and the client's certificate become others under load while
// brokers end connections of their own accord. What is refused meanwhile waits, with a
// sentence in the log, and nothing is lost; no part begins anew.
func TestCredentialsOfKafkaChangeUnderLoadAndNothingIsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 60)
	dir := t.TempDir()
	first, second := testenv.NewAuthority(t, "first"), testenv.NewAuthority(t, "second")
	trust, password := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "password")
	write := func(name, text string) {
		t.Helper()
		must(t, os.WriteFile(name, []byte(text), 0o600))
	}
	believe := func(a *testenv.Authority) (cert, key string) {
		t.Helper()
		pem, err := os.ReadFile(a.File)
		must(t, err)
		write(trust, string(pem))
		return a.Sign(t, dir, "client")
	}
	cert, key := believe(first)
	write(password, "Xq7-first\n")
	broker := w.ownKafka(first, "connections.max.reauth.ms=5000")
	broker.Account(t, w.name, "Xq7-first")
	w.replace(w.login("kafka"), fmt.Sprintf("tls: {enabled: true, ca_file: %q, cert_file: %q, key_file: %q}, sasl: {mechanism: scram-sha-512, username: %s, password_file: %q}",
		trust, cert, key, w.name, password))
	w.replace("lease_timeout: 3s", "lease_timeout: 1m") // nobody gives it up because Kafka was slow
	p := w.start("run")
	w.equal(time.Minute)
	end := w.load(40, 11)

	applied := p.metric("lockstep_config_reloads_total", "applied")
	behind := w.behind(p, "kafka")
	broker.Account(t, w.name, "Xq7-second")
	refused := "kafka.sasl.username and kafka.sasl.password, or what the file of kafka.sasl.password_file holds: refused"
	await(t, time.Minute, "the old password to be refused", func() bool {
		p.alive()
		return strings.Contains(p.said(), refused) && w.behind(p, "kafka") > behind+100
	})
	write(password, "Xq7-second\n")
	await(t, time.Minute, "the pipeline to go on with the new password", func() bool {
		p.alive()
		return p.metric("lockstep_config_reloads_total", "applied") > applied && w.behind(p, "kafka") < behind+100
	})

	broker.Stop()
	broker.Certify(t, second)
	write(trust, "half of a certif")
	broker.Start(t)
	await(t, time.Minute, "a certificate of an authority that nobody knows yet to be refused", func() bool {
		p.alive()
		return strings.Contains(p.said(), "kafka.tls.ca_file "+trust+": refused") && strings.Contains(p.said(), "tls.ca_file: "+trust+" holds no PEM certificate")
	})
	believe(second)
	await(t, time.Minute, "the pipeline to go on with the new certificates", func() bool {
		p.alive()
		return w.behind(p, "kafka") < behind+100
	})
	waitFor(t, 6*time.Second) // every connection is another one now
	t.Log(end())
	w.settled(p)
	if n := p.metric("lockstep_config_reloads_total", "reverted"); n != 0 || strings.Contains(p.said(), "begins_anew=capture") {
		t.Errorf("a part began anew, and %v times what ran before was given back", n)
	}
	p.stop()
}

// said is the log of a process.
func (p *process) said() string {
	p.w.t.Helper()
	text, err := os.ReadFile(p.log)
	must(p.w.t, err)
	return string(text)
}
