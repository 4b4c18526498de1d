package testenv

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Promtool returns the words that start promtool. It is of the native servers, which
// are installed if need be.
func Promtool(t testing.TB) []string { t.Helper(); return prometheusWords(t, "promtool") }

func prometheusWords(t testing.TB, program string) []string {
	t.Helper()
	return native(t, program, "prometheus", `prometheus_install >&2 || exit 1
prometheus_words "$2"
printf '%s\0' "${command[@]}"`, nil, program)
}

// NewPrometheus starts a Prometheus with the given configuration and returns where it
// answers. It is gone at the end of the test.
func NewPrometheus(t testing.TB, config string) (url string) {
	t.Helper()
	words := prometheusWords(t, "prometheus")
	dir, addr := t.TempDir(), FreeAddr(t)
	path := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	words = append(words, "--config.file="+path, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr)
	spawn(t, "Prometheus", words, filepath.Join(dir, "log"), time.Minute, func() bool {
		res, err := http.Get("http://" + addr + "/-/ready")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return "http://" + addr
}
