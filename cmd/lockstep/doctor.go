package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/kafka"
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
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check source, Kafka and sinks, and say what mends each finding",
		Long: `Doctor looks at everything the pipeline needs of the source, of Kafka and of
every sink, in one run, and prints for each finding the statement that mends it. It
changes nothing.

It exits with 0 when all is well and with 1 when something is to be mended.`,
		Example: `  lockstep doctor -c lockstep.yaml

  # only what is wrong, for a script
  lockstep doctor -o json | jq '.[] | select(.ok | not)'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			p, err := newProcess(cfg, a.quiet())
			if err != nil {
				return err
			}
			defer p.kafka.Close()
			found := p.examine(cmd.Context(), timeout)
			bad := 0
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
			for _, f := range found {
				if !f.OK {
					bad++
				}
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d checks found something to mend", bad, len(found))
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long each system may take to answer")
	return cmd
}

// examine asks every system and reports all that it finds.
func (p *process) examine(ctx context.Context, timeout time.Duration) []finding {
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
		if err != nil {
			found = append(found, finding{System: system, Check: "reachable", Detail: oneLine(err.Error()), Fix: "see that it runs and that address, user and password are right"})
		}
	}
	var tables []cdc.Table
	ask("source", func(ctx context.Context) ([]finding, error) {
		var some []finding
		looked, err := mysql.Inspect(ctx, p.cfg.Source, p.captured)
		for _, f := range looked {
			some = append(some, finding{Check: f.Check, OK: f.OK, Detail: f.Detail, Fix: f.Fix})
		}
		if err != nil {
			return some, err
		}
		if helpers, err := mysql.TableNames(ctx, p.cfg.Source, p.cfg.HelperTable); err == nil && len(helpers) > 0 {
			some = append(some, finding{Check: "helper tables", OK: true, Detail: fmt.Sprintf("left out, because tools for online schema changes give such names (source.helper_tables): %s", joined(helpers))})
		}
		tables, err = mysql.Tables(ctx, p.cfg.Source, p.captured)
		if err != nil {
			tables = nil // a table that cannot be captured is a finding already
		}
		return some, nil
	})
	ask("kafka", func(ctx context.Context) ([]finding, error) { return p.examineKafka(ctx, tables) })
	for _, name := range p.cfg.SinkNames() {
		ask("sink "+name, func(ctx context.Context) ([]finding, error) { return p.examineSink(ctx, name, tables) })
	}
	return found
}

func (p *process) examineKafka(ctx context.Context, tables []cdc.Table) ([]finding, error) {
	topics, err := p.kafka.Topics(ctx)
	if err != nil {
		return nil, err
	}
	found := []finding{{Check: "brokers", OK: true, Detail: fmt.Sprintf("%s answers, %d topics", strings.Join(p.cfg.Kafka.Brokers, ", "), len(topics))}}
	for _, t := range tables {
		if _, err := kafka.ChangeTopic(p.cfg.Prefix, t.Name); err != nil {
			found = append(found, finding{Check: "topic of " + t.Name.String(), Detail: err.Error(), Fix: "leave the table out of tables[].match, or rename it"})
		}
	}
	for _, topic := range topics {
		table, ok := kafka.TableOf(p.cfg.Prefix, topic)
		if !ok || !p.captured(table) {
			continue
		}
		ends, err := p.kafka.EndOffsets(ctx, topic)
		if err != nil {
			return found, err
		}
		f := finding{Check: "topic " + topic, OK: len(ends) == p.cfg.Kafka.Partitions, Detail: fmt.Sprintf("%d partitions", len(ends))}
		if !f.OK {
			f.Detail = fmt.Sprintf("%d partitions, but kafka.partitions is %d", len(ends), p.cfg.Kafka.Partitions)
			f.Fix = fmt.Sprintf("set kafka.partitions: %d", len(ends))
		}
		found = append(found, f)
	}
	return found, nil
}

func (p *process) examineSink(ctx context.Context, name string, tables []cdc.Table) ([]finding, error) {
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
	for _, t := range tables {
		if !s.takes(t.Name) {
			continue
		}
		f := finding{Check: "table " + t.Name.String(), OK: true, Detail: "can be stored"}
		if err := s.check(t); err != nil {
			f.OK, f.Detail, f.Fix = false, err.Error(), "mend the table's entry in the configuration, or leave the table out"
		}
		found = append(found, f)
	}
	return found, nil
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func joined(names []cdc.TableName) string {
	texts := make([]string, len(names))
	for i, n := range names {
		texts[i] = n.String()
	}
	return strings.Join(texts, ", ")
}
