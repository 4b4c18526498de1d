package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/config"
	"lockstep/kafka"
)

func newSnapshotCommand(a *app) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "snapshot",
		Short: "Copy rows of a table again, beside the log",
		Long: `A snapshot copies rows of a captured table into Kafka while its changes go on. It
takes no lock, never puts an older state over a newer one, and goes on where it was
when the capture is stopped or killed. What is asked for here is done by the capture,
now or when it runs the next time.`,
		Example: `  lockstep snapshot start --table shop.orders --wait
  lockstep snapshot start --table shop.orders --where "updated_at > '2026-11-01'"
  lockstep snapshot list --watch`,
	})
	cmd.AddCommand(newSnapshotStartCommand(a), newSnapshotListCommand(a),
		newSnapshotChangeCommand(a, "pause", "Let a snapshot rest; resume goes on where it was", cdc.SnapshotPaused),
		newSnapshotChangeCommand(a, "resume", "Let a paused snapshot go on", cdc.SnapshotRunning),
		newSnapshotChangeCommand(a, "cancel", "End a snapshot; rows that it has copied stay", cdc.SnapshotCancelled))
	return cmd
}

// snapshotDesk is what the snapshot commands work with.
type snapshotDesk struct {
	*office
	requests *kafka.SnapshotRequests
	asked    map[string]cdc.SnapshotRequest // those whose snapshot is not known to have ended
	pos      cdc.Position
}

func (a *app) withSnapshots(ctx context.Context, do func(context.Context, *snapshotDesk) error) error {
	return a.withLetters(ctx, func(ctx context.Context, o *office) error {
		d, err := a.snapshots(ctx, o)
		if err != nil {
			return err
		}
		return do(ctx, d)
	})
}

// snapshots are those of the pipeline, up to date.
func (a *app) snapshots(ctx context.Context, o *office) (*snapshotDesk, error) {
	d := &snapshotDesk{office: o, requests: kafka.NewSnapshotRequests(o.kafka, o.log.publisher, o.cfg.Prefix, a.quiet()), asked: map[string]cdc.SnapshotRequest{}}
	return d, d.look(ctx)
}

// look brings d up to date. The requests come first: one that is gone when its
// snapshot is looked for has ended.
func (d *snapshotDesk) look(ctx context.Context) error {
	news, err := d.requests.Poll(ctx)
	if err != nil {
		return err
	}
	for _, r := range news {
		if d.asked[r.ID] = r; r.Want == "" {
			delete(d.asked, r.ID)
		}
	}
	d.pos, _, err = kafka.PeekCheckpoint(ctx, d.kafka, d.cfg.Prefix)
	return err
}

// listedSnapshot is a snapshot as list shows it.
type listedSnapshot struct {
	cdc.Snapshot
	// Wanted is what was asked for and the capture has not done yet.
	Wanted cdc.SnapshotState `json:"wanted,omitempty"`
}

