package main

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"

	"lockstep/cdc"
	"lockstep/config"
	"lockstep/kafka"
)

// offers are what a shell offers behind a command line, each without what explains it.
func offers(t *testing.T, path string, line ...string) string {
	t.Helper()
	got := lockstep(t, nil, append([]string{"__complete", "-c", path}, append(line, "")...)...)
	if got.code != 0 || got.stderr != "Completion ended with directive: ShellCompDirectiveNoFileComp\n" || !strings.HasSuffix(got.stdout, ":4\n") {
		t.Fatalf("%s: %+v", line, got)
	}
	var names []string
	for offer := range strings.Lines(strings.TrimSuffix(got.stdout, ":4\n")) {
		name, why, explained := strings.Cut(strings.TrimSpace(offer), "\t")
		if !explained || why == "" {
			t.Errorf("%s: %q says not what it is", line, offer)
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

func TestCompletionOffersWhatThePipelineHas(t *testing.T) {
	c := newCounter(t, "")
	for _, line := range [][]string{{"dlq", "show"}, {"dlq", "skip", "--fingerprint"}, {"dlq", "jobs", "show"}, {"snapshot", "cancel"}} {
		if got := offers(t, c.path, line...); got != "" {
			t.Errorf("%s before anything ran: %q", line, got)
		}
	}
	c.office(func(ctx context.Context, o *office) error {
		topics, err := o.kafka.Topics(ctx)
		for _, topic := range topics {
			if strings.HasPrefix(topic, c.prefix+".") {
				t.Errorf("completion has made the topic %s", topic)
			}
		}
		return err
	})
	c.bury("search", refused(1, "no field n", "2026-11-22T08:00:00Z"), refused(2, "no field m", "2026-11-22T09:00:00Z"))
	c.bury("cache", refused(3, "another type", "2026-11-22T10:00:00Z"))
	var ids, causes []string
	for _, l := range c.letters() {
		ids, causes = append(ids, l.ID), append(causes, l.Fingerprint)
	}
	c.office(func(ctx context.Context, o *office) error {
		if err := kafka.EnsureCheckpoint(ctx, o.kafka, c.prefix); err != nil {
			return err
		}
		pos, err := json.Marshal(cdc.Position{Format: cdc.PositionFormat, Epoch: 1, Seq: 1000, Snapshots: []cdc.Snapshot{
			{ID: "going", Table: "bank.tags", State: cdc.SnapshotRunning}, {ID: "resting", Table: "bank.tags", State: cdc.SnapshotPaused}, {ID: "over", Table: "bank.tags", State: cdc.SnapshotDone},
		}})
		if err != nil {
			return err
		}
		if err := o.kafka.EnsureTopic(ctx, kafka.SnapshotSpec(c.prefix)); err != nil {
			return err
		}
		return o.log.Produce(ctx, kafka.Record{Topic: kafka.CheckpointTopic(c.prefix), Key: []byte("test"), Value: pos})
	})
	for line, want := range map[string]string{
		"dlq show":                              strings.Join(ids, " "),
		"dlq show " + ids[0]:                    "",
		"dlq patch":                             strings.Join(ids, " "),
		"dlq replay":                            strings.Join(ids, " "),
		"dlq skip " + ids[1]:                    ids[0] + " " + ids[2],
		"dlq skip --sink cache":                 ids[2],
		"dlq replay --fingerprint " + causes[1]: ids[1],
		"dlq replay --since never":              "",
		"snapshot pause":                        "going",
		"snapshot resume":                       "resting",
		"snapshot cancel":                       "going resting",
		"snapshot cancel going":                 "",
		"dlq jobs cancel":                       "",
		"dlq list --sink search":                "",
	} {
		if got := offers(t, c.path, strings.Fields(line)...); got != want {
			t.Errorf("behind %s a shell offers %q; want %q", line, got, want)
		}
	}
	for _, cause := range causes {
		if got := offers(t, c.path, "dlq", "replay", "--fingerprint"); !strings.Contains(got, cause) {
			t.Errorf("the cause %s is not offered: %q", cause, got)
		}
	}
}

// Kafka that takes a connection and says nothing holds up no shell for long, and a configuration
// with a mistake is no matter of completion.
func TestCompletionIsSilentAboutWhatGoesWrong(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	away := strings.Replace(string(config.Example), "127.0.0.1:19092", mute.Addr().String(), 1)
	if away == string(config.Example) {
		t.Fatal("the example has another address of Kafka")
	}
	for name, text := range map[string]string{"no answer": away, "a mistake": strings.Replace(away, "prefix: shop", "prefix: my shop", 1)} {
		if got := offers(t, file(t, "lockstep.yaml", text), "dlq", "show"); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
