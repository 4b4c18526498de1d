package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	kafkago "github.com/segmentio/kafka-go"

	"lockstep/cdc"
)

// ErrPartitionCount is wrapped when a topic exists with another number of
// partitions than the configuration says.
var ErrPartitionCount = errors.New("topic has another number of partitions")

// ErrTopic is wrapped when a name makes no topic, or when a topic exists that
// would lose what is put into it.
var ErrTopic = errors.New("topic refused")

// batchRoom is what a batch of one record adds to the record.
const batchRoom = 1024

// lettersDB stands in a topic name where a change topic has its database.
const lettersDB = "dlq"

var (
	legalTopic  = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)
	legalPrefix = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,100}$`)
)

// CheckPrefix reports whether prefix can begin the topics of a pipeline. A dot is
// refused, because the topics of pipeline "a.b" would look like tables of "a".
func CheckPrefix(prefix string) error {
	if !legalPrefix.MatchString(prefix) {
		return fmt.Errorf("%w: prefix %q; use 1 to 100 letters, digits, _ and -", ErrTopic, prefix)
	}
	return nil
}

func checkTopic(name string) error {
	if !legalTopic.MatchString(name) || name == "." || name == ".." {
		return fmt.Errorf("%w: %q is no name for a topic; Kafka takes 1 to 249 letters, digits, dots, _ and -", ErrTopic, name)
	}
	return nil
}

// ChangeTopic is the topic of a table: prefix.db.table. It refuses names that
// Kafka does not take, and those from which the table could not be read back.
func ChangeTopic(prefix string, t cdc.TableName) (string, error) {
	switch {
	case strings.Contains(t.DB, ".") || strings.Contains(t.Table, "."):
		return "", fmt.Errorf("%w: table %q.%q has a dot in its name, and a dot separates database and table in a topic; leave the table out of the pipeline or rename it", ErrTopic, t.DB, t.Table)
	case t.DB == "" || t.Table == "":
		return "", fmt.Errorf("%w: table %q.%q has an empty name", ErrTopic, t.DB, t.Table)
	case t.DB == lettersDB:
		return "", fmt.Errorf("%w: database %q cannot be captured, because %s.%s.* are the topics of dead letters; rename the database", ErrTopic, t.DB, prefix, lettersDB)
	}
	name := prefix + "." + t.DB + "." + t.Table
	return name, checkTopic(name)
}

// CheckpointTopic is where the pipeline saves its position.
func CheckpointTopic(prefix string) string { return prefix + ".checkpoint" }

// LettersTopic holds the dead letters of a sink.
func LettersTopic(prefix, sink string) string { return prefix + "." + lettersDB + "." + sink }

// TableOf reads the table back from the name of a change topic. It is false for
// every other topic.
func TableOf(prefix, topic string) (cdc.TableName, bool) {
	rest, ok := strings.CutPrefix(topic, prefix+".")
	if !ok {
		return cdc.TableName{}, false
	}
	db, table, ok := strings.Cut(rest, ".")
	if !ok || db == "" || table == "" || db == lettersDB || strings.Contains(table, ".") {
		return cdc.TableName{}, false
	}
	return cdc.TableName{DB: db, Table: table}, true
}

// PartitionFor is the partition of a key: the hash of Kafka's own Java client, so
// that other programs find the same partition. It is part of the data format and
// never changes.
func PartitionFor(key []byte, partitions int) int { return HashKey(key).Partition(partitions) }

// KeyHash is what is needed of a key to find its partition.
type KeyHash uint32

// HashKey is the hash of a key.
func HashKey(key []byte) KeyHash { return KeyHash(murmur2(key)) }

// Partition is the partition of the key among so many.
func (h KeyHash) Partition(partitions int) int { return int(h&0x7fffffff) % partitions }

func murmur2(data []byte) uint32 {
	const m = 0x5bd1e995
	h := uint32(0x9747b28c) ^ uint32(len(data))
	for len(data) >= 4 {
		k := uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
		k *= m
		k ^= k >> 24
		h = h*m ^ k*m
		data = data[4:]
	}
	switch len(data) {
	case 3:
		h ^= uint32(data[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(data[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(data[0])) * m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

// TopicSpec says what a topic must be.
type TopicSpec struct {
	Name       string
	Partitions int
	// Grows is for a topic that gets the partitions it lacks.
	Grows bool
	// Compacted topics keep the newest record of each key for ever; others keep
	// every record for Config.Retention.
	Compacted bool
	// Mend is what is to be done when the topic exists with another cleanup policy; when
	// empty, that the policy be changed.
	Mend string
	// Configs are set on a new topic beside or instead of what the client sets.
	Configs map[string]string
}

// EnsureTopic makes the topic if it is not there, and returns when every
// partition has a leader. One that grows gets the partitions that it lacks; apart from
// that a topic that exists is left as it is, and refused when its number of partitions or
// its cleanup policy is another one.
func (c *Client) EnsureTopic(ctx context.Context, spec TopicSpec) error {
	if err := checkTopic(spec.Name); err != nil {
		return err
	}
	made := false
	return c.retry(ctx, "make topic "+spec.Name, func() error {
		partitions, err := c.partitions(ctx, spec.Name)
		switch {
		case err == nil && partitions < spec.Partitions && spec.Grows:
			if err := c.checkCleanup(ctx, spec); err != nil || made {
				return cmp.Or(err, fmt.Errorf("topic %s has %d of %d partitions yet", spec.Name, partitions, spec.Partitions))
			}
			err := c.growTopics(ctx, spec.Partitions, spec.Name)
			made = err == nil
			return cmp.Or(err, fmt.Errorf("topic %s has just grown", spec.Name)) // look at it in the next round
		case err == nil && partitions != spec.Partitions:
			return final{fmt.Errorf("%w: %s has %d and the configuration says %d; %s", ErrPartitionCount, spec.Name, partitions, spec.Partitions, spec.mend(partitions))}
		case err == nil && !made:
			return c.checkCleanup(ctx, spec)
		case err == nil || !missing(err):
			return err
		}
		err = c.createTopic(ctx, spec)
		made = err == nil
		if made || errors.Is(err, kafkago.TopicAlreadyExists) {
			_, err = c.partitions(ctx, spec.Name)
			if err == nil && !made {
				err = fmt.Errorf("topic %s has just appeared", spec.Name) // look at it in the next round
			}
		}
		return err
	})
}

// mend says what is to be done about a topic that has another number of partitions.
func (s TopicSpec) mend(partitions int) string {
	if s.Grows {
		return fmt.Sprintf("set kafka.partitions to %d or more, because Kafka takes no partition away", partitions)
	}
	return fmt.Sprintf("it must have %d: delete it if it holds nothing that is needed", s.Partitions)
}

// growTopics adds the partitions that topics lack. Another process may have been faster. When
// it returns they do not show yet.
func (c *Client) growTopics(ctx context.Context, partitions int, names ...string) error {
	req := &kafkago.CreatePartitionsRequest{}
	for _, name := range names {
		req.Topics = append(req.Topics, kafkago.TopicPartitionsConfig{Name: name, Count: int32(partitions)})
	}
	res, err := c.api.CreatePartitions(ctx, req)
	if err != nil {
		return err
	}
	for name, err := range res.Errors {
		if err != nil && !errors.Is(err, kafkago.InvalidPartitionNumber) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// partitions counts the partitions of a topic; it fails until each has a leader.
func (c *Client) partitions(ctx context.Context, topic string) (int, error) {
	meta, err := c.api.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return 0, err
	}
	t := meta.Topics[0]
	if t.Error != nil {
		return 0, t.Error
	}
	for _, p := range t.Partitions {
		if p.Error != nil {
			return 0, fmt.Errorf("partition %d: %w", p.ID, p.Error)
		}
		if p.Leader.Host == "" {
			return 0, fmt.Errorf("partition %d: %w", p.ID, kafkago.LeaderNotAvailable)
		}
	}
	return len(t.Partitions), nil
}

func (c *Client) createTopic(ctx context.Context, spec TopicSpec) error {
	res, err := c.api.CreateTopics(ctx, &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{c.newTopic(spec)}})
	if err != nil {
		return err
	}
	return res.Errors[spec.Name]
}

// newTopic is the request to make a topic.
func (c *Client) newTopic(spec TopicSpec) kafkago.TopicConfig {
	configs := c.topicConfigs(spec)
	entries := make([]kafkago.ConfigEntry, 0, len(configs))
	for k, v := range configs {
		entries = append(entries, kafkago.ConfigEntry{ConfigName: k, ConfigValue: v})
	}
	replicas := c.cfg.ReplicationFactor
	if replicas == 0 {
		replicas = -1
	}
	return kafkago.TopicConfig{Topic: spec.Name, NumPartitions: spec.Partitions, ReplicationFactor: replicas, ConfigEntries: entries}
}

// topicConfigs are set on a new topic.
func (c *Client) topicConfigs(spec TopicSpec) map[string]string {
	configs := map[string]string{"max.message.bytes": strconv.Itoa(c.cfg.MaxRecordBytes + batchRoom)}
	if c.cfg.MinInsyncReplicas > 0 {
		configs["min.insync.replicas"] = strconv.Itoa(c.cfg.MinInsyncReplicas)
	}
	if spec.Compacted {
		configs["cleanup.policy"] = "compact"
	} else {
		retention := int64(-1)
		if c.cfg.Retention > 0 {
			retention = c.cfg.Retention.Milliseconds()
		}
		configs["cleanup.policy"] = "delete"
		configs["retention.ms"] = strconv.FormatInt(retention, 10)
		// Records carry the commit time of the source. Retention must not count
		// from there: reading an old log again would write records that Kafka
		// deletes before a sink has seen them, and a source whose clock is ahead
		// would be refused.
		configs["message.timestamp.type"] = "LogAppendTime"
	}
	for k, v := range spec.Configs {
		configs[k] = v
	}
	return configs
}

// checkCleanup refuses a topic that would delete what must stay, or compact away
// what must all be read.
func (c *Client) checkCleanup(ctx context.Context, spec TopicSpec) error {
	res, err := c.api.DescribeConfigs(ctx, &kafkago.DescribeConfigsRequest{Resources: []kafkago.DescribeConfigRequestResource{{
		ResourceType: kafkago.ResourceTypeTopic, ResourceName: spec.Name, ConfigNames: []string{"cleanup.policy"},
	}}})
	if err != nil {
		return err
	}
	for _, r := range res.Resources {
		if r.Error != nil {
			return r.Error
		}
		for _, e := range r.ConfigEntries {
			if e.ConfigName != "cleanup.policy" {
				continue
			}
			want := "delete"
			if spec.Compacted {
				want = "compact"
			}
			if e.ConfigValue != want {
				mend := cmp.Or(spec.Mend, fmt.Sprintf("change it with kafka-configs.sh --entity-type topics --entity-name %s --alter --add-config cleanup.policy=%s", spec.Name, want))
				return final{fmt.Errorf("%w: %s has cleanup.policy=%s and must have %s, or records would go missing; %s", ErrTopic, spec.Name, e.ConfigValue, want, mend)}
			}
		}
	}
	return nil
}

// Topics lists the topics of the cluster, sorted. It may be up to two seconds old.
func (c *Client) Topics(ctx context.Context) ([]string, error) {
	var names []string
	err := c.retry(ctx, "list topics", func() error {
		meta, err := c.api.Metadata(ctx, &kafkago.MetadataRequest{})
		if err != nil {
			return err
		}
		names = names[:0]
		for _, t := range meta.Topics {
			if !t.Internal && t.Error == nil {
				names = append(names, t.Name)
			}
		}
		slices.Sort(names)
		return nil
	})
	return names, err
}

// Used reports whether anything was ever published to a topic: not when there is none, nor
// when it was deleted and made again.
func (c *Client) Used(ctx context.Context, topic string) (bool, error) {
	ends, _, err := c.Ends(ctx, topic)
	for _, end := range ends {
		if end > 0 {
			return true, err
		}
	}
	return false, err
}

// Ends is EndOffsets of a topic that need not be there.
func (c *Client) Ends(ctx context.Context, topic string) (ends map[int]int64, there bool, err error) {
	ends, err = c.EndOffsets(ctx, topic)
	if missing(err) {
		return nil, false, nil
	}
	return ends, err == nil, err
}

// DeleteTopics deletes topics with all they hold. Those that do not exist are
// passed over.
func (c *Client) DeleteTopics(ctx context.Context, topics ...string) error {
	return c.retry(ctx, "delete topics", func() error {
		res, err := c.api.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: topics})
		if err != nil {
			return err
		}
		for topic, err := range res.Errors {
			if err != nil && !missing(err) {
				return fmt.Errorf("%s: %w", topic, err)
			}
		}
		return nil
	})
}

// EndOffsets gives for each partition of a topic the offset after its last record.
func (c *Client) EndOffsets(ctx context.Context, topic string) (map[int]int64, error) {
	return c.offsets(ctx, topic, kafkago.LastOffset)
}

// StartOffsets gives for each partition of a topic the offset where its log
// begins: 0 until retention has removed records.
func (c *Client) StartOffsets(ctx context.Context, topic string) (map[int]int64, error) {
	return c.offsets(ctx, topic, kafkago.FirstOffset)
}

func (c *Client) offsets(ctx context.Context, topic string, which int64) (map[int]int64, error) {
	offsets := make(map[int]int64)
	err := c.retry(ctx, "offsets of topic "+topic, func() error {
		n, err := c.partitions(ctx, topic)
		if missing(err) {
			return final{err}
		}
		if err != nil {
			return err
		}
		ask := make([]kafkago.OffsetRequest, n)
		for i := range ask {
			ask[i] = kafkago.OffsetRequest{Partition: i, Timestamp: which}
		}
		res, err := c.api.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: map[string][]kafkago.OffsetRequest{topic: ask}})
		if err != nil {
			return err
		}
		clear(offsets)
		for _, p := range res.Topics[topic] {
			if p.Error != nil {
				return fmt.Errorf("partition %d: %w", p.Partition, p.Error)
			}
			offsets[p.Partition] = max(p.FirstOffset, p.LastOffset)
		}
		if len(offsets) != n {
			return fmt.Errorf("%d of %d partitions answered", len(offsets), n)
		}
		return nil
	})
	return offsets, err
}

// EndsOf is EndOffsets of several topics, in partition order, with one request to each
// broker. A topic that does not exist is left out.
func (c *Client) EndsOf(ctx context.Context, topics []string) (map[string][]int64, error) {
	ends := make(map[string][]int64, len(topics))
	if len(topics) == 0 {
		return ends, nil
	}
	err := c.retry(ctx, "ends of topics", func() error {
		clear(ends)
		meta, err := c.api.Metadata(ctx, &kafkago.MetadataRequest{Topics: topics})
		if err != nil {
			return err
		}
		ask := make(map[string][]kafkago.OffsetRequest, len(topics))
		for _, t := range meta.Topics {
			if missing(t.Error) {
				continue
			}
			if t.Error != nil {
				return fmt.Errorf("%s: %w", t.Name, t.Error)
			}
			for i := range t.Partitions {
				ask[t.Name] = append(ask[t.Name], kafkago.LastOffsetOf(i))
			}
			ends[t.Name] = make([]int64, len(t.Partitions))
			for i := range ends[t.Name] {
				ends[t.Name][i] = -1
			}
		}
		if len(ask) == 0 {
			return nil
		}
		res, err := c.api.ListOffsets(ctx, &kafkago.ListOffsetsRequest{Topics: ask})
		if err != nil {
			return err
		}
		for name, partitions := range res.Topics {
			for _, p := range partitions {
				if p.Error != nil {
					return fmt.Errorf("%s/%d: %w", name, p.Partition, p.Error)
				}
				if p.Partition < len(ends[name]) {
					ends[name][p.Partition] = p.LastOffset
				}
			}
		}
		for name, of := range ends {
			if slices.Contains(of, -1) {
				return fmt.Errorf("%s: not every partition answered", name)
			}
		}
		return nil
	})
	return ends, err
}
