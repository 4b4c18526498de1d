package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/audit"
	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/dlq"
	"lockstep/freshness"
	"lockstep/internal/certs"
	"lockstep/kafka"
	"lockstep/reconcile"
	"lockstep/sinks"
)

// finding is one line of the doctor's report.
type finding struct {
	System string `json:"system"`
	Check  string `json:"check"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

func newDoctorCommand(a *app) *cobra.Command {
	var timeout, barrier time.Duration
	cmd := &cobra.Command{
		Use:   "doctor [capture | sink NAME | reconcile | admin]",
		Short: "Check source, Kafka and sinks, and say what mends each finding",
		Long: `Doctor looks at everything the pipeline needs of the source, of Kafka and of
every sink, in one run, and prints for each finding the statement that mends it. It
changes nothing.

Where each part runs with accounts of its own (docs/privileges.md), name the part as
lockstep runs it: then it looks at what that part needs, with the accounts of the
configuration and the environment that the part has.

With --barrier it also sees that the pipeline runs: when all else is well, it waits until
what is committed in the source by then is in every sink.

It exits with 0 when all is well and with 1 when something is to be mended.`,
		Example: `  lockstep doctor -c lockstep.yaml

  # only what is wrong, for a script
  lockstep doctor -o json | jq '.[] | select(.ok | not)'

  # whether the accounts of one part may do what it does
  lockstep doctor sink search

  # after a deployment: do changes travel?
  lockstep doctor --barrier 2m`,
		Args:              func(_ *cobra.Command, args []string) error { _, err := partNamed(args); return err },
		ValidArgsFunction: a.completePart,
		RunE: func(cmd *cobra.Command, args []string) error {
			part, err := partNamed(args)
			if err != nil {
				return err
			}
			if barrier < 0 {
				return usageError{fmt.Errorf("--barrier %s is no time to wait; write for example 2m", barrier)}
			}
			cfg, err := a.loadConfig(cmd.Context())
			if err != nil {
				return err
			}
			if part.sink != "" {
				if _, err := a.sinkNamed(cfg, part.sink); err != nil {
					return err
				}
			}
			p, err := newProcess(cfg, a.quiet())
			if err != nil {
				return err
			}
			defer p.kafka.Close()
			found := p.examine(cmd.Context(), part, timeout)
			bad, left := ill(found), ""
			if barrier > 0 && bad > 0 {
				left = ", so no barrier was asked"
			} else if barrier > 0 {
				passed, err := p.passes(cmd.Context(), barrier)
				if err != nil {
					return err
				}
				found, bad = append(found, passed...), ill(passed)
			}
			if err := a.show(found, func(w io.Writer) {
				for _, f := range found {
					mark := "ok"
					if !f.OK {
						mark = "FAIL"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", mark, f.System, f.Check, f.Detail)
					if f.Fix != "" {
						fmt.Fprintf(w, "\t\t\tmend: %s\n", f.Fix)
					}
				}
			}); err != nil {
				return err
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d checks found something to mend%s", bad, len(found), left)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long each system may take to answer")
	cmd.Flags().DurationVar(&barrier, "barrier", 0, "wait so long for what is committed to be in every sink, too (default not at all)")
	return cmd
}

// examined is what the doctor looks at: a whole pipeline, or one part of it.
type examined struct {
	command string // that runs the part; empty for the whole
	sink    string // its name, of a sink
}

// partNamed reads a part as the command line names it.
func partNamed(args []string) (examined, error) {
	switch {
	case len(args) == 0:
		return examined{}, nil
	case len(args) == 2 && args[0] == "sink":
		return examined{command: "sink", sink: args[1]}, nil
	case len(args) == 1 && slices.Contains([]string{"capture", "reconcile", "admin"}, args[0]):
		return examined{command: args[0]}, nil
	}
	return examined{}, fmt.Errorf("%q is no part of a pipeline; use capture, sink NAME, reconcile or admin, or none for all of it", strings.Join(args, " "))
}

// completePart offers the parts of a pipeline.
func (a *app) completePart(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch {
	case len(args) == 0:
		return []string{"capture", "sink", "reconcile", "admin"}, cobra.ShellCompDirectiveNoFileComp
	case len(args) == 1 && args[0] == "sink":
		return a.completeSink(cmd, nil, word)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// captures reports whether the log is read.
func (e examined) captures() bool { return e.command == "" || e.command == "capture" }

// writes reports whether the stores are written.
func (e examined) writes() bool { return e.command == "" || e.command == "sink" }

// ill counts what is to be mended.
func ill(found []finding) (bad int) {
	for _, f := range found {
		if !f.OK {
			bad++
		}
	}
	return bad
}

// passes reports of every sink whether what is committed now is in it within a time.
func (p *process) passes(ctx context.Context, within time.Duration) (found []finding, err error) {
	answer, err := p.await(ctx, freshness.Ask{Sinks: p.cfg.SinkNames()}, within)
	for _, s := range answer.Sinks {
		f := finding{System: "sink " + s.Sink, Check: "barrier", OK: s.Visible, Detail: "has what was committed"}
		if !s.Visible {
			f.Detail = "lacks something that was committed: " + few(s.WaitsFor)
			f.Fix = "see that the capture and the sink run, and what lockstep status says; a first copy takes its time"
		}
		found = append(found, f)
	}
	return found, err
}

// examine asks every system and reports all that it finds.
func (p *process) examine(ctx context.Context, part examined, timeout time.Duration) []finding {
	var found []finding
	ask := func(system string, do func(ctx context.Context) ([]finding, error)) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		some, err := do(ctx)
		for i := range some {
			some[i].System = system
			if some[i].OK {
				some[i].Fix = ""
			}
		}
		found = append(found, some...)
		if unfit, ok := errors.AsType[sinks.Unfit](err); ok {
			found = append(found, finding{System: system, Check: "fit", Detail: unfit.Problem, Fix: unfit.Mend})
		} else if refused, ok := errors.AsType[*certs.Refusal](err); ok {
			found = append(found, finding{System: system, Check: "certificate", Detail: refused.Problem, Fix: refused.Mend})
		} else if err != nil {
			found = append(found, finding{System: system, Check: "reachable", Detail: oneLine(err.Error()), Fix: "see that it runs and that address, user and password are right"})
		}
	}
	place := p.knownPlace(ctx, timeout)
	var tables []cdc.Table
	ask("source", func(ctx context.Context) ([]finding, error) {
		some, err := p.examineSource(ctx, part, place)
		if err != nil {
			return some, err
		}
		if helpers, err := mysql.TableNames(ctx, p.cfg.Source, p.cfg.HelperTable); err == nil && len(helpers) > 0 {
			some = append(some, finding{Check: "helper tables", OK: true, Detail: fmt.Sprintf("left out, because tools for online schema changes give such names (source.helper_tables): %s", joined(helpers))})
		}
		if tables, err = mysql.Tables(ctx, p.cfg.Source, p.captured); err != nil {
			tables = nil // a table that cannot be captured is a finding already
		}
		return append(some, otherKeys(place, tables)...), nil
	})
	ask("kafka", func(ctx context.Context) ([]finding, error) { return p.examineKafka(ctx, part, tables) })
	for _, name := range p.cfg.SinkNames() {
		ask("sink "+name, func(ctx context.Context) ([]finding, error) { return p.examineSink(ctx, part, name, tables, place) })
	}
	return found
}

// place is what Kafka knows of the source.
type place struct {
	saved     *cdc.Position
	capturing bool // a capture of this pipeline runs
}

// firstCopy reports whether a table is yet to be copied.
func (k *place) firstCopy(t cdc.TableName) bool {
	return k.saved == nil || !slices.Contains(k.saved.Copied, t.String())
}

// knownPlace is nil while Kafka does not answer.
func (p *process) knownPlace(ctx context.Context, timeout time.Duration) *place {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	saved, found, err := kafka.PeekCheckpoint(ctx, p.kafka, p.cfg.Prefix)
	if err != nil {
		return nil
	}
	_, members, err := p.kafka.GroupState(ctx, p.captureGroup())
	if err != nil {
		return nil
	}
	known := &place{capturing: members > 0}
	if found {
		known.saved = &saved
	}
	return known
}

func (p *process) examineSource(ctx context.Context, part examined, known *place) (found []finding, err error) {
	add := func(looked []mysql.Finding, err error) error {
		for _, f := range looked {
			found = append(found, finding{Check: f.Check, OK: f.OK, Detail: f.Detail, Fix: f.Fix})
		}
		return err
	}
	look := mysql.Inspect
	if !part.captures() {
		look = mysql.InspectTables
	}
	if err := add(look(ctx, p.cfg.Source, p.captured)); err != nil {
		return found, err
	}
	if known != nil && part.captures() { // else nobody can say whose the readers of the log are
		if err := add(mysql.InspectPlace(ctx, p.cfg.Source, known.saved, known.capturing)); err != nil {
			return found, err
		}
	}
	names, err := mysql.TableNames(ctx, p.cfg.Source, func(cdc.TableName) bool { return true })
	return append(found, p.idleEntries(names)...), err
}

// otherKeys finds the tables whose primary key is another than the sinks know their
// rows by.
func otherKeys(known *place, tables []cdc.Table) (found []finding) {
	if known == nil || known.saved == nil {
		return nil
	}
	for _, t := range tables {
		if err := mysql.SameKey(*known.saved, t); err != nil {
			found = append(found, finding{Check: "key of " + t.Name.String(), Detail: err.Problem, Fix: err.Remedy})
		}
	}
	return found
}

// idleEntries finds the entries of tables[] that take no table of the source.
func (p *process) idleEntries(names []cdc.TableName) (found []finding) {
	for i := range p.cfg.Tables {
		entry := &p.cfg.Tables[i]
		if entry.Skip {
			continue
		}
		var before string
		used := false
		for _, name := range names {
			if !entry.Matches(name) {
				continue
			}
			for j := range p.cfg.Tables[:i+1] {
				if p.cfg.Tables[j].Matches(name) {
					used = used || j == i
					before = p.cfg.Tables[j].Match
					break
				}
			}
		}
		if used {
			continue
		}
		f := finding{Check: fmt.Sprintf("tables[%d]", i),
			Detail: fmt.Sprintf("match %q takes no table that %s may see", entry.Match, p.cfg.Source.User),
			Fix:    fmt.Sprintf("mend or remove the entry, make the table, or GRANT SELECT on it to '%s'@'%%'", p.cfg.Source.User)}
		if before != "" {
			f.Detail = fmt.Sprintf("match %q takes no table, because match %q stands before it", entry.Match, before)
			f.Fix = "put the narrower entry first"
		}
		found = append(found, f)
	}
	return found
}

func (p *process) examineKafka(ctx context.Context, part examined, tables []cdc.Table) ([]finding, error) {
	var found []finding
	add := func(looked []kafka.Finding, err error) error {
		for _, f := range looked {
			found = append(found, finding{Check: f.Check, OK: f.OK, Detail: oneLine(f.Detail), Fix: f.Fix})
		}
		return err
	}
	specs, groups := p.used(part)
	topics, err := p.changeTopics(ctx)
	if err != nil {
		return nil, err
	}
	wanted := slices.Clone(topics)
	for _, t := range tables {
		topic, err := kafka.ChangeTopic(p.cfg.Prefix, t.Name)
		if err != nil {
			found = append(found, finding{Check: "topic of " + t.Name.String(), Detail: err.Error(), Fix: "leave the table out of tables[].match, or rename it"})
			continue
		}
		wanted = append(wanted, topic)
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	if part.captures() {
		for _, topic := range wanted {
			specs = append(specs, kafka.ChangeSpec(topic, p.cfg.Kafka.Partitions))
		}
	}
	if err := add(p.kafka.Inspect(ctx, specs)); err != nil {
		return found, err
	}
	write := make([]string, len(specs))
	for i, spec := range specs {
		write[i] = spec.Name
	}
	everything, _ := p.used(examined{})
	read := wanted
	for _, spec := range everything {
		read = append(read, spec.Name)
	}
	prefix := p.cfg.Prefix
	if part.command != "" {
		prefix = ""
	}
	if err := add(p.kafka.InspectRights(ctx, prefix, read, write, groups)); err != nil {
		return found, err
	}
	for _, group := range groups {
		var reads []string // the others are leases
		if slices.ContainsFunc(p.cfg.SinkNames(), func(name string) bool { return p.group(name) == group }) {
			reads = topics
		}
		if err := add(p.kafka.InspectGroup(ctx, group, reads)); err != nil {
			return found, err
		}
	}
	return found, nil
}

// used is what a pipeline, or a part of it, writes in Kafka beside the topics of its tables, and
// the groups that it joins. All that the pipeline has, each part reads.
func (p *process) used(part examined) (topics []kafka.TopicSpec, groups []string) {
	prefix, sinks := p.cfg.Prefix, p.cfg.SinkNames()
	topics = []kafka.TopicSpec{freshness.Spec(prefix), p.routeSpec()}
	switch part.command {
	case "reconcile":
		topics, groups, sinks = append(topics, reconcile.Spec(prefix)), []string{p.reconcileGroup()}, nil
	case "admin":
		topics = append(topics, kafka.SnapshotSpec(prefix), audit.Topic(prefix), dlq.JobsSpec(prefix))
	case "sink":
		topics = append(topics, kafka.SnapshotSpec(prefix), audit.Topic(prefix), dlq.JobsSpec(prefix))
		groups = []string{p.group(part.sink), p.replaysGroup()}
	default:
		topics = append(topics, kafka.CheckpointSpec(prefix), kafka.SnapshotSpec(prefix), audit.Topic(prefix), dlq.JobsSpec(prefix), reconcile.Spec(prefix))
		groups = []string{p.captureGroup()}
	}
	if part.command == "" {
		groups = append(groups, p.replaysGroup(), p.reconcileGroup())
	}
	for _, name := range sinks {
		topics = append(topics, p.lettersSpec(name))
		if part.command == "" {
			groups = append(groups, p.group(name))
		}
	}
	if p.cfg.Objectives.ConfigMap.Name != "" {
		groups = append(groups, p.configMapGroup())
	}
	return topics, groups
}

func (p *process) examineSink(ctx context.Context, part examined, name string, tables []cdc.Table, known *place) ([]finding, error) {
	s, err := p.openSink(ctx, name)
	if err != nil {
		return nil, err
	}
	defer s.close()
	detail, err := s.probe(ctx)
	if err != nil {
		return nil, err
	}
	found := []finding{{Check: p.cfg.Sinks[name].Store(), OK: true, Detail: detail}}
	if s.lacks != nil {
		lack, err := s.lacks(ctx, tables, part.writes())
		if err != nil {
			return found, err
		}
		if len(lack) > 0 {
			found = append(found, finding{Check: "rights", Detail: "the account lacks " + strings.Join(lack, ", "), Fix: "give its role these privileges (docs/privileges.md)"})
		}
	}
	if s.marks != nil {
		f, err := p.examineMarks(ctx, name, s)
		if err != nil {
			return found, err
		}
		found = append(found, f)
	}
	for _, t := range tables {
		if !s.takes(t.Name) {
			continue
		}
		f := finding{Check: "table " + t.Name.String(), OK: true, Detail: "can be stored"}
		if err := s.check(t); err != nil {
			f.OK, f.Detail, f.Fix = false, strings.ReplaceAll(err.Error(), "\n", "; "), "mend the table's entry in the configuration, or leave the table out"
		} else if known != nil && known.firstCopy(t.Name) {
			written, err := p.hasRecords(ctx, t.Name)
			if err == nil {
				err = s.mayTake(ctx, t, written)
			}
			if unfit, ok := errors.AsType[sinks.Unfit](err); ok {
				f.OK, f.Detail, f.Fix = false, unfit.Problem, unfit.Mend
			} else if err != nil {
				return found, err
			}
		}
		if f.OK && s.inspect != nil {
			notes, err := s.inspect(ctx, t)
			if len(notes) > 0 {
				f.Detail = strings.Join(notes, "; ")
			}
			if err == nil && len(notes) == 0 && known != nil { // no index yet, or no more
				var written bool
				var done int64
				if written, err = p.hasRecords(ctx, t.Name); err == nil && written {
					done, err = p.committed(ctx, name, t.Name)
				}
				if err == nil && done > 0 {
					err = fmt.Errorf("its index is gone; run the sink (lockstep sink %s): within a minute it makes the index again and has the capture copy the table", name)
				}
			}
			if err != nil {
				f.OK = false
				f.Detail, f.Fix = sinks.Advice(oneLine(err.Error()))
				f.Fix = cmp.Or(f.Fix, "see the log of the sink")
			}
		}
		found = append(found, f)
	}
	return found, nil
}

// examineMarks holds what a store says that it has against what was committed.
func (p *process) examineMarks(ctx context.Context, name string, s *store) (finding, error) {
	f := finding{Check: "losses", OK: true, Detail: "it has what was committed"}
	marks, err := s.marks(ctx, p.group(name))
	if err != nil {
		return f, err
	}
	topics, err := p.topicsOf(ctx, s.takes)
	if err != nil {
		return f, err
	}
	var lost []string
	for _, topic := range topics {
		_, committed, err := p.kafka.Progress(ctx, p.group(name), topic)
		if err != nil {
			return f, err
		}
		for id, offset := range committed {
			part := fmt.Sprintf("%s/%d", topic, id)
			if _, found := marks[part]; !found && offset > 0 {
				lost = append(lost, part)
			}
		}
	}
	if len(lost) > 0 {
		slices.Sort(lost)
		f.OK = false
		f.Detail = "it has nothing of what was committed for " + strings.Join(lost, ", ") + ": it was emptied, or made anew"
		f.Fix = fmt.Sprintf("run the sink (lockstep sink %s): it reads again what Kafka has, and has the capture copy the other tables", name)
	}
	return f, nil
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func joined(names []cdc.TableName) string {
	texts := make([]string, len(names))
	for i, n := range names {
		texts[i] = n.String()
	}
	return strings.Join(texts, ", ")
}
