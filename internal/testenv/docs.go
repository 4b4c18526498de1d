package testenv

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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
