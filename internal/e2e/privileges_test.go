package e2e

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl/scram"

	"lockstep/internal/bank"
	"lockstep/internal/oracle"
	"lockstep/internal/testenv"
)

// page is a page of the documentation.
func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\\\n", " ")
}

// block is the first block of code of a language behind a heading.
func block(t *testing.T, text, heading, language string) string {
	t.Helper()
	_, behind, ok := strings.Cut(text, "\n"+heading+"\n")
	_, code, ok2 := strings.Cut(behind, "```"+language+"\n")
	code, _, ok3 := strings.Cut(code, "```")
	if !ok || !ok2 || !ok3 {
		t.Fatalf("there is no block of %s behind %q", language, heading)
	}
	return code
}

// acls reads statements of kafka-acls.sh, and no others.
func acls(t *testing.T, code string) (all []kafkago.ACLEntry) {
	t.Helper()
	for line := range strings.Lines(code) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		acl := kafkago.ACLEntry{Host: "*", PermissionType: kafkago.ACLPermissionTypeAllow, ResourcePatternType: kafkago.PatternTypeLiteral}
		var operations []kafkago.ACLOperationType
		var principals, names []string
		added := false
		if words[0] != "kafka-acls.sh" {
			t.Fatalf("%q is no statement of kafka-acls.sh", line)
		}
		for words = words[1:]; len(words) > 0; words = words[1:] {
			word := words[0]
			if word == "--add" {
				added = true
				continue
			}
			if len(words) < 2 {
				t.Fatalf("%s has no value in %q", word, line)
			}
			words = words[1:]
			switch word {
			case "--bootstrap-server", "--command-config":
			case "--allow-principal":
				principals = append(principals, words[0])
			case "--topic":
				acl.ResourceType, names = kafkago.ResourceTypeTopic, append(names, words[0])
			case "--group":
				acl.ResourceType, names = kafkago.ResourceTypeGroup, append(names, words[0])
			case "--resource-pattern-type":
				must(t, acl.ResourcePatternType.UnmarshalText([]byte(words[0])))
			case "--operation":
				var operation kafkago.ACLOperationType
				must(t, operation.UnmarshalText([]byte(words[0])))
				operations = append(operations, operation)
			default:
				t.Fatalf("%s is not known in %q", word, line)
			}
		}
		if !added || len(principals) == 0 || len(names) == 0 || len(operations) == 0 {
			t.Fatalf("%q says not who may do what", line)
		}
		for _, acl.Principal = range principals {
			for _, acl.ResourceName = range names {
				for _, acl.Operation = range operations {
					all = append(all, acl)
				}
			}
		}
	}
	if len(all) == 0 {
		t.Fatal("the page gives no right in Kafka")
	}
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// secrets are what must never be told. Each is its own, so that one that is told is found.
var secrets = map[string]string{
	"source": "Xq7-of-the-source", "kafka": "Xq7-of-kafka", "elastic": "Xq7-of-elastic", "redis": "Xq7-of-redis", "token": "Xq7-of-the-api-tokens", "salt": "Xq7-salt-of-the-masks",
}

// secured is a world on servers of its own, which let nobody in without a certificate and
// a password, and let the account do what the pages of the documentation name.
type secured struct {
	*world
	admin *kafkago.Client
	root  *testenv.Instance
	cache *goredis.Client
	said  bytes.Buffer // everything that the processes have said
}

