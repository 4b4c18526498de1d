package config_test

import (
	"os"
	"strings"
	"testing"

	"lockstep/cdc"
	"lockstep/config"
	"lockstep/shape"
)

// questions is the table of docs/shaping.md.
var questions = cdc.Table{Name: cdc.TableName{DB: "bank", Table: "questions"}, Key: []string{"id"}, Columns: []cdc.Column{
	{Name: "id", Kind: cdc.KindInt, SQLType: "bigint"}, {Name: "status", Kind: cdc.KindKeyword}, {Name: "title", Kind: cdc.KindKeyword},
	{Name: "price", Kind: cdc.KindDecimal}, {Name: "votes", Kind: cdc.KindInt}, {Name: "tags", Kind: cdc.KindSet},
	{Name: "settings", Kind: cdc.KindJSON}, {Name: "created", Kind: cdc.KindDateTime}, {Name: "author", Kind: cdc.KindKeyword},
}}

// Every example of the page about shaping is a configuration that is right, fits the
// page's table and makes of the page's row what stands behind it.
func TestTheExamplesOfThePageAboutShapingHold(t *testing.T) {
	page, err := os.ReadFile("../docs/shaping.md")
	if err != nil {
		t.Fatal(err)
	}
	var row string
	var search, cache *shape.Shape
	shapes, documents := 0, 0
	for i, block := range strings.Split(string(page), "```") {
		kind, text, _ := strings.Cut(block, "\n")
		switch {
		case i%2 == 0:
		case kind == "json" && row == "":
			row = strings.TrimSpace(text)
		case kind == "json":
			documents++
			got, err := search.Document(nil, []byte(row))
			if want := strings.TrimSpace(text); err != nil || string(got) != want {
				t.Errorf("got  %s, %v\nwant %s", got, err, want)
			}
		case kind == "yaml":
			head, _, _ := strings.Cut(small, "tables:")
			if source, own := strings.CutPrefix(text, "source:\n"); own {
				salt, rest, _ := strings.Cut(strings.TrimSpace(source), "\n")
				head, text = strings.Replace(head, "server_id: 9", "server_id: 9, "+salt, 1), rest+"\n"
			}
			c, err := config.Parse("docs/shaping.md", []byte(head+text), noEnv)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			compile := func(sink string) *shape.Shape {
				rule, path, _ := c.ShapeOf(sink, questions.Name)
				s, err := shape.Compile(rule, questions)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				shapes++
				return s
			}
			search, cache = compile("search"), compile("cache")
			if strings.Contains(text, "shapes:") {
				for s, want := range map[*shape.Shape]cdc.Op{search: cdc.OpRead, cache: cdc.OpDelete} {
					change := cdc.Change{Op: cdc.OpRead, After: []byte(row)}
					if _, err := s.Apply(&change); err != nil || change.Op != want || want == cdc.OpRead && string(change.After) != row {
						t.Errorf("%s: %s %s, %v; want %s", text, change.Op, change.After, err, want)
					}
				}
			}
		}
	}
	if shapes < 10 || documents < 2 {
		t.Errorf("the page has %d shapes and %d documents", shapes, documents)
	}
}
