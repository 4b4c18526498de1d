package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lockstep/audit"
	"lockstep/config"
	"lockstep/dlq"
	"lockstep/internal/testenv"
	"lockstep/sinks"
)

// serving is a process of c that serves the API and runs nothing else.
func (c *counter) serving() (address string) {
	c.t.Helper()
	_, address = c.process()
	return address
}

func (c *counter) process() (p *process, address string) {
	c.t.Helper()
	a := &app{configPath: c.path, stderr: c.t.Output(), env: func(string) (string, bool) { return "", false }}
	cfg, err := a.loadConfig(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	if p, err = newProcess(cfg, slog.New(slog.DiscardHandler)); err != nil {
		c.t.Fatal(err)
	}
	server, err := p.listenAdmin()
	if err != nil {
		c.t.Fatal(err)
	}
	p.ready.add("sink search", func() bool { return true })
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.run(ctx) }()
	c.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			c.t.Error(err)
		}
		p.kafka.Close()
	})
	return p, server.addr()
}

func newGuarded(t *testing.T) (c *counter, viewer, operator string) {
	t.Helper()
	viewer, operator = file(t, "viewer", "viewer-0123456789abcdef\n"), file(t, "operator", "operator-0123456789abcdef\n")
	return newCounter(t, fmt.Sprintf(`listen: "127.0.0.1:0", tokens: [{name: victor, role: viewer, file: %q}, {name: olga, role: operator, file: %q}]`, viewer, operator)), viewer, operator
}

// The examples of the page do what it says, on a real Kafka, and the act is in the audit
// log, which commands read.
func TestTheExamplesOfTheAPIPageWork(t *testing.T) {
	c, _, operator := newGuarded(t)
	c.bury("search", refused(1, "no field n", "2026-11-22T08:00:00Z"), refused(2, "no field n", "2026-11-22T09:00:00Z"))
	address := c.serving()
	page, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, part := range strings.Split(string(page), "```sh\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		script.WriteString(block)
	}
	if strings.Count(script.String(), "curl") < 10 {
		t.Errorf("the page has only these examples:\n%s", &script)
	}
	token, err := os.ReadFile(operator)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script.String())
	cmd.Dir = t.TempDir() // one writes a file
	cmd.Env = append(os.Environ(), "API=http://"+address, "TOKEN="+strings.TrimSpace(string(token)))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`"pipeline": "` + c.prefix, `"key": "1"`, `"count": 2`, `"state": "skipped"`, `"state": "asked"`, `"cancelled_by": "olga"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s is not in\n%s", want, out)
		}
	}
	if left := c.letters(); len(left) != 1 || left[0].Key != "2" {
		t.Errorf("%+v", left)
	}
	if file, err := os.ReadFile(filepath.Join(cmd.Dir, "letters.ndjson")); err != nil || string(file) != c.run("dlq", "export").stdout {
		t.Errorf("%s, %v", file, err)
	}
	var acts []audit.Listed
	got := c.run("audit", "list", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &acts); err != nil || len(acts) != 4 || acts[3].Act != "log.level" || acts[1].Act != "dlq.replay" || acts[2].Act != "dlq.cancel" || acts[1].Filter["job"] != acts[2].Filter["job"] || acts[0].Actor != "olga" || acts[0].Via != "http" || acts[0].Act != "dlq.skip" || acts[0].RequestID != "ticket-4711" || acts[0].Outcome != audit.Done || acts[0].Reason != "test data" {
		t.Errorf("%+v, %v", got, err)
	}
	// Another process gives the first answer, though the letter is closed.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.serving()+"/v1/dlq/"+strings.Split(acts[0].Filter["id"], " ")[0]+"/skip", strings.NewReader(`{"reason": "test data"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"Bearer " + strings.TrimSpace(string(token))}, "X-Request-Id": {"ticket-4711"}, "Content-Type": {"application/json"}}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || res.Header.Get("Idempotent-Replayed") != "true" || !strings.Contains(string(body), `"skipped"`) {
		t.Errorf("%s %s", res.Status, body)
	}
	if got := c.run("audit", "verify"); got.code != 0 {
		t.Errorf("%+v", got)
	}
}