func newSecured(t *testing.T) *secured {
	t.Helper()
	ca := testenv.NewAuthority(t, "authority")
	certs := t.TempDir()
	clientCert, clientKey := ca.Sign(t, certs, "client")
	serverCert, serverKey := ca.Sign(t, certs, "server")
	read := func(name string) string {
		text, err := os.ReadFile(name)
		must(t, err)
		return string(text)
	}
	roles := "lockstep: " + elasticRole(t, "elasticsearch.md", "## The account") + "\nlockstep-rows: " + elasticRole(t, "privileges.md", apartHeading) + "\n"

	s := &secured{}
	var broker *testenv.KafkaBroker
	var search *testenv.ElasticNode
	var cache *testenv.RedisInstance
	cacheAddr := testenv.FreeAddr(t)
	var starting sync.WaitGroup
	for _, start := range []func(){
		func() { broker = testenv.NewSecureKafka(t, ca, kafkaAccounts()) },
		func() {
			search = testenv.NewElastic(t, map[string]string{
				"xpack.security.enabled": "true", "xpack.security.http.ssl.enabled": "true", "xpack.security.http.ssl.client_authentication": "required",
				"xpack.security.http.ssl.key": "node.key", "xpack.security.http.ssl.certificate": "node.crt", "xpack.security.http.ssl.certificate_authorities": "ca.crt",
			}, map[string]string{
				"node.key": read(serverKey), "node.crt": read(serverCert), "ca.crt": read(ca.File), "roles.yml": roles,
				"users":       "lockstep:" + hashed(t, secrets["elastic"]) + "\nlockstep-rows:" + hashed(t, secrets["elastic"]) + "\nroot:" + hashed(t, testenv.AdminPassword) + "\n",
				"users_roles": "lockstep:lockstep\nlockstep-rows:lockstep-rows\nsuperuser:root\n",
			})
		},
		func() {
			s.root = testenv.NewMySQL(t, "--ssl-ca="+ca.File, "--ssl-cert="+serverCert, "--ssl-key="+serverKey)
			cache = testenv.NewRedis(t, "--tls-port", cacheAddr[strings.LastIndexByte(cacheAddr, ':')+1:], "--tls-cert-file", serverCert, "--tls-key-file", serverKey,
				"--tls-ca-cert-file", ca.File, "--tls-auth-clients", "yes")
		},
	} {
		starting.Go(start)
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}

	// MySQL
	s.root.Exec(t, "DROP USER 'lockstep'@'%'", "CREATE DATABASE bank")
	for statement := range strings.SplitSeq(block(t, page(t, "privileges.md"), "## MySQL", "sql"), ";\n") {
		if strings.TrimSpace(statement) != "" {
			s.root.Exec(t, strings.ReplaceAll(statement, "PASSWORD", secrets["source"]))
		}
	}
	// Kafka
	way := &tls.Config{InsecureSkipVerify: true}
	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	must(t, err)
	way.Certificates = []tls.Certificate{pair}
	login, err := scram.Mechanism(scram.SHA512, broker.User, broker.Password)
	must(t, err)
	s.admin = &kafkago.Client{Addr: kafkago.TCP(broker.Addr), Transport: &kafkago.Transport{TLS: way, SASL: login}, Timeout: time.Minute}
	s.allow(t, acls(t, block(t, page(t, "privileges.md"), "## Kafka", "sh"))...)
	// Redis
	s.cache = goredis.NewClient(&goredis.Options{Addr: cache.Addr})
	t.Cleanup(func() { s.cache.Close() })
	must(t, s.cache.Do(t.Context(), aclOf(t, "redis.md", "lockstep")...).Err())

	w := &world{t: t, name: "bank", binary: testenv.Lockstep(t), brokers: broker.Addr, config: filepath.Join(t.TempDir(), "lockstep.yaml")}
	s.world = w
	w.db, err = bank.Open(t.Context(), s.root.Addr, testenv.AdminUser, testenv.AdminPassword, w.name)
	must(t, err)
	t.Cleanup(func() { w.db.Close() })
	must(t, errors.Join(bank.Create(t.Context(), w.db), bank.Seed(t.Context(), w.db, 200, 1), bank.CreateAllTypes(t.Context(), w.db)))
	_, err = bank.SeedAllTypes(t.Context(), w.db, 40, 1)
	must(t, err)
	// The judge sees Elasticsearch as its administrator.
	target, err := url.Parse(search.URL)
	must(t, err)
	judge := localServer(t, &httputil.ReverseProxy{
		Transport: &http.Transport{TLSClientConfig: way},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.SetBasicAuth("root", testenv.AdminPassword)
		},
	})
	w.spec = oracle.Spec{DB: w.db, Database: w.name, ElasticURL: judge, RedisAddr: cache.Addr}
	token := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(token, []byte(secrets["token"]), 0o600))
	files := fmt.Sprintf("ca_file: %q, cert_file: %q, key_file: %q", ca.File, clientCert, clientKey)
	text := fmt.Sprintf(`prefix: shop
source: {addr: %[1]q, user: lockstep, password: %[2]q, server_id: 7, mask_salt: %[3]q, tls: {mode: verify, %[4]s}}
kafka:
  brokers: [%[5]q]
  partitions: 2
  session_timeout: 6s
  lease_timeout: 3s
  tls: {enabled: true, %[4]s}
  sasl: {mechanism: scram-sha-512, username: lockstep, password: %[6]q}
sinks:
  search: {elastic: {addresses: [%[7]q], username: lockstep, password: %[8]q, replicas: 0, %[4]s}}
  cache: {redis: {addresses: [%[9]q], username: lockstep, password: %[10]q, tls: {enabled: true, %[4]s}}}
worker: {stop_within: 2s}
admin: {listen: %[11]q, tokens: [{name: operator, role: operator, file: %[12]q}]}
log: {level: debug}
tables:
`, s.root.Addr, secrets["source"], secrets["salt"], files, broker.Addr, secrets["kafka"], search.URL, secrets["elastic"], cacheAddr, secrets["redis"], testenv.FreeAddr(t), token)
	for _, table := range tables {
		index, key := "shop_"+table.name, "shop:"+table.name+":{pk}"
		text += fmt.Sprintf("  - {match: %q, elastic: {index: %q}, redis: {key: %q, mode: %s}}\n", w.name+"."+table.name, index, key, table.mode)
		w.spec.Tables = append(w.spec.Tables, oracle.TableSpec{Table: table.name, Index: index, RedisKey: key, RedisMode: table.mode})
	}
	must(t, os.WriteFile(w.config, []byte(text), 0o600))
	return s
}

