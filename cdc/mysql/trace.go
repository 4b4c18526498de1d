package mysql

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/go-mysql-org/go-mysql/replication"

	"lockstep/cdc"
)

// Tracing says which changes are traced. The zero Tracing traces none.
type Tracing struct {
	// Comments has the changes of a statement traced in whose comment, at its beginning or its
	// end, a traceparent stands (https://google.github.io/sqlcommenter/spec/), when its sender
	// traces. The source tells the statements while binlog_rows_query_log_events is on.
	Comments bool
	// Share of the other transactions is traced, 0 to 1. Which ones follows from their GTIDs.
	Share float64
}

// tracedRows is how many row images of one transaction are traced at most.
const tracedRows = 100

// statementText looks for a trace in the text of the statement whose rows follow.
func (r *reader) statementText(ev *event) {
	if !r.Tracing.Comments {
		return
	}
	text := ev.body()
	if ev.EventType == replication.ROWS_QUERY_EVENT && len(text) > 0 {
		text = text[1:] // a byte of its length, which is too short for it
	}
	if t := traceOf(text); t.Traced() {
		r.txn.trace, r.txn.drawn = t, true
	}
}

// traceOf is what the comment at the end of a statement, or else that at its beginning, says. Nothing else
// of a statement counts, because it may hold values of rows.
func traceOf(statement []byte) cdc.Trace {
	statement = bytes.TrimRight(statement, " \t\r\n;")
	if rest, ok := bytes.CutSuffix(statement, []byte("*/")); ok {
		if at := bytes.LastIndex(rest, []byte("/*")); at >= 0 {
			if t := traceIn(rest[at+2:]); t.Traced() {
				return t
			}
		}
	}
	if rest, ok := bytes.CutPrefix(bytes.TrimLeft(statement, " \t\r\n"), []byte("/*")); ok {
		if comment, _, ok := bytes.Cut(rest, []byte("*/")); ok {
			return traceIn(comment)
		}
	}
	return cdc.Trace{}
}

// traceIn reads traceparent='...' in a comment.
func traceIn(comment []byte) cdc.Trace {
	_, text, ok := bytes.Cut(comment, []byte("traceparent='"))
	if !ok {
		return cdc.Trace{}
	}
	text, _, _ = bytes.Cut(text, []byte("'"))
	t := cdc.ParseTrace(text)
	t.Parent, t.Span = t.Span, [8]byte{}
	return t
}

// traced is the trace of the transaction under way, if it is in one. Whether it is is drawn
// from its GTID, so that a transaction that is read again has the same answer.
func (r *reader) traced() cdc.Trace {
	if r.txn.rows >= tracedRows {
		return cdc.Trace{}
	}
	if !r.txn.drawn {
		r.txn.drawn = true
		if share := r.Tracing.Share; share > 0 {
			sum := sha256.Sum256([]byte(r.txn.gtid))
			if float64(binary.BigEndian.Uint64(sum[16:])) < share*math.MaxUint64 {
				copy(r.txn.trace.ID[:], sum[:])
			}
		}
	}
	return r.txn.trace
}
