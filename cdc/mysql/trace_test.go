package mysql

import (
	"encoding/hex"
	"fmt"
	"testing"

	"lockstep/cdc"
)

func TestATraceIsTakenFromTheCommentOfAStatement(t *testing.T) {
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	const parent = "traceparent='00-" + id + "-" + span + "-01'"
	for statement, traced := range map[string]bool{
		"UPDATE t SET a=1 /*" + parent + "*/":                                true,
		"UPDATE t SET a=1 /* action='x'," + parent + ",tracestate='y' */ ; ": true,
		"/* " + parent + " */ UPDATE t SET a=1":                              true,
		"/* x */ UPDATE t SET a=1 /* " + parent + " */":                      true,
		"UPDATE t SET a='" + `\'/*traceparent=` + "' /* other */":            false,
		"UPDATE t SET a='/* " + parent + " */' WHERE id=1":                   false, // a value
		"UPDATE t SET a='/* x */' /* y */ /* z */, b=1":                      false,
		"UPDATE t SET a=1 -- " + parent:                                      false,
		"UPDATE t SET a=1 /*traceparent='00-" + id + "-" + span + "-00'*/":   false,
		"UPDATE t SET a=1 /*traceparent='nothing'*/":                         false,
		"*/": false, "/*": false, "": false, "/*traceparent='": false,
	} {
		got := traceOf([]byte(statement))
		if got.Traced() != traced {
			t.Errorf("%s: traced %v", statement, got.Traced())
		}
		if traced && (hex.EncodeToString(got.ID[:]) != id || hex.EncodeToString(got.Parent[:]) != span || got.Span != [8]byte{}) {
			t.Errorf("%s: %+v", statement, got)
		}
	}
}

func TestWhichTransactionsAreTracedFollowsFromTheirGTIDs(t *testing.T) {
	traced := func(share float64, n, rows int) cdc.Trace {
		r := &reader{Source: &Source{Tracing: Tracing{Share: share}}}
		r.txn.gtid, r.txn.rows = fmt.Sprintf("3e11fa47-71ca-11e1-9e33-c80aa9429562:%d", n), rows
		return r.traced()
	}
	some := 0
	for n := range 10000 {
		if traced(0, n, 0).Traced() || !traced(1, n, 0).Traced() {
			t.Fatalf("transaction %d with a share of 0 or 1", n)
		}
		one := traced(0.1, n, 0)
		if one != traced(0.1, n, 0) {
			t.Fatalf("transaction %d has another answer when it is read again", n)
		}
		if one.Traced() {
			some++
		}
	}
	if some < 800 || some > 1200 {
		t.Errorf("%d of 10000 are traced with a share of 0.1", some)
	}
	if traced(1, 1, tracedRows).Traced() {
		t.Errorf("more than %d rows of a transaction are traced", tracedRows)
	}
}
