package dlq

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"lockstep/sinks"
)

// Group is the open letters that one cause has made.
type Group struct {
	Fingerprint string      `json:"fingerprint" doc:"what they have in common: sink, table, class, and the reason without its values"`
	Sink        string      `json:"sink"`
	Class       sinks.Class `json:"class"`
	Count       int         `json:"count"`
	FirstSeen   time.Time   `json:"first_seen" doc:"the first failure of any of them"`
	LastSeen    time.Time   `json:"last_seen" doc:"the last failure of any of them"`
	Tables      []string    `json:"tables"`
	Example     string      `json:"example" doc:"the ID of the oldest of them"`
	Reason      string      `json:"reason" doc:"why that one was refused"`
}

// Groups puts letters together by fingerprint, largest group first.
func Groups(letters []Letter) []Group {
	type cause struct{ sink, fingerprint string }
	groups := map[cause]*Group{}
	for _, l := range slices.SortedFunc(slices.Values(letters), Order) {
		g := groups[cause{l.Sink, l.Fingerprint}]
		if g == nil {
			g = &Group{
				Fingerprint: l.Fingerprint, Sink: l.Sink, Class: l.Class, FirstSeen: l.FirstFailed,
				Tables: []string{}, Example: l.ID, Reason: l.Reason,
			}
			groups[cause{l.Sink, l.Fingerprint}] = g
		}
		g.Count++
		if l.LastFailed.After(g.LastSeen) {
			g.LastSeen = l.LastFailed
		}
		if l.Table != "" && !slices.Contains(g.Tables, l.Table) {
			g.Tables = append(g.Tables, l.Table)
		}
	}
	all := []Group{}
	for _, g := range groups {
		slices.Sort(g.Tables)
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Sink, b.Sink), strings.Compare(a.Fingerprint, b.Fingerprint))
	})
	return all
}
