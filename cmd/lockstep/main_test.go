package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"lockstep/config"
)

const waitForSignals = "LOCKSTEP_TEST_WAITS_FOR_SIGNALS"

const isLockstep = "LOCKSTEP_TEST_IS_LOCKSTEP"

func TestMain(m *testing.M) {
	if os.Getenv(isLockstep) != "" { // we are a process of a test
		main()
	}
	if os.Getenv(waitForSignals) == "" {
		os.Exit(m.Run())
	}
	// We are the child of a test: a command that never gets done with stopping.
	untilSignal(func(ctx context.Context) int {
		fmt.Println("running")
		<-ctx.Done()
		fmt.Println("stopping")
		select {}
	})
}

type result struct {
	code           int
	stdout, stderr string
}

func lockstep(t *testing.T, env map[string]string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	look := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	code := run(t.Context(), args, strings.NewReader(""), &stdout, &stderr, look)
	return result{code, stdout.String(), stderr.String()}
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheFirstSignalStopsAndTheSecondEndsAtOnce(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), waitForSignals+"=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		expect := func(want string) {
			t.Helper()
			if !lines.Scan() || lines.Text() != want {
				t.Fatalf("the child says %q, want %q", lines.Text(), want)
			}
		}
		expect("running")
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		expect("stopping")
		// The default action of the signal comes back a moment after the first one;
		// until then another one is swallowed, so it is sent until the child is gone.
		gone := make(chan error, 1)
		go func() { _, err := io.Copy(io.Discard, out); gone <- errors.Join(err, cmd.Wait()) }()
		for ended := false; !ended; {
			select {
			case err = <-gone:
				ended = true
			case <-time.After(10 * time.Millisecond):
				_ = cmd.Process.Signal(sig)
			}
		}
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.Sys().(syscall.WaitStatus).Signal() != sig {
			t.Errorf("%s: the child ended with %v, want to be ended by the signal", sig, err)
		}
	}
}

// A SIGHUP has the file read, and ends no process, nor one that is stopping.
func TestAHangUpEndsNoProcess(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	config := file(t, "lockstep.yaml", strings.Replace(planned, `admin: {listen: ""}`, "admin: {listen: \"127.0.0.1:0\"}\nkafka: {brokers: [\"127.0.0.1:1\"]}", 1))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "admin", "-c", config)
	cmd.Env = append(os.Environ(), isLockstep+"=1")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	says := func(word string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), word) {
				return
			}
		}
		t.Fatalf("it ends before it says %q: %v", word, cmd.Wait())
	}
	says("lockstep starts")
	send := func(sig syscall.Signal) {
		if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
	send(syscall.SIGHUP)
	says("the configuration was read again")
	send(syscall.SIGTERM)
	gone := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, out); gone <- errors.Join(err, cmd.Wait()) }()
	for {
		select {
		case err := <-gone:
			if err != nil {
				t.Errorf("it ended with %v", err)
			}
			return
		case <-time.After(time.Millisecond):
			send(syscall.SIGHUP)
		}
	}
}

