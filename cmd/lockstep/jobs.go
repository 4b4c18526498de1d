package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/dlq"
)

// replayFlags say how letters are replayed.
type replayFlags struct {
	letterFlags
	mode, reason        string
	rate, canary        int
	all, dryRun, detach bool
}

func newDLQReplayCommand(a *app) *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:   "replay [ID...]",
		Short: "Bring the rows of dead letters to their sink again",
		Long: `Replay makes a job of the chosen letters that are open now, which a process of the
pipeline carries out (run, or sink). It goes on there when this command is
stopped or the process is killed.

With --mode resync the rows are read again from MySQL and go through the pipeline as
they are there now; a row that is gone becomes a delete. With --mode payload the
recorded changes are sent again. Both go through the version guard, so a replay may run
twice, late or beside the live pipeline without harm. A letter ends when the store has
its row, or a newer one; one that is refused again stays: mend what its reason names and
replay it once more, or close it with skip.

With --canary the first letters go alone, and the others follow only when at least
95 % of those succeeded.

With --dry-run nothing is changed: source and store are asked what a replay would come to,
"would be applied", "would be resolved" (the store has it already), "would be superseded" (the store
has a newer version, the row is gone, or its table was emptied since), "would be skipped" (the sink
does not take the table any more), "would be refused" and why, parked (it cannot be sent, as
one that cannot be decoded), or unknown (source or store cannot be asked).

Name letters by ID, choose them with flags, or say --all.

It shows how far the job is until that has ended, and exits with 1 when a letter stays,
the job did not come to its end or no open letter is chosen. With --detach it prints the ID of the job; see
lockstep dlq jobs.`,
		Example: `  # what would be replayed
  lockstep dlq replay --sink search --class mapping --dry-run

  # after the mapping was mended: first ten letters, then the rest
  lockstep dlq replay --sink search --class mapping --canary 10

  # slowly, and without waiting for it
  lockstep dlq replay --fingerprint c0ffee123456 --rate 50 --detach --reason "ticket 4711"`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeLetters(&f.letterFlags),
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen, query, err := f.chosen(a, cmd)
			if err != nil {
				return err
			}
			if len(args) == 0 && !f.all && len(chosen) == 0 {
				return usageError{errors.New("name letters by ID, choose them with flags, or say --all")}
			}
			for _, name := range []string{"rate", "canary", "detach", "reason"} {
				if f.dryRun && cmd.Flags().Changed(name) {
					return usageError{fmt.Errorf("--%s says how to replay, and --dry-run replays nothing; leave one of them out", name)}
				}
			}
			job := dlq.Job{
				ID: dlq.JobID(time.Now()), Mode: dlq.Mode(f.mode), Reason: f.reason, Asked: time.Now().UTC(),
				Filter: query.Fields(), IDs: args, Rate: f.rate, Canary: f.canary,
			}
			if err := flagMistake(job.Check()); err != nil {
				return err
			}
			return a.withLetters(cmd.Context(), func(ctx context.Context, o *office) error {
				if f.dryRun || len(args)+len(chosen) > 0 {
					letters, err := o.choose(ctx, query, args)
					if err != nil {
						return err
					}
					if f.dryRun {
						return o.preview(ctx, a, letters, job.Mode)
					}
				}
				return a.startReplay(ctx, o, job, f.detach)
			})
		},
	}
	f.letterFlags = addLetterFlags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.mode, "mode", string(dlq.Resync), "resync: read the rows again from MySQL; payload: send what was recorded")
	flags.IntVar(&f.rate, "rate", 0, "letters a second at most; 0 is as fast as the store takes them")
	flags.IntVar(&f.canary, "canary", 0, "replay so many letters first, and the others only when at least 95 % of these succeeded")
	flags.StringVar(&f.reason, "reason", "", "why, for the audit log and those who ask later")
	flags.BoolVar(&f.detach, "detach", false, "print the ID of the job and do not wait for it")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would be replayed and change nothing")
	flags.BoolVar(&f.all, "all", false, "replay every open letter")
	modes := make([]string, len(dlq.Modes))
	for i, m := range dlq.Modes {
		modes[i] = string(m)
	}
	if err := cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions(modes, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
	a.addActor(cmd)
	return cmd
}

