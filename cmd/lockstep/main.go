// Command lockstep keeps Elasticsearch and Redis in step with MySQL.
//
// This package is the only one that knows all the others: each command builds
// what it needs from the configuration and hands functions over from the right
// of the pipeline to its left.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(untilSignal(func(ctx context.Context) int {
		return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.LookupEnv)
	}))
}

// untilSignal ends do's ctx at the first SIGINT or SIGTERM. The second one ends
// the process at once, for someone who does not want to wait for a clean stop.
func untilSignal(do func(context.Context) int) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Once stop is called the next signal does what signals do by default.
	context.AfterFunc(ctx, stop)
	return do(ctx)
}

// run executes one command line and returns the exit code: 0 for done, 1 for an
// error while running, 2 for a mistake in the command line or the configuration, 3 for
// a process that is not well.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) (string, bool)) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, env: env}
	root := newRoot(a)
	root.SetArgs(args)
	return a.report(root.ExecuteContext(ctx))
}
