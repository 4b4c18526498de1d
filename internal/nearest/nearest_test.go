package nearest

import "testing"

func TestTheNearestNameIsFoundOrNone(t *testing.T) {
	names := []string{"bulk_bytes", "flush_interval", "index", "log-level"}
	for name, want := range map[string]string{
		"bulk_byte": "bulk_bytes", "bulk-bytes": "bulk_bytes", "BulkBytes": "bulk_bytes", "idnex": "index",
		"flushinterval": "flush_interval", "log_level": "log-level", "zzz": "", "": "",
	} {
		if got := Name(name, names); got != want {
			t.Errorf("Name(%q) = %q, want %q", name, got, want)
		}
	}
}
