package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"lockstep/kafka"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version string

// build is what is known about this binary.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// newBuildInfo is the metric that tells which build a process is, and of which pipeline.
func newBuildInfo(pipeline string) prometheus.Collector {
	info, _ := debug.ReadBuildInfo()
	b := thisBuild(info)
	m := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "lockstep_build_info", Help: "1, with the build of this process and the pipeline (the prefix of the configuration) that it works for.",
	}, []string{"version", "commit", "pipeline"})
	m.WithLabelValues(b.Version, b.Commit, pipeline).Set(1)
	return m
}

// newKafkaUnavailable is the metric that tells for how long Kafka has not answered.
func newKafkaUnavailable(client *kafka.Client) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "lockstep_kafka_unavailable_seconds",
		Help: "For how long some request of this process to Kafka has been sent again and again without an answer; 0 while Kafka answers.",
	}, func() float64 { return client.Unavailable().Seconds() })
}

// thisBuild takes the linker's word first and then the module's and the
// version control's. What nobody knows is "unknown".
func thisBuild(info *debug.BuildInfo) build {
	b := build{Version: version, Commit: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info != nil {
		if b.Version == "" {
			b.Version = info.Main.Version
		}
		changed := false
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				b.Commit = s.Value
			case s.Key == "vcs.modified":
				changed = s.Value == "true"
			}
		}
		if changed {
			b.Commit += " (changed)"
		}
	}
	if b.Version == "" {
		b.Version = "unknown"
	}
	return b
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version, commit and Go version",
		Example: `  lockstep version
  lockstep version -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			info, _ := debug.ReadBuildInfo()
			b := thisBuild(info)
			return a.show(b, func(w io.Writer) {
				fmt.Fprintf(w, "lockstep %s\ncommit   %s\ngo       %s %s\n", b.Version, b.Commit, b.Go, b.Platform)
			})
		},
	}
}

// thisVersion is the version of this build. It is said every second.
var thisVersion = sync.OnceValue(func() string {
	info, _ := debug.ReadBuildInfo()
	return thisBuild(info).Version
})
