package testenv

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Instance is a database server of a test's own, which it may stop, break and throw
// away. It is started from the installed binaries, so it needs the native servers.
type Instance struct {
	Server
	dir     string
	command []string
	process *exec.Cmd
	ended   chan struct{}
	db      *sql.DB
}

// NewMySQL starts a MySQL of the test's own with an empty log. Settings are
// further words of its command line. It is gone at the end of the test.
func NewMySQL(t testing.TB, settings ...string) *Instance {
	t.Helper()
	return newInstance(t, "mysql", append([]string{
		"--innodb-redo-log-capacity=8M", "--innodb-buffer-pool-size=64M", "--log-replica-updates=ON",
	}, settings...))
}

// NewMariaDB starts a MariaDB of the test's own with an empty log.
func NewMariaDB(t testing.TB, settings ...string) *Instance {
	t.Helper()
	return newInstance(t, "mariadb", append([]string{
		"--innodb-buffer-pool-size=64M", "--log-slave-updates=ON",
	}, settings...))
}

// lastID counts the server ids given out, far from those of the shared servers.
var lastID atomic.Uint32

func newInstance(t testing.TB, kind string, settings []string) *Instance {
	t.Helper()
	words, template := blueprint(t, kind)
	i := &Instance{dir: filepath.Join(t.TempDir(), "data")}
	i.copyDir(t, template, i.dir)
	_ = os.Remove(filepath.Join(i.dir, "auto.cnf"))  // each has a UUID of its own
	tmp := filepath.Join(filepath.Dir(i.dir), "tmp") // a server that starts takes away what it believes to be temporary tables of an earlier one
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	addr := FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	i.Server = Server{Name: kind, Addr: addr, User: readerUser, Password: readerPassword}
	i.command = append(words, "--datadir="+i.dir, "--tmpdir="+tmp, "--port="+port, "--bind-address="+host, "--socket=mysql.sock", "--pid-file="+filepath.Join(i.dir, "server.pid"),
		fmt.Sprintf("--server-id=%d", 1000+lastID.Add(1)), "--sync-binlog=0", "--innodb-flush-log-at-trx-commit=2")
	i.command = append(i.command, settings...)
	t.Cleanup(func() { i.end(syscall.SIGKILL) })
	i.Start(t)
	return i
}

// blueprint returns the words that start a server, and a data directory to copy.
func blueprint(t testing.TB, kind string) (words []string, template string) {
	t.Helper()
	fields := native(t, "a further "+kind, kind, `template=$STATE_ROOT/template-$2
$2_words
if [[ $2 == mysql ]]; then command+=(--innodb-redo-log-capacity=8M); fi
with_lock "$2" "template-$2-$OFFSET" install_into "$template" "$2_initialize" >&2 || exit 1
$2_words
printf '%s\0' "$template" "${command[@]}"`, nil, kind)
	if len(fields) < 2 {
		t.Fatalf("the native servers do not say how a further %s is started", kind)
	}
	return fields[1:], fields[0]
}

func (i *Instance) copyDir(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v\n%s", from, err, out)
	}
}

