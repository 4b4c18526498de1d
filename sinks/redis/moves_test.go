package redis

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/tidwall/gjson"
	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/internal/testenv"
	"lockstep/kafka"
	"lockstep/sinks"
)

// moving are tables whose rows change their place when their level changes.
var moving = map[string]TableConfig{
	ModeHash:   {Key: "q:{level}:{id}"},
	ModeJSON:   {Key: "q:{level}:{id}", Mode: ModeJSON},
	ModeString: {Key: "q:{level}:{id}", Mode: ModeString, Value: "{points}"},
	ModeStream: {Key: "q:{level}:{id}", Mode: ModeStream},
	ModeSet:    {Key: "level:{level}", Mode: ModeSet, Member: "{id}"},
	ModeZset:   {Key: "level:{level}", Mode: ModeZset, Member: "{id}", Score: "points"},
}

// null is a level that is NULL.
const null = "NULL"

// image is a row with a level.
func image(id int, level string, points int) []byte {
	if level == null {
		return fmt.Appendf(nil, `{"id":%d,"level":null,"points":%d}`, id, points)
	}
	return fmt.Appendf(nil, `{"id":%d,"level":%q,"points":%d}`, id, level, points)
}

// contents is what a reader of a shape finds, by key.
func (f fixture) contents(t rapid.TB, mode string) map[string]string {
	ctx, found := context.Background(), map[string]string{}
	keys, err := f.plain.Keys(ctx, "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if strings.HasPrefix(key, ownPrefix) {
			continue
		}
		switch mode {
		case ModeHash:
			found[key] = f.plain.HGet(ctx, key, "points").Val()
		case ModeJSON:
			found[key] = gjson.Get(f.plain.Get(ctx, key).Val(), "points").Raw
		case ModeString:
			found[key] = f.plain.Get(ctx, key).Val()
		case ModeStream:
			newest := f.plain.XRevRangeN(ctx, key, "+", "-", 1).Val()[0]
			if newest.Values["op"] != "d" {
				found[key] = gjson.Get(newest.Values["row"].(string), "points").Raw
			}
		case ModeSet:
			members := f.plain.SMembers(ctx, key).Val()
			slices.Sort(members)
			found[key] = strings.Join(members, " ")
		case ModeZset:
			var members []string
			for _, z := range f.plain.ZRangeWithScores(ctx, key, 0, -1).Val() {
				members = append(members, fmt.Sprintf("%s=%g", z.Member, z.Score))
			}
			slices.Sort(members)
			found[key] = strings.Join(members, " ")
		}
	}
	return found
}

// expected is what a reader finds when rows stand at their newest changes.
func expected(mode string, newest map[int]cdc.Change) map[string]string {
	want := map[string]string{}
	members := map[string][]string{}
	for id, c := range newest {
		level, points := gjson.GetBytes(c.After, "level"), gjson.GetBytes(c.After, "points").Raw
		switch {
		case level.Type == gjson.Null: // and of a row that is deleted
		case mode == ModeSet:
			members["level:"+level.Str] = append(members["level:"+level.Str], strconv.Itoa(id))
		case mode == ModeZset:
			members["level:"+level.Str] = append(members["level:"+level.Str], fmt.Sprintf("%d=%s", id, points))
		default:
			want[fmt.Sprintf("q:%s:%d", level.Str, id)] = points
		}
	}
	for key, texts := range members {
		slices.Sort(texts)
		want[key] = strings.Join(texts, " ")
	}
	return want
}

