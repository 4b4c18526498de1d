package redis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"lockstep/cdc"
)

// cached is the companion of a key that is only invalidated.
func cached(key string) string { return "lockstep:v:bank.questions:{" + key + "}" }

// fill is what docs/redis.md tells an application to do.
func fill(ctx context.Context, plain *goredis.Client, key string, ttl time.Duration, readMySQL func() []any) (filled bool, err error) {
	version, err := plain.Get(ctx, cached(key)).Result()
	if err == goredis.Nil {
		version, err = "0", nil
	}
	if err != nil {
		return false, err
	}
	value := readMySQL()
	return plain.Eval(ctx, SetIfNewer, []string{key, cached(key)}, append([]any{version, ttl.Milliseconds()}, value...)...).Bool()
}

func TestAChangeDeletesWhatAnApplicationCaches(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "q:{id}", Mode: ModeInvalidate})
	value := func() string { return f.plain.Get(t.Context(), "q:1").Val() }
	read := func(text string) bool {
		ok, err := fill(t.Context(), f.plain, "q:1", 0, func() []any { return []any{text} })
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	expect(t, "filled before any change", read("old"), true)
	expect(t, "change", f.verdicts(t, upsert(1, base+1, `{"id":1}`)), "applied")
	expect(t, "value", value(), "")
	expect(t, "filled", read("new"), true)
	expect(t, "the same again", f.verdicts(t, upsert(1, base+1, `{"id":1}`)), "duplicate")
	expect(t, "older", f.verdicts(t, upsert(1, base, `{"id":1}`)), "stale")
	expect(t, "value", value(), "new")
	ok, err := fill(t.Context(), f.plain, "q:1", 0, func() []any {
		expect(t, "a change while the reader reads", f.verdicts(t, upsert(1, base+2, `{"id":1}`)), "applied")
		return []any{"new"}
	})
	if ok || err != nil {
		t.Errorf("an overtaken fill: %v, %v", ok, err)
	}
	expect(t, "value", value(), "")
	expect(t, "delete", f.verdicts(t, remove(1, base+3)), "applied")
	if ttl := f.plain.TTL(t.Context(), cached("q:1")).Val(); ttl <= 0 {
		t.Errorf("the version lives for %s", ttl)
	}

	expect(t, "filled", read("again"), true)
	expect(t, "the version lives as long as the value", f.plain.TTL(t.Context(), cached("q:1")).Val(), -1)
	if n, err := f.Sweep(t.Context(), questions, base+9); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	expect(t, "value", value(), "")
	if _, err := fill(t.Context(), f.plain, "q:2", 30*24*time.Hour, func() []any { return []any{"x"} }); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"q:2", cached("q:2")} {
		if ttl := f.plain.TTL(t.Context(), key).Val(); ttl < 29*24*time.Hour {
			t.Errorf("%s lives for %s", key, ttl)
		}
	}
	if n, err := f.Sweep(t.Context(), questions, base+9); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
}

func TestAChangeMarksACachedHashAsStale(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "q:{id}", Mode: ModeInvalidate, StaleField: "stale"})
	hash := func() map[string]string { return f.plain.HGetAll(t.Context(), "q:1").Val() }
	expect(t, "nothing is cached", f.verdicts(t, upsert(1, base, `{"id":1}`)), "applied")
	expect(t, "hash", hash(), map[string]string{})
	f.plain.HSet(t.Context(), "q:1", "title", "old")
	expect(t, "change", f.verdicts(t, upsert(1, base+1, `{"id":1}`)), "applied")
	expect(t, "hash", hash(), map[string]string{"title": "old", "stale": "1"})
	if ok, err := fill(t.Context(), f.plain, "q:1", time.Hour, func() []any { return []any{"title", "new", "level", "2"} }); !ok || err != nil {
		t.Errorf("fill: %v, %v", ok, err)
	}
	expect(t, "hash", hash(), map[string]string{"title": "new", "level": "2"})
	expect(t, "delete", f.verdicts(t, remove(1, base+2)), "applied")
	expect(t, "hash", hash(), map[string]string{})
	f.plain.Set(t.Context(), "q:1", "text", 0)
	expect(t, "no hash", f.verdicts(t, upsert(1, base+3, `{"id":1}`)), "poison wrong_type")
}

// A source changes a row while readers fill the cache from it, and the changes
// arrive late and out of order.
func TestACacheDoesNotKeepWhatAnInvalidationHasOvertaken(t *testing.T) {
	f := open(t, server(t), TableConfig{Key: "q:{id}", Mode: ModeInvalidate})
	var rows sync.WaitGroup
	for id := range 30 {
		rows.Go(func() { f.race(t, id) })
	}
	rows.Wait()
}

func (f fixture) race(t *testing.T, id int) {
	const versions, readers = 20, 3
	ctx, key := context.Background(), fmt.Sprintf("q:%d", id)
	pause := func(most int) { time.Sleep(time.Duration(rand.IntN(most)) * time.Microsecond) }
	var row atomic.Int64 // in the source
	changes := make(chan cdc.Change, versions)
	var work sync.WaitGroup
	work.Go(func() {
		defer close(changes)
		for v := 1; v <= versions; v++ {
			row.Store(int64(v))
			changes <- upsert(id, base+cdc.Version(v), `{"id":1}`)
			pause(4000)
		}
	})
	stop := make(chan struct{})
	work.Go(func() {
		defer close(stop)
		var late []cdc.Change
		for c := range changes {
			if late = append(late, c); len(late) < 3 {
				continue
			}
			i := rand.IntN(len(late))
			f.Apply(ctx, late[i:i+1])
			late = append(late[:i], late[i+1:]...)
		}
		for _, c := range late {
			f.Apply(ctx, []cdc.Change{c})
		}
	})
	for range readers {
		work.Go(func() {
			for over := false; !over; {
				select {
				case <-stop:
					over = true // once more
				default:
				}
				if f.plain.Exists(ctx, key).Val() == 1 {
					pause(500)
					continue
				}
				if _, err := fill(ctx, f.plain, key, 0, func() []any {
					seen := row.Load()
					pause(20000)
					return []any{strconv.FormatInt(seen, 10)}
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if got := f.plain.Get(ctx, key).Val(); got != fmt.Sprint(versions) {
		t.Errorf("the cache has row %q at the end, the source %d", got, versions)
	}
}

func TestTheDocumentShowsTheScript(t *testing.T) {
	text, err := os.ReadFile("../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "```lua\n"+SetIfNewer+"```") {
		t.Error("docs/redis.md does not show set_if_newer as it is")
	}
}
