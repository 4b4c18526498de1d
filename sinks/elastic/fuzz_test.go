package elastic

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"lockstep/cdc"
)

// An answer of any bytes to a bulk request is a list of answers, each with a verdict, and its
// text stays short.
func FuzzABulkAnswerOfAnyBytes(f *testing.F) {
	f.Add([]byte(`{"took":3,"errors":true,"items":[{"index":{"_index":"q-000001","_id":"1","status":200}},{"delete":{"status":409,"error":{"type":"version_conflict_engine_exception",`+
		`"reason":"[1]: version conflict, current version [8] is higher or equal to the one provided [7]","caused_by":{"reason":"x"}}}},{"index":{"status":400,"error":"text"}}]}`), "7")
	f.Add([]byte(`{"items":[{"index":{"status":"200","error":{"type":["a"]}}},7,{"a":{}}]}`), "Wed, 21 Oct 2026 07:28:00 GMT")
	f.Fuzz(func(t *testing.T, body []byte, header string) {
		for _, a := range readBulk(body) {
			for _, op := range []cdc.Op{cdc.OpUpdate, cdc.OpDelete} {
				if out := classify(op, 1<<42, a); len(out.Reason) > 3000 {
					t.Fatalf("a reason of %d bytes", len(out.Reason))
				}
			}
			_, _ = a.ofCluster(), a.ofIndex()
		}
		if after := retryAfter(header, time.Now()); after < 0 || after > 24*time.Hour {
			t.Fatalf("%q asks to wait for %s", header, after)
		}
		gjson.GetBytes(body, "docs").ForEach(func(_, doc gjson.Result) bool {
			_ = readStored(doc)
			if source := doc.Get("_source"); source.IsObject() && json.Valid(body) {
				if out := withoutGuard(source); len(out) > 0 && !json.Valid(out) {
					t.Fatalf("%s became %s", source.Raw, out)
				}
			}
			return true
		})
	})
}

// What an index says of itself, whatever it is, is read or refused.
func FuzzAnIndexOfAnyBytes(f *testing.F) {
	f.Add([]byte(`{"q-000001":{"aliases":{"q":{"is_write_index":true,"filter":{"bool":{"must_not":[{"term":{"_lockstep.deleted":true}}]}}}},` +
		`"mappings":{"_meta":{"lockstep":{"uuid":"u","routing":"r"}},"properties":{"id":{"type":"long"},"_lockstep":{"properties":{"v":{"type":"long"},"deleted":{"type":"boolean"}}}}},` +
		`"settings":{"index":{"uuid":"u","default_pipeline":"_none"}}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var found map[string]*index
		if json.Unmarshal(body, &found) != nil {
			return
		}
		for _, i := range found {
			if i == nil {
				continue
			}
			_ = i.made()
			_, _, _ = i.knowsTombstones(), i.pipelines(), i.filtered("q")
		}
	})
}
