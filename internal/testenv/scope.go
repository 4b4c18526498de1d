package testenv

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Scope is what servers belong to that outlive a test: those of all tests of a package. Of
// testing.TB it has what servers need.
type Scope struct {
	testing.TB // nil: what a scope does not have panics

	mu       sync.Mutex
	cleanups []func()
	failed   bool
	said     strings.Builder
}

// Run does what a test would do and returns with what it has failed.
func (s *Scope) Run(do func(t testing.TB)) error {
	var doing sync.WaitGroup
	doing.Go(func() { do(s) })
	doing.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed {
		return fmt.Errorf("the servers of the package: %s", &s.said)
	}
	return nil
}

// Close does the cleanups, the last one first.
func (s *Scope) Close() {
	for _, do := range slices.Backward(s.cleanups) {
		do()
	}
	s.cleanups = nil
}

func (s *Scope) Helper()                  {}
func (s *Scope) Context() context.Context { return context.Background() }

func (s *Scope) Cleanup(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, do)
}

func (s *Scope) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *Scope) Errorf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = true
	fmt.Fprintf(&s.said, format+"\n", args...)
}

func (s *Scope) FailNow() {
	s.Errorf("it ends")
	runtime.Goexit()
}

func (s *Scope) Fatal(args ...any) {
	s.Errorf("%s", fmt.Sprint(args...))
	runtime.Goexit()
}

func (s *Scope) Fatalf(format string, args ...any) {
	s.Errorf(format, args...)
	runtime.Goexit()
}

func (s *Scope) TempDir() string {
	dir, err := os.MkdirTemp("", "lockstep-test-")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
