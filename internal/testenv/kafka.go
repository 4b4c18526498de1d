package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	java := native(t, "a further Kafka", "kafka", `kafka_install >&2 || exit 1
kafka_java
# shellcheck disable=SC2206
command+=($KAFKA_HEAP -XX:+UseSerialGC -XX:TieredStopAtLevel=1)
printf '%s\0' "${command[@]}"`, nil)
	b := &KafkaBroker{Server{Name: "kafka", Addr: addr, User: "admin", Password: "of-the-super-user"}}

	dir := t.TempDir()
	cert, key := authority.Sign(t, dir, "broker")
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
	spawn(t, "Kafka", append(java, "kafka.Kafka", properties), filepath.Join(dir, "log"), 3*time.Minute, func() bool {
		conn, err := net.DialTimeout("tcp", b.Addr, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
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