// hashed is a password as the file of a node's users has it.
func hashed(t *testing.T, password string) string {
	t.Helper()
	salt := make([]byte, 32)
	rand.Read(salt)
	key, err := pbkdf2.Key(sha512.New, password, salt, 10_000, 32)
	must(t, err)
	return "{PBKDF2}10000$" + base64.StdEncoding.EncodeToString(salt) + "$" + base64.StdEncoding.EncodeToString(key)
}

// aclOf is the statement of a page that makes a user of Redis, with the keys of this pipeline.
func aclOf(t *testing.T, name, user string) (words []any) {
	t.Helper()
	statement := regexp.MustCompile(`(?m)^    (ACL SETUSER ` + user + ` .*)$`).FindStringSubmatch(page(t, name))
	if statement == nil {
		t.Fatalf("docs/%s has no ACL SETUSER %s", name, user)
	}
	for word := range strings.FieldsSeq(strings.NewReplacer("PASSWORD", secrets["redis"], " ~* ", " ~shop:* ~lockstep:* ").Replace(statement[1])) {
		words = append(words, word)
	}
	return words
}

// localServer serves until the test ends, and says where.
func localServer(t *testing.T, h http.Handler) string {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// allow gives rights.
func (s *secured) allow(t *testing.T, rights ...kafkago.ACLEntry) {
	t.Helper()
	res, err := s.admin.CreateACLs(context.WithoutCancel(t.Context()), &kafkago.CreateACLsRequest{ACLs: rights})
	must(t, err)
	must(t, errors.Join(res.Errors...))
}

// deny takes a right away that was given.
func (s *secured) deny(t *testing.T, right kafkago.ACLEntry) {
	t.Helper()
	res, err := s.admin.DeleteACLs(t.Context(), &kafkago.DeleteACLsRequest{Filters: []kafkago.DeleteACLsFilter{{
		ResourceTypeFilter: right.ResourceType, ResourceNameFilter: right.ResourceName, ResourcePatternTypeFilter: right.ResourcePatternType,
		PrincipalFilter: right.Principal, HostFilter: right.Host, Operation: right.Operation, PermissionType: right.PermissionType,
	}}})
	must(t, err)
	if len(res.Results) != 1 || res.Results[0].Error != nil || len(res.Results[0].MatchingACLs) != 1 {
		t.Fatalf("take %+v away: %+v", right, res.Results)
	}
}

// command runs lockstep, keeps what it says and returns that and the exit code.
func (s *secured) command(args ...string) (out string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.binary, append(args, "-c", s.config)...)
	text, err := cmd.CombinedOutput()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && (!ended || ctx.Err() != nil) {
		s.t.Fatalf("lockstep %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	s.said.Write(text)
	return string(text), cmd.ProcessState.ExitCode()
}

// does runs lockstep and expects that it ends well.
func (s *secured) does(args ...string) string {
	s.t.Helper()
	out, code := s.command(args...)
	if code != 0 {
		s.t.Fatalf("lockstep %s ended with %d:\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// A pipeline on servers that let nobody in without TLS, certificate and password does all
// that it can do with the rights that the documentation names; the doctor names one that is
// taken away; and no secret stands in anything that is said.
func TestAPipelineNeedsTheDocumentedRightsAndTellsNoSecret(t *testing.T) {
	s := newSecured(t)
	p := s.start("run")
	s.same()
	p.awaitReady()

	s.sql("DELETE FROM questions WHERE id % 9 = 0", "UPDATE questions SET id = id + 100000 WHERE id % 5 = 0", "UPDATE odd_keys SET number = number + 1000",
		"INSERT INTO question_tags SELECT question_id + 100000, tag_id, position, added_at FROM question_tags",
		"TRUNCATE TABLE test_cases", "ALTER TABLE tags ADD COLUMN origin varchar(20) NULL DEFAULT 'by hand'", "UPDATE tags SET uses = uses + 1")
	s.does("barrier", "--timeout", "60s")
	s.does("snapshot", "start", "--table", "bank.questions", "--sweep", "--wait")

	must(t, s.cache.Set(t.Context(), "shop:questions:7", "of somebody else", 0).Err())
	s.sql("UPDATE questions SET views = views + 1 WHERE id = 7")
	var letters []letter
	await(t, time.Minute, "the dead letter of the poisoned row", func() bool {
		s.lockstep(&letters, "dlq", "list")
		return len(letters) == 1
	})
	if out, code := s.command("dlq", "replay", letters[0].ID); code != 1 {
		t.Errorf("replay of a row that is refused ended with %d:\n%s", code, out)
	}
	s.does("dlq", "show", letters[0].ID)
	s.does("dlq", "skip", letters[0].ID, "--reason", "it is mended at once")
	must(t, s.cache.Del(t.Context(), "shop:questions:7").Err())
	s.sql("UPDATE questions SET views = views + 1 WHERE id = 7")
	s.same()

	// Somebody removes a key behind our back.
	must(t, s.cache.Del(t.Context(), "shop:questions:1").Err())
	s.does("reconcile", "--once", "--repair")
	s.same()
	// 3 while the table that lacked a key is read from MySQL.
	for _, format := range []string{"table", "json"} {
		if out, code := s.command("status", "-o", format); code != 0 && code != 3 {
			t.Errorf("status ended with %d:\n%s", code, out)
		}
	}
	s.does("doctor")
	s.does("audit", "verify")

	t.Run("no secret is told", func(t *testing.T) { s.keepsSecrets(t, p) })
	p.stop()
	t.Run("the doctor names the right that is taken away", s.misses)
	t.Run("each part does with accounts of its own", s.apart)
}

// with runs lockstep with another text in its configuration.
func (s *secured) with(old, new string, args ...string) (out string, code int) {
	s.t.Helper()
	right, err := os.ReadFile(s.config)
	must(s.t, err)
	if !bytes.Contains(right, []byte(old)) {
		s.t.Fatalf("the configuration has no %q", old)
	}
	must(s.t, os.WriteFile(s.config, bytes.ReplaceAll(right, []byte(old), []byte(new)), 0o600))
	out, code = s.command(args...)
	must(s.t, os.WriteFile(s.config, right, 0o600))
	return out, code
}

// same waits until the stores have what MySQL has.
func (s *secured) same() {
	s.t.Helper()
	report, err := oracle.WaitEqual(s.t.Context(), s.spec, 3*time.Minute)
	if err != nil || report.Compared[oracle.Elastic] == 0 || report.Compared[oracle.Redis] == 0 {
		s.t.Fatalf("%v\n%s", err, report)
	}
}

// misses takes the rights away one by one.
func (s *secured) misses(t *testing.T) {
	names := map[kafkago.ACLOperationType]string{
		kafkago.ACLOperationTypeRead: "READ", kafkago.ACLOperationTypeWrite: "WRITE", kafkago.ACLOperationTypeCreate: "CREATE", kafkago.ACLOperationTypeDescribeConfigs: "DESCRIBE_CONFIGS",
	}
	for _, right := range acls(t, block(t, page(t, "privileges.md"), "## Kafka", "sh")) {
		sink := "  cache: "
		if right.Operation == kafkago.ACLOperationTypeCreate {
			sink = "  newcomer: " // whose topic is still to be made
		}
		s.deny(t, right)
		out, code := s.with("  cache: ", sink, "doctor", "--timeout", "5s")
		s.allow(t, right)
		name := names[right.Operation]
		if code != 1 || !regexp.MustCompile(`FAIL\s+kafka\s.*`+regexp.QuoteMeta(right.ResourceName)).MatchString(out) || name == "" || !regexp.MustCompile(`\b`+name+`\b`).MatchString(out) {
			t.Errorf("without %q on %s the doctor ended with %d and said:\n%s", name, right.ResourceName, code, out)
		}
	}
	for _, right := range []string{"REPLICATION SLAVE ON *.*", "REPLICATION CLIENT ON *.*", "SELECT ON bank.*"} {
		s.root.Exec(t, "REVOKE "+right+" FROM lockstep")
		out, code := s.command("doctor", "--timeout", "5s")
		s.root.Exec(t, "GRANT "+right+" TO lockstep")
		name, _, _ := strings.Cut(right, " ON ")
		if code != 1 || !regexp.MustCompile(`FAIL\s+source\s`).MatchString(out) || !strings.Contains(out, "GRANT "+name) {
			t.Errorf("without %s the doctor ended with %d and said:\n%s", right, code, out)
		}
	}
}

// keepsSecrets looks for the secrets in everything that was said, also about passwords that are wrong.
func (s *secured) keepsSecrets(t *testing.T, p *process) {
	for _, name := range []string{"source", "kafka", "elastic", "redis"} {
		if out, code := s.with(secrets[name], "wrong-"+secrets[name], "doctor", "--timeout", "5s", "--log-level", "debug"); code != 1 {
			t.Errorf("with a wrong password of %s the doctor ended with %d:\n%s", name, code, out)
		}
	}
	s.does("config", "check")

	for _, path := range []string{"/metrics", "/healthz", "/readyz", "/v1/status", "/v1/route", "/v1/dlq", "/debug/pprof/", "/debug/vars"} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.admin+path, nil)
		must(t, err)
		request.Header.Set("Authorization", "Bearer "+secrets["token"])
		response, err := http.DefaultClient.Do(request)
		must(t, err)
		_, err = s.said.ReadFrom(response.Body)
		response.Body.Close()
		must(t, err)
	}
	for _, file := range []string{fmt.Sprintf("/proc/%d/cmdline", p.cmd.Process.Pid), p.log} {
		text, err := os.ReadFile(file)
		must(t, err)
		s.said.Write(text)
	}
	said := s.said.String()
	for _, known := range []string{"lockstep starts", "lockstep_sink_changes_total", "FAIL", "bank.questions"} { // it is all there
		if !strings.Contains(said, known) {
			t.Errorf("what was said lacks %q", known)
		}
	}
	for name, secret := range secrets {
		if i := strings.Index(said, secret); i >= 0 {
			t.Errorf("the secret of %s was told: ...%s...", name, said[max(0, i-200):min(len(said), i+200)])
		}
	}
}
