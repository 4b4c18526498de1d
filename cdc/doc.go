// Package cdc holds the nouns of change data capture: a table, a row change,
// the version that orders the changes of a row, the position in the source's
// log, and the wire format in which a change travels through Kafka.
//
// It talks to nobody and imports nothing of ours, so every other package may
// lean on it.
package cdc
