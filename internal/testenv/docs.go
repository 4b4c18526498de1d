package testenv

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
)

// Page is a page of the documentation, with statements that go over several lines in one.
func Page(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(t), "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\\\n", " ")
}

// Block is the first block of code of a language behind a heading.
func Block(t testing.TB, text, heading, language string) string {
	t.Helper()
	_, behind, ok := strings.Cut(text, "\n"+heading+"\n")
	_, code, ok2 := strings.Cut(behind, "```"+language+"\n")
	code, _, ok3 := strings.Cut(code, "```")
	if !ok || !ok2 || !ok3 {
		t.Fatalf("there is no block of %s behind %q", language, heading)
	}
	return code
}

// ElasticRights are a role of Elasticsearch.
type ElasticRights struct {
	Cluster []string `json:"cluster"`
	Indices []struct {
		Names      []string `json:"names"`
		Privileges []string `json:"privileges"`
	} `json:"indices"`
}

// ElasticRole is the role that stands as JSON behind a heading of a page, for these indices in
// place of the page's, or for those when none are given.
func ElasticRole(t testing.TB, name, heading string, indices ...string) (role ElasticRights) {
	t.Helper()
	if err := json.Unmarshal([]byte(Block(t, Page(t, name), heading, "json")), &role); err != nil || len(role.Indices) != 1 {
		t.Fatalf("the role of docs/%s: %v, for %d sets of indices", name, err, len(role.Indices))
	}
	if len(indices) > 0 {
		role.Indices[0].Names = indices
	}
	return role
}

// KafkaRights are those that stand as statements of kafka-acls.sh behind a heading of the page of
// privileges, of accounts and a prefix that are called name and not lockstep and shop.
func KafkaRights(t testing.TB, heading, name string) []kafkago.ACLEntry {
	t.Helper()
	return kafkaACLs(t, strings.NewReplacer(" shop.", " "+name+".", "User:lockstep", "User:"+name).Replace(Block(t, Page(t, "privileges.md"), heading, "sh")))
}

// kafkaACLs reads statements of kafka-acls.sh, and no others.
func kafkaACLs(t testing.TB, code string) (all []kafkago.ACLEntry) {
	t.Helper()
	for line := range strings.Lines(code) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		acl := kafkago.ACLEntry{Host: "*", PermissionType: kafkago.ACLPermissionTypeAllow, ResourcePatternType: kafkago.PatternTypeLiteral}
		var operations []kafkago.ACLOperationType
		var principals, names []string
		added := false
		if words[0] != "kafka-acls.sh" {
			t.Fatalf("%q is no statement of kafka-acls.sh", line)
		}
		for words = words[1:]; len(words) > 0; words = words[1:] {
			word := words[0]
			if word == "--add" {
				added = true
				continue
			}
			if len(words) < 2 {
				t.Fatalf("%s has no value in %q", word, line)
			}
			words = words[1:]
			switch word {
			case "--bootstrap-server", "--command-config":
			case "--allow-principal":
				principals = append(principals, words[0])
			case "--topic":
				acl.ResourceType, names = kafkago.ResourceTypeTopic, append(names, words[0])
			case "--group":
				acl.ResourceType, names = kafkago.ResourceTypeGroup, append(names, words[0])
			case "--resource-pattern-type":
				if err := acl.ResourcePatternType.UnmarshalText([]byte(words[0])); err != nil {
					t.Fatal(err)
				}
			case "--operation":
				var operation kafkago.ACLOperationType
				if err := operation.UnmarshalText([]byte(words[0])); err != nil {
					t.Fatal(err)
				}
				operations = append(operations, operation)
			default:
				t.Fatalf("%s is not known in %q", word, line)
			}
		}
		if !added || len(principals) == 0 || len(names) == 0 || len(operations) == 0 {
			t.Fatalf("%q says not who may do what", line)
		}
		for _, acl.Principal = range principals {
			for _, acl.ResourceName = range names {
				for _, acl.Operation = range operations {
					all = append(all, acl)
				}
			}
		}
	}
	if len(all) == 0 {
		t.Fatal("the page gives no right in Kafka")
	}
	return all
}

// RedisRights are the words behind ACL SETUSER and a user on a page, with a password, for these keys in
// place of the page's, or for those when none are given.
func RedisRights(t testing.TB, name, user, password string, keys ...string) (rights []string) {
	t.Helper()
	statement := regexp.MustCompile(`(?m)^    ACL SETUSER ` + user + ` (.*)$`).FindStringSubmatch(Page(t, name))
	if statement == nil {
		t.Fatalf("docs/%s has no ACL SETUSER %s", name, user)
	}
	for word := range strings.FieldsSeq(strings.ReplaceAll(statement[1], ">PASSWORD", ">"+password)) {
		if len(keys) == 0 || !strings.HasPrefix(word, "~") {
			rights = append(rights, word)
		}
	}
	for _, key := range keys {
		rights = append(rights, "~"+key)
	}
	return rights
}
