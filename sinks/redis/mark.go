package redis

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/sinks"
)

// A server may lose what it has acknowledged: FLUSHALL, a start without data, a
// replica that took over without the last writes. So it keeps, in one hash per
// consumer group, the offset up to which each partition is applied. A mark is
// written after the rows that it covers, on the server that has them, and what a
// server loses is the end of its history, or all of it: where the mark survives,
// so do the rows. What has to be noticed is only that a server's history is another
// one than when the partition began, before the mark is moved on over a gap. That is
// Redis' own replication id, which is new after each start and each failover. (And when the
// first replica comes, without a loss; then a second's rows are written once more.) One script
// looks at it, and at the mark, and moves the mark: a mark that is gone, or another
// id, ends the run of the partition, which begins anew at the mark. The id stands
// beside the mark: where it is still the server's, a mark that is behind is one
// that nobody came to write, and nothing is lost.
//
// In a cluster each master has a history of its own. A hash of each name stands in every
// 64th slot, so that every master has some; they move with the slots. The mark is the lowest.
const (
	markPrefix   = ownPrefix + "w:"
	markInterval = time.Second
	lookInterval = 10 * time.Second // at the slots of a cluster
	markSlots    = 64
	bornField    = "born"
	historyOf    = " history" // behind a partition: the id under which its mark was written
)

// Each gives what was found, or done, per partition.
//
//	KEYS[1] the hash
var (
	ownHistory = `
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
`
	knownHistory = ownHistory + `
local known = history and string.find(ARGV[1], history, 1, true)
`
	// ARGV[1] the partition   ARGV[2] a name for this life of the hash
	findMark = newScript(deleteHead + ownHistory + `
redis.call('HSETNX', KEYS[1], '` + bornField + `', ARGV[2])
local kept = history and redis.call('HGET', KEYS[1], ARGV[1] .. '` + historyOf + `') == history
return {redis.call('HGET', KEYS[1], ARGV[1]) or '', redis.call('HGET', KEYS[1], '` + bornField + `'), kept and 'kept' or ''}
`)
	// ARGV[1] the known histories  ARGV[2] the partition  ARGV[3] what was found there  ARGV[4] the offset
	beginMark = newScript(deleteHead + knownHistory + `
if not known or (redis.call('HGET', KEYS[1], ARGV[2]) or '') ~= ARGV[3] then
	return 1
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[4], ARGV[2] .. '` + historyOf + `', history)
return 0
`)
	// ARGV[1] the known histories  ARGV[2], ARGV[3] ... a partition and its offset in turn
	moveMarks = newScript(deleteHead + knownHistory + `
local answers = {}
for i = 2, #ARGV, 2 do
	local stored = redis.call('HGET', KEYS[1], ARGV[i])
	if not stored then
		table.insert(answers, 'it is empty')
	elseif not known then
		table.insert(answers, 'another history')
	else
		if tonumber(stored) < tonumber(ARGV[i + 1]) then
			redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1], ARGV[i] .. '` + historyOf + `', history)
		end
		table.insert(answers, '')
	end
end
return answers
`)
)

// marks are those of one group that are moved from here.
type marks struct {
	sink *Sink
	keys []string

	mu     sync.Mutex
	open   map[*mark]bool
	moved  time.Time
	looked time.Time
}

// mark is a sinks.Mark.
type mark struct {
	of      *marks
	field   string
	known   string   // the histories of all masters when it was found
	stored  []string // per hash
	birth   string
	kept    bool
	next    int64 // guarded by of.mu, as is gone
	written int64
	gone    error
}

var _ sinks.Mark = (*mark)(nil)

