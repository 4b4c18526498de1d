package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/cdc"
	"lockstep/sinks"
)

var table = cdc.Table{Name: cdc.TableName{DB: "shop", Table: "orders"}, Columns: []cdc.Column{{Name: "id", Kind: cdc.KindInt}}, Key: []string{"id"}}

func keyOf(id int) []byte { return fmt.Appendf(nil, `{"id":%d}`, id) }

func rowOf(id int, text string) []byte { return fmt.Appendf(nil, `{"id":%d,"t":%q}`, id, text) }

// stage is a source, a log and a store in memory. The log gets what is committed some
// time after that, and the store what is in the log some time after that.
type stage struct {
	t         *testing.T
	mu        sync.Mutex // a pass has several goroutines
	rows      map[string][]byte
	committed int          // transactions, one change each
	pending   []cdc.Change // committed, not in the log
	log       []cdc.Change
	applied   int // of the log
	docs      map[string]sinks.Stored
	letters   map[string]string
	truncated int // records gone from the beginning of the log

	// late is how many transactions can be seen a moment before they count as executed.
	late int
	// held is called once a transaction stands in the log and cannot be seen, when somebody
	// waits for it.
	held func()
	// between is called at each step of a look, so that something happens meanwhile.
	between func(step string)
	lost    map[string]bool // keys whose changes the store loses

	hidden   map[string]bool // keys of rows that the store is not to have
	altered  bool
	away     int // scans that are cut off at their end
	findings []Finding
	unclear  []string
}

func newStage(t *testing.T) *stage {
	return &stage{t: t, rows: map[string][]byte{}, docs: map[string]sinks.Stored{}, letters: map[string]string{}, lost: map[string]bool{}, between: func(string) {}}
}

// write commits a change; nil for a delete.
func (s *stage) write(id int, text string) {
	s.committed++
	c := cdc.Change{Table: table.Name, Op: cdc.OpUpdate, Version: cdc.Version(s.committed), Key: keyOf(id), After: rowOf(id, text)}
	if text == "" {
		c.Op, c.After = cdc.OpDelete, nil
	}
	s.rows[string(c.Key)] = c.After
	s.pending = append(s.pending, c)
}

// capture brings n of what is committed into the log.
func (s *stage) capture(n int) {
	n = min(n, len(s.pending))
	s.log = append(s.log, s.pending[:n]...)
	s.pending = s.pending[n:]
}

// apply brings n of the log into the store, behind the guard.
func (s *stage) apply(n int) {
	for ; n > 0 && s.applied < len(s.log); n-- {
		c := s.log[s.applied]
		s.applied++
		if s.lost[string(c.Key)] || c.Op.OfTable() || s.docs[string(c.Key)].Version >= c.Version {
			continue
		}
		s.docs[string(c.Key)] = sinks.Stored{Version: c.Version, Deleted: c.After == nil, Document: c.After}
	}
}

func (s *stage) all(ids ...int) {
	s.capture(len(s.pending))
	s.apply(len(s.log))
}

// Source.
func (s *stage) Listed(keys [][]byte) (rows []cdc.Row, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.between("rows")
	for _, k := range keys {
		rows = append(rows, cdc.Row{Key: k, Row: s.rows[string(k)]})
	}
	return rows, nil
}

func (s *stage) Next(after []byte, most, _ int) (rows []cdc.Row, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.between("next")
	for _, k := range slices.Sorted(maps.Keys(s.rows)) {
		if k > string(after) && s.rows[k] != nil && len(rows) < most {
			rows = append(rows, cdc.Row{Key: []byte(k), Row: s.rows[k]})
		}
	}
	return rows, nil
}

func (s *stage) Last(most int) ([]cdc.Row, error) { return nil, nil }
func (s *stage) Executed() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := max(0, s.committed-s.late)
	if s.held != nil {
		told--
	}
	s.late = 0
	return fmt.Sprint(told), nil
}

func (s *stage) Table() (cdc.Table, uint32) {
	if s.altered {
		return table, 2
	}
	return table, 1
}
func (s *stage) Same() (bool, error) { return !s.altered, nil }
func (s *stage) Shows(set string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil && set == fmt.Sprint(s.committed) {
		s.held()
		s.held = nil
		return false, nil
	}
	return true, nil
}
func (s *stage) Busy() (string, error) { return "", nil }
func (s *stage) Close()                {}

