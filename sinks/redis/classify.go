package redis

import (
	"errors"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/sinks"
)

// classify turns the error of one command into its outcome. Redis begins every
// error reply with a code; the text behind it is for people and decides nothing.
// Whatever is not a reply of the server is a network error or a timeout.
func classify(err error) sinks.Outcome {
	switch code(err) {
	case "", // no reply
		"OOM", "LOADING", "BUSY", "READONLY", "MISCONF", "MASTERDOWN", "NOREPLICAS",
		"CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK",
		"NOAUTH", "WRONGPASS", "NOPERM",
		"NOSCRIPT":
		return sinks.Outcome{Verdict: sinks.Unavailable, Reason: err.Error()}
	case "WRONGTYPE":
		return sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassWrongType, Reason: err.Error()}
	}
	return sinks.Outcome{Verdict: sinks.Transient, Class: sinks.ClassRefused, Reason: err.Error()}
}

// code is the first word of an error reply, and empty for any other error.
func code(err error) string {
	var reply goredis.Error
	if !errors.As(err, &reply) {
		return ""
	}
	first, _, _ := strings.Cut(reply.Error(), " ")
	return first
}