func TestStatusSendsATokenAndProbesNeedNone(t *testing.T) {
	c, viewer, _ := newGuarded(t)
	address := c.serving()
	for path, want := range map[string]int{"/metrics": 200, "/healthz": 200, "/readyz": 200, "/v1/status": 401, "/v1/dlq": 401} {
		res, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
	if got := c.run("status", "--address", address); got.code != 0 {
		t.Errorf("with a token of the configuration: %+v", got)
	}
	if got := lockstep(t, nil, "status", "--address", address, "-c", "nowhere.yaml"); got.code != 1 || !strings.Contains(got.stderr, "answers 401 Unauthorized: send a token: ") {
		t.Errorf("without: %+v", got)
	}
	if got := lockstep(t, nil, "status", "--address", address, "-c", "nowhere.yaml", "--token-file", viewer); got.code != 0 {
		t.Errorf("with --token-file: %+v", got)
	}
	if got := lockstep(t, map[string]string{"LOCKSTEP_TOKEN": "viewer-0123456789abcdef"}, "status", "--address", address, "-c", "nowhere.yaml"); got.code != 0 {
		t.Errorf("with LOCKSTEP_TOKEN: %+v", got)
	}
	if got := lockstep(t, nil, "status", "--address", address, "-c", "nowhere.yaml", "--token-file", "nowhere"); got.code != 2 || !strings.Contains(got.stderr, "--token-file: ") {
		t.Errorf("%+v", got)
	}
}

func TestAProcessWithATokenFileThatIsOpenToAllDoesNotStart(t *testing.T) {
	open := file(t, "token", "viewer-0123456789abcdef")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	c := newCounter(t, fmt.Sprintf(`listen: "127.0.0.1:0", tokens: [{name: victor, role: viewer, file: %q}]`, open))
	if got := c.run("run"); got.code != 1 || got.stderr != fmt.Sprintf("lockstep: admin.tokens[0].file: %s has mode 0644, so others than its owner can read or change it; chmod 600 it, or 640\n", open) {
		t.Errorf("%+v", got)
	}
}

func TestLettersAreChosenAndGrouped(t *testing.T) {
	c := newCounter(t, "")
	c.bury("search", refused(1, "no field 'a' of 1", "2026-11-22T08:00:00Z"), refused(2, "no field 'b' of 2", "2026-11-22T09:00:00Z"), refused(3, "other", "2026-11-22T10:00:00Z"))
	c.bury("cache", refused(4, "no field 'a' of 1", "1h"))
	version := c.letters("--key", "2")[0].Version
	for want, args := range map[string][]string{
		"1 2 3 4": {}, "1 2 3": {"--sink", "search"}, "4": {"--since", "2h"}, "1 2 3 ": {"--until", "2h"},
		"2 3": {"--since", "2026-11-22T09:00:00Z", "--until", "2h"}, "1": {"--until", "2026-11-22T09:00:00Z"},
		"2 3 4": {"--min-version", fmt.Sprint(version)}, "1 2": {"--max-version", fmt.Sprint(version)}, "2": {"--min-version", fmt.Sprint(version), "--max-version", fmt.Sprint(version)},
	} {
		keys := map[string]bool{}
		for _, l := range c.letters(args...) {
			keys[l.Key] = true
		}
		got := ""
		for _, key := range []string{"1", "2", "3", "4"} {
			if keys[key] {
				got += " " + key
			}
		}
		if strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%q chooses %s, want %s", args, got, want)
		}
	}
	var order []string
	for _, l := range c.letters("--since", "2026-11-22T08:00:00Z") {
		order = append(order, l.Key)
	}
	if fmt.Sprint(order) != "[1 2 3 4]" { // that of sink cache is the newest
		t.Errorf("they are listed as %v", order)
	}
	var groups []dlq.Group
	got := c.run("dlq", "group", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &groups); err != nil || len(groups) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	g, first := groups[0], c.letters("--key", "1")[0]
	if g.Count != 2 || g.Sink != "search" || g.Example != first.ID || !g.FirstSeen.Equal(first.FirstFailed) || !g.LastSeen.Equal(first.FirstFailed.Add(time.Hour)) || fmt.Sprint(g.Tables) != "[bank.questions]" || g.Fingerprint != first.Fingerprint {
		t.Errorf("%+v", g)
	}
	if got := c.run("dlq", "group", "--sink", "search"); got.code != 0 || strings.Count(got.stdout, "\n") != 3 || !strings.Contains(got.stdout, g.Fingerprint+"  2") {
		t.Errorf("%+v", got)
	}
	if got := c.run("dlq", "list", "-o", "yaml", "--key", "1"); got.code != 0 || !strings.HasPrefix(got.stdout, "- id: "+first.ID+"\n  sink: search\n") || !strings.Contains(got.stdout, fmt.Sprintf("version: %d\n", first.Version)) {
		t.Errorf("%+v", got)
	}
	for want, args := range map[string][]string{
		`--sink: there is no sink "cash"; there are cache, search`:                                                         {"--sink", "cash"},
		`--table: "orders" is not db.table; write for example shop.orders`:                                                 {"--table", "orders"},
		`--class: "poison" is not known; use one of [mapping too_large undecodable key wrong_type shape no_table refused]`: {"--class", "poison"},
		`--since: "monday" is no time; write how long ago, such as 2h, or a time such as 2026-11-26T03:00:00Z`:             {"--since", "monday"},
		`--until: "-2h" is no time; write how long ago, such as 2h, or a time such as 2026-11-26T03:00:00Z`:                {"--until", "-2h"},
		`--until: is not after since, so no letter can be chosen`:                                                          {"--since", "1h", "--until", "2h"},
		`--min-version: "0" is no version; use a number from 1 to 2^53-1`:                                                  {"--min-version", "0"},
		`--max-version: 1 is below min_version, so no letter can be chosen`:                                                {"--min-version", "2", "--max-version", "1"},
		`--state: "resolved" is no state of an open letter; use one of [parked retrying exhausted]`:                        {"--state", "resolved"},
		`--key: is empty; leave it out to choose all`:                                                                      {"--key", ""},
		`unknown flag --fingerprnt; did you mean --fingerprint?; see lockstep dlq replay --help`:                           {"--fingerprnt", "x"},
	} {
		if got := c.run(append([]string{"dlq", "replay"}, args...)...); got.code != 2 || got.stderr != "lockstep: "+want+"\n" {
			t.Errorf("%q: %+v, want %s", args, got, want)
		}
	}
	if got := c.run("audit", "list"); got.stdout != "no acts\n" {
		t.Errorf("a mistake became an act: %+v", got)
	}
}

