package main

import (
	"errors"
	"fmt"
	"math"

	"github.com/spf13/cobra"

	"lockstep/audit"
	"lockstep/cdc"
	"lockstep/cdc/mysql"
)

// captureFlags are what an operator may tell the capture at one start.
type captureFlags struct {
	resnapshot bool
	onGap      string
	epoch      uint16
	skipGTID   string
	actor      string // who gave them
}

// acts are those of the flags that are an operator's act, as they are written down.
func (f captureFlags) acts() (acts []audit.Act) {
	add := func(given bool, name string, filter map[string]string) {
		if given {
			acts = append(acts, audit.Act{Actor: f.actor, Via: "cli", Name: name, Filter: filter})
		}
	}
	add(f.resnapshot, "snapshot.resnapshot", nil)
	add(f.skipGTID != "", "capture.skip_gtid", map[string]string{"gtid": f.skipGTID})
	add(f.epoch > 0, "capture.epoch", map[string]string{"epoch": fmt.Sprint(f.epoch)})
	return acts
}

func (f *captureFlags) add(cmd *cobra.Command) {
	var epoch uint
	flags := cmd.Flags()
	flags.BoolVar(&f.resnapshot, "resnapshot", false, "copy every table again under a new epoch and remove from the sinks what is not in the source any more (for one start, not for a unit file)")
	flags.StringVar(&f.onGap, "on-gap", "stop", "what to do when the source has purged log that was not read: stop, or resnapshot to go on with a new copy of every table")
	flags.UintVar(&epoch, "epoch", 0, fmt.Sprintf("the epoch to begin with when none is saved, 1 to %d", cdc.MaxEpoch))
	flags.StringVar(&f.skipGTID, "skip-gtid", "", "pass over the statement of this one transaction, which capture stopped at")
	if err := cmd.RegisterFlagCompletionFunc("on-gap", cobra.FixedCompletions([]string{"stop", "resnapshot"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("epoch") && epoch < 1 || epoch > min(cdc.MaxEpoch, math.MaxUint16) {
			return usageError{fmt.Errorf("--epoch %d is no epoch; use 1 to %d", epoch, cdc.MaxEpoch)}
		}
		f.epoch = uint16(epoch)
		if cmd.Flags().Changed("skip-gtid") && !mysql.IsGTID(f.skipGTID) {
			return usageError{fmt.Errorf("--skip-gtid %q is not the GTID of a transaction; copy it from the sentence that capture stopped with", f.skipGTID)}
		}
		if f.onGap != "stop" && f.onGap != mysql.OnGapResnapshot {
			return usageError{fmt.Errorf("--on-gap %q is not known; use stop or %s", f.onGap, mysql.OnGapResnapshot)}
		}
		return nil
	}
}

func newRunCommand(a *app) *cobra.Command {
	var flags captureFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the whole pipeline in one process: capture and every sink",
		Long: `Run reads the source into Kafka and applies the changes to every configured
sink, until it gets SIGTERM or SIGINT. It then finishes what is under way, saves
its place and ends within 10 seconds; nothing is lost, whenever it is stopped or
killed.

The first start copies the tables and then follows the binary log. A later start
goes on where the last one was.`,
		Example: `  # the pipeline of a configuration file
  lockstep run -c lockstep.yaml

  # the sinks are to be made anew from the tables
  lockstep run --resnapshot`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig(cmd.Context())
			if err != nil {
				return err
			}
			names := cfg.SinkNames()
			return a.serve(cmd.Context(), parts{capture: &flags, sinks: names, compare: names, enabled: true})
		},
	}
	flags.add(cmd)
	a.addActor(cmd)
	return cmd
}

func newCaptureCommand(a *app) *cobra.Command {
	var flags captureFlags
	cmd := &cobra.Command{
		Use:   "capture",
		Short: "Read the source into Kafka",
		Long: `Capture copies the configured tables, follows the binary log and writes every
row change to Kafka. Of several captures of a pipeline one is active and the others
stand by: one of them takes over when it ends or is silent for longer than
kafka.lease_timeout. Run any number of sinks beside it.

A capture that cannot go on ends with an error; one that stands by then tries, and
ends with the same.`,
		Example: `  lockstep capture -c lockstep.yaml

  # capture stopped at a statement that changes rows; its tables are copied again afterwards
  lockstep capture --skip-gtid 3e11fa47-71ca-11e1-9e33-c80aa9429562:23`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.serve(cmd.Context(), parts{capture: &flags})
		},
	}
	flags.add(cmd)
	a.addActor(cmd)
	return cmd
}

func newSinkCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "sink NAME",
		Short: "Apply changes from Kafka to one sink",
		Long: `Sink joins the consumer group of one sink and applies the changes of its share
of the partitions. Start more of them to share the work.`,
		Example: `  lockstep sink search -c lockstep.yaml`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name one sink of the configuration, for example: lockstep sink search")
			}
			return nil
		},
		ValidArgsFunction: a.completeSink,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.serve(cmd.Context(), parts{sinks: args})
		},
	}
}

func newAdminCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "admin",
		Short: "Serve the API for operators, and run nothing else",
		Long: `Admin serves the API of docs/api.md at admin.listen: dead letters, replays,
freshness, barriers and where to read. It captures nothing and applies nothing, so it may
stand where operators and gateways reach it, in any number. Replays that it is asked for
are carried out by a process with a sink.`,
		Example: `  lockstep admin -c lockstep.yaml`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig(cmd.Context())
			if err != nil {
				return err
			}
			if cfg.Admin.Listen == "" {
				return usageError{fmt.Errorf("admin.listen is empty in %s, so there is nothing to serve; give it a host:port, such as 127.0.0.1:8080", a.configFile())}
			}
			return a.serve(cmd.Context(), parts{admin: true})
		},
	}
}
