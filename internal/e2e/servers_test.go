package e2e

import (
	"database/sql"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/internal/testenv"
)

// servers let nobody in without TLS, the certificate of a client and a password. Every world has
// accounts of its own on them, with what docs/privileges.md gives a pipeline and no more; the test
// itself comes by ways on which it may do anything.
type servers struct {
	authority *testenv.Authority
	cert, key string // the client's, files
	source    *testenv.Instance
	kafka     *testenv.KafkaBroker
	search    *testenv.ElasticNode
	cache     *testenv.RedisInstance
}

// secrets are the passwords of every account, and what else must never be told. Each is its own,
// so that one that is told is found.
var secrets = map[string]string{
	"source": "Xq7-of-the-source", "kafka": "Xq7-of-kafka", "elastic": "Xq7-of-elastic", "redis": "Xq7-of-redis", "token": "Xq7-of-the-api-tokens", "salt": "Xq7-salt-of-the-masks",
}

var (
	scope  testenv.Scope
	shared servers
	start  = sync.OnceValue(func() error { return scope.Run(shared.start) })
)

func TestMain(m *testing.M) {
	code := m.Run()
	scope.Close()
	os.Exit(code)
}

// theServers are those of the package. They are started when the first test asks for them.
func theServers(t *testing.T) *servers {
	t.Helper()
	must(t, start())
	return &shared
}

func (s *servers) start(t testing.TB) {
	s.authority = testenv.NewAuthority(t, "authority")
	certs := t.TempDir()
	s.cert, s.key = s.authority.Sign(t, certs, "client")
	cert, key := s.authority.Sign(t, certs, "server")
	var starting sync.WaitGroup
	starting.Go(func() { s.kafka = testenv.NewSecureKafka(t, s.authority) })
	starting.Go(func() { s.search = testenv.NewSecureElastic(t, s.authority) })
	starting.Go(func() {
		s.source = testenv.NewMySQL(t, "--innodb-buffer-pool-size=256M", "--ssl-ca="+s.authority.File, "--ssl-cert="+cert, "--ssl-key="+key)
		s.cache = testenv.NewSecureRedis(t, s.authority)
	})
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// files names the files of a client as the configuration does.
func (s *servers) files() string {
	return fmt.Sprintf("ca_file: %q, cert_file: %q, key_file: %q", s.authority.File, s.cert, s.key)
}

const (
	wholeHeading = "## The account"
	apartHeading = "## An account for each part"
)

// sqlRights does the statements behind a heading of the page of privileges, which make one account
// that reads one database, with these names.
func sqlRights(t *testing.T, db *sql.DB, heading, account, database string, more ...string) {
	t.Helper()
	names := strings.NewReplacer(append(more, "'lockstep'@", "'"+account+"'@", "'lockstep-rows'@", "'"+account+"'@", "`bank`", "`"+database+"`", "PASSWORD", secrets["source"])...)
	for statement := range strings.SplitSeq(testenv.Block(t, testenv.Page(t, "privileges.md"), heading, "sql"), ";\n") {
		if statement = names.Replace(strings.TrimSpace(statement)); statement == "" {
			continue
		}
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	t.Cleanup(func() { _, _ = db.Exec("DROP USER '" + account + "'@'%'") })
}

// elasticAccount makes an account with the role behind a heading of a page, for its own indices.
func (s *servers) elasticAccount(t *testing.T, page, heading, account, indices string) {
	t.Helper()
	s.search.Account(t, account, secrets["elastic"], testenv.ElasticRole(t, page, heading, indices))
}

// redisRights are those of a user on a page, for keys that begin with prefix.
func redisRights(t *testing.T, page, user, prefix string) []string {
	t.Helper()
	return testenv.RedisRights(t, page, user, secrets["redis"], prefix+":*", "lockstep:*")
}

// redisAccount makes an account with the rights of a page.
func redisAccount(t *testing.T, addr, account string, rights []string) {
	t.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: addr})
	defer client.Close()
	words := []any{"ACL", "SETUSER", account}
	for _, word := range rights {
		words = append(words, word)
	}
	must(t, client.Do(t.Context(), words...).Err())
}
