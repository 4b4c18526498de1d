package dlq

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/sinks"
)

// Metrics tell of the letters of a process. What is counted letter by letter is read off
// the posts when it is asked for.
type Metrics struct {
	attempts    *prometheus.CounterVec
	closed      *prometheus.CounterVec
	letters     *prometheus.Desc
	oldest      *prometheus.Desc
	undelivered *prometheus.Desc
	loading     *prometheus.Desc

	mu    sync.Mutex
	posts map[*post]bool
	seen  map[labels]bool // what was once counted is shown as 0 afterwards
	old   map[labels]bool // likewise, of sink and table
}

// labels are those of letters that are counted together.
type labels struct{ sink, table, class, state string }

// Results of an attempt, as metric labels.
const (
	resultResolved    = "resolved"    // the store has taken the change
	resultSuperseded  = "superseded"  // the store has a newer one
	resultSkipped     = "skipped"     // the sink does not take the table any more
	resultRefused     = "refused"     // the store has refused it again
	resultExhausted   = "exhausted"   // so it has, and that was the last attempt
	resultUnavailable = "unavailable" // the store or the table is held, and no attempt is counted
)

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_dlq_attempts_total",
			Help: "Dead letters that were tried again by themselves, by what came of it: resolved, superseded, skipped, refused, exhausted (refused for the last time), or unavailable, which counts as no attempt.",
		}, []string{"sink", "table", "result"}),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_dlq_closed_total",
			Help: "Dead letters that were closed by the pipeline itself: resolved, superseded by a newer change of the row, or skipped because the sink does not take the table any more.",
		}, []string{"sink", "state"}),
		letters: prometheus.NewDesc("lockstep_dlq_letters", "Open dead letters of the partitions that this process has, by state: retrying (tried again by itself), parked and exhausted (both wait for a change of the row, or for a person).",
			[]string{"sink", "table", "class", "state"}, nil),
		oldest:      prometheus.NewDesc("lockstep_dlq_oldest_unresolved_seconds", "Time since the first failure of the open dead letter of the table that waits longest; 0 when there is none.", []string{"sink", "table"}, nil),
		undelivered: prometheus.NewDesc("lockstep_dlq_undelivered_seconds", "Age of the oldest change of the table that the store lacks because a dead letter of the row is open, since it was committed in the source; 0 when there is none. A letter of which nobody knows that, of a row that was refused in a copy first or of a record that nobody can read, counts from its first failure.", []string{"sink", "table"}, nil),
		loading: prometheus.NewDesc("lockstep_dlq_loading_partitions", "Partitions whose dead letters are being read after the process got them. Until they are, no offset is committed there.",
			[]string{"sink"}, nil),
		posts: make(map[*post]bool), seen: make(map[labels]bool), old: make(map[labels]bool),
	}
	reg.MustRegister(m.attempts, m.closed, m)
	return m
}

// JobMetrics tell of the replays that a runner carries out.
type JobMetrics struct {
	jobs    *prometheus.GaugeVec
	letters *prometheus.CounterVec
}

// NewJobMetrics makes the metrics and registers them.
func NewJobMetrics(reg prometheus.Registerer) *JobMetrics {
	m := &JobMetrics{
		jobs: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_dlq_jobs",
			Help: "Replays that are known, by state: asked, running, done, stopped (by their canary), cancelled, failed. The process says it that carries them out (lockstep_replays_active).",
		}, []string{"state"}),
		letters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_dlq_replayed_total",
			Help: "Dead letters that replays are through with, by what came of them: resolved (the store has taken the recorded change), resynced (it has the row as it was read again, or newer), superseded, skipped, closed (it had ended before), stays.",
		}, []string{"sink", "mode", "outcome"}),
	}
	reg.MustRegister(m.jobs, m.letters)
	return m
}

// show counts the jobs.
func (m *JobMetrics) show(jobs []*jobRecord) {
	counts := map[JobState]int{}
	for _, r := range jobs {
		counts[r.status().State]++
	}
	for _, s := range JobStates {
		m.jobs.WithLabelValues(string(s)).Set(float64(counts[s]))
	}
}

func (m *Metrics) enter(p *post) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.posts[p] = true
	for _, s := range States {
		if !s.Open() && s != Moved {
			m.closed.WithLabelValues(p.Sink, string(s))
		}
	}
}

func (m *Metrics) leave(p *post) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.posts, p)
}

// Describe names what Collect gives.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.letters
	out <- m.oldest
	out <- m.undelivered
	out <- m.loading
}

// Collect asks the posts.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	counts := make(map[labels]int, len(m.seen))
	for l := range m.seen {
		counts[l] = 0
	}
	open, loading := map[string]map[string]Open{}, map[string]int{}
	for p := range m.posts {
		p.mu.Lock()
		for c, n := range p.index.counts {
			counts[labels{p.Sink, p.index.topics[c.origin].table, string(sinks.Classes[c.class]), string(States[c.state])}] += n
		}
		if loading[p.Sink] += 0; !p.whole {
			loading[p.Sink]++
		}
		p.mu.Unlock()
		if open[p.Sink] == nil {
			open[p.Sink] = map[string]Open{}
		}
		p.addOpen(open[p.Sink])
	}
	for l, n := range counts {
		m.seen[l] = true
		out <- prometheus.MustNewConstMetric(m.letters, prometheus.GaugeValue, float64(n), l.sink, l.table, l.class, l.state)
	}
	for sink, n := range loading {
		for table := range open[sink] {
			m.old[labels{sink: sink, table: table}] = true
		}
		out <- prometheus.MustNewConstMetric(m.loading, prometheus.GaugeValue, float64(n), sink)
	}
	for l := range m.old {
		o := open[l.sink][l.table]
		first := o.Committed
		if o.Blind > 0 && (first.IsZero() || o.Failed.Before(first)) {
			first = o.Failed
		}
		out <- prometheus.MustNewConstMetric(m.oldest, prometheus.GaugeValue, age(o.Failed), l.sink, l.table)
		out <- prometheus.MustNewConstMetric(m.undelivered, prometheus.GaugeValue, age(first), l.sink, l.table)
	}
}

// age is how many seconds ago a time was; 0 for none.
func age(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(time.Since(t).Seconds(), 0)
}
