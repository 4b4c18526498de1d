package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/dlq"
	"lockstep/freshness"
	"lockstep/kafka"
	"lockstep/sinks"
)

// barrierFlags are what lockstep barrier is told.
type barrierFlags struct {
	sink, table, gtid string
	timeout           time.Duration
	search            bool
}

func newBarrierCommand(a *app) *cobra.Command {
	var f barrierFlags
	cmd := &cobra.Command{
		Use:   "barrier",
		Short: "Wait until what is committed is in the sinks",
		Long: `Barrier returns when everything that was committed in the source before it was
called, or what --gtid names, is in the sinks: whoever reads them then finds it. It
asks the capture and the workers of the sinks, wherever they run, and never returns
early; what it does not know it waits for.

It exits with 0 when all is visible, and with 1 when the timeout was over before, with
a sentence for what it waits, or when a dead letter hides a row.`,
		Example: `  # after a job that wrote to MySQL
  lockstep barrier --timeout 30s

  # one sink and one table, up to a transaction
  lockstep barrier --sink search --table shop.orders --gtid 3e11fa47-71ca-11e1-9e33-c80aa9429562:23`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.barrier(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.sink, "sink", "", "the sink that matters (default every sink)")
	flags.StringVar(&f.table, "table", "", "db.table, the table that matters (default every table)")
	flags.StringVar(&f.gtid, "gtid", "", "the transactions that are waited for, as the source writes GTIDs (default all that are committed now)")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Second, "how long to wait")
	flags.BoolVar(&f.search, "search", false, "wait until searches find it, too, which costs a refresh of the Elasticsearch indices")
	return cmd
}

func (a *app) barrier(ctx context.Context, f barrierFlags) error {
	cfg, err := a.loadConfig(ctx)
	if err != nil {
		return err
	}
	ask := freshness.Ask{Sinks: cfg.SinkNames(), Table: f.table, GTIDs: f.gtid, Search: f.search}
	if f.sink != "" {
		if _, err := a.sinkNamed(cfg, f.sink); err != nil {
			return err
		}
		ask.Sinks = []string{f.sink}
	}
	if f.timeout <= 0 {
		return usageError{fmt.Errorf("--timeout %s is no time to wait; write for example 10s", f.timeout)}
	}
	p, err := newProcess(cfg, a.quiet())
	if err != nil {
		return err
	}
	defer p.kafka.Close()
	if err := p.checkAsk(ask); err != nil {
		return flagMistake(err)
	}
	answer, err := p.await(ctx, ask, f.timeout)
	if err != nil {
		return err
	}
	if err := a.show(answer, func(w io.Writer) { printBarrier(w, answer) }); err != nil {
		return err
	}
	if !answer.Visible {
		return notVisible(answer, f.timeout)
	}
	return nil
}

// await asks a barrier in a process that runs nothing else.
func (p *process) await(ctx context.Context, ask freshness.Ask, timeout time.Duration) (freshness.Answer, error) {
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- p.hub.Run(running) }()
	defer func() {
		stop()
		<-ended
		p.commits.Close()
	}()
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return p.barrier.Await(waiting, ask)
}

