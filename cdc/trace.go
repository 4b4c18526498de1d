package cdc

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"
)

// HeaderTrace is the trace context of a change that is traced, as the W3C writes it
// (https://www.w3.org/TR/trace-context/#traceparent-header).
const HeaderTrace = "traceparent"

// Trace says in which trace a change is told of. The zero Trace is in none.
type Trace struct {
	ID [16]byte
	// Span is that of the capture of this change, the parent of what sinks tell.
	Span [8]byte
	// Parent is the span of whoever made the change, or zero. It is not part of the record.
	Parent [8]byte
}

// Traced reports whether there is a trace.
func (t Trace) Traced() bool { return t.ID != [16]byte{} }

// Of is the trace of the change of this version: it has a span of its own, the same one
// when the change is read again.
func (t Trace) Of(v Version) Trace {
	if !t.Traced() {
		return t
	}
	h := fnv.New64a()
	_, _ = h.Write(t.ID[:])
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(v)))
	binary.BigEndian.PutUint64(t.Span[:], max(1, h.Sum64()))
	return t
}

// traceparentLen is the length of a traceparent of version 00.
const traceparentLen = 2 + 1 + 32 + 1 + 16 + 1 + 2

// appendTo appends the traceparent of the trace, sampled.
func (t Trace) appendTo(dst []byte) []byte {
	dst = append(dst, "00-"...)
	dst = hex.AppendEncode(dst, t.ID[:])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, t.Span[:])
	return append(dst, "-01"...)
}

// ParseTrace reads a traceparent whose span is Span. It gives the zero Trace where there is
// no valid one, or where its sender does not trace.
func ParseTrace(text []byte) (t Trace) {
	if len(text) < traceparentLen || text[2] != '-' || text[35] != '-' || text[52] != '-' || bytes.Equal(text[:2], []byte("ff")) {
		return Trace{}
	}
	if len(text) > traceparentLen && (bytes.Equal(text[:2], []byte("00")) || text[traceparentLen] != '-') {
		return Trace{}
	}
	var flags [1]byte
	if !lowerHex(t.ID[:], text[3:35]) || !lowerHex(t.Span[:], text[36:52]) || !lowerHex(flags[:], text[53:55]) ||
		t.ID == [16]byte{} || t.Span == [8]byte{} || flags[0]&1 == 0 {
		return Trace{}
	}
	return t
}

// lowerHex decodes digits as the standard wants them.
func lowerHex(dst, text []byte) bool {
	_, err := hex.Decode(dst, text)
	return err == nil && !bytes.ContainsAny(text, "ABCDEF")
}
