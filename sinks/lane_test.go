package sinks

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"lockstep/cdc"
)

// The stories of testdata/lane are about what a lane decides, step by step, with
// nobody to carry it out. The script is:
//
//	batch 2      changes per call at most
//	partition 1  the partition's number; else it is 0
//	moves        the store needs to know where rows were before
//	take a1 b2   records come in, written as in the other stories
//	call         is a call to be made? Patience is 10ms
//	answer 1 +x  the first call was answered: + applied, = duplicate, < stale, ~ transient, x poison, ! unavailable
//	open 1 xx    the same, while the breaker of the table is open
//	probe        the call of one change that an open breaker lets through
//	undo 1       the first call was not made
//	later 5ms    time passes
//	bury         the letters of what is dead are written
//	sweep        is the store to be swept now?
//	swept        it was
//
// and below the line each step says what came of it: the calls, the offset up to
// which all is settled, and where the rest stands.
func TestLaneStories(t *testing.T) {
	const file = "testdata/lane/lane.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range strings.Split(strings.TrimSpace(string(text)), "\n\n") {
		head, want, _ := strings.Cut(s+"\n", "\n----\n")
		claim, script, _ := strings.Cut(head, "\n")
		t.Run(strings.TrimPrefix(claim, "# "), func(t *testing.T) {
			got := decide(t, script)
			out = append(out, head+"\n----\n"+got)
			if diff := cmp.Diff(strings.TrimSpace(want), got); diff != "" && !*update {
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

func decide(t *testing.T, script string) string {
	reg := prometheus.NewRegistry()
	cfg := DefaultConfig()
	var l *lane
	start := time.Unix(1_000_000, 0)
	now := start
	id, moves := 0, false
	var calls []*call
	records := &stage{}
	lane := func() *lane {
		if l == nil {
			l = newLane(cfg, "p.shop.q", id, &books{metrics: NewMetrics(reg), sink: "es", byTable: make(map[cdc.TableName]*account)})
			l.applied, l.met = func(*item, time.Time) {}, func(*item, Verdict) {}
			l.moves = func(cdc.TableName) bool { return moves }
		}
		return l
	}
	made := func(c *call) string {
		calls = append(calls, c)
		return fmt.Sprintf("%d: %s", len(calls), names(c.items))
	}
	var lines []string
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		words := strings.Fields(rest)
		said := ""
		pick := func() *call {
			n, err := strconv.Atoi(words[0])
			if err != nil || n > len(calls) {
				t.Fatalf("%s: there is no such call", line)
			}
			return calls[n-1]
		}
		switch verb {
		case "batch":
			cfg.BatchChanges, _ = strconv.Atoi(rest)
			continue
		case "partition":
			id, _ = strconv.Atoi(rest)
			continue
		case "moves":
			moves = true
			continue
		case "take":
			items, _ := decode(records.parse(t, words))
			lane().take(now, items)
		case "call":
			ok, at := lane().wants(now, 10*time.Millisecond)
			switch {
			case ok:
				said = made(l.call(now, 1))
			case at.IsZero():
				said = "none"
			default:
				said = fmt.Sprintf("none until %s", at.Sub(start))
			}
		case "probe":
			said = made(lane().probe(now))
		case "answer", "open":
			var outcomes []Outcome
			for _, sign := range words[1] {
				outcomes = append(outcomes, Outcome{Verdict: verdicts[string(sign)], Class: ClassMapping})
			}
			if err := lane().answer(now, pick(), outcomes, verb == "open"); err != nil {
				said = err.Error()
			}
		case "undo":
			lane().back(now, pick())
		case "later":
			d, err := time.ParseDuration(rest)
			if err != nil {
				t.Fatal(err)
			}
			now = now.Add(d)
		case "bury":
			dead := lane().dead
			l.dead = nil
			said = names(dead)
			for _, it := range dead {
				l.buried(it)
			}
		case "sweep":
			if it := lane().sweep(); it == nil {
				said = "not now"
			} else {
				said = fmt.Sprintf("to %d", it.change.Version.Seq())
			}
		case "swept":
			lane().swept(true)
		default:
			t.Fatalf("no such verb: %s", line)
		}
		if said != "" {
			line += " -> " + said
		}
		lines = append(lines, line+strings.Repeat(" ", max(1, 32-len(line)))+whereabouts(l))
	}
	l.leave()
	if l.bytes != 0 || l.first != nil || l.last != nil {
		t.Errorf("a lane that was left holds %d bytes", l.bytes)
	}
	return strings.Join(append(lines, sum(t, reg)), "\n")
}

func names(items []*item) string {
	var out []string
	for _, it := range items {
		if it.broken != nil {
			out = append(out, "?")
			continue
		}
		out = append(out, name(&it.change))
	}
	return strings.Join(out, " ")
}

// whereabouts says up to where all is settled, and where the rest stands.
func whereabouts(l *lane) string {
	places := map[place]string{ready: "ready", behind: "behind", calling: "calling", dead: "dying", sweeping: "sweeping"}
	at := map[string][]*item{}
	bytes, items := 0, 0
	for it := l.first; it != nil; it = it.next {
		if it.place == settled {
			continue // the offset waits for one that stands for it
		}
		at[places[it.place]] = append(at[places[it.place]], it)
		bytes += it.counted
		items++
	}
	out := fmt.Sprintf("| %d", l.settledTo())
	for _, p := range []string{"ready", "behind", "calling", "dying", "sweeping"} {
		if p == "ready" { // in the order in which they go
			at[p] = slices.DeleteFunc(slices.Clone(l.ready.items), func(it *item) bool { return it == nil })
		}
		if len(at[p]) > 0 {
			out += fmt.Sprintf(", %s %s", p, names(at[p]))
		}
	}
	load := 0
	for _, it := range at["ready"] {
		load += it.load()
	}
	if bytes != l.bytes || load != l.ready.bytes || len(at["ready"]) != l.ready.count {
		out += fmt.Sprintf(" BUT counted %d bytes of %d, ready %d changes and %d bytes of %d", l.bytes, bytes, l.ready.count, l.ready.bytes, load)
	}
	return out
}
