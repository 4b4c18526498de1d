package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// Finding is one thing an inspection looked at.
type Finding struct {
	Check  string // what was looked at
	OK     bool
	Detail string // one sentence
	Fix    string // what mends it; empty when OK
}

// Inspect looks at the cluster as far as these topics need it: those that exist
// must be as they would be made, and the cluster must be willing to make the
// others. It changes nothing. An error means that Kafka could not be asked.
func (c *Client) Inspect(ctx context.Context, specs []TopicSpec) ([]Finding, error) {
	var meta *kafkago.MetadataResponse
	err := c.retry(ctx, "list topics", func() (err error) {
		meta, err = c.api.Metadata(ctx, &kafkago.MetadataRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	found := []Finding{{Check: "brokers", OK: true, Detail: fmt.Sprintf("%s answers: %d brokers, %d topics", strings.Join(c.cfg.Brokers, ", "), len(meta.Brokers), len(meta.Topics))}}
	there := map[string]kafkago.Topic{}
	for _, t := range meta.Topics {
		there[t.Name] = t
	}
	var missing []TopicSpec
	for _, spec := range specs {
		topic, ok := there[spec.Name]
		if !ok {
			missing = append(missing, spec)
			continue
		}
		more, err := c.inspectTopic(ctx, spec, topic)
		if err != nil {
			return found, err
		}
		found = append(found, more...)
	}
	more, err := c.inspectMissing(ctx, missing)
	if err != nil {
		return found, err
	}
	return append(append(found, more...), c.inspectProducer(ctx)...), nil
}

// inspectTopic compares a topic with what it would be had we made it today.
func (c *Client) inspectTopic(ctx context.Context, spec TopicSpec, topic kafkago.Topic) ([]Finding, error) {
	check := "topic " + spec.Name
	var bad []Finding
	fail := func(fix, detail string, args ...any) {
		bad = append(bad, Finding{Check: check, Detail: fmt.Sprintf(detail, args...), Fix: fix})
	}
	if topic.Error != nil {
		fail("see the broker's log, and that the account may describe the topic", "%v", topic.Error)
		return bad, nil
	}
	grows := ""
	switch n := len(topic.Partitions); {
	case n < spec.Partitions && spec.Grows:
		grows = fmt.Sprintf(", and gets %d at the next start", spec.Partitions)
	case n != spec.Partitions:
		fail(spec.mend(n), "%d partitions, but the configuration says %d", n, spec.Partitions)
	}
	is, err := c.topicConfig(ctx, spec.Name)
	if err != nil {
		if !c.hopeless(err) {
			return nil, err
		}
		fail("allow the account DESCRIBE_CONFIGS on the topic", "its configuration cannot be seen: %v", err)
		return bad, nil
	}
	insync, _ := strconv.Atoi(is["min.insync.replicas"])
	for _, p := range topic.Partitions {
		switch {
		case p.Leader.Host == "":
			fail("bring the brokers back that hold it", "partition %d has no leader", p.ID)
		case len(p.Isr) < insync:
			fail("bring the brokers back that hold it, or lower min.insync.replicas", "partition %d has %d replicas in sync and min.insync.replicas is %d, so nothing can be written", p.ID, len(p.Isr), insync)
		case len(p.Replicas) < c.cfg.ReplicationFactor:
			fail("kafka-reassign-partitions.sh", "partition %d has %d replicas and kafka.replication_factor is %d", p.ID, len(p.Replicas), c.cfg.ReplicationFactor)
		default:
			continue
		}
		break // one partition says it for all
	}
	want := c.topicConfigs(spec)
	alter := func(key string) string {
		return fmt.Sprintf("kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s=%s", spec.Name, key, want[key])
	}
	number := func(values map[string]string, key string) int64 {
		n, err := strconv.ParseInt(values[key], 10, 64)
		if err != nil {
			return -1
		}
		return n
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		got, wanted := number(is, key), number(want, key)
		switch key {
		case "cleanup.policy", "message.timestamp.type":
			if is[key] != want[key] {
				fix := alter(key)
				if key == "cleanup.policy" {
					fix = cmp.Or(spec.Mend, fix)
				}
				fail(fix, "%s is %s and must be %s, or records would go missing", key, is[key], want[key])
			}
		case "max.message.bytes":
			if got < wanted {
				fail(alter(key), "%s is %d, too little for kafka.max_record_bytes: a row that large stops the capture", key, got)
			}
		case "min.insync.replicas":
			if got < wanted {
				fail(alter(key), "%s is %d and kafka.min_insync_replicas is %d: fewer copies than wanted count as safe", key, got, wanted)
			}
		case "retention.ms":
			if got >= 0 && (got < wanted || wanted < 0) {
				fail(alter(key), "%s is %d, less than kafka.retention: a sink that stands still loses records earlier than expected", key, got)
			}
		}
	}
	if size := number(is, "retention.bytes"); size >= 0 && !spec.Compacted {
		want["retention.bytes"] = "-1"
		fail(alter("retention.bytes"), "retention.bytes is %d: records are deleted however young they are", size)
	}
	if len(bad) > 0 {
		return bad, nil
	}
	return []Finding{{Check: check, OK: true, Detail: fmt.Sprintf("%d partitions%s, cleanup.policy %s", len(topic.Partitions), grows, is["cleanup.policy"])}}, nil
}

// topicConfig is the configuration of a topic as the broker sees it.
func (c *Client) topicConfig(ctx context.Context, topic string) (map[string]string, error) {
	values := map[string]string{}
	err := c.retry(ctx, "configuration of topic "+topic, func() error {
		res, err := c.api.DescribeConfigs(ctx, &kafkago.DescribeConfigsRequest{Resources: []kafkago.DescribeConfigRequestResource{{
			ResourceType: kafkago.ResourceTypeTopic, ResourceName: topic,
		}}})
		if err != nil {
			return err
		}
		for _, r := range res.Resources {
			if r.Error != nil {
				return r.Error
			}
			for _, e := range r.ConfigEntries {
				values[e.ConfigName] = e.ConfigValue
			}
		}
		return nil
	})
	return values, err
}

// inspectMissing asks the cluster whether it would make the topics that are not
// there yet.
func (c *Client) inspectMissing(ctx context.Context, specs []TopicSpec) ([]Finding, error) {
	if len(specs) == 0 {
		return nil, nil
	}
	req := &kafkago.CreateTopicsRequest{ValidateOnly: true}
	for _, spec := range specs {
		req.Topics = append(req.Topics, c.newTopic(spec))
	}
	var res *kafkago.CreateTopicsResponse
	// The library hands the answer out when it has seen the new topics, which never
	// come, or when the request's time is up.
	patience := time.Second / 2
	err := c.retry(ctx, "try to make topics", func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		patience *= 2
		res, err = c.api.CreateTopics(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	var bad []Finding
	for _, spec := range specs {
		if err := res.Errors[spec.Name]; err != nil && !errors.Is(err, kafkago.TopicAlreadyExists) { // somebody else has made it this very moment
			bad = append(bad, Finding{Check: "topic " + spec.Name, Detail: fmt.Sprintf("it cannot be made: %v", err),
				Fix: "allow the account CREATE on the topic, see kafka.replication_factor and kafka.min_insync_replicas, or make it by hand"})
		}
	}
	if len(bad) == 0 {
		return []Finding{{Check: "new topics", OK: true, Detail: fmt.Sprintf("%d are still to be made, and the cluster would", len(specs))}}, nil
	}
	return bad, nil
}

// inspectProducer asks for what every publisher needs.
func (c *Client) inspectProducer(ctx context.Context) []Finding {
	f := Finding{Check: "producer", OK: true, Detail: "an idempotent producer is welcome"}
	err := c.retry(ctx, "get a producer id", func() error {
		res, err := c.api.InitProducerID(ctx, &kafkago.InitProducerIDRequest{ProducerID: -1, ProducerEpoch: -1})
		if err == nil {
			err = res.Error
		}
		return err
	})
	if err != nil {
		f = Finding{Check: f.Check, Detail: err.Error(), Fix: "allow the account IDEMPOTENT_WRITE on the cluster, or WRITE on the topics"}
	}
	return []Finding{f}
}

// GroupState is what the cluster says of a consumer group, and how many members it
// has. A group that never was is Dead.
func (c *Client) GroupState(ctx context.Context, group string) (state string, members int, err error) {
	err = c.retry(ctx, "describe group "+group, func() error {
		res, err := c.api.DescribeGroups(ctx, &kafkago.DescribeGroupsRequest{GroupIDs: []string{group}})
		if err != nil {
			return err
		}
		for _, g := range res.Groups {
			if g.Error != nil {
				return g.Error
			}
			state, members = g.GroupState, len(g.Members)
		}
		return nil
	})
	return state, members, err
}

// InspectGroup looks at what a group that reads these topics has committed: what it
// wants next must still be in the log.
func (c *Client) InspectGroup(ctx context.Context, group string, topics []string) ([]Finding, error) {
	f := Finding{Check: "group " + group, OK: true}
	state, members, err := c.GroupState(ctx, group)
	if err != nil {
		if !c.hopeless(err) {
			return nil, err
		}
		return []Finding{{Check: f.Check, Detail: err.Error(), Fix: "allow the account READ and DESCRIBE on the group"}}, nil
	}
	lag := int64(0)
	for _, topic := range topics {
		starts, err := c.StartOffsets(ctx, topic)
		if err != nil {
			return nil, err
		}
		ends, err := c.EndOffsets(ctx, topic)
		if err != nil {
			return nil, err
		}
		committed, err := c.committed(ctx, group, topic, len(ends))
		if err != nil {
			return nil, err
		}
		for id := range len(ends) {
			next := max(0, committed[id]) // -1: nothing committed, and it begins at 0
			lag += max(0, ends[id]-max(next, starts[id]))
			if next < starts[id] || next > ends[id] {
				return []Finding{{Check: f.Check, Detail: fmt.Sprintf("%s/%d: offset %d is wanted and the log has %d to %d", topic, id, next, starts[id], ends[id]),
					Fix: fmt.Sprintf("take a new initial copy of the table, then let the group begin there with kafka-consumer-groups.sh --group %s --topic %s:%d --reset-offsets --to-offset %d --execute", group, topic, id, starts[id])}}, nil
			}
		}
	}
	switch {
	case members > 0:
		f.Detail = fmt.Sprintf("%s with %d members, %d records behind", state, members, lag)
	case state == "Dead":
		f.Detail = fmt.Sprintf("it was not there yet; %d records wait", lag)
	default:
		f.Detail = fmt.Sprintf("nobody is in it; %d records wait", lag)
	}
	return []Finding{f}, nil
}

// committed gives the offsets that a group has committed for a topic, -1 for none.
func (c *Client) committed(ctx context.Context, group, topic string, partitions int) (map[int]int64, error) {
	ids := make([]int, partitions)
	for i := range ids {
		ids[i] = i
	}
	offsets := map[int]int64{}
	err := c.retry(ctx, "offsets of group "+group, func() error {
		res, err := c.api.OffsetFetch(ctx, &kafkago.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: ids}})
		if err != nil {
			return err
		}
		if res.Error != nil {
			return res.Error
		}
		for _, p := range res.Topics[topic] {
			if p.Error != nil {
				return p.Error
			}
			offsets[p.Partition] = p.CommittedOffset
		}
		return nil
	})
	return offsets, err
}
