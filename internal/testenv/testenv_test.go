package testenv_test

import (
	"bufio"
	"database/sql"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"lockstep/internal/testenv"
)

func TestAllServersAreThereWithTheirUsers(t *testing.T) {
	testenv.Kafka(t)
	testenv.Elastic(t)
	testenv.Redis(t)
	for _, s := range []testenv.Server{testenv.MySQL(t), testenv.MariaDB(t)} {
		name := testenv.Database(t, s)
		db := testenv.OpenMySQL(t, s, name)
		if _, err := db.Exec("CREATE TABLE a (id INT PRIMARY KEY)"); err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		for variable, want := range map[string]string{
			"log_bin": "1", "binlog_format": "ROW", "binlog_row_image": "FULL", "binlog_row_metadata": "FULL",
		} {
			var got string
			if err := db.QueryRow("SELECT @@" + variable).Scan(&got); err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("%s: %s = %s, want %s", s.Name, variable, got, want)
			}
		}
		var grants int
		if err := db.QueryRow("SELECT COUNT(*) FROM mysql.user WHERE User = ? AND Insert_priv = 'Y'", s.User).Scan(&grants); err != nil {
			t.Fatal(err)
		}
		if grants != 0 {
			t.Errorf("%s: the reader %s may write", s.Name, s.User)
		}
	}
}

func TestAStoppedServerComesBackOnItsData(t *testing.T) {
	s := testenv.Redis(t)
	if got := ask(t, s, "SET test:testenv kept EX 600"); got != "+OK" {
		t.Fatalf("SET: %s", got)
	}
	t.Cleanup(func() { ask(t, s, "DEL test:testenv") })

	t.Run("stopped", func(t *testing.T) {
		testenv.Stop(t, "redis")
		if listens(s) {
			t.Fatalf("redis still listens on %s", s.Addr)
		}
		testenv.Start(t, "redis")
		if got := ask(t, s, "STRLEN test:testenv"); got != ":4" {
			t.Fatalf("STRLEN of the key set before = %s, want :4", got)
		}
	})
	t.Run("killed and left down", func(t *testing.T) {
		testenv.Kill(t, "redis")
		if listens(s) {
			t.Fatalf("redis still listens on %s", s.Addr)
		}
	})
	testenv.Redis(t) // the cleanup of the killed one brought it back
}

// A server that is killed leaves the lock of its socket, and the process in it may be anybody's later.
func TestAKilledMySQLComesBackWhoeverHasItsProcessID(t *testing.T) {
	shared := testenv.MySQL(t)
	own := testenv.NewMySQL(t)
	for _, m := range []struct {
		name        string
		db          *sql.DB
		kill, start func()
	}{
		{"shared", testenv.OpenMySQL(t, shared, testenv.Database(t, shared)), func() { testenv.Kill(t, "mysql") }, func() { testenv.Start(t, "mysql") }},
		{"the test's own", own.DB(), func() { own.Kill(t) }, func() { own.Start(t) }},
	} {
		t.Run(m.name, func(t *testing.T) {
			var dir string
			if err := m.db.QueryRow("SELECT @@datadir").Scan(&dir); err != nil {
				t.Fatal(err)
			}
			m.kill()
			lock := filepath.Join(dir, "mysql.sock.lock")
			if _, err := os.Stat(lock); err != nil {
				t.Fatalf("a killed server leaves no lock: %v", err)
			}
			if err := os.WriteFile(lock, fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
				t.Fatal(err)
			}
			m.start()
		})
	}
}

// make test runs the packages of one system side by side: each asks for the servers of its own
// system and for no other, so it may stop them.
func TestPackagesThatAreTestedSideBySideShareNoServer(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(testenv.Root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(makefile), "\nONE_SYSTEM := ")
	line, _, _ = strings.Cut(line, "\n")
	asks := regexp.MustCompile(`testenv\.(?:(?:New(?:Secure)?)?(MySQL|MariaDB|Kafka|Elastic|Redis|Lookup|Lockstep)\b|(?:Stop|Kill|Start)\(t, ([^)]*)\))`)
	owner := map[string]string{}
	for _, pkg := range strings.Fields(line) {
		files, _ := filepath.Glob(filepath.Join(testenv.Root(t), strings.TrimPrefix(pkg, "lockstep/"), "*_test.go"))
		found := false
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range asks.FindAllStringSubmatch(string(text), -1) {
				server := strings.Replace(strings.ToLower(strings.Trim(m[1]+m[2], `"`)), "elasticsearch", "elastic", 1)
				if !slices.Contains([]string{"mysql", "mariadb", "kafka", "elastic", "redis"}, server) || owner[server] != "" && owner[server] != pkg {
					t.Errorf("%s: %s is not of %s alone: take that out of ONE_SYSTEM in the Makefile", file, m[0], pkg)
				}
				owner[server], found = pkg, true
			}
		}
		if !found {
			t.Errorf("%s asks for no server: take it out of ONE_SYSTEM in the Makefile", pkg)
		}
	}
	if len(owner) != 5 {
		t.Errorf("ONE_SYSTEM in the Makefile stands for the servers %v, want five", owner)
	}
}

func listens(s testenv.Server) bool {
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// ask sends one inline command to Redis and returns the first line of the answer.
func ask(t *testing.T, s testenv.Server, command string) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write([]byte(command + "\r\n")); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return line[:len(line)-2]
}
