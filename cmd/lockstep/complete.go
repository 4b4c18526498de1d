package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"lockstep/cdc"
	"lockstep/config"
	"lockstep/dlq"
	"lockstep/kafka"
)

// completeWithin is for how long a shell waits for what only Kafka knows.
const completeWithin = 3 * time.Second

// completeSink offers the names of the configured sinks as the first argument.
func (a *app) completeSink(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	sinks, _ := a.names()
	return sinks, cobra.ShellCompDirectiveNoFileComp
}

// names are the sinks and tables that the configuration names, as far as it can be read.
func (a *app) names() (sinks, tables []string) {
	from, err := a.sourceOf(a.configName())
	if err != nil {
		return nil, nil
	}
	data, _, err := from.read(context.Background())
	if err != nil {
		return nil, nil
	}
	return config.ListNames(data)
}

// filed are the flags that take a path, which a shell completes by itself.
var filed = []string{"config", "against", "file", "keys", "patch", "token-file", "ca-file", "cert-file", "key-file"}

// complete has a shell offer what flags and arguments take that nobody has said it of: the
// names of the configuration, or nothing in place of files.
func (a *app) complete(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if _, known := cmd.GetFlagCompletionFunc(f.Name); known || slices.Contains(filed, f.Name) {
			return
		}
		offer := cobra.CompletionFunc(cobra.NoFileCompletions)
		switch f.Name {
		case "sink":
			offer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
				return a.completeSink(nil, nil, "")
			}
		case "fingerprint":
			offer = a.completeFingerprints
		case "table":
			offer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
				_, tables := a.names()
				return tables, cobra.ShellCompDirectiveNoFileComp
			}
		}
		if err := cmd.RegisterFlagCompletionFunc(f.Name, offer); err != nil {
			panic(err)
		}
	})
	takesFile := strings.HasSuffix(cmd.Use, " FILE") || strings.HasSuffix(cmd.Use, " DIR")
	if cmd.ValidArgsFunction == nil && !cmd.HasSubCommands() && !takesFile {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		a.complete(sub)
	}
}

// completed offers what do finds in Kafka and is not on the command line yet. A shell has no place
// for what goes wrong: then nothing is offered, and nothing said.
func (a *app) completed(cmd *cobra.Command, args []string, do func(ctx context.Context, silent *app, o *office) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	silent := *a
	silent.stderr = io.Discard
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
	defer cancel()
	var offers []string
	_ = silent.withLetters(ctx, func(ctx context.Context, o *office) (err error) {
		offers, err = do(ctx, &silent, o)
		return err
	})
	return slices.DeleteFunc(offers, func(offer string) bool {
		name, _, _ := strings.Cut(offer, "\t")
		return slices.Contains(args, name)
	}), cobra.ShellCompDirectiveNoFileComp
}

// one completes the first argument alone.
func one(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(cmd, args, word)
	}
}

// made reports whether there is a topic; who only completes makes none.
func (o *office) made(ctx context.Context, topic string) (bool, error) {
	topics, err := o.kafka.Topics(ctx)
	return slices.Contains(topics, topic), err
}

// completeLetters offers the IDs of open dead letters that the flags given so far choose; without flags, all.
func (a *app) completeLetters(flags *letterFlags) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.completed(cmd, args, func(ctx context.Context, _ *app, o *office) (ids []string, err error) {
			query, err := dlq.ParseQuery(flags.given(cmd), o.cfg.SinkNames(), time.Now())
			if err != nil {
				return nil, err
			}
			letters, err := o.Choose(ctx, query)
			for _, l := range letters {
				ids = append(ids, fmt.Sprintf("%s\t%s %s, %s, %s", l.ID, l.Table, shorten(oneLine(l.Key), 40), l.State, l.Class))
			}
			return ids, err
		})
	}
}

// completeFingerprints offers the causes of the open dead letters.
func (a *app) completeFingerprints(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completed(cmd, nil, func(ctx context.Context, _ *app, o *office) (prints []string, err error) {
		letters, err := o.Choose(ctx, dlq.Query{})
		for _, g := range dlq.Groups(letters) {
			prints = append(prints, fmt.Sprintf("%s\t%d in %s, %s", g.Fingerprint, g.Count, g.Sink, shorten(oneLine(g.Reason), 80)))
		}
		return prints, err
	})
}

// completeJobs offers the IDs of replays, or of those that have not ended.
func (a *app) completeJobs(open bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.completed(cmd, args, func(ctx context.Context, silent *app, o *office) (ids []string, err error) {
			if made, err := o.made(ctx, dlq.JobsTopic(o.cfg.Prefix)); !made {
				return nil, err
			}
			list, err := o.jobs(silent).List(ctx)
			for _, s := range list {
				if !open || !s.State.Over() {
					ids = append(ids, fmt.Sprintf("%s\t%s, %d of %d", s.ID, s.State, s.Done, s.Total))
				}
			}
			return ids, err
		})
	}
}

// completeSnapshots offers the IDs of snapshots that have not ended and are not as they are wanted.
func (a *app) completeSnapshots(want cdc.SnapshotState) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.completed(cmd, args, func(ctx context.Context, silent *app, o *office) (ids []string, err error) {
			if made, err := o.made(ctx, kafka.SnapshotTopic(o.cfg.Prefix)); !made {
				return nil, err
			}
			d, err := silent.snapshots(ctx, o)
			if err != nil {
				return nil, err
			}
			for _, sn := range d.all() {
				if state := cmp.Or(sn.Wanted, sn.State); !ended(state) && state != want {
					ids = append(ids, fmt.Sprintf("%s\t%s, %s, %d rows", sn.ID, sn.Table, sn.State, sn.Rows))
				}
			}
			return ids, nil
		})
	}
}
