package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Whoever reads a runbook at night copies from it.
func TestEveryCommandInTheRunbooksIsOne(t *testing.T) {
	pages, err := filepath.Glob("../../docs/runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, page := range append(pages, "../../docs/watch.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range commandsIn(string(text)) {
			commands++
			if err := parses(line); err != nil {
				t.Errorf("%s: %s: %v", filepath.Base(page), line, err)
			}
		}
	}
	if commands < 60 {
		t.Errorf("only %d commands are found", commands)
	}
	for _, wrong := range []string{"lockstep dlq lst", "lockstep status --lettres", "lockstep snapshot pause", "lockstep dlq list stray", "lockstep capture --skip-gtid"} {
		if parses(wrong) == nil {
			t.Errorf("%s is taken", wrong)
		}
	}
}

// inText is a command between backquotes, which may go over the end of a line.
var inText = regexp.MustCompile("`(lockstep [^`]+)`")

// commandsIn finds the lines of blocks and the words between backquotes that call lockstep.
func commandsIn(text string) (commands []string) {
	for i, part := range strings.Split(text, "```") {
		if i%2 == 0 {
			for _, m := range inText.FindAllStringSubmatch(part, -1) {
				commands = append(commands, strings.Join(strings.Fields(m[1]), " "))
			}
			continue
		}
		for line := range strings.Lines(part) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "lockstep ") {
				commands = append(commands, line)
			}
		}
	}
	return commands
}

// parses says what is wrong with a command line: a command, flags and values that there are
// not. Nothing of it is done.
func parses(line string) error {
	line, _, _ = strings.Cut(line, " | ")
	root := testRoot()
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	words := wordsOf(line)[1:]
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if cmd.HasSubCommands() {
		return fmt.Errorf("%s is no command by itself", cmd.CommandPath())
	}
	known := map[string]string{"GTID": "3e11fa47-71ca-11e1-9e33-c80aa9429562:23", "DB.TABLE": "shop.orders", "F": "c0ffee123456"}
	for i, word := range rest {
		if value, ok := known[word]; ok {
			rest[i] = value
		}
	}
	cmd.RunE = func(*cobra.Command, []string) error { return nil }
	root.SetArgs(append(strings.Fields(strings.TrimPrefix(cmd.CommandPath(), "lockstep ")), rest...))
	return root.Execute()
}

// wordsOf splits a line as a shell does, as far as it is written here.
func wordsOf(line string) (words []string) {
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 0 {
			words = append(words, strings.Fields(part)...)
		} else {
			words = append(words, part)
		}
	}
	return words
}
