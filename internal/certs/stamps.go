package certs

import (
	"os"
	"time"
)

// Stamp tells a file from what it becomes.
type Stamp struct {
	time time.Time
	size int64
}

// Stamps are those of files, by name, as they are behind the links that Kubernetes swaps. A file
// that is not there has none, nor has an empty name.
func Stamps(names ...string) map[string]Stamp {
	stamps := make(map[string]Stamp, len(names))
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			stamps[name] = Stamp{info.ModTime(), info.Size()}
		}
	}
	return stamps
}
