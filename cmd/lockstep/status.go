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
	// LookAt is what an operator should look at, of the whole pipeline, and Overview all of that; it
	// is absent while the process has no part in one.
	LookAt   []trouble `json:"look_at"`
	Overview *overview `json:"overview,omitempty"`
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
	parts, ready := p.ready.state()
	doing := p.ready.doing()
	s := processStatus{
		Version: thisVersion(), Pipeline: p.cfg.Prefix, Now: time.Now(), UptimeSeconds: time.Since(p.started).Seconds(),
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
	var found []trouble
	s.Overview, found = p.overview(s.Now, s.Routes)
	s.LookAt = merge(s.here(), found)
	return s
}

// here is what an operator should look at in the process alone. What it says of itself elsewhere is
// left to the overview, where there is one.
func (s *processStatus) here() (found []trouble) {
	say := func(t trouble) { found = append(found, t) }
	alone := s.Overview == nil
	for _, p := range s.Parts {
		if !p.Ready && alone {
			say(trouble{What: p.Name + " is not ready"})
		}
	}
	if !s.Ready && len(found) == 0 && alone {
		say(trouble{What: "the process is not ready"})
	}
	if c := s.Configuration; c != nil && c.Problem != "" {
		say(trouble{What: "the configuration is not used", Since: c.FailedAt, Why: c.Problem, Mend: "mend it; what ran before goes on meanwhile"})
	}
	for _, k := range s.Sinks {
		name := "sink " + k.Name
		if k.Breaker.State != "closed" {
			say(trouble{What: fmt.Sprintf("%s: breaker is %s", name, k.Breaker.State), Since: k.Breaker.Since, Why: k.Breaker.Reason, Mend: "mend the store; it goes on by itself"})
		}
		for _, t := range k.Tables {
			switch h := t.Held; {
			case t.Breaker.State != "closed":
				held := trouble{What: fmt.Sprintf("%s: table %s is held", name, t.Table), Since: t.Breaker.Since, Why: s.explain(t.Breaker)}
				if h != nil {
					held.Mend = h.Mend
				}
				say(held)
			case h != nil && (h.By != sinks.ByStore || k.Breaker.State == "closed"): // else the breaker of the sink tells it once
				say(heldTrouble(k.Name, t.Table, h, s.Now))
			}
			if t.Letters > 0 && alone {
				say(letterTrouble(k.Name, t.Table, t.Letters, t.OldestLetter))
			}
		}
		if k.HeldPartitions > 0 {
			say(trouble{What: fmt.Sprintf("%s: %d of %d partitions wait", name, k.HeldPartitions, k.Partitions), Since: k.HeldSince})
		}
	}
	return append(found, readElsewhere(s.Routes)...)
}

// merge puts together what was found, each once.
func merge(all ...[]trouble) []trouble {
	out := []trouble{}
	for _, some := range all {
		for _, t := range some {
			if !slices.ContainsFunc(out, func(o trouble) bool { return o.What == t.What }) {
				out = append(out, t)
			}
		}
	}
	return out
}

// unwell names what an operator should look at; none when all is well. Letters are among it
// for who asks for them: they wait for somebody, and nothing waits for them.
func (s *processStatus) unwell(letters bool) (out []string) {
	for _, t := range s.LookAt {
		if letters || !t.Letters {
			out = append(out, t.What)
		}
	}
	if len(out) > mostTold {
		out = append(out[:mostTold], fmt.Sprintf("and %d more", len(out)-mostTold))
	}
	return out
}

// mostTold is how many troubles are told of in a text; JSON has all.
const mostTold = 20

// screen writes the status for people: what is to be looked at, and the pipeline at a glance.
func (s *processStatus) screen(w io.Writer) {
	fmt.Fprintf(w, "%s  pipeline %s, %s\n", s.headline(), s.Pipeline, s.Now.UTC().Format(time.RFC3339))
	for i, t := range s.LookAt {
		if i == mostTold {
			fmt.Fprintf(w, "and %d more: -o json names them\n", len(s.LookAt)-i)
			break
		}
		line := t.What
		if t.Since != nil {
			line += " since " + s.ago(*t.Since)
		}
		if t.Why != "" {
			line += ": " + t.Why
		}
		fmt.Fprintln(w, line)
		if t.Mend != "" {
			fmt.Fprintf(w, "  mend: %s\n", t.Mend)
		}
	}
	if s.Overview != nil {
		s.Overview.screen(w, s.Now)
	}
}

// headline says in a line whether somebody has to get up.
func (s *processStatus) headline() string {
	what := "OK: nothing to look at."
	if n := len(s.unwell(true)); n > 0 {
		what = fmt.Sprintf("LOOK AT %s.", count(len(s.LookAt), "thing"))
	}
	if s.Overview == nil {
		return what
	}
	for _, k := range s.Overview.Sinks {
		what += fmt.Sprintf(" %s is %s behind.", k.Sink, behind(k.Behind))
	}
	return what
}

