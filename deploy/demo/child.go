package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// child is the running lockstep.
type child struct {
	cmd     *exec.Cmd
	logPath string
	done    chan struct{} // closed when it has ended
	err     error         // how it ended; to be read after done

	mu      sync.Mutex
	stopped bool // it was told to end
}

// start runs the binary with its output in a fresh log file.
func start(binary string, args []string, logPath string) (*child, error) {
	log, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := &child{cmd: exec.Command(binary, args...), logPath: logPath, done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = log, log
	// In a process group of its own, for Ctrl-C reaches the whole group of the
	// terminal and lockstep is to be stopped once, by stop.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// errUnclean is wrapped by the errors of stop.
var errUnclean = errors.New("lockstep did not end cleanly")

// stop ends lockstep with SIGTERM and waits for ten seconds. It is an error when
// lockstep needs longer, or does not call its end a clean one. A second call does
// nothing.
func (c *child) stop() error {
	c.mu.Lock()
	again := c.stopped
	c.stopped = true
	c.mu.Unlock()
	if again {
		return nil
	}
	select {
	case <-c.done:
		return nil // lost has told of it
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%w: %w", errUnclean, err)
	}
	select {
	case <-c.done:
	case <-time.After(30 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("%w: it needed more than 30 s and was killed; its last lines:\n%s", errUnclean, c.tail())
	}
	if c.err != nil {
		return fmt.Errorf("%w: %w; its last lines:\n%s", errUnclean, c.err, c.tail())
	}
	return nil
}

// lost is the error of a lockstep that ended without being told to, or nil.
func (c *child) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return nil
	}
	how := "exit status 0"
	if c.err != nil {
		how = c.err.Error()
	}
	return fmt.Errorf("lockstep ended by itself with %s; the last lines of %s:\n%s", how, c.logPath, c.tail())
}

// tail is the end of the log, for the eye.
func (c *child) tail() string {
	log, err := os.ReadFile(c.logPath)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	return "  | " + string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n  | ")))
}

// checkFree is an error when something listens at address already.
func checkFree(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("lockstep's metrics have no place: %w; is lockstep of an earlier demo still running? Stop it, or choose another address with -admin", err)
	}
	return l.Close()
}

func port(address string) string {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return p
}

// pause waits; it is false when ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
