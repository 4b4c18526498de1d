package elastic

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"lockstep/cdc"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

// overwrite writes a document as somebody else does, under a version far ahead.
func (s *store) overwrite(t *testing.T, id int, body string) {
	t.Helper()
	if status, res := s.ask(t, http.MethodPut, fmt.Sprintf("/%s/_doc/%d?version=%d&version_type=external", s.alias(sinktest.Questions.Name), id, uint64(1)<<52+foreignVersion.Add(1)), body); status >= 300 {
		t.Fatal(res.Raw)
	}
}

var foreignVersion atomic.Uint64

func TestWhatSomebodyElseHasWrittenDoesNotMakeChangesStale(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]func(*Config){"hard": nil, "tombstone": tombstones} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, config)
			var log bytes.Buffer
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			expect := func(want sinks.Verdict, c cdc.Change, title string) {
				t.Helper()
				if out := verdictOf(t, s, c); out.Verdict != want {
					t.Fatalf("%s at %d: %+v; want verdict %d", c.Key, c.Version.Seq(), out, want)
				}
				id, _ := cdc.KeyText(c.Key)
				_, doc := s.ask(t, http.MethodGet, "/"+s.alias(c.Table)+"/_doc/"+id, "")
				if got := doc.Get("_source.title").Str; got != title {
					t.Fatalf("%s at %d: the document says %q; want %q", c.Key, c.Version.Seq(), got, title)
				}
			}
			expect(sinks.Applied, sinktest.Upsert(1, 10, "ten"), "ten")
			s.overwrite(t, 1, fmt.Sprintf(`{"id":1,"title":"edited","_lockstep":{"v":%d}}`, sinktest.Version(10)))
			expect(sinks.Stale, sinktest.Upsert(1, 9, "nine"), "edited")
			expect(sinks.Applied, sinktest.Upsert(1, 11, "eleven"), "eleven")
			expect(sinks.Stale, sinktest.Upsert(1, 10, "ten"), "eleven")
			expect(sinks.Applied, sinktest.Upsert(1, 12, "twelve"), "twelve")
			expect(sinks.Applied, sinktest.Delete(1, 13), "")
			expect(sinks.Applied, sinktest.Upsert(2, 1, "one"), "one")
			s.overwrite(t, 2, `{"id":2,"title":"without a guard"}`)
			expect(sinks.Applied, sinktest.Upsert(2, 2, "two"), "two")
			s.overwrite(t, 3, `{"id":3,"title":"never there"}`)
			expect(sinks.Applied, sinktest.Delete(3, 1), "")
			if got := testutil.ToFloat64(s.metrics.foreign); got < 5 {
				t.Errorf("%v foreign writes counted; want every change that met one", got)
			}
			if n := strings.Count(log.String(), "somebody else writes"); n != 1 || !strings.Contains(log.String(), "id=1") {
				t.Errorf("the log tells of it %d times; want once\n%s", n, log.String())
			}
			// A poison row is not taken for overtaken by such a number.
			expect(sinks.Applied, sinktest.Upsert(4, 1, "one"), "one")
			s.overwrite(t, 4, fmt.Sprintf(`{"id":4,"title":"edited","_lockstep":{"v":%d}}`, sinktest.Version(1)))
			if out := verdictOf(t, s, s.Poison(t, 4, sinktest.Version(2))); out.Verdict != sinks.Poison {
				t.Errorf("%+v; want poison", out)
			}
		})
	}
}

func TestASweepTakesWhatSomebodyElseHasWrittenToo(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	for id := range 3 {
		if out := verdictOf(t, s, sinktest.Upsert(id, 1+9*(id/2), "x")); out.Verdict != sinks.Applied {
			t.Fatal(out)
		}
	}
	s.overwrite(t, 1, fmt.Sprintf(`{"id":1,"title":"edited","_lockstep":{"v":%d}}`, sinktest.Version(1)))
	s.overwrite(t, 2, fmt.Sprintf(`{"id":2,"title":"edited","_lockstep":{"v":%d}}`, sinktest.Version(10)))
	s.overwrite(t, 7, `{"id":7,"title":"never a row"}`)
	if n, err := s.Sweep(t.Context(), sinktest.Questions.Name, sinktest.Version(5)); err != nil || n != 3 {
		t.Errorf("%d removed, error %v; want all but row 2", n, err)
	}
	if seen, _ := s.seen(t, sinktest.Questions.Name); seen != 1 {
		t.Errorf("a search finds %d rows; want row 2 alone", seen)
	}
}

func TestADocumentThatIsTouchedWhileItIsMendedIsLookedAtAgain(t *testing.T) {
	t.Parallel()
	s := openStore(t, nil)
	c := sinktest.Upsert(1, 5, "five")
	if out := verdictOf(t, s, sinktest.Upsert(1, 1, "one")); out.Verdict != sinks.Applied {
		t.Fatal(out)
	}
	s.overwrite(t, 1, `{"id":1,"title":"edited"}`)
	tab := s.table(sinktest.Questions.Name)
	body, no := appendChange(nil, &c, tab, "", 1<<20)
	if no != nil {
		t.Fatal(no)
	}
	d := &document{change: &c, table: tab, lines: span{0, len(body)}}
	has := s.Sink.ask(t.Context(), []*document{d})
	s.overwrite(t, 1, `{"id":1,"title":"edited again"}`)
	d.over = &has[0]
	s.mend(t.Context(), body, []*document{d})
	if d.outcome.Verdict != sinks.Unavailable {
		t.Errorf("%+v; want it held", d.outcome)
	}
	if out := verdictOf(t, s, c); out.Verdict != sinks.Applied {
		t.Errorf("%+v; want it applied then", out)
	}
}