// jobs are the replays of the pipeline.
func (o *office) jobs(a *app) *dlq.Jobs {
	return &dlq.Jobs{Prefix: o.cfg.Prefix, Kafka: o.log, Log: a.quiet(), Held: o.replaysHeld}
}

func (a *app) startReplay(ctx context.Context, o *office, job dlq.Job, detach bool) error {
	var err error
	if job.Actor, err = a.who(); err != nil {
		return err
	}
	jobs := o.jobs(a)
	err = o.act(ctx, a, "dlq.replay", job.Describe(), job.Reason, func() (map[string]int, error) {
		_, err := jobs.Ask(ctx, job)
		return map[string]int{"jobs": 1}, err
	})
	if err != nil {
		return err
	}
	if detach {
		return a.show(map[string]any{"id": job.ID}, func(w io.Writer) {
			fmt.Fprintf(w, "replay %s is asked for; see lockstep dlq jobs show %s\n", job.ID, job.ID)
		})
	}
	s, err := a.awaitReplay(ctx, jobs, job.ID)
	if err != nil {
		return err
	}
	if err := a.show(s, func(w io.Writer) { printJob(w, &s) }); err != nil {
		return err
	}
	switch {
	case !s.State.Over():
		return fmt.Errorf("the replay goes on; see lockstep dlq jobs show %s", job.ID)
	case s.State != dlq.JobDone:
		return fmt.Errorf("replay %s is %s%s", job.ID, s.State, because(s.Problem))
	case s.Stay() > 0:
		return fmt.Errorf("%d of %d dead letters stay", s.Stay(), s.Total)
	}
	return nil
}