// A history of rows that change their places is delivered in any order and more
// than once; some changes are superseded by later ones, which then carry their before images.
// At the end a sweep takes what is old, and everything comes once more.
func TestARowThatMovesIsInOnePlaceAtTheEndWhateverTheOrder(t *testing.T) {
	addr := server(t)
	for mode, table := range moving {
		t.Run(mode, func(t *testing.T) {
			f := open(t, addr, table)
			f.cfg.PipelineBytes = 1024 // several pipelines in one Apply
			levels := []string{"a", "b", "", null}
			rapid.Check(t, func(t *rapid.T) {
				if err := f.plain.FlushDB(context.Background()).Err(); err != nil {
					t.Fatal(err)
				}
				newest := map[int]cdc.Change{}
				var history []cdc.Change
				for i := range rapid.IntRange(1, 30).Draw(t, "length") {
					id := rapid.IntRange(1, 3).Draw(t, "row")
					c := cdc.Change{Table: questions, Op: cdc.OpUpdate, Version: base + cdc.Version(i+1), Key: fmt.Appendf(nil, `{"id":%d}`, id), Before: newest[id].After}
					switch {
					case c.Before != nil && rapid.IntRange(0, 3).Draw(t, "delete") == 0:
						c.Op = cdc.OpDelete
					case c.Before == nil:
						c.Op = cdc.OpCreate
						fallthrough
					default:
						c.After = image(id, rapid.SampledFrom(levels).Draw(t, "level"), i)
					}
					newest[id] = c
					history = append(history, c)
				}
				var queue []cdc.Change
				waiting := map[string]cdc.Change{} // superseded by the next change of the row
				for i, c := range history {
					if old, ok := waiting[string(c.Key)]; ok {
						c.Left = append(slices.Clone(old.Left), old.Before)
						delete(waiting, string(c.Key))
					}
					last := newest[int(gjson.GetBytes(c.Key, "id").Int())].Version == c.Version
					if !last && rapid.IntRange(0, 2).Draw(t, "superseded") == 0 {
						waiting[string(c.Key)] = c
						continue
					}
					history[i] = c
					queue = append(queue, c)
				}
				again := rapid.SliceOfN(rapid.SampledFrom(queue), 0, 10).Draw(t, "again")
				f.deliver(t, rapid.Permutation(append(slices.Clone(queue), again...)).Draw(t, "order"))
				want := expected(mode, newest)
				if got := f.contents(t, mode); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("got %v, want %v", got, want)
				}

				to := base + cdc.Version(rapid.IntRange(0, 30).Draw(t, "sweep"))
				there, left := 0, map[int]cdc.Change{}
				for id, c := range newest {
					if len(expected(mode, map[int]cdc.Change{id: c})) > 0 && c.Version <= to {
						there++
					}
					if c.Version > to {
						left[id] = c
					}
				}
				if n, err := f.Sweep(context.Background(), questions, to); n != there || err != nil {
					t.Fatalf("the sweep removed %d rows, %v; want %d", n, err, there)
				}
				f.deliver(t, rapid.Permutation(queue).Draw(t, "late"))
				want = expected(mode, left)
				if got := f.contents(t, mode); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("swept to %d: got %v, want %v", to-base, got, want)
				}
			})
		})
	}
}

// deliver applies changes in batches of distinct rows.
func (f fixture) deliver(t rapid.TB, queue []cdc.Change) {
	for len(queue) > 0 {
		seen, n := map[string]bool{}, 0
		for n < len(queue) && !seen[string(queue[n].Key)] {
			seen[string(queue[n].Key)] = true
			n++
		}
		for i, o := range f.Apply(context.Background(), queue[:n]) {
			switch o.Verdict {
			case sinks.Applied, sinks.Duplicate, sinks.Stale, sinks.Filtered:
			default:
				t.Fatalf("change %+v: outcome %+v", queue[i], o)
			}
		}
		queue = queue[n:]
	}
}

