package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	goredis "github.com/redis/go-redis/v9"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/kafka"
	"lockstep/sinks"
)

// history is a topic of one partition, and what its consumer group has committed.
type history struct {
	mu        sync.Mutex
	id        int
	records   []kafka.Record
	committed int64 // negative: nothing
	start     int64 // what is before it is gone
	newest    map[string]cdc.Change
}

func newHistory(id int) *history {
	return &history{id: id, committed: -1, newest: map[string]cdc.Change{}}
}

func (h *history) publish(changes ...cdc.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range changes {
		h.records = append(h.records, kafka.Record{Topic: "p.bank.questions", Partition: h.id, Offset: int64(len(h.records)), Key: c.Key, Value: c.AppendValue(nil, "p"), Headers: c.Headers()})
		if c.Op == cdc.OpBarrier {
			clear(h.newest)
			continue
		}
		h.newest[string(c.Key)] = c
	}
}

// reader is a Rewindable of a history.
type reader struct {
	*history
	next int64
}

func (h *history) open() *reader {
	h.mu.Lock()
	defer h.mu.Unlock()
	return &reader{h, h.committed}
}

func (r *reader) end() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int64(len(r.records))
}

func (r *reader) Name() (string, int) { return "p.bank.questions", r.id }

func (r *reader) Place(context.Context) (int64, int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next, r.start, nil
}

func (r *reader) GoTo(next int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next, r.committed = next, next
}

func (r *reader) Fetch(ctx context.Context, _ int) ([]kafka.Record, error) {
	r.mu.Lock()
	r.next = max(r.next, 0)
	end := min(r.next+20, int64(len(r.records)))
	records := r.records[r.next:end]
	r.next = end
	r.mu.Unlock()
	if len(records) == 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return records, nil
}

func (r *reader) Commit(_ context.Context, next int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.committed = next
	return nil
}

// pipeline runs a sink with its worker and keeper over histories.
type pipeline struct {
	*Sink
	histories []*history
	keeper    *sinks.Keeper
	registry  *prometheus.Registry
	mu        sync.Mutex
	lost      []string
	log       bytes.Buffer // of the keeper
	stop      func()
}

// Write takes what the keeper logs.
func (p *pipeline) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(line)
}

func newPipeline(t *testing.T, cfg Config, table TableConfig, histories ...*history) *pipeline {
	t.Helper()
	s, err := Open(t.Context(), cfg, func(cdc.TableName) (TableConfig, bool) { return table, true }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p := &pipeline{Sink: s, histories: histories, registry: prometheus.NewRegistry()}
	tuning := sinks.DefaultConfig()
	tuning.BreakerOpen, tuning.HoldMax = 50*time.Millisecond, 100*time.Millisecond
	metrics := sinks.NewMetrics(p.registry)
	worker := &sinks.Worker{
		Name: "cache", Sink: s, Moves: s.Moves, Log: slog.New(slog.DiscardHandler), Metrics: metrics, Config: tuning,
		Bury: func(_ context.Context, r sinks.Refusal) error {
			t.Errorf("dead letter: %s", r.Reason)
			return nil
		},
		Progress: func(context.Context, string) (ends, committed map[int]int64, err error) {
			ends, committed = map[int]int64{}, map[int]int64{}
			for _, h := range histories {
				h.mu.Lock()
				ends[h.id], committed[h.id] = int64(len(h.records)), h.committed
				h.mu.Unlock()
			}
			return ends, committed, nil
		},
	}
	p.keeper = &sinks.Keeper{
		Name: "cache", Log: slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), p), nil)), Metrics: metrics, Config: tuning, Sweep: s.Sweep,
		Find: func(ctx context.Context, topic string, partition int) (sinks.Mark, error) {
			return s.FindMark(ctx, "p.cache", topic, partition)
		},
		Lost: func(_ context.Context, topic, id string) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.lost = append(p.lost, topic+" "+id)
			return nil
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, h := range histories {
		running.Go(func() {
			if err := p.keeper.RunPartition(ctx, h.open(), worker.RunPartition); err != nil {
				t.Errorf("partition %d: %v", h.id, err)
			}
		})
	}
	p.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(p.stop)
	return p
}

// repaired is how often losses were mended in a way.
func (p *pipeline) repaired(way string) int {
	families, _ := p.registry.Gather()
	for _, family := range families {
		if family.GetName() != "lockstep_sink_store_losses_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetValue() == way {
					return int(m.GetCounter().GetValue())
				}
			}
		}
	}
	return -1
}

