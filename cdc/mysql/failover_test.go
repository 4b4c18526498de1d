package mysql

import (
	"testing"
)

func TestWhatAServersLogMeansForAPosition(t *testing.T) {
	const a, b = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "4e11fa47-71ca-11e1-9e33-c80aa9429562"
	type side struct {
		id, executed, purged string
		applying             bool
	}
	for _, c := range []struct {
		name, flavor, id, read string
		now                    side
		want                   verdict
		gtids                  string
	}{
		{"the same log", "", a, a + ":1-5", side{a, a + ":1-9", a + ":1-5", false}, goesOn, ""},
		{"the same log, at its end", "", a, a + ":1-9", side{a, a + ":1-9", "", false}, goesOn, ""},
		{"an errant transaction", "", a, a + ":1-5", side{a, a + ":1-5," + b + ":1", "", false}, goesOn, ""},
		{"purged unread", "", a, a + ":1-4", side{a, a + ":1-9", a + ":1-5", false}, gap, a + ":5"},
		{"nothing read", "", a, "", side{a, a + ":1-9", a + ":1-5", false}, gap, a + ":1-5"},
		{"an errant transaction, purged", "", a, a + ":1-5", side{b, a + ":1-9," + b + ":1", b + ":1", false}, gap, b + ":1"},
		{"purged on a replica that applies", "", a, a + ":1-4", side{b, a + ":1-3", a + ":1-3," + b + ":1", true}, gap, b + ":1"},
		{"switched", "", a, a + ":1-5", side{b, a + ":1-9," + b + ":1-3", a + ":1-5", false}, switched, ""},
		{"switched to a replica that goes on applying", "", a, a + ":1-5", side{b, a + ":1-5", "", true}, switched, ""},
		{"a replica that is behind", "", a, a + ":1-9", side{b, a + ":1-7", "", true}, catchingUp, a + ":8-9"},
		{"promoted without the tail", "", a, a + ":1-9", side{b, a + ":1-7," + b + ":1-100", a + ":1-2", false}, tailLost, a + ":8-9"},
		{"a crash has cost the tail", "", a, a + ":1-9", side{a, a + ":1-7", "", false}, tailLost, a + ":8-9"},
		{"the log was reset", "", a, a + ":1-9," + b + ":1-2", side{a, "", "", false}, tailLost, a + ":1-9," + b + ":1-2"},
		{"a tagged transaction is lost", "", a, a + ":1-9:app:1-3", side{b, a + ":1-9:app:1-2", "", false}, tailLost, a + ":app:3"},
		{"MariaDB, the same log", "mariadb", "m/1", "0-1-5", side{"m/1", "0-1-9", "0-1-5", false}, goesOn, ""},
		{"MariaDB, purged unread", "mariadb", "m/1", "0-1-5", side{"m/1", "0-1-9", "0-1-7", false}, gap, "0-1-6 to 0-1-7"},
		{"MariaDB, switched", "mariadb", "m/1", "0-1-5", side{"m/2", "0-1-7,0-2-9", "0-1-3", false}, switched, ""},
		{"MariaDB, promoted without the tail", "mariadb", "m/1", "0-1-9", side{"m/2", "0-1-7,0-2-100", "", false}, tailLost, "0-1-8 to 0-1-9"},
		{"MariaDB, a replica that is behind", "mariadb", "m/1", "0-1-9", side{"m/2", "0-1-7", "", true}, catchingUp, "0-1-8 to 0-1-9"},
		{"MariaDB, the log was reset", "mariadb", "m/1", "0-1-9", side{"m/1", "", "", false}, tailLost, "0-1-9"},
	} {
		flavor := flavorMySQL
		if c.flavor != "" {
			flavor = c.flavor
		}
		set := func(s string) gtidSet {
			parsed, err := parseGTIDs(flavor, s)
			if err != nil {
				t.Fatal(err)
			}
			return parsed
		}
		got, gtids := judge(c.flavor, c.id, set(c.read), &server{flavor: flavor, id: c.now.id, executed: set(c.now.executed), purged: set(c.now.purged), applying: c.now.applying})
		if got != c.want || gtids.String() != c.gtids {
			t.Errorf("%s: %s %q, want %s %q", c.name, got, gtids, c.want, c.gtids)
		}
	}
}
