package sinks

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/kafka"
)

var update = flag.Bool("update", false, "write what happened into the stories")

// Each file of testdata holds stories. A story has a claim, a script, and below
// the line what the worker did and when:
//
//	sink b ~ ~      answers for key b: + applied, = duplicate, < stale, ~ transient, x poison, ! unavailable
//	all x           every answer from now on, but for keys that have their own
//	flood 8         how many outcomes the breaker of the table looks at; else none opens it
//	bury ! !        the next two dead letters are not taken
//	sweep ! !       the next two sweeps find the store unavailable
//	batch 2         changes per call at most
//	calls 2         calls under way at most; else it is one
//	takes a 3s      a call with key a takes so long
//	partition 1     the partition's number; else it is 0
//	others 3/5 2/2  of partition 1, 3 of 5 records are committed, of partition 2 all; else there is no other
//	moves           the store needs to know where rows were before
//	fetch a1 b2 ?   records that come in one fetch: key a with version 1, and so on; ? cannot be decoded, |5 is a barrier of version 5, -x is of a table that is filtered, a2/x was in place x before
//	after 3s        the next answer asks for so long a wait
//	lost            the next fetch fails for good
//	wait 3s         time passes
//	stop            the partition is taken away
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, s := range strings.Split(strings.TrimSpace(string(text)), "\n\n") {
			head, want, _ := strings.Cut(s+"\n", "\n----\n")
			want = strings.TrimSpace(want)
			claim, script, _ := strings.Cut(head, "\n")
			t.Run(strings.TrimPrefix(claim, "# "), func(t *testing.T) {
				var got string
				synctest.Test(t, func(t *testing.T) { got = play(t, script) })
				out = append(out, head+"\n----\n"+got)
				if diff := gocmp.Diff(want, got); diff != "" && !*update {
					t.Errorf("%s\nscript:\n%s\nwant (-), got (+):\n%s", file, script, diff)
				}
			})
		}
		if *update && !t.Failed() {
			if err := os.WriteFile(file, []byte(strings.Join(out, "\n\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// stage is the store, the letters and the partition of a story, and its minutes.
type stage struct {
	mu      sync.Mutex
	began   time.Time
	minutes []minute
	answers map[string][]Verdict
	refused int // letters still to be refused
	away    int // sweeps that still find the store away
	id      int
	others  []string
	records chan []kafka.Record
	lost    chan struct{}
	offset  int64
	moves   bool
	takes   map[string]time.Duration
	after   time.Duration
	all     Verdict
}

var verdicts = map[string]Verdict{"+": Applied, "=": Duplicate, "<": Stale, "~": Transient, "x": Poison, "!": Unavailable}

func play(t *testing.T, script string) string {
	s := &stage{began: time.Now(), answers: make(map[string][]Verdict), records: make(chan []kafka.Record), lost: make(chan struct{}), takes: make(map[string]time.Duration), all: Applied}
	reg := prometheus.NewRegistry()
	cfg := DefaultConfig()
	cfg.CallsMin, cfg.CallsMax = 1, 1
	cfg.FloodShare = 1
	worker := &Worker{
		Name: "es", Sink: s, Bury: s.bury, Progress: s.progress,
		Filter:  func(n cdc.TableName) bool { return n.Table != "hidden" },
		Moves:   func(cdc.TableName) bool { return s.moves },
		Log:     slog.New(slog.NewTextHandler(io.Discard, nil)),
		Metrics: NewMetrics(reg),
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	start := sync.OnceFunc(func() {
		worker.Config = cfg
		go func() {
			defer close(done)
			if err := worker.RunPartition(ctx, s); err != nil {
				s.say("error %v", err)
			}
		}()
	})
	for line := range strings.Lines(script) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		words := strings.Fields(rest)
		switch verb {
		case "sink":
			s.mu.Lock()
			for _, w := range words[1:] {
				s.answers[words[0]] = append(s.answers[words[0]], verdicts[w])
			}
			s.mu.Unlock()
		case "bury":
			s.refused = len(words)
		case "sweep":
			s.away = len(words)
		case "all":
			s.mu.Lock()
			s.all = verdicts[rest]
			s.mu.Unlock()
		case "flood":
			cfg.FloodWindow, _ = strconv.Atoi(rest)
			cfg.FloodShare = DefaultConfig().FloodShare
		case "moves":
			s.moves = true
		case "partition":
			s.id, _ = strconv.Atoi(rest)
		case "others":
			s.mu.Lock()
			s.others = words
			s.mu.Unlock()
		case "batch":
			cfg.BatchChanges, _ = strconv.Atoi(rest)
		case "calls":
			cfg.CallsMin, _ = strconv.Atoi(rest)
			cfg.CallsMax = cfg.CallsMin
		case "takes":
			d, err := time.ParseDuration(words[1])
			if err != nil {
				t.Fatal(err)
			}
			s.takes[words[0]] = d
		case "after":
			d, err := time.ParseDuration(rest)
			if err != nil {
				t.Fatal(err)
			}
			s.mu.Lock()
			s.after = d
			s.mu.Unlock()
		case "fetch":
			start()
			s.records <- s.parse(t, words)
			synctest.Wait()
		case "lost":
			start()
			s.lost <- struct{}{}
			synctest.Wait()
		case "wait":
			d, err := time.ParseDuration(rest)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(d)
			synctest.Wait()
		case "stop":
			cancel()
			synctest.Wait()
		default:
			t.Fatalf("no such verb: %s", line)
		}
	}
	cancel()
	<-done
	return s.text() + "\n" + sum(t, reg)
}

// text is the minutes. Of what several goroutines do at the same moment nobody can
// tell the order, so it is that of the alphabet.
func (s *stage) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortStableFunc(s.minutes, func(a, b minute) int {
		return cmp.Or(cmp.Compare(a.at, b.at), strings.Compare(a.what, b.what))
	})
	var lines []string
	for _, m := range s.minutes {
		lines = append(lines, fmt.Sprintf("%s %s", m.at, m.what))
	}
	return strings.Join(lines, "\n")
}

// minute is a line of a story's minutes.
type minute struct {
	at   time.Duration
	what string
}

func (s *stage) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.minutes = append(s.minutes, minute{time.Since(s.began), fmt.Sprintf(format, args...)})
}

func (s *stage) parse(t *testing.T, words []string) []kafka.Record {
	var out []kafka.Record
	for _, w := range words {
		r := kafka.Record{Topic: "p.shop.q", Offset: s.offset, Value: []byte("{")}
		if w != "?" {
			table := "q"
			if rest, ok := strings.CutPrefix(w, "-"); ok {
				w, table = rest, "hidden"
			}
			w, place, _ := strings.Cut(w, "/")
			n, err := strconv.Atoi(w[1:])
			if err != nil {
				t.Fatalf("record %q: %v", w, err)
			}
			if name := (cdc.TableName{DB: "shop", Table: table}); w[0] == '|' {
				r = barrierRecord(name, uint64(n))
			} else {
				r = moved(name, w[:1], uint64(n), place)
			}
		}
		r.Topic, r.Offset = "p.shop.q", s.offset
		s.offset++
		out = append(out, r)
	}
	return out
}

// record is an upsert of a row of one column, its key.
func record(table cdc.TableName, key string, seq uint64) kafka.Record {
	return moved(table, key, seq, "")
}

// moved is an upsert of a row that was in some place before.
func moved(table cdc.TableName, key string, seq uint64, from string) kafka.Record {
	version, err := cdc.NewVersion(1, seq)
	if err != nil {
		panic(err)
	}
	c := cdc.Change{
		Table: table, Op: cdc.OpUpdate, Version: version, CommitMicros: 1,
		Key: fmt.Appendf(nil, `{"id":%q}`, key), After: fmt.Appendf(nil, `{"id":%q}`, key),
	}
	if from != "" {
		c.Before = fmt.Appendf(nil, `{"id":%q,"at":%q}`, key, from)
	}
	return kafka.Record{Key: c.Key, Value: c.AppendValue(nil, "p"), Headers: c.Headers()}
}

func name(c *cdc.Change) string {
	text, _ := cdc.KeyText(c.Key)
	text += strconv.FormatUint(c.Version.Seq(), 10)
	if c.Left != nil {
		var places []string
		for _, image := range c.Left {
			places = append(places, gjson.GetBytes(image, "at").Str)
		}
		text += "[" + strings.Join(places, " ") + "]"
	}
	return text
}

func (s *stage) Apply(_ context.Context, changes []cdc.Change) []Outcome {
	var asked, answered []string
	for i := range changes {
		key, _ := cdc.KeyText(changes[i].Key)
		if d := s.takes[key]; d > 0 {
			for j := range changes {
				asked = append(asked, name(&changes[j]))
			}
			s.say("ask %s", strings.Join(asked, " "))
			asked = nil
			time.Sleep(d)
		}
	}
	outcomes := make([]Outcome, len(changes))
	s.mu.Lock()
	for i := range changes {
		key, _ := cdc.KeyText(changes[i].Key)
		v := s.all
		if script := s.answers[key]; len(script) > 0 {
			v, s.answers[key] = script[0], script[1:]
		}
		outcomes[i] = Outcome{Verdict: v, RetryAfter: s.after}
		s.after = 0
		switch v {
		case Poison:
			outcomes[i].Class, outcomes[i].Reason = ClassMapping, fmt.Sprintf("[1:%d] no such field in document with id '%s'", i, key)
		case Transient:
			outcomes[i].Class, outcomes[i].Reason = ClassRefused, "not now"
		}
		asked = append(asked, name(&changes[i]))
		for sign, w := range verdicts {
			if w == v {
				answered = append(answered, sign)
			}
		}
	}
	s.mu.Unlock()
	s.say("apply %s -> %s", strings.Join(asked, " "), strings.Join(answered, ""))
	return outcomes
}

func (s *stage) Sweep(_ context.Context, t cdc.TableName, v cdc.Version) (int, error) {
	time.Sleep(time.Millisecond)
	s.mu.Lock()
	away := s.away > 0
	if away {
		s.away--
	}
	s.mu.Unlock()
	if away {
		s.say("sweep %s to %d: away", t, v.Seq())
		return 0, errors.New("away")
	}
	s.say("sweep %s to %d", t, v.Seq())
	return 2, nil
}

func (s *stage) progress(context.Context, string) (ends, committed map[int]int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ends, committed = map[int]int64{0: 1 << 40}, map[int]int64{}
	for i, w := range s.others {
		var at, end int64
		if _, err := fmt.Sscanf(w, "%d/%d", &at, &end); err != nil {
			return nil, nil, err
		}
		ends[i+1], committed[i+1] = end, at
	}
	return ends, committed, nil
}

func (s *stage) bury(_ context.Context, r Refusal) error {
	what := "?"
	if r.Change != nil {
		what = name(r.Change)
	}
	time.Sleep(time.Millisecond)
	s.mu.Lock()
	refuse := s.refused > 0
	if refuse {
		s.refused--
	}
	s.mu.Unlock()
	if refuse {
		s.say("bury %s: Kafka is away", what)
		return errors.New("Kafka is away")
	}
	again := ""
	if r.Transient {
		again = ", to be tried again"
	}
	s.say("bury %s: %s%s", what, r.Class, again)
	return nil
}

func (s *stage) Name() (string, int) { return "p.shop.q", s.id }

func (s *stage) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
	select {
	case r := <-s.records:
		return r, nil
	case <-s.lost:
		return nil, kafka.ErrDataLost
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(time.Minute): // a long poll that brought nothing
		return nil, nil
	}
}

func (s *stage) Commit(_ context.Context, next int64) error {
	s.say("commit %d", next)
	return nil
}

// counted reads a counter over all its tables, by the value of one label.
func counted(t testing.TB, reg *prometheus.Registry, metric, label string) map[string]int {
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]int)
	for _, f := range families {
		if f.GetName() != metric {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label {
					out[l.GetValue()] += int(m.GetCounter().GetValue())
				}
			}
		}
	}
	return out
}

// sum writes the books as an equation.
func sum(t testing.TB, reg *prometheus.Registry) string {
	received := counted(t, reg, "lockstep_sink_received_total", "sink")["es"]
	by := counted(t, reg, "lockstep_sink_changes_total", "outcome")
	var parts []string
	total := 0
	for _, o := range outcomes {
		total += by[o]
		if by[o] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", o, by[o]))
		}
	}
	sign := "="
	if received != total {
		sign = "IS NOT"
	}
	if wrong := unbalanced(t, reg, true); wrong != "" {
		sign = fmt.Sprintf("(%s) IS NOT", wrong)
	}
	slices.Sort(parts)
	return fmt.Sprintf("received %d %s %s", received, sign, strings.Join(parts, " + "))
}
