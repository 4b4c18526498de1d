package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/config"
	"lockstep/sinks"
)

const (
	// reloadEvery is how often the configuration is read, unless its source says that it is
	// another one. A file that is only read tells whatever became of it: written, renamed, or
	// behind a symbolic link that was turned, as Kubernetes does it; and so do the files of secrets.
	reloadEvery = time.Second
	// trial is how long after a change a part that cannot go on has the configuration given
	// back that ran before.
	trial = time.Minute
)

// Outcomes of a reload.
const (
	reloadApplied  = "applied"
	reloadInvalid  = "invalid"
	reloadRefused  = "refused"
	reloadReverted = "reverted"
)

// reloadMetrics say what became of changes of the configuration.
type reloadMetrics struct {
	reloads    *prometheus.CounterVec
	successful prometheus.Gauge
	at         prometheus.Gauge
	info       *prometheus.GaugeVec
}

func newReloadMetrics(reg prometheus.Registerer) *reloadMetrics {
	m := &reloadMetrics{
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_config_reloads_total",
			Help: "Changes of the configuration, in its file or its key of etcd, by what came of them: applied, invalid (it has mistakes or cannot be read), refused (it needs a restart of the process), reverted (a part could not go on with it, so what ran before runs again)."}, []string{"outcome"}),
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_config_last_reload_successful",
			Help: "1 while the configuration that runs is that of the file, or of the key of etcd, 0 while that cannot be used; the log and lockstep status say why."}),
		at: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_config_last_reload_success_timestamp_seconds",
			Help: "When the configuration that runs began to run."}),
		info: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lockstep_config_info",
			Help: "1, with the SHA-256 of the text of the configuration that runs, as sha256sum prints it of its file."}, []string{"sha256"}),
	}
	reg.MustRegister(m.reloads, m.successful, m.at, m.info)
	for _, outcome := range []string{reloadApplied, reloadInvalid, reloadRefused, reloadReverted} {
		m.reloads.WithLabelValues(outcome)
	}
	return m
}

// reloader has the process follow its configuration.
type reloader struct {
	app     *app
	process *process
	admin   *adminServer
	log     *slog.Logger
	metrics *reloadMetrics
	every   time.Duration

	mu      sync.Mutex
	running configText
	shares  *config.Config // what the admin server and the Kafka client have
	since   time.Time
	seen    attempt  // a moment ago
	verdict          // on what was tried last
	lost    *verdict // what was known before the configuration could not be read; nil while it can
	// good ran before, and for longer than a trial; nil for none. It runs again when what ran
	// since is reverted.
	good     *configText
	reverted bool
}

// attempt is a configuration as it was read.
type attempt struct {
	configText
	err string
}

// verdict is what became of an attempt.
type verdict struct {
	tried   attempt
	problem string // empty when it runs
	failed  time.Time
}

// unread reports whether there was nothing to read.
func (a attempt) unread() bool { return a.sum == "" }

// same reports whether two attempts would come to the same.
func (a attempt) same(b attempt) bool {
	if a.sum != b.sum || a.err != b.err || (a.cfg == nil) != (b.cfg == nil) {
		return false
	}
	return a.cfg == nil || len(config.Diff(a.cfg, b.cfg)) == 0 // secrets have files of their own
}

func (p *process) newReloader(a *app, file configText, admin *adminServer) *reloader {
	r := &reloader{
		app: a, process: p, admin: admin, log: p.log.With("part", "configuration"), metrics: p.metrics.reload, every: reloadEvery,
		running: file, shares: file.cfg, since: time.Now(), seen: attempt{configText: file}, verdict: verdict{tried: attempt{configText: file}},
	}
	r.tell()
	p.settings.mu.Lock()
	p.settings.back = r.back
	p.settings.mu.Unlock()
	p.configured = r.status
	return r
}

// hangUps are the SIGHUPs that the process gets from now on, up to its end: one that comes before it
// follows its configuration, or while it stops, is not to end it.
func hangUps() <-chan os.Signal {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	return hup
}

