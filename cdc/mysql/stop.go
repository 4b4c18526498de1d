package mysql

import "fmt"

// Stop is an error that connecting and reading again does not mend: what was met
// cannot be followed exactly, so the reader refuses to go on.
type Stop struct {
	Problem string
	// Remedy is the statement or command that mends it; may be empty.
	Remedy string
}

func (s *Stop) Error() string {
	if s.Remedy == "" {
		return s.Problem
	}
	return s.Problem + "; mend it with: " + s.Remedy
}

func stopf(remedy, format string, args ...any) *Stop {
	return &Stop{Problem: fmt.Sprintf(format, args...), Remedy: remedy}
}
