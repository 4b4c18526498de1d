package e2e

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Redis is emptied and an index deleted while nobody runs; the doctor sees the one, and the
// sinks read again what Kafka has and have the rest copied. So it goes with an index that is
// deleted under the sink, once its table changes.
func TestStoresThatAreEmptiedAreFilledAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100)
	w.ownRedis()
	cache := redis.NewClient(&redis.Options{Addr: w.spec.RedisAddr})
	t.Cleanup(func() { cache.Close() })
	p := w.start("run")
	w.equal(time.Minute)
	p.stop()

	if err := cache.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	losses := func() (found struct {
		OK          bool
		Detail, Fix string
	}) {
		var all []struct {
			System, Check string
			OK            bool
			Detail, Fix   string
		}
		w.doctor(&all)
		for _, f := range all {
			if f.System == "sink cache" && f.Check == "losses" {
				found.OK, found.Detail, found.Fix = f.OK, f.Detail, f.Fix
			}
		}
		return found
	}
	if f := losses(); f.OK || !strings.Contains(f.Detail, ".questions/0") || !strings.Contains(f.Fix, "lockstep sink cache") {
		t.Errorf("the doctor says %+v", f)
	}
	w.deleteIndex("questions")
	var all []struct {
		System, Check string
		OK            bool
		Detail, Fix   string
	}
	w.doctor(&all)
	for _, f := range all {
		gone := f.Check == "table "+w.name+".questions"
		if f.System == "sink search" && (f.OK == gone || gone && (f.Detail != "its index is gone" || !strings.Contains(f.Fix, "lockstep sink search"))) {
			t.Errorf("the doctor says %+v", f)
		}
	}
	// Kafka has nothing from before of one table any more: it is copied again.
	topic := w.name + "." + w.name + ".questions"
	w.forget(topic)
	p = w.start("run")
	w.equal(time.Minute)
	if n := p.metric("lockstep_sink_store_losses_total", `sink="cache"`, `repair="snapshot"`); n != 4 {
		t.Errorf("%v partitions were copied again; want 4", n)
	}
	if n := p.metric("lockstep_sink_store_losses_total", `sink="cache"`, `repair="replay"`); n == 0 {
		t.Error("none was read again")
	}
	var listed, every []struct{ ID string }
	w.lockstep(&listed, "snapshot", "list")
	w.lockstep(&every, "snapshot", "list", "--all")
	if n := slices.IndexFunc(every, func(sn struct{ ID string }) bool { return strings.HasPrefix(sn.ID, "lost-") }); n < 0 || len(listed) >= len(every) {
		t.Errorf("snapshots %v, and of these are shown %v", every, listed)
	}
	w.deleteIndex("tags")
	w.sql("UPDATE tags SET name = CONCAT(name, '!') ORDER BY id LIMIT 1")
	w.equal(time.Minute)
	p.stop()
	if f := losses(); !f.OK {
		t.Errorf("the doctor says %+v", f)
	}
	if log, _ := os.ReadFile(p.log); !strings.Contains(string(log), "the store has nothing of this partition any more") {
		t.Errorf("the log says\n%s", log)
	}
}

// A topic is deleted with changes that no sink had read, while nobody runs, and perhaps made
// again.
func TestATopicThatIsDeletedTakesNoChangeWithIt(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"deleted": false, "made again": true} {
		t.Run(name, func(t *testing.T) { loseTopic(t, again) })
	}
}

func loseTopic(t *testing.T, again bool) {
	w := newWorld(t, 100)
	p := w.start("run")
	w.equal(time.Minute)
	p.stop()
	p = w.start("capture")
	p.awaitReady()
	w.sql("UPDATE tags SET name = CONCAT(name, '!')", "DELETE FROM question_tags WHERE tag_id = 1", "DELETE FROM tags WHERE id = 1")
	topic := w.name + "." + w.name + ".tags"
	for until := time.Now().Add(patience); p.metric("lockstep_kafka_acked_records_total", `topic="`+topic+`"`) < 2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the changes did not come to Kafka")
		}
	}
	p.stop()
	c := w.kafka()
	w.deleteTopic(topic)
	if again {
		await(t, time.Minute, "the topic to be made again", func() bool {
			req := kmsg.NewCreateTopicsRequest()
			req.TimeoutMillis = 10_000
			spec := kmsg.NewCreateTopicsRequestTopic()
			spec.Topic, spec.NumPartitions, spec.ReplicationFactor = topic, 4, 1
			req.Topics = append(req.Topics, spec)
			res, err := req.RequestWith(t.Context(), c)
			return err == nil && res.Topics[0].ErrorCode == 0 // it is being deleted still
		})
	}
	p = w.start("run")
	w.equal(time.Minute)
	p.stop()
}

