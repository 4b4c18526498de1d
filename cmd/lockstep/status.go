package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"lockstep/admin"
	"lockstep/cdc"
	"lockstep/config"
	"lockstep/dlq"
	"lockstep/route"
	"lockstep/sinks"
)

// processStatus is the answer to GET /v1/status. Fields are added to it, none is
// renamed or takes another meaning.
type processStatus struct {
	Version  string `json:"version"`
	Pipeline string `json:"pipeline"`
	// Now is when the process answered, by its own clock, as are all times in it.
	Now           time.Time `json:"now"`
	UptimeSeconds float64   `json:"uptime_seconds"`
	Ready         bool      `json:"ready"`
	// Configuration is the one that runs, and whether the file can be used.
	Configuration *configStatus `json:"configuration,omitempty"`
	Parts         []partStatus  `json:"parts"`
	Sinks         []sinkStatus  `json:"sinks"`
	// Routes are those of the whole pipeline, as this process sees them.
	Routes []route.Advice `json:"routes"`
}

// partStatus is a part of the process: capture, one sink, reconcile or admin.
type partStatus struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
	Doing string `json:"doing,omitempty"`
}

type sinkStatus struct {
	Name  string `json:"name"`
	Store string `json:"store"` // elastic or redis
	sinks.Status
}

// workers are the sinks of a process.
type workers struct {
	mu  sync.Mutex
	all []worker
}

type worker struct {
	name   string
	kind   string // elastic or redis
	store  *store
	status func() sinks.Status
	try    func(ctx context.Context, topic string, changes []cdc.Change) []sinks.Outcome
	ending func() bool // it is told to end; nil for one that never is
}

func (w *workers) add(one worker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, one)
}

// drop forgets the worker of a sink that has ended.
func (w *workers) drop(sink string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = slices.DeleteFunc(w.all, func(one worker) bool { return one.name == sink })
}

// find is the worker of a sink, if this process has one that is to go on.
func (w *workers) find(sink string) (worker, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.all, func(one worker) bool { return one.name == sink })
	if i < 0 || w.all[i].ending != nil && w.all[i].ending() {
		return worker{}, false
	}
	return w.all[i], true
}

var (
	appliedUpTo = prometheus.NewDesc("lockstep_sink_applied_up_to_timestamp_seconds",
		"Time up to which everything that was committed in the source and is in Kafka is applied, or settled otherwise, a dead letter for example, in the partitions of this process. There is no sample while it is not known: after a start until a change has come, and while a partition is behind of which no commit time is known.", []string{"sink"}, nil)
	deliveredUpTo = prometheus.NewDesc("lockstep_sink_delivered_up_to_timestamp_seconds",
		"Time up to which everything is in the store: as applied_up_to, but never behind the commit of a change that is an open dead letter. There is no sample while that has none, while letters are still being read, and while one is open of which nobody knows since when the store lacks its row.", []string{"sink"}, nil)
)

// Describe names what Collect gives.
func (w *workers) Describe(out chan<- *prometheus.Desc) {
	out <- appliedUpTo
	out <- deliveredUpTo
}

// Collect asks the sinks how far they are.
func (w *workers) Collect(out chan<- prometheus.Metric) {
	for _, s := range w.status() {
		for desc, at := range map[*prometheus.Desc]*time.Time{appliedUpTo: s.AppliedUpTo, deliveredUpTo: s.DeliveredUpTo} {
			if at != nil { // a time that is not known is none, and not that of 1970
				out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(at.UnixMicro())/1e6, s.Name)
			}
		}
	}
}

