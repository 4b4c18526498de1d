package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	goredis "github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/sinks"
)

var questions = cdc.TableName{DB: "bank", Table: "questions"}

// base is a version as a source gives it.
const base = cdc.Version(1 << 42)

func upsert(id int, v cdc.Version, row string) cdc.Change {
	return cdc.Change{Table: questions, Op: cdc.OpUpdate, Version: v, Key: fmt.Appendf(nil, `{"id":%d}`, id), After: []byte(row)}
}

func remove(id int, v cdc.Version) cdc.Change {
	return cdc.Change{Table: questions, Op: cdc.OpDelete, Version: v, Key: fmt.Appendf(nil, `{"id":%d}`, id)}
}

// testDB is the database of these tests. Nobody else uses it, and they empty it.
const testDB = 9

// server gives the address of the real Redis, with testDB empty before and after.
func server(t testing.TB) (addr string) {
	t.Helper()
	addr = testenv.Redis(t).Addr
	empty := func() {
		plain := client(addr)
		defer plain.Close()
		if err := plain.FlushDB(context.Background()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	empty()
	t.Cleanup(empty)
	return addr
}

func client(addr string) *goredis.Client {
	return goredis.NewClient(&goredis.Options{Addr: addr, DB: testDB})
}

// set changes the configuration of the server until restore is called.
func (f fixture) set(t testing.TB, name, value string) (restore func()) {
	t.Helper()
	old := f.plain.ConfigGet(t.Context(), name).Val()[name]
	restore = func() {
		if err := f.plain.ConfigSet(context.Background(), name, old).Err(); err != nil {
			t.Error(err)
		}
	}
	if err := f.plain.ConfigSet(t.Context(), name, value).Err(); err != nil {
		t.Fatal(err)
	}
	return restore
}

// relay is a way to a server that can be cut and stopped up.
type relay struct {
	addr   string
	gate   sync.Mutex // held while nothing gets through
	mu     sync.Mutex
	conns  []net.Conn
	copies sync.WaitGroup
}

// newRelay listens at addr, which may be port 0, and passes on to server.
func newRelay(t testing.TB, addr, server string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String()}
	r.copies.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", server)
			if err != nil {
				in.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, in, out)
			r.mu.Unlock()
			r.copies.Go(func() { r.pass(out, in) })
			r.copies.Go(func() { r.pass(in, out) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.cut()
		r.copies.Wait()
	})
	return r
}

func (r *relay) pass(to, from net.Conn) {
	defer to.Close()
	for buf := make([]byte, 4096); ; {
		n, err := from.Read(buf)
		r.gate.Lock()
		to.Write(buf[:n])
		r.gate.Unlock()
		if err != nil {
			return
		}
	}
}

// cut ends every connection; new ones may be made.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

// fixture is an open sink and a plain client beside it.
type fixture struct {
	*Sink
	plain *goredis.Client
}

func config(addr string) Config {
	cfg := DefaultConfig()
	cfg.Addresses = []string{addr}
	cfg.DB = testDB
	return cfg
}

func open(t testing.TB, addr string, table TableConfig) fixture {
	t.Helper()
	s, err := Open(t.Context(), limited(t, config(addr)), func(name cdc.TableName) (TableConfig, bool) {
		return table, name == questions
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	plain := client(testenv.Redis(t).Addr)
	t.Cleanup(func() { s.Close(); plain.Close() })
	return fixture{s, plain}
}

// verdicts applies changes and spells the outcomes.
func (f fixture) verdicts(t testing.TB, changes ...cdc.Change) string {
	t.Helper()
	var words []string
	for _, o := range f.Apply(t.Context(), changes) {
		word := []string{"unavailable", "applied", "duplicate", "stale", "filtered", "transient", "poison"}[o.Verdict]
		if o.Class != "" {
			word += " " + string(o.Class)
		}
		if o.Verdict == sinks.Unavailable {
			word += " " + o.Reason
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

func expect[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func bothModes(t *testing.T, addr string, test func(t *testing.T, f fixture)) {
	for _, mode := range []string{ModeHash, ModeJSON} {
		t.Run(mode, func(t *testing.T) {
			f := open(t, addr, TableConfig{Key: "{table}:{pk}", Mode: mode})
			if err := f.plain.FlushDB(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			test(t, f)
		})
	}
}

func TestAHashHasOneFieldPerColumnAsPlainText(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "question:{id}"})
	row := `{"id":7,"title":"a \"b\"\n\u00e9","price":"12.30","n":18446744073709551615,"tags":["x","y"],"doc":{"k": 1},"on":true,"gone":null,"empty":""}`
	expect(t, "verdict", f.verdicts(t, upsert(7, base, row)), "applied")
	got := f.plain.HGetAll(t.Context(), "question:7").Val()
	expect(t, "hash", got, map[string]string{
		"id": "7", "title": "a \"b\"\né", "price": "12.30", "n": "18446744073709551615",
		"tags": `["x","y"]`, "doc": `{"k": 1}`, "on": "true", "empty": "", "_lockstep_v": base.String(),
	})

	expect(t, "verdict", f.verdicts(t, upsert(7, base+1, `{"id":7,"title":"new"}`)), "applied")
	expect(t, "a dropped column is gone", f.plain.HGetAll(t.Context(), "question:7").Val(),
		map[string]string{"id": "7", "title": "new", "_lockstep_v": (base + 1).String()})
}

// Whatever a hash was before, afterwards it is what the row is: fields of columns that are
// NULL now, were renamed or were put there by somebody else are gone, and so is a time to live.
func TestAHashThatIsWrittenOverIsWhatTheRowIs(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "question:{id}"})
	random := rand.New(rand.NewPCG(1, 2))
	var over, anew int
	for v := range cdc.Version(400) {
		version := base + v
		row, want := `{"id":1`, map[string]string{"id": "1", "_lockstep_v": version.String()}
		for _, column := range []string{"a", "b", "c", "d"} {
			switch random.IntN(8) {
			case 0:
				row += fmt.Sprintf(`,%q:null`, column)
			case 1: // it has another name
				row += fmt.Sprintf(`,"%s2":%d`, column, v)
				want[column+"2"] = fmt.Sprint(v)
			default:
				row += fmt.Sprintf(`,%q:%d`, column, v)
				want[column] = fmt.Sprint(v)
			}
		}
		switch random.IntN(6) {
		case 0:
			f.plain.HSet(t.Context(), "question:1", "somebody's", "own")
		case 1:
			f.plain.Expire(t.Context(), "question:1", time.Hour)
		case 2:
			f.plain.Del(t.Context(), "question:1")
		}
		before := f.plain.HKeys(t.Context(), "question:1").Val()
		if len(before) > 0 && !slices.ContainsFunc(before, func(field string) bool { return want[field] == "" }) {
			over++
		} else {
			anew++
		}
		expect(t, "verdict", f.verdicts(t, upsert(1, version, row+"}")), "applied")
		expect(t, "hash of "+row, f.plain.HGetAll(t.Context(), "question:1").Val(), want)
		expect(t, "time to live", f.plain.TTL(t.Context(), "question:1").Val(), -1)
	}
	if over < 50 || anew < 50 {
		t.Errorf("%d rows were written over and %d made anew; want many of both", over, anew)
	}
}

func TestAWideRowIsWrittenWhole(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "{table}:{pk}"})
	want := map[string]string{"_lockstep_v": base.String()}
	var row strings.Builder
	row.WriteString(`{"id":1`)
	want["id"] = "1"
	for i := range 4095 {
		fmt.Fprintf(&row, `,"c%d":%d`, i, i)
		want[fmt.Sprintf("c%d", i)] = fmt.Sprint(i)
	}
	row.WriteString("}")
	expect(t, "verdict", f.verdicts(t, upsert(1, base, row.String())), "applied")
	expect(t, "hash", f.plain.HGetAll(t.Context(), "questions:1").Val(), want)
	want["_lockstep_v"] = (base + 1).String()
	expect(t, "verdict", f.verdicts(t, upsert(1, base+1, row.String())), "applied")
	expect(t, "hash that was written over", f.plain.HGetAll(t.Context(), "questions:1").Val(), want)
}

func TestAJSONStringIsTheRowWithItsVersionAtTheEnd(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "{table}:{pk}", Mode: ModeJSON})
	row := `{"id":7,"title":",\"_lockstep\":{\"v\":9007199254740991}}"}`
	expect(t, "verdict", f.verdicts(t, upsert(7, base, row)), "applied")
	expect(t, "value", f.plain.Get(t.Context(), "questions:7").Val(),
		`{"id":7,"title":",\"_lockstep\":{\"v\":9007199254740991}}","_lockstep":{"v":4398046511104}}`)
	expect(t, "newer", f.verdicts(t, upsert(7, base+1, row)), "applied")

	lookalike := `{"id":8,"_lockstep_":0,"doc":{"a":1,"_lockstep":{"v":9}}}`
	expect(t, "first", f.verdicts(t, upsert(8, base+1, lookalike)), "applied")
	expect(t, "the version is read at the very end", f.verdicts(t, upsert(8, base, lookalike)), "stale")
}