// Letters are skipped by what they have in common, once somebody has said how many they are.
func TestLettersAreSkippedByWhatTheyHaveInCommon(t *testing.T) {
	c, _, operator := newGuarded(t)
	var many []sinks.Refusal
	for id := range 250 {
		many = append(many, refused(id+1, "no field n", "2026-11-22T08:00:00Z"))
	}
	c.bury("search", many...)
	c.bury("cache", refused(1, "other", "2026-11-22T09:00:00Z"), refused(2, "other", "2026-11-22T09:00:00Z"))
	ids := []string{c.letters("--sink", "search", "--key", "1")[0].ID, c.letters("--sink", "cache", "--key", "1")[0].ID}
	for want, args := range map[string][]string{
		"2 name letters by ID, choose them with flags, or say --all":                                                                {"--reason", "x"},
		"2 --reason is missing; say why the rows may stay stale":                                                                    {"--sink", "cache", "--count", "2"},
		"2 --count is missing; say how many letters these are, as --dry-run counts them":                                            {"--sink", "cache", "--reason", "x"},
		"2 --count is missing; say how many letters these are, as --dry-run counts them ":                                           {"--all", "--reason", "x"},
		"1 the letters that are chosen are 2 by now, and not 3; none was skipped":                                                   {"--sink", "cache", "--reason", "x", "--count", "3"},
		"1 the letters that are chosen are 252 by now, and not 0; none was skipped":                                                 {"--all", "--reason", "x", "--count", "0"},
		"1 no open letter matches; see: lockstep dlq list":                                                                          {"--state", "retrying", "--reason", "x", "--count", "3"},
		"1 no open dead letter has the ID nowhere; see: lockstep dlq list":                                                          {ids[0], "nowhere", "--reason", "x"},
		"2 --count and --reason say how to skip, and --dry-run skips nothing; leave them out":                                       {"--all", "--dry-run", "--count", "3"},
		`2 --state: "resolved" is no state of an open letter; use one of [parked retrying exhausted]`:                               {"--state", "resolved", "--dry-run"},
		"1 dead letter " + ids[1] + " is open, but the other flags exclude it; leave them out, or see: lockstep dlq show " + ids[1]: {ids[1], "--sink", "search", "--count", "1", "--reason", "x"},
	} {
		if got := c.run(append([]string{"dlq", "skip"}, args...)...); fmt.Sprint(got.code, " ", got.stderr) != strings.Replace(strings.TrimSpace(want), " ", " lockstep: ", 1)+"\n" {
			t.Errorf("%q: %+v, want %s", args, got, want)
		}
	}
	if got := c.run("dlq", "skip", "--sink", "cache", "--dry-run"); got.code != 0 || !strings.Contains(got.stdout, ids[1]) || !strings.HasSuffix(got.stdout, "\n2 dead letters would be skipped\n") {
		t.Errorf("%+v", got)
	}
	if got := c.run("dlq", "skip", ids[0], ids[0], "--dry-run"); got.code != 0 || !strings.HasSuffix(got.stdout, "\n1 dead letter would be skipped\n") {
		t.Errorf("one that is named twice: %+v", got)
	}
	if got := c.run("audit", "list"); got.stdout != "no acts\n" || len(c.letters()) != 252 {
		t.Fatalf("something was done: %+v", got)
	}
	if got := c.run("dlq", "skip", ids[0], ids[1], "--reason", "two of them"); got.code != 0 || got.stdout != ids[1]+"\n"+ids[0]+"\n\n2 dead letters skipped\n" {
		t.Errorf("%+v", got)
	}
	if got := c.run("dlq", "skip", "--sink", "search", "--class", "mapping", "--count", "249", "--reason", "test data"); got.code != 0 || !strings.HasSuffix(got.stdout, "\n249 dead letters skipped\n") {
		t.Errorf("%+v", got)
	}
	if left := c.letters(); len(left) != 1 || left[0].Sink != "cache" || left[0].Key != "2" {
		t.Errorf("%+v", left)
	}
	var acts []audit.Listed
	got := c.run("audit", "list", "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &acts); err != nil || len(acts) != 2 || acts[0].Filter["ids"] != ids[0]+","+ids[1] || acts[0].Counts["skipped"] != 2 || acts[1].Counts["skipped"] != 249 || acts[1].Filter["sink"] != "search" || acts[1].Filter["class"] != "mapping" {
		t.Errorf("%+v, %v", got, err)
	}

	token, err := os.ReadFile(operator)
	if err != nil {
		t.Fatal(err)
	}
	address := c.serving()
	post := func(id, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Authorization": {"Bearer " + strings.TrimSpace(string(token))}, "X-Request-Id": {id}, "Content-Type": {"application/json"}}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(text)
	}
	if status, said := post("a", "/v1/dlq/skip?dry_run=true", `{"filter": {"sink": "cache"}}`); status != 200 || !strings.Contains(said, `"skipped": 1`) || len(c.letters()) != 1 {
		t.Errorf("%d %s", status, said)
	}
	if status, said := post("a", "/v1/dlq/skip", `{"filter": {"sink": "cache"}, "count": 1, "reason": "r"}`); status != 200 || !strings.Contains(said, `"skipped": 1`) || len(c.letters()) != 0 {
		t.Errorf("%d %s", status, said)
	}
}