func TestAMoveIsSettledWhenBothPlacesAre(t *testing.T) {
	f := open(t, server(t), moving[ModeHash])
	move := cdc.Change{Table: questions, Op: cdc.OpUpdate, Version: base + 1, Key: []byte(`{"id":1}`), Before: image(1, "a", 1), After: image(1, "b", 1)}
	stays := move
	stays.Before, stays.Left = image(1, "b", 0), [][]byte{image(1, "b", 2), image(1, "c", 3)}
	calls, _ := (&attempt{Sink: f.Sink, scratch: new(scratch)}).encode(&stays, nil)
	expect(t, "calls for a row that was in its place before, and once elsewhere", len(calls), 2)
	f.plain.LPush(t.Context(), "q:a:1", "x")
	expect(t, "the old key cannot be removed", f.verdicts(t, move), "poison wrong_type")
	expect(t, "the new key", f.plain.HGet(t.Context(), "q:b:1", "level").Val(), "b")
	f.plain.Del(t.Context(), "q:a:1")
	expect(t, "again", f.verdicts(t, move), "duplicate")
	expect(t, "the old key remembers", f.plain.Get(t.Context(), "lockstep:t:{q:a:1}").Val(), move.Version.String())
	expect(t, "a place of before", f.verdicts(t, at(1, base+1, nil, image(1, "c", 1))), "applied")
	expect(t, "the row is back", f.verdicts(t, at(1, base+9, nil, image(1, "d", 1))), "applied")
	late := at(1, base+2, image(1, "e", 1), image(1, "d", 1))
	late.Left = [][]byte{image(1, "c", 1)}
	expect(t, "an older move to where a newer one has put it", f.verdicts(t, late), "stale")
	expect(t, "its older places", f.plain.Exists(t.Context(), "q:c:1", "q:e:1").Val(), 0)
	f.plain.FlushDB(t.Context())
	gone := remove(1, base+3)
	expect(t, "a delete without a before image", f.verdicts(t, gone), "poison key")
	gone.Before, gone.Left = image(1, null, 1), [][]byte{image(1, "b", 1)}
	expect(t, "a delete", f.verdicts(t, gone), "applied")
	expect(t, "keys", keys(t, f), []string{"lockstep:t:{q:b:1}"})
	expect(t, "moves", []bool{f.Moves(questions), open(t, server(t), TableConfig{Key: "{table}:{pk}"}).Moves(questions)}, []bool{true, false})
	expect(t, "rows that move", []bool{f.MovesRow(&gone), open(t, server(t), TableConfig{Key: "{table}:{id}"}).MovesRow(&gone)}, []bool{true, false})
}

// A row whose key has a NULL has no place: it leaves the ones that it had, and comes
// back when it has a value again, whatever is redelivered in between.
func TestARowWithNULLInItsKeyHasNoPlace(t *testing.T) {
	addr := server(t)
	tables := maps.Clone(moving)
	tables[ModeInvalidate] = TableConfig{Key: "q:{level}:{id}", Mode: ModeInvalidate}
	for mode, table := range tables {
		t.Run(mode, func(t *testing.T) {
			f := open(t, addr, table)
			f.plain.FlushDB(t.Context())
			there := func(level string) bool {
				if mode == ModeInvalidate {
					return f.plain.Exists(t.Context(), "q:"+level+":1").Val() == 1
				}
				return len(f.contents(t, mode)) == 1 && maps.Equal(f.contents(t, mode), expected(mode, map[int]cdc.Change{1: at(1, base, nil, image(1, level, 1))}))
			}
			fill := func() { // what an application has read
				if mode == ModeInvalidate {
					f.plain.Set(t.Context(), "q:a:1", "x", 0)
				}
			}
			a, empty, none := image(1, "a", 1), image(1, "", 1), image(1, null, 1)
			insert, lose, keep := at(1, base+1, nil, a), at(1, base+2, a, none), at(1, base+3, none, none)
			again := at(1, base+4, none, a)
			expect(t, "an insert with NULL", f.verdicts(t, at(2, base, nil, image(2, null, 1))), "filtered")
			expect(t, "its delete", f.verdicts(t, at(2, base+1, image(2, null, 1), nil)), "filtered")
			expect(t, "a value", f.verdicts(t, insert), "applied")
			fill()
			expect(t, "there", there("a"), true)
			expect(t, "it becomes NULL", f.verdicts(t, lose), "applied")
			expect(t, "keys without their companions", len(slices.DeleteFunc(keys(t, f), func(key string) bool {
				return strings.HasPrefix(key, ownPrefix) || mode == ModeStream // a stream ends with the delete
			})), 0)
			expect(t, "once more, and an older one", f.verdicts(t, lose)+" "+f.verdicts(t, insert), "duplicate stale")
			expect(t, "it stays NULL", f.verdicts(t, keep), "filtered")
			expect(t, "a value again", f.verdicts(t, again), "applied")
			fill()
			expect(t, "older ones come late", f.verdicts(t, lose)+" "+f.verdicts(t, keep)+" "+f.verdicts(t, insert), "stale filtered stale")
			expect(t, "there", there("a"), true)
			expect(t, "an empty text is a value", f.verdicts(t, at(1, base+5, a, empty)), "applied")
			if mode != ModeInvalidate {
				expect(t, "there", there(""), true)
			}
			last := at(1, base+7, none, nil)
			last.Left = [][]byte{empty} // NULL in between, which it stands for
			expect(t, "a delete behind a NULL", f.verdicts(t, last), "applied")
			expect(t, "not there", there("a") || there(""), false)
		})
	}
}

