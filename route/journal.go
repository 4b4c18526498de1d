package route

import (
	"cmp"
	"slices"
	"time"
)

// Journal puts the turns together that a log is to tell of: what many tables of a sink do within
// a moment is one line.
type Journal struct{ lines []*Line }

// Line is a change of state, or of share, of tables of a sink.
type Line struct {
	Sink     string
	Was, Now State
	Share    int
	DryRun   bool
	// Tables have turned, and Causes says of how many of them for what.
	Tables []string
	Causes map[Cause]int
	// Reason is that of the first table.
	Reason string

	due time.Time
}

// gathering is how long a line waits for other tables.
const gathering = time.Second

// Add takes turns in.
func (j *Journal) Add(now time.Time, turns []Turn) {
	for _, t := range turns {
		if t.Was.State == t.Now.State && t.Was.Share == t.Now.Share {
			continue // it is so for another reason
		}
		i := slices.IndexFunc(j.lines, func(l *Line) bool {
			return l.Sink == t.Sink && l.Was == t.Was.State && l.Now == t.Now.State && l.Share == t.Now.Share && l.DryRun == t.Now.DryRun
		})
		if i < 0 {
			i = len(j.lines)
			j.lines = append(j.lines, &Line{
				Sink: t.Sink, Was: t.Was.State, Now: t.Now.State, Share: t.Now.Share, DryRun: t.Now.DryRun,
				Causes: map[Cause]int{}, Reason: t.Now.Reason, due: now.Add(gathering),
			})
		}
		l := j.lines[i]
		l.Tables = append(l.Tables, t.Table)
		l.Causes[t.Now.Cause]++
	}
}

// Due gives the lines that have waited long enough, oldest first.
func (j *Journal) Due(now time.Time) (due []*Line) {
	for len(j.lines) > 0 && !now.Before(j.lines[0].due) {
		due, j.lines = append(due, j.lines[0]), j.lines[1:]
	}
	return due
}

// Cause is that of most of its tables.
func (l *Line) Cause() Cause {
	var most Cause
	for c, n := range l.Causes {
		if n > l.Causes[most] || n == l.Causes[most] && cmp.Less(c, most) {
			most = c
		}
	}
	return most
}