// details writes what the process itself does, and where each table is read.
func (s *processStatus) details(w io.Writer) {
	ready := "ready"
	if !s.Ready {
		ready = "NOT READY"
	}
	up := time.Duration(s.UptimeSeconds * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(w, "\nthis process: lockstep %s, pipeline %s, up %s, %s\n", s.Version, s.Pipeline, up, ready)
	if c := s.Configuration; c != nil {
		fmt.Fprintf(w, "configuration %s (%ssha256 %s) since %s\n", c.File, ofRevision(c.Revision), c.SHA256[:min(12, len(c.SHA256))], s.ago(c.Since))
		if c.Problem != "" {
			fmt.Fprintf(w, "as it is now it is not used, since %s: %s\n", s.ago(*c.FailedAt), c.Problem)
		}
	}
	fmt.Fprintln(w)
	fmt.Fprintln(w, "PART\tREADY\tDOING\t")
	for _, p := range s.Parts {
		fmt.Fprintf(w, "%s\t%t\t%s\t\n", p.Name, p.Ready, p.Doing)
	}
	s.books(w)
	s.routes(w)
}

// books writes what the sinks of the process have and do.
func (s *processStatus) books(w io.Writer) {
	if len(s.Sinks) == 0 {
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
	for _, k := range s.Sinks {
		if k.Pool.ClosedUntil != nil {
			fmt.Fprintf(w, "sink %s: the store has asked for a wait, %s\n", k.Name, s.in(*k.Pool.ClosedUntil))
		}
		for _, sweep := range k.Sweeps {
			why := "under way"
			if len(sweep.WaitsFor) > 0 {
				why = fmt.Sprintf("waits for partitions %v", sweep.WaitsFor)
			}
			fmt.Fprintf(w, "sink %s: table %s is to be swept, %s, since %s\n", k.Name, sweep.Table, why, s.ago(sweep.Since))
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

// explain says of the breaker of a table why it is not closed.
func (s *processStatus) explain(b sinks.BreakerStatus) string {
	out := "breaker " + b.State
	if b.NextProbe != nil {
		out += ", next try " + s.in(*b.NextProbe)
	}
	return fmt.Sprintf("%s: %s (%s, fingerprint %s)", out, b.Reason, b.Class, b.Fingerprint)
}

// at is a time and how long ago it was.
func (s *processStatus) at(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339) + ", " + s.ago(*t)
}

// ofRevision is how a revision is shown; a file has none.
func ofRevision(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("revision %d, ", n)
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
	var watch time.Duration
	var letters, tables bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the whole pipeline at a glance: what is behind, what is stuck, and what mends it",
		Long: `Status asks one running process, over HTTP at admin.listen, how the pipeline is. Any process
answers for all of them, because all say once a second how they are; one that says nothing
for 5 seconds is called silent.

First stands what is to be looked at, since when, why, and what mends it; then the capture, the
sinks, how old changes are at each stage of their way, the processes and the reconciler.

BEHIND is how long ago the newest change was committed, at most, before which everything is in
Kafka (capture) or applied (sink), of the table that is most behind; an idle pipeline shows about
a second. DELIVERED is the same with open dead letters (LETTERS) as missing. ? is said of what
nobody knows: after a start, and while a partition has no owner. READ FROM IT counts the tables
that are read from the sink and not from MySQL (docs/route.md).

With --tables it shows the books of the process that is asked as well, in which for every table
received is the sum of the outcomes and of what is in flight, what a table is HELD BY, and where
each table of the pipeline is to be read.

The JSON is that of GET /v1/status; docs/operating.md names its fields.

A process that has tokens (admin.tokens) is asked with the one in --token-file, else in
$LOCKSTEP_TOKEN, else in the first of those files that can be read.

It exits with 0 when all is well, with 1 when the process cannot be asked, with 2 for a mistake
in the command line or the configuration, and with 3 when there is something to look at; open dead
letters count with --letters.`,
		Example: `  lockstep status -c lockstep.yaml

  # another process, again and again
  lockstep status --address sink-2:8080 --watch
  lockstep status --watch=10s

  # one that has TLS and wants a certificate (admin.tls)
  lockstep status --address https://sink-2:8080 --ca-file ca.pem --cert-file me.pem --key-file me.key

  # for a check that should know of open dead letters, too
  lockstep status --letters -o json > /dev/null

  # what is to be looked at, and what mends it
  lockstep status -o json | jq '.look_at[]'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig(cmd.Context())
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
			if !cmd.Flags().Changed("watch") {
				return a.status(cmd.Context(), at, letters, tables)
			}
			if watch < 100*time.Millisecond {
				return usageError{fmt.Errorf("--watch=%s is too often; write for example --watch=5s", watch)}
			}
			return a.watchStatus(cmd.Context(), at, letters, tables, watch)
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "host:port or https://host:port of the process to ask (default admin.listen of the configuration)")
	caller.add(cmd)
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file of the token to ask with")
	cmd.Flags().BoolVar(&letters, "letters", false, "exit with 3 also when a dead letter is open")
	cmd.Flags().BoolVar(&tables, "tables", false, "show the books of the process for each table, and all routes, too")
	cmd.Flags().DurationVar(&watch, "watch", 0, "ask again until interrupted, every two seconds or as --watch=10s says")
	cmd.Flags().Lookup("watch").NoOptDefVal = watchInterval.String()
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
func (a *app) status(ctx context.Context, at processAt, letters, tables bool) error {
	s, err := askStatus(ctx, at)
	if err != nil {
		return err
	}
	if err := a.show(s, func(w io.Writer) {
		if s.screen(w); tables || s.Overview == nil {
			s.details(w)
		}
	}); err != nil {
		return err
	}
	if what := s.unwell(letters); len(what) > 0 {
		return unwellError{what}
	}
	return nil
}

// watchStatus asks until ctx ends, and returns what the last answer says.
func (a *app) watchStatus(ctx context.Context, at processAt, letters, tables bool, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last error
	for {
		if a.output == "table" && terminal(a.stdout) {
			fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
		}
		err := a.status(ctx, at, letters, tables)
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
	if s.LookAt == nil { // it is older, and tells of itself alone
		s.LookAt = s.here()
	}
	return &s, nil
}
