package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"lockstep/admin"
	"lockstep/config"
	"lockstep/kafka"
)

func newConfigCommand(a *app) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "config",
		Short: "Check a configuration, or get one to begin with",
		Example: `  lockstep config example > lockstep.yaml
  lockstep config check -c lockstep.yaml
  lockstep config schema > lockstep.schema.json`,
	})
	cmd.AddCommand(newConfigCheckCommand(a),
		&cobra.Command{
			Use:   "schema",
			Short: "Print the JSON schema of the configuration",
			Long: `Prints the JSON schema of the configuration file. An editor that knows YAML
schemas completes and checks with it while you write; put this line at the top:

  # yaml-language-server: $schema=lockstep.schema.json`,
			Example: `  lockstep config schema > lockstep.schema.json`,
			Args:    cobra.NoArgs,
			RunE:    func(*cobra.Command, []string) error { return write(a.stdout, config.Schema) },
		},
		&cobra.Command{
			Use:     "example",
			Short:   "Print a commented configuration to begin with",
			Example: `  lockstep config example > lockstep.yaml`,
			Args:    cobra.NoArgs,
			RunE:    func(*cobra.Command, []string) error { return write(a.stdout, config.Example) },
		},
	)
	return cmd
}

func newConfigCheckCommand(a *app) *cobra.Command {
	var against string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Name every mistake in the configuration",
		Long: `Reads the configuration, with its variables and secret files, and names every
mistake in it with file, line and column. Nothing is connected to, save the etcd that
holds it; lockstep doctor does that. The exit code is 0 when all is well and 2 when something is wrong.

With --against it also says what a running process would do that has the other file
now and gets this one: which fields count at once, which parts begin anew, and which
fields only a restart of the process can change. For those the exit code is 1. And it
reads the files of tokens and certificates that such a process reads with a change.`,
		Example: `  lockstep config check
  lockstep config check -c deploy/shop.yaml
  lockstep config check -o json | jq '.problems[].line'

  # before the file of a running process is replaced
  lockstep config check -c new.yaml --against /etc/lockstep/lockstep.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return checkConfig(cmd.Context(), a, against) },
	}
	cmd.Flags().StringVar(&against, "against", "", "the file, or the key in etcd, that a process runs with")
	return cmd
}

func write(w io.Writer, text []byte) error {
	_, err := w.Write(text)
	return err
}

// checked is the answer of config check, as JSON has it.
type checked struct {
	File     string          `json:"file"`
	OK       bool            `json:"ok"`
	Problems config.Problems `json:"problems"`
	Prefix   string          `json:"prefix,omitempty"`
	Sinks    []checkedSink   `json:"sinks,omitempty"`
	Tables   []checkedTable  `json:"tables,omitempty"`
	Reload   *plan           `json:"reload,omitempty"` // from --against
}

type checkedSink struct {
	Name      string   `json:"name"`
	Store     string   `json:"store"`
	Addresses []string `json:"addresses"`
}

type checkedTable struct {
	Match        string `json:"match"`
	Skip         bool   `json:"skip,omitempty"`
	ElasticIndex string `json:"elastic_index,omitempty"`
	RedisKey     string `json:"redis_key,omitempty"`
	RedisMode    string `json:"redis_mode,omitempty"`
}

func checkConfig(ctx context.Context, a *app, against string) error {
	c, err := a.loadConfig(ctx)
	if err != nil {
		problems, _ := errors.AsType[config.Problems](err)
		if a.output != "table" {
			if err := a.show(checked{File: a.configFile(), Problems: problems}, nil); err != nil {
				return err
			}
		}
		return err
	}
	sum := summary(c)
	sum.File = a.configFile()
	refused := error(nil)
	if against != "" {
		of, err := a.sourceOf(against)
		if err != nil {
			return err
		}
		from, err := a.parse(ctx, against, of)
		if err != nil {
			return err
		}
		if err := checkFiles(c, a.quiet()); err != nil {
			return config.Problems{{File: sum.File, Message: err.Error()}}
		}
		reload := planOf(from.cfg, c)
		sum.Reload, refused = &reload, reload.refusal()
	}
	return errors.Join(a.show(sum, func(w io.Writer) {
		fmt.Fprintf(w, "%s is ok: pipeline %s, %s, %s\n", sum.File, sum.Prefix, count(len(sum.Sinks), "sink"), count(len(sum.Tables), "table entry"))
		fmt.Fprint(w, "\nSINK\tSTORE\tADDRESSES\n")
		for _, s := range sum.Sinks {
			fmt.Fprintf(w, "%s\t%s\t%s\n", s.Name, s.Store, strings.Join(s.Addresses, ", "))
		}
		fmt.Fprint(w, "\nTABLE\tELASTIC INDEX\tREDIS KEY\tREDIS MODE\n")
		for _, t := range sum.Tables {
			if t.Skip {
				fmt.Fprintf(w, "%s\tleft out\t\t\n", t.Match)
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.Match, dash(t.ElasticIndex), dash(t.RedisKey), dash(t.RedisMode))
		}
		if r := sum.Reload; r != nil {
			fmt.Fprintf(w, "\na process that runs with %s and gets this file:\nchanged: %s\nat once: %s\nbegin anew: %s\nnot without a restart of the process: %s\n",
				against, listed(r.Fields), listed(r.AtOnce), listed(r.Restarts), listed(r.Refused))
		}
	}), refused)
}

// checkFiles reports what a running process would say of the files that it reads with a change.
func checkFiles(cfg *config.Config, log *slog.Logger) error {
	_, tokens := admin.OpenTokens(cfg.Admin, log)
	_, certificates := admin.OpenCertificates(cfg.Admin.TLS, log)
	client, login := kafka.Open(cfg.Kafka, "lockstep-"+cfg.Prefix, log)
	if login != nil {
		login = fmt.Errorf("kafka.%w", login)
	} else {
		client.Close()
	}
	return errors.Join(cfg.Source.TLS.CheckFiles(), tokens, certificates, login)
}

func listed(names []string) string { return dash(strings.Join(names, ", ")) }

func summary(c *config.Config) checked {
	sum := checked{OK: true, Problems: config.Problems{}, Prefix: c.Prefix}
	stores := map[string]bool{}
	for _, name := range c.SinkNames() {
		s := c.Sinks[name]
		one := checkedSink{Name: name, Store: s.Store()}
		if s.Elastic != nil {
			one.Addresses = s.Elastic.Addresses
		} else {
			one.Addresses = s.Redis.Addresses
		}
		stores[one.Store] = true
		sum.Sinks = append(sum.Sinks, one)
	}
	for _, t := range c.Tables {
		one := checkedTable{Match: t.Match, Skip: t.Skip}
		if stores["elastic"] && !t.Skip {
			one.ElasticIndex = t.Elastic.Index
		}
		if stores["redis"] && !t.Skip {
			one.RedisKey, one.RedisMode = t.Redis.Key, t.Redis.Mode
		}
		sum.Tables = append(sum.Tables, one)
	}
	return sum
}

func count(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "y"):
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(noun, "y"))
	case strings.HasSuffix(noun, "ch"):
		return fmt.Sprintf("%d %ses", n, noun)
	default:
		return fmt.Sprintf("%d %ss", n, noun)
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