func (w *workers) status() []sinkStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := []sinkStatus{}
	for _, one := range w.all {
		all = append(all, sinkStatus{one.name, one.kind, one.status()})
	}
	slices.SortFunc(all, func(a, b sinkStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// withHeld adds to a status why tables would have to wait for whose changes none comes.
func withHeld(s sinks.Status, held func() map[string]*sinks.HeldStatus) sinks.Status {
	if held == nil {
		return s
	}
	would := held()
	for i := range s.Tables {
		t := &s.Tables[i]
		switch w := would[t.Table]; {
		case t.Held == nil:
			t.Held = w
		case w != nil && w.By == t.Held.By && w.Since.Before(t.Held.Since):
			t.Held.Since = w.Since // partitions that changed hands wait since then
		}
	}
	return s
}

// withLetters adds to a status what is not delivered: the open dead letters of this process,
// of which all says whether they are all known. What the store lacks is no less missing
// because it is written down.
func withLetters(s sinks.Status, open map[string]dlq.Open, all bool) sinks.Status {
	if all {
		s.DeliveredUpTo = s.AppliedUpTo
	}
	for _, o := range open {
		switch {
		case o.Blind > 0:
			s.DeliveredUpTo = nil
			all = false
		case all && !o.Committed.IsZero() && s.DeliveredUpTo != nil && o.Committed.Before(*s.DeliveredUpTo):
			s.DeliveredUpTo = &o.Committed
		}
	}
	for i := range s.Tables {
		t := &s.Tables[i]
		o := open[t.Table]
		if t.Letters = int64(o.Letters); !o.Committed.IsZero() {
			t.OldestLetter = &o.Committed
		}
	}
	return s
}

func (p *process) status() processStatus {
	info, _ := debug.ReadBuildInfo()
	parts, ready := p.ready.state()
	doing := p.ready.doing()
	s := processStatus{
		Version: thisBuild(info).Version, Pipeline: p.cfg.Prefix, Now: time.Now(), UptimeSeconds: time.Since(p.started).Seconds(),
		Ready: ready, Parts: []partStatus{}, Sinks: p.workers.status(), Routes: gateways{p}.all(),
	}
	if p.configured != nil {
		c := p.configured()
		s.Configuration = &c
	}
	for name, ready := range parts {
		s.Parts = append(s.Parts, partStatus{name, ready, doing[name]})
	}
	slices.SortFunc(s.Parts, func(a, b partStatus) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// unwell names what an operator should look at; none when all is well. Letters are among it
// for who asks for them: they wait for somebody, and nothing waits for them.
func (s *processStatus) unwell(letters bool) []string {
	var out []string
	for _, p := range s.Parts {
		if !p.Ready {
			out = append(out, p.Name+" is not ready")
		}
	}
	if !s.Ready && len(out) == 0 {
		out = append(out, "the process is not ready")
	}
	if c := s.Configuration; c != nil && c.Problem != "" {
		out = append(out, "the configuration file is not used")
	}
	for _, k := range s.Sinks {
		name := "sink " + k.Name
		if k.Breaker.State != "closed" {
			out = append(out, fmt.Sprintf("%s: breaker is %s", name, k.Breaker.State))
		}
		for _, t := range k.Tables {
			if t.Held != nil && t.Held.By != sinks.ByStore || t.Breaker.State != "closed" {
				out = append(out, fmt.Sprintf("%s: table %s is held", name, t.Table))
			}
			if letters && t.Letters > 0 {
				out = append(out, fmt.Sprintf("%s: table %s has %s", name, t.Table, count(int(t.Letters), "open dead letter")))
			}
		}
		if k.HeldPartitions > 0 {
			out = append(out, fmt.Sprintf("%s: %d of %d partitions wait", name, k.HeldPartitions, k.Partitions))
		}
	}
	for _, a := range s.Routes {
		for _, d := range a.Sinks {
			if d.Read == route.ReadMySQL {
				out = append(out, fmt.Sprintf("sink %s: table %s is read from MySQL", d.Sink, a.Table))
			}
		}
	}
	return out
}

// table writes the status for people.
func (s *processStatus) table(w io.Writer) {
	ready := "ready"
	if !s.Ready {
		ready = "NOT READY"
	}
	up := time.Duration(s.UptimeSeconds * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(w, "lockstep %s, pipeline %s, up %s, %s\n", s.Version, s.Pipeline, up, ready)
	if c := s.Configuration; c != nil {
		fmt.Fprintf(w, "configuration %s (sha256 %s) since %s\n", c.File, c.SHA256[:min(12, len(c.SHA256))], s.ago(c.Since))
		if c.Problem != "" {
			fmt.Fprintf(w, "the file as it is now is not used, since %s: %s\n", s.ago(*c.FailedAt), c.Problem)
		}
	}
	fmt.Fprintln(w)
	fmt.Fprintln(w, "PART\tREADY\tDOING\t")
	for _, p := range s.Parts {
		fmt.Fprintf(w, "%s\t%t\t%s\t\n", p.Name, p.Ready, p.Doing)
	}
	if len(s.Sinks) == 0 {
		s.routes(w)
		return
	}
	fmt.Fprintln(w, "\nSINK\tSTORE\tBREAKER\tPARTITIONS\tHELD\tRETRYING\tCALLS\tWAITING\tAPPLIED UP TO\tDELIVERED UP TO\t")
	for _, k := range s.Sinks {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d of %d\t%d\t%s\t%s\t\n", k.Name, k.Store, k.Breaker.State, k.Partitions, k.HeldPartitions, k.Retrying, k.Pool.InUse, k.Pool.Size, k.Pool.Waiting,
			s.at(k.AppliedUpTo), s.at(k.DeliveredUpTo))
	}
	fmt.Fprintln(w, "\nSINK\tTABLE\tBREAKER\tHELD BY\tRECEIVED\tIN FLIGHT\tAPPLIED\tSTALE\tDUPLICATE\tSUPERSEDED\tFILTERED\tDEAD\tRELEASED\tLETTERS\t")
	for _, k := range s.Sinks {
		for _, t := range k.Tables {
			o, by := t.Outcomes, "-"
			if t.Held != nil {
				by = t.Held.By
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", k.Name, t.Table, t.Breaker.State, by, t.Received, t.InFlight,
				o["applied"], o["stale"], o["duplicate"], o["superseded"], o["filtered"], o["dead"], o["released"], t.Letters)
		}
	}
	s.routes(w)
	first := true
	say := func(format string, args ...any) {
		if first {
			fmt.Fprintln(w)
			first = false
		}
		fmt.Fprintf(w, format+"\n", args...)
	}
	for _, k := range s.Sinks {
		if k.Breaker.State != "closed" {
			say("sink %s: breaker %s", k.Name, s.explain(k.Breaker))
		}
		if k.Pool.ClosedUntil != nil {
			say("sink %s: the store has asked for a wait, %s", k.Name, s.in(*k.Pool.ClosedUntil))
		}
		if k.HeldPartitions > 0 && k.HeldSince != nil {
			say("sink %s: %d of %d partitions wait, the first of them since %s", k.Name, k.HeldPartitions, k.Partitions, s.ago(*k.HeldSince))
		}
		for _, t := range k.Tables {
			switch h := t.Held; {
			case t.Breaker.State != "closed":
				say("sink %s: table %s is held: breaker %s (%s, fingerprint %s)", k.Name, t.Table, s.explain(t.Breaker), t.Breaker.Class, t.Breaker.Fingerprint)
			case h != nil && (h.By != sinks.ByStore || k.Breaker.State == "closed"): // else the breaker of the sink tells it once
				say("sink %s: table %s is held %s", k.Name, t.Table, s.why(h))
			}
			if t.Held != nil && t.Held.Mend != "" {
				say("  mend: %s", t.Held.Mend)
			}
			if t.Letters > 0 {
				since := "at a time that nobody knows"
				if t.OldestLetter != nil {
					since = s.ago(*t.OldestLetter)
				}
				say("sink %s: table %s has %s; the oldest change that the store lacks was committed %s; see lockstep dlq list", k.Name, t.Table, count(int(t.Letters), "open dead letter"), since)
			}
		}
		for _, sweep := range k.Sweeps {
			why := "under way"
			if len(sweep.WaitsFor) > 0 {
				why = fmt.Sprintf("waits for partitions %v", sweep.WaitsFor)
			}
			say("sink %s: table %s is to be swept, %s, since %s", k.Name, sweep.Table, why, s.ago(sweep.Since))
		}
	}
}

// routes writes where tables are to be read.
func (s *processStatus) routes(w io.Writer) {
	if len(s.Routes) == 0 {
		return
	}
	fmt.Fprintln(w, "\nSINK\tTABLE\tSTATE\tREAD FROM\tSHARE\tSINCE\tBECAUSE\t")
	for _, a := range s.Routes {
		for _, d := range a.Sinks {
			read := d.Read
			if d.DryRun {
				read += " (dry run)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d %%\t%s\t%s\t\n", d.Sink, a.Table, d.State, read, d.Share, s.ago(d.Since), d.Why)
		}
	}
}

func (s *processStatus) explain(b sinks.BreakerStatus) string {
	out := b.State
	if b.Since != nil {
		out += " since " + s.ago(*b.Since)
	}
	if b.NextProbe != nil {
		out += ", next try " + s.in(*b.NextProbe)
	}
	if b.Reason != "" {
		out += ": " + b.Reason
	}
	return out
}

func (s *processStatus) why(h *sinks.HeldStatus) string {
	out := "since " + s.ago(h.Since)
	if h.Partitions > 0 {
		out += ", " + count(h.Partitions, "partition") + " waiting"
	}
	if h.NextTry != nil {
		out += ", next try " + s.in(*h.NextTry)
	}
	return out + ": " + h.Reason
}

// at is a time and how long ago it was.
func (s *processStatus) at(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339) + ", " + s.ago(*t)
}

func (s *processStatus) ago(t time.Time) string {
	return s.Now.Sub(t).Round(100*time.Millisecond).String() + " ago"
}

func (s *processStatus) in(t time.Time) string {
	if d := t.Sub(s.Now); d > 0 {
		return "in " + d.Round(100*time.Millisecond).String()
	}
	return "now"
}

// unwellError makes the exit code 3.
type unwellError struct{ what []string }

func (e unwellError) Error() string { return strings.Join(e.what, "; ") }

const (
	statusTimeout = 5 * time.Second
	watchInterval = 2 * time.Second
)

func newStatusCommand(a *app) *cobra.Command {
	var address, tokenFile string
	var caller callerFlags
	var watch, letters bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Ask a running process how it is",
		Long: `Status asks one running process, over HTTP at admin.listen, for its parts and
sinks: breakers, the pool of calls, what waits and why, when it is tried again and what
mends it, and for every table the books, in which received is the sum of the outcomes
and of what is in flight.

HELD BY says what a table waits for: table (its own index, its shape, or the source,
which cannot be asked for it), store (which is unavailable), flood (its breaker, because
the store refuses its changes one like the other) or kafka (which does not take a dead
letter). The reason and the way out stand below the tables.

APPLIED UP TO is the time up to which everything that was committed in the source and is
in Kafka is applied, or a dead letter: the oldest over the partitions that wait or have
more to read. A table without changes does not hold it back. It is of the partitions of
this process alone, and the capture may be behind: see lockstep_capture_lag_seconds. It is
- after a start until a change has come, also when there is nothing to be applied.

DELIVERED UP TO is the time up to which everything is in the store: it does not pass a
change that is an open dead letter (LETTERS), or was one before a newer one of its row.
It is - while that is, and while a letter is open of which nobody knows since when the
store lacks its row.

The JSON is that of GET /v1/status; docs/operating.md names its fields.

A process that has tokens (admin.tokens) is asked with the one in --token-file, else in
$LOCKSTEP_TOKEN, else in the first of those files that can be read.

Where tables are to be read (docs/route.md) is of the whole pipeline, whatever the process
is.

It exits with 0 when all is well, with 1 when the process cannot be asked, with 2 for a mistake
in the command line or the configuration, and with 3 when a part is not ready, a breaker is not
closed, a table is held, a partition waits, a table is to be read from MySQL, or the
configuration file as it is now cannot be used; with --letters,
also when a dead letter is open.`,
		Example: `  lockstep status -c lockstep.yaml

  # another process, again and again
  lockstep status --address sink-2:8080 --watch

  # one that has TLS and wants a certificate (admin.tls)
  lockstep status --address https://sink-2:8080 --ca-file ca.pem --cert-file me.pem --key-file me.key

  # for a check that should know of open dead letters, too
  lockstep status --letters -o json > /dev/null

  # tables that are held, why, and what mends them
  lockstep status -o json | jq '.sinks[].tables[] | select(.held) | {table, held}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig()
			if address == "" {
				if err != nil {
					return err
				}
				if address, err = askAt(cfg.Admin.Listen); err != nil {
					return err
				}
				if cfg.Admin.TLS.On() {
					address = "https://" + address
				}
			}
			at := processAt{address: address}
			if at.client, err = caller.client(cfg); err != nil {
				return err
			}
			if at.token, err = a.token(tokenFile, cfg); err != nil {
				return err
			}
			if !watch {
				return a.status(cmd.Context(), at, letters)
			}
			return a.watchStatus(cmd.Context(), at, letters)
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "host:port or https://host:port of the process to ask (default admin.listen of the configuration)")
	caller.add(cmd)
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file of the token to ask with")
	cmd.Flags().BoolVar(&letters, "letters", false, "exit with 3 also when a dead letter is open")
	cmd.Flags().BoolVar(&watch, "watch", false, "ask again every two seconds until interrupted")
	return cmd
}

// processAt is a process to ask.
type processAt struct {
	address, token string
	client         *http.Client
}

// token is what to ask a process with; none is an empty text.
func (a *app) token(file string, cfg *config.Config) (string, error) {
	if file != "" {
		token, err := admin.ReadToken(file)
		if err != nil {
			return "", usageError{fmt.Errorf("--token-file: %w", err)}
		}
		return token, nil
	}
	if token, _ := a.env("LOCKSTEP_TOKEN"); token != "" || cfg == nil {
		return token, nil
	}
	var last error
	for _, t := range cfg.Admin.Tokens {
		token, err := admin.ReadToken(t.File)
		if err == nil {
			return token, nil
		}
		last = err
	}
	return "", last
}

// askAt is where a process that listens there can be asked from its own machine.
func askAt(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("admin.listen: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port), nil
}

// status asks once. Its error says what is not well.
func (a *app) status(ctx context.Context, at processAt, letters bool) error {
	s, err := askStatus(ctx, at)
	if err != nil {
		return err
	}
	if err := a.show(s, s.table); err != nil {
		return err
	}
	if what := s.unwell(letters); len(what) > 0 {
		return unwellError{what}
	}
	return nil
}

// watchStatus asks until ctx ends, and returns what the last answer says.
func (a *app) watchStatus(ctx context.Context, at processAt, letters bool) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var last error
	for {
		if a.output == "table" && terminal(a.stdout) {
			fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
		}
		err := a.status(ctx, at, letters)
		if ctx.Err() != nil {
			return last
		}
		last = err
		if _, unwell := errors.AsType[unwellError](err); err != nil && !unwell {
			fmt.Fprintf(a.stderr, "lockstep: %v\n", err)
		}
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func askStatus(ctx context.Context, at processAt) (*processStatus, error) {
	address := at.address
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, urlOf(address)+"/v1/status", nil)
	if err != nil {
		return nil, usageError{fmt.Errorf("--address %q is not host:port, nor https://host:port", address)}
	}
	if at.token != "" {
		req.Header.Set("Authorization", "Bearer "+at.token)
	}
	res, err := cmp.Or(at.client, http.DefaultClient).Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the process at %s: %w; see that it runs, or name another one with --address", address, err)
	}
	defer res.Body.Close()
	var s processStatus
	if p := new(admin.Problem); res.StatusCode != http.StatusOK && json.NewDecoder(res.Body).Decode(p) == nil && p.Detail != "" {
		return nil, fmt.Errorf("the process at %s answers %s: %s", address, res.Status, p.Detail)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the process at %s answers %s; is it lockstep, and no older than this one?", address, res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return nil, fmt.Errorf("the process at %s answers what is no status: %w", address, err)
	}
	return &s, nil
}