// Store.
func (s *stage) Stored(_ context.Context, changes []cdc.Change, _ int) (out []sinks.Stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.between("store")
	for _, c := range changes {
		doc := s.docs[string(c.Key)]
		doc.Place = map[string]string{"key": string(c.Key)}
		out = append(out, doc)
	}
	return out
}

func (s *stage) Would(context.Context, []cdc.Change) []sinks.Prospect { panic("nobody asks") }
func (s *stage) Keeps(cdc.TableName) error                            { return nil }

func (s *stage) Expect(_ context.Context, changes []cdc.Change) (out []sinks.Expected) {
	for _, c := range changes {
		e := sinks.Expected{Document: c.After}
		if s.hidden[string(c.Key)] {
			e.Document = nil
		}
		if e.Document != nil {
			e.Place = string(c.Key)
		}
		out = append(out, e)
	}
	return out
}

func (s *stage) Scan(_ context.Context, _ cdc.Table, known func(string) bool, each func([]sinks.Found) error) error {
	s.mu.Lock()
	s.between("scan")
	var found []sinks.Found
	for _, k := range slices.Sorted(maps.Keys(s.docs)) {
		if s.docs[k].Document != nil && !known(k) {
			found = append(found, sinks.Found{Place: k, Change: cdc.Change{Table: table.Name, Op: cdc.OpDelete, Key: []byte(k)}})
		}
	}
	s.away--
	away := s.away >= 0
	s.mu.Unlock()
	if err := each(found); err != nil || !away {
		return err
	}
	return errAway
}

var errAway = errors.New("no answer")

func (s *stage) Again(ctx context.Context, found []sinks.Found, most int) []sinks.Stored {
	var changes []cdc.Change
	for _, f := range found {
		changes = append(changes, f.Change)
	}
	return s.Stored(ctx, changes, most)
}

func (s *stage) world() *World {
	return &World{
		Open: func(context.Context, cdc.TableName, string) (Source, error) { return s, nil },
		Await: func(_ context.Context, _ string, _ cdc.TableName, set string) (Reached, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.between("await")
			var want int
			if _, err := fmt.Sscan(set, &want); err != nil {
				return Reached{}, err
			}
			for s.committed-len(s.pending) < want {
				s.capture(1)
			}
			s.apply(len(s.log) - s.applied)
			return Reached{cdc.Version(s.committed), fmt.Sprint(s.committed - len(s.pending))}, nil
		},
		Ends: func(context.Context, cdc.TableName) (Log, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.between("ends")
			return Log{0: int64(len(s.log))}, nil
		},
		Changes: func(_ context.Context, _ cdc.TableName, from, to Log, fn func(int64, int, *cdc.Change) error) (bool, error) {
			s.mu.Lock()
			log := slices.Clone(s.log)
			s.mu.Unlock()
			for i := max(from[0], int64(s.truncated)); i < to[0]; i++ {
				if err := fn(i, 0, &log[i]); err != nil {
					return false, err
				}
			}
			return from[0] >= int64(s.truncated), nil
		},
		Newest: func(_ context.Context, _ cdc.TableName, keys [][]byte) (map[string]cdc.Version, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			newest := map[string]cdc.Version{}
			for _, c := range s.log[s.truncated:] {
				if slices.ContainsFunc(keys, func(k []byte) bool { return string(k) == string(c.Key) }) {
					newest[string(c.Key)] = max(newest[string(c.Key)], c.Version)
				}
			}
			return newest, nil
		},
		Letters: func(context.Context, string, cdc.TableName) (map[string]string, error) { return s.letters, nil },
		Reread: func(_ context.Context, _ cdc.TableName, _ int, keys [][]byte) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, k := range keys {
				s.committed++
				c := cdc.Change{Table: table.Name, Op: cdc.OpRead, Version: cdc.Version(s.committed), Key: k, After: s.rows[string(k)]}
				if c.After == nil {
					c.Op = cdc.OpDelete
				}
				s.pending = append(s.pending, c)
			}
			s.capture(len(s.pending))
			return nil
		},
	}
}

func (s *stage) checker() *Checker {
	return &Checker{
		World: s.world(), Target: Target{Name: "search", Store: s}, Source: s,
		Report:  func(f Finding) { s.findings = append(s.findings, f) },
		Unclear: func(of *suspect, why string) { s.unclear = append(s.unclear, fmt.Sprintf("%s: %s", of.key, why)) },
	}
}

