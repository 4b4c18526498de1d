package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lockstep/cdc"
)

func TestAListOfKeysIsReadLineByLine(t *testing.T) {
	a := &app{stdin: strings.NewReader("{\"id\":1}\n\n {\"id\":2} \n{\"id\":1}\n{\"id\":3}")}
	keys, lines, err := a.readKeys("-")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%s %v", keys, lines); got != `[{"id":1} {"id":2} {"id":3}] [1 3 5]` {
		t.Error(got)
	}
	for text, want := range map[string]string{
		"{\"id\":1}\n7":        "line 2: 7 is not a JSON object",
		"\n{\"id\":":           "line 2",
		"":                     "no key",
		"{\"id\":1}{\"id\":2}": "line 1",
	} {
		a := &app{stdin: strings.NewReader(text)}
		if _, _, err := a.readKeys("-"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}

func TestALongListOfKeysBecomesSeveralRequests(t *testing.T) {
	var keys [][]byte
	for i := range 12_000 {
		keys = append(keys, fmt.Appendf(nil, `{"id":%d}`, i))
	}
	f := snapshotFlags{id: "x", table: "d.t"}
	parts := f.requests(keys)
	var got []string
	n := 0
	for _, p := range parts {
		got = append(got, fmt.Sprintf("%s %d", p.ID, len(p.Keys)))
		n += len(p.Keys)
	}
	if diff := cmp.Diff([]string{"x.1 5000", "x.2 5000", "x.3 2000"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	wide := [][]byte{[]byte(`"` + strings.Repeat("k", 300<<10) + `"`), []byte(`"` + strings.Repeat("k", 300<<10) + `"`), []byte(`"k"`)}
	if parts := f.requests(wide); len(parts) != 2 || len(parts[1].Keys) != 2 {
		t.Errorf("%d requests for wide keys", len(parts))
	}
	if one := f.requests(nil); len(one) != 1 || one[0].ID != "x" || one[0].Want != cdc.SnapshotRunning {
		t.Errorf("%+v", one)
	}
}

func TestTheBarShowsHowFarASnapshotIs(t *testing.T) {
	sn := listedSnapshot{Snapshot: cdc.Snapshot{ID: "s", State: cdc.SnapshotRunning, Rows: 600, Estimate: 1200}}
	for want, got := range map[string]string{
		"[############------------]  50% 600 rows, 50 rows/s, 12s left": progressLine(sn, 100, 10*time.Second),
		"[############------------]  50% 600 rows":                      progressLine(sn, 600, 10*time.Second),
	} {
		if !strings.HasSuffix(got, want) {
			t.Errorf("got %q, want %q at the end", got, want)
		}
	}
	sn.State, sn.Problem = cdc.SnapshotFailed, "no such\ncolumn"
	if got := progressLine(sn, 0, time.Second); !strings.HasSuffix(got, "600 rows, failed: "+oneLine(sn.Problem)) {
		t.Error(got)
	}
}

func TestSnapshotsThatHaveMendedALossAreLeftOut(t *testing.T) {
	for id, want := range map[string]map[cdc.SnapshotState]bool{
		"lost-cache-d.t-a":    {cdc.SnapshotDone: true, cdc.SnapshotRunning: false, cdc.SnapshotFailed: false, cdc.SnapshotCancelled: false},
		"replay-x.1.2":        {cdc.SnapshotDone: true, cdc.SnapshotFailed: false},
		"repair-2-d.t-1":      {cdc.SnapshotDone: true, cdc.SnapshotRunning: false},
		"first-d.t-1-0":       {cdc.SnapshotDone: false},
		"d.t-20261122T081530": {cdc.SnapshotDone: false},
	} {
		for state, want := range want {
			if got := mended(listedSnapshot{Snapshot: cdc.Snapshot{ID: id, State: state}}); got != want {
				t.Errorf("%s, %s: left out %v", id, state, got)
			}
		}
	}
}

func TestSnapshotStartNamesItsMistakes(t *testing.T) {
	path := file(t, "lockstep.yaml", `
prefix: p
source: {addr: "127.0.0.1:1", user: u, password: p, server_id: 1}
kafka: {brokers: ["127.0.0.1:1"]}
sinks: {cache: {redis: {addresses: ["127.0.0.1:1"]}}}
tables: [{match: d.t, redis: {key: "t:{id}"}}]
`)
	for args, want := range map[string]string{
		"":                                   `--table "" is not db.table`,
		"--table t":                          `--table "t" is not db.table`,
		"--table d.other":                    "--table d.other is not captured",
		"--table d.t --where a --keys b":     "exclude each other",
		"--table d.t --sweep --where a":      "--sweep goes with a copy of the whole table",
		"--table d.t --id a/b":               "has other characters",
		"--table d.t --id first-d.t":         "as those of first copies do",
		"--table d.t --id repair-d.t":        "as those of repairs do",
		"--table d.t --id replay-x.1.2":      "as those of replays do",
		"--table d.t --id lost-d.t":          "as those of what a store has lost do",
		"--table d.t --id epoch-2-d.t":       "as those of new copies do",
		"--table d.t --where=":               "--where is empty",
		"--table d.t --keys=":                "--keys is empty",
		"--table d.t --keys /no/such/file/x": "no such file",
	} {
		got := lockstep(t, nil, append([]string{"snapshot", "start", "-c", path}, strings.Fields(args)...)...)
		if got.code != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("%s: exit code %d, %s; want %q", args, got.code, got.stderr, want)
		}
	}
}