func TestAMistakeInTheCommandLineIsExitCodeTwoAndOneLine(t *testing.T) {
	good := file(t, "lockstep.yaml", string(config.Example))
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"an unknown command":                {[]string{"confg"}, "lockstep: unknown command \"confg\"; did you mean config?; see lockstep --help"},
		"an unknown command of a group":     {[]string{"config", "chekc"}, "lockstep: unknown command \"chekc\"; did you mean check?; see lockstep config --help"},
		"a word like no command":            {[]string{"zzzzzz"}, "lockstep: unknown command \"zzzzzz\"; see lockstep --help"},
		"an unknown flag":                   {[]string{"config", "check", "--confgi", "x"}, "lockstep: unknown flag --confgi; did you mean --config?; see lockstep config check --help"},
		"an unknown short flag":             {[]string{"version", "-z"}, "lockstep: unknown flag -z; see lockstep version --help"},
		"a flag without its value":          {[]string{"version", "-o"}, "lockstep: flag needs an argument: 'o' in -o; see lockstep version --help"},
		"an argument too many":              {[]string{"version", "now"}, "lockstep: unknown command \"now\" for \"lockstep version\""},
		"an output that is not known":       {[]string{"version", "-o", "xml"}, "lockstep: --output \"xml\" is not known; use table, json or yaml"},
		"a log level that is not known":     {[]string{"version", "--log-level", "loud"}, "lockstep: --log-level \"loud\" is not known; use debug, info, warn or error"},
		"a condition for all tables":        {[]string{"reconcile", "--once", "--where", "id > 1"}, "lockstep: --where is about the columns of one table; name it with --table"},
		"a condition that is empty":         {[]string{"reconcile", "--once", "--table", "a.b", "--where", " "}, "lockstep: --where is empty; leave it out to compare all"},
		"a repair that never ends":          {[]string{"reconcile", "--repair"}, "lockstep: --repair is of one pass; add --once"},
		"a dry run of nothing":              {[]string{"reconcile", "--once", "--dry-run"}, "lockstep: --dry-run says what --repair would do, and without --repair nothing is changed; leave it out, or add --repair"},
		"a rate without a repair":           {[]string{"reconcile", "--once", "--rate", "5"}, "lockstep: --rate is of a repair; add --repair"},
		"a rate below nothing":              {[]string{"reconcile", "--once", "--repair", "--rate", "-1"}, "lockstep: --rate -1 is too small; use 1 or more rows a second, or 0 for no bound"},
		"a sink that is not there":          {[]string{"reconcile", "--once", "--sink", "serach"}, "lockstep: " + good + " has no sink \"serach\"; it has cache, search"},
		"a configuration that is not there": {[]string{"config", "check", "-c", "nowhere.yaml"}, "nowhere.yaml: there is no such file; name one with --config, or begin with: lockstep config example > lockstep.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			got := lockstep(t, map[string]string{"LOCKSTEP_CONFIG": good}, tc.args...)
			if diff := cmp.Diff(result{2, "", tc.want + "\n"}, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAnErrorWhileRunningIsExitCodeOneAndPrintedOnce(t *testing.T) {
	var stderr bytes.Buffer
	for want, err := range map[int]error{
		1: errors.New("publish shop.bank.tags/3: broker 1 is gone"),
		2: usageError{errors.New("lockstep.yaml has no sink \"x\"")},
	} {
		stderr.Reset()
		a := &app{stderr: &stderr, stdout: io.Discard, env: func(string) (string, bool) { return "", false }}
		root := newRoot(a)
		failing := &cobra.Command{Use: "fail", RunE: func(*cobra.Command, []string) error { return fmt.Errorf("run: %w", err) }}
		a.watch(failing)
		root.AddCommand(failing)
		root.SetArgs([]string{"fail"})
		if got := a.report(root.ExecuteContext(t.Context())); got != want {
			t.Errorf("%v: exit code %d, want %d", err, got, want)
		}
		if got, want := stderr.String(), fmt.Sprintf("lockstep: run: %v\n", err); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// What is read by a machine has nothing else in it: not the sentence with which a process
// ends, nor what a library writes by itself.
func TestALogInJSONIsNothingButJSON(t *testing.T) {
	was := slog.Default()
	t.Cleanup(func() {
		slog.SetDefault(was)
		log.SetOutput(os.Stderr)
	})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path := file(t, "lockstep.yaml", `prefix: shop
source: {addr: "127.0.0.1:1", user: u, server_id: 7}
sinks: {cache: {redis: {addresses: ["127.0.0.1:1"]}}}
tables: [{match: "shop.orders", redis: {key: "orders:{pk}"}}]
log: {format: json}
admin: {listen: "`+taken.Addr().String()+`"}
`)
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"run", "-c", path}, strings.NewReader(""), io.Discard, &stderr, os.LookupEnv)
	log.Print("Unsolicited response received on idle HTTP channel")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	said := stderr.String()
	for line := range strings.Lines(said) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil || fields["pipeline"] != "shop" {
			t.Errorf("%v: %s", err, line)
		}
	}
	for _, want := range []string{`"level":"ERROR"`, "admin.listen: ", "Unsolicited"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %s in\n%s", want, said)
		}
	}
}

func TestConfigCheckOfAGoodFileSaysWhatItHolds(t *testing.T) {
	path := file(t, "lockstep.yaml", string(config.Example))
	got := lockstep(t, nil, "config", "check", "-c", path)
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("got %+v", got)
	}
	for _, want := range []string{
		path + " is ok: pipeline shop, 2 sinks, 4 table entries\n",
		"search  elastic  http://127.0.0.1:19200\n",
		"cache   redis    127.0.0.1:16379\n",
		"question:{id}",
	} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is not in:\n%s", want, got.stdout)
		}
	}
	got = lockstep(t, nil, "config", "check", "-c", path, "-o", "json")
	var sum checked
	if err := json.Unmarshal([]byte(got.stdout), &sum); err != nil || got.code != 0 {
		t.Fatalf("%v: %+v", err, got)
	}
	if !sum.OK || len(sum.Sinks) != 2 || sum.Sinks[0].Name != "cache" || len(sum.Tables) != 4 || !sum.Tables[2].Skip || sum.Tables[0].RedisKey != "question:{id}" {
		t.Errorf("got %+v", sum)
	}
}

