package sinks

import "time"

// BreakerStatus is a breaker as an operator sees it.
type BreakerStatus struct {
	// State is closed, half-open or open.
	State string `json:"state"`
	// Class and Fingerprint are of the refusals that a table is held for.
	Class       Class  `json:"class,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	// Reason is what the store said last.
	Reason string `json:"reason,omitempty"`
	// Since is when it opened.
	Since *time.Time `json:"since,omitempty"`
	// NextProbe is when it lets one call through.
	NextProbe *time.Time `json:"next_probe,omitempty"`
}

// SweepStatus is a sweep that is under way or waits.
type SweepStatus struct {
	Table string `json:"table"`
}