func TestASecondAddressServesProbesAndMetricsAndNothingElse(t *testing.T) {
	cfg := config.Default()
	cfg.Prefix, cfg.Admin.Listen, cfg.Admin.MetricsListen = "shop", "", "127.0.0.1:0"
	p, err := newProcess(&cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer p.kafka.Close()
	server, err := p.listenMetrics()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.run(ctx) }()
	ask := func(path string) int {
		response, err := http.Get("http://" + server.addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.StatusCode
	}
	for path, want := range map[string]int{"/metrics": 200, "/healthz": 200, "/readyz": 503, "/v1/status": 404, "/v1/dlq": 404} {
		if got := ask(path); got != want {
			t.Errorf("%s answers %d; want %d", path, got, want)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAnAdminProcessIsReadyAndServesTheAPI(t *testing.T) {
	address := testenv.FreeAddr(t)
	c := newCounter(t, `listen: "`+address+`"`)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan result, 1)
	go func() {
		var stdout, stderr bytes.Buffer
		code := run(ctx, []string{"admin", "-c", c.path}, strings.NewReader(""), &stdout, &stderr, func(string) (string, bool) { return "", false })
		ended <- result{code, stdout.String(), stderr.String()}
	}()
	for ready := false; !ready; {
		select {
		case got := <-ended:
			t.Fatalf("it has ended: %+v", got)
		case <-time.After(20 * time.Millisecond):
		}
		if response, err := http.Get("http://" + address + "/readyz"); err == nil {
			response.Body.Close()
			ready = response.StatusCode == http.StatusOK
		}
	}
	if got := lockstep(t, nil, "status", "--address", address, "-o", "json"); !strings.Contains(got.stdout, `"name": "admin"`) {
		t.Errorf("lockstep status: %+v", got)
	}
	stop()
	if got := <-ended; got.code != 0 {
		t.Errorf("it ends with %+v", got)
	}
	if got := lockstep(t, nil, "admin", "-c", newCounter(t, `listen: ""`).path); got.code != 2 || !strings.Contains(got.stderr, "admin.listen is empty") {
		t.Errorf("without an address: %+v", got)
	}
}