// run follows the configuration until ctx ends. A change counts when it has been there for two
// looks, so that a file that is being written is not taken for a whole one, or at once with a
// SIGHUP, or when it is another revision. A file that takes long to read is read less often.
func (r *reloader) run(ctx context.Context, hup <-chan os.Signal) error {
	told := make(chan struct{}, 1)
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() {
		r.app.source.follow(ctx, func() {
			select {
			case told <- struct{}{}:
			default: // whoever looks next sees it, too
			}
		})
	})
	next := time.NewTimer(r.every)
	defer next.Stop()
	for {
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			asked = true
		case <-told:
		case <-next.C:
		}
		began := time.Now()
		r.look(asked)
		next.Reset(max(r.every, 20*time.Since(began)))
	}
}

// look reads the configuration, and tries it when it is another one than before or somebody
// asks for it.
func (r *reloader) look(asked bool) {
	file, err := r.read()
	r.mu.Lock()
	defer r.mu.Unlock()
	var use func()
	if err == nil {
		use, err = r.prepare(file.cfg)
	}
	now := attempt{configText: file}
	if err != nil {
		now.err = inOneLine(err)
	}
	was := r.seen
	r.seen = now
	switch {
	case now.unread() && r.lost == nil:
		known := r.verdict
		r.lost = &known
	case !now.unread() && r.lost != nil:
		known := *r.lost
		r.lost = nil
		if now.same(known.tried) && r.tried.unread() { // nothing came of that it was away
			r.verdict = known
			r.log.Info("the configuration can be read again, and is what it was", "file", r.app.configFile())
			r.tell()
		}
	}
	if whole := now.same(was) || now.revision != was.revision; !asked && (!whole || now.same(r.tried)) {
		if now.same(r.tried) && r.problem == "" {
			r.running.revision = now.revision // somebody has put the same text again
		}
		return
	}
	r.tried = now
	if now.err != "" {
		r.fail(reloadInvalid, now.err)
		return
	}
	r.try(now.configText, use)
}

// read gives the configuration as its file is now, which a pipe has only once.
func (r *reloader) read() (configText, error) {
	if file, ok := r.app.source.(fileSource); ok {
		if info, err := os.Stat(string(file)); err == nil && !info.Mode().IsRegular() {
			return configText{}, fmt.Errorf("%s: is no file any more; put one in its place", file)
		}
	}
	return r.app.readConfig(context.Background()) // what is followed keeps nobody waiting
}

// inOneLine is what is wrong, of which many mistakes make no page.
func inOneLine(err error) string {
	lines := strings.Split(err.Error(), "\n")
	if n := len(lines) - mostTold; n > 0 {
		lines = append(lines[:mostTold], fmt.Sprintf("and %d more: lockstep config check names them", n))
	}
	return strings.Join(lines, "; ")
}

// try has a configuration run that is prepared, or says why it cannot.
func (r *reloader) try(file configText, use func()) {
	p := planOf(r.running.cfg, file.cfg)
	if err := p.refusal(); err != nil {
		r.fail(reloadRefused, err.Error())
		return
	}
	if len(p.Fields) > 0 {
		if r.good == nil || time.Since(r.since) > trial {
			was := r.running
			r.good = &was
		}
		r.reverted = false
	}
	ended := r.set(file, p, use)
	r.problem = ""
	r.log.Info("the configuration was read again", "file", r.app.configFile(), "sha256", file.sum, "changed", strings.Join(p.Fields, " "), "begins_anew", strings.Join(ended, ", "))
	r.metrics.reloads.WithLabelValues(reloadApplied).Inc()
	r.tell()
}

// prepare reads what the admin server and the Kafka client, which all parts share, need for
// a configuration that is another one than they have, and the certificates for the source; what it
// names may come later than itself. What prepare gives has them use that.
func (r *reloader) prepare(cfg *config.Config) (use func(), err error) {
	if len(config.Diff(r.shares, cfg)) == 0 {
		return func() {}, nil
	}
	if way := cfg.Source.TLS; way != r.shares.Source.TLS { // with files that are not right the capture would wait, and not fail
		if err := way.CheckFiles(); err != nil {
			return nil, err
		}
	}
	admin, err := r.admin.prepare(r.view(cfg))
	if err != nil {
		return nil, err
	}
	login := func() {}
	if was := r.shares.Kafka; cfg.Kafka.SASL != was.SASL || cfg.Kafka.TLS != was.TLS {
		if login, err = r.process.kafka.Renew(cfg.Kafka); err != nil {
			return nil, fmt.Errorf("kafka.%w", err)
		}
	}
	return func() {
		admin()
		login()
		r.shares = cfg
	}, nil
}

