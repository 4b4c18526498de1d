// Package local holds what starts the real servers for demo and tests, natively or
// as containers. Its test keeps both ways, and internal/testenv, in step.
package local

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"lockstep/internal/testenv"
)

type service struct {
	Image       string
	Profiles    []string
	Command     []string
	Ports       []string
	NetworkMode string `yaml:"network_mode"`
	Environment map[string]string
	Volumes     []string
	Healthcheck struct {
		Test              []string
		Interval, Timeout string
		Retries           int
	}
}

func readCompose(t *testing.T) map[string]service {
	t.Helper()
	text, err := os.ReadFile("../../compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Name     string
		Health   map[string]any `yaml:"x-health"`
		Services map[string]service
		Volumes  map[string]any
	}
	if err := yaml.UnmarshalWithOptions(text, &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return file.Services
}

// shell prints what the native scripts know, after sourcing them.
func shell(t *testing.T, command string) []string {
	t.Helper()
	cmd := exec.Command("bash", "-c", "ROOT=/nowhere; . ./lib.sh; "+command)
	cmd.Env = append(os.Environ(), "LOCKSTEP_PORT_OFFSET=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func TestComposeAndNativeServersAreTheSame(t *testing.T) {
	services := readCompose(t)

	var names, byDefault []string
	for name, s := range services {
		names = append(names, name)
		if len(s.Profiles) == 0 {
			byDefault = append(byDefault, name)
		}
	}
	sameSet(t, "servers", names, shell(t, `printf '%s\n' "${ALL_SERVERS[@]}"`))
	sameSet(t, "servers started by default", byDefault, shell(t, `printf '%s\n' "${DEFAULT_SERVERS[@]}"`))

	for name, s := range services {
		native := shell(t, fmt.Sprintf(`echo "${VERSION[%s]}"; port %[1]s`, name))
		version, port := native[0], native[1]

		if _, tag, _ := strings.Cut(s.Image, ":"); tag != version {
			t.Errorf("%s: compose has version %s, native %s", name, tag, version)
		}
		if s.NetworkMode == "host" {
			if !slices.Contains(s.Command, "--web.listen-address=127.0.0.1:"+port) {
				t.Errorf("%s: compose runs %v in the machine's network, native listens on 127.0.0.1:%s alone", name, s.Command, port)
			}
		} else if len(s.Ports) != 1 || !strings.HasPrefix(s.Ports[0], "127.0.0.1:"+port+":") {
			t.Errorf("%s: compose publishes %v, native listens on 127.0.0.1:%s alone", name, s.Ports, port)
		}
		if len(s.Healthcheck.Test) == 0 {
			t.Errorf("%s: no healthcheck, so nothing can wait for it", name)
		}
	}
}

func TestTestsLookForServersWhereTheyAre(t *testing.T) {
	t.Setenv("LOCKSTEP_PORT_OFFSET", "")
	for name := range readCompose(t) {
		s, err := testenv.Lookup(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if want := net.JoinHostPort("127.0.0.1", shell(t, "port "+name)[0]); s.Addr != want {
			t.Errorf("%s: testenv has %s, native %s", name, s.Addr, want)
		}
	}
}

// Flags live in one file per server, which both ways read. What a file cannot say
// because the two differ in it is listed here in full, so that nothing can be
// overridden in passing.
func TestFlagsComeFromTheSharedFiles(t *testing.T) {
	heaps := shell(t, `echo "$KAFKA_HEAP"; echo "$ELASTICSEARCH_HEAP"`)
	kafka := shell(t, "port kafka")[0]
	want := map[string]struct {
		files       []string
		command     []string
		environment map[string]string
	}{
		"mysql": {
			files:       []string{"mysql.cnf", "users.sql"},
			environment: map[string]string{"MYSQL_ROOT_PASSWORD": testenv.AdminPassword},
		},
		"mariadb": {
			files:       []string{"mariadb.cnf", "users.sql"},
			environment: map[string]string{"MARIADB_ROOT_PASSWORD": testenv.AdminPassword},
		},
		"kafka": {
			files: []string{"server.properties"},
			environment: map[string]string{
				"KAFKA_LISTENERS":                "BROKER://0.0.0.0:" + kafka + ",CONTROLLER://127.0.0.1:19093",
				"KAFKA_ADVERTISED_LISTENERS":     "BROKER://127.0.0.1:" + kafka,
				"KAFKA_CONTROLLER_QUORUM_VOTERS": "1@127.0.0.1:19093",
				"KAFKA_LOG_DIRS":                 "/var/lib/kafka/data",
				"KAFKA_HEAP_OPTS":                heaps[0],
			},
		},
		"elasticsearch": {
			files: []string{"elasticsearch.yml"},
			environment: map[string]string{
				"network.host":                    "0.0.0.0",
				"ingest.geoip.downloader.enabled": "false",
				"ES_JAVA_OPTS":                    heaps[1],
			},
		},
		"redis": {
			files:   []string{"redis.conf"},
			command: []string{"redis-server", "/usr/local/etc/redis/redis.conf"},
		},
		"redis8": {
			files:   []string{"redis.conf"},
			command: []string{"redis-server", "/usr/local/etc/redis/redis.conf"},
		},
		"valkey": {
			files:   []string{"redis.conf"},
			command: []string{"valkey-server", "/usr/local/etc/valkey/redis.conf"},
		},
		"prometheus": {
			files: []string{"prometheus.yml", "../helm/lockstep/files/alerts.yaml"},
			command: []string{"--config.file=/etc/prometheus/local/prometheus.yml", "--storage.tsdb.path=/prometheus",
				"--web.listen-address=127.0.0.1:" + shell(t, "port prometheus")[0]},
		},
	}
	for name, s := range readCompose(t) {
		script, err := os.ReadFile("native-" + name + ".sh")
		if err != nil {
			t.Fatal(err)
		}
		// Prometheus' own file names its rules.
		configured := ""
		if name == "prometheus" {
			text, err := os.ReadFile("prometheus.yml")
			if err != nil {
				t.Fatal(err)
			}
			configured = string(text)
		}
		var mounted []string
		for _, volume := range s.Volumes {
			if file, ok := strings.CutPrefix(volume, "./deploy/"); ok {
				file, _, _ = strings.Cut(file, ":")
				relative, err := filepath.Rel("local", file)
				if err != nil {
					t.Fatal(err)
				}
				mounted = append(mounted, relative)
			}
		}
		sameSet(t, name+": files mounted", mounted, want[name].files)
		for _, file := range want[name].files {
			if !strings.Contains(string(script), "$HERE/"+file) && !strings.Contains(configured, file) {
				t.Errorf("%s: the native start does not read %s", name, file)
			}
		}
		if diff := cmp.Diff(want[name].environment, s.Environment); diff != "" {
			t.Errorf("%s: environment in compose.yaml (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(want[name].command, s.Command); diff != "" {
			t.Errorf("%s: command in compose.yaml (-want +got):\n%s", name, diff)
		}
	}
}

func sameSet(t *testing.T, what string, compose, native []string) {
	t.Helper()
	compose, native = slices.Sorted(slices.Values(compose)), slices.Sorted(slices.Values(native))
	if diff := cmp.Diff(native, compose); diff != "" {
		t.Errorf("%s (-native +compose):\n%s", what, diff)
	}
}
