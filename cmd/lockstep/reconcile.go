package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/config"
	"lockstep/reconcile"
)

// reconcileFlags say what is to be compared and what is to be done then.
type reconcileFlags struct {
	table, sink, where   string
	once, repair, dryRun bool
	anyway               bool
	rate, limit          int
	timeout              time.Duration
	reason               string
}

func newReconcileCommand(a *app) *cobra.Command {
	var f reconcileFlags
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Compare MySQL with every sink, by value and version, and repair what differs",
		Long: `Reconcile compares the rows of the captured tables with what every sink has, while
writes flow. It reports only what is confirmed: a row that differs is looked at again
behind everything that was committed, twice, and counts only when the log does not name it
in between. What is under way to a sink is never reported.

With --once it makes one pass and exits with 0 when everything is equal, 1 when something
differs, and 3 when that could not be told. Without it, it runs until it is stopped, beside
any number of others, of which one is active: a sample of the rows every
reconcile.sample_every, those that changed last first, and a full pass every
reconcile.full_every (docs/reconcile.md).

The classes are missing (there is no document), stale (it is of an older version), differing
(it has another content), orphan (a document without a row) and tampered (somebody else has
written it). Rows with an open dead letter are counted apart, and replayed by lockstep dlq.

With --repair the capture reads the rows that differ again, and they go the normal way,
behind the version guard; then they are compared again.`,
		Example: `  lockstep reconcile --once
  lockstep reconcile --once --table shop.orders --sink search --where "id > 1000000"
  lockstep reconcile --once -o json | jq '.findings[] | select(.class == "stale")'

  # what would be repaired, and then repair it, 500 rows a second
  lockstep reconcile --once --repair --dry-run
  lockstep reconcile --once --repair --rate 500 --reason "restored from a backup"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			if !f.once {
				return a.reconcileAlways(cmd.Context(), f)
			}
			return a.reconcileOnce(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.table, "table", "", "only this table, as db.table (default all captured tables)")
	flags.StringVar(&f.sink, "sink", "", "only this sink (default all)")
	flags.StringVar(&f.where, "where", "", "only rows that match this SQL condition; documents without a row are not looked for then")
	flags.BoolVar(&f.once, "once", false, "make one pass over everything and end")
	flags.BoolVar(&f.repair, "repair", false, "have what differs read and written again")
	flags.BoolVar(&f.dryRun, "dry-run", false, "with --repair: compare, say what would be repaired and change nothing")
	flags.IntVar(&f.rate, "rate", 0, "repair at most so many rows a second; 0 is no bound")
	flags.IntVar(&f.limit, "limit", 100, "list at most so many findings; all are counted")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Minute, "give up when a capture or sink that is waited for gets no further for this long")
	flags.BoolVar(&f.anyway, "anyway", false, "repair also where the route of a table says that repairs would do harm now (docs/route.md)")
	flags.StringVar(&f.reason, "reason", "", "why it is repaired, for the audit log")
	a.addActor(cmd)
	return cmd
}

// check finds mistakes in the flags alone.
func (f *reconcileFlags) check(cmd *cobra.Command) error {
	wrong := func(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }
	given := cmd.Flags().Changed
	for _, name := range []string{"table", "sink", "where"} { // of a script's variable that is not set
		if given(name) && strings.TrimSpace(cmd.Flags().Lookup(name).Value.String()) == "" {
			return wrong("--%s is empty; leave it out to compare all", name)
		}
	}
	for _, name := range []string{"table", "where", "repair", "dry-run", "rate", "limit", "timeout", "anyway", "reason"} {
		if !f.once && given(name) {
			return wrong("--%s is of one pass; add --once", name)
		}
	}
	switch {
	case f.where != "" && f.table == "":
		return wrong("--where is about the columns of one table; name it with --table")
	case f.dryRun && !f.repair:
		return wrong("--dry-run says what --repair would do, and without --repair nothing is changed; leave it out, or add --repair")
	case f.anyway && !f.repair:
		return wrong("--anyway is of a repair; add --repair")
	case given("rate") && !f.repair:
		return wrong("--rate is of a repair; add --repair")
	case given("reason") && !f.repair:
		return wrong("--reason is of a repair; add --repair")
	case f.rate < 0:
		return wrong("--rate %d is too small; use 1 or more rows a second, or 0 for no bound", f.rate)
	case f.limit < 0:
		return wrong("--limit %d is too small; use 0 to list none, or more", f.limit)
	case f.timeout <= 0:
		return wrong("--timeout %s is too short; use 1s or more", f.timeout)
	}
	return nil
}

// differsError makes the exit code 1: the comparison was made.
type differsError struct{ what string }

func (e differsError) Error() string { return e.what }

// untoldError makes the exit code 3: whether everything is equal could not be told.
type untoldError struct{ error }

func (e untoldError) Unwrap() error { return e.error }

// chosen are the tables and sinks that the flags name.
func (f *reconcileFlags) chosen(ctx context.Context, a *app, cfg *config.Config) (tables []cdc.TableName, names []string, err error) {
	names = cfg.SinkNames()
	if f.sink != "" {
		if _, err := a.sinkNamed(cfg, f.sink); err != nil {
			return nil, nil, err
		}
		names = []string{f.sink}
	}
	match := func(t cdc.TableName) bool { _, ok := cfg.MatchTable(t); return ok }
	if f.table != "" {
		one, err := a.snapshotTable(cfg, snapshotFlags{table: f.table})
		if err != nil {
			return nil, nil, err
		}
		match = func(t cdc.TableName) bool { return t == one }
	}
	all, err := mysql.TableNames(ctx, cfg.Source, match)
	if err != nil {
		return nil, nil, untoldError{err}
	}
	if f.table != "" && len(all) == 0 { // what the sinks have of it is without a row
		all = []cdc.TableName{tableNamed(f.table)}
	}
	if f.where != "" {
		_, err := mysql.PlanSnapshot(ctx, cfg.Source, all[0], f.where, nil)
		if bad, ok := errors.AsType[mysql.BadWhere](err); ok {
			return nil, nil, usageError{fmt.Errorf("--where: %w", bad)}
		}
		if err != nil {
			return nil, nil, untoldError{err}
		}
	}
	return all, names, nil
}

// reconcileAlways compares until ctx ends.
func (a *app) reconcileAlways(ctx context.Context, f reconcileFlags) error {
	cfg, err := a.loadConfig(ctx)
	if err != nil {
		return err
	}
	names := cfg.SinkNames()
	if f.sink != "" {
		if _, err := a.sinkNamed(cfg, f.sink); err != nil {
			return err
		}
		names = []string{f.sink}
	}
	return a.serve(ctx, parts{compare: names})
}

// compared is the result of all passes of a command.
type compared struct {
	Equal bool `json:"equal"`
	// Certain says that of every row it is known whether it is equal.
	Certain  bool                 `json:"certain"`
	DryRun   bool                 `json:"dry_run,omitempty"`
	Tables   []*reconcile.Result  `json:"tables"`
	Findings []*reconcile.Finding `json:"findings"`
	// LeftOut is how many findings are counted and not listed.
	LeftOut int64 `json:"findings_left_out"`
}

func (a *app) reconcileOnce(ctx context.Context, f reconcileFlags) error {
	cfg, err := a.loadConfig(ctx)
	if err != nil {
		return err
	}
	tables, names, err := f.chosen(ctx, a, cfg)
	if err != nil {
		return err
	}
	out := &compared{DryRun: f.dryRun, Tables: []*reconcile.Result{}, Findings: []*reconcile.Finding{}}
	err = a.withLetters(ctx, func(ctx context.Context, o *office) error {
		compare := func() (map[string]int, error) {
			err := o.reconcile(ctx, a, f, tables, names, out)
			counts := map[string]int{}
			for _, t := range out.Tables {
				for _, s := range t.Sinks {
					counts["repaired"] += int(s.Repaired)
					counts["remaining"] += int(s.Remaining)
				}
			}
			return counts, err
		}
		if !f.repair || f.dryRun {
			_, err := compare()
			return err
		}
		return o.act(ctx, a, "reconcile.repair", map[string]string{"table": f.table, "sink": f.sink, "where": f.where}, f.reason, compare)
	})
	out.Equal, out.Certain = err == nil, err == nil
	for _, t := range out.Tables {
		out.Equal, out.Certain = out.Equal && t.Equal(), out.Certain && t.Certain()
	}
	if shown := a.show(out, func(w io.Writer) { out.print(w) }); err == nil {
		err = shown
	}
	switch {
	case err != nil:
		return untoldError{err}
	case !out.Equal && out.differ() > 0:
		return differsError{out.sentence()}
	case !out.Equal:
		return untoldError{errors.New(out.sentence())}
	}
	return nil
}

// reconcile makes the passes, one table after the other.
func (o *office) reconcile(ctx context.Context, a *app, f reconcileFlags, tables []cdc.TableName, names []string, out *compared) error {
	w, err := o.openReconcile(ctx, names, o.log)
	if err != nil {
		return err
	}
	defer w.close()
	w.patience = f.timeout
	running, stop := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() { over <- o.hub.Run(running) }()
	defer func() { stop(); <-over }()
	if f.repair && !f.dryRun && !f.anyway {
		if err := o.mayRepair(ctx, tables, names); err != nil {
			return err
		}
	}
	why, err := w.unfollowed(ctx, tables)
	if err != nil {
		return err
	}
	var untold []string
	for _, t := range tables {
		if why[t] != "" {
			untold = append(untold, t.String()+": "+why[t])
			r := &reconcile.Result{Table: t.String(), Began: time.Now(), Ended: time.Now()}
			for _, name := range names {
				r.Sinks = append(r.Sinks, &reconcile.SinkResult{Sink: name, Incomparable: why[t], Mismatches: map[reconcile.Class]int64{}})
			}
			out.Tables = append(out.Tables, r)
			continue
		}
		pace := &mysql.Pace{Snapshot: o.cfg.Source.Snapshot}
		pass := &reconcile.Pass{
			World: w.world(), Table: t, Targets: w.targets(names), Where: f.where, Repair: f.repair && !f.dryRun, Rate: f.rate,
			ChunkRows: pace.Rows, Took: pace.Took,
			Report: func(one *reconcile.Finding) bool {
				if len(out.Findings) >= f.limit {
					out.LeftOut++
					return false
				}
				out.Findings = append(out.Findings, one)
				return true
			},
		}
		r, err := a.watchPass(ctx, w, pass)
		out.Tables = append(out.Tables, r)
		if err != nil {
			return fmt.Errorf("compare %s: %w", t, err)
		}
		o.tellCompared(ctx, r, f.where == "")
	}
	if len(untold) > 0 {
		return errors.New(strings.Join(untold, ", "))
	}
	return nil
}

// watchPass makes a pass and shows on standard error how far it is.
func (a *app) watchPass(ctx context.Context, w *reconcileWorld, pass *reconcile.Pass) (r *reconcile.Result, err error) {
	ended := make(chan struct{})
	g := errgroup.Group{}
	g.Go(func() error {
		redraw, last, start := isTerminal(a.stderr), "", time.Now()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return nil
			case <-tick.C:
			}
			line := passLine(pass.Table, pass.Progress(), w.waitsFor(), time.Since(start))
			switch {
			case redraw && last != "":
				fmt.Fprintf(a.stderr, "\x1b[1A\x1b[J%s\n", line)
			case line != last:
				fmt.Fprintln(a.stderr, line)
			}
			last = line
		}
	})
	r, err = pass.Run(ctx)
	close(ended)
	_ = g.Wait()
	return r, err
}

func passLine(t cdc.TableName, p reconcile.Progress, waits string, took time.Duration) string {
	line := fmt.Sprintf("%s: %s, %d rows, %.0f rows/s", t, p.Doing, p.Rows, float64(p.Rows)/max(took.Seconds(), 0.001))
	if p.Suspects > 0 {
		line += fmt.Sprintf(", %s looked at again", count(int(p.Suspects), "row"))
	}
	if waits != "" {
		line += ", waits: " + shorten(oneLine(waits), 160)
	}
	return line
}

// differ counts rows that are confirmed to differ and are not repaired, those with dead
// letters included.
func (c *compared) differ() (n int64) {
	for _, t := range c.Tables {
		for _, s := range t.Sinks {
			n += s.Differ() - s.Repaired + s.Letters
		}
	}
	return n
}

// sentence says what is not equal.
func (c *compared) sentence() string {
	var differ, letters, unclear int64
	reason := ""
	for _, t := range c.Tables {
		for _, s := range t.Sinks {
			differ, letters, unclear = differ+s.Differ()-s.Repaired, letters+s.Letters, unclear+s.Unclear
			if reason == "" {
				reason = s.Reason
			}
		}
	}
	var parts []string
	if differ > 0 {
		parts = append(parts, count(int(differ), "mismatch"))
	}
	if letters > 0 {
		parts = append(parts, count(int(letters), "row")+" with an open dead letter (lockstep dlq list)")
	}
	if unclear > 0 {
		parts = append(parts, fmt.Sprintf("of %s it cannot be told whether they are equal, such as %s", count(int(unclear), "row"), shorten(oneLine(reason), 200)))
	}
	return strings.Join(parts, ", ")
}

func (c *compared) print(w io.Writer) {
	if len(c.Tables) == 0 {
		return
	}
	fmt.Fprintln(w, "TABLE\tSINK\tCOMPARED\tMISSING\tSTALE\tDIFFERING\tORPHAN\tTAMPERED\tDEAD LETTERS\tUNCLEAR\tREPAIRED\tTOOK")
	for _, t := range c.Tables {
		for _, s := range t.Sinks {
			if s.Incomparable != "" {
				fmt.Fprintf(w, "%s\t%s\tnot compared: %s\n", t.Table, s.Sink, oneLine(s.Incomparable))
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%d", t.Table, s.Sink, s.Compared)
			for _, class := range reconcile.Classes {
				fmt.Fprintf(w, "\t%d", s.Mismatches[class])
			}
			fmt.Fprintf(w, "\t%d\t%d\t%d\t%s\n", s.Letters, s.Unclear, s.Repaired, t.Ended.Sub(t.Began).Round(100*time.Millisecond))
		}
	}
	if len(c.Findings) > 0 {
		fmt.Fprintln(w, "\nTABLE\tSINK\tCLASS\tKEY\tVERSION\tDEAD LETTER\tREPAIR\tWHAT")
	}
	for _, f := range c.Findings {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Table, f.Sink, f.Class, cell(f.Key), f.Version, dash(f.Letter), dash(f.Repair), dash(shorten(oneLine(whatDiffers(f)), 160)))
	}
	if c.LeftOut > 0 {
		fmt.Fprintf(w, "%s not listed; --limit lists more\n", count(int(c.LeftOut), "more finding"))
	}
	if c.DryRun {
		fmt.Fprintln(w, "nothing was changed; without --dry-run the mismatches above would be repaired")
	}
}

// whatDiffers says in few words what a finding is about.
func whatDiffers(f *reconcile.Finding) string {
	var words []string
	if f.Reason != "" {
		words = append(words, f.Reason)
	}
	for _, d := range f.Fields {
		words = append(words, fmt.Sprintf("%s is %s and not %s", d.Name, dash(shorten(string(d.Sink), 40)), dash(shorten(string(d.Source), 40))))
	}
	if len(words) == 0 && f.Place != nil {
		words = append(words, pairs(f.Place))
	}
	return strings.Join(slices.Clip(words), ", ")
}
