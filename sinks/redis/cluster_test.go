package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/sinks"
	"lockstep/sinks/sinktest"
)

// cluster is one of real servers.
type cluster struct{ *testenv.RedisCluster }

func newCluster(t *testing.T, tls ...string) *cluster {
	t.Helper()
	return &cluster{testenv.NewRedisCluster(t, tls...)}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testenv.Await(t, 2*time.Minute, what, ok)
}

func (c *cluster) config() Config {
	return privateConfig(c.Addresses[:3]...)
}

func (c *cluster) client() *goredis.ClusterClient {
	return goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: c.config().Addresses})
}

func TestARealCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for _, mode := range []string{ModeHash, ModeJSON, ModeString, ModeStream} {
		t.Run("the suite with mode "+mode, func(t *testing.T) {
			sinktest.Run(t, func(t *testing.T) sinktest.Store { return openStore(t, c.config(), c.client(), mode) })
		})
	}
	for mode, table := range moving {
		t.Run("rows move from slot to slot with mode "+mode, func(t *testing.T) { c.moves(t, table) })
	}
	t.Run("a move is not settled while an older place is not asked", c.forgets)
	t.Run("a slot moves under writes", c.migrate)
	t.Run("a master is lost under writes", c.failover)
}

// moves takes rows from place to place, in any order and again.
func (c *cluster) moves(t *testing.T, table TableConfig) {
	s, plain := c.open(t, c.config(), table), c.client()
	defer plain.Close()
	table = table.withDefaults()
	const rows = 100
	levels := []string{"a", "b", "c", "d"}
	var changes []cdc.Change
	for id := range rows {
		var before []byte
		for v, level := range levels {
			after := image(id, level, v)
			changes = append(changes, at(id, base+cdc.Version(v), before, after))
			before = after
		}
		if id%2 == 0 {
			changes = append(changes, at(id, base+9, before, nil))
		}
	}
	changes = append(changes, changes[:rows]...)
	rand.Shuffle(len(changes), func(i, j int) { changes[i], changes[j] = changes[j], changes[i] })
	fixture{Sink: s}.deliver(t, changes)
	there := func(id int, level string) bool {
		ctx, key := t.Context(), fmt.Sprintf("q:%s:%d", level, id)
		switch table.Mode {
		case ModeSet:
			return plain.SIsMember(ctx, "level:"+level, id).Val()
		case ModeZset:
			return plain.ZScore(ctx, "level:"+level, fmt.Sprint(id)).Err() == nil
		case ModeStream:
			newest := plain.XRevRangeN(ctx, key, "+", "-", 1).Val()
			return len(newest) == 1 && newest[0].Values["op"] != "d"
		}
		return plain.Exists(ctx, key).Val() == 1
	}
	check := func(want func(id int, level string) bool) {
		t.Helper()
		for id := range rows {
			for _, level := range levels {
				if got := there(id, level); got != want(id, level) {
					t.Fatalf("row %d in place %s: %v", id, level, got)
				}
			}
		}
	}
	check(func(id int, level string) bool { return level == "d" && id%2 == 1 })
	if n, err := s.Sweep(t.Context(), questions, base+9); n != rows/2 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	fixture{Sink: s}.deliver(t, changes)
	check(func(int, string) bool { return false })
	for _, client := range c.Clients[:3] {
		client.FlushAll(t.Context())
	}
}

