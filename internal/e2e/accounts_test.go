package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"lockstep/internal/testenv"
)

// apart is a pipeline of its own on the same servers, each part of which has its own
// accounts, with the rights that the page gives it and no others.
func (s *secured) apart(t *testing.T) {
	name := s.name + "_apart"
	rows := name + "_rows"
	sqlRights(t, s.db, "## MySQL", name, s.name)
	sqlRights(t, s.db, apartHeading, rows, s.name)
	s.on.kafka.Accounts(t, secrets["kafka"], testenv.KafkaRights(t, apartHeading, name))
	s.on.elasticAccount(t, "elasticsearch.md", wholeHeading, name, name+"-*")
	s.on.elasticAccount(t, "privileges.md", apartHeading, rows, name+"-*")
	redisAccount(t, s.on.cache.Addr, name, redisRights(t, "redis.md", "lockstep", name))
	redisAccount(t, s.on.cache.Addr, rows, redisRights(t, "privileges.md", "lockstep-rows", name))

	whole, err := os.ReadFile(s.config)
	must(t, err)
	files := t.TempDir()
	config := func(account, source, store string) string {
		mine := strings.NewReplacer("prefix: "+s.name, "prefix: "+name, `"`+s.name+`-`, `"`+name+`-`, `"`+s.name+`:`, `"`+name+`:`,
			"user: "+s.name+",", "user: "+source+",", "mechanism: scram-sha-512, username: "+s.name+",", "mechanism: scram-sha-512, username: "+name+"-"+account+",",
			"username: "+s.name+",", "username: "+store+",").Replace(string(whole))
		mine = regexp.MustCompile(`listen: "[^"]*"`).ReplaceAllLiteralString(mine, fmt.Sprintf("listen: %q", testenv.FreeAddr(t)))
		file, err := os.CreateTemp(files, account+"-*.yaml")
		must(t, err)
		defer file.Close()
		_, err = file.WriteString(mine)
		must(t, err)
		return file.Name()
	}
	configs := map[string]string{
		"capture":   config("capture", name, rows),
		"search":    config("sinks", rows, name),
		"cache":     config("sinks", rows, name),
		"reconcile": config("reconcile", rows, rows),
		"admin":     config("admin", rows, rows),
	}
	spec := s.spec
	spec.Tables = nil
	for _, table := range s.spec.Tables {
		table.Index, table.RedisKey = strings.Replace(table.Index, s.name, name, 1), strings.Replace(table.RedisKey, s.name, name, 1)
		spec.Tables = append(spec.Tables, table)
	}
	world := *s.world
	world.t, world.spec = t, spec
	a := &secured{world: &world, on: s.on, cache: s.cache}
	as := func(part string) *secured {
		a.config = configs[part]
		return a
	}

	var logs []string
	for _, part := range [][]string{{"reconcile"}, {"admin"}, {"sink", "cache"}, {"sink", "search"}, {"capture"}} { // whoever comes first makes what is not there
		logs = append(logs, as(part[len(part)-1]).start(part...).log)
	}
	a.same()
	must(t, s.cache.Set(t.Context(), name+":questions:8", "of somebody else", 0).Err())
	s.sql("UPDATE questions SET views = views + 1 WHERE id = 8")
	var letters []letter
	await(t, time.Minute, "the dead letter of the poisoned row", func() bool {
		as("admin").lockstep(&letters, "dlq", "list")
		return len(letters) == 1
	})
	for _, mode := range []string{"resync", "payload"} {
		if out, code := a.command("dlq", "replay", "--all", "--mode", mode); code != 1 || !strings.Contains(out, "stays") {
			t.Errorf("replay (%s) of a row that is refused ended with %d:\n%s", mode, code, out)
		}
	}
	a.lockstep(&letters, "dlq", "list")
	a.does("dlq", "show", letters[0].ID)
	a.does("dlq", "replay", letters[0].ID, "--dry-run")
	a.does("dlq", "skip", letters[0].ID, "--reason", "it is mended at once")
	must(t, s.cache.Del(t.Context(), name+":questions:8", name+":questions:1").Err())
	s.sql("UPDATE questions SET views = views + 1 WHERE id = 8")
	a.does("snapshot", "start", "--table", s.table("tags"), "--sweep", "--wait")
	a.does("barrier", "--search", "--timeout", "60s")
	if out, code := as("reconcile").command("reconcile", "--once", "--table", s.table("questions")); code != 1 || !strings.Contains(out, "missing") {
		t.Errorf("a comparison without a row ended with %d:\n%s", code, out)
	}
	as("cache").does("reconcile", "--once", "--table", s.table("questions"), "--repair")
	a.same()
	as("admin").does("audit", "verify")

	doctors := map[string][]string{"capture": {"capture"}, "search": {"sink", "search"}, "cache": {"sink", "cache"}, "reconcile": {"reconcile"}, "admin": {"admin"}}
	for part, words := range doctors {
		as(part).does(append([]string{"doctor"}, words...)...)
	}
	// What a part may not do is named, and it may do nothing that only others are to do.
	for _, wrong := range []struct {
		part  string
		as    []string
		names []string
	}{
		{"admin", doctors["capture"], []string{"REPLICATION SLAVE is not granted", "may not WRITE the topics .*apart.checkpoint.*apart.test_", "may not READ the groups .*apart.capture"}},
		{"admin", doctors["search"], []string{`may not READ the groups \S*apart.dlq.replays, \S*apart.search|may not READ the groups \S*apart.search, \S*apart.dlq.replays`, "lacks write on .*_apart-.*, manage on .*_apart-"}},
		{"reconcile", doctors["admin"], []string{`may not WRITE the topics \S*apart.audit, \S*apart.dlq.cache, \S*apart.dlq.search, \S*apart.jobs, \S*apart.snapshots`}},
		{"search", doctors["reconcile"], []string{`may not WRITE the topics \S*apart.reconcile`, `may not READ the groups \S*apart.reconcile.runner`}},
	} {
		out, code := as(wrong.part).command(append([]string{"doctor"}, wrong.as...)...)
		for _, name := range wrong.names {
			if code != 1 || !regexp.MustCompile(name).MatchString(out) {
				t.Errorf("with the accounts of %s, doctor %s ended with %d and did not say %q:\n%s", wrong.part, strings.Join(wrong.as, " "), code, name, out)
			}
		}
	}
	for _, log := range logs {
		said, err := os.ReadFile(log)
		must(t, err)
		if refused := regexp.MustCompile(`(?i).*(authoriz|NOPERM|security_exception|access denied|command denied).*`).Find(said); refused != nil {
			t.Errorf("a part was refused something: %s", refused)
		}
	}
}