// Start starts it on the data it has and returns when it answers.
func (i *Instance) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(filepath.Dir(i.dir), "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	_ = os.Remove(filepath.Join(i.dir, "mysql.sock.lock")) // of one that was killed; its process id may be anybody's by now
	i.process = exec.Command(i.command[0], i.command[1:]...)
	i.process.Stdout, i.process.Stderr = log, log
	if err := i.process.Start(); err != nil {
		t.Fatal(err)
	}
	i.ended = make(chan struct{})
	go func(p *exec.Cmd, ended chan struct{}) { _ = p.Wait(); close(ended) }(i.process, i.ended)
	c := mysql.NewConfig()
	c.Net, c.Addr, c.User, c.Passwd, c.MultiStatements, c.Timeout = "tcp", i.Addr, AdminUser, AdminPassword, true, 10*time.Second
	c.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	i.db = sql.OpenDB(connector)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	for i.db.PingContext(ctx) != nil {
		select {
		case <-i.ended:
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("the %s of the test has ended:\n%s", i.Name, said)
		case <-ctx.Done():
			t.Fatalf("the %s of the test does not answer on %s", i.Name, i.Addr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (i *Instance) end(signal syscall.Signal) {
	if i.process == nil {
		return
	}
	i.db.Close()
	_ = i.process.Process.Signal(signal)
	<-i.ended
	i.process = nil
}

// Stop stops it gently, Kill at once; both return when it is gone.
func (i *Instance) Stop(testing.TB) { i.end(syscall.SIGTERM) }
func (i *Instance) Kill(testing.TB) { i.end(syscall.SIGKILL) }

// Backup copies the data of a stopped server. What it returns puts the copy back in
// the place of the data.
func (i *Instance) Backup(t testing.TB) (restore func()) {
	t.Helper()
	kept := i.dir + ".backup"
	i.copyDir(t, i.dir, kept)
	return func() {
		t.Helper()
		if err := os.RemoveAll(i.dir); err != nil {
			t.Fatal(err)
		}
		i.copyDir(t, kept, i.dir)
	}
}

// Exec runs statements as the administrator.
func (i *Instance) Exec(t testing.TB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := i.db.Exec(s); err != nil {
			t.Fatalf("%s on the %s of the test: %s: %v", i.Addr, i.Name, s, err)
		}
	}
}

// Value asks for one value as the administrator.
func (i *Instance) Value(t testing.TB, query string) string {
	t.Helper()
	var v sql.NullString
	if err := i.db.QueryRow(query).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v.String
}

// DB is the administrator's connections, until the next stop.
func (i *Instance) DB() *sql.DB { return i.db }

// Follow makes it a replica of another server by GTIDs.
func (i *Instance) Follow(t testing.TB, of Server) {
	t.Helper()
	_, port, _ := net.SplitHostPort(of.Addr)
	if i.Name == "mariadb" {
		i.Exec(t, fmt.Sprintf("STOP SLAVE; CHANGE MASTER TO MASTER_HOST='%s', MASTER_PORT=%s, MASTER_USER='%s', MASTER_PASSWORD='%s', MASTER_USE_GTID=current_pos, MASTER_CONNECT_RETRY=1; START SLAVE",
			host, port, AdminUser, AdminPassword))
		return
	}
	i.Exec(t, fmt.Sprintf("STOP REPLICA; CHANGE REPLICATION SOURCE TO SOURCE_HOST='%s', SOURCE_PORT=%s, SOURCE_USER='%s', SOURCE_PASSWORD='%s', SOURCE_AUTO_POSITION=1, SOURCE_SSL=1, GET_SOURCE_PUBLIC_KEY=1, SOURCE_CONNECT_RETRY=1; START REPLICA",
		host, port, AdminUser, AdminPassword))
}

// Unfollow ends its being a replica.
func (i *Instance) Unfollow(t testing.TB) {
	t.Helper()
	if i.Name == "mariadb" {
		i.Exec(t, "STOP SLAVE; RESET SLAVE ALL")
		return
	}
	i.Exec(t, "STOP REPLICA; RESET REPLICA ALL")
}

// CatchUp waits until it has every transaction that another server has.
func (i *Instance) CatchUp(t testing.TB, with *Instance) {
	t.Helper()
	var query string
	if i.Name == "mariadb" {
		query = "SELECT MASTER_GTID_WAIT('" + with.Value(t, "SELECT @@GLOBAL.gtid_binlog_pos") + "', 120)"
	} else {
		query = "SELECT WAIT_FOR_EXECUTED_GTID_SET('" + with.Value(t, "SELECT @@GLOBAL.gtid_executed") + "', 120)"
	}
	if got := i.Value(t, query); got != "0" {
		t.Fatalf("the replica on %s did not catch up with %s in 2m", i.Addr, with.Addr)
	}
}
