package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const scraped = `
# TYPE lockstep_sink_changes_total counter
lockstep_sink_changes_total{outcome="applied",sink="search",table="d.t"} 7
lockstep_sink_changes_total{outcome="superseded",sink="search",table="d.t"} 2
lockstep_sink_changes_total{outcome="released",sink="search",table="d.t"} 4
lockstep_sink_changes_total{outcome="applied",sink="cache",table="d.t"} 100
# TYPE lockstep_sink_latency_seconds histogram
lockstep_sink_latency_seconds_bucket{sink="search",table="d.t",le="0.1"} BEFORE
lockstep_sink_latency_seconds_bucket{sink="search",table="d.t",le="0.2"} MIDDLE
lockstep_sink_latency_seconds_bucket{sink="search",table="d.t",le="1"} MIDDLE
lockstep_sink_latency_seconds_bucket{sink="search",table="d.t",le="+Inf"} ALL
lockstep_sink_latency_seconds_sum{sink="search",table="d.t"} 1
lockstep_sink_latency_seconds_count{sink="search",table="d.t"} ALL
lockstep_sink_latency_seconds_bucket{sink="cache",table="d.t",le="0.1"} 1000
lockstep_sink_latency_seconds_bucket{sink="cache",table="d.t",le="+Inf"} 1000
lockstep_sink_latency_seconds_sum{sink="cache",table="d.t"} 1
lockstep_sink_latency_seconds_count{sink="cache",table="d.t"} 1000
`

