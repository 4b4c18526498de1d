package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"lockstep/config"
	"lockstep/config/etcd"
	"lockstep/internal/nearest"
)

// app is what every command has at hand.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) (string, bool)

	configPath string
	output     string // table, json or yaml
	logLevel   string // empty: as the configuration says
	actor      string // who acts; empty: see who

	source  source       // of the configuration, once it was read
	started bool         // the command line was right and the command began
	last    *slog.Logger // takes the error that ends a process whose log is JSON
}

// newRoot builds the tree of commands.
func newRoot(a *app) *cobra.Command {
	root := group(&cobra.Command{
		Use:   "lockstep",
		Short: "Keep Elasticsearch and Redis in step with MySQL",
		Long: `Lockstep streams row changes from MySQL into Kafka and applies them to
Elasticsearch and Redis, so that no change goes missing quietly and no older
state replaces a newer one.`,
		Example: `  # begin with a commented configuration and check it
  lockstep config example > lockstep.yaml
  lockstep config check

  # ask the servers whether they will do, then run the whole pipeline
  lockstep doctor
  lockstep run`,
		SilenceErrors: true, // report prints them, once
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(outputs, a.output) {
				return fmt.Errorf("--output %q is not known; use table, json or yaml", a.output)
			}
			if a.logLevel != "" && !slices.Contains(logLevels, a.logLevel) {
				return fmt.Errorf("--log-level %q is not known; use debug, info, warn or error", a.logLevel)
			}
			return nil
		},
	})
	flags := root.PersistentFlags()
	flags.StringVarP(&a.configPath, "config", "c", "", "configuration file, or its key in etcd as etcd://HOST:PORT,.../KEY (default $LOCKSTEP_CONFIG, else lockstep.yaml)")
	flags.StringVarP(&a.output, "output", "o", "table", "how results are printed: table, json or yaml")
	flags.StringVar(&a.logLevel, "log-level", "", "debug, info, warn or error (default as configured)")
	for name, values := range map[string][]string{"output": outputs, "log-level": logLevels} {
		if err := root.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err)
		}
	}
	if err := root.MarkPersistentFlagFilename("config", "yaml", "yml"); err != nil {
		panic(err)
	}
	root.AddCommand(
		newRunCommand(a),
		newCaptureCommand(a),
		newSinkCommand(a),
		newAdminCommand(a),
		newDoctorCommand(a),
		newStatusCommand(a),
		newBarrierCommand(a),
		newSnapshotCommand(a),
		newRebuildCommand(a),
		newReconcileCommand(a),
		newDLQCommand(a),
		newAuditCommand(a),
		newConfigCommand(a),
		newVersionCommand(a),
		newDocsCommand(a),
	)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	root.InitDefaultCompletionCmd()
	a.watch(root)
	a.complete(root)
	return root
}

var outputs = []string{"table", "json", "yaml"}

var logLevels = []string{"debug", "info", "warn", "error"}

// watch notes the moment at which a command begins: what goes wrong before is a
// mistake in the command line.
func (a *app) watch(cmd *cobra.Command) {
	if do := cmd.RunE; do != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return do(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		a.watch(sub)
	}
}

// group makes cmd a command that only holds others: alone it prints its help,
// with a word that is none of its commands it is an error.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		var names []string
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		return fmt.Errorf("unknown command %q%s; see %s --help", args[0], didYouMean(args[0], names, ""), cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

func flagError(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	}
	name := unknown.GetSpecifiedName()
	if unknown.GetSpecifiedShortnames() != "" {
		return fmt.Errorf("unknown flag -%s; see %s --help", name, cmd.CommandPath())
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return fmt.Errorf("unknown flag --%s%s; see %s --help", name, didYouMean(name, names, "--"), cmd.CommandPath())
}

func didYouMean(word string, names []string, dashes string) string {
	if near := nearest.Name(word, names); near != "" {
		return fmt.Sprintf("; did you mean %s%s?", dashes, near)
	}
	return ""
}

// usageError is a mistake in the command line that only the command itself can
// see, such as the name of a sink that the configuration does not have.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// report prints err, once, and returns the exit code.
func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	if problems, ok := errors.AsType[config.Problems](err); ok {
		fmt.Fprintln(a.stderr, problems) // each begins with its place in the file
		return 2
	}
	if a.last != nil {
		a.last.Error("lockstep cannot go on", "error", err)
	} else {
		fmt.Fprintf(a.stderr, "lockstep: %v\n", err)
	}
	if _, ok := errors.AsType[unwellError](err); ok {
		return 3
	}
	if _, ok := errors.AsType[differsError](err); ok {
		return 1
	}
	if _, ok := errors.AsType[usageError](err); ok || !a.started {
		return 2
	}
	if _, ok := errors.AsType[untoldError](err); ok {
		return 3
	}
	return 1
}

// configFile is what messages call the configuration: the path of its file, or the address of
// its key in etcd.
func (a *app) configFile() string { return etcd.WithoutLogin(a.configName()) }

// configName is the flag, $LOCKSTEP_CONFIG, or lockstep.yaml.
func (a *app) configName() string {
	if a.configPath != "" {
		return a.configPath
	}
	if path, _ := a.env("LOCKSTEP_CONFIG"); path != "" {
		return path
	}
	return "lockstep.yaml"
}

// loadConfig reads and checks the configuration. Its errors are for report.
func (a *app) loadConfig(ctx context.Context) (*config.Config, error) {
	text, err := a.readConfig(ctx)
	return text.cfg, err
}

func (a *app) readConfig(ctx context.Context) (configText, error) {
	if a.source == nil {
		var err error
		if a.source, err = a.sourceOf(a.configName()); err != nil {
			return configText{}, err
		}
	}
	text, err := a.parse(ctx, a.configName(), a.source)
	if err == nil && a.logLevel != "" {
		text.cfg.Log.Level = a.logLevel
	}
	return text, err
}

// levelOf is the level of a configuration, as it can be changed.
func levelOf(c *config.Config) *slog.LevelVar {
	level := new(slog.LevelVar)
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		panic(err) // the configuration was checked
	}
	return level
}

// logger writes to standard error as the configuration says, from a level on. Every line
// carries the pipeline's prefix.
func (a *app) logger(c *config.Config, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(a.stderr, options)
	if c.Log.Format == "json" {
		handler = slog.NewJSONHandler(a.stderr, options)
	}
	return slog.New(handler).With("pipeline", c.Prefix)
}

// quiet is the log of a command that answers once: only warnings.
func (a *app) quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// show prints a result: v as JSON or YAML when that was asked for, else what table
// writes, whose cells end with tabs.
func (a *app) show(v any, table func(w io.Writer)) error {
	if a.output != "table" {
		var text bytes.Buffer
		e := json.NewEncoder(&text)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(v); err != nil {
			return err
		}
		out := text.Bytes()
		if a.output == "yaml" { // the same fields in the same order
			var err error
			if out, err = yaml.JSONToYAML(out); err != nil {
				return err
			}
		}
		_, err := a.stdout.Write(out)
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// sinkNamed returns the sink of this name, or a usageError that names those there are.
func (a *app) sinkNamed(c *config.Config, name string) (config.Sink, error) {
	s, ok := c.Sinks[name]
	if !ok {
		return s, usageError{fmt.Errorf("%s has no sink %q; it has %s", a.configFile(), name, strings.Join(c.SinkNames(), ", "))}
	}
	return s, nil
}