// awaitReplay shows how far a job is until it has ended or ctx does.
func (a *app) awaitReplay(ctx context.Context, jobs *dlq.Jobs, id string) (s dlq.JobStatus, err error) {
	redraw, last := isTerminal(a.stderr), ""
	var before *dlq.JobStatus
	start := time.Now()
	for {
		now, found, err := jobs.Find(ctx, id)
		switch {
		case ctx.Err() != nil:
			return s, nil
		case err != nil:
			return s, err
		case !found:
			return s, fmt.Errorf("job %s is not in %s any more", id, dlq.JobsTopic(jobs.Prefix))
		}
		s = now
		if before == nil && s.State != dlq.JobAsked {
			before, start = &now, time.Now()
		}
		line := replayLine(&s, before, time.Since(start))
		switch {
		case redraw && last != "":
			fmt.Fprintf(a.stderr, "\x1b[1A\x1b[J%s\n", line)
		case line != last:
			fmt.Fprintln(a.stderr, line)
		}
		if last = line; s.State.Over() {
			return s, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// replayLine is a bar, the letters, the rate and the time that is left.
func replayLine(s, before *dlq.JobStatus, took time.Duration) string {
	const width = 24
	part := 0.0
	if s.Total > 0 {
		part = min(1, float64(s.Done)/float64(s.Total))
	} else if s.State == dlq.JobDone {
		part = 1
	}
	full := int(part * width)
	line := fmt.Sprintf("%s [%s%s] %3d%% %d of %d letters", s.ID, strings.Repeat("#", full), strings.Repeat("-", width-full), int(100*part), s.Done, s.Total)
	if stay := s.Stay(); stay > 0 {
		line += fmt.Sprintf(", %d stay", stay)
	}
	switch {
	case s.UnheldSince != nil:
		return line + ", " + unheld(s)
	case s.State == dlq.JobAsked:
		return line + ", waits for a process of the pipeline to take it up"
	case s.State.Over():
		return line + ", " + string(s.State) + because(oneLine(s.Problem))
	case s.Waits != "":
		return line + ", waits: " + shorten(oneLine(s.Waits), 160)
	}
	rate := 0.0
	if before != nil {
		rate = float64(s.Done-before.Done) / max(took.Seconds(), 0.001)
	}
	if rate > 0 {
		line += fmt.Sprintf(", %.0f letters/s, %s left", rate, time.Duration(float64(s.Total-s.Done)/rate*float64(time.Second)).Round(time.Second))
	}
	return line
}

// printJob writes a job for people.
func printJob(w io.Writer, s *dlq.JobStatus) {
	lines := [][2]string{{"id", s.ID}, {"state", string(s.State)}, {"mode", string(s.Mode)}, {"letters", letterWords(s.Filter, s.IDs)}}
	add := func(name, value string) {
		if value != "" {
			lines = append(lines, [2]string{name, value})
		}
	}
	if s.Rate > 0 {
		add("rate", count(s.Rate, "letter")+" a second")
	}
	if s.Canary > 0 {
		add("canary", count(s.Canary, "letter"))
	}
	add("asked", clock(s.Asked)+" by "+s.Actor)
	add("reason", oneLine(s.Reason))
	if s.Began != nil {
		add("began", clock(*s.Began))
	}
	if s.Progressed != nil {
		add("last progress", clock(*s.Progressed))
	}
	if s.Ended != nil {
		add("ended", clock(*s.Ended))
	}
	add("held", unheld(s))
	switch {
	case s.CancelledBy == "":
	case s.State.Over():
		add("cancelled by", s.CancelledBy+because(oneLine(s.CancelReason)))
	default:
		add("to be cancelled by", s.CancelledBy+because(oneLine(s.CancelReason)))
	}
	add("done", fmt.Sprintf("%d of %d", s.Done, s.Total))
	for _, fate := range dlq.Fates {
		if n := s.Letters[fate]; n > 0 {
			add("  "+string(fate), fmt.Sprint(n))
		}
	}
	for _, stay := range s.Stays {
		add("  stay", fmt.Sprintf("%d, such as %s: %s", stay.Letters, stay.Example, oneLine(stay.Reason)))
	}
	add("waits for", oneLine(s.Waits))
	add("problem", oneLine(s.Problem))
	for _, line := range lines {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
}

// unheld says that no process carries a job out; it is empty when one does.
func unheld(s *dlq.JobStatus) string {
	if s.UnheldSince == nil {
		return ""
	}
	return "no process has held it since " + s.UnheldSince.UTC().Format(time.RFC3339) + "; start lockstep run, or lockstep sink, and it goes on"
}

// letterWords says in few words which letters a job is about.
func letterWords(filter map[string]string, ids []string) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(filter)) {
		words = append(words, name+"="+filter[name])
	}
	if len(ids) > 0 {
		words = append(words, count(len(ids), "ID"))
	}
	if len(words) == 0 {
		return "all"
	}
	return strings.Join(words, " ")
}

func newDLQJobsCommand(a *app) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "jobs",
		Short: "List, show and cancel replays",
		Long: `A replay is a job that a process of the pipeline carries out. It survives the end of
that process, and can be cancelled: what is replayed by then stays so.`,
		Example: `  lockstep dlq jobs list
  lockstep dlq jobs show 20261126T091500-3f9a
  lockstep dlq jobs cancel 20261126T091500-3f9a`,
	})
	cmd.AddCommand(newDLQJobsListCommand(a), newDLQJobsShowCommand(a), newDLQJobsCancelCommand(a))
	return cmd
}