func scrape(t *testing.T, before, middle, all string) metrics {
	t.Helper()
	m, err := parseMetrics(strings.NewReader(strings.NewReplacer("BEFORE", before, "MIDDLE", middle, "ALL", all).Replace(scraped)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAQuantileIsOfWhatCameBetweenTwoScrapes(t *testing.T) {
	const name = "lockstep_sink_latency_seconds"
	earlier := scrape(t, "1000", "1000", "1000").histogram(name, "sink", "search")
	// Of 100 more, 20 took up to 0.1 s, 79 up to 0.2 s, and one more than 1 s.
	h := scrape(t, "1020", "1099", "1100").histogram(name, "sink", "search").since(earlier)
	if h.count != 100 {
		t.Fatalf("want 100 observations, got %v", h.count)
	}
	for q, want := range map[float64]float64{
		.1:  .05,                // half way through the first bucket
		.2:  .1,                 // its end
		.5:  .1 + .1*30/79,      // 30 of 79 into the second
		.99: .2,                 // its end, although the next bucket is as high
		1:   1,                  // beyond the last bound there is no more to say
		.05: .1 * 5 / 20,        //
		.95: .1 + .1*(95-20)/79, //
	} {
		if got := h.quantile(q); math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %v: want %v, got %v", q, want, got)
		}
	}
	if got := earlier.since(earlier).quantile(.5); !math.IsNaN(got) {
		t.Errorf("the quantile of nothing: want NaN, got %v", got)
	}
}

func TestWhatWasGivenBackHasNotSettled(t *testing.T) {
	m := scrape(t, "0", "0", "0")
	if got := m.settled("search"); got != 9 {
		t.Errorf("want 7 applied and 2 superseded, got %d", got)
	}
	if got := m.outcome("search", "superseded"); got != 2 {
		t.Errorf("want 2, got %d", got)
	}
}

func TestAQuantileOfSamplesIsOneOfThem(t *testing.T) {
	var sorted []time.Duration
	if got := quantile(sorted, .5); got != 0 {
		t.Errorf("of none: want 0, got %s", got)
	}
	for i := range 100 {
		sorted = append(sorted, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0: 0, .5: 50, .99: 99, 1: 99} {
		if got := quantile(sorted, q); got != want {
			t.Errorf("quantile %v: want %d, got %d", q, want, got)
		}
	}
}

func TestTheFileKeepsItsShape(t *testing.T) {
	b := bench{}
	b.beside("capture.rows", 90_000.4, "rows/s", 120_000)
	b.add("capture.start", .123456, "s")
	b.add("search.rows", math.NaN(), "rows/s")
	r := Report{
		Header: Header{Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Commit: "abc", CPUs: 2, Load: 1.5, Rows: 500000, Seconds: 300, Warnings: 3,
			Versions: map[string]string{"mysql": "9.7.4"}},
		Figures: b.figures,
	}
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := r.save(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{
		"header": {"date": "2026-01-02T03:04:05Z", "commit": "abc", "cpus": 2, "load": 1.5, "rows": 500000, "seconds": 300, "warnings": 3, "versions": {"mysql": "9.7.4"}},
		"figures": [
			{"name": "capture.rows", "value": 90000, "unit": "rows/s", "ceiling": 120000, "ratio": 0.75},
			{"name": "capture.start", "value": 0.1235, "unit": "s", "ceiling": null, "ratio": null},
			{"name": "search.rows", "value": 0, "unit": "rows/s", "ceiling": null, "ratio": null}
		]}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	table := r.table()
	for _, want := range []string{"90,000", "120,000", "0.75", "capture.start"} {
		if !strings.Contains(table, want) {
			t.Errorf("%q is not in the table:\n%s", want, table)
		}
	}
}

func TestTheVersionsComeFromTheStatusOfTheServers(t *testing.T) {
	versions := map[string]string{"mysql": "unknown", "redis": "unknown"}
	readVersions("SERVER ADDRESS STATE VERSION PID LOG\nmysql 127.0.0.1:13306 up 9.7.4-2 12 /log\nmariadb x up 10.11 13 /log\nredis x down\n", versions)
	if diff := cmp.Diff(map[string]string{"mysql": "9.7.4-2", "redis": "unknown"}, versions); diff != "" {
		t.Error(diff)
	}
}

func TestTheKernelSaysWhatAProcessUsed(t *testing.T) {
	got, err := parseUsage("12 (a) b) R 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20", "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n")
	if want := (usageOf{CPU: 2, PeakMB: 2}); err != nil || got != want {
		t.Errorf("want %v, got %v, %v", want, got, err)
	}
	if _, err := parseUsage("12 (a) R 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20", "Name:\tx\n"); err == nil {
		t.Error("no VmHWM: want an error")
	}
	if self, err := usageNow(os.Getpid()); err != nil || self.PeakMB < 1 {
		t.Errorf("this process: %v, %v", self, err)
	}
}

func TestOnlyNamesOfTheBenchAreRemoved(t *testing.T) {
	for name, want := range map[string]bool{
		"bench-1795385452": true, "bench-1795385452-questions.lockstep_bench.questions": true, "bench-1795385452-questions.search": true,
		"bench-1795385452-warm": true, "bench-1795385452:bare:1": true,
		"bench-products": false, "bench-2026": false, "shop.bench-1795385452": false, "bench-17953854520x": false,
	} {
		if got := ours.MatchString(name); got != want {
			t.Errorf("%s: want %t, got %t", name, want, got)
		}
	}
}

func TestARefusedDocumentIsAnErrorAndAnOvertakenOneIsNot(t *testing.T) {
	for answer, want := range map[string]bool{
		`{"errors":false,"items":[{"index":{"status":201}}]}`:                         true,
		`{"errors":true,"items":[{"index":{"status":200}},{"index":{"status":409}}]}`: true,
		`{"errors":true,"items":[{"index":{"status":409}},{"index":{"status":400}}]}`: false,
		`{"errors":true,"items":[{"index":{"status":201}},{"index":{"status":429}}]}`: false,
	} {
		if err := checkBulk([]byte(answer)); (err == nil) != want {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

func TestARowHasTheSizeItIsSaidToHave(t *testing.T) {
	least, most := math.MaxInt, 0
	for id := 1; id <= 300_000; id += 97 {
		n := len(appendRow(nil, id))
		least, most = min(least, n), max(most, n)
	}
	if least < 380 || most > 460 {
		t.Errorf("rows have %d to %d bytes, want about 420", least, most)
	}
}

func TestOnlyTheChosenPartsAreMeasured(t *testing.T) {
	var b bench
	if !b.wants("large") || !b.sinks() {
		t.Error("without a choice everything is measured")
	}
	if err := b.only("capture,ack"); err != nil || !b.wants("ack") || !b.wants("capture", "search") || b.wants("large") || b.sinks() {
		t.Errorf("chosen are %v, %v", b.parts, err)
	}
	if err := b.only("capture,everything"); err == nil {
		t.Error("a part that does not exist was chosen")
	}
}
