// Package secret holds text that may be used but never shown.
package secret

import (
	"fmt"
	"io"
	"log/slog"
)

// hidden is what a secret looks like wherever it is printed.
const hidden = "********"

// Text is a password or key. Every way of printing, logging or marshalling it
// shows a row of stars; only Reveal gives the text.
type Text string

// Reveal returns the secret itself, for the one call that sends it to a server.
func (t Text) Reveal() string { return string(t) }

func (t Text) String() string {
	if t == "" {
		return ""
	}
	return hidden
}

// Format keeps every verb of fmt, also a wrong one, from printing the text.
func (t Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// MarshalText keeps the text out of JSON and YAML.
func (t Text) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// LogValue keeps the text out of structured logs.
func (t Text) LogValue() slog.Value { return slog.StringValue(t.String()) }
