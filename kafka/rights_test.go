package kafka

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

func TestRightsThatAreLackingAreNamed(t *testing.T) {
	// As the protocol numbers them; all of them hold for what begins with "shop.".
	const prefixed, topic, group, read, write, describe = 4, 2, 3, 3, 4, 8
	var (
		readTopics     = kfake.ACL{Name: "shop.", Pattern: prefixed, Allow: true, Resource: topic, Operation: read}
		writeTopics    = kfake.ACL{Name: "shop.", Pattern: prefixed, Allow: true, Resource: topic, Operation: write}
		joinGroups     = kfake.ACL{Name: "shop.", Pattern: prefixed, Allow: true, Resource: group, Operation: read}
		describeGroups = kfake.ACL{Name: "shop.", Pattern: prefixed, Allow: true, Resource: group, Operation: describe}
	)
	for account, test := range map[string]struct {
		rights []kfake.ACL
		want   string
	}{
		"everything": {[]kfake.ACL{readTopics, writeTopics, joinGroups}, "the account may read 2 topics, write 2 of them and join 1 groups"},
		"noRead":     {[]kfake.ACL{writeTopics, joinGroups}, "the account may not READ the topics shop.audit, shop.jobs"},
		"noWrite":    {[]kfake.ACL{readTopics, joinGroups}, "the account may not WRITE the topics shop.audit, shop.jobs"},
		"onlyLook":   {[]kfake.ACL{readTopics, writeTopics, describeGroups}, "the account may not READ the groups shop.search"},
		"noGroup":    {[]kfake.ACL{readTopics, writeTopics}, "the account may not READ the groups shop.search"},
	} {
		t.Run(account, func(t *testing.T) {
			_, cfg := fake(t, kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.SeedTopics(1, "shop.audit", "shop.jobs", "other"),
				kfake.User("PLAIN", account, "secret", test.rights...))
			cfg.SASL = SASL{Mechanism: "plain", Username: account, Password: "secret"}
			found, err := open(t, cfg).InspectRights(deadline(t, 30*time.Second), "shop", []string{"shop.audit", "shop.jobs", "shop.route"}, []string{"shop.audit", "shop.jobs", "shop.route"}, []string{"shop.search"})
			must(t, err)
			ok := account == "everything"
			if len(found) != 1 || found[0].OK != ok || found[0].Detail != test.want {
				t.Fatalf("found %+v; want %q", found, test.want)
			}
			if fix := found[0].Fix; !ok && (!strings.Contains(fix, "User:"+account+" --operation ") || !strings.Contains(fix, " shop. --resource-pattern-type prefixed")) {
				t.Errorf("the way out is %q", fix)
			}
		})
	}
}