// want is what the rows of all histories are at their end, by key.
func want(histories []*history) map[string]string {
	rows := map[string]string{}
	for _, h := range histories {
		h.mu.Lock()
		for key, c := range maps.All(h.newest) {
			if fields, _ := cdc.KeyFields([]byte(key)); c.After != nil {
				rows["questions:"+fields[0].Text] = c.Version.String()
			}
		}
		h.mu.Unlock()
	}
	return rows
}

// equal waits until the store has what the histories end with.
func (p *pipeline) equal(t *testing.T, plain goredis.UniversalClient) {
	t.Helper()
	var got, expected map[string]string
	for range 2400 {
		got, expected = map[string]string{}, want(p.histories)
		var mu sync.Mutex
		err := eachMasterOf(t.Context(), plain, func(ctx context.Context, server *goredis.Client) error {
			iterator := server.Scan(ctx, 0, "questions:*", 1000).Iterator()
			for iterator.Next(ctx) {
				version := plain.HGet(ctx, iterator.Val(), versionField).Val()
				mu.Lock()
				got[iterator.Val()] = version
				mu.Unlock()
			}
			return iterator.Err()
		})
		if err == nil && maps.Equal(got, expected) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	missing := 0
	for key, v := range expected {
		if got[key] != v {
			missing++
		}
	}
	t.Fatalf("the store has %d rows, the source %d; %d are missing or differ", len(got), len(expected), missing)
}

// load publishes changes until stop is called.
func load(histories ...*history) (stop func()) {
	done := make(chan struct{})
	var loading sync.WaitGroup
	loading.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
			id, v := n, base+cdc.Version(n)
			if n%5 == 0 {
				id = n / 2
			}
			c := upsert(id, v, fmt.Sprintf(`{"id":%d,"n":%d}`, id, n))
			if n%7 == 0 {
				id = n - 3
				c = remove(id, v)
				c.Before = c.Key
			}
			histories[id%len(histories)].publish(c)
		}
	})
	return func() { close(done); loading.Wait() }
}

func privateConfig(addresses ...string) Config {
	cfg := DefaultConfig()
	cfg.Addresses = addresses
	cfg.Timeout = time.Second
	return cfg
}

var mirrored = TableConfig{Key: "{table}:{pk}"}

func TestAFlushUnderLoadIsMendedFromTheLog(t *testing.T) {
	t.Parallel()
	server := testenv.NewRedis(t)
	plain := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer plain.Close()
	one, two := newHistory(0), newHistory(1)
	p := newPipeline(t, privateConfig(server.Addr), mirrored, one, two)
	stop := load(one, two)
	time.Sleep(1500 * time.Millisecond)
	if err := plain.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	stop()
	p.equal(t, plain)
	expect(t, "replays", p.repaired("replay"), 2)
	expect(t, "snapshots", len(p.lost), 0)
}

