// Command gen writes values.schema.json and README.md of the chart.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"lockstep/config"
	"lockstep/deploy/helm"
)

func main() {
	if err := generate("lockstep"); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func generate(chart string) error {
	schema, readme, err := helm.Generate(chart, config.Schema)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(chart, "values.schema.json"), schema, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(chart, "README.md"), readme, 0o644)
}
