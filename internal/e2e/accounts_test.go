package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lockstep/internal/testenv"
)

const apartHeading = "## An account for each part"

// kafkaAccounts are the accounts that the page of privileges names, of the whole pipeline and
// of each part.
func kafkaAccounts() map[string]string {
	return map[string]string{"lockstep": secrets["kafka"], "lockstep-capture": secrets["kafka"], "lockstep-sinks": secrets["kafka"], "lockstep-reconcile": secrets["kafka"], "lockstep-admin": secrets["kafka"]}
}

// elasticRole is the role of a page in one line, as a file of roles wants it: JSON is YAML, too.
func elasticRole(t *testing.T, name, heading string) string {
	t.Helper()
	var role bytes.Buffer
	must(t, json.Compact(&role, []byte(block(t, page(t, name), heading, "json"))))
	return role.String()
}

// apart is a pipeline of its own on the same servers, each part of which has its own
// accounts, with the rights that the page gives it and no others.
func (s *secured) apart(t *testing.T) {
	text := page(t, "privileges.md")
	for statement := range strings.SplitSeq(block(t, text, apartHeading, "sql"), ";\n") {
		if strings.TrimSpace(statement) != "" {
			s.root.Exec(t, strings.ReplaceAll(statement, "PASSWORD", secrets["source"]))
		}
	}
	rights := acls(t, strings.ReplaceAll(block(t, text, apartHeading, "sh"), " shop.", " apart."))
	s.allow(t, rights...)
	must(t, s.cache.Do(t.Context(), aclOf(t, "privileges.md", "lockstep-rows")...).Err())

	whole, err := os.ReadFile(s.config)
	must(t, err)
	files := t.TempDir()
	config := func(part, source, kafka, store string) string {
		mine := strings.NewReplacer("prefix: shop", "prefix: apart", `"shop_`, `"shop_apart_`, `"shop:`, `"shop:apart:`,
			"user: lockstep,", "user: "+source+",", "mechanism: scram-sha-512, username: lockstep,", "mechanism: scram-sha-512, username: "+kafka+",",
			"username: lockstep,", "username: "+store+",").Replace(string(whole))
		mine = regexp.MustCompile(`listen: "[^"]*"`).ReplaceAllLiteralString(mine, fmt.Sprintf("listen: %q", testenv.FreeAddr(t)))
		path := filepath.Join(files, part+".yaml")
		must(t, os.WriteFile(path, []byte(mine), 0o600))
		return path
	}
	configs := map[string]string{
		"capture":   config("capture", "lockstep", "lockstep-capture", "lockstep-rows"),
		"search":    config("search", "lockstep-rows", "lockstep-sinks", "lockstep"),
		"cache":     config("cache", "lockstep-rows", "lockstep-sinks", "lockstep"),
		"reconcile": config("reconcile", "lockstep-rows", "lockstep-reconcile", "lockstep-rows"),
		"admin":     config("admin", "lockstep-rows", "lockstep-admin", "lockstep-rows"),
	}
	spec := s.spec
	spec.Tables = nil
	for _, table := range s.spec.Tables {
		table.Index, table.RedisKey = strings.Replace(table.Index, "shop_", "shop_apart_", 1), strings.Replace(table.RedisKey, "shop:", "shop:apart:", 1)
		spec.Tables = append(spec.Tables, table)
	}
	world := *s.world
	world.t, world.spec = t, spec
	a := &secured{world: &world, admin: s.admin, root: s.root, cache: s.cache}
	as := func(part string) *secured {
		a.config = configs[part]
		return a
	}

	var logs []string
	for _, part := range [][]string{{"reconcile"}, {"admin"}, {"sink", "cache"}, {"sink", "search"}, {"capture"}} { // whoever comes first makes what is not there
		logs = append(logs, as(part[len(part)-1]).start(part...).log)
	}
	a.same()
	must(t, s.cache.Set(t.Context(), "shop:apart:questions:8", "of somebody else", 0).Err())
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
	must(t, s.cache.Del(t.Context(), "shop:apart:questions:8", "shop:apart:questions:1").Err())
	s.sql("UPDATE questions SET views = views + 1 WHERE id = 8")
	a.does("snapshot", "start", "--table", "bank.tags", "--sweep", "--wait")
	a.does("barrier", "--search", "--timeout", "60s")
	if out, code := as("reconcile").command("reconcile", "--once", "--table", "bank.questions"); code != 1 || !strings.Contains(out, "missing") {
		t.Errorf("a comparison without a row ended with %d:\n%s", code, out)
	}
	as("cache").does("reconcile", "--once", "--table", "bank.questions", "--repair")
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
		{"admin", doctors["capture"], []string{"REPLICATION SLAVE is not granted", "may not WRITE the topics .*apart.bank.questions.*apart.checkpoint", "may not READ the groups apart.capture"}},
		{"admin", doctors["search"], []string{"may not READ the groups apart.dlq.replays, apart.search|may not READ the groups apart.search, apart.dlq.replays", "lacks write on shop_apart_.*, manage on shop_apart_"}},
		{"reconcile", doctors["admin"], []string{"may not WRITE the topics apart.audit, apart.dlq.cache, apart.dlq.search, apart.jobs, apart.snapshots"}},
		{"search", doctors["reconcile"], []string{"may not WRITE the topics apart.reconcile", "may not READ the groups apart.reconcile.runner"}},
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
