package mysql

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"lockstep/internal/testenv"
)

// oneByOne is a set of transactions in the plainest form there is.
type oneByOne map[gtid]bool

func drawMySQLSet(t *rapid.T, label string) (oneByOne, mysqlGTIDs) {
	plain, set := oneByOne{}, mysqlGTIDs{}
	for i := range rapid.IntRange(0, 40).Draw(t, label) {
		g := gtid{
			source: uuid.UUID{15: byte(rapid.IntRange(1, 3).Draw(t, fmt.Sprint(label, " source ", i)))},
			tag:    rapid.SampledFrom([]string{"", "", "a", "b_1"}).Draw(t, fmt.Sprint(label, " tag ", i)),
			number: uint64(rapid.IntRange(1, 12).Draw(t, fmt.Sprint(label, " number ", i))),
		}
		plain[g] = true
		set.add(g)
	}
	return plain, set
}

func (p oneByOne) set() mysqlGTIDs {
	s := mysqlGTIDs{}
	for g := range p {
		s.add(g)
	}
	return s
}

func TestGTIDSetsOfMySQLAreSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pa, a := drawMySQLSet(t, "a")
		pb, b := drawMySQLSet(t, "b")
		union, minus := maps.Clone(pa), oneByOne{}
		maps.Copy(union, pb)
		contained := true
		for g := range pa {
			if !pb[g] {
				minus[g], contained = true, false
			}
			if !a.has(g) || a.has(gtid{g.source, g.tag + "x", 0, 0, g.number}) {
				t.Fatalf("%s: has %v", a, g)
			}
		}
		for what, c := range map[string]struct{ got, want string }{
			"union": {a.union(b).String(), union.set().String()},
			"minus": {a.minus(b).String(), minus.set().String()},
			"clone": {a.clone().String(), pa.set().String()},
		} {
			if c.got != c.want {
				t.Fatalf("%s of %s and %s is %s, want %s", what, a, b, c.got, c.want)
			}
		}
		if b.contains(a) != contained {
			t.Fatalf("%s contains %s: %t", b, a, !contained)
		}
		again, err := parseMySQLGTIDs(a.String())
		if err != nil || again.String() != a.String() {
			t.Fatalf("%s was read back as %s (%v)", a, again, err)
		}
		library, err := gomysql.ParseMysqlGTIDSet(a.String())
		if err != nil || library.String() != a.String() || a.request().String() != a.String() {
			t.Fatalf("the library reads %s as %s (%v)", a, library, err)
		}
	})
}

// The server's own functions judge.
func TestGTIDSetsAgreeWithTheServer(t *testing.T) {
	db := testenv.OpenMySQL(t, testenv.MySQL(t), "")
	rapid.Check(t, func(t *rapid.T) {
		_, a := drawMySQLSet(t, "a")
		_, b := drawMySQLSet(t, "b")
		var minus, whole string
		var subset bool
		if err := db.QueryRow("SELECT GTID_SUBTRACT(?, ?), GTID_SUBSET(?, ?), GTID_SUBTRACT(?, '')", a.String(), b.String(), a.String(), b.String(), a.String()).Scan(&minus, &subset, &whole); err != nil {
			t.Fatal(err)
		}
		if got := a.minus(b).String(); got != oneLine(minus) {
			t.Fatalf("%s minus %s is %s, the server says %s", a, b, got, minus)
		}
		if b.contains(a) != subset {
			t.Fatalf("%s within %s: the server says %t", a, b, subset)
		}
		if a.String() != oneLine(whole) {
			t.Fatalf("the server writes %s as %s", a, whole)
		}
	})
}

func TestGTIDSetsOfMariaDB(t *testing.T) {
	for _, c := range []struct{ name, a, b, minus string }{
		{"equal", "0-1-100", "0-1-100", ""},
		{"behind", "0-1-90", "0-1-100", ""},
		{"ahead", "0-1-100", "0-1-90", "0-1-91 to 0-1-100"},
		{"another domain", "0-1-5,7-1-9", "0-1-5", "7-1-9"},
		{"promoted", "0-1-100", "0-1-100,0-2-110", ""},
		{"promoted without the tail", "0-1-105", "0-1-100,0-2-110", "0-1-101 to 0-1-105"},
		{"promoted, from a copy of the old one", "0-1-100", "0-2-110", ""},
		{"nothing left", "0-1-100,0-2-110", "", "0-1-100,0-2-110"},
	} {
		a, err1 := parseGTIDs(flavorMariaDB, c.a)
		b, err2 := parseGTIDs(flavorMariaDB, c.b)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if got := a.minus(b).String(); got != c.minus {
			t.Errorf("%s: %s minus %s is %s, want %s", c.name, a, b, got, c.minus)
		}
		if got := b.contains(a); got != (c.minus == "") {
			t.Errorf("%s: %s contains %s: %t", c.name, b, a, got)
		}
	}
	s, err := parseGTIDs(flavorMariaDB, "1-9-7,0-2-110,0-1-105")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.String(); got != "0-2-110,0-1-105,1-9-7" { // 0-1-105 came last: it is where domain 0 stands
		t.Errorf("read back as %s", got)
	}
	request := strings.Split(s.request().String(), ",")
	if slices.Sort(request); strings.Join(request, ",") != "0-1-105,1-9-7" {
		t.Errorf("asked for with %s", request)
	}
	kept := s.clone()
	s.add(gtid{domain: 0, server: 2, number: 111})
	if s.String() != "0-1-105,0-2-111,1-9-7" || kept.String() != "0-2-110,0-1-105,1-9-7" {
		t.Errorf("after 0-2-111: %s, the copy made before: %s", s, kept)
	}
	for _, bad := range []string{"0-1", "0-1-0", "x-1-1", "0-1-1-1"} {
		if _, err := parseGTIDs(flavorMariaDB, bad); err == nil {
			t.Errorf("%q was taken for a set", bad)
		}
	}
	for _, bad := range []string{"0-1-5", "00000000-0000-0000-0000-000000000001:0", "00000000-0000-0000-0000-000000000001:5-3", "00000000-0000-0000-0000-000000000001:1-x"} {
		if _, err := parseGTIDs(flavorMySQL, bad); err == nil {
			t.Errorf("%q was taken for a set", bad)
		}
	}
}