// check has these rows looked at until everything is said of them.
func (s *stage) check(ids ...int) {
	s.t.Helper()
	more := make(chan *suspect, len(ids))
	for _, id := range ids {
		more <- &suspect{key: keyOf(id)}
	}
	close(more)
	began := time.Now()
	if err := s.checker().Check(s.t.Context(), <-more, more, func(int) {}); err != nil {
		s.t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Minute {
		s.t.Errorf("it took %s", took)
	}
}

// said is what was reported, one word per finding and field.
func (s *stage) said() string {
	var words []string
	for _, f := range s.findings {
		word := fmt.Sprintf("%s %s", f.Key, f.Class)
		if f.Letter != "" {
			word += " letter " + f.Letter
		}
		for _, d := range f.Fields {
			word += fmt.Sprintf(" %s: %s not %s", d.Name, d.Sink, d.Source)
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return strings.Join(append(words, s.unclear...), "; ")
}

func TestEachKindOfFaultGetsItsName(t *testing.T) {
	for name, story := range map[string]struct {
		fault func(s *stage)
		want  string
	}{
		"nothing is wrong":               {func(*stage) {}, ""},
		"the document is gone":           {func(s *stage) { delete(s.docs, `{"id":1}`) }, `{"id":1} missing`},
		"its delete is remembered":       {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Version: 1, Deleted: true} }, `{"id":1} missing`},
		"an older version is there":      {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Version: 1, Document: rowOf(1, "a")} }, `{"id":1} stale t: "a" not "b"`},
		"another content at its version": {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Version: 2, Document: rowOf(1, "x")} }, `{"id":1} differing t: "x" not "b"`},
		"a field too many": {func(s *stage) {
			s.docs[`{"id":1}`] = sinks.Stored{Version: 2, Document: []byte(`{"id":1,"t":"b","u":1}`)}
		}, `{"id":1} differing u: 1 not `},
		"fields in another order are equal": {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Version: 2, Document: []byte(`{"t":"b","id":1}`)} }, ""},
		"a document without a version":      {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Document: rowOf(1, "b"), Foreign: true} }, `{"id":1} tampered`},
		"a version that nobody has given":   {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Version: 99, Document: rowOf(1, "x")} }, `{"id":1} tampered t: "x" not "b"`},
		"a version of another row":          {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Version: 3, Document: rowOf(1, "x")} }, `{"id":1} tampered t: "x" not "b"`},
		"the store tells of somebody else":  {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Version: 2, Document: rowOf(1, "x"), Foreign: true} }, `{"id":1} tampered t: "x" not "b"`},
		"a key of another type": {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Problem: "WRONGTYPE", Foreign: true} },
			`{"id":1} tampered`},
		"a row that is gone is there": {func(s *stage) { s.docs[`{"id":2}`] = sinks.Stored{Version: 3, Document: rowOf(2, "x")} }, `{"id":2} orphan`},
		"an open letter tells why":    {func(s *stage) { delete(s.docs, `{"id":1}`); s.letters["1"] = "l1" }, `{"id":1} missing letter l1`},
		"the store does not tell":     {func(s *stage) { s.docs[`{"id":1}`] = sinks.Stored{Problem: "it hides"} }, `{"id":1}: it hides`},
		"the log is cut": {func(s *stage) {
			s.docs[`{"id":1}`] = sinks.Stored{Version: 1, Document: rowOf(1, "a")}
			s.truncated = 4
		}, `{"id":1} differing t: "a" not "b"`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				s.write(1, "a")
				s.write(1, "b")
				s.write(2, "c")
				s.write(2, "")
				s.all()
				story.fault(s)
				s.check(1, 2)
				if got := s.said(); got != story.want {
					t.Errorf("it says %q; want %q", got, story.want)
				}
			})
		})
	}
}

func TestARowThatChangesMeanwhileIsNeverReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.write(1, "a")
		s.all()
		n := 0
		s.between = func(step string) { // the row changes before and behind everything that is seen
			if n++; n < 500 {
				s.write(1, fmt.Sprint("v", n))
			}
		}
		s.check(1)
		if got := s.said(); got != "" {
			t.Errorf("it says %q", got)
		}
	})
}

