// Command gen writes config/schema.json and docs/config.md. It is apart from the
// product because it reads Go source.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"lockstep/config/internal/reference"
)

func main() {
	if err := generate(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func generate() error {
	// go generate starts a command in the folder of the file that names it.
	if err := os.Chdir(".."); err != nil {
		return err
	}
	schema, markdown, err := reference.Generate()
	if err != nil {
		return err
	}
	if err := os.MkdirAll("docs", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join("config", "schema.json"), schema, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join("docs", "config.md"), markdown, 0o644)
}