func (c *cluster) open(t *testing.T, cfg Config, table TableConfig) *Sink {
	t.Helper()
	s, err := Open(t.Context(), cfg, func(cdc.TableName) (TableConfig, bool) { return table, true }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// forgets has one master forget the scripts while another does not answer: the row has
// its new place by then, and its old one has still to go.
func (c *cluster) forgets(t *testing.T) {
	table := moving[ModeHash]
	s, plain := c.open(t, c.config(), table), c.client()
	defer plain.Close()
	level := func(node int) string {
		for n := 0; ; n++ {
			if level := fmt.Sprint(n); slotOf("q:"+level+":1")*3/slots == node {
				return level
			}
		}
	}
	before, after := image(1, level(1), 1), image(1, level(0), 2)
	other := upsert(2, base, "")
	for n := 0; other.After == nil || slotOf(fmt.Sprintf("q:%d:2", n-1))*3/slots != 2; n++ {
		other.After = image(2, fmt.Sprint(n), 1)
	}
	f := fixture{Sink: s}
	expect(t, "the row", f.verdicts(t, at(1, base+1, nil, before)), "applied")
	c.Do(t, 1, "script", "flush")
	c.Do(t, 2, "client", "pause", 60_000, "write")
	move := at(1, base+2, before, after)
	expect(t, "while one does not answer", len(slices.DeleteFunc(s.Apply(t.Context(), []cdc.Change{move, other}), func(out sinks.Outcome) bool {
		return out.Verdict == sinks.Unavailable
	})), 0)
	c.Do(t, 2, "client", "unpause")
	await(t, "it answers", func() bool {
		return s.Apply(t.Context(), []cdc.Change{move})[0].Verdict == sinks.Duplicate
	})
	expect(t, "places", []int64{plain.Exists(t.Context(), "q:"+level(1)+":1").Val(), plain.Exists(t.Context(), "q:"+level(0)+":1").Val()}, []int64{0, 1})
	for _, client := range c.Clients[:3] {
		client.FlushAll(t.Context())
	}
}

// migrate moves the slot of all rows to another master, a few keys at a time.
func (c *cluster) migrate(t *testing.T) {
	s, plain := c.open(t, c.config(), TableConfig{Key: "{{hot}}:{id}"}), c.client()
	defer plain.Close()
	slot := slotOf("{hot}:1")
	from := slot * 3 / slots
	to := (from + 1) % 3
	const rows = 200
	var version, held atomic.Int64
	var newest [rows]atomic.Int64
	done := make(chan struct{})
	var writers sync.WaitGroup
	for hand := range 2 {
		writers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				id := (n*2 + hand) % rows
				v := version.Add(1)
				change := upsert(id, base+cdc.Version(v), fmt.Sprintf(`{"id":%d}`, id))
				if n%5 == 0 {
					change = remove(id, base+cdc.Version(v))
				}
				for {
					out := s.Apply(context.Background(), []cdc.Change{change})[0]
					if out.Verdict == sinks.Applied {
						break
					}
					if out.Verdict != sinks.Unavailable {
						t.Errorf("row %d: %+v", id, out)
						return
					}
					held.Add(1)
					time.Sleep(time.Millisecond)
				}
				if change.Op != cdc.OpDelete {
					newest[id].Store(int64(change.Version))
				} else {
					newest[id].Store(0)
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	c.Move(t, slot, from, to)
	time.Sleep(300 * time.Millisecond)
	close(done)
	writers.Wait()
	for id := range rows {
		got := plain.HGet(t.Context(), fmt.Sprintf("{hot}:%d", id), versionField).Val()
		want := ""
		if v := newest[id].Load(); v != 0 {
			want = fmt.Sprint(v)
		}
		if got != want {
			t.Errorf("row %d has version %q, want %q", id, got, want)
		}
	}
	if n := c.Do(t, to, "cluster", "countkeysinslot", slot).(int64); n == 0 {
		t.Error("the slot has not moved")
	}
	t.Logf("%d changes, held %d times", version.Load(), held.Load())
}

// failover kills a master: what its replica has not got comes again.
func (c *cluster) failover(t *testing.T) {
	for _, client := range c.Clients[:3] {
		client.FlushAll(t.Context())
	}
	plain := c.client()
	defer plain.Close()
	one, two := newHistory(0), newHistory(1)
	p := newPipeline(t, c.config(), mirrored, one, two)
	stop := load(one, two)
	time.Sleep(1500 * time.Millisecond)
	reader := c.open(t, c.config(), mirrored)
	row := upsert(1, base, "")
	for n := 2; slotOf(fmt.Sprintf("%s:%d", questions.Table, n-1))*3/slots != 0; n++ {
		row = upsert(n, base, "")
	}
	stored := func() sinks.Stored { return reader.Stored(t.Context(), []cdc.Change{row}, 1<<20)[0] }
	expect(t, "a row of the master is read", stored().Problem, "")
	c.FailOver(t)
	began := time.Now()
	await(t, "it is read where it is now", func() bool { return !stored().Away })
	if took := time.Since(began); took > 30*time.Second { // the driver looks by itself after a minute
		t.Errorf("it was read where it is now only after %s", took)
	}
	time.Sleep(500 * time.Millisecond)
	stop()
	p.equal(t, plain)
	await(t, "both partitions are read again from their marks", func() bool { return p.repaired("rewind") >= 2 })
	p.equal(t, plain)
	expect(t, "replays", p.repaired("replay"), 0)
	// A master that comes back with nothing is a loss of everything that it had.
	before := p.repaired("replay")
	c.Clients[1].FlushAll(t.Context())
	p.equal(t, plain)
	expect(t, "replays", p.repaired("replay")-before, 2)
}

func TestEachHashOfMarksIsInItsSlot(t *testing.T) {
	tags := slotTags()
	expect(t, "tags", len(tags), slots/markSlots)
	for i, tag := range tags {
		if slot := slotOf(markPrefix + "p.cache:{" + tag + "}"); slot != i*markSlots {
			t.Errorf("tag %s is in slot %d, want %d", tag, slot, i*markSlots)
		}
	}
}

func TestAMasterThatWouldKeepNoMarkIsFound(t *testing.T) {
	slot := func(start, end int, addr string) goredis.ClusterSlot {
		return goredis.ClusterSlot{Start: start, End: end, Nodes: []goredis.ClusterNode{{Addr: addr}}}
	}
	expect(t, "all have one", unmarked([]goredis.ClusterSlot{slot(0, 0, "a"), slot(1, 64, "b"), slot(65, 16383, "c")}), "")
	expect(t, "one has none", unmarked([]goredis.ClusterSlot{slot(0, 64, "a"), slot(65, 127, "b"), slot(128, 16383, "c")}), "b")
	expect(t, "it has one elsewhere", unmarked([]goredis.ClusterSlot{slot(0, 64, "a"), slot(65, 127, "b"), slot(128, 128, "b"), slot(129, 16383, "c")}), "")
}

// A master that gets its first slots under way, and with them no hash of marks, would
// lose rows unnoticed: the partition waits until it has one.
func TestAMasterThatGetsSlotsUnderWayIsWatchedOrRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const fresh = 3
	c.Do(t, fresh, "cluster", "reset", "soft") // a replica no more
	_, port, _ := net.SplitHostPort(c.Nodes[0].Addr)
	c.Do(t, fresh, "cluster", "meet", "127.0.0.1", port, c.Buses[0])
	await(t, "it is a master of the cluster", func() bool {
		nodes := c.Do(t, 1, "cluster", "nodes").(string)
		return infoField(c.Clients[fresh].ClusterInfo(t.Context()).Val(), "cluster_state") == "ok" &&
			regexp.MustCompile(c.ID(t, fresh)+` \S+ master .* connected`).MatchString(nodes)
	})
	s := c.open(t, c.config(), mirrored)
	m, err := s.FindMark(t.Context(), "g", "t", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Begin(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	move := func(from, to int) {
		for slot := from; slot <= to; slot++ {
			for _, key := range c.Do(t, 0, "cluster", "getkeysinslot", slot, 10).([]any) {
				c.Do(t, 0, "migrate", "127.0.0.1", c.Nodes[fresh].Port(), key, 0, 5000)
			}
			for _, node := range []int{fresh, 0, 1, 2} {
				c.Do(t, node, "cluster", "setslot", slot, "node", c.ID(t, fresh))
			}
		}
	}
	moved := func() error { // as if the time had come
		of := s.marksOf("g")
		of.mu.Lock()
		of.moved, of.looked = time.Time{}, time.Time{}
		of.mu.Unlock()
		return m.Move(t.Context(), 2)
	}
	expect(t, "as it was", moved(), nil)
	move(1, 3)
	var gone error
	await(t, "the partition is ended", func() bool {
		gone = moved()
		return errors.Is(gone, sinks.ErrWentBack)
	})
	if _, err := s.FindMark(t.Context(), "g", "t", 0); err == nil || !strings.Contains(err.Error(), "has none of every 64th slot") || !strings.Contains(gone.Error(), "has none of every 64th slot") {
		t.Errorf("the mark is found: %v; it was ended by %v", err, gone)
	}
}

func TestAFailoverOfSentinelIsFollowedUnderWrites(t *testing.T) {
	t.Parallel()
	master, replica := testenv.NewRedis(t), testenv.NewRedis(t)
	old, young := goredis.NewClient(&goredis.Options{Addr: master.Addr}), goredis.NewClient(&goredis.Options{Addr: replica.Addr})
	defer old.Close()
	defer young.Close()
	if err := young.SlaveOf(t.Context(), "127.0.0.1", master.Port()).Err(); err != nil {
		t.Fatal(err)
	}
	await(t, "the replica is in step", func() bool {
		return infoField(young.Info(t.Context(), "replication").Val(), "master_link_status") == "up"
	})
	sentinel := testenv.NewSentinel(t, strings.Join([]string{
		"sentinel monitor bank 127.0.0.1 " + master.Port() + " 1",
		"sentinel down-after-milliseconds bank 500", "sentinel failover-timeout bank 3000", "",
	}, "\n"))
	watch := goredis.NewSentinelClient(&goredis.Options{Addr: sentinel.Addr})
	defer watch.Close()
	await(t, "the sentinel has found the replica", func() bool {
		replicas, err := watch.Replicas(t.Context(), "bank").Result()
		return err == nil && len(replicas) == 1
	})
	cfg := privateConfig(sentinel.Addr)
	cfg.Sentinel.Master = "bank"
	one := newHistory(0)
	p := newPipeline(t, cfg, mirrored, one)
	stop := load(one)
	time.Sleep(1200 * time.Millisecond)
	master.Kill(t)
	await(t, "the sentinel has made the replica the master", func() bool {
		addr, err := watch.GetMasterAddrByName(t.Context(), "bank").Result()
		return err == nil && net.JoinHostPort(addr[0], addr[1]) == replica.Addr
	})
	time.Sleep(500 * time.Millisecond)
	stop()
	await(t, "it is read again from the mark", func() bool { return p.repaired("rewind") == 1 })
	p.equal(t, young)
}
