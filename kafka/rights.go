package kafka

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/describegroups"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

// unknownRights is what brokers answer that do not say what an account may do.
const unknownRights = math.MinInt32

// askTopics asks a broker, and not the library's memory, what the account may do with
// topics.
type askTopics struct{ names []string }

// topicRights is the answer: the operations by topic, as bits.
type topicRights map[string]int32

func (*askTopics) ApiKey() protocol.ApiKey  { return protocol.Metadata }
func (topicRights) ApiKey() protocol.ApiKey { return protocol.Metadata }

func (a *askTopics) Split(protocol.Cluster) ([]protocol.Message, protocol.Merger, error) {
	return []protocol.Message{&metadata.Request{TopicNames: a.names, IncludeTopicAuthorizedOperations: true}}, topicRights{}, nil
}

func (topicRights) Merge(_ []protocol.Message, results []any) (protocol.Message, error) {
	m, err := protocol.Result(results[0])
	if err != nil {
		return nil, err
	}
	rights := topicRights{}
	for _, t := range m.(*metadata.Response).Topics {
		if t.ErrorCode == 0 {
			rights[t.Name] = t.TopicAuthorizedOperations
		}
	}
	return rights, nil
}

// lacking names those of the operations that are not among the rights.
func lacking(rights int32, operations ...kafkago.ACLOperationType) (names []string) {
	if rights == unknownRights {
		return nil
	}
	for _, o := range operations {
		if rights&(1<<o) == 0 {
			names = append(names, strings.ToUpper(o.String()))
		}
	}
	return names
}

// InspectRights finds what the account may not do: read and write topics, of those that are
// there, and be a member of groups. All names begin with prefix; where it is empty, what
// mends a finding names them one by one.
func (c *Client) InspectRights(ctx context.Context, prefix string, read, write, groups []string) ([]Finding, error) {
	var of topicRights
	err := c.retry(ctx, "rights on topics", func() error {
		res, err := c.transport.RoundTrip(ctx, c.api.Addr, &askTopics{read})
		if err == nil {
			of = res.(topicRights)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	lack, may := map[string][]string{}, 0 // what may not be done with which
	for _, name := range slices.Sorted(maps.Keys(of)) {
		operations := []kafkago.ACLOperationType{kafkago.ACLOperationTypeRead}
		if slices.Contains(write, name) {
			operations = append(operations, kafkago.ACLOperationTypeWrite)
			may++
		}
		for _, o := range lacking(of[name], operations...) {
			lack[o] = append(lack[o], name)
		}
	}
	var found []Finding
	for _, o := range slices.Sorted(maps.Keys(lack)) {
		found = append(found, c.allow(prefix, o, "topic", lack[o]))
	}
	var strange []string
	for _, group := range groups {
		rights, err := c.groupRights(ctx, group)
		if err != nil && !c.hopeless(err) {
			return found, err
		}
		if err != nil || len(lacking(rights, kafkago.ACLOperationTypeRead)) > 0 {
			strange = append(strange, group)
		}
	}
	if len(strange) > 0 {
		found = append(found, c.allow(prefix, "READ", "group", strange))
	}
	if len(found) == 0 {
		found = []Finding{{Check: "rights", OK: true, Detail: fmt.Sprintf("the account may read %d topics, write %d of them and join %d groups", len(of), may, len(groups))}}
	}
	return found, nil
}

// groupRights asks what the account may do with a group.
func (c *Client) groupRights(ctx context.Context, group string) (rights int32, err error) {
	err = c.retry(ctx, "rights on group "+group, func() error {
		res, err := c.transport.RoundTrip(ctx, c.api.Addr, &describegroups.Request{Groups: []string{group}, IncludeAuthorizedOperations: true})
		if err != nil {
			return err
		}
		for _, g := range res.(*describegroups.Response).Groups {
			if g.ErrorCode != 0 {
				return kafkago.Error(g.ErrorCode)
			}
			rights = g.AuthorizedOperations
		}
		return nil
	})
	return rights, err
}

// allow is the finding that a right on topics or groups is lacking.
func (c *Client) allow(prefix, operation, kind string, names []string) Finding {
	on := fmt.Sprintf("--%s %s. --resource-pattern-type prefixed", kind, prefix)
	if prefix == "" {
		on = fmt.Sprintf("--%s %s", kind, strings.Join(names, fmt.Sprintf(" --%s ", kind)))
	}
	return Finding{
		Check: "rights", Detail: fmt.Sprintf("the account may not %s the %ss %s", operation, kind, strings.Join(names, ", ")),
		Fix: fmt.Sprintf("kafka-acls.sh --add --allow-principal User:%s --operation %s %s (docs/privileges.md has all of them)",
			cmp.Or(c.cfg.SASL.Username, "NAME"), operation, on),
	}
}
