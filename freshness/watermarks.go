// Package freshness tells how far a pipeline is, and waits until it is far enough.
//
// Every process of a pipeline says in one topic, the watermarks, how far it is: the
// capture what of the source's log is in Kafka, whoever runs a sink what is settled of
// each partition. A Barrier returns when everything that was committed before it is in
// the stores, and not a moment earlier; what it does not know it waits for.
package freshness

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// Topic is where the processes of a pipeline say how far they are.
func Topic(prefix string) string { return prefix + ".watermarks" }

// keep is how long a record stays: it is read within a moment or not at all.
const keep = 10 * time.Minute

// Spec is the topic of watermarks. Nothing is read in it that was written before.
func Spec(prefix string) kafka.TopicSpec {
	millis := fmt.Sprint(keep.Milliseconds())
	return kafka.TopicSpec{Name: Topic(prefix), Partitions: 1, Configs: map[string]string{
		"retention.ms": millis, "segment.ms": millis, "segment.bytes": fmt.Sprint(16 << 20),
	}}
}

// Format is the format number of a Record.
const Format = 1

// Record is one record of the topic. One of its fields but Format is set.
type Record struct {
	Format  int      `json:"format"`
	Want    *Want    `json:"want,omitempty"`
	Capture *Capture `json:"capture,omitempty"`
	Sink    *Sink    `json:"sink,omitempty"`
	// Compared is for whoever judges how far a sink can be trusted.
	Compared *Compared `json:"compared,omitempty"`
	// Process is for whoever looks after the pipeline.
	Process *Process `json:"process,omitempty"`
}

// Compared is what the reconciler has found in a part of a table.
type Compared struct {
	Sink  string `json:"sink"`
	Table string `json:"table"`
	// BeganMicros is before the first row was read, AtMicros when it was over, both by the
	// clock of the process.
	BeganMicros int64 `json:"began_us"`
	AtMicros    int64 `json:"at_us"`
	// Keys are how many rows were compared, and Whole says that they are all.
	Keys  int64 `json:"keys"`
	Whole bool  `json:"whole"`
	// Confirmed are the differences that remain, by class.
	Confirmed map[string]int64 `json:"confirmed,omitempty"`
}

// Want asks the capture and the sinks to say how far they are as soon as they are there.
type Want struct {
	ID string `json:"id"`
	// GTIDs are the transactions that are waited for, as the source writes a set.
	GTIDs string `json:"gtids"`
	// Sinks are those that matter, and Table ("db.table") is the one that does; all do when
	// it is empty.
	Sinks []string `json:"sinks"`
	Table string   `json:"table,omitempty"`
	// Millis is for how long somebody waits, from when it is read.
	Millis int64 `json:"ms"`
}

// Capture is how far the capture is: everything of the log before this place is
// acknowledged by Kafka.
type Capture struct {
	// Process is one run of a capture.
	Process string `json:"process"`
	// GTIDs are the transactions before the place, and Version the log clock there.
	GTIDs   string      `json:"gtids"`
	Version cdc.Version `json:"version"`
	// UpToMicros is the time, by the source's clock, up to which everything that was
	// committed is in Kafka; 0 when this record does not say.
	UpToMicros int64 `json:"up_to_us,omitempty"`
	// SkewMicros is how far the source's clock is ahead of the capture's, beside UpToMicros.
	SkewMicros int64 `json:"skew_us,omitempty"`
	// Wants are those that are before the place.
	Wants []string `json:"wants,omitempty"`
	// Ends gives for captured tables ("db.table") the offset in their topics behind the last
	// record that was published before the place, or a later one, by partition. A table that
	// is not in it has no topic: it has never had a row.
	Ends map[string][]int64 `json:"ends,omitempty"`
	// Keys names the primary-key columns of the one table that a want was for, joined by ", ".
	Keys map[string]string `json:"keys,omitempty"`
	// Copying are tables of which rows that are older than the place are not in Kafka yet.
	Copying []string `json:"copying,omitempty"`
	// Sweeps gives for tables of which a copy is under way that ends with a barrier the
	// version of that, the lowest of them.
	Sweeps map[string]cdc.Version `json:"sweeps,omitempty"`
	// File, Pos and Copies are for the operator's eye: the place in the log, and what is copied.
	File   string `json:"file,omitempty"`
	Pos    uint32 `json:"pos,omitempty"`
	Copies []Copy `json:"copies,omitempty"`
	// Requests is the offset behind the last request for a snapshot that it has taken in.
	Requests int64 `json:"requests"`
	// AtMicros is by the clock of the process. All times are microseconds since 1970.
	AtMicros int64 `json:"at_us"`
}

// Copy is a copy of a table that is under way or paused.
type Copy struct {
	Table    string `json:"table"`
	State    string `json:"state"`
	Rows     uint64 `json:"rows"`
	Estimate uint64 `json:"estimate,omitempty"` // 0 when nobody knows
}

