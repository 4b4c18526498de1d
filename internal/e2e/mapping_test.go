package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"lockstep/internal/oracle"
)

const (
	wouldApply = "would be applied"
	// notPut is that of a mapping that no change has put yet.
	notPut = wouldApply + ": the store cannot be asked whether it takes it, because the configured mapping has other words than that of the index, and is put with the next change"
)

// mapped has the mapping of fields of questions configured as it says, such as
// "code: {type: integer}", in place of what was.
func (w *world) mapped(fields string) {
	w.t.Helper()
	text, err := os.ReadFile(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(text), fmt.Sprintf("elastic: {index: %q", w.name+"-questions"))
	_, tail, ends := strings.Cut(rest, "}, redis:")
	if !found || !ends {
		w.t.Fatalf("the configuration has no entry of questions to be changed:\n%s", text)
	}
	entry := fmt.Sprintf("elastic: {index: %q, mapping: {%s}}, redis:", w.name+"-questions", fields)
	if err := os.WriteFile(w.config, []byte(head+entry+tail), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// causes gives the open letters of a sink by fingerprint, and the fingerprint of the one
// cause whose reason names the field.
func (w *world) causes() (counts map[string]int, of func(field string) string) {
	w.t.Helper()
	var groups []struct {
		Fingerprint, Sink, Class, Reason string
		Count                            int
	}
	w.lockstep(&groups, "dlq", "group")
	counts = map[string]int{}
	for _, g := range groups {
		counts[g.Fingerprint] = g.Count
	}
	return counts, func(field string) (fingerprint string) {
		w.t.Helper()
		for _, g := range groups {
			if strings.Contains(g.Reason, "["+field+"]") {
				if fingerprint != "" || g.Sink != "search" || g.Class != "mapping" {
					w.t.Fatalf("the letters of field %s are not one group of the sink search: %+v", field, groups)
				}
				fingerprint = g.Fingerprint
			}
		}
		return fingerprint
	}
}

// foreseen counts what a dry run says of the letters of a group.
func (w *world) foreseen(fingerprint, mode string) map[string]int {
	w.t.Helper()
	var would []struct {
		Result struct{ State, Reason string }
	}
	w.lockstep(&would, "dlq", "replay", "--fingerprint", fingerprint, "--mode", mode, "--dry-run")
	counts := map[string]int{}
	for _, o := range would {
		what := o.Result.State
		if what == wouldApply && o.Result.Reason != "" {
			what += ": " + o.Result.Reason
		}
		counts[what]++
	}
	return counts
}

// Rows that the mapping refuses, for one field of the type integer and one of the type ip,
// are two groups of letters. The mapping of the first is mended by another type and a rebuild,
// which leaves the letters open, that of the second where it is; then each group is replayed,
// one by what was recorded and one by reading the rows again, while others write the same
// rows: no letter is left, the stores are equal to MySQL, and no reader sees a version go down.
func TestAMappingIsMendedAndTheGroupReplayedUnderLoad(t *testing.T) {
	t.Parallel()
	const each = 500
	w := newWorld(t, 2*each+200)
	w.noFlood()
	w.sql("ALTER TABLE questions ADD code VARCHAR(20), ADD origin VARCHAR(40)")
	w.mapped("code: {type: integer}, origin: {type: ip}")
	p := w.start("run")
	w.equal(time.Minute)
	w.sql(fmt.Sprintf("UPDATE questions SET code = IF(id %% 2, CONCAT('A-', id), id), origin = IF(id %% 2, '10.0.0.1', CONCAT('host', id, '.example')) WHERE id <= %d", 2*each))
	await(t, time.Minute, "the letters", func() bool {
		p.alive()
		return p.metric("lockstep_sink_dead_letters_total", `sink="search"`) == 2*each
	})
	counts, of := w.causes()
	code, origin := of("code"), of("origin")
	if want := map[string]int{code: each, origin: each}; !maps.Equal(counts, want) {
		t.Fatalf("the groups are %v, want %v", counts, want)
	}
	w.foreseeable(code, "payload", "would be refused")
	w.foreseeable(origin, "resync", "would be refused")

	watcher := &oracle.Watcher{Spec: w.spec}
	watching, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	watched := make(chan error, 1)
	go func() { watched <- watcher.Run(watching) }()

	end := w.loadOf(20, 6, 100)
	w.mapped("code: {type: keyword}, origin: {type: ip}")
	var rebuilt struct{ To string }
	if w.lockstep(&rebuilt, "rebuild", "search", "--table", w.name+".questions"); !strings.HasSuffix(rebuilt.To, "-questions-000002") {
		t.Errorf("rebuilt to %q", rebuilt.To)
	}
	await(t, time.Minute, "the process to follow the mapping", func() bool {
		p.alive()
		return p.metric("lockstep_config_reloads_total", "applied") > 0
	})
	t.Log(end())
	p.stop()
	p = w.start("run")
	w.foreseeable(code, "payload", wouldApply)
	end = w.loadOf(60, 7, 300)
	w.mended(code, "payload", "origin")
	t.Log(end())
	if counts, _ := w.causes(); counts[code] != 0 || counts[origin] < enough {
		t.Errorf("after the replay of %s the groups are %v; want those of %s alone", code, counts, origin)
	}

	w.mapped("code: {type: keyword}, origin: {type: ip, ignore_malformed: true}")
	p.stop()
	p = w.start("run")
	w.foreseeable(origin, "resync", wouldApply, notPut)
	end = w.loadOf(60, 8, 300)
	w.mended(origin, "resync", "")
	t.Log(end())
	w.equal(time.Minute)
	stop()
	if err := <-watched; err != nil {
		t.Fatal(err)
	}
	for _, v := range watcher.Violations() {
		t.Errorf("step back: %s", v)
	}
	if reads := watcher.Reads(); reads < 1000 {
		t.Errorf("the watcher has read only %d times", reads)
	}
	await(t, time.Minute, "the last letter to end", func() bool { return len(w.openLetters()) == 0 })
	p.balanced("search")
	p.stop()
}

// enough letters are left of a group when the load has closed some.
const enough = 50

// foreseeable has a dry run say one of these of every letter of a group.
func (w *world) foreseeable(fingerprint, mode string, want ...string) {
	w.t.Helper()
	var would map[string]int
	defer func() { w.t.Logf("a replay (%s) would come to %v", mode, would) }()
	await(w.t, 30*time.Second, "the dry run to foresee that a replay ("+mode+") comes to "+strings.Join(want, " or "), func() bool {
		would = w.foreseen(fingerprint, mode)
		said, all := 0, 0
		for what, n := range would {
			if all += n; slices.Contains(want, what) {
				said += n
			}
		}
		return said == all && all >= enough
	})
}

// mended replays a group of letters whose cause is gone; those whose rows the load writes first close
// by that. Only what was refused anew meanwhile for a field that is not mended, when two rows have
// traded their keys, may stay.
func (w *world) mended(fingerprint, mode, unmended string) {
	w.t.Helper()
	out, _ := exec.Command(w.binary, "dlq", "replay", "--fingerprint", fingerprint, "--mode", mode, "--rate", "150", "-c", w.config, "-o", "json").Output()
	var s struct {
		replay
		Stays []struct{ Reason string }
	}
	w.decode(&s, out)
	w.t.Logf("%+v", s)
	brought := map[string]string{"payload": "resolved", "resync": "resynced"}[mode]
	if s.State != "done" || s.Done != s.Total || s.Total < enough || s.Letters[brought] < s.Total/2 || s.Letters["stays"] > 20 {
		w.t.Errorf("the replay is %+v", s)
	}
	if mode == "payload" && s.Letters["closed"]+s.Letters["superseded"] == 0 {
		w.t.Errorf("nobody has written any of the rows meanwhile: %+v", s)
	}
	for _, stays := range s.Stays {
		if unmended == "" || !strings.Contains(stays.Reason, "field ["+unmended+"]") {
			w.t.Errorf("a letter stays: %s", stays.Reason)
		}
	}
}

// An operator makes an index with another mapping and puts it behind the alias. Lockstep
// copies the table into it, so the letters close by themselves, and a replay has nothing to do.
func TestLettersCloseWhenAnOperatorPutsAnIndexThatFitsBehindTheAlias(t *testing.T) {
	t.Parallel()
	const rows = 60
	w := newWorld(t, 100)
	w.noFlood()
	w.sql("ALTER TABLE questions ADD code VARCHAR(20)")
	w.mapped("code: {type: integer}")
	p := w.start("run")
	w.equal(time.Minute)
	w.sql(fmt.Sprintf("UPDATE questions SET code = CONCAT('A-', id) WHERE id <= %d", rows))
	await(t, time.Minute, "the letters", func() bool { return len(w.openLetters()["search"]) == rows })
	_, of := w.causes()
	code := of("code")
	p.stop()

	alias := w.name + "-questions"
	var was map[string]struct{ Mappings map[string]any }
	w.elasticJSON(http.MethodGet, "/"+alias+"/_mapping", nil, &was)
	mapping := was[alias+"-000001"].Mappings
	mapping["properties"].(map[string]any)["code"] = map[string]any{"type": "keyword"}
	w.elasticJSON(http.MethodPut, "/"+alias+"-000002", map[string]any{"mappings": mapping}, nil)
	w.elasticJSON(http.MethodPost, "/_aliases", map[string]any{"actions": []any{
		map[string]any{"remove": map[string]any{"index": alias + "-000001", "alias": alias}},
		map[string]any{"add": map[string]any{"index": alias + "-000002", "alias": alias, "is_write_index": true}},
	}}, nil)
	w.mapped("code: {type: keyword}")
	p = w.start("run")
	await(t, time.Minute, "the letters to close", func() bool {
		p.alive()
		return len(w.openLetters()) == 0
	})
	if n := p.metric("lockstep_dlq_closed_total", `sink="search"`, `state="superseded"`); n != rows {
		t.Errorf("%v letters are superseded, want %d", n, rows)
	}
	out, err := exec.Command(w.binary, "dlq", "replay", "--fingerprint", code, "-c", w.config).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(string(out), "no open letter matches") {
		t.Errorf("a replay of no letters ended with %v:\n%s", err, out)
	}
	w.equal(time.Minute)
	p.stop()
}

// elasticJSON makes a request that is to succeed, as an operator would.
func (w *world) elasticJSON(method, path string, body, into any) {
	w.t.Helper()
	var text []byte
	var err error
	if body != nil {
		if text, err = json.Marshal(body); err != nil {
			w.t.Fatal(err)
		}
	}
	answer := w.elastic(method, path, string(text))
	if into != nil {
		w.decode(into, answer)
	}
}