func TestConfigCheckOfABadFileNamesEachMistakeOnALineAndExitsWithTwo(t *testing.T) {
	text := strings.NewReplacer("prefix: shop", "prefix: my shop", "server_id: 4001", "server-id: 4001").Replace(string(config.Example))
	path := file(t, "lockstep.yaml", text)
	for _, output := range []string{"table", "json"} {
		got := lockstep(t, nil, "config", "check", "-c", path, "-o", output)
		lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
		if got.code != 2 || len(lines) != 3 {
			t.Fatalf("got %+v", got)
		}
		for _, line := range lines {
			if !strings.HasPrefix(line, path+":") {
				t.Errorf("%q does not begin with its place", line)
			}
		}
		if output == "table" {
			if got.stdout != "" {
				t.Errorf("standard output has %q", got.stdout)
			}
			continue
		}
		var sum checked
		if err := json.Unmarshal([]byte(got.stdout), &sum); err != nil || sum.OK || len(sum.Problems) != 3 || sum.Problems[0].Path != "prefix" || sum.Problems[0].Line == 0 {
			t.Errorf("%v: %+v", err, sum)
		}
	}
}

func TestTheConfigurationIsFoundByFlagThenVariableThenName(t *testing.T) {
	good := file(t, "good.yaml", string(config.Example))
	env := map[string]string{"LOCKSTEP_CONFIG": "from-env.yaml"}
	if got := lockstep(t, env, "config", "check", "-c", good); got.code != 0 {
		t.Errorf("the flag does not win: %+v", got)
	}
	if got := lockstep(t, env, "config", "check"); !strings.HasPrefix(got.stderr, "from-env.yaml: ") {
		t.Errorf("the variable is not read: %+v", got)
	}
	if got := lockstep(t, nil, "config", "check"); !strings.HasPrefix(got.stderr, "lockstep.yaml: ") {
		t.Errorf("the name is not lockstep.yaml: %+v", got)
	}
}

func TestVariablesOfTheConfigurationComeFromTheEnvironmentOfTheCommand(t *testing.T) {
	path := file(t, "lockstep.yaml", strings.Replace(string(config.Example), "prefix: shop", "prefix: ${NAME}", 1))
	if got := lockstep(t, map[string]string{"NAME": "bazaar"}, "config", "check", "-c", path); !strings.Contains(got.stdout, "pipeline bazaar") {
		t.Errorf("got %+v", got)
	}
}

