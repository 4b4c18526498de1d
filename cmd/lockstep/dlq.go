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

	"lockstep/audit"
	"lockstep/config"
	"lockstep/dlq"
	"lockstep/kafka"
)

func newDLQCommand(a *app) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "dlq",
		Short: "List, group, show, replay, skip, patch, export and import dead letters",
		Long: `A dead letter is a row that a sink refused, with its record untouched and the reason
beside it. It stays until its row changes again, or it is replayed or skipped; one that
was refused for a reason that may pass is tried again by itself.`,
		Example: `  lockstep dlq list
  lockstep dlq replay --sink search --dry-run`,
	})
	cmd.AddCommand(newDLQListCommand(a), newDLQGroupCommand(a), newDLQShowCommand(a), newDLQReplayCommand(a), newDLQJobsCommand(a), newDLQSkipCommand(a),
		newDLQPatchCommand(a), newDLQExportCommand(a), newDLQImportCommand(a))
	return cmd
}

// letterFlags choose letters: the fields of a dlq.Query.
type letterFlags map[string]*string

func addLetterFlags(cmd *cobra.Command) letterFlags {
	f := letterFlags{}
	for _, field := range dlq.QueryFields() {
		name, doc := strings.ReplaceAll(field.Name, "_", "-"), field.Doc
		if len(field.Values) > 0 {
			doc += ": " + strings.Join(field.Values, ", ")
		}
		f[field.Name] = cmd.Flags().String(name, "", doc)
		if len(field.Values) == 0 {
			continue
		}
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(field.Values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err)
		}
	}
	return f
}

// chosen are the fields that were given, and the query that they make.
func (f letterFlags) chosen(a *app, cmd *cobra.Command) (map[string]string, dlq.Query, error) {
	cfg, err := a.loadConfig(cmd.Context())
	if err != nil {
		return nil, dlq.Query{}, err
	}
	fields := f.given(cmd)
	q, err := dlq.ParseQuery(fields, cfg.SinkNames(), time.Now())
	return fields, q, flagMistake(err)
}

// given are the fields that the command line has.
func (f letterFlags) given(cmd *cobra.Command) map[string]string {
	fields := map[string]string{}
	for name, value := range f {
		if cmd.Flags().Changed(strings.ReplaceAll(name, "_", "-")) {
			fields[name] = *value
		}
	}
	return fields
}

// flagMistake is a dlq.FieldError as a mistake in the command line.
func flagMistake(err error) error {
	if wrong, ok := errors.AsType[*dlq.FieldError](err); ok {
		return usageError{fmt.Errorf("--%s: %s", strings.ReplaceAll(wrong.Field, "_", "-"), wrong.Problem)}
	}
	return err
}

// office is what the dlq commands work with.
type office struct {
	*desk
	log   *letterLog
	audit *audit.Log
}

// withLetters opens the configuration and Kafka for do. The publisher runs while
// do does.
func (a *app) withLetters(ctx context.Context, do func(context.Context, *office) error) error {
	cfg, err := a.loadConfig(ctx)
	if err != nil {
		return err
	}
	p, err := newProcess(cfg, a.quiet())
	if err != nil {
		return err
	}
	defer p.kafka.Close()
	asking, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, err := p.kafka.Topics(asking); err != nil {
		return err
	}
	return p.withLetterLog(ctx, func(ctx context.Context, log *letterLog) error {
		return do(ctx, &office{&desk{p, log}, log, &audit.Log{Prefix: cfg.Prefix, Kafka: log}})
	})
}

// desk reads and closes letters of every sink.
type desk struct {
	*process
	log dlq.Log
}

// box is the letter box of a sink.
func (d *desk) box(sink string) *dlq.Letters {
	return &dlq.Letters{Sink: sink, Topic: kafka.LettersTopic(d.cfg.Prefix, sink), App: version, Log: d.log}
}

// Sinks are the names of the sinks there are.
func (d *desk) Sinks() []string { return d.cfg.SinkNames() }

