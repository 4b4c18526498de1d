package mysql

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/google/uuid"
)

// The two kinds of server, as a Position names them. An empty name is MySQL.
const (
	flavorMySQL   = "mysql"
	flavorMariaDB = "mariadb"
)

// gtid names one transaction: uuid:number or uuid:tag:number on MySQL,
// domain-server-number on MariaDB. The zero value names none.
type gtid struct {
	source         uuid.UUID
	tag            string
	domain, server uint32
	number         uint64
}

// gtidSet is a set of transactions. Sets of two kinds of server have nothing in
// common, and to join them is a mistake of ours.
type gtidSet interface {
	// String is the set as its server writes it, without line breaks.
	String() string
	empty() bool
	clone() gtidSet
	add(gtid)
	has(gtid) bool
	contains(gtidSet) bool
	// union and minus return a new set.
	union(gtidSet) gtidSet
	minus(gtidSet) gtidSet
	// request is what the server is asked with for what is behind.
	request() gomysql.GTIDSet
}

// parseGTIDs reads a set as its server writes it.
func parseGTIDs(flavor, s string) (gtidSet, error) {
	if flavor == flavorMariaDB {
		return parseMariaGTIDs(s)
	}
	return parseMySQLGTIDs(s)
}

// IsGTID reports whether s names one transaction, of MySQL or of MariaDB.
func IsGTID(s string) bool {
	_, err := parseGTID(flavorMySQL, s)
	_, maria := parseGTID(flavorMariaDB, s)
	return err == nil || maria == nil
}

// parseGTID reads the name of one transaction.
func parseGTID(flavor, s string) (gtid, error) {
	if flavor == flavorMariaDB {
		domain, server, number, err := cutMariaGTID(s)
		return gtid{domain: domain, server: server, number: number}, err
	}
	set, err := parseMySQLGTIDs(s)
	if err != nil {
		return gtid{}, err
	}
	for stream, runs := range set {
		if len(set) == 1 && len(runs) == 1 && runs[0].first == runs[0].last {
			return gtid{source: stream.source, tag: stream.tag, number: runs[0].first}, nil
		}
	}
	return gtid{}, fmt.Errorf("GTID %q names no single transaction", s)
}

// run is a run of numbers, both ends included.
type run struct{ first, last uint64 }

// mysqlStream is what MySQL counts transactions by.
type mysqlStream struct {
	source uuid.UUID
	tag    string
}

// mysqlGTIDs holds the runs of each stream in order, none touching another.
type mysqlGTIDs map[mysqlStream][]run

func parseMySQLGTIDs(s string) (mysqlGTIDs, error) {
	set := mysqlGTIDs{}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		fields := strings.Split(part, ":")
		source, err := uuid.Parse(fields[0])
		if err != nil || len(fields) < 2 {
			return nil, fmt.Errorf("GTID set %q: %q does not begin with a server's UUID", s, part)
		}
		stream := mysqlStream{source: source}
		for _, f := range fields[1:] {
			f = strings.TrimSpace(f)
			if f != "" && (f[0] < '0' || f[0] > '9') {
				stream.tag = strings.ToLower(f)
				continue
			}
			from, to, found := strings.Cut(f, "-")
			first, err := strconv.ParseUint(from, 10, 63)
			last := first
			if err == nil && found {
				last, err = strconv.ParseUint(to, 10, 63)
			}
			if err != nil || first == 0 || last < first {
				return nil, fmt.Errorf("GTID set %q: %q is no run of numbers", s, f)
			}
			set[stream] = append(set[stream], run{first, last})
		}
	}
	for stream, runs := range set {
		set[stream] = joined(runs)
	}
	return set, nil
}

// joined sorts runs and joins those that touch.
func joined(runs []run) []run {
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	out := runs[:0]
	for _, r := range runs {
		if n := len(out); n > 0 && r.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, r.last)
			continue
		}
		out = append(out, r)
	}
	return out
}