func TestTheExampleAndTheSchemaArePrintedAsTheyAre(t *testing.T) {
	if got := lockstep(t, nil, "config", "example"); got != (result{0, string(config.Example), ""}) {
		t.Errorf("got %+v", got)
	}
	if got := lockstep(t, nil, "config", "schema"); got != (result{0, string(config.Schema), ""}) {
		t.Errorf("got %+v", got)
	}
}

func TestVersionSaysWhatWasBuilt(t *testing.T) {
	got := lockstep(t, nil, "version")
	if got.code != 0 || !strings.HasPrefix(got.stdout, "lockstep ") || !strings.Contains(got.stdout, "go1.") {
		t.Errorf("got %+v", got)
	}
	var b build
	if err := json.Unmarshal([]byte(lockstep(t, nil, "version", "-o", "json").stdout), &b); err != nil || b.Version == "" || b.Commit == "" || b.Go == "" || b.Platform == "" {
		t.Errorf("%v: %+v", err, b)
	}
}

func TestTheLinkersVersionGoesBeforeTheModules(t *testing.T) {
	info := &debug.BuildInfo{Main: debug.Module{Version: "v0.1.0"}, Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"}}}
	if b := thisBuild(info); b.Version != "v0.1.0" || b.Commit != "abc (changed)" {
		t.Errorf("got %+v", b)
	}
	version = "v9.9.9"
	defer func() { version = "" }()
	if b := thisBuild(info); b.Version != "v9.9.9" {
		t.Errorf("got %+v", b)
	}
	version = ""
	if b := thisBuild(nil); b.Version != "unknown" || b.Commit != "unknown" {
		t.Errorf("got %+v", b)
	}
}

func testRoot() *cobra.Command {
	return newRoot(&app{stdout: io.Discard, stderr: io.Discard, env: func(string) (string, bool) { return "", false }})
}

func TestEveryCommandTeachesByExampleAndTakesNoStrayWords(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Name() == "completion" || cmd.Name() == "help" {
			return // cobra's own
		}
		if cmd.Short == "" || cmd.Example == "" || !strings.Contains(cmd.Example, cmd.CommandPath()) && !cmd.HasSubCommands() {
			t.Errorf("%s has no example of itself", cmd.CommandPath())
		}
		if cmd.Args == nil {
			t.Errorf("%s does not say which arguments it takes", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(testRoot())
}

func TestTheGeneratedPagesAreFresh(t *testing.T) {
	pages, err := generatedPages(testRoot())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range pages {
		got, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(got), string(want)); diff != "" {
			t.Errorf("docs/%s is stale; run: go generate ./cmd/lockstep\n%s", name, diff)
		}
	}
	if n := strings.Count(string(pages["metrics.md"]), "| `lockstep_"); n < 30 {
		t.Errorf("docs/metrics.md lists %d metrics; it cannot read them any more", n)
	}
}

func TestCompletionOffersTheSinksOfAConfigurationThatIsNotRightYet(t *testing.T) {
	path := file(t, "lockstep.yaml", "prefix: ${UNSET}\nsinks:\n  search: {elastic: {}}\n  cache:\n")
	a := &app{configPath: path, stdout: io.Discard, stderr: io.Discard}
	if got, _ := a.completeSink(nil, nil, ""); !cmp.Equal(got, []string{"search", "cache"}) {
		t.Errorf("got %q", got)
	}
	if got, _ := a.completeSink(nil, []string{"search"}, ""); got != nil {
		t.Errorf("a second argument is offered: %q", got)
	}
	a.configPath = "nowhere.yaml"
	a.env = func(string) (string, bool) { return "", false }
	if got, _ := a.completeSink(nil, nil, ""); got != nil {
		t.Errorf("without a configuration: %q", got)
	}
}

func TestCompletionOffersNamesOfTheConfigurationAndNoFilesInTheirPlace(t *testing.T) {
	path := file(t, "lockstep.yaml", "sinks: {search: {elastic: {}}}\ntables:\n  - {match: shop.orders}\n  - match: bank.*\n  - {match: bank.tags, redis: {}}\n")
	for line, want := range map[string]string{
		"barrier --table": "shop.orders\nbank.tags\n:4\n", "snapshot start --table": "shop.orders\nbank.tags\n:4\n", "dlq list --table": "shop.orders\nbank.tags\n:4\n",
		"barrier --sink": "search\n:4\n", "dlq list --sink": "search\n:4\n", "doctor sink": "search\n:4\n", "doctor": "capture\nsink\nreconcile\nadmin\n:4\n",
		"run --on-gap": "stop\nresnapshot\n:4\n", "barrier --gtid": ":4\n", "config check --against": ":0\n", "config check": ":4\n", "dlq import": ":0\n",
	} {
		got := lockstep(t, nil, append(append([]string{"__complete", "-c", path}, strings.Fields(line)...), "")...)
		if got.stdout != want {
			t.Errorf("behind %s a shell offers %q; want %q", line, got.stdout, want)
		}
	}
}

func TestCompletionScriptsAndHelpWork(t *testing.T) {
	for _, args := range [][]string{{"completion", "bash"}, {"completion", "zsh"}, {"--help"}, {}, {"config"}, {"config", "check", "--help"}} {
		if got := lockstep(t, nil, args...); got.code != 0 || got.stdout == "" || got.stderr != "" {
			t.Errorf("%q: code %d, stderr %q", args, got.code, got.stderr)
		}
	}
	if got := lockstep(t, nil, "__complete", "version", "-o", ""); !strings.Contains(got.stdout, "json") {
		t.Errorf("the values of --output are not offered: %+v", got)
	}
	if got := lockstep(t, nil, "--help"); !strings.Contains(got.stdout, "lockstep config example") || strings.Contains(got.stdout, "docs") {
		t.Errorf("got:\n%s", got.stdout)
	}
}

func TestASinkThatIsNotConfiguredIsAUsageErrorThatNamesThoseThatAre(t *testing.T) {
	c, err := config.Parse("t.yaml", config.Example, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	a := &app{configPath: "t.yaml"}
	if s, err := a.sinkNamed(c, "cache"); err != nil || s.Redis == nil {
		t.Errorf("%+v: %v", s, err)
	}
	_, err = a.sinkNamed(c, "cash")
	if _, ok := errors.AsType[usageError](err); !ok || err.Error() != `t.yaml has no sink "cash"; it has cache, search` {
		t.Errorf("got %v", err)
	}
}

func TestTheLoggerFollowsTheConfigurationAndTheFlag(t *testing.T) {
	path := file(t, "lockstep.yaml", strings.Replace(string(config.Example), "format: text", "format: json", 1))
	for level, want := range map[string]bool{"": false, "debug": true} {
		var stderr bytes.Buffer
		a := &app{configPath: path, logLevel: level, stderr: &stderr, env: func(string) (string, bool) { return "", false }}
		c, err := a.loadConfig(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		log := a.logger(c, levelOf(c))
		if got := log.Enabled(t.Context(), slog.LevelDebug); got != want {
			t.Errorf("--log-level %q: debug lines %v, want %v", level, got, want)
		}
		log.Info("sink is back", "password", c.Source.Password)
		var line map[string]any
		if err := json.Unmarshal(stderr.Bytes(), &line); err != nil || line["pipeline"] != "shop" {
			t.Errorf("%v: %s", err, stderr.String())
		}
		if strings.Contains(stderr.String(), "lockstep-local") {
			t.Errorf("the password is in %s", stderr.String())
		}
	}
}