// places are the levels at which a row is found.
func (f fixture) places(t rapid.TB, mode string) []string {
	levels := []string{}
	for key := range f.contents(t, mode) {
		levels = append(levels, strings.Split(key, ":")[1])
	}
	slices.Sort(levels)
	return levels
}

// A row that its new place cannot take is not in the old ones any more: whoever changes
// it next does not know them, and neither does its dead letter.
func TestARefusedRowLeavesItsOlderPlaces(t *testing.T) {
	addr := server(t)
	for mode, table := range moving {
		t.Run(mode, func(t *testing.T) {
			f := open(t, addr, table)
			f.plain.FlushDB(t.Context())
			f.cfg.MaxValueBytes = 2048
			a, b, c := image(1, "a", 1), image(1, "b", 1), image(1, "c", 1)
			large := image(1, strings.Repeat("x", cdc.SmallValue), 1)
			expect(t, "a value", f.verdicts(t, at(1, base+1, nil, a)), "applied")
			move := at(1, base+2, a, large)
			expect(t, "a value that fits no key", f.verdicts(t, move), "poison key")
			expect(t, "rows", f.contents(t, mode), map[string]string{})
			expect(t, "the row before fits none either", f.verdicts(t, at(1, base+3, large, b)), "applied")
			wide := at(1, base+5, image(1, "c", 1), slices.Concat([]byte(`{"id":1,"level":"d","points":1,"x":"`), bytes.Repeat([]byte("x"), 2048), []byte(`"}`)))
			wide.Left = [][]byte{b} // of the change to c, which it stands for
			expect(t, "too large a row", f.verdicts(t, wide), "poison too_large")
			expect(t, "rows", f.contents(t, mode), map[string]string{})
			expect(t, "its delete", f.verdicts(t, at(1, base+6, wide.After, nil)), "applied")
			older := at(1, base+8, image(1, "a", 1), []byte(`{"id":1,"points":1}`))
			older.Left = [][]byte{b}
			expect(t, "two places", f.verdicts(t, at(1, base+7, nil, a))+" "+f.verdicts(t, at(1, base+7, nil, b)), "applied applied")
			f.Describe = func(context.Context, cdc.TableName) (cdc.Table, error) { return cdc.Table{}, errors.New("no answer") }
			expect(t, "a row without a column while the table cannot be asked", f.verdicts(t, older), "unavailable no answer")
			expect(t, "places", len(f.places(t, mode)), 2)
			f.Describe = nil
			expect(t, "a row without a column", f.verdicts(t, older), "poison key")
			expect(t, "rows", f.contents(t, mode), map[string]string{})
			leaves := at(1, base+12, a, nil)
			leaves.Op, leaves.Left, leaves.Leaves = cdc.OpUpdate, [][]byte{b}, true
			expect(t, "two places", f.verdicts(t, at(1, base+10, nil, a))+" "+f.verdicts(t, at(1, base+10, nil, b)), "applied applied")
			stays := leaves
			stays.Version, stays.After = base+11, b
			f.Apply(t.Context(), []cdc.Change{stays})
			expect(t, "of a row that has no document, and stays", f.places(t, mode), []string{"b"})
			f.Apply(t.Context(), []cdc.Change{leaves})
			expect(t, "of one whose place is not known", f.places(t, mode), []string{})
			expect(t, "its document comes after all", f.verdicts(t, at(1, base+12, a, b)), "applied")
			expect(t, "its delete", f.verdicts(t, at(1, base+13, b, nil)), "applied")
			expect(t, "the letters again", f.verdicts(t, move)+", "+f.verdicts(t, at(1, base+5, c, wide.After)), "poison key, poison too_large")
			expect(t, "rows", f.contents(t, mode), map[string]string{})
		})
	}
}