// FindMark finds how far a partition is applied, for a group of that name.
func (s *Sink) FindMark(ctx context.Context, group, topic string, partition int) (sinks.Mark, error) {
	of := s.marksOf(group)
	if err := s.markable(ctx); err != nil {
		return nil, err
	}
	known, err := s.histories(ctx)
	if err != nil {
		return nil, err
	}
	m := &mark{of: of, field: topic + "/" + strconv.Itoa(partition), known: known, kept: true}
	nonce := make([]byte, 6)
	_, _ = rand.Read(nonce)
	answers, err := s.ask(ctx, findMark, of.keys, m.field, hex.EncodeToString(nonce))
	if err != nil {
		return nil, err
	}
	for _, answer := range answers {
		found, err := answer.StringSlice()
		if err != nil || len(found) != 3 {
			return nil, fmt.Errorf("redis: find a mark: %v, %w", found, err)
		}
		if m.stored = append(m.stored, found[0]); found[0] == "" && m.birth == "" {
			m.birth = found[1]
		}
		m.kept = m.kept && found[2] != ""
	}
	return m, nil
}

// markable refuses a cluster with a master that would keep no mark.
func (s *Sink) markable(ctx context.Context) error {
	cluster, ok := s.client.(*goredis.ClusterClient)
	if !ok {
		return nil
	}
	ranges, err := cluster.ClusterSlots(ctx).Result()
	if err != nil {
		return fmt.Errorf("redis: slots of the cluster: %w", err)
	}
	if addr := unmarked(ranges); addr != "" {
		return sinks.Unfit{Problem: fmt.Sprintf("master %s has none of every %dth slot, so what it loses would not be noticed", addr, markSlots),
			Mend: fmt.Sprintf(`give it %d slots in a row, or declare this sink "mode: cache" if rows may be missing`, markSlots)}
	}
	return nil
}

// unmarked is a master without a hash of marks, if there is one.
func unmarked(ranges []goredis.ClusterSlot) (addr string) {
	marked := map[string]bool{}
	for _, r := range ranges {
		if len(r.Nodes) > 0 {
			first := (r.Start + markSlots - 1) / markSlots * markSlots
			marked[r.Nodes[0].Addr] = marked[r.Nodes[0].Addr] || first <= r.End
		}
	}
	for name, ok := range marked {
		if !ok {
			addr = max(addr, name)
		}
	}
	return addr
}

// Marks gives the marks of a group by topic/partition, without changing anything. One
// that a master lacks is left out.
func (s *Sink) Marks(ctx context.Context, group string) (map[string]int64, error) {
	var lowest map[string]int64
	keys := s.markKeys(group)
	pipe := s.client.Pipeline()
	answers := make([]*goredis.MapStringStringCmd, len(keys))
	for i, key := range keys {
		answers[i] = pipe.HGetAll(ctx, key)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("redis: marks: %w", err)
	}
	for _, answer := range answers {
		here := map[string]int64{}
		for field, text := range answer.Val() {
			offset, err := strconv.ParseInt(text, 10, 64)
			if before, ok := lowest[field]; err == nil && (ok || lowest == nil) {
				if ok {
					offset = min(offset, before)
				}
				here[field] = offset
			}
		}
		lowest = here
	}
	return lowest, nil
}

func (s *Sink) marksOf(group string) *marks {
	of, _ := s.marks.LoadOrStore(group, &marks{sink: s, keys: s.markKeys(group), open: map[*mark]bool{}})
	return of.(*marks)
}

func (s *Sink) markKeys(group string) []string {
	if !s.cluster { // one server: one history
		return []string{markPrefix + group}
	}
	var keys []string
	for _, tag := range slotTags() {
		keys = append(keys, markPrefix+group+":{"+tag+"}")
	}
	return keys
}

// histories are the replication ids of all masters.
func (s *Sink) histories(ctx context.Context) (string, error) {
	var mu sync.Mutex
	var ids []string
	err := s.eachMaster(ctx, func(ctx context.Context, server *goredis.Client) error {
		info, err := server.Info(ctx, "replication").Result()
		if err != nil {
			return fmt.Errorf("redis %s: %w", server.Options().Addr, err)
		}
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, infoField(info, "master_replid"))
		return nil
	})
	slices.Sort(ids)
	return strings.Join(ids, " "), err
}