// deleteIndex takes away the index of a table of the bank.
func (w *world) deleteIndex(table string) { w.index(http.MethodDelete, table, "") }

// index asks Elasticsearch to do something with the index of a table.
func (w *world) index(method, table, what string) {
	w.t.Helper()
	for _, t := range w.spec.Tables {
		if t.Table != table {
			continue
		}
		req, err := http.NewRequestWithContext(w.t.Context(), method, w.spec.ElasticURL+"/"+t.Index+"-000001"+what, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			w.t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			w.t.Fatalf("%s %s of the index of %s: %s", method, what, table, res.Status)
		}
	}
}

// kafka is a client that another library made, for what lockstep would never do.
func (w *world) kafka() *kgo.Client {
	w.t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(w.brokers))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) deleteTopic(topic string) {
	w.t.Helper()
	c := w.kafka()
	req := kmsg.NewDeleteTopicsRequest()
	req.TimeoutMillis, req.TopicNames = 10_000, []string{topic}
	req.Topics = []kmsg.DeleteTopicsRequestTopic{{Topic: kmsg.StringPtr(topic)}}
	if res, err := req.RequestWith(w.t.Context(), c); err != nil || res.Topics[0].ErrorCode != 0 {
		w.t.Fatalf("delete %s: %+v, %v", topic, res, err)
	}
	await(w.t, time.Minute, "the broker to know that "+topic+" is gone", func() bool {
		ask := kmsg.NewMetadataRequest()
		ask.Topics = []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr(topic)}}
		res, err := ask.RequestWith(w.t.Context(), c)
		if err != nil {
			w.t.Fatal(err)
		}
		return res.Topics[0].ErrorCode != 0
	})
}

// The topic of dead letters is deleted while nobody runs: whose rows its letters were nobody
// knows, so the tables are copied again, and what is refused still is a letter again.
func TestLettersThatAreDeletedAreWrittenAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 100)
	p := w.start("run")
	w.equal(time.Minute)
	w.sql(`UPDATE questions SET settings = IF(id % 20 = 0, CAST('"checker: none"' AS JSON), JSON_OBJECT('n', id))`)
	await(t, time.Minute, "5 letters", func() bool { return len(w.openLetters()["search"]) == 5 })
	p.stop()
	w.deleteTopic(w.name + ".dlq.search")
	w.sql("UPDATE questions SET settings = JSON_OBJECT('mended', id) WHERE id = 20")
	p = w.start("run")
	await(t, time.Minute, "the 4 letters that are left", func() bool { p.alive(); return len(w.openLetters()["search"]) == 4 })
	w.sql("UPDATE questions SET settings = JSON_OBJECT('mended', id) WHERE id % 20 = 0")
	w.equal(time.Minute)
	p.stop()
}

// forget removes all records of a topic.
func (w *world) forget(topic string) {
	w.t.Helper()
	c := w.kafka()
	req := kmsg.NewDeleteRecordsRequest()
	req.TimeoutMillis = 10_000
	t := kmsg.DeleteRecordsRequestTopic{Topic: topic}
	for id := range int32(4) {
		t.Partitions = append(t.Partitions, kmsg.DeleteRecordsRequestTopicPartition{Partition: id, Offset: -1})
	}
	req.Topics = []kmsg.DeleteRecordsRequestTopic{t}
	res, err := req.RequestWith(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range res.Topics[0].Partitions {
		if p.ErrorCode != 0 {
			w.t.Fatalf("delete the records of %s/%d: error %d", topic, p.Partition, p.ErrorCode)
		}
	}
}