// What could not be taken out of an older place may still be there, and nobody else would
// know: its table waits.
func TestARowThatCannotLeaveItsPlaceWaits(t *testing.T) {
	f := open(t, server(t), moving[ModeHash])
	f.plain.FlushDB(t.Context())
	target, err := f.target(questions)
	if err != nil {
		t.Fatal(err)
	}
	remove := target.verbs.remove
	target.verbs.remove = newScript("return redis.error_reply('ERR strange')")
	t.Cleanup(func() { scripts = scripts[:len(scripts)-1] })
	a, b := image(1, "a", 1), image(1, "b", 1)
	expect(t, "the row", f.verdicts(t, at(1, base+1, nil, a)), "applied")
	for _, c := range []cdc.Change{at(1, base+2, a, b), at(1, base+3, b, nil)} {
		out := f.Apply(t.Context(), []cdc.Change{c})[0]
		if out.Verdict != sinks.Unavailable || !out.Unasked || !strings.Contains(out.Reason, "strange") {
			t.Errorf("%+v; want the table held", out)
		}
	}
	target.verbs.remove = remove
	expect(t, "once it can", f.verdicts(t, at(1, base+2, a, b))+" "+f.verdicts(t, at(1, base+3, b, nil)), "duplicate applied")
	expect(t, "rows", f.contents(t, ModeHash), map[string]string{})
}

func TestTemplatesFitTheTable(t *testing.T) {
	table := cdc.Table{Name: questions, Columns: []cdc.Column{{Name: "id"}, {Name: "level"}, {Name: "points"}}, Key: []string{"id"}}
	for _, cfg := range moving {
		if err := CheckTable(cfg, table); err != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	for want, cfg := range map[string]TableConfig{
		"leaves out the primary-key column id": {Key: "q:{level}"},
		"redis.key: q:{lebel}:{id} names the column lebel, which rows of bank.questions do not have here; they have id, level, points: name one of these": {Key: "q:{lebel}:{id}"},
		"member":                 {Key: "level:{level}", Mode: ModeSet, Member: ""},
		"add {id}":               {Key: "level:{level}", Mode: ModeSet, Member: "{points}"},
		"names the column title": {Mode: ModeString, Value: "{title}"},
		"redis.score: point names the column point": {Mode: ModeZset, Key: "all", Member: "{id}", Score: "point"},
	} {
		if err := CheckTable(cfg, table); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v; want %q", cfg, err, want)
		}
	}
}

