package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	kafkago "github.com/segmentio/kafka-go"

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
	judge     string            // URL of Elasticsearch for the test
	way       http.RoundTripper // to Elasticsearch, with the client's certificate

	accounts       sync.Mutex // of Elasticsearch, whose files name all of them
	roles          map[string]testenv.ElasticRights
	users, members string
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
	var files [3]string
	for i, name := range []string{cert, key, s.authority.File} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[i] = string(text)
	}
	s.roles, s.users, s.members = map[string]testenv.ElasticRights{}, "root:"+testenv.ElasticHash(t, testenv.AdminPassword)+"\n", "superuser:root\n"
	var starting sync.WaitGroup
	starting.Go(func() { s.kafka = testenv.NewSecureKafka(t, s.authority) })
	starting.Go(func() {
		s.search = testenv.NewElastic(t, testenv.ElasticSecurity("200ms"), map[string]string{
			"node.crt": files[0], "node.key": files[1], "ca.crt": files[2],
			"users": s.users, "users_roles": s.members,
		})
	})
	starting.Go(func() {
		s.source = testenv.NewMySQL(t, "--innodb-buffer-pool-size=256M", "--ssl-ca="+s.authority.File, "--ssl-cert="+cert, "--ssl-key="+key)
		s.cache = testenv.NewSecureRedis(t, s.authority)
	})
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	pair, err := tls.LoadX509KeyPair(s.cert, s.key)
	if err != nil {
		t.Fatal(err)
	}
	certified := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
	s.way = &http.Transport{TLSClientConfig: certified}
	way, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { way.Close() })
	s.judge = fmt.Sprintf("http://root:%s@%s", testenv.AdminPassword, way.Addr())
	go func() {
		for {
			from, err := way.Accept()
			if err != nil {
				return
			}
			go tunnel(from, s.search.Addr, certified)
		}
	}()
}

// tunnel passes on what comes over a connection, with TLS, until either side ends it.
func tunnel(from net.Conn, addr string, conf *tls.Config) {
	defer from.Close()
	to, err := tls.Dial("tcp", addr, conf)
	if err != nil {
		return // who came sees that nobody answers
	}
	defer to.Close()
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{to, from}, {from, to}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			ended <- struct{}{}
		}()
	}
	<-ended
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

// kafkaRights are those behind a heading of the page, of accounts and a prefix that are called
// name and not lockstep and shop.
func kafkaRights(t *testing.T, heading, name string) []kafkago.ACLEntry {
	t.Helper()
	return acls(t, strings.NewReplacer(" shop.", " "+name+".", "User:lockstep", "User:"+name).Replace(testenv.Block(t, testenv.Page(t, "privileges.md"), heading, "sh")))
}

// kafkaAccounts gives a broker accounts with rights.
func kafkaAccounts(t *testing.T, broker *testenv.KafkaBroker, rights []kafkago.ACLEntry) {
	t.Helper()
	accounts := map[string]bool{}
	for _, right := range rights {
		accounts[strings.TrimPrefix(right.Principal, "User:")] = true
	}
	for account := range accounts {
		broker.Account(t, account, secrets["kafka"])
	}
	allow(t, broker, rights...)
}

// allow gives rights.
func allow(t *testing.T, broker *testenv.KafkaBroker, rights ...kafkago.ACLEntry) {
	t.Helper()
	res, err := broker.Admin().CreateACLs(context.WithoutCancel(t.Context()), &kafkago.CreateACLsRequest{ACLs: rights})
	must(t, err)
	must(t, errors.Join(res.Errors...))
}

// elasticAccount makes an account with the role behind a heading of a page, for its own indices, and
// returns when it has all of that role's rights.
func (s *servers) elasticAccount(t *testing.T, page, heading, account, indices string) {
	t.Helper()
	role := testenv.ElasticRole(t, page, heading, indices)
	s.accounts.Lock()
	s.roles[account] = role
	s.search.Write(t, "roles.yml", testenv.ElasticRoles(t, s.roles))
	s.users += account + ":" + testenv.ElasticHash(t, secrets["elastic"]) + "\n"
	s.search.Write(t, "users", s.users)
	s.members += account + ":" + account + "\n"
	s.search.Write(t, "users_roles", s.members)
	s.accounts.Unlock()
	rights, err := json.Marshal(map[string]any{"cluster": role.Cluster, "index": role.Indices})
	must(t, err)
	ask := func(user, password, path string, body []byte) (int, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.search.URL+path, bytes.NewReader(body))
		must(t, err)
		req.SetBasicAuth(user, password)
		req.Header.Set("Content-Type", "application/json")
		res, err := s.way.RoundTrip(req)
		must(t, err)
		defer res.Body.Close()
		said, err := io.ReadAll(res.Body)
		must(t, err)
		return res.StatusCode, said
	}
	await(t, time.Minute, "Elasticsearch to know the account "+account, func() bool {
		// A node that was asked in the moment in which it read the file may go on to hold a role for
		// missing, so it is made to look again.
		if status, said := ask("root", testenv.AdminPassword, "/_security/role/"+account+"/_clear_cache", nil); status != http.StatusOK {
			t.Fatalf("clear the cache of roles: status %d: %s", status, said)
		}
		status, said := ask(account, secrets["elastic"], "/_security/user/_has_privileges", rights)
		return status == http.StatusOK && bytes.Contains(said, []byte(`"has_all_requested":true`))
	})
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
