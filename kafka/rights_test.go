package kafka

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What an account may not do is found before something fails for it, and nothing is written.
func TestRightsThatAreMissingAreFound(t *testing.T) {
	may := func(name string, operations ...kmsg.ACLOperation) (acls []kfake.ACL) {
		for _, o := range operations {
			acls = append(acls, kfake.ACL{Resource: kmsg.ACLResourceTypeTopic, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: o, Allow: true})
		}
		return acls
	}
	acls := may("both", kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribeConfigs)
	acls = append(acls, may("read", kmsg.ACLOperationRead, kmsg.ACLOperationDescribeConfigs)...)
	acls = append(acls, may("write", kmsg.ACLOperationWrite, kmsg.ACLOperationDescribeConfigs)...)
	_, cfg := fake(t, kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.SeedTopics(1, "both", "read", "write"),
		kfake.Superuser("PLAIN", "admin", "p"), kfake.User("PLAIN", "lockstep", "p", acls...))
	cfg.SASL = SASL{Mechanism: "plain", Username: "lockstep", Password: "p"}
	c := open(t, cfg)
	for topic, want := range map[string]string{"both": "", "read": "the account may not WRITE it", "write": "the account may not READ it"} {
		found, err := c.inspectRights(deadline(t, 30*time.Second), topic)
		must(t, err)
		got := ""
		for _, f := range found {
			got += f.Detail
		}
		if got != want {
			t.Errorf("topic %s: %q, want %q", topic, got, want)
		}
	}
}

// A real broker refuses the batch that asks for the right to write.
func TestAskingForRightsWritesNothing(t *testing.T) {
	cfg, prefix := real(t)
	c := open(t, cfg)
	topic := prefix + ".rights"
	must(t, c.EnsureTopic(deadline(t, 30*time.Second), TopicSpec{Name: topic, Partitions: 1}))
	found, err := c.inspectRights(deadline(t, 30*time.Second), topic)
	must(t, err)
	ends, err := c.EndOffsets(deadline(t, 30*time.Second), topic)
	must(t, err)
	if len(found) != 0 || ends[0] != 0 {
		t.Errorf("found %+v and %d records", found, ends[0])
	}
}
