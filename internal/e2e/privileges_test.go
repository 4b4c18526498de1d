package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	kafkago "github.com/segmentio/kafka-go"

	"lockstep/internal/oracle"
	"lockstep/internal/testenv"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// secured is a world that tells much, to see that it tells no secret.
type secured struct {
	*world
	on    *servers
	cache *goredis.Client
	said  bytes.Buffer // everything that the processes have said
}

func newSecured(t *testing.T) *secured {
	t.Helper()
	s := &secured{world: newWorld(t, 200), on: theServers(t)}
	s.cache = goredis.NewClient(&goredis.Options{Addr: s.spec.RedisAddr})
	t.Cleanup(func() { s.cache.Close() })
	token := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(token, []byte(secrets["token"]), 0o600))
	s.replace("source: {", fmt.Sprintf("source: {mask_salt: %q, ", secrets["salt"]))
	s.replace(`admin: {listen: "127.0.0.1:0"}`, fmt.Sprintf("admin: {listen: %q, tokens: [{name: operator, role: operator, file: %q}]}\nlog: {level: debug}", testenv.FreeAddr(t), token))
	return s
}

// table is a table of the bank by its full name.
func (s *secured) table(name string) string { return s.name + "." + name }

// deny takes a right away that was given.
func (s *secured) deny(t *testing.T, right kafkago.ACLEntry) {
	t.Helper()
	res, err := s.on.kafka.Admin(t).DeleteACLs(t.Context(), &kafkago.DeleteACLsRequest{Filters: []kafkago.DeleteACLsFilter{{
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
	t.Parallel()
	s := newSecured(t)
	p := s.start("run")
	s.same()
	p.awaitReady()

	s.sql("DELETE FROM questions WHERE id % 9 = 0", "UPDATE questions SET id = id + 100000 WHERE id % 5 = 0", "UPDATE odd_keys SET number = number + 1000",
		"INSERT INTO question_tags SELECT question_id + 100000, tag_id, position, added_at FROM question_tags",
		"TRUNCATE TABLE test_cases", "ALTER TABLE tags ADD COLUMN origin varchar(20) NULL DEFAULT 'by hand'", "UPDATE tags SET uses = uses + 1")
	s.does("barrier", "--timeout", "60s")
	s.does("snapshot", "start", "--table", s.table("questions"), "--sweep", "--wait")

	must(t, s.cache.Set(t.Context(), s.name+":questions:7", "of somebody else", 0).Err())
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
	must(t, s.cache.Del(t.Context(), s.name+":questions:7").Err())
	s.sql("UPDATE questions SET views = views + 1 WHERE id = 7")
	s.same()

	// Somebody removes a key behind our back.
	must(t, s.cache.Del(t.Context(), s.name+":questions:1").Err())
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
	t.Run("it runs as the chart has it", s.pods)
	t.Run("the doctor names the right that is taken away", s.misses)
	t.Run("the doctor names a certificate that is out of date", s.outdated)
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
	for _, right := range testenv.KafkaRights(t, "## Kafka", s.name) {
		sink := "  cache: "
		if right.Operation == kafkago.ACLOperationTypeCreate {
			sink = "  newcomer: " // whose topic is still to be made
		}
		s.deny(t, right)
		out, code := s.with("  cache: ", sink, "doctor", "--timeout", "5s")
		s.on.kafka.Allow(t, right)
		name := names[right.Operation]
		if code != 1 || !regexp.MustCompile(`FAIL\s+kafka\s.*`+regexp.QuoteMeta(right.ResourceName)).MatchString(out) || name == "" || !regexp.MustCompile(`\b`+name+`\b`).MatchString(out) {
			t.Errorf("without %q on %s the doctor ended with %d and said:\n%s", name, right.ResourceName, code, out)
		}
	}
	for _, right := range []string{"REPLICATION SLAVE ON *.*", "REPLICATION CLIENT ON *.*", "SELECT ON " + s.name + ".*"} {
		s.on.source.Exec(t, "REVOKE "+right+" FROM "+s.name)
		out, code := s.command("doctor", "--timeout", "5s")
		s.on.source.Exec(t, "GRANT "+right+" TO "+s.name)
		name, _, _ := strings.Cut(right, " ON ")
		if code != 1 || !regexp.MustCompile(`FAIL\s+source\s`).MatchString(out) || !strings.Contains(out, "GRANT "+name) {
			t.Errorf("without %s the doctor ended with %d and said:\n%s", right, code, out)
		}
	}
}

// outdated has every server see a certificate that has expired.
func (s *secured) outdated(t *testing.T) {
	cert, _ := s.on.authority.SignUntil(t, t.TempDir(), "old", time.Now().Add(-time.Hour))
	out, code := s.with(strings.TrimSuffix(s.on.cert, ".crt"), strings.TrimSuffix(cert, ".crt"), "doctor", "--timeout", "5s")
	if code != 1 {
		t.Errorf("the doctor ended with %d", code)
	}
	for system, field := range map[string]string{"source": "source.tls.cert_file", "kafka": "kafka.tls.cert_file", "search": "cert_file", "cache": "tls.cert_file"} {
		said := fmt.Sprintf("the certificate in %s (%s) expired on ", cert, field)
		if !regexp.MustCompile(`FAIL\s+(sink )?` + system + `\s.*` + regexp.QuoteMeta(said)).MatchString(out) {
			t.Errorf("of %s it does not say %q", system, said)
		}
	}
	if t.Failed() {
		t.Log(out)
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
	for _, known := range []string{"lockstep starts", "lockstep_sink_changes_total", "FAIL", s.table("questions")} { // it is all there
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