func TestARowThatIsSeenBeforeItsTransactionCountsAsExecutedIsNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.write(1, "a")
		s.all()
		once := false
		s.between = func(step string) {
			if step == "rows" && !once {
				once = true
				s.write(1, "b")
				s.late = 1
			}
		}
		s.check(1)
		if got := s.said(); got != "" {
			t.Errorf("it says %q", got)
		}
	})
}

// A semi-synchronous replica that does not answer lets a commit wait: the log has it, and
// the store, and the source shows the row as it was.
func TestARowThatTheLogHasAndTheSourceDoesNotShowYetIsNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.write(1, "old")
		old := s.rows[string(keyOf(1))]
		s.write(1, "new")
		s.all()
		s.rows[string(keyOf(1))] = old
		s.held = func() { s.rows[string(keyOf(1))] = rowOf(1, "new") }
		s.check(1)
		if got := s.said(); got != "" {
			t.Errorf("it says %q", got)
		}
	})
}

func TestAFaultIsFoundOnceItsRowRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.write(1, "a")
		s.all()
		s.lost[`{"id":1}`] = true
		n := 0
		s.between = func(string) {
			if n++; n < 40 {
				s.write(1, fmt.Sprint("v", n))
			}
		}
		s.check(1)
		if got, want := s.said(), `{"id":1} stale t: "a" not "v39"`; got != want {
			t.Errorf("it says %q; want %q", got, want)
		}
	})
}

// Rows change at random beside a pass, what is committed comes late to the log and later to
// the store, and some rows are lost on the way: these are reported, and no others.
func TestOnlyWhatIsLostIsReportedWhateverHappensMeanwhile(t *testing.T) {
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			s := newStage(t)
			const rows = 40
			for id := range rows {
				s.write(id, "first")
			}
			s.all()
			broken := map[int]bool{}
			for id := range 4 {
				broken[id] = true
				s.lost[string(keyOf(id))] = true
				switch id {
				case 0:
					delete(s.docs, string(keyOf(id)))
				case 1:
					s.docs[string(keyOf(id))] = sinks.Stored{Version: s.docs[string(keyOf(id))].Version, Document: rowOf(id, "else")}
				case 2:
					s.write(id, "newer")
				case 3:
					s.write(id, "")
				}
			}
			steps := 0
			s.between = func(string) {
				if steps++; steps > 300 {
					return
				}
				for range random.IntN(6) {
					text := fmt.Sprint("w", steps, random.IntN(9))
					if random.IntN(4) == 0 {
						text = ""
					}
					s.write(4+random.IntN(rows-4), text)
				}
				s.late = random.IntN(2)
				s.capture(random.IntN(8))
				s.apply(random.IntN(8))
			}
			r, err := (&Pass{World: s.world(), Table: table.Name, Targets: []Target{{Name: "search", Store: s}}, ChunkRows: func() int { return 7 },
				Report: func(f *Finding) bool { s.findings = append(s.findings, *f); return true }}).Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for id, class := range []Class{Missing, Differing, Stale, Orphan} {
				want = append(want, fmt.Sprintf("%s %s", keyOf(id), class))
			}
			var got []string
			for _, f := range s.findings {
				got = append(got, fmt.Sprintf("%s %s", f.Key, f.Class))
			}
			slices.Sort(got)
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Fatalf("seed %d: it says %q; want %q", seed, got, want)
			}
			if r.Sinks[0].Differ() != 4 {
				t.Errorf("seed %d: it counts %+v", seed, r.Sinks[0])
			}
		})
	}
}

func TestNothingIsSaidOfATableThatWasAlteredMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.write(1, "a")
		s.all()
		delete(s.docs, `{"id":1}`)
		s.altered = true
		more := make(chan *suspect)
		close(more)
		err := s.checker().Check(t.Context(), &suspect{key: keyOf(1)}, more, func(int) {})
		if !errors.Is(err, ErrAltered) || len(s.findings) > 0 {
			t.Errorf("it ends with %v and says %q", err, s.said())
		}
	})
}

func TestAnErrorOfAFunctionEndsTheCheck(t *testing.T) {
	s := newStage(t)
	s.write(1, "a")
	c := s.checker()
	no := errors.New("no log")
	c.World.Ends = func(context.Context, cdc.TableName) (Log, error) { return nil, no }
	more := make(chan *suspect, 1)
	more <- &suspect{key: keyOf(1)}
	close(more)
	if err := c.Check(t.Context(), <-more, more, func(int) {}); !errors.Is(err, no) {
		t.Errorf("it says %v", err)
	}
}
