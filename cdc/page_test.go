package cdc

import (
	"os"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

// The records that the pages of migration show are those that are written.
func TestTheRecordsOfThePagesAreThoseThatAreWritten(t *testing.T) {
	for page, micros := range map[string]int64{"debezium": 1795714283029889, "canal": 1589373560000000, "maxwell": 1477053234631000} {
		text, err := os.ReadFile("../docs/migrate-" + page + ".md")
		if err != nil {
			t.Fatal(err)
		}
		_, block, found := strings.Cut(string(text), "```json\n")
		block, _, _ = strings.Cut(block, "```")
		want := strings.ReplaceAll(block, "\n", "")
		source := gjson.Get(want, "source")
		c := Change{
			Table: TableName{source.Get("db").Str, source.Get("table").Str}, Op: OpUpdate, Version: 4398046511121, CommitMicros: micros,
			GTID: "6463d68a-e9be-11f1-93e5-02fc00000001:13", Origin: Origin{ServerID: uint32(source.Get("server_id").Uint()), File: "binlog.000002", Pos: 3808},
			Before: []byte(gjson.Get(want, "before").Raw), After: []byte(gjson.Get(want, "after").Raw),
		}
		if got := string(c.AppendValue(nil, "shop")); !found || got != want {
			t.Errorf("%s: the page shows\n%s\nand what is written is\n%s", page, want, got)
		}
	}
}
