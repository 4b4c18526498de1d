package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/cdc"
	"lockstep/sinks/elastic"
)

// rebuildFlags say what is to be rebuilt and how.
type rebuildFlags struct {
	table                     string
	dryRun, leaveOut, dropOld bool
}

func newRebuildCommand(a *app) *cobra.Command {
	var f rebuildFlags
	cmd := &cobra.Command{
		Use:   "rebuild SINK --table DB.TABLE",
		Short: "Put a new index with the mapping of today behind a table's alias",
		Long: `Rebuild makes a new Elasticsearch index for a table as its columns and its
configuration are today, copies every document of the old one into it under its
version, and moves the alias in one step. Readers see all rows all the time. The sink
may run meanwhile or stand still: at the end Elasticsearch refuses writes to the old
index for a moment, and the sink holds its changes until the alias has moved.

Documents keep the values they have; when ALTER TABLE has changed values, the copy of
the table that it starts brings the new ones (source.after_alter). A document that the
new mapping refuses stops the rebuild, and nothing has changed.

It is safe to repeat after a kill: what was left is taken away and it begins anew. The
old index stays until --drop-old deletes it. With deletes: hard the new index does not
know the versions of rows that were deleted before, just as after a restart of a node.

It exits with 0 when the alias has moved and with 1 when it is as it was.`,
		Example: `  lockstep rebuild search --table shop.orders --dry-run
  lockstep rebuild search --table shop.orders

  # when the new index has proved good
  lockstep rebuild search --table shop.orders --drop-old`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSink,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.rebuild(cmd.Context(), args[0], f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.table, "table", "", "the table, as db.table (required)")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would be done and change nothing")
	flags.BoolVar(&f.leaveOut, "leave-out", false, "go on without documents that the new mapping refuses; list them")
	flags.BoolVar(&f.dropOld, "drop-old", false, "rebuild nothing; delete the indices that earlier rebuilds have left")
	a.addActor(cmd)
	return cmd
}

func (a *app) rebuild(ctx context.Context, name string, f rebuildFlags) error {
	cfg, err := a.loadConfig(ctx)
	if err != nil {
		return err
	}
	sink, err := a.sinkNamed(cfg, name)
	if err != nil {
		return err
	}
	if sink.Elastic == nil {
		return usageError{fmt.Errorf("the sink %s is %s, which has no index to rebuild", name, sink.Store())}
	}
	table, err := a.snapshotTable(cfg, snapshotFlags{table: f.table})
	if err != nil {
		return err
	}
	if f.dropOld && f.leaveOut {
		return usageError{fmt.Errorf("--drop-old rebuilds nothing, so --leave-out has no place beside it; leave one out")}
	}
	do := func(ctx context.Context, p *process) (map[string]int, error) {
		s, err := p.elasticSink(name, *sink.Elastic, p.newShaper(name))
		if err != nil {
			return nil, err
		}
		defer s.Close()
		if f.dropOld {
			return a.dropOld(ctx, s, table, f.dryRun)
		}
		return a.rebuildIndex(ctx, s, name, table, f)
	}
	if f.dryRun {
		p, err := newProcess(cfg, a.quiet())
		if err != nil {
			return err
		}
		defer p.kafka.Close()
		_, err = do(ctx, p)
		return err
	}
	act, what := "rebuild", map[string]string{"sink": name, "table": f.table}
	if f.dropOld {
		act = "rebuild.drop-old"
	}
	if f.leaveOut {
		what["leave_out"] = "true"
	}
	return a.withLetters(ctx, func(ctx context.Context, o *office) error {
		return o.act(ctx, a, act, what, "", func() (map[string]int, error) { return do(ctx, o.process) })
	})
}

func (a *app) rebuildIndex(ctx context.Context, s *elastic.Sink, name string, table cdc.TableName, f rebuildFlags) (map[string]int, error) {
	out, err := s.Rebuild(ctx, elastic.Rebuild{Table: table, DryRun: f.dryRun, LeaveOut: f.leaveOut, Progress: a.rebuilding()})
	if err != nil {
		return nil, fmt.Errorf("rebuild of %s in %s: %w", table, name, err)
	}
	counts := map[string]int{"documents": int(out.Documents), "left_out": len(out.LeftOut)}
	return counts, a.show(out, func(w io.Writer) {
		if f.dryRun {
			fmt.Fprintf(w, "%s with %d documents would be copied to %s behind %s; nothing was changed\n", out.From, out.Documents, out.To, out.Alias)
		} else {
			fmt.Fprintf(w, "%s leads to %s with %d documents; writes were held for %s\n", out.Alias, out.To, out.Documents, time.Duration(out.HeldMilli)*time.Millisecond)
		}
		for _, change := range out.Changes {
			fmt.Fprintf(w, "  %s\n", change)
		}
		if len(out.LeftOut) > 0 {
			fmt.Fprintf(w, "%d documents were left out: %s\ncopy their rows anew: lockstep snapshot start --table %s\n", len(out.LeftOut), shorten(strings.Join(out.LeftOut, ", "), 400), table)
		}
		if !f.dryRun {
			fmt.Fprintf(w, "%s is still there; delete it: lockstep rebuild %s --table %s --drop-old\n", out.From, name, table)
		}
	})
}

func (a *app) dropOld(ctx context.Context, s *elastic.Sink, table cdc.TableName, dry bool) (map[string]int, error) {
	dropped, err := s.DropOld(ctx, table, dry)
	if err != nil {
		return nil, err
	}
	if dropped == nil {
		dropped = []string{}
	}
	return map[string]int{"dropped": len(dropped)}, a.show(map[string]any{"dropped": dropped, "dry_run": dry}, func(w io.Writer) {
		switch {
		case len(dropped) == 0:
			fmt.Fprintf(w, "no old index of %s is left\n", table)
		case dry:
			fmt.Fprintf(w, "would be deleted: %s\n", strings.Join(dropped, ", "))
		default:
			fmt.Fprintf(w, "deleted: %s\n", strings.Join(dropped, ", "))
		}
	})
}

// rebuilding shows on standard error how far a rebuild is, once a second.
func (a *app) rebuilding() func(doing string, done, of int64) {
	var last time.Time
	was := ""
	return func(doing string, done, of int64) {
		if doing == was && time.Since(last) < time.Second {
			return
		}
		was, last = doing, time.Now()
		fmt.Fprintf(a.stderr, "%s: %d of %d\n", doing, done, of)
	}
}
