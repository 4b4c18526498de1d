package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"lockstep/internal/bank"
)

// panel shows the load and the metrics while they move.
type panel struct {
	meter    *meter
	load     *bank.Workload
	duration time.Duration
	before   snapshot // what the metrics said before the load
	began    time.Time

	mu     sync.Mutex
	notes  []string
	recent []snapshot
}

// note adds a line below the figures.
func (p *panel) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notes = append(p.notes, text)
}

// run shows the figures until ctx ends, and once more then: on a terminal in
// place, every second; elsewhere as one line every two seconds and the whole
// picture at the end.
func (p *panel) run(ctx context.Context) {
	terminal := isTerminal(os.Stdout)
	every := 2 * time.Second
	if terminal {
		every = time.Second
	}
	drawn, last := 0, ""
	for told := 0; ; {
		// The last look may be taken after ctx has ended.
		at, err := p.meter.read(context.WithoutCancel(ctx))
		if err == nil {
			earlier := p.remember(at)
			p.mu.Lock()
			notes := p.notes
			p.mu.Unlock()
			v := view{stats: p.load.Stats(), now: at, earlier: earlier, window: "in the last seconds", duration: p.duration, notes: notes}
			if ctx.Err() != nil {
				v.earlier, v.window = p.before, "over the whole load"
			}
			if terminal {
				lines := v.lines()
				if drawn > 0 {
					fmt.Printf("\x1b[%dA\x1b[J", drawn)
				}
				fmt.Println(strings.Join(lines, "\n"))
				drawn = len(lines)
			} else {
				for ; told < len(notes); told++ {
					fmt.Println("       " + notes[told])
				}
				if line := v.line(); line != last {
					fmt.Printf("%4.0fs  %s\n", time.Since(p.began).Seconds(), line)
					last = line
				}
				if ctx.Err() != nil {
					fmt.Println("\n" + strings.Join(v.lines(), "\n"))
				}
			}
		}
		if ctx.Err() != nil {
			return
		}
		pause(ctx, every)
	}
}

// remember keeps the snapshots of the last seconds and returns the oldest.
func (p *panel) remember(at snapshot) snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recent = append(p.recent, at)
	if len(p.recent) > 6 {
		p.recent = p.recent[1:]
	}
	return p.recent[0]
}

// isTerminal reports whether a person looks at f.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb" && os.Getenv("TERM") != ""
}

// view is all that one picture of the panel shows.
type view struct {
	stats        bank.Stats
	now, earlier snapshot
	window       string // from earlier to now
	duration     time.Duration
	notes        []string
}

// lines draws the panel.
func (v view) lines() []string {
	s := v.stats
	lines := []string{
		fmt.Sprintf("  %-8s  %s transactions, %s rows; %.0f of %.0f s; started late by P99 %s", "MySQL",
			thousands(int(s.Transactions)), thousands(int(s.Rows())), min(s.Elapsed, v.duration).Seconds(), v.duration.Seconds(), seconds(s.LateP99.Seconds())),
		fmt.Sprintf("  %-8s  %s changes from the log, %s rows copied; %s behind", "captured", thousands(v.now.rows), thousands(v.now.copied), seconds(v.now.behind.Seconds())),
		fmt.Sprintf("  %-8s  %s records acknowledged", "Kafka", thousands(v.now.acked)),
		"",
		fmt.Sprintf("  %-28s %15s %15s", "", "Elasticsearch", "Redis"),
	}
	row := func(name string, show func(now, earlier sinkState) string) {
		lines = append(lines, fmt.Sprintf("  %-28s %15s %15s", name, show(v.now.sinks[search], v.earlier.sinks[search]), show(v.now.sinks[cache], v.earlier.sinks[cache])))
	}
	row("received", func(now, _ sinkState) string { return thousands(now.received) })
	for _, outcome := range []string{"applied", "superseded", "stale", "duplicate", "filtered"} {
		row("  "+outcome, func(now, _ sinkState) string { return thousands(now.outcomes[outcome]) })
	}
	row("  dead letters", func(now, _ sinkState) string { return thousands(now.outcomes["dead"]) })
	row("  given back to Kafka", func(now, _ sinkState) string { return thousands(now.outcomes["released"]) })
	row("lag, records", func(now, _ sinkState) string { return thousands(now.lag) })
	row("commit to applied, P50", func(now, earlier sinkState) string { return now.latency.since(earlier.latency).quantile(.5) })
	row("  "+v.window+", P99", func(now, earlier sinkState) string { return now.latency.since(earlier.latency).quantile(.99) })
	lines = append(lines, "")
	for _, note := range v.notes {
		lines = append(lines, "  * "+note)
	}
	return lines
}

// line says what moves most in short.
func (v view) line() string {
	b := fmt.Sprintf("%s rows written, %s changes captured, %s in Kafka", thousands(int(v.stats.Rows())), thousands(v.now.rows), thousands(v.now.acked-v.now.copied))
	for _, s := range []struct{ name, sink string }{{"Elasticsearch", search}, {"Redis", cache}} {
		now := v.now.sinks[s.sink]
		l := now.latency.since(v.earlier.sinks[s.sink].latency)
		b += fmt.Sprintf(" | %s: lag %s, P50 %s, P99 %s, %d dead", s.name, thousands(now.lag), l.quantile(.5), l.quantile(.99), now.outcomes["dead"])
	}
	return b
}

// thousands writes 12345 as 12,345.
func thousands(n int) string {
	if n < 0 {
		return "-" + thousands(-n)
	}
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