func TestTheGuardComparesVersionsExactly(t *testing.T) {
	const top = cdc.Version(1<<53 - 1)
	bothModes(t, server(t), func(t *testing.T, f fixture) {
		row := `{"id":1}`
		for i, v := range []cdc.Version{base, top - 3} {
			id := i + 1
			expect(t, "first", f.verdicts(t, upsert(id, v+1, row)), "applied")
			expect(t, "same", f.verdicts(t, upsert(id, v+1, row)), "duplicate")
			expect(t, "one less", f.verdicts(t, upsert(id, v, row)), "stale")
			expect(t, "delete one less", f.verdicts(t, remove(id, v)), "stale")
			expect(t, "one more", f.verdicts(t, upsert(id, v+2, row)), "applied")
			expect(t, "delete the same", f.verdicts(t, remove(id, v+2)), "duplicate")
			expect(t, "delete one more", f.verdicts(t, remove(id, v+3)), "applied")
			expect(t, "delete again", f.verdicts(t, remove(id, v+3)), "duplicate")
			expect(t, "upsert behind the delete", f.verdicts(t, upsert(id, v+2, row)), "stale")
			expect(t, "keys", f.plain.Exists(t.Context(), fmt.Sprintf("questions:%d", id)).Val(), 0)
		}
		expect(t, "no version", f.verdicts(t, upsert(9, 0, row)), "poison undecodable")
		expect(t, "too high", f.verdicts(t, upsert(9, top+1, row)), "poison undecodable")
	})
}