// all lists the snapshots of the position and behind them what is only asked for.
func (d *snapshotDesk) all() []listedSnapshot {
	list := []listedSnapshot{}
	known := map[string]bool{}
	for _, sn := range d.pos.Snapshots {
		one := listedSnapshot{Snapshot: sn}
		if r, ok := d.asked[sn.ID]; ok && r.Want != sn.State && !ended(sn.State) {
			one.Wanted = r.Want
		}
		known[sn.ID] = true
		list = append(list, one)
	}
	first := len(list)
	for _, r := range d.asked {
		if !known[r.ID] {
			list = append(list, listedSnapshot{cdc.Snapshot{ID: r.ID, Table: r.Table, Reason: r.Reason, Where: r.Where, Keys: len(r.Keys), Estimate: uint64(len(r.Keys)), State: "asked", BeganMicros: r.AtMicros}, r.Want})
		}
	}
	slices.SortFunc(list[first:], func(a, b listedSnapshot) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// named are the snapshots with this ID, and the parts of one with many keys.
func (d *snapshotDesk) named(id string) (found []listedSnapshot) {
	part := regexp.MustCompile(`^` + regexp.QuoteMeta(id) + `(\.[0-9]+)?$`)
	for _, sn := range d.all() {
		if part.MatchString(sn.ID) {
			found = append(found, sn)
		}
	}
	return found
}

func ended(state cdc.SnapshotState) bool {
	return state == cdc.SnapshotDone || state == cdc.SnapshotCancelled || state == cdc.SnapshotFailed
}

// mended reports whether a snapshot is one of those that the pipeline makes whenever
// something was lost or dead letters are replayed, and is done.
func mended(sn listedSnapshot) bool {
	return sn.State == cdc.SnapshotDone && (strings.HasPrefix(sn.ID, cdc.LostPrefix) || strings.HasPrefix(sn.ID, "repair-") || strings.HasPrefix(sn.ID, cdc.ReplayPrefix))
}

func newSnapshotListCommand(a *app) *cobra.Command {
	var watch, all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the snapshots that are under way and the newest that have ended",
		Long: `List shows the snapshots that are under way and the newest that have ended. Those by
which the pipeline mends losses by itself (lost-... and repair-...) or replays dead
letters (replay-...) are left out once they are done, unless --all asks for them.`,
		Example: `  lockstep snapshot list
  lockstep snapshot list --all
  lockstep snapshot list --watch
  lockstep snapshot list -o json | jq -r '.[] | select(.state == "failed") | .problem'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSnapshots(cmd.Context(), func(ctx context.Context, d *snapshotDesk) error {
				if watch {
					return a.watchSnapshots(ctx, d, a.stdout, d.all)
				}
				list := d.all()
				whole := len(list)
				if !all {
					list = slices.DeleteFunc(list, mended)
				}
				return a.show(list, func(w io.Writer) {
					printSnapshots(w, list)
					if hidden := whole - len(list); hidden > 0 {
						fmt.Fprintf(w, "%s that mended a loss or replayed letters and are done: --all shows them\n", count(hidden, "more snapshot"))
					}
				})
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "show those that have mended a loss or replayed letters, too")
	cmd.Flags().BoolVar(&watch, "watch", false, "show how far they are until none is running")
	return cmd
}

func printSnapshots(w io.Writer, list []listedSnapshot) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no snapshots")
		return
	}
	fmt.Fprintln(w, "ID\tTABLE\tSTATE\tROWS\tOF ABOUT\tBEGAN\tREASON\tPROBLEM")
	for _, sn := range list {
		state := string(sn.State)
		if sn.Wanted != "" {
			state += ", to be " + string(sn.Wanted)
		}
		of := "-"
		if sn.Estimate > 0 {
			of = fmt.Sprint(sn.Estimate)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", sn.ID, sn.Table, state, sn.Rows, of,
			time.UnixMicro(sn.BeganMicros).Local().Format("01-02 15:04:05"), dash(shorten(oneLine(sn.Reason), 40)), dash(shorten(oneLine(sn.Problem), 120)))
	}
}

// watchSnapshots shows a bar for each of the chosen snapshots until none is running.
func (a *app) watchSnapshots(ctx context.Context, d *snapshotDesk, out io.Writer, chosen func() []listedSnapshot) error {
	redraw := isTerminal(out)
	began := map[string]listedSnapshot{}
	start := time.Now()
	lines, last := 0, ""
	for {
		var b strings.Builder
		going := 0
		list := chosen()
		for _, sn := range list {
			if _, seen := began[sn.ID]; !seen {
				began[sn.ID] = sn
			}
			if sn.State == cdc.SnapshotRunning || sn.State == "asked" {
				going++
			}
			if !ended(began[sn.ID].State) {
				fmt.Fprintln(&b, progressLine(sn, began[sn.ID].Rows, time.Since(start)))
			}
		}
		switch text := b.String(); {
		case redraw:
			if lines > 0 {
				fmt.Fprintf(out, "\x1b[%dA\x1b[J", lines)
			}
			fmt.Fprint(out, text)
			lines = strings.Count(text, "\n")
		case text != last:
			fmt.Fprint(out, text)
			last = text
		}
		if going == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
		if err := d.look(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// progressLine is a bar, the rows, the rate and the time that is left.
func progressLine(sn listedSnapshot, before uint64, took time.Duration) string {
	const width = 24
	line := fmt.Sprintf("%-30s ", sn.ID)
	part := 0.0
	if sn.Estimate > 0 {
		part = min(1, float64(sn.Rows)/float64(sn.Estimate))
	}
	if sn.State == cdc.SnapshotDone {
		part = 1
	}
	full := int(part * width)
	line += "[" + strings.Repeat("#", full) + strings.Repeat("-", width-full) + "]"
	if sn.Estimate > 0 || sn.State == cdc.SnapshotDone {
		line += fmt.Sprintf(" %3d%%", int(100*part))
	}
	line += fmt.Sprintf(" %d rows", sn.Rows)
	if sn.State != cdc.SnapshotRunning {
		line += ", " + string(sn.State)
		if sn.Problem != "" {
			line += ": " + oneLine(sn.Problem)
		}
		return line
	}
	rate := float64(sn.Rows-min(before, sn.Rows)) / max(took.Seconds(), 0.001)
	if rate > 0 {
		line += fmt.Sprintf(", %.0f rows/s", rate)
		if sn.Estimate > sn.Rows {
			line += fmt.Sprintf(", %s left", time.Duration(float64(sn.Estimate-sn.Rows)/rate*float64(time.Second)).Round(time.Second))
		}
	}
	return line
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// snapshotFlags say what is to be copied.
type snapshotFlags struct {
	table, where, keys, id, reason string
	sweep, wait, dryRun            bool
}

func newSnapshotStartCommand(a *app) *cobra.Command {
	var f snapshotFlags
	cmd := &cobra.Command{
		Use:   "start --table DB.TABLE",
		Short: "Ask the capture to copy rows of a table",
		Long: `Start asks the capture to copy a captured table, or of it the rows that match a
condition, or those of a list of keys. Rows that do not match are left as they are.
With --sweep, what is not in the table any more is removed from the sinks behind the
copy.

A list of keys is a file with one JSON object per line, such as {"id":7}, with every
column of the primary key. A key that has no row becomes a delete, so a list repairs
rows that are in the sinks and not in the source. A long list becomes several
snapshots: ID.1, ID.2 and so on.`,
		Example: `  # the whole table, and show how far it is
  lockstep snapshot start --table shop.orders --wait

  # what was written by a statement that was not logged
  lockstep snapshot start --table shop.orders --where "batch = 17" --reason "fixed with sql_log_bin = 0"

  # the whole table, and then without what it does not have
  lockstep snapshot start --table shop.orders --sweep --wait

  # the rows that a report names
  jq -c '{id: .order_id}' report.ndjson | lockstep snapshot start --table shop.orders --keys -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range []string{"where", "keys"} { // of a script's variable that is not set
				if flag := cmd.Flags().Lookup(name); flag.Changed && strings.TrimSpace(flag.Value.String()) == "" {
					return usageError{fmt.Errorf("--%s is empty; leave it out to copy the whole table", name)}
				}
			}
			return a.startSnapshot(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.table, "table", "", "the table, as db.table (required)")
	flags.StringVar(&f.where, "where", "", "only rows that match this SQL condition")
	flags.StringVar(&f.keys, "keys", "", "only the keys in this file, one JSON object per line; - for standard input")
	flags.BoolVar(&f.sweep, "sweep", false, "remove from the sinks what the table does not have, once all of it is copied")
	flags.StringVar(&f.id, "id", "", "name of the snapshot (default the table and the time)")
	flags.StringVar(&f.reason, "reason", "", "why, to be kept with it")
	flags.BoolVar(&f.wait, "wait", false, "wait until it has ended and show how far it is")
	flags.BoolVar(&f.dryRun, "dry-run", false, "check everything, say what would be copied and ask for nothing")
	a.addActor(cmd)
	return cmd
}

var legalID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,200}$`)

func (a *app) startSnapshot(ctx context.Context, f snapshotFlags) error {
	cfg, err := a.loadConfig(ctx)
	if err != nil {
		return err
	}
	table, err := a.snapshotTable(cfg, f)
	if err != nil {
		return err
	}
	keys, lines, err := a.readKeys(f.keys)
	if err != nil {
		return err
	}
	plan, err := mysql.PlanSnapshot(ctx, cfg.Source, table, f.where, keys)
	if err != nil {
		if bad, ok := errors.AsType[mysql.BadKey](err); ok {
			return usageError{fmt.Errorf("--keys line %d: %w", lines[bad.Index], bad)}
		}
		if bad, ok := errors.AsType[mysql.BadWhere](err); ok {
			return usageError{fmt.Errorf("--where: %w", bad)}
		}
		return fmt.Errorf("snapshot of %s: %w", table, err)
	}
	if f.id == "" {
		f.id = regexp.MustCompile(`[^A-Za-z0-9._-]`).ReplaceAllString(f.table, "_") + "-" + time.Now().UTC().Format("20060102T150405")
	}
	if f.dryRun {
		return a.showPlan(f, plan)
	}
	return a.withSnapshots(ctx, func(ctx context.Context, d *snapshotDesk) error {
		if len(d.named(f.id)) > 0 {
			return usageError{fmt.Errorf("--id %s is the name of another snapshot; see lockstep snapshot list", f.id)}
		}
		requests := f.requests(plan.Keys)
		what := map[string]string{"id": f.id, "table": f.table, "where": f.where}
		if len(keys) > 0 {
			what["keys"] = fmt.Sprint(len(keys))
		}
		if f.sweep {
			what["sweep"] = "true"
		}
		err := d.act(ctx, a, "snapshot.start", what, f.reason, func() (map[string]int, error) {
			return map[string]int{"requests": len(requests)}, d.requests.Ask(ctx, requests...)
		})
		if err != nil {
			return err
		}
		if !f.wait {
			return a.show(map[string]any{"id": f.id, "requests": len(requests)}, func(w io.Writer) {
				fmt.Fprintf(w, "snapshot %s is asked for; see lockstep snapshot list --watch\n", f.id)
			})
		}
		return a.awaitSnapshots(ctx, d, f.id)
	})
}

func (a *app) snapshotTable(cfg *config.Config, f snapshotFlags) (cdc.TableName, error) {
	db, table, ok := strings.Cut(f.table, ".")
	name := cdc.TableName{DB: db, Table: table}
	_, captured := cfg.MatchTable(name)
	switch {
	case !ok || db == "" || table == "":
		return name, usageError{fmt.Errorf("--table %q is not db.table; write for example --table shop.orders", f.table)}
	case !captured:
		return name, usageError{fmt.Errorf("--table %s is not captured: no entry of tables[].match in %s takes it", f.table, a.configFile())}
	case f.where != "" && f.keys != "":
		return name, usageError{errors.New("--where and --keys exclude each other; give one")}
	case f.sweep && f.where+f.keys != "":
		return name, usageError{errors.New("--sweep goes with a copy of the whole table; leave out --where and --keys")}
	case strings.HasPrefix(f.id, "first-"):
		return name, usageError{fmt.Errorf("--id %s begins as those of first copies do; take another", f.id)}
	case strings.HasPrefix(f.id, "epoch-"):
		return name, usageError{fmt.Errorf("--id %s begins as those of new copies do; take another", f.id)}
	case strings.HasPrefix(f.id, cdc.LostPrefix):
		return name, usageError{fmt.Errorf("--id %s begins as those of what a store has lost do; take another", f.id)}
	case strings.HasPrefix(f.id, "repair-"):
		return name, usageError{fmt.Errorf("--id %s begins as those of repairs do; take another", f.id)}
	case strings.HasPrefix(f.id, cdc.ReplayPrefix):
		return name, usageError{fmt.Errorf("--id %s begins as those of replays do; take another", f.id)}
	case f.id != "" && !legalID.MatchString(f.id):
		return name, usageError{fmt.Errorf("--id %q has other characters than letters, digits, dots, _ and -, or more than 200", f.id)}
	}
	return name, nil
}

// readKeys reads a list of keys and the line of each. Without a file both are nil.
func (a *app) readKeys(path string) (keys [][]byte, lines []int, err error) {
	if path == "" {
		return nil, nil, nil
	}
	in := a.stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("--keys: %w", err)}
		}
		defer file.Close()
		in = file
	}
	seen := map[string]bool{}
	scan := bufio.NewScanner(in)
	scan.Buffer(nil, 1<<20)
	for n := 1; scan.Scan(); n++ {
		line := strings.TrimSpace(scan.Text())
		if line == "" || seen[line] {
			continue
		}
		if line[0] != '{' || !json.Valid([]byte(line)) {
			return nil, nil, usageError{fmt.Errorf("--keys line %d: %s is not a JSON object; write for example {\"id\":7}", n, shorten(line, 60))}
		}
		seen[line] = true
		keys, lines = append(keys, []byte(line)), append(lines, n)
	}
	if err := scan.Err(); err != nil {
		return nil, nil, fmt.Errorf("--keys: %w", err)
	}
	if len(keys) == 0 {
		return nil, nil, usageError{errors.New("--keys: there is no key in it")}
	}
	return keys, lines, nil
}

// requests are what is asked for: one, or several for a long list of keys.
func (f snapshotFlags) requests(keys [][]byte) []cdc.SnapshotRequest {
	one := cdc.SnapshotRequest{ID: f.id, Table: f.table, Reason: f.reason, Where: f.where, Sweep: f.sweep, Want: cdc.SnapshotRunning, AtMicros: time.Now().UnixMicro()}
	if len(keys) == 0 {
		return []cdc.SnapshotRequest{one}
	}
	var parts []cdc.SnapshotRequest
	size := 0
	for _, key := range keys {
		if n := len(parts); n == 0 || len(parts[n-1].Keys) == cdc.MaxRequestKeys || size+len(key) > cdc.MaxRequestBytes {
			parts, size = append(parts, one), 0
		}
		last := &parts[len(parts)-1]
		last.Keys = append(last.Keys, key)
		size += len(key) + 1
	}
	if len(parts) > 1 {
		for i := range parts {
			parts[i].ID = fmt.Sprintf("%s.%d", f.id, i+1)
		}
	}
	return parts
}

func (a *app) showPlan(f snapshotFlags, plan mysql.SnapshotPlan) error {
	return a.show(struct {
		ID       string `json:"id"`
		Table    string `json:"table"`
		Where    string `json:"where,omitempty"`
		Keys     int    `json:"keys,omitempty"`
		Sweep    bool   `json:"sweep,omitempty"`
		Estimate uint64 `json:"estimate,omitempty"`
	}{f.id, f.table, f.where, len(plan.Keys), f.sweep, plan.Estimate}, func(w io.Writer) {
		what := fmt.Sprintf("about %d rows", plan.Estimate)
		switch {
		case f.where != "":
			what = "the rows where " + f.where
		case len(plan.Keys) > 0:
			what = count(len(plan.Keys), "key")
		}
		if f.sweep {
			what += ", and then without what it does not have,"
		}
		fmt.Fprintf(w, "%s of %s would be copied as %s; nothing was asked for\n", what, f.table, f.id)
	})
}

// awaitSnapshots shows how far a snapshot is until it has ended.
func (a *app) awaitSnapshots(ctx context.Context, d *snapshotDesk, id string) error {
	if err := d.look(ctx); err != nil { // what was asked for just now
		return err
	}
	if err := a.watchSnapshots(ctx, d, a.stderr, func() []listedSnapshot { return d.named(id) }); err != nil {
		return err
	}
	list := d.named(id)
	if err := a.show(list, func(w io.Writer) { printSnapshots(w, list) }); err != nil {
		return err
	}
	for _, sn := range list {
		if sn.State != cdc.SnapshotDone {
			return fmt.Errorf("snapshot %s is %s%s", sn.ID, sn.State, because(sn.Problem))
		}
	}
	return nil
}

func because(problem string) string {
	if problem == "" {
		return ""
	}
	return ": " + problem
}

func newSnapshotChangeCommand(a *app, verb, short string, want cdc.SnapshotState) *cobra.Command {
	cmd := &cobra.Command{
		Use:     verb + " ID",
		Short:   short,
		Example: "  lockstep snapshot " + verb + " shop.orders-20261122T081530",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("name one snapshot; see lockstep snapshot list")
			}
			return nil
		},
		ValidArgsFunction: one(a.completeSnapshots(want)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSnapshots(cmd.Context(), func(ctx context.Context, d *snapshotDesk) error { return d.change(ctx, a, verb, args[0], want) })
		},
	}
	a.addActor(cmd)
	return cmd
}

// change asks for another state of a snapshot and all its parts.
func (d *snapshotDesk) change(ctx context.Context, a *app, verb, id string, want cdc.SnapshotState) error {
	found := d.named(id)
	if len(found) == 0 {
		return fmt.Errorf("no snapshot has the ID %s; see lockstep snapshot list", id)
	}
	var asks []cdc.SnapshotRequest
	for _, sn := range found {
		if ended(sn.State) {
			continue
		}
		r, known := d.asked[sn.ID]
		if !known { // the capture began it by itself
			r = cdc.SnapshotRequest{ID: sn.ID, Table: sn.Table, Reason: sn.Reason, Where: sn.Where}
		}
		r.Want, r.AtMicros = want, time.Now().UnixMicro()
		asks = append(asks, r)
	}
	if len(asks) == 0 {
		return fmt.Errorf("snapshot %s has ended already: it is %s", id, found[0].State)
	}
	err := d.act(ctx, a, "snapshot."+verb, map[string]string{"id": id}, "", func() (map[string]int, error) {
		return map[string]int{"requests": len(asks)}, d.requests.Ask(ctx, asks...)
	})
	if err != nil {
		return err
	}
	return a.show(map[string]any{"id": id, "wanted": want, "requests": len(asks)}, func(w io.Writer) {
		fmt.Fprintf(w, "snapshot %s is to be %s\n", id, want)
	})
}