// Choose reads the letters of the chosen sinks, in the order of dlq.Order. A sink that never ran has none. When none
// is chosen, of a table that is not captured, it is a dlq.FieldError.
func (d *desk) Choose(ctx context.Context, q dlq.Query) ([]dlq.Letter, error) {
	names := d.cfg.SinkNames()
	if q.Sink != "" {
		names = []string{q.Sink}
	}
	topics, err := d.kafka.Topics(ctx)
	if err != nil {
		return nil, err
	}
	all := []dlq.Letter{}
	for _, name := range names {
		box := d.box(name)
		if !slices.Contains(topics, box.Topic) {
			continue
		}
		some, err := box.Choose(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("sink %s: %w", name, err)
		}
		all = append(all, some...)
	}
	if len(all) == 0 {
		return all, uncaptured(d.cfg, q.Table)
	}
	slices.SortFunc(all, dlq.Order)
	return all, nil
}

// uncaptured says, as a dlq.FieldError, that no table of the pipeline is called so. There
// may be letters of one all the same: it was taken out of the configuration.
func uncaptured(cfg *config.Config, table string) error {
	if table == "" {
		return nil
	}
	if _, captured := cfg.MatchTable(tableNamed(table)); captured {
		return nil
	}
	return &dlq.FieldError{Field: "table", Problem: table + " is not captured, and no open letter that is chosen is of it: no entry of tables[].match takes it"}
}

// Skip closes letters and leaves their rows stale.
func (d *desk) Skip(ctx context.Context, letters []dlq.Letter, reason string, done func(dlq.Letter)) error {
	for _, sink := range d.Sinks() {
		some := slices.DeleteFunc(slices.Clone(letters), func(l dlq.Letter) bool { return l.Sink != sink })
		if err := d.box(sink).SkipAll(ctx, some, reason, done); err != nil {
			return fmt.Errorf("sink %s: %w", sink, err)
		}
	}
	return nil
}

// show gives the chosen letters to do.
func (f letterFlags) show(a *app, cmd *cobra.Command, do func([]dlq.Letter) error) error {
	_, query, err := f.chosen(a, cmd)
	if err != nil {
		return err
	}
	return a.withLetters(cmd.Context(), func(ctx context.Context, o *office) error {
		letters, err := o.Choose(ctx, query)
		if err != nil {
			return flagMistake(err)
		}
		return do(letters)
	})
}

func newDLQListCommand(a *app) *cobra.Command {
	var flags letterFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the open dead letters",
		Long: `List prints the open dead letters of all sinks: the oldest failure first, and of one moment
by ID. SINCE is when the row was first refused since the store had it.`,
		Example: `  lockstep dlq list
  lockstep dlq list --sink search --table bank.questions --since 1h
  lockstep dlq list -o json | jq -r '.[].fingerprint' | sort | uniq -c`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return flags.show(a, cmd, func(letters []dlq.Letter) error {
				return a.show(letters, func(w io.Writer) { printLetters(w, letters) })
			})
		},
	}
	flags = addLetterFlags(cmd)
	return cmd
}

