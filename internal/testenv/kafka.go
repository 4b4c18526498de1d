package testenv

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// KafkaBroker is a Kafka of a test's own in which nobody may do anything unless an ACL
// says so: TLS with certificates of both sides, and SCRAM-SHA-512 logins. It is started
// from the installed distribution, so it needs the native servers.
type KafkaBroker struct {
	Server
	Plain         string // host:port for the test itself: without TLS, and whoever comes may do anything
	CA, Cert, Key string // files of a client
	dir           string
	store         string // the file of its certificate and key
	command       []string
	stop          func()
}

// NewSecureKafka starts a broker with a certificate of an authority, and returns when it
// listens. Settings are further lines of its configuration. It is gone at the end of the test.
func NewSecureKafka(t testing.TB, authority *Authority, settings ...string) *KafkaBroker {
	t.Helper()
	addr, plain, controller := FreeAddr(t), FreeAddr(t), FreeAddr(t)
	java := native(t, "a further Kafka", "kafka", `kafka_install >&2 || exit 1
kafka_java
# shellcheck disable=SC2206
command+=($KAFKA_HEAP -XX:+UseSerialGC -XX:TieredStopAtLevel=1)
printf '%s\0' "${command[@]}"`, nil)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	b := &KafkaBroker{Server: Server{Name: "kafka", Addr: addr}, Plain: plain, CA: file("ca.crt"), Cert: file("client.crt"), Key: file("client.key"), store: file("broker.pem"), dir: dir}
	b.Certify(t, authority)
	common, err := os.ReadFile(filepath.Join(Root(t), "deploy", "local", "server.properties"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(common) + fmt.Sprintf(`
listeners=SECURE://%[1]s,BROKER://%[6]s,CONTROLLER://%[2]s
advertised.listeners=SECURE://%[1]s,BROKER://%[6]s
listener.security.protocol.map=SECURE:SASL_SSL,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.voters=1@%[2]s
log.dirs=%[3]s/data
ssl.keystore.type=PEM
ssl.keystore.location=%[4]s
ssl.truststore.type=PEM
ssl.truststore.location=%[5]s
listener.name.secure.ssl.client.auth=required
listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users=User:ANONYMOUS
`, addr, controller, dir, b.store, b.CA, plain) + strings.Join(settings, "\n")
	properties := filepath.Join(dir, "server.properties")
	if err := os.WriteFile(properties, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	format := append(java[1:len(java):len(java)], "kafka.tools.StorageTool", "format", "-t", "Lockstep-e2e-secured-w", "-c", properties)
	if out, err := exec.Command(java[0], format...).CombinedOutput(); err != nil {
		t.Fatalf("format the Kafka of the test: %v\n%s", err, out)
	}
	b.command = append(java, "kafka.Kafka", properties)
	b.Start(t)
	return b
}

// Certify gives it a certificate of an authority, whose clients it trusts, for when it starts.
func (b *KafkaBroker) Certify(t testing.TB, authority *Authority) {
	t.Helper()
	authority.Sign(t, b.dir, "client")
	cert, key := authority.Sign(t, b.dir, "broker")
	for name, content := range map[string]string{b.store: read(t, key) + read(t, cert), b.CA: read(t, authority.File)} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Admin is a client that may do anything, until the end of the test.
func (b *KafkaBroker) Admin(t testing.TB) *kafkago.Client {
	way := &kafkago.Transport{}
	t.Cleanup(way.CloseIdleConnections)
	return &kafkago.Client{Addr: kafkago.TCP(b.Plain), Transport: way, Timeout: time.Minute}
}

// Accounts makes the accounts that have rights, with one password, and returns when they have all of them.
func (b *KafkaBroker) Accounts(t testing.TB, password string, rights []kafkago.ACLEntry) {
	t.Helper()
	made := map[string]bool{}
	for _, right := range rights {
		if name := strings.TrimPrefix(right.Principal, "User:"); !made[name] {
			made[name] = true
			b.Account(t, name, password)
		}
	}
	b.Allow(t, rights...)
}

// Allow gives rights, and returns when the broker goes by them.
func (b *KafkaBroker) Allow(t testing.TB, rights ...kafkago.ACLEntry) {
	t.Helper()
	admin, ctx := b.Admin(t), context.WithoutCancel(t.Context())
	res, err := admin.CreateACLs(ctx, &kafkago.CreateACLsRequest{ACLs: rights})
	if err == nil {
		err = errors.Join(res.Errors...)
	}
	if err != nil {
		t.Fatalf("give rights in Kafka: %v", err)
	}
	for _, right := range rights {
		Await(t, time.Minute, "Kafka to know a right of "+right.Principal, func() bool {
			res, err := admin.DescribeACLs(ctx, &kafkago.DescribeACLsRequest{Filter: kafkago.ACLFilter{
				ResourceTypeFilter: right.ResourceType, ResourceNameFilter: right.ResourceName, ResourcePatternTypeFilter: right.ResourcePatternType,
				PrincipalFilter: right.Principal, HostFilter: right.Host, Operation: right.Operation, PermissionType: right.PermissionType,
			}})
			return err == nil && res.Error == nil && len(res.Resources) > 0
		})
	}
}

// Account makes an account, or gives the one that there is another password: the one before
// does not hold any more.
func (b *KafkaBroker) Account(t testing.TB, name, password string) {
	t.Helper()
	const iterations = 4096
	salt := make([]byte, 16)
	rand.Read(salt)
	salted, err := pbkdf2.Key(sha512.New, password, salt, iterations, sha512.Size)
	if err != nil {
		t.Fatal(err)
	}
	res, err := b.Admin(t).AlterUserScramCredentials(t.Context(), &kafkago.AlterUserScramCredentialsRequest{Upsertions: []kafkago.UserScramCredentialsUpsertion{
		{Name: name, Mechanism: kafkago.ScramMechanismSha512, Iterations: iterations, Salt: salt, SaltedPassword: salted}}})
	if err != nil {
		t.Fatalf("make the account %s in Kafka: %v", name, err)
	}
	for _, r := range res.Results {
		if r.Error != nil {
			t.Fatalf("make the account %s in Kafka: %v", name, r.Error)
		}
	}
}

// Stop kills it; Start starts it on the data it has and returns when it takes requests.
func (b *KafkaBroker) Stop() { b.stop() }
func (b *KafkaBroker) Start(t testing.TB) {
	t.Helper()
	b.stop = spawn(t, "Kafka", b.command, filepath.Join(b.dir, "log"), 3*time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		way := &kafkago.Transport{} // one that remembers nothing
		defer way.CloseIdleConnections()
		cluster, err := (&kafkago.Client{Addr: kafkago.TCP(b.Plain), Transport: way}).Metadata(ctx, &kafkago.MetadataRequest{})
		return err == nil && slices.ContainsFunc(cluster.Brokers, func(of kafkago.Broker) bool { return of.ID == cluster.Controller.ID && of.Port != 0 })
	})
}

func read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