// A column that has another name now, or that a shape leaves out, holds the rows of its
// table until the configuration fits; a row that only is older than the table does not.
func TestARowWithoutAColumnOfATemplateWaitsWhileItsTableLacksItToo(t *testing.T) {
	for mode, table := range map[string]TableConfig{
		"key":    {Key: "q:{level}:{id}"},
		"member": {Key: "all:{id}", Mode: ModeSet, Member: "{level}"},
		"value":  {Key: "q:{id}", Mode: ModeString, Value: "{level}|"},
		"score":  {Key: "q", Mode: ModeZset, Member: "{id}", Score: "level"},
	} {
		t.Run(mode, func(t *testing.T) {
			f := open(t, server(t), table)
			columns, problem, asked := "id level", error(nil), 0
			f.Describe = func(_ context.Context, name cdc.TableName) (cdc.Table, error) {
				asked++
				now := cdc.Table{Name: name, Key: []string{"id"}}
				for column := range strings.FieldsSeq(columns) {
					now.Columns = append(now.Columns, cdc.Column{Name: column})
				}
				return now, problem
			}
			row := func(id int, column string) []byte { return fmt.Appendf(nil, `{"id":%d,"%s":"7"}`, id, column) }
			class := "key"
			if mode == "value" || mode == "score" {
				class = "mapping"
			}
			expect(t, "rows that have it", f.verdicts(t, at(1, base, nil, row(1, "level")), at(2, base, nil, row(2, "level"))), "applied, applied")
			expect(t, "asked", asked, 0)
			columns = "id grade"
			renamed := []cdc.Change{at(1, base+2, row(1, "grade"), row(1, "grade")), at(2, base+2, row(2, "grade"), row(2, "grade")), at(3, base, nil, row(3, "level"))}
			text := map[string]string{"key": "q:{level}:{id}", "member": "{level}", "value": "{level}|", "score": "level"}[mode]
			reason := fmt.Sprintf("redis.%s: %s names the column level, which rows of bank.questions do not have here; they have id, grade: name one of these, and start the sink again", mode, text)
			waits := sinks.Outcome{Unasked: true, Reason: reason}
			expect(t, "it has another name", f.Apply(t.Context(), renamed), []sinks.Outcome{waits, waits, {Verdict: sinks.Applied}})
			expect(t, "asked once for a call", asked, 1)
			if class == "key" {
				expect(t, "a delete", f.Apply(t.Context(), []cdc.Change{at(1, base+3, row(1, "grade"), nil)}), []sinks.Outcome{waits})
			}
			problem = errors.New("no answer")
			expect(t, "the source does not answer", f.Apply(t.Context(), renamed[:1]), []sinks.Outcome{{Unasked: true, Reason: "no answer"}})
			problem = fmt.Errorf("describe: %w", cdc.ErrNoTable)
			expect(t, "the table is gone", f.verdicts(t, renamed[0]), "transient no_table")
			columns, problem = "id level", nil
			expect(t, "the table is another than the row", f.verdicts(t, renamed[0]), "poison "+class)
			expect(t, "rows that have it again", f.verdicts(t, at(1, base+4, row(1, "grade"), row(1, "level"))), "applied")
		})
	}
}

// Through a worker, which leaves out what a newer change of the row has overtaken.
func TestRowsThatMoveUnderAWorkerAreInOnePlaceEach(t *testing.T) {
	t.Parallel()
	server := testenv.NewRedis(t)
	plain := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer plain.Close()
	h := newHistory(0)
	want := map[string]string{}
	for id := range 40 {
		var before []byte
		for n := range 100 {
			level := string(rune('a' + (n*7+id)%11))
			after := image(id, level, n)
			c := at(id, base+cdc.Version(n*40+id), before, after)
			if n == 99 && id%4 == 0 {
				c = at(id, c.Version, before, nil)
			} else if n == 99 {
				want[fmt.Sprintf("q:%s:%d", level, id)] = "99"
			}
			before = after
			h.publish(c)
		}
	}
	slices.SortStableFunc(h.records, func(a, b kafka.Record) int { return cmp.Compare(versionOf(t, a), versionOf(t, b)) })
	for i := range h.records {
		h.records[i].Offset = int64(i)
	}
	newPipeline(t, privateConfig(server.Addr), moving[ModeHash], h)
	var got map[string]string
	for range 2400 {
		if got = (fixture{plain: plain}).contents(t, ModeHash); maps.Equal(got, want) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("got %v, want %v", got, want)
}

func versionOf(t *testing.T, r kafka.Record) cdc.Version {
	c, err := cdc.DecodeHeaders(r.Key, r.Headers)
	if err != nil {
		t.Fatal(err)
	}
	return c.Version
}