func printBarrier(w io.Writer, answer freshness.Answer) {
	fmt.Fprintln(w, "SINK\tVISIBLE\tWAITS FOR")
	for _, s := range answer.Sinks {
		visible := "yes"
		if !s.Visible {
			visible = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", s.Sink, visible, dash(few(s.WaitsFor)))
	}
}

// notVisible says for whom a barrier waits.
func notVisible(answer freshness.Answer, timeout time.Duration) error {
	var names, why []string
	for _, s := range answer.Sinks {
		if !s.Visible {
			names = append(names, s.Sink)
			why = append(why, s.WaitsFor...)
		}
	}
	slices.Sort(why)
	after := ""
	if !answer.Settled() {
		after = " after " + timeout.String()
	}
	return fmt.Errorf("not everything is visible in %s%s: %s", strings.Join(names, ", "), after, few(slices.Compact(why)))
}

// few names some of what is waited for; -o json has all.
func few(why []string) string {
	if len(why) > 3 {
		return fmt.Sprintf("%s; and %d more", strings.Join(why[:3], "; "), len(why)-3)
	}
	return strings.Join(why, "; ")
}

// checkAsk says as a dlq.FieldError what is wrong with a question to a barrier.
func (p *process) checkAsk(ask freshness.Ask) error {
	if ask.GTIDs != "" {
		if err := mysql.CheckGTIDs(ask.GTIDs); err != nil {
			return &dlq.FieldError{Field: "gtid", Problem: err.Error()}
		}
	}
	if ask.Table == "" {
		return nil
	}
	db, name, ok := strings.Cut(ask.Table, ".")
	if !ok || db == "" || name == "" {
		return &dlq.FieldError{Field: "table", Problem: fmt.Sprintf("%q is not db.table; write for example shop.orders", ask.Table)}
	}
	if !p.captured(cdc.TableName{DB: db, Table: name}) {
		return &dlq.FieldError{Field: "table", Problem: ask.Table + " is not captured: no entry of tables[].match takes it"}
	}
	for _, sink := range ask.Sinks {
		if p.sinkTakes(sink, ask.Table) {
			return nil
		}
	}
	return &dlq.FieldError{Field: "table", Problem: fmt.Sprintf("%s is not for %s: its entry of tables[] has no such sink", ask.Table, strings.Join(ask.Sinks, ", "))}
}

// sinkTakes reports whether a sink takes a table.
func (p *process) sinkTakes(sink, table string) bool {
	t, takes := tableNamed(table), false
	switch s := p.cfg.Sinks[sink]; {
	case s.Elastic != nil:
		_, takes = p.cfg.ElasticTable(t)
	case s.Redis != nil:
		_, takes = p.cfg.RedisTable(t)
	}
	return takes
}

// newHub is the process's place among the watermarks, and newBarrier what waits there.
func (p *process) newHub() *freshness.Hub {
	small := p.cfg.Kafka
	small.PublishBufferBytes = 4 << 20
	log := p.log.With("part", "watermarks")
	return &freshness.Hub{
		Prefix: p.cfg.Prefix, Kafka: p.kafka, Log: log,
		Publisher: func() *kafka.Publisher { return kafka.NewPublisher(p.kafka, small, p.metrics.kafka, log) },
	}
}

func (p *process) newBarrier() *freshness.Barrier {
	log := &rareLog{p.newLetterLog()}
	return &freshness.Barrier{
		Hub: p.hub, Metrics: p.metrics.freshness,
		Takes: func(sink, table string) bool { return p.now().sinkTakes(sink, table) },
		Refresh: func(ctx context.Context, sink string, tables []string) error {
			return p.now().refresh(ctx, sink, tables)
		},
		Committed: func(ctx context.Context) (string, error) {
			gtids, _, err := p.commits.now().Committed(ctx)
			return gtids, err
		},
		Letter: func(ctx context.Context, sink, table, key string, partitions map[int]bool) (*dlq.Letter, error) {
			ctx, cancel := context.WithTimeout(ctx, lookWithin)
			defer cancel()
			return (&desk{p.now(), log}).letterOf(ctx, sink, table, key, partitions)
		},
	}
}

// letterOf finds the open letter of a row, or one in these partitions that nobody can read
// and that may be of the row; nil when there is neither.
func (d *desk) letterOf(ctx context.Context, sink, table, key string, partitions map[int]bool) (*dlq.Letter, error) {
	q := dlq.Query{Sink: sink}
	q.Table, q.Key = table, key
	letters, err := d.Choose(ctx, q)
	if len(letters) > 0 || err != nil {
		return first(letters), err
	}
	unread := dlq.Query{Sink: sink}
	unread.Class = sinks.ClassUndecodable
	letters, err = d.Choose(ctx, unread)
	return first(slices.DeleteFunc(letters, func(l dlq.Letter) bool {
		of, ok := kafka.TableOf(d.cfg.Prefix, l.Source.Topic)
		return !ok || of.String() != table || partitions != nil && !partitions[l.Source.Partition] || !l.MayBeOf(key)
	})), err
}

// first is the first of letters, nil when there is none.
func first(letters []dlq.Letter) *dlq.Letter {
	if len(letters) == 0 {
		return nil
	}
	return &letters[0]
}

// refresh makes what a sink has of tables visible to searches.
func (p *process) refresh(ctx context.Context, sink string, tables []string) error {
	var names []cdc.TableName
	for _, t := range tables {
		names = append(names, tableNamed(t))
	}
	if w, ours := p.workers.find(sink); ours {
		return w.store.refresh(ctx, names)
	}
	s, err := p.openSink(ctx, sink)
	if err != nil {
		return err
	}
	defer s.close()
	return s.refresh(ctx, names)
}

// newReport says how far a sink is in this process, once its Worker and letters are set.
func (p *process) newReport(sink string) *freshness.Report {
	r := &freshness.Report{
		Hub: p.hub, Sink: sink, Process: p.id,
		TableOf: func(topic string) (string, bool) {
			t, ok := kafka.TableOf(p.cfg.Prefix, topic)
			return t.String(), ok
		},
	}
	r.Open()
	return r
}

// newAnswers says how far the capture is.
func (p *process) newAnswers(source *mysql.Source, publisher *kafka.Publisher, out *kafka.ChangeLog, requests *kafka.SnapshotRequests, commits *mysql.Commits) *freshness.Answers {
	return &freshness.Answers{
		Hub: p.hub, Process: p.id, Log: p.log.With("part", "watermarks"), Metrics: p.metrics.freshness,
		Passed: source.Passed, AfterAcked: publisher.AfterAcked, Ends: kafka.NewEnds(out, p.changeTopics).Now,
		Requests: requests.Taken, Committed: commits.Committed,
	}
}

// noteRefill has a report say that rows of tables are lost until the copies are over that
// were asked for by now.
func (p *process) noteRefill(ctx context.Context, r *freshness.Report, tables ...string) error {
	ends, err := p.kafka.EndOffsets(ctx, kafka.SnapshotTopic(p.cfg.Prefix))
	if err != nil {
		return err
	}
	for _, t := range tables {
		r.Refilled(t, ends[0])
	}
	return nil
}
