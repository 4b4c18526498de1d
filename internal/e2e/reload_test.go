package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockstep/internal/oracle"
)

// mounted has the configuration of a world come as Kubernetes mounts it: a link to a file in
// ..data, which is a link to a directory that is replaced as a whole.
type mounted struct {
	w    *world
	dir  string
	text string
	n    int
}

func (w *world) mount() *mounted {
	w.t.Helper()
	text, err := os.ReadFile(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	m := &mounted{w: w, dir: w.t.TempDir(), text: string(text)}
	w.config = filepath.Join(m.dir, "lockstep.yaml")
	if err := os.Symlink("..data/lockstep.yaml", w.config); err != nil {
		w.t.Fatal(err)
	}
	m.write(m.text)
	return m
}

// write turns ..data to a directory that has text, and gives its SHA-256.
func (m *mounted) write(text string) (sum string) {
	m.w.t.Helper()
	m.n++
	name := fmt.Sprintf("..%d", m.n)
	if err := errors.Join(os.Mkdir(filepath.Join(m.dir, name), 0o700), os.WriteFile(filepath.Join(m.dir, name, "lockstep.yaml"), []byte(text), 0o600),
		os.Symlink(name, filepath.Join(m.dir, "..tmp")), os.Rename(filepath.Join(m.dir, "..tmp"), filepath.Join(m.dir, "..data"))); err != nil {
		m.w.t.Fatal(err)
	}
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

// change replaces pieces of the configuration, old and new by turns, and waits until a process runs
// with the new one.
func (m *mounted) change(p *process, what string, pieces ...string) {
	m.w.t.Helper()
	before := m.text
	m.text = strings.NewReplacer(pieces...).Replace(m.text)
	if m.text == before {
		m.w.t.Fatalf("%s: nothing is changed", what)
	}
	sum := m.write(m.text)
	await(m.w.t, 3*time.Minute, what, func() bool {
		p.alive()
		return p.metric("lockstep_config_info", sum) == 1 && p.metric("lockstep_config_last_reload_successful") == 1
	})
}

type configured struct {
	Configuration struct {
		Problem  string
		LogLevel string `json:"log_level"`
	}
}

// Everything that may change while a process runs is changed under load: tables come, a
// condition and a mapping become others, a password too, the log tells more, limits go to and
// fro; and a file with a mistake and one that needs a restart change nothing. All ends as if
// the process had begun with what it has at last.
func TestTheConfigurationChangesUnderLoadAndNothingIsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 60)
	account, password := w.name+"_r", filepath.Join(t.TempDir(), "password")
	login := func(word string) {
		if err := os.WriteFile(password, []byte(word+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.sql(`CREATE TABLE articles (id INT AUTO_INCREMENT PRIMARY KEY, status ENUM('draft','published','archived'), title VARCHAR(60) NOT NULL,
			votes INT NOT NULL DEFAULT 1, price DECIMAL(8,2), email VARCHAR(60), phone VARCHAR(20), notes TEXT)`,
		"CREATE VIEW shown AS SELECT id, title, votes FROM articles WHERE status IN ('published', 'archived')",
		`INSERT INTO articles (status, title) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) SELECT ELT(1 + i % 4, 'draft', 'published', 'archived', NULL), CONCAT('article ', i) FROM n`,
		"CREATE USER '"+account+"'@'%' IDENTIFIED BY 'first'", "GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '"+account+"'@'%'")
	t.Cleanup(func() { _, _ = w.db.Exec("DROP USER '" + account + "'@'%'") })
	login("first")
	m := w.mount()
	begin, rest, _ := strings.Cut(m.text, "user: ")
	_, rest, _ = strings.Cut(rest, ", server_id")
	rest, entries, _ := strings.Cut(rest, "tables:\n")
	var first, later string
	for entry := range strings.Lines(entries) {
		switch {
		case strings.Contains(entry, ".questions\""):
			first += entry
		case strings.Contains(entry, ".question_tags\""):
			later += entry
		}
	}
	w.spec.Tables = slices.DeleteFunc(w.spec.Tables, func(t oracle.TableSpec) bool { return !strings.Contains(first+later, "."+t.Table+"\"") })
	m.text = begin + "user: " + account + ", password_file: " + password + ", server_id" + rest + "tables:\n" + first
	m.write(m.text)
	p := w.start("run")
	p.awaitReady()
	end, endEdit := w.load(60, 5), w.edit()

	m.change(p, "tables to be added", "tables:\n", "tables:\n"+later+fmt.Sprintf(`  - match: %[1]s.articles
    elastic: {index: %[1]s-articles, mapping: {title: {type: keyword}}}
    redis: {key: "%[1]s:articles:{id}"}
    shape: {where: "row.status == 'published'", fields: [id, title, votes]}
`, w.name))
	await(t, 3*time.Minute, "the new tables to be copied", func() bool {
		applied := func(table string) float64 {
			return p.metric("lockstep_sink_changes_total", `sink="search"`, `outcome="applied"`, fmt.Sprintf("table=%q", w.name+"."+table))
		}
		return applied("articles") > 0 && applied("question_tags") > 0
	})

	said := w.status(p)
	if c := said.Configuration; c.LogLevel != "info" || c.Problem != "" {
		t.Errorf("before it is changed: %+v", c)
	}
	connected := p.metric("lockstep_sink_received_total")
	m.change(p, "the log to tell more", "tables:\n", "log: {level: debug}\ntables:\n")
	if c := w.status(p).Configuration; c.LogLevel != "debug" {
		t.Errorf("the level of the log is %q; want debug", c.LogLevel)
	}
	if p.metric("lockstep_sink_received_total") < connected {
		t.Error("a part forgot what it had counted")
	}

	// The new condition holds for what changes; a copy brings the rest.
	m.change(p, "a condition and a mapping to change", "row.status == 'published'", "row.status in ['published', 'archived']", "{title: {type: keyword}}", "{title: {type: text}}")
	var rebuilt struct{ To string }
	w.lockstep(&rebuilt, "rebuild", "search", "--table", w.name+".articles")
	var copied []struct{ State string }
	w.lockstep(&copied, "snapshot", "start", "--table", w.name+".articles", "--wait")

	// A password changes as servers have it: both hold until the old one is taken away.
	w.sql("ALTER USER '" + account + "'@'%' IDENTIFIED BY 'second' RETAIN CURRENT PASSWORD")
	applied := p.metric("lockstep_config_reloads_total", "applied")
	login("second")
	await(t, 3*time.Minute, "the other password to be used", func() bool { return p.metric("lockstep_config_reloads_total", "applied") > applied })
	w.sql("ALTER USER '" + account + "'@'%' DISCARD OLD PASSWORD")
	p.awaitReady()
	w.hangUp(account)

	// What cannot be used changes nothing, and everybody is told.
	for _, bad := range []struct{ outcome, old, new, want string }{
		{"invalid", "tables:\n", "tables:\n  - {match: nowhere}\n", "tables[0].match"},
		{"refused", "prefix: ", "prefix: other_", "prefix: cannot change while the process runs; restart it to have that"},
	} {
		m.write(strings.Replace(m.text, bad.old, bad.new, 1))
		await(t, 3*time.Minute, bad.outcome, func() bool { return p.metric("lockstep_config_reloads_total", bad.outcome) == 1 })
		if c := w.status(p).Configuration; !strings.Contains(c.Problem, bad.want) || p.metric("lockstep_config_last_reload_successful") != 0 {
			t.Errorf("%s: the problem is %q", bad.outcome, c.Problem)
		}
		said, err := exec.Command(w.binary, "status", "--address", p.admin).CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 || !strings.Contains(string(said), "the configuration is not used") {
			t.Errorf("%s: lockstep status ended with %v: %s", bad.outcome, err, said)
		}
	}
	m.write(m.text)
	await(t, 3*time.Minute, "the file to be right again", func() bool { return p.metric("lockstep_config_last_reload_successful") == 1 })

	// Many in a row, faster than parts begin.
	m.change(p, "limits to change", "worker: {", "worker: {batch_changes: 11, ")
	for n := range 8 {
		m.text = strings.Replace(m.text, fmt.Sprintf("batch_changes: %d,", 11+n), fmt.Sprintf("batch_changes: %d,", 12+n), 1)
		m.write(m.text)
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		waitFor(t, 150*time.Millisecond)
	}
	m.change(p, "the last limits", "batch_changes: 19, ", "")
	endEdit()
	end()
	w.spec.Tables = append(w.spec.Tables,
		oracle.TableSpec{Table: "shown", Key: []string{"id"}, Index: w.name + "-articles", RedisKey: w.name + ":articles:{id}"})
	w.equal(3 * time.Minute)
	p.balanced("search")
	p.balanced("cache")
	if n := p.metric("lockstep_config_reloads_total", "reverted"); n != 0 {
		t.Errorf("%v times what ran before was given back", n)
	}
	p.stop()
}

func (w *world) status(p *process) (s configured) {
	w.t.Helper()
	if err := ask(w.t.Context(), "http://"+p.admin+"/v1/status", &s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// hangUp ends all connections of an account.
func (w *world) hangUp(account string) {
	w.t.Helper()
	rows, err := w.db.Query("SELECT id FROM information_schema.processlist WHERE user = ?", account)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			w.t.Fatal(err)
		}
		_, _ = w.db.Exec("KILL ?", id) // it may be gone
	}
}
