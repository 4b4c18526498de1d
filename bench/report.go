package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is the file that a run leaves.
type Report struct {
	Header  Header   `json:"header"`
	Figures []Figure `json:"figures"`
}

// Header says what the figures were measured with.
type Header struct {
	Date     time.Time         `json:"date"`
	Commit   string            `json:"commit"`
	CPUs     int               `json:"cpus"`
	Load     float64           `json:"load"` // of the machine, over the minute before
	Versions map[string]string `json:"versions"`
	Rows     int               `json:"rows"`
	Seconds  float64           `json:"seconds"`  // that the run took
	Warnings int               `json:"warnings"` // in lockstep's logs; not 0 means that the run was disturbed
}

// Figure is one measured value. Ceiling is what the bare loop did in the same run,
// and Ratio value / ceiling; both are null where there is no bare loop.
type Figure struct {
	Name    string   `json:"name"`
	Value   float64  `json:"value"`
	Unit    string   `json:"unit"`
	Ceiling *float64 `json:"ceiling"`
	Ratio   *float64 `json:"ratio"`
}

// header looks around. What it cannot learn it calls unknown.
func (b *bench) header(ctx context.Context) Header {
	h := Header{Date: b.began.UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Rows: b.rows, Commit: "unknown",
		Versions: map[string]string{"go": runtime.Version(), "mysql": "unknown", "kafka": "unknown", "elasticsearch": "unknown", "redis": "unknown"}}
	// Without optional locks git only reads.
	if out, err := exec.CommandContext(ctx, "git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude", "*").Output(); err == nil {
		h.Commit = strings.TrimSpace(string(out))
	}
	if out, err := exec.CommandContext(ctx, "deploy/local/servers", "status").Output(); err == nil {
		readVersions(string(out), h.Versions)
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		h.Load, _ = strconv.ParseFloat(strings.Fields(string(text) + " -")[0], 64)
	}
	return h
}

// readVersions takes the versions of the servers that are wanted from a table with
// columns of which the first is SERVER and the fourth VERSION.
func readVersions(table string, versions map[string]string) {
	for lines := bufio.NewScanner(strings.NewReader(table)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 3 && versions[fields[0]] != "" {
			versions[fields[0]] = fields[3]
		}
	}
}

// save writes the report whole or not at all.
func (r Report) save(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path))
	if err != nil {
		return err
	}
	_, err = file.Write(append(text, '\n'))
	if err := errors.Join(err, file.Chmod(0o644), file.Close()); err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return os.Rename(file.Name(), path)
}

// table is the report for the eye.
func (r Report) table() string {
	var text strings.Builder
	h := r.Header
	fmt.Fprintf(&text, "\n%s row changes, %d CPUs, load %.1f before, %s, commit %s, %.0f s, %d warnings\nMySQL %s, Kafka %s, Elasticsearch %s, Redis %s, %s\n\n",
		thousands(float64(h.Rows)), h.CPUs, h.Load, h.Date.Format(time.DateTime), h.Commit, h.Seconds, h.Warnings,
		h.Versions["mysql"], h.Versions["kafka"], h.Versions["elasticsearch"], h.Versions["redis"], h.Versions["go"])
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "NAME\tVALUE\tUNIT\tCEILING\tRATIO\t\n")
	group := ""
	for _, f := range r.Figures {
		if of, _, _ := strings.Cut(f.Name, "."); of != group {
			if group != "" {
				fmt.Fprintf(w, "\t\t\t\t\t\n")
			}
			group = of
		}
		ceiling, ratio := "", ""
		if f.Ceiling != nil {
			ceiling, ratio = number(*f.Ceiling), fmt.Sprintf("%.2f", *f.Ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", f.Name, number(f.Value), f.Unit, ceiling, ratio)
	}
	w.Flush()
	return text.String()
}

// round keeps four digits: there are no more in any measurement.
func round(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0 // JSON knows no others
	}
	if math.Abs(v) >= 1000 {
		return math.Round(v)
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

func number(v float64) string {
	if math.Abs(v) >= 1000 {
		return thousands(v)
	}
	return strconv.FormatFloat(round(v), 'f', -1, 64)
}

// thousands writes a whole number with its thousands set apart.
func thousands(v float64) string {
	text := strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