func (s mysqlGTIDs) String() string {
	streams := slices.SortedFunc(maps.Keys(s), func(a, b mysqlStream) int {
		return cmp.Or(cmp.Compare(a.source.String(), b.source.String()), cmp.Compare(a.tag, b.tag))
	})
	var b strings.Builder
	for i, stream := range streams {
		if i == 0 || streams[i-1].source != stream.source {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(stream.source.String())
		}
		if stream.tag != "" {
			b.WriteByte(':')
			b.WriteString(stream.tag)
		}
		for _, r := range s[stream] {
			b.WriteByte(':')
			b.WriteString(strconv.FormatUint(r.first, 10))
			if r.last > r.first {
				b.WriteByte('-')
				b.WriteString(strconv.FormatUint(r.last, 10))
			}
		}
	}
	return b.String()
}

func (s mysqlGTIDs) empty() bool { return len(s) == 0 }

func (s mysqlGTIDs) clone() gtidSet {
	c := make(mysqlGTIDs, len(s))
	for stream, runs := range s {
		c[stream] = slices.Clone(runs)
	}
	return c
}

func (s mysqlGTIDs) add(g gtid) {
	stream := mysqlStream{g.source, g.tag}
	runs := s[stream]
	if n := len(runs); n > 0 && runs[n-1].last+1 == g.number { // nearly always
		runs[n-1].last++
		return
	}
	s[stream] = joined(append(runs, run{g.number, g.number}))
}

func (s mysqlGTIDs) has(g gtid) bool {
	return slices.ContainsFunc(s[mysqlStream{g.source, g.tag}], func(r run) bool { return r.first <= g.number && g.number <= r.last })
}

func (s mysqlGTIDs) contains(other gtidSet) bool { return other.minus(s).empty() }

func (s mysqlGTIDs) union(other gtidSet) gtidSet {
	u := s.clone().(mysqlGTIDs)
	for stream, runs := range other.(mysqlGTIDs) {
		u[stream] = joined(append(u[stream], runs...))
	}
	return u
}

func (s mysqlGTIDs) minus(other gtidSet) gtidSet {
	left := mysqlGTIDs{}
	for stream, runs := range s {
		if rest := runsMinus(runs, other.(mysqlGTIDs)[stream]); len(rest) > 0 {
			left[stream] = rest
		}
	}
	return left
}

func runsMinus(runs, gone []run) (left []run) {
	for _, r := range runs {
		for _, g := range gone {
			if g.last < r.first {
				continue
			}
			if g.first > r.last {
				break
			}
			if r.first < g.first {
				left = append(left, run{r.first, g.first - 1})
			}
			r.first = g.last + 1
		}
		if r.first <= r.last {
			left = append(left, r)
		}
	}
	return left
}

func (s mysqlGTIDs) request() gomysql.GTIDSet {
	set, err := gomysql.ParseMysqlGTIDSet(s.String())
	if err != nil {
		panic(fmt.Sprintf("GTID set %q: %v", s, err)) // we wrote it
	}
	return set
}

// mariaStream is what MariaDB counts transactions by. Numbers rise within a domain
// whoever writes them, so of one server's there are gaps.
type mariaStream struct{ domain, server uint32 }

// mariaGTIDs is what gtid_binlog_state tells: of every domain and server the last
// number in the log. A position with one entry per domain, as gtid_slave_pos has,
// is not enough: of two servers that went on from the same place, each with
// transactions the other one lacks, it would call the higher number the later one.
type mariaGTIDs struct {
	// runs holds the numbers of each stream; the run of a set that was read from
	// a server begins with 1, and only what minus leaves begins elsewhere.
	runs map[mariaStream]run
	last map[uint32]uint32 // of each domain, the server of its newest transaction
	part bool              // what minus has left: nothing is in it that it does not name
}

func parseMariaGTIDs(s string) (*mariaGTIDs, error) {
	set := &mariaGTIDs{runs: map[mariaStream]run{}, last: map[uint32]uint32{}}
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		domain, server, number, err := cutMariaGTID(part)
		if err != nil {
			return nil, err
		}
		set.add(gtid{domain: domain, server: server, number: number})
	}
	return set, nil
}

func cutMariaGTID(s string) (domain, server uint32, number uint64, err error) {
	fields := strings.Split(s, "-")
	if len(fields) == 3 {
		d, err1 := strconv.ParseUint(fields[0], 10, 32)
		id, err2 := strconv.ParseUint(fields[1], 10, 32)
		n, err3 := strconv.ParseUint(fields[2], 10, 64)
		if err1 == nil && err2 == nil && err3 == nil && n > 0 {
			return uint32(d), uint32(id), n, nil
		}
	}
	return 0, 0, 0, fmt.Errorf("GTID %q is not domain-server-number", s)
}