func newDLQJobsListCommand(a *app) *cobra.Command {
	var state string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the replays that are under way and those of the last week",
		Long: `List shows the replays that are under way and, for a week, those that have ended, of many the
newest 200: oldest first. One that waits says for what, and one that no process
carries out since when.`,
		Example: `  lockstep dlq jobs list
  lockstep dlq jobs list --limit 10
  lockstep dlq jobs list --state stopped -o json | jq -r '.[].problem'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("state") && !slices.Contains(dlq.JobStates, dlq.JobState(state)) {
				return usageError{fmt.Errorf("--state: %q is not known; use one of %v", state, dlq.JobStates)}
			}
			if cmd.Flags().Changed("limit") && limit < 1 {
				return usageError{fmt.Errorf("--limit: %d is no number of replays; use 1 or more", limit)}
			}
			return a.withLetters(cmd.Context(), func(ctx context.Context, o *office) error {
				list, err := o.jobs(a).List(ctx)
				if err != nil {
					return err
				}
				list = slices.DeleteFunc(list, func(s dlq.JobStatus) bool { return state != "" && s.State != dlq.JobState(state) })
				if limit > 0 {
					list = list[max(0, len(list)-limit):]
				}
				return a.show(list, func(w io.Writer) { printJobs(w, list) })
			})
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "only replays in this state: "+strings.Join(jobStates(), ", "))
	cmd.Flags().IntVar(&limit, "limit", 0, "only the newest of them, so many")
	if err := cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(jobStates(), cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
	return cmd
}

func jobStates() []string {
	names := make([]string, len(dlq.JobStates))
	for i, state := range dlq.JobStates {
		names[i] = string(state)
	}
	return names
}

func printJobs(w io.Writer, list []dlq.JobStatus) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no replays")
		return
	}
	fmt.Fprintln(w, "ID\tSTATE\tMODE\tASKED\tENDED\tDONE\tOF\tSTAY\tLETTERS\tASKED BY\tREASON\tWAITS OR PROBLEM")
	for _, s := range list {
		state := string(s.State)
		if s.CancelledBy != "" && !s.State.Over() {
			state += ", to be cancelled"
		}
		why := cmp.Or(unheld(&s), s.Waits+s.Problem)
		if s.State == dlq.JobCancelled {
			why += because(s.CancelReason)
		}
		ended := "-"
		if s.Ended != nil {
			ended = s.Ended.Local().Format("01-02 15:04:05")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", s.ID, state, s.Mode, s.Asked.Local().Format("01-02 15:04:05"), ended, s.Done, s.Total, s.Stay(),
			shorten(letterWords(s.Filter, s.IDs), 60), s.Actor, dash(shorten(oneLine(s.Reason), 40)), dash(shorten(oneLine(why), 120)))
	}
}

// jobCommand is one that is about one job.
func (a *app) jobCommand(cmd *cobra.Command, open bool, do func(ctx context.Context, o *office, jobs *dlq.Jobs, s dlq.JobStatus) error) *cobra.Command {
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return errors.New("name one replay; see lockstep dlq jobs list")
		}
		return nil
	}
	cmd.ValidArgsFunction = one(a.completeJobs(open))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.withLetters(cmd.Context(), func(ctx context.Context, o *office) error {
			jobs := o.jobs(a)
			s, found, err := jobs.Find(ctx, args[0])
			if err != nil {
				return err
			}
			if !found {
				return fmt.Errorf("no replay has the ID %s; see lockstep dlq jobs list", args[0])
			}
			return do(ctx, o, jobs, s)
		})
	}
	return cmd
}

func newDLQJobsShowCommand(a *app) *cobra.Command {
	return a.jobCommand(&cobra.Command{
		Use:   "show ID",
		Short: "Show how far a replay is, what it waits for and what came of its letters",
		Example: `  lockstep dlq jobs show 20261126T091500-3f9a
  lockstep dlq jobs show 20261126T091500-3f9a -o json | jq .letters`,
	}, false, func(_ context.Context, _ *office, _ *dlq.Jobs, s dlq.JobStatus) error {
		return a.show(s, func(w io.Writer) { printJob(w, &s) })
	})
}

func newDLQJobsCancelCommand(a *app) *cobra.Command {
	var reason string
	cmd := a.jobCommand(&cobra.Command{
		Use:     "cancel ID",
		Short:   "End a replay; what it has replayed stays so",
		Example: `  lockstep dlq jobs cancel 20261126T091500-3f9a --reason "the wrong group"`,
	}, true, func(ctx context.Context, o *office, jobs *dlq.Jobs, s dlq.JobStatus) error {
		if s.State.Over() {
			return fmt.Errorf("replay %s has ended already: it is %s", s.ID, s.State)
		}
		who, err := a.who()
		if err != nil {
			return err
		}
		err = o.act(ctx, a, "dlq.cancel", map[string]string{"job": s.ID}, reason, func() (map[string]int, error) {
			return map[string]int{"jobs": 1}, jobs.Cancel(ctx, s.ID, who, reason)
		})
		if err != nil {
			return err
		}
		return a.show(map[string]any{"id": s.ID}, func(w io.Writer) { fmt.Fprintf(w, "replay %s is to be cancelled\n", s.ID) })
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log and those who ask later")
	a.addActor(cmd)
	return cmd
}
