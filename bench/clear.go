package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/tidwall/gjson"
)

// errLeftovers is wrapped when something could not be removed.
var errLeftovers = errors.New("something is left over, which the next run removes,")

// ours are the names of this and earlier runs.
var ours = regexp.MustCompile(`^bench-[0-9]{10,}([-:.].*)?$`)

// clear removes everything that this and earlier runs made. Every run is alone, so
// nothing of it is in use.
func (b *bench) clear(ctx context.Context) error {
	var problems []error
	stores := map[string]func(context.Context) error{"MySQL": b.clearMySQL, "Kafka": b.clearKafka, "Redis": b.clearRedis}
	if b.sinks() {
		stores["Elasticsearch"] = b.clearElastic
	}
	for what, remove := range stores {
		if err := remove(ctx); err != nil {
			problems = append(problems, fmt.Errorf("%w in %s: %w", errLeftovers, what, err))
		}
	}
	return errors.Join(problems...)
}

func (b *bench) clearMySQL(ctx context.Context) error {
	_, err := b.db.ExecContext(ctx, "DROP DATABASE IF EXISTS "+database)
	return err
}

func (b *bench) clearKafka(ctx context.Context) error {
	meta, err := b.kafka.Metadata(ctx, &kafkago.MetadataRequest{})
	if err != nil {
		return err
	}
	var topics, groups []string
	for _, t := range meta.Topics {
		if ours.MatchString(t.Name) {
			topics = append(topics, t.Name)
		}
	}
	if len(topics) > 0 {
		answer, err := b.kafka.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: topics})
		if err != nil {
			return err
		}
		for topic, err := range answer.Errors {
			if err != nil && !errors.Is(err, kafkago.UnknownTopicOrPartition) {
				return fmt.Errorf("delete topic %s: %w", topic, err)
			}
		}
	}
	list, err := b.kafka.ListGroups(ctx, &kafkago.ListGroupsRequest{})
	if err != nil {
		return err
	}
	for _, g := range list.Groups {
		if ours.MatchString(g.GroupID) {
			groups = append(groups, g.GroupID)
		}
	}
	if len(groups) == 0 {
		return nil
	}
	answer, err := b.kafka.DeleteGroups(ctx, &kafkago.DeleteGroupsRequest{GroupIDs: groups})
	if err != nil {
		return err
	}
	for group, err := range answer.Errors {
		if err != nil && !errors.Is(err, kafkago.GroupIdNotFound) {
			return fmt.Errorf("delete group %s: %w", group, err)
		}
	}
	return nil
}

func (b *bench) clearElastic(ctx context.Context) error {
	answer, err := b.elastic(ctx, http.MethodGet, "/bench-*/_settings?filter_path=*.settings.index.uuid", "", nil)
	if err != nil {
		return err
	}
	var problems []error
	for index := range gjson.ParseBytes(answer).Map() {
		if ours.MatchString(index) {
			problems = append(problems, b.deleteIndex(ctx, index))
		}
	}
	return errors.Join(problems...)
}

func (b *bench) clearRedis(ctx context.Context) error {
	_, err := b.unlink(ctx, "bench-[0-9]*:*")
	return err
}
