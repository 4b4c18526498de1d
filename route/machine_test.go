package route

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Each file of testdata holds stories: a claim, a script, and below ---- what the machine
// decides, whenever it changes. A line of a script is a time and what is so from then on:
//
//	fine                all is well; two processes with two partitions each report four times a second
//	held REASON         changes wait
//	open REASON         a breaker is not closed
//	p99 900ms of 200    latency of so many changes
//	lacks 3s            the oldest change that is not applied was committed 3 s ago
//	letters 2           open dead letters
//	silent | quiet      the first process says nothing any more; the capture does not
//	moves               the partitions of the first process go to the second one
//	copying             rows are being copied
//	sample 1000 KEYS...  the reconciler has compared so many keys; missing=3 stale=20
//	whole 40            it has compared all there are
//	restart             the process that judges ends and another one goes on
//
// "config" sets fields for the story.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		rewritten := ""
		for story := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
			claim, rest, _ := strings.Cut(story, "\n")
			script, want, ok := strings.Cut(rest, "----")
			if !ok {
				t.Fatalf("%s: no ---- in\n%s", file, story)
			}
			var got string
			t.Run(claim, func(t *testing.T) {
				got = play(t, script)
				if got != strings.TrimSpace(want) {
					t.Errorf("%s: %s\n%s---- got\n%s\n---- want\n%s", file, claim, script, got, want)
				}
			})
			rewritten += claim + "\n" + script + "----\n" + got + "\n\n"
		}
		if os.Getenv("REWRITE") != "" {
			if err := os.WriteFile(file, []byte(strings.TrimSpace(rewritten)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// stage plays a sink whose condition the script sets.
type stage struct {
	*Machine
	cfg     Config
	now     time.Time
	with    Report // what every process says
	lacks   time.Duration
	silent  bool
	quiet   bool
	moved   bool
	started time.Time
}

const step = 50 * time.Millisecond

func newStage(cfg Config) *stage {
	now := time.Unix(0, 0).UTC()
	return &stage{Machine: NewMachine(cfg, now), cfg: cfg, now: now, with: Report{Known: true}, started: now}
}

// pass lets one step pass and decides.
func (s *stage) pass() Decision {
	s.now = s.now.Add(step)
	since := s.now.Sub(s.started)
	if !s.quiet && since%time.Second == 0 {
		s.Capture(s.now)
	}
	if since%(250*time.Millisecond) == 0 {
		for i, mine := range [][]int{{0, 2}, {1, 3}} {
			r := s.with
			r.Process, r.Of, r.Partitions, r.Generation = fmt.Sprint("p", i+1), 4, mine, 1
			if s.lacks > 0 {
				r.Lacks = s.now.Add(-s.lacks)
			}
			switch {
			case i == 0 && (s.silent || s.moved):
				continue
			case i == 1 && s.moved:
				r.Partitions, r.Generation = []int{0, 1, 2, 3}, 2
			}
			s.Hear(s.now, r)
		}
	}
	return s.Decide(s.now)
}

func (s *stage) set(t *testing.T, what string) {
	word, rest, _ := strings.Cut(what, " ")
	number := func(text string) int {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return n
	}
	span := func(text string) time.Duration {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return d
	}
	switch word {
	case "fine":
		s.with, s.lacks, s.silent, s.quiet = Report{Known: true}, 0, false, false
	case "held", "open":
		s.with.Down, s.with.Open = rest, word == "open"
	case "p99":
		took, of, _ := strings.Cut(rest, " of ")
		s.with.P99, s.with.Changes = span(took), number(of)
	case "lacks":
		s.lacks = span(rest)
	case "letters":
		s.with.Letters = number(rest)
	case "silent":
		s.silent = true
	case "quiet":
		s.quiet = true
	case "moves":
		s.moved = true
	case "unknown":
		s.with.Known = false
	case "copying":
		s.with.Copying = true
	case "sample", "whole":
		fields := strings.Fields(rest)
		sample := Sample{Began: s.now, Compared: number(fields[0]), Whole: word == "whole", Confirmed: map[Class]int{}}
		for _, f := range fields[1:] {
			class, n, _ := strings.Cut(f, "=")
			sample.Confirmed[Class(class)] = number(n)
		}
		s.Verify(sample)
		s.Compares(s.now)
	case "restart":
		saved := s.Save()
		s.Machine = NewMachine(s.cfg, s.now)
		s.Restore(saved, s.now)
	default:
		t.Fatalf("%q is not known", what)
	}
}

func configured(t *testing.T, cfg *Config, fields string) {
	for f := range strings.FieldsSeq(fields) {
		switch f {
		case "no-verify":
			cfg.Verify = VerifyNever
		case "verify=auto":
			cfg.Verify = VerifyAuto
		case "dry-run":
			cfg.DryRun = true
		case "shares=all":
			cfg.Shares = nil
		default:
			t.Fatalf("config %q is not known", f)
		}
	}
}

// play returns what the machine decides, a line for each change.
func play(t *testing.T, script string) string {
	cfg := DefaultConfig()
	cfg.Verify = VerifyAlways
	lines := strings.Split(strings.TrimSpace(script), "\n")
	if rest, ok := strings.CutPrefix(lines[0], "config "); ok {
		configured(t, &cfg, rest)
		lines = lines[1:]
	}
	s := newStage(cfg)
	var out []string
	last := ""
	note := func(d Decision) {
		line := shown(d)
		if line != last {
			out = append(out, fmt.Sprintf("%-7s %s", s.now.Sub(s.started), line))
		}
		last = line
	}
	until := func(at time.Duration) {
		for s.now.Sub(s.started) < at {
			note(s.pass())
		}
	}
	for _, line := range lines {
		at, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		d, err := time.ParseDuration(at)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		until(d)
		if what = strings.TrimSpace(what); what != "end" {
			s.set(t, what)
		}
	}
	return strings.Join(out, "\n")
}

// shown is a decision without what changes with every moment.
func shown(d Decision) string {
	line := fmt.Sprintf("%s %d%% %s", d.State, d.Share, d.Cause)
	if d.DryRun {
		line = fmt.Sprintf("dry run %d%%: %s %d%% %s", d.Share, d.State, d.WouldShare, d.Cause)
	}
	if d.State != OK && d.Cause != Returning {
		reason, _, _ := strings.Cut(d.Reason, "; ")
		if d.Cause == Late && !strings.Contains(reason, "copied") || d.Cause == Unheard {
			reason, _, _ = strings.Cut(reason, "what was committed")
			reason, _, _ = strings.Cut(reason, " for ")
			reason, _, _ = strings.Cut(reason, " since ")
		}
		line += ": " + strings.TrimSpace(reason)
	}
	if d.Stops != (Stops{}) {
		line += fmt.Sprintf(" [%s]", d.Stops)
	}
	return strings.TrimSpace(line)
}

// Whatever happens, a state never stays better than what has been true for longer than
// WorsenAfter, never gets better within RecoverAfter of trouble, and the share of the keys
// grows by one step at a time and never while something is degraded.
func TestNoStateIsBetterThanWhatIsTrueAndNoneFlaps(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := DefaultConfig()
		cfg.Verify = rapid.SampledFrom([]string{VerifyAuto, VerifyAlways, VerifyNever}).Draw(rt, "verify")
		s := newStage(cfg)
		var trouble, warned time.Time // when something was degraded, or warning, last
		var lasts [2]time.Duration    // how long without a break
		var was Decision
		was.State = Degraded
		shares := append(append([]int{0}, cfg.Shares...), 100)
		for n := range rapid.IntRange(5, 30).Draw(rt, "conditions") {
			condition := rapid.SampledFrom([]string{
				"fine", "fine", "fine", "held no", "open no", "p99 900ms of 200", "p99 3s of 200", "p99 3s of 20", "lacks 2s", "lacks 6s",
				"letters 1", "letters 6", "silent", "quiet", "unknown", "copying",
				"sample 1000", "sample 1000", "sample 1000 missing=6", "sample 999 stale=900", "sample 1000 stale=11", "sample 1000 stale=31", "sample 300",
			}).Draw(rt, fmt.Sprint("condition ", n))
			s.set(t, condition)
			for range rapid.IntRange(1, 400).Draw(rt, "steps") {
				d := s.pass()
				truth := OK
				for _, f := range s.look(s.now) {
					truth = max(truth, f.level)
				}
				if truth >= Warning {
					warned = s.now
					lasts[0] += step
				} else {
					lasts[0] = 0
				}
				if truth >= Degraded {
					trouble = s.now
					lasts[1] += step
				} else {
					lasts[1] = 0
				}
				// A step more, for the first of them is at 0.
				if lasts[1] > 2*cfg.WorsenAfter+step && d.State < Degraded && sameCause(s) {
					rt.Fatalf("%s: %s though something is degraded for %s", s.now, d.State, lasts[1])
				}
				if lasts[0] > 2*cfg.WorsenAfter+step && d.State < Warning && sameCause(s) {
					rt.Fatalf("%s: %s though something is over a limit for %s", s.now, d.State, lasts[0])
				}
				if d.State < was.State && (s.now.Sub(trouble) < cfg.RecoverAfter && was.State == Degraded || s.now.Sub(warned) < cfg.RecoverAfter && d.State == OK) {
					rt.Fatalf("%s: from %s to %s, %s after trouble and %s after a warning", s.now, was.State, d.State, s.now.Sub(trouble), s.now.Sub(warned))
				}
				if d.State == Degraded && d.Share != 0 || d.State == OK && d.Share != 100 {
					rt.Fatalf("%s: %s and %d %%", s.now, d.State, d.Share)
				}
				if at, before := index(shares, d.Share), index(shares, was.Share); at > before+1 || at > before && (truth == Degraded) {
					rt.Fatalf("%s: from %d %% to %d %% while it is %s", s.now, was.Share, d.Share, truth)
				}
				was = d
			}
		}
	})
}

// sameCause reports whether what speaks now is one thing alone: several that take turns
// need not last together.
func sameCause(s *stage) bool {
	causes := map[Cause]bool{}
	for _, f := range s.look(s.now) {
		causes[f.cause] = true
	}
	return len(causes) == 1
}

func index(shares []int, share int) int {
	for i, s := range shares {
		if s == share {
			return i
		}
	}
	return -1
}

// A key that has come back stays while the share grows, and a share is about as large as
// it says, for the keys that there are.
func TestAKeyStaysOnItsSideWhileTheShareGrows(t *testing.T) {
	for _, form := range []string{"%d", "user-%d", "0000%d", "%x", "%d/a"} {
		const n = 20_000
		in := map[int]int{}
		for i := range n {
			key := fmt.Sprintf(form, i)
			for share := range 101 {
				took := Takes(key, share)
				if took {
					in[share]++
				}
				if share < 100 && took && !Takes(key, share+1) {
					t.Fatalf("%s reads from the sink at %d %% and not at %d %%", key, share, share+1)
				}
			}
		}
		if in[0] != 0 || in[100] != n {
			t.Errorf("%s: %d of %d at 0 %%, %d at 100 %%", form, in[0], n, in[100])
		}
		for _, share := range []int{1, 10, 50} {
			if got := float64(in[share]) / n * 100; got < 0.7*float64(share) || got > 1.3*float64(share) {
				t.Errorf("%s: a share of %d %% has %.2f %% of the keys", form, share, got)
			}
		}
	}
	// Of other programs: zlib.crc32(b"42") % 100 in Python, CRC32('42') % 100 in MySQL.
	for key, place := range map[string]int{"42": 88, "user-7": 45, "": 0} {
		if Takes(key, place) || !Takes(key, place+1) {
			t.Errorf("the place of %q is not %d", key, place)
		}
	}
}