// ask calls a script for each hash.
func (s *Sink) ask(ctx context.Context, script script, keys []string, args ...any) ([]*goredis.Cmd, error) {
	for again := false; ; again = true {
		pipe := s.client.Pipeline()
		answers := make([]*goredis.Cmd, len(keys))
		for i, key := range keys {
			answers[i] = pipe.Do(ctx, append([]any{"evalsha", script.digest, 1, key}, args...)...)
		}
		_, err := pipe.Exec(ctx)
		if err == nil {
			return answers, nil
		}
		if code(err) != "NOSCRIPT" || again {
			return nil, fmt.Errorf("redis: marks: %w", err)
		}
		if err := s.Probe(ctx); err != nil {
			return nil, err
		}
	}
}

// Next is the lowest mark; all must be there.
func (m *mark) Next() (next int64, found bool, birth string) {
	for i, text := range m.stored {
		offset, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, false, m.birth
		}
		if i == 0 || offset < next {
			next = offset
		}
	}
	return next, true, m.birth
}

// Kept reports whether every server has the history under which its mark was written.
func (m *mark) Kept() bool { return m.kept }

// Begin writes the mark where it is as it was found.
func (m *mark) Begin(ctx context.Context, next int64) error {
	s := m.of.sink
	pipe := func() ([]*goredis.Cmd, error) {
		p := s.client.Pipeline()
		answers := make([]*goredis.Cmd, len(m.of.keys))
		for i, key := range m.of.keys {
			answers[i] = p.Do(ctx, "evalsha", beginMark.digest, 1, key, m.known, m.field, m.stored[i], next)
		}
		_, err := p.Exec(ctx)
		return answers, err
	}
	answers, err := pipe()
	if err != nil {
		return fmt.Errorf("redis: marks: %w", err)
	}
	for _, answer := range answers {
		if n, err := answer.Int(); err != nil || n != 0 {
			return sinks.ErrWentBack
		}
	}
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	m.next, m.written = next, next
	m.of.open[m] = true
	return nil
}

// Move notes the offset and, once in a while, writes the marks of all partitions. A
// negative offset is the one before.
func (m *mark) Move(ctx context.Context, next int64) error {
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	m.next = max(m.next, next)
	if m.gone == nil && time.Since(m.of.moved) >= markInterval {
		m.of.write(ctx)
		m.of.moved = time.Now()
	}
	if m.gone == nil && time.Since(m.of.looked) >= lookInterval {
		m.of.look(ctx)
		m.of.looked = time.Now()
	}
	return m.gone
}

// End writes the marks once more.
func (m *mark) End(ctx context.Context) {
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	if m.gone == nil && m.next > m.written {
		m.of.write(ctx)
	}
	delete(m.of.open, m)
}

// look ends all marks when a master of the cluster keeps none any more: it has got its
// first slots since they began.
func (of *marks) look(ctx context.Context) {
	err := of.sink.markable(ctx)
	if _, unfit := errors.AsType[sinks.Unfit](err); !unfit {
		return
	}
	for m := range of.open {
		m.gone = fmt.Errorf("%w: %w", sinks.ErrWentBack, err)
	}
	clear(of.open)
}

// write moves all marks to their offsets. What cannot be written now is written the
// next time.
func (of *marks) write(ctx context.Context) {
	byHistory := map[string][]*mark{}
	for m := range of.open {
		byHistory[m.known] = append(byHistory[m.known], m)
	}
	for known, list := range byHistory {
		args := []any{known}
		for _, m := range list {
			args = append(args, m.field, m.next)
		}
		answers, err := of.sink.ask(ctx, moveMarks, of.keys, args...)
		if err != nil {
			continue
		}
		for _, answer := range answers {
			why, err := answer.StringSlice()
			for i, m := range list {
				switch {
				case err != nil || len(why) != len(list):
				case why[i] != "":
					m.gone = fmt.Errorf("%w: %s", sinks.ErrWentBack, why[i])
					delete(of.open, m)
				}
			}
		}
		for _, m := range list {
			m.written = m.next
		}
	}
}
