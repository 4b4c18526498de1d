// Command demo shows Lockstep at work on the local servers: it fills a question
// bank in MySQL, starts Lockstep, writes for a while, shows the rows travel to
// Elasticsearch and Redis, plants one row that Elasticsearch refuses, and ends by
// comparing every row of MySQL with both stores.
//
// With -route it breaks Elasticsearch under load instead, and shows where a gateway is told
// to read until everything is as it was.
//
// It exits with 0 when everything is equal and the refused row is listed as a dead
// letter, with 130 when it was interrupted, and with 1 otherwise. What it writes
// begins with "demo" in every store; what an earlier demo wrote is replaced.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"lockstep/internal/testenv"
)

func main() {
	admin, err := testenv.Local(18080)
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(2)
	}
	d := demo{began: time.Now()}
	flag.Float64Var(&d.rate, "rate", 300, "transactions per `second` to write")
	flag.DurationVar(&d.duration, "duration", 20*time.Second, "how long to write")
	flag.IntVar(&d.questions, "questions", 2000, "`number` of questions to begin with")
	flag.StringVar(&d.binary, "lockstep", "bin/lockstep", "the lockstep `binary`")
	flag.StringVar(&d.dir, "dir", ".local/demo", "`directory` for the configuration and the log")
	flag.StringVar(&d.admin, "admin", admin, "`address` for lockstep's metrics")
	flag.BoolVar(&d.route, "route", false, "break Elasticsearch under load and show where reads are sent meanwhile")
	flag.Parse()
	if flag.NArg() > 0 || d.rate <= 0 || d.duration <= 0 || d.questions < 1 {
		fmt.Fprintln(os.Stderr, "demo: -rate, -duration and -questions must be above 0, and there is nothing else to say")
		os.Exit(2)
	}

	// A closed pipe on standard output is an interruption like Ctrl-C, for lockstep
	// must be stopped then too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	err = d.run(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil && !errors.Is(err, errUnclean):
		fmt.Println("\nInterrupted. Nothing runs any more but the servers; the demo may be started again.")
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}
