package lockstep

import (
	"fmt"
	"os"
	"regexp"
	"testing"
)

// docs/upgrading.md tells the numbers that the code has.
func TestTheFormatsInTheDocsAreThoseOfTheCode(t *testing.T) {
	text, err := os.ReadFile("docs/upgrading.md")
	if err != nil {
		t.Fatal(err)
	}
	for what, at := range map[string][2]string{
		"changes":             {"cdc/wire.go", `const Format = (\d+)`},
		"position":            {"cdc/position.go", `const PositionFormat = (\d+)`},
		"requests for copies": {"cdc/position.go", `const SnapshotRequestFormat = (\d+)`},
		"dead letters":        {"dlq/letter.go", `letterFormat = "(\d+)"`},
		"replays":             {"dlq/job.go", `jobFormat = (\d+)`},
		"audit log":           {"audit/audit.go", `\bformat    = (\d+)`},
		"watermarks":          {"freshness/watermarks.go", `const Format = (\d+)`},
		"comparisons":         {"reconcile/state.go", `const stateFormat = (\d+)`},
		"routes":              {"route/board.go", `const savedFormat = (\d+)`},
	} {
		code, err := os.ReadFile(at[0])
		if err != nil {
			t.Fatal(err)
		}
		number := regexp.MustCompile(at[1]).FindSubmatch(code)
		if number == nil {
			t.Fatalf("%s has no %s", at[0], at[1])
		}
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| %s \| [^|]* \| %s \|`, what, number[1]))
		if !row.Match(text) {
			t.Errorf("docs/upgrading.md does not say that %s have format %s", what, number[1])
		}
	}
}