func newDLQGroupCommand(a *app) *cobra.Command {
	var flags letterFlags
	cmd := &cobra.Command{
		Use:   "group",
		Short: "Group the open dead letters by their cause",
		Long: `Group puts letters together whose fingerprint is the same: those of one sink and table
that were refused in the same words, whatever the values in them. Show the example,
mend the cause, and replay the fingerprint.`,
		Example: `  lockstep dlq group
  lockstep dlq group --sink search --since 2h -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return flags.show(a, cmd, func(letters []dlq.Letter) error {
				groups := dlq.Groups(letters)
				return a.show(groups, func(w io.Writer) { printGroups(w, groups) })
			})
		},
	}
	flags = addLetterFlags(cmd)
	return cmd
}

func printGroups(w io.Writer, groups []dlq.Group) {
	if len(groups) == 0 {
		fmt.Fprintln(w, "no dead letters")
		return
	}
	fmt.Fprintln(w, "FINGERPRINT\tCOUNT\tSINK\tTABLES\tCLASS\tFIRST SEEN\tLAST SEEN\tEXAMPLE\tREASON")
	for _, g := range groups {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dash(g.Fingerprint), g.Count, g.Sink, dash(strings.Join(g.Tables, ", ")), g.Class,
			g.FirstSeen.Local().Format("01-02 15:04:05"), g.LastSeen.Local().Format("01-02 15:04:05"), g.Example, shorten(oneLine(g.Reason), 100))
	}
}

func printLetters(w io.Writer, letters []dlq.Letter) {
	if len(letters) == 0 {
		fmt.Fprintln(w, "no dead letters")
		return
	}
	fmt.Fprintln(w, "ID\tSINK\tTABLE\tKEY\tSTATE\tCLASS\tRETRIES\tSINCE\tREASON")
	for _, l := range letters {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", l.ID, l.Sink, l.Table, l.Key, l.State, l.Class, l.Retries,
			l.FirstFailed.Local().Format("01-02 15:04:05"), shorten(oneLine(l.Reason), 100))
	}
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "..."
	}
	return s
}

// find returns the open letter with this ID.
func (o *office) find(ctx context.Context, id string) (dlq.Letter, error) {
	letters, err := o.Choose(ctx, dlq.Query{Filter: dlq.Filter{ID: id}})
	if err != nil {
		return dlq.Letter{}, err
	}
	if len(letters) == 0 {
		return dlq.Letter{}, fmt.Errorf("no open dead letter has the ID %s; see: lockstep dlq list", id)
	}
	return letters[0], nil
}

// clock is a time as text, and empty for none.
func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

// outcome is what a replay would do with one letter.
type outcome struct {
	ID     string     `json:"id"`
	Sink   string     `json:"sink"`
	Table  string     `json:"table"`
	Key    string     `json:"key"`
	Result dlq.Result `json:"result"`
}

// choose lists the letters that a replay is about: those with these IDs that q takes;
// without IDs all that it takes, and at least one unless it takes every letter.
func (o *office) choose(ctx context.Context, q dlq.Query, ids []string) ([]dlq.Letter, error) {
	letters, err := o.Choose(ctx, q)
	switch {
	case err != nil:
		return nil, flagMistake(err)
	case len(ids) > 0:
		chosen, missing := named(letters, ids)
		if missing == "" {
			return chosen, nil
		}
		if _, err := o.find(ctx, missing); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("dead letter %s is open, but the other flags exclude it; leave them out, or see: lockstep dlq show %s", missing, missing)
	case len(letters) == 0 && q != (dlq.Query{}):
		return nil, errors.New("no open letter matches; see: lockstep dlq list")
	}
	return letters, nil
}

// named are the letters with these IDs, each once, and the first ID that none of them has.
func named(letters []dlq.Letter, ids []string) (chosen []dlq.Letter, missing string) {
	for at, id := range ids {
		if slices.Contains(ids[:at], id) {
			continue
		}
		i := slices.IndexFunc(letters, func(l dlq.Letter) bool { return l.ID == id })
		if i < 0 {
			return nil, id
		}
		chosen = append(chosen, letters[i])
	}
	return chosen, ""
}

func printOutcomes(w io.Writer, results []outcome) {
	if len(results) == 0 {
		fmt.Fprintln(w, "no dead letters")
		return
	}
	fmt.Fprintln(w, "ID\tSINK\tTABLE\tKEY\tRESULT\tREASON")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Sink, r.Table, r.Key, r.Result.State, shorten(oneLine(r.Result.Reason), 120))
	}
}

// skipped is a letter that was closed.
type skipped struct {
	ID     string    `json:"id"`
	State  dlq.State `json:"state"`
	Reason string    `json:"reason"`
}

func newDLQSkipCommand(a *app) *cobra.Command {
	var flags letterFlags
	var reason string
	var expected int
	var all, dryRun bool
	cmd := &cobra.Command{
		Use:   "skip [ID...]",
		Short: "Close dead letters and leave their rows stale",
		Long: `Skip closes dead letters for good: a row stays as it is in the store until it changes again.
The reason is kept with the letter.

Name letters by ID, choose them with flags, or say --all. Where flags or --all choose, --count
says how many letters these are, as --dry-run counts them: when they are more or fewer
by then, none is skipped.`,
		Example: `  lockstep dlq skip search-5f0c2a91d37e --reason "row is test data"

  # all of a cause: look at them, and then say how many they are
  lockstep dlq skip --fingerprint c0ffee123456 --dry-run
  lockstep dlq skip --fingerprint c0ffee123456 --count 12 --reason "test data"`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeLetters(&flags),
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen, query, err := flags.chosen(a, cmd)
			counted := cmd.Flags().Changed("count")
			switch {
			case err != nil:
				return err
			case len(args) == 0 && !all && len(chosen) == 0:
				return usageError{errors.New("name letters by ID, choose them with flags, or say --all")}
			case dryRun && (counted || reason != ""):
				return usageError{errors.New("--count and --reason say how to skip, and --dry-run skips nothing; leave them out")}
			case dryRun:
			case strings.TrimSpace(reason) == "":
				return usageError{errors.New("--reason is missing; say why the rows may stay stale")}
			case !counted && (len(args) == 0 || len(chosen) > 0):
				return usageError{errors.New("--count is missing; say how many letters these are, as --dry-run counts them")}
			}
			return a.withLetters(cmd.Context(), func(ctx context.Context, o *office) error {
				letters, err := o.choose(ctx, query, args)
				if err != nil {
					return err
				}
				if counted && len(letters) != expected {
					return fmt.Errorf("the letters that are chosen are %d by now, and not %d; none was skipped", len(letters), expected)
				}
				if dryRun {
					return a.show(letters, func(w io.Writer) {
						printLetters(w, letters)
						fmt.Fprintf(w, "\n%s would be skipped\n", count(len(letters), "dead letter"))
					})
				}
				return o.skip(ctx, a, query, args, letters, reason)
			})
		},
	}
	flags = addLetterFlags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why the rows may stay stale (required, but for a dry run)")
	cmd.Flags().IntVar(&expected, "count", 0, "how many letters these are (required where flags or --all choose)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say which letters would be skipped and change nothing")
	cmd.Flags().BoolVar(&all, "all", false, "skip every open letter")
	a.addActor(cmd)
	return cmd
}

// skip closes letters that were chosen so, and says which.
func (o *office) skip(ctx context.Context, a *app, q dlq.Query, ids []string, letters []dlq.Letter, reason string) error {
	what, done := q.Fields(), []skipped{}
	switch {
	case len(ids) == 1:
		what["id"] = ids[0]
	case len(ids) > 1:
		what["ids"] = strings.Join(ids, ",")
	}
	err := o.act(ctx, a, "dlq.skip", what, reason, func() (map[string]int, error) {
		counts := map[string]int{"skipped": 0}
		return counts, o.Skip(ctx, letters, reason, func(l dlq.Letter) {
			done = append(done, skipped{l.ID, dlq.Skipped, reason})
			counts["skipped"]++
		})
	})
	if err != nil {
		return errors.Join(err, fmt.Errorf("%d of %s are skipped", len(done), count(len(letters), "dead letter")))
	}
	if len(ids) == 1 {
		return a.show(done[0], func(w io.Writer) { fmt.Fprintf(w, "dead letter %s is skipped\n", done[0].ID) })
	}
	return a.show(done, func(w io.Writer) {
		for _, s := range done {
			fmt.Fprintln(w, s.ID)
		}
		fmt.Fprintf(w, "\n%s skipped\n", count(len(done), "dead letter"))
	})
}