func TestAnEmptyRestartIsMendedFromTheLogAndAnotherWorkerBeginsAtTheMark(t *testing.T) {
	t.Parallel()
	server := testenv.NewRedis(t)
	plain := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer plain.Close()
	one := newHistory(0)
	p := newPipeline(t, privateConfig(server.Addr), mirrored, one)
	stop := load(one)
	time.Sleep(1200 * time.Millisecond)
	server.Kill(t)
	time.Sleep(200 * time.Millisecond)
	server.Start(t)
	time.Sleep(300 * time.Millisecond)
	stop()
	p.equal(t, plain)
	expect(t, "replays", p.repaired("replay"), 1)
	p.stop()
	mark, err := plain.HGet(t.Context(), "lockstep:w:p.cache", "p.bank.questions/0").Int64()
	expect(t, "the mark at the end", []any{mark, err}, []any{int64(len(one.records)), error(nil)})

	// The next one finds everything, and what is lost while nobody runs, it finds too.
	p = newPipeline(t, privateConfig(server.Addr), mirrored, one)
	p.equal(t, plain)
	p.stop()
	expect(t, "nothing to mend", p.repaired("replay")+p.repaired("rewind")+p.repaired("snapshot"), 0)
	plain.FlushAll(t.Context())
	p = newPipeline(t, privateConfig(server.Addr), mirrored, one)
	p.equal(t, plain)
	expect(t, "replays", p.repaired("replay"), 1)
	p.stop()

	// What Kafka does not hold from the beginning on is copied anew.
	plain.FlushAll(t.Context())
	one.start = 10
	p = newPipeline(t, privateConfig(server.Addr), mirrored, one)
	for range 6000 {
		if p.repaired("snapshot") == 1 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	expect(t, "snapshots", []int{p.repaired("snapshot"), len(p.lost)}, []int{1, 1})
	birth := plain.HGet(t.Context(), "lockstep:w:p.cache", "born").Val()
	expect(t, "it is asked for once for this life of the store", p.lost, []string{"p.bank.questions " + birth})
}

// A kill -9 leaves the marks behind what is committed. The server has it all, and is
// told from one that has another history by now.
func TestAMarkThatWasNotWrittenAnyMoreIsNoLoss(t *testing.T) {
	t.Parallel()
	server := testenv.NewRedis(t)
	plain := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer plain.Close()
	one, two := newHistory(0), newHistory(1)
	stop := load(one, two)
	await(t, "some rows", func() bool { return one.open().end() > 100 && two.open().end() > 100 })
	stop()
	const marks = "lockstep:w:p.cache"
	killed := func() { // what a run leaves that had no time to write its marks
		for id, h := range []*history{one, two} {
			field := fmt.Sprintf("p.bank.questions/%d", id)
			if n, err := plain.HGet(t.Context(), marks, field).Int64(); n != h.committed || err != nil {
				t.Fatalf("mark %d, %v, committed %d", n, err, h.committed)
			}
			plain.HSet(t.Context(), marks, field, h.committed-50)
		}
	}
	run := func(mended func(p *pipeline) bool) (log string) {
		p := newPipeline(t, privateConfig(server.Addr), mirrored, one, two)
		p.equal(t, plain)
		await(t, "everything is committed", func() bool {
			return one.open().next == one.open().end() && two.open().next == two.open().end() && mended(p)
		})
		p.stop()
		if !mended(p) {
			t.Errorf("rewinds %d, replays %d, snapshots %d", p.repaired("rewind"), p.repaired("replay"), p.repaired("snapshot"))
		}
		return p.log.String()
	}
	losses := func(n int) func(p *pipeline) bool {
		return func(p *pipeline) bool {
			return p.repaired("rewind") == n && p.repaired("replay")+p.repaired("snapshot") == 0
		}
	}
	const again = "read again, and the store has lost nothing"
	expect(t, "the first run says", run(losses(0)), "")
	killed()
	log := run(losses(0))
	if strings.Count(log, again) != 1 || strings.Contains(log, "level=WARN") {
		t.Errorf("behind a kill it says\n%s", log)
	}
	killed()
	run(losses(0)) // the marks that were moved behind the kill are as good

	// The server starts again with what it has written to its disk, and might have lost
	// the last of it.
	killed()
	plain.Save(t.Context())
	server.Kill(t)
	server.Start(t)
	log = run(losses(2))
	if strings.Contains(log, again) || strings.Count(log, "level=WARN") != 2 {
		t.Errorf("behind a start of the server it says\n%s", log)
	}
	killed()
	plain.FlushAll(t.Context())
	run(func(p *pipeline) bool { return p.repaired("replay") == 2 && p.repaired("rewind") == 0 })
}

// A replica that was cut off takes over without the last writes, and the mark that it
// has is what it has.
func TestAReplicaThatTakesOverWithoutTheLastWritesIsBroughtUpToDate(t *testing.T) {
	t.Parallel()
	master, replica := testenv.NewRedis(t), testenv.NewRedis(t)
	way := testenv.NewRelay(t, master.Addr)
	link := testenv.NewRelay(t, master.Addr)
	old, young := goredis.NewClient(&goredis.Options{Addr: master.Addr}), goredis.NewClient(&goredis.Options{Addr: replica.Addr})
	defer old.Close()
	defer young.Close()
	host, port := "127.0.0.1", link.Addr[len("127.0.0.1:"):]
	if err := young.SlaveOf(t.Context(), host, port).Err(); err != nil {
		t.Fatal(err)
	}
	one := newHistory(0)
	p := newPipeline(t, privateConfig(way.Addr), mirrored, one)
	stop := load(one)
	time.Sleep(1500 * time.Millisecond)
	link.Freeze() // nothing is replicated any more
	link.Cut()
	time.Sleep(1500 * time.Millisecond)
	stop()
	p.equal(t, old)
	before := p.repaired("rewind") // the first replica of a server gives it a new id
	if err := young.SlaveOf(t.Context(), "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := young.Exists(t.Context(), "lockstep:w:p.cache").Result(); n != 1 || err != nil {
		t.Fatalf("the replica had no mark: %d, %v", n, err)
	}
	master.Kill(t)
	way.Point(replica.Addr)
	p.equal(t, young)
	expect(t, "rewinds", p.repaired("rewind")-before, 1)
	expect(t, "replays", p.repaired("replay"), 0)
}

// The same while nothing has changed since the mark was written but rows behind it
// were lost: what the mark does not show, the history of the server does.
func TestALossBehindTheMarkIsNoticedByTheHistoryOfTheServer(t *testing.T) {
	t.Parallel()
	master, replica := testenv.NewRedis(t), testenv.NewRedis(t)
	plain, young := goredis.NewClient(&goredis.Options{Addr: master.Addr}), goredis.NewClient(&goredis.Options{Addr: replica.Addr})
	defer plain.Close()
	defer young.Close()
	way := testenv.NewRelay(t, master.Addr)
	s, err := Open(t.Context(), privateConfig(way.Addr), func(cdc.TableName) (TableConfig, bool) { return mirrored, true }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m, err := s.FindMark(t.Context(), "g", "t", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, found, birth := m.Next(); found || birth == "" {
		t.Errorf("found %v, birth %q", found, birth)
	}
	if err := m.Begin(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	again, err := s.FindMark(t.Context(), "g", "t", 0)
	if err != nil {
		t.Fatal(err)
	}
	if next, found, _ := again.Next(); next != 5 || !found || !again.Kept() {
		t.Errorf("the mark is %d, %v, kept %v", next, found, again.Kept())
	}
	// The replica has all that there is, and the rows come behind it.
	young.SlaveOf(t.Context(), "127.0.0.1", master.Port())
	for range 12000 {
		if young.HGet(t.Context(), "lockstep:w:g", "t/0").Val() == "5" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	young.SlaveOf(t.Context(), "NO", "ONE")
	if out := s.Apply(t.Context(), []cdc.Change{upsert(1, base, `{"id":1}`)}); out[0].Verdict != sinks.Applied {
		t.Fatalf("%+v", out)
	}
	way.Point(replica.Addr)
	s.marksOf("g").moved = time.Time{}
	err = nil
	for range 100 { // the driver may first notice that its connections are gone
		s.marksOf("g").moved = time.Time{}
		if err = m.Move(t.Context(), 6); err != nil {
			break
		}
	}
	if !errors.Is(err, sinks.ErrWentBack) {
		t.Errorf("the mark moved over the gap: %v", err)
	}
	expect(t, "the mark", young.HGet(t.Context(), "lockstep:w:g", "t/0").Val(), "5")
	if other, err := s.FindMark(t.Context(), "g", "t", 0); err != nil || other.Kept() {
		t.Errorf("the mark of another history is kept: %v", err)
	}
	if err := again.Begin(t.Context(), 5); !errors.Is(err, sinks.ErrWentBack) {
		t.Errorf("a mark found before begins: %v", err)
	}
}

// The owner of partition 0 sweeps for a barrier at once, for the others have
// committed behind it; what they read again comes after.
func TestABarrierThatIsReadAgainIsSweptForBehindTheOlderRows(t *testing.T) {
	t.Parallel()
	server := testenv.NewRedis(t)
	plain := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer plain.Close()
	one, two := newHistory(0), newHistory(1)
	for id := range 200 {
		two.publish(upsert(id, base+cdc.Version(id), fmt.Sprintf(`{"id":%d}`, id)))
	}
	truncate := cdc.Change{Table: questions, Op: cdc.OpBarrier, Version: base + 1000}
	two.publish(truncate)
	one.publish(truncate)
	two.publish(upsert(7, base+2000, `{"id":7}`))
	p := newPipeline(t, privateConfig(server.Addr), mirrored, one, two)
	p.equal(t, plain)
	p.stop()
	expect(t, "committed", []int64{one.committed, two.committed}, []int64{1, 202})
	plain.FlushAll(t.Context())
	// Partition 0 is read again first, while the other's old place still stands.
	p = newPipeline(t, privateConfig(server.Addr), mirrored, one)
	for range 12000 {
		if one.open().next == 1 && p.repaired("replay") == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(time.Second)
	p.stop()
	p = newPipeline(t, privateConfig(server.Addr), mirrored, one, two)
	time.Sleep(time.Second)
	p.equal(t, plain)
	expect(t, "replays", p.repaired("replay"), 1)
}
