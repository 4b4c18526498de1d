package testenv

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// KafkaBroker is a Kafka of a test's own in which nobody may do anything unless an ACL
// says so: TLS with certificates of both sides, and SCRAM-SHA-512 logins. It is started
// from the installed distribution, so it needs the native servers.
type KafkaBroker struct {
	Server // User and Password are those of the super user
}

// NewSecureKafka starts a broker with a certificate of an authority, and with accounts
// by their passwords, and returns when it listens. It is gone at the end of the test.
func NewSecureKafka(t testing.TB, authority *Authority, accounts map[string]string) *KafkaBroker {
	t.Helper()
	addr, controller := FreeAddr(t), FreeAddr(t)
	const script = `set -uo pipefail
ROOT=$1 HERE=$1/deploy/local
. "$HERE/lib.sh" && . "$HERE/native.sh" || exit 1
kafka_install >&2 || exit 1
kafka_java
# shellcheck disable=SC2206
command+=($KAFKA_HEAP -XX:+UseSerialGC -XX:TieredStopAtLevel=1)
printf '%s\0' "${command[@]}"`
	cmd := exec.Command("bash", "-c", script, "broker", Root(t))
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil || len(out) == 0 {
		t.Fatalf("a further Kafka cannot be made of the native servers (deploy/local/servers up kafka installs them): %v\n%s", err, problem.String())
	}
	java := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	b := &KafkaBroker{Server{Name: "kafka", Addr: addr, User: "admin", Password: "of-the-super-user"}}

	dir := t.TempDir()
	cert, key := authority.Sign(t, "broker")
	store := filepath.Join(dir, "broker.pem")
	common, err := os.ReadFile(filepath.Join(Root(t), "deploy", "local", "server.properties"))
	if err != nil {
		t.Fatal(err)
	}
	settings := string(common) + fmt.Sprintf(`
listeners=BROKER://%[1]s,CONTROLLER://%[2]s
advertised.listeners=BROKER://%[1]s
listener.security.protocol.map=BROKER:SASL_SSL,CONTROLLER:PLAINTEXT
controller.quorum.voters=1@%[2]s
log.dirs=%[3]s/data
ssl.keystore.type=PEM
ssl.keystore.location=%[4]s
ssl.truststore.type=PEM
ssl.truststore.location=%[5]s
listener.name.broker.ssl.client.auth=required
listener.name.broker.sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.broker.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username="%[6]s" password="%[7]s";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users=User:%[6]s;User:ANONYMOUS
`, addr, controller, dir, store, authority.File, b.User, b.Password)
	properties := filepath.Join(dir, "server.properties")
	for _, file := range []struct{ name, content string }{{properties, settings}, {store, read(t, key) + read(t, cert)}} {
		if err := os.WriteFile(file.name, []byte(file.content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	format := append(java[1:len(java):len(java)], "kafka.tools.StorageTool", "format", "-t", "Lockstep-e2e-secured-w", "-c", properties,
		"--add-scram", fmt.Sprintf("SCRAM-SHA-512=[name=%s,password=%s]", b.User, b.Password))
	for name, password := range accounts {
		format = append(format, "--add-scram", fmt.Sprintf("SCRAM-SHA-512=[name=%s,password=%s]", name, password))
	}
	if out, err := exec.Command(java[0], format...).CombinedOutput(); err != nil {
		t.Fatalf("format the Kafka of the test: %v\n%s", err, out)
	}
	b.run(t, append(java, "kafka.Kafka", properties), filepath.Join(dir, "log"))
	return b
}

func read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (b *KafkaBroker) run(t testing.TB, words []string, log string) {
	t.Helper()
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	process := exec.Command(words[0], words[1:]...)
	process.Stdout, process.Stderr = file, file
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = process.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = process.Process.Signal(syscall.SIGKILL)
		<-ended
	})
	for deadline := time.Now().Add(3 * time.Minute); ; {
		conn, err := net.DialTimeout("tcp", b.Addr, time.Second)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("the Kafka of the test has ended:\n%s", read(t, log))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the Kafka of the test does not answer on %s: %v", b.Addr, err)
		}
	}
}