// String lists the newest of each domain behind the others, as gtid_binlog_state does.
func (s *mariaGTIDs) String() string {
	streams := slices.SortedFunc(maps.Keys(s.runs), func(a, b mariaStream) int {
		newest := func(m mariaStream) int {
			if s.last[m.domain] == m.server {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(a.domain, b.domain), cmp.Compare(newest(a), newest(b)), cmp.Compare(a.server, b.server))
	})
	parts := make([]string, len(streams))
	for i, m := range streams {
		r := s.runs[m]
		parts[i] = fmt.Sprintf("%d-%d-%d", m.domain, m.server, r.last)
		if 1 < r.first && r.first < r.last {
			parts[i] = fmt.Sprintf("%d-%d-%d to %s", m.domain, m.server, r.first, parts[i])
		}
	}
	return strings.Join(parts, ",")
}

func (s *mariaGTIDs) empty() bool { return len(s.runs) == 0 }

func (s *mariaGTIDs) clone() gtidSet {
	return &mariaGTIDs{maps.Clone(s.runs), maps.Clone(s.last), s.part}
}

func (s *mariaGTIDs) add(g gtid) {
	m := mariaStream{g.domain, g.server}
	s.runs[m] = run{1, max(s.runs[m].last, g.number)}
	s.last[g.domain] = g.server
}

// newest is the highest number of a domain.
func (s *mariaGTIDs) newest(domain uint32) (n uint64) {
	for m, r := range s.runs {
		if m.domain == domain {
			n = max(n, r.last)
		}
	}
	return n
}

func (s *mariaGTIDs) has(g gtid) bool {
	r, ok := s.known(mariaStream{g.domain, g.server})
	return ok && r.first <= g.number && g.number <= r.last
}

// known returns the numbers of a stream. A server that was made from a copy of
// another one has nothing in its log of those who wrote before; where its own log
// has got past a number, it has that.
func (s *mariaGTIDs) known(m mariaStream) (run, bool) {
	if r, ok := s.runs[m]; ok || s.part {
		return r, ok
	}
	n := s.newest(m.domain)
	return run{1, n}, n > 0
}

func (s *mariaGTIDs) contains(other gtidSet) bool { return other.minus(s).empty() }

func (s *mariaGTIDs) union(other gtidSet) gtidSet {
	u := s.clone().(*mariaGTIDs)
	o := other.(*mariaGTIDs)
	u.part = s.part || o.part
	for m, r := range o.runs {
		if have, ok := u.runs[m]; ok {
			r = run{min(have.first, r.first), max(have.last, r.last)}
		}
		u.runs[m] = r
	}
	u.settle()
	return u
}

func (s *mariaGTIDs) minus(other gtidSet) gtidSet {
	left := &mariaGTIDs{runs: map[mariaStream]run{}, last: map[uint32]uint32{}, part: true}
	for m, r := range s.runs {
		var gone []run
		if g, ok := other.(*mariaGTIDs).known(m); ok {
			gone = []run{g}
		}
		if rest := runsMinus([]run{r}, gone); len(rest) > 0 {
			left.runs[m] = rest[len(rest)-1]
		}
	}
	left.settle()
	return left
}

// settle takes the highest number of each domain for its newest. Of two servers that have
// both written it, it stays with the one that was the newest, or takes the higher id.
func (s *mariaGTIDs) settle() {
	was := s.last
	s.last = map[uint32]uint32{}
	for m, r := range s.runs {
		if r.last != s.newest(m.domain) {
			continue
		}
		server, taken := s.last[m.domain]
		first, known := was[m.domain]
		if !taken || known && m.server == first || !(known && server == first) && m.server > server {
			s.last[m.domain] = m.server
		}
	}
}

func (s *mariaGTIDs) request() gomysql.GTIDSet {
	set := &gomysql.MariadbGTIDSet{Sets: map[uint32]*gomysql.MariadbGTID{}}
	for domain, server := range s.last {
		set.Sets[domain] = &gomysql.MariadbGTID{DomainID: domain, ServerID: server, SequenceNumber: s.runs[mariaStream{domain, server}].last}
	}
	return set
}