// view is the process with another configuration.
func (r *reloader) view(cfg *config.Config) *process {
	now := r.process.now()
	return &process{cfg: cfg, memory: now.memory, shared: now.shared}
}

// set has a configuration run, and gives the parts that begin anew.
func (r *reloader) set(file configText, p plan, use func()) (ended []string) {
	was, view := r.running.cfg, r.view(file.cfg)
	if file.cfg.Log.Level != was.Log.Level {
		view.level.Set(levelOf(file.cfg).Level())
	}
	if file.cfg.Worker.MemoryBytes != was.Worker.MemoryBytes {
		view.memory = sinks.NewMemory(file.cfg.Worker.MemoryBytes)
		r.app.collectLess(file.cfg.Worker)
	}
	ended = view.settings.set(view, p.Restarts)
	if slices.Contains(p.Restarts, clockPart) {
		view.commits.ask(file.cfg.Source)
	}
	view.board.Configure()
	use()
	r.running = file
	if len(p.Fields) > 0 {
		r.since = time.Now()
	}
	return ended
}

// back gives the configuration back that ran before, when a part cannot go on so soon after
// a change. Whoever cannot go on with that one either, because a server is away for one, tries
// again until the trial is over: a change ends no process that a server's absence would not.
func (r *reloader) back(part string, err error) (wait time.Duration, again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case time.Since(r.since) > trial || r.good == nil && !r.reverted:
		return 0, false
	case r.reverted:
		r.log.Warn("a part cannot begin again, trying again", "part", part, "error", err)
		return time.Second, true
	}
	good := *r.good
	r.good, r.reverted = nil, true
	p := planOf(r.running.cfg, good.cfg)
	use, unready := r.prepare(good.cfg)
	if unready != nil {
		r.log.Warn("the admin server and the Kafka client keep what they have", "error", unready)
		use = func() {}
	}
	r.set(good, p, use)
	r.fail(reloadReverted, fmt.Sprintf("%s could not go on: %v", part, err))
	if r.lost != nil {
		r.lost.problem, r.lost.failed = r.problem, r.failed
	}
	return 0, true
}

// fail notes that the configuration as it is now is not what runs.
func (r *reloader) fail(outcome, problem string) {
	r.problem, r.failed = problem, time.Now()
	r.metrics.reloads.WithLabelValues(outcome).Inc()
	r.tell()
	r.log.Error("the configuration is not used, and what ran before goes on", "file", r.app.configFile(), "outcome", outcome, "error", problem)
}

// tell shows what runs.
func (r *reloader) tell() {
	ok := 0.0
	if r.problem == "" {
		ok = 1
	}
	r.metrics.successful.Set(ok)
	r.metrics.at.Set(float64(r.since.UnixMilli()) / 1000)
	r.metrics.info.Reset()
	r.metrics.info.WithLabelValues(r.running.sum).Set(1)
}

// configStatus is the configuration of a process.
type configStatus struct {
	File     string    `json:"file"`               // or etcd://HOST:PORT/KEY
	SHA256   string    `json:"sha256"`             // of the text that runs
	Revision int64     `json:"revision,omitempty"` // of the key, when it held that
	Since    time.Time `json:"since"`
	// Problem says why the configuration as it is now does not run, since FailedAt; empty when it does.
	Problem  string     `json:"problem,omitempty"`
	FailedAt *time.Time `json:"failed_at,omitempty"`
	LogLevel string     `json:"log_level"`
}

func (r *reloader) status() configStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := configStatus{File: r.app.configFile(), SHA256: r.running.sum, Revision: r.running.revision, Since: r.since, Problem: r.problem, LogLevel: strings.ToLower(r.process.level.Level().String())}
	if r.problem != "" {
		failed := r.failed
		s.FailedAt = &failed
	}
	return s
}
