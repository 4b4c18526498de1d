package elastic

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

func tombstones(c *Config) { c.Deletes = Tombstone }

// found is how many documents a search through the alias finds, and how many the
// index has.
func (s *store) seen(t *testing.T, name cdc.TableName) (seen, all int64) {
	t.Helper()
	s.ask(t, http.MethodPost, "/"+s.alias(name)+"/_refresh", "")
	_, res := s.ask(t, http.MethodPost, "/"+s.alias(name)+"/_count", "")
	_, whole := s.ask(t, http.MethodPost, "/"+s.alias(name)+"-000001/_count", "")
	return res.Get("count").Int(), whole.Get("count").Int()
}

// A node forgets the versions of deleted documents when it restarts, whatever
// gc_deletes says. A tombstone it does not forget.
func TestAfterARestartAnOlderChangeBringsBackARowThatWasDeletedHardAndNotOneWithATombstone(t *testing.T) {
	hard, kept := openStore(t, nil), openStore(t, tombstones)
	for _, s := range []*store{hard, kept} {
		for _, c := range []cdc.Change{sinktest.Upsert(1, 5, "five"), sinktest.Delete(1, 10)} {
			if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
				t.Fatal(out)
			}
		}
		if out := verdictOf(t, s, sinktest.Upsert(1, 7, "late")); out.Verdict != sinks.Stale {
			t.Fatalf("before the restart: %+v; want stale", out)
		}
		s.ask(t, http.MethodPost, "/"+s.alias(sinktest.Questions.Name)+"/_flush", "")
	}
	node.Stop()
	if err := scope.Run(node.Start); err != nil {
		t.Fatal(err)
	}
	var out sinks.Outcome
	for range 1200 { // connections to the node that was are found broken
		if out = verdictOf(t, kept, sinktest.Upsert(1, 7, "late")); out.Verdict != sinks.Unavailable {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if out.Verdict != sinks.Stale {
		t.Errorf("a tombstone: %+v; want stale", out)
	}
	if seen, _ := kept.seen(t, sinktest.Questions.Name); seen != 0 {
		t.Errorf("a search finds %d rows; want none", seen)
	}
	for range 1200 {
		if out = verdictOf(t, hard, sinktest.Upsert(1, 7, "late")); out.Verdict != sinks.Unavailable {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if out.Verdict != sinks.Applied {
		t.Errorf("a hard delete: %+v; this release remembers it after a restart, so say so in doc.go", out)
	}
}

func TestATombstoneIsHiddenFromSearchesAndRemovedWhenItHasBeenKeptLongEnough(t *testing.T) {
	t.Parallel()
	s := openStore(t, tombstones)
	name := sinktest.Questions.Name
	for _, c := range []cdc.Change{
		sinktest.Upsert(1, 1, "stays"), sinktest.Upsert(2, 1, "goes"), sinktest.Delete(2, 2),
		sinktest.Delete(3, 5), sinktest.Delete(4, 5), sinktest.Upsert(4, 6, "made again"),
	} {
		if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	if seen, all := s.seen(t, name); seen != 2 || all != 4 {
		t.Fatalf("a search finds %d of %d documents; want 2 of 4", seen, all)
	}
	_, before := s.ask(t, http.MethodGet, "/"+s.alias(name)+"/_doc/3", "")
	if out := verdictOf(t, s, sinktest.Delete(3, 5)); out.Verdict != sinks.Duplicate {
		t.Errorf("%+v; want duplicate", out)
	}
	if out := verdictOf(t, s, sinktest.Delete(3, 4)); out.Verdict != sinks.Stale {
		t.Errorf("%+v; want stale", out)
	}
	if _, after := s.ask(t, http.MethodGet, "/"+s.alias(name)+"/_doc/3", ""); after.Get("_source").Raw != before.Get("_source").Raw || !before.Get("_source._lockstep.at").Exists() {
		t.Errorf("a delete that came again made %s of %s", after.Raw, before.Raw)
	}
	lap := func(keep time.Duration, want int64) {
		t.Helper()
		s.config.TombstoneKeep = keep
		if err := s.lap(t.Context(), func(context.Context) ([]cdc.TableName, error) { return []cdc.TableName{name, sinktest.Tags.Name}, nil }); err != nil {
			t.Fatal(err)
		}
		if seen, all := s.seen(t, name); seen != 2 || all != want {
			t.Errorf("after a lap that keeps %s a search finds %d of %d documents; want 2 of %d", keep, seen, all, want)
		}
	}
	lap(time.Hour, 4)
	lap(-time.Second, 2)
	if out := verdictOf(t, s, sinktest.Upsert(1, 2, "goes on")); out.Verdict != sinks.Applied {
		t.Error(out)
	}
}

// A tombstone that is found old may be a row again before it is removed.
func TestARowMadeAgainWhileItsTombstoneIsRemovedStays(t *testing.T) {
	t.Parallel()
	s := openStore(t, tombstones)
	name := sinktest.Questions.Name
	if out := verdictOf(t, s, sinktest.Delete(1, 5)); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	s.seen(t, name)
	_, hits := s.ask(t, http.MethodGet, "/"+s.alias(name)+"-000001/_search?version=true", "")
	if out := verdictOf(t, s, sinktest.Upsert(1, 6, "again")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	n, err := s.remove(t.Context(), s.table(name), hits.Get("hits.hits").Array(), false, versionOf)
	if n != 0 || err != nil {
		t.Errorf("%d removed, error %v; want none", n, err)
	}
	if seen, _ := s.seen(t, name); seen != 1 {
		t.Errorf("a search finds %d rows; want the one made again", seen)
	}
}

func TestAnIndexOfHardDeletesLearnsToHideTombstones(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	name := sinktest.Questions.Name
	alias := s.alias(name)
	if status, res := s.ask(t, http.MethodPut, "/"+alias+"-000001", fmt.Sprintf(`{"aliases":{%q:{}},"mappings":{"dynamic":"strict","properties":{
		"_lockstep":{"properties":{"v":{"type":"long"}}},"id":{"type":"long"},"title":{"type":"keyword"}}}}`, alias)); status != http.StatusOK {
		t.Fatal(res.Raw)
	}
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "old")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	s.config.Deletes = Tombstone
	s.restart(t)
	for _, c := range []cdc.Change{sinktest.Delete(1, 2), sinktest.Upsert(2, 1, "new")} {
		if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	if seen, all := s.seen(t, name); seen != 1 || all != 2 {
		t.Errorf("a search finds %d of %d documents; want 1 of 2", seen, all)
	}
	// Back again: the tombstones stay hidden until they are old.
	s.config.Deletes = Hard
	s.restart(t)
	if out := verdictOf(t, s, sinktest.Delete(2, 2)); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	if seen, all := s.seen(t, name); seen != 0 || all != 1 {
		t.Errorf("a search finds %d of %d documents; want 0 of 1", seen, all)
	}
	s.ask(t, http.MethodPost, "/_aliases", fmt.Sprintf(`{"actions":[{"add":{"index":"%s-000001","alias":%q,"filter":{"term":{"id":1}}}}]}`, alias, alias))
	s.config.Deletes = Tombstone
	s.restart(t)
	if out := verdictOf(t, s, sinktest.Upsert(3, 1, "x")); out.Verdict != sinks.Unavailable || !strings.Contains(out.Sentence(), "has a filter of its own") {
		t.Errorf("%+v; want the filter of somebody else refused", out)
	}
}

// restart makes the sink look at its configuration anew, as a restart does.
func (s *store) restart(*testing.T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.Sink.tables)
}
