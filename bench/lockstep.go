package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// child is a running lockstep.
type child struct {
	cmd     *exec.Cmd
	admin   string
	logPath string
	say     func(format string, args ...any) // tells a person what is waited for
	started time.Time
	done    chan struct{} // closed when it has ended
	err     error         // how it ended; to be read after done
	once    sync.Once
	stopErr error
}

// errUnclean is wrapped when lockstep does not end as it should.
var errUnclean = errors.New("lockstep did not end cleanly")

func (b *bench) start(p *pipeline, args ...string) (*child, error) {
	path := filepath.Join(b.dir, strings.Join(append([]string{p.table}, args...), "-")+".log")
	log, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := &child{cmd: exec.Command(b.binary, append(args, "-c", p.config)...), admin: p.admin, logPath: path, say: b.say, done: make(chan struct{}), started: time.Now()}
	c.cmd.Stdout, c.cmd.Stderr = log, log
	// In a process group of its own: Ctrl-C reaches the group of the terminal, and
	// lockstep is to be stopped once, by stop.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", b.binary, err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	b.logs = append(b.logs, path)
	return c, nil
}

// stop ends lockstep and waits until it has. Only the first call does something.
func (c *child) stop() error {
	c.once.Do(func() {
		if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			c.stopErr = fmt.Errorf("%w: %w", errUnclean, err)
			return
		}
		select {
		case <-c.done:
		case <-time.After(10 * time.Second):
			_ = c.cmd.Process.Kill()
			<-c.done
			c.stopErr = fmt.Errorf("%w: it needed more than 10 s and was killed; %s", errUnclean, c.tail())
			return
		}
		if c.err != nil {
			c.stopErr = fmt.Errorf("%w: %w; %s", errUnclean, c.err, c.tail())
		}
	})
	return c.stopErr
}

// tail is the end of the log, for the eye.
func (c *child) tail() string {
	log, err := os.ReadFile(c.logPath)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	return "the last lines of " + c.logPath + ":\n  | " + string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n  | ")))
}

// warnings counts the log lines of all children that tell of trouble: figures of a
// run in which a server went away say nothing.
func (b *bench) warnings() (n int) {
	for _, path := range b.logs {
		log, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if here := bytes.Count(log, []byte(" level=WARN ")) + bytes.Count(log, []byte(" level=ERROR ")); here > 0 {
			b.say("lockstep met trouble, see the %d warnings in %s; some figures may say nothing", here, path)
			n += here
		}
	}
	return n
}

// poll makes laps until one returns 0; a lap returns how long to wait for the next. It
// says every ten seconds what it waits for.
func (c *child) poll(ctx context.Context, what string, lap func() time.Duration) error {
	deadline := time.Now().Add(patience)
	told := time.Now()
	for wait := lap(); wait > 0; wait = lap() {
		if time.Since(told) >= 10*time.Second {
			told = time.Now()
			c.say("not yet: %s", what)
		}
		select {
		case <-c.done:
			return fmt.Errorf("%s: lockstep ended before (%v); %s", what, c.err, c.tail())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not after %s; %s", what, patience, c.tail())
		}
		if !pause(ctx, wait) {
			return ctx.Err()
		}
	}
	return nil
}

// await returns the metrics when ok is true of them.
func (c *child) await(ctx context.Context, what string, ok func(metrics) bool) (last metrics, err error) {
	err = c.poll(ctx, what, func() time.Duration {
		m, err := readMetrics(ctx, c.admin)
		if err == nil && ok(m) {
			last = m
			return 0
		}
		return 100 * time.Millisecond
	})
	return last, err
}

// awaitBoth waits until so many row changes are settled in both sinks.
func (c *child) awaitBoth(ctx context.Context, rows int) (metrics, error) {
	return c.await(ctx, fmt.Sprintf("%d row changes settled in both sinks", rows), func(m metrics) bool {
		return m.sum("lockstep_capture_connected") == 1 && m.settled(search) >= rows && m.settled(cache) >= rows
	})
}

// ready returns how long the start took, until every part of the process was at
// work.
func (c *child) ready(ctx context.Context) (took time.Duration, err error) {
	err = c.poll(ctx, "lockstep is ready", func() time.Duration {
		response, err := http.Get("http://" + c.admin + "/readyz")
		took = time.Since(c.started)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return 0
			}
		}
		return 5 * time.Millisecond
	})
	return took, err
}

// drained is how long a child needed for its work, and what it used for it.
type drained struct {
	storeCPU float64       // seconds that the store has used meanwhile
	start    time.Duration // until it was at work
	took     time.Duration // from then until the work was done
	usage    usageOf       // at that moment
	metrics  metrics
}

// drain waits until the child has done as much as there is to do, by its metrics,
// and stops it. It is an error when it does more.
func (c *child) drain(ctx context.Context, what string, total int, done func(metrics) int) (d drained, err error) {
	defer func() { err = errors.Join(err, c.stop()) }()
	if d.start, err = c.ready(ctx); err != nil {
		return d, err
	}
	if err := c.poll(ctx, what, func() time.Duration {
		// The child pays for each look, so there are few until the end is near.
		wait := 200 * time.Millisecond
		if m, err := readMetrics(ctx, c.admin); err == nil {
			now := time.Since(c.started) - d.start
			usage, err := usageNow(c.cmd.Process.Pid)
			n := done(m)
			if err == nil && n >= total {
				d.took, d.usage = now, usage
				return 0
			}
			if n > total*9/10 {
				wait = 20 * time.Millisecond
			}
		}
		return wait
	}); err != nil {
		return d, err
	}
	// What comes too much comes a little later.
	if !pause(ctx, 500*time.Millisecond) {
		return d, ctx.Err()
	}
	if d.metrics, err = readMetrics(ctx, c.admin); err != nil {
		return d, err
	}
	if n := done(d.metrics); n != total {
		return d, fmt.Errorf("%s: want %d, got %d", what, total, n)
	}
	return d, nil
}

// usageNow asks the kernel what a process has used.
func usageNow(pid int) (usageOf, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return usageOf{}, err
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return usageOf{}, err
	}
	return parseUsage(string(stat), string(status))
}

// parseUsage reads utime and stime of proc_pid_stat(5), in hundredths of a second
// on every Linux that Go runs on, and VmHWM of proc_pid_status(5).
func parseUsage(stat, status string) (usageOf, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return usageOf{}, fmt.Errorf("/proc/PID/stat is %q", stat)
	}
	var u usageOf
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return u, err
		}
		u.CPU += ticks / 100
	}
	_, peak, found := strings.Cut(status, "VmHWM:")
	kb, err := strconv.ParseFloat(strings.Fields(peak + " -")[0], 64)
	if !found || err != nil {
		return u, fmt.Errorf("/proc/PID/status has no VmHWM: %q", status)
	}
	u.PeakMB = kb / 1024
	return u, nil
}