func TestADeleteLeavesItsVersionForATimeAndTheNextUpsertRemovesIt(t *testing.T) {
	bothModes(t, server(t), func(t *testing.T, f fixture) {
		const marker = "lockstep:t:{questions:1}"
		expect(t, "verdicts", f.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")
		expect(t, "markers", f.plain.Exists(t.Context(), marker).Val(), 0)
		expect(t, "verdicts", f.verdicts(t, remove(1, base+2)), "applied")
		expect(t, "marker", f.plain.Get(t.Context(), marker).Val(), (base + 2).String())
		ttl := f.plain.PTTL(t.Context(), marker).Val()
		if ttl <= 14*24*time.Hour-time.Minute || ttl > 14*24*time.Hour {
			t.Errorf("marker lives for %s, want 14 days", ttl)
		}
		expect(t, "older", f.verdicts(t, upsert(1, base+1, `{"id":1}`)), "stale")
		expect(t, "newer", f.verdicts(t, upsert(1, base+3, `{"id":1}`)), "applied")
		expect(t, "keys", keys(t, f), []string{"questions:1"})
	})
}

func TestAKeyWithoutAVersionIsOverwrittenButNotByWhatADeleteOutdated(t *testing.T) {
	for _, tt := range []struct {
		mode  string
		plant func(f fixture)
	}{
		{ModeHash, func(f fixture) { f.plain.HSet(context.Background(), "questions:1", "a", "b") }},
		{ModeHash, func(f fixture) { f.plain.HSet(context.Background(), "questions:1", "_lockstep_v", "many") }},
		{ModeJSON, func(f fixture) { f.plain.Set(context.Background(), "questions:1", `{"id":1}`, time.Hour) }},
	} {
		f := open(t, server(t), TableConfig{Key: "{table}:{pk}", Mode: tt.mode})
		tt.plant(f)
		expect(t, "foreign key", f.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")
		expect(t, "no time to live is left", f.plain.TTL(t.Context(), "questions:1").Val(), -1)
		expect(t, "then guarded", f.verdicts(t, upsert(1, base, `{"id":1}`)), "duplicate")
		expect(t, "delete", f.verdicts(t, remove(1, base+5)), "applied")
		tt.plant(f)
		expect(t, "older than the delete", f.verdicts(t, upsert(1, base+4, `{"id":1}`)), "stale")
		expect(t, "newer than the delete", f.verdicts(t, upsert(1, base+6, `{"id":1}`)), "applied")
	}
}

func TestAWrongTypeIsPoisonAndItsNeighboursGoOn(t *testing.T) {
	bothModes(t, server(t), func(t *testing.T, f fixture) {
		f.plain.LPush(t.Context(), "questions:2", "x")
		expect(t, "verdicts", f.verdicts(t, upsert(1, base, `{"id":1}`), upsert(2, base, `{"id":2}`), remove(3, base)),
			"applied, poison wrong_type, applied")
		expect(t, "the list is left alone", f.plain.LRange(t.Context(), "questions:2", 0, -1).Val(), []string{"x"})
		expect(t, "delete", f.verdicts(t, remove(2, base+1)), "poison wrong_type")
	})
}

func TestARefusedRowSaysWhyAndItsNeighboursGoOn(t *testing.T) {
	s := server(t)
	f := open(t, s, TableConfig{Key: "q:{number}"})
	expect(t, "key template", f.verdicts(t, upsert(1, base, `{"id":1}`)), "poison key")
	other := upsert(1, base, `{"id":1}`)
	other.Table.Table = "answers"

	bothModes(t, s, func(t *testing.T, f fixture) {
		f.cfg.MaxValueBytes = 1024
		name := `{"id":4,"_lockstep_v":1}`
		if f.verdicts(t, upsert(4, base, name)) == "applied" {
			name = `{"id":4,"_lockstep":1}`
		}
		expect(t, "verdicts", f.verdicts(t,
			upsert(1, base, `{"id":1}`),
			upsert(2, base, `{"id":2,"x":"`+strings.Repeat("x", 1024)+`"}`),
			upsert(3, base, `{}`),
			upsert(4, base+1, name),
			other,
			upsert(5, base, `{"id":5}`),
		), "applied, poison too_large, poison undecodable, poison mapping, filtered, applied")
	})
}

func TestForgottenScriptsAreLoadedAgain(t *testing.T) {
	bothModes(t, server(t), func(t *testing.T, f fixture) {
		expect(t, "before", f.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")
		if err := f.plain.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		expect(t, "after", f.verdicts(t, upsert(1, base, `{"id":1}`), upsert(2, base, `{"id":2}`), remove(3, base), upsert(4, base, `{}`)),
			"duplicate, applied, applied, poison undecodable")
	})
}

func TestRedeliveryInAnyOrderEndsWithTheNewestVersion(t *testing.T) {
	bothModes(t, server(t), func(t *testing.T, f fixture) {
		f.cfg.PipelineBytes = 1024 // several pipelines in one Apply
		run := 0
		rapid.Check(t, func(t *rapid.T) {
			run++
			const rows = 4
			id := func(row int) int { return run*rows + row }
			history := make([]cdc.Change, rapid.IntRange(1, 40).Draw(t, "length"))
			newest := map[int]cdc.Change{}
			for i := range history {
				row, v := id(rapid.IntRange(0, rows-1).Draw(t, "row")), base+cdc.Version(i)
				history[i] = upsert(row, v, fmt.Sprintf(`{"id":%d,"at":"%d"}`, row, v))
				if rapid.IntRange(0, 2).Draw(t, "op") == 0 {
					history[i] = remove(row, v)
				}
				newest[row] = history[i]
			}
			// Each change comes once or twice, in any order, in batches of distinct keys.
			twice := append(slices.Clone(history), rapid.SliceOfN(rapid.SampledFrom(history), 0, 20).Draw(t, "again")...)
			for queue := rapid.Permutation(twice).Draw(t, "order"); len(queue) > 0; {
				seen := map[string]bool{}
				n := 0
				for n < len(queue) && !seen[string(queue[n].Key)] {
					seen[string(queue[n].Key)] = true
					n++
				}
				for i, o := range f.Apply(context.Background(), queue[:n]) {
					if o.Verdict != sinks.Applied && o.Verdict != sinks.Duplicate && o.Verdict != sinks.Stale {
						t.Fatalf("change %+v: outcome %+v", queue[i], o)
					}
				}
				queue = queue[n:]
			}
			for row, c := range newest {
				got := f.read(fmt.Sprintf("questions:%d", row))
				want := ""
				if c.After != nil {
					want = c.Version.String()
				}
				if got != want {
					t.Fatalf("row %d has version %q, want %q of %s", row, got, want, c.Op)
				}
			}
		})
	})
}

// read gives the column at of a row, which holds its version as well.
func (f fixture) read(key string) string {
	if at, err := f.plain.HGet(context.Background(), key, "at").Result(); err == nil {
		return at
	}
	text := f.plain.Get(context.Background(), key).Val()
	_, at, _ := strings.Cut(text, `"at":"`)
	at, _, _ = strings.Cut(at, `"`)
	return at
}

func TestAServerThatMayEvictIsRefusedUnlessDeclaredACache(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "{table}:{pk}"})
	defer f.set(t, "maxmemory-policy", "allkeys-lru")()
	_, err := Open(t.Context(), f.cfg, f.tables, f.log)
	if err == nil || !strings.Contains(err.Error(), `maxmemory-policy is "allkeys-lru", so it may evict rows; set "maxmemory-policy noeviction"`) {
		t.Errorf("error is %v", err)
	}
	f.cfg.Mode = ModeCache
	s, err := Open(t.Context(), f.cfg, f.tables, f.log)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestAServerThatIsAwayHoldsTheChangesAndIsCheckedWhenItComes(t *testing.T) {
	real := server(t)
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := nobody.Addr().String()
	nobody.Close()
	f := open(t, addr, TableConfig{Key: "{table}:{pk}"})
	if got := f.verdicts(t, upsert(1, base, `{"id":1}`)); !strings.HasPrefix(got, "unavailable") {
		t.Errorf("away: %s", got)
	}
	way := newRelay(t, addr, real)
	expect(t, "back", f.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")

	// Behind a lost connection may stand another server, one that evicts.
	defer f.set(t, "maxmemory-policy", "allkeys-lfu")()
	way.cut()
	var got string
	for range 10 { // the driver may first notice that its connections are gone
		if got = f.verdicts(t, upsert(1, base+1, `{"id":1}`)); strings.Contains(got, "evict") {
			return
		}
	}
	t.Errorf("another policy: %s", got)
}

func TestAFullServerHoldsUpsertsAndTakesDeletes(t *testing.T) {
	bothModes(t, server(t), func(t *testing.T, f fixture) {
		expect(t, "before", f.verdicts(t, upsert(1, base, `{"id":1}`), upsert(2, base, `{"id":2}`)), "applied, applied")
		defer f.set(t, "maxmemory", "1")()
		outcomes := f.Apply(t.Context(), []cdc.Change{upsert(1, base+1, `{"id":1}`), remove(2, base+1), upsert(3, base, `{"id":3}`)})
		var got []sinks.Verdict
		for _, o := range outcomes {
			got = append(got, o.Verdict)
		}
		expect(t, "verdicts", got, []sinks.Verdict{sinks.Unavailable, sinks.Applied, sinks.Unavailable})
		expect(t, "keys", keys(t, f), []string{"lockstep:t:{questions:2}", "questions:1"})
	})
}

func TestAPasswordThatStopsWorkingHoldsTheChanges(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "{table}:{pk}"})
	user := "redistest-" + uuid.NewString()[:8]
	acl := func(args ...any) {
		t.Helper()
		if err := f.plain.Do(context.Background(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	acl("ACL", "SETUSER", user, "on", ">first", "~*", "+@all")
	defer acl("ACL", "DELUSER", user)
	cfg := f.cfg
	cfg.Username, cfg.Password = user, "first"
	s, err := Open(t.Context(), cfg, f.tables, f.log)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	mine := fixture{s, f.plain}
	expect(t, "before", mine.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")
	acl("ACL", "SETUSER", user, "resetpass", ">second")
	acl("CLIENT", "KILL", "USER", user)
	for range 3 {
		if got := mine.verdicts(t, upsert(1, base+1, `{"id":1}`)); !strings.HasPrefix(got, "unavailable") {
			t.Errorf("got %s", got)
		}
	}
	_, err = Open(t.Context(), cfg, f.tables, f.log)
	if _, no := errors.AsType[sinks.Unfit](err); !no {
		t.Errorf("Open with the wrong password: %v", err)
	}
}

func TestADeadlineIsKept(t *testing.T) {
	way := newRelay(t, "127.0.0.1:0", server(t))
	f := open(t, way.addr, TableConfig{Key: "{table}:{pk}"})
	expect(t, "before", f.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")
	way.gate.Lock()
	defer way.gate.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if got := f.Apply(ctx, []cdc.Change{upsert(1, base+1, `{"id":1}`)}); got[0].Verdict != sinks.Unavailable {
		t.Errorf("outcome %+v", got[0])
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %s, want 200ms", took)
	}
}

// The client of a cluster, with one real server that has all slots.
func TestInAClusterEveryRowIsGuardedAndAKeyWithoutASlotForItsMarkerIsPoison(t *testing.T) {
	addr := testenv.Redis(t).Addr
	prefix := "redistest-" + uuid.NewString()[:8]
	table := TableConfig{Key: prefix + ":{name}"}
	cfg := DefaultConfig()
	cfg.Addresses = []string{addr}
	s, err := Open(t.Context(), cfg, func(cdc.TableName) (TableConfig, bool) { return table, true }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	single := s.client.(*goredis.Client)
	defer single.Close()
	s.cluster = true
	s.client = goredis.NewClusterClient(&goredis.ClusterOptions{ClusterSlots: func(context.Context) ([]goredis.ClusterSlot, error) {
		return []goredis.ClusterSlot{{Start: 0, End: 16383, Nodes: []goredis.ClusterNode{{Addr: addr}}}}, nil
	}})
	defer s.Close()
	f := fixture{s, single}
	defer func() {
		all, err := single.Keys(context.Background(), "*"+prefix+"*").Result()
		if err == nil && len(all) > 0 {
			err = single.Del(context.Background(), all...).Err()
		}
		if err != nil {
			t.Error(err)
		}
	}()
	change := func(name string, v cdc.Version) cdc.Change {
		c := upsert(0, v, `{"name":"x"}`)
		c.Key = fmt.Appendf(nil, `{"name":%q}`, name)
		return c
	}
	var first, second, third []cdc.Change
	for _, name := range []string{"plain", "{tag}", "a{tag}b", "{open", "{}", "{}}", "close}"} {
		gone := change(name, base+1)
		gone.Op, gone.After = cdc.OpDelete, nil
		first, second, third = append(first, change(name, base)), append(second, gone), append(third, change(name, base))
	}
	const untagged = "poison key, poison key, poison key"
	expect(t, "upserts", f.verdicts(t, first...), "applied, applied, applied, applied, "+untagged)
	if err := single.ScriptFlush(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	expect(t, "deletes", f.verdicts(t, second...), "applied, applied, applied, applied, "+untagged)
	expect(t, "older", f.verdicts(t, third...), "stale, stale, stale, stale, "+untagged)
	empty, err := f.Empty(t.Context(), questions, table)
	if empty || err != nil {
		t.Errorf("Empty is %v, %v", empty, err)
	}
	var back []cdc.Change
	for _, c := range first {
		c.Version, c.After = base+5, c.Key
		back = append(back, c)
	}
	expect(t, "again", f.verdicts(t, back...), "applied, applied, applied, applied, "+untagged)
	if n, err := f.Sweep(t.Context(), questions, base+5); n != 4 || err != nil {
		t.Errorf("a sweep of the cluster removed %d rows, %v; want 4", n, err)
	}
	expect(t, "older than the sweep", f.verdicts(t, third...), "stale, stale, stale, stale, "+untagged)
}

// The keys of one table may look like those of another; what belongs to nobody
// here is left alone as well.
func TestASweepTakesTheRowsOfItsTableOnly(t *testing.T) {
	for _, mode := range []string{ModeHash, ModeJSON} {
		t.Run(mode, func(t *testing.T) {
			addr, tags := server(t), cdc.TableName{DB: "bank", Table: "tags"}
			f := open(t, addr, TableConfig{})
			f.tables = func(name cdc.TableName) (TableConfig, bool) {
				if name == tags {
					return TableConfig{Key: "question:{qid}:tags:{tid}", Mode: mode}, true
				}
				return TableConfig{Key: "question:{pk}", Mode: mode}, true
			}
			tag := cdc.Change{Table: tags, Op: cdc.OpCreate, Version: base, Key: []byte(`{"qid":1,"tid":3}`), After: []byte(`{"qid":1,"tid":3,"name":"question"}`)}
			expect(t, "rows", f.verdicts(t, upsert(1, base, `{"id":1}`), upsert(2, base, `{"id":2}`), tag), "applied, applied, applied")
			f.plain.Set(t.Context(), "question:9", `{"id":9}`, 0)
			f.plain.HSet(t.Context(), "question:10", "id", "10")
			f.plain.LPush(t.Context(), "question:11", "x")
			before := f.plain.DBSize(t.Context()).Val()
			if err := f.plain.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Sweep(t.Context(), questions, base+1); err == nil {
				t.Error("a sweep whose scripts were forgotten is done")
			}
			if n, err := f.Sweep(t.Context(), questions, base+1); n != 2 || err != nil {
				t.Errorf("removed %d rows, %v; want 2", n, err)
			}
			if after := f.plain.DBSize(t.Context()).Val(); after != before { // a companion for each row
				t.Errorf("%d keys, before %d", after, before)
			}
			expect(t, "late", f.verdicts(t, upsert(1, base, `{"id":1}`), tag), "stale, duplicate")
			// The memory of a delete never goes back.
			expect(t, "a newer delete", f.verdicts(t, remove(2, base+9)), "applied")
			if _, err := f.Sweep(t.Context(), questions, base+5); err != nil {
				t.Error(err)
			}
			expect(t, "older than it", f.verdicts(t, upsert(2, base+8, `{"id":2}`)), "stale")
		})
	}
}

func TestEmptySeesRowsAndMarkersOfItsTableAlone(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "{table}:{pk}"})
	table := TableConfig{Key: "{table}*:{{{id}}}"}
	empty := func(want bool) {
		t.Helper()
		got, err := f.Empty(t.Context(), questions, table)
		if err != nil || got != want {
			t.Errorf("Empty is %v, %v; want %v", got, err, want)
		}
	}
	for i := range 5000 {
		f.plain.Set(t.Context(), fmt.Sprintf("questionsx:{%d}", i), 1, 0)
	}
	empty(true)
	f.plain.Set(t.Context(), "lockstep:t::questions*:{4}", 1, 0)
	empty(false)
	f.plain.FlushDB(t.Context())
	empty(true)
	f.plain.HSet(t.Context(), "questions*:{4}", "a", 1)
	empty(false)
	table = TableConfig{Key: "{table}:{pk}"}
	empty(true)
	f.plain.Set(t.Context(), "lockstep:t:{questions:4}", 1, 0)
	empty(false)
}

func keys(t *testing.T, f fixture) []string {
	t.Helper()
	all, err := f.plain.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(slices.Values(all))
}

func TestErrorsAreClassifiedByTheirCode(t *testing.T) {
	reply := func(text string) error { return fmt.Errorf("wrapped: %w", replyError(text)) }
	unavailable := map[string]error{
		"network":     &net.OpError{Op: "read", Err: errors.New("OOM is only text here")},
		"deadline":    context.DeadlineExceeded,
		"OOM":         reply("OOM command not allowed when used memory > 'maxmemory'."),
		"LOADING":     reply("LOADING Redis is loading the dataset in memory"),
		"BUSY":        reply("BUSY Redis is busy running a script."),
		"READONLY":    reply("READONLY You can't write against a read only replica."),
		"MISCONF":     reply("MISCONF Redis is configured to save RDB snapshots"),
		"MASTERDOWN":  reply("MASTERDOWN Link with MASTER is down"),
		"CLUSTERDOWN": reply("CLUSTERDOWN The cluster is down"),
		"TRYAGAIN":    reply("TRYAGAIN Multiple keys request during rehashing of slot"),
		"NOREPLICAS":  reply("NOREPLICAS Not enough good replicas to write."),
		"NOAUTH":      reply("NOAUTH Authentication required."),
		"WRONGPASS":   reply("WRONGPASS invalid username-password pair"),
		"NOPERM":      reply("NOPERM this user has no permissions"),
	}
	for name, err := range unavailable {
		expect(t, name, classify(err), sinks.Outcome{Verdict: sinks.Unavailable, Reason: err.Error()})
	}
	wrong := reply("WRONGTYPE Operation against a key holding the wrong kind of value")
	expect(t, "WRONGTYPE", classify(wrong), sinks.Outcome{Verdict: sinks.Poison, Class: sinks.ClassWrongType, Reason: wrong.Error()})
	odd := reply("ERR something about OOM and WRONGTYPE")
	expect(t, "ERR", classify(odd), sinks.Outcome{Verdict: sinks.Transient, Class: sinks.ClassRefused, Reason: odd.Error()})
}

type replyError string

func (e replyError) Error() string { return string(e) }
func (e replyError) RedisError()   {}

func TestACompanionLivesInTheSlotOfItsKeyAndBelongsToItAlone(t *testing.T) {
	alphabet := rapid.StringOfN(rapid.SampledFrom([]rune("ab{}:%")), 1, 8, -1)
	rapid.Check(t, func(t *rapid.T) {
		a := alphabet.Draw(t, "a")
		b := rapid.SampledFrom([]string{"{" + a + "}", ":" + a, alphabet.Draw(t, "b")}).Draw(t, "b")
		ca, slotted := companion(a)
		if slotted && slotOf(ca) != slotOf(a) {
			t.Fatalf("%q is in slot %d, its companion %q in %d", a, slotOf(a), ca, slotOf(ca))
		}
		if !slotted && (tagged(a) || !strings.Contains(a, "}")) {
			t.Fatalf("%q has no companion in its slot", a)
		}
		if cb, _ := companion(b); (ca == cb) != (a == b) {
			t.Fatalf("%q and %q have companions %q and %q", a, b, ca, cb)
		}
	})
}

func TestAMistakeInTheConfigurationNamesItsPlaceAndTheWayOut(t *testing.T) {
	if err := DefaultConfig().Check(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	if err := (TableConfig{Key: "{table}:{pk}"}).Check(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	for want, mistake := range map[string]func(*Config){
		"addresses: is empty":                 func(c *Config) { c.Addresses = nil },
		`addresses: "redis" is not host:port`: func(c *Config) { c.Addresses = []string{"redis"} },
		"db: a cluster has only database 0":   func(c *Config) { c.Addresses = []string{"a:1", "b:1"}; c.DB = 1 },
		"password_file: password is set":      func(c *Config) { c.Password, c.PasswordFile = "x", "y" },
		"sentinel.master: is empty":           func(c *Config) { c.Sentinel.Username = "x" },
		"db: -1 is not":                       func(c *Config) { c.DB = -1 },
		"tls: cert_file and key_file":         func(c *Config) { c.TLS = TLS{Enabled: true, CertFile: "x"} },
		"tls.enabled: is false":               func(c *Config) { c.TLS.CAFile = "x" },
		`mode: "mirrror" is not known`:        func(c *Config) { c.Mode = "mirrror" },
		"pipeline_bytes: 0 is out of range":   func(c *Config) { c.PipelineBytes = 0 },
		"timeout: 1ms is out of range":        func(c *Config) { c.Timeout = time.Millisecond },
		"tombstone_ttl: 1s is out of range":   func(c *Config) { c.TombstoneTTL = time.Second },
		"max_value_bytes: 1 is out of range":  func(c *Config) { c.MaxValueBytes = 1 },
	} {
		c := DefaultConfig()
		mistake(&c)
		if err := c.Check(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for want, c := range map[string]TableConfig{
		"key: key template":             {Key: "question"},
		`key: "lockstep:t:{id}" begins`: {Key: "lockstep:t:{id}"},
		`mode: "sett" is not known`:     {Mode: "sett"},
	} {
		if err := c.Check(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// The ceiling is the same script, called in pipelines of the same size by a bare
// loop whose arguments are ready.
func BenchmarkApply(b *testing.B) {
	const rows, batch = 100_000, 1000
	addr := server(b)
	for _, mode := range []string{ModeHash, ModeJSON} {
		version := base
		f := open(b, addr, TableConfig{Key: "{table}:{pk}", Mode: mode})
		f.plain.FlushDB(b.Context())
		changes := make([]cdc.Change, batch)
		next := func() []cdc.Change {
			for i := range changes {
				version++
				id := int(version) % rows
				changes[i] = upsert(id, version, fmt.Sprintf(`{"id":%d,"title":"what is the time complexity of this","difficulty":"hard","points":%d,"body":"%s","updated_at":"2026-11-22T08:15:30.123456Z","draft":0,"notes":null}`, id, id%100, strings.Repeat("words ", 20)))
			}
			return changes
		}
		check := func(b *testing.B, applied bool) {
			if !applied {
				b.Fatal("not applied")
			}
		}
		b.Run(mode+"/apply", func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				in := next()
				b.StartTimer()
				out := f.Apply(b.Context(), in)
				check(b, out[0].Verdict == sinks.Applied && out[batch-1].Verdict == sinks.Applied)
			}
			b.ReportMetric(float64(b.N)*batch/b.Elapsed().Seconds(), "rows/s")
		})
		b.Run(mode+"/bare", func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				var ready [][]any
				for _, c := range next() {
					calls, _ := (&attempt{Sink: f.Sink, scratch: new(scratch)}).encode(&c, nil)
					ready = append(ready, calls[0].args)
				}
				b.StartTimer()
				pipe := f.plain.Pipeline()
				for _, args := range ready {
					pipe.Do(b.Context(), args...)
				}
				_, err := pipe.Exec(b.Context())
				check(b, err == nil)
			}
			b.ReportMetric(float64(b.N)*batch/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// A server that takes no value as large as a row may be would cut the connection at it
// again and again, so it is refused beforehand.
func TestAServerThatTakesNoSuchValuesIsRefused(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "{table}:{pk}"})
	defer f.set(t, "proto-max-bulk-len", "1048576")()
	_, err := Open(t.Context(), f.cfg, f.tables, f.log)
	if unfit, ok := errors.AsType[sinks.Unfit](err); !ok || !strings.Contains(unfit.Problem, "proto-max-bulk-len is 1048576, less than max_value_bytes 33554432") {
		t.Errorf("Open: %v", err)
	}
	f.cfg.MaxValueBytes = 1 << 20
	s, err := Open(t.Context(), f.cfg, f.tables, f.log)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}
