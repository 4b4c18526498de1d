// Command bench measures Lockstep on the local servers, each part beside a bare
// loop that does the same outside work and nothing else, in the same run. The
// figures of a machine say little; their ratio to what the machine can do at most
// can be followed over time.
//
// It exits with 0 when everything was measured and every count is right, with 130
// when it was interrupted, and with 1 otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `Usage: go run ./bench [flags]

Measures bin/lockstep (make build) on the local servers (make up):

  capture  a backlog of row changes from the binary log into Kafka
           beside a loop of go-mysql that decodes and counts the same changes
  search   lockstep sink into a fresh Elasticsearch index
           beside a bare loop of _bulk requests with the same documents
  cache    lockstep sink into Redis
           beside a bare loop of pipelined scripts with the same rows, and
           beside redis-benchmark, which pipelines the same script
  latency  from commit to applied in each sink: 1,000 rows/s in transactions of four,
           and 300 transactions/s of one row (single)
           beside the time until a bare go-mysql reader has the event
  steps    from the time a transaction of one row is due until both stores have it, at rising
           rates: P50 and P99 at 300 transactions/s, and the highest rate with P99 <= 800 ms
           beside an application that writes all three stores itself before it answers
  ack      from commit to the acknowledgement by Kafka, 1,000 transactions/s
           beside bare produce requests at that rate
  barrier  from commit until a barrier is passed, of one row at a time in each sink
           beside the time until the store has the row; added is what the barrier needs
           more, and together 50 of them at once
  large    the most memory of the capture for a transaction of a million rows, one
           of a gigabyte that is compressed, and a row of 64 MB
  servers  what lockstep and every server use for a row that is copied, for a transaction
           of one row at 300 a second, for nothing, and for a row that is compared
  letters  a start beside a million open dead letters: until rows travel, until the
           letters are known, and the most memory

Three fifths of the rows are inserts, 100 per transaction, the others updates, one
per transaction. The table of figures goes to standard output, progress to standard
error, and the same figures as JSON to the file of -out; give each run a name of
its own to keep a history, such as -out .local/bench-$(date +%F-%H%M).json.

A ratio is value / ceiling. For a rate 1 is the best there is; for CPU seconds and
latencies it says how many times more than the bare loop.

What it writes has names of its own (the database lockstep_bench, and bench-<time>
elsewhere) and is removed at the end, also after Ctrl-C.

`

func main() {
	b := bench{began: time.Now()}
	flag.IntVar(&b.rows, "rows", 500_000, "row changes in the backlog, 1000 or more")
	flag.Float64Var(&b.rate, "rate", 1000, "rows per `second` while latency is measured")
	flag.IntVar(&b.per, "transaction", 4, "`rows` that each transaction changes while latency is measured")
	flag.IntVar(&b.wide, "wide", 0, "`bytes` of text, half of it noise, by which the rows of servers are wider")
	flag.DurationVar(&b.duration, "duration", 20*time.Second, "how long latency is measured; 0 leaves it out")
	flag.StringVar(&b.out, "out", ".local/bench.json", "JSON `file` for the figures")
	flag.StringVar(&b.binary, "lockstep", "bin/lockstep", "the lockstep `binary`")
	flag.StringVar(&b.dir, "dir", ".local/bench", "`directory` for configurations and logs")
	flag.Func("only", "measure only these `parts`, separated by commas; search and cache need what capture leaves, so that is measured, too", b.only)
	peers := flag.Bool("peers", false, "compare the capture with Debezium instead, which is downloaded where it is not")
	role := flag.String("child", "", "what a child process of the measurement does; not for people")
	flag.Usage = func() {
		_, _ = io.WriteString(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if *role != "" {
		if err := runChild(*role, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", *role, err)
			os.Exit(1)
		}
		return
	}
	if flag.NArg() > 0 || b.rows < 1000 || b.rate <= 0 || b.per < 1 || b.duration < 0 || b.wide < 0 {
		fmt.Fprintln(os.Stderr, "bench: -rows must be 1000 or more, -rate above 0, -transaction 1 or more, -duration and -wide not below 0, and there is nothing else to say")
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	measure := b.run
	if *peers {
		measure = b.comparePeers
	}
	err := measure(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil && !errors.Is(err, errLeftovers) && !errors.Is(err, errUnclean):
		fmt.Fprintln(os.Stderr, "bench: interrupted; what it wrote is removed")
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}