// UpTo is how far behind the source the capture is when the record is written; of one that
// says.
func (c *Capture) UpTo() time.Duration {
	return time.Duration(c.AtMicros+c.SkewMicros-c.UpToMicros) * time.Microsecond
}

// Sink is how far a sink is in one process.
type Sink struct {
	Sink string `json:"sink"`
	// Process is one run of a process, and Generation that of the sink's consumer group by
	// which it has its partitions: of two that name one partition the higher one has it.
	Process    string `json:"process"`
	Generation int32  `json:"generation"`
	// Whole says that it is the state of all partitions of the process. One that is not
	// answers a Want: it has of Tables only those that matter, with Partitions alone, and
	// nothing that follows here.
	Whole    bool  `json:"whole"`
	AtMicros int64 `json:"at_us"`
	// Breaker is of the whole sink.
	Breaker sinks.BreakerStatus `json:"breaker"`
	// AppliedUpToMicros and DeliveredUpToMicros are as in sinks.Status, of the partitions of
	// this process; 0 while they are not known.
	AppliedUpToMicros   int64 `json:"applied_up_to_us,omitempty"`
	DeliveredUpToMicros int64 `json:"delivered_up_to_us,omitempty"`
	// Tables are those of which the process has partitions, by name ("db.table").
	Tables map[string]Table `json:"tables"`
}

// Table is how far one table is in one process.
type Table struct {
	// Partitions are those that the process has, by number.
	Partitions map[int]Place `json:"partitions"`
	// Refill is set when the store has lost rows of the table: they come back by a copy
	// whose request is before this offset of the topic of requests.
	Refill int64 `json:"refill,omitempty"`

	Breaker sinks.BreakerStatus `json:"breaker,omitzero"`
	// Held is why changes wait; nil while none does.
	Held *sinks.HeldStatus `json:"held,omitempty"`
	// Latency is from commit to acknowledgement, of the last Window.
	Latency Latency `json:"latency,omitzero"`
	// AppliedUpToMicros is the time up to which all that was committed is applied or settled
	// otherwise; 0 while it is not known.
	AppliedUpToMicros int64 `json:"applied_up_to_us,omitempty"`
	// Letters are open dead letters; OldestLetterMicros is when the oldest change was
	// committed that the store lacks for one, 0 when that is not known of any.
	Letters            int64 `json:"letters"`
	OldestLetterMicros int64 `json:"oldest_letter_us,omitempty"`
}

// Place is how far one partition is.
type Place struct {
	// Settled is the offset below which everything is settled: in the store, or a newer
	// change of its row is there, or a dead letter.
	Settled int64 `json:"settled"`
	// Void is the version of the newest barrier of the table (TRUNCATE) that was met. It settles
	// changes and letters without the store, which may show an older state of their rows until
	// it is swept: when partition 0 has settled the barrier.
	Void cdc.Version `json:"void,omitempty"`
	// Letters are open dead letters of it, counted when Settled was true already; -1 while
	// they are not all known.
	Letters int `json:"letters"`
}

// Window is the time that a Latency covers.
const Window = 10 * time.Second

// Latency counts applied changes by how long they were on their way.
type Latency struct {
	// Counts are by sinks.LatencyBounds, one more for what was longer.
	Counts []uint64 `json:"counts,omitempty"`
}

// IsZero reports whether there was no change.
func (l Latency) IsZero() bool { return l.Count() == 0 }

// Count is how many changes there were.
func (l Latency) Count() (n uint64) {
	for _, c := range l.Counts {
		n += c
	}
	return n
}

// Add joins what two processes have seen.
func (l Latency) Add(o Latency) Latency {
	counts := slices.Clone(l.Counts)
	for i, c := range o.Counts {
		if i == len(counts) {
			counts = append(counts, 0)
		}
		counts[i] += c
	}
	return Latency{counts}
}

// Quantile is the time in seconds within which a share of the changes came, as the bound
// of its bucket: never less than it was, save for what took longer than the last bound.
// It is 0 when there was no change.
func (l Latency) Quantile(share float64) float64 {
	return sinks.Quantile(sinks.LatencyBounds, l.Counts, share)
}

// encode is the record as it is written.
func (r Record) encode(prefix string) (kafka.Record, error) {
	r.Format = Format
	value, err := json.Marshal(r)
	return kafka.Record{Topic: Topic(prefix), Value: value}, err
}

// Decode reads a record of the topic.
func Decode(r kafka.Record) (Record, error) {
	var out Record
	if err := json.Unmarshal(r.Value, &out); err != nil {
		return out, fmt.Errorf("watermark at %s/%d offset %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	if out.Format != Format {
		return out, fmt.Errorf("watermark at %s/%d offset %d has format %d and this program knows %d; run the same version of lockstep everywhere", r.Topic, r.Partition, r.Offset, out.Format, Format)
	}
	return out, nil
}
